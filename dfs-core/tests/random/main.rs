//! Random commands against a naive model of names and contents. After every command: the outcome is the model's, no
//! invariant is broken, a refusal changed nothing, and the same command again gives the same answer and changes
//! nothing. At the end: a replay gives the same state. `PROPTEST_CASES` sets how many sequences.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test")]

mod model;

use std::cell::Cell;

use dfs_core::check::check;
use dfs_core::chunk::{Configuration, Member};
use dfs_core::client::ops::OpCounters;
use dfs_core::command::{
    Change, Command, LockKind, NewKind, Outcome, RenameMode, SetTime, XattrMode,
};
use dfs_core::ids::{
    ChunkId, ChunkVersion, ClientId, DiskId, Epoch, FsId, InodeNo, OpId, ServerId,
};
use dfs_core::meta::marks::{Mark, Shown};
use dfs_core::meta::{self, Key, MemStore, MetaStore};
use dfs_core::namespace::{Layout, NamespaceError, acl};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use model::Model;
use proptest::collection::vec;
use proptest::prelude::*;

const CLIENT: ClientId = ClientId(7);
const NAMES: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"", b"..", b"x/y"];

/// Numbers that become a command once it is known what there is.
#[derive(Clone, Debug)]
struct Draw {
    op: u8,
    a: u8,
    b: u8,
    c: u8,
    x: u16,
    y: u16,
    yes: bool,
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let draw = (
        any::<u8>(),
        any::<u8>(),
        any::<u8>(),
        any::<u8>(),
        any::<u16>(),
        any::<u16>(),
        any::<bool>(),
    )
        .prop_map(|(op, a, b, c, x, y, yes)| Draw { op, a, b, c, x, y, yes });
    vec(draw, 1..120)
}

fn member(server: u32) -> Member {
    Member { server: ServerId(server), disk: DiskId(u128::from(server) + 100) }
}

impl Draw {
    /// Mostly names that exist or may be made, sometimes ones that never may.
    fn name(pick: u8) -> Vec<u8> {
        let few = if pick.is_multiple_of(16) { NAMES.len() } else { 4 };
        NAMES[usize::from(pick / 16) % few].to_vec()
    }

    /// Mostly a directory, as most commands want one.
    fn parent(&self, pick: u8, model: &Model) -> InodeNo {
        if pick.is_multiple_of(8) { model.any(pick / 8) } else { model.directory(pick / 8) }
    }

    fn members(&self) -> Vec<Member> {
        let first = u32::from(self.c % 4) + 1;
        (0..1 + u32::from(self.c / 4 % 3)).map(|i| member((first + i - 1) % 5 + 1)).collect()
    }

    fn change(&self, store: &MemStore, model: &Model) -> Change {
        let Draw { op, a, b, c, x, y, yes } = self.clone();
        let file = model.file(b);
        let chunk = self.chunk(store);
        match op % 32 {
            0..=3 => Change::Create {
                parent: self.parent(a, model),
                name: Self::name(b),
                kind: match c % 8 {
                    0..=2 => NewKind::Directory,
                    3 => NewKind::Symlink(b"to".to_vec()),
                    4 => NewKind::CharDevice(u32::from(x)),
                    _ => NewKind::File,
                },
                mode: u32::from(x) & 0o7777,
                umask: 0o022,
                uid: 1,
                gid: 2,
                layout: (c % 16 == 7).then_some(Layout::striped(4096)),
                open_existing: yes,
            },
            4 | 5 => Change::Unlink { parent: self.parent(a, model), name: Self::name(b) },
            6 => Change::Rmdir { parent: self.parent(a, model), name: Self::name(b) },
            7 => Change::Link {
                ino: model.any(c),
                parent: self.parent(a, model),
                name: Self::name(b),
            },
            8 if yes && c % 2 == 0 => Change::CreateUnnamed {
                parent: self.parent(a, model),
                mode: u32::from(x) & 0o7777,
                umask: 0o022,
                uid: 1,
                gid: 2,
                layout: (b % 4 == 3).then_some(Layout::striped(4096)),
            },
            8 if yes => Change::PutInPlace {
                ino: if c % 8 == 1 { model.any(y.to_le_bytes()[0]) } else { model.orphan(b) },
                parent: self.parent(a, model),
                name: Self::name(x.to_le_bytes()[0]),
            },
            8..=11 => Change::Rename {
                from_parent: self.parent(a, model),
                from: Self::name(b),
                to_parent: self.parent(c, model),
                to: Self::name(x.to_le_bytes()[0]),
                mode: match y % 4 {
                    0 => RenameMode::NoReplace,
                    1 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                },
            },
            12 => Change::SetAttr {
                ino: model.any(a),
                mode: yes.then_some(u32::from(x)),
                uid: (c % 3 == 0).then_some(u32::from(y)),
                gid: (c % 5 == 0).then_some(u32::from(y)),
                atime: SetTime::Keep,
                mtime: if b % 2 == 0 { SetTime::Keep } else { SetTime::To(WallTime(i64::from(y))) },
                kill_priv: c % 7 == 0,
            },
            13 => self.xattr(model),
            14 => Change::RemoveXattr { ino: model.any(a), name: b"user.0".to_vec() },
            15 => Change::Reclaim { ino: if yes { model.orphan(a) } else { model.any(a) } },
            16 if c % 2 == 0 => Change::InlinePatch {
                ino: file,
                ranges: (0..u64::from(b % 4))
                    .map(|n| (u64::from(x % 4000) + n * 100, vec![a; usize::from(y % 200)]))
                    .collect(),
                mtime: None,
                kill_priv: yes,
            },
            16 | 17 => Change::InlineWrite {
                ino: file,
                offset: u64::from(x % 5000),
                data: vec![a; usize::from(y % 700)],
                append: c % 3 == 0,
                mtime: None,
                kill_priv: yes,
            },
            18 => Change::InlineZero {
                ino: file,
                offset: u64::from(x % 6000),
                len: u64::from(y % 3000),
                keep_size: yes,
            },
            19 => Change::InlineTruncate { ino: file, size: u64::from(x % 6000) },
            20 | 21 => Change::AddChunk {
                ino: file,
                index: if yes { 0 } else { u64::from(x % 4) },
                members: self.members(),
                primary: ServerId(u32::from(a % 4) + 1),
                attach: c % 3 != 0,
            },
            22 => Change::Spill {
                ino: file,
                change_seen: meta::attr(store, file).map_or(1, |attr| attr.change)
                    - u64::from(a % 8 == 1),
                chunk,
            },
            23 => Change::DropChunk { chunk },
            24 => Change::BeginWrite { ino: file },
            25 => Change::CommitSize {
                ino: file,
                size: u64::from(x) * 2,
                cuts_seen: meta::attr(store, file).map_or(0, |attr| attr.cuts)
                    + u64::from(a % 8 == 1),
                mtime: yes.then_some(WallTime(i64::from(y))),
                done_writing: c % 2 == 0,
                kill_priv: c % 3 == 0,
            },
            26 => Change::TruncateBegin { ino: file, size: u64::from(x) * 2 },
            27 => Change::TruncateEnd {
                ino: file,
                size: meta::truncating(store, file).unwrap_or(u64::from(x)),
            },
            28 if c % 2 == 0 => Change::Grow { ino: file, size: u64::from(x) * 2 },
            28 => {
                Change::FreeChunks { ino: file, first: u64::from(a % 3), count: u64::from(c % 3) }
            }
            29 => self.reconfiguration(store, chunk),
            30 => Change::SetLock {
                ino: model.any(a),
                client: ClientId(if c % 16 == 0 { 99 } else { u128::from(c % 2) + 7 }),
                owner: u64::from(b % 2),
                start: u64::from(x % 20),
                end: if yes { u64::MAX } else { u64::from(y % 20) },
                kind: match c / 16 % 3 {
                    0 => None,
                    1 => Some(LockKind::Shared),
                    _ => Some(LockKind::Exclusive),
                },
                pid: 1,
            },
            _ => match a % 8 {
                7 => {
                    let Member { server, disk } = member(1 + u32::from(b % 2));
                    let mark = |n: u8| Mark { number: u64::from(n % 4), nonce: 0 };
                    let (last, next, loss_accepted) = (mark(b / 2), mark(c), yes);
                    let shown = Shown { last, next, loss_accepted };
                    Change::MarkDisk { server, disk, shown }
                }
                6 => Change::SkipIds,
                5 => Change::NoteStored { chunks: vec![chunk, ChunkId(u64::from(b % 20))] },
                4 => Change::FenceClient { client: ClientId(8) },
                0 => Change::EndClient { client: ClientId(8) },
                1 => Change::BeginClient { client: ClientId(8), name: "second".into() },
                2 => Change::ForgetGarbage { chunk: ChunkId(u64::from(b % 20)) },
                _ => Change::SealChunk { chunk },
            },
        }
    }

    fn chunk(&self, store: &MemStore) -> ChunkId {
        let (from, below) = (Key::Chunk(ChunkId(0)), Key::Chunk(ChunkId(u64::MAX)));
        let chunks = store.range(&from, &below, usize::MAX);
        match chunks.get(usize::from(self.a) % chunks.len().max(1)) {
            Some((Key::Chunk(id), _)) => *id,
            _ => ChunkId(999),
        }
    }

    fn reconfiguration(&self, store: &MemStore, chunk: ChunkId) -> Change {
        let Draw { b, c, .. } = self.clone();
        let record = meta::chunk(store, chunk);
        let base = record.as_ref().map_or(Vec::new(), |record| record.active.members.clone());
        let preparing = record.as_ref().and_then(|record| record.preparing.clone());
        if let (true, Some(preparing)) = (c % 4 != 0, preparing) {
            let mut members = preparing.members;
            members.extend(preparing.learner.filter(|_| b % 2 == 0));
            if b % 8 == 7 {
                members.push(member(5));
            }
            let primary = members.first().map_or(ServerId(1), |member| member.server);
            let version = ChunkVersion(preparing.version.0 - u64::from(b % 16 == 3));
            return Change::Activate {
                chunk,
                configuration: Configuration { version, members, primary },
                done_by: None,
            };
        }
        let kept = base.len().saturating_sub(usize::from(b % 2));
        Change::Reconfigure {
            chunk,
            version: ChunkVersion(
                record.map_or(1, |record| record.next_version.0) + u64::from(c % 8 == 7),
            ),
            members: if b % 16 == 5 { self.members() } else { base[..kept].to_vec() },
            learner: (b % 4 < 2).then(|| member(u32::from(c % 6))),
            after_wait: c % 16 == 1,
        }
    }

    fn xattr(&self, model: &Model) -> Change {
        let Draw { a, b, c, x, y, .. } = self.clone();
        let (name, value) = match c % 4 {
            0 => (acl::ACCESS_NAME.to_vec(), acl_bytes(x)),
            1 => (acl::DEFAULT_NAME.to_vec(), acl_bytes(x)),
            _ => (format!("user.{}", b % 3).into_bytes(), vec![b; usize::from(y)]),
        };
        let mode = match y % 3 {
            0 => XattrMode::Create,
            1 => XattrMode::Replace,
            _ => XattrMode::Set,
        };
        Change::SetXattr { ino: model.any(a), name, value, mode }
    }
}

/// An ACL, sometimes with a named user, sometimes without the mask that then must be there.
fn acl_bytes(bits: u16) -> Vec<u8> {
    let mut entries: Vec<(u8, u16, u32)> = vec![
        (0x01, bits & 7, u32::MAX),
        (0x04, bits >> 3 & 7, u32::MAX),
        (0x20, bits >> 6 & 7, u32::MAX),
    ];
    if bits & 0x1000 != 0 {
        entries.insert(1, (0x02, bits >> 9 & 7, 1000));
        if bits & 0x2000 != 0 {
            entries.insert(3, (0x10, 6, u32::MAX));
        }
    }
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&[tag, 0]);
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn command(op: u64, change: Change) -> Command {
    let oldest = op.saturating_sub(5);
    // Every third says of some that they are awaited, the older ones are remembered longer or were forgotten already.
    let results = match op % 3 {
        0 => Results::all_below(oldest),
        rest => {
            Results::all_but((oldest..op).filter(|older| older % (1 + rest) == 0).collect(), op)
                .unwrap()
        }
    };
    Command { at: WallTime(50), id: Some(OpId { client: CLIENT, op, part: 0 }), results, change }
}

fn leader(change: Change) -> Command {
    Command { at: WallTime(10), id: None, results: Results::default(), change }
}

/// The beginning of every log here.
fn prelude() -> Vec<Command> {
    let start =
        Change::Start { epoch: Epoch(1), nonce: 5, fs: FsId(3), replication: 3, min_replicas: 2 };
    let mut commands = vec![leader(start)];
    for client in [7, 8] {
        commands
            .push(leader(Change::BeginClient { client: ClientId(client), name: "test".into() }));
    }
    for server in 1..=5 {
        let Member { server, disk } = member(server);
        commands.push(leader(Change::RegisterServer { server, disk }));
    }
    commands
}

/// The state without what is recorded for exactly once.
fn lasting(store: &MemStore) -> MemStore {
    let mut lasting = MemStore::new();
    for (key, record) in store.iter() {
        if !matches!(key, Key::Client(_) | Key::Reply(..)) {
            lasting.put(key.clone(), record.clone());
        }
    }
    lasting
}

fn run(draws: &[Draw]) -> Result<(), TestCaseError> {
    let mut store = MemStore::new();
    let mut log = prelude();
    for command in &log {
        prop_assert_eq!(meta::apply(&mut store, command), Outcome::Done);
    }
    let mut model = Model::new();
    for (op, draw) in (1..).zip(draws) {
        let change = draw.change(&store, &model);
        let clients = change.is_of_sessions();
        let command = if clients { leader(change) } else { command(op, change) };
        let before = lasting(&store);
        let old = store.clone();
        let outcome = meta::apply(&mut store, &command);
        let wrong = check(&store);
        prop_assert!(wrong.is_empty(), "{command:?}\n{outcome:?}\n{wrong:?}");

        if let Outcome::Refused(refusal) = &outcome {
            prop_assert_eq!(&lasting(&store), &before, "{:?} refused {:?}", command, refusal);
        }
        if let Some(expected) = model.apply(&command.change, &outcome) {
            let same = match (&outcome, &expected) {
                (Outcome::Refused(found), Err(expected)) => {
                    std::mem::discriminant(found) == std::mem::discriminant(expected)
                }
                (Outcome::Refused(_), Ok(())) | (_, Err(_)) => false,
                (_, Ok(())) => true,
            };
            prop_assert!(same, "{command:?}: {outcome:?}, the model says {expected:?}");
        }
        model.compare(&store, &command).map_err(TestCaseError::fail)?;

        let after = store.clone();
        if clients {
            log.push(command);
            continue;
        }
        prop_assert_eq!(meta::apply(&mut store, &command), outcome, "the retry of {:?}", &command);
        prop_assert_eq!(&store, &after, "the retry of {:?} changed something", &command);
        changes_rise(&old, &store, &command)?;
        log.push(command);
    }
    let mut again = MemStore::new();
    for command in &log {
        meta::apply(&mut again, command);
    }
    prop_assert_eq!(again, store, "the replay");
    Ok(())
}

/// Whoever changes what `stat` or `read` shows raises the change number and, but for the size and chunk bookkeeping
/// of writers, ctime; none ever falls.
fn changes_rise(old: &MemStore, new: &MemStore, command: &Command) -> Result<(), TestCaseError> {
    for (key, before) in old.iter() {
        let (Key::Inode(ino), meta::Record::Inode(before)) = (key, before) else { continue };
        let Some(after) = meta::inode(new, *ino) else { continue };
        prop_assert!(before.change <= after.change && before.ctime <= after.ctime, "{command:?}");
        let shown = |inode: &dfs_core::namespace::Inode| {
            (inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.mtime, inode.atime)
        };
        if shown(before) != shown(&after) {
            prop_assert!(before.change < after.change && before.ctime < after.ctime, "{command:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_command_does_what_the_model_does(draws in draws()) {
        run(&draws)?;
    }
}

fn missing_unlink(op: u64, low_water: u64) -> Command {
    Command {
        at: WallTime(0),
        id: Some(OpId { client: CLIENT, op, part: 0 }),
        results: Results::all_below(low_water),
        change: Change::Unlink { parent: InodeNo::ROOT, name: b"none".to_vec() },
    }
}

/// A million files by 16 callers stood still for five minutes: one caller was late, the others had used up the limit,
/// and the mark that would have helped waited for the one that was refused.
#[test]
fn the_oldest_operation_is_taken_at_the_limit() {
    let mut store = MemStore::new();
    for command in prelude() {
        meta::apply(&mut store, &command);
    }
    let refused = |error| Outcome::Refused(error);
    for op in 1..=u64::from(meta::OUTSTANDING_MAX) {
        let outcome = meta::apply(&mut store, &missing_unlink(op, 0));
        assert_eq!(outcome, refused(NamespaceError::NotFound));
    }
    let late = missing_unlink(2_000, 0);
    assert_eq!(meta::apply(&mut store, &late), refused(NamespaceError::Busy));
    let oldest = missing_unlink(0, 0);
    assert_eq!(meta::apply(&mut store, &oldest), refused(NamespaceError::NotFound));
    assert!(check(&store).is_empty());
    let goes_on = missing_unlink(2_000, 2_000);
    assert_eq!(meta::apply(&mut store, &goes_on), refused(NamespaceError::NotFound));
    assert!(check(&store).is_empty());
}

/// A truncation that waited for servers made every other request of its mount wait.
#[test]
fn one_operation_that_is_awaited_holds_no_results_of_others() {
    let mut store = MemStore::new();
    for command in prelude() {
        meta::apply(&mut store, &command);
    }
    let not_found = Outcome::Refused(NamespaceError::NotFound);
    let unknown = Outcome::Refused(NamespaceError::OutcomeUnknown);
    let mut ops = OpCounters::default();
    let waits = ops.begin();
    let begun = Command {
        change: make(InodeNo::ROOT, b"waits", NewKind::File),
        ..missing_unlink(waits, 1)
    };
    let made = meta::apply(&mut store, &begun);
    let mut sent = Vec::new();
    for _ in 0..5 * meta::OUTSTANDING_MAX {
        let op = ops.begin();
        let command = Command { results: ops.results(), ..missing_unlink(op, 0) };
        assert_eq!(meta::apply(&mut store, &command), not_found, "{op}");
        // Asked again, before its client has the answer.
        assert_eq!(meta::apply(&mut store, &command), not_found, "{op}");
        ops.end(op);
        sent.push(command);
    }
    assert!(check(&store).is_empty());
    assert!(meta::client(&store, CLIENT).unwrap().reply_count < 300);
    // None of them is done again: what it would do now is another thing.
    let (last, older) = sent.split_last().unwrap();
    for command in older {
        let now = make(InodeNo::ROOT, b"again", NewKind::File);
        let again = meta::apply(&mut store, &Command { change: now, ..command.clone() });
        assert_eq!(again, unknown);
    }
    assert_eq!(meta::apply(&mut store, last), not_found);
    // The one that waited is what it was.
    assert_eq!(meta::apply(&mut store, &begun), made);
    ops.end(waits);
    let next = Command { results: ops.results(), ..missing_unlink(ops.begin(), 0) };
    assert_eq!(meta::apply(&mut store, &next), not_found);
    let client = meta::client(&store, CLIENT).unwrap();
    assert_eq!((client.reply_count, client.results), (1, next.results));
    assert_eq!(meta::apply(&mut store, &begun), unknown);
    assert!(check(&store).is_empty());
}

#[test]
fn exactly_once_has_its_limits() {
    let mut store = MemStore::new();
    for command in prelude() {
        meta::apply(&mut store, &command);
    }
    let create = missing_unlink;
    let refused = |error| Outcome::Refused(error);
    for op in 0..u64::from(meta::OUTSTANDING_MAX) {
        assert_eq!(meta::apply(&mut store, &create(op, 0)), refused(NamespaceError::NotFound));
    }
    // Nothing of a command that was told to come again is recorded.
    assert_eq!(meta::apply(&mut store, &create(5000, 0)), refused(NamespaceError::Busy));
    assert_eq!(meta::apply(&mut store, &create(5000, 0)), refused(NamespaceError::Busy));
    assert_eq!(meta::apply(&mut store, &create(5000, 1)), refused(NamespaceError::NotFound));
    assert_eq!(meta::apply(&mut store, &create(0, 0)), refused(NamespaceError::OutcomeUnknown));
    assert_eq!(meta::apply(&mut store, &create(5001, 4000)), refused(NamespaceError::NotFound));
    assert_eq!(meta::client(&store, CLIENT).unwrap().reply_count, 2);
    // A mark above its own operation must not drop that operation's result.
    assert_eq!(meta::apply(&mut store, &create(5002, 9000)), refused(NamespaceError::NotFound));
    assert_eq!(meta::apply(&mut store, &create(5002, 9000)), refused(NamespaceError::NotFound));
    assert!(check(&store).is_empty());

    let lock = Change::SetLock {
        ino: InodeNo::ROOT,
        client: CLIENT,
        owner: 1,
        start: 0,
        end: 9,
        kind: Some(LockKind::Exclusive),
        pid: 1,
    };
    meta::apply(&mut store, &leader(lock));
    // Refused, even what was answered before and a new beginning, but its locks are nobody else's yet.
    meta::apply(&mut store, &leader(Change::FenceClient { client: CLIENT }));
    for op in [5002, 6000] {
        assert_eq!(meta::apply(&mut store, &create(op, 0)), refused(NamespaceError::NoSession));
    }
    let again = Change::BeginClient { client: CLIENT, name: "again".into() };
    assert_eq!(meta::apply(&mut store, &leader(again)), refused(NamespaceError::NoSession));
    assert_eq!(meta::locks(&store, InodeNo::ROOT).len(), 1);
    assert_eq!(
        meta::apply(&mut store, &leader(Change::EndClient { client: CLIENT })),
        Outcome::LockChanged
    );
    assert!(meta::locks(&store, InodeNo::ROOT).is_empty());
    assert_eq!(meta::apply(&mut store, &create(6000, 0)), refused(NamespaceError::NoSession));
    assert!(!store.iter().any(|(key, _)| matches!(key, Key::Reply(..))));
}

/// Counts what a command asks of its store.
#[derive(Default)]
struct Counting {
    store: MemStore,
    gets: Cell<u32>,
    ranged: Cell<usize>,
    puts: u32,
    deletes: u32,
}

impl MetaStore for Counting {
    fn get(&self, key: &Key) -> Option<meta::Record> {
        self.gets.set(self.gets.get() + 1);
        self.store.get(key)
    }
    fn put(&mut self, key: Key, record: meta::Record) {
        self.puts += 1;
        self.store.put(key, record);
    }
    fn delete(&mut self, key: &Key) {
        self.deletes += 1;
        self.store.delete(key);
    }
    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, meta::Record)> {
        let found = self.store.range(from, below, limit);
        self.ranged.set(self.ranged.get() + found.len());
        found
    }
}

/// The rate of creates hangs on this: whatever is in the directory, one create touches a handful of records.
#[test]
fn a_create_touches_few_records_in_a_full_directory() {
    let mut store = Counting::default();
    for command in prelude() {
        meta::apply(&mut store, &command);
    }
    let create = |op: u64| Command {
        at: WallTime(0),
        id: Some(OpId { client: CLIENT, op, part: 0 }),
        results: Results::all_below(op),
        change: make(InodeNo::ROOT, format!("file {op}").as_bytes(), NewKind::File),
    };
    for op in 0..1000 {
        meta::apply(&mut store, &create(op));
    }
    let (gets, ranged, puts, deletes) =
        (store.gets.get(), store.ranged.get(), store.puts, store.deletes);
    assert!(matches!(meta::apply(&mut store, &create(1000)), Outcome::Entry { created: true, .. }));
    // Superblock, client, reply, directory, name, default ACL; and once more what is written, with the slot.
    assert_eq!(store.gets.get() - gets, 6);
    assert_eq!(store.puts - puts, 7);
    assert_eq!(
        (store.ranged.get() - ranged, store.deletes - deletes),
        (1, 1),
        "the one result the client has"
    );
}

/// A new entry of root's, as the test does not mind how.
fn make(parent: InodeNo, name: &[u8], kind: NewKind) -> Change {
    Change::Create {
        parent,
        name: name.to_vec(),
        kind,
        mode: 0o755,
        umask: 0,
        uid: 0,
        gid: 0,
        layout: None,
        open_existing: false,
    }
}

type Damage = fn(&mut meta::Record);

/// Each kind of damage is seen, or the walk above proves nothing.
#[test]
fn check_finds_what_is_broken() {
    let mut store = MemStore::new();
    let mut commands = prelude();
    let changes = [
        make(InodeNo(1), b"dir", NewKind::Directory),
        make(InodeNo(2), b"sub", NewKind::Directory),
        make(InodeNo(2), b"file", NewKind::File),
        Change::BeginWrite { ino: InodeNo(4) },
        Change::AddChunk {
            ino: InodeNo(4),
            index: 0,
            members: vec![member(1), member(2)],
            primary: ServerId(1),
            attach: true,
        },
        Change::CommitSize {
            ino: InodeNo(4),
            size: 10,
            cuts_seen: 0,
            mtime: None,
            done_writing: true,
            kill_priv: false,
        },
        make(InodeNo(1), b"open", NewKind::File),
        Change::Unlink { parent: InodeNo(1), name: b"open".to_vec() },
        Change::SetLock {
            ino: InodeNo(4),
            client: CLIENT,
            owner: 1,
            start: 0,
            end: 9,
            kind: Some(LockKind::Shared),
            pid: 0,
        },
    ];
    commands.extend((1..).zip(changes).map(|(op, change)| command(op, change)));
    for command in &commands {
        let outcome = meta::apply(&mut store, command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
    }
    assert_eq!(check(&store), []);

    let keys: Vec<Key> = store.iter().map(|(key, _)| key.clone()).collect();
    for key in keys {
        // Nothing refers to these: a chunk may name a server that is long gone.
        if matches!(key, Key::Server(_) | Key::Locks(_) | Key::Event(_) | Key::JobState(..))
            || key == Key::Client(ClientId(8))
        {
            continue;
        }
        let mut broken = store.clone();
        broken.delete(&key);
        assert!(!check(&broken).is_empty(), "{key:?} is missing and nobody noticed");
    }
    let damage: [(&str, Damage); 8] = [
        ("nlink", |record| {
            if let meta::Record::Inode(inode) = record {
                inode.nlink += 1
            }
        }),
        ("counts", |record| {
            if let meta::Record::Super(sb) = record {
                sb.file_bytes += 1
            }
        }),
        ("inodes", |record| {
            if let meta::Record::Super(sb) = record {
                sb.inode_count += 1
            }
        }),
        ("chunks", |record| {
            if let meta::Record::Super(sb) = record {
                sb.chunk_count += 1
            }
        }),
        ("members", |record| {
            if let meta::Record::Chunk(chunk) = record {
                let first = chunk.active.members[0];
                chunk.active.members.push(first);
            }
        }),
        ("version", |record| {
            if let meta::Record::Chunk(chunk) = record {
                chunk.next_version = ChunkVersion(1)
            }
        }),
        ("born", |record| {
            if let meta::Record::Chunk(chunk) = record {
                chunk.born = false
            }
        }),
        ("replies", |record| {
            if let meta::Record::Client(client) = record {
                client.reply_count += 1
            }
        }),
    ];
    for (what, damage) in damage {
        let mut broken = store.clone();
        for (key, record) in store.iter() {
            let mut record = record.clone();
            damage(&mut record);
            broken.put(key.clone(), record);
        }
        assert!(!check(&broken).is_empty(), "{what} is wrong and nobody noticed");
    }
}
