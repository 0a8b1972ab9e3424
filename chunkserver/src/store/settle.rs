//! From applied to stable to in place: syncs, and what may happen only after them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_journal::Event;
use dfs_service::page::Page;

use super::engine::{Cell, Engine, State, is_full};
use super::error::StoreError;
use super::files::chunk_dir;
use super::journal::lock;
use super::replica::Effect;

impl Engine {
    /// Syncs the files with bulk data of these chunks, then the journal; puts operations in place. Returns what is
    /// stable of each.
    pub(super) fn settle_cells(
        &self,
        cells: &[Arc<Cell>],
    ) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let mut stable = Vec::with_capacity(cells.len());
        let mut lsn = 0;
        for cell in cells {
            stable.push(self.sync_bulk(cell).map(|(seq, up_to)| {
                lsn = lsn.max(up_to);
                seq
            }));
        }
        self.journal.wait_durable(lsn)?;
        Ok(stable)
    }

    pub(super) fn sync_blocking(&self, chunk: ChunkId) -> Result<u64, StoreError> {
        let cell = self.cell(chunk)?;
        if cell.read().held(chunk)?.not_current {
            return Err(StoreError::NotCurrent { chunk });
        }
        let mut stable = self.settle_cells(&[Arc::clone(&cell)])?;
        self.put_in_place(&mut cell.write(), chunk)?;
        stable.pop().unwrap_or(Err(StoreError::NotFound { chunk }))
    }

    /// Settles every chunk that has something to be put in place or synced.
    pub(super) fn settle_all(&self) -> Result<(), StoreError> {
        let mut chunks = lock(&self.pending).clone();
        chunks.extend(lock(&self.bulk).iter());
        let cells: Vec<_> = chunks.iter().filter_map(|chunk| self.cell(*chunk).ok()).collect();
        self.settle_cells(&cells)?;
        for cell in &cells {
            self.put_in_place(&mut cell.write(), cell.chunk)?;
        }
        Ok(())
    }

    /// Puts in place what the journal has on disk, of all chunks.
    pub(super) fn place_all(&self) -> Result<(), StoreError> {
        let chunks = lock(&self.pending).clone();
        for cell in chunks.iter().filter_map(|chunk| self.cell(*chunk).ok()) {
            self.put_in_place(&mut cell.write(), cell.chunk)?;
        }
        Ok(())
    }

    /// Syncs bulk data; returns the sequence number and record that are stable once the journal is synced up to it.
    fn sync_bulk(&self, cell: &Cell) -> Result<(u64, u64), StoreError> {
        let chunk = cell.chunk;
        let (seq, lsn, created, file, up_to, name) = {
            let state = cell.read();
            let replica = state.held(chunk)?;
            let (seq, lsn) = (replica.position.seq, replica.lsn);
            let marked = state.mark.map_or(0, |(up_to, _)| up_to);
            match &state.bulk {
                Some(bulk) if marked < bulk.last => {
                    let file = Arc::clone(&bulk.file);
                    (seq, lsn, replica.created_lsn, file, bulk.last, state.name_unsynced)
                }
                _ => return Ok((seq, lsn)),
            }
        };
        // Without the lock: others go on writing.
        file.sync().map_err(|err| self.fate.fatal("sync a chunk", &err))?;
        if name {
            let synced = self.disk.sync_dir(&chunk_dir(chunk));
            synced.map_err(|err| self.fate.fatal("sync a directory", &err))?;
        }
        let mut state = cell.write();
        if state.held(chunk)?.created_lsn != created {
            // Replaced by a copy meanwhile, which was synced.
            return Ok((seq, lsn));
        }
        state.name_unsynced &= !name;
        let mark = self.append(chunk, &mut state, Event::DataSynced { up_to }, &[])?;
        state.mark = Some((up_to, mark));
        Ok((seq, mark))
    }

    /// Puts in place what the journal has on disk.
    pub(super) fn put_in_place(&self, state: &mut State, chunk: ChunkId) -> Result<(), StoreError> {
        let synced = self.journal.synced_lsn();
        if let Some((up_to, mark)) = state.mark
            && mark <= synced
        {
            state.mark = None;
            self.bulk_settled(state, chunk, up_to);
        }
        if state.pending.is_empty() {
            lock(&self.pending).remove(&chunk);
            return Ok(());
        }
        let file = self.file_to_write(state, chunk)?;
        let limit = state.bulk.as_ref().map_or(u64::MAX, |bulk| bulk.first);
        while let Some((lsn, effect)) = state.pending.front() {
            if synced < *lsn || limit < *lsn {
                return Ok(());
            }
            if let Err(err) = effect.put(&*file) {
                if !is_full(&err) {
                    return Err(self.fate.fatal("put an operation in place", &err).into());
                }
                lock(&self.stuck).insert(chunk);
                tracing::warn!(?chunk, %err, see = %Page::FullDisk, "operation waits in the journal for space");
                return Ok(());
            }
            if let Effect::Zero { offset, .. } = effect {
                state.dense_to = state.dense_to.map(|dense_to| dense_to.min(*offset));
            }
            self.pending_bytes.fetch_sub(effect.bytes(), Ordering::Relaxed);
            state.pending.pop_front();
        }
        lock(&self.stuck).remove(&chunk);
        lock(&self.pending).remove(&chunk);
        Ok(())
    }

    /// Bulk operations up to record `up_to` are on disk.
    pub(super) fn bulk_settled(&self, state: &mut State, chunk: ChunkId, up_to: u64) {
        match &mut state.bulk {
            Some(bulk) if bulk.last <= up_to => {
                state.bulk = None;
                lock(&self.bulk).remove(&chunk);
            }
            Some(bulk) => bulk.first = bulk.first.max(up_to + 1),
            None => {}
        }
    }

    /// Drops what was to be put in a file that is no longer the chunk's.
    pub(super) fn drop_pending(&self, state: &mut State, chunk: ChunkId) {
        let bytes = state.pending.iter().map(|(_, effect)| effect.bytes()).sum();
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
        state.pending.clear();
        state.bulk = None;
        state.mark = None;
        state.snapshot = None;
        lock(&self.pending).remove(&chunk);
        lock(&self.bulk).remove(&chunk);
        lock(&self.stuck).remove(&chunk);
    }
}
