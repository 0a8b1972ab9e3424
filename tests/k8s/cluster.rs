//! A cluster that `tests/k8s/cluster` started, and what is asked of it by `kubectl` and `helm`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{run, run_with_input, stdout_of};

/// A command that takes longer has failed.
const COMMAND_MAX: Duration = Duration::from_secs(120);
const START_MAX: Duration = Duration::from_secs(400);
/// What a case waits for; images are there, nothing is downloaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Name of a case, the level it needs, and what it does.
pub(crate) type Listed = (&'static str, u8, fn(&Cluster));

pub(crate) fn here() -> PathBuf {
    tests::repository().join("tests/k8s")
}

/// Where `tools/build` keeps the programs.
pub(crate) fn programs() -> &'static Path {
    static WHERE: OnceLock<PathBuf> = OnceLock::new();
    WHERE.get_or_init(|| {
        let output = run(Command::new(here().join("tools/build")).arg("where"), COMMAND_MAX);
        PathBuf::from(stdout_of(&output).trim())
    })
}

pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
}

impl Cluster {
    pub(crate) fn start(level: u8) -> Result<Self, String> {
        let dir = std::env::temp_dir().join("k8s");
        if dir.join("run/level").exists() {
            return Err(format!(
                "{}: a cluster runs there; end it: DIR={0} BIN={} tests/k8s/cluster stop",
                dir.display(),
                programs().display()
            ));
        }
        // Volumes of an earlier run would be disks of another file system.
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let cluster = Self { dir };
        let output = run(cluster.script().args(["start", &level.to_string()]), START_MAX);
        print!("{}", String::from_utf8_lossy(&output.stdout));
        if output.status.success() {
            return Ok(cluster);
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        cluster.tell_logs();
        let _left = cluster.stop();
        Err(said)
    }

    fn script(&self) -> Command {
        let mut script = Command::new(here().join("cluster"));
        script.env("DIR", &self.dir).env("BIN", programs());
        script
    }

    /// One of the script's commands, as `partition node-a`.
    #[track_caller]
    pub(crate) fn control(&self, args: &[&str]) {
        stdout_of(&run(self.script().args(args), START_MAX));
    }

    /// Ends everything and looks whether anything is left.
    pub(crate) fn stop(&self) -> Result<(), String> {
        let output = run(self.script().arg("stop"), START_MAX);
        let mut left = Vec::new();
        if !output.status.success() {
            left.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let dir = self.dir.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(
            mounts.lines().filter(|line| line.contains(&dir)).map(|line| format!("mount {line}")),
        );
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let ours = process.file_name().to_string_lossy() == std::process::id().to_string();
            // Not what only writes down what is said here, beside the directory.
            if line.contains(&format!("{dir}/")) && !ours {
                left.push(format!("process {line}"));
            }
        }
        let lists = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            output
                .map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        for (what, text) in [
            ("network namespace", lists("ip", &["netns", "list"])),
            ("network link", lists("ip", &["-o", "link"])),
            ("control group", lists("sh", &["-c", "ls -d /sys/fs/cgroup/*/dfs*-node-*"])),
        ] {
            let ours = |line: &&str| {
                let net = tests::setting("DFS_K8S_NET", 88);
                let names = [format!("dfs{net}-"), format!("dfsbr{net}:")];
                names.iter().any(|name| line.contains(name))
            };
            left.extend(text.lines().filter(ours).map(|line| format!("{what} {line}")));
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("run/admin.kubeconfig")
    }

    pub(crate) fn try_kubectl(&self, args: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(programs().join("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        run_with_input(&mut kubectl, input.as_bytes(), COMMAND_MAX)
    }

    /// Standard output of a `kubectl` that must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args, "");
        assert!(
            output.status.success(),
            "kubectl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, yaml: &str) {
        let output = self.try_kubectl(&["-n", namespace, "apply", "-f", "-"], yaml);
        assert!(output.status.success(), "{}\n{yaml}", String::from_utf8_lossy(&output.stderr));
    }

    /// An object as JSON; null if it is not there.
    #[track_caller]
    pub(crate) fn get(&self, namespace: &str, what: &str) -> Value {
        let mut args = vec!["-n", namespace, "get", "--ignore-not-found", "-o", "json"];
        args.extend(what.split(' '));
        let text = self.kubectl(&args);
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Names of all objects of a kind.
    #[track_caller]
    pub(crate) fn names(&self, namespace: &str, what: &str) -> Vec<String> {
        let list = self.get(namespace, what);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Reasons of all Events about `object`, with their notes.
    #[track_caller]
    pub(crate) fn events(&self, namespace: &str, object: &str) -> Vec<(String, String)> {
        let list = self.get(namespace, "events.events.k8s.io");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|event| event["regarding"]["name"] == object)
            .map(|event| (text(&event["reason"]), text(&event["note"])))
            .collect()
    }

    pub(crate) fn helm(&self, args: &[&str]) -> Output {
        let mut helm = Command::new(programs().join("helm"));
        helm.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        for (name, place) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            helm.env(name, self.dir.join("helm").join(place));
        }
        run(&mut helm, START_MAX)
    }

    /// What may tell why a case failed.
    pub(crate) fn tell(&self) {
        for args in [
            &["get", "distributedfs,statefulset,daemonset,deployment,pod,pvc", "-A", "-o", "wide"]
                [..],
            &[
                "get",
                "distributedfs",
                "-A",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{.status}{\"\\n\"}{end}",
            ],
            &[
                "get",
                "events.events.k8s.io",
                "-A",
                "-o",
                "custom-columns=O:.regarding.name,R:.reason,N:.note",
                "--sort-by=.metadata.creationTimestamp",
            ],
        ] {
            let output = self.try_kubectl(args, "");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                println!("   {}", line.chars().take(300).collect::<String>());
            }
        }
    }

    fn tell_logs(&self) {
        for log in std::fs::read_dir(self.dir.join("run/log")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("-- {}", log.path().display());
            for line in &lines[lines.len().saturating_sub(5)..] {
                println!("   {}", line.chars().take(300).collect::<String>());
            }
        }
    }

    #[track_caller]
    pub(crate) fn namespace(&self, name: &str) {
        self.kubectl(&["create", "namespace", name]);
    }

    /// The definition of our resource.
    #[track_caller]
    pub(crate) fn define(&self) {
        let file = tests::repository().join("charts/distributedfs/crds/distributedfs.yaml");
        self.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]);
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/distributedfs.distributedfs.io",
            "--timeout=30s",
        ]);
    }
}

/// Waits until `holds` gives a value.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
