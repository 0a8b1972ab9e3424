//! A master process from its directory to its last request.
//!
//! Order of a start: directory locked and log replayed → a new reign logged → port opened → heartbeats and requests.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a request has one kind of answer, every other one is an error by itself"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use bytes::Bytes;
use dfs_core::command::{Change, Command, Outcome};
use dfs_core::ids::{ClientId, Epoch, FsId, InodeNo};
use dfs_core::meta::{self, Key, MetaStore, Record, Superblock};
use dfs_core::namespace::Layout;
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use dfs_proto::codec::Wire;
use dfs_proto::control::admin_server::AdminServer;
use dfs_proto::control::jobs_server::JobsServer;
use dfs_proto::control::master_control_server::MasterControlServer;
use dfs_proto::control::server_admin_server::ServerAdminServer;
use dfs_proto::control::trash_server::TrashServer;
use dfs_proto::control::wishes_server::WishesServer;
use dfs_service::clock;
use dfs_service::conn::{Acceptor, Limits, control_incoming, control_runtime};
use dfs_service::data_dir;
use dfs_service::metrics_http::MetricsServer;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::apply::StoreApplier;
use crate::background;
use crate::config::Config;
use crate::control::Control;
use crate::copies;
use crate::end::end_if_full;
use crate::group::{Group, GroupConfig, GroupError};
use crate::journal::JournalConfig;
use crate::lines::Recorder;
use crate::metrics::Metrics;
use crate::rebuild;
use crate::reigns::{Reign, Reigns};
use crate::restore::Note;
use crate::state::{Master, lock};
use crate::store::{RedbStore, StoreError};
use crate::survey;
use crate::watch;
use crate::work;

/// Epoch of a later reign that a chunkserver told us of; 0: none.
static LATER_REIGN: AtomicU64 = AtomicU64::new(0);

/// How it did; the first one counts.
static OLDER_THAN_CLUSTER: OnceLock<String> = OnceLock::new();

/// Ends this process soon: the cluster has seen something of reign `epoch` that this directory knows nothing of.
pub fn stop_older_than_cluster(epoch: u64, why: &str) {
    OLDER_THAN_CLUSTER.get_or_init(|| why.to_owned());
    LATER_REIGN.fetch_max(epoch, Ordering::AcqRel);
}

pub(crate) fn older_than_cluster() -> Option<&'static str> {
    OLDER_THAN_CLUSTER.get().map(String::as_str)
}

/// Runs a master until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or from going on.
pub fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let server = Server::start(config)?;
    loop {
        if shutdown.wait_for(std::time::Duration::from_millis(200)) {
            break;
        }
        if let Some(why) = OLDER_THAN_CLUSTER.get() {
            server.stop();
            anyhow::bail!(
                "{why}; put the newest copy of the directory back, or make it again with `dfs master restore`, or go on \
                 with what is here, without the rest: --accept-loss; see {}",
                Page::DirectoryRefused
            );
        }
    }
    server.stop();
    tracing::info!("stopped");
    Ok(())
}

/// What a thread of its own does until it is told to stop.
type Work = fn(&Arc<Master>, &Shutdown);

/// A started master; stops when told.
#[derive(Debug)]
pub struct Server {
    pub address: std::net::SocketAddr,
    pub master: Arc<Master>,
    acceptor: dfs_service::conn::AcceptorHandle,
    pages: Option<MetricsServer>,
    background: [std::thread::JoinHandle<()>; 6],
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
    /// Of the directory.
    lock: std::fs::File,
}

/// Inodes on their way to be freed; those beyond stay orphans, which the ticks look at.
const RECLAIM_QUEUE_MAX: usize = 65_536;

/// Until what was said last is on its way. It saves nothing but a window in which nobody knows of the last entries.
const FAREWELL: std::time::Duration = std::time::Duration::from_millis(50);

impl Server {
    /// Starts a master and returns once it serves.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let config = config.check()?;
        std::fs::create_dir_all(&config.dir)
            .with_context(|| format!("make the master directory {}", config.dir.display()))?;
        data_dir::check(&config.dir, data_dir::Kind::Master)?;
        let lock = data_dir::lock(&config.dir)
            .with_context(|| format!("lock {}", config.dir.display()))?
            .with_context(|| format!("{} is in use by another process", config.dir.display()))?;
        // Names and small files are in it: the permissions inside count for nothing to who reads it here.
        std::fs::set_permissions(&config.dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("close {} to others", config.dir.display()))?;
        let restored_after = Note::read(&config.dir)?.map_or(0, |note| note.epoch.0);
        let config = Config { restored_after, ..config };
        let acceptor = Acceptor::bind(config.listen, config.key.clone(), Limits::default())?;
        let address = acceptor.local_addr().context("read the bound address")?;
        let metrics = Metrics::new();
        let serving = Arc::new(OnceLock::new());
        let pages = match config.metrics {
            Some(listen) => Some(survey::serve_pages(listen, &metrics, &serving)?),
            None => None,
        };
        if let (Some(path), Some(pages)) = (&config.metrics_file, &pages) {
            write_address(path, pages.address())?;
        }
        let runtime = control_runtime().context("start the control runtime")?;
        let (group, store) = open_state(&config, &metrics)?;
        let (superblock, reigns) = begin_reign(&config, &group, &store)?;
        tracing::info!(
            fs = %superblock.fs,
            epoch = superblock.epoch.0,
            dir = %config.dir.display(),
            "reign begins"
        );
        let (reclaim, reclaimed) = tokio::sync::mpsc::channel(RECLAIM_QUEUE_MAX);
        let own_client = ClientId(random128()?);
        let address_file = config.address_file.clone();
        let recorder = config.record.as_deref().map(|path| {
            let opened = Recorder::open(path, clock::wall_millis());
            opened.with_context(|| format!("open the recording {}", path.display()))
        });
        let recorder = recorder.transpose()?;
        let master = Arc::new(Master::assemble(
            config,
            group,
            store,
            &superblock,
            reigns,
            recorder,
            own_client,
            runtime.handle().clone(),
            reclaim,
            metrics,
        ));
        background::refuse_fenced(&master);
        // Before anybody asks: a server that is wished silent must not hear that it is not.
        master.refresh_overlays();
        runtime.spawn(background::say_it_runs(Arc::clone(&master)));
        runtime.spawn(background::reclaim(Arc::clone(&master), reclaimed));
        let shutdown = Shutdown::new();
        let threads: [(&str, Work); 6] = [
            ("copies", copies::run),
            ("background", background::run),
            ("rebuild", rebuild::run),
            ("survey", survey::run),
            ("watch", watch::run),
            ("work", work::run),
        ];
        let started = threads.map(|(name, run)| {
            let (master, shutdown) = (Arc::clone(&master), shutdown.clone());
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&master, &shutdown))
                .with_context(|| format!("start the thread {name}"))
        });
        let [copies, background, rebuild, survey, watch, work] = started;
        let background = [copies?, background?, rebuild?, survey?, watch?, work?];
        let (control, connections) = tokio::sync::mpsc::channel(16);
        let service = Control(Arc::clone(&master));
        runtime.spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_service(
                    MasterControlServer::new(service.clone()).max_decoding_message_size(64 << 20),
                )
                .add_service(WishesServer::new(service.clone()))
                .add_service(ServerAdminServer::new(service.clone()))
                .add_service(JobsServer::new(service.clone()))
                .add_service(TrashServer::new(service.clone()))
                .add_service(AdminServer::new(service))
                .serve_with_incoming(control_incoming(connections))
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "control service ended");
            }
        });
        let on_frames = {
            let master = Arc::clone(&master);
            Arc::new(move |stream, peer| crate::rpc::serve(&master, stream, peer))
        };
        let acceptor = acceptor
            .run(on_frames, control, runtime.handle().clone())
            .context("start accepting")?;
        if let Some(path) = &address_file {
            write_address(path, address)?;
        }
        // Only now: it is not ready before.
        let _first = serving.set(Arc::clone(&master));
        tracing::info!(%address, "master serves");
        Ok(Self { address, master, acceptor, pages, background, shutdown, runtime, lock })
    }

    /// Stops serving and returns when nothing of it is left, so that the directory may be used again; everything
    /// acknowledged is in the log.
    pub fn stop(self) {
        let Self {
            address: _,
            master,
            acceptor,
            pages,
            background,
            shutdown,
            runtime,
            lock: _lock,
        } = self;
        drop(pages);
        shutdown.ask();
        acceptor.stop();
        for connection in lock(&master.connections).values() {
            // Closed by the other side already: as good.
            let _closed = connection.shutdown(std::net::Shutdown::Both);
        }
        for thread in background {
            // It ends within a tick.
            let _ended = thread.join();
        }
        // Nothing is logged any more. Nobody listening: nobody to be told.
        if master.farewell.send(true).is_ok() {
            std::thread::sleep(FAREWELL);
        }
        master.group.shutdown();
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        // Requests under way hold the store; each has a bound.
        for _ in 0..500 {
            if Arc::strong_count(&master) == 1 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        tracing::warn!("stopped with requests still under way");
    }
}

fn write_address(path: &Path, address: std::net::SocketAddr) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write the address file {}", path.display()))
}

fn random128() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("draw random bytes")?;
    Ok(u128::from_ne_bytes(bytes))
}

pub(crate) fn store_path(dir: &Path) -> PathBuf {
    dir.join("state.redb")
}

/// Opens log and store; a store that cannot be read is made anew from the log, of which it is a cache.
pub(crate) fn open_state(
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<(Group, Arc<RedbStore>)> {
    let path = store_path(&config.dir);
    let store = match RedbStore::open(&path) {
        Ok(store) => store,
        // Only then: a store that another master has open, or a disk that fails, is not ours to move.
        Err(error @ StoreError::Damaged(_)) => {
            tracing::warn!(%error, path = %path.display(), see = %Page::DamagedLog, "the state cannot be read: made anew from snapshot and log");
            let aside = path.with_extension("damaged");
            std::fs::rename(&path, &aside).with_context(|| {
                format!("put the damaged {} aside as {}", path.display(), aside.display())
            })?;
            RedbStore::open(&path).with_context(|| format!("make {}", path.display()))?
        }
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let store = Arc::new(store);
    let log_dir = config.dir.join("log");
    // Of a damaged one its own start says so.
    let began_after = Reigns::read(&config.dir).ok().and_then(|reigns| reigns.last_began_after());
    if let Some(began_after) = began_after.filter(|_| !config.accept_loss)
        && has_no_segment(&log_dir)?
    {
        // Before another log begins there.
        return Err(GroupError::LogGone { dir: log_dir, last: None, began_after }.into());
    }
    let (dir, otherwise) = (config.dir.clone(), JournalConfig::default().on_failure);
    let group_config =
        GroupConfig { accept_loss: config.accept_loss, ..GroupConfig::new(&config.dir) }
            .segment_bytes(config.segment_bytes)
            .sync_seconds(metrics.log_sync_seconds.clone())
            .on_failure(Arc::new(move |failure| {
                end_if_full(&dir, "write the log", &failure.error);
                otherwise(failure);
            }));
    let group = Group::open(group_config, StoreApplier::new(Arc::clone(&store)))
        .with_context(|| format!("open the log in {}", config.dir.display()))?;
    let last = Some(group.opened_at());
    if let Some(began_after) = began_after.filter(|_| !config.accept_loss)
        && last < Some(began_after)
    {
        group.shutdown();
        return Err(GroupError::LogGone { dir: log_dir, last, began_after }.into());
    }
    if let Some(cut) = group.cut() {
        tracing::warn!(?cut, see = %Page::DamagedLog, "the log's end was cut");
    }
    Ok((group, store))
}

/// Whether no segment of a log is in `dir`, or `dir` itself is not there.
fn has_no_segment(dir: &Path) -> anyhow::Result<bool> {
    let is_segment = |entry: &std::fs::DirEntry| {
        Path::new(&entry.file_name()).extension().is_some_and(|extension| extension == "log")
    };
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(!entries.filter_map(Result::ok).any(|entry| is_segment(&entry))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read {}", dir.display())),
    }
}

/// Logs the start of this reign, and at the very first start the file system itself.
fn begin_reign(
    config: &Config,
    group: &Group,
    store: &RedbStore,
) -> anyhow::Result<(Superblock, Reigns)> {
    let before = match store.reader().get(&Key::Super) {
        Some(Record::Super(superblock)) => Some(superblock),
        _ => None,
    };
    let fs = match &before {
        Some(superblock) => superblock.fs,
        None => FsId(random128()?),
    };
    let asked = (config.replication, config.min_replicas);
    let kept = before.as_ref().map_or(asked, |it| (it.replication, it.min_replicas));
    let (replication, min_replicas) = match config.change_replication {
        true => asked,
        false => kept,
    };
    if kept != (replication, min_replicas) {
        tracing::info!(replication, min_replicas, before = ?kept, "replication changes");
    } else if kept != asked {
        tracing::info!(
            replication,
            min_replicas,
            "replication stays as it was; --change-replication changes it"
        );
    }
    let known = before.as_ref().map_or(0, |superblock| superblock.epoch.0);
    let restored = Note::read(&config.dir)?;
    let seen = restored.map_or(0, |note| note.epoch.0).max(LATER_REIGN.load(Ordering::Acquire));
    let pending = restored.filter(|note| note.skip_ids);
    let lossy = config.accept_loss || pending.is_some();
    let (last, millis) = (known.max(seen), clock::wall_nanos() / 1_000_000);
    let epoch = Epoch(match u64::try_from(millis) {
        _ if !lossy => last + 1,
        // Above those that are missing here, also if some of them began so: it was earlier then.
        Ok(millis) if last < millis => millis,
        // The clock went back.
        Ok(_) | Err(_) => last + 1_000,
    });
    let nonce = u64::try_from(random128()? >> 64)?;
    let mut reigns = match Reigns::read(&config.dir) {
        Err(error) if config.accept_loss => {
            tracing::error!("{error:#}");
            Reigns::default()
        }
        read => read?,
    };
    // What is missing was accepted, by the servers too that are away now and come when it is no longer said.
    let note = Note { epoch: Epoch(epoch.0 - 1), skip_ids: true };
    if config.accept_loss {
        note.write(&config.dir)?;
    }
    reigns.begin(&config.dir, Reign { epoch, nonce, began_after: group.opened_at() })?;
    let start = Change::Start { epoch, nonce, fs, replication, min_replicas };
    log(group, start).context("log the start of this reign")?;
    if lossy {
        // Those given out by entries that are missing here are in use at chunkservers and in clients' memory.
        log(group, Change::SkipIds).context("log that ids are skipped")?;
        let note = pending.filter(|_| !config.accept_loss).unwrap_or(note);
        Note { skip_ids: false, ..note }.write(&config.dir)?;
        tracing::warn!("this reign may begin without what was logged last");
    }
    set_chunk_size(config, group, store)?;
    let superblock = meta::superblock(&store.reader());
    Ok((superblock.context("the superblock is missing after the start")?, reigns))
}

/// A file system in which nothing was made yet gets the chunk size that is asked for.
fn set_chunk_size(config: &Config, group: &Group, store: &RedbStore) -> anyhow::Result<()> {
    let reader = store.reader();
    let superblock = meta::superblock(&reader).context("the superblock is missing")?;
    let root = meta::attr(&reader, InodeNo::ROOT).context("the root directory is missing")?;
    let (before, asked) = (root.layout.chunk_size, config.chunk_size);
    if before == asked {
        return Ok(());
    }
    if superblock.next_inode != InodeNo::ROOT.0 + 1 {
        tracing::info!(
            chunk_size = before,
            asked,
            "the chunk size stays as it was: files have been made"
        );
        return Ok(());
    }
    let layout = Layout { chunk_size: asked, ..root.layout };
    log(group, Change::SetRootLayout { layout }).context("log the chunk size")
}

fn log(group: &Group, change: Change) -> anyhow::Result<()> {
    let at = WallTime(clock::wall_nanos());
    let command = Command { at, id: None, results: Results::default(), change };
    let (_, outcome) = group.propose_blocking(Bytes::from(command.to_bytes()))?;
    match Outcome::from_bytes(&outcome).context("read the answer")? {
        Outcome::Done => Ok(()),
        other => anyhow::bail!("the answer was {other:?}"),
    }
}
