//! Reading, writing and waiting on whatever has a descriptor.

use super::{Result, count, int, ready, size};
use crate::kernel::{Flow, Kernel, Key, MILLI, Tid};
use crate::native::Call;
use crate::net::{ERR, HUP, IN, Kind, OUT};

impl Kernel {
    /// When the call that is looked at is over at the latest: found out once.
    pub(super) fn until(&mut self, tid: Tid, nanos: Option<u64>) -> Option<u64> {
        if let Some(until) = self.threads[tid].until {
            return until;
        }
        let until = nanos.map(|nanos| self.after(self.host_of(tid), nanos));
        self.threads[tid].until = Some(until);
        until
    }

    pub(super) fn read_fd(
        &mut self,
        tid: Tid,
        fd: i32,
        at: u64,
        len: usize,
        flags: i32,
        expired: bool,
    ) -> Result<Flow> {
        self.readv_with(tid, fd, &[(at, len)], flags, expired)
    }

    pub(super) fn readv(
        &mut self,
        tid: Tid,
        fd: i32,
        parts: &[(u64, usize)],
        expired: bool,
    ) -> Result<Flow> {
        self.readv_with(tid, fd, parts, 0, expired)
    }

    pub(super) fn readv_with(
        &mut self,
        tid: Tid,
        fd: i32,
        parts: &[(u64, usize)],
        flags: i32,
        expired: bool,
    ) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        if fd == 0 {
            return ready(0);
        }
        let desc = self.desc(proc, fd)?;
        let nonblocking = self.net.descs.get(&desc).is_some_and(|desc| desc.nonblocking)
            || flags & libc::MSG_DONTWAIT != 0;
        let len: usize = parts.iter().map(|(_, len)| len).sum();
        match self.kind(desc)? {
            Kind::File { ino, at, .. } => {
                let (ino, from) = (*ino, *at);
                let data = self.hosts[host].disk.file(ino)?.read(from, len);
                if let Kind::File { at, .. } = self.kind(desc)? {
                    *at += data.len() as u64;
                }
                self.scatter(tid, parts, &data)?;
                ready(count(data.len()))
            }
            Kind::Count(value) => {
                let now = std::mem::take(value);
                if now != 0 {
                    self.scatter(tid, parts, &now.to_ne_bytes())?;
                    self.counted(desc, OUT);
                    return ready(8);
                }
                if nonblocking {
                    Err(libc::EAGAIN)
                } else {
                    Ok(Flow::Block { on: vec![Key::Desc(desc)], until: None })
                }
            }
            Kind::Stream(stream) => {
                let timeout = stream.read_timeout;
                if flags & libc::MSG_PEEK != 0 {
                    return Err(libc::EINVAL);
                }
                if let Some(data) = self.receive(desc, len)? {
                    self.scatter(tid, parts, &data)?;
                    return ready(count(data.len()));
                }
                if nonblocking || expired {
                    return Err(libc::EAGAIN);
                }
                Ok(Flow::Block { on: vec![Key::Desc(desc)], until: self.until(tid, timeout) })
            }
            Kind::Dir { .. } => Err(libc::EISDIR),
            Kind::Listener { .. } | Kind::Deaf | Kind::Epoll(_) => Err(libc::EINVAL),
        }
    }

    pub(super) fn write_fd(
        &mut self,
        tid: Tid,
        fd: i32,
        parts: &[(u64, usize)],
        flags: i32,
        expired: bool,
    ) -> Result<Flow> {
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        if fd == 1 || fd == 2 {
            let data = self.gather(tid, parts, 0)?;
            self.hear(proc, &data);
            return ready(count(data.len()));
        }
        let desc = self.desc(proc, fd)?;
        let nonblocking = self.net.descs.get(&desc).is_some_and(|desc| desc.nonblocking)
            || flags & libc::MSG_DONTWAIT != 0;
        match self.kind(desc)? {
            Kind::File { ino, at, append } => {
                let (ino, at, append) = (*ino, *at, *append);
                let data = self.gather(tid, parts, 0)?;
                let now = self.wall(host);
                let at = if append { self.hosts[host].disk.file(ino)?.len() } else { at };
                self.hosts[host].disk.write(ino, at, &data, now, &mut self.random)?;
                if let Kind::File { at: position, .. } = self.kind(desc)? {
                    *position = at + data.len() as u64;
                }
                ready(count(data.len()))
            }
            Kind::Count(_) => {
                let added = self.gather(tid, parts, 0)?;
                let added = u64::from_ne_bytes(added.try_into().map_err(|_| libc::EINVAL)?);
                if let Kind::Count(value) = self.kind(desc)? {
                    *value += added;
                }
                self.counted(desc, IN);
                ready(8)
            }
            Kind::Stream(stream) => {
                let timeout = stream.write_timeout;
                let done = self.threads[tid].done;
                let data = self.gather(tid, parts, done)?;
                let sent = match self.send(desc, &data) {
                    Ok(sent) => sent,
                    Err(_) if done != 0 => return ready(count(done)),
                    Err(error) => return Err(error),
                };
                let (done, all) = (done + sent, sent == data.len());
                self.threads[tid].done = done;
                if all || ((nonblocking || expired) && done != 0) {
                    return ready(count(done));
                }
                if nonblocking || expired {
                    return Err(libc::EAGAIN);
                }
                Ok(Flow::Block { on: vec![Key::Desc(desc)], until: self.until(tid, timeout) })
            }
            Kind::Dir { .. } => Err(libc::EISDIR),
            Kind::Listener { .. } | Kind::Deaf | Kind::Epoll(_) => Err(libc::EINVAL),
        }
    }

    pub(super) fn sendmsg(&mut self, tid: Tid, args: [u64; 6], expired: bool) -> Result<Flow> {
        let header = self.read(tid, args[1], 56)?;
        let word =
            |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let parts = self.vector(tid, [0, word(16), word(24), 0, 0, 0])?;
        self.write_fd(tid, int(args[0]), &parts, int(args[2]), expired)
    }

    pub(super) fn poll(&mut self, tid: Tid, call: &Call, expired: bool) -> Result<Flow> {
        let args = call.args;
        let proc = self.threads[tid].proc;
        let timeout = match (call.number == libc::SYS_ppoll, args[2]) {
            (true, 0) => None,
            (true, at) => Some(self.timespec_at(tid, at)?),
            (false, millis) => u64::try_from(int(millis)).ok().map(|millis| millis * MILLI),
        };
        let mut list = self.read(tid, args[0], size(args[1]) * 8)?;
        let (mut found, mut on) = (0, Vec::new());
        for entry in list.chunks_mut(8) {
            let fd = i32::from_ne_bytes(entry[..4].try_into().unwrap_or_default());
            let events = u32::from(u16::from_ne_bytes([entry[4], entry[5]]));
            let told = match self.procs[proc].fds.get(&fd) {
                Some(desc) => {
                    on.push(Key::Desc(*desc));
                    self.readiness(*desc) & (events | ERR | HUP)
                }
                None => 0,
            };
            found += i64::from(told != 0);
            entry[6..].copy_from_slice(&u16::try_from(told).unwrap_or(0).to_ne_bytes());
        }
        let until = match timeout {
            Some(0) => Some(self.now),
            Some(nanos) => self.until(tid, Some(nanos)),
            None => None,
        };
        if found != 0 || expired || timeout == Some(0) {
            return self.write(tid, args[0], &list).and(ready(found));
        }
        Ok(Flow::Block { on, until })
    }

    pub(super) fn epoll_ctl(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let proc = self.threads[tid].proc;
        let (epoll, desc) = (self.desc(proc, int(args[0]))?, self.desc(proc, int(args[2]))?);
        let (events, data) = if int(args[1]) == libc::EPOLL_CTL_DEL {
            (0, 0)
        } else {
            let event = self.read(tid, args[3], 12)?;
            (
                u32::from_ne_bytes(event[..4].try_into().unwrap_or_default()),
                u64::from_ne_bytes(event[4..].try_into().unwrap_or_default()),
            )
        };
        self.watch(epoll, int(args[1]), int(args[2]), desc, events, data).map(|()| Flow::Done(0))
    }

    pub(super) fn epoll_wait(&mut self, tid: Tid, args: [u64; 6], expired: bool) -> Result<Flow> {
        let epoll = self.desc(self.threads[tid].proc, int(args[0]))?;
        let found = self.epoll_ready(epoll, size(args[2]));
        if found.is_empty() && !expired && int(args[3]) != 0 {
            let nanos = u64::try_from(int(args[3])).ok().map(|millis| millis * MILLI);
            return Ok(Flow::Block { on: vec![Key::Desc(epoll)], until: self.until(tid, nanos) });
        }
        let mut out = Vec::new();
        for (events, data) in &found {
            out.extend(events.to_ne_bytes());
            out.extend(data.to_ne_bytes());
        }
        self.write(tid, args[1], &out).and(ready(count(found.len())))
    }
}
