//! The rows: what each does, in what unit it is told.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    MiBPerSecond,
    PerSecond,
    Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    SeqWrite,
    SeqRewrite,
    SeqRead,
    SeqReadAgain,
    RandRead,
    RandWriteFsync,
    AppendShared,
    AppendPrivate,
    AppendSharedFsync,
    Create,
    Stat,
    ReadDir,
    LsL,
    ReadSmall,
    OpenClose,
    Rename,
    Mkdir,
    Unlink,
    Untar,
    Find,
    RemoveTree,
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    /// Runs with all kernel caches dropped first (root only).
    pub(super) cold: bool,
    work: Work,
}

const fn row(name: &'static str, unit: Unit, cold: bool, work: Work) -> Row {
    Row { name, unit, cold, work }
}

/// In the order they run: later rows use what earlier ones made, or make it themselves.
pub(super) const ROWS: &[Row] = &[
    row("seq_write_fsync", Unit::MiBPerSecond, false, Work::SeqWrite),
    row("seq_rewrite_fsync", Unit::MiBPerSecond, false, Work::SeqRewrite),
    row("seq_read_cold", Unit::MiBPerSecond, true, Work::SeqRead),
    row("seq_reread_servers_warm", Unit::MiBPerSecond, false, Work::SeqRead),
    row("seq_reread_pages_warm", Unit::MiBPerSecond, false, Work::SeqReadAgain),
    row("rand_read_4k", Unit::PerSecond, false, Work::RandRead),
    row("rand_write_4k_fsync", Unit::PerSecond, false, Work::RandWriteFsync),
    row("append_2k_4w_shared", Unit::PerSecond, false, Work::AppendShared),
    row("append_2k_4w_private", Unit::PerSecond, false, Work::AppendPrivate),
    row("append_2k_4w_fsync", Unit::PerSecond, false, Work::AppendSharedFsync),
    row("create_4k", Unit::PerSecond, false, Work::Create),
    row("stat_cold", Unit::PerSecond, true, Work::Stat),
    row("stat_warm", Unit::PerSecond, false, Work::Stat),
    row("readdir_cold", Unit::PerSecond, true, Work::ReadDir),
    row("ls_l_cold", Unit::PerSecond, true, Work::LsL),
    row("read_small_cold", Unit::PerSecond, true, Work::ReadSmall),
    row("open_close", Unit::PerSecond, false, Work::OpenClose),
    row("rename", Unit::PerSecond, false, Work::Rename),
    row("mkdir", Unit::PerSecond, false, Work::Mkdir),
    row("unlink", Unit::PerSecond, false, Work::Unlink),
    row("untar_tree", Unit::Seconds, false, Work::Untar),
    row("find_tree_cold", Unit::Seconds, true, Work::Find),
    row("rm_r_tree", Unit::Seconds, false, Work::RemoveTree),
];

const MIB: u64 = 1 << 20;
const BUFFER_BYTES: usize = 1 << 20;
/// A row of single operations runs for at most so long.
const SLICE: Duration = Duration::from_secs(2);
const WRITERS: u64 = 4;

/// A directory of our own under the one that was named.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    file_bytes: u64,
    files: u64,
    seed: u64,
}

impl Place {
    pub(super) fn make(under: &Path, file_mib: u64, files: u64) -> anyhow::Result<Self> {
        let root = under.join(format!("dfs-bench-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self { root, file_bytes: file_mib * MIB, files, seed: 0x9e37_79b9_7f4a_7c15 })
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.root).with_context(|| format!("remove {}", self.root.display()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// xorshift: the same places in every directory.
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn random_block(&mut self) -> u64 {
        self.random() % (self.file_bytes / 4096) * 4096
    }

    fn large(&mut self) -> anyhow::Result<PathBuf> {
        let path = self.path("large");
        if fs::metadata(&path).map_or(0, |meta| meta.len()) != self.file_bytes {
            write_large(&path, self.file_bytes, true)?;
        }
        Ok(path)
    }

    fn small(&mut self) -> anyhow::Result<PathBuf> {
        let dir = self.path("small");
        if !dir.is_dir() {
            create_small(&dir, self.files)?;
        }
        Ok(dir)
    }

    fn tree(&mut self) -> anyhow::Result<PathBuf> {
        let tree = self.path("tree");
        if !tree.is_dir() {
            make_tree(&tree, self.files)?;
        }
        Ok(tree)
    }
}

/// Whether the kernel's caches can be dropped here.
pub(super) fn can_drop_caches() -> bool {
    OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches").is_ok()
}

fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches")
}

/// Forgets this file's pages here; what servers have stays.
fn drop_pages(file: &File) -> anyhow::Result<()> {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
        .context("drop the file's pages")
}

/// Runs a row once; its figure in the row's unit.
pub(super) fn run(row: &Row, place: &mut Place) -> anyhow::Result<f64> {
    let figure =
        run_row(row, place).with_context(|| format!("{} in {}", row.name, place.root.display()))?;
    Ok(figure)
}

fn run_row(row: &Row, place: &mut Place) -> anyhow::Result<f64> {
    match row.work {
        Work::SeqWrite => {
            let path = place.path("large");
            remove_if_there(&path)?;
            rate(place.file_bytes, || write_large(&path, place.file_bytes, true))
                .map(|bytes| bytes / MIB as f64)
        }
        Work::SeqRewrite => {
            let path = place.large()?;
            rate(place.file_bytes, || write_large(&path, place.file_bytes, false))
                .map(|bytes| bytes / MIB as f64)
        }
        Work::SeqRead => {
            let file = File::open(place.large()?)?;
            file.sync_all()?;
            if row.cold {
                drop_caches()?
            } else {
                drop_pages(&file)?
            }
            read_all(file, place.file_bytes)
        }
        Work::SeqReadAgain => {
            let path = place.large()?;
            read_all(File::open(&path)?, place.file_bytes)?;
            read_all(File::open(&path)?, place.file_bytes)
        }
        Work::RandRead => rand_read(place),
        Work::RandWriteFsync => {
            let path = place.large()?;
            let file = OpenOptions::new().write(true).open(path)?;
            let block = [7; 4096];
            repeat(|_| {
                file.write_all_at(&block, place.random_block())?;
                file.sync_data()?;
                Ok(())
            })
        }
        Work::AppendShared => append(place, true, false),
        Work::AppendPrivate => append(place, false, false),
        Work::AppendSharedFsync => append(place, true, true),
        Work::Create => {
            let dir = place.path("small");
            if dir.is_dir() {
                fs::remove_dir_all(&dir)?;
            }
            rate(place.files, || create_small(&dir, place.files))
        }
        Work::Stat => {
            let dir = place.small()?;
            if row.cold {
                drop_caches()?;
            } else {
                stat_all(&dir, place.files)?;
            }
            rate(place.files, || stat_all(&dir, place.files))
        }
        Work::ReadDir => {
            let dir = place.small()?;
            drop_caches()?;
            rate(place.files, || {
                let count = fs::read_dir(&dir)?.count() as u64;
                anyhow::ensure!(count == place.files, "{count} entries, {} were made", place.files);
                Ok(())
            })
        }
        Work::LsL => {
            let dir = place.small()?;
            drop_caches()?;
            rate(place.files, || {
                let mut bytes = 0;
                for entry in fs::read_dir(&dir)? {
                    bytes += entry?.metadata()?.size();
                }
                anyhow::ensure!(bytes == place.files * 4096, "{bytes} bytes listed");
                Ok(())
            })
        }
        Work::ReadSmall => {
            let dir = place.small()?;
            drop_caches()?;
            rate(place.files, || {
                for n in 0..place.files {
                    anyhow::ensure!(
                        fs::read(small_name(&dir, n))?.len() == 4096,
                        "file {n} is short"
                    );
                }
                Ok(())
            })
        }
        Work::OpenClose => {
            let dir = place.small()?;
            let files = place.files;
            repeat(|n| {
                File::open(small_name(&dir, n % files))?;
                Ok(())
            })
        }
        Work::Rename => {
            let dir = place.small()?;
            let there = rate(place.files, || {
                for n in 0..place.files {
                    fs::rename(small_name(&dir, n), dir.join(format!("r{n}")))?;
                }
                Ok(())
            })?;
            for n in 0..place.files {
                fs::rename(dir.join(format!("r{n}")), small_name(&dir, n))?;
            }
            Ok(there)
        }
        Work::Mkdir => {
            let dir = place.path("dirs");
            fs::create_dir(&dir)?;
            let made = rate(place.files, || {
                for n in 0..place.files {
                    fs::create_dir(dir.join(format!("d{n}")))?;
                }
                Ok(())
            })?;
            fs::remove_dir_all(&dir)?;
            Ok(made)
        }
        Work::Unlink => {
            let dir = place.small()?;
            let gone = rate(place.files, || {
                for n in 0..place.files {
                    fs::remove_file(small_name(&dir, n))?;
                }
                Ok(())
            })?;
            fs::remove_dir(&dir)?;
            Ok(gone)
        }
        Work::Untar => {
            let tree = place.path("tree");
            if tree.is_dir() {
                fs::remove_dir_all(&tree)?;
            }
            seconds(|| make_tree(&tree, place.files))
        }
        Work::Find => {
            let tree = place.tree()?;
            drop_caches()?;
            seconds(|| walk(&tree).map(|_| ()))
        }
        Work::RemoveTree => {
            let tree = place.tree()?;
            seconds(|| Ok(fs::remove_dir_all(&tree)?))
        }
    }
}

/// MiB per second.
fn read_all(mut file: File, bytes: u64) -> anyhow::Result<f64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let bytes_per_second = rate(bytes, || {
        while file.read(&mut buffer)? != 0 {}
        Ok(())
    })?;
    Ok(bytes_per_second / MIB as f64)
}

fn seconds(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn rate(count: u64, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    Ok(count as f64 / seconds(work)?.max(1e-9))
}

/// Calls `work` with 0, 1, 2, … for [`SLICE`]; calls per second.
fn repeat(mut work: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < SLICE {
        work(count)?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_large(path: &Path, bytes: u64, new: bool) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create(new).truncate(new).open(path)?;
    // Not compressible, not all the same.
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    for (n, word) in buffer.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    for n in 0..bytes / MIB {
        buffer[..8].copy_from_slice(&n.to_le_bytes());
        file.write_all(&buffer)?;
    }
    file.sync_all()?;
    Ok(())
}

fn rand_read(place: &mut Place) -> anyhow::Result<f64> {
    let path = place.large()?;
    let file = File::open(&path)?;
    file.sync_all()?;
    drop_pages(&file)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let mut block = [0; 4096];
    repeat(|n| {
        // Pages read once stay here: dropped now and then, so that reads go on being reads.
        if n % 4096 == 4095 {
            drop_pages(&file)?;
        }
        file.read_exact_at(&mut block, place.random_block())?;
        Ok(())
    })
}

/// Four writers append 2 KiB records for [`SLICE`]; every record must be there once, whole, at the end.
fn append(place: &mut Place, shared: bool, fsync: bool) -> anyhow::Result<f64> {
    let names: Vec<PathBuf> = (0..WRITERS)
        .map(|n| place.path(&format!("append{}", if shared { 0 } else { n })))
        .collect();
    for name in &names {
        remove_if_there(name)?;
    }
    let start = Instant::now();
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = names
            .iter()
            .zip(0_u64..)
            .map(|(name, writer)| {
                scope.spawn(move || -> anyhow::Result<u64> {
                    let mut file =
                        OpenOptions::new().append(true).create(true).mode(0o644).open(name)?;
                    let mut record = [0_u8; 2048];
                    let mut count = 0_u64;
                    while start.elapsed() < SLICE {
                        record[..8].copy_from_slice(&writer.to_le_bytes());
                        record[8..16].copy_from_slice(&count.to_le_bytes());
                        file.write_all(&record)?;
                        if fsync {
                            file.sync_data()?;
                        }
                        count += 1;
                    }
                    file.sync_data()?;
                    Ok(count)
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
            .collect::<anyhow::Result<_>>()
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    let total: u64 = counts.iter().sum();
    let mut bytes = 0;
    for name in if shared { &names[..1] } else { &names[..] } {
        bytes += fs::metadata(name)?.len();
        remove_if_there(name)?;
    }
    anyhow::ensure!(
        bytes == total * 2048,
        "{total} records were appended, the files hold {} bytes",
        bytes
    );
    Ok(total as f64 / elapsed)
}

fn small_name(dir: &Path, n: u64) -> PathBuf {
    dir.join(format!("file{n:06}"))
}

fn create_small(dir: &Path, files: u64) -> anyhow::Result<()> {
    fs::create_dir(dir)?;
    let content = [b'x'; 4096];
    for n in 0..files {
        fs::write(small_name(dir, n), content)?;
    }
    Ok(())
}

fn stat_all(dir: &Path, files: u64) -> anyhow::Result<()> {
    for n in 0..files {
        anyhow::ensure!(
            fs::metadata(small_name(dir, n))?.len() == 4096,
            "file {n} has another size"
        );
    }
    Ok(())
}

/// A source tree as tar would unpack it: thirty files a directory, most of them small, with times and modes set.
fn make_tree(tree: &Path, files: u64) -> anyhow::Result<()> {
    fs::create_dir(tree)?;
    let content = vec![b'c'; 64 << 10];
    for n in 0..files {
        let dir = tree.join(format!("d{:04}", n / 30));
        if n % 30 == 0 {
            fs::create_dir(&dir)?;
        }
        // Sizes as in source trees: most below 4 KiB, one in ten up to 60 KiB.
        let bytes = if n % 10 == 9 { 1024 * (n % 60 + 1) } else { 256 * (n % 16 + 1) };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.join(format!("f{n}.c")))?;
        file.write_all(&content[..usize::try_from(bytes)?])?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + n))?;
    }
    Ok(())
}

fn walk(dir: &Path) -> anyhow::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += walk(&entry.path())?;
        }
    }
    Ok(count)
}
