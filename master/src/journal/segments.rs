//! The segments on disk and the one place where the log ends: writes records, rolls to the next
//! segment, and on open decides what of the bytes found is the log.
//!
//! Order of one write: records, sync, then the marker that says so. A marker is therefore proof
//! that everything before it was durable, though the marker itself may be lost with the power.
//! A new segment appears under its name only when its header is durable, and only after everything
//! before it is; its header is as good as a marker.
//!
//! On open the records are followed from the oldest segment on. At the first place that is not the
//! next record:
//! - a valid marker further on, or another segment, proves that something durable stood here, and a
//!   last segment shorter than it was made hides whether. That is damage, and the log is not opened
//!   unless the caller accepts the loss;
//! - nothing such further on: a write that was never finished. It is cut, with zeros written over
//!   it. Without the zeros an old record could fit a chain that later repeats the same bytes.

use dfs_service::page::Page;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use dfs_service::canary;

use super::disk::{LogDisk, LogFile, PosixDisk, is_zero, write_zeros};
use super::format::{
    Carried, FORMAT_VERSION, HEADER_BYTES, HEADER_SIZE, HeaderError, LABEL, MARKER_BYTES, Parsed,
    Position, RECORD_HEADER_BYTES, Record, SegmentHeader, encode_marker, find_marker, parse_record,
};
use super::{DurableSegment, JournalError, Location};

const NEXT_NAME: &str = "next.tmp";
/// No crash does that: a segment has its full size, durably, before it has its name.
const CUT_SHORT: &str = "the file is shorter than it was made, what followed is missing";

pub(super) fn segment_name(sequence: u64) -> String {
    format!("{sequence:016}.log")
}

pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    // `parse` alone would take a sign, too: another file for the same segment.
    let is_name = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_name.then(|| digits.parse().ok())?
}

/// The writing end of the log.
#[derive(Debug)]
pub(super) struct Segments {
    disk: Arc<dyn LogDisk>,
    segment_bytes: u64,
    /// Oldest first, without gaps. The last one is written.
    files: BTreeMap<u64, Arc<dyn LogFile>>,
    header: SegmentHeader,
    /// Where the next record goes.
    offset: u64,
    chain: u32,
    /// Whether a marker covers everything written.
    marked: bool,
    carried: Carried,
    buffer: Vec<u8>,
    /// The next segment's file while it is being filled with zeros, which takes longer than
    /// anybody should wait for an append.
    spare: Option<JoinHandle<io::Result<Arc<dyn LogFile>>>>,
}

/// What a replay found.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) entries: BTreeMap<u64, (Position, Location)>,
    pub(super) carried: Carried,
    /// What was removed from the end, if anything.
    pub(super) cut: Option<Cut>,
}

/// What becomes of a log in which something durable no longer reads back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OnDamage {
    Refuse,
    /// Refuse where nothing would be left.
    CutAndKeepSome,
    Cut,
}

/// Bytes at the end of the log that open removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment that was cut.
    pub file: PathBuf,
    /// The log now ends here.
    pub offset: u64,
    /// What stood there.
    pub reason: String,
    /// Whether acknowledged records may be among what was removed (only with `accept_loss`).
    pub lossy: bool,
}

impl Contents {
    fn replay(&mut self, record: Record, location: Location) {
        self.carried.note(&record);
        match record {
            Record::Entry { position, payload: _ } => {
                if self.carried.purged.is_none_or(|purged| purged.index < position.index) {
                    self.entries.insert(position.index, (position, location));
                }
            }
            Record::Truncate { from_index } => {
                self.entries.split_off(&from_index);
            }
            Record::Purge(position) => {
                self.entries = self.entries.split_off(&(position.index + 1));
            }
            Record::Vote(_) | Record::Committed(_) => {}
        }
    }
}

/// Where the walk over one segment ended.
struct End {
    offset: u64,
    reason: &'static str,
    marked: bool,
}

impl Segments {
    /// Finds the log on `disk`, or begins one.
    pub(super) fn open(
        disk: Arc<dyn LogDisk>,
        segment_bytes: u64,
        on_damage: OnDamage,
    ) -> Result<(Self, Contents), JournalError> {
        // A process that was killed may have left a segment whose name is not on disk: what is written to it from now on
        // would go with the name.
        disk.sync_names().map_err(|err| JournalError::io("sync", &*disk, "", err))?;
        let names = disk.list().map_err(|err| JournalError::io("list", &*disk, "", err))?;
        let mut sequences: Vec<u64> =
            names.iter().filter_map(|name| parse_segment_name(name)).collect();
        sequences.sort_unstable();

        let mut contents = Contents::default();
        let walk = walk(&disk, &sequences, on_damage, &mut contents)?;
        let mut kept = walk.kept;
        let mut end = walk.end;

        let hole = missing_before(&sequences, &contents);
        // Where something is damaged that is told: what follows it may say why the log begins late.
        if hole.is_some() && walk.damage.is_none() && on_damage == OnDamage::Refuse {
            return Err(JournalError::Damaged {
                // There is one: `missing_before` finds nothing where there is none.
                file: disk.path(&segment_name(sequences[0])),
                offset: HEADER_BYTES,
                reason: "entries before those in this segment are missing, or the last segments are, which say that those were purged",
            });
        }
        if let Some(damage) = walk.damage {
            let Damage { sequence, offset, reason } = damage;
            let file = disk.path(&segment_name(sequence));
            match on_damage {
                OnDamage::Refuse => {
                    return Err(JournalError::Damaged { file, offset, reason });
                }
                OnDamage::CutAndKeepSome if contents.entries.is_empty() => {
                    return Err(JournalError::NothingLeft { file, offset, reason });
                }
                OnDamage::CutAndKeepSome | OnDamage::Cut => {}
            }
            tracing::error!(
                file = %file.display(), offset, reason, see = %Page::DamagedLog,
                "cutting the damaged log here, as told: what was acknowledged after this is lost"
            );
            contents.cut = Some(Cut { file, offset, reason: reason.to_owned(), lossy: true });
            // Newest first: were the power to fail in between, no gap may look like a missing file.
            for &later in sequences.iter().rev() {
                if later > sequence || (later == sequence && offset < HEADER_BYTES) {
                    remove_durably(&*disk, later)?;
                }
            }
        }

        if names.iter().any(|name| name == NEXT_NAME) {
            disk.remove(NEXT_NAME)
                .map_err(|err| JournalError::io("remove", &*disk, NEXT_NAME, err))?;
        }
        let Some((header, file)) = kept.pop() else {
            let next = sequences.last().map_or(1, |last| last + 1);
            return Ok((Self::begin(disk, segment_bytes, next)?, contents));
        };
        let name = segment_name(header.sequence);
        let io_error = |doing, err| JournalError::io(doing, &*disk, &name, err);
        let byte_count = file.byte_count().map_err(|err| io_error("measure", err))?;
        let segment_end = header.segment_bytes.max(byte_count);
        let dirty = contents.cut.is_some()
            || !is_zero_from(&*file, end.offset, byte_count)
                .map_err(|err| io_error("read", err))?;
        if dirty {
            if contents.cut.is_none() {
                let file_path = disk.path(&name);
                tracing::warn!(
                    file = %file_path.display(), offset = end.offset, reason = end.reason,
                    "cutting an unfinished write from the end of the log"
                );
                contents.cut = Some(Cut {
                    file: file_path,
                    offset: end.offset,
                    reason: end.reason.to_owned(),
                    lossy: false,
                });
            }
            write_zeros(&*file, end.offset, segment_end)
                .map_err(|err| io_error("cut the end of", err))?;
            end.marked = false;
        }
        // After a crash of the process alone the last records may exist in the page cache only, and
        // they are about to be treated as durable.
        file.sync().map_err(|err| io_error("sync", err))?;
        if contents.cut.as_ref().is_some_and(|cut| cut.lossy) {
            let last = contents.entries.last_key_value().map(|(_, (position, _))| *position);
            let last = last.or(contents.carried.purged);
            if contents.carried.committed > last {
                contents.carried.committed = last;
            }
        }
        let mut files: BTreeMap<u64, Arc<dyn LogFile>> =
            kept.into_iter().map(|(header, file)| (header.sequence, file)).collect();
        files.insert(header.sequence, file);
        let mut segments = Self {
            disk: Arc::clone(&disk),
            segment_bytes,
            files,
            header,
            offset: end.offset,
            chain: walk.chain,
            marked: end.marked,
            carried: contents.carried,
            buffer: Vec::new(),
            spare: None,
        };
        if let Some(position) = hole {
            tracing::error!(
                upto = position.index,
                see = %Page::DamagedLog,
                "entries are missing, going on without them, as told"
            );
            let record = Record::Purge(position);
            segments.write([&record]).map_err(|err| io_error("write to", err))?;
            contents.carried.purged = Some(position);
        }
        segments.mark().map_err(|err| io_error("write to", err))?;
        Ok((segments, contents))
    }

    fn begin(
        disk: Arc<dyn LogDisk>,
        segment_bytes: u64,
        sequence: u64,
    ) -> Result<Self, JournalError> {
        let name = segment_name(sequence);
        let mut segments = Self {
            disk: Arc::clone(&disk),
            segment_bytes,
            files: BTreeMap::new(),
            header: SegmentHeader {
                sequence: sequence - 1,
                segment_bytes: 0,
                salt: [0; 16],
                chain: 0,
                carried: Carried::default(),
            },
            offset: 0,
            chain: 0,
            marked: true,
            carried: Carried::default(),
            buffer: Vec::new(),
            spare: None,
        };
        segments.roll(0).map_err(|err| JournalError::io("create", &*disk, &name, err))?;
        Ok(segments)
    }

    /// All segments, to be read by others.
    pub(super) fn files(&self) -> &BTreeMap<u64, Arc<dyn LogFile>> {
        &self.files
    }

    /// What may be copied.
    pub(super) fn durable(&self) -> io::Result<Vec<DurableSegment>> {
        let segment = |(&sequence, file): (&u64, &Arc<dyn LogFile>)| {
            let bytes = match sequence == self.header.sequence {
                true => self.offset,
                false => file.byte_count()?,
            };
            Ok(DurableSegment { name: segment_name(sequence), file: Arc::clone(file), bytes })
        };
        self.files.iter().map(segment).collect()
    }

    /// Writes `records` behind the log's end and makes them durable. Returns where the entries
    /// among them are, in order.
    ///
    /// After an error nothing is known about what is on disk: the log must not be written again.
    pub(super) fn write<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> io::Result<Vec<Location>> {
        let mut locations = Vec::new();
        for record in records {
            let at = self.offset + self.buffer.len() as u64;
            let at = if at + record.stored_bytes() + MARKER_BYTES <= self.header.segment_bytes {
                at
            } else {
                self.flush()?;
                // The last marker too must be durable: the next segment's chain begins behind it.
                self.finish()?;
                self.roll(record.stored_bytes())?;
                self.offset
            };
            record.encode(&mut self.chain, &mut self.buffer);
            self.carried.note(record);
            if let Record::Entry { payload, .. } = record {
                locations.push(Location {
                    sequence: self.header.sequence,
                    offset: at + RECORD_HEADER_BYTES as u64,
                    payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                    payload_crc: crc32c::crc32c(payload),
                });
            }
        }
        self.flush()?;
        Ok(locations)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let file = &self.files[&self.header.sequence];
        file.write_at(self.offset, &self.buffer)?;
        self.marked = false;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        if canary::sings("log-not-synced") {
            return Ok(());
        }
        file.sync()
    }

    /// Says in the log that everything written is durable. To be called after a write returned.
    pub(super) fn mark(&mut self) -> io::Result<()> {
        if self.marked || self.offset + MARKER_BYTES > self.header.segment_bytes {
            return Ok(());
        }
        let SegmentHeader { sequence, salt, .. } = self.header;
        encode_marker(&salt, sequence, self.offset, &mut self.chain, &mut self.buffer);
        self.files[&sequence].write_at(self.offset, &self.buffer)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        self.marked = true;
        Ok(())
    }

    /// Makes also the last marker durable, for an orderly end.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.mark()?;
        self.files[&self.header.sequence].sync()
    }

    /// Begins the next segment, with room for a record of `stored_bytes`. Everything in the current
    /// one is durable.
    fn roll(&mut self, stored_bytes: u64) -> io::Result<()> {
        let needed_bytes = HEADER_BYTES + stored_bytes + MARKER_BYTES;
        let segment_bytes = self.segment_bytes.max(needed_bytes.next_multiple_of(HEADER_BYTES));
        let sequence = self.header.sequence + 1;
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|err| io::Error::other(err.to_string()))?;
        let header = SegmentHeader {
            sequence,
            segment_bytes,
            salt,
            chain: self.chain,
            carried: self.carried,
        };
        let file = match self.take_spare() {
            Some(file) if segment_bytes == self.segment_bytes => file,
            Some(_) | None => self.disk.create_zeroed(NEXT_NAME, segment_bytes)?,
        };
        file.write_at(0, &header.encode())?;
        file.sync()?;
        self.disk.rename(NEXT_NAME, &segment_name(sequence))?;
        self.disk.sync_names()?;
        self.files.insert(sequence, file);
        self.header = header;
        self.offset = HEADER_BYTES;
        self.marked = true;
        Ok(())
    }

    /// Begins to make the next segment's file when the current one is half full.
    pub(super) fn prepare_ahead(&mut self) {
        if self.spare.is_some() || self.offset < self.header.segment_bytes / 2 {
            return;
        }
        let disk = Arc::clone(&self.disk);
        let segment_bytes = self.segment_bytes;
        let spare = std::thread::Builder::new()
            .name("log-spare".to_owned())
            .spawn(move || disk.create_zeroed(NEXT_NAME, segment_bytes));
        match spare {
            Ok(spare) => self.spare = Some(spare),
            Err(err) => tracing::warn!(%err, "the next log segment is made only when it is needed"),
        }
    }

    fn take_spare(&mut self) -> Option<Arc<dyn LogFile>> {
        match self.spare.take()?.join() {
            Ok(Ok(file)) => Some(file),
            Ok(Err(err)) => {
                tracing::warn!(%err, "the next log segment could not be made ahead");
                None
            }
            Err(_) => {
                tracing::error!("making the next log segment panicked");
                None
            }
        }
    }

    /// Deletes the segments before `first_needed`, which hold only what was purged durably.
    pub(super) fn remove_before(&mut self, first_needed: u64) -> Result<(), JournalError> {
        // Oldest first, each durably: what is left never has a gap.
        while let Some((&oldest, _)) = self.files.first_key_value() {
            if oldest >= first_needed.min(self.header.sequence) {
                break;
            }
            remove_durably(&*self.disk, oldest)?;
            self.files.remove(&oldest);
        }
        Ok(())
    }
}

/// If the oldest entries are gone though no purge point says so: what the purge point has to be for
/// the rest to be a log. The term is that of the first entry left, the true one is not known.
fn missing_before(sequences: &[u64], contents: &Contents) -> Option<Position> {
    let (&first_index, &(first, _)) = contents.entries.first_key_value()?;
    let next_index = contents.carried.purged.map_or(0, |purged| purged.index + 1);
    // The first segment of all has nothing before it.
    let may_miss = sequences.first().is_some_and(|&oldest| oldest > 1);
    (may_miss && next_index < first_index).then(|| Position { index: first_index - 1, ..first })
}

impl Drop for Segments {
    fn drop(&mut self) {
        // Whoever opens the directory next may want the same name.
        self.take_spare();
    }
}

fn remove_durably(disk: &dyn LogDisk, sequence: u64) -> Result<(), JournalError> {
    let name = segment_name(sequence);
    disk.remove(&name)
        .and_then(|()| disk.sync_names())
        .map_err(|err| JournalError::io("remove", disk, &name, err))
}

/// Makes a copy of a log one that opens: gives the last segment in `dir`, which ends where its records were durable when
/// the copy was taken, the size it was made with. `dir` is in use by nobody. Does nothing if there is no segment or its
/// header is no good: opening says that better.
///
/// # Errors
/// The operating system refused.
pub fn complete_copy(dir: &Path) -> Result<(), JournalError> {
    let disk = PosixDisk::new(dir);
    let names = disk.list().map_err(|err| JournalError::io("list", &disk, "", err))?;
    let Some(last) = names.iter().filter_map(|name| parse_segment_name(name)).max() else {
        return Ok(());
    };
    let name = segment_name(last);
    let complete = || {
        let file = disk.open(&name)?;
        let mut start = [0; HEADER_SIZE];
        let filled = file.read_at(0, &mut start)?;
        if let Ok(header) = SegmentHeader::parse(&start[..filled]) {
            write_zeros(&*file, file.byte_count()?, header.segment_bytes)?;
            file.sync()?;
        }
        Ok(())
    };
    complete().map_err(|err| JournalError::io("complete", &disk, &name, err))
}

struct Damage {
    sequence: u64,
    offset: u64,
    reason: &'static str,
}

struct Walk {
    /// The segments that hold the log up to `end`, which is in the last one.
    kept: Vec<(SegmentHeader, Arc<dyn LogFile>)>,
    end: End,
    chain: u32,
    damage: Option<Damage>,
}

/// Follows the records of all segments, changing nothing but the labels of headers that are proven, when told to cut.
fn walk(
    disk: &Arc<dyn LogDisk>,
    sequences: &[u64],
    on_damage: OnDamage,
    contents: &mut Contents,
) -> Result<Walk, JournalError> {
    let mut walk = Walk {
        kept: Vec::new(),
        end: End { offset: HEADER_BYTES, reason: "", marked: true },
        chain: 0,
        damage: None,
    };
    // First all headers: a newer one must be found before the others are judged.
    let mut opened = Vec::new();
    for &sequence in sequences {
        let name = segment_name(sequence);
        let io_error = |err| JournalError::io("read", &**disk, &name, err);
        let file = disk.open(&name).map_err(io_error)?;
        let mut start = [0; HEADER_SIZE];
        let filled = file.read_at(0, &mut start).map_err(io_error)?;
        let header = match SegmentHeader::parse(&start[..filled]) {
            Ok(header) if header.sequence != sequence => {
                Err("the segment header names another segment")
            }
            Ok(header) => Ok(header),
            Err(HeaderError::Newer(version)) => {
                return Err(JournalError::Newer {
                    file: disk.path(&name),
                    version,
                    supported: FORMAT_VERSION,
                });
            }
            Err(HeaderError::Damaged(reason)) => Err(reason),
            Err(HeaderError::Mislabelled(_)) if on_damage == OnDamage::Refuse => {
                Err("it does not begin like a log segment")
            }
            Err(HeaderError::Mislabelled(header)) => {
                let path = disk.path(&name);
                tracing::error!(
                    file = %path.display(), see = %Page::DamagedLog,
                    "a log segment did not begin like one: mended, as told; nothing in it is lost"
                );
                let mended = file.write_at(0, &LABEL).and_then(|()| file.sync());
                mended.map_err(|err| JournalError::io("mend", &**disk, &name, err))?;
                Ok(*header)
            }
        };
        opened.push((sequence, header, file));
    }

    for (at, (sequence, header, file)) in opened.iter().enumerate() {
        let header = match header {
            Ok(header) => header.clone(),
            Err(reason) => {
                walk.damage = Some(Damage { sequence: *sequence, offset: 0, reason });
                return Ok(walk);
            }
        };
        match walk.kept.last() {
            None => {
                contents.carried = header.carried;
                walk.chain = header.chain;
            }
            Some((before, _)) if before.sequence + 1 != *sequence => {
                walk.damage = Some(Damage {
                    sequence: before.sequence,
                    offset: walk.end.offset,
                    reason: "the segment after this one is missing",
                });
                return Ok(walk);
            }
            Some((before, _)) if header.chain != walk.chain => {
                walk.damage = Some(Damage {
                    sequence: before.sequence,
                    offset: walk.end.offset,
                    reason: walk.end.reason,
                });
                return Ok(walk);
            }
            Some(_) => {}
        }
        let name = segment_name(*sequence);
        let bytes =
            read_all(&**file).map_err(|err| JournalError::io("read", &**disk, &name, err))?;
        walk.end = walk_segment(&bytes, *sequence, &mut walk.chain, contents);
        walk.kept.push((header.clone(), Arc::clone(file)));
        let end = usize::try_from(walk.end.offset).unwrap_or(usize::MAX);
        if at + 1 < opened.len() {
            continue;
        }
        // A marker at the end itself, torn so that only its payload is left, vouches for nothing
        // more than what was found.
        let reason = if find_marker(&bytes, end + 1, &header).is_some() {
            walk.end.reason
        } else if (bytes.len() as u64) < header.segment_bytes {
            CUT_SHORT
        } else {
            continue;
        };
        let offset = walk.end.offset;
        walk.damage = Some(Damage { sequence: *sequence, offset, reason });
    }
    Ok(walk)
}

fn walk_segment(bytes: &Bytes, sequence: u64, chain: &mut u32, contents: &mut Contents) -> End {
    let mut offset = HEADER_SIZE;
    let mut marked = true;
    loop {
        match parse_record(bytes, offset, chain) {
            Parsed::Record { record, payload_crc, stored_bytes } => {
                let payload_bytes = match &record {
                    Record::Entry { payload, .. } => payload.len(),
                    Record::Vote(_)
                    | Record::Committed(_)
                    | Record::Truncate { .. }
                    | Record::Purge(_) => 0,
                };
                let location = Location {
                    sequence,
                    offset: (offset + RECORD_HEADER_BYTES) as u64,
                    payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
                    payload_crc,
                };
                contents.replay(record, location);
                offset += stored_bytes;
                marked = false;
            }
            Parsed::Marker { stored_bytes } => {
                offset += stored_bytes;
                marked = true;
            }
            Parsed::Invalid(reason) => return End { offset: offset as u64, reason, marked },
        }
    }
}

fn read_all(file: &dyn LogFile) -> io::Result<Bytes> {
    let byte_count = usize::try_from(file.byte_count()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; byte_count];
    let filled = file.read_at(0, &mut bytes)?;
    bytes.truncate(filled);
    Ok(Bytes::from(bytes))
}

fn is_zero_from(file: &dyn LogFile, from: u64, to: u64) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 20];
    let mut offset = from;
    while offset < to {
        let filled = file.read_at(offset, &mut buffer)?;
        if filled == 0 {
            break;
        }
        if !is_zero(&buffer[..filled]) {
            return Ok(false);
        }
        offset += filled as u64;
    }
    Ok(true)
}
