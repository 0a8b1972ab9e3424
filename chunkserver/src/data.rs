//! The frames door: one thread per connection reads requests, answers reads itself and hands the rest on.
//!
//! Back-pressure is not reading: a connection with too much unanswered is not read from until answers are out.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, ServerId};
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer};
use dfs_proto::frame::{FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use dfs_proto::frame_conn::{Frame, read_frame};
use dfs_service::clock::monotonic_nanos;

use crate::node::{Node, lock};
use crate::reply::ReplyWriter;
use crate::search::{Range, search};
use crate::store::{ListedRecords, Store, StoreError};
use crate::{adopt, member, primary, repair};

/// Unanswered requests of one connection, and their payload.
const IN_FLIGHT_MAX: usize = 256;
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// A client that does not take its answers for this long is closed.
const REPLY_MAX: Duration = Duration::from_secs(10);

/// A connection none of whose answers gets out for this long is closed: every request ends before.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// What an answer is given to, from any thread.
#[derive(Debug)]
pub(crate) struct Waiter {
    writer: ReplyWriter,
    request: u64,
    begun: u64,
    call: &'static str,
    from_client: bool,
    _slot: Slot,
}

impl Waiter {
    /// From any thread, without waiting for the asker.
    pub(crate) fn reply(self, node: &Node, reply: &DataReply) {
        self.count(node, reply);
        let args = reply.to_bytes();
        node.metrics.reply_bytes.inc_by((HEADER_BYTES + args.len()) as u64);
        self.writer.reply_soon(self.request, &args);
    }

    /// From the connection's own thread.
    fn reply_with(self, node: &Node, reply: &DataReply, payload: &[u8], crc: Option<u32>) {
        self.count(node, reply);
        let args = reply.to_bytes();
        node.metrics.reply_bytes.inc_by((HEADER_BYTES + args.len() + payload.len()) as u64);
        if let Err(error) = self.writer.reply(self.request, &args, payload, crc) {
            // Its reader sees the closed connection; the asker asks again.
            tracing::debug!(%error, call = self.call, "answer not taken");
        }
    }

    fn count(&self, node: &Node, reply: &DataReply) {
        let nanos = monotonic_nanos().saturating_sub(self.begun);
        node.metrics.request_seconds.observe(self.call, Duration::from_nanos(nanos));
        if let DataReply::Failed(failure) = reply {
            node.metrics.refusals.with_label_values(&[reason(failure)]).inc();
        }
        if self.from_client {
            node.pace.answered(self.call, nanos);
        }
    }
}

fn reason(failure: &DataFailure) -> &'static str {
    match failure {
        DataFailure::NoReplica => "no_replica",
        DataFailure::StaleVersion { .. } => "stale_version",
        DataFailure::NotCurrent => "not_current",
        DataFailure::NotPrimary => "not_primary",
        DataFailure::MemberFailed { .. } => "member_failed",
        DataFailure::BadBlock { .. } => "bad_block",
        DataFailure::NoSpace { .. } => "no_space",
        DataFailure::OutcomeUnknown => "outcome_unknown",
        DataFailure::ChunkFull { .. } => "chunk_full",
        DataFailure::Gap { .. } => "gap",
        DataFailure::Fenced { .. } => "fenced",
        DataFailure::Busy => "busy",
        DataFailure::BadRequest { .. } => "bad_request",
        DataFailure::StaleEpoch { .. } => "stale_epoch",
        DataFailure::Disk { .. } => "disk",
    }
}

/// What one connection has unanswered.
#[derive(Default, Debug)]
struct InFlight {
    used: Mutex<(usize, usize)>,
    freed: Condvar,
}

/// Holds one place until the answer is out.
#[derive(Debug)]
struct Slot {
    of: Arc<InFlight>,
    bytes: usize,
}

impl InFlight {
    /// Waits until there is room, at most `limit` since an answer last made some.
    fn take(self: &Arc<Self>, bytes: usize, limit: Duration) -> io::Result<Slot> {
        let mut used = lock(&self.used);
        while IN_FLIGHT_MAX <= used.0 || (0 < used.0 && IN_FLIGHT_BYTES_MAX < used.1 + bytes) {
            let waited = self.freed.wait_timeout(used, limit);
            let (now_used, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            used = now_used;
            if timed_out.timed_out() {
                let text = format!("no answer got out for {limit:?}, {} are due", used.0);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        used.0 += 1;
        used.1 += bytes;
        Ok(Slot { of: Arc::clone(self), bytes })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = lock(&self.of.used);
        used.0 -= 1;
        used.1 -= self.bytes;
        drop(used);
        self.of.freed.notify_one();
    }
}

/// Serves one connection until it ends.
pub(crate) fn serve(node: &Arc<Node>, stream: TcpStream, from: SocketAddr) {
    node.metrics.connections.inc();
    if let Err(error) = try_serve(node, stream) {
        use io::ErrorKind::{InvalidData, PermissionDenied, TimedOut};
        if matches!(error.kind(), InvalidData | PermissionDenied | TimedOut) {
            node.metrics.bad_connections.inc();
            tracing::warn!(%from, %error, "connection closed");
        } else {
            tracing::debug!(%from, %error, "connection ended");
        }
    }
    node.metrics.connections.dec();
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn try_serve(node: &Arc<Node>, stream: TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(REPLY_MAX))?;
    let writer = ReplyWriter::new(stream.try_clone()?);
    let in_flight = Arc::new(InFlight::default());
    let mut input = io::BufReader::with_capacity(64 << 10, stream);
    let mut peer = None;
    let mut buffer = Vec::new();
    let served = loop {
        let frame = match read_frame(&mut input) {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let call = match DataCall::from_bytes(&frame.args) {
            Ok(call) => call,
            Err(error) => break Err(invalid(format!("arguments: {error}"))),
        };
        let one_way = match frame.header.kind {
            FrameKind::Request => false,
            FrameKind::OneWay => true,
            FrameKind::Reply => break Err(invalid("a reply to nothing".to_owned())),
        };
        let slot = match in_flight.take(frame.payload.len(), ANSWER_MAX) {
            Ok(slot) => slot,
            Err(error) => break Err(error),
        };
        let waiter = Waiter {
            writer: writer.clone(),
            request: frame.header.request,
            begun: monotonic_nanos(),
            call: name(&call),
            from_client: matches!(peer, Some(Peer::Client(_))),
            _slot: slot,
        };
        if peer.is_none() {
            match hello(node, &call, waiter) {
                Ok(from) => peer = Some(from),
                Err(error) => break Err(error),
            }
            continue;
        }
        let server = match peer {
            Some(Peer::Server(server)) => Some(server),
            Some(Peer::Client(_)) | None => None,
        };
        if one_way {
            drop(waiter);
            on_one_way(node, server, call);
        } else {
            on_request(node, server, call, frame, waiter, &mut buffer);
        }
    };
    // Whoever still holds the writer finds it closed.
    writer.close();
    served
}

fn name(call: &DataCall) -> &'static str {
    match call {
        DataCall::Hello { .. } => "hello",
        DataCall::Read { .. } => "read",
        DataCall::Stat { .. } => "stat",
        DataCall::Mutate { .. } => "mutate",
        DataCall::Sync { .. } => "sync",
        DataCall::Replicate { .. } => "replicate",
        DataCall::SyncMember { .. } => "sync_member",
        DataCall::AllStable { .. } => "all_stable",
        DataCall::FetchSums { .. } => "fetch_sums",
        DataCall::FetchBlock { .. } => "fetch_block",
        DataCall::Committed { .. } => "committed",
        DataCall::Space => "space",
        DataCall::Repair { .. } => "repair",
        DataCall::ReadSums { .. } => "read_sums",
        DataCall::LocalDoor => "local_door",
        DataCall::Search { .. } => "search",
        DataCall::Records { .. } => "records",
    }
}

fn hello(node: &Node, call: &DataCall, waiter: Waiter) -> io::Result<Peer> {
    let DataCall::Hello { fs, from } = call else {
        return Err(invalid(format!("the first call is {}, not hello", name(call))));
    };
    if *fs != node.fs {
        let reason = format!("this is file system {}, not {fs}", node.fs);
        waiter.reply(node, &DataReply::Failed(DataFailure::BadRequest { reason: reason.clone() }));
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    waiter.reply(node, &DataReply::Welcome { fs: node.fs, server: node.server });
    Ok(*from)
}

fn on_one_way(node: &Arc<Node>, from: Option<ServerId>, call: DataCall) {
    if node.fence.check_takes_part().is_err() {
        return;
    }
    match call {
        DataCall::Committed { chunk, version, seq } if from.is_some() => {
            member::on_committed(node, chunk, version, seq);
        }
        DataCall::AllStable { chunk, version, seq } if from.is_some() => {
            member::on_all_stable(node, chunk, version, seq);
        }
        DataCall::Repair { layout, block } => {
            repair::repair_later(node, layout.chunk, block, layout.members);
        }
        DataCall::Hello { .. }
        | DataCall::Read { .. }
        | DataCall::Stat { .. }
        | DataCall::Mutate { .. }
        | DataCall::Sync { .. }
        | DataCall::Replicate { .. }
        | DataCall::SyncMember { .. }
        | DataCall::AllStable { .. }
        | DataCall::FetchSums { .. }
        | DataCall::FetchBlock { .. }
        | DataCall::Committed { .. }
        | DataCall::ReadSums { .. }
        | DataCall::LocalDoor
        | DataCall::Search { .. }
        | DataCall::Records { .. }
        | DataCall::Space => tracing::debug!("one-way call ignored"),
    }
}

fn on_request(
    node: &Arc<Node>,
    from: Option<ServerId>,
    call: DataCall,
    frame: Frame,
    waiter: Waiter,
    buffer: &mut Vec<u8>,
) {
    let payload_crc = frame.header.payload_crc;
    if let Err(failure) = node.fence.check_takes_part() {
        return waiter.reply(node, &DataReply::Failed(failure));
    }
    match call {
        DataCall::Hello { .. } => waiter.reply(node, &bad("hello was said already")),
        DataCall::Read { chunk, version, offset, len } => {
            buffer.clear();
            match read(node, chunk, version, offset, len, buffer) {
                Ok(replica_len) => {
                    node.metrics.read_bytes.inc_by(buffer.len() as u64);
                    waiter.reply_with(node, &DataReply::Read { replica_len }, buffer, None);
                }
                Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
            }
            // One large read must not cost the connection's memory for ever.
            buffer.shrink_to(1 << 20);
        }
        DataCall::ReadSums { chunk, version, offset, len } => {
            match read_sums(node, chunk, version, offset, len) {
                Ok((reply, sums)) => waiter.reply_with(node, &reply, &sums, None),
                Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
            }
        }
        DataCall::Search { chunk, version, offset, len, word, whole, count_only } => {
            let range = Range { chunk, version, offset, len };
            match search(node, range, &word, whole, count_only, buffer) {
                Ok((reply, hits)) => waiter.reply_with(node, &reply, &hits, None),
                Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
            }
        }
        DataCall::Records { chunk, version, from } => match records(node, chunk, version, from) {
            Ok((reply, list)) => waiter.reply_with(node, &reply, &list, None),
            Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
        },
        DataCall::LocalDoor => waiter.reply(
            node,
            &match &node.local_door {
                Some(door) => {
                    DataReply::LocalDoor { name: door.name.clone(), token: door.token.to_vec() }
                }
                None => bad("no files are handed out here"),
            },
        ),
        DataCall::Stat { chunk, version } => {
            let reply = stat(node, chunk, version).unwrap_or_else(DataReply::Failed);
            waiter.reply(node, &reply);
        }
        DataCall::Mutate { layout, client, counter, low_water, mutation } => {
            let request = primary::Request {
                layout,
                client,
                counter,
                low_water,
                mutation,
                payload: frame.payload,
                payload_crc,
            };
            primary::mutate(node, request, waiter);
        }
        DataCall::Sync { layout } => primary::sync(node, &layout, waiter),
        DataCall::Replicate {
            layout,
            seq,
            client,
            counter,
            low_water,
            mutation,
            append,
            committed,
            record,
        } if from == Some(layout.primary) => {
            let payload = frame.payload;
            let op = member::Replicated {
                layout,
                seq,
                client,
                counter,
                low_water,
                mutation,
                append,
                committed,
                record,
                payload,
            };
            let reply = member::replicate(node, op);
            waiter.reply(node, &reply);
        }
        DataCall::SyncMember { chunk, version, seq } if from.is_some() => {
            member::sync(node, chunk, version, seq, waiter);
        }
        DataCall::AllStable { chunk, version, seq } if from.is_some() => {
            member::on_all_stable(node, chunk, version, seq);
            waiter.reply(node, &DataReply::Applied { seq, free_bytes: node.free_bytes() });
        }
        DataCall::Committed { chunk, version, seq } if from.is_some() => {
            member::on_committed(node, chunk, version, seq);
            waiter.reply(node, &DataReply::Applied { seq, free_bytes: node.free_bytes() });
        }
        DataCall::FetchSums { chunk } if from.is_some() => match adopt::sums(node, chunk) {
            Ok((reply, payload)) => waiter.reply_with(node, &reply, &payload, None),
            Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
        },
        DataCall::FetchBlock { chunk, source_version, source_seq, block } if from.is_some() => {
            match adopt::block(node, chunk, source_version, source_seq, block) {
                Ok((reply, payload)) => waiter.reply_with(node, &reply, &payload, None),
                Err(failure) => waiter.reply(node, &DataReply::Failed(failure)),
            }
        }
        DataCall::Space => {
            waiter.reply(node, &DataReply::Applied { seq: 0, free_bytes: node.free_bytes() });
        }
        DataCall::Repair { layout, block } => {
            repair::repair_later(node, layout.chunk, block, layout.members);
            waiter.reply(node, &DataReply::Applied { seq: 0, free_bytes: node.free_bytes() });
        }
        DataCall::Replicate { .. }
        | DataCall::SyncMember { .. }
        | DataCall::AllStable { .. }
        | DataCall::Committed { .. }
        | DataCall::FetchSums { .. }
        | DataCall::FetchBlock { .. } => waiter.reply(node, &bad("not from that server")),
    }
}

fn bad(reason: &str) -> DataReply {
    DataReply::Failed(DataFailure::BadRequest { reason: reason.to_owned() })
}

/// Bytes of a replica that may be served, into `buffer`; its length.
pub(crate) fn read(
    node: &Arc<Node>,
    chunk: ChunkId,
    version: ChunkVersion,
    offset: u64,
    len: u32,
    buffer: &mut Vec<u8>,
) -> Result<u64, DataFailure> {
    let range = checked_range(offset, len)?;
    served(node, chunk, version, range, |store| {
        store.read(chunk, version, offset, u64::from(len), buffer)
    })
}

/// What a client needs to read the bytes from the file itself.
fn read_sums(
    node: &Arc<Node>,
    chunk: ChunkId,
    version: ChunkVersion,
    offset: u64,
    len: u32,
) -> Result<(DataReply, Vec<u8>), DataFailure> {
    let range = checked_range(offset, len)?;
    let found = served(node, chunk, version, range, |store| {
        store.read_sums(chunk, version, offset, u64::from(len))
    })?;
    let reply = DataReply::ReadSums { replica_len: found.replica_len, in_file: found.in_file };
    node.metrics.local_read_bytes.inc_by(u64::from(len));
    Ok((reply, found.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()))
}

/// Records of a replica that may be served, and their list.
fn records(
    node: &Arc<Node>,
    chunk: ChunkId,
    version: ChunkVersion,
    from: u64,
) -> Result<(DataReply, Vec<u8>), DataFailure> {
    let found = served(node, chunk, version, (from, u64::MAX), |store| {
        store.records(chunk, version, from)
    })?;
    let ListedRecords { replica_len, records, more, all_known } = found;
    Ok((DataReply::Records { replica_len, more, all_known }, records.as_bytes().to_vec()))
}

fn checked_range(offset: u64, len: u32) -> Result<(u64, u64), DataFailure> {
    if PAYLOAD_BYTES_MAX < len {
        return Err(DataFailure::BadRequest { reason: format!("read of {len} bytes") });
    }
    Ok((offset, offset.saturating_add(u64::from(len))))
}

/// Does `read` of bytes `offset..end` with all that must hold before and after it.
fn served<T>(
    node: &Arc<Node>,
    chunk: ChunkId,
    version: ChunkVersion,
    (offset, end): (u64, u64),
    read: impl FnOnce(&Store) -> Result<T, StoreError>,
) -> Result<T, DataFailure> {
    node.fence.check()?;
    let found = read(&node.store).map_err(|error| node.failure(version, &error))?;
    // After reading: what was read may be served once all that was applied before it is everywhere.
    match node.leaders.of_version(chunk, version) {
        Some(led) => primary::wait_committed(&led, offset, end)?,
        None => node.members.check_committed(node, chunk, version, offset, end)?,
    }
    // Asked again: the lease may have ended while the disk was slow.
    node.fence.check()?;
    Ok(found)
}

fn stat(node: &Node, chunk: ChunkId, version: ChunkVersion) -> Result<DataReply, DataFailure> {
    node.fence.check()?;
    if let Some(led) = node.leaders.of_version(chunk, version) {
        return Ok(primary::committed_stat(&led));
    }
    let report = node.store.report(chunk).ok_or(DataFailure::NoReplica)?;
    if report.not_current {
        return Err(DataFailure::NotCurrent);
    }
    if report.position.version != version {
        return Err(DataFailure::StaleVersion {
            asked: version.0,
            promised: report.promised.0,
            have: report.position.version.0,
        });
    }
    node.members.check_committed(node, chunk, version, 0, u64::MAX)?;
    Ok(DataReply::Stat {
        version,
        seq: report.position.seq,
        len: report.len,
        sealed: report.sealed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_room_waits_for_an_answer_and_not_for_ever() {
        let in_flight = Arc::new(InFlight::default());
        let soon = Duration::from_millis(20);
        let first = in_flight.take(IN_FLIGHT_BYTES_MAX, soon).unwrap();
        let error = in_flight.take(1, soon).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let waiting = {
            let in_flight = Arc::clone(&in_flight);
            std::thread::spawn(move || in_flight.take(1, Duration::from_secs(60)).map(drop))
        };
        drop(first);
        waiting.join().unwrap().unwrap();
        assert_eq!(*lock(&in_flight.used), (0, 0));
    }
}
