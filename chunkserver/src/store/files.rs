//! Names of chunk files, made from ids only, and a bounded number of open ones.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use dfs_core::ids::ChunkId;
pub(super) use dfs_proto::chunk_file::{chunk_dir, chunk_path};

use super::disk::{ChunkDisk, DiskFile, OpenMode};
use super::journal::lock;

pub(super) const QUARANTINE_DIR: &str = "quarantine";
pub(super) const ADOPT_SUFFIX: &str = ".adopt";
/// Half of the usual soft limit of open files, for connections need the other half.
const OPEN_FILES_MAX: usize = 512;

/// The directories of chunk files that there are: each is made for the first file in it.
pub(super) fn chunk_dirs(disk: &dyn ChunkDisk) -> io::Result<Vec<String>> {
    let is_ours = |dir: &String| dir.len() == 2 && u8::from_str_radix(dir, 16).is_ok();
    Ok(disk.dirs()?.into_iter().filter(is_ours).collect())
}

/// The chunk whose file's name this is.
pub(super) fn chunk_of_name(dir: &str, name: &str) -> Option<ChunkId> {
    let chunk = ChunkId(u64::from_str_radix(name, 16).ok()?);
    (name.len() == 16 && chunk_path(chunk) == format!("{dir}/{name}")).then_some(chunk)
}

#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    files: HashMap<ChunkId, (Arc<dyn DiskFile>, u64)>,
    clock: u64,
}

impl OpenFiles {
    pub(super) fn get(
        &self,
        disk: &dyn ChunkDisk,
        chunk: ChunkId,
    ) -> io::Result<Arc<dyn DiskFile>> {
        {
            let mut held = lock(&self.held);
            held.clock += 1;
            let now = held.clock;
            if let Some((file, used)) = held.files.get_mut(&chunk) {
                *used = now;
                return Ok(Arc::clone(file));
            }
        }
        let file = disk.open(&chunk_path(chunk), OpenMode::Existing)?;
        self.put(chunk, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn put(&self, chunk: ChunkId, file: Arc<dyn DiskFile>) {
        let mut held = lock(&self.held);
        held.clock += 1;
        let now = held.clock;
        held.files.insert(chunk, (file, now));
        if OPEN_FILES_MAX < held.files.len() {
            // A sixteenth at a time, so that the search costs little per file.
            let mut ages: Vec<u64> = held.files.values().map(|(_, used)| *used).collect();
            let (_, &mut limit, _) = ages.select_nth_unstable(OPEN_FILES_MAX / 16);
            held.files.retain(|_, (_, used)| limit < *used);
        }
    }

    pub(super) fn remove(&self, chunk: ChunkId) {
        lock(&self.held).files.remove(&chunk);
    }
}
