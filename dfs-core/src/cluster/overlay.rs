//! What people (or the master itself) wish of a server, beside what the detector finds.
//!
//! Overlays are in the log, so that they outlive every restart; they never say whether a server is alive.

use std::collections::BTreeMap;
use std::fmt;

use super::Cluster;
use crate::ids::ServerId;
use crate::time::WallTime;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OverlayKind {
    /// A drill: the server, told, is silent and refuses data.
    Suspended,
    /// Takes no new chunks, and loses those it has.
    Draining,
    /// Away on purpose: what it holds is not rebuilt meanwhile, except chunks with one copy.
    Maintenance,
    /// It went and came back too often: no new chunks while there is another place.
    Probation,
    /// Gone for good: its disk is never used again. Of the others none is left then.
    Decommissioned,
}

impl fmt::Display for OverlayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suspended => "suspended",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::Probation => "probation",
            Self::Decommissioned => "decommissioned",
        })
    }
}

/// One wish about one server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlay {
    pub kind: OverlayKind,
    pub since: WallTime,
    /// Ends by itself then.
    pub until: Option<WallTime>,
    /// Who wished it, as they said.
    pub by: String,
}

/// Whether new chunks may go to a server with this overlay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Room {
    Free,
    /// Only if there is no other place.
    Last,
    Closed,
}

impl OverlayKind {
    #[must_use]
    pub const fn room(self) -> Room {
        match self {
            Self::Suspended | Self::Draining | Self::Decommissioned => Room::Closed,
            Self::Maintenance | Self::Probation => Room::Last,
        }
    }
}

impl Cluster {
    /// What the log says of servers now; all others have no overlay.
    pub fn set_overlays(&mut self, overlays: BTreeMap<ServerId, Vec<OverlayKind>>) {
        self.overlays = overlays;
    }

    #[must_use]
    pub fn has_overlay(&self, server: ServerId, kind: OverlayKind) -> bool {
        self.overlays.get(&server).is_some_and(|kinds| kinds.contains(&kind))
    }
}
