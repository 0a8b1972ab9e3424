//! All metrics of a mount.

use std::sync::OnceLock;
use std::time::Duration;

use dfs_service::metrics::{Described, Named, Registrar};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use crate::errno::Errno;
use crate::seam::OPERATIONS;

const OPENS: &[&str] = &["kept", "fresh", "direct"];
const LISTINGS: &[&str] = &["memory", "master"];
const READS: &[&str] = &["ahead", "asked"];
/// Above every errno of Linux.
const ERRNO_MAX: usize = 134;

/// Everything this process counts; counters start at zero with it.
#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub described: Vec<Described>,
    operation_seconds: Named<Histogram>,
    errors: IntCounterVec,
    /// By operation and errno, resolved when first counted.
    errors_known: Vec<OnceLock<IntCounter>>,
    pub bytes_read: IntCounter,
    pub bytes_written: IntCounter,
    pub handed_over: IntCounter,
    pub in_progress: IntGauge,
    pub panics: IntCounter,
    pub opens: Named<IntCounter>,
    pub listings: Named<IntCounter>,
    pub fetched: Named<IntCounter>,
    pub unsent_bytes: IntGauge,
    pub unsent_limit_bytes: IntGauge,
    pub readahead_bytes: IntGauge,
    pub memory_given_back: IntCounter,
    pub master_connections: IntGauge,
    pub master_reachable: IntGauge,
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
            operation_seconds: made.seconds_of(
                "dfs_mount_operation_seconds",
                "Time to answer a request of the kernel, from the decoded request to its answer, by operation; counts when answered",
                "operation",
                OPERATIONS,
            ),
            errors: made.counters(
                "dfs_mount_errors_total",
                "Requests of the kernel answered with an error, by operation and number of the error (2: no such file)",
                &["operation", "errno"],
            ),
            errors_known: std::iter::repeat_with(OnceLock::new)
                .take(OPERATIONS.len() * ERRNO_MAX)
                .collect(),
            bytes_read: made.counter(
                "dfs_mount_read_bytes_total",
                "Bytes handed to the kernel; counts when the answer is made",
            ),
            bytes_written: made.counter(
                "dfs_mount_written_bytes_total",
                "Bytes taken from the kernel; counts when they are accepted, before they are on the servers",
            ),
            handed_over: made.counter(
                "dfs_mount_handed_over_total",
                "Requests answered by another thread than the one that read them",
            ),
            in_progress: made
                .gauge("dfs_mount_requests_in_progress", "Requests of the kernel being answered now"),
            panics: made
                .counter("dfs_mount_panics_total", "Requests answered with EIO for a bug of ours"),
            opens: made.counters_of(
                "dfs_mount_opens_total",
                "Opens by what becomes of the file's pages in the kernel: kept (a hit), fresh (dropped or never there), direct (not used)",
                "pages",
                OPENS,
            ),
            listings: made.counters_of(
                "dfs_mount_listings_total",
                "Parts of directory listings by where they came from: memory (a hit) or the master",
                "from",
                LISTINGS,
            ),
            fetched: made.counters_of(
                "dfs_mount_chunk_read_bytes_total",
                "Bytes of chunks given to readers: ahead (fetched before they were asked for, a hit) or asked (waited for)",
                "how",
                READS,
            ),
            unsent_bytes: made.gauge(
                "dfs_mount_unstable_bytes",
                "Bytes written here and held until they are on the servers' disks",
            ),
            unsent_limit_bytes: made.gauge(
                "dfs_mount_unstable_limit_bytes",
                "Bound of the bytes held; writers wait at it",
            ),
            readahead_bytes: made
                .gauge("dfs_mount_readahead_bytes", "Memory that bytes fetched ahead take now"),
            memory_given_back: made.counter(
                "dfs_mount_memory_given_back_total",
                "Times that memory was given back to the kernel after a burst of writing",
            ),
            master_connections: made
                .gauge("dfs_mount_master_connections", "Connections to the master open now"),
            master_reachable: made.gauge(
                "dfs_mount_master_reachable_info",
                "1 if the master answered when this page was asked for",
            ),
            registry: Registry::new(),
            described: Vec::new(),
        };
        // From the start: Prometheus takes a series that begins with 1 for no increase, and a first error would be told to nobody.
        for operation in OPERATIONS {
            let _at_zero =
                metrics.errors.with_label_values(&[*operation, &Errno::IO.code().to_string()]);
        }
        let (registry, described) = made.done();
        Self { registry, described, ..metrics }
    }

    pub(crate) fn operation_done(
        &self,
        operation: &'static str,
        took: Duration,
        failed: Option<Errno>,
    ) {
        self.operation_seconds.observe(operation, took);
        if let Some(errno) = failed {
            self.error(operation, errno);
        }
    }

    fn error(&self, operation: &'static str, errno: Errno) {
        let resolve =
            || self.errors.with_label_values(&[operation, errno.code().to_string().as_str()]);
        let at = OPERATIONS.iter().position(|known| *known == operation);
        let code = usize::try_from(errno.code()).ok().filter(|code| *code < ERRNO_MAX);
        let known =
            at.zip(code).and_then(|(at, code)| self.errors_known.get(at * ERRNO_MAX + code));
        match known {
            Some(known) => known.get_or_init(resolve).inc(),
            None => resolve().inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_request_is_seen_with_its_errno() {
        let metrics = Metrics::new();
        metrics.operation_done("lookup", Duration::from_micros(30), Some(Errno::IO));
        let text = dfs_service::metrics_http::render(&metrics.registry);
        assert!(
            text.contains(r#"dfs_mount_operation_seconds_count{operation="lookup"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"dfs_mount_errors_total{errno="5",operation="lookup"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"dfs_mount_errors_total{errno="5",operation="read"} 0"#), "{text}");
    }
}
