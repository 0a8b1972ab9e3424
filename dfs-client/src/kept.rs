//! What of a session outlives its process, in memory that somebody else keeps: a successor goes on as the same client.
//!
//! Kept are the numbers of operations under way, by the request of the kernel that they belong to, and what is open. A
//! request that is carried out again asks with the numbers of the first time, and the master answers what it recorded
//! then (DECISIONS 4); an operation on a chunk is asked for again by its chunk's counter, and answered by the servers,
//! which take the counters of a client in order: so all that predecessors began on a file is repeated before anything
//! new is done to its chunks. What a request began is forgotten when it is answered, or when the kernel did not send it
//! to the successor.
//!
//! ```text
//! words      0 layout, 1 next operation, 2 nonce of the master's reign, 3 registered, from 8 of whoever keeps it
//! from 64    SLOTS times SLOT_WORDS: 0 request (0: free), 1 operations, 2 and 3 open, 4 to 7 operation on a chunk,
//!            8 … (hash, number), 28 to 31 the request again, time and cuts as it first saw them, which of the two it did
//! then       OPENS times 2: inode (0: free), opens << 32 | of these for writing
//! ```
//!
//! Programs before these last four words had room for two more operations there, and repeat appends only; they and this
//! one can follow each other.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_core::client::ops::OpCounters;
use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::results::{AWAITED_MAX, Results};
use dfs_core::time::WallTime;

use crate::exercise;
use crate::session::lock;

/// Number of this layout. Another program reads it, so it never changes its meaning.
const LAYOUT: u64 = 1;
const HEAD_WORDS: usize = 64;
/// Requests under way; more than a mount has threads.
const SLOTS: usize = 1024;
const SLOT_WORDS: usize = 32;
/// Operations of one request that are remembered, and that programs of before may have left.
const OPS_MAX: usize = 10;
const OPS_LEFT_MAX: usize = 12;
/// Files open at once that are remembered.
const OPENS: usize = 32_768;
/// Of the head, the first word that its keeper has for itself, up to [`HEAD_WORDS`].
pub const HOLDER_WORD: usize = 8;
/// Size of the memory.
pub const WORDS: usize = HEAD_WORDS + SLOTS * SLOT_WORDS + OPENS * 2;
/// Counters of chunks of one generation; far more than are used.
const COUNTERS_SHIFT: u32 = 40;

const NEXT_OP: usize = 1;
const NONCE: usize = 2;
const REGISTERED: usize = 3;

/// In the place of an append's counter: the record is stored, and only the answer to the kernel may be missing.
const STORED: u64 = u64::MAX;

/// What a request saw first.
const SEEN_BY: usize = 28;
const SEEN_TIME: usize = 29;
const SEEN_CUTS: usize = 30;
const SEEN_WHICH: usize = 31;

const OPEN_COUNTED: u64 = 1;
const OPEN_WRITES: u64 = 2;
const RELEASED: u64 = 4;

/// An operation on a chunk that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Begun {
    pub(crate) ino: InodeNo,
    pub(crate) index: u64,
    pub(crate) counter: u64,
    /// Of an append: bytes of the request that were stored before it. Otherwise the place in the file.
    pub(crate) done: u64,
}

/// Memory that outlives the process, and who uses it now.
pub struct Kept {
    words: &'static [AtomicU64],
    client: ClientId,
    generation: u64,
    slots: Mutex<Slots>,
    opens: Mutex<Places>,
    /// An operation that a predecessor began was repeated or forgotten.
    repeated: Condvar,
}

#[derive(Default)]
struct Slots {
    free: Vec<usize>,
    /// Left by a predecessor, by request.
    left: HashMap<u64, usize>,
    /// Operations on chunks that predecessors began and nobody repeated yet: inode, counter, request.
    begun: BTreeSet<(InodeNo, u64, u64)>,
}

#[derive(Default)]
struct Places {
    by_inode: HashMap<InodeNo, usize>,
    free: Vec<usize>,
    full_told: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("client", &self.client)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// A request that this thread carries out.
struct Active {
    kept: Arc<Kept>,
    slot: usize,
    /// Remembered operations that were asked again.
    repeated: u32,
    /// A predecessor began with it.
    follows: bool,
    /// The operation on a chunk that it began last, until it is repeated.
    begun: Option<Begun>,
}

thread_local! {
    static ACTIVE: RefCell<Option<Active>> = const { RefCell::new(None) };
}

fn active<T>(then: impl FnOnce(&mut Active) -> T) -> Option<T> {
    ACTIVE.with_borrow_mut(|active| active.as_mut().map(then))
}

impl Kept {
    /// `words`: zeros, or what a predecessor left. `generation` rises with each process.
    ///
    /// # Errors
    /// What is wrong with it, if it cannot be used.
    pub fn attach(
        words: &'static [AtomicU64],
        client: ClientId,
        generation: u64,
    ) -> Result<Arc<Self>, String> {
        if words.len() != WORDS {
            return Err(format!("kept memory of {} words, not {WORDS}", words.len()));
        }
        match words[0].compare_exchange(0, LAYOUT, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(LAYOUT) => {}
            Err(other) => {
                return Err(format!("kept memory of layout {other}, this program knows {LAYOUT}"));
            }
        }
        let kept = Self {
            words,
            client,
            generation,
            slots: Mutex::default(),
            opens: Mutex::default(),
            repeated: Condvar::new(),
        };
        kept.take_over();
        Ok(Arc::new(kept))
    }

    fn take_over(&self) {
        {
            let mut places = lock(&self.opens);
            for place in (0..OPENS).rev() {
                match self.open_word(place, 0).load(Ordering::Acquire) {
                    0 => places.free.push(place),
                    ino => drop(places.by_inode.insert(InodeNo(ino), place)),
                }
            }
        }
        let mut slots = lock(&self.slots);
        for slot in (0..SLOTS).rev() {
            let request = self.word(slot, 0).load(Ordering::Acquire);
            if request == 0 {
                slots.free.push(slot);
                continue;
            }
            slots.left.insert(request, slot);
            if let Some(Begun { ino, counter, .. }) = self.begun_in(slot) {
                slots.begun.insert((ino, counter, request));
            }
            // It is opened again. The mark goes first: one count too many keeps a file for too long, one too few loses it.
            let open = self.word(slot, 3).load(Ordering::Acquire);
            if open & OPEN_COUNTED != 0 {
                let ino = InodeNo(self.word(slot, 2).load(Ordering::Acquire));
                self.word(slot, 3).store(open & RELEASED, Ordering::Release);
                let (all, write) = self.open_counts(ino);
                let of_writers = u32::from(open & OPEN_WRITES != 0);
                self.note_open(ino, all.saturating_sub(1), write.saturating_sub(of_writers));
            }
        }
    }

    #[must_use]
    pub fn client(&self) -> ClientId {
        self.client
    }

    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn word(&self, slot: usize, word: usize) -> &AtomicU64 {
        &self.words[HEAD_WORDS + slot * SLOT_WORDS + word]
    }

    fn open_word(&self, place: usize, word: usize) -> &AtomicU64 {
        &self.words[HEAD_WORDS + SLOTS * SLOT_WORDS + place * 2 + word]
    }

    /// Above every counter that a predecessor gave to an operation on a chunk.
    pub(crate) fn first_counter(&self) -> u64 {
        self.generation << COUNTERS_SHIFT
    }

    // The master.

    pub(crate) fn is_registered(&self) -> bool {
        self.words[REGISTERED].load(Ordering::Acquire) != 0
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.words[NONCE].load(Ordering::Acquire)
    }

    pub(crate) fn registered(&self, nonce: u64) {
        self.words[NONCE].store(nonce, Ordering::Release);
        self.words[REGISTERED].store(1, Ordering::Release);
    }

    // What is open.

    fn open_counts(&self, ino: InodeNo) -> (u32, u32) {
        let places = lock(&self.opens);
        places.by_inode.get(&ino).map_or((0, 0), |place| {
            let counts = self.open_word(*place, 1).load(Ordering::Acquire);
            halves(counts)
        })
    }

    /// Inodes with their opens, and how many of these may write.
    pub(crate) fn opens(&self) -> Vec<(InodeNo, u32, u32)> {
        let known: Vec<InodeNo> = lock(&self.opens).by_inode.keys().copied().collect();
        let counts = known.into_iter().map(|ino| (ino, self.open_counts(ino)));
        counts.map(|(ino, (all, write))| (ino, all, write)).filter(|(_, all, _)| 0 < *all).collect()
    }

    pub(crate) fn note_open(&self, ino: InodeNo, all: u32, write: u32) {
        let mut places = lock(&self.opens);
        let known = places.by_inode.get(&ino).copied();
        if all == 0 {
            if let Some(place) = known {
                self.open_word(place, 0).store(0, Ordering::Release);
                places.by_inode.remove(&ino);
                places.free.push(place);
            }
            return;
        }
        let Some(place) = known.or_else(|| places.free.pop()) else {
            if !std::mem::replace(&mut places.full_told, true) {
                tracing::warn!(
                    OPENS,
                    "more files are open than are remembered for a successor of this process"
                );
            }
            return;
        };
        let counts = u64::from(all) << 32 | u64::from(write);
        self.open_word(place, 1).store(counts, Ordering::Release);
        if known.is_none() {
            self.open_word(place, 0).store(ino.0, Ordering::Release);
            places.by_inode.insert(ino, place);
        }
    }

    // Requests.

    /// Numbers of the operations that predecessors did not have the results of.
    fn awaited(&self) -> BTreeSet<u64> {
        let slots = lock(&self.slots);
        slots.left.values().flat_map(|slot| self.numbers(*slot)).collect()
    }

    fn numbers(&self, slot: usize) -> Vec<u64> {
        let count = self.word(slot, 1).load(Ordering::Acquire);
        let count = usize::try_from(count).unwrap_or(OPS_LEFT_MAX).min(OPS_LEFT_MAX);
        (0..count).map(|op| self.word(slot, 9 + 2 * op).load(Ordering::Acquire)).collect()
    }

    /// This thread carries out `request`, which is not 0, until [`Self::end`].
    pub(crate) fn begin(self: &Arc<Self>, request: u64) {
        let slot = {
            let mut slots = lock(&self.slots);
            match slots.left.remove(&request) {
                Some(slot) => Some((slot, true)),
                None => slots.free.pop().map(|slot| (slot, false)).inspect(|(slot, _)| {
                    for word in (1..8).chain([SEEN_BY]) {
                        self.word(*slot, word).store(0, Ordering::Relaxed);
                    }
                    self.word(*slot, 0).store(request, Ordering::Release);
                }),
            }
        };
        // There are more slots than threads.
        let Some((slot, follows)) = slot else { return };
        let begun = if follows { self.begun_in(slot) } else { None };
        let kept = Arc::clone(self);
        ACTIVE.set(Some(Active { kept, slot, repeated: 0, follows, begun }));
    }

    /// It is answered. Numbers of its operations, whose results nobody asks for again.
    pub(crate) fn end(&self) -> Vec<u64> {
        let Some(Active { slot, begun, .. }) = ACTIVE.take() else { return Vec::new() };
        let request = self.word(slot, 0).load(Ordering::Acquire);
        let numbers = self.numbers(slot);
        self.word(slot, 0).store(0, Ordering::Release);
        if let Some(begun) = begun {
            self.is_repeated(begun, request);
        }
        lock(&self.slots).free.push(slot);
        numbers
    }

    /// What predecessors left and the kernel did not ask for again, by `resent`, was answered. Numbers as [`Self::end`].
    pub(crate) fn forget_left_but(&self, resent: &[u64]) -> Vec<u64> {
        let is_without = exercise::is_without("records");
        let is_kept = |request: &u64| resent.contains(request) && !is_without;
        let mut slots = lock(&self.slots);
        let (kept, left) =
            std::mem::take(&mut slots.left).into_iter().partition(|(request, _)| is_kept(request));
        slots.left = kept;
        let left: HashMap<u64, usize> = left;
        let mut numbers = Vec::new();
        for (request, slot) in left {
            numbers.extend(self.numbers(slot));
            self.word(slot, 0).store(0, Ordering::Release);
            slots.free.push(slot);
            slots.begun.retain(|(_, _, of)| *of != request);
        }
        self.repeated.notify_all();
        numbers
    }

    /// The operation on a chunk that the request of this slot began.
    fn begun_in(&self, slot: usize) -> Option<Begun> {
        let word = |word| self.word(slot, word).load(Ordering::Acquire);
        let (ino, index, counter, done) = (InodeNo(word(4)), word(5), word(6), word(7));
        (!matches!(counter, 0 | STORED)).then_some(Begun { ino, index, counter, done })
    }

    fn is_repeated(&self, Begun { ino, counter, .. }: Begun, request: u64) {
        lock(&self.slots).begun.remove(&(ino, counter, request));
        self.repeated.notify_all();
    }

    pub(crate) fn is_left(&self, request: u64) -> bool {
        lock(&self.slots).left.contains_key(&request)
    }

    /// By the number of the operation on a chunk that it began.
    pub(crate) fn left_place(&self, request: u64) -> u64 {
        let left = lock(&self.slots).left.get(&request).copied();
        left.and_then(|slot| self.begun_in(slot)).map_or(u64::MAX, |begun| begun.counter)
    }

    /// Waits until everything that others began on the file is repeated: with a later operation on its chunk a server
    /// would take it for done.
    pub(crate) fn wait_for_begun(&self, ino: InodeNo) {
        self.wait_for_begun_below(ino, u64::MAX);
    }

    /// As [`Self::wait_for_begun`], for what was begun before `counter`: by whoever repeats that one.
    pub(crate) fn wait_for_begun_below(&self, ino: InodeNo, counter: u64) {
        let own = active(|active| active.kept.word(active.slot, 0).load(Ordering::Acquire));
        let own = own.unwrap_or(0);
        let mut slots = lock(&self.slots);
        let until = (ino, counter, own);
        while slots.begun.range((ino, 0, 0)..until).any(|(_, _, request)| *request != own) {
            let waited = self.repeated.wait_timeout(slots, Duration::from_millis(100));
            slots = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What this request saw first, now or in an earlier process: `now` if that is this time.
fn first_seen(place: usize, flag: u64, now: impl FnOnce() -> u64) -> u64 {
    let slot = active(|active| (Arc::clone(&active.kept), active.slot));
    // Of a request with so many operations an earlier program may have left others there.
    let slot = slot.filter(|(kept, slot)| kept.numbers(*slot).len() <= OPS_MAX);
    let Some((kept, slot)) = slot else { return now() };
    let word = |word| kept.word(slot, word);
    let request = word(0).load(Ordering::Acquire);
    if word(SEEN_BY).load(Ordering::Acquire) != request {
        word(SEEN_WHICH).store(0, Ordering::Release);
        word(SEEN_BY).store(request, Ordering::Release);
    }
    let which = word(SEEN_WHICH).load(Ordering::Acquire);
    if which & flag != 0 {
        return word(place).load(Ordering::Acquire);
    }
    let seen = now();
    word(place).store(seen, Ordering::Release);
    word(SEEN_WHICH).store(which | flag, Ordering::Release);
    seen
}

/// The time of what this request writes.
pub(crate) fn time(now: impl FnOnce() -> WallTime) -> WallTime {
    WallTime(first_seen(SEEN_TIME, 1, || now().0.cast_unsigned()).cast_signed())
}

/// The truncations of its file that were known before this request wrote.
pub(crate) fn cuts(now: u64) -> u64 {
    first_seen(SEEN_CUTS, 2, || now)
}

/// The number for an operation that says `call`: as it was the first time, if it is asked again. True: it is kept, and
/// ends with the request.
pub(crate) fn number_of(call: &[u8], next: impl FnOnce() -> u64) -> Option<u64> {
    // FNV-1a: another version must find the same.
    let hash = call.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    active(|active| {
        let (kept, slot) = (&active.kept, active.slot);
        let known = kept.numbers(slot);
        for (op, number) in known.iter().enumerate() {
            let is_it = kept.word(slot, 8 + 2 * op).load(Ordering::Acquire) == hash;
            if is_it && active.repeated & 1 << op == 0 {
                active.repeated |= 1 << op;
                return Some(*number);
            }
        }
        let op = known.len();
        if op == OPS_MAX {
            return None;
        }
        let number = next();
        kept.word(slot, 8 + 2 * op).store(hash, Ordering::Release);
        kept.word(slot, 9 + 2 * op).store(number, Ordering::Release);
        kept.word(slot, 1).store(op as u64 + 1, Ordering::Release);
        active.repeated |= 1 << op;
        Some(number)
    })
    .flatten()
}

/// Whether an operation of this request was asked for by a predecessor, and not yet again.
pub(crate) fn has_unrepeated() -> bool {
    active(|active| active.kept.numbers(active.slot).len() > active.repeated.count_ones() as usize)
        .unwrap_or(false)
}

/// Whether a predecessor began with this request.
pub(crate) fn is_repeated() -> bool {
    active(|active| active.follows).unwrap_or(false)
}

/// The request opened `ino`, which is counted.
pub(crate) fn opened(ino: InodeNo, write: bool) {
    active(|active| {
        active.kept.word(active.slot, 2).store(ino.0, Ordering::Release);
        let marks = OPEN_COUNTED | if write { OPEN_WRITES } else { 0 };
        active.kept.word(active.slot, 3).store(marks, Ordering::Release);
    });
}

/// It did not, and is about to be uncounted.
pub(crate) fn not_opened() {
    active(|active| active.kept.word(active.slot, 3).store(0, Ordering::Release));
}

/// Notes that the request takes back an open. False: it did so before.
pub(crate) fn release() -> bool {
    active(|active| {
        let word = active.kept.word(active.slot, 3);
        word.fetch_or(RELEASED, Ordering::AcqRel) & RELEASED == 0
    })
    .unwrap_or(true)
}

/// The request is about to have an operation on a chunk sent.
pub(crate) fn begin_operation(begun: Begun) {
    let Begun { ino, index, counter, done } = begun;
    active(|active| {
        let (kept, slot) = (&active.kept, active.slot);
        kept.word(slot, 6).store(0, Ordering::Release);
        kept.word(slot, 4).store(ino.0, Ordering::Release);
        kept.word(slot, 5).store(index, Ordering::Release);
        kept.word(slot, 7).store(done, Ordering::Release);
        kept.word(slot, 6).store(counter, Ordering::Release);
    });
}

/// Opens, and those for writing.
fn halves(counts: u64) -> (u32, u32) {
    // Each half fits.
    let half = |half| u32::try_from(half).unwrap_or(u32::MAX);
    (half(counts >> 32), half(counts & u64::from(u32::MAX)))
}

/// The request's record is stored.
pub(crate) fn appended() {
    active(|active| active.kept.word(active.slot, 6).store(STORED, Ordering::Release));
}

/// Whether it was by a predecessor.
pub(crate) fn is_appended() -> bool {
    active(|active| active.kept.word(active.slot, 6).load(Ordering::Acquire) == STORED)
        .unwrap_or(false)
}

/// The operation on a chunk of `ino` that the request began in an earlier process, and that was not repeated yet.
pub(crate) fn begun(ino: InodeNo) -> Option<Begun> {
    active(|active| active.begun).flatten().filter(|begun| begun.ino == ino)
}

/// It is repeated. `failed`: to no effect, so that nobody may take it for done.
pub(crate) fn repeated(failed: bool) {
    let begun = active(|active| {
        if failed {
            active.kept.word(active.slot, 6).store(0, Ordering::Release);
        }
        let request = active.kept.word(active.slot, 0).load(Ordering::Acquire);
        active.begun.take().map(|begun| (Arc::clone(&active.kept), begun, request))
    });
    if let Some((kept, begun, request)) = begun.flatten() {
        kept.is_repeated(begun, request);
    }
}

/// Numbers of operations, going on from where a predecessor was.
pub(crate) struct Ops {
    counters: OpCounters,
    /// Added to the counters' numbers.
    base: u64,
    /// Of predecessors: may be asked for again.
    older: BTreeSet<u64>,
    kept: Option<Arc<Kept>>,
}

impl Ops {
    pub(crate) fn new(kept: Option<&Arc<Kept>>) -> Self {
        let base = kept.map_or(0, |kept| kept.words[NEXT_OP].load(Ordering::Acquire));
        let older = kept.map(|kept| kept.awaited()).unwrap_or_default();
        Self { counters: OpCounters::default(), base, older, kept: kept.cloned() }
    }

    pub(crate) fn begin(&mut self) -> u64 {
        let number = self.base + self.counters.begin();
        if let Some(kept) = &self.kept {
            kept.words[NEXT_OP].store(number, Ordering::Release);
        }
        number
    }

    pub(crate) fn end(&mut self, number: u64) {
        match number.checked_sub(self.base) {
            Some(own) if 0 < own => self.counters.end(own),
            Some(_) | None => drop(self.older.remove(&number)),
        }
    }

    pub(crate) fn results(&self) -> Results {
        let own = self.counters.results();
        if self.base == 0 {
            return own;
        }
        let below = own.below() + self.base;
        let awaited = self.older.iter().copied();
        let mut awaited: Vec<u64> =
            awaited.chain(own.awaited().iter().map(|number| number + self.base)).collect();
        let below = awaited.get(AWAITED_MAX).copied().unwrap_or(below);
        awaited.truncate(AWAITED_MAX);
        let oldest = awaited.first().copied().unwrap_or(below);
        Results::all_but(awaited, below).unwrap_or_else(|| Results::all_below(oldest))
    }
}

#[cfg(test)]
mod tests;
