//! The file system behind the seam: what each operation of the kernel means in calls of dfs-client.
//!
//! Knows no transport and keeps no table of kernel ids: a node id is an inode number, a file handle the number of an open,
//! directory offsets are the master's cookies, opens are counted by the session. What it does keep (change numbers
//! of cached pages, hints about locks, prefetched entries) may be lost at any time. Any thread may call it.

mod attributes;
mod content;
mod directories;
mod dropped;
mod locked;
mod locks;
mod names;
pub(crate) mod reads;
mod releases;
mod stale;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dfs_client::ClientError;
use dfs_client::deadline::Deadline;
use dfs_client::session::{LockRequest, RequestUnderWay, Session};
use dfs_core::command::{Change, Outcome};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FileKind};

use crate::buffers::Buffers;
use crate::cache::{Beliefs, Bounded, Hints, KernelSizes, Lifetimes, PageVersions};
use crate::errno::Errno;
use crate::metrics::Metrics;
use crate::seam::{Call, Entry, Operation, Reply};

/// Inodes whose pages are remembered; 16 bytes each and what a map adds.
const PAGE_VERSIONS_MAX: usize = 65_536;
/// Locks and unsynced files remembered before every close asks the master.
const HINTS_MAX: usize = 16_384;

/// Numbers of opens of one process; far more than it makes.
const OPENS_SHIFT: u32 = 40;

/// A write is not answered for so long while its pages are dropped.
const DROP_WAIT: Duration = Duration::from_millis(50);

/// Files just created that are remembered.
const BARE_MAX: usize = 4096;

/// What the file system asks of the kernel without being asked.
pub trait KernelCache: Send + Sync + fmt::Debug {
    /// Drops attributes and pages of `ino`; returns when they are gone.
    fn drop_inode(&self, ino: InodeNo);
    /// Drops the attributes of `ino` only.
    fn drop_attributes(&self, ino: InodeNo);
}

/// What may be chosen for one mount.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub lifetimes: Lifetimes,
    /// A waiting lock ends after this (DECISIONS 11).
    pub lock_wait_max: Duration,
    /// Nothing may be in this process's memory only: what is written is on the servers before it is answered.
    pub write_through: bool,
}

/// One mount.
#[derive(Debug)]
pub struct FileSystem {
    session: Arc<Session>,
    options: Options,
    kernel: std::sync::OnceLock<Arc<dyn KernelCache>>,
    /// Files created here, and when: they have no extended attributes.
    bare: Mutex<Bounded<InodeNo, Instant>>,
    metrics: Arc<Metrics>,
    buffers: Buffers,
    pages: PageVersions,
    dropped: dropped::Dropped,
    stale_opens: stale::StaleOpens,
    /// Whose last page may be cached, with zeros behind the end.
    ends: Hints<InodeNo>,
    sizes: KernelSizes,
    beliefs: Beliefs,
    locked: locked::Locked,
    lock_waits: locks::Waits,
    releases: releases::Releases,
    reads: Arc<reads::Reads>,
    /// Written here and perhaps not stable: a rename over an existing name makes them so first (DECISIONS 7).
    unsynced: Hints<InodeNo>,
    listings: directories::Listings,
    /// Bytes; see [`Self::set_whole_write_max`].
    whole_write_max: std::sync::atomic::AtomicUsize,
    stopping: std::sync::atomic::AtomicBool,
    /// Shared by requests that leave bytes to be sent; true: no more of them.
    last_bytes_taken: RwLock<bool>,
    /// Number of the next open.
    opens: std::sync::atomic::AtomicU64,
}

type Answer = Result<Reply, Errno>;

impl FileSystem {
    #[must_use]
    pub fn new(session: Arc<Session>, options: Options, metrics: Arc<Metrics>) -> Self {
        let generation = session.config().kept.as_ref().map_or(1, |kept| kept.generation());
        // A predecessor took locks and opened files that are not known here.
        let follows = 1 < generation;
        let first_open = (generation - 1) << OPENS_SHIFT | 1;
        Self {
            session,
            options,
            kernel: std::sync::OnceLock::new(),
            bare: Mutex::new(Bounded::new(BARE_MAX)),
            metrics,
            buffers: Buffers::default(),
            pages: PageVersions::new(PAGE_VERSIONS_MAX),
            dropped: dropped::Dropped::default(),
            stale_opens: stale::StaleOpens::default(),
            ends: Hints::new(PAGE_VERSIONS_MAX),
            sizes: KernelSizes::new(PAGE_VERSIONS_MAX),
            beliefs: Beliefs::new(PAGE_VERSIONS_MAX),
            opens: std::sync::atomic::AtomicU64::new(first_open),
            locked: locked::Locked::new(HINTS_MAX, follows),
            lock_waits: locks::Waits::default(),
            releases: releases::Releases::default(),
            reads: Arc::default(),
            unsynced: if follows { Hints::unknown() } else { Hints::new(HINTS_MAX) },
            listings: directories::Listings::default(),
            whole_write_max: std::sync::atomic::AtomicUsize::new(usize::MAX),
            stopping: std::sync::atomic::AtomicBool::new(false),
            last_bytes_taken: RwLock::new(false),
        }
    }

    /// Set once, after mounting and before the first request.
    pub fn set_kernel(&self, kernel: Box<dyn KernelCache>) {
        // A second one would be of the same connection: the first stays.
        let _ = self.kernel.set(Arc::from(kernel));
    }

    /// Longer requests to write may be parts of one call that the transport cut. Set before the first request.
    pub fn set_whole_write_max(&self, bytes: usize) {
        self.whole_write_max.store(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ends waiting locks, so that an unmount does not wait for them.
    pub fn stop_waiting(&self) {
        self.stopping.store(true, std::sync::atomic::Ordering::Release);
    }

    /// From now on no bytes are taken: what is sent after this returns is all that was. Waits for requests under way.
    pub fn take_no_more_bytes(&self) {
        *self.last_bytes_taken.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Answers one request; blocks until it is done.
    pub fn handle(&self, call: Call<'_>) -> Reply {
        let name = call.operation.name();
        let started = Instant::now();
        // A lock is waited for by asking again and again.
        let until =
            (!call.operation.waits()).then(|| Deadline::begin(self.session.config().server_wait));
        let only_asks = call.operation.only_asks();
        let pid = call.caller.pid;
        let watch = only_asks || call.operation.may_be_given_up();
        let watch = watch.then(|| call.cancelled.watch(!only_asks));
        let answer = match call.operation.leaves_bytes() {
            true => {
                let ended = self.last_bytes_taken.read().unwrap_or_else(PoisonError::into_inner);
                if *ended { Err(Errno::NOT_CONNECTED) } else { self.perform(call) }
            }
            false => self.perform(call),
        };
        drop((until, watch));
        let failed = match &answer {
            Err(errno) => Some(*errno),
            Ok(_) => None,
        };
        if failed == Some(Errno::STALE) {
            self.stale_opens.refused(pid);
        }
        self.metrics.operation_done(name, started.elapsed(), failed);
        answer.unwrap_or_else(Reply::Failed)
    }

    fn perform(&self, call: Call<'_>) -> Answer {
        let Call { caller, operation, payload, cancelled } = call;
        match operation {
            Operation::Lookup { parent, name } => self.lookup(parent, &name),
            Operation::GetAttr { ino } => self.get_attr(ino),
            Operation::SetAttr { ino, set } => self.set_attr(caller, ino, set),
            Operation::ReadLink { ino } => Ok(Reply::Link(self.session.readlink(ino)?)),
            Operation::Mknod { parent, name, mode, umask, rdev } => {
                self.mknod(caller, parent, name, mode, umask, rdev)
            }
            Operation::Mkdir { parent, name, mode, umask } => {
                self.mkdir(caller, parent, name, mode, umask)
            }
            Operation::Symlink { parent, name, target } => {
                self.symlink(caller, parent, name, target)
            }
            Operation::Link { ino, parent, name } => self.link(ino, parent, name),
            Operation::Unlink { parent, name } => {
                self.change(Change::Unlink { parent, name }).map(|_| Reply::Done)
            }
            Operation::Rmdir { parent, name } => {
                self.change(Change::Rmdir { parent, name }).map(|_| Reply::Done)
            }
            Operation::Rename { from_parent, from, to_parent, to, flags } => {
                self.rename(from_parent, from, to_parent, to, flags)
            }
            Operation::Create { parent, name, mode, umask, flags } => {
                self.create(caller, parent, name, mode, umask, flags)
            }
            Operation::CreateUnnamed { parent, mode, umask, flags } => {
                self.create_unnamed(caller, parent, (mode, umask), flags)
            }
            Operation::Open { ino, flags } => self.open(caller, ino, flags),
            Operation::Read { ino, open, offset, len, direct } => {
                self.read(caller.pid, (ino, open), offset, len, direct)
            }
            Operation::Write { ino, offset, flags, from_page_cache, kill_priv } => {
                let written = self.write(ino, offset, &payload, flags, from_page_cache, kill_priv);
                // What is written through a map stays in its page until it is sent.
                if !from_page_cache && self.dropped.may_lack(ino, caller.pid) {
                    self.drop_once_more(ino, caller.pid);
                }
                written
            }
            Operation::Flush { ino, open, lock_owner } => self.flush(ino, open, lock_owner),
            Operation::Release { ino, open, flags, flock_owner } => {
                self.release(ino, open, flags, flock_owner)
            }
            Operation::Fsync { ino, open, datasync } => self.fsync(ino, open, datasync),
            // Names are committed before their operation is answered.
            Operation::OpenDir { .. }
            | Operation::ReleaseDir { .. }
            | Operation::FsyncDir { .. } => Ok(Reply::Done),
            Operation::ReadDir { ino, cookie, plus } => self.read_dir(ino, cookie, plus),
            Operation::Statfs => Ok(Reply::Statfs(self.session.statfs()?)),
            Operation::SetXattr { ino, name, flags } => self.set_xattr(ino, name, &payload, flags),
            Operation::GetXattr { ino, name, size_max } => self.get_xattr(ino, &name, size_max),
            Operation::ListXattr { ino, size_max } => self.list_xattr(caller, ino, size_max),
            Operation::RemoveXattr { ino, name } => self.remove_xattr(ino, name),
            Operation::GetLock { ino, owner, start, end, kind } => {
                self.get_lock(ino, owner, start, end, kind)
            }
            Operation::SetLock { ino, open, owner, start, end, kind, pid, wait } => {
                let request = LockRequest { ino, owner, start, end, kind, pid };
                self.set_lock(caller.pid, request, open, wait, &cancelled)
            }
            Operation::Fallocate { ino, offset, len, mode } => {
                self.fallocate(caller, ino, offset, len, mode)
            }
            Operation::Seek { ino, offset, whence } => self.seek(ino, offset, whence),
            Operation::CopyRange { from, from_offset, to, to_offset, len, flags } => {
                self.copy_range((from, from_offset), (to, to_offset), len, flags)
            }
            Operation::Ioctl => Err(Errno::NO_IOCTL),
        }
    }

    /// Makes one change; prefetched attributes are older than it from now on.
    fn change(&self, change: Change) -> Result<Outcome, Errno> {
        let outcome = self.session.change(change);
        self.listings.outdate();
        Ok(outcome?)
    }

    fn entry(&self, attr: Attr) -> Entry {
        let Lifetimes { attr: attr_ttl, entry: entry_ttl } = self.options.lifetimes;
        self.sizes.told(attr.ino, attr.size);
        let attr_ttl = self.lifetime(&attr, attr_ttl);
        Entry { attr, attr_ttl, entry_ttl }
    }

    fn attr_reply(&self, attr: Attr) -> Reply {
        self.sizes.told(attr.ino, attr.size);
        let ttl = self.lifetime(&attr, self.options.lifetimes.attr);
        Reply::Attr { attr, ttl }
    }

    /// How long `attr` may live in the kernel.
    fn lifetime(&self, attr: &Attr, most: Duration) -> Duration {
        if attr.kind == FileKind::File {
            self.beliefs.lifetime(attr.ino, attr.change, most)
        } else {
            most
        }
    }

    /// What this request asks for is asked for once, also by another process, until what is answered is dropped: after the
    /// answer.
    pub(crate) fn begin_request(&self, call: &Call<'_>) -> Option<RequestUnderWay> {
        if call.operation.only_asks() {
            return None;
        }
        self.session.begin_request(call.caller.unique)
    }

    /// The kernel has sent again all that predecessors of this process did not answer: these requests. Answers how many
    /// of them had been begun with.
    pub(crate) fn forget_left_but(&self, resent: &[u64]) -> usize {
        self.session.forget_left_but(resent)
    }

    /// Requests that predecessors began with are to be carried out in the order of this.
    pub(crate) fn left_place(&self, request: u64) -> u64 {
        self.session.left_place(request)
    }

    /// A read has been taken from the kernel's queue; kept until it is answered.
    pub(crate) fn begin_read(&self, ino: InodeNo, offset: u64) -> reads::ReadUnderWay {
        self.reads.begin(ino, offset)
    }

    /// The kernel has the answer to a read of `answered` bytes through its cache.
    pub(crate) fn end_read(&self, under_way: reads::ReadUnderWay, asked: u32, answered: usize) {
        let (ino, offset) = under_way.place();
        drop(under_way);
        let end = offset + answered as u64;
        // It was told of more while this was on its way: the page would show zeros there.
        if answered < asked as usize && self.sizes.may_exceed(ino, end) {
            self.drop_kernel_cache(ino);
        }
    }

    fn drop_kernel_attributes(&self, ino: InodeNo) {
        if let Some(kernel) = self.kernel.get() {
            kernel.drop_attributes(ino);
        }
    }

    fn drop_kernel_cache(&self, ino: InodeNo) {
        if let Some(kernel) = self.kernel.get() {
            kernel.drop_inode(ino);
        }
    }

    /// Drops the pages of `ino` once more after a write of `pid` that is not answered yet.
    fn drop_once_more(&self, ino: InodeNo, pid: u32) {
        self.dropped.note_again(ino);
        if self.drop_beside(ino) {
            self.dropped.heard_of(ino, pid);
        }
    }

    /// As [`Self::drop_kernel_cache`], before a write is answered: pages that it filled anew are locked until it is, and
    /// not waited for. True: they are gone.
    fn drop_beside(&self, ino: InodeNo) -> bool {
        let Some(kernel) = self.kernel.get().map(Arc::clone) else { return true };
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let begun = std::thread::Builder::new().name("drop-pages".to_owned()).spawn(move || {
            kernel.drop_inode(ino);
            // Nobody may be waiting any more.
            let _ = tell.send(());
        });
        match begun {
            Ok(_) => told.recv_timeout(DROP_WAIT).is_ok(),
            Err(error) => {
                tracing::warn!(ino = ino.0, %error, "begin a thread to drop pages");
                false
            }
        }
    }
}

/// An outcome of another kind than the change has.
fn unexpected(outcome: &Outcome) -> Errno {
    tracing::error!(?outcome, "master answered a change with an outcome of another kind");
    Errno::from(ClientError::Protocol { reason: "outcome of another kind".to_owned() })
}
