//! All metrics of the operator.

use std::time::Duration;

use dfs_service::metrics::{Described, Registrar};
use prometheus::{Histogram, IntCounterVec, IntGauge, Registry};

/// Everything this process counts; counters start at zero with it.
#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub described: Vec<Described>,
    reconciles: IntCounterVec,
    reconcile_seconds: Histogram,
    pub leads: IntGauge,
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
        let reconciles = made.counters(
            "dfs_operator_reconciles_total",
            "Rounds of observing, planning and performing for a file system, by result (ok, error); counts when over",
            &["result"],
        );
        let reconcile_seconds = made.seconds(
            "dfs_operator_reconcile_seconds",
            "Time of a round, calls to the API server and to the master included; counts when over",
        );
        let leads = made.gauge(
            "dfs_operator_leaders",
            "1 while this operator is the one that acts, else 0; set when that changes",
        );
        let (registry, described) = made.done();
        Self { registry, described, reconciles, reconcile_seconds, leads }
    }

    pub fn reconciled(&self, result: &str, took: Duration) {
        self.reconciles.with_label_values(&[result]).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }
}
