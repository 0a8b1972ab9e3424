//! One chunk being written by this client: bytes not sent, operations in flight, operations not yet stable.
//!
//! Order on the wire is the order of counters: one thread at a time sends (`sending`). After a failure one thread
//! (`recovering`) gets a layout, and everything that may be lost goes out again with the numbers it had
//! (DECISIONS 1, 4). Replies that belong to an earlier attempt are ignored.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

mod append;
mod body;
mod cut;
mod placed;
mod refused;
mod silence;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::client::backoff::Backoff;
use dfs_core::client::dirty::DirtyExtents;
use dfs_core::client::resend::ResendQueue;
use dfs_core::ids::InodeNo;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply};
use dfs_proto::frame_conn::Frame;
use dfs_proto::meta_rpc::ChunkLayout;

use crate::chunk_io::{ChunkIo, LAYOUT_TTL};
use crate::deadline::Deadline;
use crate::error::{ClientError, Result};
use crate::exercise::{self, Point};
use crate::jobs::Job;
use crate::servers::{Lane, reply_of};
use crate::session::{lock, random, spawn};
use body::Body;
pub(crate) use body::{Appended, Order};
use cut::refuse;
pub(crate) use placed::Placed;
pub(crate) use refused::Refused;
use trouble::{Failure, Trouble, failed_member};

/// An extent this long is sent without waiting for more.
const OP_BYTES: usize = 1 << 20;
/// Extents kept apart before they are sent: random writers gain nothing by waiting.
const EXTENTS_MAX: usize = 32;
/// In flight per chunk; the server allows 64 operations (DECISIONS 4).
const IN_FLIGHT_OPS: usize = 48;
const IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Acknowledged bytes of one chunk that are worth a sync in the background.
const UNSTABLE_BYTES: u64 = 16 << 20;

struct State {
    dirty: DirtyExtents,
    dirty_since: Option<Instant>,
    queue: ResendQueue<Body>,
    /// From this number on nothing is sent before all below it is stable: those in between are not used.
    gap: Option<u64>,
    layout: Option<Arc<ChunkLayout>>,
    /// The inode's counter of truncations that came with the layout.
    cuts: u64,
    layout_at: Instant,
    attempt: u64,
    sending: bool,
    recovering: bool,
    syncing: Option<Instant>,
    /// When something was answered last, or sent while nothing else was in flight.
    moved_at: Instant,
    /// Since when nothing was acknowledged although it was tried.
    troubled_since: Option<Instant>,
    backoff: Backoff,
    /// Answers of operations that somebody waits for, each by itself: of appends, and others that came to nothing.
    appends: BTreeMap<u64, Result<Appended>>,
    /// Appends that crossed the end and whose rest is not stable yet: servers must remember them.
    crossing: BTreeSet<u64>,
    /// Bytes that were given up, reported once.
    error: Option<ClientError>,
    /// Counts what was given up, so that every waiter sees it.
    given_up: u64,
    /// Another object may write the chunk now: this one sends nothing.
    retired: bool,
}

pub(crate) struct ChunkWriter {
    io: Arc<ChunkIo>,
    ino: InodeNo,
    index: u64,
    /// Where in the file the chunk begins.
    start: u64,
    refused: Arc<Refused>,
    state: Mutex<State>,
    changed: Condvar,
    /// How much of the write budget this chunk holds; for whoever looks without the lock.
    held: AtomicU64,
    /// Jobs of each kind that wait for a worker.
    pub(crate) queued: [AtomicBool; 2],
}

/// A sync to be sent.
struct BegunSync {
    layout: Arc<ChunkLayout>,
    attempt: u64,
    upto: u64,
}

impl ChunkWriter {
    pub(crate) fn new(
        io: &Arc<ChunkIo>,
        ino: InodeNo,
        (index, chunk_size): (u64, u64),
        refused: &Arc<Refused>,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            io: Arc::clone(io),
            ino,
            index,
            start: index.saturating_mul(chunk_size),
            refused: Arc::clone(refused),
            state: Mutex::new(State {
                dirty: DirtyExtents::default(),
                dirty_since: None,
                queue: ResendQueue::new(io.first_counter()),
                gap: None,
                layout: None,
                cuts: 0,
                layout_at: now,
                attempt: 0,
                sending: false,
                recovering: false,
                syncing: None,
                moved_at: now,
                troubled_since: None,
                backoff: Backoff::default(),
                appends: BTreeMap::new(),
                crossing: BTreeSet::new(),
                error: None,
                given_up: 0,
                retired: false,
            }),
            changed: Condvar::new(),
            held: AtomicU64::new(0),
            queued: [AtomicBool::new(false), AtomicBool::new(false)],
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn add_held(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::AcqRel);
    }

    fn free(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        self.io.budget.give_back(bytes);
    }

    /// Takes bytes that the caller has already taken from the budget. False: it does not, because somebody is to be told
    /// of bytes that are lost before, or another object writes the chunk now.
    #[must_use]
    pub(crate) fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> bool {
        let len = data.len() as u64;
        let (surplus, full) = {
            let mut state = self.lock();
            if state.retired
                || state.error.is_some()
                || !self.refused.takes(self.start + offset + len)
            {
                return false;
            }
            self.held.fetch_add(len, Ordering::AcqRel);
            let before = state.dirty.bytes();
            let (start, extent_len) = state.dirty.write(offset, data);
            let surplus = len - (state.dirty.bytes() - before);
            state.dirty_since.get_or_insert_with(Instant::now);
            let full = OP_BYTES <= extent_len || EXTENTS_MAX < state.dirty.extent_count();
            if OP_BYTES <= extent_len {
                if let Some(extent) = state.dirty.take(start) {
                    push_extent(&mut state.queue, start, extent);
                }
                if state.dirty.is_empty() {
                    state.dirty_since = None;
                }
            } else if full {
                seal(&mut state);
            }
            (surplus, full)
        };
        self.free(surplus);
        if full {
            self.pump();
        }
        true
    }

    /// Sends everything that waits for more bytes.
    pub(crate) fn push(self: &Arc<Self>) {
        seal(&mut self.lock());
        self.pump();
    }

    /// As [`Self::push`], by a caller that waits for the answers anyway: asks for a layout itself.
    fn push_and_wait(self: &Arc<Self>) {
        seal(&mut self.lock());
        self.pump_as(true);
    }

    /// Sends it if it has waited for so long.
    pub(crate) fn push_older_than(self: &Arc<Self>, age: Duration) {
        let old = self.lock().dirty_since.is_some_and(|since| age <= since.elapsed());
        if old {
            self.push();
        }
    }

    /// Zeros over a range, ordered after all writes so far.
    pub(crate) fn zero(self: &Arc<Self>, offset: u64, len: u64) {
        {
            let mut state = self.lock();
            seal(&mut state);
            state.queue.push(Body::Zero { offset, len, awaited: false }, 0);
        }
        self.pump();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, Duration::from_secs(1))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Waits until every member has all that was written before.
    pub(crate) fn acknowledged(self: &Arc<Self>) -> Result<()> {
        self.push_and_wait();
        self.wait_acknowledged()
    }

    /// As [`Self::acknowledged`]; what makes it stable is then under way too, most often.
    pub(crate) fn acknowledged_and_syncing(self: &Arc<Self>) -> Result<()> {
        self.push_and_wait();
        self.start_sync_behind();
        self.wait_acknowledged()
    }

    pub(crate) fn wait_acknowledged(&self) -> Result<()> {
        let mut state = self.lock();
        let upto = state.queue.next_counter();
        let given_up = state.given_up;
        // Operations behind `upto` may come for ever: only what was there counts.
        while state.given_up == given_up && state.queue.has_unacknowledged_below(upto) {
            state = self.wait(state);
        }
        self.take_error(&mut state)
    }

    /// Begins to make stable what is acknowledged.
    pub(crate) fn start_sync(self: &Arc<Self>) {
        let mut state = self.lock();
        if let Some(upto) = state.queue.acknowledged_to() {
            let sync = begin_sync(&mut state, upto);
            drop(state);
            self.send_sync(sync);
        }
    }

    /// Begins to make stable what was sent: the primary takes this sync behind it, as both come by one connection.
    fn start_sync_behind(self: &Arc<Self>) {
        let mut state = self.lock();
        if let (Some(upto), false) = (state.queue.sent_to(), state.sending) {
            let sync = begin_sync(&mut state, upto);
            // What is written meanwhile waits, so that an operation marked as sent is.
            state.sending = sync.is_some();
            drop(state);
            if sync.is_some() {
                self.send_sync(sync);
                self.lock().sending = false;
                self.pump();
            }
        }
    }

    fn send_sync(self: &Arc<Self>, sync: Option<BegunSync>) {
        let Some(BegunSync { layout, attempt, upto }) = sync else { return };
        let writer = Arc::clone(self);
        let call = DataCall::Sync { layout: ChunkLayout::clone(&layout) }.to_bytes();
        let on_reply = Box::new(move |reply| writer.on_synced(attempt, upto, reply));
        if let Err(error) = self.send(&layout, &call, None, on_reply) {
            self.on_trouble(attempt, None, Trouble::Lost(error));
        }
    }

    /// Makes everything written before stable on every member.
    pub(crate) fn stable(self: &Arc<Self>) -> Result<()> {
        // Also if some bytes were refused: nothing of the others may stay behind.
        let acknowledged = self.acknowledged_and_syncing();
        let mut state = self.lock();
        let upto = state.queue.next_counter();
        let given_up = state.given_up;
        while state.given_up == given_up
            && state.queue.low_water() < upto
            && !state.queue.is_empty()
        {
            let idle = state.syncing.is_none() && !state.recovering;
            drop(state);
            if idle {
                self.start_sync();
            }
            state = self.lock();
            if state.queue.low_water() < upto
                && !state.queue.is_empty()
                && state.given_up == given_up
            {
                state = self.wait(state);
            }
        }
        acknowledged.and(self.take_error(&mut state))
    }

    /// The error of bytes given up before, once.
    pub(crate) fn take_error_now(&self) -> Result<()> {
        self.take_error(&mut self.lock())
    }

    fn take_error(&self, state: &mut State) -> Result<()> {
        state.error.take().map_or(Ok(()), Err)
    }

    pub(crate) fn overlaps_pending(&self, offset: u64, len: u64) -> bool {
        let state = self.lock();
        state.dirty.overlaps(offset, len) || 0 < state.queue.unacknowledged_count()
    }

    /// Bytes or operations that some member may not have.
    pub(crate) fn has_unacknowledged(&self) -> bool {
        let state = self.lock();
        !state.dirty.is_empty() || 0 < state.queue.unacknowledged_count()
    }

    /// Nothing to send, nothing to make stable, no error to tell.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.dirty.is_empty()
            && state.queue.is_empty()
            && state.crossing.is_empty()
            && state.error.is_none()
    }

    /// This chunk is written no more by this object; the next one for it begins with higher counters.
    pub(crate) fn retire(&self) {
        let freed = {
            let mut state = self.lock();
            state.retired = true;
            state.attempt += 1;
            self.io.counters_used_below(state.queue.next_counter());
            let dirty = std::mem::take(&mut state.dirty).bytes();
            dirty + state.queue.drain().iter().map(|(_, _, bytes)| bytes).sum::<u64>()
        };
        self.free(freed);
        self.changed.notify_all();
    }

    /// The layout is asked for again before anything more is sent.
    pub(crate) fn forget_layout(&self) {
        let mut state = self.lock();
        if !state.recovering && state.queue.is_empty() {
            state.layout = None;
        }
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    // Sending.

    fn send(
        &self,
        layout: &ChunkLayout,
        args: &[u8],
        data: Option<&[u8]>,
        on_reply: Box<dyn FnOnce(io::Result<Frame>) + Send>,
    ) -> io::Result<()> {
        let link = self.io.primary_link(layout)?;
        let connection = self.io.servers.connection(&link, Lane::Write)?;
        let payload: &[&[u8]] = match &data {
            Some(data) => &[data],
            None => &[],
        };
        connection.start(args, payload, None, on_reply).map(|_request| ())
    }

    /// Sends what may be sent, unless another thread does or the layout is being fetched.
    pub(crate) fn pump(self: &Arc<Self>) {
        self.pump_as(false);
    }

    fn pump_as(self: &Arc<Self>, may_wait: bool) {
        loop {
            let (layout, attempt, low_water, counter, body) = {
                let mut state = self.lock();
                if state.sending || state.recovering || state.retired || !state.queue.has_unsent() {
                    return;
                }
                let dropped = self.drop_refused(&mut state);
                if 0 < dropped || self.waits_at_gap(&mut state) {
                    drop(state);
                    self.free(dropped);
                    self.changed.notify_all();
                    if 0 < dropped {
                        continue;
                    }
                    return self.start_sync();
                }
                let fresh = state.layout.clone().filter(|_| state.layout_at.elapsed() < LAYOUT_TTL);
                let Some(layout) = fresh else {
                    state.recovering = true;
                    drop(state);
                    if may_wait {
                        Arc::clone(self).recover(None);
                    } else {
                        self.recover_later(None);
                    }
                    return;
                };
                let low_water = low_water(&state);
                let alone = !state.queue.is_any_in_flight();
                let next = state.queue.send_next(IN_FLIGHT_OPS, IN_FLIGHT_BYTES);
                let Some((counter, body)) = next.map(|(counter, body)| (counter, body.clone()))
                else {
                    return;
                };
                state.sending = true;
                if alone {
                    state.moved_at = Instant::now();
                }
                (layout, state.attempt, low_water, counter, body)
            };
            let args = DataCall::Mutate {
                layout: ChunkLayout::clone(&layout),
                client: self.io.link.client(),
                counter,
                low_water,
                mutation: body.mutation(),
            }
            .to_bytes();
            let writer = Arc::clone(self);
            let on_reply = Box::new(move |reply| writer.on_reply(attempt, counter, reply));
            let data = body.data().map(|data| data.as_slice());
            exercise::reached(Point::Sent);
            let sent = self.send(&layout, &args, data, on_reply);
            self.lock().sending = false;
            if let Err(error) = sent {
                self.on_trouble(attempt, Some(counter), Trouble::Lost(error));
            }
        }
    }

    // Replies; on the reader thread of the connection: nothing here waits.

    fn on_reply(self: &Arc<Self>, attempt: u64, counter: u64, reply: io::Result<Frame>) {
        let answer = match reply.and_then(|frame| reply_of(&frame)) {
            Ok(answer) => answer,
            Err(error) => return self.on_trouble(attempt, Some(counter), Trouble::Lost(error)),
        };
        let mut cut_since = false;
        let appended = match answer {
            DataReply::Mutated { .. } => None,
            DataReply::Appended { offset, appended, carried, .. } => {
                cut_since = carried == 0;
                Some(Ok(Appended::At { offset, len: appended }))
            }
            DataReply::Failed(DataFailure::ChunkFull { carry }) => {
                Some(Ok(Appended::Full { carry }))
            }
            DataReply::Failed(DataFailure::OutcomeUnknown) => {
                Some(Err(ClientError::OutcomeUnknown))
            }
            DataReply::Failed(failure) => {
                return self.on_trouble(attempt, Some(counter), Trouble::Failed(failure));
            }
            other => {
                let error = io::Error::other(format!("a mutation was answered {other:?}"));
                return self.on_trouble(attempt, Some(counter), Trouble::Lost(error));
            }
        };
        let (more, worth_a_sync) = {
            let mut state = self.lock();
            if state.attempt != attempt {
                return;
            }
            state.moved_at = Instant::now();
            state.troubled_since = None;
            state.backoff.reset();
            match appended {
                // Stable by its answer, so it is not kept.
                Some(answer) if state.queue.body(counter).is_some_and(Body::is_append) => {
                    let cuts = state.cuts;
                    let full = matches!(answer, Ok(Appended::Full { .. }));
                    let taken = if full && low_water(&state) < counter {
                        // Its server did not note this number. With an earlier one kept, those behind it would wait
                        // for it for ever: it goes out once more, for nothing.
                        state.queue.replace(counter, Body::nothing())
                    } else {
                        state.queue.remove(counter)
                    };
                    let answer = match (answer, taken) {
                        (
                            Ok(Appended::At { offset, len }),
                            Some((Body::Append { data, cuts: begun, .. }, _)),
                        ) if len < data.len() as u64 && !cut_since => {
                            state.crossing.insert(counter);
                            // A truncation by this mount leaves its own layouts as they are.
                            let order = Order { begun, stored: cuts.max(begun) };
                            Ok(Appended::Crossing { offset, len, counter, order })
                        }
                        // What is kept for others may be of after a truncation that this one does not know.
                        (
                            Ok(Appended::Full { .. }),
                            Some((Body::Append { cuts: begun, .. }, _)),
                        ) if begun < cuts => Ok(Appended::Moved),
                        (answer, _) => answer,
                    };
                    state.appends.insert(counter, answer);
                }
                // Applied long ago, and answered.
                Some(_) | None => {
                    state.queue.acknowledge(counter);
                }
            }
            // What goes out for nothing has nobody who waits for it.
            let nothing = state.queue.body(counter).is_some_and(Body::is_nothing);
            let worth_a_sync = (nothing
                || state.gap.is_some()
                || UNSTABLE_BYTES <= state.queue.acknowledged_bytes())
                && state.syncing.is_none();
            (state.queue.has_unsent(), worth_a_sync)
        };
        self.changed.notify_all();
        if more {
            self.later(Job::Pump);
        }
        if worth_a_sync {
            self.later(Job::Sync);
        }
    }

    fn on_synced(self: &Arc<Self>, attempt: u64, upto: u64, reply: io::Result<Frame>) {
        let trouble = match reply.and_then(|frame| reply_of(&frame)) {
            Ok(DataReply::Synced { .. }) => {
                let (freed, more) = {
                    let mut state = self.lock();
                    if state.attempt != attempt {
                        return;
                    }
                    state.syncing = None;
                    state.moved_at = Instant::now();
                    state.troubled_since = None;
                    (state.queue.stable(upto), state.gap.is_some())
                };
                self.free(freed);
                self.changed.notify_all();
                if more {
                    self.later(Job::Pump);
                }
                return;
            }
            Ok(DataReply::Failed(failure)) => Trouble::Failed(failure),
            Ok(other) => Trouble::Lost(io::Error::other(format!("sync was answered {other:?}"))),
            Err(error) => Trouble::Lost(error),
        };
        self.on_trouble(attempt, None, trouble);
    }

    /// An operation (`counter`) or a sync failed in `attempt`.
    fn on_trouble(self: &Arc<Self>, attempt: u64, counter: Option<u64>, trouble: Trouble) {
        let mut freed = 0;
        let failed = {
            let mut state = self.lock();
            if state.attempt != attempt || state.recovering {
                return;
            }
            tracing::debug!(
                ino = self.ino.0, index = self.index, counter, trouble = %trouble,
                low_water = low_water(&state), kept = state.queue.low_water(), next = state.queue.next_counter(),
                crossing = ?state.crossing, "write is tried again"
            );
            // Only this thread sees this attempt end; later replies to it are ignored.
            state.attempt += 1;
            state.syncing = None;
            state.recovering = true;
            let refused = match &trouble {
                Trouble::Failed(DataFailure::BadRequest { reason }) => {
                    Some(ClientError::Protocol { reason: reason.clone() })
                }
                Trouble::Failed(_) | Trouble::Lost(_) => None,
            };
            match (refused, counter) {
                (Some(error), Some(counter)) => freed = refuse(&mut state, counter, error),
                (Some(error), None) => {
                    tracing::warn!(ino = self.ino.0, %error, see = error.page().map(tracing::field::display), "sync refused")
                }
                (None, _) => {
                    state.troubled_since.get_or_insert_with(Instant::now);
                }
            }
            failed_member(state.layout.as_deref(), &trouble)
        };
        self.free(freed);
        self.changed.notify_all();
        self.recover_later(Some(Failure { trouble, member: failed, counter }));
    }

    // Recovery, on its own thread.

    fn recover_later(self: &Arc<Self>, failure: Option<Failure>) {
        let writer = Arc::clone(self);
        if let Err(error) = spawn("layout", move || writer.recover(failure)) {
            self.give_up(error);
        }
    }

    fn troubled_for(&self) -> Duration {
        self.lock().troubled_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn recover(self: Arc<Self>, failure: Option<Failure>) {
        let wait = self.io.link.config().server_wait;
        if let Some(Failure { trouble, .. }) = &failure {
            let pause = {
                let mut state = self.lock();
                let first = state.backoff == Backoff::default();
                let pause = state.backoff.next_ms(random());
                // The first time at once: most often the master has the answer already.
                if first && !trouble.is_busy() { 0 } else { pause }
            };
            let troubled = self.troubled_for();
            if wait <= troubled || self.io.link.is_past_its_end() {
                self.give_up(trouble.to_error(troubled));
                return;
            }
            std::thread::sleep(Duration::from_millis(pause));
        }
        let _until = Deadline::begin(wait.saturating_sub(self.troubled_for()));
        let (layout, cuts) = match self.layout_after(failure.as_ref()) {
            Ok(found) => found,
            Err(error) => return self.give_up(error),
        };
        let mut freed = 0;
        {
            let mut state = match self.without_what_was_cut(cuts) {
                Ok(state) => state,
                Err(error) => return self.give_up(error),
            };
            if state.retired {
                return;
            }
            let before = state.layout.replace(Arc::clone(&layout));
            state.cuts = cuts;
            state.layout_at = Instant::now();
            state.moved_at = Instant::now();
            match before {
                Some(before) if before.chunk != layout.chunk => {
                    // Cut or punched away by another client, with what was acknowledged in it, and with what its
                    // servers were to remember.
                    state.crossing.clear();
                    let next = state.queue.next_counter();
                    let (unanswered, gone) = state.queue.drain_unacknowledged();
                    freed = gone;
                    state.queue = ResendQueue::new(next.max(self.io.first_counter()));
                    for (counter, body, bytes) in unanswered {
                        if body.is_awaited() {
                            freed += bytes;
                            state.appends.insert(counter, Ok(Appended::Moved));
                        } else {
                            state.queue.push(body, bytes);
                        }
                    }
                    state.attempt += 1;
                    state.syncing = None;
                }
                Some(before) if before.version != layout.version => {
                    state.queue.resend_all();
                    state.attempt += 1;
                    state.syncing = None;
                }
                Some(_) if failure.is_some() => state.queue.resend_unanswered(),
                Some(_) | None => {}
            }
            state.recovering = false;
        }
        self.free(freed);
        self.changed.notify_all();
        self.pump();
    }

    /// For threads that must not wait.
    fn later(self: &Arc<Self>, job: Job) {
        // One place for each kind of job.
        if !self.queued[job as usize].swap(true, Ordering::AcqRel) {
            self.io.jobs.put(Arc::clone(self), job);
        }
    }
}

/// Below this no answer is waited for, and nothing may be sent again.
fn low_water(state: &State) -> u64 {
    let kept = state.queue.low_water();
    state.crossing.first().map_or(kept, |first| kept.min(*first))
}

fn begin_sync(state: &mut State, upto: u64) -> Option<BegunSync> {
    if state.syncing.is_some() || state.recovering {
        return None;
    }
    let layout = state.layout.clone()?;
    state.syncing = Some(Instant::now());
    Some(BegunSync { layout, attempt: state.attempt, upto })
}

fn push_extent(queue: &mut ResendQueue<Body>, offset: u64, extent: Vec<u8>) {
    let bytes = extent.len() as u64;
    queue.push(Body::Write { offset, data: Arc::new(extent), awaited: false }, bytes);
}

/// Makes operations of all dirty bytes.
fn seal(state: &mut State) {
    while let Some((offset, extent)) = state.dirty.take_first() {
        push_extent(&mut state.queue, offset, extent);
    }
    state.dirty_since = None;
}
