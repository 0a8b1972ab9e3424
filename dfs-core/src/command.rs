//! The commands of the one log, and what applying them answers.
//!
//! Time, ids and choices are fields, set by the leader before the command is proposed, so that a replay gives
//! the same state. Permission bits are checked by the kernel (`default_permissions`), not here.

use crate::chunk::{Configuration, Member};
use crate::cluster::overlay::OverlayKind;
use crate::event::Event;
use crate::ids::{ChunkId, ChunkVersion, ClientId, DiskId, Epoch, FsId, InodeNo, OpId, ServerId};
use crate::job::{JobId, JobPhase, JobWork, WorkProgress};
use crate::meta::marks::Shown;
use crate::namespace::{Attr, Layout, NamespaceError};
use crate::results::Results;
use crate::time::WallTime;

/// One entry of a batch in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// The master's clock; [`crate::meta::apply`] makes it rise strictly.
    pub at: WallTime,
    /// Who asked, for exactly once. `None`: the leader itself.
    pub id: Option<OpId>,
    pub results: Results,
    pub change: Change,
}

/// What to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewKind {
    File,
    Directory,
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
}

/// A time in `utimensat(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    Keep,
    Now,
    To(WallTime),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    Replace,
    /// `RENAME_NOREPLACE`
    NoReplace,
    /// `RENAME_EXCHANGE`
    Exchange,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrMode {
    Set,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LockKind {
    Shared,
    Exclusive,
}

/// A lock held on `start..=end` of a file by (`client`, `owner`); `pid` is only shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Lock {
    pub client: ClientId,
    pub owner: u64,
    pub start: u64,
    pub end: u64,
    pub kind: LockKind,
    pub pid: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    // Reign and clients.
    /// First command of every reign; refused if `epoch` is not above the recorded one. The numbers of replicas hold from
    /// here on, for chunks that exist too.
    Start {
        epoch: Epoch,
        nonce: u64,
        fs: FsId,
        replication: u32,
        min_replicas: u32,
    },
    /// What files of the root directory inherit; refused once anything was ever made.
    SetRootLayout {
        layout: Layout,
    },
    BeginClient {
        client: ClientId,
        name: String,
    },
    /// Refuses everything of a client from now on. It keeps its locks until [`Change::EndClient`], so that nobody gets
    /// one while a chunkserver may still take its writes (DECISIONS 12).
    FenceClient {
        client: ClientId,
    },
    /// Ends a client: its locks, results and registration go.
    EndClient {
        client: ClientId,
    },

    // Namespace.
    Create {
        parent: InodeNo,
        name: Vec<u8>,
        kind: NewKind,
        /// Permission bits asked for; `umask` is applied unless the parent has a default ACL.
        mode: u32,
        umask: u32,
        uid: u32,
        gid: u32,
        /// `None`: inherited from the parent.
        layout: Option<Layout>,
        /// If the name is a regular file already: answer its attributes instead of `Exists` (open without O_EXCL).
        open_existing: bool,
    },
    /// A regular file without a name, as `O_TMPFILE` of open(2) makes one: it is there as long as somebody has it open.
    /// The rest as for [`Change::Create`] in `parent`.
    CreateUnnamed {
        parent: InodeNo,
        mode: u32,
        umask: u32,
        uid: u32,
        gid: u32,
        layout: Option<Layout>,
    },
    /// Gives a file without a name this one, in place of what has it, if anything.
    PutInPlace {
        ino: InodeNo,
        parent: InodeNo,
        name: Vec<u8>,
    },
    Link {
        ino: InodeNo,
        parent: InodeNo,
        name: Vec<u8>,
    },
    Unlink {
        parent: InodeNo,
        name: Vec<u8>,
    },
    Rmdir {
        parent: InodeNo,
        name: Vec<u8>,
    },
    Rename {
        from_parent: InodeNo,
        from: Vec<u8>,
        to_parent: InodeNo,
        to: Vec<u8>,
        mode: RenameMode,
    },
    /// `caller_uid`/`caller_in_group` decide whether setgid survives chmod, as Linux does; `kill_priv` clears
    /// setuid and setgid as a write by an ordinary user does.
    SetAttr {
        ino: InodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        atime: SetTime,
        mtime: SetTime,
        kill_priv: bool,
    },
    SetXattr {
        ino: InodeNo,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    },
    RemoveXattr {
        ino: InodeNo,
        name: Vec<u8>,
    },
    /// The last open of an unlinked inode is gone: free it. Refused while it has a name.
    Reclaim {
        ino: InodeNo,
    },

    // Content.
    /// Write (or append) to inline content; refused with `LayoutChanged` if the content is in chunks or would not fit.
    InlineWrite {
        ino: InodeNo,
        offset: u64,
        data: Vec<u8>,
        append: bool,
        mtime: Option<WallTime>,
        kill_priv: bool,
    },
    /// Several writes to inline content at once: each at its offset, the later over the earlier. What lies between them is
    /// left as it is. As [`Self::InlineWrite`] otherwise; the change number rises by one.
    InlinePatch {
        ino: InodeNo,
        ranges: Vec<(u64, Vec<u8>)>,
        mtime: Option<WallTime>,
        kill_priv: bool,
    },
    /// Zero `offset..offset+len` of inline content, extending the size to `offset+len` unless `keep_size`.
    InlineZero {
        ino: InodeNo,
        offset: u64,
        len: u64,
        keep_size: bool,
    },
    /// Size of inline content, or of chunked content that was already cut by its primaries; see `TruncateBegin`.
    InlineTruncate {
        ino: InodeNo,
        size: u64,
    },
    /// Chunk `index` of `ino` on `members`; answers the existing one if there is one and `attach`.
    AddChunk {
        ino: InodeNo,
        index: u64,
        members: Vec<Member>,
        primary: ServerId,
        attach: bool,
    },
    /// Inline content was copied to `chunk` (not attached yet) when the change number was `change_seen`.
    Spill {
        ino: InodeNo,
        change_seen: u64,
        chunk: ChunkId,
    },
    /// A chunk that a refused spill left behind.
    DropChunk {
        chunk: ChunkId,
    },
    /// Sets the `writing` mark (DECISIONS 7); also turns an *empty* inline file into a chunked one.
    BeginWrite {
        ino: InodeNo,
    },
    /// Stable content reaches `size` (never shrinks the logged size); chunks below it are born. `cuts_seen`: what the
    /// inode's counter of truncations was before the bytes that end there were written; refused with `Truncated` if the
    /// size would grow and it is another now, or a truncation to less is under way.
    CommitSize {
        ino: InodeNo,
        size: u64,
        cuts_seen: u64,
        mtime: Option<WallTime>,
        done_writing: bool,
        kill_priv: bool,
    },
    /// Truncate of chunked content, first half: the intent. Shrinking frees whole chunks beyond `size`; answers the
    /// tail chunk that must still be cut, if any. `TruncateEnd` clears the intent and sets the size.
    TruncateBegin {
        ino: InodeNo,
        size: u64,
    },
    TruncateEnd {
        ino: InodeNo,
        size: u64,
    },
    /// The size is `size` at least, with zeros; nothing is ever cut. Refused with `LayoutChanged` while a truncation of
    /// chunked content is under way, whose end sets the size.
    Grow {
        ino: InodeNo,
        size: u64,
    },
    /// Whole chunks `first..first+count` become holes (punch).
    FreeChunks {
        ino: InodeNo,
        first: u64,
        count: u64,
    },
    SealChunk {
        chunk: ChunkId,
    },

    // Chunk map.
    /// Next configuration of `chunk`: `members` ⊆ last activated, plus at most one learner. Refused unless
    /// `version == next_version`.
    Reconfigure {
        chunk: ChunkId,
        version: ChunkVersion,
        members: Vec<Member>,
        learner: Option<Member>,
        /// See [`crate::chunk::Preparing::after_wait`].
        after_wait: bool,
    },
    /// `configuration.version` was promised and adopted by all its members.
    Activate {
        chunk: ChunkId,
        configuration: Configuration,
        /// Counted as a subtask of this job, done by this server.
        done_by: Option<(JobId, ServerId)>,
    },
    /// All members of `chunk`'s garbage record have deleted it (or are gone for good).
    ForgetGarbage {
        chunk: ChunkId,
    },
    /// Ids above the last one known may have been given out: none of the next 2^32 is used. After a restore.
    SkipIds,
    /// Disks hold these: said by heartbeats.
    NoteStored {
        chunks: Vec<ChunkId>,
    },
    RegisterServer {
        server: ServerId,
        disk: DiskId,
    },
    /// A server's directory shows its last mark, and asks for the next. Refused if it is an older copy.
    MarkDisk {
        server: ServerId,
        disk: DiskId,
        shown: Shown,
    },

    // Wishes about servers, and what happened.
    /// `by`: who wishes it.
    SetOverlay {
        server: ServerId,
        kind: OverlayKind,
        until: Option<WallTime>,
        by: String,
        cause: String,
    },
    /// `only_until`: nothing if the overlay has another end by now.
    ClearOverlay {
        server: ServerId,
        kind: OverlayKind,
        only_until: Option<WallTime>,
        by: String,
    },
    Note {
        events: Vec<Event>,
    },

    // Trash.
    SetTrash {
        keep_ms: u64,
        by: String,
    },
    /// Gives a file in the trash a name.
    Restore {
        number: u64,
        parent: InodeNo,
        name: Vec<u8>,
    },
    EmptyTrash {
        numbers: Vec<u64>,
    },

    // Jobs.
    /// `Number`: its id.
    CreateJob {
        name: String,
        workers: u32,
        by: String,
        request: u128,
    },
    /// Work that the master carries out. `Number`: its id, or of the one that goes on already.
    BeginWork {
        work: JobWork,
        by: String,
        request: u128,
    },
    /// How far such work is. `Number`: snapshots taken.
    AdvanceJob {
        job: JobId,
        total: u64,
        found: u64,
        workers: Vec<WorkProgress>,
        snapshot: bool,
    },
    /// Worker and state, of as many as wanted.
    SetJobStates {
        job: JobId,
        states: Vec<(u32, u64)>,
    },
    /// `Number`: the snapshot's.
    SnapshotJob {
        job: JobId,
        request: u128,
    },
    SetJobPhase {
        job: JobId,
        phase: JobPhase,
    },
    /// `Number`: records that went; again until 0.
    ForgetJob {
        job: JobId,
    },

    // Locks.
    /// Take (`kind`) or release (`None`) `start..=end`; conflicting locks of others refuse with `Locked`.
    SetLock {
        ino: InodeNo,
        client: ClientId,
        owner: u64,
        start: u64,
        end: u64,
        kind: Option<LockKind>,
        pid: u32,
    },
}

impl Change {
    /// About the beginning and end of a client's session: idempotent, and at both there is nowhere to record a result.
    #[must_use]
    pub const fn is_of_sessions(&self) -> bool {
        matches!(self, Self::BeginClient { .. } | Self::FenceClient { .. } | Self::EndClient { .. })
    }
}

/// The answer to one command. Recorded for its `OpId`, so that a retry gets the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Refused(NamespaceError),
    /// The inode as it is after the command. `created`: false if `open_existing` found it.
    Entry {
        attr: Attr,
        created: bool,
    },
    Attr(Attr),
    /// Unlink, rmdir or rename took a name away from `ino`, which now has `nlink` names.
    Unlinked {
        ino: InodeNo,
        nlink: u32,
    },
    /// Rename: what lost its last name, if anything, and the moved inode.
    Renamed {
        moved: InodeNo,
        replaced: Option<InodeNo>,
    },
    /// Where an inline append went.
    Appended {
        offset: u64,
        attr: Attr,
    },
    Chunk {
        chunk: ChunkId,
        record: crate::chunk::Chunk,
    },
    /// The chunk that still has to be cut to `len` bytes, if the new end is inside one that exists.
    Truncating {
        tail: Option<(ChunkId, u64)>,
        attr: Attr,
    },
    /// A lock was released or downgraded: somebody may be waiting.
    LockChanged,
    Number(u64),
}
