//! A replica on disk: one ordinary Linux file per chunk, which describes itself.
//!
//! ```text
//! 0        header, immutable, two copies (at 0 and 2048): who this is
//! 4 KiB    slot A: state as of one journal record; written when its number is even
//! 2 MiB    slot B: the same; written when its number is odd
//! 4 MiB    data: byte n of the chunk is at 4 MiB + n
//! ```
//!
//! The file is sparse: a slot takes the space of its content (state, block checksums, client table, record list), not
//! of its room. The first slot ever written is number 1, in B. A slot that fails its checksum loses to its twin; whether its
//! twin may be believed is told by the journal, whose records chain per chunk ([`crate::chunk_journal`]).
//!
//! The header is at fixed places whatever the chunk size, so that a disk can be scanned without any index. What is
//! beyond the chunk's length in the data area means nothing and may hold anything.
//!
//! [`DiskLabel`] is the text file that says whose disk this is.

use std::collections::BTreeMap;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId, FsId, InodeNo, ServerId};

use crate::codec::{
    DecodeError, Reader, Wire, get_field, get_group, get_list, put_group, put_list, wire_struct,
};
use crate::record_list::RecordList;

/// Format of label, header, slots and journal together.
pub const DISK_FORMAT: u32 = 1;
/// Bytes of one copy of the header, at most; the second copy is behind the first.
pub const HEADER_BYTES: usize = 2048;
pub const SLOT_A_AT: u64 = 4096;
pub const SLOT_B_AT: u64 = 2 << 20;
/// Room of one slot.
pub const SLOT_BYTES: usize = (2 << 20) - 4096;
/// Where byte 0 of the chunk is.
pub const DATA_AT: u64 = 4 << 20;
/// Largest checksum block; smaller chunks are one block (DECISIONS 22).
pub const BLOCK_BYTES_MAX: u64 = 64 << 10;
/// Largest chunk; bounds the checksum list of a slot.
pub const CHUNK_BYTES_MAX: u64 = 256 << 20;
/// Clients that one chunk remembers; more are told to wait (DECISIONS 4).
pub const CLIENTS_MAX: usize = 1024;
/// Results of unacknowledged appends that one chunk remembers, over all clients. With the bounds above, and that of a
/// record list, a slot fits.
pub const APPENDS_MAX: usize = 64 * 1024;

/// Directory of a chunk's file in the server's: the low byte spreads chunks, whose ids rise, over 256 of them.
#[must_use]
pub fn chunk_dir(chunk: ChunkId) -> String {
    format!("{:02x}", chunk.0 & 0xff)
}

/// A chunk's file in the server's directory: made of its id only.
#[must_use]
pub fn chunk_path(chunk: ChunkId) -> String {
    format!("{}/{:016x}", chunk_dir(chunk), chunk.0)
}

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"DFSCHUNK");
const SLOT_MAGIC: u32 = u32::from_le_bytes(*b"DSLT");

/// Which part of which file a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkSpec {
    pub inode: InodeNo,
    pub index: u64,
    pub chunk_size: u64,
}

impl ChunkSpec {
    /// Bytes under one checksum: min(64 KiB, chunk size), and never 0.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.chunk_size.clamp(1, BLOCK_BYTES_MAX)
    }
}

/// The state of a replica: version of the configuration it was adopted in, and the last operation applied in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    pub version: ChunkVersion,
    pub seq: u64,
}

/// What never changes about one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    pub fs_id: FsId,
    pub disk_id: DiskId,
    pub chunk: ChunkId,
    pub spec: ChunkSpec,
    /// Number of the journal record that made this file.
    pub created_lsn: u64,
}

wire_struct!(ChunkSpec { inode, index, chunk_size });
wire_struct!(Position { version, seq });
wire_struct!(ChunkHeader { fs_id, disk_id, chunk, spec, created_lsn });

/// What a replica remembers of one client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientEntry {
    /// Highest counter applied.
    pub highest: u64,
    /// Below it the client has every answer; results are dropped.
    pub low_water: u64,
    /// Where appends went: counter to offset and the length asked for, which may pass the chunk's end.
    pub appends: BTreeMap<u64, (u64, u64)>,
}

/// Which operations of which clients were applied to a chunk (DECISIONS 4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientTable {
    pub clients: BTreeMap<ClientId, ClientEntry>,
}

impl Wire for ClientTable {
    fn put(&self, out: &mut Vec<u8>) {
        put_group(out, |out| {
            let count = u32::try_from(self.clients.len()).unwrap_or(u32::MAX);
            count.put(out);
            for (client, entry) in &self.clients {
                client.put(out);
                entry.highest.put(out);
                entry.low_water.put(out);
                let appends: Vec<(u64, (u64, u64))> =
                    entry.appends.iter().map(|(k, v)| (*k, *v)).collect();
                put_list(&appends, out);
            }
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "client table")?;
        let count = get_field::<u32>(&mut group)? as usize;
        if CLIENTS_MAX < count {
            return Err(DecodeError::Range("client count"));
        }
        let mut clients = BTreeMap::new();
        for _ in 0..count {
            let client = ClientId::get(&mut group)?;
            let highest = u64::get(&mut group)?;
            let low_water = u64::get(&mut group)?;
            let appends = get_list::<(u64, (u64, u64))>(&mut group)?.into_iter().collect();
            clients.insert(client, ClientEntry { highest, low_water, appends });
        }
        Ok(Self { clients })
    }
    fn absent() -> Result<Self, DecodeError> {
        Ok(Self::default())
    }
}

/// The state of a replica as of journal record `lsn`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Rises by one with each slot of this file; even ones go to A, odd ones to B.
    pub number: u64,
    /// The last journal record about this chunk that is contained.
    pub lsn: u64,
    pub chunk: ChunkId,
    /// As in the header, should both its copies be damaged.
    pub spec: ChunkSpec,
    pub promised: ChunkVersion,
    pub position: Position,
    pub len: u64,
    pub sealed: bool,
    /// Has operations that are not known to be on every member's disk.
    pub dirty: bool,
    /// May lack operations it once acknowledged; ends only by adoption.
    pub not_current: bool,
    /// CRC32C of each block, the last one over what is inside the length.
    pub sums: Vec<u32>,
    pub clients: ClientTable,
    /// Of a record log: which bytes are records. A slot of an earlier release has none.
    pub records: RecordList,
}

struct Sums(Vec<u32>);

impl Wire for Sums {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(&self.0, out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        get_list(input).map(Self)
    }
}

impl Slot {
    /// Where the slot with this number is.
    #[must_use]
    pub fn at(number: u64) -> u64 {
        if number.is_multiple_of(2) { SLOT_A_AT } else { SLOT_B_AT }
    }

    /// Magic, length and checksum of the body, then the body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            number,
            lsn,
            chunk,
            spec,
            promised,
            position,
            len,
            sealed,
            dirty,
            not_current,
            sums,
            clients,
            records,
        } = self;
        let mut out = vec![0; 12];
        put_group(&mut out, |out| {
            number.put(out);
            lsn.put(out);
            chunk.put(out);
            spec.put(out);
            promised.put(out);
            position.put(out);
            len.put(out);
            sealed.put(out);
            dirty.put(out);
            not_current.put(out);
            put_list(sums, out);
            clients.put(out);
            // All other slots keep the form that they had before there were lists.
            if !records.is_empty() {
                records.put(out);
            }
        });
        seal(&mut out);
        out
    }

    /// The slot whose first bytes are `bytes`.
    ///
    /// # Errors
    /// `Short` if more bytes of it are needed ([`Slot::stored_bytes`]); anything else: this is no valid slot.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let stored = Self::stored_bytes(bytes)?;
        let body = bytes.get(12..stored).ok_or(DecodeError::Short("slot"))?;
        let mut input = Reader::new(&bytes[8..12]);
        if u32::get(&mut input)? != crc32c::crc32c(body) {
            return Err(DecodeError::Range("slot checksum"));
        }
        let mut group = get_group(&mut Reader::new(body), "slot")?;
        let slot = Self {
            number: get_field(&mut group)?,
            lsn: get_field(&mut group)?,
            chunk: get_field(&mut group)?,
            spec: get_field(&mut group)?,
            promised: get_field(&mut group)?,
            position: get_field(&mut group)?,
            len: get_field(&mut group)?,
            sealed: get_field(&mut group)?,
            dirty: get_field(&mut group)?,
            not_current: get_field(&mut group)?,
            sums: get_field::<Sums>(&mut group)?.0,
            clients: get_field(&mut group)?,
            records: get_field(&mut group)?,
        };
        let blocks = slot.len.div_ceil(slot.spec.block_size());
        if CHUNK_BYTES_MAX < slot.len || blocks != slot.sums.len() as u64 {
            return Err(DecodeError::Range("slot length"));
        }
        if slot.len < slot.records.end() {
            return Err(DecodeError::Range("record list of a slot"));
        }
        Ok(slot)
    }

    /// How many bytes the slot takes whose first bytes are `bytes`.
    ///
    /// # Errors
    /// If they do not begin a slot.
    pub fn stored_bytes(bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut input = Reader::new(bytes);
        if u32::get(&mut input)? != SLOT_MAGIC {
            return Err(DecodeError::Range("slot magic"));
        }
        let len = u32::get(&mut input)? as usize;
        if SLOT_BYTES - 12 < len {
            return Err(DecodeError::Range("slot size"));
        }
        Ok(12 + len)
    }
}

fn seal(out: &mut [u8]) {
    let len = u32::try_from(out.len() - 12).unwrap_or(u32::MAX);
    let crc = crc32c::crc32c(&out[12..]);
    out[0..4].copy_from_slice(&SLOT_MAGIC.to_le_bytes());
    out[4..8].copy_from_slice(&len.to_le_bytes());
    out[8..12].copy_from_slice(&crc.to_le_bytes());
}

impl ChunkHeader {
    /// Both copies, to be written at 0.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_BYTES);
        HEADER_MAGIC.put(&mut copy);
        DISK_FORMAT.put(&mut copy);
        self.put(&mut copy);
        let crc = crc32c::crc32c(&copy);
        crc.put(&mut copy);
        copy.resize(HEADER_BYTES, 0);
        copy.extend_from_within(..);
        copy
    }

    /// The first valid one of the two copies in the file's first 4 KiB.
    ///
    /// # Errors
    /// `Tag` names a newer format; anything else: both copies are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let first = Self::decode_copy(bytes);
        match (&first, bytes.get(HEADER_BYTES..)) {
            (Err(DecodeError::Range(_) | DecodeError::Short(_)), Some(second)) => {
                Self::decode_copy(second)
            }
            _ => first,
        }
    }

    fn decode_copy(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        if u64::get(&mut input)? != HEADER_MAGIC {
            return Err(DecodeError::Range("header magic"));
        }
        let format = u32::get(&mut input)?;
        let header = Self::get(&mut input)?;
        let read = bytes.len() - input.remaining();
        if u32::get(&mut input)? != crc32c::crc32c(&bytes[..read]) {
            return Err(DecodeError::Range("header checksum"));
        }
        match format {
            DISK_FORMAT => Ok(header),
            tag => Err(DecodeError::Tag { of: "chunk format", tag }),
        }
    }
}

/// Whose disk (data directory) this is: a text file of `key value` lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskLabel {
    pub format: u32,
    pub fs_id: FsId,
    pub disk_id: DiskId,
    pub server: ServerId,
}

impl DiskLabel {
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { format, fs_id, disk_id, server } = self;
        format!("format {format}\nfs_id {fs_id}\ndisk_id {:032x}\nserver {server}\n", disk_id.0)
    }

    /// Reads what [`Self::to_text`] wrote; unknown lines are skipped.
    ///
    /// # Errors
    /// Names the line that is missing or cannot be read.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let find = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value.trim())
                .ok_or_else(|| format!("no line '{key}'"))
        };
        let hex = |key: &str| {
            let value = find(key)?;
            u128::from_str_radix(value, 16).map_err(|_| format!("bad {key} '{value}'"))
        };
        let format = find("format")?;
        Ok(Self {
            format: format.parse().map_err(|_| format!("bad format '{format}'"))?,
            fs_id: FsId(hex("fs_id")?),
            disk_id: DiskId(hex("disk_id")?),
            server: find("server")?.parse().map_err(|err| format!("{err}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_list::{RECORD_LIST_BYTES_MAX, RecordPlace};

    fn slot() -> Slot {
        let entry = ClientEntry { highest: 9, low_water: 7, appends: [(8, (100, 5))].into() };
        Slot {
            number: 4,
            lsn: 99,
            chunk: ChunkId(0x1ab),
            spec: ChunkSpec { inode: InodeNo(5), index: 2, chunk_size: 1 << 20 },
            promised: ChunkVersion(3),
            position: Position { version: ChunkVersion(2), seq: 17 },
            len: 65_537,
            sealed: false,
            dirty: true,
            not_current: false,
            sums: vec![1, 2],
            clients: ClientTable { clients: [(ClientId(6), entry)].into() },
            records: RecordList::default(),
        }
    }

    fn header() -> ChunkHeader {
        ChunkHeader {
            fs_id: FsId(1),
            disk_id: DiskId(2),
            chunk: ChunkId(3),
            spec: slot().spec,
            created_lsn: 4,
        }
    }

    fn slot_of_records() -> Slot {
        let mut slot = slot();
        assert!(slot.records.push(RecordPlace { offset: 0, len: 65_000 }));
        assert!(slot.records.push(RecordPlace { offset: 65_000, len: 7 }));
        slot
    }

    #[test]
    fn a_slot_is_read_as_written_and_no_changed_bit_is_accepted() {
        assert_eq!(Slot::decode(&slot().encode()), Ok(slot()));
        let bytes = slot_of_records().encode();
        assert_eq!(Slot::decode(&bytes), Ok(slot_of_records()));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Slot::decode(&changed).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Slot::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_slot_that_checks_out_but_makes_no_sense_is_refused() {
        for change in [
            |slot: &mut Slot| slot.len = u64::MAX,
            |slot: &mut Slot| slot.sums.clear(),
            |slot: &mut Slot| slot.spec.chunk_size = 0,
            |slot: &mut Slot| {
                slot.records.push(RecordPlace { offset: 0, len: slot.len + 1 });
            },
        ] {
            let mut slot = slot();
            change(&mut slot);
            assert!(Slot::decode(&slot.encode()).is_err());
        }
    }

    #[test]
    fn a_full_slot_fits_its_room() {
        let mut slot = slot();
        slot.spec.chunk_size = CHUNK_BYTES_MAX;
        slot.len = CHUNK_BYTES_MAX;
        slot.sums = vec![7; 4096];
        let appends: BTreeMap<_, _> = (0..64).map(|n| (n, (n, n))).collect();
        let entry = ClientEntry { highest: 64, low_water: 0, appends };
        let clients = (0..CLIENTS_MAX as u128).map(|n| (ClientId(n), entry.clone()));
        slot.clients = ClientTable { clients: clients.collect() };
        slot.records = RecordList::decode(&[1; RECORD_LIST_BYTES_MAX]).unwrap();
        let bytes = slot.encode();
        assert!(bytes.len() <= SLOT_BYTES, "{}", bytes.len());
        assert_eq!(Slot::decode(&bytes), Ok(slot));
    }

    #[test]
    fn a_header_survives_the_loss_of_one_copy_only() {
        let bytes = header().encode();
        assert_eq!(ChunkHeader::decode(&bytes), Ok(header()));
        for at in 0..60 {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            assert_eq!(ChunkHeader::decode(&changed), Ok(header()), "byte {at}");
            changed[HEADER_BYTES + at] ^= 0x20;
            assert!(ChunkHeader::decode(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_label_is_read_as_written() {
        let label =
            DiskLabel { format: 1, fs_id: FsId(7), disk_id: DiskId(8), server: ServerId(9) };
        assert_eq!(DiskLabel::from_text(&label.to_text()), Ok(label));
        for text in ["", "format 1", "format x\nfs_id 7\ndisk_id 8\nserver cs-9\n"] {
            assert!(DiskLabel::from_text(text).is_err(), "{text:?}");
        }
    }

    /// The bytes of format 1: a change of these needs a new format number.
    #[test]
    fn the_form_of_slot_and_header_does_not_change() {
        assert_eq!(crc32c::crc32c(&slot().encode()), SLOT_SUM);
        assert_eq!(crc32c::crc32c(&slot_of_records().encode()), RECORDS_SLOT_SUM);
        assert_eq!(crc32c::crc32c(&header().encode()), HEADER_SUM);
    }
    const SLOT_SUM: u32 = 525_681_456;
    const RECORDS_SLOT_SUM: u32 = 2_530_252_866;
    const HEADER_SUM: u32 = 1_008_396_343;
}
