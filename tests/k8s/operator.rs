//! The operator as a process of its own, with the rights that the chart grants it and no more, against the real API
//! server. There are no controllers at this level: what it makes is looked at, nothing of it runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tests::Random;

use crate::cluster::{Cluster, Listed, wait_for};
use crate::gate::Gate;
use crate::resource::minimal;

pub(crate) const CASES: &[Listed] = &[
    ("operator::makes_everything_a_file_system_is_made_of", 1, makes),
    ("operator::killed_at_any_moment_it_ends_up_with_the_same", 1, killed),
    ("operator::killed_after_each_of_its_writes_it_ends_up_with_the_same", 1, killed_after_writes),
    ("operator::a_wrong_command_changes_nothing_and_says_why", 1, wrong_command),
    ("operator::paused_it_changes_nothing", 1, paused),
    ("operator::a_deleted_file_system_goes_after_its_mounts", 1, deleted),
    ("operator::of_two_one_acts_and_the_other_takes_over", 1, two),
];

/// Everything that is made for a file system `x`, by kind.
const MADE: [(&str, &[&str]); 10] = [
    ("secret", &["x-key"]),
    ("service", &["x-cs", "x-master"]),
    ("serviceaccount", &["x-cs", "x-master", "x-mount"]),
    ("role", &["x-cs"]),
    ("rolebinding", &["x-cs"]),
    ("statefulset", &["x-cs", "x-master"]),
    ("daemonset", &["x-mount"]),
    ("poddisruptionbudget", &["x-cs"]),
    ("configmap", &["x-config"]),
    ("persistentvolumeclaim", &[]),
];

/// A running operator, killed when dropped.
struct Operator {
    child: Child,
}

impl Operator {
    /// With the ServiceAccount and the Role that the chart makes in `namespace`.
    #[track_caller]
    fn start(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        let file = kubeconfig(cluster, namespace, name);
        Self::start_as(cluster, namespace, name, &file)
    }

    #[track_caller]
    fn start_as(cluster: &Cluster, namespace: &str, name: &str, file: &Path) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(cluster.dir.join("run/log/operator.log"))
            .unwrap();
        let child = Command::new(tests::dfs_program())
            .args([
                "operator",
                "--namespace",
                namespace,
                "--own-namespace",
                namespace,
                "--name",
                name,
            ])
            .args(["--image", "localhost/dfs:test"])
            .env("KUBECONFIG", file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child }
    }
}

/// Of the operator's ServiceAccount.
#[track_caller]
fn kubeconfig(cluster: &Cluster, namespace: &str, name: &str) -> PathBuf {
    let token =
        cluster.kubectl(&["-n", namespace, "create", "token", "t-operator", "--duration=1h"]);
    let admin = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let file = cluster.dir.join(format!("{namespace}-{name}.kubeconfig"));
    std::fs::write(&file, admin.replace("admin-token", token.trim())).unwrap();
    file
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// A namespace with what the chart gives the operator there.
#[track_caller]
fn prepare(cluster: &Cluster, namespace: &str) {
    cluster.define();
    cluster.namespace(namespace);
    let chart = tests::repository().join("charts/distributedfs");
    let output = cluster.helm(&[
        "template",
        "t",
        &chart.to_string_lossy(),
        "--namespace",
        namespace,
        "--set",
        "fileSystem.enabled=false",
        "--show-only",
        "templates/operator.yaml",
        "--show-only",
        "templates/rbac.yaml",
    ]);
    let text = tests::stdout_of(&output);
    // The operator runs outside of the cluster here: no Deployment.
    let wanted: Vec<&str> =
        text.split("\n---").filter(|part| !part.contains("kind: Deployment")).collect();
    cluster.apply(namespace, &wanted.join("\n---"));
}

/// What is there, by kind; whether it is all.
#[track_caller]
fn all_there(cluster: &Cluster, namespace: &str) -> bool {
    MADE.iter().all(|(kind, names)| {
        let mut there = cluster.names(namespace, kind);
        there.retain(|name| name.starts_with("x-"));
        there == *names
    })
}

fn makes(cluster: &Cluster) {
    prepare(cluster, "makes");
    let operator = Operator::start(cluster, "makes", "one");
    cluster.apply("makes", &minimal("x").to_string());
    wait_for("all objects", || all_there(cluster, "makes").then_some(()));
    let status = wait_for("a status", || {
        let status = cluster.get("makes", "dfs x")["status"].clone();
        (status["phase"] == "Creating").then_some(status)
    });
    let ready = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap()
        .clone();
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("MasterStarting")),
        "{ready}"
    );
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["endpoint"], "x-master.makes.svc:7000");

    let key = cluster.get("makes", "secret x-key");
    let digits = cluster.kubectl(&[
        "-n",
        "makes",
        "get",
        "secret",
        "x-key",
        "-o",
        "go-template={{index .data \"cluster.key\" | base64decode}}",
    ]);
    assert!(
        digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()),
        "{} digits",
        digits.len()
    );
    let owner = &key["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("DistributedFS"), &json!("x")));
    let set = cluster.get("makes", "statefulset x-cs");
    assert_eq!(set["spec"]["ordinals"]["start"], 1);
    assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "localhost/dfs:test");

    // More servers at once; the key stays what it is.
    cluster.kubectl(&["-n", "makes", "scale", "dfs/x", "--replicas=5"]);
    wait_for("five servers", || {
        (cluster.get("makes", "statefulset x-cs")["spec"]["replicas"] == 5).then_some(())
    });
    // What somebody deleted comes back, and the mount goes when it is not wanted.
    cluster.kubectl(&["-n", "makes", "delete", "service", "x-master"]);
    wait_for("the service again", || all_there(cluster, "makes").then_some(()));
    cluster.kubectl(&[
        "-n",
        "makes",
        "patch",
        "dfs",
        "x",
        "--type=merge",
        "-p",
        r#"{"spec":{"mount":{"enabled":false}}}"#,
    ]);
    wait_for("no mount", || cluster.names("makes", "daemonset").is_empty().then_some(()));
    let later = cluster.get("makes", "secret x-key");
    assert_eq!(key["data"], later["data"]);
    assert!(cluster.events("makes", "x").iter().any(|(reason, _)| reason == "KeyMade"));
    drop(operator);
    // Pods that the operator asks for satisfy the strictest rules, but for the mount's.
    for set in ["x-cs", "x-master"] {
        let template =
            cluster.get("makes", &format!("statefulset {set}"))["spec"]["template"]["spec"].clone();
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": template});
        restricted(cluster, &pod);
    }
}

/// The API server's own check of Pod Security `restricted`.
#[track_caller]
pub(crate) fn restricted(cluster: &Cluster, pod: &serde_json::Value) {
    if cluster.names("", "namespace").iter().all(|name| name != "restricted") {
        cluster.namespace("restricted");
        cluster.kubectl(&[
            "label",
            "namespace",
            "restricted",
            "pod-security.kubernetes.io/enforce=restricted",
        ]);
    }
    let mut pod = pod.clone();
    // What the StatefulSet adds.
    let volumes = pod["spec"]["volumes"].as_array_mut();
    if let Some(volumes) = volumes
        && !volumes.iter().any(|volume| volume["name"] == "data")
    {
        volumes.push(json!({"name": "data", "emptyDir": {}}));
    }
    pod["spec"]["serviceAccountName"] = json!("default");
    let output = cluster.try_kubectl(
        &["-n", "restricted", "apply", "--dry-run=server", "-f", "-"],
        &pod.to_string(),
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("would violate"), "{said}");
}

fn killed(cluster: &Cluster) {
    prepare(cluster, "killed");
    let seed = tests::setting("DFS_K8S_SEED", 1);
    let mut random = Random::new(seed, 0);
    let mut key = None;
    for round in 0..6 {
        // It must win the election first, which takes longer when the one before was killed.
        cluster.kubectl(&["-n", "killed", "delete", "lease", "dfs-operator", "--ignore-not-found"]);
        let operator = Operator::start(cluster, "killed", &format!("round-{round}"));
        if round == 0 {
            cluster.apply("killed", &minimal("x").to_string());
        }
        std::thread::sleep(std::time::Duration::from_millis(30 + random.below(300)));
        drop(operator);
        let secret = cluster.get("killed", "secret x-key")["data"].clone();
        if !secret.is_null() {
            let first = key.get_or_insert_with(|| secret.clone());
            assert_eq!(*first, secret, "seed {seed}, round {round}: a second key");
        }
    }
    cluster.kubectl(&["-n", "killed", "delete", "lease", "dfs-operator", "--ignore-not-found"]);
    let _last = Operator::start(cluster, "killed", "last");
    wait_for("all objects", || all_there(cluster, "killed").then_some(()));
    if let Some(first) = key {
        assert_eq!(first, cluster.get("killed", "secret x-key")["data"], "seed {seed}");
    }
}

/// What an operator that nobody disturbed has made in `namespace`, as far as it is the same in every namespace.
fn result(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let mut objects = Vec::new();
    for (kind, names) in MADE {
        for name in names {
            let object = cluster.get(namespace, &format!("{kind} {name}"));
            let mut kept = json!({
                "labels": object["metadata"]["labels"],
                "owner": object["metadata"]["ownerReferences"][0]["name"],
            });
            for part in ["spec", "rules", "roleRef", "subjects"] {
                kept[part] = object[part].clone();
            }
            // Handed out by the API server.
            if let Some(spec) = kept["spec"].as_object_mut() {
                spec.remove("clusterIPs");
                if spec.get("clusterIP").is_some_and(|address| *address != "None") {
                    spec.remove("clusterIP");
                }
            }
            objects.push(format!("{kind} {name} {kept}").replace(namespace, "NAMESPACE"));
        }
    }
    let fs = cluster.get(namespace, "dfs x");
    objects.push(fs["metadata"]["finalizers"].to_string());
    objects
}

/// Between the operator and the API server stands somebody who lets one write through, the next time two, and so on, and
/// then kills it.
fn killed_after_writes(cluster: &Cluster) {
    prepare(cluster, "steady");
    prepare(cluster, "gates");
    cluster.apply("steady", &minimal("x").to_string());
    let steady = Operator::start(cluster, "steady", "one");
    wait_for("all objects", || all_there(cluster, "steady").then_some(()));
    wait_for("a status", || {
        (cluster.get("steady", "dfs x")["status"]["phase"] == "Creating").then_some(())
    });
    drop(steady);
    let wanted = result(cluster, "steady");

    cluster.apply("gates", &minimal("x").to_string());
    let config = kubeconfig(cluster, "gates", "direct");
    let mut writes = Vec::new();
    let go = |deleting: bool, writes: &mut Vec<String>| {
        for count in 1..100 {
            cluster.kubectl(&[
                "-n",
                "gates",
                "delete",
                "lease",
                "dfs-operator",
                "--ignore-not-found",
            ]);
            let gate = Gate::open(cluster, &config, count);
            let operator =
                Operator::start_as(cluster, "gates", &format!("round-{count}"), &gate.kubeconfig);
            let write = gate.wait_for_write();
            drop(operator);
            let Some(write) = write else { return };
            writes.push(write);
            if deleting && cluster.get("gates", "dfs x").is_null() {
                return;
            }
        }
        panic!("it never has done: {writes:#?}");
    };
    go(false, &mut writes);
    println!("killed after each of {} writes", writes.len());
    // Sets are written once, everything else by each operator anew.
    assert!(10 <= writes.len(), "{writes:#?}");
    for object in &wanted {
        let there = result(cluster, "gates");
        assert!(there.contains(object), "{object}\nnot in {there:#?}\nafter {writes:#?}");
    }
    cluster.kubectl(&["-n", "gates", "delete", "dfs", "x", "--wait=false"]);
    let before = writes.len();
    go(true, &mut writes);
    println!("killed after each of {} writes of the deletion", writes.len() - before);
    assert!(cluster.get("gates", "dfs x").is_null());
    assert_eq!(cluster.names("gates", "daemonset"), [""; 0]);
}

fn wrong_command(cluster: &Cluster) {
    prepare(cluster, "commands");
    let _operator = Operator::start(cluster, "commands", "one");
    cluster.apply("commands", &minimal("x").to_string());
    wait_for("all objects", || all_there(cluster, "commands").then_some(()));
    cluster.kubectl(&[
        "-n",
        "commands",
        "annotate",
        "dfs",
        "x",
        "distributedfs.io/failover=server-1",
    ]);
    let last = wait_for("an answer", || {
        let last = cluster.get("commands", "dfs x")["status"]["lastCommand"].clone();
        (!last.is_null()).then_some(last)
    });
    assert_eq!((&last["name"], &last["value"]), (&json!("failover"), &json!("server-1")));
    assert_eq!(last["result"], "Invalid");
    assert!(
        last["message"]
            .as_str()
            .unwrap()
            .contains("'server-1' names no server: expected names such as cs-1"),
        "{last}"
    );
    wait_for("the annotation to go", || {
        let annotations = cluster.get("commands", "dfs x")["metadata"]["annotations"].clone();
        annotations["distributedfs.io/failover"].is_null().then_some(())
    });
    let events = cluster.events("commands", "x");
    assert!(
        events
            .iter()
            .any(|(reason, note)| reason == "FailoverInvalid" && note.contains("server-1")),
        "{events:?}"
    );
}

fn deleted(cluster: &Cluster) {
    prepare(cluster, "deleted");
    cluster.apply("deleted", &minimal("x").to_string());
    let operator = Operator::start(cluster, "deleted", "one");
    wait_for("all objects", || all_there(cluster, "deleted").then_some(()));
    drop(operator);
    cluster.kubectl(&["-n", "deleted", "delete", "dfs", "x", "--wait=false"]);
    // Without an operator it waits for one.
    let there = cluster.get("deleted", "dfs x");
    assert_eq!(there["metadata"]["finalizers"], json!(["distributedfs.io/cleanup"]));
    cluster.kubectl(&["-n", "deleted", "delete", "lease", "dfs-operator"]);
    let _operator = Operator::start(cluster, "deleted", "two");
    wait_for("it to go", || cluster.get("deleted", "dfs x").is_null().then_some(()));
    assert_eq!(cluster.names("deleted", "daemonset"), [""; 0]);
}

fn paused(cluster: &Cluster) {
    prepare(cluster, "paused");
    let _operator = Operator::start(cluster, "paused", "one");
    let mut resource = minimal("x");
    resource["metadata"]["annotations"] = json!({"distributedfs.io/reconcile": "disabled"});
    cluster.apply("paused", &resource.to_string());
    wait_for("it to say so", || {
        (cluster.get("paused", "dfs x")["status"]["phase"] == "Paused").then_some(())
    });
    assert!(cluster.names("paused", "statefulset").is_empty());
    cluster.kubectl(&["-n", "paused", "annotate", "dfs", "x", "distributedfs.io/reconcile-"]);
    wait_for("all objects", || all_there(cluster, "paused").then_some(()));
    cluster.kubectl(&[
        "-n",
        "paused",
        "patch",
        "dfs",
        "x",
        "--type=merge",
        "-p",
        r#"{"spec":{"paused":true,"chunkServers":{"replicas":4}}}"#,
    ]);
    wait_for("it to say so", || {
        let status = cluster.get("paused", "dfs x")["status"].clone();
        (status["phase"] == "Paused" && status["observedGeneration"] == 2).then_some(())
    });
    assert_eq!(cluster.get("paused", "statefulset x-cs")["spec"]["replicas"], 3);
    cluster.kubectl(&[
        "-n",
        "paused",
        "patch",
        "dfs",
        "x",
        "--type=merge",
        "-p",
        r#"{"spec":{"paused":false}}"#,
    ]);
    wait_for("four servers", || {
        (cluster.get("paused", "statefulset x-cs")["spec"]["replicas"] == 4).then_some(())
    });
}

fn two(cluster: &Cluster) {
    prepare(cluster, "two");
    let holder = || {
        cluster.get("two", "lease dfs-operator")["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let first = Operator::start(cluster, "two", "first");
    wait_for("the first to lead", || holder().starts_with("first_").then_some(()));
    let _second = Operator::start(cluster, "two", "second");
    cluster.apply("two", &minimal("x").to_string());
    wait_for("all objects", || all_there(cluster, "two").then_some(()));
    assert!(holder().starts_with("first_"), "{}", holder());
    drop(first);
    wait_for("the second to lead", || holder().starts_with("second_").then_some(()));
    cluster.kubectl(&["-n", "two", "scale", "dfs/x", "--replicas=4"]);
    wait_for("four servers", || {
        (cluster.get("two", "statefulset x-cs")["spec"]["replicas"] == 4).then_some(())
    });
}
