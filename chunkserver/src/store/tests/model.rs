//! Random operations on a real directory, compared with bytes in memory.

use super::super::SyncDone;
use super::*;

fn run(seed: u64, steps: u64) {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = super::super::PosixDisk::open(dir.path()).unwrap().unwrap();
        Store::open_with(config(dir.path()), Arc::new(disk), options(1)).unwrap()
    };
    let mut store = open();
    let mut dice = Dice::new(seed);
    let sizes = [4096, 65536, 1 << 20];
    let mut model: Vec<(u64, Vec<u8>)> = vec![(0, Vec::new()); 3];
    for step in 0..steps {
        let which = usize::try_from(dice.below(3)).unwrap();
        let (chunk, size) = (ChunkId(which as u64 + 1), sizes[which]);
        let (seq, content) = &mut model[which];
        let (kind, offset, n) = draw(&mut dice, size, content.len() as u64);
        let data = dice.bytes(if kind == 0 { n } else { 0 });
        let mutation = mutation(kind, offset, n, &data);
        *seq += 1;
        store.apply(chunk, V1, *seq, &spec(size), NOBODY, mutation).unwrap();
        mutate(content, &mutation);
        if dice.chance(10) {
            assert_eq!(store.sync_blocking(chunk).unwrap(), *seq);
        }
        if dice.chance(2) {
            store.checkpoint().unwrap();
        }
        if dice.chance(30) {
            let from = dice.below(size);
            let len = dice.below(size);
            let mut out = Vec::new();
            let replica_len = store.read(chunk, V1, from, len, &mut out).unwrap();
            let end = usize::try_from((from + len).min(content.len() as u64)).unwrap();
            let start = usize::try_from(from).unwrap().min(end);
            assert_eq!(replica_len, content.len() as u64);
            assert!(out == content[start..end], "seed {seed} step {step}: read differs");
        }
        if dice.chance(1) {
            // As if killed: nothing is shut down.
            drop(store);
            store = open();
        }
        if step % 50 == 0 {
            for (which, (seq, content)) in model.iter().enumerate().filter(|(_, (s, _))| 0 < *s) {
                let chunk = ChunkId(which as u64 + 1);
                assert!(
                    read_all(&store, chunk, V1).unwrap() == *content,
                    "seed {seed} step {step}"
                );
                assert_eq!(store.report(chunk).unwrap().position, position(V1, *seq));
            }
        }
    }
}

#[test]
fn a_chunk_equals_the_model_after_any_operations_and_restarts() {
    for seed in 1..=6 {
        run(seed, 400);
    }
}

#[test]
fn callers_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for n in 1..=20 {
        store
            .apply(
                ChunkId(n),
                V1,
                1,
                &spec(1 << 20),
                NOBODY,
                Mutation::Write { offset: 0, data: b"x" },
            )
            .unwrap();
        let sender = sender.clone();
        let done: SyncDone = Box::new(move |result| sender.send(result.unwrap()).unwrap());
        store.sync(ChunkId(n), done);
    }
    drop(sender);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), vec![1; 20]);
}

#[test]
fn a_start_finds_chunks_in_directories_that_were_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = super::super::PosixDisk::open(dir.path()).unwrap().unwrap();
        Store::open_with(config(dir.path()), Arc::new(disk), options(1)).unwrap()
    };
    let dirs = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.filter(|name| name.len() == 2).collect();
        names.sort();
        names
    };
    let store = open();
    assert!(dirs().is_empty());
    for chunk in [0x105, 0x3ff, 0x2ff] {
        let mutation = Mutation::Write { offset: 0, data: b"here" };
        store.apply(ChunkId(chunk), V1, 1, &spec(4096), NOBODY, mutation).unwrap();
    }
    assert_eq!(dirs(), ["05", "ff"]);
    store.checkpoint().unwrap();
    drop(store);
    let store = open();
    for chunk in [0x105, 0x3ff, 0x2ff] {
        assert_eq!(read_all(&store, ChunkId(chunk), V1).unwrap(), b"here");
    }
}
