//! The chunk map: which chunks exist, who holds them, at which version (PROTOCOL §5.2).
//!
//! A chunk is attached to its file or waits for its spill; it is unborn until a size commit covers it; it ends as
//! garbage, which names everybody who may hold a replica.

use super::transaction::{Answer, Transaction};
use super::{Key, Record, read};
use crate::chunk::{Chunk, Configuration, Garbage, Member, Preparing};
use crate::command::Outcome;
use crate::ids::{ChunkId, ChunkVersion, InodeNo, ServerId};
use crate::job::JobId;
use crate::namespace::{Body, FILE_BYTES_MAX, Inode, NamespaceError};

/// Most members of one configuration (PROTOCOL §5.1).
pub const MEMBERS_MAX: usize = 4;
/// Records per step of a walk over one file's chunks.
const PAGE: usize = 1024;

impl Transaction<'_> {
    pub(super) fn add_chunk(
        &mut self,
        ino: InodeNo,
        index: u64,
        members: &[Member],
        primary: ServerId,
        attach: bool,
    ) -> Answer {
        let mut inode = self.file(ino)?;
        let chunk_size = inode.layout.chunk_size;
        let start = index.checked_mul(chunk_size).filter(|start| *start < FILE_BYTES_MAX);
        let start = start.ok_or(NamespaceError::FileTooLarge)?;
        if attach {
            if matches!(&inode.body, Body::Inline(content) if content.is_empty()) {
                // As `begin_write`, which need not come before it.
                inode.body = Body::Chunks { chunk_count: 0, writing: false };
            }
            let Body::Chunks { chunk_count, writing } = &mut inode.body else {
                return Err(NamespaceError::LayoutChanged);
            };
            // Chunks are added for writing only, and a first writer's mark may ride along.
            let marked = std::mem::replace(writing, true);
            if let Some((chunk, record)) = read::file_chunk(self.store, ino, index) {
                if !marked {
                    self.put_inode(ino, inode);
                }
                return Ok(Outcome::Chunk { chunk, record });
            }
            // Nobody writes beyond a cut that is under way: those bytes would come back when the file grows.
            if read::truncating(self.store, ino).is_some_and(|size| size <= start) {
                return Err(NamespaceError::LayoutChanged);
            }
            *chunk_count += 1;
        } else if !matches!(inode.body, Body::Inline(_)) || index != 0 {
            return Err(NamespaceError::LayoutChanged);
        }
        self.check_members(members)?;
        check_primary(members, primary)?;

        let chunk = ChunkId(self.superblock.next_chunk);
        self.superblock.next_chunk += 1;
        self.superblock.chunk_count += 1;
        let record = Chunk {
            ino,
            index,
            chunk_size,
            active: Configuration { version: ChunkVersion(1), members: members.to_vec(), primary },
            preparing: None,
            next_version: ChunkVersion(2),
            attached: attach,
            born: false,
            sealed: false,
            stored: false,
        };
        self.store.put(Key::Unborn(ino, chunk), Record::FileChunk(chunk));
        if attach {
            self.store.put(Key::FileChunk(ino, index), Record::FileChunk(chunk));
            self.put_inode(ino, inode);
        }
        Ok(self.put_chunk(chunk, record))
    }

    /// The copied content takes the place of the inline one, whose writer goes on writing.
    pub(super) fn spill(&mut self, ino: InodeNo, change_seen: u64, chunk: ChunkId) -> Answer {
        let mut inode = self.file(ino)?;
        let mut record = self.chunk(chunk)?;
        if record.ino != ino {
            return Err(NamespaceError::Invalid("the chunk belongs to another file".into()));
        }
        let Body::Inline(content) = &inode.body else { return Err(NamespaceError::LayoutChanged) };
        if record.attached || inode.change != change_seen {
            return Err(NamespaceError::LayoutChanged);
        }
        record.attached = true;
        record.born = !content.is_empty();
        record.stored = record.born;
        if record.born {
            self.store.delete(&Key::Unborn(ino, chunk));
        }
        self.store.put(Key::FileChunk(ino, record.index), Record::FileChunk(chunk));
        self.put_chunk(chunk, record);
        inode.body = Body::Chunks { chunk_count: 1, writing: true };
        inode.change += 1;
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn drop_chunk(&mut self, chunk: ChunkId) -> Answer {
        match read::chunk(self.store, chunk) {
            None => Ok(Outcome::Done),
            Some(record) if record.attached => {
                Err(NamespaceError::NotPermitted("the chunk is part of a file".into()))
            }
            Some(record) => {
                self.discard(chunk, record);
                Ok(Outcome::Done)
            }
        }
    }

    pub(super) fn seal_chunk(&mut self, chunk: ChunkId) -> Answer {
        let mut record = self.chunk(chunk)?;
        record.sealed = true;
        Ok(self.put_chunk(chunk, record))
    }

    pub(super) fn note_stored(&mut self, chunks: &[ChunkId]) -> Answer {
        for chunk in chunks {
            if let Some(record) = read::chunk(self.store, *chunk) {
                self.put_chunk(*chunk, Chunk { stored: true, ..record });
            }
        }
        Ok(Outcome::Done)
    }

    /// The base stays the last activated configuration, however often this is tried: an abandoned attempt never
    /// shrinks the set of possible sources.
    pub(super) fn reconfigure(
        &mut self,
        chunk: ChunkId,
        version: ChunkVersion,
        members: &[Member],
        learner: Option<Member>,
        after_wait: bool,
    ) -> Answer {
        let mut record = self.chunk(chunk)?;
        if version != record.next_version {
            return Err(NamespaceError::LayoutChanged);
        }
        check_distinct(members)?;
        if !members.iter().all(|member| record.active.members.contains(member)) {
            return Err(NamespaceError::Invalid(
                "a member is not in the last activated configuration".into(),
            ));
        }
        if let Some(learner) = learner {
            if members.iter().any(|member| member.server == learner.server) {
                return Err(NamespaceError::Invalid("the learner is a member already".into()));
            }
            self.check_registered(learner)?;
        }
        record.next_version = ChunkVersion(version.0 + 1);
        let after_wait = after_wait || record.goes_on_after_wait();
        record.preparing =
            Some(Preparing { version, members: members.to_vec(), learner, after_wait });
        Ok(self.put_chunk(chunk, record))
    }

    pub(super) fn activate(
        &mut self,
        chunk: ChunkId,
        configuration: &Configuration,
        done_by: Option<(JobId, ServerId)>,
    ) -> Answer {
        let mut record = self.chunk(chunk)?;
        if record.active == *configuration {
            return Ok(Outcome::Chunk { chunk, record });
        }
        let Some(preparing) =
            record.preparing.as_ref().filter(|p| p.version == configuration.version)
        else {
            return Err(NamespaceError::LayoutChanged);
        };
        check_distinct(&configuration.members)?;
        check_primary(&configuration.members, configuration.primary)?;
        let prepared = |member: &Member| {
            preparing.members.contains(member) || preparing.learner.as_ref() == Some(member)
        };
        if !configuration.members.iter().all(prepared) {
            return Err(NamespaceError::Invalid("a member was not prepared".into()));
        }
        record.preparing = None;
        record.active = configuration.clone();
        if let Some((job, worker)) = done_by {
            self.count_done(job, worker);
        }
        Ok(self.put_chunk(chunk, record))
    }

    /// A server that comes back with another disk has the new one from now on.
    /// Chunks that `size` covers are born.
    pub(super) fn bear_chunks(&mut self, ino: InodeNo, size: u64) {
        for chunk in read::unborn_chunks(self.store, ino) {
            let Some(mut record) = read::chunk(self.store, chunk) else { continue };
            if record.attached && record.index.saturating_mul(record.chunk_size) < size {
                record.born = true;
                self.put_chunk(chunk, record);
                self.store.delete(&Key::Unborn(ino, chunk));
            }
        }
    }

    /// Attached chunks with `first <= index < below` become holes. The caller stores the inode.
    pub(super) fn free_range(&mut self, ino: InodeNo, inode: &mut Inode, first: u64, below: u64) {
        loop {
            let page = read::file_chunk_ids(self.store, ino, first, below, PAGE);
            for &(index, chunk) in &page {
                self.store.delete(&Key::FileChunk(ino, index));
                if let Some(record) = read::chunk(self.store, chunk) {
                    self.discard(chunk, record);
                }
                if let Body::Chunks { chunk_count, .. } = &mut inode.body {
                    *chunk_count -= 1;
                }
            }
            if page.len() < PAGE {
                return;
            }
        }
    }

    /// All chunks of an inode that goes, those that wait for a spill included.
    pub(super) fn free_all_chunks(&mut self, ino: InodeNo, inode: &mut Inode) {
        self.free_range(ino, inode, 0, u64::MAX);
        for chunk in read::unborn_chunks(self.store, ino) {
            if let Some(record) = read::chunk(self.store, chunk) {
                self.discard(chunk, record);
            }
        }
    }

    /// Learners of earlier attempts are not in the record any more: the leader meets their replicas in reports.
    fn discard(&mut self, chunk: ChunkId, record: Chunk) {
        let Chunk { ino, active, preparing, born, .. } = record;
        let mut members = active.members;
        let mut version = active.version;
        if let Some(Preparing { version: prepared, learner, .. }) = preparing {
            version = prepared;
            members.extend(learner.filter(|learner| !members.contains(learner)));
        }
        if !born {
            self.store.delete(&Key::Unborn(ino, chunk));
        }
        self.store.delete(&Key::Chunk(chunk));
        self.store.put(Key::Garbage(chunk), Record::Garbage(Garbage { members, version }));
        self.superblock.chunk_count -= 1;
    }

    fn check_members(&self, members: &[Member]) -> Result<(), NamespaceError> {
        check_distinct(members)?;
        members.iter().try_for_each(|member| self.check_registered(*member))
    }

    fn check_registered(&self, member: Member) -> Result<(), NamespaceError> {
        let registered = read::server(self.store, member.server)
            .is_some_and(|known| known.disk == member.disk && known.decommissioned().is_none());
        if registered {
            return Ok(());
        }
        Err(NamespaceError::Invalid(format!("{} is not registered with that disk", member.server)))
    }
}

fn check_primary(members: &[Member], primary: ServerId) -> Result<(), NamespaceError> {
    if members.iter().any(|member| member.server == primary) {
        return Ok(());
    }
    Err(NamespaceError::Invalid("the primary is not a member".into()))
}

/// At least one member, not too many, no server and no disk twice.
fn check_distinct(members: &[Member]) -> Result<(), NamespaceError> {
    if !(1..=MEMBERS_MAX).contains(&members.len()) {
        return Err(NamespaceError::Invalid(format!("{} members", members.len())));
    }
    for (i, a) in members.iter().enumerate() {
        if members[..i].iter().any(|b| a.server == b.server || a.disk == b.disk) {
            return Err(NamespaceError::Invalid("a server or disk is a member twice".into()));
        }
    }
    Ok(())
}
