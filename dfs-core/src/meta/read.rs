//! Typed reads of any [`MetaStore`]: what the master answers without a command.

#![warn(missing_docs)]

use super::{Client, Key, MetaStore, Record, Server, Superblock, Trashed};
use crate::chunk::Chunk;
use crate::command::{Lock, LockKind, Outcome};
use crate::ids::{ChunkId, ClientId, InodeNo, OpId, ServerId};
use crate::job::{Job, JobId};
use crate::namespace::{Attr, Body, Dentry, FileKind, Inode, NamespaceError};

/// One entry as readdir shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// What the next page continues from.
    pub cookie: u64,
    /// The name in its directory.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: InodeNo,
    /// Its kind.
    pub kind: FileKind,
}

/// Reads one record of one kind. A record of another kind under a key is damage that no caller can act on: the
/// store's checksums are there to prevent it, and the process ends.
macro_rules! typed {
    ($store:expr, $key:expr, $kind:ident) => {
        match $store.get(&$key) {
            None => None,
            Some(Record::$kind(value)) => Some(value),
            Some(other) => panic!("{:?} holds {other:?}", $key),
        }
    };
}

/// The superblock; `None` before [`super::init`].
#[must_use]
pub fn superblock(store: &dyn MetaStore) -> Option<Superblock> {
    typed!(store, Key::Super, Super)
}

/// The job.
#[must_use]
pub fn job(store: &dyn MetaStore, id: JobId) -> Option<Job> {
    typed!(store, Key::Job(id), Job)
}

/// An entry of the trash.
#[must_use]
pub fn trashed(store: &dyn MetaStore, number: u64) -> Option<Trashed> {
    typed!(store, Key::Trash(number), Trash)
}

/// The inode.
#[must_use]
pub fn inode(store: &dyn MetaStore, ino: InodeNo) -> Option<Inode> {
    typed!(store, Key::Inode(ino), Inode)
}

/// The inode's attributes.
#[must_use]
pub fn attr(store: &dyn MetaStore, ino: InodeNo) -> Option<Attr> {
    inode(store, ino).map(|inode| attr_of(store, ino, &inode))
}

/// As [`attr`], of an inode that was read, and changed perhaps, already.
#[must_use]
pub fn attr_of(store: &dyn MetaStore, ino: InodeNo, inode: &Inode) -> Attr {
    let mut attr = inode.attr(ino);
    // The last chunk may not be cut yet: its length would show a size that the file never had.
    if attr.writing && truncating(store, ino) == Some(inode.size) {
        attr.writing = false;
    }
    attr
}

/// The entry `name` of directory `parent`.
#[must_use]
pub fn dentry(store: &dyn MetaStore, parent: InodeNo, name: &[u8]) -> Option<Dentry> {
    typed!(store, Key::Dentry(parent, name.to_vec()), Dentry)
}

/// The attributes of what `name` means in `parent`, `.` and `..` included.
///
/// # Errors
/// `Stale`: no such parent; `NotDirectory`; `NotFound`: no such name.
pub fn lookup(store: &dyn MetaStore, parent: InodeNo, name: &[u8]) -> Result<Attr, NamespaceError> {
    // The common case costs two reads: an entry shows that its parent is a directory.
    if let Some(dentry) = dentry(store, parent, name) {
        return attr(store, dentry.ino).ok_or(NamespaceError::Stale);
    }
    let directory = inode(store, parent).ok_or(NamespaceError::Stale)?;
    let Body::Directory { parent: above, .. } = directory.body else {
        return Err(NamespaceError::NotDirectory);
    };
    match name {
        b"." => Ok(directory.attr(parent)),
        b".." => attr(store, above).ok_or(NamespaceError::Stale),
        _ if super::names::name_too_long(name) => Err(NamespaceError::NameTooLong),
        _ => Err(NamespaceError::NotFound),
    }
}

/// At most `limit` entries after `after_cookie` (0: from the start), in an order that does not change while an entry
/// exists. `.` and `..` are not among them; cookies 1 and 2 are never used.
///
/// # Errors
/// `Stale` or `NotDirectory`.
pub fn readdir(
    store: &dyn MetaStore,
    ino: InodeNo,
    after_cookie: u64,
    limit: usize,
) -> Result<Vec<DirEntry>, NamespaceError> {
    let directory = inode(store, ino).ok_or(NamespaceError::Stale)?;
    if directory.kind != FileKind::Directory {
        return Err(NamespaceError::NotDirectory);
    }
    let from = Key::DirSlot(ino, after_cookie.saturating_add(1));
    let below = Key::DirSlot(ino, u64::MAX);
    let slots = store.range(&from, &below, limit);
    Ok(slots
        .into_iter()
        .filter_map(|slot| match slot {
            (Key::DirSlot(_, cookie), Record::DirSlot { name, ino, kind }) => {
                Some(DirEntry { cookie, name, ino, kind })
            }
            _ => None,
        })
        .collect())
}

/// One extended attribute's value.
#[must_use]
pub fn xattr(store: &dyn MetaStore, ino: InodeNo, name: &[u8]) -> Option<Vec<u8>> {
    typed!(store, Key::Xattr(ino, name.to_vec()), Xattr)
}

/// All extended attributes of one inode; together they are limited to 64 KiB.
pub(super) fn xattr_range(store: &dyn MetaStore, ino: InodeNo) -> Vec<(Key, Record)> {
    let from = Key::Xattr(ino, Vec::new());
    let below = Key::Xattr(InodeNo(ino.0.saturating_add(1)), Vec::new());
    store.range(&from, &below, usize::MAX)
}

/// A chunk's record.
#[must_use]
pub fn chunk(store: &dyn MetaStore, chunk: ChunkId) -> Option<Chunk> {
    typed!(store, Key::Chunk(chunk), Chunk)
}

/// Chunk `index` of a file; `None` is a hole (or inline content).
#[must_use]
pub fn file_chunk(store: &dyn MetaStore, ino: InodeNo, index: u64) -> Option<(ChunkId, Chunk)> {
    let id = typed!(store, Key::FileChunk(ino, index), FileChunk)?;
    chunk(store, id).map(|record| (id, record))
}

/// At most `limit` chunks with `first <= index < below`: index, id.
pub(super) fn file_chunk_ids(
    store: &dyn MetaStore,
    ino: InodeNo,
    first: u64,
    below: u64,
    limit: usize,
) -> Vec<(u64, ChunkId)> {
    store
        .range(&Key::FileChunk(ino, first), &Key::FileChunk(ino, below), limit)
        .into_iter()
        .filter_map(|pair| match pair {
            (Key::FileChunk(_, index), Record::FileChunk(id)) => Some((index, id)),
            _ => None,
        })
        .collect()
}

/// Chunks of an inode that no size commit covered yet, unattached ones included.
#[must_use]
pub fn unborn_chunks(store: &dyn MetaStore, ino: InodeNo) -> Vec<ChunkId> {
    store
        .range(&Key::Unborn(ino, ChunkId(0)), &Key::Unborn(ino, ChunkId(u64::MAX)), usize::MAX)
        .into_iter()
        .filter_map(|(key, _)| if let Key::Unborn(_, chunk) = key { Some(chunk) } else { None })
        .collect()
}

/// The size that an unfinished truncation of `ino` cuts to.
#[must_use]
pub fn truncating(store: &dyn MetaStore, ino: InodeNo) -> Option<u64> {
    typed!(store, Key::Truncating(ino), Truncating)
}

/// A chunkserver that ever registered.
#[must_use]
pub fn server(store: &dyn MetaStore, server: ServerId) -> Option<Server> {
    typed!(store, Key::Server(server), Server)
}

/// All chunkservers that ever registered, without those that were decommissioned.
#[must_use]
pub fn servers(store: &dyn MetaStore) -> Vec<(ServerId, Server)> {
    registered(store).filter(|(_, record)| record.decommissioned().is_none()).collect()
}

/// Those that were decommissioned.
#[must_use]
pub fn decommissioned(store: &dyn MetaStore) -> Vec<(ServerId, Server)> {
    registered(store).filter(|(_, record)| record.decommissioned().is_some()).collect()
}

fn registered(store: &dyn MetaStore) -> impl Iterator<Item = (ServerId, Server)> + use<> {
    let all = store.range(&Key::Server(ServerId(0)), &Key::Server(ServerId(u32::MAX)), usize::MAX);
    all.into_iter().filter_map(|pair| match pair {
        (Key::Server(id), Record::Server(record)) => Some((id, record)),
        _ => None,
    })
}

/// A registered client.
#[must_use]
pub fn client(store: &dyn MetaStore, client: ClientId) -> Option<Client> {
    typed!(store, Key::Client(client), Client)
}

/// The recorded outcome of one operation.
#[must_use]
pub fn reply(store: &dyn MetaStore, id: OpId) -> Option<Outcome> {
    typed!(store, Key::Reply(id.client, id.op, id.part), Reply)
}

/// All locks of one file.
#[must_use]
pub fn locks(store: &dyn MetaStore, ino: InodeNo) -> Vec<Lock> {
    typed!(store, Key::Locks(ino), Locks).unwrap_or_default()
}

/// Files with locks from `from` on, at most `limit`.
#[must_use]
pub fn locked_files(
    store: &dyn MetaStore,
    from: InodeNo,
    limit: usize,
) -> Vec<(InodeNo, Vec<Lock>)> {
    store
        .range(&Key::Locks(from), &Key::Locks(InodeNo(u64::MAX)), limit)
        .into_iter()
        .filter_map(|pair| match pair {
            (Key::Locks(ino), Record::Locks(locks)) => Some((ino, locks)),
            _ => None,
        })
        .collect()
}

/// A lock that keeps (`client`, `owner`) from taking `start..=end` as `kind` now.
#[must_use]
pub fn test_lock(
    store: &dyn MetaStore,
    ino: InodeNo,
    (client, owner): (ClientId, u64),
    (start, end): (u64, u64),
    kind: LockKind,
) -> Option<Lock> {
    let wanted = Lock { client, owner, start, end, kind, pid: 0 };
    conflicting_lock(&locks(store, ino), &wanted)
}

pub(super) fn conflicting_lock(held: &[Lock], wanted: &Lock) -> Option<Lock> {
    held.iter()
        .find(|lock| {
            (lock.client, lock.owner) != (wanted.client, wanted.owner)
                && overlap(lock, wanted)
                && (lock.kind == LockKind::Exclusive || wanted.kind == LockKind::Exclusive)
        })
        .copied()
}

pub(super) fn overlap(a: &Lock, b: &Lock) -> bool {
    a.start <= b.end && b.start <= a.end
}
