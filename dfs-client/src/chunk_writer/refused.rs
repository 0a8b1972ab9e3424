//! What found no room, and what was written behind it: a file keeps what was written up to there, never a gap and then more.
//!
//! Order: a server or the master refuses a write → this chunk drops what it has at or behind that place, and from then on
//! no chunk of the file takes or sends anything there → somebody is told: what is written after that is taken again →
//! at the next commit what the chunks behind it had stored by then is freed, unless more was written there since.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dfs_core::namespace::NamespaceError;
use dfs_proto::meta_rpc::{ChunkLayout, FailedMember};

use super::{Body, ChunkWriter, Failure, State, low_water, refuse, seal};
use crate::error::{ClientError, Result};
use crate::session::lock;

/// Nothing was refused.
const NOWHERE: u64 = u64::MAX;
/// A write that fails behind others of the same call of a program only makes that call a short one: the kernel cuts
/// large ones, and tells of the error if nothing came before it. So what comes next may be of one who was not told.
const TOLD_WRITES: u32 = 2;

/// Where bytes of one file found no room.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The nearest place of `places`, for whoever looks without the lock.
    nearest: AtomicU64,
    places: Mutex<Places>,
}

#[derive(Default, Debug)]
struct Places {
    /// From where on nothing is taken, and why: nobody was told yet.
    closed: Option<(u64, ClientError)>,
    /// Writes that were told of it.
    told: u32,
    /// From where on bytes may be stored that were written before anybody was told.
    to_free: Option<u64>,
}

impl Places {
    fn from(&self) -> u64 {
        self.closed.as_ref().map_or(NOWHERE, |(from, _)| *from)
    }
}

impl Default for Refused {
    fn default() -> Self {
        Self { nearest: AtomicU64::new(NOWHERE), places: Mutex::default() }
    }
}

impl Refused {
    /// `places` as they are from now on.
    fn set(&self, places: &MutexGuard<'_, Places>) {
        let nearest = places.from().min(places.to_free.unwrap_or(NOWHERE));
        self.nearest.store(nearest, Ordering::Release);
    }

    fn from(&self) -> u64 {
        match self.nearest.load(Ordering::Acquire) {
            NOWHERE => NOWHERE,
            _ => lock(&self.places).from(),
        }
    }

    fn add(&self, at: u64, error: &ClientError) {
        let mut places = lock(&self.places);
        places.to_free = Some(places.to_free.map_or(at, |before| before.min(at)));
        places.closed = match places.closed.take() {
            Some((from, error)) => Some((from.min(at), error)),
            None => Some((at, error.clone())),
        };
        self.set(&places);
    }

    /// Whether bytes that end at `end` in the file may be taken: they are if this says so.
    pub(super) fn takes(&self, end: u64) -> bool {
        if end <= self.nearest.load(Ordering::Acquire) {
            return true;
        }
        let mut places = lock(&self.places);
        if places.from() < end {
            return false;
        }
        // By one who knows of the gap before it.
        places.to_free = places.to_free.filter(|place| end <= *place);
        self.set(&places);
        true
    }

    /// What was refused, if that was not told.
    pub(crate) fn error(&self) -> Option<ClientError> {
        lock(&self.places).closed.as_ref().map(|(_, error)| error.clone())
    }

    /// From where on bytes may be stored behind a gap.
    pub(crate) fn to_free(&self) -> Option<u64> {
        match self.nearest.load(Ordering::Acquire) {
            NOWHERE => None,
            _ => lock(&self.places).to_free,
        }
    }

    /// Nothing is left to be freed from `place` on.
    pub(crate) fn freed(&self, place: u64) {
        let mut places = lock(&self.places);
        places.to_free = places.to_free.filter(|before| *before < place);
        self.set(&places);
    }

    /// A write is told; true if that is enough.
    pub(crate) fn told_a_write(&self) -> bool {
        let mut places = lock(&self.places);
        if places.closed.is_some() {
            places.told += 1;
        }
        TOLD_WRITES <= places.told
    }

    /// Somebody is told: `drop_behind` is called to take out what waits, then everything is taken again.
    pub(crate) fn told(&self, mut drop_behind: impl FnMut()) {
        loop {
            let from = self.from();
            if from == NOWHERE {
                return;
            }
            drop_behind();
            let mut places = lock(&self.places);
            // What was refused meanwhile, further in front, is to be dropped from there.
            if places.from() == from {
                places.closed = None;
                places.told = 0;
                self.set(&places);
            }
        }
    }

    /// The file was cut: what was refused before is of no matter.
    pub(crate) fn forget(&self) {
        let mut places = lock(&self.places);
        *places = Places::default();
        self.set(&places);
    }
}

impl ChunkWriter {
    /// Takes out what waits behind a refused place of the file, also in another chunk.
    pub(crate) fn drop_behind_refused(&self) {
        let freed = self.drop_refused(&mut self.lock());
        if 0 < freed {
            self.free(freed);
            self.changed.notify_all();
        }
    }

    /// Answers the bytes freed. What is in flight is left: only its server knows what became of it.
    pub(super) fn drop_refused(&self, state: &mut State) -> u64 {
        let from = self.refused.from();
        if from == NOWHERE {
            return 0;
        }
        let from = from.saturating_sub(self.start);
        let first = state.queue.first_unsent(|body| body.reaches_behind(from));
        drop_behind(state, from, first)
    }

    /// Takes out an operation that found no room, and, of a write, all that was written behind its place. Answers the
    /// bytes freed.
    fn refuse_behind(&self, state: &mut State, counter: u64, error: ClientError) -> u64 {
        let Some(Body::Write { offset, .. }) = state.queue.body(counter) else {
            return refuse(state, counter, error);
        };
        let offset = *offset;
        self.refused.add(self.start + offset, &error);
        state.error.get_or_insert(error);
        // No operation behind the refused one was applied: a server takes them in order. Those on their way never are,
        // as the number before theirs never comes.
        drop_behind(state, offset, Some(counter))
    }

    /// Whether what is to be sent next must wait until all before it is stable.
    pub(super) fn waits_at_gap(&self, state: &mut State) -> bool {
        let Some(gap) = state.gap else { return false };
        if gap <= low_water(state) {
            state.gap = None;
            return false;
        }
        state.queue.first_unsent(|_| true).is_none_or(|first| gap <= first)
    }

    /// Where to go on. An operation for which no server has room is refused first, with what was written behind it.
    pub(super) fn layout_after(
        &self,
        failure: Option<&Failure>,
    ) -> Result<(Arc<ChunkLayout>, u64)> {
        let member = failure.and_then(|failure| failure.member);
        let found = self.io.layout_to_write(self.ino, self.index, member);
        let (Err(ClientError::NoSpace { reason }), Some(FailedMember { full: true, .. })) =
            (&found, member)
        else {
            return found;
        };
        if let Some(counter) = failure.and_then(|failure| failure.counter) {
            let freed = {
                let mut state = self.lock();
                state.troubled_since = None;
                state.backoff.reset();
                self.refuse_behind(
                    &mut state,
                    counter,
                    ClientError::NoSpace { reason: reason.clone() },
                )
            };
            self.free(freed);
            self.changed.notify_all();
        }
        self.io.layout_to_write(self.ino, self.index, None)
    }

    /// What was written and not acknowledged is lost to the caller: told once.
    pub(super) fn give_up(self: &Arc<Self>, error: ClientError) {
        let gone = matches!(error, ClientError::Refused(NamespaceError::Stale));
        if gone {
            tracing::debug!(
                ino = self.ino.0,
                index = self.index,
                "the file is gone: nothing to write to"
            );
        } else {
            tracing::warn!(ino = self.ino.0, index = self.index, %error, see = error.page().map(tracing::field::display), "bytes given up");
        }
        let freed = {
            let mut state = self.lock();
            seal(&mut state);
            let mut freed = 0;
            let no_space = matches!(error, ClientError::NoSpace { .. });
            for (counter, body, bytes) in state.queue.drain() {
                freed += bytes;
                if let (true, Body::Write { offset, .. }) = (no_space, &body) {
                    self.refused.add(self.start + offset, &error);
                }
                if body.is_awaited() {
                    state.appends.insert(counter, Err(error.clone()));
                }
            }
            state.error.get_or_insert(error);
            state.given_up += 1;
            state.layout = None;
            state.recovering = false;
            state.syncing = None;
            state.troubled_since = None;
            state.backoff.reset();
            state.attempt += 1;
            freed
        };
        self.free(freed);
        self.changed.notify_all();
    }
}

impl Body {
    fn reaches_behind(&self, from: u64) -> bool {
        matches!(self, Self::Write { offset, data, .. } if from < offset + data.len() as u64)
    }
}

/// Drops bytes at or behind `from`, a place in the chunk: those not made operations, and those of operations from
/// `first` on. Answers the bytes freed.
fn drop_behind(state: &mut State, from: u64, first: Option<u64>) -> u64 {
    let dirty = state.dirty.bytes();
    state.dirty.truncate(from);
    let mut freed = dirty - state.dirty.bytes();
    if state.dirty.is_empty() {
        state.dirty_since = None;
    }
    let Some(first) = first else { return freed };
    let taken = state.queue.split_off(first);
    state.gap = Some(state.queue.next_counter());
    for (counter, body, bytes) in taken {
        match body {
            // Whoever waits for it asks again, by another number.
            _ if body.is_awaited() => {
                freed += bytes;
                state.appends.insert(counter, Ok(super::Appended::Moved));
            }
            Body::Write { offset, data, .. } => {
                let left = from.saturating_sub(offset).min(bytes);
                freed += bytes - left;
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                if let Some(data) = data.get(..left).filter(|data| !data.is_empty()) {
                    let bytes = data.len() as u64;
                    let data = Arc::new(data.to_vec());
                    state.queue.push(Body::Write { offset, data, awaited: false }, bytes);
                }
            }
            Body::Append { .. } | Body::Carried { .. } | Body::Zero { .. } => {
                state.queue.push(body, bytes);
            }
        }
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> ClientError {
        ClientError::NoSpace { reason: "cs-1 is full".to_owned() }
    }

    #[test]
    fn nothing_behind_refused_bytes_is_taken_until_somebody_is_told() {
        let refused = Refused::default();
        assert!(refused.takes(u64::MAX) && refused.error().is_none());
        refused.add(700, &full());
        refused.add(500, &full());
        refused.add(900, &full());
        assert!(refused.takes(500) && !refused.takes(501));
        let mut dropped = 0;
        refused.told(|| dropped += 1);
        assert!(dropped == 1 && refused.takes(400) && refused.error().is_none());
        refused.told(|| dropped += 1);
        assert_eq!(dropped, 1, "there is nothing to be told");
    }

    #[test]
    fn what_is_refused_while_somebody_is_told_is_dropped_from_there() {
        let refused = Refused::default();
        refused.add(700, &full());
        let mut from = Vec::new();
        refused.told(|| {
            from.push(refused.from());
            refused.add(300, &full());
        });
        assert_eq!(from, [700, 300]);
    }

    #[test]
    fn one_write_that_fails_may_not_have_been_told() {
        let refused = Refused::default();
        assert!(!refused.told_a_write(), "of nothing");
        refused.add(700, &full());
        assert!(!refused.told_a_write() && refused.told_a_write());
        refused.told(|| {});
        refused.add(700, &full());
        assert!(!refused.told_a_write(), "counted anew");
    }

    #[test]
    fn bytes_behind_a_gap_are_freed_unless_somebody_who_was_told_wrote_there() {
        let refused = Refused::default();
        refused.add(700, &full());
        refused.told(|| {});
        assert_eq!(refused.to_free(), Some(700));
        assert!(refused.takes(700));
        assert_eq!(refused.to_free(), Some(700));
        refused.freed(800);
        assert_eq!(refused.to_free(), Some(700), "this is further in front");
        assert!(refused.takes(701));
        assert_eq!(refused.to_free(), None);
        refused.add(700, &full());
        refused.freed(700);
        assert_eq!(refused.to_free(), None);
        refused.forget();
        assert!(refused.takes(u64::MAX));
    }
}
