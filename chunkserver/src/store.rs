//! Replicas on one disk: applied in order, checked on every read, never lost once stable.
//!
//! No tokio and no thread hop: calls block, and may be made from any thread. Each chunk has its own lock.
//!
//! Order of events for an operation:
//! 1. Its journal record is handed to the kernel (bulk data beyond the end goes to the chunk's file first). It is
//!    *applied*: a killed process loses nothing.
//! 2. The journal is synced, by whoever needs it first, for all that wait; before it, files with bulk data. It is
//!    *stable*.
//! 3. Only then its bytes go in place in the chunk's file; until then reads see them from memory. A power failure
//!    can so never leave unsynced bytes on top of stable ones.
//! 4. A checkpoint syncs the file, writes its state to the older of two slots and syncs again; when that is done for all
//!    chunks in a journal segment, the segment is used again.
//!
//! An error of a sync ends the process. Layouts are drawn in `dfs_proto::chunk_file` and `dfs_proto::chunk_journal`.

mod adopt;
mod checkpoint;
mod describe;
pub mod disk;
mod engine;
mod error;

pub mod faulty;
mod files;
mod gone;
mod journal;
mod open;
mod posix;
mod replay;
mod replica;
mod settle;
mod space;
mod sync;
mod whole;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId, FsId, ServerId};

pub use adopt::AdoptWriter;
pub use describe::{Description, ListedRecords};
pub use dfs_proto::chunk_file::{ChunkSpec, ClientEntry, ClientTable, Position};
pub use error::StoreError;
pub use journal::FatalHandler;
pub(crate) use journal::JOURNAL_DIR;
pub use open::OpenOptions;
pub use posix::PosixDisk;
pub use space::SpaceCredit;

use engine::Engine;

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub dir: PathBuf,
    /// `None`: whatever the label says; a new directory needs one.
    pub fs_id: Option<FsId>,
    pub server: ServerId,
    /// Bytes of one journal segment; fewer on a small disk.
    pub segment_bytes: u64,
    /// For tests and shared disks: use no more than this.
    pub capacity_bytes: Option<u64>,
    /// Kept free for journal and repair.
    pub reserve_percent: u8,
}

/// What to do to a chunk.
#[derive(Clone, Copy, Debug)]
pub enum Mutation<'a> {
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// Never extends.
    Zero {
        offset: u64,
        len: u64,
    },
    /// Shrinks, or extends with zeros.
    Truncate {
        len: u64,
    },
    Seal,
    Nop,
}

/// Whose operation it is. `ClientId(0)` is nobody's: not remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpTag {
    pub client: ClientId,
    pub counter: u64,
    /// Below it the client has every answer. Above `counter` with a `Nop`, it leaves the chunk's table.
    pub low_water: u64,
    /// Where an append went: offset and the length asked for, which may pass the chunk's end.
    pub append: Option<(u64, u64)>,
    /// The append is a record of a record log: it goes into the replica's list.
    pub record: bool,
}

/// Whether a client's operation was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    New,
    Done {
        append: Option<(u64, u64)>,
    },
    /// Below the client's low-water mark: applied or not, its result is gone.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaReport {
    pub chunk: ChunkId,
    pub promised: ChunkVersion,
    pub position: Position,
    pub len: u64,
    pub sealed: bool,
    pub dirty: bool,
    pub not_current: bool,
    /// CRC32C over the block checksums, the length and, if there are any, the list of records.
    pub digest: u32,
    pub spec: ChunkSpec,
}

/// What vouches for a range of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeSums {
    pub replica_len: u64,
    /// Of the blocks that the range touches.
    pub sums: Vec<u32>,
    /// None of it is in memory and the journal only.
    pub in_file: bool,
}

/// A block that has its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubbedBlock {
    pub bytes: u64,
    /// Where in the chunk the byte after its last one that is not zero is; 0: all are.
    pub data_end: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub chunk_count: u64,
}

/// Called once, on the disk's sync thread, with the sequence number that is stable.
pub type SyncDone = Box<dyn FnOnce(Result<u64, StoreError>) + Send>;

/// One chunkserver disk. Clones are the same store; the last one stops its threads, without a checkpoint.
#[derive(Clone, Debug)]
pub struct Store {
    running: Arc<sync::Running>,
}

impl Store {
    /// Opens or makes the data directory, and replays its journal.
    ///
    /// # Errors
    /// `InUse`, `Foreign`, `Unlabelled`, `NewerFormat`: not this directory. `Corrupt`: its journal is damaged.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        Self::open_posix(config, OpenOptions::for_this_boot()?, None)
    }

    /// As [`Self::open`], telling `sync_seconds` how long each sync takes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_timed(
        config: StoreConfig,
        options: OpenOptions,
        sync_seconds: prometheus::Histogram,
    ) -> Result<Self, StoreError> {
        Self::open_posix(config, options, Some(sync_seconds))
    }

    fn open_posix(
        config: StoreConfig,
        options: OpenOptions,
        sync_seconds: Option<prometheus::Histogram>,
    ) -> Result<Self, StoreError> {
        let disk = PosixDisk::open(&config.dir)?;
        let disk = disk.ok_or_else(|| StoreError::InUse { dir: config.dir.clone() })?;
        Self::open_with(config, Arc::new(disk.timed(sync_seconds)), options)
    }

    /// False after a sync that failed: nothing is accepted any more.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.engine().fate.is_dead()
    }

    /// As [`Self::open`], on any disk.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        config: StoreConfig,
        disk: Arc<dyn disk::ChunkDisk>,
        options: OpenOptions,
    ) -> Result<Self, StoreError> {
        let engine = open::open(config, disk, options)?;
        Ok(Self { running: Arc::new(sync::Running::start(Arc::new(engine))?) })
    }

    fn engine(&self) -> &Arc<Engine> {
        self.running.engine()
    }

    #[must_use]
    pub fn fs_id(&self) -> FsId {
        self.engine().label.fs_id
    }

    #[must_use]
    pub fn disk_id(&self) -> DiskId {
        self.engine().label.disk_id
    }

    /// Rises with everything that becomes durable here.
    #[must_use]
    pub fn synced_lsn(&self) -> u64 {
        self.engine().journal.synced_lsn()
    }

    #[must_use]
    pub fn server(&self) -> ServerId {
        self.engine().label.server
    }

    /// Whether the operation was applied here.
    ///
    /// # Errors
    /// `TooManyClients` if it would need an entry that the chunk has no room for.
    pub fn seen(&self, chunk: ChunkId, client: ClientId, counter: u64) -> Result<Seen, StoreError> {
        self.engine().seen(chunk, client, counter)
    }

    /// Replicas that lost their file and are not current any more, once each.
    #[must_use]
    pub fn take_made_again(&self) -> Vec<ChunkId> {
        self.engine().take_made_again()
    }

    /// Bytes beyond the chunk's end of an append that crossed it and that its client does not hold as finished: the
    /// first bytes of the next chunk belong to it.
    #[must_use]
    pub fn carry(&self, chunk: ChunkId) -> u64 {
        self.engine().carry(chunk)
    }

    /// Applies operation `seq` of `version`. On return the kernel has it; a chunk that was clean is durably DIRTY.
    /// One applied before is `Ok` again. `version` 1, `seq` 1 makes the replica.
    ///
    /// # Errors
    /// `Fenced`, `WrongVersion`, `Gap`, `NotCurrent`, `NotFound`, `TooLarge`, `NoSpace`, `BadBlock` (a block that must be
    /// read to change a part of it): nothing changed. `Io`: outcome unknown.
    #[allow(clippy::too_many_arguments, clippy::allow_attributes, reason = "one operation")]
    pub fn apply(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        seq: u64,
        spec: &ChunkSpec,
        tag: OpTag,
        mutation: Mutation<'_>,
    ) -> Result<(), StoreError> {
        self.engine().apply(chunk, version, seq, spec, tag, &mutation)
    }

    /// Makes everything applied so far stable, together with everybody else who asks now.
    pub fn sync(&self, chunk: ChunkId, on_done: SyncDone) {
        self.running.queue_sync(chunk, on_done);
    }

    /// As [`Self::sync`], on the caller's thread.
    ///
    /// # Errors
    /// `NotFound`, `NotCurrent`, `Io`.
    pub fn sync_blocking(&self, chunk: ChunkId) -> Result<u64, StoreError> {
        self.engine().sync_blocking(chunk)
    }

    /// Clears DIRTY, unless operations came after `up_to_seq`. Only the primary knows when: all is stable everywhere.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn mark_clean(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        up_to_seq: u64,
    ) -> Result<(), StoreError> {
        self.engine().mark_clean(chunk, Position { version, seq: up_to_seq })
    }

    /// Puts bytes `offset..offset+len`, fewer at the end, into `out`; returns the replica's length. Every touched block
    /// is verified.
    ///
    /// # Errors
    /// `NotFound`, `WrongVersion`, `NotCurrent`, `BadBlock`, `Io`; `out` is then empty.
    pub fn read(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, StoreError> {
        let result = self.engine().read(chunk, version, offset, len, out);
        if result.is_err() {
            out.clear();
        }
        result
    }

    /// Checksums of the blocks that [`Self::read`] would verify, for somebody else to verify the file's bytes with.
    ///
    /// # Errors
    /// `NotFound`, `WrongVersion`, `NotCurrent`.
    pub fn read_sums(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u64,
    ) -> Result<RangeSums, StoreError> {
        self.engine().read_sums(chunk, version, offset, len)
    }

    /// The file of a replica that is here.
    #[must_use]
    pub fn chunk_file(&self, chunk: ChunkId) -> Option<PathBuf> {
        self.report(chunk).map(|_| self.engine().config.dir.join(files::chunk_path(chunk)))
    }

    /// One block and its checksum, whatever version is held, current or not: for adoption and repair.
    ///
    /// # Errors
    /// `NotFound`, `BadBlock`, `Io`.
    pub fn read_for_copy(
        &self,
        chunk: ChunkId,
        block_index: u32,
    ) -> Result<(Vec<u8>, u32), StoreError> {
        self.engine().read_for_copy(chunk, u64::from(block_index))
    }

    /// Verifies one block as it is on the disk.
    ///
    /// # Errors
    /// As [`Self::read_for_copy`].
    pub fn read_for_scrub(
        &self,
        chunk: ChunkId,
        block_index: u32,
    ) -> Result<ScrubbedBlock, StoreError> {
        self.engine().read_for_scrub(chunk, u64::from(block_index))
    }

    /// Whether the file is still under its name, with the header it was made with and slots that the next start believes.
    ///
    /// # Errors
    /// `Corrupt` if not; `NotFound`: no replica; `Io`.
    pub fn check_file(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.engine().check_file(chunk)
    }

    /// Replaces the chunk's file, of which [`Self::check_file`] said that it is not right. False: what it held is out of
    /// reach, and the replica not current any more.
    ///
    /// # Errors
    /// `NoSpace`, `NotFound`, `Io`; nothing changed.
    pub fn make_whole(&self, chunk: ChunkId) -> Result<bool, StoreError> {
        self.engine().make_whole(chunk)
    }

    /// All but the bytes.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn describe(&self, chunk: ChunkId) -> Result<Description, StoreError> {
        self.engine().describe(chunk)
    }

    /// Records that begin at `from` or behind it, in order; not more than one answer takes.
    ///
    /// # Errors
    /// `NotFound`, `WrongVersion`, `NotCurrent`.
    pub fn records(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        from: u64,
    ) -> Result<ListedRecords, StoreError> {
        self.engine().records(chunk, version, from)
    }

    /// The list of records is full: the next one goes to another chunk.
    #[must_use]
    pub fn takes_no_records(&self, chunk: ChunkId) -> bool {
        self.engine().takes_no_records(chunk)
    }

    /// Clients that replicas here remember.
    #[must_use]
    pub fn clients(&self) -> BTreeSet<ClientId> {
        self.engine().clients()
    }

    /// Drops what replicas remember of clients that will not come again.
    ///
    /// # Errors
    /// `Io`; some of it may be forgotten.
    pub fn forget_clients(&self, clients: &BTreeSet<ClientId>) -> Result<(), StoreError> {
        self.engine().forget_clients(clients)
    }

    #[must_use]
    pub fn report(&self, chunk: ChunkId) -> Option<ReplicaReport> {
        self.engine().report(chunk)
    }

    /// All replicas, by chunk.
    #[must_use]
    pub fn inventory(&self) -> Vec<ReplicaReport> {
        self.engine().inventory()
    }

    /// Refuses everything below `version` from now on, durably. With `spec` a chunk that is not held is promised too.
    ///
    /// # Errors
    /// `Fenced` if a higher one was promised, `NotFound` without `spec`, `NoSpace`, `Io`.
    pub fn promise(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        spec: Option<&ChunkSpec>,
    ) -> Result<ReplicaReport, StoreError> {
        self.engine().promise(chunk, version, spec)
    }

    /// Begins a copy that will replace the replica when it is finished. `from` and `from_len`: where the source is.
    ///
    /// # Errors
    /// `Fenced` unless exactly `version` was promised; `WrongVersion` if it was adopted already, or `from` is not older;
    /// `NoSpace`, `TooLarge`, `NotFound`, `Io`.
    pub fn adopt_begin(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        from: Position,
        from_len: u64,
        spec: &ChunkSpec,
    ) -> Result<AdoptWriter, StoreError> {
        AdoptWriter::begin(Arc::clone(self.engine()), chunk, version, from, from_len, *spec)
    }

    /// The source takes up `version` with what it has: synced, durable, clean and current.
    ///
    /// # Errors
    /// `Fenced` unless exactly `version` was promised, `NotFound`, `Io`.
    pub fn adopt_self(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Result<ReplicaReport, StoreError> {
        self.engine().adopt_self(chunk, version)
    }

    /// Puts the replica aside; it is gone for everybody but `purge_quarantine`.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn quarantine(&self, chunk: ChunkId) -> Result<(), StoreError> {
        self.engine().quarantine(chunk, None)
    }

    /// As [`Self::quarantine`], unless `below` or a higher version was promised.
    ///
    /// # Errors
    /// `Fenced`: it was, nothing changed. `NotFound`, `Io`.
    pub fn quarantine_below(&self, chunk: ChunkId, below: ChunkVersion) -> Result<(), StoreError> {
        self.engine().quarantine(chunk, Some(below))
    }

    /// Removes quarantined replicas, oldest first, until so much is free; returns how many went.
    ///
    /// # Errors
    /// `Io`.
    pub fn purge_quarantine(&self, until_free_bytes: u64) -> Result<u64, StoreError> {
        self.engine().purge_quarantine(until_free_bytes)
    }

    /// A disk that cannot tell has nothing free.
    #[must_use]
    pub fn space(&self) -> Space {
        self.engine().space()
    }

    /// Sets space aside until the credit is dropped.
    ///
    /// # Errors
    /// `NoSpace`, even without quarantined replicas; `Io`.
    pub fn reserve(&self, bytes: u64) -> Result<SpaceCredit, StoreError> {
        SpaceCredit::take(self.engine(), bytes)
    }

    /// Mends a block from a peer at the same position.
    ///
    /// # Errors
    /// `BadBlock` if these are not the bytes this replica should have; `NotFound`, `Io`.
    pub fn repair_block(
        &self,
        chunk: ChunkId,
        index: u32,
        data: &[u8],
        crc: u32,
    ) -> Result<(), StoreError> {
        self.engine().repair_block(chunk, u64::from(index), data, crc)
    }

    /// Writes all state to the slots and leaves the journal empty.
    ///
    /// # Errors
    /// `Io`.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.engine().checkpoint_up_to(u64::MAX)
    }

    /// Checkpoint, sync, end of the threads. [`Self::sync`] is refused afterwards.
    ///
    /// # Errors
    /// `Io`.
    pub fn shutdown(&self) -> Result<(), StoreError> {
        let result = self.checkpoint();
        self.running.stop();
        result
    }
}
