//! Who may use whom. Arrows go down only; a library that a rule names stays in its room.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::check_none;

/// Ours, from crate to what it may use. `tests` may use everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("dfs-core", &[]),
    ("dfs-proto", &["dfs-core"]),
    ("dfs-service", &[]),
    ("dfs-client", &["dfs-core", "dfs-proto", "dfs-service"]),
    ("master", &["dfs-core", "dfs-proto", "dfs-service"]),
    ("chunkserver", &["dfs-core", "dfs-proto", "dfs-service"]),
    ("fuse-client", &["dfs-core", "dfs-proto", "dfs-service", "dfs-client"]),
    // Asks masters as everybody does, and mounts nothing: no client.
    ("operator", &["dfs-core", "dfs-proto", "dfs-service"]),
    (
        "cli",
        &[
            "dfs-core",
            "dfs-proto",
            "dfs-service",
            "dfs-client",
            "master",
            "chunkserver",
            "fuse-client",
            "operator",
        ],
    ),
];

/// Libraries of others that only these crates may name.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("fuser", &["fuse-client"]),
    ("kube", &["operator"]),
    ("k8s", &["operator"]),
    ("redb", &["master", "tests"]),
    ("openraft", &["master", "tests"]),
    ("clap", &["cli", "tests"]),
];

/// What decides needs nothing: an error derive, and property tests for its own tests.
const CORE_DEPENDENCIES: &[&str] = &["thiserror", "proptest"];

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Direct dependencies of every member, from the manifests, all kinds.
fn edges() -> Edges {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(tests::repository())
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&tests::stdout_of(&output)).unwrap();
    json["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().unwrap();
            (
                package["name"].as_str().unwrap().to_owned(),
                uses.iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect(),
            )
        })
        .collect()
}

fn forbidden_edges(edges: &Edges) -> Vec<String> {
    let ours: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    let mut findings = Vec::new();
    for (package, uses) in edges {
        if package == "tests" {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == package) else {
            findings.push(format!("{package}: a crate without a rule; add it to MAY_USE with the reason in ARCHITECTURE.md"));
            continue;
        };
        for used in uses.iter().filter(|used| ours.contains(used.as_str())) {
            if !allowed.contains(&used.as_str()) {
                findings.push(format!("{package} must not use {used}"));
            }
        }
    }
    findings
}

fn out_of_room(edges: &Edges) -> Vec<String> {
    let mut findings = Vec::new();
    for (package, uses) in edges {
        for (library, rooms) in ONLY_IN {
            let used = uses.iter().any(|u| u == library || u.starts_with(&format!("{library}-")));
            if used && !rooms.contains(&package.as_str()) {
                findings.push(format!("{package} uses {library}, which belongs to {rooms:?}"));
            }
        }
    }
    findings
}

#[test]
fn crates_use_only_what_is_below_them() {
    check_none(&forbidden_edges(&edges()));
}

#[test]
fn libraries_stay_in_their_rooms() {
    check_none(&out_of_room(&edges()));
}

#[test]
fn the_core_needs_next_to_nothing() {
    let edges = edges();
    let findings: Vec<String> = edges["dfs-core"]
        .iter()
        .filter(|used| !CORE_DEPENDENCIES.contains(&used.as_str()))
        .map(|used| format!("dfs-core must not use {used}"))
        .collect();
    check_none(&findings);
}

#[test]
fn a_forbidden_edge_is_found() {
    let mut wrong = Edges::new();
    for (name, uses) in
        [("master", vec!["dfs-client", "fuser"]), ("dfs-client", vec![]), ("util", vec![])]
    {
        wrong.insert(name.to_owned(), uses.into_iter().map(str::to_owned).collect());
    }
    let findings = forbidden_edges(&wrong);
    assert!(findings.iter().any(|f| f == "master must not use dfs-client"), "{findings:?}");
    assert!(findings.iter().any(|f| f.starts_with("util: a crate without a rule")), "{findings:?}");
    assert!(out_of_room(&wrong).iter().any(|f| f.starts_with("master uses fuser")));
}
