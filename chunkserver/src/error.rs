//! The store's errors as the data protocol says them.

use dfs_core::ids::{ChunkVersion, ServerId};
use dfs_proto::data_rpc::DataFailure;

use crate::store::StoreError;

/// What the asker is told. `asked`: the version it named.
pub(crate) fn failure(server: ServerId, asked: ChunkVersion, error: &StoreError) -> DataFailure {
    match error {
        StoreError::NotFound { .. } => DataFailure::NoReplica,
        StoreError::Fenced { promised, .. } => {
            DataFailure::StaleVersion { asked: asked.0, promised: promised.0, have: 0 }
        }
        StoreError::WrongVersion { have, asked, .. } => {
            DataFailure::StaleVersion { asked: asked.0, promised: 0, have: have.0 }
        }
        StoreError::Gap { have_seq, .. } => DataFailure::Gap { have: *have_seq },
        StoreError::NotCurrent { .. } => DataFailure::NotCurrent,
        StoreError::BadBlock { index, .. } => DataFailure::BadBlock { block: *index },
        StoreError::NoSpace { .. } => DataFailure::NoSpace { server },
        StoreError::TooManyClients { .. } => DataFailure::Busy,
        StoreError::TooLarge { .. } => DataFailure::BadRequest { reason: error.to_string() },
        StoreError::Corrupt { .. }
        | StoreError::Foreign { .. }
        | StoreError::Unlabelled { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::InUse { .. }
        | StoreError::DiskFull { .. }
        | StoreError::Io(_) => DataFailure::Disk { reason: error.to_string() },
    }
}
