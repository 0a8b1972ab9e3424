//! Whether the master itself was running. Silence that it slept through (stopped, swapped out, a virtual machine moved)
//! says nothing about servers: it is not counted, and those that were alive get a fresh interval.
//!
//! Order: the master says every [`tick_ms`] that it runs, as does whatever it hears → a gap of more than [`asleep_ms`] was
//! its own sleep → silences begin that much later. Between its waking and that word [`Cluster::liveness`] counts up to the
//! last one before.

use super::{Cluster, Liveness, LivenessProfile, ServerRow};
use crate::time::Timestamp;

const TICK_MS_MIN: u64 = 100;
const ASLEEP_MS_MIN: u64 = 250;

/// How often the master says that it runs.
#[must_use]
pub fn tick_ms(profile: &LivenessProfile) -> u64 {
    (profile.interval_ms / 10).max(TICK_MS_MIN)
}

/// A gap that no busy machine makes, and that cannot make a server late: that takes half an interval.
fn asleep_ms(profile: &LivenessProfile) -> u64 {
    (profile.interval_ms / 4).max(ASLEEP_MS_MIN)
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Running {
    /// When it last said so. `None`: nobody does, and all time counts.
    at: Option<Timestamp>,
    /// It last woke then.
    woke_at: Timestamp,
    /// Connections that closed since are not held against anybody until then: servers gave up waiting for an answer, and
    /// come back.
    excused_until: Timestamp,
    /// For how long it ran, sleeps not counted, since it last gave everybody a fresh interval. `None`: it never did.
    ran_nanos: Option<u64>,
}

impl Running {
    /// Whether a connection that closed at `closed_at` says nothing yet.
    pub(super) fn excuses(&self, now: Timestamp, closed_at: Timestamp) -> bool {
        self.woke_at <= closed_at && now < self.excused_until
    }
}

impl Cluster {
    /// The master runs. From the first call on it has to say so every [`tick_ms`]. Returns for how many milliseconds it
    /// did not run, if that was a sleep.
    pub fn on_running(&mut self, now: Timestamp) -> Option<u64> {
        let slept = self.was_running(now);
        self.running.at = Some(now);
        slept
    }

    /// As [`Self::on_running`], if somebody says it.
    pub(super) fn was_running(&mut self, now: Timestamp) -> Option<u64> {
        let before = self.running.at?;
        let gap = now.nanos_since(before);
        self.running.at = Some(before.max(now));
        if gap / 1_000_000 < asleep_ms(&self.profile) {
            self.running.ran_nanos = self.running.ran_nanos.map(|ran| ran.saturating_add(gap));
            return None;
        }
        // One that sleeps again and again must still find out who is dead: then only the sleep itself is not counted.
        let dead_after = self.profile.dead_after_ms.saturating_mul(1_000_000);
        let fresh = self.running.ran_nanos.is_none_or(|ran| dead_after <= ran);
        let alive: Vec<_> = self
            .rows
            .keys()
            .filter(|server| self.liveness(before, **server) == Liveness::Alive)
            .copied()
            .collect();
        for (server, row) in &mut self.rows {
            let later = Timestamp(row.silent_since.0.saturating_add(gap)).min(now);
            row.silent_since = if fresh && alive.contains(server) { now } else { later };
        }
        if fresh {
            self.running.ran_nanos = Some(0);
            self.running.woke_at = now;
            // As long as a heartbeat may take: the old connection's end may be noticed after the new one's first.
            let late = self.profile.interval_ms.saturating_mul(1_500_000);
            self.running.excused_until = Timestamp(now.0.saturating_add(late));
        }
        Some(gap / 1_000_000)
    }

    /// For how long a server is silent, without what the master slept.
    pub(super) fn silence_ms(&self, now: Timestamp, row: &ServerRow) -> u64 {
        let awake = |at: &Timestamp| now.nanos_since(*at) / 1_000_000 < asleep_ms(&self.profile);
        let until = self.running.at.filter(|at| !awake(at)).unwrap_or(now);
        until.nanos_since(row.silent_since) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, beat};
    use super::*;
    use crate::ids::ServerId;

    const ONE: ServerId = ServerId(1);
    const TWO: ServerId = ServerId(2);

    /// Says that the master runs from `from` to `until`.
    fn runs(cluster: &mut Cluster, from: u64, until: u64) {
        let step = usize::try_from(tick_ms(&cluster.profile)).unwrap();
        for ms in (from..=until).step_by(step) {
            assert_eq!(cluster.on_running(at(ms)), None, "{ms}");
        }
    }

    #[test]
    fn a_master_that_slept_finds_nobody_silent_and_gives_everybody_an_interval() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        runs(&mut cluster, 0, 2_000);
        cluster.on_heartbeat(at(600), beat(2, 500));
        cluster.on_heartbeat(at(1_500), beat(1, 500));
        assert_eq!(cluster.liveness(at(2_100), TWO), Liveness::Suspect);
        // Before anybody says that it slept, too.
        for ms in [9_000, 60_000] {
            assert_eq!(cluster.liveness(at(ms), ONE), Liveness::Alive, "{ms}");
            assert_eq!(cluster.liveness(at(ms), TWO), Liveness::Alive, "{ms}, as it was then");
        }
        assert_eq!(cluster.on_running(at(60_000)), Some(58_000));
        assert_eq!(cluster.liveness(at(60_000), ONE), Liveness::Alive);
        runs(&mut cluster, 60_100, 61_400);
        assert_eq!(cluster.liveness(at(61_400), ONE), Liveness::Alive);
        assert_eq!(cluster.cause(at(61_400), ONE), "heard of");
        runs(&mut cluster, 61_500, 63_000);
        assert_eq!(cluster.liveness(at(61_500), ONE), Liveness::Suspect);
        assert_eq!(cluster.liveness(at(63_001), ONE), Liveness::Dead);
    }

    #[test]
    fn a_server_that_was_dead_before_a_sleep_is_dead_after_it_and_a_suspect_one_no_better() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        cluster.on_heartbeat(at(0), beat(1, 500));
        cluster.on_heartbeat(at(2_000), beat(2, 500));
        runs(&mut cluster, 0, 3_900);
        assert_eq!(cluster.liveness(at(3_900), ONE), Liveness::Dead);
        assert_eq!(cluster.liveness(at(3_900), TWO), Liveness::Suspect);
        cluster.on_running(at(20_000));
        assert_eq!(cluster.liveness(at(20_000), ONE), Liveness::Dead);
        assert_eq!(cluster.liveness(at(20_000), TWO), Liveness::Suspect);
        assert_eq!(cluster.cause(at(20_000), TWO), "no heartbeat for 1.9 s");
        runs(&mut cluster, 20_100, 21_100);
        assert_eq!(cluster.liveness(at(21_101), TWO), Liveness::Dead);
    }

    #[test]
    fn a_connection_that_closed_over_a_sleep_is_held_against_nobody_for_as_long_as_a_heartbeat_may_take()
     {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        cluster.on_heartbeat(at(900), beat(1, 500));
        cluster.on_heartbeat(at(900), beat(2, 500));
        runs(&mut cluster, 0, 1_000);
        cluster.on_disconnect(at(1_000), TWO, 1);
        // Heard of before the word that the master slept.
        cluster.on_disconnect(at(9_000), ONE, 1);
        assert_eq!(cluster.liveness(at(9_000), ONE), Liveness::Alive);
        assert_eq!(cluster.liveness(at(9_000), TWO), Liveness::Suspect, "it closed before");
        runs(&mut cluster, 9_050, 10_499);
        assert_eq!(cluster.liveness(at(10_499), ONE), Liveness::Alive);
        assert_eq!(cluster.liveness(at(10_500), ONE), Liveness::Suspect, "it did not come back");
        cluster.on_heartbeat(at(10_520), beat(1, 500));
        cluster.on_disconnect(at(10_530), ONE, 1);
        assert_eq!(cluster.liveness(at(10_530), ONE), Liveness::Suspect, "after that as ever");
    }

    #[test]
    fn a_master_that_sleeps_again_and_again_still_finds_out_who_is_dead() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        cluster.on_heartbeat(at(0), beat(1, 500));
        let (mut now, mut ran) = (0, 0);
        while cluster.liveness(at(now), ONE) != Liveness::Dead {
            assert!(ran <= 6_000, "{ran} ms awake");
            runs(&mut cluster, now, now + 200);
            ran += 200;
            now += 1_200;
            cluster.on_running(at(now));
        }
        assert!(3_000 <= ran, "{ran} ms awake");
    }

    #[test]
    fn all_time_counts_where_nobody_says_that_the_master_runs() {
        let mut cluster = Cluster::new(LivenessProfile::DRILL);
        cluster.on_heartbeat(at(0), beat(1, 500));
        assert_eq!(cluster.liveness(at(3_001), ONE), Liveness::Dead);
    }
}
