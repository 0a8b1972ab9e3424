//! All metrics of a mount.

use std::time::Duration;

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::errno::Errno;

/// Seconds; from a hit in memory to a wait for a server.
const BUCKETS: [f64; 14] =
    [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.05, 0.25, 1.0, 5.0, 60.0];

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// From the decoded request to its answer, by operation; counts when answered.
    operation_seconds: HistogramVec,
    /// Answers that are errors, by operation and errno.
    errors_total: IntCounterVec,
    /// Bytes handed to the kernel; counts when the reply is made.
    pub bytes_read: IntCounter,
    /// Bytes taken from the kernel; counts when they are accepted.
    pub bytes_written: IntCounter,
    /// Requests given to another thread, because they may wait or no reader was left; counts at the handover.
    pub handed_over: IntCounter,
    /// Requests being answered now.
    pub in_progress: IntGauge,
    /// Requests answered with EIO because their handler panicked.
    pub panics: IntCounter,
}

impl Metrics {
    /// # Errors
    /// If two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let operation_seconds = HistogramVec::new(
            HistogramOpts::new("dfs_mount_operation_seconds", "Time to answer a request")
                .buckets(BUCKETS.to_vec()),
            &["operation"],
        )?;
        let errors_total = IntCounterVec::new(
            Opts::new("dfs_mount_errors_total", "Requests answered with an error"),
            &["operation", "errno"],
        )?;
        let bytes_read = IntCounter::new("dfs_mount_read_bytes_total", "Bytes read")?;
        let bytes_written = IntCounter::new("dfs_mount_written_bytes_total", "Bytes written")?;
        let handed_over = IntCounter::new(
            "dfs_mount_handed_over_total",
            "Requests answered by another thread than the one that read them",
        )?;
        let in_progress =
            IntGauge::new("dfs_mount_requests_in_progress", "Requests being answered")?;
        let panics = IntCounter::new("dfs_mount_panics_total", "Requests whose handler panicked")?;
        registry.register(Box::new(operation_seconds.clone()))?;
        registry.register(Box::new(errors_total.clone()))?;
        for counter in [&bytes_read, &bytes_written, &handed_over, &panics] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(in_progress.clone()))?;
        Ok(Self {
            registry,
            operation_seconds,
            errors_total,
            bytes_read,
            bytes_written,
            handed_over,
            in_progress,
            panics,
        })
    }

    pub(crate) fn operation_done(
        &self,
        operation: &'static str,
        took: Duration,
        failed: Option<Errno>,
    ) {
        self.operation_seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
        if let Some(errno) = failed {
            self.errors_total
                .with_label_values(&[operation, errno.code().to_string().as_str()])
                .inc();
        }
    }

    /// The text form that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Encoding into memory fails only on metrics without a name.
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => {
                tracing::error!(%error, "metrics cannot be rendered");
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_request_is_seen_with_its_errno() {
        let metrics = Metrics::new().unwrap();
        metrics.operation_done("lookup", Duration::from_micros(30), Some(Errno::IO));
        let text = metrics.render();
        assert!(
            text.contains(r#"dfs_mount_operation_seconds_count{operation="lookup"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"dfs_mount_errors_total{errno="5",operation="lookup"} 1"#),
            "{text}"
        );
    }
}
