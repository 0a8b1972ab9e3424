//! Clients' requests: one thread per connection decodes, calls, answers.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a request has one kind of answer, every other one is an error by itself"
)]

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_core::command::{Change, Outcome, RenameMode};
use dfs_core::ids::{ClientId, InodeNo, OpId};
use dfs_core::meta::{self, Key, MetaStore, Record};
use dfs_core::namespace::{Attr, Body, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, FileKind, NamespaceError};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use dfs_proto::codec::Wire;
use dfs_proto::frame::FrameKind;
use dfs_proto::frame_conn::{FrameWriter, read_frame};
use dfs_proto::meta_rpc::{
    EntryPlus, MetaCall, MetaFailure, MetaReply, MetaRequest, NameBytes, StatfsReply, Welcome,
};
use dfs_service::clock;

use crate::chunks::{LayoutRequest, WRITE_LAYOUT_MS};
use crate::clients::LEASE_MS;
use crate::state::{Master, accepted, lock, now};

/// Most entries and layouts in one answer.
const READDIR_MAX: u32 = 4096;
const LAYOUTS_MAX: u32 = 1024;
/// A waiting lock request is answered by then; the client asks again.
const LOCK_WAIT_MAX_MS: u32 = 20_000;

/// Serves one connection until it closes or sends something that is no request.
pub fn serve(master: &Arc<Master>, stream: TcpStream, peer: SocketAddr) {
    let number = master.next_own_counter();
    match stream.try_clone() {
        Ok(copy) => lock(&master.connections).insert(number, copy),
        Err(error) => return tracing::warn!(%peer, %error, "connection"),
    };
    serve_registered(master, stream, peer);
    lock(&master.connections).remove(&number);
}

fn serve_registered(master: &Arc<Master>, stream: TcpStream, peer: SocketAddr) {
    let writer = match stream.try_clone() {
        Ok(stream) => FrameWriter::new(stream),
        Err(error) => return tracing::warn!(%peer, %error, "connection"),
    };
    let mut input = BufReader::with_capacity(64 << 10, stream);
    loop {
        let frame = match read_frame(&mut input) {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                if error.kind() == std::io::ErrorKind::InvalidData {
                    master.metrics.bad_frames.inc();
                    tracing::warn!(%peer, %error, "connection closed");
                }
                return writer.close();
            }
        };
        let request = match MetaRequest::from_bytes(&frame.args) {
            Ok(request) if frame.header.kind != FrameKind::Reply => request,
            Ok(_) => return writer.close(),
            Err(error) => {
                master.metrics.bad_frames.inc();
                tracing::warn!(%peer, %error, "connection closed: request cannot be read");
                return writer.close();
            }
        };
        let began = Instant::now();
        let call = name_of(&request.call);
        let reply = answer(master, request).unwrap_or_else(|failure| {
            master.metrics.request_failures.inc(call);
            MetaReply::Failed(failure)
        });
        master.metrics.request_seconds.observe(call, began.elapsed());
        if frame.header.kind == FrameKind::Request
            && writer.reply(frame.header.request, &reply.to_bytes(), &[], None).is_err()
        {
            return;
        }
    }
}

fn answer(master: &Arc<Master>, request: MetaRequest) -> Result<MetaReply, MetaFailure> {
    let MetaRequest { client, results, call } = request;
    if !lock(&master.clients).heard(now(), client) {
        return Err(NamespaceError::NoSession.into());
    }
    match call {
        MetaCall::Hello { name, known } => hello(master, client, name, known),
        MetaCall::Ping => Ok(MetaReply::Done),
        MetaCall::Goodbye => {
            end_client(master, client)?;
            Ok(MetaReply::Done)
        }
        MetaCall::Change { op, part, change } => {
            change_of_client(master, OpId { client, op, part }, &results, change)
                .map(MetaReply::Outcome)
        }
        MetaCall::ChangeNames { op, change, open } => {
            let id = OpId { client, op, part: 0 };
            names_of_client(master, id, &results, change, open)
        }
        MetaCall::Lookup { parent, name } => {
            Ok(MetaReply::Attr(meta::lookup(&master.reader(), parent, &name)?))
        }
        MetaCall::GetAttr { ino } => match meta::attr(&master.reader(), ino) {
            Some(attr) => Ok(MetaReply::Attr(attr)),
            None => Err(NamespaceError::Stale.into()),
        },
        MetaCall::ReadDir { ino, after_cookie, max_entries, plus } => {
            read_dir(master, ino, after_cookie, max_entries.clamp(1, READDIR_MAX), plus)
        }
        MetaCall::ReadLink { ino } => match master.inode(ino)?.body {
            Body::Symlink(target) => Ok(MetaReply::Bytes(target)),
            _ => Err(NamespaceError::Invalid("not a symbolic link".to_owned()).into()),
        },
        MetaCall::GetXattr { ino, name } => {
            master.inode(ino)?;
            match master.reader().get(&Key::Xattr(ino, name)) {
                Some(Record::Xattr(value)) => Ok(MetaReply::Bytes(value)),
                _ => Err(NamespaceError::NoAttribute.into()),
            }
        }
        MetaCall::ListXattrs { ino } => {
            master.inode(ino)?;
            let found = master.reader().range(
                &Key::Xattr(ino, Vec::new()),
                &Key::Xattr(InodeNo(ino.0 + 1), Vec::new()),
                usize::MAX,
            );
            let names = found.into_iter().filter_map(|(key, _)| match key {
                Key::Xattr(_, name) => Some(NameBytes(name)),
                _ => None,
            });
            Ok(MetaReply::Names(names.collect()))
        }
        MetaCall::Statfs => Ok(MetaReply::Statfs(statfs(master))),
        MetaCall::Open { ino, write: _ } => {
            if !lock(&master.clients).open(client, ino) {
                return Err(NamespaceError::Stale.into());
            }
            opened(master, client, ino).inspect_err(|_| {
                lock(&master.clients).release(client, ino);
            })
        }
        MetaCall::Release { ino, write: _ } => {
            let last = lock(&master.clients).release(client, ino);
            if last && meta::attr(&master.reader(), ino).is_some_and(|attr| attr.nlink == 0) {
                master.maybe_reclaim(ino);
            }
            Ok(MetaReply::Done)
        }
        MetaCall::Reopen { opens } => {
            lock(&master.clients).reopen(client, &opens);
            Ok(MetaReply::Done)
        }
        MetaCall::ReadInline { ino } => opened(master, client, ino),
        MetaCall::Cuts { ino } => Ok(MetaReply::Cuts(master.inode(ino)?.cut_sizes)),
        MetaCall::Layout { ino, index, write, spill, failed } => {
            // Who is not registered cannot be told to end.
            if write && meta::client(&master.reader(), client).is_none_or(|client| client.fenced) {
                return Err(NamespaceError::NoSession.into());
            }
            master.layout(&LayoutRequest { client, ino, index, write, spill, failed })
        }
        MetaCall::Layouts { ino, first, max } => {
            Ok(layouts(master, ino, first, max.clamp(1, LAYOUTS_MAX)))
        }
        MetaCall::Truncate { op, ino, size } => {
            let outcome = master.truncate(OpId { client, op, part: 0 }, &results, ino, size)?;
            Ok(MetaReply::Outcome(outcome))
        }
        MetaCall::FreeUnlogged { op, ino, first } => {
            let outcome = master.free_unlogged(OpId { client, op, part: 0 }, &results, ino, first);
            Ok(MetaReply::Outcome(outcome?))
        }
        MetaCall::SetLock { op, ino, owner, start, end, kind, pid, wait_ms } => {
            let change = Change::SetLock { ino, client, owner, start, end, kind, pid };
            set_lock(
                master,
                OpId { client, op, part: 0 },
                &results,
                &change,
                wait_ms.min(LOCK_WAIT_MAX_MS),
            )
        }
        MetaCall::TestLock { ino, owner, start, end, kind } => Ok(MetaReply::Conflict(
            meta::test_lock(&master.reader(), ino, (client, owner), (start, end), kind),
        )),
    }
}

fn name_of(call: &MetaCall) -> &'static str {
    match call {
        MetaCall::Hello { .. } => "hello",
        MetaCall::Change { .. } => "change",
        MetaCall::ChangeNames { .. } => "change_names",
        MetaCall::Ping => "ping",
        MetaCall::Goodbye => "goodbye",
        MetaCall::Lookup { .. } => "lookup",
        MetaCall::GetAttr { .. } => "getattr",
        MetaCall::ReadDir { .. } => "readdir",
        MetaCall::ReadLink { .. } => "readlink",
        MetaCall::GetXattr { .. } | MetaCall::ListXattrs { .. } => "xattr",
        MetaCall::Statfs => "statfs",
        MetaCall::Open { .. } | MetaCall::ReadInline { .. } => "open",
        MetaCall::Release { .. } => "release",
        MetaCall::Reopen { .. } => "reopen",
        MetaCall::Layout { .. } | MetaCall::Layouts { .. } => "layout",
        MetaCall::Cuts { .. } => "cuts",
        MetaCall::Truncate { .. } => "truncate",
        MetaCall::FreeUnlogged { .. } => "free_unlogged",
        MetaCall::SetLock { .. } | MetaCall::TestLock { .. } => "lock",
    }
}

fn hello(
    master: &Arc<Master>,
    client: ClientId,
    name: String,
    known: bool,
) -> Result<MetaReply, MetaFailure> {
    if master.reader().get(&Key::Client(client)).is_none() {
        if known {
            // It ended, and its locks are others' now.
            return Err(NamespaceError::NoSession.into());
        }
        accepted(master.propose(None, Change::BeginClient { client, name })?)?;
    }
    if !known {
        lock(&master.clients).opens_nothing(client);
    }
    Ok(MetaReply::Welcome(Welcome {
        fs: master.fs,
        epoch: master.epoch,
        nonce: master.nonce,
        now: WallTime(clock::wall_nanos()),
        replication: master.replication,
        min_replicas: master.min_replicas,
        client_lease_ms: u32::try_from(LEASE_MS).unwrap_or(u32::MAX),
    }))
}

/// Refuses a client whose lease is over, here and, as they are told, at the chunkservers. It ends when all of them
/// refuse it ([`crate::clients::Clients::refused_by_all`]).
///
/// # Errors
/// If the log does not take it now.
pub fn fence_client(master: &Arc<Master>, client: ClientId) -> Result<(), MetaFailure> {
    master.propose(None, Change::FenceClient { client })?;
    lock(&master.clients).fence(client);
    Ok(())
}

/// Ends a client, by its own word or because nobody takes anything of it any more.
///
/// # Errors
/// If the log does not take it now.
pub fn end_client(master: &Arc<Master>, client: ClientId) -> Result<(), MetaFailure> {
    master.propose(None, Change::EndClient { client })?;
    let freed = lock(&master.clients).end(client);
    master.changed.tell();
    for ino in freed {
        if meta::attr(&master.reader(), ino).is_some_and(|attr| attr.nlink == 0) {
            master.maybe_reclaim(ino);
        }
    }
    Ok(())
}

fn names_of_client(
    master: &Arc<Master>,
    id: OpId,
    results: &Results,
    change: Change,
    open: bool,
) -> Result<MetaReply, MetaFailure> {
    let parents = match &change {
        Change::CreateUnnamed { .. } => Vec::new(),
        Change::Create { parent, .. }
        | Change::PutInPlace { parent, .. }
        | Change::Link { parent, .. }
        | Change::Unlink { parent, .. }
        | Change::Rmdir { parent, .. } => vec![*parent],
        Change::Rename { from_parent, to_parent, .. } if from_parent == to_parent => {
            vec![*from_parent]
        }
        Change::Rename { from_parent, to_parent, .. } => vec![*from_parent, *to_parent],
        _ => {
            return Err(MetaFailure::BadRequest {
                reason: "this change is not one of names".to_owned(),
            });
        }
    };
    let outcome = change_of_client(master, id, results, change)?;
    if let Outcome::Entry { attr, created: true } = &outcome
        && open
        && attr.kind == FileKind::File
        && !lock(&master.clients).open(id.client, attr.ino)
    {
        return Err(NamespaceError::Stale.into());
    }
    let reader = master.reader();
    let directories = parents.into_iter().filter_map(|ino| meta::attr(&reader, ino)).collect();
    Ok(MetaReply::Changed { outcome, directories })
}

fn change_of_client(
    master: &Arc<Master>,
    id: OpId,
    results: &Results,
    mut change: Change,
) -> Result<Outcome, MetaFailure> {
    if let Change::Create { layout: Some(layout), .. }
    | Change::CreateUnnamed { layout: Some(layout), .. } = &change
        && layout.chunk_size < CHUNK_BYTES_MIN
        && !master.config.exercise
    {
        return Err(MetaFailure::Refused(NamespaceError::Invalid(format!(
            "chunk size {} is not a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}",
            layout.chunk_size
        ))));
    }
    let forbidden = match &change {
        Change::Create { .. }
        | Change::CreateUnnamed { .. }
        | Change::PutInPlace { .. }
        | Change::Link { .. }
        | Change::Unlink { .. }
        | Change::Rmdir { .. }
        | Change::Rename { .. }
        | Change::SetAttr { .. }
        | Change::SetXattr { .. }
        | Change::RemoveXattr { .. }
        | Change::InlineWrite { .. }
        | Change::InlinePatch { .. }
        | Change::InlineZero { .. }
        | Change::InlineTruncate { .. }
        | Change::Spill { .. }
        | Change::DropChunk { .. }
        | Change::BeginWrite { .. }
        | Change::CommitSize { .. }
        | Change::FreeChunks { .. }
        | Change::Grow { .. }
        | Change::SealChunk { .. } => false,
        Change::SetLock { client, .. } => *client != id.client,
        Change::Start { .. }
        | Change::SetRootLayout { .. }
        | Change::BeginClient { .. }
        | Change::FenceClient { .. }
        | Change::EndClient { .. }
        | Change::Reclaim { .. }
        | Change::AddChunk { .. }
        | Change::TruncateBegin { .. }
        | Change::TruncateEnd { .. }
        | Change::Reconfigure { .. }
        | Change::Activate { .. }
        | Change::SetTrash { .. }
        | Change::Restore { .. }
        | Change::EmptyTrash { .. }
        | Change::BeginWork { .. }
        | Change::AdvanceJob { .. }
        | Change::ForgetGarbage { .. }
        | Change::NoteStored { .. }
        | Change::SkipIds
        | Change::RegisterServer { .. }
        | Change::MarkDisk { .. }
        | Change::SetOverlay { .. }
        | Change::ClearOverlay { .. }
        | Change::Note { .. }
        | Change::CreateJob { .. }
        | Change::SetJobStates { .. }
        | Change::SnapshotJob { .. }
        | Change::SetJobPhase { .. }
        | Change::ForgetJob { .. } => true,
    };
    if forbidden {
        return Err(MetaFailure::BadRequest {
            reason: "this change is the master's own".to_owned(),
        });
    }
    let unlocks = matches!(change, Change::SetLock { kind: None, .. });
    if let Change::Rename { to_parent, to, mode: RenameMode::Replace, .. } = &change
        && let Ok(attr) = meta::lookup(&master.reader(), *to_parent, to)
        && attr.kind == FileKind::File
        && attr.nlink == 1
    {
        // Before it is: whoever closes it then may be the last one, while somebody else is about to open it.
        lock(&master.clients).replaced(now(), attr.ino);
    }
    let mut cleared = None;
    if let Change::CommitSize { ino, done_writing, .. } = &mut change
        && *done_writing
    {
        let all_known = WRITE_LAYOUT_MS <= master.uptime_ms();
        *done_writing = lock(&master.clients).done_writing(id.client, *ino, all_known);
        cleared = done_writing.then_some(*ino);
    }
    let outcome = match change {
        Change::FreeChunks { ino, first, count } => {
            master.free_chunks(id, results, (ino, first, count))
        }
        Change::Grow { ino, size } => master.grow(id, results, ino, size),
        change => master.propose(Some((id, results)), change),
    };
    if let Some(ino) = cleared {
        let mut clients = lock(&master.clients);
        clients.end_clearing(ino);
        if outcome != Ok(Outcome::Refused(NamespaceError::Stale))
            && !matches!(outcome, Ok(Outcome::Attr(_)))
        {
            // The mark is still set, and whose it is must be known when it says so again.
            clients.begin_writing(id.client, ino);
            clients.mark(ino);
        }
    }
    let outcome = outcome?;
    let has_no_name =
        |ino| meta::attr(&master.reader(), ino).is_some_and(|attr: Attr| attr.nlink == 0);
    match &outcome {
        Outcome::Unlinked { ino, nlink: 0 } if has_no_name(*ino) => master.maybe_reclaim(*ino),
        Outcome::Renamed { replaced: Some(ino), .. } if has_no_name(*ino) => {
            lock(&master.clients).replaced(now(), *ino);
        }
        _ => {}
    }
    if unlocks || outcome == Outcome::LockChanged {
        master.changed.tell();
    }
    Ok(outcome)
}

fn opened(master: &Arc<Master>, client: ClientId, ino: InodeNo) -> Result<MetaReply, MetaFailure> {
    let inode = master.inode(ino)?;
    let mut written_elsewhere = false;
    if matches!(inode.body, Body::Chunks { writing: true, .. }) {
        let all_known = WRITE_LAYOUT_MS <= master.uptime_ms();
        let mut clients = lock(&master.clients);
        if all_known {
            // Of a writer that an earlier reign knew.
            clients.unsettled_unless_written(ino);
        }
        written_elsewhere = clients.writes_alone(client, ino, all_known) != Some(true);
    }
    let attr = meta::attr_of(&master.reader(), ino, &inode);
    let content = match inode.body {
        Body::Inline(content) => Some(content),
        _ => None,
    };
    Ok(MetaReply::Opened { attr, content, written_elsewhere })
}

fn read_dir(
    master: &Arc<Master>,
    ino: InodeNo,
    after_cookie: u64,
    max_entries: u32,
    plus: bool,
) -> Result<MetaReply, MetaFailure> {
    let reader = master.reader();
    let found = meta::readdir(&reader, ino, after_cookie, max_entries as usize)?;
    let end = found.len() < max_entries as usize;
    let entries = found
        .into_iter()
        .map(|entry| EntryPlus {
            attr: if plus { meta::attr(&reader, entry.ino) } else { None },
            cookie: entry.cookie,
            name: entry.name,
            ino: entry.ino,
            kind: entry.kind,
        })
        .collect();
    Ok(MetaReply::Entries { entries, end })
}

fn layouts(master: &Arc<Master>, ino: InodeNo, first: u64, max: u32) -> MetaReply {
    let found = master.reader().range(
        &Key::FileChunk(ino, first),
        &Key::FileChunk(InodeNo(ino.0 + 1), 0),
        max as usize,
    );
    let layouts = found
        .into_iter()
        .filter_map(|(_, record)| match record {
            Record::FileChunk(chunk) => {
                master.chunk(chunk).map(|record| master.layout_of(chunk, &record))
            }
            _ => None,
        })
        .collect();
    MetaReply::Layouts(layouts)
}

fn statfs(master: &Arc<Master>) -> StatfsReply {
    let (total, free) = lock(&master.cluster).capacity(now());
    let copies = u64::from(master.replication.max(1));
    let inodes = match master.reader().get(&Key::Super) {
        Some(Record::Super(superblock)) => superblock.inode_count,
        _ => 0,
    };
    // Inode numbers never run out; `df -i` wants a total that leaves room.
    let inodes_free = 1 << 32;
    StatfsReply {
        total_bytes: total / copies,
        free_bytes: free / copies,
        available_bytes: free / copies,
        inodes_total: inodes + inodes_free,
        inodes_free,
    }
}

fn set_lock(
    master: &Arc<Master>,
    id: OpId,
    results: &Results,
    change: &Change,
    wait_ms: u32,
) -> Result<MetaReply, MetaFailure> {
    let deadline = Instant::now() + Duration::from_millis(u64::from(wait_ms));
    // Nothing is logged until it looks free: each attempt's answer would be kept for this client.
    loop {
        let seen = master.changed.count();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !is_held(master, change) {
            return change_of_client(master, id, results, change.clone()).map(MetaReply::Outcome);
        }
        master.changed.wait(seen, left);
    }
}

/// Whether somebody else has what `change` asks for.
fn is_held(master: &Master, change: &Change) -> bool {
    match change {
        Change::SetLock { ino, client, owner, start, end, kind: Some(kind), .. } => {
            let holder = (*client, *owner);
            meta::test_lock(&master.reader(), *ino, holder, (*start, *end), *kind).is_some()
        }
        _ => false,
    }
}
