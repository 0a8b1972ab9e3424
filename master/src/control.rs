//! The control door: heartbeats of chunkservers and people's tools, over tonic.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use dfs_core::chunk::Chunk;
use dfs_core::cluster::overlay::OverlayKind;
use dfs_core::cluster::{Damage, Heartbeat, Liveness, Replica};
use dfs_core::command::Change;
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, DiskId, Epoch, InodeNo, ServerId};
use dfs_core::meta::{self, Key, MetaStore, Record};
use dfs_core::plan::rebuild::Place;
use dfs_proto::control::admin_server::Admin;
use dfs_proto::control::master_control_server::MasterControl;
use dfs_proto::control::{
    ClientStatus, DiskMark, EvictReply, EvictRequest, ExplainReply, ExplainRequest, FsckFinding,
    FsckRequest, HeartbeatReply, HeartbeatRequest, LocateReply, LocateRequest, LocatedChunk,
    Notice, RepairSource, ReplicaReport, ServerStatus, StatusReply, StatusRequest, WhatIfReply,
    WhatIfRequest,
};
use dfs_service::clock;
use dfs_service::page::Page;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::admit::{self, Admitted, NotAdmitted};
use crate::background::registered;
use crate::fsck::fsck;
use crate::located;
use crate::rpc::fence_client;
use crate::servers::overlay_to_wire;
use crate::state::{Master, lock, now};
use crate::truth;

/// Damaged chunks whose other members one reply names.
const REPAIRS_TOLD_MAX: usize = 256;

/// Both services, on one master.
#[derive(Clone, Debug)]
pub struct Control(pub Arc<Master>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl MasterControl for Control {
    type HeartbeatStream = Replies<HeartbeatReply>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut beats = request.into_inner();
        let master = Arc::clone(&self.0);
        let (answer, answers) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let mut who = None;
            let mut farewell = master.farewell.subscribe();
            let mut wished = master.wished.subscribe();
            loop {
                // An error: the master is gone already.
                let over = async { farewell.wait_for(|over| *over).await.is_ok() };
                let beat = tokio::select! {
                    beat = beats.next() => beat,
                    // With the next answer it would send one heartbeat more, and seem alive for so much longer.
                    Ok(()) = wished.changed() => {
                        let Some((server, _)) = who else { continue };
                        let wish = wish_of(&master, server);
                        let unasked = HeartbeatReply { status: "alive".to_owned(), wish, ..identity(&master) };
                        if !unasked.wish.is_empty() && answer.send(Ok(unasked)).await.is_err() {
                            break;
                        }
                        continue;
                    }
                    _over = over => {
                        let last = HeartbeatReply { status: "alive".to_owned(), ..identity(&master) };
                        if who.is_some() && answer.send(Ok(last)).await.is_err() {
                            tracing::debug!("a chunkserver left before the farewell");
                        }
                        break;
                    }
                };
                let Some(Ok(beat)) = beat else { break };
                let sequence = beat.sequence;
                let reply = match take(&master, beat).await {
                    Ok((server, incarnation, reply)) => {
                        who = Some((server, incarnation));
                        reply
                    }
                    Err(Refused { status, reason, pending_mark }) => {
                        master.notice(format!(
                            "heartbeat refused: {reason}; see {}",
                            Page::DirectoryRefused
                        ));
                        HeartbeatReply {
                            sequence,
                            status: status.to_owned(),
                            reason,
                            pending_mark,
                            ..identity(&master)
                        }
                    }
                };
                if answer.send(Ok(reply)).await.is_err() {
                    break;
                }
            }
            if let Some((server, incarnation)) = who {
                lock(&master.cluster).on_disconnect(now(), server, incarnation);
                tracing::info!(%server, "heartbeat connection closed: suspect");
                master.changed.tell();
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(answers))))
    }
}

/// Why a heartbeat is not taken.
struct Refused {
    status: &'static str,
    reason: String,
    /// As in the reply.
    pending_mark: Option<DiskMark>,
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self { status: "refused", reason, pending_mark: None }
    }
}

impl From<NotAdmitted> for Refused {
    fn from(not: NotAdmitted) -> Self {
        let (status, reason, pending) = match not {
            NotAdmitted::OlderCopy { reason, pending } => ("older-copy", reason, pending),
            NotAdmitted::Again { reason, pending } => ("refused", reason, pending),
        };
        Self { status, reason, pending_mark: Some(pending) }
    }
}

fn identity(master: &Master) -> HeartbeatReply {
    HeartbeatReply {
        fs: master.fs.0.to_be_bytes().to_vec(),
        epoch: master.epoch.0,
        nonce: master.nonce,
        log_index: master.group.applied_index().unwrap_or(0),
        heartbeat_interval_ms: u32::try_from(master.config.profile.interval_ms).unwrap_or(u32::MAX),
        dead_after_ms: u32::try_from(master.config.profile.dead_after_ms).unwrap_or(u32::MAX),
        ..HeartbeatReply::default()
    }
}

fn wish_of(master: &Master, server: ServerId) -> String {
    let silent = lock(&master.cluster).has_overlay(server, OverlayKind::Suspended);
    if silent { OverlayKind::Suspended.to_string() } else { String::new() }
}

pub(crate) fn id128(bytes: &[u8], what: &str) -> Result<u128, String> {
    <[u8; 16]>::try_from(bytes)
        .map(u128::from_be_bytes)
        .map_err(|_| format!("{what} of {} bytes, expected 16", bytes.len()))
}

fn damage_of(report: &ReplicaReport) -> Option<(ChunkId, Damage)> {
    let damage = Damage { blocks: report.bad_blocks.clone(), whole: report.file_damaged };
    (damage != Damage::default()).then_some((ChunkId(report.chunk), damage))
}

fn wire_ids(clients: Vec<ClientId>) -> Vec<Vec<u8>> {
    clients.into_iter().map(|client| client.0.to_be_bytes().to_vec()).collect()
}

async fn take(
    master: &Arc<Master>,
    beat: HeartbeatRequest,
) -> Result<(ServerId, u64, HeartbeatReply), Refused> {
    let server: ServerId =
        beat.server.parse().map_err(|error: dfs_core::ids::BadServerId| error.to_string())?;
    let disk = DiskId(id128(&beat.disk, "disk id")?);
    if !beat.fs.is_empty() && id128(&beat.fs, "file system id")? != master.fs.0 {
        return Err(format!("{server} belongs to another file system").into());
    }
    master.check_age(server, &beat)?;
    if let Some(other) = master.disk_in_use(server, disk, beat.incarnation) {
        return Err(format!(
            "{server} is alive with another disk at {other}: give the new server another id"
        )
        .into());
    }
    let named = meta::server(&master.reader(), server);
    let former = named.as_ref().and_then(|record| record.marks_of(disk));
    let known = named.filter(|record| record.disk == disk);
    if let Some(gone) = known.as_ref().and_then(|record| record.decommissioned()) {
        let reason = format!(
            "{server} was decommissioned by {}: what is in its data directory is not used any more; \
             a new server starts with an empty one",
            gone.by
        );
        return Err(Refused { status: "decommissioned", reason, pending_mark: None });
    }
    let record = match known {
        Some(record) => record,
        None => {
            // Before it takes the place of the disk that is there.
            admit::check(master, server, disk, former.unwrap_or_default(), &beat)?;
            lock(&master.cluster).introduce(now(), server);
            master
                .propose_async(Change::RegisterServer { server, disk })
                .await
                .map_err(|error| format!("register {server}: {error}"))?;
            tracing::info!(%server, address = beat.address, "chunkserver registered");
            let registered = meta::server(&master.reader(), server);
            registered.ok_or_else(|| format!("{server} is not registered"))?
        }
    };
    let pending_mark = match admit::admit(master, server, disk, record.marks, &beat).await? {
        Admitted::Serving(pending) => Some(pending),
        Admitted::Marked(pending) => {
            let reply = HeartbeatReply {
                sequence: beat.sequence,
                status: "marked".to_owned(),
                pending_mark: Some(pending),
                ..identity(master)
            };
            return Ok((server, beat.incarnation, reply));
        }
    };
    for failure in &beat.member_failures {
        tracing::info!(
            from = %server,
            chunk = failure.chunk,
            version = failure.version,
            member = failure.server,
            reason = failure.reason,
            "member failed"
        );
    }
    if !beat.member_failures.is_empty() {
        let failures = beat.member_failures.iter();
        let failed = failures.map(|f| (ChunkId(f.chunk), ChunkVersion(f.version))).collect();
        master.on_member_failures(failed);
    }
    let damaged: Vec<_> = beat.replicas.iter().filter_map(damage_of).collect();
    for (chunk, damage) in &damaged {
        tracing::warn!(%server, chunk = chunk.0, ?damage, see = %Page::BadBlock, "damaged replica");
    }
    if let Some(recorder) = &master.recorder {
        recorder.heartbeat(clock::wall_millis(), &beat);
    }
    lock(&master.health).on_heartbeat(server, &beat);
    lock(&master.traffic).on_heartbeat(now(), server, &beat);
    located::on_heartbeat(master, server, &beat);
    let replicas = beat
        .replicas
        .iter()
        .map(|report| {
            let replica = Replica {
                version: ChunkVersion(report.version),
                seq: report.seq,
                len: report.len,
                not_current: report.not_current,
                digest: report.digest,
            };
            (ChunkId(report.chunk), replica)
        })
        .collect();
    let (incarnation, leaving) = (beat.incarnation, beat.leaving);
    let sequence = beat.sequence;
    let heard = {
        let mut cluster = lock(&master.cluster);
        let heard = cluster.on_heartbeat(
            now(),
            Heartbeat {
                server,
                disk,
                incarnation,
                address: beat.address,
                full_inventory: beat.full_inventory,
                inventory_more: beat.inventory_more,
                replicas,
                damaged,
                gone: beat.gone.iter().map(|chunk| ChunkId(*chunk)).collect(),
                inventory_digest: Some(beat.inventory_digest),
                chunk_count: beat.chunk_count,
                used_bytes: beat.used_bytes,
                free_bytes: beat.free_bytes,
                total_bytes: beat.total_bytes,
                device: beat.device,
                place: Place { zone: beat.zone, host: beat.host },
            },
        );
        if leaving {
            cluster.on_disconnect(now(), server, incarnation);
        }
        heard
    };
    if heard.returned {
        tracing::info!(%server, "alive");
        master.changed.tell();
    }
    let ended = {
        let mut clients = lock(&master.clients);
        clients.on_kept(server, beat.ended_serial);
        clients.ended_after(beat.ended_serial)
    };
    let mut left = wire_ids(ended.left);
    left.extend(master.unknown_clients(beat.clients));
    let reply = HeartbeatReply {
        sequence,
        status: "alive".to_owned(),
        ended_clients: wire_ids(ended.fenced),
        ended_serial: ended.serial,
        left_clients: left,
        chunks_to_delete: master.garbage_of(server, disk),
        wish: wish_of(master, server),
        stale_replicas: master.surplus_of(server, disk),
        pending_mark,
        repair_sources: master.repair_sources(server),
        want_full_inventory: heard.want_full_inventory,
        ..identity(master)
    };
    Ok((server, incarnation, reply))
}

impl Master {
    /// A server that has met a later reign than ours means that our directory is an old copy (DECISIONS 5).
    fn check_age(&self, server: ServerId, beat: &HeartbeatRequest) -> Result<(), String> {
        let (epoch, nonce) = (Epoch(beat.epoch), beat.nonce);
        let ahead = self.epoch < epoch || (self.epoch == epoch && self.nonce != nonce);
        // An earlier reign whose log was longer than what of it is here: its end is gone.
        let ended_at = self.reigns.ended_at(epoch, nonce).filter(|ended_at| {
            *ended_at < beat.log_index
                && self.config.restored_after < beat.epoch
                && !self.config.accept_loss
        });
        let text = if let Some(ended_at) = ended_at {
            format!(
                "this directory is older than the cluster: {server} knows of log entry {} of epoch {}, here that \
                 epoch's log ends at entry {ended_at}",
                beat.log_index, epoch.0
            )
        } else if ahead {
            format!(
                "this directory is older than the cluster: {server} has served another epoch {} and knows of its log entry \
                 {}, here it is epoch {}, which began behind entry {}",
                epoch.0,
                beat.log_index,
                self.epoch.0,
                self.group.opened_at()
            )
        } else {
            return Ok(());
        };
        tracing::error!("{text}; see {}", Page::DirectoryRefused);
        // Nothing of ours may reach the cluster any more.
        crate::run::stop_older_than_cluster(beat.epoch, &text);
        Err(text)
    }

    /// Those of these that are registered no longer, or cannot be ids.
    fn unknown_clients(&self, told: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let reader = self.reader();
        let known = |bytes: &[u8]| {
            let client = id128(bytes, "client id").ok().map(ClientId);
            client.is_some_and(|client| {
                client == self.own_client || reader.get(&Key::Client(client)).is_some()
            })
        };
        told.into_iter().filter(|bytes| !known(bytes)).collect()
    }

    /// The other members of chunks that `server` holds damaged.
    fn repair_sources(&self, server: ServerId) -> Vec<RepairSource> {
        let damaged: Vec<ChunkId> = match lock(&self.cluster).row(server) {
            Some(row) => row.damaged.keys().copied().take(REPAIRS_TOLD_MAX).collect(),
            None => Vec::new(),
        };
        let mut sources = Vec::new();
        for chunk in damaged {
            let Some(record) = self.chunk(chunk) else { continue };
            let cluster = lock(&self.cluster);
            let others = record.active.members.iter().filter(|member| member.server != server);
            sources.extend(others.filter_map(|member| {
                Some(RepairSource {
                    chunk: chunk.0,
                    server: member.server.to_string(),
                    address: cluster.address(now(), member)?.to_owned(),
                })
            }));
        }
        sources
    }

    fn disk_in_use(&self, server: ServerId, disk: DiskId, incarnation: u64) -> Option<String> {
        let cluster = lock(&self.cluster);
        let row = cluster.row(server)?;
        let other = row.disk != disk || row.incarnation != incarnation;
        (other && row.disk != disk && cluster.liveness(now(), server) == Liveness::Alive)
            .then(|| row.address.clone())
    }

    /// Chunks that `server` should delete, at most 1,000 at a time.
    fn garbage_of(&self, server: ServerId, disk: DiskId) -> Vec<u64> {
        let reader = self.reader();
        let mut found = Vec::new();
        let mut from = Key::Garbage(ChunkId(0));
        loop {
            let page = reader.range(&from, &Key::Garbage(ChunkId(u64::MAX)), 1000);
            let full = page.len() == 1000;
            for (key, record) in page {
                if let (Key::Garbage(chunk), Record::Garbage(garbage)) = (key, record) {
                    let mut members = garbage.members.iter();
                    if members.any(|member| member.server == server && member.disk == disk)
                        && !self.is_fenced_lately(chunk)
                    {
                        found.push(chunk.0);
                    }
                    from = Key::Garbage(ChunkId(chunk.0 + 1));
                }
            }
            if !full || 1000 <= found.len() {
                found.truncate(1000);
                return found;
            }
        }
    }

    /// Calls `each` with every chunk of the map.
    pub fn for_each_chunk(&self, mut each: impl FnMut(ChunkId, &Chunk)) {
        let reader = self.reader();
        let mut from = Key::Chunk(ChunkId(0));
        loop {
            let page = reader.range(&from, &Key::Chunk(ChunkId(u64::MAX)), 4096);
            if page.is_empty() {
                return;
            }
            for (key, record) in page {
                if let (Key::Chunk(chunk), Record::Chunk(record)) = (key, record) {
                    each(chunk, &record);
                    from = Key::Chunk(ChunkId(chunk.0 + 1));
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Admin for Control {
    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let master = Arc::clone(&self.0);
        let reply = tokio::task::spawn_blocking(move || status(&master))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(reply))
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateReply>, Status> {
        let LocateRequest { inode, files } = request.into_inner();
        let ino = InodeNo(inode);
        let master = Arc::clone(&self.0);
        let found = master.reader().range(
            &Key::FileChunk(ino, 0),
            &Key::FileChunk(InodeNo(ino.0 + 1), 0),
            usize::MAX,
        );
        let mut chunks = Vec::new();
        for (key, record) in found {
            let (Key::FileChunk(_, index), Record::FileChunk(chunk)) = (key, record) else {
                continue;
            };
            let Some(record) = master.chunk(chunk) else { continue };
            let cluster = lock(&master.cluster);
            let now = now();
            let names = |live_only: bool| {
                let members = record
                    .active
                    .members
                    .iter()
                    .filter(|member| !live_only || cluster.is_up(now, member));
                members.map(|member| member.server.to_string()).collect::<Vec<_>>()
            };
            chunks.push(LocatedChunk {
                index,
                id: chunk.0,
                version: record.active.version.0,
                servers: names(false),
                primary: record.active.primary.to_string(),
                live: names(true),
                files: match files {
                    true => located::files(&master, &cluster, now, chunk, &record),
                    false => Vec::new(),
                },
            });
        }
        Ok(Response::new(LocateReply { chunks }))
    }

    async fn evict(&self, request: Request<EvictRequest>) -> Result<Response<EvictReply>, Status> {
        let client = id128(&request.into_inner().client, "client id")
            .map(ClientId)
            .map_err(Status::invalid_argument)?;
        let master = Arc::clone(&self.0);
        if !registered(&master).any(|(known, _)| known == client) {
            return Err(Status::not_found(format!("no client {client} is registered")));
        }
        tokio::task::spawn_blocking(move || {
            master.notice(format!("client {client} is evicted: its locks and opens end"));
            fence_client(&master, client).map_err(|error| Status::unavailable(error.to_string()))
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(EvictReply {}))
    }

    async fn what_if(
        &self,
        request: Request<WhatIfRequest>,
    ) -> Result<Response<WhatIfReply>, Status> {
        let master = Arc::clone(&self.0);
        let ask = move || truth::what_if(&master, &request.into_inner());
        let reply = tokio::task::spawn_blocking(ask).await;
        reply.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainReply>, Status> {
        let master = Arc::clone(&self.0);
        let ask = move || truth::explain(&master, &request.into_inner());
        let reply = tokio::task::spawn_blocking(ask).await;
        reply.map_err(|error| Status::internal(error.to_string())).map(Response::new)
    }

    type FsckStream = Replies<FsckFinding>;

    async fn fsck(
        &self,
        request: Request<FsckRequest>,
    ) -> Result<Response<Self::FsckStream>, Status> {
        let replicas = request.into_inner().replicas;
        let master = Arc::clone(&self.0);
        let (send, findings) = tokio::sync::mpsc::channel(64);
        tokio::task::spawn_blocking(move || {
            let mut tell = |kind: &str, text: String, checked: u64| {
                let finding = FsckFinding { kind: kind.to_owned(), text, checked };
                // The asker is gone: the rest is cheap enough to finish.
                let _gone = send.blocking_send(Ok(finding));
            };
            fsck(&master, replicas, &mut tell);
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(findings))))
    }
}

fn status(master: &Arc<Master>) -> StatusReply {
    let survey = master.survey(&BTreeSet::new());
    let chunks = truth::wire_totals(survey.totals);
    let outlook = lock(&master.surveyed).outlook(&survey);
    let superblock = match master.reader().get(&Key::Super) {
        Some(Record::Super(superblock)) => superblock,
        _ => return StatusReply::default(),
    };
    let known_servers: BTreeMap<ServerId, meta::Server> =
        meta::servers(&master.reader()).into_iter().collect();
    let traffic = lock(&master.traffic).clone();
    let refused = |server: &ServerId| {
        lock(&master.refusals).reason(*server).map(str::to_owned).unwrap_or_default()
    };
    let applied = master.group.applied_index().unwrap_or(0);
    let (holders, metadata_lag_ms) = lock(&master.copies).state(now(), applied);
    let cluster = lock(&master.cluster);
    let now = now();
    let servers = known_servers
        .iter()
        .map(|(server, record)| (server, record.overlays.iter().map(overlay_to_wire).collect()))
        .map(|(server, overlays)| match cluster.row(*server) {
            Some(row) => {
                let (client_read_rate, client_written_rate) = traffic.rates(now, *server);
                ServerStatus {
                    id: server.to_string(),
                    state: match cluster.liveness(now, *server) {
                        Liveness::Alive => "alive",
                        Liveness::Suspect => "suspect",
                        Liveness::Dead => "dead",
                    }
                    .to_owned(),
                    address: row.address.clone(),
                    chunks: row.chunk_count,
                    used_bytes: row.used_bytes,
                    free_bytes: row.free_bytes,
                    last_heartbeat_ms_ago: i64::try_from(now.nanos_since(row.heard_at) / 1_000_000)
                        .unwrap_or(i64::MAX),
                    overlays,
                    client_read_rate,
                    client_written_rate,
                    refused: refused(server),
                }
            }
            None => ServerStatus {
                id: server.to_string(),
                state: if master.is_warming() { "suspect" } else { "dead" }.to_owned(),
                last_heartbeat_ms_ago: -1,
                overlays,
                refused: refused(server),
                ..ServerStatus::default()
            },
        })
        .collect();
    drop(cluster);
    let client_list = registered(master)
        .map(|(client, record)| {
            let clients = lock(&master.clients);
            ClientStatus {
                id: client.0.to_be_bytes().to_vec(),
                name: record.name,
                evicted: record.fenced,
                last_heard_ms_ago: clients.heard_at(client).map_or(-1, |at| {
                    i64::try_from(now.nanos_since(at) / 1_000_000).unwrap_or(i64::MAX)
                }),
                opens: clients.opens_of(client),
                ends_in_ms: clients.silent_ends_in_ms(client, now, master.config.client_lease_ms),
            }
        })
        .collect();
    StatusReply {
        client_list,
        servers,
        chunks: Some(chunks),
        oldest_exposure_ms: outlook.oldest_exposure_ms,
        copy_backlog_bytes: outlook.backlog_bytes,
        copy_rate: outlook.copy_rate,
        copy_eta_ms: outlook.eta_ms,
        metadata_copies: holders.iter().map(ToString::to_string).collect(),
        metadata_lag_ms,
        diverging_chunks: lock(&master.rebuild.diverging).len() as u64,
        fs: master.fs.0.to_be_bytes().to_vec(),
        epoch: master.epoch.0,
        inodes: superblock.inode_count,
        file_bytes: superblock.file_bytes,
        phase: if master.is_warming() { "warming" } else { "serving" }.to_owned(),
        replication: master.replication,
        min_replicas: master.min_replicas,
        clients: lock(&master.clients).len() as u64,
        log_index: master.group.applied_index().unwrap_or(0),
        waiting_writes: Some(lock(&master.waits).told(now)),
        notices: master
            .notices()
            .into_iter()
            .map(|(at, text)| Notice { at_ns: at.0, text })
            .collect(),
    }
}
