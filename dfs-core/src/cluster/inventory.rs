//! What a server told of its replicas, and whether that is still what it holds: both sides keep a digest, and where they
//! differ for some heartbeats the server tells everything again.

use super::{Replica, ServerRow};
use crate::chunk::inventory_digest_of;
use crate::ids::ChunkId;

/// After so many heartbeats that differ, one after the other, a server is asked for everything.
const MISMATCHES_MAX: u32 = 3;

impl ServerRow {
    pub(super) fn keep_only(&mut self, replicas: Vec<(ChunkId, Replica)>) {
        self.replicas = replicas.into_iter().collect();
        let each = self.replicas.iter();
        self.digest = each
            .map(|(chunk, replica)| inventory_digest_of(*chunk, replica.version))
            .fold(0, u64::wrapping_add);
        self.mismatches = 0;
    }

    pub(super) fn keep(&mut self, chunk: ChunkId, replica: Replica) {
        self.drop_replica(chunk);
        self.digest = self.digest.wrapping_add(inventory_digest_of(chunk, replica.version));
        self.replicas.insert(chunk, replica);
    }

    pub(super) fn drop_replica(&mut self, chunk: ChunkId) {
        if let Some(before) = self.replicas.remove(&chunk) {
            self.digest = self.digest.wrapping_sub(inventory_digest_of(chunk, before.version));
        }
    }

    /// A replica that was learned of by another way than its heartbeats, which tell of it a moment later.
    pub(super) fn keep_ahead(&mut self, chunk: ChunkId, replica: Replica) {
        self.keep(chunk, replica);
        self.mismatches = 0;
    }

    /// After a heartbeat with the digest `told`: whether the server should tell everything again.
    pub(super) fn is_to_tell_anew(&mut self, told: Option<u64>) -> bool {
        let differs = self.inventory_complete && told.is_some_and(|told| told != self.digest);
        self.mismatches = if differs { self.mismatches + 1 } else { 0 };
        let anew = MISMATCHES_MAX <= self.mismatches;
        if anew {
            self.mismatches = 0;
        }
        anew
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::inventory_digest_of;
    use crate::cluster::tests::{at, beat};
    use crate::cluster::{Cluster, Heartbeat, LivenessProfile, Replica};
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
}
