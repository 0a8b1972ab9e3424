//! fsx: random reads, writes, maps, truncates, holes and re-opens of one file, checked byte by byte.
//!
//! `DFS_FSX_OPS` sets the operations of each run (a soak: 1000000), `DFS_FSX_SEED` the first seed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tests::{Cluster, no_fuse, skipped};

/// Four runs of this make the 100,000 of each CI run.
const OPS: u64 = 25_000;

/// Small operations in one chunk's head, and large ones over several checksum blocks and megabytes.
const SMALL: &str = r"
flen = 262144
[opsize]
min = 1
max = 65536
[weights]
close_open = 2
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";
const LARGE: &str = r"
flen = 8388608
[opsize]
min = 1
max = 1048576
[weights]
close_open = 3
invalidate = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 5
fsync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 3
copy_file_range = 3
";
/// Mostly within what fits into an inode: in and out of it.
const TINY: &str = r"
flen = 12288
[opsize]
min = 1
max = 4096
[weights]
close_open = 5
invalidate = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 10
fsync = 1
posix_fallocate = 3
punch_hole = 5
copy_file_range = 3
";

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

fn run_fsx(program: &Path, config: &str, file: &Path, artifacts: &Path, seed: u64, ops: u64) {
    let config_file = artifacts.join(format!("fsx-{seed}.toml"));
    std::fs::write(&config_file, config).unwrap();
    println!("fsx -S {seed} -N {ops} on {}", file.display());
    let mut command = Command::new(program);
    command
        .args(["-S", &seed.to_string(), "-N", &ops.to_string(), "-f"])
        .arg(&config_file)
        .arg("-P")
        .arg(artifacts)
        .arg(file);
    let limit = Duration::from_secs(60) + Duration::from_millis(100) * u32::try_from(ops).unwrap();
    let output = tests::run(&mut command, limit);
    assert!(
        output.status.success(),
        "fsx, seed {seed}: {}\n{}{}\nconfiguration:{config}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn fsx_reads_back_what_it_wrote() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let program = match super::tools::program("fsx", "0.3.2") {
        Ok(program) => program,
        Err(reason) => return skipped(&reason),
    };
    let ops = from_env("DFS_FSX_OPS").unwrap_or(OPS);
    let seed = from_env("DFS_FSX_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        now.as_secs() % 1_000_000
    });
    let cluster = Cluster::start();
    let artifacts = cluster.scratch();
    std::thread::scope(|scope| {
        for (n, config) in (0..).zip([SMALL, SMALL, LARGE, TINY]) {
            let file = cluster.mount().join(format!("fsx-{n}"));
            let program = &program;
            scope.spawn(move || run_fsx(program, config, &file, artifacts, seed + n, ops));
        }
    });
}
