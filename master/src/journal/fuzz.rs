//! Fuzz targets of the log's format.

use bytes::Bytes;

use super::format::{
    Carried, MARKER_BYTES, Parsed, Position, Record, SavedVote, SegmentHeader, encode_marker,
    find_marker, parse_record,
};
use super::segments::{parse_segment_name, segment_name};
use crate::fuzz_engine::Target;

const AT: Position = Position { term: 1, node: 2, index: 3 };
const SALT: [u8; 16] = [9; 16];

fn header() -> SegmentHeader {
    let vote = Some(SavedVote { term: 4, node: 5, committed: true });
    let carried = Carried { vote, committed: Some(AT), purged: None };
    SegmentHeader { sequence: 7, segment_bytes: 8 << 20, salt: SALT, chain: 77, carried }
}

#[test]
fn segment_headers() {
    let plain = SegmentHeader { carried: Carried::default(), ..header() };
    let seal = |bytes: &mut Vec<u8>| {
        if 128 <= bytes.len() {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..128]);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        }
    };
    let valid = vec![header().encode(), plain.encode()];
    Target::new("log_segment_header", valid).repaired_by(seal).run(|bytes| {
        let Ok(header) = SegmentHeader::parse(bytes) else { return false };
        assert_eq!(SegmentHeader::parse(&header.encode()).as_ref(), Ok(&header));
        true
    });
}

const CHAIN: u32 = 55;

fn seal_record(bytes: &mut Vec<u8>) {
    if bytes.len() < 40 {
        return;
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let payload_bytes = u32::try_from(bytes.len() - 40).unwrap();
    bytes[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    let crc = crc32c::crc32c_append(CHAIN, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn log_records() {
    let records = [
        Record::Entry { position: AT, payload: Bytes::from_static(b"payload of an entry") },
        Record::Entry { position: AT, payload: Bytes::new() },
        Record::Vote(SavedVote { term: 1, node: 2, committed: false }),
        Record::Committed(AT),
        Record::Truncate { from_index: 9 },
        Record::Purge(AT),
    ];
    let mut valid: Vec<Vec<u8>> = Vec::new();
    for record in &records {
        let (mut chain, mut out) = (CHAIN, Vec::new());
        record.encode(&mut chain, &mut out);
        valid.push(out);
    }
    let (mut chain, mut marker) = (CHAIN, Vec::new());
    encode_marker(&SALT, 7, 0, &mut chain, &mut marker);
    valid.push(marker);
    Target::new("log_record", valid).repaired_by(seal_record).run(|bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        let mut chain = CHAIN;
        match parse_record(&bytes, 0, &mut chain) {
            Parsed::Invalid(_) => {
                assert_eq!(chain, CHAIN, "an invalid record moves no chain");
                false
            }
            Parsed::Marker { stored_bytes } => {
                assert!(stored_bytes <= bytes.len());
                true
            }
            Parsed::Record { record, stored_bytes, .. } => {
                assert!(stored_bytes <= bytes.len());
                let (mut chain, mut again) = (CHAIN, Vec::new());
                record.encode(&mut chain, &mut again);
                assert_eq!(again.len() as u64, record.stored_bytes());
                let parsed = parse_record(&Bytes::from(again), 0, &mut { CHAIN });
                assert!(matches!(parsed, Parsed::Record { record: same, .. } if same == record));
                true
            }
        }
    });
}

#[test]
fn markers_behind_anything() {
    let (mut chain, mut plain) = (CHAIN, Vec::new());
    encode_marker(&SALT, 7, 0, &mut chain, &mut plain);
    let mut behind = vec![3; 64];
    encode_marker(&SALT, 7, 64, &mut chain, &mut behind);
    Target::new("log_marker", vec![plain, behind]).run(|bytes| {
        let Some(at) = find_marker(bytes, 0, &header()) else { return false };
        assert!(at as u64 + MARKER_BYTES <= bytes.len() as u64);
        true
    });
}

#[test]
fn segment_names() {
    let valid = [1, 99, 9_999_999_999_999_999].map(|n| segment_name(n).into_bytes()).to_vec();
    Target::new("log_segment_name", valid).run(|bytes| {
        let Ok(name) = std::str::from_utf8(bytes) else { return false };
        let Some(sequence) = parse_segment_name(name) else { return false };
        assert_eq!(segment_name(sequence), name, "two names of one segment");
        true
    });
}
