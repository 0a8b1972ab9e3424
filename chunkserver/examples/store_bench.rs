//! What one disk's store can do, without any network: `cargo run --release -p chunkserver --example store_bench [DIR]`.

#![allow(clippy::print_stdout, clippy::allow_attributes, reason = "its output is what it is for")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use chunkserver::store::{ChunkSpec, Mutation, OpTag, Store, StoreConfig};
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, FsId, InodeNo, ServerId};

const V1: ChunkVersion = ChunkVersion(1);
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 * MIB;
const SPEC: ChunkSpec = ChunkSpec { inode: InodeNo(1), index: 0, chunk_size: CHUNK };
const TAG: OpTag =
    OpTag { client: ClientId(0), counter: 0, low_water: 0, append: None, record: false };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let dir = tempfile_in(&parent)?;
    let config = StoreConfig {
        dir: dir.clone(),
        fs_id: Some(FsId(1)),
        server: ServerId(1),
        segment_bytes: 64 * MIB,
        capacity_bytes: None,
        reserve_percent: 5,
    };
    let store = Store::open(config.clone())?;
    let block: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();

    let chunks = 16;
    let begun = Instant::now();
    for chunk in 1..=chunks {
        for n in 0..64 {
            write(&store, chunk, n + 1, n * MIB, &block)?;
        }
    }
    let applied = begun.elapsed();
    for chunk in 1..=chunks {
        store.sync_blocking(ChunkId(chunk))?;
    }
    let mib = chunks * 64;
    println!("append 1 MiB, applied           {:8.0} MiB/s", rate(mib, applied));
    println!("append 1 MiB, synced at the end {:8.0} MiB/s", rate(mib, begun.elapsed()));

    let begun = Instant::now();
    for n in 0..256 {
        write(&store, 100, n % 64 + 1 + n / 64 * 64, n % 64 * MIB, &block)?;
        store.sync_blocking(ChunkId(100))?;
    }
    println!("write 1 MiB + sync, each        {:8.0} MiB/s", rate(256, begun.elapsed()));

    let mut out = Vec::new();
    for (what, len) in [("1 MiB", MIB), ("64 KiB", 65_536), ("4 KiB random", 4096)] {
        let count = (512 * MIB / len).min(100_000);
        let begun = Instant::now();
        for n in 0..count {
            let at = if len == 4096 { scatter(n) } else { n * len };
            store.read(ChunkId(at / CHUNK % chunks + 1), V1, at % CHUNK, len, &mut out)?;
        }
        let mib_s = rate(count * len, begun.elapsed()) / MIB as f64;
        println!("read {what:12} verified      {mib_s:8.0} MiB/s");
    }

    let mut seq = 64;
    let begun = Instant::now();
    for n in 0..2_000 {
        seq += 1;
        write(&store, 1, seq, scatter(n) % CHUNK, &block[..4096])?;
        store.sync_blocking(ChunkId(1))?;
    }
    println!("write 4 KiB random + sync       {:8.0} /s", rate(2_000, begun.elapsed()));

    // What a mount does: operations go on while syncs are under way.
    let begun = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let mut outstanding = 0;
    for n in 0..20_000 {
        seq += 1;
        write(&store, 1, seq, scatter(n) % CHUNK, &block[..4096])?;
        let sender = sender.clone();
        store.sync(
            ChunkId(1),
            Box::new(move |result| sender.send(result.is_ok()).unwrap_or_default()),
        );
        outstanding += 1;
        while 64 <= outstanding {
            assert!(receiver.recv()?, "a sync failed");
            outstanding -= 1;
        }
    }
    println!("write 4 KiB random + sync, 64x  {:8.0} /s", rate(20_000, begun.elapsed()));

    let begun = Instant::now();
    for chunk in 1_000..2_000 {
        write(&store, chunk, 1, 0, &block[..4096])?;
        store.sync_blocking(ChunkId(chunk))?;
    }
    println!("new chunk, 4 KiB, sync          {:8.0} /s", rate(1_000, begun.elapsed()));

    let begun = Instant::now();
    store.checkpoint()?;
    println!("checkpoint                      {:8.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    for n in 0..10_000 {
        seq += 1;
        write(&store, 1, seq, scatter(n) % CHUNK, &block[..4096])?;
    }
    drop(store);
    let begun = Instant::now();
    let store = Store::open(config)?;
    println!("start after a kill, 10k records {:8.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    drop(store);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn write(
    store: &Store,
    chunk: u64,
    seq: u64,
    offset: u64,
    data: &[u8],
) -> Result<(), chunkserver::store::StoreError> {
    store.apply(ChunkId(chunk), V1, seq, &SPEC, TAG, Mutation::Write { offset, data })
}

fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Pages in no order.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (16 * CHUNK) / 4096 * 4096
}

fn tempfile_in(parent: &str) -> std::io::Result<std::path::PathBuf> {
    let dir = std::path::Path::new(parent).join(format!("store_bench.{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}
