//! What all parts of one running chunkserver share.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, DiskId, FsId, ServerId};
use dfs_core::time::Timestamp;
use dfs_proto::control;
use dfs_proto::data_rpc::DataFailure;
use dfs_proto::meta_rpc::ChunkLayout;
use dfs_service::clock::monotonic_nanos;
use dfs_service::shutdown::Shutdown;

use crate::config::Config;
use crate::copies::Copies;
use crate::damage::Damage;
use crate::fence::Fence;
use crate::local_door::LocalDoor;
use crate::member::Members;
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::peer::Peers;
use crate::primary::Leaders;
use crate::source_links::SourceLinks;
use crate::state::ServerState;
use crate::store::{ChunkSpec, Store, StoreError};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) server: ServerId,
    pub(crate) fs: FsId,
    pub(crate) disk: DiskId,
    /// As `HeartbeatRequest.device`.
    pub(crate) device: u64,
    /// As `HeartbeatRequest.directory`.
    pub(crate) directory: String,
    pub(crate) store: Arc<Store>,
    pub(crate) state: ServerState,
    pub(crate) fence: Fence,
    pub(crate) peers: Arc<Peers>,
    pub(crate) source_links: SourceLinks,
    pub(crate) leaders: Leaders,
    pub(crate) members: Members,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) damage: Damage,
    /// `None`: it could not be opened.
    pub(crate) local_door: Option<LocalDoor>,
    pub(crate) news: News,
    pub(crate) pace: Pace,
    pub(crate) copies: Copies,
    /// Asked when this server stops.
    pub(crate) stopping: Shutdown,
    /// Asked when it is to open its directory anew.
    pub(crate) start_again: Shutdown,
    /// The directory is an older copy, and was opened with nothing in it counted as current.
    pub(crate) loss_accepted: bool,
    space: CachedSpace,
    heartbeat_interval_ms: AtomicU64,
}

/// As `HeartbeatRequest.device`. Device numbers mean something on one machine, until it boots again.
fn device_of(config: &Config) -> u64 {
    if config.capacity_bytes.is_some() {
        return 0;
    }
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id");
    let found = boot.and_then(|boot| Ok((boot, std::fs::metadata(&config.data_dir)?)));
    match found {
        Ok((boot, data_dir)) => {
            u64::from(crc32c::crc32c(&boot)) << 32 | (data_dir.dev() & u64::from(u32::MAX))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell which disk this is: `df` counts it as this server's own");
            0
        }
    }
}

/// Reports of failed members kept for a master that is away.
pub(crate) const FAILURES_MAX: usize = 10_000;

/// What the master has not been told yet.
#[derive(Default, Debug)]
pub(crate) struct News {
    /// Replicas that changed.
    pub(crate) changed: Mutex<HashSet<ChunkId>>,
    pub(crate) failures: Mutex<Vec<control::MemberFailure>>,
    /// Woken when a heartbeat should go out now.
    pub(crate) urgent: tokio::sync::Notify,
}

/// `statvfs` per acknowledgement would cost more than the acknowledgement.
#[derive(Default, Debug)]
struct CachedSpace {
    free_bytes: AtomicU64,
    read_at: AtomicU64,
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn now() -> Timestamp {
    Timestamp(monotonic_nanos())
}

pub(crate) fn spec_of(layout: &ChunkLayout) -> ChunkSpec {
    ChunkSpec { inode: layout.ino, index: layout.index, chunk_size: layout.chunk_size }
}

impl Node {
    pub(crate) fn new(
        config: Config,
        store: Store,
        state: ServerState,
        metrics: Arc<Metrics>,
    ) -> Self {
        let store = Arc::new(store);
        let (fs, disk, server) = (store.fs_id(), store.disk_id(), store.server());
        let peers = Peers::new(
            server,
            fs,
            config.key.clone(),
            config.connect_timeout,
            config.apply_timeout,
        );
        let local_door = LocalDoor::open()
            .inspect_err(
                |error| tracing::warn!(%error, "clients here read through their connections"),
            )
            .ok();
        Self {
            server,
            fs,
            disk,
            device: device_of(&config),
            directory: std::path::absolute(&config.data_dir)
                .map_or_else(|_| String::new(), |path| path.display().to_string()),
            fence: Fence::new(config.master.is_some()),
            peers: Arc::new(peers),
            source_links: SourceLinks::default(),
            leaders: Leaders::default(),
            members: Members::default(),
            metrics,
            damage: Damage::default(),
            local_door,
            news: News::default(),
            pace: Pace::default(),
            copies: Copies::new(&config.data_dir),
            stopping: Shutdown::new(),
            start_again: Shutdown::new(),
            loss_accepted: config.accept_loss && state.marks().older,
            space: CachedSpace::default(),
            heartbeat_interval_ms: AtomicU64::new(0),
            store,
            state,
            config,
        }
    }

    /// How often the master wants to hear of this server; zero until it has said so.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn set_heartbeat_interval(&self, interval: Duration) {
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.heartbeat_interval_ms.store(millis, Ordering::Relaxed);
    }

    /// Free bytes, at most some milliseconds old.
    pub(crate) fn free_bytes(&self) -> u64 {
        const FRESH_NANOS: u64 = 5_000_000;
        let (now, read_at) = (monotonic_nanos(), self.space.read_at.load(Ordering::Acquire));
        if read_at == 0 || read_at + FRESH_NANOS < now {
            self.space.free_bytes.store(self.store.space().free_bytes, Ordering::Release);
            self.space.read_at.store(now.max(1), Ordering::Release);
        }
        self.space.free_bytes.load(Ordering::Acquire)
    }

    /// So much was written since the free bytes were read: what is told next must not promise it again.
    pub(crate) fn on_written(&self, bytes: u64) {
        let less = |free: u64| Some(free.saturating_sub(bytes));
        // Never fails: the closure always has an answer.
        let _ = self.space.free_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// What the master knows of `chunk` is out of date.
    pub(crate) fn on_changed(&self, chunk: ChunkId) {
        lock(&self.news.changed).insert(chunk);
    }

    /// A layout from a client or a primary: of a reign that is not over, with this very disk among its members.
    ///
    /// # Errors
    /// `StaleEpoch`, `BadRequest`, or `MemberFailed` with this server if the layout means another disk.
    pub(crate) fn check_layout(&self, layout: &ChunkLayout) -> Result<(), DataFailure> {
        self.state.check_epoch(layout.epoch)?;
        let power = layout.chunk_size.is_power_of_two();
        let bounds = dfs_core::namespace::CHUNK_BYTES_MAX;
        if !power
            || bounds < layout.chunk_size
            || layout.version.0 == 0
            || 64 < layout.members.len()
        {
            return Err(DataFailure::BadRequest { reason: "no such layout can be".to_owned() });
        }
        match layout.members.iter().find(|m| m.member.server == self.server) {
            Some(me) if me.member.disk == self.disk => Ok(()),
            Some(_) => Err(self.failed("the layout means another disk of this server")),
            None => {
                Err(DataFailure::StaleVersion { asked: layout.version.0, promised: 0, have: 0 })
            }
        }
    }

    /// The master should prepare the next version of `chunk`: `version` cannot go on because of `server`.
    pub(crate) fn report_failure(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        server: ServerId,
        reason: String,
    ) {
        let mut failures = lock(&self.news.failures);
        let known = |f: &control::MemberFailure| f.chunk == chunk.0 && f.version == version.0;
        // Looking through a few is cheap; many different ones are a server that came back.
        if FAILURES_MAX <= failures.len() || failures.iter().rev().take(64).any(known) {
            return;
        }
        failures.push(control::MemberFailure {
            chunk: chunk.0,
            version: version.0,
            server: server.to_string(),
            reason,
        });
        drop(failures);
        self.news.urgent.notify_one();
    }

    /// This server is the member that failed.
    pub(crate) fn failed(&self, reason: &str) -> DataFailure {
        DataFailure::MemberFailed { server: self.server, reason: reason.to_owned() }
    }

    /// What the asker is told of `error`; a bad block is remembered.
    pub(crate) fn failure(&self, asked: ChunkVersion, error: &StoreError) -> DataFailure {
        if let StoreError::BadBlock { chunk, index } = error {
            self.on_bad_block(*chunk, *index);
        }
        crate::error::failure(self.server, asked, error)
    }
}
