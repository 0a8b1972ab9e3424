//! What replicas remember of clients goes when the clients are gone, and does not come back.

use std::collections::BTreeSet;

use super::super::faulty::FaultyDisk;
use super::*;

#[test]
fn a_forgotten_client_stays_so_after_a_kill_and_a_loss_of_power() {
    let disk = FaultyDisk::new(3);
    let (gone, stays) = (ClientId(5), ClientId(6));
    let open = |boot| {
        let config = config(std::path::Path::new("/memory"));
        Store::open_with(config, Arc::new(disk.handle()), options(boot)).unwrap()
    };
    let store = open(1);
    for chunk in [ChunkId(1), ChunkId(2)] {
        for (seq, client) in [(1, gone), (2, stays)] {
            let tag = OpTag { client, counter: 1, low_water: 1, append: None, record: false };
            let write = Mutation::Write { offset: 0, data: b"bytes" };
            store.apply(chunk, V1, seq, &spec(65_536), tag, write).unwrap();
        }
    }
    store.forget_clients(&BTreeSet::from([gone, ClientId(9)])).unwrap();
    let found = |store: &Store| {
        assert_eq!(store.clients(), BTreeSet::from([stays]));
        for chunk in [ChunkId(1), ChunkId(2)] {
            assert_eq!(store.seen(chunk, gone, 1).unwrap(), Seen::New);
            assert_eq!(store.seen(chunk, stays, 1).unwrap(), Seen::Done { append: None });
            assert_eq!(store.report(chunk).unwrap().position, position(V1, 2));
        }
    };
    found(&store);
    disk.kill();
    drop(store);
    let store = open(1);
    found(&store);
    store.checkpoint().unwrap();
    disk.lose_power();
    drop(store);
    found(&open(2));
}
