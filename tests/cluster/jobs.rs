//! Jobs: states of workers as of their snapshots, over restarts of the master.

use serde_json::Value;
use tests::{Cluster, Options, wait_until};

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
    assert!(refusal(&cluster, &["create", "--workers", "0"], 1).contains("1 to 1000000 workers"));
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
