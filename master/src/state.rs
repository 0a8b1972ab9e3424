//! The running master: the one log, the store it fills, and what is only in memory.
//!
//! Order of a change: proposed → committed and durable in the log → applied by the one apply thread → answered. Reads
//! are served from the store as of the last applied batch, on the asker's own thread.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a request has one kind of answer, every other one is an error by itself"
)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_core::cluster::{Cluster, Placement};
use dfs_core::command::{Change, Command, Outcome};
use dfs_core::ids::{ChunkId, ClientId, Epoch, FsId, InodeNo, OpId, ServerId};
use dfs_core::meta::MetaStore;
use dfs_core::namespace::NamespaceError;
use dfs_core::results::Results;
use dfs_core::time::{Timestamp, WallTime};
use dfs_proto::codec::Wire;
use dfs_proto::meta_rpc::MetaFailure;
use dfs_service::{canary, clock};

use crate::clients::Clients;
use crate::config::Config;
use crate::group::{Group, ProposeError};
use crate::metrics::Metrics;
use crate::reigns::Reigns;
use crate::store::RedbStore;

/// What all threads of a master share.
pub struct Master {
    pub config: Config,
    pub group: Group,
    pub store: Arc<RedbStore>,
    pub fs: FsId,
    pub epoch: Epoch,
    /// Random, new at each start: clients send their opens again when it changes.
    pub nonce: u64,
    pub replication: u32,
    pub min_replicas: u32,
    pub started: Timestamp,
    /// Every client that has something open has told this reign so, or has none any more.
    pub opens_known: AtomicBool,
    /// Where this and earlier reigns of its directory began.
    pub reigns: Reigns,
    pub recorder: Option<crate::lines::Recorder>,
    pub cluster: Mutex<Cluster>,
    pub clients: Mutex<Clients>,
    /// Chunks with a configuration change running: one at a time each.
    pub reconfiguring: Mutex<HashSet<ChunkId>>,
    pub pauses: Mutex<crate::pauses::Pauses>,
    /// Told when a configuration, a server or a lock changed.
    pub changed: Changed,
    /// Told when a thread is done with a chunk of `reconfiguring`, whatever came of it.
    pub turns: Changed,
    /// Who was given a layout to write with, and when (DECISIONS 8).
    pub write_layouts: Mutex<HashMap<ChunkId, BTreeMap<ClientId, Timestamp>>>,
    /// Freed chunks that somebody else may still try to write, and since when: only their replicas, by the version they
    /// promised, refuse it.
    pub fenced: Mutex<HashMap<ChunkId, Timestamp>>,
    /// Truncations running now: a repeated request waits for the first.
    /// To which size each is cut or grown by this process now.
    pub truncating: Mutex<HashMap<InodeNo, u64>>,
    pub rebuild: crate::rebuild::Shared,
    /// Jobs it carries out.
    pub works: crate::work::Works,
    /// What was told of damage and divergence.
    pub health: Mutex<crate::health::Health>,
    pub traffic: Mutex<crate::traffic::Traffic>,
    pub refusals: Mutex<crate::admit::Refusals>,
    /// Where each server keeps its chunk files, as it told.
    pub directories: Mutex<BTreeMap<ServerId, String>>,
    pub copies: Mutex<crate::copies::Copies>,
    /// Replicas that nobody needs.
    pub surplus: Mutex<crate::surplus::Noted>,
    pub runtime: tokio::runtime::Handle,
    pub channels: Mutex<HashMap<String, tonic::transport::Channel>>,
    pub reclaim: tokio::sync::mpsc::Sender<InodeNo>,
    pub metrics: Metrics,
    /// Told when the process stops: heartbeat streams say a last time how far the log reaches.
    pub farewell: tokio::sync::watch::Sender<bool>,
    /// Counts changes of the wishes: a server that is to be silent is told at once.
    pub wished: tokio::sync::watch::Sender<u64>,
    pub surveyed: Mutex<crate::survey::Surveyed>,
    /// Writers that wait for servers.
    pub waits: Mutex<crate::waits::Waits>,
    /// Counts requests this master itself makes as a client of chunkservers.
    pub own_client: ClientId,
    pub own_counter: AtomicU64,
    /// Clients' connections, so that a stop can end them.
    pub connections: Mutex<HashMap<u64, std::net::TcpStream>>,
    notices: Mutex<VecDeque<(WallTime, String)>>,
    /// Held while a wish about a server is weighed and logged.
    pub wishing: Mutex<()>,
    /// The last drill of each server.
    pub drills: Mutex<BTreeMap<ServerId, crate::watch::Drill>>,
    /// Reports of drills that another one followed before their end.
    pub replaced_drills: Mutex<Vec<(ServerId, String)>>,
    /// Configurations activated, and bytes that members fetched from others for them.
    pub reconfigured: AtomicU64,
    pub copied_bytes: AtomicU64,
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Master")
            .field("fs", &self.fs)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Most notices kept for `dfs status`.
const NOTICES_MAX: usize = 100;
/// What is told again so soon never ended in between.
const NOTICE_GOES_ON_NANOS: i64 = 60_000_000_000;

/// Locks a mutex; a panic elsewhere has already ended the process or will be seen by its own caller.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A counter that can be waited on.
#[derive(Debug, Default)]
pub struct Changed {
    count: Mutex<u64>,
    told: Condvar,
}

impl Changed {
    #[must_use]
    pub fn count(&self) -> u64 {
        *lock(&self.count)
    }

    pub fn tell(&self) {
        *lock(&self.count) += 1;
        self.told.notify_all();
    }

    /// Waits until the count passes `seen`, at most `timeout`.
    pub fn wait(&self, seen: u64, timeout: Duration) {
        let count = lock(&self.count);
        let _count = self
            .told
            .wait_timeout_while(count, timeout, |count| *count == seen)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

#[must_use]
pub fn now() -> Timestamp {
    Timestamp(clock::monotonic_nanos())
}

impl Master {
    pub fn new_notices() -> Mutex<VecDeque<(WallTime, String)>> {
        Mutex::new(VecDeque::new())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts a master is assembled from, once")]
    pub fn assemble(
        config: Config,
        group: Group,
        store: Arc<RedbStore>,
        superblock: &dfs_core::meta::Superblock,
        reigns: Reigns,
        recorder: Option<crate::lines::Recorder>,
        own_client: ClientId,
        runtime: tokio::runtime::Handle,
        reclaim: tokio::sync::mpsc::Sender<InodeNo>,
        metrics: Metrics,
    ) -> Self {
        let mut cluster = Cluster::new(config.profile);
        if config.exercise {
            cluster.placement = Placement::FewestChunks;
        }
        Self {
            fs: superblock.fs,
            epoch: superblock.epoch,
            nonce: superblock.nonce,
            replication: superblock.replication,
            min_replicas: superblock.min_replicas,
            started: now(),
            reigns,
            recorder,
            cluster: Mutex::new(cluster),
            clients: Mutex::default(),
            reconfiguring: Mutex::default(),
            pauses: Mutex::default(),
            changed: Changed::default(),
            turns: Changed::default(),
            write_layouts: Mutex::default(),
            fenced: Mutex::default(),
            truncating: Mutex::default(),
            rebuild: crate::rebuild::Shared::default(),
            surplus: Mutex::default(),
            works: crate::work::Works::default(),
            health: Mutex::default(),
            traffic: Mutex::default(),
            refusals: Mutex::default(),
            copies: Mutex::default(),
            surveyed: Mutex::default(),
            waits: Mutex::default(),
            channels: Mutex::default(),
            connections: Mutex::default(),
            notices: Self::new_notices(),
            directories: Mutex::default(),
            wishing: Mutex::default(),
            drills: Mutex::default(),
            replaced_drills: Mutex::default(),
            reconfigured: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            own_counter: AtomicU64::new(1),
            opens_known: AtomicBool::new(false),
            farewell: tokio::sync::watch::Sender::new(false),
            wished: tokio::sync::watch::Sender::new(0),
            config,
            group,
            store,
            own_client,
            runtime,
            reclaim,
            metrics,
        }
    }

    /// The state as of the last applied batch.
    #[must_use]
    pub fn reader(&self) -> impl MetaStore + '_ {
        self.store.reader()
    }

    /// Logs and applies `change`, for the client that `asked` or for the master itself.
    ///
    /// # Errors
    /// `Busy` if nothing was done; refusals of the state machine are outcomes, not errors.
    pub fn propose(
        &self,
        asked: Option<(OpId, &Results)>,
        change: Change,
    ) -> Result<Outcome, MetaFailure> {
        let (id, results) =
            asked.map_or_else(Default::default, |(id, results)| (Some(id), results.clone()));
        let command = Command { at: WallTime(clock::wall_nanos()), id, results, change };
        let answered = self.group.propose_blocking(command.to_bytes().into());
        decode_outcome(answered)
    }

    /// As [`Self::propose`], without waiting on this thread.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_async(&self, change: Change) -> Result<Outcome, MetaFailure> {
        let (at, results) = (WallTime(clock::wall_nanos()), Results::default());
        let command = Command { at, id: None, results, change };
        decode_outcome(self.group.propose(command.to_bytes().into()).await)
    }

    /// What a person should know; also logged. What goes on is one notice, at its latest time, and logged once.
    pub fn notice(&self, text: String) {
        let at = WallTime(clock::wall_nanos());
        let mut notices = lock(&self.notices);
        let said = notices.iter().rposition(|(_, said)| *said == text);
        match said.and_then(|place| notices.remove(place)) {
            Some((last, _)) if at.0.saturating_sub(last.0) < NOTICE_GOES_ON_NANOS => {
                tracing::debug!("{text}");
            }
            Some(_) | None => tracing::warn!("{text}"),
        }
        notices.push_back((at, text));
        while NOTICES_MAX < notices.len() {
            notices.pop_front();
        }
    }

    #[must_use]
    pub fn notices(&self) -> Vec<(WallTime, String)> {
        lock(&self.notices).iter().cloned().collect()
    }

    /// Whether servers may still be about to report what they hold (DECISIONS 17).
    #[must_use]
    pub fn is_warming(&self) -> bool {
        !canary::sings("start-not-waited-for")
            && now().nanos_since(self.started) < self.config.profile.dead_after_ms * 1_000_000
    }

    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        now().nanos_since(self.started) / 1_000_000
    }

    /// Frees `ino` in the background if it has no name and nobody has it open.
    pub fn maybe_reclaim(&self, ino: InodeNo) {
        if self.opens_known.load(Ordering::Acquire)
            && lock(&self.clients).begin_reclaim(ino)
            && self.reclaim.try_send(ino).is_err()
        {
            // Too many at once, or the master stops: it stays an orphan, which the ticks and the next start look at.
            lock(&self.clients).end_reclaim(ino);
        }
    }

    #[must_use]
    pub fn next_own_counter(&self) -> u64 {
        self.own_counter.fetch_add(1, Ordering::Relaxed)
    }
}

fn decode_outcome(
    answered: Result<(u64, bytes::Bytes), ProposeError>,
) -> Result<Outcome, MetaFailure> {
    match answered {
        Ok((_, bytes)) => match Outcome::from_bytes(&bytes) {
            // Nothing was done, because too many of this client's answers are kept: asking later helps, and no program
            // is to hear of it.
            Ok(Outcome::Refused(NamespaceError::Busy)) => {
                Err(MetaFailure::Busy { retry_after_ms: 20 })
            }
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(MetaFailure::BadRequest {
                reason: format!("the state machine's answer cannot be read: {error}"),
            }),
        },
        Err(error) => {
            tracing::debug!(%error, "propose");
            Err(MetaFailure::Busy { retry_after_ms: 20 })
        }
    }
}

/// An outcome's refusal as an error, everything else as it is.
///
/// # Errors
/// The refusal.
pub fn accepted(outcome: Outcome) -> Result<Outcome, NamespaceError> {
    match outcome {
        Outcome::Refused(error) => Err(error),
        other => Ok(other),
    }
}
