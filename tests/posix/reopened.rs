//! Files that are opened again and again: locks of the last open, and sizes that the kernel remembers.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Does `until`, and the other thing beside it.
fn beside(again_and_again: impl Fn() + Sync, until: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                again_and_again();
            }
        });
        let _over = Over(&over);
        until();
    });
}

/// The kernel drops old pages when it has the answer to an open: another one that is asked for until then must not keep
/// them.
#[test]
fn an_open_beside_another_sees_what_was_closed_before() {
    on_two_mounts(|a, b| {
        for (len, rounds) in [(200_000, 1000_usize), (2_000_000, 200)] {
            let name = len.to_string();
            let (here, there) = (a.join(&name), b.join(&name));
            fs::write(&here, vec![b'-'; len]).unwrap();
            let read_it = || drop(fs::read(&there).unwrap());
            beside(read_it, || {
                for round in 0..rounds {
                    let content = vec![b"abcdefgh"[round % 8]; len];
                    let file = OpenOptions::new().write(true).open(&here).unwrap();
                    file.write_all_at(&content, 0).unwrap();
                    file.sync_all().unwrap();
                    drop(file);
                    let found = fs::read(&there).unwrap();
                    let old = found.iter().filter(|byte| **byte != content[0]).count();
                    assert!(
                        found.len() == len && old == 0,
                        "{len}: round {round}: {old} old bytes"
                    );
                }
            });
        }
    });
}

/// Nobody read it there before: no byte of it is in that mount's caches, only its size.
#[test]
fn a_file_that_was_cut_elsewhere_has_no_zeros_behind_its_end() {
    on_two_mounts(|a, b| {
        for len in [5_000, 200_000, 3_000_000] {
            let name = len.to_string();
            let (here, there) = (a.join(&name), b.join(&name));
            for rewritten in [0, 1000] {
                fs::write(&here, vec![b'a'; len]).unwrap();
                let open = File::open(&there).unwrap();
                assert_eq!(open.metadata().unwrap().len(), len as u64);
                fs::write(&here, vec![b'b'; rewritten]).unwrap();
                let mut found = vec![0xff; len];
                let read = open.read_at(&mut found, 0).unwrap();
                assert!(read == rewritten, "{read} of {rewritten} bytes, {len} before");
                assert!(found[..read].iter().all(|byte| *byte == b'b'), "{len}");
            }
        }
    });
}

/// Every state of it is of one letter, or nothing.
#[test]
fn a_file_that_is_written_anew_elsewhere_shows_no_zeros() {
    on_two_mounts(|a, b| {
        for (len, rounds) in [(200_000, 4000), (2_000_000, 2000)] {
            let name = len.to_string();
            let (here, there) = (a.join(&name), b.join(&name));
            fs::write(&here, vec![b'a'; len]).unwrap();
            beside(
                || fs::write(&here, vec![b'a'; len]).unwrap(),
                || {
                    for round in 0..rounds {
                        let found = read_once(&there, len);
                        let zeros = found.iter().filter(|byte| **byte == 0).count();
                        assert!(zeros == 0, "{len}: round {round}: {zeros} of {}", found.len());
                    }
                },
            );
        }
    });
}
