//! Taking up a new version with the content of a named source (PROTOCOL §5.2, step 4), and being that source.
//!
//! The source serves only the very position that was reported when it promised: once promised nothing lower is
//! applied there, so that position stays until it adopts itself. Blocks with equal checksums are not sent.

use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, ServerId};
use dfs_proto::chunk_file::BLOCK_BYTES_MAX;
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{
    DataCall, DataFailure, DataReply, DecodedSums, Peer, decode_sums, encode_sums,
};
use dfs_proto::frame_conn::LoneClient;
use dfs_proto::record_list::RecordList;
use dfs_service::canary;
use dfs_service::conn::{Door, dial};

use crate::node::Node;
use crate::peer::{answer_of, reply_of};
use crate::source_links::ask_for_sums;
use crate::store::{ChunkSpec, ClientTable, Description, Position, ReplicaReport};

const CALL_MAX: Duration = Duration::from_secs(20);

/// Where the content of the new version comes from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) server: ServerId,
    pub(crate) address: String,
    pub(crate) position: Position,
    pub(crate) digest: u32,
    /// Another member can be the source as well.
    pub(crate) another: bool,
}

/// Why a version is not taken up.
#[derive(Debug)]
pub(crate) enum NotAdopted {
    /// The source's bytes of a block are bad; those here are good, though the block may lack what nobody was told is
    /// stored. With the source as it is they would be given up.
    SourceIsFlawed(String),
    Other(String),
}

impl From<String> for NotAdopted {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

/// Makes this replica what `source` is, in `version`, and says how many bytes had to be fetched for it. Blocking;
/// durable when it returns.
///
/// # Errors
/// Text for the master's log; nothing has changed then.
pub(crate) fn adopt(
    node: &Node,
    chunk: ChunkId,
    version: ChunkVersion,
    spec: &ChunkSpec,
    source: Option<&Source>,
) -> Result<(ReplicaReport, u64), NotAdopted> {
    let have = node
        .store
        .report(chunk)
        .ok_or_else(|| "no replica of this chunk here, and none promised".to_owned())?;
    let done = have.position == Position { version, seq: 0 } && have.promised == version;
    let Some(source) = source else {
        // Nobody ever wrote anything: everybody takes up nothing.
        if have.len != 0 || have.position.seq != 0 {
            return Err(format!("has {} bytes at {:?}", have.len, have.position).into());
        }
        let adopted = if done { Ok(have) } else { node.store.adopt_self(chunk, version) };
        return adopted.map(|report| (report, 0)).map_err(|e| e.to_string().into());
    };
    if canary::sings("adopts-its-own") && !done {
        let adopted = node.store.adopt_self(chunk, version);
        return adopted.map(|report| (report, 0)).map_err(|e| e.to_string().into());
    }
    // Adopted already, and the answer was lost.
    if done && have.digest == source.digest {
        return Ok((have, 0));
    }
    if source.server == node.server {
        if have.position != source.position {
            let text = format!("position is {:?}, not {:?}", have.position, source.position);
            return Err(text.into());
        }
        let adopted = node.store.adopt_self(chunk, version);
        return adopted.map(|report| (report, 0)).map_err(|e| e.to_string().into());
    }
    // The same operations in the same order: on a full disk there is no room for a copy, and none is needed.
    if have.position == source.position && have.digest == source.digest && !have.not_current {
        let adopted = node.store.adopt_self(chunk, version).map_err(|e| e.to_string())?;
        tracing::info!(chunk = chunk.0, version = version.0, source = %source.server, copied = 0, "adopted");
        return Ok((adopted, 0));
    }
    copy(node, chunk, version, spec, source)
}

fn call(client: &mut LoneClient, call: &DataCall) -> Result<(DataReply, Vec<u8>), String> {
    reply_of(client.call(&call.to_bytes(), &[], CALL_MAX))
}

/// A connection to `server`, which is asked who it is.
pub(crate) fn open(node: &Node, server: ServerId, address: &str) -> Result<LoneClient, String> {
    let stream = dial(address, &node.config.key, Door::Frames, node.config.connect_timeout)
        .map_err(|e| format!("{server} at {address}: {e}"))?;
    let mut client = LoneClient::new(stream);
    let hello = DataCall::Hello { fs: node.fs, from: Peer::Server(node.server) };
    match call(&mut client, &hello)? {
        (DataReply::Welcome { server: there, .. }, _) if there == server => Ok(client),
        (other, _) => Err(format!("{address} is not {server}: {other:?}")),
    }
}

/// A replica's description as `FetchSums` answers it.
#[derive(Debug)]
pub(crate) struct Sums {
    pub(crate) position: Position,
    pub(crate) len: u64,
    pub(crate) sealed: bool,
    pub(crate) digest: u32,
    pub(crate) sums: Vec<u32>,
    pub(crate) client_table: Vec<u8>,
    pub(crate) record_list: Vec<u8>,
}

pub(crate) fn fetch_sums(client: &mut LoneClient, chunk: ChunkId) -> Result<Sums, String> {
    let (reply, payload) = call(client, &DataCall::FetchSums { chunk })?;
    let DataReply::Sums {
        version,
        seq,
        len,
        sealed,
        digest,
        client_table_bytes,
        record_list_bytes,
    } = reply
    else {
        return Err(format!("unexpected reply {reply:?}"));
    };
    let DecodedSums { sums, client_table, record_list } =
        decode_sums(&payload, client_table_bytes, record_list_bytes)
            .map_err(|error| error.to_string())?;
    Ok(Sums {
        position: Position { version, seq },
        len,
        sealed,
        digest,
        sums,
        client_table: client_table.to_vec(),
        record_list: record_list.to_vec(),
    })
}

/// `None`: the other has the block with this checksum, and its bytes are bad.
pub(crate) fn fetch_block(
    client: &mut LoneClient,
    chunk: ChunkId,
    position: Position,
    block: u32,
    crc: u32,
) -> Result<Option<Vec<u8>>, String> {
    let fetch = DataCall::FetchBlock {
        chunk,
        source_version: position.version,
        source_seq: position.seq,
        block,
    };
    match answer_of(client.call(&fetch.to_bytes(), &[], CALL_MAX))? {
        Ok((DataReply::Block { crc: theirs }, bytes))
            if theirs == crc && crc32c::crc32c(&bytes) == crc =>
        {
            Ok(Some(bytes))
        }
        Ok((DataReply::Block { .. }, _)) => {
            Err(format!("block {block} came with another checksum"))
        }
        Ok((other, _)) => Err(format!("unexpected reply {other:?}")),
        Err(DataFailure::BadBlock { block: bad }) if bad == block => Ok(None),
        Err(failure) => Err(failure.to_string()),
    }
}

fn copy(
    node: &Node,
    chunk: ChunkId,
    version: ChunkVersion,
    spec: &ChunkSpec,
    source: &Source,
) -> Result<(ReplicaReport, u64), NotAdopted> {
    let (mut client, sums) = ask_for_sums(node, source.server, &source.address, chunk)?;
    // A source that took up the version already is as good: its content is the named one.
    let adopted = Position { version, seq: 0 };
    if sums.position != source.position && sums.position != adopted || sums.digest != source.digest
    {
        return Err(format!(
            "{} is at {:?} with digest {:08x}, not at {:?} with {:08x}",
            source.server, sums.position, sums.digest, source.position, source.digest
        )
        .into());
    }
    let mine: Vec<u32> = match node.store.report(chunk) {
        // What may lack operations after a reboot is not compared: its checksums may be older than its bytes.
        Some(report) if !report.not_current && report.position.version.0 != 0 => {
            node.store.describe(chunk).map(|held| held.sums).unwrap_or_default()
        }
        Some(_) | None => Vec::new(),
    };
    let mut table = ClientTable::from_bytes(&sums.client_table).map_err(|e| e.to_string())?;
    if canary::sings("copy-knows-no-clients") {
        table = ClientTable::default();
    }
    let records = RecordList::decode(&sums.record_list).map_err(|e| e.to_string())?;
    if sums.len < records.end() {
        return Err(format!("a record ends at {} of {} bytes", records.end(), sums.len).into());
    }
    let mut writer = node
        .store
        .adopt_begin(chunk, version, source.position, sums.len, spec)
        .map_err(|e| e.to_string())?;
    let (mut copied, mut bad) = (0u64, Vec::new());
    for (index, &crc) in sums.sums.iter().enumerate() {
        let block = u32::try_from(index).map_err(|_| "too many blocks".to_owned())?;
        if mine.get(index) == Some(&crc) && writer.keep_block(block, crc).is_ok() {
            continue;
        }
        node.pace.before_copy(spec.chunk_size.min(BLOCK_BYTES_MAX));
        let Some(bytes) = fetch_block(&mut client, chunk, sums.position, block, crc)? else {
            // What was not compared above may be right for all that.
            if writer.keep_block(block, crc).is_ok() {
                continue;
            }
            if source.another
                && index < mine.len()
                && node.store.read_for_copy(chunk, block).is_ok()
            {
                let text = format!("block {block} is bad on {}, and good here", source.server);
                return Err(NotAdopted::SourceIsFlawed(text));
            }
            // Waiting for it would keep the whole chunk from being written, for good if nobody has it. It is taken up as
            // the source has it, known to be bad, and mended from whoever can.
            writer.leave_bad(block, crc, sums.len).map_err(|e| e.to_string())?;
            bad.push(block);
            continue;
        };
        copied += bytes.len() as u64;
        node.metrics.copied_bytes.inc_by(bytes.len() as u64);
        writer.put_block(block, &bytes, crc).map_err(|e| e.to_string())?;
    }
    node.source_links.keep(source.server, &source.address, client);
    let report =
        writer.finish(sums.len, sums.sealed, &table, &records).map_err(|e| e.to_string())?;
    if report.digest != source.digest {
        return Err(format!(
            "digest is {:08x} after the copy, not {:08x}",
            report.digest, source.digest
        )
        .into());
    }
    // Of the replica before this one. A server that takes up its own goes on knowing what is wrong with it.
    node.damage.forget(chunk);
    for block in bad {
        node.on_bad_block(chunk, block);
    }
    tracing::info!(chunk = chunk.0, version = version.0, source = %source.server, copied, "adopted");
    Ok((report, copied))
}

/// Answers `FetchSums`.
pub(crate) fn sums(node: &Node, chunk: ChunkId) -> Result<(DataReply, Vec<u8>), DataFailure> {
    let Description { report, sums, clients, records } =
        node.store.describe(chunk).map_err(|error| node.failure(ChunkVersion(0), &error))?;
    let (table, records) = (clients.to_bytes(), records.as_bytes());
    let payload = encode_sums(&sums, &table, records);
    let bytes = |list: &[u8]| u32::try_from(list.len()).unwrap_or(u32::MAX);
    let reply = DataReply::Sums {
        version: report.position.version,
        seq: report.position.seq,
        len: report.len,
        sealed: report.sealed,
        digest: report.digest,
        client_table_bytes: bytes(&table),
        record_list_bytes: bytes(records),
    };
    Ok((reply, payload))
}

/// Answers `FetchBlock`.
pub(crate) fn block(
    node: &Node,
    chunk: ChunkId,
    version: ChunkVersion,
    seq: u64,
    block: u32,
) -> Result<(DataReply, Vec<u8>), DataFailure> {
    let check = || match node.store.report(chunk) {
        None => Err(DataFailure::NoReplica),
        Some(report) if report.position == (Position { version, seq }) => Ok(()),
        Some(report) => Err(DataFailure::StaleVersion {
            asked: version.0,
            promised: report.promised.0,
            have: report.position.version.0,
        }),
    };
    check()?;
    node.pace.before_copy(BLOCK_BYTES_MAX);
    let (bytes, crc) =
        node.store.read_for_copy(chunk, block).map_err(|error| node.failure(version, &error))?;
    // Read between two looks at the position: nothing was applied meanwhile.
    check()?;
    Ok((DataReply::Block { crc }, bytes))
}
