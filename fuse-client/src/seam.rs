//! Operation in, reply out: all that a transport and the file system know of each other.
//!
//! A transport ([`crate::native`] or fuser in [`crate::adapter`]) decodes a request of the kernel into a [`Call`], hands it to
//! [`crate::fs::FileSystem::handle`] on any thread, and encodes the [`Reply`]. Neither side keeps a table of what
//! the kernel holds: node ids are inode numbers, file handles say nothing, directory offsets are the master's cookies.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use dfs_client::cancel::Cancelled;
use dfs_client::error::OpenId;
use dfs_core::command::{LockKind, SetTime};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::Attr;
use dfs_proto::meta_rpc::{EntryPlus, StatfsReply};

use crate::errno::Errno;

/// One request. `payload`: the bytes of `Write`, the value of `SetXattr`.
#[derive(Debug)]
pub struct Call<'a> {
    pub caller: Caller,
    pub operation: Operation,
    pub payload: Cow<'a, [u8]>,
    pub cancelled: Cancelled,
}

impl Call<'_> {
    /// The same call, free of the transport's buffers, so that another thread can answer it.
    #[must_use]
    pub fn into_owned(self) -> Call<'static> {
        let Call { caller, operation, payload, cancelled } = self;
        Call { caller, operation, payload: Cow::Owned(payload.into_owned()), cancelled }
    }
}

/// Who asks. `unique`: the kernel's number of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

pub type Name = Vec<u8>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    Lookup {
        parent: InodeNo,
        name: Name,
    },
    GetAttr {
        ino: InodeNo,
    },
    SetAttr {
        ino: InodeNo,
        set: SetAttr,
    },
    ReadLink {
        ino: InodeNo,
    },
    /// `mode` with the file type, as in `mknod(2)`.
    Mknod {
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    Mkdir {
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
    },
    Symlink {
        parent: InodeNo,
        name: Name,
        target: Vec<u8>,
    },
    Link {
        ino: InodeNo,
        parent: InodeNo,
        name: Name,
    },
    Unlink {
        parent: InodeNo,
        name: Name,
    },
    Rmdir {
        parent: InodeNo,
        name: Name,
    },
    /// `flags` of `renameat2(2)`.
    Rename {
        from_parent: InodeNo,
        from: Name,
        to_parent: InodeNo,
        to: Name,
        flags: u32,
    },
    Create {
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
        flags: OpenFlags,
    },
    /// `O_TMPFILE`.
    CreateUnnamed {
        parent: InodeNo,
        mode: u32,
        umask: u32,
        flags: OpenFlags,
    },
    Open {
        ino: InodeNo,
        flags: OpenFlags,
    },
    /// `direct`: `O_DIRECT`, or an append, which ask for what is there now.
    Read {
        ino: InodeNo,
        open: OpenId,
        offset: u64,
        len: u32,
        direct: bool,
    },
    /// `from_page_cache`: a page written through `mmap(2)`; whose flags these are is then not known.
    Write {
        ino: InodeNo,
        offset: u64,
        flags: OpenFlags,
        from_page_cache: bool,
        kill_priv: bool,
    },
    /// `close(2)` of one descriptor; ends the `fcntl(2)` locks of `lock_owner`.
    Flush {
        ino: InodeNo,
        open: OpenId,
        lock_owner: u64,
    },
    /// The last descriptor of an open is gone; `flock_owner`: its `flock(2)` lock ends too.
    Release {
        ino: InodeNo,
        open: OpenId,
        flags: OpenFlags,
        flock_owner: Option<u64>,
    },
    Fsync {
        ino: InodeNo,
        open: OpenId,
        datasync: bool,
    },
    OpenDir {
        ino: InodeNo,
    },
    /// Entries after `cookie`; the transport passes on what fits, and the kernel asks again.
    ReadDir {
        ino: InodeNo,
        cookie: u64,
        plus: bool,
    },
    ReleaseDir {
        ino: InodeNo,
    },
    FsyncDir {
        ino: InodeNo,
    },
    Statfs,
    SetXattr {
        ino: InodeNo,
        name: Name,
        flags: i32,
    },
    /// `size_max` 0 asks for the size.
    GetXattr {
        ino: InodeNo,
        name: Name,
        size_max: u32,
    },
    ListXattr {
        ino: InodeNo,
        size_max: u32,
    },
    RemoveXattr {
        ino: InodeNo,
        name: Name,
    },
    GetLock {
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: LockKind,
    },
    /// Through the open `open`. `kind` `None` unlocks; `wait` until granted, at most `lockWaitMax`.
    SetLock {
        ino: InodeNo,
        open: OpenId,
        owner: u64,
        start: u64,
        end: u64,
        kind: Option<LockKind>,
        pid: u32,
        wait: bool,
    },
    /// `mode` of `fallocate(2)`.
    Fallocate {
        ino: InodeNo,
        offset: u64,
        len: u64,
        mode: i32,
    },
    /// `SEEK_DATA` or `SEEK_HOLE`; the kernel knows the others.
    Seek {
        ino: InodeNo,
        offset: i64,
        whence: i32,
    },
    CopyRange {
        from: InodeNo,
        from_offset: u64,
        to: InodeNo,
        to_offset: u64,
        len: u64,
        flags: u64,
    },
    Ioctl,
}

/// All that [`Operation::name`] says.
pub const OPERATIONS: &[&str] = &[
    "lookup",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "create",
    "open",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "getlk",
    "setlk",
    "fallocate",
    "lseek",
    "copy_file_range",
    "ioctl",
];
impl Operation {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::GetAttr { .. } => "getattr",
            Self::SetAttr { .. } => "setattr",
            Self::ReadLink { .. } => "readlink",
            Self::Mknod { .. } => "mknod",
            Self::Mkdir { .. } => "mkdir",
            Self::Symlink { .. } => "symlink",
            Self::Link { .. } => "link",
            Self::Unlink { .. } => "unlink",
            Self::Rmdir { .. } => "rmdir",
            Self::Rename { .. } => "rename",
            Self::Create { .. } => "create",
            Self::CreateUnnamed { .. } => "tmpfile",
            Self::Open { .. } => "open",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush { .. } => "flush",
            Self::Release { .. } => "release",
            Self::Fsync { .. } => "fsync",
            Self::OpenDir { .. } => "opendir",
            Self::ReadDir { .. } => "readdir",
            Self::ReleaseDir { .. } => "releasedir",
            Self::FsyncDir { .. } => "fsyncdir",
            Self::Statfs => "statfs",
            Self::SetXattr { .. } => "setxattr",
            Self::GetXattr { .. } => "getxattr",
            Self::ListXattr { .. } => "listxattr",
            Self::RemoveXattr { .. } => "removexattr",
            Self::GetLock { .. } => "getlk",
            Self::SetLock { .. } => "setlk",
            Self::Fallocate { .. } => "fallocate",
            Self::Seek { .. } => "lseek",
            Self::CopyRange { .. } => "copy_file_range",
            Self::Ioctl => "ioctl",
        }
    }

    /// Whether it waits by design for what another process does: never on a thread that reads requests.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self, Self::SetLock { wait: true, .. })
    }

    /// Whether it changes nothing, not even what is open: asked twice it does no more than asked once.
    #[must_use]
    pub fn only_asks(&self) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::GetAttr { .. }
            | Self::ReadLink { .. }
            | Self::Read { .. }
            | Self::ReadDir { .. }
            | Self::Statfs
            | Self::GetXattr { .. }
            | Self::ListXattr { .. }
            | Self::GetLock { .. }
            | Self::Seek { .. }
            | Self::Ioctl
            | Self::OpenDir { .. }
            | Self::ReleaseDir { .. }
            | Self::FsyncDir { .. } => true,
            Self::SetLock { .. }
            | Self::SetAttr { .. }
            | Self::Mknod { .. }
            | Self::Mkdir { .. }
            | Self::Symlink { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Rmdir { .. }
            | Self::Rename { .. }
            | Self::Create { .. }
            | Self::CreateUnnamed { .. }
            // It is counted until its release, which the kernel does not send for an open that failed.
            | Self::Open { .. }
            | Self::Write { .. }
            | Self::Flush { .. }
            | Self::Release { .. }
            | Self::Fsync { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. }
            | Self::Fallocate { .. }
            | Self::CopyRange { .. } => false,
        }
    }

    /// Whether it is one change of a name or of attributes: a program that was sent a signal may be answered EINTR as long as nothing
    /// of it was sent.
    #[must_use]
    pub fn may_be_given_up(&self) -> bool {
        matches!(
            self,
            Self::SetAttr { .. }
                | Self::Mknod { .. }
                | Self::Mkdir { .. }
                | Self::Symlink { .. }
                | Self::Link { .. }
                | Self::Unlink { .. }
                | Self::Rmdir { .. }
                | Self::Rename { .. }
                | Self::Create { .. }
                | Self::CreateUnnamed { .. }
                | Self::Open { .. }
                | Self::SetXattr { .. }
                | Self::RemoveXattr { .. }
        )
    }

    /// Whether bytes are in this process's memory only when it is answered.
    #[must_use]
    pub fn leaves_bytes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Fallocate { .. } | Self::CopyRange { .. })
    }
}

/// Flags of `open(2)`, as the kernel passes them on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags(pub i32);

impl OpenFlags {
    #[must_use]
    pub fn writes(self) -> bool {
        self.0 & libc::O_ACCMODE != libc::O_RDONLY
    }

    #[must_use]
    pub fn has(self, flag: i32) -> bool {
        self.0 & flag == flag
    }
}

/// What `chmod`, `chown`, `truncate` and `utimensat` ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: SetTime,
    pub mtime: SetTime,
}

#[derive(Debug)]
pub enum Reply {
    Done,
    Entry(Entry),
    Attr { attr: Attr, ttl: Duration },
    Link(Vec<u8>),
    Created { entry: Entry, cache: CacheUse, open: OpenId },
    Opened { cache: CacheUse, open: OpenId },
    Data(crate::buffers::Buffer),
    Written(u32),
    Entries(Listing),
    Statfs(StatfsReply),
    XattrSize(u32),
    Xattr(Vec<u8>),
    Lock(Option<HeldLock>),
    Offset(i64),
    Failed(Errno),
}

/// A name that was looked up or made, and how long the kernel may believe it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub attr: Attr,
    pub attr_ttl: Duration,
    pub entry_ttl: Duration,
}

/// How an open file uses the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheUse {
    /// What is cached is dropped first.
    Fresh,
    /// What is cached still holds (DECISIONS 3).
    Keep,
    /// Past the cache: `O_DIRECT`, `O_APPEND` (DECISIONS 9).
    Direct,
}

/// Entries of a directory: `.` and `..` (`dots`, with their cookies), then `entries[range]`.
#[derive(Clone, Debug)]
pub struct Listing {
    pub dots: Vec<Dot>,
    pub entries: Arc<Vec<EntryPlus>>,
    pub range: std::ops::Range<usize>,
    pub ttl: Duration,
}

/// `.` or `..`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dot {
    pub name: &'static [u8],
    pub ino: InodeNo,
    pub cookie: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldLock {
    pub start: u64,
    pub end: u64,
    pub kind: LockKind,
    pub pid: u32,
}
