//! One client of the master: requests with ids, retried until answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::command::{Change, Lock, LockKind, Outcome};
use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::namespace::{Attr, NamespaceError};
use dfs_core::time::WallTime;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, Peer};
use dfs_proto::frame_conn::{FrameClient, LoneClient};
use dfs_proto::meta_rpc::{
    EntryPlus, MetaCall, MetaFailure, MetaReply, MetaRequest, StatfsReply, Welcome,
};
use dfs_service::clock;
use dfs_service::conn::{ClusterKey, Door, dial};

use crate::error::ClientError;
use crate::file::FileState;

#[derive(Clone, Debug)]
pub struct SessionConfig {
    pub master: String,
    pub key: ClusterKey,
    pub name: String,
    pub server_wait: Duration,
    pub io_deadline: Duration,
    pub write_budget_bytes: u64,
    pub readahead_bytes: u64,
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
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    pub ino: InodeNo,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: Option<LockKind>,
    pub pid: u32,
}

#[derive(Debug, Default)]
struct Ops {
    next: u64,
    outstanding: BTreeSet<u64>,
}

pub struct Session {
    pub(crate) config: SessionConfig,
    client: ClientId,
    welcome: Mutex<Option<Welcome>>,
    pool: Mutex<Vec<LoneClient>>,
    ops: Mutex<Ops>,
    opens: Mutex<BTreeMap<InodeNo, u32>>,
    pub(crate) files: Mutex<HashMap<InodeNo, Arc<FileState>>>,
    chunkservers: Mutex<HashMap<String, Arc<FrameClient>>>,
    clock_offset: AtomicI64,
    closed: AtomicBool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("client", &self.client).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub fn connect(config: SessionConfig) -> Result<Arc<Self>, ClientError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| ClientError::Protocol { reason: e.to_string() })?;
        let session = Arc::new(Self {
            config,
            client: ClientId(u128::from_ne_bytes(id)),
            welcome: Mutex::new(None),
            pool: Mutex::default(),
            ops: Mutex::new(Ops { next: 1, outstanding: BTreeSet::new() }),
            opens: Mutex::default(),
            files: Mutex::default(),
            chunkservers: Mutex::default(),
            clock_offset: AtomicI64::new(0),
            closed: AtomicBool::new(false),
        });
        session.call(MetaCall::Ping)?;
        let weak = Arc::downgrade(&session);
        let spawned = std::thread::Builder::new().name("ping".to_owned()).spawn(move || {
            let mut ticks = 0_u32;
            while let Some(session) = weak.upgrade() {
                if session.closed.load(Ordering::Relaxed) {
                    return;
                }
                if ticks % 20 == 19 {
                    let _answer = session.call(MetaCall::Ping);
                }
                drop(session);
                ticks += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        spawned.map_err(|e| ClientError::Protocol { reason: e.to_string() })?;
        Ok(session)
    }

    pub fn client(&self) -> ClientId {
        self.client
    }
    pub fn welcome(&self) -> Option<Welcome> {
        lock(&self.welcome).clone()
    }
    pub fn wall_now(&self) -> WallTime {
        WallTime(clock::wall_nanos() + self.clock_offset.load(Ordering::Relaxed))
    }

    fn fresh(&self) -> std::io::Result<LoneClient> {
        let stream =
            dial(&self.config.master, &self.config.key, Door::Frames, Duration::from_secs(2))?;
        let mut conn = LoneClient::new(stream);
        let hello = MetaCall::Hello { name: self.config.name.clone() };
        let request = MetaRequest { client: self.client, low_water: self.low_water(), call: hello };
        let frame = conn.call(&request.to_bytes(), &[], Duration::from_secs(5))?;
        match MetaReply::from_bytes(&frame.args) {
            Ok(MetaReply::Welcome(welcome)) => {
                self.clock_offset.store(welcome.now.0 - clock::wall_nanos(), Ordering::Relaxed);
                let before = lock(&self.welcome).replace(welcome.clone());
                if before.is_some_and(|before| before.nonce != welcome.nonce) {
                    let opens =
                        lock(&self.opens).iter().map(|(ino, count)| (*ino, *count)).collect();
                    let request = MetaRequest {
                        client: self.client,
                        low_water: 0,
                        call: MetaCall::Reopen { opens },
                    };
                    conn.call(&request.to_bytes(), &[], Duration::from_secs(5))?;
                }
                Ok(conn)
            }
            other => Err(std::io::Error::other(format!("{other:?}"))),
        }
    }

    fn low_water(&self) -> u64 {
        let ops = lock(&self.ops);
        ops.outstanding.first().copied().unwrap_or(ops.next)
    }

    pub(crate) fn call(&self, call: MetaCall) -> Result<MetaReply, ClientError> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(20);
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return Err(ClientError::Closed);
            }
            let request = MetaRequest {
                client: self.client,
                low_water: self.low_water(),
                call: call.clone(),
            };
            let pooled = lock(&self.pool).pop();
            let conn = match pooled {
                Some(conn) => Ok(conn),
                None => self.fresh(),
            };
            let answer = conn.and_then(|mut conn| {
                let frame = conn.call(&request.to_bytes(), &[], Duration::from_secs(30))?;
                let mut pool = lock(&self.pool);
                if pool.len() < 64 {
                    pool.push(conn);
                }
                Ok(frame)
            });
            let reason = match answer {
                Err(error) => error.to_string(),
                Ok(frame) => match MetaReply::from_bytes(&frame.args) {
                    Err(error) => return Err(ClientError::Protocol { reason: error.to_string() }),
                    Ok(MetaReply::Failed(failure)) => match failure {
                        MetaFailure::Refused(error) => return Err(error.into()),
                        MetaFailure::NoSpace { reason } => {
                            return Err(ClientError::NoSpace { reason });
                        }
                        MetaFailure::BadRequest { reason } => {
                            return Err(ClientError::Protocol { reason });
                        }
                        MetaFailure::Warming { .. }
                        | MetaFailure::Unavailable { .. }
                        | MetaFailure::Busy { .. } => failure.to_string(),
                    },
                    Ok(reply) => return Ok(reply),
                },
            };
            if self.config.server_wait < start.elapsed() {
                tracing::warn!(reason, "given up");
                return Err(ClientError::MasterSilent { waited: start.elapsed() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    pub(crate) fn with_op<T>(&self, f: impl FnOnce(u64) -> T) -> T {
        let op = {
            let mut ops = lock(&self.ops);
            let op = ops.next;
            ops.next += 1;
            ops.outstanding.insert(op);
            op
        };
        let result = f(op);
        lock(&self.ops).outstanding.remove(&op);
        result
    }

    pub fn change(&self, change: Change) -> Result<Outcome, ClientError> {
        let reply = self.with_op(|op| self.call(MetaCall::Change { op, part: 0, change }))?;
        match reply {
            MetaReply::Outcome(Outcome::Refused(error)) => Err(error.into()),
            MetaReply::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    pub fn lookup(&self, parent: InodeNo, name: &[u8]) -> Result<Attr, ClientError> {
        match self.call(MetaCall::Lookup { parent, name: name.to_vec() })? {
            MetaReply::Attr(attr) => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }
    pub fn getattr(&self, ino: InodeNo) -> Result<Attr, ClientError> {
        match self.call(MetaCall::GetAttr { ino })? {
            MetaReply::Attr(attr) => Ok(self.overlay(attr)),
            other => Err(unexpected(&other)),
        }
    }
    pub fn readdir(
        &self,
        ino: InodeNo,
        after_cookie: u64,
        max_entries: u32,
        plus: bool,
    ) -> Result<(Vec<EntryPlus>, bool), ClientError> {
        match self.call(MetaCall::ReadDir { ino, after_cookie, max_entries, plus })? {
            MetaReply::Entries { entries, end } => Ok((entries, end)),
            other => Err(unexpected(&other)),
        }
    }
    pub fn readlink(&self, ino: InodeNo) -> Result<Vec<u8>, ClientError> {
        match self.call(MetaCall::ReadLink { ino })? {
            MetaReply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
    pub fn getxattr(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>, ClientError> {
        match self.call(MetaCall::GetXattr { ino, name: name.to_vec() })? {
            MetaReply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
    pub fn listxattrs(&self, ino: InodeNo) -> Result<Vec<Vec<u8>>, ClientError> {
        match self.call(MetaCall::ListXattrs { ino })? {
            MetaReply::Names(names) => Ok(names.into_iter().map(|name| name.0).collect()),
            other => Err(unexpected(&other)),
        }
    }
    pub fn statfs(&self) -> Result<StatfsReply, ClientError> {
        match self.call(MetaCall::Statfs)? {
            MetaReply::Statfs(statfs) => Ok(statfs),
            other => Err(unexpected(&other)),
        }
    }
    pub fn open(self: &Arc<Self>, ino: InodeNo, write: bool) -> Result<Attr, ClientError> {
        match self.call(MetaCall::Open { ino, write })? {
            MetaReply::Opened { attr, .. } => {
                *lock(&self.opens).entry(ino).or_default() += 1;
                Ok(self.overlay(attr))
            }
            other => Err(unexpected(&other)),
        }
    }
    pub fn release(&self, ino: InodeNo, write: bool) {
        {
            let mut opens = lock(&self.opens);
            if let Some(count) = opens.get_mut(&ino) {
                *count -= 1;
                if *count == 0 {
                    opens.remove(&ino);
                }
            }
        }
        let _answer = self.call(MetaCall::Release { ino, write });
    }
    pub fn set_lock(
        &self,
        request: LockRequest,
        wait: Option<Duration>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), ClientError> {
        let LockRequest { ino, owner, start, end, kind, pid } = request;
        let begun = Instant::now();
        loop {
            let wait_ms = if wait.is_some() { 200 } else { 0 };
            let call = |op| MetaCall::SetLock { op, ino, owner, start, end, kind, pid, wait_ms };
            match self.with_op(|op| self.call(call(op)))? {
                MetaReply::Outcome(Outcome::Refused(NamespaceError::Locked)) => match wait {
                    None => return Err(NamespaceError::Locked.into()),
                    Some(limit) if limit < begun.elapsed() || cancelled() => {
                        return Err(ClientError::Interrupted);
                    }
                    Some(_) => {}
                },
                MetaReply::Outcome(Outcome::Refused(error)) => return Err(error.into()),
                MetaReply::Outcome(_) => return Ok(()),
                other => return Err(unexpected(&other)),
            }
        }
    }
    pub fn test_lock(
        &self,
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: LockKind,
    ) -> Result<Option<Lock>, ClientError> {
        match self.call(MetaCall::TestLock { ino, owner, start, end, kind })? {
            MetaReply::Conflict(lock) => Ok(lock),
            other => Err(unexpected(&other)),
        }
    }
    pub fn overlay(&self, attr: Attr) -> Attr {
        let file = lock(&self.files).get(&attr.ino).cloned();
        match file {
            Some(file) => file.overlay(attr),
            None => attr,
        }
    }
    pub fn file(self: &Arc<Self>, ino: InodeNo) -> Arc<FileState> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&ino) {
            return Arc::clone(file);
        }
        let file = Arc::new(FileState::new(Arc::clone(self), ino));
        files.insert(ino, Arc::clone(&file));
        file
    }
    pub fn file_created(self: &Arc<Self>, attr: &Attr) -> Arc<FileState> {
        *lock(&self.opens).entry(attr.ino).or_default() += 0;
        self.file(attr.ino)
    }
    pub fn sync_all(&self) -> Result<(), ClientError> {
        let files: Vec<_> = lock(&self.files).values().cloned().collect();
        files.iter().try_for_each(|file| file.fsync())
    }
    pub fn close(&self) {
        let _synced = self.sync_all();
        let _answer = self.call(MetaCall::Goodbye);
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn chunkserver(&self, address: &str) -> std::io::Result<Arc<FrameClient>> {
        if let Some(conn) = lock(&self.chunkservers).get(address).filter(|conn| !conn.is_closed()) {
            return Ok(Arc::clone(conn));
        }
        let stream = dial(address, &self.config.key, Door::Frames, Duration::from_secs(2))?;
        let conn = FrameClient::new(stream)?;
        let fs = lock(&self.welcome).as_ref().map(|welcome| welcome.fs).unwrap_or_default();
        let hello = DataCall::Hello { fs, from: Peer::Client(self.client) };
        conn.call(&hello.to_bytes(), &[], Duration::from_secs(5))?;
        lock(&self.chunkservers).insert(address.to_owned(), Arc::clone(&conn));
        Ok(conn)
    }
}

pub(crate) fn unexpected(reply: &MetaReply) -> ClientError {
    ClientError::Protocol { reason: format!("unexpected reply {reply:?}") }
}
