//! Programs that open and read a file beside those that write it, or count in it under a lock: they change nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::promises::{count_under_lock, on_two_mounts};

/// Runs `beside` over and over on each path in a thread of its own, until `work` is done.
fn beside<R>(paths: &[&Path], beside: impl Fn(&Path) + Sync, work: impl FnOnce() -> R) -> R {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for path in paths {
            let (is_done, beside) = (&is_done, &beside);
            scope.spawn(move || {
                while !is_done.load(Ordering::Acquire) {
                    beside(path);
                }
            });
        }
        // Also if it panics.
        let _done = Done(&is_done);
        work()
    })
}

fn open_and_read(path: &Path) {
    let mut found = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut found, 0).unwrap();
}

/// An open's answer that was asked for before a lock was granted must not bring back what was before it.
#[test]
fn a_counter_under_flock_misses_nothing_while_others_open_the_file() {
    on_two_mounts(|a, b| {
        for (round, size) in [8, 8, 8, 8, 8, 20_000, 20_000, 20_000].into_iter().enumerate() {
            fs::create_dir(a.join(format!("{round}"))).unwrap();
            let [here, there] = [a, b].map(|root| root.join(format!("{round}/counter")));
            let mut content = vec![b'0'; 8];
            content.resize(size, b'.');
            fs::write(&here, &content).unwrap();
            beside(&[&here, &there], open_and_read, || {
                thread::scope(|scope| {
                    for path in [&here, &there, &here, &there] {
                        scope.spawn(move || {
                            let lock =
                                |file: &File| flock(file, FlockOperation::LockExclusive).unwrap();
                            let unlock = |file: &File| flock(file, FlockOperation::Unlock).unwrap();
                            count_under_lock(path.parent().unwrap(), lock, unlock);
                        });
                    }
                });
            });
            let counted = fs::read(&there).unwrap();
            assert_eq!(String::from_utf8_lossy(&counted[..8]), "00000160", "{size} bytes");
        }
    });
}

/// Pages that an open drops must not come back without what is being written.
#[test]
fn who_writes_reads_it_back_while_others_open_the_file_and_somebody_else_changes_it() {
    on_two_mounts(|a, b| {
        for size in [100, 20_000] {
            let [here, there] = [a, b].map(|root| root.join(format!("f{size}")));
            fs::write(&here, vec![b'0'; size]).unwrap();
            let touch = |path: &Path| {
                File::open(path).unwrap().set_modified(SystemTime::now()).unwrap();
                thread::sleep(Duration::from_millis(2));
            };
            let each = |path: &Path| if path == there { touch(path) } else { open_and_read(path) };
            let file = OpenOptions::new().read(true).write(true).open(&here).unwrap();
            beside(&[&here, &here, &there], each, || {
                for n in 0..10_000 {
                    let text = format!("{n:0>8}");
                    file.write_all_at(text.as_bytes(), 0).unwrap();
                    let mut found = [0; 8];
                    file.read_exact_at(&mut found, 0).unwrap();
                    assert_eq!(String::from_utf8_lossy(&found), text, "of {size} bytes");
                }
            });
            file.sync_all().unwrap();
            for path in [&here, &there] {
                assert_eq!(fs::read(path).unwrap()[..8], *b"00009999");
            }
        }
    });
}

/// Opens must not make the kernel disregard the size that another program is asking for.
#[test]
fn who_has_the_lock_finds_the_end_while_others_open_the_file() {
    const RECORDS: usize = 500;
    on_two_mounts(|a, b| {
        let [here, there] = [a, b].map(|root| root.join("log"));
        fs::write(&here, "").unwrap();
        beside(
            &[&here, &there],
            |path| drop(File::open(path).unwrap()),
            || {
                thread::scope(|scope| {
                    for (path, byte) in [(&here, b'a'), (&there, b'b')] {
                        scope.spawn(move || {
                            let mut file = OpenOptions::new().write(true).open(path).unwrap();
                            for _ in 0..RECORDS {
                                flock(&file, FlockOperation::LockExclusive).unwrap();
                                file.seek(SeekFrom::End(0)).unwrap();
                                file.write_all(&[byte; 100]).unwrap();
                                flock(&file, FlockOperation::Unlock).unwrap();
                            }
                        });
                    }
                });
            },
        );
        let log = fs::read(&there).unwrap();
        let count = |byte| log.iter().filter(|found| **found == byte).count();
        assert_eq!([count(b'a'), count(b'b'), log.len()], [100, 100, 200].map(|n| n * RECORDS));
    });
}

/// What the kernel knows of the end, and the pages it has of it, are of different moments.
#[test]
fn who_reads_a_log_that_two_mounts_append_to_sees_no_zeros() {
    const RECORDS: usize = 1_500;
    on_two_mounts(|a, b| {
        let [here, there] = [a, b].map(|root| root.join("log"));
        fs::write(&here, "").unwrap();
        let look = |path: &Path| {
            let file = File::open(path).unwrap();
            let size = file.metadata().unwrap().len();
            let from = size.saturating_sub(200);
            let mut found = vec![b'.'; usize::try_from(size - from).unwrap()];
            let _maybe_less = file.read_at(&mut found, from).unwrap();
            let zeros = found.iter().filter(|byte| **byte == 0).count();
            assert_eq!(zeros, 0, "of bytes {from} to {size} on {}", path.display());
        };
        beside(&[&here, &here, &there, &there], look, || {
            thread::scope(|scope| {
                for path in [&here, &there] {
                    scope.spawn(move || {
                        let mut file = OpenOptions::new().append(true).open(path).unwrap();
                        for n in 0..RECORDS {
                            file.write_all(format!("record {n:>40}\n").as_bytes()).unwrap();
                            thread::sleep(Duration::from_micros(500));
                        }
                    });
                }
            });
        });
    });
}

/// The kernel believes a name for a second.
#[test]
fn a_name_that_another_mount_has_given_to_another_file_can_be_linked() {
    on_two_mounts(|a, b| {
        for round in 0..5 {
            let (name, link) = (format!("f{round}"), format!("l{round}"));
            fs::write(a.join(&name), "old").unwrap();
            fs::metadata(b.join(&name)).unwrap();
            fs::write(a.join("new"), "new").unwrap();
            fs::rename(a.join("new"), a.join(&name)).unwrap();
            fs::hard_link(b.join(&name), b.join(&link)).unwrap();
            assert_eq!(fs::read(a.join(&link)).unwrap(), b"new");
            assert_eq!(fs::metadata(a.join(&name)).unwrap().nlink(), 2);
        }
        // What is gone for good is not there.
        fs::write(a.join("gone"), "").unwrap();
        fs::metadata(b.join("gone")).unwrap();
        fs::remove_file(a.join("gone")).unwrap();
        let refused = fs::hard_link(b.join("gone"), b.join("l")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
    });
}

/// As two mounts do that push to one git repository.
#[test]
fn a_name_that_another_mount_has_given_to_another_file_is_opened_as_that() {
    on_two_mounts(|a, b| {
        for round in 0..10 {
            let name = format!("f{}", round % 5);
            fs::write(a.join(&name), format!("old {round}")).unwrap();
            assert_eq!(fs::read(b.join(&name)).unwrap(), format!("old {round}").as_bytes());
            // Also if somebody has the old one open.
            let held = (round % 2 == 0).then(|| File::open(b.join(&name)).unwrap());
            fs::write(a.join("new"), format!("new {round}")).unwrap();
            fs::rename(a.join("new"), a.join(&name)).unwrap();
            assert_eq!(fs::read(b.join(&name)).unwrap(), format!("new {round}").as_bytes());
            if let Some(held) = held {
                // A file without a name is opened again through the descriptor.
                assert_eq!(held.metadata().unwrap().nlink(), 0);
                let again = fs::read(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
                assert_eq!(again, format!("old {round}").as_bytes());
            }
        }
    });
}

#[test]
fn an_open_beside_a_storm_of_renames_over_the_name_finds_one_of_the_files() {
    on_two_mounts(|a, b| {
        fs::write(a.join("f"), "0").unwrap();
        let look = |path: &Path| {
            fs::read(path).unwrap();
        };
        let [here, there] = [a, b].map(|root| root.join("f"));
        beside(&[&here, &there, &there], look, || {
            for n in 0..500 {
                fs::write(a.join("new"), n.to_string()).unwrap();
                fs::rename(a.join("new"), &here).unwrap();
            }
        });
    });
}
