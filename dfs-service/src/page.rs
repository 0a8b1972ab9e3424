//! Which section of the operator's manual helps with which trouble. Every message about trouble names one.

use std::fmt;
use std::io::{self, ErrorKind};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    DeadServer,
    FullDisk,
    /// Degraded or endangered.
    CopiesMissing,
    CopiesWait,
    Unavailable,
    /// Fewer servers are there than a write needs.
    WritesWait,
    Lost,
    BadBlock,
    ReplicasDiffer,
    /// The master's log, its snapshots or its store; a chunkserver's journal.
    DamagedLog,
    /// Of the master; the chunkservers have copies of what was in it.
    DirectoryLost,
    /// Of another cluster, of a newer version, or older than the cluster.
    DirectoryRefused,
    KeyRefused,
    MasterSilent,
    ClientSilent,
    Fsck,
}

impl Page {
    pub const ALL: [Self; 16] = [
        Self::DeadServer,
        Self::FullDisk,
        Self::CopiesMissing,
        Self::CopiesWait,
        Self::Unavailable,
        Self::WritesWait,
        Self::Lost,
        Self::BadBlock,
        Self::ReplicasDiffer,
        Self::DamagedLog,
        Self::DirectoryLost,
        Self::DirectoryRefused,
        Self::KeyRefused,
        Self::MasterSilent,
        Self::ClientSilent,
        Self::Fsck,
    ];

    /// Which one helps whose own disk answered `error`; `None` if that says nothing.
    #[must_use]
    pub fn of_disk(error: &io::Error) -> Option<Self> {
        let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        is_full.then_some(Self::FullDisk)
    }

    /// What all of them begin with.
    pub const FILE: &str = "docs/operations.md";

    /// As a browser finds it on the page.
    #[must_use]
    pub const fn anchor(self) -> &'static str {
        match self {
            Self::DeadServer => "a-server-is-dead",
            Self::FullDisk => "a-disk-is-full",
            Self::CopiesMissing => "copies-are-missing",
            Self::CopiesWait => "copies-wait",
            Self::Unavailable => "a-chunk-is-unavailable",
            Self::WritesWait => "writes-wait",
            Self::Lost => "a-chunk-is-lost",
            Self::BadBlock => "a-block-is-bad",
            Self::ReplicasDiffer => "replicas-differ",
            Self::DamagedLog => "a-log-is-damaged",
            Self::DirectoryLost => "the-masters-directory-is-lost",
            Self::DirectoryRefused => "a-directory-is-refused",
            Self::KeyRefused => "a-key-is-refused",
            Self::MasterSilent => "the-master-does-not-answer",
            Self::ClientSilent => "a-client-is-silent",
            Self::Fsck => "fsck-finds-something",
        }
    }
}

impl Page {
    /// This page, unless `said` names one already: that is nearer to the cause.
    #[must_use]
    pub fn unless_named(self, said: &str) -> Option<Self> {
        (!said.contains(Self::FILE)).then_some(self)
    }
}

/// `docs/operations.md#a-server-is-dead`.
impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", Self::FILE, self.anchor())
    }
}
