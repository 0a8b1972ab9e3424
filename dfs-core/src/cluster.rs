//! Chunkservers as the master knows them: who is alive, what they hold, how much space they have.
//!
//! All of it is learned from heartbeats and none of it is persisted: after a restart the table is empty and fills
//! as servers report. Order of events for one server: connected, heartbeats (the first with a full inventory),
//! disconnected. A closed connection makes it suspect at once; dead comes from silence only (DECISIONS 21).

pub mod flapping;
mod inventory;
pub mod overlay;
mod place;
pub mod running;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use overlay::{OverlayKind, Room};
pub use place::{Placement, room_for_new_chunk};

use crate::chunk::{Chunk, Member};
use crate::ids::{ChunkId, ChunkVersion, DiskId, ServerId};
use crate::plan::rebuild::Place;
use crate::time::Timestamp;
use running::Running;

/// When silence means something: who was silent for longer than `dead_after` is dead. It is at least three intervals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LivenessProfile {
    pub interval_ms: u64,
    pub dead_after_ms: u64,
    /// How long an idle chunk may stay short before it is copied to a server that never held it.
    pub rebuild_delay_ms: u64,
}

/// A profile that cannot work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadProfile {
    #[error("unknown profile '{0}': expected standard, drill or router")]
    Unknown(String),
    #[error(
        "dead-after {dead_after_ms} ms must be at least three heartbeat intervals of {interval_ms} ms"
    )]
    TooTight { interval_ms: u64, dead_after_ms: u64 },
}

impl LivenessProfile {
    pub const STANDARD: Self =
        Self { interval_ms: 5_000, dead_after_ms: 15_000, rebuild_delay_ms: 60_000 };
    pub const DRILL: Self = Self { interval_ms: 1_000, dead_after_ms: 3_000, rebuild_delay_ms: 0 };
    pub const ROUTER: Self =
        Self { interval_ms: 1_000, dead_after_ms: 10_000, rebuild_delay_ms: 60_000 };

    /// # Errors
    /// `Unknown` for any other name.
    pub fn named(name: &str) -> Result<Self, BadProfile> {
        match name {
            "standard" => Ok(Self::STANDARD),
            "drill" => Ok(Self::DRILL),
            "router" => Ok(Self::ROUTER),
            other => Err(BadProfile::Unknown(other.to_owned())),
        }
    }

    /// # Errors
    /// `TooTight` if one lost packet and one slow disk would look like death.
    pub fn check(self) -> Result<Self, BadProfile> {
        let Self { interval_ms, dead_after_ms, .. } = self;
        if interval_ms == 0 || dead_after_ms < interval_ms.saturating_mul(3) {
            return Err(BadProfile::TooTight { interval_ms, dead_after_ms });
        }
        Ok(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Liveness {
    Alive,
    /// Avoided, not given up: its connection closed, it is late, or it did not answer.
    Suspect,
    Dead,
}

impl std::fmt::Display for Liveness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        })
    }
}

/// One replica as its server last reported it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replica {
    pub version: ChunkVersion,
    pub seq: u64,
    pub len: u64,
    pub not_current: bool,
    /// Of its content: equal for equal bytes.
    pub digest: u32,
}

/// What of a replica cannot be read, as its server knows it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Damage {
    /// Blocks with a bad checksum.
    pub blocks: Vec<u32>,
    /// Nothing of it will be there after the server's next start.
    pub whole: bool,
}

/// How many copies of a chunk there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copies {
    /// On live servers, current, and good in the block of which the fewest are good.
    pub good: usize,
    /// On live servers and current, whichever of their blocks are bad: so many take writes.
    pub writable: usize,
    /// A member that is away may bring one back.
    pub may_return: bool,
}

/// Most replicas that one heartbeat tells of.
pub const INVENTORY_PAGE: usize = 10_000;

/// What one heartbeat says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    pub server: ServerId,
    pub disk: DiskId,
    pub incarnation: u64,
    pub address: String,
    /// `replicas` is everything the server holds.
    pub full_inventory: bool,
    /// The rest of the full inventory follows, [`INVENTORY_PAGE`] replicas a heartbeat; also in a heartbeat between the
    /// pages that tells nothing.
    pub inventory_more: bool,
    pub replicas: Vec<(ChunkId, Replica)>,
    /// Those of `replicas` that are damaged.
    pub damaged: Vec<(ChunkId, Damage)>,
    pub gone: Vec<ChunkId>,
    /// [`crate::chunk::inventory_digest_of`] over all that was told so far; `None`: it does not say.
    pub inventory_digest: Option<u64>,
    pub chunk_count: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Servers that tell the same fill the same disk; 0: nobody else fills this one's.
    pub device: u64,
    pub place: Place,
}

/// One server's row.
#[derive(Clone, Debug)]
pub struct ServerRow {
    pub disk: DiskId,
    pub incarnation: u64,
    pub address: String,
    pub connected: bool,
    pub heard_at: Timestamp,
    /// Its silence counts from here: when it was heard, or later by what the master itself slept.
    silent_since: Timestamp,
    /// When its connection closed, if it did.
    closed_at: Timestamp,
    /// This disk's first heartbeat.
    joined_at: Timestamp,
    /// Since this, until it answers again, it does not count as alive.
    unresponsive_until: Option<Timestamp>,
    /// A full inventory of this incarnation arrived.
    pub inventory_complete: bool,
    /// A full inventory has begun and not ended.
    inventory_pages: bool,
    pub replicas: BTreeMap<ChunkId, Replica>,
    /// Those of `replicas` that were learned by an answer, and that no heartbeat told of since.
    ahead: BTreeSet<ChunkId>,
    /// [`crate::chunk::inventory_digest_of`] over `replicas`.
    digest: u64,
    /// Heartbeats one after the other whose digest was another, with nothing learned in between by other ways.
    mismatches: u32,
    /// Of some of them.
    pub damaged: BTreeMap<ChunkId, Damage>,
    pub chunk_count: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// See [`Heartbeat::device`].
    pub device: u64,
    pub place: Place,
    /// Chunks placed here since the last heartbeat: its free space does not show them yet.
    recent_placements: u64,
    /// It refused bytes for want of room, and told of no more room since.
    is_full: bool,
    /// Grows with every chunk it is given, faster the less room it has.
    burden: u64,
    /// Chunks it had when it was first heard of, and those placed on it since.
    load: u64,
}

/// What accepting a heartbeat means for the reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    pub want_full_inventory: bool,
    /// It was not alive before: chunks may have found a member again.
    pub returned: bool,
}

/// The table of all servers heard of since the master started.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub profile: LivenessProfile,
    rows: BTreeMap<ServerId, ServerRow>,
    /// Being registered, since then: its first heartbeat is on its way.
    introduced: BTreeMap<ServerId, Timestamp>,
    /// Chunks placed so far.
    placements: u64,
    pub placement: Placement,
    /// As the log has them.
    overlays: BTreeMap<ServerId, Vec<OverlayKind>>,
    /// Replicas told of that may be the first of their chunk, since the last [`Self::take_told`].
    told: BTreeSet<ChunkId>,
    running: Running,
}

impl Cluster {
    #[must_use]
    pub fn new(profile: LivenessProfile) -> Self {
        let (rows, overlays) = (BTreeMap::new(), BTreeMap::new());
        let running = Running::default();
        let (told, placement) = (BTreeSet::new(), Placement::default());
        let introduced = BTreeMap::new();
        Self { profile, rows, introduced, overlays, placements: 0, placement, told, running }
    }

    /// A server that nobody knew is being registered: it is not dead because nothing was heard of it before.
    pub fn introduce(&mut self, now: Timestamp, server: ServerId) {
        self.introduced.insert(server, now);
    }

    /// Whether `server` is being registered and may be heard of in a moment.
    #[must_use]
    pub fn is_introduced(&self, now: Timestamp, server: ServerId) -> bool {
        let limit = self.profile.dead_after_ms * 1_000_000;
        self.introduced.get(&server).is_some_and(|since| now.nanos_since(*since) <= limit)
    }

    /// As if `server` had never been heard of.
    pub fn forget(&mut self, server: ServerId) {
        self.rows.remove(&server);
    }

    /// Servers of which the log says `kind`.
    pub fn with_overlay(&self, kind: OverlayKind) -> impl Iterator<Item = ServerId> + '_ {
        let servers = self.overlays.iter().filter(move |(_, kinds)| kinds.contains(&kind));
        servers.map(|(server, _)| *server)
    }

    /// Whether a server in maintenance may bring back a copy of `chunk`.
    #[must_use]
    pub fn awaits_maintenance(&self, now: Timestamp, chunk: ChunkId) -> bool {
        self.overlays.iter().any(|(server, kinds)| {
            kinds.contains(&OverlayKind::Maintenance)
                && self.liveness(now, *server) != Liveness::Alive
                && self
                    .rows
                    .get(server)
                    .is_none_or(|row| row.replicas.contains_key(&chunk) || !row.inventory_complete)
        })
    }

    /// Whether new chunks may go to `server`, if it is alive.
    #[must_use]
    pub fn room(&self, server: ServerId) -> Room {
        let kinds = self.overlays.get(&server);
        kinds.into_iter().flatten().map(|kind| kind.room()).max().unwrap_or(Room::Free)
    }

    #[must_use]
    pub fn rows(&self) -> &BTreeMap<ServerId, ServerRow> {
        &self.rows
    }

    #[must_use]
    pub fn row(&self, server: ServerId) -> Option<&ServerRow> {
        self.rows.get(&server)
    }

    /// Bytes of all disks, and those that are free: of servers that are not dead, a disk that several fill counted once.
    #[must_use]
    pub fn capacity(&self, now: Timestamp) -> (u64, u64) {
        let (mut total, mut free) = (0_u64, 0_u64);
        let mut shared: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (server, row) in &self.rows {
            if self.liveness(now, *server) == Liveness::Dead {
                continue;
            }
            if row.device == 0 {
                total = total.saturating_add(row.total_bytes);
                free = free.saturating_add(row.free_bytes);
            } else {
                let disk = shared.entry(row.device).or_insert((row.total_bytes, row.free_bytes));
                *disk = (disk.0.max(row.total_bytes), disk.1.min(row.free_bytes));
            }
        }
        shared.values().fold((total, free), |(total, free), (disk_total, disk_free)| {
            (total.saturating_add(*disk_total), free.saturating_add(*disk_free))
        })
    }

    /// Takes a heartbeat. An older incarnation of the same disk changes nothing and asks for nothing; a new disk's begin anew.
    pub fn on_heartbeat(&mut self, now: Timestamp, heartbeat: Heartbeat) -> Heard {
        let Heartbeat {
            server,
            disk,
            incarnation,
            address,
            full_inventory,
            inventory_more,
            replicas,
            damaged,
            gone,
            inventory_digest,
            chunk_count,
            used_bytes,
            free_bytes,
            total_bytes,
            device,
            place,
        } = heartbeat;
        self.was_running(now);
        let returned = self.liveness(now, server) != Liveness::Alive;
        let is_old = |row: &ServerRow| row.disk == disk && incarnation < row.incarnation;
        if self.rows.get(&server).is_some_and(is_old) {
            return Heard { want_full_inventory: false, returned: false };
        }
        let fresh = || ServerRow {
            disk,
            incarnation,
            address: String::new(),
            connected: true,
            heard_at: now,
            silent_since: now,
            closed_at: now,
            joined_at: now,
            unresponsive_until: None,
            inventory_complete: false,
            inventory_pages: false,
            replicas: BTreeMap::new(),
            ahead: BTreeSet::new(),
            digest: 0,
            mismatches: 0,
            damaged: BTreeMap::new(),
            chunk_count: 0,
            used_bytes: 0,
            free_bytes: 0,
            total_bytes: 0,
            device: 0,
            place: Place::default(),
            recent_placements: 0,
            is_full: false,
            burden: 0,
            load: chunk_count,
        };
        self.introduced.remove(&server);
        let row = self.rows.entry(server).or_insert_with(fresh);
        if row.incarnation != incarnation || row.disk != disk {
            let joined_at = if row.disk == disk { row.joined_at } else { now };
            let load = if row.disk == disk { row.load } else { chunk_count };
            *row = ServerRow { joined_at, burden: row.burden, load, ..fresh() };
        }
        let first = |(_, replica): &&(ChunkId, Replica)| replica.version.0 == 1;
        self.told.extend(replicas.iter().filter(first).map(|(chunk, _)| *chunk));
        if full_inventory {
            row.keep_only(replicas);
            row.damaged = damaged.into_iter().collect();
            row.inventory_complete = !inventory_more;
            row.inventory_pages = inventory_more;
        } else {
            if row.inventory_pages && replicas.len() < INVENTORY_PAGE && !inventory_more {
                row.inventory_complete = true;
                row.inventory_pages = false;
            }
            for (chunk, replica) in replicas {
                row.keep_told(chunk, replica);
                row.damaged.remove(&chunk);
            }
            row.damaged.extend(damaged);
            for chunk in &gone {
                row.drop_told(*chunk);
                row.damaged.remove(chunk);
            }
        }
        let anew = row.is_to_tell_anew(inventory_digest);
        row.address = address;
        row.connected = true;
        row.heard_at = now;
        row.silent_since = now;
        row.chunk_count = chunk_count;
        row.used_bytes = used_bytes;
        row.free_bytes = free_bytes;
        row.is_full &= free_bytes < room_for_new_chunk(u64::MAX);
        row.total_bytes = total_bytes;
        row.device = device;
        row.place = place;
        row.recent_placements = 0;
        Heard {
            want_full_inventory: anew || !row.inventory_complete && !row.inventory_pages,
            returned,
        }
    }

    /// Up to `most` chunks of which a server told, once each.
    pub fn take_told(&mut self, most: usize) -> Vec<ChunkId> {
        let rest = self.told.iter().nth(most).copied();
        let rest = rest.map(|from| self.told.split_off(&from)).unwrap_or_default();
        std::mem::replace(&mut self.told, rest).into_iter().collect()
    }

    /// `member` answered that it holds `chunk` so: known before its next heartbeat says it.
    pub fn on_replica(&mut self, member: &Member, chunk: ChunkId, replica: Replica) {
        if let Some(row) = self.rows.get_mut(&member.server)
            && row.disk == member.disk
        {
            row.keep_ahead(chunk, replica);
        }
    }

    /// Copies of `chunk`, of which `record` is the map's. `unreported`: a member may hold it without having said so.
    /// Whoever has taken up a later version has all that counts: that version is being prepared, or was activated after
    /// `record` was read.
    #[must_use]
    pub fn copies(
        &self,
        now: Timestamp,
        chunk: ChunkId,
        record: &Chunk,
        unreported: bool,
    ) -> Copies {
        self.copies_without(now, chunk, record, unreported, &BTreeSet::new())
    }

    /// As [`Self::copies`], as if the servers `without` had died now.
    #[must_use]
    pub fn copies_without(
        &self,
        now: Timestamp,
        chunk: ChunkId,
        record: &Chunk,
        unreported: bool,
        without: &BTreeSet<ServerId>,
    ) -> Copies {
        let (mut holders, mut may_return) = (0, false);
        let mut bad: BTreeMap<u32, usize> = BTreeMap::new();
        let mut ruined = 0;
        for member in &record.active.members {
            let row = self.row(member.server).filter(|row| row.disk == member.disk);
            let alive = row.is_some()
                && !without.contains(&member.server)
                && self.liveness(now, member.server) == Liveness::Alive;
            // An unborn chunk has no file yet: being able to take one is all it needs.
            let holds = row.is_some_and(|row| match row.replicas.get(&chunk) {
                Some(replica) => record.active.version <= replica.version && !replica.not_current,
                None => !record.born || unreported,
            });
            if alive && holds {
                holders += 1;
                let Some(damage) = row.and_then(|row| row.damaged.get(&chunk)) else { continue };
                ruined += usize::from(damage.whole);
                for block in damage.blocks.iter().filter(|_| !damage.whole) {
                    *bad.entry(*block).or_default() += 1;
                }
            } else if row.is_none_or(|row| {
                // An older one is never a source: whoever holds that has lost what is asked for.
                let replica = row.replicas.get(&chunk);
                replica.is_some_and(|replica| record.active.version <= replica.version)
                    || !row.inventory_complete
                    // Nobody was seen to hold it yet: it was written after the last word of who is silent now.
                    || (!alive && !record.stored && replica.is_none())
            }) {
                may_return = true;
            }
        }
        let worst = bad.values().max().copied().unwrap_or(0);
        Copies { good: holders - ruined - worst, writable: holders - ruined, may_return }
    }

    #[cfg(test)]
    pub(crate) fn damage_for_test(&mut self, server: ServerId, chunk: ChunkId, damage: Damage) {
        if let Some(row) = self.rows.get_mut(&server) {
            row.damaged.insert(chunk, damage);
        }
    }

    /// As if those `beats` names had just sent a heartbeat that says nothing new.
    #[cfg(test)]
    pub(crate) fn refresh_for_test(&mut self, now: Timestamp, beats: impl Fn(ServerId) -> bool) {
        for (server, row) in &mut self.rows {
            if beats(*server) {
                row.heard_at = now;
                row.silent_since = now;
            }
        }
    }

    /// The heartbeat connection of this incarnation closed.
    pub fn on_disconnect(&mut self, now: Timestamp, server: ServerId, incarnation: u64) {
        self.was_running(now);
        if let Some(row) = self.rows.get_mut(&server)
            && row.incarnation == incarnation
        {
            row.connected = false;
            row.closed_at = now;
        }
    }

    /// It did not answer a call in time: avoided for `millis`, whatever its heartbeats say.
    pub fn on_unresponsive(&mut self, now: Timestamp, server: ServerId, millis: u64) {
        self.was_running(now);
        if let Some(row) = self.rows.get_mut(&server) {
            row.unresponsive_until = Some(Timestamp(now.0.saturating_add(millis * 1_000_000)));
        }
    }

    #[must_use]
    pub fn liveness(&self, now: Timestamp, server: ServerId) -> Liveness {
        let Some(row) = self.rows.get(&server) else {
            return match self.is_introduced(now, server) {
                true => Liveness::Suspect,
                false => Liveness::Dead,
            };
        };
        let silence_ms = self.silence_ms(now, row);
        let closed = !row.connected && !self.running.excuses(now, row.closed_at);
        let late = self.profile.interval_ms + self.profile.interval_ms / 2 <= silence_ms;
        if self.profile.dead_after_ms < silence_ms {
            Liveness::Dead
        } else if closed || late || row.unresponsive_until.is_some_and(|until| now < until) {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }

    /// Why `server` is in the state that [`Self::liveness`] says.
    #[must_use]
    pub fn cause(&self, now: Timestamp, server: ServerId) -> String {
        let Some(row) = self.rows.get(&server) else {
            if self.is_introduced(now, server) {
                return "being registered".to_owned();
            }
            return "not heard of since the master began its reign".to_owned();
        };
        let silent = self.silence_ms(now, row);
        let silent = format!("{}.{} s", silent / 1000, silent % 1000 / 100);
        match self.liveness(now, server) {
            Liveness::Alive => "heard of".to_owned(),
            Liveness::Dead => format!("silent for {silent}"),
            Liveness::Suspect if !row.connected => "its connection closed".to_owned(),
            Liveness::Suspect if row.unresponsive_until.is_some_and(|until| now < until) => {
                "it did not answer a call in time".to_owned()
            }
            Liveness::Suspect => format!("no heartbeat for {silent}"),
        }
    }

    /// How long `member` was not heard of, by a master that began at `start`.
    #[must_use]
    pub fn silent_ms(&self, now: Timestamp, start: Timestamp, member: &Member) -> u64 {
        match self.row(member.server) {
            None => now.nanos_since(start) / 1_000_000,
            Some(row) if row.disk == member.disk => self.silence_ms(now, row),
            // Another disk came in its place.
            Some(row) => now.nanos_since(row.joined_at) / 1_000_000,
        }
    }

    /// Whether nobody serves `chunk` and nobody will by itself: its members that are up rebooted with unsynced data, and
    /// each other was silent for `wait_ms`, which ends the wait for it (DECISIONS 1). `start`: as in [`Self::silent_ms`].
    #[must_use]
    pub fn only_rebooted_are_left(
        &self,
        now: Timestamp,
        start: Timestamp,
        wait_ms: u64,
        chunk: ChunkId,
        record: &Chunk,
    ) -> bool {
        let mut rebooted = 0;
        for member in &record.active.members {
            if !self.is_up(now, member) {
                if self.silent_ms(now, start, member) < wait_ms {
                    return false;
                }
                continue;
            }
            match self.row(member.server).and_then(|row| row.replicas.get(&chunk)) {
                Some(replica) if replica.not_current => rebooted += 1,
                Some(_) | None => return false,
            }
        }
        0 < rebooted
    }

    /// Alive, with the disk the member was made on.
    #[must_use]
    pub fn is_up(&self, now: Timestamp, member: &Member) -> bool {
        self.row(member.server).is_some_and(|row| row.disk == member.disk)
            && self.liveness(now, member.server) == Liveness::Alive
    }

    /// Where `member` answers, if it is up.
    #[must_use]
    pub fn address(&self, now: Timestamp, member: &Member) -> Option<&str> {
        self.row(member.server).filter(|_| self.is_up(now, member)).map(|row| row.address.as_str())
    }
}
