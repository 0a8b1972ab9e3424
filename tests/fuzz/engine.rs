//! Runs one decoder: on its kept corpus, on everything that real encoders make, on each prefix of that, and on seeded
//! mutations. Part of the test program of each crate with decoders of its own (by `#[path]`).
//!
//! A decoder is total: any bytes give a value or an error, never a panic, and memory bounded by the input. What is
//! accepted must also survive a round trip, which the target itself asserts, or two readers could disagree.
//!
//! `tests/fuzz/corpus/TARGET/` holds small inputs: `*.valid` were written by released code and must be accepted for
//! ever; `*.refused` must never be; others once failed, and may be either. `DFS_FUZZ_SECONDS` is the least time for each target (default: a fixed number of
//! inputs), `DFS_FUZZ_SEED` the seed; a failure names its input's file, which belongs into the corpus. With
//! `DFS_FUZZ_KEEP=1` valid inputs are added to it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test engine: mutations may wrap"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Mutated inputs for each target, without a setting.
const INPUTS: u64 = 20_000;
/// Memory for each byte of input: a value is larger than its bytes, and both are made again for the round trip.
const MEMORY_FACTOR: usize = 256;
const MEMORY: usize = 256 << 10;
const KEPT_BYTES_MAX: usize = 4096;
/// Of one target.
const KEPT_MAX: usize = 80;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's, counted for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends has no counters any more.
    let _ending = LIVE.try_with(|live| {
        let now = live.get() + bytes;
        live.set(now);
        let _ending = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

#[expect(unsafe_code, reason = "an allocator; it only counts what the system's does")]
// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(signed(bytes) - signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}='{text}' is no number")))
}

/// xorshift64*: seeded, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len() + 1)),
            2 => {
                let at = random.below(bytes.len() + 1);
                bytes.insert(at, random.next() as u8);
            }
            3 if 4 <= bytes.len() => {
                // Lengths and counts are where decoders break.
                let at = random.below(bytes.len() - 3);
                let extreme = [0, 1, 0x7fff_ffff, u32::MAX, bytes.len() as u32][random.below(5)];
                bytes[at..at + 4].copy_from_slice(&extreme.to_le_bytes());
            }
            4 => {
                let other = &inputs[random.below(inputs.len())];
                let (at, from) = (random.below(bytes.len() + 1), random.below(other.len() + 1));
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            5 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes.remove(at);
            }
            6 if 8 <= bytes.len() => {
                let at = random.below(bytes.len() - 7);
                let extreme = [0, 1, u64::MAX, 1 << 63, 1 << 62][random.below(5)];
                bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(extreme));
            }
            _ => bytes.extend((0..random.below(16)).map(|_| random.next() as u8)),
        }
    }
    bytes
}

/// One decoder.
pub(crate) struct Target {
    name: &'static str,
    valid: Vec<Vec<u8>>,
    prefixes_are_refused: bool,
    repair: Option<fn(&mut Vec<u8>)>,
    seal: Option<fn(&str) -> String>,
    memory: usize,
    inputs: u64,
}

impl Target {
    /// `valid`: what real encoders make, every variant.
    pub(crate) fn new(name: &'static str, valid: Vec<Vec<u8>>) -> Self {
        let (memory, inputs) = (MEMORY, INPUTS);
        Self { name, valid, prefixes_are_refused: true, repair: None, seal: None, memory, inputs }
    }

    /// Something shorter may be another value: the end of the input is the end of the value.
    #[allow(dead_code, clippy::allow_attributes, reason = "not in every crate")]
    pub(crate) fn prefixes_may_be_valid(mut self) -> Self {
        self.prefixes_are_refused = false;
        self
    }

    /// Puts right what a mutation always breaks (checksums), so that what is behind it is tried too: on half of the
    /// mutated inputs.
    #[allow(dead_code, clippy::allow_attributes, reason = "not in every crate")]
    pub(crate) fn repaired_by(mut self, repair: fn(&mut Vec<u8>)) -> Self {
        self.repair = Some(repair);
        self
    }

    /// As [`Self::repaired_by`], of a line with a checksum at its end, which `seal` puts there.
    #[allow(dead_code, clippy::allow_attributes, reason = "not in every crate")]
    pub(crate) fn sealed_by(mut self, seal: fn(&str) -> String) -> Self {
        self.seal = Some(seal);
        self
    }

    /// What it may allocate whatever the input is: a stated limit of the format, or a buffer.
    #[allow(dead_code, clippy::allow_attributes, reason = "not in every crate")]
    pub(crate) fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Fewer than usual, for a decoder behind a file or a connection.
    #[allow(dead_code, clippy::allow_attributes, reason = "not in every crate")]
    pub(crate) fn inputs(mut self, count: u64) -> Self {
        self.inputs = count;
        self
    }

    fn corpus_dir(&self) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus")).join(self.name)
    }

    /// Bytes, and whether they must be accepted or refused.
    fn kept(&self) -> Vec<(Vec<u8>, Option<bool>)> {
        let dir = self.corpus_dir();
        let entries = std::fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}; DFS_FUZZ_KEEP=1 makes it", dir.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}: empty", dir.display());
        let read = |path: &PathBuf| std::fs::read(path).unwrap();
        let verdict = |path: &PathBuf| match path.extension()?.to_str()? {
            "valid" => Some(true),
            "refused" => Some(false),
            _ => None,
        };
        paths.iter().map(|path| (read(path), verdict(path))).collect()
    }

    fn keep_valid(&self) {
        let dir = self.corpus_dir();
        std::fs::create_dir_all(&dir).unwrap();
        let small: Vec<_> =
            self.valid.iter().filter(|bytes| bytes.len() <= KEPT_BYTES_MAX).collect();
        for bytes in small.iter().step_by(small.len().div_ceil(KEPT_MAX)) {
            std::fs::write(dir.join(format!("{:016x}.valid", digest(bytes))), bytes).unwrap();
        }
    }

    /// `decode` says whether it accepted the bytes, and asserts that what it accepted survives a round trip.
    pub(crate) fn run(self, decode: impl Fn(&[u8]) -> bool) {
        if setting("DFS_FUZZ_KEEP") == Some(1) {
            self.keep_valid();
        }
        let name = self.name;
        let mut inputs = self.valid.clone();
        for bytes in &self.valid {
            assert!(self.try_one(bytes, &decode), "{name}: refused what was encoded: {bytes:02x?}");
        }
        for (bytes, verdict) in self.kept() {
            let accepted = self.try_one(&bytes, &decode);
            let right = verdict.is_none_or(|verdict| verdict == accepted);
            assert!(right, "{name}: accepted is {accepted}: the corpus' {bytes:02x?}");
            inputs.push(bytes);
        }
        let mut cuts = 0;
        for bytes in inputs.iter().filter(|bytes| bytes.len() <= KEPT_BYTES_MAX) {
            let whole = self.try_one(bytes, &decode);
            for len in 0..bytes.len() {
                let accepted = self.try_one(&bytes[..len], &decode);
                let wrong = whole && accepted && self.prefixes_are_refused;
                assert!(!wrong, "{name}: the first {len} bytes are accepted of {bytes:02x?}");
                cuts += 1;
            }
        }
        let seed = setting("DFS_FUZZ_SEED").unwrap_or(0x00d5_eed5);
        let least = Duration::from_secs(setting("DFS_FUZZ_SECONDS").unwrap_or(0));
        let mut random = Random(seed | 1);
        let (start, mut tried, mut accepted) = (Instant::now(), 0, 0);
        while tried < self.inputs || start.elapsed() < least {
            let mut bytes = mutate(&mut random, &inputs);
            if let Some(repair) = self.repair
                && random.below(2) == 0
            {
                repair(&mut bytes);
            }
            if let Some(seal) = self.seal
                && random.below(2) == 0
                && let Some(at) = bytes.iter().rposition(|byte| *byte == b' ')
                && let Ok(body) = std::str::from_utf8(&bytes[..at])
            {
                bytes = seal(body).into_bytes();
            }
            accepted += u64::from(self.try_one(&bytes, &decode));
            tried += 1;
        }
        println!(
            "{name}: {} valid, {cuts} cut, {tried} mutated of which {accepted} accepted, seed {seed}",
            inputs.len()
        );
    }

    fn try_one(&self, bytes: &[u8], decode: &impl Fn(&[u8]) -> bool) -> bool {
        let before = LIVE.get();
        PEAK.set(before);
        let accepted = catch_unwind(AssertUnwindSafe(|| decode(bytes)));
        let peak = usize::try_from(PEAK.get() - before).unwrap_or(0);
        let allowed = self.memory + MEMORY_FACTOR * bytes.len();
        let wrong = match accepted {
            Ok(accepted) if peak <= allowed => return accepted,
            Ok(_) => format!("took {peak} bytes of memory, allowed are {allowed}"),
            Err(_) => "panicked (see above)".to_owned(),
        };
        let path = std::env::temp_dir().join(format!("{}-{:016x}", self.name, digest(bytes)));
        let written = std::fs::write(&path, bytes);
        let shown = &bytes[..bytes.len().min(200)];
        panic!(
            "{}: {wrong} on {} bytes, {} ({written:?}): {shown:02x?}",
            self.name,
            bytes.len(),
            path.display()
        );
    }
}

/// FNV-1a: names files.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
