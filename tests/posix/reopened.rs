//! Files that are opened again and again: locks of the last open, and sizes that the kernel remembers.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::promises::on_two_mounts;

/// The kernel gives the lock owner of a file that was closed to the next one that is opened.
#[test]
fn a_lock_that_follows_a_close_at_once_ends_with_its_own_file() {
    on_two_mounts(|a, b| {
        let path = a.join("f");
        fs::write(&path, b"").unwrap();
        for round in 0..1500 {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            flock(&file, FlockOperation::LockExclusive)
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            writeln!(file, "{round}").unwrap();
        }
        // Whoever asks on the other mount does not wait for any that is left.
        let there = File::open(b.join("f")).unwrap();
        tests::wait_until("the last lock is given back", || {
            flock(&there, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        assert_eq!(fs::read_to_string(b.join("f")).unwrap().lines().count(), 1500);
    });
}

/// One read of so much, as programs do that do not ask for the size before.
fn read_once(path: &Path, len: usize) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; len];
    let read = file.read(&mut buffer).unwrap();
    buffer.truncate(read);
    buffer
}

#[test]
fn a_file_that_became_shorter_on_one_mount_ends_there_on_the_other() {
    on_two_mounts(|a, b| {
        let (here, there) = (a.join("f"), b.join("f"));
        for round in 0..20_u8 {
            let long = vec![round | 1; 3 << 20];
            fs::write(&here, &long).unwrap();
            // Its size is known there now, and the pages.
            assert!(fs::read(&there).unwrap() == long, "round {round}");
            let short = vec![100 + round; 100_000];
            if round % 2 == 0 {
                fs::write(&here, &short).unwrap();
            } else {
                let file = OpenOptions::new().write(true).open(&here).unwrap();
                file.set_len(short.len() as u64).unwrap();
                file.write_all_at(&short, 0).unwrap();
                file.sync_all().unwrap();
            }
            let found = read_once(&there, 1 << 20);
            assert_eq!(found.len(), short.len(), "round {round}");
            assert!(found == short, "round {round}");
            assert!(fs::read(&there).unwrap() == short, "round {round}, with its size");
        }
    });
}
