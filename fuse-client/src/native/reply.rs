//! Replies of the seam as the kernel reads them: a header, made when all is known, and what follows it.

use std::time::Duration;

use dfs_core::command::LockKind;
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FileKind};
use dfs_core::time::WallTime;
use dfs_proto::meta_rpc::EntryPlus;

use super::abi;
use super::request::Shape;
use crate::buffers::Buffer;
use crate::errno::Errno;
use crate::seam::{CacheUse, Entry, HeldLock, Listing, Reply};
use crate::transport::failure;

/// `st_blksize`: what programs read and write at once. As large as a checksum block, small enough for every
/// stdio stream to have a buffer of it.
const BLOCK_BYTES: u32 = 64 << 10;
/// `f_frsize`
const FRAGMENT_BYTES: u32 = 4096;
const NAME_BYTES_MAX: u32 = 255;
const DIRENT_BYTES: usize = 24;
const ENTRY_OUT_BYTES: usize = 128;

/// What follows the header of an answer.
#[derive(Debug)]
pub(super) enum Encoded {
    Bytes(Vec<u8>),
    Data(Buffer),
    Failed(Errno),
}

impl Encoded {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Data(buffer) => buffer.as_slice(),
            Self::Failed(_) => &[],
        }
    }
}

/// Header of a message to the kernel with `body_bytes` after it. `error` is 0, a negative errno, or the code of a
/// notification.
pub(super) fn header(unique: u64, error: i32, body_bytes: usize) -> [u8; abi::OUT_HEADER_BYTES] {
    let mut out = [0; abi::OUT_HEADER_BYTES];
    // The longest answer is a read of max_write.
    let len = u32::try_from(abi::OUT_HEADER_BYTES + body_bytes).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&len.to_ne_bytes());
    out[4..8].copy_from_slice(&error.to_ne_bytes());
    out[8..].copy_from_slice(&unique.to_ne_bytes());
    out
}

/// Bytes in the order of a C structure.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn attr(&mut self, attr: &Attr) -> &mut Self {
        let (atime, mtime, ctime) = (split(attr.atime), split(attr.mtime), split(attr.ctime));
        self.u64(attr.ino.0).u64(attr.size).u64(blocks(attr));
        self.u64(atime.0.cast_unsigned()).u64(mtime.0.cast_unsigned()).u64(ctime.0.cast_unsigned());
        self.u32(atime.1).u32(mtime.1).u32(ctime.1);
        self.u32(mode(attr.kind) | attr.mode & 0o7777);
        self.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u32(attr.rdev);
        self.u32(BLOCK_BYTES).u32(0)
    }

    /// Attributes of what has none here: the least the kernel accepts, which it replaces when asked.
    fn bare_attr(&mut self, ino: InodeNo, kind: FileKind) -> &mut Self {
        self.u64(ino.0).zeros(52).u32(mode(kind)).u32(1).zeros(12).u32(BLOCK_BYTES).u32(0)
    }

    /// `generation` is 0: inode numbers are never used again.
    fn entry_head(&mut self, ino: InodeNo, entry_ttl: Duration, attr_ttl: Duration) -> &mut Self {
        self.u64(ino.0).u64(0).u64(entry_ttl.as_secs()).u64(attr_ttl.as_secs());
        self.u32(entry_ttl.subsec_nanos()).u32(attr_ttl.subsec_nanos())
    }

    fn entry(&mut self, Entry { attr, attr_ttl, entry_ttl }: &Entry) -> &mut Self {
        self.entry_head(attr.ino, *entry_ttl, *attr_ttl).attr(attr)
    }

    fn opened(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    fn dirent(&mut self, ino: InodeNo, cookie: u64, kind: FileKind, name: &[u8]) -> &mut Self {
        // Names have at most 255 bytes.
        let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.u64(ino.0).u64(cookie).u32(len).u32(mode(kind) >> 12);
        self.0.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len())
    }
}

/// stat(2): units of 512 bytes, whatever st_blksize is.
fn blocks(attr: &Attr) -> u64 {
    attr.allocated_bytes.div_ceil(512)
}

/// Seconds, and nanoseconds that are always added.
fn split(WallTime(nanos): WallTime) -> (i64, u32) {
    const SECOND: i64 = 1_000_000_000;
    (nanos.div_euclid(SECOND), u32::try_from(nanos.rem_euclid(SECOND)).unwrap_or(0))
}

fn mode(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

fn fopen_flags(cache: CacheUse) -> u32 {
    match cache {
        CacheUse::Fresh => 0,
        CacheUse::Keep => abi::FOPEN_KEEP_CACHE,
        CacheUse::Direct => abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES,
    }
}

fn lock_type(kind: Option<LockKind>) -> u32 {
    let kind = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    kind.cast_unsigned()
}

/// The answer to a request of this shape.
pub(super) fn encode(reply: Reply, shape: Shape) -> Encoded {
    let mut out = Writer::default();
    match (reply, shape) {
        (Reply::Failed(errno), _) => return Encoded::Failed(errno),
        (Reply::Data(buffer), _) => return Encoded::Data(buffer),
        (Reply::Entries(listing), Shape::Listing { plus, bytes_max }) => {
            return Encoded::Bytes(entries(&listing, plus, bytes_max));
        }
        (Reply::Done, Shape::OpenDir) => {
            out.opened(0, 0);
        }
        (Reply::Done, _) => {}
        (Reply::Entry(entry), _) => {
            out.entry(&entry);
        }
        (Reply::Attr { attr, ttl }, _) => {
            out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).attr(&attr);
        }
        (Reply::Created { entry, cache, open }, _) => {
            out.entry(&entry).opened(open.to_bits(), fopen_flags(cache));
        }
        (Reply::Opened { cache, open }, _) => {
            out.opened(open.to_bits(), fopen_flags(cache));
        }
        (Reply::Written(bytes), _) | (Reply::XattrSize(bytes), _) => {
            out.u32(bytes).u32(0);
        }
        (Reply::Statfs(space), _) => {
            let blocks = |bytes: u64| bytes / u64::from(FRAGMENT_BYTES);
            out.u64(blocks(space.total_bytes)).u64(blocks(space.free_bytes));
            out.u64(blocks(space.available_bytes)).u64(space.inodes_total).u64(space.inodes_free);
            out.u32(FRAGMENT_BYTES).u32(NAME_BYTES_MAX).u32(FRAGMENT_BYTES).u32(0).zeros(24);
        }
        (Reply::Link(bytes) | Reply::Xattr(bytes), _) => return Encoded::Bytes(bytes),
        (Reply::Lock(held), _) => {
            let free = (0, 0, None, 0);
            let (start, end, kind, pid) = held
                .map_or(free, |HeldLock { start, end, kind, pid }| (start, end, Some(kind), pid));
            out.u64(start).u64(end).u32(lock_type(kind)).u32(pid);
        }
        (Reply::Offset(at), _) => {
            out.u64(at.cast_unsigned());
        }
        (reply @ Reply::Entries(_), Shape::Plain | Shape::OpenDir) => {
            return Encoded::Failed(failure(&reply));
        }
    }
    Encoded::Bytes(out.0)
}

/// As many as fit into `bytes_max`; the kernel asks again for the others.
fn entries(listing: &Listing, plus: bool, bytes_max: usize) -> Vec<u8> {
    let Listing { dots, entries, range, ttl } = listing;
    let mut out = Writer(Vec::with_capacity(bytes_max.min(64 << 10)));
    let fits = |out: &Writer, name: &[u8]| {
        let head = if plus { ENTRY_OUT_BYTES } else { 0 };
        out.0.len() + head + (DIRENT_BYTES + name.len()).next_multiple_of(8) <= bytes_max
    };
    for dot in dots {
        if !fits(&out, dot.name) {
            return out.0;
        }
        if plus {
            out.entry_head(dot.ino, *ttl, *ttl).bare_attr(dot.ino, FileKind::Directory);
        }
        out.dirent(dot.ino, dot.cookie, FileKind::Directory, dot.name);
    }
    for EntryPlus { cookie, name, ino, kind, attr } in entries.get(range.clone()).unwrap_or(&[]) {
        if !fits(&out, name) {
            break;
        }
        if plus {
            out.entry_head(*ino, *ttl, *ttl);
            match attr {
                Some(attr) => out.attr(attr),
                None => out.bare_attr(*ino, *kind),
            };
        }
        out.dirent(*ino, *cookie, *kind, name);
    }
    out.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::seam::Dot;

    #[test]
    fn times_before_1970_have_positive_nanoseconds() {
        assert_eq!(split(WallTime(-4_750_000_000)), (-5, 250_000_000));
        assert_eq!(split(WallTime(1_000_000_001)), (1, 1));
    }

    #[test]
    fn a_listing_ends_before_the_entry_that_does_not_fit() {
        let entry = |cookie: u64| EntryPlus {
            cookie,
            name: b"12345678".to_vec(),
            ino: InodeNo(cookie),
            kind: FileKind::File,
            attr: None,
        };
        let listing = Listing {
            dots: vec![Dot { name: b".", ino: InodeNo(1), cookie: 1 }],
            entries: Arc::new((3..10).map(entry).collect()),
            range: 1..7,
            ttl: Duration::from_secs(1),
        };
        let bytes = entries(&listing, false, 32 + 2 * 32 + 31);
        assert_eq!(bytes.len(), 96);
        // The first entry is the second of the batch.
        assert_eq!(bytes[32..40], 4_u64.to_ne_bytes());
        assert_eq!(entries(&listing, true, 160 + 159).len(), 160);
        assert_eq!(entries(&listing, true, 10).len(), 0);
    }

    #[test]
    fn answers_have_the_sizes_of_the_kernels_structures() {
        let mut out = Writer::default();
        out.entry_head(InodeNo(7), Duration::ZERO, Duration::ZERO);
        out.bare_attr(InodeNo(7), FileKind::File);
        assert_eq!(out.0.len(), ENTRY_OUT_BYTES);
        // `mode` of `fuse_attr`.
        assert_eq!(out.0[40 + 60..40 + 64], libc::S_IFREG.to_ne_bytes());
        let lock = encode(Reply::Lock(None), Shape::Plain);
        assert_eq!(lock.bytes().len(), 24);
        assert_eq!(encode(Reply::Written(1), Shape::Plain).bytes().len(), 8);
        assert_eq!(encode(Reply::Done, Shape::OpenDir).bytes().len(), 16);
    }
}
