//! Which series the chart's rules and dashboards ask for, and which a page of metrics has.

use std::collections::BTreeSet;
use std::path::Path;

use crate::repository;

/// Series of ours in an expression, as Prometheus keeps them: a histogram's with `_bucket`, `_sum` or `_count`. What rules
/// record has a colon in its name and is not exported by anybody.
fn series_in(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("dfs_") && !word.contains(':'))
        .map(str::to_owned)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All that the chart's rules and dashboards name.
///
/// # Panics
/// If the chart cannot be read.
#[must_use]
pub fn used() -> BTreeSet<String> {
    let chart = repository().join("charts/distributedfs");
    let rules = read(&chart.join("alerts/distributedfs.yaml"));
    let spoken = ["#", "summary:", "description:", "runbook_url:"];
    let lines = rules.lines().map(str::trim);
    let mut used: BTreeSet<String> = lines
        .filter(|line| !spoken.iter().any(|start| line.starts_with(start)))
        .flat_map(series_in)
        .collect();
    for entry in chart.join("dashboards").read_dir().expect("dashboards").flatten() {
        let dashboard: serde_json::Value =
            serde_json::from_str(&read(&entry.path())).expect("a dashboard");
        let panels = dashboard["panels"].as_array().into_iter().flatten();
        for target in panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
            used.extend(series_in(target["expr"].as_str().expect("an expression")));
        }
    }
    used
}

/// Names of the series on a page of `/metrics`.
#[must_use]
pub fn exported(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}
