//! Documents name files that exist.

use std::path::{Path, PathBuf};

use dfs_service::page::Page;

use crate::{check_none, texts};

/// Targets of `[text](target)` without web addresses and without `#section`.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        .map(|target| target.split('#').next().unwrap_or("").to_owned())
        .filter(|target| {
            !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")
        })
        .collect()
}

/// File names of this repository in `code spans`: those with a slash that begin in a folder of the root.
fn named_files(text: &str, folders: &[String]) -> Vec<String> {
    text.split("```")
        .step_by(2)
        .flat_map(|prose| {
            prose.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|span| {
            span.split_once('/').is_some_and(|(folder, _)| folders.iter().any(|f| f == folder))
                && !span.contains([' ', '*', '{', '<', '…', '$'])
        })
        .collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = tests::repository();
    let mut findings = Vec::new();
    for (path, text) in texts(&["md"]) {
        let beside = path.parent().unwrap_or(Path::new(""));
        for link in links(&text) {
            if !root.join(beside).join(&link).exists() {
                findings.push(format!("{}: link to {link}", path.display()));
            }
        }
    }
    check_none(&findings);
}

#[test]
fn files_named_in_documents_exist() {
    let root = tests::repository();
    let folders: Vec<String> = root
        .read_dir()
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (entry.path().is_dir() && !["target", "mnt"].contains(&name.as_str())).then_some(name)
        })
        .collect();
    let mut findings = Vec::new();
    for (path, text) in texts(&["md"]) {
        for name in named_files(&text, &folders) {
            let file: PathBuf = root.join(name.trim_end_matches('/'));
            // A module may be named without its ending.
            if !file.exists() && !file.with_extension("rs").exists() {
                findings.push(format!("{}: names {name}", path.display()));
            }
        }
    }
    check_none(&findings);
}

/// Of a heading, as a browser finds it on the page.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_page_that_messages_name_is_there() {
    let text = std::fs::read_to_string(tests::repository().join("docs/operations.md")).unwrap();
    let there = anchors(&text);
    let missing = Page::ALL.into_iter().filter(|page| !there.iter().any(|it| it == page.anchor()));
    check_none(&missing.map(|page| page.to_string()).collect::<Vec<_>>());
}

#[test]
fn sections_that_documents_link_to_are_there() {
    let root = tests::repository();
    let mut findings = Vec::new();
    for (path, text) in texts(&["md"]) {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((file, section)) = target.split_once('#') else { continue };
            if file.contains("://") {
                continue;
            }
            let beside = root.join(path.parent().unwrap_or(Path::new("")));
            let linked = if file.is_empty() { root.join(&path) } else { beside.join(file) };
            let there = std::fs::read_to_string(linked).unwrap_or_default();
            if !anchors(&there).iter().any(|anchor| anchor == section) {
                findings.push(format!("{}: link to {target}", path.display()));
            }
        }
    }
    check_none(&findings);
}

#[test]
fn dead_links_are_found() {
    assert_eq!(anchors("# A b\nc\n### The master's `x`, lost"), ["a-b", "the-masters-x-lost"]);
    assert_eq!(links("see [a](docs/a.md#x), [b](https://b.org) and [c](#c)"), ["docs/a.md"]);
    let folders = ["docs".to_owned()];
    assert_eq!(
        named_files("`docs/a.md` and `x/y` and `docs/*.md`\n```\n`docs/no`\n```\n", &folders),
        ["docs/a.md"]
    );
}
