//! Everything this process counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    /// Requests answered, from frame read to reply written; by `call`.
    pub(crate) requests: IntCounterVec,
    /// Refusals among them; by `reason`.
    pub(crate) refusals: IntCounterVec,
    /// From the arrival of a mutation to its acknowledgement.
    pub(crate) mutate_seconds: Histogram,
    /// Payload bytes answered to reads.
    pub(crate) read_bytes: IntCounter,
    /// Bytes that clients on this machine were told the checksums of.
    pub(crate) local_read_bytes: IntCounter,
    /// Payload bytes applied, as primary or member.
    pub(crate) written_bytes: IntCounter,
    /// Operations applied as a member.
    pub(crate) replicated: IntCounter,
    /// Mutations that had been applied before.
    pub(crate) repeated: IntCounter,
    /// Rounds of syncing a chunk on all members, begun as primary.
    pub(crate) syncs: IntCounter,
    /// Members found failing while this server led, once per version.
    pub(crate) member_failures: IntCounter,
    /// Blocks with a bad checksum, and those made right again.
    pub(crate) bad_blocks: IntCounter,
    pub(crate) repaired_blocks: IntCounter,
    /// Connections closed because of what came over them.
    pub(crate) bad_connections: IntCounter,
    /// Chunks led now.
    pub(crate) leaders: IntGauge,
    /// Frames connections open now.
    pub(crate) connections: IntGauge,
    /// 1 while this server must not serve.
    pub(crate) fenced: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let made = Made(&registry);
        Self {
            requests: made.counters("dfs_chunkserver_requests_total", "requests answered", "call"),
            refusals: made.counters("dfs_chunkserver_refusals_total", "requests refused", "reason"),
            mutate_seconds: made
                .seconds("dfs_chunkserver_mutate_seconds", "mutation until acknowledged"),
            read_bytes: made.counter("dfs_chunkserver_read_bytes_total", "bytes read by clients"),
            local_read_bytes: made.counter(
                "dfs_chunkserver_local_read_bytes_total",
                "bytes vouched for, read from files",
            ),
            written_bytes: made.counter("dfs_chunkserver_written_bytes_total", "bytes applied"),
            replicated: made
                .counter("dfs_chunkserver_replicated_operations_total", "applied as member"),
            repeated: made
                .counter("dfs_chunkserver_repeated_mutations_total", "mutations seen before"),
            syncs: made.counter("dfs_chunkserver_syncs_total", "sync rounds begun as primary"),
            member_failures: made
                .counter("dfs_chunkserver_member_failures_total", "failing members found"),
            bad_blocks: made
                .counter("dfs_chunkserver_bad_blocks_total", "blocks with a bad checksum"),
            repaired_blocks: made
                .counter("dfs_chunkserver_repaired_blocks_total", "blocks made right again"),
            bad_connections: made
                .counter("dfs_chunkserver_bad_connections_total", "closed for bad bytes"),
            leaders: made.gauge("dfs_chunkserver_led_chunks_count", "chunks led"),
            connections: made.gauge("dfs_chunkserver_connections_count", "open frames connections"),
            fenced: made.gauge("dfs_chunkserver_fenced_info", "1 while not allowed to serve"),
            registry,
        }
    }
}

/// Makes and registers; names are constants, so that nothing can fail that did not fail in the first test.
struct Made<'a>(&'a Registry);

#[expect(
    clippy::expect_used,
    reason = "names and labels are constants, checked by any test that starts a server"
)]
impl Made<'_> {
    fn register<T: prometheus::core::Collector + Clone + 'static>(&self, metric: T) -> T {
        self.0.register(Box::new(metric.clone())).expect("unique name");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect("valid name"))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help).expect("valid name"))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), &[label]).expect("valid name"))
    }

    fn seconds(&self, name: &str, help: &str) -> Histogram {
        let buckets = prometheus::exponential_buckets(0.000_1, 2.0, 17).expect("valid buckets");
        self.register(
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
                .expect("valid name"),
        )
    }
}
