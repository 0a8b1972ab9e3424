//! The load that changes bytes which are there already: overwrites, truncates, holes, renames over other files.
//!
//! A session is one open file: some changes, then mostly an `fsync`. If a call of it fails, all that was not synced is
//! in doubt, and the file is opened anew: a mount that was killed never continues an open file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::Random;
use crate::ranges::{Change, Expected, written};

const FILES_MIN: usize = 4;
const FILE_BYTES_MAX: u64 = 400_000;

/// A rename that failed: done or not, never half.
#[derive(Debug)]
struct Doubtful {
    from: PathBuf,
    to: PathBuf,
    moved: Expected,
    replaced: Expected,
}

/// Files of one worker, and what they must hold.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    files: BTreeMap<PathBuf, Expected>,
    replaced: Vec<PathBuf>,
    doubtful: Vec<Doubtful>,
    synced: u64,
    serial: u64,
}

impl Rewritten {
    /// One step in `dir`; whether all calls of it were acknowledged.
    ///
    /// # Panics
    /// If a file holds what it must not.
    pub(crate) fn step(&mut self, dir: &Path, random: &mut Random) -> bool {
        if !dir.is_dir() {
            // The mount is away: nothing would be learned from calls that fail for certain.
            return false;
        }
        self.serial += 1;
        if self.files.len() < FILES_MIN {
            let path = dir.join(format!("r{}", self.serial));
            // If it fails the name is never used again: it may be there or not.
            let made = OpenOptions::new().write(true).create_new(true).open(&path).is_ok();
            if made {
                self.files.insert(path, Expected::new());
            }
            return made;
        }
        let path = self.any(random);
        if random.below(12) == 0 {
            return self.replace(path, random);
        }
        let Some(mut expected) = self.files.remove(&path) else { return false };
        let done = self.session(&path, &mut expected, random);
        if !matches!(done, Ok(true)) {
            expected.doubt();
        }
        self.files.insert(path, expected);
        done.is_ok()
    }

    fn any(&self, random: &mut Random) -> PathBuf {
        let n = usize::try_from(random.below(self.files.len() as u64)).unwrap();
        self.files.keys().nth(n).unwrap().clone()
    }

    fn replace(&mut self, from: PathBuf, random: &mut Random) -> bool {
        let to = self.any(random);
        if to == from {
            return true;
        }
        let (Some(moved), Some(replaced)) = (self.files.remove(&from), self.files.remove(&to))
        else {
            return false;
        };
        let renamed = fs::rename(&from, &to).is_ok();
        if renamed {
            let mut moved = moved;
            moved.note(format!("renamed from {}", from.display()));
            self.replaced.push(from);
            self.files.insert(to, moved);
        } else {
            self.doubtful.push(Doubtful { from, to, moved, replaced });
        }
        renamed
    }

    /// Whether it ended with an `fsync`.
    fn session(
        &mut self,
        path: &Path,
        expected: &mut Expected,
        random: &mut Random,
    ) -> io::Result<bool> {
        expected.note("opened".to_owned());
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        if random.below(3) == 0 {
            let mut found = Vec::new();
            file.read_to_end(&mut found)?;
            must(path, expected, expected.check_whole(&found));
        }
        for _ in 0..=random.below(5) {
            self.serial += 1;
            if random.below(8) == 0 {
                let (offset, len) = range(expected.len_max(), random);
                let mut found = vec![0; usize::try_from(len).unwrap()];
                let count = file.read_at(&mut found, offset)?;
                must(path, expected, expected.check(offset, &found[..count]));
                continue;
            }
            let change = choose(expected.len_max(), self.serial, random);
            expected.begin(change);
            perform(&file, change)?;
            expected.done();
        }
        if random.below(5) == 0 {
            return Ok(false);
        }
        file.sync_all()?;
        expected.synced();
        self.synced += 1;
        Ok(true)
    }

    /// Reads everything below `dir` (the same directory, seen by another mount) and compares.
    ///
    /// # Panics
    /// If something is not as it must be.
    pub(crate) fn check(&self, dir: &Path) {
        let at = |path: &Path| dir.join(path.file_name().unwrap());
        for (path, expected) in &self.files {
            let found = fs::read(at(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let checked = expected.check_whole(&found);
            if checked.is_err() {
                tell(&at(path), path, expected);
            }
            must(path, expected, checked);
        }
        for path in &self.replaced {
            assert!(!at(path).exists(), "{} was renamed", path.display());
        }
        for Doubtful { from, to, moved, replaced } in &self.doubtful {
            let found = fs::read(at(to)).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
            if let Ok(source) = fs::read(at(from)) {
                must(from, moved, moved.check_whole(&source));
                must(to, replaced, replaced.check_whole(&found));
            } else {
                must(to, moved, moved.check_whole(&found));
            }
        }
        println!(
            "{}: {} files after {} acknowledged fsyncs, {} renamed, {} renames in doubt",
            dir.display(),
            self.files.len(),
            self.synced,
            self.replaced.len(),
            self.doubtful.len()
        );
    }
}

/// What a person who looks for the cause wants to know: is it the same a second time, and for the first mount?
fn tell(by_other: &Path, by_first: &Path, expected: &Expected) {
    for n in 0..3 {
        for path in [by_other, by_first] {
            let found = fs::read(path).map(|bytes| (bytes.len(), expected.check_whole(&bytes)));
            println!("reading {} again ({n}): {found:?}; {:?}", path.display(), fs::metadata(path));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

#[track_caller]
fn must(path: &Path, expected: &Expected, checked: Result<(), String>) {
    if let Err(wrong) = checked {
        panic!("{}: {wrong}; before:{}", path.display(), expected.history());
    }
}

/// Small ones, ones of about a block, and ones over several chunks.
fn range(len: u64, random: &mut Random) -> (u64, u64) {
    let bytes = match random.below(4) {
        0 => 1 + random.below(600),
        1 => 1 + random.below(20_000),
        2 => 60_000 + random.below(10_000),
        _ => 1 + random.below(200_000),
    };
    let offset = match random.below(8) {
        // Beyond the end.
        0 => len + random.below(10_000),
        _ => random.below(len + 1),
    };
    let offset = offset.min(FILE_BYTES_MAX - 1);
    (offset, bytes.min(FILE_BYTES_MAX - offset))
}

fn choose(len: u64, seed: u64, random: &mut Random) -> Change {
    let (offset, bytes) = range(len, random);
    match random.below(10) {
        0 => Change::Truncate { len: random.below(len + 1) },
        1 => Change::Truncate { len: (len + random.below(50_000)).min(FILE_BYTES_MAX) },
        2 => Change::Punch { offset, len: bytes },
        _ => Change::Write { seed, offset, len: bytes },
    }
}

fn perform(file: &File, change: Change) -> io::Result<()> {
    match change {
        Change::Write { seed, offset, len } => {
            file.write_all_at(&written(seed, offset, len), offset)
        }
        Change::Truncate { len } => file.set_len(len),
        Change::Punch { offset, len } => {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(file, hole, offset, len)?)
        }
    }
}
