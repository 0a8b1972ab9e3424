//! Which steps of an inode's change number were this client's own: what is cached stays valid over those alone.
//!
//! Disposable: what is forgotten costs a read.

use std::collections::BTreeMap;
use std::sync::Mutex;

use dfs_core::command::{Change, Outcome, SetTime};
use dfs_core::ids::InodeNo;

use crate::session::lock;

/// Inodes remembered before all are forgotten.
const INODES_MAX: usize = 65_536;

/// Each step from `from` to `to` was ours.
#[derive(Clone, Copy)]
struct Span {
    from: u64,
    to: u64,
}

#[derive(Default)]
pub(crate) struct OwnChanges {
    spans: Mutex<BTreeMap<InodeNo, Span>>,
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a change that is not listed, also a new one, only costs a read"
)]
impl OwnChanges {
    /// A change was answered: notes it if it certainly raised the number, by one.
    pub(crate) fn answered(&self, change: &Change, outcome: &Outcome) {
        let raised = match change {
            Change::CommitSize { mtime, .. } => mtime.is_some(),
            Change::InlineWrite { data, .. } => !data.is_empty(),
            Change::InlinePatch { ranges, .. } => ranges.iter().any(|(_, data)| !data.is_empty()),
            Change::Spill { .. } => true,
            Change::SetAttr { mode, uid, gid, atime, mtime, .. } => {
                mode.or(*uid).or(*gid).is_some()
                    || *atime != SetTime::Keep
                    || *mtime != SetTime::Keep
            }
            // Others may leave the number alone, and then the answer shows somebody else's step.
            _ => false,
        };
        if let (true, Outcome::Attr(attr) | Outcome::Appended { attr, .. }) = (raised, outcome) {
            self.stepped(attr.ino, attr.change);
        }
    }

    /// The step to `to` was ours.
    fn stepped(&self, ino: InodeNo, to: u64) {
        let mut spans = lock(&self.spans);
        if INODES_MAX <= spans.len() && !spans.contains_key(&ino) {
            spans.clear();
        }
        let before = to.saturating_sub(1);
        let span = spans.entry(ino).or_insert(Span { from: before, to });
        if span.to == before {
            span.to = to;
        } else if span.from == to {
            // Answers of two changes overtook each other.
            span.from = before;
        } else if !(span.from < to && to <= span.to) {
            *span = Span { from: before, to };
        }
    }

    pub(crate) fn only_here(&self, ino: InodeNo, since: u64, now: u64) -> bool {
        since == now
            || lock(&self.spans)
                .get(&ino)
                .is_some_and(|span| span.from <= since && since < now && now == span.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeNo = InodeNo(7);

    #[track_caller]
    fn check(steps: &[u64], since: u64, now: u64, expected: bool) {
        let own = OwnChanges::default();
        steps.iter().for_each(|to| own.stepped(A, *to));
        assert_eq!(own.only_here(A, since, now), expected);
    }

    #[test]
    fn only_an_unbroken_chain_of_own_steps_counts() {
        check(&[], 5, 5, true);
        check(&[], 5, 6, false);
        check(&[6, 7, 8], 5, 8, true);
        check(&[6, 7, 8], 7, 8, true);
        check(&[6, 7, 8], 4, 8, false);
        check(&[6, 8], 5, 8, false);
        check(&[6, 8], 7, 8, true);
        // Somebody else stepped to 9 after us.
        check(&[6, 7, 8], 5, 9, false);
    }

    #[test]
    fn answers_that_overtake_each_other_make_the_same_chain() {
        check(&[7, 6], 5, 7, true);
        check(&[6, 8, 7], 5, 8, false);
    }
}
