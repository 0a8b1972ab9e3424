//! The commands that work without a mount, and what they print for programs.

use std::process::Command;

use tests::{Cluster, Options, PATIENCE, dfs_program, run, stdout_of, wait_until};

use crate::{check_bytes, need_fuse, pattern};

#[test]
fn help_completions_and_manual_come_from_the_program() {
    for arguments in [
        vec!["--help"],
        vec!["up", "--help"],
        vec!["completions", "bash"],
        vec!["man"],
        vec!["--version"],
    ] {
        let output = run(Command::new(dfs_program()).args(&arguments), PATIENCE);
        assert!(!stdout_of(&output).is_empty(), "dfs {arguments:?}");
    }
    let temp = tempfile::tempdir().unwrap();
    stdout_of(&run(Command::new(dfs_program()).arg("man").arg(temp.path()), PATIENCE));
    for page in ["dfs.1", "dfs-up.1", "dfs-put.1"] {
        assert!(temp.path().join(page).is_file(), "{page}");
    }
    // A directory is made and said to be, its parents are not.
    let man =
        |dir: &std::path::Path| run(Command::new(dfs_program()).arg("man").arg(dir), PATIENCE);
    let new = temp.path().join("new");
    assert!(stdout_of(&man(&new)).contains("a new directory"));
    assert!(new.join("dfs-up.1").is_file() && !stdout_of(&man(&new)).contains("a new directory"));
    for (dir, why) in [("a/b", "does not exist"), ("dfs.1", "not a directory")] {
        let refused = man(&temp.path().join(dir));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(why), "{said}");
        assert!(said.contains(dir) && said.lines().count() == 1, "{said}");
    }
    assert!(!temp.path().join("a").exists());
}

/// A `dfs events -f`, which ends when this is dropped.
struct Following {
    child: std::process::Child,
    /// Standard error.
    said: std::path::PathBuf,
}

impl Following {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let (said, shown) =
            (cluster.scratch().join("events.err"), cluster.scratch().join("events.out"));
        let child = cluster
            .command([&["events", "-f"], arguments].concat())
            .stdout(std::fs::File::create(&shown).unwrap())
            .stderr(std::fs::File::create(&said).unwrap())
            .spawn()
            .unwrap();
        wait_until("events are shown", || shown.metadata().unwrap().len() != 0);
        Self { child, said }
    }

    fn lines_with(&self, word: &str) -> usize {
        let said = std::fs::read_to_string(&self.said).unwrap();
        said.lines().filter(|line| line.contains(word)).count()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn whoever_follows_events_is_told_once_that_the_master_is_away_and_that_it_is_back() {
    need_fuse!();
    let cluster = Cluster::start();
    let following = Following::start(&cluster, &["--server-wait", "1s"]);
    let master = cluster.pid("master").unwrap();
    const AWAY: &str = "trying until it answers";
    const BACK: &str = "answers again";
    // What a busy machine made it say before does not matter.
    let mut earlier = 0;
    for _ in 0..2 {
        tests::signal(master, rustix::process::Signal::STOP);
        wait_until("it says that the master is away", || earlier < following.lines_with(AWAY));
        // For two attempts more.
        std::thread::sleep(std::time::Duration::from_secs(5));
        let (away, back) = (following.lines_with(AWAY), following.lines_with(BACK));
        tests::signal(master, rustix::process::Signal::CONT);
        assert_eq!(away, back + 1, "one line for each time");
        wait_until("it says that the master is back", || back < following.lines_with(BACK));
        earlier = following.lines_with(AWAY);
    }
}

#[test]
fn files_go_in_and_out_without_a_mount() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(5 << 20, 1);
    let local = cluster.scratch().join("local");
    std::fs::write(&local, &content).unwrap();
    let local = local.to_str().unwrap();

    cluster.dfs(["mkdir", "/d"]);
    cluster.dfs(["put", local, "/d/file"]);
    cluster.dfs(["put", local, "/d/"]);
    assert_eq!(cluster.dfs(["ls", "/d"]), "file\nlocal\n");

    let back = cluster.scratch().join("back");
    cluster.dfs(["get", "/d/file", back.to_str().unwrap()]);
    check_bytes("get", &std::fs::read(&back).unwrap(), &content);
    check_bytes("cat", &cluster.try_dfs(["cat", "/d/file"]).stdout, &content);
    // The mount shows the same.
    check_bytes("mount", &std::fs::read(cluster.mount().join("d/local")).unwrap(), &content);

    cluster.dfs_fed(["put", "-", "/small"], b"a few bytes");
    assert_eq!(cluster.dfs(["get", "/small", "-"]), "a few bytes");
    // What is no plain file stays what it is: root must not lose /dev/null.
    let link = cluster.scratch().join("null");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    cluster.dfs(["get", "/small", link.to_str().unwrap()]);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    assert!(cluster.dfs(["locate", "/small"]).contains("inline"));
    // Replacing makes it shorter.
    cluster.dfs_fed(["put", "-", "/d/file"], b"short");
    assert_eq!(cluster.dfs(["cat", "/d/file"]), "short");

    cluster.dfs(["mv", "/d/file", "/d/moved"]);
    cluster.dfs(["mv", "/d/moved", "/"]);
    assert_eq!(cluster.dfs(["ls", "/"]), "d\nmoved\nsmall\n");
    assert_eq!(cluster.dfs(["cat", "/moved"]), "short");

    let refused = cluster.try_dfs(["rm", "/d"]);
    assert_eq!(refused.status.code(), Some(1));
    cluster.dfs(["rm", "-r", "/d"]);
    cluster.dfs(["rm", "/moved", "/small"]);
    cluster.dfs(["rm", "-f", "/moved"]);
    assert_eq!(cluster.dfs(["ls", "/"]), "");
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn appends_print_the_offset_they_got() {
    need_fuse!();
    let cluster = Cluster::start();
    assert_eq!(cluster.dfs_fed(["append", "/log"], b"one\n"), "0\n");
    assert_eq!(cluster.dfs_fed(["append", "/log"], b"two\n"), "4\n");
    let big = pattern(100_000, 1);
    assert_eq!(cluster.dfs_fed(["append", "/log"], &big), "8\n");
    let json = cluster.dfs_fed(["append", "-o", "json", "/log"], b"end");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["offset"], 100_008);
    let expected = [b"one\ntwo\n".as_slice(), &big, b"end"].concat();
    // Of nothing: the file is made as for anything else, and its size told.
    assert_eq!(cluster.dfs_fed(["append", "/log"], b""), "100011\n");
    assert_eq!(cluster.dfs_fed(["append", "/empty"], b""), "0\n");
    assert_eq!(cluster.dfs(["ls", "/"]), "empty\nlog\n");
    let nowhere = cluster.try_dfs(["append", "/no/log"]);
    assert_eq!(nowhere.status.code(), Some(1), "its directory is not made");
    check_bytes("log", &cluster.try_dfs(["cat", "/log"]).stdout, &expected);
}

#[test]
fn an_append_is_one_record_or_refused_whole() {
    need_fuse!();
    let cluster = Cluster::start();
    // A quarter of it is the longest record.
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/small"]);
    let record = |seed| pattern(16 << 10, seed);
    let refuse = |path: &str, len: usize, limit: &str| {
        let mut append = cluster.command(["append", path]);
        let refused = tests::run_with_input(&mut append, &pattern(len, 9), PATIENCE);
        assert_eq!(refused.status.code(), Some(1), "{path} {len}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(limit) && said.contains("append in parts"), "{said}");
    };
    refuse("/small/log", (16 << 10) + 1, "16384 bytes");
    assert_eq!(cluster.dfs(["ls", "/small"]), "", "nothing was written");
    refuse("/log", (4 << 20) + 1, "4194304 bytes");
    let mut expected = b"begin".to_vec();
    assert_eq!(cluster.dfs_fed(["append", "/small/log"], &expected), "0\n");
    // The fourth crosses the end of the first chunk: still one record at one offset.
    for seed in 0..6 {
        let at = cluster.dfs_fed(["append", "/small/log"], &record(seed));
        assert_eq!(at, format!("{}\n", expected.len()));
        expected.extend(record(seed));
    }
    refuse("/small/log", 70_000, "16384 bytes");
    check_bytes("log", &cluster.try_dfs(["cat", "/small/log"]).stdout, &expected);
    check_bytes("mount", &std::fs::read(cluster.mount().join("small/log")).unwrap(), &expected);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn json_has_the_same_facts_as_the_tables() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.dfs(["mkdir", "--chunk-size", "1MiB", "/m"]);
    cluster.dfs_fed(["put", "-", "/m/f"], &pattern(2_500_000, 1));

    let listing = cluster.dfs_json(["ls", "-l", "/m"]);
    assert_eq!(listing["entries"][0]["name"], "f");
    assert_eq!(listing["entries"][0]["size"], 2_500_000);
    let stat = cluster.dfs_json(["stat", "/m/f", "/m"]);
    assert_eq!((&stat[0]["kind"], &stat[1]["kind"]), (&"file".into(), &"directory".into()));
    assert_eq!(stat[0]["chunkSize"], 1 << 20);
    // 2.5 MB in chunks of 1 MiB.
    let located = cluster.dfs_json(["locate", "/m/f"]);
    let indexes: Vec<_> = located["chunks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indexes, [0, 1, 2]);

    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3);
    for server in servers {
        for key in
            ["id", "state", "address", "chunks", "usedBytes", "freeBytes", "lastHeartbeatMsAgo"]
        {
            assert!(server.get(key).is_some(), "servers[].{key} in {status}");
        }
        assert_eq!(server["state"], "alive");
        assert!(0 < server["freeBytes"].as_u64().unwrap(), "{status}");
    }
    for key in ["total", "safe", "degraded", "endangered", "unavailable", "lost"] {
        assert!(status["chunks"][key].is_u64(), "chunks.{key} in {status}");
    }
    assert_eq!((&status["chunks"]["total"], &status["chunks"]["safe"]), (&3.into(), &3.into()));
}

#[test]
fn one_bad_argument_does_not_stop_the_others() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let check = |arguments: &[&str], bad: &str, printed: &str| {
        let output = cluster.try_dfs(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().count() == 1 && said.starts_with("dfs: "), "{said}");
        assert!(said.contains(bad), "{said}");
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(found.contains(printed), "{found}");
    };
    check(&["mkdir", "/no/such", "/a", "/b"], "/no", "");
    assert_eq!(cluster.dfs(["ls", "/"]), "a\nb\n");
    check(&["stat", "/nothing", "/b"], "/nothing", "path      /b");
    cluster.dfs_fed(["put", "-", "/c"], b"text");
    check(&["cat", "/nothing", "/c"], "/nothing", "text");
    check(&["rm", "/a", "/c"], "/a", "");
    assert_eq!(cluster.dfs(["ls", "/"]), "a\nb\n");
    check(&["rm", "-r", "/a/../b", "/b"], "..", "");
    assert_eq!(cluster.dfs(["ls", "/"]), "a\n");
}

#[test]
fn names_cannot_write_on_the_terminal() {
    use std::os::unix::ffi::OsStrExt as _;

    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    for name in [b"a\x1b[31m\n".as_slice(), b"b\xff"] {
        std::fs::write(cluster.mount().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    assert_eq!(cluster.dfs(["ls", "/"]), "a\\x1b[31m\\n\nb\\xff\n");
    assert!(cluster.dfs(["ls", "-l", "/"]).contains("a\\x1b[31m\\n\n"));
    assert!(cluster.dfs(["stat", "/a\x1b[31m\n"]).contains("/a\\x1b[31m\\n\n"));
    let refused = cluster.try_dfs(["cat", "/a\x1b[31m\n/x"]);
    assert!(!refused.stderr.contains(&0x1b) && refused.status.code() == Some(1), "{refused:?}");
    let json = cluster.dfs_json(["ls", "/"]);
    assert_eq!(json["entries"][0]["name"], "a\x1b[31m\n");
    assert_eq!(json["entries"][0].get("nameHex"), None);
    assert_eq!(json["entries"][1]["nameHex"], "62ff");
    let path = std::ffi::OsStr::from_bytes(b"/b\xff");
    for name in ["ls", "stat", "locate", "explain"] {
        let output = cluster.command([name, "-o", "json"]).arg(path).output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = if json.is_array() { &json[0] } else { &json };
        assert_eq!(found["pathHex"], "2f62ff", "{name}: {json}");
    }
    assert_eq!(cluster.dfs_json(["ls", "/"]).get("pathHex"), None);
}

#[test]
fn flags_win_over_the_environment() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.dfs(["mkdir", "/here"]);
    let mut command = Command::new(dfs_program());
    command
        .args(["ls", "/", "--dir"])
        .arg(cluster.dir())
        .env("DFS_MASTER", "127.0.0.1:1")
        .env("DFS_DIR", "/nowhere");
    assert_eq!(stdout_of(&run(&mut command, PATIENCE)), "here\n");
    let mut command = Command::new(dfs_program());
    command
        .args(["ls", "/"])
        .env_remove("DFS_DIR")
        .env("DFS_MASTER", cluster.master_address())
        .env("DFS_KEY_FILE", cluster.dir().join("cluster.key"));
    assert_eq!(stdout_of(&run(&mut command, PATIENCE)), "here\n");
}

#[test]
fn an_evicted_mount_loses_its_locks_and_says_so() {
    use rustix::fs::{FlockOperation, flock};

    need_fuse!();
    let mut cluster = Cluster::start();
    let second = cluster.mount_with("second", &["--server-wait", "5s"]);
    let open = |root: &std::path::Path| {
        std::fs::OpenOptions::new().create(true).append(true).open(root.join("locked")).unwrap()
    };
    let (here, there) = (open(cluster.mount().as_path()), open(&second));
    flock(&there, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(flock(&here, FlockOperation::NonBlockingLockExclusive).is_err());

    let status = cluster.dfs_json(["status"]);
    let mounts = status["mounts"].as_array().unwrap();
    let of = |path: &std::path::Path| {
        let named = |mount: &&serde_json::Value| {
            mount["name"].as_str().unwrap().contains(path.to_str().unwrap())
        };
        mounts.iter().find(named).unwrap_or_else(|| panic!("{} in {status}", path.display()))
    };
    let id = of(&second)["id"].as_str().unwrap();
    let unknown = cluster.try_dfs(["mount", "evict", &"0".repeat(31)]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let unknown = cluster.try_dfs(["mount", "evict", &"0".repeat(32)]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    cluster.dfs(["mount", "evict", id]);
    wait_until("the lock is free", || {
        flock(&here, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    use std::io::Write as _;
    let refused = (&there).write_all(b"too late").and_then(|()| there.sync_all());
    assert!(refused.is_err(), "an evicted mount may not write");
    let logs = cluster.logs();
    let said = logs.lines().filter(|line| line.contains("the master ended this client"));
    let said: Vec<_> = said.collect();
    assert!(matches!(said[..], [line] if line.contains("#a-client-is-silent")), "{said:?}\n{logs}");
    (&here).write_all(b"in time").unwrap();
    assert_eq!(std::fs::read(cluster.mount().join("locked")).unwrap(), b"in time");
}
