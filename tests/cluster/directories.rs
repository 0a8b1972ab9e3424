//! Data directories that are not what they were: older, shorter, damaged, or somebody else's.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use tests::{Cluster, Options, PATIENCE, is_running, run, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[track_caller]
fn check_refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
}

#[track_caller]
fn copy(from: &Path, to: &Path) {
    let copied = run(Command::new("cp").arg("-a").arg(from).arg(to), PATIENCE);
    assert!(copied.status.success(), "{copied:?}");
}

/// The last log entry that a stopped or running chunkserver has on disk.
fn index_known(cluster: &Cluster, server: &str) -> u64 {
    let path = cluster.dir().join(format!("data/{server}/server_state"));
    let line = std::fs::read_to_string(path).unwrap_or_default();
    line.split(' ').nth(5).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn wait_until_known(cluster: &Cluster, index: u64) {
    wait_until("the chunkservers know how long the log is", || {
        (1..=3).all(|n| index <= index_known(cluster, &format!("cs-{n}")))
    });
}

#[test]
fn a_masters_directory_older_by_a_few_files_is_refused_and_loss_can_be_accepted() {
    need_fuse!();
    let cluster = Cluster::start();
    let (mount, master) = (cluster.mount(), cluster.dir().join("data/master"));
    let (older, newest) = (cluster.scratch().join("older"), cluster.scratch().join("newest"));
    let content = pattern(20_000, 5);
    for (round, files) in [(1, 100), (2, 1)] {
        cluster.down();
        let _absent = std::fs::remove_dir_all(&older);
        copy(&master, &older);
        cluster.up();
        for n in 0..files {
            write_synced(&mount.join(format!("f-{round}-{n}")), &content);
        }
        if round == 1 {
            cluster.down();
        } else {
            // Nobody says goodbye.
            wait_until_known(&cluster, cluster.dfs_json(["status"])["logIndex"].as_u64().unwrap());
            for role in ["master", "cs-1", "cs-2", "cs-3", "mount"] {
                cluster.kill(role);
            }
            let _already = cluster.try_dfs(["down"]);
        }
        std::fs::rename(&master, &newest).unwrap();
        copy(&older, &master);
        // A refused start writes to the directory, too: it is refused all the same.
        for _ in 0..2 {
            let up = cluster.try_dfs(["up", "--detach"]);
            let words = ["older than the cluster", "knows of log entry", "log ends at entry"];
            check_refused(&up, &words);
            check_refused(&up, &["dfs master restore", "--accept-loss", "#a-directory-is-refused"]);
        }
        std::fs::remove_dir_all(&master).unwrap();
        std::fs::rename(&newest, &master).unwrap();
        cluster.up();
        for n in 0..files {
            check_content(&mount.join(format!("f-{round}-{n}")), &content);
        }
        cluster.until_clean();
    }
    // What of the second round is missing is accepted, also by later ordinary starts and by a server that was away.
    cluster.down();
    std::fs::remove_dir_all(&master).unwrap();
    copy(&older, &master);
    let away = cluster.dir().join("data/cs-3");
    std::fs::rename(&away, &newest).unwrap();
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{}", said(&up));
    assert!(!mount.join("f-2-0").exists());
    cluster.down();
    std::fs::remove_dir_all(&away).unwrap();
    std::fs::rename(&newest, &away).unwrap();
    cluster.up();
    check_content(&mount.join("f-1-99"), &content);
    // No id is used twice: the lost file's chunk is still at the servers.
    write_synced(&mount.join("other"), &pattern(30_000, 6));
    check_content(&mount.join("other"), &pattern(30_000, 6));
    cluster.down();
    cluster.up();
    check_content(&mount.join("other"), &pattern(30_000, 6));
}

/// Each such reign leaves room for those that it cannot know of.
#[test]
fn loss_is_accepted_in_one_start_also_by_a_directory_older_than_earlier_such_reigns() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    write_synced(&mount.join("f"), b"kept");
    let master = cluster.dir().join("data/master");
    let older = cluster.scratch().join("older");
    cluster.down();
    copy(&master, &older);
    for _ in 0..3 {
        let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
        assert!(up.status.success(), "{}", said(&up));
        cluster.down();
    }
    std::fs::remove_dir_all(&master).unwrap();
    copy(&older, &master);
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{}", said(&up));
    check_content(&mount.join("f"), b"kept");
    // No start was refused, and made good by the next.
    assert!(!cluster.logs().contains("older than the cluster"), "{}", cluster.logs());
}

#[test]
fn a_master_that_is_stopped_says_how_far_its_log_reached() {
    need_fuse!();
    // Heartbeats are five seconds apart, and the last one knew less.
    let cluster = Cluster::start_with(Options { profile: "standard", ..Options::default() });
    for n in 0..20 {
        write_synced(&cluster.mount().join(format!("f{n}")), b"x");
    }
    let index = cluster.dfs_json(["status"])["logIndex"].as_u64().unwrap();
    let master = cluster.pid("master").unwrap();
    tests::signal(master, Signal::TERM);
    wait_until("the master has stopped", || !is_running(master));
    wait_until_known(&cluster, index);
}

/// Where `wanted` begins in the file, first time and last time.
fn places(path: &Path, wanted: &[u8]) -> (u64, u64) {
    let bytes = std::fs::read(path).unwrap();
    let mut places = bytes.windows(wanted.len()).enumerate().filter(|(_, found)| *found == wanted);
    let (first, _) = places.next().unwrap_or_else(|| panic!("not in {}", path.display()));
    (first as u64, places.next_back().map_or(first, |(last, _)| last) as u64)
}

#[track_caller]
fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn a_masters_state_that_the_disk_changed_is_made_anew_from_the_log() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let content = b"kept in the inode itself ".repeat(150);
    // More than is changed in memory before the file is written.
    for n in 0..4_000 {
        std::fs::write(mount.join(format!("f{n}")), &content).unwrap();
    }
    let state = cluster.dir().join("data/master/state.redb");
    let log = cluster.dir().join("log/master.log");
    // One character of a file's content; then pages of the tree, so that redb itself would fall over it.
    let damages: [&dyn Fn(); 2] = [
        &|| {
            let (first, last) = places(&state, b"inode itself");
            overwrite(&state, first, b"I");
            overwrite(&state, last, b"I");
        },
        &|| {
            let (first, last) = places(&state, b"inode itself");
            for page in first / 4096..=last / 4096 {
                overwrite(&state, page * 4096, &[0xa5; 64]);
            }
        },
    ];
    for (round, damage) in (1..).zip(damages) {
        cluster.down();
        damage();
        cluster.up();
        for n in 0..4_000 {
            check_content(&mount.join(format!("f{n}")), &content);
        }
        cluster.until_clean();
        let told = std::fs::read_to_string(&log).unwrap();
        assert_eq!(told.matches("made anew from snapshot and log").count(), round, "{told}");
        assert!(told.contains("#a-log-is-damaged"), "{told}");
    }
}

#[test]
fn a_log_segment_that_does_not_begin_like_one_is_damage() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    write_synced(&mount.join("f"), &pattern(20_000, 1));
    cluster.down();
    let segment = cluster.dir().join("data/master/log/0000000000000001.log");
    // All that says what it is; the checksum says that everything else is right.
    overwrite(&segment, 3, b"????");
    let up = cluster.try_dfs(["up", "--detach"]);
    let words = [segment.to_str().unwrap(), "is damaged at byte 0", "#a-log-is-damaged"];
    check_refused(&up, &words);
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{}", said(&up));
    check_content(&mount.join("f"), &pattern(20_000, 1));
    cluster.until_clean();
    cluster.down();
    // Where it begins, and no more to go by: nothing would be left but a new, empty file system.
    overwrite(&segment, 0, &[b'?'; 64]);
    check_refused(&cluster.try_dfs(["up", "--detach"]), &words);
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    check_refused(&up, &words);
    check_refused(&up, &["nothing of the file system would be left", "dfs master restore"]);
}

#[test]
fn a_master_whose_log_was_cut_short_starts_only_if_told() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    write_synced(&mount.join("f"), &pattern(20_000, 1));
    cluster.down();
    let segment = cluster.dir().join("data/master/log/0000000000000001.log");
    let file = std::fs::File::options().write(true).open(&segment).unwrap();
    let size = file.metadata().unwrap().len();
    // Far behind all records: nothing is missing, but who would know.
    file.set_len(size - 4096).unwrap();
    let up = cluster.try_dfs(["up", "--detach"]);
    check_refused(&up, &[segment.to_str().unwrap(), "is damaged at byte", "shorter than it was"]);
    check_refused(&up, &["#a-log-is-damaged"]);
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{}", said(&up));
    check_content(&mount.join("f"), &pattern(20_000, 1));
    assert_eq!(file.metadata().unwrap().len(), size);
    cluster.down();
    cluster.up();
}

#[test]
fn chunkservers_with_a_damaged_journal_are_named_and_two_of_three_suffice() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    for n in 0..30 {
        write_synced(&mount.join(format!("f{n}")), &pattern(20_000, n));
    }
    // Killed: a clean stop would leave a journal that nobody needs.
    for role in ["cs-1", "cs-2", "cs-3", "master", "mount"] {
        cluster.kill(role);
    }
    let _already = cluster.try_dfs(["down"]);
    // Whichever of them is in use.
    for entry in std::fs::read_dir(cluster.dir().join("data/cs-2/journal")).unwrap() {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.write_all_at(&[0xa5; 4096], 8192 + 65_536).unwrap();
    }
    let up = cluster.try_dfs(["up", "--detach", "--restart", "never"]);
    let text = said(&up);
    assert!(up.status.success(), "{text}");
    let words = ["warning: cs-2 does not start: ", " is damaged at byte ", "ready: "];
    for word in words.into_iter().chain(["#a-log-is-damaged", "log/cs-2.log"]) {
        assert!(text.contains(word), "no '{word}' in: {text}");
    }
    for n in 0..30 {
        check_content(&mount.join(format!("f{n}")), &pattern(20_000, n));
    }
    write_synced(&mount.join("more"), &pattern(50_000, 9));
    cluster.down();
    // What the manual says: with an empty directory it is a new server, and gets its copies again.
    let data = cluster.dir().join("data/cs-2");
    std::fs::rename(&data, cluster.scratch().join("damaged")).unwrap();
    cluster.up();
    wait_until("all copies are there again", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"] && chunks["total"] != 0
    });
    for role in ["cs-1", "cs-2", "cs-3", "master", "mount"] {
        cluster.kill(role);
    }
    let _already = cluster.try_dfs(["down"]);
    // With one of three nothing could be written.
    for server in ["cs-1", "cs-3"] {
        let path = cluster.dir().join(format!("data/{server}/label"));
        std::fs::write(path, b"garbage").unwrap();
    }
    let up = cluster.try_dfs(["up", "--detach"]);
    check_refused(&up, &["start cs-", "label is damaged"]);
    assert!(!said(&up).contains("ready: "));
}

#[test]
fn journals_that_were_all_cut_short_are_refused_and_can_be_accepted() {
    need_fuse!();
    let cluster = Cluster::start();
    let mount = cluster.mount();
    for n in 0..10 {
        write_synced(&mount.join(format!("f{n}")), &pattern(20_000, n));
    }
    cluster.down();
    let mut sizes = Vec::new();
    for n in 1..=3 {
        let dir = cluster.dir().join(format!("data/cs-{n}/journal"));
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let size = file.metadata().unwrap().len();
            file.set_len(size - 4096).unwrap();
            sizes.push((path, size));
        }
    }
    let up = cluster.try_dfs(["up", "--detach"]);
    check_refused(&up, &["start cs-", "journal/", "is damaged at byte", "of its", "#a-log-is-"]);
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{}", said(&up));
    for (path, size) in sizes {
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size, "{}", path.display());
    }
    for n in 0..10 {
        check_content(&mount.join(format!("f{n}")), &pattern(20_000, n));
    }
    cluster.until_clean();
    cluster.down();
    cluster.up();
    check_content(&mount.join("f9"), &pattern(20_000, 9));
}

#[test]
fn a_server_takes_no_directory_that_is_not_its_own() {
    need_fuse!();
    let cluster = Cluster::start();
    let key = cluster.dir().join("cluster.key").to_string_lossy().into_owned();
    let address = cluster.master_address();
    let start = |kind: &str, data: &Path| {
        let mut command = Command::new(tests::dfs_program());
        command.args([kind, "--listen", "127.0.0.1:0", "--key-file", &key, "--data"]).arg(data);
        if kind == "chunkserver" {
            command.args(["--id", "cs-9", "--master", &address]);
        }
        run(&mut command, PATIENCE)
    };
    let letters = cluster.scratch().join("letters");
    std::fs::create_dir(&letters).unwrap();
    std::fs::write(letters.join("to-anna.txt"), b"dear").unwrap();
    for kind in ["master", "chunkserver"] {
        let words = [letters.to_str().unwrap(), "\"to-anna.txt\"", "name an empty directory"];
        check_refused(&start(kind, &letters), &words);
    }
    let names: Vec<_> =
        std::fs::read_dir(&letters).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["to-anna.txt"], "nothing is made in it");
    // Of the other kind, running and stopped.
    let (master, server) = (cluster.dir().join("data/master"), cluster.dir().join("data/cs-1"));
    for _ in 0..2 {
        let words =
            [master.to_str().unwrap(), "data directory of a master", "#a-directory-is-refused"];
        check_refused(&start("chunkserver", &master), &words);
        check_refused(&start("master", &server), &["data directory of a chunkserver", "'label'"]);
        cluster.down();
    }
    cluster.up();
}

#[test]
fn a_master_whose_log_is_gone_begins_no_other_file_system() {
    need_fuse!();
    let cluster = Cluster::start();
    // More than one reign, and a store that holds nothing of them yet.
    for n in 1..=2 {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(100_000, n));
        cluster.down();
        if n == 1 {
            cluster.up();
        }
    }
    let dir = cluster.dir().join("data/master");
    let aside = cluster.scratch().join("master");
    copy(&dir, &aside);
    for what in ["log/*.log", "log"] {
        let removed = run(
            Command::new("sh").arg("-c").arg(format!("rm -r {}/{what}", dir.display())),
            PATIENCE,
        );
        assert!(removed.status.success(), "{removed:?}");
        for _ in 0..2 {
            check_refused(
                &cluster.try_dfs(["up", "--detach"]),
                &["the log in", "is gone", "docs/operations.md#"],
            );
        }
        let made = run(Command::new("find").arg(&dir).args(["-path", "*/log/*.log"]), PATIENCE);
        assert!(made.stdout.is_empty(), "another log was begun: {made:?}");
        std::fs::remove_dir_all(&dir).unwrap();
        copy(&aside, &dir);
    }
    cluster.up();
    check_content(&cluster.mount().join("f1"), &pattern(100_000, 1));
}
