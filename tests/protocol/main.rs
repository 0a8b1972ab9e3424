//! A real master and real chunkservers on loopback, spoken to in frames: the protocol without a client's cleverness.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod behind;
mod ends;
mod surplus;
mod wait;

use std::path::Path;
use std::time::{Duration, Instant};

use dfs_core::cluster::LivenessProfile;
use dfs_core::cluster::overlay::OverlayKind;
use dfs_core::command::{Change, NewKind, Outcome};
use dfs_core::ids::{ClientId, InodeNo, ServerId};
use dfs_core::results::Results;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer, WireMutation};
use dfs_proto::frame_conn::LoneClient;
use dfs_proto::meta_rpc::{
    ChunkLayout, FailedMember, MetaCall, MetaFailure, MetaReply, MetaRequest,
};
use dfs_service::conn::{ClusterKey, Door, dial};
use master::state::lock;

const WAIT: Duration = Duration::from_secs(20);

struct World {
    dir: tempfile::TempDir,
    master: Option<master::Server>,
    chunkservers: Vec<Option<chunkserver::Server>>,
}

fn key() -> ClusterKey {
    ClusterKey::none()
}

fn master_config(dir: &Path, listen: &str) -> master::Config {
    master::Config {
        listen: listen.parse().unwrap(),
        key: key(),
        profile: LivenessProfile::DRILL,
        segment_bytes: 4 << 20,
        ..master::Config::new(dir.join("master"))
    }
}

impl World {
    fn new(servers: u32) -> Self {
        Self::with(servers, |_| {})
    }

    fn with(servers: u32, settle: impl FnOnce(&mut master::Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = master_config(dir.path(), "127.0.0.1:0");
        settle(&mut config);
        let master = master::Server::start(config).unwrap();
        let mut world = Self { dir, master: Some(master), chunkservers: vec![] };
        for n in 1..=servers {
            world.chunkservers.push(None);
            world.start(n);
        }
        // A chunk made before they are all there has fewer members.
        let known = || lock(&world.master().master.cluster).rows().len();
        let start = Instant::now();
        while known() < servers as usize {
            assert!(start.elapsed() < WAIT, "{} of {servers} chunkservers came", known());
            std::thread::sleep(Duration::from_millis(5));
        }
        world
    }

    fn master(&self) -> &master::Server {
        self.master.as_ref().unwrap()
    }

    fn address(&self) -> String {
        self.master().address.to_string()
    }

    fn start(&mut self, n: u32) {
        let config = chunkserver::Config {
            key: key(),
            segment_bytes: 4 << 20,
            master: Some(self.address()),
            // However full this machine's disk is.
            capacity_bytes: Some(4 << 30),
            ..chunkserver::Config::new(ServerId(n), self.dir.path().join(format!("cs-{n}")))
        };
        self.chunkservers[n as usize - 1] = Some(chunkserver::Server::start(config).unwrap());
    }

    fn restart_master(&mut self, settle: impl FnOnce(&mut master::Config)) {
        let mut config = master_config(self.dir.path(), &self.address());
        settle(&mut config);
        self.master.take().unwrap().stop();
        self.master = Some(master::Server::start(config).unwrap());
    }

    fn stop(&mut self, n: u32) {
        self.chunkservers[n as usize - 1].take().unwrap().stop();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mut server in self.chunkservers.iter_mut().filter_map(Option::take) {
            server.stop();
        }
        if let Some(master) = self.master.take() {
            master.stop();
        }
    }
}

struct Client {
    id: ClientId,
    master: LoneClient,
    fs: dfs_core::ids::FsId,
    op: u64,
    counter: u64,
}

impl Client {
    fn new(world: &World, id: u128) -> Self {
        let (client, welcome) = Self::greet(world, id, false);
        match welcome {
            MetaReply::Welcome(_) => client,
            other => panic!("{other:?}"),
        }
    }

    fn greet(world: &World, id: u128, known: bool) -> (Self, MetaReply) {
        let stream = dial(&world.address(), &key(), Door::Frames, WAIT).unwrap();
        let mut client = Self {
            id: ClientId(id),
            master: LoneClient::new(stream),
            fs: dfs_core::ids::FsId(0),
            op: 0,
            counter: 0,
        };
        let reply = client.meta(MetaCall::Hello { name: "test".to_owned(), known });
        if let MetaReply::Welcome(welcome) = &reply {
            client.fs = welcome.fs;
        }
        (client, reply)
    }

    fn meta(&mut self, call: MetaCall) -> MetaReply {
        let results = Results::all_below(self.op);
        let request = MetaRequest { client: self.id, results, call };
        let frame = self.master.call(&request.to_bytes(), &[], WAIT).unwrap();
        MetaReply::from_bytes(&frame.args).unwrap()
    }

    fn change(&mut self, change: Change) -> Outcome {
        self.op += 1;
        match self.meta(MetaCall::Change { op: self.op, part: 0, change }) {
            MetaReply::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, name: &str) -> InodeNo {
        let outcome = self.change(Change::Create {
            parent: InodeNo::ROOT,
            name: name.as_bytes().to_vec(),
            kind: NewKind::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            layout: None,
            open_existing: false,
        });
        let Outcome::Entry { attr, .. } = outcome else { panic!("{outcome:?}") };
        attr.ino
    }

    fn layout(&mut self, ino: InodeNo, failed: Option<FailedMember>) -> ChunkLayout {
        let start = Instant::now();
        loop {
            match self.meta(MetaCall::Layout { ino, index: 0, write: true, spill: false, failed }) {
                MetaReply::WriteLayout { layout, .. } => return layout,
                MetaReply::Failed(
                    MetaFailure::Warming { .. } | MetaFailure::Unavailable { .. },
                ) if start.elapsed() < WAIT => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn data(&self, layout: &ChunkLayout, server: ServerId) -> std::io::Result<LoneClient> {
        let address =
            &layout.members.iter().find(|member| member.member.server == server).unwrap().address;
        let mut client = LoneClient::new(dial(address, &key(), Door::Frames, WAIT)?);
        let hello = DataCall::Hello { fs: self.fs, from: Peer::Client(self.id) };
        client.call(&hello.to_bytes(), &[], WAIT)?;
        Ok(client)
    }

    /// Writes and syncs through whatever configuration there is, with one operation id however often it is sent.
    fn write(&mut self, ino: InodeNo, offset: u64, data: &[u8]) -> ChunkLayout {
        self.counter += 1;
        let mut layout = self.layout(ino, None);
        for _ in 0..10 {
            match self.try_write(&layout, offset, data) {
                Ok(()) => return layout,
                Err(why) => {
                    println!("version {}: {why}", layout.version.0);
                    let (version, server) = (layout.version, layout.primary);
                    let failed = FailedMember { version, server, full: false };
                    layout = self.layout(ino, Some(failed));
                }
            }
        }
        panic!("not written");
    }

    fn try_write(&self, layout: &ChunkLayout, offset: u64, data: &[u8]) -> Result<(), String> {
        let mut primary = self.data(layout, layout.primary).map_err(|e| e.to_string())?;
        let mutate = DataCall::Mutate {
            layout: layout.clone(),
            client: self.id,
            counter: self.counter,
            low_water: self.counter,
            mutation: WireMutation::Write { offset },
        };
        for (call, payload) in
            [(mutate, &[data][..]), (DataCall::Sync { layout: layout.clone() }, &[])]
        {
            let frame = primary.call(&call.to_bytes(), payload, WAIT).map_err(|e| e.to_string())?;
            if let DataReply::Failed(failure) = DataReply::from_bytes(&frame.args).unwrap() {
                return Err(failure.to_string());
            }
        }
        Ok(())
    }

    fn read(
        &self,
        layout: &ChunkLayout,
        server: ServerId,
        len: u32,
    ) -> Result<Vec<u8>, DataFailure> {
        let call = DataCall::Read { chunk: layout.chunk, version: layout.version, offset: 0, len };
        let frame = self.data(layout, server).unwrap().call(&call.to_bytes(), &[], WAIT).unwrap();
        match DataReply::from_bytes(&frame.args).unwrap() {
            DataReply::Failed(failure) => Err(failure),
            _ => Ok(frame.payload),
        }
    }

    /// Reads from every member; a member may ask to come back while it does not yet know what is everywhere.
    fn check_all(&self, layout: &ChunkLayout, expected: &[u8]) {
        for member in &layout.members {
            let start = Instant::now();
            loop {
                match self.read(layout, member.member.server, expected.len() as u32) {
                    Ok(bytes) => {
                        assert!(bytes == expected, "{}", member.member.server);
                        break;
                    }
                    Err(DataFailure::NotPrimary) if start.elapsed() < WAIT => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(other) => panic!("{}: {other}", member.member.server),
                }
            }
        }
    }
}

#[test]
fn a_write_is_on_three_members_goes_on_with_two_and_the_third_catches_up() {
    let mut world = World::new(3);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let mut content = vec![7; 300_000];
    let layout = client.write(ino, 0, &content);
    assert_eq!(layout.members.len(), 3);
    client.check_all(&layout, &content);

    // The primary itself goes.
    let gone = layout.primary;
    world.stop(gone.0);
    let start = Instant::now();
    content[1000..2000].fill(8);
    let layout = client.write(ino, 1000, &content[1000..2000]);
    println!("went on after {:?}", start.elapsed());
    assert_eq!(layout.members.len(), 2);
    client.check_all(&layout, &content);

    world.start(gone.0);
    let start = Instant::now();
    let layout = loop {
        let layout = client.layout(ino, None);
        if layout.members.len() == 3 {
            break layout;
        }
        assert!(start.elapsed() < WAIT, "{layout:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    println!("complete after {:?}", start.elapsed());
    client.check_all(&layout, &content);
    // It stays so: nothing reconfigures a chunk that is well.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(client.layout(ino, None).version, layout.version);
}

/// Not with the answer to its next heartbeat, which would make it seem alive for so much longer.
#[test]
fn a_server_that_is_to_be_silent_is_told_at_once() {
    let profile = LivenessProfile {
        interval_ms: 600_000,
        dead_after_ms: 1_800_000,
        ..LivenessProfile::DRILL
    };
    let world = World::with(3, |config| config.profile = profile);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let layout = client.write(ino, 0, b"content");
    client.check_all(&layout, b"content");
    let silent = layout.members[1].member.server;
    let master = &world.master().master;
    let overlay = Change::SetOverlay {
        server: silent,
        kind: OverlayKind::Suspended,
        until: None,
        by: "ada".to_owned(),
        cause: "forced".to_owned(),
    };
    assert_eq!(master.propose(None, overlay).unwrap(), Outcome::Done);
    master.refresh_overlays();
    let start = Instant::now();
    while client.read(&layout, silent, 7).is_ok() {
        assert!(start.elapsed() < WAIT, "{silent} still answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    for member in layout.members.iter().filter(|member| member.member.server != silent) {
        assert_eq!(client.read(&layout, member.member.server, 7).unwrap(), b"content");
    }
}

#[test]
fn a_master_that_restarts_serves_the_same_chunks() {
    let mut world = World::new(3);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    let content = vec![5; 10_000];
    client.write(ino, 0, &content);
    world.restart_master(|_| {});
    let mut client = Client { counter: client.counter, ..Client::new(&world, 1) };
    let layout = client.write(ino, 0, &content);
    client.check_all(&layout, &content);
}
