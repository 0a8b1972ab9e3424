//! Calls of programs that were sent a signal: whoever carries one out learns it, and may end.
//!
//! As a deadline ([`crate::deadline`]) it belongs to the thread, so that no step between has to hand it on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const RUNS: u8 = 0;
const CANCELLED: u8 = 1;
/// The caller may be answered before it is carried out: whoever does so sees to what becomes of it.
const LEAVABLE: u8 = 2;
const LEFT: u8 = 3;

/// How long a thread sleeps before it looks again.
const LOOK: Duration = Duration::from_millis(5);

/// Whether the program that asked was sent a signal.
#[derive(Clone, Debug, Default)]
pub struct Cancelled(Arc<AtomicU8>);

thread_local! {
    static MINE: RefCell<Option<(Cancelled, bool)>> = const { RefCell::new(None) };
}

impl Cancelled {
    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A signal came. True: the caller is not waiting any more, and to be told so now.
    #[must_use]
    pub fn cancel(&self) -> bool {
        // One of them, or it was cancelled before.
        self.change(LEAVABLE, LEFT) || !self.change(RUNS, CANCELLED) && self.change(LEAVABLE, LEFT)
    }

    /// From now on the caller need not wait, until [`Self::stays`].
    pub fn may_leave(&self) {
        let _unless_cancelled = self.change(RUNS, LEAVABLE);
    }

    /// The caller gets the answer. False: it has left.
    #[must_use]
    pub fn stays(&self) -> bool {
        let _unless_left = self.change(LEAVABLE, RUNS);
        self.0.load(Ordering::Acquire) != LEFT
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), CANCELLED | LEFT)
    }

    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    #[must_use]
    pub fn has_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == LEFT
    }

    /// While what is answered lives, this thread's requests to the master end when it is cancelled; unless one was sent, if
    /// they change something.
    #[must_use]
    pub fn watch(&self, changes: bool) -> Watch {
        Watch { before: MINE.replace(Some((self.clone(), changes))) }
    }
}

/// See [`Cancelled::watch`].
#[derive(Debug)]
pub struct Watch {
    before: Option<(Cancelled, bool)>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        MINE.set(self.before.take());
    }
}

/// Sleeps for `pause`; true, and sooner, if this thread's call was cancelled and may end. `sent`: it may have been
/// carried out.
pub(crate) fn sleep(pause: Duration, sent: bool) -> bool {
    let mine = MINE.with_borrow(Clone::clone).filter(|(_, changes)| !(*changes && sent));
    let Some((mine, _)) = mine else {
        std::thread::sleep(pause);
        return false;
    };
    let until = Instant::now() + pause;
    loop {
        if mine.is_cancelled() {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_may_leave_is_told_once_and_no_other_is() {
        let waits = Cancelled::default();
        waits.may_leave();
        assert!(waits.cancel() && !waits.cancel());
        assert!(waits.is_cancelled() && waits.has_left() && !waits.stays());
        let stayed = Cancelled::default();
        stayed.may_leave();
        assert!(stayed.stays());
        assert!(!stayed.cancel() && stayed.is_cancelled() && !stayed.has_left() && stayed.stays());
        stayed.may_leave();
        assert!(!stayed.cancel(), "the answer to the signal is on its way");
    }

    #[test]
    fn a_pause_ends_with_a_signal_of_its_own_call_only() {
        const LONG: Duration = Duration::from_secs(3600);
        let (mine, other) = (Cancelled::default(), Cancelled::default());
        let _other_call = other.cancel();
        assert!(!sleep(Duration::from_millis(1), false));
        let watch = mine.watch(true);
        assert!(!sleep(Duration::from_millis(1), false));
        std::thread::scope(|scope| {
            scope.spawn(|| mine.cancel());
            assert!(sleep(LONG, false));
        });
        assert!(!sleep(Duration::from_millis(1), true), "it may have been carried out");
        drop(watch);
        assert!(!sleep(Duration::from_millis(1), false));
        let _watch = mine.watch(false);
        assert!(sleep(LONG, true), "it changes nothing");
    }
}
