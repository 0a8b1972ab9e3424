//! Gives chunks their copies back, and moves those that are to leave a server when there is nothing else to do.
//!
//! A walk over the chunk map finds chunks that lack a copy; [`dfs_core::plan::rebuild`] says which come first and where
//! to; each copy is one configuration change with a learner, on a thread of its own. What a walk found is looked at
//! again just before anything is done because of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::chunk::{Chunk, Member};
use dfs_core::cluster::overlay::{OverlayKind, Room};
use dfs_core::cluster::{Cluster, Liveness};
use dfs_core::ids::{ChunkId, ChunkVersion, ServerId};
use dfs_core::job::{JobId, JobPhase};
use dfs_core::plan::rebalance::{Held, Moved, rebalance};
use dfs_core::plan::rebuild::{
    Limits, Place, Short, Target, assign, hold_for_room, hold_of, hold_patience_ms,
};
use dfs_core::plan::scrub::Divergence;
use dfs_core::time::Timestamp;
use dfs_service::canary;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::balance::{Listed, count_listed, disks, expect_moves, movable};
use crate::drain;
use crate::health::divergence_of;
use crate::reconfigure::Step;
use crate::state::{Master, lock, now};

const TICK: Duration = Duration::from_millis(100);
/// The map is walked so often, or a twentieth of the time if it is large.
const WALK_EVERY: Duration = Duration::from_secs(1);
const WALK_SHARE: u32 = 20;
/// Found in one walk: more only wait in memory.
const FOUND_MAX: usize = 100_000;
/// Of those, the riskiest that are looked at when there is room for another copy.
const CONSIDERED_MAX: usize = 1_000;
/// Copies on their way to one server, and in all.
const LIMITS: Limits = Limits { per_target: 3, in_all: 64 };
/// Of chunks that nobody lost.
const MOVE_LIMITS: Limits = Limits { per_target: 2, in_all: 8 };
const RETRY_MIN_MS: u64 = 500;
const RETRY_MAX_MS: u64 = 30_000;

/// What others see of it.
#[derive(Debug, Default)]
pub struct Shared {
    /// Nothing is copied but chunks with one copy, and nothing is deleted.
    held: AtomicBool,
    /// By rebalances.
    pub moved_bytes: AtomicU64,
    /// Chunks whose members differ, as the last walk found them.
    pub diverging: Mutex<BTreeMap<ChunkId, Divergence>>,
    /// Why no chunk is moved although some could be.
    moves_wait: Mutex<Option<String>>,
    work: Mutex<Work>,
    /// Told when a change is done: there is room for another.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    running: BTreeMap<ChunkId, Step>,
    /// After a failure: not before, and how long the next pause is.
    retry: HashMap<ChunkId, (Timestamp, u64)>,
    chunks: u64,
    bytes: u64,
}

impl Shared {
    /// Whether so much is missing at once that it looks like a cause that may pass: nothing is deleted meanwhile.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Servers that copies for `job` are on their way to.
    #[must_use]
    pub fn learners_of(&self, job: JobId) -> BTreeSet<ServerId> {
        let work = lock(&self.work);
        let steps = work.running.values().filter(|step| step.job == Some(job));
        steps.filter_map(|step| Some(step.learner?.server)).collect()
    }

    #[must_use]
    pub fn moves_wait(&self) -> Option<String> {
        lock(&self.moves_wait).clone()
    }
}

/// One thing to do to a chunk.
#[derive(Clone, Debug)]
struct Task {
    chunk: ChunkId,
    /// The configuration that was looked at.
    version: ChunkVersion,
    step: Step,
    bytes: u64,
}

/// What one walk found.
#[derive(Debug, Default)]
struct Found {
    /// No copy is to be made elsewhere: members take up what the others have, or one that returned does.
    at_once: Vec<Task>,
    /// With the version that was looked at, the riskiest first.
    short: Vec<(Short, ChunkVersion)>,
    /// Of `short`, those whose delay is over.
    due: BTreeSet<ChunkId>,
    /// To be copied for all that are short.
    bytes: u64,
    /// Chunks with all their copies, one of them on a server that is drained.
    moves: Vec<(drain::Move, ChunkVersion)>,
    /// What may be moved, and bytes by server, if that was to be found out: see [`crate::balance`].
    even: Option<(Vec<(Held, ChunkVersion)>, Listed)>,
}

/// Runs until `shutdown`, on a thread of its own.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    let mut rebuild = Rebuild::default();
    while !shutdown.is_asked() {
        {
            let work = lock(&master.rebuild.work);
            let waited = master.rebuild.done.wait_timeout(work, TICK);
            let _work = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if !master.is_warming() {
            rebuild.round(master);
        }
    }
}

#[derive(Default)]
struct Rebuild {
    short_since: HashMap<ChunkId, Timestamp>,
    found: Found,
    walk_at: Option<Instant>,
    states: BTreeMap<ServerId, Liveness>,
    /// Copies each server was given since all chunks were safe.
    given: BTreeMap<ServerId, u64>,
    episode: Option<Episode>,
    said: Option<String>,
}

/// From the first copy that is made until none is missing.
struct Episode {
    began: Timestamp,
    chunks_before: u64,
    bytes_before: u64,
}

impl Rebuild {
    fn round(&mut self, master: &Arc<Master>) {
        let states = {
            let (cluster, now) = (lock(&master.cluster), now());
            cluster.rows().keys().map(|server| (*server, cluster.liveness(now, *server))).collect()
        };
        let changed = self.states != states;
        self.states = states;
        if changed || self.walk_at.is_none_or(|at| at <= Instant::now()) {
            let began = Instant::now();
            self.found = self.walk(master);
            self.walk_at = Some(Instant::now() + WALK_EVERY.max(began.elapsed() * WALK_SHARE));
        }
        self.say_progress(master);
        let mut tasks = self.choose(master);
        if canary::sings("copies-never-made") {
            tasks.retain(|task| task.step.learner.is_none());
        }
        for task in tasks {
            start(master, task);
        }
    }

    /// What is to be done now, as far as limits allow.
    fn choose(&mut self, master: &Master) -> Vec<Task> {
        let now = now();
        let (running, waiting): (BTreeMap<ChunkId, Step>, BTreeSet<ChunkId>) = {
            let work = lock(&master.rebuild.work);
            let waiting = work.retry.iter().filter(|(_, (at, _))| now < *at);
            (work.running.clone(), waiting.map(|(chunk, _)| *chunk).collect())
        };
        let is_free = |chunk: &ChunkId| !running.contains_key(chunk) && !waiting.contains(chunk);
        let room = LIMITS.in_all.saturating_sub(running.len());
        let mut tasks: Vec<Task> = Vec::new();
        self.found.at_once.retain(|task| {
            let take = tasks.len() < room && is_free(&task.chunk);
            if take {
                tasks.push(task.clone());
            }
            !take
        });
        let (mut targets, places) = self.targets(master, &running);
        let hold = self.hold(master, &targets);
        let due: Vec<Short> = {
            let short = self.found.short.iter().map(|(short, _)| short);
            let due = short.filter(|short| {
                (short.good <= 1 || (hold.is_none() && self.found.due.contains(&short.chunk)))
                    && is_free(&short.chunk)
            });
            due.take(CONSIDERED_MAX).cloned().collect()
        };
        let due = if master.config.exercise { Vec::new() } else { due };
        self.say_hold(master, hold.clone());
        let limits = Limits { in_all: LIMITS.in_all.saturating_sub(tasks.len()), ..LIMITS };
        for (chunk, learner) in assign(&due, &mut targets, &places, limits) {
            *self.given.entry(learner.server).or_default() += 1;
            let Some((short, version)) = self.found.short.iter().find(|(s, _)| s.chunk == chunk)
            else {
                continue;
            };
            let (version, bytes) = (*version, short.bytes);
            let step = Step { learner: Some(learner), ..Step::default() };
            tasks.push(Task { chunk, version, step, bytes });
        }
        let rebuilding = running.values().any(|step| step.leaver.is_none());
        let wait = if let Some(hold) = hold {
            Some(hold)
        } else if rebuilding || !tasks.is_empty() || !due.is_empty() {
            Some("chunks that lack a copy come first".to_owned())
        } else {
            let stalled = master.works.stalled();
            targets.retain(|target| !stalled.contains(&target.member.server));
            let due = self.moves(master, &is_free);
            tasks = self.choose_moves(&due, &mut targets, &places);
            if due.is_empty() && self.found.moves.is_empty() {
                tasks = self.choose_even(master, &running, &places, &is_free);
            }
            let stuck = !due.is_empty() && tasks.is_empty() && running.is_empty();
            stuck.then(|| "no other server can take what is left".to_owned())
        };
        *lock(&master.rebuild.moves_wait) = wait;
        let taken: Vec<ChunkId> = tasks.iter().map(|task| task.chunk).collect();
        self.found.short.retain(|(short, _)| !taken.contains(&short.chunk));
        self.found.moves.retain(|(of, _)| !taken.contains(&of.short.chunk));
        tasks
    }

    /// Chunks that may leave servers which are drained.
    fn moves(
        &self,
        master: &Master,
        is_free: &impl Fn(&ChunkId) -> bool,
    ) -> Vec<(drain::Move, ChunkVersion)> {
        let draining = drain::draining(master);
        let due = self
            .found
            .moves
            .iter()
            .filter(|(of, _)| draining.contains(&of.leaver.server) && is_free(&of.short.chunk));
        due.take(CONSIDERED_MAX).cloned().collect()
    }

    /// Moves from full servers to empty ones, if so wished; the end of that wish if there is nothing to move.
    fn choose_even(
        &mut self,
        master: &Master,
        running: &BTreeMap<ChunkId, Step>,
        places: &BTreeMap<ServerId, Place>,
        is_free: &impl Fn(&ChunkId) -> bool,
    ) -> Vec<Task> {
        let Some((held, listed)) = &mut self.found.even else { return Vec::new() };
        let job = master.works.rebalance().filter(|(_, phase)| *phase == JobPhase::Running);
        let Some((job, _)) = job.filter(|_| running.len() < MOVE_LIMITS.in_all) else {
            return Vec::new();
        };
        let mut incoming: BTreeMap<ServerId, usize> = BTreeMap::new();
        for learner in running.values().filter_map(|step| step.learner) {
            *incoming.entry(learner.server).or_default() += 1;
        }
        let mut disks = disks(master, listed, &incoming);
        let free: Vec<Held> =
            held.iter().filter(|(held, _)| is_free(&held.chunk)).map(|(h, _)| h.clone()).collect();
        let moves = rebalance(&mut disks, &free, places, MOVE_LIMITS);
        // One that is only late would be missing in the plan.
        let all_known = !self.states.values().any(|state| *state == Liveness::Suspect);
        let tried_all = running.is_empty() && free.len() == held.len();
        if moves.is_empty()
            && all_known
            && tried_all
            && master.set_work_phase(job, JobPhase::Done).is_ok()
        {
            master.notice("servers are as evenly full as their chunks allow".to_owned());
        }
        let mut tasks = Vec::new();
        for Moved { chunk, bytes, leaver, learner } in moves {
            let Some(at) = held.iter().position(|(held, _)| held.chunk == chunk) else { continue };
            let (_, version) = held.swap_remove(at);
            if let Some(listed) = listed.get_mut(&leaver.server) {
                *listed = listed.saturating_sub(bytes);
            }
            *listed.entry(learner.server).or_default() += bytes;
            let step = Step { learner: Some(learner), leaver: Some(leaver), job: Some(job) };
            tasks.push(Task { chunk, version, step, bytes });
        }
        tasks
    }

    fn choose_moves(
        &mut self,
        moves: &[(drain::Move, ChunkVersion)],
        targets: &mut [Target],
        places: &BTreeMap<ServerId, Place>,
    ) -> Vec<Task> {
        let shorts: Vec<Short> = moves.iter().map(|(of, _)| of.short.clone()).collect();
        let mut tasks = Vec::new();
        for (chunk, learner) in assign(&shorts, targets, places, MOVE_LIMITS) {
            let Some((of, version)) = moves.iter().find(|(of, _)| of.short.chunk == chunk) else {
                continue;
            };
            *self.given.entry(learner.server).or_default() += 1;
            let step = Step { learner: Some(learner), leaver: Some(of.leaver), job: of.job };
            tasks.push(Task { chunk, version: *version, step, bytes: of.short.bytes });
        }
        tasks
    }

    fn targets(
        &self,
        master: &Master,
        running: &BTreeMap<ChunkId, Step>,
    ) -> (Vec<Target>, BTreeMap<ServerId, Place>) {
        let mut incoming: BTreeMap<ServerId, usize> = BTreeMap::new();
        for learner in running.values().filter_map(|step| step.learner) {
            *incoming.entry(learner.server).or_default() += 1;
        }
        let (cluster, now) = (lock(&master.cluster), now());
        let places =
            cluster.rows().iter().map(|(server, row)| (*server, row.place.clone())).collect();
        let alive = cluster
            .rows()
            .iter()
            .filter(|(server, _)| cluster.liveness(now, **server) == Liveness::Alive);
        let open = alive.filter(|(server, _)| cluster.room(**server) != Room::Closed);
        let targets = open.map(|(server, row)| Target {
            member: Member { server: *server, disk: row.disk },
            place: row.place.clone(),
            free_bytes: row.free_bytes,
            total_bytes: row.total_bytes,
            chunk_count: row.chunk_count,
            incoming: incoming.get(server).copied().unwrap_or(0),
            given: self.given.get(server).copied().unwrap_or(0),
            is_last: cluster.room(*server) == Room::Last,
        });
        (targets.collect(), places)
    }

    fn hold(&self, master: &Master, targets: &[Target]) -> Option<String> {
        let silence = hold_of(&lock(&master.cluster), now(), &BTreeSet::new());
        if let Some(hold) = silence {
            let patience_s = hold_patience_ms(master.config.profile) / 1000;
            return Some(format!("{hold}; it begins when they were silent for {patience_s} s"));
        }
        hold_for_room(self.found.bytes, targets)
            .map(|hold| format!("{hold}; add servers or delete files"))
    }

    fn say_hold(&mut self, master: &Master, hold: Option<String>) {
        master.rebuild.held.store(hold.is_some(), Ordering::Relaxed);
        if self.said != hold && !self.found.short.is_empty() {
            match &hold {
                Some(hold) => {
                    master.notice(format!(
                        "copies of chunks with more than one wait: {hold}; see {}",
                        Page::CopiesWait
                    ));
                }
                None => master.notice("copies are no longer held back".to_owned()),
            }
            self.said = hold;
        } else if hold.is_none() {
            self.said = None;
        }
    }

    fn say_progress(&mut self, master: &Master) {
        let (idle, chunks, bytes) = {
            let work = lock(&master.rebuild.work);
            let idle = work.running.values().all(|step| step.leaver.is_some());
            (idle, work.chunks, work.bytes)
        };
        match &self.episode {
            None if !idle => {
                self.episode =
                    Some(Episode { began: now(), chunks_before: chunks, bytes_before: bytes });
            }
            Some(episode) if idle && self.found.short.is_empty() && self.short_since.is_empty() => {
                let Episode { began, chunks_before, bytes_before } = *episode;
                let made = chunks - chunks_before;
                if 0 < made {
                    let seconds = now().nanos_since(began) as f64 / 1e9;
                    let mib = (bytes - bytes_before) as f64 / f64::from(1 << 20);
                    master.notice(format!(
                        "all chunks have their copies again: {made} chunks, {mib:.1} MiB in {seconds:.1} s"
                    ));
                }
                self.episode = None;
                self.given.clear();
            }
            None if self.found.moves.is_empty() => self.given.clear(),
            Some(_) | None => {}
        }
    }

    fn walk(&mut self, master: &Master) -> Found {
        let now = now();
        let mut found = Found::default();
        let mut since = HashMap::new();
        let mut missed = Vec::new();
        let mut diverging = BTreeMap::new();
        let delay = master.config.profile.rebuild_delay_ms * 1_000_000;
        let draining = drain::draining(master);
        let mut even = is_even_wished(master).then(|| (Vec::new(), Listed::new()));
        master.for_each_chunk(|chunk, record| {
            let count = found.at_once.len() + found.short.len() + missed.len() + found.moves.len();
            if FOUND_MAX <= count {
                return;
            }
            let version = record.active.version;
            if let Some((_, listed)) = &mut even {
                count_listed(master, chunk, record, listed);
            }
            let at_once = |learner| {
                let step = Step { learner, ..Step::default() };
                Task { chunk, version, step, bytes: 0 }
            };
            let differs = divergence_of(master, chunk, record);
            // Not while one is away: it would be left out of the new version.
            let can_be_mended = differs.as_ref().is_some_and(|differs| !differs.most.is_empty())
                && all_up(master, record);
            diverging.extend(differs.map(|differs| (chunk, differs)));
            // What a spill left unattached is moved all the same: otherwise its servers would never be empty.
            let of = || drain::move_of(master, chunk, record, &draining);
            if !record.attached {
                found.moves.extend(of().map(|of| (of, version)));
            } else if needs_readoption(master, chunk, record) {
                found.at_once.push(at_once(None));
            } else if is_missed(master, chunk, record) {
                missed.push((chunk, record.clone()));
            } else if let Some(lack) = lack_of(master, chunk, record) {
                let first = self.short_since.get(&chunk).copied().unwrap_or(now);
                since.insert(chunk, first);
                match lack {
                    Lack::Waits => {}
                    Lack::Returned(learner) => found.at_once.push(at_once(Some(learner))),
                    Lack::Short(short) => {
                        if delay <= now.nanos_since(first) {
                            found.due.insert(chunk);
                        }
                        found.bytes += short.bytes;
                        let short = Short { since: first, ..short };
                        found.short.push((short, version));
                    }
                }
            } else if can_be_mended || lists_one_for_nothing(master, record) {
                found.at_once.push(at_once(None));
            } else if let Some(leaver) = drain::one_too_many(master, chunk, record, &draining) {
                let step = Step { leaver: Some(leaver), ..Step::default() };
                found.at_once.push(Task { chunk, version, step, bytes: 0 });
            } else if let Some(of) = of() {
                found.moves.push((of, version));
            } else if let Some((held, _)) = &mut even
                && held.len() < FOUND_MAX
            {
                held.extend(movable(master, chunk, record).map(|held| (held, version)));
            }
        });
        if let Some((_, listed)) = &mut even {
            let work = lock(&master.rebuild.work);
            let moves = work.running.iter().filter_map(|(chunk, step)| {
                Some((*chunk, step.leaver?.server, step.learner?.server))
            });
            expect_moves(&lock(&master.cluster), moves, listed);
        }
        if let Some((held, _)) = &mut even {
            // What is written is moved last: its writers wait for the copy.
            held.sort_by_cached_key(|(held, _)| master.was_written_lately(held.chunk));
        }
        found.even = even;
        *lock(&master.rebuild.diverging) = diverging;
        self.short_since = since;
        // What was reported may be older than the replica: asked before anything is done because of it.
        let lacks = |(chunk, record): &(ChunkId, Chunk)| {
            let mut members = record.active.members.iter();
            members.any(|member| master.holds(member, *chunk) == Some(false))
        };
        let missed = missed.iter().filter(|missed| lacks(missed)).map(|(chunk, record)| Task {
            chunk: *chunk,
            version: record.active.version,
            step: Step::default(),
            bytes: 0,
        });
        found.at_once.extend(missed);
        found.short.sort_unstable_by_key(|(short, _)| short.risk());
        found.moves.sort_unstable_by_key(|(of, _)| of.short.risk());
        found
    }
}

fn is_even_wished(master: &Master) -> bool {
    master.works.rebalance().is_some_and(|(_, phase)| phase == JobPhase::Running)
}

fn start(master: &Arc<Master>, task: Task) {
    if let Some(learner) = &task.step.learner {
        tracing::debug!(chunk = task.chunk.0, server = %learner.server, "copy begins");
    }
    lock(&master.rebuild.work).running.insert(task.chunk, task.step);
    let (chunk, worker) = (task.chunk, Arc::clone(master));
    let started = std::thread::Builder::new()
        .name("rebuild".to_owned())
        .spawn(move || finish(&worker, &task, try_task(&worker, &task)));
    if let Err(error) = started {
        lock(&master.rebuild.work).running.remove(&chunk);
        tracing::warn!(%error, "no thread for a copy");
    }
}

fn try_task(master: &Master, task: &Task) -> Result<(), String> {
    match master.chunk(task.chunk) {
        Some(record) if record.active.version == task.version => {
            master.change(task.chunk, task.step)
        }
        // It went on meanwhile: the next walk looks at what it is now.
        Some(_) | None => Err("it changed meanwhile".to_owned()),
    }
}

fn finish(master: &Master, task: &Task, outcome: Result<(), String>) {
    let mut work = lock(&master.rebuild.work);
    work.running.remove(&task.chunk);
    master.rebuild.done.notify_all();
    match outcome {
        Ok(()) => {
            work.retry.remove(&task.chunk);
            if let Some(leaver) = task.step.leaver {
                if !lock(&master.cluster).has_overlay(leaver.server, OverlayKind::Draining) {
                    master.rebuild.moved_bytes.fetch_add(task.bytes, Ordering::Relaxed);
                }
            } else if task.step.learner.is_some() {
                work.chunks += 1;
                work.bytes += task.bytes;
            }
        }
        Err(reason) => {
            let (_, pause_ms) =
                work.retry.get(&task.chunk).copied().unwrap_or((now(), RETRY_MIN_MS));
            let at = Timestamp(now().0 + pause_ms * 1_000_000);
            work.retry.insert(task.chunk, (at, (2 * pause_ms).min(RETRY_MAX_MS)));
            // Those that were never tried again are of chunks that are gone.
            let old = now();
            work.retry.retain(|_, (at, _)| old.nanos_since(*at) < RETRY_MAX_MS * 10_000_000);
            tracing::info!(chunk = task.chunk.0, reason, "chunk cannot be completed now");
        }
    }
}

/// An attempt was left unfinished, or a live member is behind or rebooted while dirty, or is ahead of a restored master.
fn needs_readoption(master: &Master, chunk: ChunkId, record: &Chunk) -> bool {
    let cluster = lock(&master.cluster);
    let now = now();
    let behind = record.active.members.iter().any(|member| {
        cluster.is_up(now, member)
            && cluster.row(member.server).is_some_and(|row| {
                row.replicas.get(&chunk).is_some_and(|replica| {
                    replica.not_current || replica.version != record.active.version
                })
            })
    });
    let all_up = record.active.members.iter().all(|member| cluster.is_up(now, member));
    if all_up {
        return behind || record.preparing.is_some();
    }
    // Who could serve does not come back; without this nobody would read it until somebody wrote it.
    cluster.only_rebooted_are_left(now, master.started, master.wait_ms(), chunk, record)
}

fn all_up(master: &Master, record: &Chunk) -> bool {
    let (cluster, now) = (lock(&master.cluster), now());
    record.active.members.iter().all(|member| cluster.is_up(now, member))
}

/// A live member has told all it holds, and this chunk is not among it: somebody removed the file.
fn is_missed(master: &Master, chunk: ChunkId, record: &Chunk) -> bool {
    if !record.born || record.preparing.is_some() || master.was_written_lately(chunk) {
        return false;
    }
    let cluster = lock(&master.cluster);
    let now = now();
    let told_without = |member: &Member| {
        let row = cluster.row(member.server);
        row.is_some_and(|row| row.inventory_complete && !row.replicas.contains_key(&chunk))
    };
    let mut members = record.active.members.iter();
    members.any(|member| cluster.is_up(now, member) && told_without(member))
}

enum Lack {
    /// It has an older replica: less to copy, and no reason to wait.
    Returned(Member),
    Short(Short),
    /// Nothing can be done now: no good copy is here, or one that is only late would be left out.
    Waits,
}

/// What `record` lacks, if a server could take a copy of it.
fn lack_of(master: &Master, chunk: ChunkId, record: &Chunk) -> Option<Lack> {
    let written_lately = master.was_written_lately(chunk);
    let cluster = lock(&master.cluster);
    let now = now();
    let members = &record.active.members;
    let is_lost = |member: &Member| is_lost(&cluster, now, member);
    let staying = members.iter().filter(|member| !is_lost(member)).count();
    if master.replication as usize <= staying {
        return None;
    }
    let good = cluster.copies(now, chunk, record, written_lately).good;
    let all_here = members.iter().all(|member| is_lost(member) || cluster.is_up(now, member));
    if good == 0 || !(all_here || good == 1) {
        return Some(Lack::Waits);
    }
    // One that came back with another disk holds nothing of it: where there is no other, it takes the copy.
    let here = members.iter().filter(|member| !has_another_disk(&cluster, member));
    let mut holders: Vec<ServerId> = here.map(|member| member.server).collect();
    let others = cluster
        .rows()
        .iter()
        .filter(|(server, row)| !holders.contains(server) && row.replicas.contains_key(&chunk));
    let others: Vec<Member> =
        others.map(|(server, row)| Member { server: *server, disk: row.disk }).collect();
    let fits = |member: &&Member| {
        // One that is drained gave its copy away.
        cluster.liveness(now, member.server) == Liveness::Alive
            && !cluster.has_overlay(member.server, OverlayKind::Draining)
    };
    if let Some(returned) = others.iter().find(fits) {
        return Some(Lack::Returned(*returned));
    }
    // What it brings back need not be copied. Chunks with one copy do not wait.
    if 1 < good && cluster.awaits_maintenance(now, chunk) {
        return Some(Lack::Waits);
    }
    holders.extend(others.iter().map(|member| member.server));
    let lens = members.iter().filter_map(|member| cluster.row(member.server)?.replicas.get(&chunk));
    let bytes = lens.map(|replica| replica.len).max().unwrap_or(0);
    let is_waited_for = written_lately;
    Some(Lack::Short(Short {
        chunk,
        bytes,
        good,
        is_waited_for,
        since: now,
        holders,
        leaver: None,
    }))
}

/// It has members enough without one that is lost, as after a copy that was not needed any more when it was made.
fn lists_one_for_nothing(master: &Master, record: &Chunk) -> bool {
    let (cluster, now) = (lock(&master.cluster), now());
    let (lost, staying): (Vec<&Member>, Vec<&Member>) =
        record.active.members.iter().partition(|member| is_lost(&cluster, now, member));
    !lost.is_empty()
        && master.replication as usize <= staying.len()
        && staying.iter().all(|member| cluster.is_up(now, member))
}

/// Dead, or come back with another disk.
fn is_lost(cluster: &Cluster, now: Timestamp, member: &Member) -> bool {
    has_another_disk(cluster, member) || cluster.liveness(now, member.server) == Liveness::Dead
}

fn has_another_disk(cluster: &Cluster, member: &Member) -> bool {
    cluster.row(member.server).is_some_and(|row| row.disk != member.disk)
}
