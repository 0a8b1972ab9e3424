//! `dfs-core`'s types as bytes: what the log and the metadata store hold.

use dfs_core::chunk::{Chunk, ChunkIdentity, Configuration, Garbage, Member, Preparing};
use dfs_core::cluster::overlay::{Overlay, OverlayKind};
use dfs_core::command::{
    Change, Command, Lock, LockKind, NewKind, Outcome, RenameMode, SetTime, XattrMode,
};
use dfs_core::cuts::{Cut, Cuts};
use dfs_core::event::{Event, EventKind};
use dfs_core::ids::{
    ChunkId, ChunkVersion, ClientId, DiskId, Epoch, FsId, InodeNo, OpId, ServerId,
};
use dfs_core::job::{Job, JobId, JobPhase, JobWork, JobWorker, WorkProgress};
use dfs_core::meta::marks::{Mark, Marks, Shown};
use dfs_core::meta::{Client, FormerDisk, Key, Record, Server, Superblock, Trashed};
use dfs_core::namespace::{Attr, Body, Dentry, FileKind, Inode, Layout, NamespaceError};
use dfs_core::results::Results;
use dfs_core::time::{Timestamp, WallTime};

use crate::codec::{
    DecodeError, Reader, Wire, get_field, get_group, put_group, wire_enum, wire_list, wire_newtype,
    wire_struct,
};

wire_newtype!(
    InodeNo(u64),
    ChunkId(u64),
    ChunkVersion(u64),
    ServerId(u32),
    DiskId(u128),
    FsId(u128),
    ClientId(u128),
    Epoch(u64),
    WallTime(i64),
    Timestamp(u64),
    JobId(u64),
);
wire_struct!(OpId { client, op, part });

wire_enum!(FileKind {
    1 = File,
    2 = Directory,
    3 = Symlink,
    4 = Fifo,
    5 = Socket,
    6 = CharDevice,
    7 = BlockDevice,
});
wire_struct!(Layout { chunk_size, record_log, record_max });
wire_enum!(Body {
    1 = Inline(content),
    2 = Chunks { chunk_count, writing },
    3 = Directory { parent, entry_count, next_cookie },
    4 = Symlink(target),
    5 = Special,
});
wire_struct!(Inode {
    kind,
    mode,
    uid,
    gid,
    nlink,
    rdev,
    size,
    atime,
    mtime,
    ctime,
    btime,
    change,
    cuts,
    cut_sizes,
    layout,
    body
});
wire_struct!(Cut { number, size });
wire_list!(Cut);
wire_struct!(Cuts { kept, forgotten });
wire_struct!(Attr {
    ino,
    kind,
    mode,
    uid,
    gid,
    nlink,
    rdev,
    size,
    allocated_bytes,
    atime,
    mtime,
    ctime,
    btime,
    change,
    cuts,
    layout,
    inline,
    writing
});
wire_struct!(Dentry { ino, kind, cookie });
wire_enum!(NamespaceError {
    1 = NotFound,
    2 = Exists,
    3 = NotDirectory,
    4 = IsDirectory,
    5 = NotEmpty,
    6 = NameTooLong,
    7 = Invalid(text),
    8 = TooManyLinks,
    9 = NotPermitted(text),
    10 = NoAttribute,
    11 = AttributeTooLarge,
    12 = FileTooLarge,
    13 = LayoutChanged,
    14 = Stale,
    15 = Locked,
    16 = NoLocks,
    17 = NoSession,
    18 = OutcomeUnknown,
    19 = Busy,
    20 = Truncated,
});

wire_struct!(Member { server, disk });
wire_list!(Member);
wire_list!(ChunkId);
wire_struct!(Configuration { version, members, primary });
wire_struct!(Preparing { version, members, learner, after_wait });
wire_struct!(Chunk {
    ino,
    index,
    chunk_size,
    active,
    preparing,
    next_version,
    attached,
    born,
    sealed,
    stored
});
wire_struct!(Garbage { members, version });
wire_struct!(ChunkIdentity { chunk, ino, index, chunk_size });

wire_enum!(NewKind {
    1 = File,
    2 = Directory,
    3 = Symlink(target),
    4 = Fifo,
    5 = Socket,
    6 = CharDevice(rdev),
    7 = BlockDevice(rdev),
});
wire_enum!(SetTime { 1 = Keep, 2 = Now, 3 = To(time) });
wire_enum!(RenameMode { 1 = Replace, 2 = NoReplace, 3 = Exchange });
wire_enum!(XattrMode { 1 = Set, 2 = Create, 3 = Replace });
wire_enum!(LockKind { 1 = Shared, 2 = Exclusive });
wire_struct!(Lock { client, owner, start, end, kind, pid });
wire_list!(Lock);
wire_enum!(OverlayKind { 1 = Suspended, 2 = Draining, 3 = Maintenance, 4 = Probation, 5 = Decommissioned });
wire_struct!(Overlay { kind, since, until, by });
wire_list!(Overlay);
wire_enum!(EventKind {
    1 = Started,
    2 = Alive,
    3 = Suspect,
    4 = Dead,
    5 = Wished,
    6 = Reverted,
    7 = Reconfigured,
    8 = Report,
    9 = Lost,
    10 = Damaged,
    11 = Diverged,
    12 = Mended,
    13 = Directory,
});
wire_struct!(Event { at, kind, server, cause, lasted_ms });
wire_list!(Event);
wire_list!((u32, u64));
wire_list!((u64, Vec<u8>));
wire_list!(u128);
wire_enum!(JobPhase { 1 = Running, 2 = Paused, 3 = Done, 4 = Cancelled });
wire_enum!(JobWork { 1 = Drain { server }, 2 = Rebalance, 3 = Scrub { server, ino, end } });
wire_struct!(JobWorker { server, mark, stalled, since });
wire_list!(JobWorker);
wire_struct!(WorkProgress { server, done, mark, busy });
wire_list!(WorkProgress);
wire_struct!(Job {
    name,
    by,
    phase,
    workers,
    snapshots,
    began,
    ended,
    request,
    snapshot_request,
    work,
    servers,
    total,
    found,
    older_requests
});
/// What [`Results`] are on the wire: the mark, which older programs know too, and behind all other fields what they
/// skip, the number below which all others have their results, and those awaited after the first.
pub(crate) type SparseResults = Option<(u64, Vec<u64>)>;

pub(crate) fn sparse_results(results: &Results) -> SparseResults {
    let (_, rest) = results.awaited().split_first()?;
    Some((results.below(), rest.to_vec()))
}

/// # Errors
/// `Range` if this is not what [`sparse_results`] makes.
pub(crate) fn results_of(low_water: u64, sparse: SparseResults) -> Result<Results, DecodeError> {
    let Some((below, rest)) = sparse else { return Ok(Results::all_below(low_water)) };
    let awaited = std::iter::once(low_water).chain(rest).collect();
    Results::all_but(awaited, below).ok_or(DecodeError::Range("results"))
}

wire_list!(u64);

impl Wire for Command {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { at, id, results, change } = self;
        put_group(out, |out| {
            at.put(out);
            id.put(out);
            results.low_water().put(out);
            change.put(out);
            sparse_results(results).put(out);
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "Command")?;
        let at = get_field(&mut group)?;
        let id = get_field(&mut group)?;
        let low_water = get_field(&mut group)?;
        let change = get_field(&mut group)?;
        let results = results_of(low_water, get_field(&mut group)?)?;
        Ok(Self { at, id, results, change })
    }
}
wire_enum!(Change {
    1 = Start { epoch, nonce, fs, replication, min_replicas },
    5 = SetRootLayout { layout },
    2 = BeginClient { client, name },
    3 = EndClient { client },
    4 = FenceClient { client },
    10 = Create { parent, name, kind, mode, umask, uid, gid, layout, open_existing },
    11 = Link { ino, parent, name },
    12 = Unlink { parent, name },
    13 = Rmdir { parent, name },
    14 = Rename { from_parent, from, to_parent, to, mode },
    15 = SetAttr { ino, mode, uid, gid, atime, mtime, kill_priv },
    16 = SetXattr { ino, name, value, mode },
    17 = RemoveXattr { ino, name },
    18 = Reclaim { ino },
    19 = CreateUnnamed { parent, mode, umask, uid, gid, layout },
    20 = PutInPlace { ino, parent, name },
    30 = InlineWrite { ino, offset, data, append, mtime, kill_priv },
    42 = InlinePatch { ino, ranges, mtime, kill_priv },
    31 = InlineZero { ino, offset, len, keep_size },
    32 = InlineTruncate { ino, size },
    33 = AddChunk { ino, index, members, primary, attach },
    34 = Spill { ino, change_seen, chunk },
    35 = DropChunk { chunk },
    36 = BeginWrite { ino },
    37 = CommitSize { ino, size, cuts_seen, mtime, done_writing, kill_priv },
    38 = TruncateBegin { ino, size },
    39 = TruncateEnd { ino, size },
    40 = FreeChunks { ino, first, count },
    43 = Grow { ino, size },
    41 = SealChunk { chunk },
    60 = Reconfigure { chunk, version, members, learner, after_wait },
    61 = Activate { chunk, configuration, done_by },
    62 = ForgetGarbage { chunk },
    68 = SkipIds,
    67 = NoteStored { chunks },
    63 = RegisterServer { server, disk },
    69 = MarkDisk { server, disk, shown },
    64 = SetOverlay { server, kind, until, by, cause },
    65 = ClearOverlay { server, kind, only_until, by },
    66 = Note { events },
    70 = CreateJob { name, workers, by, request },
    71 = SetJobStates { job, states },
    72 = SnapshotJob { job, request },
    73 = SetJobPhase { job, phase },
    74 = ForgetJob { job },
    77 = SetTrash { keep_ms, by },
    78 = Restore { number, parent, name },
    79 = EmptyTrash { numbers },
    75 = BeginWork { work, by, request },
    76 = AdvanceJob { job, total, found, workers, snapshot },
    80 = SetLock { ino, client, owner, start, end, kind, pid },
});
wire_enum!(Outcome {
    1 = Done,
    2 = Refused(error),
    3 = Entry { attr, created },
    4 = Attr(attr),
    5 = Unlinked { ino, nlink },
    6 = Renamed { moved, replaced },
    7 = Appended { offset, attr },
    8 = Chunk { chunk, record },
    9 = Truncating { tail, attr },
    10 = LockChanged,
    11 = Number(number),
});

wire_struct!(Superblock {
    fs,
    epoch,
    nonce,
    next_inode,
    next_chunk,
    now,
    replication,
    min_replicas,
    inode_count,
    chunk_count,
    file_bytes,
    next_event,
    next_job,
    next_trash,
    trash_ms
});
wire_struct!(Trashed { ino, parent, name, at, until });
wire_struct!(Mark { number, nonce });
impl Wire for Marks {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { confirmed, pending } = self;
        put_group(out, |out| {
            confirmed.put(out);
            pending.put(out);
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "Marks")?;
        let confirmed = get_field(&mut group)?;
        let pending = get_field(&mut group)?;
        Ok(Self { confirmed, pending })
    }
    /// Of a server that registered before there were any: its directory gets its first with the next start.
    fn absent() -> Result<Self, DecodeError> {
        Ok(Self::default())
    }
}
wire_struct!(Shown { last, next, loss_accepted });
wire_struct!(FormerDisk { disk, marks });
wire_list!(FormerDisk);
wire_struct!(Server { disk, registered, overlays, marks, former });
impl Wire for Client {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { name, began, results, reply_count, fenced } = self;
        put_group(out, |out| {
            name.put(out);
            began.put(out);
            results.low_water().put(out);
            reply_count.put(out);
            fenced.put(out);
            sparse_results(results).put(out);
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "Client")?;
        let name = get_field(&mut group)?;
        let began = get_field(&mut group)?;
        let low_water = get_field(&mut group)?;
        let reply_count = get_field(&mut group)?;
        let fenced = get_field(&mut group)?;
        let results = results_of(low_water, get_field(&mut group)?)?;
        Ok(Self { name, began, results, reply_count, fenced })
    }
}
wire_enum!(Record {
    1 = Super(record),
    2 = Inode(record),
    3 = Dentry(record),
    4 = DirSlot { name, ino, kind },
    5 = FileChunk(record),
    6 = Chunk(record),
    7 = Xattr(record),
    8 = Locks(record),
    9 = Orphan,
    10 = Truncating(record),
    11 = Garbage(record),
    12 = Server(record),
    13 = Client(record),
    14 = Reply(record),
    15 = Event(record),
    16 = Job(record),
    17 = JobState(record),
    18 = Trash(record),
    19 = Unnamed,
});

/// A key as bytes whose order is the derived order of [`Key`]: one tag byte, big-endian fields, names last.
#[must_use]
pub fn encode_key(key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    match key {
        Key::Super => out.push(1),
        Key::Inode(ino) => tagged(&mut out, 2, &[ino.0]),
        Key::Dentry(parent, name) => {
            tagged(&mut out, 3, &[parent.0]);
            out.extend_from_slice(name);
        }
        Key::DirSlot(parent, cookie) => tagged(&mut out, 4, &[parent.0, *cookie]),
        Key::FileChunk(ino, index) => tagged(&mut out, 5, &[ino.0, *index]),
        Key::Chunk(chunk) => tagged(&mut out, 6, &[chunk.0]),
        Key::Xattr(ino, name) => {
            tagged(&mut out, 7, &[ino.0]);
            out.extend_from_slice(name);
        }
        Key::Locks(ino) => tagged(&mut out, 8, &[ino.0]),
        Key::Orphan(ino) => tagged(&mut out, 9, &[ino.0]),
        Key::Truncating(ino) => tagged(&mut out, 10, &[ino.0]),
        Key::Garbage(chunk) => tagged(&mut out, 11, &[chunk.0]),
        Key::Unborn(ino, chunk) => tagged(&mut out, 15, &[ino.0, chunk.0]),
        Key::Event(number) => tagged(&mut out, 16, &[*number]),
        Key::Job(job) => tagged(&mut out, 17, &[job.0]),
        Key::JobState(job, worker, from) => {
            tagged(&mut out, 18, &[job.0]);
            out.extend_from_slice(&worker.to_be_bytes());
            out.extend_from_slice(&from.to_be_bytes());
        }
        Key::Trash(number) => tagged(&mut out, 19, &[*number]),
        Key::Server(server) => {
            out.push(12);
            out.extend_from_slice(&server.0.to_be_bytes());
        }
        Key::Client(client) => {
            out.push(13);
            out.extend_from_slice(&client.0.to_be_bytes());
        }
        Key::Reply(client, op, part) => {
            out.push(14);
            out.extend_from_slice(&client.0.to_be_bytes());
            out.extend_from_slice(&op.to_be_bytes());
            out.extend_from_slice(&part.to_be_bytes());
        }
    }
    out
}

fn tagged(out: &mut Vec<u8>, tag: u8, fields: &[u64]) {
    out.push(tag);
    fields.iter().for_each(|field| out.extend_from_slice(&field.to_be_bytes()));
}

/// The key that [`encode_key`] wrote as `bytes`.
///
/// # Errors
/// `Tag` or `Short` for bytes it never writes.
pub fn decode_key(bytes: &[u8]) -> Result<Key, DecodeError> {
    fn be64(input: &mut Reader<'_>) -> Result<u64, DecodeError> {
        u64::get(input).map(u64::swap_bytes)
    }
    fn be128(input: &mut Reader<'_>) -> Result<u128, DecodeError> {
        u128::get(input).map(u128::swap_bytes)
    }
    let mut input = Reader::new(bytes);
    let key = match u8::get(&mut input)? {
        1 => Key::Super,
        2 => Key::Inode(InodeNo(be64(&mut input)?)),
        3 => {
            let parent = InodeNo(be64(&mut input)?);
            Key::Dentry(parent, input.take(input.remaining(), "name")?.to_vec())
        }
        4 => Key::DirSlot(InodeNo(be64(&mut input)?), be64(&mut input)?),
        5 => Key::FileChunk(InodeNo(be64(&mut input)?), be64(&mut input)?),
        6 => Key::Chunk(ChunkId(be64(&mut input)?)),
        7 => {
            let ino = InodeNo(be64(&mut input)?);
            Key::Xattr(ino, input.take(input.remaining(), "name")?.to_vec())
        }
        8 => Key::Locks(InodeNo(be64(&mut input)?)),
        9 => Key::Orphan(InodeNo(be64(&mut input)?)),
        10 => Key::Truncating(InodeNo(be64(&mut input)?)),
        11 => Key::Garbage(ChunkId(be64(&mut input)?)),
        12 => Key::Server(ServerId(u32::get(&mut input)?.swap_bytes())),
        13 => Key::Client(ClientId(be128(&mut input)?)),
        14 => Key::Reply(
            ClientId(be128(&mut input)?),
            be64(&mut input)?,
            u32::get(&mut input)?.swap_bytes(),
        ),
        15 => Key::Unborn(InodeNo(be64(&mut input)?), ChunkId(be64(&mut input)?)),
        16 => Key::Event(be64(&mut input)?),
        19 => Key::Trash(be64(&mut input)?),
        17 => Key::Job(JobId(be64(&mut input)?)),
        18 => Key::JobState(
            JobId(be64(&mut input)?),
            u32::get(&mut input)?.swap_bytes(),
            be64(&mut input)?,
        ),
        tag => return Err(DecodeError::Tag { of: "Key", tag: u32::from(tag) }),
    };
    match input.remaining() {
        0 => Ok(key),
        left => Err(DecodeError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_recorded_before_there_were_marks_has_none() {
        let mut old = Vec::new();
        put_group(&mut old, |out| {
            DiskId(9).put(out);
            WallTime(5).put(out);
            Vec::<Overlay>::new().put(out);
        });
        let server = Server::from_bytes(&old).unwrap();
        let marks = Marks::default();
        let expected = Server {
            disk: DiskId(9),
            registered: WallTime(5),
            overlays: Vec::new(),
            marks,
            former: Vec::new(),
        };
        assert_eq!(server, expected);
        // And what is written now has room for more behind it.
        assert_eq!(Server::from_bytes(&expected.to_bytes()), Ok(expected));
    }
}
