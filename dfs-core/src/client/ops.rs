//! Numbers of a client's changes at the master, and of which it has the results (DECISIONS 4).

use std::collections::BTreeSet;

use crate::results::{AWAITED_MAX, Results};

/// With fewer operations since the oldest awaited one, the mark alone is told: what is told is logged with each change.
const NAMED_FROM: u64 = 256;

/// Gives out operation numbers and knows which are still waiting for their results.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpCounters {
    next: u64,
    outstanding: BTreeSet<u64>,
}

impl Default for OpCounters {
    fn default() -> Self {
        Self { next: 1, outstanding: BTreeSet::new() }
    }
}

impl OpCounters {
    /// A number never given before; its result is awaited until [`Self::end`].
    pub fn begin(&mut self) -> u64 {
        let op = self.next;
        self.next += 1;
        self.outstanding.insert(op);
        op
    }

    /// The result of `op` is known, or nobody will ever ask for it again.
    pub fn end(&mut self, op: u64) {
        self.outstanding.remove(&op);
    }

    /// Which operations are ended, as the master is told.
    #[must_use]
    pub fn results(&self) -> Results {
        let oldest = self.outstanding.first().copied().unwrap_or(self.next);
        if self.next - oldest < NAMED_FROM {
            return Results::all_below(oldest);
        }
        let awaited = self.outstanding.iter().copied().take(AWAITED_MAX).collect();
        let below = self.outstanding.iter().nth(AWAITED_MAX).copied().unwrap_or(self.next);
        Results::all_but(awaited, below).unwrap_or_else(|| Results::all_below(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_oldest_unanswered_operation_and_never_falls() {
        let low_water = |ops: &OpCounters| ops.results().low_water();
        let mut ops = OpCounters::default();
        let first = ops.begin();
        let second = ops.begin();
        let third = ops.begin();
        assert_eq!(low_water(&ops), first);
        ops.end(second);
        assert_eq!(low_water(&ops), first);
        ops.end(first);
        assert_eq!(low_water(&ops), third);
        ops.end(third);
        assert_eq!(low_water(&ops), third + 1);
        assert_eq!(ops.begin(), third + 1);
        assert_eq!(low_water(&ops), third + 1);
    }

    #[test]
    fn one_that_waits_long_is_named_and_so_are_as_many_as_fit() {
        let mut ops = OpCounters::default();
        let waits = ops.begin();
        for _ in 0..NAMED_FROM {
            let op = ops.begin();
            ops.end(op);
        }
        let last = ops.begin();
        assert_eq!(ops.results(), Results::all_but(vec![waits, last], last + 1).unwrap());
        let more: Vec<u64> = (0..200).map(|_| ops.begin()).collect();
        let results = ops.results();
        assert_eq!(results.awaited().len(), AWAITED_MAX);
        let first_left_out = more[AWAITED_MAX - 2];
        assert_eq!((results.below(), results.has(first_left_out)), (first_left_out, false));
        ops.end(waits);
        assert_eq!(ops.results(), Results::all_below(last));
    }
}
