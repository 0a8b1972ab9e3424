//! The state as one stream, for snapshots:
//!
//! ```text
//! magic "DFSSTATE", u32 format
//! blocks: u32 bytes, u32 CRC-32C of (number of the block, content), content
//! content: pairs of (u32 bytes, key, u32 bytes, value), keys rising over the whole stream
//! last block: 0 bytes; its checksum covers the count of pairs, too
//! ```
//!
//! Little-endian. Whatever the bytes are, reading them needs no more memory than one block's limit.

use std::io::{self, Read, Write};

use dfs_core::meta::Record;
use dfs_proto::codec::{Reader, Wire};
use dfs_proto::convert::decode_key;

use super::read_view::ReadView;

const MAGIC: &[u8; 8] = b"DFSSTATE";
const FORMAT: u32 = 1;
/// A block is closed when it has this much; one record may take it further, to the limit at most.
const BLOCK_BYTES: usize = 64 << 10;
const BLOCK_BYTES_MAX: usize = 64 << 20;

pub(super) fn write(view: &ReadView, out: &mut dyn Write) -> io::Result<()> {
    let mut stream = Stream::begin(out)?;
    view.for_each_pair(|key, value| stream.pair(&key, &value))?;
    stream.end()
}

/// A stream that is being written; one that is not ended is no whole one.
pub(super) struct Stream<'a> {
    out: &'a mut dyn Write,
    block: Vec<u8>,
    number: u64,
    count: u64,
}

impl<'a> Stream<'a> {
    pub(super) fn begin(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        Ok(Self { out, block: Vec::with_capacity(BLOCK_BYTES * 2), number: 0, count: 0 })
    }

    /// Keys rise.
    pub(super) fn pair(&mut self, key: &Vec<u8>, value: &Vec<u8>) -> io::Result<()> {
        key.put(&mut self.block);
        value.put(&mut self.block);
        self.count += 1;
        if BLOCK_BYTES <= self.block.len() { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> io::Result<()> {
        write_block(self.number, &self.block, &[], self.out)?;
        self.number += 1;
        self.block.clear();
        Ok(())
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.close_block()?;
        }
        write_block(self.number, &[], &self.count.to_le_bytes(), self.out)?;
        self.out.flush()
    }
}

fn write_block(number: u64, content: &[u8], covered: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let len = u32::try_from(content.len()).map_err(io::Error::other)?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&checksum(number, content, covered).to_le_bytes())?;
    out.write_all(content)
}

pub(super) fn checksum(number: u64, content: &[u8], covered: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&number.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(sum, content), covered)
}

/// Calls `each` with every pair, in key order.
pub(super) fn read(
    from: &mut dyn Read,
    mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = [0; 12];
    from.read_exact(&mut head)?;
    let (magic, format) = head.split_at(8);
    if magic != MAGIC || format != FORMAT.to_le_bytes() {
        return Err(damaged("not a snapshot of the metadata store, or of another format"));
    }
    let (mut number, mut count) = (0_u64, 0_u64);
    let mut last_key = Vec::new();
    let mut block = Vec::new();
    loop {
        let mut head = [0; 8];
        from.read_exact(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let expected = u32::from_le_bytes([e, f, g, h]);
        if BLOCK_BYTES_MAX < len {
            return Err(damaged("block too long"));
        }
        block.clear();
        // Not `resize`: a length that is not true must not cost its memory.
        if (&mut *from).take(len as u64).read_to_end(&mut block)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let covered = if len == 0 { &count.to_le_bytes()[..] } else { &[] };
        if checksum(number, &block, covered) != expected {
            return Err(damaged("wrong checksum"));
        }
        if len == 0 {
            // Nothing may follow: a longer stream is another one.
            return match from.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(damaged("bytes after the end")),
            };
        }
        number += 1;
        let mut input = Reader::new(&block);
        while input.remaining() != 0 {
            let key = Vec::<u8>::get(&mut input).map_err(damaged)?;
            let value = Vec::<u8>::get(&mut input).map_err(damaged)?;
            if key <= last_key {
                return Err(damaged("keys out of order"));
            }
            decode_key(&key).map_err(damaged)?;
            Record::from_bytes(&value).map_err(damaged)?;
            each(&key, &value)?;
            last_key = key;
            count += 1;
        }
    }
}

fn damaged(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
