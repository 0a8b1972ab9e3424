//! Our types as fuser's, and back.

use std::time::{Duration, SystemTime};

use dfs_core::command::{LockKind, SetTime};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FileKind};
use dfs_core::time::WallTime;
use dfs_proto::meta_rpc::EntryPlus;
use fuser::{FileAttr, FileType, FopenFlags, INodeNo, TimeOrNow};

use crate::seam::CacheUse;

/// `st_blksize`: what programs read and write at once. As large as a checksum block, small enough for every
/// stdio stream to have a buffer of it.
const BLOCK_BYTES: u32 = 64 << 10;
/// `f_frsize`
pub(super) const FRAGMENT_BYTES: u32 = 4096;

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        // stat(2): units of 512 bytes, whatever st_blksize is.
        blocks: attr.allocated_bytes.div_ceil(512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        // 12 bits.
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Attributes of an entry; without them the least the kernel accepts, which it replaces when asked.
pub(super) fn dir_entry_attr(entry: &EntryPlus) -> FileAttr {
    match &entry.attr {
        Some(attr) => file_attr(attr),
        None => FileAttr { kind: file_type(entry.kind), ..dot_attr(entry.ino) },
    }
}

/// `.` and `..`, of which the kernel only takes number and type.
pub(super) fn dot_attr(ino: InodeNo) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn system_time(WallTime(nanos): WallTime) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    let at = if nanos < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    // Both directions reach 292 years, which 64 bit seconds hold.
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Times beyond 1677 and 2262 become the nearest one that fits.
fn wall_time(time: SystemTime) -> WallTime {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    WallTime(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    })
}

/// What the kernel sent, from what fuser 0.18.0 made of it: before 1970 it subtracts the nanoseconds, which
/// `utimensat(2)` always adds.
fn as_sent(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => time,
        Err(before) => {
            let nanos = Duration::from_nanos(u64::from(before.duration().subsec_nanos()));
            time.checked_add(nanos * 2).unwrap_or(time)
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::To(wall_time(as_sent(time))),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// `F_UNLCK` is `Some(None)`; `None` is no lock type at all.
pub(super) fn lock_kind(typ: i32) -> Option<Option<LockKind>> {
    match typ {
        libc::F_RDLCK => Some(Some(LockKind::Shared)),
        libc::F_WRLCK => Some(Some(LockKind::Exclusive)),
        libc::F_UNLCK => Some(None),
        _ => None,
    }
}

pub(super) fn lock_type(kind: Option<LockKind>) -> i32 {
    match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    }
}

pub(super) fn fopen_flags(cache: CacheUse) -> FopenFlags {
    match cache {
        CacheUse::Fresh => FopenFlags::empty(),
        CacheUse::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        CacheUse::Direct => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_to_the_kernel_and_back() {
        for nanos in [0, 1, -1, 1_700_000_000_123_456_789, -1_000_000_001, i64::MAX, -i64::MAX] {
            assert_eq!(wall_time(system_time(WallTime(nanos))), WallTime(nanos));
        }
    }

    #[test]
    fn a_time_before_1970_is_the_one_the_application_gave() {
        // {tv_sec: -5, tv_nsec: 250_000_000} as fuser decodes it.
        let decoded = SystemTime::UNIX_EPOCH - Duration::new(5, 250_000_000);
        let set = set_time(TimeOrNow::SpecificTime(decoded));
        assert_eq!(set, SetTime::To(WallTime(-4_750_000_000)));
    }

    #[test]
    fn a_time_that_does_not_fit_becomes_the_nearest_one() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(wall_time(far), WallTime(i64::MAX));
    }

    #[test]
    fn lock_types_are_those_of_fcntl() {
        for kind in [None, Some(LockKind::Shared), Some(LockKind::Exclusive)] {
            assert_eq!(lock_kind(lock_type(kind)), Some(kind));
        }
        assert_eq!(lock_kind(17), None);
    }
}
