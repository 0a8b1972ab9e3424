//! Requests of clients to the master, in frames ([`crate::frame`]): `MetaRequest` in the arguments, no payload.
//!
//! A change carries (client, op, part) and which results its client has; its outcome is recorded with its effect.

use dfs_core::chunk::Member;
use dfs_core::command::{Change, Lock, LockKind, Outcome};
use dfs_core::cuts::Cuts;
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, Epoch, FsId, InodeNo, ServerId};
use dfs_core::namespace::{Attr, FileKind, NamespaceError};
use dfs_core::results::Results;
use dfs_core::time::WallTime;

use crate::codec::{
    DecodeError, Reader, Wire, get_field, get_group, put_group, wire_enum, wire_list, wire_struct,
};
use crate::convert::{results_of, sparse_results};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaRequest {
    pub client: ClientId,
    /// Which results of its changes the client has.
    pub results: Results,
    pub call: MetaCall,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaCall {
    /// First request on a connection: registers the client (logged) if it is not yet, tells it who it talks to. One that
    /// was `known` before and is no longer has ended, and is refused.
    Hello {
        name: String,
        known: bool,
    },
    /// One logged change, exactly once per (client, op, part). Chunk-map and reign changes are refused.
    Change {
        op: u64,
        part: u32,
        change: Change,
    },
    /// Shows that the client lives (mount lease, DECISIONS 12); every other request does too.
    /// A change of names, answered with `Changed`. `open`: a file that it creates is counted as opened.
    ChangeNames {
        op: u64,
        change: Change,
        open: bool,
    },
    Ping,
    /// Ends the client: locks, opens and results go.
    Goodbye,

    Lookup {
        parent: InodeNo,
        name: Vec<u8>,
    },
    GetAttr {
        ino: InodeNo,
    },
    /// Entries after `after_cookie` (0: from the start), at most `max_entries`, with attributes if `plus`.
    ReadDir {
        ino: InodeNo,
        after_cookie: u64,
        max_entries: u32,
        plus: bool,
    },
    ReadLink {
        ino: InodeNo,
    },
    GetXattr {
        ino: InodeNo,
        name: Vec<u8>,
    },
    ListXattrs {
        ino: InodeNo,
    },
    Statfs,
    /// Counts an open (DECISIONS 13) and answers fresh attributes, with the content if it is inline.
    Open {
        ino: InodeNo,
        write: bool,
    },
    Release {
        ino: InodeNo,
        write: bool,
    },
    /// After a master restart: the client's opens, all of them.
    Reopen {
        opens: Vec<(InodeNo, u32)>,
    },
    /// Attributes, and the content if it is inline, without counting an open.
    ReadInline {
        ino: InodeNo,
    },
    /// Where chunk `index` is. `write`: made if absent (attached unless `spill`), waits for a configuration that can
    /// be written. `failed`: what the client saw fail in which version; the master reconfigures before it answers.
    Layout {
        ino: InodeNo,
        index: u64,
        write: bool,
        spill: bool,
        failed: Option<FailedMember>,
    },
    /// Layouts of existing chunks `first..`, at most `max`, for reading.
    Layouts {
        ino: InodeNo,
        first: u64,
        max: u32,
    },
    /// To what sizes `ino` was truncated lately.
    Cuts {
        ino: InodeNo,
    },
    /// Cuts or grows a file to `size` bytes: all of DECISIONS 8. Exactly once per op.
    Truncate {
        op: u64,
        ino: InodeNo,
        size: u64,
    },
    /// Frees chunks `first..` of a file that lie wholly behind its logged size, unless somebody else writes the file: the
    /// bytes there may be theirs. Exactly once per op; answers the attributes.
    FreeUnlogged {
        op: u64,
        ino: InodeNo,
        first: u64,
    },
    /// Takes or tests a lock; `wait` holds the answer back until it is granted or `wait_ms` passed (`Locked`).
    SetLock {
        op: u64,
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: Option<LockKind>,
        pid: u32,
        wait_ms: u32,
    },
    TestLock {
        ino: InodeNo,
        owner: u64,
        start: u64,
        end: u64,
        kind: LockKind,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailedMember {
    pub version: ChunkVersion,
    pub server: ServerId,
    /// It refused bytes for want of room, and is well otherwise.
    pub full: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaReply {
    Welcome(Welcome),
    Outcome(Outcome),
    /// `directories`: the attributes afterwards of those whose names were changed.
    Changed {
        outcome: Outcome,
        directories: Vec<Attr>,
    },
    Attr(Attr),
    Entries {
        entries: Vec<EntryPlus>,
        end: bool,
    },
    Bytes(Vec<u8>),
    Names(Vec<NameBytes>),
    Statfs(StatfsReply),
    /// `content`: all of an inline file (zeros up to the size may be missing).
    ///
    /// `written_elsewhere`: other clients may be writing it. What they sync leaves the change number as it is for a while.
    Opened {
        attr: Attr,
        content: Option<Vec<u8>>,
        written_elsewhere: bool,
    },
    Layout(ChunkLayout),
    /// To write by. `cuts`: the inode's counter of truncations. Those up to it that cut the chunk are over, later ones
    /// make this layout void first.
    WriteLayout {
        layout: ChunkLayout,
        cuts: u64,
    },
    Cuts(Cuts),
    Layouts(Vec<ChunkLayout>),
    /// There is no such chunk: a hole.
    Hole,
    Conflict(Option<Lock>),
    Done,
    Failed(MetaFailure),
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaFailure {
    #[error(transparent)]
    Refused(#[from] NamespaceError),
    /// Locations are not known yet; ask again after this many milliseconds (DECISIONS 17).
    #[error("master is warming up")]
    Warming { retry_after_ms: u32 },
    /// Too few members are reachable; ask again, the reason is for people.
    #[error("chunk unavailable: {reason}")]
    Unavailable { reason: String, retry_after_ms: u32 },
    /// No server has space for a new chunk.
    #[error("no space: {reason}")]
    NoSpace { reason: String },
    /// Nothing was done; ask again.
    #[error("master busy")]
    Busy { retry_after_ms: u32 },
    /// The request makes no sense to the master.
    #[error("bad request: {reason}")]
    BadRequest { reason: String },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    pub fs: FsId,
    pub epoch: Epoch,
    /// Changes at each start of a master: opens must be sent again.
    pub nonce: u64,
    pub now: WallTime,
    pub replication: u32,
    pub min_replicas: u32,
    pub client_lease_ms: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryPlus {
    pub cookie: u64,
    pub name: Vec<u8>,
    pub ino: InodeNo,
    pub kind: FileKind,
    pub attr: Option<Attr>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameBytes(pub Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatfsReply {
    /// Bytes of user data that fit altogether, are free, and free to ordinary users: raw space / replication.
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub available_bytes: u64,
    pub inodes_total: u64,
    pub inodes_free: u64,
}

/// Everything a client needs to talk to a chunk's members, and the primary needs from the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkLayout {
    pub chunk: ChunkId,
    pub ino: InodeNo,
    pub index: u64,
    pub chunk_size: u64,
    pub version: ChunkVersion,
    pub members: Vec<MemberAddress>,
    pub primary: ServerId,
    pub epoch: Epoch,
    /// It may be that no member has a file for it yet: reads of it are a hole.
    pub born: bool,
    pub sealed: bool,
    /// Fewer than `min_replicas` members: reads only.
    pub writable: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberAddress {
    pub member: Member,
    /// `ip:port`, empty if the server is not known to be up.
    pub address: String,
}

impl Wire for MetaRequest {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { client, results, call } = self;
        put_group(out, |out| {
            client.put(out);
            results.low_water().put(out);
            call.put(out);
            sparse_results(results).put(out);
        });
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut group = get_group(input, "MetaRequest")?;
        let client = get_field(&mut group)?;
        let low_water = get_field(&mut group)?;
        let call = get_field(&mut group)?;
        let results = results_of(low_water, get_field(&mut group)?)?;
        Ok(Self { client, results, call })
    }
}
wire_struct!(FailedMember { version, server, full });
wire_list!(Attr, (InodeNo, u32), EntryPlus, NameBytes, ChunkLayout, MemberAddress);
wire_enum!(MetaCall {
    1 = Hello { name, known },
    2 = Change { op, part, change },
    3 = Ping,
    4 = Goodbye,
    5 = ChangeNames { op, change, open },
    10 = Lookup { parent, name },
    11 = GetAttr { ino },
    12 = ReadDir { ino, after_cookie, max_entries, plus },
    13 = ReadLink { ino },
    14 = GetXattr { ino, name },
    15 = ListXattrs { ino },
    16 = Statfs,
    17 = Open { ino, write },
    18 = Release { ino, write },
    19 = Reopen { opens },
    20 = ReadInline { ino },
    30 = Layout { ino, index, write, spill, failed },
    31 = Layouts { ino, first, max },
    32 = Truncate { op, ino, size },
    33 = Cuts { ino },
    34 = FreeUnlogged { op, ino, first },
    40 = SetLock { op, ino, owner, start, end, kind, pid, wait_ms },
    41 = TestLock { ino, owner, start, end, kind },
});
wire_enum!(MetaReply {
    1 = Welcome(welcome),
    2 = Outcome(outcome),
    3 = Attr(attr),
    4 = Entries { entries, end },
    5 = Bytes(bytes),
    6 = Names(names),
    7 = Statfs(statfs),
    8 = Opened { attr, content, written_elsewhere },
    9 = Layout(layout),
    10 = Layouts(layouts),
    11 = Hole,
    12 = Conflict(lock),
    13 = Done,
    14 = Failed(failure),
    15 = Changed { outcome, directories },
    16 = WriteLayout { layout, cuts },
    17 = Cuts(cuts),
});
wire_enum!(MetaFailure {
    1 = Refused(error),
    2 = Warming { retry_after_ms },
    3 = Unavailable { reason, retry_after_ms },
    4 = NoSpace { reason },
    5 = Busy { retry_after_ms },
    6 = BadRequest { reason },
});
wire_struct!(Welcome { fs, epoch, nonce, now, replication, min_replicas, client_lease_ms });
wire_struct!(EntryPlus { cookie, name, ino, kind, attr });
impl Wire for NameBytes {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn get(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Vec::<u8>::get(input).map(NameBytes)
    }
}
wire_struct!(StatfsReply { total_bytes, free_bytes, available_bytes, inodes_total, inodes_free });
wire_struct!(ChunkLayout {
    chunk,
    ino,
    index,
    chunk_size,
    version,
    members,
    primary,
    epoch,
    born,
    sealed,
    writable
});
wire_struct!(MemberAddress { member, address });
