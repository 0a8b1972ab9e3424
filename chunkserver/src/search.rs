//! `dfs grep` on the server: where a word stands in a range of a replica, under the rules of every other read.

use std::sync::Arc;

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::data_rpc::{DataFailure, DataReply, SEARCH_BYTES_MAX, encode_hits};
use dfs_proto::search::{Needle, Seams};

use crate::data::read;
use crate::node::Node;

/// Looked through at once: so much memory a connection takes, and so many hits come after the last look at their number.
const STEP_BYTES: u32 = 256 << 10;
/// Offsets in one answer before it goes out: 4 bytes each, far below what a frame may have.
const HITS_ENOUGH: usize = 128 << 10;

/// Bytes `offset..offset+len` of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) chunk: ChunkId,
    pub(crate) version: ChunkVersion,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// The answer, and its payload.
///
/// # Errors
/// As of a read; `BadRequest` for a word or a length out of range.
pub(crate) fn search(
    node: &Arc<Node>,
    range: Range,
    word: &[u8],
    whole: bool,
    count_only: bool,
    buffer: &mut Vec<u8>,
) -> Result<(DataReply, Vec<u8>), DataFailure> {
    let Range { chunk, version, offset, len } = range;
    let refused = |reason: String| DataFailure::BadRequest { reason };
    let needle = Needle::new(word, whole).map_err(|error| refused(format!("search: {error}")))?;
    if SEARCH_BYTES_MAX < len {
        return Err(refused(format!("search of {len} bytes, at most {SEARCH_BYTES_MAX}")));
    }
    let mut seams = Seams::of_part(&needle);
    let (mut head, mut hits, mut count, mut scanned) = (Vec::new(), Vec::new(), 0, 0);
    let replica_len = loop {
        let step = STEP_BYTES.min(len - scanned);
        let at = offset.saturating_add(u64::from(scanned));
        let replica_len = read(node, chunk, version, at, step, buffer)?;
        let got = u32::try_from(buffer.len()).unwrap_or(step);
        node.metrics.searched_bytes.inc_by(u64::from(got));
        head.extend(buffer.iter().take(needle.edge() - head.len()));
        seams.bytes(buffer, |at| {
            count += 1;
            // Below `len`, 32 bits.
            hits.extend(u32::try_from(at).ok().filter(|_| !count_only));
        });
        scanned += got;
        if got < step || scanned == len || HITS_ENOUGH <= hits.len() {
            break replica_len;
        }
    };
    let tail = seams.tail().to_vec();
    let reply = DataReply::Search { replica_len, scanned, hits: count, head, tail };
    Ok((reply, encode_hits(&hits)))
}
