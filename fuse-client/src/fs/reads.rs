//! Reads that the kernel waits for.
//!
//! It reads ahead in several requests at once. If the file has become shorter than it believes, it takes the first answer
//! that ends early for the end of the file, and disregards the others: if that is one behind the real end, it puts zeros
//! between the two. So an answer of no bytes is held back until those for places before it were given.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::ids::InodeNo;

/// Requests come in their order, and are taken by several threads: one may be at its end when the one before it begins.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// A read that waits for a silent server holds up nobody for longer. What is risked then are zeros behind the end.
const WAIT_MAX: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: Mutex<BTreeSet<(InodeNo, u64, u64)>>,
    next: AtomicU64,
}

/// One read, from its request to its answer.
#[derive(Debug)]
pub(crate) struct ReadUnderWay {
    reads: Arc<Reads>,
    key: (InodeNo, u64, u64),
}

impl Reads {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(InodeNo, u64, u64)>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>, ino: InodeNo, offset: u64) -> ReadUnderWay {
        let key = (ino, offset, self.next.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(key);
        ReadUnderWay { reads: Arc::clone(self), key }
    }

    /// Waits until no place of `ino` before `offset` is being read.
    pub(super) fn wait_for_those_before(&self, ino: InodeNo, offset: u64) {
        let began = Instant::now();
        loop {
            std::thread::sleep(FIRST_LOOK);
            let waits = self.lock().range((ino, 0, 0)..(ino, offset, 0)).next().is_some();
            if !waits || WAIT_MAX <= began.elapsed() {
                return;
            }
        }
    }
}

impl ReadUnderWay {
    /// Inode and offset.
    pub(super) fn place(&self) -> (InodeNo, u64) {
        (self.key.0, self.key.1)
    }
}

impl Drop for ReadUnderWay {
    fn drop(&mut self) {
        self.reads.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_earlier_places_of_the_same_file_are_waited_for() {
        let reads = Arc::new(Reads::default());
        let waits = |offset| {
            let began = Instant::now();
            reads.wait_for_those_before(InodeNo(2), offset);
            WAIT_MAX <= began.elapsed()
        };
        let (_other, _later) = (reads.begin(InodeNo(1), 0), reads.begin(InodeNo(2), 20));
        let earlier = reads.begin(InodeNo(2), 10);
        assert!(!waits(10), "itself");
        assert!(waits(11));
        drop(earlier);
        assert!(!waits(20));
    }
}
