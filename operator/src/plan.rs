//! What should be done next for one file system: a pure function of the resource and what is seen. The shell performs
//! the actions in their order and asks again; each may be the last one before it is killed.

mod health;

use dfs_core::ids::ServerId;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::command::{self, Command};
use crate::crd::DistributedFS;
use crate::crd::status::DistributedFSStatus;
use crate::names;
use crate::observed::{MasterView, Observed, Pod, Report, Role};
use crate::resources::{self, Wanted};

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The resource is to wait for us when it is deleted.
    AddFinalizer,
    /// Its mounts are gone: the rest goes by itself.
    RemoveFinalizer,
    /// Make the Secret with a new key, unless there is one.
    MakeKey,
    /// Server-side apply of a whole intent.
    Apply(Value),
    /// The mount is no longer wanted.
    DeleteMount,
    /// Tell a server's pod where its node stands.
    TellZone { pod: String, zone: String },
    /// A Lease for a server's pod, which owns it.
    MakeLease { server: ServerId, pod: String, uid: String },
    /// A command of a person, by annotation `name`; its annotation goes when it was tried.
    Run { name: String, value: String, on: On, command: Result<Command, String> },
    /// Empty a server that is to go.
    Drain { server: ServerId },
    /// It was to go, and is wanted again.
    EndDrain { server: ServerId },
    /// Its pod is back after a renewal.
    EndMaintenance { server: ServerId },
    /// It is empty: take it out for good.
    Decommission { server: ServerId },
    /// End a pod that runs an old specification; its server is announced to be away.
    Renew { pod: String, uid: String, server: Option<ServerId> },
}

/// What carries a command's annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    Resource,
    Pod(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: DistributedFSStatus,
    /// What somebody must do something about: reason and words of its Event.
    pub problem: Option<(&'static str, String)>,
}

/// Decides the next actions and the status. `now` is the time as conditions write it (RFC 3339).
#[must_use]
pub fn plan(fs: &DistributedFS, seen: &Observed, now: jiff_time::Now) -> Plan {
    let mut actions = Vec::new();
    if fs.metadata.deletion_timestamp.is_some() {
        return Plan {
            actions: deletion(fs, seen),
            status: health::deleting(fs, seen, now),
            problem: health::in_use(fs, seen).map(|words| ("InUse", words)),
        };
    }
    let paused = is_paused(fs);
    let desired = desired_servers(fs, seen);
    if !paused {
        if !fs.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
            actions.push(Action::AddFinalizer);
        }
        converge(fs, seen, &desired, &mut actions);
    }
    let busy = actions.iter().any(|action| !is_aside(action));
    if !paused {
        commands(fs, seen, &mut actions);
        if !busy {
            actions.extend(renewal(seen));
        }
    }
    let status =
        health::status(fs, seen, &health::Doing { paused, busy, leaving: desired.leaving }, now);
    let problem = health::problem(fs, seen).map(|words| ("PodProblem", words));
    Plan { actions, status, problem }
}

/// Done while nothing is changed that a person would wait for.
fn is_aside(action: &Action) -> bool {
    match action {
        Action::MakeLease { .. } => true,
        Action::Apply(object) => identity(object).0 == "PodDisruptionBudget",
        Action::AddFinalizer
        | Action::RemoveFinalizer
        | Action::MakeKey
        | Action::DeleteMount
        | Action::TellZone { .. }
        | Action::Run { .. }
        | Action::Drain { .. }
        | Action::EndDrain { .. }
        | Action::EndMaintenance { .. }
        | Action::Decommission { .. }
        | Action::Renew { .. } => false,
    }
}

/// How many chunkserver pods may be evicted now. One, as long as the master says that nobody would miss it; none without
/// its word, or while a copy is missing already.
fn disruptions(seen: &Observed) -> i32 {
    let MasterView::Told(report) = &seen.master else { return 0 };
    let there = report.servers.iter().filter(|s| s.overlay("decommissioned").is_none());
    let needed = usize::try_from(report.min_replicas).unwrap_or(usize::MAX);
    let spare = report.short() == 0
        && report.phase == "serving"
        && report.min_replicas < report.replication
        && there.clone().all(crate::observed::Server::is_alive)
        && needed < there.count();
    i32::from(spare)
}

/// Mounts first, while their servers still answer; everything else has an owner and goes with it.
fn deletion(fs: &DistributedFS, seen: &Observed) -> Vec<Action> {
    let ours = fs.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    let mounts = seen.pods.iter().any(|pod| pod.role == Role::Mount);
    match (seen.mount_set.is_some(), mounts, ours) {
        (true, _, _) if health::in_use(fs, seen).is_some() => Vec::new(),
        (true, _, _) => vec![Action::DeleteMount],
        (false, false, true) => vec![Action::RemoveFinalizer],
        (false, true, _) | (false, false, false) => Vec::new(),
    }
}

/// Time as this module gets it.
pub mod jiff_time {
    pub type Now = k8s_openapi::jiff::Timestamp;
}

#[must_use]
pub fn is_paused(fs: &DistributedFS) -> bool {
    let by_annotation = fs.annotations().get(names::RECONCILE).is_some_and(|v| v == "disabled");
    fs.spec.paused || by_annotation
}

/// Image of all pods.
#[must_use]
pub fn image<'a>(fs: &'a DistributedFS, seen: &'a Observed) -> &'a str {
    fs.spec.image.as_deref().unwrap_or(&seen.operator_image)
}

/// How many chunkserver pods there shall be, and what must happen before there may be fewer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Desired {
    replicas: i32,
    /// The one that goes next.
    leaving: Option<ServerId>,
    action: Option<Action>,
}

fn server_id(number: i32) -> Option<ServerId> {
    format!("cs-{number}").parse().ok()
}

/// More servers come at once. Of fewer, the last goes when the master says that it is empty; without a word from the
/// master nobody goes.
fn desired_servers(fs: &DistributedFS, seen: &Observed) -> Desired {
    let wanted = fs.spec.chunk_servers.replicas;
    let Some(set) = &seen.chunkserver_set else {
        return Desired { replicas: wanted, ..Desired::default() };
    };
    let report = match &seen.master {
        // A master that just started may not know yet who belongs to it.
        MasterView::Told(report) if report.phase == "serving" => report,
        MasterView::Told(_) | MasterView::Absent | MasterView::Silent(_) => {
            return Desired { replicas: wanted.max(set.replicas), ..Desired::default() };
        }
    };
    if set.replicas <= wanted {
        return Desired { replicas: wanted, leaving: None, action: wanted_again(wanted, report) };
    }
    let Some(last) = server_id(set.replicas) else {
        return Desired { replicas: set.replicas, ..Desired::default() };
    };
    let stays = |action| Desired { replicas: set.replicas, leaving: Some(last), action };
    match report.server(last) {
        // Never joined, or decommissioned.
        None => Desired { replicas: set.replicas - 1, leaving: Some(last), action: None },
        Some(server) if server.overlay("decommissioned").is_some() => {
            Desired { replicas: set.replicas - 1, leaving: Some(last), action: None }
        }
        Some(server) if server.overlay("draining").is_none() => {
            stays(Some(Action::Drain { server: last }))
        }
        Some(server) if 0 < server.chunks => stays(None),
        Some(_) => stays(Some(Action::Decommission { server: last })),
    }
}

/// A server that is drained because it was to go, and need not go any more.
fn wanted_again(wanted: i32, report: &Report) -> Option<Action> {
    (1..=wanted).filter_map(server_id).find_map(|id| {
        let overlay = report.server(id)?.overlay("draining")?;
        (overlay.by == names::SIGNED_SCALING).then_some(Action::EndDrain { server: id })
    })
}

fn converge(fs: &DistributedFS, seen: &Observed, desired: &Desired, actions: &mut Vec<Action>) {
    if !seen.key_there {
        actions.push(Action::MakeKey);
    }
    let wanted = Wanted {
        image: image(fs, seen),
        chunkservers: desired.replicas,
        disruptions: disruptions(seen),
    };
    for object in resources::all(fs, wanted) {
        let object = with_digest(object);
        let (id, digest) = (identity(&object), digest_of(&object));
        if seen.applied.get(&id) != Some(&digest) {
            actions.push(Action::Apply(object));
        }
    }
    let mount = ("DaemonSet".to_owned(), names::mount(&fs.name_any()));
    if !fs.spec.mount.enabled && seen.applied.contains_key(&mount) {
        actions.push(Action::DeleteMount);
    }
    actions.extend(desired.action.clone());
    if let MasterView::Told(report) = &seen.master {
        for pod in seen.pods.iter().filter(|pod| pod.ready && !pod.ending) {
            let server =
                pod.server.and_then(|id| report.server(id)).filter(|server| server.is_alive());
            let announced = server.and_then(|server| server.overlay("maintenance"));
            if let (Some(server), Some(overlay)) = (server, announced)
                && overlay.by == names::SIGNED_RENEWAL
            {
                actions.push(Action::EndMaintenance { server: server.id });
            }
        }
    }
    for pod in seen.pods.iter().filter(|pod| pod.server.is_some() && !pod.ending) {
        let zone = pod.node.as_ref().and_then(|node| seen.zones.get(node)?.as_ref());
        if let Some(zone) = zone.filter(|zone| pod.zone.as_ref() != Some(*zone)) {
            actions.push(Action::TellZone { pod: pod.name.clone(), zone: zone.clone() });
        }
    }
    for pod in &seen.pods {
        if let (Some(server), false) = (pod.server, pod.ending)
            && !seen.leases.contains_key(&server)
        {
            actions.push(Action::MakeLease { server, pod: pod.name.clone(), uid: pod.uid.clone() });
        }
    }
}

/// Commands wait for a master that can say yes or no; one that is wrong by itself does not. A failover also waits for
/// servers that were late with a heartbeat or two: counted as away they would have it refused for good.
fn commands(fs: &DistributedFS, seen: &Observed, actions: &mut Vec<Action>) {
    let mut take = |name: &str, value: &str, on: On, command: Result<Command, String>| {
        let is_time = match (&seen.master, &command) {
            (_, Err(_)) => true,
            (MasterView::Told(report), Ok(command)) => undecided(report, command).is_none(),
            (MasterView::Absent | MasterView::Silent(_), Ok(_)) => false,
        };
        if is_time {
            actions.push(Action::Run {
                name: name.to_owned(),
                value: value.to_owned(),
                on,
                command,
            });
        }
    };
    for name in command::NAMES {
        if let Some(value) = fs.annotations().get(&format!("{}{name}", command::PREFIX)) {
            take(name, value, On::Resource, command::parse(name, value));
        }
    }
    for pod in &seen.pods {
        if let (Some(server), Some(value)) = (pod.server, &pod.failover) {
            take(
                "failover",
                value,
                On::Pod(pod.name.clone()),
                command::parse_on_pod(server, value),
            );
        }
    }
}

/// The server of which it must be known first whether it lives.
#[must_use]
pub fn undecided(report: &Report, command: &Command) -> Option<ServerId> {
    match command {
        Command::Failover { servers, force: false, .. } => report.suspect_besides(servers),
        Command::Failover { force: true, .. }
        | Command::Recover { .. }
        | Command::Drain { .. }
        | Command::Maintenance { .. }
        | Command::Rebalance { .. } => None,
    }
}

/// One pod that runs an old specification, if nothing else is away and all chunks are safe: chunkservers first, the
/// master last. Mounts are never ended by us.
fn renewal(seen: &Observed) -> Option<Action> {
    let MasterView::Told(report) = &seen.master else { return None };
    let calm = report.short() == 0 && report.phase == "serving";
    let all_there =
        seen.pods.iter().filter(|pod| pod.role != Role::Mount).all(|pod| pod.ready && !pod.ending)
            && report
                .servers
                .iter()
                .all(|server| server.is_alive() || server.overlay("decommissioned").is_some());
    if !calm || !all_there {
        return None;
    }
    let old = |role: Role, revision: Option<&str>| -> Option<&Pod> {
        let revision = revision.filter(|revision| !revision.is_empty())?;
        let mut pods: Vec<&Pod> =
            seen.pods.iter().filter(|p| p.role == role && p.revision != revision).collect();
        pods.sort_by_key(|pod| pod.server);
        pods.first().copied()
    };
    let revision_of = |set: &'_ Option<crate::observed::SetState>| {
        set.as_ref().filter(|set| set.seen).map(|set| set.update_revision.clone())
    };
    let chunkserver = old(Role::Chunkserver, revision_of(&seen.chunkserver_set).as_deref());
    let pod =
        chunkserver.or_else(|| old(Role::Master, revision_of(&seen.master_set).as_deref()))?;
    Some(Action::Renew { pod: pod.name.clone(), uid: pod.uid.clone(), server: pod.server })
}

/// Kind and name.
#[must_use]
pub fn identity(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn digest_of(object: &Value) -> String {
    object["metadata"]["annotations"][names::APPLIED].as_str().unwrap_or_default().to_owned()
}

/// With the digest of the rest as an annotation: an object that has it need not be applied again.
fn with_digest(mut object: Value) -> Value {
    // FNV-1a: it compares our own texts, nobody attacks it.
    let digest = object.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "annotations".to_owned(),
            serde_json::json!({ names::APPLIED: format!("{digest:016x}") }),
        );
    }
    object
}

#[cfg(test)]
mod tests;
