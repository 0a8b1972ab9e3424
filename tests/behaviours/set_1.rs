//! Set 1: chunkservers that send heartbeats as JSON lines, and a master that answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Cluster, Options, PATIENCE, dfs_program, wait_until};

use crate::need_fuse;
use crate::set_3::{chunks, file_on};

/// `dfs master --stdio`; ended by the end of its input.
struct Master {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    next: u64,
}

impl Master {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(dfs_program());
        command.args(["master", "--stdio"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output, next: 1 }
    }

    /// With a clock that only [`Self::advance`] moves, after `init`.
    fn stopped() -> Self {
        let mut master = Self::start(&["--stopped-clock"]);
        assert_eq!(master.ask("c0", json!({"type": "init"}))["type"], "init_ok");
        master
    }

    fn line(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        answer.trim_end_matches('\n').to_owned()
    }

    /// The body of the answer, after a look at the envelope.
    fn ask(&mut self, src: &str, mut body: Value) -> Value {
        let id = self.next;
        self.next += 1;
        body["msg_id"] = id.into();
        let line = json!({"src": src, "dest": "n1", "body": body}).to_string();
        let mut answer: Value = serde_json::from_str(&self.line(&line)).unwrap();
        assert_eq!((&answer["src"], &answer["dest"]), (&"n1".into(), &src.into()), "{line}");
        assert_eq!(answer["body"]["in_reply_to"], id, "{line}");
        answer["body"].take()
    }

    fn beat(&mut self, server: &str, chunks: &[&str]) -> Value {
        let body = json!({"type": "heartbeat", "chunks": chunks, "disk_usage": 30, "health": "ok"});
        let answer = self.ask(server, body);
        assert_eq!((&answer["type"], &answer["status"]), (&"heartbeat_ok".into(), &"alive".into()));
        answer
    }

    fn beat_at(&mut self, server: &str, handle: &str, version: u64) -> Value {
        let chunks = json!([{"handle": handle, "version": version}]);
        self.ask(server, json!({"type": "heartbeat", "chunks": chunks}))
    }

    fn advance(&mut self, ms: u64) {
        assert_eq!(self.ask("c0", json!({"type": "advance", "ms": ms}))["type"], "advance_ok");
    }

    fn servers(&mut self) -> Value {
        self.ask("c0", json!({"type": "server_status"}))["servers"].take()
    }

    fn state(&mut self, server: &str) -> Value {
        let servers = self.servers();
        let found = servers.as_array().unwrap().iter().find(|row| row["server"] == server);
        found.unwrap_or_else(|| panic!("no {server} in {servers}"))["status"].clone()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert_eq!(ended.code(), Some(0));
        }
    }
}

const INIT: &str = r#"{"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": ["n1"]}}"#;
const INIT_OK: &str =
    r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#;

#[test]
fn case_1_1_the_samples_bytes() {
    let mut master = Master::start(&[]);
    assert_eq!(master.line(INIT), INIT_OK);
    assert_eq!(
        master.line(
            r#"{"src": "n2", "dest": "n1", "body": {"type": "heartbeat", "msg_id": 2, "chunks": ["ch_001", "ch_002"], "disk_usage": 30}}"#
        ),
        r#"{"src": "n1", "dest": "n2", "body": {"type": "heartbeat_ok", "in_reply_to": 2, "status": "alive", "msg_id": 1}}"#
    );
}

#[test]
fn case_1_2_no_server_was_heard_of() {
    let mut master = Master::start(&[]);
    assert_eq!(master.line(INIT), INIT_OK);
    assert_eq!(
        master
            .line(r#"{"src": "c0", "dest": "n1", "body": {"type": "server_status", "msg_id": 2}}"#),
        r#"{"src": "n1", "dest": "c0", "body": {"type": "server_status_ok", "in_reply_to": 2, "servers": [], "msg_id": 1}}"#
    );
}

#[test]
fn case_1_3_the_living_and_the_dead_by_name() {
    let mut master = Master::stopped();
    master.beat("cs2", &["ch_009"]);
    master.advance(28_000);
    master.beat("cs1", &["ch_001", "ch_002", "ch_003"]);
    master.advance(2_000);
    assert_eq!(
        master
            .line(r#"{"src": "c0", "dest": "n1", "body": {"type": "server_status", "msg_id": 9}}"#),
        r#"{"src": "n1", "dest": "c0", "body": {"type": "server_status_ok", "in_reply_to": 9, "servers": [{"server": "cs1", "status": "alive", "chunks": 3, "last_heartbeat_ms_ago": 2000}, {"server": "cs2", "status": "dead", "chunks": 0, "last_heartbeat_ms_ago": 30000}], "msg_id": 5}}"#
    );
}

/// Three with `x`, of which `cs2` with `y` too, and `others` with nothing, all of them heard of for 20 s.
fn settled(others: &[&str]) -> Master {
    let mut master = Master::stopped();
    for round in 0..5 {
        if round != 0 {
            master.advance(5_000);
        }
        beat_all(&mut master, &["cs1", "cs2", "cs3"], others);
    }
    master
}

fn beat_all(master: &mut Master, holders: &[&str], others: &[&str]) -> Vec<(String, Value)> {
    let mut answers = Vec::new();
    for server in holders {
        let chunks: &[&str] = if *server == "cs2" { &["x", "y"] } else { &["x"] };
        answers.push(((*server).to_owned(), master.beat(server, chunks)));
    }
    for server in others {
        answers.push(((*server).to_owned(), master.beat(server, &[])));
    }
    answers
}

/// Who was told to fetch `x`.
fn fetching(answers: &[(String, Value)]) -> Vec<&str> {
    let told = answers.iter().filter(|(_, answer)| {
        answer["chunks_to_replicate"].as_array().is_some_and(|list| list.contains(&"x".into()))
    });
    told.map(|(server, _)| server.as_str()).collect()
}

#[test]
fn case_1_4_fifteen_seconds_of_silence() {
    let mut master = settled(&[]);
    master.advance(14_500);
    beat_all(&mut master, &["cs1", "cs3"], &[]);
    assert_eq!(master.state("cs2"), "alive");
    master.advance(1_000);
    assert_eq!(master.state("cs2"), "dead");
    // What the others have too is to be copied; what only cs2 had cannot be.
    let answers = beat_all(&mut master, &["cs1", "cs3"], &["cs4"]);
    assert_eq!(fetching(&answers), ["cs4"]);
    for (server, answer) in &answers {
        let told = &answer["chunks_to_replicate"];
        assert!(*told == Value::Null || *told == json!(["x"]), "{server}: {answer}");
    }
}

/// Once with the clock of the wall.
#[test]
fn case_1_4_also_in_real_time() {
    let mut master = Master::start(&["--profile", "drill"]);
    assert_eq!(master.line(INIT), INIT_OK);
    master.next = 2;
    let began = Instant::now();
    master.beat("cs1", &["x"]);
    assert_eq!(master.state("cs1"), "alive");
    wait_until("it is dead", || master.state("cs1") == "dead");
    assert!(Duration::from_secs(3) <= began.elapsed(), "dead after {:?}", began.elapsed());
    master.beat("cs1", &["x"]);
    assert_eq!(master.state("cs1"), "alive");
}

#[test]
fn case_1_5_one_of_those_who_have_none_makes_the_missing_copy() {
    let mut master = settled(&["cs4", "cs5"]);
    let mut told = Vec::new();
    for _ in 0..6 {
        master.advance(5_000);
        told.push(fetching(&beat_all(&mut master, &["cs1", "cs3"], &["cs4", "cs5"])).join(" "));
    }
    // Dead is who was silent for longer than 15 s: not yet in the third round, in which it is exactly that, but in the
    // fourth. Told is always the same one.
    assert_eq!(told[..3], ["", "", ""], "{told:?}");
    let target = told.last().unwrap();
    assert!(["cs4", "cs5"].contains(&target.as_str()), "{told:?}");
    assert!(told[3..].iter().all(|told| told == target), "{told:?}");
}

#[test]
fn case_1_6_copies_too_many_and_too_old_are_deleted_when_three_are_good() {
    let mut master = Master::stopped();
    master.beat_at("cs1", "x", 2);
    master.beat_at("cs2", "x", 2);
    assert_eq!(master.beat_at("cs4", "x", 1).get("chunks_to_delete"), None);
    master.beat_at("cs3", "x", 2);
    assert_eq!(master.beat_at("cs4", "x", 1)["chunks_to_delete"], json!(["x"]));
    assert_eq!(master.beat_at("cs5", "x", 2)["chunks_to_delete"], json!(["x"]));
    master.beat("cs3", &[]);
    assert_eq!(master.beat_at("cs4", "x", 1).get("chunks_to_delete"), None);
}

#[test]
fn case_1_7_what_is_listed_no_more_is_copied_again() {
    let mut master = settled(&[]);
    let answer = master.beat("cs1", &[]);
    assert_eq!(answer["chunks_to_replicate"], json!(["x"]));
    assert_eq!(answer["sources"], json!({"x": ["cs2", "cs3"]}));
    assert_eq!(master.servers()[0]["chunks"], 0);
}

/// The lines know handles only; the path stands in the log of the server whose heartbeat drops one.
#[test]
fn case_1_7_the_path_of_a_chunk_file_that_is_gone_is_logged_and_the_file_made_again() {
    need_fuse!();
    let cluster =
        Cluster::start_with(Options { timing: &["--scrub-period", "0"], ..<_>::default() });
    let source = cluster.scratch().join("source");
    std::fs::write(&source, vec![7; 1 << 20]).unwrap();
    cluster.dfs(["put", source.to_str().unwrap(), "/f"]);
    // Nobody has the file open any more.
    cluster.down();
    cluster.up();
    wait_until("it has three copies", || cluster.dfs_json(["status"])["chunks"]["safe"] == 1);
    let removed = file_on(&chunks(&cluster, "/f")[0], "cs-2");
    let log = || std::fs::read_to_string(cluster.dir().join("log/cs-2.log")).unwrap();
    let path = removed.to_str().unwrap();
    let is_told = || log().lines().any(|line| line.contains("is gone") && line.contains(path));
    assert!(!is_told(), "{}", log());
    std::fs::remove_file(&removed).unwrap();
    wait_until("the event is logged with the path", is_told);
    wait_until("the copy is there again", || removed.is_file());
    wait_until("it has three copies", || cluster.dfs_json(["status"])["chunks"]["safe"] == 1);
    cluster.until_clean();
}

/// Two of five at once are more than are copied for at once, as for a real master, and so is the end of it.
#[test]
fn case_1_5_what_two_dead_of_five_had_is_copied_when_the_wait_for_them_ends() {
    let mut master = Master::stopped();
    let mut told_at = |from: u64, to: u64, servers: &[(&str, &[&str])]| {
        let mut told = Vec::new();
        for second in (from..=to).step_by(5) {
            let answers = servers
                .iter()
                .map(|(server, chunks)| ((*server).to_owned(), master.beat(server, chunks)));
            let answers: Vec<_> = answers.collect();
            told.extend(fetching(&answers).first().map(|_| second));
            master.advance(5_000);
        }
        told
    };
    let all: [(&str, &[&str]); 5] =
        [("cs1", &["x"]), ("cs2", &[]), ("cs3", &["x"]), ("cs4", &["x"]), ("cs5", &[])];
    assert_eq!(told_at(0, 20, &all), [0; 0]);
    // Silent since 20 s, for more than ten times the rebuild delay of 60 s only then.
    assert_eq!(told_at(25, 615, &all[2..]), [0; 0]);
    assert_eq!(told_at(620, 625, &all[2..]).last(), Some(&625));
}

#[test]
fn case_1_8_lines_that_are_wrong_are_answered() {
    let mut master = Master::start(&[]);
    let mut code = |line: &str| {
        let answer: Value = serde_json::from_str(&master.line(line)).unwrap();
        assert_eq!(answer["body"]["type"], "error", "{answer}");
        answer["body"]["code"].as_str().unwrap().to_owned()
    };
    let beat =
        r#"{"src": "cs1", "dest": "n1", "body": {"type": "heartbeat", "msg_id": 2, "chunks": []}}"#;
    assert_eq!(code(r#"{"src": "#), "malformed");
    assert_eq!(code("null"), "malformed");
    // Arrays with the fields in their order are no objects.
    assert_eq!(code(r#"["c0", "n1", 0, {"type": "init", "msg_id": 1}]"#), "malformed");
    assert_eq!(code(r#"{"src": "c0", "dest": "n1", "body": ["init", 1]}"#), "malformed");
    assert_eq!(code(&INIT.replace("c0", "")), "bad_field");
    assert_eq!(code(beat), "not_initialised");
    assert_eq!(code(&beat.replace("heartbeat", "breathe")), "unknown_type");
    assert_eq!(master.line(INIT).matches("init_ok").count(), 1);
    let answer = master.line(&beat.replace("[]", "5"));
    assert!(answer.contains(r#""code": "malformed""#), "{answer}");
    assert!(master.line(beat).contains("heartbeat_ok"));
}

#[test]
fn case_1_9_a_dead_server_is_alive_with_its_first_word_and_believed_by_version() {
    let mut master = Master::stopped();
    for server in ["cs1", "cs2", "cs3"] {
        master.beat_at(server, "x", 1);
    }
    master.advance(16_000);
    assert_eq!(master.state("cs2"), "dead");
    // Meanwhile the others went on to another version, with a new third.
    for server in ["cs1", "cs3", "cs4"] {
        master.beat_at(server, "x", 2);
    }
    let answer = master.beat_at("cs2", "x", 1);
    assert_eq!((&answer["status"], &answer["chunks_to_delete"]), (&"alive".into(), &json!(["x"])));
    assert_eq!(master.state("cs2"), "alive");
}

/// What a real master records is replayed: the same death.
#[test]
fn a_recording_of_a_real_cluster_is_replayed() {
    need_fuse!();
    let cluster = Cluster::start();
    let scratch = cluster.scratch().to_path_buf();
    let record = scratch.join("heartbeats.jsonl");
    std::fs::write(cluster.mount().join("f"), vec![7; 100_000]).unwrap();
    cluster.down();
    let master = cluster.dir().join("data/master");
    let (data, record_path) = (master.to_str().unwrap(), record.to_str().unwrap());
    let key = cluster.dir().join("cluster.key");
    let mut alone = Command::new(dfs_program())
        .args(["master", "--data", data, "--listen", "127.0.0.1:0", "--profile", "drill"])
        .args(["--record", record_path, "--key-file", key.to_str().unwrap()])
        .args(["--address-file", scratch.join("address").to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = || std::fs::read_to_string(scratch.join("address")).unwrap_or_default();
    wait_until("the master serves", || !address().is_empty());
    let mut servers: Vec<Child> = (1..=3)
        .map(|n| {
            let data = cluster.dir().join(format!("data/cs-{n}"));
            Command::new(dfs_program())
                .args(["chunkserver", "--data", data.to_str().unwrap(), "--id", &format!("cs-{n}")])
                .args(["--master", address().trim(), "--key-file", key.to_str().unwrap()])
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let recorded = |what: &str| {
        let text = std::fs::read_to_string(&record).unwrap_or_default();
        text.lines().filter(|line| line.contains(what)).count()
    };
    wait_until("all are heard of", || (1..=3).all(|n| 3 < recorded(&format!("\"cs-{n}\""))));
    servers[1].kill().unwrap();
    let before = recorded("\"cs-1\"");
    wait_until("time passes", || before + 5 < recorded("\"cs-1\""));
    for server in &mut servers {
        let _already = server.kill();
        server.wait().unwrap();
    }
    alone.kill().unwrap();
    alone.wait().unwrap();
    let mut replay = Command::new(dfs_program());
    let replayed = tests::run(replay.args(["replay", "--profile", "drill", record_path]), PATIENCE);
    let told = String::from_utf8_lossy(&replayed.stdout);
    assert!(replayed.status.success(), "{replayed:?}");
    let dead: Vec<_> = told.lines().filter(|line| line.contains("dead")).collect();
    // It is judged when the next message of the others comes, two each second.
    assert!(matches!(&dead[..], [line] if line.contains("cs-2 dead: silent for 3.")), "{told}");
    assert!(told.contains("messages"), "{told}");
}
