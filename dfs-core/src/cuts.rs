//! To what sizes a file was truncated lately: whoever has part of an operation stored can tell what is left of the rest.

/// One truncation: `number` is what the inode's counter was raised to, `size` what the file was cut, or grown, to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    pub number: u64,
    pub size: u64,
}

/// Later truncations to a smaller size hide earlier ones: numbers and sizes both rise.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cuts {
    pub kept: Vec<Cut>,
    /// Highest number that was dropped for want of room.
    pub forgotten: u64,
}

/// Truncations kept per file, each to a larger size than the one before.
pub const CUTS_KEPT_MAX: usize = 16;

impl Cuts {
    pub fn note(&mut self, cut: Cut) {
        self.kept.retain(|before| before.size < cut.size);
        self.kept.push(cut);
        if CUTS_KEPT_MAX < self.kept.len() {
            self.forgotten = self.kept.remove(0).number;
        }
    }

    /// Where the file was cut below an append that crosses `boundary`, a chunk's end: `u64::MAX` if it was not.
    ///
    /// The append began when `begun` truncations were known. Its first part was stored behind those up to `stored` which
    /// cut the chunk before the boundary. Those at or beyond the boundary did not move that part: it may be taken for
    /// earlier than each that is newer than its beginning. `None`: too many to be remembered.
    #[must_use]
    pub fn limit(&self, begun: u64, stored: u64, boundary: u64) -> Option<u64> {
        if begun < self.forgotten {
            return None;
        }
        let cuts = self
            .kept
            .iter()
            .filter(|cut| stored < cut.number || (begun < cut.number && boundary <= cut.size));
        Some(cuts.map(|cut| cut.size).min().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(all: &[(u64, u64)]) -> Cuts {
        let mut cuts = Cuts::default();
        all.iter().for_each(|&(number, size)| cuts.note(Cut { number, size }));
        cuts
    }

    #[test]
    fn what_was_stored_behind_a_cut_is_not_cut_by_it() {
        let cuts = cuts(&[(1, 50), (3, 70)]);
        assert_eq!(cuts.limit(0, 3, 100), Some(u64::MAX));
        assert_eq!(cuts.limit(0, 1, 100), Some(70));
        assert_eq!(cuts.limit(0, 0, 100), Some(50));
    }

    #[test]
    fn a_cut_beyond_the_boundary_counts_from_the_beginning() {
        let cuts = cuts(&[(2, 120)]);
        assert_eq!(cuts.limit(1, 2, 100), Some(120));
        assert_eq!(cuts.limit(1, 2, 120), Some(120), "right at the boundary too");
        assert_eq!(cuts.limit(2, 2, 100), Some(u64::MAX));
    }

    #[test]
    fn a_smaller_cut_hides_larger_ones_before_it() {
        let cuts = cuts(&[(1, 120), (2, 50), (3, 130)]);
        assert_eq!(cuts.kept, [Cut { number: 2, size: 50 }, Cut { number: 3, size: 130 }]);
        // Stored behind number 2, and so behind number 1.
        assert_eq!(cuts.limit(0, 2, 100), Some(130));
    }

    #[test]
    fn what_is_forgotten_is_not_guessed() {
        let rising: Vec<_> = (1..=CUTS_KEPT_MAX as u64 + 2).map(|n| (n, n)).collect();
        let cuts = cuts(&rising);
        assert_eq!((cuts.kept.len(), cuts.forgotten), (CUTS_KEPT_MAX, 2));
        assert_eq!(cuts.limit(1, 1, 0), None);
        assert_eq!(cuts.limit(2, 2, 0), Some(3));
    }
}
