use std::io;
use std::path::PathBuf;

use super::disk::LogDisk;

/// Why the log cannot be used, by what an operator does next.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The directory both wanted.
        dir: PathBuf,
    },
    /// Written by a newer version of this program, which has to be used.
    #[error(
        "{} has log format {version}, this program reads formats up to {supported}", file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Format found.
        version: u32,
        /// Newest format this program reads.
        supported: u32,
    },
    /// Something that was durable no longer reads back. Opening with `accept_loss` cuts the log
    /// there.
    #[error("{} is damaged at byte {offset}: {reason}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// First byte that is not part of the log as it was written.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// As [`Self::Damaged`], so early that cutting there would leave no log at all: it is not done, whoever accepts it.
    #[error(
        "{} is damaged at byte {offset}: {reason}; nothing of the file system would be left without what lies behind, so it was not cut: \
         `dfs master restore` makes the directory anew from a chunkserver's copy", file.display()
    )]
    NothingLeft {
        /// The first segment.
        file: PathBuf,
        /// First byte that is not part of the log as it was written.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An earlier write or sync failed, or the log was closed. Nothing of this call happened.
    #[error("the log no longer takes writes")]
    Stopped,
    /// Entries must be handed in by rising index, behind the last one. Nothing of this call
    /// happened.
    #[error("entry {index} does not follow the log's last entry {last}")]
    OutOfOrder {
        /// Index of the refused entry.
        index: u64,
        /// Index of the last entry.
        last: u64,
    },
    /// Greater than [`RECORD_PAYLOAD_BYTES_MAX`]. Nothing of this call happened.
    #[error("an entry of {payload_bytes} bytes is too large for the log")]
    TooLarge {
        /// Size of the refused payload.
        payload_bytes: usize,
    },
}

impl JournalError {
    pub(super) fn io(
        doing: &'static str,
        disk: &dyn LogDisk,
        name: &str,
        source: io::Error,
    ) -> Self {
        Self::Io { doing, path: disk.path(name), source }
    }
}
