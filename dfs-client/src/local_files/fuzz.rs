//! Fuzz target of reads from a chunk file: what the server says of it, and what the file holds, are anything.

use std::cell::RefCell;
use std::os::unix::fs::FileExt as _;

use super::tests::layout;
use super::*;
use crate::fuzz_engine::Target;

/// As a read asks: more is asked in pieces.
const LEN_MAX: u32 = 1 << 20;

/// What is asked and said, in front of the checksums and the file's content.
struct Case<'a> {
    offset: u64,
    len: u32,
    chunk_size: u64,
    replica_len: u64,
    sums: &'a [u8],
    content: &'a [u8],
}

fn case(bytes: &[u8]) -> Option<Case<'_>> {
    let (offset, rest) = bytes.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (chunk_size, rest) = rest.split_first_chunk::<4>()?;
    let (replica_len, rest) = rest.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first()?;
    let (sums, content) = rest.split_at_checked(usize::from(*count))?;
    Some(Case {
        offset: u32::from_le_bytes(*offset).into(),
        len: u32::from_le_bytes(*len).min(LEN_MAX),
        chunk_size: u32::from_le_bytes(*chunk_size).into(),
        replica_len: u64::from_le_bytes(*replica_len),
        sums,
        content,
    })
}

/// The replica's bytes from `offset` on, of whole blocks.
fn replica(case: &Case<'_>) -> Vec<u8> {
    let block = case.chunk_size.clamp(1, BLOCK_BYTES_MAX);
    let end = (case.offset + u64::from(case.len)).min(case.replica_len);
    let upto = end.next_multiple_of(block).min(case.replica_len);
    let byte = |at: u64| usize::try_from(at).ok().and_then(|at| case.content.get(at));
    (case.offset..upto).map(|at| byte(at).copied().unwrap_or(0)).collect()
}

fn encoded(offset: u32, len: u32, chunk_size: u32, replica_len: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(chunk_size.to_le_bytes());
    bytes.extend(replica_len.to_le_bytes());
    bytes.push(0);
    bytes.extend(content);
    repair(&mut bytes);
    bytes
}

fn right_sums(case: &Case<'_>) -> Vec<u8> {
    let block = usize::try_from(case.chunk_size.clamp(1, BLOCK_BYTES_MAX)).unwrap();
    let of_block = |block: &[u8]| crc32c::crc32c(block).to_le_bytes();
    replica(case).chunks(block).flat_map(of_block).collect()
}

/// Gives the right checksums, if there is room for them.
fn repair(bytes: &mut Vec<u8>) {
    let Some(case) = case(bytes) else { return };
    let sums = right_sums(&case);
    let Ok(count) = u8::try_from(sums.len()) else { return };
    let content = case.content.to_vec();
    bytes.truncate(20);
    bytes.push(count);
    bytes.extend(sums);
    bytes.extend(content);
}

#[test]
fn local_blocks() {
    let text: Vec<u8> = (0..700_u32).map(|n| (n * 7).to_le_bytes()[0]).collect();
    let valid = vec![
        encoded(0, 700, 1 << 16, 700, &text),
        encoded(64, 100, 64, 700, &text),
        // Shorter than the replica: zeros.
        encoded(512, 4096, 512, 2000, &text),
        encoded(4096, 1, 4096, 4096, b""),
    ];
    let path = std::env::temp_dir().join(format!("dfs-local-fuzz-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let file = RefCell::new(file);
    // The replica of the case is made anew here, beside the bytes read.
    let target = Target::new("local_blocks", valid).prefixes_may_be_valid().repaired_by(repair);
    target.memory(8 << 20).inputs(4_000).run(|bytes| {
        let Some(case) = case(bytes) else { return false };
        let file = file.borrow_mut();
        file.set_len(0).unwrap();
        file.write_all_at(case.content, DATA_AT).unwrap();
        let (layout, at) = (layout(case.chunk_size), (case.offset, case.len));
        let Some(read) = read(case.sums, case.replica_len, &file, &layout, at) else {
            return false;
        };
        // All that was asked for and is there, whatever the server says.
        let end = (case.offset + u64::from(case.len)).min(case.replica_len);
        assert_eq!(read.len() as u64, end.saturating_sub(case.offset));
        assert!(replica(&case).starts_with(&read));
        assert!(read.is_empty() || case.sums.starts_with(&right_sums(&case)));
        true
    });
}
