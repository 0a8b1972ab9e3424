//! The apply thread's side of the store: committed bytes become commands, outcomes become bytes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dfs_core::command::Command;
use dfs_core::meta;
use dfs_proto::codec::Wire;

use crate::group::{Applied, Applier, SnapshotWriter};
use crate::store::{self, RedbStore};

/// Applies entries to the store; the group calls it from one thread at a time.
#[derive(Debug)]
pub struct StoreApplier {
    store: Arc<RedbStore>,
}

impl StoreApplier {
    #[must_use]
    pub fn new(store: Arc<RedbStore>) -> Self {
        Self { store }
    }
}

fn to_store(at: &Applied) -> store::Applied {
    store::Applied { term: at.term, index: at.index, group_state: at.group_state.to_vec() }
}

impl Applier for StoreApplier {
    fn applied(&self) -> Option<Applied> {
        self.store.applied().map(|at| Applied {
            term: at.term,
            index: at.index,
            group_state: at.group_state.into(),
        })
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        self.store.batch(&to_store(at), |store| {
            commands
                .iter()
                .map(|bytes| match Command::from_bytes(bytes) {
                    Ok(command) => Bytes::from(meta::apply(store, &command).to_bytes()),
                    Err(error) => {
                        // Applying something else than what was committed would split the state from the log.
                        tracing::error!(%error, index = at.index, "a committed command cannot be read: written by a newer version?");
                        std::process::abort();
                    }
                })
                .collect()
        })
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        self.store.snapshot()
    }

    fn install(&mut self, at: &Applied, from: &mut dyn io::Read) -> io::Result<()> {
        self.store.install(&to_store(at), from)
    }
}
