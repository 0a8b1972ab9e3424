//! Whether a chunkserver's directory is the newest there is of its disk, or an older copy that somebody put back.
//!
//! A directory carries the last *mark* that was taken for it, the log the last two: what it knows to be in the
//! directory, and what may be. A server that starts, and one that runs and writes, asks for a new mark in place of its
//! last, and keeps it when the log has it; the next message shows that it did. Whatever carries an earlier one was
//! copied before, and lacks what was acknowledged since.
//!
//! Order of events: the number is drawn and on the server's disk, the mark is asked for, the log has it as pending, the
//! server has it on disk, its next message confirms it. Before that a server that starts serves nothing: a crash at
//! any point leaves a directory with one of the two marks of the log.

use super::transaction::{Answer, Transaction};
use super::{FormerDisk, Key, Record, Server};
use crate::command::Outcome;
use crate::event::EventKind;
use crate::ids::{DiskId, ServerId};
use crate::namespace::NamespaceError;

/// Disks of one server whose marks are kept after others took their place.
pub const FORMER_MAX: usize = 16;

/// One mark. Numbers rise along the life of one directory; the random part tells two from one another that drew the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Mark {
    /// 0: there is none yet.
    pub number: u64,
    pub nonce: u64,
}

impl Mark {
    pub const NONE: Self = Self { number: 0, nonce: 0 };
}

/// What the log knows of one disk's directory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marks {
    /// The directory had it once: nothing with an earlier one is the newest.
    pub confirmed: Mark,
    /// Taken, and perhaps in the directory.
    pub pending: Mark,
}

/// What a server says of its directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The last mark that it holds as taken.
    pub last: Mark,
    /// The one it asks for, or none.
    pub next: Mark,
    /// Nothing in it counts as current: a person decided to go on with it, whatever its age.
    pub loss_accepted: bool,
}

impl Marks {
    /// The highest number there is.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.confirmed.number.max(self.pending.number)
    }

    /// Whether a directory with `last` is the newest as far as is known here.
    #[must_use]
    pub fn knows(&self, last: Mark) -> bool {
        last == self.confirmed || last == self.pending
    }

    /// Whether this log is older than a directory with `last`: its own end was lost, which somebody accepted or a
    /// restore brought with it. What is in the directory is newer than anything that could be compared with it.
    #[must_use]
    pub fn are_older_than(&self, last: Mark) -> bool {
        self.newest() < last.number
    }

    /// What they are once a directory showed this; `None`: it is an older copy.
    ///
    /// Unchanged if what is asked for has no higher number than the pending one: a message that was long under way, or an
    /// older copy that does not know yet how far its disk went. Numbers rise, whoever goes on with the disk.
    #[must_use]
    pub fn after(&self, shown: &Shown) -> Option<Self> {
        let Shown { last, next, loss_accepted } = *shown;
        let mut after = *self;
        if last != self.confirmed && (last == self.pending || self.are_older_than(last)) {
            after = Self { confirmed: last, pending: last };
        } else if !self.knows(last) && !loss_accepted {
            return None;
        }
        if after.newest() < next.number {
            after.pending = next;
        }
        Some(after)
    }
}

impl Server {
    /// The marks of `disk`, if it is or was this server's.
    #[must_use]
    pub fn marks_of(&self, disk: DiskId) -> Option<Marks> {
        if self.disk == disk {
            return Some(self.marks);
        }
        self.former.iter().find(|former| former.disk == disk).map(|former| former.marks)
    }

    /// The record of this server with `disk` in the place of what it had: marks of both are kept.
    pub(super) fn former_with(&self, disk: DiskId) -> Vec<FormerDisk> {
        let mut former = self.former.clone();
        former.retain(|known| known.disk != disk);
        former.push(FormerDisk { disk: self.disk, marks: self.marks });
        let too_many = former.len().saturating_sub(FORMER_MAX);
        former.drain(..too_many);
        former
    }
}

impl Transaction<'_> {
    pub(super) fn mark_disk(&mut self, server: ServerId, disk: DiskId, shown: &Shown) -> Answer {
        let mut record = self.known_server(server)?;
        if record.disk != disk {
            let text = format!("{server} is not registered with that disk");
            return Err(NamespaceError::Invalid(text));
        }
        let Some(after) = record.marks.after(shown) else {
            let text = format!("the directory of {server} is an older copy");
            return Err(NamespaceError::Invalid(text));
        };
        let older_log = record.marks.are_older_than(shown.last) && record.marks != Marks::default();
        let text = if older_log {
            "its directory is newer than this log, and is believed"
        } else if !record.marks.knows(shown.last) && shown.loss_accepted {
            "an older copy of its directory goes on with its loss accepted: nothing in it counts as current"
        } else {
            ""
        };
        if after != record.marks {
            record.marks = after;
            self.store.put(Key::Server(server), Record::Server(record));
            if !text.is_empty() {
                self.note(EventKind::Directory, Some(server), text, None);
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Change;
    use crate::meta::samples::{run_at, started};
    use crate::meta::{MemStore, events, read};
    use crate::time::WallTime;

    const CS: ServerId = ServerId(3);

    fn mark(number: u64) -> Mark {
        Mark { number, nonce: number * 10 }
    }

    fn shown(last: Mark, next: Mark) -> Shown {
        Shown { last, next, loss_accepted: false }
    }

    #[track_caller]
    fn check_after(marks: (u64, u64), last: u64, next: u64, expected: Option<(u64, u64)>) {
        let of = |(confirmed, pending): (u64, u64)| {
            let mark = |n| if n == 0 { Mark::NONE } else { mark(n) };
            Marks { confirmed: mark(confirmed), pending: mark(pending) }
        };
        let one = |n| if n == 0 { Mark::NONE } else { mark(n) };
        assert_eq!(of(marks).after(&shown(one(last), one(next))), expected.map(of));
    }

    #[test]
    fn every_point_at_which_a_server_can_die_leaves_a_directory_that_is_known() {
        // New, or of a cluster from before there were marks.
        check_after((0, 0), 0, 1, Some((0, 1)));
        // Asked again: the answer did not arrive.
        check_after((0, 1), 0, 1, Some((0, 1)));
        // Died before it kept the mark.
        check_after((0, 1), 0, 2, Some((0, 2)));
        // Kept, and shown.
        check_after((0, 2), 2, 0, Some((2, 2)));
        // Died after it kept the mark and before it showed that.
        check_after((2, 3), 3, 4, Some((3, 4)));
        check_after((2, 2), 2, 0, Some((2, 2)));
        // While one is under way.
        check_after((2, 3), 2, 0, Some((2, 3)));
    }

    #[test]
    fn a_directory_with_an_earlier_mark_or_with_none_is_an_older_copy() {
        check_after((3, 3), 2, 9, None);
        check_after((3, 4), 2, 9, None);
        check_after((3, 4), 0, 1, None);
        // Of the same number, drawn by another copy.
        let other = Mark { number: 4, nonce: 1 };
        let marks = Marks { confirmed: mark(3), pending: mark(4) };
        assert_eq!(marks.after(&shown(other, Mark::NONE)), None);
        assert_eq!(marks.after(&shown(other, mark(5))), None);
    }

    #[test]
    fn a_message_from_before_the_last_start_takes_nothing_back() {
        // The mark asked for was drawn before the pending one.
        check_after((2, 4), 2, 3, Some((2, 4)));
        check_after((4, 4), 4, 3, Some((4, 4)));
    }

    #[test]
    fn a_log_that_lost_its_end_follows_the_newer_directory() {
        check_after((3, 4), 7, 8, Some((7, 8)));
        check_after((3, 4), 7, 0, Some((7, 7)));
        // Another mark of the number that the log knows was drawn in what it lost: it is confirmed by nobody.
        check_after((7, 8), 4, 9, None);
    }

    fn run(store: &mut MemStore, change: Change) -> Outcome {
        run_at(store, WallTime(5_000_000_000), change)
    }

    fn registered(store: &mut MemStore, disk: u128) {
        run(store, Change::RegisterServer { server: CS, disk: DiskId(disk) });
    }

    fn ask(store: &mut MemStore, disk: u128, shown: Shown) -> Outcome {
        run(store, Change::MarkDisk { server: CS, disk: DiskId(disk), shown })
    }

    #[test]
    fn an_older_copy_goes_on_only_with_its_loss_accepted_and_then_the_newer_one_does_not() {
        let mut store = started();
        registered(&mut store, 9);
        for (last, next) in [(Mark::NONE, mark(1)), (mark(1), mark(2)), (mark(2), mark(3))] {
            assert_eq!(ask(&mut store, 9, shown(last, next)), Outcome::Done);
        }
        let before = read::server(&store, CS).unwrap();
        let older = shown(mark(1), mark(4));
        assert!(matches!(ask(&mut store, 9, older), Outcome::Refused(_)));
        assert_eq!(read::server(&store, CS).unwrap(), before);
        assert_eq!(events(&store, 1, 9), []);
        // It is told how far the disk went, and asks again with a number above that.
        let low = Shown { next: mark(3), loss_accepted: true, ..older };
        assert_eq!(ask(&mut store, 9, low), Outcome::Done);
        assert_eq!(read::server(&store, CS).unwrap(), before);
        assert_eq!(events(&store, 1, 9), []);
        assert_eq!(ask(&mut store, 9, Shown { loss_accepted: true, ..older }), Outcome::Done);
        assert_eq!(ask(&mut store, 9, shown(mark(4), Mark::NONE)), Outcome::Done);
        let [(_, event)] = &events(&store, 1, 9)[..] else { panic!("{:?}", events(&store, 1, 9)) };
        assert!(event.cause.contains("loss accepted") && event.server == Some(CS), "{event:?}");
        assert!(matches!(ask(&mut store, 9, shown(mark(3), mark(5))), Outcome::Refused(_)));
        assert_eq!(crate::check::check(&store), []);
    }

    #[test]
    fn a_disk_is_known_by_its_marks_also_after_another_was_in_its_place() {
        let mut store = started();
        registered(&mut store, 9);
        ask(&mut store, 9, shown(Mark::NONE, mark(1)));
        ask(&mut store, 9, shown(mark(1), mark(2)));
        registered(&mut store, 10);
        assert!(matches!(ask(&mut store, 9, shown(mark(1), mark(3))), Outcome::Refused(_)));
        assert_eq!(ask(&mut store, 10, shown(Mark::NONE, mark(1))), Outcome::Done);
        registered(&mut store, 9);
        let record = read::server(&store, CS).unwrap();
        assert_eq!(record.marks, Marks { confirmed: mark(1), pending: mark(2) });
        assert_eq!(record.marks_of(DiskId(10)).unwrap().pending, mark(1));
        assert!(matches!(ask(&mut store, 9, shown(Mark::NONE, mark(3))), Outcome::Refused(_)));
        // However many there were, so many are kept.
        for disk in 100..200 {
            registered(&mut store, disk);
        }
        let record = read::server(&store, CS).unwrap();
        assert_eq!(record.former.len(), FORMER_MAX);
        assert!(record.marks_of(DiskId(198)).is_some() && record.marks_of(DiskId(9)).is_none());
    }

    #[test]
    fn a_directory_that_is_newer_than_the_log_is_believed_and_that_is_noted() {
        let mut store = started();
        registered(&mut store, 9);
        ask(&mut store, 9, shown(Mark::NONE, mark(1)));
        ask(&mut store, 9, shown(mark(1), mark(2)));
        assert_eq!(ask(&mut store, 9, shown(mark(8), mark(9))), Outcome::Done);
        let causes: Vec<String> = events(&store, 1, 9).into_iter().map(|(_, e)| e.cause).collect();
        assert!(causes.len() == 1 && causes[0].contains("newer than this log"), "{causes:?}");
    }
}
