//! Our own transport, on `/dev/fuse` itself: several readers, each with a descriptor and a buffer of its own.
//!
//! A reader never waits for a server while it is the last one (see [`crate::workers`]), and an answer goes out on the
//! descriptor that its request came in on. What this adds to the other transport: interrupts, `O_TMPFILE`. `STATX` is not
//! answered: nothing else tells the kernel the time of birth, so that it asked for each file of a listing.

mod abi;
mod device;
mod interrupts;
mod memory;
pub(crate) mod passing;
mod reply;
mod request;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use dfs_client::exercise::{self, Point};
use dfs_core::ids::InodeNo;
use rustix::io::Errno as OsErrno;

use crate::errno::Errno;
use crate::fs::reads::ReadUnderWay;
use crate::fs::{FileSystem, KernelCache};
use crate::held::{Granted, Held};
use crate::metrics::Metrics;
use crate::mount_point;
use crate::seam::{Call, Operation, Reply};
use crate::transport::{
    BACKGROUND_MAX, Connected, Dispatch, PAGES_LEAST, WRITE_BYTES_MAX, page_bytes,
    pages_of_request, whole_write_max,
};
use device::Waiting;
use interrupts::{Interrupts, Registered};
use memory::Resident;
use reply::{Encoded, Writer, encode};
use request::{Body, Header, Init, Shape, decode_body, decode_header};

pub(crate) use abi::INIT_OUT_BYTES;
pub(crate) use device::{clone as clone_device, mount as mount_device, warn_of_time_limits};

/// Header and arguments of the longest request: `FUSE_MIN_READ_BUFFER` is more than any has before its data.
const HEAD_BYTES: usize = 8192;

/// What is asked of the kernel, if it has it. Without `FUSE_ASYNC_DIO`: it makes programs that cannot even be killed of
/// those that wait for a direct read.
const WANTED: u64 = abi::init::ASYNC_READ
    | abi::init::BIG_WRITES
    | abi::init::MAX_PAGES
    | abi::init::ATOMIC_O_TRUNC
    | abi::init::DONT_MASK
    | abi::init::POSIX_LOCKS
    | abi::init::FLOCK_LOCKS
    | abi::init::POSIX_ACL
    | abi::init::DO_READDIRPLUS
    | abi::init::READDIRPLUS_AUTO
    | abi::init::PARALLEL_DIROPS
    | abi::init::HANDLE_KILLPRIV_V2
    | abi::init::CACHE_SYMLINKS
    | abi::init::INIT_EXT
    // O_APPEND files are opened past the cache and may still be mapped (DECISIONS 9).
    | abi::init::DIRECT_IO_ALLOW_MMAP
    | abi::init::HAS_RESEND;

/// Mounts at `at`.
pub(crate) fn connect(
    at: &Path,
    read_only: bool,
    readers: usize,
    fs: Arc<FileSystem>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Connected> {
    warn_of_time_limits();
    let device = Arc::new(device::mount(at, read_only)?);
    let first = greet(&device, &fs, |_| Ok(()));
    let serving = first.and_then(|_offered| {
        let clones = (1..readers).map(|_| device::clone(device.as_fd()));
        // Only root may open the device; one descriptor serves all readers, a little slower.
        let clones = clones.map_while(Result::ok).map(Arc::new);
        let descriptors = std::iter::once(Arc::clone(&device)).chain(clones).collect();
        serving(descriptors, readers, fs, metrics)
    });
    let serving = serving.inspect_err(|_| {
        // What nobody serves must not stay.
        let _gone = mount_point::detach(at);
    })?;
    let at: PathBuf = at.to_owned();
    Ok(Connected {
        kernel: Box::new(Notifications(Arc::clone(&device))),
        serve: Box::new(move || serving.run()),
        unmount: Box::new(move || mount_point::unmount(&at)),
    })
}

/// Serves what a holder mounted at `at`, perhaps after others.
pub(crate) fn attach(
    held: Held,
    at: &Path,
    readers: usize,
    fs: Arc<FileSystem>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Connected> {
    let Granted { descriptors, init } = held.want()?;
    let mut descriptors: Vec<Arc<OwnedFd>> = descriptors.into_iter().map(Arc::new).collect();
    let device = Arc::clone(descriptors.first().context("the holder sent no descriptor")?);
    if exercise::is_without("clones") {
        let own = (0..readers).map(|_| device::clone(device.as_fd()).map(Arc::new));
        descriptors = own.collect::<io::Result<_>>().context("clone the descriptor")?;
    }
    // Only now: whoever had the mount before has ended, and cannot answer any more.
    if 1 < held.kept.generation() {
        resend(device.as_fd()).context("have everything unanswered sent again")?;
    }
    match init {
        Some(agreed) => {
            fs.set_whole_write_max(whole_write_max(agreed_pages(&agreed), page_bytes()))
        }
        None => {
            let offered = greet(&device, &fs, |answer| held.keep_init(answer))?;
            anyhow::ensure!(
                offered & abi::init::HAS_RESEND != 0,
                "a held mount needs FUSE_NOTIFY_RESEND, which Linux has from 6.9 on; leave out --hold"
            );
        }
    }
    let mut serving = serving(descriptors, readers, fs, metrics)?;
    let at: PathBuf = at.to_owned();
    Ok(Connected {
        kernel: Box::new(Notifications(Arc::clone(&device))),
        serve: Box::new(move || {
            let follows = 1 < held.kept.generation();
            held.serving();
            if follows {
                serving.take_left()?;
            }
            serving.run()
        }),
        unmount: Box::new(move || mount_point::unmount(&at)),
    })
}

/// The kernel sends again what was read and not answered. Whoever read it must have ended.
pub(crate) fn resend(device: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match exercise::is_without("resend") {
        true => Ok(()),
        false => device::write(device, 0, abi::NOTIFY_RESEND, &[]),
    }
}

/// Pages of a request, as an answer to INIT agreed upon.
fn agreed_pages(answer: &[u8]) -> u32 {
    let flags =
        answer.get(12..16).and_then(|flags| flags.try_into().ok()).map_or(0, u32::from_ne_bytes);
    if u64::from(flags) & abi::init::MAX_PAGES == 0 { PAGES_LEAST } else { pages_of_request() }
}

/// Answers INIT, the first request of a connection: what the kernel offered. `keep` has the answer before the kernel.
fn greet(
    device: &OwnedFd,
    fs: &FileSystem,
    keep: impl FnOnce(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut buffer = vec![0; HEAD_BYTES];
    loop {
        let len = device::read(device.as_fd(), &mut buffer).context("read the first request")?;
        let len = len.context("it was unmounted at once")?;
        let malformed = |_| anyhow::anyhow!("the kernel's first request makes no sense");
        let (header, body) = decode_header(buffer.get(..len).unwrap_or(&[])).map_err(malformed)?;
        let Body::Init(init) = decode_body(&header, body).map_err(malformed)? else {
            anyhow::bail!("the kernel's first request is not INIT but {}", header.opcode)
        };
        let Init { major, minor, flags, .. } = init;
        anyhow::ensure!(
            major >= abi::MAJOR && (major > abi::MAJOR || abi::MINOR_LEAST <= minor),
            "this kernel's FUSE {major}.{minor} is older than {}.{}; use --transport fuser",
            abi::MAJOR,
            abi::MINOR_LEAST
        );
        if major > abi::MAJOR {
            // It asks again with ours.
            let mut ours = Writer::default();
            ours.u32(abi::MAJOR).zeros(INIT_OUT_BYTES - 4);
            device::write(device.as_fd(), header.unique, 0, &ours.0)?;
            continue;
        }
        let (answer, pages) = init_answer(init);
        fs.set_whole_write_max(whole_write_max(pages, page_bytes()));
        keep(&answer)?;
        device::write(device.as_fd(), header.unique, 0, &answer).context("answer INIT")?;
        return Ok(flags);
    }
}

/// `fuse_init_out`, and how many pages a request may have.
fn init_answer(Init { minor, readahead_max, flags, .. }: Init) -> (Vec<u8>, u32) {
    let missing = WANTED & !flags;
    if missing != 0 {
        tracing::warn!(
            missing = format_args!("{missing:#x}"),
            "this kernel's FUSE lacks a feature"
        );
    }
    let agreed = WANTED & flags;
    let pages = if agreed & abi::init::MAX_PAGES == 0 { PAGES_LEAST } else { pages_of_request() };
    let pages_wanted = WRITE_BYTES_MAX.max(readahead_max).div_ceil(page_bytes().max(1));
    let [low, high] =
        [agreed & u64::from(u32::MAX), agreed >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let mut out = Writer::default();
    out.u32(abi::MAJOR).u32(abi::MINOR.min(minor)).u32(readahead_max).u32(low);
    out.u16(BACKGROUND_MAX).u16(BACKGROUND_MAX).u32(WRITE_BYTES_MAX).u32(1);
    out.u16(u16::try_from(pages_wanted).unwrap_or(u16::MAX)).u16(0).u32(high);
    // No stacking, and no time limit of requests: that would end a mount on which a program waits for a lock.
    out.zeros(INIT_OUT_BYTES - out.0.len());
    (out.0, pages)
}

/// All readers of one connection.
struct Serving {
    shared: Arc<Shared>,
    readers: Vec<(Arc<OwnedFd>, Resident)>,
}

struct Shared {
    dispatch: Dispatch,
    interrupts: Arc<Interrupts>,
}

/// A request that was read, and registered before anything is done for it.
struct Taken<'a> {
    unique: u64,
    call: Call<'a>,
    shape: Shape,
    registered: Registered,
    read: Option<ReadByKernel>,
}

struct ReadByKernel {
    fs: Arc<FileSystem>,
    under_way: ReadUnderWay,
    asked: u32,
    direct: bool,
}

/// Answers a request, and ends a read after that.
fn answering(
    registered: Registered,
    shape: Shape,
    read: Option<ReadByKernel>,
) -> impl FnOnce(Reply) + Send + 'static {
    move |answer| {
        let answered =
            if let Reply::Data(buffer) = &answer { Some(buffer.as_slice().len()) } else { None };
        registered.answer(encode(answer, shape));
        if let (Some(ReadByKernel { fs, under_way, asked, direct: false }), Some(answered)) =
            (read, answered)
        {
            fs.end_read(under_way, asked, answered);
        }
    }
}

fn serving(
    descriptors: Vec<Arc<OwnedFd>>,
    count: usize,
    fs: Arc<FileSystem>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Serving> {
    let mut readers = Vec::with_capacity(count);
    for number in 0..count {
        let descriptor = descriptors.get(number).or_else(|| descriptors.first());
        let descriptor = Arc::clone(descriptor.context("no descriptor of the mount")?);
        let buffer =
            Resident::new(WRITE_BYTES_MAX as usize + HEAD_BYTES).context("memory for requests")?;
        if !buffer.locked && number == 0 {
            tracing::info!("memory for requests is not locked: raise the limit (ulimit -l)");
        }
        readers.push((descriptor, buffer));
    }
    let dispatch = Dispatch::new(fs, metrics, count);
    let shared = Shared { dispatch, interrupts: Arc::default() };
    Ok(Serving { shared: Arc::new(shared), readers })
}

impl Serving {
    /// Takes what predecessors read and did not answer, before anything else is read: what it is, all of it, is known when
    /// the first of it is carried out.
    fn take_left(&mut self) -> io::Result<()> {
        let Self { shared, readers } = self;
        let Some((device, buffer)) = readers.first_mut() else { return Ok(()) };
        let buffer = buffer.as_mut_slice();
        let (mut left, mut is_left) = (Vec::new(), true);
        // What was sent before comes first.
        while is_left {
            let bytes = match device::read_waiting(device.as_fd(), buffer)? {
                Waiting::Request(len) => buffer.get(..len).unwrap_or(&[]),
                Waiting::Nothing | Waiting::Ended => break,
            };
            if let Some(taken) = shared.take(device, bytes) {
                is_left = taken.unique & abi::UNIQUE_RESENT != 0;
                let Taken { unique, call, shape, registered, read } = taken;
                left.push(Taken { unique, call: call.into_owned(), shape, registered, read });
            }
        }
        let resent = left.iter().filter(|taken| taken.unique & abi::UNIQUE_RESENT != 0);
        let resent: Vec<u64> = resent.map(|taken| taken.call.caller.unique).collect();
        let begun = shared.dispatch.fs.forget_left_but(&resent);
        tracing::info!(resent = resent.len(), begun, "took over what was not answered");
        left.sort_by_key(|taken| shared.dispatch.fs.left_place(taken.call.caller.unique));
        for Taken { call, shape, registered, read, .. } in left {
            shared.dispatch.answer_elsewhere(call, answering(registered, shape, read));
        }
        Ok(())
    }

    /// Until the mount is gone.
    fn run(self) -> io::Result<()> {
        let Self { shared, readers } = self;
        std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(readers.len());
            for (number, (descriptor, buffer)) in readers.into_iter().enumerate() {
                let shared = Arc::clone(&shared);
                let run = move || shared.read_requests(&descriptor, buffer);
                let thread = std::thread::Builder::new().name(format!("dfs-fuse-{number}"));
                threads.push(thread.spawn_scoped(scope, run)?);
            }
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
            });
            ended.fold(Ok(()), Result::and)
        })
    }
}

impl Shared {
    fn read_requests(&self, device: &Arc<OwnedFd>, mut buffer: Resident) -> io::Result<()> {
        let buffer = buffer.as_mut_slice();
        while let Some(len) = device::read(device.as_fd(), buffer)? {
            let bytes = buffer.get(..len).unwrap_or(&[]);
            if let Some(Taken { call, shape, registered, read, .. }) = self.take(device, bytes) {
                self.dispatch.answer(call, answering(registered, shape, read));
            }
        }
        Ok(())
    }

    /// What is to be answered by the file system; the rest is done with here.
    fn take<'a>(&self, device: &Arc<OwnedFd>, bytes: &'a [u8]) -> Option<Taken<'a>> {
        let Ok((header, body)) = decode_header(bytes) else {
            // Nobody can be answered: there is no number.
            tracing::error!(bytes = bytes.len(), "a request of the kernel has no header");
            return None;
        };
        match decode_body(&header, body) {
            Ok(Body::Call { operation, payload, shape }) => {
                let (unique, caller) = (header.unique, header.caller());
                exercise::begin(operation.name());
                exercise::reached(Point::Read);
                let read = if let Operation::Read { ino, offset, len, direct, .. } = &operation {
                    let fs = Arc::clone(&self.dispatch.fs);
                    let under_way = fs.begin_read(*ino, *offset);
                    Some(ReadByKernel { fs, under_way, asked: *len, direct: *direct })
                } else {
                    None
                };
                let registered = self.interrupts.begin(device, unique, caller, &operation);
                let cancelled = registered.cancelled();
                let call = Call { caller, operation, payload, cancelled };
                return Some(Taken { unique, call, shape, registered, read });
            }
            Ok(Body::Interrupt { unique }) => self.interrupts.interrupt(unique),
            Ok(Body::Forget) => {}
            Ok(Body::Destroy) => respond(device, header.unique, &Encoded::Bytes(Vec::new())),
            Ok(Body::Unknown) => respond(device, header.unique, &Encoded::Failed(Errno::UNKNOWN)),
            Ok(Body::Init(_)) | Err(request::Malformed) => {
                let Header { opcode, .. } = header;
                tracing::error!(opcode, "a request of the kernel makes no sense; answered EINVAL");
                respond(device, header.unique, &Encoded::Failed(Errno::INVALID));
            }
        }
        None
    }
}

/// On the descriptor of the request.
fn respond(device: &OwnedFd, unique: u64, answer: &Encoded) {
    let error = match answer {
        Encoded::Failed(errno) => -errno.code(),
        Encoded::Bytes(_) | Encoded::Data(_) => 0,
    };
    match device::write(device.as_fd(), unique, error, answer.bytes()) {
        // ENOENT: it was interrupted, or somebody else answered; ENODEV: unmounted.
        Ok(()) | Err(OsErrno::NOENT | OsErrno::NODEV) => {}
        Err(error) => tracing::error!(unique, %error, "the kernel did not take an answer"),
    }
}

/// Tells the kernel what it must forget.
#[derive(Debug)]
struct Notifications(Arc<OwnedFd>);

impl Notifications {
    /// `offset` -1 leaves the pages.
    fn drop_cached(&self, ino: InodeNo, offset: i64) -> rustix::io::Result<()> {
        let mut body = Writer::default();
        body.u64(ino.0).u64(offset.cast_unsigned()).u64(0);
        match device::write(self.0.as_fd(), 0, abi::NOTIFY_INVAL_INODE, &body.0) {
            // Nothing was cached.
            Err(OsErrno::NOENT) => Ok(()),
            told => told,
        }
    }
}

impl KernelCache for Notifications {
    fn drop_attributes(&self, ino: InodeNo) {
        if let Err(error) = self.drop_cached(ino, -1) {
            tracing::warn!(ino = ino.0, %error, "kernel did not drop cached attributes");
        }
    }

    fn drop_inode(&self, ino: InodeNo) {
        if let Err(error) = self.drop_cached(ino, 0) {
            tracing::warn!(ino = ino.0, %error, "kernel did not drop cached pages");
        }
    }
}
