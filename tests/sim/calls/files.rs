//! Files and directories.

use std::collections::VecDeque;

use super::{Result, count, int, ready, size, timespec};
use crate::disk::{ROOT, Stat};
use crate::kernel::{DescId, Flow, HostId, Kernel, ProcId, SECOND, Tid};
use crate::native::Call;
use crate::net::Kind;

const LONGEST_PATH: usize = 4096;
const LIBRARIES: [&str; 5] =
    ["/lib/", "/lib64/", "/usr/lib/", "/etc/ld.so", "/sys/kernel/mm/transparent_hugepage/"];

impl Kernel {
    pub(super) fn desc(&self, proc: ProcId, fd: i32) -> Result<DescId> {
        self.procs[proc].fds.get(&fd).copied().ok_or(libc::EBADF)
    }

    pub(super) fn kind(&mut self, desc: DescId) -> Result<&mut Kind> {
        Ok(&mut self.net.descs.get_mut(&desc).ok_or(libc::EBADF)?.kind)
    }

    pub(super) fn file(&mut self, proc: ProcId, fd: i32) -> Result<u64> {
        let desc = self.desc(proc, fd)?;
        match self.kind(desc)? {
            Kind::File { ino, .. } => Ok(*ino),
            Kind::Dir { .. } => Err(libc::EISDIR),
            Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Stream(_)
            | Kind::Count(_)
            | Kind::Epoll(_) => Err(libc::EINVAL),
        }
    }

    pub(super) fn path(&self, tid: Tid, at: u64) -> Result<Vec<u8>> {
        let mut path = Vec::new();
        // Not over the end of a page that may be the last.
        let mut from = at;
        loop {
            let len = 4096 - from % 4096;
            let bytes = self.read(tid, from, size(len))?;
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                path.extend_from_slice(&bytes[..end]);
                return Ok(path);
            }
            path.extend_from_slice(&bytes);
            if LONGEST_PATH <= path.len() {
                return Err(libc::ENAMETOOLONG);
            }
            from += len;
        }
    }

    /// A path relative to a descriptor's directory.
    pub(super) fn at(&mut self, tid: Tid, fd: u64, path: u64) -> Result<(u64, Vec<u8>)> {
        let path = self.path(tid, path)?;
        if int(fd) == libc::AT_FDCWD || path.starts_with(b"/") {
            return Ok((ROOT, path));
        }
        let desc = self.desc(self.threads[tid].proc, int(fd))?;
        match self.kind(desc)? {
            Kind::Dir { ino, .. } | Kind::File { ino, .. } => Ok((*ino, path)),
            Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Stream(_)
            | Kind::Count(_)
            | Kind::Epoll(_) => Err(libc::ENOTDIR),
        }
    }

    pub(super) fn openat(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let (proc, host, flags) = (self.threads[tid].proc, self.host_of(tid), int(args[2]));
        let (start, path) = self.at(tid, args[0], args[1])?;
        let text = String::from_utf8_lossy(&path);
        if self.follow {
            eprintln!("open {text}");
        }
        if LIBRARIES.iter().any(|library| text.starts_with(library)) {
            return Ok(Flow::Really);
        }
        let now = self.wall(host);
        let disk = &mut self.hosts[host].disk;
        let (ino, was_there) = disk.open(start, &path, flags & libc::O_CREAT != 0, now)?;
        if was_there && flags & libc::O_EXCL != 0 && flags & libc::O_CREAT != 0 {
            return Err(libc::EEXIST);
        }
        let is_dir = disk.stat(ino)?.is_dir;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if is_dir && writes {
            return Err(libc::EISDIR);
        }
        if !is_dir && flags & libc::O_DIRECTORY != 0 {
            return Err(libc::ENOTDIR);
        }
        if was_there && flags & libc::O_TRUNC != 0 && writes {
            disk.truncate(ino, 0, now)?;
        }
        let kind = if is_dir {
            Kind::Dir { ino, listed: None }
        } else {
            disk.opened(ino);
            Kind::File { ino, at: 0, append: flags & libc::O_APPEND != 0 }
        };
        let desc = self.add_desc(host, kind, false);
        ready(self.add_fd(proc, desc).into())
    }

    pub(super) fn vector(&self, tid: Tid, args: [u64; 6]) -> Result<Vec<(u64, usize)>> {
        let parts = self.read(tid, args[1], size(args[2]) * 16)?;
        let word = |at: &[u8]| u64::from_ne_bytes(at.try_into().unwrap_or_default());
        Ok(parts.chunks(16).map(|part| (word(&part[..8]), size(word(&part[8..])))).collect())
    }

    pub(super) fn gather(&self, tid: Tid, parts: &[(u64, usize)], skip: usize) -> Result<Vec<u8>> {
        let len: usize = parts.iter().map(|(_, len)| len).sum();
        let mut data = vec![0; len.saturating_sub(skip)];
        let (mut rest, mut skip) = (data.as_mut_slice(), skip);
        let mut pieces = Vec::with_capacity(parts.len());
        for (at, len) in parts {
            let skipped = skip.min(*len);
            skip -= skipped;
            let (piece, behind) = rest.split_at_mut(len - skipped);
            pieces.push((at + skipped as u64, piece));
            rest = behind;
        }
        self.read_parts(tid, &mut pieces)?;
        Ok(data)
    }

    pub(super) fn scatter(&self, tid: Tid, parts: &[(u64, usize)], mut data: &[u8]) -> Result<()> {
        let mut pieces = Vec::with_capacity(parts.len());
        for (at, len) in parts {
            let (now, rest) = data.split_at(data.len().min(*len));
            pieces.push((*at, now));
            data = rest;
        }
        self.write_parts(tid, &pieces)
    }

    pub(super) fn pread(
        &mut self,
        tid: Tid,
        fd: i32,
        parts: &[(u64, usize)],
        offset: u64,
    ) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        let ino = self.file(proc, fd)?;
        let trouble = self.hosts[host].disk.trouble.read_fails;
        if trouble != 0 && self.random.below(trouble) == 0 {
            return Err(libc::EIO);
        }
        let len = parts.iter().map(|(_, len)| len).sum();
        let file = self.hosts[host].disk.file(ino)?;
        if let [(at, len)] = parts {
            // Whole journals are read so.
            let slices = file.slices(offset, *len);
            self.write_slices(tid, *at, &slices)?;
            return ready(count(slices.iter().map(|slice| slice.len()).sum()));
        }
        let data = file.read(offset, len);
        self.scatter(tid, parts, &data)?;
        ready(count(data.len()))
    }

    pub(super) fn pwrite(
        &mut self,
        tid: Tid,
        fd: i32,
        parts: &[(u64, usize)],
        offset: u64,
    ) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        let ino = self.file(proc, fd)?;
        let data = self.gather(tid, parts, 0)?;
        let now = self.wall(host);
        self.hosts[host].disk.write(ino, offset, &data, now, &mut self.random)?;
        ready(count(data.len()))
    }

    pub(super) fn fsync(&mut self, tid: Tid, call: &Call) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        let desc = self.desc(proc, int(call.args[0]))?;
        let ino = match self.kind(desc)? {
            Kind::File { ino, .. } | Kind::Dir { ino, .. } => *ino,
            Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Stream(_)
            | Kind::Count(_)
            | Kind::Epoll(_) => return Err(libc::EINVAL),
        };
        let took = self.hosts[host].sync_nanos_max / 8
            + self.random.below(self.hosts[host].sync_nanos_max);
        let disk = &mut self.hosts[host].disk;
        let result = if call.number == libc::SYS_syncfs {
            disk.sync_all();
            0
        } else {
            disk.sync(ino, &mut self.random).map_or_else(|errno| -i64::from(errno), |()| 0)
        };
        Ok(Flow::Later { at: self.now + took, result })
    }

    pub(super) fn lseek(
        &mut self,
        proc: ProcId,
        fd: i32,
        offset: i64,
        whence: i32,
    ) -> Result<Flow> {
        let desc = self.desc(proc, fd)?;
        let host = self.procs[proc].host;
        let Kind::File { ino, at, .. } = self.kind(desc)? else {
            if let Kind::Dir { listed, .. } = self.kind(desc)? {
                *listed = None;
                return ready(0);
            }
            return Err(libc::ESPIPE);
        };
        let (ino, at) = (*ino, *at);
        let file = self.hosts[host].disk.file(ino)?;
        let from = |base: u64| base.checked_add_signed(offset).ok_or(libc::EINVAL);
        let to = match whence {
            libc::SEEK_SET => from(0)?,
            libc::SEEK_CUR => from(at)?,
            libc::SEEK_END => from(file.len())?,
            libc::SEEK_DATA => file.seek(from(0)?, true).ok_or(libc::ENXIO)?,
            libc::SEEK_HOLE => file.seek(from(0)?, false).ok_or(libc::ENXIO)?,
            _ => return Err(libc::EINVAL),
        };
        if let Kind::File { at, .. } = self.kind(desc)? {
            *at = to;
        }
        ready(to.cast_signed())
    }

    pub(super) fn stat_of(&mut self, tid: Tid, fd: u64, path: u64, flags: i32) -> Result<Stat> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        let name = if path == 0 { Vec::new() } else { self.path(tid, path)? };
        let ino =
            if name.is_empty() && flags & libc::AT_EMPTY_PATH != 0 && int(fd) != libc::AT_FDCWD {
                let desc = self.desc(proc, int(fd))?;
                match self.kind(desc)? {
                    Kind::File { ino, .. } | Kind::Dir { ino, .. } => *ino,
                    Kind::Listener { .. }
                    | Kind::Deaf
                    | Kind::Stream(_)
                    | Kind::Count(_)
                    | Kind::Epoll(_) => return Err(libc::EINVAL),
                }
            } else {
                let (start, path) = self.at(tid, fd, path)?;
                self.hosts[host].disk.find(start, &path)?
            };
        self.hosts[host].disk.stat(ino)
    }

    pub(super) fn newfstatat(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let stat = self.stat_of(tid, args[0], args[1], int(args[3]))?;
        let mode: u32 = if stat.is_dir { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o600 };
        let mut out = [0_u8; 144];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &1_u64.to_ne_bytes());
        put(8, &stat.ino.to_ne_bytes());
        put(16, &1_u64.to_ne_bytes());
        put(24, &mode.to_ne_bytes());
        put(48, &stat.len.to_ne_bytes());
        put(56, &4096_u64.to_ne_bytes());
        put(64, &stat.blocks.to_ne_bytes());
        for at in [72, 88, 104] {
            put(at, &timespec(stat.changed));
        }
        self.write(tid, args[2], &out).and(ready(0))
    }

    pub(super) fn statx(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let stat = self.stat_of(tid, args[0], args[1], int(args[2]))?;
        let mode = if stat.is_dir { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o600 };
        let mut out = [0_u8; 256];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &libc::STATX_BASIC_STATS.to_ne_bytes());
        put(4, &4096_u32.to_ne_bytes());
        put(16, &1_u32.to_ne_bytes());
        put(28, &u16::try_from(mode).unwrap_or(0).to_ne_bytes());
        put(32, &stat.ino.to_ne_bytes());
        put(40, &stat.len.to_ne_bytes());
        put(48, &stat.blocks.to_ne_bytes());
        for at in [64, 80, 96, 112] {
            put(at, &(stat.changed / SECOND).to_ne_bytes());
            put(at + 8, &u32::try_from(stat.changed % SECOND).unwrap_or(0).to_ne_bytes());
        }
        put(136, &1_u32.to_ne_bytes());
        self.write(tid, args[4], &out).and(ready(0))
    }

    pub(super) fn statfs(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let disk = &self.hosts[self.host_of(tid)].disk;
        let (total, free) = (disk.capacity / 4096, disk.free() / 4096);
        let words =
            [0xef53, 4096, total, free, free, 1 << 20, 1 << 20, 0, 255, 4096, 0, 0, 0, 0, 0];
        self.write(tid, args[1], &words.map(u64::to_ne_bytes).concat()).and(ready(0))
    }

    pub(super) fn getdents(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        let desc = self.desc(proc, int(args[0]))?;
        let Kind::Dir { ino, listed } = self.kind(desc)? else { return Err(libc::ENOTDIR) };
        let (ino, mut list) = (*ino, listed.take());
        if list.is_none() {
            let dots = [(b".".to_vec(), ino, true), (b"..".to_vec(), ino, true)];
            list = Some(dots.into_iter().chain(self.hosts[host].disk.list(ino)?).collect());
        }
        let mut list: VecDeque<(Vec<u8>, u64, bool)> = list.unwrap_or_default();
        let mut out = Vec::new();
        while let Some((name, ino, is_dir)) = list.front() {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            if size(args[2]) < out.len() + len {
                break;
            }
            let start = out.len();
            out.extend(ino.to_ne_bytes());
            out.extend((start as u64 + 1).to_ne_bytes());
            out.extend(u16::try_from(len).unwrap_or(0).to_ne_bytes());
            out.push(if *is_dir { libc::DT_DIR } else { libc::DT_REG });
            out.extend(name);
            out.resize(start + len, 0);
            list.pop_front();
        }
        if let Kind::Dir { listed, .. } = self.kind(desc)? {
            *listed = Some(list);
        }
        self.write(tid, args[1], &out).and(ready(count(out.len())))
    }

    pub(super) fn flock(&mut self, proc: ProcId, host: HostId, fd: i32, op: i32) -> Result<Flow> {
        let (desc, ino) = (self.desc(proc, fd)?, self.file(proc, fd)?);
        let locks = &mut self.hosts[host].disk.locks;
        if op & libc::LOCK_UN != 0 {
            locks.retain(|_, holder| *holder != desc);
            return ready(0);
        }
        if *locks.entry(ino).or_insert(desc) == desc { ready(0) } else { Err(libc::EWOULDBLOCK) }
    }

    pub(super) fn fcntl(&mut self, proc: ProcId, args: [u64; 6]) -> Result<Flow> {
        let fd = int(args[0]);
        if (0..3).contains(&fd) {
            return ready(0);
        }
        let desc = self.desc(proc, fd)?;
        match int(args[1]) {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => ready(self.add_fd(proc, desc).into()),
            libc::F_GETFL => {
                let nonblocking = self.net.descs.get(&desc).is_some_and(|desc| desc.nonblocking);
                ready(i64::from(libc::O_RDWR | if nonblocking { libc::O_NONBLOCK } else { 0 }))
            }
            libc::F_SETFL => {
                if let Some(desc) = self.net.descs.get_mut(&desc) {
                    desc.nonblocking = int(args[2]) & libc::O_NONBLOCK != 0;
                }
                ready(0)
            }
            // Locks of ranges keep others away from a store: flock does, too.
            libc::F_GETFD | libc::F_SETFD | libc::F_OFD_SETLK => ready(0),
            _ => Err(libc::EINVAL),
        }
    }

    pub(super) fn ioctl(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let proc = self.threads[tid].proc;
        if (0..3).contains(&int(args[0])) {
            return Err(libc::ENOTTY);
        }
        let desc = self.desc(proc, int(args[0]))?;
        if args[1] != libc::FIONBIO {
            return Err(libc::ENOTTY);
        }
        let on = self.read(tid, args[2], 4)? != [0; 4];
        if let Some(desc) = self.net.descs.get_mut(&desc) {
            desc.nonblocking = on;
        }
        ready(0)
    }
}
