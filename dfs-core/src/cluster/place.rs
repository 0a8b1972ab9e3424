//! Which servers a new chunk goes to, and who has no room for one.

use super::overlay::Room;
use super::{Cluster, Liveness, ServerRow};
use crate::chunk::Member;
use crate::ids::{ChunkId, ServerId};
use crate::plan::rebuild::{Place, mix};
use crate::time::Timestamp;

/// By what servers are chosen for a new chunk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Placement {
    /// By free space and number of chunks, spread over zones and hosts.
    #[default]
    Even,
    /// Those with the fewest chunks, of equal ones the lowest ids: it can be told beforehand. Zones, hosts and space do
    /// not count. A chunk that is deleted is counted until its server joins a new master.
    FewestChunks,
}

impl Cluster {
    /// Chooses up to `count` alive servers for a new chunk of `chunk_bytes`, none of `avoid`: one after the other, in a
    /// zone and on a host that has none yet, if there is one. Over time each gets chunks in proportion to the free share
    /// of its disk, more if it has fewer than others; nobody is chosen again and again until it reports. Or as
    /// [`Placement::FewestChunks`] says, if so set.
    pub fn place(
        &mut self,
        now: Timestamp,
        count: usize,
        chunk_bytes: u64,
        avoid: &[ServerId],
    ) -> Vec<Member> {
        let alive: Vec<ServerId> = self.rows.keys().copied().collect();
        let alive: Vec<ServerId> =
            alive.into_iter().filter(|id| self.liveness(now, *id) == Liveness::Alive).collect();
        if self.placement == Placement::FewestChunks {
            return self.place_on_fewest(alive, count, avoid);
        }
        let rows = || alive.iter().filter_map(|server| Some((*server, self.rows.get(server)?)));
        let chunks: u64 = rows().map(|(_, row)| row.chunks()).sum();
        let shares: u64 = rows().map(|(_, row)| row.free_share(0)).sum();
        // Whoever was away or is new catches up by a few chunks, not by all it missed.
        let front = rows().map(|(_, row)| row.burden).max().unwrap_or(0);
        let mut candidates: Vec<Candidate<'_>> = rows()
            .filter(|(server, _)| !avoid.contains(server) && self.room(*server) != Room::Closed)
            .filter_map(|(server, row)| {
                // A chunk is rarely full at once: a sixteenth of it per placement is kept free until the report.
                let promised = row.recent_placements.saturating_mul(chunk_bytes / 16);
                let share = row.free_share(promised);
                // What was promised is a guess, good enough to choose by; whether bytes fit the server knows.
                let room = room_for_new_chunk(chunk_bytes) <= row.free_bytes;
                let due = chunks * share / shares.max(1);
                let fewer = ((due + 10) * 100 / (row.chunks() + 10)).clamp(50, 200);
                let cost = BURDEN_OF_FULL_DISK / (share * fewer / 100).max(1);
                let burden = row.burden.max(front.saturating_sub(BURDEN_BEHIND_MAX)) + cost;
                // By lot among those that are about even: the members of a server's chunks are then all others, and
                // all of them help when it is lost.
                let lot = mix(ChunkId(self.placements), server);
                let rank = (burden / BURDEN_EVEN, lot);
                let last = self.room(server);
                let member = Member { server, disk: row.disk };
                room.then_some(Candidate { last, rank, burden, member, place: &row.place })
            })
            .collect();
        let mut taken: Vec<&Place> =
            avoid.iter().filter_map(|server| Some(&self.rows.get(server)?.place)).collect();
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            let shared = |place: &Place| taken.iter().map(|other| other.shared_with(place)).max();
            let best = candidates
                .iter()
                .enumerate()
                .min_by_key(|(_, c)| (c.last, shared(c.place), c.rank));
            let Some((best, _)) = best else { break };
            let Candidate { burden, member, place, .. } = candidates.swap_remove(best);
            chosen.push((member, burden));
            taken.push(place);
        }
        self.placements += 1;
        for (member, burden) in &chosen {
            if let Some(row) = self.rows.get_mut(&member.server) {
                row.recent_placements += 1;
                row.burden = *burden;
            }
        }
        chosen.into_iter().map(|(member, _)| member).collect()
    }

    fn place_on_fewest(
        &mut self,
        mut alive: Vec<ServerId>,
        count: usize,
        avoid: &[ServerId],
    ) -> Vec<Member> {
        alive.retain(|server| !avoid.contains(server) && self.room(*server) != Room::Closed);
        // A stable sort of what is in the order of ids.
        alive.sort_by_key(|server| (self.room(*server), self.rows.get(server).map(|row| row.load)));
        alive.truncate(count);
        self.placements += 1;
        let mut member = |server| {
            let row = self.rows.get_mut(&server)?;
            row.load += 1;
            row.recent_placements += 1;
            Some(Member { server, disk: row.disk })
        };
        alive.into_iter().filter_map(&mut member).collect()
    }

    /// No chunk was made on those that [`Self::place`] chose.
    pub fn take_back(&mut self, chosen: &[Member]) {
        for member in chosen {
            if let Some(row) = self.rows.get_mut(&member.server) {
                row.load = row.load.saturating_sub(1);
                row.recent_placements = row.recent_placements.saturating_sub(1);
            }
        }
    }

    /// `server` refused bytes for want of room: until it says otherwise it has none. False: that was known.
    pub fn on_full(&mut self, server: ServerId) -> bool {
        self.rows.get_mut(&server).is_some_and(|row| {
            row.free_bytes = 0;
            !std::mem::replace(&mut row.is_full, true)
        })
    }
}

/// A server with less free gets no new chunk of `chunk_bytes`: it would soon refuse what is written there.
#[must_use]
pub fn room_for_new_chunk(chunk_bytes: u64) -> u64 {
    (chunk_bytes / 16).clamp(64 << 10, 4 << 20).min(chunk_bytes.max(1))
}

/// What a chunk costs a server with a thousandth of its disk free.
const BURDEN_OF_FULL_DISK: u64 = 1_000_000_000;
/// Four chunks of a server that is empty.
const BURDEN_BEHIND_MAX: u64 = 4 * BURDEN_OF_FULL_DISK / 1000;
const BURDEN_EVEN: u64 = 3 * BURDEN_OF_FULL_DISK / 1000;

/// A server that a chunk could go to.
struct Candidate<'a> {
    /// Whether it is only taken if there is nobody else.
    last: Room,
    /// Less is better.
    rank: (u64, u64),
    /// Its own, if it is chosen.
    burden: u64,
    member: Member,
    place: &'a Place,
}

impl ServerRow {
    /// Those it said it has, and those it was given since.
    fn chunks(&self) -> u64 {
        self.chunk_count + self.recent_placements
    }

    /// Permille of the disk that is free, less `promised` bytes.
    fn free_share(&self, promised: u64) -> u64 {
        let free = u128::from(self.free_bytes.saturating_sub(promised));
        u64::try_from(free * 1000 / u128::from(self.total_bytes.max(1))).unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::overlay::OverlayKind;
    use super::super::tests::{at, beat};
    use super::super::{Heartbeat, LivenessProfile};
    use super::*;

    #[test]
    fn placement_takes_the_emptiest_and_counts_what_it_just_placed() {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        for (server, free) in [(1, 100), (2, 900), (3, 800), (4, 700)] {
            cluster.on_heartbeat(
                at(0),
                Heartbeat { free_bytes: free << 30, total_bytes: 1000 << 30, ..beat(server, 0) },
            );
        }
        let placed =
            |members: Vec<Member>| members.into_iter().map(|m| m.server.0).collect::<BTreeSet<_>>();
        assert_eq!(placed(cluster.place(at(1), 3, 64 << 20, &[])), [2, 3, 4].into());
        assert_eq!(placed(cluster.place(at(1), 3, 64 << 20, &[ServerId(2)])), [3, 4, 1].into());
        cluster.on_disconnect(at(1), ServerId(3), 1);
        assert_eq!(placed(cluster.place(at(1), 4, 64 << 20, &[])), [2, 4, 1].into());
    }

    #[test]
    fn fewest_chunks_first_and_of_equals_the_lowest_whatever_heartbeats_say() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        cluster.placement = Placement::FewestChunks;
        for server in 1..=4 {
            cluster.on_heartbeat(at(0), beat(server, 0));
        }
        let mut placed = |at_ms, avoid: &[ServerId]| {
            let members = cluster.place(at(at_ms), 3, 32, avoid);
            // A report that was sent before the chunks were made.
            for server in 1..=4 {
                cluster.on_heartbeat(at(at_ms), beat(server, 0));
            }
            members.into_iter().map(|m| m.server.0).collect::<Vec<_>>()
        };
        assert_eq!(placed(1, &[]), [1, 2, 3]);
        assert_eq!(placed(2, &[]), [4, 1, 2]);
        assert_eq!(placed(3, &[]), [3, 4, 1]);
        assert_eq!(placed(4, &[ServerId(2)]), [3, 4, 1]);
        assert_eq!(placed(5, &[]), [2, 3, 4]);
        // Loads are 4, 3, 4, 4; one that came to nothing counts for nobody.
        let chosen = cluster.place(at(6), 1, 32, &[]);
        assert_eq!(chosen[0].server, ServerId(2));
        cluster.take_back(&chosen);
        assert_eq!(cluster.place(at(6), 1, 32, &[]), chosen);
    }

    #[test]
    fn placement_is_even_between_reports_and_goes_by_room() {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        let beat = |server, free: u64, chunk_count| Heartbeat {
            free_bytes: free << 30,
            total_bytes: 1000 << 30,
            chunk_count,
            ..beat(server, 0)
        };
        // One of six shows a little less room, one has a third of the room.
        for (server, free) in [(1, 900), (2, 899), (3, 900), (4, 900), (5, 900), (6, 300)] {
            cluster.on_heartbeat(at(0), beat(server, free, 0));
        }
        let mut given = [0_u64; 7];
        for _ in 0..400 {
            for member in cluster.place(at(1), 3, 1 << 20, &[]) {
                given[member.server.0 as usize] += 1;
            }
        }
        let [_, a, b, c, d, e, small] = given;
        let most = [a, b, c, d, e].into_iter().max().unwrap();
        let least = [a, b, c, d, e].into_iter().min().unwrap();
        assert!(most - least <= 12 && small < least / 2 && least / 4 < small, "{given:?}");
        // A new one gets more than the others, and not everything.
        cluster.on_heartbeat(at(2), beat(7, 900, 0));
        let times = (0..100).filter(|_| {
            cluster.place(at(3), 3, 1 << 20, &[]).iter().any(|member| member.server.0 == 7)
        });
        let times = times.count();
        assert!((60..=98).contains(&times), "{times}");
    }

    #[test]
    fn many_chunks_between_two_heartbeats_fill_no_small_server() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        for server in 1..=3 {
            let (free_bytes, total_bytes) = (30 << 20, 64 << 20);
            cluster.on_heartbeat(at(0), Heartbeat { free_bytes, total_bytes, ..beat(server, 0) });
        }
        for _ in 0..100 {
            assert_eq!(cluster.place(at(1), 3, 64 << 20, &[]).len(), 3);
        }
        for server in 1..=3 {
            let full = Heartbeat { free_bytes: 0, total_bytes: 64 << 20, ..beat(server, 0) };
            cluster.on_heartbeat(at(2), full);
        }
        assert!(cluster.place(at(2), 3, 64 << 20, &[]).is_empty());
    }

    #[test]
    fn placement_leaves_out_who_goes_and_takes_who_flaps_last() {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        for server in 1..=4 {
            cluster.on_heartbeat(
                at(0),
                Heartbeat { free_bytes: 1 << 30, total_bytes: 2 << 30, ..beat(server, 0) },
            );
        }
        let wished = [(1, OverlayKind::Probation), (2, OverlayKind::Suspended)];
        let wished = wished.map(|(server, kind)| (ServerId(server), vec![kind]));
        cluster.set_overlays(wished.into_iter().collect());
        let mut placed = |count| {
            let members = cluster.place(at(1), count, 64 << 20, &[]);
            let mut servers: Vec<u32> = members.into_iter().map(|m| m.server.0).collect();
            // The lot decides between those two.
            servers[..2].sort_unstable();
            servers
        };
        assert_eq!(placed(2), [3, 4]);
        assert_eq!(placed(4), [3, 4, 1], "never on one that is suspended");
    }

    #[test]
    fn a_server_that_is_full_gets_nothing_until_it_says_that_it_has_room() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        let free =
            |server, free_bytes| Heartbeat { free_bytes, total_bytes: 1 << 30, ..beat(server, 0) };
        let room = room_for_new_chunk(64 << 20);
        for server in 1..=4 {
            cluster.on_heartbeat(at(0), free(server, if server == 1 { room } else { 900 << 20 }));
        }
        let has_first = |members: Vec<Member>| members.iter().any(|m| m.server == ServerId(1));
        assert!(has_first(cluster.place(at(1), 4, 64 << 20, &[])));
        assert!(cluster.on_full(ServerId(1)), "news");
        assert!(!has_first(cluster.place(at(1), 4, 64 << 20, &[])));
        cluster.on_heartbeat(at(2), free(1, room - 1));
        assert!(!has_first(cluster.place(at(2), 4, 64 << 20, &[])), "less than is soon written");
        assert!(!cluster.on_full(ServerId(1)), "no news");
        cluster.on_heartbeat(at(3), free(1, room));
        assert!(has_first(cluster.place(at(3), 4, 64 << 20, &[])));
        assert!(cluster.on_full(ServerId(1)), "news again");
        assert_eq!(
            [1, 4096, 256 << 10, 1 << 30].map(room_for_new_chunk),
            [1, 4096, 64 << 10, 4 << 20]
        );
    }
}
