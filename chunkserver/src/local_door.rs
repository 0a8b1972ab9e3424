//! Chunk files for clients on the same machine: they read them themselves, against checksums they are told.
//!
//! A socket without a file, open to whoever knows a token that only authenticated connections are told. An asker
//! names a chunk and gets a descriptor to read its file; what it may believe of it, [`crate::data`] says each time.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_core::ids::ChunkId;
use dfs_proto::local_door::{GIVEN, REFUSED, Request, TOKEN_BYTES};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::node::Node;

const CONNECTIONS_MAX: usize = 64;
const TOKEN_MAX: Duration = Duration::from_secs(1);
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// An asker that asks nothing for so long comes again.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct LocalDoor {
    pub(crate) name: String,
    pub(crate) token: [u8; TOKEN_BYTES],
    listener: UnixListener,
}

impl LocalDoor {
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> io::Result<Self> {
        let mut token = [0; TOKEN_BYTES];
        let mut random = [0; 8];
        let no_random = |error: getrandom::Error| io::Error::other(error.to_string());
        getrandom::fill(&mut token).map_err(no_random)?;
        getrandom::fill(&mut random).map_err(no_random)?;
        let name = format!("dfs-chunkserver-{:016x}", u64::from_ne_bytes(random));
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self { name, token, listener })
    }

    /// Serves until `node` is gone.
    ///
    /// # Errors
    /// If there is no thread to do it.
    pub(crate) fn serve(&self, node: &Arc<Node>) -> io::Result<()> {
        let (listener, token) = (self.listener.try_clone()?, self.token);
        let node = Arc::downgrade(node);
        let open = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().name("local door".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if node.upgrade().is_none() {
                    return;
                }
                let Ok(stream) = stream else {
                    // No descriptors left, or closed while the last requests are answered.
                    std::thread::sleep(ACCEPT_AGAIN);
                    continue;
                };
                if CONNECTIONS_MAX <= open.fetch_add(1, Ordering::AcqRel) {
                    open.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let (node, open) = (Weak::clone(&node), Arc::clone(&open));
                let spawned =
                    std::thread::Builder::new().name("local files".to_owned()).spawn(move || {
                        if let Err(error) = answer(&node, &stream, &token) {
                            tracing::debug!(%error, "asker for chunk files");
                        }
                        open.fetch_sub(1, Ordering::AcqRel);
                    });
                if let Err(error) = spawned {
                    tracing::warn!(%error, "no thread to hand out chunk files");
                }
            }
        })?;
        Ok(())
    }

    /// Ends the waiting for askers.
    pub(crate) fn close(&self) {
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "close the local door");
        }
    }
}

fn answer(node: &Weak<Node>, mut stream: &UnixStream, token: &[u8]) -> io::Result<()> {
    stream.set_write_timeout(Some(TOKEN_MAX))?;
    stream.set_read_timeout(Some(TOKEN_MAX))?;
    let mut said = [0; TOKEN_BYTES];
    stream.read_exact(&mut said)?;
    // All of it is looked at, whatever differs first.
    if said.iter().zip(token).fold(0, |wrong, (a, b)| wrong | (a ^ b)) != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "wrong token"));
    }
    stream.set_read_timeout(Some(IDLE_MAX))?;
    loop {
        let mut request = Request::default();
        stream.read_exact(&mut request)?;
        let chunk = ChunkId(u64::from_le_bytes(request));
        let Some(node) = node.upgrade() else { return Ok(()) };
        // Files are put aside when the master says so: nothing of that is hurried by who still reads one.
        let open = node.fence.check_takes_part().is_ok();
        let path = open.then(|| node.store.chunk_file(chunk)).flatten();
        let file = path.and_then(|path| File::open(path).ok());
        send(stream, file.as_ref())?;
    }
}

fn send(stream: &UnixStream, file: Option<&File>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = file.map(|file| [file.as_fd()]);
    let fits = fds.as_ref().is_none_or(|fds| control.push(SendAncillaryMessage::ScmRights(fds)));
    let said = [if file.is_some() && fits { GIVEN } else { REFUSED }];
    rustix::net::sendmsg(stream, &[IoSlice::new(&said)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
