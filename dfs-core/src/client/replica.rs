//! Which replica a read goes to.

use crate::route::turn;

/// What a client knows of one server it may read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaView {
    /// Place of the replica in the layout: the answer names replicas by it.
    pub place: usize,
    /// Smoothed time of a read there in microseconds; 0 if never tried.
    pub latency_us: u64,
    /// Reads of this client in flight there.
    pub in_flight: u64,
    /// A connection to it failed a moment ago.
    pub avoid: bool,
}

/// How much shorter the wait elsewhere must be for a read to leave the replica whose turn its range is.
const HOME_FACTOR: u64 = 8;

/// The order in which to try replicas: those that work before those that just failed, then by expected wait.
///
/// `range` is a number of the range of bytes, the same for every read of it by anybody: ranges are spread over the
/// replicas, and each is in the memory of one server, not of all.
#[must_use]
pub fn read_order(mut views: Vec<ReplicaView>, range: u64) -> Vec<usize> {
    let count = views.len() as u64;
    views.sort_by_key(|view| {
        // Coarse steps: 10 % of difference must not send every read to one server.
        let wait = (view.latency_us / 256 + 1).saturating_mul(view.in_flight + 1);
        // How far behind the one whose turn it is: the turns of `dfs route --strategy modulo`.
        let rotated = turn(view.place as u64 + count - turn(range, count), count);
        let wait = if rotated == 0 { wait } else { wait.saturating_mul(HOME_FACTOR) };
        (view.avoid, wait.next_power_of_two(), rotated)
    });
    views.into_iter().map(|view| view.place).collect()
}

/// Smoothed latency: an eighth of each new sample.
#[must_use]
pub fn smooth(latency_us: u64, sample_us: u64) -> u64 {
    if latency_us == 0 { sample_us.max(1) } else { (latency_us * 7 + sample_us) / 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(place: usize, latency_us: u64, in_flight: u64) -> ReplicaView {
        ReplicaView { place, latency_us, in_flight, avoid: false }
    }

    #[test]
    fn ranges_are_spread_and_each_stays_where_it_is() {
        let views = vec![view(0, 300, 0), view(1, 320, 0), view(2, 310, 0)];
        let firsts: Vec<usize> = (0..3).map(|range| read_order(views.clone(), range)[0]).collect();
        let mut sorted = firsts.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2], "{firsts:?}");
        let home = firsts[1];
        let mut busy = views.clone();
        busy[home].in_flight = 5;
        assert_eq!(read_order(busy.clone(), 1)[0], home);
        busy[home].in_flight = 40;
        assert_ne!(read_order(busy, 1)[0], home);
    }

    #[test]
    fn a_slow_or_busy_replica_comes_later_and_a_failed_one_last() {
        let slow = view(0, 500_000, 0);
        let busy = view(1, 300, 20);
        let idle = view(2, 300, 0);
        assert_eq!(read_order(vec![slow, busy, idle], 0), [2, 1, 0]);
        let failed = ReplicaView { avoid: true, ..idle };
        assert_eq!(read_order(vec![slow, busy, failed], 0), [1, 0, 2]);
    }

    #[test]
    fn one_slow_read_moves_the_latency_by_an_eighth() {
        assert_eq!(smooth(0, 500), 500);
        assert_eq!(smooth(800, 1600), 900);
    }
}
