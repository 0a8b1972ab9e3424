//! A client's side of [`crate::holder`]: what it is given, and how it says how far it is.

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context as _;
use dfs_client::kept::{Kept, WORDS};
use dfs_core::ids::ClientId;
use rustix::fs::FlockOperation;

use crate::native::INIT_OUT_BYTES;
use crate::native::passing::{self, Message};

/// The connection to the holder.
#[derive(Debug)]
pub(crate) struct Held {
    socket: OwnedFd,
    pub(crate) kept: Arc<Kept>,
}

/// All descriptors of the mount, and what was agreed with the kernel if it was.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) init: Option<Vec<u8>>,
}

impl Held {
    /// `number`: of the descriptor that this process was started with for this.
    /// Nothing if that has ended.
    pub(crate) fn new(number: i32) -> anyhow::Result<Option<Self>> {
        let socket = inherited(number);
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
            .with_context(|| format!("descriptor {number} of the holder"))?;
        let (message, descriptors) = match passing::receive(socket.as_fd()) {
            Ok(received) => received,
            // It stood by, and its turn did not come.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error).context("ask the holder"),
        };
        let Message::Start(start) = message else {
            anyhow::bail!("the holder said {message:?} first");
        };
        let parts = start.split_at_checked(8).context("too little of the holder")?;
        let generation = u64::from_ne_bytes(parts.0.try_into()?);
        let client = ClientId(u128::from_le_bytes(parts.1.try_into()?));
        let memory = descriptors.into_iter().next().context("the holder sent no memory")?;
        // One that a holder before this one started may serve still. The lock ends with the process that has it, unless that
        // closes the file.
        rustix::fs::fcntl_lock(&memory, FlockOperation::LockExclusive)
            .context("wait for the client before")?;
        let memory: &'static OwnedFd = Box::leak(Box::new(memory));
        let kept = Kept::attach(map(memory)?, client, generation).map_err(anyhow::Error::msg)?;
        Ok(Some(Self { socket, kept }))
    }

    /// Asks for the mount.
    pub(crate) fn want(&self) -> anyhow::Result<Granted> {
        passing::send(self.socket.as_fd(), &Message::Want, &[]).context("tell the holder")?;
        let (message, descriptors) =
            passing::receive(self.socket.as_fd()).context("hear of the holder")?;
        let Message::Grant(init) = message else {
            anyhow::bail!("the holder said {message:?} instead of what it holds");
        };
        anyhow::ensure!(!descriptors.is_empty(), "the holder sent no descriptor");
        let init = (init.len() == INIT_OUT_BYTES).then_some(init);
        Ok(Granted { descriptors, init })
    }

    /// Has the answer to INIT kept, before the kernel has it.
    pub(crate) fn keep_init(&self, answer: &[u8]) -> anyhow::Result<()> {
        let init = Message::Init(answer.to_vec());
        passing::send(self.socket.as_fd(), &init, &[]).context("tell the holder")?;
        let (message, _) = passing::receive(self.socket.as_fd()).context("hear of the holder")?;
        anyhow::ensure!(message == Message::Kept, "the holder said {message:?}");
        Ok(())
    }

    /// Requests are read from now on. Watches the holder too.
    pub(crate) fn serving(self) {
        if let Err(error) = passing::send(self.socket.as_fd(), &Message::Serving, &[]) {
            tracing::warn!(%error, "tell the holder");
        }
        let watch = move || {
            // It says nothing more.
            let _end = passing::receive(self.socket.as_fd());
            tracing::warn!(
                "the holder of this mount is gone: the mount goes on, and ends with this process"
            );
        };
        let started = std::thread::Builder::new().name("dfs-holder".to_owned()).spawn(watch);
        if let Err(error) = started {
            tracing::warn!(%error, "the holder is not watched");
        }
    }
}

/// All that is in the file whose descriptor this process was started with.
///
/// # Errors
/// If it cannot be read.
pub fn read_inherited(number: i32) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::from(inherited(number)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[expect(unsafe_code, reason = "a descriptor that was inherited has a number only")]
fn inherited(number: i32) -> OwnedFd {
    // SAFETY: the holder started this process with it, for this alone; that it is open is checked next.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The kept memory, for as long as this process lives.
#[expect(unsafe_code, reason = "mmap(2) of memory that is shared with the holder")]
fn map(memory: &OwnedFd) -> anyhow::Result<&'static [AtomicU64]> {
    use std::os::fd::AsRawFd as _;
    let size = rustix::fs::fstat(memory).context("look at the kept memory")?.st_size;
    anyhow::ensure!(size == WORDS as i64 * 8, "kept memory of {size} bytes, not {}", WORDS * 8);
    // SAFETY: a new shared mapping at an address of the kernel's choice touches nothing that exists.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            WORDS * 8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            memory.as_raw_fd(),
            0,
        )
    };
    let at = if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast::<AtomicU64>()) };
    let at = at.ok_or_else(io::Error::last_os_error).context("map the kept memory")?;
    // SAFETY: page-aligned, as large as the file, never unmapped, and every access to it is atomic.
    Ok(unsafe { std::slice::from_raw_parts(at.as_ptr(), WORDS) })
}
