//! Requests to the master: connections, retries, operation numbers, what this client has open.
//!
//! A request keeps its operation id through all its retries, so that the master carries it out once (DECISIONS 4). A
//! new connection says Hello first; a master that restarted is known by its nonce and gets all opens again before
//! anything else is asked (DECISIONS 13).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use dfs_core::client::backoff::Backoff;
use dfs_core::command::{Change, Outcome};
use dfs_core::cuts::Cuts;
use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::namespace::{Attr, FileKind, NamespaceError};
use dfs_core::time::WallTime;
use dfs_proto::codec::Wire;
use dfs_proto::frame_conn::LoneClient;
use dfs_proto::meta_rpc::{MetaCall, MetaFailure, MetaReply, MetaRequest, Welcome};
use dfs_service::conn::{self, Door};
use dfs_service::page::Page;

use crate::cancel;
use crate::deadline::left_of;
use crate::error::{ClientError, Result};
use crate::exercise::{self, Point};
use crate::kept::{self, Kept, Ops};
use crate::own_changes::OwnChanges;
use crate::pool::{Pool, Taken};
use crate::recent_dirs::RecentDirs;
use crate::session::{SessionConfig, lock, random};

/// Connections to the master: one per caller that waits for it.
const MASTER_CONNECTIONS_MAX: usize = 64;
const DIAL_MAX: Duration = Duration::from_secs(3);
/// A wait longer than this is told to a person.
const SILENCE_TOLD: Duration = Duration::from_secs(1);
/// The master's time to answer when the caller's is over: it looks for servers itself for two seconds before it says
/// which are missing.
const ATTEMPT_LEAST: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, Default)]
struct OpenCounts {
    all: u32,
    write: u32,
}

struct Registration {
    welcome: Welcome,
    welcomed_at: Instant,
}

/// The connection to the master, shared by everything of a session.
pub(crate) struct MasterLink {
    config: SessionConfig,
    client: ClientId,
    ops: Mutex<Ops>,
    pool: Pool<LoneClient>,
    registration: Mutex<Option<Registration>>,
    opens: Mutex<BTreeMap<InodeNo, OpenCounts>>,
    /// What of the change numbers is this client's doing.
    pub(crate) own_changes: OwnChanges,
    pub(crate) recent_dirs: RecentDirs,
    silent_told: AtomicBool,
    /// A request said that it waits for servers; the others need not.
    wait_told: AtomicBool,
    told_of_its_end: AtomicBool,
    closed: AtomicBool,
    /// Set when the session is to end: nothing is waited for any longer then.
    ends_at: OnceLock<Instant>,
    asked_at: Mutex<Instant>,
}

/// An operation number whose result is awaited.
pub(crate) struct Op<'a> {
    link: &'a MasterLink,
    pub(crate) number: u64,
    /// It ends with the request of the kernel that it is of: a successor of this process may ask for its result.
    ends_later: bool,
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        if !self.ends_later {
            lock(&self.link.ops).end(self.number);
        }
    }
}

impl std::fmt::Debug for MasterLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterLink").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Held by the one request that said in the log that it waits.
struct Told<'a>(Option<&'a AtomicBool>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if let Some(told) = self.0 {
            told.store(false, Ordering::Release);
        }
    }
}

impl MasterLink {
    pub(crate) fn new(config: SessionConfig) -> Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| ClientError::Protocol {
            reason: format!("draw a client id: {error}"),
        })?;
        let kept = config.kept.clone();
        let opens = kept.iter().flat_map(|kept| kept.opens());
        let opens = opens.map(|(ino, all, write)| (ino, OpenCounts { all, write })).collect();
        Ok(Self {
            config,
            client: kept
                .as_ref()
                .map_or_else(|| ClientId(u128::from_le_bytes(id)), |kept| kept.client()),
            ops: Mutex::new(Ops::new(kept.as_ref())),
            pool: Pool::new(MASTER_CONNECTIONS_MAX),
            registration: Mutex::new(None),
            opens: Mutex::new(opens),
            own_changes: OwnChanges::default(),
            recent_dirs: RecentDirs::default(),
            silent_told: AtomicBool::new(false),
            wait_told: AtomicBool::new(false),
            told_of_its_end: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ends_at: OnceLock::new(),
            asked_at: Mutex::new(Instant::now()),
        })
    }

    pub(crate) fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// How long may be waited from now on: `server_wait`, or what the present call has left of it.
    pub(crate) fn wait(&self) -> Duration {
        let left = left_of(self.config.server_wait);
        let until_end = |end: &Instant| end.saturating_duration_since(Instant::now());
        self.ends_at.get().map(until_end).map_or(left, |until_end| left.min(until_end))
    }

    /// The session ends: what waits is given up `server_wait` from now, all together and not one after the other.
    pub(crate) fn end_soon(&self) {
        self.ends_at.get_or_init(|| Instant::now() + self.config.server_wait);
    }

    pub(crate) fn is_past_its_end(&self) -> bool {
        self.ends_at.get().is_some_and(|end| *end <= Instant::now())
    }

    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn op(&self) -> Op<'_> {
        Op { link: self, number: lock(&self.ops).begin(), ends_later: false }
    }

    /// A number for what `call` makes of it, the same if a predecessor of this process asked for that.
    pub(crate) fn op_for(&self, call: impl Fn(u64) -> MetaCall) -> (Op<'_>, MetaCall) {
        let kept = self
            .config
            .kept
            .as_ref()
            .and_then(|_| kept::number_of(&call(0).to_bytes(), || lock(&self.ops).begin()));
        let op = match kept {
            Some(number) => Op { link: self, number, ends_later: true },
            None => self.op(),
        };
        let call = call(op.number);
        (op, call)
    }

    pub(crate) fn end_ops(&self, numbers: &[u64]) {
        let mut ops = lock(&self.ops);
        for number in numbers {
            ops.end(*number);
        }
    }

    fn request(&self, call: &MetaCall) -> Vec<u8> {
        MetaRequest { client: self.client, results: lock(&self.ops).results(), call: call.clone() }
            .to_bytes()
    }

    fn call_on(
        &self,
        connection: &mut LoneClient,
        call: &MetaCall,
        deadline: Duration,
    ) -> std::io::Result<MetaReply> {
        let request = self.request(call);
        exercise::reached(Point::Sent);
        let frame = connection.call(&request, &[], deadline)?;
        let reply = MetaReply::from_bytes(&frame.args)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        if matches!(reply, MetaReply::Failed(MetaFailure::Refused(NamespaceError::NoSession)))
            && !self.told_of_its_end.swap(true, Ordering::AcqRel)
        {
            tracing::error!(
                client = %self.client,
                see = %Page::ClientSilent,
                "the master ended this client, which was silent for too long or evicted: its opens and locks are gone, and all it asks is refused from now on. \
                 Unmount and mount again, or start the command again"
            );
        }
        Ok(reply)
    }

    /// A fresh connection, registered, with all opens told if the master is another one than before.
    fn connect(&self) -> std::io::Result<LoneClient> {
        let kept = self.config.kept.as_deref();
        let known = lock(&self.registration).is_some() || kept.is_some_and(Kept::is_registered);
        let stream = conn::dial(&self.config.master, &self.config.key, Door::Frames, DIAL_MAX)
            .map_err(|error| match error.kind() {
                // It had our key before: a master that dies in the handshake looks the same.
                std::io::ErrorKind::PermissionDenied if known => std::io::Error::other(error),
                _ => error,
            })?;
        stream.set_write_timeout(Some(self.config.io_deadline))?;
        let mut connection = LoneClient::new(stream);
        let hello = MetaCall::Hello { name: self.config.name.clone(), known };
        let refused = |what: String| std::io::Error::other(what);
        let welcome =
            match self.call_on(&mut connection, &hello, DIAL_MAX.max(self.config.io_deadline))? {
                MetaReply::Welcome(welcome) => welcome,
                // Its locks and opens are gone for good: asking again does not help.
                MetaReply::Failed(MetaFailure::Refused(NamespaceError::NoSession)) => {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::PermissionDenied,
                        "the master ended this client: it was silent for too long",
                    ));
                }
                MetaReply::Failed(failure) => return Err(refused(format!("hello: {failure}"))),
                other => return Err(refused(format!("hello was answered {other:?}"))),
            };
        // Held over Reopen: nobody uses a new master before it knows what is open.
        let mut registration = lock(&self.registration);
        let other_fs = registration.as_ref().is_some_and(|known| known.welcome.fs != welcome.fs);
        if other_fs {
            return Err(refused(format!("{} is now another file system", self.config.master)));
        }
        let before = match (registration.as_ref(), kept) {
            (Some(known), _) => Some(known.welcome.nonce),
            (None, Some(kept)) => kept.is_registered().then(|| kept.nonce()),
            (None, None) => None,
        };
        let restarted = before.is_some_and(|before| before != welcome.nonce);
        if restarted {
            let opens: Vec<(InodeNo, u32)> =
                lock(&self.opens).iter().map(|(ino, counts)| (*ino, counts.all)).collect();
            tracing::info!(
                opens = opens.len(),
                epoch = welcome.epoch.0,
                "master restarted: opens are sent again"
            );
            match self.call_on(
                &mut connection,
                &MetaCall::Reopen { opens },
                self.config.io_deadline,
            )? {
                MetaReply::Done => {}
                other => return Err(refused(format!("reopen was answered {other:?}"))),
            }
        }
        if let Some(kept) = kept {
            kept.registered(welcome.nonce);
        }
        *registration = Some(Registration { welcome, welcomed_at: Instant::now() });
        Ok(connection)
    }

    fn take_connection(&self, deadline: Duration) -> std::io::Result<LoneClient> {
        match self.pool.take(deadline) {
            Taken::Idle(connection) => Ok(connection),
            Taken::New => self.connect().inspect_err(|_| self.pool.lose()),
            Taken::Busy => {
                let text = format!("all {MASTER_CONNECTIONS_MAX} connections are busy");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
            }
        }
    }

    pub(crate) fn connections(&self) -> u64 {
        self.pool.open() as u64
    }

    pub(crate) fn attempt(
        &self,
        call: &MetaCall,
        deadline: Duration,
    ) -> std::io::Result<MetaReply> {
        self.attempt_noting(call, deadline, &mut false)
    }

    /// `sent` is set while it may have been carried out though nothing was answered.
    fn attempt_noting(
        &self,
        call: &MetaCall,
        deadline: Duration,
        sent: &mut bool,
    ) -> std::io::Result<MetaReply> {
        let mut connection = self.take_connection(deadline)?;
        let before = std::mem::replace(sent, true);
        match self.call_on(&mut connection, call, deadline) {
            Ok(reply) => {
                if matches!(reply, MetaReply::Failed(_)) {
                    *sent = before;
                }
                self.pool.give_back(connection);
                *lock(&self.asked_at) = Instant::now();
                Ok(reply)
            }
            Err(error) => {
                // The others were to the same master and are as dead, if it is.
                self.pool.lose_all_idle();
                Err(error)
            }
        }
    }

    /// Asks until there is an answer that means something, at most `server_wait`.
    pub(crate) fn call(&self, call: &MetaCall) -> Result<MetaReply> {
        self.call_within(call, self.config.io_deadline, self.wait())
    }

    /// As [`Self::call`], by a caller that has waited for other things too.
    pub(crate) fn call_waiting(&self, call: &MetaCall, wait: Duration) -> Result<MetaReply> {
        self.call_within(call, self.config.io_deadline, left_of(wait))
    }

    fn call_within(
        &self,
        call: &MetaCall,
        deadline: Duration,
        wait: Duration,
    ) -> Result<MetaReply> {
        let began = Instant::now();
        let mut backoff = Backoff::default();
        let mut told = Told(None);
        // What a predecessor of this process sent may have been carried out, too.
        let mut sent = kept::is_repeated();
        loop {
            if self.is_closed() {
                return Err(ClientError::Closed);
            }
            let left = wait.saturating_sub(began.elapsed()).max(ATTEMPT_LEAST);
            let (pause_ms, give_up) = match self.attempt_noting(call, deadline.min(left), &mut sent)
            {
                Ok(MetaReply::Failed(failure)) => match failure {
                    MetaFailure::Refused(NamespaceError::Busy) => {
                        (backoff.next_ms(random()), NamespaceError::Busy.into())
                    }
                    MetaFailure::Refused(NamespaceError::OutcomeUnknown) => {
                        return Err(ClientError::OutcomeUnknown);
                    }
                    MetaFailure::Refused(error) => return Err(error.into()),
                    MetaFailure::NoSpace { reason } => return Err(ClientError::NoSpace { reason }),
                    MetaFailure::BadRequest { reason } => {
                        return Err(ClientError::Protocol { reason });
                    }
                    MetaFailure::Warming { retry_after_ms } => {
                        let reason = "the master is warming up: it began anew, and the chunkservers have yet to tell what they hold";
                        let give_up = ClientError::ChunkUnavailable {
                            reason: reason.to_owned(),
                            waited: began.elapsed(),
                        };
                        (u64::from(retry_after_ms), give_up)
                    }
                    MetaFailure::Busy { retry_after_ms } => (
                        u64::from(retry_after_ms),
                        ClientError::MasterSilent { waited: began.elapsed() },
                    ),
                    MetaFailure::Unavailable { reason, retry_after_ms } => {
                        if SILENCE_TOLD < began.elapsed()
                            && !self.wait_told.swap(true, Ordering::AcqRel)
                        {
                            told = Told(Some(&self.wait_told));
                            let page = match call {
                                MetaCall::Layout { write: true, .. } => Page::WritesWait,
                                _ => Page::Unavailable,
                            };
                            tracing::warn!(reason, ?wait, see = %page, "servers are missing: requests wait");
                        }
                        (
                            u64::from(retry_after_ms),
                            ClientError::ChunkUnavailable { reason, waited: began.elapsed() },
                        )
                    }
                },
                Ok(reply) => {
                    if self.silent_told.swap(false, Ordering::AcqRel) {
                        tracing::warn!(master = %self.config.master, "the master answers again");
                    }
                    if told.0.is_some() {
                        tracing::warn!(waited = ?began.elapsed(), "servers are there again: requests go on");
                    }
                    return Ok(reply);
                }
                Err(error) => {
                    tracing::debug!(master = %self.config.master, %error, "no answer");
                    if SILENCE_TOLD < began.elapsed()
                        && !self.silent_told.swap(true, Ordering::AcqRel)
                    {
                        tracing::warn!(
                            master = %self.config.master, %error, wait = ?self.config.server_wait,
                            see = %Page::MasterSilent, "the master does not answer: requests wait"
                        );
                    }
                    if error.kind() == std::io::ErrorKind::PermissionDenied {
                        return Err(ClientError::Protocol { reason: error.to_string() });
                    }
                    (
                        backoff.next_ms(random()),
                        ClientError::MasterSilent { waited: began.elapsed() },
                    )
                }
            };
            if wait <= began.elapsed() {
                return Err(give_up);
            }
            // A last attempt is made when the wait is over, not a pause later.
            let left = wait.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
            let pause = Duration::from_millis(pause_ms.clamp(1, 1000)).min(left);
            if cancel::sleep(pause, sent) {
                return Err(ClientError::Interrupted);
            }
        }
    }

    pub(crate) fn change(&self, change: Change) -> Result<Outcome> {
        match change {
            Change::Create { .. }
            | Change::CreateUnnamed { .. }
            | Change::PutInPlace { .. }
            | Change::Link { .. }
            | Change::Unlink { .. }
            | Change::Rmdir { .. }
            | Change::Rename { .. } => return self.change_names(change, false),
            _ => {}
        }
        // These say nothing of the attributes they change.
        let says_nothing = matches!(change, Change::SetXattr { .. } | Change::RemoveXattr { .. });
        let (_op, call) =
            self.op_for(|op| MetaCall::Change { op, part: 0, change: change.clone() });
        let outcome = match self.call(&call) {
            Ok(MetaReply::Outcome(outcome)) => accepted(outcome),
            Ok(other) => Err(unexpected("change", &other)),
            Err(error) => Err(error),
        };
        let touched_directory = match &outcome {
            Ok(Outcome::Attr(attr)) => attr.kind == FileKind::Directory,
            Ok(_) => false,
            Err(_) => true,
        };
        if says_nothing || touched_directory {
            self.recent_dirs.forget();
        }
        let outcome = outcome?;
        if let MetaCall::Change { change, .. } = &call {
            self.own_changes.answered(change, &outcome);
        }
        Ok(outcome)
    }

    /// `open`: a file that is created is open, the caller counts it.
    pub(crate) fn change_names(&self, change: Change, open: bool) -> Result<Outcome> {
        let (_op, call) =
            self.op_for(|op| MetaCall::ChangeNames { op, change: change.clone(), open });
        let asked_at = Instant::now();
        match self.call(&call)? {
            MetaReply::Changed { outcome, directories } => {
                self.recent_dirs.learn(directories, asked_at);
                accepted(outcome)
            }
            other => Err(unexpected("change of names", &other)),
        }
    }

    pub(crate) fn truncate(&self, ino: InodeNo, size: u64) -> Result<Attr> {
        let (_op, call) = self.op_for(|op| MetaCall::Truncate { op, ino, size });
        self.attr_after("truncate", &call)
    }

    /// Frees chunks `first..` that lie wholly behind the logged size, unless somebody else writes the file.
    pub(crate) fn free_unlogged(&self, ino: InodeNo, first: u64) -> Result<Attr> {
        let (_op, call) = self.op_for(|op| MetaCall::FreeUnlogged { op, ino, first });
        self.attr_after("freeing chunks", &call)
    }

    fn attr_after(&self, what: &str, call: &MetaCall) -> Result<Attr> {
        match self.call(call)? {
            MetaReply::Outcome(outcome) => match accepted(outcome)? {
                Outcome::Attr(attr) | Outcome::Entry { attr, .. } => Ok(attr),
                other => {
                    Err(ClientError::Protocol { reason: format!("{what} was answered {other:?}") })
                }
            },
            other => Err(unexpected(what, &other)),
        }
    }

    pub(crate) fn getattr(&self, ino: InodeNo) -> Result<Attr> {
        match self.call(&MetaCall::GetAttr { ino })? {
            MetaReply::Attr(attr) => Ok(attr),
            other => Err(unexpected("getattr", &other)),
        }
    }

    /// To what sizes `ino` was truncated lately.
    pub(crate) fn cuts(&self, ino: InodeNo) -> Result<Cuts> {
        match self.call(&MetaCall::Cuts { ino })? {
            MetaReply::Cuts(cuts) => Ok(cuts),
            other => Err(unexpected("cuts", &other)),
        }
    }

    /// Attributes and the content if it is inline.
    pub(crate) fn read_inline(&self, ino: InodeNo) -> Result<(Attr, Option<Vec<u8>>)> {
        match self.call(&MetaCall::ReadInline { ino })? {
            MetaReply::Opened { attr, content, .. } => Ok((attr, content)),
            other => Err(unexpected("read inline", &other)),
        }
    }

    /// Whether other clients may be writing it.
    pub(crate) fn is_written_elsewhere(&self, ino: InodeNo) -> Result<bool> {
        match self.call(&MetaCall::ReadInline { ino })? {
            MetaReply::Opened { written_elsewhere, .. } => Ok(written_elsewhere),
            other => Err(unexpected("read inline", &other)),
        }
    }

    pub(crate) fn wall_now(&self) -> WallTime {
        let registration = lock(&self.registration);
        registration.as_ref().map_or(WallTime(0), |known| {
            let since = i64::try_from(known.welcomed_at.elapsed().as_nanos()).unwrap_or(i64::MAX);
            WallTime(known.welcome.now.0.saturating_add(since))
        })
    }

    pub(crate) fn welcome(&self) -> Option<Welcome> {
        lock(&self.registration).as_ref().map(|known| known.welcome.clone())
    }

    pub(crate) fn nonce(&self) -> u64 {
        lock(&self.registration).as_ref().map_or(0, |known| known.welcome.nonce)
    }

    /// Tells of a release, unless the master is another than the one that counted the open: that one was told what
    /// is open now, this release already left out.
    pub(crate) fn release(&self, ino: InodeNo, write: bool, nonce: u64) -> std::io::Result<()> {
        let mut connection = self.take_connection(self.config.io_deadline)?;
        if self.nonce() != nonce {
            self.pool.give_back(connection);
            return Ok(());
        }
        let told = self.call_on(
            &mut connection,
            &MetaCall::Release { ino, write },
            self.config.io_deadline,
        );
        match told {
            Ok(_) => {
                self.pool.give_back(connection);
                Ok(())
            }
            Err(error) => {
                self.pool.lose();
                Err(error)
            }
        }
    }

    /// Counted before it is asked: a master that restarts in between hears of it.
    pub(crate) fn count_open(&self, ino: InodeNo, write: bool) {
        let mut opens = lock(&self.opens);
        let counts = opens.entry(ino).or_default();
        counts.all += 1;
        counts.write += u32::from(write);
        if let Some(kept) = &self.config.kept {
            kept.note_open(ino, counts.all, counts.write);
            kept::opened(ino, write);
        }
    }

    /// True if it was the last.
    pub(crate) fn uncount_open(&self, ino: InodeNo, write: bool) -> bool {
        let mut opens = lock(&self.opens);
        let Some(counts) = opens.get_mut(&ino) else { return false };
        counts.all = counts.all.saturating_sub(1);
        counts.write = counts.write.saturating_sub(u32::from(write));
        let last = counts.all == 0;
        if let Some(kept) = &self.config.kept {
            kept.note_open(ino, counts.all, counts.write);
        }
        if last {
            opens.remove(&ino);
        }
        last
    }

    pub(crate) fn is_open(&self, ino: InodeNo) -> bool {
        lock(&self.opens).contains_key(&ino)
    }

    /// What is refused from now on, because this client has ended, is no news.
    pub(crate) fn ends_itself(&self) {
        self.told_of_its_end.store(true, Ordering::Release);
    }

    /// Every later request fails.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Since when nothing was asked.
    pub(crate) fn quiet(&self) -> Duration {
        lock(&self.asked_at).elapsed()
    }

    pub(crate) fn write_opens(&self, ino: InodeNo) -> u32 {
        lock(&self.opens).get(&ino).map_or(0, |counts| counts.write)
    }
}

pub(crate) fn accepted(outcome: Outcome) -> Result<Outcome> {
    match outcome {
        Outcome::Refused(NamespaceError::OutcomeUnknown) => Err(ClientError::OutcomeUnknown),
        Outcome::Refused(error) => Err(ClientError::Refused(error)),
        other => Ok(other),
    }
}

pub(crate) fn unexpected(what: &str, reply: &MetaReply) -> ClientError {
    ClientError::Protocol { reason: format!("{what} was answered {reply:?}") }
}

#[cfg(test)]
mod tests {
    use dfs_service::conn::ClusterKey;

    use super::*;

    #[test]
    fn a_call_does_not_wait_for_ever_for_a_connection() {
        let key = ClusterKey::none();
        let link = MasterLink::new(SessionConfig::new("127.0.0.1:1", key, "test")).unwrap();
        for _ in 0..MASTER_CONNECTIONS_MAX {
            assert!(matches!(link.pool.take(Duration::ZERO), Taken::New));
        }
        let refused = link.attempt(&MetaCall::Ping, Duration::from_millis(20)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(link.pool.open(), MASTER_CONNECTIONS_MAX, "none of them was given up");
    }
}
