//! Snapshots and the purge of the log behind them, on a real directory: what is purged, and what a master finds that has
//! lost its store and has only snapshot and log.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dfs_core::command::{Change, NewKind, Outcome, RenameMode, XattrMode};
use dfs_core::ids::InodeNo;
use dfs_core::meta::{Key, MetaStore as _, Record};
use dfs_proto::meta_rpc::{MetaCall, MetaReply};
use master::{Config, Server};

use harness::{Caller, WAIT};

const ENTRIES: u64 = 200;

fn start(dir: &Path) -> Server {
    let config = Config { snapshot_entries: ENTRIES, ..harness::config(dir, 16 << 10) };
    Server::start(config).unwrap()
}

/// A client that changes the namespace, some of everything.
struct Client {
    caller: Caller,
    op: u64,
}

impl Client {
    fn new(server: &Server, op: u64) -> Self {
        Self { caller: Caller::new(server, 1), op }
    }

    fn call(&mut self, call: MetaCall) -> MetaReply {
        self.caller.call(self.op, call)
    }

    fn change(&mut self, change: Change) -> Outcome {
        self.op += 1;
        match self.call(MetaCall::Change { op: self.op, part: 0, change }) {
            MetaReply::Outcome(Outcome::Refused(error)) => panic!("{error}"),
            MetaReply::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn make(&mut self, parent: InodeNo, name: String, kind: NewKind) -> InodeNo {
        let change = harness::create(parent, &name, kind);
        let Outcome::Entry { attr, .. } = self.change(change) else { panic!("not made") };
        attr.ino
    }

    /// Ten entries or so of the log.
    fn work(&mut self, n: u64) {
        let dir = self.make(InodeNo::ROOT, format!("dir{n}"), NewKind::Directory);
        let file = self.make(dir, "file".to_owned(), NewKind::File);
        let data = format!("content {n}").into_bytes();
        self.change(Change::InlineWrite {
            ino: file,
            offset: n % 7,
            data,
            append: false,
            mtime: None,
            kill_priv: false,
        });
        let target = format!("../dir{n}").into_bytes();
        self.make(dir, "symlink".to_owned(), NewKind::Symlink(target));
        self.change(Change::Link { ino: file, parent: dir, name: b"hard".to_vec() });
        self.change(Change::SetXattr {
            ino: file,
            name: b"user.n".to_vec(),
            value: n.to_le_bytes().to_vec(),
            mode: XattrMode::Set,
        });
        self.change(Change::Rename {
            from_parent: dir,
            from: b"hard".to_vec(),
            to_parent: InodeNo::ROOT,
            to: format!("moved{}", n % 50).into_bytes(),
            mode: RenameMode::Replace,
        });
        self.make(dir, "gone".to_owned(), NewKind::File);
        self.change(Change::Unlink { parent: dir, name: b"gone".to_vec() });
    }
}

/// Everything but what a new reign changes.
fn state(server: &Server) -> Vec<(Key, Record)> {
    let above = Key::LAST;
    let mut all = server.master.reader().range(&Key::Super, &above, usize::MAX);
    all.retain(|(key, _)| !matches!(key, Key::Super | Key::Event(_)));
    all
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(dir).map(|entries| entries.map(|e| e.unwrap().path()).collect());
    let mut names: Vec<PathBuf> = listed.unwrap_or_default();
    names.sort_unstable();
    names
}

/// The last entries that the snapshots include, and where they are, the older first.
fn snapshots(dir: &Path) -> Vec<(u64, PathBuf)> {
    let found = names(&dir.join("snapshots")).into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".snapshot")?.to_owned();
        Some((name.split('-').next()?.parse().unwrap(), path))
    });
    found.collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut names = names(&dir.join("log"));
    names.retain(|path| path.extension().is_some_and(|end| end == "log"));
    names
}

/// Works until the newest snapshot is another one.
fn until_next_snapshot(server: &Server, client: &mut Client, dir: &Path) {
    let before = snapshots(dir).last().map(|(index, _)| *index);
    let start = Instant::now();
    while snapshots(dir).last().map(|(index, _)| *index) == before {
        assert!(start.elapsed() < WAIT, "no snapshot after {before:?}");
        for _ in 0..10 {
            client.work(client.op);
        }
    }
    // Purged, or not, right behind it.
    let newest = snapshots(dir).last().map(|(index, _)| *index);
    while server.master.group.snapshot_index() != newest {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn damage(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn the_log_goes_behind_two_snapshots_and_what_is_left_gives_the_same_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = start(dir);
    let mut client = Client::new(&server, 0);
    let first = segments(dir)[0].clone();
    until_next_snapshot(&server, &mut client, dir);
    assert_eq!(snapshots(dir).len(), 1);
    assert!(1 < segments(dir).len() && first.exists(), "one snapshot is not enough");

    until_next_snapshot(&server, &mut client, dir);
    wait_until("the first segment is gone", || !first.exists());
    for _ in 0..3 {
        until_next_snapshot(&server, &mut client, dir);
    }
    assert_eq!(snapshots(dir).len(), 2);
    // No more than what two snapshots and the entries since are about.
    let bound = client.op * 300 / (16 << 10);
    wait_until("the log is short", || (segments(dir).len() as u64) < bound / 2);

    // Not behind one that does not read back: it goes, and the whole one before it stays.
    let (whole, damaged) = (snapshots(dir)[0].clone(), snapshots(dir).pop().unwrap().1);
    damage(&damaged);
    until_next_snapshot(&server, &mut client, dir);
    let path = damaged.display().to_string();
    let removed = |text: &String| text.contains("snapshot was removed") && text.contains(&path);
    let notices = || server.master.notices();
    wait_until("it says so", || notices().iter().any(|(_, text)| removed(text)));
    let kept = segments(dir);
    assert_eq!((snapshots(dir).len(), &snapshots(dir)[0]), (2, &whole));
    until_next_snapshot(&server, &mut client, dir);
    wait_until("it is purged again", || !kept[0].exists());

    // A last part that is in the log only.
    client.work(client.op);
    // What was removed is reclaimed in the background.
    let mut before = state(&server);
    wait_until("nothing changes any more", || {
        std::thread::sleep(Duration::from_millis(1_500));
        let was = std::mem::replace(&mut before, state(&server));
        was == before
    });
    let op = client.op;
    server.stop();

    for damaged in [false, true] {
        std::fs::remove_file(dir.join("state.redb")).unwrap();
        if damaged {
            // The older one and a longer part of the log do as well.
            damage(&snapshots(dir).pop().unwrap().1);
        }
        let server = start(dir);
        assert!(state(&server) == before, "damaged: {damaged}");
        server.stop();
    }
    // With the state there, none is needed: the start itself writes one in their place.
    for (_, path) in snapshots(dir) {
        std::fs::write(path, b"").unwrap();
    }
    let server = start(dir);
    assert!(state(&server) == before);
    assert_eq!(snapshots(dir).len(), 1);
    let removed = |text: &String| text.contains("snapshot was removed") && text.contains("byte 0");
    let notices = || server.master.notices();
    let told = || notices().iter().filter(|(_, text)| removed(text)).count();
    wait_until("it says so of both", || told() == 2);
    server.stop();
    // And it goes on from there.
    let server = start(dir);
    let mut client = Client::new(&server, op);
    until_next_snapshot(&server, &mut client, dir);
    until_next_snapshot(&server, &mut client, dir);
    let before = state(&server);
    server.stop();
    std::fs::remove_file(dir.join("state.redb")).unwrap();
    let server = start(dir);
    assert!(state(&server) == before);
    server.stop();
}

#[test]
fn a_master_that_restarts_often_still_makes_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut op = 0;
    // None of the reigns is long enough alone.
    for _ in 0..5 {
        let server = start(dir);
        let mut client = Client::new(&server, op);
        while client.op < op + ENTRIES / 3 {
            client.work(client.op);
        }
        op = client.op;
        std::thread::sleep(Duration::from_millis(600));
        server.stop();
    }
    assert!(!snapshots(dir).is_empty());
}
