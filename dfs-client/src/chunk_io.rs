//! Reads of chunks from whichever replica can answer, layouts and how long they are believed, spilling.
//!
//! A read goes on until its deadline: another replica, then a fresh layout, then a pause. Bytes that no member has
//! because nobody wrote them are zeros.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer of any other kind is refused as one"
)]

mod faults;
mod records;
mod search;
mod tail;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dfs_core::client::backoff::Backoff;
use dfs_core::client::replica::read_order;
use dfs_core::command::Change;
use dfs_core::ids::{InodeNo, ServerId};
use dfs_core::namespace::{Attr, NamespaceError};
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, WireMutation};
use dfs_proto::frame_conn::{Frame, FrameClient};
use dfs_proto::meta_rpc::{ChunkLayout, FailedMember, MetaCall, MetaReply};
use dfs_service::page::Page;

use crate::budget::Budget;
use crate::error::{ClientError, Fault, Faults, Result};
use crate::jobs::{Carriers, Jobs};
use crate::local_files;
use crate::master_link::{MasterLink, unexpected};
use crate::servers::{Lane, ServerLink, Servers, reply_of};
use crate::session::{lock, random, spawn};
pub(crate) use faults::Patience;
use faults::{Reports, Troubles};
pub(crate) use search::Searched;
use tail::SilentTails;

/// Layouts are believed for so long (DECISIONS 21).
pub(crate) const LAYOUT_TTL: Duration = Duration::from_secs(5);
const LAYOUTS_MAX: usize = 16_384;
const LAYOUTS_ASKED: u32 = 32;
/// One replica's time to answer a read before another is asked; the least it has when the caller's time is over.
const READ_ATTEMPT: Duration = Duration::from_secs(2);
const READ_ATTEMPT_LEAST: Duration = Duration::from_millis(300);
const SYNC_MAX: Duration = Duration::from_secs(30);
/// Largest single read; a frame carries at most 4 MiB.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;

/// A checksum is over so much, or over a smaller chunk (DECISIONS 22).
const BLOCK_BYTES: u64 = 64 << 10;

/// Counter of the one operation on a chunk before it belongs to a file; queues begin above it.
const COUNTER_ALONE: u64 = 1;

struct CachedLayout {
    /// `None`: there is no such chunk.
    layout: Option<Arc<ChunkLayout>>,
    at: Instant,
}

/// Everything below files: servers, layouts, memory bounds.
pub(crate) struct ChunkIo {
    pub(crate) link: Arc<MasterLink>,
    pub(crate) servers: Servers,
    pub(crate) budget: Budget,
    pub(crate) readahead: Budget,
    /// Bytes given to readers that had been fetched before, and that had to be waited for.
    pub(crate) ahead_bytes: AtomicU64,
    pub(crate) asked_bytes: AtomicU64,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) carriers: Arc<Carriers>,
    layouts: Mutex<HashMap<(InodeNo, u64), CachedLayout>>,
    /// How often layouts were forgotten, by inode modulo their number; changed with `layouts` locked.
    forgotten: [AtomicU64; 64],
    troubles: Troubles,
    silent_tails: Mutex<SilentTails>,
    reports: Arc<Reports>,
    /// Above every counter used for a chunk that no queue holds any more: where the next queue starts.
    counter_floor: AtomicU64,
}

/// What one replica answered.
enum ReadAnswer {
    Bytes(Frame),
    Failed(DataFailure),
    Lost(io::Error),
}

/// Tells the server itself who else has the block: it mends it, also if it knows nobody after a restart. The master
/// hears of it from the server.
fn on_bad_block(
    reports: &Reports,
    layout: &ChunkLayout,
    server: ServerId,
    block: u32,
    connection: Option<Arc<FrameClient>>,
) {
    let Some(connection) = connection else { return };
    if !reports.is_due(layout.chunk, block, server) {
        return;
    }
    tracing::warn!(chunk = layout.chunk.0, %server, block, see = %Page::BadBlock, "bad checksum: another replica is asked");
    let repair = DataCall::Repair { layout: layout.clone(), block }.to_bytes();
    let told = spawn("report", move || {
        if let Err(error) = connection.send_one_way(&repair, &[]) {
            tracing::debug!(%error, "ask for a repair");
        }
    });
    if let Err(error) = told {
        tracing::debug!(%error, "ask for a repair");
    }
}

impl ChunkIo {
    pub(crate) fn new(link: Arc<MasterLink>) -> Result<Arc<Self>> {
        let fs = link.welcome().ok_or(ClientError::Closed)?.fs;
        let config = link.config();
        let kept = config.kept.as_ref();
        let first_counter = kept.map_or(0, |kept| kept.first_counter()).max(COUNTER_ALONE + 1);
        Ok(Arc::new(Self {
            servers: Servers::new(config.key.clone(), fs, link.client()),
            budget: Budget::new(config.write_budget_bytes),
            readahead: Budget::new(config.readahead_bytes),
            ahead_bytes: AtomicU64::new(0),
            asked_bytes: AtomicU64::new(0),
            jobs: Jobs::start()?,
            carriers: Arc::default(),
            link,
            layouts: Mutex::default(),
            forgotten: [const { AtomicU64::new(0) }; 64],
            troubles: Troubles::default(),
            silent_tails: Mutex::default(),
            reports: Arc::default(),
            counter_floor: AtomicU64::new(first_counter),
        }))
    }

    pub(crate) fn close(&self) {
        self.jobs.close();
        self.servers.close();
    }

    pub(crate) fn first_counter(&self) -> u64 {
        self.counter_floor.load(Ordering::Acquire)
    }

    /// A queue ended with `next` as its next counter.
    pub(crate) fn counters_used_below(&self, next: u64) {
        self.counter_floor.fetch_max(next, Ordering::AcqRel);
    }

    // Layouts.

    fn forgotten(&self, ino: InodeNo) -> &AtomicU64 {
        let slots = self.forgotten.len() as u64;
        &self.forgotten[usize::try_from(ino.0 % slots).unwrap_or(0)]
    }

    pub(crate) fn forget_layouts(&self, ino: InodeNo) {
        let mut layouts = lock(&self.layouts);
        self.forgotten(ino).fetch_add(1, Ordering::AcqRel);
        layouts.retain(|(of, _), _| *of != ino);
    }

    pub(crate) fn forget_layout(&self, ino: InodeNo, index: u64) {
        let mut layouts = lock(&self.layouts);
        self.forgotten(ino).fetch_add(1, Ordering::AcqRel);
        layouts.remove(&(ino, index));
    }

    /// Unless layouts were forgotten since they had been `forgotten` times: it may have been asked for before that.
    fn remember_since(
        &self,
        forgotten: u64,
        (ino, index): (InodeNo, u64),
        layout: Option<Arc<ChunkLayout>>,
    ) {
        let layouts = lock(&self.layouts);
        if self.forgotten(ino).load(Ordering::Acquire) == forgotten {
            Self::put(layouts, (ino, index), layout);
        }
    }

    fn remember(&self, ino: InodeNo, index: u64, layout: Option<Arc<ChunkLayout>>) {
        Self::put(lock(&self.layouts), (ino, index), layout);
    }

    fn put(
        mut layouts: MutexGuard<'_, HashMap<(InodeNo, u64), CachedLayout>>,
        chunk: (InodeNo, u64),
        layout: Option<Arc<ChunkLayout>>,
    ) {
        if LAYOUTS_MAX <= layouts.len() {
            layouts.retain(|_, cached| cached.at.elapsed() < LAYOUT_TTL);
            if LAYOUTS_MAX <= layouts.len() {
                layouts.clear();
            }
        }
        layouts.insert(chunk, CachedLayout { layout, at: Instant::now() });
    }

    fn cached(&self, ino: InodeNo, index: u64) -> Option<Option<Arc<ChunkLayout>>> {
        lock(&self.layouts)
            .get(&(ino, index))
            .filter(|cached| cached.at.elapsed() < LAYOUT_TTL)
            .map(|cached| cached.layout.clone())
    }

    /// Where to read chunk `index`; `None` is a hole.
    pub(crate) fn layout_to_read(
        &self,
        ino: InodeNo,
        index: u64,
        patience: &Patience,
    ) -> Result<Option<Arc<ChunkLayout>>> {
        if let Some(found) = self.cached(ino, index) {
            return Ok(found);
        }
        let forgotten = self.forgotten(ino).load(Ordering::Acquire);
        let mut asked = None;
        for layout in self.layouts_within(ino, index, LAYOUTS_ASKED, patience.left())? {
            let layout = Arc::new(layout);
            if layout.index == index {
                asked = Some(Arc::clone(&layout));
            }
            self.remember_since(forgotten, (ino, layout.index), Some(layout));
        }
        let nobody = asked
            .as_ref()
            .is_some_and(|layout| layout.members.iter().all(|member| member.address.is_empty()));
        if nobody {
            // Waits until the master knows an address, or says why there is none.
            let call = MetaCall::Layout { ino, index, write: false, spill: false, failed: None };
            let left = self.troubles.left((ino, index), patience);
            asked = match self.link.call_waiting(&call, left) {
                Ok(MetaReply::Layout(layout)) => Some(Arc::new(layout)),
                Ok(MetaReply::Hole) => None,
                Ok(other) => return Err(unexpected("layout", &other)),
                Err(ClientError::ChunkUnavailable { reason, .. }) => {
                    let waited = self.troubles.met((ino, index), &Faults::default(), patience);
                    return Err(ClientError::ChunkUnavailable { reason, waited });
                }
                Err(error) => return Err(error),
            };
        }
        self.remember_since(forgotten, (ino, index), asked.clone());
        Ok(asked)
    }

    /// Layouts of existing chunks from `first` on.
    pub(crate) fn layouts(&self, ino: InodeNo, first: u64, max: u32) -> Result<Vec<ChunkLayout>> {
        self.layouts_within(ino, first, max, self.link.wait())
    }

    fn layouts_within(
        &self,
        ino: InodeNo,
        first: u64,
        max: u32,
        wait: Duration,
    ) -> Result<Vec<ChunkLayout>> {
        match self.link.call_waiting(&MetaCall::Layouts { ino, first, max }, wait)? {
            MetaReply::Layouts(layouts) => Ok(layouts),
            MetaReply::Hole => Ok(Vec::new()),
            other => Err(unexpected("layouts", &other)),
        }
    }

    /// Where to write chunk `index`, made if it is not there, and the inode's counter of truncations. Inline content is
    /// moved into a chunk first.
    pub(crate) fn layout_to_write(
        &self,
        ino: InodeNo,
        index: u64,
        failed: Option<FailedMember>,
    ) -> Result<(Arc<ChunkLayout>, u64)> {
        loop {
            let call = MetaCall::Layout { ino, index, write: true, spill: false, failed };
            match self.link.call(&call) {
                Ok(MetaReply::WriteLayout { layout, cuts }) => {
                    let layout = Arc::new(layout);
                    self.remember(ino, index, Some(Arc::clone(&layout)));
                    return Ok((layout, cuts));
                }
                Ok(other) => return Err(unexpected("layout", &other)),
                Err(ClientError::Refused(NamespaceError::LayoutChanged)) => self.spill(ino)?,
                // The master was asked for one chunk, and says of its members only.
                Err(ClientError::ChunkUnavailable { reason, waited }) => {
                    let reason = format!("chunk {index} of inode {}: {reason}", ino.0);
                    return Err(ClientError::ChunkUnavailable { reason, waited });
                }
                Err(error) => return Err(error),
            }
        }
    }

    // Reads.

    fn order(&self, layout: &ChunkLayout, offset: u64) -> Vec<Arc<ServerLink>> {
        let links: Vec<Arc<ServerLink>> = layout
            .members
            .iter()
            .map(|member| self.servers.link(member.member.server, &member.address))
            .collect();
        let views = links.iter().enumerate().map(|(place, link)| link.view(place)).collect();
        let range = layout.chunk.0.wrapping_add(offset / PIECE_BYTES);
        read_order(views, range).into_iter().map(|place| Arc::clone(&links[place])).collect()
    }

    fn ask(&self, link: &ServerLink, call: &DataCall, deadline: Duration) -> ReadAnswer {
        let began = link.read_began();
        let reply = self.servers.call(link, &call.to_bytes(), deadline);
        link.read_ended(began, reply.is_ok());
        answer_of(reply)
    }

    /// Reads `out.len()` bytes at `offset` within chunk `index`; holes and what is beyond the replica's end are zeros.
    /// Answers whether there was none of these.
    pub(crate) fn read_chunk(
        &self,
        ino: InodeNo,
        index: u64,
        offset: u64,
        out: &mut [u8],
        patience: &Patience,
    ) -> Result<bool> {
        let mut whole = true;
        for (piece, part) in
            out.chunks_mut(usize::try_from(PIECE_BYTES).unwrap_or(1 << 20)).enumerate()
        {
            let offset = offset + piece as u64 * PIECE_BYTES;
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let read = |layout: &ChunkLayout| read_of(layout, (offset, len));
            match self.ask_replicas(ino, index, (offset, len), &read, patience)? {
                Some(frame) => {
                    whole &= part.len() <= frame.payload.len();
                    fill(part, &frame.payload);
                }
                None => {
                    whole = false;
                    part.fill(0);
                }
            }
        }
        Ok(whole)
    }

    /// What any replica answers to `call` about one piece, until the caller's patience is over, or was for another read
    /// of the same place. `None`: a hole.
    fn ask_replicas(
        &self,
        ino: InodeNo,
        index: u64,
        (offset, len): (u64, u32),
        call: &dyn Fn(&ChunkLayout) -> DataCall,
        patience: &Patience,
    ) -> Result<Option<Frame>> {
        let mut backoff = Backoff::default();
        let mut asked_anew = false;
        loop {
            let Some(layout) = self.layout_to_read(ino, index, patience)? else { return Ok(None) };
            let mut faults = Faults::default();
            // Bytes written a moment ago: members serve them when their primary said that all have them.
            let (mut wants_primary, mut primary_is_away) = (false, false);
            for link in self.order(&layout, offset) {
                let deadline = READ_ATTEMPT.min(patience.left()).max(READ_ATTEMPT_LEAST);
                let fault = match self.ask(&link, &call(&layout), deadline) {
                    ReadAnswer::Bytes(frame) => {
                        let block = BLOCK_BYTES.min(layout.chunk_size.max(1));
                        let last = (offset + u64::from(len).max(1) - 1) / block;
                        self.troubles.over((ino, index), (offset / block, last));
                        return Ok(Some(frame));
                    }
                    // A member of the present configuration would have the file after the first acknowledged
                    // operation; one of an older configuration may have lost it with its membership.
                    ReadAnswer::Failed(DataFailure::NoReplica) if !layout.born && asked_anew => {
                        return Ok(None);
                    }
                    ReadAnswer::Failed(
                        DataFailure::StaleVersion { .. } | DataFailure::StaleEpoch { .. },
                    ) if !asked_anew => break,
                    ReadAnswer::Failed(failure) => {
                        wants_primary |= failure == DataFailure::NotPrimary;
                        if let DataFailure::BadBlock { block } = failure {
                            let connection = self.servers.connection(&link, Lane::Read).ok();
                            on_bad_block(&self.reports, &layout, link.server(), block, connection);
                        }
                        fault_of(failure)
                    }
                    ReadAnswer::Lost(error) => {
                        link.failed();
                        primary_is_away |= link.server() == layout.primary;
                        Fault::Away { reason: error.to_string() }
                    }
                };
                tracing::debug!(
                    chunk = layout.chunk.0, server = %link.server(), ?fault, "read from another replica"
                );
                faults.0.push((link.server(), fault));
            }
            self.forget_layout(ino, index);
            if !std::mem::replace(&mut asked_anew, true) {
                continue;
            }
            let waited = self.troubles.met((ino, index), &faults, patience);
            if self.link.config().server_wait <= waited || patience.left().is_zero() {
                return Err(ClientError::NoCurrentReplica {
                    chunk: layout.chunk,
                    wanted: layout.version,
                    faults,
                    waited,
                });
            }
            if self.link.is_closed() {
                return Err(ClientError::Closed);
            }
            if wants_primary && primary_is_away {
                self.ask_to_go_on_without(ino, &layout, patience);
            }
            std::thread::sleep(Duration::from_millis(backoff.next_ms(random())));
        }
    }

    /// Members that are there could serve the chunk if another of them led it: nobody may be writing it, so that only a
    /// reader can say so before its primary is dead.
    fn ask_to_go_on_without(&self, ino: InodeNo, layout: &ChunkLayout, patience: &Patience) {
        let (version, server) = (layout.version, layout.primary);
        let failed = Some(FailedMember { version, server, full: false });
        let call =
            MetaCall::Layout { ino, index: layout.index, write: false, spill: false, failed };
        if let Err(error) = self.link.call_waiting(&call, patience.left()) {
            tracing::debug!(chunk = layout.chunk.0, %error, "ask to go on without {server}");
        }
    }

    /// Begins one attempt to read; `on_done` gets the payload on another thread, or `None`: read it again, patiently.
    /// False: not begun.
    pub(crate) fn start_read(
        &self,
        layout: &Arc<ChunkLayout>,
        offset: u64,
        len: u32,
        on_done: Box<dyn FnOnce(Option<Vec<u8>>) + Send>,
    ) -> bool {
        let Some(link) = self.order(layout, offset).into_iter().next() else { return false };
        let Ok(connection) = self.servers.connection(&link, Lane::Read) else { return false };
        if let Some(file) = self.servers.local_file(&link, layout, offset, len) {
            return start_local(&link, &connection, layout, file, (offset, len), on_done);
        }
        let call = read_of(layout, (offset, len)).to_bytes();
        let began = link.read_began();
        let of_reply = Arc::clone(&link);
        let (reports, layout) = (Arc::clone(&self.reports), Arc::clone(layout));
        let asked = Arc::downgrade(&connection);
        let started = connection.start(
            &call,
            &[],
            None,
            Box::new(move |reply| {
                of_reply.read_ended(began, reply.is_ok());
                on_done(match answer_of(reply) {
                    ReadAnswer::Bytes(frame) => Some(frame.payload),
                    ReadAnswer::Failed(DataFailure::BadBlock { block }) => {
                        let server = of_reply.server();
                        on_bad_block(&reports, &layout, server, block, asked.upgrade());
                        None
                    }
                    ReadAnswer::Failed(_) | ReadAnswer::Lost(_) => None,
                });
            }),
        );
        if started.is_err() {
            link.read_ended(began, false);
        }
        started.is_ok()
    }

    // One operation on a chunk that nobody else knows of yet.

    /// Moves inline content into a chunk (DECISIONS 10), whatever it is when the master takes it.
    pub(crate) fn spill(&self, ino: InodeNo) -> Result<()> {
        let (began, wait) = (Instant::now(), self.link.wait());
        let mut backoff = Backoff::default();
        loop {
            let (attr, content) = self.link.read_inline(ino)?;
            let Some(content) = content.filter(|_| attr.inline) else { return Ok(()) };
            let spilled = if content.is_empty() {
                self.link.change(Change::BeginWrite { ino }).map(|_| ())
            } else {
                self.spill_content(&attr, &content)
            };
            match spilled {
                Ok(()) => {
                    self.forget_layouts(ino);
                    return Ok(());
                }
                Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {}
                Err(error @ ClientError::ChunkUnavailable { .. }) if began.elapsed() < wait => {
                    tracing::debug!(ino = ino.0, %error, "spill again");
                    std::thread::sleep(Duration::from_millis(backoff.next_ms(random())));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn spill_content(&self, attr: &Attr, content: &[u8]) -> Result<()> {
        let ino = attr.ino;
        let mut full: Vec<FailedMember> = Vec::new();
        loop {
            let failed = full.last().copied();
            let call = MetaCall::Layout { ino, index: 0, write: true, spill: true, failed };
            let layout = match self.link.call(&call)? {
                MetaReply::WriteLayout { layout, .. } => layout,
                other => return Err(unexpected("layout to spill", &other)),
            };
            let (version, chunk) = (layout.version, layout.chunk);
            let spilled = match self.store_alone(&layout, content) {
                Ok(None) => {
                    let change = Change::Spill { ino, change_seen: attr.change, chunk };
                    self.link.change(change).map(|_| None)
                }
                Ok(Some(server)) if full.iter().any(|known| known.server == server) => {
                    Err(ClientError::NoSpace { reason: format!("{server} is full") })
                }
                stored => stored,
            };
            if let Ok(None) = spilled {
                return Ok(());
            }
            // The master takes such chunks back itself in the end.
            if let Err(error) = self.link.change(Change::DropChunk { chunk }) {
                tracing::debug!(chunk = chunk.0, %error, "chunk of a refused spill stays behind");
            }
            if let Some(server) = spilled? {
                full.push(FailedMember { version, server, full: true });
            }
        }
    }

    /// A server: it has no room, and nothing was stored.
    fn store_alone(&self, layout: &ChunkLayout, content: &[u8]) -> Result<Option<ServerId>> {
        let unavailable =
            |reason: String| ClientError::ChunkUnavailable { reason, waited: Duration::ZERO };
        let link = self.primary_link(layout).map_err(|error| unavailable(error.to_string()))?;
        let connection = self
            .servers
            .connection(&link, Lane::Write)
            .map_err(|error| unavailable(format!("{}: {error}", link.server())))?;
        // The chunk is new, and this its first operation.
        let counter = COUNTER_ALONE;
        let write = DataCall::Mutate {
            layout: layout.clone(),
            client: self.link.client(),
            counter,
            low_water: counter,
            mutation: WireMutation::Write { offset: 0 },
        };
        for (call, payload) in
            [(write, content), (DataCall::Sync { layout: layout.clone() }, &[][..])]
        {
            let reply = connection
                .call(&call.to_bytes(), &[payload], SYNC_MAX)
                .and_then(|frame| reply_of(&frame))
                .map_err(|error| unavailable(format!("{}: {error}", link.server())))?;
            match reply {
                DataReply::Mutated { .. } | DataReply::Synced { .. } => {}
                DataReply::Failed(DataFailure::NoSpace { server }) => return Ok(Some(server)),
                DataReply::Failed(failure) => {
                    return Err(unavailable(format!("{}: {failure}", link.server())));
                }
                other => {
                    return Err(ClientError::Protocol {
                        reason: format!("write was answered {other:?}"),
                    });
                }
            }
        }
        Ok(None)
    }

    pub(crate) fn primary_link(&self, layout: &ChunkLayout) -> io::Result<Arc<ServerLink>> {
        layout
            .members
            .iter()
            .find(|member| member.member.server == layout.primary)
            .map(|member| self.servers.link(member.member.server, &member.address))
            .ok_or_else(|| io::Error::other("the layout has no primary"))
    }
}

/// As [`ChunkIo::start_read`], from the file itself: the server is asked for the checksums only.
fn start_local(
    link: &Arc<ServerLink>,
    connection: &FrameClient,
    layout: &Arc<ChunkLayout>,
    file: Arc<File>,
    (offset, len): (u64, u32),
    on_done: Box<dyn FnOnce(Option<Vec<u8>>) + Send>,
) -> bool {
    let (chunk, version) = (layout.chunk, layout.version);
    let call = DataCall::ReadSums { chunk, version, offset, len }.to_bytes();
    let layout = Arc::clone(layout);
    let began = link.read_began();
    let of_reply = Arc::clone(link);
    let started = connection.start(
        &call,
        &[],
        None,
        Box::new(move |reply| {
            let worked = reply.is_ok();
            let bytes = reply.ok().and_then(|frame| match reply_of(&frame) {
                Ok(DataReply::ReadSums { replica_len, in_file: true }) => {
                    let sums = &frame.payload;
                    local_files::read(sums, replica_len, &file, &layout, (offset, len))
                }
                _ => None,
            });
            if bytes.is_none() {
                of_reply.local.forget(chunk);
            }
            of_reply.read_ended(began, worked);
            on_done(bytes);
        }),
    );
    if started.is_err() {
        link.read_ended(began, false);
    }
    started.is_ok()
}

fn read_of(layout: &ChunkLayout, (offset, len): (u64, u32)) -> DataCall {
    DataCall::Read { chunk: layout.chunk, version: layout.version, offset, len }
}

fn answer_of(reply: io::Result<Frame>) -> ReadAnswer {
    match reply {
        Ok(frame) => match reply_of(&frame) {
            Ok(DataReply::Read { .. } | DataReply::Search { .. } | DataReply::Records { .. }) => {
                ReadAnswer::Bytes(frame)
            }
            Ok(DataReply::Failed(failure)) => ReadAnswer::Failed(failure),
            Ok(other) => ReadAnswer::Lost(io::Error::other(format!("read was answered {other:?}"))),
            Err(error) => ReadAnswer::Lost(error),
        },
        Err(error) => ReadAnswer::Lost(error),
    }
}

fn fault_of(failure: DataFailure) -> Fault {
    match failure {
        DataFailure::BadBlock { block } => Fault::Damaged { block },
        DataFailure::NoReplica | DataFailure::NotCurrent | DataFailure::StaleVersion { .. } => {
            Fault::NotCurrent
        }
        DataFailure::Fenced { reason } => Fault::Away { reason },
        other => Fault::Failed { reason: other.to_string() },
    }
}

/// Copies `bytes` to the start of `out`, zeros behind them.
pub(crate) fn fill(out: &mut [u8], bytes: &[u8]) {
    let have = bytes.len().min(out.len());
    out[..have].copy_from_slice(&bytes[..have]);
    out[have..].fill(0);
}
