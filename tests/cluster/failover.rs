//! Servers that are silent on purpose: found dead by their silence, closed at every door, back when it ends.

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, FsId};
use dfs_proto::codec::Wire as _;
use dfs_proto::control::ReportRequest;
use dfs_proto::control::chunk_control_client::ChunkControlClient;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer};
use dfs_proto::frame_conn::LoneClient;
use dfs_service::conn::{ClusterKey, Door, control_channel, dial};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Cluster, Options, run, wait_until};

use crate::pattern;

fn four() -> Cluster {
    Cluster::start_with(Options { chunkservers: 4, ..Options::default() })
}

fn put(cluster: &Cluster, name: &str, bytes: &[u8]) {
    let source = cluster.scratch().join("source");
    std::fs::write(&source, bytes).unwrap();
    cluster.dfs(["put", source.to_str().unwrap(), name]);
}

fn content(cluster: &Cluster, name: &str) -> Vec<u8> {
    let copy = cluster.scratch().join("copy");
    let _absent = std::fs::remove_file(&copy);
    cluster.dfs(["get", name, copy.to_str().unwrap()]);
    std::fs::read(copy).unwrap()
}

fn server(cluster: &Cluster, id: &str) -> Value {
    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    servers
        .iter()
        .find(|server| server["id"] == id)
        .unwrap_or_else(|| panic!("{id} in {status}"))
        .clone()
}

fn overlays(cluster: &Cluster, id: &str) -> Vec<String> {
    let server = server(cluster, id);
    let overlays = server["overlays"].as_array().unwrap();
    overlays.iter().map(|overlay| overlay["kind"].as_str().unwrap().to_owned()).collect()
}

/// Number, server, kind and cause of all events.
fn events(cluster: &Cluster) -> Vec<(u64, String, String, String)> {
    let text = cluster.dfs(["events", "-n", "0", "-o", "json"]);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines
        .map(|line| {
            let number = line["number"].as_u64().unwrap();
            (number, text(&line["server"]), text(&line["kind"]), text(&line["cause"]))
        })
        .collect()
}

fn kinds_of(cluster: &Cluster, id: &str) -> Vec<String> {
    let of = events(cluster).into_iter().filter(|(_, server, ..)| server == id);
    of.map(|(_, _, kind, _)| kind).collect()
}

fn said_by(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All doors of one chunkserver, opened once.
struct Doors {
    frames: LoneClient,
    local: UnixStream,
    control: ChunkControlClient<tonic::transport::Channel>,
    runtime: tokio::runtime::Runtime,
    chunk: ChunkId,
    version: ChunkVersion,
}

const WAIT: Duration = Duration::from_secs(10);

impl Doors {
    fn open(cluster: &Cluster, id: &str, path: &str) -> Self {
        let key = ClusterKey::load(&cluster.dir().join("cluster.key")).unwrap();
        let address = cluster.chunkserver_address(id);
        let located = cluster.dfs_json(["locate", path]);
        let chunk = &located["chunks"][0];
        let fs = cluster.dfs_json(["status"])["fileSystem"].as_str().unwrap().to_owned();
        let stream = dial(&address, &key, Door::Frames, WAIT).unwrap();
        let mut frames = LoneClient::new(stream);
        let fs = FsId(u128::from_str_radix(&fs, 16).unwrap());
        let welcome = ask(&mut frames, &DataCall::Hello { fs, from: Peer::Client(ClientId(7)) });
        assert!(matches!(welcome, DataReply::Welcome { .. }), "{welcome:?}");
        let DataReply::LocalDoor { name, token } = ask(&mut frames, &DataCall::LocalDoor) else {
            panic!("no local door")
        };
        let name = SocketAddr::from_abstract_name(&name).unwrap();
        let mut local = UnixStream::connect_addr(&name).unwrap();
        local.write_all(&token).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let control =
            runtime.block_on(async { ChunkControlClient::new(control_channel(&address, &key)) });
        let number = |key: &str| chunk[key].as_u64().unwrap_or_else(|| panic!("{key} in {chunk}"));
        let (chunk, version) = (ChunkId(number("id")), ChunkVersion(number("version")));
        Self { frames, local, control, runtime, chunk, version }
    }

    fn read(&mut self) -> DataReply {
        let (chunk, version) = (self.chunk, self.version);
        ask(&mut self.frames, &DataCall::Read { chunk, version, offset: 0, len: 100 })
    }

    /// Which doors give anything.
    fn open_doors(&mut self) -> Vec<&'static str> {
        let (chunk, version) = (self.chunk, self.version);
        let mut open = Vec::new();
        let calls = [
            ("read", DataCall::Read { chunk, version, offset: 0, len: 100 }),
            ("read sums", DataCall::ReadSums { chunk, version, offset: 0, len: 100 }),
            ("stat", DataCall::Stat { chunk, version }),
            ("space", DataCall::Space),
        ];
        for (name, call) in calls {
            if !matches!(ask(&mut self.frames, &call), DataReply::Failed(_)) {
                open.push(name);
            }
        }
        self.local.write_all(&chunk.0.to_le_bytes()).unwrap();
        let mut said = [0];
        self.local.read_exact(&mut said).unwrap();
        if said[0] == dfs_proto::local_door::GIVEN {
            open.push("files");
        }
        let report = self.control.report(ReportRequest { chunk: chunk.0 });
        if self.runtime.block_on(report).is_ok() {
            open.push("control");
        }
        open
    }
}

fn ask(client: &mut LoneClient, call: &DataCall) -> DataReply {
    let frame = client.call(&call.to_bytes(), &[], WAIT).unwrap();
    DataReply::from_bytes(&frame.args).unwrap()
}

#[test]
fn a_failover_is_found_by_silence_refuses_at_every_door_and_ends_with_recover() {
    let cluster = four();
    let bytes = pattern(3 << 20, 1);
    put(&cluster, "/f", &bytes);
    let located = cluster.dfs_json(["locate", "/f"]);
    let holder = located["chunks"][0]["primary"].as_str().unwrap().to_owned();
    let id = holder.as_str();
    let mut doors = Doors::open(&cluster, id, "/f");
    assert_eq!(doors.open_doors(), ["read", "read sums", "stat", "space", "files", "control"]);

    let report = std::thread::scope(|scope| {
        let drill = scope.spawn(|| cluster.dfs_json(["failover", id, "--wait", "60s"]));
        wait_until("it is dead", || cluster.server_state(id).unwrap() == "dead");
        // Somebody writes: the chunk goes on with the fourth server.
        cluster.dfs_fed(["append", "/f"], b"more");
        drill.join().unwrap()
    });
    let bytes = [bytes.as_slice(), b"more"].concat();
    assert_eq!((&report["changed"], &report["state"]), (&Value::Bool(true), &"dead".into()));
    // How long it was silent, which may have begun up to a heartbeat before the wish, is said by the event (below).
    let noticed = report["noticedMs"].as_u64().unwrap();
    assert!(0 < noticed && noticed <= report["safeMs"].as_u64().unwrap(), "{report}");
    // Its chunk was copied to the fourth server, before or after `more` was appended.
    assert!(3 << 20 <= report["copiedBytes"].as_u64().unwrap(), "{report}");
    assert_eq!(report["clientErrors"], Value::Null, "nobody measured any");
    assert_eq!(doors.open_doors(), [""; 0]);
    assert_eq!(overlays(&cluster, id), ["suspended"]);
    assert!(cluster.dfs(["status"]).contains(&format!("{id} is suspended")));
    assert_eq!(content(&cluster, "/f"), bytes);
    let again = cluster.dfs_json(["failover", id]);
    assert_eq!(again["changed"], false, "{again}");

    let report = cluster.dfs_json(["recover", id]);
    assert_eq!((&report["changed"], &report["state"]), (&Value::Bool(true), &"alive".into()));
    assert!(report["noticedMs"].is_u64() && report["safeMs"].is_u64(), "{report}");
    assert_eq!(overlays(&cluster, id), [""; 0]);
    assert_eq!(cluster.dfs_json(["recover", id])["changed"], false);
    assert!(matches!(ask(&mut doors.frames, &DataCall::Space), DataReply::Applied { .. }));
    assert_eq!(content(&cluster, "/f"), bytes);
    assert!(cluster.dfs(["fsck"]).contains("clean"));

    let kinds = kinds_of(&cluster, id);
    let told: Vec<&str> = kinds.iter().map(String::as_str).filter(|k| *k != "suspect").collect();
    assert_eq!(told, ["alive", "wished", "dead", "report", "reverted", "alive", "report"]);
    let all = events(&cluster);
    let dead = all.iter().find(|(_, _, kind, _)| kind == "dead").unwrap();
    assert!(dead.3.starts_with("silent for 3."), "{dead:?}");
    // Told once no more come.
    wait_until("configuration changes are told", || {
        events(&cluster).iter().any(|(_, _, kind, _)| kind == "reconfigured")
    });
    // Only the newest, if so asked.
    assert_eq!(cluster.dfs(["events", "-n", "2"]).lines().count(), 2);
}

#[test]
fn a_wish_outlives_restarts_of_server_and_master_and_events_too() {
    let cluster = Cluster::start_with(Options {
        chunkservers: 4,
        restart: "on-failure",
        ..Options::default()
    });
    put(&cluster, "/f", &pattern(1 << 20, 2));
    cluster.dfs(["failover", "cs-2"]);
    assert_eq!(cluster.server_state("cs-2").unwrap(), "dead");
    let log = cluster.dir().join("log/cs-2.log");
    let wishes = || std::fs::read_to_string(&log).unwrap().matches("suspended=true").count();
    let before = wishes();
    cluster.kill("cs-2");
    // Asked before anything else: it never was alive.
    wait_until("the new process knows", || before < wishes());
    assert_eq!(cluster.server_state("cs-2").unwrap(), "dead");
    let told = events(&cluster);

    let killed = cluster.pid("master").unwrap();
    cluster.kill("master");
    wait_until("a new master", || cluster.pid("master").is_some_and(|pid| pid != killed));
    wait_until("it serves and has given the server up", || {
        let output = cluster.try_dfs(["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let servers = status["servers"].as_array().cloned().unwrap_or_default();
        let state = |id: &str| servers.iter().find(|s| s["id"] == id).map(|s| s["state"].clone());
        status["phase"] == "serving"
            && state("cs-2").is_some_and(|state| state == "dead")
            && state("cs-1").is_some_and(|state| state == "alive")
    });
    assert_eq!(overlays(&cluster, "cs-2"), ["suspended"]);
    let now = events(&cluster);
    assert_eq!(now[..told.len()], told[..], "what happened before the restart");
    assert!(now[told.len()..].iter().any(|(_, _, kind, _)| kind == "started"), "{now:?}");
    cluster.dfs(["recover", "cs-2"]);
    assert_eq!(cluster.server_state("cs-2").unwrap(), "alive");
}

#[test]
fn a_failover_for_a_time_ends_by_itself() {
    let cluster = four();
    cluster.dfs(["failover", "cs-1", "--for", "4s", "--no-wait"]);
    assert_eq!(overlays(&cluster, "cs-1"), ["suspended"]);
    wait_until("it is silent", || cluster.server_state("cs-1").unwrap() != "alive");
    wait_until("it is back", || cluster.server_state("cs-1").unwrap() == "alive");
    assert_eq!(overlays(&cluster, "cs-1"), [""; 0]);
    let all = events(&cluster);
    assert!(all.iter().any(|(.., cause)| cause.contains("its time is over")), "{all:?}");
}

#[test]
fn a_failover_that_takes_the_last_copies_is_refused_and_names_them() {
    let cluster = Cluster::start();
    put(&cluster, "/f", &pattern(1 << 20, 3));
    let chunk = cluster.dfs_json(["locate", "/f"])["chunks"][0]["id"].as_u64().unwrap();
    let report = cluster.dfs_json(["failover", "cs-1"]);
    assert_eq!(report["safeMs"], Value::Null, "two servers for three copies");
    assert!(report["notSafeBecause"].as_str().unwrap().contains("2 server(s)"), "{report}");
    let refused = cluster.try_dfs(["failover", "cs-2"]);
    let said = said_by(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("1 chunk ({chunk})")) && said.contains("--force"), "{said}");
    assert!(said.contains("(cs-1 is dead: silent for "), "{said}");
    assert_eq!(overlays(&cluster, "cs-2"), [""; 0]);
    cluster.dfs(["failover", "cs-2", "--force"]);
    let said = said_by(&cluster.try_dfs(["failover", "cs-3"]));
    assert!(said.contains("the last good copy of 1 chunk"), "{said}");

    let unknown = cluster.try_dfs(["failover", "cs-9"]);
    let said = said_by(&unknown);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said.contains("cs-9") && said.contains("cs-1, cs-2, cs-3"), "{said}");
    for command in ["recover", "maintenance"] {
        let more: &[&str] = if command == "recover" { &[] } else { &["--end"] };
        let arguments = [command, "cs-9"].into_iter().chain(more.iter().copied());
        let said = said_by(&cluster.try_dfs(arguments));
        assert!(said.contains("cs-1, cs-2, cs-3"), "{said}");
    }
    for (time, expected) in [("5 years", "10m"), ("soon", "30s"), ("0s", "10m"), ("-1m", "")] {
        let bad = cluster.try_dfs(["failover", "cs-3", "--for", time]);
        let said = said_by(&bad);
        assert_eq!(bad.status.code(), Some(2), "{time}: {said}");
        assert!(said.contains(expected), "{time}: {said}");
    }
    let bad = cluster.try_dfs(["failover", "server three"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(said_by(&bad).contains("cs-1"), "{}", said_by(&bad));
}

/// A version is taken up by all its members before it counts: whoever looks in between must not miss the one before.
#[test]
fn no_chunk_is_called_lost_while_versions_change() {
    let cluster = four();
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/d"]);
    put(&cluster, "/d/many", &pattern(16 << 20, 5));
    let (over, mut worst) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|scope| {
        let drills = scope.spawn(|| {
            for id in ["cs-1", "cs-2", "cs-3", "cs-1", "cs-2", "cs-3"] {
                cluster.dfs(["failover", id]);
                cluster.dfs(["recover", id]);
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) && !drills.is_finished() {
            let chunks = &cluster.dfs_json(["status"])["chunks"];
            if chunks["lost"] != 0 {
                worst.push(chunks.clone());
            }
        }
    });
    assert!(worst.is_empty(), "{worst:?}");
}

#[test]
fn what_a_server_in_maintenance_holds_is_not_copied() {
    let cluster = Cluster::start_with(Options { chunkservers: 5, ..Options::default() });
    put(&cluster, "/f", &pattern(1 << 20, 4));
    let located = cluster.dfs_json(["locate", "/f"]);
    let servers: Vec<String> = located["chunks"][0]["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| server.as_str().unwrap().to_owned())
        .collect();
    let (away, gone) = (servers[1].as_str(), servers[2].as_str());
    // Nobody waits for what was never reported.
    wait_until("the master was told of the replica", || server(&cluster, away)["chunks"] == 1);
    let said = cluster.dfs(["maintenance", away, "--for", "30m"]);
    assert!(said.contains("in maintenance until"), "{said}");
    cluster.kill(away);
    wait_until("it is dead", || cluster.server_state(away).unwrap() == "dead");
    // A write makes the chunk do without it.
    cluster.dfs_fed(["append", "/f"], b"more");
    // Another server that goes for good brings its chunks to others; this one is waited for.
    let members = || {
        let located = cluster.dfs_json(["locate", "/f"]);
        located["chunks"][0]["servers"].as_array().unwrap().len()
    };
    wait_until("two members go on", || members() == 2);
    put(&cluster, "/g", &pattern(1 << 20, 5));
    let before = cluster.dfs_json(["locate", "/g"]);
    assert!(!before.to_string().contains(&format!("\"{away}\"")), "{before}");
    cluster.kill(gone);
    // One copy left: that is not waited for.
    wait_until("the chunk has a second copy elsewhere", || {
        let located = cluster.dfs_json(["locate", "/f"]);
        let live = located["chunks"][0]["live"].as_array().unwrap().len();
        live == 2 && !located["chunks"][0].to_string().contains(&format!("\"{gone}\""))
    });
    cluster.dfs(["maintenance", away, "--end"]);
    wait_until("a third copy is made once the maintenance is over", || members() == 3);
}

#[test]
fn a_server_that_goes_and_comes_is_given_no_new_chunks_for_a_while() {
    let cluster = Cluster::start_with(Options {
        chunkservers: 4,
        restart: "on-failure",
        ..Options::default()
    });
    let returns = || kinds_of(&cluster, "cs-1").iter().filter(|kind| *kind == "alive").count();
    for _ in 0..8 {
        if overlays(&cluster, "cs-1") == ["probation"] {
            break;
        }
        let (before, process) = (returns(), cluster.pid("cs-1"));
        cluster.kill("cs-1");
        let is_new = || cluster.pid("cs-1").is_some_and(|pid| Some(pid) != process);
        wait_until("it is back", || is_new() && before < returns());
    }
    assert_eq!(overlays(&cluster, "cs-1"), ["probation"]);
    let until = server(&cluster, "cs-1")["overlays"][0]["until"].clone();
    assert!(until.is_string(), "it ends by itself: {until}");
    let all = events(&cluster);
    let why = all.iter().find(|(_, id, kind, _)| id == "cs-1" && kind == "wished").unwrap();
    assert!(why.3.contains("probation for") && why.3.contains("went and came back"), "{why:?}");
    for n in 0..4 {
        let name = format!("/f{n}");
        put(&cluster, &name, &pattern(100_000, n));
        let located = cluster.dfs_json(["locate", &name]);
        assert!(!located["chunks"][0]["servers"].to_string().contains("cs-1\""), "{located}");
    }
    // Where there is no other place, that one is better than none.
    cluster.dfs(["failover", "cs-2", "--force"]);
    wait_until("a third copy is made there", || {
        let located = cluster.dfs_json(["locate", "/f0"]);
        located["chunks"][0]["servers"].to_string().contains("cs-1\"")
    });
    assert_eq!(overlays(&cluster, "cs-1"), ["probation"], "not only because it was over");
}

#[test]
fn timing_can_be_set_freely_and_servers_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("c");
    let timing = ["--heartbeat-interval", "300ms", "--dead-after", "800ms"];
    let mut command = std::process::Command::new(tests::dfs_program());
    command.args(["up", "--detach", "--dir", dir.to_str().unwrap()]).args(timing);
    let refused = run(&mut command, WAIT);
    assert_eq!(refused.status.code(), Some(2), "{}", said_by(&refused));
    assert!(said_by(&refused).contains("three heartbeat intervals of 300 ms"));
    assert!(!dir.exists(), "nothing was made");

    let cluster = Cluster::start_with(Options {
        // Of its own it would send one each 5 s.
        profile: "standard",
        timing: &["--heartbeat-interval", "300ms", "--dead-after", "4s"],
        ..Options::default()
    });
    let file = std::fs::read_to_string(cluster.dir().join("cluster.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&file["heartbeatIntervalMs"], &file["deadAfterMs"]), (&300.into(), &4000.into()));
    // It was told: the last heartbeat was 300 ms old at most, or twice that on a busy machine, and not 5 s.
    let report = cluster.dfs_json(["failover", "cs-1"]);
    assert!((3_400..).contains(&report["noticedMs"].as_u64().unwrap()), "{report}");
    cluster.down();
    cluster.up();
    assert_eq!(overlays(&cluster, "cs-1"), ["suspended"], "also over a clean stop of all");
}

#[test]
fn a_server_without_an_answer_stops_serving() {
    let cluster = Cluster::start();
    put(&cluster, "/f", &pattern(1 << 20, 6));
    let mut doors = Doors::open(&cluster, "cs-1", "/f");
    assert!(matches!(doors.read(), DataReply::Read { .. }));
    let master = cluster.pid("master").unwrap();
    tests::signal(master, Signal::STOP);
    wait_until("it serves no longer", || {
        matches!(doors.read(), DataReply::Failed(DataFailure::Fenced { .. }))
    });
    tests::signal(master, Signal::CONT);
    wait_until("it serves again", || matches!(doors.read(), DataReply::Read { .. }));
}

/// Half a minute where every minute counts; `DFS_LOAD_SECONDS=300` for the whole proof.
#[test]
fn full_disks_and_busy_cores_are_not_taken_for_death() {
    crate::need_fuse!();
    let seconds: u64 =
        std::env::var("DFS_LOAD_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let cluster = Cluster::start();
    let began = events(&cluster).len();
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for n in 0..cores * 2 {
            scope.spawn(move || {
                let mut sum = n as u64;
                while std::time::Instant::now() < end {
                    (0..100_000u64).for_each(|i| sum = sum.rotate_left(7) ^ i);
                }
                std::hint::black_box(sum)
            });
        }
        for n in 0..3 {
            let path = cluster.mount().join(format!("load-{n}"));
            scope.spawn(move || write_until(&path, end));
        }
    });
    let told = events(&cluster).split_off(began);
    let wrong: Vec<_> =
        told.iter().filter(|(_, _, kind, _)| kind == "suspect" || kind == "dead").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn write_until(path: &Path, end: std::time::Instant) {
    let block = pattern(1 << 20, 9);
    while std::time::Instant::now() < end {
        let mut file = std::fs::File::create(path).unwrap();
        for _ in 0..32 {
            file.write_all(&block).unwrap();
        }
        file.sync_all().unwrap();
    }
}
