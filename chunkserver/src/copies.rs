//! Copies of the master's log and snapshots, kept for the day its directory is lost (DECISIONS 6). What is in them is
//! the master's matter.
//!
//! Order: bytes written → [`Copies::settle`] syncs them → `complete` replaced, which says how far they reach → files that
//! the master no longer has removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dfs_service::sealed::{replace, seal, unseal};

use crate::node::lock;

/// Below the data directory.
const DIR: &str = "metadata-copy";
const COMPLETE: &str = "complete";
const COMPLETE_NEXT: &str = "complete.next";
const NAME_BYTES_MAX: usize = 64;
const FILES_MAX: usize = 10_000;
/// In one read.
pub(crate) const PIECE_MAX: u32 = 1 << 20;

/// How far the copy reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Complete {
    /// Entry of the master's log.
    pub(crate) index: u64,
    /// On the master's clock, nanoseconds since 1970.
    pub(crate) at_ns: i64,
}

/// One file of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CopyFile {
    pub(crate) name: String,
    pub(crate) length: u64,
    pub(crate) crc: u32,
}

#[derive(Debug)]
pub(crate) struct Copies {
    dir: PathBuf,
    /// Held while files change.
    dirty: Mutex<Dirty>,
}

/// What is to be synced, and what needs not be looked up twice a second.
#[derive(Default, Debug)]
struct Dirty {
    files: BTreeSet<String>,
    /// A file is new.
    names: bool,
    /// What a process before this one wrote may be in the page cache only.
    all: bool,
    /// This process made the directory, or saw it.
    made: bool,
    /// Lengths of all files, if they were listed since a name was new.
    lengths: Option<BTreeMap<String, u64>>,
    /// Written last, and as a rule next.
    open: Option<(String, File)>,
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// The master names its files; here a name is only ever one of this directory.
fn check_name(name: &str) -> io::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let good = !name.starts_with('.')
        && (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.chars().all(plain)
        && ![COMPLETE, COMPLETE_NEXT].contains(&name);
    if good { Ok(()) } else { Err(invalid(format!("no name for a copy: {name:?}"))) }
}

impl Copies {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join(DIR),
            dirty: Mutex::new(Dirty { names: true, all: true, ..Dirty::default() }),
        }
    }

    /// All files with their checksums, which takes as long as reading them does.
    pub(crate) fn list(&self) -> io::Result<Vec<CopyFile>> {
        let _still = lock(&self.dirty);
        let mut files = Vec::new();
        for (name, length) in self.files()? {
            let crc = checksum(&self.dir.join(&name))?;
            files.push(CopyFile { name, length, crc });
        }
        Ok(files)
    }

    /// Names and lengths.
    fn files(&self) -> io::Result<BTreeMap<String, u64>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries?,
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && check_name(&name).is_ok()
            {
                files.insert(name, entry.metadata()?.len());
            }
        }
        Ok(files)
    }

    /// # Errors
    /// `InvalidData` for a damaged file; I/O errors.
    pub(crate) fn complete(&self) -> io::Result<Option<Complete>> {
        let path = self.dir.join(COMPLETE);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => parse(&text).map(Some).ok_or_else(|| {
                let text = format!("{} is damaged", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            }),
        }
    }

    /// Names and small files are in the copies: the permissions inside count for nothing to who reads them here.
    fn make_dir(&self, dirty: &mut Dirty) -> io::Result<()> {
        if !dirty.made {
            fs::create_dir_all(&self.dir)?;
            fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
            dirty.made = true;
        }
        Ok(())
    }

    /// Bytes of `name` from `offset` on, where the file ends now or, with 0, anew.
    pub(crate) fn write(&self, name: &str, offset: u64, data: &[u8]) -> io::Result<()> {
        check_name(name)?;
        let mut dirty = lock(&self.dirty);
        self.make_dir(&mut dirty)?;
        dirty.names |= offset == 0;
        let file = match dirty.open.take() {
            Some((open, file)) if open == name && offset != 0 => file,
            _ => {
                let path = self.dir.join(name);
                let mut how = OpenOptions::new();
                let opened = how.write(true).create(true).truncate(offset == 0).open(&path);
                // Somebody may have removed the directory: the next attempt makes it again.
                opened.inspect_err(|_| dirty.made = false)?
            }
        };
        let there = file.metadata()?;
        if there.len() != offset || there.nlink() == 0 {
            dirty.lengths = None;
            let length = if there.nlink() == 0 { 0 } else { there.len() };
            return Err(invalid(format!(
                "{name} has {length} bytes, no place for some at {offset}"
            )));
        }
        dirty.files.insert(name.to_owned());
        let known = dirty.lengths.as_mut().and_then(|lengths| lengths.get_mut(name));
        match known {
            Some(length) => *length = offset + data.len() as u64,
            None => dirty.lengths = None,
        }
        let written = file.write_all_at(data, offset);
        match written {
            Ok(()) => dirty.open = Some((name.to_owned(), file)),
            Err(_) => dirty.lengths = None,
        }
        written
    }

    /// Makes `files`, which must have these lengths, the copy.
    pub(crate) fn settle(
        &self,
        files: &BTreeMap<String, u64>,
        complete: Complete,
    ) -> io::Result<()> {
        if FILES_MAX < files.len() {
            return Err(invalid(format!("{} files are too many for a copy", files.len())));
        }
        let mut dirty = lock(&self.dirty);
        self.make_dir(&mut dirty)?;
        // Whatever goes wrong from here on: the next time is not built on what was known before.
        let known = dirty.lengths.take();
        let open = dirty.open.take();
        let have = match known {
            Some(lengths) => lengths,
            None => self.files()?,
        };
        dirty.made = !have.is_empty();
        for (name, length) in files {
            if have.get(name) != Some(length) {
                let text = format!("{name} has {:?} bytes here and not {length}", have.get(name));
                return Err(invalid(text));
            }
        }
        // One that was written and is not named any more goes below.
        let unsynced = |name: &&String| dirty.all || dirty.files.contains(*name);
        for name in files.keys().filter(unsynced) {
            let path = self.dir.join(name);
            let synced = match &open {
                Some((open, file)) if open == name => file.sync_all(),
                _ => File::open(&path)?.sync_all(),
            };
            if let Err(error) = synced {
                // What the disk has of it is unknown, and the next sync would not say so.
                fs::remove_file(&path)?;
                return Err(error);
            }
        }
        if dirty.names {
            File::open(&self.dir)?.sync_all()?;
        }
        *dirty = Dirty { made: dirty.made, ..Dirty::default() };
        let replaced = replace(&self.dir.join(COMPLETE), &text_of(complete));
        // As above: somebody may have removed the directory.
        replaced.inspect_err(|_| dirty.made = false)?;
        let mut gone = have.keys().filter(|name| !files.contains_key(*name)).peekable();
        if gone.peek().is_some() {
            // Until then the mark before this one may come back, and needs them.
            File::open(&self.dir)?.sync_all()?;
        }
        for name in gone {
            fs::remove_file(self.dir.join(name))?;
        }
        dirty.lengths = Some(files.clone());
        dirty.open = open.filter(|(name, _)| files.contains_key(name));
        Ok(())
    }

    /// Fewer bytes than asked for at the file's end.
    pub(crate) fn read(&self, name: &str, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        check_name(name)?;
        let file = File::open(self.dir.join(name))?;
        let mut data = vec![0; length.min(PIECE_MAX) as usize];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64)? {
                0 => break,
                some => filled += some,
            }
        }
        data.truncate(filled);
        Ok(data)
    }
}

fn checksum(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_MAX as usize];
    let mut crc = 0;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(crc),
            some => crc = crc32c::crc32c_append(crc, &piece[..some]),
        }
    }
}

fn text_of(complete: Complete) -> String {
    let Complete { index, at_ns } = complete;
    let body = format!("dfs-metadata-copy 1 {index} {at_ns}");
    seal(&body)
}

fn parse(text: &str) -> Option<Complete> {
    let body = unseal(text)?;
    let (index, at_ns) = body.strip_prefix("dfs-metadata-copy 1 ")?.split_once(' ')?;
    Some(Complete { index: index.parse().ok()?, at_ns: at_ns.parse().ok()? })
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Complete = Complete { index: 7, at_ns: 1_600_000_000_000_000_000 };

    fn named(files: &[(&str, u64)]) -> BTreeMap<String, u64> {
        files.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect()
    }

    #[test]
    fn what_is_settled_is_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path());
        assert!(copies.list().unwrap().is_empty() && copies.complete().unwrap().is_none());
        copies.write("1.log", 0, b"one ").unwrap();
        copies.write("1.log", 4, b"two").unwrap();
        copies.write("1-1.snapshot", 0, b"old").unwrap();
        assert!(copies.settle(&named(&[("1.log", 8)]), DONE).is_err());
        assert!(copies.complete().unwrap().is_none());
        copies.settle(&named(&[("1.log", 7)]), DONE).unwrap();
        let again = Copies::new(dir.path());
        assert_eq!(again.complete().unwrap(), Some(DONE));
        let crc = crc32c::crc32c(b"one two");
        let file = CopyFile { name: "1.log".to_owned(), length: 7, crc };
        assert_eq!(again.list().unwrap(), [file]);
        assert_eq!(again.read("1.log", 4, 100).unwrap(), b"two");
        assert!(again.read("1.log", 9, 100).unwrap().is_empty());
        // Begun anew; a gap is none of ours.
        again.write("1.log", 0, b"x").unwrap();
        assert!(again.write("1.log", 2, b"x").is_err());
        assert_eq!(again.read("1.log", 0, 100).unwrap(), b"x");
    }

    #[test]
    fn what_somebody_removed_is_not_taken_for_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path());
        let kept = dir.path().join(DIR);
        copies.write("1.log", 0, b"one").unwrap();
        copies.settle(&named(&[("1.log", 3)]), DONE).unwrap();
        fs::remove_file(kept.join("1.log")).unwrap();
        let error = copies.write("1.log", 3, b"two").unwrap_err();
        assert_eq!(error.to_string(), "1.log has 0 bytes, no place for some at 3");
        // The master sees what is there, and begins anew.
        assert!(copies.settle(&named(&[("1.log", 3)]), DONE).is_err());
        copies.write("1.log", 0, b"one").unwrap();
        copies.write("1.log", 3, b"two").unwrap();
        copies.settle(&named(&[("1.log", 6)]), DONE).unwrap();
        assert_eq!(copies.read("1.log", 0, 100).unwrap(), b"onetwo");
        fs::remove_dir_all(&kept).unwrap();
        assert!(copies.settle(&named(&[("1.log", 6)]), DONE).is_err());
        assert!(copies.settle(&named(&[("1.log", 6)]), DONE).is_err());
        copies.write("1.log", 0, b"one").unwrap();
        copies.settle(&named(&[("1.log", 3)]), DONE).unwrap();
        // Another file takes the place of the one that is open.
        copies.write("2.log", 0, b"x").unwrap();
        copies.settle(&named(&[("2.log", 1)]), DONE).unwrap();
        assert!(!kept.join("1.log").exists());
        assert!(copies.write("1.log", 3, b"two").is_err());
    }

    #[test]
    fn a_name_never_leaves_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path());
        let long = "a".repeat(65);
        for name in ["", ".", "..", "../x", "a/b", "complete", "complete.next", "A", "a\0", &long] {
            assert!(copies.write(name, 0, b"x").is_err(), "{name:?}");
            assert!(copies.read(name, 0, 1).is_err(), "{name:?}");
        }
        assert!(copies.list().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_mark_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::new(dir.path());
        copies.settle(&BTreeMap::new(), DONE).unwrap();
        let path = dir.path().join(DIR).join(COMPLETE);
        let text = fs::read_to_string(&path).unwrap().replace(" 7 ", " 8 ");
        fs::write(&path, text).unwrap();
        assert_eq!(copies.complete().unwrap_err().kind(), io::ErrorKind::InvalidData);
        // The next one is as good as ever.
        copies.settle(&BTreeMap::new(), DONE).unwrap();
        assert_eq!(copies.complete().unwrap(), Some(DONE));
    }
}
