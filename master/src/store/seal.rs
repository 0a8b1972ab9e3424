//! What the file has beyond the records, so that nothing is believed that the disk changed: each value ends with a
//! CRC-32C of key and value, and beside what was applied stand the number of records and the sum of their checksums, so
//! that one that is missing is missed.

use std::fmt;

use dfs_proto::codec::{DecodeError, Reader, Wire};

const SEAL_BYTES: usize = 4;

/// Bytes of the file that are not what was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the record with key {} has a wrong checksum", Hex(.0))]
    Record(Vec<u8>),
    #[error("{found} records with checksums of sum {found_sum:#x}, not {written} with {written_sum:#x}", found = .found.count, found_sum = .found.sum, written = .written.count, written_sum = .written.sum)]
    Totals { found: Totals, written: Totals },
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(40).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Replaces `out` by `value` as it stands in the file under `key`.
pub(super) fn seal(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(value);
    out.extend_from_slice(&checksum(key, value).to_le_bytes());
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

/// The value that was sealed.
pub(super) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], Broken> {
    let split = sealed.len().checked_sub(SEAL_BYTES).map(|at| sealed.split_at(at));
    match split {
        Some((value, seal)) if checksum(key, value).to_le_bytes() == seal => Ok(value),
        Some(_) | None => Err(Broken::Record(key.to_vec())),
    }
}

/// Of all records of the file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Totals {
    count: u64,
    /// Of their checksums, modulo 2^64.
    sum: u64,
}

impl Totals {
    pub(super) fn add(&mut self, sealed: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(seal_of(sealed));
    }

    pub(super) fn remove(&mut self, sealed: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(seal_of(sealed));
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        self.count.put(out);
        self.sum.put(out);
    }

    pub(super) fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { count: u64::get(input)?, sum: u64::get(input)? })
    }
}

fn seal_of(sealed: &[u8]) -> u64 {
    sealed.last_chunk::<SEAL_BYTES>().map_or(0, |seal| u64::from(u32::from_le_bytes(*seal)))
}

/// Looks at every record of the file once.
#[derive(Default, Debug)]
pub(super) struct Audit {
    totals: Totals,
    broken: Option<Broken>,
}

impl Audit {
    /// The value, and nothing of one that is broken.
    pub(super) fn look<'a>(&mut self, key: &[u8], sealed: &'a [u8]) -> &'a [u8] {
        self.totals.add(sealed);
        unseal(key, sealed).unwrap_or_else(|broken| {
            self.broken.get_or_insert(broken);
            &[]
        })
    }

    /// After the last record.
    pub(super) fn end(self, written: Totals) -> Result<(), Broken> {
        match self.broken {
            Some(broken) => Err(broken),
            None if self.totals != written => Err(Broken::Totals { found: self.totals, written }),
            None => Ok(()),
        }
    }
}
