//! Why writing to a chunk stopped, and who is to blame.

use std::fmt;
use std::io;
use std::time::Duration;

use dfs_proto::data_rpc::DataFailure;
use dfs_proto::meta_rpc::{ChunkLayout, FailedMember};

use crate::error::ClientError;

/// Why an attempt ended.
pub(super) enum Trouble {
    Lost(io::Error),
    Failed(DataFailure),
}

/// An attempt that ended.
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    /// Whom the master should leave out, or give another's place.
    pub(super) member: Option<FailedMember>,
    /// The operation that met it.
    pub(super) counter: Option<u64>,
}

/// Whom the master should leave out of the next configuration.
pub(super) fn failed_member(
    layout: Option<&ChunkLayout>,
    trouble: &Trouble,
) -> Option<FailedMember> {
    let layout = layout?;
    let of = |server| Some(FailedMember { version: layout.version, server, full: false });
    match trouble {
        Trouble::Failed(DataFailure::MemberFailed { server, .. }) => of(*server),
        Trouble::Failed(DataFailure::NoSpace { server }) => {
            Some(FailedMember { version: layout.version, server: *server, full: true })
        }
        Trouble::Failed(
            DataFailure::StaleVersion { .. }
            | DataFailure::StaleEpoch { .. }
            | DataFailure::Busy
            | DataFailure::BadRequest { .. }
            | DataFailure::ChunkFull { .. }
            | DataFailure::OutcomeUnknown,
        ) => None,
        // A primary that started again never leads this version again.
        Trouble::Failed(
            DataFailure::NoReplica
            | DataFailure::NotCurrent
            | DataFailure::NotPrimary
            | DataFailure::BadBlock { .. }
            | DataFailure::Gap { .. }
            | DataFailure::Fenced { .. }
            | DataFailure::Disk { .. },
        )
        | Trouble::Lost(_) => of(layout.primary),
    }
}

impl Trouble {
    /// What is told when it does not end.
    pub(super) fn to_error(&self, waited: Duration) -> ClientError {
        match self {
            Self::Failed(DataFailure::NoSpace { server }) => {
                ClientError::NoSpace { reason: format!("{server} is full") }
            }
            Self::Failed(_) | Self::Lost(_) => {
                ClientError::ChunkUnavailable { reason: self.to_string(), waited }
            }
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Failed(DataFailure::Busy | DataFailure::StaleVersion { .. }))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => error.fmt(f),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}
