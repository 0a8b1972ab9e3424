//! Numbers of a client's changes at the master, and the mark below which it has all results (DECISIONS 4).

use std::collections::BTreeSet;

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

    /// All operations below this are ended. Only rises.
    #[must_use]
    pub fn low_water(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }

    #[must_use]
    pub fn outstanding_count(&self) -> usize {
        self.outstanding.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_the_oldest_unanswered_operation_and_never_falls() {
        let mut ops = OpCounters::default();
        let first = ops.begin();
        let second = ops.begin();
        let third = ops.begin();
        assert_eq!(ops.low_water(), first);
        ops.end(second);
        assert_eq!(ops.low_water(), first);
        ops.end(first);
        assert_eq!(ops.low_water(), third);
        ops.end(third);
        assert_eq!(ops.low_water(), third + 1);
        assert_eq!(ops.begin(), third + 1);
        assert_eq!(ops.low_water(), third + 1);
    }
}
