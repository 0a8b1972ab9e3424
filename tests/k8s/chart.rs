//! The chart: what Helm makes of it, and whether the API server takes that.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Listed, here};

pub(crate) const CASES: &[Listed] = &[
    ("chart::helm_finds_nothing_wrong_with_it", 1, lint),
    ("chart::wrong_values_are_refused", 1, values),
    ("chart::renders_what_the_golden_files_have", 1, golden),
    ("chart::the_api_server_takes_all_that_is_rendered", 1, taken),
    ("chart::its_policies_let_through_what_is_needed", 1, crate::network::policies),
    ("chart::notes_name_the_next_commands", 1, notes),
    ("chart::installs_upgrades_and_uninstalls", 1, install),
];

fn chart() -> String {
    tests::repository().join("charts/distributedfs").to_string_lossy().into_owned()
}

/// Sets of values, each with its golden file, by name.
fn sets() -> Vec<(String, String)> {
    let dir = tests::repository().join("charts/distributedfs/ci");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut sets: Vec<(String, String)> = files
        .map(|file| {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let name = name.strip_suffix("-values.yaml").unwrap_or_else(|| panic!("{name}"));
            (name.to_owned(), file.to_string_lossy().into_owned())
        })
        .collect();
    sets.sort();
    assert!(4 <= sets.len(), "{sets:?}");
    sets
}

fn lint(cluster: &Cluster) {
    for (name, values) in sets() {
        let said = cluster.helm(&["lint", "--strict", &chart(), "--values", &values]);
        assert!(
            said.status.success(),
            "{name}: {}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
    }
}

/// With the objects of the Prometheus operator, as in a cluster that knows them; the default values without.
#[track_caller]
fn render(cluster: &Cluster, name: &str, values: &str) -> String {
    let chart = chart();
    let mut args = vec!["template", "t", &chart, "--namespace", "storage", "--values", values];
    args.extend(["--kube-version", "1.34.0"]);
    if name != "default" {
        for kind in
            ["monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"]
        {
            args.extend(["--api-versions", kind]);
        }
    }
    tests::stdout_of(&cluster.helm(&args))
}

/// Without what dashboards show: they have files of their own, and another case compares them.
fn short(text: &str) -> String {
    let documents =
        text.split_inclusive("\n---\n").map(|document| match document.split_once(".json: |\n") {
            Some((head, _)) => format!("{head}.json: …\n---\n"),
            None => document.to_owned(),
        });
    documents.collect()
}

/// `DFS_WRITE_DOCS=1` writes them.
fn golden(cluster: &Cluster) {
    let mut findings = Vec::new();
    for (name, values) in sets() {
        let found = short(&render(cluster, &name, &values));
        let file = here().join(format!("golden/{name}.yaml"));
        if std::env::var_os("DFS_WRITE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(&file, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if found != expected {
            let mut lines = found.lines().zip(expected.lines()).enumerate();
            let first = lines.find(|(_, (found, expected))| found != expected);
            findings.push(format!("{}: first difference {first:?}", file.display()));
        }
    }
    assert!(
        findings.is_empty(),
        "{}\nif that is meant: DFS_WRITE_DOCS=1 tests/run k8s",
        findings.join("\n")
    );
}

/// Each object, by the API server's own schemas and without a field it does not know; and pods under Pod Security
/// `restricted`.
fn taken(cluster: &Cluster) {
    cluster.define();
    let monitoring = here().join("monitoring.yaml");
    cluster.kubectl(&["apply", "--server-side", "-f", &monitoring.to_string_lossy()]);
    for kind in ["podmonitors", "prometheusrules"] {
        let definition = format!("crd/{kind}.monitoring.coreos.com");
        cluster.kubectl(&["wait", "--for=condition=Established", &definition, "--timeout=30s"]);
    }
    cluster.namespace("storage");
    let mut kinds = std::collections::BTreeSet::new();
    let mut dashboards = 0;
    for (name, values) in sets() {
        let text = render(cluster, &name, &values);
        let output = cluster.try_kubectl(
            &[
                "-n",
                "storage",
                "apply",
                "--dry-run=server",
                "--validate=strict",
                "-o",
                "json",
                "-f",
                "-",
            ],
            &text,
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let objects = list["items"].as_array().unwrap();
        assert_eq!(objects.len(), text.matches("\nkind: ").count(), "{name}");
        for object in objects {
            let kind = object["kind"].as_str().unwrap();
            kinds.insert(kind.to_owned());
            if kind == "ConfigMap" {
                dashboards += 1;
                for (file, shown) in object["data"].as_object().unwrap() {
                    let file =
                        tests::repository().join("charts/distributedfs/dashboards").join(file);
                    let expected = std::fs::read_to_string(file).unwrap();
                    assert_eq!(shown.as_str().unwrap().trim(), expected.trim());
                }
            }
            if ["Deployment", "Job"].contains(&kind) {
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                    "spec": object["spec"]["template"]["spec"],
                });
                crate::operator::restricted(cluster, &pod);
            }
        }
    }
    for kind in
        ["DistributedFS", "Deployment", "Job", "NetworkPolicy", "PodMonitor", "PrometheusRule"]
    {
        assert!(kinds.contains(kind), "{kind} is in no set: {kinds:?}");
    }
    assert_eq!(dashboards, 5, "all dashboards, in one of the sets");
    cluster.kubectl(&["delete", "namespace", "storage", "--wait=false"]);
}

/// Three, each of which says which namespace and which file system.
fn notes(cluster: &Cluster) {
    let notes = |name: &str| {
        let file = sets().into_iter().find(|(set, _)| set == name).unwrap().1;
        let output = cluster.helm(&[
            "install",
            "t",
            &chart(),
            "--namespace",
            "storage",
            "--values",
            &file,
            "--dry-run=client",
        ]);
        let text = tests::stdout_of(&output);
        text.split_once("NOTES:").unwrap_or_else(|| panic!("{text}")).1.to_owned()
    };
    let commands = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("  kubectl -n storage "));
        lines.map(str::to_owned).collect()
    };
    let default = notes("default");
    assert_eq!(
        commands(&default),
        [
            "wait --for=condition=Ready distributedfs/t --timeout=5m",
            "get distributedfs t -o wide",
            "annotate distributedfs t distributedfs.io/failover=cs-1",
        ]
    );
    assert!(default.contains("It is at /var/lib/distributedfs/storage/t/mnt on every node"));
    let production = notes("production");
    assert!(production.contains("It is at /srv/production/mnt on the nodes that"), "{production}");
    assert_eq!(
        commands(&notes("everything-off")),
        ["explain distributedfs.spec", "apply -f my-file-system.yaml", "get distributedfs -w",]
    );
}

fn values(cluster: &Cluster) {
    for (value, words) in [
        ("operator.replicas=0", "/operator/replicas"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("fileSystem.nmae=x", "nmae"),
        ("fileSystem.name=Data_1", "/fileSystem/name"),
        ("image.repository=", "/image/repository"),
        ("image.digest=sha256:12", "/image/digest"),
        ("image.tag=a b", "/image/tag"),
        ("imagePullSecrets[0].nam=x", "/imagePullSecrets/0"),
        ("operator.tolerations[0].effect=Never", "/operator/tolerations/0/effect"),
        ("operator.resources.limit.memory=1Gi", "/operator/resources"),
        ("monitoring.interval=15", "/monitoring/interval"),
        ("monitoring.labels.release=1", "/monitoring/labels/release"),
        ("networkPolicy.enable=true", "/networkPolicy"),
        ("networkPolicy.clients[0].podSelecter.x=1", "/networkPolicy/clients/0"),
        ("networkPolicy.apiServer.ports[0]=70000", "/networkPolicy/apiServer/ports/0"),
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
