//! Valid values to start from: every variant at least once.

use dfs_core::chunk::{Chunk, Configuration, Garbage, Member, Preparing};
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
use dfs_core::time::WallTime;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer, WireMutation};
use dfs_proto::meta_rpc::{
    ChunkLayout, EntryPlus, FailedMember, MemberAddress, MetaCall, MetaFailure, MetaReply,
    MetaRequest, NameBytes, StatfsReply, Welcome,
};

const INO: InodeNo = InodeNo(0x1122_3344);
const CHUNK: ChunkId = ChunkId(77);
const CLIENT: ClientId = ClientId(0xaabb_ccdd);
const OVERLAYS: [OverlayKind; 5] = [
    OverlayKind::Suspended,
    OverlayKind::Draining,
    OverlayKind::Maintenance,
    OverlayKind::Probation,
    OverlayKind::Decommissioned,
];
const MARKS: Marks =
    Marks { confirmed: Mark { number: 4, nonce: u64::MAX }, pending: Mark { number: 5, nonce: 3 } };
const TIME: WallTime = WallTime(1_700_000_000_123_456_789);

fn name() -> Vec<u8> {
    b"name".to_vec()
}

fn member(n: u32) -> Member {
    Member { server: ServerId(n), disk: DiskId(u128::from(n) << 64) }
}

fn layout() -> Layout {
    Layout { chunk_size: 64 << 20, record_log: true, record_max: 2048 }
}

fn inode(body: Body) -> Inode {
    Inode {
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        nlink: 1,
        rdev: 0,
        size: 5,
        atime: TIME,
        mtime: TIME,
        ctime: TIME,
        btime: TIME,
        change: 3,
        cuts: 1,
        cut_sizes: cuts(),
        layout: layout(),
        body,
    }
}

fn attr() -> Attr {
    inode(Body::Inline(vec![1, 2])).attr(INO)
}

fn lock() -> Lock {
    Lock { client: CLIENT, owner: 9, start: 0, end: u64::MAX, kind: LockKind::Exclusive, pid: 44 }
}

fn chunk() -> Chunk {
    Chunk {
        ino: INO,
        index: 4,
        chunk_size: 4096,
        active: Configuration {
            version: ChunkVersion(3),
            members: vec![member(1), member(2)],
            primary: ServerId(1),
        },
        preparing: Some(Preparing {
            version: ChunkVersion(4),
            members: vec![member(1)],
            learner: Some(member(3)),
            after_wait: true,
        }),
        next_version: ChunkVersion(5),
        attached: true,
        born: false,
        sealed: true,
        stored: true,
    }
}

pub(crate) fn chunk_layout() -> ChunkLayout {
    ChunkLayout {
        chunk: CHUNK,
        ino: INO,
        index: 4,
        chunk_size: 4096,
        version: ChunkVersion(3),
        members: vec![MemberAddress { member: member(1), address: "127.0.0.1:1".to_owned() }],
        primary: ServerId(1),
        epoch: Epoch(2),
        born: true,
        sealed: false,
        writable: true,
    }
}

fn changes() -> Vec<Change> {
    let create = |kind: NewKind| Change::Create {
        parent: INO,
        name: name(),
        kind,
        mode: 0o777,
        umask: 0o22,
        uid: 1,
        gid: 1,
        layout: Some(layout()),
        open_existing: true,
    };
    let mut changes: Vec<Change> = [
        NewKind::File,
        NewKind::Directory,
        NewKind::Symlink(name()),
        NewKind::Fifo,
        NewKind::Socket,
        NewKind::CharDevice(5),
        NewKind::BlockDevice(6),
    ]
    .into_iter()
    .map(create)
    .collect();
    for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
        changes.push(Change::Rename {
            from_parent: INO,
            from: name(),
            to_parent: INO,
            to: name(),
            mode,
        });
    }
    for kind in OVERLAYS {
        let (server, by) = (ServerId(3), "ada".to_owned());
        let until = Some(TIME);
        let cause = "drill".to_owned();
        changes.push(Change::SetOverlay { server, kind, until, by: by.clone(), cause });
        changes.push(Change::ClearOverlay { server, kind, only_until: until, by });
    }
    let job = JobId(4);
    changes.extend([
        Change::CreateJob { name: "copy".to_owned(), workers: 3, by: "ada".to_owned(), request: 9 },
        Change::SetJobStates { job, states: vec![(0, 1), (2, u64::MAX)] },
        Change::SnapshotJob { job, request: u128::MAX },
        Change::ForgetJob { job },
        Change::SetTrash { keep_ms: 5, by: "ada".to_owned() },
        Change::Restore { number: 1, parent: INO, name: name() },
        Change::EmptyTrash { numbers: vec![1, u64::MAX] },
        Change::AdvanceJob {
            job,
            total: 9,
            found: 1,
            workers: vec![WorkProgress { server: ServerId(2), done: Some(3), mark: 7, busy: true }],
            snapshot: true,
        },
    ]);
    for work in works() {
        changes.push(Change::BeginWork { work, by: "ada".to_owned(), request: 5 });
    }
    for phase in [JobPhase::Running, JobPhase::Paused, JobPhase::Done, JobPhase::Cancelled] {
        changes.push(Change::SetJobPhase { job, phase });
    }
    for mode in [XattrMode::Set, XattrMode::Create, XattrMode::Replace] {
        changes.push(Change::SetXattr { ino: INO, name: name(), value: vec![0; 9], mode });
    }
    changes.extend([
        Change::Start { epoch: Epoch(1), nonce: 2, fs: FsId(3), replication: 3, min_replicas: 2 },
        Change::SetRootLayout { layout: Layout::striped(1 << 20) },
        Change::BeginClient { client: CLIENT, name: "mount".to_owned() },
        Change::EndClient { client: CLIENT },
        Change::FenceClient { client: CLIENT },
        Change::CreateUnnamed { parent: INO, mode: 1, umask: 2, uid: 3, gid: 4, layout: None },
        Change::PutInPlace { ino: INO, parent: INO, name: name() },
        Change::Link { ino: INO, parent: INO, name: name() },
        Change::Unlink { parent: INO, name: name() },
        Change::Rmdir { parent: INO, name: name() },
        Change::SetAttr {
            ino: INO,
            mode: Some(1),
            uid: None,
            gid: Some(2),
            atime: SetTime::Keep,
            mtime: SetTime::To(TIME),
            kill_priv: true,
        },
        Change::SetAttr {
            ino: INO,
            mode: None,
            uid: Some(1),
            gid: None,
            atime: SetTime::Now,
            mtime: SetTime::Now,
            kill_priv: false,
        },
        Change::RemoveXattr { ino: INO, name: name() },
        Change::Reclaim { ino: INO },
        Change::InlineWrite {
            ino: INO,
            offset: 1,
            data: vec![1; 40],
            append: false,
            mtime: Some(TIME),
            kill_priv: false,
        },
        Change::InlinePatch {
            ino: INO,
            ranges: vec![(1, vec![1; 40]), (60, vec![2; 3])],
            mtime: None,
            kill_priv: true,
        },
        Change::InlineZero { ino: INO, offset: 1, len: 2, keep_size: true },
        Change::InlineTruncate { ino: INO, size: 9 },
        Change::AddChunk {
            ino: INO,
            index: 0,
            members: vec![member(1)],
            primary: ServerId(1),
            attach: true,
        },
        Change::Spill { ino: INO, change_seen: 4, chunk: CHUNK },
        Change::DropChunk { chunk: CHUNK },
        Change::BeginWrite { ino: INO },
        Change::CommitSize {
            ino: INO,
            size: 99,
            cuts_seen: 2,
            mtime: None,
            done_writing: true,
            kill_priv: false,
        },
        Change::TruncateBegin { ino: INO, size: 1 },
        Change::TruncateEnd { ino: INO, size: 1 },
        Change::FreeChunks { ino: INO, first: 1, count: 2 },
        Change::Grow { ino: INO, size: 7 },
        Change::SealChunk { chunk: CHUNK },
        Change::Reconfigure {
            chunk: CHUNK,
            version: ChunkVersion(2),
            members: vec![member(1)],
            learner: None,
            after_wait: true,
        },
        Change::Activate {
            chunk: CHUNK,
            configuration: chunk().active,
            done_by: Some((JobId(4), ServerId(2))),
        },
        Change::SkipIds,
        Change::NoteStored { chunks: vec![CHUNK] },
        Change::ForgetGarbage { chunk: CHUNK },
        Change::RegisterServer { server: ServerId(1), disk: DiskId(2) },
        Change::MarkDisk {
            server: ServerId(1),
            disk: DiskId(2),
            shown: Shown { last: MARKS.confirmed, next: MARKS.pending, loss_accepted: true },
        },
        Change::Note {
            events: EventKind::ALL
                .map(|kind| Event {
                    at: TIME,
                    kind,
                    server: None,
                    cause: "c".into(),
                    lasted_ms: Some(1),
                })
                .to_vec(),
        },
        Change::SetLock {
            ino: INO,
            client: CLIENT,
            owner: 1,
            start: 0,
            end: 9,
            kind: Some(LockKind::Shared),
            pid: 1,
        },
    ]);
    changes
}

fn sparse_results() -> Results {
    Results::all_but(vec![3, 4, 70], 500).unwrap()
}

fn works() -> Vec<JobWork> {
    let server = ServerId(2);
    vec![
        JobWork::Drain { server },
        JobWork::Rebalance,
        JobWork::Scrub { server: Some(server), ino: Some(INO), end: CHUNK },
    ]
}

pub(crate) fn commands() -> Vec<Command> {
    let id = Some(OpId { client: CLIENT, op: 5, part: 1 });
    let results = [Results::all_below(4), sparse_results()].into_iter().cycle();
    changes()
        .into_iter()
        .zip(results)
        .map(|(change, results)| Command { at: TIME, id, results, change })
        .collect()
}

fn refusals() -> Vec<NamespaceError> {
    vec![
        NamespaceError::NotFound,
        NamespaceError::Exists,
        NamespaceError::NotDirectory,
        NamespaceError::IsDirectory,
        NamespaceError::NotEmpty,
        NamespaceError::NameTooLong,
        NamespaceError::Invalid("text".to_owned()),
        NamespaceError::TooManyLinks,
        NamespaceError::NotPermitted("text".to_owned()),
        NamespaceError::NoAttribute,
        NamespaceError::AttributeTooLarge,
        NamespaceError::FileTooLarge,
        NamespaceError::LayoutChanged,
        NamespaceError::Stale,
        NamespaceError::Locked,
        NamespaceError::NoLocks,
        NamespaceError::NoSession,
        NamespaceError::OutcomeUnknown,
        NamespaceError::Busy,
        NamespaceError::Truncated,
    ]
}

pub(crate) fn outcomes() -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = refusals().into_iter().map(Outcome::Refused).collect();
    outcomes.extend([
        Outcome::Done,
        Outcome::Entry { attr: attr(), created: true },
        Outcome::Attr(attr()),
        Outcome::Unlinked { ino: INO, nlink: 0 },
        Outcome::Renamed { moved: INO, replaced: Some(INO) },
        Outcome::Appended { offset: 4, attr: attr() },
        Outcome::Chunk { chunk: CHUNK, record: chunk() },
        Outcome::Truncating { tail: Some((CHUNK, 6)), attr: attr() },
        Outcome::LockChanged,
        Outcome::Number(7),
    ]);
    outcomes
}

pub(crate) fn records() -> Vec<Record> {
    let mut records: Vec<Record> = outcomes().into_iter().map(Record::Reply).collect();
    records.extend(
        [
            Body::Inline(vec![1]),
            Body::Chunks { chunk_count: 4, writing: true },
            Body::Directory { parent: INO, entry_count: 1, next_cookie: 2 },
            Body::Symlink(name()),
            Body::Special,
        ]
        .map(|body| Record::Inode(inode(body))),
    );
    records.extend([
        Record::Super(Superblock {
            fs: FsId(1),
            epoch: Epoch(2),
            nonce: 3,
            next_inode: 4,
            next_chunk: 5,
            now: TIME,
            replication: 3,
            min_replicas: 2,
            inode_count: 6,
            chunk_count: 7,
            file_bytes: 8,
            next_event: 9,
            next_job: 3,
            next_trash: 2,
            trash_ms: 60_000,
        }),
        Record::Dentry(Dentry { ino: INO, kind: FileKind::Fifo, cookie: 4 }),
        Record::DirSlot { name: name(), ino: INO, kind: FileKind::Socket },
        Record::FileChunk(CHUNK),
        Record::Chunk(chunk()),
        Record::Xattr(vec![0; 20]),
        Record::Locks(vec![lock(), lock()]),
        Record::Orphan,
        Record::Unnamed,
        Record::Trash(Trashed { ino: INO, parent: INO, name: name(), at: TIME, until: TIME }),
        Record::Truncating(5),
        Record::Garbage(Garbage { members: vec![member(1)], version: ChunkVersion(4) }),
        Record::Server(Server {
            disk: DiskId(1),
            registered: TIME,
            overlays: OVERLAYS
                .map(|kind| Overlay { kind, since: TIME, until: Some(TIME), by: "ada".into() })
                .to_vec(),
            marks: MARKS,
            former: vec![FormerDisk { disk: DiskId(7), marks: MARKS }],
        }),
        Record::JobState(u64::MAX),
        Record::Job(Job {
            name: "copy".to_owned(),
            by: "ada".to_owned(),
            phase: JobPhase::Done,
            workers: 3,
            snapshots: 2,
            began: TIME,
            ended: Some(TIME),
            request: 1,
            snapshot_request: 2,
            older_requests: vec![9],
            work: works().pop(),
            servers: vec![JobWorker { server: ServerId(2), mark: 7, stalled: true, since: 1 }],
            total: 9,
            found: 1,
        }),
        Record::Event(Event {
            at: TIME,
            kind: EventKind::Dead,
            server: Some(ServerId(3)),
            cause: "silent".into(),
            lasted_ms: None,
        }),
        Record::Client(Client {
            name: "n".to_owned(),
            began: TIME,
            results: sparse_results(),
            reply_count: 1,
            fenced: true,
        }),
    ]);
    records
}

pub(crate) fn keys() -> Vec<Key> {
    let mut keys = vec![Key::Super];
    for n in [0, 1, 255, 256, u64::MAX] {
        keys.extend([
            Key::Inode(InodeNo(n)),
            Key::Dentry(InodeNo(n), b"a".to_vec()),
            Key::Dentry(InodeNo(n), b"ab".to_vec()),
            Key::DirSlot(InodeNo(n), 256),
            Key::DirSlot(InodeNo(n), 1),
            Key::FileChunk(InodeNo(n), 2),
            Key::Chunk(ChunkId(n)),
            Key::Xattr(InodeNo(n), b"user.x".to_vec()),
            Key::Unborn(InodeNo(n), ChunkId(2)),
            Key::Locks(InodeNo(n)),
            Key::Orphan(InodeNo(n)),
            Key::Trash(n),
            Key::Truncating(InodeNo(n)),
            Key::Garbage(ChunkId(n)),
            Key::Server(ServerId(n as u32)),
            Key::Event(n),
            Key::Job(JobId(n)),
            Key::JobState(JobId(n), 7, n),
            Key::Client(ClientId(u128::from(n) << 60)),
            Key::Reply(ClientId(u128::from(n)), 256, 1),
        ]);
    }
    keys
}

pub(crate) fn meta_requests() -> Vec<MetaRequest> {
    let mut calls: Vec<MetaCall> =
        changes().into_iter().map(|change| MetaCall::Change { op: 8, part: 0, change }).collect();
    calls.extend([
        MetaCall::ChangeNames {
            op: 8,
            change: Change::Unlink { parent: INO, name: name() },
            open: true,
        },
        MetaCall::Hello { name: "mount".to_owned(), known: true },
        MetaCall::Ping,
        MetaCall::Goodbye,
        MetaCall::Lookup { parent: INO, name: name() },
        MetaCall::GetAttr { ino: INO },
        MetaCall::ReadDir { ino: INO, after_cookie: 1, max_entries: 1000, plus: true },
        MetaCall::ReadLink { ino: INO },
        MetaCall::GetXattr { ino: INO, name: name() },
        MetaCall::ListXattrs { ino: INO },
        MetaCall::Statfs,
        MetaCall::Open { ino: INO, write: true },
        MetaCall::Release { ino: INO, write: false },
        MetaCall::Reopen { opens: vec![(INO, 2)] },
        MetaCall::ReadInline { ino: INO },
        MetaCall::Layout {
            ino: INO,
            index: 1,
            write: true,
            spill: false,
            failed: Some(FailedMember {
                version: ChunkVersion(2),
                server: ServerId(1),
                full: true,
            }),
        },
        MetaCall::Layouts { ino: INO, first: 0, max: 9 },
        MetaCall::Truncate { op: 1, ino: INO, size: 2 },
        MetaCall::FreeUnlogged { op: 1, ino: INO, first: 2 },
        MetaCall::Cuts { ino: INO },
        MetaCall::SetLock {
            op: 1,
            ino: INO,
            owner: 1,
            start: 0,
            end: 5,
            kind: None,
            pid: 1,
            wait_ms: 5,
        },
        MetaCall::TestLock { ino: INO, owner: 1, start: 0, end: 5, kind: LockKind::Shared },
    ]);
    let results = [sparse_results(), Results::all_below(3)].into_iter().cycle();
    calls
        .into_iter()
        .zip(results)
        .map(|(call, results)| MetaRequest { client: CLIENT, results, call })
        .collect()
}

pub(crate) fn meta_replies() -> Vec<MetaReply> {
    let mut replies: Vec<MetaReply> = outcomes().into_iter().map(MetaReply::Outcome).collect();
    let entry =
        EntryPlus { cookie: 4, name: name(), ino: INO, kind: FileKind::File, attr: Some(attr()) };
    replies.extend([
        MetaReply::Welcome(Welcome {
            fs: FsId(1),
            epoch: Epoch(1),
            nonce: 5,
            now: TIME,
            replication: 3,
            min_replicas: 2,
            client_lease_ms: 600_000,
        }),
        MetaReply::Attr(attr()),
        MetaReply::Entries { entries: vec![entry.clone(), entry], end: true },
        MetaReply::Changed { outcome: Outcome::Done, directories: vec![attr(), attr()] },
        MetaReply::Bytes(vec![5; 30]),
        MetaReply::Names(vec![NameBytes(name())]),
        MetaReply::Statfs(StatfsReply {
            total_bytes: 5,
            free_bytes: 4,
            available_bytes: 3,
            inodes_total: 2,
            inodes_free: 1,
        }),
        MetaReply::Opened { attr: attr(), content: Some(vec![1]), written_elsewhere: true },
        MetaReply::Layout(chunk_layout()),
        MetaReply::WriteLayout { layout: chunk_layout(), cuts: 3 },
        MetaReply::Cuts(cuts()),
        MetaReply::Layouts(vec![chunk_layout(), chunk_layout()]),
        MetaReply::Hole,
        MetaReply::Conflict(Some(lock())),
        MetaReply::Done,
        MetaReply::Failed(MetaFailure::Unavailable { reason: "r".to_owned(), retry_after_ms: 1 }),
        MetaReply::Failed(MetaFailure::Refused(NamespaceError::NotPermitted("p".to_owned()))),
        MetaReply::Failed(MetaFailure::Warming { retry_after_ms: 2 }),
        MetaReply::Failed(MetaFailure::NoSpace { reason: "n".to_owned() }),
        MetaReply::Failed(MetaFailure::Busy { retry_after_ms: 2 }),
        MetaReply::Failed(MetaFailure::BadRequest { reason: "b".to_owned() }),
    ]);
    replies
}

pub(crate) fn data_calls() -> Vec<DataCall> {
    let version = ChunkVersion(3);
    let mutation = WireMutation::Write { offset: 4 };
    let mut calls: Vec<DataCall> = [
        mutation,
        WireMutation::Append { record: true, at_least: 4 },
        WireMutation::Zero { offset: 1, len: 2 },
        WireMutation::Truncate { len: 9 },
        WireMutation::Seal,
    ]
    .into_iter()
    .map(|mutation| DataCall::Mutate {
        layout: chunk_layout(),
        client: CLIENT,
        counter: 1,
        low_water: 1,
        mutation,
    })
    .collect();
    calls.extend([
        DataCall::Hello { fs: FsId(1), from: Peer::Client(CLIENT) },
        DataCall::Hello { fs: FsId(1), from: Peer::Server(ServerId(2)) },
        DataCall::Read { chunk: CHUNK, version, offset: 5, len: 6 },
        DataCall::Stat { chunk: CHUNK, version },
        DataCall::Sync { layout: chunk_layout() },
        DataCall::SyncMember { chunk: CHUNK, version, seq: 4 },
        DataCall::AllStable { chunk: CHUNK, version, seq: 4 },
        DataCall::FetchSums { chunk: CHUNK },
        DataCall::Replicate {
            layout: chunk_layout(),
            seq: 5,
            client: CLIENT,
            counter: 1,
            low_water: 1,
            mutation,
            append: Some((4, 5)),
            committed: 4,
            record: true,
        },
        DataCall::Committed { chunk: CHUNK, version, seq: 4 },
        DataCall::Space,
        DataCall::ReadSums { chunk: CHUNK, version, offset: 5, len: 6 },
        DataCall::LocalDoor,
        DataCall::Search {
            chunk: CHUNK,
            version,
            offset: 5,
            len: 6,
            word: b"word".to_vec(),
            whole: true,
            count_only: false,
        },
        DataCall::Records { chunk: CHUNK, version, from: 5 },
        DataCall::Repair { layout: chunk_layout(), block: 2 },
        DataCall::FetchBlock { chunk: CHUNK, source_version: version, source_seq: 4, block: 1 },
    ]);
    calls
}

pub(crate) fn cuts() -> Cuts {
    Cuts { kept: vec![Cut { number: 2, size: 5 }, Cut { number: 4, size: 6 }], forgotten: 1 }
}

pub(crate) fn data_replies() -> Vec<DataReply> {
    let mut replies = vec![
        DataReply::Welcome { fs: FsId(1), server: ServerId(1) },
        DataReply::Read { replica_len: 5 },
        DataReply::Stat { version: ChunkVersion(1), seq: 2, len: 3, sealed: true },
        DataReply::Mutated { seq: 1, len: 2 },
        DataReply::Appended { seq: 1, offset: 2, appended: 3, carried: 4, sealed: false },
        DataReply::Synced { seq: 1, len: 2 },
        DataReply::Applied { seq: 1, free_bytes: 2 },
        DataReply::Block { crc: 7 },
        DataReply::ReadSums { replica_len: 5, in_file: true },
        DataReply::LocalDoor { name: "door".to_owned(), token: vec![1; 16] },
        DataReply::Search {
            replica_len: 5,
            scanned: 4,
            hits: 3,
            head: vec![1, 2],
            tail: vec![3, 4],
        },
        DataReply::Sums {
            version: ChunkVersion(1),
            seq: 2,
            len: 3,
            sealed: false,
            digest: 4,
            client_table_bytes: 5,
            record_list_bytes: 6,
        },
        DataReply::Records { replica_len: 5, more: true, all_known: false },
    ];
    replies.extend(
        [
            DataFailure::NoReplica,
            DataFailure::StaleVersion { asked: 1, promised: 2, have: 3 },
            DataFailure::NotCurrent,
            DataFailure::NotPrimary,
            DataFailure::MemberFailed { server: ServerId(1), reason: "r".to_owned() },
            DataFailure::BadBlock { block: 1 },
            DataFailure::NoSpace { server: ServerId(1) },
            DataFailure::OutcomeUnknown,
            DataFailure::ChunkFull { carry: 5 },
            DataFailure::Gap { have: 1 },
            DataFailure::Fenced { reason: "f".to_owned() },
            DataFailure::Busy,
            DataFailure::BadRequest { reason: "b".to_owned() },
            DataFailure::StaleEpoch { asked: Epoch(1), current: Epoch(2) },
            DataFailure::Disk { reason: "d".to_owned() },
        ]
        .map(DataReply::Failed),
    );
    replies
}
