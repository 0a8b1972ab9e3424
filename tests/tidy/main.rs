//! The house's rules that no compiler checks: who may use whom, purity of the core, file length, names of metrics,
//! links in the documents, nothing that is true on one machine only.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the repository has failed")]

mod canaries;
mod chart;
mod deploy;
mod docs;
mod edges;
mod metrics_doc;
mod rust;
mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Files under version control, and new ones that are not ignored, relative to the root.
fn repository_files() -> Vec<PathBuf> {
    let root = tests::repository();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output();
    if let Ok(output) = listed
        && output.status.success()
    {
        let names = String::from_utf8(output.stdout).unwrap();
        let mut files: Vec<PathBuf> =
            names.split('\0').filter(|n| !n.is_empty()).map(PathBuf::from).collect();
        // Deleted but still in the index.
        files.retain(|file| root.join(file).is_file());
        files.sort();
        return files;
    }
    // An unpacked archive: everything but what builds leave.
    let mut files = Vec::new();
    walk(&root, &root, &mut files);
    files.sort();
    files
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() {
            if !["target", ".git", "mnt"].iter().any(|skip| name == *skip) {
                walk(root, &path, files);
            }
        } else {
            files.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
}

/// Path and text of every file whose name ends in one of `extensions` (`""`: no extension).
fn texts(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let root = tests::repository();
    repository_files()
        .into_iter()
        .filter(|file| {
            let extension =
                file.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
            extensions.contains(&extension.as_str())
        })
        .filter_map(|file| Some((file.clone(), std::fs::read_to_string(root.join(&file)).ok()?)))
        .collect()
}

/// Fails with all findings at once.
#[track_caller]
fn check_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} finding(s):\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn the_repository_is_read() {
    let files = repository_files();
    for known in ["Cargo.toml", "tests/tidy/main.rs", "dfs-core/src/lib.rs"] {
        assert!(
            files.contains(&PathBuf::from(known)),
            "{known} is not among {} files",
            files.len()
        );
    }
}
