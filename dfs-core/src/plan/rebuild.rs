//! Which chunks get another copy next, and where; and when it is better to wait.
//!
//! Riskiest first: fewest good copies, then those a client waits for, then the longest exposed. A target never holds
//! the chunk already, shares neither zone nor host with its members if there is another one, has room, and is the one
//! that was given least so far, by the share of its disk that is free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::chunk::Member;
use crate::cluster::{Cluster, Liveness, LivenessProfile};
use crate::ids::{ChunkId, ServerId};
use crate::time::Timestamp;

/// Share of a disk that copies leave to writers, in permille, above what servers keep for their journals (which they do
/// not count as free). For last copies nothing is left.
pub const RESERVE_PERMILLE: u64 = 20;
/// Most of [`RESERVE_PERMILLE`]: writers of a large disk need no more.
pub const RESERVE_BYTES_MAX: u64 = 16 << 30;
/// Servers that fall silent within so long of each other went together.
pub const TOGETHER_MS: u64 = 60_000;
/// More than so many permille of the servers at once are a network or a power line, not their disks.
pub const TOGETHER_PERMILLE: usize = 300;
/// Servers that fell silent together are waited for so many times as long as one.
const HOLD_FACTOR: u64 = 10;

/// Where a server stands, as it was told at its start; empty: not told.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Place {
    pub zone: String,
    pub host: String,
}

impl Place {
    /// How much of the failure domain two servers share: 0 nothing, 1 the zone, 2 the host.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> u32 {
        let same = |mine: &str, theirs: &str| !mine.is_empty() && mine == theirs;
        if same(&self.host, &other.host) { 2 } else { u32::from(same(&self.zone, &other.zone)) }
    }
}

/// A chunk with too few good copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Short {
    pub chunk: ChunkId,
    /// Bytes to copy.
    pub bytes: u64,
    /// Good copies on live servers.
    pub good: usize,
    /// A client waits for it.
    pub is_waited_for: bool,
    /// Seen short since.
    pub since: Timestamp,
    /// Members, and whoever else has a replica of it.
    pub holders: Vec<ServerId>,
    /// The one of them whose place the copy takes: its zone and host become free.
    pub leaver: Option<ServerId>,
}

impl Short {
    /// Less is riskier.
    #[must_use]
    pub fn risk(&self) -> impl Ord + use<> {
        (self.good, Reverse(self.is_waited_for), self.since, self.chunk)
    }
}

/// What copies of chunks that have another one may take of a disk.
#[must_use]
pub fn room_bytes(free_bytes: u64, total_bytes: u64) -> u64 {
    let reserve = (total_bytes / 1000 * RESERVE_PERMILLE).min(RESERVE_BYTES_MAX);
    free_bytes.saturating_sub(reserve)
}

/// A server that can take copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub member: Member,
    pub place: Place,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub chunk_count: u64,
    /// Copies on their way to it.
    pub incoming: usize,
    /// Copies it was given since all chunks were safe.
    pub given: u64,
    /// Takes only what no other can take: it flaps, say.
    pub is_last: bool,
}

impl Target {
    /// For copies of chunks that have another one.
    fn room_bytes(&self) -> u64 {
        room_bytes(self.free_bytes, self.total_bytes)
    }

    fn has_room(&self, short: &Short) -> bool {
        short.bytes <= if short.good <= 1 { self.free_bytes } else { self.room_bytes() }
    }

    /// What it was given, for a disk that is all free.
    fn burden(&self) -> u64 {
        let free_permille = permille(self.free_bytes, self.total_bytes).max(1);
        self.given.saturating_mul(1_000_000) / free_permille
    }
}

fn permille(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 1000 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// What may run at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub per_target: usize,
    pub in_all: usize,
}

/// Chooses a target for as many of `short` as the limits allow; counts them in `targets`. `places` of all servers.
pub fn assign(
    short: &[Short],
    targets: &mut [Target],
    places: &BTreeMap<ServerId, Place>,
    limits: Limits,
) -> Vec<(ChunkId, Member)> {
    let mut order: Vec<&Short> = short.iter().collect();
    order.sort_unstable_by_key(|short| short.risk());
    let mut running: usize = targets.iter().map(|target| target.incoming).sum();
    let mut assigned = Vec::new();
    for short in order {
        if limits.in_all <= running {
            break;
        }
        let can_take = |target: &Target| {
            !short.holders.contains(&target.member.server) && target.has_room(short)
        };
        // Whoever is only busy is waited for.
        let is_last = !targets.iter().any(|target| !target.is_last && can_take(target));
        let best = targets
            .iter_mut()
            .filter(|target| {
                target.is_last == is_last && target.incoming < limits.per_target && can_take(target)
            })
            .min_by_key(|target| {
                let staying = short.holders.iter().filter(|id| Some(**id) != short.leaver);
                let shared = staying.filter_map(|holder| places.get(holder));
                let shared = shared.map(|place| place.shared_with(&target.place)).max();
                let lot = mix(short.chunk, target.member.server);
                (shared, target.burden(), target.chunk_count, lot)
            });
        let Some(target) = best else { continue };
        target.incoming += 1;
        target.given += 1;
        target.chunk_count += 1;
        target.free_bytes = target.free_bytes.saturating_sub(short.bytes);
        running += 1;
        assigned.push((short.chunk, target.member));
    }
    assigned
}

/// The same for the same pair, and otherwise as good as a lot: ties are spread and replays agree. Mixing: splitmix64.
#[must_use]
pub fn mix(chunk: ChunkId, server: ServerId) -> u64 {
    let mut mixed =
        chunk.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(server.0).rotate_left(40);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Why nothing is copied now, except chunks with one copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hold {
    /// So many of all servers fell silent together.
    Together { silent: Vec<ServerId>, servers: usize },
    /// All servers of a zone fell silent.
    Zone { zone: String, silent: Vec<ServerId> },
    /// The copies would fill the disks.
    Full { needed_bytes: u64, room_bytes: u64 },
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Together { silent, servers } => {
                let count = silent.len();
                write!(f, "{count} of {servers} servers fell silent together ({})", list(silent))
            }
            Self::Zone { zone, silent } => {
                write!(f, "all servers of zone {zone} fell silent ({})", list(silent))
            }
            Self::Full { needed_bytes, room_bytes } => write!(
                f,
                "{needed_bytes} bytes are to be copied, and the disks have room for {room_bytes} above their reserve"
            ),
        }
    }
}

/// A server for [`hold_for_silence`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    pub server: ServerId,
    pub place: Place,
    /// When it was last heard of, if it is silent.
    pub silent_since: Option<Timestamp>,
}

/// Whether those that are silent look like one cause that may pass.
#[must_use]
pub fn hold_for_silence(servers: &[Watched]) -> Option<Hold> {
    let silent = |since: Timestamp| {
        let near = |other: &&Watched| {
            other
                .silent_since
                .is_some_and(|other| other.0.abs_diff(since.0) <= TOGETHER_MS * 1_000_000)
        };
        servers.iter().filter(near).map(|other| other.server).collect::<Vec<_>>()
    };
    for since in servers.iter().filter_map(|watched| watched.silent_since) {
        let together = silent(since);
        // One server is one server, however few there are.
        if 2 <= together.len() && TOGETHER_PERMILLE * servers.len() < together.len() * 1000 {
            return Some(Hold::Together { silent: together, servers: servers.len() });
        }
    }
    let mut zones: BTreeMap<&str, Vec<&Watched>> = BTreeMap::new();
    for watched in servers.iter().filter(|watched| !watched.place.zone.is_empty()) {
        zones.entry(&watched.place.zone).or_default().push(watched);
    }
    if zones.len() < 2 {
        return None;
    }
    zones.into_iter().find_map(|(zone, members)| {
        let whole = 2 <= members.len() && members.iter().all(|m| m.silent_since.is_some());
        let silent = || members.iter().map(|member| member.server).collect();
        whole.then(|| Hold::Zone { zone: zone.to_owned(), silent: silent() })
    })
}

/// From their last heartbeats, how long servers that fell silent together are waited for. In milliseconds.
#[must_use]
pub fn hold_patience_ms(profile: LivenessProfile) -> u64 {
    HOLD_FACTOR.saturating_mul(profile.rebuild_delay_ms.max(profile.dead_after_ms))
}

/// [`hold_for_silence`] of all that `cluster` has heard of, if those of `killed` fell silent now. Whoever was silent for
/// longer than [`hold_patience_ms`] is not waited for.
#[must_use]
pub fn hold_of(cluster: &Cluster, now: Timestamp, killed: &BTreeSet<ServerId>) -> Option<Hold> {
    let patience = hold_patience_ms(cluster.profile).saturating_mul(1_000_000);
    let silent_since = |server: &ServerId, heard_at: Timestamp| {
        if killed.contains(server) {
            return Some(now);
        }
        // Also those that are not dead yet: the first of many must not be taken for the only one.
        let is_silent = cluster.liveness(now, *server) != Liveness::Alive;
        (is_silent && now.nanos_since(heard_at) < patience).then_some(heard_at)
    };
    let watched = cluster.rows().iter().map(|(server, row)| Watched {
        server: *server,
        place: row.place.clone(),
        silent_since: silent_since(server, row.heard_at),
    });
    hold_for_silence(&watched.collect::<Vec<_>>())
}

/// Whether `needed_bytes` of copies would leave the targets fuller than their reserve.
#[must_use]
pub fn hold_for_room(needed_bytes: u64, targets: &[Target]) -> Option<Hold> {
    let room_bytes = targets.iter().map(Target::room_bytes).sum();
    (room_bytes < needed_bytes).then_some(Hold::Full { needed_bytes, room_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::samples::member;

    fn target(n: u32) -> Target {
        Target {
            member: member(n),
            place: Place::default(),
            free_bytes: 800 << 30,
            total_bytes: 1000 << 30,
            chunk_count: 0,
            incoming: 0,
            given: 0,
            is_last: false,
        }
    }

    fn short(chunk: u64, good: usize, holders: &[u32]) -> Short {
        Short {
            chunk: ChunkId(chunk),
            bytes: 64 << 20,
            good,
            is_waited_for: false,
            since: Timestamp(0),
            holders: holders.iter().map(|n| ServerId(*n)).collect(),
            leaver: None,
        }
    }

    const WIDE: Limits = Limits { per_target: usize::MAX, in_all: usize::MAX };

    #[test]
    fn no_target_gets_more_than_its_share() {
        for servers in [4_u32, 5, 7, 12, 40] {
            // Chunks of server 1, each with two other members, in every combination there is.
            let pairs: Vec<Short> = (2..=servers)
                .flat_map(|a| (a + 1..=servers).map(move |b| (a, b)))
                .cycle()
                .zip(0..997_u64)
                .map(|((a, b), chunk)| short(chunk, 2, &[a, b]))
                .collect();
            let mut targets: Vec<Target> = (2..=servers).map(target).collect();
            let assigned = assign(&pairs, &mut targets, &BTreeMap::new(), WIDE);
            assert_eq!(assigned.len(), pairs.len());
            for (chunk, member) in &assigned {
                let short = pairs.iter().find(|short| short.chunk == *chunk).unwrap();
                assert!(!short.holders.contains(&member.server), "{chunk:?} twice on {member:?}");
            }
            let most = targets.iter().map(|target| target.given).max().unwrap();
            let share = pairs.len() as u64 / u64::from(servers - 1);
            assert!(most * 2 <= share * 3 + 4, "{servers} servers: {most} of a share of {share}");
        }
    }

    #[test]
    fn a_disk_with_half_the_room_gets_half() {
        let mut targets = [target(1), Target { free_bytes: 400 << 30, ..target(2) }];
        let many: Vec<Short> = (0..300).map(|n| short(n, 2, &[8, 9])).collect();
        assign(&many, &mut targets, &BTreeMap::new(), WIDE);
        assert!(targets[1].given.abs_diff(100) <= 6, "{targets:?}");
    }

    #[test]
    fn the_riskiest_come_first_and_limits_hold() {
        let list = [
            short(1, 2, &[1]),
            Short { since: Timestamp(9), ..short(2, 1, &[1]) },
            Short { is_waited_for: true, ..short(3, 2, &[1]) },
            short(4, 1, &[1]),
        ];
        let mut targets = [target(2), target(3)];
        let limits = Limits { per_target: 2, in_all: 3 };
        let assigned = assign(&list, &mut targets, &BTreeMap::new(), limits);
        let chunks: Vec<u64> = assigned.iter().map(|(chunk, _)| chunk.0).collect();
        assert_eq!(chunks, [4, 2, 3]);
        assert!(assign(&list, &mut targets, &BTreeMap::new(), limits).is_empty());
        let one = Limits { per_target: 1, in_all: 9 };
        let mut targets = [target(2), target(3)];
        assert_eq!(assign(&list, &mut targets, &BTreeMap::new(), one).len(), 2);
    }

    #[test]
    fn zones_and_hosts_are_shared_only_where_there_is_no_other() {
        let place = |zone: &str, host: &str| Place { zone: zone.to_owned(), host: host.to_owned() };
        let spots =
            [place("a", "1"), place("a", "1"), place("a", "2"), place("b", "3"), place("b", "4")];
        let places: BTreeMap<ServerId, Place> =
            (1..).map(ServerId).zip(spots.iter().cloned()).collect();
        let on = |n: u32| Target { place: places[&ServerId(n)].clone(), ..target(n) };
        let chosen = |holders: &[u32], free: &[u32]| {
            let mut targets: Vec<Target> = free.iter().map(|n| on(*n)).collect();
            // The one that would be taken by its load alone.
            targets[0].free_bytes = 1000 << 30;
            assign(&[short(1, 2, holders)], &mut targets, &places, WIDE)[0].1.server.0
        };
        assert_eq!(chosen(&[1], &[2, 3, 4]), 4, "another zone");
        assert_eq!(chosen(&[1, 4], &[2, 3]), 3, "another host of a zone that is taken");
        assert_eq!(chosen(&[1, 4, 3], &[2]), 2, "better there than nowhere");
        let leaves = Short { leaver: Some(ServerId(4)), ..short(1, 3, &[1, 4]) };
        let mut targets = [on(2), on(3), on(5)];
        targets[1].free_bytes = 1000 << 30;
        let chosen = assign(&[leaves], &mut targets, &places, WIDE)[0].1.server;
        assert_eq!(chosen, ServerId(5), "the zone of the one that leaves is free again");
    }

    #[test]
    fn who_flaps_is_given_what_no_other_can_take() {
        let flaps = Target { is_last: true, free_bytes: 1000 << 30, ..target(3) };
        let chosen = |holders: &[u32], limits| {
            let mut targets = [target(1), target(2), flaps.clone()];
            targets[1].incoming = 1;
            let assigned = assign(&[short(1, 2, holders)], &mut targets, &BTreeMap::new(), limits);
            assigned.first().map(|(_, member)| member.server.0)
        };
        assert_eq!(chosen(&[1], WIDE), Some(2));
        assert_eq!(chosen(&[1], Limits { per_target: 1, in_all: 9 }), None, "2 is only busy");
        assert_eq!(chosen(&[1, 2], WIDE), Some(3));
    }

    #[test]
    fn the_reserve_is_for_last_copies() {
        let full = || [Target { free_bytes: 15 << 30, ..target(2) }];
        let assign = |short: Short, mut targets: [Target; 1]| {
            assign(&[short], &mut targets, &BTreeMap::new(), WIDE).len()
        };
        assert_eq!(assign(short(1, 2, &[1]), full()), 0);
        assert_eq!(assign(short(1, 1, &[1]), full()), 1);
        let too_full = [Target { free_bytes: 1, ..target(2) }];
        assert_eq!(assign(short(1, 1, &[1]), too_full), 0);
        assert_eq!(
            hold_for_room(1 << 30, &full()),
            Some(Hold::Full { needed_bytes: 1 << 30, room_bytes: 0 })
        );
        assert_eq!(hold_for_room(600 << 30, &[target(2)]), None);
    }

    #[test]
    fn many_at_once_are_waited_for_and_one_is_not() {
        let at = |n: u32, zone: &str, silent_s: Option<u64>| Watched {
            server: ServerId(n),
            place: Place { zone: zone.to_owned(), host: String::new() },
            silent_since: silent_s.map(|s| Timestamp(s * 1_000_000_000)),
        };
        let held = |list: &[(&str, Option<u64>)]| {
            let servers: Vec<Watched> =
                (1..).zip(list).map(|(n, (zone, silent))| at(n, zone, *silent)).collect();
            hold_for_silence(&servers).map(|hold| hold.to_string())
        };
        assert_eq!(held(&[("", Some(5)), ("", None), ("", None)]), None);
        assert_eq!(
            held(&[("", Some(5)), ("", Some(64)), ("", None), ("", None)]).unwrap(),
            "2 of 4 servers fell silent together (cs-1, cs-2)"
        );
        assert_eq!(held(&[("", Some(5)), ("", Some(66)), ("", None), ("", None)]), None);
        let seven = [Some(5), Some(6), None, None, None, None, None].map(|silent| ("", silent));
        assert_eq!(held(&seven), None, "2 of 7 are 28 %");
        let mut zoned = seven.map(|(_, silent)| ("b", silent));
        assert_eq!(held(&zoned), None);
        (zoned[0].0, zoned[1].0) = ("a", "a");
        assert_eq!(held(&zoned).unwrap(), "all servers of zone a fell silent (cs-1, cs-2)");
        zoned[1].0 = "b";
        assert_eq!(held(&zoned), None, "a zone of one server is one server");
    }
}
