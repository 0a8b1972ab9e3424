//! A master's directory that is lost, and made again from the copies at chunkservers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Options, PATIENCE, dfs_program, signal, wait_until};

use crate::{need_fuse, pattern, write_synced};

/// What a copy may lack (DECISIONS 6), with room for two busy cores.
const LAG_MAX: Duration = Duration::from_secs(5);

fn addresses(cluster: &Cluster) -> String {
    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    servers.iter().map(|it| it["address"].as_str().unwrap()).collect::<Vec<_>>().join(",")
}

fn wait_for_copies(cluster: &Cluster) {
    wait_until("two copies are complete", || {
        let metadata = &cluster.dfs_json(["status"])["metadata"];
        metadata["copies"] == 2 && metadata["lagMs"] == 0
    });
}

#[test]
fn a_lost_master_directory_is_made_again_under_load() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 4, ..Options::default() });
    let mount = cluster.mount();
    let old: Vec<Vec<u8>> = (0..20).map(|n| pattern(1000 + n * 20_000, n as u64)).collect();
    for (n, content) in old.iter().enumerate() {
        write_synced(&mount.join(format!("old-{n}")), content);
    }
    wait_for_copies(&cluster);
    // Small files are in the log, whoever may read them.
    let copies: Vec<u32> = (1..=4)
        .map(|n| cluster.dir().join(format!("data/cs-{n}/metadata-copy")))
        .filter_map(|dir| std::fs::metadata(dir).ok())
        .map(|found| found.permissions().mode() & 0o7777)
        .collect();
    assert!(2 <= copies.len() && copies.iter().all(|mode| *mode == 0o700), "{copies:?}");
    let addresses = addresses(&cluster);
    let stop = AtomicBool::new(false);
    let (lost_at, acked) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acked = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let content = pattern(10_000, n);
                let path = mount.join(format!("new-{n}"));
                // Errors come when the master is gone for good.
                if std::fs::write(&path, &content).is_err()
                    || std::fs::File::open(&path).and_then(|file| file.sync_all()).is_err()
                {
                    break;
                }
                acked.push((Instant::now(), n));
            }
            acked
        });
        let began = Instant::now();
        wait_until("it wrote for longer than a copy may lag", || {
            mount.join("new-20").exists() && LAG_MAX + Duration::from_secs(2) < began.elapsed()
        });
        cluster.kill("master");
        let lost_at = Instant::now();
        stop.store(true, Ordering::Release);
        // The mount goes too, or its writer would wait for a master.
        cluster.kill("mount");
        (lost_at, writer.join().unwrap())
    });
    assert!(20 < acked.len(), "{} files", acked.len());
    let data = cluster.dir().join("data/master");
    std::fs::remove_dir_all(&data).unwrap();
    let data = data.to_string_lossy().into_owned();
    let said = cluster.dfs(["master", "restore", "--data", &data, "--from", &addresses]);
    assert!(said.contains("log entries up to") && said.contains("complete as of"), "{said}");
    let again = cluster.try_dfs(["master", "restore", "--data", &data, "--from", &addresses]);
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && why.contains("is not empty"), "{why}");

    cluster.down();
    cluster.up();
    for (n, content) in old.iter().enumerate() {
        assert_eq!(&std::fs::read(mount.join(format!("old-{n}"))).unwrap(), content, "old-{n}");
    }
    let mut missing = 0;
    for (at, n) in &acked {
        let found = std::fs::read(mount.join(format!("new-{n}")));
        if !found.as_ref().is_ok_and(|content| *content == pattern(10_000, *n)) {
            // Its name may be there, and its content logged too late.
            let found = found.map(|content| content.len());
            let age = lost_at.saturating_duration_since(*at);
            assert!(age < LAG_MAX, "new-{n}, {age:?} old: {found:?}");
            missing += 1;
        }
    }
    assert!(missing < acked.len(), "none of {} files came back", acked.len());
    println!("{missing} of {} files were of the last moment", acked.len());
    // No id is used twice, and a second master's copies are of the new log.
    for n in 0..20 {
        write_synced(&mount.join(format!("later-{n}")), &pattern(50_000, 100 + n));
    }
    for n in 0..20 {
        let content = std::fs::read(mount.join(format!("later-{n}"))).unwrap();
        assert_eq!(content, pattern(50_000, 100 + n), "later-{n}");
    }
    wait_for_copies(&cluster);
    cluster.until_clean();
}

/// Everything below `dir` but what processes say, by path, with the sizes of files.
fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() {
            found.extend(listing(&path));
            found.push((path, 0));
        } else if !path.ends_with("run/lock") {
            // Who asked last stands in that one.
            found.push((path, meta.len()));
        }
    }
    found.sort();
    found
}

#[test]
fn up_without_the_masters_directory_makes_nothing_and_prints_the_commands_that_make_it_again() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(300_000, 1);
    write_synced(&cluster.mount().join("f"), &content);
    wait_for_copies(&cluster);
    cluster.down();
    std::fs::remove_dir_all(cluster.dir().join("data/master")).unwrap();
    let before = listing(&cluster.dir());
    for detach in [true, false] {
        let arguments = ["up"].into_iter().chain(detach.then_some("--detach"));
        let up = cluster.try_dfs(arguments);
        let said = String::from_utf8_lossy(&up.stderr).into_owned();
        assert!(!up.status.success(), "it started");
        for word in
            ["data/master", "cs-1, cs-2, cs-3", "operations.md#the-masters-directory-is-lost"]
        {
            assert!(said.contains(word), "'{word}' in {said}");
        }
        assert_eq!(listing(&cluster.dir()), before, "{said}");
    }
    let up = cluster.try_dfs(["up", "--detach"]);
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    let commands: Vec<Vec<&str>> = said
        .split('`')
        .filter(|part| part.starts_with("dfs "))
        .map(|part| part.split(' ').skip(1).collect())
        .collect();
    let [servers @ .., restore, again] = commands.as_slice() else { panic!("{said}") };
    assert!(servers.len() == 3 && servers.iter().all(|it| it[0] == "chunkserver"), "{said}");
    assert_eq!((&restore[..2], again[0]), (&["master", "restore"][..], "up"), "{said}");
    // They are started by hand: nothing in the environment says which cluster.
    let typed = |arguments: &[&str]| {
        let mut command = Command::new(dfs_program());
        for variable in ["DFS_DIR", "DFS_MASTER", "DFS_KEY_FILE"] {
            command.env_remove(variable);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut children: Vec<Child> = servers
        .iter()
        .map(|arguments| typed(arguments).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let mut said = String::new();
    let until = Instant::now() + PATIENCE;
    let restored = loop {
        let restored = typed(restore).stderr(Stdio::piped()).output().unwrap();
        said.push_str(&String::from_utf8_lossy(&restored.stderr));
        // Servers that still start hold nothing for anybody.
        if restored.status.success() || until <= Instant::now() {
            break restored;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    for child in &mut children {
        signal(child.id(), Signal::TERM);
        child.wait().unwrap();
    }
    assert!(restored.status.success(), "{said}");
    cluster.up();
    assert_eq!(std::fs::read(cluster.mount().join("f")).unwrap(), content);
    cluster.until_clean();
}

#[test]
fn copies_follow_a_lost_holder_and_a_cut_log_and_nobody_restores_from_nothing() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 4, ..Options::default() });
    write_synced(&cluster.mount().join("f"), &pattern(100_000, 1));
    wait_for_copies(&cluster);
    let all = addresses(&cluster);
    let holder =
        cluster.dfs_json(["status"])["metadata"]["servers"][0].as_str().unwrap().to_owned();
    cluster.kill(&holder);
    write_synced(&cluster.mount().join("g"), &pattern(100_000, 2));
    wait_until("another server holds the copy", || {
        let metadata = &cluster.dfs_json(["status"])["metadata"];
        let servers = metadata["servers"].as_array().unwrap();
        servers.len() == 2 && servers.iter().all(|it| *it != holder) && metadata["lagMs"] == 0
    });
    let text = cluster.dfs(["status"]);
    assert!(text.contains("copies of its metadata on cs-"), "{text}");

    let elsewhere = cluster.dir().join("restored").to_string_lossy().into_owned();
    let nobody =
        cluster.try_dfs(["master", "restore", "--data", &elsewhere, "--from", "127.0.0.1:9"]);
    let why = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(!nobody.status.success() && why.contains("no server named holds"), "{why}");
    assert!(!cluster.dir().join("restored").exists());
    // A living cluster's copy is as good; nothing of the cluster changes.
    let said = cluster.dfs(["master", "restore", "--data", &elsewhere, "--from", &all]);
    assert!(said.contains("3 inodes, 2 chunks"), "{said}");
    assert!(cluster.try_dfs(["fsck"]).status.code().is_some());
}
