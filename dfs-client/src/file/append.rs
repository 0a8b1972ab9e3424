//! Appends: waited for, or written behind.
//!
//! Written behind, records gather while the operation before them is on its way, and go out together, in order. An
//! operation is never longer than what is stored whole or not at all, and no record is cut over two. Whoever asks
//! for content or size, or writes at a place, first waits for what was gathered before; nobody does so holding
//! `commit`, which the sender may need.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_core::command::{Change, Outcome};
use dfs_core::namespace::{Attr, FILE_BYTES_MAX, INLINE_BYTES_MAX, NamespaceError};

use super::{FileState, LAYOUT_KNOWN, WRITE_PIECE, small};
use crate::chunk_writer::{Appended, Order};
use crate::error::{ClientError, Result};
use crate::kept::{self, Begun};
use crate::session::lock;

#[derive(Default)]
struct Queue {
    /// Operations to be; the last one still takes records.
    waiting: VecDeque<Vec<u8>>,
    /// Operations begun to gather so far, and those of them that were answered or given up.
    begun: u64,
    ended: u64,
    /// Somebody sends, and will look for more.
    sending: bool,
}

/// Records written behind.
#[derive(Default)]
pub(super) struct Gathered {
    queue: Mutex<Queue>,
    ended: Condvar,
}

impl Gathered {
    pub(super) fn are_pending(&self) -> bool {
        let queue = lock(&self.queue);
        queue.ended < queue.begun
    }

    /// Adds one record; true if nobody sends yet.
    fn add(&self, record: &[u8], operation_max: usize) -> bool {
        let mut queue = lock(&self.queue);
        match queue.waiting.back_mut() {
            Some(last) if last.len() + record.len() <= operation_max => {
                if last.capacity() - last.len() < record.len() {
                    // By a quarter: doubled, it might take twice the memory that is counted.
                    last.reserve_exact(record.len().max(last.len() / 4));
                }
                last.extend_from_slice(record);
            }
            Some(_) | None => {
                queue.waiting.push_back(record.to_vec());
                queue.begun += 1;
            }
        }
        !std::mem::replace(&mut queue.sending, true)
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        let next = queue.waiting.pop_front();
        queue.sending = next.is_some();
        next
    }

    fn on_sent(&self) {
        lock(&self.queue).ended += 1;
        self.ended.notify_all();
    }

    /// An operation failed: what was gathered behind it is given up too. Answers the bytes of that.
    fn on_failed(&self) -> u64 {
        let mut queue = lock(&self.queue);
        let lost = std::mem::take(&mut queue.waiting);
        queue.ended = queue.begun;
        drop(queue);
        self.ended.notify_all();
        lost.iter().map(|operation| operation.len() as u64).sum()
    }

    /// Waits for what was gathered so far; true if there was anything.
    fn settle(&self) -> bool {
        let mut queue = lock(&self.queue);
        let upto = queue.begun;
        let pending = queue.ended < upto;
        while queue.ended < upto {
            let waited = self.ended.wait_timeout(queue, Duration::from_secs(1));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        pending
    }
}

impl FileState {
    /// Waits for records written behind; true if there were any. Their errors are kept.
    pub(crate) fn settle_appends(&self) -> bool {
        self.appends.settle()
    }

    /// Whether each append to this file is a record, which is never split.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn is_record_log(&self) -> Result<bool> {
        Ok(self.known_attr(LAYOUT_KNOWN)?.layout.record_log)
    }

    /// Takes one record for the end of the file: written behind, in order, whole. Waits while too much is pending,
    /// and, in a record log, until the record is stable.
    ///
    /// # Errors
    /// An earlier write's error, once; so for this record, by whoever writes next and whoever syncs.
    pub fn append_behind(self: &Arc<Self>, record: &[u8]) -> Result<()> {
        let layout = self.known_attr(LAYOUT_KNOWN)?.layout;
        if layout.record_log || record.is_empty() {
            return self.append(record).map(|_offset| ());
        }
        let _open = self.shared();
        self.tell_writer()?;
        if !self.appends.are_pending() {
            self.acknowledge_before_append()?;
        }
        self.readahead.clear();
        self.take_room(record.len() as u64)?;
        let operation_max = WRITE_PIECE.min(small(layout.chunk_size));
        if self.appends.add(record, operation_max) {
            let file = Arc::clone(self);
            self.io.carriers.run(Box::new(move || file.send_gathered()));
        }
        Ok(())
    }

    fn send_gathered(self: &Arc<Self>) {
        while let Some(operation) = self.appends.next() {
            let mut room = operation.len() as u64;
            let sent = self.acknowledge_before_append();
            let sent = sent.and_then(|()| self.append_now(&operation, &mut room));
            match sent {
                Ok(_offset) => self.appends.on_sent(),
                Err(error) => {
                    tracing::warn!(ino = self.ino().0, %error, see = error.page().map(tracing::field::display), "appended records are lost");
                    self.keep(Err(error));
                    room += self.appends.on_failed();
                }
            }
            self.io.budget.give_back(room);
            if self.io.carriers.are_short() {
                let file = Arc::clone(self);
                return self.io.carriers.run(Box::new(move || file.send_gathered()));
            }
        }
    }

    /// An append goes behind what was written before.
    fn acknowledge_before_append(&self) -> Result<()> {
        let pending = {
            let inner = self.lock();
            inner.pending.has_inline()
                || inner.writers.values().any(|writer| writer.has_unacknowledged())
        };
        if pending { self.acknowledge_written() } else { Ok(()) }
    }

    /// Appends `data` and returns when it is stable: the offset it went to.
    ///
    /// # Errors
    /// See [`ClientError`]; after `OutcomeUnknown` and the waits it may have been appended.
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        let _open = self.shared();
        self.tell_writer()?;
        self.acknowledge()?;
        if data.is_empty() || kept::is_appended() {
            return self.size();
        }
        self.readahead.clear();
        let offset = self.append_now(data, &mut 0)?;
        kept::appended();
        Ok(offset)
    }

    /// `room`: how much of the write budget the caller holds for `data`; what goes over to others is taken off.
    fn append_now(&self, data: &[u8], room: &mut u64) -> Result<u64> {
        // Never from memory: if another mount made the file longer by truncate(2), its primary does not know yet.
        // The logged size is enough; of bytes beyond it the primary knows.
        let mut attr = self.io.link.getattr(self.ino)?;
        // Logged by a predecessor of this process perhaps, though the file may have been moved to chunks since.
        let mut may_be_logged = kept::has_unrepeated();
        while attr.inline || may_be_logged {
            let append = Change::InlineWrite {
                ino: self.ino,
                offset: 0,
                data: data.to_vec(),
                append: true,
                mtime: None,
                kill_priv: self.lock().pending.kill_priv,
            };
            let fits = attr.size.saturating_add(data.len() as u64) <= INLINE_BYTES_MAX;
            let asked = self.asking();
            // What cannot fit is not even asked.
            let answer = if fits || std::mem::take(&mut may_be_logged) {
                self.io.link.change(append)
            } else {
                Err(NamespaceError::LayoutChanged.into())
            };
            may_be_logged = false;
            match answer {
                Ok(Outcome::Appended { offset, attr }) => {
                    self.learn(asked, attr, None, true);
                    return Ok(offset);
                }
                Ok(other) => {
                    return Err(ClientError::Protocol {
                        reason: format!("append was answered {other:?}"),
                    });
                }
                Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {
                    attr = self.logged()?;
                    if attr.inline && INLINE_BYTES_MAX < attr.size.saturating_add(data.len() as u64)
                    {
                        self.io.spill(self.ino)?;
                        attr = self.logged()?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.append_to_chunks(attr, data, room)
    }

    /// What the master has. Not what the last chunk adds to it: a chunk that is full says nothing of the bytes of the
    /// next one that belong to an append which crosses its end.
    fn logged(&self) -> Result<Attr> {
        let asked = self.asking();
        let attr = self.io.link.getattr(self.ino)?;
        self.learn(asked, attr.clone(), None, true);
        Ok(attr)
    }

    fn append_to_chunks(&self, mut attr: Attr, data: &[u8], room: &mut u64) -> Result<u64> {
        let chunk_size = attr.layout.chunk_size.max(1);
        let record = attr.layout.record_log;
        let (bytes, most) = (data.len() as u64, attr.layout.record_bytes_max());
        if record && most < bytes {
            return Err(ClientError::RecordTooLong { bytes, most });
        }
        let mut size = attr.size.max(self.pending_end(attr.cuts));
        let mut begin = None;
        let mut again = kept::begun(self.ino);
        let (mut done, data) = match again {
            Some(Begun { done, .. }) => (done, data.get(small(done)..).unwrap_or_default()),
            None => (0, data),
        };
        let _none_freed = self.nothing_freed();
        self.lock().pending.appended = true;
        // One operation crosses at most one chunk's end: longer ones are not atomic.
        for piece in data.chunks(small(chunk_size)) {
            let piece = Arc::new(piece.to_vec());
            // A file that ends with its chunk may be about to go on: an append that crosses this very end has the next
            // bytes. The chunk's primary knows.
            let mut at_end = !record && 0 < size && size.is_multiple_of(chunk_size);
            let at = loop {
                let begun = again.take();
                let index = match begun {
                    Some(Begun { index, .. }) => index,
                    None => size / chunk_size - u64::from(at_end),
                };
                if FILE_BYTES_MAX / chunk_size <= index {
                    return Err(NamespaceError::FileTooLarge.into());
                }
                let writer = {
                    let mut inner = self.lock();
                    inner.pending.marked = true;
                    self.writer_in(&mut inner, index, chunk_size)
                };
                let at_least = (size.saturating_sub(index * chunk_size), attr.cuts);
                let appended = match begun {
                    Some(Begun { counter, .. }) => {
                        self.wait_for_begun_below(counter);
                        let piece = Arc::clone(&piece);
                        let appended = writer.append_again(piece, record, attr.cuts, counter);
                        kept::repeated(appended.is_err());
                        appended?
                    }
                    None => {
                        self.wait_for_begun();
                        writer.append(Arc::clone(&piece), record, at_least, done)?
                    }
                };
                match appended {
                    Appended::At { offset, .. } => break index * chunk_size + offset,
                    Appended::Crossing { offset, len, counter, order } => {
                        // Less than the piece: that is what makes it a crossing.
                        let rest = &piece[small(len)..];
                        let next = (index + 1, chunk_size);
                        let stored = self.store_crossing(next, rest, order, room);
                        writer.crossed(counter);
                        stored?;
                        break index * chunk_size + offset;
                    }
                    Appended::Full { carry } => {
                        size = (index + 1) * chunk_size + carry;
                        at_end = false;
                    }
                    Appended::Moved => {
                        attr = self.logged()?;
                        size = attr.size;
                        at_end = !record && 0 < size && size.is_multiple_of(chunk_size);
                    }
                }
            };
            begin.get_or_insert(at);
            done += piece.len() as u64;
            size = at + piece.len() as u64;
            self.wrote(&mut self.lock(), attr.cuts, size);
        }
        Ok(begin.unwrap_or(size))
    }

    /// Where the bytes end that were written since the file was cut for the last time and are not logged: what was
    /// written before may be gone with the cut, and an append must not go behind where that was.
    fn pending_end(&self, cuts: u64) -> u64 {
        let inner = self.lock();
        let since =
            inner.pending.reach.filter(|(known, _)| *known == cuts).map_or(0, |(_, end)| end);
        let uncut = inner.pending.cuts.is_none_or(|before| before == cuts);
        if uncut { inner.pending.end.max(since) } else { since }
    }

    /// The rest of an append that crossed a chunk's end: the first bytes of the next chunk are kept for it.
    fn store_crossing(
        &self,
        (index, chunk_size): (u64, u64),
        rest: &[u8],
        order: Order,
        room: &mut u64,
    ) -> Result<()> {
        match room.checked_sub(rest.len() as u64) {
            Some(left) => *room = left,
            None => self.take_room(rest.len() as u64)?,
        }
        self.wait_for_begun();
        let writer = self.writer_in(&mut self.lock(), index, chunk_size);
        writer.carry(rest, order);
        writer.stable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(gathered: &Gathered) -> Vec<usize> {
        std::iter::from_fn(|| gathered.next()).map(|operation| operation.len()).collect()
    }

    #[test]
    fn records_are_joined_whole_up_to_one_operation() {
        let gathered = Gathered::default();
        assert!(gathered.add(&[1; 40], 100));
        assert!(!gathered.add(&[2; 60], 100));
        assert!(!gathered.add(&[3; 1], 100));
        assert!(!gathered.add(&[4; 100], 100));
        assert!(!gathered.add(&[5; 250], 100));
        assert_eq!(operations(&gathered), [100, 1, 100, 250]);
        assert!(gathered.add(&[6], 100), "whoever sent found nothing more and went");
    }

    #[test]
    fn a_failed_operation_takes_those_behind_it_along_and_lets_waiters_go() {
        let gathered = Gathered::default();
        gathered.add(&[1; 80], 100);
        gathered.add(&[2; 80], 100);
        gathered.add(&[3; 10], 100);
        assert_eq!(gathered.next().map(|operation| operation.len()), Some(80));
        assert!(gathered.are_pending());
        assert_eq!(gathered.on_failed(), 90);
        assert!(!gathered.settle() && gathered.next().is_none());
    }
}
