//! What a caller of the store does next.

use std::io;
use std::path::PathBuf;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, FsId};
use dfs_service::page::Page;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no replica of chunk {} here", chunk.0)]
    NotFound { chunk: ChunkId },
    /// A higher version was promised: nothing lower is accepted any more.
    #[error("chunk {}: version {} was promised", chunk.0, promised.0)]
    Fenced { chunk: ChunkId, promised: ChunkVersion },
    #[error("chunk {}: asked for version {}, have version {}", chunk.0, asked.0, have.0)]
    WrongVersion { chunk: ChunkId, have: ChunkVersion, asked: ChunkVersion },
    /// Operations before this one are missing. Nothing changed.
    #[error("chunk {}: sequence gap, have {have_seq}", chunk.0)]
    Gap { chunk: ChunkId, have_seq: u64 },
    /// May lack operations it once acknowledged; ends by adoption only.
    #[error("chunk {} is not current", chunk.0)]
    NotCurrent { chunk: ChunkId },
    /// Its checksum is wrong or the disk does not give it: read it elsewhere, repair it here.
    #[error("chunk {}: block {index} is bad", chunk.0)]
    BadBlock { chunk: ChunkId, index: u32 },
    /// Nothing changed; works again when space comes back.
    #[error("no space: {need} bytes needed, {free_bytes} free")]
    NoSpace { free_bytes: u64, need: u64 },
    /// Never possible: beyond the chunk's size, or more than one record holds.
    #[error("chunk {}: {asked} bytes, at most {limit}", chunk.0)]
    TooLarge { chunk: ChunkId, asked: u64, limit: u64 },
    /// The chunk's table is full: wait until another client is done.
    #[error("chunk {}: too many clients, {client} must wait", chunk.0)]
    TooManyClients { chunk: ChunkId, client: ClientId },
    /// Damage in what was on disk already, not a crash's torn end. `accept_journal_loss` opens nevertheless.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt { file: String, offset: u64, what: String },
    #[error("{dir} belongs to file system {found}, not {asked}", dir = dir.display())]
    Foreign { dir: PathBuf, found: FsId, asked: FsId },
    #[error("{dir} is no chunkserver disk yet, and no file system was named", dir = dir.display())]
    Unlabelled { dir: PathBuf },
    #[error("{file} has format {found}, newest known is {known}")]
    NewerFormat { file: String, found: u32, known: u32 },
    #[error("{dir} is in use by another process", dir = dir.display())]
    InUse { dir: PathBuf },
    /// It cannot be opened without room, and nothing that was put aside is left to be removed.
    #[error(
        "the disk of {dir} is full: {error}; no replica that was put aside is left to be removed: make some MiB of room there, \
         but remove nothing in {dir} itself, and start it again", dir = dir.display()
    )]
    DiskFull { dir: PathBuf, error: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Which section of the manual helps who starts a server.
    #[must_use]
    pub fn page(&self) -> Option<Page> {
        match self {
            Self::Corrupt { .. } => Some(Page::DamagedLog),
            Self::Foreign { .. } | Self::Unlabelled { .. } | Self::NewerFormat { .. } => {
                Some(Page::DirectoryRefused)
            }
            Self::NoSpace { .. } | Self::DiskFull { .. } => Some(Page::FullDisk),
            Self::Io(error) => Page::of_disk(error),
            Self::BadBlock { .. } => Some(Page::BadBlock),
            Self::NotFound { .. }
            | Self::Fenced { .. }
            | Self::WrongVersion { .. }
            | Self::Gap { .. }
            | Self::NotCurrent { .. }
            | Self::TooLarge { .. }
            | Self::TooManyClients { .. }
            | Self::InUse { .. } => None,
        }
    }

    /// A second one for a second waiter: an `io::Error` keeps its kind and text.
    #[must_use]
    pub(crate) fn again(err: &io::Error) -> Self {
        Self::Io(io::Error::new(err.kind(), err.to_string()))
    }
}
