//! Fuzz targets of what openraft's types are on disk.

use bytes::Bytes;
use openraft::{BasicNode, EntryPayload, Membership, StoredMembership};

use super::types::{Batch, GroupState, decode_entry, encode_payload, log_id};
use crate::fuzz_engine::Target;
use crate::journal::Position;

const AT: Position = Position { term: 1, node: 2, index: 3 };

fn membership() -> Membership<u64, BasicNode> {
    let nodes = [(1, BasicNode::new("127.0.0.1:1")), (2, BasicNode::new("host:2"))];
    Membership::new(vec![[1].into(), [1, 2].into()], std::collections::BTreeMap::from(nodes))
}

#[test]
fn log_entries() {
    let commands = vec![Bytes::from_static(b"first"), Bytes::new(), Bytes::from_static(b"third")];
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Batch(Vec::new())),
        EntryPayload::Normal(Batch(commands)),
        EntryPayload::Membership(membership()),
    ];
    let valid = payloads.iter().map(|payload| encode_payload(payload).to_vec()).collect();
    Target::new("log_entry", valid).run(|bytes| {
        let Ok(entry) = decode_entry(AT, Bytes::copy_from_slice(bytes)) else { return false };
        let again = encode_payload(&entry.payload);
        assert_eq!(decode_entry(AT, again).unwrap(), entry);
        true
    });
}

#[test]
fn group_states() {
    let full =
        GroupState { node: 2, membership: StoredMembership::new(Some(log_id(AT)), membership()) };
    let valid = vec![GroupState::default().encode().to_vec(), full.encode().to_vec()];
    Target::new("group_state", valid).run(|bytes| {
        let Ok(state) = GroupState::decode(Bytes::copy_from_slice(bytes)) else { return false };
        assert_eq!(GroupState::decode(state.encode()).unwrap(), state);
        true
    });
}
