//! Identities, and which of them are ever used again.

use std::fmt;

/// A file, directory, symlink or special file. Never reused; also the FUSE node id. The root is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct InodeNo(pub u64);

impl InodeNo {
    /// The root directory; `fuse.h` fixes node id 1 for it.
    pub const ROOT: Self = Self(1);
}

/// A chunk: one fixed-size piece of one file. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ChunkId(pub u64);

/// The number of a chunk's configuration (members, primary). Only rises; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ChunkVersion(pub u64);

/// A chunkserver, written `cs-1`, `cs-2`, … Kept over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServerId(pub u32);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cs-{}", self.0)
    }
}

/// What `cs-N` could not be read as.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is not a server id: expected cs-1, cs-2, …")]
pub struct BadServerId(pub String);

impl std::str::FromStr for ServerId {
    type Err = BadServerId;

    fn from_str(text: &str) -> Result<Self, BadServerId> {
        text.strip_prefix("cs-")
            // As it is printed: one server has one name.
            .filter(|n| n.starts_with(|c: char| ('1'..='9').contains(&c)))
            .and_then(|n| n.parse().ok())
            .map(Self)
            .ok_or_else(|| BadServerId(text.to_owned()))
    }
}

/// One disk (data directory) of one chunkserver: 128 random bits in its label. An emptied disk gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DiskId(pub u128);

/// One file system: 128 random bits, drawn when its master directory is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FsId(pub u128);

impl fmt::Display for FsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A mount or one command: 128 random bits, never reused (DECISIONS 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ClientId(pub u128);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One request of one client to the master: `op` is the client's counter (or FUSE's `unique`), `part` tells apart
/// the commands one operation needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OpId {
    pub client: ClientId,
    pub op: u64,
    pub part: u32,
}

/// One reign of one master. Requests from an older epoch are fenced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);
