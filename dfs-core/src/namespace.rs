//! Inodes, names and attributes: what the namespace is made of.
//!
//! Who may change it: [`crate::meta::apply`] alone, from committed commands. All of it survives restarts.

use crate::cuts::Cuts;
use crate::ids::InodeNo;
use crate::time::WallTime;

pub mod acl;

/// Longest name of one entry in bytes (`NAME_MAX`, limits.h).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target in bytes (`PATH_MAX` - 1).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Most names one file may have.
pub const LINK_COUNT_MAX: u32 = 65_000;
/// Longest extended attribute name and value, and all of one inode together, in bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
pub const XATTR_TOTAL_BYTES_MAX: usize = 64 << 10;
/// Largest content kept in the inode, in bytes.
pub const INLINE_BYTES_MAX: u64 = 4096;
/// Largest file, in bytes: offsets are signed 64 bit in POSIX.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
pub const CHUNK_BYTES_DEFAULT: u64 = 64 << 20;
/// Smallest chunk that a master lets anybody ask for, in bytes.
pub const CHUNK_BYTES_MIN: u64 = 4 << 10;
/// Smallest chunk there is: of an exercise (DECISIONS 22).
pub const CHUNK_BYTES_LEAST: u64 = 32;
pub const CHUNK_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// How a file's bytes are laid out; directories hold what their new entries inherit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Bytes per chunk, a power of two.
    pub chunk_size: u64,
    /// `layout: recordlog`: records are never split, chunks are padded (DECISIONS 23).
    pub record_log: bool,
    /// Longest record of a record log, in bytes; 0: as long as chunks of this size allow.
    pub record_max: u64,
}

/// Longest record that chunks of this size allow (DECISIONS 22).
#[must_use]
pub const fn record_bytes_max(chunk_size: u64) -> u64 {
    let quarter = chunk_size / 4;
    if quarter < 4 << 20 { quarter } else { 4 << 20 }
}

impl Layout {
    /// Ordinary files with chunks of this size.
    #[must_use]
    pub const fn striped(chunk_size: u64) -> Self {
        Self { chunk_size, record_log: false, record_max: 0 }
    }

    /// Longest single append.
    #[must_use]
    pub const fn record_bytes_max(&self) -> u64 {
        match self.record_max {
            0 => record_bytes_max(self.chunk_size),
            most => most,
        }
    }

    /// Whether content may live in the inode (DECISIONS 10).
    #[must_use]
    pub fn allows_inline(&self) -> bool {
        !self.record_log && 64 << 10 <= self.chunk_size
    }
}

/// What is behind an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// File content of at most [`INLINE_BYTES_MAX`] bytes; shorter than `size` means zeros follow.
    Inline(Vec<u8>),
    /// File content in chunks. `chunk_count`: chunks that exist; `writing`: the size is a lower bound (DECISIONS 7).
    Chunks {
        chunk_count: u64,
        writing: bool,
    },
    /// `entry_count` names; `next_cookie` numbers the next one. `parent` is what `..` means.
    Directory {
        parent: InodeNo,
        entry_count: u64,
        next_cookie: u64,
    },
    Symlink(Vec<u8>),
    /// Fifo, socket or device: nothing of ours.
    Special,
}

/// One file, directory or other object. Its number is its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Device number of a special file, 0 otherwise.
    pub rdev: u32,
    /// Bytes; for directories the entry count.
    pub size: u64,
    pub atime: WallTime,
    pub mtime: WallTime,
    pub ctime: WallTime,
    pub btime: WallTime,
    /// Raised by every change of content or attributes; caches follow it (DECISIONS 3).
    pub change: u64,
    /// Raised by every truncation, at its beginning and its end: a size that a writer knew before is worth nothing.
    pub cuts: u64,
    pub cut_sizes: Cuts,
    pub layout: Layout,
    pub body: Body,
}

/// What `stat` and caches need of an inode: everything but the content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: InodeNo,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub size: u64,
    /// Bytes allocated, as far as the master knows: inline bytes, or chunks that exist.
    pub allocated_bytes: u64,
    pub atime: WallTime,
    pub mtime: WallTime,
    pub ctime: WallTime,
    pub btime: WallTime,
    pub change: u64,
    /// See [`Inode::cuts`].
    pub cuts: u64,
    pub layout: Layout,
    /// The content is in the inode.
    pub inline: bool,
    /// Somebody is writing: `size` is a lower bound.
    pub writing: bool,
}

impl Inode {
    /// What the inode itself knows; [`crate::meta::attr_of`] knows of a truncation under way.
    #[must_use]
    pub fn attr(&self, ino: InodeNo) -> Attr {
        let (inline, writing, allocated_bytes) = match &self.body {
            Body::Inline(content) => (true, false, content.len() as u64),
            Body::Chunks { chunk_count, writing } => {
                (false, *writing, self.size.min(chunk_count.saturating_mul(self.layout.chunk_size)))
            }
            Body::Directory { .. } | Body::Symlink(_) | Body::Special => (false, false, 0),
        };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            allocated_bytes,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            cuts: self.cuts,
            layout: self.layout,
            inline,
            writing,
        }
    }
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dentry {
    pub ino: InodeNo,
    pub kind: FileKind,
    /// Place in the directory's order: stable while the name exists, what readdir continues from.
    pub cookie: u64,
}

/// A refusal. State is unchanged, asking again gives the same answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("no such entry or inode")]
    NotFound,
    #[error("the name exists already")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name longer than {NAME_BYTES_MAX} bytes or target longer than {SYMLINK_BYTES_MAX}")]
    NameTooLong,
    /// An argument that no state makes legal; the text names it.
    #[error("invalid argument: {0}")]
    Invalid(String),
    #[error("more than {LINK_COUNT_MAX} links")]
    TooManyLinks,
    #[error("operation not permitted: {0}")]
    NotPermitted(String),
    #[error("no such attribute")]
    NoAttribute,
    #[error("attributes do not fit")]
    AttributeTooLarge,
    #[error("file too large")]
    FileTooLarge,
    /// The content is no longer (or not yet) where the request assumed: refetch attributes and choose again.
    #[error("layout changed")]
    LayoutChanged,
    /// The inode is gone or was never there under this number.
    #[error("stale inode")]
    Stale,
    /// A lock is held by somebody else.
    #[error("lock held")]
    Locked,
    #[error("no lock table space")]
    NoLocks,
    /// This client is not registered, or its lease ended (DECISIONS 12).
    #[error("client unknown or its lease ended")]
    NoSession,
    /// The request was answered before and its result dropped after the client said it had it.
    #[error("outcome unknown: the result of this request was already dropped")]
    OutcomeUnknown,
    /// Too many unacknowledged requests of this client.
    #[error("too many outstanding requests")]
    Busy,
    /// The file was truncated since the writer knew its size: what is there must be asked again.
    #[error("truncated meanwhile")]
    Truncated,
}
