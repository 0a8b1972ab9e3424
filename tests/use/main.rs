//! The mount as people use it: unpack, build and test a project, keep a database, clone a repository, lose a server.
//!
//! With `DFS_USE_KILL_MS` the mount is a held one, and its client is killed again and again, so many milliseconds apart.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use tests::{Cluster, Options, setting, signal};

const LONG: Duration = Duration::from_secs(900);

/// Runs a command that must succeed.
#[track_caller]
fn must(command: &mut Command) -> String {
    let output = tests::run(command, LONG);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A cluster, and who kills its client, if asked for.
struct Used {
    cluster: Cluster,
    killer: Option<(Arc<AtomicBool>, JoinHandle<u32>)>,
}

impl Used {
    fn start() -> Self {
        let pause = setting("DFS_USE_KILL_MS", 0);
        if pause == 0 {
            return Self { cluster: Cluster::start(), killer: None };
        }
        let cluster = Cluster::start_with(Options { timing: &["--hold"], ..Options::default() });
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pid) = (Arc::clone(&stop), cluster.dir().join("run/mount.pid"));
        let kill = move || {
            let mut kills = 0;
            while !stopped.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(pause));
                let client = fs::read_to_string(&pid).ok().and_then(|pid| pid.trim().parse().ok());
                if let Some(client) = client {
                    signal(client, Signal::KILL);
                    kills += 1;
                }
            }
            kills
        };
        Self { cluster, killer: Some((stop, std::thread::spawn(kill))) }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        if let Some((stop, killer)) = self.killer.take() {
            stop.store(true, Ordering::Release);
            println!("the client was killed {} times", killer.join().unwrap_or(0));
        }
    }
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// CRC32C and length of every file below `root`, by relative path.
fn sums(root: &Path) -> BTreeMap<PathBuf, (u64, u32)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap();
                found.insert(
                    path.strip_prefix(root).unwrap().to_path_buf(),
                    (bytes.len() as u64, crc32c::crc32c(&bytes)),
                );
            }
        }
    }
    found
}

/// A Rust project with all its dependencies beside it: this repository's core and the crates it needs, as sources.
fn make_project(at: &Path) {
    let repository = tests::repository();
    fs::create_dir_all(at).unwrap();
    for part in ["dfs-core", "dfs-service"] {
        must(Command::new("cp").arg("-a").arg(repository.join(part)).arg(at));
    }
    let manifest = fs::read_to_string(repository.join("Cargo.toml")).unwrap();
    let start = manifest.find("members = [").unwrap();
    let end = start + manifest[start..].find(']').unwrap() + 1;
    let manifest = format!(
        "{}members = [\"dfs-core\", \"dfs-service\"]{}",
        &manifest[..start],
        &manifest[end..]
    );
    // Path dependencies that are not part of the copy.
    let kept: Vec<&str> = manifest
        .lines()
        .filter(|line| {
            !line.contains("path = \"")
                || ["dfs-core", "dfs-service"].iter().any(|part| line.starts_with(part))
        })
        .collect();
    fs::write(at.join("Cargo.toml"), kept.join("\n")).unwrap();
    fs::copy(repository.join("Cargo.lock"), at.join("Cargo.lock")).unwrap();
    let config = must(Command::new("cargo").args(["vendor", "-q", "vendor"]).current_dir(at));
    fs::create_dir(at.join(".cargo")).unwrap();
    fs::write(at.join(".cargo/config.toml"), config).unwrap();
}

#[test]
fn a_project_is_unpacked_built_and_tested_while_a_chunkserver_dies() {
    if let Some(reason) = tests::no_fuse() {
        return tests::skipped(&reason);
    }
    let used = Used::start();
    let cluster = &used.cluster;
    let (local, mount) = (cluster.scratch().join("project"), cluster.mount());
    make_project(&local);
    let tar = cluster.scratch().join("project.tar");
    must(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(cluster.scratch()).arg("project"));
    must(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&mount));
    let (here, there) = (sums(&local), sums(&mount.join("project")));
    assert!(1000 < here.len(), "the project has {} files", here.len());
    assert!(here == there, "the unpacked tree differs");
    println!("{} files unpacked", here.len());

    let project = mount.join("project");
    let build = std::thread::spawn({
        let project = project.clone();
        move || {
            let mut command = Command::new("cargo");
            command
                .args(["test", "--offline", "-q", "-p", "dfs-core", "--lib"])
                .env("CARGO_TARGET_DIR", project.join("target"))
                .current_dir(&project);
            tests::run(&mut command, LONG)
        }
    });
    tests::wait_until("the build has begun", || project.join("target").is_dir());
    std::thread::sleep(Duration::from_secs(2));
    cluster.kill("cs-2");
    println!("killed cs-2 in the middle");
    let output = build.join().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let end: Vec<&str> = said.lines().rev().take(40).collect();
    let end = end.into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(
        output.status.success() && said.contains("test result: ok"),
        "cargo test on the mount: {}; the end of what it said:\n{end}",
        output.status
    );
    // The sources are still what was unpacked.
    fs::remove_dir_all(project.join("target")).unwrap();
    assert!(sums(&local) == sums(&project), "the tree differs after the build");
}

#[test]
fn sqlite_keeps_a_database_with_a_write_ahead_log() {
    if let Some(reason) = tests::no_fuse() {
        return tests::skipped(&reason);
    }
    if !has("sqlite3") {
        return tests::skipped("sqlite3 is not installed");
    }
    let used = Used::start();
    let cluster = &used.cluster;
    let database = cluster.mount().join("people.db");
    let mut script = String::from(
        "PRAGMA journal_mode=WAL;\nCREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT);\n",
    );
    for batch in 0..20 {
        script += "BEGIN;\n";
        for n in 0..100 {
            script += &format!("INSERT INTO people(name) VALUES('person {batch}-{n}');\n");
        }
        script += "COMMIT;\n";
    }
    script +=
        "UPDATE people SET name = upper(name) WHERE id % 2 = 0;\nSELECT count(*) FROM people;\n";
    let file = cluster.scratch().join("script.sql");
    fs::write(&file, script).unwrap();
    let run = |input: &str| must(Command::new("sqlite3").arg(&database).arg(input));
    let said = run(&format!(".read {}", file.display()));
    assert!(said.contains("wal") && said.trim_end().ends_with("2000"), "{said}");
    cluster.kill("cs-1");
    assert_eq!(run("PRAGMA integrity_check;").trim(), "ok");
    assert_eq!(run("SELECT count(*) FROM people WHERE name LIKE 'PERSON %';").trim(), "2000");
    // Two processes at once: its locks must hold on the mount.
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let run = &run;
            scope.spawn(move || {
                for n in 0..20 {
                    run(&format!("PRAGMA busy_timeout=60000; INSERT INTO people(name) VALUES('w{writer}-{n}');"));
                }
            });
        }
    });
    assert_eq!(run("SELECT count(*) FROM people;").trim(), "2040");
    assert_eq!(run("PRAGMA integrity_check;").trim(), "ok");
}

#[test]
fn git_clones_and_its_fsck_is_clean() {
    if let Some(reason) = tests::no_fuse() {
        return tests::skipped(&reason);
    }
    if !has("git") || !tests::repository().join(".git").exists() {
        return tests::skipped("no git, or these sources are no git repository");
    }
    let used = Used::start();
    let cluster = &used.cluster;
    let clone = cluster.mount().join("clone");
    must(
        Command::new("git")
            .args(["clone", "-q", "--no-hardlinks"])
            .arg(tests::repository())
            .arg(&clone),
    );
    let git = |arguments: &[&str]| must(Command::new("git").arg("-C").arg(&clone).args(arguments));
    git(&["fsck", "--full", "--strict"]);
    assert_eq!(git(&["status", "--porcelain"]), "", "a fresh clone is clean");
    fs::write(clone.join("new-file"), "hello\n").unwrap();
    git(&["add", "new-file"]);
    git(&["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "a change"]);
    git(&["gc", "-q"]);
    git(&["fsck", "--full", "--strict"]);
}
