//! Peak resident memory of a local cluster's processes while the benchmark runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Process name (from its pid file) and the largest resident set seen, in KiB.
#[derive(Debug)]
pub(super) struct Watch {
    run_dir: Option<PathBuf>,
    peak_kib: BTreeMap<String, u64>,
}

impl Watch {
    pub(super) fn start(run_dir: Option<&Path>) -> Self {
        let mut watch = Self { run_dir: run_dir.map(Path::to_path_buf), peak_kib: BTreeMap::new() };
        watch.look();
        watch
    }

    /// Reads each process's own high-water mark; processes that are gone keep their last figure.
    pub(super) fn look(&mut self) {
        let Some(run_dir) = &self.run_dir else { return };
        let Ok(entries) = std::fs::read_dir(run_dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "pid") {
                continue;
            }
            let name = path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default();
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let pid = text.split_whitespace().next().unwrap_or_default();
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            let peak: Option<u64> = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            if let Some(peak) = peak {
                let known = self.peak_kib.entry(name).or_default();
                *known = peak.max(*known);
            }
        }
    }

    #[expect(clippy::print_stdout, reason = "the command's answer")]
    pub(super) fn print(&self) {
        if self.run_dir.is_none() {
            println!(
                "memory of the servers: not shown, because no local cluster was named (--dir)"
            );
        }
        for (name, kib) in &self.peak_kib {
            println!("peak resident memory  {name:<12} {:>6} MiB", kib / 1024);
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!(
            self.peak_kib
                .iter()
                .map(|(name, kib)| (name.clone(), kib * 1024))
                .collect::<BTreeMap<_, _>>()
        )
    }
}
