//! Which owners may hold locks of this mount: the others need no unlock at close.
//!
//! The owner of a `flock(2)` lock is the address of an open file, which the kernel gives to the next one that is opened, so
//! each is remembered with the open that locked last. The release of another one has nothing to unlock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dfs_client::error::OpenId;
use dfs_core::ids::InodeNo;

/// Of `fcntl(2)`: a table of descriptors; of `flock(2)`: an open file.
pub(super) type Key = (InodeNo, u64);

#[derive(Debug)]
pub(super) struct Locked {
    inner: Mutex<Inner>,
    entries_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    held: BTreeMap<Key, Held>,
    /// Some were not remembered: everybody may hold a lock from now on.
    overflown: bool,
    asked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    through: OpenId,
    /// Rises with every time it is noted.
    asked: u64,
    /// Of the whole file, as all of `flock(2)`.
    is_whole: bool,
    /// A descriptor of `through` was closed since: perhaps its last, of which nobody is told at once.
    is_closing: bool,
}

/// What was known when an unlock began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unlocking(Option<u64>);

impl Locked {
    /// `others`: locks were taken that are not known here.
    pub(super) fn new(entries_max: usize, others: bool) -> Self {
        let inner = Inner { overflown: others, ..Inner::default() };
        Self { inner: Mutex::new(inner), entries_max }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a lock is asked for, since an answer may get lost, and once more when it is granted: an unlock that began
    /// before may have ended in between.
    pub(super) fn note(&self, key: Key, through: OpenId, is_whole: bool) {
        let mut inner = self.lock();
        inner.asked += 1;
        let asked = inner.asked;
        if inner.held.len() < self.entries_max || inner.held.contains_key(&key) {
            let before = inner.held.get(&key).filter(|held| held.through == through);
            let is_closing = before.is_some_and(|held| held.is_closing);
            inner.held.insert(key, Held { through, asked, is_whole, is_closing });
        } else {
            inner.overflown = true;
        }
    }

    /// Whether `key` may have a lock already.
    pub(super) fn may_hold(&self, key: &Key) -> bool {
        let inner = self.lock();
        inner.overflown || inner.held.contains_key(key)
    }

    /// An unlock of all of `key` begins; `None`: there is nothing to unlock. `closed`: by the end of this open only.
    pub(super) fn begin_unlock(&self, key: &Key, closed: Option<OpenId>) -> Option<Unlocking> {
        let inner = self.lock();
        match inner.held.get(key) {
            Some(held) if closed.is_none_or(|open| open == held.through) => {
                Some(Unlocking(Some(held.asked)))
            }
            Some(_) => None,
            None => inner.overflown.then_some(Unlocking(None)),
        }
    }

    /// A descriptor of `open` is being closed. Locks of ranges end before its close does.
    pub(super) fn closing(&self, ino: InodeNo, open: OpenId) {
        let mut inner = self.lock();
        for (_, held) in inner.held.range_mut((ino, 0)..=(ino, u64::MAX)) {
            held.is_closing |= held.is_whole && held.through == open;
        }
    }

    /// Whether a lock in the way of `key` may be one of an open whose last descriptor was closed.
    pub(super) fn may_be_closing(&self, key: &Key) -> bool {
        let inner = self.lock();
        let mut held = inner.held.range((key.0, 0)..=(key.0, u64::MAX));
        inner.overflown || held.any(|(other, held)| other != key && held.is_closing)
    }

    /// It is done: forgotten, unless a lock was noted meanwhile.
    pub(super) fn end_unlock(&self, key: &Key, unlocking: Unlocking) {
        let mut inner = self.lock();
        if inner.held.get(key).is_some_and(|held| Some(held.asked) == unlocking.0) {
            inner.held.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (InodeNo(7), 99);

    fn open(number: u64) -> OpenId {
        OpenId::new(number, false)
    }

    #[test]
    fn a_file_that_got_the_owner_of_a_closed_one_keeps_its_lock() {
        let locked = Locked::new(10, false);
        locked.note(KEY, open(1), true);
        // Closed, and the address is already the next one's, which asks before the release is handled.
        locked.note(KEY, open(2), true);
        assert!(locked.begin_unlock(&KEY, Some(open(1))).is_none());
        assert!(locked.begin_unlock(&KEY, Some(open(2))).is_some());
        // Or while the unlock is under way.
        let locked = Locked::new(10, false);
        locked.note(KEY, open(1), true);
        let unlocking = locked.begin_unlock(&KEY, Some(open(1))).unwrap();
        locked.note(KEY, open(2), true);
        locked.end_unlock(&KEY, unlocking);
        let unlocking = locked.begin_unlock(&KEY, Some(open(2))).unwrap();
        locked.end_unlock(&KEY, unlocking);
        assert!(locked.begin_unlock(&KEY, Some(open(2))).is_none());
    }

    #[test]
    fn a_lock_that_is_granted_while_another_thread_closes_is_known() {
        let locked = Locked::new(10, false);
        locked.note(KEY, open(1), true);
        // Asked for before, granted after the unlock of the close.
        let unlocking = locked.begin_unlock(&KEY, None).unwrap();
        locked.note(KEY, open(1), true);
        locked.end_unlock(&KEY, unlocking);
        assert!(locked.begin_unlock(&KEY, None).is_some());
    }

    #[test]
    fn a_lock_whose_descriptor_was_closed_may_be_on_its_way_back() {
        let locked = Locked::new(10, false);
        let other = (KEY.0, 100);
        locked.note(KEY, open(1), true);
        assert!(!locked.may_be_closing(&other));
        locked.closing(KEY.0, open(2));
        locked.closing(InodeNo(8), open(1));
        assert!(!locked.may_be_closing(&other));
        locked.closing(KEY.0, open(1));
        assert!(locked.may_be_closing(&other) && !locked.may_be_closing(&KEY));
        // Locked again through another descriptor of it: that one may be closed already.
        locked.note(KEY, open(1), true);
        assert!(locked.may_be_closing(&other));
        let unlocking = locked.begin_unlock(&KEY, Some(open(1))).unwrap();
        locked.end_unlock(&KEY, unlocking);
        assert!(!locked.may_be_closing(&other));
        // The owner is another open's now, with a lock of a part of the file.
        locked.note(KEY, open(3), false);
        assert!(!locked.may_be_closing(&other));
        locked.closing(KEY.0, open(3));
        assert!(!locked.may_be_closing(&other));
    }

    #[test]
    fn a_full_table_says_perhaps_of_those_it_does_not_know() {
        let locked = Locked::new(1, false);
        assert!(locked.begin_unlock(&KEY, None).is_none());
        locked.note((InodeNo(1), 1), open(1), true);
        locked.note(KEY, open(2), true);
        let unlocking = locked.begin_unlock(&KEY, Some(open(2))).unwrap();
        locked.end_unlock(&KEY, unlocking);
        assert!(locked.begin_unlock(&(InodeNo(1), 1), Some(open(5))).is_none());
    }
}
