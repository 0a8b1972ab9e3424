//! Requests of the kernel as calls of the seam. Total: any bytes are a request or an error, and nothing is believed of
//! a length that is not there.

use std::borrow::Cow;

use dfs_client::error::OpenId;
use dfs_core::command::{LockKind, SetTime};
use dfs_core::ids::InodeNo;
use dfs_core::time::WallTime;

use super::abi::{self, fattr, opcode};
use crate::seam::{Caller, Name, OpenFlags, Operation, SetAttr};

/// What every request begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) opcode: u32,
    /// As it came: the answer must repeat it.
    pub(super) unique: u64,
    node: InodeNo,
    uid: u32,
    gid: u32,
    pid: u32,
}

impl Header {
    pub(super) fn caller(&self) -> Caller {
        let Self { unique, uid, gid, pid, .. } = *self;
        Caller { unique: unique & !abi::UNIQUE_RESENT, uid, gid, pid }
    }
}

/// What the answer to an operation looks like, where the operation's reply does not say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Plain,
    OpenDir,
    Listing { plus: bool, bytes_max: usize },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body<'a> {
    Init(Init),
    Call {
        operation: Operation,
        payload: Cow<'a, [u8]>,
        shape: Shape,
    },
    /// Wants the request of this number stopped. Is not answered itself.
    Interrupt {
        unique: u64,
    },
    /// Only a hint to a cache, and not answered: node ids are inode numbers.
    Forget,
    Destroy,
    /// The kernel does without what is not known.
    Unknown,
}

/// What the kernel can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Init {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) readahead_max: u32,
    pub(super) flags: u64,
}

/// A request whose body makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_ne_bytes(self.array()?))
    }

    fn skip(&mut self, len: usize) -> Result<(), Malformed> {
        self.take(len).map(|_| ())
    }

    /// A name up to its zero.
    fn name(&mut self) -> Result<Name, Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        let name = self.take(end)?.to_vec();
        self.skip(1)?;
        Ok(name)
    }

    fn open(&mut self) -> Result<OpenId, Malformed> {
        self.u64().map(OpenId::from_bits)
    }

    fn flags(&mut self) -> Result<OpenFlags, Malformed> {
        Ok(OpenFlags(self.u32()?.cast_signed()))
    }
}

/// The header, and the bytes that belong to the request after it.
pub(super) fn decode_header(bytes: &[u8]) -> Result<(Header, &[u8]), Malformed> {
    let mut reader = Reader(bytes);
    let len = usize::try_from(reader.u32()?).map_err(|_| Malformed)?;
    let opcode = reader.u32()?;
    let unique = reader.u64()?;
    let node = InodeNo(reader.u64()?);
    let (uid, gid, pid) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let extensions = usize::from(u16::from_ne_bytes(reader.array()?));
    reader.skip(2)?;
    // Extensions are at the end, in units of eight bytes; none is asked for.
    let body = len.checked_sub(abi::IN_HEADER_BYTES).ok_or(Malformed)?;
    let body = body.checked_sub(extensions * 8).ok_or(Malformed)?;
    let body = reader.0.get(..body).ok_or(Malformed)?;
    Ok((Header { opcode, unique, node, uid, gid, pid }, body))
}

/// The body of a request with this header.
pub(super) fn decode_body<'a>(header: &Header, bytes: &'a [u8]) -> Result<Body<'a>, Malformed> {
    let (node, mut reader) = (header.node, Reader(bytes));
    let mut payload = Cow::Borrowed(&[][..]);
    let mut shape = Shape::Plain;
    let r = &mut reader;
    let operation = match header.opcode {
        opcode::INIT => return decode_init(r).map(Body::Init),
        opcode::INTERRUPT => return Ok(Body::Interrupt { unique: r.u64()? }),
        opcode::FORGET | opcode::BATCH_FORGET => return Ok(Body::Forget),
        opcode::DESTROY => return Ok(Body::Destroy),
        opcode::LOOKUP => Operation::Lookup { parent: node, name: r.name()? },
        opcode::GETATTR => Operation::GetAttr { ino: node },
        opcode::SETATTR => Operation::SetAttr { ino: node, set: decode_set_attr(r)? },
        opcode::READLINK => Operation::ReadLink { ino: node },
        opcode::SYMLINK => Operation::Symlink { parent: node, name: r.name()?, target: r.name()? },
        opcode::MKNOD => {
            let (mode, rdev, umask) = (r.u32()?, r.u32()?, r.u32()?);
            r.skip(4)?;
            Operation::Mknod { parent: node, name: r.name()?, mode, umask, rdev }
        }
        opcode::MKDIR => {
            let (mode, umask) = (r.u32()?, r.u32()?);
            Operation::Mkdir { parent: node, name: r.name()?, mode, umask }
        }
        opcode::UNLINK => Operation::Unlink { parent: node, name: r.name()? },
        opcode::RMDIR => Operation::Rmdir { parent: node, name: r.name()? },
        opcode::RENAME | opcode::RENAME2 => {
            let to_parent = InodeNo(r.u64()?);
            let mut flags = 0;
            if header.opcode == opcode::RENAME2 {
                flags = r.u32()?;
                r.skip(4)?;
            }
            let (from, to) = (r.name()?, r.name()?);
            Operation::Rename { from_parent: node, from, to_parent, to, flags }
        }
        opcode::LINK => Operation::Link { ino: InodeNo(r.u64()?), parent: node, name: r.name()? },
        opcode::OPEN => Operation::Open { ino: node, flags: r.flags()? },
        opcode::CREATE => {
            let (flags, mode, umask) = (r.flags()?, r.u32()?, r.u32()?);
            r.skip(4)?;
            Operation::Create { parent: node, name: r.name()?, mode, umask, flags }
        }
        // Its name says nothing.
        opcode::TMPFILE => {
            let (flags, mode, umask) = (r.flags()?, r.u32()?, r.u32()?);
            Operation::CreateUnnamed { parent: node, mode, umask, flags }
        }
        opcode::READ => decode_read(node, r)?,
        opcode::WRITE => {
            r.skip(8)?;
            let (offset, len, write_flags) = (r.u64()?, r.u32()?, r.u32()?);
            r.skip(8)?;
            let flags = r.flags()?;
            r.skip(4)?;
            payload = Cow::Borrowed(r.take(usize::try_from(len).map_err(|_| Malformed)?)?);
            Operation::Write {
                ino: node,
                offset,
                flags,
                from_page_cache: write_flags & abi::WRITE_CACHE != 0,
                kill_priv: write_flags & abi::WRITE_KILL_SUIDGID != 0,
            }
        }
        opcode::STATFS => Operation::Statfs,
        opcode::RELEASE => {
            let (open, flags, release_flags) = (r.open()?, r.flags()?, r.u32()?);
            let owner = r.u64()?;
            let unlock = release_flags & abi::RELEASE_FLOCK_UNLOCK != 0;
            Operation::Release { ino: node, open, flags, flock_owner: unlock.then_some(owner) }
        }
        opcode::FSYNC => {
            let (open, flags) = (r.open()?, r.u32()?);
            Operation::Fsync { ino: node, open, datasync: flags & abi::FSYNC_FDATASYNC != 0 }
        }
        opcode::SETXATTR => {
            let (size, flags) = (r.u32()?, r.u32()?);
            let name = r.name()?;
            payload = Cow::Borrowed(r.take(usize::try_from(size).map_err(|_| Malformed)?)?);
            Operation::SetXattr { ino: node, name, flags: flags.cast_signed() }
        }
        opcode::GETXATTR => {
            let size_max = r.u32()?;
            r.skip(4)?;
            Operation::GetXattr { ino: node, name: r.name()?, size_max }
        }
        opcode::LISTXATTR => Operation::ListXattr { ino: node, size_max: r.u32()? },
        opcode::REMOVEXATTR => Operation::RemoveXattr { ino: node, name: r.name()? },
        opcode::FLUSH => {
            let open = r.open()?;
            r.skip(8)?;
            Operation::Flush { ino: node, open, lock_owner: r.u64()? }
        }
        opcode::OPENDIR => {
            shape = Shape::OpenDir;
            Operation::OpenDir { ino: node }
        }
        opcode::READDIR | opcode::READDIRPLUS => {
            let plus = header.opcode == opcode::READDIRPLUS;
            r.skip(8)?;
            let (cookie, size) = (r.u64()?, r.u32()?);
            // More than a request has pages is never asked for.
            let bytes_max = size.min(crate::transport::WRITE_BYTES_MAX) as usize;
            shape = Shape::Listing { plus, bytes_max };
            Operation::ReadDir { ino: node, cookie, plus }
        }
        opcode::RELEASEDIR => Operation::ReleaseDir { ino: node },
        opcode::FSYNCDIR => Operation::FsyncDir { ino: node },
        opcode::GETLK | opcode::SETLK | opcode::SETLKW => decode_lock(header, r)?,
        opcode::IOCTL => Operation::Ioctl,
        opcode::FALLOCATE => {
            r.skip(8)?;
            let (offset, len, mode) = (r.u64()?, r.u64()?, r.u32()?.cast_signed());
            Operation::Fallocate { ino: node, offset, len, mode }
        }
        opcode::LSEEK => {
            r.skip(8)?;
            let (offset, whence) = (r.u64()?.cast_signed(), r.u32()?.cast_signed());
            Operation::Seek { ino: node, offset, whence }
        }
        opcode::COPY_FILE_RANGE => {
            r.skip(8)?;
            let (from_offset, to) = (r.u64()?, InodeNo(r.u64()?));
            r.skip(8)?;
            let (to_offset, len, flags) = (r.u64()?, r.u64()?, r.u64()?);
            Operation::CopyRange { from: node, from_offset, to, to_offset, len, flags }
        }
        _ => return Ok(Body::Unknown),
    };
    Ok(Body::Call { operation, payload, shape })
}

fn decode_init(reader: &mut Reader<'_>) -> Result<Init, Malformed> {
    let (major, minor) = (reader.u32()?, reader.u32()?);
    let (readahead_max, flags) = (reader.u32()?, u64::from(reader.u32()?));
    // Kernels before 7.36 end here.
    let second = if flags & abi::init::INIT_EXT == 0 { 0 } else { reader.u32()? };
    Ok(Init { major, minor, readahead_max, flags: flags | u64::from(second) << 32 })
}

fn decode_read(ino: InodeNo, reader: &mut Reader<'_>) -> Result<Operation, Malformed> {
    let (open, offset, len) = (reader.open()?, reader.u64()?, reader.u32()?);
    reader.skip(12)?;
    let flags = reader.flags()?;
    // What is opened so has no pages that it could be behind with.
    let direct = flags.has(libc::O_DIRECT) || flags.has(libc::O_APPEND) && flags.writes();
    let len = len.min(crate::transport::WRITE_BYTES_MAX);
    Ok(Operation::Read { ino, open, offset, len, direct })
}

fn decode_lock(header: &Header, reader: &mut Reader<'_>) -> Result<Operation, Malformed> {
    let (open, owner) = (reader.open()?, reader.u64()?);
    let (start, end) = (reader.u64()?, reader.u64()?);
    let kind = match reader.u32()?.cast_signed() {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => None,
        _ => return Err(Malformed),
    };
    let (ino, pid) = (header.node, reader.u32()?);
    if header.opcode == opcode::GETLK {
        let kind = kind.ok_or(Malformed)?;
        return Ok(Operation::GetLock { ino, owner, start, end, kind });
    }
    let wait = header.opcode == opcode::SETLKW && kind.is_some();
    Ok(Operation::SetLock { ino, open, owner, start, end, kind, pid, wait })
}

fn decode_set_attr(reader: &mut Reader<'_>) -> Result<SetAttr, Malformed> {
    let valid = reader.u32()?;
    reader.skip(12)?;
    let size = reader.u64()?;
    reader.skip(8)?;
    let (atime, mtime) = (reader.u64()?, reader.u64()?);
    reader.skip(8)?;
    let (atime_nanos, mtime_nanos) = (reader.u32()?, reader.u32()?);
    reader.skip(4)?;
    let mode = reader.u32()?;
    reader.skip(4)?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let has = |flag| valid & flag != 0;
    let time = |given, now, seconds: u64, nanos| match (has(given), has(now)) {
        (_, true) => SetTime::Now,
        (true, false) => SetTime::To(wall_time(seconds.cast_signed(), nanos)),
        (false, false) => SetTime::Keep,
    };
    Ok(SetAttr {
        mode: has(fattr::MODE).then_some(mode & 0o7777),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
    })
}

/// Times beyond 1677 and 2262 become the nearest one that fits.
fn wall_time(seconds: i64, nanos: u32) -> WallTime {
    WallTime(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
