//! Chunk files of servers on the same machine, read without their help.
//!
//! The server checks all it would check for a read, and answers with the checksums of the blocks as they are by then;
//! bytes of the file that have these are the ones it would have sent. Any other bytes (a block that is being
//! written, or is bad) are asked of it in the ordinary way.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_file::{BLOCK_BYTES_MAX, DATA_AT};
use dfs_proto::local_door::{GIVEN, Request};
use dfs_proto::meta_rpc::ChunkLayout;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Smaller reads are answered by the server: asking for checksums costs as much.
pub(crate) const LOCAL_BYTES_MIN: u32 = 64 << 10;
/// A file that was deleted keeps its space as long as somebody has it open.
const OPEN_FOR: Duration = Duration::from_secs(20);
const FILES_MAX: usize = 256;
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// A server elsewhere is not asked again sooner.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Where a server hands out its files.
#[derive(Debug)]
pub(crate) struct DoorAddress {
    pub(crate) name: String,
    pub(crate) token: Vec<u8>,
}

#[derive(Default, Debug)]
pub(crate) struct LocalFiles {
    state: Mutex<State>,
}

#[derive(Default, Debug)]
struct State {
    door: Option<UnixStream>,
    failed_at: Option<Instant>,
    files: HashMap<ChunkId, (Arc<File>, Instant)>,
}

impl LocalFiles {
    /// The chunk's file, if its server is on this machine. `ask` is called for the way to it; never waits for another
    /// caller.
    pub(crate) fn file(
        &self,
        chunk: ChunkId,
        ask: impl FnOnce() -> io::Result<DoorAddress>,
    ) -> Option<Arc<File>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if let Some((file, at)) = state.files.get(&chunk)
            && at.elapsed() < OPEN_FOR
        {
            return Some(Arc::clone(file));
        }
        if state.failed_at.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return None;
        }
        let fetched = match state.door.take() {
            // Closed since, by an idle server or a new process: dialled anew.
            Some(door) => {
                fetch(door, chunk).or_else(|_| dial(&ask()?).and_then(|d| fetch(d, chunk)))
            }
            None => ask().and_then(|address| dial(&address)).and_then(|door| fetch(door, chunk)),
        };
        match fetched {
            Ok((door, file)) => {
                state.door = Some(door);
                let file = Arc::new(file?);
                if FILES_MAX <= state.files.len() {
                    state.files.clear();
                }
                state.files.insert(chunk, (Arc::clone(&file), Instant::now()));
                Some(file)
            }
            Err(error) => {
                tracing::debug!(%error, "no chunk files on this machine");
                state.failed_at = Some(Instant::now());
                None
            }
        }
    }

    /// Its bytes were not what the server says.
    pub(crate) fn forget(&self, chunk: ChunkId) {
        crate::session::lock(&self.state).files.remove(&chunk);
    }

    /// Closes what was open for long enough.
    pub(crate) fn sweep(&self) {
        crate::session::lock(&self.state).files.retain(|_, (_, at)| at.elapsed() < OPEN_FOR);
    }
}

fn dial(address: &DoorAddress) -> io::Result<UnixStream> {
    let mut door = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&address.name)?)?;
    door.set_read_timeout(Some(ANSWER_MAX))?;
    door.set_write_timeout(Some(ANSWER_MAX))?;
    door.write_all(&address.token)?;
    Ok(door)
}

/// `None`: the server does not have it, or not any more.
fn fetch(mut door: UnixStream, chunk: ChunkId) -> io::Result<(UnixStream, Option<File>)> {
    let request: Request = chunk.0.to_le_bytes();
    door.write_all(&request)?;
    let mut said = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        &door,
        &mut [IoSliceMut::new(&mut said)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            file = fds.map(File::from).next().or(file);
        }
    }
    Ok((door, file.filter(|_| said[0] == GIVEN)))
}

/// Bytes `offset..offset+len` of a replica that is `replica_len` long, fewer at its end. `sums`: of its blocks from the
/// one with `offset` on, as u32 little-endian. `None`: the file holds something else, or cannot be read.
pub(crate) fn read(
    sums: &[u8],
    replica_len: u64,
    file: &File,
    layout: &ChunkLayout,
    (offset, len): (u64, u32),
) -> Option<Vec<u8>> {
    let block = layout.chunk_size.clamp(1, BLOCK_BYTES_MAX);
    let end = (offset + u64::from(len)).min(replica_len);
    if !offset.is_multiple_of(block) || end <= offset {
        return (end <= offset).then(Vec::new);
    }
    let upto = end.next_multiple_of(block).min(replica_len);
    let bytes = usize::try_from(upto - offset).ok()?;
    let mut out: Vec<u8> = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let at = DATA_AT + offset + out.len() as u64;
        let room = rustix::buffer::spare_capacity(&mut out);
        match rustix::io::pread(file, room, at) {
            // What is beyond the end of the file are zeros.
            Ok(0) => out.resize(bytes, 0),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::debug!(%error, "read a chunk file");
                return None;
            }
        }
    }
    out.truncate(bytes);
    let blocks = out.chunks(usize::try_from(block).ok()?);
    let right = blocks.len() == sums.len() / 4
        && blocks
            .zip(sums.chunks_exact(4))
            .all(|(bytes, sum)| crc32c::crc32c(bytes).to_le_bytes() == sum);
    out.truncate(usize::try_from(end - offset).ok()?);
    right.then_some(out)
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_core::ids::{ChunkVersion, Epoch, InodeNo, ServerId};
    use std::os::unix::fs::FileExt as _;

    pub(super) fn layout(chunk_size: u64) -> ChunkLayout {
        ChunkLayout {
            chunk: ChunkId(1),
            ino: InodeNo(2),
            index: 0,
            chunk_size,
            version: ChunkVersion(1),
            members: Vec::new(),
            primary: ServerId(1),
            epoch: Epoch(1),
            born: true,
            sealed: false,
            writable: true,
        }
    }

    #[test]
    fn only_bytes_with_their_checksums_are_taken() {
        let path = std::env::temp_dir().join(format!("dfs-local-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut content: Vec<u8> = (0..200_000_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
        file.write_all_at(&content, DATA_AT).unwrap();
        // What lies beyond the end of the file reads as zeros.
        content.resize(210_000, 0);
        let sums_of = |bytes: &[u8]| -> Vec<u8> {
            bytes.chunks(65_536).flat_map(|block| crc32c::crc32c(block).to_le_bytes()).collect()
        };
        let len = content.len() as u64;
        let layout = layout(1 << 20);
        let read = |at: u64, bytes: u32, sums: &[u8]| read(sums, len, &file, &layout, (at, bytes));
        assert!(read(0, 1 << 20, &sums_of(&content)).as_ref() == Some(&content));
        let tail = &content[131_072..];
        assert!(read(131_072, 1 << 20, &sums_of(tail)).as_deref() == Some(tail));
        // A part of a block: all of it is checked.
        let two = sums_of(&content[..131_072]);
        assert!(read(0, 70_000, &two).as_deref() == Some(&content[..70_000]));
        assert_eq!(read(len.next_multiple_of(65_536), 100, &[]), Some(Vec::new()));
        for wrong in [&two[..4], &[&two[..], &two[..4]].concat()] {
            assert_eq!(read(0, 70_000, wrong), None, "other blocks");
        }
        file.write_all_at(&[content[100] ^ 1], DATA_AT + 100).unwrap();
        assert_eq!(read(0, 70_000, &two), None, "other bytes");
        assert!(read(65_536, 65_536, &two[4..]).is_some());
    }
}
