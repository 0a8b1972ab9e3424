//! Which chunks move from full servers to empty ones, until all are about equally full.
//!
//! Full is the share of a disk that the chunks listed on it take, by the chunk map: what a server has not deleted yet does
//! not count. Each move makes two servers more equal and never swaps which of them is fuller, so that it ends. No two
//! replicas come to one server, and none nearer to the others than it was.

use std::collections::BTreeMap;

use crate::chunk::Member;
use crate::ids::{ChunkId, ServerId};
use crate::plan::rebuild::{Limits, Place};

/// Servers whose shares differ by no more than so many permille are about equal.
pub const EVEN_PERMILLE: u64 = 30;

/// A server that can give and take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    pub member: Member,
    pub place: Place,
    /// Of chunks that the map lists on it.
    pub listed_bytes: u64,
    /// What chunks can take of it.
    pub total_bytes: u64,
    /// What copies may still take.
    pub room_bytes: u64,
    /// Copies on their way to it.
    pub incoming: usize,
}

impl Disk {
    #[must_use]
    pub fn permille(&self) -> u64 {
        let share = u128::from(self.listed_bytes) * 1000 / u128::from(self.total_bytes.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

/// A chunk with all its copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub chunk: ChunkId,
    pub bytes: u64,
    pub members: Vec<Member>,
    /// Whoever else has a replica of it.
    pub others: Vec<ServerId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    pub chunk: ChunkId,
    pub bytes: u64,
    pub leaver: Member,
    pub learner: Member,
}

/// Chooses as many moves as the limits allow and counts them in `disks`. `places` of all servers.
pub fn rebalance(
    disks: &mut [Disk],
    chunks: &[Held],
    places: &BTreeMap<ServerId, Place>,
    limits: Limits,
) -> Vec<Moved> {
    let mut left: Vec<&Held> = chunks.iter().collect();
    let mut running: usize = disks.iter().map(|disk| disk.incoming).sum();
    let mut moves = Vec::new();
    while running < limits.in_all {
        let Some((at, from, to)) = best(disks, &left, places, limits) else { break };
        let Held { chunk, bytes, .. } = *left.swap_remove(at);
        disks[from].listed_bytes = disks[from].listed_bytes.saturating_sub(bytes);
        disks[to].listed_bytes += bytes;
        disks[to].room_bytes = disks[to].room_bytes.saturating_sub(bytes);
        disks[to].incoming += 1;
        running += 1;
        moves.push(Moved { chunk, bytes, leaver: disks[from].member, learner: disks[to].member });
    }
    moves
}

/// The chunk, and from where to where: from the fullest that has one to the emptiest that can take it.
fn best(
    disks: &[Disk],
    chunks: &[&Held],
    places: &BTreeMap<ServerId, Place>,
    limits: Limits,
) -> Option<(usize, usize, usize)> {
    let mut order: Vec<usize> = (0..disks.len()).collect();
    order.sort_by_key(|at| (disks[*at].permille(), disks[*at].member));
    for from in order.iter().rev().copied() {
        for to in order.iter().copied() {
            let (full, empty) = (&disks[from], &disks[to]);
            if full.permille() <= empty.permille() + EVEN_PERMILLE {
                break;
            }
            if limits.per_target <= empty.incoming {
                continue;
            }
            if let Some(at) = chunks.iter().position(|held| fits(held, full, empty, places)) {
                return Some((at, from, to));
            }
        }
    }
    None
}

fn fits(held: &Held, full: &Disk, empty: &Disk, places: &BTreeMap<ServerId, Place>) -> bool {
    let target = empty.member.server;
    if !held.members.contains(&full.member)
        || held.bytes == 0
        || empty.room_bytes < held.bytes
        || held.others.contains(&target)
        || held.members.iter().any(|member| member.server == target)
    {
        return false;
    }
    let mut after = (full.clone(), empty.clone());
    after.0.listed_bytes = after.0.listed_bytes.saturating_sub(held.bytes);
    after.1.listed_bytes += held.bytes;
    let staying = || held.members.iter().filter(|member| **member != full.member);
    let shared = |place: &Place| {
        let places = staying().filter_map(|member| places.get(&member.server));
        places.map(|other| other.shared_with(place)).max()
    };
    after.1.permille() <= after.0.permille() && shared(&empty.place) <= shared(&full.place)
}

/// Bytes that must move at least until all are equally full.
#[must_use]
pub fn uneven_bytes(disks: &[Disk]) -> u64 {
    let listed: u128 = disks.iter().map(|disk| u128::from(disk.listed_bytes)).sum();
    let total: u128 = disks.iter().map(|disk| u128::from(disk.total_bytes)).sum();
    let over = disks.iter().map(|disk| {
        let share = listed * u128::from(disk.total_bytes) / total.max(1);
        u128::from(disk.listed_bytes).saturating_sub(share)
    });
    u64::try_from(over.sum::<u128>()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::samples::member;

    const ALL: Limits = Limits { per_target: usize::MAX, in_all: usize::MAX };

    fn disk(n: u32, total_bytes: u64, place: &Place) -> Disk {
        let place = place.clone();
        let (listed_bytes, incoming) = (0, 0);
        Disk {
            member: member(n),
            place,
            listed_bytes,
            total_bytes,
            room_bytes: total_bytes,
            incoming,
        }
    }

    fn held(chunk: u64, members: &[u32]) -> Held {
        let members = members.iter().map(|n| member(*n)).collect();
        Held { chunk: ChunkId(chunk), bytes: 10, members, others: Vec::new() }
    }

    /// The disks with `chunks` on them.
    fn filled(mut disks: Vec<Disk>, chunks: &[Held]) -> Vec<Disk> {
        for disk in &mut disks {
            let on = chunks.iter().filter(|held| held.members.contains(&disk.member));
            disk.listed_bytes = on.map(|held| held.bytes).sum();
        }
        disks
    }

    fn places(disks: &[Disk]) -> BTreeMap<ServerId, Place> {
        disks.iter().map(|disk| (disk.member.server, disk.place.clone())).collect()
    }

    /// Carries the moves out, checking each.
    fn carry_out(chunks: &mut [Held], moves: &[Moved]) {
        for Moved { chunk, leaver, learner, .. } in moves {
            let held = chunks.iter_mut().find(|held| held.chunk == *chunk).unwrap();
            assert!(!held.members.iter().any(|member| member.server == learner.server), "{held:?}");
            let at = held.members.iter().position(|member| member == leaver).unwrap();
            held.members[at] = *learner;
        }
    }

    fn spread(disks: &[Disk]) -> u64 {
        let shares = || disks.iter().map(Disk::permille);
        shares().max().unwrap() - shares().min().unwrap()
    }

    #[test]
    fn a_new_server_gets_its_share_and_a_second_run_moves_nothing() {
        // Every chunk on three of four; the fifth is new, the sixth has half the disk.
        let mut chunks: Vec<Held> = (0..400)
            .map(|n| {
                let without = u32::try_from(n % 4).unwrap() + 1;
                let on: Vec<u32> = (1..=4).filter(|server| *server != without).collect();
                held(n, &on)
            })
            .collect();
        let sizes = [(1, 10_000), (2, 10_000), (3, 10_000), (4, 10_000), (5, 10_000), (6, 5_000)];
        let fresh = || sizes.iter().map(|(n, total)| disk(*n, *total, &Place::default())).collect();
        let mut disks = filled(fresh(), &chunks);
        let places = places(&disks);
        let least = uneven_bytes(&disks);
        let moves = rebalance(&mut disks, &chunks, &places, ALL);
        carry_out(&mut chunks, &moves);
        assert_eq!(
            disks.iter().map(|d| d.listed_bytes).collect::<Vec<_>>(),
            filled(fresh(), &chunks).iter().map(|d| d.listed_bytes).collect::<Vec<_>>()
        );
        assert!(spread(&disks) <= EVEN_PERMILLE, "{disks:?}");
        let moved: u64 = moves.iter().map(|moved| moved.bytes).sum();
        assert!(moved <= least, "{moved} moved, {least} at least for all to be equal");
        let mut again = filled(fresh(), &chunks);
        assert_eq!(rebalance(&mut again, &chunks, &places, ALL), []);
    }

    #[test]
    fn limits_hold_and_many_short_rounds_come_to_the_same_end() {
        let mut chunks: Vec<Held> = (0..90).map(|n| held(n, &[1, 2, 3])).collect();
        let fresh = || (1..=5).map(|n| disk(n, 2_000, &Place::default())).collect::<Vec<_>>();
        let limits = Limits { per_target: 2, in_all: 3 };
        for round in 0.. {
            assert!(round < 100, "it does not end");
            let mut disks = filled(fresh(), &chunks);
            let places = places(&disks);
            let moves = rebalance(&mut disks, &chunks, &places, limits);
            assert!(moves.len() <= 3 && disks.iter().all(|disk| disk.incoming <= 2));
            if moves.is_empty() {
                assert!(spread(&disks) <= EVEN_PERMILLE, "{disks:?}");
                break;
            }
            carry_out(&mut chunks, &moves);
        }
    }

    #[test]
    fn zones_stay_apart_and_full_disks_get_nothing() {
        let zone = |name: &str| Place { zone: name.to_owned(), host: String::new() };
        let chunks: Vec<Held> = (0..50).map(|n| held(n, &[1, 2, 3])).collect();
        let disks =
            [disk(1, 1_000, &zone("a")), disk(2, 1_000, &zone("b")), disk(3, 1_000, &zone("c"))];
        let with = |fourth: Disk| {
            let mut disks = filled(disks.iter().cloned().chain([fourth]).collect(), &chunks);
            let places = places(&disks);
            rebalance(&mut disks, &chunks, &places, ALL)
        };
        let moves = with(disk(4, 1_000, &zone("b")));
        assert!(!moves.is_empty());
        assert!(moves.iter().all(|moved| moved.leaver.server == ServerId(2)), "{moves:?}");
        assert_eq!(with(Disk { room_bytes: 9, ..disk(4, 1_000, &zone("b")) }), []);
    }
}
