//! How safe the data is: chunks by the copies they have, since when the oldest lacks one, how much there is to copy,
//! and what would become of it all if some servers died.
//!
//! A *survey* is one look at every chunk. Its result is what `dfs status`, the metrics and `dfs whatif` say: one way of
//! counting, so that a prediction and what then happens can be compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::chunk::Chunk;
use crate::cluster::{Cluster, Copies, Liveness};
use crate::ids::{ChunkId, ServerId};
use crate::time::Timestamp;

/// What the loss of one more server would mean for a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Safety {
    /// As many current copies on live servers as asked for.
    Safe,
    /// Fewer, at least two.
    Degraded,
    /// One.
    Endangered,
    /// None on a live server; a member that is away may bring one back.
    Unavailable,
    /// No disk is known to hold it.
    Lost,
}

impl Safety {
    pub const ALL: [Self; 5] =
        [Self::Safe, Self::Degraded, Self::Endangered, Self::Unavailable, Self::Lost];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Degraded => "degraded",
            Self::Endangered => "endangered",
            Self::Unavailable => "unavailable",
            Self::Lost => "lost",
        }
    }
}

impl Copies {
    #[must_use]
    pub fn safety(self, replication: usize) -> Safety {
        match self.good {
            good if replication <= good => Safety::Safe,
            0 if self.may_return => Safety::Unavailable,
            0 => Safety::Lost,
            1 => Safety::Endangered,
            _ => Safety::Degraded,
        }
    }
}

/// Chunks by safety.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    pub total: u64,
    pub safe: u64,
    pub degraded: u64,
    pub endangered: u64,
    pub unavailable: u64,
    pub lost: u64,
}

impl Totals {
    pub fn add(&mut self, safety: Safety) {
        self.total += 1;
        *match safety {
            Safety::Safe => &mut self.safe,
            Safety::Degraded => &mut self.degraded,
            Safety::Endangered => &mut self.endangered,
            Safety::Unavailable => &mut self.unavailable,
            Safety::Lost => &mut self.lost,
        } += 1;
    }

    #[must_use]
    pub fn of(&self, safety: Safety) -> u64 {
        match safety {
            Safety::Safe => self.safe,
            Safety::Degraded => self.degraded,
            Safety::Endangered => self.endangered,
            Safety::Unavailable => self.unavailable,
            Safety::Lost => self.lost,
        }
    }
}

/// What of a chunk a survey counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Looked {
    pub copies: Copies,
    pub safety: Safety,
    /// Of the longest current replica anybody told of.
    pub len: u64,
}

/// How chunks are looked at.
#[derive(Clone, Debug)]
pub struct Lens<'a> {
    pub now: Timestamp,
    pub replication: usize,
    /// As if these had died now.
    pub without: &'a BTreeSet<ServerId>,
}

impl Lens<'_> {
    /// `unreported`: see [`Cluster::copies`].
    #[must_use]
    pub fn look(
        &self,
        cluster: &Cluster,
        chunk: ChunkId,
        record: &Chunk,
        unreported: bool,
    ) -> Looked {
        let copies = cluster.copies_without(self.now, chunk, record, unreported, self.without);
        let lens = record.active.members.iter().filter_map(|member| {
            let row = cluster.row(member.server).filter(|row| row.disk == member.disk)?;
            row.replicas.get(&chunk).map(|replica| replica.len)
        });
        let len = lens.max().unwrap_or(0);
        Looked { copies, safety: copies.safety(self.replication), len }
    }
}

/// What `look` sees of a chunk whose `record` was read before: something bad counts only if the record is the same after
/// the look. A chunk that was deleted or given other members meanwhile would seem to have lost what it had. `None`: the
/// chunk is gone.
pub fn settled<T>(
    record: &Chunk,
    mut read: impl FnMut() -> Option<Chunk>,
    mut look: impl FnMut(&Chunk) -> T,
    is_bad: impl Fn(&T) -> bool,
) -> Option<T> {
    let mut looked = look(record);
    let mut seen = record.clone();
    while is_bad(&looked) {
        let now = read()?;
        if now == seen {
            break;
        }
        looked = look(&now);
        seen = now;
    }
    Some(looked)
}

/// One look at every chunk.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Survey {
    pub totals: Totals,
    /// To be copied if no server that is away comes back. Nothing can be copied of chunks without a copy.
    pub backlog_bytes: u64,
    /// Chunks with fewer copies that take writes than a write needs.
    pub unwritable: u64,
    exposed: BTreeSet<ChunkId>,
}

impl Survey {
    pub fn add(&mut self, chunk: ChunkId, looked: Looked, replication: usize, min_replicas: usize) {
        let Looked { copies, safety, len } = looked;
        self.totals.add(safety);
        self.unwritable += u64::from(copies.writable < min_replicas);
        if safety == Safety::Safe {
            return;
        }
        self.exposed.insert(chunk);
        if 0 < copies.good {
            let missing = replication.saturating_sub(copies.good) as u64;
            self.backlog_bytes = self.backlog_bytes.saturating_add(missing.saturating_mul(len));
        }
    }
}

/// Since when chunks are exposed, and how fast copies are made. In memory only: a new master counts from its start.
#[derive(Clone, Default, Debug)]
pub struct Exposure {
    since: BTreeMap<ChunkId, Timestamp>,
    /// When, and how many bytes had been copied until then.
    copied: VecDeque<(Timestamp, u64)>,
    /// The last rate that was one.
    last_rate: Option<u64>,
}

/// The copy rate is that of the last so many nanoseconds.
const RATE_NANOS: u64 = 10_000_000_000;
const SAMPLES_MAX: usize = 64;

impl Exposure {
    /// Keeps what `survey` saw; `copied_bytes`: all that was ever copied, as counted until `now`.
    pub fn on_survey(&mut self, now: Timestamp, survey: &Survey, copied_bytes: u64) {
        let before = std::mem::take(&mut self.since);
        let since = |chunk: &ChunkId| before.get(chunk).copied().unwrap_or(now);
        self.since = survey.exposed.iter().map(|chunk| (*chunk, since(chunk))).collect();
        self.copied.push_back((now, copied_bytes));
        // One sample at or beyond the window's edge is kept: the rate is of the whole window.
        while SAMPLES_MAX < self.copied.len()
            || self.copied.get(1).is_some_and(|(at, _)| RATE_NANOS <= now.nanos_since(*at))
        {
            self.copied.pop_front();
        }
        let rate = self.copy_rate();
        if 0 < rate {
            self.last_rate = Some(rate);
        }
    }

    /// Bytes per second when something was last copied; `None`: nothing was since this master started.
    #[must_use]
    pub fn last_copy_rate(&self) -> Option<u64> {
        self.last_rate
    }

    #[must_use]
    pub fn exposed_since(&self, chunk: ChunkId) -> Option<Timestamp> {
        self.since.get(&chunk).copied()
    }

    /// For how long the chunk of `survey` that is exposed for longest has been; `None`: all are safe.
    #[must_use]
    pub fn oldest_ms(&self, now: Timestamp, survey: &Survey) -> Option<u64> {
        let since = |chunk: &ChunkId| self.since.get(chunk).copied().unwrap_or(now);
        survey.exposed.iter().map(|chunk| now.nanos_since(since(chunk)) / 1_000_000).max()
    }

    /// Bytes per second copied lately.
    #[must_use]
    pub fn copy_rate(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.copied.front(), self.copied.back())
        else {
            return 0;
        };
        let millis = to.nanos_since(*from) / 1_000_000;
        after.saturating_sub(*before).saturating_mul(1000).checked_div(millis).unwrap_or(0)
    }
}

/// Time until `backlog_bytes` are copied at `rate`; `None` while nothing is being copied.
#[must_use]
pub fn eta_ms(backlog_bytes: u64, rate: u64) -> Option<u64> {
    match backlog_bytes {
        0 => Some(0),
        _ => backlog_bytes.saturating_mul(1000).checked_div(rate),
    }
}

/// Whether a chunk that does not exist yet would find enough servers without `without`.
#[must_use]
pub fn takes_new_chunks(cluster: &Cluster, lens: &Lens<'_>, min_replicas: usize) -> bool {
    let takes = cluster.rows().iter().filter(|(server, row)| {
        !lens.without.contains(server)
            && 0 < row.free_bytes
            && cluster.liveness(lens.now, **server) == Liveness::Alive
    });
    min_replicas <= takes.count()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chunk::samples;
    use crate::cluster::{Heartbeat, LivenessProfile, Replica};
    use crate::ids::{ChunkVersion, DiskId};
    use crate::plan::rebuild::Place;

    pub(crate) const NOW: Timestamp = Timestamp(1_000_000_000);

    /// Servers 1 to `servers`, each holding the chunks whose members it is of.
    pub(crate) fn cluster(servers: u32, chunks: &[(u64, &[u32])]) -> Cluster {
        let mut cluster = Cluster::new(LivenessProfile::STANDARD);
        for server in 1..=servers {
            let replica = Replica {
                version: ChunkVersion(1),
                seq: 1,
                len: 1000,
                not_current: false,
                digest: 0,
            };
            let held = chunks.iter().filter(|(_, members)| members.contains(&server));
            cluster.on_heartbeat(
                NOW,
                Heartbeat {
                    server: ServerId(server),
                    disk: DiskId(u128::from(server)),
                    incarnation: 1,
                    address: String::new(),
                    full_inventory: true,
                    inventory_more: false,
                    replicas: held.map(|(chunk, _)| (ChunkId(*chunk), replica)).collect(),
                    damaged: Vec::new(),
                    gone: Vec::new(),
                    inventory_digest: None,
                    chunk_count: 0,
                    used_bytes: 0,
                    free_bytes: 1 << 30,
                    total_bytes: 1 << 30,
                    device: 0,
                    place: Place::default(),
                },
            );
        }
        cluster
    }

    fn survey(cluster: &Cluster, chunks: &[(u64, &[u32])], without: &[u32]) -> Survey {
        let without: BTreeSet<ServerId> = without.iter().map(|n| ServerId(*n)).collect();
        let lens = Lens { now: NOW, replication: 3, without: &without };
        let mut survey = Survey::default();
        for (chunk, members) in chunks {
            let record = samples::chunk(1, members);
            let looked = lens.look(cluster, ChunkId(*chunk), &record, false);
            survey.add(ChunkId(*chunk), looked, 3, 2);
        }
        survey
    }

    const CHUNKS: [(u64, &[u32]); 4] =
        [(1, &[1, 2, 3]), (2, &[2, 3, 4]), (3, &[3, 4, 5]), (4, &[1, 2])];

    #[test]
    fn a_chunk_that_went_or_changed_while_it_was_looked_at_is_not_lost() {
        let cluster = cluster(5, &[(1, &[2, 3, 4])]);
        let nobody = BTreeSet::new();
        let lens = Lens { now: NOW, replication: 3, without: &nobody };
        let old = samples::chunk(1, &[1, 5]);
        let look = |record: &Chunk| lens.look(&cluster, ChunkId(1), record, false).safety;
        let settled = |now: Option<Chunk>| {
            settled(&old, || now.clone(), look, |safety| *safety != Safety::Safe)
        };
        assert_eq!(settled(None), None, "it was deleted");
        assert_eq!(settled(Some(samples::chunk(1, &[2, 3, 4]))), Some(Safety::Safe));
        assert_eq!(settled(Some(samples::chunk(1, &[2, 3]))), Some(Safety::Degraded));
        assert_eq!(settled(Some(old.clone())), Some(Safety::Lost), "that is what it is");
    }

    #[test]
    fn a_prediction_counts_what_each_chunk_has_left() {
        let cluster = cluster(5, &CHUNKS);
        let totals = |without: &[u32]| survey(&cluster, &CHUNKS, without).totals;
        let now = Totals { total: 4, safe: 3, degraded: 1, ..Totals::default() };
        assert_eq!(totals(&[]), now);
        let one = Totals { total: 4, safe: 1, degraded: 2, endangered: 1, ..Totals::default() };
        assert_eq!(totals(&[2]), one);
        let two = Totals { total: 4, degraded: 1, endangered: 2, unavailable: 1, safe: 0, lost: 0 };
        assert_eq!(
            totals(&[1, 2, 3]),
            Totals { degraded: 1, endangered: 1, unavailable: 2, ..two }
        );
        let all = totals(&[1, 2, 3, 4, 5]);
        assert_eq!(all, Totals { total: 4, unavailable: 4, ..Totals::default() });
    }

    #[test]
    fn a_prediction_is_what_the_cluster_says_when_it_has_happened() {
        for without in [&[1][..], &[2, 3], &[1, 2, 3], &[5]] {
            let mut cluster = cluster(5, &CHUNKS);
            let predicted = survey(&cluster, &CHUNKS, without);
            for server in without {
                cluster.on_disconnect(NOW, ServerId(*server), 1);
            }
            assert_eq!(survey(&cluster, &CHUNKS, &[]), predicted, "{without:?}");
        }
    }

    #[test]
    fn backlog_and_writes_follow_the_copies_that_are_left() {
        let cluster = cluster(5, &CHUNKS);
        let after = survey(&cluster, &CHUNKS, &[2, 3]);
        // 1: two missing, 2: two, 3: one, 4: two.
        assert_eq!((after.backlog_bytes, after.unwritable), (7000, 3));
        let none = survey(&cluster, &CHUNKS, &[1, 2, 3, 4, 5]);
        assert_eq!((none.backlog_bytes, none.unwritable), (0, 4));
        let without: BTreeSet<ServerId> = [1, 2, 3].map(ServerId).into();
        let lens = Lens { now: NOW, replication: 3, without: &without };
        assert!(takes_new_chunks(&cluster, &lens, 2) && !takes_new_chunks(&cluster, &lens, 3));
    }

    #[test]
    fn an_exposure_is_as_old_as_its_first_survey_and_ends_with_safety() {
        let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
        let cluster = cluster(5, &CHUNKS);
        let (safe, short) =
            (survey(&cluster, &CHUNKS[..3], &[]), survey(&cluster, &CHUNKS[..3], &[1]));
        let mut exposure = Exposure::default();
        assert_eq!(exposure.oldest_ms(at(1), &safe), None);
        // Seen by nobody before: exposed from now.
        assert_eq!(exposure.oldest_ms(at(1), &short), Some(0));
        exposure.on_survey(at(2), &short, 0);
        exposure.on_survey(at(4), &short, 0);
        assert_eq!(exposure.oldest_ms(at(5), &short), Some(3000));
        assert_eq!(exposure.exposed_since(ChunkId(1)), Some(at(2)));
        exposure.on_survey(at(6), &safe, 0);
        exposure.on_survey(at(7), &short, 0);
        assert_eq!(exposure.oldest_ms(at(8), &short), Some(1000));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
        let mut exposure = Exposure::default();
        let none = Survey::default();
        assert_eq!(exposure.copy_rate(), 0);
        for second in 0..=20 {
            exposure.on_survey(at(second), &none, 100 * second);
        }
        assert_eq!(exposure.copy_rate(), 100);
        for second in 21..=40 {
            exposure.on_survey(at(second), &none, 2000);
        }
        assert_eq!(exposure.copy_rate(), 0);
        assert!(exposure.last_copy_rate().is_some_and(|rate| (1..=100).contains(&rate)));
        assert!(exposure.copied.len() < 13);
        assert_eq!((eta_ms(0, 0), eta_ms(100, 0), eta_ms(500, 100)), (Some(0), None, Some(5000)));
    }
}
