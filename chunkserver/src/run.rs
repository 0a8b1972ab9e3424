//! Starts and stops the parts of a chunkserver.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use dfs_core::ids::FsId;
use dfs_proto::control::StatusRequest;
use dfs_proto::control::admin_client::AdminClient;
use dfs_proto::control::chunk_control_server::ChunkControlServer;
use dfs_proto::control::metadata_copies_server::MetadataCopiesServer;
use dfs_service::conn::{
    Acceptor, AcceptorHandle, Limits, control_channel, control_incoming, control_runtime, said,
};
use dfs_service::data_dir;
use dfs_service::metrics_http::MetricsServer;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::config::Config;
use crate::control::Control;
use crate::master_link::Link;
use crate::metrics::Metrics;
use crate::node::{Node, lock};
use crate::state::{ServerState, is_older_copy};
use crate::store::{OpenOptions, Store, StoreConfig};
use crate::{data, lookout, pages, primary, repair, scrub};

/// How often members and syncs are looked after: a member may serve what was written at most this much later.
const TICK: Duration = Duration::from_millis(20);
/// While no chunk is written: an idle server wakes the processor less often. The first write wakes the ticker.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How often a server with `--accept-loss` looks whether it is to start again.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps the server from starting.
pub fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    loop {
        let mut server = Server::start_unless(config.clone(), &shutdown)?;
        let again = server.wait_unless_again(&shutdown, config.accept_loss);
        server.stop();
        if !again {
            return Ok(());
        }
    }
}

/// A running chunkserver.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    addr: SocketAddr,
    pages: Option<MetricsServer>,
    acceptor: AcceptorHandle,
    connections: Arc<Connections>,
    ticker: Shutdown,
    ticker_thread: Option<std::thread::JoinHandle<()>>,
    scrub_thread: Option<std::thread::JoinHandle<()>>,
    lookout_thread: Option<std::thread::JoinHandle<()>>,
    link: Option<Link>,
    runtime: Option<tokio::runtime::Runtime>,
    control_ended: Option<tokio::sync::oneshot::Sender<()>>,
}

/// Open frames connections, to be closed at the end.
#[derive(Default, Debug)]
struct Connections {
    open: Mutex<HashMap<u64, TcpStream>>,
    next: std::sync::atomic::AtomicU64,
}

impl Server {
    /// Starts serving; returns once the port is bound and replicas are read in.
    ///
    /// # Errors
    /// A data directory that is in use, damaged, foreign or too new; a port that is taken.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_unless(config, &Shutdown::new())
    }

    fn start_unless(config: Config, shutdown: &Shutdown) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("make the data directory {}", config.data_dir.display()))?;
        data_dir::check(&config.data_dir, data_dir::Kind::Chunkserver)?;
        // Then the port: it is what is most often taken.
        let limits = Limits { connections_max: config.connections_max };
        let acceptor = Acceptor::bind(config.listen, config.key.clone(), limits)?;
        let addr = acceptor.local_addr().context("read the bound address")?;
        let runtime = control_runtime().context("start the control runtime")?;
        let metrics = Arc::new(Metrics::new());
        let serving = Arc::new(OnceLock::new());
        let pages = match config.metrics {
            Some(listen) => Some(pages::serve(listen, &metrics, &serving)?),
            None => None,
        };
        if let (Some(path), Some(pages)) = (&config.metrics_file, &pages) {
            write_address(path, pages.address())
                .with_context(|| format!("write {}", path.display()))?;
        }
        let store = open_store(&config, &metrics, &runtime, shutdown)?;
        let state = ServerState::open(&config.data_dir)
            .with_context(|| format!("read the server's state in {}", config.data_dir.display()))?;
        let node = Arc::new(Node::new(config, store, state, metrics));

        let (control, control_taken) = tokio::sync::mpsc::channel(16);
        let (control_ended, ended) = tokio::sync::oneshot::channel::<()>();
        let service = ChunkControlServer::new(Control(Arc::clone(&node)));
        let copies = MetadataCopiesServer::new(Control(Arc::clone(&node)));
        runtime.spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .add_service(copies)
                .serve_with_incoming_shutdown(control_incoming(control_taken), async {
                    // Dropped or told: both end it.
                    let _ended = ended.await;
                })
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "control service");
            }
        });

        let connections = Arc::new(Connections::default());
        let on_frames = {
            let (node, connections) = (Arc::clone(&node), Arc::clone(&connections));
            Arc::new(move |stream: TcpStream, from: SocketAddr| {
                connections.serve(&node, stream, from)
            })
        };
        let acceptor = acceptor
            .run(on_frames, control, runtime.handle().clone())
            .context("start accepting")?;

        if let Some(door) = &node.local_door {
            door.serve(&node).context("serve the local door")?;
        }
        let ticker = node.stopping.clone();
        let ticker_thread = {
            let (node, ticker) = (Arc::clone(&node), ticker.clone());
            std::thread::Builder::new()
                .name("tick".to_owned())
                .spawn(move || {
                    node.leaders.wake_this_thread();
                    while !ticker.is_asked() {
                        let any = primary::tick(&node);
                        if node.fence.check_takes_part().is_ok() {
                            repair::tick(&node);
                        }
                        std::thread::park_timeout(if any { TICK } else { IDLE_TICK });
                    }
                })
                .context("start the ticker")?
        };
        let scrub_thread = {
            let (node, stop) = (Arc::clone(&node), ticker.clone());
            std::thread::Builder::new()
                .name("scrub".to_owned())
                .spawn(move || scrub::run(&node, &stop))
                .context("start the scrub")?
        };
        let lookout_thread = {
            let (node, stop) = (Arc::clone(&node), ticker.clone());
            std::thread::Builder::new()
                .name("lookout".to_owned())
                .spawn(move || lookout::run(&node, &stop))
                .context("start the lookout")?
        };
        let advertise = node.config.advertise.clone().unwrap_or_else(|| addr.to_string());
        if let Some(path) = &node.config.address_file {
            write_address(path, addr).with_context(|| format!("write {}", path.display()))?;
        }
        let link = match node.config.master.clone() {
            Some(master) => {
                Some(Link::start(&node, master, advertise).context("start heartbeats")?)
            }
            None => None,
        };
        let _first = serving.set(Arc::clone(&node));
        tracing::info!(server = %node.server, %addr, fs = %node.fs, disk = %format_args!("{:032x}", node.disk.0), "listening");
        Ok(Self {
            node,
            addr,
            pages,
            acceptor,
            connections,
            ticker,
            ticker_thread: Some(ticker_thread),
            scrub_thread: Some(scrub_thread),
            lookout_thread: Some(lookout_thread),
            link,
            runtime: Some(runtime),
            control_ended: Some(control_ended),
        })
    }

    /// Until `shutdown`, or until the directory is to be opened anew, which only comes with `accept_loss`: then true.
    fn wait_unless_again(&self, shutdown: &Shutdown, accept_loss: bool) -> bool {
        if !accept_loss {
            shutdown.wait();
            return false;
        }
        while !shutdown.wait_for(AGAIN_PAUSE) {
            if self.node.start_again.is_asked() {
                return true;
            }
        }
        false
    }

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The replicas, for whoever is in the same process.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.node.store
    }

    /// Stops cleanly: the master is told, connections end, everything is on disk. A second call does nothing.
    pub fn stop(&mut self) {
        if let Some(link) = &mut self.link {
            link.stop();
        }
        self.link = None;
        self.pages = None;
        self.acceptor.stop();
        self.ticker.ask();
        if let Some(thread) = &self.ticker_thread {
            thread.thread().unpark();
        }
        let threads =
            [self.ticker_thread.take(), self.scrub_thread.take(), self.lookout_thread.take()];
        for thread in threads.into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("ticker, scrub or lookout panicked");
            }
        }
        if let Some(door) = &self.node.local_door {
            door.close();
        }
        self.connections.close();
        self.node.peers.close();
        drop(self.control_ended.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
            if let Err(err) = self.node.store.shutdown() {
                // The journal has it all; the next start takes longer.
                tracing::warn!(%err, "shut the store down");
            }
            tracing::info!(server = %self.node.server, "stopped");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Connections {
    fn serve(&self, node: &Arc<Node>, stream: TcpStream, from: SocketAddr) {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Ok(closer) = stream.try_clone() else { return };
        lock(&self.open).insert(id, closer);
        data::serve(node, stream, from);
        lock(&self.open).remove(&id);
    }

    /// Ends all connections and waits a moment for their threads.
    fn close(&self) {
        for _ in 0..500 {
            let open = lock(&self.open);
            for stream in open.values() {
                let _closed = stream.shutdown(std::net::Shutdown::Both);
            }
            if open.is_empty() {
                return;
            }
            drop(open);
            std::thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!("connections did not end in time");
    }
}

/// Whole or not at all: somebody waits for the file to appear.
fn write_address(path: &Path, addr: SocketAddr) -> std::io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    std::fs::write(&next, format!("{addr}\n"))?;
    std::fs::rename(&next, path)
}

fn open_store(
    config: &Config,
    metrics: &Metrics,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> anyhow::Result<Store> {
    // Formatting ends with it: without, whatever a killed start left is begun anew.
    let is_new = !config.data_dir.join("label").exists();
    let fs = match (config.fs, &config.master, is_new) {
        (None, Some(master), true) => Some(ask_fs(config, master, runtime, shutdown)?),
        // A directory of another file system is refused now if the master can be asked, else by its heartbeats.
        (None, Some(master), false) => ask_fs_once(config, master, runtime).unwrap_or_default(),
        (fs, _, _) => fs,
    };
    let store = StoreConfig {
        dir: config.data_dir.clone(),
        fs_id: fs,
        server: config.server,
        segment_bytes: config.segment_bytes,
        capacity_bytes: config.capacity_bytes,
        reserve_percent: config.reserve_percent,
    };
    let older = is_older_copy(&config.data_dir)
        .with_context(|| format!("read the server's state in {}", config.data_dir.display()))?;
    let options = OpenOptions {
        accept_journal_loss: config.accept_loss,
        is_older_copy: config.accept_loss && older,
        ..OpenOptions::for_this_boot()?
    };
    let store = Store::open_timed(store, options, metrics.fsync_seconds.clone())
        .with_context(|| format!("open the data directory {}", config.data_dir.display()))?;
    // Two servers of one name would take turns in pushing each other out.
    anyhow::ensure!(
        store.server() == config.server,
        "data directory {}: made for {}, not for {}; start it under its own name, or name another directory; see {}",
        config.data_dir.display(),
        store.server(),
        config.server,
        Page::DirectoryRefused
    );
    Ok(store)
}

/// The master's file system; `None` if it does not know it yet.
fn ask_fs_once(
    config: &Config,
    master: &str,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<FsId>, String> {
    let status = runtime.block_on(async {
        let mut admin = AdminClient::new(control_channel(master, &config.key));
        tokio::time::timeout(Duration::from_secs(5), admin.status(StatusRequest {}))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|status| said(&status))
    })?;
    let bytes = <[u8; 16]>::try_from(status.into_inner().fs.as_slice()).ok();
    Ok(bytes.filter(|bytes| *bytes != [0; 16]).map(|bytes| FsId(u128::from_be_bytes(bytes))))
}

/// Which file system a new server joins. Waits for the master as long as it takes.
fn ask_fs(
    config: &Config,
    master: &str,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> anyhow::Result<FsId> {
    let mut said = String::new();
    loop {
        match ask_fs_once(config, master, runtime) {
            Ok(Some(fs)) => return Ok(fs),
            Ok(None) => {}
            Err(reason) if reason != said => {
                let see = Page::MasterSilent.unless_named(&reason).map(tracing::field::display);
                tracing::warn!(%master, %reason, see, "waiting for the master to say which file system to join");
                said = reason;
            }
            Err(_) => {}
        }
        anyhow::ensure!(
            !shutdown.wait_for(Duration::from_millis(200)),
            "stopped before the master answered"
        );
    }
}
