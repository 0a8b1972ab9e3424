//! The list of records goes with the bytes: through the journal, a checkpoint, a new file.

use dfs_proto::record_list::RecordPlace;

use super::super::disk::ChunkDisk as _;
use super::super::faulty::FaultyDisk;
use super::*;

const CHUNK: ChunkId = ChunkId(0x107);
const SIZE: u64 = 1 << 20;
/// The second is written to the file before the journal, as bytes of such a length are.
const LENS: [u64; 3] = [5, 200_000, 7];

fn open(disk: &Arc<FaultyDisk>, boot: u64) -> Store {
    let config = config(std::path::Path::new("/memory"));
    Store::open_with(config, Arc::new(disk.handle()), options(boot)).unwrap()
}

fn append(store: &Store, seq: u64, offset: u64, len: u64, record: bool) {
    let tag = OpTag { append: Some((offset, len)), record, ..NOBODY };
    let data = vec![0; usize::try_from(len).unwrap()];
    let write = Mutation::Write { offset, data: &data };
    store.apply(CHUNK, V1, seq, &spec(SIZE), tag, write).unwrap();
}

fn append_all(store: &Store, record: bool) {
    let mut end = 0;
    for (seq, len) in (1..).zip(LENS) {
        append(store, seq, end, len, record);
        end += len;
    }
    store.sync_blocking(CHUNK).unwrap();
}

fn listed(store: &Store) -> Vec<(u64, u64)> {
    let found = store.records(CHUNK, V1, 0).unwrap();
    assert!(found.all_known && !found.more);
    found.records.iter().map(|RecordPlace { offset, len }| (offset, len)).collect()
}

const PLACES: [(u64, u64); 3] = [(0, 5), (5, 200_000), (200_005, 7)];

#[test]
fn a_list_outlives_kills_checkpoints_and_losses_of_power() {
    let disk = FaultyDisk::new(11);
    let store = open(&disk, 1);
    append_all(&store, true);
    store.mark_clean(CHUNK, V1, 3).unwrap();
    store.sync_blocking(CHUNK).unwrap();
    assert_eq!(listed(&store), PLACES);
    disk.kill();
    drop(store);
    let store = open(&disk, 1);
    assert_eq!(listed(&store), PLACES, "from the journal");
    store.checkpoint().unwrap();
    disk.lose_power();
    drop(store);
    let store = open(&disk, 2);
    assert_eq!(listed(&store), PLACES, "from the slot");
    // A new file in place of one that somebody removed has it too. Its bytes come from an open descriptor.
    read_all(&store, CHUNK, V1).unwrap();
    disk.handle().remove("07/0000000000000107").unwrap();
    assert!(store.make_whole(CHUNK).unwrap());
    disk.lose_power();
    drop(store);
    assert_eq!(listed(&open(&disk, 3)), PLACES, "from the new file");
}

#[test]
fn copies_with_the_same_bytes_and_other_records_have_other_digests() {
    let digest = |record| {
        let store = open(&FaultyDisk::new(12), 1);
        append_all(&store, record);
        store.report(CHUNK).unwrap().digest
    };
    assert_ne!(digest(true), digest(false));
}

#[test]
fn bytes_that_came_before_lists_were_kept_are_told() {
    let store = open(&FaultyDisk::new(13), 1);
    append(&store, 1, 0, 10, false);
    append(&store, 2, 10, 10, true);
    let found = store.records(CHUNK, V1, 0).unwrap();
    assert!(!found.all_known && found.records.iter().count() == 1, "{found:?}");
    // An empty one is none, and leaves no gap.
    append(&store, 3, 20, 0, true);
    assert_eq!(store.records(CHUNK, V1, 0).unwrap().records, found.records);
}
