//! The chart: what Helm makes of it, and whether the API server takes that.

use crate::cluster::{Cluster, Listed};

pub(crate) const CASES: &[Listed] = &[
    ("chart::helm_finds_nothing_wrong_with_it", 1, lint),
    ("chart::wrong_values_are_refused", 1, values),
    ("chart::installs_upgrades_and_uninstalls", 1, install),
];

fn chart() -> String {
    tests::repository().join("charts/distributedfs").to_string_lossy().into_owned()
}

fn lint(cluster: &Cluster) {
    let said = cluster.helm(&["lint", "--strict", &chart()]);
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}

fn values(cluster: &Cluster) {
    for (value, words) in [
        ("operator.replicas=0", "/operator/replicas"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("fileSystem.nmae=x", "nmae"),
    ] {
        let said = cluster.helm(&["template", "t", &chart(), "--set", value]);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains(words), "{value}: {text}");
    }
}

/// Without waiting: at level 1 nothing runs.
fn install(cluster: &Cluster) {
    cluster.define();
    let set = |value: &str| -> Vec<String> {
        ["t", &chart(), "--namespace", "chart", "--set", value].map(str::to_owned).to_vec()
    };
    let helm = |verb: &str, value: &str, more: &[&str]| {
        let args = set(value);
        let mut all: Vec<&str> = vec![verb];
        all.extend(args.iter().map(String::as_str));
        all.extend(more);
        tests::stdout_of(&cluster.helm(&all))
    };
    let notes = helm("install", "operator.replicas=1", &["--create-namespace"]);
    assert!(
        notes.contains("kubectl -n chart annotate distributedfs t distributedfs.io/failover=cs-1"),
        "{notes}"
    );
    assert_eq!(cluster.get("chart", "dfs t")["spec"]["chunkServers"]["replicas"], 3);
    // What Helm would have done by Jobs is tried where Jobs run.
    helm("upgrade", "fileSystem.spec.chunkServers.replicas=5", &["--no-hooks"]);
    assert_eq!(cluster.get("chart", "dfs t")["spec"]["chunkServers"]["replicas"], 5);
    assert_eq!(cluster.get("chart", "deployment t-operator")["spec"]["replicas"], 2);
    tests::stdout_of(&cluster.helm(&["uninstall", "t", "--namespace", "chart", "--no-hooks"]));
    for kind in ["deployment", "role", "rolebinding", "distributedfs"] {
        assert_eq!(cluster.names("chart", kind), [""; 0], "{kind}");
    }
    // The definition stays, and with it the file systems of others.
    cluster.kubectl(&["get", "crd", "distributedfs.distributedfs.io"]);
}
