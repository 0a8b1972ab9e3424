//! Opening a data directory: label, scan of the chunk files, replay, checkpoint, and a fresh journal.
//!
//! Order: everything that the old journal says is in the slots, on disk, before the new segment's header is written;
//! a crash before that starts again from the same old journal. The new header also records the boot: replicas that were
//! DIRTY in another one are marked NOT_CURRENT in their slots before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use dfs_core::ids::{ChunkId, DiskId};
use dfs_proto::chunk_file::{ChunkHeader, DISK_FORMAT, DiskLabel, SLOT_BYTES, Slot};
use dfs_proto::codec::DecodeError;
use dfs_service::page::Page;

use super::StoreConfig;
use super::checkpoint::{SlotWrite, write_slots};
use super::disk::{ChunkDisk, DiskFile, OpenMode};
use super::engine::{Cell, Engine, State};
use super::error::StoreError;
use super::files::{
    ADOPT_SUFFIX, OpenFiles, QUARANTINE_DIR, chunk_dir, chunk_dirs, chunk_of_name, chunk_path,
};
use super::journal::{FatalHandler, Fate, JOURNAL_DIR, Journal, NewEnd};
use super::replay::{Loaded, Replay, find};
use super::replica::Replica;
use super::space::Accounts;
use super::sync::Signal;

const LABEL: &str = "label";
const BATCH: usize = 256;

/// What depends on the machine, or on a person's decision.
#[derive(Clone)]
pub struct OpenOptions {
    /// The kernel's boot: unsynced bytes survive within one.
    pub boot_id: String,
    /// Open although the journal is damaged: every replica is then NOT_CURRENT.
    pub accept_journal_loss: bool,
    /// The directory is an older copy, which a person goes on with: every replica is then NOT_CURRENT.
    pub is_older_copy: bool,
    /// Told of a failed sync; must not return outside of tests.
    pub on_fatal: FatalHandler,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("boot_id", &self.boot_id)
            .field("accept_journal_loss", &self.accept_journal_loss)
            .field("is_older_copy", &self.is_older_copy)
            .finish_non_exhaustive()
    }
}

impl OpenOptions {
    /// # Errors
    /// `Io` if the kernel does not tell its boot id (`random(4)`).
    pub fn for_this_boot() -> Result<Self, StoreError> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
            accept_journal_loss: false,
            is_older_copy: false,
            on_fatal: Arc::new(|what| {
                // Not through tracing: whatever it is set to, this line is the last that can be said.
                eprintln!("the disk cannot be trusted any more, ending: {what}");
                std::process::abort();
            }),
        })
    }
}

/// Below this a segment does not go: one record must hold any write that fits into a request.
const SMALL_SEGMENT_BYTES: u64 = 16 << 20;

/// The journal has up to five segments: on a small disk they are smaller, or nothing would be left for chunks.
fn segment_bytes(asked: u64, disk_bytes: u64) -> u64 {
    asked.min((disk_bytes / 16 / 4096 * 4096).max(SMALL_SEGMENT_BYTES))
}

/// Least room at a start: for slots, and for the server's own state beside the store.
const START_BYTES: u64 = 1 << 20;

/// Opens the directory. On a full disk replicas that were put aside go first, the oldest first, until there is room.
pub(super) fn open(
    config: StoreConfig,
    disk: Arc<dyn ChunkDisk>,
    options: OpenOptions,
) -> Result<Engine, StoreError> {
    let mut wanted = START_BYTES;
    make_room(&*disk, wanted)?;
    loop {
        let opened = open_with_room(config.clone(), Arc::clone(&disk), options.clone());
        let Err(StoreError::Io(error)) = &opened else { return opened };
        if Page::of_disk(error).is_none() {
            return opened;
        }
        // Begun again, it finds what it left: an end of the process there would not be noticed either.
        wanted = wanted.max(disk.space()?.free_bytes).saturating_add(SMALL_SEGMENT_BYTES);
        if make_room(&*disk, wanted)? == 0 {
            return Err(StoreError::DiskFull { dir: config.dir, error: error.to_string() });
        }
    }
}

/// Removes replicas that were put aside, the oldest first, until so much of the disk is free. Answers how many.
fn make_room(disk: &dyn ChunkDisk, wanted_bytes: u64) -> Result<u64, StoreError> {
    if wanted_bytes <= disk.space()?.free_bytes {
        return Ok(0);
    }
    let mut names = match disk.list(QUARANTINE_DIR) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        names => names?,
    };
    // By age, as they begin with the record of the deletion.
    names.sort_unstable();
    let mut removed = 0;
    for name in names {
        if wanted_bytes <= disk.space()?.free_bytes {
            break;
        }
        disk.remove(&format!("{QUARANTINE_DIR}/{name}"))?;
        removed += 1;
    }
    if 0 < removed {
        tracing::warn!(removed, see = %Page::FullDisk, "the disk is full: replicas that were put aside are removed, so that the server can start");
    }
    Ok(removed)
}

fn open_with_room(
    mut config: StoreConfig,
    disk: Arc<dyn ChunkDisk>,
    options: OpenOptions,
) -> Result<Engine, StoreError> {
    config.segment_bytes = segment_bytes(config.segment_bytes, disk.space()?.total_bytes);
    let OpenOptions { boot_id, accept_journal_loss, is_older_copy, on_fatal } = options;
    let fate = Arc::new(Fate::new(on_fatal));
    let (label, new) = match read_label(&config, &*disk)? {
        Some(label) => (label, false),
        None => (format_disk(&config, &*disk)?, true),
    };
    let files = OpenFiles::default();
    let mut loaded = BTreeMap::new();
    let (mut number, mut last_lsn, mut free) = (0, 0, Vec::new());
    if !new {
        // What a killed process left in the page cache is read below and taken for granted, names and slots too: a slot
        // that holds all there is is not written again, and the journal that could mend it is given up.
        disk.sync_all()?;
        let found = find(&*disk, label.disk_id, accept_journal_loss)?;
        load_chunks(&*disk, &label, &mut loaded)?;
        let rebooted = found.boot_id != boot_id;
        Replay { disk: &*disk, label, files: &files, loaded: &mut loaded, rebooted }.run(&found)?;
        remove_unborn(&*disk, &files, &mut loaded, found.last_lsn)?;
        judge(&mut loaded, rebooted, found.damaged || is_older_copy);
        save(&*disk, &files, &mut loaded)?;
        number = found.highest_number;
        last_lsn = loaded
            .values()
            .map(|held| held.replica.lsn.max(held.replica.created_lsn))
            .fold(found.last_lsn, u64::max);
        free = found.names;
    }
    let end = NewEnd {
        disk_id: label.disk_id,
        boot_id,
        segment_bytes: config.segment_bytes,
        number: number + 1,
        first_lsn: last_lsn + 1,
        free,
    };
    let journal = Journal::start(Arc::clone(&disk), Arc::clone(&fate), end)?;
    if new {
        write_label(&*disk, &label)?;
    }
    let accounts = Accounts::default();
    for name in disk.list(QUARANTINE_DIR)? {
        accounts.add_quarantined(disk.allocated_bytes(&format!("{QUARANTINE_DIR}/{name}"))?);
    }
    let cells = loaded.into_iter().map(|(chunk, held)| {
        accounts.add_chunk(held.replica.len);
        let floor = held.replica.len;
        let state = State {
            replica: Some(held.replica),
            slot_number: held.slot_number,
            floor,
            ..State::default()
        };
        (chunk, Arc::new(Cell::new(chunk, state)))
    });
    let cells: HashMap<_, _> = cells.collect();
    Ok(Engine {
        config,
        label,
        disk,
        fate,
        journal,
        files,
        cells: RwLock::new(cells),
        purging: Mutex::new(()),
        unslotted: Mutex::new(BTreeMap::new()),
        made_again: Mutex::default(),
        pending: Mutex::new(BTreeSet::new()),
        pending_bytes: AtomicU64::new(0),
        bulk: Mutex::new(BTreeSet::new()),
        stuck: Mutex::new(BTreeSet::new()),
        checkpoint_turn: Mutex::new(()),
        accounts,
        signal: Signal::default(),
    })
}

fn read_label(config: &StoreConfig, disk: &dyn ChunkDisk) -> Result<Option<DiskLabel>, StoreError> {
    let file = match disk.open(LABEL, OpenMode::Existing) {
        Ok(file) => file,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err.into()),
    };
    let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0).min(4096)];
    file.read_at(0, &mut bytes)?;
    let corrupt = |what| StoreError::Corrupt { file: LABEL.to_owned(), offset: 0, what };
    let text = String::from_utf8(bytes).map_err(|err| corrupt(err.to_string()))?;
    let label = DiskLabel::from_text(&text).map_err(corrupt)?;
    if DISK_FORMAT < label.format {
        return Err(StoreError::NewerFormat {
            file: LABEL.to_owned(),
            found: label.format,
            known: DISK_FORMAT,
        });
    }
    match config.fs_id {
        Some(asked) if asked != label.fs_id => {
            Err(StoreError::Foreign { dir: config.dir.clone(), found: label.fs_id, asked })
        }
        _ => Ok(Some(label)),
    }
}

/// Makes the directories. The label is written last: without it the next start begins anew.
fn format_disk(config: &StoreConfig, disk: &dyn ChunkDisk) -> Result<DiskLabel, StoreError> {
    let unlabelled = || StoreError::Unlabelled { dir: config.dir.clone() };
    let fs_id = config.fs_id.ok_or_else(unlabelled)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|err| std::io::Error::other(err.to_string()))?;
    for dir in [JOURNAL_DIR, QUARANTINE_DIR] {
        disk.make_dir(dir)?;
    }
    for dir in chunk_dirs(disk)? {
        if disk.list(&dir)?.iter().any(|name| chunk_of_name(&dir, name).is_some()) {
            let what = "there are chunks, but no label".to_owned();
            return Err(StoreError::Corrupt { file: LABEL.to_owned(), offset: 0, what });
        }
    }
    disk.sync_dir("")?;
    let disk_id = DiskId(u128::from_le_bytes(id));
    Ok(DiskLabel { format: DISK_FORMAT, fs_id, disk_id, server: config.server })
}

fn write_label(disk: &dyn ChunkDisk, label: &DiskLabel) -> Result<(), StoreError> {
    let file = disk.open("label.new", OpenMode::New)?;
    file.write_at(0, label.to_text().as_bytes())?;
    file.sync()?;
    disk.rename("label.new", LABEL)?;
    Ok(disk.sync_dir("")?)
}

fn load_chunks(
    disk: &dyn ChunkDisk,
    label: &DiskLabel,
    loaded: &mut BTreeMap<ChunkId, Loaded>,
) -> Result<(), StoreError> {
    // A process that was killed may have made directories whose names are not on the disk: from now on they count as there.
    disk.sync_dir("")?;
    for dir in chunk_dirs(disk)? {
        for name in disk.list(&dir)? {
            if name.ends_with(ADOPT_SUFFIX) {
                disk.remove(&format!("{dir}/{name}"))?;
            } else if let Some(chunk) = chunk_of_name(&dir, &name)
                && let Some(held) = load_chunk(disk, label, chunk)?
            {
                loaded.insert(chunk, held);
            }
        }
    }
    Ok(())
}

fn load_chunk(
    disk: &dyn ChunkDisk,
    label: &DiskLabel,
    chunk: ChunkId,
) -> Result<Option<Loaded>, StoreError> {
    let path = chunk_path(chunk);
    let file = disk.open(&path, OpenMode::Existing)?;
    let mut bytes = vec![0; 4096];
    file.read_at(0, &mut bytes)?;
    let header = match ChunkHeader::decode(&bytes) {
        Err(DecodeError::Tag { tag, .. }) => {
            return Err(StoreError::NewerFormat { file: path, found: tag, known: DISK_FORMAT });
        }
        // Made, but nothing of it reached the disk before a power failure.
        Err(_) if is_blank(&*file, &bytes)? => {
            disk.remove(&path)?;
            disk.sync_dir(&chunk_dir(chunk))?;
            return Ok(None);
        }
        Ok(header) if header.fs_id != label.fs_id || header.chunk != chunk => {
            tracing::warn!(path, "this file belongs elsewhere, left alone");
            return Ok(None);
        }
        header => header.ok(),
    };
    let slots = [read_slot(&*file, chunk, 0)?, read_slot(&*file, chunk, 1)?];
    let [a, b] = slots;
    let (newest, twin) = match (a, b) {
        (Ok(a), Ok(b)) if a.number < b.number => (Some(b), None),
        (Ok(a), Ok(_)) => (Some(a), None),
        (Ok(slot), Err(bad)) | (Err(bad), Ok(slot)) => (Some(slot), Some(bad)),
        (Err(_), Err(_)) => (None, Some(BadSlot::Garbage)),
    };
    let created_lsn = header.map_or(0, |header| header.created_lsn);
    let born = newest.is_some();
    // The first slot has no twin yet; all later ones do.
    let first = newest.as_ref().is_some_and(|slot| slot.number == 1);
    let doubtful = match twin {
        None => false,
        Some(BadSlot::Empty) => !first,
        Some(BadSlot::Garbage) => true,
    };
    let slot_number = newest.as_ref().map_or(0, |slot| slot.number);
    let replica = match (newest, header) {
        (Some(slot), _) => Replica::from_slot(slot, created_lsn),
        (None, Some(header)) => Replica::new(header.spec, created_lsn),
        (None, None) => Replica::new(Default::default(), 0),
    };
    Ok(Some(Loaded {
        replica,
        slot_number,
        unborn: !born,
        doubtful: doubtful && born,
        cut: header.is_none(),
        touched: header.is_none(),
        bulk_unsaved: false,
        made: false,
    }))
}

fn is_blank(file: &dyn DiskFile, header: &[u8]) -> Result<bool, StoreError> {
    let mut blank = header.iter().all(|byte| *byte == 0);
    for number in [0, 1] {
        let mut bytes = vec![0; 4096];
        file.read_at(Slot::at(number), &mut bytes)?;
        blank &= bytes.iter().all(|byte| *byte == 0);
    }
    Ok(blank)
}

pub(super) enum BadSlot {
    Empty,
    Garbage,
}

/// The slot where `number` would be.
pub(super) fn read_slot(
    file: &dyn DiskFile,
    chunk: ChunkId,
    number: u64,
) -> Result<Result<Slot, BadSlot>, StoreError> {
    let at = Slot::at(number);
    let mut bytes = vec![0; 4096];
    file.read_at(at, &mut bytes)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Err(BadSlot::Empty));
    }
    if let Ok(stored) = Slot::stored_bytes(&bytes)
        && bytes.len() < stored
    {
        bytes.resize(stored.min(SLOT_BYTES), 0);
        file.read_at(at, &mut bytes)?;
    }
    let slot =
        Slot::decode(&bytes).ok().filter(|slot| slot.chunk == chunk && Slot::at(slot.number) == at);
    Ok(slot.ok_or(BadSlot::Garbage))
}

/// Removes files whose creation is in no record: nothing of them was ever acknowledged.
fn remove_unborn(
    disk: &dyn ChunkDisk,
    files: &OpenFiles,
    loaded: &mut BTreeMap<ChunkId, Loaded>,
    last_lsn: u64,
) -> Result<(), StoreError> {
    let torn = |held: &Loaded| held.unborn && last_lsn < held.replica.created_lsn;
    let gone: Vec<_> = loaded.iter().filter(|(_, held)| torn(held)).map(|(id, _)| *id).collect();
    for chunk in gone {
        files.remove(chunk);
        disk.remove(&chunk_path(chunk))?;
        disk.sync_dir(&chunk_dir(chunk))?;
        // Keeps its number from being used again, in case the removal is undone.
        loaded.remove(&chunk);
    }
    Ok(())
}

/// Who may not have everything that was acknowledged.
fn judge(loaded: &mut BTreeMap<ChunkId, Loaded>, rebooted: bool, doubted: bool) {
    for (chunk, held) in loaded {
        let lost = held.unborn || held.doubtful || held.cut;
        if lost {
            tracing::warn!(?chunk, see = %Page::BadBlock, "replica is damaged, not current until it is copied anew");
        }
        let unsure = rebooted && held.replica.dirty;
        if (lost || doubted || unsure) && !held.replica.not_current {
            held.replica.not_current = true;
            held.touched = true;
        }
    }
}

/// Writes the slots of all replicas that changed.
fn save(
    disk: &dyn ChunkDisk,
    files: &OpenFiles,
    loaded: &mut BTreeMap<ChunkId, Loaded>,
) -> Result<(), StoreError> {
    let touched: Vec<_> =
        loaded.iter().filter(|(_, held)| held.touched).map(|(id, _)| *id).collect();
    for batch in touched.chunks(BATCH) {
        let mut writes = Vec::new();
        for &chunk in batch {
            let Some(held) = loaded.get_mut(&chunk) else { continue };
            held.slot_number += 1;
            writes.push(SlotWrite {
                number: held.slot_number,
                bytes: held.replica.to_slot(chunk, held.slot_number).encode(),
                file: files.get(disk, chunk)?,
                dir: Some(chunk_dir(chunk)),
            });
        }
        write_slots(disk, &writes)?;
    }
    Ok(())
}
