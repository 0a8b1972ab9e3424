//! One process per directory: `flock(2)` on a file that stays. The kernel drops the lock with the
//! process, however it ends, so that there is never a stale one to remove by hand.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::JournalError;

const LOCK_NAME: &str = "lock";

/// Held as long as the directory is used.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// # Errors
    /// `InUse` if another process, or another log in this one, has it.
    pub(super) fn take(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(LOCK_NAME);
        let io_error = |doing, source| JournalError::Io { doing, path: path.clone(), source };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|err| io_error("open", err))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(JournalError::InUse { dir: dir.to_owned() }),
            Err(errno) => Err(io_error("lock", errno.into())),
        }
    }
}
