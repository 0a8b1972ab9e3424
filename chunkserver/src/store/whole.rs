//! Whether a chunk's file says what the store knows, and how it is made to again while the store is open.
//!
//! Header and slots are read at a start only; until then memory knows better. So whatever is wrong with them, and with
//! the name, is mended by a new file: the old one's bytes as far as a descriptor still reaches them, the state from
//! memory, synced, and only then given the chunk's name.

use std::io;
use std::sync::Arc;

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_file::{ChunkHeader, DATA_AT, DiskLabel, HEADER_BYTES, Slot};
use dfs_proto::codec::DecodeError;

use super::disk::{DiskFile, OpenMode};
use super::engine::{Engine, State};
use super::error::StoreError;
use super::files::{ADOPT_SUFFIX, chunk_dir, chunk_path};
use super::journal::lock;
use super::open::{BadSlot, read_slot};
use super::replica::{Replica, index};

/// Bytes copied at once.
const PIECE: u64 = 1 << 20;

impl Engine {
    /// See `Store::check_file`.
    pub(super) fn check_file(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let replica = state.held(chunk)?;
        let path = chunk_path(chunk);
        let corrupt =
            |offset, what: String| StoreError::Corrupt { file: path.clone(), offset, what };
        // Anew: a descriptor that is still open would also read a file that was removed.
        let file = match self.disk.open(&path, OpenMode::Existing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(0, "the file is gone".to_owned()));
            }
            file => file?,
        };
        file.uncache(0, DATA_AT);
        let expected = self.header(chunk, replica).encode();
        let mut bytes = vec![0; expected.len()];
        file.read_at(0, &mut bytes)?;
        if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != expected[*at]) {
            return Err(corrupt(at as u64, self.header_problem(chunk, &bytes, at)));
        }
        match slot_problem(&state, chunk, &*file)? {
            Some((offset, what)) => Err(corrupt(offset, what)),
            None => Ok(()),
        }
    }

    fn header(&self, chunk: ChunkId, replica: &Replica) -> ChunkHeader {
        let DiskLabel { fs_id, disk_id, .. } = self.label;
        let Replica { spec, created_lsn, .. } = *replica;
        ChunkHeader { fs_id, disk_id, chunk, spec, created_lsn }
    }

    fn header_problem(&self, chunk: ChunkId, bytes: &[u8], at: usize) -> String {
        match ChunkHeader::decode(bytes) {
            Ok(header) if header.chunk != chunk || header.fs_id != self.label.fs_id => {
                "the file is of another chunk".to_owned()
            }
            Ok(_) if at < HEADER_BYTES => "the first copy of the header is damaged".to_owned(),
            Ok(_) => "the second copy of the header is damaged".to_owned(),
            Err(DecodeError::Tag { tag, .. }) => format!("the header is of format {tag}"),
            Err(_) => "both copies of the header are damaged".to_owned(),
        }
    }

    /// Gives the chunk a new file with all that the store knows. False: the bytes could not be reached any more, the
    /// replica is not current.
    ///
    /// Bytes are copied as they are: a block that does not have its checksum is as bad in the new file.
    pub(super) fn make_whole(&self, chunk: ChunkId) -> Result<bool, StoreError> {
        self.journal.admit()?;
        // No slot is written to the old file meanwhile.
        let _turn = lock(&self.checkpoint_turn);
        let cell = self.cell(chunk)?;
        for stable in self.settle_cells(&[Arc::clone(&cell)])? {
            stable?;
        }
        let mut state = cell.write();
        if !self.put_all_in_place(&mut state, chunk)? {
            return Err(self.write_error(io::ErrorKind::StorageFull.into(), 0));
        }
        let old = self.file_to_write(&mut state, chunk)?;
        let replica = state.held(chunk)?;
        let path = format!("{}.whole{ADOPT_SUFFIX}", chunk_path(chunk));
        let made = self.copy_of(chunk, replica, &*old, &path);
        let file = made.map_err(|err| {
            // What stays is removed at the next start.
            let _ = self.disk.remove(&path);
            self.write_error(err, replica.len)
        })?;
        file.sync().map_err(|err| self.fate.fatal("sync a chunk", &err))?;
        let (lsn, len, current) = (replica.lsn, replica.len, !replica.not_current);
        self.journal.wait_durable(lsn)?;
        self.disk.rename(&path, &chunk_path(chunk))?;
        self.files.put(chunk, file);
        let synced = self.disk.sync_dir(&chunk_dir(chunk));
        synced.map_err(|err| self.fate.fatal("sync a directory", &err))?;
        self.bulk_settled(&mut state, chunk, lsn);
        state.mark = None;
        state.name_unsynced = false;
        state.slot_number = 1;
        state.floor = len;
        state.dense_to = None;
        lock(&self.unslotted).remove(&chunk);
        Ok(current)
    }

    /// The whole file under another name, not synced.
    fn copy_of(
        &self,
        chunk: ChunkId,
        replica: &Replica,
        old: &dyn DiskFile,
        path: &str,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, OpenMode::New)?;
        let mut at = 0;
        while at < replica.len {
            let mut bytes = vec![0; index((replica.len - at).min(PIECE))];
            old.read_at(DATA_AT + at, &mut bytes)?;
            // Holes stay holes.
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_at(DATA_AT + at, &bytes)?;
            }
            at += PIECE;
        }
        // The first slot has no twin; see `open`.
        file.write_at(Slot::at(1), &replica.to_slot(chunk, 1).encode())?;
        file.write_at(0, &self.header(chunk, replica).encode())?;
        Ok(file)
    }
}

/// What the next start would find wrong with the slots, and where.
fn slot_problem(
    state: &State,
    chunk: ChunkId,
    file: &dyn DiskFile,
) -> Result<Option<(u64, String)>, StoreError> {
    let number = state.slot_number;
    // Without a slot the journal has everything; and one that is being written is neither old nor new.
    if number == 0 || state.snapshot.is_some() {
        return Ok(None);
    }
    let name = |number: u64| if number.is_multiple_of(2) { "slot A" } else { "slot B" };
    let damaged = |number| Some((Slot::at(number), format!("{} is damaged", name(number))));
    match read_slot(file, chunk, number)? {
        Ok(slot) if slot.number == number => {}
        Ok(_) => {
            return Ok(Some((Slot::at(number), format!("{} is of another time", name(number)))));
        }
        Err(_) => return Ok(damaged(number)),
    }
    let twin = read_slot(file, chunk, number - 1)?;
    let is_right = match &twin {
        Ok(slot) => slot.number < number,
        Err(BadSlot::Empty) => number == 1,
        Err(BadSlot::Garbage) => false,
    };
    Ok(if is_right { None } else { damaged(number - 1) })
}
