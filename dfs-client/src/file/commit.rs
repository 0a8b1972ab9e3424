//! Making what was written acknowledged, stable, and known to the master.

use dfs_core::command::{Change, Outcome};
use dfs_core::namespace::{Attr, NamespaceError};
use dfs_core::time::WallTime;

use super::{DEFER_MAX, FileState, LAYOUT_KNOWN, Logged, Moment, Pending, small};
use crate::chunk_writer::ChunkWriter;
use crate::error::{ClientError, OpenId, Result};
use crate::session::lock;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

/// A truncation that is under way is looked at again after so long.
const AGAIN: Duration = Duration::from_millis(5);

/// How much is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// All bytes are stable, and found again: the time may be logged later.
    DataSynced,
    Synced,
    /// And nobody here writes any more.
    Closed,
}

/// What one commit is about.
#[derive(Clone, Copy)]
struct Wrote {
    end: u64,
    cuts: u64,
    mtime: Option<WallTime>,
    kill_priv: bool,
    writes: u64,
    marked: bool,
    /// What is written below this needs no new size, most likely.
    known_size: u64,
}

impl FileState {
    pub(super) fn keep(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            let mut inner = self.lock();
            inner.error.keep(error);
            inner.pending.lost = true;
        }
    }

    pub(super) fn tell_writer(&self) -> Result<()> {
        self.lock().error.tell_writer()
    }

    /// As [`Self::tell_writer`], by a program's `write`.
    pub(super) fn tell_write(&self) -> Result<()> {
        self.tell_writer().inspect_err(|_| self.told_a_write())
    }

    fn told_a_write(&self) {
        if self.refused.told_a_write() {
            self.take_again();
        }
    }

    fn tell_sync(&self, open: OpenId) -> Result<()> {
        let told = self.lock().error.tell_sync(open);
        told.inspect_err(|_| self.take_again())
    }

    /// Somebody is told that bytes were refused: what waits behind them is dropped, what comes from now on is taken.
    fn take_again(&self) {
        self.refused.told(|| self.writers().iter().for_each(|writer| writer.drop_behind_refused()));
    }

    /// Why bytes were not taken; nothing if somebody else was told meanwhile.
    pub(super) fn tell_refused(&self) -> Result<()> {
        self.writers().iter().for_each(|writer| self.keep(writer.take_error_now()));
        self.tell_write()?;
        // It is on its way to whoever waits for these bytes, or was told to one who did not write.
        self.refused.error().map_or(Ok(()), Err).inspect_err(|_| self.told_a_write())
    }

    /// As long as it is held, nothing behind refused bytes is freed.
    pub(super) fn nothing_freed(&self) -> RwLockReadGuard<'_, ()> {
        self.freeing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the chunks behind refused bytes: what was stored there was written before anybody was told, and the file
    /// shall not go on behind a gap. Unless its logged size is beyond, and if nobody else writes it. Called with `commit`
    /// held, by whoever has waited for all that was written.
    fn free_behind_refused(&self) -> Result<()> {
        let Some(place) = self.refused.to_free() else { return Ok(()) };
        let chunk_size = self.known_attr(LAYOUT_KNOWN)?.layout.chunk_size.max(1);
        let first = place.div_ceil(chunk_size);
        let behind: Vec<Arc<ChunkWriter>> =
            self.lock().writers.range(first..).map(|(_, writer)| Arc::clone(writer)).collect();
        for writer in behind {
            writer.drop_behind_refused();
            self.keep(writer.wait_acknowledged());
        }
        let _alone = self.freeing.write().unwrap_or_else(PoisonError::into_inner);
        // Not if something was written there by somebody who had been told.
        if self.refused.to_free() != Some(place) {
            return Ok(());
        }
        if self.lock().pending.appended {
            self.refused.freed(place);
            return Ok(());
        }
        let writers = self.lock().writers.split_off(&first);
        for writer in writers.values() {
            writer.retire();
            self.keep(writer.take_error_now());
        }
        let asked = self.asking();
        match self.io.link.free_unlogged(self.ino, first) {
            Ok(attr) => self.learn(asked, attr, None, false),
            // A master of an earlier version.
            Err(error @ ClientError::Protocol { .. }) => {
                tracing::warn!(ino = self.ino.0, first, %error, "bytes behind refused ones stay");
            }
            Err(error) => return Err(error),
        }
        self.refused.freed(place);
        self.io.forget_layouts(self.ino);
        self.readahead.clear();
        Ok(())
    }

    pub(crate) fn writers(&self) -> Vec<Arc<ChunkWriter>> {
        self.lock().writers.values().cloned().collect()
    }

    /// Everything written so far is with every member (or, inline, logged); size and time may still be unlogged.
    ///
    /// # Errors
    /// The first error of an earlier write, once.
    pub fn acknowledge(&self) -> Result<()> {
        self.settle_appends();
        self.acknowledge_written()
    }

    /// As [`Self::acknowledge`], without appends written behind: for whoever sends those.
    pub(super) fn acknowledge_written(&self) -> Result<()> {
        let _one = lock(&self.commit);
        let inline = self.commit_inline();
        self.keep(inline.and_then(|()| self.each_writer(ChunkWriter::acknowledged)));
        self.tell_writer()
    }

    pub(super) fn each_writer(&self, wait: impl Fn(&Arc<ChunkWriter>) -> Result<()>) -> Result<()> {
        let writers = self.writers();
        // One chunk is pushed by whoever waits for it; several go out together.
        if 1 < writers.len() {
            writers.iter().for_each(ChunkWriter::push);
        }
        let mut first = Ok(());
        for writer in &writers {
            first = first.and(wait(writer));
        }
        first
    }

    /// As [`Self::close`], by somebody who did not open it.
    ///
    /// # Errors
    /// An error of an earlier write, once for all who ask so.
    pub fn flush(&self) -> Result<()> {
        let flushed = self.commit_closed();
        self.tell_sync(OpenId::NOBODY)?;
        flushed
    }

    /// As [`Self::flush`], with `mtime` as the time of what is pending, so that it need not be set after it. `None`: it
    /// must be, because nothing was pending or something else was logged.
    ///
    /// # Errors
    /// As for [`Self::flush`].
    pub fn flush_at(&self, mtime: WallTime) -> Result<Option<Attr>> {
        let (written, change) = {
            let mut inner = self.lock();
            let change = inner.memory.known(Duration::MAX).map(|known| known.attr.change);
            let written = inner.pending.mtime;
            if written.is_some() {
                inner.pending.mtime = Some(mtime);
            }
            (written, change)
        };
        let flushed = self.flush();
        let mut inner = self.lock();
        if flushed.is_err() && inner.pending.mtime == Some(mtime) {
            inner.pending.mtime = written;
        }
        flushed?;
        let settled = written.is_some() && inner.pending.mtime.is_none();
        let known = inner.memory.known(Duration::MAX).filter(|known| {
            settled && known.attr.mtime == mtime && Some(known.attr.change) != change
        });
        Ok(known.map(|known| known.attr.clone()))
    }

    /// As [`Self::sync`], by somebody who did not open it.
    ///
    /// # Errors
    /// An error of an earlier write, once for all who ask so.
    pub fn fsync(&self) -> Result<()> {
        let synced = self.commit_all(Until::Synced);
        self.tell_sync(OpenId::NOBODY)?;
        synced
    }

    /// From now on `open` is told what goes wrong.
    pub fn opened_as(&self, open: OpenId) {
        self.lock().error.opened(open);
    }

    pub fn released_as(&self, open: OpenId) {
        self.lock().error.closed(open);
    }

    /// As `close(2)` of a descriptor of `open`: everything stable and visible to others.
    ///
    /// # Errors
    /// If bytes written since it was opened are lost, until it has synced.
    pub fn close(&self, open: OpenId) -> Result<()> {
        // What goes wrong now is kept.
        let _flushed = self.commit_closed();
        let told = self.lock().error.tell_close(open);
        // While others write they are to be told first: this one may be a child that ends.
        if told.is_err() && self.is_last_writer() {
            self.take_again();
        }
        told
    }

    fn is_last_writer(&self) -> bool {
        self.session.upgrade().is_none_or(|session| session.is_last_writer(self.ino))
    }

    /// As `fsync(2)` and, with `data_only`, `fdatasync(2)`.
    ///
    /// # Errors
    /// If bytes written since it was opened, or since it last synced, are lost.
    pub fn sync(&self, open: OpenId, data_only: bool) -> Result<()> {
        let synced = self.commit_all(if data_only { Until::DataSynced } else { Until::Synced });
        self.tell_sync(open)?;
        synced
    }

    /// Whether bytes were given up since this was last asked: what is cached of the file may be those.
    #[must_use]
    pub fn take_outdated(&self) -> bool {
        let outdated = self.lock().error.take_outdated();
        if outdated {
            self.invalidate();
        }
        outdated
    }

    /// What is cached of the file may be older than what others have synced, whatever its change number says.
    pub(crate) fn outdate(&self) {
        self.lock().error.outdate();
    }

    fn commit_closed(&self) -> Result<()> {
        self.commit_all(if self.is_last_writer() { Until::Closed } else { Until::Synced })
    }

    pub(super) fn commit_all(&self, until: Until) -> Result<()> {
        let done_writing = until == Until::Closed;
        // Who has nothing waits for nobody, not even for a truncation that waits for servers.
        if !self.appends.are_pending() && self.is_committed(done_writing) {
            return Ok(());
        }
        // Every child that a program starts closes what it inherited, while others write on: they do not wait for servers.
        let sent = if done_writing { self.sent_and_stable() } else { Ok(()) };
        // What is written behind the last word of this client would be beyond the logged size, and nobody would ask.
        let _alone = done_writing.then(|| self.alone());
        self.settle_appends();
        if sent.is_ok() && self.is_committed(done_writing) {
            return Ok(());
        }
        let _one = lock(&self.commit);
        // Whoever held it may have done it for all who wait.
        if sent.is_ok() && self.is_committed(done_writing) {
            return Ok(());
        }
        let inline = self.commit_inline().and(sent);
        let wrote = self.to_commit();
        let last_word = done_writing && wrote.marked;
        let mut logged = !(wrote.marked || wrote.mtime.is_some() || wrote.kill_priv)
            || until == Until::DataSynced && self.may_defer(&wrote);
        let stable = inline.and_then(|()| {
            self.each_writer(ChunkWriter::acknowledged_and_syncing)?;
            self.writers().iter().for_each(ChunkWriter::start_sync);
            if !logged && !last_word && wrote.end <= wrote.known_size {
                // Others may see these bytes now, and the size that is logged does not pass what is stable. Whoever
                // waits for this commit is answered when both are done.
                logged = self.commit_size(&wrote, 0, false)?;
            }
            self.each_writer(ChunkWriter::stable)
        });
        // The size is logged when somebody flushes again.
        self.kept(self.forgive_gone(stable)).inspect_err(|error| {
            // Of others the servers may be silent, and whoever waits for the error would wait for them again.
            if matches!(error, ClientError::NoSpace { .. }) {
                let _asked_by_the_next_flush = self.end_at_stored();
            }
        })?;
        if logged {
            return Ok(());
        }
        // Asked now: somebody else may have been told of bytes that this commit waited for. First of all it is known
        // where they were, and last that they are lost.
        let is_whole = self.refused.to_free().is_none() && !self.lock().pending.lost;
        if is_whole {
            let outcome = self.commit_stable(&wrote, last_word);
            return self.kept(self.forgive_gone(outcome));
        }
        let refused = self.refused.error();
        // No more bytes are lost if it cannot be told now.
        let end = match self.until_end_is_told() {
            Ok(end) => end,
            Err(error) => return self.forgive_gone(Err(error)),
        };
        let wrote = Wrote { end: wrote.end.min(end), ..wrote };
        self.kept(self.forgive_gone(self.commit_stable(&wrote, last_word)))?;
        // Whoever took the error from its chunk may not have kept it yet.
        refused.map_or(Ok(()), Err)
    }

    /// What went to chunks by now, without holding up who writes.
    fn sent_and_stable(&self) -> Result<()> {
        self.settle_appends();
        self.each_writer(ChunkWriter::acknowledged_and_syncing)?;
        self.each_writer(ChunkWriter::stable)
    }

    /// [`Self::end_at_stored`], asked again while servers are silent.
    fn until_end_is_told(&self) -> Result<u64> {
        let (began, wait) = (Instant::now(), self.io.link.wait());
        loop {
            match self.end_at_stored() {
                Err(ClientError::ChunkUnavailable { .. }) if began.elapsed() < wait => {
                    std::thread::sleep(AGAIN);
                }
                told => return told,
            }
        }
    }

    /// After bytes were given up: the file ends where those end that are stored, not where those would.
    fn end_at_stored(&self) -> Result<u64> {
        self.free_behind_refused()?;
        let writes = self.lock().pending.writes;
        let attr = self.io.link.getattr(self.ino)?;
        let tail = self.io.known_tail_size(&attr).ok_or_else(|| ClientError::ChunkUnavailable {
            reason: "how long the file is after bytes were given up cannot be told".to_owned(),
            waited: Duration::ZERO,
        })?;
        let end = tail.max(attr.size);
        let mut inner = self.lock();
        let pending = &mut inner.pending;
        // Otherwise asked again when what was written meanwhile is stable.
        if pending.writes == writes {
            pending.end = pending.end.min(end);
            pending.reach = pending.reach.map(|(cuts, reach)| (cuts, reach.min(end)));
            pending.lost = false;
        }
        Ok(end)
    }

    fn kept(&self, outcome: Result<()>) -> Result<()> {
        self.keep(outcome.clone());
        outcome
    }

    fn to_commit(&self) -> Wrote {
        let inner = self.lock();
        let Pending { end, cuts, mtime, kill_priv, writes, marked, .. } = inner.pending;
        let cuts = cuts.unwrap_or(u64::MAX);
        let known_size = inner.memory.known(Duration::MAX).map_or(0, |known| known.attr.size);
        Wrote { end, cuts, mtime, kill_priv, writes, marked, known_size }
    }

    /// Whether stable bytes are found again without a commit: a moment ago the file was as large, with content in these
    /// chunks. Should it have been cut meanwhile, the mark of this writer leads to its last chunk.
    fn may_defer(&self, wrote: &Wrote) -> bool {
        let mut inner = self.lock();
        let logged = &inner.pending.logged;
        let may = wrote.end <= wrote.known_size
            && wrote.marked
            && !wrote.kill_priv
            && logged.at.is_some_and(|at| at.elapsed() < DEFER_MAX)
            && inner.writers.keys().all(|index| logged.chunks.contains(index));
        inner.pending.logged.deferred |= may;
        may
    }

    /// Logs what syncs have left to this.
    pub(super) fn log_times(&self) -> Result<()> {
        let _one = lock(&self.commit);
        let wrote = self.to_commit();
        let logged = self.commit_size(&wrote, 0, false).map(|_logged| ());
        self.lock().pending.logged.at = Some(Instant::now());
        logged
    }

    fn is_committed(&self, done_writing: bool) -> bool {
        let inner = self.lock();
        !inner.pending.has_inline()
            && inner.pending.mtime.is_none()
            && !inner.pending.kill_priv
            && inner.writers.values().all(|writer| writer.is_idle())
            && !(done_writing && inner.pending.marked)
    }

    /// A file nobody can reach any more has nothing to lose. One that is open here can be reached: if the master knows
    /// nothing of it, what was written is gone.
    pub(super) fn forgive_gone(&self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(ClientError::Refused(NamespaceError::Stale | NamespaceError::NotFound))
                if !self.io.link.is_open(self.ino) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Logs what was written, all of it stable. If another mount truncated the file in between, what is left of it is
    /// what its last chunk says.
    fn commit_stable(&self, wrote: &Wrote, last_word: bool) -> Result<()> {
        let mut wrote = *wrote;
        let (began, wait) = (Instant::now(), self.io.link.wait());
        loop {
            match self.commit_size(&wrote, wrote.end, last_word) {
                Err(ClientError::Refused(NamespaceError::Truncated)) => {}
                other => return other.map(|_logged| ()),
            }
            if wait <= began.elapsed() {
                return Err(ClientError::ChunkUnavailable {
                    reason: "how long the file is after a truncation cannot be told".to_owned(),
                    waited: began.elapsed(),
                });
            }
            let asked = self.asking();
            let attr = self.io.link.getattr(self.ino)?;
            match self.io.known_tail_size(&attr) {
                Some(tail) => {
                    wrote.cuts = attr.cuts;
                    wrote.end = wrote.end.min(tail.max(attr.size));
                    self.learn(asked, attr, None, true);
                }
                None => std::thread::sleep(AGAIN),
            }
            // The truncation may be under way still.
            std::thread::sleep(AGAIN);
        }
    }

    /// Logs how long the file is with all that was written, which is stable; unless some of it was refused. Called with
    /// `gate` held alone and `commit` held.
    pub(super) fn commit_quiet(&self) -> Result<()> {
        let wrote = self.to_commit();
        let is_whole = self.refused.to_free().is_none() && !self.lock().pending.lost;
        if wrote.end == 0 || !is_whole {
            return Ok(());
        }
        let outcome = self.commit_stable(&wrote, false);
        self.forgive_gone(outcome)
    }

    /// Logs `size` and the rest of what was written; a smaller size than the logged one changes nothing. False: the
    /// file is not yet as large as it was written.
    fn commit_size(&self, wrote: &Wrote, size: u64, done_writing: bool) -> Result<bool> {
        let Wrote { end, cuts: cuts_seen, mtime, kill_priv, writes, .. } = *wrote;
        let ino = self.ino;
        let chunks: BTreeSet<u64> = self.lock().writers.keys().copied().collect();
        let change = Change::CommitSize { ino, size, cuts_seen, mtime, done_writing, kill_priv };
        let asked = self.asking();
        let attr = match self.io.link.change(change) {
            Ok(Outcome::Attr(attr)) => Some(attr),
            Ok(_) => None,
            // Nothing went to chunks: what was written is in the inode.
            Err(ClientError::Refused(NamespaceError::LayoutChanged)) => None,
            Err(error) => return Err(error),
        };
        let logged = attr.as_ref().map_or(0, |attr| attr.size);
        if let Some(attr) = attr {
            self.learn(asked, attr, None, false);
        }
        let mut inner = self.lock();
        // A cut that is under way keeps the size below what was written.
        if size < end && logged < end {
            return Ok(false);
        }
        inner.pending.logged = Logged { at: Some(Instant::now()), chunks, deferred: false };
        // Bytes for inline content that came meanwhile are logged by the next commit, with their end and time.
        let unchanged = inner.pending.writes == writes && !inner.pending.has_inline();
        if unchanged {
            inner.pending.end = 0;
            inner.pending.cuts = None;
            inner.pending.reach = None;
            inner.pending.mtime = None;
            inner.pending.kill_priv = false;
            inner.pending.appended = false;
            if done_writing {
                inner.pending.marked = false;
            }
        }
        if done_writing {
            // The next write sets the mark again, by asking for a layout.
            let writers: Vec<_> = inner.writers.values().cloned().collect();
            drop(inner);
            writers.iter().for_each(|writer| writer.forget_layout());
        }
        Ok(true)
    }

    /// Logs pending inline bytes, and nothing that was not written here: what lies between them may be newer at the
    /// master. Called with `commit` held.
    pub(super) fn commit_inline(&self) -> Result<()> {
        let (ranges, mtime, kill_priv, writes, twice) = {
            let mut inner = self.lock();
            let pending = &mut inner.pending;
            if !pending.has_inline() {
                return Ok(());
            }
            let (all, held) = pending.take_inline();
            let ranges: Vec<_> = all.iter().map(|(offset, data)| (offset, data.to_vec())).collect();
            let twice = held - all.bytes();
            pending.sending = all;
            (ranges, pending.mtime, pending.kill_priv, pending.writes, twice)
        };
        self.io.budget.give_back(twice);
        let ino = self.ino;
        let change = match ranges.as_slice() {
            [(offset, data)] => {
                let (offset, data) = (*offset, data.clone());
                Change::InlineWrite { ino, offset, data, append: false, mtime, kill_priv }
            }
            _ => Change::InlinePatch { ino, ranges: ranges.clone(), mtime, kill_priv },
        };
        let asked = self.asking();
        let logged = |attr: Option<Attr>| self.logged_inline(asked, attr, &ranges, writes);
        match self.io.link.change(change) {
            Ok(Outcome::Attr(attr)) => logged(Some(attr)),
            Ok(other) => {
                return Err(ClientError::Protocol {
                    reason: format!("write was answered {other:?}"),
                });
            }
            Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {
                // Another client moved the content into chunks: these bytes follow it.
                let attr = self.refresh()?;
                return self.leave_inline(&attr);
            }
            Err(ClientError::Refused(NamespaceError::Stale)) if !self.io.link.is_open(self.ino) => {
                logged(None)
            }
            Err(error) => {
                logged(None);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What was being sent is with the master (or, with nothing learned, lost), and is pending no more. What was written
    /// meanwhile still is. All at once: nobody lays these bytes over what others write from now on.
    pub(super) fn logged_inline(
        &self,
        asked: Moment,
        learned: Option<Attr>,
        ranges: &[(u64, Vec<u8>)],
        writes: u64,
    ) {
        let held = {
            let mut inner = self.lock();
            let held = std::mem::take(&mut inner.pending.sending).bytes();
            let pending = &mut inner.pending;
            if pending.writes == writes {
                pending.end = 0;
                pending.cuts = None;
                pending.reach = None;
                pending.mtime = None;
                pending.kill_priv = false;
            } else if inner.writers.is_empty() {
                // Then all of it is for inline content. What is logged somebody else may cut by now.
                let end = inner.pending.inline.end();
                inner.pending.end = end;
                inner.pending.reach = inner.pending.reach.map(|(cuts, _)| (cuts, end));
            }
            inner.memory.logged(asked, learned, |content| patched(content, ranges));
            inner.touched = Instant::now();
            held
        };
        self.io.budget.give_back(held);
    }
}

fn patched(mut content: Vec<u8>, ranges: &[(u64, Vec<u8>)]) -> Vec<u8> {
    for (offset, data) in ranges {
        let (from, to) = (small(*offset), small(*offset) + data.len());
        content.resize(content.len().max(to), 0);
        content[from..to].copy_from_slice(data);
    }
    content
}
