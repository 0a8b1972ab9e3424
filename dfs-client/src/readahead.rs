//! Bytes fetched ahead of a sequential reader of one file: pieces of up to 1 MiB, each from one replica, many at once.
//!
//! A piece is fetched once and copied once, into the reader's buffer. Local writes and a new change number forget all.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::client::readahead::SequentialDetector;
use dfs_core::ids::InodeNo;

use crate::chunk_io::{ChunkIo, LAYOUT_TTL, PIECE_BYTES, Patience, fill};
use crate::session::lock;

/// A fetch that takes longer is left to the patient way of reading.
const PIECE_WAIT: Duration = Duration::from_secs(3);
/// Pieces behind the reader that are kept for requests out of order.
const BEHIND_BYTES: u64 = 2 << 20;

enum Fetched {
    Pending,
    Bytes(Vec<u8>),
    Failed,
}

struct Slot {
    fetched: Mutex<Fetched>,
    done: Condvar,
}

struct Piece {
    len: u64,
    /// Bytes given to readers so far.
    read: u64,
    begun: Instant,
    slot: Arc<Slot>,
    /// Of the session's memory for pieces; given back when the last user of the piece is gone.
    _room: Room,
}

struct Room {
    io: Arc<ChunkIo>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.io.readahead.give_back(self.bytes);
    }
}

#[derive(Default)]
struct State {
    detector: SequentialDetector,
    pieces: BTreeMap<u64, Piece>,
}

/// The pieces of one file.
#[derive(Default)]
pub(crate) struct Readahead {
    state: Mutex<State>,
}

impl Readahead {
    pub(crate) fn clear(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            std::mem::take(&mut state.pieces)
        };
        drop(dropped);
    }

    pub(crate) fn forget(&self) {
        lock(&self.state).detector.clear();
        self.clear();
    }

    /// Told of a read of `offset..offset+len` in a file of `size` bytes: begins to fetch what follows.
    /// `may_fetch`: whether a range is free of bytes that are still on their way out.
    pub(crate) fn on_read(
        &self,
        io: &Arc<ChunkIo>,
        ino: InodeNo,
        chunk_size: u64,
        (offset, len): (u64, u64),
        size: u64,
        may_fetch: &dyn Fn(u64, u64) -> bool,
    ) {
        let mut state = lock(&self.state);
        let Some(upto) = state.detector.on_read(offset, len) else { return };
        let behind = offset.saturating_sub(BEHIND_BYTES);
        state.pieces.retain(|start, piece| {
            behind < start + piece.len && piece.begun.elapsed() < LAYOUT_TTL
        });
        let upto = upto.min(size);
        let mut at = offset;
        while at < upto {
            // Pieces begin at multiples, so that two of them never overlap, but for the first of a reader.
            if let Some((start, piece)) = state.pieces.range(..=at).next_back()
                && at < start + piece.len
            {
                at = start + piece.len;
                continue;
            }
            let end_of_piece = (at / PIECE_BYTES + 1) * PIECE_BYTES;
            let end_of_chunk = (at / chunk_size + 1) * chunk_size;
            let next_piece = state.pieces.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
            let end = end_of_piece.min(end_of_chunk).min(size).min(next_piece);
            if !may_fetch(at, end - at) || !io.readahead.try_take(end - at) {
                return;
            }
            let room = Room { io: Arc::clone(io), bytes: end - at };
            let Some(slot) = fetch(io, ino, chunk_size, at, end - at) else { return };
            state.pieces.insert(
                at,
                Piece { len: end - at, read: 0, begun: Instant::now(), slot, _room: room },
            );
            at = end;
        }
    }

    /// Copies what was fetched of `offset..`; answers how many bytes that is, 0 if they must be read otherwise.
    pub(crate) fn take(&self, offset: u64, out: &mut [u8]) -> usize {
        let (start, slot, len) = {
            let state = lock(&self.state);
            let Some((start, piece)) = state.pieces.range(..=offset).next_back() else { return 0 };
            // A slow reader must not see what was true long ago.
            if start + piece.len <= offset || LAYOUT_TTL <= piece.begun.elapsed() {
                return 0;
            }
            (*start, Arc::clone(&piece.slot), piece.len)
        };
        let have = usize::try_from(start + len - offset).unwrap_or(usize::MAX).min(out.len());
        let from = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let mut fetched = lock(&slot.fetched);
        while matches!(*fetched, Fetched::Pending) {
            let (again, waited) =
                slot.done.wait_timeout(fetched, PIECE_WAIT).unwrap_or_else(PoisonError::into_inner);
            fetched = again;
            if waited.timed_out() {
                break;
            }
        }
        let worked = match &*fetched {
            // What is stored nowhere is looked at again by whoever reads it.
            Fetched::Bytes(bytes) if bytes.len() < from + have => false,
            Fetched::Bytes(bytes) => {
                fill(&mut out[..have], bytes.get(from..).unwrap_or_default());
                true
            }
            Fetched::Pending | Fetched::Failed => false,
        };
        drop(fetched);
        let mut state = lock(&self.state);
        let used_up =
            match state.pieces.get_mut(&start).filter(|piece| Arc::ptr_eq(&piece.slot, &slot)) {
                Some(piece) => {
                    piece.read += have as u64;
                    !worked || piece.len <= piece.read
                }
                None => false,
            };
        let piece = if used_up { state.pieces.remove(&start) } else { None };
        drop(state);
        drop(piece);
        if worked { have } else { 0 }
    }
}

fn fetch(io: &Arc<ChunkIo>, ino: InodeNo, chunk_size: u64, at: u64, len: u64) -> Option<Arc<Slot>> {
    let slot = Arc::new(Slot { fetched: Mutex::new(Fetched::Pending), done: Condvar::new() });
    // Whoever reads waits, not who reads ahead.
    match io.layout_to_read(ino, at / chunk_size, &Patience::none()).ok()? {
        None => *lock(&slot.fetched) = Fetched::Bytes(Vec::new()),
        Some(layout) => {
            let filled = Arc::clone(&slot);
            let on_done = Box::new(move |bytes: Option<Vec<u8>>| {
                *lock(&filled.fetched) = bytes.map_or(Fetched::Failed, Fetched::Bytes);
                filled.done.notify_all();
            });
            let len = u32::try_from(len).ok()?;
            if !io.start_read(&layout, at % chunk_size, len, on_done) {
                return None;
            }
        }
    }
    Some(slot)
}
