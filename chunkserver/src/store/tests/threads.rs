//! Writers on several threads, the journal's segments used again and again, and the power goes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::disk::{ChunkDisk, OpenMode};
use super::super::faulty::FaultyDisk;
use super::*;
use dfs_proto::chunk_file::DATA_AT;

const SIZE: u64 = 65_536;
const WRITERS: usize = 3;

fn open(disk: &Arc<FaultyDisk>, boot: u64) -> Result<Store, StoreError> {
    let mut config = config(std::path::Path::new("/memory"));
    config.segment_bytes = 64 << 10;
    let options = OpenOptions { on_fatal: Arc::new(|_| {}), ..options(boot) };
    Store::open_with(config, Arc::new(disk.handle()), options)
}

/// Operation `seq` of a writer, always the same.
fn operation(writer: usize, version: u64, seq: u64) -> (u64, Vec<u8>) {
    let mut dice = Dice::new(writer as u64 * 1_000_003 + version * 10_007 + seq);
    let len = dice.below(12_000) + 1;
    let word = dice.next().to_le_bytes();
    let mut data = word.repeat(usize::try_from(len / 8 + 1).unwrap());
    data.truncate(usize::try_from(len).unwrap());
    (dice.below(SIZE - len), data)
}

fn apply(store: &Store, writer: usize, version: u64, seq: u64) -> Result<(), StoreError> {
    let (offset, data) = operation(writer, version, seq);
    let chunk = ChunkId(writer as u64 + 1);
    let write = Mutation::Write { offset, data: &data };
    store.apply(chunk, ChunkVersion(version), seq, &spec(SIZE), NOBODY, write)
}

/// What each writer knows when the power goes.
#[derive(Default)]
struct Progress {
    applied: AtomicU64,
    stable: AtomicU64,
}

fn work(store: &Store, writer: usize, version: u64, seed: u64, progress: &Progress) {
    let mut dice = Dice::new(seed + writer as u64);
    for seq in progress.applied.load(Ordering::SeqCst) + 1..400 {
        if apply(store, writer, version, seq).is_err() {
            return;
        }
        progress.applied.store(seq, Ordering::SeqCst);
        if dice.chance(30) {
            match store.sync_blocking(ChunkId(writer as u64 + 1)) {
                Ok(stable) => progress.stable.store(stable, Ordering::SeqCst),
                Err(_) => return,
            }
        }
    }
}

fn run(seed: u64) {
    let disk = FaultyDisk::new(seed);
    let mut dice = Dice::new(seed);
    let mut contents = vec![Vec::new(); WRITERS];
    for life in 1..=8 {
        let store = open(&disk, life).unwrap_or_else(|err| panic!("seed {seed}: {err}"));
        let progress: Vec<Progress> = (0..WRITERS).map(|_| Progress::default()).collect();
        for writer in 0..WRITERS {
            let chunk = ChunkId(writer as u64 + 1);
            if 1 < life && store.report(chunk).is_some() {
                store.promise(chunk, ChunkVersion(life), None).unwrap();
                store.adopt_self(chunk, ChunkVersion(life)).unwrap();
            }
        }
        disk.lose_power_after(dice.below(900));
        std::thread::scope(|scope| {
            for (writer, progress) in progress.iter().enumerate() {
                let store = &store;
                scope.spawn(move || work(store, writer, life, seed + life, progress));
            }
        });
        disk.lose_power();
        drop(store);
        let store = open(&disk, life + 1).unwrap_or_else(|err| panic!("seed {seed}: {err}"));
        for (writer, (progress, content)) in progress.iter().zip(&mut contents).enumerate() {
            let chunk = ChunkId(writer as u64 + 1);
            let (applied, stable) =
                (progress.applied.load(Ordering::SeqCst), progress.stable.load(Ordering::SeqCst));
            let Some(report) = store.report(chunk) else {
                assert_eq!(applied, 0, "seed {seed} life {life} writer {writer}: is gone");
                // Born with version 1 only.
                return;
            };
            let Position { version, seq } = report.position;
            if version == ChunkVersion(life) {
                assert!(
                    stable <= seq && seq <= applied + 1,
                    "seed {seed} life {life} writer {writer}: at {seq}, stable {stable}"
                );
            } else {
                assert_eq!((version, applied), (ChunkVersion(0), 0), "seed {seed} life {life}");
            }
            assert!(report.not_current || applied == 0);
            for seq in 1..=seq {
                let (offset, data) = operation(writer, life, seq);
                mutate(content, &Mutation::Write { offset, data: &data });
            }
            let mut found = Vec::new();
            for block in 0..report.len.div_ceil(SIZE) {
                let block = u32::try_from(block).unwrap();
                found.extend(store.read_for_copy(chunk, block).unwrap().0);
            }
            assert!(found == *content, "seed {seed} life {life} writer {writer}: differs at {seq}");
        }
        disk.kill();
    }
}

#[test]
fn writers_on_several_threads_keep_what_was_stable() {
    for seed in 1..=25 {
        run(seed * 100);
    }
}

fn bytes_in_place(disk: &Arc<FaultyDisk>, at: u64) -> [u8; 1] {
    let file = disk.handle().open("01/0000000000000001", OpenMode::Existing).unwrap();
    let mut byte = [0];
    file.read_at(DATA_AT + at, &mut byte).unwrap();
    byte
}

#[test]
fn nothing_goes_in_place_before_its_record_is_on_disk() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    // Its threads would sync after a second.
    store.running.stop();
    let write = |seq, data: &[u8]| {
        let write = Mutation::Write { offset: 0, data };
        store.apply(ChunkId(1), V1, seq, &spec(SIZE), NOBODY, write).unwrap();
    };
    write(1, b"a");
    store.sync_blocking(ChunkId(1)).unwrap();
    assert_eq!(bytes_in_place(&disk, 0), *b"a");
    write(2, b"b");
    store.engine().place_all().unwrap();
    assert_eq!(bytes_in_place(&disk, 0), *b"a");
    assert_eq!(read_all(&store, ChunkId(1), V1).unwrap(), b"b");
    store.sync_blocking(ChunkId(1)).unwrap();
    assert_eq!(bytes_in_place(&disk, 0), *b"b");
}

#[test]
fn nothing_goes_in_place_over_bulk_data_that_only_its_sums_vouch_for() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk, 1).unwrap();
    store.running.stop();
    let write = |chunk, seq, data: &[u8]| {
        let write = Mutation::Write { offset: 0, data };
        store.apply(ChunkId(chunk), V1, seq, &spec(1 << 20), NOBODY, write).unwrap();
    };
    write(1, 1, &vec![b'a'; 200_000]);
    write(1, 2, b"b");
    // The journal is on disk through another chunk's first operation, the bulk data is not.
    write(2, 1, b"x");
    store.engine().place_all().unwrap();
    assert_eq!(bytes_in_place(&disk, 0), *b"a");
    assert_eq!(store.sync_blocking(ChunkId(1)).unwrap(), 2);
    assert_eq!(bytes_in_place(&disk, 0), *b"b");
}
