//! One command's changes: typed records over the store, counters and time in the superblock.

use super::{Key, MetaStore, Record, Superblock, read, session};
use crate::chunk::Chunk;
use crate::command::{Change, Command, Outcome};
use crate::cuts::Cuts;
use crate::ids::{ChunkId, Epoch, FsId, InodeNo};
use crate::namespace::{Body, CHUNK_BYTES_DEFAULT, FileKind, Inode, Layout, NamespaceError};
use crate::time::WallTime;

/// Makes an empty file system: superblock and root directory. Does nothing if there is one already.
pub fn init(
    store: &mut dyn MetaStore,
    fs: FsId,
    replication: u32,
    min_replicas: u32,
    now: WallTime,
) {
    if read::superblock(store).is_some() {
        return;
    }
    store.put(
        Key::Super,
        Record::Super(Superblock {
            fs,
            epoch: Epoch(0),
            nonce: 0,
            next_inode: InodeNo::ROOT.0 + 1,
            next_chunk: 1,
            now,
            replication,
            min_replicas,
            inode_count: 1,
            chunk_count: 0,
            file_bytes: 0,
            next_event: 0,
            next_job: 1,
            next_trash: 1,
            trash_ms: 0,
        }),
    );
    let root = Inode {
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        rdev: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        change: 1,
        cuts: 0,
        cut_sizes: Cuts::default(),
        layout: Layout::striped(CHUNK_BYTES_DEFAULT),
        body: Body::Directory { parent: InodeNo::ROOT, entry_count: 0, next_cookie: FIRST_COOKIE },
    };
    store.put(Key::Inode(InodeNo::ROOT), Record::Inode(root));
}

/// Cookies 1 and 2 are left to whoever shows `.` and `..`.
pub(super) const FIRST_COOKIE: u64 = 3;

/// Applies one committed command. The state afterwards and the outcome depend on nothing but the state before and
/// the command.
///
/// A command with an id is applied exactly once: a second arrival gets the recorded outcome and changes nothing.
pub fn apply(store: &mut dyn MetaStore, command: &Command) -> Outcome {
    if let Change::Start { epoch: _, nonce: _, fs, replication, min_replicas } = &command.change
        && read::superblock(store).is_none()
    {
        init(store, *fs, *replication, *min_replicas, command.at);
    }
    let Some(superblock) = read::superblock(store) else {
        return Outcome::Refused(NamespaceError::Invalid("no file system here".into()));
    };
    let admitted = match session::admit(store, command) {
        session::Admission::Apply(admitted) => admitted,
        session::Admission::Answered(outcome) => return *outcome,
    };
    let now = WallTime(command.at.0.max(superblock.now.0.saturating_add(1)));
    let mut transaction = Transaction { store, superblock, now };
    let outcome = match transaction.change(&command.change) {
        Ok(outcome) => {
            transaction.superblock.now = now;
            let superblock = transaction.superblock;
            store.put(Key::Super, Record::Super(superblock));
            outcome
        }
        Err(refusal) => Outcome::Refused(refusal),
    };
    session::record(store, admitted, &outcome);
    outcome
}

/// The state while one command changes it. The superblock is written at the end, once.
pub(super) struct Transaction<'a> {
    pub(super) store: &'a mut dyn MetaStore,
    pub(super) superblock: Superblock,
    pub(super) now: WallTime,
}

pub(super) type Answer = Result<Outcome, NamespaceError>;

impl Transaction<'_> {
    fn change(&mut self, change: &Change) -> Answer {
        match change {
            Change::Start { epoch, nonce, fs, replication, min_replicas } => {
                self.start(*epoch, *nonce, *fs, (*replication, *min_replicas))
            }
            Change::SetRootLayout { layout } => self.set_root_layout(*layout),
            Change::BeginClient { client, name } => session::begin_client(self, *client, name),
            Change::FenceClient { client } => session::fence_client(self, *client),
            Change::EndClient { client } => session::end_client(self, *client),

            Change::Create { parent, name, kind, mode, umask, uid, gid, layout, open_existing } => {
                self.create(
                    *parent,
                    name,
                    kind,
                    *layout,
                    *open_existing,
                    super::names::Creator { mode: *mode, umask: *umask, uid: *uid, gid: *gid },
                )
            }
            Change::CreateUnnamed { parent, mode, umask, uid, gid, layout } => self.create_unnamed(
                *parent,
                *layout,
                super::names::Creator { mode: *mode, umask: *umask, uid: *uid, gid: *gid },
            ),
            Change::PutInPlace { ino, parent, name } => self.put_in_place(*ino, *parent, name),
            Change::Link { ino, parent, name } => self.link(*ino, *parent, name),
            Change::Unlink { parent, name } => self.unlink(*parent, name),
            Change::Rmdir { parent, name } => self.rmdir(*parent, name),
            Change::Rename { from_parent, from, to_parent, to, mode } => {
                self.rename((*from_parent, from), (*to_parent, to), *mode)
            }
            Change::SetAttr { ino, mode, uid, gid, atime, mtime, kill_priv } => {
                self.set_attr(*ino, *mode, (*uid, *gid), (*atime, *mtime), *kill_priv)
            }
            Change::SetXattr { ino, name, value, mode } => self.set_xattr(*ino, name, value, *mode),
            Change::RemoveXattr { ino, name } => self.remove_xattr(*ino, name),
            Change::Reclaim { ino } => self.reclaim(*ino),

            Change::InlineWrite { ino, offset, data, append, mtime, kill_priv } => {
                self.inline_write(*ino, (!append).then_some(*offset), data, *mtime, *kill_priv)
            }
            Change::InlinePatch { ino, ranges, mtime, kill_priv } => {
                self.inline_patch(*ino, ranges, *mtime, *kill_priv)
            }
            Change::InlineZero { ino, offset, len, keep_size } => {
                self.inline_zero(*ino, *offset, *len, *keep_size)
            }
            Change::InlineTruncate { ino, size } => self.inline_truncate(*ino, *size),
            Change::AddChunk { ino, index, members, primary, attach } => {
                self.add_chunk(*ino, *index, members, *primary, *attach)
            }
            Change::Spill { ino, change_seen, chunk } => self.spill(*ino, *change_seen, *chunk),
            Change::DropChunk { chunk } => self.drop_chunk(*chunk),
            Change::BeginWrite { ino } => self.begin_write(*ino),
            Change::CommitSize { ino, size, cuts_seen, mtime, done_writing, kill_priv } => {
                self.commit_size(*ino, (*size, *cuts_seen), *mtime, *done_writing, *kill_priv)
            }
            Change::TruncateBegin { ino, size } => self.truncate_begin(*ino, *size),
            Change::TruncateEnd { ino, size } => self.truncate_end(*ino, *size),
            Change::Grow { ino, size } => self.grow(*ino, *size),
            Change::FreeChunks { ino, first, count } => self.free_chunks(*ino, *first, *count),
            Change::SealChunk { chunk } => self.seal_chunk(*chunk),

            Change::Reconfigure { chunk, version, members, learner, after_wait } => {
                self.reconfigure(*chunk, *version, members, *learner, *after_wait)
            }
            Change::Activate { chunk, configuration, done_by } => {
                self.activate(*chunk, configuration, *done_by)
            }
            Change::ForgetGarbage { chunk } => {
                self.store.delete(&Key::Garbage(*chunk));
                Ok(Outcome::Done)
            }
            Change::SkipIds => self.skip_ids(),
            Change::NoteStored { chunks } => self.note_stored(chunks),
            Change::RegisterServer { server, disk } => self.register_server(*server, *disk),
            Change::MarkDisk { server, disk, shown } => self.mark_disk(*server, *disk, shown),
            Change::SetOverlay { server, kind, until, by, cause } => {
                self.set_overlay(*server, *kind, *until, by, cause)
            }
            Change::ClearOverlay { server, kind, only_until, by } => {
                self.clear_overlay(*server, *kind, *only_until, by)
            }
            Change::Note { events } => self.note_all(events),

            Change::CreateJob { name, workers, by, request } => {
                self.create_job(name, *workers, by, *request)
            }
            Change::SetTrash { keep_ms, by } => self.set_trash(*keep_ms, by),
            Change::Restore { number, parent, name } => self.restore(*number, *parent, name),
            Change::EmptyTrash { numbers } => self.empty_trash(numbers),

            Change::BeginWork { work, by, request } => self.begin_work(work, by, *request),
            Change::AdvanceJob { job, total, found, workers, snapshot } => {
                self.advance_job(*job, (*total, *found), workers, *snapshot)
            }
            Change::SetJobStates { job, states } => self.set_job_states(*job, states),
            Change::SnapshotJob { job, request } => self.snapshot_job(*job, *request),
            Change::SetJobPhase { job, phase } => self.set_job_phase(*job, *phase),
            Change::ForgetJob { job } => self.forget_job(*job),

            Change::SetLock { ino, client, owner, start, end, kind, pid } => self.set_lock(
                *ino,
                *kind,
                crate::command::Lock {
                    client: *client,
                    owner: *owner,
                    start: *start,
                    end: *end,
                    kind: kind.unwrap_or(crate::command::LockKind::Shared),
                    pid: *pid,
                },
            ),
        }
    }

    fn start(&mut self, epoch: Epoch, nonce: u64, fs: FsId, replicas: (u32, u32)) -> Answer {
        if fs != self.superblock.fs {
            return Err(NamespaceError::NotPermitted(format!(
                "this is file system {}, not {fs}",
                self.superblock.fs
            )));
        }
        if epoch <= self.superblock.epoch {
            return Err(NamespaceError::NotPermitted(format!(
                "epoch {} is not above {}",
                epoch.0, self.superblock.epoch.0
            )));
        }
        self.superblock.epoch = epoch;
        self.superblock.nonce = nonce;
        let before = (self.superblock.replication, self.superblock.min_replicas);
        (self.superblock.replication, self.superblock.min_replicas) = replicas;
        let changed = match replicas == before {
            true => String::new(),
            false => format!(
                "; replication {}, {} needed for a write (before: {}, {})",
                replicas.0, replicas.1, before.0, before.1
            ),
        };
        let cause = format!("a master began reign {}{changed}", epoch.0);
        self.note(crate::event::EventKind::Started, None, &cause, None);
        Ok(Outcome::Done)
    }

    fn set_root_layout(&mut self, layout: Layout) -> Answer {
        super::names::check_layout(layout)?;
        if self.superblock.next_inode != InodeNo::ROOT.0 + 1 {
            return Err(NamespaceError::NotPermitted(
                "the root's layout is set before the first file is made, and not after".into(),
            ));
        }
        let root = self.inode(InodeNo::ROOT)?;
        self.put_inode(InodeNo::ROOT, Inode { layout, ..root });
        Ok(Outcome::Done)
    }

    fn skip_ids(&mut self) -> Answer {
        let skipped = |next: u64| {
            next.checked_add(1 << 32)
                .ok_or_else(|| NamespaceError::Invalid("there are no more ids".into()))
        };
        let (inode, chunk) =
            (skipped(self.superblock.next_inode)?, skipped(self.superblock.next_chunk)?);
        (self.superblock.next_inode, self.superblock.next_chunk) = (inode, chunk);
        Ok(Outcome::Done)
    }

    /// The inode, or `Stale`.
    pub(super) fn inode(&self, ino: InodeNo) -> Result<Inode, NamespaceError> {
        read::inode(self.store, ino).ok_or(NamespaceError::Stale)
    }

    /// The inode of a file, or why it is none.
    pub(super) fn file(&self, ino: InodeNo) -> Result<Inode, NamespaceError> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::File => Ok(inode),
            FileKind::Directory => Err(NamespaceError::IsDirectory),
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => Err(NamespaceError::Invalid("not a regular file".into())),
        }
    }

    pub(super) fn put_inode(&mut self, ino: InodeNo, inode: Inode) {
        self.store.put(Key::Inode(ino), Record::Inode(inode));
    }

    /// Marks a change of attributes; with `content` also one of content.
    pub(super) fn touch(&self, inode: &mut Inode, content: bool) {
        inode.ctime = self.now;
        if content {
            inode.mtime = self.now;
        }
        inode.change += 1;
    }

    pub(super) fn chunk(&self, chunk: ChunkId) -> Result<Chunk, NamespaceError> {
        read::chunk(self.store, chunk).ok_or(NamespaceError::NotFound)
    }

    pub(super) fn put_chunk(&mut self, chunk: ChunkId, record: Chunk) -> Outcome {
        self.store.put(Key::Chunk(chunk), Record::Chunk(record.clone()));
        Outcome::Chunk { chunk, record }
    }

    /// Changes a file's size, keeping the sum of all.
    pub(super) fn set_size(&mut self, inode: &mut Inode, size: u64) {
        self.superblock.file_bytes =
            self.superblock.file_bytes.wrapping_sub(inode.size).wrapping_add(size);
        inode.size = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::NewKind;
    use crate::meta::samples::{run, started};

    #[test]
    fn the_roots_layout_is_set_before_anything_is_made_and_not_after() {
        let mut store = started();
        let set = |chunk_size| Change::SetRootLayout { layout: Layout::striped(chunk_size) };
        let size = |store: &_| read::attr(store, InodeNo::ROOT).map(|it| it.layout.chunk_size);
        assert!(matches!(run(&mut store, set(5000)), Outcome::Refused(_)));
        assert_eq!(size(&store), Some(CHUNK_BYTES_DEFAULT));
        assert_eq!(run(&mut store, set(1 << 20)), Outcome::Done);
        assert_eq!(size(&store), Some(1 << 20));
        let file = Change::Create {
            parent: InodeNo::ROOT,
            name: b"f".to_vec(),
            kind: NewKind::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            layout: None,
            open_existing: false,
        };
        let Outcome::Entry { attr, .. } = run(&mut store, file) else { panic!("not made") };
        assert_eq!(attr.layout.chunk_size, 1 << 20);
        assert!(matches!(run(&mut store, set(2 << 20)), Outcome::Refused(_)));
        assert_eq!(size(&store), Some(1 << 20));
    }
}
