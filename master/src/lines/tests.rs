use std::path::Path;

use dfs_core::cluster::LivenessProfile;

use super::*;

const SETTINGS: Settings =
    Settings { profile: LivenessProfile::STANDARD, replication: 3, rebuild_delay_ms: 0 };

/// A conversation whose clock only `at` moves.
struct Talk {
    conversation: Conversation,
    ms: u64,
}

impl Talk {
    fn begin() -> Self {
        Self::begin_with(SETTINGS)
    }

    fn begin_with(settings: Settings) -> Self {
        let mut talk = Self { conversation: Conversation::new(settings), ms: 0 };
        talk.say(r#"{"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1}}"#);
        talk
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        assert!(self.ms <= ms);
        self.ms = ms;
        self
    }

    fn say(&mut self, line: &str) -> serde_json::Value {
        let answer = self.conversation.answer(self.ms * 1_000_000, line.as_bytes()).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// The body of the answer to a heartbeat that lists `chunks`, as JSON.
    fn beat(&mut self, server: &str, chunks: &str) -> serde_json::Value {
        let line = format!(
            r#"{{"src": "{server}", "dest": "n1", "body": {{"type": "heartbeat", "msg_id": 2, "chunks": {chunks}, "disk_usage": 30}}}}"#
        );
        self.say(&line)["body"].clone()
    }

    fn status(&mut self) -> serde_json::Value {
        let line = r#"{"src": "c0", "dest": "n1", "body": {"type": "server_status", "msg_id": 9}}"#;
        self.say(line)["body"]["servers"].clone()
    }
}

#[test]
fn the_samples_bytes() {
    let mut talk = Conversation::new(SETTINGS);
    let mut say = |line: &str| talk.answer(0, line.as_bytes()).unwrap();
    assert_eq!(
        say(
            r#"{"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1, "node_id": "n1"}}"#
        ),
        r#"{"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}"#
    );
    assert_eq!(
        say(
            r#"{"src": "n2", "dest": "n1", "body": {"type": "heartbeat", "msg_id": 2, "chunks": ["ch_001", "ch_002"], "disk_usage": 30}}"#
        ),
        r#"{"src": "n1", "dest": "n2", "body": {"type": "heartbeat_ok", "in_reply_to": 2, "status": "alive", "msg_id": 1}}"#
    );
    let mut talk = Conversation::new(SETTINGS);
    talk.answer(0, br#"{"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1}}"#);
    assert_eq!(
        talk.answer(
            0,
            br#"{"src": "c0", "dest": "n1", "body": {"type": "server_status", "msg_id": 2}}"#
        )
        .unwrap(),
        r#"{"src": "n1", "dest": "c0", "body": {"type": "server_status_ok", "in_reply_to": 2, "servers": [], "msg_id": 1}}"#
    );
}

#[test]
fn a_dead_server_has_no_chunks_and_servers_are_sorted_by_name() {
    let mut talk = Talk::begin();
    talk.beat("cs2", r#"["a"]"#);
    talk.at(28_000).beat("cs1", r#"["a", "b", "c"]"#);
    let status = talk.at(30_000).status();
    assert_eq!(
        status.to_string(),
        r#"[{"chunks":3,"last_heartbeat_ms_ago":2000,"server":"cs1","status":"alive"},{"chunks":0,"last_heartbeat_ms_ago":30000,"server":"cs2","status":"dead"}]"#
    );
}

#[test]
fn silence_of_fifteen_seconds_is_death() {
    let mut talk = Talk::begin();
    talk.beat("cs2", "[]");
    assert_eq!(talk.at(14_500).status()[0]["status"], "alive");
    assert_eq!(talk.at(15_500).status()[0]["status"], "dead");
    assert_eq!(talk.beat("cs2", "[]")["status"], "alive");
    assert_eq!(talk.status()[0]["status"], "alive");
}

#[test]
fn one_of_those_without_a_copy_gets_what_a_dead_server_had() {
    let mut talk = Talk::begin();
    let all = ["cs1", "cs2", "cs3", "cs4", "cs5"];
    for ms in (0..=20_000).step_by(5_000) {
        for server in all {
            let chunks = if server < "cs4" { r#"["x"]"# } else { "[]" };
            let answer = talk.at(ms).beat(server, chunks);
            assert_eq!(answer.get("chunks_to_replicate"), None, "{ms} {server}");
        }
    }
    let mut told = Vec::new();
    for ms in (25_000..=45_000).step_by(5_000) {
        for server in ["cs1", "cs3", "cs4", "cs5"] {
            let chunks = if server < "cs4" { r#"["x"]"# } else { "[]" };
            let answer = talk.at(ms).beat(server, chunks);
            if answer.get("chunks_to_replicate").is_some() {
                assert_eq!(answer["chunks_to_replicate"].to_string(), r#"["x"]"#);
                assert_eq!(answer["sources"]["x"].to_string(), r#"["cs1","cs3"]"#);
                told.push((ms, server));
            }
        }
    }
    // It is told until it has it, and nobody else is.
    let (first, target) = told[0];
    assert!((35_000..=40_000).contains(&first), "{told:?}");
    assert!(told.iter().all(|(_, server)| *server == target && "cs4" <= *server), "{told:?}");
    // It has it: nobody is told any more, and whoever returns with one too many may delete it.
    assert_eq!(talk.beat(target, r#"["x"]"#).get("chunks_to_replicate"), None);
    assert_eq!(talk.beat("cs2", r#"["x"]"#)["chunks_to_delete"].to_string(), r#"["x"]"#);
}

#[test]
fn stale_and_surplus_copies_go_when_enough_others_are_current() {
    let mut talk = Talk::begin();
    let stale = r#"[{"handle": "x", "version": 1}]"#;
    let new = r#"[{"handle": "x", "version": 2}]"#;
    talk.beat("cs1", new);
    talk.beat("cs2", new);
    // Two current ones are not three.
    assert_eq!(talk.beat("cs4", stale).get("chunks_to_delete"), None);
    talk.beat("cs3", new);
    assert_eq!(talk.beat("cs4", stale)["chunks_to_delete"].to_string(), r#"["x"]"#);
    assert_eq!(talk.beat("cs5", new)["chunks_to_delete"].to_string(), r#"["x"]"#);
    // Not while one of the three does not have it.
    talk.beat("cs3", "[]");
    assert_eq!(talk.beat("cs4", stale).get("chunks_to_delete"), None);
    assert_eq!(talk.beat("cs5", new).get("chunks_to_delete"), None, "it takes cs3's place");
}

#[test]
fn what_a_server_lists_no_more_is_copied_again() {
    let mut talk = Talk::begin();
    for server in ["cs1", "cs2", "cs3"] {
        talk.beat(server, r#"["x"]"#);
    }
    for server in ["cs1", "cs2", "cs3"] {
        talk.at(14_000).beat(server, r#"["x"]"#);
    }
    talk.conversation.take_events();
    let answer = talk.at(16_000).beat("cs1", "[]");
    assert_eq!(answer["chunks_to_replicate"].to_string(), r#"["x"]"#);
    assert_eq!(talk.conversation.take_events(), ["cs1 holds no more: x", "cs1 is to fetch x"]);
}

#[test]
fn lines_that_are_wrong_are_answered_and_change_nothing() {
    let mut talk = Conversation::new(SETTINGS);
    let beat = |body: &str| {
        format!(
            r#"{{"src": "cs1", "dest": "n1", "body": {{"type": "heartbeat", "msg_id": 7{body}}}}}"#
        )
    };
    let wrong = [
        ("{".to_owned(), "malformed"),
        ("[]".to_owned(), "malformed"),
        (r#"["a", "b", 0, {"type": "init"}]"#.to_owned(), "malformed"),
        (r#"{"src": "a", "dest": "b", "body": ["init", 7]}"#.to_owned(), "malformed"),
        (r#"{"src": "a", "dest": "b", "body": {"type": "init"}} x"#.to_owned(), "malformed"),
        (r#"{"src": "", "dest": "b", "body": {"type": "init"}}"#.to_owned(), "bad_field"),
        (r#"{"src": "a", "dest": "b", "body": {"msg_id": 7}}"#.to_owned(), "malformed"),
        (beat(r#", "chunks": []"#), "not_initialised"),
        (r#"{"src": "a", "dest": "b", "body": {"type": "dance"}}"#.to_owned(), "unknown_type"),
        (r#"{"src": "a", "dest": "b", "body": {"type": "advance"}}"#.to_owned(), "bad_field"),
    ];
    for (line, code) in &wrong {
        let answer: serde_json::Value =
            serde_json::from_str(&talk.answer(0, line.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            (&answer["body"]["type"], &answer["body"]["code"]),
            (&"error".into(), &(*code).into()),
            "{line}"
        );
    }
    let mut talk = Talk::begin();
    for (body, code) in [
        ("", "bad_field"),
        (r#", "chunks": ["x", "x"]"#, "bad_field"),
        (r#", "chunks": [{"handle": "x", "version": 0}]"#, "bad_field"),
        (r#", "chunks": ["x"], "disk_usage": 130"#, "bad_field"),
        (r#", "chunks": "x""#, "malformed"),
        (r#", "chunks": [["x", 1]]"#, "malformed"),
        (r#", "chunks": [""]"#, "bad_field"),
        (r#", "chunks": [{"handle": "", "version": 1}]"#, "bad_field"),
        (r#", "chunks": ["x"], "server_id": """#, "bad_field"),
        (r#", "full": false, "gone": [""]"#, "bad_field"),
        (r#", "full": false, "chunks": ["x"], "gone": ["y", "x"]"#, "bad_field"),
    ] {
        let answer = talk.say(&beat(body));
        assert_eq!(answer["body"]["code"], code, "{body}");
        assert_eq!((&answer["dest"], &answer["body"]["in_reply_to"]), (&"cs1".into(), &7.into()));
        assert_eq!(talk.status().to_string(), "[]", "{body}");
    }
    let again = talk.say(r#"{"src": "c0", "dest": "n1", "body": {"type": "init"}}"#);
    assert_eq!(again["body"]["code"], "initialised_already");
}

#[test]
fn a_replay_tells_when_who_died_and_who_was_to_copy() {
    let mut lines =
        vec![r#"{"src":"r","dest":"m","at_ms":1000,"body":{"type":"init"}}"#.to_owned()];
    for ms in (1_000..=60_000).step_by(5_000) {
        for server in ["cs-1", "cs-2", "cs-3", "cs-4"] {
            if server == "cs-3" && 20_000 < ms {
                continue;
            }
            let chunks = if server == "cs-4" { "[]" } else { r#"[{"handle":"7","version":1}]"# };
            let full = ms == 1_000;
            let chunks = if full { chunks } else { "[]" };
            lines.push(format!(
                r#"{{"src":"{server}","dest":"m","at_ms":{ms},"body":{{"type":"heartbeat","full":{full},"chunks":{chunks}}}}}"#
            ));
        }
    }
    let mut told = Vec::new();
    let tell = |ms, text: &str| told.push(format!("{ms} {text}"));
    let replayed =
        replay(SETTINGS, lines.iter().map(|line| Ok(line.clone().into_bytes())), tell).unwrap();
    assert_eq!(replayed.messages, lines.len() as u64);
    let dead: Vec<_> = told.iter().filter(|line| line.contains("dead")).collect();
    assert_eq!(dead, ["31500 cs-3 dead: silent for 15.5 s"], "{told:?}");
    let fetch: Vec<_> = told.iter().filter(|line| line.contains("fetch")).collect();
    assert_eq!(fetch, ["36000 cs-4 is to fetch 7"], "told each time, noted once");
    let cut = lines.iter().map(|line| Ok(line.replace("\"at_ms\":1000,", "").into_bytes()));
    let error = replay(SETTINGS, cut, |_, _| {}).unwrap_err();
    assert_eq!(format!("{error:#}"), "line 1: at_ms is missing");
    let advance = r#"{"src":"r","dest":"m","at_ms":1,"body":{"type":"advance","ms":5}}"#;
    let error = replay(SETTINGS, [Ok(advance.into())].into_iter(), |_, _| {}).unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("line 1: advance belongs to") && !said.contains("unknown"), "{said}");
}

const FIVE: [&str; 5] = ["cs1", "cs2", "cs3", "cs4", "cs5"];

/// A round of heartbeats each 5 s of those of `FIVE` that are in `up`, in `times`: who was told to fetch what, and when.
fn rounds(
    talk: &mut Talk,
    times: std::ops::RangeInclusive<u64>,
    up: &[&str],
    held: impl Fn(&str) -> &'static str,
) -> Vec<(u64, String)> {
    let mut told = Vec::new();
    for ms in times.step_by(5_000) {
        for server in up {
            let answer = talk.at(ms).beat(server, held(server));
            let list = answer.get("chunks_to_replicate").and_then(|list| list.as_array().cloned());
            told.extend(list.into_iter().flatten().map(|chunk| (ms, chunk.to_string())));
        }
    }
    told
}

#[test]
fn two_dead_of_five_are_waited_for_as_long_as_the_master_does_and_a_last_copy_is_not() {
    let mut talk = Talk::begin();
    // Of `x` two copies are left, of `y` one.
    let held = |server: &str| match server {
        "cs1" | "cs3" => r#"["x", "y"]"#,
        "cs2" => r#"["y"]"#,
        "cs4" => r#"["x"]"#,
        _ => "[]",
    };
    assert_eq!(rounds(&mut talk, 0..=20_000, &FIVE, held), []);
    // The last heartbeats of cs1 and cs2 came after 20 s: dead after 35 s.
    let living = &FIVE[2..];
    let told = rounds(&mut talk, 25_000..=615_000, living, held);
    let (first, _) = told.first().unwrap();
    assert!((35_000..=40_000).contains(first), "{told:?}");
    assert!(told.iter().all(|(_, chunk)| chunk == "\"y\""), "{told:?}");
    // Ten times the longer of the rebuild delay (60 s) and dead-after (15 s).
    let told = rounds(&mut talk, 620_000..=630_000, living, held);
    assert!(told.iter().any(|(ms, chunk)| *ms <= 625_000 && chunk == "\"x\""), "{told:?}");
}

#[test]
fn a_replay_waits_for_the_rebuild_delay_unless_one_copy_is_left() {
    // Of `x` two copies are left, of `y` one.
    let held = |server: &str| match server {
        "cs1" => r#"["x", "y"]"#,
        "cs2" => r#"["x", "y"]"#,
        "cs3" => r#"["x"]"#,
        _ => "[]",
    };
    for delay_ms in [60_000, 0] {
        let settings = Settings { rebuild_delay_ms: delay_ms, ..SETTINGS };
        let mut talk = Talk::begin_with(settings);
        let of = |told: &[(u64, String)], chunk| {
            told.iter().find(|(_, given)| given == chunk).map(|(ms, _)| *ms)
        };
        // `y` never had a third copy, and is given one after the delay.
        let told = rounds(&mut talk, 0..=20_000, &FIVE[..4], held);
        assert_eq!(of(&told, "\"y\"").is_some(), delay_ms == 0, "{told:?}");
        // Dead after 35 s, back after 60 s: nothing is copied for it.
        let told = rounds(&mut talk, 25_000..=55_000, &FIVE[1..4], held);
        assert_eq!(of(&told, "\"x\"").is_some(), delay_ms == 0, "{told:?}");
        assert!(of(&told, "\"y\"").is_some(), "its last copy: {told:?}");
        if delay_ms == 0 {
            continue;
        }
        let told = rounds(&mut talk, 60_000..=80_000, &FIVE[..4], held);
        assert_eq!(of(&told, "\"x\""), None, "{told:?}");
        let told = rounds(&mut talk, 85_000..=200_000, &FIVE[1..4], held);
        let given = of(&told, "\"x\"").unwrap();
        assert!((155_000..=160_000).contains(&given), "dead after 95 s: {told:?}");
    }
}

#[test]
fn who_has_an_older_copy_fetches_the_present_one_if_no_other_can() {
    let mut talk = Talk::begin();
    let old = r#"[{"handle": "x", "version": 1}]"#;
    let new = r#"[{"handle": "x", "version": 2}]"#;
    for server in ["cs1", "cs2", "cs3"] {
        talk.beat(server, old);
    }
    talk.at(16_000).beat("cs1", new);
    talk.beat("cs2", new);
    for ms in [16_000, 21_000] {
        talk.at(ms).beat("cs1", new);
        talk.beat("cs2", new);
        let answer = talk.beat("cs3", old);
        assert_eq!(answer["chunks_to_replicate"].to_string(), r#"["x"]"#, "{answer}");
        assert_eq!(answer["sources"]["x"].to_string(), r#"["cs1","cs2"]"#);
        assert_eq!(answer.get("chunks_to_delete"), None, "{answer}");
    }
    assert_eq!(talk.beat("cs3", new).get("chunks_to_replicate"), None);

    // One without any copy is better.
    let mut talk = Talk::begin();
    for server in ["cs1", "cs2", "cs3"] {
        talk.beat(server, old);
    }
    talk.at(14_000).beat("cs3", old);
    talk.beat("cs4", "[]");
    talk.at(16_000).beat("cs1", new);
    talk.beat("cs2", new);
    assert_eq!(talk.beat("cs3", old).get("chunks_to_replicate"), None);
    assert_eq!(talk.beat("cs4", "[]")["chunks_to_replicate"].to_string(), r#"["x"]"#);
    // It has not come, and another did: whoever was to fetch it is not told to any more.
    assert_eq!(talk.beat("cs5", new).get("chunks_to_delete"), None);
    assert_eq!(talk.beat("cs4", "[]").get("chunks_to_replicate"), None);
    assert_eq!(talk.beat("cs3", old)["chunks_to_delete"].to_string(), r#"["x"]"#);
}

/// What a replay of the file at `path` makes of it.
fn replayed(path: &Path) -> anyhow::Result<Replayed> {
    let bytes = std::fs::read(path).unwrap();
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| Ok(line.to_vec()));
    replay(SETTINGS, lines, |_, _| {})
}

#[test]
fn a_recording_that_was_cut_goes_on_behind_its_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heartbeats.jsonl");
    let beat = dfs_proto::control::HeartbeatRequest {
        server: "cs-1".to_owned(),
        full_inventory: true,
        // A line longer than what is read at once.
        replicas: (1..5_000)
            .map(|chunk| dfs_proto::control::ReplicaReport { chunk, version: 1, ..<_>::default() })
            .collect(),
        ..<_>::default()
    };
    let recorder = Recorder::open(&path, 1_000).unwrap();
    recorder.heartbeat(2_000, &beat);
    let whole = std::fs::read(&path).unwrap();
    recorder.heartbeat(3_000, &beat);
    drop(recorder);
    let all = std::fs::read(&path).unwrap();
    // In the middle of the last line, and just before its end.
    for cut in [whole.len() + 1, whole.len() + 100_000, all.len() - 1] {
        std::fs::write(&path, &all[..cut]).unwrap();
        drop(Recorder::open(&path, 4_000).unwrap());
        let now = std::fs::read(&path).unwrap();
        assert!(now.starts_with(&whole), "{cut}: what was whole stays");
        let init = String::from_utf8_lossy(&now[whole.len()..]).into_owned();
        assert!(init.starts_with('{') && init.lines().count() == 1, "{cut}: {init}");
        assert_eq!(replayed(&path).unwrap().messages, 3, "{cut}");
    }
    // Nothing to cut.
    std::fs::write(&path, &all).unwrap();
    drop(Recorder::open(&path, 4_000).unwrap());
    assert!(std::fs::read(&path).unwrap().starts_with(&all));
    assert_eq!(replayed(&path).unwrap().messages, 4);
}

#[test]
fn a_file_that_is_no_recording_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    for (text, expected) in [
        ("buy milk\nand bread", "not a message"),
        ("\n", "not a message"),
        (r#"{"src": "c0", "dest": "n1", "body": {"type": "init"}}"#, "at_ms is missing"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Recorder::open(&path, 1_000).unwrap_err().to_string();
        assert!(error.contains("no recording") && error.contains(expected), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    std::fs::write(&path, "").unwrap();
    drop(Recorder::open(&path, 1_000).unwrap());
    assert_eq!(replayed(&path).unwrap().messages, 1);
}
