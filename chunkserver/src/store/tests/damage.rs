//! Files that are cut, flipped or missing: noticed, never returned, never a panic.

use super::super::disk::{ChunkDisk, OpenMode};
use super::super::faulty::FaultyDisk;
use super::*;
use dfs_proto::chunk_file::{DATA_AT, SLOT_A_AT, SLOT_B_AT};

pub(super) const CHUNK: ChunkId = ChunkId(0x1ab);
pub(super) const PATH: &str = "ab/00000000000001ab";
const SEGMENT: &str = "journal/0000";
const SIZE: u64 = 1 << 20;

pub(super) fn open(disk: &Arc<FaultyDisk>, boot: u64) -> Result<Store, StoreError> {
    Store::open_with(small_config(), Arc::new(disk.handle()), quiet(boot))
}

fn small_config() -> StoreConfig {
    let mut config = config(std::path::Path::new("/memory"));
    config.segment_bytes = 64 << 10;
    config
}

fn open_real(dir: &std::path::Path, options: OpenOptions) -> Result<Store, StoreError> {
    let disk = super::super::PosixDisk::open(dir).unwrap().unwrap();
    Store::open_with(config(dir), Arc::new(disk), options)
}

fn quiet(boot: u64) -> OpenOptions {
    OpenOptions { on_fatal: Arc::new(|_| {}), ..options(boot) }
}

pub(super) fn write(store: &Store, seq: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
    store.apply(CHUNK, V1, seq, &spec(SIZE), NOBODY, Mutation::Write { offset, data })
}

pub(super) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..=255u8).cycle().take(len).map(|byte| byte ^ salt).collect()
}

/// A chunk of three blocks, all in its slots and on disk.
pub(super) fn saved(disk: &Arc<FaultyDisk>) -> Vec<u8> {
    let store = open(disk, 1).unwrap();
    let data = pattern(150_000, 3);
    write(&store, 1, 0, &data).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    store.mark_clean(CHUNK, V1, 1).unwrap();
    store.checkpoint().unwrap();
    write(&store, 2, 0, &data[..100]).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    store.mark_clean(CHUNK, V1, 2).unwrap();
    store.shutdown().unwrap();
    // A start empties the journal: the slots alone have to tell.
    open(disk, 1).unwrap().shutdown().unwrap();
    data
}

pub(super) fn flip(disk: &FaultyDisk, path: &str, at: u64) {
    disk.damage(path, |bytes| bytes[usize::try_from(at).unwrap()] ^= 0x10);
}

#[test]
fn a_flipped_bit_is_never_returned_and_is_mended() {
    let disk = FaultyDisk::new(1);
    let data = saved(&disk);
    let store = open(&disk, 1).unwrap();
    flip(&disk, PATH, DATA_AT + 70_000);
    let bad = |result: Result<_, StoreError>| {
        assert!(matches!(result, Err(StoreError::BadBlock { index: 1, .. })), "{result:?}");
    };
    bad(read_all(&store, CHUNK, V1).map(drop));
    bad(store.read_for_copy(CHUNK, 1).map(drop));
    // Neither may a part of the block be changed: the new sum would hide it.
    bad(write(&store, 3, 70_100, b"x"));
    // The other blocks are there.
    let mut out = Vec::new();
    store.read(CHUNK, V1, 0, 65_536, &mut out).unwrap();
    assert_eq!(out, data[..65_536]);

    let right = &data[65_536..131_072];
    let wrong = pattern(65_536, 9);
    bad(store.repair_block(CHUNK, 1, &wrong, crc32c::crc32c(&wrong)));
    store.repair_block(CHUNK, 1, right, crc32c::crc32c(right)).unwrap();
    assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
    write(&store, 3, 70_100, b"x").unwrap();
}

#[test]
fn a_block_that_the_disk_does_not_give_is_bad_until_it_is_written_anew() {
    for broken in [false, true] {
        let disk = FaultyDisk::new(1);
        let data = saved(&disk);
        let store = open(&disk, 1).unwrap();
        disk.make_unreadable(PATH, DATA_AT + 70_000, broken);
        let bad = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::BadBlock { index: 1, .. })), "{result:?}");
        };
        bad(store.read_for_scrub(CHUNK, 1).map(drop));
        bad(store.read_for_copy(CHUNK, 1).map(drop));
        bad(read_all(&store, CHUNK, V1).map(drop));
        bad(write(&store, 3, 70_100, b"x"));
        store.read_for_scrub(CHUNK, 0).unwrap();
        store.read_for_scrub(CHUNK, 2).unwrap();
        let right = &data[65_536..131_072];
        let repaired = store.repair_block(CHUNK, 1, right, crc32c::crc32c(right));
        if broken {
            bad(repaired);
        } else {
            repaired.unwrap();
            store.read_for_scrub(CHUNK, 1).unwrap();
            assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
        }
    }
}

#[test]
fn a_chunk_file_cut_anywhere_is_not_believed() {
    for cut in [0, 100, 4096, 6000, SLOT_B_AT, SLOT_B_AT + 50, DATA_AT, DATA_AT + 140_000] {
        let disk = FaultyDisk::new(cut + 1);
        saved(&disk);
        disk.damage(PATH, |bytes| bytes.truncate(usize::try_from(cut).unwrap()));
        let store = open(&disk, 1).unwrap();
        match (store.report(CHUNK), read_all(&store, CHUNK, V1)) {
            (None, _) => assert_eq!(cut, 0, "only an empty file is no replica"),
            (Some(report), Err(StoreError::NotCurrent { .. })) => assert!(report.not_current),
            (Some(_), Err(StoreError::BadBlock { .. })) => assert!(DATA_AT <= cut),
            (_, other) => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn either_slot_lost_is_noticed() {
    for at in [SLOT_A_AT + 40, SLOT_B_AT + 40] {
        let disk = FaultyDisk::new(at);
        let data = saved(&disk);
        flip(&disk, PATH, at);
        let store = open(&disk, 1).unwrap();
        // Whichever it was, it may have been the newer.
        let result = read_all(&store, CHUNK, V1);
        assert!(matches!(result, Err(StoreError::NotCurrent { .. })), "{:?}", result.is_ok());
        // A new version from a peer's bytes, or from its own, is good again.
        store.promise(CHUNK, ChunkVersion(2), None).unwrap();
        let from = position(V1, 2);
        let mut writer =
            store.adopt_begin(CHUNK, ChunkVersion(2), from, 150_000, &spec(SIZE)).unwrap();
        for (index, block) in (0..).zip(data.chunks(65_536)) {
            writer.put_block(index, block, crc32c::crc32c(block)).unwrap();
        }
        writer.finish(150_000, false, &Default::default(), &Default::default()).unwrap();
        assert_eq!(read_all(&store, CHUNK, ChunkVersion(2)).unwrap(), data);
        drop(store);
        let store = open(&disk, 2).unwrap();
        assert_eq!(read_all(&store, CHUNK, ChunkVersion(2)).unwrap(), data);
    }
}

#[test]
fn a_block_that_nobody_has_is_taken_up_as_bad_and_the_rest_is_good() {
    let disk = FaultyDisk::new(3);
    let data = saved(&disk);
    let crc = |block: usize| crc32c::crc32c(data.chunks(65_536).nth(block).unwrap());
    let store = open(&disk, 1).unwrap();
    let v2 = ChunkVersion(2);
    store.promise(CHUNK, v2, None).unwrap();
    let mut writer = store.adopt_begin(CHUNK, v2, position(V1, 2), 150_000, &spec(SIZE)).unwrap();
    for (number, index) in [(0, 0), (2, 2)] {
        let block = data.chunks(65_536).nth(index).unwrap();
        writer.put_block(number, block, crc(index)).unwrap();
    }
    let behind = writer.leave_bad(3, 1, 150_000);
    assert!(matches!(behind, Err(StoreError::TooLarge { .. })), "{behind:?}");
    writer.leave_bad(1, crc(1), 150_000).unwrap();
    let report = writer.finish(150_000, false, &Default::default(), &Default::default()).unwrap();
    assert_eq!(report.len, 150_000);
    let check = |store: &Store| {
        let bad = store.read_for_copy(CHUNK, 1);
        assert!(matches!(bad, Err(StoreError::BadBlock { index: 1, .. })), "{:?}", bad.is_ok());
        for block in [0, 2] {
            let (bytes, sum) = store.read_for_copy(CHUNK, block).unwrap();
            assert!(bytes == data.chunks(65_536).nth(block as usize).unwrap());
            assert_eq!(sum, crc(block as usize));
        }
    };
    check(&store);
    drop(store);
    let store = open(&disk, 2).unwrap();
    check(&store);
    assert_eq!(store.report(CHUNK).unwrap().digest, report.digest);
    // Who has it can still give it.
    store.repair_block(CHUNK, 1, &data[65_536..131_072], crc(1)).unwrap();
    assert_eq!(read_all(&store, CHUNK, v2).unwrap(), data);
}

#[test]
fn one_copy_of_the_header_is_enough_and_none_is_noticed() {
    let disk = FaultyDisk::new(5);
    let data = saved(&disk);
    flip(&disk, PATH, 20);
    let store = open(&disk, 1).unwrap();
    assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
    drop(store);
    flip(&disk, PATH, 2068);
    let store = open(&disk, 1).unwrap();
    assert!(store.report(CHUNK).unwrap().not_current);
}

/// Small writes on a killed store; the length of the journal after each.
fn journaled(disk: &Arc<FaultyDisk>, count: u64) -> Vec<usize> {
    let store = open(disk, 1).unwrap();
    let mut ends = Vec::new();
    for seq in 1..=count {
        write(&store, seq, (seq - 1) * 10, &pattern(10, 1)).unwrap();
        store.sync_blocking(CHUNK).unwrap();
        let file = disk.handle().open(SEGMENT, OpenMode::Existing).unwrap();
        let mut bytes = vec![0; 64 << 10];
        file.read_at(0, &mut bytes).unwrap();
        ends.push(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    }
    disk.kill();
    ends
}

#[test]
fn a_journal_cut_at_any_byte_of_its_last_record_opens_without_it() {
    let probe = FaultyDisk::new(9);
    let ends = journaled(&probe, 3);
    for cut in ends[1].next_multiple_of(8)..ends[2] {
        let disk = FaultyDisk::new(9);
        assert_eq!(journaled(&disk, 3)[1].next_multiple_of(8), ends[1].next_multiple_of(8));
        // The chunk's file goes too, so that only the journal can tell.
        disk.damage(SEGMENT, |bytes| bytes[cut..].fill(0));
        let store = open(&disk, 1).unwrap();
        assert_eq!(store.report(CHUNK).unwrap().position, position(V1, 2), "cut at {cut}");
        assert_eq!(read_all(&store, CHUNK, V1).unwrap(), [pattern(10, 1), pattern(10, 1)].concat());
    }
}

#[test]
fn damage_inside_the_journal_is_refused_with_its_place_unless_told() {
    let probe = FaultyDisk::new(9);
    let ends = journaled(&probe, 6);
    let from = ends[0].next_multiple_of(8);
    for at in (from..ends[3]).step_by(7) {
        let disk = FaultyDisk::new(9);
        journaled(&disk, 6);
        let mut changed = false;
        disk.damage(SEGMENT, |bytes| {
            // Padding is no part of a record.
            changed = bytes[at] != 0 || (at - from) % 8 != 7;
            bytes[at] ^= 0x40;
        });
        match open(&disk, 1) {
            Err(StoreError::Corrupt { file, offset, .. }) => {
                assert_eq!(file, SEGMENT);
                assert!(offset <= at as u64 && 8192 <= offset);
            }
            Ok(store) => {
                // Nothing that counts was hit.
                assert_eq!(store.report(CHUNK).unwrap().position, position(V1, 6), "at {at}");
                continue;
            }
            Err(other) => panic!("at {at}: {other}"),
        }
        let told = OpenOptions { accept_journal_loss: true, ..quiet(1) };
        let store = Store::open_with(small_config(), Arc::new(disk.handle()), told).unwrap();
        assert!(store.inventory().iter().all(|report| report.not_current));
        // And the next start is an ordinary one.
        drop(store);
        assert!(open(&disk, 1).unwrap().report(CHUNK).unwrap().not_current);
    }
}

/// No crash does it: whether acknowledged operations stood there cannot be known.
#[test]
fn a_journal_that_is_shorter_than_it_was_made_is_refused_unless_told() {
    let probe = FaultyDisk::new(9);
    let ends = journaled(&probe, 6);
    // Within the records, and behind all of them.
    for size in [ends[3] - 10, ends[5] + 1000] {
        let disk = FaultyDisk::new(9);
        journaled(&disk, 6);
        let mut whole = 0;
        disk.damage(SEGMENT, |bytes| {
            whole = bytes.len();
            bytes.truncate(size);
        });
        let refused = open(&disk, 1).unwrap_err();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains(SEGMENT) && text.contains(&format!("has {size} of its ")), "{text}");
        let told = OpenOptions { accept_journal_loss: true, ..quiet(1) };
        let store = Store::open_with(small_config(), Arc::new(disk.handle()), told).unwrap();
        assert!(store.inventory().iter().all(|report| report.not_current));
        drop(store);
        // And is whole again when it is next used.
        disk.damage(SEGMENT, |bytes| assert_eq!(bytes.len(), whole));
        assert!(open(&disk, 1).unwrap().report(CHUNK).unwrap().not_current);
    }
}

#[test]
fn a_journal_that_is_gone_is_named_and_the_store_opens_without_it_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_real(dir.path(), options(1)).unwrap();
    let data = pattern(5000, 3);
    write(&store, 1, 0, &data).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let refused = open_real(dir.path(), options(1)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("journal") && text.contains("missing"), "{text}");
    assert_eq!(refused.page(), Some(dfs_service::page::Page::DamagedLog));
    let told = OpenOptions { accept_journal_loss: true, ..options(1) };
    let store = open_real(dir.path(), told).unwrap();
    assert!(store.inventory().iter().all(|report| report.not_current));
}

#[test]
fn a_full_disk_refuses_and_changes_nothing_until_there_is_room() {
    let disk = FaultyDisk::new(4);
    let store = open(&disk, 1).unwrap();
    let data = pattern(10_000, 5);
    write(&store, 1, 0, &data).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    disk.set_full(true);
    let big = pattern(400_000, 6);
    for (offset, bytes) in [(12_288, &data[..]), (12_288, &big[..]), (10_000, &big[..])] {
        let result = write(&store, 2, offset, bytes);
        assert!(matches!(result, Err(StoreError::NoSpace { .. })), "{result:?}");
        assert_eq!(read_all(&store, CHUNK, V1).unwrap(), data);
        assert_eq!(store.report(CHUNK).unwrap().position, position(V1, 1));
    }
    let other = ChunkId(2);
    let new =
        store.apply(other, V1, 1, &spec(SIZE), NOBODY, Mutation::Write { offset: 0, data: b"x" });
    assert!(matches!(new, Err(StoreError::NoSpace { .. })), "{new:?}");
    // What has its space already may be overwritten.
    write(&store, 2, 100, b"within").unwrap();
    assert_eq!(store.sync_blocking(CHUNK).unwrap(), 2);
    disk.set_full(false);
    write(&store, 3, 10_000, &big).unwrap();
    store
        .apply(other, V1, 1, &spec(SIZE), NOBODY, Mutation::Write { offset: 0, data: b"x" })
        .unwrap();
    store.sync_blocking(CHUNK).unwrap();
    disk.lose_power();
    let store = open(&disk, 2).unwrap();
    assert_eq!(store.report(CHUNK).unwrap().position, position(V1, 3));
    assert_eq!(store.report(other).unwrap().position, position(V1, 1));
}

/// It was the only one that waited for room: nobody else would ever say that there is some.
#[test]
fn writes_go_on_when_the_chunk_that_waited_for_room_is_gone() {
    let disk = FaultyDisk::new(4);
    let store = open(&disk, 1).unwrap();
    let other = ChunkId(2);
    let write_other = |seq, offset| {
        let write = Mutation::Write { offset, data: b"data" };
        store.apply(other, V1, seq, &spec(SIZE), NOBODY, write)
    };
    write_other(1, 0).unwrap();
    write(&store, 1, 0, &pattern(20_000, 5)).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    store.sync_blocking(other).unwrap();
    let zero = Mutation::Zero { offset: 0, len: 20_000 };
    store.apply(CHUNK, V1, 2, &spec(SIZE), NOBODY, zero).unwrap();
    write(&store, 3, 9_000, b"in a hole").unwrap();
    disk.set_full(true);
    store.sync_blocking(CHUNK).unwrap();
    let refused = write_other(2, 12_288);
    assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
    store.quarantine(CHUNK).unwrap();
    disk.set_full(false);
    write_other(2, 12_288).unwrap();
}

#[test]
fn a_copy_is_not_begun_on_a_disk_without_room_for_it() {
    let disk = FaultyDisk::new(4);
    let store = open(&disk, 1).unwrap();
    write(&store, 1, 0, &pattern(20_000, 5)).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    let v2 = ChunkVersion(2);
    store.promise(CHUNK, v2, None).unwrap();
    let before = store.space().free_bytes;
    disk.set_full(true);
    let begin = || store.adopt_begin(CHUNK, v2, position(V1, 2), 150_000, &spec(SIZE));
    assert!(matches!(begin(), Err(StoreError::NoSpace { need: 150_000, .. })));
    disk.set_full(false);
    let copy = begin().unwrap();
    assert_eq!(store.space().free_bytes, before - 150_000);
    // What it set aside is given back.
    drop(copy);
    assert_eq!(store.space().free_bytes, before);
}

#[test]
fn a_failed_sync_is_fatal_and_nothing_is_acknowledged_after_it() {
    let disk = FaultyDisk::new(8);
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    let on_fatal = {
        let said = Arc::clone(&said);
        Arc::new(move |what: &str| said.lock().unwrap().push(what.to_owned()))
    };
    let options = OpenOptions { on_fatal, ..options(1) };
    let store = Store::open_with(small_config(), Arc::new(disk.handle()), options).unwrap();
    write(&store, 1, 0, b"one").unwrap();
    write(&store, 2, 3, b"two").unwrap();
    disk.lose_power();
    assert!(store.sync_blocking(CHUNK).is_err());
    assert!(write(&store, 3, 6, b"three").is_err());
    assert!(store.sync_blocking(CHUNK).is_err());
    assert_eq!(said.lock().unwrap().len(), 1, "{said:?}");
}

#[test]
fn another_file_systems_newer_or_used_directory_is_refused() {
    let disk = FaultyDisk::new(2);
    saved(&disk);
    let mut foreign = small_config();
    foreign.fs_id = Some(FsId(8));
    let result = Store::open_with(foreign, Arc::new(disk.handle()), quiet(1));
    assert!(matches!(result, Err(StoreError::Foreign { found: FS, asked: FsId(8), .. })));
    let mut unnamed = small_config();
    unnamed.fs_id = None;
    let store = Store::open_with(unnamed.clone(), Arc::new(disk.handle()), quiet(1)).unwrap();
    assert_eq!(store.fs_id(), FS);
    drop(store);
    let empty = FaultyDisk::new(3);
    let result = Store::open_with(unnamed, Arc::new(empty.handle()), quiet(1));
    assert!(matches!(result, Err(StoreError::Unlabelled { .. })));
    disk.damage("label", |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("format 1", "format 2").into_bytes();
    });
    assert!(matches!(open(&disk, 1), Err(StoreError::NewerFormat { found: 2, known: 1, .. })));

    let dir = tempfile::tempdir().unwrap();
    let _held = Store::open(config(dir.path())).unwrap();
    assert!(matches!(Store::open(config(dir.path())), Err(StoreError::InUse { .. })));
}

#[test]
fn quarantine_counts_as_free_and_the_oldest_goes_first() {
    // Not this machine's disk: on one that is nearly full the store makes room by itself.
    let disk = FaultyDisk::new(1);
    let mut config = small_config();
    config.capacity_bytes = Some(1 << 20);
    let store = Store::open_with(config, Arc::new(disk.handle()), quiet(1)).unwrap();
    let data = pattern(300_000, 1);
    for n in 1..=2 {
        let write = Mutation::Write { offset: 0, data: &data };
        store.apply(ChunkId(n), V1, 1, &spec(SIZE), NOBODY, write).unwrap();
        store.sync_blocking(ChunkId(n)).unwrap();
    }
    assert!(matches!(store.reserve(600_000), Err(StoreError::NoSpace { .. })));
    let credit = store.reserve(300_000).unwrap();
    assert!(matches!(store.reserve(300_000), Err(StoreError::NoSpace { .. })));
    drop(credit);
    store.quarantine(ChunkId(1)).unwrap();
    assert!(store.report(ChunkId(1)).is_none());
    assert!(matches!(read_all(&store, ChunkId(1), V1), Err(StoreError::NotFound { .. })));
    assert_eq!(store.space().chunk_count, 1);
    store.reserve(600_000).unwrap();
    store.quarantine(ChunkId(2)).unwrap();
    let quarantine = || disk.handle().list("quarantine").unwrap().len();
    assert_eq!(quarantine(), 2);
    assert_eq!(store.purge_quarantine(u64::MAX).unwrap(), 2);
    assert_eq!(quarantine(), 0);
}

#[test]
fn a_file_that_somebody_removed_does_not_stop_the_other_chunks() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    let others = |seq: u64, from: u64| {
        for n in from..from + 40 {
            let write = Mutation::Write { offset: 0, data: &pattern(5000, 7) };
            store.apply(ChunkId(n), V1, seq, &spec(SIZE), NOBODY, write).unwrap();
        }
    };
    for place in 0..4 {
        write(&store, place + 1, place * 5000, &pattern(5000, 3)).unwrap();
    }
    others(1, 1);
    store.checkpoint().unwrap();
    // In the journal only.
    write(&store, 5, 0, b"overwritten").unwrap();
    disk.handle().remove(PATH).unwrap();
    store.engine().files.remove(CHUNK);
    // Far more than the journal holds: it is let go although the file is gone.
    for round in 2..12 {
        others(round, 1);
        store.checkpoint().unwrap();
    }
    assert_eq!(store.take_made_again(), [CHUNK]);
    assert_eq!(store.take_made_again(), []);
    assert!(store.report(CHUNK).unwrap().not_current);
    let refused = write(&store, 6, 0, b"x").unwrap_err();
    assert!(matches!(refused, StoreError::NotCurrent { .. }), "{refused}");
    assert!(store.report(ChunkId(7)).is_some_and(|report| !report.not_current));
    store.shutdown().unwrap();
    drop(store);
    let store = open(&disk, 1).unwrap();
    assert!(store.report(CHUNK).unwrap().not_current, "after a restart too");
    disk.handle().remove(PATH).unwrap();
    store.engine().files.remove(CHUNK);
    store.quarantine(CHUNK).unwrap();
    assert!(store.report(CHUNK).is_none());
}

#[test]
fn quarantine_goes_by_itself_when_little_of_the_disk_is_free() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    write(&store, 1, 0, b"content").unwrap();
    store.quarantine(CHUNK).unwrap();
    let engine = store.engine();
    assert_eq!(engine.keep_some_free().unwrap(), 0, "all of the disk is free");
    assert_eq!(disk.handle().list("quarantine").unwrap().len(), 1);
    disk.set_full(true);
    // Its own thread may have been faster.
    let _removed = engine.keep_some_free().unwrap();
    assert_eq!(disk.handle().list("quarantine").unwrap().len(), 0);
}

#[test]
fn replicas_are_put_aside_while_two_others_make_room() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    for n in 1..=200 {
        let write = Mutation::Write { offset: 0, data: b"content" };
        store.apply(ChunkId(n), V1, 1, &spec(SIZE), NOBODY, write).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let purge = || {
            let mut removed = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                removed += store.purge_quarantine(u64::MAX >> 1)?;
            }
            Ok::<u64, StoreError>(removed)
        };
        let purgers = [scope.spawn(purge), scope.spawn(purge)];
        let put_aside: Result<(), StoreError> =
            (1..=200).try_for_each(|n| store.quarantine(ChunkId(n)));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        put_aside.unwrap();
        let removed: u64 = purgers.into_iter().map(|purger| purger.join().unwrap().unwrap()).sum();
        assert_eq!(removed + store.purge_quarantine(u64::MAX >> 1).unwrap(), 200);
    });
    // The accounts have drifted in no direction.
    let engine = store.engine();
    assert_eq!(engine.accounts.quarantine_bytes.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn a_file_that_somebody_removed_is_not_made_anew_from_the_journal() {
    // Bulk data is not in the journal: what a replay could make of it would be zeros.
    let data = pattern(300_000, 5);
    for boot in [1, 2] {
        let disk = FaultyDisk::new(boot);
        let store = open(&disk, 1).unwrap();
        write(&store, 1, 0, &data).unwrap();
        store.sync_blocking(CHUNK).unwrap();
        assert!(store.check_file(CHUNK).is_ok());
        // A killed process: no checkpoint, and the name is gone.
        disk.handle().remove(PATH).unwrap();
        assert!(matches!(store.check_file(CHUNK), Err(StoreError::Corrupt { .. })));
        drop(store);
        let store = open(&disk, boot).unwrap();
        match store.report(CHUNK) {
            None => assert_eq!(boot, 1, "missed by the master"),
            Some(report) => assert!(boot == 2 && report.not_current, "{report:?}"),
        }
        assert!(read_all(&store, CHUNK, V1).is_err());
    }
}
