//! What is read from disks: chunk files, journals, labels, keys, snapshots.

use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId, FsId, InodeNo, ServerId};
use dfs_proto::chunk_file::{
    ChunkHeader, ChunkSpec, ClientEntry, ClientTable, DiskLabel, HEADER_BYTES, Position, Slot,
};
use dfs_proto::chunk_journal::{
    Change, Event, Op, Place, RECORD_HEAD_BYTES, Record, RecordHead, SegmentHeader, get_record,
    put_record,
};
use dfs_proto::codec::Wire;
use dfs_proto::record_list::{RecordList, RecordPlace};
use dfs_service::conn::ClusterKey;
use master::group::snapshot_files::{SnapshotFiles, SnapshotReader};

use crate::engine::Target;

const SPEC: ChunkSpec = ChunkSpec { inode: InodeNo(5), index: 2, chunk_size: 1 << 20 };

fn header() -> ChunkHeader {
    ChunkHeader {
        fs_id: FsId(1),
        disk_id: DiskId(2),
        chunk: ChunkId(3),
        spec: SPEC,
        created_lsn: 4,
    }
}

fn table() -> ClientTable {
    let entry = ClientEntry { highest: 9, low_water: 7, appends: [(8, (100, 5))].into() };
    ClientTable { clients: [(ClientId(6), entry), (ClientId(7), ClientEntry::default())].into() }
}

fn slot(number: u64, len: u64, clients: ClientTable) -> Slot {
    Slot {
        number,
        lsn: 99,
        chunk: ChunkId(0x1ab),
        spec: SPEC,
        promised: ChunkVersion(3),
        position: Position { version: ChunkVersion(2), seq: 17 },
        len,
        sealed: number % 2 == 1,
        dirty: true,
        not_current: false,
        sums: vec![7; usize::try_from(len.div_ceil(SPEC.block_size())).unwrap()],
        clients,
        records: RecordList::default(),
    }
}

fn slot_of_records() -> Slot {
    let mut slot = slot(5, 65_537, table());
    for place in [RecordPlace { offset: 0, len: 65_000 }, RecordPlace { offset: 65_100, len: 7 }] {
        assert!(slot.records.push(place));
    }
    slot
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        disk_id: DiskId(3),
        number: 4,
        tail: 2,
        first_lsn: 100,
        chain_before: 9,
        nonce: PLACE.nonce,
        boot_id: "0f1e2d3c-0000-4000-8000-123456789abc".to_owned(),
    }
}

const PLACE: Place = Place { nonce: 5, offset: 8192, chain: 77, lsn: 12, synced_lsn: 10 };

pub(crate) fn records() -> Vec<Record> {
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
    let mut of_a_record = op(Change::Write { offset: 7, sums: vec![(1, 0xdead_beef)] });
    if let Event::Op { op } = &mut of_a_record {
        op.record = true;
    }
    let sums = vec![(1, 0xdead_beef)];
    let events = [
        Event::Create { spec: SPEC },
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
        of_a_record,
    ];
    events.map(|event| Record { chunk: ChunkId(6), previous: 8, event }).into()
}

/// Bytes of all types on disks that are made of the codec's parts.
pub(crate) fn wire_values() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = records().iter().map(Wire::to_bytes).collect();
    values.extend([header().to_bytes(), table().to_bytes(), segment_header().to_bytes()]);
    values.push(slot_of_records().records.to_bytes());
    values
}

/// The checksum behind magic, format and one group.
fn seal_group(bytes: &mut [u8]) {
    let Some(len) = bytes.get(12..16) else { return };
    let end = 16 + u32::from_le_bytes(len.try_into().unwrap()) as usize;
    if end.checked_add(4).is_some_and(|all| all <= bytes.len()) {
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn headers_of_chunk_files() {
    // A prefix may hold the whole first copy.
    Target::new("chunk_header", vec![header().encode()])
        .prefixes_may_be_valid()
        .repaired_by(|bytes| seal_group(bytes))
        .run(|bytes| {
            let Ok(header) = ChunkHeader::decode(bytes) else { return false };
            let again = header.encode();
            assert_eq!(again.len(), 2 * HEADER_BYTES);
            assert_eq!(ChunkHeader::decode(&again), Ok(header));
            assert!(header.spec.block_size() != 0);
            true
        });
}

#[test]
fn slots_of_chunk_files() {
    let valid = vec![
        slot(1, 0, ClientTable::default()).encode(),
        slot(2, 65_537, table()).encode(),
        slot(3, 1 << 20, table()).encode(),
        slot_of_records().encode(),
    ];
    let seal = |bytes: &mut Vec<u8>| {
        if 12 <= bytes.len() {
            let len = u32::try_from(bytes.len() - 12).unwrap();
            let crc = crc32c::crc32c(&bytes[12..]);
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    };
    Target::new("chunk_slot", valid).repaired_by(seal).run(|bytes| {
        let Ok(slot) = Slot::decode(bytes) else { return false };
        assert!(Slot::stored_bytes(bytes).unwrap() <= bytes.len());
        assert_eq!(Slot::decode(&slot.encode()).as_ref(), Ok(&slot));
        assert_eq!(slot.sums.len() as u64, slot.len.div_ceil(slot.spec.block_size()));
        true
    });
}

#[test]
fn client_tables_of_chunk_files() {
    let valid = vec![table().to_bytes(), ClientTable::default().to_bytes()];
    Target::new("client_table", valid).run(|bytes| {
        let Ok(table) = ClientTable::from_bytes(bytes) else { return false };
        assert_eq!(ClientTable::from_bytes(&table.to_bytes()).as_ref(), Ok(&table));
        true
    });
}

#[test]
fn labels_of_disks() {
    let label = DiskLabel { format: 1, fs_id: FsId(7), disk_id: DiskId(8), server: ServerId(9) };
    let with_more = format!("{}later thing\n", label.to_text());
    let valid = [label.to_text(), with_more].map(String::into_bytes).to_vec();
    Target::new("disk_label", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(label) = DiskLabel::from_text(text) else { return false };
        assert_eq!(DiskLabel::from_text(&label.to_text()), Ok(label));
        true
    });
}

#[test]
fn headers_of_journal_segments() {
    Target::new("journal_segment_header", vec![segment_header().encode()])
        .repaired_by(|bytes| seal_group(bytes))
        .run(|bytes| {
            let Ok(header) = SegmentHeader::decode(bytes) else { return false };
            assert_eq!(SegmentHeader::decode(&header.encode()).as_ref(), Ok(&header));
            true
        });
}

#[test]
fn sizes_of_journal_segments() {
    let header = segment_header();
    let at = header.encode().len();
    let valid = [0, 64 << 20, u64::MAX].map(|bytes| header.encode_sized(bytes)[at..].to_vec());
    let seal = |bytes: &mut Vec<u8>| {
        if let Some((read, crc)) = bytes.split_last_chunk_mut::<4>() {
            *crc = crc32c::crc32c(read).to_le_bytes();
        }
    };
    Target::new("journal_segment_size", valid.to_vec()).repaired_by(seal).run(|bytes| {
        let whole = [&header.encode(), bytes].concat();
        let Ok(size) = header.decode_size(&whole) else { return false };
        assert_eq!(header.decode_size(&header.encode_sized(size)), Ok(size));
        true
    });
}

/// Length, checksum and chain of a record that takes all the bytes.
fn seal_record(bytes: &mut [u8]) {
    if bytes.len() < RECORD_HEAD_BYTES {
        return;
    }
    let body_len = u32::try_from(bytes.len() - RECORD_HEAD_BYTES).unwrap();
    bytes[4..8].copy_from_slice(&body_len.to_le_bytes());
    let place = crc32c::crc32c_append(
        crc32c::crc32c(&PLACE.nonce.to_le_bytes()),
        &PLACE.offset.to_le_bytes(),
    );
    let head_crc = crc32c::crc32c_append(place, &bytes[..24]);
    bytes[24..28].copy_from_slice(&head_crc.to_le_bytes());
    let chain = crc32c::crc32c_append(PLACE.chain, &bytes[..28]);
    let chain = crc32c::crc32c_append(chain, &bytes[RECORD_HEAD_BYTES..]);
    bytes[28..32].copy_from_slice(&chain.to_le_bytes());
}

#[test]
fn records_of_journals() {
    let encoded = |record: &Record, payload: &[u8], place: &Place| {
        let mut out = Vec::new();
        put_record(record, payload, place, &mut out);
        // Without the zeros up to 8: they say nothing.
        let head = RecordHead::decode(&out, place.nonce, place.offset).unwrap();
        out.truncate(RECORD_HEAD_BYTES + head.body_len as usize);
        out
    };
    let valid = records().iter().map(|record| encoded(record, b"payload", &PLACE)).collect();
    Target::new("journal_record", valid).repaired_by(|bytes| seal_record(bytes)).run(|bytes| {
        let (nonce, offset, chain) = (PLACE.nonce, PLACE.offset, PLACE.chain);
        let Ok(Some((head, record, payload))) = get_record(bytes, nonce, offset, chain) else {
            return false;
        };
        let place = Place { lsn: head.lsn, synced_lsn: head.synced_lsn, ..PLACE };
        let again = encoded(&record, payload, &place);
        let (_, record_again, payload_again) =
            get_record(&again, nonce, offset, chain).unwrap().unwrap();
        assert_eq!((record_again, payload_again), (record, payload));
        true
    });
}

#[test]
fn cluster_keys() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    ClusterKey::load_or_create(&made).unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let upper = b"0123456789ABCDEF".repeat(4);
    let valid = vec![b"0123456789abcdef".repeat(4), [&upper[..], b"\n"].concat()];
    // The newline at the end need not be there.
    Target::new("cluster_key", valid).inputs(3000).prefixes_may_be_valid().run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let Ok(_key) = ClusterKey::load(&path) else { return false };
        assert_eq!(bytes.trim_ascii().len(), 64);
        assert!(bytes.trim_ascii().iter().all(u8::is_ascii_hexdigit), "{bytes:02x?}");
        true
    });
}

const SNAPSHOT_HEADER_BYTES: usize = 56;

/// The checksum of the header, and the chain through all blocks that fit.
fn seal_snapshot(bytes: &mut [u8]) {
    let Some(len) = bytes.get(48..52) else { return };
    let end = SNAPSHOT_HEADER_BYTES + u32::from_le_bytes(len.try_into().unwrap()) as usize;
    if bytes.len() < end {
        return;
    }
    let mut chained = bytes[16..end].to_vec();
    let crc = crc32c::crc32c(&chained);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    // The chain begins with the header of no content.
    chained[24..32].fill(0);
    let mut chain = crc32c::crc32c(&chained);
    let mut at = end;
    while let Some(len) = bytes.get(at + 4..at + 8) {
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        let Some(content) = bytes.get(at + 8..at + 8 + len) else { return };
        chain = crc32c::crc32c_append(chain, &u32::try_from(len).unwrap().to_le_bytes());
        chain = crc32c::crc32c_append(chain, content);
        bytes[at..at + 4].copy_from_slice(&chain.to_le_bytes());
        at += 8 + len;
    }
}

#[test]
fn snapshot_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = SnapshotFiles::open(dir.path()).unwrap();
    let snapshot = |content: &[u8], group: &'static [u8]| {
        let position = master::journal::Position { term: 1, node: 2, index: 3 };
        let group = bytes::Bytes::from_static(group);
        let info = files.write(position, &group, |out| out.write_all(content)).unwrap();
        std::fs::read(info.path).unwrap()
    };
    let valid = vec![snapshot(b"", b""), snapshot(b"content of a snapshot", b"group state")];
    for bytes in &valid {
        let mut sealed = bytes.clone();
        seal_snapshot(&mut sealed);
        assert_eq!(*bytes, sealed, "the repair knows the format");
    }
    let path = dir.path().join("tried");
    let file = std::fs::File::create(&path).unwrap();
    // The reader's buffer, a block, a header's state.
    Target::new("snapshot_file", valid)
        .memory(4 << 20)
        .inputs(5000)
        .repaired_by(|bytes| seal_snapshot(bytes))
        .run(|bytes| {
            file.set_len(0).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let Ok(mut reader) = SnapshotReader::open(&path) else { return false };
            let mut content = Vec::new();
            if reader.read_to_end(&mut content).is_err() {
                return false;
            }
            assert_eq!(content.len() as u64, reader.info.content_bytes);
            assert_eq!(
                master::group::snapshot_files::verify(&path).unwrap().position,
                reader.info.position
            );
            true
        });
}
