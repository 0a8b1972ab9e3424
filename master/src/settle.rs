//! Sizes of files whose last writer ended without its last word (DECISIONS 7): asked of the chunks, made stable, logged,
//! and the `writing` mark cleared.
//!
//! Order: nobody writes the file → its chunks beyond the logged size synced and their lengths asked → the size logged → if
//! still nobody writes, the mark cleared. What fails stays on the list.

use std::sync::Arc;

use dfs_core::command::Change;
use dfs_core::ids::{ChunkId, InodeNo};
use dfs_core::meta::{Key, MetaStore, Record};
use dfs_core::namespace::Body;
use dfs_core::time::WallTime;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply};

use crate::state::{Master, accepted, lock};
use crate::truncate::call;

/// How long a chunk may take to get a configuration that can be synced.
const LAYOUT_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Begins a round on a thread of its own, unless one runs or there is nothing to do.
pub fn begin(master: &Arc<Master>) {
    if master.is_warming() {
        return;
    }
    let inodes = lock(&master.clients).begin_settling();
    if inodes.is_empty() {
        return;
    }
    let settling = Arc::clone(master);
    let spawned = std::thread::Builder::new().name("settle".to_owned()).spawn(move || {
        for ino in inodes {
            match settling.settle(ino) {
                Ok(()) => lock(&settling.clients).settled(ino),
                Err(reason) => tracing::debug!(ino = ino.0, reason, "size not settled yet"),
            }
        }
        lock(&settling.clients).end_settling();
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to settle sizes");
        lock(&master.clients).end_settling();
    }
}

impl Master {
    fn settle(&self, ino: InodeNo) -> Result<(), String> {
        let Ok(inode) = self.inode(ino) else { return Ok(()) };
        if !matches!(inode.body, Body::Chunks { writing: true, .. }) {
            return Ok(());
        }
        let size = self.stable_end(ino, inode.size, inode.layout.chunk_size.max(1))?;
        let commit = |done_writing| Change::CommitSize {
            ino,
            size,
            cuts_seen: inode.cuts,
            // Somewhere behind the last commit it was written: who compares times must see that it is not what it was.
            mtime: Some(WallTime(dfs_service::clock::wall_nanos())),
            done_writing,
            kill_priv: false,
        };
        let log = |change| {
            let outcome = self.propose(None, change).map_err(|error| error.to_string())?;
            accepted(outcome).map(drop).map_err(|error| error.to_string())
        };
        log(commit(false))?;
        if !lock(&self.clients).begin_clearing(ino) {
            return Err("somebody writes it".to_owned());
        }
        let cleared = log(commit(true));
        lock(&self.clients).end_clearing(ino);
        if cleared.is_ok() && inode.size < size {
            tracing::info!(ino = ino.0, size, "size of a file whose writer ended");
        }
        cleared
    }

    /// Where the bytes of a file end, all of them stable; at least `size`.
    fn stable_end(&self, ino: InodeNo, size: u64, chunk_size: u64) -> Result<u64, String> {
        let found = self.reader().range(
            &Key::FileChunk(ino, size / chunk_size),
            &Key::FileChunk(InodeNo(ino.0 + 1), 0),
            usize::MAX,
        );
        let mut end = size;
        for (key, record) in found {
            let (Key::FileChunk(_, index), Record::FileChunk(chunk)) = (key, record) else {
                continue;
            };
            let len = self.stable_len(chunk)?;
            if 0 < len {
                end = end.max(index * chunk_size + len);
            }
        }
        Ok(end)
    }

    fn stable_len(&self, chunk: ChunkId) -> Result<u64, String> {
        let layout =
            self.existing_layout_to_write(chunk, LAYOUT_WAIT).map_err(|error| error.to_string())?;
        let mut primary = self.call_primary(&layout)?;
        let stat = DataCall::Stat { chunk, version: layout.version };
        let len = match call(&mut primary, &stat) {
            Ok(DataReply::Stat { len, .. }) => len,
            Ok(other) => return Err(format!("stat was answered {other:?}")),
            // Never written.
            Err(reason) if reason == DataFailure::NoReplica.to_string() => return Ok(0),
            Err(reason) => return Err(reason),
        };
        let synced = call(&mut primary, &DataCall::Sync { layout: layout.clone() });
        if synced.is_err() {
            // A primary that started again, or a member that is gone: the next configuration is stable from its beginning.
            self.reconfigure(chunk, None)?;
        }
        synced.map(|_| len)
    }
}
