//! Loss of power at any write: the store must come back with exactly the effects of the entries up to some index
//! that is not below the last checkpoint.
//!
//! A disk here keeps what was synced. Of what was written since, each 512-byte sector is kept or lost by lot, and so
//! is each change of the file's length. `DFS_CRASH_LOSSES` sets how many losses; the seed is printed.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use dfs_core::command::{Change, Command, XattrMode};
use dfs_core::ids::{FsId, InodeNo};
use dfs_core::meta::{self, MemStore};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use redb::StorageBackend;

use super::tests::{applied, content, create_file};
use super::{RedbStore, StoreError};

const SECTOR_BYTES: usize = 512;

/// SplitMix64.
#[derive(Debug)]
struct Lots(u64);

impl Lots {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    fn index(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug)]
struct Disk {
    present: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
    lots: Lots,
    /// Writes until the power goes.
    writes_left: Option<u64>,
    /// What is on the disk after the power went, and the last checkpoint before.
    lost: Option<(Vec<u8>, Option<u64>)>,
    /// Index of the last checkpoint that returned.
    checkpoint: Option<u64>,
    /// There was something unsynced then.
    lost_something: bool,
    /// Says that it synced, and did not.
    lies: bool,
}

impl Disk {
    fn new(image: Vec<u8>, lots: Lots, lies: bool) -> Self {
        Self {
            present: image.clone(),
            synced: image,
            unsynced: Vec::new(),
            lots,
            writes_left: None,
            lost: None,
            checkpoint: None,
            lost_something: false,
            lies,
        }
    }

    /// Called before each write and sync.
    fn tick(&mut self) {
        match self.writes_left {
            Some(0) => {
                self.writes_left = None;
                let image = self.image_after_loss();
                self.lost = Some((image, self.checkpoint));
            }
            Some(left) => self.writes_left = Some(left - 1),
            None => {}
        }
    }

    fn image_after_loss(&mut self) -> Vec<u8> {
        self.lost_something = !self.unsynced.is_empty();
        let mut image = self.synced.clone();
        for change in &self.unsynced {
            match change {
                Unsynced::Len(len) => {
                    if self.lots.below(2) == 0 {
                        image.resize(*len, 0);
                    }
                }
                Unsynced::Write(offset, data) => {
                    // A whole write kept or lost is as likely as a torn one.
                    let fate = self.lots.below(4);
                    for (i, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        let kept = fate == 0 || (fate != 1 && self.lots.below(2) == 0);
                        if kept {
                            let at = offset + i * SECTOR_BYTES;
                            let end = at + sector.len();
                            if image.len() < end {
                                image.resize(end, 0);
                            }
                            image[at..end].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        image
    }
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let bytes = disk.present.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.tick();
        let len = usize::try_from(len).unwrap();
        disk.present.resize(len, 0);
        disk.unsynced.push(Unsynced::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.tick();
        if !disk.lies {
            disk.synced = disk.present.clone();
            disk.unsynced.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.tick();
        let from = usize::try_from(offset).unwrap();
        disk.present[from..from + data.len()].copy_from_slice(data);
        disk.unsynced.push(Unsynced::Write(from, data.to_vec()));
        Ok(())
    }
}

/// One store's life over several losses.
struct Life {
    lots: Lots,
    image: Vec<u8>,
    /// The state after entry `i`; 0 is the empty store.
    history: Vec<MemStore>,
    /// The disk holds at least this entry.
    floor: u64,
    lies: bool,
    /// Losses with something unsynced to lose.
    in_flight: u64,
    /// Losses that left an unfinished new file.
    remade: u64,
}

impl Life {
    fn new(seed: u64, lies: bool) -> Self {
        Self {
            lots: Lots(seed),
            image: Vec::new(),
            history: vec![MemStore::new()],
            floor: 0,
            lies,
            in_flight: 0,
            remade: 0,
        }
    }

    fn random_command(&mut self) -> Command {
        let lots = &mut self.lots;
        let name = format!("{}-{}", "n".repeat(lots.index(40)), lots.below(30)).into_bytes();
        let parent = InodeNo::ROOT;
        let change = match lots.below(4) {
            0 | 1 => create_file(&name, true),
            2 => Change::Unlink { parent, name },
            _ => Change::SetXattr {
                ino: parent,
                name: format!("user.{}", lots.below(10)).into_bytes(),
                value: lots.draw().to_le_bytes().repeat(lots.index(500)),
                mode: XattrMode::Set,
            },
        };
        Command { at: WallTime(0), id: None, results: Results::default(), change }
    }

    /// Opens, applies, loses power; answers what was wrong with what the disk had.
    fn live_once(&mut self) -> Result<(), String> {
        let seed = self.lots.draw();
        let disk =
            Arc::new(Mutex::new(Disk::new(std::mem::take(&mut self.image), Lots(seed), self.lies)));
        // Now and then early enough to hit opening and recovery.
        let writes_left =
            if self.lots.below(4) == 0 { self.lots.below(12) } else { self.lots.below(120) };
        {
            let mut disk = disk.lock().unwrap();
            disk.writes_left = Some(writes_left);
            disk.checkpoint = Some(self.floor);
        }
        let store = match RedbStore::open_backend(Backend(Arc::clone(&disk))) {
            Ok(store) => store,
            // Power was lost while the file was made: the master deletes it, and nothing is missing.
            Err(StoreError::Damaged(_)) if self.floor == 0 => {
                self.history.truncate(1);
                self.remade += 1;
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let store = store.checkpoint_every(self.lots.below(20_000));
        self.check(&store)?;

        let attempted = 1 + self.lots.below(40);
        for _ in 0..attempted {
            if disk.lock().unwrap().lost.is_some() {
                break;
            }
            self.apply_one(&store);
            if self.lots.below(12) == 0 {
                store.checkpoint();
            }
            disk.lock().unwrap().checkpoint = store.durable_index();
        }
        let (image, floor) = {
            let mut disk = disk.lock().unwrap();
            let lost = disk.lost.take();
            lost.unwrap_or_else(|| (disk.image_after_loss(), disk.checkpoint))
        };
        self.in_flight += u64::from(disk.lock().unwrap().lost_something);
        // What redb writes while it closes goes to a disk that is no longer there.
        drop(store);
        self.image = image;
        self.floor = floor.unwrap_or(0);
        Ok(())
    }

    fn apply_one(&mut self, store: &RedbStore) {
        let index = self.history.len() as u64;
        let mut model = self.history.last().unwrap().clone();
        let commands: Vec<Command> =
            (0..=self.lots.below(4)).map(|_| self.random_command()).collect();
        let expected: Vec<_> = {
            meta::init(&mut model, FsId(1), 3, 2, WallTime(0));
            commands.iter().map(|command| meta::apply(&mut model, command)).collect()
        };
        let outcomes: Vec<_> = store.batch(&applied(index), |store| {
            meta::init(store, FsId(1), 3, 2, WallTime(0));
            commands.iter().map(|command| meta::apply(store, command)).collect()
        });
        assert_eq!(outcomes, expected);
        self.history.push(model);
    }

    /// Compares the opened store with the model, and goes on from where it is.
    fn check(&mut self, store: &RedbStore) -> Result<(), String> {
        let index = store.applied().map_or(0, |applied| applied.index);
        if store.applied().is_some_and(|found| found != applied(index)) {
            return Err(format!("what was applied at {index} is mixed up"));
        }
        if index < self.floor || self.history.len() as u64 <= index {
            return Err(format!("entry {index}, but {} was durable", self.floor));
        }
        self.history.truncate(usize::try_from(index).unwrap() + 1);
        if content(&store.reader()) != *self.history.last().unwrap() {
            return Err(format!("the content is not that after entry {index}"));
        }
        Ok(())
    }
}

#[test]
fn no_loss_of_power_takes_what_was_checkpointed() {
    let losses: u64 = std::env::var("DFS_CRASH_LOSSES").map_or(2_000, |text| text.parse().unwrap());
    let (mut done, mut in_flight, mut remade, mut seed) = (0, 0, 0, 0);
    while done < losses {
        seed += 1;
        let mut life = Life::new(seed, false);
        for _ in 0..20 {
            life.live_once().unwrap_or_else(|wrong| panic!("seed {seed}, loss {done}: {wrong}"));
            done += 1;
        }
        in_flight += life.in_flight;
        remade += life.remade;
    }
    println!("{done} losses, {in_flight} with unsynced writes, {remade} of a file being made");
    assert!(remade < done / 10, "{remade} of {done} losses tried nothing");
    assert!(done / 4 < in_flight, "only {in_flight} of {done} losses had something to lose");
}

/// Without this the test above might pass because it sees nothing.
#[test]
fn a_disk_that_lies_about_syncing_is_noticed() {
    for seed in 1..=20 {
        let mut life = Life::new(seed, true);
        // redb may also panic on such an image.
        let survived = catch_unwind(AssertUnwindSafe(|| (0..20).all(|_| life.live_once().is_ok())));
        assert!(!matches!(survived, Ok(true)), "seed {seed}: 20 losses went unnoticed");
    }
}
