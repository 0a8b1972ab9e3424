//! Changes of bytes in a session that outlives its process ([`crate::kept`]): each operation on a chunk is of one request
//! of the kernel, which waits for it, and whoever follows asks again under the number that it had.
//!
//! Order: all that predecessors began on the file is repeated → new operations on its chunks.

use dfs_core::command::{Change, Outcome};
use dfs_core::namespace::{INLINE_BYTES_MAX, NamespaceError};

use super::{FileState, LAYOUT_KNOWN, WRITE_PIECE, appends_only, small, within};
use crate::chunk_writer::Placed;
use crate::error::{ClientError, Result};
use crate::kept::{self, Begun};
use crate::session::lock;

impl FileState {
    pub(super) fn is_kept(&self) -> bool {
        self.io.link.config().kept.is_some()
    }

    pub(super) fn wait_for_begun(&self) {
        if let Some(kept) = &self.io.link.config().kept {
            kept.wait_for_begun(self.ino);
        }
    }

    pub(super) fn wait_for_begun_below(&self, counter: u64) {
        if let Some(kept) = &self.io.link.config().kept {
            kept.wait_for_begun_below(self.ino, counter);
        }
    }

    /// As [`Self::write`]; every member has the bytes when this returns. `data` is not empty.
    pub(super) fn write_once(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        let _open = self.shared();
        self.tell_write()?;
        let attr = self.known_attr(LAYOUT_KNOWN)?;
        appends_only(&attr)?;
        self.readahead.clear();
        // As it was before anything of this was sent.
        let cuts = kept::cuts(attr.cuts);
        // Of several pieces the last one begun; those before it are stored.
        let mut begun = kept::begun(self.ino).filter(|begun| (offset..end).contains(&begun.done));
        // Logged by a predecessor perhaps, though the file may have been moved to chunks since.
        let may_be_inline = begun.is_none() && (attr.inline || kept::has_unrepeated());
        if may_be_inline && end <= INLINE_BYTES_MAX && self.write_inline_once(offset, data)? {
            return Ok(());
        }
        let chunk_size = attr.layout.chunk_size.max(1);
        let mut at = begun.map_or(offset, |begun| begun.done);
        while at < end {
            let rest = data.get(small(at - offset)..).unwrap_or_default();
            at += self.write_piece((at, rest), chunk_size, cuts, begun.take())?;
            // A reader may have begun to fetch what was there before these bytes were sent.
            self.readahead.clear();
        }
        Ok(())
    }

    /// False: the content is in chunks.
    fn write_inline_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let _one = lock(&self.commit);
        let (kill_priv, writes) = {
            let pending = &self.lock().pending;
            // What went to chunks meanwhile has a commit of its own.
            let is_first = !pending.marked && pending.mtime.is_none();
            (pending.kill_priv, if is_first { pending.writes } else { u64::MAX })
        };
        let mtime = Some(kept::time(|| self.io.link.wall_now()));
        let (ino, bytes) = (self.ino, data.to_vec());
        let change =
            Change::InlineWrite { ino, offset, data: bytes, append: false, mtime, kill_priv };
        let asked = self.asking();
        match self.io.link.change(change) {
            Ok(Outcome::Attr(attr)) => {
                self.logged_inline(asked, Some(attr), &[(offset, data.to_vec())], writes);
                Ok(true)
            }
            Ok(other) => {
                Err(ClientError::Protocol { reason: format!("write was answered {other:?}") })
            }
            Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {
                self.refresh()?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the first bytes of `rest`, of one chunk, at `at`: how many.
    fn write_piece(
        &self,
        (at, rest): (u64, &[u8]),
        chunk_size: u64,
        cuts: u64,
        begun: Option<Begun>,
    ) -> Result<u64> {
        let (index, within) = (at / chunk_size, at % chunk_size);
        let len = small(chunk_size - within).min(rest.len()).min(WRITE_PIECE);
        let piece = rest.get(..len).unwrap_or_default();
        let mut again = begun.map(|begun| begun.counter);
        loop {
            self.wait_for_begun_below(again.unwrap_or(u64::MAX));
            self.take_room(len as u64)?;
            let writer = {
                let mut inner = self.lock();
                inner.pending.marked = true;
                self.writer_in(&mut inner, index, chunk_size)
            };
            let placed = {
                let _none_freed = self.nothing_freed();
                writer.place_write(within, piece, at, again)
            };
            if again.take().is_some() {
                kept::repeated(!matches!(placed, Ok(Placed::Done)));
            }
            match placed {
                Ok(Placed::Done) => break,
                Ok(Placed::Moved) => {}
                Ok(Placed::Refused) => self.tell_refused()?,
                Err(error) => {
                    // This is the write that is told.
                    self.keep(writer.take_error_now());
                    return self.tell_write().and(Err(error));
                }
            }
        }
        let mut inner = self.lock();
        inner.pending.marked = true;
        self.wrote(&mut inner, cuts, at + len as u64);
        Ok(len as u64)
    }

    /// Zeros over a part of a chunk. `again`: as a predecessor of this process began it.
    pub(super) fn zero_once(
        &self,
        index: u64,
        chunk_size: u64,
        (from, to): (u64, u64),
        mut again: Option<u64>,
    ) -> Result<()> {
        loop {
            self.wait_for_begun_below(again.unwrap_or(u64::MAX));
            let writer = {
                let mut inner = self.lock();
                self.wrote(&mut inner, u64::MAX, 0);
                inner.pending.marked = true;
                self.writer_in(&mut inner, index, chunk_size)
            };
            let at = index * chunk_size + from;
            let placed = writer.place_zero((from, to - from), at, again);
            if again.take().is_some() {
                kept::repeated(!matches!(placed, Ok(Placed::Done)));
            }
            match placed? {
                Placed::Done => return Ok(()),
                Placed::Moved => {}
                Placed::Refused => self.tell_refused()?,
            }
        }
    }

    /// Repeats what a predecessor of this process began of zeros over `offset..end`. Answers the first chunk behind it.
    pub(super) fn zero_again(&self, offset: u64, end: u64) -> Result<u64> {
        let Some(Begun { index, counter, .. }) = kept::begun(self.ino) else { return Ok(0) };
        let _open = self.shared();
        let chunk_size = self.known_attr(LAYOUT_KNOWN)?.layout.chunk_size.max(1);
        let range = within(index, chunk_size, offset, end.saturating_sub(offset));
        self.zero_once(index, chunk_size, range, Some(counter))?;
        Ok(index + 1)
    }
}
