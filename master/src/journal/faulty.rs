//! A disk in memory that loses its power: what was not synced is lost, kept or torn, sector by
//! sector; names that were not synced go back in the order in which they were made. All from a seed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{LogDisk, LogFile};

const SECTOR_BYTES: usize = 512;

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators": enough for tests.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

#[derive(Clone, Debug)]
pub(super) struct FaultyDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct World {
    random: Random,
    files: BTreeMap<u64, Content>,
    next_id: u64,
    names: BTreeMap<String, u64>,
    /// The names as they were after each change since the last sync, that sync's first.
    name_history: Vec<BTreeMap<String, u64>>,
    /// Calls that still succeed; `None` for no end.
    calls_left: Option<usize>,
    lies: bool,
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct FaultyFile {
    world: Arc<Mutex<World>>,
    id: u64,
}

impl FaultyDisk {
    pub(super) fn new(seed: u64) -> Self {
        let world = World {
            random: Random::new(seed),
            files: BTreeMap::new(),
            next_id: 0,
            names: BTreeMap::new(),
            name_history: vec![BTreeMap::new()],
            calls_left: None,
            lies: false,
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// From now on a sync says it is done and does nothing.
    pub(super) fn lie(&self) {
        self.world().lies = true;
    }

    /// The power fails after so many more calls; each later one fails.
    pub(super) fn fail_after(&self, calls: usize) {
        self.world().calls_left = Some(calls);
    }

    /// What a machine finds that starts again after the power failed now.
    pub(super) fn lose_power(&self) {
        let mut world = self.world();
        let World { random, files, names, name_history, calls_left, .. } = &mut *world;
        *calls_left = None;
        *names = name_history[random.below(name_history.len())].clone();
        *name_history = vec![names.clone()];
        files.retain(|id, _| names.values().any(|kept| kept == id));
        for content in files.values_mut() {
            content.lose_unsynced(random);
        }
    }

    /// What the next process finds when this one was killed now: the kernel keeps everything.
    pub(super) fn kill(&self) {
        self.world().calls_left = None;
    }

    pub(super) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let id = world.names[name];
        let content = world.files.get_mut(&id).unwrap();
        edit(&mut content.current);
        content.durable.clone_from(&content.current);
    }
}

impl Content {
    fn lose_unsynced(&mut self, random: &mut Random) {
        let mut sectors: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        let mut bytes = self.durable.clone();
        for (offset, written) in &self.unsynced {
            let end = offset + written.len();
            bytes.resize(bytes.len().max(end), 0);
            let first = offset / SECTOR_BYTES;
            for sector in first..end.div_ceil(SECTOR_BYTES) {
                // The sector as it was before the first write to it.
                sectors.entry(sector).or_insert_with(|| vec![sector_of(&bytes, sector)]);
            }
            bytes[*offset..end].copy_from_slice(written);
            for sector in first..end.div_ceil(SECTOR_BYTES) {
                sectors.entry(sector).or_default().push(sector_of(&bytes, sector));
            }
        }
        self.durable.resize(bytes.len(), 0);
        for (sector, versions) in sectors {
            let start = sector * SECTOR_BYTES;
            let version = &versions[random.below(versions.len())];
            let end = (start + version.len()).min(self.durable.len());
            self.durable[start..end].copy_from_slice(&version[..end - start]);
        }
        self.current.clone_from(&self.durable);
        self.unsynced.clear();
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> Vec<u8> {
    let start = sector * SECTOR_BYTES;
    bytes[start..bytes.len().min(start + SECTOR_BYTES)].to_vec()
}

impl World {
    /// Whether the call still happens. The last one may have reached the disk, but fails.
    fn call(&mut self) -> io::Result<()> {
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn names_changed(&mut self) {
        self.name_history.push(self.names.clone());
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl LogDisk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let id = *self.world().names.get(name).ok_or_else(|| not_found(name))?;
        Ok(Arc::new(FaultyFile { world: Arc::clone(&self.world), id }))
    }

    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn LogFile>> {
        let mut world = self.world();
        world.call()?;
        let id = world.next_id;
        world.next_id += 1;
        let zeros = vec![0; usize::try_from(bytes).unwrap()];
        let content = Content { durable: zeros.clone(), current: zeros, unsynced: Vec::new() };
        world.files.insert(id, content);
        world.names.insert(name.to_owned(), id);
        world.names_changed();
        Ok(Arc::new(FaultyFile { world: Arc::clone(&self.world), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        let id = world.names.remove(from).ok_or_else(|| not_found(from))?;
        world.names.insert(to.to_owned(), id);
        world.names_changed();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.names.remove(name).ok_or_else(|| not_found(name))?;
        world.names_changed();
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut world = self.world();
        world.call()?;
        world.name_history = vec![world.names.clone()];
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/faulty").join(name)
    }
}

impl LogFile for FaultyFile {
    fn byte_count(&self) -> io::Result<u64> {
        Ok(self.world.lock().unwrap().files[&self.id].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let world = self.world.lock().unwrap();
        let bytes = &world.files[&self.id].current;
        let rest = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world.lock().unwrap();
        let failed = world.call();
        if failed.is_err() && world.random.below(2) == 0 {
            return failed;
        }
        let offset = usize::try_from(offset).unwrap();
        let content = world.files.get_mut(&self.id).unwrap();
        let end = offset + bytes.len();
        content.current.resize(content.current.len().max(end), 0);
        content.current[offset..end].copy_from_slice(bytes);
        content.unsynced.push((offset, bytes.to_vec()));
        failed
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world.lock().unwrap();
        world.call()?;
        if !world.lies {
            let content = world.files.get_mut(&self.id).unwrap();
            content.unsynced.clear();
            let Content { durable, current, .. } = content;
            durable.clone_from(current);
        }
        Ok(())
    }
}
