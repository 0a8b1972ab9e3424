//! Damage that nobody reads: found by the servers themselves, and mended.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use dfs_proto::chunk_file::{BLOCK_BYTES_MAX, DATA_AT, SLOT_A_AT, SLOT_B_AT, SLOT_BYTES, Slot};
use rustix::process::Signal;
use tests::{Cluster, Options, signal, wait_until};

use crate::bad_luck::{files_with, flip, is_of_journal};
use crate::pages::{address, get, value};
use crate::{check_content, need_fuse, pattern, write_synced};

const AT: usize = 1_500_000;

fn is_right(content: &[u8], (path, at): &(PathBuf, u64)) -> bool {
    let mut bytes = [0; 64];
    File::open(path).unwrap().read_exact_at(&mut bytes, *at).unwrap();
    bytes == content[AT..AT + 64]
}

#[test]
fn a_flipped_byte_that_nobody_reads_is_found_within_the_period_and_mended() {
    need_fuse!();
    let timing = &["--scrub-period", "4s"];
    let cluster = Cluster::start_with(Options { timing, ..Options::default() });
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    // What is written is put in place.
    cluster.down();
    cluster.up();
    let metric = |series: &str| value(&get(&address(&cluster, "cs-2"), "/metrics").1, series);
    let since = || metric("dfs_chunkserver_scrubbed_since_timestamp_seconds");
    wait_until("a round has ended", || 0.0 < since());
    let before = since();
    let flipped = flip(&cluster, &["cs-2"], &content, AT);
    assert!(!is_right(&content, &flipped[0]));
    wait_until("the block is mended", || flipped.iter().all(|place| is_right(&content, place)));
    wait_until("an event says so", || !events(&cluster, "mended", "cs-2").is_empty());
    assert_eq!(metric("dfs_chunkserver_repaired_blocks_total"), 1.0);
    wait_until("the round goes on", || before < since());
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    check_content(&cluster.mount().join("f"), &content);
}

/// Causes of the events of one kind about a server.
fn events(cluster: &Cluster, kind: &str, server: &str) -> Vec<String> {
    let text = cluster.dfs(["events", "-n", "0", "-o", "json"]);
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of = events.filter(|event| event["kind"] == kind && event["server"] == server);
    of.map(|event| event["cause"].as_str().unwrap().to_owned()).collect()
}

/// Makes a replica hold another byte, with the checksum of that.
fn diverge(cluster: &Cluster, server: &str, content: &[u8], at: usize) -> (PathBuf, u64) {
    let (path, at) = flip(cluster, &[server], content, at).remove(0);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let slots = [SLOT_A_AT, SLOT_B_AT].into_iter().filter_map(|slot_at| {
        let mut bytes = vec![0; SLOT_BYTES];
        file.read_exact_at(&mut bytes, slot_at).unwrap();
        Slot::decode(&bytes).ok()
    });
    let mut slot = slots.max_by_key(|slot| slot.number).unwrap();
    let block = (at - DATA_AT) / BLOCK_BYTES_MAX;
    let mut bytes = vec![0; usize::try_from(BLOCK_BYTES_MAX).unwrap()];
    file.read_exact_at(&mut bytes, DATA_AT + block * BLOCK_BYTES_MAX).unwrap();
    slot.sums[usize::try_from(block).unwrap()] = crc32c::crc32c(&bytes);
    file.write_all_at(&slot.encode(), Slot::at(slot.number)).unwrap();
    (path, at)
}

#[test]
fn a_replica_that_differs_with_good_checksums_is_found_and_made_equal_to_the_others() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    let place = diverge(&cluster, "cs-2", &content, AT);
    assert!(!is_right(&content, &place));
    cluster.up();
    wait_until("it is made equal", || !events(&cluster, "diverged", "cs-2").is_empty());
    let said = events(&cluster, "diverged", "cs-2").remove(0);
    assert!(said.contains("cs-2 differs from cs-1, cs-3"), "{said}");
    wait_until("all are equal", || {
        let listed = cluster.dfs(["events", "-n", "0"]);
        listed.contains("its replicas are equal again")
    });
    // Copied anew, into another file of that server.
    let piece = &content[AT..AT + 64];
    let data = cluster.dir().join("data/cs-2");
    let places = || files_with(&data, piece).into_iter().filter(|(path, _)| !is_of_journal(path));
    wait_until("the right bytes are there", || 0 < places().count());
    check_content(&cluster.mount().join("f"), &content);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    let page = get(&address(&cluster, "master"), "/metrics").1;
    assert_eq!(value(&page, "dfs_master_diverging_chunks"), 0.0);
}

#[test]
fn replicas_of_which_nobody_knows_the_right_one_are_counted_until_the_file_is_gone() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    diverge(&cluster, "cs-1", &content, AT);
    diverge(&cluster, "cs-2", &content, AT / 2);
    cluster.up();
    let count = || cluster.dfs_json(["status"])["chunks"]["diverging"].as_u64();
    wait_until("it is counted", || count() == Some(1));
    assert!(cluster.dfs(["status"]).contains("; 1 diverging"));
    cluster.dfs(["rm", "/f"]);
    wait_until("it is gone", || count() == Some(0));
}

fn scrub_off(chunkservers: u32, restart: &'static str) -> Cluster {
    let timing = &["--scrub-period", "0"];
    Cluster::start_with(Options { chunkservers, restart, timing, ..Options::default() })
}

#[test]
fn a_scrub_that_is_asked_for_reads_everything_and_mends_what_it_finds() {
    need_fuse!();
    let cluster = scrub_off(3, "never");
    let content = pattern(3 << 20, 1);
    std::fs::create_dir(cluster.mount().join("d")).unwrap();
    write_synced(&cluster.mount().join("d/f"), &content);
    for n in 0..10 {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(200_000, n + 2));
    }
    cluster.down();
    let flipped = flip(&cluster, &["cs-2"], &content, AT);
    cluster.up();
    let elsewhere = cluster.dfs_json(["scrub", "--now", "/d", "--server", "cs-1"]);
    assert_eq!((&elsewhere["replicasRead"], &elsewhere["damaged"]), (&1.into(), &0.into()));
    assert!(!is_right(&content, &flipped[0]), "nobody has looked there");
    let below = cluster.dfs_json(["scrub", "--now", "/d"]);
    assert_eq!((&below["replicasRead"], &below["damaged"]), (&3.into(), &1.into()), "{below}");
    wait_until("the block is mended", || flipped.iter().all(|place| is_right(&content, place)));
    let all = cluster.dfs_json(["scrub", "--now"]);
    let expected = serde_json::json!({"job": 3, "phase": "done", "replicasRead": 33, "replicas": 33, "damaged": 0, "stalled": []});
    assert_eq!(all, expected);
    let said = cluster.dfs(["jobs"]);
    assert!(said.contains("33 of 33") && said.contains("scrub cs-1 inode"), "{said}");
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    check_content(&cluster.mount().join("d/f"), &content);

    for (arguments, code, reason) in [
        (&["scrub"][..], 2, "--now"),
        (&["scrub", "--now", "--server", "cs-9"], 1, "unknown server cs-9"),
        (&["scrub", "--now", "/nothing"], 1, "/nothing"),
    ] {
        let refused = cluster.try_dfs(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

/// The job of this id, as `dfs job show` has it.
fn job(cluster: &Cluster, id: &str) -> serde_json::Value {
    cluster.dfs_json(["job", "show", id, "--server-wait", "60s"])
}

fn done_by(job: &serde_json::Value, server: &str) -> u64 {
    let mut workers = job["states"].as_array().unwrap().iter();
    let found = workers.find(|worker| worker["server"] == server);
    found.map_or(0, |worker| worker["state"].as_u64().unwrap())
}

#[test]
fn a_scrub_goes_on_where_it_was_when_the_master_was_killed_and_names_who_holds_it_up() {
    need_fuse!();
    const FILES: u64 = 40;
    let cluster = scrub_off(3, "on-failure");
    for n in 0..FILES {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(100_000, n));
    }
    let frozen = cluster.pid("cs-3").unwrap();
    signal(frozen, Signal::STOP);
    let begun = cluster.dfs_json(["scrub", "--now", "--no-wait"]);
    let id = begun["job"].to_string();
    wait_until("the others have read theirs, and cs-3 is named", || {
        let job = job(&cluster, &id);
        let read = ["cs-1", "cs-2"].map(|server| done_by(&job, server));
        read == [FILES, FILES] && job["stalled"] == serde_json::json!(["cs-3"])
    });
    let before = job(&cluster, &id);
    wait_until("it is counted", || {
        let page = get(&address(&cluster, "master"), "/metrics").1;
        value(&page, "dfs_master_jobs{phase=\"stalled\"}") == 1.0
    });
    let read_bytes = |server| {
        let page = get(&address(&cluster, server), "/metrics").1;
        value(&page, "dfs_chunkserver_scrubbed_bytes_total")
    };
    let bytes = ["cs-1", "cs-2"].map(read_bytes);
    let pid = cluster.pid("master").unwrap();
    cluster.kill("master");
    wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != pid));
    wait_until("it goes on", || {
        before["snapshots"].as_u64().unwrap() < job(&cluster, &id)["snapshots"].as_u64().unwrap()
    });
    let after = job(&cluster, &id);
    assert_eq!((&after["phase"], &after["done"]), (&"running".into(), &(2 * FILES).into()));
    // What was paused is not gone on with by somebody who comes back.
    cluster.dfs(["job", "pause", &id]);
    signal(frozen, Signal::CONT);
    wait_until("cs-3 is back", || cluster.server_state("cs-3").as_deref() == Some("alive"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    let paused = job(&cluster, &id);
    assert_eq!((&paused["phase"], done_by(&paused, "cs-3")), (&"paused".into(), 0));
    cluster.dfs(["job", "resume", &id]);
    wait_until("it is done", || job(&cluster, &id)["phase"] == "done");
    let end = job(&cluster, &id);
    assert_eq!((&end["done"], &end["total"]), (&(3 * FILES).into(), &(3 * FILES).into()));
    assert_eq!(["cs-1", "cs-2"].map(read_bytes), bytes, "nothing was read twice");
    let refused = cluster.try_dfs(["job", "resume", &id]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is done"));
}

#[test]
fn replicas_of_a_server_that_died_are_no_longer_waited_for_when_they_are_elsewhere() {
    need_fuse!();
    let cluster = scrub_off(4, "never");
    for n in 0..20 {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(100_000, n));
    }
    let frozen = cluster.pid("cs-4").unwrap();
    signal(frozen, Signal::STOP);
    let scrubbed = cluster.dfs_json(["scrub", "--now"]);
    assert_eq!(scrubbed["phase"], "done");
    assert_eq!(scrubbed["replicasRead"], scrubbed["replicas"]);
    signal(frozen, Signal::CONT);
}
