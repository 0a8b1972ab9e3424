//! Many names: what each file costs the master in memory, in its log and in its store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;

/// Callers at once: one alone would wait for the log after each file.
const CALLERS: u64 = 16;
const FILES_IN_A_DIRECTORY: u64 = 1_000;

/// Sizes of one moment.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    resident: u64,
    store: u64,
    log: u64,
}

/// What was found with all the files there.
#[derive(Debug)]
pub(super) struct Names {
    files: u64,
    per_second: f64,
    removed_per_second: f64,
    sizes: Option<(Sizes, Sizes)>,
}

impl Names {
    /// Makes `files` empty files under `place`, measures, and removes them.
    pub(super) fn measure(
        place: &Path,
        files: u64,
        run_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let root = place.join(format!("dfs-bench-names-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        let look = || run_dir.map(sizes).transpose();
        let before = look()?;
        let directories = files.div_ceil(FILES_IN_A_DIRECTORY);
        let made = each_directory(&root, directories, |directory, n| {
            fs::create_dir(directory)?;
            let first = n * FILES_IN_A_DIRECTORY;
            for file in first..files.min(first + FILES_IN_A_DIRECTORY) {
                File::create_new(directory.join(format!("f{file}")))?;
            }
            Ok(())
        })?;
        let after = look()?;
        let removed =
            each_directory(&root, directories, |directory, _| fs::remove_dir_all(directory))?;
        fs::remove_dir(&root).with_context(|| format!("remove {}", root.display()))?;
        Ok(Self {
            files,
            per_second: files as f64 / made,
            removed_per_second: files as f64 / removed,
            sizes: before.zip(after),
        })
    }

    #[expect(clippy::print_stdout, reason = "the command's answer")]
    pub(super) fn print(&self) {
        println!(
            "{} empty files by {CALLERS} callers: {:.0} made per second, {:.0} removed per second",
            self.files, self.per_second, self.removed_per_second
        );
        let Some((before, after)) = self.sizes else {
            println!(
                "what they cost the master: not shown, because no local cluster was named (--dir)"
            );
            return;
        };
        for (what, before, after) in [
            ("resident memory", before.resident, after.resident),
            ("store", before.store, after.store),
            ("log", before.log, after.log),
        ] {
            let grown = after.saturating_sub(before);
            println!(
                "master, {what:<15} {:>6} MiB, {:.0} bytes for each file",
                after >> 20,
                grown as f64 / self.files as f64
            );
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let sizes = |sizes: Sizes| {
            serde_json::json!({
                "residentBytes": sizes.resident, "storeBytes": sizes.store, "logBytes": sizes.log,
            })
        };
        serde_json::json!({
            "files": self.files,
            "madePerSecond": self.per_second,
            "removedPerSecond": self.removed_per_second,
            "before": self.sizes.map(|(before, _)| sizes(before)),
            "after": self.sizes.map(|(_, after)| sizes(after)),
        })
    }
}

/// Runs `work` for each directory, by several threads; answers the seconds it took.
fn each_directory(
    root: &Path,
    count: u64,
    work: impl Fn(&PathBuf, u64) -> std::io::Result<()> + Sync,
) -> anyhow::Result<f64> {
    let next = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if count <= n {
                            return Ok(());
                        }
                        work(&root.join(format!("d{n}")), n)?;
                    }
                })
            })
            .collect();
        for caller in callers {
            let done: std::io::Result<()> =
                caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?;
            done.with_context(|| format!("work in {}", root.display()))?;
        }
        anyhow::Ok(())
    })?;
    Ok(start.elapsed().as_secs_f64())
}

/// Reads the master's sizes from a local cluster's files; `run_dir` is DIR/run.
fn sizes(run_dir: &Path) -> anyhow::Result<Sizes> {
    let pid = fs::read_to_string(run_dir.join("master.pid")).context("read the master's pid")?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))
        .context("read the master's memory")?;
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .context("no resident size of the master")?;
    let data = run_dir.with_file_name("data").join("master");
    let store = fs::metadata(data.join("state.redb")).context("read the store's size")?.len();
    // Segments before the last are full, also those that are purged by now.
    let (mut log, mut last) = (0, 0);
    for entry in fs::read_dir(data.join("log")).context("list the log")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_suffix(".log").and_then(|number| number.parse().ok()) else {
            continue;
        };
        if last < number {
            last = number;
            log = number * entry.metadata()?.len();
        }
    }
    Ok(Sizes { resident: resident * 1024, store, log })
}
