//! Invariants of the whole state, as one walk over all records. For `fsck`, tests and simulation.
//!
//! What [`crate::meta::apply`] keeps true: one tree, exact link counts, dentries and readdir's slots agree, what has
//! no name is an orphan, every chunk is in its file or waits for it, versions only rise, counters are exact.

#![warn(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::chunk::{Chunk, Member, Preparing};
use crate::command::{Lock, LockKind};
use crate::ids::{ChunkId, ClientId, InodeNo};
use crate::meta::{Client, Key, MetaStore, OUTSTANDING_MAX, PARTS_MAX, Record, Superblock, jobs};
use crate::namespace::acl::{self, Acl};
use crate::namespace::{
    Body, Dentry, FILE_BYTES_MAX, FileKind, INLINE_BYTES_MAX, Inode, XATTR_TOTAL_BYTES_MAX,
};

/// Most violations one check reports: the rest of a state that is this wrong tells nothing new.
pub const VIOLATIONS_MAX: usize = 1000;
/// Records read at once.
const PAGE: usize = 1024;

/// One thing that is never so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The record that shows it.
    pub at: Key,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.at, self.what)
    }
}

/// Everything that is wrong with the state, the first [`VIOLATIONS_MAX`]. Empty for a store without a file system.
#[must_use]
pub fn check(store: &dyn MetaStore) -> Vec<Violation> {
    let mut walk = Walk::new(store);
    let end = Key::LAST;
    let mut from = Key::Super;
    let mut seen_from = false;
    loop {
        // A page begins with the last record of the one before: keys have no successor to name.
        let page = store.range(&from, &end, PAGE);
        let full = page.len() == PAGE;
        let mut last = None;
        for (key, record) in page.into_iter().skip(usize::from(seen_from)) {
            walk.visit(&key, &record);
            last = Some(key);
        }
        match last {
            Some(last) if full && walk.violations.len() < VIOLATIONS_MAX => from = last,
            Some(_) | None => break,
        }
        seen_from = true;
    }
    walk.conclude();
    walk.violations.truncate(VIOLATIONS_MAX);
    walk.violations
}

/// What the walk keeps of each inode, and what it counts for it.
struct Seen {
    inode: Inode,
    names: u32,
    entries: u64,
    subdirectories: u32,
    chunks: u64,
    xattr_bytes: usize,
    orphan: bool,
}

struct Walk<'a> {
    store: &'a dyn MetaStore,
    superblock: Option<Superblock>,
    inodes: BTreeMap<InodeNo, Seen>,
    truncating: BTreeMap<InodeNo, u64>,
    chunk_count: u64,
    last_event: Option<u64>,
    clients: BTreeMap<ClientId, (Client, u32)>,
    lock_clients: BTreeSet<(InodeNo, ClientId)>,
    violations: Vec<Violation>,
}

impl<'a> Walk<'a> {
    fn new(store: &'a dyn MetaStore) -> Self {
        Self {
            store,
            superblock: None,
            inodes: BTreeMap::new(),
            truncating: BTreeMap::new(),
            chunk_count: 0,
            last_event: None,
            clients: BTreeMap::new(),
            lock_clients: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    fn wrong(&mut self, at: &Key, what: impl Into<String>) {
        self.violations.push(Violation { at: at.clone(), what: what.into() });
    }

    fn require(&mut self, holds: bool, at: &Key, what: &str) {
        if !holds {
            self.wrong(at, what);
        }
    }

    /// Records come in key order: superblock, inodes, then everything that refers to them.
    fn visit(&mut self, key: &Key, record: &Record) {
        match (key, record) {
            (Key::Super, Record::Super(superblock)) => self.superblock = Some(superblock.clone()),
            (Key::Inode(ino), Record::Inode(inode)) => self.inode(key, *ino, inode),
            (Key::Dentry(parent, name), Record::Dentry(dentry)) => {
                self.dentry(key, *parent, name, *dentry)
            }
            (Key::DirSlot(parent, cookie), Record::DirSlot { name, ino, kind }) => {
                let dentry = Record::Dentry(Dentry { ino: *ino, kind: *kind, cookie: *cookie });
                let named = self.store.get(&Key::Dentry(*parent, name.clone())) == Some(dentry);
                self.require(named, key, "no dentry has this slot");
            }
            (Key::FileChunk(ino, index), Record::FileChunk(chunk)) => {
                self.file_chunk(key, *ino, *index, *chunk)
            }
            (Key::Chunk(id), Record::Chunk(chunk)) => self.chunk(key, *id, chunk),
            (Key::Xattr(ino, name), Record::Xattr(value)) => self.xattr(key, *ino, name, value),
            (Key::Locks(ino), Record::Locks(locks)) => self.locks(key, *ino, locks),
            (Key::Orphan(ino), Record::Orphan | Record::Unnamed) => {
                match self.inodes.get_mut(ino) {
                    Some(seen) => seen.orphan = true,
                    None => self.wrong(key, "no such inode"),
                }
            }
            (Key::Trash(number), Record::Trash(trashed)) => {
                let next = self.superblock.as_ref().map_or(0, |superblock| superblock.next_trash);
                self.require(*number < next, key, "its number was never given out");
                match self.inodes.get_mut(&trashed.ino) {
                    // It is one or the other, and once.
                    Some(seen) if seen.orphan => self.wrong(key, "an orphan, or here twice"),
                    Some(seen) => seen.orphan = true,
                    None => self.wrong(key, "no such inode"),
                }
            }
            (Key::Truncating(ino), Record::Truncating(size)) => {
                let chunked = self
                    .inodes
                    .get(ino)
                    .is_some_and(|seen| matches!(seen.inode.body, Body::Chunks { .. }));
                self.require(chunked, key, "not a file with chunks");
                self.truncating.insert(*ino, *size);
            }
            (Key::Garbage(chunk), Record::Garbage(garbage)) => {
                let gone = self.store.get(&Key::Chunk(*chunk)).is_none();
                self.require(gone, key, "the chunk still exists");
                self.members(key, &garbage.members);
                self.known_chunk_id(key, *chunk);
            }
            (Key::Server(_), Record::Server(server)) => {
                let mut kinds: Vec<_> =
                    server.overlays.iter().map(|overlay| overlay.kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                let once = kinds.len() == server.overlays.len();
                self.require(once, key, "an overlay is there twice");
            }
            (Key::Event(number), Record::Event(_)) => self.last_event = Some(*number),
            (Key::Job(id), Record::Job(job)) => {
                let next = self.superblock.as_ref().map_or(0, |superblock| superblock.next_job);
                self.require(id.0 < next, key, "its number was never given out");
                self.require(
                    job.phase.has_ended() == job.ended.is_some(),
                    key,
                    "an end without an end",
                );
            }
            (Key::JobState(id, worker, from), Record::JobState(_)) => {
                match jobs::job(self.store, *id) {
                    Some(job) => {
                        self.require(*worker < job.workers, key, "no such worker");
                        let early = u64::MAX - from <= job.snapshots;
                        self.require(early, key, "from a snapshot to come");
                    }
                    None => self.wrong(key, "no such job"),
                }
            }
            (Key::Client(id), Record::Client(client)) => {
                self.clients.insert(*id, (client.clone(), 0));
            }
            (Key::Reply(id, op, _), Record::Reply(_)) => match self.clients.get_mut(id) {
                Some((client, replies)) => {
                    *replies += 1;
                    let kept = !client.results.has(*op);
                    self.require(kept, key, "the client said it has this");
                }
                None => self.wrong(key, "no such client"),
            },
            (Key::Unborn(ino, id), Record::FileChunk(chunk)) => {
                let found = self.store.get(&Key::Chunk(*id));
                let unborn = matches!(found, Some(Record::Chunk(c)) if !c.born && c.ino == *ino);
                self.require(unborn && id == chunk, key, "no such chunk that is unborn");
            }
            (_, other) => {
                let what = format!("holds a record of another kind: {other:?}");
                self.wrong(key, what);
            }
        }
    }

    fn inode(&mut self, key: &Key, ino: InodeNo, inode: &Inode) {
        if let Some(superblock) = &self.superblock {
            let (numbered, timed) = (ino.0 < superblock.next_inode, inode.ctime <= superblock.now);
            self.require(numbered, key, "its number was never given out");
            self.require(timed, key, "changed after the last command");
        }
        let fits = match (&inode.kind, &inode.body) {
            (FileKind::File, Body::Inline(content)) => {
                let len = content.len() as u64;
                len <= INLINE_BYTES_MAX && len <= inode.size
            }
            (FileKind::File, Body::Chunks { .. }) => true,
            (FileKind::Directory, Body::Directory { entry_count, .. }) => {
                inode.size == *entry_count
            }
            (FileKind::Symlink, Body::Symlink(target)) => inode.size == target.len() as u64,
            (FileKind::Fifo | FileKind::Socket, Body::Special) => inode.rdev == 0,
            (FileKind::CharDevice | FileKind::BlockDevice, Body::Special) => true,
            (
                FileKind::File
                | FileKind::Directory
                | FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice,
                _,
            ) => false,
        };
        self.require(
            fits && inode.size <= FILE_BYTES_MAX,
            key,
            "kind, content and size do not fit each other",
        );
        self.require(inode.mode & !0o7777 == 0, key, "mode has more than permission bits");
        let mut inode = inode.clone();
        // Of a million small files only what is compared later stays in memory.
        if let Body::Inline(content) | Body::Symlink(content) = &mut inode.body {
            content.clear();
            content.shrink_to_fit();
        }
        let seen = Seen {
            inode,
            names: 0,
            entries: 0,
            subdirectories: 0,
            chunks: 0,
            xattr_bytes: 0,
            orphan: false,
        };
        self.inodes.insert(ino, seen);
    }

    fn dentry(&mut self, key: &Key, parent: InodeNo, name: &[u8], dentry: Dentry) {
        let Dentry { ino, kind, cookie } = dentry;
        let slot = Record::DirSlot { name: name.to_vec(), ino, kind };
        let slotted = self.store.get(&Key::DirSlot(parent, cookie)) == Some(slot);
        self.require(slotted, key, "no slot shows it to readdir");
        self.require(crate::meta::is_name(name), key, "not a legal name");
        let next = self.inodes.get_mut(&parent).and_then(|seen| {
            seen.entries += 1;
            seen.subdirectories += u32::from(kind == FileKind::Directory);
            if let Body::Directory { next_cookie, .. } = seen.inode.body {
                Some(next_cookie)
            } else {
                None
            }
        });
        self.require(
            next.is_some_and(|next| cookie < next),
            key,
            "no directory gave out this cookie",
        );
        let Some(seen) = self.inodes.get_mut(&ino) else { return self.wrong(key, "names nothing") };
        seen.names += 1;
        let (same_kind, at_home) = (
            seen.inode.kind == kind,
            !matches!(seen.inode.body, Body::Directory { parent: home, .. } if home != parent),
        );
        self.require(same_kind, key, "names something of another kind");
        self.require(at_home, key, "names a directory that belongs elsewhere");
    }

    fn file_chunk(&mut self, key: &Key, ino: InodeNo, index: u64, chunk: ChunkId) {
        let found = self.store.get(&Key::Chunk(chunk));
        let same = matches!(found, Some(Record::Chunk(c)) if c.attached && c.ino == ino && c.index == index);
        self.require(same, key, "the chunk is not this part of the file");
        match self.inodes.get_mut(&ino) {
            Some(seen) => seen.chunks += 1,
            None => self.wrong(key, "no such inode"),
        }
    }

    fn chunk(&mut self, key: &Key, id: ChunkId, chunk: &Chunk) {
        let Chunk {
            ino,
            index,
            chunk_size,
            active,
            preparing,
            next_version,
            attached,
            born,
            sealed: _,
            stored: _,
        } = chunk;
        self.chunk_count += 1;
        self.known_chunk_id(key, id);
        let in_file = self.store.get(&Key::FileChunk(*ino, *index)) == Some(Record::FileChunk(id));
        self.require(in_file == *attached, key, "its file does not say the same about it");
        let unborn = self.store.get(&Key::Unborn(*ino, id)).is_some();
        self.require(unborn != *born, key, "born and unborn, or neither");
        match self.inodes.get(ino) {
            None => self.wrong(key, "no such inode"),
            Some(seen) => {
                let fits = seen.inode.layout.chunk_size == *chunk_size;
                let start = index.checked_mul(*chunk_size);
                let covered = !born || start.is_some_and(|start| start < seen.inode.size);
                self.require(fits, key, "of another size than its file's");
                self.require(covered, key, "born beyond the end of its file");
            }
        }
        self.members(key, &active.members);
        let primary = active.members.iter().any(|member| member.server == active.primary);
        self.require(primary, key, "the primary is not a member");
        self.require(active.version < *next_version, key, "its version was never given out");
        if let Some(Preparing { version, members, learner, after_wait: _ }) = preparing {
            self.members(key, members);
            let base = members.iter().all(|member| active.members.contains(member));
            let rises = active.version < *version && version < next_version;
            let apart = learner
                .is_none_or(|learner| members.iter().all(|member| member.server != learner.server));
            self.require(
                base,
                key,
                "prepares a member from outside the last activated configuration",
            );
            self.require(rises, key, "prepares a version that is not newer");
            self.require(apart, key, "prepares a learner that is a member");
        }
    }

    fn members(&mut self, key: &Key, members: &[Member]) {
        let servers: BTreeSet<_> = members.iter().map(|member| member.server).collect();
        let disks: BTreeSet<_> = members.iter().map(|member| member.disk).collect();
        let distinct = servers.len() == members.len() && disks.len() == members.len();
        self.require(distinct, key, "a member twice");
        self.require(!members.is_empty(), key, "no members");
    }

    fn known_chunk_id(&mut self, key: &Key, id: ChunkId) {
        let known = self.superblock.as_ref().is_some_and(|superblock| id.0 < superblock.next_chunk);
        self.require(known, key, "its number was never given out");
    }

    fn xattr(&mut self, key: &Key, ino: InodeNo, name: &[u8], value: &[u8]) {
        let Some(seen) = self.inodes.get_mut(&ino) else { return self.wrong(key, "no such inode") };
        seen.xattr_bytes += name.len() + value.len();
        let (fits, mode) = (seen.xattr_bytes <= XATTR_TOTAL_BYTES_MAX, seen.inode.mode);
        self.require(fits, key, "more attributes than an inode may have");
        if name == acl::ACCESS_NAME || name == acl::DEFAULT_NAME {
            match Acl::decode(value) {
                Ok(Some(decoded)) if name == acl::ACCESS_NAME => {
                    self.require(!decoded.is_minimal(), key, "says what the mode says");
                    self.require(
                        decoded.sync_mode(mode) == mode,
                        key,
                        "the mode says something else",
                    );
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => self.wrong(key, "not an ACL"),
            }
        }
    }

    fn locks(&mut self, key: &Key, ino: InodeNo, locks: &[Lock]) {
        self.require(self.inodes.contains_key(&ino), key, "no such inode");
        self.require(!locks.is_empty(), key, "no locks");
        for (i, a) in locks.iter().enumerate() {
            self.require(a.start <= a.end, key, "ends before it starts");
            self.lock_clients.insert((ino, a.client));
            for b in &locks[..i] {
                let overlap = a.start <= b.end && b.start <= a.end;
                let same_owner = (a.client, a.owner) == (b.client, b.owner);
                let both = a.kind == LockKind::Shared && b.kind == LockKind::Shared && !same_owner;
                self.require(!overlap || both, key, "two locks on a byte that exclude each other");
            }
        }
    }

    fn conclude(&mut self) {
        let Some(superblock) = self.superblock.take() else {
            if !self.inodes.is_empty() {
                self.wrong(&Key::Super, "missing");
            }
            return;
        };
        let inodes = std::mem::take(&mut self.inodes);
        let mut file_bytes = 0_u64;
        for (ino, seen) in &inodes {
            if seen.inode.kind == FileKind::File {
                file_bytes = file_bytes.wrapping_add(seen.inode.size);
            }
            self.links(*ino, seen);
        }
        self.require(inodes.contains_key(&InodeNo::ROOT), &Key::Super, "no root directory");
        self.tree(&inodes);
        self.require(
            superblock.inode_count == inodes.len() as u64,
            &Key::Super,
            "wrong count of inodes",
        );
        self.require(
            superblock.chunk_count == self.chunk_count,
            &Key::Super,
            "wrong count of chunks",
        );
        let next = self.last_event.map_or(0, |last| last + 1);
        self.require(next <= superblock.next_event, &Key::Super, "an event has a number to come");
        self.require(superblock.file_bytes == file_bytes, &Key::Super, "wrong sum of file sizes");
        self.cuts();
        let clients = std::mem::take(&mut self.clients);
        for (ino, client) in std::mem::take(&mut self.lock_clients) {
            self.require(
                clients.contains_key(&client),
                &Key::Locks(ino),
                "held by a client that is not registered",
            );
        }
        for (id, (client, replies)) in clients {
            let exact = client.reply_count == replies && replies <= OUTSTANDING_MAX + PARTS_MAX;
            self.require(exact, &Key::Client(id), "wrong count of recorded results");
        }
    }

    fn links(&mut self, ino: InodeNo, seen: &Seen) {
        let key = Key::Inode(ino);
        let Seen { inode, names, entries, subdirectories, chunks, orphan, xattr_bytes: _ } = seen;
        let root = ino == InodeNo::ROOT;
        match &inode.body {
            Body::Directory { entry_count, .. } => {
                self.require(
                    *names == u32::from(!root && !orphan),
                    &key,
                    "a directory has one name",
                );
                let nlink = if *orphan { 0 } else { 2 + subdirectories };
                self.require(inode.nlink == nlink, &key, "wrong link count of a directory");
                self.require(entry_count == entries, &key, "wrong count of entries");
                self.require(!orphan || *entries == 0, &key, "removed, but not empty");
            }
            Body::Inline(_) | Body::Chunks { .. } | Body::Symlink(_) | Body::Special => {
                self.require(inode.nlink == *names, &key, "wrong link count");
                self.require(
                    *orphan == (*names == 0),
                    &key,
                    "nameless, or on the way out with a name",
                );
                self.require(*entries == 0, &key, "has entries and is no directory");
            }
        }
        let chunk_count =
            if let Body::Chunks { chunk_count, .. } = inode.body { chunk_count } else { 0 };
        self.require(chunk_count == *chunks, &key, "wrong count of chunks");
    }

    /// Every directory with a name is below the root.
    fn tree(&mut self, inodes: &BTreeMap<InodeNo, Seen>) {
        let mut rooted = BTreeSet::from([InodeNo::ROOT]);
        for (&ino, seen) in inodes {
            if seen.orphan {
                continue;
            }
            let mut path = Vec::new();
            let mut at = ino;
            // A path longer than all inodes together goes in a circle.
            while !rooted.contains(&at) && path.len() <= inodes.len() {
                path.push(at);
                match inodes.get(&at).map(|seen| &seen.inode.body) {
                    Some(Body::Directory { parent, .. }) => at = *parent,
                    Some(
                        Body::Inline(_) | Body::Chunks { .. } | Body::Symlink(_) | Body::Special,
                    )
                    | None => break,
                }
            }
            if rooted.contains(&at) {
                rooted.extend(path);
            } else if seen.inode.kind == FileKind::Directory {
                self.wrong(&Key::Inode(ino), "not below the root");
            }
        }
    }

    /// No chunk lies beyond a cut that is under way.
    fn cuts(&mut self) {
        for (ino, size) in std::mem::take(&mut self.truncating) {
            let beyond = self
                .store
                .range(&Key::FileChunk(ino, 0), &Key::FileChunk(ino, u64::MAX), usize::MAX)
                .into_iter()
                .filter_map(|(_, record)| if let Record::FileChunk(id) = record { Some(id) } else { None })
                .any(|id| {
                    let found = self.store.get(&Key::Chunk(id));
                    matches!(found, Some(Record::Chunk(c)) if size <= c.index.saturating_mul(c.chunk_size))
                });
            self.require(!beyond, &Key::Truncating(ino), "a chunk lies beyond the cut");
        }
    }
}
