//! SIGKILL of the master, of chunkservers, of the mount and of everything at once, at random moments under load.
//!
//! The checker lives outside of the cluster: a worker notes an operation as acknowledged when its call returned, and
//! at the end every acknowledged `fsync`, append, rename and unlink must be there exactly once; what was not
//! acknowledged may be there once or not at all. Two workers change bytes that are there already, in chunks of 16 and
//! of 128 KiB (`rewrite`, `ranges`). `DFS_CRASH_KILLS` (default 8 a test) and `DFS_CRASH_SEED` are settings; the seed
//! is printed.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod ranges;
mod rewrite;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rewrite::Rewritten;
use tests::{Cluster, Options, Random, setting};

fn seeded(stream: u64) -> Random {
    let seed = setting("DFS_CRASH_SEED", std::process::id().into());
    println!("seed {seed}, stream {stream}");
    Random::new(seed, stream)
}

/// Exists only inside the mount: without it nothing can be written below by mistake.
fn base(cluster: &Cluster) -> PathBuf {
    cluster.mount().join("inside")
}

/// What a name must hold at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expect {
    File {
        seed: u64,
        len: usize,
    },
    Absent,
    /// The call that would have decided it failed.
    Unknown,
}

/// Bytes that tell which file they belong to, and where.
fn content(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at / 512).wrapping_mul(31) ^ seed.wrapping_mul(at % 255 + 1)) as u8)
        .collect()
}

const RECORD: usize = 200;

fn record(worker: u64, n: u64) -> [u8; RECORD] {
    let mut bytes = [b'.'; RECORD];
    let text = format!("<{worker}:{n}>");
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[RECORD - 1] = b'\n';
    bytes
}

#[derive(Debug, Default)]
struct Noted {
    names: BTreeMap<PathBuf, Expect>,
    /// Records whose append and fsync returned, and those that were tried.
    appended: BTreeSet<u64>,
    tried: BTreeSet<u64>,
    acknowledged: u64,
    failed: u64,
}

/// One worker: creates, rewrites, renames and removes files of its own, and appends to a shared log, until stopped.
fn work(
    worker: u64,
    mount: &Path,
    random: &mut Random,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Noted {
    let mut noted = Noted::default();
    let dir = mount.join(format!("worker{worker}"));
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        // Never `create_dir_all`: while the mount is away that would fill the directory below it.
        if fs::create_dir(&dir)
            .is_err_and(|error| error.kind() != std::io::ErrorKind::AlreadyExists)
        {
            // The mount is away: it comes back.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let ok = match random.below(10) {
            0..=4 => create(&dir, n, random, &mut noted),
            5 => move_one(&dir, n, random, &mut noted),
            6 => remove_one(random, &mut noted),
            _ => append(mount, worker, n, &mut noted),
        };
        if ok {
            noted.acknowledged += 1;
            done.fetch_add(1, Ordering::Relaxed);
        } else {
            noted.failed += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    noted
}

fn create(dir: &Path, n: u64, random: &mut Random, noted: &mut Noted) -> bool {
    let path = dir.join(format!("f{n}"));
    let len = match random.below(4) {
        0 => random.below(100),
        1 => random.below(5_000),
        2 => random.below(200_000),
        _ => random.below(2_000_000),
    };
    let (seed, len) = (n.wrapping_mul(7919), usize::try_from(len).unwrap());
    noted.names.insert(path.clone(), Expect::Unknown);
    let written =
        OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
            file.write_all(&content(seed, len))?;
            file.sync_all()
        });
    if written.is_ok() {
        noted.names.insert(path, Expect::File { seed, len });
    }
    written.is_ok()
}

fn known(random: &mut Random, noted: &Noted) -> Option<(PathBuf, Expect)> {
    let files: Vec<_> =
        noted.names.iter().filter(|(_, expect)| matches!(expect, Expect::File { .. })).collect();
    if files.is_empty() {
        return None;
    }
    let (path, expect) = files[usize::try_from(random.below(files.len() as u64)).unwrap()];
    Some((path.clone(), expect.clone()))
}

fn move_one(dir: &Path, n: u64, random: &mut Random, noted: &mut Noted) -> bool {
    let Some((from, expect)) = known(random, noted) else { return true };
    let to = dir.join(format!("m{n}"));
    let moved = fs::rename(&from, &to);
    let (old, new) =
        if moved.is_ok() { (Expect::Absent, expect) } else { (Expect::Unknown, Expect::Unknown) };
    noted.names.insert(from, old);
    noted.names.insert(to, new);
    moved.is_ok()
}

fn remove_one(random: &mut Random, noted: &mut Noted) -> bool {
    let Some((path, _)) = known(random, noted) else { return true };
    let removed = fs::remove_file(&path);
    noted.names.insert(path, if removed.is_ok() { Expect::Absent } else { Expect::Unknown });
    removed.is_ok()
}

fn append(mount: &Path, worker: u64, n: u64, noted: &mut Noted) -> bool {
    noted.tried.insert(n);
    let appended =
        OpenOptions::new().append(true).create(true).open(mount.join("shared.log")).and_then(
            |mut file| {
                // One write: a record is one append.
                let written = file.write(&record(worker, n))?;
                assert_eq!(written, RECORD, "a short append");
                file.sync_all()
            },
        );
    if appended.is_ok() {
        noted.appended.insert(n);
    }
    appended.is_ok()
}

fn check(mount: &Path, all: &[Noted]) {
    let mut files = 0;
    for noted in all {
        for (path, expect) in &noted.names {
            match expect {
                Expect::File { seed, len } => {
                    let found = fs::read(path)
                        .unwrap_or_else(|e| panic!("{} was acknowledged: {e}", path.display()));
                    assert_eq!(found.len(), *len, "length of {}", path.display());
                    assert!(found == content(*seed, *len), "content of {}", path.display());
                    files += 1;
                }
                Expect::Absent => {
                    assert!(!path.exists(), "{} was removed or renamed", path.display())
                }
                Expect::Unknown => {}
            }
        }
    }
    let log = fs::read(mount.join("shared.log")).unwrap_or_default();
    assert_eq!(log.len() % RECORD, 0, "the log has a torn record: {} bytes", log.len());
    let mut seen: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    for (at, bytes) in log.chunks(RECORD).enumerate() {
        let text = String::from_utf8_lossy(bytes);
        let ids = text
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .and_then(|(ids, _)| ids.split_once(':'));
        let (worker, n) = ids.unwrap_or_else(|| panic!("record {at} of the log is {text:?}"));
        let (worker, n) = (worker.parse().unwrap(), n.parse().unwrap());
        assert_eq!(bytes, record(worker, n), "record {at}");
        *seen.entry((worker, n)).or_default() += 1;
    }
    let mut appended = 0;
    for (worker, noted) in (0..).zip(all) {
        for n in &noted.appended {
            assert_eq!(seen.get(&(worker, *n)), Some(&1), "acknowledged record {worker}:{n}");
            appended += 1;
        }
    }
    for ((worker, n), count) in &seen {
        assert_eq!(*count, 1, "record {worker}:{n} is there {count} times");
        assert!(
            all[usize::try_from(*worker).unwrap()].tried.contains(n),
            "record {worker}:{n} was never written"
        );
    }
    println!(
        "checked {files} files and {appended} acknowledged appends ({} in the log)",
        seen.len()
    );
}

const WORKERS: u64 = 3;
/// Directories of the workers that change existing bytes, and their chunk sizes: a block, and two of them.
const REWRITERS: [(&str, &str); 2] = [("rewritten16", "16KiB"), ("rewritten128", "128KiB")];

fn rewrite(dir: &Path, random: &mut Random, stop: &AtomicBool, done: &AtomicU64) -> Rewritten {
    let mut rewritten = Rewritten::default();
    while !stop.load(Ordering::Relaxed) {
        if rewritten.step(dir, random) {
            done.fetch_add(1, Ordering::Relaxed);
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    rewritten
}

/// Kills `victims` (one of them each time) under load, waits for progress in between, checks at the end.
fn kill_under_load(stream: u64, victims: &[&str]) {
    if let Some(reason) = tests::no_fuse() {
        return tests::skipped(&reason);
    }
    let mut random = seeded(stream);
    let mut cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mount = base(&cluster);
    fs::create_dir(&mount).unwrap();
    for (dir, chunk_size) in REWRITERS {
        cluster.dfs(["mkdir", "--chunk-size", chunk_size, &format!("/inside/{dir}")]);
    }
    let (noted, rewritten) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (mount, stop, done) = (&mount, &stop, &done);
                scope.spawn(move || {
                    work(worker, mount, &mut seeded(100 * stream + worker), stop, done)
                })
            })
            .collect();
        let rewriters: Vec<_> = (0..)
            .zip(REWRITERS)
            .map(|(n, (dir, _))| {
                let (dir, stop, done) = (mount.join(dir), &stop, &done);
                scope.spawn(move || rewrite(&dir, &mut seeded(100 * stream + 50 + n), stop, done))
            })
            .collect();
        // Whatever fails below, the workers must stop, or the scope never ends.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..setting("DFS_CRASH_KILLS", 8) {
                wait_for_progress(&done, 20);
                std::thread::sleep(Duration::from_millis(random.below(400)));
                let victim = victims[usize::try_from(random.below(victims.len() as u64)).unwrap()];
                println!("kill {victim}");
                if victim == "all" {
                    for role in ["supervisor", "mount", "cs-1", "cs-2", "cs-3", "master"] {
                        if cluster.pid(role).is_some() {
                            cluster.kill(role);
                        }
                    }
                    cluster.up();
                } else if cluster.pid(victim).is_some() {
                    cluster.kill(victim);
                }
            }
            wait_for_progress(&done, 50);
        }));
        stop.store(true, Ordering::Relaxed);
        let noted: Vec<Noted> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        let rewritten: Vec<Rewritten> =
            rewriters.into_iter().map(|worker| worker.join().unwrap()).collect();
        if let Err(panic) = outcome {
            println!("{}", cluster.logs());
            std::panic::resume_unwind(panic);
        }
        (noted, rewritten)
    });
    for (worker, noted) in noted.iter().enumerate() {
        println!("worker {worker}: {} acknowledged, {} failed", noted.acknowledged, noted.failed);
    }
    // Another client: nothing it reads comes from this machine's page cache or the memory of the first mount.
    let mount = cluster.mount_again("check").join("inside");
    check(&mount, &noted);
    for ((dir, _), rewritten) in REWRITERS.iter().zip(&rewritten) {
        rewritten.check(&mount.join(dir));
    }
    cluster.until_clean();
}

fn wait_for_progress(done: &AtomicU64, operations: u64) {
    let (before, start) = (done.load(Ordering::Relaxed), Instant::now());
    while done.load(Ordering::Relaxed) < before + operations {
        assert!(start.elapsed() < Duration::from_secs(90), "no progress for 90 s after a kill");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn killing_the_master_loses_nothing_acknowledged() {
    kill_under_load(1, &["master"]);
}

#[test]
fn killing_chunkservers_loses_nothing_acknowledged() {
    kill_under_load(2, &["cs-1", "cs-2", "cs-3"]);
}

#[test]
fn killing_the_mount_loses_nothing_acknowledged() {
    kill_under_load(3, &["mount"]);
}

#[test]
fn killing_everything_at_once_loses_nothing_acknowledged() {
    kill_under_load(4, &["all"]);
}

#[test]
fn killing_anything_loses_nothing_acknowledged() {
    kill_under_load(5, &["master", "cs-1", "cs-2", "cs-3", "mount", "all"]);
}
