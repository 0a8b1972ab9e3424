//! Snapshots as files: written whole, synced, read back from the disk and only then given their
//! name. The newest two that are whole are kept, and the log may be purged only behind the older of them.
//!
//! ```text
//! header   0 magic[8] "DFSSNAP\n"   8 version u32   12 crc32c u32 of bytes 16.. to the header's end
//!         16 term, node, index u64 each            40 content_bytes u64
//!         48 group_state_bytes u32                 52 zero u32          56 group_state
//! block    0 crc32c u32 of bytes 4.., seeded with the block before it   4 bytes u32   8 content
//!            65,536 bytes of content, the last block fewer
//! trailer  a block with 0 bytes of content: the file was finished
//! ```
//! All integers are little-endian. The chain of block checksums starts from the header's. A later format is to have the
//! version in its checksum: a header whose checksum is right by this one's rules is of this one.

use dfs_service::page::Page;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use crate::journal::Position;
use crate::journal::disk::{create_directory, sync_directory};

const MAGIC: [u8; 8] = *b"DFSSNAP\n";
const VERSION: u32 = 1;
const HEADER_FIXED_BYTES: usize = 56;
const GROUP_STATE_BYTES_MAX: usize = 1 << 20;
const BLOCK_BYTES: usize = 64 << 10;
const WRITING_NAME: &str = "writing.tmp";
const RECEIVING_NAME: &str = "receiving.tmp";
const KEPT: usize = 2;
const READING: &str = "read";

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file does not hold what was written. An older one may be whole.
    #[error("{} is damaged at byte {offset}: {reason}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Start of the damaged header or block.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// Written by a newer version of this program, which has to be used.
    #[error("{} has snapshot format {version}, this program reads {VERSION}", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Format found.
        version: u32,
    },
    /// The operating system or the store refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Nothing was applied yet, so there is no state to keep.
    #[error("nothing was applied yet")]
    Empty,
    /// The group stopped meanwhile.
    #[error("the group has stopped")]
    Stopped,
}

impl SnapshotError {
    /// Whether it is this one file that is of no use: another may be.
    pub(super) fn is_of_file(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Newer { .. } => true,
            Self::Io { doing, .. } => *doing == READING,
            Self::Empty | Self::Stopped => false,
        }
    }

    /// Which section of the manual helps.
    #[must_use]
    pub fn page(&self) -> Page {
        match self {
            Self::Io { source, .. } => Page::of_disk(source).unwrap_or(Page::DamagedLog),
            Self::Newer { .. } => Page::DirectoryRefused,
            Self::Damaged { .. } | Self::Empty | Self::Stopped => Page::DamagedLog,
        }
    }
}

/// A snapshot file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The last entry it includes.
    pub position: Position,
    /// Bytes of the store's content.
    pub content_bytes: u64,
    /// The file.
    pub path: PathBuf,
    pub(super) group_state: Bytes,
}

/// The snapshot files of one directory.
#[derive(Debug)]
pub struct SnapshotFiles {
    dir: PathBuf,
    /// Those that are of no use, as far as that was said.
    told: Mutex<Vec<PathBuf>>,
    /// What was wrong with those removed before their time, until somebody asks.
    removed: Mutex<Vec<SnapshotError>>,
}

impl SnapshotFiles {
    /// Uses `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        create_directory(dir).map_err(|err| io_error("create", dir, err))?;
        for name in [WRITING_NAME, RECEIVING_NAME] {
            let path = dir.join(name);
            match std::fs::remove_file(&path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path, err));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self { dir: dir.to_owned(), told: Mutex::default(), removed: Mutex::default() })
    }

    /// Writes a snapshot of what `fill` writes, reads it back, and removes all but it and the newest other one that is
    /// whole.
    ///
    /// # Errors
    /// After any error the snapshots that existed still do.
    pub fn write(
        &self,
        position: Position,
        group_state: &Bytes,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let path = self.dir.join(WRITING_NAME);
        let error = |doing, err| io_error(doing, &path, err);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|err| error("create", err))?;
        let mut writer = BlockWriter::new(file, position, group_state.clone())
            .map_err(|err| error("write", err))?;
        fill(&mut writer).map_err(|err| error("fill", err))?;
        let file = writer.finish().map_err(|err| error("write", err))?;
        self.keep(file, &path)
    }

    /// Takes over a snapshot file received from another member.
    ///
    /// # Errors
    /// As for [`SnapshotFiles::write`].
    pub(super) fn adopt(&self, received: &mut File) -> Result<SnapshotInfo, SnapshotError> {
        let path = self.dir.join(WRITING_NAME);
        let error = |doing, err| io_error(doing, &path, err);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|err| error("create", err))?;
        received.seek(SeekFrom::Start(0)).map_err(|err| error("read for", err))?;
        io::copy(received, &mut file).map_err(|err| error("write", err))?;
        self.keep(file, &path)
    }

    fn keep(&self, file: File, path: &Path) -> Result<SnapshotInfo, SnapshotError> {
        file.sync_all().map_err(|err| io_error("sync", path, err))?;
        // Without this the read below would only test the page cache.
        if let Err(errno) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed) {
            tracing::debug!(%errno, "the snapshot is read back from the page cache");
        }
        drop(file);
        let mut info = verify(path)?;
        let Position { term, node: _, index } = info.position;
        let kept_path = self.dir.join(format!("{index:020}-{term:020}.snapshot"));
        std::fs::rename(path, &kept_path).map_err(|err| io_error("rename", path, err))?;
        sync_directory(&self.dir).map_err(|err| io_error("sync", &self.dir, err))?;
        info.path = kept_path;
        self.remove_others(&info.path)?;
        Ok(info)
    }

    /// Removes what is older than the newest [`KEPT`] whole ones, of which `written` is one, and what is damaged.
    fn remove_others(&self, written: &Path) -> Result<(), SnapshotError> {
        let mut whole_count = 1;
        for path in self.paths()? {
            if path == written {
                continue;
            }
            if whole_count < KEPT {
                match verify(&path) {
                    Ok(_whole) => {
                        whole_count += 1;
                        continue;
                    }
                    Err(error @ SnapshotError::Damaged { .. }) => {
                        self.removed().push(error);
                    }
                    // Of another program, or of a disk that may answer the next time: not ours to judge.
                    Err(error) => {
                        self.tell(&path, &error, "a snapshot cannot be read, it counts as none");
                        continue;
                    }
                }
            }
            if let Err(err) = std::fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %err, "an old snapshot stays");
            }
        }
        Ok(())
    }

    fn removed(&self) -> MutexGuard<'_, Vec<SnapshotError>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with the damaged snapshots that gave way to whole ones since the last call.
    pub(super) fn take_removed(&self) -> Vec<SnapshotError> {
        std::mem::take(&mut *self.removed())
    }

    /// Says once that the snapshot at `path` is of no use.
    pub(super) fn tell(&self, path: &Path, error: &SnapshotError, consequence: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.iter().any(|known| known == path) {
            told.push(path.to_owned());
            tracing::error!(%error, see = %error.page(), "{consequence}");
        }
    }

    /// Takes a damaged snapshot out of the way of later starts, for a look at the disk.
    pub(super) fn put_aside(&self, path: &Path) -> Result<PathBuf, SnapshotError> {
        let aside = path.with_extension("snapshot.damaged");
        std::fs::rename(path, &aside).map_err(|err| io_error("put aside", path, err))?;
        sync_directory(&self.dir).map_err(|err| io_error("sync", &self.dir, err))?;
        Ok(aside)
    }

    /// Paths of all snapshots, the newest first.
    ///
    /// # Errors
    /// `Io`.
    pub fn paths(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let error = |err| io_error("list", &self.dir, err);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(error)? {
            if let Ok(name) = entry.map_err(error)?.file_name().into_string()
                && name.ends_with(".snapshot")
            {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names.into_iter().map(|name| self.dir.join(name)).collect())
    }

    /// The newest snapshot whose header can be read; its content is checked when it is read. Others are passed over,
    /// and that is said: whether one is needed is not known here.
    ///
    /// # Errors
    /// `Io` if the directory cannot be read.
    pub fn newest(&self) -> Result<Option<SnapshotInfo>, SnapshotError> {
        for path in self.paths()? {
            match SnapshotReader::open(&path) {
                Ok(reader) => return Ok(Some(reader.info)),
                Err(error) => self.tell(
                    &path,
                    &error,
                    "a snapshot cannot be used, going on without it until the next is written",
                ),
            }
        }
        Ok(None)
    }

    /// Whether any snapshot is whole.
    ///
    /// # Errors
    /// `Io` if the directory cannot be read.
    pub(super) fn has_whole(&self) -> Result<bool, SnapshotError> {
        Ok(self.paths()?.iter().any(|path| verify(path).is_ok()))
    }

    /// Up to where the log may be purged: what the older of the newest two snapshots includes,
    /// after both were read back whole. `None` while there are fewer than two.
    ///
    /// # Errors
    /// `Damaged` if one of the two is; then nothing may be purged.
    pub fn purge_limit(&self) -> Result<Option<Position>, SnapshotError> {
        let paths = self.paths()?;
        let [newest, older] = match paths.get(..KEPT) {
            Some([newest, older]) => [verify(newest)?, verify(older)?],
            Some(_) | None => return Ok(None),
        };
        Ok(Some(newest.position.min(older.position)))
    }

    pub(super) fn begin_receiving(&self) -> Result<SnapshotHandle, SnapshotError> {
        let path = self.dir.join(RECEIVING_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|err| io_error("create", &path, err))?;
        Ok(SnapshotHandle { file })
    }
}

/// Reads a whole snapshot and checks every byte.
///
/// # Errors
/// `Damaged` with file and offset; `Newer`; `Io`.
pub fn verify(path: &Path) -> Result<SnapshotInfo, SnapshotError> {
    let mut reader = SnapshotReader::open(path)?;
    while reader.next_block()?.is_some() {}
    Ok(reader.info)
}

/// Term and index that the snapshot's name says, whatever is in it.
pub(super) fn named(path: &Path) -> Option<(u64, u64)> {
    let (index, term) = path.file_stem()?.to_str()?.split_once('-')?;
    Some((term.parse().ok()?, index.parse().ok()?))
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { doing, path: path.to_owned(), source }
}

struct BlockWriter {
    file: io::BufWriter<File>,
    position: Position,
    group_state: Bytes,
    chain: u32,
    block: Vec<u8>,
    content_bytes: u64,
}

impl BlockWriter {
    fn new(file: File, position: Position, group_state: Bytes) -> io::Result<Self> {
        if group_state.len() > GROUP_STATE_BYTES_MAX {
            return Err(io::Error::other("the group's state is too large"));
        }
        let mut file = io::BufWriter::with_capacity(1 << 20, file);
        // Written last, when the length is known; until then the file has no header and is nothing.
        file.write_all(&vec![0; HEADER_FIXED_BYTES + group_state.len()])?;
        let chain = start_chain(position, &group_state);
        Ok(Self { file, position, group_state, chain, block: Vec::new(), content_bytes: 0 })
    }

    fn write_block(&mut self) -> io::Result<()> {
        let block_bytes = u32::try_from(self.block.len()).map_err(io::Error::other)?;
        self.chain = block_crc(self.chain, block_bytes, &self.block);
        self.file.write_all(&self.chain.to_le_bytes())?;
        self.file.write_all(&block_bytes.to_le_bytes())?;
        self.file.write_all(&self.block)?;
        self.content_bytes += u64::from(block_bytes);
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<File> {
        if !self.block.is_empty() {
            self.write_block()?;
        }
        self.write_block()?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let header = encode_header(self.position, &self.group_state, self.content_bytes);
        file.write_all_at(&header, 0)?;
        Ok(file)
    }
}

impl Write for BlockWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK_BYTES {
            self.write_block()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Binds the blocks to their header, so that no block of another snapshot fits.
fn start_chain(position: Position, group_state: &[u8]) -> u32 {
    let header = encode_header(position, group_state, 0);
    crc32c::crc32c(&header[16..])
}

fn block_crc(chain: u32, block_bytes: u32, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(chain, &block_bytes.to_le_bytes()), content)
}

fn encode_header(position: Position, group_state: &[u8], content_bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_FIXED_BYTES + group_state.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for number in [position.term, position.node, position.index, content_bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let group_state_bytes = u32::try_from(group_state.len()).expect("bounded when it was given");
    out.extend_from_slice(&group_state_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(group_state);
    // Within the fixed part, which was just written.
    let crc = crc32c::crc32c(&out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a snapshot's content; every block is checked before a byte of it is given out.
#[derive(Debug)]
pub struct SnapshotReader {
    file: io::BufReader<File>,
    /// What the header says.
    pub info: SnapshotInfo,
    chain: u32,
    offset: u64,
    content_read: u64,
    block: Vec<u8>,
    block_at: usize,
    finished: bool,
}

impl SnapshotReader {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// `Damaged`, `Newer`, `Io`.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let error = |err| io_error(READING, path, err);
        let damaged = |reason| SnapshotError::Damaged { file: path.to_owned(), offset: 0, reason };
        let file = File::open(path).map_err(error)?;
        let mut file = io::BufReader::with_capacity(1 << 20, file);
        let mut header = vec![0; HEADER_FIXED_BYTES];
        if read_full(&mut file, &mut header).map_err(error)? < header.len() {
            return Err(damaged("the file is shorter than a header"));
        }
        if header[..8] != MAGIC {
            return Err(damaged("this is not a snapshot"));
        }
        let version = u32_at(&header, 8);
        // Of another format nothing else can be said, unless the rest is as in this one.
        let damaged = |reason| match version {
            0..=VERSION => damaged(reason),
            version => SnapshotError::Newer { file: path.to_owned(), version },
        };
        let group_state_bytes = u32_at(&header, 48) as usize;
        if group_state_bytes > GROUP_STATE_BYTES_MAX {
            return Err(damaged("the header's length is impossible"));
        }
        header.resize(HEADER_FIXED_BYTES + group_state_bytes, 0);
        let rest = &mut header[HEADER_FIXED_BYTES..];
        if read_full(&mut file, rest).map_err(error)? < group_state_bytes {
            return Err(damaged("the file ends within the header"));
        }
        if crc32c::crc32c(&header[16..]) != u32_at(&header, 12) {
            return Err(damaged("the header's checksum does not match"));
        }
        if version != VERSION {
            let reason = "the format's number is damaged, all else in the header is whole";
            return Err(SnapshotError::Damaged { file: path.to_owned(), offset: 8, reason });
        }
        let position = Position {
            term: u64_at(&header, 16),
            node: u64_at(&header, 24),
            index: u64_at(&header, 32),
        };
        let content_bytes = u64_at(&header, 40);
        let group_state = Bytes::copy_from_slice(&header[HEADER_FIXED_BYTES..]);
        Ok(Self {
            file,
            chain: start_chain(position, &group_state),
            info: SnapshotInfo { position, content_bytes, path: path.to_owned(), group_state },
            offset: header.len() as u64,
            content_read: 0,
            block: Vec::new(),
            block_at: 0,
            finished: false,
        })
    }

    /// Reads the next block into `self.block`; `None` behind the last one.
    fn next_block(&mut self) -> Result<Option<()>, SnapshotError> {
        if self.finished {
            return Ok(None);
        }
        let path = self.info.path.clone();
        let offset = self.offset;
        let error = |err| io_error(READING, &path, err);
        let damaged = |reason| Err(SnapshotError::Damaged { file: path.clone(), offset, reason });
        let mut head = [0; 8];
        if read_full(&mut self.file, &mut head).map_err(error)? < head.len() {
            return damaged("the file ends before its trailer");
        }
        let block_bytes = u32_at(&head, 4);
        if block_bytes as usize > BLOCK_BYTES {
            return damaged("the block's length is impossible");
        }
        self.block.resize(block_bytes as usize, 0);
        self.block_at = 0;
        if read_full(&mut self.file, &mut self.block).map_err(error)? < self.block.len() {
            return damaged("the file ends within a block");
        }
        self.chain = block_crc(self.chain, block_bytes, &self.block);
        if self.chain != u32_at(&head, 0) {
            return damaged("the block's checksum does not match");
        }
        self.offset += 8 + u64::from(block_bytes);
        self.content_read += u64::from(block_bytes);
        if block_bytes > 0 {
            return Ok(Some(()));
        }
        self.finished = true;
        if self.content_read != self.info.content_bytes {
            return damaged("the content is not as long as the header says");
        }
        let mut beyond = [0];
        if read_full(&mut self.file, &mut beyond).map_err(error)? > 0 {
            return damaged("the file goes on behind its trailer");
        }
        Ok(None)
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.block_at == self.block.len()
            && self.next_block().map_err(io::Error::other)?.is_none()
        {
            return Ok(0);
        }
        let left = &self.block[self.block_at..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.block_at += count;
        Ok(count)
    }
}

fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

/// `at` is a constant within a header that was read whole.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// An open snapshot file as openraft reads and writes it, in pieces of a few mebibytes and on the
/// group's own runtime, where a disk access may block.
#[derive(Debug)]
pub struct SnapshotHandle {
    pub(super) file: File,
}

impl SnapshotHandle {
    pub(super) fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(|err| io_error("open", path, err))?;
        Ok(Self { file })
    }
}

impl AsyncRead for SnapshotHandle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.file.read(buffer.initialize_unfilled())?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SnapshotHandle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.file.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for SnapshotHandle {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        self.file.seek(to).map(|_| ())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(self.file.stream_position())
    }
}
