//! Pages that were dropped for a lock while somebody here may have been writing.
//!
//! The kernel copies a write into a page it has, lets go of the page, and only then sends the request. Is the page dropped
//! in between and read again, it lacks those bytes for good. Opens do not drop pages of a file that is written here: they
//! read past them. A lock has to, so that pages are dropped once more after such a write.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_core::ids::InodeNo;

use crate::cache::lock;

/// From the copy into the page until the request is read.
const LATE_MAX: Duration = Duration::from_secs(2);
const ENTRIES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Dropped {
    table: Mutex<HashMap<InodeNo, Pages>>,
    any: AtomicBool,
}

#[derive(Debug)]
struct Pages {
    at: Instant,
    /// There may be pages from before a write that is still to come.
    read: bool,
    /// Who asked for something since: what it writes now goes into pages of afterwards.
    seen: HashSet<u32>,
}

impl Dropped {
    /// All pages of `ino` are about to be dropped for `pid`; 0: it has no number here.
    pub(super) fn note(&self, ino: InodeNo, pid: u32) {
        let mut table = lock(&self.table);
        table.retain(|_, pages| pages.at.elapsed() < LATE_MAX);
        if ENTRIES_MAX <= table.len() {
            table.clear();
        }
        let seen = HashSet::from([pid]);
        table.insert(ino, Pages { at: Instant::now(), read: false, seen });
        self.any.store(true, Ordering::Release);
    }

    /// They are about to be dropped once more, because of the same.
    pub(super) fn note_again(&self, ino: InodeNo) {
        if let Some(pages) = lock(&self.table).get_mut(&ino) {
            pages.read = false;
            pages.seen.clear();
        }
    }

    /// `pid` cannot have written anything that is still to come.
    pub(super) fn heard_of(&self, ino: InodeNo, pid: u32) {
        if let Some(pages) = lock(&self.table).get_mut(&ino) {
            pages.seen.insert(pid);
        }
    }

    /// `pid` reads through the cache.
    pub(super) fn read(&self, ino: InodeNo, pid: u32) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut table = lock(&self.table);
        if let Some(pages) = table.get_mut(&ino) {
            pages.read = true;
            pages.seen.insert(pid);
        }
        table.retain(|_, pages| pages.at.elapsed() < LATE_MAX);
        self.any.store(!table.is_empty(), Ordering::Release);
    }

    /// Whether pages that were read may lack what `pid` has written.
    pub(super) fn may_lack(&self, ino: InodeNo, pid: u32) -> bool {
        self.any.load(Ordering::Acquire)
            && lock(&self.table).get(&ino).is_some_and(|pages| {
                let is_late = pid == 0 || !pages.seen.contains(&pid);
                pages.read && is_late && pages.at.elapsed() < LATE_MAX
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeNo = InodeNo(10);

    #[test]
    fn only_who_was_not_heard_of_since_may_have_written_before() {
        let dropped = Dropped::default();
        assert!(!dropped.may_lack(A, 7));
        dropped.note(A, 7);
        assert!(!dropped.may_lack(A, 8), "nobody read anything again");
        dropped.read(A, 7);
        assert!(!dropped.may_lack(A, 7) && dropped.may_lack(A, 8));
        assert!(!dropped.may_lack(InodeNo(11), 8));
        dropped.read(A, 8);
        assert!(!dropped.may_lack(A, 8) && dropped.may_lack(A, 9));
        dropped.note_again(A);
        assert!(!dropped.may_lack(A, 7), "nobody read anything again");
        dropped.heard_of(A, 7);
        dropped.read(A, 9);
        assert!(!dropped.may_lack(A, 7) && dropped.may_lack(A, 8));
    }

    #[test]
    fn who_has_no_number_is_never_known() {
        let dropped = Dropped::default();
        dropped.note(A, 0);
        dropped.read(A, 0);
        assert!(dropped.may_lack(A, 0));
    }
}
