//! What `docs/semantics.md` promises between two mounts of one cluster, and on one where a suite does not look.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, XattrFlags, fallocate, fcntl_lock, flock};
use rustix::io::Errno;
use tests::{Cluster, no_fuse, skipped, wait_until};

/// Two mounts with their usual lifetimes, in one directory per test.
pub(crate) fn on_two_mounts(test: impl FnOnce(&Path, &Path)) {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    let second = cluster.mount_again("second");
    test(&cluster.mount(), &second);
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_closed_on_one_mount_is_read_by_an_open_on_the_other() {
    on_two_mounts(|a, b| {
        let (here, there) = (a.join("f"), b.join("f"));
        for round in 0..20_usize {
            let content = vec![u8::try_from(round).unwrap(); 3 + round * 40_000];
            write(&here, &content);
            assert!(fs::read(&there).unwrap() == content, "round {round}");
            // The same length again: only the change number tells.
            let other = vec![200; content.len()];
            let file = OpenOptions::new().write(true).open(&there).unwrap();
            file.write_all_at(&other, 0).unwrap();
            drop(file);
            assert!(fs::read(&here).unwrap() == other, "round {round}, back");
        }
    });
}

#[test]
fn fdatasync_leaves_the_time_to_a_moment_later() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    let there = cluster.mount_again("second").join("f");
    let here = cluster.mount().join("f");
    write(&here, &vec![1; 1 << 20]);
    let file = OpenOptions::new().write(true).open(&here).unwrap();
    file.write_all_at(&[2; 4096], 0).unwrap();
    file.sync_data().unwrap();
    let logged = || cluster.dfs_json(["status"])["logIndex"].as_u64().unwrap();
    let (before, begun) = (logged(), Instant::now());
    let mut syncs = 0;
    while syncs < 100 {
        file.write_all_at(&[3; 4096], syncs * 4096).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    // One a second, and what else a master logs of itself.
    let entries = logged() - before;
    let seconds = begun.elapsed().as_secs() + 1;
    assert!(entries < 10 + 5 * seconds, "{entries} in {seconds} s");
    assert!(20 < seconds || entries < syncs, "{entries} of {syncs} in {seconds} s");
    // Open still, and nobody writes: the time is told all the same.
    let told = fs::metadata(&there).unwrap().modified().unwrap();
    file.write_all_at(&[4; 4096], 0).unwrap();
    file.sync_data().unwrap();
    wait_until("the other mount sees a later time", || {
        told < fs::metadata(&there).unwrap().modified().unwrap()
    });
    // With its metadata: at once.
    let told = fs::metadata(&there).unwrap().modified().unwrap();
    thread::sleep(Duration::from_millis(1100));
    file.write_all_at(&[5; 4096], 0).unwrap();
    file.sync_all().unwrap();
    thread::sleep(Duration::from_millis(1100));
    assert!(told < fs::metadata(&there).unwrap().modified().unwrap());
    assert!(fs::read(&there).unwrap()[..4096] == [5; 4096]);
}

#[test]
fn records_appended_by_two_mounts_are_all_there_and_whole() {
    on_two_mounts(|a, b| {
        const RECORDS: usize = 150;
        const LEN: usize = 700;
        write(&a.join("log"), b"");
        thread::scope(|scope| {
            for (writer, root) in [a, b, a, b].into_iter().enumerate() {
                scope.spawn(move || {
                    let mut log = OpenOptions::new().append(true).open(root.join("log")).unwrap();
                    for n in 0..RECORDS {
                        let mut record = format!("{writer} {n} ").into_bytes();
                        record.resize(LEN - 1, b'.');
                        record.push(b'\n');
                        log.write_all(&record).unwrap();
                    }
                });
            }
        });
        let log = fs::read(b.join("log")).unwrap();
        assert_eq!(log.len(), 4 * RECORDS * LEN);
        let mut next = [0_usize; 4];
        for record in log.chunks(LEN) {
            let text = std::str::from_utf8(record).unwrap();
            let mut words = text.split(' ');
            let mut number = || words.next().unwrap().parse::<usize>().unwrap();
            let (writer, n) = (number(), number());
            assert_eq!(n, next[writer], "records of one writer are in order");
            next[writer] += 1;
        }
        assert_eq!(next, [RECORDS; 4]);
    });
}

/// What one mount wrote and did not commit is gone with the cut of another: its commit must not bring the size back.
#[test]
fn a_commit_after_the_other_mounts_truncate_brings_no_size_back() {
    const MIB: u64 = 1 << 20;
    on_two_mounts(|a, b| {
        for (name, cut) in [("nothing", 0), ("a-part", MIB), ("longer", 8 * MIB)] {
            let there = b.join(name);
            let mut file = File::create(a.join(name)).unwrap();
            file.write_all(&[b'w'; 3 << 20]).unwrap();
            // At the servers, and not logged: nobody synced or closed.
            wait_until("the other mount sees the bytes", || {
                fs::metadata(&there).is_ok_and(|meta| meta.len() == 3 * MIB)
            });
            OpenOptions::new().write(true).open(&there).unwrap().set_len(cut).unwrap();
            file.sync_all().unwrap();
            let left = usize::try_from(cut.min(3 * MIB)).unwrap();
            let mut expected = vec![b'w'; left];
            expected.resize(usize::try_from(cut).unwrap(), 0);
            assert!(fs::read(&there).unwrap() == expected, "{name}: on the other mount");
            assert_eq!(file.metadata().unwrap().len(), cut, "{name}");

            // What is written after the cut counts.
            file.write_all_at(b"after", 10 * MIB).unwrap();
            file.sync_all().unwrap();
            expected.resize(10 << 20, 0);
            expected.extend(b"after");
            assert!(fs::read(&there).unwrap() == expected, "{name}: after the cut");
            drop(file);
            assert!(fs::read(a.join(name)).unwrap() == expected, "{name}: on the first mount");
        }
    });
}

/// Found by the comparison (seed 101): the appending mount still believed the size of a moment ago.
#[test]
fn an_append_goes_behind_what_the_other_mount_made_longer() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), &vec![b'-'; 10_000]);
        let mut log = OpenOptions::new().append(true).open(b.join("f")).unwrap();
        log.write_all(b"first").unwrap();
        // What nobody synced or closed may go behind the other mount's change, too.
        log.sync_all().unwrap();
        let here = OpenOptions::new().write(true).open(a.join("f")).unwrap();
        for size in [65_536, 3_000_000, 200_000_000] {
            here.set_len(size).unwrap();
            log.write_all(b"next").unwrap();
            log.sync_all().unwrap();
            assert_eq!(fs::metadata(b.join("f")).unwrap().len(), size + 4);
            let mut end = [0; 4];
            File::open(a.join("f")).unwrap().read_exact_at(&mut end, size).unwrap();
            assert_eq!(&end, b"next", "at {size}");
        }
    });
}

#[test]
fn what_was_appended_is_seen_at_once_on_its_mount() {
    on_two_mounts(|a, b| {
        let path = a.join("log");
        let mut log = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let mut expected = Vec::new();
        for n in 0..200_usize {
            let record = vec![u8::try_from(n).unwrap(); 1 + n * 37];
            log.write_all(&record).unwrap();
            expected.extend_from_slice(&record);
            match n % 5 {
                0 => assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64),
                1 => assert_eq!(log.seek(SeekFrom::End(0)).unwrap(), expected.len() as u64),
                2 => assert!(fs::read(&path).unwrap() == expected, "after record {n}"),
                3 => {
                    let mut end = vec![0; record.len()];
                    let at = (expected.len() - record.len()) as u64;
                    reader.read_exact_at(&mut end, at).unwrap();
                    assert!(end == record, "record {n}");
                }
                _ => {}
            }
        }
        let listed = fs::read_dir(a).unwrap().map(|entry| entry.unwrap());
        let sizes: Vec<u64> = listed.map(|entry| entry.metadata().unwrap().len()).collect();
        assert_eq!(sizes, [expected.len() as u64]);
        log.sync_all().unwrap();
        assert!(fs::read(b.join("log")).unwrap() == expected);
        // Positional writes go behind what was appended before them, appends behind what was written.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        log.write_all(b"appended").unwrap();
        file.write_all_at(b"written", expected.len() as u64 + 1).unwrap();
        log.write_all(b"end").unwrap();
        expected.extend_from_slice(b"awrittenend");
        assert!(fs::read(&path).unwrap() == expected);
        log.write_all(b"cut").unwrap();
        file.set_len(5).unwrap();
        log.write_all(b"last").unwrap();
        drop(log);
        expected.truncate(5);
        expected.extend_from_slice(b"last");
        assert!(fs::read(b.join("log")).unwrap() == expected);
    });
}

pub(crate) fn count_under_lock(root: &Path, lock: impl Fn(&File), unlock: impl Fn(&File)) {
    let path = root.join("counter");
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    for _ in 0..40 {
        lock(&file);
        let mut digits = [0; 8];
        file.read_exact_at(&mut digits, 0).unwrap();
        let count: u64 = std::str::from_utf8(&digits).unwrap().parse().unwrap();
        file.write_all_at(format!("{:08}", count + 1).as_bytes(), 0).unwrap();
        unlock(&file);
    }
}

#[test]
fn a_counter_under_flock_misses_nothing() {
    on_two_mounts(|a, b| {
        write(&a.join("counter"), b"00000000");
        thread::scope(|scope| {
            for root in [a, b, a, b] {
                scope.spawn(move || {
                    let lock = |file: &File| flock(file, FlockOperation::LockExclusive).unwrap();
                    let unlock = |file: &File| flock(file, FlockOperation::Unlock).unwrap();
                    count_under_lock(root, lock, unlock);
                });
            }
        });
        assert_eq!(fs::read(b.join("counter")).unwrap(), b"00000160");
    });
}

/// `fcntl(2)` locks belong to processes: this test runs itself once more for each mount.
#[test]
fn a_counter_under_fcntl_misses_nothing() {
    if let Some(root) = std::env::var_os("DFS_TEST_COUNT_BELOW") {
        let lock = |file: &File| fcntl_lock(file, FlockOperation::LockExclusive).unwrap();
        let unlock = |file: &File| fcntl_lock(file, FlockOperation::Unlock).unwrap();
        return count_under_lock(Path::new(&root), lock, unlock);
    }
    on_two_mounts(|a, b| {
        write(&a.join("counter"), b"00000000");
        let children: Vec<_> = [a, b, a, b]
            .into_iter()
            .map(|root| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "promises::a_counter_under_fcntl_misses_nothing"])
                    .env("DFS_TEST_COUNT_BELOW", root)
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(fs::read(b.join("counter")).unwrap(), b"00000160");
    });
}

#[test]
fn a_lock_held_on_one_mount_is_refused_on_the_other_until_it_is_closed() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), b"x");
        let here = File::open(a.join("f")).unwrap();
        let there = File::open(b.join("f")).unwrap();
        flock(&here, FlockOperation::NonBlockingLockExclusive).unwrap();
        let refused = flock(&there, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(Errno::WOULDBLOCK));
        let waiting = thread::spawn(move || {
            let since = Instant::now();
            flock(&there, FlockOperation::LockExclusive).unwrap();
            since.elapsed()
        });
        thread::sleep(Duration::from_millis(300));
        drop(here);
        let waited = waiting.join().unwrap();
        assert!(
            Duration::from_millis(250) < waited && waited < Duration::from_secs(10),
            "{waited:?}"
        );
    });
}

/// The kernel gives the lock back by RELEASE, for which `close(2)` does not wait.
#[test]
fn a_file_whose_last_descriptor_was_closed_has_no_lock_on_its_mount() {
    on_two_mounts(|a, _| {
        write(&a.join("f"), b"x");
        let second = File::open(a.join("f")).unwrap();
        let lock = || flock(&second, FlockOperation::NonBlockingLockExclusive);
        for round in 0..400 {
            let first = File::open(a.join("f")).unwrap();
            flock(&first, FlockOperation::LockExclusive).unwrap();
            let twin = (round % 40 == 0).then(|| first.try_clone().unwrap());
            drop(first);
            if twin.is_some() {
                assert_eq!(lock(), Err(Errno::WOULDBLOCK), "another descriptor is open: {round}");
            }
            drop(twin);
            lock().unwrap_or_else(|error| panic!("round {round}: {error}"));
            flock(&second, FlockOperation::Unlock).unwrap();
        }
    });
}

#[test]
fn a_crowd_that_waits_for_a_lock_does_not_stop_the_mount() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), b"x");
        write(&b.join("other"), b"y");
        let holder = File::open(a.join("f")).unwrap();
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        let waiting: Vec<_> = (0..30)
            .map(|_| {
                let file = File::open(b.join("f")).unwrap();
                thread::spawn(move || flock(&file, FlockOperation::LockExclusive).unwrap())
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        // Before any of them has what it waits for.
        assert_eq!(fs::read(b.join("other")).unwrap(), b"y");
        drop(holder);
        for waiter in waiting {
            waiter.join().unwrap();
        }
    });
}

/// More answers than the master keeps for one client, all younger than a request that waits.
#[test]
fn one_that_waits_has_no_other_request_of_its_mount_refused() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), b"x");
        let holder = File::open(a.join("f")).unwrap();
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        let waits = File::open(b.join("f")).unwrap();
        let waiter = thread::spawn(move || flock(&waits, FlockOperation::LockExclusive).unwrap());
        let makers: Vec<_> = (0..6)
            .map(|maker| {
                let (name, b) = (format!("by-{maker}"), b.to_owned());
                thread::spawn(move || {
                    for n in 0..500 {
                        let file = File::create(b.join(format!("{name}-{n}"))).unwrap();
                        flock(&file, FlockOperation::LockExclusive).unwrap();
                    }
                })
            })
            .collect();
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        // The locks went with their descriptors.
        for name in ["by-0-0", "by-5-499"] {
            let file = File::open(a.join(name)).unwrap();
            wait_until("it is free", || {
                flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            });
        }
        assert!(!waiter.is_finished());
        drop(holder);
        waiter.join().unwrap();
    });
}

#[test]
fn a_truncate_on_the_other_mount_leaves_no_hole_before_what_is_appended() {
    const RECORD: [u8; 1000] = [b'r'; 1000];
    on_two_mounts(|a, b| {
        write(&a.join("f"), &RECORD.repeat(8));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for pause in [Duration::ZERO, Duration::from_millis(3)] {
                let (path, done) = (a.join("f"), &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                        for _ in 0..5 {
                            file.write_all(&RECORD).unwrap();
                            thread::sleep(pause);
                        }
                    }
                });
            }
            let path = b.join("f");
            for n in 0..60_u64 {
                thread::sleep(Duration::from_millis(n * 7 % 60));
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(0).unwrap();
            }
            thread::sleep(Duration::from_millis(100));
            done.store(true, Ordering::Relaxed);
        });
        let content = fs::read(b.join("f")).unwrap();
        let hole = content.iter().position(|byte| *byte != b'r');
        assert_eq!((hole, content.len() % RECORD.len()), (None, 0), "of {}", content.len());
    });
}

#[test]
fn a_file_unlinked_on_the_other_mount_lives_until_it_is_closed() {
    on_two_mounts(|a, b| {
        let content = vec![7; 300_000];
        write(&a.join("f"), &content);
        let mut open = OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
        fs::remove_file(b.join("f")).unwrap();
        wait_until("the name is gone here too", || !a.join("f").exists());
        let mut read = Vec::new();
        open.read_to_end(&mut read).unwrap();
        assert!(read == content);
        open.write_all_at(b"still here", 0).unwrap();
        open.sync_all().unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        let mut head = [0; 10];
        open.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(&head, b"still here");
    });
}

/// Tells others to stop, also if its owner fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_name_can_be_opened_while_another_file_is_renamed_over_it() {
    on_two_mounts(|a, b| {
        let inodes = || {
            let found = rustix::fs::statvfs(a).unwrap();
            found.f_files - found.f_ffree
        };
        let before = inodes();
        write(&a.join("gone"), b"x");
        fs::remove_file(a.join("gone")).unwrap();
        wait_until("the master frees what has no name", || inodes() == before);
        let content = |n: usize| format!("{n} ").repeat(if n.is_multiple_of(4) { 2000 } else { 5 });
        write(&a.join("f"), content(1).as_bytes());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for path in [a.join("f"), b.join("f"), b.join("f")] {
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let found = fs::read_to_string(&path).unwrap();
                        let n = found.split(' ').next().unwrap().parse().unwrap();
                        assert!(found == content(n), "of version {n}: {} bytes", found.len());
                    }
                });
            }
            let _stops = Stops(&done);
            for n in 2..400 {
                write(&a.join("new"), content(n).as_bytes());
                fs::rename(a.join("new"), a.join("f")).unwrap();
            }
        });
        // What was replaced does not stay for ever.
        wait_until("the replaced are freed", || inodes() == before + 1);
    });
}

#[test]
fn a_rename_over_an_open_file_leaves_its_reader_the_old_content() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), b"old");
        let mut reader = File::open(a.join("f")).unwrap();
        write(&b.join("new"), b"new content");
        fs::rename(b.join("new"), b.join("f")).unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "old");
        wait_until("the new one is seen", || fs::read(a.join("f")).unwrap() == b"new content");
    });
}

#[test]
fn a_write_by_an_ordinary_user_takes_setuid_and_setgid_away() {
    on_two_mounts(|a, b| {
        if !rustix::process::geteuid().is_root() {
            return skipped("changing the user takes root");
        }
        for dir in a.ancestors().take(3) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, script) in [
            ("written", "printf x >> "),
            ("cut", "truncate -s 1 "),
            ("emptied", ": > "),
            ("overwritten", "dd status=none conv=notrunc if=/dev/zero bs=10 count=1 of="),
        ] {
            let path = a.join(name);
            write(&path, b"some content");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("{script}{}", path.display())).uid(65_534).gid(65_534);
            let output = tests::run(&mut shell, Duration::from_secs(20));
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o777, "{name}");
            assert_eq!(b.join(name).metadata().unwrap().mode() & 0o7777, 0o777, "{name}, there");
        }
    });
}

#[test]
fn a_large_directory_is_listed_once_and_completely() {
    on_two_mounts(|a, b| {
        const ENTRIES: usize = 3_000;
        let dir = a.join("large");
        fs::create_dir(&dir).unwrap();
        thread::scope(|scope| {
            for part in 0..4 {
                let dir = &dir;
                scope.spawn(move || {
                    for n in (part..ENTRIES).step_by(4) {
                        rustix::fs::symlink("x", dir.join(format!("{n:05}"))).unwrap();
                    }
                });
            }
        });
        let mut names: Vec<String> = fs::read_dir(b.join("large"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        let expected: Vec<String> = (0..ENTRIES).map(|n| format!("{n:05}")).collect();
        assert_eq!(names, expected);
        // Removing while listing: each name that stays is seen once.
        let listing = fs::read_dir(&dir).unwrap();
        let mut removed = 0;
        for entry in listing {
            let path = entry.unwrap().path();
            match fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        assert_eq!(removed, ENTRIES);
        fs::remove_dir(&dir).unwrap();
        assert!(
            !b.join("large").exists() || {
                thread::sleep(Duration::from_secs(2));
                !b.join("large").exists()
            }
        );
    });
}

#[test]
fn holes_are_found_and_read_as_zeros() {
    on_two_mounts(|a, _| {
        const MIB: u64 = 1 << 20;
        let mut file =
            File::options().read(true).write(true).create_new(true).open(a.join("sparse")).unwrap();
        // Far apart, so that whole chunks are missing between.
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", 1024 * MIB).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1024 * MIB + 3);
        assert!(file.metadata().unwrap().blocks() < 1024 * MIB / 512, "blocks show the hole");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)).unwrap();
        assert!(5 <= hole && hole < data && data <= 1024 * MIB, "{hole} {data}");
        let beyond = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(2048 * MIB));
        assert_eq!(beyond, Err(Errno::NXIO));
        let mut middle = vec![1; 100_000];
        file.read_exact_at(&mut middle, 512 * MIB).unwrap();
        assert!(middle.iter().all(|byte| *byte == 0));
        let collapse = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 65_536);
        assert_eq!(collapse, Err(Errno::OPNOTSUPP));
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut begin = [0; 5];
        file.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"begin");
    });
}

#[test]
fn the_size_of_an_attribute_can_be_asked_and_too_small_a_buffer_is_refused() {
    on_two_mounts(|a, b| {
        let path = a.join("f");
        write(&path, b"");
        rustix::fs::setxattr(&path, "user.name", &[1; 300], XattrFlags::empty()).unwrap();
        let there = b.join("f");
        assert_eq!(rustix::fs::getxattr_query(&there, "user.name"), Ok(300));
        assert_eq!(rustix::fs::getxattr(&there, "user.name", &mut [0; 299]), Err(Errno::RANGE));
        assert_eq!(rustix::fs::getxattr(&there, "user.name", &mut [0; 300]), Ok(300));
        assert_eq!(rustix::fs::getxattr(&there, "user.none", &mut [0; 9]), Err(Errno::NODATA));
    });
}

/// `posix_acl_xattr.h`: version 2, then entries of tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_default_acl_is_inherited_and_takes_the_place_of_the_umask() {
    on_two_mounts(|a, b| {
        const NOBODY: u32 = u32::MAX;
        let (user_obj, user, group_obj, mask, other) = (1, 2, 4, 16, 32);
        let default = acl(&[
            (user_obj, 7, NOBODY),
            (user, 6, 1),
            (group_obj, 5, NOBODY),
            (mask, 7, NOBODY),
            (other, 0, NOBODY),
        ]);
        let dir = a.join("shared");
        fs::create_dir(&dir).unwrap();
        let set = |name| rustix::fs::setxattr(&dir, name, &default, XattrFlags::empty());
        set("system.posix_acl_default").unwrap();
        write(&dir.join("f"), b"x");
        let there = b.join("shared/f");
        // 0666 asked for: the mask becomes rw-, others get what the ACL gives.
        assert_eq!(there.metadata().unwrap().mode() & 0o777, 0o660);
        let mut held = vec![0; 200];
        let len =
            rustix::fs::getxattr(&there, "system.posix_acl_access", held.as_mut_slice()).unwrap();
        let expected = acl(&[
            (user_obj, 6, NOBODY),
            (user, 6, 1),
            (group_obj, 5, NOBODY),
            (mask, 6, NOBODY),
            (other, 0, NOBODY),
        ]);
        assert_eq!(&held[..len], expected);
        let broken =
            rustix::fs::setxattr(&dir, "system.posix_acl_access", &[1, 2, 3], XattrFlags::empty());
        assert_eq!(broken, Err(Errno::INVAL));
    });
}

#[test]
fn shared_maps_of_one_mount_see_each_other_and_reach_the_other_mount() {
    on_two_mounts(|a, b| {
        // fsx tries maps at length; here: that what a map wrote is on the servers after msync and close.
        let path = a.join("map");
        write(&path, &vec![b'-'; 200_000]);
        let script = "import mmap,sys\n\
            f=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[150000:150005]=b'mapped'[:5]\n\
            m.flush()\nm.close()\nf.close()\n";
        if Command::new("python3").arg("--version").output().is_err() {
            return skipped("no python3 to map a file with");
        }
        let mut python = Command::new("python3");
        python.arg("-c").arg(script).arg(&path);
        let output = tests::run(&mut python, Duration::from_secs(20));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let there = fs::read(b.join("map")).unwrap();
        assert_eq!(&there[149_998..150_007], b"--mappe--");
    });
}

/// Pages stay over an open only if nobody else changed the file: with the chunkservers frozen, nothing else answers.
#[test]
fn what_this_mount_wrote_or_read_is_read_again_from_memory() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    // Without this a test that fails takes five minutes.
    let impatient = ["--server-wait", "5s"];
    let here = cluster.mount_with("first", &impatient).join("f");
    let there = cluster.mount_with("second", &impatient).join("f");
    // Whole pages: Linux reads the last one again if it was not written as a whole.
    let content: Vec<u8> = (0..1_000 * 4_096_u32).map(|n| (n / 3 % 251).to_le_bytes()[0]).collect();
    write(&here, &content);
    let mut file = OpenOptions::new().write(true).open(&here).unwrap();
    file.write_all(b"once more").unwrap();
    drop(file);
    let mut expected = content;
    expected[..9].copy_from_slice(b"once more");
    assert!(fs::read(&there).unwrap() == expected, "and now it is in the other one's memory");
    let pids: Vec<u32> = (1..=3).map(|n| cluster.pid(&format!("cs-{n}")).unwrap()).collect();
    for pid in &pids {
        tests::signal(*pid, rustix::process::Signal::STOP);
    }
    // Nobody else could answer.
    let again = [&here, &there].map(|path| fs::read(path).unwrap());
    for pid in &pids {
        tests::signal(*pid, rustix::process::Signal::CONT);
    }
    assert!(again[0] == expected && again[1] == expected);
}

#[test]
fn times_at_the_ends_of_what_the_kernel_sends_do_no_harm() {
    on_two_mounts(|a, b| {
        write(&a.join("f"), b"x");
        for (sec, nsec) in
            [(i64::MIN, 1), (i64::MIN + 1, 999_999_999), (i64::MAX, 999_999_999), (-1, 999_999_999)]
        {
            let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(
                rustix::fs::CWD,
                a.join("f"),
                &times,
                rustix::fs::AtFlags::empty(),
            )
            .unwrap();
        }
        wait_until("the last one is seen", || {
            let metadata = b.join("f").metadata().unwrap();
            (metadata.mtime(), metadata.mtime_nsec()) == (-1, 999_999_999)
        });
    });
}

#[test]
fn trusted_attributes_are_listed_to_administrators_only() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root may set a trusted attribute");
    }
    on_two_mounts(|a, _| names_of_attributes(&File::create(a.join("f")).unwrap()));
}

fn names_of_attributes(file: &File) {
    rustix::fs::fsetxattr(file, "user.seen", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::fsetxattr(file, "trusted.hidden", b"1", XattrFlags::empty()).unwrap();
    let names = || {
        let mut list = vec![0_u8; 4096];
        let length = rustix::fs::flistxattr(file, list.as_mut_slice()).unwrap();
        list.truncate(length);
        let mut names: Vec<_> = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["trusted.hidden", "user.seen"]);
    // A thread that gives up root loses its capabilities; the others keep theirs.
    let seen = thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
                names()
            })
            .join()
            .unwrap()
    });
    assert_eq!(seen, ["user.seen"]);
}

#[test]
fn unmounting_from_outside_ends_the_process_and_keeps_what_was_written() {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    let content = CONTENT
        .get_or_init(|| (0..3_000_000_u32).map(|n| (n / 3 % 251).to_le_bytes()[0]).collect());
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    let second = cluster.mount_again("second");
    let mut file = File::create(second.join("f")).unwrap();
    file.write_all(content).unwrap();
    drop(file);
    let mut umount = Command::new("umount");
    umount.arg(&second);
    let output = tests::run(&mut umount, Duration::from_secs(60));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(&fs::read(cluster.mount().join("f")).unwrap() == content);
    cluster.wait_for_mounts_to_end();
}
