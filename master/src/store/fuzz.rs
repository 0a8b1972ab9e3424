//! Fuzz targets of the store: its own record, and the state as a stream.

use dfs_core::ids::InodeNo;
use dfs_core::meta::{Key, Record};
use dfs_proto::convert::encode_key;

use super::*;
use crate::fuzz_engine::Target;

#[test]
fn last_applied_entry() {
    let applied = Applied { term: 1, index: u64::MAX, group_state: b"group".to_vec() };
    let empty = Applied { group_state: Vec::new(), ..applied.clone() };
    let mut totals = Totals::default();
    totals.add(&[1, 2, 3, 4]);
    let valid = vec![applied.encode(totals), empty.encode(Totals::default())];
    let reseal = |bytes: &mut Vec<u8>| {
        let value = bytes[..bytes.len().saturating_sub(4)].to_vec();
        seal::seal(APPLIED_KEY, &value, bytes);
    };
    Target::new("applied", valid).repaired_by(reseal).run(|bytes| {
        let Ok((applied, totals)) = Applied::decode(bytes) else { return false };
        assert_eq!(Applied::decode(&applied.encode(totals)).unwrap(), (applied, totals));
        true
    });
}

fn stream(pairs: &[(Key, Record)]) -> Vec<u8> {
    let pairs: Vec<_> =
        pairs.iter().map(|(key, record)| (encode_key(key), record.to_bytes())).collect();
    stream_of(&pairs)
}

fn stream_of(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut stream = image::Stream::begin(&mut out).unwrap();
    pairs.iter().for_each(|(key, value)| stream.pair(key, value).unwrap());
    stream.end().unwrap();
    out
}

/// Checksums of all blocks that fit; the count of pairs as it was read.
fn seal(bytes: &mut [u8]) {
    let (mut at, mut number) = (12, 0_u64);
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        let Some(content) = bytes.get(at + 8..at + 8 + len) else { return };
        let covered: &[u8] = if len == 0 { &2_u64.to_le_bytes() } else { &[] };
        let sum = image::checksum(number, content, covered);
        bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        at += 8 + len;
        number += 1;
    }
}

#[test]
fn state_as_a_stream() {
    let valid = vec![
        stream(&[]),
        stream(&[
            (Key::Orphan(InodeNo(5)), Record::Orphan),
            (Key::Truncating(InodeNo(5)), Record::Truncating(7)),
        ]),
    ];
    Target::new("state_stream", valid).repaired_by(|bytes| seal(bytes)).run(|bytes| {
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let read = image::read(&mut &bytes[..], |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        });
        if read.is_err() {
            return false;
        }
        assert!(pairs.is_sorted_by(|a, b| a.0 < b.0));
        let (again, mut same) = (stream_of(&pairs), Vec::new());
        image::read(&mut again.as_slice(), |key, value| {
            same.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(pairs, same);
        true
    });
}
