//! Locks of byte ranges, as `fcntl(2)` has them: per owner, split and merged, never twice on a byte.

use super::transaction::{Answer, Transaction};
use super::{Key, Record, read};
use crate::command::{Lock, LockKind, Outcome};
use crate::ids::{ClientId, InodeNo};
use crate::namespace::NamespaceError;

/// Most lock ranges on one file.
pub const FILE_LOCKS_MAX: usize = 4096;

impl Transaction<'_> {
    /// Takes `wanted` (`kind` given) or releases its range.
    pub(super) fn set_lock(
        &mut self,
        ino: InodeNo,
        kind: Option<LockKind>,
        wanted: Lock,
    ) -> Answer {
        if wanted.end < wanted.start {
            return Err(NamespaceError::Invalid("lock ends before it starts".into()));
        }
        self.inode(ino)?;
        if read::client(self.store, wanted.client).is_none_or(|client| client.fenced) {
            return Err(NamespaceError::NoSession);
        }
        let held = read::locks(self.store, ino);
        if kind.is_some() && read::conflicting_lock(&held, &wanted).is_some() {
            return Err(NamespaceError::Locked);
        }
        let mut weakened = false;
        let mut kept = Vec::with_capacity(held.len() + 2);
        for lock in held {
            if !same_owner(&lock, &wanted) || !read::overlap(&lock, &wanted) {
                kept.push(lock);
                continue;
            }
            weakened |= kind.is_none_or(|kind| kind < lock.kind);
            // What sticks out on either side stays as it was.
            if lock.start < wanted.start {
                kept.push(Lock { end: wanted.start - 1, ..lock });
            }
            if wanted.end < lock.end {
                kept.push(Lock { start: wanted.end + 1, ..lock });
            }
        }
        if let Some(kind) = kind {
            kept.push(Lock { kind, ..wanted });
        }
        let locks = merge(kept);
        if FILE_LOCKS_MAX < locks.len() {
            return Err(NamespaceError::NoLocks);
        }
        self.put_locks(ino, locks);
        Ok(if weakened { Outcome::LockChanged } else { Outcome::Done })
    }

    /// Releases all locks of a client; whether it had any.
    pub(super) fn end_locks_of(&mut self, client: ClientId) -> bool {
        let mut released = false;
        let mut from = InodeNo(0);
        loop {
            let page = read::locked_files(self.store, from, 256);
            let Some((last, _)) = page.last() else { return released };
            from = InodeNo(last.0.saturating_add(1));
            for (ino, mut locks) in page {
                let before = locks.len();
                locks.retain(|lock| lock.client != client);
                if locks.len() != before {
                    released = true;
                    self.put_locks(ino, locks);
                }
            }
        }
    }

    fn put_locks(&mut self, ino: InodeNo, locks: Vec<Lock>) {
        if locks.is_empty() {
            self.store.delete(&Key::Locks(ino));
        } else {
            self.store.put(Key::Locks(ino), Record::Locks(locks));
        }
    }
}

fn same_owner(a: &Lock, b: &Lock) -> bool {
    (a.client, a.owner) == (b.client, b.owner)
}

/// Joins ranges of one owner and kind that touch. The result is sorted by owner, then start.
fn merge(mut locks: Vec<Lock>) -> Vec<Lock> {
    locks.sort_unstable();
    let mut merged: Vec<Lock> = Vec::with_capacity(locks.len());
    for lock in locks {
        match merged.last_mut() {
            Some(last)
                if same_owner(last, &lock)
                    && last.kind == lock.kind
                    && lock.start <= last.end.saturating_add(1) =>
            {
                last.end = last.end.max(lock.end);
                last.pid = lock.pid;
            }
            Some(_) | None => merged.push(lock),
        }
    }
    merged
}
