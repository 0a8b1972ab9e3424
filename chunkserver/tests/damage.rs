//! Bytes that a disk changed: never returned, made right from another member, and not forgotten while nobody has them.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    dead_code,
    reason = "a test that meets the unexpected fails; each test file uses a part of the harness"
)]

mod harness;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dfs_proto::data_rpc::{DataCall, DataFailure};
use harness::{Cluster, pattern};

#[test]
fn a_flipped_byte_is_never_returned_and_made_right_from_another_member() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let content = pattern(3, 500_000);
    client.write(&layout, 1, 0, &content).unwrap();
    client.sync(&layout).unwrap();
    for damaged in [2, 0] {
        let reader = cluster.client(damaged, 2);
        reader.read_soon(&layout, 0, 10);
        flip_a_byte_of(&cluster, damaged, &content, 200_000);
        assert_eq!(reader.read(&layout, 199_000, 5000), Err(DataFailure::BadBlock { block: 3 }));
        // Other blocks are fine meanwhile.
        assert_eq!(reader.read(&layout, 0, 1000).unwrap(), &content[..1000]);
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match reader.read(&layout, 199_000, 5000) {
                Ok(bytes) => break assert!(bytes == content[199_000..204_000]),
                Err(DataFailure::BadBlock { block: 3 }) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(cluster.content(damaged, 1, 1) == content);
    }
}

#[test]
fn a_restarted_member_is_told_by_a_reader_who_has_the_right_bytes() {
    let mut cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let content = pattern(3, 500_000);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, &content).unwrap();
    client.sync(&layout).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while cluster.server(2).store().report(layout.chunk).unwrap().dirty {
        assert!(Instant::now() < until, "still dirty");
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.stop(2);
    flip_a_byte_of(&cluster, 2, &content, 200_000);
    cluster.start(2);
    // It knows nobody any more, and mends nothing by itself.
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let reader = cluster.client(2, 2);
    let bad = Err(DataFailure::BadBlock { block: 3 });
    for _ in 0..5 {
        assert_eq!(reader.read(&layout, 199_000, 5000), bad);
        std::thread::sleep(Duration::from_millis(20));
    }
    let repair = DataCall::Repair { layout: layout.clone(), block: 3 };
    reader.call(&repair, &[]).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while reader.read(&layout, 199_000, 5000) == bad {
        assert!(Instant::now() < until, "not mended");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(cluster.content(2, 1, 1) == content);
}

#[test]
fn what_is_known_to_be_bad_stays_known_in_the_next_version() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1]);
    let client = cluster.client(0, 1);
    let content = pattern(3, 500_000);
    client.write(&layout, 1, 0, &content).unwrap();
    client.sync(&layout).unwrap();
    // Nobody can mend it.
    for damaged in [0, 1] {
        flip_a_byte_of(&cluster, damaged, &content, 200_000);
    }
    let bad = Err(DataFailure::BadBlock { block: 3 });
    assert_eq!(client.read(&layout, 199_000, 5000), bad);
    let from = cluster.promise(0, 1, 2, false).unwrap();
    assert_eq!(from.bad_blocks, [3]);
    cluster.promise(2, 1, 2, true).unwrap();
    // The source takes up what it has, the other one a copy, in which nothing can be in the place of the block.
    for index in [2, 0] {
        let adopted = cluster.adopt(index, 2, 0, &from).unwrap();
        assert_eq!(adopted.bad_blocks, [3], "cs-{}", index + 1);
    }
    let next = cluster.layout(1, 2, &[0, 2]);
    assert_eq!(cluster.client(2, 2).read(&next, 199_000, 5000), bad);
}

/// An operation that nobody was told is stored made the source's log the longest. Its block has a bad byte beside it.
#[test]
fn bad_bytes_of_the_longest_log_do_not_replace_good_ones() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let content = pattern(3, 500_000);
    client.write(&layout, 1, 0, &content).unwrap();
    client.sync(&layout).unwrap();
    let reports = [1, 2].map(|index| cluster.promise(index, 1, 2, false).unwrap());
    assert!(client.write(&layout, 2, 199_000, b"not stored").is_err(), "two promised otherwise");
    flip_a_byte_of(&cluster, 0, &content, 200_000);
    let longest = cluster.promise(0, 1, 2, false).unwrap();
    assert!(reports.iter().all(|report| report.seq < longest.seq), "{longest:?}");
    cluster.another_source.store(true, Ordering::Relaxed);
    let refused = cluster.adopt(1, 2, 0, &longest).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::DataLoss, "{refused}");
    assert!(refused.message().contains("block 3"), "{refused}");

    let from = [1, 0, 2].map(|index| cluster.promise(index, 1, 3, false).unwrap())[0].clone();
    for index in [0, 2, 1] {
        let adopted = cluster.adopt(index, 3, 1, &from).unwrap();
        assert_eq!(adopted.bad_blocks, [0; 0], "cs-{}", index + 1);
    }
    let next = cluster.layout(1, 3, &[0, 1, 2]);
    assert_eq!(cluster.client(0, 2).read(&next, 0, 500_000).unwrap(), content);
}

/// Finds the chunk's bytes in the data directory, wherever the store keeps them, and damages one.
fn flip_a_byte_of(cluster: &Cluster, index: usize, content: &[u8], at: usize) {
    fn files(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    files(cluster.dirs[index].path(), &mut found);
    let needle = &content[at..at + 64];
    let mut flipped = 0;
    for path in found {
        let bytes = std::fs::read(&path).unwrap();
        if let Some(position) = bytes.windows(64).position(|window| window == needle) {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[position] ^ 0x40], position as u64).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the chunk's bytes are in no file");
}
