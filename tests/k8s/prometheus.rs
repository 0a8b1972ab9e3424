//! A real Prometheus, with the chart's alerts. It is told the pods: Debian's cannot ask the API server.

use std::cell::RefCell;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE, wait_for};

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
    namespace: String,
    began: f64,
    /// What was done, and when.
    marks: RefCell<Vec<(f64, String)>>,
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
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
        let marks = RefCell::new(Vec::new());
        Some(Self { child, namespace: namespace.to_owned(), began: now(), marks })
    }

    /// Something is done now that pictures shall show.
    pub(crate) fn mark(&self, what: &str) {
        self.marks.borrow_mut().push((now(), what.to_owned()));
    }

    /// Whatever the chart's rules and dashboards ask for is exported by the pods.
    #[track_caller]
    pub(crate) fn has_all_that_is_asked_for(&self) {
        let mut missing: Vec<String> = tests::monitoring::used().into_iter().collect();
        let until = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            assert!(Instant::now() < until, "exported by no pod: {missing:?}");
            missing.retain(|name| self.query(&format!("count({name})")).is_empty());
        }
    }

    /// All panels of all dashboards, if `DFS_K8S_PICTURES` names a directory for them.
    #[track_caller]
    pub(crate) fn draw(&self) {
        let Some(out) = std::env::var_os("DFS_K8S_PICTURES") else { return };
        let mut draw = Command::new(tests::repository().join("deploy/monitoring/draw"));
        draw.args(["--prometheus", &format!("http://{ADDRESS}"), "--namespace", &self.namespace])
            .args(["--begin", &self.began.to_string(), "--end", &now().to_string()]);
        for (time, what) in &*self.marks.borrow() {
            draw.args(["--mark", &format!("{time}={what}")]);
        }
        let output = tests::run(draw.arg(out), Duration::from_secs(120));
        print!("{}", tests::stdout_of(&output));
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
