//! Case 0.11: drills at random while files are uploaded, by a simulated clock. Detector, placement, chunk map, plans of
//! configurations and the log's rules are the product's; servers, network and uploaders are small models here, and an
//! oracle says what the table must be. `DFS_DRILL_SEEDS` sets how many seeds, 1,000 by default.

use std::collections::{BTreeMap, BTreeSet};

use dfs_core::check::check;
use dfs_core::chunk::{Configuration, Member, Preparing};
use dfs_core::cluster::overlay::OverlayKind;
use dfs_core::cluster::{Cluster, Liveness, LivenessProfile, Placement};
use dfs_core::command::{Change, Command, NewKind, Outcome};
use dfs_core::ids::{ChunkId, ChunkVersion, DiskId, Epoch, FsId, InodeNo, ServerId};
use dfs_core::meta::{self, MemStore};
use dfs_core::namespace::Layout;
use dfs_core::plan::reconfigure::{PromiseReport, Source, choose_source, plan};
use dfs_core::results::Results;
use dfs_core::time::WallTime;
use tests::{Random, setting};

use crate::set_2::{at, beat};

const SERVERS: u32 = 5;
const DRILLS: u32 = 1_000;
const UPLOADS: usize = 8;
const CHUNK: u64 = 32;
const MIN_REPLICAS: u32 = 2;
const INTERVAL_MS: u64 = 1_000;
const DEAD_AFTER_MS: u64 = 3_000;
/// Later than one and a half intervals it is avoided.
const LATE_MS: u64 = 1_500;
/// Once all servers speak every upload ends in this time.
const REST_MS: u64 = 30_000;
/// An attempt that found too few servers is made again after this.
const AGAIN_MS: u64 = 250;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// A server's clock says that a heartbeat is due.
    Beat(u32),
    /// A heartbeat arrives at the master.
    Heard(u32),
    /// A server is told what is wished of it.
    Told(u32),
    Drill,
    /// An uploader goes on.
    Upload(usize),
}

/// One server: what it was told, and what it holds of each chunk: version, and whether the bytes.
#[derive(Default)]
struct Server {
    silent: bool,
    held: BTreeMap<ChunkId, (ChunkVersion, bool)>,
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Place,
    Write(ChunkId),
    Reconfigure(ChunkId, Preparing),
}

struct Uploader {
    step: Step,
    number: u64,
    name: Vec<u8>,
    ino: InodeNo,
    chunks: u64,
    index: u64,
}

/// What the table must be, from what happened alone.
#[derive(Default)]
struct Oracle {
    heard: BTreeMap<u32, u64>,
    wished: BTreeSet<u32>,
    load: BTreeMap<u32, u64>,
}

impl Oracle {
    fn is_alive(&self, now: u64, server: u32) -> bool {
        self.heard.get(&server).is_some_and(|heard| now - heard < LATE_MS)
    }

    fn state(&self, now: u64, server: u32) -> Liveness {
        match self.heard.get(&server).map(|heard| now - heard) {
            Some(age) if age < LATE_MS => Liveness::Alive,
            Some(age) if age <= DEAD_AFTER_MS => Liveness::Suspect,
            _ => Liveness::Dead,
        }
    }

    /// The servers with the fewest chunks of those that speak, of equal ones the lowest.
    fn placed(&mut self, now: u64) -> Vec<u32> {
        let mut servers: Vec<u32> = (1..=SERVERS)
            .filter(|server| self.is_alive(now, *server) && !self.wished.contains(server))
            .collect();
        let load = |server: &u32| self.load.get(server).copied().unwrap_or(0);
        servers.sort_by_key(|server| (load(server), *server));
        servers.truncate(3);
        servers
    }
}

struct World {
    seed: u64,
    random: Random,
    now: u64,
    due: BTreeSet<(u64, u64, Event)>,
    count: u64,
    table: Cluster,
    log: MemStore,
    servers: BTreeMap<u32, Server>,
    oracle: Oracle,
    uploads: Vec<Uploader>,
    drills: u32,
    /// Names and numbers of chunks of what was acknowledged.
    stored: Vec<(Vec<u8>, u64)>,
    reconfigured: u64,
}

fn member(server: u32) -> Member {
    Member { server: ServerId(server), disk: DiskId(u128::from(server)) }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut table = Cluster::new(LivenessProfile::DRILL);
        table.placement = Placement::FewestChunks;
        let uploader = |number: usize| Uploader {
            step: Step::Begin,
            number: number as u64 * 1_000_000,
            name: Vec::new(),
            ino: InodeNo(0),
            chunks: 0,
            index: 0,
        };
        let mut world = Self {
            seed,
            random: Random::new(seed, 11),
            now: 10_000,
            due: BTreeSet::new(),
            count: 0,
            table,
            log: MemStore::new(),
            servers: (1..=SERVERS).map(|server| (server, Server::default())).collect(),
            oracle: Oracle::default(),
            uploads: (0..UPLOADS).map(uploader).collect(),
            drills: 0,
            stored: Vec::new(),
            reconfigured: 0,
        };
        let (epoch, fs) = (Epoch(1), FsId(1));
        let (replication, min_replicas) = (3, MIN_REPLICAS);
        world.commit(Change::Start { epoch, nonce: 1, fs, replication, min_replicas });
        for server in 1..=SERVERS {
            let Member { server: id, disk } = member(server);
            world.commit(Change::RegisterServer { server: id, disk });
            world.hear(server);
            let first = world.random.below(INTERVAL_MS);
            world.soon(first, Event::Beat(server));
        }
        (0..UPLOADS).for_each(|upload| world.soon(1, Event::Upload(upload)));
        world.soon(5, Event::Drill);
        world
    }

    fn soon(&mut self, after: u64, event: Event) {
        self.count += 1;
        self.due.insert((self.now + after, self.count, event));
    }

    fn commit(&mut self, change: Change) -> Outcome {
        let at = WallTime(i64::try_from(self.now).unwrap());
        let command = Command { at, id: None, results: Results::default(), change };
        let outcome = meta::apply(&mut self.log, &command);
        assert!(
            !matches!(outcome, Outcome::Refused(_)),
            "seed {}: {command:?}: {outcome:?}",
            self.seed
        );
        outcome
    }

    fn hear(&mut self, server: u32) {
        let heartbeat = beat(server, format!("127.0.0.1:{server}"), 1);
        self.table.on_heartbeat(at(self.now), heartbeat);
        self.oracle.heard.insert(server, self.now);
    }

    fn is_silent(&self, member: &Member) -> bool {
        self.servers[&member.server.0].silent
    }

    fn wish(&mut self, server: u32, failover: bool) {
        let (id, kind, by) = (ServerId(server), OverlayKind::Suspended, "drill".to_owned());
        if failover {
            self.oracle.wished.insert(server);
            let cause = String::new();
            self.commit(Change::SetOverlay { server: id, kind, until: None, by, cause });
        } else {
            self.oracle.wished.remove(&server);
            self.commit(Change::ClearOverlay { server: id, kind, only_until: None, by });
        }
        let kinds = |record: meta::Server| record.overlays.iter().map(|o| o.kind).collect();
        let servers = meta::servers(&self.log).into_iter();
        self.table.set_overlays(servers.map(|(id, record)| (id, kinds(record))).collect());
        let after = 1 + self.random.below(200);
        self.soon(after, Event::Told(server));
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Beat(server) => {
                if !self.servers[&server].silent {
                    let after = self.random.below(30);
                    self.soon(after, Event::Heard(server));
                }
                self.soon(INTERVAL_MS, Event::Beat(server));
            }
            Event::Heard(server) => self.hear(server),
            Event::Told(server) => {
                let silent = self.table.has_overlay(ServerId(server), OverlayKind::Suspended);
                self.servers.get_mut(&server).unwrap().silent = silent;
            }
            Event::Drill => {
                let server = 1 + u32::try_from(self.random.below(u64::from(SERVERS))).unwrap();
                let failover = self.random.below(2) == 0;
                self.wish(server, failover);
                self.drills += 1;
                if self.drills < DRILLS {
                    let after = self.random.below(2_000);
                    self.soon(after, Event::Drill);
                }
            }
            Event::Upload(upload) => {
                let after = self.upload(upload);
                self.soon(after, Event::Upload(upload));
            }
        }
    }

    /// One step of an uploader; when the next one is due.
    fn upload(&mut self, upload: usize) -> u64 {
        let delay = 1 + self.random.below(400);
        match self.uploads[upload].step.clone() {
            Step::Begin if DRILLS <= self.drills => REST_MS,
            Step::Begin => {
                self.begin(upload);
                delay
            }
            Step::Place => {
                if self.place(upload) {
                    delay
                } else {
                    AGAIN_MS
                }
            }
            Step::Write(chunk) => self.write(upload, chunk, delay),
            Step::Reconfigure(chunk, preparing) => {
                self.reconfigure(upload, chunk, &preparing);
                delay
            }
        }
    }

    fn begin(&mut self, upload: usize) {
        let chunks = 1 + self.random.below(4);
        let number = self.uploads[upload].number + 1;
        let name = format!("{upload}-{number}").into_bytes();
        let created = self.commit(Change::Create {
            parent: InodeNo::ROOT,
            name: name.clone(),
            kind: NewKind::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            layout: Some(Layout::striped(CHUNK)),
            open_existing: false,
        });
        let Outcome::Entry { attr, created: true } = created else { panic!("{created:?}") };
        self.commit(Change::BeginWrite { ino: attr.ino });
        self.uploads[upload] =
            Uploader { step: Step::Place, number, name, ino: attr.ino, chunks, index: 0 };
    }

    /// False: too few servers speak.
    fn place(&mut self, upload: usize) -> bool {
        let expected = self.oracle.placed(self.now);
        let members = self.table.place(at(self.now), 3, CHUNK, &[]);
        let placed: Vec<u32> = members.iter().map(|member| member.server.0).collect();
        assert_eq!(placed, expected, "seed {}, at {} ms", self.seed, self.now);
        let Some(first) = members.first().filter(|_| MIN_REPLICAS as usize <= members.len()) else {
            self.table.take_back(&members);
            return false;
        };
        for server in placed {
            *self.oracle.load.entry(server).or_default() += 1;
        }
        let Uploader { ino, index, .. } = self.uploads[upload];
        let primary = first.server;
        let added = self.commit(Change::AddChunk { ino, index, members, primary, attach: true });
        let Outcome::Chunk { chunk, .. } = added else { panic!("{added:?}") };
        self.uploads[upload].step = Step::Write(chunk);
        true
    }

    /// Every member takes the bytes, or the configuration goes on without those that do not.
    fn write(&mut self, upload: usize, chunk: ChunkId, delay: u64) -> u64 {
        let record = meta::chunk(&self.log, chunk).unwrap();
        let version = record.active.version;
        let mut all = true;
        for member in &record.active.members {
            let silent = self.is_silent(member);
            let server = self.servers.get_mut(&member.server.0).unwrap();
            let promised = server.held.get(&chunk).map_or(ChunkVersion(0), |held| held.0);
            if silent || version < promised {
                all = false;
            } else {
                server.held.insert(chunk, (version, true));
            }
        }
        if !all {
            let up = |member: &Member| !self.is_silent(member);
            let Ok(preparing) = plan(&record, MIN_REPLICAS, None, up) else { return AGAIN_MS };
            let Preparing { version, members, learner, after_wait } = preparing.clone();
            self.commit(Change::Reconfigure { chunk, version, members, learner, after_wait });
            self.uploads[upload].step = Step::Reconfigure(chunk, preparing);
            return delay;
        }
        let Uploader { ino, index, chunks, .. } = self.uploads[upload];
        let last = index + 1 == chunks;
        self.commit(Change::CommitSize {
            ino,
            size: (index + 1) * CHUNK,
            cuts_seen: 0,
            mtime: None,
            done_writing: last,
            kill_priv: false,
        });
        let uploader = &mut self.uploads[upload];
        uploader.index += 1;
        if !last {
            uploader.step = Step::Place;
            return delay;
        }
        uploader.step = Step::Begin;
        self.stored.push((std::mem::take(&mut uploader.name), chunks));
        delay + self.random.below(20_000)
    }

    /// Promises, adoption and activation, unless a member fell silent since it was chosen.
    fn reconfigure(&mut self, upload: usize, chunk: ChunkId, preparing: &Preparing) {
        // Whatever comes of it, the write is tried again.
        self.uploads[upload].step = Step::Write(chunk);
        if preparing.members.iter().any(|member| self.is_silent(member)) {
            return;
        }
        let record = meta::chunk(&self.log, chunk).unwrap();
        let report = |member: &Member| {
            let held = self.servers[&member.server.0].held.get(&chunk);
            let (version, has) = held.copied().unwrap_or((ChunkVersion(0), false));
            PromiseReport {
                member: *member,
                promised: preparing.version,
                version,
                seq: u64::from(has),
                len: u64::from(has) * CHUNK,
                digest: u32::from(has),
                not_current: false,
            }
        };
        let reports: Vec<PromiseReport> = preparing.members.iter().map(report).collect();
        let has = match choose_source(&record, preparing, &reports) {
            Source::Adopt(source) => source.seq == 1,
            Source::Empty => false,
            other @ (Source::OnlyRebooted | Source::DataLost) => {
                panic!("seed {}: {chunk:?}: {other:?} of {reports:?}", self.seed)
            }
        };
        for member in &preparing.members {
            let server = self.servers.get_mut(&member.server.0).unwrap();
            server.held.insert(chunk, (preparing.version, has));
        }
        let configuration = Configuration {
            version: preparing.version,
            members: preparing.members.clone(),
            primary: preparing.members[0].server,
        };
        self.commit(Change::Activate { chunk, configuration, done_by: None });
        self.reconfigured += 1;
    }

    fn check_table(&self) {
        for server in 1..=SERVERS {
            let found = self.table.liveness(at(self.now), ServerId(server));
            let expected = self.oracle.state(self.now, server);
            assert_eq!(found, expected, "seed {}, server {server}, at {} ms", self.seed, self.now);
            let suspended = self.table.has_overlay(ServerId(server), OverlayKind::Suspended);
            assert_eq!(suspended, self.oracle.wished.contains(&server), "seed {}", self.seed);
        }
    }

    /// All members of every chunk that was acknowledged hold its bytes at its version.
    fn check_files(&self) {
        for (name, chunks) in &self.stored {
            let attr = meta::lookup(&self.log, InodeNo::ROOT, name).unwrap();
            assert_eq!(attr.size, chunks * CHUNK, "seed {}", self.seed);
            for index in 0..*chunks {
                let (chunk, record) = meta::file_chunk(&self.log, attr.ino, index).unwrap();
                let Configuration { version, members, .. } = record.active;
                assert!(MIN_REPLICAS as usize <= members.len(), "seed {}", self.seed);
                for member in members {
                    let held = self.servers[&member.server.0].held.get(&chunk);
                    assert_eq!(held, Some(&(version, true)), "seed {}: {member:?}", self.seed);
                }
            }
        }
    }

    fn run_until(&mut self, over: impl Fn(&Self) -> bool) {
        while !over(self) {
            let (when, _, event) = self.due.pop_first().unwrap();
            self.now = when;
            // Before it, too: the moment at which silence becomes death is nobody's event.
            self.check_table();
            self.on(event);
            self.check_table();
        }
    }

    fn run(&mut self) {
        self.run_until(|world| DRILLS <= world.drills);
        self.check_files();
        (1..=SERVERS).for_each(|server| self.wish(server, false));
        let end = self.now + REST_MS;
        self.run_until(|world| end <= world.now);
        for uploader in &self.uploads {
            let step = &uploader.step;
            assert!(matches!(step, Step::Begin), "seed {}: still at {step:?}", self.seed);
        }
        self.check_files();
        assert_eq!(check(&self.log), [], "seed {}", self.seed);
    }
}

#[test]
fn case_0_11_drills_at_random_lose_no_file_and_stop_no_upload() {
    let seeds = setting("DFS_DRILL_SEEDS", 1_000);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let run = |first: u64| {
        let (mut files, mut reconfigured) = (0, 0);
        for seed in (first..=seeds).step_by(usize::try_from(threads).unwrap()) {
            let mut world = World::new(seed);
            world.run();
            files += world.stored.len() as u64;
            reconfigured += world.reconfigured;
        }
        (files, reconfigured)
    };
    let (files, reconfigured) = std::thread::scope(|scope| {
        let running: Vec<_> = (1..=threads).map(|first| scope.spawn(move || run(first))).collect();
        let ended = running.into_iter().map(|thread| thread.join().unwrap());
        ended.fold((0, 0), |sum, some| (sum.0 + some.0, sum.1 + some.1))
    });
    println!(
        "{seeds} seeds of {DRILLS} drills: {files} files, {reconfigured} configurations changed"
    );
    assert!(100 * seeds < files && 10 * seeds < reconfigured, "too quiet");
}
