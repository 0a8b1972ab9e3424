//! A data directory on a Linux file system.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dfs_service::data_dir;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::disk::{ChunkDisk, DiskFile, DiskSpace, OpenMode};
use super::journal::lock;

/// Holds the directory's lock as long as it lives.
#[derive(Debug)]
pub struct PosixDisk {
    dir: PathBuf,
    lock: File,
    /// Directories that were made since the start, and whose names may not be on the disk yet.
    new_dirs: Mutex<BTreeSet<String>>,
    sync_seconds: Option<prometheus::Histogram>,
}

#[derive(Debug)]
struct PosixFile {
    file: File,
    sync_seconds: Option<prometheus::Histogram>,
}

impl PosixDisk {
    /// Opens the directory, making it if it is not there; `None` if another process has it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(dir)?;
        let lock = data_dir::lock(dir)?;
        Ok(lock.map(|lock| Self {
            dir: dir.to_owned(),
            lock,
            new_dirs: Mutex::default(),
            sync_seconds: None,
        }))
    }
}

impl PosixDisk {
    /// Tells how long each sync of a file takes.
    #[must_use]
    pub fn timed(self, sync_seconds: Option<prometheus::Histogram>) -> Self {
        Self { sync_seconds, ..self }
    }
}

impl ChunkDisk for PosixDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let new = mode == OpenMode::New;
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(new).truncate(new).mode(0o600);
            options.open(self.dir.join(path))
        };
        let file = match (open(), path.split_once('/')) {
            (Err(err), Some((dir, _))) if new && err.kind() == io::ErrorKind::NotFound => {
                lock(&self.new_dirs).insert(dir.to_owned());
                self.make_dir(dir)?;
                open()?
            }
            (file, _) => file?,
        };
        Ok(Arc::new(PosixFile { file, sync_seconds: self.sync_seconds.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(path))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.dir.join(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        fs::read_dir(self.dir.join(path))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn dirs(&self) -> io::Result<BTreeSet<String>> {
        let mut dirs = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // A link may lead to one.
            if !entry.file_type()?.is_file() {
                dirs.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(dirs)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        // Its own name first: what is on disk without one is lost.
        if lock(&self.new_dirs).contains(path) {
            File::open(&self.dir)?.sync_all()?;
            lock(&self.new_dirs).remove(path);
        }
        File::open(self.dir.join(path))?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.lock)?)
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let stat = rustix::fs::fstatvfs(&self.lock)?;
        Ok(DiskSpace {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn allocated_bytes(&self, path: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.dir.join(path))?.blocks() * 512)
    }
}

impl DiskFile for PosixFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => {
                    buf[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn uncache(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        // A kernel that does not take the advice reads what it has.
        let _advised = rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::DontNeed);
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, len),
            other => Ok(other?),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
            // Then a full disk is noticed when the bytes are written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn first_hole(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at),
            // ENXIO: beyond the end of the file.
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
            Err(err) => Err(err.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let began = std::time::Instant::now();
        self.file.sync_data()?;
        if let Some(seconds) = &self.sync_seconds {
            seconds.observe(began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl PosixFile {
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        // Beyond the end nothing needs to be written: it reads as zeros.
        let end = (offset + len).min(self.file.metadata()?.len());
        let mut at = offset;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_for_its_first_file_and_its_name_is_synced_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::open(dir.path()).unwrap().unwrap();
        let missing = disk.open("07/x", OpenMode::Existing).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.dirs().unwrap(), BTreeSet::new());
        disk.open("07/x", OpenMode::New).unwrap();
        assert_eq!(disk.dirs().unwrap(), ["07".to_owned()].into());
        assert_eq!(*lock(&disk.new_dirs), ["07".to_owned()].into());
        disk.sync_dir("07").unwrap();
        assert!(lock(&disk.new_dirs).is_empty());
        disk.open("07/y", OpenMode::New).unwrap();
        assert!(lock(&disk.new_dirs).is_empty());
    }
}
