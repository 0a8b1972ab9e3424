//! Makes the metrics of a process and remembers what each means, so that its document is made from the same words.
//!
//! Handles for closed sets of names are resolved once, when the process starts: counting takes no lock and looks
//! nothing up in a map.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Seconds, from a hit in memory to a wait for a server that is away.
const SECONDS: [f64; 16] =
    [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0];

/// What a metric is, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    pub name: String,
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// Registers the metrics of one process. Names, labels and texts are constants: what is wrong with them panics in
/// every test that starts the process.
#[derive(Debug)]
pub struct Registrar {
    registry: Registry,
    described: Vec<Described>,
}

impl Default for Registrar {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are constants, checked by any test that starts a process"
)]
impl Registrar {
    /// Starts with the figures that every process has: CPU, memory, files, threads.
    #[must_use]
    pub fn new() -> Self {
        let mut made = Self { registry: Registry::new(), described: Vec::new() };
        made.register(ProcessCollector::for_self(), "gauge");
        for described in &mut made.described {
            if described.name.ends_with("_total") {
                described.kind = "counter";
            }
        }
        made
    }

    fn register(&mut self, metric: impl Collector + 'static, kind: &'static str) {
        self.described.extend(metric.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            kind,
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
        self.registry.register(Box::new(metric)).expect("a name of its own");
    }

    pub fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        let counter = IntCounter::new(name, help).expect("valid name");
        self.register(counter.clone(), "counter");
        counter
    }

    pub fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("valid name");
        self.register(counters.clone(), "counter");
        counters
    }

    pub fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        let gauge = IntGauge::new(name, help).expect("valid name");
        self.register(gauge.clone(), "gauge");
        gauge
    }

    pub fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("valid name");
        self.register(gauges.clone(), "gauge");
        gauges
    }

    pub fn real_gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::new(name, help).expect("valid name");
        self.register(gauge.clone(), "gauge");
        gauge
    }

    pub fn real_gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        let gauges = GaugeVec::new(Opts::new(name, help), labels).expect("valid name");
        self.register(gauges.clone(), "gauge");
        gauges
    }

    pub fn seconds(&mut self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let histogram = Histogram::with_opts(options).expect("valid name");
        self.register(histogram.clone(), "histogram");
        histogram
    }

    /// One histogram of seconds for each of `names`, the values of `label`.
    pub fn seconds_of(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        names: &'static [&'static str],
    ) -> Named<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let all = HistogramVec::new(options, &[label]).expect("valid name");
        self.register(all.clone(), "histogram");
        Named { names, handles: names.iter().map(|name| all.with_label_values(&[name])).collect() }
    }

    /// One counter for each of `names`, the values of `label`.
    pub fn counters_of(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        names: &'static [&'static str],
    ) -> Named<IntCounter> {
        let all = self.counters(name, help, &[label]);
        Named { names, handles: names.iter().map(|name| all.with_label_values(&[name])).collect() }
    }

    #[must_use]
    pub fn done(self) -> (Registry, Vec<Described>) {
        let Self { registry, described } = self;
        (registry, described)
    }
}

/// Handles of a closed set of names.
#[derive(Debug)]
pub struct Named<T> {
    names: &'static [&'static str],
    handles: Vec<T>,
}

impl<T> Named<T> {
    /// `None` for a name that is not of the set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&T> {
        self.names.iter().position(|known| *known == name).and_then(|at| self.handles.get(at))
    }
}

impl Named<Histogram> {
    pub fn observe(&self, name: &str, took: Duration) {
        if let Some(histogram) = self.get(name) {
            histogram.observe(took.as_secs_f64());
        }
    }
}

impl Named<IntCounter> {
    pub fn inc(&self, name: &str) {
        if let Some(counter) = self.get(name) {
            counter.inc();
        }
    }
}

/// A table for people.
#[must_use]
pub fn markdown(described: &[Described]) -> String {
    let mut rows: Vec<&Described> = described.iter().collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Described { name, kind, labels, help } in rows {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Never fails: a string takes everything.
        let _ = writeln!(
            text,
            "| `{name}` | {kind} | {} | {} |",
            labels.join(", "),
            help.replace('|', "\\|").trim_end_matches('.')
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_registered_is_described_and_counted_by_name() {
        let mut made = Registrar::new();
        let calls = made.seconds_of("dfs_x_call_seconds", "time", "call", &["read", "write"]);
        calls.observe("read", Duration::from_micros(30));
        calls.observe("unknown", Duration::from_micros(30));
        let (registry, described) = made.done();
        let text = crate::metrics_http::render(&registry);
        assert!(text.contains(r#"dfs_x_call_seconds_count{call="read"} 1"#), "{text}");
        assert!(text.contains(r#"dfs_x_call_seconds_count{call="write"} 0"#), "{text}");
        assert!(!text.contains("unknown"), "{text}");
        let table = markdown(&described);
        assert!(table.contains("| `dfs_x_call_seconds` | histogram | `call` | time |"), "{table}");
        assert!(table.contains("| `process_cpu_seconds_total` | counter |"), "{table}");
    }
}
