//! Jobs: states of workers as of their snapshots, over restarts of the master.

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Cluster, Options, signal, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

/// Waits for its answer: a master that was just killed is away for a moment.
fn number(cluster: &Cluster, arguments: &[&str]) -> u64 {
    let wait = ["--server-wait", "60s"];
    let said = cluster.dfs([&["job"], arguments, &wait].concat());
    said.trim().parse().unwrap_or_else(|_| panic!("no number: {said}"))
}

fn refusal(cluster: &Cluster, arguments: &[&str], code: i32) -> String {
    let output = cluster.try_dfs([&["job"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty() && said.lines().count() == 1, "{said}");
    said
}

fn one_server(restart: &'static str) -> Cluster {
    Cluster::start_with(Options { chunkservers: 1, restart, ..Options::default() })
}

#[test]
fn states_are_as_of_their_snapshot_and_what_means_nothing_is_refused() {
    let cluster = one_server("never");
    assert_eq!(cluster.dfs(["jobs"]), "no jobs\n");
    let job = cluster.dfs_json(["job", "create", "--workers", "3"])["id"].as_u64().unwrap();
    let job = job.to_string();
    let job = job.as_str();
    cluster.dfs(["job", "set-state", job, "1", "4"]);
    assert_eq!(number(&cluster, &["snapshot", job]), 0);
    cluster.dfs(["job", "set-state", job, "1", "7"]);
    for (worker, state) in [("1", 4), ("0", 0), ("2", 0)] {
        assert_eq!(number(&cluster, &["fetch-state", job, worker, "0"]), state, "{worker}");
    }
    assert_eq!(number(&cluster, &["fetch-state", job, "1"]), 7);
    cluster.dfs(["job", "set-state", job, "1", "9"]);
    assert_eq!([1, 2, 3].map(|_| number(&cluster, &["snapshot", job])), [1, 2, 3]);
    assert_eq!(number(&cluster, &["fetch-state", job, "1", "0"]), 4);
    assert_eq!(number(&cluster, &["fetch-state", job, "1", "3"]), 9);
    let history = cluster.dfs_json(["job", "history", job, "1"]);
    let changes: Vec<(u64, u64)> = history["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["fromSnapshot"].as_u64().unwrap(), change["state"].as_u64().unwrap()))
        .collect();
    assert_eq!(changes, [(0, 4), (1, 9)]);

    let before = cluster.dfs_json(["job", "show", job]);
    assert!(
        refusal(&cluster, &["set-state", job, "3", "1"], 1).contains("worker 3: the job has 3")
    );
    assert!(refusal(&cluster, &["fetch-state", job, "0", "4"], 1).contains("snapshot 4: 4 were"));
    assert!(refusal(&cluster, &["snapshot", "77"], 1).contains("unknown job 77"));
    assert!(refusal(&cluster, &["create", "--workers", "0"], 2).contains("from 1 to 1000000"));
    assert!(refusal(&cluster, &["set-state", job, "0", "-1"], 2).contains("-1"));
    assert!(refusal(&cluster, &["set-state", job, "0", "many"], 2).contains("many"));
    assert!(refusal(&cluster, &["rm", job], 1).contains("cancel it first"));
    assert_eq!(cluster.dfs_json(["job", "show", job]), before);

    cluster.dfs(["job", "pause", job]);
    cluster.dfs(["job", "resume", job]);
    cluster.dfs(["job", "cancel", job]);
    assert!(refusal(&cluster, &["snapshot", job], 1).contains("is cancelled"));
    let listed = cluster.dfs_json(["jobs"]);
    assert_eq!(listed["jobs"][0]["phase"], "cancelled");
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    cluster.dfs(["job", "rm", job]);
    assert_eq!(cluster.dfs(["jobs"]), "no jobs\n");
}

#[test]
fn a_job_outlives_masters_that_are_killed_between_any_two_calls() {
    let cluster = one_server("on-failure");
    let kill = || {
        let pid = cluster.pid("master").unwrap();
        cluster.kill("master");
        wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
    };
    let job = number(&cluster, &["create", "--workers", "4", "--name", "copy"]).to_string();
    let job = job.as_str();
    for snapshot in 0..6_u64 {
        let state = (10 + snapshot).to_string();
        if snapshot % 2 == 0 {
            kill();
        }
        cluster.dfs(["job", "set-state", job, "2", &state, "--server-wait", "60s"]);
        if snapshot % 3 == 1 {
            kill();
        }
        assert_eq!(number(&cluster, &["snapshot", job]), snapshot);
    }
    kill();
    for snapshot in 0..6_u64 {
        let at = snapshot.to_string();
        assert_eq!(number(&cluster, &["fetch-state", job, "2", &at]), 10 + snapshot);
        assert_eq!(number(&cluster, &["fetch-state", job, "3", &at]), 0);
    }
    assert_eq!(number(&cluster, &["snapshot", job]), 6, "the next number");
    let shown: Value = cluster.dfs_json(["job", "show", job]);
    assert_eq!((&shown["snapshots"], &shown["phase"]), (&7.into(), &"running".into()));
    assert_eq!(shown["states"][2]["sinceSnapshot"], 5);
}

const FILES: u64 = 40;
const FILE_BYTES: usize = 200_000;

/// Files with a chunk that lists `server`.
fn listed(cluster: &Cluster, server: &str) -> u64 {
    let lists = |n: &u64| {
        let located = cluster.dfs_json(["locate", &format!("/f{n}")]);
        located["chunks"][0]["servers"].as_array().unwrap().contains(&json!(server))
    };
    (0..FILES).filter(lists).count() as u64
}

fn show(cluster: &Cluster, id: &str) -> Value {
    cluster.dfs_json(["job", "show", id, "--server-wait", "60s"])
}

/// The open job of this name.
fn open_job(cluster: &Cluster, name: &str) -> Option<String> {
    let jobs = cluster.dfs_json(["jobs"])["jobs"].clone();
    let mut jobs = jobs.as_array().unwrap().iter();
    let is_it = |job: &&Value| job["name"] == name && job["ended"].is_null();
    jobs.find(is_it).map(|job| job["id"].to_string())
}

#[test]
fn drains_and_rebalances_are_jobs_that_stand_still_go_on_and_count_each_move_once() {
    need_fuse!();
    let timing = &["--heartbeat-interval", "3s", "--dead-after", "9s"];
    let options = Options { chunkservers: 6, restart: "on-failure", timing, ..Options::default() };
    let cluster = Cluster::start_with(options);
    for n in 0..FILES {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(FILE_BYTES, n));
    }
    wait_until("the master serves", || cluster.dfs_json(["status"])["phase"] == "serving");
    // While a third of the servers is silent nothing moves: the jobs are there before they do anything.
    let frozen = ["cs-5", "cs-6"].map(|id| cluster.pid(id).unwrap());
    frozen.iter().for_each(|pid| signal(*pid, Signal::STOP));
    wait_until("they are missed", || {
        ["cs-5", "cs-6"].iter().all(|id| cluster.server_state(id).as_deref() != Some("alive"))
    });
    cluster.dfs(["drain", "cs-2", "--no-wait"]);
    let id = open_job(&cluster, "drain cs-2").unwrap();
    cluster.dfs(["job", "cancel", &id]);
    let status = cluster.dfs_json(["status"]);
    let row = status["servers"].as_array().unwrap().iter().find(|row| row["id"] == "cs-2").unwrap();
    assert_eq!(row["overlays"], json!([]), "the wish ended with its job");
    cluster.dfs(["rebalance", "--no-wait"]);
    let even = open_job(&cluster, "rebalance").unwrap();
    assert_eq!(cluster.dfs_json(["rebalance", "--no-wait"])["changed"], false, "one at a time");
    cluster.dfs(["drain", "cs-1", "--no-wait"]);
    let drain = open_job(&cluster, "drain cs-1").unwrap();
    for id in [&even, &drain] {
        cluster.dfs(["job", "pause", id]);
        assert!(refusal(&cluster, &["finish", id], 1).contains("the master's own"));
        assert!(refusal(&cluster, &["set-state", id, "0", "1"], 1).contains("the master's own"));
    }
    frozen.iter().for_each(|pid| signal(*pid, Signal::CONT));
    wait_until("all is safe", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["safe"] == FILES && chunks["total"] == FILES
    });
    let before = listed(&cluster, "cs-1");
    assert!(5 <= before, "{before}");

    let pid = cluster.pid("master").unwrap();
    cluster.kill("master");
    wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
    wait_until("it serves", || {
        cluster.dfs_json(["status", "--server-wait", "60s"])["phase"] == "serving"
    });
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(listed(&cluster, "cs-1"), before, "it is paused");
    assert_eq!([&drain, &even].map(|id| show(&cluster, id)["phase"].clone()), ["paused", "paused"]);
    let waits = cluster.dfs_json(["drain", "cs-1", "--no-wait"]);
    assert_eq!((&waits["changed"], &waits["chunksLeft"]), (&false.into(), &before.into()));

    cluster.dfs(["job", "resume", &drain]);
    wait_until("some have moved", || 0 < show(&cluster, &drain)["done"].as_u64().unwrap());
    cluster.kill("master");
    wait_until("the drain is done", || show(&cluster, &drain)["phase"] == "done");
    let end = show(&cluster, &drain);
    assert_eq!((&end["done"], &end["total"]), (&before.into(), &before.into()), "{end}");
    assert_eq!(listed(&cluster, "cs-1"), 0);
    cluster.dfs(["job", "resume", &even]);
    wait_until("the rebalance is done", || show(&cluster, &even)["phase"] == "done");
    for n in 0..FILES {
        check_content(&cluster.mount().join(format!("f{n}")), &pattern(FILE_BYTES, n));
    }
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}
