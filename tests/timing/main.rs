//! How long a failure is felt: until the cluster notices, in a client's writes, and until all copies are there again.
//! Reported, never judged: what is checked is that no write fails and that the cluster is whole at the end.
//!
//! `DFS_TIMING_ROUNDS` (default 1) runs of each kind, `DFS_TIMING_MIB` (default 64) MiB on the server that fails,
//! `DFS_TIMING_PROFILE` (default `drill`): the profile. With `standard` nothing is copied for as long as that waits, so
//! the columns of the copies are left out. The last one is what the disk gives to one writer in the same run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Options, no_fuse, setting, signal, skipped, wait_until};

const SERVERS: u32 = 5;
const COPIES: u32 = 3;
const FILE_BYTES: usize = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Kill,
    Hang,
    /// Killed while nobody writes: what copies cost by themselves.
    KillIdle,
}

/// Seconds from the failure on.
struct Felt {
    noticed: f64,
    stall: Option<f64>,
    whole: Option<f64>,
    /// MiB on the server that failed, for each second from its being dead on: what was copied.
    rate: Option<f64>,
    /// MiB per second of one local program that writes as much and syncs, in the same run.
    local: f64,
    /// On the server that failed.
    mib: f64,
}

fn profile() -> &'static str {
    match std::env::var("DFS_TIMING_PROFILE").as_deref() {
        Ok("standard") => "standard",
        Ok("drill") | Err(_) => "drill",
        Ok(other) => panic!("DFS_TIMING_PROFILE: '{other}' is neither drill nor standard"),
    }
}

fn fill(cluster: &Cluster, mib_each: u64) {
    let files = (mib_each << 20) * u64::from(SERVERS) / u64::from(COPIES) / FILE_BYTES as u64;
    let content: Vec<u8> = (0..=250_u8).cycle().take(FILE_BYTES).collect();
    cluster.dfs(["mkdir", "--chunk-size", "8MiB", "/data"]);
    for n in 0..files.max(1) {
        let file = std::fs::File::create(cluster.mount().join(format!("data/f{n}"))).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
    }
}

/// When synced writes of 4 KiB to one file were done, one after the other, until `stop`.
fn write_on(path: &std::path::Path, stop: &AtomicBool) -> Vec<Instant> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).custom_flags(libc::O_DSYNC).open(path).unwrap();
    let mut done = vec![Instant::now()];
    while !stop.load(Ordering::Relaxed) {
        let place = (done.len() % 256) as u64;
        file.write_all_at(&[b'w'; 4096], place * 4096).unwrap();
        done.push(Instant::now());
    }
    done
}

/// MiB per second that one program writes to one file beside the cluster's directories, and syncs.
fn local_rate(cluster: &Cluster, mib: u64) -> f64 {
    let path = cluster.dir().join("local");
    let file = std::fs::File::create(&path).unwrap();
    let piece = vec![b'l'; 1 << 20];
    let began = Instant::now();
    for n in 0..mib {
        file.write_all_at(&piece, n << 20).unwrap();
    }
    file.sync_data().unwrap();
    let took = began.elapsed();
    std::fs::remove_file(path).unwrap();
    mib as f64 / took.as_secs_f64()
}

fn measure(failure: Failure, profile: &'static str, mib: u64) -> Felt {
    let cluster =
        Cluster::start_with(Options { chunkservers: SERVERS, profile, ..Options::default() });
    fill(&cluster, mib);
    let path = cluster.mount().join("written");
    let stop = AtomicBool::new(failure == Failure::KillIdle);
    let (began, noticed, dead, whole, used, done) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&path, &stop));
        std::thread::sleep(Duration::from_secs(1));
        let served = if failure == Failure::KillIdle { "/data/f0" } else { "/written" };
        let located = cluster.dfs_json(["locate", served]);
        let victim = located["chunks"][0]["primary"].as_str().unwrap().to_owned();
        let status = cluster.dfs_json(["status"]);
        let servers = status["servers"].as_array().unwrap();
        let row = servers.iter().find(|row| row["id"] == victim.as_str()).unwrap();
        let used = row["usedBytes"].as_u64().unwrap();
        let pid = cluster.pid(&victim).unwrap();
        let began = Instant::now();
        signal(pid, if failure == Failure::Hang { Signal::STOP } else { Signal::KILL });
        wait_until("the server is not alive any more", || {
            cluster.server_state(&victim).is_some_and(|state| state != "alive")
        });
        let noticed = began.elapsed();
        let dead = (profile == "drill").then(|| {
            wait_until("the server is dead", || {
                cluster.server_state(&victim).is_some_and(|state| state == "dead")
            });
            began.elapsed()
        });
        let whole = (profile == "drill").then(|| {
            wait_until("all chunks are safe without it", || {
                let status = cluster.dfs_json(["status"]);
                let chunks = &status["chunks"];
                chunks["safe"] == chunks["total"]
            });
            began.elapsed()
        });
        let least = began + Duration::from_secs(8);
        std::thread::sleep(least.saturating_duration_since(Instant::now()));
        stop.store(true, Ordering::Relaxed);
        let done = writer.join().unwrap();
        if failure == Failure::Hang {
            signal(pid, Signal::CONT);
        }
        (began, noticed, dead, whole, used, done)
    });
    let stall = done.windows(2).filter(|pair| began < pair[1]).map(|pair| pair[1] - pair[0]).max();
    let wrote = failure != Failure::KillIdle;
    assert!(
        !wrote || done.last().is_some_and(|last| began < *last),
        "nothing was written any more"
    );
    if failure == Failure::Hang || whole.is_some() {
        cluster.until_clean();
    }
    let mib = used as f64 / f64::from(1 << 20);
    let copying = dead.zip(whole).map(|(dead, whole)| whole.saturating_sub(dead).as_secs_f64());
    Felt {
        noticed: noticed.as_secs_f64(),
        stall: wrote.then(|| stall.unwrap_or_default().as_secs_f64()),
        whole: whole.map(|whole| whole.as_secs_f64()),
        rate: copying.map(|seconds| mib / seconds.max(0.001)),
        local: local_rate(&cluster, used >> 20),
        mib,
    }
}

/// `median (least-most)`
fn shown(mut values: Vec<f64>, unit: &str) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) if unit == "s" => {
            format!("{median:.2} s ({least:.2}-{most:.2})")
        }
        (Some(least), Some(median), Some(most)) => {
            format!("{median:.0} {unit} ({least:.0}-{most:.0})")
        }
        _ => "-".to_owned(),
    }
}

#[test]
fn how_long_failures_are_felt() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let (rounds, mib, profile) =
        (setting("DFS_TIMING_ROUNDS", 1), setting("DFS_TIMING_MIB", 64), profile());
    println!(
        "profile {profile}, {SERVERS} chunkservers, runs of each: {rounds}; median (least-most)"
    );
    println!(
        "| failure of a primary | noticed | longest pause of synced 4 KiB writes | all copies there again | from its being dead on | a local program writes |"
    );
    println!("|---|---|---|---|---|---|");
    for (failure, name) in [
        (Failure::Kill, "SIGKILL"),
        (Failure::Hang, "SIGSTOP"),
        (Failure::KillIdle, "SIGKILL, nobody writes"),
    ] {
        let felt: Vec<Felt> = (0..rounds).map(|_| measure(failure, profile, mib)).collect();
        let of = |take: fn(&Felt) -> Option<f64>| felt.iter().filter_map(take).collect::<Vec<_>>();
        let held = felt.iter().map(|felt| felt.mib).fold(0.0, f64::max);
        println!(
            "| {name} | {} | {} | {}, {held:.0} MiB | {} | {} |",
            shown(of(|felt| Some(felt.noticed)), "s"),
            shown(of(|felt| felt.stall), "s"),
            shown(of(|felt| felt.whole), "s"),
            shown(of(|felt| felt.rate), "MiB/s"),
            shown(of(|felt| Some(felt.local)), "MiB/s"),
        );
    }
}
