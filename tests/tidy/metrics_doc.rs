//! `docs/metrics.md` says what the processes export, no more and no less. `DFS_WRITE_DOCS=1` writes it.

use dfs_service::metrics::{Described, markdown};

const INTRO: &str = "# Metrics

Written by the program from the same words that `/metrics` has as help; do not edit. To write it anew:
`DFS_WRITE_DOCS=1 cargo test -p tests --test tidy metrics`.

Each process serves three pages over HTTP at the address given with `--metrics IP:PORT`: `/metrics` in the text form of
Prometheus, `/healthz` (the process answers) and `/readyz` (200 if it can do its work now, else 503 and why). They are
off unless the flag is given. A cluster of `dfs up` serves them at free ports of loopback, which `cluster.json` names
under `metrics`. Whoever can connect can read them: they hold figures, names of servers and nothing of files.

One master serves one file system. Counters start at zero with the process. Safety is counted by looking at every chunk
about once a second, less often when that would take more than a twentieth of a core.
";

fn document() -> String {
    let process = |described: &[Described]| -> Vec<Described> {
        described.iter().filter(|one| one.name.starts_with("process_")).cloned().collect()
    };
    let own = |described: &[Described]| -> Vec<Described> {
        described.iter().filter(|one| !one.name.starts_with("process_")).cloned().collect()
    };
    let master = master::metrics::Metrics::new();
    let chunkserver = chunkserver::metrics::Metrics::new();
    let mount = fuse_client::metrics::Metrics::new();
    let operator = operator::metrics::Metrics::new();
    let parts = [
        ("Master", own(&master.described)),
        ("Chunkserver", own(&chunkserver.described)),
        ("Mount", own(&mount.described)),
        ("Operator", own(&operator.described)),
        ("Every process", process(&master.described)),
    ];
    let parts = parts.map(|(title, described)| format!("\n## {title}\n\n{}", markdown(&described)));
    [INTRO.to_owned(), parts.concat()].concat()
}

#[test]
fn the_document_of_metrics_is_what_processes_export() {
    let path = tests::repository().join("docs/metrics.md");
    let expected = document();
    if std::env::var_os("DFS_WRITE_DOCS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "docs/metrics.md is not what the processes export; first difference: {differs:?}; \
         write it with DFS_WRITE_DOCS=1 cargo test -p tests --test tidy metrics"
    );
}

#[test]
fn every_metric_has_a_meaning() {
    let described = [
        master::metrics::Metrics::new().described.clone(),
        chunkserver::metrics::Metrics::new().described,
        fuse_client::metrics::Metrics::new().described,
        operator::metrics::Metrics::new().described,
    ];
    let findings: Vec<String> = described
        .iter()
        .flatten()
        .filter(|one| !one.name.starts_with("process_") && one.help.split(' ').count() < 3)
        .map(|one| format!("{}: '{}' says too little", one.name, one.help))
        .collect();
    crate::check_none(&findings);
}
