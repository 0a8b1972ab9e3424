//! The store against a model: on a real directory, on a disk that loses power, and on damaged files.

mod crash;
mod damage;
mod forget;
mod model;
mod records;
mod threads;
mod whole;

use std::sync::Arc;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, FsId, InodeNo, ServerId};

use super::{
    ChunkSpec, Mutation, OpTag, OpenOptions, Position, Seen, Store, StoreConfig, StoreError,
};

const FS: FsId = FsId(7);
const V1: ChunkVersion = ChunkVersion(1);

const NOBODY: OpTag =
    OpTag { client: ClientId(0), counter: 0, low_water: 0, append: None, record: false };

fn config(dir: &std::path::Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        fs_id: Some(FS),
        server: ServerId(1),
        segment_bytes: 1 << 20,
        capacity_bytes: None,
        reserve_percent: 5,
    }
}

fn options(boot: u64) -> OpenOptions {
    OpenOptions {
        boot_id: format!("boot-{boot}"),
        accept_journal_loss: false,
        is_older_copy: false,
        on_fatal: Arc::new(|what| panic!("fatal: {what}")),
    }
}

fn spec(chunk_size: u64) -> ChunkSpec {
    ChunkSpec { inode: InodeNo(9), index: 3, chunk_size }
}

/// A small generator (xorshift64*), so that a seed is the whole test.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.next() & 0xff).unwrap()).collect()
    }
}

fn read_all(store: &Store, chunk: ChunkId, version: ChunkVersion) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::new();
    store.read(chunk, version, 0, u64::MAX, &mut out)?;
    Ok(out)
}

fn position(version: ChunkVersion, seq: u64) -> Position {
    Position { version, seq }
}

/// What a mutation does to a chunk held in memory.
fn mutate(content: &mut Vec<u8>, mutation: &Mutation<'_>) {
    let at = |n: u64| usize::try_from(n).unwrap();
    match *mutation {
        Mutation::Write { data: [], .. } | Mutation::Seal | Mutation::Nop => {}
        Mutation::Write { offset, data } => {
            let end = at(offset) + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[at(offset)..end].copy_from_slice(data);
        }
        Mutation::Zero { offset, len } => {
            let end = at(offset.saturating_add(len).min(content.len() as u64));
            content[at(offset).min(end)..end].fill(0);
        }
        Mutation::Truncate { len } => content.resize(at(len), 0),
    }
}

/// What to do next to a chunk of `size` bytes that is `len` long; mostly small, around edges, sometimes bulk.
fn draw(dice: &mut Dice, size: u64, len: u64) -> (u8, u64, u64) {
    let place = |dice: &mut Dice| match dice.below(4) {
        0 => len,
        1 => dice.below(size),
        2 => dice.below(len + 1),
        _ => (dice.below(size / 4096 + 1) * 4096).min(size),
    };
    let offset = place(dice);
    let longest = match dice.below(8) {
        0 => size,
        1 => 300_000,
        2 => 5_000,
        _ => 600,
    };
    // No more than a record of the small segments here can hold.
    let n = dice.below(longest + 1).min(size - offset).min(500_000);
    match dice.below(20) {
        0 | 1 => (1, offset, n),
        2 | 3 => (2, place(dice), 0),
        4 => (4, 0, 0),
        _ => (0, offset, n),
    }
}

fn mutation<'a>(kind: u8, offset: u64, n: u64, data: &'a [u8]) -> Mutation<'a> {
    match kind {
        0 => Mutation::Write { offset, data },
        1 => Mutation::Zero { offset, len: n },
        2 => Mutation::Truncate { len: offset },
        3 => Mutation::Seal,
        _ => Mutation::Nop,
    }
}
