//! What is wrong with replicas, told as events when it is found and when it is over.

use std::collections::{BTreeMap, BTreeSet};

use dfs_core::chunk::Chunk;
use dfs_core::cluster::Damage;
use dfs_core::event::{Event, EventKind};
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::plan::scrub::{Divergence, divergence};
use dfs_core::time::{Timestamp, WallTime};
use dfs_proto::control::HeartbeatRequest;
use dfs_service::clock;
use dfs_service::page::Page;

use crate::state::{Master, lock, now};

/// Chunks named in one event.
const NAMED_MAX: usize = 5;
/// Between two looks.
const EVENTS_MAX: usize = 1_000;

/// What was told so far.
#[derive(Debug, Default)]
pub struct Health {
    damaged: BTreeMap<(ServerId, ChunkId), Found>,
    diverging: BTreeMap<ChunkId, Timestamp>,
    /// Blocks that a server mended since its start, which has this number.
    mended: BTreeMap<(ServerId, ChunkId), (u64, u32)>,
    events: Vec<Event>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    at: Timestamp,
    /// A server that starts anew knows of no damage until it reads.
    incarnation: u64,
}

impl Health {
    /// What began and ended since the last look.
    pub fn look(&mut self, master: &Master) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.events);
        self.damage(master, &mut events);
        self.divergence(master, &mut events);
        events
    }

    /// Blocks that were mended before anybody was told that they are bad.
    pub(crate) fn on_heartbeat(&mut self, server: ServerId, beat: &HeartbeatRequest) {
        for report in beat.replicas.iter().filter(|report| 0 < report.mended_blocks) {
            let (chunk, count) = (ChunkId(report.chunk), report.mended_blocks);
            let before = self.mended.insert((server, chunk), (beat.incarnation, count));
            let before = before.filter(|(incarnation, _)| *incarnation == beat.incarnation);
            // What a new master hears first may have been told by the one before.
            let known = if beat.full_inventory { count } else { 0 };
            let news = count.saturating_sub(before.map_or(known, |(_, count)| count));
            if 0 < news
                && !self.damaged.contains_key(&(server, chunk))
                && self.events.len() < EVENTS_MAX
            {
                let what = if news == 1 { "a bad block" } else { "bad blocks" };
                let cause = format!("chunk {}: {what} mended from another member", chunk.0);
                self.events.push(event(EventKind::Mended, Some(server), cause, None));
            }
        }
    }

    fn damage(&mut self, master: &Master, events: &mut Vec<Event>) {
        let now = now();
        let mut begun: BTreeMap<ServerId, Vec<String>> = BTreeMap::new();
        let mut ended: BTreeMap<ServerId, (Vec<String>, Timestamp)> = BTreeMap::new();
        {
            let cluster = lock(&master.cluster);
            for (server, row) in cluster.rows() {
                for (chunk, damage) in &row.damaged {
                    let incarnation = row.incarnation;
                    self.damaged.entry((*server, *chunk)).or_insert_with(|| {
                        begun.entry(*server).or_default().push(text_of(*chunk, damage));
                        Found { at: now, incarnation }
                    });
                }
            }
            self.damaged.retain(|(server, chunk), found| {
                let Some(row) = cluster.row(*server) else { return true };
                if row.damaged.contains_key(chunk) {
                    return true;
                }
                if row.incarnation == found.incarnation && row.replicas.contains_key(chunk) {
                    let ended = ended.entry(*server).or_insert_with(|| (Vec::new(), found.at));
                    ended.0.push(format!("chunk {}", chunk.0));
                    ended.1 = ended.1.min(found.at);
                }
                false
            });
        }
        for (server, what) in begun {
            events.push(event(EventKind::Damaged, Some(server), named(&what), None));
        }
        for (server, (what, since)) in ended {
            let cause = format!("{}: whole again", named(&what));
            events.push(event(EventKind::Mended, Some(server), cause, Some(since)));
        }
    }

    fn divergence(&mut self, master: &Master, events: &mut Vec<Event>) {
        let found = lock(&master.rebuild.diverging).clone();
        for (chunk, Divergence { version, seq, most, others }) in &found {
            if self.diverging.contains_key(chunk) {
                continue;
            }
            self.diverging.insert(*chunk, now());
            let place = format!("chunk {} version {} operation {seq}", chunk.0, version.0);
            let cause = if most.is_empty() {
                format!(
                    "{place}: {} differ, and nobody can say which is right; read the file, and write it anew",
                    list(others)
                )
            } else {
                format!("{place}: {} differs from {}, and is made equal", list(others), list(most))
            };
            master.notice(format!("{cause}; see {}", Page::ReplicasDiffer));
            let server = if let [one] = others[..] { Some(one) } else { None };
            events.push(event(EventKind::Diverged, server, cause, None));
        }
        let over: BTreeSet<ChunkId> =
            self.diverging.keys().filter(|chunk| !found.contains_key(chunk)).copied().collect();
        for chunk in over {
            let since = self.diverging.remove(&chunk);
            if master.chunk(chunk).is_some() {
                let cause = format!("chunk {}: its replicas are equal again", chunk.0);
                events.push(event(EventKind::Mended, None, cause, since));
            }
        }
    }
}

/// Whether members of `record` hold different bytes after the same operations.
pub(crate) fn divergence_of(master: &Master, chunk: ChunkId, record: &Chunk) -> Option<Divergence> {
    let cluster = lock(&master.cluster);
    let members = record.active.members.iter().filter_map(|member| {
        let row = cluster.row(member.server).filter(|row| row.disk == member.disk)?;
        let replica = row.replicas.get(&chunk)?;
        let current = replica.version == record.active.version && !replica.not_current;
        current.then_some((member.server, *replica))
    });
    let members: Vec<_> = members.collect();
    divergence(&members)
}

fn event(
    kind: EventKind,
    server: Option<ServerId>,
    cause: String,
    since: Option<Timestamp>,
) -> Event {
    let at = WallTime(clock::wall_nanos());
    let lasted_ms = since.map(|since| now().nanos_since(since) / 1_000_000);
    Event { at, kind, server, cause, lasted_ms }
}

fn text_of(chunk: ChunkId, damage: &Damage) -> String {
    if damage.whole {
        return format!("chunk {} (its file)", chunk.0);
    }
    let blocks: Vec<String> =
        damage.blocks.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = if NAMED_MAX < damage.blocks.len() { ", …" } else { "" };
    let word = if damage.blocks.len() == 1 { "block" } else { "blocks" };
    format!("chunk {} ({word} {}{more})", chunk.0, blocks.join(", "))
}

fn named(what: &[String]) -> String {
    let more = if NAMED_MAX < what.len() {
        format!(" and {} more", what.len() - NAMED_MAX)
    } else {
        String::new()
    };
    format!("{}{more}", what.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", "))
}

fn list(servers: &[ServerId]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
