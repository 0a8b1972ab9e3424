//! The seam between the log and the machine: named files of one directory.
//!
//! Two implementations: [`PosixDisk`] here, and one in memory for tests that loses what was not
//! synced and tears sectors. Nothing here knows what a record is.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One directory of log files.
pub trait LogDisk: Debug + Send + Sync {
    /// Names of all files in the directory, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    /// Makes a file of `bytes` zeros, replacing one of that name, and syncs its content. Its name
    /// is durable only after [`LogDisk::sync_names`].
    ///
    /// The zeros are really written: a block that was only reserved becomes "written" with its
    /// first use, and that is metadata which the next `fdatasync` would have to wait for.
    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn LogFile>>;
    /// Gives a file another name, atomically, replacing a file that had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all creations, renames and removals so far durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Where a person finds the file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// One open file of a [`LogDisk`].
pub trait LogFile: Debug + Send + Sync {
    /// Bytes in the file.
    fn byte_count(&self) -> io::Result<u64>;
    /// Fills as much of `buffer` as the file has from `offset` on; returns how much that was.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. Not durable before [`LogFile::sync`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written so far durable (`fdatasync(2)`).
    fn sync(&self) -> io::Result<()>;
}

const ZEROS: &[u8] = &[0; 1 << 20];

/// Whether all of `bytes` are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// Writes zeros over `from..to`, a mebibyte at a time.
pub(super) fn write_zeros(file: &dyn LogFile, from: u64, to: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let step = usize::try_from(to - offset).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_at(offset, &ZEROS[..step])?;
        offset += step as u64;
    }
    Ok(())
}

/// A directory of the local file system.
#[derive(Debug)]
pub struct PosixDisk {
    dir: PathBuf,
    sync_seconds: Option<prometheus::Histogram>,
}

impl PosixDisk {
    /// Uses `dir`, which must exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), sync_seconds: None }
    }

    /// Tells how long each sync takes.
    #[must_use]
    pub fn timed(self, sync_seconds: Option<prometheus::Histogram>) -> Self {
        Self { sync_seconds, ..self }
    }
}

impl LogDisk for PosixDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name))?;
        Ok(Arc::new(PosixFile { file, sync_seconds: self.sync_seconds.clone() }))
    }

    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name))?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // A file system without fallocate still gets its blocks from the zeros below.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let file = PosixFile { file, sync_seconds: self.sync_seconds.clone() };
        write_zeros(&file, 0, bytes)?;
        file.file.sync_all()?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        sync_directory(&self.dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Makes `dir` and what is missing above it, durably.
pub(crate) fn create_directory(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    std::fs::create_dir_all(dir)?;
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_directory(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Makes creations, renames and removals in `dir` durable.
pub(crate) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[derive(Debug)]
struct PosixFile {
    file: File,
    sync_seconds: Option<prometheus::Histogram>,
}

impl LogFile for PosixFile {
    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let began = std::time::Instant::now();
        self.file.sync_data()?;
        if let Some(seconds) = &self.sync_seconds {
            seconds.observe(began.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
