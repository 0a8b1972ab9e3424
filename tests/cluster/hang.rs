//! Chunkservers that hang: stopped, with their connections open.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Options, wait_until};

use crate::{check_bytes, check_content, need_fuse, pattern};

fn primary_of(cluster: &Cluster, path: &str) -> String {
    let located = cluster.dfs_json(["locate", path]);
    let chunk = &located["chunks"][0];
    chunk["primary"].as_str().unwrap_or_else(|| panic!("primary in {located}")).to_owned()
}

fn check_goes_on(profile: &'static str) {
    let cluster = Cluster::start_with(Options { profile, ..Options::default() });
    let path = cluster.mount().join("f");
    let mut expected = pattern(2 << 20, 1);
    let mut file = File::create(&path).unwrap();
    file.write_all(&expected).unwrap();
    file.sync_all().unwrap();
    let primary = primary_of(&cluster, "/f");
    let pid = cluster.pid(&primary).unwrap();
    tests::signal(pid, Signal::STOP);
    // More than fits on the way: the writer itself is stuck in a send.
    let more = pattern(24 << 20, 2);
    let began = Instant::now();
    file.write_all(&more).unwrap();
    file.sync_all().unwrap();
    let took = began.elapsed();
    tests::signal(pid, Signal::CONT);
    // For people: docs/semantics.md has the figures.
    eprintln!("write and fsync with {primary} stopped, {profile}: {took:?}");
    expected.extend(more);
    file.write_all(b"end").unwrap();
    file.sync_all().unwrap();
    expected.extend(b"end");
    wait_until("all chunks are safe again", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"] && chunks["total"] != 0
    });
    check_content(&path, &expected);
    let second = cluster.scratch().join("second");
    cluster.dfs(["get", "/f", second.to_str().unwrap()]);
    check_content(&second, &expected);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn writes_go_on_without_a_primary_that_hangs() {
    need_fuse!();
    check_goes_on("drill");
}

#[test]
fn writes_go_on_before_heartbeats_are_missed() {
    need_fuse!();
    check_goes_on("standard");
}

/// All its threads: until then it may answer.
fn has_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// What a master slept through says nothing about servers, that their connections gave up neither.
#[test]
fn a_master_that_was_stopped_calls_no_server_suspect_or_dead() {
    need_fuse!();
    let cluster = Cluster::start();
    let mut file = File::create(cluster.mount().join("f")).unwrap();
    let master = cluster.pid("master").unwrap();
    let said = || {
        let text = cluster.dfs(["events", "-n", "0", "-o", "json"]);
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let events: Vec<serde_json::Value> = events.collect();
        events
    };
    wait_until("all are alive", || {
        let status = cluster.dfs_json(["status"]);
        status["servers"].as_array().unwrap().iter().all(|it| it["state"] == "alive")
    });
    // An event follows its state.
    wait_until("that is told", || {
        let told = said();
        let alive =
            |server: &str| told.iter().any(|it| it["kind"] == "alive" && it["server"] == server);
        ["cs-1", "cs-2", "cs-3"].into_iter().all(alive)
    });
    let before = said().len();
    // Less than it takes to be dead; more; and so much that servers have given their connections up.
    for millis in [2_000, 3_500, 8_000] {
        tests::signal(master, Signal::STOP);
        wait_until("it has stopped", || has_stopped(master));
        std::thread::sleep(Duration::from_millis(millis));
        tests::signal(master, Signal::CONT);
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let status = cluster.dfs_json(["status"]);
            for server in status["servers"].as_array().unwrap() {
                assert_eq!(server["state"], "alive", "after {millis} ms: {status}");
            }
            file.write_all(b"on").unwrap();
            file.sync_all().unwrap();
        }
    }
    let new = said().split_off(before);
    let bad: Vec<_> = new.iter().filter(|it| it["kind"] != "reconfigured").collect();
    assert!(bad.is_empty(), "{bad:?}");
    // It has not lost its sight.
    cluster.kill("cs-2");
    wait_until("a server that is dead is found dead", || {
        said().iter().any(|it| it["kind"] == "dead" && it["server"] == "cs-2")
    });
}

/// What is waited for is said in one line: a directory of files whose servers hang costs one wait, not one each.
#[test]
fn sizes_of_many_files_being_written_are_waited_for_once() {
    need_fuse!();
    const FILES: usize = 6;
    let mut cluster = Cluster::start_with(Options { profile: "standard", ..Options::default() });
    let dir = cluster.mount().join("d");
    std::fs::create_dir(&dir).unwrap();
    let name = |number: usize| format!("f{number}");
    let mut open = Vec::new();
    for number in 0..FILES {
        let mut file = File::create(dir.join(name(number))).unwrap();
        file.write_all(&pattern(300_000, 1)).unwrap();
        file.sync_all().unwrap();
        open.push(file);
    }
    let second = cluster.mount_again("second").join("d");
    let log = cluster.scratch().join("second.log");
    let waits = || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().filter(|line| line.contains("no server of the last chunk")).count()
    };
    let look_at_all = || {
        let len = |number| second.join(name(number)).metadata().unwrap().len();
        let lens: Vec<u64> = (0..FILES).map(len).collect();
        assert_eq!(lens, [300_000; FILES], "what was committed is seen");
    };
    let servers = ["cs-1", "cs-2", "cs-3"].map(|id| cluster.pid(id).unwrap());
    servers.iter().for_each(|pid| tests::signal(*pid, Signal::STOP));
    wait_until("they have stopped", || servers.iter().all(|pid| has_stopped(*pid)));
    open.iter_mut().for_each(|file| file.write_all(b"more").unwrap());
    // Until the master knows that they are being written.
    wait_until("somebody waits for them", || {
        look_at_all();
        0 < waits()
    });
    look_at_all();
    // A machine that is slow enough may come to the next wait, half a minute later.
    let waits = waits();
    servers.iter().for_each(|pid| tests::signal(*pid, Signal::CONT));
    assert!((1..=2).contains(&waits), "{waits} waits");
    wait_until("its writer can go on", || open.iter().all(|file| file.sync_all().is_ok()));
}

/// Whoever writes while nothing is mounted writes to the directory under the mount, and believes that it is safe.
#[test]
fn a_killed_mounts_directory_is_not_bare_while_the_next_one_waits_for_the_master() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { profile: "drill", ..Options::default() });
    let at = cluster.mount();
    std::fs::write(at.join("before"), b"x").unwrap();
    let master = cluster.pid("master").unwrap();
    tests::signal(master, Signal::STOP);
    cluster.kill("mount");
    let mut next = Command::new(tests::dfs_program())
        .args(["mount", "--dir", cluster.dir().to_str().unwrap(), at.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let written = std::fs::write(at.join("lost"), b"x").map_err(|error| error.raw_os_error());
        assert_eq!(
            written,
            Err(Some(rustix::io::Errno::NOTCONN.raw_os_error())),
            "after {:?}",
            began.elapsed()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    tests::signal(master, Signal::CONT);
    wait_until("it is mounted again", || at.join("before").exists());
    std::fs::write(at.join("after"), b"y").unwrap();
    cluster.dfs(["cat", "/after"]);
    assert!(!at.join("lost").exists());
    tests::signal(next.id(), Signal::TERM);
    next.wait().unwrap();
    assert!(std::fs::read_dir(&at).unwrap().next().is_none(), "nothing lies under the mount");
}

/// A mount at `path` whose end somebody waits for; what it says goes to `second.log`.
fn second_mount(cluster: &Cluster, path: &Path, flags: &[&str]) -> Child {
    let mount = cluster
        .command(["mount", path.to_str().unwrap()].iter().chain(flags))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(cluster.scratch().join("second.log")).unwrap())
        .spawn()
        .unwrap();
    wait_until("it is mounted", || tests::is_mounted(path));
    mount
}

#[test]
fn what_a_program_wrote_until_its_mount_was_stopped_is_sent() {
    need_fuse!();
    const RECORD: usize = 4_500;
    let cluster = Cluster::start_with(Options::default());
    let path = cluster.scratch().join("second");
    std::fs::create_dir(&path).unwrap();
    // Which request is the last one is a matter of luck.
    for round in 0..6 {
        let mut mount = second_mount(&cluster, &path, &[]);
        let name = format!("f{round}");
        let mut file = File::options()
            .create(true)
            .write(true)
            .append(round == 5)
            .open(path.join(&name))
            .unwrap();
        let written = std::thread::spawn(move || {
            let mut records = 0;
            loop {
                match file.write(&pattern(RECORD, records)) {
                    Ok(RECORD) => records += 1,
                    // Its last part was refused.
                    Ok(_) => return (records, None),
                    Err(error) => return (records, error.raw_os_error()),
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        tests::signal(mount.id(), Signal::TERM);
        let status = mount.wait().unwrap();
        let (records, error) = written.join().unwrap();
        let log = std::fs::read_to_string(cluster.scratch().join("second.log")).unwrap();
        assert!(status.success(), "{log}");
        if let Some(code) = error {
            assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&code), "{code}");
        }
        let found = std::fs::read(cluster.mount().join(&name)).unwrap();
        let expected: Vec<u8> = (0..records).flat_map(|n| pattern(RECORD, n)).collect();
        assert!(100 < records, "{records}");
        // What was not answered may be there, or not.
        let len = found.len().min(expected.len());
        check_bytes(&name, &found[..len], &expected);
    }
}

#[test]
fn who_writes_does_not_wait_for_another_descriptor_that_is_closed_while_servers_hang() {
    need_fuse!();
    let cluster = Cluster::start();
    let mut file = File::create(cluster.mount().join("f")).unwrap();
    let mut expected = pattern(200_000, 1);
    file.write_all(&expected).unwrap();
    for server in ["cs-1", "cs-2", "cs-3"] {
        tests::signal(cluster.pid(server).unwrap(), Signal::STOP);
    }
    let inherited = file.try_clone().unwrap();
    let closing = std::thread::spawn(move || drop(inherited));
    // Until its flush waits.
    std::thread::sleep(Duration::from_millis(200));
    let more = pattern(200_000, 2);
    let written = file.write_all(&more);
    let closed_before = closing.is_finished();
    for server in ["cs-1", "cs-2", "cs-3"] {
        tests::signal(cluster.pid(server).unwrap(), Signal::CONT);
    }
    closing.join().unwrap();
    written.unwrap();
    assert!(!closed_before, "a close waits until what was written is stable");
    file.sync_all().unwrap();
    expected.extend(more);
    check_content(&cluster.mount().join("f"), &expected);
}

#[test]
fn a_mount_that_is_stopped_while_nothing_answers_gives_up_all_together() {
    need_fuse!();
    const WAIT: Duration = Duration::from_secs(8);
    let cluster = Cluster::start_with(Options { restart: "never", ..Options::default() });
    let path = cluster.scratch().join("second");
    std::fs::create_dir(&path).unwrap();
    let mut mount = second_mount(&cluster, &path, &["--server-wait", "8s"]);
    let mut files: Vec<File> =
        (0..3).map(|n| File::create(path.join(format!("f{n}"))).unwrap()).collect();
    for file in &mut files {
        file.write_all(&pattern(200_000, 1)).unwrap();
    }
    // In this order: a write may ask the master for attributes first, and would wait for it.
    let servers = ["cs-1", "cs-2", "cs-3"];
    for server in servers {
        tests::signal(cluster.pid(server).unwrap(), Signal::STOP);
    }
    for file in &mut files {
        file.write_all(&pattern(200_000, 2)).unwrap();
    }
    for role in ["master"].into_iter().chain(servers) {
        cluster.kill(role);
    }
    let began = Instant::now();
    tests::signal(mount.id(), Signal::TERM);
    let status = mount.wait().unwrap();
    let took = began.elapsed();
    drop(files);
    let log = std::fs::read_to_string(cluster.scratch().join("second.log")).unwrap();
    assert!(!status.success(), "bytes were given up: {log}");
    // Three files, each flushed, closed and committed: one after the other it was several times as long.
    assert!(took < 4 * WAIT, "{took:?}: {log}");
    assert!(!tests::is_mounted(&path), "{log}");
}
