//! How much room there is: what the disk says, a capacity if one is set, the reserve, credits, quarantine.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::chunk_journal::Event;

use super::Space;
use super::engine::{Engine, State};
use super::error::StoreError;
use super::files::{QUARANTINE_DIR, chunk_dir, chunk_path};
use super::journal::lock;
use super::replica::Replica;

/// Header and two slots of a small chunk.
const CHUNK_OVERHEAD_BYTES: u64 = 12 << 10;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    chunk_bytes: AtomicU64,
    chunk_count: AtomicU64,
    reserved_bytes: AtomicU64,
    pub(super) quarantine_bytes: AtomicU64,
}

fn rounded(len: u64) -> u64 {
    len.next_multiple_of(4096)
}

fn subtract(counter: &AtomicU64, bytes: u64) {
    let less = |held: u64| Some(held.saturating_sub(bytes));
    // Never fails: the closure always has an answer.
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

impl Accounts {
    pub(super) fn grow(&self, from_len: u64, to_len: u64) {
        let (from, to) = (rounded(from_len), rounded(to_len));
        self.chunk_bytes.fetch_add(to.saturating_sub(from), Ordering::Relaxed);
        subtract(&self.chunk_bytes, from.saturating_sub(to));
    }

    pub(super) fn add_chunk(&self, len: u64) {
        self.chunk_count.fetch_add(1, Ordering::Relaxed);
        self.chunk_bytes.fetch_add(rounded(len) + CHUNK_OVERHEAD_BYTES, Ordering::Relaxed);
    }

    pub(super) fn remove_chunk(&self, len: u64) {
        subtract(&self.chunk_count, 1);
        subtract(&self.chunk_bytes, rounded(len) + CHUNK_OVERHEAD_BYTES);
    }

    pub(super) fn reserve(&self, bytes: u64) {
        self.reserved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        subtract(&self.reserved_bytes, bytes);
    }

    pub(super) fn add_quarantined(&self, bytes: u64) {
        self.quarantine_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Space set aside for operations that have no sequence number yet. Given back when dropped.
#[derive(Debug)]
pub struct SpaceCredit {
    engine: Arc<Engine>,
    bytes: u64,
}

impl SpaceCredit {
    pub(super) fn take(engine: &Arc<Engine>, bytes: u64) -> Result<Self, StoreError> {
        let accounts = &engine.accounts;
        accounts.reserve(bytes);
        let credit = Self { engine: Arc::clone(engine), bytes };
        // Credits count as used, this one too: two takers of the last bytes may both be refused, never both served.
        let short = engine.free_or_purge(0)?;
        match short {
            None => Ok(credit),
            Some(free_bytes) => Err(StoreError::NoSpace { free_bytes, need: bytes }),
        }
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for SpaceCredit {
    fn drop(&mut self) {
        self.engine.accounts.give_back(self.bytes);
    }
}

impl Engine {
    pub(super) fn space(&self) -> Space {
        let (room, total_bytes) = self.room().unwrap_or_else(|err| {
            tracing::warn!(%err, "ask the disk for its space");
            (0, 0)
        });
        let quarantine = self.accounts.quarantine_bytes.load(Ordering::Relaxed);
        let reserved = self.accounts.reserved_bytes.load(Ordering::Relaxed);
        let room = if self.config.capacity_bytes.is_some() { room } else { room + quarantine };
        let kept = self.kept_back(total_bytes);
        let free_bytes = room.saturating_sub(kept + reserved).min(total_bytes);
        Space {
            used_bytes: self.accounts.chunk_bytes.load(Ordering::Relaxed),
            free_bytes,
            total_bytes,
            chunk_count: self.accounts.chunk_count.load(Ordering::Relaxed),
        }
    }

    /// What could be written now, without regard to reserve and credits; and the whole.
    fn room(&self) -> Result<(u64, u64), StoreError> {
        let disk = self.disk.space()?;
        Ok(match self.config.capacity_bytes {
            None => (disk.free_bytes, disk.total_bytes),
            Some(capacity) => {
                let used = self.accounts.chunk_bytes.load(Ordering::Relaxed);
                (capacity.saturating_sub(used).min(disk.free_bytes), capacity)
            }
        })
    }

    fn kept_back(&self, total_bytes: u64) -> u64 {
        let share = total_bytes / 100 * u64::from(self.config.reserve_percent);
        // On a small disk a share is less than the journal needs to go on; a set capacity does not count the journal.
        match self.config.capacity_bytes {
            Some(_) => share,
            None => share.max((2 * self.config.segment_bytes).min(total_bytes / 4)),
        }
    }

    /// `None` if `bytes`, the reserve and all credits fit, perhaps after removing quarantined replicas; otherwise what
    /// is free.
    fn free_or_purge(&self, bytes: u64) -> Result<Option<u64>, StoreError> {
        for purge in [true, false] {
            let (room, total) = self.room()?;
            let kept = self.kept_back(total);
            let wanted = kept + self.accounts.reserved_bytes.load(Ordering::Relaxed) + bytes;
            if wanted <= room {
                return Ok(None);
            }
            if !purge || self.accounts.quarantine_bytes.load(Ordering::Relaxed) == 0 {
                return Ok(Some(room.saturating_sub(kept)));
            }
            self.purge_until(wanted)?;
        }
        Ok(None)
    }

    /// Whether the disk has room for a copy of `bytes`, perhaps after removing quarantined replicas. Into the reserve it may
    /// go, not into what was promised to others.
    pub(super) fn check_room_for_copy(&self, bytes: u64) -> Result<(), StoreError> {
        let wanted = || self.accounts.reserved_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        if self.disk.space()?.free_bytes < wanted() {
            self.purge_until(wanted())?;
        }
        let free_bytes = self.disk.space()?.free_bytes;
        if free_bytes < wanted() {
            return Err(StoreError::NoSpace { free_bytes, need: bytes });
        }
        Ok(())
    }

    /// Refuses growth beyond a set capacity, and everything while an operation waits for the disk to have room. Into
    /// the reserve it may go: the primary asked for credit, and a member must not refuse what others have applied.
    pub(super) fn check_space(&self, need: u64) -> Result<(), StoreError> {
        let is_stuck = || !lock(&self.stuck).is_empty();
        if is_stuck() {
            self.settle_all()?;
        }
        let stuck = is_stuck();
        let used = self.accounts.chunk_bytes.load(Ordering::Relaxed);
        let full = self.config.capacity_bytes.is_some_and(|capacity| capacity < used + need);
        if stuck || full {
            let free_bytes = self.config.capacity_bytes.map_or(0, |n| n.saturating_sub(used));
            return Err(StoreError::NoSpace { free_bytes, need });
        }
        Ok(())
    }

    pub(super) fn quarantine(
        &self,
        chunk: ChunkId,
        below: Option<ChunkVersion>,
    ) -> Result<(), StoreError> {
        let cell = self.cell(chunk)?;
        let mut state = cell.write();
        let Replica { len, promised, .. } = *state.held(chunk)?;
        if below.is_some_and(|below| below <= promised) {
            return Err(StoreError::Fenced { chunk, promised });
        }
        let lsn = self.append(chunk, &mut state, Event::Delete, &[])?;
        // Before the rename: a replay must not make the file again.
        self.journal.wait_durable(lsn)?;
        self.set_aside(chunk, lsn)?;
        self.drop_pending(&mut state, chunk);
        self.files.remove(chunk);
        *state = State::default();
        lock(&self.unslotted).remove(&chunk);
        drop(state);
        self.accounts.remove_chunk(len);
        self.forget(&cell);
        Ok(())
    }

    fn set_aside(&self, chunk: ChunkId, lsn: u64) -> Result<(), StoreError> {
        let to = quarantine_path(chunk, lsn);
        let bytes = match self.disk.allocated_bytes(&chunk_path(chunk)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(
                    chunk = chunk.0,
                    "the file of a chunk to be put aside is gone already"
                );
                return Ok(());
            }
            bytes => bytes?,
        };
        // Counted first: once it stands there, whoever needs room may remove it and subtract it.
        self.accounts.add_quarantined(bytes);
        self.disk
            .rename(&chunk_path(chunk), &to)
            .and_then(|()| self.disk.sync_dir(QUARANTINE_DIR))
            .and_then(|()| self.disk.sync_dir(&chunk_dir(chunk)))
            .map_err(|err| self.fate.fatal("put a chunk aside", &err))?;
        Ok(())
    }

    pub(super) fn purge_quarantine(&self, until_free_bytes: u64) -> Result<u64, StoreError> {
        let (_, total) = self.room()?;
        let reserved = self.accounts.reserved_bytes.load(Ordering::Relaxed);
        self.purge_until(until_free_bytes.saturating_add(self.kept_back(total) + reserved))
    }

    /// Quarantined replicas go, oldest first, while less than a fifth of the disk is free (DECISIONS 14).
    pub(super) fn keep_some_free(&self) -> Result<u64, StoreError> {
        if self.accounts.quarantine_bytes.load(Ordering::Relaxed) == 0 {
            return Ok(0);
        }
        let disk = self.disk.space()?;
        let wanted = disk.total_bytes / 5;
        if wanted <= disk.free_bytes { Ok(0) } else { self.purge_until(wanted) }
    }

    /// Until the disk has so much room.
    fn purge_until(&self, room_bytes: u64) -> Result<u64, StoreError> {
        // Two that need room would remove the same files.
        let _one = lock(&self.purging);
        let mut names = self.disk.list(QUARANTINE_DIR)?;
        // Names begin with the record of the deletion: by age.
        names.sort_unstable();
        let mut removed = 0;
        for name in names {
            if room_bytes <= self.disk.space()?.free_bytes {
                break;
            }
            let path = format!("{QUARANTINE_DIR}/{name}");
            let bytes = self.disk.allocated_bytes(&path)?;
            self.disk.remove(&path)?;
            subtract(&self.accounts.quarantine_bytes, bytes);
            removed += 1;
        }
        Ok(removed)
    }
}

pub(super) fn quarantine_path(chunk: ChunkId, lsn: u64) -> String {
    format!("{QUARANTINE_DIR}/{lsn:016x}.{:016x}", chunk.0)
}
