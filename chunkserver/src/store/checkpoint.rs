//! Checkpoints: state goes from the journal into the slots of the chunk files, so that segments can be used again.
//!
//! For each chunk: everything is put in place; a copy of the state is taken; the file is synced; the copy goes to the older
//! slot; the file is synced again. Operations go on meanwhile; they are in the journal and in no slot.

use std::io;
use std::sync::Arc;

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_file::Slot;
use dfs_proto::chunk_journal::Event;

use super::disk::{ChunkDisk, DiskFile};
use super::engine::{Cell, Engine, Snapshot, State};
use super::error::StoreError;
use super::files::chunk_dir;
use super::journal::lock;

/// Chunks of one round, each with an open file.
const BATCH: usize = 256;
/// From so many files on one sync of the whole disk is cheaper than one each.
const SYNC_ALL_FROM: usize = 16;

/// A slot to be written.
#[derive(Debug)]
pub(super) struct SlotWrite {
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) file: Arc<dyn DiskFile>,
    /// The file's name may not be on disk.
    pub(super) dir: Option<String>,
}

/// Syncs the files' data, then writes and syncs the slots.
pub(super) fn write_slots(disk: &dyn ChunkDisk, writes: &[SlotWrite]) -> io::Result<()> {
    let sync = || match writes.len() {
        n if SYNC_ALL_FROM <= n => disk.sync_all(),
        _ => writes.iter().try_for_each(|write| write.file.sync()),
    };
    sync()?;
    for SlotWrite { number, bytes, file, .. } in writes {
        file.write_at(Slot::at(*number), bytes)?;
    }
    sync()?;
    let mut dirs: Vec<&String> = writes.iter().filter_map(|write| write.dir.as_ref()).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs.into_iter().try_for_each(|dir| disk.sync_dir(dir))
}

impl Engine {
    /// Checkpoints every chunk with a record up to `up_to` that is in no slot, and frees segments.
    pub(super) fn checkpoint_up_to(&self, up_to: u64) -> Result<(), StoreError> {
        let _turn = lock(&self.checkpoint_turn);
        let chunks: Vec<ChunkId> = lock(&self.unslotted)
            .iter()
            .filter(|(_, first)| **first <= up_to)
            .map(|(chunk, _)| *chunk)
            .collect();
        for batch in chunks.chunks(BATCH) {
            let cells: Vec<_> = batch.iter().filter_map(|chunk| self.cell(*chunk).ok()).collect();
            self.checkpoint_batch(&cells)?;
        }
        let needed = {
            let unslotted = lock(&self.unslotted);
            unslotted.values().min().copied().unwrap_or(self.journal.written_lsn() + 1)
        };
        // A record whose chunk was noted only after the look above is newer than `written_lsn` then.
        self.journal.recycle(needed);
        Ok(())
    }

    fn checkpoint_batch(&self, cells: &[Arc<Cell>]) -> Result<(), StoreError> {
        // Most of the waiting is done here, without a lock.
        for stable in self.settle_cells(cells)? {
            match stable {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        let mut done = Vec::new();
        let mut writes = Vec::new();
        for cell in cells {
            if let Some(write) = self.snapshot(cell)? {
                writes.push(write);
                done.push(cell);
            }
        }
        let written = write_slots(&*self.disk, &writes);
        written.map_err(|err| self.fate.fatal("checkpoint", &err))?;
        for (cell, write) in done.into_iter().zip(&writes) {
            self.slot_written(cell, write.number);
        }
        Ok(())
    }

    /// Puts everything in place and copies the state; `None` if there is nothing, or no room, to do so.
    fn snapshot(&self, cell: &Cell) -> Result<Option<SlotWrite>, StoreError> {
        let chunk = cell.chunk;
        let mut state = cell.write();
        if state.replica.is_none() {
            return Ok(None);
        }
        if !self.put_all_in_place(&mut state, chunk)? {
            return Ok(None);
        }
        let file = self.file_to_write(&mut state, chunk)?;
        let replica = state.held(chunk)?;
        let number = state.slot_number + 1;
        let write = SlotWrite {
            number,
            bytes: replica.to_slot(chunk, number).encode(),
            file,
            dir: state.name_unsynced.then(|| chunk_dir(chunk)),
        };
        state.snapshot = Some(Snapshot { lsn: replica.lsn, first_after: None, floor: replica.len });
        Ok(Some(write))
    }

    /// Under the lock; false if there is no room.
    pub(super) fn put_all_in_place(
        &self,
        state: &mut State,
        chunk: ChunkId,
    ) -> Result<bool, StoreError> {
        self.put_in_place(state, chunk)?;
        if state.pending.is_empty() {
            return Ok(true);
        }
        // Came since the chunk was settled.
        if let Some(bulk) = &state.bulk {
            let (file, up_to) = (Arc::clone(&bulk.file), bulk.last);
            file.sync().map_err(|err| self.fate.fatal("sync a chunk", &err))?;
            if state.name_unsynced {
                let synced = self.disk.sync_dir(&chunk_dir(chunk));
                synced.map_err(|err| self.fate.fatal("sync a directory", &err))?;
            }
            let mark = self.append(chunk, state, Event::DataSynced { up_to }, &[])?;
            state.mark = Some((up_to, mark));
        }
        let lsn = state.held(chunk)?.lsn;
        self.journal.wait_durable(lsn)?;
        self.put_in_place(state, chunk)?;
        Ok(state.pending.is_empty())
    }

    fn slot_written(&self, cell: &Cell, number: u64) {
        let mut state = cell.write();
        // None: the file was replaced or removed meanwhile.
        let Some(Snapshot { lsn, first_after, floor }) = state.snapshot.take() else { return };
        state.slot_number = number;
        state.floor = floor;
        state.name_unsynced = false;
        self.bulk_settled(&mut state, cell.chunk, lsn);
        let mut unslotted = lock(&self.unslotted);
        match first_after {
            Some(first) => unslotted.insert(cell.chunk, first),
            None => unslotted.remove(&cell.chunk),
        };
    }
}
