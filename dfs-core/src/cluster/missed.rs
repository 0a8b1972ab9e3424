//! Replicas that a server had before it started again, and has no more.

use std::collections::{BTreeMap, BTreeSet};

use super::Cluster;
use crate::ids::{ChunkId, ServerId};

/// Nobody told it to delete them, or the chunk map would not ask for them any more.
#[derive(Clone, Default, Debug)]
pub(super) struct Missed {
    expected: BTreeMap<ServerId, BTreeSet<ChunkId>>,
    missed: BTreeSet<ChunkId>,
}

impl Missed {
    /// `server` starts again, on the same disk; it had these.
    pub(super) fn expect(&mut self, server: ServerId, chunks: impl Iterator<Item = ChunkId>) {
        self.expected.entry(server).or_default().extend(chunks);
    }

    /// All that `server` has is reported by now.
    pub(super) fn reported(&mut self, server: ServerId, has: impl Fn(ChunkId) -> bool) {
        let expected = self.expected.remove(&server).unwrap_or_default();
        self.missed.extend(expected.into_iter().filter(|chunk| !has(*chunk)));
    }
}

impl Cluster {
    /// Whether a server that started again did not find its replica of `chunk`.
    #[must_use]
    pub fn has_missed(&self, chunk: ChunkId) -> bool {
        self.missed.missed.contains(&chunk)
    }
}
