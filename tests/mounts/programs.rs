//! Programs that use a file system and check the result of every call.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Bytes of an appended record.
const RECORD: usize = 200;
const LISTED: usize = 300;
const LARGE_BYTES: usize = 6 << 20;

/// What one program saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) calls: u64,
    /// Rounds that were done whole.
    pub(crate) rounds: u64,
    pub(crate) longest: Duration,
    pub(crate) errors: Vec<String>,
}

type Round = fn(&mut Calls<'_>, u64) -> io::Result<()>;

pub(crate) struct Programs {
    root: PathBuf,
    other: PathBuf,
    stop: AtomicBool,
}

/// Makes calls for one program, and counts them.
struct Calls<'a> {
    dir: &'a Path,
    member: usize,
    outcome: Outcome,
}

/// Each with how many do it at once.
const ROUNDS: [(&str, Round, usize); 11] = [
    ("names", names, 2),
    ("directories", directories, 1),
    ("append", append, 3),
    ("overwrite", overwrite, 1),
    ("counter", counter, 3),
    ("listing", listing, 1),
    ("large", large, 1),
    ("truncate", truncate, 1),
    ("nameless", nameless, 1),
    ("mapped", mapped, 1),
    ("direct", direct, 1),
];

impl Calls<'_> {
    fn call<T>(&mut self, what: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        let done = call();
        self.outcome.calls += 1;
        self.outcome.longest = self.outcome.longest.max(began.elapsed());
        done.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
    }

    fn own(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-{}", self.member))
    }
}

fn expect(what: &str, holds: bool) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(what.to_owned())) }
}

impl Programs {
    /// In `root`; what is appended comes through `other` too, another mount, if there is one.
    pub(crate) fn prepare(root: &Path, other: Option<&Path>) -> Self {
        for (name, _, _) in ROUNDS {
            // That of the records has chunks of its own size.
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for number in 0..LISTED {
            File::create(root.join("listing").join(format!("entry-{number:04}"))).unwrap();
        }
        fs::write(root.join("counter/value"), "0").unwrap();
        fs::write(root.join("large/file"), pattern(LARGE_BYTES)).unwrap();
        let other = other.unwrap_or(root).to_owned();
        Self { root: root.to_owned(), other, stop: AtomicBool::new(false) }
    }

    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Vec<ScopedJoinHandle<'scope, Outcome>> {
        let mut running = Vec::new();
        for (name, round, members) in ROUNDS {
            for member in 0..members {
                running.push(scope.spawn(move || self.run(name, member, round)));
            }
        }
        running
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn run(&self, name: &'static str, member: usize, round: Round) -> Outcome {
        let root = if name == "append" && member == 2 { &self.other } else { &self.root };
        let dir = root.join(name);
        let mut calls =
            Calls { dir: &dir, member, outcome: Outcome { name, ..Outcome::default() } };
        while !self.stop.load(Ordering::Acquire) && calls.outcome.errors.is_empty() {
            let number = calls.outcome.rounds;
            match round(&mut calls, number) {
                Ok(()) => calls.outcome.rounds += 1,
                Err(error) => {
                    calls.outcome.errors.push(format!("{name} {member} round {number}: {error}"));
                }
            }
        }
        calls.outcome
    }

    /// What all of them together left.
    pub(crate) fn check(&self, outcomes: &[Outcome]) -> Option<Outcome> {
        let mut left = Outcome { name: "left", ..Outcome::default() };
        let whole = |name| outcomes.iter().filter(move |outcome| outcome.name == name);
        if outcomes.iter().all(|outcome| outcome.errors.is_empty()) {
            let counted: u64 = whole("counter").map(|outcome| outcome.rounds).sum();
            match fs::read_to_string(self.root.join("counter/value")) {
                Ok(value) if value == counted.to_string() => {}
                found => left.errors.push(format!("counted to {counted}, found {found:?}")),
            }
            let appended: Vec<u64> = whole("append").map(|outcome| outcome.rounds).collect();
            if let Err(error) = check_records(&self.root.join("append/log"), &appended) {
                left.errors.push(error.to_string());
            }
        }
        (!left.errors.is_empty()).then_some(left)
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 3 % 251).to_le_bytes()[0]).collect()
}

fn names(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let (one, two, three) = (calls.own("a"), calls.own("b"), calls.own("c"));
    let content = format!("content {number}");
    let mut file = calls.call("create", || File::create_new(&one))?;
    calls.call("write", || file.write_all(content.as_bytes()))?;
    drop(file);
    calls.call("rename", || fs::rename(&one, &two))?;
    calls.call("link", || fs::hard_link(&two, &three))?;
    let links = calls.call("stat", || fs::metadata(&three))?;
    expect("two links", std::os::unix::fs::MetadataExt::nlink(&links) == 2)?;
    calls.call("unlink", || fs::remove_file(&two))?;
    let read = calls.call("read", || fs::read_to_string(&three))?;
    expect("content", read == content)?;
    calls.call("unlink the second", || fs::remove_file(&three))?;
    let gone = calls.call("open what is gone", || Ok(File::open(&three)))?;
    expect("it is gone", gone.is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
}

fn directories(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let (dir, link) = (calls.own("d"), calls.own("l"));
    calls.call("mkdir", || fs::create_dir(&dir))?;
    let target = format!("to/{number}");
    calls.call("symlink", || std::os::unix::fs::symlink(&target, &link))?;
    let read = calls.call("readlink", || fs::read_link(&link))?;
    expect("target", read.to_str() == Some(&target))?;
    calls.call("unlink", || fs::remove_file(&link))?;
    calls.call("rmdir", || fs::remove_dir(&dir))
}

fn record(member: usize, number: u64) -> Vec<u8> {
    let mut bytes = format!("{member} {number} ").into_bytes();
    bytes.resize(RECORD - 1, b'.');
    bytes.push(b'\n');
    bytes
}

fn append(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let (path, record) = (calls.dir.join("log"), record(calls.member, number));
    let mut file = calls.call("open", || File::options().create(true).append(true).open(&path))?;
    let written = calls.call("append", || file.write(&record))?;
    expect("the whole record", written == RECORD)?;
    // Of the other mount, which writes behind: stable before the next one.
    if calls.member == 2 { calls.call("fsync", || file.sync_all()) } else { Ok(()) }
}

/// Each record of `counts[member]` is there once, and in order of its member.
fn check_records(path: &Path, counts: &[u64]) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let mut seen = vec![0; counts.len()];
    for (place, found) in bytes.chunks(RECORD).enumerate() {
        let wanted = (0..counts.len()).find(|member| found == record(*member, seen[*member]));
        let text = || String::from_utf8_lossy(found).into_owned();
        let Some(member) = wanted else {
            return Err(io::Error::other(format!("record {place} after {seen:?}: {}", text())));
        };
        seen[member] += 1;
    }
    expect(&format!("appended {counts:?}, found {seen:?}"), seen == counts)
}

fn overwrite(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let path = calls.dir.join("file");
    let options =
        || File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = calls.call("open", options)?;
    let block: Vec<u8> = format!("{number:08};").bytes().cycle().take(100_000).collect();
    let at = number % 7 * 90_000;
    calls.call("write", || file.write_all_at(&block, at))?;
    if number.is_multiple_of(5) {
        calls.call("fsync", || file.sync_all())?;
    }
    drop(file);
    let file = calls.call("open again", options)?;
    let mut read = vec![0; block.len()];
    calls.call("read", || file.read_exact_at(&mut read, at))?;
    expect("what was written", read == block)
}

fn counter(calls: &mut Calls<'_>, _number: u64) -> io::Result<()> {
    let path = calls.dir.join("value");
    let file = calls.call("open", || File::options().read(true).write(true).open(&path))?;
    calls.call("lock", || file.lock())?;
    let mut text = [0; 20];
    let len = calls.call("read", || file.read_at(&mut text, 0))?;
    let text = std::str::from_utf8(&text[..len]).map_err(io::Error::other)?;
    let value: u64 = text.parse().map_err(|_| io::Error::other(format!("no number: {text:?}")))?;
    calls.call("write", || file.write_all_at((value + 1).to_string().as_bytes(), 0))?;
    calls.call("unlock", || file.unlock())
}

fn listing(calls: &mut Calls<'_>, _number: u64) -> io::Result<()> {
    let dir = calls.dir;
    let mut names = calls.call("list", || {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
    })?;
    names.sort();
    let expected = (0..LISTED).map(|number| format!("entry-{number:04}"));
    expect(
        "every name once",
        names.len() == LISTED && names.iter().zip(expected).all(|(a, b)| *a == *b),
    )
}

fn large(calls: &mut Calls<'_>, _number: u64) -> io::Result<()> {
    let path = calls.dir.join("file");
    let mut read = Vec::with_capacity(LARGE_BYTES);
    let mut file = calls.call("open", || File::open(&path))?;
    calls.call("read", || file.read_to_end(&mut read))?;
    expect("content", read == pattern(LARGE_BYTES))
}

fn truncate(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let path = calls.dir.join("file");
    let file = calls.call("create", || File::create(&path))?;
    let len = 1000 + number % 50_000;
    calls.call("truncate", || file.set_len(len))?;
    let mode = 0o600 | u32::try_from(number % 8).unwrap_or(0);
    calls.call("chmod", || file.set_permissions(fs::Permissions::from_mode(mode)))?;
    let found = calls.call("stat", || fs::metadata(&path))?;
    expect("size and mode", found.len() == len && found.permissions().mode() & 0o777 == mode)?;
    calls.call("truncate to nothing", || file.set_len(0))?;
    let found = calls.call("fstat", || file.metadata())?;
    expect("nothing", found.len() == 0)
}

fn nameless(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    let path = calls.own("n");
    let options = || File::options().create_new(true).read(true).write(true).open(&path);
    let file = calls.call("create", options)?;
    let content: Vec<u8> = number.to_le_bytes().repeat(1000);
    calls.call("write", || file.write_all_at(&content, 0))?;
    calls.call("unlink", || fs::remove_file(&path))?;
    let mut read = vec![0; content.len()];
    calls.call("read", || file.read_exact_at(&mut read, 0))?;
    expect("content", read == content)
}

/// Shared pages that are made dirty, written back, and read past the cache.
#[expect(unsafe_code, reason = "mmap(2)")]
fn mapped(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    const BYTES: usize = 64 << 10;
    let path = calls.dir.join("file");
    let options =
        || File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = calls.call("open", options)?;
    calls.call("truncate", || file.set_len(BYTES as u64))?;
    let content: Vec<u8> = number.to_le_bytes().repeat(BYTES / 8);
    calls.call("map, write and sync", || {
        use std::os::fd::AsRawFd as _;
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a file of this size that nobody else cuts, used and unmapped here only.
        unsafe {
            let at =
                libc::mmap(std::ptr::null_mut(), BYTES, protection, shared, file.as_raw_fd(), 0);
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            std::ptr::copy_nonoverlapping(content.as_ptr(), at.cast::<u8>(), BYTES);
            let synced = libc::msync(at, BYTES, libc::MS_SYNC);
            let failed = io::Error::last_os_error();
            libc::munmap(at, BYTES);
            if synced == 0 { Ok(()) } else { Err(failed) }
        }
    })?;
    drop(file);
    let read = calls.call("read", || fs::read(&path))?;
    expect("what was mapped", read == content)
}

fn direct(calls: &mut Calls<'_>, number: u64) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    const BYTES: usize = 128 << 10;
    let path = calls.dir.join("file");
    let options = || {
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        options.custom_flags(libc::O_DIRECT).open(&path)
    };
    let file = calls.call("open", options)?;
    let content: Vec<u8> = number.to_le_bytes().repeat(BYTES / 8);
    calls.call("write", || file.write_all_at(&content, 0))?;
    calls.call("fsync", || file.sync_all())?;
    let mut read = vec![0; BYTES];
    calls.call("read", || file.read_exact_at(&mut read, 0))?;
    expect("content", read == content)
}
