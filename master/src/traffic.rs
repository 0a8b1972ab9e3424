//! What clients read and write at each server, from the counters in its heartbeats.

use std::collections::BTreeMap;

use dfs_core::ids::ServerId;
use dfs_core::time::Timestamp;
use dfs_proto::control::HeartbeatRequest;

/// Heartbeats closer than this are one: a server with news sends several at once.
const SPAN_MIN_MS: u64 = 500;
/// Without a heartbeat for so long nothing is known.
const SPAN_MAX_MS: u64 = 15_000;

#[derive(Clone, Copy, Default, Debug)]
struct Counted {
    at: Timestamp,
    incarnation: u64,
    read: u64,
    written: u64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Row {
    last: Counted,
    /// Bytes per second, read and written, in the span that ended with `last`.
    rates: (u64, u64),
}

/// Rates since the master started.
#[derive(Clone, Default, Debug)]
pub struct Traffic {
    servers: BTreeMap<ServerId, Row>,
}

impl Traffic {
    pub(crate) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        server: ServerId,
        beat: &HeartbeatRequest,
    ) {
        let counted = Counted {
            at: now,
            incarnation: beat.incarnation,
            read: beat.client_read_bytes,
            written: beat.client_written_bytes,
        };
        let Some(row) = self.servers.get_mut(&server) else {
            self.servers.insert(server, Row { last: counted, rates: (0, 0) });
            return;
        };
        let millis = now.nanos_since(row.last.at) / 1_000_000;
        if row.last.incarnation != counted.incarnation {
            *row = Row { last: counted, rates: (0, 0) };
        } else if SPAN_MIN_MS <= millis {
            let rate = |from: u64, to: u64| {
                u64::try_from(u128::from(to.saturating_sub(from)) * 1_000 / u128::from(millis))
                    .unwrap_or(u64::MAX)
            };
            row.rates =
                (rate(row.last.read, counted.read), rate(row.last.written, counted.written));
            row.last = counted;
        }
    }

    /// Bytes per second that clients read at `server`, and that they write with it as primary.
    #[must_use]
    pub fn rates(&self, now: Timestamp, server: ServerId) -> (u64, u64) {
        self.servers
            .get(&server)
            .filter(|row| now.nanos_since(row.last.at) / 1_000_000 <= SPAN_MAX_MS)
            .map_or((0, 0), |row| row.rates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CS1: ServerId = ServerId(1);

    fn at(millis: u64) -> Timestamp {
        Timestamp(millis * 1_000_000)
    }

    fn beat(incarnation: u64, read: u64, written: u64) -> HeartbeatRequest {
        HeartbeatRequest {
            incarnation,
            client_read_bytes: read,
            client_written_bytes: written,
            ..HeartbeatRequest::default()
        }
    }

    #[test]
    fn rates_are_between_two_heartbeats_of_one_process_and_end_with_them() {
        let mut traffic = Traffic::default();
        traffic.on_heartbeat(at(1_000), CS1, &beat(1, 500, 0));
        assert_eq!(traffic.rates(at(1_000), CS1), (0, 0));
        traffic.on_heartbeat(at(3_000), CS1, &beat(1, 4_500, 1_000));
        assert_eq!(traffic.rates(at(3_000), CS1), (2_000, 500));
        // News in between: the span goes on.
        traffic.on_heartbeat(at(3_001), CS1, &beat(1, 4_501, 1_000));
        assert_eq!(traffic.rates(at(3_001), CS1), (2_000, 500));
        traffic.on_heartbeat(at(4_000), CS1, &beat(1, 5_500, 1_000));
        assert_eq!(traffic.rates(at(4_000), CS1), (1_000, 0));
        assert_eq!(traffic.rates(at(20_000), CS1), (0, 0));
        traffic.on_heartbeat(at(21_000), CS1, &beat(2, 10, 10));
        assert_eq!(traffic.rates(at(21_000), CS1), (0, 0));
        assert_eq!(traffic.rates(at(21_000), ServerId(2)), (0, 0));
    }
}
