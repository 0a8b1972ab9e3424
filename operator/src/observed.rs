//! What is seen of one file system: its objects in the API server, and what its master says. Plain data, so that
//! `plan` can be tried with tables.

use std::collections::BTreeMap;

use dfs_core::ids::ServerId;

/// Everything `plan` looks at besides the resource itself.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Image of the operator, for file systems that name none.
    pub operator_image: String,
    /// By kind and name, of ours only: digest of what was applied last.
    pub applied: BTreeMap<(String, String), String>,
    pub key_there: bool,
    pub master_set: Option<SetState>,
    pub chunkserver_set: Option<SetState>,
    pub mount_set: Option<DaemonState>,
    pub pods: Vec<Pod>,
    pub master: MasterView,
    /// By server.
    pub leases: BTreeMap<ServerId, Lease>,
    /// By node of a chunkserver: the value of the topology key, if it has that label. Empty for the key every node has.
    pub zones: BTreeMap<String, Option<String>>,
    /// Pods of others that use the mount; looked for when the file system is to go.
    pub users: Vec<String>,
    /// Why the master does not let the last server go, if it does not.
    pub drain_refused: Option<String>,
}

/// Of a StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetState {
    /// In its specification.
    pub replicas: i32,
    pub pods: i32,
    pub ready: i32,
    pub update_revision: String,
    /// Its controller has seen the specification as it is.
    pub seen: bool,
}

/// Of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonState {
    pub wanted: i32,
    pub ready: i32,
    pub seen: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Master,
    Chunkserver,
    Mount,
}

impl Role {
    /// As in the label `app.kubernetes.io/component`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Chunkserver => "chunkserver",
            Self::Mount => "mount",
        }
    }

    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        [Self::Master, Self::Chunkserver, Self::Mount]
            .into_iter()
            .find(|role| role.label() == label)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub role: Role,
    /// Of a chunkserver, from its name.
    pub server: Option<ServerId>,
    pub node: Option<String>,
    pub ready: bool,
    /// It is asked to end.
    pub ending: bool,
    /// Of its set, when it was made.
    pub revision: String,
    /// Why it does not run, if somebody must do something about it.
    pub problem: Option<String>,
    /// Value of its annotation `distributedfs.io/failover`.
    pub failover: Option<String>,
    /// What it was told of its place.
    pub zone: Option<String>,
}

/// What the master said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MasterView {
    /// It has no ready pod: not asked.
    #[default]
    Absent,
    /// It was asked and did not answer; why.
    Silent(String),
    Told(Report),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// warming, serving.
    pub phase: String,
    pub replication: u32,
    pub min_replicas: u32,
    pub servers: Vec<Server>,
    pub total: u64,
    pub safe: u64,
    pub degraded: u64,
    pub endangered: u64,
    pub unavailable: u64,
    pub lost: u64,
}

impl Report {
    #[must_use]
    pub fn short(&self) -> u64 {
        self.degraded + self.endangered + self.unavailable + self.lost
    }

    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.iter().find(|server| server.id == id)
    }

    /// Silent for a moment, and nobody wished so: soon it is alive or dead.
    #[must_use]
    pub fn suspect_besides(&self, named: &[ServerId]) -> Option<ServerId> {
        let undecided = |server: &&Server| {
            server.state == "suspect"
                && server.overlay("suspended").is_none()
                && !named.contains(&server.id)
        };
        self.servers.iter().find(undecided).map(|server| server.id)
    }

    #[must_use]
    pub fn alive(&self) -> usize {
        self.servers.iter().filter(|server| server.is_alive()).count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub id: ServerId,
    /// alive, suspect, dead.
    pub state: String,
    pub overlays: Vec<Overlay>,
    pub chunks: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
}

impl Server {
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state == "alive"
    }

    #[must_use]
    pub fn overlay(&self, kind: &str) -> Option<&Overlay> {
        self.overlays.iter().find(|overlay| overlay.kind == kind)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    pub kind: String,
    pub by: String,
}

/// As judged by this process's clock, from the moment it saw the Lease change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    Held,
    Lapsed,
    /// Nobody took it since it was made.
    Untaken,
}
