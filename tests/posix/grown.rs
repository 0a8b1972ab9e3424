//! Files that are made longer, or punched, on one mount while another appends: nothing that was stored is cut or freed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use tests::{Cluster, no_fuse, skipped};

use crate::promises::on_two_mounts;

const RECORD_BYTES: usize = 100;

fn record(number: u32) -> Vec<u8> {
    format!("{number:>99}\n").into_bytes()
}

/// Appends so many records to `path`, each stable.
fn append(path: &Path, records: u32) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    for number in 0..records {
        file.write_all(&record(number)).unwrap();
        file.sync_data().unwrap();
    }
}

/// Those of so many records that are not there exactly once.
fn missing(path: &Path, records: u32) -> Vec<u32> {
    let content = std::fs::read(path).unwrap();
    let times = |number: &u32| {
        let record = record(*number);
        content.windows(RECORD_BYTES).filter(|found| *found == record).count()
    };
    (0..records).filter(|number| times(number) != 1).collect()
}

#[test]
fn growing_a_file_cuts_nothing_that_another_mount_appends() {
    on_two_mounts(|a, b| {
        for (len, records) in [(10, 150), (20_000, 80)] {
            let name = format!("grown-{len}");
            std::fs::write(a.join(&name), vec![b'#'; len]).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    append(&b.join(&name), records);
                    done.store(true, Ordering::Release);
                });
                let file = OpenOptions::new().write(true).open(a.join(&name)).unwrap();
                while !done.load(Ordering::Acquire) {
                    let size = file.metadata().unwrap().size();
                    fallocate(&file, FallocateFlags::empty(), 0, size + 50).unwrap();
                    assert!(size + 50 <= file.metadata().unwrap().size());
                }
            });
            assert_eq!(missing(&a.join(&name), records), [0; 0], "of {records} behind {len} bytes");
        }
    });
}

#[test]
fn a_punch_that_ends_with_the_file_leaves_what_another_mount_appends() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount(), cluster.mount_again("second"));
    for (chunk_size, len) in [("4KiB", 400_000), ("64KiB", 1_000_000)] {
        let dir = format!("d{chunk_size}");
        cluster.dfs(["mkdir", "--chunk-size", chunk_size, &format!("/{dir}")]);
        for round in 0..8 {
            let name = format!("{dir}/f{round}");
            std::fs::write(b.join(&name), vec![b'#'; len]).unwrap();
            let file = OpenOptions::new().write(true).open(a.join(&name)).unwrap();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            std::thread::scope(|scope| {
                scope.spawn(|| fallocate(&file, flags, 0, len as u64).unwrap());
                append(&b.join(&name), 30);
            });
            let path = a.join(&name);
            assert_eq!(missing(&path, 30), [0; 0], "{chunk_size}, round {round}");
            let mut head = vec![1; len];
            File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
            assert!(head.iter().all(|byte| *byte == 0), "{chunk_size}, round {round}: not punched");
        }
    }
}

#[test]
fn a_punch_over_everything_leaves_the_size_for_others_to_see() {
    on_two_mounts(|a, b| {
        for (round, len) in [5_000, 80_000, 1_500_000].into_iter().enumerate() {
            let name = format!("f{round}");
            let file = File::create(a.join(&name)).unwrap();
            file.write_all_at(&vec![7; len], 0).unwrap();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, flags, 0, 80 << 20).unwrap();
            assert_eq!(b.join(&name).metadata().unwrap().size(), len as u64);
            let mut other = OpenOptions::new().append(true).open(b.join(&name)).unwrap();
            other.write_all(b"behind").unwrap();
            other.sync_all().unwrap();
            let content = std::fs::read(a.join(&name)).unwrap();
            assert_eq!((content.len(), &content[len..]), (len + 6, &b"behind"[..]));
        }
    });
}
