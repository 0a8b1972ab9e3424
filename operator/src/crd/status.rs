//! What the operator tells about a file system. Numbers come from its master, never from guesses.

#![expect(
    unreachable_pub,
    reason = "the derive of kube makes a second type of each, which nobody can name"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Condition types; each has `observedGeneration`.
pub mod condition {
    /// It can be read and written.
    pub const READY: &str = "Ready";
    /// Its pods are being made, changed or removed.
    pub const PROGRESSING: &str = "Progressing";
    /// A server is away, or a chunk has too few copies.
    pub const DEGRADED: &str = "Degraded";
    /// All chunks have all their copies on live servers.
    pub const DATA_SAFE: &str = "DataSafe";
    /// As `Progressing`: the name that `kstatus` and so `helm --wait` look for.
    pub const RECONCILING: &str = "Reconciling";
    /// It does not go on by itself: a person must change something.
    pub const STALLED: &str = "Stalled";
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DistributedFSStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Creating, Ready, Degraded, Unavailable, Paused, Deleting.
    #[serde(default)]
    pub phase: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    #[serde(default)]
    pub chunk_servers: ServerCounts,
    /// As the master knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub servers: Vec<ServerStatus>,
    #[serde(default)]
    pub chunks: ChunkCounts,
    #[serde(default)]
    pub capacity: Capacity,
    #[serde(default)]
    pub mounts: MountCounts,
    /// Address of the master, for `dfs --master`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Directory of each node that holds the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Image that all pods run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_command: Option<LastCommand>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServerCounts {
    /// Pods that are there.
    #[serde(default)]
    pub total: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready: i32,
    /// Servers that the master hears.
    #[serde(default)]
    pub alive: i32,
    /// Of their pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// cs-1, cs-2, …
    pub name: String,
    /// alive, suspect, dead.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Wishes about it: suspended, draining, maintenance, probation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<String>,
    pub chunks: i64,
    pub used_bytes: i64,
    pub free_bytes: i64,
    /// Whether its Lease is kept up: Held, Lapsed, Missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ChunkCounts {
    #[serde(default)]
    pub total: i64,
    #[serde(default)]
    pub safe: i64,
    /// Fewer copies than asked for, at least two.
    #[serde(default)]
    pub degraded: i64,
    /// One copy.
    #[serde(default)]
    pub endangered: i64,
    /// None on a live server.
    #[serde(default)]
    pub unavailable: i64,
    #[serde(default)]
    pub lost: i64,
    /// All that are not safe.
    #[serde(default)]
    pub short: i64,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// On the disks of live servers, all copies counted. Rounded to 16 MiB, or the status would never be at rest.
    #[serde(default)]
    pub used_bytes: i64,
    #[serde(default)]
    pub free_bytes: i64,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MountCounts {
    #[serde(default)]
    pub wanted: i32,
    #[serde(default)]
    pub ready: i32,
}

/// The last annotation that was taken as a command.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastCommand {
    /// failover, recover, drain, maintenance, rebalance.
    pub name: String,
    pub value: String,
    pub requested_at: String,
    /// Done, Refused (it was understood, and the master said no), Invalid (it was not understood).
    pub result: String,
    pub message: String,
}
