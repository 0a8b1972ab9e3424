//! The master's metrics.

use dfs_service::metrics::{Described, Named, Registrar};
use prometheus::{
    Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

/// Kinds of calls, as `rpc` names them.
pub const CALLS: &[&str] = &[
    "hello",
    "change",
    "change_names",
    "ping",
    "goodbye",
    "lookup",
    "getattr",
    "readdir",
    "readlink",
    "xattr",
    "statfs",
    "open",
    "release",
    "reopen",
    "layout",
    "truncate",
    "lock",
];

/// Everything this process counts; counters start at zero with it.
#[derive(Clone, Debug)]
pub struct Metrics(std::sync::Arc<Fields>);

impl std::ops::Deref for Metrics {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

#[derive(Debug)]
pub struct Fields {
    pub registry: Registry,
    pub described: Vec<Described>,
    pub request_seconds: Named<Histogram>,
    pub request_failures: Named<IntCounter>,
    pub bad_frames: IntCounter,
    pub connections: IntGauge,
    pub clients: IntGauge,
    pub reconfigurations: IntCounterVec,
    pub chunks: IntGaugeVec,
    pub damaged: IntGauge,
    pub diverging: IntGauge,
    pub jobs: IntGaugeVec,
    pub oldest_exposure: Gauge,
    pub backlog_bytes: IntGauge,
    pub copied_bytes: IntCounter,
    pub copy_rate: IntGauge,
    pub copy_eta: Gauge,
    pub metadata_copies: IntGauge,
    pub metadata_lag: Gauge,
    pub survey_seconds: Histogram,
    pub servers: IntGaugeVec,
    pub heartbeat_age: GaugeVec,
    pub server_chunks: IntGaugeVec,
    pub used_bytes: IntGauge,
    pub free_bytes: IntGauge,
    pub inodes: IntGauge,
    pub file_bytes: IntGauge,
    pub leader: IntGauge,
    pub warming: IntGauge,
    pub epoch: IntGauge,
    pub log_entries: IntGauge,
    pub log_bytes: IntGauge,
    pub log_sync_seconds: Histogram,
    pub store_bytes: IntGauge,
    pub snapshot_bytes: IntGauge,
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
        let fields = Fields {
            request_seconds: made.seconds_of(
                "dfs_master_request_seconds",
                "Time to answer a client's request, from the frame read to the answer made, by kind of call; counts when answered",
                "call",
                CALLS,
            ),
            request_failures: made.counters_of(
                "dfs_master_request_failures_total",
                "Requests answered with a refusal or an error (a name that does not exist is one), by kind of call",
                "call",
                CALLS,
            ),
            bad_frames: made.counter(
                "dfs_master_bad_frames_total",
                "Connections closed because what came was no frame or no request of ours",
            ),
            connections: made
                .gauge("dfs_master_connections", "Connections of clients open now"),
            clients: made.gauge(
                "dfs_master_clients",
                "Clients heard of since this master started that did not leave",
            ),
            reconfigurations: made.counters(
                "dfs_master_reconfigurations_total",
                "Configuration changes of chunks that ended, by outcome: activated or failed",
                &["outcome"],
            ),
            chunks: made.gauges(
                "dfs_master_chunks",
                "Chunks by safety at the last survey: safe (all copies), degraded (fewer, at least two), endangered (one), unavailable (none on a live server), lost (no disk is known to hold it)",
                &["state"],
            ),
            damaged: made.gauge(
                "dfs_master_damaged_replicas",
                "Replicas that their servers know to be damaged and have not mended yet",
            ),
            diverging: made.gauge(
                "dfs_master_diverging_chunks",
                "Chunks whose members hold different bytes after the same operations, each with its checksums",
            ),
            jobs: made.gauges(
                "dfs_master_jobs",
                "Jobs of the master itself (drains, rebalances, scrubs) that have not ended: running, paused, or stalled because a server does none of its part",
                &["phase"],
            ),
            oldest_exposure: made.real_gauge(
                "dfs_master_oldest_exposure_seconds",
                "For how long the chunk that is not safe for longest has not been safe, as far as this master saw it; 0: all are safe",
            ),
            backlog_bytes: made.gauge(
                "dfs_master_copy_backlog_bytes",
                "Bytes to copy until all chunks are safe, if no server that is away comes back",
            ),
            copied_bytes: made.counter(
                "dfs_master_copied_bytes_total",
                "Bytes that chunkservers fetched from each other for configurations this master changed; counts when such a copy is durable",
            ),
            copy_rate: made.gauge(
                "dfs_master_copy_rate_bytes",
                "Bytes copied in a second, over the last ten seconds",
            ),
            copy_eta: made.real_gauge(
                "dfs_master_copy_eta_seconds",
                "Time until the backlog is copied at the present rate; 0: nothing to copy, +Inf: nothing is being copied",
            ),
            survey_seconds: made.seconds(
                "dfs_master_survey_seconds",
                "Time one look at all chunks takes, from which the safety figures come",
            ),
            metadata_copies: made.gauge(
                "dfs_master_metadata_copies",
                "Chunkservers that hold a copy of this master's log and snapshots",
            ),
            metadata_lag: made.real_gauge(
                "dfs_master_metadata_lag_seconds",
                "For how long the copy of the log that is furthest behind lacks something that is logged; +Inf without any copy",
            ),
            servers: made.gauges(
                "dfs_master_servers",
                "Chunkservers by state: alive, suspect (avoided) or dead",
                &["state"],
            ),
            heartbeat_age: made.real_gauges(
                "dfs_master_heartbeat_age_seconds",
                "Time since the last heartbeat, for each server heard of since this master started",
                &["server"],
            ),
            server_chunks: made.gauges(
                "dfs_master_server_chunks",
                "Replicas on each server, as its last heartbeat said",
                &["server"],
            ),
            used_bytes: made.gauge(
                "dfs_master_used_bytes",
                "Bytes used on all servers that are not dead, as their last heartbeats said",
            ),
            free_bytes: made.gauge(
                "dfs_master_free_bytes",
                "Bytes free on all servers that are not dead, as their last heartbeats said",
            ),
            inodes: made.gauge("dfs_master_inodes", "Files, directories and others"),
            file_bytes: made
                .gauge("dfs_master_file_bytes", "Sum of the sizes of all files, one copy counted"),
            leader: made.gauge("dfs_master_leader_info", "1 while this master leads its group"),
            warming: made.gauge(
                "dfs_master_warming_info",
                "1 while chunkservers may still be about to report what they hold",
            ),
            epoch: made.gauge("dfs_master_epoch", "Number of this reign; rises with each start"),
            log_entries: made
                .gauge("dfs_master_log_entries", "Index of the last entry of the log applied"),
            log_bytes: made
                .gauge("dfs_master_log_bytes", "Size of the log's files, room made ahead included"),
            log_sync_seconds: made.seconds(
                "dfs_master_log_sync_seconds",
                "Time of each fdatasync of the log",
            ),
            store_bytes: made.gauge("dfs_master_store_bytes", "Size of the store's file"),
            snapshot_bytes: made
                .gauge("dfs_master_snapshot_bytes", "Size of the snapshots' files"),
            registry: Registry::new(),
            described: Vec::new(),
        };
        let (registry, described) = made.done();
        Self(std::sync::Arc::new(Fields { registry, described, ..fields }))
    }
}
