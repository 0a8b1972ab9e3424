//! Cutting, growing and punching files, and finding their holes. Whoever changes sizes holds the file's gate alone.

use std::time::{Duration, Instant};

use dfs_core::command::{Change, Outcome};
use dfs_core::namespace::{Attr, FILE_BYTES_MAX, NamespaceError};

use super::{CUTS_SEEN_MAX, FileState, appends_only, within};
use crate::chunk_writer::ChunkWriter;
use crate::error::{ClientError, Result};
use crate::kept;
use crate::session::lock;

impl FileState {
    /// Everything pending is stable and nothing is kept to be sent again: the file can be cut. Called with `gate`
    /// held alone and `commit` held, until the new size is known: a commit must not bring the old one back.
    pub(super) fn quiesce(&self) -> Result<()> {
        let inline = self.commit_inline();
        self.keep(inline);
        let stable = self.each_writer(ChunkWriter::stable);
        self.keep(stable);
        Ok(())
    }

    pub(super) fn retire_writers(&self) {
        let writers = std::mem::take(&mut self.lock().writers);
        for writer in writers.values() {
            writer.retire();
        }
    }

    /// Cuts or grows the file. Errors of earlier writes are kept for `fsync` and `close`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn truncate(&self, size: u64) -> Result<Attr> {
        let _alone = self.alone();
        self.settle_appends();
        let _one = lock(&self.commit);
        self.truncate_alone(size)
    }

    fn truncate_alone(&self, size: u64) -> Result<Attr> {
        self.quiesce()?;
        let (began, wait) = (Instant::now(), self.io.link.wait());
        let (asked, attr) = loop {
            let asked = self.asking();
            match self.io.link.truncate(self.ino, size) {
                // Its content moved into chunks meanwhile, or another truncation is under way.
                Err(ClientError::Refused(NamespaceError::LayoutChanged))
                    if began.elapsed() < wait =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break (asked, other?),
            }
        };
        self.retire_writers();
        self.io.forget_layouts(self.ino);
        self.readahead.clear();
        // Where it ends now somebody has decided.
        self.refused.forget();
        let mut inner = self.lock();
        inner.pending.appended = false;
        inner.pending.end = 0;
        inner.pending.cuts = None;
        inner.pending.reach = None;
        inner.pending.mtime = None;
        inner.memory.learn(asked, attr.clone(), None);
        Ok(attr)
    }

    /// Zeros over a range: as `fallocate(2)` with `PUNCH_HOLE` (`keep_size`) or `ZERO_RANGE`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn zero(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        let Some(end) = end else { return Err(NamespaceError::FileTooLarge.into()) };
        let zeroed = self.zero_again(offset, end)?;
        let _alone = self.alone();
        self.settle_appends();
        let _one = lock(&self.commit);
        self.quiesce()?;
        let mut attr = self.refresh()?;
        appends_only(&attr)?;
        // Logged by a predecessor perhaps, though the file may have been moved to chunks since.
        if attr.inline || zeroed == 0 && kept::has_unrepeated() {
            let change = Change::InlineZero { ino: self.ino, offset, len, keep_size };
            let asked = self.asking();
            match self.io.link.change(change) {
                Ok(Outcome::Attr(attr)) => {
                    self.learn(asked, attr, None, true);
                    self.lock().memory.forget();
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {
                    attr = self.refresh()?
                }
                Err(error) => return Err(error),
            }
        }
        let size = self.overlay(attr.clone()).size;
        // A chunk that is freed may have been the only one that knew how long the file is.
        self.commit_quiet()?;
        self.zero_chunks(attr.layout.chunk_size.max(1), (offset, end), zeroed)?;
        if !keep_size && size < end { self.grow_alone(end) } else { Ok(()) }
    }

    /// The file is at least `size` long, with zeros. What others append meanwhile stays: a truncation to more than this
    /// client knows of could cut it.
    fn grow_alone(&self, size: u64) -> Result<()> {
        let (began, wait) = (Instant::now(), self.io.link.wait());
        let change = Change::Grow { ino: self.ino, size };
        loop {
            let asked = self.asking();
            match self.io.link.change(change.clone()) {
                // A truncation is under way.
                Err(ClientError::Refused(NamespaceError::LayoutChanged))
                    if began.elapsed() < wait =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(Outcome::Attr(attr)) => {
                    self.learn(asked, attr, None, true);
                    return Ok(());
                }
                Ok(other) => {
                    return Err(ClientError::Protocol {
                        reason: format!("grow was answered {other:?}"),
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `zeroed`: before this chunk a predecessor of this process did it, except for those that are freed.
    fn zero_chunks(&self, chunk_size: u64, (offset, end): (u64, u64), zeroed: u64) -> Result<()> {
        self.retire_writers();
        self.io.forget_layouts(self.ino);
        self.readahead.clear();
        let mut first = offset / chunk_size;
        let end_index = end.div_ceil(chunk_size);
        let mut freed = false;
        while first < end_index {
            let found = self.io.layouts(self.ino, first, 64)?;
            let Some(last) = found.last().map(|layout| layout.index) else { break };
            for layout in &found {
                let index = layout.index;
                if end_index <= index {
                    break;
                }
                let (from, to) = within(index, chunk_size, offset, end - offset);
                // Not the last one because the file ends within the range: others may append behind that by now.
                if from == 0 && to == chunk_size {
                    self.io.link.change(Change::FreeChunks {
                        ino: self.ino,
                        first: index,
                        count: 1,
                    })?;
                    freed = true;
                } else if index < zeroed {
                    continue;
                } else if self.is_kept() {
                    self.zero_once(index, chunk_size, (from, to), None)?;
                } else {
                    let writer = {
                        let mut inner = self.lock();
                        self.wrote(&mut inner, u64::MAX, 0);
                        inner.pending.marked = true;
                        self.writer_in(&mut inner, index, chunk_size)
                    };
                    writer.zero(from, to - from);
                    writer.acknowledged()?;
                }
            }
            first = last + 1;
        }
        if freed {
            self.io.forget_layouts(self.ino);
        }
        Ok(())
    }

    /// As plain `fallocate(2)`: the size grows to the end of the range unless `keep_size`.
    ///
    /// Space is not set aside: a later write may still find none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        let Some(end) = end else { return Err(NamespaceError::FileTooLarge.into()) };
        if keep_size || end <= self.size()? {
            return Ok(());
        }
        let _alone = self.alone();
        self.settle_appends();
        let _one = lock(&self.commit);
        self.grow_alone(end)
    }

    /// Bytes of inline content that are there; the file may end later, with zeros.
    fn inline_len(&self) -> Result<u64> {
        let (_, content) = self.io.link.read_inline(self.ino)?;
        Ok(content.map_or(0, |content| content.len() as u64))
    }

    /// Where the next data at or after `offset` begins, to the chunk; `None` if there is none (ENXIO).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        Ok(self.data_from(offset)?.0)
    }

    /// As [`Self::seek_data`], with the size that the file had then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn data_from(&self, offset: u64) -> Result<(Option<u64>, u64)> {
        self.seek(|attr| {
            if attr.size <= offset {
                return Ok(None);
            }
            if attr.inline {
                let content = self.inline_len()?;
                return Ok((offset < content).then_some(offset));
            }
            let chunk_size = attr.layout.chunk_size.max(1);
            let next = self.io.layouts(self.ino, offset / chunk_size, 1)?;
            let start = next.first().map(|layout| offset.max(layout.index * chunk_size));
            Ok(start.filter(|start| *start < attr.size))
        })
    }

    /// Where the next hole at or after `offset` begins, to the chunk; the end of the file is one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        let (hole, _) = self.seek(|attr| {
            if attr.size <= offset {
                return Ok(None);
            }
            if attr.inline {
                let content = self.inline_len()?;
                return Ok(Some(offset.max(content.min(attr.size))));
            }
            let chunk_size = attr.layout.chunk_size.max(1);
            let mut index = offset / chunk_size;
            loop {
                let found = self.io.layouts(self.ino, index, 64)?;
                for layout in &found {
                    if layout.index != index {
                        return Ok(Some(offset.max(index * chunk_size).min(attr.size)));
                    }
                    index += 1;
                }
                if found.len() < 64 {
                    return Ok(Some(offset.max(index * chunk_size).min(attr.size)));
                }
            }
        })?;
        Ok(hole)
    }

    /// What `find` finds in a file that nobody cut meanwhile: what was cut away, and stored anew, looks like a hole
    /// between the two. With the size of the file.
    fn seek(&self, find: impl Fn(&Attr) -> Result<Option<u64>>) -> Result<(Option<u64>, u64)> {
        self.acknowledge()?;
        let mut attr = self.attr()?;
        for rounds_left in (0..CUTS_SEEN_MAX).rev() {
            let found = find(&attr)?;
            let now = self.overlay(self.refresh()?);
            if now.cuts == attr.cuts && now.inline == attr.inline || rounds_left == 0 {
                return Ok((found, attr.size));
            }
            attr = now;
        }
        Ok((None, attr.size))
    }
}
