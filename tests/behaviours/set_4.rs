//! Set 4: workers whose progress is known at every snapshot, and a coordinator that goes on when one fails.

use std::cell::Cell;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dfs_core::command::{Change, Command, Outcome};
use dfs_core::ids::{Epoch, FsId};
use dfs_core::job::{JobId, Progress};
use dfs_core::meta::{self, Key, MemStore, MetaStore, Record, jobs};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Cluster, Options, Random, dfs_program, signal, wait_until};

use crate::memory::Allocated;
use crate::{need_fuse, refusal};

fn one_server(restart: &'static str) -> Cluster {
    Cluster::start_with(Options { chunkservers: 1, restart, ..Options::default() })
}

/// The one number that `dfs job …` prints. Waits for a master that was just killed.
fn number(cluster: &Cluster, arguments: &[&str]) -> u64 {
    let said = cluster.dfs([&["job"], arguments, &["--server-wait", "60s"]].concat());
    said.trim().parse().unwrap_or_else(|_| panic!("no number: {said}"))
}

fn set(cluster: &Cluster, job: &str, worker: &str, state: &str) {
    cluster.dfs(["job", "set-state", job, worker, state, "--server-wait", "60s"]);
}

fn create(cluster: &Cluster, workers: &str) -> String {
    cluster.dfs_json(["job", "create", "--workers", workers])["id"].as_u64().unwrap().to_string()
}

#[test]
fn case_4_1_a_snapshot_keeps_what_was_set() {
    need_fuse!();
    let cluster = one_server("never");
    let job = &create(&cluster, "3");
    set(&cluster, job, "1", "4");
    assert_eq!(number(&cluster, &["snapshot", job]), 0);
    set(&cluster, job, "1", "7");
    assert_eq!(number(&cluster, &["fetch-state", job, "1", "0"]), 4);
    check_others(&cluster, job);
}

/// Workers 0 and 2 were at 0 at snapshot 0.
fn check_others(cluster: &Cluster, job: &str) {
    assert_eq!(number(cluster, &["fetch-state", job, "0", "0"]), 0);
    assert_eq!(number(cluster, &["fetch-state", job, "2", "0"]), 0);
}

#[test]
fn case_4_2_a_worker_that_was_never_set_is_at_0() {
    need_fuse!();
    let cluster = one_server("never");
    let job = &create(&cluster, "3");
    set(&cluster, job, "1", "4");
    number(&cluster, &["snapshot", job]);
    set(&cluster, job, "1", "7");
    // Set after the snapshot: it is at 0 there all the same.
    set(&cluster, job, "2", "9");
    check_others(&cluster, job);
    assert_eq!(number(&cluster, &["fetch-state", job, "2"]), 9);
}

#[test]
fn case_4_3_snapshots_are_numbered_from_0_also_without_a_change() {
    need_fuse!();
    let cluster = one_server("never");
    let job = &create(&cluster, "3");
    assert_eq!([(); 3].map(|()| number(&cluster, &["snapshot", job])), [0, 1, 2]);
    // Each job has its own.
    let other = &create(&cluster, "1");
    assert_eq!(number(&cluster, &["snapshot", other]), 0);
    assert_eq!(cluster.dfs_json(["job", "snapshot", job]), json!({"snapshot": 3}));
}

#[test]
fn case_4_4_the_last_state_before_a_snapshot_wins_and_older_ones_stay() {
    need_fuse!();
    let cluster = one_server("never");
    let job = &create(&cluster, "2");
    set(&cluster, job, "0", "1");
    number(&cluster, &["snapshot", job]);
    set(&cluster, job, "0", "5");
    set(&cluster, job, "0", "3");
    number(&cluster, &["snapshot", job]);
    set(&cluster, job, "0", "8");
    let at = |snapshot| number(&cluster, &["fetch-state", job, "0", snapshot]);
    assert_eq!(["0", "1"].map(at), [1, 3]);
}

#[test]
fn case_4_5_what_is_out_of_range_is_refused_and_changes_nothing() {
    need_fuse!();
    let cluster = one_server("never");
    let job = &create(&cluster, "3");
    set(&cluster, job, "1", "4");
    number(&cluster, &["snapshot", job]);
    let before = cluster.dfs_json(["job", "show", job]);
    for (arguments, code, expected) in [
        (&["set-state", job, "3", "1"][..], 1, "worker 3: the job has 3 workers"),
        (&["fetch-state", job, "3", "0"], 1, "worker 3: the job has 3 workers"),
        (&["fetch-state", job, "0", "1"], 1, "snapshot 1: 1 was taken"),
        (&["fetch-state", job, "0", "-1"], 2, "-1"),
        (&["set-state", job, "-1", "1"], 2, "-1"),
        (&["set-state", job, "0", "1.5"], 2, "1.5"),
        (&["snapshot", "99"], 1, "unknown job 99"),
        (&["snapshot", "x"], 2, "'x'"),
        (&["create", "--workers", "0"], 2, "from 1 to 1000000"),
        (&["create", "--workers", "1000001"], 2, "from 1 to 1000000"),
    ] {
        let said = refusal(&cluster, &[&["job"], arguments].concat(), code);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(cluster.dfs_json(["job", "show", job]), before);
    assert_eq!(cluster.dfs_json(["jobs"])["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn case_4_6_a_million_snapshots_cost_what_their_changes_cost() {
    const WORKERS: u32 = 10_000;
    const SNAPSHOTS: u64 = 1_000_000;
    const CHANGES: u64 = 5;
    // Without a change a snapshot costs nothing, however many workers there are.
    let mut idle = Progress::new(WORKERS).unwrap();
    let before = Allocated::now();
    (0..SNAPSHOTS).for_each(|n| assert_eq!(idle.snapshot(), n));
    assert_eq!(before.more(), 0);

    let before = Allocated::now();
    let mut progress = Progress::new(WORKERS).unwrap();
    let empty = before.more();
    let mut random = Random::new(4, 6);
    let mut samples = Vec::new();
    let mut last = vec![0_u64; WORKERS as usize];
    let before = Allocated::now();
    for snapshot in 0..SNAPSHOTS {
        for change in 0..CHANGES {
            // Five different workers, each to a state it has not.
            let lane = WORKERS / 5;
            let worker = u32::try_from(random.below(u64::from(lane))).unwrap() * 5;
            let worker = worker + u32::try_from(change).unwrap();
            let state = &mut last[worker as usize];
            *state += 1 + random.below(9);
            progress.set_state(worker, *state).unwrap();
        }
        assert_eq!(progress.snapshot(), snapshot);
        if snapshot % 10_000 == 9 {
            let worker = u32::try_from(random.below(u64::from(WORKERS))).unwrap();
            samples.push((worker, snapshot, last[worker as usize]));
        }
    }
    let bytes = before.more();
    for (worker, snapshot, expected) in samples {
        assert_eq!(progress.fetch_state(worker, snapshot), Ok(expected), "{worker} {snapshot}");
    }
    let changes = SNAPSHOTS * CHANGES;
    eprintln!(
        "{changes} changes of {WORKERS} workers over {SNAPSHOTS} snapshots: {bytes} bytes, {:.1} a change; empty: {empty} bytes",
        bytes as f64 / changes as f64
    );
    // A change is two numbers; lists grow by doubling.
    assert!((16 * changes..32 * changes + 1_000_000).contains(&bytes), "{bytes}");
}

/// Counts what is read of it.
#[derive(Default)]
struct Counting {
    store: MemStore,
    read: Cell<usize>,
}

impl MetaStore for Counting {
    fn get(&self, key: &Key) -> Option<Record> {
        self.read.set(self.read.get() + 1);
        self.store.get(key)
    }
    fn put(&mut self, key: Key, record: Record) {
        self.store.put(key, record);
    }
    fn delete(&mut self, key: &Key) {
        self.store.delete(key);
    }
    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, Record)> {
        let found = self.store.range(from, below, limit);
        self.read.set(self.read.get() + found.len());
        found
    }
}

/// What `dfs job fetch-state` has the master do: the job and one change are read, found by their keys in an ordered store.
/// How often the library looks at a change is counted beside it, in `dfs-core/src/job.rs`.
#[test]
fn case_4_6_a_fetch_reads_one_change_however_many_there_are() {
    for changes in [1, 20_000] {
        let mut store = Counting::default();
        let mut run = |change| {
            let results = Results::default();
            let command = Command { at: WallTime(10), id: None, results, change };
            meta::apply(&mut store, &command)
        };
        run(Change::Start {
            epoch: Epoch(1),
            nonce: 5,
            fs: FsId(3),
            replication: 3,
            min_replicas: 2,
        });
        let (name, by) = ("copy".to_owned(), "ada".to_owned());
        let made = run(Change::CreateJob { name, workers: 2, by, request: 1 });
        assert_eq!(made, Outcome::Number(1));
        for n in 0..changes {
            run(Change::SetJobStates { job: JobId(1), states: vec![(0, n + 7), (1, 2 * n + 7)] });
            let taken = run(Change::SnapshotJob { job: JobId(1), request: u128::from(n) + 2 });
            assert_eq!(taken, Outcome::Number(n));
        }
        for snapshot in [0, changes / 2, changes - 1] {
            let before = store.read.get();
            let state = jobs::fetch_state(&store, JobId(1), 1, Some(snapshot));
            assert_eq!(state, Ok(2 * snapshot + 7));
            assert_eq!(store.read.get() - before, 2, "{changes} changes, snapshot {snapshot}");
        }
    }
}

#[test]
fn case_4_7_a_master_killed_between_any_two_calls_answers_the_same_and_goes_on_counting() {
    need_fuse!();
    let cluster = one_server("on-failure");
    let kill = || {
        let pid = cluster.pid("master").unwrap();
        cluster.kill("master");
        wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
    };
    let job = &create(&cluster, "3");
    for snapshot in 0..6_u64 {
        kill();
        set(&cluster, job, "1", &(10 + snapshot).to_string());
        kill();
        assert_eq!(number(&cluster, &["snapshot", job]), snapshot);
    }
    let fetched = || {
        let at =
            |snapshot: u64| number(&cluster, &["fetch-state", job, "1", &snapshot.to_string()]);
        (0..6).map(at).collect::<Vec<_>>()
    };
    let before = fetched();
    assert_eq!(before, [10, 11, 12, 13, 14, 15]);
    kill();
    assert_eq!(fetched(), before);
    kill();
    assert_eq!(number(&cluster, &["snapshot", job]), 6);
}

#[test]
fn case_4_7_calls_in_whose_middle_the_master_is_killed_are_answered_once() {
    need_fuse!();
    const KILLS: usize = 12;
    let cluster = one_server("on-failure");
    let job = &create(&cluster, "3");
    let stop = AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        let (cluster, stop) = (&cluster, &stop);
        let taker = scope.spawn(move || {
            let mut taken = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                taken.push(number(cluster, &["snapshot", job]));
            }
            taken
        });
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(700));
            let pid = cluster.pid("master").unwrap();
            cluster.kill("master");
            wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
        }
        stop.store(true, Ordering::Relaxed);
        taker.join().unwrap()
    });
    // None was taken for nobody.
    assert_eq!(taken, (0..taken.len() as u64).collect::<Vec<_>>());
}

/// A chunkserver beside those that the cluster started, with a disk of its own; killed with the test.
struct Added(Child);

impl Added {
    fn start(cluster: &Cluster, id: &str, data: &Path) -> Self {
        std::fs::create_dir_all(data).unwrap();
        let log = std::fs::File::create(cluster.scratch().join(format!("{id}.log"))).unwrap();
        let mut command = Process::new(dfs_program());
        command.args(["chunkserver", "--id", id, "--capacity", "20GiB", "--data"]).arg(data);
        command.args(["--master", &cluster.master_address(), "--key-file"]);
        command.arg(cluster.dir().join("cluster.key"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

fn show(cluster: &Cluster, job: &str) -> Value {
    cluster.dfs_json(["job", "show", job, "--server-wait", "60s"])
}

fn state_of(job: &Value, server: &str) -> u64 {
    let mut workers = job["states"].as_array().unwrap().iter();
    let worker = workers.find(|worker| worker["server"] == server);
    worker.map_or(0, |worker| worker["state"].as_u64().unwrap())
}

/// A file with `chunks` chunks of 4 KiB.
fn many_chunks(cluster: &Cluster, chunks: usize) -> Vec<u8> {
    cluster.dfs(["mkdir", "--chunk-size", "4KiB", "/small"]);
    let mut random = Random::new(48, 0);
    let content: Vec<u8> = (0..chunks * 4096).map(|_| random.byte()).collect();
    let source = cluster.scratch().join("source");
    std::fs::write(&source, &content).unwrap();
    cluster.dfs(["put", source.to_str().unwrap(), "/small/f"]);
    content
}

#[test]
fn case_4_8_a_drain_of_1000_subtasks_ends_although_one_of_ten_workers_is_killed_at_40_percent() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 11, ..Options::default() });
    // Every chunk is on three of eleven servers.
    let content = many_chunks(&cluster, 3_667);
    wait_until("all is safe", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["safe"] == chunks["total"] && chunks["total"] == 3_667
    });
    let located = cluster.dfs_json(["locate", "/small/f"]);
    let listed = |located: &Value, server: &str| {
        let chunks = located["chunks"].as_array().unwrap().iter();
        let on = |chunk: &&Value| chunk["servers"].as_array().unwrap().contains(&json!(server));
        chunks.filter(on).count() as u64
    };
    let subtasks = listed(&located, "cs-1");
    assert!((900..1_100).contains(&subtasks), "{subtasks}");
    cluster.dfs(["drain", "cs-1", "--no-wait"]);
    let jobs = cluster.dfs_json(["jobs"]);
    let job = &jobs["jobs"][0]["id"].to_string();
    wait_until("two fifths are done", || {
        subtasks * 2 <= show(&cluster, job)["done"].as_u64().unwrap() * 5
    });
    let workers = show(&cluster, job);
    let killed =
        (2..=11).map(|n| format!("cs-{n}")).max_by_key(|id| state_of(&workers, id)).unwrap();
    let counted = state_of(&workers, &killed);
    assert!(0 < counted, "{workers}");
    cluster.kill(&killed);
    wait_until("it is done", || show(&cluster, job)["phase"] == "done");
    let end = show(&cluster, job);
    // Each chunk was counted once, by one worker; what the dead one had done is not done again by this job.
    assert_eq!((&end["done"], &end["total"]), (&subtasks.into(), &subtasks.into()), "{end}");
    assert!(counted <= state_of(&end, &killed), "{end}");
    let sum: u64 =
        end["states"].as_array().unwrap().iter().map(|w| w["state"].as_u64().unwrap()).sum();
    assert_eq!(sum, subtasks);
    wait_until("all is safe on the other nine", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["safe"] == chunks["total"]
    });
    let located = cluster.dfs_json(["locate", "/small/f"]);
    assert_eq!(["cs-1", &killed].map(|server| listed(&located, server)), [0, 0]);
    let copy = cluster.scratch().join("copy");
    cluster.dfs(["get", "/small/f", copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == content, "the file has changed");
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn case_4_9_a_worker_without_progress_is_named() {
    need_fuse!();
    const CHUNKS: u64 = 50;
    let timing = &["--scrub-period", "0"];
    let cluster = Cluster::start_with(Options { timing, ..Options::default() });
    many_chunks(&cluster, 50);
    let frozen = cluster.pid("cs-3").unwrap();
    signal(frozen, Signal::STOP);
    let job = &cluster.dfs_json(["scrub", "--now", "--no-wait"])["job"].to_string();
    wait_until("the others have done theirs, and cs-3 is named", || {
        let job = show(&cluster, job);
        let done = ["cs-1", "cs-2"].map(|server| state_of(&job, server));
        done == [CHUNKS, CHUNKS] && job["stalled"] == json!(["cs-3"])
    });
    let stalled = show(&cluster, job);
    let mut workers = stalled["states"].as_array().unwrap().iter();
    let row = workers.find(|worker| worker["server"] == "cs-3").unwrap();
    assert_eq!((&row["stalled"], &row["state"]), (&true.into(), &0.into()));
    assert!(cluster.dfs(["jobs"]).contains("stalled: cs-3"));
    assert_eq!(stalled["phase"], "running");
    assert_eq!(stalled["total"], 3 * CHUNKS);
    // Nobody can read what is on its disk in its place. Once the copies are made elsewhere, compared as they were made,
    // those of cs-3 are no subtasks any more.
    let _added = Added::start(&cluster, "cs-4", &cluster.scratch().join("cs-4"));
    wait_until("it is done", || show(&cluster, job)["phase"] == "done");
    let end = show(&cluster, job);
    assert_eq!((&end["stalled"], &end["done"]), (&json!([]), &json!(2 * CHUNKS)), "{end}");
    assert_eq!(end["total"], 2 * CHUNKS, "{end}");
    signal(frozen, Signal::CONT);
}

#[test]
fn case_4_9_the_subtasks_of_a_worker_that_went_silent_go_to_others() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 6, ..Options::default() });
    many_chunks(&cluster, 1_600);
    wait_until("all is safe", || cluster.dfs_json(["status"])["chunks"]["safe"] == 1_600);
    let on_cs_1 = |chunk: &&Value| chunk["servers"].as_array().unwrap().contains(&json!("cs-1"));
    let located = cluster.dfs_json(["locate", "/small/f"])["chunks"].as_array().unwrap().clone();
    let subtasks = located.iter().filter(on_cs_1).count() as u64;
    // Refused as long as the master warms up.
    wait_until("the drain begins", || {
        cluster.try_dfs(["drain", "cs-1", "--no-wait"]).status.success()
    });
    let job = &cluster.dfs_json(["jobs"])["jobs"][0]["id"].to_string();
    wait_until("a fifth is done", || subtasks <= show(&cluster, job)["done"].as_u64().unwrap() * 5);
    let workers = show(&cluster, job);
    let servers = || (2..=6).map(|n| format!("cs-{n}"));
    let frozen = servers().max_by_key(|server| state_of(&workers, server)).unwrap();
    let pid = cluster.pid(&frozen).unwrap();
    signal(pid, Signal::STOP);
    // What was on its way to it cannot count from now on.
    wait_until("it is dead", || {
        let status = cluster.dfs_json(["status"]);
        let mut servers = status["servers"].as_array().unwrap().iter();
        servers.find(|server| server["id"] == *frozen).unwrap()["state"] == "dead"
    });
    let at_death = show(&cluster, job);
    let counted = state_of(&at_death, &frozen);
    let others = |job: &Value| {
        servers()
            .filter(|server| *server != frozen)
            .map(|server| state_of(job, &server))
            .sum::<u64>()
    };
    let (before, left) = (others(&at_death), subtasks - at_death["done"].as_u64().unwrap());
    assert!(0 < counted && 0 < left, "{at_death}");
    wait_until("it is done", || show(&cluster, job)["phase"] == "done");
    let end = show(&cluster, job);
    assert_eq!((&end["done"], &end["total"]), (&subtasks.into(), &subtasks.into()), "{end}");
    assert_eq!((state_of(&end, &frozen), others(&end)), (counted, before + left), "{end}");
    signal(pid, Signal::CONT);
}
