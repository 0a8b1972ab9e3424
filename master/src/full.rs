//! A member whose disk is full gives its place in a chunk to a server with room, so that who writes there goes on.

use dfs_core::chunk::Chunk;
use dfs_core::cluster::overlay::Room;
use dfs_core::cluster::{Liveness, room_for_new_chunk};
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::plan::rebuild::{Limits, Short, Target, assign};
use dfs_core::{chunk::Member, time::Timestamp};
use dfs_proto::meta_rpc::MetaFailure;
use dfs_service::page::Page;

use crate::drain;
use crate::reconfigure::Step;
use crate::state::{Master, lock, now};

/// Servers that are tried one after the other while the writer waits.
const TRIES: usize = 3;

impl Master {
    /// `server` refused bytes for want of room.
    pub(crate) fn on_full(&self, server: ServerId) {
        let is_news = lock(&self.cluster).on_full(server);
        if is_news {
            self.notice(format!(
                "the disk of {server} is full: what is written goes to others; see {}",
                Page::FullDisk
            ));
        }
    }

    /// Gives the place of `server`, which is full, in `chunk` to another.
    ///
    /// # Errors
    /// `NoSpace`: no other could take the chunk. `Warming`, `Unavailable`: come back.
    pub(crate) fn replace_full(
        &self,
        chunk: ChunkId,
        record: &Chunk,
        server: ServerId,
    ) -> Result<(), MetaFailure> {
        let mut members = record.active.members.iter();
        let Some(leaver) = members.find(|member| member.server == server).copied() else {
            return Ok(());
        };
        if self.is_warming() {
            return Err(MetaFailure::Warming { retry_after_ms: 100 });
        }
        let mut tried: Vec<ServerId> = Vec::new();
        let mut failed = None;
        while tried.len() < TRIES {
            let Some(learner) = self.with_room_for(chunk, record, server, &tried) else { break };
            let step = Step { learner: Some(learner), leaver: Some(leaver), job: None };
            match self.change(chunk, step) {
                Ok(()) => return Ok(()),
                Err(reason) => failed = Some(reason),
            }
            tried.push(learner.server);
            // The next attempt must not be too early.
            std::thread::sleep(crate::pauses::PAUSE_MIN);
        }
        Err(match failed {
            Some(reason) => MetaFailure::Unavailable { reason, retry_after_ms: 200 },
            None => MetaFailure::NoSpace {
                reason: format!("{server} is full, and no other server has room for the chunk"),
            },
        })
    }

    fn with_room_for(
        &self,
        chunk: ChunkId,
        record: &Chunk,
        full: ServerId,
        tried: &[ServerId],
    ) -> Option<Member> {
        let (cluster, now) = (lock(&self.cluster), now());
        let rows = cluster.rows();
        let open = rows.iter().filter(|(server, _)| {
            cluster.liveness(now, **server) == Liveness::Alive
                && cluster.room(**server) != Room::Closed
                && !tried.contains(server)
        });
        let mut targets: Vec<Target> = open
            .map(|(server, row)| Target {
                member: Member { server: *server, disk: row.disk },
                place: row.place.clone(),
                free_bytes: row.free_bytes,
                total_bytes: row.total_bytes,
                chunk_count: row.chunk_count,
                incoming: 0,
                // Then the emptiest is chosen.
                given: 1,
                is_last: cluster.room(*server) == Room::Last,
            })
            .collect();
        let places = rows.iter().map(|(server, row)| (*server, row.place.clone())).collect();
        let len = drain::len_of(&cluster, chunk, record);
        let short = Short {
            chunk,
            // It is being written, so more will come.
            bytes: len + room_for_new_chunk(record.chunk_size),
            // A writer waits for it: nothing is left to others.
            good: 1,
            is_waited_for: true,
            since: Timestamp(0),
            holders: record.active.members.iter().map(|member| member.server).collect(),
            leaver: Some(full),
        };
        let limits = Limits { per_target: usize::MAX, in_all: usize::MAX };
        drop(cluster);
        assign(&[short], &mut targets, &places, limits).first().map(|(_, learner)| *learner)
    }
}
