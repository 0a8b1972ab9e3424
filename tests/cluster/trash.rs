//! Deleted files that are kept for a while.

use serde_json::{Value, json};
use tests::{Cluster, Options, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

const FILE_BYTES: usize = 200_000;

fn kept(cluster: &Cluster) -> Vec<Value> {
    cluster.dfs_json(["trash", "ls"])["files"].as_array().unwrap().clone()
}

fn paths(cluster: &Cluster) -> Vec<Value> {
    kept(cluster).iter().map(|file| file["path"].clone()).collect()
}

fn chunks(cluster: &Cluster) -> Value {
    cluster.dfs_json(["status", "--server-wait", "60s"])["chunks"]["total"].clone()
}

#[track_caller]
fn refused(cluster: &Cluster, arguments: &[&str], reason: &str) {
    let output = cluster.try_dfs([&["trash"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(reason) && said.lines().count() == 1, "{said}");
}

#[test]
fn what_was_deleted_comes_back_with_its_content_and_goes_when_it_is_emptied() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    let mount = cluster.mount();
    let write = |name: &str, seed| write_synced(&mount.join(name), &pattern(FILE_BYTES, seed));
    // Unless it is set nothing is kept.
    write("f", 1);
    std::fs::remove_file(mount.join("f")).unwrap();
    assert_eq!(cluster.dfs_json(["trash", "ls"]), json!({"keepSeconds": 0, "files": []}));

    cluster.dfs(["trash", "keep", "7d"]);
    std::fs::create_dir_all(mount.join("d/e")).unwrap();
    write("d/e/f", 2);
    write("d/g", 3);
    write("new", 4);
    std::fs::remove_file(mount.join("d/e/f")).unwrap();
    std::fs::rename(mount.join("new"), mount.join("d/g")).unwrap();
    assert_eq!(paths(&cluster), ["/d/e/f", "/d/g"]);
    let numbers: Vec<String> =
        kept(&cluster).iter().map(|file| file["number"].to_string()).collect();
    let pid = cluster.pid("master").unwrap();
    cluster.kill("master");
    wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
    assert!(3 <= chunks(&cluster).as_u64().unwrap(), "all of it is still there");

    refused(&cluster, &["restore", &numbers[1]], "/d/g exists");
    refused(&cluster, &["restore", "99"], "no 99 in the trash");
    refused(&cluster, &["empty", "99"], "no 99 in the trash");
    refused(&cluster, &["restore", &numbers[1], "/nowhere/g"], "/nowhere");
    let back = cluster.dfs_json(["trash", "restore", &numbers[1], "/d/old"]);
    assert_eq!(back["path"], "/d/old");
    assert_eq!(cluster.dfs(["trash", "restore", &numbers[0]]), "/d/e/f is back\n");
    for (name, seed) in [("d/e/f", 2), ("d/old", 3), ("d/g", 4)] {
        wait_until("the mount sees it", || mount.join(name).exists());
        check_content(&mount.join(name), &pattern(FILE_BYTES, seed));
    }
    assert!(kept(&cluster).is_empty());
    wait_until("all servers are back", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["safe"] == chunks["total"]
    });
    assert!(cluster.dfs(["fsck"]).contains("clean"));

    cluster.dfs(["rm", "-r", "/d"]);
    assert_eq!(paths(&cluster), [Value::Null, Value::Null, Value::Null]);
    let first = kept(&cluster)[0]["number"].to_string();
    refused(&cluster, &["restore", &first], "is gone: name a path");
    cluster.dfs(["trash", "restore", &first, "/again"]);
    assert_eq!(cluster.dfs_json(["trash", "empty", "--older", "1d"])["emptied"], 0);
    assert_eq!(cluster.dfs_json(["trash", "empty"])["emptied"], 2);
    wait_until("their chunks are gone", || chunks(&cluster) == 1);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn what_was_kept_for_its_time_goes_by_itself() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.dfs(["trash", "keep", "1s"]);
    write_synced(&cluster.mount().join("f"), &pattern(FILE_BYTES, 1));
    cluster.dfs(["rm", "/f"]);
    // Whoever sets another time means what is deleted from then on.
    cluster.dfs(["trash", "keep", "1h"]);
    write_synced(&cluster.mount().join("g"), &pattern(FILE_BYTES, 2));
    cluster.dfs(["rm", "/g"]);
    wait_until("only the other is left", || paths(&cluster) == ["/g"]);
    wait_until("and its chunk", || chunks(&cluster) == 1);
    let events = cluster.dfs(["events", "-n", "0"]);
    assert!(events.contains("deleted files are kept for 3600 s, by "), "{events}");
}
