//! The bytes of a log segment. All integers are little-endian.
//!
//! ```text
//! segment   header, 4,096 bytes | record | record | … | zeros up to segment_bytes
//!
//! header    0 magic[8] "DFSRLOG\n"   8 version u32     12 crc32c u32 of bytes 0..12 and 16..128
//!          16 sequence u64          24 segment_bytes u64
//!          32 salt[16]              48 chain u32 (crc of the last record before this segment)
//!          52 flags u32: 1 vote, 2 vote committed, 4 committed, 8 purged
//!          56 vote: term, node u64  72 committed: term, node, index u64   96 purged: the same
//!
//! record    0 crc32c u32 of bytes 4.. padding included, seeded with the previous record's crc
//!           4 payload_bytes u32      8 kind u8           9 zero[7]
//!          16 term u64              24 node u64         32 index u64
//!          40 payload, then zeros up to a multiple of 8
//!
//! marker    a record with the payload  salt[16] | sequence u64 | its own offset u64 | crc32c u32 | 0 u32
//! ```
//!
//! The chain makes a record valid only behind exactly the records it was written behind. A marker
//! can also be recognised alone: it repeats its segment's random salt and says where it stands, so
//! that it is found behind bytes that no longer parse, and no payload can pretend to be one.

use bytes::Bytes;

use super::disk::is_zero;

pub(super) const MAGIC: [u8; 8] = *b"DFSRLOG\n";
/// The format this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// What a segment begins with: magic and format.
pub(super) const LABEL: [u8; 12] = *b"DFSRLOG\n\x01\0\0\0";
pub(super) const HEADER_SIZE: usize = 4096;
pub(super) const HEADER_BYTES: u64 = HEADER_SIZE as u64;
const HEADER_USED: usize = 128;
pub(super) const RECORD_HEADER_BYTES: usize = 40;
const MARKER_PAYLOAD_BYTES: usize = 40;
pub(super) const MARKER_BYTES: u64 = (RECORD_HEADER_BYTES + MARKER_PAYLOAD_BYTES) as u64;
/// The largest payload of one record. A greater length on disk is damage, not a reason to allocate.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 256 << 20;

/// Where an entry stands in the log: the reign of the leader that made it, and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Raft term of the leader.
    pub term: u64,
    /// Node that led in that term.
    pub node: u64,
    /// Place in the log.
    pub index: u64,
}

/// Whom this node voted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedVote {
    /// Raft term.
    pub term: u64,
    /// Candidate or leader of that term.
    pub node: u64,
    /// Whether a quorum is known to have voted the same.
    pub committed: bool,
}

/// What a segment must know of those before it, which may be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) vote: Option<SavedVote>,
    pub(super) committed: Option<Position>,
    pub(super) purged: Option<Position>,
}

impl Carried {
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(position) => self.committed = Some(*position),
            Record::Purge(position) => self.purged = Some(*position),
            Record::Entry { .. } | Record::Truncate { .. } => {}
        }
    }
}

/// One change of the log. Markers are not among them: nobody but the writer makes those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Entry {
        position: Position,
        payload: Bytes,
    },
    Vote(SavedVote),
    Committed(Position),
    /// Entries from this index on are gone.
    Truncate {
        from_index: u64,
    },
    /// Entries up to and including this one are gone.
    Purge(Position),
}

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_COMMITTED: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_MARKER: u8 = 6;

impl Record {
    /// Bytes this record takes on disk.
    pub(super) fn stored_bytes(&self) -> u64 {
        let payload_bytes = match self {
            Self::Entry { payload, .. } => payload.len(),
            Self::Vote(_) | Self::Committed(_) | Self::Truncate { .. } | Self::Purge(_) => 0,
        };
        stored_bytes(payload_bytes) as u64
    }

    /// Appends the record to `out`; `chain` is the crc before it and becomes its own.
    pub(super) fn encode(&self, chain: &mut u32, out: &mut Vec<u8>) {
        match self {
            Self::Entry { position, payload } => {
                encode_record(KIND_ENTRY, *position, payload, chain, out);
            }
            Self::Vote(vote) => {
                let position =
                    Position { term: vote.term, node: vote.node, index: u64::from(vote.committed) };
                encode_record(KIND_VOTE, position, &[], chain, out);
            }
            Self::Committed(position) => encode_record(KIND_COMMITTED, *position, &[], chain, out),
            Self::Truncate { from_index } => {
                let position = Position { term: 0, node: 0, index: *from_index };
                encode_record(KIND_TRUNCATE, position, &[], chain, out);
            }
            Self::Purge(position) => encode_record(KIND_PURGE, *position, &[], chain, out),
        }
    }
}

fn stored_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(8)
}

fn encode_record(kind: u8, position: Position, payload: &[u8], chain: &mut u32, out: &mut Vec<u8>) {
    let start = out.len();
    let payload_bytes = u32::try_from(payload.len()).expect("the caller bounds a payload");
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&payload_bytes.to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&position.term.to_le_bytes());
    out.extend_from_slice(&position.node.to_le_bytes());
    out.extend_from_slice(&position.index.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(start + stored_bytes(payload.len()), 0);
    *chain = crc32c::crc32c_append(*chain, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&chain.to_le_bytes());
}

/// Appends the marker that stands at `offset` of segment `sequence`.
pub(super) fn encode_marker(
    salt: &[u8; 16],
    sequence: u64,
    offset: u64,
    chain: &mut u32,
    out: &mut Vec<u8>,
) {
    let payload = marker_payload(salt, sequence, offset);
    encode_record(KIND_MARKER, Position::default(), &payload, chain, out);
}

fn marker_payload(salt: &[u8; 16], sequence: u64, offset: u64) -> [u8; MARKER_PAYLOAD_BYTES] {
    let mut payload = [0; MARKER_PAYLOAD_BYTES];
    payload[..16].copy_from_slice(salt);
    payload[16..24].copy_from_slice(&sequence.to_le_bytes());
    payload[24..32].copy_from_slice(&offset.to_le_bytes());
    let crc = crc32c::crc32c(&payload[..32]);
    payload[32..36].copy_from_slice(&crc.to_le_bytes());
    payload
}

/// The offset of the first marker at or after `from`, wherever the chain stands.
pub(super) fn find_marker(bytes: &[u8], from: usize, header: &SegmentHeader) -> Option<usize> {
    const PAGE_BYTES: usize = 4096;
    let mut offset = from.next_multiple_of(8);
    while let Some(payload) = bytes.get(offset + RECORD_HEADER_BYTES..) {
        let candidate = payload.get(..MARKER_PAYLOAD_BYTES)?;
        let page = &payload[..payload.len().min(PAGE_BYTES)];
        if is_zero(page) {
            // Most of a segment was never written, and no salt begins with eight zeros.
            offset += page.len().next_multiple_of(8);
            continue;
        }
        if candidate[..16] == header.salt
            && *candidate == marker_payload(&header.salt, header.sequence, offset as u64)
        {
            return Some(offset);
        }
        offset += 8;
    }
    None
}

/// What stands at one place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Record {
        record: Record,
        payload_crc: u32,
        stored_bytes: usize,
    },
    Marker {
        stored_bytes: usize,
    },
    /// Nothing was ever written here, or not all of it.
    Invalid(&'static str),
}

/// Reads the record at `offset` of a segment's bytes; on success `chain` becomes its crc.
///
/// Total: any bytes give an answer, and no length in them is believed before it is checked.
pub(super) fn parse_record(bytes: &Bytes, offset: usize, chain: &mut u32) -> Parsed {
    let Some(header) = bytes.get(offset..offset + RECORD_HEADER_BYTES) else {
        return Parsed::Invalid("the segment ends here");
    };
    if header[8] == 0 {
        return Parsed::Invalid("no record begins here");
    }
    let payload_bytes = u32_at(header, 4) as usize;
    if payload_bytes > RECORD_PAYLOAD_BYTES_MAX {
        return Parsed::Invalid("the record's length is impossible");
    }
    let stored_bytes = stored_bytes(payload_bytes);
    let Some(stored) = bytes.get(offset..offset + stored_bytes) else {
        return Parsed::Invalid("the record's length passes the end of the segment");
    };
    let crc = crc32c::crc32c_append(*chain, &stored[4..]);
    if crc != u32_at(header, 0) {
        return Parsed::Invalid("the record's checksum does not match");
    }
    let position =
        Position { term: u64_at(header, 16), node: u64_at(header, 24), index: u64_at(header, 32) };
    let payload =
        bytes.slice(offset + RECORD_HEADER_BYTES..offset + RECORD_HEADER_BYTES + payload_bytes);
    let payload_crc = crc32c::crc32c(&payload);
    let record = match header[8] {
        KIND_ENTRY => Record::Entry { position, payload },
        KIND_VOTE => Record::Vote(SavedVote {
            term: position.term,
            node: position.node,
            committed: position.index != 0,
        }),
        KIND_COMMITTED => Record::Committed(position),
        KIND_TRUNCATE => Record::Truncate { from_index: position.index },
        KIND_PURGE => Record::Purge(position),
        KIND_MARKER => {
            *chain = crc;
            return Parsed::Marker { stored_bytes };
        }
        _ => return Parsed::Invalid("the record is of a kind this program does not know"),
    };
    *chain = crc;
    Parsed::Record { record, payload_crc, stored_bytes }
}

/// The first bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) sequence: u64,
    pub(super) segment_bytes: u64,
    pub(super) salt: [u8; 16],
    pub(super) chain: u32,
    pub(super) carried: Carried,
}

/// Why a segment's first bytes are not a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Newer(u32),
    Damaged(&'static str),
    /// Magic and format number are not those of a segment; the checksum says what they were, and that all else is right.
    Mislabelled(Box<SegmentHeader>),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { sequence, segment_bytes, salt, chain, carried } = self;
        let Carried { vote, committed, purged } = carried;
        let mut out = Vec::with_capacity(HEADER_USED);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&sequence.to_le_bytes());
        out.extend_from_slice(&segment_bytes.to_le_bytes());
        out.extend_from_slice(salt);
        out.extend_from_slice(&chain.to_le_bytes());
        let flags = u32::from(vote.is_some())
            | u32::from(vote.is_some_and(|vote| vote.committed)) << 1
            | u32::from(committed.is_some()) << 2
            | u32::from(purged.is_some()) << 3;
        out.extend_from_slice(&flags.to_le_bytes());
        let vote = vote.unwrap_or_default();
        out.extend_from_slice(&vote.term.to_le_bytes());
        out.extend_from_slice(&vote.node.to_le_bytes());
        for position in [committed, purged] {
            let position = position.unwrap_or_default();
            out.extend_from_slice(&position.term.to_le_bytes());
            out.extend_from_slice(&position.node.to_le_bytes());
            out.extend_from_slice(&position.index.to_le_bytes());
        }
        out.resize(HEADER_USED, 0);
        let crc = header_crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < 12 {
            return Err(HeaderError::Damaged("the file is shorter than a segment header"));
        }
        if bytes[..8] == [0; 8] {
            return Err(HeaderError::Damaged("the segment header is zeros"));
        }
        let used = bytes.get(..HEADER_USED);
        if bytes[..LABEL.len()] != LABEL {
            let mut labelled = used.unwrap_or_default().to_vec();
            if let Some(start) = labelled.first_chunk_mut() {
                *start = LABEL;
                if let Ok(header) = Self::parse(&labelled) {
                    return Err(HeaderError::Mislabelled(Box::new(header)));
                }
            }
        }
        // The directory is ours, and so are all files with a segment's name in it.
        if bytes[..8] != MAGIC {
            return Err(HeaderError::Damaged("it does not begin like a log segment"));
        }
        // Before the checksum: a newer program may have moved even that.
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(HeaderError::Newer(version));
        }
        let Some(bytes) = used else {
            return Err(HeaderError::Damaged("the file is shorter than a segment header"));
        };
        if version != FORMAT_VERSION || header_crc(bytes) != u32_at(bytes, 12) {
            return Err(HeaderError::Damaged("the segment header's checksum does not match"));
        }
        let flags = u32_at(bytes, 52);
        let position_at = |at: usize| Position {
            term: u64_at(bytes, at),
            node: u64_at(bytes, at + 8),
            index: u64_at(bytes, at + 16),
        };
        let mut salt = [0; 16];
        salt.copy_from_slice(&bytes[32..48]);
        Ok(Self {
            sequence: u64_at(bytes, 16),
            segment_bytes: u64_at(bytes, 24),
            salt,
            chain: u32_at(bytes, 48),
            carried: Carried {
                vote: (flags & 1 != 0).then(|| SavedVote {
                    term: u64_at(bytes, 56),
                    node: u64_at(bytes, 64),
                    committed: flags & 2 != 0,
                }),
                committed: (flags & 4 != 0).then(|| position_at(72)),
                purged: (flags & 8 != 0).then(|| position_at(96)),
            },
        })
    }
}

/// `bytes`: a whole header, as its length has been checked by whoever calls this.
fn header_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER_USED])
}

/// `at` is a constant within a header whose length has been checked.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
