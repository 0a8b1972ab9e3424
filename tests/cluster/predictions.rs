//! `dfs whatif kill` predicts, servers are killed, and `dfs status` says the same numbers; `dfs explain` says why.

use rustix::process::Signal;
use serde_json::Value;
use tests::{Cluster, Options, PATIENCE, run_with_input, signal, wait_until};

use crate::{need_fuse, pattern};

/// Files of many small chunks, so that servers hold different ones.
fn fill(cluster: &Cluster) {
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/d"]);
    for file in 0..3 {
        let path = format!("/d/{file}");
        cluster.dfs_fed(["put", "-", &path], &pattern(1 << 20, file));
    }
    wait_until("every copy is reported", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == 48 && chunks["safe"] == 48
    });
    // Before it has heard of all, the master predicts nothing.
    wait_until("the master is warm", || cluster.dfs_json(["status"])["phase"] == "serving");
}

/// How many chunks are how safe, without what is counted beside that.
fn by_safety(status: &Value) -> Value {
    let mut chunks = status["chunks"].clone();
    chunks.as_object_mut().unwrap().remove("diverging");
    chunks
}

/// Predicts, kills, and waits until the status says what was predicted.
#[track_caller]
fn check_prediction(cluster: &Cluster, servers: &[&str]) -> Value {
    let predicted = cluster.dfs_json([&["whatif", "kill"], servers].concat());
    assert_eq!(predicted["before"], by_safety(&cluster.dfs_json(["status"])));
    assert_ne!(predicted["before"], predicted["after"], "{predicted}");
    for server in servers {
        signal(cluster.pid(server).unwrap(), Signal::KILL);
    }
    let mut status = Value::Null;
    wait_until(&format!("the prediction comes true: {predicted}"), || {
        status = cluster.dfs_json(["status"]);
        by_safety(&status) == predicted["after"]
    });
    assert_eq!(status["bytesToCopy"], predicted["bytesToCopy"], "{status}");
    predicted
}

#[test]
fn what_one_death_of_five_does_is_what_was_predicted() {
    need_fuse!();
    // Copies begin 75 s after the death: what is looked at here is the time before.
    let options = Options { chunkservers: 5, profile: "standard", ..Options::default() };
    let cluster = Cluster::start_with(options);
    fill(&cluster);
    let predicted = check_prediction(&cluster, &["cs-2"]);
    assert_eq!(predicted["writesGoOn"], true, "{predicted}");
    assert!(0 < predicted["after"]["degraded"].as_u64().unwrap(), "{predicted}");
    assert!(0 < predicted["after"]["safe"].as_u64().unwrap(), "{predicted}");
    let current = |profile: &&Value| profile["current"] == true;
    let profile = predicted["profiles"].as_array().unwrap().iter().find(current).unwrap();
    assert_eq!((&profile["name"], &profile["deadMs"]), (&"standard".into(), &15_000.into()));
    assert_eq!(profile["copiesBeginMs"], 75_000);
    // Writes go on indeed.
    cluster.dfs_fed(["put", "-", "/d/0"], &pattern(1 << 20, 9));

    let explained = cluster.dfs_json(["explain", "/d/1"]);
    let chunks = explained["chunks"].as_array().unwrap();
    assert_eq!(chunks.len(), 16, "{explained}");
    let chunk = chunks.iter().find(|chunk| chunk["safety"] == "degraded").unwrap();
    assert!(chunk["doing"].as_str().unwrap().contains("at the earliest"), "{chunk}");
    let others = chunk["ifDied"].as_array().unwrap().iter();
    for died in others.filter(|died| died["server"] != "cs-2") {
        assert_eq!((&died["safety"], &died["writable"]), (&"endangered".into(), &false.into()));
    }
    let whole = chunks.iter().find(|chunk| chunk["safety"] == "safe").unwrap();
    assert_eq!(whole["doing"], "nothing needs to be done");
    let words = cluster.dfs(["explain", "/d/1"]);
    assert!(words.contains("degraded") && words.contains("if cs-1 died:"), "{words}");
}

#[test]
fn two_deaths_of_three_and_then_the_last_are_what_was_predicted() {
    need_fuse!();
    let cluster = Cluster::start();
    fill(&cluster);
    let table = cluster.dfs(["whatif", "kill", "cs-1"]);
    assert!(table.contains("without cs-1") && table.contains("writes   go on"), "{table}");
    let predicted = check_prediction(&cluster, &["cs-3", "cs-2"]);
    assert_eq!(predicted["after"]["endangered"], 48, "{predicted}");
    assert_eq!(predicted["writesGoOn"], false, "{predicted}");
    assert_eq!(predicted["newChunks"], false, "{predicted}");
    assert!(predicted["hold"].as_str().unwrap().contains("together"), "{predicted}");
    let mut append = cluster.command(["append", "--server-wait", "2s", "/d/0"]);
    let refused = run_with_input(&mut append, b"one more", PATIENCE);
    assert!(!refused.status.success(), "a write went on with one copy");
    let explained = cluster.dfs(["explain", "/d/0"]);
    assert!(explained.contains("chunks 0-15: endangered"), "{explained}");
    assert!(explained.contains("no server could take another copy"), "{explained}");

    let predicted = check_prediction(&cluster, &["cs-1"]);
    assert_eq!(predicted["after"]["unavailable"], 48, "{predicted}");
    let explained = cluster.dfs(["explain", "/d/0"]);
    assert!(explained.contains("no copy is on a live server"), "{explained}");
}

#[test]
fn what_cannot_be_predicted_or_explained_is_refused_with_advice() {
    need_fuse!();
    let cluster = Cluster::start();
    let check = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = cluster.try_dfs(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: '{word}' in {said}");
        }
    };
    wait_until("the master is warm", || cluster.dfs_json(["status"])["phase"] == "serving");
    check(&["whatif", "kill", "cs-9"], 1, &["cs-9 is no server", "cs-1, cs-2, cs-3"]);
    check(&["whatif", "kill", "cs-1", "cs-7"], 1, &["cs-7"]);
    check(&["whatif", "kill", "everybody"], 2, &["everybody"]);
    check(&["whatif", "kill"], 2, &["SERVER"]);
    check(&["explain", "/nothing"], 1, &["/nothing"]);
    check(&["explain", "/"], 1, &["not a regular file"]);
    cluster.dfs_fed(["put", "-", "/small"], b"few bytes");
    let words = cluster.dfs(["explain", "/small"]);
    assert!(words.contains("inline"), "{words}");
    assert_eq!(cluster.dfs_json(["explain", "/small"])["inline"], true);
}
