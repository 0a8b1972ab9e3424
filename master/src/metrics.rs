//! The master's metrics.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// All counters of this process; they start at zero with it.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    /// Requests of clients, by kind of call.
    pub requests: IntCounterVec,
    /// Configuration changes of chunks that were activated, and that failed.
    pub reconfigurations: IntCounterVec,
    /// Connections closed because of bytes that were no frame of ours.
    pub bad_frames: IntCounter,
}

impl Metrics {
    /// # Errors
    /// If two metrics have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("dfs_master_requests_total", "requests of clients"),
            &["call"],
        )?;
        let reconfigurations = IntCounterVec::new(
            Opts::new("dfs_master_reconfigurations_total", "configuration changes of chunks"),
            &["outcome"],
        )?;
        let bad_frames = IntCounter::new(
            "dfs_master_bad_frames_total",
            "connections closed for bytes that were no frame",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(reconfigurations.clone()))?;
        registry.register(Box::new(bad_frames.clone()))?;
        Ok(Self { registry, requests, reconfigurations, bad_frames })
    }
}
