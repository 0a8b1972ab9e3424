//! Pure builders of everything a file system is made of in Kubernetes, as server-side apply takes it: whole intents,
//! without what others decide.

use kube::{Resource as _, ResourceExt as _};
use serde_json::{Map, Value, json};

use crate::crd::{DeletionPolicy, DistributedFS, Resources, SecurityContext, Storage};
use crate::names::{self, CONTROL_PORT, DATA_PORT, HOSTNAME, KEY_FILE, PAGES_PORT};
use crate::observed::Role;

const DATA: &str = "/data";
const KEY_DIR: &str = "/etc/distributedfs";
const MOUNTS: &str = "/var/lib/distributedfs/mounted";
const PLACE_DIR: &str = "/etc/distributedfs-place";

/// What of the plan goes into the objects.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub image: &'a str,
    /// Servers that shall have pods: while some are drained, more than the specification says.
    pub chunkservers: i32,
    /// How many of them may be away by somebody's wish now: what the chunk map allows.
    pub disruptions: i32,
}

/// Everything but the Secret, in the order in which it is applied.
#[must_use]
pub fn all(fs: &DistributedFS, wanted: Wanted<'_>) -> Vec<Value> {
    let name = fs.name_any();
    let mut objects = vec![
        account(fs, &names::master(&name)),
        account(fs, &names::chunkservers(&name)),
        lease_role(fs, wanted),
        lease_binding(fs),
        master_service(fs),
        chunkserver_service(fs),
        master_set(fs, wanted),
        chunkserver_set(fs, wanted),
        budget(fs, wanted),
        config(fs),
    ];
    if fs.spec.mount.enabled {
        objects.push(account(fs, &names::mount(&name)));
        objects.push(mount_set(fs, wanted));
    }
    objects
}

fn metadata(fs: &DistributedFS, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": names::namespace(fs),
        "labels": names::labels(&fs.name_any()),
        "ownerReferences": fs.controller_owner_ref(&()).into_iter().collect::<Vec<_>>(),
    })
}

/// The Secret with a new key: 64 hexadecimal digits.
#[must_use]
pub fn key_secret(fs: &DistributedFS, key: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": metadata(fs, &names::key(&fs.name_any())),
        "type": "Opaque",
        "immutable": true,
        "stringData": {KEY_FILE: key},
    })
}

fn account(fs: &DistributedFS, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": metadata(fs, name),
        "automountServiceAccountToken": false,
    })
}

/// Leases are made by the operator; a server only renews its own.
fn lease_role(fs: &DistributedFS, wanted: Wanted<'_>) -> Value {
    let name = fs.name_any();
    let leases: Vec<String> =
        (1..=wanted.chunkservers).map(|n| names::lease(&name, &format!("cs-{n}"))).collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": metadata(fs, &names::chunkservers(&name)),
        "rules": [{
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
            "resourceNames": leases, "verbs": ["get", "update"],
        }],
    })
}

fn lease_binding(fs: &DistributedFS) -> Value {
    let name = names::chunkservers(&fs.name_any());
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": metadata(fs, &name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": names::namespace(fs)}],
    })
}

fn master_service(fs: &DistributedFS) -> Value {
    let name = fs.name_any();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(fs, &names::master(&name)),
        "spec": {
            "selector": names::pod_labels(&name, Role::Master),
            // The master becomes ready by what chunkservers tell it: they must reach it before.
            "publishNotReadyAddresses": true,
            "ports": [
                {"name": "control", "port": CONTROL_PORT, "targetPort": CONTROL_PORT, "protocol": "TCP"},
                {"name": "pages", "port": PAGES_PORT, "targetPort": PAGES_PORT, "protocol": "TCP"},
            ],
        },
    })
}

fn chunkserver_service(fs: &DistributedFS) -> Value {
    let name = fs.name_any();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(fs, &names::chunkservers(&name)),
        "spec": {
            "clusterIP": "None",
            "selector": names::pod_labels(&name, Role::Chunkserver),
            "publishNotReadyAddresses": true,
            "ports": [
                {"name": "data", "port": DATA_PORT, "targetPort": DATA_PORT, "protocol": "TCP"},
                {"name": "pages", "port": PAGES_PORT, "targetPort": PAGES_PORT, "protocol": "TCP"},
            ],
        },
    })
}

fn env_of_field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": "pages", "scheme": "HTTP"},
        "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
    })
}

/// Pod Security `restricted`.
fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

fn pod_security(fs: &DistributedFS) -> Value {
    let SecurityContext { run_as_user, run_as_group, fs_group, se_linux_options } =
        &fs.spec.security_context;
    let mut context = json!({
        "runAsNonRoot": true, "runAsUser": run_as_user, "runAsGroup": run_as_group,
        "fsGroup": fs_group, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let (Some(options), Some(map)) = (se_linux_options, context.as_object_mut()) {
        map.insert("seLinuxOptions".to_owned(), options.clone());
    }
    context
}

fn resources(resources: &Resources) -> Value {
    json!({"requests": resources.requests, "limits": resources.limits})
}

/// Readable for the group that a non-root process is in.
fn key_volume(fs: &DistributedFS) -> Value {
    json!({"name": "key", "secret": {"secretName": names::key(&fs.name_any()), "defaultMode": 0o440}})
}

fn key_mount() -> Value {
    json!({"name": "key", "mountPath": KEY_DIR, "readOnly": true})
}

/// The volume for a server's data, and the claim template if it has one.
fn data_volume(fs: &DistributedFS, storage: &Storage) -> (Vec<Value>, Vec<Value>) {
    let Some(size) = &storage.size else {
        return (vec![json!({"name": "data", "emptyDir": {}})], Vec::new());
    };
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": size}},
    });
    if let (Some(class), Some(map)) = (&storage.storage_class_name, spec.as_object_mut()) {
        map.insert("storageClassName".to_owned(), json!(class));
    }
    // Without owner: whether claims end with the resource is the deletion policy's business.
    let template = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "labels": names::labels(&fs.name_any())},
        "spec": spec,
    });
    (Vec::new(), vec![template])
}

fn retention(fs: &DistributedFS) -> Value {
    let deleted = match fs.spec.deletion_policy {
        DeletionPolicy::KeepData => "Retain",
        DeletionPolicy::DeleteAllData => "Delete",
    };
    // A server goes only when it was emptied and decommissioned: its directory is never used again.
    json!({"whenDeleted": deleted, "whenScaled": "Delete"})
}

struct Set<'a> {
    role: Role,
    name: String,
    replicas: i32,
    first: i32,
    storage: &'a Storage,
    container: Value,
    /// Besides data and key.
    volume: Option<Value>,
    more: Map<String, Value>,
}

fn stateful_set(fs: &DistributedFS, set: Set<'_>) -> Value {
    let Set { role, name, replicas, first, storage, container, volume, more } = set;
    let labels = names::pod_labels(&fs.name_any(), role);
    let (mut volumes, claims) = data_volume(fs, storage);
    volumes.push(key_volume(fs));
    volumes.extend(volume);
    let mut pod = json!({
        "serviceAccountName": name,
        "automountServiceAccountToken": role == Role::Chunkserver,
        "terminationGracePeriodSeconds": 30,
        "securityContext": pod_security(fs),
        "containers": [container],
        "volumes": volumes,
        "enableServiceLinks": false,
    });
    if let Some(map) = pod.as_object_mut() {
        map.extend(more);
    }
    let mut spec = json!({
        "replicas": replicas,
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        // One at a time and only while all chunks are safe: the plan's business, not the set's.
        "updateStrategy": {"type": "OnDelete"},
        "ordinals": {"start": first},
        "persistentVolumeClaimRetentionPolicy": retention(fs),
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    });
    if let (false, Some(map)) = (claims.is_empty(), spec.as_object_mut()) {
        map.insert("volumeClaimTemplates".to_owned(), json!(claims));
    }
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata(fs, &name), "spec": spec})
}

fn master_set(fs: &DistributedFS, wanted: Wanted<'_>) -> Value {
    let spec = &fs.spec;
    let mut args = vec![
        "master".to_owned(),
        format!("--data={DATA}/master"),
        format!("--listen=0.0.0.0:{CONTROL_PORT}"),
        format!("--metrics=0.0.0.0:{PAGES_PORT}"),
        format!("--key-file={KEY_DIR}/{KEY_FILE}"),
        format!("--profile={}", spec.liveness.profile.name()),
        format!("--replication={}", spec.replication),
        format!("--min-replicas={}", spec.min_replicas),
        "--change-replication".to_owned(),
        // Quantities have no B.
        format!("--chunk-size={}B", spec.chunk_size),
    ];
    let liveness = &spec.liveness;
    for (flag, value) in [
        ("heartbeat-interval", &liveness.heartbeat_interval),
        ("dead-after", &liveness.dead_after),
        ("rebuild-delay", &liveness.rebuild_delay),
    ] {
        args.extend(value.as_ref().map(|value| format!("--{flag}={value}")));
    }
    let container = json!({
        "name": "master",
        "image": wanted.image,
        "imagePullPolicy": spec.image_pull_policy.name(),
        "args": args,
        "ports": [
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
            {"name": "pages", "containerPort": PAGES_PORT, "protocol": "TCP"},
        ],
        "resources": resources(&spec.masters.resources),
        "securityContext": restricted(),
        "volumeMounts": [{"name": "data", "mountPath": DATA}, key_mount()],
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/healthz", 10, 6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let name = names::master(&fs.name_any());
    stateful_set(
        fs,
        Set {
            role: Role::Master,
            name,
            replicas: spec.masters.count,
            first: 0,
            storage: &spec.masters.storage,
            container,
            volume: None,
            more: Map::new(),
        },
    )
}

fn chunkserver_set(fs: &DistributedFS, wanted: Wanted<'_>) -> Value {
    let (fs_name, spec) = (fs.name_any(), &fs.spec);
    let mut args = vec![
        "chunkserver".to_owned(),
        format!("--data={DATA}/chunks"),
        // The pod's number: its name ends in it.
        "--id=cs-$(POD_INDEX)".to_owned(),
        format!("--listen=0.0.0.0:{DATA_PORT}"),
        format!("--advertise=$(POD_IP):{DATA_PORT}"),
        "--host=$(NODE_NAME)".to_owned(),
        format!("--metrics=0.0.0.0:{PAGES_PORT}"),
        format!("--master={}", names::endpoint(fs)),
        format!("--key-file={KEY_DIR}/{KEY_FILE}"),
        format!("--kubernetes-lease={fs_name}-cs-$(POD_INDEX)"),
    ];
    let mut mounts = vec![json!({"name": "data", "mountPath": DATA}), key_mount()];
    let mut place = None;
    if spec.topology_key != HOSTNAME {
        // A pod is not told its node's labels: the operator writes this one on it when it has a node.
        args.push(format!("--zone-file={PLACE_DIR}/zone"));
        mounts.push(json!({"name": "place", "mountPath": PLACE_DIR, "readOnly": true}));
        let field = format!("metadata.annotations['{}']", names::ZONE);
        place = Some(json!({"name": "place", "downwardAPI": {"items": [
            {"path": "zone", "fieldRef": {"apiVersion": "v1", "fieldPath": field}},
        ]}}));
    }
    let container = json!({
        "name": "chunkserver",
        "image": wanted.image,
        "imagePullPolicy": spec.image_pull_policy.name(),
        "args": args,
        "env": [
            env_of_field("POD_INDEX", "metadata.labels['apps.kubernetes.io/pod-index']"),
            env_of_field("POD_IP", "status.podIP"),
            env_of_field("NODE_NAME", "spec.nodeName"),
            env_of_field("POD_NAME", "metadata.name"),
            env_of_field("POD_UID", "metadata.uid"),
            env_of_field("POD_NAMESPACE", "metadata.namespace"),
        ],
        "ports": [
            {"name": "data", "containerPort": DATA_PORT, "protocol": "TCP"},
            {"name": "pages", "containerPort": PAGES_PORT, "protocol": "TCP"},
        ],
        "resources": resources(&spec.chunk_servers.resources),
        "securityContext": restricted(),
        "volumeMounts": mounts,
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/healthz", 10, 6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut more = Map::new();
    let labels = names::pod_labels(&fs_name, Role::Chunkserver);
    // Preferred, not required: with fewer nodes than servers they still all run.
    let spread = |key: &str| {
        json!({
            "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        })
    };
    let mut spreads = vec![spread(HOSTNAME)];
    if spec.topology_key != HOSTNAME {
        spreads.insert(0, spread(&spec.topology_key));
    }
    more.insert("topologySpreadConstraints".to_owned(), json!(spreads));
    if !spec.chunk_servers.node_selector.is_empty() {
        more.insert("nodeSelector".to_owned(), json!(spec.chunk_servers.node_selector));
    }
    if !spec.chunk_servers.tolerations.is_empty() {
        more.insert("tolerations".to_owned(), json!(spec.chunk_servers.tolerations));
    }
    stateful_set(
        fs,
        Set {
            role: Role::Chunkserver,
            name: names::chunkservers(&fs_name),
            replicas: wanted.chunkservers,
            first: 1,
            storage: &spec.chunk_servers.storage,
            container,
            volume: place,
            more,
        },
    )
}

/// For pods of others: `envFrom` makes `dfs` in them find the master.
fn config(fs: &DistributedFS) -> Value {
    let mut data = json!({"DFS_MASTER": names::endpoint(fs)});
    if fs.spec.mount.enabled {
        data["DFS_HOST_PATH"] = json!(names::host_dir(fs));
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": metadata(fs, &names::config(&fs.name_any())),
        "data": data,
    })
}

fn budget(fs: &DistributedFS, wanted: Wanted<'_>) -> Value {
    let name = fs.name_any();
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": metadata(fs, &names::chunkservers(&name)),
        "spec": {
            "maxUnavailable": wanted.disruptions,
            "selector": {"matchLabels": names::pod_labels(&name, Role::Chunkserver)},
        },
    })
}

fn mount_set(fs: &DistributedFS, wanted: Wanted<'_>) -> Value {
    let (name, mount) = (fs.name_any(), &fs.spec.mount);
    let mut args = vec![
        "mount".to_owned(),
        names::endpoint(fs),
        format!("{MOUNTS}/mnt"),
        format!("--key-file={KEY_DIR}/{KEY_FILE}"),
        format!("--metrics=0.0.0.0:{PAGES_PORT}"),
        // From a cluster that is just being made, too.
        "--server-wait=5m".to_owned(),
    ];
    if mount.read_only {
        args.push("--read-only".to_owned());
    }
    let container = json!({
        "name": "mount",
        "image": wanted.image,
        "imagePullPolicy": fs.spec.image_pull_policy.name(),
        "args": args,
        "ports": [{"name": "pages", "containerPort": PAGES_PORT, "protocol": "TCP"}],
        "resources": resources(&mount.resources),
        // Mounting for others, and having the mount seen outside of this container, take both.
        "securityContext": {"privileged": true, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true},
        "volumeMounts": [
            {"name": "mounts", "mountPath": MOUNTS, "mountPropagation": "Bidirectional"},
            key_mount(),
        ],
        "readinessProbe": probe("/readyz", 2, 2),
        // What it said last is then in its status, and from there in ours.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let labels = names::pod_labels(&name, Role::Mount);
    let mut pod = json!({
        "serviceAccountName": names::mount(&name),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        // For what it has in memory to reach the servers.
        "terminationGracePeriodSeconds": 60,
        "priorityClassName": "system-node-critical",
        "containers": [container],
        "volumes": [
            {"name": "mounts", "hostPath": {"path": names::host_dir(fs), "type": "DirectoryOrCreate"}},
            key_volume(fs),
        ],
    });
    if let Some(map) = pod.as_object_mut() {
        if !mount.node_selector.is_empty() {
            map.insert("nodeSelector".to_owned(), json!(mount.node_selector));
        }
        if !mount.tolerations.is_empty() {
            map.insert("tolerations".to_owned(), json!(mount.tolerations));
        }
    }
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": metadata(fs, &names::mount(&name)),
        "spec": {
            "selector": {"matchLabels": labels},
            // Ending a mount pod ends the files that are open on its node: when is for a person to say.
            "updateStrategy": {"type": "OnDelete"},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    })
}
