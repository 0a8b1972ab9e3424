//! Tells servers to delete replicas that nobody needs.
//!
//! A slow walk over all reported replicas notes what [`dfs_core::plan::surplus`] names; what is still so some
//! heartbeats later is told to its server, and judged once more as it is told.

use std::collections::BTreeMap;

use dfs_core::chunk::Member;
use dfs_core::ids::{ChunkId, DiskId, ServerId};
use dfs_core::meta::{self, Key, MetaStore, Record};
use dfs_core::plan::surplus::{Known, Surplus, surplus};
use dfs_core::time::Timestamp;
use dfs_proto::control::StaleReplica;
use dfs_service::canary;

use crate::state::{Master, lock, now};

/// Replicas looked at in one round.
const WALK: usize = 4096;
/// Noted at once; the walk comes by again.
const NOTED_MAX: usize = 100_000;
/// Told in one reply.
const TOLD_MAX: usize = 1000;

#[derive(Debug, Default)]
pub struct Noted {
    /// Where the walk goes on.
    cursor: Option<(ServerId, ChunkId)>,
    since: BTreeMap<(ServerId, ChunkId), Timestamp>,
}

impl Master {
    /// One round of the walk.
    pub fn note_surplus(&self) {
        if self.is_warming() || self.rebuild.is_held() {
            return;
        }
        let start = lock(&self.surplus).cursor;
        let (page, cursor) = self.page_of_replicas(start);
        let now = now();
        for (server, disk, chunk) in page {
            let named = self.judge(server, disk, chunk).is_some();
            let mut noted = lock(&self.surplus);
            if !named {
                noted.since.remove(&(server, chunk));
            } else if noted.since.len() < NOTED_MAX {
                noted.since.entry((server, chunk)).or_insert(now);
            }
        }
        lock(&self.surplus).cursor = cursor;
    }

    /// The next replicas after `start`, and where to go on; `None`: from the beginning.
    #[expect(clippy::type_complexity, reason = "a page and the place after it")]
    fn page_of_replicas(
        &self,
        start: Option<(ServerId, ChunkId)>,
    ) -> (Vec<(ServerId, DiskId, ChunkId)>, Option<(ServerId, ChunkId)>) {
        let (first, chunk) = start.unwrap_or((ServerId(0), ChunkId(0)));
        let cluster = lock(&self.cluster);
        let mut page = Vec::new();
        for (&server, row) in cluster.rows().range(first..) {
            let from = if server == first { chunk } else { ChunkId(0) };
            for &chunk in row.replicas.range(from..).map(|(chunk, _)| chunk) {
                if page.len() == WALK {
                    return (page, Some((server, chunk)));
                }
                page.push((server, row.disk, chunk));
            }
        }
        (page, None)
    }

    fn judge(&self, server: ServerId, disk: DiskId, chunk: ChunkId) -> Option<Surplus> {
        let reader = self.reader();
        let (record, garbage);
        let known = if let Some(Record::Chunk(found)) = reader.get(&Key::Chunk(chunk)) {
            record = found;
            Known::Chunk(&record)
        } else if let Some(Record::Garbage(found)) = reader.get(&Key::Garbage(chunk)) {
            garbage = found;
            Known::Garbage(&garbage)
        } else {
            Known::Nothing { next_chunk: meta::superblock(&reader)?.next_chunk }
        };
        let holder = Member { server, disk };
        surplus(chunk, &holder, known, self.replication as usize, |member, version| {
            let cluster = lock(&self.cluster);
            cluster.is_up(now(), member)
                && cluster.row(member.server).is_some_and(|row| {
                    // What a member has damaged another replica may still have whole.
                    let is_whole = !row.damaged.contains_key(&chunk);
                    is_whole
                        && row.replicas.get(&chunk).is_some_and(|replica| {
                            replica.version == version && !replica.not_current
                        })
                })
        })
    }

    /// What `server` is to delete now.
    #[must_use]
    pub fn surplus_of(&self, server: ServerId, disk: DiskId) -> Vec<StaleReplica> {
        if canary::sings("deleted-on-first-sight") {
            let cluster = lock(&self.cluster);
            let held = cluster.row(server).into_iter().flat_map(|row| &row.replicas);
            return held
                .filter(|(_, replica)| replica.not_current)
                .map(|(chunk, _)| StaleReplica { chunk: chunk.0, below: u64::MAX })
                .collect();
        }
        let settled_ms = 2 * self.config.profile.interval_ms + 1_000;
        let now = now();
        let noted: Vec<(ChunkId, u64)> = {
            let noted = lock(&self.surplus);
            let all = noted.since.range((server, ChunkId(0))..=(server, ChunkId(u64::MAX)));
            let aged = all.map(|((_, chunk), since)| (*chunk, now.nanos_since(*since) / 1_000_000));
            aged.filter(|(_, age_ms)| settled_ms <= *age_ms).take(TOLD_MAX).collect()
        };
        let mut told = Vec::new();
        if self.rebuild.is_held() {
            return told;
        }
        for (chunk, age_ms) in noted {
            let held = lock(&self.cluster)
                .row(server)
                .is_some_and(|row| row.disk == disk && row.replicas.contains_key(&chunk));
            let below = match self.judge(server, disk, chunk).filter(|_| held) {
                None => {
                    lock(&self.surplus).since.remove(&(server, chunk));
                    continue;
                }
                Some(Surplus::Stale { below }) => below.0,
                Some(Surplus::Orphan) if self.config.orphan_wait_ms <= age_ms => u64::MAX,
                Some(Surplus::Orphan) => continue,
            };
            tracing::info!(%server, chunk = chunk.0, below, "replica that nobody needs");
            told.push(StaleReplica { chunk: chunk.0, below });
        }
        told
    }
}
