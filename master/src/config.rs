//! What a master is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use dfs_core::cluster::LivenessProfile;
use dfs_core::namespace::CHUNK_BYTES_DEFAULT;
use dfs_service::conn::ClusterKey;

/// [`Config::snapshot_entries`] unless a test is in a hurry.
pub const SNAPSHOT_ENTRIES: u64 = 200_000;
/// [`Config::segment_bytes`] unless a test wants many.
const SEGMENT_BYTES: u64 = 64 << 20;
/// [`Config::orphan_wait_ms`] unless a test is in a hurry (PROTOCOL §5.2).
pub const ORPHAN_WAIT_MS: u64 = 3_600_000;

/// Settings of one master process, checked by [`Config::check`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Its directory: log, store, snapshots, lock file.
    pub dir: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bound address is written here once it serves.
    pub address_file: Option<PathBuf>,
    /// Where metrics and health are served, if at all; port 0 takes a free one, written to the file.
    pub metrics: Option<SocketAddr>,
    pub metrics_file: Option<PathBuf>,
    pub key: ClusterKey,
    pub profile: LivenessProfile,
    /// Copies of each chunk, and below how many reachable ones writes wait. Taken at the first start, and at later ones
    /// with `change_replication`.
    pub replication: u32,
    pub min_replicas: u32,
    pub change_replication: bool,
    /// Bytes of the chunks of files made in the root directory. Taken before the first file is made, not after.
    pub chunk_size: u64,
    /// Start although what is found on disk shows that acknowledged changes are missing.
    pub accept_loss: bool,
    /// Reigns up to this epoch may have logged more than a restored directory knows of; 0: it was not restored. Read
    /// from the directory.
    pub restored_after: u64,
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
    /// A client not heard for so long ends (DECISIONS 12).
    pub client_lease_ms: u64,
    /// Replicas of chunks that the map does not know are deleted after so long.
    pub orphan_wait_ms: u64,
    /// As `dfs shell` wants it (DECISIONS 15): chunks may be as small as there are any, new ones go to the servers with the
    /// fewest, and none is copied to a server that never had it.
    pub exercise: bool,
    /// Where heartbeats are recorded, for `dfs replay`.
    pub record: Option<PathBuf>,
    /// Entries of the log after which a snapshot is made and what is behind the older one purged.
    pub snapshot_entries: u64,
}

impl Config {
    /// Defaults for all that need not be said: a free port of loopback, no key, three replicas of which two suffice.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            address_file: None,
            metrics: None,
            metrics_file: None,
            key: ClusterKey::none(),
            profile: LivenessProfile::STANDARD,
            replication: 3,
            min_replicas: 2,
            change_replication: false,
            chunk_size: CHUNK_BYTES_DEFAULT,
            accept_loss: false,
            restored_after: 0,
            segment_bytes: SEGMENT_BYTES,
            client_lease_ms: crate::clients::LEASE_MS,
            orphan_wait_ms: ORPHAN_WAIT_MS,
            exercise: false,
            record: None,
            snapshot_entries: SNAPSHOT_ENTRIES,
        }
    }

    /// # Errors
    /// If the numbers contradict each other.
    pub fn check(self) -> anyhow::Result<Self> {
        let Self { replication, min_replicas, profile, .. } = &self;
        anyhow::ensure!(
            (1..=8).contains(replication),
            "replication {replication} is out of range: 1 to 8 copies of each chunk"
        );
        anyhow::ensure!(
            (1..=*replication).contains(min_replicas),
            "min-replicas {min_replicas} must be from 1 to replication ({replication})"
        );
        profile.check()?;
        Ok(self)
    }
}
