//! One file as this client sees it: what is written and not yet stable, what was fetched ahead, how large it is.
//!
//! Order of a commit: bytes acknowledged by every member → synced → size and time of change logged. So the logged
//! size never passes what is stable. Inline content (≤ 4 KiB) is kept here and logged as one change.

mod append;
mod commit;
mod memory;
mod once;
pub mod records;
pub mod search;
mod size;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::time::{Duration, Instant};

use dfs_core::client::dirty::DirtyExtents;
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FILE_BYTES_MAX, INLINE_BYTES_MAX, NamespaceError};
use dfs_core::time::WallTime;

use crate::chunk_io::{ChunkIo, LAYOUT_TTL, Patience, fill};
use crate::chunk_writer::{ChunkWriter, Refused};
use crate::error::{ClientError, Kept, Result};
use crate::kept;
use crate::readahead::Readahead;
use crate::session::{Session, lock, spawn};
use append::Gathered;
use commit::Until;
use memory::Memory;
pub(crate) use memory::Moment;

/// Attributes are asked for again at the end of the file if they are older.
const END_FRESH: Duration = Duration::from_millis(100);
/// A read is begun anew so often because somebody cut the file meanwhile; then it ends where the file ended last.
const CUTS_SEEN_MAX: u32 = 32;
/// Inline content of another client's file is believed for so long.
const INLINE_FRESH: Duration = Duration::from_secs(1);
/// What a file is made of does not change: any knowledge will do.
const LAYOUT_KNOWN: Duration = Duration::from_secs(3600);
/// A file nobody has open is committed when it was not touched for so long.
const LATE: Duration = Duration::from_secs(2);
/// How long the time of synced bytes may stay unlogged.
const DEFER_MAX: Duration = Duration::from_secs(1);
/// One piece taken from the write budget at a time.
const WRITE_PIECE: usize = 1 << 20;

#[derive(Default)]
struct Pending {
    /// Bytes for inline content; each holds one of the write budget, as those of `sending`.
    inline: DirtyExtents,
    /// Older ones, which a commit is having logged. Those behind them are not sent with them, or again.
    sending: DirtyExtents,
    /// Written since the last commit: how far, when, how often.
    end: u64,
    /// The file's counter of truncations as it was known before the first of that.
    cuts: Option<u64>,
    /// How far it was written since the file was cut for the last time: that many truncations, the end.
    reach: Option<(u64, u64)>,
    mtime: Option<WallTime>,
    kill_priv: bool,
    writes: u64,
    /// Something was appended since the last commit: nobody but its servers knows where.
    appended: bool,
    /// Bytes were given up: the file may end before `end`.
    lost: bool,
    /// The master may believe that this client writes.
    marked: bool,
    logged: Logged,
}

impl Pending {
    fn has_inline(&self) -> bool {
        !self.inline.is_empty() || !self.sending.is_empty()
    }

    fn inline_bytes(&self) -> u64 {
        self.inline.bytes() + self.sending.bytes()
    }

    /// Reads inline content of `size` bytes with what is pending; answers how many bytes.
    fn lay_over(&self, size: u64, content: &[u8], offset: u64, buf: &mut [u8]) -> usize {
        let size = size.max(self.end);
        if size <= offset {
            return 0;
        }
        let len = small((size - offset).min(buf.len() as u64));
        fill(&mut buf[..len], content.get(small(offset)..).unwrap_or_default());
        self.sending.overlay(offset, &mut buf[..len]);
        self.inline.overlay(offset, &mut buf[..len]);
        len
    }

    /// Everything for inline content that was not logged, in one, and how many bytes it holds of the write budget.
    fn take_inline(&mut self) -> (DirtyExtents, u64) {
        let held = self.inline_bytes();
        let mut all = std::mem::take(&mut self.sending);
        for (offset, data) in std::mem::take(&mut self.inline).iter() {
            all.write(offset, data);
        }
        (all, held)
    }
}

/// The last commit of size and time.
#[derive(Default)]
struct Logged {
    at: Option<Instant>,
    /// Chunks that were being written by then: the master knows that they have content.
    chunks: BTreeSet<u64>,
    /// Something of later has been left to the next one.
    deferred: bool,
}

struct Inner {
    memory: Memory,
    pending: Pending,
    writers: BTreeMap<u64, Arc<ChunkWriter>>,
    error: Kept,
    touched: Instant,
}

/// Shared by everyone in this session who has the file open.
pub struct FileState {
    session: Weak<Session>,
    io: Arc<ChunkIo>,
    ino: InodeNo,
    /// Writers share it; truncation and punching hold it alone.
    gate: RwLock<()>,
    /// One commit at a time.
    commit: Mutex<()>,
    inner: Mutex<Inner>,
    refused: Arc<Refused>,
    /// Held alone while chunks behind refused bytes are freed; shared by whoever puts something behind these.
    freeing: RwLock<()>,
    readahead: Readahead,
    appends: Gathered,
    committing_late: AtomicBool,
    nameless: AtomicBool,
}

impl std::fmt::Debug for FileState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileState").field("ino", &self.ino).finish_non_exhaustive()
    }
}

/// What changes bytes that are there would change records (DECISIONS 23).
fn appends_only(attr: &Attr) -> Result<()> {
    if attr.layout.record_log {
        return Err(NamespaceError::NotPermitted("a record log takes appends only".into()).into());
    }
    Ok(())
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// What was read ahead: taken, or passed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    Taken,
    Passed,
}

impl FileState {
    pub(crate) fn new(session: &Arc<Session>, ino: InodeNo) -> Arc<Self> {
        Arc::new(Self {
            session: Arc::downgrade(session),
            io: Arc::clone(&session.io),
            ino,
            gate: RwLock::new(()),
            commit: Mutex::new(()),
            inner: Mutex::new(Inner {
                memory: Memory::default(),
                pending: Pending::default(),
                writers: BTreeMap::new(),
                error: Kept::default(),
                touched: Instant::now(),
            }),
            refused: Arc::default(),
            freeing: RwLock::new(()),
            readahead: Readahead::default(),
            appends: Gathered::default(),
            committing_late: AtomicBool::new(false),
            nameless: AtomicBool::new(false),
        })
    }

    #[must_use]
    pub fn ino(&self) -> InodeNo {
        self.ino
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever shares the gate may wait for others to repeat what predecessors of this process began, and these share it.
    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.wait_for_begun();
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    // What is known.

    /// Before the master is asked.
    pub(crate) fn asking(&self) -> Moment {
        self.lock().memory.now()
    }

    /// Attributes came with an open.
    pub(crate) fn opened(&self, asked: Moment, attr: &Attr, content: Option<Vec<u8>>) {
        self.learn(asked, attr.clone(), content, true);
    }

    /// `own`: the change number may have moved by this client's own commit only.
    fn learn(&self, asked: Moment, attr: Attr, content: Option<Vec<u8>>, foreign: bool) {
        let changed = {
            let mut inner = self.lock();
            inner.touched = Instant::now();
            inner.memory.learn(asked, attr, content)
        };
        if changed && foreign {
            self.io.forget_layouts(self.ino);
            self.readahead.clear();
        }
    }

    /// What is known, asked for if it is older than `age`.
    fn known_attr(&self, age: Duration) -> Result<Attr> {
        if let Some(known) = self.lock().memory.known(age) {
            return Ok(known.attr.clone());
        }
        self.refresh()
    }

    /// What is known is too little for a reader: it is asked for again.
    pub(crate) fn forget_attr(&self) {
        self.lock().memory.forget();
    }

    fn refresh(&self) -> Result<Attr> {
        let asked = self.asking();
        let mut attr = self.io.link.getattr(self.ino)?;
        if attr.writing {
            attr.size = attr.size.max(self.io.tail_size(&attr));
        }
        self.learn(asked, attr.clone(), None, true);
        Ok(attr)
    }

    /// Adds pending size and time to the master's attributes.
    pub(crate) fn overlay(&self, mut attr: Attr) -> Attr {
        let inner = self.lock();
        attr.size = attr.size.max(inner.pending.end);
        if let Some(mtime) = inner.pending.mtime {
            attr.mtime = mtime.max(attr.mtime);
            attr.ctime = mtime.max(attr.ctime);
        }
        attr
    }

    /// Fresh from the master, with what is pending here.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn attr(&self) -> Result<Attr> {
        self.settle_appends();
        self.refresh().map(|attr| self.overlay(attr))
    }

    /// # Errors
    /// See [`ClientError`].
    pub fn size(&self) -> Result<u64> {
        self.attr().map(|attr| attr.size)
    }

    /// Forgets what may be older than the master's state: after a lock was granted, or the change number moved.
    pub fn invalidate(&self) {
        self.lock().memory.forget();
        self.io.forget_layouts(self.ino);
        self.readahead.clear();
    }

    /// The next commit clears setuid and setgid, as a write by an ordinary user does.
    pub fn set_kill_priv(&self) {
        self.lock().pending.kill_priv = true;
    }

    /// The time of change was set by hand after what is pending was written.
    pub fn set_times_override(&self) {
        self.lock().pending.mtime = None;
    }

    // Reading.

    /// Reads at `offset`; short only at the end of the file, holes are zeros.
    ///
    /// # Errors
    /// See [`ClientError`]. Replicas that fail are passed over until `server_wait` is over, counted once for the whole read.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_as(offset, buf, Ahead::Taken)
    }

    /// As [`Self::read`], of what is there now: size and bytes are asked for, whatever is known.
    ///
    /// # Errors
    /// As there.
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.lock().memory.forget();
        self.read_as(offset, buf, Ahead::Passed)
    }

    fn read_as(&self, offset: u64, buf: &mut [u8], ahead: Ahead) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let patience = Patience::new(self.io.link.wait());
        self.lock().touched = Instant::now();
        self.settle_appends();
        let mut attr = self.known_attr(LAYOUT_TTL)?;
        let wanted_end = offset.saturating_add(buf.len() as u64);
        let reach = |attr: &Attr| attr.size.max(self.lock().pending.end);
        if reach(&attr) < wanted_end {
            attr = self.known_attr(END_FRESH)?;
        }
        let mut layouts_are_new = false;
        for rounds_left in (0..CUTS_SEEN_MAX).rev() {
            if attr.inline {
                if let Some(read) = self.read_inline(offset, buf)? {
                    return Ok(read);
                }
                attr = self.refresh()?;
                if attr.inline && self.lock().writers.is_empty() {
                    continue;
                }
            }
            let size = reach(&attr);
            if size <= offset {
                break;
            }
            let len = small((size - offset).min(buf.len() as u64));
            let out = &mut buf[..len];
            if self.read_chunks(&attr, offset, out, (size, ahead), &patience)? {
                return Ok(len);
            }
            // Zeros are in the place of what nobody has. They are the file's if it still reaches so far, and nobody cut
            // it or stored there meanwhile.
            let now = self.refresh()?;
            let is_the_same = match layouts_are_new {
                true => now.cuts == attr.cuts,
                false => now.change == attr.change && !now.writing,
            };
            let end = reach(&now).min(offset + len as u64);
            if is_the_same && end == offset + len as u64 || rounds_left == 0 {
                return Ok(small(end.saturating_sub(offset)));
            }
            self.io.forget_layouts(self.ino);
            self.readahead.clear();
            (attr, layouts_are_new) = (now, true);
        }
        Ok(0)
    }

    /// `None`: the content is no longer inline.
    fn read_inline(&self, offset: u64, buf: &mut [u8]) -> Result<Option<usize>> {
        loop {
            let asked = {
                let inner = self.lock();
                // Written beyond what can be inline: it is on its way into chunks.
                if !inner.writers.is_empty() {
                    drop(inner);
                    self.acknowledge_written()?;
                    return Ok(None);
                }
                if let Some((size, content)) = inner.memory.content(INLINE_FRESH) {
                    return Ok(Some(inner.pending.lay_over(size, content, offset, buf)));
                }
                inner.memory.now()
            };
            let (attr, content) = self.io.link.read_inline(self.ino)?;
            if !attr.inline {
                return Ok(None);
            }
            let size = attr.size;
            self.learn(asked, attr, content.clone(), true);
            let inner = self.lock();
            // What was pending when this was asked for may be in neither.
            if inner.writers.is_empty() && !inner.memory.logged_since(asked) {
                let content = content.unwrap_or_default();
                return Ok(Some(inner.pending.lay_over(size, &content, offset, buf)));
            }
        }
    }

    /// False: some of it is stored nowhere, and zeros are in its place.
    fn read_chunks(
        &self,
        attr: &Attr,
        offset: u64,
        buf: &mut [u8],
        (size, ahead): (u64, Ahead),
        patience: &Patience,
    ) -> Result<bool> {
        let chunk_size = attr.layout.chunk_size.max(1);
        self.settle(chunk_size, offset, buf.len() as u64)?;
        let may_fetch = |at: u64, len: u64| !self.is_pending(chunk_size, at, len);
        let len = buf.len() as u64;
        if ahead == Ahead::Taken {
            self.readahead.on_read(&self.io, self.ino, chunk_size, (offset, len), size, &may_fetch);
        }
        let (mut done, mut whole) = (0, true);
        while done < buf.len() {
            let at = offset + done as u64;
            let taken = match ahead {
                Ahead::Taken => self.readahead.take(at, &mut buf[done..]),
                Ahead::Passed => 0,
            };
            if 0 < taken {
                self.io.ahead_bytes.fetch_add(taken as u64, Ordering::Relaxed);
                done += taken;
                continue;
            }
            let within = at % chunk_size;
            let len = small(chunk_size - within).min(buf.len() - done);
            let out = &mut buf[done..done + len];
            whole &= self.io.read_chunk(self.ino, at / chunk_size, within, out, patience)?;
            self.io.asked_bytes.fetch_add(len as u64, Ordering::Relaxed);
            done += len;
        }
        Ok(whole)
    }

    fn writers_of(&self, chunk_size: u64, offset: u64, len: u64) -> Vec<(u64, Arc<ChunkWriter>)> {
        let last = offset.saturating_add(len).saturating_sub(1) / chunk_size;
        let inner = self.lock();
        let found = inner.writers.range(offset / chunk_size..=last);
        found.map(|(index, writer)| (*index, Arc::clone(writer))).collect()
    }

    fn is_pending(&self, chunk_size: u64, offset: u64, len: u64) -> bool {
        self.writers_of(chunk_size, offset, len).into_iter().any(|(index, writer)| {
            let (from, to) = within(index, chunk_size, offset, len);
            writer.overlaps_pending(from, to - from)
        })
    }

    /// Makes pending bytes of a range readable at every replica.
    fn settle(&self, chunk_size: u64, offset: u64, len: u64) -> Result<()> {
        for (index, writer) in self.writers_of(chunk_size, offset, len) {
            let (from, to) = within(index, chunk_size, offset, len);
            if writer.overlaps_pending(from, to - from) {
                self.keep(writer.acknowledged());
                self.tell_writer()?;
            }
        }
        Ok(())
    }

    // Writing.

    /// Takes `data` for `offset`: written behind, in order, unless the session is kept. Waits while too much is pending.
    ///
    /// # Errors
    /// `FileTooLarge`; an earlier write's error, once.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX);
        let Some(end) = end else { return Err(NamespaceError::FileTooLarge.into()) };
        if data.is_empty() {
            return Ok(());
        }
        if self.is_kept() {
            return self.write_once(offset, data);
        }
        let _open = self.shared();
        self.settle_appends();
        self.tell_write()?;
        let attr = self.known_attr(LAYOUT_KNOWN)?;
        appends_only(&attr)?;
        self.readahead.clear();
        if attr.inline && end <= INLINE_BYTES_MAX && self.write_inline(&attr, offset, data)? {
            return Ok(());
        }
        if attr.inline {
            self.leave_inline(&attr)?;
        }
        let written = self.write_chunks(&attr, offset, data);
        // A reader may have begun to fetch what was there before these bytes were pending.
        self.readahead.clear();
        written
    }

    /// False: the content is on its way into chunks.
    fn write_inline(&self, attr: &Attr, offset: u64, data: &[u8]) -> Result<bool> {
        self.take_room(data.len() as u64)?;
        let mut inner = self.lock();
        if !inner.writers.is_empty() {
            drop(inner);
            self.io.budget.give_back(data.len() as u64);
            return Ok(false);
        }
        let before = inner.pending.inline.bytes();
        inner.pending.inline.write(offset, data);
        let added = inner.pending.inline.bytes() - before;
        self.wrote(&mut inner, attr.cuts, offset + data.len() as u64);
        drop(inner);
        self.io.budget.give_back(data.len() as u64 - added);
        Ok(true)
    }

    /// Content grows beyond the inode: what is pending goes to chunks. The master's content follows when a chunk is
    /// first asked for.
    fn leave_inline(&self, attr: &Attr) -> Result<()> {
        let (extents, held) = {
            let mut inner = self.lock();
            // So that nobody puts more there.
            self.writer_in(&mut inner, 0, attr.layout.chunk_size);
            inner.pending.take_inline()
        };
        let mut extents = extents.iter();
        let left = extents.try_for_each(|(offset, extent)| self.write_chunks(attr, offset, extent));
        self.io.budget.give_back(held);
        left
    }

    /// `attr`: as it was known before.
    fn write_chunks(&self, attr: &Attr, offset: u64, data: &[u8]) -> Result<()> {
        let chunk_size = attr.layout.chunk_size;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = at % chunk_size;
            let len = small(chunk_size - within).min(rest.len()).min(WRITE_PIECE);
            let (piece, later) = rest.split_at(len);
            self.take_room(len as u64)?;
            let writer = loop {
                let writer = {
                    let mut inner = self.lock();
                    inner.pending.marked = true;
                    self.writer_in(&mut inner, at / chunk_size, chunk_size)
                };
                let taken = {
                    let _none_freed = self.nothing_freed();
                    writer.write(within, piece)
                };
                if taken {
                    break writer;
                }
                if let Err(error) = self.tell_refused() {
                    self.io.budget.give_back(len as u64);
                    return Err(error);
                }
            };
            {
                // After it is on its way: a commit that begins now must not log a size ahead of the bytes.
                let mut inner = self.lock();
                inner.pending.marked = true;
                self.wrote(&mut inner, attr.cuts, at + len as u64);
            }
            // A full disk is told to the writer at once, not only to whoever syncs.
            self.keep(writer.take_error_now());
            self.tell_write()?;
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// `cuts`: as it was known before anything of this was sent.
    fn wrote(&self, inner: &mut Inner, cuts: u64, end: u64) {
        inner.pending.end = inner.pending.end.max(end);
        inner.pending.cuts = Some(inner.pending.cuts.map_or(cuts, |before| before.min(cuts)));
        inner.pending.reach = match inner.pending.reach {
            // Sent before a cut that is known by now: it says nothing of what is behind.
            Some((known, end)) if cuts < known => Some((known, end)),
            Some((known, before)) if cuts == known => Some((known, before.max(end))),
            Some(_) | None => Some((cuts, end)),
        };
        inner.pending.mtime = Some(kept::time(|| self.io.link.wall_now()));
        inner.pending.writes += 1;
        inner.touched = Instant::now();
    }

    fn writer_in(&self, inner: &mut Inner, index: u64, chunk_size: u64) -> Arc<ChunkWriter> {
        let writer = inner.writers.entry(index).or_insert_with(|| {
            ChunkWriter::new(&self.io, self.ino, (index, chunk_size), &self.refused)
        });
        Arc::clone(writer)
    }

    /// Takes bytes from the write budget; while it is used up everything pending is pushed out.
    fn take_room(&self, bytes: u64) -> Result<()> {
        let wait = self.io.link.wait();
        let began = Instant::now();
        if self.io.budget.try_take(bytes) {
            return Ok(());
        }
        while !self.io.budget.take(bytes, Duration::from_millis(100)) {
            let files =
                self.session.upgrade().map(|session| session.all_files()).unwrap_or_default();
            for file in files {
                for writer in file.writers() {
                    writer.push();
                    writer.start_sync();
                }
            }
            if self.io.link.is_closed() {
                return Err(ClientError::Closed);
            }
            if wait <= began.elapsed() {
                return Err(ClientError::ChunkUnavailable {
                    reason: "written bytes could not be stored".to_owned(),
                    waited: began.elapsed(),
                });
            }
        }
        Ok(())
    }

    // For the session.

    /// The last open in this session is gone.
    pub(crate) fn closed(&self) {
        self.readahead.forget();
    }

    pub(crate) fn lost_last_name(&self) {
        self.nameless.store(true, Ordering::Release);
    }

    /// Drops what waits to be sent or logged, if bytes of it were lost and it has no name. Called when nobody has it
    /// open. Waits for nobody.
    pub(crate) fn discard_if_refused(&self) {
        // Records on their way have a thread that waits for their answer.
        if !self.nameless.load(Ordering::Acquire) || self.appends.are_pending() {
            return;
        }
        let held = {
            let mut inner = self.lock();
            if inner.error.is_empty() {
                return;
            }
            inner.error = Kept::default();
            std::mem::take(&mut inner.pending).inline_bytes()
        };
        self.io.budget.give_back(held);
        self.retire_writers();
    }

    /// Forgets chunks with nothing pending, so that a large file does not keep an object for each.
    pub(crate) fn sweep(&self) {
        let mut inner = self.lock();
        if inner.writers.len() < 16 {
            return;
        }
        inner.writers.retain(|_, writer| {
            let used = 1 < Arc::strong_count(writer) || !writer.is_idle();
            if !used {
                writer.retire();
            }
            used
        });
    }

    /// What was written through a mapping after the last close is committed some time after it.
    pub(crate) fn commit_late(self: &Arc<Self>) {
        let late = {
            let inner = self.lock();
            let pending = &inner.pending;
            LATE <= inner.touched.elapsed()
                && (pending.mtime.is_some()
                    || pending.marked
                    || pending.has_inline()
                    || self.appends.are_pending()
                    || !inner.writers.values().all(|writer| writer.is_idle()))
        };
        if !late || self.committing_late.swap(true, Ordering::AcqRel) {
            return;
        }
        let file = Arc::clone(self);
        let begun = spawn("late commit", move || {
            let committed = file.commit_all(Until::Closed);
            if let Err(error) = &committed {
                tracing::warn!(ino = file.ino.0, %error, see = error.page().map(tracing::field::display), "written after the last close, and lost");
            }
            file.lock().touched = Instant::now();
            file.committing_late.store(false, Ordering::Release);
        });
        if begun.is_err() {
            self.committing_late.store(false, Ordering::Release);
        }
    }

    /// Logs the time of what was synced without it.
    pub(crate) fn commit_deferred(self: &Arc<Self>) {
        let due = {
            let Logged { at, deferred, .. } = &self.lock().pending.logged;
            *deferred && at.is_none_or(|at| DEFER_MAX <= at.elapsed())
        };
        if !due || self.committing_late.swap(true, Ordering::AcqRel) {
            return;
        }
        let file = Arc::clone(self);
        let begun = spawn("deferred commit", move || {
            if let Err(error) = file.log_times() {
                tracing::debug!(ino = file.ino.0, %error, "left to the next sync");
            }
            file.committing_late.store(false, Ordering::Release);
        });
        if begun.is_err() {
            self.committing_late.store(false, Ordering::Release);
        }
    }

    pub(crate) fn is_idle(&self, age: Duration) -> bool {
        let is_open = || self.session.upgrade().is_some_and(|session| session.is_open(self.ino));
        let inner = self.lock();
        let pending = &inner.pending;
        !pending.has_inline()
            && pending.mtime.is_none()
            && !pending.marked
            && (inner.error.is_empty() || !is_open())
            && !self.appends.are_pending()
            && age <= inner.touched.elapsed()
            && inner.writers.values().all(|writer| writer.is_idle())
    }
}

impl Drop for FileState {
    fn drop(&mut self) {
        self.retire_writers();
        let held = self.lock().pending.inline_bytes();
        self.io.budget.give_back(held);
    }
}

/// The part of `offset..offset+len` that lies in chunk `index`, within the chunk.
fn within(index: u64, chunk_size: u64, offset: u64, len: u64) -> (u64, u64) {
    let start = index * chunk_size;
    let from = offset.saturating_sub(start).min(chunk_size);
    let to = offset.saturating_add(len).saturating_sub(start).min(chunk_size);
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_chunks_it_crosses() {
        assert_eq!(within(0, 100, 30, 200), (30, 100));
        assert_eq!(within(1, 100, 30, 200), (0, 100));
        assert_eq!(within(2, 100, 30, 200), (0, 30));
        assert_eq!(within(1, 100, 100, 5), (0, 5));
    }
}
