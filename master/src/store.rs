//! The metadata state on disk: `dfs-core`'s records in one redb table.
//!
//! A batch (the commands of one log entry) changes records in memory only: the log is durable, and the state is a
//! cache of it. Every few megabytes of changes go to the file in one synced transaction that also records what was
//! applied, so the file never holds half a batch; that bounds what a start has to replay. Batches go on meanwhile. A
//! file that cannot be read is put aside by the caller and made anew from snapshot and log.
//!
//! Nothing is believed that the disk changed: opening reads the whole file once and compares redb's checksums of its
//! pages; each record has one of its own ([`seal`]), compared whenever it is read, and no snapshot is made of a file
//! that is not what was written.
//!
//! Readers see the last finished batch, whole, for as long as they keep their view; old pages are kept that long.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use dfs_core::meta::MetaStore;
use dfs_proto::codec::{DecodeError, Reader, Wire};
use dfs_service::page::Page;
use dfs_service::panics::contained;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition, TableError,
};

use crate::end::end_if_full;
use batch::OpenBatch;
pub use read_view::ReadView;
use recent::Recent;
use seal::{Totals, seal, unseal};

mod batch;
mod image;
mod merged;
mod read_view;
mod recent;
mod seal;

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
const FORMAT: u32 = 2;

/// Bytes changed in memory that are written to the file; a batch waits when there are twice as many.
const CHECKPOINT_BYTES: u64 = 8 << 20;
/// What a changed record costs beyond itself: in memory, and its share of the tree's pages.
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
    /// As it is kept, sealed, beside the records with these totals.
    fn encode(&self, totals: Totals) -> Vec<u8> {
        let mut out = Vec::with_capacity(48 + self.group_state.len());
        FORMAT.put(&mut out);
        self.term.put(&mut out);
        self.index.put(&mut out);
        self.group_state.put(&mut out);
        totals.put(&mut out);
        let mut sealed = Vec::new();
        seal(APPLIED_KEY, &out, &mut sealed);
        sealed
    }

    fn decode(sealed: &[u8]) -> Result<(Self, Totals), StoreError> {
        // Before anything else: another program's record may have no checksum, or another one.
        let format = u32::get(&mut Reader::new(sealed)).unwrap_or(0);
        if format != FORMAT {
            return Err(StoreError::Damaged(format!("format {format} is not known here")));
        }
        let bytes = unseal(APPLIED_KEY, sealed)
            .map_err(|broken| StoreError::Damaged(format!("what was applied: {broken}")))?;
        let mut input = Reader::new(bytes);
        let damaged = |error: DecodeError| {
            StoreError::Damaged(format!("record of the last applied entry: {error}"))
        };
        u32::get(&mut input).map_err(damaged)?;
        let term = u64::get(&mut input).map_err(damaged)?;
        let index = u64::get(&mut input).map_err(damaged)?;
        let group_state = Vec::get(&mut input).map_err(damaged)?;
        let totals = Totals::get(&mut input).map_err(damaged)?;
        Ok((Self { term, index, group_state }, totals))
    }
}

/// Why the store is not open.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the metadata store is open in another process")]
    InUse,
    /// The file is not a store, or not a whole one, or not what was written: put it aside, replay snapshot and log.
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
    shared: Arc<Shared>,
    /// Writes to the file while batches go on; without it, a batch does so itself.
    flusher: Option<JoinHandle<()>>,
    checkpoint_bytes: u64,
}

/// Writes the state of one moment, while applying goes on.
pub type StateWriter = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

#[derive(Debug)]
struct Shared {
    /// The master's, if it is one of this machine.
    dir: Option<PathBuf>,
    database: Database,
    current: RwLock<ReadView>,
    written: Mutex<Written>,
    /// Told when a flush is wanted, when it is done, and when the store closes.
    turned: Condvar,
}

/// What the writing threads know.
#[derive(Debug, Default)]
struct Written {
    applied: Option<Applied>,
    /// Index of the last applied entry that survives power loss.
    durable_index: Option<u64>,
    /// Bytes changed since the last flush began.
    dirty_bytes: u64,
    flushing: Option<Flush>,
    closing: bool,
    /// The flusher ended by a panic.
    failed: bool,
}

/// What goes to the file in one transaction.
#[derive(Clone, Debug)]
struct Flush {
    recent: Arc<Recent>,
    applied: Option<Applied>,
}

impl RedbStore {
    /// Opens the store in file `path`, after reading all of it once; makes an empty one if there is no such file.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let dir = path.parent().map(Path::to_owned);
        let mut store = Self::from_database(dir, |builder| builder.create(path))?;
        let shared = Arc::clone(&store.shared);
        let flusher = std::thread::Builder::new().name("store".to_owned());
        store.flusher = Some(flusher.spawn(move || shared.flush_until_closed())?);
        Ok(store)
    }

    /// Opens the store in `backend`: tests lose power there. Batches write to it themselves.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        Self::from_database(None, |builder| builder.create_with_backend(backend))
    }

    /// Sets after how many changed bytes the file is written.
    #[must_use]
    pub fn checkpoint_every(mut self, bytes: u64) -> Self {
        self.checkpoint_bytes = bytes;
        self
    }

    fn from_database(
        dir: Option<PathBuf>,
        create: impl FnOnce(&mut Builder) -> Result<Database, DatabaseError>,
    ) -> Result<Self, StoreError> {
        let database = checked(|| create(Builder::new().set_cache_size(CACHE_BYTES)))?;
        let table = table_of(&database)?;
        let applied = match &table {
            None => None,
            Some(table) => {
                let sealed = table.get(APPLIED_KEY).map_err(redb::Error::from)?;
                // It is written with the first record and never deleted.
                let missing = || StoreError::Damaged("what was applied is not recorded".to_owned());
                Some(Applied::decode(sealed.ok_or_else(missing)?.value())?.0)
            }
        };
        let durable_index = applied.as_ref().map(|applied| applied.index);
        let shared = Shared {
            dir,
            database,
            current: RwLock::new(ReadView { table: table.map(Arc::new), ..ReadView::default() }),
            written: Mutex::new(Written { applied, durable_index, ..Written::default() }),
            turned: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared), flusher: None, checkpoint_bytes: CHECKPOINT_BYTES })
    }

    /// The last entry whose effects are here; `None` for an empty store.
    #[must_use]
    pub fn applied(&self) -> Option<Applied> {
        self.shared.written().applied.clone()
    }

    /// Index of the last entry whose effects are here even after a loss of power.
    #[must_use]
    pub fn durable_index(&self) -> Option<u64> {
        self.shared.written().durable_index
    }

    /// Applies one log entry: whatever `change` does, and that `applied` is done, at once. Readers see all of it from
    /// the return on. A disk that fails ends the process: state and log would part.
    pub fn batch<R>(&self, applied: &Applied, change: impl FnOnce(&mut dyn MetaStore) -> R) -> R {
        let mut written = self.shared.written();
        let mut batch = OpenBatch::new(self.reader());
        let result = change(&mut batch);
        let (view, changed_bytes) = batch.finish();
        self.shared.show(view);
        written.applied = Some(applied.clone());
        written.dirty_bytes += changed_bytes;
        if self.checkpoint_bytes <= written.dirty_bytes {
            if self.flusher.is_none() {
                self.shared.flush(written);
            } else if written.flushing.is_none() {
                self.shared.begin_flush(&mut written);
            } else if self.checkpoint_bytes.saturating_mul(2) <= written.dirty_bytes {
                let mut written = self.shared.wait_for_flush(written);
                self.shared.begin_flush(&mut written);
            }
        }
        result
    }

    /// Makes everything applied so far durable.
    pub fn checkpoint(&self) {
        let written = self.shared.written();
        self.shared.flush(written);
    }

    /// The state after the last finished batch. Cheap; keep it no longer than one request.
    #[must_use]
    pub fn reader(&self) -> ReadView {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fixes the present state and returns what writes it: every record in key order, in checksummed blocks. The same
    /// state gives the same bytes. What was applied is not among them.
    ///
    /// # Errors
    /// None now; what writes may fail, with `InvalidData` if the file is not what was written.
    pub fn snapshot(&self) -> io::Result<StateWriter> {
        let view = self.reader();
        Ok(Box::new(move |out| image::write(&view, out)))
    }

    /// Replaces everything by what [`Self::snapshot`] wrote, durably and at once or not at all.
    ///
    /// # Errors
    /// `InvalidData` if that is not what `from` gives; the state is then as it was.
    pub fn install(&self, applied: &Applied, from: &mut dyn io::Read) -> io::Result<()> {
        let shared = &self.shared;
        let mut written = shared.wait_for_flush(shared.written());
        let transaction = shared.begin().map_err(io::Error::other)?;
        transaction.delete_table(TABLE).map_err(io::Error::other)?;
        {
            let mut table = transaction.open_table(TABLE).map_err(io::Error::other)?;
            let (mut totals, mut sealed) = (Totals::default(), Vec::new());
            image::read(from, |key, value| {
                seal(key, value, &mut sealed);
                totals.add(&sealed);
                table.insert(key, sealed.as_slice()).map(|_| ()).map_err(io::Error::other)
            })?;
            let applied = applied.encode(totals);
            table.insert(APPLIED_KEY, applied.as_slice()).map_err(io::Error::other)?;
        }
        transaction.commit().map_err(io::Error::other)?;
        written.applied = Some(applied.clone());
        written.durable_index = Some(applied.index);
        written.dirty_bytes = 0;
        let batch = self.reader().batch + 1;
        shared.show(ReadView { batch, table: shared.table(), ..ReadView::default() });
        Ok(())
    }
}

impl Drop for RedbStore {
    /// A flush that has begun is finished.
    fn drop(&mut self) {
        self.shared.written().closing = true;
        self.shared.turned.notify_all();
        if let Some(flusher) = self.flusher.take() {
            // Its panic was printed where it happened.
            let _ended = flusher.join();
        }
    }
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, view: ReadView) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn table(&self) -> Option<Arc<Table>> {
        fatal(table_of(&self.database), "read the metadata store").map(Arc::new)
    }

    fn begin(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // Saves what redb needs to open the file without walking it.
        transaction.set_quick_repair(true);
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction)
    }

    /// From here on, batches change an empty memory.
    fn begin_flush(&self, written: &mut Written) -> Flush {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.flushing = std::mem::take(&mut current.recent);
        let flush =
            Flush { recent: Arc::clone(&current.flushing), applied: written.applied.clone() };
        written.flushing = Some(flush.clone());
        written.dirty_bytes = 0;
        self.turned.notify_all();
        flush
    }

    fn write(&self, flush: &Flush) {
        let written = self.begin().and_then(|transaction| {
            {
                let mut table = transaction.open_table(TABLE)?;
                let before = table.get(APPLIED_KEY)?.map(|before| Applied::decode(before.value()));
                let before = before.map(|before| fatal(before, "read what was applied"));
                let mut totals = before.map_or_else(Totals::default, |(_, totals)| totals);
                let mut sealed = Vec::new();
                for (key, value) in flush.recent.newest() {
                    let replaced = match value {
                        Some(value) => {
                            seal(&key, &value, &mut sealed);
                            totals.add(&sealed);
                            table.insert(key.as_slice(), sealed.as_slice())?
                        }
                        None => table.remove(key.as_slice())?,
                    };
                    if let Some(replaced) = replaced {
                        totals.remove(replaced.value());
                    }
                }
                if let Some(applied) = &flush.applied {
                    table.insert(APPLIED_KEY, applied.encode(totals).as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        });
        if let (Some(dir), Err(redb::Error::Io(error))) = (&self.dir, &written) {
            end_if_full(dir, "write the metadata store", error);
        }
        fatal(written, "write the metadata store");
    }

    fn end_flush(&self, written: &mut Written, flush: &Flush) {
        let table = self.table();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.table = table;
        current.flushing = Arc::default();
        written.durable_index = flush.applied.as_ref().map(|applied| applied.index);
        written.flushing = None;
        self.turned.notify_all();
    }

    /// On the caller's thread, with nobody applying meanwhile.
    fn flush(&self, written: MutexGuard<'_, Written>) {
        let mut written = self.wait_for_flush(written);
        let flush = self.begin_flush(&mut written);
        self.write(&flush);
        self.end_flush(&mut written, &flush);
    }

    fn wait_for_flush<'a>(&self, written: MutexGuard<'a, Written>) -> MutexGuard<'a, Written> {
        let waiting = |written: &mut Written| written.flushing.is_some() && !written.failed;
        let written =
            self.turned.wait_while(written, waiting).unwrap_or_else(PoisonError::into_inner);
        assert!(!written.failed, "the metadata store could not be written");
        written
    }

    fn flush_until_closed(&self) {
        let _failing = Failing(self);
        loop {
            let idle = |written: &mut Written| written.flushing.is_none() && !written.closing;
            let written = self.turned.wait_while(self.written(), idle);
            let written = written.unwrap_or_else(PoisonError::into_inner);
            let Some(flush) = written.flushing.clone() else { return };
            drop(written);
            self.write(&flush);
            self.end_flush(&mut self.written(), &flush);
        }
    }
}

/// Tells those who wait for the flusher that it is gone.
struct Failing<'a>(&'a Shared);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.written().failed = std::thread::panicking();
        self.0.turned.notify_all();
    }
}

/// Opens a database and compares every page of it with its checksum.
fn checked(
    create: impl FnOnce() -> Result<Database, DatabaseError>,
) -> Result<Database, StoreError> {
    // redb panics at some damage.
    let panicked = |message| StoreError::Damaged(format!("reading it panics: {message}"));
    let mut database = contained(create).map_err(panicked)?.map_err(redb::Error::from)?;
    match contained(|| database.check_integrity()) {
        // Mended: it is whole, and what it holds is some state that was written, whichever.
        Ok(Ok(_whole_or_mended)) => Ok(database),
        Ok(Err(error)) => Err(redb::Error::from(error).into()),
        Err(message) => {
            // Closing it might panic again, out of reach.
            let _never_closed = std::mem::ManuallyDrop::new(database);
            Err(panicked(message))
        }
    }
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
            tracing::error!(%error, see = %Page::DamagedLog, "{doing}: ending the process");
            panic!("{doing}: {error}");
        }
    }
}
