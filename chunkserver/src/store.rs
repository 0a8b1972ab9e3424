//! Replicas on one disk: one file of data and one of metadata each, replaced together in memory and one by one on disk.
//!
//! The journalled layout of PROTOCOL §5.2 takes this one's place behind the same calls.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId, FsId, InodeNo, ServerId};

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub dir: PathBuf,
    pub fs_id: Option<FsId>,
    pub server: ServerId,
    pub segment_bytes: u64,
    pub capacity_bytes: Option<u64>,
    pub reserve_percent: u8,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkSpec {
    pub inode: InodeNo,
    pub index: u64,
    pub chunk_size: u64,
}
#[derive(Clone, Copy, Debug)]
pub enum Mutation<'a> {
    Write { offset: u64, data: &'a [u8] },
    Zero { offset: u64, len: u64 },
    Truncate { len: u64 },
    Seal,
    Nop,
}
#[derive(Clone, Copy, Debug)]
pub struct OpTag {
    pub client: ClientId,
    pub counter: u64,
    pub low_water: u64,
    pub append: Option<(u64, u64)>,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    New,
    Done { append: Option<(u64, u64)> },
    Unknown,
}
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    pub version: ChunkVersion,
    pub seq: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaReport {
    pub chunk: ChunkId,
    pub promised: ChunkVersion,
    pub position: Position,
    pub len: u64,
    pub sealed: bool,
    pub dirty: bool,
    pub not_current: bool,
    pub digest: u32,
    pub spec: ChunkSpec,
}
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub chunk_count: u64,
}
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no replica of chunk {}", chunk.0)]
    NotFound { chunk: ChunkId },
    #[error("chunk {} is promised to version {}", chunk.0, promised.0)]
    Fenced { chunk: ChunkId, promised: ChunkVersion },
    #[error("chunk {} is at version {}, asked for {}", chunk.0, have.0, asked.0)]
    WrongVersion { chunk: ChunkId, have: ChunkVersion, asked: ChunkVersion },
    #[error("chunk {} has operations up to {have_seq}", chunk.0)]
    Gap { chunk: ChunkId, have_seq: u64 },
    #[error("chunk {} is not current", chunk.0)]
    NotCurrent { chunk: ChunkId },
    #[error("chunk {} block {index} has a bad checksum", chunk.0)]
    BadBlock { chunk: ChunkId, index: u32 },
    #[error("{free_bytes} bytes free, {need} needed")]
    NoSpace { free_bytes: u64, need: u64 },
    #[error("{0}")]
    Invalid(String),
    #[error("directory {dir} belongs to file system {found}")]
    Foreign { dir: String, found: FsId },
    #[error(transparent)]
    Io(#[from] io::Error),
}
pub type ClientTable = Vec<u8>;

#[derive(Clone, Debug, Default)]
struct Clients(BTreeMap<ClientId, (u64, u64, BTreeMap<u64, (u64, u64)>)>);

#[derive(Debug)]
struct Replica {
    spec: ChunkSpec,
    promised: ChunkVersion,
    position: Position,
    len: u64,
    sealed: bool,
    sums: Vec<u32>,
    clients: Clients,
    file: Arc<File>,
}

#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    fs: FsId,
    disk: DiskId,
    replicas: Mutex<HashMap<ChunkId, Arc<Mutex<Option<Replica>>>>>,
    _lock: File,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        fs::create_dir_all(config.dir.join("chunks"))?;
        fs::create_dir_all(config.dir.join("quarantine"))?;
        let guard = OpenOptions::new().create(true).append(true).open(config.dir.join("lock"))?;
        rustix::fs::flock(&guard, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Invalid(format!("{} is in use by another process", config.dir.display())))?;
        let label = config.dir.join("label");
        let (fs, disk) = match fs::read_to_string(&label) {
            Ok(text) => {
                let mut ids = text.split_whitespace().map(|id| u128::from_str_radix(id, 16));
                match (ids.next(), ids.next()) {
                    (Some(Ok(fs)), Some(Ok(disk))) => (FsId(fs), DiskId(disk)),
                    _ => return Err(StoreError::Invalid(format!("{} is damaged", label.display()))),
                }
            }
            Err(_) => {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).map_err(io::Error::from)?;
                let fs = config.fs_id.ok_or_else(|| StoreError::Invalid("a new directory needs a file system".into()))?;
                let disk = DiskId(u128::from_ne_bytes(bytes));
                fs::write(&label, format!("{:032x} {:032x}\n", fs.0, disk.0))?;
                (fs, disk)
            }
        };
        if config.fs_id.is_some_and(|wanted| wanted != fs) {
            return Err(StoreError::Foreign { dir: config.dir.display().to_string(), found: fs });
        }
        let store = Self { fs, disk, replicas: Mutex::default(), _lock: guard, config };
        for entry in fs::read_dir(store.config.dir.join("chunks"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "meta")
                && let Some((chunk, replica)) = store.load(&path)?
            {
                lock(&store.replicas).insert(chunk, Arc::new(Mutex::new(Some(replica))));
            }
        }
        Ok(store)
    }

    fn path(&self, chunk: ChunkId, extension: &str) -> PathBuf {
        self.config.dir.join("chunks").join(format!("{:016x}.{extension}", chunk.0))
    }

    fn load(&self, path: &Path) -> Result<Option<(ChunkId, Replica)>, StoreError> {
        let text = fs::read_to_string(path)?;
        let n: Vec<u64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        if n.len() < 10 {
            return Ok(None);
        }
        let chunk = ChunkId(n[0]);
        let sums = n[9] as usize;
        let mut at = 10 + sums;
        let mut clients = Clients::default();
        while at + 4 < n.len() {
            let id = ClientId(u128::from(n[at]) << 64 | u128::from(n[at + 1]));
            let (counter, low, count) = (n[at + 2], n[at + 3], n[at + 4] as usize);
            at += 5;
            let results = (0..count).map(|i| (n[at + 3 * i], (n[at + 3 * i + 1], n[at + 3 * i + 2]))).collect();
            at += 3 * count;
            clients.0.insert(id, (counter, low, results));
        }
        Ok(Some((
            chunk,
            Replica {
                spec: ChunkSpec { inode: InodeNo(n[1]), index: n[2], chunk_size: n[3] },
                promised: ChunkVersion(n[4]),
                position: Position { version: ChunkVersion(n[5]), seq: n[6] },
                len: n[7],
                sealed: n[8] != 0,
                sums: n[10..10 + sums].iter().map(|s| *s as u32).collect(),
                clients,
                file: Arc::new(
                    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path(chunk, "data"))?,
                ),
            },
        )))
    }

    fn save(&self, chunk: ChunkId, r: &Replica) -> Result<(), StoreError> {
        use std::fmt::Write as _;
        let mut text = format!(
            "{} {} {} {} {} {} {} {} {} {}",
            chunk.0, r.spec.inode.0, r.spec.index, r.spec.chunk_size, r.promised.0, r.position.version.0, r.position.seq,
            r.len, u8::from(r.sealed), r.sums.len()
        );
        for sum in &r.sums {
            let _ = write!(text, " {sum}");
        }
        text += &clients_text(&r.clients);
        let tmp = self.path(chunk, "new");
        fs::write(&tmp, text)?;
        fs::rename(&tmp, self.path(chunk, "meta"))?;
        Ok(())
    }

    fn slot(&self, chunk: ChunkId) -> Option<Arc<Mutex<Option<Replica>>>> {
        lock(&self.replicas).get(&chunk).cloned()
    }

    fn with<T>(&self, chunk: ChunkId, f: impl FnOnce(&mut Replica) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let slot = self.slot(chunk).ok_or(StoreError::NotFound { chunk })?;
        let mut slot = lock(&slot);
        f(slot.as_mut().ok_or(StoreError::NotFound { chunk })?)
    }

    fn create(&self, chunk: ChunkId, spec: &ChunkSpec) -> Result<(), StoreError> {
        let mut replicas = lock(&self.replicas);
        if replicas.contains_key(&chunk) {
            return Ok(());
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.path(chunk, "data"))?;
        let replica = Replica {
            spec: *spec,
            promised: ChunkVersion(0),
            position: Position::default(),
            len: 0,
            sealed: false,
            sums: vec![],
            clients: Clients::default(),
            file: Arc::new(file),
        };
        replicas.insert(chunk, Arc::new(Mutex::new(Some(replica))));
        Ok(())
    }

    pub fn fs_id(&self) -> FsId {
        self.fs
    }
    pub fn disk_id(&self) -> DiskId {
        self.disk
    }
    pub fn server(&self) -> ServerId {
        self.config.server
    }

    pub fn seen(&self, chunk: ChunkId, client: ClientId, counter: u64) -> Result<Seen, StoreError> {
        match self.with(chunk, |r| {
            Ok(match r.clients.0.get(&client) {
                None => Seen::New,
                Some((high, _, _)) if *high < counter => Seen::New,
                Some((_, low, _)) if counter < *low => Seen::Unknown,
                Some((_, _, results)) => Seen::Done { append: results.get(&counter).copied() },
            })
        }) {
            Err(StoreError::NotFound { .. }) => Ok(Seen::New),
            other => other,
        }
    }

    pub fn apply(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        seq: u64,
        spec: &ChunkSpec,
        tag: OpTag,
        m: Mutation<'_>,
    ) -> Result<(), StoreError> {
        if version.0 == 1 && seq == 1 && self.slot(chunk).is_none() {
            self.create(chunk, spec)?;
        }
        self.with(chunk, |r| {
            if version < r.promised {
                return Err(StoreError::Fenced { chunk, promised: r.promised });
            }
            if r.position.version.0 == 0 && version.0 == 1 {
                r.position = Position { version, seq: 0 };
            }
            if r.position.version != version {
                return Err(StoreError::WrongVersion { chunk, have: r.position.version, asked: version });
            }
            if seq <= r.position.seq {
                return Ok(());
            }
            if seq != r.position.seq + 1 {
                return Err(StoreError::Gap { chunk, have_seq: r.position.seq });
            }
            match m {
                Mutation::Write { offset, data } => {
                    let end = offset + data.len() as u64;
                    if r.spec.chunk_size < end {
                        return Err(StoreError::Invalid(format!("write to {end} beyond the chunk's end")));
                    }
                    r.file.write_all_at(data, offset)?;
                    r.len = r.len.max(end);
                    r.resum(offset, end)?;
                }
                Mutation::Zero { offset, len } => {
                    let end = (offset + len).min(r.len);
                    let mut at = offset;
                    let zeros = vec![0; 64 << 10];
                    while at < end {
                        let n = (end - at).min(zeros.len() as u64);
                        r.file.write_all_at(&zeros[..n as usize], at)?;
                        at += n;
                    }
                    r.resum(offset, end)?;
                }
                Mutation::Truncate { len } => {
                    r.file.set_len(len)?;
                    let from = r.len.min(len);
                    r.len = len;
                    r.sums.truncate(len.div_ceil(r.block()) as usize);
                    r.resum(from.saturating_sub(1), len)?;
                }
                Mutation::Seal => r.sealed = true,
                Mutation::Nop => {}
            }
            let entry = r.clients.0.entry(tag.client).or_default();
            entry.0 = entry.0.max(tag.counter);
            entry.1 = entry.1.max(tag.low_water);
            let low = entry.1;
            entry.2.retain(|counter, _| low <= *counter);
            if let Some(result) = tag.append {
                entry.2.insert(tag.counter, result);
            }
            r.position.seq = seq;
            self.save(chunk, r)
        })
    }

    pub fn sync(&self, chunk: ChunkId, on_done: Box<dyn FnOnce(Result<u64, StoreError>) + Send>) {
        on_done(self.sync_blocking(chunk));
    }
    pub fn sync_blocking(&self, chunk: ChunkId) -> Result<u64, StoreError> {
        let (file, seq) = self.with(chunk, |r| Ok((Arc::clone(&r.file), r.position.seq)))?;
        file.sync_data()?;
        File::open(self.path(chunk, "meta"))?.sync_data()?;
        Ok(seq)
    }
    pub fn mark_clean(&self, _: ChunkId, _: ChunkVersion, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    pub fn read(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, StoreError> {
        self.with(chunk, |r| {
            if r.position.version != version {
                return Err(StoreError::WrongVersion { chunk, have: r.position.version, asked: version });
            }
            let end = (offset + len).min(r.len);
            out.clear();
            if offset < end {
                let block = r.block();
                for index in offset / block..end.div_ceil(block) {
                    if r.sum_of(index)? != r.sums[index as usize] {
                        return Err(StoreError::BadBlock { chunk, index: index as u32 });
                    }
                }
                out.resize((end - offset) as usize, 0);
                r.file.read_exact_at(out, offset)?;
            }
            Ok(r.len)
        })
    }
    pub fn read_for_copy(&self, chunk: ChunkId, index: u32) -> Result<(Vec<u8>, u32), StoreError> {
        self.with(chunk, |r| {
            let (from, to) = r.range_of(u64::from(index));
            let mut data = vec![0; (to - from) as usize];
            r.file.read_exact_at(&mut data, from)?;
            let crc = crc32c::crc32c(&data);
            if r.sums.get(index as usize) != Some(&crc) {
                return Err(StoreError::BadBlock { chunk, index });
            }
            Ok((data, crc))
        })
    }
    pub fn block_sums(&self, chunk: ChunkId) -> Result<(ReplicaReport, Vec<u32>, ClientTable), StoreError> {
        self.with(chunk, |r| Ok((r.report(chunk), r.sums.clone(), clients_text(&r.clients).into_bytes())))
    }
    pub fn report(&self, chunk: ChunkId) -> Option<ReplicaReport> {
        self.with(chunk, |r| Ok(r.report(chunk))).ok()
    }
    pub fn inventory(&self) -> Vec<ReplicaReport> {
        let chunks: Vec<ChunkId> = lock(&self.replicas).keys().copied().collect();
        chunks.into_iter().filter_map(|chunk| self.report(chunk)).collect()
    }
    pub fn promise(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        spec: Option<&ChunkSpec>,
    ) -> Result<ReplicaReport, StoreError> {
        if let (None, Some(spec)) = (self.slot(chunk), spec) {
            self.create(chunk, spec)?;
        }
        self.with(chunk, |r| {
            if version < r.promised {
                return Err(StoreError::Fenced { chunk, promised: r.promised });
            }
            r.promised = version;
            self.save(chunk, r)?;
            Ok(r.report(chunk))
        })
    }
    pub fn adopt_begin(
        &self,
        chunk: ChunkId,
        version: ChunkVersion,
        _from: Position,
        from_len: u64,
        spec: ChunkSpec,
    ) -> Result<AdoptWriter<'_>, StoreError> {
        self.with(chunk, |r| {
            if r.promised != version {
                return Err(StoreError::Fenced { chunk, promised: r.promised });
            }
            r.spec = spec;
            r.file.set_len(from_len)?;
            Ok(())
        })?;
        Ok(AdoptWriter { store: self, chunk, version, sums: BTreeMap::new() })
    }
    pub fn adopt_self(&self, chunk: ChunkId, version: ChunkVersion) -> Result<ReplicaReport, StoreError> {
        self.with(chunk, |r| {
            if r.promised != version {
                return Err(StoreError::Fenced { chunk, promised: r.promised });
            }
            r.position = Position { version, seq: 0 };
            self.save(chunk, r)?;
            Ok(r.report(chunk))
        })
    }
    pub fn quarantine(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let Some(slot) = lock(&self.replicas).remove(&chunk) else { return Ok(()) };
        *lock(&slot) = None;
        let target = self.config.dir.join("quarantine").join(format!("{:016x}.data", chunk.0));
        fs::rename(self.path(chunk, "data"), target)?;
        fs::remove_file(self.path(chunk, "meta"))?;
        Ok(())
    }
    pub fn purge_quarantine(&self, _until_free_bytes: u64) -> Result<u64, StoreError> {
        for entry in fs::read_dir(self.config.dir.join("quarantine"))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(0)
    }
    pub fn space(&self) -> Space {
        let used: u64 = self.inventory().iter().map(|r| r.len).sum();
        let chunk_count = lock(&self.replicas).len() as u64;
        let (total, free) = match rustix::fs::statvfs(&self.config.dir) {
            Ok(v) => (v.f_blocks * v.f_frsize, v.f_bavail * v.f_frsize),
            Err(_) => (0, 0),
        };
        let (total, free) = match self.config.capacity_bytes {
            Some(capacity) => (capacity, free.min(capacity.saturating_sub(used))),
            None => (total, free),
        };
        let reserve = total / 100 * u64::from(self.config.reserve_percent);
        Space { used_bytes: used, free_bytes: free.saturating_sub(reserve), total_bytes: total, chunk_count }
    }
    pub fn reserve(&self, bytes: u64) -> Result<SpaceCredit, StoreError> {
        let free_bytes = self.space().free_bytes;
        if free_bytes < bytes { Err(StoreError::NoSpace { free_bytes, need: bytes }) } else { Ok(SpaceCredit) }
    }
    pub fn repair_block(&self, chunk: ChunkId, index: u32, data: &[u8], crc: u32) -> Result<(), StoreError> {
        self.with(chunk, |r| {
            if crc32c::crc32c(data) != crc || r.sums.get(index as usize) != Some(&crc) {
                return Err(StoreError::BadBlock { chunk, index });
            }
            r.file.write_all_at(data, u64::from(index) * r.block())?;
            Ok(())
        })
    }
    pub fn shutdown(&self) {}
}

#[derive(Debug)]
pub struct SpaceCredit;

#[derive(Debug)]
pub struct AdoptWriter<'a> {
    store: &'a Store,
    chunk: ChunkId,
    version: ChunkVersion,
    sums: BTreeMap<u32, u32>,
}
impl AdoptWriter<'_> {
    pub fn put_block(&mut self, index: u32, data: &[u8], crc: u32) -> Result<(), StoreError> {
        self.sums.insert(index, crc);
        self.store.with(self.chunk, |r| Ok(r.file.write_all_at(data, u64::from(index) * r.block())?))
    }
    pub fn keep_block(&mut self, index: u32, crc: u32) -> Result<(), StoreError> {
        self.sums.insert(index, crc);
        Ok(())
    }
    pub fn finish(self, len: u64, sealed: bool, clients: &ClientTable) -> Result<ReplicaReport, StoreError> {
        let text = String::from_utf8_lossy(clients).into_owned();
        let Self { store, chunk, version, sums } = self;
        store.with(chunk, |r| {
            r.len = len;
            r.sealed = sealed;
            r.sums = sums.into_values().collect();
            r.position = Position { version, seq: 0 };
            let n: Vec<u64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            let mut at = 0;
            r.clients = Clients::default();
            while at + 4 < n.len() {
                let id = ClientId(u128::from(n[at]) << 64 | u128::from(n[at + 1]));
                let (counter, low, count) = (n[at + 2], n[at + 3], n[at + 4] as usize);
                at += 5;
                let results = (0..count).map(|i| (n[at + 3 * i], (n[at + 3 * i + 1], n[at + 3 * i + 2]))).collect();
                at += 3 * count;
                r.clients.0.insert(id, (counter, low, results));
            }
            r.file.sync_data()?;
            store.save(chunk, r)?;
            Ok(r.report(chunk))
        })
    }
}

fn clients_text(clients: &Clients) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (id, (counter, low, results)) in &clients.0 {
        let _ = write!(text, " {} {} {counter} {low} {}", (id.0 >> 64) as u64, id.0 as u64, results.len());
        for (counter, (offset, len)) in results {
            let _ = write!(text, " {counter} {offset} {len}");
        }
    }
    text
}

impl Replica {
    fn block(&self) -> u64 {
        self.spec.chunk_size.min(64 << 10)
    }
    fn range_of(&self, index: u64) -> (u64, u64) {
        let from = (index * self.block()).min(self.len);
        (from, (from + self.block()).min(self.len))
    }
    fn sum_of(&self, index: u64) -> Result<u32, StoreError> {
        let (from, to) = self.range_of(index);
        let mut data = vec![0; (to - from) as usize];
        self.file.read_exact_at(&mut data, from)?;
        Ok(crc32c::crc32c(&data))
    }
    /// New sums for the blocks of `from..to`, and for those a growing length newly covers.
    fn resum(&mut self, from: u64, to: u64) -> Result<(), StoreError> {
        let block = self.block();
        let count = self.len.div_ceil(block);
        let first = (from / block).min((self.sums.len() as u64).saturating_sub(1));
        if self.file.metadata()?.len() < self.len {
            self.file.set_len(self.len)?;
        }
        for index in first..count.min(to.div_ceil(block).max(first)) {
            let sum = self.sum_of(index)?;
            let at = index as usize;
            if at < self.sums.len() { self.sums[at] = sum } else { self.sums.push(sum) }
        }
        Ok(())
    }
    fn report(&self, chunk: ChunkId) -> ReplicaReport {
        let mut digest = 0;
        for sum in &self.sums {
            digest = crc32c::crc32c_append(digest, &sum.to_le_bytes());
        }
        ReplicaReport {
            chunk,
            promised: self.promised,
            position: self.position,
            len: self.len,
            sealed: self.sealed,
            dirty: false,
            not_current: false,
            digest: crc32c::crc32c_append(digest, &self.len.to_le_bytes()),
            spec: self.spec,
        }
    }
}
