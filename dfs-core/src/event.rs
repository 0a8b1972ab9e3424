//! What happened to servers and chunks, in order: a bounded part of the state, so that it outlives the master.

use std::fmt;

use crate::ids::ServerId;
use crate::time::WallTime;

/// Older events are dropped.
pub const EVENTS_MAX: u64 = 10_000;
/// Longer causes are cut.
pub const CAUSE_BYTES_MAX: usize = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EventKind {
    /// A master's reign began.
    Started,
    Alive,
    Suspect,
    Dead,
    /// An overlay of a server began.
    Wished,
    /// An overlay ended.
    Reverted,
    /// Chunks got other configurations.
    Reconfigured,
    /// What a drill showed.
    Report,
    /// Chunks that no disk is known to hold any more.
    Lost,
    /// Blocks or files of replicas are not as they were written.
    Damaged,
    /// Replicas that should be equal differ.
    Diverged,
    /// Either is over.
    Mended,
    /// A server's directory is an older copy, or goes on although it is.
    Directory,
}

impl EventKind {
    pub const ALL: [Self; 13] = [
        Self::Started,
        Self::Alive,
        Self::Suspect,
        Self::Dead,
        Self::Wished,
        Self::Reverted,
        Self::Reconfigured,
        Self::Report,
        Self::Lost,
        Self::Damaged,
        Self::Diverged,
        Self::Mended,
        Self::Directory,
    ];
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Started => "started",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Wished => "wished",
            Self::Reverted => "reverted",
            Self::Reconfigured => "reconfigured",
            Self::Report => "report",
            Self::Lost => "lost",
            Self::Damaged => "damaged",
            Self::Diverged => "diverged",
            Self::Mended => "mended",
            Self::Directory => "directory",
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub at: WallTime,
    pub kind: EventKind,
    pub server: Option<ServerId>,
    pub cause: String,
    /// How long what ended with this had lasted.
    pub lasted_ms: Option<u64>,
}
