//! The metadata state machine: committed commands in, outcomes out.
//!
//! [`apply`] is called by nobody but the apply thread (and tests); it checks again whatever the leader
//! chose. State lives behind [`MetaStore`]; errors of a store end the process, so none are returned here.
//!
//! Rules that hold for every command: all checks come before the first change, so a refusal leaves the state as it
//! was but for the recorded reply; time is the command's, made strictly rising; nothing is scanned that is not
//! named by the command, except the locks of a client that ends.

use crate::chunk::{Chunk, Garbage};
use crate::cluster::overlay::{Overlay, OverlayKind};
use crate::command::{Lock, Outcome};
use crate::event::Event;
use crate::ids::{ChunkId, ClientId, DiskId, Epoch, FsId, InodeNo, ServerId};
use crate::job::{Job, JobId};
use crate::meta::marks::Marks;
use crate::namespace::{Dentry, FileKind, Inode};
use crate::results::Results;
use crate::time::WallTime;

pub mod jobs;
pub mod marks;
mod servers;
mod session;
mod transaction;
pub mod trash;
pub mod work;

mod attributes;
mod chunk_map;
mod content;
mod locks;
mod names;

mod mem_store;
pub mod read;
#[cfg(test)]
mod samples;

pub use chunk_map::MEMBERS_MAX;
pub use locks::FILE_LOCKS_MAX;
pub use mem_store::MemStore;
pub use names::is_name;
pub use read::*;
pub use servers::events;
pub use session::{OUTSTANDING_MAX, PARTS_MAX};
pub use transaction::{apply, init};

/// What a record is found by. The derived order is the order on disk: by tag, then big-endian fields.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    Super,
    Inode(InodeNo),
    Dentry(InodeNo, Vec<u8>),
    /// The same entries in cookie order, for readdir.
    DirSlot(InodeNo, u64),
    FileChunk(InodeNo, u64),
    Chunk(ChunkId),
    Xattr(InodeNo, Vec<u8>),
    /// All locks of one file.
    Locks(InodeNo),
    /// Inodes without a name, possibly open.
    Orphan(InodeNo),
    /// Truncations begun and not ended.
    Truncating(InodeNo),
    Garbage(ChunkId),
    Server(ServerId),
    Client(ClientId),
    /// Recorded outcome of (client, op, part).
    Reply(ClientId, u64, u32),
    /// Chunks of an inode that no size commit covered yet, attached or not. Holds the chunk's id.
    Unborn(InodeNo, ChunkId),
    Event(u64),
    Job(JobId),
    /// What a worker had done, from a snapshot on: job, worker, and what is left from the snapshot to the last number,
    /// so that later ones come first.
    JobState(JobId, u32, u64),
    /// Files without a name that are kept for a while, in the order they lost it.
    Trash(u64),
}

impl Key {
    /// No key is behind it.
    pub const LAST: Self = Self::Trash(u64::MAX);
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    Super(Superblock),
    Inode(Inode),
    Dentry(Dentry),
    DirSlot {
        name: Vec<u8>,
        ino: InodeNo,
        kind: FileKind,
    },
    FileChunk(ChunkId),
    Chunk(Chunk),
    Xattr(Vec<u8>),
    Locks(Vec<Lock>),
    Orphan,
    /// In the place of `Orphan`, of a file that never had a name: link(2) may give it one.
    Unnamed,
    /// The size to cut to.
    Truncating(u64),
    Garbage(Garbage),
    Server(Server),
    Client(Client),
    Reply(Outcome),
    Event(Event),
    Job(Job),
    JobState(u64),
    Trash(Trashed),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    pub fs: FsId,
    pub epoch: Epoch,
    pub nonce: u64,
    pub next_inode: u64,
    pub next_chunk: u64,
    /// Time of the last command: the next is later.
    pub now: WallTime,
    /// Copies of each chunk asked for, and below how many writes wait.
    pub replication: u32,
    pub min_replicas: u32,
    pub inode_count: u64,
    pub chunk_count: u64,
    /// Sum of file sizes, modulo 2^64 (two sparse files can pass that).
    pub file_bytes: u64,
    pub next_event: u64,
    pub next_job: u64,
    pub next_trash: u64,
    /// How long files are kept that lost their last name; 0: not at all.
    pub trash_ms: u64,
}

/// A file that lost its last name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trashed {
    pub ino: InodeNo,
    /// Where that name was.
    pub parent: InodeNo,
    pub name: Vec<u8>,
    pub at: WallTime,
    pub until: WallTime,
}

/// A chunkserver that ever registered, with the disk it brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    pub disk: DiskId,
    pub registered: WallTime,
    /// At most one of each kind.
    pub overlays: Vec<Overlay>,
    /// Of this disk's directory.
    pub marks: Marks,
    /// Disks it had before, the last one last, at most [`marks::FORMER_MAX`].
    pub former: Vec<FormerDisk>,
}

/// A disk that another one followed: it may come back, or an older copy of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormerDisk {
    pub disk: DiskId,
    pub marks: Marks,
}

impl Server {
    /// Since when, and on whose wish, this disk is out of the cluster for good.
    #[must_use]
    pub fn decommissioned(&self) -> Option<&Overlay> {
        self.overlays.iter().find(|overlay| overlay.kind == OverlayKind::Decommissioned)
    }
}

/// A registered client (mount or command).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    pub name: String,
    pub began: WallTime,
    /// Of these nothing is kept.
    pub results: Results,
    /// Results that are kept.
    pub reply_count: u32,
    /// Refused: it ends when every chunkserver refuses it too.
    pub fenced: bool,
}

/// An ordered store. `apply` reads its own writes; a batch of them becomes durable as the caller decides.
pub trait MetaStore {
    fn get(&self, key: &Key) -> Option<Record>;
    fn put(&mut self, key: Key, record: Record);
    fn delete(&mut self, key: &Key);
    /// At most `limit` records with `from <= key < below`, in order.
    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, Record)>;
}
