//! Seven chunkservers and five mounts for a while, in which every few seconds a server is killed, stopped, failed over,
//! fills up, loses a chunk's file or has a byte of one flipped, and the master is killed or stopped.
//!
//! The checker lives outside of the cluster and remembers what was acknowledged. While it goes on, whatever is read must
//! be what was acknowledged last, or a later attempt; no call may fail. At the end all chunks are safe again, `dfs fsck`
//! is clean, and a mount that was not there reads every acknowledged byte, and every record exactly once.
//!
//! `DFS_CHAOS_SECONDS` (default 60) and `DFS_CHAOS_SEED` (default 1; 0 takes another each time) are settings; the seed is
//! printed. It decides what goes wrong and what clients do, not how fast.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod nemesis;
mod work;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::{Cluster, Options, Random, no_fuse, setting, skipped, wait_until};
use work::{Client, Known};

const CLIENTS: u8 = 5;

#[test]
fn nothing_acknowledged_is_lost_while_servers_fail_in_every_way() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let seed = match setting("DFS_CHAOS_SEED", 1) {
        0 => std::process::id().into(),
        seed => seed,
    };
    let length = Duration::from_secs(setting("DFS_CHAOS_SECONDS", 60));
    println!("seed {seed}, {} s", length.as_secs());
    let options = Options { chunkservers: 7, restart: "on-failure", ..Options::default() };
    let small = [(nemesis::SMALL_DISK, "900m")];
    let (mut cluster, disks) = match Cluster::start_on_small_disks(options, &small) {
        Ok(started) => started,
        Err(reason) => return skipped(&reason),
    };
    let mut mounts = vec![cluster.mount()];
    mounts.extend((1..CLIENTS).map(|n| cluster.mount_again(&format!("m{n}"))));
    for (dir, chunk_size) in work::DIRS {
        cluster.dfs(["mkdir", "--chunk-size", chunk_size, &format!("/{dir}")]);
    }
    let known = Known::new(&mounts[0], CLIENTS);
    let stop = AtomicBool::new(false);
    let until = Instant::now() + length;
    std::thread::scope(|scope| {
        let ends = Ends(&stop);
        let running: Vec<_> = (0..CLIENTS)
            .zip(&mounts)
            .map(|(name, mount)| {
                let random = Random::new(seed, u64::from(name) + 1);
                let mut client = Client::new(name, mount, &known, random);
                let stop = &stop;
                scope.spawn(move || {
                    let _ends = Ends(stop);
                    while !stop.load(Ordering::Relaxed) {
                        client.step();
                    }
                })
            })
            .collect();
        nemesis::run(&cluster, &mut Random::new(seed, 0), until, &stop);
        drop(ends);
        for client in running {
            client.join().unwrap();
        }
    });
    let ended = Instant::now();
    let say = |what: &str| println!("{what}, {:.1} s after the end", ended.elapsed().as_secs_f64());
    say(&known.summary());
    wait_until("all servers are alive", || {
        (1..=7).all(|n| cluster.server_state(&format!("cs-{n}")).as_deref() == Some("alive"))
    });
    // What was damaged is found by reading all of it, and mended.
    loop {
        let checked = cluster.try_dfs(["fsck"]);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        if checked.status.success() && said.contains("clean") {
            break;
        }
        assert!(ended.elapsed() < Duration::from_secs(240), "not clean:\n{said}");
        std::thread::sleep(Duration::from_secs(1));
    }
    say("clean");
    wait_until("all chunks are safe", || {
        let chunks = &cluster.dfs_json(["status"])["chunks"];
        chunks["safe"] == chunks["total"]
    });
    say("safe");
    let fresh = cluster.mount_again("fresh");
    known.check_all(&fresh);
    say("compared");
    drop(cluster);
    drop(disks);
}

/// Whoever fails stops the others.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
