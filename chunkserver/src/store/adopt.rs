//! A copy of a replica takes the place of the one held here: whole, synced, and only under the promised version.
//!
//! The copy is a file of its own until it is complete; the rename is the moment. A crash before it leaves the old
//! replica (or the learner's empty one), and the half-made copy is removed at the next start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::chunk_file::{
    CHUNK_BYTES_MAX, ChunkHeader, ChunkSpec, ClientTable, DATA_AT, DiskLabel, Position, Slot,
};
use dfs_proto::chunk_journal::Event;
use dfs_proto::record_list::RecordList;

use super::ReplicaReport;
use super::disk::{DiskFile, OpenMode};
use super::engine::{Engine, State, bad_block, read_block};
use super::error::StoreError;
use super::files::{ADOPT_SUFFIX, chunk_dir, chunk_path};
use super::journal::lock;
use super::replica::{Replica, index};

/// A copy in the making. Dropped unfinished, it is removed.
#[derive(Debug)]
pub struct AdoptWriter {
    engine: Arc<Engine>,
    chunk: ChunkId,
    version: ChunkVersion,
    spec: ChunkSpec,
    path: String,
    file: Arc<dyn DiskFile>,
    /// Checksum and length of each block that is there.
    blocks: BTreeMap<u64, (u32, u64)>,
    /// Bytes of the disk that are set aside for what is still to come.
    reserved: u64,
    finished: bool,
}

impl AdoptWriter {
    pub(super) fn begin(
        engine: Arc<Engine>,
        chunk: ChunkId,
        version: ChunkVersion,
        from: Position,
        from_len: u64,
        spec: ChunkSpec,
    ) -> Result<Self, StoreError> {
        static ATTEMPT: AtomicU64 = AtomicU64::new(0);
        let old_len = {
            let cell = engine.cell(chunk)?;
            let state = cell.read();
            let replica = state.held(chunk)?;
            check_promise(replica, chunk, version)?;
            replica.len
        };
        if version <= from.version {
            return Err(StoreError::WrongVersion { chunk, have: from.version, asked: version });
        }
        let limit = spec.chunk_size;
        if !limit.is_power_of_two() || CHUNK_BYTES_MAX < limit || limit < from_len {
            return Err(StoreError::TooLarge { chunk, asked: from_len, limit });
        }
        engine.check_space(from_len.saturating_sub(old_len))?;
        // The old one stays until the copy is whole.
        engine.check_room_for_copy(from_len)?;
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{}.{}.{attempt}{ADOPT_SUFFIX}", chunk_path(chunk), version.0);
        let file = engine.disk.open(&path, OpenMode::New).map_err(|e| engine.write_error(e, 0))?;
        engine.accounts.reserve(from_len);
        Ok(Self {
            engine,
            chunk,
            version,
            spec,
            path,
            file,
            blocks: BTreeMap::new(),
            reserved: from_len,
            finished: false,
        })
    }

    /// Takes a block from the source.
    ///
    /// # Errors
    /// `BadBlock` if the bytes have another checksum; `TooLarge`, `NoSpace`, `Io`.
    pub fn put_block(&mut self, block: u32, data: &[u8], crc: u32) -> Result<(), StoreError> {
        let chunk = self.chunk;
        let index = u64::from(block);
        let size = self.spec.block_size();
        let len = data.len() as u64;
        let end = index.checked_mul(size).and_then(|start| start.checked_add(len));
        match end {
            Some(end) if len <= size && end <= self.spec.chunk_size => {}
            asked => {
                let asked = asked.unwrap_or(u64::MAX);
                return Err(StoreError::TooLarge { chunk, asked, limit: self.spec.chunk_size });
            }
        }
        if crc32c::crc32c(data) != crc {
            return Err(StoreError::BadBlock { chunk, index: block });
        }
        let written = self.file.write_at(DATA_AT + index * size, data);
        written.map_err(|err| self.engine.write_error(err, len))?;
        let taken = len.min(self.reserved);
        self.reserved -= taken;
        self.engine.accounts.give_back(taken);
        self.blocks.insert(index, (crc, len));
        Ok(())
    }

    /// Takes up a block whose right bytes, of checksum `crc`, neither the source nor this server has: reads of it are
    /// `BadBlock` until it is repaired or written anew as a whole. `chunk_len`: bytes of the copy, to its last block.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn leave_bad(&mut self, block: u32, crc: u32, chunk_len: u64) -> Result<(), StoreError> {
        let (index, size) = (u64::from(block), self.spec.block_size());
        let limit = self.spec.chunk_size;
        let start = index.saturating_mul(size);
        if limit < chunk_len || chunk_len <= start {
            return Err(StoreError::TooLarge { chunk: self.chunk, asked: start, limit });
        }
        // Nothing is written: a hole is zeros, and those are right if they have the checksum.
        self.blocks.insert(index, (crc, (chunk_len - start).min(size)));
        Ok(())
    }

    /// Takes a block from the replica held here, if it has this checksum.
    ///
    /// # Errors
    /// `BadBlock`: take it from the source. `NotFound`, `NoSpace`, `Io`.
    pub fn keep_block(&mut self, block: u32, crc: u32) -> Result<(), StoreError> {
        let chunk = self.chunk;
        let index = u64::from(block);
        let data = {
            let cell = self.engine.cell(chunk)?;
            let state = cell.read();
            let held = state.held(chunk)?;
            if held.sum(index) != crc || held.block_size() != self.spec.block_size() {
                return Err(StoreError::BadBlock { chunk, index: block });
            }
            read_block(chunk, &state, &*self.engine.file(chunk)?, index)?
        };
        self.put_block(block, &data, crc)
    }

    /// Puts the copy in place: position (`version`, 0), clean, current, on disk.
    ///
    /// # Errors
    /// `BadBlock` names a block that is missing or has another length; `Fenced` if a higher version was promised
    /// meanwhile. Nothing changed then. `Io`.
    pub fn finish(
        mut self,
        len: u64,
        sealed: bool,
        clients: &ClientTable,
        records: &RecordList,
    ) -> Result<ReplicaReport, StoreError> {
        let engine = Arc::clone(&self.engine);
        let (chunk, version, spec) = (self.chunk, self.version, self.spec);
        let size = spec.block_size();
        let count = len.div_ceil(size);
        let mut sums = Vec::with_capacity(index(count));
        for block in 0..count {
            let wanted = (len - block * size).min(size);
            match self.blocks.get(&block) {
                Some((sum, have)) if *have == wanted => sums.push(*sum),
                _ => return Err(bad_block(chunk, block)),
            }
        }
        // The bulk before the lock; what follows is short.
        self.file.sync().map_err(|err| engine.fate.fatal("sync a copy", &err))?;

        let cell = engine.cell(chunk)?;
        let mut state = cell.write();
        check_promise(state.held(chunk)?, chunk, version)?;
        let old_len = state.held(chunk)?.len;
        // Reserves a number above every record of the replica that is replaced: they are not replayed onto the copy.
        let lsn = engine.append(chunk, &mut state, Event::Adopted { version }, &[])?;
        let DiskLabel { fs_id, disk_id, .. } = engine.label;
        let header = ChunkHeader { fs_id, disk_id, chunk, spec, created_lsn: lsn };
        let replica = Replica {
            promised: version,
            position: Position { version, seq: 0 },
            len,
            sealed,
            sums,
            clients: clients.clone(),
            records: records.clone(),
            ..Replica::new(spec, lsn)
        };
        self.file
            .write_at(0, &header.encode())
            .and_then(|()| {
                let number = 1;
                self.file.write_at(Slot::at(number), &replica.to_slot(chunk, number).encode())
            })
            .map_err(|err| engine.write_error(err, len))?;
        self.file.sync().map_err(|err| engine.fate.fatal("sync a copy", &err))?;
        engine.disk.rename(&self.path, &chunk_path(chunk))?;
        self.finished = true;
        let synced = engine.disk.sync_dir(&chunk_dir(chunk));
        synced.map_err(|err| engine.fate.fatal("sync a directory", &err))?;

        engine.drop_pending(&mut state, chunk);
        engine.files.put(chunk, Arc::clone(&self.file));
        let report = replica.report(chunk);
        *state = State { replica: Some(replica), slot_number: 1, floor: len, ..State::default() };
        lock(&engine.unslotted).remove(&chunk);
        drop(state);
        engine.accounts.grow(old_len, len);
        Ok(report)
    }
}

impl Drop for AdoptWriter {
    fn drop(&mut self) {
        self.engine.accounts.give_back(self.reserved);
        if !self.finished {
            // What stays is removed at the next start.
            let _ = self.engine.disk.remove(&self.path);
        }
    }
}

fn check_promise(
    replica: &Replica,
    chunk: ChunkId,
    version: ChunkVersion,
) -> Result<(), StoreError> {
    if replica.promised != version {
        return Err(StoreError::Fenced { chunk, promised: replica.promised });
    }
    let have = replica.position.version;
    if version <= have {
        return Err(StoreError::WrongVersion { chunk, have, asked: version });
    }
    Ok(())
}

impl Engine {
    pub(super) fn adopt_self(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<ReplicaReport, StoreError> {
        let cell = self.cell(chunk)?;
        // What is taken up must be on disk before the record that says so: the promise keeps newer operations out.
        for stable in self.settle_cells(&[Arc::clone(&cell)])? {
            stable?;
        }
        let (lsn, report) = {
            let mut state = cell.write();
            let replica = state.held(chunk)?;
            let lsn = match check_promise(replica, chunk, version) {
                Ok(()) => self.append(chunk, &mut state, Event::AdoptSelf { version }, &[])?,
                Err(StoreError::WrongVersion { have, .. }) if have == version => replica.lsn,
                Err(err) => return Err(err),
            };
            (lsn, state.held(chunk)?.report(chunk))
        };
        self.journal.wait_durable(lsn)?;
        Ok(report)
    }
}
