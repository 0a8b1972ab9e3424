//! Servers that are emptied on purpose, under writers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tests::{Cluster, Options, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

const FILES: u64 = 40;
const FILE_BYTES: usize = 200_000;
/// A busy machine must not look like a dead server: members that are left out for it are not what is tried here.
const PATIENT: &[&str] = &["--heartbeat-interval", "3s", "--dead-after", "9s"];

fn start(chunkservers: u32, restart: &'static str) -> Cluster {
    let options = Options { chunkservers, restart, timing: PATIENT, ..Options::default() };
    Cluster::start_with(options)
}

fn write_files(cluster: &Cluster, name: &str, count: u64) {
    for n in 0..count {
        write_synced(&cluster.mount().join(format!("{name}{n}")), &pattern(FILE_BYTES, n));
    }
}

fn check_files(cluster: &Cluster, name: &str, count: u64) {
    for n in 0..count {
        check_content(&cluster.mount().join(format!("{name}{n}")), &pattern(FILE_BYTES, n));
    }
}

/// Members of the chunks of a file.
fn members(cluster: &Cluster, path: &str) -> Vec<BTreeSet<String>> {
    let located = cluster.dfs_json(["locate", path]);
    let chunks = located["chunks"].as_array().unwrap().iter();
    let servers = chunks.map(|chunk| chunk["servers"].as_array().unwrap().iter());
    servers.map(|list| list.map(|id| id.as_str().unwrap().to_owned()).collect()).collect()
}

/// How many chunks of `name0`, … list `id`; all have three members.
#[track_caller]
fn listed(cluster: &Cluster, id: &str, name: &str, count: u64) -> usize {
    let all = (0..count).flat_map(|n| members(cluster, &format!("/{name}{n}")));
    let all: Vec<BTreeSet<String>> = all.collect();
    assert!(all.iter().all(|servers| servers.len() == 3), "{all:?}");
    all.iter().filter(|servers| servers.contains(id)).count()
}

fn server(cluster: &Cluster, id: &str) -> Option<Value> {
    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    servers.iter().find(|server| server["id"] == id).cloned()
}

fn wait_until_serving(cluster: &Cluster) {
    wait_until("the master serves", || cluster.dfs_json(["status"])["phase"] == "serving");
}

#[track_caller]
fn refused(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    let output = cluster.try_dfs(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} said {said:?}, not {word:?}");
    }
}

/// Writes, rewrites and appends while `work` runs; then everything acknowledged must be there.
fn under_writers<T>(cluster: &Cluster, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let (written, log, done) = std::thread::scope(|scope| {
        let new = scope.spawn(|| {
            let mut written: Vec<(PathBuf, u64)> = Vec::new();
            while !over.load(Ordering::Acquire) {
                let seed = written.len() as u64;
                // Ten files, each again and again.
                let path = cluster.mount().join(format!("w{}", seed % 10));
                write_synced(&path, &pattern(FILE_BYTES, seed));
                written.push((path, seed));
            }
            written
        });
        let append = scope.spawn(|| {
            let mut log = Vec::new();
            let mut file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(cluster.mount().join("log"))
                .unwrap();
            while !over.load(Ordering::Acquire) {
                use std::io::Write as _;
                let record = pattern(5_000, log.len() as u64);
                file.write_all(&record).unwrap();
                file.sync_all().unwrap();
                log.extend(record);
            }
            log
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Release);
        (new.join().unwrap(), append.join().unwrap(), done)
    });
    let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(!written.is_empty() && !log.is_empty(), "nobody wrote");
    for (path, seed) in written.iter().rev().take(10) {
        check_content(path, &pattern(FILE_BYTES, *seed));
    }
    check_content(&cluster.mount().join("log"), &log);
    done
}

/// Configurations that the master activated with fewer than three members.
fn thin_configurations(cluster: &Cluster) -> Vec<String> {
    let log = std::fs::read_to_string(cluster.dir().join("log/master.log")).unwrap();
    let mut activated =
        log.lines().filter(|line| line.contains("configuration activated")).peekable();
    assert!(activated.peek().is_some(), "the log tells of configurations");
    activated.filter(|line| line.matches("cs-").count() < 3).map(str::to_owned).collect()
}

#[test]
fn a_drained_server_gives_its_copies_away_under_writers_and_undrain_ends_it() {
    need_fuse!();
    let cluster = start(5, "never");
    write_files(&cluster, "f", FILES);
    wait_until_serving(&cluster);
    let before = listed(&cluster, "cs-1", "f", FILES);
    assert!(10 <= before, "cs-1 has {before} of {FILES}");
    let drained = under_writers(&cluster, || cluster.dfs_json(["drain", "cs-1"]));
    assert_eq!(
        (&drained["changed"], &drained["chunksLeft"]),
        (&true.into(), &0.into()),
        "{drained}"
    );
    assert_eq!(listed(&cluster, "cs-1", "f", FILES), 0);
    assert_eq!(thin_configurations(&cluster), [""; 0], "a copy was missing meanwhile");
    // It gets nothing new, and what it had goes.
    write_files(&cluster, "g", FILES);
    assert_eq!(listed(&cluster, "cs-1", "g", FILES), 0);
    let row = server(&cluster, "cs-1").unwrap();
    assert_eq!((&row["state"], &row["overlays"][0]["kind"]), (&"alive".into(), &"draining".into()));
    wait_until("its replicas are gone", || server(&cluster, "cs-1").unwrap()["chunks"] == 0);
    assert_eq!(cluster.dfs_json(["drain", "cs-1"])["changed"], false);
    check_files(&cluster, "f", FILES);
    check_files(&cluster, "g", FILES);
    assert!(cluster.dfs(["fsck"]).contains("clean"));

    let ended = cluster.dfs_json(["undrain", "cs-1"]);
    assert_eq!((&ended["changed"], &ended["draining"]), (&true.into(), &false.into()), "{ended}");
    assert_eq!(cluster.dfs_json(["undrain", "cs-1"])["changed"], false);
    write_files(&cluster, "h", FILES);
    assert_ne!(listed(&cluster, "cs-1", "h", FILES), 0);
    let events = cluster.dfs(["events", "-n", "0"]);
    assert!(events.contains("draining by ") && events.contains("no longer draining"), "{events}");
}

#[test]
fn copies_that_a_drain_leaves_behind_go_also_if_their_chunks_are_freed_meanwhile() {
    need_fuse!();
    let cluster = start(5, "never");
    write_files(&cluster, "f", FILES);
    wait_until_serving(&cluster);
    assert_ne!(cluster.dfs_json(["drain", "cs-1", "--no-wait"])["chunksLeft"], 0);
    // Some before their copies moved, some in the middle, some just after.
    for n in 0..FILES {
        std::fs::File::create(cluster.mount().join(format!("f{n}"))).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    for id in ["cs-1", "cs-2", "cs-3", "cs-4", "cs-5"] {
        wait_until(&format!("{id} holds nothing"), || server(&cluster, id).unwrap()["chunks"] == 0);
    }
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_drain_goes_on_after_the_master_was_killed() {
    need_fuse!();
    let cluster = start(4, "on-failure");
    write_files(&cluster, "f", FILES);
    wait_until_serving(&cluster);
    let begun = cluster.dfs_json(["drain", "cs-2", "--no-wait"]);
    assert_eq!((&begun["changed"], &begun["draining"]), (&true.into(), &true.into()), "{begun}");
    assert_ne!(begun["chunksLeft"], 0, "{begun}");
    cluster.kill("master");
    wait_until("the master is back", || cluster.try_dfs(["status"]).status.success());
    let drained = cluster.dfs_json(["drain", "cs-2"]);
    assert_eq!(
        (&drained["changed"], &drained["chunksLeft"]),
        (&false.into(), &0.into()),
        "{drained}"
    );
    assert_eq!(listed(&cluster, "cs-2", "f", FILES), 0);
    check_files(&cluster, "f", FILES);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_drain_is_refused_with_the_arithmetic() {
    let cluster = start(4, "never");
    refused(&cluster, &["drain", "cs-9"], &["unknown server cs-9", "cs-1, cs-2, cs-3, cs-4"]);
    refused(&cluster, &["undrain", "cs-9"], &["unknown server cs-9"]);
    wait_until_serving(&cluster);
    assert_eq!(cluster.dfs_json(["drain", "cs-1"])["chunksLeft"], 0);
    let words = ["3 copies", "2 would be left (cs-2, cs-4)", "cs-1 is draining", "dfs status"];
    refused(&cluster, &["drain", "cs-3"], &words);
    cluster.dfs(["undrain", "cs-1"]);
    cluster.dfs(["failover", "cs-4", "--no-wait"]);
    refused(&cluster, &["drain", "cs-3"], &["2 would be left (cs-1, cs-2)", "cs-4 is suspended"]);
    assert_eq!(server(&cluster, "cs-3").unwrap()["overlays"].as_array().unwrap().len(), 0);
}

#[test]
fn a_drain_is_refused_if_the_others_have_no_room() {
    let cluster = Cluster::start_with(Options {
        chunkservers: 4,
        capacity: Some("64MiB"),
        ..Options::default()
    });
    let source = cluster.scratch().join("source");
    std::fs::write(&source, pattern(2 << 20, 7)).unwrap();
    // Of 60 MiB each server has 46 then, wherever they are.
    for n in 0..31 {
        cluster.dfs(["put", source.to_str().unwrap(), &format!("/f{n}")]);
    }
    wait_until_serving(&cluster);
    wait_until("the servers have told what they have", || {
        let status = cluster.dfs_json(["status"]);
        let servers = status["servers"].as_array().unwrap().iter();
        servers.map(|server| server["chunks"].as_u64().unwrap()).sum::<u64>() == 3 * 31
    });
    refused(&cluster, &["drain", "cs-1"], &["it holds ", "have room for ", "cs-2, cs-3, cs-4"]);
}

/// A chunkserver started by hand; what it says goes to `log`.
struct ByHand {
    child: Child,
    log: PathBuf,
}

impl ByHand {
    fn start(cluster: &Cluster, id: &str, data: &Path) -> Self {
        Self::start_with(cluster, id, data, "20GiB")
    }

    fn start_with(cluster: &Cluster, id: &str, data: &Path, capacity: &str) -> Self {
        let log = cluster.scratch().join(format!("{}.log", data.file_name().unwrap().display()));
        let file = std::fs::File::create(&log).unwrap();
        let arguments = ["chunkserver", "--capacity", capacity, "--id", id, "--data"];
        let mut command = cluster.command(arguments);
        command.arg(data).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // Gone already only if the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_decommissioned_server_is_listed_by_no_chunk_and_its_disk_never_serves_again() {
    need_fuse!();
    let cluster = start(5, "never");
    write_files(&cluster, "f", FILES);
    wait_until_serving(&cluster);
    assert_ne!(listed(&cluster, "cs-3", "f", FILES), 0);
    let report = under_writers(&cluster, || cluster.dfs_json(["decommission", "cs-3"]));
    assert_eq!((&report["server"], &report["changed"]), (&"cs-3".into(), &true.into()), "{report}");
    assert_eq!(listed(&cluster, "cs-3", "f", FILES), 0);
    assert_eq!(thin_configurations(&cluster), [""; 0], "a copy was missing meanwhile");
    assert_eq!(server(&cluster, "cs-3"), None);
    assert_eq!(cluster.dfs_json(["decommission", "cs-3"])["changed"], false);
    for command in ["drain", "undrain", "failover", "recover"] {
        refused(&cluster, &[command, "cs-3"], &["cs-3 was decommissioned"]);
    }
    let log = cluster.dir().join("log/cs-3.log");
    let told = |log: &Path| std::fs::read_to_string(log).unwrap().contains("was decommissioned by");
    wait_until("the server is told", || told(&log));

    // Not with another start, either, and a new disk under its name is a new server.
    cluster.kill("cs-3");
    let old = ByHand::start(&cluster, "cs-3", &cluster.dir().join("data/cs-3"));
    wait_until("it is told again", || old.said().contains("was decommissioned by"));
    assert_eq!(server(&cluster, "cs-3"), None);
    drop(old);
    let new = ByHand::start(&cluster, "cs-3", &cluster.scratch().join("new"));
    wait_until("the new one is alive", || {
        server(&cluster, "cs-3").is_some_and(|row| row["state"] == "alive")
    });
    write_files(&cluster, "g", FILES);
    assert_ne!(listed(&cluster, "cs-3", "g", FILES), 0);
    check_files(&cluster, "f", FILES);
    check_files(&cluster, "g", FILES);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    drop(new);
}

#[test]
fn a_dead_server_is_decommissioned_once_its_copies_are_elsewhere_and_that_outlives_the_master() {
    need_fuse!();
    let options = Options { chunkservers: 4, restart: "on-failure", ..Options::default() };
    let cluster = Cluster::start_with(options);
    write_files(&cluster, "f", FILES);
    // Its supervisor starts a killed one again: this one is silent.
    tests::signal(cluster.pid("cs-4").unwrap(), rustix::process::Signal::STOP);
    wait_until("it is dead", || cluster.server_state("cs-4").as_deref() == Some("dead"));
    assert_eq!(cluster.dfs_json(["decommission", "cs-4"])["changed"], true);
    assert_eq!(listed(&cluster, "cs-4", "f", FILES), 0);
    cluster.kill("master");
    wait_until("the master is back", || cluster.try_dfs(["status"]).status.success());
    tests::signal(cluster.pid("cs-4").unwrap(), rustix::process::Signal::CONT);
    wait_until_serving(&cluster);
    let log = cluster.dir().join("log/cs-4.log");
    wait_until("the server is told", || {
        std::fs::read_to_string(&log).unwrap().contains("was decommissioned by")
    });
    assert_eq!(server(&cluster, "cs-4"), None);
    wait_until("the others are back", || {
        let status = cluster.dfs_json(["status"]);
        status["servers"].as_array().unwrap().iter().all(|server| server["state"] == "alive")
    });
    let words = ["decommission cs-3", "3 copies", "2 would be left (cs-1, cs-2)"];
    refused(&cluster, &["decommission", "cs-3"], &words);
    check_files(&cluster, "f", FILES);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_dead_server_with_a_last_copy_is_not_decommissioned() {
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let source = cluster.scratch().join("source");
    std::fs::write(&source, pattern(FILE_BYTES, 7)).unwrap();
    cluster.dfs(["put", source.to_str().unwrap(), "/f"]);
    let second = ByHand::start(&cluster, "cs-2", &cluster.scratch().join("second"));
    wait_until("it is alive", || cluster.server_state("cs-2").as_deref() == Some("alive"));
    wait_until_serving(&cluster);
    refused(&cluster, &["decommission", "cs-9"], &["unknown server cs-9", "cs-1, cs-2"]);
    cluster.kill("cs-1");
    wait_until("it is dead", || cluster.server_state("cs-1").as_deref() == Some("dead"));
    let located = cluster.dfs_json(["locate", "/f"]);
    let chunk = format!("1 chunk ({})", located["chunks"][0]["id"]);
    for command in ["decommission", "drain"] {
        let words = [command, "cs-1 is not alive", &chunk, "bring it back"];
        refused(&cluster, &[command, "cs-1"], &words);
    }
    assert!(server(&cluster, "cs-1").is_some());
    // Alive, it gives its only copy away.
    let first = ByHand::start(&cluster, "cs-1", &cluster.dir().join("data/cs-1"));
    wait_until("it is back", || cluster.server_state("cs-1").as_deref() == Some("alive"));
    assert_eq!(cluster.dfs_json(["decommission", "cs-1"])["changed"], true);
    let copy = cluster.scratch().join("copy");
    cluster.dfs(["get", "/f", copy.to_str().unwrap()]);
    check_content(&copy, &pattern(FILE_BYTES, 7));
    drop((first, second));
}

#[test]
fn a_rebalance_gives_a_new_server_its_share_and_ends() {
    const CHUNKS: u64 = 24;
    let cluster = Cluster::start_with(Options {
        chunkservers: 3,
        capacity: Some("128MiB"),
        timing: PATIENT,
        ..Options::default()
    });
    let source = cluster.scratch().join("source");
    std::fs::write(&source, pattern(2 << 20, 7)).unwrap();
    for n in 0..CHUNKS {
        cluster.dfs(["put", source.to_str().unwrap(), &format!("/f{n}")]);
    }
    let new = ByHand::start_with(&cluster, "cs-4", &cluster.scratch().join("new"), "128MiB");
    wait_until("it is alive", || cluster.server_state("cs-4").as_deref() == Some("alive"));
    wait_until_serving(&cluster);
    let shares = |of: &Value| -> Vec<u64> {
        let servers = of["servers"].as_array().unwrap().iter();
        servers.map(|server| server["permille"].as_u64().unwrap()).collect()
    };
    let dry = cluster.dfs_json(["rebalance", "--dry-run"]);
    assert_eq!((&dry["running"], &dry["changed"]), (&false.into(), &false.into()), "{dry}");
    assert!(0 < dry["unevenBytes"].as_u64().unwrap() && shares(&dry)[3] == 0, "{dry}");
    assert_eq!(listed(&cluster, "cs-4", "f", CHUNKS), 0, "a dry run moves nothing");
    assert_eq!(cluster.dfs_json(["rebalance", "--stop"])["changed"], false);

    let done = cluster.dfs_json(["rebalance"]);
    assert_eq!((&done["changed"], &done["running"]), (&true.into(), &false.into()), "{done}");
    let after = shares(&done);
    let spread = after.iter().max().unwrap() - after.iter().min().unwrap();
    assert!(after.len() == 4 && spread <= 30, "{done}");
    let moved = listed(&cluster, "cs-4", "f", CHUNKS) as u64;
    assert_eq!(done["movedChunks"], moved, "{done}");
    assert!(moved <= 18, "{moved} moved, its share are 18 of 72");
    // Again: there is nothing to do.
    let again = cluster.dfs_json(["rebalance"]);
    assert_eq!((&again["running"], &again["movedChunks"]), (&false.into(), &0.into()), "{again}");
    let copy = cluster.scratch().join("copy");
    for n in 0..CHUNKS {
        let _absent = std::fs::remove_file(&copy);
        cluster.dfs(["get", &format!("/f{n}"), copy.to_str().unwrap()]);
        check_content(&copy, &pattern(2 << 20, 7));
    }
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    drop(new);
}
