//! A real Prometheus, with the chart's alerts. It is told the pods: Debian's cannot ask the API server.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_for};

pub(crate) const ADDRESS: &str = "127.0.0.1:19090";

/// The pods of `namespace` with a port of pages, as they are now.
fn targets(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let pods = cluster.get(namespace, "pod");
    let has_pages = |pod: &Value| {
        let ports = pod["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().any(|port| port["name"] == "pages")
    };
    let all = pods["items"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|pod| has_pages(pod))
        .map(|pod| {
            json!({
                "targets": [format!("{}:9600", pod["status"]["podIP"].as_str().unwrap_or_default())],
                "labels": {
                    "namespace": namespace,
                    "pod": pod["metadata"]["name"],
                    "component": pod["metadata"]["labels"]["app.kubernetes.io/component"],
                },
            })
        })
        .collect()
}

/// Killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
}

impl Prometheus {
    /// Scrapes the pods of `namespace` every second; nothing if it is not installed.
    pub(crate) fn start(cluster: &Cluster, namespace: &str) -> Option<Self> {
        let dir = cluster.dir.join("prometheus");
        std::fs::create_dir_all(&dir).unwrap();
        let alerts = tests::repository().join("charts/distributedfs/alerts/distributedfs.yaml");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [alerts],
            "scrape_configs": [{
                "job_name": "pods",
                "static_configs": targets(cluster, namespace),
            }],
        });
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .ok()?;
        Some(Self { child })
    }

    /// The result of an instant query; empty while it does not answer.
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let output = Command::new("curl")
            .args([
                "-fsG",
                "--max-time",
                "10",
                &format!("http://{ADDRESS}/api/v1/query"),
                "--data-urlencode",
            ])
            .arg(format!("query={expression}"))
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until `expression` has a result, or none.
    #[track_caller]
    pub(crate) fn wait(&self, expression: &str, some: bool) -> Duration {
        let began = Instant::now();
        wait_for(expression, || (self.query(expression).is_empty() != some).then_some(()));
        began.elapsed()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
