//! What goes wrong, one server at a time; damage to what is stored only on one of them: any chunk has two good copies.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Random, signal, wait_until};

pub(crate) const SMALL_DISK: &str = "cs-7";
/// The one whose files are damaged.
const DAMAGED: &str = "cs-1";
/// Where a chunk file's bytes begin.
const DATA_AT: u64 = dfs_proto::chunk_file::DATA_AT;

pub(crate) fn run(cluster: &Cluster, random: &mut Random, until: Instant, stop: &AtomicBool) {
    let began = Instant::now();
    let mut last = None;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1000 + random.below(2000)));
        let what = random.below(9);
        // One after the other: what a server missed it gets before the next one is away.
        if what < 4
            && let Some(last) = last.take()
        {
            whole(cluster, last, stop);
        }
        let server = 2 + random.below(6);
        let name = format!("cs-{server}");
        let said = match what {
            0 => {
                kill(cluster, &name);
                format!("{name} killed")
            }
            1 => stopped(cluster, &name, 300 + random.below(6_000)),
            2 => {
                cluster.dfs(["failover", &name, "--for", "5s", "--wait", "0s", "--force"]);
                std::thread::sleep(Duration::from_secs(6));
                format!("{name} failed over for 5 s")
            }
            3 => full(cluster, random),
            4 | 5 => flipped(cluster, random),
            6 => deleted(cluster, random),
            7 => {
                kill(cluster, "master");
                "master killed".to_owned()
            }
            _ => stopped(cluster, "master", 300 + random.below(4_000)),
        };
        if what < 4 {
            last = Some(if what == 3 { SMALL_DISK.to_owned() } else { name });
        }
        println!("{:6.1} s: {said}", began.elapsed().as_secs_f64());
    }
    if let Some(last) = last {
        whole(cluster, last, stop);
    }
}

/// The server is back, and every chunk has its copies.
fn whole(cluster: &Cluster, server: String, stop: &AtomicBool) {
    wait_until(&format!("{server} is back and no chunk is short of copies"), || {
        let status = cluster.dfs_json(["status"]);
        let servers = status["servers"].as_array().unwrap();
        let alive = servers.iter().any(|row| row["id"] == *server && row["state"] == "alive");
        let chunks = &status["chunks"];
        let short = ["degraded", "endangered", "unavailable", "lost"];
        stop.load(Ordering::Relaxed) || (alive && short.iter().all(|key| chunks[key] == 0))
    });
}

fn pid(cluster: &Cluster, role: &str) -> u32 {
    let mut found = None;
    wait_until(&format!("{role} runs"), || {
        found = cluster.pid(role).filter(|pid| tests::is_running(*pid));
        found.is_some()
    });
    found.unwrap()
}

fn kill(cluster: &Cluster, role: &str) {
    signal(pid(cluster, role), Signal::KILL);
}

fn stopped(cluster: &Cluster, role: &str, millis: u64) -> String {
    let pid = pid(cluster, role);
    signal(pid, Signal::STOP);
    std::thread::sleep(Duration::from_millis(millis));
    signal(pid, Signal::CONT);
    format!("{role} stopped for {millis} ms")
}

/// All of a disk's room is taken for a while.
fn full(cluster: &Cluster, random: &mut Random) -> String {
    let ballast = cluster.dir().join("data").join(SMALL_DISK).join("ballast");
    let mut file = File::create(&ballast).unwrap();
    let block = vec![1; 1 << 20];
    while file.write_all(&block).is_ok() {}
    std::thread::sleep(Duration::from_millis(500 + random.below(4_000)));
    drop(file);
    fs::remove_file(ballast).unwrap();
    format!("{SMALL_DISK} was full")
}

fn some_chunk_file(cluster: &Cluster, random: &mut Random) -> Option<PathBuf> {
    let mut files = Vec::new();
    for dir in fs::read_dir(cluster.dir().join("data").join(DAMAGED)).unwrap().flatten() {
        let two_digits = dir.file_name().to_string_lossy().len() == 2;
        if two_digits && let Ok(entries) = fs::read_dir(dir.path()) {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    files.sort();
    (!files.is_empty()).then(|| {
        let place = random.below(files.len() as u64);
        files.swap_remove(usize::try_from(place).unwrap())
    })
}

fn flipped(cluster: &Cluster, random: &mut Random) -> String {
    let flip = |path: &PathBuf, random: &mut Random| -> std::io::Result<u64> {
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len().saturating_sub(DATA_AT);
        let at = DATA_AT + random.below(len.max(1));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        Ok(at - DATA_AT)
    };
    match some_chunk_file(cluster, random).map(|path| (flip(&path, random), path)) {
        Some((Ok(at), path)) => {
            format!("{DAMAGED}: a byte of {} flipped, at {at}", path.file_name().unwrap().display())
        }
        Some((Err(_), _)) | None => format!("{DAMAGED}: no byte to flip"),
    }
}

fn deleted(cluster: &Cluster, random: &mut Random) -> String {
    match some_chunk_file(cluster, random).filter(|path| fs::remove_file(path).is_ok()) {
        Some(path) => format!("{DAMAGED}: {} deleted", path.file_name().unwrap().display()),
        None => format!("{DAMAGED}: no file to delete"),
    }
}
