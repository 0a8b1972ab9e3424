//! One piece of a chunk looked through by a server that has it: what comes back is where the word stands.

use dfs_core::ids::InodeNo;
use dfs_proto::data_rpc::{DataCall, DataReply, decode_hits};
use dfs_proto::meta_rpc::ChunkLayout;
use dfs_proto::search::Needle;

use super::{ChunkIo, Patience};
use crate::error::{ClientError, Result};
use crate::servers::reply_of;

/// The first `len` bytes of what was asked for.
#[derive(Debug)]
pub(crate) enum Searched {
    /// Nobody wrote them.
    Zeros { len: u32 },
    /// `hits` that lie inside, as distances from the first byte, unless only their number was asked for.
    Hits { len: u32, count: u64, hits: Vec<u32>, head: Vec<u8>, tail: Vec<u8> },
}

impl Searched {
    pub(crate) fn len(&self) -> u32 {
        match self {
            Self::Zeros { len } | Self::Hits { len, .. } => *len,
        }
    }
}

impl ChunkIo {
    /// Has `len` bytes, more than none, at `offset` within chunk `index` looked through. What is answered may end sooner.
    pub(crate) fn search_chunk(
        &self,
        ino: InodeNo,
        index: u64,
        (offset, len): (u64, u32),
        (needle, count_only): (&Needle, bool),
        patience: &Patience,
    ) -> Result<Searched> {
        let call = |layout: &ChunkLayout| DataCall::Search {
            chunk: layout.chunk,
            version: layout.version,
            offset,
            len,
            word: needle.word().to_vec(),
            whole: needle.is_whole(),
            count_only,
        };
        let Some(frame) = self.ask_replicas(ino, index, (offset, len), &call, patience)? else {
            return Ok(Searched::Zeros { len });
        };
        let nonsense = |what: String| ClientError::Protocol { reason: format!("search: {what}") };
        let reply = reply_of(&frame).map_err(|error| nonsense(error.to_string()))?;
        let DataReply::Search { replica_len, scanned, hits: count, head, tail } = reply else {
            return Err(nonsense(format!("a server answered {reply:?}")));
        };
        if scanned == 0 && replica_len <= offset {
            return Ok(Searched::Zeros { len });
        }
        let hits = decode_hits(&frame.payload, scanned)
            .map_err(|error| nonsense(format!("a server answered {error}")))?;
        let edge = needle.edge().min(usize::try_from(scanned).unwrap_or(usize::MAX));
        let told = if count_only { 0 } else { count };
        if !(1..=len).contains(&scanned)
            || [head.len(), tail.len()] != [edge; 2]
            || hits.len() as u64 != told
        {
            return Err(nonsense(format!(
                "a server answered {scanned} of {len} bytes, {count} hits, {} listed, edges of {} and {} bytes",
                hits.len(),
                head.len(),
                tail.len()
            )));
        }
        Ok(Searched::Hits { len: scanned, count, hits, head, tail })
    }
}
