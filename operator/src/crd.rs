//! The resource `DistributedFS`: what a person asks for and what they are told.
//!
//! The schema is made from these types and kept in the chart; `dfs operator crd` prints it. What can be checked without
//! looking at the cluster is checked by the API server, with the rules that stand here.

#![expect(
    unreachable_pub,
    reason = "the derive of kube makes a second type of each, which nobody can name"
)]

pub mod status;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names;

pub use status::{DistributedFSStatus, LastCommand, ServerStatus};

pub const GROUP: &str = "distributedfs.io";

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "distributedfs.io",
    version = "v1alpha1",
    kind = "DistributedFS",
    plural = "distributedfs",
    singular = "distributedfs",
    shortname = "dfs",
    category = "storage",
    category = "all",
    namespaced,
    doc = "A replicated POSIX file system: one master, chunkservers, and a mount on every chosen node.",
    status = "DistributedFSStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.chunkServers.replicas",
        status_replicas_path = ".status.chunkServers.total",
        label_selector_path = ".status.chunkServers.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Safe", type_ = "string", json_path = r#".status.conditions[?(@.type=="DataSafe")].status"#),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.chunkServers.alive"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.chunkServers.replicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Chunks", type_ = "integer", json_path = ".status.chunks.total", priority = 1),
    printcolumn(name = "Unsafe", type_ = "integer", json_path = ".status.chunks.short", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name has more than 40 characters, and names of pods are made from it: choose a shorter one")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.replication <= self.chunkServers.replicas")
        .message("replication is higher than chunkServers.replicas: no two copies go on one server, so lower it or ask for more servers")
        .field_path(".replication"),
    validation = Rule::new("self.minReplicas <= self.replication")
        .message("minReplicas is higher than replication: writes would never be accepted; lower it")
        .field_path(".minReplicas")
)]
pub struct DistributedFSSpec {
    /// Image of all pods. Left out: the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// True: nothing is changed until it is false again; the status goes on.
    #[serde(default)]
    pub paused: bool,
    pub masters: Masters,
    pub chunk_servers: ChunkServers,
    /// Copies of every chunk.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 8))]
    pub replication: i32,
    /// Copies that must be reachable for a write.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 8))]
    pub min_replicas: i32,
    /// Of new files, unless their directory has another: a power of two from 4Ki to 256Mi.
    #[serde(default = "chunk_size")]
    #[x_kube(validation = Rule::new("self.matches('^(4|8|16|32|64|128|256|512)Ki$') || self.matches('^(1|2|4|8|16|32|64|128|256)Mi$')")
        .message("chunkSize is not a power of two from 4Ki to 256Mi, such as 64Mi"),
        validation = Rule::new("self == oldSelf")
        .message("chunkSize cannot be changed, since files keep what they were made with: make a directory with `dfs mkdir --chunk-size` for files with another"))]
    pub chunk_size: String,
    /// Label of nodes: copies of a chunk, and the pods of servers, are spread over its values. Each node that a server runs
    /// on must have it.
    #[serde(default = "topology_key")]
    #[x_kube(validation = Rule::new("size(self) <= 253 && self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')")
        .message("topologyKey is not the name of a label, such as topology.kubernetes.io/zone"))]
    pub topology_key: String,
    #[serde(default)]
    pub security_context: SecurityContext,
    #[serde(default)]
    pub liveness: Liveness,
    #[serde(default)]
    pub mount: Mount,
    /// Says whether the volume claims of a deleted file system go, too.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl PullPolicy {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Whose pods masters and chunkservers are. All else is as Pod Security `restricted` wants it; mounts must be privileged.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.runAsUser > 0 && self.runAsGroup > 0 && self.fsGroup > 0")
    .message("securityContext names the user or a group 0, and servers never run as root: give a number such as 65532"),
    validation = Rule::new("self.runAsUser == oldSelf.runAsUser && self.runAsGroup == oldSelf.runAsGroup")
    .message("runAsUser and runAsGroup cannot be changed: what servers wrote belongs to that user"))]
pub struct SecurityContext {
    #[serde(default = "user")]
    pub run_as_user: i64,
    #[serde(default = "user")]
    pub run_as_group: i64,
    /// Group of the volumes.
    #[serde(default = "user")]
    pub fs_group: i64,
    /// As in a pod's specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque")]
    pub se_linux_options: Option<serde_json::Value>,
}

impl Default for SecurityContext {
    fn default() -> Self {
        let user = user();
        Self { run_as_user: user, run_as_group: user, fs_group: user, se_linux_options: None }
    }
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Volume claims stay; a file system of the same name made later finds its data.
    #[default]
    KeepData,
    /// Volume claims go with the resource, and all data with them.
    DeleteAllData,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Masters {
    #[serde(default = "one")]
    #[x_kube(validation = Rule::new("self == 1")
        .message("masters.count is not 1: one master is all there is in this version"))]
    pub count: i32,
    pub storage: Storage,
    #[serde(default)]
    pub resources: Resources,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ChunkServers {
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    /// Of each server.
    pub storage: Storage,
    #[serde(default)]
    pub resources: Resources,
    /// Labels of the nodes they may run on.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub node_selector: std::collections::BTreeMap<String, String>,
    /// As in a pod's specification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "opaque_list")]
    pub tolerations: Vec<serde_json::Value>,
}

/// Where a server keeps its data: a volume claim of its own, or a directory that ends with its pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.size) != has(self.ephemeral)")
        .message("storage needs either size, for a volume claim, or ephemeral: {acknowledgeDataLoss: true}, for a directory that ends with its pod"),
    validation = Rule::new("has(self.size) || !has(self.storageClassName)")
        .message("storageClassName has no meaning without size: name a size, or leave it out"),
    validation = Rule::new("self == oldSelf")
        .message("storage cannot be changed: make a second file system with the storage you want and copy the files")
)]
pub struct Storage {
    /// Of the volume claim, for example 100Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == string && isQuantity(self) && quantity(self).isGreaterThan(quantity('127Mi'))")
        .message("size is not a quantity of at least 128Mi written as a string, such as \"100Gi\""))]
    pub size: Option<Quantity>,
    /// Left out: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<Ephemeral>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Ephemeral {
    #[x_kube(validation = Rule::new("self")
        .message("ephemeral.acknowledgeDataLoss is not true: what such a server holds is lost whenever its pod ends"))]
    pub acknowledge_data_loss: bool,
}

/// As in a container's specification.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub requests: std::collections::BTreeMap<String, Quantity>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub limits: std::collections::BTreeMap<String, Quantity>,
}

/// How fast a silent server is noticed, and how long its chunks wait for it. Numbers win over the profile.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    #[serde(default)]
    pub profile: Profile,
    /// For example 500ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(ms|s|m)$')")
        .message("heartbeatInterval is not a time such as 500ms, 5s or 1m"))]
    pub heartbeat_interval: Option<String>,
    /// At least three intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(ms|s|m)$')")
        .message("deadAfter is not a time such as 500ms, 15s or 1m"))]
    pub dead_after: Option<String>,
    /// How long chunks may have too few copies before others are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(ms|s|m|h)$')")
        .message("rebuildDelay is not a time such as 0s, 60s or 10m"))]
    pub rebuild_delay: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Heartbeat 5 s, dead after 15 s, rebuild after 60 s.
    #[default]
    Standard,
    /// Heartbeat 1 s, dead after 3 s, rebuild at once.
    Drill,
    /// Heartbeat 1 s, dead after 10 s, rebuild after 60 s.
    Router,
}

impl Profile {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Drill => "drill",
            Self::Router => "router",
        }
    }
}

/// The mount on every chosen node, which other pods see with `mountPropagation: HostToContainer`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Labels of the nodes to mount on. Empty: all.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub node_selector: std::collections::BTreeMap<String, String>,
    /// As in a pod's specification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "opaque_list")]
    pub tolerations: Vec<serde_json::Value>,
    /// Directory of the node in which `mnt` becomes the mount. Left out: /var/lib/distributedfs/NAMESPACE/NAME.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._/-]+$') && !self.contains('..')")
        .message("mount.hostPath is not an absolute path of letters, digits, dots, dashes and slashes, without .."),
        validation = Rule::new("self == oldSelf")
        .message("mount.hostPath cannot be changed while the file system is mounted there: disable the mount first, then leave hostPath out, then name another"))]
    pub host_path: Option<String>,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub resources: Resources,
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            enabled: true,
            node_selector: std::collections::BTreeMap::new(),
            tolerations: Vec::new(),
            host_path: None,
            read_only: false,
            resources: Resources::default(),
        }
    }
}

fn opaque_list(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 100,
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    })
}

fn opaque(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true
    })
}

fn chunk_size() -> String {
    "64Mi".to_owned()
}
fn topology_key() -> String {
    names::HOSTNAME.to_owned()
}
/// The user of the image.
fn user() -> i64 {
    65532
}
fn one() -> i32 {
    1
}
fn two() -> i32 {
    2
}
fn three() -> i32 {
    3
}
fn yes() -> bool {
    true
}

/// The definition of the resource for the API server.
#[must_use]
pub fn definition()
-> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
    use kube::CustomResourceExt as _;
    let mut definition = DistributedFS::crd();
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let properties = schema.and_then(|schema| schema.properties.as_mut());
        if let Some(status) = properties.and_then(|properties| properties.get_mut("status")) {
            // One without any status counts as finished for `helm --wait`: nobody has looked at it yet.
            status.default =
                Some(k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(
                    serde_json::json!({"observedGeneration": -1}),
                ));
        }
    }
    definition
}

/// The definition as the chart has it.
///
/// # Errors
/// If it cannot be written as YAML.
pub fn definition_yaml() -> anyhow::Result<String> {
    let definition = serde_json::to_value(definition())?;
    let text = serde_saphyr::to_string(&definition)?;
    Ok(format!(
        "# Printed by `dfs operator crd`, from operator/src/crd.rs; compared by tests/tidy.\n{text}"
    ))
}
