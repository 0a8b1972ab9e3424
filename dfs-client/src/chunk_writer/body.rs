//! What is sent for a chunk, and what appends are answered.

use std::sync::Arc;

use dfs_proto::data_rpc::WireMutation;

#[cfg(doc)]
use super::ChunkWriter;

/// What an append did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Appended {
    /// `len` bytes went to `offset` within the chunk.
    At { offset: u64, len: u64 },
    /// The same, and the rest belongs at the beginning of the next chunk, which is kept for it until
    /// [`ChunkWriter::crossed`] is called with this counter.
    Crossing { offset: u64, len: u64, counter: u64, order: Order },
    /// Nothing fits here any more; the first `carry` bytes of the next chunk are somebody's.
    Full { carry: u64 },
    /// The chunk was cut away under the append: where the file ends now must be asked again.
    Moved,
}

/// Among the truncations of its file, where an append that crossed a chunk's end stands; see
/// [`dfs_core::cuts::Cuts::limit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Order {
    pub(crate) begun: u64,
    pub(crate) stored: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// `awaited`: by somebody who asks again, by another number, if it is taken out.
    Write {
        offset: u64,
        data: Arc<Vec<u8>>,
        awaited: bool,
    },
    /// `at_least` as the file was after `cuts` truncations.
    Append {
        data: Arc<Vec<u8>>,
        record: bool,
        at_least: u64,
        cuts: u64,
    },
    /// The rest of an append whose first part is in the chunk before this one.
    Carried {
        data: Arc<Vec<u8>>,
        order: Order,
    },
    Zero {
        offset: u64,
        len: u64,
        awaited: bool,
    },
}

impl Body {
    pub(super) fn mutation(&self) -> WireMutation {
        match self {
            Self::Write { offset, .. } => WireMutation::Write { offset: *offset },
            Self::Append { record, at_least, .. } => {
                WireMutation::Append { record: *record, at_least: *at_least }
            }
            Self::Carried { .. } => WireMutation::Write { offset: 0 },
            Self::Zero { offset, len, .. } => WireMutation::Zero { offset: *offset, len: *len },
        }
    }

    pub(super) fn data(&self) -> Option<&Arc<Vec<u8>>> {
        match self {
            Self::Write { data, .. } | Self::Append { data, .. } | Self::Carried { data, .. } => {
                Some(data)
            }
            Self::Zero { .. } => None,
        }
    }

    pub(super) fn is_append(&self) -> bool {
        matches!(self, Self::Append { .. })
    }

    /// Whether somebody waits for this very operation.
    pub(super) fn is_awaited(&self) -> bool {
        match self {
            Self::Append { .. } => true,
            Self::Write { awaited, .. } | Self::Zero { awaited, .. } => *awaited,
            Self::Carried { .. } => false,
        }
    }

    /// Takes up the place of a refused operation: zeros over nothing.
    pub(super) fn nothing() -> Self {
        Self::Zero { offset: 0, len: 0, awaited: false }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Zero { len: 0, .. })
    }
}
