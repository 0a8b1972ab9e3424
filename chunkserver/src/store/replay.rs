//! The journal's beginning: which segments are needed, where their records end, and what the records do.
//!
//! A chain that ends is either the torn end of a crash or damage. Damage is: the chain ends in a segment that is not the
//! last, a later record of the last one says that what is missing was on disk, or the last one is shorter than it was
//! made. Then nothing is opened, unless told.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dfs_core::ids::{ChunkId, DiskId};
use dfs_proto::chunk_file::{ChunkHeader, DATA_AT, DISK_FORMAT, DiskLabel};
use dfs_proto::chunk_journal::{
    Change, Event, Op, RECORDS_AT, Record, RecordHead, SEGMENT_COPY_AT, SegmentHeader, get_record,
};
use dfs_proto::codec::DecodeError;
use dfs_service::canary;
use dfs_service::page::Page;

use super::checkpoint::{SlotWrite, write_slots};
use super::disk::{ChunkDisk, DiskFile, OpenMode};
use super::error::StoreError;
use super::files::{OpenFiles, chunk_dir, chunk_path};
use super::journal::JOURNAL_DIR;
use super::replica::{Effect, Replica, index};
use super::space::quarantine_path;

/// What the segments say before any record is applied.
#[derive(Debug)]
pub(super) struct Found {
    segments: Vec<FoundSegment>,
    /// All segment files.
    pub(super) names: Vec<String>,
    pub(super) highest_number: u64,
    pub(super) last_lsn: u64,
    pub(super) boot_id: String,
    /// Bulk data of each chunk is on disk up to this record.
    bulk_synced: BTreeMap<ChunkId, u64>,
    /// Damage that was to be accepted.
    pub(super) damaged: bool,
}

#[derive(Debug)]
struct FoundSegment {
    name: String,
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
    /// How large it was made; 0: an earlier release did not say.
    made_bytes: u64,
}

/// One chunk while the journal is replayed.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) replica: Replica,
    pub(super) slot_number: u64,
    /// Has neither a slot nor, so far, a record of its creation.
    pub(super) unborn: bool,
    /// One slot is lost: the other may be believed only if the journal continues it.
    pub(super) doubtful: bool,
    /// Takes no more operations: some are missing.
    pub(super) cut: bool,
    /// Something changed that is in no slot.
    pub(super) touched: bool,
    /// Has bulk data in the file that only its sums in the journal vouch for.
    pub(super) bulk_unsaved: bool,
    /// Its file was made anew: whatever the records do not carry is not there.
    pub(super) made: bool,
}

fn corrupt(name: &str, offset: u64, what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { file: format!("{JOURNAL_DIR}/{name}"), offset, what: what.into() }
}

/// Finds the segments that are needed and reads them once. All that is on the disk must be synced.
pub(super) fn find(
    disk: &dyn ChunkDisk,
    disk_id: DiskId,
    accept_loss: bool,
) -> Result<Found, StoreError> {
    let mut names = match disk.list(JOURNAL_DIR) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            if !accept_loss {
                return Err(corrupt("", 0, "the directory of the journal is missing"));
            }
            disk.make_dir(JOURNAL_DIR)?;
            disk.sync_dir("")?;
            Vec::new()
        }
        listed => listed?,
    };
    names.retain(|name| name.parse::<u32>().is_ok());
    names.sort_unstable();
    let mut segments = BTreeMap::new();
    for name in &names {
        let file = disk.open(&format!("{JOURNAL_DIR}/{name}"), OpenMode::Existing)?;
        if let Some((header, made_bytes)) = read_header(name, &*file)?
            && header.disk_id == disk_id
        {
            let segment = FoundSegment { name: name.clone(), file, header, made_bytes };
            segments.insert(segment.header.number, segment);
        }
    }
    let Some(last) = segments.last_key_value().map(|(_, segment)| segment.header.clone()) else {
        if !accept_loss {
            return Err(corrupt("", 0, "no segment has a valid header"));
        }
        return Ok(Found {
            segments: Vec::new(),
            names,
            highest_number: 0,
            last_lsn: 0,
            boot_id: String::new(),
            bulk_synced: BTreeMap::new(),
            damaged: true,
        });
    };
    let mut found = Found {
        segments: Vec::new(),
        names,
        highest_number: last.number,
        last_lsn: last.first_lsn.saturating_sub(1),
        boot_id: last.boot_id.clone(),
        bulk_synced: BTreeMap::new(),
        damaged: false,
    };
    let mut chain_before: Option<(u32, String, u64)> = None;
    for number in last.tail..=last.number {
        let Some(segment) = segments.remove(&number) else {
            damage(&mut found, accept_loss, corrupt("", 0, format!("no segment {number}")))?;
            chain_before = None;
            continue;
        };
        let FoundSegment { name, file, header, made_bytes } = &segment;
        if let Some((chain, name, at)) = chain_before.take()
            && chain != header.chain_before
        {
            let err = corrupt(&name, at, "the chain of records breaks off");
            damage(&mut found, accept_loss, err)?;
        }
        let bytes = read_all(&**file)?;
        let synced = &mut found.bulk_synced;
        let mut last_lsn = header.first_lsn.saturating_sub(1);
        let end = walk(&bytes, header, &mut |lsn, record, _| {
            if let Event::DataSynced { up_to } = record.event {
                let held = synced.entry(record.chunk).or_default();
                *held = up_to.max(*held);
            }
            last_lsn = lsn;
            Ok(())
        })
        .map_err(|(at, err)| corrupt(name, at, err.to_string()))?;
        found.last_lsn = last_lsn;
        if number == last.number
            && let Some(at) = proof_of_loss(&bytes, header, end.offset, last_lsn + 1)
        {
            let what = format!("a record is damaged; a later one at {at} says it was on disk");
            damage(&mut found, accept_loss, corrupt(name, end.offset, what))?;
        } else if number == last.number && (bytes.len() as u64) < *made_bytes {
            // No crash does that: a file has its full size, on disk, before it has a header.
            let what = format!("the file has {} of its {made_bytes} bytes", bytes.len());
            damage(&mut found, accept_loss, corrupt(name, end.offset, what))?;
        }
        chain_before = Some((end.chain, name.clone(), end.offset));
        found.segments.push(segment);
    }
    Ok(found)
}

fn damage(found: &mut Found, accept_loss: bool, err: StoreError) -> Result<(), StoreError> {
    if !accept_loss {
        return Err(err);
    }
    tracing::error!(%err, see = %Page::DamagedLog, "journal loss accepted: no replica here is current");
    found.damaged = true;
    Ok(())
}

/// The header, and how large the file was made (0: unknown).
fn read_header(
    name: &str,
    file: &dyn DiskFile,
) -> Result<Option<(SegmentHeader, u64)>, StoreError> {
    let mut newest: Option<(SegmentHeader, u64)> = None;
    for at in [0, SEGMENT_COPY_AT] {
        let mut bytes = vec![0; 4096];
        file.read_at(at, &mut bytes)?;
        match SegmentHeader::decode(&bytes) {
            Ok(header) if newest.as_ref().is_none_or(|(held, _)| held.number < header.number) => {
                let made_bytes = header.decode_size(&bytes).unwrap_or(0);
                newest = Some((header, made_bytes));
            }
            Err(DecodeError::Tag { tag, .. }) => {
                let file = format!("{JOURNAL_DIR}/{name}");
                return Err(StoreError::NewerFormat { file, found: tag, known: DISK_FORMAT });
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(newest)
}

fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; index(file.size()?)];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

struct WalkEnd {
    offset: u64,
    chain: u32,
}

type Visit<'a> = &'a mut dyn FnMut(u64, Record, &[u8]) -> Result<(), StoreError>;
type WalkError = (u64, Box<dyn std::error::Error + Send + Sync>);

/// Calls `visit` for each record of a segment, up to where the chain ends.
fn walk(bytes: &[u8], header: &SegmentHeader, visit: Visit<'_>) -> Result<WalkEnd, WalkError> {
    let mut offset = RECORDS_AT;
    let mut chain = header.chain();
    let mut lsn = header.first_lsn;
    loop {
        let rest = bytes.get(index(offset)..).unwrap_or_default();
        let next = get_record(rest, header.nonce, offset, chain);
        let next = next.map_err(|err| (offset, err.into()))?;
        let Some((head, record, payload)) = next.filter(|(head, ..)| head.lsn == lsn) else {
            return Ok(WalkEnd { offset, chain });
        };
        visit(lsn, record, payload).map_err(|err| (offset, err.into()))?;
        offset += head.stored_bytes() as u64;
        chain = head.chain;
        lsn += 1;
    }
}

/// Where a record stands, after the end of the chain, that was written when `lost_lsn` was on disk already.
fn proof_of_loss(bytes: &[u8], header: &SegmentHeader, from: u64, lost_lsn: u64) -> Option<u64> {
    (from..bytes.len() as u64).step_by(8).find(|&at| {
        let head = RecordHead::decode(&bytes[index(at)..], header.nonce, at);
        head.is_some_and(|head| lost_lsn <= head.synced_lsn)
    })
}

/// Everything a replay changes.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    pub(super) disk: &'a dyn ChunkDisk,
    pub(super) label: DiskLabel,
    pub(super) files: &'a OpenFiles,
    pub(super) loaded: &'a mut BTreeMap<ChunkId, Loaded>,
    /// Unsynced bytes may be lost: another boot.
    pub(super) rebooted: bool,
}

impl Replay<'_> {
    /// Applies all records, in order.
    pub(super) fn run(&mut self, found: &Found) -> Result<(), StoreError> {
        for FoundSegment { name, file, header, made_bytes: _ } in &found.segments {
            let bytes = read_all(&**file)?;
            walk(&bytes, header, &mut |lsn, record, payload| {
                if lsn == found.last_lsn && canary::sings("last-record-cut") {
                    return Ok(());
                }
                let synced = found.bulk_synced.get(&record.chunk).copied().unwrap_or(0);
                self.record(lsn, &record, payload, synced)
            })
            .map_err(|(at, err)| match err.downcast::<StoreError>() {
                Ok(err) => *err,
                Err(err) => corrupt(name, at, err.to_string()),
            })?;
        }
        Ok(())
    }

    fn record(
        &mut self,
        lsn: u64,
        record: &Record,
        payload: &[u8],
        bulk_synced: u64,
    ) -> Result<(), StoreError> {
        let Record { chunk, previous, event } = record;
        match event {
            Event::Create { spec } => {
                return match self.loaded.get_mut(chunk) {
                    Some(held) if held.unborn && held.replica.created_lsn == lsn => {
                        held.unborn = false;
                        held.touched = true;
                        Ok(())
                    }
                    Some(held) if lsn <= held.replica.created_lsn || lsn <= held.replica.lsn => {
                        Ok(())
                    }
                    // Names survive a killed process: somebody removed it. The master will miss it.
                    _ if !self.rebooted => Ok(()),
                    _ => self.make(*chunk, Replica::new(*spec, lsn)),
                };
            }
            Event::Delete => return self.delete(*chunk, lsn),
            Event::Op { .. }
            | Event::Promise { .. }
            | Event::AdoptSelf { .. }
            | Event::Adopted { .. }
            | Event::Clean
            | Event::DataSynced { .. }
            | Event::Forget { .. } => {}
        }
        // No file and no record of its creation: somebody removed it. The master will miss it.
        let Some(held) = self.loaded.get_mut(chunk) else { return Ok(()) };
        if held.unborn || lsn <= held.replica.lsn {
            return Ok(());
        }
        held.touched = true;
        held.cut |= *previous != held.replica.lsn && !held.cut;
        if !held.cut
            && let Event::Op { op } = event
        {
            let bulk = matches!(op.change, Change::Bulk { .. });
            if held.bulk_unsaved && !bulk {
                // The power may go again while this runs. The next replay must not judge the bulk data by blocks that
                // later operations have changed: from here on the slot vouches for it.
                save_now(self.files, self.disk, *chunk, held)?;
            }
            held.bulk_unsaved |= bulk && bulk_synced < lsn;
            let verify_bulk = held.made || self.rebooted && bulk_synced < lsn;
            held.cut =
                !replay_op(self.files, self.disk, *chunk, &held.replica, op, payload, verify_bulk)?;
        }
        // What was copied is in the file that is gone.
        held.cut |= held.made && matches!(event, Event::Adopted { .. });
        if !held.cut {
            held.doubtful = false;
            held.replica.apply_with_payload(lsn, event, payload.len() as u64);
            return Ok(());
        }
        match event {
            // Lost as an operation, yet it shows what was promised.
            Event::Promise { version } | Event::Op { op: Op { version, .. } } => {
                held.replica.promised = held.replica.promised.max(*version);
            }
            Event::Create { .. }
            | Event::AdoptSelf { .. }
            | Event::Adopted { .. }
            | Event::Clean
            | Event::DataSynced { .. }
            | Event::Forget { .. }
            | Event::Delete => {}
        }
        Ok(())
    }

    /// Makes the file whose name or header was lost.
    fn make(&mut self, chunk: ChunkId, replica: Replica) -> Result<(), StoreError> {
        let DiskLabel { fs_id, disk_id, .. } = self.label;
        let created_lsn = replica.created_lsn;
        let header = ChunkHeader { fs_id, disk_id, chunk, spec: replica.spec, created_lsn };
        let file = self.disk.open(&chunk_path(chunk), OpenMode::New)?;
        file.write_at(0, &header.encode())?;
        self.files.put(chunk, file);
        let loaded = Loaded {
            replica,
            slot_number: 0,
            unborn: false,
            doubtful: false,
            cut: false,
            touched: true,
            bulk_unsaved: false,
            made: true,
        };
        self.loaded.insert(chunk, loaded);
        Ok(())
    }

    fn delete(&mut self, chunk: ChunkId, lsn: u64) -> Result<(), StoreError> {
        let Some(held) = self.loaded.get(&chunk) else { return Ok(()) };
        if lsn <= held.replica.lsn || lsn <= held.replica.created_lsn {
            return Ok(());
        }
        self.loaded.remove(&chunk);
        self.files.remove(chunk);
        self.disk.rename(&chunk_path(chunk), &quarantine_path(chunk, lsn))?;
        self.disk.sync_dir(super::files::QUARANTINE_DIR)?;
        Ok(self.disk.sync_dir(&chunk_dir(chunk))?)
    }
}

fn save_now(
    files: &OpenFiles,
    disk: &dyn ChunkDisk,
    chunk: ChunkId,
    held: &mut Loaded,
) -> Result<(), StoreError> {
    held.slot_number += 1;
    let write = SlotWrite {
        number: held.slot_number,
        bytes: held.replica.to_slot(chunk, held.slot_number).encode(),
        file: files.get(disk, chunk)?,
        dir: Some(chunk_dir(chunk)),
    };
    write_slots(disk, &[write])?;
    held.bulk_unsaved = false;
    Ok(())
}

/// Puts an operation in place; `false` if its bulk data did not reach the disk.
fn replay_op(
    files: &OpenFiles,
    disk: &dyn ChunkDisk,
    chunk: ChunkId,
    replica: &Replica,
    op: &Op,
    payload: &[u8],
    verify_bulk: bool,
) -> Result<bool, StoreError> {
    let file = files.get(disk, chunk)?;
    if let Some((offset, len)) = replica.zeroed_by(&op.change) {
        Effect::Zero { offset, len }.put(&*file)?;
    }
    match &op.change {
        Change::Write { offset, .. } if !payload.is_empty() => {
            file.write_at(DATA_AT + offset, payload)?;
        }
        Change::Bulk { offset, len, sums } if verify_bulk => {
            let end = replica.len.max(offset + len);
            let size = replica.block_size();
            for &(block, sum) in sums {
                let block = u64::from(block);
                let mut bytes = vec![0; index(replica.block_len(block, end))];
                file.read_at(DATA_AT + block * size, &mut bytes)?;
                if crc32c::crc32c(&bytes) != sum {
                    return Ok(false);
                }
            }
        }
        Change::Write { .. }
        | Change::Bulk { .. }
        | Change::Zero { .. }
        | Change::Truncate { .. }
        | Change::Seal
        | Change::Nop => {}
    }
    Ok(true)
}

#[cfg(test)]
mod fuzz;
