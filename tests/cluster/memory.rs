//! What a mount takes for many files at once.

use std::fs::{File, OpenOptions};
use std::io::Write as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::{Cluster, Options, wait_until};

use crate::need_fuse;
use crate::pages::{address, get, value};

const FILES: usize = 800;
const RECORD: usize = 10_000;
/// What lives on, and twice what is not worth giving back.
const IDLE_KIB_MAX: u64 = 40 << 10;

/// A number of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn many_files_that_are_appended_to_have_a_bounded_number_of_threads_and_bytes() {
    need_fuse!();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let cluster = Cluster::start_with(Options { capacity: Some("2GiB"), ..Options::default() });
    cluster.dfs(["mkdir", "--chunk-size", "256KiB", "/d"]);
    let dir = cluster.mount().join("d");
    let open = |n| OpenOptions::new().append(true).create(true).open(dir.join(format!("{n}")));
    let mut files: Vec<File> = (0..FILES).map(|n| open(n).unwrap()).collect();
    let mount = cluster.pid("mount").unwrap();
    let mut threads = 0;
    for round in 0..4_u8 {
        for file in &mut files {
            file.write_all(&[b'a' + round; RECORD]).unwrap();
        }
        threads = threads.max(status(mount, "Threads"));
    }
    files.iter().for_each(|file| file.sync_all().unwrap());
    assert!(threads < 200, "{threads} threads");
    let resident_kib = status(mount, "VmHWM");
    assert!(resident_kib < 256 << 10, "{resident_kib} KiB");
    drop(files);
    let page = || get(&address(&cluster, "mount"), "/metrics").1;
    let given_back = || 0.0 < value(&page(), "dfs_mount_memory_given_back_total");
    wait_until("memory was given back", || given_back() || !cfg!(target_env = "gnu"));
    // How much a burst leaves depends on the machine: the bound holds for all of it.
    wait_until("what is free goes back to the kernel", || status(mount, "RssAnon") < IDLE_KIB_MAX);
    let expected: Vec<u8> = (0..4).flat_map(|round| [b'a' + round; RECORD]).collect();
    for n in [0, FILES / 2, FILES - 1] {
        assert!(std::fs::read(dir.join(n.to_string())).unwrap() == expected, "file {n}");
    }
}
