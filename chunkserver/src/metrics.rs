//! Everything this process counts.

use dfs_service::metrics::{Described, Named, Registrar};
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

/// Why requests are refused, as `data` names it.
pub const REFUSALS: &[&str] = &[
    "no_replica",
    "stale_version",
    "not_current",
    "not_primary",
    "member_failed",
    "bad_block",
    "no_space",
    "outcome_unknown",
    "chunk_full",
    "gap",
    "fenced",
    "busy",
    "bad_request",
    "stale_epoch",
    "disk",
];

/// Kinds of calls, as `data` names them.
pub const CALLS: &[&str] = &[
    "hello",
    "read",
    "stat",
    "mutate",
    "sync",
    "replicate",
    "sync_member",
    "all_stable",
    "fetch_sums",
    "fetch_block",
    "committed",
    "space",
    "repair",
    "read_sums",
    "local_door",
    "search",
];

#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub described: Vec<Described>,
    pub request_seconds: Named<Histogram>,
    pub refusals: IntCounterVec,
    pub read_bytes: IntCounter,
    pub local_read_bytes: IntCounter,
    pub searched_bytes: IntCounter,
    pub reply_bytes: IntCounter,
    pub written_bytes: IntCounter,
    pub led_bytes: IntCounter,
    pub replicated: IntCounter,
    pub repeated: IntCounter,
    pub syncs: IntCounter,
    pub fsync_seconds: Histogram,
    pub member_failures: IntCounter,
    pub bad_blocks: IntCounter,
    pub repaired_blocks: IntCounter,
    pub scrubbed_bytes: IntCounter,
    pub scrubbed_since: Gauge,
    pub scrub_pauses: IntCounter,
    pub adopted: IntCounter,
    pub copied_bytes: IntCounter,
    pub bad_connections: IntCounter,
    pub leaders: IntGauge,
    pub connections: IntGauge,
    pub fenced: IntGauge,
    pub lease_left: Gauge,
    pub heartbeats: IntCounter,
    pub heartbeat_seconds: Histogram,
    pub chunks: IntGauge,
    pub used_bytes: IntGauge,
    pub free_bytes: IntGauge,
    pub total_bytes: IntGauge,
    pub journal_bytes: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut made = Registrar::new();
        let metrics = Self {
            request_seconds: made.seconds_of(
                "dfs_chunkserver_request_seconds",
                "Time to answer a request of a client or another server, from the frame read to the answer made, by kind of call; counts when answered",
                "call",
                CALLS,
            ),
            refusals: made.counters(
                "dfs_chunkserver_refusals_total",
                "Requests answered with a refusal, by reason",
                &["reason"],
            ),
            read_bytes: made.counter(
                "dfs_chunkserver_read_bytes_total",
                "Bytes sent to clients that read; counts when they are read from the disk",
            ),
            local_read_bytes: made.counter(
                "dfs_chunkserver_local_read_bytes_total",
                "Bytes that clients on this machine were told the checksums of, to read them from the files themselves",
            ),
            searched_bytes: made.counter(
                "dfs_chunkserver_searched_bytes_total",
                "Bytes looked through here for dfs grep, which sends where a word stands and not the bytes; counts when they are looked through",
            ),
            reply_bytes: made.counter(
                "dfs_chunkserver_reply_bytes_total",
                "Bytes of answers to clients and other servers over their connections, headers included; counts when an answer is made",
            ),
            written_bytes: made.counter(
                "dfs_chunkserver_written_bytes_total",
                "Bytes of clients applied here, as primary or as member",
            ),
            led_bytes: made.counter(
                "dfs_chunkserver_led_bytes_total",
                "Bytes of clients applied here as primary: summed over all servers, what clients write",
            ),
            replicated: made.counter(
                "dfs_chunkserver_replicated_operations_total",
                "Operations of other primaries applied here as member",
            ),
            repeated: made.counter(
                "dfs_chunkserver_repeated_mutations_total",
                "Mutations that came again and were answered from memory",
            ),
            syncs: made.counter(
                "dfs_chunkserver_syncs_total",
                "Rounds of syncing a chunk on all its members, begun here as primary",
            ),
            fsync_seconds: made.seconds(
                "dfs_chunkserver_fsync_seconds",
                "Time of each fdatasync of the journal or of a chunk's file",
            ),
            member_failures: made.counter(
                "dfs_chunkserver_member_failures_total",
                "Members found failing while this server led a chunk, once per version of the chunk",
            ),
            bad_blocks: made.counter(
                "dfs_chunkserver_bad_blocks_total",
                "Blocks found with a bad checksum, or not given by the disk",
            ),
            repaired_blocks: made.counter(
                "dfs_chunkserver_repaired_blocks_total",
                "Bad blocks made right again from another replica",
            ),
            scrubbed_bytes: made.counter(
                "dfs_chunkserver_scrubbed_bytes_total",
                "Bytes of replicas read from the disk and compared with their checksums: by the scrub, for dfs scrub and for dfs fsck",
            ),
            scrubbed_since: made.real_gauge(
                "dfs_chunkserver_scrubbed_since_timestamp_seconds",
                "All replicas were read and compared after this time, in seconds since 1970; 0 until the first round of the scrub has ended",
            ),
            scrub_pauses: made.counter(
                "dfs_chunkserver_scrub_pauses_total",
                "Times the scrub stopped because clients felt it, or copies that were made meanwhile",
            ),
            adopted: made.counter(
                "dfs_chunkserver_adoptions_total",
                "New versions of chunks taken up, copied or not; counts when durable",
            ),
            copied_bytes: made.counter(
                "dfs_chunkserver_copied_bytes_total",
                "Bytes fetched from other servers to take up versions of chunks; counts as they come",
            ),
            bad_connections: made.counter(
                "dfs_chunkserver_bad_connections_total",
                "Connections closed because what came was no frame of ours, or because no answer got out",
            ),
            leaders: made
                .gauge("dfs_chunkserver_led_chunks", "Chunks this server is leading now"),
            connections: made.gauge(
                "dfs_chunkserver_connections",
                "Connections of clients and other servers open now",
            ),
            fenced: made.gauge(
                "dfs_chunkserver_fenced_info",
                "1 while this server must not serve: the master has not answered for too long, or refused it",
            ),
            lease_left: made.real_gauge(
                "dfs_chunkserver_lease_seconds",
                "Time for which this server may still serve if the master answers no more",
            ),
            heartbeats: made.counter(
                "dfs_chunkserver_heartbeats_total",
                "Heartbeats that the master answered",
            ),
            heartbeat_seconds: made.seconds(
                "dfs_chunkserver_heartbeat_seconds",
                "Time from sending a heartbeat to the master's answer",
            ),
            chunks: made.gauge("dfs_chunkserver_chunks", "Replicas on this disk"),
            used_bytes: made.gauge("dfs_chunkserver_used_bytes", "Bytes used by replicas"),
            free_bytes: made.gauge(
                "dfs_chunkserver_free_bytes",
                "Bytes that may still be written here: the reserve and what is promised is not counted",
            ),
            total_bytes: made.gauge(
                "dfs_chunkserver_capacity_bytes",
                "Size of the disk, or as much of it as may be used",
            ),
            journal_bytes: made.gauge(
                "dfs_chunkserver_journal_bytes",
                "Size of the journal's files, room made ahead included",
            ),
            registry: Registry::new(),
            described: Vec::new(),
        };
        // From the start: Prometheus takes a series that begins with 1 for no increase.
        for reason in REFUSALS {
            let _at_zero = metrics.refusals.with_label_values(&[*reason]);
        }
        let (registry, described) = made.done();
        Self { registry, described, ..metrics }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_every_kind_are_there_before_the_first() {
        let text = dfs_service::metrics_http::render(&Metrics::new().registry);
        for reason in REFUSALS {
            let line = format!("dfs_chunkserver_refusals_total{{reason=\"{reason}\"}} 0");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
