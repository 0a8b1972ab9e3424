//! Looks at everything that belongs to one file system. No decisions, except what words a pod's trouble has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dfs_core::ids::ServerId;
use dfs_service::conn::ClusterKey;
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::api::core::v1::{Node, Pod as PodObject, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use crate::crd::DistributedFS;
use crate::master::Master;
use crate::names::{self, KEY_FILE};
use crate::observed::{DaemonState, Lease, MasterView, Observed, Pod, Role, SetState};

/// After so long without a renewal, counted from when we saw the last one.
const LEASE_MAX: Duration = Duration::from_secs(40);
/// Why a container waits that somebody must do something about.
const TROUBLES: [&str; 7] = [
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// What this process remembers of Leases: when each was seen to change.
pub type LeaseClock = BTreeMap<(String, String), (String, Instant)>;

/// What was seen, and the way to the master.
#[derive(Debug)]
pub struct Seen {
    pub observed: Observed,
    pub master: Option<Master>,
}

/// Reads all there is of `fs`.
///
/// # Errors
/// If the API server does not answer; a silent master is part of what is seen.
pub async fn observe(
    client: &Client,
    fs: &DistributedFS,
    clock: &std::sync::Mutex<LeaseClock>,
) -> kube::Result<Seen> {
    let (namespace, name) = (names::namespace(fs), fs.name_any());
    let ours = ListParams::default().labels(&format!(
        "app.kubernetes.io/managed-by={},app.kubernetes.io/instance={name}",
        names::MANAGER
    ));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let pods: Api<PodObject> = Api::namespaced(client.clone(), &namespace);
    let leases: Api<LeaseObject> = Api::namespaced(client.clone(), &namespace);
    let key_name = names::key(&name);
    let (secret, sets, daemons, pods, leases) = tokio::try_join!(
        secrets.get_opt(&key_name),
        sets.list(&ours),
        daemons.list(&ours),
        pods.list(&ours),
        leases.list(&ours),
    )?;

    let set_named = |wanted: &str| sets.items.iter().find(|set| set.name_any() == wanted);
    // Its pod itself: neither names nor Services need to work for it to be asked.
    let address = pods.items.iter().find_map(|object| {
        pod(object).filter(|pod| pod.role == Role::Master && !pod.ending)?;
        let ip = object.status.as_ref()?.pod_ip.as_ref()?;
        Some(format!("{ip}:{}", names::CONTROL_PORT))
    });
    let pods: Vec<Pod> = pods.items.iter().filter_map(pod).collect();
    let key = secret.as_ref().and_then(key_of);
    let master = address.zip(key).map(|(address, key)| Master::new(&address, &key));
    let view = match &master {
        None => MasterView::Absent,
        Some(master) => match master.report().await {
            Ok(report) => MasterView::Told(report),
            Err(failed) => MasterView::Silent(failed.to_string()),
        },
    };
    let mut applied = BTreeMap::new();
    for (kind, object, annotations) in sets
        .items
        .iter()
        .map(|set| ("StatefulSet", set.name_any(), set.annotations()))
        .chain(daemons.items.iter().map(|set| ("DaemonSet", set.name_any(), set.annotations())))
    {
        if let Some(digest) = annotations.get(names::APPLIED) {
            applied.insert((kind.to_owned(), object), digest.clone());
        }
    }
    let zones = zones(client, fs, &pods).await?;
    let users = match fs.metadata.deletion_timestamp {
        Some(_) => users(client, fs).await?,
        None => Vec::new(),
    };
    let observed = Observed {
        zones,
        users,
        applied,
        key_there: secret.is_some(),
        master_set: set_named(&names::master(&name)).map(set_state),
        chunkserver_set: set_named(&names::chunkservers(&name)).map(set_state),
        mount_set: daemons
            .items
            .iter()
            .find(|set| set.name_any() == names::mount(&name))
            .map(daemon_state),
        leases: leases_of(
            &name,
            &leases.items,
            &pods,
            &mut clock.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        ),
        pods,
        master: view,
        ..Observed::default()
    };
    Ok(Seen { observed, master })
}

async fn zones(
    client: &Client,
    fs: &DistributedFS,
    pods: &[Pod],
) -> kube::Result<BTreeMap<String, Option<String>>> {
    let mut zones = BTreeMap::new();
    if fs.spec.topology_key == names::HOSTNAME {
        return Ok(zones);
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let servers = pods.iter().filter(|pod| pod.role == Role::Chunkserver && !pod.ending);
    for name in servers.filter_map(|pod| pod.node.as_ref()) {
        if !zones.contains_key(name)
            && let Some(node) = nodes.get_opt(name).await?
        {
            zones.insert(name.clone(), node.labels().get(&fs.spec.topology_key).cloned());
        }
    }
    Ok(zones)
}

/// Pods of the namespace, other than ours, that have the mount's directory and did not end.
async fn users(client: &Client, fs: &DistributedFS) -> kube::Result<Vec<String>> {
    let pods: Api<PodObject> = Api::namespaced(client.clone(), &names::namespace(fs));
    let dir = names::host_dir(fs);
    let uses = |pod: &&PodObject| {
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut paths = volumes.filter_map(|volume| Some(volume.host_path.as_ref()?.path.as_str()));
        !matches!(ended, Some("Succeeded" | "Failed"))
            && pod.metadata.deletion_timestamp.is_none()
            && pod.labels().get("app.kubernetes.io/managed-by").map(String::as_str)
                != Some(names::MANAGER)
            && paths.any(|path| std::path::Path::new(path).starts_with(&dir))
    };
    let all = pods.list(&ListParams::default()).await?;
    Ok(all.items.iter().filter(uses).map(kube::ResourceExt::name_any).collect())
}

fn key_of(secret: &Secret) -> Option<ClusterKey> {
    ClusterKey::from_hex(&key_text(secret)?)
}

pub(crate) fn key_text(secret: &Secret) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(KEY_FILE)?.0;
    Some(std::str::from_utf8(bytes).ok()?.trim().to_owned())
}

fn set_state(set: &StatefulSet) -> SetState {
    let status = set.status.clone().unwrap_or_default();
    SetState {
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
        pods: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        update_revision: status.update_revision.unwrap_or_default(),
        seen: status.observed_generation == set.metadata.generation,
    }
}

fn daemon_state(set: &DaemonSet) -> DaemonState {
    let status = set.status.clone().unwrap_or_default();
    DaemonState {
        wanted: status.desired_number_scheduled,
        ready: status.number_ready,
        seen: status.observed_generation == set.metadata.generation,
    }
}

pub(crate) fn pod(object: &PodObject) -> Option<Pod> {
    let label = |name: &str| object.labels().get(name).cloned();
    let role = Role::of_label(&label("app.kubernetes.io/component")?)?;
    let name = object.name_any();
    let server: Option<ServerId> = (role == Role::Chunkserver)
        .then(|| name.rsplit('-').next().and_then(|number| format!("cs-{number}").parse().ok()))
        .flatten();
    let status = object.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(Pod {
        uid: object.uid().unwrap_or_default(),
        role,
        server,
        node: object.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ready,
        ending: object.metadata.deletion_timestamp.is_some(),
        revision: label("controller-revision-hash").unwrap_or_default(),
        problem: if ready { None } else { problem(&status) },
        failover: object.annotations().get("distributedfs.io/failover").cloned(),
        zone: object.annotations().get(names::ZONE).cloned(),
        name,
    })
}

/// What somebody must do something about, in words.
fn problem(status: &k8s_openapi::api::core::v1::PodStatus) -> Option<String> {
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!("no node for it: {}", condition.message.clone().unwrap_or_default()));
    }
    status.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone()?;
        if !TROUBLES.contains(&reason.as_str()) {
            return None;
        }
        let mut words = format!("{reason}: {}", waiting.message.clone().unwrap_or_default());
        if reason.contains("Image") {
            words = format!("{words}; name an image that the nodes can get in spec.image");
        } else if reason == "CrashLoopBackOff" {
            let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            let said = ended.and_then(|ended| ended.message.as_deref()).map_or("", last_line);
            words = match said {
                "" => format!("{words}; see `kubectl logs --previous`"),
                said if said.contains("/dev/fuse") => format!(
                    "{reason}: {said}; load the module fuse on that node (modprobe fuse), or leave the node out by spec.mount.nodeSelector"
                ),
                said if said.contains("is mounted there already") => format!(
                    "{reason}: {said}; here that is another file system: give each its own spec.mount.hostPath, or none"
                ),
                said => format!("{reason}: {said}"),
            };
        }
        Some(words)
    })
}

/// What a program said last, not without a bound.
fn last_line(text: &str) -> &str {
    let line = text.trim_end().lines().next_back().unwrap_or_default().trim();
    line.char_indices().nth(300).map_or(line, |(end, _)| line.get(..end).unwrap_or(line))
}

/// By server, of those whose Lease belongs to the pod that is there now.
fn leases_of(
    fs: &str,
    objects: &[LeaseObject],
    pods: &[Pod],
    clock: &mut LeaseClock,
) -> BTreeMap<ServerId, Lease> {
    let now = Instant::now();
    let mut leases = BTreeMap::new();
    for pod in pods {
        let Some(server) = pod.server else { continue };
        let name = names::lease(fs, &server.to_string());
        let Some(object) = objects.iter().find(|object| object.name_any() == name) else {
            continue;
        };
        let owner = object.owner_references().iter().any(|owner| owner.uid == pod.uid);
        if !owner {
            // Of the pod before: the garbage collector takes it.
            continue;
        }
        let spec = object.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(pod.uid.as_str()) {
            leases.insert(server, Lease::Untaken);
            continue;
        }
        let renewed = spec.renew_time.map_or_else(String::new, |time| time.0.to_string());
        let key = (object.namespace().unwrap_or_default(), name);
        let seen = clock.entry(key).or_insert_with(|| (renewed.clone(), now));
        if seen.0 != renewed {
            *seen = (renewed, now);
        }
        let lapsed = LEASE_MAX <= now.duration_since(seen.1);
        leases.insert(server, if lapsed { Lease::Lapsed } else { Lease::Held });
    }
    leases
}
