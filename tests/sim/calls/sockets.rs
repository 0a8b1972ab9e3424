//! Sockets and their options.

use super::{Result, int, ready};
use crate::kernel::{Flow, Kernel, Key, SECOND, Tid};
use crate::native::Call;
use crate::net::{Addr, Kind, Phase};

impl Kernel {
    pub(super) fn address(&self, tid: Tid, at: u64) -> Result<Addr> {
        let bytes = self.read(tid, at, 8)?;
        let family = u16::from_ne_bytes([bytes[0], bytes[1]]);
        if i32::from(family) != libc::AF_INET {
            return Ok(([0; 4], 0));
        }
        Ok(([bytes[4], bytes[5], bytes[6], bytes[7]], u16::from_be_bytes([bytes[2], bytes[3]])))
    }

    pub(super) fn put_address(&self, tid: Tid, at: u64, len_at: u64, addr: Addr) -> Result<()> {
        if at == 0 {
            return Ok(());
        }
        let mut bytes = [0_u8; 16];
        bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&addr.1.to_be_bytes());
        bytes[4..8].copy_from_slice(&addr.0);
        self.write(tid, at, &bytes)?;
        self.write(tid, len_at, &16_u32.to_ne_bytes())
    }

    pub(super) fn accept4(&mut self, tid: Tid, call: &Call, expired: bool) -> Result<Flow> {
        let (args, proc) = (call.args, self.threads[tid].proc);
        let desc = self.desc(proc, int(args[0]))?;
        if let Some((accepted, remote)) = self.accept(desc) {
            let flags = if call.number == libc::SYS_accept4 { int(args[3]) } else { 0 };
            if let Some(desc) = self.net.descs.get_mut(&accepted) {
                desc.nonblocking = flags & libc::SOCK_NONBLOCK != 0;
            }
            self.put_address(tid, args[1], args[2], remote)?;
            return ready(self.add_fd(proc, accepted).into());
        }
        if expired || self.net.descs.get(&desc).is_some_and(|desc| desc.nonblocking) {
            return Err(libc::EAGAIN);
        }
        Ok(Flow::Block { on: vec![Key::Desc(desc)], until: None })
    }

    pub(super) fn connect_fd(&mut self, tid: Tid, args: [u64; 6], expired: bool) -> Result<Flow> {
        let desc = self.desc(self.threads[tid].proc, int(args[0]))?;
        let nonblocking = self.net.descs.get(&desc).is_some_and(|desc| desc.nonblocking);
        let Some(stream) = self.stream_mut(desc) else { return Err(libc::ECONNREFUSED) };
        match stream.phase {
            Phase::Fresh => {
                let addr = self.address(tid, args[1])?;
                self.connect(desc, addr);
                if nonblocking {
                    return Err(libc::EINPROGRESS);
                }
                Ok(Flow::Block { on: vec![Key::Desc(desc)], until: None })
            }
            Phase::Connecting if nonblocking => Err(libc::EALREADY),
            Phase::Connecting if expired => Err(libc::ETIMEDOUT),
            Phase::Connecting => Ok(Flow::Block { on: vec![Key::Desc(desc)], until: None }),
            Phase::Open => ready(0),
            Phase::Closed => Err(stream.error.take().unwrap_or(libc::ECONNREFUSED)),
        }
    }

    pub(super) fn sockname(&mut self, tid: Tid, call: &Call) -> Result<Flow> {
        let args = call.args;
        let desc = self.desc(self.threads[tid].proc, int(args[0]))?;
        let own = call.number == libc::SYS_getsockname;
        let addr = match self.kind(desc)? {
            Kind::Listener { addr, .. } if own => *addr,
            Kind::Stream(stream) if own => stream.bound.unwrap_or(stream.local),
            Kind::Stream(stream) if stream.phase == Phase::Open => stream.remote,
            Kind::Stream(_) | Kind::Listener { .. } => return Err(libc::ENOTCONN),
            Kind::File { .. } | Kind::Dir { .. } | Kind::Deaf | Kind::Count(_) | Kind::Epoll(_) => {
                return Err(libc::ENOTSOCK);
            }
        };
        self.put_address(tid, args[1], args[2], addr)?;
        ready(0)
    }

    pub(super) fn setsockopt(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let desc = self.desc(self.threads[tid].proc, int(args[0]))?;
        let option = int(args[2]);
        if int(args[1]) == libc::SOL_SOCKET
            && matches!(option, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO)
        {
            let given = self.read(tid, args[3], 16)?;
            let word =
                |at: usize| u64::from_ne_bytes(given[at..at + 8].try_into().unwrap_or_default());
            let nanos = word(0).saturating_mul(SECOND) + word(8) * 1000;
            if let Some(stream) = self.stream_mut(desc) {
                let timeout = (nanos != 0).then_some(nanos);
                if option == libc::SO_RCVTIMEO {
                    stream.read_timeout = timeout;
                } else {
                    stream.write_timeout = timeout;
                }
            }
        }
        ready(0)
    }

    pub(super) fn getsockopt(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let desc = self.desc(self.threads[tid].proc, int(args[0]))?;
        let value = match int(args[2]) {
            libc::SO_ERROR => {
                self.stream_mut(desc).and_then(|stream| stream.error.take()).unwrap_or(0)
            }
            libc::SO_TYPE => libc::SOCK_STREAM,
            _ => 0,
        };
        self.write(tid, args[3], &value.to_ne_bytes())?;
        self.write(tid, args[4], &4_u32.to_ne_bytes())?;
        ready(0)
    }
}
