//! The seam between the store and the disk: one real ([`super::posix`]), one that loses power ([`super::faulty`]).
//!
//! Paths are relative to the data directory and made by the store from numbers only.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

/// One open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`; what is beyond the end of the file reads as zeros.
    ///
    /// # Errors
    /// The kernel's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// What is in memory of the range, and on the disk too, is not what the next read returns.
    fn uncache(&self, offset: u64, len: u64);

    /// # Errors
    /// The kernel's; some of the bytes may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes the range read as zeros and gives its space back where the file system can.
    ///
    /// # Errors
    /// The kernel's.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes sure that writes to the range need no more space.
    ///
    /// # Errors
    /// `StorageFull`, or another of the kernel's.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The first byte at or after `offset` without space of its own.
    ///
    /// # Errors
    /// The kernel's.
    fn first_hole(&self, offset: u64) -> io::Result<u64>;

    /// fdatasync: the bytes and what is needed to find them are on disk.
    ///
    /// # Errors
    /// The kernel's. After one nothing unsynced of the file can be trusted.
    fn sync(&self) -> io::Result<()>;

    /// # Errors
    /// The kernel's.
    fn size(&self) -> io::Result<u64>;
}

/// What is asked of a name when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    Existing,
    /// Made new; an old one of this name is emptied.
    New,
}

/// Bytes of the file system under the data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// One data directory.
pub trait ChunkDisk: Send + Sync + fmt::Debug {
    /// A new file's directory is made if it is not there; [`Self::sync_dir`] of it then keeps it, too.
    ///
    /// # Errors
    /// `NotFound`, or another of the kernel's.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Within the disk; replaces `to`.
    ///
    /// # Errors
    /// The kernel's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// # Errors
    /// The kernel's.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// A directory that may exist already.
    ///
    /// # Errors
    /// The kernel's.
    fn make_dir(&self, path: &str) -> io::Result<()>;

    /// The directories there are.
    ///
    /// # Errors
    /// The kernel's.
    fn dirs(&self) -> io::Result<BTreeSet<String>>;

    /// Names in a directory, in any order.
    ///
    /// # Errors
    /// The kernel's.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// fsync of a directory: its names are on disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// Everything written to the disk so far, by anybody, is on it: cheaper than many single syncs.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_all(&self) -> io::Result<()>;

    /// # Errors
    /// The kernel's.
    fn space(&self) -> io::Result<DiskSpace>;

    /// Space taken by one file.
    ///
    /// # Errors
    /// The kernel's.
    fn allocated_bytes(&self, path: &str) -> io::Result<u64>;
}
