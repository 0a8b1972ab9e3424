//! The journal's end: appending, group commit, rotation, and when a segment may be used again.
//!
//! Order: a segment is synced before the header of the next one is written, so a valid header proves that everything
//! before it was on disk. Appending never waits for space (the caller holds a chunk's lock, which the checkpoint that
//! makes space needs); [`Journal::admit`] does, before any lock is taken.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_core::ids::DiskId;
use dfs_proto::chunk_journal::{
    Place, RECORD_HEAD_BYTES, RECORDS_AT, Record, SEGMENT_COPY_AT, SegmentHeader, put_record,
};
use dfs_service::canary;
use dfs_service::page::Page;

use super::disk::{ChunkDisk, DiskFile, OpenMode};

pub(crate) const JOURNAL_DIR: &str = "journal";
/// Full segments that wait for a checkpoint before writers are held back.
const OLD_SEGMENTS_MAX: usize = 3;

/// What happens when the disk can no longer be trusted.
pub type FatalHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// Ends everything at the first error of a sync: the kernel marks the pages clean, so a second try would lie.
pub(super) struct Fate {
    dead: AtomicBool,
    handler: FatalHandler,
}

impl std::fmt::Debug for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fate").field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl Fate {
    pub(super) fn new(handler: FatalHandler) -> Self {
        Self { dead: AtomicBool::new(false), handler }
    }

    /// Returns only if the handler does (in tests).
    pub(super) fn fatal(&self, what: &str, err: &io::Error) -> io::Error {
        if !self.dead.swap(true, Ordering::SeqCst) {
            (self.handler)(&format!("{what}: {err}; see {}", Page::DamagedLog));
        }
        io::Error::new(err.kind(), format!("{what}: {err}"))
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// # Errors
    /// After a fatal error.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::other("the disk failed before")) } else { Ok(()) }
    }
}

#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn ChunkDisk>,
    fate: Arc<Fate>,
    disk_id: DiskId,
    boot_id: String,
    segment_bytes: u64,
    end: Mutex<End>,
    /// All records up to this one are on disk.
    synced_lsn: AtomicU64,
    /// The last record written.
    written_lsn: AtomicU64,
    /// Held by the one who syncs for all.
    sync_turn: Mutex<()>,
    room: Condvar,
    /// A segment became full since this was last asked.
    rotated: AtomicBool,
    /// Nobody makes checkpoints any more.
    closed: AtomicBool,
}

type Segment = Arc<dyn DiskFile>;

#[derive(Debug)]
struct OldSegment {
    segment: Segment,
    number: u64,
    last_lsn: u64,
}

#[derive(Debug)]
struct End {
    segment: Segment,
    number: u64,
    nonce: u64,
    offset: u64,
    chain: u32,
    next_lsn: u64,
    old: VecDeque<OldSegment>,
    free: Vec<Segment>,
    next_name: u32,
    buffer: Vec<u8>,
}

/// What a new end of the journal needs to know.
#[derive(Debug)]
pub(super) struct NewEnd {
    pub(super) disk_id: DiskId,
    pub(super) boot_id: String,
    pub(super) segment_bytes: u64,
    pub(super) number: u64,
    pub(super) first_lsn: u64,
    /// Names of segment files that hold nothing needed.
    pub(super) free: Vec<String>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another thread leaves counters and maps that are still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_path(name: &str) -> String {
    format!("{JOURNAL_DIR}/{name}")
}

impl Journal {
    /// Begins a new segment. Everything in the segments before it must be on disk elsewhere.
    pub(super) fn start(
        disk: Arc<dyn ChunkDisk>,
        fate: Arc<Fate>,
        new: NewEnd,
    ) -> io::Result<Self> {
        let NewEnd { disk_id, boot_id, segment_bytes, number, first_lsn, free } = new;
        let next_name = free.iter().filter_map(|name| name.parse::<u32>().ok()).max();
        let next_name = next_name.map_or(0, |n| n + 1);
        let mut segments = Vec::new();
        for name in free {
            let file = disk.open(&segment_path(&name), OpenMode::Existing)?;
            // Half-made by a process that was killed, or cut since: used as it is, its size would prove nothing.
            fill(&*file, file.size()?, segment_bytes)?;
            segments.push(file);
        }
        let (segment, next_name) = match segments.pop() {
            Some(segment) => (segment, next_name),
            None => (make_segment(&*disk, next_name, segment_bytes)?, next_name + 1),
        };
        let header = SegmentHeader {
            disk_id,
            number,
            tail: number,
            first_lsn,
            chain_before: 0,
            nonce: nonce()?,
            boot_id: boot_id.clone(),
        };
        write_header(&*segment, &header)?;
        segment.sync()?;
        let end = End {
            segment,
            number,
            nonce: header.nonce,
            offset: RECORDS_AT,
            chain: header.chain(),
            next_lsn: first_lsn,
            old: VecDeque::new(),
            free: segments,
            next_name,
            buffer: Vec::new(),
        };
        Ok(Self {
            disk,
            fate,
            disk_id,
            boot_id,
            segment_bytes,
            end: Mutex::new(end),
            synced_lsn: AtomicU64::new(first_lsn - 1),
            written_lsn: AtomicU64::new(first_lsn - 1),
            sync_turn: Mutex::new(()),
            room: Condvar::new(),
            rotated: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Most payload bytes of one record.
    pub(super) fn payload_max(&self) -> u64 {
        (self.segment_bytes - RECORDS_AT) / 2
    }

    pub(super) fn synced_lsn(&self) -> u64 {
        self.synced_lsn.load(Ordering::Acquire)
    }

    pub(super) fn written_lsn(&self) -> u64 {
        self.written_lsn.load(Ordering::Acquire)
    }

    /// Hands a record to the kernel; returns its number.
    pub(super) fn append(&self, record: &Record, payload: &[u8]) -> io::Result<u64> {
        self.fate.check()?;
        let mut end = lock(&self.end);
        let mut buffer = std::mem::take(&mut end.buffer);
        let result = self.append_locked(&mut end, record, payload, &mut buffer);
        // A rare large record should not keep its memory.
        if buffer.capacity() <= 1 << 20 {
            end.buffer = buffer;
        }
        result
    }

    fn append_locked(
        &self,
        end: &mut End,
        record: &Record,
        payload: &[u8],
        buffer: &mut Vec<u8>,
    ) -> io::Result<u64> {
        let mut chain = self.encode(end, record, payload, buffer);
        if self.segment_bytes < end.offset + buffer.len() as u64 {
            self.rotate(end)?;
            chain = self.encode(end, record, payload, buffer);
        }
        if let Err(err) = end.segment.write_at(end.offset, buffer) {
            // It may have landed in full all the same, and must not be found by a replay.
            return match end.segment.write_at(end.offset, &[0; RECORD_HEAD_BYTES]) {
                Ok(()) => Err(err),
                Err(second) => Err(self.fate.fatal("cut a journal record", &second)),
            };
        }
        let lsn = end.next_lsn;
        end.next_lsn += 1;
        end.offset += buffer.len() as u64;
        end.chain = chain;
        self.written_lsn.store(lsn, Ordering::Release);
        Ok(lsn)
    }

    fn encode(&self, end: &End, record: &Record, payload: &[u8], buffer: &mut Vec<u8>) -> u32 {
        buffer.clear();
        let place = Place {
            nonce: end.nonce,
            offset: end.offset,
            chain: end.chain,
            lsn: end.next_lsn,
            synced_lsn: self.synced_lsn(),
        };
        put_record(record, payload, &place, buffer)
    }

    /// Waits until the record is on disk; who comes first syncs for all that wait.
    pub(super) fn wait_durable(&self, lsn: u64) -> io::Result<()> {
        if lsn <= self.synced_lsn() {
            return Ok(());
        }
        let _turn = lock(&self.sync_turn);
        if lsn <= self.synced_lsn() {
            return Ok(());
        }
        self.fate.check()?;
        let (file, written) = {
            let end = lock(&self.end);
            (Arc::clone(&end.segment), end.next_lsn - 1)
        };
        if !canary::sings("journal-not-synced") {
            file.sync().map_err(|err| self.fate.fatal("sync the journal", &err))?;
        }
        self.synced_lsn.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    fn rotate(&self, end: &mut End) -> io::Result<()> {
        let segment = match end.free.pop() {
            Some(segment) => segment,
            None => {
                let segment = make_segment(&*self.disk, end.next_name, self.segment_bytes)?;
                end.next_name += 1;
                segment
            }
        };
        let file = &end.segment;
        file.sync().map_err(|err| self.fate.fatal("sync the journal", &err))?;
        self.synced_lsn.fetch_max(end.next_lsn - 1, Ordering::AcqRel);
        let number = end.number + 1;
        let header = SegmentHeader {
            disk_id: self.disk_id,
            number,
            tail: end.old.front().map_or(end.number, |old| old.number),
            first_lsn: end.next_lsn,
            chain_before: end.chain,
            nonce: nonce()?,
            boot_id: self.boot_id.clone(),
        };
        // On disk before the first record overwrites an old one: until then the header of the segment before this one
        // may name the old use of this file as needed.
        write_header(&*segment, &header)
            .and_then(|()| segment.sync())
            .map_err(|err| self.fate.fatal("begin a journal segment", &err))?;
        let full = std::mem::replace(&mut end.segment, segment);
        end.old.push_back(OldSegment {
            segment: full,
            number: end.number,
            last_lsn: end.next_lsn - 1,
        });
        end.number = number;
        end.nonce = header.nonce;
        end.offset = RECORDS_AT;
        end.chain = header.chain();
        self.rotated.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits while too many full segments wait for a checkpoint.
    pub(super) fn admit(&self) -> io::Result<()> {
        let mut end = lock(&self.end);
        while OLD_SEGMENTS_MAX <= end.old.len() {
            self.fate.check()?;
            if self.closed.load(Ordering::Acquire) {
                return Err(io::Error::other("the store was shut down"));
            }
            let waited = self.room.wait_timeout(end, Duration::from_millis(100));
            end = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Whether a segment became full since the last call: time for a checkpoint.
    pub(super) fn take_rotated(&self) -> bool {
        self.rotated.load(Ordering::Relaxed) && self.rotated.swap(false, Ordering::AcqRel)
    }

    /// The last record of the newest full segment, if any is full.
    pub(super) fn full_up_to(&self) -> Option<u64> {
        lock(&self.end).old.back().map(|old| old.last_lsn)
    }

    /// Frees the segments whose records are all below `needed`.
    pub(super) fn recycle(&self, needed: u64) {
        let mut end = lock(&self.end);
        while end.old.front().is_some_and(|old| old.last_lsn < needed) {
            let Some(old) = end.old.pop_front() else { break };
            end.free.push(old.segment);
        }
        drop(end);
        self.room.notify_all();
    }

    /// Makes one segment ahead, so that a rotation need not.
    pub(super) fn prepare_spare(&self) -> io::Result<()> {
        let name = {
            let mut end = lock(&self.end);
            if !end.free.is_empty() {
                return Ok(());
            }
            end.next_name += 1;
            end.next_name - 1
        };
        let segment = make_segment(&*self.disk, name, self.segment_bytes)?;
        lock(&self.end).free.push(segment);
        Ok(())
    }

    /// From now on a full journal is an error, not a reason to wait.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.notify_all();
    }
}

fn nonce() -> io::Result<u64> {
    getrandom::u64().map_err(|err| io::Error::other(format!("draw a nonce: {err}")))
}

fn write_header(file: &dyn DiskFile, header: &SegmentHeader) -> io::Result<()> {
    let bytes = header.encode_sized(file.size()?);
    file.write_at(0, &bytes)?;
    file.write_at(SEGMENT_COPY_AT, &bytes)
}

/// A new segment full of zeros: a sync then never has to change the file's extents (40 % less at the median).
fn make_segment(disk: &dyn ChunkDisk, name: u32, bytes: u64) -> io::Result<Segment> {
    let path = segment_path(&format!("{name:04}"));
    let file = disk.open(&path, OpenMode::New)?;
    if let Err(err) = fill(&*file, 0, bytes).and_then(|()| disk.sync_dir(JOURNAL_DIR)) {
        // Best effort: without it the half-made file is used by a later start.
        let _ = disk.remove(&path);
        return Err(err);
    }
    Ok(file)
}

/// Zeros from `at` to `end`, on disk; nothing if the file is that long.
fn fill(file: &dyn DiskFile, mut at: u64, end: u64) -> io::Result<()> {
    if end <= at {
        return Ok(());
    }
    let zeros = vec![0; 1 << 20];
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_at(at, &zeros[..step])?;
        at += step as u64;
    }
    file.sync()
}
