//! Fuzz target of a journal segment as a whole: header, then records that chain.

use dfs_core::ids::ChunkVersion;
use dfs_proto::chunk_journal::{Event, Place, RECORD_HEAD_BYTES, put_record};

use super::*;
use crate::fuzz_engine::Target;

fn header() -> SegmentHeader {
    SegmentHeader {
        disk_id: DiskId(3),
        number: 4,
        tail: 2,
        first_lsn: 100,
        chain_before: 9,
        nonce: 5,
        boot_id: "0f1e2d3c-0000-4000-8000-123456789abc".to_owned(),
    }
}

/// The records behind the header, without the room before them.
fn encoded(events: &[(Event, &[u8])]) -> Vec<u8> {
    let (header, mut out) = (header(), Vec::new());
    let mut chain = header.chain();
    for (lsn, (event, payload)) in (header.first_lsn..).zip(events) {
        let offset = RECORDS_AT + out.len() as u64;
        let place = Place { nonce: header.nonce, offset, chain, lsn, synced_lsn: lsn - 1 };
        let record = Record { chunk: ChunkId(6), previous: lsn - 1, event: event.clone() };
        chain = put_record(&record, payload, &place, &mut out);
    }
    out
}

#[test]
fn records_of_a_segment() {
    let promise = Event::Promise { version: ChunkVersion(3) };
    let three: [(Event, &[u8]); 3] =
        [(promise.clone(), b""), (Event::Clean, b"payload"), (promise, b"more")];
    let whole = [encoded(&three), vec![0; 16]].concat();
    let expected: Vec<Record> = (100..)
        .zip(&three)
        .map(|(lsn, (event, _))| Record {
            chunk: ChunkId(6),
            previous: lsn - 1,
            event: event.clone(),
        })
        .collect();
    // A segment is always as long as its file: its records end where the chain does.
    let valid = vec![encoded(&three[..1]), whole.clone()];
    Target::new("journal_segment", valid).prefixes_may_be_valid().memory(1 << 20).run(|bytes| {
        let header = header();
        let segment = [&vec![0; index(RECORDS_AT)][..], bytes].concat();
        let mut found = Vec::new();
        let walked = walk(&segment, &header, &mut |_, record, _| {
            found.push(record);
            Ok(())
        });
        let Ok(end) = walked else { return false };
        assert!(RECORDS_AT <= end.offset && end.offset <= segment.len() as u64 + 8);
        if whole.starts_with(bytes) {
            assert!(expected.starts_with(&found), "a prefix gives a prefix");
        }
        let proof = proof_of_loss(&segment, &header, RECORDS_AT, 0);
        assert!(found.is_empty() || proof.is_some(), "a record is also found alone");
        assert!(proof.is_none_or(|at| at + RECORD_HEAD_BYTES as u64 <= segment.len() as u64));
        true
    });
}
