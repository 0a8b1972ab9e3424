//! The main proof: the chart installed on three nodes, pods that write and read through the mount, and everything that
//! can happen to the servers meanwhile. The cases build on each other: the first one installs, the last one uninstalls.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, Listed, wait_for};
use crate::prometheus::Prometheus;
use crate::{commands, trouble};

pub(crate) const CASES: &[Listed] = &[
    ("files::the_chart_installs_and_waits_until_it_serves", 3, install),
    ("files::a_pod_reads_what_a_pod_on_another_node_wrote", 3, share),
    ("files::leases_are_held_by_the_pods", 3, leases),
    ("files::network_policies_allow_every_connection_there_is", 3, |cluster| {
        crate::network::connections_are_allowed(cluster, NS);
    }),
    ("files::a_server_fails_over_and_recovers_by_annotation", 3, failover),
    ("files::prometheus_tells_a_failover_and_its_end", 3, alert),
    ("files::an_api_server_that_is_away_costs_no_client_an_error", 3, outage),
    ("files::a_node_that_is_cut_off_returns_without_harm", 3, partition),
    ("files::killed_pods_cost_no_client_an_error", 3, killed_pods),
    ("files::a_killed_mount_comes_back_by_itself", 3, killed_mount),
    ("commands::maintenance_and_rebalance_are_annotations", 3, commands::maintenance),
    ("commands::kubectl_dfs_says_and_does_it", 3, commands::kubectl_dfs),
    ("commands::of_four_servers_one_is_drained", 3, commands::drain),
    ("files::a_fourth_server_joins_and_leaves_again", 3, scale),
    ("files::an_upgrade_renews_the_pods_and_costs_no_client_an_error", 3, upgrade),
    ("trouble::what_keeps_a_file_system_from_starting_is_said", 3, trouble::does_not_start),
    ("trouble::a_node_without_fuse_is_named", 3, trouble::no_fuse),
    ("trouble::one_that_is_in_use_is_not_deleted", 3, trouble::in_use),
    ("trouble::of_one_name_in_two_namespaces_each_is_its_own", 3, trouble::two_of_one_name),
    ("files::uninstalled_only_the_claims_are_left", 3, uninstall),
];

pub(crate) const NS: &str = "storage";
/// The user of the image.
const USER: u32 = 65532;

fn volumes(cluster: &Cluster) {
    cluster.apply(
        "default",
        &json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "here"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Retain",
        })
        .to_string(),
    );
    for number in 0..8 {
        let dir = cluster.dir.join(format!("volumes/{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(USER), Some(USER)).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
        cluster.apply(
            "default",
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("v{number}")},
                "spec": {
                    "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "here",
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": dir, "type": "Directory"},
                },
            })
            .to_string(),
        );
    }
}

fn install(cluster: &Cluster) {
    let image = cluster.dir.join("dfs.tar");
    let mut build = std::process::Command::new(tests::repository().join("deploy/image/build"));
    build
        .arg("--binary")
        .arg(tests::dfs_program())
        .args(["--name", "localhost/dfs:test"])
        .arg(&image);
    print!("{}", tests::stdout_of(&tests::run(&mut build, Duration::from_secs(120))));
    cluster.control(&["load", &image.to_string_lossy()]);
    volumes(cluster);
    for node in ["node-a", "node-b", "node-c"] {
        let zone = format!("topology.kubernetes.io/zone=zone-{node}");
        cluster.kubectl(&["label", "node", node, &zone]);
    }
    let values = cluster.dir.join("values.json");
    let spec = json!({
        "image": {"repository": "localhost/dfs", "tag": "test", "pullPolicy": "Never"},
        "fileSystem": {"spec": {
            "masters": {"storage": {"size": "1Gi", "storageClassName": "here"}},
            "chunkServers": {"replicas": 3, "storage": {"size": "2Gi", "storageClassName": "here"}},
            "liveness": {"profile": "router", "rebuildDelay": "5s"},
            "topologyKey": "topology.kubernetes.io/zone",
        }},
    });
    std::fs::write(&values, spec.to_string()).unwrap();
    let began = Instant::now();
    let chart = tests::repository().join("charts/distributedfs");
    let output = cluster.helm(&[
        "install",
        "dfs",
        &chart.to_string_lossy(),
        "--namespace",
        NS,
        "--create-namespace",
        "--values",
        &values.to_string_lossy(),
        "--wait",
        "--timeout",
        "5m",
    ]);
    tests::stdout_of(&output);
    println!("helm install --wait returned after {:.1} s", began.elapsed().as_secs_f64());
    let pods = ready_pods(cluster, "chunkserver");
    let mut nodes: Vec<&str> =
        pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-a", "node-b", "node-c"]);
    for pod in &pods {
        let zone = format!("zone-{}", pod["spec"]["nodeName"].as_str().unwrap());
        assert_eq!(pod["metadata"]["annotations"]["distributedfs.io/zone"], zone);
    }
    let status = status(cluster);
    assert_eq!(status["phase"], "Ready", "{status}");
    assert_eq!(condition(&status, "DataSafe"), "True", "{status}");
    assert_eq!(condition(&status, "Reconciling"), "False", "{status}");
    assert_eq!(status["mounts"], json!({"wanted": 3, "ready": 3}));
    assert_eq!(status["chunkServers"]["alive"], 3);
}

pub(crate) fn status(cluster: &Cluster) -> Value {
    cluster.get(NS, "dfs dfs")["status"].clone()
}

pub(crate) fn condition(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == kind).map(|c| c["status"].clone());
    found.unwrap_or_default().as_str().unwrap_or_default().to_owned()
}

pub(crate) fn pods(cluster: &Cluster, component: &str) -> Vec<Value> {
    let list = cluster.get(NS, &format!("pod -l app.kubernetes.io/component={component}"));
    list["items"].as_array().cloned().unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub(crate) fn ready_pods(cluster: &Cluster, component: &str) -> Vec<Value> {
    pods(cluster, component).into_iter().filter(is_ready).collect()
}

/// Nothing is left to be done and all data is safe.
pub(crate) fn whole(cluster: &Cluster) {
    let began = Instant::now();
    wait_for("whole again", || {
        let status = status(cluster);
        let good = status["phase"] == "Ready"
            && condition(&status, "DataSafe") == "True"
            && condition(&status, "Degraded") == "False"
            && condition(&status, "Reconciling") == "False"
            && status["mounts"]["ready"] == 3;
        good.then_some(())
    });
    println!("whole after {:.1} s", began.elapsed().as_secs_f64());
}

/// A pod on `node` that runs `script`, with the file system at /dfs/mnt.
pub(crate) fn pod(cluster: &Cluster, name: &str, node: &str, script: &str) {
    let wait = "until grep -q ' /dfs/mnt fuse' /proc/mounts; do sleep 0.1; done; ";
    cluster.apply(
        NS,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1, "restartPolicy": "Never",
                "containers": [{
                    "name": "box", "image": "localhost/box:test", "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c", format!("{wait}{script}")],
                    "volumeMounts": [{"name": "dfs", "mountPath": "/dfs", "mountPropagation": "HostToContainer"}],
                }],
                "volumes": [{"name": "dfs", "hostPath": {"path": format!("/var/lib/distributedfs/{NS}/dfs"), "type": "Directory"}}],
            },
        })
        .to_string(),
    );
}

pub(crate) fn exec(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["-n", NS, "exec", pod, "--", "/bin/sh", "-c", script])
}

/// Pods that write and read without end: each round is a line `ok N`, each error a line `ERROR …`.
const ENDLESS: &str = "n=0; d=/dfs/mnt/work-$HOSTNAME; mkdir $d || echo ERROR mkdir; while true; do \
    n=$((n + 1)); f=$d/$((n % 20)); \
    dd if=/dev/urandom of=/tmp/in bs=64k count=4 2>/dev/null; \
    dd if=/tmp/in of=$f bs=64k conv=fsync 2>/dev/null || echo ERROR write $n; \
    cmp /tmp/in $f || echo ERROR read $n; echo ok $n; done";

/// How many rounds the pod did, and that none went wrong.
#[track_caller]
fn rounds(cluster: &Cluster, pod: &str) -> usize {
    let output = cluster.try_kubectl(&["-n", NS, "logs", pod], "");
    if !output.status.success() {
        // It has not begun, or its node is away: whoever waits for rounds waits.
        return 0;
    }
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors: Vec<&str> = log.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(errors.is_empty(), "{pod}: {errors:?}");
    log.lines().count()
}

/// The pods do at least two more rounds each.
#[track_caller]
pub(crate) fn go_on(cluster: &Cluster, names: &[&str]) {
    for pod in names {
        let before = rounds(cluster, pod);
        wait_for("more rounds", || (before + 2 <= rounds(cluster, pod)).then_some(()));
    }
}

fn share(cluster: &Cluster) {
    pod(cluster, "on-a", "node-a", "sleep 1000000");
    pod(cluster, "on-c", "node-c", "sleep 1000000");
    cluster.kubectl(&[
        "-n",
        NS,
        "wait",
        "--for=condition=Ready",
        "pod/on-a",
        "pod/on-c",
        "--timeout=60s",
    ]);
    wait_for("both mounts", || {
        let sees = |pod: &str| {
            exec(cluster, pod, "grep -c ' /dfs/mnt fuse' /proc/mounts || true").trim() == "1"
        };
        (sees("on-a") && sees("on-c")).then_some(())
    });
    exec(
        cluster,
        "on-a",
        "mkdir /dfs/mnt/shared && echo from node-a >/dfs/mnt/shared/note && sync",
    );
    assert_eq!(exec(cluster, "on-c", "cat /dfs/mnt/shared/note"), "from node-a\n");
    exec(
        cluster,
        "on-c",
        "dd if=/dev/urandom of=/dfs/mnt/shared/big bs=1M count=20 2>/dev/null; sync",
    );
    let sum = |pod: &str| {
        exec(
            cluster,
            pod,
            "cat /dfs/mnt/shared/big | wc -c; cmp /dfs/mnt/shared/big /dfs/mnt/shared/big && echo same",
        )
    };
    assert_eq!(sum("on-a"), sum("on-c"));
    assert!(sum("on-a").starts_with(&format!("{}\n", 20 << 20)), "{}", sum("on-a"));
    wait_for("chunks in the status", || {
        (1 <= status(cluster)["chunks"]["total"].as_i64()?).then_some(())
    });
    pod(cluster, "work-b", "node-b", ENDLESS);
    pod(cluster, "work-c", "node-c", ENDLESS);
    wait_for("both to work", || {
        (2 <= rounds(cluster, "work-b") && 2 <= rounds(cluster, "work-c")).then_some(())
    });
}

fn leases(cluster: &Cluster) {
    wait_for("three Leases", || {
        let held = ready_pods(cluster, "chunkserver").iter().all(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let lease = cluster.get(NS, &format!("lease {name}"));
            lease["spec"]["holderIdentity"] == pod["metadata"]["uid"]
                && !lease["spec"]["renewTime"].is_null()
        });
        let said = status(cluster)["servers"].as_array().cloned().unwrap_or_default();
        (held && said.len() == 3 && said.iter().all(|server| server["lease"] == "Held"))
            .then_some(())
    });
    // Its own and no other: not even a look at the Secret of the key.
    let may = |verb: &str, what: &str| {
        let output = cluster.try_kubectl(
            &[
                "-n",
                NS,
                "auth",
                "can-i",
                verb,
                what,
                &format!("--as=system:serviceaccount:{NS}:dfs-cs"),
            ],
            "",
        );
        String::from_utf8_lossy(&output.stdout).trim() == "yes"
    };
    assert!(may("update", "lease/dfs-cs-1") && may("get", "lease/dfs-cs-3"));
    for (verb, what) in [
        ("create", "lease"),
        ("update", "lease/dfs-operator"),
        ("get", "secret/dfs-key"),
        ("list", "pod"),
        ("delete", "lease/dfs-cs-1"),
    ] {
        assert!(!may(verb, what), "{verb} {what}");
    }
    // The Role names the Leases of all of them; of these each gets its own only.
    wait_for("the policy", || {
        let said = renew_as(cluster, "dfs-cs-1", "dfs-cs-2");
        said.contains("renews the Lease of its own pod only").then_some(())
    });
    wait_for("a renewal", || {
        // Its owner may have been faster.
        let said = renew_as(cluster, "dfs-cs-2", "dfs-cs-2");
        assert!(!said.contains("denied"), "{said}");
        said.contains("\"Lease\"").then_some(())
    });
}

/// What the API server answers a chunkserver's `pod` that writes `lease` as it is.
fn renew_as(cluster: &Cluster, pod: &str, lease: &str) -> String {
    let object = cluster.get(NS, &format!("lease {lease}"));
    let config = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let server = config.split("server: \"").nth(1).unwrap().split('"').next().unwrap();
    let output = tests::run_with_input(
        std::process::Command::new("curl")
            .args(["-sS", "-X", "PUT", "--cacert"])
            .arg(cluster.dir.join("pki/ca.crt"))
            .args([
                "-H",
                "Authorization: Bearer admin-token",
                "-H",
                "Content-Type: application/json",
            ])
            .args(["-H", &format!("Impersonate-User: system:serviceaccount:{NS}:dfs-cs")])
            .args([
                "-H",
                &format!("Impersonate-Extra-authentication.kubernetes.io%2Fpod-name: {pod}"),
            ])
            .args(["--data-binary", "@-"])
            .arg(format!("{server}/apis/coordination.k8s.io/v1/namespaces/{NS}/leases/{lease}")),
        object.to_string().as_bytes(),
        Duration::from_secs(30),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last_command(cluster: &Cluster, name: &str) -> Value {
    wait_for("the command's result", || {
        let last = status(cluster)["lastCommand"].clone();
        (last["name"] == name).then_some(last)
    })
}

fn failover(cluster: &Cluster) {
    whole(cluster);
    let began = Instant::now();
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", "distributedfs.io/failover=cs-1"]);
    let last = last_command(cluster, "failover");
    assert_eq!((&last["value"], &last["result"]), (&json!("cs-1"), &json!("Done")), "{last}");
    assert!(last["message"].as_str().unwrap().contains("cs-1 is suspended"), "{last}");
    wait_for("cs-1 to be dead", || {
        let servers = status(cluster)["servers"].as_array().cloned()?;
        let one = servers.iter().find(|server| server["name"] == "cs-1")?.clone();
        (one["state"] == "dead" && one["overlays"] == json!(["suspended"])).then_some(())
    });
    println!("cs-1 dead {:.1} s after the annotation", began.elapsed().as_secs_f64());
    assert_eq!(condition(&status(cluster), "Degraded"), "True");
    assert_eq!(condition(&status(cluster), "Ready"), "True");
    go_on(cluster, &["work-b", "work-c"]);
    assert_eq!(exec(cluster, "on-a", "cat /dfs/mnt/shared/note"), "from node-a\n");
    let budget = || cluster.get(NS, "pdb dfs-cs")["spec"]["maxUnavailable"].clone();
    wait_for("nobody else to be evicted", || (budget() == 0).then_some(()));
    let events = cluster.events(NS, "dfs");
    assert!(
        events.iter().any(|(reason, note)| reason == "FailoverDone" && note.contains("cs-1")),
        "{events:?}"
    );
    // Two more would leave too few for a write.
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", "distributedfs.io/failover=cs-2"]);
    let last = wait_for("the second answer", || {
        let last = status(cluster)["lastCommand"].clone();
        (last["value"] == "cs-2").then_some(last)
    });
    assert_eq!(last["result"], "Refused", "{last}");
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", "distributedfs.io/recover=cs-1"]);
    let last = last_command(cluster, "recover");
    assert_eq!(last["result"], "Done", "{last}");
    whole(cluster);
    wait_for("one to be let go again", || (budget() == 1).then_some(()));
    go_on(cluster, &["work-b", "work-c"]);
    // The same on a server's pod.
    for (value, name) in [("true", "failover"), ("false", "recover")] {
        cluster.kubectl(&[
            "-n",
            NS,
            "annotate",
            "pod",
            "dfs-cs-2",
            &format!("distributedfs.io/failover={value}"),
        ]);
        wait_for("cs-2 to obey", || {
            let servers = status(cluster)["servers"].as_array().cloned()?;
            let two = servers.iter().find(|server| server["name"] == "cs-2")?.clone();
            let suspended = two["overlays"] == json!(["suspended"]);
            (suspended == (name == "failover")).then_some(())
        });
        wait_for("its annotation to go", || {
            let annotations = cluster.get(NS, "pod dfs-cs-2")["metadata"]["annotations"].clone();
            annotations["distributedfs.io/failover"].is_null().then_some(())
        });
    }
    whole(cluster);
    let annotations = cluster.get(NS, "dfs dfs")["metadata"]["annotations"].clone();
    assert!(
        annotations["distributedfs.io/failover"].is_null()
            && annotations["distributedfs.io/recover"].is_null()
    );
}

/// All pods are scraped, and the alert fires and ends.
fn alert(cluster: &Cluster) {
    whole(cluster);
    let Some(prometheus) = Prometheus::start(cluster, NS) else {
        return tests::skipped("prometheus is not installed (apt-get install prometheus)");
    };
    for (component, count) in [("master", 1), ("chunkserver", 3), ("mount", 3), ("operator", 2)] {
        prometheus.wait(&format!("count(up{{component=\"{component}\"}} == 1) == {count}"), true);
    }
    for quiet in
        ["DistributedFSServerDead", "DistributedFSMasterAbsent", "DistributedFSDataUnavailable"]
    {
        let fires =
            prometheus.query(&format!("ALERTS{{alertname=\"{quiet}\",alertstate=\"firing\"}}"));
        assert!(fires.is_empty(), "{fires:?}");
    }
    let firing = "ALERTS{alertname=\"DistributedFSServerDead\",alertstate=\"firing\"}";
    prometheus.mark("failover cs-3");
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", "distributedfs.io/failover=cs-3"]);
    let last = wait_for("the command's result", || {
        let last = status(cluster)["lastCommand"].clone();
        (last["value"] == "cs-3").then_some(last)
    });
    assert_eq!(last["result"], "Done", "{last}");
    println!(
        "alert fires {:.1} s after the annotation",
        prometheus.wait(firing, true).as_secs_f64()
    );
    prometheus.mark("recover cs-3");
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", "distributedfs.io/recover=cs-3"]);
    println!(
        "alert ends {:.1} s after the annotation",
        prometheus.wait(firing, false).as_secs_f64()
    );
    whole(cluster);
    go_on(cluster, &["work-b", "work-c"]);
    prometheus.has_all_that_is_asked_for();
    prometheus.draw();
}

/// Nothing that serves data asks the API server. `DFS_K8S_OUTAGE_SECONDS` says for how long it is away.
fn outage(cluster: &Cluster) {
    whole(cluster);
    let before = (rounds(cluster, "work-b"), rounds(cluster, "work-c"));
    let began = Instant::now();
    cluster.control(&["api-stop"]);
    std::thread::sleep(Duration::from_secs(tests::setting("DFS_K8S_OUTAGE_SECONDS", 60)));
    cluster.control(&["api-start"]);
    println!("API server away for {:.1} s", began.elapsed().as_secs_f64());
    wait_for("the nodes", || {
        let output = cluster.try_kubectl(&["-n", NS, "logs", "work-b", "--tail=1"], "");
        output.status.success().then_some(())
    });
    let after = (rounds(cluster, "work-b"), rounds(cluster, "work-c"));
    assert!(before.0 + 5 < after.0 && before.1 + 5 < after.1, "{before:?} {after:?}");
    // Nodes that could not report count as not ready for a moment, and their pods with them.
    wait_for("all pods to be ready", || {
        pods(cluster, "chunkserver").iter().all(is_ready).then_some(())
    });
    whole(cluster);
    go_on(cluster, &["work-b", "work-c"]);
}

fn partition(cluster: &Cluster) {
    whole(cluster);
    // The only master's node is another matter: it waits until the node is back.
    let master = ready_pods(cluster, "master")[0]["spec"]["nodeName"].clone();
    let node = ["node-a", "node-c"].into_iter().find(|node| master != *node).unwrap();
    let began = Instant::now();
    cluster.control(&["partition", node]);
    wait_for("a server to be missed", || {
        let status = status(cluster);
        (condition(&status, "Degraded") == "True" && status["chunkServers"]["alive"] == 2)
            .then_some(())
    });
    println!("{node} missed {:.1} s after it was cut off", began.elapsed().as_secs_f64());
    go_on(cluster, &["work-b"]);
    cluster.control(&["heal", node]);
    wait_for("its server again", || (status(cluster)["chunkServers"]["alive"] == 3).then_some(()));
    whole(cluster);
    println!("whole {:.1} s after it was cut off", began.elapsed().as_secs_f64());
    go_on(cluster, &["work-b", "work-c"]);
}

/// Ends a pod at once, and waits until another is ready in its place.
fn kill(cluster: &Cluster, component: &str) {
    let wanted = ready_pods(cluster, component).len();
    let one = ready_pods(cluster, component)[0].clone();
    let (name, uid) =
        (one["metadata"]["name"].as_str().unwrap().to_owned(), one["metadata"]["uid"].clone());
    let began = Instant::now();
    cluster.kubectl(&["-n", NS, "delete", "pod", &name, "--grace-period=0", "--force"]);
    wait_for("another pod", || {
        let now = ready_pods(cluster, component);
        (now.len() == wanted && now.iter().all(|pod| pod["metadata"]["uid"] != uid)).then_some(())
    });
    println!(
        "{component} pod {name} killed, another ready after {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

fn killed_pods(cluster: &Cluster) {
    for component in ["chunkserver", "operator", "master"] {
        whole(cluster);
        kill(cluster, component);
        go_on(cluster, &["work-b", "work-c"]);
    }
    whole(cluster);
}

/// Pids of `dfs mount` in the pod `name` on this machine, by its pod uid in the control group.
fn pids_of(uid: &str) -> Vec<i32> {
    let line =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found = pids_in(uid);
    found.retain(|pid| line(pid).starts_with("/usr/bin/dfs\0mount"));
    found
}

/// Pids of everything in the pod.
pub(crate) fn pids_in(uid: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("cgroup").contains(uid) {
            found.push(pid);
        }
    }
    found
}

fn killed_mount(cluster: &Cluster) {
    whole(cluster);
    let mount = ready_pods(cluster, "mount")
        .into_iter()
        .find(|pod| pod["spec"]["nodeName"] == "node-a")
        .unwrap();
    let pids = pids_of(mount["metadata"]["uid"].as_str().unwrap());
    assert!(!pids.is_empty(), "no mount process in {}", mount["metadata"]["name"]);
    let before = mount["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap();
    let began = Instant::now();
    for pid in pids {
        tests::signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
    }
    wait_for("the mount again", || {
        let output = cluster.try_kubectl(
            &["-n", NS, "exec", "on-a", "--", "/bin/sh", "-c", "cat /dfs/mnt/shared/note"],
            "",
        );
        (output.status.success() && output.stdout == b"from node-a\n").then_some(())
    });
    println!(
        "mount killed, seen again by a pod that was there before after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let name = mount["metadata"]["name"].as_str().unwrap();
    wait_for("the kubelet to tell of the restart", || {
        let pod = cluster.get(NS, &format!("pod {name}"));
        (pod["status"]["containerStatuses"][0]["restartCount"] == before + 1).then_some(())
    });
    exec(cluster, "on-a", "echo after >/dfs/mnt/shared/after && sync");
    assert_eq!(exec(cluster, "on-c", "cat /dfs/mnt/shared/after"), "after\n");
    whole(cluster);
}

fn scale(cluster: &Cluster) {
    whole(cluster);
    cluster.kubectl(&["-n", NS, "scale", "dfs/dfs", "--replicas=4"]);
    wait_for("a fourth server", || (status(cluster)["chunkServers"]["alive"] == 4).then_some(()));
    whole(cluster);
    go_on(cluster, &["work-b", "work-c"]);
    let began = Instant::now();
    cluster.kubectl(&["-n", NS, "scale", "dfs/dfs", "--replicas=3"]);
    wait_for("three pods", || (pods(cluster, "chunkserver").len() == 3).then_some(()));
    println!("cs-4 emptied and gone after {:.1} s", began.elapsed().as_secs_f64());
    let reasons: Vec<String> =
        cluster.events(NS, "dfs").into_iter().map(|(reason, _)| reason).collect();
    for reason in ["Draining", "Decommissioned"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} in {reasons:?}");
    }
    whole(cluster);
    go_on(cluster, &["work-b", "work-c"]);
}

/// A changed limit means other pods; the definition, which Helm leaves alone, becomes that of the chart.
fn upgrade(cluster: &Cluster) {
    whole(cluster);
    let columns = || {
        let definition = cluster.get("", "crd distributedfs.distributedfs.io");
        definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().map_or(0, Vec::len)
    };
    let before = columns();
    cluster.kubectl(&[
        "patch",
        "crd",
        "distributedfs.distributedfs.io",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]"#,
    ]);
    assert_eq!(columns(), before - 1);
    let old: Vec<Value> = ["chunkserver", "master"]
        .iter()
        .flat_map(|component| ready_pods(cluster, component))
        .map(|pod| pod["metadata"]["uid"].clone())
        .collect();
    let began = Instant::now();
    let chart = tests::repository().join("charts/distributedfs");
    tests::stdout_of(&cluster.helm(&[
        "upgrade",
        "dfs",
        &chart.to_string_lossy(),
        "--namespace",
        NS,
        "--values",
        &cluster.dir.join("values.json").to_string_lossy(),
        "--wait",
        "--timeout",
        "5m",
        "--set",
        "fileSystem.spec.chunkServers.resources.requests.memory=48Mi",
        "--set",
        "fileSystem.spec.masters.resources.requests.memory=48Mi",
    ]));
    println!("helm upgrade --wait returned after {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(columns(), before);
    for component in ["chunkserver", "master"] {
        for pod in ready_pods(cluster, component) {
            assert!(!old.contains(&pod["metadata"]["uid"]), "{}", pod["metadata"]["name"]);
            assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["memory"], "48Mi");
        }
    }
    whole(cluster);
    go_on(cluster, &["work-b", "work-c"]);
}

fn uninstall(cluster: &Cluster) {
    whole(cluster);
    rounds(cluster, "work-b");
    cluster.kubectl(&[
        "-n",
        NS,
        "delete",
        "pod",
        "on-a",
        "on-c",
        "work-b",
        "work-c",
        "--grace-period=0",
        "--force",
    ]);
    let (granted, lines) = (crate::rights::granted(cluster, NS), crate::rights::lines(cluster));
    tests::stdout_of(&cluster.helm(&["uninstall", "dfs", "--namespace", NS, "--wait"]));
    wait_for("everything to be gone", || {
        let all = cluster.names(NS, "pod,statefulset,daemonset,deployment,service,poddisruptionbudget,role,rolebinding,distributedfs");
        all.is_empty().then_some(())
    });
    let mut claims = cluster.names(NS, "pvc");
    claims.sort_unstable();
    assert_eq!(claims, ["data-dfs-cs-1", "data-dfs-cs-2", "data-dfs-cs-3", "data-dfs-master-0"]);
    assert_eq!(
        cluster.names(NS, "secret").iter().filter(|name| name.starts_with("dfs-")).count(),
        0
    );
    crate::rights::compare(cluster, NS, &granted, lines);
}
