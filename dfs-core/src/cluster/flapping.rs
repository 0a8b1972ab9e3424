//! Which servers go and come back too often: they get no new chunks until they were stable for a while.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::ServerId;
use crate::time::Timestamp;

/// More returns than these within [`WINDOW_MS`] are flapping.
pub const RETURNS_MAX: usize = 3;
pub const WINDOW_MS: u64 = 600_000;
const PROBATION_MIN_MS: u64 = 60_000;
const PROBATION_MAX_MS: u64 = 1_800_000;
/// Stable for so long after a probation, the next one is short again.
const FORGIVEN_MS: u64 = 3_600_000;

#[derive(Clone, Default, Debug)]
struct History {
    returns: VecDeque<Timestamp>,
    /// The last probation: when it began and how long it was.
    last: Option<(Timestamp, u64)>,
}

/// Returns of all servers since the master started.
#[derive(Clone, Default, Debug)]
pub struct Flapping {
    servers: BTreeMap<ServerId, History>,
}

impl Flapping {
    /// `server` came back. Answers for how many milliseconds it should be on probation from now on, if at all.
    pub fn on_return(&mut self, now: Timestamp, server: ServerId) -> Option<u64> {
        let history = self.servers.entry(server).or_default();
        history.returns.push_back(now);
        while history.returns.front().is_some_and(|at| WINDOW_MS * 1_000_000 < now.nanos_since(*at))
        {
            history.returns.pop_front();
        }
        if history.returns.len() <= RETURNS_MAX {
            return None;
        }
        // The next three are free again; more than that, and it is longer.
        history.returns.clear();
        let millis = match history.last {
            Some((at, before))
                if now.nanos_since(at) < (before + FORGIVEN_MS).saturating_mul(1_000_000) =>
            {
                (before * 2).min(PROBATION_MAX_MS)
            }
            Some(_) | None => PROBATION_MIN_MS,
        };
        history.last = Some((now, millis));
        Some(millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    #[test]
    fn more_than_three_returns_in_ten_minutes_are_flapping_and_each_time_longer() {
        let mut flapping = Flapping::default();
        let server = ServerId(1);
        let mut on = |seconds| flapping.on_return(at(seconds), server);
        assert_eq!([on(0), on(10), on(20)], [None; 3]);
        assert_eq!(on(30), Some(60_000));
        assert_eq!([on(40), on(50), on(60), on(70)], [None, None, None, Some(120_000)]);
        // An hour of rest forgives.
        assert_eq!([on(9_000), on(9_001), on(9_002), on(9_003)], [None, None, None, Some(60_000)]);
    }

    #[test]
    fn returns_far_apart_and_of_different_servers_are_not() {
        let mut flapping = Flapping::default();
        for n in 0..20 {
            assert_eq!(flapping.on_return(at(n * 250), ServerId(1)), None, "{n}");
        }
        for server in 2..20 {
            assert_eq!(flapping.on_return(at(0), ServerId(server)), None);
        }
    }

    #[test]
    fn a_probation_ends_within_half_an_hour() {
        let mut flapping = Flapping::default();
        let all: Vec<_> =
            (0..80).filter_map(|n| flapping.on_return(at(n * 10), ServerId(1))).collect();
        assert_eq!(all.iter().max(), Some(&1_800_000));
    }
}
