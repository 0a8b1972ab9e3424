//! Answers layouts, and asks servers what they hold of a chunk.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a request has one kind of answer, every other one is an error by itself"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_core::chunk::{Chunk, Member};
use dfs_core::cluster::overlay::Room;
use dfs_core::cluster::{Liveness, room_for_new_chunk};
use dfs_core::command::{Change, Outcome};
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, InodeNo, ServerId};
use dfs_core::meta::{Key, MetaStore, Record};
use dfs_core::namespace::{Body, FileKind, Inode, NamespaceError};
use dfs_proto::control::chunk_control_client::ChunkControlClient;
use dfs_proto::control::metadata_copies_client::MetadataCopiesClient;
use dfs_proto::control::{ReplicaReport, ReportRequest};
use dfs_proto::meta_rpc::{ChunkLayout, FailedMember, MemberAddress, MetaFailure, MetaReply};
use dfs_service::conn;
use tonic::transport::Channel;

use crate::reconfigure::PROMISE_MAX;
use crate::state::{Master, accepted, lock, now};

/// How long a request for a layout to write waits here before it is told to ask again.
const LAYOUT_WAIT: Duration = Duration::from_millis(450);
/// A write layout given out longer ago is no longer used: clients refetch after 5 s.
pub const WRITE_LAYOUT_MS: u64 = 10_000;
/// As long as a client waits for servers by default.
const ABOUT_TO_BE_BACK_MS: u64 = 60_000;

/// Which chunk of which file, and what for.
#[derive(Clone, Copy, Debug)]
pub struct LayoutRequest {
    pub client: ClientId,
    pub ino: InodeNo,
    pub index: u64,
    pub write: bool,
    pub spill: bool,
    pub failed: Option<FailedMember>,
}

impl Master {
    pub fn inode(&self, ino: InodeNo) -> Result<Inode, MetaFailure> {
        match self.reader().get(&Key::Inode(ino)) {
            Some(Record::Inode(inode)) => Ok(inode),
            _ => Err(MetaFailure::Refused(NamespaceError::Stale)),
        }
    }

    #[must_use]
    pub fn chunk(&self, chunk: ChunkId) -> Option<Chunk> {
        match self.reader().get(&Key::Chunk(chunk)) {
            Some(Record::Chunk(record)) => Some(record),
            _ => None,
        }
    }

    #[must_use]
    pub fn file_chunk(&self, ino: InodeNo, index: u64) -> Option<ChunkId> {
        match self.reader().get(&Key::FileChunk(ino, index)) {
            Some(Record::FileChunk(chunk)) => Some(chunk),
            _ => None,
        }
    }

    /// The layout as members can be reached now.
    #[must_use]
    pub fn layout_of(&self, chunk: ChunkId, record: &Chunk) -> ChunkLayout {
        let cluster = lock(&self.cluster);
        let now = now();
        let members: Vec<MemberAddress> = record
            .active
            .members
            .iter()
            .map(|member| MemberAddress {
                member: *member,
                address: cluster.address(now, member).unwrap_or_default().to_owned(),
            })
            .collect();
        ChunkLayout {
            chunk,
            ino: record.ino,
            index: record.index,
            chunk_size: record.chunk_size,
            version: record.active.version,
            writable: self.min_replicas as usize <= members.len(),
            members,
            primary: record.active.primary,
            epoch: self.epoch,
            born: record.born,
            sealed: record.sealed,
        }
    }

    /// Answers a request for one chunk's layout.
    ///
    /// # Errors
    /// `Warming`, `Unavailable`, `NoSpace`: come back; `Refused` otherwise.
    pub fn layout(&self, request: &LayoutRequest) -> Result<MetaReply, MetaFailure> {
        if !request.write {
            return self.layout_to_read(request);
        }
        let found = self.layout_to_write(request);
        let place = (request.ino, request.index);
        let mut waits = lock(&self.waits);
        match &found {
            Err(MetaFailure::Unavailable { reason, .. }) => waits.note(now(), place, reason),
            Err(MetaFailure::Busy { .. } | MetaFailure::Warming { .. }) => {}
            Ok(_) | Err(_) => waits.over(place),
        }
        drop(waits);
        found
    }

    fn layout_to_read(&self, request: &LayoutRequest) -> Result<MetaReply, MetaFailure> {
        let Some(chunk) = self.file_chunk(request.ino, request.index) else {
            return Ok(MetaReply::Hole);
        };
        let Some(mut record) = self.chunk(chunk) else { return Ok(MetaReply::Hole) };
        if let Some(failed) = request.failed
            && self.is_missed(&record, &failed)
        {
            if let Err(reason) = self.reconfigure(chunk, None) {
                tracing::info!(chunk = chunk.0, reason, "no next configuration yet");
            }
            let Some(now) = self.chunk(chunk) else { return Ok(MetaReply::Hole) };
            record = now;
        }
        let layout = self.layout_of(chunk, &record);
        if layout.members.iter().all(|member| member.address.is_empty()) {
            return Err(self.nobody(&record));
        }
        Ok(MetaReply::Layout(layout))
    }

    /// Whether a reader's word that it misses this member is ours, too: then the others go on without it, as they do for
    /// a writer. A reader alone decides nothing.
    fn is_missed(&self, record: &Chunk, failed: &FailedMember) -> bool {
        let is_up = |member: &Member| lock(&self.cluster).is_up(now(), member);
        let named = record.active.members.iter().find(|it| it.server == failed.server);
        failed.version == record.active.version
            && !(self.is_warming() && self.any_member_unheard(record))
            && named.is_some_and(|member| !is_up(member))
    }

    fn nobody(&self, record: &Chunk) -> MetaFailure {
        if self.is_warming() {
            return MetaFailure::Warming { retry_after_ms: 100 };
        }
        let names: Vec<String> =
            record.active.members.iter().map(|member| member.server.to_string()).collect();
        MetaFailure::Unavailable {
            reason: format!(
                "no member of chunk {} of inode {} can be reached; its members are {}",
                record.index,
                record.ino.0,
                names.join(", ")
            ),
            retry_after_ms: 250,
        }
    }

    fn layout_to_write(&self, request: &LayoutRequest) -> Result<MetaReply, MetaFailure> {
        let deadline = Instant::now() + LAYOUT_WAIT;
        let mut failed = request.failed;
        let mut spilled = None;
        if let Some(FailedMember { server, full: true, .. }) = failed {
            self.on_full(server);
        }
        loop {
            let seen = self.changed.count();
            let chunk = match spilled {
                Some(chunk) => chunk,
                None => self.writable_chunk(request)?,
            };
            if request.spill {
                spilled = Some(chunk);
            }
            let Some(record) = self.chunk(chunk) else {
                return Err(MetaFailure::Refused(NamespaceError::LayoutChanged));
            };
            let reported = failed.take().filter(|it| it.version == record.active.version);
            // A chunk that is to be spilled to was made without it.
            if let Some(FailedMember { server, full: true, .. }) = reported
                && !request.spill
            {
                self.replace_full(chunk, &record, server)?;
                continue;
            }
            let reported = reported.is_some_and(|it| !it.full);
            let all_up = {
                let cluster = lock(&self.cluster);
                record.active.members.iter().all(|member| cluster.is_up(now(), member))
            };
            if record.preparing.is_none() && all_up && !reported {
                self.note_write_layout(chunk, request.client);
                // Noted before it is asked: a truncation that begins now sees the one, or is seen here.
                // One that is over has freed the chunk, perhaps, that was found before.
                if self.may_be_cut(request.ino, request.index, record.chunk_size)
                    || !(request.spill
                        || self.file_chunk(request.ino, request.index) == Some(chunk))
                {
                    return Err(MetaFailure::Busy { retry_after_ms: 2 });
                }
                // Asked last: one that begins from now on makes this layout void before it counts.
                let cuts = self.inode(request.ino)?.cuts;
                let layout = self.layout_of(chunk, &record);
                return Ok(MetaReply::WriteLayout { layout, cuts });
            }
            if self.is_warming() && self.any_member_unheard(&record) {
                return Err(MetaFailure::Warming { retry_after_ms: 100 });
            }
            match self.reconfigure(chunk, None) {
                Ok(()) => {}
                Err(reason) if deadline < Instant::now() => {
                    return Err(MetaFailure::Unavailable { reason, retry_after_ms: 50 });
                }
                Err(_) => self.changed.wait(seen, Duration::from_millis(100)),
            }
        }
    }

    /// Chunkservers say that these versions cannot go on: the next ones are prepared, without waiting for a client.
    pub fn on_member_failures(self: &Arc<Self>, failures: Vec<(ChunkId, ChunkVersion)>) {
        let master = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("failures".to_owned()).spawn(move || {
            for (chunk, version) in failures {
                let Some(record) = master.chunk(chunk) else { continue };
                // While warming an absent member may only be late; who needs the chunk says so again.
                let early = master.is_warming() && master.any_member_unheard(&record);
                if record.active.version != version || early {
                    continue;
                }
                if let Err(reason) = master.reconfigure(chunk, None) {
                    tracing::info!(chunk = chunk.0, reason, "no next configuration yet");
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for reported failures");
        }
    }

    /// A member whose server has not reported since this master started.
    fn any_member_unheard(&self, record: &Chunk) -> bool {
        let cluster = lock(&self.cluster);
        record.active.members.iter().any(|member| cluster.row(member.server).is_none())
    }

    /// The chunk to write, made if it is not there, with the file marked as being written.
    fn writable_chunk(&self, request: &LayoutRequest) -> Result<ChunkId, MetaFailure> {
        let inode = self.inode(request.ino)?;
        if inode.kind != FileKind::File {
            return Err(MetaFailure::Refused(NamespaceError::IsDirectory));
        }
        if !lock(&self.clients).begin_writing(request.client, request.ino) {
            return Err(MetaFailure::Busy { retry_after_ms: 1 });
        }
        // Read again: until now the mark may have been on its way out.
        let inode = self.inode(request.ino)?;
        if self.may_be_cut(request.ino, request.index, inode.layout.chunk_size) {
            return Err(MetaFailure::Busy { retry_after_ms: 2 });
        }
        let unmarked = match &inode.body {
            Body::Chunks { writing, .. } => !writing,
            Body::Inline(_) if request.spill => false,
            Body::Inline(_) if inode.size == 0 => true,
            Body::Inline(_) | Body::Directory { .. } | Body::Symlink(_) | Body::Special => {
                return Err(MetaFailure::Refused(NamespaceError::LayoutChanged));
            }
        };
        if unmarked {
            lock(&self.clients).mark(request.ino);
        }
        if !request.spill
            && let Some(chunk) = self.file_chunk(request.ino, request.index)
        {
            if unmarked {
                accepted(self.propose(None, Change::BeginWrite { ino: request.ino })?)?;
            }
            return Ok(chunk);
        }
        let members = {
            let mut cluster = lock(&self.cluster);
            cluster.place(now(), self.replication as usize, inode.layout.chunk_size, &[])
        };
        if members.len() < self.min_replicas as usize {
            lock(&self.cluster).take_back(&members);
            return Err(self.too_few_servers(members.len(), inode.layout.chunk_size));
        }
        let primary = self.choose_primary(&members);
        let change = Change::AddChunk {
            ino: request.ino,
            index: request.index,
            members,
            primary,
            attach: !request.spill,
        };
        match accepted(self.propose(None, change)?)? {
            Outcome::Chunk { chunk, .. } => Ok(chunk),
            other => Err(MetaFailure::BadRequest {
                reason: format!("adding a chunk was answered {other:?}"),
            }),
        }
    }

    fn too_few_servers(&self, found: usize, chunk_bytes: u64) -> MetaFailure {
        // Others may be about to report, and those that did their space: only then is it known that there is none.
        if self.is_warming() {
            return MetaFailure::Warming { retry_after_ms: 100 };
        }
        let cluster = lock(&self.cluster);
        let now = now();
        let is_alive = |server: &ServerId| cluster.liveness(now, *server) == Liveness::Alive;
        let alive = cluster.rows().keys().filter(|server| is_alive(server)).count();
        // All that was silent may be this master: whoever was heard a moment ago is about to be back, with its space.
        let spacious = cluster.rows().iter().filter(|(server, row)| {
            cluster.room(**server) != Room::Closed
                && now.nanos_since(row.heard_at) < ABOUT_TO_BE_BACK_MS * 1_000_000
                && (room_for_new_chunk(chunk_bytes) <= row.free_bytes || row.total_bytes == 0)
        });
        let needed = self.min_replicas as usize;
        if needed <= alive && spacious.count() < needed {
            return MetaFailure::NoSpace {
                reason: format!(
                    "{alive} chunkservers are alive but only {found} have space for a new chunk"
                ),
            };
        }
        MetaFailure::Unavailable {
            reason: format!(
                "{alive} chunkservers are alive, {found} of them with space; a new chunk needs {needed}"
            ),
            retry_after_ms: 250,
        }
    }

    /// Spreads primaries: a member chosen by a counter, so that three servers share the work of one writer.
    fn choose_primary(&self, members: &[Member]) -> ServerId {
        let turn = usize::try_from(self.next_own_counter()).unwrap_or(0);
        // Not empty: a chunk is made with at least `min_replicas` members, which `Config::check` wants to be one or more.
        members[turn % members.len()].server
    }

    fn note_write_layout(&self, chunk: ChunkId, client: ClientId) {
        let mut layouts = lock(&self.write_layouts);
        layouts.entry(chunk).or_default().insert(client, now());
        // Bounded by what can be written within the life of a layout.
        if 100_000 < layouts.len() {
            let limit = now();
            layouts.retain(|_, holders| {
                holders.retain(|_, at| limit.nanos_since(*at) < WRITE_LAYOUT_MS * 1_000_000);
                !holders.is_empty()
            });
        }
    }

    /// Whether anybody but `client` may still write with a layout of `chunk`.
    #[must_use]
    pub fn write_layout_is_out(&self, chunk: ChunkId, client: ClientId) -> bool {
        let now = now();
        if now.nanos_since(self.started) < WRITE_LAYOUT_MS * 1_000_000 {
            // The master before this one may have given some out.
            return true;
        }
        lock(&self.write_layouts).get(&chunk).is_some_and(|holders| {
            holders.iter().any(|(holder, at)| {
                *holder != client && now.nanos_since(*at) < WRITE_LAYOUT_MS * 1_000_000
            })
        })
    }

    /// What `member` holds now, asked of itself; `None` if it holds nothing or cannot be asked.
    #[must_use]
    pub fn fresh_report(&self, member: &Member, chunk: ChunkId) -> Option<ReplicaReport> {
        self.ask_replica(member, chunk)?.ok()
    }

    /// Whether `member` has a replica of `chunk`, asked of itself; `None` if it cannot be asked.
    #[must_use]
    pub fn holds(&self, member: &Member, chunk: ChunkId) -> Option<bool> {
        match self.ask_replica(member, chunk)? {
            Ok(_) => Some(true),
            Err(status) => (status.code() == tonic::Code::NotFound).then_some(false),
        }
    }

    fn ask_replica(
        &self,
        member: &Member,
        chunk: ChunkId,
    ) -> Option<Result<ReplicaReport, tonic::Status>> {
        let mut client = self.control(&self.address_of(member).ok()?);
        let asked = self.runtime.spawn(async move {
            tokio::time::timeout(PROMISE_MAX, client.report(ReportRequest { chunk: chunk.0 })).await
        });
        let reply = self.runtime.block_on(asked).ok()?.ok()?;
        Some(reply.map(tonic::Response::into_inner))
    }

    /// Whether somebody was given a layout to write `chunk` lately: its members may not have reported it yet.
    #[must_use]
    pub fn was_written_lately(&self, chunk: ChunkId) -> bool {
        let now = now();
        lock(&self.write_layouts).get(&chunk).is_some_and(|holders| {
            holders.values().any(|at| now.nanos_since(*at) < WRITE_LAYOUT_MS * 1_000_000)
        })
    }

    pub fn control(&self, address: &str) -> ChunkControlClient<Channel> {
        ChunkControlClient::new(self.channel(address))
    }

    pub(crate) fn copies_at(&self, address: &str) -> MetadataCopiesClient<Channel> {
        MetadataCopiesClient::new(self.channel(address))
    }

    fn channel(&self, address: &str) -> Channel {
        lock(&self.channels)
            .entry(address.to_owned())
            .or_insert_with(|| {
                let _in_runtime = self.runtime.enter();
                conn::control_channel(address, &self.config.key)
            })
            .clone()
    }

    /// Chunk `index` in a configuration that can be written now, waiting up to `wait` for one.
    ///
    /// # Errors
    /// As [`Self::layout`].
    pub fn existing_layout_to_write(
        &self,
        chunk: ChunkId,
        wait: Duration,
    ) -> Result<ChunkLayout, MetaFailure> {
        let deadline = Instant::now() + wait;
        loop {
            let seen = self.changed.count();
            let Some(record) = self.chunk(chunk) else {
                return Err(MetaFailure::Refused(NamespaceError::LayoutChanged));
            };
            let all_up = {
                let cluster = lock(&self.cluster);
                record.active.members.iter().all(|member| cluster.is_up(now(), member))
            };
            if record.preparing.is_none() && all_up {
                return Ok(self.layout_of(chunk, &record));
            }
            if let Err(reason) = self.reconfigure(chunk, None) {
                if deadline < Instant::now() {
                    return Err(MetaFailure::Unavailable { reason, retry_after_ms: 200 });
                }
                self.changed.wait(seen, Duration::from_millis(100));
            }
        }
    }
}
