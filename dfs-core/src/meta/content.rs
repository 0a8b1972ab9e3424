//! Content in the inode, sizes, and truncation of content in chunks.
//!
//! An inline file may be sparse: its size may pass its content, up to the largest file, and what is missing is
//! zeros. So a truncate that grows never moves content to chunks; a write beyond the limit does (`Spill`).

use super::transaction::{Answer, Transaction};
use super::{Key, Record, read};
use crate::command::Outcome;
use crate::cuts::Cut;
use crate::ids::{ChunkId, InodeNo};
use crate::namespace::{Body, FILE_BYTES_MAX, INLINE_BYTES_MAX, Inode, NamespaceError};
use crate::time::WallTime;

impl Transaction<'_> {
    /// `offset: None` appends. Without `mtime` the content changed now.
    pub(super) fn inline_write(
        &mut self,
        ino: InodeNo,
        offset: Option<u64>,
        data: &[u8],
        mtime: Option<WallTime>,
        kill_priv: bool,
    ) -> Answer {
        let mut inode = self.file(ino)?;
        let size = inode.size;
        let Body::Inline(content) = &mut inode.body else {
            return Err(NamespaceError::LayoutChanged);
        };
        let at = offset.unwrap_or(size);
        let end = file_end(at, data.len() as u64)?;
        // write(2) of nothing has no effect, not even on times.
        if !data.is_empty() {
            if INLINE_BYTES_MAX < end {
                return Err(NamespaceError::LayoutChanged);
            }
            put(content, at, data);
            self.set_size(&mut inode, size.max(end));
            self.content_changed(ino, &mut inode, mtime, kill_priv);
        }
        let attr = inode.attr(ino);
        self.put_inode(ino, inode);
        Ok(match offset {
            Some(_) => Outcome::Attr(attr),
            None => Outcome::Appended { offset: at, attr },
        })
    }

    pub(super) fn inline_patch(
        &mut self,
        ino: InodeNo,
        ranges: &[(u64, Vec<u8>)],
        mtime: Option<WallTime>,
        kill_priv: bool,
    ) -> Answer {
        let mut inode = self.file(ino)?;
        let mut size = inode.size;
        let Body::Inline(content) = &mut inode.body else {
            return Err(NamespaceError::LayoutChanged);
        };
        let mut written = false;
        for (offset, data) in ranges {
            let end = file_end(*offset, data.len() as u64)?;
            if data.is_empty() {
                continue;
            }
            if INLINE_BYTES_MAX < end {
                return Err(NamespaceError::LayoutChanged);
            }
            put(content, *offset, data);
            size = size.max(end);
            written = true;
        }
        if written {
            self.set_size(&mut inode, size);
            self.content_changed(ino, &mut inode, mtime, kill_priv);
        }
        let attr = inode.attr(ino);
        self.put_inode(ino, inode);
        Ok(Outcome::Attr(attr))
    }

    pub(super) fn inline_zero(
        &mut self,
        ino: InodeNo,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Answer {
        let mut inode = self.file(ino)?;
        let Body::Inline(content) = &mut inode.body else {
            return Err(NamespaceError::LayoutChanged);
        };
        if len == 0 {
            return Err(NamespaceError::Invalid("no bytes to zero".into()));
        }
        let end = file_end(offset, len)?;
        let (from, to) = (small(offset), small(end));
        if content.len() <= to {
            content.truncate(from);
        } else {
            content[from..to].fill(0);
        }
        let size = if keep_size { inode.size } else { inode.size.max(end) };
        self.set_size(&mut inode, size);
        self.touch(&mut inode, true);
        Ok(self.put_and_answer(ino, inode))
    }

    /// Chunked content only if it has no chunk: then there is nothing to cut.
    pub(super) fn inline_truncate(&mut self, ino: InodeNo, size: u64) -> Answer {
        let mut inode = self.file(ino)?;
        file_end(size, 0)?;
        match &mut inode.body {
            Body::Inline(content) => content.truncate(small(size)),
            Body::Chunks { chunk_count: 0, .. } => {}
            Body::Chunks { .. } | Body::Directory { .. } | Body::Symlink(_) | Body::Special => {
                return Err(NamespaceError::LayoutChanged);
            }
        }
        note_cut(&mut inode, size);
        self.set_size(&mut inode, size);
        self.touch(&mut inode, true);
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn begin_write(&mut self, ino: InodeNo) -> Answer {
        let mut inode = self.file(ino)?;
        match &mut inode.body {
            Body::Inline(content) if content.is_empty() => {
                // Nothing is content in either form: what was cached of it holds, so the number stays.
                inode.body = Body::Chunks { chunk_count: 0, writing: true };
            }
            Body::Chunks { writing, .. } => *writing = true,
            Body::Inline(_) | Body::Directory { .. } | Body::Symlink(_) | Body::Special => {
                return Err(NamespaceError::LayoutChanged);
            }
        }
        Ok(self.put_and_answer(ino, inode))
    }

    /// Without `mtime` and without growth nothing was written: times and change number stay.
    pub(super) fn commit_size(
        &mut self,
        ino: InodeNo,
        (size, cuts_seen): (u64, u64),
        mtime: Option<WallTime>,
        done_writing: bool,
        kill_priv: bool,
    ) -> Answer {
        let mut inode = self.file(ino)?;
        file_end(size, 0)?;
        let Body::Chunks { writing, .. } = &mut inode.body else {
            return Err(NamespaceError::LayoutChanged);
        };
        // Nobody knows yet whether what was written beyond a cut that is under way came before it.
        let under_way = read::truncating(self.store, ino).is_some_and(|cut| cut < size);
        if inode.size < size && (cuts_seen != inode.cuts || under_way) {
            return Err(NamespaceError::Truncated);
        }
        if done_writing {
            *writing = false;
        }
        let size = size.max(inode.size);
        let grown = inode.size < size;
        self.set_size(&mut inode, size);
        if grown || mtime.is_some() {
            self.content_changed(ino, &mut inode, mtime, kill_priv);
        } else if kill_priv && self.kill_privileges(ino, &mut inode) {
            self.touch(&mut inode, false);
        }
        self.bear_chunks(ino, size);
        Ok(self.put_and_answer(ino, inode))
    }

    /// Logs the intent. A cut shows at once: whole chunks beyond it are freed, the size is that of the cut and exact;
    /// growth shows at the end, when the old tail is known to end where it should.
    pub(super) fn truncate_begin(&mut self, ino: InodeNo, size: u64) -> Answer {
        let mut inode = self.file(ino)?;
        file_end(size, 0)?;
        let Body::Chunks { .. } = inode.body else { return Err(NamespaceError::LayoutChanged) };
        if inode.layout.record_log && size != 0 {
            return Err(NamespaceError::NotPermitted("a record log is truncated to 0 only".into()));
        }
        if read::truncating(self.store, ino).is_some_and(|under_way| under_way != size) {
            return Err(NamespaceError::LayoutChanged);
        }
        self.store.put(Key::Truncating(ino), Record::Truncating(size));
        let had = chunk_count(&inode);
        self.cut(ino, &mut inode, size);
        note_cut(&mut inode, size);
        // Without the chunks behind it nobody can ask for the size that it had before.
        if size < inode.size || chunk_count(&inode) < had {
            self.set_size(&mut inode, size);
        }
        self.touch(&mut inode, true);
        let tail = self.tail(ino, &inode, size);
        let attr = read::attr_of(self.store, ino, &inode);
        self.put_inode(ino, inode);
        Ok(Outcome::Truncating { tail, attr })
    }

    pub(super) fn truncate_end(&mut self, ino: InodeNo, size: u64) -> Answer {
        let mut inode = self.file(ino)?;
        if read::truncating(self.store, ino) != Some(size) {
            return Err(NamespaceError::LayoutChanged);
        }
        self.store.delete(&Key::Truncating(ino));
        self.cut(ino, &mut inode, size);
        note_cut(&mut inode, size);
        self.set_size(&mut inode, size);
        self.touch(&mut inode, true);
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn grow(&mut self, ino: InodeNo, size: u64) -> Answer {
        let mut inode = self.file(ino)?;
        file_end(size, 0)?;
        if inode.layout.record_log {
            return Err(NamespaceError::NotPermitted("a record log grows by appends only".into()));
        }
        if read::truncating(self.store, ino).is_some() {
            return Err(NamespaceError::LayoutChanged);
        }
        if inode.size < size {
            self.set_size(&mut inode, size);
            self.touch(&mut inode, true);
        }
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn free_chunks(&mut self, ino: InodeNo, first: u64, count: u64) -> Answer {
        let mut inode = self.file(ino)?;
        let Body::Chunks { .. } = inode.body else { return Err(NamespaceError::LayoutChanged) };
        self.free_range(ino, &mut inode, first, first.saturating_add(count));
        self.touch(&mut inode, true);
        Ok(self.put_and_answer(ino, inode))
    }

    /// The chunk that the new end lies in, and the length to cut it to. Its end is inside: what an append carried over
    /// that is cut by forgetting it there.
    fn tail(&self, ino: InodeNo, inode: &Inode, size: u64) -> Option<(ChunkId, u64)> {
        let index = size.checked_sub(1)? / inode.layout.chunk_size;
        let (chunk, _) = read::file_chunk(self.store, ino, index)?;
        Some((chunk, size - index * inode.layout.chunk_size))
    }

    fn cut(&mut self, ino: InodeNo, inode: &mut Inode, size: u64) {
        let first = size.div_ceil(inode.layout.chunk_size);
        self.free_range(ino, inode, first, u64::MAX);
    }

    /// Times, change number and privileges after a write. The caller's time is never later than the command's.
    fn content_changed(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        mtime: Option<WallTime>,
        kill_priv: bool,
    ) {
        self.touch(inode, true);
        if let Some(mtime) = mtime {
            inode.mtime = mtime.min(self.now);
        }
        if kill_priv {
            self.kill_privileges(ino, inode);
        }
    }
}

fn chunk_count(inode: &Inode) -> u64 {
    match inode.body {
        Body::Chunks { chunk_count, .. } => chunk_count,
        Body::Inline(_) | Body::Directory { .. } | Body::Symlink(_) | Body::Special => 0,
    }
}

fn note_cut(inode: &mut Inode, size: u64) {
    inode.cuts += 1;
    // Content in the inode is changed as a whole: nobody has part of an operation elsewhere.
    if matches!(inode.body, Body::Chunks { .. }) {
        inode.cut_sizes.note(Cut { number: inode.cuts, size });
    }
}

/// `offset + len`, if a file may reach that far.
fn file_end(offset: u64, len: u64) -> Result<u64, NamespaceError> {
    offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(NamespaceError::FileTooLarge)
}

/// An offset as an index into inline content; one far beyond it is as good as the largest.
/// Of what ends within [`INLINE_BYTES_MAX`].
fn put(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (from, to) = (small(at), small(at) + data.len());
    if content.len() < to {
        content.resize(to, 0);
    }
    content[from..to].copy_from_slice(data);
}

fn small(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
