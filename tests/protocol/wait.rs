//! A member that rebooted with unsynced data is all there is: the chunk waits for the others, and only then goes on.

use std::sync::Arc;

use chunkserver::store::{OpenOptions, PosixDisk, Store, StoreConfig};
use dfs_core::ids::ChunkId;

use super::*;

/// Opens a stopped server's directory as after a reboot of its machine.
fn reboot(world: &World, n: u32, chunk: ChunkId) {
    let dir = world.dir.path().join(format!("cs-{n}"));
    let config = StoreConfig {
        dir: dir.clone(),
        fs_id: None,
        server: ServerId(n),
        segment_bytes: 4 << 20,
        capacity_bytes: None,
        reserve_percent: 0,
    };
    let boot_id = "another boot".to_owned();
    let options = OpenOptions { boot_id, ..OpenOptions::for_this_boot().unwrap() };
    let disk = Arc::new(PosixDisk::open(&dir).unwrap().unwrap());
    let store = Store::open_with(config, disk, options).unwrap();
    assert!(store.report(chunk).unwrap().not_current);
}

#[test]
fn a_chunk_waits_for_the_member_that_did_not_reboot_and_then_says_that_it_goes_on() {
    let mut world = World::with(2, |config| (config.replication, config.min_replicas) = (2, 1));
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    client.write(ino, 0, b"stable");
    // The wait is for the member, not for the master to be old enough.
    std::thread::sleep(Duration::from_millis(LivenessProfile::DRILL.dead_after_ms));
    let layout = client.layout(ino, None);
    client.counter += 1;
    let mutate = DataCall::Mutate {
        layout: layout.clone(),
        client: client.id,
        counter: client.counter,
        low_water: client.counter,
        mutation: WireMutation::Write { offset: 0 },
    };
    let mut primary = client.data(&layout, layout.primary).unwrap();
    primary.call(&mutate.to_bytes(), &[b"not synced"], WAIT).unwrap();
    let before = Instant::now();
    let (away, back) = (layout.primary.0, 3 - layout.primary.0);
    world.stop(away);
    world.stop(back);
    reboot(&world, back, layout.chunk);
    world.start(back);

    // What the absent one has is missed until it was silent for so long that nobody reads it there any more.
    let layout = client.layout(ino, None);
    let waited = before.elapsed();
    let least = Duration::from_millis(LivenessProfile::DRILL.dead_after_ms - 1_100);
    assert!(least < waited, "{waited:?}");
    assert_eq!(layout.members.len(), 1);
    client.check_all(&layout, b"not synced");
    let said = world.master().master.notices();
    assert_eq!(
        said.iter().filter(|(_, text)| text.contains("goes on with what")).count(),
        1,
        "{said:?}"
    );
    assert!(!world.master().master.chunk(layout.chunk).unwrap().goes_on_after_wait());

    // It comes back to a newer version, and takes it up.
    world.start(away);
    let start = Instant::now();
    while client.layout(ino, None).members.len() < 2 {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(50));
    }
    let layout = client.layout(ino, None);
    client.check_all(&layout, b"not synced");
}
