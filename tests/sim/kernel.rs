//! Machines, processes and threads: one thread of all runs at a time, chosen by the seed, until it asks for something.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::path::Path;

use tests::Random;

use crate::disk::Disk;
use crate::native::{Call, Process};
use crate::net::{Net, Packet};

pub(crate) type HostId = usize;
pub(crate) type ProcId = usize;
pub(crate) type Tid = usize;
/// A descriptor's description.
pub(crate) type DescId = u64;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MILLI: u64 = 1_000_000;
/// Virtual time of one system call, at most.
const CALL_NANOS: u64 = 4_000;
/// Calls of one thread within a virtual second: more is a loop that waits for nothing.
const BUSY_CALLS: u64 = 30_000;
/// The same thread goes on, but for one time in so many.
const SWITCH_ONE_IN: u64 = 5;
/// Virtual 2026-01-01.
const EPOCH: u64 = 1_767_225_600 * SECOND;

/// What a blocked thread waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Key {
    Futex(ProcId, u64),
    Desc(DescId),
}

/// What becomes of a system call.
#[derive(Debug)]
pub(crate) enum Flow {
    Done(i64),
    /// The real kernel does it.
    Really,
    /// Tried again when one of these is told of, or at `until`.
    Block {
        on: Vec<Key>,
        until: Option<u64>,
    },
    /// Done with that result then.
    Later {
        at: u64,
        result: i64,
    },
    NewThread {
        thread_id_at: u64,
    },
    ThreadEnds,
    ProcessEnds(i32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wake {
    /// A call is to be looked at, for the first time or again.
    Look {
        expired: bool,
    },
    Result(i64),
    Really,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready(Wake),
    Blocked,
    /// Blocked, but with a result that comes at its time.
    Sleeps(i64),
    Gone,
}

#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) proc: ProcId,
    real: u32,
    call: Option<Call>,
    state: State,
    /// Counts its waits: a late alarm is known by it.
    wait: u64,
    /// Of the call that is looked at: when it is over at the latest, once that was found out.
    pub(crate) until: Option<Option<u64>>,
    /// Of the call that is looked at: bytes that went already.
    pub(crate) done: usize,
    pub(crate) bits: u32,
    cleared_at: u64,
    pub(crate) name: String,
    /// Its call took time: it may have waited for a clock.
    waited: bool,
    /// The second of its last call, and how many there were in it.
    busy: (u64, u64),
}

#[derive(Debug)]
pub(crate) struct Proc {
    pub(crate) name: String,
    pub(crate) host: HostId,
    native: Process,
    pub(crate) alive: bool,
    pub(crate) fds: BTreeMap<i32, DescId>,
    threads: Vec<Tid>,
    pub(crate) line: Vec<u8>,
    paused: bool,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) ip: [u8; 4],
    pub(crate) disk: Disk,
    pub(crate) up: bool,
    /// Its clock runs by so many millionths faster.
    pub(crate) drift_ppm: i64,
    pub(crate) sync_nanos_max: u64,
}

/// What the world outside is told.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    Line {
        proc: ProcId,
        line: String,
    },
    Ended {
        proc: ProcId,
        code: i32,
    },
    Alarm(u64),
    /// A chunkserver sent a block or more to somebody who had connected to it.
    Served {
        from: HostId,
        to: HostId,
    },
    /// A thread that does nothing but ask.
    Busy {
        proc: ProcId,
        thread: String,
    },
}

#[derive(Debug)]
enum Event {
    Thread(Tid, u64),
    Packet(Packet),
    Alarm(u64),
}

#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) now: u64,
    pub(crate) random: Random,
    pub(crate) hosts: Vec<Host>,
    pub(crate) procs: Vec<Proc>,
    pub(crate) threads: Vec<Thread>,
    ready: Vec<Tid>,
    waiting: BTreeMap<Key, VecDeque<(Tid, u64)>>,
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub(crate) net: Net,
    reports: VecDeque<Report>,
    current: Option<Tid>,
    pub(crate) calls: u64,
    /// Over every call and its result.
    pub(crate) trace: u64,
    pub(crate) follow: bool,
    /// Of every machine; otherwise it has one.
    pub(crate) two_cores: bool,
}

impl Kernel {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            random: Random::new(seed, 0),
            hosts: Vec::new(),
            procs: Vec::new(),
            threads: Vec::new(),
            ready: Vec::new(),
            waiting: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            net: Net::default(),
            reports: VecDeque::new(),
            current: None,
            calls: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            follow: false,
            two_cores: true,
        }
    }

    pub(crate) fn add_host(&mut self, name: &str, ip: [u8; 4], capacity: u64) -> HostId {
        self.hosts.push(Host {
            name: name.to_owned(),
            ip,
            disk: Disk::new(capacity),
            up: true,
            drift_ppm: 0,
            sync_nanos_max: 2 * MILLI,
        });
        let host = self.hosts.len() - 1;
        self.boot(host);
        host
    }

    // --- time -------------------------------------------------------------------------------------------------------

    /// What a clock of `host` that began with it shows.
    pub(crate) fn uptime(&self, host: HostId) -> u64 {
        let drift = i128::from(self.now) * i128::from(self.hosts[host].drift_ppm) / 1_000_000;
        // Never the very first second: some programs go back a little from now.
        u64::try_from(i128::from(self.now) + drift).unwrap_or(0) + 1_000 * SECOND
    }

    pub(crate) fn wall(&self, host: HostId) -> u64 {
        EPOCH + self.uptime(host)
    }

    /// The true time at which `nanos` of `host`'s clock are over.
    pub(crate) fn after(&self, host: HostId, nanos: u64) -> u64 {
        let rate = 1_000_000 + i128::from(self.hosts[host].drift_ppm);
        let true_nanos = i128::from(nanos) * 1_000_000 / rate;
        self.now.saturating_add(u64::try_from(true_nanos).unwrap_or(u64::MAX).saturating_add(1))
    }

    pub(crate) fn alarm(&mut self, at: u64, what: u64) {
        self.schedule(at, Event::Alarm(what));
    }

    pub(crate) fn deliver(&mut self, at: u64, packet: Packet) {
        self.schedule(at, Event::Packet(packet));
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.events.insert((at.max(self.now), self.serial), event);
    }

    // --- processes --------------------------------------------------------------------------------------------------

    /// # Errors
    /// The real kernel's.
    pub(crate) fn start(
        &mut self,
        host: HostId,
        name: &str,
        program: &str,
        args: &[String],
        environment: &[(&str, &str)],
    ) -> io::Result<ProcId> {
        let text = |text: &str| CString::new(text).map_err(io::Error::other);
        let mut argv = vec![text("program")?];
        for arg in args {
            argv.push(text(arg)?);
        }
        let environment = environment.iter().map(|(name, value)| text(&format!("{name}={value}")));
        let environment: Vec<CString> = environment.collect::<io::Result<_>>()?;
        let native = Process::launch(Path::new(program), &argv, &environment)?;
        let id = self.procs.len();
        self.procs.push(Proc {
            name: name.to_owned(),
            host,
            native,
            alive: true,
            fds: BTreeMap::new(),
            threads: Vec::new(),
            line: Vec::new(),
            paused: false,
        });
        let Some(call) = self.procs[id].native.next()? else {
            return Err(io::Error::other(format!("{program}: cannot be run")));
        };
        self.procs[id].native.take_clocks()?;
        self.new_thread(id, call, 0);
        Ok(id)
    }

    fn new_thread(&mut self, proc: ProcId, call: Call, cleared_at: u64) {
        let tid = self.threads.len();
        self.threads.push(Thread {
            proc,
            real: call.thread,
            call: Some(call),
            state: State::Ready(Wake::Look { expired: false }),
            wait: 0,
            until: None,
            done: 0,
            bits: 0,
            cleared_at,
            name: String::new(),
            waited: true,
            busy: (0, 0),
        });
        self.procs[proc].threads.push(tid);
        self.ready.push(tid);
    }

    /// SIGKILL. `tell`: its connections are closed; otherwise nobody hears of it.
    pub(crate) fn kill(&mut self, proc: ProcId, tell: bool) {
        if !self.procs[proc].alive {
            return;
        }
        self.procs[proc].native.kill();
        self.bury(proc, tell);
    }

    fn bury(&mut self, proc: ProcId, tell: bool) {
        self.procs[proc].alive = false;
        for tid in std::mem::take(&mut self.procs[proc].threads) {
            self.threads[tid].state = State::Gone;
            self.ready.retain(|other| *other != tid);
            if self.current == Some(tid) {
                self.current = None;
            }
        }
        let fds: Vec<i32> = self.procs[proc].fds.keys().copied().collect();
        for fd in fds {
            if tell {
                self.close(proc, fd);
            } else {
                self.forget_fd(proc, fd);
            }
        }
    }

    /// All processes of a machine end without a word. `power`: what was not on its disk may be lost.
    pub(crate) fn crash_host(&mut self, host: HostId, power: bool) {
        self.hosts[host].up = false;
        for proc in 0..self.procs.len() {
            if self.procs[proc].host == host {
                self.kill(proc, false);
            }
        }
        let machine = &mut self.hosts[host];
        if power {
            machine.disk.lose_power(&mut self.random);
        } else {
            machine.disk.all_closed();
        }
    }

    /// The machine is there, as after a start.
    pub(crate) fn boot(&mut self, host: HostId) {
        let [a, b] = [(); 2].map(|()| self.random.below(u64::MAX));
        let id = format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}\n",
            a >> 32,
            a & 0xffff,
            b >> 52,
            b >> 40 & 0xfff,
            b & 0xffff_ffff_ffff
        );
        let machine = &mut self.hosts[host];
        machine.disk.install("/proc/sys/kernel/random/boot_id", id.as_bytes(), &mut self.random);
        machine.up = true;
        self.resend();
    }

    /// Nothing of it runs until it is let go on.
    pub(crate) fn pause(&mut self, proc: ProcId, paused: bool) {
        self.procs[proc].paused = paused;
    }

    // --- waiting ----------------------------------------------------------------------------------------------------

    /// Threads that wait for `key` look again.
    pub(crate) fn tell(&mut self, key: Key) {
        if let Some(waiting) = self.waiting.remove(&key) {
            for (tid, wait) in waiting {
                self.wake(tid, wait, Wake::Look { expired: false });
            }
        }
    }

    fn wake(&mut self, tid: Tid, wait: u64, wake: Wake) -> bool {
        let thread = &mut self.threads[tid];
        let waits = thread.state == State::Blocked && thread.wait == wait;
        if waits {
            thread.state = State::Ready(wake);
            self.ready.push(tid);
        }
        waits
    }

    /// How many of at most `count` threads were woken; `bits` as in `FUTEX_WAKE_BITSET`.
    pub(crate) fn wake_futex(&mut self, proc: ProcId, at: u64, count: u64, bits: u32) -> u64 {
        let Some(mut queue) = self.waiting.remove(&Key::Futex(proc, at)) else { return 0 };
        let (mut woken, mut left) = (0, VecDeque::new());
        while let Some((tid, wait)) = queue.pop_front() {
            if woken < count && self.threads[tid].bits & bits != 0 {
                woken += u64::from(self.wake(tid, wait, Wake::Result(0)));
            } else if self.threads[tid].state == State::Blocked && self.threads[tid].wait == wait {
                left.push_back((tid, wait));
            }
        }
        if !left.is_empty() {
            self.waiting.insert(Key::Futex(proc, at), left);
        }
        woken
    }

    // --- running ----------------------------------------------------------------------------------------------------

    /// Runs until something is to be told.
    ///
    /// # Errors
    /// The real kernel's; a call this kernel does not know; a deadlock of everything.
    pub(crate) fn run(&mut self) -> io::Result<Report> {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return Ok(report);
            }
            self.fire();
            if !self.reports.is_empty() {
                continue;
            }
            let Some(tid) = self.choose() else {
                let Some((&(at, _), _)) = self.events.first_key_value() else {
                    return Err(io::Error::other("nothing runs, and nothing will happen"));
                };
                self.now = self.now.max(at);
                continue;
            };
            self.go(tid)?;
        }
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.reports.push_back(report);
    }

    /// What is due.
    fn fire(&mut self) {
        while let Some(entry) = self.events.first_entry() {
            if self.now < entry.key().0 {
                return;
            }
            match entry.remove() {
                Event::Thread(tid, wait) => {
                    let thread = &mut self.threads[tid];
                    match thread.state {
                        State::Sleeps(result) if thread.wait == wait => {
                            thread.state = State::Ready(Wake::Result(result));
                            self.ready.push(tid);
                        }
                        State::Blocked | State::Sleeps(_) | State::Ready(_) | State::Gone => {
                            self.wake(tid, wait, Wake::Look { expired: true });
                        }
                    }
                }
                Event::Packet(packet) => self.arrive(packet),
                Event::Alarm(what) => self.report(Report::Alarm(what)),
            }
        }
    }

    fn choose(&mut self) -> Option<Tid> {
        let can = |kernel: &Self, tid: Tid| {
            matches!(kernel.threads[tid].state, State::Ready(_))
                && !kernel.procs[kernel.threads[tid].proc].paused
        };
        if let Some(tid) = self.current.filter(|tid| can(self, *tid))
            && self.random.below(SWITCH_ONE_IN) != 0
        {
            return Some(tid);
        }
        let able: Vec<Tid> = self.ready.iter().copied().filter(|tid| can(self, *tid)).collect();
        if able.is_empty() {
            return None;
        }
        let pick = usize::try_from(self.random.below(able.len() as u64)).unwrap_or(0);
        Some(able[pick])
    }

    fn go(&mut self, tid: Tid) -> io::Result<()> {
        self.current = Some(tid);
        let State::Ready(wake) = self.threads[tid].state else { return Ok(()) };
        let Some(call) = self.threads[tid].call else { return Ok(()) };
        let expired = match wake {
            Wake::Result(value) => return self.resume(tid, &call, Some(value)),
            Wake::Really => return self.resume(tid, &call, None),
            Wake::Look { expired } => expired,
        };
        self.now += 1 + self.random.below(CALL_NANOS);
        let proc = self.threads[tid].proc;
        match self.call(tid, &call, expired)? {
            Flow::Done(value) => self.threads[tid].state = State::Ready(Wake::Result(value)),
            Flow::Really => self.threads[tid].state = State::Ready(Wake::Really),
            Flow::Block { on, until } => {
                self.park(tid);
                let wait = self.threads[tid].wait;
                self.threads[tid].state = State::Blocked;
                for key in on {
                    self.waiting.entry(key).or_default().push_back((tid, wait));
                }
                if let Some(until) = until {
                    self.schedule(until, Event::Thread(tid, wait));
                }
            }
            Flow::Later { at, result } => {
                self.park(tid);
                self.threads[tid].state = State::Sleeps(result);
                let wait = self.threads[tid].wait;
                self.schedule(at, Event::Thread(tid, wait));
            }
            Flow::NewThread { thread_id_at } => return self.split(tid, &call, thread_id_at),
            Flow::ThreadEnds => self.end_thread(tid, &call),
            Flow::ProcessEnds(code) => {
                self.note(tid, &call, None);
                self.procs[proc].native.kill();
                self.flush_line(proc);
                self.bury(proc, true);
                self.report(Report::Ended { proc, code });
            }
        }
        Ok(())
    }

    fn park(&mut self, tid: Tid) {
        (self.threads[tid].wait, self.threads[tid].waited) = (self.threads[tid].wait + 1, true);
        self.ready.retain(|other| *other != tid);
        self.current = None;
    }

    /// Answers, and waits until the thread asks again.
    fn resume(&mut self, tid: Tid, call: &Call, value: Option<i64>) -> io::Result<()> {
        let proc = self.threads[tid].proc;
        self.note(tid, call, value);
        let told =
            value == Some(-i64::from(libc::ETIMEDOUT)) || call.number == libc::SYS_clock_gettime;
        let waited = std::mem::take(&mut self.threads[tid].waited);
        self.set_clocks(proc, told || waited);
        match value {
            Some(value) => self.procs[proc].native.answer(call, value),
            None => self.procs[proc].native.answer_really(call),
        }
        match self.procs[proc].native.next()? {
            Some(next) => self.asked(tid, next),
            None => self.died(proc),
        }
        Ok(())
    }

    /// Exactly if it was told that a time is over, or of the time itself: it must find no less.
    fn set_clocks(&self, proc: ProcId, exactly: bool) {
        let host = self.procs[proc].host;
        self.procs[proc].native.set_clocks(self.wall(host), self.uptime(host), exactly);
    }

    fn asked(&mut self, tid: Tid, call: Call) {
        let thread = &mut self.threads[tid];
        assert!(
            thread.real == call.thread,
            "thread {} ran beside thread {}",
            call.thread,
            thread.real
        );
        (thread.call, thread.until, thread.done) = (Some(call), None, 0);
        thread.state = State::Ready(Wake::Look { expired: false });
    }

    /// By a signal, as after a fault in memory.
    fn died(&mut self, proc: ProcId) {
        self.flush_line(proc);
        self.bury(proc, true);
        self.report(Report::Ended { proc, code: -1 });
    }

    /// A thread makes another: both run until they ask for something.
    fn split(&mut self, tid: Tid, call: &Call, thread_id_at: u64) -> io::Result<()> {
        let proc = self.threads[tid].proc;
        self.note(tid, call, None);
        self.set_clocks(proc, false);
        self.procs[proc].native.answer_really(call);
        let (mut parent, mut child) = (None, None);
        while parent.is_none() || child.is_none() {
            match self.procs[proc].native.next()? {
                None => {
                    self.died(proc);
                    return Ok(());
                }
                Some(next) if next.thread == self.threads[tid].real => parent = Some(next),
                Some(next) => child = Some(next),
            }
        }
        if let (Some(parent), Some(child)) = (parent, child) {
            self.asked(tid, parent);
            self.new_thread(proc, child, thread_id_at);
        }
        Ok(())
    }

    fn end_thread(&mut self, tid: Tid, call: &Call) {
        let (proc, at) = (self.threads[tid].proc, self.threads[tid].cleared_at);
        self.note(tid, call, None);
        self.procs[proc].native.answer_really(call);
        self.threads[tid].state = State::Gone;
        self.ready.retain(|other| *other != tid);
        self.procs[proc].threads.retain(|other| *other != tid);
        self.current = None;
        // The real kernel clears the thread's number when it is gone: whoever joins it waits for that.
        let mut number = [1; 4];
        while at != 0 && self.procs[proc].native.read(&mut [(at, &mut number)]) && number != [0; 4]
        {
            std::thread::yield_now();
        }
        self.wake_futex(proc, at, u64::MAX, u32::MAX);
    }

    fn note(&mut self, tid: Tid, call: &Call, value: Option<i64>) {
        self.calls += 1;
        let (now, thread) = (self.now / SECOND, &mut self.threads[tid]);
        thread.busy = if thread.busy.0 == now { (now, thread.busy.1 + 1) } else { (now, 1) };
        if thread.busy.1 == BUSY_CALLS {
            let (proc, thread) = (thread.proc, thread.name.clone());
            self.report(Report::Busy { proc, thread });
        }
        for word in
            [self.now, tid as u64, call.number.cast_unsigned(), value.unwrap_or(0).cast_unsigned()]
        {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        if self.follow {
            let thread = &self.threads[tid];
            let proc = &self.procs[thread.proc];
            eprintln!(
                "{:>16} {:<8} {:<4} {:<14} {:>4} {:x?} = {value:?}",
                self.now, proc.name, tid, thread.name, call.number, call.args
            );
        }
    }

    // --- memory of a thread that waits for its answer ----------------------------------------------------------------

    /// # Errors
    /// EFAULT.
    pub(crate) fn read(&self, tid: Tid, at: u64, len: usize) -> Result<Vec<u8>, i32> {
        let mut buf = vec![0; len];
        self.read_parts(tid, &mut [(at, &mut buf)]).map(|()| buf)
    }

    /// # Errors
    /// EFAULT.
    pub(crate) fn read_parts(&self, tid: Tid, parts: &mut [(u64, &mut [u8])]) -> Result<(), i32> {
        let proc = &self.procs[self.threads[tid].proc];
        if proc.native.read(parts) { Ok(()) } else { Err(libc::EFAULT) }
    }

    /// # Errors
    /// EFAULT.
    pub(crate) fn write(&self, tid: Tid, at: u64, data: &[u8]) -> Result<(), i32> {
        self.write_parts(tid, &[(at, data)])
    }

    /// # Errors
    /// EFAULT.
    pub(crate) fn write_parts(&self, tid: Tid, parts: &[(u64, &[u8])]) -> Result<(), i32> {
        let proc = &self.procs[self.threads[tid].proc];
        if proc.native.write(parts) { Ok(()) } else { Err(libc::EFAULT) }
    }

    /// One after the other.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn write_slices(&self, tid: Tid, at: u64, slices: &[&[u8]]) -> Result<(), i32> {
        let proc = &self.procs[self.threads[tid].proc];
        if proc.native.write_slices(at, slices) { Ok(()) } else { Err(libc::EFAULT) }
    }

    pub(crate) fn host_of(&self, tid: Tid) -> HostId {
        self.procs[self.threads[tid].proc].host
    }

    pub(crate) fn hear(&mut self, proc: ProcId, bytes: &[u8]) {
        self.procs[proc].line.extend_from_slice(bytes);
        while let Some(end) = self.procs[proc].line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.procs[proc].line.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            self.report(Report::Line { proc, line });
        }
    }

    fn flush_line(&mut self, proc: ProcId) {
        if !self.procs[proc].line.is_empty() {
            self.hear(proc, b"\n");
        }
    }

    /// Processes that are not over.
    pub(crate) fn alive(&self) -> BTreeSet<ProcId> {
        (0..self.procs.len()).filter(|proc| self.procs[*proc].alive).collect()
    }
}
