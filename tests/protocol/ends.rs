//! Clients that end, by their own word or because they were silent: what they held is free only when nobody takes
//! anything of them any more.

use dfs_core::command::LockKind;
use dfs_core::namespace::NamespaceError;

use super::*;

const LEASE: Duration = Duration::from_millis(1500);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Client {
    fn lock(&mut self, ino: InodeNo) -> MetaReply {
        self.op += 1;
        let (kind, op) = (Some(LockKind::Exclusive), self.op);
        let (owner, start, end, pid, wait_ms) = (1, 0, u64::MAX, 1, 0);
        self.meta(MetaCall::SetLock { op, ino, owner, start, end, kind, pid, wait_ms })
    }
}

impl World {
    fn remembered(&self, client: ClientId) -> usize {
        let running = self.chunkservers.iter().flatten();
        running.filter(|server| server.store().clients().contains(&client)).count()
    }
}

fn is_locked(reply: &MetaReply) -> bool {
    matches!(reply, MetaReply::Outcome(Outcome::Refused(NamespaceError::Locked)))
}

fn is_no_session(reply: &MetaReply) -> bool {
    let refused = |error: &NamespaceError| *error == NamespaceError::NoSession;
    match reply {
        MetaReply::Failed(MetaFailure::Refused(error)) => refused(error),
        MetaReply::Outcome(Outcome::Refused(error)) => refused(error),
        _ => false,
    }
}

#[test]
fn a_silent_client_is_refused_everywhere_before_its_lock_is_free() {
    let mut world =
        World::with(4, |config| config.client_lease_ms = LEASE.as_millis().try_into().unwrap());
    let mut silent = Client::new(&world, 1);
    let mut other = Client::new(&world, 2);
    let ino = silent.create("file");
    silent.write(ino, 0, b"under the lock");
    assert_eq!(silent.lock(ino), MetaReply::Outcome(Outcome::Done));
    let layout = silent.layout(ino, None);
    assert_eq!(world.remembered(silent.id), 3);
    assert!(is_locked(&other.lock(ino)));

    // One server hears nothing of the end.
    let away = (1..=4).find(|n| layout.primary != ServerId(*n)).unwrap();
    world.stop(away);
    silent.counter += 1;
    until("the lock is free", || {
        let reply = other.lock(ino);
        let free = reply == MetaReply::Outcome(Outcome::Done);
        assert!(free || is_locked(&reply), "{reply:?}");
        free
    });
    let late = silent.try_write(&layout, 0, b"too late").unwrap_err();
    assert!(late.contains("lease ended"), "{late}");
    assert!(is_no_session(&silent.meta(MetaCall::Ping)));
    assert!(is_no_session(&Client::greet(&world, 1, true).1));
    until("replicas forget it", || world.remembered(silent.id) == 0);

    // It comes back, refuses at once, and forgets too.
    world.start(away);
    until("it forgets", || world.remembered(silent.id) == 0);
    let ended = world.dir.path().join(format!("cs-{away}/ended_clients"));
    until("it refuses", || {
        std::fs::read_to_string(&ended).is_ok_and(|text| text.lines().count() == 1)
    });

    // The next reign knows that it ended, and knows who did not.
    world.restart_master(|_| {});
    assert!(is_no_session(&Client::greet(&world, 1, true).1));
    let (mut other, welcome) = Client::greet(&world, 2, true);
    assert!(matches!(welcome, MetaReply::Welcome(_)), "{welcome:?}");
    other.counter = 1;
    other.op = 1000;
    other.write(ino, 0, b"of the other");
    let late = silent.try_write(&layout, 0, b"too late").unwrap_err();
    assert!(!late.is_empty());
    let layout = other.layout(ino, None);
    other.check_all(&layout, b"of the otherck");
}

#[test]
fn who_says_goodbye_is_forgotten_also_by_servers_that_were_away() {
    let mut world = World::new(3);
    let mut stays = Client::new(&world, 1);
    let mut leaves = Client::new(&world, 2);
    let ino = stays.create("file");
    leaves.write(ino, 0, b"one");
    stays.write(ino, 0, b"two");
    assert_eq!((world.remembered(stays.id), world.remembered(leaves.id)), (3, 3));
    world.stop(3);
    assert_eq!(leaves.meta(MetaCall::Goodbye), MetaReply::Done);
    until("forgotten", || world.remembered(leaves.id) == 0);

    // Nor does a new master need to remember who left.
    world.restart_master(|_| {});
    world.start(3);
    until("forgotten by the third", || world.remembered(leaves.id) == 0);
    assert_eq!(world.remembered(stays.id), 3);
    let (again, welcome) = Client::greet(&world, 1, true);
    assert!(matches!(welcome, MetaReply::Welcome(_)), "{welcome:?}");
    let mut stays = Client { counter: stays.counter, op: 1000, ..again };
    let layout = stays.write(ino, 0, b"six");
    stays.check_all(&layout, b"six");
}
