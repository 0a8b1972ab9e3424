//! Damage that nobody reads: found by the servers themselves, and mended.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use tests::{Cluster, Options, wait_until};

use crate::bad_luck::flip;
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
    assert_eq!(metric("dfs_chunkserver_repaired_blocks_total"), 1.0);
    wait_until("the round goes on", || before < since());
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    check_content(&cluster.mount().join("f"), &content);
}
