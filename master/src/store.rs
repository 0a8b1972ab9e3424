//! The metadata state on disk: `dfs-core`'s records in one redb table.
//!
//! A batch (the commands of one log entry) is one redb transaction that also records what was applied, so the file
//! never holds half of one. Most transactions are not synced: the log is, and the state is a cache of it. Every
//! few megabytes one is, and that bounds what a start has to replay. A file that cannot be read is deleted by the
//! caller and made anew from snapshot and log.
//!
//! Readers see the last finished batch, whole, for as long as they keep their view; old pages are kept that long.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dfs_core::meta::MetaStore;
use dfs_proto::codec::{DecodeError, Reader, Wire};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, StorageBackend,
    TableDefinition, TableError,
};

use batch::OpenBatch;
pub use read_view::ReadView;

mod batch;
mod image;
mod read_view;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

const TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("records");
type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Where [`Applied`] is kept. Tags of records begin at 1.
const APPLIED_KEY: &[u8] = &[0];
/// Raised when older code must not read the file.
const FORMAT: u32 = 1;

/// Bytes changed since the last synced transaction that make the next one synced.
const CHECKPOINT_BYTES: u64 = 8 << 20;
/// What a changed record costs beyond itself: its share of the tree's pages.
const RECORD_OVERHEAD_BYTES: u64 = 128;
/// Memory for pages, read and not yet written. A setting when somebody has a working set beyond it.
const CACHE_BYTES: usize = 96 << 20;

/// The last log entry whose effects the store holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Raft term of the entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// Of the group: given back as it is.
    pub group_state: Vec<u8>,
}

impl Applied {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.group_state.len());
        FORMAT.put(&mut out);
        self.term.put(&mut out);
        self.index.put(&mut out);
        self.group_state.put(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut input = Reader::new(bytes);
        let damaged = |error: DecodeError| {
            StoreError::Damaged(format!("record of the last applied entry: {error}"))
        };
        let format = u32::get(&mut input).map_err(damaged)?;
        if format != FORMAT {
            return Err(StoreError::Damaged(format!("format {format} is not known here")));
        }
        let term = u64::get(&mut input).map_err(damaged)?;
        let index = u64::get(&mut input).map_err(damaged)?;
        let group_state = Vec::get(&mut input).map_err(damaged)?;
        Ok(Self { term, index, group_state })
    }
}

/// Why the store is not open.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the metadata store is open in another process")]
    InUse,
    /// The file is not a store, or not a whole one: delete it, replay snapshot and log.
    #[error("the metadata store cannot be read: {0}")]
    Damaged(String),
    /// The operating system refused.
    #[error("open the metadata store")]
    Io(#[from] io::Error),
}

impl From<redb::Error> for StoreError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "redb's list is open; what it cannot read is made anew"
    )]
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            // What redb answers to a file that is too short or not its own.
            redb::Error::Io(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Io(error)
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// The state, for one thread that changes it and many that read.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    written: Mutex<Written>,
    checkpoint_bytes: u64,
}

/// Writes the state of one moment, while applying goes on.
pub type StateWriter = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// What the writing thread knows.
#[derive(Debug)]
struct Written {
    applied: Option<Applied>,
    /// Index of the last applied entry that survives power loss.
    durable_index: Option<u64>,
    /// Bytes changed by transactions that are not synced.
    dirty_bytes: u64,
}

impl Written {
    fn synced(&mut self) {
        self.durable_index = self.applied.as_ref().map(|applied| applied.index);
        self.dirty_bytes = 0;
    }
}

impl RedbStore {
    /// Opens the store in file `path`; makes an empty one if there is no such file.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::from_database(Builder::new().set_cache_size(CACHE_BYTES).create(path))
    }

    /// Opens the store in `backend`: tests lose power there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        Self::from_database(Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend))
    }

    /// Sets after how many changed bytes a batch is synced.
    #[must_use]
    pub fn checkpoint_every(mut self, bytes: u64) -> Self {
        self.checkpoint_bytes = bytes;
        self
    }

    fn from_database(database: Result<Database, DatabaseError>) -> Result<Self, StoreError> {
        let database = database.map_err(redb::Error::from)?;
        let applied = match table_of(&database)? {
            None => None,
            Some(table) => {
                let bytes = table.get(APPLIED_KEY).map_err(redb::Error::from)?;
                bytes.map(|bytes| Applied::decode(bytes.value())).transpose()?
            }
        };
        let durable_index = applied.as_ref().map(|applied| applied.index);
        let written = Mutex::new(Written { applied, durable_index, dirty_bytes: 0 });
        Ok(Self { database, written, checkpoint_bytes: CHECKPOINT_BYTES })
    }

    /// The last entry whose effects are here; `None` for an empty store.
    #[must_use]
    pub fn applied(&self) -> Option<Applied> {
        self.written().applied.clone()
    }

    /// Index of the last entry whose effects are here even after a loss of power.
    #[must_use]
    pub fn durable_index(&self) -> Option<u64> {
        self.written().durable_index
    }

    /// Applies one log entry: whatever `change` does, and that `applied` is done, in one transaction. Readers see all
    /// of it from the return on. A disk that fails ends the process: state and log would part.
    pub fn batch<R>(&self, applied: &Applied, change: impl FnOnce(&mut dyn MetaStore) -> R) -> R {
        let mut written = self.written();
        let result = self.try_batch(&mut written, applied, change);
        fatal(result, "apply to the metadata store")
    }

    /// Makes everything applied so far durable.
    pub fn checkpoint(&self) {
        let mut written = self.written();
        let result = self.begin(Durability::Immediate).and_then(|transaction| {
            // Something must change: redb may skip an empty transaction.
            if let Some(applied) = &written.applied {
                let mut table = transaction.open_table(TABLE)?;
                table.insert(APPLIED_KEY, applied.encode().as_slice())?;
            }
            Ok(transaction.commit()?)
        });
        fatal(result, "checkpoint the metadata store");
        written.synced();
    }

    /// The state after the last finished batch. Cheap; keep it no longer than one request.
    #[must_use]
    pub fn reader(&self) -> ReadView {
        ReadView::new(fatal(table_of(&self.database), "read the metadata store"))
    }

    /// Fixes the present state and returns what writes it: every record in key order, in checksummed blocks. The same
    /// state gives the same bytes. What was applied is not among them.
    ///
    /// # Errors
    /// None now; what writes may fail.
    pub fn snapshot(&self) -> io::Result<StateWriter> {
        let view = self.reader();
        Ok(Box::new(move |out| image::write(&view, out)))
    }

    /// Replaces everything by what [`Self::snapshot`] wrote, durably and at once or not at all.
    ///
    /// # Errors
    /// `InvalidData` if that is not what `from` gives; the state is then as it was.
    pub fn install(&self, applied: &Applied, from: &mut dyn io::Read) -> io::Result<()> {
        let mut written = self.written();
        let transaction = self.begin(Durability::Immediate).map_err(io::Error::other)?;
        transaction.delete_table(TABLE).map_err(io::Error::other)?;
        {
            let mut table = transaction.open_table(TABLE).map_err(io::Error::other)?;
            image::read(from, |key, value| {
                table.insert(key, value).map(|_| ()).map_err(io::Error::other)
            })?;
            table.insert(APPLIED_KEY, applied.encode().as_slice()).map_err(io::Error::other)?;
        }
        transaction.commit().map_err(io::Error::other)?;
        written.applied = Some(applied.clone());
        written.synced();
        Ok(())
    }

    fn try_batch<R>(
        &self,
        written: &mut Written,
        applied: &Applied,
        change: impl FnOnce(&mut dyn MetaStore) -> R,
    ) -> Result<R, redb::Error> {
        let mut transaction = self.begin(Durability::None)?;
        let result = {
            let mut batch = OpenBatch::new(transaction.open_table(TABLE)?);
            let result = change(&mut batch);
            let (mut table, changed_bytes) = batch.finish()?;
            table.insert(APPLIED_KEY, applied.encode().as_slice())?;
            written.dirty_bytes += changed_bytes;
            result
        };
        let checkpoint = self.checkpoint_bytes <= written.dirty_bytes;
        if checkpoint {
            set_durability(&mut transaction, Durability::Immediate)?;
        }
        transaction.commit()?;
        written.applied = Some(applied.clone());
        if checkpoint {
            written.synced();
        }
        Ok(result)
    }

    fn begin(&self, durability: Durability) -> Result<redb::WriteTransaction, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        set_durability(&mut transaction, durability)?;
        Ok(transaction)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A synced transaction also saves what redb needs to open the file without walking it.
fn set_durability(
    transaction: &mut redb::WriteTransaction,
    durability: Durability,
) -> Result<(), redb::Error> {
    transaction.set_quick_repair(matches!(durability, Durability::Immediate));
    Ok(transaction.set_durability(durability)?)
}

/// The table as of the last finished batch; `None` before the first.
fn table_of(database: &Database) -> Result<Option<Table>, redb::Error> {
    match database.begin_read()?.open_table(TABLE) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Memory and log have gone on where the store could not: only a restart brings them together again.
fn fatal<T, E: std::fmt::Display>(result: Result<T, E>, doing: &'static str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(%error, "{doing}: ending the process");
            panic!("{doing}: {error}");
        }
    }
}
