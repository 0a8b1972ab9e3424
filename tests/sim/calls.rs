//! The system calls that the programs make, as Linux on x86-64 defines them.

mod files;
mod sockets;
mod streams;

use std::io;

use crate::disk::ROOT;
use crate::kernel::{Flow, HostId, Kernel, Key, Report, SECOND, Tid};
use crate::native::Call;
use crate::net::Kind;

/// Descriptors below are the real kernel's: the program's own libraries, while it starts.
const FIRST_FD: i32 = 1000;
const FUTEX_CLOCK_REALTIME: i32 = 256;

type Result<T> = std::result::Result<T, i32>;

/// The flags or numbers of libc, as arguments hold them.
fn arg(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// An argument that is a number of 32 bits.
fn int(arg: u64) -> i32 {
    i32::from_le_bytes([0, 1, 2, 3].map(|n: usize| arg.to_le_bytes()[n]))
}

fn count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn size(arg: u64) -> usize {
    // No program moves more at once.
    usize::try_from(arg).unwrap_or(usize::MAX).min(1 << 27)
}

fn ready(value: i64) -> Result<Flow> {
    Ok(Flow::Done(value))
}

impl Kernel {
    /// # Errors
    /// For a call that is not known here.
    pub(crate) fn call(&mut self, tid: Tid, call: &Call, expired: bool) -> io::Result<Flow> {
        match self.dispatch(tid, call, expired) {
            Some(Ok(flow)) => Ok(flow),
            Some(Err(errno)) => Ok(Flow::Done(-i64::from(errno))),
            None => {
                let proc = &self.procs[self.threads[tid].proc];
                Err(io::Error::other(format!(
                    "{}: system call {} {:x?} is unknown to the simulated kernel",
                    proc.name, call.number, call.args
                )))
            }
        }
    }

    fn dispatch(&mut self, tid: Tid, call: &Call, expired: bool) -> Option<Result<Flow>> {
        let args = call.args;
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        Some(match call.number {
            libc::SYS_futex => self.futex(tid, args, expired),
            libc::SYS_clock_gettime => self.clock_gettime(tid, host, args),
            libc::SYS_clock_getres => self.write(tid, args[1], &timespec(1)).and(ready(0)),
            libc::SYS_gettimeofday => {
                let now = self.wall(host);
                let pair = [now / SECOND, now % SECOND / 1000].map(u64::to_ne_bytes).concat();
                self.write(tid, args[0], &pair).and(ready(0))
            }
            libc::SYS_time => ready((self.wall(host) / SECOND).cast_signed()),
            libc::SYS_getcpu => ready(0),
            libc::SYS_clock_nanosleep | libc::SYS_nanosleep => self.sleep(tid, host, call),
            libc::SYS_sched_yield => Ok(Flow::Later { at: self.now + 10_000, result: 0 }),
            libc::SYS_clone3 => self.clone3(tid, args),
            libc::SYS_exit => Ok(Flow::ThreadEnds),
            libc::SYS_exit_group => Ok(Flow::ProcessEnds(int(args[0]))),
            libc::SYS_rseq | libc::SYS_set_robust_list => Ok(Flow::Really),
            libc::SYS_getpid => ready(count(proc) + 2),
            libc::SYS_gettid => ready(count(tid) + 10_000),
            libc::SYS_getuid | libc::SYS_geteuid | libc::SYS_getgid | libc::SYS_getegid => ready(0),
            libc::SYS_umask => ready(0o022),
            libc::SYS_setpriority
            | libc::SYS_sched_setaffinity
            | libc::SYS_fadvise64
            | libc::SYS_fchmod
            | libc::SYS_chmod => ready(0),
            libc::SYS_prctl => self.prctl(tid, args),
            libc::SYS_sched_getaffinity => {
                let cores: u64 = if self.two_cores { 0b11 } else { 0b1 };
                self.write(tid, args[2], &cores.to_ne_bytes()).and(ready(8))
            }
            libc::SYS_getrandom => {
                let bytes: Vec<u8> = (0..size(args[1])).map(|_| self.random.byte()).collect();
                self.write(tid, args[0], &bytes).and(ready(count(bytes.len())))
            }
            libc::SYS_tgkill => {
                self.report(Report::Line {
                    proc,
                    line: format!("killed by its own signal {}", int(args[2])),
                });
                Ok(Flow::ProcessEnds(128 + int(args[2])))
            }
            libc::SYS_access | libc::SYS_readlink | libc::SYS_readlinkat | libc::SYS_getcwd => {
                Err(libc::ENOENT)
            }
            _ => return self.descriptors(tid, call, expired),
        })
    }

    fn descriptors(&mut self, tid: Tid, call: &Call, expired: bool) -> Option<Result<Flow>> {
        let args = call.args;
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        // Libraries.
        let with_fd = [
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_newfstatat,
            libc::SYS_fstat,
            libc::SYS_close,
            libc::SYS_lseek,
        ];
        if with_fd.contains(&call.number) && (3..FIRST_FD).contains(&int(args[0])) {
            return Some(Ok(Flow::Really));
        }
        Some(match call.number {
            libc::SYS_openat => self.openat(tid, args),
            libc::SYS_open => {
                self.openat(tid, [arg(libc::AT_FDCWD), args[0], args[1], args[2], 0, 0])
            }
            libc::SYS_close => {
                if (0..3).contains(&int(args[0])) || self.close(proc, int(args[0])) {
                    ready(0)
                } else {
                    Err(libc::EBADF)
                }
            }
            libc::SYS_read => self.read_fd(tid, int(args[0]), args[1], size(args[2]), 0, expired),
            libc::SYS_recvfrom => {
                self.read_fd(tid, int(args[0]), args[1], size(args[2]), int(args[3]), expired)
            }
            libc::SYS_write => {
                self.write_fd(tid, int(args[0]), &[(args[1], size(args[2]))], 0, expired)
            }
            libc::SYS_sendto => {
                self.write_fd(tid, int(args[0]), &[(args[1], size(args[2]))], int(args[3]), expired)
            }
            libc::SYS_readv => self
                .vector(tid, args)
                .and_then(|parts| self.readv(tid, int(args[0]), &parts, expired)),
            libc::SYS_writev => self
                .vector(tid, args)
                .and_then(|parts| self.write_fd(tid, int(args[0]), &parts, 0, expired)),
            libc::SYS_sendmsg => self.sendmsg(tid, args, expired),
            libc::SYS_pread64 => {
                self.pread(tid, int(args[0]), &[(args[1], size(args[2]))], args[3])
            }
            libc::SYS_pwrite64 => {
                self.pwrite(tid, int(args[0]), &[(args[1], size(args[2]))], args[3])
            }
            libc::SYS_preadv | libc::SYS_preadv2 => self
                .vector(tid, args)
                .and_then(|parts| self.pread(tid, int(args[0]), &parts, args[3])),
            libc::SYS_pwritev | libc::SYS_pwritev2 => self
                .vector(tid, args)
                .and_then(|parts| self.pwrite(tid, int(args[0]), &parts, args[3])),
            libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs => self.fsync(tid, call),
            libc::SYS_ftruncate => self.file(proc, int(args[0])).and_then(|ino| {
                let now = self.wall(host);
                self.hosts[host].disk.truncate(ino, args[1], now).map(|()| Flow::Done(0))
            }),
            libc::SYS_fallocate => self.file(proc, int(args[0])).and_then(|ino| {
                let now = self.wall(host);
                self.hosts[host]
                    .disk
                    .fallocate(ino, int(args[1]), args[2], args[3], now)
                    .map(|()| Flow::Done(0))
            }),
            libc::SYS_lseek => self.lseek(proc, int(args[0]), args[1].cast_signed(), int(args[2])),
            libc::SYS_newfstatat => self.newfstatat(tid, args),
            libc::SYS_fstat => {
                self.newfstatat(tid, [args[0], 0, args[1], arg(libc::AT_EMPTY_PATH), 0, 0])
            }
            libc::SYS_statx => self.statx(tid, args),
            libc::SYS_fstatfs | libc::SYS_statfs => self.statfs(tid, args),
            libc::SYS_getdents64 => self.getdents(tid, args),
            libc::SYS_mkdir => self.path(tid, args[0]).and_then(|path| {
                let now = self.wall(host);
                self.hosts[host].disk.mkdir(ROOT, &path, now).map(|()| Flow::Done(0))
            }),
            libc::SYS_mkdirat => self.at(tid, args[0], args[1]).and_then(|(dir, path)| {
                let now = self.wall(host);
                self.hosts[host].disk.mkdir(dir, &path, now).map(|()| Flow::Done(0))
            }),
            libc::SYS_unlink | libc::SYS_rmdir => self.path(tid, args[0]).and_then(|path| {
                let want_dir = call.number == libc::SYS_rmdir;
                self.hosts[host].disk.unlink(ROOT, &path, want_dir).map(|()| Flow::Done(0))
            }),
            libc::SYS_unlinkat => self.at(tid, args[0], args[1]).and_then(|(dir, path)| {
                let want_dir = int(args[2]) & libc::AT_REMOVEDIR != 0;
                self.hosts[host].disk.unlink(dir, &path, want_dir).map(|()| Flow::Done(0))
            }),
            libc::SYS_rename => self.path(tid, args[0]).and_then(|from| {
                let to = self.path(tid, args[1])?;
                self.hosts[host].disk.rename((ROOT, &from), (ROOT, &to)).map(|()| Flow::Done(0))
            }),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                self.at(tid, args[0], args[1]).and_then(|from| {
                    let to = self.at(tid, args[2], args[3])?;
                    self.hosts[host]
                        .disk
                        .rename((from.0, &from.1), (to.0, &to.1))
                        .map(|()| Flow::Done(0))
                })
            }
            libc::SYS_flock => self.flock(proc, host, int(args[0]), int(args[1])),
            libc::SYS_fcntl => self.fcntl(proc, args),
            libc::SYS_ioctl => self.ioctl(tid, args),
            libc::SYS_poll | libc::SYS_ppoll => self.poll(tid, call, expired),
            libc::SYS_epoll_create1 => {
                let desc = self.add_desc(host, Kind::Epoll(Default::default()), false);
                ready(self.add_fd(proc, desc).into())
            }
            libc::SYS_epoll_ctl => self.epoll_ctl(tid, args),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => self.epoll_wait(tid, args, expired),
            libc::SYS_eventfd2 => {
                let nonblocking = int(args[1]) & libc::EFD_NONBLOCK != 0;
                let desc = self.add_desc(host, Kind::Count(args[0]), nonblocking);
                ready(self.add_fd(proc, desc).into())
            }
            _ => return self.sockets(tid, call, expired),
        })
    }

    fn sockets(&mut self, tid: Tid, call: &Call, expired: bool) -> Option<Result<Flow>> {
        let args = call.args;
        let (proc, host) = (self.threads[tid].proc, self.host_of(tid));
        Some(match call.number {
            libc::SYS_socket => {
                let nonblocking = int(args[1]) & libc::SOCK_NONBLOCK != 0;
                let kind = match int(args[0]) {
                    libc::AF_INET => Kind::Stream(self.stream()),
                    libc::AF_UNIX => Kind::Deaf,
                    _ => return Some(Err(libc::EAFNOSUPPORT)),
                };
                let desc = self.add_desc(host, kind, nonblocking);
                ready(self.add_fd(proc, desc).into())
            }
            libc::SYS_socketpair => {
                let (a, b) = self.pair(host, int(args[1]) & libc::SOCK_NONBLOCK != 0);
                let fds =
                    [self.add_fd(proc, a), self.add_fd(proc, b)].map(i32::to_ne_bytes).concat();
                self.write(tid, args[3], &fds).and(ready(0))
            }
            libc::SYS_bind => self.desc(proc, int(args[0])).and_then(|desc| {
                let addr = self.address(tid, args[1])?;
                if let Some(stream) = self.stream_mut(desc) {
                    stream.bound = Some(addr);
                }
                ready(0)
            }),
            libc::SYS_listen => self
                .desc(proc, int(args[0]))
                .and_then(|desc| self.listen(desc, host))
                .map(|()| Flow::Done(0)),
            libc::SYS_accept4 | libc::SYS_accept => self.accept4(tid, call, expired),
            libc::SYS_connect => self.connect_fd(tid, args, expired),
            libc::SYS_getsockname | libc::SYS_getpeername => self.sockname(tid, call),
            libc::SYS_setsockopt => self.setsockopt(tid, args),
            libc::SYS_getsockopt => self.getsockopt(tid, args),
            libc::SYS_shutdown => self
                .desc(proc, int(args[0]))
                .and_then(|desc| self.shutdown(desc, int(args[1])))
                .map(|()| Flow::Done(0)),
            _ => return None,
        })
    }

    // --- threads and time -------------------------------------------------------------------------------------------

    fn futex(&mut self, tid: Tid, args: [u64; 6], expired: bool) -> Result<Flow> {
        let [at, op, value, timeout, _, bits] = args;
        let (op, proc, host) = (int(op), self.threads[tid].proc, self.host_of(tid));
        let key = Key::Futex(proc, at);
        match op & !(libc::FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME) {
            wait @ (libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) => {
                if expired {
                    return Err(libc::ETIMEDOUT);
                }
                let (mut now, mut time) = ([0; 4], [0; 16]);
                let until: &mut [u8] = if timeout == 0 { &mut [] } else { &mut time };
                self.read_parts(tid, &mut [(at, &mut now), (timeout, until)])?;
                if u32::from_ne_bytes(now) != int(value).cast_unsigned() {
                    return Err(libc::EAGAIN);
                }
                let absolute = wait == libc::FUTEX_WAIT_BITSET;
                self.threads[tid].bits =
                    if absolute { int(bits).cast_unsigned() } else { u32::MAX };
                let until = if timeout == 0 {
                    None
                } else {
                    let nanos = nanos_of(&time);
                    let left = match (absolute, op & FUTEX_CLOCK_REALTIME != 0) {
                        (false, _) => nanos,
                        (true, true) => nanos.saturating_sub(self.wall(host)),
                        (true, false) => nanos.saturating_sub(self.uptime(host)),
                    };
                    if left == 0 {
                        return Err(libc::ETIMEDOUT);
                    }
                    Some(self.after(host, left))
                };
                Ok(Flow::Block { on: vec![key], until })
            }
            wake @ (libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET) => {
                let bits =
                    if wake == libc::FUTEX_WAKE { u32::MAX } else { int(bits).cast_unsigned() };
                ready(
                    self.wake_futex(proc, at, u64::from(int(value).cast_unsigned()), bits)
                        .cast_signed(),
                )
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn timespec_at(&self, tid: Tid, at: u64) -> Result<u64> {
        let mut bytes = [0; 16];
        self.read_parts(tid, &mut [(at, &mut bytes)])?;
        Ok(nanos_of(&bytes))
    }

    fn clock_gettime(&mut self, tid: Tid, host: HostId, args: [u64; 6]) -> Result<Flow> {
        let now = match int(args[0]) {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => self.wall(host),
            libc::CLOCK_MONOTONIC
            | libc::CLOCK_MONOTONIC_COARSE
            | libc::CLOCK_BOOTTIME
            | libc::CLOCK_MONOTONIC_RAW => self.uptime(host),
            // Of the processor: what is not simulated takes no time.
            libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => 0,
            _ => return Err(libc::EINVAL),
        };
        self.write(tid, args[1], &timespec(now)).and(ready(0))
    }

    fn sleep(&mut self, tid: Tid, host: HostId, call: &Call) -> Result<Flow> {
        let at = if call.number == libc::SYS_nanosleep { call.args[0] } else { call.args[2] };
        let nanos = self.timespec_at(tid, at)?;
        let absolute = call.number == libc::SYS_clock_nanosleep
            && int(call.args[1]) & libc::TIMER_ABSTIME != 0;
        let nanos = if absolute { nanos.saturating_sub(self.uptime(host)) } else { nanos };
        Ok(Flow::Later { at: self.after(host, nanos), result: 0 })
    }

    fn clone3(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        let given = self.read(tid, args[0], 24)?;
        let word = |at: usize| u64::from_ne_bytes(given[at..at + 8].try_into().unwrap_or_default());
        if word(0) & arg(libc::CLONE_THREAD) == 0 {
            return Err(libc::ENOSYS);
        }
        Ok(Flow::NewThread { thread_id_at: word(16) })
    }

    fn prctl(&mut self, tid: Tid, args: [u64; 6]) -> Result<Flow> {
        match int(args[0]) {
            libc::PR_SET_NAME => {
                let name = self.read(tid, args[1], 16)?;
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(16);
                self.threads[tid].name = String::from_utf8_lossy(&name[..end]).into_owned();
                ready(0)
            }
            _ => Err(libc::EINVAL),
        }
    }
}

fn nanos_of(timespec: &[u8; 16]) -> u64 {
    let word = |at: usize| u64::from_ne_bytes(timespec[at..at + 8].try_into().unwrap_or_default());
    word(0).saturating_mul(SECOND).saturating_add(word(8))
}

fn timespec(nanos: u64) -> Vec<u8> {
    [nanos / SECOND, nanos % SECOND].map(u64::to_ne_bytes).concat()
}
