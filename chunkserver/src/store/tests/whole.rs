//! Chunk files that are damaged outside their data, or gone, while the store is open.

use super::super::disk::ChunkDisk;
use super::super::faulty::FaultyDisk;
use super::damage::{CHUNK, PATH, flip, open, pattern, saved, write};
use super::*;
use dfs_proto::chunk_file::{SLOT_A_AT, SLOT_B_AT};

#[track_caller]
fn check_noticed(store: &Store, expected: &str) {
    match store.check_file(CHUNK) {
        Err(StoreError::Corrupt { what, .. }) => assert_eq!(what, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn header_and_slots_are_looked_at_and_mended_while_the_store_is_open() {
    let places: [(&[u64], &str); 7] = [
        (&[20], "the first copy of the header is damaged"),
        (&[2000], "the first copy of the header is damaged"),
        (&[2068], "the second copy of the header is damaged"),
        (&[20, 2068], "both copies of the header are damaged"),
        (&[SLOT_A_AT + 40], "slot A is damaged"),
        (&[SLOT_B_AT + 40], "slot B is damaged"),
        (&[20, 2068, SLOT_A_AT, SLOT_B_AT], "both copies of the header are damaged"),
    ];
    for (places, expected) in places {
        let disk = FaultyDisk::new(1);
        let mut data = saved(&disk);
        let store = open(&disk, 1).unwrap();
        assert!(store.check_file(CHUNK).is_ok());
        places.iter().for_each(|at| flip(&disk, PATH, *at));
        check_noticed(&store, expected);
        // What is in memory and the journal only goes along.
        write(&store, 3, 10, b"late").unwrap();
        data[10..14].copy_from_slice(b"late");
        assert!(store.make_whole(CHUNK).unwrap());
        assert!(store.check_file(CHUNK).is_ok());
        assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
        write(&store, 4, 149_998, b"longer").unwrap();
        data.truncate(149_998);
        data.extend_from_slice(b"longer");
        store.sync_blocking(CHUNK).unwrap();
        let before = store.report(CHUNK).unwrap();
        drop(store);
        let store = open(&disk, 1).unwrap();
        assert_eq!(store.report(CHUNK), Some(before));
        assert!(store.check_file(CHUNK).is_ok());
        assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
    }
}

#[test]
fn a_file_that_somebody_removed_comes_back_from_its_descriptor() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    // Bulk data and small writes, in no slot yet.
    let mut data = pattern(300_000, 5);
    write(&store, 1, 0, &data).unwrap();
    write(&store, 2, 299_000, &pattern(2000, 6)).unwrap();
    data.truncate(299_000);
    data.extend_from_slice(&pattern(2000, 6));
    disk.handle().remove(PATH).unwrap();
    check_noticed(&store, "the file is gone");
    assert!(store.make_whole(CHUNK).unwrap());
    assert!(store.check_file(CHUNK).is_ok());
    assert_eq!(store.sync_blocking(CHUNK).unwrap(), 2);
    let before = store.report(CHUNK).unwrap();
    assert!(!before.not_current && store.take_made_again().is_empty());
    drop(store);
    disk.lose_power();
    let store = open(&disk, 1).unwrap();
    assert_eq!(store.report(CHUNK), Some(before));
    assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
}

#[test]
fn a_file_that_is_out_of_reach_is_given_up() {
    let disk = FaultyDisk::new(1);
    saved(&disk);
    let store = open(&disk, 1).unwrap();
    store.engine().files.remove(CHUNK);
    disk.handle().remove(PATH).unwrap();
    check_noticed(&store, "the file is gone");
    assert!(!store.make_whole(CHUNK).unwrap());
    assert!(store.check_file(CHUNK).is_ok());
    assert_eq!(store.take_made_again(), [CHUNK]);
    assert!(read_all(&store, CHUNK, V1).is_err());
    drop(store);
    assert!(open(&disk, 1).unwrap().report(CHUNK).unwrap().not_current);
}

#[test]
fn a_bad_block_does_not_become_a_good_one() {
    let disk = FaultyDisk::new(1);
    saved(&disk);
    let store = open(&disk, 1).unwrap();
    flip(&disk, PATH, 20);
    flip(&disk, PATH, dfs_proto::chunk_file::DATA_AT + 70_000);
    assert!(store.make_whole(CHUNK).unwrap());
    let bad = store.read_for_scrub(CHUNK, 1);
    assert!(matches!(bad, Err(StoreError::BadBlock { index: 1, .. })), "{bad:?}");
    assert!(store.read_for_scrub(CHUNK, 2).is_ok());
}

#[test]
fn the_scrub_says_where_bytes_that_are_not_zero_end() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    write(&store, 1, 70_000, b"x").unwrap();
    write(&store, 2, 140_000, &[0; 10]).unwrap();
    let found = [0, 1, 2].map(|block| store.read_for_scrub(CHUNK, block).unwrap());
    assert_eq!(found.map(|block| block.data_end), [0, 70_001, 0]);
    assert_eq!(found.map(|block| block.bytes), [65_536, 65_536, 8_938]);
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let disk = FaultyDisk::new(1);
    let data = saved(&disk);
    let store = open(&disk, 1).unwrap();
    flip(&disk, PATH, 20);
    disk.set_full(true);
    let full = store.make_whole(CHUNK);
    assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
    assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
    disk.set_full(false);
    assert!(store.make_whole(CHUNK).unwrap());
    assert!(store.check_file(CHUNK).is_ok());
}

#[test]
fn nothing_is_lost_when_the_power_goes_while_a_file_is_written_anew() {
    let mut whole = 0;
    for calls in 1..60 {
        let disk = FaultyDisk::new(calls);
        let mut data = saved(&disk);
        let store = open(&disk, 1).unwrap();
        write(&store, 3, 10, b"late").unwrap();
        data[10..14].copy_from_slice(b"late");
        store.sync_blocking(CHUNK).unwrap();
        store.mark_clean(CHUNK, V1, 3).unwrap();
        store.sync_blocking(CHUNK).unwrap();
        flip(&disk, PATH, 20);
        disk.lose_power_after(calls);
        whole += u32::from(store.make_whole(CHUNK).is_ok());
        disk.lose_power();
        drop(store);
        // The same boot: whatever the medium has must be right.
        let store = open(&disk, 1).unwrap();
        assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data, "{calls}");
        drop(store);
        let left = disk.paths().into_iter().filter(|path| path.ends_with(".adopt"));
        assert_eq!(left.count(), 0);
    }
    assert!(0 < whole && whole < 59, "{whole}: the power went during some of them");
}
