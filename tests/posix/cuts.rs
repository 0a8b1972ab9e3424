//! Appends and truncations of one file by several mounts at once: as if each came before or after each other.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use tests::{Cluster, no_fuse, skipped};

/// Tells appenders apart, and what was appended after the last cut from what may be gone.
struct Written {
    name: u8,
    /// Numbers of the records begun after the last cut was done, up to the last one.
    kept: std::ops::Range<u32>,
}

struct Appender<'a> {
    name: u8,
    path: &'a Path,
    len: usize,
    flags: i32,
}

/// `len` bytes that no part of another record begins like.
fn record(name: u8, number: u32, len: usize) -> Vec<u8> {
    let mut record = format!("<{}{number:08}", char::from(name)).into_bytes();
    record.resize(len - 1, name.to_ascii_uppercase());
    record.push(b'>');
    record
}

impl Appender<'_> {
    fn run(&self, stage: &AtomicU8) -> Written {
        let mut file =
            OpenOptions::new().append(true).custom_flags(self.flags).open(self.path).unwrap();
        let (mut number, mut first) = (0, None);
        loop {
            match stage.load(Ordering::Acquire) {
                0 => {}
                1 => _ = first.get_or_insert(number),
                _ => break,
            }
            file.write_all(&record(self.name, number, self.len)).unwrap();
            number += 1;
            if self.flags == 0 {
                // Written behind, it would be far ahead of the others.
                thread::sleep(Duration::from_millis(1));
            }
        }
        file.sync_all().unwrap();
        Written { name: self.name, kept: first.unwrap_or(number)..number }
    }
}

/// Whole records by appender; whatever is between them must be the beginning of one, where the file was cut.
fn records(content: &[u8], lens: &BTreeMap<u8, usize>) -> Result<BTreeMap<u8, Vec<u32>>, String> {
    let mut found: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    let mut at = 0;
    while at < content.len() {
        let rest = &content[at + 1..];
        let len = 1 + rest.iter().position(|byte| *byte == b'<').unwrap_or(rest.len());
        let part = &content[at..at + len];
        let shown =
            || format!("at {at} of {}: {:?}", content.len(), part.escape_ascii().to_string());
        let head = part.get(2..10).and_then(|digits| std::str::from_utf8(digits).ok());
        match (part.get(1), head.map(str::parse)) {
            (Some(name), Some(Ok(number))) if lens.contains_key(name) => {
                let whole = record(*name, number, lens[name]);
                if part.len() == whole.len() && part == whole {
                    found.entry(*name).or_default().push(number);
                } else if !whole.starts_with(part) {
                    return Err(shown());
                }
            }
            (_, None) if part[0] == b'<' => {}
            _ => return Err(shown()),
        }
        at += len;
    }
    Ok(found)
}

fn check(content: &[u8], lens: &BTreeMap<u8, usize>, written: &[Written]) -> Result<(), String> {
    let found = records(content, lens)?;
    for Written { name, kept } in written {
        let numbers = found.get(name).map(Vec::as_slice).unwrap_or_default();
        let who = char::from(*name);
        if !numbers.is_sorted_by(|one, next| one < next) {
            return Err(format!("records of {who} twice or out of order: {numbers:?}"));
        }
        let have = numbers.iter().filter(|number| kept.contains(number)).count();
        if have != kept.len() {
            let lost: Vec<_> = kept.clone().filter(|number| !numbers.contains(number)).collect();
            return Err(format!("of {who}, begun after the last cut ({kept:?}): lost {lost:?}"));
        }
    }
    Ok(())
}

struct Round {
    chunk_size: &'static str,
    lens: [usize; 4],
    cuts: u64,
    /// Where to cut a file of this size.
    to: fn(u64, u64) -> u64,
}

fn run(round: &Round, a: &Path, b: &Path, name: &str) -> Result<(), String> {
    let (here, there) = (a.join(name), b.join(name));
    File::create(&here).unwrap();
    let stage = AtomicU8::new(0);
    let failed = AtomicBool::new(false);
    let appenders: Vec<_> = (0..4_u8)
        .map(|n| Appender {
            name: b'a' + n,
            path: if n == 3 { &there } else { &here },
            len: round.lens[usize::from(n)],
            flags: if n == 1 { 0 } else { libc::O_SYNC },
        })
        .collect();
    let written: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            appenders.iter().map(|appender| scope.spawn(|| appender.run(&stage))).collect();
        for n in 0..round.cuts {
            thread::sleep(Duration::from_millis(20 + n * 37 % 60));
            let file = OpenOptions::new().write(true).open(&there).unwrap();
            let size = file.metadata().unwrap().len();
            // Never longer: zeros of that would be nobody's records.
            let to = (round.to)(size, n).min(size);
            failed.fetch_or(file.set_len(to).is_err(), Ordering::Relaxed);
        }
        stage.store(1, Ordering::Release);
        thread::sleep(Duration::from_millis(200));
        stage.store(2, Ordering::Release);
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(!failed.into_inner(), "a truncation failed");
    let lens = appenders.iter().map(|appender| (appender.name, appender.len)).collect();
    let content = fs::read(&here).unwrap();
    check(&content, &lens, &written)?;
    if content != fs::read(&there).unwrap() {
        return Err("the other mount reads something else".to_owned());
    }
    Ok(())
}

fn two_mounts() -> Option<(Cluster, PathBuf)> {
    if let Some(reason) = no_fuse() {
        skipped(&reason);
        return None;
    }
    let mut cluster = Cluster::start();
    let second = cluster.mount_again("second");
    Some((cluster, second))
}

/// Records that cross the ends of chunks, and cuts in, at and beyond the chunks they cross into.
#[test]
fn records_across_chunks_are_cut_where_the_file_is_and_nowhere_else() {
    let Some((cluster, second)) = two_mounts() else { return };
    let rounds = [
        Round { chunk_size: "4KiB", lens: [1000, 700, 3000, 250], cuts: 12, to: |_, _| 1000 },
        Round {
            chunk_size: "4KiB",
            lens: [1000, 1000, 1000, 1000],
            cuts: 12,
            to: |size, n| size / 4096 * 4096 * (n % 2),
        },
        Round {
            chunk_size: "4KiB",
            lens: [3000, 100, 3900, 2500],
            cuts: 20,
            to: |size, n| size.saturating_sub(n * 531),
        },
        Round {
            chunk_size: "64KiB",
            lens: [1000, 20_000, 60_000, 5000],
            cuts: 12,
            to: |size, n| size * (n % 4) / 4,
        },
        Round {
            chunk_size: "1MiB",
            lens: [100_000, 1000, 900_000, 50_000],
            cuts: 8,
            to: |size, n| (size >> 20 << 20) + n % 3,
        },
    ];
    for (n, round) in rounds.iter().enumerate() {
        let dir = format!("/d{n}");
        cluster.dfs(["mkdir", "--chunk-size", round.chunk_size, &dir]);
        for again in 0..3 {
            let name = format!("d{n}/f{again}");
            if let Err(what) = run(round, &cluster.mount(), &second, &name) {
                panic!(
                    "chunks of {}, file {again}: {}",
                    round.chunk_size,
                    &what[..what.len().min(600)]
                );
            }
        }
    }
}

/// Makes what one mount wrote a hole on the other one; what the first writes there with what it knows is read by both.
fn written_again_after(freed: impl Fn(&File), wait: Duration) {
    const CHUNK: usize = 64 << 10;
    let Some((cluster, second)) = two_mounts() else { return };
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/d"]);
    let (here, there) = (cluster.mount().join("d/f"), second.join("d/f"));
    for round in 1..=5 {
        let mine = OpenOptions::new().write(true).create(true).truncate(false).open(&here).unwrap();
        mine.write_all_at(&[b'x'; 2 * CHUNK], 0).unwrap();
        mine.sync_all().unwrap();
        freed(&OpenOptions::new().write(true).open(&there).unwrap());
        thread::sleep(wait);
        let new = [round; 1000];
        mine.write_all_at(&new, 500).unwrap();
        mine.sync_all().unwrap();
        drop(mine);
        for path in [&there, &here] {
            let mut read = [0; 1500];
            File::open(path).unwrap().read_exact_at(&mut read, 0).unwrap();
            assert!(read[..500] == [0; 500] && read[500..] == new, "round {round} by {path:?}");
        }
    }
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_chunk_that_was_cut_away_and_deleted_is_not_begun_again_by_an_old_layout() {
    // By then its servers were told to delete it.
    written_again_after(|file| file.set_len(0).unwrap(), Duration::from_millis(2500));
}

#[test]
fn what_is_written_into_a_chunk_that_another_mount_made_a_hole_is_read() {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    written_again_after(|file| fallocate(file, punch, 0, 128 << 10).unwrap(), Duration::ZERO);
}

#[test]
fn what_is_appended_after_one_cut_by_the_other_mount_is_there_when_it_is_synced() {
    let Some((cluster, second)) = two_mounts() else { return };
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/d"]);
    for (round, to) in [0, 1000, 70_000, 0].into_iter().enumerate() {
        let name = format!("d/f{round}");
        let (here, there) = (cluster.mount().join(&name), second.join(&name));
        let stage = AtomicU8::new(0);
        fs::write(&here, record(b'a', 0, 200_000)).unwrap();
        let written = thread::scope(|scope| {
            let appender = Appender { name: b'b', path: &here, len: 1000, flags: libc::O_SYNC };
            let stage = &stage;
            let running = scope.spawn(move || appender.run(stage));
            thread::sleep(Duration::from_millis(300));
            OpenOptions::new().write(true).open(&there).unwrap().set_len(to).unwrap();
            stage.store(1, Ordering::Release);
            thread::sleep(Duration::from_millis(300));
            stage.store(2, Ordering::Release);
            running.join().unwrap()
        });
        let lens = BTreeMap::from([(b'a', 200_000), (b'b', 1000)]);
        for path in [&there, &here] {
            let checked = check(&fs::read(path).unwrap(), &lens, std::slice::from_ref(&written));
            assert_eq!(checked, Ok(()), "cut to {to}, read by {path:?}");
        }
    }
}

#[test]
fn a_direct_read_sees_what_the_other_mount_synced_a_moment_ago() {
    let Some((cluster, second)) = two_mounts() else { return };
    let (here, there) = (cluster.mount().join("f"), second.join("f"));
    fs::write(&here, vec![b'0'; 1 << 20]).unwrap();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&there).unwrap();
    let mut read = vec![0; 4096];
    for round in b'1'..=b'9' {
        // Read in order, so that more is read ahead.
        for place in 0..16 {
            direct.read_exact_at(&mut read, place * 4096).unwrap();
        }
        let file = OpenOptions::new().write(true).open(&here).unwrap();
        file.write_all_at(&vec![round; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        for place in 16..32 {
            direct.read_exact_at(&mut read, place * 4096).unwrap();
            assert!(read == [round; 4096], "round {round}, block {place}");
        }
    }
    File::options().write(true).open(&here).unwrap().set_len(100).unwrap();
    assert_eq!(direct.read_at(&mut read, 0).unwrap(), 100);
}

#[test]
fn the_check_sees_what_must_not_be() {
    let lens = BTreeMap::from([(b'a', 20), (b'b', 30)]);
    let written = [Written { name: b'a', kept: 1..3 }];
    let good = [
        record(b'a', 0, 20)[..7].to_vec(),
        record(b'b', 4, 30),
        record(b'a', 1, 20),
        record(b'a', 2, 20),
    ];
    assert_eq!(check(&good.concat(), &lens, &written), Ok(()));
    let lost = [record(b'a', 1, 20)].concat();
    assert!(check(&lost, &lens, &written).unwrap_err().contains("lost [2]"));
    let hole = [record(b'a', 1, 20), vec![0; 5], record(b'a', 2, 20)].concat();
    assert!(check(&hole, &lens, &written).unwrap_err().starts_with("at 0"));
    let twice = [record(b'a', 1, 20), record(b'a', 2, 20), record(b'a', 2, 20)].concat();
    assert!(check(&twice, &lens, &written).unwrap_err().contains("twice"));
    let mangled = [&record(b'a', 1, 20)[..15], b"xx", &record(b'a', 2, 20)].concat();
    assert!(check(&mangled, &lens, &written).is_err());
}
