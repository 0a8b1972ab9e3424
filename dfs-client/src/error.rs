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

/// The error of bytes that were written behind and lost: told once to the next writer, and once to whoever syncs or
/// closes. A write that fails may reach its program as a short one without the error, so telling writers is not enough.
#[derive(Default, Debug)]
pub(crate) struct Kept {
    to_writer: Option<ClientError>,
    to_sync: Option<ClientError>,
}

impl Kept {
    pub(crate) fn keep(&mut self, error: ClientError) {
        self.to_writer.get_or_insert_with(|| error.clone());
        self.to_sync.get_or_insert(error);
    }

    pub(crate) fn tell_writer(&mut self) -> Result<()> {
        self.to_writer.take().map_or(Ok(()), Err)
    }

    pub(crate) fn tell_sync(&mut self) -> Result<()> {
        self.to_writer = None;
        self.to_sync.take().map_or(Ok(()), Err)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.to_sync.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_told_to_a_writer_is_still_told_to_whoever_syncs() {
        let mut kept = Kept::default();
        kept.keep(ClientError::OutcomeUnknown);
        kept.keep(ClientError::Closed);
        assert_eq!(kept.tell_writer(), Err(ClientError::OutcomeUnknown));
        assert_eq!(kept.tell_writer(), Ok(()));
        assert_eq!(kept.tell_sync(), Err(ClientError::OutcomeUnknown));
        assert_eq!((kept.tell_sync(), kept.is_empty()), (Ok(()), true));
    }

    #[test]
    fn an_error_told_to_whoever_syncs_is_over() {
        let mut kept = Kept::default();
        kept.keep(ClientError::OutcomeUnknown);
        assert_eq!(kept.tell_sync(), Err(ClientError::OutcomeUnknown));
        assert_eq!(kept.tell_writer(), Ok(()));
    }
}
