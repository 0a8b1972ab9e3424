//! What is remembered of reads that go wrong: how long a caller still waits, which blocks were reported.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_core::ids::{ChunkId, InodeNo, ServerId};

use crate::error::{Fault, Faults};
use crate::session::lock;

/// One bad block of one server is told once in so long, however many readers meet it.
const REPORT_AGAIN: Duration = Duration::from_secs(10);
/// Trouble that nobody met for so long is over.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
const REMEMBERED_MAX: usize = 4096;

/// How long one operation of a caller waits, over everything it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    began: Instant,
    wait: Duration,
}

impl Patience {
    pub(crate) fn new(wait: Duration) -> Self {
        Self { began: Instant::now(), wait }
    }

    /// For whoever can go on without.
    pub(crate) fn none() -> Self {
        Self::new(Duration::ZERO)
    }

    pub(crate) fn left(&self) -> Duration {
        self.wait.saturating_sub(self.began.elapsed())
    }

    /// As if it had begun then, if that is earlier.
    fn since(&self, began: Instant) -> Self {
        Self { began: self.began.min(began), ..*self }
    }
}

/// Which reads share a trouble: those of a whole chunk that no server serves (`None`), or of one damaged block.
type Place = (InodeNo, u64, Option<u32>);

struct Since {
    began: Instant,
    met: Instant,
}

/// Places that could not be read from any member, and since when: one program's read comes as many requests of the
/// kernel, and the second of them must not wait for as long again.
#[derive(Default)]
pub(crate) struct Troubles(Mutex<HashMap<Place, Since>>);

impl Troubles {
    /// All members failed so. Answers how long this place has been in trouble, for a caller that began to ask with
    /// `patience`.
    pub(crate) fn met(
        &self,
        (ino, index): (InodeNo, u64),
        faults: &Faults,
        patience: &Patience,
    ) -> Duration {
        let damaged = faults.0.iter().filter_map(|(_, fault)| match fault {
            Fault::Damaged { block } => Some(*block),
            Fault::NotCurrent | Fault::Away { .. } | Fault::Failed { .. } => None,
        });
        let place = (ino, index, damaged.min());
        let now = Instant::now();
        let mut all = lock(&self.0);
        if REMEMBERED_MAX <= all.len() {
            all.retain(|_, since| since.met.elapsed() < FORGOTTEN_AFTER);
            if REMEMBERED_MAX <= all.len() {
                all.clear();
            }
        }
        // Servers that were asked in vain for damaged bytes may be away when the next ones are asked for: the chunk has
        // been in trouble all the while.
        let earlier = all.iter().filter(|((of, at, block), since)| {
            (*of, *at) == (ino, index)
                && (place.2.is_none() || block.is_none() || *block == place.2)
                && since.met.elapsed() < FORGOTTEN_AFTER
        });
        let began = earlier.map(|(_, since)| since.began).min();
        let began = began.map_or(patience.began, |began| began.min(patience.began));
        all.insert(place, Since { began, met: now });
        began.elapsed()
    }

    /// Nobody of this chunk's servers answered, from `began` until now.
    pub(crate) fn waited(&self, place: (InodeNo, u64), began: Instant) {
        self.met(place, &Faults::default(), &Patience { began, wait: Duration::ZERO });
    }

    /// What is left of `patience` if the chunk is known to be out of reach.
    pub(crate) fn left(&self, (ino, index): (InodeNo, u64), patience: &Patience) -> Duration {
        let all = lock(&self.0);
        let known = all.get(&(ino, index, None));
        let known = known.filter(|since| since.met.elapsed() < FORGOTTEN_AFTER);
        known.map_or(*patience, |since| patience.since(since.began)).left()
    }

    /// `blocks`, from the first to the last, could be read.
    pub(crate) fn over(&self, (ino, index): (InodeNo, u64), (first, last): (u64, u64)) {
        let mut all = lock(&self.0);
        if !all.is_empty() {
            all.retain(|(of, at, block), _| {
                let covered = block.is_none_or(|b| first <= u64::from(b) && u64::from(b) <= last);
                *of != ino || *at != index || !covered
            });
        }
    }
}

/// Bad blocks that were told lately.
#[derive(Default)]
pub(crate) struct Reports(Mutex<HashMap<(ChunkId, u32, ServerId), Instant>>);

impl Reports {
    /// True once in [`REPORT_AGAIN`] for each block of each server.
    pub(crate) fn is_due(&self, chunk: ChunkId, block: u32, server: ServerId) -> bool {
        let mut told = lock(&self.0);
        if REMEMBERED_MAX <= told.len() {
            told.retain(|_, at| at.elapsed() < REPORT_AGAIN);
            if REMEMBERED_MAX <= told.len() {
                return false;
            }
        }
        let now = Instant::now();
        match told.get_mut(&(chunk, block, server)) {
            Some(at) if at.elapsed() < REPORT_AGAIN => false,
            Some(at) => {
                *at = now;
                true
            }
            None => {
                told.insert((chunk, block, server), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const PLACE: (InodeNo, u64) = (InodeNo(7), 3);

    fn an_hour_old() -> Patience {
        let began = Instant::now().checked_sub(HOUR);
        Patience { began: began.unwrap_or_else(Instant::now), wait: HOUR }
    }

    fn damaged(block: u32) -> Faults {
        Faults(vec![(ServerId(1), Fault::Damaged { block }), (ServerId(2), Fault::NotCurrent)])
    }

    #[test]
    fn a_second_request_does_not_wait_again_for_what_the_first_waited_for() {
        let troubles = Troubles::default();
        let (first, second) = (an_hour_old(), Patience::new(HOUR));
        if !first.left().is_zero() {
            // The machine is up for less than an hour: its clock does not go back so far.
            return;
        }
        assert!(HOUR <= troubles.met(PLACE, &damaged(5), &first));
        assert!(HOUR <= troubles.met(PLACE, &damaged(5), &second), "the same block");
        assert!(troubles.met(PLACE, &damaged(6), &second) < HOUR, "another block");
        assert!(HOUR <= troubles.met(PLACE, &Faults::default(), &second), "nobody is left to ask");
        troubles.over(PLACE, (0, 4));
        assert!(HOUR <= troubles.met(PLACE, &damaged(5), &second), "others could be read");
        troubles.over(PLACE, (5, 5));
        assert!(troubles.met(PLACE, &damaged(5), &second) < HOUR, "it could be read in between");
    }

    #[test]
    fn a_chunk_that_nobody_serves_is_one_trouble_until_something_of_it_is_read() {
        let troubles = Troubles::default();
        let away = Faults(vec![(ServerId(1), Fault::Away { reason: String::new() })]);
        let (first, second) = (an_hour_old(), Patience::new(HOUR));
        if !first.left().is_zero() {
            return;
        }
        troubles.met(PLACE, &away, &first);
        assert!(HOUR <= troubles.met(PLACE, &away, &second));
        assert!(troubles.met((InodeNo(7), 4), &away, &second) < HOUR);
        troubles.over(PLACE, (9, 9));
        assert!(troubles.met(PLACE, &away, &second) < HOUR);
        assert!(!troubles.left(PLACE, &second).is_zero());
        troubles.waited(PLACE, first.began);
        assert!(troubles.left(PLACE, &second).is_zero(), "the size was asked for as long");
        assert!(HOUR <= troubles.met(PLACE, &away, &second));
    }

    #[test]
    fn a_bad_block_is_told_once_for_each_server() {
        let reports = Reports::default();
        assert!(reports.is_due(ChunkId(1), 2, ServerId(1)));
        assert!(!reports.is_due(ChunkId(1), 2, ServerId(1)));
        assert!(reports.is_due(ChunkId(1), 2, ServerId(2)));
        assert!(reports.is_due(ChunkId(1), 3, ServerId(1)));
        for chunk in 0..2 * REMEMBERED_MAX as u64 {
            reports.is_due(ChunkId(chunk), 0, ServerId(1));
        }
        assert!(lock(&reports.0).len() <= REMEMBERED_MAX, "bounded");
    }
}
