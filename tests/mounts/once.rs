//! A change that was carried out is not carried out again by the next client: what another mount did in between stays.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::process::Signal;
use tests::{no_fuse, signal, skipped, wait_until};

use crate::Held;

/// How long bytes that were sent may take to be seen.
const SEEN_MAX: Duration = Duration::from_secs(3);

impl Held {
    /// What the client is to do; see `dfs_client::exercise`.
    pub(crate) fn exercise(&self, lines: &str) {
        let _of_before = std::fs::remove_file(self.reached());
        let (file, draft) = (self.cluster.scratch().join("exercise"), "exercise.new");
        let draft = file.with_file_name(draft);
        std::fs::write(&draft, lines).unwrap();
        std::fs::rename(draft, file).unwrap();
    }

    fn reached(&self) -> std::path::PathBuf {
        self.cluster.scratch().join("exercise.reached")
    }

    pub(crate) fn has_reached(&self) -> bool {
        self.reached().exists()
    }

    fn wait_until_stopped(&self) {
        wait_until("the client is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.client())).unwrap();
            self.has_reached() && stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        });
    }
}

const BYTES: usize = 200_000;

struct Case {
    name: &'static str,
    operation: &'static str,
    bytes: usize,
    chunk_size: Option<&'static str>,
    /// Makes other bytes of all of the first `bytes`.
    act: fn(&File, &Path, usize) -> io::Result<()>,
}

const CASES: [Case; 6] = [
    Case { name: "inline", operation: "write", bytes: 100, chunk_size: None, act: write },
    Case { name: "chunk", operation: "write", bytes: BYTES, chunk_size: None, act: write },
    Case {
        name: "chunks",
        operation: "write",
        bytes: BYTES,
        chunk_size: Some("64KiB"),
        act: write,
    },
    Case { name: "punch", operation: "fallocate", bytes: BYTES, chunk_size: None, act: punch },
    Case {
        name: "punches",
        operation: "fallocate",
        bytes: BYTES,
        chunk_size: Some("64KiB"),
        act: punch,
    },
    Case {
        name: "copy",
        operation: "copy_file_range",
        bytes: BYTES,
        chunk_size: Some("64KiB"),
        act: copy,
    },
];

fn write(file: &File, _dir: &Path, bytes: usize) -> io::Result<()> {
    file.write_all_at(&vec![0; bytes], 0)
}

fn punch(file: &File, _dir: &Path, bytes: usize) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, how, 0, bytes as u64)?)
}

fn copy(file: &File, dir: &Path, bytes: usize) -> io::Result<()> {
    let source = File::open(dir.join("source"))?;
    let mut done = 0;
    while done < bytes as u64 {
        let (mut from, mut to) = (done, done);
        let left = bytes - usize::try_from(done).unwrap();
        done += rustix::fs::copy_file_range(&source, Some(&mut from), file, Some(&mut to), left)?
            as u64;
    }
    Ok(())
}

/// The client is stopped while it carries one out; the other mount sees it, and writes over it; the client is killed.
fn overwritten_in_between(held: &Held, case: &Case, point: &str) {
    let Case { name, operation, bytes, chunk_size, act } = *case;
    let (here, there) = (held.at.join(name), held.cluster.mount().join(name));
    if !there.exists() {
        let dir = format!("/{name}");
        let size = chunk_size.map_or(Vec::new(), |size| vec!["--chunk-size", size]);
        held.cluster.dfs(["mkdir", &dir].into_iter().chain(size));
        std::fs::write(there.join("source"), vec![0; bytes]).unwrap();
    }
    // What follows is there before, in chunks too.
    let path = there.join(point);
    std::fs::write(&path, vec![b'a'; bytes * 2]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let other = File::options().read(true).write(true).open(&path).unwrap();
    held.exercise(&format!("stop {operation} {point}"));
    let before = held.client();
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            let file = File::options().read(true).write(true).open(here.join(point))?;
            act(&file, &here, bytes)
        });
        held.wait_until_stopped();
        let began = Instant::now();
        let seen = || {
            let mut found = vec![1; bytes];
            // Past the cache: what the other one does shows at once.
            let again = File::open(&path).unwrap();
            again.read_exact_at(&mut found, 0).unwrap();
            found.iter().all(|byte| *byte == 0)
        };
        let mut was_seen = seen();
        while !was_seen && began.elapsed() < SEEN_MAX {
            std::thread::sleep(Duration::from_millis(50));
            was_seen = seen();
        }
        assert!(was_seen || point == "sent", "{name}: it was carried out");
        other.write_all_at(&vec![b'b'; bytes], 0).unwrap();
        other.sync_all().unwrap();
        signal(before, Signal::KILL);
        acting.join().unwrap().unwrap_or_else(|error| panic!("{name} {point}: {error}"));
        let found = std::fs::read(&path).unwrap();
        assert_eq!(found.len(), bytes * 2, "{name} {point}");
        let kept = found.iter().take(bytes).filter(|byte| **byte == b'b').count();
        println!("{name} {point}: seen {was_seen}, {kept} of {bytes} bytes of the later write");
        if was_seen {
            assert_eq!(kept, bytes, "{name} {point}: of the later write");
        }
        assert!(found.iter().skip(bytes).all(|byte| *byte == b'a'), "{name} {point}: behind it");
    });
    wait_until("the next client", || held.client() != before);
}

#[test]
fn a_change_of_bytes_that_others_saw_does_not_come_back_over_later_ones() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    for case in &CASES {
        for point in ["sent", "effect", "replied"] {
            overwritten_in_between(&held, case, point);
        }
    }
}
