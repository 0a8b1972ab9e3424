//! What a server told of its replicas, and whether that is still what it holds: both sides keep a digest, and where they
//! differ for some heartbeats the server tells everything again.
//!
//! What a heartbeat tells was gathered before it was sent, and may be older than what the server answered to a call: a
//! replica that was learned by an answer is *ahead* until the server tells of it, and until then no news without it count.

use super::{Replica, ServerRow};
use crate::chunk::inventory_digest_of;
use crate::ids::ChunkId;

/// After so many heartbeats that differ, one after the other, a server is asked for everything.
const MISMATCHES_MAX: u32 = 3;

impl ServerRow {
    /// Everything the server holds, as of when it was gathered.
    pub(super) fn keep_only(&mut self, replicas: Vec<(ChunkId, Replica)>) {
        let before = std::mem::take(&mut self.replicas);
        self.replicas =
            before.into_iter().filter(|(chunk, _)| self.ahead.contains(chunk)).collect();
        let each = self.replicas.iter();
        self.digest = each
            .map(|(chunk, replica)| inventory_digest_of(*chunk, replica.version))
            .fold(0, u64::wrapping_add);
        self.mismatches = 0;
        for (chunk, replica) in replicas {
            self.keep_told(chunk, replica);
        }
    }

    /// As a heartbeat tells it. On one disk a version only rises: a lower one was gathered before an adoption.
    pub(super) fn keep_told(&mut self, chunk: ChunkId, replica: Replica) {
        let known = self.replicas.get(&chunk);
        if known.is_none_or(|known| known.version <= replica.version) {
            self.keep(chunk, replica);
            self.ahead.remove(&chunk);
        }
    }

    /// As a heartbeat tells it.
    pub(super) fn drop_told(&mut self, chunk: ChunkId) {
        if !self.ahead.contains(&chunk) {
            self.drop_replica(chunk);
        }
    }

    fn keep(&mut self, chunk: ChunkId, replica: Replica) {
        self.drop_replica(chunk);
        self.digest = self.digest.wrapping_add(inventory_digest_of(chunk, replica.version));
        self.replicas.insert(chunk, replica);
    }

    fn drop_replica(&mut self, chunk: ChunkId) {
        if let Some(before) = self.replicas.remove(&chunk) {
            self.digest = self.digest.wrapping_sub(inventory_digest_of(chunk, before.version));
        }
    }

    /// A replica that was learned of by another way than its heartbeats, which tell of it a moment later.
    pub(super) fn keep_ahead(&mut self, chunk: ChunkId, replica: Replica) {
        let known = self.replicas.get(&chunk);
        if known.is_none_or(|known| known.version <= replica.version) {
            self.keep(chunk, replica);
            self.ahead.insert(chunk);
        }
        self.mismatches = 0;
    }

    /// After a heartbeat with the digest `told`: whether the server should tell everything again.
    pub(super) fn is_to_tell_anew(&mut self, told: Option<u64>) -> bool {
        let differs = self.inventory_complete && told.is_some_and(|told| told != self.digest);
        self.mismatches = if differs { self.mismatches + 1 } else { 0 };
        let anew = MISMATCHES_MAX <= self.mismatches;
        if anew {
            self.mismatches = 0;
            // What is gathered for that is later than all that was learned so far.
            self.ahead.clear();
        }
        anew
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::inventory_digest_of;
    use crate::cluster::tests::{at, beat};
    use crate::cluster::{Cluster, Heartbeat, LivenessProfile, Replica};
    use crate::exposure::Safety;
    use crate::ids::{ChunkId, ChunkVersion, ServerId};

    fn replica(version: u64) -> Replica {
        let version = ChunkVersion(version);
        Replica { version, seq: 1, len: 1, not_current: false, digest: 0 }
    }

    fn digest(told: &[(u64, u64)]) -> Option<u64> {
        let each =
            told.iter().map(|(chunk, v)| inventory_digest_of(ChunkId(*chunk), ChunkVersion(*v)));
        Some(each.fold(0, u64::wrapping_add))
    }

    #[test]
    fn what_was_told_and_what_is_held_may_differ_for_a_moment_only() {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        let mut hears = |full_inventory, told: &[(u64, u64)], gone: &[u64], inventory_digest| {
            let told = told.iter().map(|(chunk, v)| (ChunkId(*chunk), replica(*v)));
            let heartbeat = Heartbeat {
                full_inventory,
                replicas: told.collect(),
                gone: gone.iter().map(|chunk| ChunkId(*chunk)).collect(),
                inventory_digest,
                ..beat(1, 500)
            };
            cluster.on_heartbeat(at(0), heartbeat).want_full_inventory
        };
        assert!(!hears(true, &[(1, 1), (2, 1), (3, 4)], &[], digest(&[(1, 1), (2, 1), (3, 4)])));
        // A new version, another chunk, one that went, one that never was.
        assert!(!hears(false, &[(1, 2), (7, 1)], &[2, 9], digest(&[(1, 2), (3, 4), (7, 1)])));
        let lost = digest(&[(1, 2), (3, 4)]);
        assert_eq!([0; 4].map(|_| hears(false, &[], &[], lost)), [false, false, true, false]);
        assert!(!hears(true, &[(1, 2), (3, 4)], &[], lost));
        assert_eq!([0; 4].map(|_| hears(false, &[], &[], lost)), [false; 4]);
        // One that says nothing is believed.
        assert_eq!([0; 4].map(|_| hears(false, &[], &[], None)), [false; 4]);
    }

    #[test]
    fn what_was_learned_before_the_heartbeat_that_tells_it_is_no_difference_yet() {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        let told = digest(&[(1, 1)]);
        let full = Heartbeat {
            replicas: vec![(ChunkId(1), replica(1))],
            inventory_digest: told,
            ..beat(1, 500)
        };
        cluster.on_heartbeat(at(0), full);
        let member = crate::chunk::Member {
            server: ServerId(1),
            disk: cluster.row(ServerId(1)).unwrap().disk,
        };
        for version in 2..10 {
            cluster.on_replica(&member, ChunkId(1), replica(version));
            let late = Heartbeat { full_inventory: false, inventory_digest: told, ..beat(1, 500) };
            assert!(!cluster.on_heartbeat(at(0), late).want_full_inventory);
        }
    }

    /// Chunk 1 at version 2 on servers 1 and 2, which answered so; 3 is none of its members any more.
    fn adopted(told: &[(u64, u64)]) -> (Cluster, crate::chunk::Chunk) {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        let mut record = crate::chunk::samples::chunk(2, &[1, 2]);
        record.stored = true;
        for server in 1..=2 {
            let replicas = told.iter().map(|(chunk, v)| (ChunkId(*chunk), replica(*v))).collect();
            cluster.on_heartbeat(
                at(0),
                Heartbeat { replicas, inventory_digest: digest(told), ..beat(server, 500) },
            );
            let member = crate::chunk::samples::member(server);
            cluster.on_replica(&member, ChunkId(1), replica(2));
        }
        (cluster, record)
    }

    #[test]
    fn news_gathered_before_an_adoption_do_not_take_its_copies_away() {
        for (told, gone) in [
            (vec![(1, 1), (7, 1)], vec![]),
            // Of a server that took part for the first time.
            (vec![(7, 1)], vec![]),
            (vec![(7, 1)], vec![ChunkId(1)]),
        ] {
            let (mut cluster, record) = adopted(&told);
            for server in 1..=2 {
                let late = Heartbeat {
                    full_inventory: gone.is_empty(),
                    replicas: told
                        .iter()
                        .map(|(chunk, v)| (ChunkId(*chunk), replica(*v)))
                        .collect(),
                    gone: gone.clone(),
                    inventory_digest: digest(&told),
                    ..beat(server, 500)
                };
                assert!(!cluster.on_heartbeat(at(10), late).want_full_inventory);
            }
            let copies = cluster.copies(at(10), ChunkId(1), &record, false);
            assert_eq!((copies.good, copies.safety(2)), (2, Safety::Safe), "{told:?} {gone:?}");
            // And its answer does not take away what was told since.
            let news = Heartbeat {
                full_inventory: false,
                replicas: vec![(ChunkId(1), replica(3))],
                ..beat(1, 500)
            };
            cluster.on_heartbeat(at(20), news);
            cluster.on_replica(&crate::chunk::samples::member(1), ChunkId(1), replica(2));
            let row = cluster.row(ServerId(1)).unwrap();
            assert_eq!(row.replicas[&ChunkId(1)].version, ChunkVersion(3));
        }
    }

    #[test]
    fn an_adopted_copy_that_is_gone_for_good_is_noticed_and_one_that_was_told_of_goes_at_once() {
        let (mut cluster, record) = adopted(&[]);
        let mut hears = |server, full_inventory, told: &[(u64, u64)], gone: &[u64]| {
            let heartbeat = Heartbeat {
                full_inventory,
                replicas: told.iter().map(|(chunk, v)| (ChunkId(*chunk), replica(*v))).collect(),
                gone: gone.iter().map(|chunk| ChunkId(*chunk)).collect(),
                inventory_digest: digest(told),
                ..beat(server, 500)
            };
            let anew = cluster.on_heartbeat(at(10), heartbeat).want_full_inventory;
            (anew, cluster.copies(at(10), ChunkId(1), &record, false).good)
        };
        // Server 1 lost it right after its answer, and says so once.
        let each = [&[1][..], &[], &[]].map(|gone| hears(1, false, &[], gone));
        assert_eq!(each, [(false, 2), (false, 2), (true, 2)]);
        assert_eq!(hears(1, true, &[], &[]), (false, 1));
        // Server 2 tells of it first.
        assert_eq!(hears(2, false, &[(1, 2)], &[]), (false, 1));
        assert_eq!(hears(2, false, &[], &[1]), (false, 0));
    }
}
