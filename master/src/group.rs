//! Drives the one log: openraft decides what is committed, a proposer in front of it puts commands
//! that wait together into one entry, and one task hands committed commands to the store. Commands
//! and outcomes are bytes here; what they mean is the store's matter.
//!
//! The group is one voter that elects itself, made so at its first start. Nothing but the way to
//! other members ([`network`]) changes when there are three.
//!
//! Order of events: proposed, durable in the log, committed, applied by [`Applier::apply`], and only
//! then answered. After a restart, entries behind [`Applier::applied`] are applied again before
//! [`Group::open`] returns.
//!
//! The log is never purged by itself. [`Group::snapshot`] writes a snapshot and reads it back;
//! [`Group::purge_behind`] purges behind the older of the two newest, after reading both again.

mod driver;
mod log_store;
mod machine;
mod network;
mod proposer;
mod reconcile;
pub mod snapshot_files;
mod types;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use dfs_service::page::Page;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::{BasicNode, Config, Raft, ServerState, SnapshotPolicy};

use crate::journal::disk::LogFile;
use crate::journal::{Cut, DurableSegment, Journal, JournalConfig, JournalError, OnFailure};
use driver::Driver;
use log_store::LogStore;
use machine::Machine;
use proposer::Proposer;
use reconcile::reconcile;
use snapshot_files::{SnapshotError, SnapshotFiles, SnapshotInfo};
use types::TypeConfig;

/// What a store has applied. All of it is kept in the transaction that applies, so that after a
/// crash the store holds exactly the effects of the entries up to `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Raft term of the last applied entry.
    pub term: u64,
    /// Index of the last applied entry.
    pub index: u64,
    /// To be given back as it is.
    pub group_state: Bytes,
}

/// Writes the state as it was when [`Applier::snapshot`] made it, while applying goes on.
pub type SnapshotWriter = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// The store, as the group sees it. Never called by two threads at once.
pub trait Applier: Send + 'static {
    /// What the store holds; `None` if nothing was ever applied.
    fn applied(&self) -> Option<Applied>;

    /// Applies the commands of one entry in order and records `at` in the same transaction. Returns
    /// one outcome for each command. There may be no commands; `at` is recorded all the same.
    ///
    /// A refused command is an outcome. A store that can no longer be written ends the process.
    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes>;

    /// Fixes the present state and returns what writes it. The same state gives the same bytes.
    ///
    /// # Errors
    /// The snapshot is not made; nothing else happens.
    fn snapshot(&mut self) -> io::Result<SnapshotWriter>;

    /// Replaces everything by the state that a snapshot of `at` has written, and records `at`.
    ///
    /// # Errors
    /// The group stops; the store must be replaced again before it is used.
    fn install(&mut self, at: &Applied, from: &mut dyn io::Read) -> io::Result<()>;
}

/// How to open a group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Directory of the log and its snapshots.
    pub dir: PathBuf,
    /// This member.
    pub node_id: u64,
    /// Cut a damaged log instead of refusing to open, and go on if it ends before the store's state.
    pub accept_loss: bool,
    /// Everything else about the log.
    pub journal: JournalConfig,
}

impl GroupConfig {
    /// The defaults, for member 1 in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), node_id: 1, accept_loss: false, journal: JournalConfig::default() }
    }

    /// Sets the size of new log segments.
    #[must_use]
    pub fn segment_bytes(mut self, segment_bytes: u64) -> Self {
        self.journal.segment_bytes = segment_bytes;
        self
    }

    /// Tells how long each sync of the log takes.
    #[must_use]
    pub fn sync_seconds(mut self, seconds: prometheus::Histogram) -> Self {
        self.journal.sync_seconds = Some(seconds);
        self
    }

    /// Sets what happens when the log cannot be written; the default ends the process.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.journal.on_failure = on_failure;
        self
    }
}

/// Why a group does not open.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The log does not open.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The snapshots' directory or the store refuses, or a newer version of this program has to be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store ends before the log begins, and what would close the gap cannot be read.
    #[error("{error}; {}, but the log begins behind entry {purged}: make the directory again with `dfs master restore`, --accept-loss does not help", end_of_store(*.applied))]
    SnapshotNeeded {
        /// What is wrong with the newest one.
        error: SnapshotError,
        /// Index the store has applied.
        applied: Option<u64>,
        /// Index up to which the log is purged.
        purged: u64,
    },
    /// A whole snapshot has entries that neither log nor store have: something durable is gone. Opening with
    /// `accept_loss` goes on from the snapshot.
    #[error("{} has entry {index}, and log and store end at entry {end}: make the directory again with `dfs master restore`, or go on from this snapshot with --accept-loss", file.display())]
    BehindSnapshot {
        /// The snapshot.
        file: PathBuf,
        /// The last entry it includes.
        index: u64,
        /// The last entry that log or store has; 0: none.
        end: u64,
    },
    /// The same, and it cannot be read. Opening with `accept_loss` goes on without, if there is anything else.
    #[error("{error}; it had entry {index}, and {}", match .end {
        0 => "nothing else is left: make the directory again with `dfs master restore`, --accept-loss does not help".to_owned(),
        end => format!("log and store end at entry {end}: make the directory again with `dfs master restore`, or go on without what is missing with --accept-loss"),
    })]
    BehindDamagedSnapshot {
        /// What is wrong with it.
        error: SnapshotError,
        /// The last entry it included, as its name says.
        index: u64,
        /// The last entry that log or store has; 0: none.
        end: u64,
    },
    /// The log ends before what the store has applied, so something durable is gone. Opening with
    /// `accept_loss` goes on with the store's state.
    #[error("{}, but the store has applied entry {applied}", end_of(*.last))]
    LogBehindStore {
        /// Last index in the log.
        last: Option<u64>,
        /// Index the store has applied.
        applied: u64,
    },
    /// The log is gone, or another began in its place. Opening with `accept_loss` goes on with what is there.
    #[error("the log in {} {}, but the last reign here began behind entry {began_after}", dir.display(), .last.map_or_else(|| "is gone".to_owned(), |index| format!("ends at entry {index}")))]
    LogGone {
        /// Where it should be.
        dir: PathBuf,
        /// The last entry that log or store has; none if there is no log.
        last: Option<u64>,
        /// The last entry before that reign.
        began_after: u64,
    },
    /// The store ends before the log begins, and no snapshot closes the gap.
    #[error("{}, but the log begins behind entry {purged}", end_of_store(*.applied))]
    StoreBehindLog {
        /// Index the store has applied.
        applied: Option<u64>,
        /// Index up to which the log is purged.
        purged: u64,
    },
    /// The store's or a snapshot's record of the group does not read.
    #[error("read the group's state: {0}")]
    GroupState(io::Error),
    /// Threads could not be started.
    #[error("start the group's runtime: {0}")]
    Runtime(io::Error),
    /// openraft stopped while starting.
    #[error("start raft: {0}")]
    Raft(String),
}

/// Where the advice in the texts above begins.
const ADVICE: &str = ": make the directory again with `dfs master restore`";

impl GroupError {
    /// What is wrong, for who is making a directory again.
    #[must_use]
    pub fn without_advice(&self) -> String {
        let mut text = self.to_string();
        if let Some(at) = text.find(ADVICE) {
            text.truncate(at);
        }
        text
    }
}

fn end_of(last: Option<u64>) -> String {
    last.map_or_else(
        || "the log is empty".to_owned(),
        |index| format!("the log ends at entry {index}"),
    )
}

fn end_of_store(applied: Option<u64>) -> String {
    applied.map_or_else(
        || "the store is empty".to_owned(),
        |index| format!("the store ends at entry {index}"),
    )
}

impl GroupError {
    /// Which section of the manual helps.
    #[must_use]
    pub fn page(&self) -> Option<Page> {
        match self {
            Self::Journal(JournalError::Newer { .. }) => Some(Page::DirectoryRefused),
            Self::Journal(JournalError::Damaged { .. } | JournalError::NothingLeft { .. })
            | Self::LogBehindStore { .. }
            | Self::StoreBehindLog { .. }
            | Self::BehindSnapshot { .. }
            | Self::GroupState(_) => Some(Page::DamagedLog),
            Self::LogGone { .. } => Some(Page::DirectoryLost),
            Self::Snapshot(error)
            | Self::SnapshotNeeded { error, .. }
            | Self::BehindDamagedSnapshot { error, .. } => Some(error.page()),
            Self::Journal(JournalError::Io { source, .. }) => Page::of_disk(source),
            Self::Journal(_) | Self::Runtime(_) | Self::Raft(_) => None,
        }
    }
}

/// What became of a proposal that has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Too many commands wait already. Nothing happened; asking later helps.
    #[error("too many commands wait for the log")]
    Busy,
    /// Another member leads, if any. Nothing happened.
    #[error("not the leader, which is {leader:?}")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// The command is too large for the log. Nothing happened.
    #[error("a command of {command_bytes} bytes is too large")]
    TooLarge {
        /// Size of the refused command.
        command_bytes: usize,
    },
    /// The group has stopped. Nothing happened.
    #[error("the group has stopped")]
    Stopped,
    /// The group stopped while the command was on its way: it may or may not be in the log.
    #[error("the group stopped before the outcome was known")]
    OutcomeUnknown,
}

/// A running member of the group. Clones are handles to the same one.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    node_id: u64,
    opened_at: u64,
    raft: Raft<TypeConfig>,
    proposer: Proposer,
    machine: Machine,
    journal: Mutex<Option<Journal>>,
    /// Held while a snapshot is made: openraft does not note a second one meanwhile.
    snapshotting: Mutex<()>,
    driver: Driver,
}

/// A file of which another disk may have a copy.
#[derive(Debug)]
pub struct CopySource {
    /// Unlike any other of this group.
    pub name: String,
    /// The first so many are durable.
    pub bytes: u64,
    file: SourceFile,
}

#[derive(Debug)]
enum SourceFile {
    Snapshot(std::fs::File),
    Segment(Arc<dyn LogFile>),
}

impl CopySource {
    /// Up to `length` bytes from `offset` on, fewer where the durable ones end.
    ///
    /// # Errors
    /// I/O errors; `UnexpectedEof` if the file is shorter than it was.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let length = length.min(self.bytes.saturating_sub(offset));
        let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        match &self.file {
            SourceFile::Snapshot(file) => file.read_exact_at(&mut data, offset)?,
            SourceFile::Segment(file) => {
                if file.read_at(offset, &mut data)? < data.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(data)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("node_id", &self.inner.node_id).finish_non_exhaustive()
    }
}

/// How long a purge or a snapshot's registration may take before it is given up for this time.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);

impl Group {
    /// Opens the log and brings the store up to its end, then leads. Blocks until then.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn open(config: GroupConfig, applier: impl Applier) -> Result<Self, GroupError> {
        let GroupConfig { dir, node_id, accept_loss, journal } = config;
        let files = SnapshotFiles::open(&dir.join("snapshots"))?;
        // All of them are read only if it matters: nothing is cut away for the sake of one that is damaged itself.
        let may_begin_anew = accept_loss && (applier.applied().is_some() || files.has_whole()?);
        let journal = JournalConfig { accept_loss, may_begin_anew, ..journal };
        let journal = Journal::open(&dir.join("log"), journal)?;
        let machine = Machine::new(Box::new(applier), files);
        let opened_at = reconcile(&journal, &machine, node_id, accept_loss)?;

        let driver = Driver::start().map_err(GroupError::Runtime)?;
        let (proposer, queue) = proposer::channel();
        let started = {
            let machine = machine.clone();
            let log_store = LogStore::new(journal.clone());
            driver.run(async move {
                let raft = start(node_id, log_store, machine).await?;
                tokio::spawn(queue.run(raft.clone()));
                Ok(raft)
            })
        };
        let raft = match started {
            Some(Ok(raft)) => raft,
            Some(Err(err)) => {
                driver.stop();
                return Err(err);
            }
            None => {
                driver.stop();
                return Err(GroupError::Raft("it ended while starting".to_owned()));
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                node_id,
                opened_at,
                raft,
                proposer,
                machine,
                journal: Mutex::new(Some(journal)),
                snapshotting: Mutex::new(()),
                driver,
            }),
        })
    }

    /// Proposes a command; resolves to its index and outcome when it is durable and applied.
    ///
    /// The command is queued by the call itself: dropping the future does not take it back.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub fn propose(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<(u64, Bytes), ProposeError>> + Send + use<> {
        let queued = self.inner.proposer.queue(command);
        let queued = queued.map(|replied| (replied, self.inner.driver.drive()));
        async move {
            let (replied, _driving) = queued?;
            replied.await.unwrap_or(Err(ProposeError::OutcomeUnknown))
        }
    }

    /// [`Group::propose`] for a plain thread; panics within an async task.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub fn propose_blocking(&self, command: Bytes) -> Result<(u64, Bytes), ProposeError> {
        let replied = self.inner.proposer.queue(command)?;
        self.inner.driver.wait(replied).unwrap_or(Err(ProposeError::OutcomeUnknown))
    }

    /// What open removed from the end of the log, if anything.
    pub fn cut(&self) -> Option<Cut> {
        let journal = self.inner.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.as_ref().and_then(|journal| journal.cut().cloned())
    }

    /// The last entry that log or store had when it was opened, before this start logged anything; 0: none.
    pub fn opened_at(&self) -> u64 {
        self.inner.opened_at
    }

    /// Raft's present term.
    pub fn term(&self) -> u64 {
        self.inner.raft.metrics().borrow().current_term
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.inner.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> Option<u64> {
        self.inner.raft.metrics().borrow().last_applied.map(|log_id| log_id.index)
    }

    /// Index up to which the newest snapshot reaches.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.inner.raft.metrics().borrow().snapshot.map(|log_id| log_id.index)
    }

    /// Writes a snapshot of the store and reads it back. Blocks; proposals go on meanwhile.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the snapshots that existed still do.
    pub fn snapshot(&self) -> Result<SnapshotInfo, SnapshotError> {
        let _one = self.inner.snapshotting.lock().unwrap_or_else(PoisonError::into_inner);
        let info = self.inner.machine.build()?;
        let raft = self.inner.raft.clone();
        let index = info.position.index;
        let registered = self.inner.driver.run(async move {
            raft.trigger().snapshot().await.map_err(|_| SnapshotError::Stopped)?;
            let wait = raft.wait(Some(REGISTER_TIMEOUT));
            let known = wait.metrics(
                |metrics| metrics.snapshot.is_some_and(|known| index <= known.index),
                "snapshot registered",
            );
            known.await.map_err(|_| SnapshotError::Stopped)
        });
        registered.unwrap_or(Err(SnapshotError::Stopped))?;
        Ok(info)
    }

    /// What was wrong with snapshots that were removed as damaged since the last call.
    pub fn take_removed_snapshots(&self) -> Vec<SnapshotError> {
        self.inner.machine.files().take_removed()
    }

    /// Purges the log up to `index`, but never beyond what the older of the newest two snapshots
    /// includes, after reading both back. Returns up to where the log is purged now. Blocks.
    ///
    /// # Errors
    /// `Damaged` if one of the two does not read back: nothing was purged.
    pub fn purge_behind(&self, index: u64) -> Result<Option<u64>, SnapshotError> {
        let limit = self.inner.machine.files().purge_limit()?;
        let raft = self.inner.raft.clone();
        let purged = move |raft: &Raft<TypeConfig>| {
            raft.metrics().borrow().purged.map(|log_id| log_id.index)
        };
        let Some(limit) = limit else { return Ok(purged(&raft)) };
        let upto = index.min(limit.index);
        if purged(&raft).is_some_and(|purged| upto <= purged) {
            return Ok(purged(&raft));
        }
        let done = self.inner.driver.run(async move {
            raft.trigger().purge_log(upto).await.map_err(|_| SnapshotError::Stopped)?;
            let wait = raft.wait(Some(REGISTER_TIMEOUT));
            let known = wait.metrics(
                |metrics| metrics.purged.is_some_and(|purged| upto <= purged.index),
                "log purged",
            );
            let metrics = known.await.map_err(|_| SnapshotError::Stopped)?;
            Ok(metrics.purged.map(|log_id| log_id.index))
        });
        done.unwrap_or(Err(SnapshotError::Stopped))
    }

    /// Snapshots and log as far as they are durable: together they hold all entries up to [`Self::applied_index`] as
    /// it was before this call. Snapshots first: no entry is purged before a snapshot holds it.
    ///
    /// # Errors
    /// What kept a file from being opened.
    pub fn copy_sources(&self) -> io::Result<Vec<CopySource>> {
        let mut sources = Vec::new();
        let paths =
            self.inner.machine.files().paths().map_err(|e| io::Error::other(e.to_string()))?;
        for path in paths {
            let file = match std::fs::File::open(&path) {
                // An older one goes when a newer one is there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let bytes = file.metadata()?.len();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sources.push(CopySource { name, bytes, file: SourceFile::Snapshot(file) });
        }
        // After the snapshots: a log that ends before one of them would look as if it had been cut.
        let segments = match &*self.inner.journal.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(journal) => journal.durable_segments()?,
            None => return Ok(Vec::new()),
        };
        sources.extend(segments.into_iter().map(|DurableSegment { name, file, bytes }| {
            CopySource { name, bytes, file: SourceFile::Segment(file) }
        }));
        Ok(sources)
    }

    /// Stops the group: what was proposed and not answered gets `OutcomeUnknown`, the log is synced
    /// and closed. Blocks. Later calls find it stopped. Dropping the last handle does the same.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl Inner {
    fn stop(&self) {
        let raft = self.raft.clone();
        if let Some(Err(err)) = self.driver.run(async move { raft.shutdown().await }) {
            tracing::error!(%err, "raft did not stop in order");
        }
        self.driver.stop();
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn start(
    node_id: u64,
    log_store: LogStore,
    machine: Machine,
) -> Result<Raft<TypeConfig>, GroupError> {
    let fatal = |err: &dyn fmt::Display| GroupError::Raft(err.to_string());
    let config = Config {
        cluster_name: "master".to_owned(),
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        heartbeat_interval: 250,
        // Snapshots and purges happen when asked for.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    };
    let config = config.validate().map_err(|err| fatal(&err))?;
    let raft = Raft::new(node_id, Arc::new(config), network::NoPeers, log_store, machine)
        .await
        .map_err(|err| fatal(&err))?;
    let members = std::collections::BTreeMap::from([(node_id, BasicNode::default())]);
    // Asked first: a refusal to initialize is an error in openraft's log, and every start but the first is healthy.
    if !raft.is_initialized().await.map_err(|err| fatal(&err))? {
        raft.initialize(members).await.map_err(|err| fatal(&err))?;
    } else if raft.metrics().borrow().state != ServerState::Leader {
        raft.trigger().elect().await.map_err(|err| fatal(&err))?;
    }
    let metrics = raft
        .wait(None)
        .metrics(
            |metrics| {
                let applied = metrics.last_applied.map(|log_id| log_id.index);
                metrics.running_state.is_err()
                    || (metrics.state == ServerState::Leader && metrics.last_log_index <= applied)
            },
            "lead, with everything applied",
        )
        .await
        .map_err(|err| fatal(&err))?;
    metrics.running_state.map_err(|err| fatal(&err))?;
    Ok(raft)
}
