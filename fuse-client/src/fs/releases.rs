//! Closed files whose locks are on their way to the master.
//!
//! The kernel tells of a descriptor's last close by RELEASE and does not wait for its answer: `close(2)` has returned while
//! the lock is still held there. At FLUSH, for which it does wait, nobody can know whether the close is the last (`dup(2)`,
//! `fork(2)`). So locks asked for on this mount wait here for the releases that came before them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_core::ids::InodeNo;

/// Ended releases that are remembered, for locks that were asked for while one was being read from the kernel's queue.
const ENDED_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Releases {
    state: Mutex<State>,
    /// One began or ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    under_way: BTreeMap<u64, InodeNo>,
    /// The newest, in the order of their ends.
    ended: VecDeque<(u64, InodeNo)>,
}

/// One release; over when dropped, also by a panic.
#[derive(Debug)]
pub(super) struct Release<'a> {
    releases: &'a Releases,
    number: u64,
}

/// A place in the order of releases: those that began before it, and those after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(u64);

impl Releases {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, ino: InodeNo) -> Release<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, ino);
        drop(state);
        self.changed.notify_all();
        Release { releases: self, number }
    }

    /// Waits for the releases of `ino` that are under way. Each ends when the master answers, or is given up.
    pub(super) fn wait_for_those_before(&self, ino: InodeNo) -> Place {
        let mut state = self.lock();
        let place = state.next;
        while state.under_way.range(..place).any(|(_, other)| *other == ino) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Place(place)
    }

    /// Whether a release of `ino` began after `place`; waits for one, `patience` at most.
    pub(super) fn any_since(&self, ino: InodeNo, place: Place, patience: Duration) -> bool {
        let none = |state: &mut State| {
            let is_one = |(number, other): (&u64, &InodeNo)| place.0 <= *number && *other == ino;
            !state.under_way.iter().any(is_one)
                && !state.ended.iter().map(|(number, other)| (number, other)).any(is_one)
        };
        let waited = self.changed.wait_timeout_while(self.lock(), patience, none);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let mut state = self.releases.lock();
        if let Some(ino) = state.under_way.remove(&self.number) {
            if ENDED_MAX <= state.ended.len() {
                state.ended.pop_front();
            }
            state.ended.push_back((self.number, ino));
        }
        drop(state);
        self.releases.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const ONE: InodeNo = InodeNo(7);
    const OTHER: InodeNo = InodeNo(8);

    #[test]
    fn a_lock_waits_for_releases_of_its_inode_that_began_before() {
        let releases = Releases::default();
        let before = releases.begin(ONE);
        let other = releases.begin(OTHER);
        std::thread::scope(|scope| {
            let (done, waits) = mpsc::channel();
            let releases = &releases;
            scope.spawn(move || {
                done.send(releases.wait_for_those_before(ONE)).unwrap();
            });
            assert!(waits.recv_timeout(Duration::from_millis(50)).is_err(), "it did not wait");
            drop(before);
            waits.recv().unwrap();
        });
        drop(other);
    }

    #[test]
    fn a_release_that_began_meanwhile_is_known_until_after_its_end() {
        let releases = Releases::default();
        drop(releases.begin(ONE));
        let place = releases.wait_for_those_before(ONE);
        let any = |ino, place| releases.any_since(ino, place, Duration::ZERO);
        assert!(!any(ONE, place), "that one was before");
        let meanwhile = releases.begin(ONE);
        assert!(any(ONE, place) && !any(OTHER, place));
        drop(meanwhile);
        assert!(any(ONE, place));
        assert!(!any(ONE, releases.wait_for_those_before(ONE)));
        for _ in 0..2 * ENDED_MAX {
            drop(releases.begin(OTHER));
        }
        assert_eq!(releases.lock().ended.len(), ENDED_MAX);
        assert!(releases.lock().under_way.is_empty());
    }

    #[test]
    fn one_that_is_on_its_way_is_waited_for() {
        let releases = Releases::default();
        let place = releases.wait_for_those_before(ONE);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                drop(releases.begin(OTHER));
                drop(releases.begin(ONE));
            });
            assert!(releases.any_since(ONE, place, Duration::from_secs(60)));
        });
    }
}
