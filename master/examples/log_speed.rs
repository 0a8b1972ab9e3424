//! Prints how many commands a second the log takes, alone and from many clients.
//!
//! `cargo run --release -p master --example log_speed [DIR]`; DIR should be on the disk in question.
#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use master::group::{Applied, Applier, Group, GroupConfig, SnapshotWriter};

const COMMAND_BYTES: usize = 200;
const RUN_FOR: Duration = Duration::from_secs(3);

/// Counts, so that only the log's cost is measured.
#[derive(Default)]
struct Counter {
    applied: Option<Applied>,
}

impl Applier for Counter {
    fn applied(&self) -> Option<Applied> {
        self.applied.clone()
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        self.applied = Some(at.clone());
        vec![Bytes::new(); commands.len()]
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        Ok(Box::new(|_| Ok(())))
    }

    fn install(&mut self, at: &Applied, _from: &mut dyn io::Read) -> io::Result<()> {
        self.applied = Some(at.clone());
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("log-speed-{}", std::process::id()));
    let group = Group::open(GroupConfig::new(&dir), Counter::default()).context("open the log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
    for clients in [1, 4, 64, 256] {
        let latencies = Mutex::new(Vec::new());
        let begun = Instant::now();
        let proposed = runtime.block_on(async {
            let clients: Vec<_> = (0..clients)
                .map(|_| {
                    let group = group.clone();
                    tokio::spawn(async move {
                        let command = Bytes::from(vec![7; COMMAND_BYTES]);
                        let mut latencies_us = Vec::new();
                        while begun.elapsed() < RUN_FOR {
                            let asked = Instant::now();
                            group.propose(command.clone()).await?;
                            latencies_us.push(asked.elapsed().as_micros());
                        }
                        anyhow::Ok(latencies_us)
                    })
                })
                .collect();
            for client in clients {
                let mut latencies_us = client.await??;
                latencies
                    .lock()
                    .map_err(|_| anyhow::anyhow!("poisoned"))?
                    .append(&mut latencies_us);
            }
            anyhow::Ok(())
        });
        let elapsed = begun.elapsed();
        proposed?;
        let mut latencies_us = latencies.into_inner()?;
        latencies_us.sort_unstable();
        let count = latencies_us.len();
        println!(
            "{clients:>4} clients: {:>8.0} commands/s, p50 {} us, p99 {} us",
            count as f64 / elapsed.as_secs_f64(),
            latencies_us[count / 2],
            latencies_us[count * 99 / 100],
        );
    }
    group.shutdown();
    std::fs::remove_dir_all(&dir).context("remove the log")?;
    Ok(())
}
