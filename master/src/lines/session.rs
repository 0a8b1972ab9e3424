//! One conversation: who said what, and what follows from it by [`Cluster`] (who is alive), [`assign`] (who copies
//! what) and [`surplus`] (what can go).

use std::collections::{BTreeMap, BTreeSet};

use dfs_core::chunk::{Chunk, Configuration, Member};
use dfs_core::cluster::{Cluster, Heartbeat, Liveness, LivenessProfile, Replica};
use dfs_core::ids::{ChunkId, ChunkVersion, DiskId, InodeNo, ServerId};
use dfs_core::plan::rebuild::{Limits, Place, Short, Target, assign, hold_of};
use dfs_core::plan::surplus::{Known, surplus};
use dfs_core::time::Timestamp;

use super::{Body, LineError, Listed, Message, Reply, ReplyBody, ServerStatus, some_of};

/// Servers tell how full their disks are, not how large: all are taken for this large.
const DISK_BYTES: u64 = 1 << 40;
const CHUNK_BYTES: u64 = 64 << 20;
/// Copies on their way to one server, and in all.
const LIMITS: Limits = Limits { per_target: 64, in_all: 1024 };

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub profile: LivenessProfile,
    /// Copies of every chunk.
    pub replication: usize,
    /// How long a chunk may lack a copy before one is given; that of the profile, or 0 (DECISIONS 15).
    pub rebuild_delay_ms: u64,
}

/// A copy that a server was told to make, or will be with its next heartbeat.
#[derive(Clone, Copy, Debug)]
struct Given {
    to: ServerId,
    at: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    /// When init came.
    began: Option<Timestamp>,
    next_msg_id: u64,
    cluster: Cluster,
    servers: Names,
    handles: Names,
    /// What the servers' lists say; a handle is known from the first one on that has it.
    chunks: BTreeMap<ChunkId, Chunk>,
    given: BTreeMap<ChunkId, Given>,
    /// Since when chunks lack a copy that nobody was given.
    short_since: BTreeMap<ChunkId, Timestamp>,
    /// What servers were told to fetch (true) or delete, as long as they have not done so: told again each time, and an
    /// event once.
    told: BTreeSet<(ServerId, bool, ChunkId)>,
    /// As they were looked at last.
    states: BTreeMap<ServerId, Liveness>,
    events: Vec<String>,
}

/// Names and the numbers they have inside.
#[derive(Default, Debug)]
struct Names {
    numbers: BTreeMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    /// From 1.
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        self.names.push(name.to_owned());
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.numbers.insert(name.to_owned(), number);
        number
    }

    fn name(&self, number: u32) -> &str {
        let index = (number as usize).wrapping_sub(1);
        self.names.get(index).map_or("", String::as_str)
    }
}

fn member(server: ServerId) -> Member {
    Member { server, disk: DiskId(u128::from(server.0)) }
}

impl Session {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            began: None,
            next_msg_id: 0,
            cluster: Cluster::new(settings.profile),
            servers: Names::default(),
            handles: Names::default(),
            chunks: BTreeMap::new(),
            given: BTreeMap::new(),
            short_since: BTreeMap::new(),
            told: BTreeSet::new(),
            states: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// What became known since the last call, a line each, for people.
    pub fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }

    /// Looks at who is alive now.
    pub fn look(&mut self, now: Timestamp) {
        let servers: Vec<ServerId> = self.cluster.rows().keys().copied().collect();
        for server in servers {
            let state = self.liveness(now, server);
            if self.states.insert(server, state) != Some(state) {
                let (name, cause) = (self.servers.name(server.0), self.cluster.cause(now, server));
                self.events.push(match state {
                    Liveness::Dead => format!("{name} dead: {cause}"),
                    Liveness::Alive | Liveness::Suspect => format!("{name} alive"),
                });
            }
        }
        let liveness = |server| self.cluster.liveness(now, server);
        let late = self.settings.profile.dead_after_ms * 1_000_000;
        self.given.retain(|_, given| {
            liveness(given.to) != Liveness::Dead && now.nanos_since(given.at) < late
        });
    }

    /// Silence short of death is no state of this protocol.
    fn liveness(&self, now: Timestamp, server: ServerId) -> Liveness {
        match self.cluster.liveness(now, server) {
            Liveness::Dead => Liveness::Dead,
            Liveness::Alive | Liveness::Suspect => Liveness::Alive,
        }
    }

    /// The answer to a message. Nothing changes if it is an error.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn answer(&mut self, now: Timestamp, message: &Message) -> Result<Reply, LineError> {
        let Message { src, dest, at_ms: _, body } = message;
        let mut answer = match body.kind.as_str() {
            "init" if self.began.is_some() => return Err(LineError::InitialisedAlready),
            "init" => {
                self.began = Some(now);
                ReplyBody { kind: "init_ok", ..ReplyBody::default() }
            }
            "heartbeat" | "server_status" if self.began.is_none() => {
                return Err(LineError::NotInitialised);
            }
            "heartbeat" => self.heartbeat(now, src, body)?,
            "server_status" => {
                self.look(now);
                let servers = Some(self.status(now));
                ReplyBody { kind: "server_status_ok", servers, ..ReplyBody::default() }
            }
            other => return Err(LineError::UnknownType(other.to_owned())),
        };
        answer.in_reply_to = body.msg_id;
        Ok(self.number(dest.clone(), src.clone(), answer))
    }

    /// A reply to somebody, with the next number.
    pub fn number(&mut self, src: String, dest: String, body: ReplyBody) -> Reply {
        let msg_id = self.next_msg_id;
        self.next_msg_id += 1;
        Reply { src, dest, body: ReplyBody { msg_id, ..body } }
    }

    fn status(&self, now: Timestamp) -> Vec<ServerStatus> {
        let of = |(name, number): (&String, &u32)| {
            let server = ServerId(*number);
            let row = self.cluster.row(server)?;
            let dead = self.liveness(now, server) == Liveness::Dead;
            Some(ServerStatus {
                server: name.clone(),
                status: if dead { "dead" } else { "alive" },
                chunks: if dead { 0 } else { row.chunk_count },
                last_heartbeat_ms_ago: now.nanos_since(row.heard_at) / 1_000_000,
            })
        };
        self.servers.numbers.iter().filter_map(of).collect()
    }

    fn heartbeat(
        &mut self,
        now: Timestamp,
        src: &str,
        body: &Body,
    ) -> Result<ReplyBody, LineError> {
        let full = body.full.unwrap_or(true);
        let (listed, used_percent) = check(body, full)?;
        let name = body.server_id.as_deref().unwrap_or(src);
        let server = ServerId(self.servers.number(name));
        self.look(now);
        let before = self.holdings(server);
        let replicas: Vec<(ChunkId, Replica)> = listed
            .iter()
            .map(|(handle, version)| {
                let chunk = ChunkId(u64::from(self.handles.number(handle)));
                let version = ChunkVersion(*version);
                (chunk, Replica { version, seq: 0, len: 0, not_current: false, digest: 0 })
            })
            .collect();
        let gone = body.gone.iter();
        let gone = gone.map(|handle| ChunkId(u64::from(self.handles.number(handle)))).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share from 0 to 100 of a size far below 2^52"
        )]
        let used_bytes = (DISK_BYTES as f64 / 100.0 * used_percent) as u64;
        let mut heartbeat = Heartbeat {
            server,
            disk: member(server).disk,
            incarnation: 1,
            address: name.to_owned(),
            full_inventory: full || before.is_empty(),
            inventory_more: false,
            replicas,
            damaged: Vec::new(),
            gone,
            inventory_digest: None,
            chunk_count: 0,
            used_bytes,
            free_bytes: DISK_BYTES.saturating_sub(used_bytes),
            total_bytes: DISK_BYTES,
            device: 0,
            place: Place::default(),
        };
        heartbeat.chunk_count = count_after(&before, &heartbeat);
        self.cluster.on_heartbeat(now, heartbeat);
        self.look(now);
        self.learn(now, server, &before);
        self.forget_given(now);
        let deleted = self.to_delete(now, server);
        self.plan(now);
        let fetched = self.to_fetch(now, server);
        let sources = fetched.iter().map(|chunk| (self.handle(*chunk), self.sources(now, *chunk)));
        let sources: BTreeMap<String, Vec<String>> = sources.collect();
        self.note_told(server, name, &deleted, &fetched);
        let handles = |chunks: &[ChunkId]| chunks.iter().map(|chunk| self.handle(*chunk)).collect();
        let (chunks_to_delete, chunks_to_replicate) = (handles(&deleted), handles(&fetched));
        Ok(ReplyBody {
            kind: "heartbeat_ok",
            status: Some("alive"),
            chunks_to_delete,
            chunks_to_replicate,
            sources,
            ..ReplyBody::default()
        })
    }

    fn note_told(
        &mut self,
        server: ServerId,
        name: &str,
        deleted: &[ChunkId],
        fetched: &[ChunkId],
    ) {
        let all = (server, false, ChunkId(0))..=(server, true, ChunkId(u64::MAX));
        let before: BTreeSet<_> = self.told.range(all).copied().collect();
        for (fetch, chunks) in [(false, deleted), (true, fetched)] {
            let new = chunks.iter().filter(|chunk| !before.contains(&(server, fetch, **chunk)));
            let new: Vec<String> = new.map(|chunk| self.handle(*chunk)).collect();
            if !new.is_empty() {
                let what = if fetch { "fetch" } else { "delete" };
                self.events.push(format!("{name} is to {what} {}", some_of(&new)));
            }
        }
        self.told.retain(|told| told.0 != server);
        self.told.extend(deleted.iter().map(|chunk| (server, false, *chunk)));
        self.told.extend(fetched.iter().map(|chunk| (server, true, *chunk)));
    }

    fn holdings(&self, server: ServerId) -> BTreeSet<ChunkId> {
        let row = self.cluster.row(server);
        row.map(|row| row.replicas.keys().copied().collect()).unwrap_or_default()
    }

    fn handle(&self, chunk: ChunkId) -> String {
        self.handles.name(u32::try_from(chunk.0).unwrap_or(0)).to_owned()
    }

    /// Whether `server` is alive with a copy of `chunk` at this version.
    fn has(&self, now: Timestamp, server: ServerId, chunk: ChunkId, version: ChunkVersion) -> bool {
        self.liveness(now, server) == Liveness::Alive
            && self.cluster.row(server).is_some_and(|row| {
                row.replicas.get(&chunk).is_some_and(|replica| replica.version == version)
            })
    }

    /// Who is a member of what, from what `server` listed. It held `before`.
    fn learn(&mut self, now: Timestamp, server: ServerId, before: &BTreeSet<ChunkId>) {
        let Some(row) = self.cluster.row(server) else { return };
        let held: Vec<(ChunkId, ChunkVersion)> =
            row.replicas.iter().map(|(chunk, replica)| (*chunk, replica.version)).collect();
        for (chunk, version) in &held {
            let known = self.chunks.get(chunk).filter(|known| *version <= known.active.version);
            // An older copy is what it is to replace.
            let is_current = known.is_none_or(|known| known.active.version == *version);
            if is_current && self.given.get(chunk).is_some_and(|given| given.to == server) {
                self.given.remove(chunk);
            }
            let Some(known) = known else {
                self.chunks.insert(*chunk, new_chunk(*version, server));
                continue;
            };
            let members = &known.active.members;
            if known.active.version != *version || members.contains(&member(server)) {
                continue;
            }
            let lacks = |it: &Member| !self.has(now, it.server, *chunk, *version);
            let free = members.iter().position(lacks);
            let wanted = self.settings.replication;
            let Some(known) = self.chunks.get_mut(chunk) else { continue };
            if known.active.members.len() < wanted {
                known.active.members.push(member(server));
            } else if let Some(place) = free
                && let Some(replaced) = known.active.members.get_mut(place)
            {
                *replaced = member(server);
            }
        }
        let held: BTreeSet<ChunkId> = held.into_iter().map(|(chunk, _)| chunk).collect();
        let dropped: Vec<String> =
            before.difference(&held).map(|chunk| self.handle(*chunk)).collect();
        if !dropped.is_empty() {
            let name = self.servers.name(server.0);
            self.events.push(format!("{name} holds no more: {}", some_of(&dropped)));
        }
    }

    /// What nobody needs of what `server` holds.
    fn to_delete(&self, now: Timestamp, server: ServerId) -> Vec<ChunkId> {
        let needless = |chunk: &ChunkId| {
            let known = self.chunks.get(chunk).map(Known::Chunk);
            let is_current =
                |it: &Member, version: ChunkVersion| self.has(now, it.server, *chunk, version);
            known.is_some_and(|known| {
                let wanted = self.settings.replication;
                surplus(*chunk, &member(server), known, wanted, is_current).is_some()
            })
        };
        self.holdings(server).into_iter().filter(needless).collect()
    }

    /// Gives chunks with too few copies to servers that have none; to one that has an older copy if no other can take it.
    fn plan(&mut self, now: Timestamp) {
        // Not before everybody had the time to say what he holds.
        let dead_after_ms = self.settings.profile.dead_after_ms;
        if self.began.is_none_or(|began| now.nanos_since(began) / 1_000_000 < dead_after_ms) {
            return;
        }
        let mut short = self.short(now);
        self.short_since = short.iter().map(|short| (short.chunk, short.since)).collect();
        let delay_ms = self.settings.rebuild_delay_ms;
        let is_due = |since: Timestamp| delay_ms <= now.nanos_since(since) / 1_000_000;
        short.retain(|short| short.good <= 1 || is_due(short.since));
        let rows = self.cluster.rows();
        let incoming = |server| self.given.values().filter(|given| given.to == server).count();
        let alive = rows.iter().filter(|(id, _)| self.liveness(now, **id) == Liveness::Alive);
        let mut targets: Vec<Target> = alive
            .map(|(server, row)| Target {
                member: member(*server),
                place: Place::default(),
                free_bytes: row.free_bytes,
                total_bytes: row.total_bytes,
                chunk_count: row.chunk_count,
                incoming: incoming(*server),
                given: 0,
                is_last: false,
            })
            .collect();
        let mut assigned = assign(&short, &mut targets, &BTreeMap::new(), LIMITS);
        let given: BTreeSet<ChunkId> = assigned.iter().map(|(chunk, _)| *chunk).collect();
        short.retain(|short| !given.contains(&short.chunk));
        for short in &mut short {
            let version = self.chunks.get(&short.chunk).map(|known| known.active.version);
            let is_current = |server: &ServerId| {
                let listed = rows.get(server).and_then(|row| row.replicas.get(&short.chunk));
                listed.map(|replica| replica.version) == version
            };
            short.holders.retain(is_current);
        }
        assigned.extend(assign(&short, &mut targets, &BTreeMap::new(), LIMITS));
        let given = assigned.into_iter();
        self.given.extend(given.map(|(chunk, to)| (chunk, Given { to: to.server, at: now })));
    }

    /// What has its copies again, because a server came back with one, nobody needs to fetch: it might be told to delete it
    /// with the same answer.
    fn forget_given(&mut self, now: Timestamp) {
        let is_whole =
            |chunk: &&ChunkId| self.settings.replication <= self.sources(now, **chunk).len();
        let whole: Vec<ChunkId> = self.given.keys().filter(is_whole).copied().collect();
        for chunk in whole {
            self.given.remove(&chunk);
        }
    }

    /// Chunks that lack a copy and that nobody was given.
    fn short(&self, now: Timestamp) -> Vec<Short> {
        let rows = self.cluster.rows();
        let is_held = hold_of(&self.cluster, now, &BTreeSet::new()).is_some();
        let mut short = Vec::new();
        for (chunk, known) in &self.chunks {
            let good = self.sources(now, *chunk).len();
            let waits = self.given.contains_key(chunk) || is_held && 1 < good;
            if good == 0 || self.settings.replication <= good || waits {
                continue;
            }
            let has_one = |(server, row): (&ServerId, &dfs_core::cluster::ServerRow)| {
                row.replicas.contains_key(chunk).then_some(*server)
            };
            short.push(Short {
                chunk: *chunk,
                bytes: known.chunk_size,
                good,
                is_waited_for: false,
                since: self.short_since.get(chunk).copied().unwrap_or(now),
                holders: rows.iter().filter_map(has_one).collect(),
                leaver: None,
            });
        }
        short
    }

    fn to_fetch(&self, now: Timestamp, server: ServerId) -> Vec<ChunkId> {
        let given = self.given.iter().filter(|(_, given)| given.to == server);
        let chunks = given.map(|(chunk, _)| *chunk);
        chunks.filter(|chunk| !self.sources(now, *chunk).is_empty()).collect()
    }

    /// Who is alive with a current copy, by name.
    fn sources(&self, now: Timestamp, chunk: ChunkId) -> Vec<String> {
        let Some(known) = self.chunks.get(&chunk) else { return Vec::new() };
        let version = known.active.version;
        let members = known.active.members.iter().map(|member| member.server);
        let good = members.filter(|server| self.has(now, *server, chunk, version));
        good.map(|server| self.servers.name(server.0).to_owned()).collect()
    }
}

fn new_chunk(version: ChunkVersion, server: ServerId) -> Chunk {
    Chunk {
        ino: InodeNo(0),
        index: 0,
        chunk_size: CHUNK_BYTES,
        active: Configuration { version, members: vec![member(server)], primary: server },
        preparing: None,
        next_version: ChunkVersion(version.0.saturating_add(1)),
        attached: true,
        born: true,
        sealed: false,
        stored: true,
    }
}

fn count_after(before: &BTreeSet<ChunkId>, heartbeat: &Heartbeat) -> u64 {
    let mut after = if heartbeat.full_inventory { BTreeSet::new() } else { before.clone() };
    after.extend(heartbeat.replicas.iter().map(|(chunk, _)| *chunk));
    heartbeat.gone.iter().for_each(|chunk| {
        after.remove(chunk);
    });
    after.len() as u64
}

/// The list and the disk's use in percent.
fn check(body: &Body, full: bool) -> Result<(BTreeMap<&str, u64>, f64), LineError> {
    let bad = |field, wrong: String| Err(LineError::BadField { field, wrong });
    let chunks = match &body.chunks {
        Some(chunks) => chunks.as_slice(),
        None if full => return bad("chunks", "is missing: the list of all chunks".to_owned()),
        None => &[],
    };
    let mut listed = BTreeMap::new();
    for (handle, version) in chunks.iter().map(Listed::parts) {
        if handle.is_empty() {
            return bad("chunks", "has an empty handle".to_owned());
        }
        if version == 0 {
            return bad("chunks", format!("has '{handle}' with version 0: they begin at 1"));
        }
        if listed.insert(handle, version).is_some() {
            return bad("chunks", format!("has '{handle}' twice"));
        }
    }
    for handle in &body.gone {
        if handle.is_empty() {
            return bad("gone", "has an empty handle".to_owned());
        }
        if listed.contains_key(handle.as_str()) {
            return bad(
                "gone",
                format!("has '{handle}', and so has chunks: it is one or the other"),
            );
        }
    }
    let percent = body.disk_usage.unwrap_or(0.0);
    if !(0.0..=100.0).contains(&percent) {
        return bad("disk_usage", format!("is {percent}: a share in percent is wanted"));
    }
    Ok((listed, percent))
}
