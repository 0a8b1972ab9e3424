//! The chunk map's records: configurations of a chunk and how they change.

/// How a primary leads one version of a chunk.
pub mod leader;

use crate::ids::{ChunkId, ChunkVersion, DiskId, InodeNo, ServerId};

/// One member of a configuration: the disk it was made on, on the server that held it then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member {
    pub server: ServerId,
    /// A server that comes back with another disk is another member: an emptied disk is never a source.
    pub disk: DiskId,
}

/// Who holds a chunk at one version. The primary is one of `members`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    pub version: ChunkVersion,
    pub members: Vec<Member>,
    pub primary: ServerId,
}

/// A configuration that is promised but not yet active: nothing is accepted in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preparing {
    pub version: ChunkVersion,
    /// Subset of the last activated configuration, at least one.
    pub members: Vec<Member>,
    /// At most one per step.
    pub learner: Option<Member>,
    /// This attempt, or one before it from the same base, went on after the wait of DECISIONS 1: a member that rebooted
    /// while dirty may have adopted what it had as if it were all. Kept until a configuration is activated, so that
    /// every such attempt waits for the absent ones to be silent for long enough.
    pub after_wait: bool,
}

/// The master's record of one chunk (tag `K` in PROTOCOL §5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    pub ino: InodeNo,
    pub index: u64,
    pub chunk_size: u64,
    /// The last activated configuration.
    pub active: Configuration,
    pub preparing: Option<Preparing>,
    /// The next version never used; versions are not reused even by attempts that fail.
    pub next_version: ChunkVersion,
    /// False while a spill has not yet attached it to its inode (DECISIONS 10).
    pub attached: bool,
    /// Set by the first size commit that covers it: an unborn chunk nobody reports is a hole (DECISIONS 17).
    pub born: bool,
    /// Sealed record-log chunk: no more appends.
    pub sealed: bool,
    /// A disk was seen to hold it: when none does any more it is lost, not unwritten.
    pub stored: bool,
}

impl Chunk {
    /// Whether an attempt since the last activated configuration went on after the wait.
    #[must_use]
    pub fn goes_on_after_wait(&self) -> bool {
        self.preparing.as_ref().is_some_and(|preparing| preparing.after_wait)
    }
}

/// A chunk to be deleted from its last members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Garbage {
    pub members: Vec<Member>,
    pub version: ChunkVersion,
}

/// What a chunk request names so that a replica can describe itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkIdentity {
    pub chunk: ChunkId,
    pub ino: InodeNo,
    pub index: u64,
    pub chunk_size: u64,
}

/// What one replica adds to the digest of a server's inventory: the digest is the wrapping sum over all of them, so
/// that it can be kept up to date one replica at a time. Mixing: splitmix64.
#[must_use]
pub fn inventory_digest_of(chunk: ChunkId, version: ChunkVersion) -> u64 {
    let mut mixed = chunk.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.0.rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What tests begin with.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    pub(crate) fn member(n: u32) -> Member {
        Member { server: ServerId(n), disk: DiskId(u128::from(n)) }
    }

    /// Born, in `version`, led by the first of `members`.
    pub(crate) fn chunk(version: u64, members: &[u32]) -> Chunk {
        let members: Vec<Member> = members.iter().map(|n| member(*n)).collect();
        Chunk {
            ino: InodeNo(2),
            index: 0,
            chunk_size: 64 << 20,
            active: Configuration {
                version: ChunkVersion(version),
                primary: members[0].server,
                members,
            },
            preparing: None,
            next_version: ChunkVersion(version + 1),
            attached: true,
            born: true,
            sealed: false,
            stored: false,
        }
    }
}
