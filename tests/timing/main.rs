//! How long a failure is felt: until the cluster notices, in a client's writes, and until all copies are there again.
//! Reported, never judged: what is checked is that no write fails and that the cluster is whole at the end.
//!
//! `DFS_TIMING_ROUNDS` (default 1) runs of each kind, `DFS_TIMING_MIB` (default 64) MiB on the server that fails,
//! `DFS_TIMING_PROFILE` (default `drill`): the profile. With `standard` nothing is copied for as long as that waits, so
//! the last column is left out.
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
}

/// Seconds from the failure on.
struct Felt {
    noticed: f64,
    stall: f64,
    whole: Option<f64>,
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

fn measure(failure: Failure, profile: &'static str, mib: u64) -> Felt {
    let cluster =
        Cluster::start_with(Options { chunkservers: SERVERS, profile, ..Options::default() });
    fill(&cluster, mib);
    let path = cluster.mount().join("written");
    let stop = AtomicBool::new(false);
    let (began, noticed, whole, used, done) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&path, &stop));
        std::thread::sleep(Duration::from_secs(1));
        let located = cluster.dfs_json(["locate", "/written"]);
        let victim = located["chunks"][0]["primary"].as_str().unwrap().to_owned();
        let status = cluster.dfs_json(["status"]);
        let servers = status["servers"].as_array().unwrap();
        let row = servers.iter().find(|row| row["id"] == victim.as_str()).unwrap();
        let used = row["usedBytes"].as_u64().unwrap();
        let pid = cluster.pid(&victim).unwrap();
        let began = Instant::now();
        signal(pid, if failure == Failure::Kill { Signal::KILL } else { Signal::STOP });
        wait_until("the server is not alive any more", || {
            cluster.server_state(&victim).is_some_and(|state| state != "alive")
        });
        let noticed = began.elapsed();
        let whole = (profile == "drill").then(|| {
            wait_until("all chunks are safe without it", || {
                let status = cluster.dfs_json(["status"]);
                let chunks = &status["chunks"];
                let row = status["servers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|row| row["id"] == victim.as_str());
                row.is_some_and(|row| row["state"] == "dead") && chunks["safe"] == chunks["total"]
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
        (began, noticed, whole, used, done)
    });
    let stall = done.windows(2).filter(|pair| began < pair[1]).map(|pair| pair[1] - pair[0]).max();
    assert!(done.last().is_some_and(|last| began < *last), "nothing was written any more");
    if failure == Failure::Hang || whole.is_some() {
        cluster.until_clean();
    }
    Felt {
        noticed: noticed.as_secs_f64(),
        stall: stall.unwrap_or_default().as_secs_f64(),
        whole: whole.map(|whole| whole.as_secs_f64()),
        mib: used as f64 / f64::from(1 << 20),
    }
}

/// `median (least-most)`
fn shown(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    match (seconds.first(), seconds.get(seconds.len() / 2), seconds.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{median:.2} s ({least:.2}-{most:.2})")
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
        "| failure of a primary | noticed | longest pause of synced 4 KiB writes | all copies there again |"
    );
    println!("|---|---|---|---|");
    for (failure, name) in [(Failure::Kill, "SIGKILL"), (Failure::Hang, "SIGSTOP")] {
        let felt: Vec<Felt> = (0..rounds).map(|_| measure(failure, profile, mib)).collect();
        let of = |take: fn(&Felt) -> Option<f64>| felt.iter().filter_map(take).collect::<Vec<_>>();
        let held = felt.iter().map(|felt| felt.mib).fold(0.0, f64::max);
        println!(
            "| {name} | {} | {} | {}, {held:.0} MiB |",
            shown(of(|felt| Some(felt.noticed))),
            shown(of(|felt| Some(felt.stall))),
            shown(of(|felt| felt.whole)),
        );
    }
}
