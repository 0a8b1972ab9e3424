//! The directory of a local cluster: what lies where, what runs, what the next start must repeat.
//!
//! ```text
//! DIR/cluster.json        addresses, mount path, numbers; DIR/cluster.key  0600
//! DIR/run/ROLE.pid        master, cs-1, …, mount (mount-holder, if it is held), supervisor; ROLE.addr  address it serves; ROLE.metrics  of its metrics;
//!                         lock  held by the supervisor
//! DIR/log/ROLE.log        DIR/data/ROLE  what the servers keep          DIR/mnt  the mount, unless named otherwise
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use dfs_core::ids::ServerId;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::args::servers::TimingArgs;
use crate::failure::fail;
use crate::mount_point;
use crate::process::{Process, read_pid};

/// Newest layout of `cluster.json` this program reads.
const FORMAT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Master,
    Chunkserver(ServerId),
    Mount,
    Supervisor,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Chunkserver(id) => write!(f, "{id}"),
            Self::Mount => f.write_str("mount"),
            Self::Supervisor => f.write_str("supervisor"),
        }
    }
}

/// `DIR/cluster.json`. Written by `dfs up` alone; other programs may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterFile {
    pub format: u32,
    /// `ip:port`; empty until the first start has succeeded.
    pub master: String,
    pub mount: PathBuf,
    pub profile: String,
    /// What differs from the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild_delay_ms: Option<u64>,
    pub replication: u32,
    pub min_replicas: u32,
    /// Most that each chunkserver may hold; absent: all its disk has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Absent: the chunkserver's own; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_period_ms: Option<u64>,
    pub chunkservers: Vec<ChunkserverEntry>,
    /// `ip:port` of each role's metrics and health pages; absent in files of older programs.
    #[serde(default)]
    pub metrics: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkserverEntry {
    pub id: String,
    pub address: String,
}

/// Most replicas a local cluster keeps.
const REPLICATION: u32 = 3;

/// Replication and replicas needed for a write with this many chunkservers.
pub(crate) fn replication_for(chunkservers: u32) -> (u32, u32) {
    let replication = chunkservers.clamp(1, REPLICATION);
    (replication, replication.saturating_sub(1).max(1))
}

impl ClusterFile {
    pub(crate) fn timing(&self) -> TimingArgs {
        let time = |millis: Option<u64>| millis.map(Duration::from_millis);
        TimingArgs {
            heartbeat_interval: time(self.heartbeat_interval_ms),
            dead_after: time(self.dead_after_ms),
            rebuild_delay: time(self.rebuild_delay_ms),
        }
    }

    pub(crate) fn set_timing(&mut self, timing: TimingArgs) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.heartbeat_interval_ms = timing.heartbeat_interval.map(millis);
        self.dead_after_ms = timing.dead_after.map(millis);
        self.rebuild_delay_ms = timing.rebuild_delay.map(millis);
    }

    pub(crate) fn new(mount: PathBuf) -> Self {
        Self {
            format: FORMAT,
            master: String::new(),
            mount,
            profile: "standard".to_owned(),
            heartbeat_interval_ms: None,
            dead_after_ms: None,
            rebuild_delay_ms: None,
            replication: 0,
            min_replicas: 0,
            capacity_bytes: None,
            scrub_period_ms: None,
            chunkservers: Vec::new(),
            metrics: BTreeMap::new(),
        }
    }

    /// `path` is for messages.
    pub(crate) fn parse(text: &str, path: &Path) -> anyhow::Result<Self> {
        // The number first: a newer layout need not have the rest.
        let any: serde_json::Value =
            serde_json::from_str(text).with_context(|| format!("read {}", path.display()))?;
        let format = any.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(FORMAT)) {
            return fail(
                format!(
                    "{}: format {}, this program knows {FORMAT}",
                    path.display(),
                    format.map_or_else(|| "missing".to_owned(), |f| f.to_string()),
                ),
                "use the program that wrote it, or a newer one",
            );
        }
        serde_json::from_value(any).with_context(|| format!("read {}", path.display()))
    }
}

/// What the holder of the lock is doing: others say so when they are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Up,
    Down,
}

impl Doing {
    fn word(self) -> &'static str {
        match self {
            Self::Up => "up\n",
            Self::Down => "down\n",
        }
    }
}

/// The right to start and stop the processes of a directory, from the first check of a start to the end of the
/// supervisor, or for the time of a stop. It ends with the last process that has the file open.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    pub(crate) fn now(&self, doing: Doing) {
        // Only messages depend on it.
        let word = doing.word();
        let _unsaid = self
            .0
            .write_all_at(word.as_bytes(), 0)
            .and_then(|()| self.0.set_len(word.len() as u64));
    }

    /// Before it is let go: the next holder needs a moment to say what it does.
    pub(crate) fn done(&self) {
        let _unsaid = self.0.set_len(0);
    }

    /// As the standard input of a process that holds it from then on ([`ClusterDir::inherited_lock`]).
    pub(crate) fn into_stdio(self) -> std::process::Stdio {
        self.0.into()
    }
}

/// The directory, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterDir {
    root: PathBuf,
}

impl ClusterDir {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        if dir.as_os_str().is_empty() {
            return fail("--dir: the path is empty", "name a directory");
        }
        let root = std::path::absolute(dir)
            .with_context(|| format!("--dir {}", dir.display()))
            .map(|whole| mount_point::resolved(&whole))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.root.join("cluster.key")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root.join("run/lock")
    }

    /// How the start in the background went: made by the supervisor, read by `dfs up --detach`.
    pub(crate) fn outcome_file(&self) -> PathBuf {
        self.root.join("run/outcome")
    }

    pub(crate) fn pid_file(&self, role: Role) -> PathBuf {
        self.root.join(format!("run/{role}.pid"))
    }

    pub(crate) fn address_file(&self, role: Role) -> PathBuf {
        self.root.join(format!("run/{role}.addr"))
    }

    /// Address of the metrics and health pages.
    pub(crate) fn metrics_file(&self, role: Role) -> PathBuf {
        self.root.join(format!("run/{role}.metrics"))
    }

    pub(crate) fn log_file(&self, role: Role) -> PathBuf {
        self.root.join(format!("log/{role}.log"))
    }

    pub(crate) fn data(&self, role: Role) -> PathBuf {
        self.root.join(format!("data/{role}"))
    }

    pub(crate) fn default_mount(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// Reads `cluster.json`: `None` if there is none.
    pub(crate) fn read(&self) -> anyhow::Result<Option<ClusterFile>> {
        let path = self.cluster_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        ClusterFile::parse(&text, &path).map(Some)
    }

    /// Reads `cluster.json`, refusing directories without one.
    pub(crate) fn existing(&self) -> anyhow::Result<ClusterFile> {
        match self.read()? {
            Some(file) => Ok(file),
            None => fail(
                format!(
                    "{}: no local cluster there (cluster.json is missing)",
                    self.root.display()
                ),
                format!("start one with `dfs up --dir {}`", self.root.display()),
            ),
        }
    }

    /// Replaces `cluster.json`; a crash leaves the old or the new one.
    pub(crate) fn write(&self, file: &ClusterFile) -> anyhow::Result<()> {
        let path = self.cluster_file();
        let draft = path.with_extension("json.new");
        let mut text = serde_json::to_string_pretty(file)?;
        text.push('\n');
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Refuses a directory that belongs to something else. The mount may lie in it.
    pub(crate) fn check_ours(&self, mount: &Path) -> anyhow::Result<()> {
        const OURS: [&str; 7] =
            ["run", "log", "data", "mnt", "cluster.key", "cluster.json", "cluster.json.new"];
        let entries = match self.root.read_dir() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("--dir {}", self.root.display()));
            }
        };
        if self.cluster_file().exists() {
            return Ok(());
        }
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !OURS.contains(&name.as_str()) && !mount.starts_with(entry.path()) {
                return fail(
                    format!("--dir {}: holds '{name}' and no cluster", self.root.display()),
                    "name a new or empty directory",
                );
            }
        }
        Ok(())
    }

    /// Makes the directory and its parts.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        for part in ["run", "log", "data"] {
            let path = self.root.join(part);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    }

    /// Words by which a process of ours is recognised.
    pub(crate) fn marks(&self, role: Role, mount: &Path) -> Vec<String> {
        let own = |path: &Path| path.to_string_lossy().into_owned();
        match role {
            Role::Master => vec!["master".into(), own(&self.data(role))],
            Role::Chunkserver(_) => vec!["chunkserver".into(), own(&self.data(role))],
            Role::Mount => vec!["mount".into(), own(mount)],
            // In the background; one in the foreground is `up`, perhaps with a relative path.
            Role::Supervisor => vec!["supervise".into(), own(&self.root)],
        }
    }

    /// The process a pid file names, if it runs and is ours.
    pub(crate) fn running(&self, role: Role, mount: &Path) -> Option<Process> {
        let pid = read_pid(&self.pid_file(role))?;
        let process = Process { pid, marks: self.marks(role, mount) };
        process.is_running().then_some(process)
    }

    /// Roles with a pid file, in the order they are stopped in.
    pub(crate) fn roles(&self) -> Vec<Role> {
        let mut servers: Vec<ServerId> = self
            .root
            .join("run")
            .read_dir()
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                entry.ok()?.file_name().to_str()?.strip_suffix(".pid")?.parse().ok()
            })
            .collect();
        servers.sort_unstable();
        [Role::Mount]
            .into_iter()
            .chain(servers.into_iter().map(Role::Chunkserver))
            .chain([Role::Master])
            .filter(|role| self.pid_file(*role).exists())
            .collect()
    }

    /// Takes the lock: `None` if another process has it.
    pub(crate) fn try_lock(&self, doing: Doing) -> anyhow::Result<Option<Lock>> {
        let path = self.lock_file();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Its writer is gone: it would name a stranger.
                self.forget_pid(Role::Supervisor);
                let lock = Lock(file);
                lock.now(doing);
                Ok(Some(lock))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The lock that came as standard input, if it did.
    pub(crate) fn inherited_lock(&self) -> Option<Lock> {
        let input = std::io::stdin();
        let file = File::from(input.as_fd().try_clone_to_owned().ok()?);
        let (mine, there) = (file.metadata().ok()?, std::fs::metadata(self.lock_file()).ok()?);
        let same = (mine.dev(), mine.ino()) == (there.dev(), there.ino());
        let held = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        (same && held()).then_some(Lock(file))
    }

    /// What the holder of the lock is doing, if it has said so.
    pub(crate) fn doing(&self) -> Option<Doing> {
        let text = std::fs::read_to_string(self.lock_file()).ok()?;
        [Doing::Up, Doing::Down].into_iter().find(|doing| doing.word() == text)
    }

    /// The process that watches the others. Only while somebody holds the lock: its pid may be stale otherwise.
    pub(crate) fn supervisor(&self) -> Option<Process> {
        let pid = read_pid(&self.pid_file(Role::Supervisor))?;
        let marks = [self.marks(Role::Supervisor, Path::new("")), vec!["up".to_owned()]];
        marks.into_iter().map(|marks| Process { pid, marks }).find(Process::is_running)
    }

    pub(crate) fn forget_pid(&self, role: Role) {
        // Already gone is what is wanted.
        let _absent = std::fs::remove_file(self.pid_file(role));
    }
}

/// `address` if nobody listens there now, else port 0 of the same host: a restart keeps its ports when it can.
pub(crate) fn free_address(remembered: &str) -> SocketAddr {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    remembered
        .parse::<SocketAddr>()
        .ok()
        .filter(|address| std::net::TcpListener::bind(address).is_ok())
        .unwrap_or(loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_chunkservers_lower_replication_and_minimum() {
        assert_eq!(replication_for(1), (1, 1));
        assert_eq!(replication_for(2), (2, 1));
        assert_eq!(replication_for(3), (3, 2));
        assert_eq!(replication_for(7), (3, 2));
    }

    #[test]
    fn a_taken_port_is_replaced() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(free_address(&address.to_string()).port(), 0);
        drop(taken);
        assert_eq!(free_address(&address.to_string()), address);
    }
}
