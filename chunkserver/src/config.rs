//! What a chunkserver is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use dfs_core::ids::{FsId, ServerId};
use dfs_service::conn::ClusterKey;

/// Disks forget a sector in so many years, and a second copy rots while the first is not looked at.
pub const SCRUB_PERIOD: Duration = Duration::from_secs(14 * 86_400);

#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerId,
    pub data_dir: PathBuf,
    /// Port 0: the kernel chooses one.
    pub listen: SocketAddr,
    /// What others are told to connect to; the bound address unless set.
    pub advertise: Option<String>,
    /// `host:port`. `None`: nobody is asked for leave to serve, which only tests want.
    pub master: Option<String>,
    pub key: ClusterKey,
    /// File system of a new data directory. `None`: the master is asked.
    pub fs: Option<FsId>,
    /// Where it stands, for placement; empty: not told.
    pub zone: String,
    pub host: String,
    /// Uses at most this much of the disk.
    pub capacity_bytes: Option<u64>,
    /// Kept free of user data for journal and repair (DECISIONS 14).
    pub reserve_percent: u8,
    pub segment_bytes: u64,
    /// Start although the journal is damaged: then no replica here counts as current, until it was compared with others.
    pub accept_loss: bool,
    /// Every replica is read and compared with its checksums within this. `None`: only when somebody asks.
    pub scrub_period: Option<Duration>,
    /// The bound address is written here once the server listens.
    pub address_file: Option<PathBuf>,
    /// Where metrics and health are served, if at all; port 0 takes a free one, written to the file.
    pub metrics: Option<SocketAddr>,
    pub metrics_file: Option<PathBuf>,
    /// A member that has not applied an operation by then is reported to the master. Above the slowest
    /// fdatasync of a busy disk: the first operation on a clean chunk waits for one.
    pub apply_timeout: Duration,
    /// The same for fdatasync.
    pub sync_timeout: Duration,
    pub connect_timeout: Duration,
    pub connections_max: usize,
}

impl Config {
    /// Defaults for `server` with its data in `data_dir`.
    #[must_use]
    pub fn new(server: ServerId, data_dir: PathBuf) -> Self {
        Self {
            server,
            data_dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            master: None,
            key: ClusterKey::none(),
            fs: None,
            zone: String::new(),
            host: String::new(),
            capacity_bytes: None,
            reserve_percent: 5,
            segment_bytes: 64 << 20,
            accept_loss: false,
            scrub_period: Some(SCRUB_PERIOD),
            address_file: None,
            metrics: None,
            metrics_file: None,
            apply_timeout: Duration::from_secs(3),
            sync_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_millis(1500),
            connections_max: 2048,
        }
    }
}
