//! What goes wrong for a caller of the file system: one variant per thing the caller does next.

use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_core::namespace::NamespaceError;

/// What a caller of the file system sees go wrong. It can be kept and reported to several callers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The request was understood and refused. Asking again gives the same answer.
    #[error(transparent)]
    Refused(#[from] NamespaceError),
    /// Outcome unknown. Retries repeated the request id, so the master recognises a second arrival.
    #[error("no master answered within {waited:?}")]
    MasterSilent { waited: Duration },
    /// Every reachable replica is older than the master says this chunk is, or cannot be read.
    #[error("no replica of chunk {} at version {} answered", chunk.0, wanted.0)]
    NoCurrentReplica { chunk: ChunkId, wanted: ChunkVersion },
    /// Too few members of a chunk were reachable for so long. Nothing is lost by that; asking later may work.
    #[error("{reason} (waited {waited:?})")]
    ChunkUnavailable { reason: String, waited: Duration },
    /// Nothing of the refused bytes was stored.
    #[error("no space: {reason}")]
    NoSpace { reason: String },
    /// It may or may not have happened, and nobody can tell any more.
    #[error("outcome unknown: the result of this request is gone")]
    OutcomeUnknown,
    /// The caller stopped waiting for a lock: it was not granted.
    #[error("interrupted")]
    Interrupted,
    /// The other side said what makes no sense here.
    #[error("{reason}")]
    Protocol { reason: String },
    /// The session was closed.
    #[error("the session is closed")]
    Closed,
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, ClientError>;
