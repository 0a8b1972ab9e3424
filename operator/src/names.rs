//! Names of everything that belongs to a file system, and the labels it is found by.

use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::crd::DistributedFS;
use crate::observed::Role;

/// Field manager of server-side apply; a constant for all time, or old fields would have two owners.
pub const MANAGER: &str = "dfs-operator";
/// What wishes are signed with in the master's log, by why they are made: what was wished by a person is not ended by us.
pub const SIGNED_COMMAND: &str = "annotation";
pub const SIGNED_SCALING: &str = "dfs-operator: scaling";
pub const SIGNED_RENEWAL: &str = "dfs-operator: renewal";
/// Kept on the resource until its mounts are gone: a mount whose servers went first could not be taken off cleanly.
pub const FINALIZER: &str = "distributedfs.io/cleanup";
/// Field manager of the finalizer alone.
pub const FINALIZER_MANAGER: &str = "dfs-operator-finalizer";
/// Digest of what was applied last.
pub const APPLIED: &str = "distributedfs.io/applied";
/// `disabled`: as `spec.paused`.
pub const RECONCILE: &str = "distributedfs.io/reconcile";
/// On a chunkserver's pod: the value of the topology key on its node. The pod reads it as a file.
pub const ZONE: &str = "distributedfs.io/zone";
/// On a file system that is being deleted: `true` ends mounts that pods still use.
pub const FORCE_DELETION: &str = "distributedfs.io/force-deletion";
/// The label that every node has.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The cluster key in its Secret, and as a file.
pub const KEY_FILE: &str = "cluster.key";
pub const CONTROL_PORT: u16 = 7000;
pub const DATA_PORT: u16 = 7001;
pub const PAGES_PORT: u16 = 9600;

#[must_use]
pub fn namespace(fs: &DistributedFS) -> String {
    fs.namespace().unwrap_or_default()
}
#[must_use]
pub fn master(fs: &str) -> String {
    format!("{fs}-master")
}
#[must_use]
pub fn chunkservers(fs: &str) -> String {
    format!("{fs}-cs")
}
#[must_use]
pub fn mount(fs: &str) -> String {
    format!("{fs}-mount")
}
#[must_use]
pub fn key(fs: &str) -> String {
    format!("{fs}-key")
}
/// Addresses for pods of others, as environment variables.
#[must_use]
pub fn config(fs: &str) -> String {
    format!("{fs}-config")
}
/// The Lease of server `server` (cs-1).
#[must_use]
pub fn lease(fs: &str, server: &str) -> String {
    format!("{fs}-{server}")
}
/// Address of the master for everybody in the cluster.
#[must_use]
pub fn endpoint(fs: &DistributedFS) -> String {
    format!("{}.{}.svc:{CONTROL_PORT}", master(&fs.name_any()), namespace(fs))
}
/// Directory of a node in which the mount is.
#[must_use]
pub fn host_dir(fs: &DistributedFS) -> String {
    fs.spec
        .mount
        .host_path
        .clone()
        .unwrap_or_else(|| format!("/var/lib/distributedfs/{}/{}", namespace(fs), fs.name_any()))
}

/// Of all objects of one file system.
#[must_use]
pub fn labels(fs: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "distributedfs",
        "app.kubernetes.io/instance": fs,
        "app.kubernetes.io/managed-by": MANAGER,
    })
}

/// Of the pods of one role, and what they are selected by: never changed, since selectors cannot be.
#[must_use]
pub fn pod_labels(fs: &str, role: Role) -> Value {
    let mut labels = labels(fs);
    if let Some(map) = labels.as_object_mut() {
        map.insert("app.kubernetes.io/component".to_owned(), json!(role.label()));
    }
    labels
}

/// The same as a selector in text.
#[must_use]
pub fn selector(fs: &str, role: Role) -> String {
    format!(
        "app.kubernetes.io/name=distributedfs,app.kubernetes.io/instance={fs},app.kubernetes.io/managed-by={MANAGER},app.kubernetes.io/component={}",
        role.label()
    )
}
