//! The same random operations on a directory of the local disk and on a mount: results must be the same, errno
//! included. Two mounts of one cluster take turns; their kernels keep nothing (`--attr-ttl 0 --entry-ttl 0`).
//!
//! `DFS_POSIX_SEED` repeats a run, `DFS_POSIX_OPS` sets its length. What POSIX leaves open is not compared: sizes of
//! directories, blocks, the times nobody set, and what an open file sees of a write on the other mount before close.

mod operation;
mod world;

use std::time::SystemTime;

use tests::{Cluster, no_fuse, skipped};

use world::World;

const OPS: u64 = 4_000;

/// Xorshift, so that a seed says everything.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.roll();
        }
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 11) % end.max(1)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

fn compare(
    cluster_mounts: Vec<std::path::PathBuf>,
    local: std::path::PathBuf,
    seed: u64,
    ops: u64,
) {
    println!("DFS_POSIX_SEED={seed} DFS_POSIX_OPS={ops}");
    let mut dice = Dice::new(seed);
    let mut world = World::new(local, cluster_mounts);
    for step in 0..ops {
        let operation = operation::choose(&mut dice, &world);
        let (expected, actual) = world.perform(&operation);
        assert_eq!(
            actual,
            expected,
            "step {step} of seed {seed}: the mount (left) and the local disk (right) differ on {operation:?}\nbefore it:\n{}",
            world.history()
        );
        if step % 500 == 499 {
            world.check_trees(seed, step);
        }
    }
    world.close_all();
    world.check_trees(seed, ops);
    println!("{}", world.statistics());
}

#[test]
fn random_operations_have_the_same_results_as_on_a_local_disk() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let ops = from_env("DFS_POSIX_OPS").unwrap_or(OPS);
    let seed = from_env("DFS_POSIX_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    let mut cluster = Cluster::start();
    let ttl_zero = ["--attr-ttl", "0", "--entry-ttl", "0"];
    let mounts = vec![cluster.mount_with("m1", &ttl_zero), cluster.mount_with("m2", &ttl_zero)];
    let local = cluster.scratch().join("local");
    std::fs::create_dir(&local).unwrap();
    // The roots themselves must agree.
    for root in mounts.iter().take(1).chain([&local]) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    compare(mounts, local, seed, ops);
}

#[test]
fn one_mount_with_warm_caches_agrees_too() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let ops = from_env("DFS_POSIX_OPS").unwrap_or(OPS);
    let seed = from_env("DFS_POSIX_SEED").unwrap_or(7);
    let cluster = Cluster::start();
    let local = cluster.scratch().join("local");
    std::fs::create_dir(&local).unwrap();
    for root in [&cluster.mount(), &local] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    compare(vec![cluster.mount()], local, seed, ops);
}
