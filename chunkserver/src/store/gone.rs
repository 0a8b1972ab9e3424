//! Chunk files that somebody removed while the store is open.

use std::io;
use std::sync::Arc;

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_file::{ChunkHeader, DiskLabel};
use dfs_service::page::Page;

use super::disk::{DiskFile, OpenMode};
use super::engine::{Engine, State};
use super::error::StoreError;
use super::files::chunk_path;
use super::journal::lock;
use super::replica::Replica;

impl Engine {
    /// As [`Self::file`], to write to: one that is gone is made again.
    pub(super) fn file_to_write(
        &self,
        state: &mut State,
        chunk: ChunkId,
    ) -> Result<Arc<dyn DiskFile>, StoreError> {
        match self.files.get(&*self.disk, chunk) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => self.make_again(state, chunk),
            file => Ok(file?),
        }
    }

    /// Somebody removed the file, and no descriptor of it is left. The replica is not current any more: what it held comes
    /// from other members. Without a file its journal could never be let go, and all chunks here would wait for that.
    fn make_again(
        &self,
        state: &mut State,
        chunk: ChunkId,
    ) -> Result<Arc<dyn DiskFile>, StoreError> {
        tracing::error!(
            chunk = chunk.0,
            see = %Page::BadBlock,
            "the chunk's file is gone: other members have what it held"
        );
        let Replica { spec, created_lsn, .. } = *state.held(chunk)?;
        let file = self.disk.open(&chunk_path(chunk), OpenMode::New)?;
        let DiskLabel { fs_id, disk_id, .. } = self.label;
        let header = ChunkHeader { fs_id, disk_id, chunk, spec, created_lsn };
        file.write_at(0, &header.encode())?;
        self.files.put(chunk, Arc::clone(&file));
        self.drop_pending(state, chunk);
        state.name_unsynced = true;
        state.dense_to = Some(0);
        if let Some(replica) = &mut state.replica {
            replica.not_current = true;
        }
        lock(&self.made_again).insert(chunk);
        Ok(file)
    }

    pub(super) fn take_made_again(&self) -> Vec<ChunkId> {
        std::mem::take(&mut *lock(&self.made_again)).into_iter().collect()
    }
}
