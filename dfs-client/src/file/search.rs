//! Where a word stands in a file: its servers look through their chunks, many at once, and what they answer is put
//! together in the file's order. No more than edges of pieces come here; inline content is here, or at the master.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use dfs_core::namespace::{Attr, INLINE_BYTES_MAX};
use dfs_proto::data_rpc::SEARCH_BYTES_MAX;
use dfs_proto::search::{Needle, Seams};

use super::{FileState, small};
use crate::chunk_io::{Patience, Searched};
use crate::error::{ClientError, Result};
use crate::session::lock;

/// Pieces that are looked through at once, by all servers together.
const AT_ONCE: usize = 8;
/// Pieces begun and not yet put together: some servers are slower than others.
const AHEAD: usize = 4 * AT_ONCE;
/// Answers about one piece that wait for those about pieces before it; a server waits no longer than that for us.
const ANSWERS_AHEAD: usize = 1;

/// What is wanted of each hit.
pub enum Hits<'a> {
    Count,
    /// Called with the offset of each, in order.
    Offsets(&'a mut dyn FnMut(u64)),
}

impl std::fmt::Debug for Hits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Count => "Count",
            Self::Offsets(_) => "Offsets",
        })
    }
}

impl Hits<'_> {
    fn found(&mut self, at: u64, count: &mut u64) {
        *count += 1;
        if let Self::Offsets(found) = self {
            found(at);
        }
    }
}

/// Bytes `offset..offset+len` of chunk `index`.
#[derive(Clone, Copy, Debug)]
struct Piece {
    index: u64,
    offset: u64,
    len: u32,
}

/// Where piece `number` of a file of `size` bytes lies; `None`: there are no more.
fn piece(chunk_size: u64, size: u64, number: u64) -> Option<Piece> {
    let most = u64::from(SEARCH_BYTES_MAX).min(chunk_size);
    let per_chunk = chunk_size.div_ceil(most);
    let (index, offset) = (number / per_chunk, number % per_chunk * most);
    let start = index.checked_mul(chunk_size)?.checked_add(offset)?;
    let len = most.min(chunk_size - offset).min(size.checked_sub(start)?);
    let len = u32::try_from(len).ok().filter(|len| 0 < *len)?;
    Some(Piece { index, offset, len })
}

/// A piece to be looked through, and where to tell what was found.
type Task = (Piece, SyncSender<Result<Searched>>);

impl FileState {
    /// How many hits the file has, as it is now: it is looked through up to the size it has when this begins.
    ///
    /// # Errors
    /// See [`ClientError`]. Replicas that fail are passed over until `server_wait` is over, counted for each piece.
    pub fn search(&self, needle: &Needle, mut hits: Hits<'_>) -> Result<u64> {
        self.settle_appends();
        self.acknowledge_written()?;
        let attr = self.attr()?;
        let mut count = 0;
        let mut seams = Seams::of_text(needle);
        if attr.inline {
            // It is in one piece, and moves into chunks as such.
            let mut content = vec![0; small(INLINE_BYTES_MAX.min(attr.size))];
            let read = self.read(0, &mut content)?;
            content.truncate(read);
            seams.bytes(&content, |at| hits.found(at, &mut count));
        } else {
            let count_only = matches!(hits, Hits::Count);
            self.search_chunks(&attr, (needle, count_only), &mut |start, part| match part {
                Searched::Zeros { len } => {
                    seams.zeros(u64::from(len), |at| hits.found(at, &mut count));
                }
                Searched::Hits { len, count: inside, hits: offsets, head, tail } => {
                    seams.piece(u64::from(len), &head, &tail, |at| hits.found(at, &mut count));
                    match &mut hits {
                        Hits::Count => count += inside,
                        Hits::Offsets(_) => {
                            let offsets = offsets.into_iter().map(|at| start + u64::from(at));
                            offsets.for_each(|at| hits.found(at, &mut count));
                        }
                    }
                }
            })?;
        }
        seams.end(|at| hits.found(at, &mut count));
        Ok(count)
    }

    /// Gives `each` what was found in each part of the file and where the part begins, in order.
    fn search_chunks(
        &self,
        attr: &Attr,
        (needle, count_only): (&Needle, bool),
        each: &mut dyn FnMut(u64, Searched),
    ) -> Result<()> {
        let chunk_size = attr.layout.chunk_size.max(1);
        let pieces = (0..).map_while(|number| piece(chunk_size, attr.size, number));
        let (tasks, waiting) = channel();
        let (waiting, stopped) = (Mutex::new(waiting), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                std::thread::Builder::new()
                    .name("search".to_owned())
                    .spawn_scoped(scope, || {
                        self.work(&waiting, &stopped, (needle, count_only));
                    })
                    .map_err(|error| broken(format!("start a thread: {error}")))?;
            }
            let told = put_together(pieces, chunk_size, tasks, each);
            stopped.store(told.is_err(), Ordering::Release);
            told
        })
    }

    /// Until no task comes any more.
    fn work(&self, waiting: &Mutex<Receiver<Task>>, stopped: &AtomicBool, wanted: (&Needle, bool)) {
        loop {
            let next = lock(waiting).recv();
            let Ok((piece, told)) = next else { return };
            let mut at = 0;
            while at < piece.len && !stopped.load(Ordering::Acquire) {
                let rest = (piece.offset + u64::from(at), piece.len - at);
                let patience = Patience::new(self.io.link.config().server_wait);
                let part = self.io.search_chunk(self.ino, piece.index, rest, wanted, &patience);
                at = part.as_ref().map_or(piece.len, |part| at + part.len());
                if told.send(part).is_err() {
                    break;
                }
            }
        }
    }
}

fn broken(reason: String) -> ClientError {
    ClientError::Protocol { reason: format!("search: {reason}") }
}

/// Begins pieces, and gives `each` what was found, in the file's order.
fn put_together(
    mut pieces: impl Iterator<Item = Piece>,
    chunk_size: u64,
    tasks: Sender<Task>,
    each: &mut dyn FnMut(u64, Searched),
) -> Result<()> {
    let mut begun = VecDeque::new();
    loop {
        while begun.len() < AHEAD
            && let Some(piece) = pieces.next()
        {
            let (told, parts) = sync_channel(ANSWERS_AHEAD);
            tasks.send((piece, told)).map_err(|_| broken("its threads ended".to_owned()))?;
            begun.push_back((piece, parts));
        }
        let Some((piece, parts)) = begun.pop_front() else { return Ok(()) };
        let (start, mut at) = (piece.index * chunk_size + piece.offset, 0);
        for part in parts {
            let part = part?;
            let len = part.len();
            each(start + u64::from(at), part);
            at += len;
        }
        if at != piece.len {
            return Err(broken(format!("ended at byte {}", start + u64::from(at))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(chunk_size: u64, size: u64, expected: &[(u64, u64, u32)]) {
        let pieces = (0..).map_while(|number| piece(chunk_size, size, number));
        let pieces: Vec<_> = pieces.map(|p| (p.index, p.offset, p.len)).collect();
        assert_eq!(pieces, expected);
    }

    #[test]
    fn pieces_cover_the_file_once() {
        let most = SEARCH_BYTES_MAX;
        let large = u64::from(most) * 2;
        check(32, 0, &[]);
        check(32, 70, &[(0, 0, 32), (1, 0, 32), (2, 0, 6)]);
        check(large, large, &[(0, 0, most), (0, large / 2, most)]);
        check(large, large + 1, &[(0, 0, most), (0, large / 2, most), (1, 0, 1)]);
    }
}
