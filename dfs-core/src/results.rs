//! Which results of its operations a client has (DECISIONS 4): what the master need not keep for it any longer.
//!
//! A mark alone would let one operation that waits hold the results of all younger ones; so those that are awaited may
//! be named.

/// Most operations named one by one.
pub const AWAITED_MAX: usize = 64;

/// The client has the results of all its operations below a number, except of some that are named.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Results {
    below: u64,
    /// Ascending, all of them less than `below`, at most [`AWAITED_MAX`].
    awaited: Vec<u64>,
}

impl Results {
    #[must_use]
    pub fn all_below(below: u64) -> Self {
        Self { below, awaited: Vec::new() }
    }

    /// All below `below` but those in `awaited`; `None` if these are too many, not ascending or not less than `below`.
    #[must_use]
    pub fn all_but(awaited: Vec<u64>, below: u64) -> Option<Self> {
        let ascending = awaited.is_sorted_by(|a, b| a < b);
        let less = awaited.last().is_none_or(|last| *last < below);
        (ascending && less && awaited.len() <= AWAITED_MAX).then_some(Self { below, awaited })
    }

    /// All operations below this have their results.
    #[must_use]
    pub fn low_water(&self) -> u64 {
        self.awaited.first().copied().unwrap_or(self.below)
    }

    #[must_use]
    pub fn below(&self) -> u64 {
        self.below
    }

    #[must_use]
    pub fn awaited(&self) -> &[u64] {
        &self.awaited
    }

    /// Whether the client has the result of `op`.
    #[must_use]
    pub fn has(&self, op: u64) -> bool {
        op < self.below && self.awaited.binary_search(&op).is_err()
    }

    /// What follows from both: messages overtake each other, and what was once said stays true.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let (longer, shorter) =
            if self.below < other.below { (other, self) } else { (self, other) };
        let awaited = longer.awaited.iter().copied().filter(|op| !shorter.has(*op)).collect();
        Self { below: longer.below, awaited }
    }

    /// As far as it says nothing of `op`.
    #[must_use]
    pub fn silent_about(&self, op: u64) -> Self {
        if !self.has(op) {
            return self.clone();
        }
        let awaited = self.awaited.iter().copied().take_while(|awaited| *awaited < op).collect();
        Self { below: op, awaited }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn but(awaited: &[u64], below: u64) -> Results {
        Results::all_but(awaited.to_vec(), below).unwrap()
    }

    /// Every pair of statements about six operations.
    #[test]
    fn two_statements_together_say_what_either_says() {
        let statements: Vec<Results> = (0..=6_u64)
            .flat_map(|below| {
                (0..1_u64 << below).map(move |bits| {
                    let awaited = (0..below).filter(|op| bits >> op & 1 == 1).collect();
                    Results::all_but(awaited, below).unwrap()
                })
            })
            .collect();
        for a in &statements {
            for b in &statements {
                let both = a.joined(b);
                for op in 0..8 {
                    assert_eq!(both.has(op), a.has(op) || b.has(op), "{a:?} and {b:?} of {op}");
                }
                assert_eq!(
                    Results::all_but(both.awaited.clone(), both.below).as_ref(),
                    Some(&both)
                );
            }
            for op in 0..8 {
                let silent = a.silent_about(op);
                assert!(!silent.has(op), "{a:?} without {op}");
                assert!((0..8).all(|other| a.has(other) || !silent.has(other)));
                assert!((0..a.low_water()).all(|below| a.has(below)));
            }
        }
    }

    #[test]
    fn what_is_named_is_bounded_and_in_order() {
        let most: Vec<u64> = (0..AWAITED_MAX as u64).collect();
        assert_eq!(but(&most, 64).low_water(), 0);
        assert_eq!(Results::all_but((0..=AWAITED_MAX as u64).collect(), 1000), None);
        assert_eq!(Results::all_but(vec![3, 3], 9), None);
        assert_eq!(Results::all_but(vec![4, 3], 9), None);
        assert_eq!(Results::all_but(vec![9], 9), None);
    }
}
