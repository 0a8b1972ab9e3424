//! Locks (DECISIONS 11): granting one first drops what this mount cached of the inode, releasing one first makes
//! its bytes visible to others.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_client::ClientError;
use dfs_client::error::OpenId;
use dfs_client::session::LockRequest;
use dfs_core::command::LockKind;
use dfs_core::ids::InodeNo;
use dfs_core::namespace::NamespaceError;

use super::content::SHARED_FOR;
use super::locked::Key;
use super::{Answer, FileSystem};
use crate::errno::Errno;
use crate::seam::{Cancelled, HeldLock, Reply};

/// How often a lock is asked for that others close as often.
const LOCK_TRIES: u32 = 4;

/// How long the RELEASE of an open of which a descriptor was closed is waited for, when a lock of this mount is in the
/// way: a machine with more to do than processors may let it lie between the kernel's queue and us.
const RELEASE_WAIT_MAX: Duration = Duration::from_millis(250);

/// Waits for locks, and those of them that their programs have left: what is asked next for the same owner waits until they
/// are over.
#[derive(Debug, Default)]
pub(super) struct Waits {
    under_way: Mutex<Vec<(Key, Cancelled)>>,
    ended: Condvar,
}

/// One wait; over when dropped.
struct Wait<'a> {
    waits: &'a Waits,
    cancelled: Option<Cancelled>,
}

impl Waits {
    fn begin(&self, key: Key, cancelled: &Cancelled, may_leave: bool) -> Wait<'_> {
        if !may_leave {
            return Wait { waits: self, cancelled: None };
        }
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((key, cancelled.clone()));
        cancelled.may_leave();
        Wait { waits: self, cancelled: Some(cancelled.clone()) }
    }

    fn let_the_left_end(&self, key: Key) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while under_way.iter().any(|(other, cancelled)| *other == key && cancelled.has_left()) {
            under_way = self.ended.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(mine) = &self.cancelled else { return };
        let mut under_way = self.waits.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|(_, cancelled)| !cancelled.is_same(mine));
        drop(under_way);
        self.waits.ended.notify_all();
    }
}

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

    /// Locks or unlocks through `open`.
    pub(super) fn set_lock(
        &self,
        pid: u32,
        request: LockRequest,
        open: OpenId,
        wait: bool,
        cancelled: &Cancelled,
    ) -> Answer {
        let key = (request.ino, request.owner);
        let is_whole = request.start == 0 && i64::MAX as u64 <= request.end;
        self.lock_waits.let_the_left_end(key);
        if request.kind.is_some() {
            // Of an owner with other locks here, giving this one back might take of those.
            let may_leave = wait && !self.locked.may_hold(&key);
            self.locked.note(key, open, is_whole);
            let waiting = self.lock_waits.begin(key, cancelled, may_leave);
            let asked = self.ask_for_lock(request, wait, cancelled);
            if !cancelled.stays() {
                // The program was told that it was interrupted, and does not know of the lock.
                if asked.is_ok() {
                    self.unlock(LockRequest { kind: None, ..request })?;
                }
                return Err(Errno::INTERRUPTED);
            }
            drop(waiting);
            asked?;
            self.locked.note(key, open, is_whole);
            self.forget_cached(request.ino, pid)?;
            return Ok(Reply::Done);
        }
        let unlocking = if is_whole { self.locked.begin_unlock(&key, None) } else { None };
        let unlocked = self.unlock(request);
        if let Some(unlocking) = unlocking.filter(|_| unlocked.is_ok()) {
            self.locked.end_unlock(&key, unlocking);
        }
        unlocked?;
        Ok(Reply::Done)
    }

    /// Ends all locks of `owner`, if there may be any. `closed`: those taken through this open, which is over.
    pub(super) fn unlock_all(
        &self,
        ino: InodeNo,
        owner: u64,
        closed: Option<OpenId>,
    ) -> Result<(), Errno> {
        let Some(unlocking) = self.locked.begin_unlock(&(ino, owner), closed) else {
            return Ok(());
        };
        self.unlock(LockRequest { ino, owner, start: 0, end: u64::MAX, kind: None, pid: 0 })?;
        self.locked.end_unlock(&(ino, owner), unlocking);
        Ok(())
    }

    /// What was written under it is visible to others first; an error of that is told when it is unlocked.
    fn unlock(&self, request: LockRequest) -> Result<(), Errno> {
        let flushed = self.session.file(request.ino).flush();
        self.session.set_lock(request, None, &|| self.stopping.load(Ordering::Acquire))?;
        Ok(flushed?)
    }

    fn ask_for_lock(
        &self,
        request: LockRequest,
        wait: bool,
        cancelled: &Cancelled,
    ) -> Result<(), Errno> {
        let wait_max = wait.then_some(self.options.lock_wait_max);
        let stopping = || self.stopping.load(Ordering::Acquire) || cancelled.is_cancelled();
        let ask = || self.session.set_lock(request, wait_max, &stopping);
        match self.behind_releases((request.ino, request.owner), ask) {
            Err(ClientError::Refused(NamespaceError::Locked)) if wait => {
                // Not EINTR: the kernel would restart the call at the next signal, and show 512 without one.
                Err(Errno::TIMED_OUT)
            }
            asked => Ok(asked?),
        }
    }

    /// Asks for a lock when those of files that were closed before it are given back: closing a file and locking it again
    /// is one thing after the other, also here.
    fn behind_releases(
        &self,
        key: Key,
        ask: impl Fn() -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut tries = LOCK_TRIES;
        loop {
            let place = self.releases.wait_for_those_before(key.0);
            let answer = ask();
            tries -= 1;
            let refused = matches!(answer, Err(ClientError::Refused(NamespaceError::Locked)));
            if !refused || tries == 0 {
                return answer;
            }
            // One that begins only now may have been read from the kernel's queue before the lock was.
            let may_come = self.locked.may_be_closing(&key);
            let patience = if may_come { RELEASE_WAIT_MAX } else { Duration::ZERO };
            if !self.releases.any_since(key.0, place, patience) {
                return answer;
            }
        }
    }

    /// What another mount wrote under the lock before us must be seen now.
    fn forget_cached(&self, ino: InodeNo, pid: u32) -> Result<(), Errno> {
        let file = self.session.file(ino);
        let attr = file.attr()?;
        if attr.writing {
            // What others only synced is not in the change number yet.
            self.session.outdate_if_written_elsewhere(ino)?;
        }
        if !self.may_keep_pages(ino, attr.change) {
            file.invalidate();
            self.dropped.note(ino, pid);
            // Attributes go with the pages.
            let _also_attributes = self.beliefs.must_drop(ino, SHARED_FOR);
            self.drop_kernel_cache(ino);
            self.pages.dropped(ino, attr.change);
        }
        Ok(())
    }
}
