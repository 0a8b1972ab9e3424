//! A disk that is full while others have room: nobody who writes is to notice.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use tests::{Cluster, Options, wait_until};

use crate::{check_bytes, check_content, need_fuse, pattern, write_synced};

const FILES: u64 = 10;
const FIRST: usize = 1 << 20;
const REST: usize = 15 << 20;
const RECORD: usize = 60_000;

/// Servers that have the file's only chunk.
fn servers(cluster: &Cluster, path: &str) -> Vec<String> {
    let located = cluster.dfs_json(["locate", path]);
    let servers = located["chunks"][0]["servers"].as_array().unwrap().iter();
    servers.map(|server| server.as_str().unwrap().to_owned()).collect()
}

#[test]
fn writes_go_on_elsewhere_when_one_disk_of_many_is_full() {
    need_fuse!();
    let options = Options { chunkservers: 5, capacity: None, ..Options::default() };
    let (mut cluster, disk) = match Cluster::start_on_small_disks(options, &[("cs-1", "128m")]) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    // All chunks are placed while there is room: the disk gets full in the middle of them.
    let content = |n: u64| pattern(FIRST + REST, n + 1);
    let mut files = Vec::new();
    let mut on_small = 0;
    while on_small < FILES {
        let n = files.len() as u64;
        let mut file = File::create(cluster.mount().join(format!("f{n}"))).unwrap();
        file.write_all(&content(n)[..FIRST]).unwrap();
        file.sync_all().unwrap();
        on_small += u64::from(servers(&cluster, &format!("/f{n}")).contains(&"cs-1".to_owned()));
        files.push(file);
        assert!(files.len() < 60, "a chunk in five or more is on cs-1");
    }
    let appended = cluster.mount().join("log");
    write_synced(&appended, &pattern(RECORD, 100));
    let mut log = File::options().append(true).open(&appended).unwrap();
    for (n, file) in files.iter_mut().enumerate() {
        for (part, record) in content(n as u64)[FIRST..].chunks(REST / 3).zip(1..) {
            file.write_all(part).unwrap();
            log.write_all(&pattern(RECORD, 100 + 3 * n as u64 + record)).unwrap();
        }
        file.sync_all().unwrap();
    }
    let status = cluster.dfs(["status"]);
    let told = "the disk of cs-1 is full: what is written goes to others; see docs/operations.md#a-disk-is-full";
    assert!(status.contains(told), "{status}");
    // Content that was in the inode and has to leave it, and what is new.
    for n in 0..8 {
        let path = cluster.mount().join(format!("small{n}"));
        write_synced(&path, &[b's'; 2_000]);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&[b't'; 200_000]).unwrap();
        file.sync_all().unwrap();
        check_content(&path, &[[b's'; 2_000].as_slice(), &[b't'; 200_000]].concat());
    }
    wait_until("all chunks are safe", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"]
    });
    let second = cluster.mount_again("second");
    for n in 0..files.len() as u64 {
        check_content(&second.join(format!("f{n}")), &content(n));
    }
    let records = 3 * files.len() as u64 + 1;
    let expected: Vec<u8> = (0..records).flat_map(|n| pattern(RECORD, 100 + n)).collect();
    check_content(&second.join("log"), &expected);
    cluster.until_clean();
    drop(cluster);
    drop(disk);
}

/// As a program that stops at the first error: what it was told by `write`, or by `fsync`.
fn write_until_refused(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path).unwrap();
    let written = content.chunks(128 << 10).try_for_each(|part| file.write_all(part));
    let synced = file.sync_all();
    if written.is_err() {
        assert!(synced.is_err(), "told by write, and not by fsync");
    }
    written.and(synced)
}

#[test]
fn a_file_that_met_a_full_disk_is_a_prefix_of_what_was_written() {
    need_fuse!();
    let options = Options { capacity: None, ..Options::default() };
    let small = ["cs-1", "cs-2", "cs-3"].map(|server| (server, "160m"));
    let (mut cluster, disks) = match Cluster::start_on_small_disks(options, &small) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    let second = cluster.mount_again("second");
    let content = pattern(40 << 20, 3);
    cluster.dfs(["mkdir", "--chunk-size", "1MiB", "/small"]);
    cluster.dfs(["mkdir", "--chunk-size", "64KiB", "/tiny"]);
    // It is a matter of luck that what is behind the refused bytes finds the room that they did not.
    for (fill, directory) in ["", "small/", "tiny/", "small/", "", "small/"].iter().enumerate() {
        let names = [1, 2, 3, 4, 5].map(|n| format!("{directory}f{n}"));
        let mut refused = 0;
        for name in &names {
            match write_until_refused(&cluster.mount().join(name), &content) {
                Ok(()) => check_content(&second.join(name), &content),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    let found = std::fs::read(second.join(name)).unwrap();
                    assert!(found.len() < content.len(), "{name}: it was refused");
                    let what = format!("fill {fill}, {name}, of {} bytes", found.len());
                    check_bytes(&what, &found, &content[..found.len()]);
                    refused += 1;
                }
            }
        }
        assert!(1 < refused, "200 MiB do not fit on 160 MiB");
        for name in &names {
            std::fs::remove_file(cluster.mount().join(name)).unwrap();
        }
        let probe = cluster.mount().join("probe");
        wait_until("there is room again", || {
            let written = write_until_refused(&probe, &content);
            std::fs::remove_file(&probe).unwrap();
            written.is_ok()
        });
    }
    drop(cluster);
    drop(disks);
}

/// The very first bytes of a file are refused: no chunk of it is ever made.
#[test]
fn a_file_of_which_nothing_found_room_is_empty_and_freed_space_is_written_to_at_once() {
    need_fuse!();
    let options = Options { capacity: Some("150MiB"), ..Options::default() };
    let mut cluster = Cluster::start_with(options);
    let second = cluster.mount_again("second");
    let content = pattern(170 << 20, 5);
    for round in 0..3 {
        // The last ones find a little room, or none.
        let over: Vec<PathBuf> =
            (0..8).map(|n| cluster.mount().join(format!("over{round}-{n}"))).collect();
        for path in &over {
            write_until_refused(path, &content).unwrap_err();
        }
        let nothing = cluster.mount().join("nothing");
        let mut file = File::create(&nothing).unwrap();
        let refused =
            content[..400_000].chunks(50_000).filter(|part| file.write_all(part).is_err());
        let refused = refused.count() + usize::from(file.sync_all().is_err());
        assert!(0 < refused, "400 kB found room on full disks");
        drop(file);
        let sizes = [&nothing, &second.join("nothing")].map(|path| std::fs::read(path).unwrap());
        check_bytes("the other mount", &sizes[0], &sizes[1]);
        check_bytes("nothing", &sizes[0], &content[..sizes[0].len()]);
        // What it then gets is its content, and no more.
        let mut file = File::options().append(true).open(&nothing).unwrap();
        file.write_all(b"small").unwrap();
        file.sync_all().unwrap();
        drop(file);
        let expected = [sizes[0].as_slice(), b"small"].concat();
        check_content(&nothing, &expected);
        check_content(&second.join("nothing"), &expected);

        over.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        std::fs::remove_file(nothing).unwrap();
        wait_until("the servers say that there is room", || {
            let status = cluster.dfs_json(["status"]);
            let servers = status["servers"].as_array().unwrap().clone();
            status["chunks"]["total"] == 0
                && servers.iter().all(|server| 140 << 20 < server["freeBytes"].as_u64().unwrap())
        });
        // Whoever leads a chunk believed for ever what the others told when they were full.
        for n in 0..3 {
            let path = cluster.mount().join(format!("fill{round}-{n}"));
            write_until_refused(&path, &content[..30 << 20]).unwrap();
            check_content(&second.join(path.file_name().unwrap()), &content[..30 << 20]);
        }
        for n in 0..3 {
            std::fs::remove_file(cluster.mount().join(format!("fill{round}-{n}"))).unwrap();
        }
        wait_until("there is room again", || cluster.dfs_json(["status"])["chunks"]["total"] == 0);
    }
}

#[test]
fn nobody_waits_for_refused_bytes_of_files_that_are_removed() {
    need_fuse!();
    let options = Options { capacity: None, ..Options::default() };
    let small = ["cs-1", "cs-2", "cs-3"].map(|server| (server, "160m"));
    let (cluster, disks) = match Cluster::start_on_small_disks(options, &small) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    let path = cluster.scratch().join("second");
    std::fs::create_dir(&path).unwrap();
    let log = cluster.scratch().join("second.log");
    let mut mount = cluster
        .command(["mount", path.to_str().unwrap(), "--server-wait", "15s"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait_until("it is mounted", || tests::is_mounted(&path));
    let content = pattern(40 << 20, 5);
    let mut refused = 0;
    for n in 0..6 {
        let written = write_until_refused(&path.join(format!("w{n}")), &content);
        let log = path.join(format!("a{n}"));
        let mut log = File::options().create(true).append(true).open(log).unwrap();
        let appended = content[..20 << 20].chunks(60_000).try_for_each(|part| log.write_all(part));
        refused += u32::from(written.is_err()) + u32::from(appended.is_err());
    }
    assert!(4 < refused, "{refused} of 12 files were refused: 160 MiB are full sooner");
    for entry in std::fs::read_dir(&path).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for role in ["master", "cs-1", "cs-2", "cs-3"] {
        cluster.kill(role);
    }
    tests::signal(mount.id(), Signal::TERM);
    let status = mount.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let said = log.lines().filter(|line| line.contains("before unmounting")).count();
    assert!(status.success() && said == 0, "{status}: {}", &log[log.len().saturating_sub(4_000)..]);
    drop(cluster);
    drop(disks);
}

/// Leaves nothing of the disk that `path` is on.
fn fill_disk(path: &Path) {
    let mut file = File::create(path).unwrap();
    for len in [1 << 20, 4096, 1] {
        while file.write_all(&vec![b'f'; len]).is_ok() {}
    }
}

fn writes_at(path: &Path, at: u64, content: &[u8]) -> File {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(content, at).unwrap();
    file
}

#[test]
fn what_others_stored_behind_refused_bytes_stays() {
    need_fuse!();
    let options = Options { capacity: None, ..Options::default() };
    let small = ["cs-1", "cs-2", "cs-3"].map(|server| (server, "160m"));
    let (mut cluster, disks) = match Cluster::start_on_small_disks(options, &small) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    let second = cluster.mount_again("second");
    cluster.dfs(["mkdir", "--chunk-size", "1MiB", "/d"]);
    let (here, there) = (cluster.mount().join("d/f"), second.join("d/f"));
    File::create(&here).unwrap().sync_all().unwrap();
    let [by_handle, by_mount] = [1, 2].map(|seed| pattern(1 << 20, seed));
    // By another handle of this mount, synced; and by another mount, stored but not synced.
    writes_at(&here, 200 << 20, &by_handle).sync_all().unwrap();
    let other = writes_at(&there, 300 << 20, &by_mount);
    wait_until("what the other mount wrote is stored", || {
        std::fs::metadata(&here).unwrap().len() == 301 << 20
    });
    let file = File::options().write(true).open(&here).unwrap();
    let content = pattern(199 << 20, 3);
    let parts = content.chunks(128 << 10).enumerate();
    let written: Result<(), _> =
        parts.into_iter().try_for_each(|(n, part)| file.write_all_at(part, n as u64 * (128 << 10)));
    assert!(written.and(file.sync_all()).is_err(), "199 MiB do not fit on 160 MiB");
    drop(file);
    other.sync_all().unwrap();
    for mount in [&here, &there] {
        let found = File::open(mount).unwrap();
        for (at, expected) in [(200 << 20, &by_handle), (300 << 20, &by_mount)] {
            let mut bytes = vec![0; expected.len()];
            found.read_exact_at(&mut bytes, at).unwrap();
            check_bytes(&format!("{} at {at}", mount.display()), &bytes, expected);
        }
    }
    drop(cluster);
    drop(disks);
}

#[test]
fn a_server_whose_disk_is_full_starts_if_replicas_that_were_put_aside_can_go() {
    need_fuse!();
    let options = Options { capacity: None, ..Options::default() };
    let (cluster, disks) = match Cluster::start_on_small_disks(options, &[("cs-1", "128m")]) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    let content = |n: u64| pattern(5 << 20, n);
    let paths = [1, 2, 3, 4].map(|n| cluster.mount().join(format!("f{n}")));
    for (n, path) in paths.iter().enumerate() {
        write_synced(path, &content(n as u64));
    }
    let data = cluster.dir().join("data/cs-1");
    let put_aside = || std::fs::read_dir(data.join("quarantine")).unwrap().count();
    paths[..2].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    wait_until("removed chunks are put aside", || put_aside() == 2);
    cluster.kill("cs-1");
    cluster.down();
    fill_disk(&data.join("foreign"));
    cluster.up();
    wait_until("cs-1 is there", || cluster.server_state("cs-1").as_deref() == Some("alive"));
    assert!(put_aside() < 2, "what was removed had to go");
    let log = || std::fs::read_to_string(cluster.dir().join("log/cs-1.log")).unwrap();
    assert!(log().contains("replicas that were put aside are removed"), "{}", cluster.logs());
    // With nothing left to go a person is told.
    cluster.kill("cs-1");
    cluster.down();
    for entry in std::fs::read_dir(data.join("quarantine")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fill_disk(&data.join("more"));
    let before = log().len();
    let _others_start = cluster.try_dfs(["up", "--detach"]);
    let told = || log()[before..].contains("docs/operations.md#a-disk-is-full");
    wait_until("cs-1 says what helps", told);
    assert!(log()[before..].contains("make some MiB of room there"), "{}", cluster.logs());
    cluster.down();
    for name in ["foreign", "more"] {
        std::fs::remove_file(data.join(name)).unwrap();
    }
    cluster.up();
    for (n, path) in paths.iter().enumerate().skip(2) {
        check_content(path, &content(n as u64));
    }
    cluster.until_clean();
    drop(cluster);
    drop(disks);
}

#[test]
fn a_master_whose_disk_is_full_says_so_and_loses_nothing() {
    need_fuse!();
    let (mut cluster, disks) =
        match Cluster::start_on_small_disks(Options::default(), &[("master", "160m")]) {
            Ok(started) => started,
            Err(reason) => return tests::skipped(&reason),
        };
    let data = cluster.dir().join("data/master");
    fill_disk(&data.join("foreign"));
    let mount = cluster.mount_with("second", &["--server-wait", "3s"]);
    let content = |n: u64| pattern(3_000, n);
    let pid = cluster.pid("master").unwrap();
    let mut acknowledged = 0;
    let write = |path: &Path, n: u64| {
        File::create(path).and_then(|mut file| {
            file.write_all(&content(n))?;
            file.sync_all()
        })
    };
    while write(&mount.join(format!("f{acknowledged}")), acknowledged).is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 50_000, "the disk is full");
    }
    wait_until("the master ended", || !tests::is_running(pid));
    let log = || std::fs::read_to_string(cluster.dir().join("log/master.log")).unwrap();
    let check_told = |log: &str| {
        let told = [data.to_str().unwrap(), "No space left", "docs/operations.md#a-disk-is-full"];
        let last = log.lines().last().unwrap_or_default();
        assert!(told.iter().all(|part| last.contains(part)), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    };
    check_told(&log());
    // Without room it does not start, or ends again as soon as it needs some; with room all is there.
    let before = log().len();
    cluster.down();
    if !cluster.try_dfs(["up", "--detach"]).status.success() {
        check_told(&log()[before..]);
    }
    cluster.down();
    std::fs::remove_file(data.join("foreign")).unwrap();
    cluster.up();
    for n in 0..acknowledged {
        check_content(&cluster.mount().join(format!("f{n}")), &content(n));
    }
    write_synced(&cluster.mount().join("more"), &content(1));
    drop(cluster);
    drop(disks);
}
