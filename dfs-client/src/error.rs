//! What goes wrong for a caller of the file system: one variant per thing the caller does next.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, ServerId};
use dfs_core::namespace::NamespaceError;
use dfs_service::page::Page;

/// What a caller of the file system sees go wrong. It can be kept and reported to several callers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The request was understood and refused. Asking again gives the same answer.
    #[error(transparent)]
    Refused(#[from] NamespaceError),
    /// Outcome unknown. Retries repeated the request id, so the master recognises a second arrival.
    #[error("no master answered within {waited:?}")]
    MasterSilent { waited: Duration },
    /// No member of the chunk gave its bytes; `faults` says of each one why.
    #[error("chunk {} version {} cannot be read: {faults} (waited {waited:.1?})", chunk.0, wanted.0)]
    NoCurrentReplica { chunk: ChunkId, wanted: ChunkVersion, faults: Faults, waited: Duration },
    /// Too few members of a chunk were reachable for so long. Nothing is lost by that; asking later may work.
    #[error("{reason} (waited {waited:?})")]
    ChunkUnavailable { reason: String, waited: Duration },
    /// Nothing of it was stored: a record is never split.
    #[error("a record of {bytes} bytes: this record log takes at most {most}")]
    RecordTooLong { bytes: u64, most: u64 },
    /// The bytes can be read, but not told apart: nobody kept where these records end.
    #[error("chunk {index} holds records that were appended before their ends were kept")]
    RecordsUnknown { index: u64 },
    /// Nothing of the refused bytes was stored.
    #[error("no space: {reason}")]
    NoSpace { reason: String },
    /// It may or may not have happened, and nobody can tell any more.
    #[error("outcome unknown: the result of this request is gone")]
    OutcomeUnknown,
    /// The caller stopped waiting for a lock: it was not granted.
    #[error("interrupted")]
    Interrupted,
    /// The other side said what makes no sense here.
    #[error("{reason}")]
    Protocol { reason: String },
    /// The session was closed.
    #[error("the session is closed")]
    Closed,
}

impl ClientError {
    /// Which section of the manual helps.
    #[must_use]
    pub fn page(&self) -> Option<Page> {
        match self {
            Self::NoSpace { .. } => Some(Page::FullDisk),
            Self::MasterSilent { .. } => Some(Page::MasterSilent),
            Self::NoCurrentReplica { faults, .. } if !faults.is_anybody_away() => Some(Page::Lost),
            Self::NoCurrentReplica { .. } | Self::ChunkUnavailable { .. } => {
                Some(Page::Unavailable)
            }
            Self::Refused(_)
            | Self::RecordTooLong { .. }
            | Self::RecordsUnknown { .. }
            | Self::OutcomeUnknown
            | Self::Interrupted
            | Self::Protocol { .. }
            | Self::Closed => None,
        }
    }
}

/// Why a member of a chunk gave no bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// This block of its replica has a bad checksum.
    Damaged { block: u32 },
    /// It has no replica of this version, or one that lacks operations.
    NotCurrent,
    /// It was not reached, or did not answer.
    Away { reason: String },
    /// It answered that it cannot.
    Failed { reason: String },
}

/// What kept each member of a chunk from answering a read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults(pub Vec<(ServerId, Fault)>);

impl Faults {
    /// Somebody who was not reached may still have the bytes.
    #[must_use]
    pub fn is_anybody_away(&self) -> bool {
        self.0.iter().any(|(_, fault)| matches!(fault, Fault::Away { .. }))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&(ServerId, Fault)> = self.0.iter().collect();
        sorted.sort_by_key(|(server, _)| *server);
        let mut parts: Vec<(&Fault, Vec<String>)> = Vec::new();
        for (server, fault) in sorted {
            match parts.iter_mut().find(|(other, _)| *other == fault) {
                Some((_, servers)) => servers.push(server.to_string()),
                None => parts.push((fault, vec![server.to_string()])),
            }
        }
        if parts.is_empty() {
            return f.write_str("it has no member");
        }
        for (number, (fault, servers)) in parts.iter().enumerate() {
            if 0 < number {
                f.write_str("; ")?;
            }
            let of = match servers.split_last() {
                Some((last, [])) => last.clone(),
                Some((last, before)) => format!("{} and {last}", before.join(", ")),
                None => String::new(),
            };
            match fault {
                Fault::Damaged { block } => write!(f, "block {block} is damaged on {of}")?,
                Fault::NotCurrent if servers.len() == self.0.len() => {
                    write!(f, "no member holds this version (asked {of})")?;
                }
                Fault::NotCurrent => write!(f, "this version is not on {of}")?,
                Fault::Away { reason } => write!(f, "no answer from {of} ({reason})")?,
                Fault::Failed { reason } => write!(f, "{of} failed ({reason})")?,
            }
        }
        Ok(())
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, ClientError>;

/// One `open(2)` of a file: every handle that writes is told of an error by itself, as descriptors of a local file are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OpenId(u64);

impl OpenId {
    /// Whoever syncs without having opened: one for all of them.
    pub const NOBODY: Self = Self(1);

    /// `number` is used once in a session, from 1.
    #[must_use]
    pub fn new(number: u64, writes: bool) -> Self {
        Self(number << 1 | u64::from(writes))
    }

    /// As a file handle carries it.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    fn writes(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Errors of bytes that were written behind and lost: told once to the next writer, and to each open for writing until
/// it has synced, whether it wrote or not, as Linux does with write-back errors. A close is told and changes nothing: the same open may have other descriptors, and a child that ends
/// closes them too. A write that fails may reach its program as a short one without the error, so telling writers is
/// not enough.
#[derive(Default, Debug)]
pub(crate) struct Kept {
    to_writer: Option<ClientError>,
    last: Option<ClientError>,
    /// Errors so far.
    count: u64,
    /// How many of them an open knows, where that is not none.
    known: BTreeMap<OpenId, u64>,
    /// What was cached of the file may be the bytes that are lost.
    outdated: bool,
}

impl Kept {
    pub(crate) fn keep(&mut self, error: ClientError) {
        self.to_writer.get_or_insert_with(|| error.clone());
        self.last = Some(error);
        self.count += 1;
        self.outdated = true;
    }

    pub(crate) fn tell_writer(&mut self) -> Result<()> {
        self.to_writer.take().map_or(Ok(()), Err)
    }

    /// What went wrong before this open is not its matter.
    pub(crate) fn opened(&mut self, open: OpenId) {
        if 0 < self.count {
            self.known.insert(open, self.count);
        }
    }

    pub(crate) fn closed(&mut self, open: OpenId) {
        self.known.remove(&open);
    }

    pub(crate) fn tell_close(&self, open: OpenId) -> Result<()> {
        let known = self.known.get(&open).copied().unwrap_or(0);
        match &self.last {
            Some(error) if open.writes() && known < self.count => Err(error.clone()),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn tell_sync(&mut self, open: OpenId) -> Result<()> {
        self.to_writer = None;
        let told = self.tell_close(open);
        if told.is_err() {
            self.known.insert(open, self.count);
        }
        told
    }

    /// Nobody who has the file open needs to be told any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn outdate(&mut self) {
        self.outdated = true;
    }

    pub(crate) fn take_outdated(&mut self) -> bool {
        std::mem::take(&mut self.outdated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_told_to_a_writer_is_still_told_to_whoever_syncs() {
        let mut kept = Kept::default();
        kept.keep(ClientError::OutcomeUnknown);
        kept.keep(ClientError::Closed);
        assert_eq!(kept.tell_writer(), Err(ClientError::OutcomeUnknown));
        assert_eq!(kept.tell_writer(), Ok(()));
        assert_eq!(kept.tell_sync(OpenId::NOBODY), Err(ClientError::Closed));
        assert_eq!(kept.tell_sync(OpenId::NOBODY), Ok(()));
    }

    #[test]
    fn each_open_for_writing_is_told_until_it_has_synced() {
        let [a, b, late] = [1, 2, 3].map(|number| OpenId::new(number, true));
        let reader = OpenId::new(4, false);
        let mut kept = Kept::default();
        let lost = || Err(ClientError::OutcomeUnknown);
        [a, b, reader].into_iter().for_each(|open| kept.opened(open));
        kept.keep(ClientError::OutcomeUnknown);
        kept.opened(late);
        assert_eq!(kept.tell_close(a), lost(), "a child's copy of it");
        assert_eq!((kept.tell_close(reader), kept.tell_sync(reader)), (Ok(()), Ok(())));
        assert_eq!(kept.tell_sync(a), lost());
        assert_eq!((kept.tell_sync(a), kept.tell_close(a)), (Ok(()), Ok(())));
        assert_eq!(kept.tell_sync(b), lost(), "whatever others were told");
        assert_eq!(kept.tell_sync(late), Ok(()));
        kept.keep(ClientError::Closed);
        assert_eq!(kept.tell_sync(late), Err(ClientError::Closed));
        assert_eq!(kept.tell_sync(a), Err(ClientError::Closed));
        kept.closed(b);
        assert!(kept.take_outdated() && !kept.take_outdated());
    }

    #[track_caller]
    fn check_said(faults: &[(u32, Fault)], expected: &str) {
        let faults = faults.iter().map(|(server, fault)| (ServerId(*server), fault.clone()));
        assert_eq!(Faults(faults.collect()).to_string(), expected);
    }

    #[test]
    fn a_read_that_fails_says_of_each_member_why() {
        let damaged = || Fault::Damaged { block: 5 };
        let away = || Fault::Away { reason: "connection refused".to_owned() };
        check_said(
            &[(2, damaged()), (1, damaged()), (3, damaged())],
            "block 5 is damaged on cs-1, cs-2 and cs-3",
        );
        check_said(
            &[(1, away()), (2, Fault::NotCurrent), (3, away())],
            "no answer from cs-1 and cs-3 (connection refused); this version is not on cs-2",
        );
        check_said(
            &[(1, Fault::NotCurrent), (2, Fault::NotCurrent)],
            "no member holds this version (asked cs-1 and cs-2)",
        );
        check_said(
            &[(1, damaged()), (2, Fault::Failed { reason: "disk error: EIO".to_owned() })],
            "block 5 is damaged on cs-1; cs-2 failed (disk error: EIO)",
        );
    }

    #[test]
    fn an_error_told_to_whoever_syncs_is_over() {
        let mut kept = Kept::default();
        kept.keep(ClientError::OutcomeUnknown);
        assert_eq!(kept.tell_sync(OpenId::NOBODY), Err(ClientError::OutcomeUnknown));
        assert_eq!(kept.tell_writer(), Ok(()));
    }
}
