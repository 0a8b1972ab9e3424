//! What the clients do, and what is known of it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tests::Random;

/// With chunks so small that files and records cross them, and with ordinary ones.
pub(crate) const DIRS: [(&str, &str); 2] = [("small", "64KiB"), ("large", "16MiB")];
/// Overwritten in place, one block at a time.
const BLOCK: usize = 4096;
const BLOCKS: usize = 96;
const RECORD: usize = 1500;
/// Of one client: older ones are removed.
const FILES_MAX: usize = 12;

/// A block of an area as its writer left it: attempts begun, and the last one that was acknowledged.
struct Block {
    begun: AtomicU32,
    stable: AtomicU32,
}

#[derive(Clone, Copy)]
struct Content {
    seed: u64,
    len: usize,
}

pub(crate) struct Known {
    /// Files that are there and not read just now, by name; their owner takes them out before it removes them.
    files: Mutex<BTreeMap<String, Content>>,
    areas: Vec<Vec<Block>>,
    /// Records acknowledged, by client and directory.
    records: Vec<[AtomicU64; DIRS.len()]>,
    counts: [AtomicU64; 5],
}

fn content(Content { seed, len }: Content) -> Vec<u8> {
    let mut random = Random::new(seed, 77);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.below(u64::MAX).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn block(client: u8, place: usize, version: u32) -> Vec<u8> {
    let stamp = format!("{client}.{place}.{version:08};");
    stamp.bytes().cycle().take(BLOCK).collect()
}

fn record(client: u8, number: u64) -> Vec<u8> {
    let mut bytes = format!("<{client}:{number}>").into_bytes();
    bytes.resize(RECORD - 1, b'.');
    bytes.push(b'\n');
    bytes
}

fn area(client: u8) -> String {
    format!("{}/area-{client}", DIRS[usize::from(client) % DIRS.len()].0)
}

fn records(dir: &str) -> String {
    format!("{dir}/records")
}

#[track_caller]
fn done<T>(what: &str, path: &Path, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what} {}: {error}", path.display()))
}

impl Known {
    pub(crate) fn new(mount: &Path, clients: u8) -> Self {
        for (dir, _) in DIRS {
            File::create(mount.join(records(dir))).unwrap();
        }
        let blocks = |client| {
            let content: Vec<u8> = (0..BLOCKS).flat_map(|place| block(client, place, 0)).collect();
            fs::write(mount.join(area(client)), content).unwrap();
            let block = || Block { begun: AtomicU32::new(0), stable: AtomicU32::new(0) };
            (0..BLOCKS).map(|_| block()).collect()
        };
        Self {
            files: Mutex::default(),
            areas: (0..clients).map(blocks).collect(),
            records: (0..clients).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
            counts: Default::default(),
        }
    }

    pub(crate) fn summary(&self) -> String {
        let [files, blocks, records, reads, removed] =
            self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        format!(
            "{files} files, {blocks} blocks, {records} records written, {removed} files removed, \
             {reads} reads compared"
        )
    }

    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    fn check_file(mount: &Path, name: &str, known: Content) {
        let path = mount.join(name);
        let read = done("read", &path, fs::read(&path));
        let expected = content(known);
        assert_eq!(read.len(), expected.len(), "length of {}", path.display());
        let wrong = read.iter().zip(&expected).position(|(read, expected)| read != expected);
        assert_eq!(wrong, None, "first wrong byte of {}", path.display());
    }

    fn check_block(&self, mount: &Path, client: u8, place: usize) {
        let known = &self.areas[usize::from(client)][place];
        let stable = known.stable.load(Ordering::Acquire);
        let path = mount.join(area(client));
        let mut read = vec![0; BLOCK];
        let file = done("open", &path, File::open(&path));
        done("read", &path, file.read_exact_at(&mut read, (place * BLOCK) as u64));
        let begun = known.begun.load(Ordering::Acquire);
        assert!(
            (stable..=begun).any(|version| read == block(client, place, version)),
            "block {place} of {}: neither of versions {stable}..={begun}: {:?}",
            path.display(),
            read[..40].escape_ascii().to_string(),
        );
    }

    /// Each record exactly once, each client's in order, and all that were acknowledged. Between them, while appends are
    /// on their way (`running`), one of each client whose rest is still to come, and nothing else.
    fn check_records(&self, mount: &Path, dir: usize, running: bool) {
        let stable: Vec<u64> =
            self.records.iter().map(|records| records[dir].load(Ordering::Acquire)).collect();
        let path = mount.join(records(DIRS[dir].0));
        let read = done("read", &path, fs::read(&path));
        let mut next = vec![0; stable.len()];
        let mut others = Vec::new();
        for (place, bytes) in read.chunks(RECORD).enumerate() {
            let found = (0..next.len())
                .find(|client| bytes == record(u8::try_from(*client).unwrap(), next[*client]));
            match found {
                Some(found) => next[found] += 1,
                None => {
                    others.push((place, bytes[..bytes.len().min(40)].escape_ascii().to_string()))
                }
            }
        }
        let lost = stable.iter().zip(&next).any(|(stable, found)| found < stable);
        let allowed = if running { stable.len() } else { 0 };
        assert!(
            !lost && others.len() <= allowed,
            "{}: {stable:?} acknowledged, {next:?} found in order, and {others:?}",
            path.display()
        );
    }

    pub(crate) fn check_all(&self, mount: &Path) {
        for (name, content) in &*self.files.lock().unwrap() {
            Self::check_file(mount, name, *content);
        }
        for client in 0..self.areas.len() {
            for place in 0..BLOCKS {
                self.check_block(mount, u8::try_from(client).unwrap(), place);
            }
        }
        for dir in 0..DIRS.len() {
            self.check_records(mount, dir, false);
        }
    }
}

pub(crate) struct Client<'a> {
    name: u8,
    mount: PathBuf,
    known: &'a Known,
    random: Random,
    made: u64,
    mine: Vec<String>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(name: u8, mount: &Path, known: &'a Known, random: Random) -> Self {
        Self { name, mount: mount.to_owned(), known, random, made: 0, mine: Vec::new() }
    }

    pub(crate) fn step(&mut self) {
        match self.random.below(10) {
            0..2 => self.make(),
            2..4 => self.overwrite(),
            4..7 => self.append(),
            _ => self.read(),
        }
    }

    fn make(&mut self) {
        let (dir, _) = DIRS[self.pick(DIRS.len())];
        self.made += 1;
        let name = format!("{dir}/f{}-{}", self.name, self.made);
        let len = usize::try_from(1 + self.random.below(1_500_000)).unwrap();
        let known = Content { seed: u64::from(self.name) << 32 | self.made, len };
        let path = self.mount.join(&name);
        let mut file = done("create", &path, File::create(&path));
        for part in content(known).chunks(100_000) {
            done("write", &path, file.write_all(part));
        }
        done("fsync", &path, file.sync_all());
        drop(file);
        self.known.files.lock().unwrap().insert(name.clone(), known);
        self.known.count(0);
        self.mine.push(name);
        if FILES_MAX < self.mine.len() {
            let oldest = self.mine.remove(0);
            if self.known.files.lock().unwrap().remove(&oldest).is_none() {
                // Somebody reads it.
                return self.mine.push(oldest);
            }
            let path = self.mount.join(oldest);
            done("remove", &path, fs::remove_file(&path));
            self.known.count(4);
        }
    }

    fn overwrite(&mut self) {
        let path = self.mount.join(area(self.name));
        let file = done("open", &path, OpenOptions::new().write(true).open(&path));
        let mut written = Vec::new();
        for _ in 0..=self.random.below(4) {
            let place = self.pick(BLOCKS);
            let known = &self.known.areas[usize::from(self.name)][place];
            let version = known.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let bytes = block(self.name, place, version);
            done("write", &path, file.write_all_at(&bytes, (place * BLOCK) as u64));
            written.push((known, version));
        }
        done("fsync", &path, file.sync_all());
        for (known, version) in written {
            known.stable.fetch_max(version, Ordering::AcqRel);
            self.known.count(1);
        }
    }

    fn append(&mut self) {
        let dir = self.pick(DIRS.len());
        let path = self.mount.join(records(DIRS[dir].0));
        let known = &self.known.records[usize::from(self.name)][dir];
        let options = OpenOptions::new().append(true).custom_flags(libc::O_SYNC).open(&path);
        let mut file = done("open", &path, options);
        for _ in 0..=self.random.below(6) {
            let number = known.load(Ordering::Acquire);
            done("append", &path, file.write_all(&record(self.name, number)));
            known.fetch_add(1, Ordering::AcqRel);
            self.known.count(2);
        }
    }

    fn read(&mut self) {
        match self.random.below(8) {
            0 => {
                let dir = self.pick(DIRS.len());
                self.known.check_records(&self.mount, dir, true);
            }
            1..4 => {
                let client = self.pick(self.known.areas.len());
                let place = self.pick(BLOCKS);
                self.known.check_block(&self.mount, u8::try_from(client).unwrap(), place);
            }
            _ => {
                let mut files = self.known.files.lock().unwrap();
                let count = files.len();
                if count == 0 {
                    return;
                }
                let place = self.pick(count);
                let (name, content) = files.iter().nth(place).unwrap();
                let (name, content) = (name.clone(), *content);
                // Taken out while it is read, so that its owner waits with removing it.
                files.remove(&name);
                drop(files);
                Known::check_file(&self.mount, &name, content);
                self.known.files.lock().unwrap().insert(name, content);
            }
        }
        self.known.count(3);
    }

    fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count as u64)).unwrap()
    }
}
