//! The records of a chunk, as a server that has it lists them.

use dfs_core::ids::InodeNo;
use dfs_proto::data_rpc::{DataCall, DataReply};
use dfs_proto::meta_rpc::ChunkLayout;
use dfs_proto::record_list::RecordList;

use super::{ChunkIo, Patience};
use crate::error::{ClientError, Result};
use crate::servers::reply_of;

/// Records of one chunk, in order.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) records: RecordList,
    /// There are others behind these.
    pub(crate) more: bool,
    /// False: some of the chunk may not be in the server's list.
    pub(crate) all_known: bool,
}

impl ChunkIo {
    /// Records that begin at `from` of chunk `index` or behind it, not necessarily all. `None`: nobody wrote the chunk.
    pub(crate) fn chunk_records(
        &self,
        ino: InodeNo,
        index: u64,
        from: u64,
        patience: &Patience,
    ) -> Result<Option<Listed>> {
        let call = |layout: &ChunkLayout| DataCall::Records {
            chunk: layout.chunk,
            version: layout.version,
            from,
        };
        let Some(frame) = self.ask_replicas(ino, index, (from, 1), &call, patience)? else {
            return Ok(None);
        };
        let nonsense = |what: String| ClientError::Protocol { reason: format!("records: {what}") };
        let reply = reply_of(&frame).map_err(|error| nonsense(error.to_string()))?;
        let DataReply::Records { replica_len: _, more, all_known } = reply else {
            return Err(nonsense(format!("a server answered {reply:?}")));
        };
        let records = RecordList::decode(&frame.payload)
            .map_err(|error| nonsense(format!("a server answered {error}")))?;
        let early = records.iter().next().is_some_and(|record| record.offset < from);
        // Asked again with the same `from` it would say the same.
        if early || more && records.is_empty() {
            return Err(nonsense(format!("a server answered {records:?} from {from} on")));
        }
        Ok(Some(Listed { records, more, all_known }))
    }
}
