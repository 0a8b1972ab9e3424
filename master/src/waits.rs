//! Writers that wait for servers, and why: what `dfs status` says while no write of theirs can be taken.

use std::collections::BTreeMap;

use dfs_core::ids::InodeNo;
use dfs_core::time::Timestamp;
use dfs_proto::control::{WaitingWrite, WaitingWrites};

/// A writer that waits asks again within a second of each answer, which takes two at most.
const ASKS_WITHIN_NANOS: u64 = 5_000_000_000;
/// Noted at once; of any more only those already known are looked after.
const WAITS_MAX: usize = 4096;
/// Told in one status.
const TOLD_MAX: usize = 5;

#[derive(Debug)]
struct Wait {
    reason: String,
    since: Timestamp,
    asked: Timestamp,
}

/// By file and chunk of it.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<(InodeNo, u64), Wait>);

impl Waits {
    /// A writer of `place` was told to come back, because of `reason`.
    pub(crate) fn note(&mut self, now: Timestamp, place: (InodeNo, u64), reason: &str) {
        if WAITS_MAX <= self.0.len() && !self.0.contains_key(&place) {
            self.0.retain(|_, wait| wait.is_current(now));
            if WAITS_MAX <= self.0.len() {
                return;
            }
        }
        let wait = self.0.entry(place).or_insert_with(|| Wait {
            reason: String::new(),
            since: now,
            asked: now,
        });
        if !wait.is_current(now) {
            wait.since = now;
        }
        reason.clone_into(&mut wait.reason);
        wait.asked = now;
    }

    /// A writer of `place` got what it asked for, or was refused for good.
    pub(crate) fn over(&mut self, place: (InodeNo, u64)) {
        self.0.remove(&place);
    }

    /// Those that wait now, the longest first.
    pub(crate) fn told(&mut self, now: Timestamp) -> WaitingWrites {
        self.0.retain(|_, wait| wait.is_current(now));
        let mut waits: Vec<_> = self.0.iter().collect();
        waits.sort_by_key(|(place, wait)| (wait.since, **place));
        let told = waits.iter().take(TOLD_MAX).map(|((ino, index), wait)| WaitingWrite {
            inode: ino.0,
            index: *index,
            reason: wait.reason.clone(),
            waiting_ms: now.nanos_since(wait.since) / 1_000_000,
        });
        WaitingWrites { total: waits.len() as u64, longest: told.collect() }
    }
}

impl Wait {
    fn is_current(&self, now: Timestamp) -> bool {
        now.nanos_since(self.asked) < ASKS_WITHIN_NANOS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(second: u64) -> Timestamp {
        Timestamp(second * SECOND)
    }

    #[test]
    fn a_wait_is_told_from_its_first_answer_until_it_is_over_or_nobody_asks_any_more() {
        let mut waits = Waits::default();
        for second in 0..8 {
            waits.note(at(second), (InodeNo(7), 1), "one of two");
        }
        waits.note(at(6), (InodeNo(5), 0), "other");
        let told = waits.told(at(8));
        assert_eq!(told.total, 2);
        let first = &told.longest[0];
        assert_eq!(
            (first.inode, first.index, first.reason.as_str(), first.waiting_ms),
            (7, 1, "one of two", 8000)
        );
        waits.over((InodeNo(5), 0));
        assert_eq!(waits.told(at(8)).total, 1);
        assert_eq!(waits.told(at(12)).total, 0, "nobody has asked for 5 s");
        waits.note(at(20), (InodeNo(7), 1), "again");
        assert_eq!(waits.told(at(21)).longest[0].waiting_ms, 1000);
    }

    #[test]
    fn there_is_a_bound_on_what_is_noted() {
        let mut waits = Waits::default();
        for ino in 0..2 * WAITS_MAX as u64 {
            waits.note(at(0), (InodeNo(ino), 0), "r");
        }
        assert_eq!(waits.told(at(0)).total, WAITS_MAX as u64);
        waits.note(at(9), (InodeNo(9999), 0), "r");
        assert_eq!(waits.told(at(9)).total, 1);
    }
}
