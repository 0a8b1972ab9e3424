//! The real kernel's part: a process whose every system call is answered here.
//!
//! A seccomp filter hands each call to a listener (seccomp_unotify(2)), except those that only concern the process's own
//! memory and signals. The calls that would be answered without the kernel, those of the vDSO, are turned: see [`vdso`].

#![expect(
    unsafe_code,
    reason = "fork, seccomp and another process's memory have no safe interface"
)]

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use crate::disk::{PAGE, is_nothing};
use crate::vdso;

/// A child says the number of its listener here, and waits there until it may go on.
const SAY_FD: RawFd = 900;
const GO_FD: RawFd = 901;
const PROGRAM_FD: RawFd = 902;
const PROGRAM_NAME: &CStr = c"/proc/self/fd/902";
/// A process that computes for longer than this without asking for anything hangs.
const HANGS_AFTER_MS: i32 = 60_000;
/// So often a signal interrupts whoever waits for a call.
const LOOK_SECONDS: i64 = 20;
/// That often in one wait: it hangs.
const LOOKS_MAX: u32 = 3;
/// Of the kernel, from which on a listener is told of the end of its last process while it waits for a call.
const TELLS_OF_THE_END: (u32, u32) = (6, 11);

const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;
const NOTIF_SET_FLAGS: u64 = 0x4008_2104;
const SYNC_WAKE_UP: u64 = 1;
const CONTINUE: u32 = 1;

/// Answered by the real kernel: memory and signals of the process itself.
const OWN: [i64; 14] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_prlimit64,
    libc::SYS_execve,
];

/// A process's clocks are written when what they show is that old, or when it matters: each time costs a call.
const GRAIN_NANOS: u64 = 50_000;
/// Parts of memory that are copied at once, at most.
const IOVECS_MAX: usize = 1024;

/// From so many pages on it is asked which of them are there.
const LARGE_PAGES: usize = 128;
/// Of the last byte of an entry of pagemap(5): it is in memory, swapped out, or of a file.
const THERE: u8 = 0xe0;

type Copier = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// One system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    id: u64,
    /// The real number of the thread.
    pub(crate) thread: u32,
    pub(crate) number: i64,
    pub(crate) args: [u64; 6],
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    listener: OwnedFd,
    /// Its memory, and where its clocks are.
    clocks: Option<(File, u64)>,
    /// Which of its pages there are: pagemap(5).
    pagemap: Option<File>,
    /// What its clock since the start of its machine shows.
    shown: Cell<u64>,
    ended: bool,
}

/// This process and those it starts run on one processor: handing over is cheapest there.
///
/// # Errors
/// The kernel's.
pub(crate) fn stay_on(processor: usize) -> io::Result<()> {
    // SAFETY: a set is plain bits; the kernel reads as many as it is told.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether to wait for a call is to be told of the end of a process, too: that saves a question before each.
fn waits_for_calls() -> bool {
    static WAITS: OnceLock<bool> = OnceLock::new();
    *WAITS.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = numbers.next().zip(numbers.next());
        version.is_some_and(|version| TELLS_OF_THE_END <= version) && interrupt_now_and_then()
    })
}

/// Whether a signal comes from now on every [`LOOK_SECONDS`]: who waits for a call that never comes is woken by it.
fn interrupt_now_and_then() -> bool {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let every = libc::timeval { tv_sec: LOOK_SECONDS, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the handler does nothing; without SA_RESTART what waits is interrupted. The structures are plain numbers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) == 0
            && libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) == 0
    }
}

fn was_interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

fn filter() -> Vec<libc::sock_filter> {
    let op = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("an operation is small"),
        jt: u8::try_from(jt).expect("a short program"),
        jf: u8::try_from(jf).expect("a short program"),
        k,
    };
    let number = |call: i64| u32::try_from(call).expect("numbers of calls are small");
    let load = |offset: u32| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equals =
        |k: u32, jt: usize, jf: usize| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let mut program = vec![load(0)];
    // After these, six more lines before the one that allows.
    for (at, call) in OWN.iter().enumerate() {
        program.push(equals(number(*call), OWN.len() - at - 1 + 6, 0));
    }
    program.push(equals(number(libc::SYS_read), 1, 0));
    program.push(equals(number(libc::SYS_write), 0, 3));
    // The low half of the first argument: a descriptor.
    program.push(load(16));
    program.push(equals(SAY_FD.cast_unsigned(), 2, 0));
    program.push(equals(GO_FD.cast_unsigned(), 1, 0));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

impl Process {
    /// Starts `program` with its arguments and environment (nothing else of ours), in `/`, without standard streams. It is
    /// named by a descriptor: a name's length would move the stack, and what happens there, with the machine.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` if it has no listeners for system calls.
    pub(crate) fn launch(
        program: &Path,
        args: &[CString],
        environment: &[CString],
    ) -> io::Result<Self> {
        let pointers = |list: &[CString]| {
            let all = list.iter().map(|text| text.as_ptr()).chain([ptr::null()]);
            all.collect::<Vec<*const libc::c_char>>()
        };
        let (argv, envp, mut program_bytes) = (pointers(args), pointers(environment), filter());
        let (said, say) = pipe()?;
        let (go, tell) = pipe()?;
        let program = File::open(program)?;
        // SAFETY: this program has one thread; the child calls nothing but system calls until it is another program.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            // SAFETY: as above; all that is pointed to outlives the calls.
            unsafe {
                become_program(
                    say.as_raw_fd(),
                    go.as_raw_fd(),
                    &mut program_bytes,
                    program.as_raw_fd(),
                    &argv,
                    &envp,
                );
            }
        }
        drop((say, go));
        let mut number = [0; 4];
        File::from(said).read_exact(&mut number).map_err(|_| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel takes no seccomp listener from us",
            )
        })?;
        // SAFETY: both calls give a new descriptor or -1.
        let listener = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            let process = owned(process)?;
            let listener = libc::syscall(
                libc::SYS_pidfd_getfd,
                process.as_raw_fd(),
                i32::from_ne_bytes(number),
                0,
            );
            owned(listener)?
        };
        // SAFETY: an ioctl with a number for its argument. Only a matter of speed: older kernels refuse.
        let _refused = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        rustix::io::write(&tell, b"g")?;
        Ok(Self { pid, listener, clocks: None, pagemap: None, shown: Cell::new(0), ended: false })
    }

    /// The next system call of any thread that runs; `None`: the process ended.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` if it computes for a minute.
    pub(crate) fn next(&mut self) -> io::Result<Option<Call>> {
        let hangs =
            || io::Error::new(io::ErrorKind::TimedOut, format!("process {} hangs", self.pid));
        let (mut waits, mut looks) = (waits_for_calls(), 0);
        loop {
            if !waits {
                let fd = self.listener.as_raw_fd();
                let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor, as said.
                let polled = unsafe { libc::poll(&raw mut ready, 1, HANGS_AFTER_MS) };
                if polled < 0 && was_interrupted() {
                    continue;
                }
                if polled == 0 {
                    return Err(hangs());
                }
                if polled < 0 {
                    return Err(io::Error::last_os_error());
                }
                if ready.revents & libc::POLLIN == 0 {
                    self.wait();
                    return Ok(None);
                }
            }
            // SAFETY: plain numbers; the kernel wants them to be zero and fills them.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes a notice there.
            let got =
                unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_RECV, &raw mut notice) };
            if got == 0 {
                let number = i64::from(notice.data.nr);
                let args = notice.data.args;
                return Ok(Some(Call { id: notice.id, thread: notice.pid, number, args }));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // All ended, or one of several did after it had asked.
                Some(libc::ENOENT) => waits = false,
                Some(libc::EINTR) if looks < LOOKS_MAX => looks += 1,
                Some(libc::EINTR) => return Err(hangs()),
                _ => return Err(error),
            }
        }
    }

    fn send(&self, id: u64, value: i64, flags: u32) {
        let error = if (-4095..0).contains(&value) {
            i32::try_from(value).unwrap_or(-libc::EIO)
        } else {
            0
        };
        let val = if error == 0 { value } else { 0 };
        let mut reply = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: the kernel reads a reply there. A thread that is gone needs none.
        while unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_SEND, &raw mut reply) } != 0
            && was_interrupted()
        {}
    }

    /// `value` is what the call returns; from -4095 to -1 it is an errno.
    pub(crate) fn answer(&self, call: &Call, value: i64) {
        self.send(call.id, value, 0);
    }

    /// The real kernel answers.
    pub(crate) fn answer_really(&self, call: &Call) {
        self.send(call.id, 0, CONTINUE);
    }

    /// Whether all of the parts were there to be read.
    #[must_use]
    pub(crate) fn read(&self, parts: &mut [(u64, &mut [u8])]) -> bool {
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        for (at, buf) in parts.iter_mut().filter(|(_, buf)| !buf.is_empty()) {
            local.push(iovec(buf.as_mut_ptr(), buf.len()));
            remote.push(iovec(ptr::without_provenance_mut(address(*at)), buf.len()));
        }
        self.copy(&local, &remote, libc::process_vm_readv)
    }

    /// Whether all of the parts could be written.
    #[must_use]
    pub(crate) fn write(&self, parts: &[(u64, &[u8])]) -> bool {
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        for (at, data) in parts.iter().filter(|(_, data)| !data.is_empty()) {
            local.push(iovec(data.as_ptr().cast_mut(), data.len()));
            remote.push(iovec(ptr::without_provenance_mut(address(*at)), data.len()));
        }
        self.copy(&local, &remote, libc::process_vm_writev)
    }

    /// Whether all could be written, one after the other from `at` on: one place there is found faster than many.
    #[must_use]
    pub(crate) fn write_slices(&self, at: u64, slices: &[&[u8]]) -> bool {
        let untouched = self.untouched(at, slices.len());
        let skips = |at: u64, slice: &[u8]| is_nothing(slice) && untouched(at);
        let (mut at, mut rest) = (at, slices);
        while let Some((first, others)) = rest.split_first() {
            if skips(at, first) {
                (at, rest) = (at + first.len() as u64, others);
                continue;
            }
            let (from, mut local) = (at, Vec::new());
            while let Some((slice, others)) = rest.split_first()
                && local.len() < IOVECS_MAX
                && !skips(at, slice)
            {
                local.push(iovec(slice.as_ptr().cast_mut(), slice.len()));
                (at, rest) = (at + slice.len() as u64, others);
            }
            let len = local.iter().map(|part| part.iov_len).sum();
            let remote = [iovec(ptr::without_provenance_mut(address(from)), len)];
            if !self.copy_some(&local, &remote, libc::process_vm_writev) {
                return false;
            }
        }
        true
    }

    /// Says of a place whether its page, and the next, were never touched: they are zeros then. A large buffer is new
    /// memory of its own; most of a journal is zeros, and need not be written there.
    fn untouched(&self, at: u64, pages: usize) -> impl Fn(u64) -> bool + use<> {
        let (page, entry) = (PAGE as u64, 8);
        let first = at / page;
        let mut entries = Vec::new();
        if LARGE_PAGES <= pages
            && let Some(pagemap) = &self.pagemap
        {
            entries.resize((pages + 2) * entry, THERE);
            if pagemap.read_exact_at(&mut entries, first * entry as u64).is_err() {
                entries.clear();
            }
        }
        move |at| {
            let from = address(at / page - first) * entry;
            let is_new = |last: usize| entries.get(last).is_some_and(|byte| byte & THERE == 0);
            is_new(from + entry - 1) && is_new(from + 2 * entry - 1)
        }
    }

    /// Between our memory and the process's: whether all was copied.
    fn copy(&self, local: &[libc::iovec], remote: &[libc::iovec], how: Copier) -> bool {
        let mut pairs = local.chunks(IOVECS_MAX).zip(remote.chunks(IOVECS_MAX));
        pairs.all(|(local, remote)| self.copy_some(local, remote, how))
    }

    /// Between our memory and the process's: whether all was copied.
    fn copy_some(&self, local: &[libc::iovec], remote: &[libc::iovec], how: Copier) -> bool {
        let len: usize = local.iter().map(|part| part.iov_len).sum();
        let count = |list: &[libc::iovec]| list.len() as libc::c_ulong;
        // SAFETY: `local` are ours, exclusive if they are written; the kernel checks `remote`.
        let done = unsafe {
            how(self.pid, local.as_ptr(), count(local), remote.as_ptr(), count(remote), 0)
        };
        usize::try_from(done) == Ok(len)
    }

    /// From now on its clocks are those of [`Self::set_clocks`], or asked for by system calls.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` if its functions for that are not as expected.
    pub(crate) fn take_clocks(&mut self) -> io::Result<()> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let memory =
            File::options().read(true).write(true).open(format!("/proc/{}/mem", self.pid))?;
        let read = |at: u64, buf: &mut [u8]| memory.read_exact_at(buf, at).is_ok();
        let patches = vdso::patches(&maps, &read).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                "the clocks of this kernel's vDSO are unknown here",
            )
        })?;
        for (at, code) in &patches.writes {
            memory.write_all_at(code, *at)?;
        }
        self.clocks = Some((memory, patches.clocks_at));
        self.pagemap = File::open(format!("/proc/{}/pagemap", self.pid)).ok();
        Ok(())
    }

    /// Nanoseconds since 1970, and since its machine began. A process that is just killed has no clocks any more.
    ///
    /// They stand still for up to [`GRAIN_NANOS`] unless they are `wanted` to be exact.
    pub(crate) fn set_clocks(&self, wall: u64, uptime: u64, wanted: bool) {
        if !wanted && uptime < self.shown.get() + GRAIN_NANOS {
            return;
        }
        self.shown.set(uptime);
        if let Some((memory, at)) = &self.clocks {
            let second = 1_000_000_000;
            let words = [wall / second, wall % second, uptime / second, uptime % second];
            let _gone = memory.write_all_at(&words.map(u64::to_ne_bytes).concat(), *at);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if !self.ended {
            // SAFETY: a child that nobody waited for yet: the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.wait();
        }
    }

    fn wait(&mut self) {
        if !self.ended {
            // SAFETY: our child; no status is asked for.
            while unsafe { libc::waitpid(self.pid, ptr::null_mut(), 0) } < 0 && was_interrupted() {}
            self.ended = true;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

fn address(at: u64) -> usize {
    usize::try_from(at).expect("addresses have 64 bits here")
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the caller just got it from the kernel.
        Ok(fd) if 0 <= fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// # Safety
/// After fork in a process with one thread; the pointers are valid.
unsafe fn become_program(
    say: RawFd,
    go: RawFd,
    filter: &mut [libc::sock_filter],
    program: RawFd,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    let program_of_filter = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: only system calls, with numbers and valid pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The same addresses each time.
        libc::personality(0x0004_0000);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for stream in 0..3 {
            libc::dup2(null, stream);
        }
        libc::chdir(c"/".as_ptr());
        libc::dup3(say, SAY_FD, libc::O_CLOEXEC);
        libc::dup3(go, GO_FD, libc::O_CLOEXEC);
        libc::dup3(program, PROGRAM_FD, libc::O_CLOEXEC);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program_of_filter,
        );
        if 0 <= listener {
            let number = i32::try_from(listener).unwrap_or(-1).to_ne_bytes();
            libc::write(SAY_FD, number.as_ptr().cast(), number.len());
            let mut told = [0_u8; 1];
            libc::read(GO_FD, told.as_mut_ptr().cast(), 1);
            libc::execve(PROGRAM_NAME.as_ptr(), argv.as_ptr(), envp.as_ptr());
        }
        libc::_exit(127)
    }
}
