//! The API server takes what is right and refuses what is wrong, with a sentence that says what to do.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Listed};

pub(crate) const CASES: &[Listed] = &[
    ("resource::the_definition_is_taken_and_defaults_are_filled_in", 1, defaults),
    ("resource::what_is_wrong_is_refused_with_advice", 1, wrong),
    ("resource::samples_are_taken", 1, samples),
    ("resource::what_must_not_change_does_not", 1, changes),
];

/// The smallest one that is right.
pub(crate) fn minimal(name: &str) -> Value {
    json!({
        "apiVersion": "distributedfs.io/v1alpha1", "kind": "DistributedFS",
        "metadata": {"name": name},
        "spec": {
            "masters": {"storage": {"size": "1Gi"}},
            "chunkServers": {"storage": {"size": "2Gi"}},
        },
    })
}

fn defaults(cluster: &Cluster) {
    cluster.define();
    cluster.namespace("defaults");
    cluster.apply("defaults", &minimal("small").to_string());
    let spec = cluster.get("defaults", "dfs small")["spec"].clone();
    for (path, expected) in [
        ("/replication", json!(3)),
        ("/minReplicas", json!(2)),
        ("/chunkServers/replicas", json!(3)),
        ("/masters/count", json!(1)),
        ("/liveness/profile", json!("standard")),
        ("/mount/enabled", json!(true)),
        ("/chunkSize", json!("64Mi")),
        ("/topologyKey", json!("kubernetes.io/hostname")),
        ("/securityContext/runAsUser", json!(65532)),
        ("/securityContext/runAsGroup", json!(65532)),
        ("/securityContext/fsGroup", json!(65532)),
        ("/deletionPolicy", json!("KeepData")),
        ("/paused", json!(false)),
    ] {
        assert_eq!(spec.pointer(path), Some(&expected), "{path} in {spec}");
    }
    // Nobody has looked at it yet: `helm --wait` must see that.
    let status = cluster.get("defaults", "dfs small")["status"].clone();
    assert_eq!(status["observedGeneration"], -1, "{status}");
    // The scale subresource, and what `kubectl get` shows.
    cluster.kubectl(&["-n", "defaults", "scale", "dfs/small", "--replicas=5"]);
    assert_eq!(cluster.get("defaults", "dfs small")["spec"]["chunkServers"]["replicas"], 5);
    let shown = cluster.kubectl(&["-n", "defaults", "get", "dfs", "-o", "wide"]);
    for column in ["PHASE", "READY", "SAFE", "SERVERS", "WANTED", "CHUNKS", "ENDPOINT"] {
        assert!(shown.contains(column), "{shown}");
    }
    let explained = cluster.kubectl(&["explain", "distributedfs.spec.chunkServers.storage"]);
    assert!(explained.contains("ephemeral"), "{explained}");
    cluster.kubectl(&["delete", "namespace", "defaults", "--wait=false"]);
}

/// What the API server says to `resource`; nothing is kept.
fn said(cluster: &Cluster, namespace: &str, resource: &Value) -> Result<(), String> {
    let output = cluster.try_kubectl(
        &["-n", namespace, "apply", "--dry-run=server", "-f", "-"],
        &resource.to_string(),
    );
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// `value` at `path` of a copy.
fn with(resource: &Value, path: &str, value: Value) -> Value {
    let mut copy = resource.clone();
    let mut at = &mut copy;
    for key in path.split('/') {
        at = &mut at[key];
    }
    *at = value;
    copy
}

fn wrong(cluster: &Cluster) {
    cluster.define();
    let good = minimal("x");
    let forty = "a".repeat(40);
    // Path, a value that is wrong, words of the answer, a value that is right.
    for (path, bad, words, right) in [
        ("metadata/name", json!(format!("{forty}a")), "choose a shorter one", json!(forty)),
        ("spec/replication", json!(4), "lower it or ask for more servers", json!(3)),
        ("spec/replication", json!(0), "should be greater than or equal to 1", json!(2)),
        ("spec/minReplicas", json!(4), "writes would never be accepted; lower it", json!(3)),
        ("spec/masters/count", json!(3), "one master is all there is in this version", json!(1)),
        (
            "spec/chunkServers/storage",
            json!({}),
            "storage needs either size",
            json!({"size": "128Mi"}),
        ),
        (
            "spec/chunkServers/storage",
            json!({"size": "1Gi", "ephemeral": {"acknowledgeDataLoss": true}}),
            "storage needs either size",
            json!({"ephemeral": {"acknowledgeDataLoss": true}}),
        ),
        (
            "spec/chunkServers/storage",
            json!({"ephemeral": {"acknowledgeDataLoss": false}}),
            "is lost whenever its pod ends",
            json!({"ephemeral": {"acknowledgeDataLoss": true}}),
        ),
        (
            "spec/masters/storage",
            json!({"storageClassName": "fast", "ephemeral": {"acknowledgeDataLoss": true}}),
            "storageClassName has no meaning without size",
            json!({"storageClassName": "fast", "size": "1Gi"}),
        ),
        ("spec/masters/storage/size", json!("1Mi"), "at least 128Mi", json!("128Mi")),
        ("spec/masters/storage/size", json!("much"), "at least 128Mi", json!("1.5Gi")),
        ("spec/masters/storage/size", json!(1 << 30), "written as a string", json!("1073741824")),
        (
            "spec/liveness",
            json!({"profile": "lazy"}),
            "supported values",
            json!({"profile": "drill"}),
        ),
        (
            "spec/liveness",
            json!({"deadAfter": "15"}),
            "deadAfter is not a time",
            json!({"deadAfter": "15s"}),
        ),
        (
            "spec/liveness",
            json!({"heartbeatInterval": "1 s"}),
            "heartbeatInterval is not a time",
            json!({"heartbeatInterval": "1s"}),
        ),
        (
            "spec/liveness",
            json!({"rebuildDelay": "soon"}),
            "rebuildDelay is not a time",
            json!({"rebuildDelay": "10m"}),
        ),
        (
            "spec/mount",
            json!({"hostPath": "var/x"}),
            "not an absolute path",
            json!({"hostPath": "/srv/x"}),
        ),
        (
            "spec/mount",
            json!({"hostPath": "/srv/../etc"}),
            "not an absolute path",
            json!({"hostPath": "/srv/etc"}),
        ),
        ("spec/replication", json!(9), "should be less than or equal to 8", json!(2)),
        ("spec/chunkSize", json!("48Mi"), "not a power of two from 4Ki to 256Mi", json!("256Mi")),
        ("spec/chunkSize", json!("512Mi"), "not a power of two from 4Ki to 256Mi", json!("512Ki")),
        ("spec/chunkSize", json!("64MiB"), "not a power of two from 4Ki to 256Mi", json!("4Ki")),
        (
            "spec/topologyKey",
            json!("zone a"),
            "not the name of a label",
            json!("topology.kubernetes.io/zone"),
        ),
        ("spec/topologyKey", json!(""), "not the name of a label", json!("rack")),
        (
            "spec/securityContext",
            json!({"runAsUser": 0}),
            "servers never run as root",
            json!({"runAsUser": 1000}),
        ),
        (
            "spec/securityContext",
            json!({"fsGroup": 0}),
            "servers never run as root",
            json!({"runAsGroup": 1, "fsGroup": 2, "seLinuxOptions": {"level": "s0:c1"}}),
        ),
        ("spec/deletionPolicy", json!("Delete"), "supported values", json!("DeleteAllData")),
        ("spec/imagePullPolicy", json!("Sometimes"), "supported values", json!("Always")),
    ] {
        let refused = said(cluster, "default", &with(&good, path, bad.clone()));
        let refused = refused.expect_err(&format!("{path}: {bad}")).to_lowercase();
        assert!(refused.contains(&words.to_lowercase()), "{path}: {bad}: {refused}");
        let taken = said(cluster, "default", &with(&good, path, right.clone()));
        assert_eq!(taken, Ok(()), "{path}: {right}");
    }
}

fn samples(cluster: &Cluster) {
    cluster.define();
    let dir = tests::repository().join("deploy/samples");
    let files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(3 <= files.len(), "{files:?}");
    for file in files {
        let file = file.to_string_lossy();
        cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", &file]);
    }
}

fn changes(cluster: &Cluster) {
    cluster.define();
    cluster.namespace("changes");
    let there = with(&minimal("x"), "spec/mount", json!({"hostPath": "/srv/x"}));
    cluster.apply("changes", &there.to_string());
    for (path, value, words) in [
        ("spec/chunkServers/storage/size", json!("4Gi"), "storage cannot be changed"),
        (
            "spec/masters/storage",
            json!({"size": "1Gi", "storageClassName": "fast"}),
            "storage cannot be changed",
        ),
        ("spec/chunkSize", json!("1Mi"), "chunkSize cannot be changed"),
        ("spec/securityContext", json!({"runAsUser": 7}), "runAsUser and runAsGroup cannot"),
        ("spec/mount/hostPath", json!("/srv/y"), "mount.hostPath cannot be changed"),
    ] {
        let refused = said(cluster, "changes", &with(&there, path, value));
        assert!(refused.as_ref().is_err_and(|said| said.contains(words)), "{path}: {refused:?}");
    }
    for (path, value) in [
        ("spec/chunkServers/replicas", json!(5)),
        ("spec/replication", json!(2)),
        ("spec/mount/enabled", json!(false)),
        ("spec/paused", json!(true)),
        ("spec/image", json!("example.com/dfs:2")),
        ("spec/topologyKey", json!("rack")),
        ("spec/securityContext", json!({"fsGroup": 7})),
    ] {
        assert_eq!(said(cluster, "changes", &with(&there, path, value)), Ok(()), "{path}");
    }
    cluster.kubectl(&["delete", "namespace", "changes", "--wait=false"]);
}
