//! What people get wrong, and what their clusters lack: each ends in a condition and an Event that say what to do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};
use crate::files::{NS, condition, exec, go_on, is_ready, status, whole};

/// An image that no node has, and claims that nobody binds.
pub(crate) fn does_not_start(cluster: &Cluster) {
    let gone = json!({"ephemeral": {"acknowledgeDataLoss": true}});
    let nowhere = json!({"size": "1Gi", "storageClassName": "nowhere"});
    for (name, image, storage, words) in [
        (
            "no-image",
            "localhost/none:1",
            &gone,
            "name an image that the nodes can get in spec.image",
        ),
        ("no-volume", "localhost/dfs:test", &nowhere, "no node for it"),
    ] {
        cluster.apply(
            NS,
            &json!({
                "apiVersion": "distributedfs.io/v1alpha1", "kind": "DistributedFS", "metadata": {"name": name},
                "spec": {
                    "image": image, "imagePullPolicy": "Never", "mount": {"enabled": false},
                    "masters": {"storage": storage}, "chunkServers": {"replicas": 3, "storage": storage},
                },
            })
            .to_string(),
        );
        let message = wait_for("it to say why", || {
            let conditions =
                cluster.get(NS, &format!("dfs {name}"))["status"]["conditions"].clone();
            let ready = conditions.as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
            assert_eq!(ready["status"], "False", "{ready}");
            let message = ready["message"].as_str()?.to_owned();
            message.contains(words).then_some(message)
        });
        println!("{name}: {message}");
        wait_for("an Event", || {
            let events = cluster.events(NS, name);
            events
                .iter()
                .any(|(reason, note)| reason == "PodProblem" && note.contains(words))
                .then_some(())
        });
        cluster.kubectl(&["-n", NS, "delete", "dfs", name, "--timeout=60s"]);
        wait_for("its pods to go", || {
            let left = cluster
                .names(NS, &format!("pod,pvc,statefulset -l app.kubernetes.io/instance={name}"));
            left.iter().all(|name| name.starts_with("data-")).then_some(())
        });
        cluster.kubectl(&[
            "-n",
            NS,
            "delete",
            "pvc",
            "-l",
            &format!("app.kubernetes.io/instance={name}"),
        ]);
    }
}

/// A small one whose data ends with its pods.
fn small(name: &str, mount: &Value) -> Value {
    let gone = json!({"ephemeral": {"acknowledgeDataLoss": true}});
    json!({
        "apiVersion": "distributedfs.io/v1alpha1", "kind": "DistributedFS", "metadata": {"name": name},
        "spec": {
            "image": "localhost/dfs:test", "imagePullPolicy": "Never", "mount": mount,
            "masters": {"storage": gone}, "chunkServers": {"replicas": 1, "storage": gone},
            "replication": 1, "minReplicas": 1, "liveness": {"profile": "router"},
        },
    })
}

fn on_node(node: &str) -> Value {
    json!({"enabled": true, "nodeSelector": {"kubernetes.io/hostname": node}})
}

/// Waits until a condition of the file system and an Event about it say `words`.
fn said(cluster: &Cluster, name: &str, reason: &str, words: &str) {
    let message = wait_for("a condition", || {
        let conditions = cluster.get(NS, &format!("dfs {name}"))["status"]["conditions"].clone();
        let messages = conditions.as_array()?.iter().filter_map(|c| c["message"].as_str());
        messages.into_iter().find(|message| message.contains(words)).map(str::to_owned)
    });
    println!("{name}: {message}");
    wait_for("an Event", || {
        let events = cluster.events(NS, name);
        events.iter().any(|(of, note)| of == reason && note.contains(words)).then_some(())
    });
}

pub(crate) fn no_fuse(cluster: &Cluster) {
    cluster.control(&["fuse-hide", "node-b"]);
    cluster.apply(NS, &small("no-fuse", &on_node("node-b")).to_string());
    said(cluster, "no-fuse", "PodProblem", "load the module fuse on that node");
    // Once it is there nobody needs to do anything more.
    cluster.control(&["fuse-show", "node-b"]);
    wait_for("the mount", || {
        (cluster.get(NS, "dfs no-fuse")["status"]["mounts"]["ready"] == 1).then_some(())
    });
    cluster.kubectl(&["-n", NS, "delete", "dfs", "no-fuse", "--timeout=60s"]);
    go_on(cluster, &["work-b", "work-c"]);
}

pub(crate) fn in_use(cluster: &Cluster) {
    let mut used = small("used", &on_node("node-a"));
    used["spec"]["chunkSize"] = json!("1Mi");
    cluster.apply(NS, &used.to_string());
    wait_for("the mount", || {
        (cluster.get(NS, "dfs used")["status"]["phase"] == "Ready"
            && cluster.get(NS, "dfs used")["status"]["mounts"]["ready"] == 1)
            .then_some(())
    });
    cluster.apply(
        NS,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"},
            "spec": {
                "nodeName": "node-a", "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "box", "image": "localhost/box:test", "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", "sleep 1000000"],
                    "volumeMounts": [{"name": "dfs", "mountPath": "/dfs", "mountPropagation": "HostToContainer"}],
                }],
                "volumes": [{"name": "dfs", "hostPath": {"path": format!("/var/lib/distributedfs/{NS}/used")}}],
            },
        })
        .to_string(),
    );
    wait_for("the pod", || is_ready(&cluster.get(NS, "pod user")).then_some(()));
    exec(cluster, "user", "echo one >/dfs/mnt/note && sync");
    exec(cluster, "user", "dd if=/dev/urandom of=/dfs/mnt/big bs=1M count=3 conv=fsync");
    wait_for("three chunks of 1 MiB", || {
        (cluster.get(NS, "dfs used")["status"]["chunks"]["total"] == 3).then_some(())
    });
    cluster.kubectl(&["-n", NS, "delete", "dfs", "used", "--wait=false"]);
    said(cluster, "used", "InUse", "1 pod(s) use its mount: user; delete them");
    assert_eq!(
        exec(cluster, "user", "echo two >>/dfs/mnt/note && cat /dfs/mnt/note"),
        "one\ntwo\n"
    );
    cluster.kubectl(&["-n", NS, "delete", "pod", "user", "--timeout=60s"]);
    wait_for("it to go", || cluster.get(NS, "dfs used").is_null().then_some(()));
}

/// Each with an operator of its own. By default they share nothing; told to mount in one directory, the second says so.
pub(crate) fn two_of_one_name(cluster: &Cluster) {
    const OTHER: &str = "elsewhere";
    let mut spec = small("dfs", &json!({"enabled": true}))["spec"].clone();
    for servers in ["masters", "chunkServers"] {
        // Helm merges: the chart's own size would stay.
        spec[servers]["storage"]["size"] = Value::Null;
    }
    let values = cluster.dir.join("elsewhere.json");
    let chart = tests::repository().join("charts/distributedfs");
    let helm = |verb: &str, spec: &Value, more: &[&str]| {
        let all = json!({
            "image": {"repository": "localhost/dfs", "tag": "test", "pullPolicy": "Never"},
            "operator": {"replicas": 1},
            "fileSystem": {"spec": spec},
        });
        std::fs::write(&values, all.to_string()).unwrap();
        let (chart, values) = (chart.to_string_lossy(), values.to_string_lossy());
        let mut args = vec![verb, "dfs", &chart, "--namespace", OTHER, "--values", &values];
        args.extend(more);
        tests::stdout_of(&cluster.helm(&args));
    };
    helm("install", &spec, &["--create-namespace", "--wait", "--timeout", "5m"]);
    let other = || cluster.get(OTHER, "dfs dfs")["status"].clone();
    assert_eq!(condition(&other(), "Ready"), "True", "{}", other());
    assert_eq!(other()["hostPath"], format!("/var/lib/distributedfs/{OTHER}/dfs/mnt"));
    // No file of one is seen in the other.
    let mount = cluster.names(OTHER, "pod -l app.kubernetes.io/component=mount");
    assert_eq!(mount.len(), 3, "{mount:?}");
    go_on(cluster, &["work-b", "work-c"]);
    tests::stdout_of(&cluster.helm(&["uninstall", "dfs", "--namespace", OTHER, "--wait"]));

    let taken = status(cluster)["hostPath"].as_str().unwrap().trim_end_matches("/mnt").to_owned();
    spec["mount"] = json!({"enabled": true, "hostPath": taken});
    helm("install", &spec, &["--create-namespace"]);
    let words = "give each its own spec.mount.hostPath";
    let message = wait_for("a condition", || {
        let conditions = other()["conditions"].clone();
        let messages = conditions.as_array()?.iter().filter_map(|c| c["message"].as_str());
        messages.into_iter().find(|message| message.contains(words)).map(str::to_owned)
    });
    println!("of one name in two namespaces: {message}");
    wait_for("an Event", || {
        let events = cluster.events(OTHER, "dfs");
        events.iter().any(|(of, note)| of == "PodProblem" && note.contains(words)).then_some(())
    });
    tests::stdout_of(&cluster.helm(&["uninstall", "dfs", "--namespace", OTHER, "--wait"]));
    cluster.kubectl(&["delete", "namespace", OTHER, "--timeout=120s"]);
    std::thread::sleep(Duration::from_secs(1));
    go_on(cluster, &["work-b", "work-c"]);
    whole(cluster);
}
