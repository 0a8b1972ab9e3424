//! Replicas that nobody needs any more are deleted, and no other.

use dfs_core::ids::ChunkId;

use super::*;

impl World {
    fn holders(&self, chunk: ChunkId) -> Vec<u32> {
        let running = (1..).zip(&self.chunkservers).filter_map(|(n, s)| Some((n, s.as_ref()?)));
        running.filter(|(_, s)| s.store().report(chunk).is_some()).map(|(n, _)| n).collect()
    }

    fn until_held_by(&self, chunk: ChunkId, expected: &[u32]) {
        let start = Instant::now();
        while self.holders(chunk) != expected {
            assert!(start.elapsed() < WAIT, "{:?}, not {expected:?}", self.holders(chunk));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A chunk on three of four servers, one of which was away until the fourth had taken its place. Who it was.
fn replaced(world: &mut World, client: &mut Client, ino: InodeNo) -> (ChunkLayout, u32) {
    let before = client.write(ino, 0, b"content");
    let away = before.members.iter().find(|m| m.member.server != before.primary).unwrap();
    let away = away.member.server;
    world.stop(away.0);
    let start = Instant::now();
    let layout = loop {
        let layout = client.layout(ino, None);
        if layout.members.len() == 3 && layout.members.iter().all(|m| m.member.server != away) {
            break layout;
        }
        assert!(start.elapsed() < WAIT, "{layout:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    (layout, away.0)
}

fn members(layout: &ChunkLayout) -> Vec<u32> {
    let mut servers: Vec<u32> = layout.members.iter().map(|m| m.member.server.0).collect();
    servers.sort_unstable();
    servers
}

#[test]
fn a_replaced_replica_is_deleted_when_its_server_comes_back() {
    let mut world = World::new(4);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let (layout, away) = replaced(&mut world, &mut client, ino);
    world.start(away);
    assert_eq!(world.holders(layout.chunk), [1, 2, 3, 4]);
    world.until_held_by(layout.chunk, &members(&layout));
    client.check_all(&layout, b"content");
    assert_eq!(client.layout(ino, None).version, layout.version);

    // Had it been asked to learn meanwhile, the order would not have touched it.
    let store = world.chunkservers[layout.primary.0 as usize - 1].as_ref().unwrap().store();
    let promised = store.report(layout.chunk).unwrap().promised;
    let refused = store.quarantine_below(layout.chunk, promised);
    assert!(matches!(refused, Err(chunkserver::store::StoreError::Fenced { .. })), "{refused:?}");
    client.check_all(&layout, b"content");
}

/// Frees the file's chunk, of which `away` has a copy, and waits until the other copies are deleted.
fn freed(world: &World, client: &mut Client, ino: InodeNo, chunk: ChunkId) {
    client.op += 1;
    let cut = client.meta(MetaCall::Truncate { op: client.op, ino, size: 0 });
    assert!(matches!(cut, MetaReply::Outcome(Outcome::Attr(_))), "{cut:?}");
    world.until_held_by(chunk, &[]);
}

/// Until the master has forgotten that the freed chunk ever was.
fn until_forgotten(world: &World, chunk: ChunkId) {
    let start = Instant::now();
    let garbage = dfs_core::meta::Key::Garbage(chunk);
    while dfs_core::meta::MetaStore::get(&world.master().master.reader(), &garbage).is_some() {
        assert!(start.elapsed() < WAIT, "the master knows of {chunk:?} still");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_was_abandoned_goes_with_the_chunk_however_late_its_server_comes() {
    // What nobody knows would stay for longer than the test.
    let mut world = World::with(4, |config| config.orphan_wait_ms = 3_600_000);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let (layout, away) = replaced(&mut world, &mut client, ino);
    freed(&world, &mut client, ino, layout.chunk);
    world.start(away);
    assert_eq!(world.holders(layout.chunk), [away]);
    world.until_held_by(layout.chunk, &[]);
    until_forgotten(&world, layout.chunk);
}

#[test]
fn what_nobody_knows_goes_after_a_while() {
    let mut world = World::new(4);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let kept = client.create("kept");
    let (layout, away) = replaced(&mut world, &mut client, ino);
    client.write(kept, 0, b"kept");
    freed(&world, &mut client, ino, layout.chunk);
    // A master that has not heard of the abandoned copy waits for nothing: to its map the chunk never was.
    world.restart_master(|config| config.orphan_wait_ms = 1_000);
    until_forgotten(&world, layout.chunk);
    world.start(away);
    assert_eq!(world.holders(layout.chunk), [away]);
    world.until_held_by(layout.chunk, &[]);
    let mut client = Client { counter: client.counter, ..Client::new(&world, 1) };
    let layout = client.layout(kept, None);
    client.check_all(&layout, b"kept");
}
