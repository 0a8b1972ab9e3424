//! What a file may hold, byte by byte, after a crash: what the last acknowledged `fsync` covered, or anything issued
//! since and not covered yet.
//!
//! A byte has candidates, oldest first. An acknowledged `fsync` leaves the last acknowledged one and what was issued
//! after it without an answer. The length is treated in the same way.

use std::collections::{BTreeMap, VecDeque};

/// Where a byte comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Zero,
    Write(u64),
}

impl Source {
    fn byte(self, at: u64) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Write(seed) => written_byte(seed, at),
        }
    }
}

fn written_byte(seed: u64, at: u64) -> u8 {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at / 8);
    word = (word ^ word >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word >> (8 * (at % 8))) as u8
}

/// What the write `seed` writes at `offset`: tells which write it was, and where.
pub(crate) fn written(seed: u64, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| written_byte(seed, at)).collect()
}

/// A change of one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Bytes of [`written`].
    Write {
        seed: u64,
        offset: u64,
        len: u64,
    },
    Truncate {
        len: u64,
    },
    /// A hole; the length stays.
    Punch {
        offset: u64,
        len: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Covered by an acknowledged `fsync`.
    Settled,
    /// The call returned; nobody synced it.
    Done,
    /// Outcome unknown.
    Issued,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Candidate<T> {
    value: T,
    state: State,
}

/// The oldest candidate that can still be there: the last one known to have happened.
fn first_possible<T>(candidates: &[Candidate<T>]) -> usize {
    candidates.iter().rposition(|candidate| candidate.state != State::Issued).unwrap_or(0)
}

fn finish<T>(candidates: &mut [Candidate<T>]) {
    if let Some(last) = candidates.last_mut() {
        last.state = State::Done;
    }
}

fn settle<T>(candidates: &mut Vec<Candidate<T>>) {
    candidates.drain(..first_possible(candidates));
    if let Some(first) = candidates.first_mut() {
        first.state = State::Settled;
    }
}

fn doubt<T>(candidates: &mut [Candidate<T>]) {
    for candidate in candidates.iter_mut().filter(|candidate| candidate.state == State::Done) {
        candidate.state = State::Issued;
    }
}

/// One file: which bytes and lengths may be found.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// From each offset up to the next one.
    extents: BTreeMap<u64, Vec<Candidate<Source>>>,
    lengths: Vec<Candidate<Lengths>>,
    begun: Option<Change>,
    /// What happened last, for messages.
    history: VecDeque<String>,
}

const HISTORY: usize = 30;

/// Inclusive ranges: of a change that was done, and of one of which some part may have been done.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Lengths {
    whole: Vec<(u64, u64)>,
    part: Vec<(u64, u64)>,
}

impl Expected {
    /// An empty file whose creation was acknowledged.
    pub(crate) fn new() -> Self {
        let zero = Candidate { value: Source::Zero, state: State::Settled };
        let none = Lengths { whole: vec![(0, 0)], part: vec![(0, 0)] };
        let empty = Candidate { value: none, state: State::Settled };
        Self {
            extents: [(0, vec![zero])].into(),
            lengths: vec![empty],
            begun: None,
            history: VecDeque::new(),
        }
    }

    /// Something happened to the file.
    pub(crate) fn note(&mut self, what: String) {
        self.history.push_back(what);
        if HISTORY < self.history.len() {
            self.history.pop_front();
        }
    }

    /// For messages: what happened last.
    pub(crate) fn history(&self) -> String {
        self.history.iter().map(|what| format!("\n  {what}")).collect()
    }

    /// The greatest length it may have now.
    pub(crate) fn len_max(&self) -> u64 {
        self.possible_lengths().iter().map(|(_, high)| *high).max().unwrap_or(0)
    }

    fn possible_lengths(&self) -> Vec<(u64, u64)> {
        let from = first_possible(&self.lengths);
        let possible = |candidate: &Candidate<Lengths>| match candidate.state {
            State::Issued => candidate.value.part.clone(),
            State::Settled | State::Done => candidate.value.whole.clone(),
        };
        self.lengths[from..].iter().flat_map(possible).collect()
    }

    fn split(&mut self, at: u64) {
        if let Some((_, candidates)) = self.extents.range(..=at).next_back() {
            let candidates = candidates.clone();
            self.extents.entry(at).or_insert(candidates);
        }
    }

    /// The call is about to be made.
    pub(crate) fn begin(&mut self, change: Change) {
        let (from, to, source) = match change {
            Change::Write { seed, offset, len } => (offset, offset + len, Source::Write(seed)),
            Change::Truncate { len } => (len, u64::MAX, Source::Zero),
            Change::Punch { offset, len } => (offset, offset + len, Source::Zero),
        };
        self.split(from);
        self.split(to);
        for (_, candidates) in self.extents.range_mut(from..to) {
            candidates.push(Candidate { value: source, state: State::Issued });
        }
        let before = self.possible_lengths();
        let lengths = match change {
            Change::Write { .. } => Lengths {
                whole: before.iter().map(|(low, high)| ((*low).max(to), (*high).max(to))).collect(),
                part: before.iter().map(|(low, high)| (*low, (*high).max(to))).collect(),
            },
            Change::Truncate { len } => Lengths { whole: vec![(len, len)], part: vec![(len, len)] },
            Change::Punch { .. } => Lengths { whole: before.clone(), part: before },
        };
        self.lengths.push(Candidate { value: lengths, state: State::Issued });
        self.note(format!("{change:?}"));
        self.begun = Some(change);
    }

    /// The call begun last returned.
    pub(crate) fn done(&mut self) {
        let Some(change) = self.begun.take() else { return };
        let (from, to) = match change {
            Change::Write { offset, len, .. } | Change::Punch { offset, len } => {
                (offset, offset + len)
            }
            Change::Truncate { len } => (len, u64::MAX),
        };
        self.extents.range_mut(from..to).for_each(|(_, candidates)| finish(candidates));
        finish(&mut self.lengths);
        self.note("done".to_owned());
    }

    /// An `fsync` returned.
    pub(crate) fn synced(&mut self) {
        self.note("synced".to_owned());
        self.extents.values_mut().for_each(settle);
        settle(&mut self.lengths);
        let mut previous: Option<Vec<Candidate<Source>>> = None;
        self.extents.retain(|_, candidates| {
            let new = previous.as_ref() != Some(candidates);
            previous = Some(candidates.clone());
            new
        });
    }

    /// A call failed, or the file was closed without an `fsync`: what was not synced may be lost.
    pub(crate) fn doubt(&mut self) {
        self.note("in doubt".to_owned());
        self.begun = None;
        self.extents.values_mut().for_each(|candidates| doubt(candidates));
        doubt(&mut self.lengths);
    }

    /// What is wrong with the length, if anything.
    pub(crate) fn check_len(&self, len: u64) -> Result<(), String> {
        let possible = self.possible_lengths();
        if possible.iter().any(|(low, high)| (*low..=*high).contains(&len)) {
            Ok(())
        } else {
            Err(format!("length {len}, possible are {possible:?}"))
        }
    }

    /// What is wrong with bytes found at `offset`, if anything.
    pub(crate) fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let end = offset + bytes.len() as u64;
        let starts: Vec<u64> = self.extents.keys().copied().collect();
        for (n, (start, candidates)) in self.extents.iter().enumerate() {
            let next = starts.get(n + 1).copied().unwrap_or(u64::MAX);
            let possible = &candidates[first_possible(candidates)..];
            for at in (*start).max(offset)..next.min(end) {
                let found = bytes[usize::try_from(at - offset).unwrap()];
                if !possible.iter().any(|candidate| candidate.value.byte(at) == found) {
                    let same = (at..end)
                        .take_while(|at| bytes[usize::try_from(at - offset).unwrap()] == found)
                        .count();
                    return Err(format!(
                        "byte {at} is {found:#04x} ({same} such bytes), possible in {start}..{next} are {possible:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// As both checks, of the whole file.
    pub(crate) fn check_whole(&self, bytes: &[u8]) -> Result<(), String> {
        self.check_len(bytes.len() as u64)?;
        self.check(0, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(expected: &mut Expected, seed: u64, offset: u64, len: u64) {
        expected.begin(Change::Write { seed, offset, len });
        expected.done();
    }

    fn synced_file() -> (Expected, Vec<u8>) {
        let mut expected = Expected::new();
        write(&mut expected, 1, 0, 1000);
        expected.synced();
        (expected, written(1, 0, 1000))
    }

    #[test]
    fn a_wrong_byte_and_a_wrong_length_are_found() {
        let (expected, bytes) = synced_file();
        assert_eq!(expected.check_whole(&bytes), Ok(()));
        for at in [0, 1, 511, 999] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert!(expected.check_whole(&wrong).unwrap_err().contains(&format!("byte {at} ")));
        }
        assert!(expected.check_whole(&bytes[..999]).unwrap_err().contains("length 999"));
        assert!(expected.check_whole(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn an_unsynced_overwrite_may_be_there_or_not_and_a_synced_one_must_be() {
        let (mut expected, old) = synced_file();
        let mut new = old.clone();
        new[100..300].copy_from_slice(&written(2, 100, 200));
        let mut half = new.clone();
        half[200..300].copy_from_slice(&old[200..300]);
        expected.begin(Change::Write { seed: 2, offset: 100, len: 200 });
        for found in [&old, &new, &half] {
            assert_eq!(expected.check_whole(found), Ok(()));
        }
        expected.done();
        assert!(expected.check_whole(&old).is_err(), "a reader of the same mount sees the write");
        let mut crashed = expected.clone();
        crashed.doubt();
        for found in [&old, &new, &half] {
            assert_eq!(crashed.check_whole(found), Ok(()));
        }
        expected.synced();
        expected.doubt();
        assert_eq!(expected.check_whole(&new), Ok(()));
        assert!(expected.check_whole(&old).is_err(), "the overwrite was lost");
        assert!(expected.check_whole(&half).is_err(), "half of it was lost");
    }

    #[test]
    fn a_write_of_unknown_outcome_stays_possible_until_it_is_overwritten_and_synced() {
        let (mut expected, old) = synced_file();
        expected.begin(Change::Write { seed: 2, offset: 0, len: 10 });
        expected.doubt();
        expected.synced();
        let mut new = old.clone();
        new[..10].copy_from_slice(&written(2, 0, 10));
        assert_eq!((expected.check_whole(&old), expected.check_whole(&new)), (Ok(()), Ok(())));
        write(&mut expected, 3, 0, 10);
        expected.synced();
        assert!(expected.check_whole(&old).is_err() && expected.check_whole(&new).is_err());
    }

    #[test]
    fn truncated_bytes_come_back_as_zeros_only() {
        let (mut expected, old) = synced_file();
        for len in [400, 700] {
            expected.begin(Change::Truncate { len });
            expected.done();
        }
        expected.synced();
        let right = [&old[..400], &[0; 300]].concat();
        assert_eq!(expected.check_whole(&right), Ok(()));
        assert!(
            expected.check_whole(&old[..700]).is_err(),
            "old bytes after a shrink and a growth"
        );
        expected.begin(Change::Punch { offset: 0, len: 8 });
        expected.done();
        expected.synced();
        assert!(expected.check_whole(&right).is_err(), "the hole was lost");
    }

    #[test]
    fn an_unanswered_truncate_leaves_two_lengths() {
        let (mut expected, old) = synced_file();
        expected.begin(Change::Truncate { len: 10 });
        expected.doubt();
        assert_eq!(expected.check_whole(&old), Ok(()));
        assert_eq!(expected.check_whole(&old[..10]), Ok(()));
        assert!(expected.check_whole(&old[..500]).is_err());
        // Growing again over what may have been cut.
        write(&mut expected, 2, 1000, 5);
        let cut = [&old[..10], &[0; 990], &written(2, 1000, 5)].concat();
        assert_eq!(expected.check_whole(&cut), Ok(()));
        assert_eq!(expected.check_whole(&[&old[..], &written(2, 1000, 5)].concat()), Ok(()));
        assert!(expected.check_whole(&cut[..1000]).is_err());
        // Part of the write may be there when nobody synced it.
        expected.doubt();
        assert_eq!(expected.check_whole(&cut[..1000]), Ok(()));
        assert!(expected.check_whole(&cut[..9]).is_err());
    }
}
