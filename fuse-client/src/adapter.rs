//! fuser callbacks: decode, call, reply. The only module that knows fuser.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation has one kind of reply; `failure` answers for all others, also new ones"
)]

mod convert;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use dfs_client::error::OpenId;
use dfs_core::command::SetTime;
use dfs_core::ids::InodeNo;
use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL,
    TimeOrNow, WriteFlags,
};

use crate::errno::Errno;
use crate::fs::{FileSystem, KernelCache};
use crate::metrics::Metrics;
use crate::mount_point;
use crate::seam::{Call, Caller, Cancelled, OpenFlags, Operation, Reply, SetAttr};
use crate::transport::{
    self, BACKGROUND_MAX, Connected, Dispatch, PAGES_LEAST, WRITE_BYTES_MAX, page_bytes,
    pages_of_request, whole_write_max,
};
use convert::{dir_entry_attr, file_attr, file_type, fopen_flags, lock_kind, lock_type, set_time};

/// fuser wants a generation; inode numbers are never used again.
const GENERATION: Generation = Generation(0);
/// Handles say nothing: all state is with the inode, or comes with each request.
const NO_HANDLE: FileHandle = FileHandle(0);

/// The connection to the kernel.
#[derive(Debug)]
pub(crate) struct Adapter {
    dispatch: Dispatch,
}

impl Adapter {
    pub(crate) fn new(fs: Arc<FileSystem>, metrics: Arc<Metrics>, readers: usize) -> Self {
        Self { dispatch: Dispatch::new(fs, metrics, readers) }
    }

    /// Answers a request here if another reader is free, else on a thread of its own.
    fn answer<F>(&self, req: &Request, operation: Operation, payload: &[u8], reply: F)
    where
        F: FnOnce(Reply) + Send + 'static,
    {
        let caller =
            Caller { unique: req.unique().0, uid: req.uid(), gid: req.gid(), pid: req.pid() };
        // fuser answers INTERRUPT itself.
        let cancelled = Cancelled::default();
        self.dispatch.answer(Call { caller, operation, payload: payload.into(), cancelled }, reply);
    }
}

fn ino(ino: INodeNo) -> InodeNo {
    InodeNo(ino.0)
}

fn name(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

fn failure(reply: Reply) -> fuser::Errno {
    errno(transport::failure(&reply))
}

fn reply_done(reply: ReplyEmpty) -> impl FnOnce(Reply) + Send {
    move |answer| match answer {
        Reply::Done => reply.ok(),
        other => reply.error(failure(other)),
    }
}

fn reply_entry(reply: ReplyEntry) -> impl FnOnce(Reply) + Send {
    move |answer| match answer {
        Reply::Entry(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &file_attr(&entry.attr),
            GENERATION,
        ),
        other => reply.error(failure(other)),
    }
}

fn reply_attr(reply: ReplyAttr) -> impl FnOnce(Reply) + Send {
    move |answer| match answer {
        Reply::Attr { attr, ttl } => reply.attr(&ttl, &file_attr(&attr)),
        other => reply.error(failure(other)),
    }
}

fn reply_written(reply: ReplyWrite) -> impl FnOnce(Reply) + Send {
    move |answer| match answer {
        Reply::Written(bytes) => reply.written(bytes),
        other => reply.error(failure(other)),
    }
}

fn reply_xattr(reply: ReplyXattr) -> impl FnOnce(Reply) + Send {
    move |answer| match answer {
        Reply::XattrSize(size) => reply.size(size),
        Reply::Xattr(value) => reply.data(&value),
        other => reply.error(failure(other)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // O_APPEND files are opened past the cache and may still be mapped (DECISIONS 9).
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        let mut pages = pages_of_request();
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::warn!(?missing, "this kernel's FUSE lacks a feature");
                if missing.contains(InitFlags::FUSE_MAX_PAGES) {
                    pages = PAGES_LEAST;
                }
            }
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        self.dispatch.fs.set_whole_write_max(whole_write_max(pages, page_bytes()));
        // The kernel says how much it allows; all of that.
        let _ = config.set_max_readahead(u32::MAX).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEntry) {
        let operation = Operation::Lookup { parent: ino(parent), name: name(child) };
        self.answer(req, operation, &[], reply_entry(reply));
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(req, Operation::GetAttr { ino: ino(node) }, &[], reply_attr(reply));
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let keep_or = |time: Option<TimeOrNow>| time.map_or(SetTime::Keep, set_time);
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: keep_or(atime),
            mtime: keep_or(mtime),
        };
        self.answer(req, Operation::SetAttr { ino: ino(node), set }, &[], reply_attr(reply));
    }

    fn readlink(&self, req: &Request, node: INodeNo, reply: ReplyData) {
        self.answer(req, Operation::ReadLink { ino: ino(node) }, &[], |answer| match answer {
            Reply::Link(target) => reply.data(&target),
            other => reply.error(failure(other)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let operation =
            Operation::Mknod { parent: ino(parent), name: name(child), mode, umask, rdev };
        self.answer(req, operation, &[], reply_entry(reply));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let operation = Operation::Mkdir { parent: ino(parent), name: name(child), mode, umask };
        self.answer(req, operation, &[], reply_entry(reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        let operation = Operation::Unlink { parent: ino(parent), name: name(child) };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        let operation = Operation::Rmdir { parent: ino(parent), name: name(child) };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        child: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = name(target.as_os_str());
        let operation = Operation::Symlink { parent: ino(parent), name: name(child), target };
        self.answer(req, operation, &[], reply_entry(reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        child: &OsStr,
        new_parent: INodeNo,
        new_child: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Rename {
            from_parent: ino(parent),
            from: name(child),
            to_parent: ino(new_parent),
            to: name(new_child),
            flags: flags.bits(),
        };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn link(
        &self,
        req: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_child: &OsStr,
        reply: ReplyEntry,
    ) {
        let operation =
            Operation::Link { ino: ino(node), parent: ino(new_parent), name: name(new_child) };
        self.answer(req, operation, &[], reply_entry(reply));
    }

    fn open(&self, req: &Request, node: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let operation = Operation::Open { ino: ino(node), flags: OpenFlags(flags.0) };
        self.answer(req, operation, &[], |answer| match answer {
            Reply::Opened { cache, open } => {
                reply.opened(FileHandle(open.to_bits()), fopen_flags(cache));
            }
            other => reply.error(failure(other)),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        child: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let operation = Operation::Create {
            parent: ino(parent),
            name: name(child),
            mode,
            umask,
            flags: OpenFlags(flags),
        };
        self.answer(req, operation, &[], |answer| match answer {
            // fuser has one lifetime for both here.
            Reply::Created { entry, cache, open } => reply.created(
                &entry.attr_ttl.min(entry.entry_ttl),
                &file_attr(&entry.attr),
                GENERATION,
                FileHandle(open.to_bits()),
                fopen_flags(cache),
            ),
            other => reply.error(failure(other)),
        });
    }

    fn read(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let flags = OpenFlags(flags.0);
        // What is opened so has no pages that it could be behind with.
        let direct = flags.has(libc::O_DIRECT) || flags.has(libc::O_APPEND) && flags.writes();
        let (ino, open) = (ino(node), OpenId::from_bits(fh.0));
        let operation = Operation::Read { ino, open, offset, len: size, direct };
        let fs = Arc::clone(&self.dispatch.fs);
        let under_way = fs.begin_read(ino, offset);
        self.answer(req, operation, &[], move |answer| match answer {
            Reply::Data(buffer) => {
                reply.data(buffer.as_slice());
                if !direct {
                    fs.end_read(under_way, size, buffer.as_slice().len());
                }
            }
            other => {
                reply.error(failure(other));
                drop(under_way);
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let operation = Operation::Write {
            ino: ino(node),
            offset,
            flags: OpenFlags(flags.0),
            from_page_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill_priv: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.answer(req, operation, data, reply_written(reply));
    }

    fn flush(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Flush {
            ino: ino(node),
            open: OpenId::from_bits(fh.0),
            lock_owner: lock_owner.0,
        };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn release(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        flags: fuser::OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Release {
            ino: ino(node),
            open: OpenId::from_bits(fh.0),
            flags: OpenFlags(flags.0),
            flock_owner: lock_owner.map(|owner| owner.0),
        };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn fsync(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let operation =
            Operation::Fsync { ino: ino(node), open: OpenId::from_bits(fh.0), datasync };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn opendir(&self, req: &Request, node: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        let operation = Operation::OpenDir { ino: ino(node) };
        self.answer(req, operation, &[], |answer| match answer {
            Reply::Done => reply.opened(NO_HANDLE, FopenFlags::empty()),
            other => reply.error(failure(other)),
        });
    }

    fn readdir(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let operation = Operation::ReadDir { ino: ino(node), cookie: offset, plus: false };
        self.answer(req, operation, &[], move |answer| match answer {
            Reply::Entries(listing) => {
                let full = listing.dots.iter().any(|dot| {
                    let kind = fuser::FileType::Directory;
                    reply.add(INodeNo(dot.ino.0), dot.cookie, kind, OsStr::from_bytes(dot.name))
                });
                let _full = full
                    || listing.entries[listing.range].iter().any(|entry| {
                        let (node, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
                        reply.add(node, entry.cookie, kind, OsStr::from_bytes(&entry.name))
                    });
                reply.ok();
            }
            other => reply.error(failure(other)),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let operation = Operation::ReadDir { ino: ino(node), cookie: offset, plus: true };
        self.answer(req, operation, &[], move |answer| match answer {
            Reply::Entries(listing) => {
                let ttl = listing.ttl;
                let mut add = |node, cookie, name: &[u8], attr: &fuser::FileAttr| {
                    let name = OsStr::from_bytes(name);
                    reply.add(INodeNo(node), cookie, name, &ttl, attr, GENERATION)
                };
                let full = listing
                    .dots
                    .iter()
                    .any(|dot| add(dot.ino.0, dot.cookie, dot.name, &convert::dot_attr(dot.ino)));
                let _full = full
                    || listing.entries[listing.range].iter().any(|entry| {
                        add(entry.ino.0, entry.cookie, &entry.name, &dir_entry_attr(entry))
                    });
                reply.ok();
            }
            other => reply.error(failure(other)),
        });
    }

    fn releasedir(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(req, Operation::ReleaseDir { ino: ino(node) }, &[], reply_done(reply));
    }

    fn fsyncdir(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(req, Operation::FsyncDir { ino: ino(node) }, &[], reply_done(reply));
    }

    fn statfs(&self, req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.answer(req, Operation::Statfs, &[], |answer| match answer {
            Reply::Statfs(space) => {
                let blocks = |bytes: u64| bytes / u64::from(convert::FRAGMENT_BYTES);
                reply.statfs(
                    blocks(space.total_bytes),
                    blocks(space.free_bytes),
                    blocks(space.available_bytes),
                    space.inodes_total,
                    space.inodes_free,
                    convert::FRAGMENT_BYTES,
                    255,
                    convert::FRAGMENT_BYTES,
                );
            }
            other => reply.error(failure(other)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        attribute: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::SetXattr { ino: ino(node), name: name(attribute), flags };
        self.answer(req, operation, value, reply_done(reply));
    }

    fn getxattr(
        &self,
        req: &Request,
        node: INodeNo,
        attribute: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let operation =
            Operation::GetXattr { ino: ino(node), name: name(attribute), size_max: size };
        self.answer(req, operation, &[], reply_xattr(reply));
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let operation = Operation::ListXattr { ino: ino(node), size_max: size };
        self.answer(req, operation, &[], reply_xattr(reply));
    }

    fn removexattr(&self, req: &Request, node: INodeNo, attribute: &OsStr, reply: ReplyEmpty) {
        let operation = Operation::RemoveXattr { ino: ino(node), name: name(attribute) };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn getlk(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        let Some(Some(kind)) = lock_kind(typ) else {
            return reply.error(errno(Errno::INVALID));
        };
        let operation =
            Operation::GetLock { ino: ino(node), owner: lock_owner.0, start, end, kind };
        self.answer(req, operation, &[], |answer| match answer {
            Reply::Lock(Some(held)) => {
                reply.locked(held.start, held.end, lock_type(Some(held.kind)), held.pid);
            }
            Reply::Lock(None) => reply.locked(0, 0, lock_type(None), 0),
            other => reply.error(failure(other)),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(kind) = lock_kind(typ) else { return reply.error(errno(Errno::INVALID)) };
        let operation = Operation::SetLock {
            ino: ino(node),
            open: OpenId::from_bits(fh.0),
            owner: lock_owner.0,
            start,
            end,
            kind,
            pid,
            wait: sleep && kind.is_some(),
        };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn ioctl(
        &self,
        req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.answer(req, Operation::Ioctl, &[], |answer| reply.error(failure(answer)));
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Fallocate { ino: ino(node), offset, len: length, mode };
        self.answer(req, operation, &[], reply_done(reply));
    }

    fn lseek(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let operation = Operation::Seek { ino: ino(node), offset, whence };
        self.answer(req, operation, &[], |answer| match answer {
            Reply::Offset(at) => reply.offset(at),
            other => reply.error(failure(other)),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        from: INodeNo,
        _from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_fh: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let operation = Operation::CopyRange {
            from: ino(from),
            from_offset,
            to: ino(to),
            to_offset,
            len,
            flags: flags.bits(),
        };
        self.answer(req, operation, &[], reply_written(reply));
    }
}

/// Mounts at `at`.
pub(crate) fn connect(
    at: &Path,
    read_only: bool,
    readers: usize,
    fs: Arc<FileSystem>,
    metrics: Arc<Metrics>,
) -> io::Result<Connected> {
    let adapter = Adapter::new(fs, metrics, readers);
    let mut session = fuser::Session::new(adapter, at, &fuse_config(readers, read_only))?;
    let mut unmounter = session.unmount_callable();
    Ok(Connected {
        kernel: Box::new(Notifications(session.notifier())),
        serve: Box::new(move || session.run()),
        unmount: Box::new(move || unmounter.unmount()),
    })
}

fn fuse_config(threads: usize, read_only: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("dfs".to_owned()),
        // fuser drops `Subtype` where it mounts without fusermount3.
        MountOption::CUSTOM("subtype=dfs".to_owned()),
        MountOption::DefaultPermissions,
        // Atimes are not kept on reads (docs/semantics.md): the kernel need not try.
        MountOption::NoAtime,
    ];
    if read_only {
        config.mount_options.push(MountOption::RO);
    }
    if rustix::process::geteuid().is_root() {
        // fusermount3 refuses both to ordinary users.
        config.mount_options.extend([MountOption::Dev, MountOption::Suid]);
    }
    config.acl = if mount_point::may_allow_other() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config
}

/// Tells the kernel what it must forget.
#[derive(Debug)]
struct Notifications(fuser::Notifier);

impl KernelCache for Notifications {
    fn drop_attributes(&self, ino: InodeNo) {
        // A negative offset leaves the pages.
        if let Err(error) = self.0.inval_inode(INodeNo(ino.0), -1, 0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(ino = ino.0, %error, "kernel did not drop cached attributes");
        }
    }

    fn drop_inode(&self, ino: InodeNo) {
        // Length 0: all pages, and the attributes. ENOENT: nothing was cached.
        if let Err(error) = self.0.inval_inode(INodeNo(ino.0), 0, 0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(ino = ino.0, %error, "kernel did not drop cached pages");
        }
    }
}
