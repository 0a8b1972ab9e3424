//! Damage that nobody reads: found by the servers themselves, and mended.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use dfs_proto::chunk_file::{BLOCK_BYTES_MAX, DATA_AT, SLOT_A_AT, SLOT_B_AT, SLOT_BYTES, Slot};
use tests::{Cluster, Options, wait_until};

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
fn diverge(cluster: &Cluster, server: &str, content: &[u8]) -> (PathBuf, u64) {
    let (path, at) = flip(cluster, &[server], content, AT).remove(0);
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
    let place = diverge(&cluster, "cs-2", &content);
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
