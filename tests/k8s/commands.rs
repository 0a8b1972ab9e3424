//! Commands of people on a running file system: annotations, and `kubectl dfs`.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, programs, wait_for};
use crate::files::{NS, go_on, status, whole};

/// What came of `distributedfs.io/NAME=VALUE`, once its annotation is gone.
fn annotate(cluster: &Cluster, name: &str, value: &str) -> Value {
    let annotation = format!("distributedfs.io/{name}");
    cluster.kubectl(&["-n", NS, "annotate", "dfs", "dfs", &format!("{annotation}={value}")]);
    let last = wait_for("the command's result", || {
        let fs = cluster.get(NS, "dfs dfs");
        let taken = fs["metadata"]["annotations"][&annotation].is_null();
        let last = fs["status"]["lastCommand"].clone();
        (taken && last["name"] == name && last["value"] == value).then_some(last)
    });
    println!("{name}={value}: {}: {}", last["result"], last["message"]);
    let mut reason = name.to_owned();
    reason[..1].make_ascii_uppercase();
    let reason = format!("{reason}{}", last["result"].as_str().unwrap());
    wait_for("its Event", || {
        let events = cluster.events(NS, "dfs");
        events.iter().any(|(of, note)| *of == reason && note.contains(value)).then_some(())
    });
    last
}

#[track_caller]
fn done(last: &Value) {
    assert_eq!(last["result"], "Done", "{last}");
}

fn server(cluster: &Cluster, name: &str) -> Value {
    let servers = status(cluster)["servers"].as_array().cloned().unwrap_or_default();
    servers.into_iter().find(|server| server["name"] == name).unwrap_or_default()
}

pub(crate) fn maintenance(cluster: &Cluster) {
    whole(cluster);
    done(&annotate(cluster, "maintenance", "cs-2;for=10m"));
    wait_for("cs-2 in maintenance", || {
        (server(cluster, "cs-2")["overlays"] == json!(["maintenance"])).then_some(())
    });
    let refused = annotate(cluster, "maintenance", "cs-9");
    assert_eq!(refused["result"], "Refused", "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("unknown server cs-9"), "{refused}");
    done(&annotate(cluster, "maintenance", "cs-2;end"));
    wait_for("its end", || server(cluster, "cs-2")["overlays"].is_null().then_some(()));
    // Of three servers none can be emptied: each chunk is on all of them.
    let refused = annotate(cluster, "drain", "cs-3");
    assert_eq!(refused["result"], "Refused", "{refused}");
    done(&annotate(cluster, "rebalance", "start"));
    done(&annotate(cluster, "rebalance", "stop"));
    let invalid = annotate(cluster, "rebalance", "faster");
    assert_eq!(invalid["result"], "Invalid", "{invalid}");
    go_on(cluster, &["work-b", "work-c"]);
}

pub(crate) fn drain(cluster: &Cluster) {
    whole(cluster);
    cluster.kubectl(&["-n", NS, "scale", "dfs/dfs", "--replicas=4"]);
    wait_for("a fourth server", || (status(cluster)["chunkServers"]["alive"] == 4).then_some(()));
    whole(cluster);
    done(&annotate(cluster, "drain", "cs-2"));
    wait_for("cs-2 to be empty", || (server(cluster, "cs-2")["chunks"] == 0).then_some(()));
    // Its pod stays: it was a person's wish, and a person's it is to end it.
    assert_eq!(server(cluster, "cs-2")["overlays"], json!(["draining"]));
    assert_eq!(cluster.get(NS, "statefulset dfs-cs")["spec"]["replicas"], 4);
    go_on(cluster, &["work-b", "work-c"]);
    done(&annotate(cluster, "drain", "cs-2;end"));
    whole(cluster);
}

/// The plugin as kubectl finds it.
struct Plugin<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
}

impl Plugin<'_> {
    fn run(&self, args: &[&str]) -> Output {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut paths = vec![self.dir.clone()];
        paths.extend(std::env::split_paths(&path));
        let mut kubectl = Command::new(programs().join("kubectl"));
        kubectl
            .arg("dfs")
            .args(args)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("PATH", std::env::join_paths(paths).unwrap());
        tests::run(&mut kubectl, Duration::from_secs(120))
    }

    #[track_caller]
    fn says(&self, args: &[&str], words: &[&str]) -> String {
        let text = tests::stdout_of(&self.run(args));
        for word in words {
            assert!(text.contains(word), "{args:?}: no '{word}' in {text}");
        }
        text
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], words: &str) {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(words), "{args:?}: {text}");
    }
}

pub(crate) fn kubectl_dfs(cluster: &Cluster) {
    let dir = cluster.dir.join("plugin");
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["kubectl-dfs", "kubectl_complete-dfs"] {
        std::os::unix::fs::symlink(tests::dfs_program(), dir.join(name)).unwrap();
    }
    let plugin = Plugin { cluster, dir };
    whole(cluster);
    print!("{}", plugin.says(&["status", "-n", NS], &["DataSafe", "AllSafe", "cs-3", "chunks"]));
    print!("{}", plugin.says(&["servers", "-n", NS], &["node-a", "dfs-cs-1", "Held"]));
    plugin.says(&["-n", NS, "locate", "/shared/big"], &["cs-1", "cs-2", "cs-3"]);
    plugin.says(&["-n", NS, "explain", "/shared/big"], &["zone-node-a", "safe"]);
    plugin.says(&["-n", NS, "mount"], &["node-b", "/var/lib/distributedfs/storage/dfs/mnt"]);
    let pod = plugin.says(&["-n", NS, "mount", "--pod", "sample"], &["HostToContainer"]);
    let taken = cluster.try_kubectl(&["apply", "--dry-run=server", "-f", "-"], &pod);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    plugin.refuses(&["-n", NS, "top"], "draws on a terminal");
    plugin.refuses(&["-n", NS, "explain", "/nowhere"], "nowhere");
    plugin.refuses(&["status"], "no file system in namespace default");
    plugin.refuses(&["-n", NS, "--file-system", "other", "servers"], "no file system 'other'");

    plugin.says(&["-n", NS, "failover", "cs-1", "--for", "5m"], &["cs-1 is suspended"]);
    wait_for("cs-1 to be dead", || (server(cluster, "cs-1")["state"] == "dead").then_some(()));
    plugin.refuses(&["-n", NS, "failover", "cs-2"], "refused: cs-2");
    plugin.refuses(&["-n", NS, "drain", "cs-2"], "refused");
    plugin.says(&["-n", NS, "recover", "cs-1"], &["cs-1 is no longer suspended"]);
    whole(cluster);

    let archive = cluster.dir.join("report.tar");
    let archive = archive.to_string_lossy();
    plugin.says(&["-n", NS, "report", "-o", &archive], &["files"]);
    let listed = tests::stdout_of(&tests::run(
        Command::new("tar").args(["-tf", &archive]),
        Duration::from_secs(30),
    ));
    for name in ["resource.json", "events.json", "logs/dfs-master-0.log", "master-status.json"] {
        assert!(listed.contains(&format!("dfs-report-dfs/{name}")), "{name} in {listed}");
    }
    let key = cluster.kubectl(&[
        "-n",
        NS,
        "get",
        "secret",
        "dfs-key",
        "-o",
        "go-template={{index .data \"cluster.key\" | base64decode}}",
    ]);
    let bytes = std::fs::read(&*archive).unwrap();
    assert!(key.len() == 64 && !bytes.windows(64).any(|part| part == key.as_bytes()));
    println!("report: {} files, {} KiB", listed.lines().count(), bytes.len() >> 10);

    plugin.says(&["completion", "bash"], &["kubectl-dfs"]);
    let complete = |words: &[&str]| {
        let mut asked = Command::new(plugin.dir.join("kubectl_complete-dfs"));
        asked.args(words).env("KUBECONFIG", cluster.kubeconfig());
        tests::stdout_of(&tests::run(&mut asked, Duration::from_secs(30)))
    };
    assert_eq!(complete(&["fail"]), "failover\n:4\n");
    assert_eq!(complete(&["-n", NS, "recover", "cs-"]), "cs-1\ncs-2\ncs-3\n:4\n");
}
