//! A disk in memory that loses power.
//!
//! What was not synced survives in part: each 512-byte sector is, after a loss, what it was at the last sync or what it
//! became at some moment since; names that were made, changed or removed since their directory was synced are kept up
//! to a random one of these changes. It can also run full, stop at the n-th call, lie about
//! syncs, and lose sectors.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use super::disk::{ChunkDisk, DiskFile, DiskSpace, OpenMode};
use super::journal::lock;

const SECTOR: usize = 512;
const PAGE: u64 = 4096;

type Sectors = BTreeMap<u64, [u8; SECTOR]>;

/// The medium; it outlives the processes ([`FaultyHandle`]) that use it.
#[derive(Debug)]
pub struct FaultyDisk {
    world: Mutex<World>,
}

#[derive(Debug, Default)]
struct World {
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    dirs: BTreeSet<String>,
    /// Rises when the power goes or the process is killed; handles of before are dead.
    life: u64,
    dice: u64,
    /// Calls until the power goes.
    fuse: Option<u64>,
    /// Calls until the process is killed.
    kill_fuse: Option<u64>,
    losses: u64,
    full: bool,
    lying: bool,
}

#[derive(Clone, Debug, Default)]
struct FileState {
    /// A sector that is not there is all zeros.
    live: Sectors,
    durable: Sectors,
    dirty: BTreeSet<u64>,
    len: u64,
    durable_len: u64,
    /// Pages with space of their own.
    allocated: BTreeSet<u64>,
    /// Sectors that the medium does not give until they are written.
    unreadable: BTreeSet<u64>,
    /// Nor then.
    broken: bool,
}

#[derive(Clone, Debug)]
struct NameChange {
    from: Option<String>,
    to: Option<String>,
    file: u64,
}

/// How often processes ended, by kills and by losses of power, and how often by these alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub lives: u64,
    pub losses: u64,
}

/// One process's view of a [`FaultyDisk`].
#[derive(Clone, Debug)]
pub struct FaultyHandle {
    disk: Arc<FaultyDisk>,
    life: u64,
}

#[derive(Debug)]
struct FaultyFile {
    handle: FaultyHandle,
    file: u64,
}

impl FaultyDisk {
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let world = World { dice: seed | 1, ..World::default() };
        Arc::new(Self { world: Mutex::new(world) })
    }

    /// For a new process.
    #[must_use]
    pub fn handle(self: &Arc<Self>) -> FaultyHandle {
        let life = lock(&self.world).life;
        FaultyHandle { disk: Arc::clone(self), life }
    }

    /// The power goes now.
    pub fn lose_power(&self) {
        lock(&self.world).lose_power();
    }

    /// The process is gone; the kernel keeps everything.
    pub fn kill(&self) {
        lock(&self.world).end_life();
    }

    /// The process is killed at the n-th call that changes something.
    pub fn kill_after(&self, calls: u64) {
        lock(&self.world).kill_fuse = Some(calls);
    }

    /// What ended processes so far.
    #[must_use]
    pub fn ends(&self) -> Ends {
        let world = lock(&self.world);
        Ends { lives: world.life, losses: world.losses }
    }

    /// The power goes at the n-th call that changes something.
    pub fn lose_power_after(&self, calls: u64) {
        lock(&self.world).fuse = Some(calls);
    }

    #[must_use]
    pub fn losses(&self) -> u64 {
        lock(&self.world).losses
    }

    pub fn set_full(&self, full: bool) {
        lock(&self.world).full = full;
    }

    /// From now on a sync says yes and does nothing.
    pub fn set_lying(&self, lying: bool) {
        lock(&self.world).lying = lying;
    }

    /// Changes bytes on the medium, as rot does.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = lock(&self.world);
        let Some(file) = world.live.get(path).copied() else { return };
        let Some(state) = world.files.get_mut(&file) else { return };
        let mut bytes = vec![0; usize::try_from(state.len).unwrap_or(0)];
        state.read(0, &mut bytes);
        change(&mut bytes);
        state.live.clear();
        state.len = bytes.len() as u64;
        state.write(0, &bytes);
        state.durable = state.live.clone();
        state.durable_len = state.len;
        state.dirty.clear();
    }

    /// The sector at `offset` of a file cannot be read until it is written; `broken`: nor then.
    pub fn make_unreadable(&self, path: &str, offset: u64, broken: bool) {
        let mut world = lock(&self.world);
        let Some(file) = world.live.get(path).copied() else { return };
        let Some(state) = world.files.get_mut(&file) else { return };
        state.unreadable.insert(offset / SECTOR as u64);
        state.broken = broken;
    }

    /// Paths of all files.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        lock(&self.world).live.keys().cloned().collect()
    }
}

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        (self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % below.max(1)
    }

    fn end_life(&mut self) {
        self.life += 1;
        self.fuse = None;
        self.kill_fuse = None;
    }

    fn lose_power(&mut self) {
        self.end_life();
        self.losses += 1;
        let mut files = std::mem::take(&mut self.files);
        for state in files.values_mut() {
            for sector in std::mem::take(&mut state.dirty) {
                if self.draw(2) == 0 {
                    copy_sector(&state.live, &mut state.durable, sector);
                }
            }
            if self.draw(2) == 0 {
                state.durable_len = state.durable_len.max(state.len);
            }
            state.live = state.durable.clone();
            state.len = state.durable_len;
        }
        self.files = files;
        let changes = std::mem::take(&mut self.unsynced_names);
        let kept = self.draw(changes.len() as u64 + 1);
        for (_, change) in (0..kept).zip(&changes) {
            apply(&mut self.durable, change);
        }
        self.live = self.durable.clone();
        let named: BTreeSet<u64> = self.live.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
    }

    fn change_names(&mut self, change: NameChange) {
        apply(&mut self.live, &change);
        self.unsynced_names.push(change);
    }

    fn sync_names(&mut self, dir: &str) {
        if self.lying {
            return;
        }
        let changes = std::mem::take(&mut self.unsynced_names);
        let (synced, rest) = changes.into_iter().partition(|change| change.touches(dir));
        self.unsynced_names = rest;
        let synced: Vec<NameChange> = synced;
        synced.iter().for_each(|change| apply(&mut self.durable, change));
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    if let Some(from) = &change.from {
        names.remove(from);
    }
    if let Some(to) = &change.to {
        names.insert(to.clone(), change.file);
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl NameChange {
    fn touches(&self, dir: &str) -> bool {
        [&self.from, &self.to].into_iter().flatten().any(|path| dir_of(path) == dir)
    }
}

fn copy_sector(from: &Sectors, to: &mut Sectors, sector: u64) {
    match from.get(&sector) {
        Some(bytes) => to.insert(sector, *bytes),
        None => to.remove(&sector),
    };
}

impl FileState {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        let first = offset / SECTOR as u64;
        for (&sector, bytes) in self.live.range(first..end.div_ceil(SECTOR as u64)) {
            let start = sector * SECTOR as u64;
            let (from, to) = (start.max(offset), (start + SECTOR as u64).min(end));
            let of = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(0);
            buf[of(from, offset)..of(to, offset)]
                .copy_from_slice(&bytes[of(from, start)..of(to, start)]);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for sector in offset / SECTOR as u64..end.div_ceil(SECTOR as u64) {
            let start = sector * SECTOR as u64;
            let (from, to) = (start.max(offset), (start + SECTOR as u64).min(end));
            let of = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(0);
            let mut bytes = self.live.get(&sector).copied().unwrap_or([0; SECTOR]);
            bytes[of(from, start)..of(to, start)]
                .copy_from_slice(&data[of(from, offset)..of(to, offset)]);
            if bytes == [0; SECTOR] {
                self.live.remove(&sector);
            } else {
                self.live.insert(sector, bytes);
            }
            self.dirty.insert(sector);
            if !self.broken {
                self.unreadable.remove(&sector);
            }
        }
        self.len = self.len.max(end);
        self.allocated.extend(offset / PAGE..end.div_ceil(PAGE));
    }

    /// How much of a write fits if no new page may be taken.
    fn fits(&self, offset: u64, len: u64) -> u64 {
        let missing = (offset / PAGE..(offset + len).div_ceil(PAGE))
            .find(|page| !self.allocated.contains(page));
        missing.map_or(len, |page| (page * PAGE).saturating_sub(offset))
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            copy_sector(&self.live, &mut self.durable, sector);
        }
        self.durable_len = self.len;
    }
}

impl FaultyHandle {
    /// Runs `act` if this process lives and the power is on.
    fn with<T>(
        &self,
        changes: bool,
        act: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut world = lock(&self.disk.world);
        if changes && let Some(left) = world.fuse {
            world.fuse = Some(left.saturating_sub(1));
            if left == 0 {
                world.lose_power();
            }
        }
        if changes && let Some(left) = world.kill_fuse {
            world.kill_fuse = Some(left.saturating_sub(1));
            if left == 0 {
                world.end_life();
            }
        }
        if world.life != self.life {
            return Err(io::Error::other("the power is off"));
        }
        act(&mut world)
    }
}

fn missing(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.to_owned())
}

impl ChunkDisk for FaultyHandle {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.with(mode == OpenMode::New, |world| {
            if mode == OpenMode::Existing {
                return world.live.get(path).copied().ok_or_else(|| missing(path));
            }
            let file = world.next_file;
            world.next_file += 1;
            world.files.insert(file, FileState::default());
            world.change_names(NameChange { from: None, to: Some(path.to_owned()), file });
            Ok(file)
        })?;
        Ok(Arc::new(FaultyFile { handle: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(true, |world| {
            let file = world.live.get(from).copied().ok_or_else(|| missing(from))?;
            let (from, to) = (Some(from.to_owned()), Some(to.to_owned()));
            world.change_names(NameChange { from, to, file });
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.with(true, |world| {
            let file = world.live.get(path).copied().ok_or_else(|| missing(path))?;
            world.change_names(NameChange { from: Some(path.to_owned()), to: None, file });
            Ok(())
        })
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.with(true, |world| {
            world.dirs.insert(path.to_owned());
            Ok(())
        })
    }

    fn dirs(&self) -> io::Result<BTreeSet<String>> {
        self.with(false, |world| {
            let above = |name: &String| name.split_once('/').map(|(dir, _)| dir.to_owned());
            Ok(world.live.keys().filter_map(above).chain(world.dirs.iter().cloned()).collect())
        })
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.with(false, |world| {
            let prefix = format!("{path}/");
            let names = world.live.range(prefix.clone()..);
            let inside = names.take_while(|(name, _)| name.starts_with(&prefix));
            Ok(inside.map(|(name, _)| name[prefix.len()..].to_owned()).collect())
        })
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.with(true, |world| {
            world.sync_names(path);
            Ok(())
        })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.with(true, |world| {
            if !world.lying {
                world.files.values_mut().for_each(FileState::sync);
                let changes = std::mem::take(&mut world.unsynced_names);
                changes.iter().for_each(|change| apply(&mut world.durable, change));
            }
            Ok(())
        })
    }

    fn space(&self) -> io::Result<DiskSpace> {
        self.with(false, |world| {
            let total_bytes = 1 << 40;
            Ok(DiskSpace { free_bytes: if world.full { 0 } else { total_bytes }, total_bytes })
        })
    }

    fn allocated_bytes(&self, path: &str) -> io::Result<u64> {
        self.with(false, |world| {
            let file = world.live.get(path).ok_or_else(|| missing(path))?;
            Ok(world.files.get(file).map_or(0, |state| state.allocated.len() as u64 * PAGE))
        })
    }
}

impl FaultyFile {
    fn with<T>(
        &self,
        changes: bool,
        act: impl FnOnce(&mut FileState, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        self.handle.with(changes, |world| {
            let full = world.full;
            let state = world.files.get_mut(&self.file).ok_or_else(|| missing("inode"))?;
            act(state, full)
        })
    }
}

fn no_space() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(false, |state, _| {
            let end = (offset + buf.len() as u64).div_ceil(SECTOR as u64);
            if state.unreadable.range(offset / SECTOR as u64..end).next().is_some() {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            state.read(offset, buf);
            Ok(())
        })
    }

    fn uncache(&self, _offset: u64, _len: u64) {}

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(true, |state, full| {
            let fits = if full { state.fits(offset, data.len() as u64) } else { u64::MAX };
            let fits = usize::try_from(fits).unwrap_or(usize::MAX).min(data.len());
            state.write(offset, &data[..fits]);
            if fits < data.len() { Err(no_space()) } else { Ok(()) }
        })?;
        // The kernel writes pages back whenever it likes.
        self.handle.with(false, |world| {
            let first = offset / SECTOR as u64;
            let count = (data.len() as u64).div_ceil(SECTOR as u64);
            if world.draw(4) == 0
                && let sector = first + world.draw(count)
                && let Some(state) = world.files.get_mut(&self.file)
            {
                copy_sector(&state.live, &mut state.durable, sector);
            }
            Ok(())
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(true, |state, _| {
            let held = state.len;
            let zeros = vec![0; usize::try_from(len).unwrap_or(0)];
            state.write(offset, &zeros);
            state.len = held;
            for page in offset.div_ceil(PAGE)..(offset + len) / PAGE {
                state.allocated.remove(&page);
            }
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(true, |state, full| {
            if full && state.fits(offset, len) < len {
                return Err(no_space());
            }
            state.allocated.extend(offset / PAGE..(offset + len).div_ceil(PAGE));
            Ok(())
        })
    }

    fn first_hole(&self, offset: u64) -> io::Result<u64> {
        self.with(false, |state, _| {
            let pages = offset / PAGE..state.len.div_ceil(PAGE);
            let hole = pages.clone().find(|page| !state.allocated.contains(page));
            Ok(hole.unwrap_or(pages.end) * PAGE)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.with(true, |world| {
            let lying = world.lying;
            if let Some(state) = world.files.get_mut(&self.file)
                && !lying
            {
                state.sync();
            }
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.with(false, |state, _| Ok(state.len))
    }
}
