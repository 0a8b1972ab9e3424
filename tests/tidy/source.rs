//! Rules on source text.

use std::path::Path;

use crate::{check_none, texts};

const LINES_MAX: usize = 800;
/// First words of the line by which a file says why it is longer.
const LONG_FILE: &str = "//! long-file: ";

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let reasoned = text
        .lines()
        .find_map(|line| line.strip_prefix(LONG_FILE))
        .is_some_and(|reason| 10 <= reason.trim().len());
    (LINES_MAX < lines && !reasoned).then(|| {
        format!(
            "{}: {lines} lines; split it, or say why in a line `{LONG_FILE}reason`",
            path.display()
        )
    })
}

#[test]
fn no_file_is_long_without_a_reason() {
    let findings: Vec<String> =
        texts(&["rs"]).iter().filter_map(|(path, text)| too_long(path, text)).collect();
    check_none(&findings);
}

#[test]
fn a_long_file_is_found() {
    let long = "fn f() {}\n".repeat(LINES_MAX + 1);
    assert!(too_long(Path::new("a.rs"), &long).is_some());
    assert!(
        too_long(Path::new("a.rs"), &format!("{LONG_FILE}\n{long}")).is_some(),
        "no reason given"
    );
    assert!(
        too_long(Path::new("a.rs"), &format!("{LONG_FILE}one table of everything\n{long}"))
            .is_none()
    );
}

/// Code without comments and without its inline tests.
fn code_of(text: &str) -> String {
    let product = text.split("#[cfg(test)]").next().unwrap_or(text);
    product
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// What the core must not do. Hash maps and clocks are also clippy's (`dfs-core/clippy.toml`).
const IMPURE: &[&str] = &[
    "async fn",
    "async move",
    ".await",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "println!",
    "unsafe ",
    "tokio::",
    "rand::",
    "getrandom::",
];

fn impure(text: &str) -> Vec<&'static str> {
    let code = code_of(text);
    IMPURE.iter().filter(|word| holds_word(&code, word)).copied().collect()
}

/// Whether `word` is there and does not go on as a longer name (`.await` in `.await_stable(`).
fn holds_word(code: &str, word: &str) -> bool {
    let ends_in_letter = word.ends_with(|c: char| c.is_alphanumeric());
    code.match_indices(word).any(|(at, _)| {
        let next = code.get(at + word.len()..).and_then(|rest| rest.chars().next());
        !ends_in_letter || next.is_none_or(|c| !(c.is_alphanumeric() || c == '_'))
    })
}

#[test]
fn the_core_reads_no_clock_and_does_no_io() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs"]) {
        if path.starts_with("dfs-core/src") {
            findings.extend(
                impure(&text).into_iter().map(|word| format!("{}: `{word}`", path.display())),
            );
        }
    }
    check_none(&findings);
}

#[test]
fn an_impure_core_is_found() {
    assert_eq!(impure("async fn f() { g().await }"), ["async fn", ".await"]);
    assert_eq!(impure("self.await_stable(seq)"), [""; 0]);
    assert_eq!(impure("// SystemTime is not read here\nfn f() {}"), [""; 0]);
}

/// Where tonic servers may be made.
const SERVERS: [&str; 2] = ["master", "chunkserver"];

#[test]
fn only_servers_serve_tonic() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs"]) {
        let room = path.iter().next().map(|r| r.to_string_lossy().into_owned()).unwrap_or_default();
        let code = code_of(&text);
        let serves = ["transport::Server", "_server::"].iter().any(|word| code.contains(word));
        if serves && !SERVERS.contains(&room.as_str()) && room != "tests" {
            findings.push(format!("{}: makes a tonic server", path.display()));
        }
    }
    check_none(&findings);
}

/// Units and kinds a metric's name may end in.
const UNITS: [&str; 8] = ["total", "bytes", "seconds", "ms", "ratio", "epoch", "info", "chunks"];

/// `dfs_<process>_<noun>_<unit>`; plain gauges of things counted (`dfs_master_chunks`) end in the noun.
fn metric_name_ok(name: &str) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    let processes = ["master", "chunkserver", "mount", "client", "operator", "csi"];
    3 <= words.len()
        && words.first() == Some(&"dfs")
        && words.get(1).is_some_and(|process| processes.contains(process))
        && words.iter().all(|word| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        })
        && (UNITS.contains(words.last().unwrap_or(&""))
            || words.last().is_some_and(|noun| noun.ends_with('s')))
}

/// Names given to the prometheus crate in a `metrics.rs`.
fn metric_names(text: &str) -> Vec<String> {
    code_of(text)
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|literal| {
            literal.contains('_')
                && literal.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && (literal.starts_with("dfs") || literal.matches('_').count() >= 2)
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn metrics_are_named_alike() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs"]) {
        if path.file_name().is_some_and(|name| name == "metrics.rs") {
            for name in metric_names(&text).iter().filter(|name| !metric_name_ok(name)) {
                findings.push(format!(
                    "{}: metric `{name}` is not dfs_<process>_<noun>_<unit>",
                    path.display()
                ));
            }
        }
    }
    check_none(&findings);
}

#[test]
fn a_badly_named_metric_is_found() {
    let names = metric_names(
        "Opts::new(\"dfs_master_chunks\", \"Chunks by state.\"); Opts::new(\"chunks_read_total\", \"\")",
    );
    assert_eq!(names, ["dfs_master_chunks", "chunks_read_total"]);
    assert!(
        metric_name_ok("dfs_master_chunks") && metric_name_ok("dfs_chunkserver_read_bytes_total")
    );
    for bad in [
        "chunks_read_total",
        "dfs_reads",
        "dfs_Master_reads_total",
        "dfs_nobody_reads_total",
        "dfs_master_latency",
    ] {
        assert!(!metric_name_ok(bad), "{bad}");
    }
}

/// What is true on one machine or in one hour only.
fn machine_specific(text: &str) -> Vec<String> {
    // Joined here, so that this file does not find itself.
    let words = [
        ["/", "home/"].concat(),
        ["/", "root/"].concat(),
        ["/", "work/"].concat(),
        ["/", "Users/"].concat(),
    ];
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in &words {
            let mut rest = line;
            while let Some(at) = rest.find(word.as_str()) {
                // `target/work/` is a path of the repository; an absolute path has nothing before it.
                let before = rest.get(..at).and_then(|b| b.chars().next_back());
                if before.is_none_or(|c| !(c.is_alphanumeric() || "._-$})*~".contains(c))) {
                    findings.push(format!("{}: {}", number + 1, line.trim()));
                }
                rest = rest.get(at + word.len()..).unwrap_or("");
            }
        }
    }
    findings
}

#[test]
fn nothing_names_one_machine() {
    let mut findings = Vec::new();
    for (path, text) in texts(&["rs", "md", "toml", "yaml", "yml", "proto", "sh", ""]) {
        findings.extend(
            machine_specific(&text).into_iter().map(|line| format!("{}:{line}", path.display())),
        );
    }
    check_none(&findings);
}

#[test]
fn a_machine_path_is_found() {
    let path = ["see \"", "/", "home/me/x\""].concat();
    assert_eq!(machine_specific(&path).len(), 1);
    assert!(machine_specific(&["$DIR", "/", "work/x"].concat()).is_empty());
}
