//! The store's heart: one cell per chunk, and the steps from an operation to its place in the file.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId};
use dfs_proto::chunk_file::{
    CHUNK_BYTES_MAX, ChunkHeader, ChunkSpec, DATA_AT, DiskLabel, Position,
};
use dfs_proto::chunk_journal::{Change, Event, Op, Record};
use dfs_service::canary;

use super::disk::{ChunkDisk, DiskFile, OpenMode};
use super::error::StoreError;
use super::files::{OpenFiles, chunk_path};
use super::journal::{Fate, Journal, lock};
use super::replica::{Effect, Replica, block_number, index};
use super::space::Accounts;
use super::sync::Signal;
use super::{Mutation, OpTag, RangeSums, ReplicaReport, ScrubbedBlock, Seen, StoreConfig};

/// Longer writes beyond the end go to the file first and are written once.
pub(super) const BULK_BYTES_MIN: usize = (128 << 10) + 1;
/// Bytes held in memory until the journal is synced before the store syncs by itself.
const PENDING_BYTES_HIGH: u64 = 8 << 20;
/// One chunk's operations in memory; each read looks at all of them.
const PENDING_OPS_HIGH: usize = 512;
/// Chunks whose bulk data is not synced, each with an open file.
const BULK_CHUNKS_HIGH: usize = 128;

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) config: StoreConfig,
    pub(super) label: DiskLabel,
    pub(super) disk: Arc<dyn ChunkDisk>,
    pub(super) fate: Arc<Fate>,
    pub(super) journal: Journal,
    pub(super) files: OpenFiles,
    pub(super) cells: RwLock<HashMap<ChunkId, Arc<Cell>>>,
    /// First record of each chunk that no slot contains; segments with such records are needed.
    pub(super) unslotted: Mutex<BTreeMap<ChunkId, u64>>,
    /// Chunks with operations that are not in place.
    pub(super) pending: Mutex<BTreeSet<ChunkId>>,
    pub(super) pending_bytes: AtomicU64,
    /// Chunks with bulk data that is not synced.
    pub(super) bulk: Mutex<BTreeSet<ChunkId>>,
    /// The disk was too full to put their operations in place: writes are refused until that works.
    pub(super) stuck: Mutex<BTreeSet<ChunkId>>,
    /// Chunks whose file was made again, and of which nobody was told yet.
    pub(super) made_again: Mutex<BTreeSet<ChunkId>>,
    pub(super) checkpoint_turn: Mutex<()>,
    pub(super) purging: Mutex<()>,
    pub(super) accounts: Accounts,
    pub(super) signal: Signal,
}

/// One chunk.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) chunk: ChunkId,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) replica: Option<Replica>,
    /// Applied, not in place, in order.
    pub(super) pending: VecDeque<(u64, Effect)>,
    /// Bulk operations that are not known to be on disk. Nothing later is put in place before they are: after a
    /// power failure their sums decide whether they happened.
    pub(super) bulk: Option<Bulk>,
    /// The journal says that bulk data up to the first record is on disk, once the second one is.
    pub(super) mark: Option<(u64, u64)>,
    /// The file's name may not be on disk.
    pub(super) name_unsynced: bool,
    pub(super) slot_number: u64,
    pub(super) snapshot: Option<Snapshot>,
    /// The longest that the chunk was since its slot. Bulk data goes beyond it only, where no replay writes.
    pub(super) floor: u64,
    /// The record that made the chunk DIRTY.
    pub(super) dirty_lsn: u64,
    /// Below it, all of the data area has space of its own. `None`: not yet looked at.
    pub(super) dense_to: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Bulk {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

/// A slot is being written.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) lsn: u64,
    pub(super) first_after: Option<u64>,
    pub(super) floor: u64,
}

impl Cell {
    pub(super) fn new(chunk: ChunkId, state: State) -> Self {
        Self { chunk, state: RwLock::new(state) }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The replica, if it may answer reads of `version`.
    pub(super) fn readable(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<&Replica, StoreError> {
        let replica = self.held(chunk)?;
        let have = replica.position.version;
        if replica.not_current {
            return Err(StoreError::NotCurrent { chunk });
        }
        if have != version {
            return Err(StoreError::WrongVersion { chunk, have, asked: version });
        }
        Ok(replica)
    }

    pub(super) fn held(&self, chunk: ChunkId) -> Result<&Replica, StoreError> {
        self.replica.as_ref().ok_or(StoreError::NotFound { chunk })
    }
}

impl Engine {
    pub(super) fn cell(&self, chunk: ChunkId) -> Result<Arc<Cell>, StoreError> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(&chunk).map(Arc::clone).ok_or(StoreError::NotFound { chunk })
    }

    fn cell_or_new(&self, chunk: ChunkId) -> Arc<Cell> {
        if let Ok(cell) = self.cell(chunk) {
            return cell;
        }
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Cell::new(chunk, State::default()));
        Arc::clone(cells.entry(chunk).or_insert_with(new))
    }

    /// Drops the cell of a chunk that is not held, unless somebody else is about to use it.
    pub(super) fn forget(&self, cell: &Arc<Cell>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        // Two: the map's and the caller's.
        if Arc::strong_count(cell) == 2 && cell.read().replica.is_none() {
            cells.remove(&cell.chunk);
        }
    }

    pub(super) fn all_cells(&self) -> Vec<Arc<Cell>> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.values().map(Arc::clone).collect()
    }

    pub(super) fn file(&self, chunk: ChunkId) -> Result<Arc<dyn DiskFile>, StoreError> {
        Ok(self.files.get(&*self.disk, chunk)?)
    }

    pub(super) fn seen(
        &self,
        chunk: ChunkId,
        client: ClientId,
        counter: u64,
    ) -> Result<Seen, StoreError> {
        let Ok(cell) = self.cell(chunk) else { return Ok(Seen::New) };
        let state = cell.read();
        state.replica.as_ref().map_or(Ok(Seen::New), |held| held.seen(chunk, client, counter))
    }

    pub(super) fn carry(&self, chunk: ChunkId) -> u64 {
        let Ok(cell) = self.cell(chunk) else { return 0 };
        cell.read().replica.as_ref().map_or(0, Replica::carry)
    }

    pub(super) fn apply(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        seq: u64,
        spec: &ChunkSpec,
        tag: OpTag,
        mutation: &Mutation<'_>,
    ) -> Result<(), StoreError> {
        self.journal.admit()?;
        let cell = self.cell_or_new(chunk);
        let mut state = cell.write();
        let result = self.apply_locked(chunk, &mut state, version, seq, spec, tag, mutation);
        let (dirty_lsn, held) = (state.dirty_lsn, state.replica.is_some());
        let many = PENDING_OPS_HIGH < state.pending.len();
        drop(state);
        if !held {
            self.forget(&cell);
        }
        result?;
        if many || PENDING_BYTES_HIGH < self.pending_bytes.load(Ordering::Relaxed) {
            // Done here rather than by the sync thread: who writes faster than the disk waits for it.
            self.settle_all()?;
        }
        self.journal.wait_durable(dirty_lsn)?;
        Ok(())
    }

    #[allow(clippy::too_many_arguments, clippy::allow_attributes, reason = "the inside of `apply`")]
    fn apply_locked(
        &self,
        chunk: ChunkId,
        state: &mut State,
        version: ChunkVersion,
        seq: u64,
        spec: &ChunkSpec,
        tag: OpTag,
        mutation: &Mutation<'_>,
    ) -> Result<(), StoreError> {
        if state.replica.is_none() {
            match (version, seq) {
                (ChunkVersion(1), 1) => {
                    self.check_first(chunk, spec, mutation)?;
                    self.create(chunk, state, *spec)?;
                }
                (ChunkVersion(1), _) => return Err(StoreError::Gap { chunk, have_seq: 0 }),
                _ => return Err(StoreError::NotFound { chunk }),
            }
        }
        let replica = state.held(chunk)?;
        if replica.check_next(chunk, version, seq)?.is_none() {
            return Ok(());
        }
        replica.seen(chunk, tag.client, tag.counter)?;
        let file = self.file(chunk)?;
        let mut read = |block| read_block(chunk, state, &*file, block);
        let mut change = replica.plan(chunk, mutation, &mut read)?;
        let data = match mutation {
            Mutation::Write { data, .. } => *data,
            Mutation::Zero { .. } | Mutation::Truncate { .. } | Mutation::Seal | Mutation::Nop => {
                &[]
            }
        };
        let end = match change {
            Change::Write { offset, .. } => offset + data.len() as u64,
            Change::Truncate { len, .. } => len,
            Change::Bulk { .. } | Change::Zero { .. } | Change::Seal | Change::Nop => replica.len,
        };
        let (old_len, was_dirty) = (replica.len, replica.dirty);
        if old_len < end {
            self.check_space(end - old_len)?;
        }
        let mut payload = data;
        let mut bulk = false;
        if let Change::Write { offset, sums } = &mut change {
            let offset = *offset;
            bulk = BULK_BYTES_MIN <= data.len() && old_len <= offset && state.floor <= old_len;
            if bulk {
                self.write_bulk(&*file, old_len, offset, data)?;
                let sums = std::mem::take(sums);
                change = Change::Bulk { offset, len: data.len() as u64, sums };
                payload = &[];
            } else {
                let limit = self.journal.payload_max();
                if limit < data.len() as u64 {
                    return Err(StoreError::TooLarge { chunk, asked: data.len() as u64, limit });
                }
                self.allocate(state, &*file, offset, data.len() as u64)?;
            }
        }
        let zeroed = state.held(chunk)?.zeroed_by(&change);
        let OpTag { client, counter, low_water, append, record } = tag;
        let op = Op { version, seq, client, counter, low_water, append, change, record };
        let lsn = self.append(chunk, state, Event::Op { op }, payload)?;
        if !was_dirty {
            state.dirty_lsn = lsn;
        }
        if bulk {
            let last = state.bulk.take().map_or(lsn, |held| held.first);
            state.bulk = Some(Bulk { first: last, last: lsn, file });
            if BULK_CHUNKS_HIGH < self.note_bulk(chunk) {
                self.signal.poke_checkpoint();
            }
        } else {
            if let Some((offset, len)) = zeroed {
                self.push_effect(chunk, state, lsn, Effect::Zero { offset, len });
            }
            if let (false, Mutation::Write { offset, .. }) = (payload.is_empty(), mutation) {
                let effect = Effect::Write { offset: *offset, data: payload.to_vec() };
                self.push_effect(chunk, state, lsn, effect);
            }
        }
        let len = state.held(chunk)?.len;
        self.accounts.grow(old_len, len);
        Ok(())
    }

    /// What would be refused after the replica was made is refused before.
    fn check_first(
        &self,
        chunk: ChunkId,
        spec: &ChunkSpec,
        mutation: &Mutation<'_>,
    ) -> Result<(), StoreError> {
        let (end, bytes) = match *mutation {
            Mutation::Write { offset, data } => {
                (offset.saturating_add(data.len() as u64), data.len())
            }
            Mutation::Truncate { len } => (len, 0),
            Mutation::Zero { .. } | Mutation::Seal | Mutation::Nop => (0, 0),
        };
        let limit = spec.chunk_size;
        if limit < end {
            return Err(StoreError::TooLarge { chunk, asked: end, limit });
        }
        let (asked, limit) = (bytes as u64, self.journal.payload_max());
        if bytes < BULK_BYTES_MIN && limit < asked {
            return Err(StoreError::TooLarge { chunk, asked, limit });
        }
        self.check_space(asked)
    }

    fn note_bulk(&self, chunk: ChunkId) -> usize {
        let mut bulk = lock(&self.bulk);
        bulk.insert(chunk);
        bulk.len()
    }

    fn push_effect(&self, chunk: ChunkId, state: &mut State, lsn: u64, effect: Effect) {
        self.pending_bytes.fetch_add(effect.bytes(), Ordering::Relaxed);
        if state.pending.is_empty() {
            lock(&self.pending).insert(chunk);
        }
        state.pending.push_back((lsn, effect));
    }

    /// Makes the file; its name is on disk when its bulk data is, or by its checkpoint. Until then a replay makes it.
    fn create(&self, chunk: ChunkId, state: &mut State, spec: ChunkSpec) -> Result<(), StoreError> {
        if !spec.chunk_size.is_power_of_two() || CHUNK_BYTES_MAX < spec.chunk_size {
            let asked = spec.chunk_size;
            return Err(StoreError::TooLarge { chunk, asked, limit: CHUNK_BYTES_MAX });
        }
        let path = chunk_path(chunk);
        // The record is first: the header must name it, and a file without a record is removed at the next start.
        let record = Record { chunk, previous: 0, event: Event::Create { spec } };
        self.hold_segment(chunk);
        let lsn = self.journal.append(&record, &[])?;
        let make = || -> io::Result<Arc<dyn DiskFile>> {
            let file = self.disk.open(&path, OpenMode::New)?;
            let DiskLabel { fs_id, disk_id, .. } = self.label;
            let header = ChunkHeader { fs_id, disk_id, chunk, spec, created_lsn: lsn };
            file.write_at(0, &header.encode())?;
            Ok(file)
        };
        let file = match make() {
            Ok(file) => file,
            Err(err) => {
                // Best effort; a replay would make an empty, clean replica otherwise, which the master removes.
                let _ = self.disk.remove(&path);
                let undo = Record { chunk, previous: lsn, event: Event::Delete };
                self.journal.append(&undo, &[])?;
                lock(&self.unslotted).remove(&chunk);
                return Err(self.write_error(err, 0));
            }
        };
        self.files.put(chunk, file);
        *state = State {
            replica: Some(Replica::new(spec, lsn)),
            name_unsynced: true,
            dense_to: Some(0),
            ..State::default()
        };
        self.accounts.add_chunk(0);
        Ok(())
    }

    /// Before a chunk's record is appended: its segment is needed until a slot contains it.
    fn hold_segment(&self, chunk: ChunkId) {
        let mut unslotted = lock(&self.unslotted);
        // Not higher than the number that the record will get.
        unslotted.entry(chunk).or_insert_with(|| self.journal.written_lsn() + 1);
    }

    /// Appends a record about a held chunk and takes it into its state.
    pub(super) fn append(
        &self,
        chunk: ChunkId,
        state: &mut State,
        event: Event,
        payload: &[u8],
    ) -> Result<u64, StoreError> {
        let replica = state.replica.as_mut().ok_or(StoreError::NotFound { chunk })?;
        self.hold_segment(chunk);
        let record = Record { chunk, previous: replica.lsn, event };
        let lsn = self
            .journal
            .append(&record, payload)
            .map_err(|err| self.write_error(err, payload.len() as u64))?;
        if self.journal.take_rotated() {
            self.signal.poke_checkpoint();
        }
        replica.apply_with_payload(lsn, &record.event, payload.len() as u64);
        state.floor = state.floor.max(replica.len);
        if let Some(snapshot) = &mut state.snapshot {
            snapshot.first_after.get_or_insert(lsn);
            snapshot.floor = snapshot.floor.max(replica.len);
        }
        Ok(lsn)
    }

    fn write_bulk(
        &self,
        file: &dyn DiskFile,
        old_len: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let write = || {
            if old_len < offset {
                file.punch(DATA_AT + old_len, offset - old_len)?;
            }
            file.write_at(DATA_AT + offset, data)
        };
        write().map_err(|err| {
            // Give the space of what was written back; beyond the length it means nothing.
            let _ = file.punch(DATA_AT + offset, data.len() as u64);
            self.write_error(err, data.len() as u64)
        })
    }

    /// Makes sure that a small write can be put in place later, when it can no longer be refused.
    fn allocate(
        &self,
        state: &mut State,
        file: &dyn DiskFile,
        offset: u64,
        len: u64,
    ) -> Result<(), StoreError> {
        let dense_to = match state.dense_to {
            Some(dense_to) => dense_to,
            None => file.first_hole(DATA_AT)?.saturating_sub(DATA_AT),
        };
        state.dense_to = Some(dense_to);
        if offset + len <= dense_to {
            return Ok(());
        }
        let from = offset / 4096 * 4096;
        let to = (offset + len).next_multiple_of(4096);
        file.allocate(DATA_AT + from, to - from).map_err(|err| self.write_error(err, len))?;
        if from <= dense_to {
            state.dense_to = Some(to);
        }
        Ok(())
    }

    pub(super) fn write_error(&self, err: io::Error, need: u64) -> StoreError {
        if !is_full(&err) {
            return StoreError::Io(err);
        }
        let free_bytes = self.disk.space().map_or(0, |space| space.free_bytes);
        StoreError::NoSpace { free_bytes, need }
    }

    pub(super) fn mark_clean(&self, chunk: ChunkId, at: Position) -> Result<(), StoreError> {
        let cell = self.cell(chunk)?;
        let mut state = cell.write();
        let replica = state.held(chunk)?;
        if replica.dirty && !replica.not_current && replica.position == at {
            self.append(chunk, &mut state, Event::Clean, &[])?;
        }
        Ok(())
    }

    pub(super) fn read(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let replica = state.readable(chunk, version)?;
        out.clear();
        let end = offset.saturating_add(len).min(replica.len);
        if end <= offset {
            return Ok(replica.len);
        }
        let size = replica.block_size();
        let from = offset / size * size;
        let to = end.next_multiple_of(size).min(replica.len);
        out.resize(index(to - from), 0);
        let file = self.file(chunk)?;
        if let Err(error) = read_range(&state, &*file, from, out) {
            // Which of them it is.
            for block in from / size..to.div_ceil(size) {
                read_block(chunk, &state, &*file, block)?;
            }
            return Err(error);
        }
        for (block, bytes) in (from / size..).zip(out.chunks(index(size))) {
            let right = crc32c::crc32c(bytes) == replica.sum(block);
            if !right && !canary::sings("checksum-not-looked-at") {
                return Err(bad_block(chunk, block));
            }
        }
        out.truncate(index(end - from));
        out.drain(..index(offset - from));
        Ok(replica.len)
    }

    pub(super) fn read_sums(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u64,
    ) -> Result<RangeSums, StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let replica = state.readable(chunk, version)?;
        let (size, replica_len) = (replica.block_size(), replica.len);
        let end = offset.saturating_add(len).min(replica_len);
        if end <= offset {
            return Ok(RangeSums { replica_len, sums: Vec::new(), in_file: true });
        }
        let (from, to) = (offset / size * size, end.next_multiple_of(size));
        let in_file = !state.pending.iter().any(|(_, effect)| effect.touches(from, to));
        let sums = (from / size..to / size).map(|block| replica.sum(block)).collect();
        Ok(RangeSums { replica_len, sums, in_file })
    }

    pub(super) fn read_for_copy(
        &self,
        chunk: ChunkId,
        block: u64,
    ) -> Result<(Vec<u8>, u32), StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let sum = state.held(chunk)?.sum(block);
        Ok((read_block(chunk, &state, &*self.file(chunk)?, block)?, sum))
    }

    /// As [`Self::read_for_copy`], from the disk and not from memory.
    pub(super) fn read_for_scrub(
        &self,
        chunk: ChunkId,
        block: u64,
    ) -> Result<ScrubbedBlock, StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let block_bytes = state.held(chunk)?.block_size();
        let file = self.file(chunk)?;
        file.uncache(DATA_AT + block * block_bytes, block_bytes);
        let content = read_block(chunk, &state, &*file, block)?;
        let last = content.iter().rposition(|byte| *byte != 0);
        let start = block * block_bytes;
        Ok(ScrubbedBlock {
            bytes: content.len() as u64,
            data_end: last.map_or(0, |last| start + last as u64 + 1),
        })
    }

    pub(super) fn clients(&self) -> BTreeSet<ClientId> {
        let mut clients = BTreeSet::new();
        for cell in self.all_cells() {
            if let Some(replica) = &cell.read().replica {
                clients.extend(replica.clients.clients.keys());
            }
        }
        clients
    }

    pub(super) fn forget_clients(&self, clients: &BTreeSet<ClientId>) -> Result<(), StoreError> {
        let held = |replica: &Replica| -> Vec<ClientId> {
            let table = replica.clients.clients.keys();
            table.filter(|client| clients.contains(client)).copied().collect()
        };
        for cell in self.all_cells() {
            if cell.read().replica.as_ref().is_none_or(|replica| held(replica).is_empty()) {
                continue;
            }
            self.journal.admit()?;
            let mut state = cell.write();
            for client in state.replica.as_ref().map_or_else(Vec::new, held) {
                self.append(cell.chunk, &mut state, Event::Forget { client }, &[])?;
            }
        }
        Ok(())
    }

    pub(super) fn report(&self, chunk: ChunkId) -> Option<ReplicaReport> {
        let cell = self.cell(chunk).ok()?;
        let state = cell.read();
        state.replica.as_ref().map(|replica| replica.report(chunk))
    }

    pub(super) fn inventory(&self) -> Vec<ReplicaReport> {
        let mut reports: Vec<ReplicaReport> = self
            .all_cells()
            .iter()
            .filter_map(|cell| Some(cell.read().replica.as_ref()?.report(cell.chunk)))
            .collect();
        reports.sort_unstable_by_key(|report| report.chunk);
        reports
    }

    pub(super) fn promise(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        spec: Option<&ChunkSpec>,
    ) -> Result<ReplicaReport, StoreError> {
        self.journal.admit()?;
        let cell = match spec {
            Some(_) => self.cell_or_new(chunk),
            None => self.cell(chunk)?,
        };
        let mut state = cell.write();
        let result = self.promise_locked(chunk, &mut state, version, spec);
        let held = state.replica.is_some();
        drop(state);
        if !held {
            self.forget(&cell);
        }
        let lsn = result?;
        self.journal.wait_durable(lsn)?;
        // Fresh, not as of the promise: an operation in between is part of what is reported.
        self.report(chunk).ok_or(StoreError::NotFound { chunk })
    }

    fn promise_locked(
        &self,
        chunk: ChunkId,
        state: &mut State,
        version: ChunkVersion,
        spec: Option<&ChunkSpec>,
    ) -> Result<u64, StoreError> {
        if state.replica.is_none() {
            let spec = *spec.ok_or(StoreError::NotFound { chunk })?;
            self.create(chunk, state, spec)?;
        }
        let replica = state.held(chunk)?;
        if version < replica.promised {
            return Err(StoreError::Fenced { chunk, promised: replica.promised });
        }
        if version == replica.promised {
            return Ok(replica.lsn);
        }
        self.append(chunk, state, Event::Promise { version }, &[])
    }

    pub(super) fn repair_block(
        &self,
        chunk: ChunkId,
        block: u64,
        data: &[u8],
        crc: u32,
    ) -> Result<(), StoreError> {
        // Put in place what is pending, so that the file's block is the whole truth.
        self.settle_cells(&[self.cell(chunk)?])?;
        let cell = self.cell(chunk)?;
        let state = cell.write();
        let replica = state.held(chunk)?;
        let expected = replica.block_len(block, replica.len);
        let right = data.len() as u64 == expected
            && 0 < expected
            && crc == replica.sum(block)
            && crc == crc32c::crc32c(data);
        if !right {
            return Err(bad_block(chunk, block));
        }
        let file = self.file(chunk)?;
        let at = DATA_AT + block * replica.block_size();
        file.write_at(at, data).map_err(|err| self.write_error(err, expected))?;
        file.sync().map_err(|err| self.fate.fatal("sync a repaired block", &err))?;
        // A disk may take bytes and not give them back.
        file.uncache(at, expected);
        read_block(chunk, &state, &*file, block).map(drop)
    }
}

pub(super) fn is_full(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a read says that the medium does not give these bytes any more, and not that something else went wrong.
fn is_lost(err: &io::Error) -> bool {
    let lost = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN];
    err.raw_os_error().is_some_and(|code| lost.contains(&code))
}

pub(super) fn bad_block(chunk: ChunkId, block: u64) -> StoreError {
    StoreError::BadBlock { chunk, index: block_number(block) }
}

impl Effect {
    /// Memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.len() as u64 + 64,
            Self::Zero { .. } => 64,
        }
    }

    pub(super) fn put(&self, file: &dyn DiskFile) -> io::Result<()> {
        match self {
            Self::Write { offset, data } => file.write_at(DATA_AT + offset, data),
            Self::Zero { offset, len } => file.punch(DATA_AT + offset, *len),
        }
    }

    fn range(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Zero { offset, len } => (*offset, *len),
        }
    }

    fn touches(&self, from: u64, to: u64) -> bool {
        let (offset, len) = self.range();
        offset < to && from < offset.saturating_add(len)
    }

    /// Shows the effect in `bytes`, which are those at `from`.
    fn overlay(&self, from: u64, bytes: &mut [u8]) {
        let (offset, len) = self.range();
        let start = offset.max(from);
        let end = (offset + len).min(from + bytes.len() as u64);
        if end <= start {
            return;
        }
        let target = &mut bytes[index(start - from)..index(end - from)];
        match self {
            Self::Write { data, .. } => {
                target.copy_from_slice(&data[index(start - offset)..index(end - offset)]);
            }
            Self::Zero { .. } => target.fill(0),
        }
    }
}

/// Bytes from `from`, as applied: the file, and what is not yet in place.
fn read_range(
    state: &State,
    file: &dyn DiskFile,
    from: u64,
    bytes: &mut [u8],
) -> Result<(), StoreError> {
    file.read_at(DATA_AT + from, bytes)?;
    for (_, effect) in &state.pending {
        effect.overlay(from, bytes);
    }
    Ok(())
}

/// One block, verified.
pub(super) fn read_block(
    chunk: ChunkId,
    state: &State,
    file: &dyn DiskFile,
    block: u64,
) -> Result<Vec<u8>, StoreError> {
    let replica = state.held(chunk)?;
    let mut bytes = vec![0; index(replica.block_len(block, replica.len))];
    match read_range(state, file, block * replica.block_size(), &mut bytes) {
        // The disk lost it: as good as a bad checksum.
        Err(StoreError::Io(error)) if is_lost(&error) => {
            tracing::debug!(chunk = chunk.0, block, %error, "block cannot be read");
            return Err(bad_block(chunk, block));
        }
        read => read?,
    }
    if bytes.is_empty() || crc32c::crc32c(&bytes) != replica.sum(block) {
        return Err(bad_block(chunk, block));
    }
    Ok(bytes)
}
