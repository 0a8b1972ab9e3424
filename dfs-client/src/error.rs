//! What goes wrong for a caller, by what it does next.

use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_core::namespace::NamespaceError;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// Understood and refused: asking again gives the same answer.
    #[error(transparent)]
    Refused(#[from] NamespaceError),
    /// Outcome unknown; retries repeated the request id.
    #[error("no master answered within {waited:?}")]
    MasterSilent { waited: Duration },
    #[error("no replica of chunk {} at version {} answered", chunk.0, wanted.0)]
    NoCurrentReplica { chunk: ChunkId, wanted: ChunkVersion },
    #[error("chunk unavailable for {waited:?}: {reason}")]
    ChunkUnavailable { reason: String, waited: Duration },
    #[error("no space: {reason}")]
    NoSpace { reason: String },
    #[error("outcome unknown")]
    OutcomeUnknown,
    #[error("interrupted")]
    Interrupted,
    #[error("protocol: {reason}")]
    Protocol { reason: String },
    #[error("closed")]
    Closed,
}
