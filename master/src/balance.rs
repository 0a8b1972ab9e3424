//! Evens out how full servers are, while there is a job for it in the log.
//!
//! What is to move is read off the chunk map each time. [`crate::rebuild`] carries the moves out, after everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use dfs_core::chunk::Chunk;
use dfs_core::cluster::overlay::{OverlayKind, Room};
use dfs_core::cluster::{Cluster, Liveness};
use dfs_core::command::Change;
use dfs_core::exposure::eta_ms;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::job::{Job, JobId, JobPhase, JobWork};
use dfs_core::meta::jobs;
use dfs_core::plan::rebalance::{Disk, EVEN_PERMILLE, Held, uneven_bytes};
use dfs_core::plan::rebuild::room_bytes;
use dfs_proto::control::{RebalanceReply, RebalanceRequest, ServerShare};
use tonic::Status;

use crate::drain;
use crate::state::{Master, lock, now};

/// Bytes that the map lists on each server.
pub type Listed = BTreeMap<ServerId, u64>;

pub fn count_listed(master: &Master, chunk: ChunkId, record: &Chunk, listed: &mut Listed) {
    let bytes = drain::len_of(&lock(&master.cluster), chunk, record);
    for member in &record.active.members {
        *listed.entry(member.server).or_default() += bytes;
    }
}

/// A chunk that may be moved: all its members are well.
#[must_use]
pub fn movable(master: &Master, chunk: ChunkId, record: &Chunk) -> Option<Held> {
    if !record.attached {
        return None;
    }
    let written_lately = master.was_written_lately(chunk);
    let (cluster, now) = (lock(&master.cluster), now());
    if !drain::is_well(&cluster, now, chunk, record, written_lately) {
        return None;
    }
    let members = record.active.members.clone();
    let others = drain::others_with(&cluster, chunk, record);
    Some(Held { chunk, bytes: drain::len_of(&cluster, chunk, record), members, others })
}

/// Live servers as the plan sees them; those that are to get nothing have no room.
#[must_use]
pub fn disks(master: &Master, listed: &Listed, incoming: &BTreeMap<ServerId, usize>) -> Vec<Disk> {
    let stalled = master.works.stalled();
    let (cluster, now) = (lock(&master.cluster), now());
    let here = cluster.rows().iter().filter(|(server, _)| {
        cluster.liveness(now, **server) == Liveness::Alive
            && !cluster.has_overlay(**server, OverlayKind::Draining)
    });
    here.map(|(server, row)| {
        let member = dfs_core::chunk::Member { server: *server, disk: row.disk };
        let takes = cluster.room(*server) == Room::Free;
        Disk {
            member,
            place: row.place.clone(),
            listed_bytes: listed.get(server).copied().unwrap_or(0),
            total_bytes: row.used_bytes.saturating_add(row.free_bytes),
            room_bytes: if takes && !stalled.contains(server) {
                room_bytes(row.free_bytes, row.total_bytes)
            } else {
                0
            },
            incoming: incoming.get(server).copied().unwrap_or(0),
        }
    })
    .collect()
}

/// What copies under way change: `moves` from and to.
pub fn expect_moves(
    cluster: &Cluster,
    moves: impl Iterator<Item = (ChunkId, ServerId, ServerId)>,
    listed: &mut Listed,
) {
    for (chunk, from, to) in moves {
        let len = |server| Some(cluster.row(server)?.replicas.get(&chunk)?.len);
        let bytes = len(from).unwrap_or(0);
        if let Some(listed) = listed.get_mut(&from) {
            *listed = listed.saturating_sub(bytes);
        }
        *listed.entry(to).or_default() += bytes;
    }
}

/// `dfs rebalance`.
pub(crate) fn rebalance(
    master: &Master,
    request: &RebalanceRequest,
) -> Result<RebalanceReply, Status> {
    let RebalanceRequest { action, by } = request;
    if master.is_warming() {
        return Err(Status::unavailable(
            "the master warms up: servers may not have told yet what they hold; ask again in a few seconds",
        ));
    }
    master.refresh_work();
    let open = master.works.rebalance();
    let changed = match (action.as_str(), open) {
        ("show", _) | ("stop", None) => false,
        ("start", open) => {
            let change = Change::BeginWork { work: JobWork::Rebalance, by: by.clone(), request: 0 };
            master.propose(None, change).map_err(|error| Status::unavailable(error.to_string()))?;
            master.refresh_work();
            open.is_none()
        }
        ("stop", Some((id, _))) => {
            master.set_work_phase(id, JobPhase::Cancelled).map_err(Status::unavailable)?;
            true
        }
        (other, _) => return Err(Status::invalid_argument(format!("unknown action '{other}'"))),
    };
    if changed {
        tracing::info!(action, by, "rebalance");
    }
    let mut listed = Listed::new();
    master.for_each_chunk(|chunk, record| count_listed(master, chunk, record, &mut listed));
    let disks = disks(master, &listed, &BTreeMap::new());
    let shares: BTreeSet<u64> = disks.iter().map(Disk::permille).collect();
    let spread = shares.last().unwrap_or(&0) - shares.first().unwrap_or(&0);
    let rate = lock(&master.surveyed).exposure.copy_rate();
    let uneven = if spread <= EVEN_PERMILLE { 0 } else { uneven_bytes(&disks) };
    let open = master.works.rebalance();
    let paused = open.filter(|(_, phase)| *phase == JobPhase::Paused);
    let waits = if paused.is_some() {
        Some(drain::paused_text(paused))
    } else {
        master.rebuild.moves_wait().filter(|_| open.is_some())
    };
    Ok(RebalanceReply {
        changed,
        running: open.is_some(),
        moved_chunks: moved_chunks(master),
        moved_bytes: master.rebuild.moved_bytes.load(Ordering::Relaxed),
        uneven_bytes: uneven,
        rate,
        eta_ms: eta_ms(uneven, rate),
        waits_because: waits.unwrap_or_default(),
        servers: disks
            .iter()
            .map(|disk| ServerShare {
                server: disk.member.server.to_string(),
                permille: disk.permille(),
                listed_bytes: disk.listed_bytes,
            })
            .collect(),
    })
}

/// By the rebalance that goes on, or the last one.
fn moved_chunks(master: &Master) -> u64 {
    let reader = master.reader();
    let mut from = JobId(0);
    let mut last = None;
    loop {
        let page = jobs::jobs(&reader, from, 100);
        let Some((end, _)) = page.last() else { break };
        from = JobId(end.0 + 1);
        let of_this = |(_, job): &(JobId, _)| is_rebalance(job);
        last = page.into_iter().rfind(of_this).or(last);
    }
    last.map_or(0, |(id, job)| master.done_of(id, &job))
}

fn is_rebalance(job: &Job) -> bool {
    job.work == Some(JobWork::Rebalance)
}
