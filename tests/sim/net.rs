//! Descriptors, and the network between machines: streams whose bytes arrive later, in order, or not while a link is cut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::client::BLOCK;
use crate::disk::Ino;
use crate::kernel::{DescId, HostId, Kernel, Key, MILLI, ProcId, Report, SECOND};

/// Sent, and not read by the other side.
const WINDOW: usize = 256 << 10;
const LOCAL_NANOS: u64 = 20_000;
/// Who gets no answer to a connection request gives up then, as Linux does.
const CONNECT_NANOS: u64 = 130 * SECOND;

/// Where chunkservers listen.
pub(crate) const DATA_PORT: u16 = 7001;

pub(crate) const IN: u32 = libc::EPOLLIN.cast_unsigned();
pub(crate) const OUT: u32 = libc::EPOLLOUT.cast_unsigned();
pub(crate) const ERR: u32 = libc::EPOLLERR.cast_unsigned();
pub(crate) const HUP: u32 = libc::EPOLLHUP.cast_unsigned();
pub(crate) const RDHUP: u32 = libc::EPOLLRDHUP.cast_unsigned();
const ET: u32 = libc::EPOLLET.cast_unsigned();

/// Address and port.
pub(crate) type Addr = ([u8; 4], u16);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Fresh,
    Connecting,
    Open,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) phase: Phase,
    pub(crate) local: Addr,
    pub(crate) remote: Addr,
    peer: Option<DescId>,
    remote_host: HostId,
    pub(crate) received: VecDeque<u8>,
    /// The other side will send nothing more.
    pub(crate) ended: bool,
    /// This side sends nothing more.
    pub(crate) shut: bool,
    /// Told once.
    pub(crate) error: Option<i32>,
    /// Sent and not read yet.
    under_way: usize,
    /// What was sent last arrives then.
    last_at: u64,
    pub(crate) read_timeout: Option<u64>,
    pub(crate) write_timeout: Option<u64>,
    pub(crate) bound: Option<Addr>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    desc: DescId,
    events: u32,
    data: u64,
    /// Told of since it was asked last.
    pending: u32,
}

#[derive(Debug)]
pub(crate) enum Kind {
    File {
        ino: Ino,
        at: u64,
        append: bool,
    },
    Dir {
        ino: Ino,
        listed: Option<VecDeque<(Vec<u8>, Ino, bool)>>,
    },
    Listener {
        addr: Addr,
        queue: VecDeque<DescId>,
    },
    /// Nobody ever comes.
    Deaf,
    Stream(Box<Stream>),
    Count(u64),
    Epoll(BTreeMap<i32, Interest>),
}

#[derive(Debug)]
pub(crate) struct Desc {
    pub(crate) kind: Kind,
    pub(crate) host: HostId,
    pub(crate) refs: usize,
    pub(crate) nonblocking: bool,
    watchers: BTreeSet<DescId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    /// To a port; from that stream.
    Hello {
        addr: Addr,
        from: DescId,
        local: Addr,
    },
    Welcome {
        peer: DescId,
    },
    Refused,
    Data(Vec<u8>),
    End,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Packet {
    from: HostId,
    to: HostId,
    /// The stream it is for; 0: none yet.
    desc: DescId,
    /// The stream it came from.
    sender: DescId,
    what: What,
}

/// The links, from one machine to another.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) descs: BTreeMap<DescId, Desc>,
    next: DescId,
    pub(crate) cut: BTreeSet<(HostId, HostId)>,
    /// Connection requests that are refused.
    pub(crate) refused: BTreeSet<(HostId, HostId)>,
    /// Streams whose bytes are stuck on their way, with the end of the stream behind them.
    pub(crate) stuck: BTreeSet<DescId>,
    held: Vec<Packet>,
    /// When bytes from one machine reached another last.
    pub(crate) heard: BTreeMap<(HostId, HostId), u64>,
    /// Between machines, at most; one time in many it is a hundred times as long.
    pub(crate) latency_max: u64,
    ports: u16,
}

impl Kernel {
    pub(crate) fn add_desc(&mut self, host: HostId, kind: Kind, nonblocking: bool) -> DescId {
        self.net.next += 1;
        let desc = Desc { kind, host, refs: 0, nonblocking, watchers: BTreeSet::new() };
        self.net.descs.insert(self.net.next, desc);
        self.net.next
    }

    pub(crate) fn add_fd(&mut self, proc: ProcId, desc: DescId) -> i32 {
        if let Some(desc) = self.net.descs.get_mut(&desc) {
            desc.refs += 1;
        }
        let fds = &mut self.procs[proc].fds;
        let fd = (1000..).find(|fd| !fds.contains_key(fd)).unwrap_or(i32::MAX);
        fds.insert(fd, desc);
        fd
    }

    pub(crate) fn stream(&mut self) -> Box<Stream> {
        Box::new(Stream {
            phase: Phase::Fresh,
            local: ([0; 4], 0),
            remote: ([0; 4], 0),
            peer: None,
            remote_host: 0,
            received: VecDeque::new(),
            ended: false,
            shut: false,
            error: None,
            under_way: 0,
            last_at: 0,
            read_timeout: None,
            write_timeout: None,
            bound: None,
        })
    }

    /// Two ends on one machine, without delay.
    pub(crate) fn pair(&mut self, host: HostId, nonblocking: bool) -> (DescId, DescId) {
        let mut end = || {
            let mut stream = self.stream();
            (stream.phase, stream.remote_host) = (Phase::Open, host);
            self.add_desc(host, Kind::Stream(stream), nonblocking)
        };
        let (a, b) = (end(), end());
        for (one, other) in [(a, b), (b, a)] {
            if let Some(stream) = self.stream_mut(one) {
                stream.peer = Some(other);
            }
        }
        (a, b)
    }

    pub(crate) fn stream_mut(&mut self, desc: DescId) -> Option<&mut Stream> {
        match &mut self.net.descs.get_mut(&desc)?.kind {
            Kind::Stream(stream) => Some(stream),
            Kind::File { .. }
            | Kind::Dir { .. }
            | Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Count(_)
            | Kind::Epoll(_) => None,
        }
    }

    // --- readiness --------------------------------------------------------------------------------------------------

    pub(crate) fn readiness(&self, desc: DescId) -> u32 {
        let Some(desc) = self.net.descs.get(&desc) else { return ERR | HUP };
        match &desc.kind {
            Kind::Stream(stream) => {
                let mut ready = 0;
                if !stream.received.is_empty() || stream.ended || stream.error.is_some() {
                    ready |= IN;
                }
                match stream.phase {
                    Phase::Open if stream.under_way < WINDOW || stream.shut => ready |= OUT,
                    Phase::Fresh => ready |= OUT | HUP,
                    Phase::Closed => ready |= IN | OUT | HUP | RDHUP,
                    Phase::Open | Phase::Connecting => {}
                }
                if stream.ended {
                    ready |= RDHUP;
                }
                if stream.ended && stream.shut {
                    ready |= HUP;
                }
                if stream.error.is_some() {
                    ready |= ERR;
                }
                ready
            }
            Kind::Listener { queue, .. } if !queue.is_empty() => IN,
            Kind::Count(count) => OUT | if *count == 0 { 0 } else { IN },
            Kind::Epoll(interests) => {
                let any = interests
                    .values()
                    .any(|interest| self.readiness(interest.desc) & interest.events != 0);
                if any { IN } else { 0 }
            }
            Kind::File { .. } | Kind::Dir { .. } => IN | OUT,
            Kind::Listener { .. } | Kind::Deaf => 0,
        }
    }

    /// Something became ready, or ready once more.
    fn ready(&mut self, id: DescId, events: u32) {
        self.tell(Key::Desc(id));
        let Some(desc) = self.net.descs.get(&id) else { return };
        for epoll in desc.watchers.clone() {
            let mut woken = false;
            if let Some(Desc { kind: Kind::Epoll(interests), .. }) = self.net.descs.get_mut(&epoll)
            {
                for interest in interests.values_mut().filter(|interest| interest.desc == id) {
                    interest.pending |= events & (interest.events | ERR | HUP);
                    woken |= interest.pending != 0;
                }
            }
            if woken {
                self.tell(Key::Desc(epoll));
            }
        }
    }

    /// # Errors
    /// As epoll_ctl(2).
    pub(crate) fn watch(
        &mut self,
        epoll: DescId,
        op: i32,
        fd: i32,
        desc: DescId,
        events: u32,
        data: u64,
    ) -> Result<(), i32> {
        let pending = self.readiness(desc) & (events | ERR | HUP);
        let Some(Desc { kind: Kind::Epoll(interests), .. }) = self.net.descs.get_mut(&epoll) else {
            return Err(libc::EINVAL);
        };
        let there = interests.contains_key(&fd);
        match op {
            libc::EPOLL_CTL_DEL if there => {
                interests.remove(&fd);
                let still = interests.values().any(|interest| interest.desc == desc);
                if !still && let Some(desc) = self.net.descs.get_mut(&desc) {
                    desc.watchers.remove(&epoll);
                }
                return Ok(());
            }
            libc::EPOLL_CTL_ADD if there => return Err(libc::EEXIST),
            libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL if !there => return Err(libc::ENOENT),
            _ => {}
        }
        interests.insert(fd, Interest { desc, events, data, pending });
        if let Some(desc) = self.net.descs.get_mut(&desc) {
            desc.watchers.insert(epoll);
        }
        if pending != 0 {
            self.tell(Key::Desc(epoll));
        }
        Ok(())
    }

    /// What an epoll has to tell, at most `most`: events and data.
    pub(crate) fn epoll_ready(&mut self, epoll: DescId, most: usize) -> Vec<(u32, u64)> {
        let Some(Desc { kind: Kind::Epoll(interests), .. }) = self.net.descs.get(&epoll) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut seen = Vec::new();
        for (fd, interest) in interests {
            let now = self.readiness(interest.desc) & (interest.events | ERR | HUP);
            let is_edge = interest.events & ET != 0;
            if now != 0 && (!is_edge || interest.pending != 0) && found.len() < most {
                found.push((now, interest.data));
                seen.push(*fd);
            }
        }
        if let Some(Desc { kind: Kind::Epoll(interests), .. }) = self.net.descs.get_mut(&epoll) {
            for fd in seen {
                if let Some(interest) = interests.get_mut(&fd) {
                    interest.pending = 0;
                }
            }
        }
        found
    }

    // --- closing ----------------------------------------------------------------------------------------------------

    pub(crate) fn close(&mut self, proc: ProcId, fd: i32) -> bool {
        let Some(desc) = self.procs[proc].fds.remove(&fd) else { return false };
        self.release(desc, true);
        true
    }

    /// As when the machine loses its power.
    pub(crate) fn forget_fd(&mut self, proc: ProcId, fd: i32) {
        if let Some(desc) = self.procs[proc].fds.remove(&fd) {
            self.release(desc, false);
        }
    }

    fn release(&mut self, id: DescId, tell: bool) {
        let Some(desc) = self.net.descs.get_mut(&id) else { return };
        desc.refs = desc.refs.saturating_sub(1);
        if desc.refs != 0 {
            return;
        }
        let Some(desc) = self.net.descs.remove(&id) else { return };
        for epoll in desc.watchers {
            if let Some(Desc { kind: Kind::Epoll(interests), .. }) = self.net.descs.get_mut(&epoll)
            {
                interests.retain(|_, interest| interest.desc != id);
            }
        }
        match desc.kind {
            Kind::File { ino, .. } => {
                let disk = &mut self.hosts[desc.host].disk;
                disk.closed(ino);
                disk.locks.retain(|_, holder| *holder != id);
            }
            Kind::Stream(mut stream) if tell && stream.phase == Phase::Open => {
                let what = if stream.received.is_empty() { What::End } else { What::Reset };
                self.send_packet(id, desc.host, &mut stream, what);
            }
            Kind::Listener { queue, .. } if tell => {
                for waiting in queue {
                    self.release_unaccepted(waiting);
                }
            }
            Kind::Epoll(interests) => {
                for interest in interests.values() {
                    if let Some(desc) = self.net.descs.get_mut(&interest.desc) {
                        desc.watchers.remove(&id);
                    }
                }
            }
            Kind::Stream(_)
            | Kind::Listener { .. }
            | Kind::Dir { .. }
            | Kind::Deaf
            | Kind::Count(_) => {}
        }
    }

    fn release_unaccepted(&mut self, id: DescId) {
        if let Some(Desc { kind: Kind::Stream(mut stream), host, .. }) = self.net.descs.remove(&id)
        {
            self.send_packet(id, host, &mut stream, What::Reset);
        }
    }

    // --- sending ----------------------------------------------------------------------------------------------------

    fn latency(&mut self, from: HostId, to: HostId) -> u64 {
        if from == to {
            return LOCAL_NANOS;
        }
        let max = self.net.latency_max.max(2);
        let usual = max / 2 + self.random.below(max / 2);
        if self.random.below(1000) == 0 { 100 * usual } else { usual }
    }

    fn send_packet(&mut self, sender: DescId, host: HostId, stream: &mut Stream, what: What) {
        let Some(peer) = stream.peer else { return };
        let at = (self.now + self.latency(host, stream.remote_host)).max(stream.last_at + 1);
        stream.last_at = at;
        self.deliver(at, Packet { from: host, to: stream.remote_host, desc: peer, sender, what });
    }

    /// The stream is not among the descriptors meanwhile.
    fn with_stream<T>(
        &mut self,
        id: DescId,
        with: impl FnOnce(&mut Self, HostId, &mut Stream) -> T,
    ) -> Option<T> {
        let mut desc = self.net.descs.remove(&id)?;
        let done = match &mut desc.kind {
            Kind::Stream(stream) => Some(with(self, desc.host, stream)),
            Kind::File { .. }
            | Kind::Dir { .. }
            | Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Count(_)
            | Kind::Epoll(_) => None,
        };
        self.net.descs.insert(id, desc);
        done
    }

    /// How many of `data` go now; 0: it is full.
    ///
    /// # Errors
    /// As send(2).
    pub(crate) fn send(&mut self, id: DescId, data: &[u8]) -> Result<usize, i32> {
        let sent = self.with_stream(id, |kernel, host, stream| {
            if let Some(error) = stream.error.take() {
                return Err(error);
            }
            match stream.phase {
                Phase::Open if !stream.shut => {}
                Phase::Connecting => return Ok(0),
                Phase::Fresh => return Err(libc::ENOTCONN),
                Phase::Open | Phase::Closed => return Err(libc::EPIPE),
            }
            let take = data.len().min(WINDOW.saturating_sub(stream.under_way));
            if take != 0 {
                stream.under_way += take;
                kernel.send_packet(id, host, stream, What::Data(data[..take].to_vec()));
                if stream.local.1 == DATA_PORT && BLOCK <= take {
                    let to = stream.remote_host;
                    kernel.report(Report::Served { from: host, to });
                }
            }
            Ok(take)
        });
        sent.unwrap_or(Err(libc::ENOTSOCK))
    }

    /// Up to `len` bytes; none: the other side ended; `None`: nothing yet.
    ///
    /// # Errors
    /// As recv(2).
    pub(crate) fn receive(&mut self, id: DescId, len: usize) -> Result<Option<Vec<u8>>, i32> {
        let Some(stream) = self.stream_mut(id) else { return Err(libc::ENOTSOCK) };
        if !stream.received.is_empty() {
            let take = len.min(stream.received.len());
            let got: Vec<u8> = stream.received.drain(..take).collect();
            let peer = stream.peer;
            // Room for the sender.
            let room = peer.and_then(|peer| {
                let sender = self.stream_mut(peer)?;
                let was_full = WINDOW <= sender.under_way;
                sender.under_way = sender.under_way.saturating_sub(take);
                was_full.then_some(peer)
            });
            if let Some(peer) = room {
                self.ready(peer, OUT);
            }
            return Ok(Some(got));
        }
        if let Some(error) = stream.error.take() {
            return Err(error);
        }
        match stream.phase {
            Phase::Fresh => Err(libc::ENOTCONN),
            Phase::Closed => Ok(Some(Vec::new())),
            Phase::Open | Phase::Connecting if stream.ended => Ok(Some(Vec::new())),
            Phase::Open | Phase::Connecting => Ok(None),
        }
    }

    /// # Errors
    /// As shutdown(2).
    pub(crate) fn shutdown(&mut self, id: DescId, how: i32) -> Result<(), i32> {
        let done = self.with_stream(id, |kernel, host, stream| {
            if stream.phase != Phase::Open {
                return Err(libc::ENOTCONN);
            }
            if how != libc::SHUT_RD && !stream.shut {
                stream.shut = true;
                kernel.send_packet(id, host, stream, What::End);
            }
            if how != libc::SHUT_WR {
                stream.ended = true;
            }
            Ok(())
        });
        match done {
            Some(Ok(())) => {
                self.ready(id, IN | OUT | RDHUP | HUP);
                Ok(())
            }
            Some(Err(error)) => Err(error),
            // A listener is woken and never asked again.
            None => {
                self.tell(Key::Desc(id));
                Ok(())
            }
        }
    }

    // --- connections ------------------------------------------------------------------------------------------------

    pub(crate) fn host_at(&self, ip: [u8; 4], asker: HostId) -> Option<HostId> {
        if ip[0] == 127 || ip == [0; 4] {
            return Some(asker);
        }
        self.hosts.iter().position(|host| host.ip == ip)
    }

    /// # Errors
    /// EADDRINUSE.
    pub(crate) fn listen(&mut self, id: DescId, host: HostId) -> Result<(), i32> {
        let bound = self.stream_mut(id).and_then(|stream| stream.bound);
        let Some(mut addr) = bound else { return Ok(()) };
        if addr.1 == 0 {
            addr.1 = self.free_port();
        }
        let taken = self.net.descs.values().any(|desc| {
            desc.host == host
                && matches!(&desc.kind, Kind::Listener { addr: other, .. } if other.1 == addr.1)
        });
        if taken {
            return Err(libc::EADDRINUSE);
        }
        if let Some(desc) = self.net.descs.get_mut(&id) {
            desc.kind = Kind::Listener { addr, queue: VecDeque::new() };
        }
        Ok(())
    }

    fn free_port(&mut self) -> u16 {
        self.net.ports = self.net.ports.wrapping_add(1) % 28_000;
        32_768 + self.net.ports
    }

    pub(crate) fn connect(&mut self, id: DescId, addr: Addr) {
        let port = self.free_port();
        let host = self.net.descs.get(&id).map_or(0, |desc| desc.host);
        let local = (if addr.0[0] == 127 { addr.0 } else { self.hosts[host].ip }, port);
        let to = self.host_at(addr.0, host);
        if let Some(stream) = self.stream_mut(id) {
            (stream.phase, stream.local, stream.remote) = (Phase::Connecting, local, addr);
            stream.remote_host = to.unwrap_or(host);
        }
        let Some(to) = to else {
            let until = self.now + 3 * SECOND;
            self.deliver(
                until,
                Packet { from: host, to: host, desc: id, sender: 0, what: What::Refused },
            );
            return;
        };
        let at = self.now + self.latency(host, to);
        let what = What::Hello { addr, from: id, local };
        self.deliver(at, Packet { from: host, to, desc: 0, sender: id, what });
        let timeout = self.now + CONNECT_NANOS;
        self.deliver(
            timeout,
            Packet { from: host, to: host, desc: id, sender: id, what: What::Refused },
        );
    }

    /// The next connection of a listener; `None`: none yet.
    pub(crate) fn accept(&mut self, id: DescId) -> Option<(DescId, Addr)> {
        let Kind::Listener { queue, .. } = &mut self.net.descs.get_mut(&id)?.kind else {
            return None;
        };
        let accepted = queue.pop_front()?;
        let remote = self.stream_mut(accepted)?.remote;
        Some((accepted, remote))
    }

    /// A packet comes to the end of its way.
    pub(crate) fn arrive(&mut self, packet: Packet) {
        let Packet { from, to, desc, sender, .. } = packet;
        let stuck = self.net.stuck.contains(&sender);
        if from != to && (stuck || self.net.cut.contains(&(from, to)) || !self.hosts[to].up) {
            // It is sent again and again until there is an answer.
            self.net.held.push(packet);
            return;
        }
        if matches!(packet.what, What::Data(_)) {
            self.net.heard.insert((from, to), self.now);
        }
        match packet.what {
            What::Hello { addr, from: asker, local } => {
                let listener = self.net.descs.iter().find_map(|(id, desc)| match &desc.kind {
                    Kind::Listener { addr: here, .. } if desc.host == to && here.1 == addr.1 => {
                        Some(*id)
                    }
                    Kind::Listener { .. }
                    | Kind::File { .. }
                    | Kind::Dir { .. }
                    | Kind::Deaf
                    | Kind::Stream(_)
                    | Kind::Count(_)
                    | Kind::Epoll(_) => None,
                });
                let at = self.now + self.latency(to, from);
                let listener = listener.filter(|_| !self.net.refused.contains(&(from, to)));
                let Some(listener) = listener else {
                    self.deliver(
                        at,
                        Packet { from: to, to: from, desc: asker, sender: 0, what: What::Refused },
                    );
                    return;
                };
                let mut stream = self.stream();
                (stream.phase, stream.local, stream.remote) = (Phase::Open, addr, local);
                (stream.peer, stream.remote_host, stream.last_at) = (Some(asker), from, at);
                let here = self.add_desc(to, Kind::Stream(stream), false);
                if let Some(Desc { kind: Kind::Listener { queue, .. }, .. }) =
                    self.net.descs.get_mut(&listener)
                {
                    queue.push_back(here);
                }
                self.ready(listener, IN);
                self.deliver(
                    at,
                    Packet {
                        from: to,
                        to: from,
                        desc: asker,
                        sender: here,
                        what: What::Welcome { peer: here },
                    },
                );
            }
            What::Welcome { peer } => match self.stream_mut(desc) {
                Some(stream) if stream.phase == Phase::Connecting => {
                    (stream.phase, stream.peer) = (Phase::Open, Some(peer));
                    self.ready(desc, OUT);
                }
                Some(_) | None => self.answer_reset(to, from, peer),
            },
            What::Refused => {
                let error = if sender == desc { libc::ETIMEDOUT } else { libc::ECONNREFUSED };
                if let Some(stream) = self.stream_mut(desc)
                    && stream.phase == Phase::Connecting
                {
                    (stream.phase, stream.error) = (Phase::Closed, Some(error));
                    self.ready(desc, IN | OUT | ERR | HUP);
                }
            }
            What::Data(bytes) => match self.stream_mut(desc) {
                Some(stream) if stream.phase == Phase::Open && !stream.ended => {
                    stream.received.extend(bytes);
                    self.ready(desc, IN);
                }
                Some(_) | None => self.answer_reset(to, from, sender),
            },
            What::End => {
                if let Some(stream) = self.stream_mut(desc) {
                    stream.ended = true;
                    self.ready(desc, IN | RDHUP | HUP);
                }
            }
            What::Reset => self.reset(desc),
        }
    }

    fn answer_reset(&mut self, from: HostId, to: HostId, desc: DescId) {
        if desc != 0 {
            let at = self.now + self.latency(from, to);
            self.deliver(at, Packet { from, to, desc, sender: 0, what: What::Reset });
        }
    }

    /// Links were mended or a machine came back: what was held goes on, in its order.
    pub(crate) fn resend(&mut self) {
        for (n, packet) in std::mem::take(&mut self.net.held).into_iter().enumerate() {
            let at = self.now + MILLI * 200 + n as u64;
            if let Some(stream) = self.stream_mut(packet.sender) {
                stream.last_at = stream.last_at.max(at);
            }
            self.deliver(at, packet);
        }
    }

    /// Both ends of every open stream between machines that `of` wants, by their machines.
    pub(crate) fn streams(&self, of: impl Fn(HostId, HostId) -> bool) -> Vec<(DescId, DescId)> {
        let ends = self.net.descs.iter().filter_map(|(id, desc)| match &desc.kind {
            Kind::Stream(stream) if stream.phase == Phase::Open => {
                let peer = stream.peer.filter(|peer| id < peer)?;
                let wanted = desc.host != stream.remote_host && of(desc.host, stream.remote_host);
                wanted.then_some((*id, peer))
            }
            Kind::Stream(_)
            | Kind::File { .. }
            | Kind::Dir { .. }
            | Kind::Listener { .. }
            | Kind::Deaf
            | Kind::Count(_)
            | Kind::Epoll(_) => None,
        });
        ends.collect()
    }

    /// Ends a stream as when something between its ends forgets it: what is under way does not arrive.
    pub(crate) fn break_stream(&mut self, ends: (DescId, DescId)) {
        for end in [ends.0, ends.1] {
            self.reset(end);
        }
    }

    fn reset(&mut self, end: DescId) {
        if let Some(stream) = self.stream_mut(end) {
            (stream.phase, stream.error) = (Phase::Closed, Some(libc::ECONNRESET));
            stream.received.clear();
            self.ready(end, IN | OUT | ERR | HUP | RDHUP);
        }
    }

    /// Something was added to a counter, or taken from it.
    pub(crate) fn counted(&mut self, id: DescId, events: u32) {
        self.ready(id, events);
    }
}
