//! Empties servers on purpose: which chunks are to leave, whether that can work, and how far it is.
//!
//! The wish is an overlay in the log; what is left to do is always read off the chunk map, so that an interruption of
//! any kind loses nothing. [`crate::rebuild`] carries the moves out, when no chunk lacks a copy.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use dfs_core::chunk::{Chunk, Member};
use dfs_core::cluster::overlay::{OverlayKind, Room};
use dfs_core::cluster::{Cluster, Liveness};
use dfs_core::exposure::eta_ms;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::job::{JobId, JobPhase};
use dfs_core::meta;
use dfs_core::plan::drain::{Other, check_drain};
use dfs_core::plan::rebuild::{Short, room_bytes};
use dfs_core::time::Timestamp;
use dfs_proto::control::DrainReply;
use tonic::Status;

use crate::servers::{count, named};
use crate::state::{Master, lock, now};

/// A chunk with all its copies that is to leave a server.
#[derive(Clone, Debug)]
pub struct Move {
    pub leaver: Member,
    /// That it is a subtask of.
    pub job: Option<JobId>,
    pub short: Short,
}

/// Servers that are to be emptied now.
#[must_use]
pub fn draining(master: &Master) -> BTreeSet<ServerId> {
    let wished: Vec<ServerId> = lock(&master.cluster).with_overlay(OverlayKind::Draining).collect();
    let is_paused = |server: &ServerId| {
        master.works.drain(*server).is_some_and(|(_, phase)| phase == JobPhase::Paused)
    };
    wished.into_iter().filter(|server| !is_paused(server)).collect()
}

/// The move that `record` waits for: its members are all well, and one of them is drained.
#[must_use]
pub fn move_of(
    master: &Master,
    chunk: ChunkId,
    record: &Chunk,
    draining: &BTreeSet<ServerId>,
) -> Option<Move> {
    let members = &record.active.members;
    let leaver = *members.iter().find(|member| draining.contains(&member.server))?;
    let written_lately = master.was_written_lately(chunk);
    let (cluster, now) = (lock(&master.cluster), now());
    // A spill is over in seconds.
    if !is_well(&cluster, now, chunk, record, written_lately)
        || (!record.attached && written_lately)
    {
        return None;
    }
    let mut holders: Vec<ServerId> = members.iter().map(|member| member.server).collect();
    holders.extend(others_with(&cluster, chunk, record));
    let short = Short {
        chunk,
        bytes: len_of(&cluster, chunk, record),
        // Not the last copy, even if it is the only one: it stays until the other is there.
        good: members.len().max(2),
        is_waited_for: false,
        // What is written is moved last: its writers wait for the copy.
        since: if written_lately { now } else { Timestamp(0) },
        holders,
        leaver: Some(leaver.server),
    };
    let job = master.works.drain(leaver.server).map(|(id, _)| id);
    Some(Move { leaver, job, short })
}

/// Which member is to leave a chunk that has more of them than it needs, as after a server came back while another took its
/// place: one that is drained, then one that shares a host or a zone with another, then where least is free.
#[must_use]
pub fn one_too_many(
    master: &Master,
    chunk: ChunkId,
    record: &Chunk,
    draining: &BTreeSet<ServerId>,
) -> Option<Member> {
    let members = &record.active.members;
    if members.len() <= master.replication as usize {
        return None;
    }
    let written_lately = master.was_written_lately(chunk);
    // Writers would wait for it, and only a drain is waited for.
    if written_lately && !members.iter().any(|member| draining.contains(&member.server)) {
        return None;
    }
    let (cluster, now) = (lock(&master.cluster), now());
    if !is_well(&cluster, now, chunk, record, written_lately) {
        return None;
    }
    let shared = |member: &Member, other: &Member| {
        let place = |member: &Member| cluster.row(member.server).map(|row| &row.place);
        Some(place(member)?.shared_with(place(other)?))
    };
    let leaver = members.iter().max_by_key(|member| {
        let others = members.iter().filter(|other| other.server != member.server);
        let shared = others.filter_map(|other| shared(member, other)).max();
        let free = cluster.row(member.server).map(|row| row.free_bytes);
        (draining.contains(&member.server), shared, Reverse(free))
    });
    leaver.copied()
}

/// Whether all members have what they are to have, and no change is under way.
pub(crate) fn is_well(
    cluster: &Cluster,
    now: Timestamp,
    chunk: ChunkId,
    record: &Chunk,
    unreported: bool,
) -> bool {
    let members = &record.active.members;
    record.preparing.is_none()
        && members.iter().all(|member| cluster.is_up(now, member))
        && members.len() <= cluster.copies(now, chunk, record, unreported).good
}

/// Servers that have a replica and are no members.
pub(crate) fn others_with(cluster: &Cluster, chunk: ChunkId, record: &Chunk) -> Vec<ServerId> {
    let members = &record.active.members;
    let rows = cluster.rows().iter();
    let others = rows.filter(|(server, row)| {
        row.replicas.contains_key(&chunk) && !members.iter().any(|m| m.server == **server)
    });
    others.map(|(server, _)| *server).collect()
}

pub(crate) fn len_of(cluster: &Cluster, chunk: ChunkId, record: &Chunk) -> u64 {
    let rows = record.active.members.iter().filter_map(|member| cluster.row(member.server));
    rows.filter_map(|row| Some(row.replicas.get(&chunk)?.len)).max().unwrap_or(0)
}

pub(crate) fn paused_text(job: Option<(JobId, JobPhase)>) -> String {
    job.map(|(id, _)| format!("job {0} is paused: `dfs job resume {0}` goes on", id.0))
        .unwrap_or_default()
}

/// What the map still has on one server.
#[derive(Clone, Copy, Default, Debug)]
pub struct Left {
    pub chunks: u64,
    pub bytes: u64,
}

impl Master {
    /// Chunks that list `server`, as a member or a learner.
    #[must_use]
    pub fn listed_on(&self, server: ServerId) -> Left {
        let mut left = Left::default();
        self.for_each_chunk(|chunk, record| {
            let preparing = record.preparing.iter();
            let mut listed = record
                .active
                .members
                .iter()
                .chain(preparing.flat_map(|p| p.members.iter().chain(&p.learner)));
            if listed.any(|member| member.server == server) {
                left.chunks += 1;
                left.bytes += len_of(&lock(&self.cluster), chunk, record);
            }
        });
        left
    }

    /// Chunks of which no copy would be left without `server`, which is not alive: nobody can copy them.
    fn needed_because(&self, server: ServerId) -> Option<String> {
        if lock(&self.cluster).liveness(now(), server) == Liveness::Alive {
            return None;
        }
        let mut last = (0, Vec::new());
        self.for_each_chunk(|chunk, record| {
            let members = &record.active.members;
            if members.iter().any(|member| member.server == server) {
                let unreported = self.was_written_lately(chunk);
                if lock(&self.cluster).copies(now(), chunk, record, unreported).good == 0 {
                    count(&mut last, chunk);
                }
            }
        });
        (0 < last.0).then(|| {
            format!("{server} is not alive, and no good copy is elsewhere of {}", named(&last))
        })
    }

    /// Whether nothing keeps `server`, which was drained, in the cluster.
    ///
    /// # Errors
    /// What does.
    pub fn check_is_empty(&self, server: ServerId) -> Result<(), Status> {
        if self.is_warming() {
            return Err(Status::unavailable("the master warms up: ask again in a few seconds"));
        }
        if !lock(&self.cluster).has_overlay(server, OverlayKind::Draining) {
            return Err(Status::failed_precondition(format!("{server} is not drained")));
        }
        match self.listed_on(server).chunks {
            0 => Ok(()),
            chunks => Err(Status::failed_precondition(format!("{chunks} chunk(s) list {server}"))),
        }
    }

    /// Whether `server` may be drained.
    ///
    /// # Errors
    /// The arithmetic of why not.
    pub fn check_can_drain(&self, server: ServerId) -> Result<(), Status> {
        if self.is_warming() {
            return Err(Status::unavailable(
                "the master warms up: servers may not have told yet what they hold; ask again in a few seconds",
            ));
        }
        if let Some(needed) = self.needed_because(server) {
            return Err(Status::failed_precondition(needed));
        }
        let needed_bytes = self.listed_on(server).bytes;
        let known = meta::servers(&self.reader());
        let cluster = lock(&self.cluster);
        let now = now();
        let others =
            known.into_iter().filter(|(other, _)| *other != server).map(|(other, record)| {
                let state = match cluster.liveness(now, other) {
                    Liveness::Alive => None,
                    Liveness::Suspect => Some("suspect".to_owned()),
                    Liveness::Dead => Some("dead".to_owned()),
                };
                let mut wishes = record.overlays.iter().map(|overlay| overlay.kind);
                let closed =
                    wishes.find(|kind| kind.room() == Room::Closed).map(|kind| kind.to_string());
                let room =
                    cluster.row(other).map_or(0, |row| room_bytes(row.free_bytes, row.total_bytes));
                Other { server: other, room_bytes: room, closed: closed.or(state) }
            });
        let others: Vec<Other> = others.collect();
        check_drain(self.replication as usize, needed_bytes, &others).map_err(|refusal| {
            Status::failed_precondition(format!("{server} cannot be emptied: {refusal}"))
        })
    }

    /// How far the emptying of `server` is.
    #[must_use]
    pub fn drain_progress(&self, server: ServerId) -> DrainReply {
        let Left { chunks, bytes } = self.listed_on(server);
        let rate = lock(&self.surveyed).exposure.copy_rate();
        let paused = self.works.drain(server).filter(|(_, phase)| *phase == JobPhase::Paused);
        let waits = match self.rebuild.moves_wait() {
            _ if paused.is_some() => paused_text(paused),
            _ if self.is_warming() => "the master warms up".to_owned(),
            wait => wait.unwrap_or_default(),
        };
        let needed = if self.is_warming() { None } else { self.needed_because(server) };
        let cluster = lock(&self.cluster);
        DrainReply {
            needed_because: needed.unwrap_or_default(),
            decommissioned: false,
            draining: cluster.has_overlay(server, OverlayKind::Draining),
            alive: cluster.liveness(now(), server) == Liveness::Alive,
            chunks_left: chunks,
            bytes_left: bytes,
            rate,
            eta_ms: eta_ms(bytes, rate),
            waits_because: if chunks == 0 { String::new() } else { waits },
        }
    }
}
