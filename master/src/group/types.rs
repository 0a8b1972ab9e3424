//! What openraft is told about this group, and the bytes of everything that goes to disk for it.
//! All integers are little-endian. Decoders are total: any bytes give a value or an error.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Buf, Bytes};
use openraft::{
    BasicNode, CommittedLeaderId, Entry, EntryPayload, LogId, Membership, StoredMembership,
};

use super::snapshot_files::SnapshotHandle;
use crate::journal::Position;

openraft::declare_raft_types!(
    /// The types of this group.
    pub(super) TypeConfig:
        D = Batch,
        R = Vec<Bytes>,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = SnapshotHandle,
);

/// Commands that share one log entry, in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch(pub(super) Vec<Bytes>);

pub(super) fn log_id(position: Position) -> LogId<u64> {
    let Position { term, node, index } = position;
    LogId::new(CommittedLeaderId::new(term, node), index)
}

pub(super) fn position(log_id: LogId<u64>) -> Position {
    Position { term: log_id.leader_id.term, node: log_id.leader_id.node_id, index: log_id.index }
}

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_BATCH: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// The bytes of an entry in the log, its position apart.
pub(super) fn encode_payload(payload: &EntryPayload<TypeConfig>) -> Bytes {
    let mut out = Vec::new();
    match payload {
        EntryPayload::Blank => out.push(PAYLOAD_BLANK),
        EntryPayload::Normal(Batch(commands)) => {
            out.reserve_exact(5 + commands.iter().map(|command| 4 + command.len()).sum::<usize>());
            out.push(PAYLOAD_BATCH);
            put_count(&mut out, commands.len());
            for command in commands {
                put_count(&mut out, command.len());
                out.extend_from_slice(command);
            }
        }
        EntryPayload::Membership(membership) => {
            out.push(PAYLOAD_MEMBERSHIP);
            put_membership(&mut out, membership);
        }
    }
    Bytes::from(out)
}

/// The reverse; commands are slices of `payload`, not copies.
pub(super) fn decode_entry(at: Position, mut payload: Bytes) -> io::Result<Entry<TypeConfig>> {
    let decoded = match take_u8(&mut payload)? {
        PAYLOAD_BLANK => EntryPayload::Blank,
        PAYLOAD_BATCH => {
            let count = take_count(&mut payload, 4)?;
            let mut commands = Vec::with_capacity(count);
            for _ in 0..count {
                let command_bytes = take_count(&mut payload, 1)?;
                commands.push(payload.split_to(command_bytes));
            }
            EntryPayload::Normal(Batch(commands))
        }
        PAYLOAD_MEMBERSHIP => EntryPayload::Membership(take_membership(&mut payload)?),
        kind => return Err(malformed(format!("entry payload of kind {kind}"))),
    };
    check_empty(&payload)?;
    Ok(Entry { log_id: log_id(at), payload: decoded })
}

/// What openraft needs beside the applied term and index: the node that led in that term, and the
/// last membership. Kept by the store without being looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupState {
    pub(super) node: u64,
    pub(super) membership: StoredMembership<u64, BasicNode>,
}

const GROUP_STATE_VERSION: u8 = 1;

impl GroupState {
    pub(super) fn encode(&self) -> Bytes {
        let Self { node, membership } = self;
        let mut out = vec![GROUP_STATE_VERSION];
        out.extend_from_slice(&node.to_le_bytes());
        out.push(u8::from(membership.log_id().is_some()));
        let at = membership.log_id().map(position).unwrap_or_default();
        for number in [at.term, at.node, at.index] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_membership(&mut out, membership.membership());
        Bytes::from(out)
    }

    pub(super) fn decode(mut bytes: Bytes) -> io::Result<Self> {
        let version = take_u8(&mut bytes)?;
        if version != GROUP_STATE_VERSION {
            return Err(malformed(format!("group state of version {version}")));
        }
        let node = take_u64(&mut bytes)?;
        let has_log_id = take_u8(&mut bytes)? != 0;
        let at = Position {
            term: take_u64(&mut bytes)?,
            node: take_u64(&mut bytes)?,
            index: take_u64(&mut bytes)?,
        };
        let membership = take_membership(&mut bytes)?;
        check_empty(&bytes)?;
        let membership = StoredMembership::new(has_log_id.then(|| log_id(at)), membership);
        Ok(Self { node, membership })
    }
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership<u64, BasicNode>) {
    let configs = membership.get_joint_config();
    put_count(out, configs.len());
    for config in configs {
        put_count(out, config.len());
        for node in config {
            out.extend_from_slice(&node.to_le_bytes());
        }
    }
    put_count(out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        put_count(out, node.addr.len());
        out.extend_from_slice(node.addr.as_bytes());
    }
}

fn take_membership(bytes: &mut Bytes) -> io::Result<Membership<u64, BasicNode>> {
    let mut configs = Vec::new();
    for _ in 0..take_count(bytes, 4)? {
        let mut config = BTreeSet::new();
        for _ in 0..take_count(bytes, 8)? {
            config.insert(take_u64(bytes)?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take_count(bytes, 12)? {
        let id = take_u64(bytes)?;
        let addr_bytes = take_count(bytes, 1)?;
        let addr = bytes.split_to(addr_bytes);
        let addr = std::str::from_utf8(&addr).map_err(|err| malformed(err.to_string()))?;
        nodes.insert(id, BasicNode::new(addr));
    }
    Ok(Membership::new(configs, nodes))
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a log entry is far below 4 GiB");
    out.extend_from_slice(&count.to_le_bytes());
}

fn take_u8(bytes: &mut Bytes) -> io::Result<u8> {
    bytes.try_get_u8().map_err(|err| malformed(err.to_string()))
}

fn take_u64(bytes: &mut Bytes) -> io::Result<u64> {
    bytes.try_get_u64_le().map_err(|err| malformed(err.to_string()))
}

/// A count of things of at least `item_bytes` each, which must fit in what is left.
fn take_count(bytes: &mut Bytes, item_bytes: usize) -> io::Result<usize> {
    let count = bytes.try_get_u32_le().map_err(|err| malformed(err.to_string()))? as usize;
    if count.saturating_mul(item_bytes) > bytes.len() {
        return Err(malformed(format!("a count of {count} with {} bytes left", bytes.len())));
    }
    Ok(count)
}

fn check_empty(bytes: &Bytes) -> io::Result<()> {
    if bytes.is_empty() { Ok(()) } else { Err(malformed("bytes left over".to_owned())) }
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
