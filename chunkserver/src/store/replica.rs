//! One replica's state: what an operation does to it, in memory and in its file.
//!
//! Pure. The same [`Replica::apply`] runs when an operation arrives and when the journal is replayed, so a replay
//! cannot come out differently.

use std::sync::OnceLock;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId};
use dfs_proto::chunk_file::{
    APPENDS_MAX, BLOCK_BYTES_MAX, CLIENTS_MAX, ChunkSpec, ClientTable, Position, Slot,
};
use dfs_proto::chunk_journal::{BlockSum, Change, Event, Op};
use dfs_proto::record_list::{RecordList, RecordPlace};

use super::error::StoreError;
use super::{Mutation, ReplicaReport, Seen};

#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) spec: ChunkSpec,
    pub(super) created_lsn: u64,
    /// The last journal record contained.
    pub(super) lsn: u64,
    pub(super) promised: ChunkVersion,
    pub(super) position: Position,
    pub(super) len: u64,
    pub(super) sealed: bool,
    pub(super) dirty: bool,
    pub(super) not_current: bool,
    pub(super) sums: Vec<u32>,
    pub(super) clients: ClientTable,
    /// Of a record log.
    pub(super) records: RecordList,
}

/// What an operation does to the data area of the file.
#[derive(Debug)]
pub(super) enum Effect {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64 },
}

/// A block's bytes, verified.
pub(super) type ReadBlock<'a> = &'a mut dyn FnMut(u64) -> Result<Vec<u8>, StoreError>;

/// CRC32C of `len` zeros.
pub(super) fn zero_sum(len: u64) -> u32 {
    static FULL: OnceLock<u32> = OnceLock::new();
    let zeros = || crc32c_zeros(0, BLOCK_BYTES_MAX);
    if len == BLOCK_BYTES_MAX { *FULL.get_or_init(zeros) } else { crc32c_zeros(0, len) }
}

fn crc32c_zeros(mut crc: u32, mut len: u64) -> u32 {
    const ZEROS: [u8; 4096] = [0; 4096];
    while 0 < len {
        let step = index(len).min(ZEROS.len());
        crc = crc32c::crc32c_append(crc, &ZEROS[..step]);
        len -= step as u64;
    }
    crc
}

/// A length or block number as an index. Chunks are at most 256 MiB.
pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

pub(super) fn block_number(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Replica {
    pub(super) fn new(spec: ChunkSpec, created_lsn: u64) -> Self {
        Self {
            spec,
            created_lsn,
            lsn: created_lsn,
            promised: ChunkVersion(0),
            position: Position::default(),
            len: 0,
            sealed: false,
            dirty: false,
            not_current: false,
            sums: Vec::new(),
            clients: ClientTable::default(),
            records: RecordList::default(),
        }
    }

    pub(super) fn from_slot(slot: Slot, created_lsn: u64) -> Self {
        let Slot {
            number: _,
            lsn,
            chunk: _,
            spec,
            promised,
            position,
            len,
            sealed,
            dirty,
            not_current,
            sums,
            clients,
            records,
        } = slot;
        Self {
            spec,
            created_lsn,
            lsn,
            promised,
            position,
            len,
            sealed,
            dirty,
            not_current,
            sums,
            clients,
            records,
        }
    }

    pub(super) fn to_slot(&self, chunk: ChunkId, number: u64) -> Slot {
        Slot {
            number,
            lsn: self.lsn,
            chunk,
            spec: self.spec,
            promised: self.promised,
            position: self.position,
            len: self.len,
            sealed: self.sealed,
            dirty: self.dirty,
            not_current: self.not_current,
            sums: self.sums.clone(),
            clients: self.clients.clone(),
            records: self.records.clone(),
        }
    }

    pub(super) fn report(&self, chunk: ChunkId) -> ReplicaReport {
        let mut digest = 0;
        for sum in &self.sums {
            digest = crc32c::crc32c_append(digest, &sum.to_le_bytes());
        }
        digest = crc32c::crc32c_append(digest, &self.len.to_le_bytes());
        if !self.records.is_empty() {
            digest = crc32c::crc32c_append(digest, &self.records.crc().to_le_bytes());
        }
        ReplicaReport {
            chunk,
            promised: self.promised,
            position: self.position,
            len: self.len,
            sealed: self.sealed,
            dirty: self.dirty,
            not_current: self.not_current,
            digest,
            spec: self.spec,
        }
    }

    pub(super) fn block_size(&self) -> u64 {
        self.spec.block_size()
    }

    /// Bytes of block `block` inside a length.
    pub(super) fn block_len(&self, block: u64, len: u64) -> u64 {
        len.saturating_sub(block * self.block_size()).min(self.block_size())
    }

    /// Whether operation `seq` of `version` is next; `None` if it was applied already.
    pub(super) fn check_next(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        seq: u64,
    ) -> Result<Option<()>, StoreError> {
        if version < self.promised {
            return Err(StoreError::Fenced { chunk, promised: self.promised });
        }
        if self.not_current {
            return Err(StoreError::NotCurrent { chunk });
        }
        // The first version is never adopted, only begun.
        let begins = self.position == Position::default() && version == ChunkVersion(1);
        if !begins && version != self.position.version {
            return Err(StoreError::WrongVersion {
                chunk,
                have: self.position.version,
                asked: version,
            });
        }
        let have_seq = self.position.seq;
        match seq {
            _ if seq <= have_seq => Ok(None),
            _ if seq == have_seq + 1 => Ok(Some(())),
            _ => Err(StoreError::Gap { chunk, have_seq }),
        }
    }

    pub(super) fn seen(
        &self,
        chunk: ChunkId,
        client: ClientId,
        counter: u64,
    ) -> Result<Seen, StoreError> {
        let Some(entry) = self.clients.clients.get(&client) else {
            let full = CLIENTS_MAX <= self.clients.clients.len() && client != ClientId(0);
            return if full {
                Err(StoreError::TooManyClients { chunk, client })
            } else {
                Ok(Seen::New)
            };
        };
        Ok(if entry.highest < counter {
            Seen::New
        } else if counter < entry.low_water {
            Seen::Unknown
        } else {
            Seen::Done { append: entry.appends.get(&counter).copied() }
        })
    }

    /// See `ChunkStore::carry`.
    pub(super) fn carry(&self) -> u64 {
        let limit = self.spec.chunk_size;
        let ends = self.clients.clients.values().flat_map(|entry| entry.appends.values());
        ends.map(|(offset, len)| offset.saturating_add(*len).saturating_sub(limit))
            .max()
            .unwrap_or(0)
    }

    /// What appends carried over the chunk's end is cut with it. That they were applied is still known.
    fn forget_carry(&mut self) {
        let limit = self.spec.chunk_size;
        for (offset, len) in self.clients.clients.values_mut().flat_map(|c| c.appends.values_mut())
        {
            *len = (*len).min(limit.saturating_sub(*offset));
        }
    }

    /// Takes a journal record into the state.
    pub(super) fn apply(&mut self, lsn: u64, event: &Event) {
        self.lsn = lsn;
        match event {
            Event::Op { op } => self.apply_op(op),
            Event::Promise { version } => self.promised = self.promised.max(*version),
            Event::AdoptSelf { version } => {
                self.position = Position { version: *version, seq: 0 };
                self.promised = self.promised.max(*version);
                self.dirty = false;
                self.not_current = false;
            }
            Event::Clean => self.dirty = false,
            Event::Forget { client } => {
                self.clients.clients.remove(client);
            }
            Event::Create { .. }
            | Event::Adopted { .. }
            | Event::DataSynced { .. }
            | Event::Delete => {}
        }
    }

    fn apply_op(&mut self, op: &Op) {
        let Op { version, seq, client, counter, low_water, append, change, record } = op;
        self.position = Position { version: *version, seq: *seq };
        self.promised = self.promised.max(*version);
        self.dirty = true;
        self.remember(*client, *counter, *low_water, *append, change);
        match change {
            Change::Write { offset: _, sums } => self.set_sums(sums),
            Change::Bulk { offset, len, sums } => {
                self.set_len(self.len.max(offset + len));
                self.set_sums(sums);
            }
            Change::Zero { offset, len, sums } => {
                let size = self.block_size();
                let end = (offset + len).min(self.len);
                for block in offset.div_ceil(size)..end / size {
                    if let Some(sum) = self.sums.get_mut(index(block)) {
                        *sum = zero_sum(size);
                    }
                }
                self.set_sums(sums);
            }
            Change::Truncate { len, sums } => {
                self.forget_carry();
                self.records.cut(*len);
                self.set_len(*len);
                self.set_sums(sums);
            }
            Change::Seal => self.sealed = true,
            Change::Nop => {}
        }
        // One without bytes is no record. A list that is full has sealed the chunk before.
        if let (true, Some((offset, len))) = (*record, *append)
            && 0 < len
            && !self.records.push(RecordPlace { offset, len })
        {
            tracing::error!(offset, len, "a record is not in its chunk's list");
        }
    }

    /// A write's record names its payload's length only by the payload: the length is set first.
    pub(super) fn apply_with_payload(&mut self, lsn: u64, event: &Event, payload_len: u64) {
        if let Event::Op { op: Op { change: Change::Write { offset, .. }, .. } } = event {
            self.set_len(self.len.max(offset + payload_len));
        }
        self.apply(lsn, event);
    }

    fn set_len(&mut self, len: u64) {
        let size = self.block_size();
        self.len = len;
        self.sums.resize(index(len.div_ceil(size)), zero_sum(size));
    }

    fn set_sums(&mut self, sums: &[BlockSum]) {
        for &(block, sum) in sums {
            if let Some(held) = self.sums.get_mut(block as usize) {
                *held = sum;
            }
        }
    }

    fn remember(
        &mut self,
        client: ClientId,
        counter: u64,
        low_water: u64,
        append: Option<(u64, u64)>,
        change: &Change,
    ) {
        if client == ClientId(0) {
            return;
        }
        let table = &mut self.clients.clients;
        if low_water > counter && matches!(change, Change::Nop) {
            // The client says that it has nothing outstanding and leaves.
            table.remove(&client);
            return;
        }
        let held: usize = table.values().map(|entry| entry.appends.len()).sum();
        let entry = table.entry(client).or_default();
        entry.highest = entry.highest.max(counter);
        entry.low_water = entry.low_water.max(low_water);
        entry.appends = entry.appends.split_off(&entry.low_water);
        if let Some(append) = append
            && held < APPENDS_MAX
        {
            entry.appends.insert(counter, append);
        }
    }

    /// What `mutation` changes: sums from the blocks' old bytes, each verified before it counts.
    pub(super) fn plan(
        &self,
        chunk: ChunkId,
        mutation: &Mutation<'_>,
        read: ReadBlock<'_>,
    ) -> Result<Change, StoreError> {
        let limit = self.spec.chunk_size;
        let fits = |end: Option<u64>| match end {
            Some(end) if end <= limit => Ok(()),
            end => Err(StoreError::TooLarge { chunk, asked: end.unwrap_or(u64::MAX), limit }),
        };
        Ok(match *mutation {
            // write(2) of no bytes has no effect, not even on the length.
            Mutation::Write { data: [], .. } => Change::Nop,
            Mutation::Write { offset, data } => {
                fits(offset.checked_add(data.len() as u64))?;
                Change::Write { offset, sums: self.sums_of_write(offset, data, read)? }
            }
            Mutation::Zero { offset, len } => {
                let end = offset.saturating_add(len).min(self.len);
                let offset = offset.min(end);
                let sums = self.sums_of_zero(offset, end, read)?;
                Change::Zero { offset, len: end - offset, sums }
            }
            Mutation::Truncate { len } => {
                fits(Some(len))?;
                Change::Truncate { len, sums: self.sums_of_truncate(len, read)? }
            }
            Mutation::Seal => Change::Seal,
            Mutation::Nop => Change::Nop,
        })
    }

    fn sums_of_write(
        &self,
        offset: u64,
        data: &[u8],
        read: ReadBlock<'_>,
    ) -> Result<Vec<BlockSum>, StoreError> {
        let size = self.block_size();
        let end = offset + data.len() as u64;
        let mut sums = Vec::new();
        if self.len < offset && !self.len.is_multiple_of(size) && self.len / size < offset / size {
            sums.push(self.tail_with_zeros(offset));
        }
        for block in offset / size..end.div_ceil(size) {
            let start = block * size;
            let from = offset.max(start);
            let part = &data[index(from - offset)..index(end.min(start + size) - offset)];
            let old_len = self.block_len(block, self.len);
            let within = from - start;
            let sum = if within == 0 && old_len <= part.len() as u64 {
                crc32c::crc32c(part)
            } else if old_len <= within {
                let old = if old_len == 0 { 0 } else { self.sum(block) };
                crc32c::crc32c_append(crc32c_zeros(old, within - old_len), part)
            } else {
                let mut bytes = read(block)?;
                let need = index(within) + part.len();
                if bytes.len() < need {
                    bytes.resize(need, 0);
                }
                bytes[index(within)..need].copy_from_slice(part);
                crc32c::crc32c(&bytes)
            };
            sums.push((block_number(block), sum));
        }
        Ok(sums)
    }

    fn sums_of_zero(
        &self,
        offset: u64,
        end: u64,
        read: ReadBlock<'_>,
    ) -> Result<Vec<BlockSum>, StoreError> {
        let size = self.block_size();
        let mut sums = Vec::new();
        if offset == end {
            return Ok(sums);
        }
        for block in offset / size..end.div_ceil(size) {
            let start = block * size;
            let block_len = self.block_len(block, self.len);
            let from = index(offset.max(start) - start);
            let to = index(end.min(start + size) - start);
            if from == 0 && to as u64 == size {
                continue;
            }
            let sum = if from == 0 && to as u64 == block_len {
                zero_sum(block_len)
            } else {
                let mut bytes = read(block)?;
                // `to` is within the block: `end` is not beyond the replica's length.
                bytes[from..to].fill(0);
                crc32c::crc32c(&bytes)
            };
            sums.push((block_number(block), sum));
        }
        Ok(sums)
    }

    fn sums_of_truncate(&self, len: u64, read: ReadBlock<'_>) -> Result<Vec<BlockSum>, StoreError> {
        let size = self.block_size();
        let last = len / size;
        let mut sums = Vec::new();
        if len < self.len {
            if !len.is_multiple_of(size) {
                let bytes = read(last)?;
                sums.push((block_number(last), crc32c::crc32c(&bytes[..index(len % size)])));
            }
        } else if self.len < len {
            let tail = self.len / size;
            if !self.len.is_multiple_of(size) {
                sums.push(self.tail_with_zeros(len));
            }
            let tail_done = tail == last && !self.len.is_multiple_of(size);
            if !len.is_multiple_of(size) && !tail_done {
                sums.push((block_number(last), zero_sum(len % size)));
            }
        }
        Ok(sums)
    }

    /// The last, partial block with zeros up to `len` or the block's end.
    fn tail_with_zeros(&self, len: u64) -> BlockSum {
        let size = self.block_size();
        let block = self.len / size;
        let old_len = self.block_len(block, self.len);
        let new_len = self.block_len(block, len);
        (block_number(block), crc32c_zeros(self.sum(block), new_len - old_len))
    }

    pub(super) fn sum(&self, block: u64) -> u32 {
        self.sums.get(index(block)).copied().unwrap_or(0)
    }

    /// The ranges that become zero in the file through `change`, before its bytes are written.
    pub(super) fn zeroed_by(&self, change: &Change) -> Option<(u64, u64)> {
        match *change {
            Change::Write { offset, .. } | Change::Bulk { offset, .. } if self.len < offset => {
                Some((self.len, offset - self.len))
            }
            Change::Zero { offset, len, .. } if 0 < len => Some((offset, len)),
            Change::Truncate { len, .. } if len != self.len => {
                Some((len.min(self.len), len.abs_diff(self.len)))
            }
            Change::Write { .. }
            | Change::Bulk { .. }
            | Change::Zero { .. }
            | Change::Truncate { .. }
            | Change::Seal
            | Change::Nop => None,
        }
    }
}
