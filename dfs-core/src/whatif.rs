//! What would happen if some servers died, and what is being done for a chunk that lacks a copy.
//!
//! The numbers of a prediction come from [`crate::exposure`]; here is what follows from them in time and words.

use std::collections::BTreeSet;
use std::fmt;

use crate::chunk::{Chunk, Member};
use crate::cluster::{Cluster, Copies, Liveness, LivenessProfile};
use crate::ids::{ChunkId, ServerId};
use crate::plan::rebuild::{Hold, hold_of};
use crate::time::Timestamp;

/// When a death is noticed, and when copies begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Until a server that hangs is avoided; one that was killed is at once, by its closed connection.
    pub hang_noticed_ms: u64,
    pub dead_ms: u64,
    /// From its last heartbeat to the first copy of a chunk that has more than one left; others do not wait.
    pub copies_begin_ms: u64,
}

/// What `profile` means for a death.
#[must_use]
pub fn times(profile: LivenessProfile) -> Times {
    let LivenessProfile { interval_ms, dead_after_ms, rebuild_delay_ms } = profile;
    Times {
        hang_noticed_ms: interval_ms + interval_ms / 2,
        dead_ms: dead_after_ms,
        copies_begin_ms: dead_after_ms.saturating_add(rebuild_delay_ms),
    }
}

/// What one member of a chunk has of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    Current,
    /// An older version.
    Stale,
    /// It rebooted and may lack what was not synced.
    NotCurrent,
    /// Blocks with a bad checksum.
    Damaged,
    /// It told all it has, and this is not among it.
    Missing,
    /// It has not told what it has.
    Unreported,
    /// Another disk came in the place of the one that held it.
    OtherDisk,
    /// Nothing was written yet.
    Unwritten,
}

impl Held {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Stale => "stale",
            Self::NotCurrent => "not-current",
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::Unreported => "unreported",
            Self::OtherDisk => "other-disk",
            Self::Unwritten => "unwritten",
        }
    }
}

/// What `member` has of `chunk`, as far as it told.
#[must_use]
pub fn held(
    cluster: &Cluster,
    chunk: ChunkId,
    record: &Chunk,
    member: &Member,
    unreported: bool,
) -> Held {
    let Some(row) = cluster.row(member.server) else { return Held::Unreported };
    if row.disk != member.disk {
        return Held::OtherDisk;
    }
    match row.replicas.get(&chunk) {
        None if !record.born => Held::Unwritten,
        None if unreported || !row.inventory_complete => Held::Unreported,
        None => Held::Missing,
        // It promised to take up a configuration, and has nothing.
        Some(replica) if replica.version.0 == 0 => Held::Missing,
        Some(replica) if replica.not_current => Held::NotCurrent,
        Some(replica) if replica.version != record.active.version => Held::Stale,
        Some(_) if row.damaged.contains_key(&chunk) => Held::Damaged,
        Some(_) => Held::Current,
    }
}

/// What is being done about a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doing {
    /// It has all its copies.
    Nothing,
    /// A configuration is being prepared, with a new member if one is named.
    Changing { learner: Option<ServerId> },
    /// No copy is on a live server: nothing can be copied before one of these comes back.
    WaitsForReturn { servers: Vec<ServerId> },
    /// These are silent, and not yet for long enough to be given up.
    WaitsForDeath { servers: Vec<ServerId>, left_ms: u64 },
    /// Too few are members, and a copy elsewhere waits for the rebuild delay.
    WaitsForDelay { left_ms: u64 },
    /// No live server could take a copy.
    NoTarget { needed: usize, alive: usize },
    /// Too much is gone at once.
    Held(Hold),
    /// No live server has it, and none that is away is known to.
    Lost,
    /// The same block is bad on all servers that have it, and none that is away is known to have it.
    DamagedEverywhere,
    /// A copy is made when it is its turn.
    Due,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Nothing => f.write_str("nothing needs to be done"),
            Self::Changing { learner: Some(learner) } => {
                write!(f, "{learner} is taking up a copy now")
            }
            Self::Changing { learner: None } => {
                f.write_str("its configuration is being changed now")
            }
            Self::WaitsForReturn { servers } => {
                write!(f, "no copy is on a live server: waiting for {} to come back", list(servers))
            }
            Self::WaitsForDeath { servers, left_ms } => write!(
                f,
                "{} may come back: given up and copied elsewhere in {} s at the earliest",
                list(servers),
                left_ms.div_ceil(1000)
            ),
            Self::WaitsForDelay { left_ms } => {
                write!(
                    f,
                    "copied to another server in {} s at the earliest",
                    left_ms.div_ceil(1000)
                )
            }
            Self::NoTarget { needed, alive } => write!(
                f,
                "no server could take another copy: {alive} are alive, {needed} copies on as many servers are wanted"
            ),
            Self::Lost => f.write_str(
                "no disk that is known holds it: bring back a server or a disk that does, or remove the file or write it anew",
            ),
            Self::DamagedEverywhere => f.write_str(
                "a block is bad in all copies, so nobody can mend it; the rest can be read and written: bring back a server with a good copy, or write that part of the file anew (reading it names the block)",
            ),
            Self::Held(hold) => write!(f, "copies wait: {hold}"),
            Self::Due => f.write_str("a copy on another server is made when it is its turn"),
        }
    }
}

/// What is being done about a chunk, of which there are `copies` and which is `exposed_since` then.
#[must_use]
pub fn doing(
    cluster: &Cluster,
    now: Timestamp,
    record: &Chunk,
    copies: Copies,
    replication: usize,
    exposed_since: Option<Timestamp>,
) -> Doing {
    if copies.good == 0 && !copies.may_return {
        return if copies.writable == 0 { Doing::Lost } else { Doing::DamagedEverywhere };
    }
    if let Some(preparing) = &record.preparing {
        return Doing::Changing { learner: preparing.learner.map(|member| member.server) };
    }
    if replication <= copies.good {
        return Doing::Nothing;
    }
    let members = &record.active.members;
    let away = members.iter().filter(|member| !cluster.is_up(now, member));
    let away: Vec<ServerId> = away.map(|member| member.server).collect();
    if copies.good == 0 {
        return Doing::WaitsForReturn { servers: away };
    }
    let alive = |server: &ServerId| cluster.liveness(now, *server) == Liveness::Alive;
    let live: Vec<ServerId> = cluster.rows().keys().copied().filter(alive).collect();
    let holds = |server: &ServerId| {
        let mut here = members.iter().filter(|member| cluster.is_up(now, member));
        here.any(|member| member.server == *server)
    };
    if live.iter().all(holds) {
        return Doing::NoTarget { needed: replication, alive: live.len() };
    }
    if copies.good == 1 {
        return Doing::Due;
    }
    let begin_ms = times(cluster.profile).copies_begin_ms;
    let silent_ms = |server: &ServerId| {
        cluster.row(*server).map_or(u64::MAX, |row| now.nanos_since(row.heard_at) / 1_000_000)
    };
    let left = away.iter().map(|server| begin_ms.saturating_sub(silent_ms(server))).max();
    if let Some(left_ms) = left.filter(|left| 0 < *left) {
        return Doing::WaitsForDeath { servers: away, left_ms };
    }
    let exposed_ms = now.nanos_since(exposed_since.unwrap_or(now)) / 1_000_000;
    let left_ms = cluster.profile.rebuild_delay_ms.saturating_sub(exposed_ms);
    if away.is_empty() && 0 < left_ms {
        return Doing::WaitsForDelay { left_ms };
    }
    match hold_of(cluster, now, &BTreeSet::new()) {
        Some(hold) => Doing::Held(hold),
        None => Doing::Due,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{Preparing, samples};
    use crate::cluster::Damage;
    use crate::exposure::tests::{NOW, cluster};
    use crate::ids::ChunkVersion;

    const CHUNKS: [(u64, &[u32]); 1] = [(1, &[1, 2, 3])];

    /// Seconds after the heartbeats of all; `gone` closed their connections then, and the others went on.
    fn after(seconds: u64, servers: u32, gone: &[u32]) -> (Cluster, Timestamp) {
        let mut cluster = cluster(servers, &CHUNKS);
        let now = Timestamp(NOW.0 + seconds * 1_000_000_000);
        for server in gone {
            cluster.on_disconnect(NOW, ServerId(*server), 1);
        }
        cluster.refresh_for_test(now, |server| !gone.contains(&server.0));
        (cluster, now)
    }

    #[track_caller]
    fn check(seconds: u64, servers: u32, gone: &[u32], expected: &Doing) {
        let (cluster, now) = after(seconds, servers, gone);
        let record = samples::chunk(1, CHUNKS[0].1);
        let copies = cluster.copies(now, ChunkId(1), &record, false);
        assert_eq!(doing(&cluster, now, &record, copies, 3, None), *expected);
    }

    #[test]
    fn what_is_done_follows_from_who_is_away_and_for_how_long() {
        let ids = |ids: &[u32]| ids.iter().map(|n| ServerId(*n)).collect::<Vec<_>>();
        check(1, 5, &[], &Doing::Nothing);
        // Dead after 15 s, copied 60 s later.
        check(10, 5, &[2], &Doing::WaitsForDeath { servers: ids(&[2]), left_ms: 65_000 });
        check(80, 5, &[2], &Doing::Due);
        check(1, 5, &[2, 3], &Doing::Due);
        // Two of five at once are waited for, ten times as long as one.
        let together = Hold::Together { silent: ids(&[2, 4]), servers: 5 };
        check(80, 5, &[2, 4], &Doing::Held(together));
        check(600, 5, &[2, 4], &Doing::Due);
        check(80, 3, &[2], &Doing::NoTarget { needed: 3, alive: 2 });
        check(80, 5, &[1, 2, 3], &Doing::WaitsForReturn { servers: ids(&[1, 2, 3]) });
    }

    #[test]
    fn a_block_that_is_bad_in_all_copies_is_not_called_a_missing_disk_and_stops_no_write() {
        let (mut cluster, now) = after(1, 3, &[]);
        let record = samples::chunk(1, CHUNKS[0].1);
        for server in CHUNKS[0].1 {
            let damage = Damage { blocks: vec![7], whole: false };
            cluster.damage_for_test(ServerId(*server), ChunkId(1), damage);
        }
        let copies = cluster.copies(now, ChunkId(1), &record, false);
        assert_eq!((copies.good, copies.writable, copies.may_return), (0, 3, false));
        assert_eq!(doing(&cluster, now, &record, copies, 3, None), Doing::DamagedEverywhere);
    }

    #[test]
    fn a_chunk_with_too_few_members_waits_for_the_rebuild_delay() {
        let (cluster, now) = after(70, 5, &[]);
        let record = samples::chunk(1, &[1, 2]);
        let copies = cluster.copies(now, ChunkId(1), &record, false);
        let doing = |since| doing(&cluster, now, &record, copies, 3, Some(since));
        let ten_ago = Timestamp(now.0 - 10_000_000_000);
        assert_eq!(doing(ten_ago), Doing::WaitsForDelay { left_ms: 50_000 });
        assert_eq!(doing(NOW), Doing::Due);
    }

    #[test]
    fn a_change_under_way_names_who_takes_up_the_copy() {
        let (cluster, now) = after(80, 5, &[2]);
        let mut record = samples::chunk(1, CHUNKS[0].1);
        record.preparing = Some(Preparing {
            version: ChunkVersion(2),
            members: Vec::new(),
            learner: Some(samples::member(4)),
            after_wait: false,
        });
        let copies = cluster.copies(now, ChunkId(1), &record, false);
        let doing = doing(&cluster, now, &record, copies, 3, None);
        assert_eq!(doing.to_string(), "cs-4 is taking up a copy now");
    }

    #[test]
    fn servers_that_die_together_are_waited_for() {
        let (cluster, now) = after(1, 5, &[]);
        let killed = |ids: &[u32]| ids.iter().map(|n| ServerId(*n)).collect::<BTreeSet<_>>();
        assert_eq!(hold_of(&cluster, now, &killed(&[2])), None);
        let hold = hold_of(&cluster, now, &killed(&[2, 4]));
        assert!(matches!(hold, Some(Hold::Together { servers: 5, .. })), "{hold:?}");
    }

    #[test]
    fn times_are_those_of_the_profile() {
        let standard = times(LivenessProfile::STANDARD);
        assert_eq!((standard.hang_noticed_ms, standard.dead_ms), (7_500, 15_000));
        assert_eq!(standard.copies_begin_ms, 75_000);
        assert_eq!(times(LivenessProfile::DRILL).copies_begin_ms, 3_000);
    }

    #[test]
    fn a_member_is_described_by_what_it_told() {
        let (cluster, _) = after(1, 5, &[]);
        let record = samples::chunk(1, &[1, 2, 4]);
        let of =
            |record: &Chunk, n: u32| held(&cluster, ChunkId(1), record, &samples::member(n), false);
        assert_eq!((of(&record, 1), of(&record, 4)), (Held::Current, Held::Missing));
        assert_eq!(of(&record, 9), Held::Unreported);
        assert_eq!(of(&samples::chunk(2, &[1, 2, 3]), 1), Held::Stale);
    }
}
