//! One client of one file system: its requests, its open files, its locks.
//!
//! Every call blocks the calling thread.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use dfs_core::command::{Change, Lock, LockKind, Outcome};
use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::namespace::{Attr, FileKind, NamespaceError};
use dfs_core::time::WallTime;
use dfs_proto::meta_rpc::{EntryPlus, MetaCall, MetaReply, StatfsReply, Welcome};
use dfs_service::conn::ClusterKey;

use crate::chunk_io::ChunkIo;
use crate::error::{ClientError, Result};
use crate::file::{FileState, Moment};
use crate::keeper;
use crate::kept::{self, Kept};
use crate::master_link::{MasterLink, accepted, unexpected};

const PING_EVERY: Duration = Duration::from_secs(20);
/// The last words of a session are not waited for longer.
const GOODBYE_MAX: Duration = Duration::from_secs(3);
/// A wait for a lock is asked in pieces, so that it can be cancelled in between.
const LOCK_WAIT_PIECE: Duration = Duration::from_millis(200);

/// Settings of a session; [`SessionConfig::new`] has the usual ones.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `host:port`
    pub master: String,
    pub key: ClusterKey,
    /// What people see of this client, such as "mount at /mnt".
    pub name: String,
    /// How long requests wait for absent servers before they fail.
    pub server_wait: Duration,
    /// How long one request may take before its connection is given up.
    pub io_deadline: Duration,
    /// Bytes written and not yet stable, of all files together.
    pub write_budget_bytes: u64,
    /// Bytes fetched ahead, of all files together.
    pub readahead_bytes: u64,
    /// What outlives this process, if anything does.
    pub kept: Option<Arc<Kept>>,
}

impl SessionConfig {
    pub fn new(master: impl Into<String>, key: ClusterKey, name: impl Into<String>) -> Self {
        Self {
            master: master.into(),
            key,
            name: name.into(),
            server_wait: Duration::from_secs(300),
            io_deadline: Duration::from_secs(30),
            write_budget_bytes: 64 << 20,
            readahead_bytes: 64 << 20,
            kept: None,
        }
    }
}

/// A lock to take (`kind`) or to give back (`None`) on `start..=end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRequest {
    pub ino: InodeNo,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: Option<LockKind>,
    pub pid: u32,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Only spreads retries; the identity of a client has its own, checked draw.
    let _drawn = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Small things done later, on a thread of their own.
enum Errand {
    /// `nonce`: the reign that counted the open.
    Release { ino: InodeNo, write: bool, nonce: u64 },
}

/// One client of a file system. Dropped or closed, it flushes what is pending and says goodbye.
pub struct Session {
    pub(crate) link: Arc<MasterLink>,
    pub(crate) io: Arc<ChunkIo>,
    files: Mutex<HashMap<InodeNo, Arc<FileState>>>,
    errands: mpsc::SyncSender<Errand>,
    pending_errands: Arc<AtomicU64>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("master", &self.link.config().master)
            .field("client", &self.link.client())
            .finish_non_exhaustive()
    }
}

/// See [`Session::begin_request`].
#[derive(Debug)]
pub struct RequestUnderWay {
    link: Arc<MasterLink>,
    kept: Arc<Kept>,
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        self.link.end_ops(&self.kept.end());
    }
}

/// What a session holds and has done, for the metrics of its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    /// Written and not yet known to be on the servers' disks, and the bound of it.
    pub unstable_bytes: u64,
    pub unstable_limit_bytes: u64,
    /// Memory that bytes read ahead take.
    pub readahead_bytes: u64,
    /// Memory of both kinds that was given back since the start; only rises.
    pub freed_bytes: u64,
    /// Bytes given to readers that had been fetched before, and that were waited for; both only rise.
    pub ahead_bytes: u64,
    pub asked_bytes: u64,
    pub master_connections: u64,
}

impl Session {
    /// Finds the master and registers.
    ///
    /// # Errors
    /// `MasterSilent` after `server_wait`; `Protocol` if it refuses the key or speaks something else.
    pub fn connect(config: SessionConfig) -> Result<Arc<Self>> {
        let link = Arc::new(MasterLink::new(config)?);
        link.call(&MetaCall::Ping)?;
        let io = ChunkIo::new(Arc::clone(&link))?;
        let (errands, todo) = mpsc::sync_channel(4096);
        let pending_errands = Arc::new(AtomicU64::new(0));
        let session = Arc::new(Self {
            link,
            io,
            files: Mutex::default(),
            errands,
            pending_errands: Arc::clone(&pending_errands),
        });
        let link = Arc::clone(&session.link);
        spawn("errands", move || run_errands(&link, &todo, &pending_errands))?;
        keeper::start(&session)?;
        Ok(session)
    }

    #[must_use]
    pub fn client(&self) -> ClientId {
        self.link.client()
    }

    /// What the master said last about itself.
    #[must_use]
    pub fn welcome(&self) -> Option<Welcome> {
        self.link.welcome()
    }

    /// The master's clock, as far as it is known here.
    #[must_use]
    pub fn wall_now(&self) -> WallTime {
        self.link.wall_now()
    }

    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        self.link.config()
    }

    /// # Errors
    /// See [`ClientError`]; so for all requests below.
    pub fn lookup(&self, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        self.lookup_logged(parent, name).map(|attr| self.complete(attr))
    }

    /// As [`Self::lookup`], with the size that the master has: of a file that somebody is writing it may be too small, but
    /// nobody who may be away is asked. See [`Self::complete`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn lookup_logged(&self, parent: InodeNo, name: &[u8]) -> Result<Attr> {
        match self.link.call(&MetaCall::Lookup { parent, name: name.to_vec() })? {
            MetaReply::Attr(attr) => Ok(attr),
            other => Err(unexpected("lookup", &other)),
        }
    }

    /// Fresh attributes: the master's, with what this client has pending, and what another one is writing now.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn getattr(&self, ino: InodeNo) -> Result<Attr> {
        self.settle_appends(ino);
        self.link.getattr(ino).map(|attr| self.complete(attr))
    }

    /// Attributes that the master gave, with what this client has pending and what another one is writing now. Its
    /// servers are waited for as long as a request is, and at most ten seconds.
    #[must_use]
    pub fn complete(&self, mut attr: Attr) -> Attr {
        if attr.writing {
            attr.size = attr.size.max(self.io.tail_size(&attr));
        }
        self.overlay(attr)
    }

    /// Adds this client's pending size and time of change to attributes the master gave. They are asked for again if
    /// records appended before were still on their way.
    #[must_use]
    pub fn overlay(&self, attr: Attr) -> Attr {
        let Some(file) = self.known_file(attr.ino) else { return attr };
        if file.settle_appends()
            && let Ok(fresh) = file.attr()
        {
            return fresh;
        }
        file.overlay(attr)
    }

    fn settle_appends(&self, ino: InodeNo) {
        if let Some(file) = self.known_file(ino) {
            file.settle_appends();
        }
    }

    fn known_file(&self, ino: InodeNo) -> Option<Arc<FileState>> {
        lock(&self.files).get(&ino).cloned()
    }

    /// Entries after `after_cookie` in cookie order; true if these are the last.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn readdir(
        &self,
        ino: InodeNo,
        after_cookie: u64,
        max_entries: u32,
        plus: bool,
    ) -> Result<(Vec<EntryPlus>, bool)> {
        match self.link.call(&MetaCall::ReadDir { ino, after_cookie, max_entries, plus })? {
            MetaReply::Entries { entries, end } => Ok((entries, end)),
            other => Err(unexpected("readdir", &other)),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub fn readlink(&self, ino: InodeNo) -> Result<Vec<u8>> {
        match self.link.call(&MetaCall::ReadLink { ino })? {
            MetaReply::Bytes(target) => Ok(target),
            other => Err(unexpected("readlink", &other)),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub fn getxattr(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>> {
        match self.link.call(&MetaCall::GetXattr { ino, name: name.to_vec() })? {
            MetaReply::Bytes(value) => Ok(value),
            other => Err(unexpected("getxattr", &other)),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub fn listxattrs(&self, ino: InodeNo) -> Result<Vec<Vec<u8>>> {
        match self.link.call(&MetaCall::ListXattrs { ino })? {
            MetaReply::Names(names) => Ok(names.into_iter().map(|name| name.0).collect()),
            other => Err(unexpected("listxattr", &other)),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub fn statfs(&self) -> Result<StatfsReply> {
        match self.link.call(&MetaCall::Statfs)? {
            MetaReply::Statfs(statfs) => Ok(statfs),
            other => Err(unexpected("statfs", &other)),
        }
    }

    /// One logged change, exactly once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change(&self, change: Change) -> Result<Outcome> {
        let outcome = self.link.change(change)?;
        if let Outcome::Unlinked { ino, nlink: 0 } | Outcome::Renamed { replaced: Some(ino), .. } =
            outcome
            && let Some(file) = self.known_file(ino)
        {
            file.lost_last_name();
            self.discard_refused(&file);
        }
        Ok(outcome)
    }

    /// What is left of a file whose writers were told that bytes are lost, that nobody here has open and that nobody can
    /// open any more, is not worth waiting for servers.
    fn discard_refused(&self, file: &FileState) {
        if !self.link.is_open(file.ino()) {
            file.discard_if_refused();
        }
    }

    /// Creates a file as `change` says. Open until [`Self::release`] if it was created; one that was there is not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create_open(self: &Arc<Self>, change: Change, write: bool) -> Result<(Attr, bool)> {
        match self.link.change_names(change, true)? {
            Outcome::Entry { attr, created } => {
                if created && attr.kind == FileKind::File {
                    self.link.count_open(attr.ino, write);
                    let _known = self.file_created(&attr);
                }
                Ok((attr, created))
            }
            other => {
                Err(ClientError::Protocol { reason: format!("create was answered {other:?}") })
            }
        }
    }

    /// Attributes of a directory that came with an answer to this client's own change in it, and how old they may be.
    #[must_use]
    pub fn recent_directory(&self, ino: InodeNo) -> Option<(Attr, Duration)> {
        self.link.recent_dirs.get(ino)
    }

    /// Counts an open until [`Self::release`]; answers fresh attributes and takes in inline content.
    ///
    /// # Errors
    /// See [`ClientError`]; nothing is counted then.
    pub fn open(self: &Arc<Self>, ino: InodeNo, write: bool) -> Result<Attr> {
        self.open_as(ino, write, true)
    }

    /// As [`Self::open`], by whoever asks for the size with what is done next, or does not need it: if somebody is writing
    /// the file its servers are not asked now, which may be a wait.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn open_logged(self: &Arc<Self>, ino: InodeNo, write: bool) -> Result<()> {
        self.open_as(ino, write, false).map(|_| ())
    }

    fn open_as(self: &Arc<Self>, ino: InodeNo, write: bool, sized: bool) -> Result<Attr> {
        self.link.count_open(ino, write);
        self.settle_appends(ino);
        let file = self.file(ino);
        let asked = file.asking();
        let opened = match self.link.call(&MetaCall::Open { ino, write }) {
            Ok(MetaReply::Opened { attr, content, written_elsewhere }) => {
                let mut attr = attr;
                if written_elsewhere {
                    file.outdate();
                }
                if attr.writing && sized {
                    attr.size = attr.size.max(self.io.tail_size(&attr));
                }
                Ok((attr, content))
            }
            Ok(other) => Err(unexpected("open", &other)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((attr, content)) => {
                file.opened(asked, &attr, content);
                if attr.writing && !sized {
                    file.forget_attr();
                }
                Ok(file.overlay(attr))
            }
            Err(error) => {
                kept::not_opened();
                self.link.uncount_open(ino, write);
                Err(error)
            }
        }
    }

    /// What is cached of `ino` is outdated if others may be writing it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn outdate_if_written_elsewhere(self: &Arc<Self>, ino: InodeNo) -> Result<()> {
        if self.link.is_written_elsewhere(ino)? {
            self.file(ino).outdate();
        }
        Ok(())
    }

    /// Whether all changes of `ino` from change number `since` to `now` were made through this session.
    #[must_use]
    pub fn changed_only_here(&self, ino: InodeNo, since: u64, now: u64) -> bool {
        self.link.own_changes.only_here(ino, since, now)
    }

    /// This thread carries out the request `number` of the kernel, which is not 0, until what is answered is dropped: if the
    /// session is kept, what is asked for then is asked for once, also by successors of this process.
    #[must_use]
    pub fn begin_request(&self, number: u64) -> Option<RequestUnderWay> {
        let kept = self.config().kept.as_ref()?;
        kept.begin(number);
        Some(RequestUnderWay { link: Arc::clone(&self.link), kept: Arc::clone(kept) })
    }

    /// What predecessors of this process left is asked for again by these requests: what else they began was answered.
    /// Answers how many of these they had begun with.
    #[must_use]
    pub fn forget_left_but(&self, resent: &[u64]) -> usize {
        let Some(kept) = &self.config().kept else { return 0 };
        self.link.end_ops(&kept.forget_left_but(resent));
        resent.iter().filter(|request| kept.is_left(**request)).count()
    }

    /// Where a request that a predecessor began with is among these; all others come after them.
    #[must_use]
    pub fn left_place(&self, request: u64) -> u64 {
        self.config().kept.as_ref().map_or(u64::MAX, |kept| kept.left_place(request))
    }

    /// Takes an open back; the master hears of it a little later.
    pub fn release(&self, ino: InodeNo, write: bool) {
        if !kept::release() {
            return;
        }
        if self.link.uncount_open(ino, write)
            && let Some(file) = self.known_file(ino)
        {
            file.closed();
            self.discard_refused(&file);
        }
        self.pending_errands.fetch_add(1, Ordering::AcqRel);
        let nonce = self.link.nonce();
        if self.errands.send(Errand::Release { ino, write, nonce }).is_err() {
            self.pending_errands.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn is_open(&self, ino: InodeNo) -> bool {
        self.link.is_open(ino)
    }

    pub(crate) fn is_last_writer(&self, ino: InodeNo) -> bool {
        self.write_opens(ino) <= 1
    }

    /// How many have `ino` open for writing in this session.
    #[must_use]
    pub fn write_opens(&self, ino: InodeNo) -> u32 {
        self.link.write_opens(ino)
    }

    /// Takes or gives back a lock. `wait`: how long to wait for others to let go, asked again while `cancelled` says no.
    ///
    /// # Errors
    /// `Refused(Locked)` if it is held when the wait is over, `Interrupted` if cancelled.
    pub fn set_lock(
        &self,
        request: LockRequest,
        wait: Option<Duration>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        let LockRequest { ino, owner, start, end, kind, pid } = request;
        let began = Instant::now();
        loop {
            let left = wait.unwrap_or_default().saturating_sub(began.elapsed());
            let piece = left.min(LOCK_WAIT_PIECE);
            let wait_ms = u32::try_from(piece.as_millis()).unwrap_or(0);
            let call = |op| MetaCall::SetLock { op, ino, owner, start, end, kind, pid, wait_ms };
            // Taken twice a lock is taken; given back twice it might be one that was taken since.
            let (_op, call) = match kind {
                Some(_) => {
                    let op = self.link.op();
                    let call = call(op.number);
                    (op, call)
                }
                None => self.link.op_for(call),
            };
            let outcome = match self.link.call(&call)? {
                MetaReply::Outcome(outcome) => accepted(outcome),
                other => Err(unexpected("set lock", &other)),
            };
            match outcome {
                Ok(_) => return Ok(()),
                Err(ClientError::Refused(NamespaceError::Locked)) if !left.is_zero() => {
                    if cancelled() {
                        return Err(ClientError::Interrupted);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The lock that `kind` on this range would meet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn test_lock(
        &self,
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: LockKind,
    ) -> Result<Option<Lock>> {
        match self.link.call(&MetaCall::TestLock { ino, owner, start, end, kind })? {
            MetaReply::Conflict(lock) => Ok(lock),
            other => Err(unexpected("test lock", &other)),
        }
    }

    /// What this client has pending and cached of one file; one for all who ask.
    #[must_use]
    pub fn file(self: &Arc<Self>, ino: InodeNo) -> Arc<FileState> {
        let mut files = lock(&self.files);
        Arc::clone(files.entry(ino).or_insert_with(|| FileState::new(self, ino)))
    }

    /// As [`Self::file`] for a file just created: its attributes need not be asked for.
    #[must_use]
    pub fn file_created(self: &Arc<Self>, attr: &Attr) -> Arc<FileState> {
        let file = self.file(attr.ino);
        let content = (attr.inline && attr.size == 0).then(Vec::new);
        file.opened(Moment::default(), attr, content);
        file
    }

    pub(crate) fn all_files(&self) -> Vec<Arc<FileState>> {
        lock(&self.files).values().cloned().collect()
    }

    /// Forgets files nobody uses; `idle` decides for those nobody else holds.
    pub(crate) fn forget_files(&self, mut idle: impl FnMut(&FileState) -> bool) {
        lock(&self.files).retain(|_, file| 1 < Arc::strong_count(file) || !idle(file));
    }

    /// Makes everything written so far stable.
    ///
    /// # Errors
    /// The first of what went wrong; the rest was tried too.
    pub fn sync_all(&self) -> Result<()> {
        let mut first = Ok(());
        for file in self.all_files() {
            first = first.and(file.fsync());
        }
        first
    }

    /// To be called when the session is about to be closed: from now on everything together waits for servers as long as
    /// one call does otherwise. Without it each file that cannot be sent takes its own time.
    pub fn end_soon(&self) {
        self.link.end_soon();
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        use std::sync::atomic::Ordering::Relaxed;
        Figures {
            unstable_bytes: self.io.budget.used(),
            unstable_limit_bytes: self.io.budget.limit(),
            readahead_bytes: self.io.readahead.used(),
            freed_bytes: self.io.budget.given_back() + self.io.readahead.given_back(),
            ahead_bytes: self.io.ahead_bytes.load(Relaxed),
            asked_bytes: self.io.asked_bytes.load(Relaxed),
            master_connections: self.link.connections(),
        }
    }

    /// Asks the master once, without the patience of other calls.
    ///
    /// # Errors
    /// Why it did not answer within `wait`, or that it no longer knows this client.
    pub fn ping(&self, wait: Duration) -> std::io::Result<()> {
        match self.link.attempt(&MetaCall::Ping, wait)? {
            MetaReply::Done => Ok(()),
            other => Err(std::io::Error::other(format!("it answered {other:?}"))),
        }
    }

    /// Flushes everything, ends the client at the master: its locks and opens go. Every later request fails.
    pub fn close(&self) {
        if self.link.is_closed() {
            return;
        }
        for file in self.all_files() {
            if let Err(error) = file.flush() {
                tracing::error!(ino = file.ino().0, %error, see = error.page().map(tracing::field::display), "flush at the end of the session");
            }
        }
        let began = Instant::now();
        while 0 < self.pending_errands.load(Ordering::Acquire) && began.elapsed() < GOODBYE_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.goodbye();
    }

    fn goodbye(&self) {
        if self.link.is_closed() {
            return;
        }
        self.link.ends_itself();
        if let Err(error) = self.link.attempt(&MetaCall::Goodbye, GOODBYE_MAX) {
            tracing::debug!(%error, "goodbye: the lease will end this client");
        }
        self.link.close();
        self.io.close();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(|_running| ())
        .map_err(|error| ClientError::Protocol { reason: format!("start thread {name}: {error}") })
}

fn run_errands(link: &MasterLink, todo: &mpsc::Receiver<Errand>, pending: &AtomicU64) {
    loop {
        let errand = match todo.recv_timeout(PING_EVERY / 4) {
            Ok(errand) => errand,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if link.is_closed() {
                    return;
                }
                if PING_EVERY <= link.quiet()
                    && let Err(error) = link.attempt(&MetaCall::Ping, link.config().io_deadline)
                {
                    tracing::debug!(%error, "ping");
                }
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        match errand {
            // Not asked again if the answer is lost: counting one release twice could take a file from under
            // another open of it; one too few only keeps it until this client ends.
            Errand::Release { ino, write, nonce } => {
                if let Err(error) = link.release(ino, write, nonce) {
                    tracing::debug!(ino = ino.0, %error, "release not told");
                }
                pending.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}
