//! Content: open, read, write, close, and what moves or frees bytes.
//!
//! An append is written behind, unless it asks to be stable; the kernel's offset is ignored (DECISIONS 9).

use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_client::ClientError;
use dfs_client::error::OpenId;
use dfs_core::ids::InodeNo;
use dfs_core::namespace::Attr;

use super::{Answer, FileSystem};
use crate::errno::Errno;
use crate::seam::{CacheUse, Caller, OpenFlags, Reply};

/// Bytes one `copy_file_range` moves at most; the caller asks again for the rest.
const COPY_BYTES_MAX: u64 = 32 << 20;
const COPY_STEP_BYTES: usize = 1 << 20;
/// Attributes of a file that others were seen to change do not live for so long: longer than programs that take turns at one
/// usually wait for one another.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(10);
/// The same of one that somebody is writing.
const WRITTEN_FOR: Duration = Duration::from_secs(1);

impl FileSystem {
    pub(super) fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Answer {
        let (attr, cache) = self.open_file(caller, ino, flags)?;
        Ok(Reply::Opened { cache, open: self.new_open(&attr, flags, cache) })
    }

    /// Numbers what was opened.
    pub(super) fn new_open(&self, attr: &Attr, flags: OpenFlags, cache: CacheUse) -> OpenId {
        let open = OpenId::new(self.opens.fetch_add(1, Ordering::Relaxed), flags.writes());
        if flags.writes() {
            self.session.file(attr.ino).opened_as(open);
        }
        if cache == CacheUse::Fresh {
            self.pages.dropping_with(open, attr.ino, attr.change);
        }
        open
    }

    pub(super) fn open_file(
        &self,
        caller: Caller,
        ino: InodeNo,
        flags: OpenFlags,
    ) -> Result<(Attr, CacheUse), Errno> {
        let writes = flags.writes();
        let mut attr = self.session.open(ino, writes)?;
        if !self.stale_opens.may_go_on(caller.pid, attr.nlink == 0) {
            self.session.release(ino, writes);
            return Err(Errno::STALE);
        }
        if flags.has(libc::O_TRUNC) {
            match self.truncate(caller, ino, 0) {
                Ok(cut) => attr = cut,
                Err(errno) => {
                    // The kernel will not release what was not opened.
                    self.session.release(ino, writes);
                    return Err(errno);
                }
            }
        }
        // A listing that was fetched before does not know better.
        self.sizes.reaches(ino, 0);
        let mut cache = self.cache_use(&attr, flags);
        if cache == CacheUse::Fresh && self.sizes.may_exceed(ino, attr.size) {
            // Until it has asked for the size, which the next open or `stat` makes it do.
            cache = CacheUse::Direct;
        }
        // An open does not tell the kernel the size, and what it believes may be as old as attributes live.
        let told = self.beliefs.change(ino);
        let is_current = told == Some(attr.change) && !attr.writing;
        if (cache != CacheUse::Keep || attr.writing) && !is_current {
            let only_here = |since| self.session.changed_only_here(ino, since, attr.change);
            let shared_for = if told.is_some_and(|since| since != attr.change && !only_here(since))
            {
                SHARED_FOR
            } else if attr.writing {
                WRITTEN_FOR
            } else {
                Duration::ZERO
            };
            if self.beliefs.must_drop(ino, shared_for) {
                self.drop_kernel_attributes(ino);
            }
        }
        Ok((attr, cache))
    }

    pub(super) fn cache_use(&self, attr: &Attr, flags: OpenFlags) -> CacheUse {
        let (cache, pages) =
            if flags.has(libc::O_DIRECT) || flags.has(libc::O_APPEND) && flags.writes() {
                (CacheUse::Direct, "direct")
            } else if self.forget_outdated(attr.ino) && attr.writing {
                // Others write it now. The last page would be kept with zeros behind the end of this moment, and the
                // kernel shows those as soon as it learns of a later one.
                (CacheUse::Direct, "direct")
            } else if self.may_keep_pages(attr.ino, attr.change) {
                (CacheUse::Keep, "kept")
            } else if self.may_be_written_by_others_here(attr.ino, flags) {
                (CacheUse::Direct, "direct")
            } else {
                (CacheUse::Fresh, "fresh")
            };
        self.metrics.opens.inc(pages);
        cache
    }

    /// The kernel copies a write into a page, lets go of the page, and only then sends the request: dropped in between, and
    /// read again, it would lack those bytes for good. Besides what was opened with `flags` just now.
    fn may_be_written_by_others_here(&self, ino: InodeNo, flags: OpenFlags) -> bool {
        let own = u32::from(flags.writes());
        own < self.session.write_opens(ino) || flags.writes() && self.pages.is_dropping(ino)
    }

    /// Whether what is cached may be older than its change number says; it is not counted on from now on.
    fn forget_outdated(&self, ino: InodeNo) -> bool {
        let outdated = self.session.file(ino).take_outdated();
        if outdated {
            self.pages.forget(ino);
        }
        outdated
    }

    /// Whether the kernel's pages hold what is at `change`.
    pub(super) fn may_keep_pages(&self, ino: InodeNo, change: u64) -> bool {
        self.forget_outdated(ino);
        let only_here = |since| self.session.changed_only_here(ino, since, change);
        self.pages.may_keep(ino, change, only_here)
    }

    pub(super) fn read(
        &self,
        pid: u32,
        (ino, open): (InodeNo, OpenId),
        offset: u64,
        len: u32,
        direct: bool,
    ) -> Answer {
        if !direct {
            self.dropped.read(ino, pid);
        }
        self.pages.used(open);
        let mut buffer = self.buffers.get(len as usize);
        let file = self.session.file(ino);
        let out = buffer.as_mut_slice();
        let mut read = if direct { file.read_now(offset, out)? } else { file.read(offset, out)? };
        if !direct && read < out.len() {
            // In this order: whoever makes the kernel believe in more looks in the other.
            self.ends.add(ino);
            if self.sizes.may_exceed(ino, offset + read as u64) {
                // It was told of what this did not find, and would fill its page with zeros.
                read = file.read_now(offset, out)?;
            }
        }
        if read == 0 && 0 < offset && self.sizes.may_exceed(ino, offset) {
            self.reads.wait_for_those_before(ino, offset);
        }
        buffer.truncate(read);
        self.metrics.bytes_read.inc_by(read as u64);
        Ok(Reply::Data(buffer))
    }

    pub(super) fn write(
        &self,
        ino: InodeNo,
        offset: u64,
        data: &[u8],
        flags: OpenFlags,
        from_page_cache: bool,
        kill_priv: bool,
    ) -> Answer {
        let file = self.session.file(ino);
        if kill_priv {
            file.set_kill_priv();
        }
        // O_SYNC contains O_DSYNC.
        let stable = flags.has(libc::O_DSYNC);
        self.unsynced.add(ino);
        if from_page_cache {
            file.write(offset, data)?;
        } else if flags.has(libc::O_APPEND) {
            // Each request would be a record of its own. What cannot be whole is refused with its first request, so
            // that nothing of it is stored: those behind it do not come.
            let most = self.whole_write_max.load(Ordering::Relaxed);
            if most < data.len() && file.is_record_log()? {
                let (bytes, most) = (data.len() as u64, most as u64);
                return Err(ClientError::RecordTooLong { bytes, most }.into());
            }
            if stable || self.options.write_through {
                file.append(data)?;
            } else {
                file.append_behind(data)?;
            }
        } else {
            file.write(offset, data)?;
            if stable {
                file.fsync()?;
            }
        }
        if self.options.write_through {
            file.flush()?;
        }
        self.listings.outdate();
        // Where an append went, the kernel does not know either: it adds to what it believes.
        let end = if flags.has(libc::O_APPEND) { u64::MAX } else { offset + data.len() as u64 };
        let grows = end == u64::MAX || !self.sizes.may_exceed(ino, end.saturating_sub(1));
        self.sizes.reaches(ino, end);
        // Past the pages: the kernel believes the file to be longer now, and keeps a page that ends with zeros.
        let past_pages = flags.has(libc::O_DIRECT) || flags.has(libc::O_APPEND);
        if past_pages && !from_page_cache && grows && self.ends.may_hold(&ino) {
            self.ends.remove(&ino);
            let _or_soon = self.drop_beside(ino);
        }
        self.metrics.bytes_written.inc_by(data.len() as u64);
        // The kernel sends at most max_write, 1 MiB.
        Ok(Reply::Written(u32::try_from(data.len()).map_err(|_| Errno::INVALID)?))
    }

    pub(super) fn flush(&self, ino: InodeNo, open: OpenId, lock_owner: u64) -> Answer {
        self.pages.used(open);
        self.locked.closing(ino, open);
        let flushed = self.session.file(ino).close(open);
        self.drop_pages_of_lost_bytes(ino);
        // Whatever became of the bytes, the locks of a closed descriptor end (`close(2)`, POSIX).
        self.unlock_all(ino, lock_owner, None)?;
        flushed?;
        Ok(Reply::Done)
    }

    pub(super) fn release(
        &self,
        ino: InodeNo,
        open: OpenId,
        flags: OpenFlags,
        flock_owner: Option<u64>,
    ) -> Answer {
        // Before anything else: the process that closed the file is not waiting any more, and others may be.
        if let Some(owner) = flock_owner {
            let _under_way = self.releases.begin(ino);
            if let Err(errno) = self.unlock_all(ino, owner, Some(open)) {
                tracing::warn!(ino = ino.0, ?errno, "lock of a closed file could not be released");
            }
        }
        self.pages.used(open);
        if flags.writes() {
            self.session.file(ino).released_as(open);
        }
        self.session.release(ino, flags.writes());
        Ok(Reply::Done)
    }

    /// The kernel's pages were written before the bytes were given up.
    fn drop_pages_of_lost_bytes(&self, ino: InodeNo) {
        if self.session.file(ino).take_outdated() {
            self.pages.forget(ino);
            self.drop_kernel_cache(ino);
        }
    }

    pub(super) fn fsync(&self, ino: InodeNo, open: OpenId, datasync: bool) -> Answer {
        let synced = self.session.file(ino).sync(open, datasync);
        self.drop_pages_of_lost_bytes(ino);
        synced?;
        self.unsynced.remove(&ino);
        Ok(Reply::Done)
    }

    pub(super) fn fallocate(
        &self,
        caller: Caller,
        ino: InodeNo,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Answer {
        let file = self.session.file(ino);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => file.allocate(offset, len, keep_size)?,
            // fallocate(2): PUNCH_HOLE must come with KEEP_SIZE.
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => file.zero(offset, len, true)?,
            libc::FALLOC_FL_ZERO_RANGE => file.zero(offset, len, keep_size)?,
            // COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE, and what is not invented yet.
            _ => return Err(Errno::NOT_SUPPORTED),
        }
        if self.options.write_through {
            file.flush()?;
        }
        if !keep_size {
            self.sizes.reaches(ino, offset.saturating_add(len));
        }
        self.kill_privileges_of(caller, ino);
        self.unsynced.add(ino);
        self.listings.outdate();
        Ok(Reply::Done)
    }

    pub(super) fn seek(&self, ino: InodeNo, offset: i64, whence: i32) -> Answer {
        let file = self.session.file(ino);
        let from = u64::try_from(offset).map_err(|_| Errno::NO_SUCH_OFFSET)?;
        let found = match whence {
            libc::SEEK_DATA => file.seek_data(from)?,
            libc::SEEK_HOLE => file.seek_hole(from)?,
            _ => return Err(Errno::INVALID),
        };
        let found = found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::NO_SUCH_OFFSET)?;
        Ok(Reply::Offset(found))
    }

    pub(super) fn copy_range(
        &self,
        (from, from_offset): (InodeNo, u64),
        (to, to_offset): (InodeNo, u64),
        len: u64,
        flags: u64,
    ) -> Answer {
        if flags != 0 {
            return Err(Errno::INVALID);
        }
        let (source, target) = (self.session.file(from), self.session.file(to));
        let wanted = len.min(COPY_BYTES_MAX);
        let mut copied = 0u64;
        while copied < wanted {
            let left = usize::try_from(wanted - copied).unwrap_or(COPY_STEP_BYTES);
            let mut buffer = self.buffers.get(left.min(COPY_STEP_BYTES));
            let read = source.read(from_offset + copied, buffer.as_mut_slice());
            let written = read.and_then(|read| {
                buffer.truncate(read);
                target.write(to_offset + copied, buffer.as_slice()).map(|()| read as u64)
            });
            match written {
                Ok(0) => break,
                Ok(step) => copied += step,
                // copy_file_range(2) answers what was copied; the next call meets the error again.
                Err(_) if 0 < copied => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.options.write_through {
            target.flush()?;
        }
        self.sizes.reaches(to, to_offset.saturating_add(copied));
        self.unsynced.add(to);
        self.listings.outdate();
        Ok(Reply::Written(u32::try_from(copied).map_err(|_| Errno::IO)?))
    }
}
