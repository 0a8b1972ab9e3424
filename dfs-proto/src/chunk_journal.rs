//! The journal of one chunkserver disk: what happened to its replicas, in order.
//!
//! A segment is a preallocated file, used again and again under rising numbers:
//!
//! ```text
//! 0       segment header, size  4096    their second copy
//! 8192    record, record, …     each a multiple of 8 bytes
//! record: magic u32, body_len u32, lsn u64, synced_lsn u64, head_crc u32, chain u32, body, zeros up to 8
//! body:   head_len u32, Record, payload (file bytes of a Write)
//! ```
//!
//! The size that the file was made with stands behind the header, in the same sector: "DSIZ", nonce u64, bytes u64,
//! crc u32. Releases that did not write it left zeros there, or what an earlier use of the file had.
//!
//! `lsn` numbers all records of a disk without gaps inside a segment. `chain` is the CRC32C of the record continued
//! from the record before it, starting from the segment header, which holds a random nonce: what an earlier use of the
//! file left behind never continues a chain. `head_crc` covers the head alone, with the nonce and the place: after a
//! record that cannot be read, a later valid head whose `synced_lsn` covers it proves that the damage is not the torn
//! end of a crash.

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId};

use crate::chunk_file::{ChunkSpec, DISK_FORMAT};
use crate::codec::{
    DecodeError, Reader, Wire, get_field, get_group, put_group, wire_enum, wire_list, wire_struct,
};

/// Where records begin.
pub const RECORDS_AT: u64 = 8192;
/// Where the second copy of the segment header is.
pub const SEGMENT_COPY_AT: u64 = 4096;
/// Bytes before a record's body.
pub const RECORD_HEAD_BYTES: usize = 32;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"DFSJOURN");
const SIZE_MAGIC: u32 = u32::from_le_bytes(*b"DSIZ");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"DREC");

/// The beginning of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub disk_id: DiskId,
    pub number: u64,
    /// Segments below this number hold nothing that is needed.
    pub tail: u64,
    pub first_lsn: u64,
    /// Chain at the end of segment `number - 1`, if that is still needed.
    pub chain_before: u32,
    pub nonce: u64,
    /// The kernel's boot id when the segment was begun: another one means that unsynced bytes may be lost.
    pub boot_id: String,
}

wire_struct!(SegmentHeader { disk_id, number, tail, first_lsn, chain_before, nonce, boot_id });

impl SegmentHeader {
    /// One copy.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        SEGMENT_MAGIC.put(&mut out);
        DISK_FORMAT.put(&mut out);
        self.put(&mut out);
        crc32c::crc32c(&out).put(&mut out);
        out
    }

    /// # Errors
    /// `Tag` names a newer format; anything else: no valid header.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        if u64::get(&mut input)? != SEGMENT_MAGIC {
            return Err(DecodeError::Range("segment magic"));
        }
        let format = u32::get(&mut input)?;
        let header = Self::get(&mut input)?;
        let read = bytes.len() - input.remaining();
        if u32::get(&mut input)? != crc32c::crc32c(&bytes[..read]) {
            return Err(DecodeError::Range("segment checksum"));
        }
        match format {
            DISK_FORMAT => Ok(header),
            tag => Err(DecodeError::Tag { of: "journal format", tag }),
        }
    }

    /// One copy, and how large the file was made.
    #[must_use]
    pub fn encode_sized(&self, file_bytes: u64) -> Vec<u8> {
        let mut out = self.encode();
        let at = out.len();
        SIZE_MAGIC.put(&mut out);
        self.nonce.put(&mut out);
        file_bytes.put(&mut out);
        crc32c::crc32c(&out[at..]).put(&mut out);
        out
    }

    /// How large the file was made, if what stands behind this header in `bytes` says so.
    ///
    /// # Errors
    /// It does not.
    pub fn decode_size(&self, bytes: &[u8]) -> Result<u64, DecodeError> {
        let behind = bytes.get(self.encode().len()..).unwrap_or_default();
        let mut input = Reader::new(behind);
        let of = (u32::get(&mut input)?, u64::get(&mut input)?);
        let file_bytes = u64::get(&mut input)?;
        let read = behind.len() - input.remaining();
        let crc = u32::get(&mut input)?;
        if of != (SIZE_MAGIC, self.nonce) || crc != crc32c::crc32c(&behind[..read]) {
            return Err(DecodeError::Range("segment size"));
        }
        Ok(file_bytes)
    }

    /// The chain before the first record.
    #[must_use]
    pub fn chain(&self) -> u32 {
        crc32c::crc32c(&self.encode())
    }
}

/// The new checksum of one block.
pub type BlockSum = (u32, u32);

wire_list!((u32, u32));

/// What an operation did. `sums` are the new checksums of all changed blocks, except those that became all zeros.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The bytes are the record's payload.
    Write {
        offset: u64,
        sums: Vec<BlockSum>,
    },
    /// The bytes were written to the file, beyond the end, before the record was.
    Bulk {
        offset: u64,
        len: u64,
        sums: Vec<BlockSum>,
    },
    /// Zeros inside the length.
    Zero {
        offset: u64,
        len: u64,
        sums: Vec<BlockSum>,
    },
    Truncate {
        len: u64,
        sums: Vec<BlockSum>,
    },
    Seal,
    Nop,
}

/// One applied operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    pub version: ChunkVersion,
    pub seq: u64,
    pub client: ClientId,
    pub counter: u64,
    pub low_water: u64,
    pub append: Option<(u64, u64)>,
    pub change: Change,
    /// The append is a record of a record log.
    pub record: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The file was made.
    Create { spec: ChunkSpec },
    /// Applied, and DIRTY from now on.
    Op { op: Op },
    /// Nothing below this version is accepted any more.
    Promise { version: ChunkVersion },
    /// This replica, as it is, opens `version`.
    AdoptSelf { version: ChunkVersion },
    /// A copy was put in place of the file; it holds this record's number and needs no replay.
    Adopted { version: ChunkVersion },
    /// Everything is on every member's disk: no longer DIRTY.
    Clean,
    /// `Bulk` operations up to record `up_to` have their bytes on disk.
    DataSynced { up_to: u64 },
    /// Gone to quarantine.
    Delete,
    /// A client that ended is no longer remembered.
    Forget { client: ClientId },
}

/// One record: what happened to which chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub chunk: ChunkId,
    /// The record before this one about the same replica; 0 for the first. A gap shows that a slot was lost.
    pub previous: u64,
    pub event: Event,
}

wire_enum!(Change {
    1 = Write { offset, sums },
    2 = Bulk { offset, len, sums },
    3 = Zero { offset, len, sums },
    4 = Truncate { len, sums },
    5 = Seal,
    6 = Nop,
});

impl Wire for Op {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { version, seq, client, counter, low_water, append, change, record } = self;
        put_group(out, |out| {
            version.put(out);
            seq.put(out);
            client.put(out);
            counter.put(out);
            low_water.put(out);
            append.put(out);
            change.put(out);
            // All other operations keep the form that they had before there were lists of records.
            if *record {
                record.put(out);
            }
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "operation")?;
        Ok(Self {
            version: get_field(&mut group)?,
            seq: get_field(&mut group)?,
            client: get_field(&mut group)?,
            counter: get_field(&mut group)?,
            low_water: get_field(&mut group)?,
            append: get_field(&mut group)?,
            change: get_field(&mut group)?,
            record: get_field(&mut group)?,
        })
    }
}

wire_enum!(Event {
    1 = Create { spec },
    2 = Op { op },
    3 = Promise { version },
    4 = AdoptSelf { version },
    5 = Adopted { version },
    6 = Clean,
    7 = DataSynced { up_to },
    8 = Delete,
    9 = Forget { client },
});
wire_struct!(Record { chunk, previous, event });

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    pub body_len: u32,
    pub lsn: u64,
    /// Records up to this one were on disk when this one was written.
    pub synced_lsn: u64,
    pub chain: u32,
}

impl RecordHead {
    /// The head at `offset` of a segment with `nonce`, if there is one.
    #[must_use]
    pub fn decode(bytes: &[u8], nonce: u64, offset: u64) -> Option<Self> {
        let head = bytes.get(..RECORD_HEAD_BYTES)?;
        // Looked for at every place of a segment: most are told by this alone.
        if head[..4] != RECORD_MAGIC.to_le_bytes() {
            return None;
        }
        let mut input = Reader::new(head);
        input.take(4, "magic").ok()?;
        let body_len = u32::get(&mut input).ok()?;
        let lsn = u64::get(&mut input).ok()?;
        let synced_lsn = u64::get(&mut input).ok()?;
        let head_crc = u32::get(&mut input).ok()?;
        let chain = u32::get(&mut input).ok()?;
        let valid = head_crc == head_sum(&head[..24], nonce, offset);
        valid.then_some(Self { body_len, lsn, synced_lsn, chain })
    }

    /// Bytes of the whole record in the segment.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        (RECORD_HEAD_BYTES + self.body_len as usize).next_multiple_of(8)
    }
}

fn head_sum(head: &[u8], nonce: u64, offset: u64) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&nonce.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(place, head)
}

/// Where a record goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub nonce: u64,
    pub offset: u64,
    pub chain: u32,
    pub lsn: u64,
    pub synced_lsn: u64,
}

/// Appends the byte form of a record to `out`; returns the chain after it.
pub fn put_record(record: &Record, payload: &[u8], place: &Place, out: &mut Vec<u8>) -> u32 {
    let at = out.len();
    RECORD_MAGIC.put(out);
    0u32.put(out);
    place.lsn.put(out);
    place.synced_lsn.put(out);
    0u64.put(out);
    0u32.put(out);
    record.put(out);
    let head_len = u32::try_from(out.len() - at - RECORD_HEAD_BYTES - 4).unwrap_or(u32::MAX);
    let body_at = at + RECORD_HEAD_BYTES;
    out[body_at..body_at + 4].copy_from_slice(&head_len.to_le_bytes());
    out.extend_from_slice(payload);
    let body_len = u32::try_from(out.len() - body_at).unwrap_or(u32::MAX);
    out[at + 4..at + 8].copy_from_slice(&body_len.to_le_bytes());
    let head_crc = head_sum(&out[at..at + 24], place.nonce, place.offset);
    out[at + 24..at + 28].copy_from_slice(&head_crc.to_le_bytes());
    let chain = crc32c::crc32c_append(place.chain, &out[at..at + 28]);
    let chain = crc32c::crc32c_append(chain, &out[body_at..]);
    out[at + 28..at + 32].copy_from_slice(&chain.to_le_bytes());
    out.resize(at + (out.len() - at).next_multiple_of(8), 0);
    chain
}

/// The record at the start of `bytes` (at `offset` of its segment), its payload, and its head; `None` if the chain
/// ends before it.
///
/// # Errors
/// The chain holds, yet the body cannot be read: written by a newer version.
#[allow(clippy::type_complexity, clippy::allow_attributes, reason = "a tuple read in one place")]
pub fn get_record(
    bytes: &[u8],
    nonce: u64,
    offset: u64,
    chain: u32,
) -> Result<Option<(RecordHead, Record, &[u8])>, DecodeError> {
    let Some(head) = RecordHead::decode(bytes, nonce, offset) else { return Ok(None) };
    let end = RECORD_HEAD_BYTES + head.body_len as usize;
    let Some(body) = bytes.get(RECORD_HEAD_BYTES..end) else { return Ok(None) };
    let sum = crc32c::crc32c_append(chain, &bytes[..28]);
    if crc32c::crc32c_append(sum, body) != head.chain {
        return Ok(None);
    }
    let mut input = Reader::new(body);
    let record_len = u32::get(&mut input)? as usize;
    let record = Record::from_bytes(input.take(record_len, "record")?)?;
    let payload = input.take(input.remaining(), "payload")?;
    Ok(Some((head, record, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { nonce: 5, offset: 8192, chain: 77, lsn: 12, synced_lsn: 10 };

    fn records() -> Vec<Record> {
        let op = |change| Event::Op {
            op: Op {
                version: ChunkVersion(2),
                seq: 9,
                client: ClientId(4),
                counter: 3,
                low_water: 1,
                append: Some((100, 5)),
                change,
                record: false,
            },
        };
        let sums = vec![(1, 0xdead_beef)];
        let spec = ChunkSpec { chunk_size: 4096, ..ChunkSpec::default() };
        let events = [
            Event::Create { spec },
            op(Change::Write { offset: 7, sums: sums.clone() }),
            op(Change::Bulk { offset: 7, len: 300_000, sums: sums.clone() }),
            op(Change::Zero { offset: 7, len: 9, sums: sums.clone() }),
            op(Change::Truncate { len: 9, sums }),
            op(Change::Seal),
            op(Change::Nop),
            Event::Promise { version: ChunkVersion(3) },
            Event::AdoptSelf { version: ChunkVersion(3) },
            Event::Adopted { version: ChunkVersion(3) },
            Event::Clean,
            Event::DataSynced { up_to: 11 },
            Event::Delete,
            Event::Forget { client: ClientId(7) },
        ];
        events.map(|event| Record { chunk: ChunkId(6), previous: 8, event }).into()
    }

    /// The append of a record to a record log.
    fn of_a_record() -> Record {
        let mut record = records().swap_remove(1);
        if let Event::Op { op } = &mut record.event {
            op.record = true;
        }
        record
    }

    #[test]
    fn a_record_is_read_as_written_and_no_changed_bit_is_accepted() {
        for record in records().into_iter().chain([of_a_record()]) {
            let mut bytes = Vec::new();
            let chain = put_record(&record, b"payload", &PLACE, &mut bytes);
            let (head, found, payload) =
                get_record(&bytes, 5, 8192, 77).unwrap().expect("the record");
            assert_eq!((found, payload, head.chain), (record, &b"payload"[..], chain));
            assert_eq!(head.stored_bytes(), bytes.len());
            let end = RECORD_HEAD_BYTES + head.body_len as usize;
            for bit in 0..end * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(get_record(&changed, 5, 8192, 77).unwrap().is_none(), "bit {bit}");
            }
            for len in 0..end {
                assert!(get_record(&bytes[..len], 5, 8192, 77).unwrap().is_none(), "cut at {len}");
            }
            // Another use of the file, another place, another record before it.
            for (nonce, offset, chain) in [(6, 8192, 77), (5, 8200, 77), (5, 8192, 78)] {
                assert!(get_record(&bytes, nonce, offset, chain).unwrap().is_none());
            }
        }
    }

    #[test]
    fn a_segment_header_is_read_as_written_and_no_changed_bit_is_accepted() {
        let header = SegmentHeader {
            disk_id: DiskId(3),
            number: 4,
            tail: 2,
            first_lsn: 100,
            chain_before: 9,
            nonce: 5,
            boot_id: "0f1e2d3c-0000-4000-8000-123456789abc".to_owned(),
        };
        let bytes = header.encode();
        // Each copy is in one sector, so that it is written whole or not at all.
        let sized = header.encode_sized(64 << 20);
        assert!(sized.len() <= 512);
        assert_eq!(SegmentHeader::decode(&sized).as_ref(), Ok(&header));
        assert_eq!(header.decode_size(&sized), Ok(64 << 20));
        // Of an earlier release, of another use of the file, or not whole.
        assert!(header.decode_size(&[&bytes[..], &[0; 64]].concat()).is_err());
        assert!(SegmentHeader { nonce: 6, ..header.clone() }.decode_size(&sized).is_err());
        for bit in bytes.len() * 8..sized.len() * 8 {
            let mut changed = sized.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(header.decode_size(&changed).is_err(), "bit {bit}");
        }
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&changed).is_err(), "bit {bit}");
        }
    }

    /// The bytes of format 1: a change of these needs a new format number.
    #[test]
    fn the_form_of_records_does_not_change() {
        let mut bytes = Vec::new();
        for record in records() {
            if matches!(record.event, Event::Forget { .. }) {
                // The first kinds, as they were before this one was added behind them.
                assert_eq!(crc32c::crc32c(&bytes), 2_226_892_352);
            }
            put_record(&record, b"payload", &PLACE, &mut bytes);
        }
        assert_eq!(crc32c::crc32c(&bytes), 368_584_992);
        put_record(&of_a_record(), b"payload", &PLACE, &mut bytes);
        assert_eq!(crc32c::crc32c(&bytes), 4_025_550_981);
    }
}
