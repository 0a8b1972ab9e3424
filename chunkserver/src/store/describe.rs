//! What a replica is besides its bytes: checksums, the clients it remembers, and the records of a record log.

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::chunk_file::ClientTable;
use dfs_proto::data_rpc::RECORDS_BYTES_MAX;
use dfs_proto::record_list::RecordList;

use super::ReplicaReport;
use super::engine::Engine;
use super::error::StoreError;

/// All of a replica but its bytes, of one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    pub report: ReplicaReport,
    /// CRC32C of each block.
    pub sums: Vec<u32>,
    pub clients: ClientTable,
    pub records: RecordList,
}

/// Some of the records of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedRecords {
    pub replica_len: u64,
    pub records: RecordList,
    /// There are others behind these.
    pub more: bool,
    /// False: the replica has bytes that may be records appended before lists of them were kept.
    pub all_known: bool,
}

impl Engine {
    /// See `Store::describe`.
    pub(super) fn describe(&self, chunk: ChunkId) -> Result<Description, StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let replica = state.held(chunk)?;
        Ok(Description {
            report: replica.report(chunk),
            sums: replica.sums.clone(),
            clients: replica.clients.clone(),
            records: replica.records.clone(),
        })
    }

    /// See `Store::records`.
    pub(super) fn records(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        from: u64,
    ) -> Result<ListedRecords, StoreError> {
        let cell = self.cell(chunk)?;
        let state = cell.read();
        let replica = state.readable(chunk, version)?;
        let mut records = RecordList::default();
        let mut wanted = replica.records.iter().skip_while(|record| record.offset < from);
        let more = wanted
            .any(|record| RECORDS_BYTES_MAX <= records.as_bytes().len() || !records.push(record));
        Ok(ListedRecords {
            replica_len: replica.len,
            records,
            more,
            all_known: replica.records.covers(replica.len, replica.spec.chunk_size),
        })
    }

    /// See `Store::takes_no_records`.
    pub(super) fn takes_no_records(&self, chunk: ChunkId) -> bool {
        let Ok(cell) = self.cell(chunk) else { return false };
        cell.read().replica.as_ref().is_some_and(|replica| replica.records.is_full())
    }
}
