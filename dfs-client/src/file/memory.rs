//! What this client knows of a file. Answers of the master overtake one another, and a thread may hold one for long
//! before it tells: what was asked for before something newer was learned, or everything forgotten, undoes neither.

use std::time::{Duration, Instant};

use dfs_core::namespace::Attr;

/// Attributes as of `at`.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) attr: Attr,
    at: Instant,
    /// Inline content, if it was fetched.
    content: Option<Vec<u8>>,
    learned: Moment,
}

/// Between two things that were learned or forgotten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Moment(u64);

#[derive(Default, Debug)]
pub(super) struct Memory {
    known: Option<Known>,
    last: Moment,
    forgotten: Moment,
    /// When pending bytes last became the master's content.
    logged: Moment,
}

impl Memory {
    /// To be taken before the master is asked.
    pub(super) fn now(&self) -> Moment {
        self.last
    }

    fn next(&mut self) -> Moment {
        self.last.0 += 1;
        self.last
    }

    /// What is known, if it is at most `age` old.
    pub(super) fn known(&self, age: Duration) -> Option<&Known> {
        self.known.as_ref().filter(|known| known.at.elapsed() <= age)
    }

    /// Size and inline content, if they were fetched at most `age` ago.
    pub(super) fn content(&self, age: Duration) -> Option<(u64, &[u8])> {
        let known = self.known(age).filter(|known| known.attr.inline)?;
        Some((known.attr.size, known.content.as_deref()?))
    }

    pub(super) fn forget(&mut self) {
        self.known = None;
        self.forgotten = self.next();
    }

    /// The answer to what was asked at `asked`, with inline content if that was asked for. True: the change number is
    /// another one than was known.
    pub(super) fn learn(&mut self, asked: Moment, attr: Attr, content: Option<Vec<u8>>) -> bool {
        if asked < self.forgotten {
            return false;
        }
        let changed = self.known.as_ref().is_none_or(|known| known.attr.change != attr.change);
        let content = match self.known.take() {
            Some(mut known) if asked < known.learned && attr.change <= known.attr.change => {
                if !changed {
                    known.content = known.content.or(content);
                }
                self.known = Some(known);
                return false;
            }
            Some(known) if !changed => content.or(known.content),
            Some(_) | None => content,
        };
        let learned = self.next();
        self.known = Some(Known { attr, at: Instant::now(), content, learned });
        changed
    }

    /// Pending bytes are the master's content now, which `patch` makes of that before it; `attr`: its answer, if it is known.
    pub(super) fn logged(
        &mut self,
        asked: Moment,
        attr: Option<Attr>,
        patch: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) {
        self.logged = self.next();
        let is_later =
            |known: &Known| attr.as_ref().is_some_and(|attr| attr.change <= known.attr.change);
        if self.known.as_ref().is_some_and(is_later) {
            return;
        }
        let Some(attr) = attr.filter(|_| self.forgotten <= asked) else {
            // What is known, or on its way, may be of before: these bytes would be in neither.
            self.known = None;
            self.forgotten = self.logged;
            return;
        };
        // Only if nobody else changed it since it was fetched.
        let before = self.known.take().filter(|known| known.attr.change + 1 == attr.change);
        let content = before.and_then(|known| known.content).map(patch);
        self.known = Some(Known { attr, at: Instant::now(), content, learned: self.logged });
    }

    /// Whether bytes that were pending at `asked` may be neither pending any more nor in what was answered.
    pub(super) fn logged_since(&self, asked: Moment) -> bool {
        asked < self.logged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn version(change: u8) -> (Attr, Option<Vec<u8>>) {
        let root = crate::recent_dirs::tests::root_after(1);
        (Attr { change: change.into(), inline: true, size: 1, ..root }, Some(vec![change]))
    }

    fn learn(memory: &mut Memory, asked: Moment, change: u8) -> bool {
        let (attr, content) = version(change);
        memory.learn(asked, attr, content)
    }

    fn learn_now(memory: &mut Memory, change: u8) -> bool {
        let now = memory.now();
        learn(memory, now, change)
    }

    fn content(memory: &Memory) -> Option<&[u8]> {
        memory.content(LONG).map(|(_, content)| content)
    }

    #[test]
    fn an_answer_that_comes_late_does_not_undo_a_newer_one() {
        let mut memory = Memory::default();
        let asked = memory.now();
        assert!(learn_now(&mut memory, 5));
        assert!(!learn(&mut memory, asked, 4));
        assert_eq!(content(&memory), Some([5].as_slice()));
        // Asked before, answered after: it may be the newer one all the same.
        assert!(learn(&mut memory, asked, 6));
        assert_eq!(content(&memory), Some([6].as_slice()));
        // Asked after: it is the truth, also if a master was restored to what it was long ago.
        assert!(learn_now(&mut memory, 3));
        assert_eq!(content(&memory), Some([3].as_slice()));
    }

    #[test]
    fn what_was_asked_for_before_all_was_forgotten_is_not_remembered() {
        let mut memory = Memory::default();
        let asked = memory.now();
        memory.forget();
        assert!(!learn(&mut memory, asked, 4));
        assert!(memory.known(LONG).is_none());
        assert!(learn_now(&mut memory, 5));
    }

    #[test]
    fn content_is_kept_as_long_as_the_change_number_is() {
        let mut memory = Memory::default();
        learn_now(&mut memory, 4);
        let now = memory.now();
        memory.learn(now, version(4).0, None);
        assert_eq!(content(&memory), Some([4].as_slice()));
        let now = memory.now();
        memory.learn(now, version(5).0, None);
        assert_eq!(content(&memory), None);
        // Of an older answer with the same change number the content is as good.
        let asked = Moment::default();
        assert!(!learn(&mut memory, asked, 5));
        assert_eq!(content(&memory), Some([5].as_slice()));
    }

    #[test]
    fn what_was_logged_is_patched_in_only_by_itself() {
        let patch = |mut content: Vec<u8>| {
            content.push(9);
            content
        };
        let mut memory = Memory::default();
        learn_now(&mut memory, 4);
        let asked = memory.now();
        memory.logged(asked, Some(version(5).0), patch);
        assert_eq!(content(&memory), Some([4, 9].as_slice()));
        assert!(memory.logged_since(asked) && !memory.logged_since(memory.now()));
        let now = memory.now();
        memory.logged(now, Some(version(7).0), patch);
        assert_eq!(content(&memory), None, "somebody else changed it too");
        let asked = memory.now();
        memory.forget();
        memory.logged(asked, Some(version(8).0), patch);
        assert!(memory.known(LONG).is_none() && memory.logged_since(asked));
    }

    #[test]
    fn an_answer_of_before_what_was_logged_does_not_come_back() {
        for attr in [Some(version(5).0), None] {
            let mut memory = Memory::default();
            learn_now(&mut memory, 4);
            let asked = memory.now();
            memory.forget();
            let opened = memory.now();
            memory.logged(asked, attr, |content| content);
            assert!(!learn(&mut memory, opened, 4));
            assert_eq!(content(&memory), None);
            // It was told before.
            let mut memory = Memory::default();
            memory.forget();
            learn_now(&mut memory, 4);
            memory.logged(Moment::default(), Some(version(5).0), |content| content);
            assert_eq!(content(&memory), None);
            learn_now(&mut memory, 5);
            assert_eq!(content(&memory), Some([5].as_slice()));
        }
    }
}
