//! Numbers of the FUSE protocol as `linux/fuse.h` has them, version 7.31 and up.

pub(super) const MAJOR: u32 = 7;
/// Newest minor version whose messages are known here; the kernel speaks the lesser of both.
pub(super) const MINOR: u32 = 45;
/// Older ones lack messages that are taken for granted here (Linux 5.4).
pub(super) const MINOR_LEAST: u32 = 31;

pub(super) const IN_HEADER_BYTES: usize = 40;
pub(super) const OUT_HEADER_BYTES: usize = 16;
pub(crate) const INIT_OUT_BYTES: usize = 64;
/// `FUSE_UNIQUE_RESEND`: the request was sent before, to a client that did not answer it.
pub(super) const UNIQUE_RESENT: u64 = 1 << 63;
/// `_IOR(229, 0, uint32_t)`
pub(super) const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

pub(super) mod opcode {
    pub(in crate::native) const LOOKUP: u32 = 1;
    pub(in crate::native) const FORGET: u32 = 2;
    pub(in crate::native) const GETATTR: u32 = 3;
    pub(in crate::native) const SETATTR: u32 = 4;
    pub(in crate::native) const READLINK: u32 = 5;
    pub(in crate::native) const SYMLINK: u32 = 6;
    pub(in crate::native) const MKNOD: u32 = 8;
    pub(in crate::native) const MKDIR: u32 = 9;
    pub(in crate::native) const UNLINK: u32 = 10;
    pub(in crate::native) const RMDIR: u32 = 11;
    pub(in crate::native) const RENAME: u32 = 12;
    pub(in crate::native) const LINK: u32 = 13;
    pub(in crate::native) const OPEN: u32 = 14;
    pub(in crate::native) const READ: u32 = 15;
    pub(in crate::native) const WRITE: u32 = 16;
    pub(in crate::native) const STATFS: u32 = 17;
    pub(in crate::native) const RELEASE: u32 = 18;
    pub(in crate::native) const FSYNC: u32 = 20;
    pub(in crate::native) const SETXATTR: u32 = 21;
    pub(in crate::native) const GETXATTR: u32 = 22;
    pub(in crate::native) const LISTXATTR: u32 = 23;
    pub(in crate::native) const REMOVEXATTR: u32 = 24;
    pub(in crate::native) const FLUSH: u32 = 25;
    pub(in crate::native) const INIT: u32 = 26;
    pub(in crate::native) const OPENDIR: u32 = 27;
    pub(in crate::native) const READDIR: u32 = 28;
    pub(in crate::native) const RELEASEDIR: u32 = 29;
    pub(in crate::native) const FSYNCDIR: u32 = 30;
    pub(in crate::native) const GETLK: u32 = 31;
    pub(in crate::native) const SETLK: u32 = 32;
    pub(in crate::native) const SETLKW: u32 = 33;
    pub(in crate::native) const CREATE: u32 = 35;
    pub(in crate::native) const INTERRUPT: u32 = 36;
    pub(in crate::native) const DESTROY: u32 = 38;
    pub(in crate::native) const IOCTL: u32 = 39;
    pub(in crate::native) const BATCH_FORGET: u32 = 42;
    pub(in crate::native) const FALLOCATE: u32 = 43;
    pub(in crate::native) const READDIRPLUS: u32 = 44;
    pub(in crate::native) const RENAME2: u32 = 45;
    pub(in crate::native) const LSEEK: u32 = 46;
    pub(in crate::native) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::native) const TMPFILE: u32 = 51;
}

/// Flags of INIT; those from bit 32 are in its second word.
pub(super) mod init {
    pub(in crate::native) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::native) const POSIX_LOCKS: u64 = 1 << 1;
    pub(in crate::native) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(in crate::native) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::native) const DONT_MASK: u64 = 1 << 6;
    pub(in crate::native) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(in crate::native) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in crate::native) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(in crate::native) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::native) const POSIX_ACL: u64 = 1 << 20;
    pub(in crate::native) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::native) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::native) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(in crate::native) const INIT_EXT: u64 = 1 << 30;
    pub(in crate::native) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(in crate::native) const HAS_RESEND: u64 = 1 << 39;
}

/// Which fields of SETATTR count.
pub(super) mod fattr {
    pub(in crate::native) const MODE: u32 = 1 << 0;
    pub(in crate::native) const UID: u32 = 1 << 1;
    pub(in crate::native) const GID: u32 = 1 << 2;
    pub(in crate::native) const SIZE: u32 = 1 << 3;
    pub(in crate::native) const ATIME: u32 = 1 << 4;
    pub(in crate::native) const MTIME: u32 = 1 << 5;
    pub(in crate::native) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::native) const MTIME_NOW: u32 = 1 << 8;
}

pub(super) const WRITE_CACHE: u32 = 1 << 0;
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub(super) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

pub(super) const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub(super) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// Codes of notifications; a message with `unique` 0 has one where others have an error.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
pub(super) const NOTIFY_RESEND: i32 = 7;
