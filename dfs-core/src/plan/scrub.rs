//! Replicas that should be equal and are not, although each has its checksums: told by their digests.
//!
//! Those that applied the same operations of the same version hold the same bytes (DESIGN §11, I9). Who differs from
//! most of them is wrong; two against one is the least that decides.

use std::collections::BTreeMap;

use crate::cluster::Replica;
use crate::ids::{ChunkVersion, ServerId};

/// Replicas of one chunk at one position that differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    pub version: ChunkVersion,
    pub seq: u64,
    /// What most of them hold; empty: nobody can say which is right.
    pub most: Vec<ServerId>,
    pub others: Vec<ServerId>,
}

/// Looks at replicas of the same chunk that are current.
#[must_use]
pub fn divergence(replicas: &[(ServerId, Replica)]) -> Option<Divergence> {
    let mut at: BTreeMap<(ChunkVersion, u64), Vec<&(ServerId, Replica)>> = BTreeMap::new();
    for held in replicas {
        at.entry((held.1.version, held.1.seq)).or_default().push(held);
    }
    at.into_iter().find_map(|((version, seq), same)| {
        let first = content(&same.first()?.1);
        if same.iter().all(|(_, replica)| content(replica) == first) {
            return None;
        }
        let agree =
            |one: &Replica| same.iter().filter(|(_, other)| content(other) == content(one)).count();
        let is_most = |replica: &Replica| same.len() < 2 * agree(replica);
        let (most, others): (Vec<_>, Vec<_>) =
            same.iter().partition(|(_, replica)| is_most(replica));
        let ids = |held: Vec<&&(ServerId, Replica)>| held.iter().map(|held| held.0).collect();
        Some(Divergence { version, seq, most: ids(most), others: ids(others) })
    })
}

fn content(replica: &Replica) -> (u32, u64) {
    (replica.digest, replica.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(server: u32, seq: u64, digest: u32) -> (ServerId, Replica) {
        let version = ChunkVersion(3);
        (ServerId(server), Replica { version, seq, len: 9, not_current: false, digest })
    }

    #[track_caller]
    fn check(replicas: &[(ServerId, Replica)], expected: Option<(u64, &[u32], &[u32])>) {
        let ids = |ids: &[u32]| ids.iter().map(|id| ServerId(*id)).collect();
        let expected = expected.map(|(seq, most, others)| Divergence {
            version: ChunkVersion(3),
            seq,
            most: ids(most),
            others: ids(others),
        });
        assert_eq!(divergence(replicas), expected);
    }

    #[test]
    fn who_differs_from_most_at_the_same_operation_is_wrong() {
        check(&[], None);
        check(&[held(1, 7, 5), held(2, 7, 5), held(3, 7, 5)], None);
        check(&[held(1, 7, 5), held(2, 7, 6), held(3, 7, 5)], Some((7, &[1, 3], &[2])));
        // One that is behind says nothing about the others.
        check(&[held(1, 7, 5), held(2, 8, 6), held(3, 9, 7)], None);
        check(&[held(1, 7, 5), held(2, 6, 6), held(3, 7, 6)], Some((7, &[], &[1, 3])));
        check(&[held(1, 7, 5), held(2, 7, 6), held(3, 7, 7)], Some((7, &[], &[1, 2, 3])));
        let mut longer = held(2, 7, 5);
        longer.1.len = 10;
        check(&[held(1, 7, 5), longer, held(3, 7, 5)], Some((7, &[1, 3], &[2])));
    }
}
