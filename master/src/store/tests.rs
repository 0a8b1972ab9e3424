use std::sync::Arc;

use dfs_core::command::{Change, Command, NewKind, Outcome, XattrMode};
use dfs_core::ids::{FsId, InodeNo};
use dfs_core::meta::{self, Key, MemStore, MetaStore, Record};
use dfs_core::results::Results;
use dfs_core::time::WallTime;

use super::{Applied, RedbStore, StoreError};

pub(super) fn applied(index: u64) -> Applied {
    Applied { term: 1, index, group_state: index.to_le_bytes().to_vec() }
}

fn command(change: Change) -> Command {
    Command { at: WallTime(1_000), id: None, results: Results::default(), change }
}

/// A file of root's in the root directory.
pub(super) fn create_file(name: &[u8], open_existing: bool) -> Change {
    Change::Create {
        parent: InodeNo::ROOT,
        name: name.to_vec(),
        kind: NewKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        layout: None,
        open_existing,
    }
}

fn create(name: &str) -> Command {
    command(create_file(name.as_bytes(), false))
}

/// Everything in the store, as the model would have it.
pub(super) fn content(store: &dyn MetaStore) -> MemStore {
    let mut content = MemStore::new();
    let mut from = Key::Super;
    loop {
        let page = store.range(&from, &Key::LAST, 100);
        let Some((last, _)) = page.last() else { return content };
        let last = last.clone();
        for (key, record) in page {
            content.put(key, record);
        }
        if last == from {
            return content;
        }
        from = last;
    }
}

fn begin(store: &RedbStore) {
    store.batch(&applied(1), |store| meta::init(store, FsId(7), 3, 2, WallTime(1)));
}

/// Many small files, enough for several blocks of a snapshot.
fn fill(store: &RedbStore) {
    begin(store);
    store.batch(&applied(2), |store| {
        for i in 0..2_000 {
            assert!(matches!(
                meta::apply(store, &create(&format!("file-{i:05}"))),
                Outcome::Entry { .. }
            ));
        }
    });
}

#[test]
fn a_batch_reads_its_own_writes_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("state")).unwrap();
    begin(&store);
    let xattr = |name: &str| Key::Xattr(InodeNo(1), name.into());
    store.batch(&applied(2), |store| {
        for name in ["a", "c", "e", "g"] {
            store.put(xattr(name), Record::Xattr(name.into()));
        }
    });
    store.batch(&applied(3), |store| {
        store.put(xattr("b"), Record::Xattr(b"new".to_vec()));
        store.put(xattr("c"), Record::Xattr(b"changed".to_vec()));
        store.delete(&xattr("e"));
        store.put(xattr("h"), Record::Xattr(b"new".to_vec()));
        let names = |limit| {
            let range = store.range(&xattr("a"), &xattr("z"), limit);
            range
                .into_iter()
                .map(|(key, record)| match (key, record) {
                    (Key::Xattr(_, name), Record::Xattr(value)) => {
                        format!(
                            "{}={}",
                            String::from_utf8_lossy(&name),
                            String::from_utf8_lossy(&value)
                        )
                    }
                    other => panic!("{other:?}"),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(99), ["a=a", "b=new", "c=changed", "g=g", "h=new"]);
        assert_eq!(names(3), ["a=a", "b=new", "c=changed"]);
        assert_eq!(store.get(&xattr("e")), None);
        assert!(store.range(&xattr("z"), &xattr("a"), 9).is_empty());
    });
    assert_eq!(store.reader().get(&xattr("c")), Some(Record::Xattr(b"changed".to_vec())));
    assert_eq!(store.reader().get(&xattr("e")), None);
}

#[test]
fn a_view_keeps_showing_its_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(&dir.path().join("state")).unwrap());
    assert_eq!(store.reader().get(&Key::Super), None);
    begin(&store);
    let before = store.reader();
    store.batch(&applied(2), |store| meta::apply(store, &create("x")));
    let reader = Arc::clone(&store);
    std::thread::spawn(move || {
        assert!(meta::lookup(&before, InodeNo::ROOT, b"x").is_err());
        assert!(meta::lookup(&reader.reader(), InodeNo::ROOT, b"x").is_ok());
    })
    .join()
    .unwrap();
}

#[test]
fn a_closed_store_opens_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.applied(), None);
    fill(&store);
    store.checkpoint();
    assert_eq!(store.durable_index(), Some(2));
    assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse)));
    let before = content(&store.reader());
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.applied(), Some(applied(2)));
    assert_eq!(content(&store.reader()), before);
}

#[test]
fn what_is_no_store_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    for len in [1, 100, 5_000, 2_000_000] {
        std::fs::write(&path, vec![0x5a; len]).unwrap();
        let opened = RedbStore::open(&path);
        assert!(matches!(opened, Err(StoreError::Damaged(_))), "{len} bytes: {opened:?}");
    }
    // Cut short: the way a full disk or a bad copy leaves it.
    std::fs::remove_file(&path).unwrap();
    let store = RedbStore::open(&path).unwrap();
    fill(&store);
    store.checkpoint();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for len in [100, 4096, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let opened = RedbStore::open(&path);
        assert!(matches!(opened, Err(StoreError::Damaged(_))), "cut to {len}: {opened:?}");
    }
}

fn snapshot(store: &RedbStore) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.snapshot().unwrap()(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_snapshot_shows_the_moment_it_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("one")).unwrap();
    fill(&store);
    let state = content(&store.reader());
    let writer = store.snapshot().unwrap();
    store.batch(&applied(3), |store| {
        let change = Change::SetXattr {
            ino: InodeNo::ROOT,
            name: b"user.big".to_vec(),
            value: vec![1; 60_000],
            mode: XattrMode::Set,
        };
        meta::apply(store, &command(change))
    });
    let mut bytes = Vec::new();
    writer(&mut bytes).unwrap();

    let other = RedbStore::open(&dir.path().join("two")).unwrap();
    other.batch(&applied(1), |store| store.put(Key::Orphan(InodeNo(99)), Record::Orphan));
    other.install(&applied(2), &mut bytes.as_slice()).unwrap();
    assert_eq!(content(&other.reader()), state);
    assert_eq!(other.applied(), Some(applied(2)));
    assert_eq!(snapshot(&other), bytes);
    // Installed means durable.
    drop(other);
    let other = RedbStore::open(&dir.path().join("two")).unwrap();
    assert_eq!((other.applied(), content(&other.reader())), (Some(applied(2)), state));
}

#[test]
fn a_damaged_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("one")).unwrap();
    fill(&store);
    let bytes = snapshot(&store);
    let target = RedbStore::open(&dir.path().join("two")).unwrap();
    begin(&target);
    let before = content(&target.reader());
    let mut refused = 0;
    let mut check = |bytes: &[u8]| {
        assert!(target.install(&applied(9), &mut &bytes[..]).is_err());
        assert_eq!(target.applied(), Some(applied(1)));
        refused += 1;
    };
    for at in
        (0..bytes.len()).step_by(bytes.len() / 60).chain(0..20).chain(bytes.len() - 8..bytes.len())
    {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        check(&flipped);
    }
    for len in [0, 5, 12, 20, bytes.len() / 2, bytes.len() - 1] {
        check(&bytes[..len]);
    }
    let mut longer = bytes.clone();
    longer.push(0);
    check(&longer);
    assert!(80 < refused);
    assert_eq!(content(&target.reader()), before);
}

/// Views from before, during and after flushes, each against a copy of the model made at its moment.
#[test]
fn views_stay_whole_while_the_file_is_written_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = RedbStore::open(&path).unwrap().checkpoint_every(4_000);
    let mut model = MemStore::new();
    let mut views = std::collections::VecDeque::new();
    let key = |n: u64| Key::Xattr(InodeNo(1 + n % 3), format!("{:02}", n % 40).into());
    let mut lots = 7_u64;
    let mut draw = || {
        lots = lots.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        lots >> 33
    };
    for index in 1..=2_000 {
        store.batch(&applied(index), |store| {
            for _ in 0..=draw() % 4 {
                let (key, put) = (key(draw()), draw() % 3 != 0);
                let record = Record::Xattr(draw().to_le_bytes().repeat(20));
                for store in [&mut *store, &mut model] {
                    if put {
                        store.put(key.clone(), record.clone());
                    } else {
                        store.delete(&key);
                    }
                    assert_eq!(store.get(&key), put.then(|| record.clone()));
                }
            }
            let (from, below) = (key(draw()), key(draw()));
            assert_eq!(store.range(&from, &below, 9), model.range(&from, &below, 9));
        });
        views.push_back((store.reader(), model.clone()));
        if 50 < views.len() {
            let (view, model) = views.pop_front().unwrap();
            assert_eq!(content(&view), model, "entry {index}");
            let key = key(draw());
            assert_eq!(view.get(&key), model.get(&key));
        }
    }
    assert!(store.durable_index().is_some_and(|durable| 1_000 < durable), "nothing was flushed");
    store.checkpoint();
    drop(views);
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.applied(), Some(applied(2_000)));
    assert_eq!(content(&store.reader()), model);
}

/// A file with 2,000 records behind it, and its content.
fn closed_store(path: &std::path::Path) -> MemStore {
    let store = RedbStore::open(path).unwrap();
    fill(&store);
    store.checkpoint();
    content(&store.reader())
}

#[test]
fn changed_bytes_of_the_file_are_noticed_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = closed_store(&path);
    let whole = std::fs::read(&path).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    let mut check = |at: usize, damage: &dyn Fn(&mut [u8])| {
        let mut bytes = whole.clone();
        damage(&mut bytes[at..]);
        std::fs::write(&path, &bytes).unwrap();
        match RedbStore::open(&path) {
            Err(StoreError::Damaged(_)) => refused += 1,
            // Of an unused page, or one that redb can do without.
            Ok(store) => {
                harmless += 1;
                assert_eq!(content(&store.reader()), state, "at {at}");
            }
            Err(error) => panic!("at {at}: {error}"),
        }
    };
    // Where the values are, too: no length or pointer is touched.
    let values = whole.windows(11).enumerate().filter(|(_, found)| found.starts_with(b"file-0"));
    for (at, _) in values.step_by(97) {
        check(at + 8, &|bytes| bytes[0] ^= 1);
    }
    for at in (0..whole.len() - 4096).step_by(whole.len() / 150) {
        check(at, &|bytes| bytes[0] ^= 0x10);
        check(at, &|bytes| bytes[..4096].fill(0xa5));
    }
    assert!(20 < refused, "{refused} of {} were refused", refused + harmless);
}

/// As the disk would change it while the file is open.
fn change_in_file(store: &RedbStore, key: &[u8], change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
    let transaction = store.shared.begin().unwrap();
    {
        let mut table = transaction.open_table(super::TABLE).unwrap();
        let before = table.remove(key).unwrap().unwrap().value().to_vec();
        if let Some(after) = change(before) {
            table.insert(key, after.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    let view = super::ReadView { table: store.shared.table(), ..store.reader() };
    store.shared.show(view);
}

#[test]
fn no_snapshot_is_made_of_a_file_that_is_not_what_was_written() {
    type Change = fn(Vec<u8>) -> Option<Vec<u8>>;
    let flipped: Change = |mut value| {
        value[3] ^= 1;
        Some(value)
    };
    let gone: Change = |_| None;
    for change in [flipped, gone] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        closed_store(&path);
        let store = RedbStore::open(&path).unwrap();
        store.reader().verify().unwrap();
        let key = dfs_proto::convert::encode_key(&Key::Super);
        change_in_file(&store, &key, change);
        let error = store.reader().verify().unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
        let error = store.snapshot().unwrap()(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    }
}

#[test]
#[should_panic(expected = "wrong checksum")]
fn a_changed_record_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    closed_store(&path);
    let store = RedbStore::open(&path).unwrap();
    let key = dfs_proto::convert::encode_key(&Key::Super);
    change_in_file(&store, &key, |mut value| {
        value[3] ^= 1;
        Some(value)
    });
    store.reader().get(&Key::Super);
}

/// Changes of all kinds keep the totals right.
#[test]
fn what_was_written_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("state")).unwrap().checkpoint_every(1);
    let key = |n: u64| Key::Xattr(InodeNo(1), n.to_le_bytes().to_vec());
    for n in 0..300_u64 {
        store.batch(&applied(n + 1), |store| {
            store.put(key(n % 50), Record::Xattr(n.to_le_bytes().to_vec()));
            store.delete(&key(n * 7 % 60));
        });
    }
    store.checkpoint();
    store.reader().verify().unwrap();
    let bytes = snapshot(&store);
    store.install(&applied(301), &mut bytes.as_slice()).unwrap();
    store.reader().verify().unwrap();
}
