//! Choosing a chunk's next configuration (PROTOCOL §5.2, "Replica fails mid-write"; DECISIONS 1).
//!
//! Order of one attempt: [`plan`] names members and learner → `Reconfigure` is committed → all promise →
//! [`choose_source`] from their reports → the others adopt it → `Activate` is committed. Nothing is accepted in the
//! new version before that. A failed attempt starts again with a higher version and the *same* base.

use crate::chunk::{Chunk, Configuration, Member, Preparing};
use crate::ids::{ChunkId, ChunkVersion, ServerId};
use crate::plan::rebuild::mix;

/// What a member says after its durable promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PromiseReport {
    pub member: Member,
    pub promised: ChunkVersion,
    /// Adopted version and sequence: what it holds.
    pub version: ChunkVersion,
    pub seq: u64,
    pub len: u64,
    pub digest: u32,
    /// Rebooted while dirty: it may lack acknowledged, unstable operations.
    pub not_current: bool,
}

/// Why no attempt is made now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Too few members of the last activated configuration can be reached.
    TooFew { reachable: Vec<ServerId>, members: Vec<ServerId>, min_replicas: u32 },
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::TooFew { reachable, members, min_replicas } => write!(
                f,
                "{} of the members {} can be reached ({}), writes need {min_replicas}",
                reachable.len(),
                list(members),
                if reachable.is_empty() { "none".to_owned() } else { list(reachable) }
            ),
        }
    }
}

/// The next attempt's members: those of the last *activated* configuration that `is_up`, plus `learner`.
///
/// # Errors
/// `TooFew` if that would leave fewer than `min_replicas`, or no member of the last configuration at all: the
/// configuration then stays as it is, so that whoever comes back is still a member.
pub fn plan(
    chunk: &Chunk,
    min_replicas: u32,
    learner: Option<Member>,
    is_up: impl Fn(&Member) -> bool,
) -> Result<Preparing, Wait> {
    let members: Vec<Member> =
        chunk.active.members.iter().copied().filter(|member| is_up(member)).collect();
    // A server that came back with another disk is listed with the lost one until this attempt leaves that out.
    let is_new = |learner: &Member| {
        !chunk.active.members.contains(learner)
            && members.iter().all(|m| m.server != learner.server)
    };
    let learner = learner.filter(is_new);
    if members.is_empty() || members.len() + usize::from(learner.is_some()) < min_replicas as usize
    {
        return Err(Wait::TooFew {
            reachable: members.iter().map(|m| m.server).collect(),
            members: chunk.active.members.iter().map(|m| m.server).collect(),
            min_replicas,
        });
    }
    let after_wait = chunk.goes_on_after_wait();
    Ok(Preparing { version: chunk.next_version, members, learner, after_wait })
}

/// The members of the configuration that everybody in `preparing` has taken up. `leaver` gives its place to the learner;
/// without one it stays, unless `replication` others do. It also stays if fewer than `min_replicas` would be left: what it
/// holds is needed then, full or not.
#[must_use]
pub fn members_after(
    preparing: &Preparing,
    leaver: Option<Member>,
    replication: u32,
    min_replicas: u32,
) -> Vec<Member> {
    let everybody = preparing.members.iter().copied().chain(preparing.learner);
    let rest: Vec<Member> = everybody.clone().filter(|member| Some(*member) != leaver).collect();
    let is_replaced = preparing.learner.is_some() || replication as usize <= rest.len();
    let may_leave = is_replaced && min_replicas as usize <= rest.len();
    if may_leave { rest } else { everybody.collect() }
}

/// What the reports allow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Everybody takes up what this member reported.
    Adopt(PromiseReport),
    /// Nobody holds anything: the chunk was never written. Everybody takes up the empty chunk.
    Empty,
    /// Only members that rebooted while dirty answered, and not all of the configuration: wait for another. When the
    /// wait of DECISIONS 1 is over, an attempt that says so may take the best of them.
    OnlyRebooted,
    /// Every member that answered holds less than the last activated version says: they lost their data.
    DataLost,
}

/// Chooses the source among `reports` of `preparing.members`: the highest (adopted version, sequence), what most of those
/// hold if they differ, one by lot among equals, so that copies come from all servers.
///
/// A member whose adopted version is below the last activated one has lost data and is never a source; version 1
/// needs no adoption, so a chunk at version 1 that no member holds is an empty one.
#[must_use]
pub fn choose_source(chunk: &Chunk, preparing: &Preparing, reports: &[PromiseReport]) -> Source {
    let Configuration { version: base, members: last, .. } = &chunk.active;
    let of = ChunkId(chunk.ino.0.rotate_left(32) ^ chunk.index);
    let lot = |report: &PromiseReport| mix(of, report.member.server);
    let voters = reports.iter().filter(|report| preparing.members.contains(&report.member));
    let (whole, lost): (Vec<&PromiseReport>, Vec<&PromiseReport>) =
        voters.partition(|report| *base <= report.version);
    let best = whole.iter().copied().max_by_key(|r| (r.version, r.seq, lot(r)));
    let all_answered =
        last.iter().all(|member| reports.iter().any(|report| report.member == *member));
    match best {
        // Nobody was seen to hold it, and nobody does: what covered it was written elsewhere. As long as it is unborn
        // nothing in it was stable.
        None if base.0 == 1
            && (!chunk.born || (all_answered && !chunk.stored))
            && lost.iter().all(|r| r.version.0 == 0) =>
        {
            Source::Empty
        }
        None => Source::DataLost,
        Some(best) => {
            let current = whole.iter().copied().filter(|r| !r.not_current);
            let content = |r: &PromiseReport| (r.version, r.seq, r.digest, r.len);
            let agree = |one: &PromiseReport| {
                current.clone().filter(|r| content(r) == content(one)).count()
            };
            let sure = current.clone().max_by_key(|r| (r.version, r.seq, agree(r), lot(r)));
            match sure {
                // An operation acknowledged in the last version is on every current member.
                Some(sure) if (best.version, best.seq) <= (sure.version, sure.seq) => {
                    Source::Adopt(*sure)
                }
                Some(_) => Source::Adopt(*best),
                None if all_answered || preparing.after_wait => Source::Adopt(*best),
                None => Source::OnlyRebooted,
            }
        }
    }
}

/// The current member to choose if those in `flawed` cannot give all that others have. What was acknowledged is on
/// every current member; the one with the most beyond that is chosen. `None`: there is no other.
#[must_use]
pub fn choose_source_beside(
    chunk: &Chunk,
    preparing: &Preparing,
    reports: &[PromiseReport],
    flawed: &[Member],
) -> Option<PromiseReport> {
    let usable = |report: &&PromiseReport| !report.not_current && !flawed.contains(&report.member);
    let rest: Vec<PromiseReport> = reports.iter().filter(usable).copied().collect();
    match choose_source(chunk, preparing, &rest) {
        Source::Adopt(source) => Some(source),
        Source::Empty | Source::OnlyRebooted | Source::DataLost => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::samples::{chunk, member};
    use crate::ids::DiskId;

    fn report(n: u32, version: u64, seq: u64) -> PromiseReport {
        PromiseReport {
            member: member(n),
            promised: ChunkVersion(9),
            version: ChunkVersion(version),
            seq,
            len: seq,
            digest: 0,
            not_current: false,
        }
    }

    fn rebooted(n: u32, version: u64, seq: u64) -> PromiseReport {
        PromiseReport { not_current: true, ..report(n, version, seq) }
    }

    #[track_caller]
    fn check_source(chunk: &Chunk, reports: &[PromiseReport], expected: &Source) {
        let preparing = Preparing {
            version: chunk.next_version,
            members: reports
                .iter()
                .map(|r| r.member)
                .filter(|m| chunk.active.members.contains(m))
                .collect(),
            learner: None,
            after_wait: chunk.goes_on_after_wait(),
        };
        assert_eq!(choose_source(chunk, &preparing, reports), *expected);
    }

    #[test]
    fn the_longest_log_of_the_last_version_is_the_source() {
        check_source(
            &chunk(4, &[1, 2, 3]),
            &[report(2, 4, 7), report(3, 4, 9)],
            &Source::Adopt(report(3, 4, 9)),
        );
        // An abandoned attempt that was adopted by some is above the base and wins.
        check_source(
            &chunk(4, &[1, 2, 3]),
            &[report(2, 5, 0), report(3, 4, 9)],
            &Source::Adopt(report(2, 5, 0)),
        );
    }

    #[test]
    fn a_member_below_the_last_activated_version_is_never_a_source() {
        check_source(
            &chunk(4, &[1, 2]),
            &[report(1, 3, 99), report(2, 4, 1)],
            &Source::Adopt(report(2, 4, 1)),
        );
        check_source(&chunk(4, &[1, 2]), &[report(1, 3, 99), report(2, 0, 0)], &Source::DataLost);
    }

    #[test]
    fn what_most_hold_is_the_source_where_equals_differ() {
        for odd in 1..=3 {
            let with = |n| PromiseReport { digest: u32::from(n == odd), ..report(n, 4, 7) };
            let of = chunk(4, &[1, 2, 3]);
            let reports = [with(1), with(2), with(3)];
            let preparing = Preparing {
                version: of.next_version,
                members: of.active.members.clone(),
                learner: None,
                after_wait: false,
            };
            let Source::Adopt(source) = choose_source(&of, &preparing, &reports) else { panic!() };
            assert_eq!(source.digest, 0, "{odd} is the odd one");
            // A longer log decides, however many are behind.
            let longer = PromiseReport { seq: 8, ..with(odd) };
            let reports = reports.map(|r| if r.member == longer.member { longer } else { r });
            assert_eq!(choose_source(&of, &preparing, &reports), Source::Adopt(longer));
        }
    }

    #[test]
    fn beside_a_flawed_source_any_current_member_will_do() {
        let of = chunk(4, &[1, 2, 3, 5]);
        let preparing = Preparing {
            version: of.next_version,
            members: of.active.members.clone(),
            learner: None,
            after_wait: false,
        };
        let reports = [report(1, 4, 9), report(2, 4, 7), rebooted(3, 4, 8), report(5, 3, 99)];
        let beside = |flawed: &[u32]| {
            let flawed: Vec<Member> = flawed.iter().copied().map(member).collect();
            choose_source_beside(&of, &preparing, &reports, &flawed)
        };
        assert_eq!([beside(&[]), beside(&[2])], [Some(reports[0]); 2]);
        assert_eq!(beside(&[1]), Some(reports[1]));
        assert_eq!(beside(&[1, 2]), None, "one rebooted, the other lost what it had");
    }

    #[test]
    fn a_leaver_goes_only_if_enough_are_left_without_it() {
        let after = |members: &[u32], learner: Option<u32>, leaver: u32| {
            let preparing = Preparing {
                version: ChunkVersion(5),
                members: members.iter().copied().map(member).collect(),
                learner: learner.map(member),
                after_wait: false,
            };
            let left = members_after(&preparing, Some(member(leaver)), 3, 2);
            left.iter().map(|member| member.server.0).collect::<Vec<_>>()
        };
        let ids = |numbers: &[u32]| numbers.iter().map(|n| member(*n).server.0).collect::<Vec<_>>();
        assert_eq!(after(&[1, 2, 3], Some(4), 1), ids(&[2, 3, 4]));
        assert_eq!(after(&[1, 2], Some(4), 2), ids(&[1, 4]));
        assert_eq!(after(&[1, 2, 3], None, 1), ids(&[1, 2, 3]), "nobody takes its place");
        assert_eq!(after(&[1, 2, 3, 4], None, 1), ids(&[2, 3, 4]), "it is one too many");
        // The other member could not take up the version: one copy would be all.
        assert_eq!(after(&[1], Some(4), 1), ids(&[1, 4]));
    }

    #[test]
    fn a_learner_is_never_a_source() {
        let chunk = chunk(4, &[1, 2]);
        let preparing = Preparing {
            version: ChunkVersion(5),
            members: vec![member(1)],
            learner: Some(member(3)),
            after_wait: false,
        };
        let reports = [report(1, 4, 1), report(3, 4, 50)];
        assert_eq!(choose_source(&chunk, &preparing, &reports), Source::Adopt(report(1, 4, 1)));
    }

    fn after_wait(chunk: &Chunk) -> Preparing {
        let members = chunk.active.members[..2].to_vec();
        Preparing { version: ChunkVersion(5), members, learner: None, after_wait: true }
    }

    #[test]
    fn the_next_attempt_knows_that_one_went_on_after_the_wait() {
        let three = chunk(4, &[1, 2, 3]);
        assert!(!plan(&three, 2, None, |_| true).unwrap().after_wait);
        let waited = Chunk {
            preparing: Some(after_wait(&three)),
            next_version: ChunkVersion(6),
            ..three.clone()
        };
        assert!(plan(&waited, 2, None, |_| true).unwrap().after_wait);
        let before = Preparing { after_wait: false, ..after_wait(&three) };
        assert!(
            !plan(&Chunk { preparing: Some(before), ..three }, 2, None, |_| true)
                .unwrap()
                .after_wait
        );
    }

    #[test]
    fn only_rebooted_members_wait_unless_all_answered() {
        let three = chunk(4, &[1, 2, 3]);
        check_source(&three, &[rebooted(1, 4, 5), rebooted(2, 4, 6)], &Source::OnlyRebooted);
        let waited = Chunk { preparing: Some(after_wait(&three)), ..three.clone() };
        check_source(
            &waited,
            &[rebooted(1, 4, 5), rebooted(2, 4, 6)],
            &Source::Adopt(rebooted(2, 4, 6)),
        );
        check_source(
            &three,
            &[rebooted(1, 4, 5), rebooted(2, 4, 6), rebooted(3, 4, 2)],
            &Source::Adopt(rebooted(2, 4, 6)),
        );
        check_source(
            &three,
            &[rebooted(1, 4, 5), report(2, 4, 6)],
            &Source::Adopt(report(2, 4, 6)),
        );
    }

    #[test]
    fn a_chunk_nobody_wrote_is_empty_not_lost() {
        let unborn = Chunk { born: false, ..chunk(1, &[1, 2, 3]) };
        check_source(&unborn, &[report(1, 0, 0), report(2, 0, 0)], &Source::Empty);
        let born = chunk(1, &[1, 2, 3]);
        check_source(&born, &[report(1, 0, 0), report(2, 0, 0)], &Source::DataLost);
        check_source(&born, &[report(1, 0, 0), report(2, 1, 4)], &Source::Adopt(report(2, 1, 4)));
        let nobody = [report(1, 0, 0), report(2, 0, 0), report(3, 0, 0)];
        check_source(&born, &nobody, &Source::Empty);
        check_source(&Chunk { stored: true, ..born }, &nobody, &Source::DataLost);
    }

    #[test]
    fn a_configuration_never_goes_below_min_replicas() {
        let three = chunk(4, &[1, 2, 3]);
        let two = plan(&three, 2, None, |m| m.server.0 != 1).unwrap();
        assert_eq!(two.members, [member(2), member(3)]);
        assert!(plan(&three, 2, None, |m| m.server.0 == 3).is_err());
        let with_learner = plan(&three, 2, Some(member(4)), |m| m.server.0 == 3).unwrap();
        assert_eq!(
            (with_learner.members, with_learner.learner),
            (vec![member(3)], Some(member(4)))
        );
        assert!(
            plan(&three, 1, Some(member(4)), |_| false).is_err(),
            "a learner alone is no configuration"
        );
    }

    #[test]
    fn a_new_disk_takes_the_place_of_the_lost_one_under_its_server() {
        let three = chunk(4, &[1, 2, 3]);
        let new = Member { disk: DiskId(77), ..member(2) };
        let next = plan(&three, 2, Some(new), |m| m.server.0 != 2).unwrap();
        assert_eq!((next.members, next.learner), (vec![member(1), member(3)], Some(new)));
        // Two copies on one server, or of one that is only late, are none more.
        assert_eq!(plan(&three, 2, Some(new), |_| true).unwrap().learner, None);
        assert_eq!(plan(&three, 2, Some(member(2)), |m| m.server.0 != 2).unwrap().learner, None);
    }
}
