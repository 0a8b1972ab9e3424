//! Files that lost their last name and are kept for a while, if that is set: people can have them back.
//!
//! What is in the trash is no orphan: nothing of it is freed. Its end makes it one. It counts as used space all the time.

use super::transaction::{Answer, Transaction};
use super::{Key, MetaStore, Record, Trashed, read};
use crate::command::Outcome;
use crate::event::EventKind;
use crate::ids::InodeNo;
use crate::namespace::{Inode, NamespaceError};
use crate::time::WallTime;

/// Entries that one command empties.
pub const EMPTIED_MAX: usize = 1_000;

impl Transaction<'_> {
    /// `keep_ms` 0: from now on nothing is kept that is deleted. What is in the trash stays as long as it was promised.
    pub(super) fn set_trash(&mut self, keep_ms: u64, by: &str) -> Answer {
        if self.superblock.trash_ms != keep_ms {
            self.superblock.trash_ms = keep_ms;
            let by: String = by.chars().take(200).collect();
            let text = match keep_ms {
                0 => format!("deleted files are no longer kept, by {by}"),
                ms => format!("deleted files are kept for {} s, by {by}", ms / 1000),
            };
            self.note(EventKind::Wished, None, &text, None);
        }
        Ok(Outcome::Done)
    }

    /// `ino` has just lost its last name.
    pub(super) fn put_in_trash(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) {
        let number = self.superblock.next_trash;
        self.superblock.next_trash += 1;
        let millis = i64::try_from(self.superblock.trash_ms).unwrap_or(i64::MAX);
        let until = WallTime(self.now.0.saturating_add(millis.saturating_mul(1_000_000)));
        let record = Trashed { ino, parent, name: name.to_vec(), at: self.now, until };
        self.store.put(Key::Trash(number), Record::Trash(record));
    }

    /// Gives it a name again.
    pub(super) fn restore(&mut self, number: u64, parent: InodeNo, name: &[u8]) -> Answer {
        super::names::check_name(name)?;
        let Some(trashed) = read::trashed(self.store, number) else {
            return Err(NamespaceError::NotFound);
        };
        let directory = self.live_directory(parent)?;
        if read::dentry(self.store, parent, name).is_some() {
            return Err(NamespaceError::Exists);
        }
        let inode = self.inode(trashed.ino)?;
        let mut inode = Inode { nlink: 1, ..inode };
        self.touch(&mut inode, false);
        let attr = read::attr_of(self.store, trashed.ino, &inode);
        let kind = inode.kind;
        self.put_inode(trashed.ino, inode);
        self.add_entry(parent, directory, name, trashed.ino, kind);
        self.store.delete(&Key::Trash(number));
        Ok(Outcome::Entry { attr, created: true })
    }

    /// `Number`: how many of these were in the trash.
    pub(super) fn empty_trash(&mut self, numbers: &[u64]) -> Answer {
        if EMPTIED_MAX < numbers.len() {
            let text = format!("at most {EMPTIED_MAX} at once, not {}", numbers.len());
            return Err(NamespaceError::Invalid(text));
        }
        let mut gone = 0;
        for number in numbers {
            let Some(trashed) = read::trashed(self.store, *number) else { continue };
            self.store.delete(&Key::Trash(*number));
            self.store.put(Key::Orphan(trashed.ino), Record::Orphan);
            gone += 1;
        }
        Ok(Outcome::Number(gone))
    }
}

/// At most `limit` entries from number `from` on, oldest first.
#[must_use]
pub fn trash(store: &dyn MetaStore, from: u64, limit: usize) -> Vec<(u64, Trashed)> {
    let page = store.range(&Key::Trash(from), &Key::Trash(u64::MAX), limit).into_iter();
    page.filter_map(|pair| match pair {
        (Key::Trash(number), Record::Trash(trashed)) => Some((number, trashed)),
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Change, NewKind, RenameMode};
    use crate::meta::samples::{run, started};
    use crate::meta::{MemStore, inode};

    const ROOT: InodeNo = InodeNo::ROOT;

    fn made(keep_ms: u64) -> MemStore {
        let mut store = started();
        run(&mut store, Change::SetTrash { keep_ms, by: "ada".to_owned() });
        store
    }

    fn create(store: &mut MemStore, name: &str, kind: NewKind) -> InodeNo {
        let made = run(
            store,
            Change::Create {
                parent: ROOT,
                name: name.as_bytes().to_vec(),
                kind,
                mode: 0o644,
                umask: 0,
                uid: 1,
                gid: 1,
                layout: None,
                open_existing: false,
            },
        );
        let Outcome::Entry { attr, .. } = made else { panic!("{made:?}") };
        attr.ino
    }

    fn orphans(store: &MemStore) -> Vec<InodeNo> {
        let page = store.range(&Key::Orphan(InodeNo(0)), &Key::Orphan(InodeNo(u64::MAX)), 9);
        let inos = page.into_iter();
        inos.filter_map(|(key, _)| if let Key::Orphan(ino) = key { Some(ino) } else { None })
            .collect()
    }

    fn unlink(store: &mut MemStore, name: &str) {
        let name = name.as_bytes().to_vec();
        let gone = run(store, Change::Unlink { parent: ROOT, name });
        assert!(matches!(gone, Outcome::Unlinked { .. }), "{gone:?}");
    }

    fn restore(store: &mut MemStore, number: u64, name: &str) -> Outcome {
        run(store, Change::Restore { number, parent: ROOT, name: name.as_bytes().to_vec() })
    }

    #[test]
    fn a_file_that_lost_its_last_name_is_kept_and_gets_a_name_again() {
        let mut store = made(60_000);
        let file = create(&mut store, "f", NewKind::File);
        run(&mut store, Change::Link { ino: file, parent: ROOT, name: b"g".to_vec() });
        unlink(&mut store, "f");
        assert!(trash(&store, 0, 9).is_empty(), "it has another name");
        unlink(&mut store, "g");
        let kept = trash(&store, 0, 9);
        assert_eq!((kept.len(), kept[0].1.ino, kept[0].1.name.as_slice()), (1, file, &b"g"[..]));
        assert_eq!(kept[0].1.until.0 - kept[0].1.at.0, 60_000_000_000);
        assert!(orphans(&store).is_empty());
        let early = run(&mut store, Change::Reclaim { ino: file });
        assert!(matches!(early, Outcome::Refused(_)), "{early:?}");
        let place = Change::PutInPlace { ino: file, parent: ROOT, name: b"i".to_vec() };
        assert!(matches!(run(&mut store, place), Outcome::Refused(_)));

        create(&mut store, "g", NewKind::File);
        let taken = restore(&mut store, kept[0].0, "g");
        assert_eq!(taken, Outcome::Refused(NamespaceError::Exists));
        let back = restore(&mut store, kept[0].0, "h");
        assert!(matches!(back, Outcome::Entry { attr, .. } if attr.ino == file && attr.nlink == 1));
        assert_eq!(restore(&mut store, kept[0].0, "i"), Outcome::Refused(NamespaceError::NotFound));
    }

    #[test]
    fn what_a_rename_replaces_is_kept_too_and_no_other_kinds_are() {
        let mut store = made(60_000);
        let old = create(&mut store, "f", NewKind::File);
        create(&mut store, "new", NewKind::File);
        let (from, to, mode) = (b"new".to_vec(), b"f".to_vec(), RenameMode::Replace);
        run(&mut store, Change::Rename { from_parent: ROOT, from, to_parent: ROOT, to, mode });
        assert_eq!(trash(&store, 0, 9)[0].1.ino, old);
        let link = create(&mut store, "l", NewKind::Symlink(b"f".to_vec()));
        unlink(&mut store, "l");
        assert_eq!(orphans(&store), [link]);
    }

    #[test]
    fn what_is_emptied_is_freed_and_nothing_is_kept_unless_it_is_set() {
        let mut store = made(60_000);
        let file = create(&mut store, "f", NewKind::File);
        unlink(&mut store, "f");
        run(&mut store, Change::SetTrash { keep_ms: 0, by: "ada".to_owned() });
        let number = trash(&store, 0, 9)[0].0;
        let emptied = Change::EmptyTrash { numbers: vec![number, 77] };
        assert_eq!(run(&mut store, emptied), Outcome::Number(1));
        assert_eq!(orphans(&store), [file]);
        assert_eq!(run(&mut store, Change::Reclaim { ino: file }), Outcome::Done);
        assert_eq!(inode(&store, file), None);
        let other = create(&mut store, "g", NewKind::File);
        unlink(&mut store, "g");
        assert!(trash(&store, 0, 9).is_empty());
        assert_eq!(orphans(&store), [other]);
    }
}
