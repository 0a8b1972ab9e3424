//! What outlives a holder: its descriptors in the store of the service manager (`FDSTORE` of `sd_notify(3)`), which passes
//! them on to the next process of the service (`sd_listen_fds(3)`).

use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Context as _;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::native::passing::DESCRIPTORS_MAX;

const MEMORY: &str = "dfs-kept";
const CONNECTION: &str = "dfs-fuse";
/// `SD_LISTEN_FDS_START`
const FIRST: i32 = 3;

/// Descriptors that a holder before had stored.
#[derive(Debug)]
pub struct Stored {
    pub(super) memory: OwnedFd,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What this process was started with, as `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` say; nothing if there is no mount
/// among it. To be called once, before anything is opened.
///
/// # Errors
/// If they make no sense.
pub fn stored(
    pid: Option<OsString>,
    count: Option<OsString>,
    names: Option<OsString>,
) -> anyhow::Result<Option<Stored>> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(None) };
    if pid.to_string_lossy().parse() != Ok(std::process::id()) {
        return Ok(None);
    }
    let count = count.to_string_lossy();
    let count: i32 =
        count.parse().with_context(|| format!("LISTEN_FDS={count}: not a number; unset it"))?;
    let names = names.unwrap_or_default();
    let names = names.to_string_lossy();
    let (mut memory, mut descriptors) = (None, Vec::new());
    for (number, name) in (FIRST..FIRST.saturating_add(count)).zip(names.split(':')) {
        if name != MEMORY && name != CONNECTION {
            continue;
        }
        let descriptor = inherited(number)?;
        if name == MEMORY {
            memory = Some(descriptor);
        } else {
            descriptors.push(descriptor);
        }
    }
    Ok(match memory {
        Some(memory) if !descriptors.is_empty() => Some(Stored { memory, descriptors }),
        Some(_) | None => None,
    })
}

#[expect(unsafe_code, reason = "a descriptor that was inherited has a number only")]
fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    // SAFETY: the service manager says that it is ours; whether it is open is looked at next.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)
        .with_context(|| format!("stored descriptor {number}"))?;
    Ok(descriptor)
}

/// Stores them; a warning if it cannot be done.
pub(super) fn put(store: &OsStr, memory: &OwnedFd, descriptors: &[OwnedFd]) {
    let all: Vec<BorrowedFd<'_>> = descriptors.iter().map(|one| one.as_fd()).collect();
    let stored = notify(store, &format!("FDSTORE=1\nFDNAME={MEMORY}"), &[memory.as_fd()])
        .and_then(|()| notify(store, &format!("FDSTORE=1\nFDNAME={CONNECTION}"), &all));
    match stored {
        Ok(()) => tracing::info!("stored for a holder that follows this one"),
        Err(error) => tracing::warn!(%error, "not stored: the mount does not outlive its holder"),
    }
}

/// The mount is over.
pub(super) fn remove(store: &OsStr) {
    for name in [CONNECTION, MEMORY] {
        if let Err(error) = notify(store, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]) {
            tracing::warn!(%error, name, "stays stored");
        }
    }
}

fn notify(store: &OsStr, text: &str, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
    let path = store.as_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(path),
    };
    let address = address.with_context(|| format!("NOTIFY_SOCKET={}", store.display()))?;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .context("make a socket")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    anyhow::ensure!(
        descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
        "too many descriptors for one message"
    );
    let bytes = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg_addr(&socket, &address, &bytes, &mut ancillary, SendFlags::NOSIGNAL)
        .with_context(|| format!("tell the service manager at {}", store.display()))?;
    Ok(())
}
