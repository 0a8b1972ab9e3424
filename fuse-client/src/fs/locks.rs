//! Locks (DECISIONS 11): granting one first drops what this mount cached of the inode, releasing one first makes
//! its bytes visible to others.

use std::sync::atomic::Ordering;

use dfs_client::ClientError;
use dfs_client::session::LockRequest;
use dfs_core::command::LockKind;
use dfs_core::ids::InodeNo;
use dfs_core::namespace::NamespaceError;

use super::{Answer, FileSystem};
use crate::errno::Errno;
use crate::seam::{HeldLock, Reply};

/// How often a lock is asked for that others close as often.
const LOCK_TRIES: u32 = 4;

impl FileSystem {
    pub(super) fn get_lock(
        &self,
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: LockKind,
    ) -> Answer {
        let held = self.session.test_lock(ino, owner, start, end, kind)?;
        Ok(Reply::Lock(held.map(|lock| HeldLock {
            start: lock.start,
            end: lock.end,
            kind: lock.kind,
            pid: lock.pid,
        })))
    }

    pub(super) fn set_lock(
        &self,
        ino: InodeNo,
        owner: u64,
        (start, end): (u64, u64),
        kind: Option<LockKind>,
        pid: u32,
        wait: bool,
    ) -> Answer {
        let file = self.session.file(ino);
        let flushed = match kind {
            None => file.flush(),
            Some(_) => {
                // Before it is asked for: an answer that gets lost must not leave a lock nobody releases.
                self.locked.add((ino, owner));
                Ok(())
            }
        };
        let request = LockRequest { ino, owner, start, end, kind, pid };
        let wait_max = wait.then_some(self.options.lock_wait_max);
        let stopping = || self.stopping.load(Ordering::Acquire);
        let ask = || self.session.set_lock(request, wait_max, &stopping);
        let answer = if kind.is_some() { self.behind_releases(ino, ask) } else { ask() };
        match answer {
            Ok(()) => {}
            Err(ClientError::Refused(NamespaceError::Locked)) if wait => {
                // Not EINTR: the kernel would restart the call at the next signal, and show 512 without one.
                return Err(Errno::TIMED_OUT);
            }
            Err(error) => return Err(error.into()),
        }
        match kind {
            Some(_) => self.forget_cached(ino)?,
            None if start == 0 && i64::MAX as u64 <= end => self.locked.remove(&(ino, owner)),
            None => {}
        }
        flushed?;
        Ok(Reply::Done)
    }

    /// Asks for a lock when those of files that were closed before it are given back: closing a file and locking it again
    /// is one thing after the other, also here.
    fn behind_releases(
        &self,
        ino: InodeNo,
        ask: impl Fn() -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut tries = LOCK_TRIES;
        loop {
            let place = self.releases.wait_for_those_before(ino);
            let answer = ask();
            tries -= 1;
            let refused = matches!(answer, Err(ClientError::Refused(NamespaceError::Locked)));
            // One that began meanwhile may have been read from the kernel's queue before the lock was.
            if !refused || tries == 0 || !self.releases.any_since(ino, place) {
                return answer;
            }
        }
    }

    /// What another mount wrote under the lock before us must be seen now.
    fn forget_cached(&self, ino: InodeNo) -> Result<(), Errno> {
        let file = self.session.file(ino);
        let attr = file.attr()?;
        if !self.may_keep_pages(ino, attr.change) {
            file.invalidate();
            self.drop_kernel_cache(ino);
        }
        Ok(())
    }
}
