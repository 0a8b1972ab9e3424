//! From what is seen to what is said: phase, conditions, servers.

use dfs_core::ids::ServerId;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use super::{image, jiff_time::Now};
use crate::crd::DistributedFS;
use crate::crd::status::{
    Capacity, ChunkCounts, DistributedFSStatus, MountCounts, ServerCounts, ServerStatus, condition,
};
use crate::names;
use crate::observed::{Lease, MasterView, Observed, Pod, Report, Role};

/// Finer steps of bytes would change the status with every write.
const BYTES_STEP: u64 = 16 << 20;
/// Only a part of the control plane's silence is the servers'.
const SUSPECT_SHARE: usize = 2;
/// Pods named in one sentence.
const NAMED_MAX: usize = 5;

/// What the plan is about to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doing {
    pub paused: bool,
    pub busy: bool,
    pub leaving: Option<ServerId>,
}

/// A condition's state, reason and message.
struct Said(bool, &'static str, String);

pub(super) fn status(
    fs: &DistributedFS,
    seen: &Observed,
    doing: &Doing,
    now: Now,
) -> DistributedFSStatus {
    let old = fs.status.clone().unwrap_or_default();
    let report = match &seen.master {
        MasterView::Told(report) => Some(report),
        MasterView::Absent | MasterView::Silent(_) => None,
    };
    let ready = readiness(fs, seen, report);
    let progress = progress(fs, seen, doing);
    let degraded = degraded(fs, seen, report);
    let safe = safety(report);
    let stalled = stalled(seen, doing);
    let phase = match (doing.paused, &ready, &degraded) {
        (true, _, _) => "Paused",
        (_, Said(false, _, _), _) if old.phase.is_empty() || old.phase == "Creating" => "Creating",
        (_, Said(false, _, _), _) => "Unavailable",
        (_, _, Said(true, _, _)) => "Degraded",
        _ => "Ready",
    };
    let reconciling = Said(progress.0, progress.1, progress.2.clone());
    let mut conditions = old.conditions.clone();
    for (kind, said) in [
        (condition::READY, ready),
        (condition::PROGRESSING, progress),
        (condition::DEGRADED, degraded),
        (condition::DATA_SAFE, safe),
        (condition::RECONCILING, reconciling),
        (condition::STALLED, stalled),
    ] {
        set(&mut conditions, kind, said, fs.metadata.generation, now);
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let chunkservers = || seen.pods.iter().filter(|pod| pod.role == Role::Chunkserver);
    DistributedFSStatus {
        observed_generation: fs.metadata.generation,
        phase: phase.to_owned(),
        conditions,
        chunk_servers: ServerCounts {
            total: seen.chunkserver_set.as_ref().map_or(0, |set| set.pods),
            ready: count(chunkservers().filter(|pod| pod.ready).count()),
            alive: report.map_or(0, |report| count(report.alive())),
            selector: Some(names::selector(&fs.name_any(), Role::Chunkserver)),
        },
        // What was true last is more than nothing.
        servers: report.map_or(old.servers, |report| servers(seen, report)),
        chunks: report.map_or(old.chunks, chunks),
        capacity: report.map_or(old.capacity, capacity),
        mounts: seen.mount_set.as_ref().map_or(MountCounts::default(), |set| MountCounts {
            wanted: set.wanted,
            ready: set.ready,
        }),
        endpoint: Some(names::endpoint(fs)),
        host_path: fs.spec.mount.enabled.then(|| format!("{}/mnt", names::host_dir(fs))),
        image: Some(image(fs, seen).to_owned()),
        last_command: old.last_command,
    }
}

/// Of one that is being deleted: what it waits for.
pub(super) fn deleting(fs: &DistributedFS, seen: &Observed, now: Now) -> DistributedFSStatus {
    let mut status = fs.status.clone().unwrap_or_default();
    let in_use = in_use(fs, seen);
    let left: Vec<&str> = seen
        .pods
        .iter()
        .filter(|pod| pod.role == Role::Mount)
        .map(|pod| pod.name.as_str())
        .collect();
    let waits = match left.is_empty() {
        _ if in_use.is_some() => in_use.unwrap_or_default(),
        true => "its mounts are gone; its pods and Services follow".to_owned(),
        false => format!(
            "waits for the mount pods {} to end; if a node is gone for good, delete its pod with --force",
            left.join(", ")
        ),
    };
    status.phase = "Deleting".to_owned();
    status.observed_generation = fs.metadata.generation;
    let generation = fs.metadata.generation;
    set(
        &mut status.conditions,
        condition::READY,
        Said(false, "Deleting", waits.clone()),
        generation,
        now,
    );
    set(
        &mut status.conditions,
        condition::PROGRESSING,
        Said(true, "Deleting", waits.clone()),
        generation,
        now,
    );
    set(
        &mut status.conditions,
        condition::RECONCILING,
        Said(true, "Deleting", waits),
        generation,
        now,
    );
    status
}

/// Who keeps a file system from being deleted: its mount would be taken from under them.
pub(super) fn in_use(fs: &DistributedFS, seen: &Observed) -> Option<String> {
    let forced = fs.annotations().get(names::FORCE_DELETION).is_some_and(|value| value == "true");
    if forced || seen.users.is_empty() || seen.mount_set.is_none() {
        return None;
    }
    let first: Vec<&str> = seen.users.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = if first.len() < seen.users.len() { ", …" } else { "" };
    Some(format!(
        "{} pod(s) use its mount: {}{more}; delete them and it goes on, or take the mount away from them with the annotation {}=true",
        seen.users.len(),
        first.join(", "),
        names::FORCE_DELETION
    ))
}

/// The first pod that somebody must do something about.
pub(super) fn problem(fs: &DistributedFS, seen: &Observed) -> Option<String> {
    seen.pods.iter().find_map(|pod| {
        let on = pod.node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
        let unlabelled = pod.node.as_ref().filter(|node| {
            pod.role == Role::Chunkserver && !pod.ready && seen.zones.get(*node) == Some(&None)
        });
        let words = match (&pod.problem, unlabelled) {
            (Some(problem), _) => problem.clone(),
            (None, Some(node)) => format!(
                "node {node} has no label {}, which spec.topologyKey names: label it, or name another key",
                fs.spec.topology_key
            ),
            (None, None) => return None,
        };
        Some(format!("pod {}{on}: {words}", pod.name))
    })
}

fn readiness(fs: &DistributedFS, seen: &Observed, report: Option<&Report>) -> Said {
    let Some(report) = report else {
        let (reason, mut text) = match &seen.master {
            MasterView::Silent(why) => {
                ("MasterSilent", format!("the master does not answer: {why}"))
            }
            MasterView::Absent | MasterView::Told(_) => {
                ("MasterStarting", "the master's pod is not ready".to_owned())
            }
        };
        if let Some(problem) = problem(fs, seen) {
            text = format!("{text}; {problem}");
        }
        return Said(false, reason, text);
    };
    let needed = usize::try_from(report.min_replicas).unwrap_or(usize::MAX);
    if report.phase != "serving" {
        return Said(
            false,
            "Warming",
            "the master waits for its servers to say what they hold".to_owned(),
        );
    }
    if report.alive() < needed {
        let problem = problem(fs, seen).map_or_else(String::new, |problem| format!("; {problem}"));
        return Said(
            false,
            "TooFewServers",
            format!("{} chunkserver(s) alive, and a write needs {needed}{problem}", report.alive()),
        );
    }
    if 0 < report.unavailable + report.lost {
        return Said(
            false,
            "ChunksUnavailable",
            format!(
                "{} chunk(s) have no copy on a live server; bring back the servers that are away",
                report.unavailable + report.lost
            ),
        );
    }
    Said(true, "Serving", format!("{} chunkserver(s) alive", report.alive()))
}

/// A server that is away because somebody wished so is nothing to wait for.
fn is_awaited(pod: &Pod, report: Option<&Report>) -> bool {
    let wished = pod.server.and_then(|id| report?.server(id)).is_some_and(|server| {
        server.overlay("suspended").is_some() || server.overlay("maintenance").is_some()
    });
    !pod.ready && !wished
}

fn progress(fs: &DistributedFS, seen: &Observed, doing: &Doing) -> Said {
    if doing.paused {
        return Said(
            false,
            "Paused",
            "nothing is changed: spec.paused or the annotation distributedfs.io/reconcile=disabled"
                .to_owned(),
        );
    }
    if doing.busy {
        return Said(true, "Applying", "its objects are being made or changed".to_owned());
    }
    if let Some(server) = doing.leaving {
        return Said(true, "Draining", format!("{server} is emptied before it goes"));
    }
    let report = match &seen.master {
        MasterView::Told(report) => Some(report),
        MasterView::Absent | MasterView::Silent(_) => None,
    };
    let problem = || problem(fs, seen).map_or_else(String::new, |words| format!("; {words}"));
    for (what, set, role, wanted) in [
        ("master", &seen.master_set, Role::Master, fs.spec.masters.count),
        ("chunkserver", &seen.chunkserver_set, Role::Chunkserver, fs.spec.chunk_servers.replicas),
    ] {
        let pods: Vec<&Pod> = seen.pods.iter().filter(|pod| pod.role == role).collect();
        let awaited = pods.iter().filter(|pod| is_awaited(pod, report)).count();
        let missing = usize::try_from(wanted).unwrap_or(0).saturating_sub(pods.len());
        if 0 < awaited + missing || !set.as_ref().is_some_and(|set| set.seen) {
            return Said(
                true,
                "WaitingForPods",
                format!(
                    "{} of {wanted} {what} pod(s) are not ready{}",
                    awaited + missing,
                    problem()
                ),
            );
        }
        let old = set
            .as_ref()
            .map(|set| set.update_revision.as_str())
            .filter(|revision| !revision.is_empty());
        let old =
            pods.iter().filter(|pod| old.is_some_and(|revision| pod.revision != revision)).count();
        if 0 < old {
            return Said(
                true,
                "Renewing",
                format!(
                    "{old} {what} pod(s) run an old specification; one is renewed at a time, while all chunks are safe"
                ),
            );
        }
    }
    if let Some(set) = &seen.mount_set
        && (!set.seen || set.ready < set.wanted)
    {
        return Said(
            true,
            "WaitingForMounts",
            format!("{} of {} node(s) have it mounted{}", set.ready, set.wanted, problem()),
        );
    }
    if fs.spec.mount.enabled && seen.mount_set.is_none() {
        return Said(true, "WaitingForMounts", "no node has it mounted yet".to_owned());
    }
    Said(false, "Settled", "all pods are as wanted".to_owned())
}

fn degraded(fs: &DistributedFS, seen: &Observed, report: Option<&Report>) -> Said {
    let lapsed = seen.leases.values().filter(|lease| **lease == Lease::Lapsed).count();
    let Some(report) = report else {
        return Said(
            true,
            "MasterSilent",
            "without its master nothing is known of the servers".to_owned(),
        );
    };
    if 0 < lapsed && seen.leases.len() < lapsed * SUSPECT_SHARE {
        return Said(
            true,
            "ControlPlaneSuspect",
            format!(
                "{lapsed} of {} Leases lapsed at once: rather the API server's fault than the servers'; nothing is done because of it",
                seen.leases.len()
            ),
        );
    }
    let away: Vec<String> = report
        .servers
        .iter()
        .filter(|server| !server.is_alive() && server.overlay("decommissioned").is_none())
        .map(|server| {
            let wished = server.overlay("suspended").map_or("", |_| ", as wished");
            format!("{} is {}{wished}", server.id, server.state)
        })
        .collect();
    if !away.is_empty() {
        return Said(true, "ServersAway", away.join("; "));
    }
    let wanted = usize::try_from(fs.spec.chunk_servers.replicas).unwrap_or(0);
    if report.alive() < wanted {
        return Said(
            true,
            "ServersMissing",
            format!("{} of {wanted} chunkservers joined", report.alive()),
        );
    }
    if 0 < report.short() {
        return Said(
            true,
            "ChunksShort",
            format!("{} chunk(s) have too few copies", report.short()),
        );
    }
    Said(false, "Whole", "all servers are alive and all chunks have all their copies".to_owned())
}

fn safety(report: Option<&Report>) -> Said {
    let Some(report) = report else {
        return Said(
            false,
            "Unknown",
            "the master does not answer: what it would say is not guessed".to_owned(),
        );
    };
    match report.short() {
        0 => Said(
            true,
            "AllSafe",
            format!("{} chunk(s), all with {} copies", report.total, report.replication),
        ),
        short => Said(
            false,
            if 0 < report.lost { "ChunksLost" } else { "ChunksShort" },
            format!(
                "{short} of {} chunk(s) are not safe: {} degraded, {} with one copy, {} unavailable, {} lost",
                report.total, report.degraded, report.endangered, report.unavailable, report.lost
            ),
        ),
    }
}

fn stalled(seen: &Observed, doing: &Doing) -> Said {
    if let (Some(why), Some(server)) = (&seen.drain_refused, doing.leaving) {
        return Said(
            true,
            "ScaleDownRefused",
            format!(
                "{server} cannot be emptied: {why}; raise chunkServers.replicas again, or add room"
            ),
        );
    }
    Said(false, "NotStalled", "it goes on by itself".to_owned())
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn rounded(bytes: u64) -> i64 {
    signed(bytes.next_multiple_of(BYTES_STEP))
}

fn servers(seen: &Observed, report: &Report) -> Vec<ServerStatus> {
    let pod_of = |id: ServerId| seen.pods.iter().find(|pod| pod.server == Some(id));
    report
        .servers
        .iter()
        .map(|server| ServerStatus {
            name: server.id.to_string(),
            state: server.state.clone(),
            pod: pod_of(server.id).map(|pod| pod.name.clone()),
            node: pod_of(server.id).and_then(|pod| pod.node.clone()),
            overlays: server.overlays.iter().map(|overlay| overlay.kind.clone()).collect(),
            chunks: signed(server.chunks),
            used_bytes: rounded(server.used_bytes),
            free_bytes: rounded(server.free_bytes),
            lease: Some(
                match seen.leases.get(&server.id) {
                    Some(Lease::Held) => "Held",
                    Some(Lease::Lapsed) => "Lapsed",
                    Some(Lease::Untaken) | None => "Missing",
                }
                .to_owned(),
            ),
        })
        .collect()
}

fn chunks(report: &Report) -> ChunkCounts {
    ChunkCounts {
        total: signed(report.total),
        safe: signed(report.safe),
        degraded: signed(report.degraded),
        endangered: signed(report.endangered),
        unavailable: signed(report.unavailable),
        lost: signed(report.lost),
        short: signed(report.short()),
    }
}

fn capacity(report: &Report) -> Capacity {
    let alive = || report.servers.iter().filter(|server| server.is_alive());
    Capacity {
        used_bytes: rounded(alive().map(|server| server.used_bytes).sum()),
        free_bytes: rounded(alive().map(|server| server.free_bytes).sum()),
    }
}

/// The time of a condition moves with its state only, not with its words.
fn set(conditions: &mut Vec<Condition>, kind: &str, said: Said, generation: Option<i64>, now: Now) {
    let Said(holds, reason, message) = said;
    let state = if holds { "True" } else { "False" };
    let old = conditions.iter().find(|c| c.type_ == kind).filter(|c| c.status == state);
    let condition = Condition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: old.map_or(Time(now), |c| c.last_transition_time.clone()),
        observed_generation: generation,
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(there) => *there = condition,
        None => conditions.push(condition),
    }
}
