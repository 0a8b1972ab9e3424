//! Storage of the one log: preallocated segments, records chained by CRC32C, group commit, commit
//! markers, and what a crash leaves of all that. Payloads are bytes it never looks into; who leads
//! and what is committed is decided in `group`.
//!
//! One thread writes. Whatever was handed in while it wrote and synced the last batch becomes the
//! next batch, so that one sync serves everybody who waited. A caller is told when its records are
//! durable, in the order in which they were handed in.
//!
//! Votes, truncations and purge points are records of the same log. The committed position rides
//! along with the next records instead of costing a sync of its own: it is a hint that saves time
//! after a restart.
//!
//! A failed write or sync ends the process (`JournalConfig::on_failure`): what the disk holds is
//! then unknown, and a second sync that succeeds would be a lie about the first.

pub mod disk;
mod error;
mod format;
mod lock;
mod segments;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod faulty;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use dfs_service::page::Page;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use bytes::Bytes;

use disk::{LogDisk, LogFile, PosixDisk};
pub use error::JournalError;
use format::{Carried, HEADER_BYTES, MARKER_BYTES, Record};
pub use format::{FORMAT_VERSION, Position, RECORD_PAYLOAD_BYTES_MAX, SavedVote};
use lock::DirectoryLock;
pub use segments::{Cut, complete_copy};
use segments::{OnDamage, Segments};

/// What [`JournalConfig::on_failure`] is told.
#[derive(Debug)]
pub struct WriteFailure {
    /// The system's answer.
    pub error: io::Error,
}

/// Called on the writing thread when a write or sync failed.
pub type OnFailure = Arc<dyn Fn(&WriteFailure) + Send + Sync>;

/// How to open a log.
#[derive(Clone)]
pub struct JournalConfig {
    /// Size of each new segment. Existing ones keep theirs.
    pub segment_bytes: u64,
    /// Cut the log at damage instead of refusing to open.
    pub accept_loss: bool,
    /// Even if that leaves nothing of it.
    pub may_begin_anew: bool,
    /// Payload bytes kept in memory for readers, beyond those not yet durable.
    pub cache_bytes: usize,
    /// What to do about a failed write or sync. The default prints one line and aborts.
    pub on_failure: OnFailure,
    /// Told how long each sync takes.
    pub sync_seconds: Option<prometheus::Histogram>,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            accept_loss: false,
            may_begin_anew: true,
            cache_bytes: 16 << 20,
            on_failure: Arc::new(|failure| {
                tracing::error!(error = %failure.error, see = %Page::DamagedLog, "the log cannot be written, ending the process");
                std::process::abort();
            }),
            sync_seconds: None,
        }
    }
}

impl fmt::Debug for JournalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment_bytes,
            accept_loss,
            may_begin_anew,
            cache_bytes,
            on_failure: _,
            sync_seconds: _,
        } = self;
        f.debug_struct("JournalConfig")
            .field("segment_bytes", segment_bytes)
            .field("accept_loss", accept_loss)
            .field("may_begin_anew", may_begin_anew)
            .field("cache_bytes", cache_bytes)
            .finish_non_exhaustive()
    }
}

/// One segment as far as it is durable: its first `bytes` change no more, but for the marker at their end.
#[derive(Clone, Debug)]
pub struct DurableSegment {
    /// Of its file.
    pub name: String,
    /// The file, which may be removed meanwhile and still reads.
    pub file: Arc<dyn LogFile>,
    /// How far.
    pub bytes: u64,
}

/// Told once whether the records it was handed in with are durable.
pub type OnDurable = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// Where an entry's payload lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Location {
    sequence: u64,
    offset: u64,
    payload_bytes: u32,
    payload_crc: u32,
}

impl Location {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.payload_bytes)
    }
}

/// Of a run, which is in memory as a whole.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Entries so near each other are read at once.
const RUN_BYTES_MAX: u64 = 64 << 10;

/// The log. Clones are handles to the same one; when the last is dropped, everything handed in is
/// written and the files are closed.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    cut: Option<Cut>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held until the writer has ended; `None` on a disk that is not a directory.
    _lock: Option<DirectoryLock>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn LogDisk>,
    cache_bytes: usize,
    state: Mutex<State>,
    work: Condvar,
    /// Whoever writes holds it; taken before `state`. Gone when the log is closed.
    pen: Mutex<Option<Segments>>,
    on_failure: Callback,
}

/// [`OnFailure`], for whoever writes.
struct Callback(OnFailure);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}

struct State {
    entries: BTreeMap<u64, Slot>,
    carried: Carried,
    files: BTreeMap<u64, Arc<dyn LogFile>>,
    queue: Vec<Queued>,
    /// Whether the queue holds something that somebody waits for.
    wanted: bool,
    closing: bool,
    stopped: bool,
    next_ticket: u64,
    /// Durable entries whose payload is in memory, oldest first.
    cached: VecDeque<(u64, u64)>,
    cached_bytes: usize,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("entries", &self.entries.len())
            .field("carried", &self.carried)
            .field("queue", &self.queue.len())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Slot {
    position: Position,
    /// Tells an entry from a later one of the same index.
    ticket: u64,
    /// `None` until durable.
    location: Option<Location>,
    payload: Option<Bytes>,
}

struct Queued {
    record: Record,
    ticket: u64,
    done: Option<OnDurable>,
}

impl Journal {
    /// Opens the log in `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// See [`JournalError`]; nothing was changed, except with `accept_loss`.
    pub fn open(dir: &Path, config: JournalConfig) -> Result<Self, JournalError> {
        disk::create_directory(dir).map_err(|source| JournalError::Io {
            doing: "create",
            path: dir.to_owned(),
            source,
        })?;
        let lock = DirectoryLock::take(dir)?;
        let disk = PosixDisk::new(dir).timed(config.sync_seconds.clone());
        Self::start(Arc::new(disk), config, Some(lock))
    }

    /// Opens the log on any disk. Keeping others away from it is the caller's matter.
    ///
    /// # Errors
    /// As for [`Journal::open`].
    pub fn open_on(disk: Arc<dyn LogDisk>, config: JournalConfig) -> Result<Self, JournalError> {
        Self::start(disk, config, None)
    }

    fn start(
        disk: Arc<dyn LogDisk>,
        config: JournalConfig,
        lock: Option<DirectoryLock>,
    ) -> Result<Self, JournalError> {
        let JournalConfig {
            segment_bytes,
            accept_loss,
            may_begin_anew,
            cache_bytes,
            on_failure,
            sync_seconds: _,
        } = config;
        let on_damage = match (accept_loss, may_begin_anew) {
            (false, _) => OnDamage::Refuse,
            (true, false) => OnDamage::CutAndKeepSome,
            (true, true) => OnDamage::Cut,
        };
        let segment_bytes = segment_bytes.max(HEADER_BYTES + MARKER_BYTES);
        let (segments, contents) = Segments::open(Arc::clone(&disk), segment_bytes, on_damage)?;
        let entries = contents
            .entries
            .into_iter()
            .map(|(index, (position, location))| {
                (index, Slot { position, ticket: 0, location: Some(location), payload: None })
            })
            .collect();
        let shared = Arc::new(Shared {
            disk: Arc::clone(&disk),
            cache_bytes,
            state: Mutex::new(State {
                entries,
                carried: contents.carried,
                files: segments.files().clone(),
                queue: Vec::new(),
                wanted: false,
                closing: false,
                stopped: false,
                next_ticket: 1,
                cached: VecDeque::new(),
                cached_bytes: 0,
            }),
            work: Condvar::new(),
            pen: Mutex::new(Some(segments)),
            on_failure: Callback(on_failure),
        });
        let writer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("log-writer".to_owned())
                .spawn(move || shared.write_batches())
                .map_err(|err| JournalError::io("start a writer for", &*disk, "", err))?
        };
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                cut: contents.cut,
                writer: Mutex::new(Some(writer)),
                _lock: lock,
            }),
        })
    }

    /// All segments, the oldest first; none when the log is closed.
    ///
    /// # Errors
    /// What kept a segment from being measured.
    pub fn durable_segments(&self) -> io::Result<Vec<DurableSegment>> {
        let pen = self.inner.shared.pen.lock().unwrap_or_else(PoisonError::into_inner);
        pen.as_ref().map_or_else(|| Ok(Vec::new()), Segments::durable)
    }

    /// What open removed from the log's end, if anything.
    pub fn cut(&self) -> Option<&Cut> {
        self.inner.cut.as_ref()
    }

    /// The last entry's position, or the purge point if there is no entry behind it.
    pub fn last(&self) -> Option<Position> {
        let state = self.inner.shared.lock();
        last_position(&state)
    }

    /// Up to where entries were purged.
    pub fn purged(&self) -> Option<Position> {
        self.inner.shared.lock().carried.purged
    }

    /// The last saved vote.
    pub fn vote(&self) -> Option<SavedVote> {
        self.inner.shared.lock().carried.vote
    }

    /// The last noted committed position. After a crash it may be older than what was noted.
    pub fn committed(&self) -> Option<Position> {
        self.inner.shared.lock().carried.committed
    }

    /// Adds entries behind the last one. They can be read at once; `done` is called when they are
    /// durable. Entries at or before the purge point are in the store already and are left out.
    ///
    /// # Errors
    /// `OutOfOrder`, `TooLarge`, `Stopped`: nothing was added, and `done` is dropped uncalled.
    pub fn append(
        &self,
        entries: impl IntoIterator<Item = (Position, Bytes)>,
        done: OnDurable,
    ) -> Result<(), JournalError> {
        self.enqueue_entries(entries, done)?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    /// [`Journal::append`], written by the calling thread if nobody else is writing: for a caller that would only
    /// wait, two thread switches less.
    ///
    /// # Errors
    /// As for [`Journal::append`].
    pub fn append_here(
        &self,
        entries: impl IntoIterator<Item = (Position, Bytes)>,
        done: OnDurable,
    ) -> Result<(), JournalError> {
        self.enqueue_entries(entries, done)?;
        self.inner.shared.write_here();
        Ok(())
    }

    fn enqueue_entries(
        &self,
        entries: impl IntoIterator<Item = (Position, Bytes)>,
        done: OnDurable,
    ) -> Result<(), JournalError> {
        let mut entries: Vec<_> = entries.into_iter().collect();
        let mut state = self.inner.shared.lock();
        if let Some(purged) = state.carried.purged {
            entries.retain(|(position, _)| purged.index < position.index);
        }
        let mut last = state.entries.last_key_value().map(|(_, slot)| slot.position);
        for (position, payload) in &entries {
            if let Some(last) = last
                && position.index <= last.index
            {
                return Err(JournalError::OutOfOrder { index: position.index, last: last.index });
            }
            if payload.len() > RECORD_PAYLOAD_BYTES_MAX {
                return Err(JournalError::TooLarge { payload_bytes: payload.len() });
            }
            last = Some(*position);
        }
        let records = entries
            .into_iter()
            .map(|(position, payload)| Record::Entry { position, payload })
            .collect();
        self.inner.shared.enqueue(&mut state, records, done)
    }

    /// Records a vote; it counts only when `done` was called.
    ///
    /// # Errors
    /// `Stopped`, and `done` is dropped uncalled.
    pub fn save_vote(&self, vote: SavedVote, done: OnDurable) -> Result<(), JournalError> {
        let mut state = self.inner.shared.lock();
        self.inner.shared.enqueue(&mut state, vec![Record::Vote(vote)], done)?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    /// Notes what is committed. It becomes durable together with whatever is written next.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn note_committed(&self, position: Position) -> Result<(), JournalError> {
        let mut state = self.inner.shared.lock();
        if state.stopped {
            return Err(JournalError::Stopped);
        }
        state.carried.committed = Some(position);
        // Only the newest is worth its bytes.
        if let Some(Queued { record: Record::Committed(queued), .. }) = state.queue.last_mut() {
            *queued = position;
        } else {
            state.queue.push(Queued { record: Record::Committed(position), ticket: 0, done: None });
        }
        Ok(())
    }

    /// Removes the entries from `from_index` on.
    ///
    /// # Errors
    /// `Stopped`, and `done` is dropped uncalled.
    pub fn truncate(&self, from_index: u64, done: OnDurable) -> Result<(), JournalError> {
        let mut state = self.inner.shared.lock();
        self.inner.shared.enqueue(&mut state, vec![Record::Truncate { from_index }], done)?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    /// Removes the entries up to `upto`, and afterwards the segments that hold nothing else.
    ///
    /// # Errors
    /// `Stopped`, and `done` is dropped uncalled.
    pub fn purge(&self, upto: Position, done: OnDurable) -> Result<(), JournalError> {
        let mut state = self.inner.shared.lock();
        self.inner.shared.enqueue(&mut state, vec![Record::Purge(upto)], done)?;
        self.inner.shared.work.notify_one();
        Ok(())
    }

    /// The entries within `range` that exist, by index.
    ///
    /// # Errors
    /// `Damaged` if an entry no longer reads back as written; `Io`.
    pub fn read(
        &self,
        range: impl RangeBounds<u64>,
    ) -> Result<Vec<(Position, Bytes)>, JournalError> {
        self.read_limited(range, usize::MAX)
    }

    /// Like [`Journal::read`], ending behind the entry that brings the payloads to `bytes_max`.
    ///
    /// # Errors
    /// As for [`Journal::read`].
    pub fn read_limited(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(Position, Bytes)>, JournalError> {
        self.inner.shared.read(range, bytes_max)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            // A callback may hold the last handle; a thread cannot wait for itself.
            && writer.thread().id() != std::thread::current().id()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

fn last_position(state: &State) -> Option<Position> {
    let entry = state.entries.last_key_value().map(|(_, slot)| slot.position);
    entry.or(state.carried.purged)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what readers see and puts the records into the queue; the caller sees to it that somebody writes.
    fn enqueue(
        &self,
        state: &mut State,
        records: Vec<Record>,
        done: OnDurable,
    ) -> Result<(), JournalError> {
        if state.stopped {
            return Err(JournalError::Stopped);
        }
        let mut done = Some(done);
        let record_count = records.len();
        for (at, record) in records.into_iter().enumerate() {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.carried.note(&record);
            match &record {
                Record::Entry { position, payload } => {
                    let slot = Slot {
                        position: *position,
                        ticket,
                        location: None,
                        payload: Some(payload.clone()),
                    };
                    state.entries.insert(position.index, slot);
                }
                Record::Truncate { from_index } => {
                    state.entries.split_off(from_index);
                }
                Record::Purge(position) => {
                    state.entries = state.entries.split_off(&(position.index + 1));
                }
                Record::Vote(_) | Record::Committed(_) => {}
            }
            let done = if at + 1 == record_count { done.take() } else { None };
            state.queue.push(Queued { record, ticket, done });
        }
        if let Some(done) = done {
            // There was nothing to write.
            done(Ok(()));
        } else {
            state.wanted = true;
        }
        Ok(())
    }

    /// The writer's thread: whatever nobody else has written.
    fn write_batches(&self) {
        loop {
            {
                let mut state = self.lock();
                while !state.wanted && !state.closing {
                    state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let mut pen = self.pen.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(segments) = pen.as_mut() else { return };
            let (batch, closing) = {
                let mut state = self.lock();
                state.wanted = false;
                (std::mem::take(&mut state.queue), state.closing)
            };
            if !batch.is_empty() {
                if !self.write_batch(segments, batch) {
                    *pen = None;
                    return;
                }
            } else if closing {
                if let Err(error) = segments.finish() {
                    self.stop(Vec::new(), error);
                }
                self.lock().stopped = true;
                *pen = None;
                return;
            }
        }
    }

    /// Writes what is queued on this thread, or leaves it to whoever is writing.
    fn write_here(&self) {
        let mut pen = match self.pen.try_lock() {
            Ok(pen) => pen,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.work.notify_one(),
        };
        let Some(segments) = pen.as_mut() else { return };
        let batch = {
            let mut state = self.lock();
            state.wanted = false;
            std::mem::take(&mut state.queue)
        };
        if !batch.is_empty() && !self.write_batch(segments, batch) {
            *pen = None;
            return;
        }
        drop(pen);
        if self.lock().wanted {
            self.work.notify_one();
        }
    }

    /// False: the log takes no more writes.
    fn write_batch(&self, segments: &mut Segments, batch: Vec<Queued>) -> bool {
        let locations = match segments.write(batch.iter().map(|queued| &queued.record)) {
            Ok(locations) => locations,
            Err(error) => {
                self.stop(batch, error);
                return false;
            }
        };
        let purged = batch.iter().any(|queued| matches!(queued.record, Record::Purge(_)));
        let first_needed = self.publish(&batch, locations, segments.files());
        for queued in batch {
            if let Some(done) = queued.done {
                done(Ok(()));
            }
        }
        if let Err(error) = segments.mark() {
            self.stop(Vec::new(), error);
            return false;
        }
        segments.prepare_ahead();
        if purged {
            if let Err(err) = segments.remove_before(first_needed) {
                tracing::warn!(%err, "purged segments stay until the next purge");
            }
            self.lock().files.clone_from(segments.files());
        }
        true
    }

    /// Lets readers find what has just become durable. Returns the oldest segment still needed.
    fn publish(
        &self,
        batch: &[Queued],
        locations: Vec<Location>,
        files: &BTreeMap<u64, Arc<dyn LogFile>>,
    ) -> u64 {
        let mut state = self.lock();
        let state = &mut *state;
        if state.files.len() != files.len() {
            state.files.clone_from(files);
        }
        let mut locations = locations.into_iter();
        for queued in batch {
            let Record::Entry { position, payload } = &queued.record else { continue };
            let location = locations.next();
            if let Some(slot) = state.entries.get_mut(&position.index)
                && slot.ticket == queued.ticket
            {
                slot.location = location;
                state.cached.push_back((position.index, queued.ticket));
                state.cached_bytes += payload.len();
            }
        }
        while state.cached_bytes > self.cache_bytes
            && let Some((index, ticket)) = state.cached.pop_front()
        {
            // An entry truncated or purged meanwhile is gone, and with it its size: then the sum
            // stays too high and an entry leaves the cache early, which is only slower.
            if let Some(slot) = state.entries.get_mut(&index)
                && slot.ticket == ticket
                && let Some(payload) = slot.payload.take()
            {
                state.cached_bytes -= payload.len();
            }
            if state.cached.is_empty() {
                state.cached_bytes = 0;
            }
        }
        let oldest = state.entries.values().find_map(|slot| slot.location);
        oldest.map_or(u64::MAX, |location| location.sequence)
    }

    fn stop(&self, batch: Vec<Queued>, error: io::Error) {
        let left = {
            let mut state = self.lock();
            state.stopped = true;
            std::mem::take(&mut state.queue)
        };
        (self.on_failure.0)(&WriteFailure { error });
        for queued in batch.into_iter().chain(left) {
            if let Some(done) = queued.done {
                done(Err(JournalError::Stopped));
            }
        }
    }

    fn read(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<(Position, Bytes)>, JournalError> {
        // `BTreeMap::range` panics where a range ends before it begins.
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        if end <= start {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut on_disk = Vec::new();
        {
            let state = self.lock();
            let mut bytes = 0;
            for slot in state.entries.range(start..end).map(|(_, slot)| slot) {
                if bytes >= bytes_max {
                    break;
                }
                match (&slot.payload, slot.location) {
                    (Some(payload), _) => {
                        bytes += payload.len();
                        found.push((slot.position, payload.clone()));
                    }
                    (None, Some(location)) => {
                        bytes += location.payload_bytes as usize;
                        // A file leaves the map only when all that was in it is purged.
                        let file = Arc::clone(&state.files[&location.sequence]);
                        on_disk.push((found.len(), location, file));
                        found.push((slot.position, Bytes::new()));
                    }
                    (None, None) => unreachable!("an entry is in memory until it is on disk"),
                }
            }
        }
        let mut rest = on_disk.as_slice();
        while let Some((_, first, _)) = rest.first() {
            let is_near = |location: &Location| {
                location.sequence == first.sequence
                    && first.offset <= location.offset
                    && location.end() - first.offset <= RUN_BYTES_MAX
            };
            let others = rest[1..].iter().take_while(|(_, location, _)| is_near(location));
            let (run, behind) = rest.split_at(1 + others.count());
            self.read_run(run, &mut found)?;
            rest = behind;
        }
        Ok(found)
    }

    /// Entries that are near each other in one file, by one read. Each goes to its place in `found`.
    fn read_run(
        &self,
        run: &[(usize, Location, Arc<dyn LogFile>)],
        found: &mut [(Position, Bytes)],
    ) -> Result<(), JournalError> {
        let Some((_, first, file)) = run.first() else { return Ok(()) };
        let end = run.iter().map(|(_, location, _)| location.end()).max().unwrap_or(first.offset);
        let name = segments::segment_name(first.sequence);
        // At most `RUN_BYTES_MAX`, or one entry, whose length is a u32.
        let mut bytes = vec![0; in_memory(end - first.offset)];
        let filled = file
            .read_at(first.offset, &mut bytes)
            .map_err(|err| JournalError::io("read", &*self.disk, &name, err))?;
        bytes.truncate(filled);
        let bytes = Bytes::from(bytes);
        for (at, location, _) in run {
            let start = in_memory(location.offset - first.offset);
            let end = start + location.payload_bytes as usize;
            let payload = (end <= bytes.len()).then(|| bytes.slice(start..end));
            match payload.filter(|it| crc32c::crc32c(it) == location.payload_crc) {
                Some(payload) => found[*at].1 = payload,
                None => {
                    return Err(JournalError::Damaged {
                        file: self.disk.path(&name),
                        offset: location.offset,
                        reason: "the entry read back differs from what was written",
                    });
                }
            }
        }
        Ok(())
    }
}
