//! Where a holder is asked to put another program in place: a socket with the name of the mount's device, for the user of
//! the holder and for root.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::readable;
use crate::mount_table::mounted_at;
use crate::native::passing::{self, Message};

/// How long whoever asks may take to say what for.
const ASK_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Control {
    pub(super) socket: OwnedFd,
    /// Of the mount, in which no program may lie.
    at: PathBuf,
}

/// A program to be put in place, and who waits to hear of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) program: PathBuf,
    from: OwnedFd,
}

/// Not a file's: nobody has to take it away, and a container with its own network has its own.
fn address(at: &Path) -> anyhow::Result<SocketAddrUnix> {
    let mounted = mounted_at(at).context("read /proc/self/mountinfo")?;
    let mounted = mounted.with_context(|| format!("{}: nothing is mounted there", at.display()))?;
    anyhow::ensure!(
        mounted.kind == "fuse.dfs",
        "{}: a {} file system is mounted there, not one of dfs",
        at.display(),
        mounted.kind
    );
    let name = format!("dfs-mount-{}", mounted.device);
    SocketAddrUnix::new_abstract_name(name.as_bytes()).context("name a socket")
}

fn socket() -> io::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    Ok(rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None)?)
}

impl Control {
    pub(super) fn new(at: &Path) -> anyhow::Result<Self> {
        let socket = socket().context("make a socket")?;
        rustix::net::bind(&socket, &address(at)?).context("bind a socket")?;
        rustix::net::listen(&socket, 4).context("listen")?;
        Ok(Self { socket, at: at.to_owned() })
    }

    /// Somebody asks: what for, if it makes sense.
    pub(super) fn accept(&self) -> Option<Asked> {
        let from = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&from).ok()?;
        if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
            tracing::warn!(uid = peer.uid.as_raw(), "asked for an upgrade by a stranger");
            return None;
        }
        if !readable(from.as_fd(), None, ASK_MAX).is_ok_and(|(said, _)| said) {
            return None;
        }
        let Ok((Message::Upgrade(program), _)) = passing::receive(from.as_fd()) else {
            return None;
        };
        let program = PathBuf::from(std::ffi::OsString::from_vec(program));
        let asked = Asked { program, from };
        match check(&asked.program, &self.at) {
            Ok(()) => Some(asked),
            Err(reason) => {
                asked.answer(&Err(reason));
                None
            }
        }
    }
}

/// A program in the mount could be read by the client only that it is to follow.
fn check(program: &Path, at: &Path) -> Result<(), String> {
    if !program.is_absolute() || program.starts_with(at) {
        return Err(format!("program {}: name one outside of the mount", program.display()));
    }
    match std::fs::metadata(program) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(format!("program {}: not a file", program.display())),
        Err(error) => Err(format!("program {}: {error}", program.display())),
    }
}

impl Asked {
    pub(super) fn answer(&self, outcome: &Result<String, String>) {
        let message = match outcome {
            Ok(said) => Message::Upgraded(said.clone().into_bytes()),
            Err(reason) => Message::NotUpgraded(reason.clone().into_bytes()),
        };
        // Whoever asked may have gone.
        let _gone = passing::send(self.from.as_fd(), &message, &[]);
    }
}

/// Has the holder of the mount at `at` put `program` in place: what it says of the new client. Returns when that serves.
///
/// # Errors
/// Why it did not; the client that was there before, or another one of its program, serves then.
pub fn upgrade(at: &Path, program: &Path) -> anyhow::Result<String> {
    let socket = socket().context("make a socket")?;
    let connected = rustix::net::connect(&socket, &address(at)?);
    connected.with_context(|| {
        format!("{}: no holder answers; was it mounted with --hold?", at.display())
    })?;
    let ask = Message::Upgrade(program.as_os_str().as_bytes().to_vec());
    passing::send(socket.as_fd(), &ask, &[]).context("ask the holder")?;
    let (answer, _) = passing::receive(socket.as_fd())
        .context("the holder gave no answer: only root and the user who mounted may ask")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    match answer {
        Message::Upgraded(said) => Ok(text(said)),
        Message::NotUpgraded(reason) => anyhow::bail!("not upgraded: {}", text(reason)),
        Message::Start(_)
        | Message::Want
        | Message::Grant(_)
        | Message::Init(_)
        | Message::Kept
        | Message::Serving
        | Message::Upgrade(_) => anyhow::bail!("the holder gave an answer that is none"),
    }
}
