//! One mount from its checks to its end.
//!
//! Order at the end: stop waiting locks, unmount (the kernel then closes all files), take no more bytes, send what is
//! dirty and wait for it, say goodbye to the master. A mount that is in use leaves the tree at once and its users see ENOTCONN.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_client::session::{Session, SessionConfig};
use dfs_service::conn::ClusterKey;
use dfs_service::memory::{self, Trimmer};
use dfs_service::shutdown::Shutdown;

use crate::adapter;
use crate::cache::Lifetimes;
use crate::fs::{FileSystem, Options};
use crate::held::Held;
use crate::metrics::Metrics;
use crate::mount_point;
use crate::mount_table;
use crate::native;
use crate::pages::{self, Mounted};
use crate::transport::{Connected, Transport};

/// The kernel reads this far ahead of a sequential reader.
const READAHEAD_KIB: u32 = 4096;
/// How often it is looked whether memory can go back to the kernel, and how often nothing must have happened by then:
/// for longer than files that nobody uses are remembered.
const LOOK: Duration = Duration::from_secs(1);
const QUIET_LOOKS: u32 = 12;
/// How long a request waits for absent servers, unless told otherwise (DECISIONS 12).
const SERVER_WAIT: Duration = Duration::from_secs(300);
const LOCK_WAIT_MAX: Duration = Duration::from_secs(60);
const THREADS: usize = 4;

/// What to mount, where and how. `ready` is called once the mount answers.
pub struct MountConfig {
    pub master: String,
    pub key: ClusterKey,
    pub mount_point: PathBuf,
    pub lifetimes: Lifetimes,
    /// Threads that read requests of the kernel, at least 2.
    pub threads: usize,
    pub server_wait: Duration,
    pub lock_wait_max: Duration,
    /// Bytes of written data held back at most, and of data read ahead.
    pub write_budget_bytes: Option<u64>,
    pub readahead_bytes: Option<u64>,
    pub read_only: bool,
    pub transport: Transport,
    /// The descriptor of a holder, which has mounted or will: see [`crate::hold`].
    pub held_by: Option<i32>,
    /// Where metrics and health are served, if at all; port 0 takes a free one, written to the file.
    pub metrics: Option<SocketAddr>,
    pub metrics_file: Option<PathBuf>,
    pub ready: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for MountConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountConfig")
            .field("master", &self.master)
            .field("mount_point", &self.mount_point)
            .field("lifetimes", &self.lifetimes)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl MountConfig {
    /// Defaults for all that need not be said.
    #[must_use]
    pub fn new(master: String, key: ClusterKey, mount_point: PathBuf) -> Self {
        Self {
            master,
            key,
            mount_point,
            lifetimes: Lifetimes::default(),
            threads: THREADS,
            server_wait: SERVER_WAIT,
            lock_wait_max: LOCK_WAIT_MAX,
            write_budget_bytes: None,
            readahead_bytes: None,
            read_only: false,
            transport: Transport::Auto,
            held_by: None,
            metrics: None,
            metrics_file: None,
            ready: Box::new(|| ()),
        }
    }
}

/// Mounts, serves until SIGTERM, SIGINT or an unmount from outside, and has sent everything when it returns.
///
/// # Errors
/// If it cannot be mounted, or dirty data could not be sent at the end.
pub fn run(config: MountConfig) -> anyhow::Result<()> {
    let MountConfig {
        master,
        key,
        mount_point,
        lifetimes,
        threads,
        server_wait,
        lock_wait_max,
        write_budget_bytes,
        readahead_bytes,
        read_only,
        transport,
        held_by,
        metrics: listen,
        metrics_file,
        ready,
    } = config;
    memory::keep_little();
    let threads = threads.max(2);
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let held = match held_by {
        Some(number) => match Held::new(number)? {
            Some(held) => Some(held),
            None => return Ok(()),
        },
        None => None,
    };
    // What is held may be mounted already, and waits for us: it must not be looked at.
    let place = match held {
        Some(_) => None,
        None => Some(mount_point::prepare(&mount_point)?),
    };
    let at = place.as_ref().map_or(mount_point, |place| place.at.clone());

    let metrics = Arc::new(Metrics::new());
    let mounted = Arc::new(OnceLock::new());
    let pages = match listen {
        Some(listen) => Some(pages::serve(listen, &metrics, &mounted)?),
        None => None,
    };
    if let (Some(path), Some(pages)) = (&metrics_file, &pages) {
        let draft = path.with_extension("new");
        std::fs::write(&draft, format!("{}\n", pages.address()))
            .and_then(|()| std::fs::rename(&draft, path))
            .with_context(|| format!("write {}", path.display()))?;
    }
    let is_held = held.is_some();
    let transport = if is_held { Transport::Native } else { transport.chosen() };
    let holder = if is_held { ", held" } else { "" };
    let name = format!("mount {}, {}{holder}", at.display(), transport.name());
    let mut session_config = SessionConfig::new(master.clone(), key, name);
    session_config.server_wait = server_wait;
    session_config.kept = held.as_ref().map(|held| Arc::clone(&held.kept));
    if let Some(bytes) = write_budget_bytes {
        session_config.write_budget_bytes = bytes;
    }
    if let Some(bytes) = readahead_bytes {
        session_config.readahead_bytes = bytes;
    }
    let session =
        Session::connect(session_config).with_context(|| format!("connect to master {master}"))?;
    let lock_wait_max = match transport {
        // A wait that can be interrupted needs no end (DECISIONS 11).
        Transport::Native => Duration::MAX,
        Transport::Auto | Transport::Fuser => lock_wait_max,
    };
    let options = Options { lifetimes, lock_wait_max, write_through: held.is_some() };
    let fs = Arc::new(FileSystem::new(Arc::clone(&session), options, Arc::clone(&metrics)));

    // Not before all else is ready, which takes as long as the master is away.
    if let Some(place) = place {
        place.clear()?;
    }
    let (served_fs, counted) = (Arc::clone(&fs), Arc::clone(&metrics));
    let connected = match (held, transport) {
        (Some(held), _) => native::attach(held, &at, threads, served_fs, counted)?,
        (None, Transport::Native) => native::connect(&at, read_only, threads, served_fs, counted)?,
        (None, Transport::Auto | Transport::Fuser) => {
            adapter::connect(&at, read_only, threads, served_fs, counted)
                .with_context(|| format!("mount {}", at.display()))?
        }
    };
    let Connected { kernel, serve, mut unmount } = connected;
    fs.set_kernel(kernel);
    if !is_held {
        tune_readahead(&at);
    }
    tracing::info!(
        at = %at.display(), %master, client = %session.client(), transport = transport.name(), "mounted"
    );

    let ended = Shutdown::new();
    let serving = std::thread::Builder::new()
        .name("dfs-mount".to_owned())
        .spawn({
            let ended = ended.clone();
            move || {
                let result = serve();
                ended.ask();
                result
            }
        })
        .context("start the thread that serves")?;
    let _first = mounted.set(Mounted { session: Arc::clone(&session), ended: ended.clone() });
    ready();

    let mut trimmer = Trimmer::new(QUIET_LOOKS);
    let mut looked_at = Instant::now();
    while !shutdown.wait_for(Duration::from_millis(100)) && !ended.is_asked() {
        if LOOK <= looked_at.elapsed() {
            looked_at = Instant::now();
            if trimmer.on_look(session.figures().freed_bytes) && memory::give_back() {
                metrics.memory_given_back.inc();
            }
        }
    }
    fs.stop_waiting();
    session.end_soon();
    if !ended.is_asked() {
        // What can fail while the mount still shows it, fails now.
        if let Err(error) = session.sync_all() {
            tracing::error!(%error, see = error.page().map(tracing::field::display), "not all written data could be sent before unmounting");
        }
        if let Err(error) = unmount() {
            tracing::warn!(%error, at = %at.display(), "still in use; detached, its users see ENOTCONN");
            mount_point::detach(&at).with_context(|| format!("unmount {}", at.display()))?;
        }
    }
    // A detached mount that is in use would be served on for as long as it is.
    let served = ended.wait_for(Duration::from_secs(2)).then(|| serving.join());
    // A program that still writes was answered until now: what it was told is taken is sent.
    fs.take_no_more_bytes();
    let synced = session.sync_all().context("send written data before unmounting");
    session.close();
    drop(pages);
    if let Some(Ok(Err(error))) = served {
        tracing::warn!(%error, "the kernel's connection ended with an error");
    }
    tracing::info!(at = %at.display(), "unmounted");
    synced
}

/// The kernel's default of 128 KiB keeps a single reader from using more than one chunkserver.
pub(crate) fn tune_readahead(at: &std::path::Path) {
    let device = match mount_table::mounted_at(at) {
        Ok(Some(mounted)) => mounted.device,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%error, "readahead stays at the kernel's default"),
    };
    if let Err(error) = mount_point::set_readahead(&device, READAHEAD_KIB) {
        tracing::info!(
            %error,
            "readahead stays at the kernel's default; as root: \
             echo {READAHEAD_KIB} > /sys/class/bdi/{device}/read_ahead_kb"
        );
    }
}
