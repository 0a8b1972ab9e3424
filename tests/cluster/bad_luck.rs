//! Dead servers, bad disks, extreme names and sizes, through a real mount.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Options, PATIENCE, run, wait_until};

use crate::{check_bytes, check_content, need_fuse, pattern, write_synced};

#[test]
fn a_killed_chunkserver_is_not_noticed() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(10 << 20, 1);
    let path = cluster.mount().join("f");
    let mut file = File::create(&path).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    cluster.kill("cs-2");
    // The file is open for writing: the next write meets a dead member.
    let started = Instant::now();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    let took = started.elapsed();
    // A second for the reconfiguration, the rest for 20 MiB on a slow disk.
    assert!(took < Duration::from_secs(15), "{took:?}");
    check_content(&path, &[content.as_slice(), &content].concat());
    // A new file on two servers.
    write_synced(&cluster.mount().join("g"), &content);
    let second = cluster.scratch().join("second");
    cluster.dfs(["get", "/g", second.to_str().unwrap()]);
    check_content(&second, &content);
}

#[test]
fn a_returned_chunkserver_is_caught_up_and_trusted_again() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    let path = cluster.mount().join("f");
    write_synced(&path, &pattern(2 << 20, 1));
    let newer = pattern(2 << 20, 2);
    cluster.kill("cs-1");
    write_synced(&path, &newer);
    wait_until("all chunks are safe again", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"] && chunks["total"] != 0
    });
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    // Only the returned one and one more are left to read from.
    cluster.down();
    cluster.up();
    check_content(&path, &newer);
}

#[test]
fn writes_wait_and_fail_with_a_reason_when_too_few_servers_are_left_reads_go_on() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(1 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.kill("cs-1");
    cluster.kill("cs-2");
    // From a client of its own: nothing is cached there.
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
    let mut put = cluster.command(["put", "-", "/f", "--server-wait", "3s"]);
    let refused = tests::run_with_input(&mut put, &content, PATIENCE);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.starts_with("dfs: ") && said.lines().count() == 1, "{said}");
}

#[test]
fn status_and_the_mounts_log_say_why_writes_wait_and_a_call_waits_once() {
    need_fuse!();
    const WAIT: Duration = Duration::from_secs(8);
    let mut cluster = Cluster::start();
    let wait = format!("{}s", WAIT.as_secs());
    let path = cluster.mount_with("second", &["--server-wait", &wait]).join("f");
    write_synced(&path, &pattern(1 << 20, 1));
    cluster.kill("cs-1");
    cluster.kill("cs-2");
    let writer = std::thread::spawn(move || {
        let file = File::options().write(true).open(&path).unwrap();
        // What an fsync needs after the bytes: how far the file reaches, and that it is logged.
        file.write_all_at(&[7; 4096], (1 << 20) - 10).unwrap();
        let began = Instant::now();
        (file.sync_all().unwrap_err(), began.elapsed())
    });
    wait_until("status says that writes wait", || {
        cluster.dfs_json(["status"])["waitingWrites"]["total"] == 1
    });
    let status = cluster.dfs_json(["status"]);
    let longest = &status["waitingWrites"]["longest"][0];
    let reason = longest["reason"].as_str().unwrap();
    assert!(reason.contains("writes need 2") && reason.contains("cs-3"), "{status}");
    let table = cluster.dfs(["status"]);
    assert!(table.contains("wait, the longest for") && table.contains("#writes-wait"), "{table}");
    wait_until("the mount says so", || cluster.logs().contains("requests wait"));
    assert!(cluster.logs().contains("#writes-wait"), "{}", cluster.logs());
    let (error, took) = writer.join().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(took < 2 * WAIT, "one deadline for all that it asks for: {took:?}");
    wait_until("nobody waits", || cluster.dfs_json(["status"])["waitingWrites"]["total"] == 0);
}

/// Files below `dir` that hold `piece`, with the place of it.
pub(crate) fn files_with(dir: &Path, piece: &[u8]) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(content) = std::fs::read(&path)
                && let Some(at) = content.windows(piece.len()).position(|window| window == piece)
            {
                found.push((path, at as u64));
            }
        }
    }
    found
}

/// Files of a server that hold the 64 bytes at `at` of `content`.
#[track_caller]
fn places(cluster: &Cluster, server: &str, content: &[u8], at: usize) -> Vec<(PathBuf, u64)> {
    let found = files_with(&cluster.dir().join("data").join(server), &content[at..at + 64]);
    assert!(!found.is_empty(), "{server} holds the bytes in some file");
    found
}

/// What stands there is in place since the clean stop, and will be written over.
pub(crate) fn is_of_journal(path: &Path) -> bool {
    path.parent().is_some_and(|dir| dir.ends_with("journal"))
}

/// Flips one bit at `at` of `content` in the replicas of these servers; where it did.
pub(crate) fn flip(
    cluster: &Cluster,
    servers: &[&str],
    content: &[u8],
    at: usize,
) -> Vec<(PathBuf, u64)> {
    let mut flipped = Vec::new();
    for server in servers {
        for (path, at) in places(cluster, server, content, at) {
            if is_of_journal(&path) {
                continue;
            }
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at + 7).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], at + 7).unwrap();
            flipped.push((path, at));
        }
    }
    flipped
}

fn is_eio(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
}

#[test]
fn bytes_that_are_damaged_everywhere_are_said_to_be_and_waited_for_once() {
    need_fuse!();
    let mut cluster = Cluster::start();
    let content = pattern(6 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    // In several pieces that are read one by one.
    for at in [500_000, 1_500_000, 2_500_000, 3_500_000, 4_500_000, 5_500_000] {
        flip(&cluster, &["cs-1", "cs-2", "cs-3"], &content, at);
    }
    cluster.up();
    let got = cluster.scratch().join("got");
    let got = got.to_str().unwrap();
    let mut get = cluster.command(["get", "/f", got, "--server-wait", "2s"]);
    let refused = run(&mut get, PATIENCE);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("damaged on cs-1, cs-2 and cs-3"), "{said}");
    assert!(!said.contains("missing") && !Path::new(got).exists(), "{said}");

    const WAIT: Duration = Duration::from_secs(10);
    let second = cluster.mount_with("second", &["--server-wait", "10s"]);
    let began = Instant::now();
    let mut read = vec![0; 6 << 20];
    let error = File::open(second.join("f")).unwrap().read_exact(&mut read).unwrap_err();
    let took = began.elapsed();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // The kernel asks for more than one piece, and for the first one twice.
    let log = std::fs::read_to_string(cluster.scratch().join("second.log")).unwrap();
    assert!(WAIT <= took && took < 2 * WAIT, "{took:?} {log}");
    assert!(log.contains("damaged on cs-1, cs-2 and cs-3"), "{log}");
    // Six blocks of three servers, told again after 10 s at the earliest.
    let told = log.lines().filter(|line| line.contains("bad checksum")).count();
    assert!((3..=2 * 6 * 3).contains(&told), "{told}");
}

/// Whoever else closes or syncs: each open for writing is told of what was lost, and nobody reads it afterwards.
#[test]
fn bytes_that_are_given_up_are_told_to_their_writer_and_not_read_again() {
    need_fuse!();
    let mut cluster = Cluster::start();
    let content = pattern(300_000, 1);
    write_synced(&cluster.mount().join("f"), &content);
    let path = cluster.mount_with("second", &["--server-wait", "3s"]).join("f");
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (writer, other, reader) = (open(), open(), File::open(&path).unwrap());
    let servers = ["cs-1", "cs-2", "cs-3"].map(|id| cluster.pid(id).unwrap());
    servers.iter().for_each(|pid| tests::signal(*pid, Signal::STOP));
    writer.write_all_at(&[b'N'; 50_000], 100_000).unwrap();
    // Such as a child's, at its end.
    let copy = writer.try_clone().unwrap();
    drop(copy);
    drop(reader);
    assert!(is_eio(other.sync_all()), "an open for writing that wrote nothing");
    servers.iter().for_each(|pid| tests::signal(*pid, Signal::CONT));
    wait_until("the servers answer", || {
        let state = |id| cluster.server_state(id);
        ["cs-1", "cs-2", "cs-3"].iter().all(|id| state(id).as_deref() == Some("alive"))
    });
    assert!(is_eio(writer.sync_all()), "the one that wrote");
    writer.sync_all().unwrap();
    other.sync_all().unwrap();
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
    check_content(&path, &content);
    let late = open();
    late.write_all_at(b"good", 0).unwrap();
    late.sync_all().unwrap();
}

#[test]
fn a_flipped_byte_is_never_returned_and_is_repaired() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    const AT: usize = 1_500_000;
    // On two of three, so that a reader cannot miss them.
    let flipped = flip(&cluster, &["cs-1", "cs-2"], &content, AT);
    cluster.up();
    for _ in 0..6 {
        check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
    }
    check_content(&cluster.mount().join("f"), &content);
    // In place, also where nobody read: the check finds what is left, and the servers mend it.
    let checked = cluster.try_dfs(["fsck"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!said.contains("cs-3 has"), "{said}");
    let is_right = |(path, at): &(PathBuf, u64)| {
        let mut bytes = [0; 64];
        File::open(path).unwrap().read_exact_at(&mut bytes, *at).unwrap();
        bytes == content[AT..AT + 64]
    };
    wait_until("the blocks are repaired", || flipped.iter().all(is_right));
    cluster.until_clean();
}

#[test]
fn a_block_that_is_bad_everywhere_is_said_to_be_lost() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    const AT: usize = 1_500_000;
    let flipped = flip(&cluster, &["cs-1", "cs-2", "cs-3"], &content, AT);
    cluster.up();
    let checked = cluster.try_dfs(["fsck"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    for server in ["cs-1", "cs-2", "cs-3"] {
        assert!(said.contains(&format!("{server} has a bad checksum in block")), "{said}");
    }
    wait_until("the chunk counts as lost", || cluster.dfs_json(["status"])["chunks"]["lost"] == 1);
    // One copy comes back: the others are mended from it, without being asked.
    let (path, at) = &flipped[0];
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&content[AT + 7..AT + 8], at + 7).unwrap();
    wait_until("all copies are good again", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["safe"] == chunks["total"]
    });
    assert!(cluster.try_dfs(["fsck"]).status.success());
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
}

#[test]
fn around_a_block_that_is_bad_everywhere_is_read_and_written() {
    need_fuse!();
    let mut cluster = Cluster::start();
    let mut content = pattern(3 << 20, 1);
    for name in ["f", "g"] {
        write_synced(&cluster.mount().join(name), &content);
    }
    cluster.down();
    const BLOCK: usize = 64 << 10;
    const AT: usize = 20 * BLOCK + 1000;
    // Of both files.
    flip(&cluster, &["cs-1", "cs-2", "cs-3"], &content, AT);
    cluster.up();
    let mount = cluster.mount_with("impatient", &["--server-wait", "6s"]);
    let open = |name: &str| File::options().read(true).write(true).open(mount.join(name)).unwrap();
    let write = |name: &str, at: usize, bytes: &[u8]| {
        let file = open(name);
        file.write_all_at(bytes, at as u64).and_then(|()| file.sync_all())
    };
    let beside = |content: &[u8]| {
        let mut bytes = [0; 4096];
        open("f").read_exact_at(&mut bytes, 2 << 20).unwrap();
        assert!(bytes == content[2 << 20..(2 << 20) + 4096]);
    };
    assert!(is_eio(write("f", AT, b"a part of it")));
    write("f", 100, b"elsewhere").unwrap();
    content[100..109].copy_from_slice(b"elsewhere");
    beside(&content);
    assert!(is_eio(open("f").set_len(AT as u64)), "half of it cannot be kept");
    assert_eq!(std::fs::metadata(mount.join("f")).unwrap().len(), content.len() as u64);
    // A change of the configuration takes it up as it is.
    cluster.kill("cs-2");
    write("f", 200, b"with two").unwrap();
    content[200..208].copy_from_slice(b"with two");
    beside(&content);
    open("g").set_len(BLOCK as u64).unwrap();
    write("g", 300, b"cut before it").unwrap();
    // Anew as a whole it is as good as any.
    content[20 * BLOCK..21 * BLOCK].fill(7);
    write("f", 20 * BLOCK, &[7; BLOCK]).unwrap();
    write("f", AT, b"a part of it").unwrap();
    content[AT..AT + 12].copy_from_slice(b"a part of it");
    check_content(&mount.join("f"), &content);
    cluster.down();
    cluster.up();
    cluster.until_clean();
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
}

#[test]
fn a_file_of_which_every_copy_was_removed_is_an_error_not_zeros() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    let content = pattern(300_000, 1);
    write_synced(&cluster.mount().join("f"), &content);
    let servers = ["cs-1", "cs-2", "cs-3"];
    // A clean stop empties the journal, which could tell of it.
    cluster.down();
    cluster.up();
    wait_until("its copies are reported", || {
        cluster.dfs_json(["status"])["chunks"]["safe"] == 1
            && servers.iter().all(|id| cluster.server_state(id).as_deref() == Some("alive"))
    });
    // All at once: a server that looks for its file while others still have theirs tells of that, and begins to mend it.
    let found = servers.map(|server| places(&cluster, server, &content, 100_000));
    let files = found.iter().flatten().map(|(path, _)| path).filter(|path| !is_of_journal(path));
    files.for_each(|path| std::fs::remove_file(path).unwrap());
    for server in servers {
        cluster.kill(server);
    }
    wait_until("the servers are back", || {
        servers.iter().all(|id| cluster.server_state(id).as_deref() == Some("alive"))
    });
    let read = cluster.try_dfs(["cat", "/f", "--server-wait", "5s"]);
    assert!(!read.status.success() && read.stdout.is_empty(), "{read:?}");
    wait_until("it counts as lost", || cluster.dfs_json(["status"])["chunks"]["lost"] == 1);
    let events = cluster.dfs(["events"]);
    assert!(events.contains("1 chunk(s) have no good copy on any disk that is known"), "{events}");
    assert!(!cluster.try_dfs(["fsck"]).status.success());
}

/// The file of the one chunk that `content` fills.
fn chunk_file(cluster: &Cluster, server: &str, content: &[u8]) -> PathBuf {
    let at = content.len() / 2;
    let mut found = places(cluster, server, content, at);
    found.retain(|(path, _)| !is_of_journal(path));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0).0
}

fn flip_at(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

/// A start goes on with the round of before, which found no chunk: the first one is read at once, and damage there mended
/// before anybody asks.
fn unscrubbed() -> Cluster {
    let timing = &["--scrub-period", "0"];
    Cluster::start_with(Options { timing, ..Options::default() })
}

/// Two copies of the header, and the second slot (the first one to be written).
const HEADER_AT: [u64; 2] = [20, 2048 + 20];
const SLOT_B_AT: u64 = (2 << 20) + 40;

#[test]
fn a_file_of_which_every_copy_was_removed_while_nothing_ran_is_an_error_too() {
    need_fuse!();
    let cluster = Cluster::start_with(Options::default());
    let content = pattern(300_000, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    cluster.up();
    wait_until("its copies are reported", || cluster.dfs_json(["status"])["chunks"]["safe"] == 1);
    cluster.down();
    for server in ["cs-1", "cs-2", "cs-3"] {
        std::fs::remove_file(chunk_file(&cluster, server, &content)).unwrap();
    }
    cluster.up();
    wait_until("it counts as lost", || cluster.dfs_json(["status"])["chunks"]["lost"] == 1);
    let read = cluster.try_dfs(["cat", "/f", "--server-wait", "5s"]);
    assert!(!read.status.success() && read.stdout.is_empty(), "{read:?}");
}

#[test]
fn a_chunk_file_that_somebody_removed_is_missed_and_made_anew_while_the_server_runs() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    let pid = cluster.pid("cs-2");
    let path = chunk_file(&cluster, "cs-2", &content);
    std::fs::remove_file(&path).unwrap();
    let checked = cluster.try_dfs(["fsck"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("cs-2 has a chunk file that is not right: the file is gone"), "{said}");
    cluster.until_clean();
    assert!(path.exists() && cluster.pid("cs-2") == pid);
    for server in ["cs-1", "cs-3"] {
        cluster.kill(server);
    }
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
}

#[test]
fn a_flipped_byte_outside_the_data_is_told_of_and_mended_by_the_check() {
    need_fuse!();
    let cluster = unscrubbed();
    let contents: Vec<_> = (0..3).map(|n| pattern(500_000 + n, n as u64 + 1)).collect();
    for (number, content) in contents.iter().enumerate() {
        write_synced(&cluster.mount().join(number.to_string()), content);
    }
    // A clean stop writes the slots.
    cluster.down();
    cluster.up();
    cluster.until_clean();
    let places: [(&[u64], &str); 3] = [
        (&HEADER_AT[..1], "the first copy of the header is damaged"),
        (&HEADER_AT, "both copies of the header are damaged"),
        (&[SLOT_B_AT], "slot B is damaged"),
    ];
    let mut files = Vec::new();
    for (content, (places, _)) in contents.iter().zip(places) {
        let path = chunk_file(&cluster, "cs-2", content);
        let mut header = [0; 4096];
        File::open(&path).unwrap().read_exact_at(&mut header, 0).unwrap();
        places.iter().for_each(|at| flip_at(&path, *at));
        files.push((path, header));
    }
    let checked = cluster.try_dfs(["fsck"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    for (_, what) in places {
        let line = format!("cs-2 has a chunk file that is not right: {what}");
        assert!(said.contains(&line), "{said}");
    }
    cluster.until_clean();
    for (path, header) in files {
        let mut found = [0; 4096];
        File::open(path).unwrap().read_exact_at(&mut found, 0).unwrap();
        assert!(found == header);
    }
}

#[test]
fn a_flipped_byte_outside_the_data_is_survived_by_the_next_start() {
    need_fuse!();
    let cluster = Cluster::start();
    let contents: Vec<_> = (0..4).map(|n| pattern(500_000 + n, n as u64 + 1)).collect();
    for (number, content) in contents.iter().enumerate() {
        write_synced(&cluster.mount().join(number.to_string()), content);
    }
    cluster.down();
    let places: [&[u64]; 4] =
        [&HEADER_AT[..1], &HEADER_AT, &[SLOT_B_AT], &[HEADER_AT[0], HEADER_AT[1], SLOT_B_AT]];
    for (content, places) in contents.iter().zip(places) {
        let path = chunk_file(&cluster, "cs-2", content);
        places.iter().for_each(|at| flip_at(&path, *at));
    }
    cluster.up();
    cluster.until_clean();
    // cs-2 has all of it again, and believes in it after another start.
    cluster.down();
    cluster.up();
    cluster.until_clean();
    for (number, content) in contents.iter().enumerate() {
        let name = format!("/{number}");
        check_bytes("cat", &cluster.try_dfs(["cat", &name]).stdout, content);
    }
}

#[test]
fn fsck_tells_of_a_block_that_is_mended_while_it_reads_on() {
    need_fuse!();
    let cluster = unscrubbed();
    let content = pattern(10 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    // What was written is put in place.
    cluster.down();
    cluster.up();
    let mut found = places(&cluster, "cs-1", &content, 1000);
    found.retain(|(path, _)| !is_of_journal(path));
    let (path, at) = &found[0];
    flip_at(path, *at);
    let checked = cluster.try_dfs(["fsck"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("cs-1 has a bad checksum in block 0;"), "{said}");
    assert!(said.ends_with("see docs/operations.md#fsck-finds-something\n"), "{said}");
    let log = std::fs::read_to_string(cluster.dir().join("log/cs-1.log")).unwrap();
    assert!(log.contains("see=docs/operations.md#a-block-is-bad"), "{log}");
    cluster.until_clean();
}

#[test]
fn a_truncated_chunk_file_is_never_returned() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();
    for (path, at) in places(&cluster, "cs-3", &content, 2_000_000) {
        File::options().write(true).open(&path).unwrap().set_len(at + 10).unwrap();
    }
    cluster.up();
    for _ in 0..6 {
        check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content);
    }
    check_content(&cluster.mount().join("f"), &content);
}

#[test]
fn a_full_disk_says_so_corrupts_nothing_and_goes_on_when_space_is_freed() {
    need_fuse!();
    let options = Options { capacity: None, ..Options::default() };
    let small = ["cs-1", "cs-2", "cs-3"].map(|server| (server, "192m"));
    let (mut cluster, disks) = match Cluster::start_on_small_disks(options, &small) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    let kept = pattern(4 << 20, 1);
    write_synced(&cluster.mount().join("kept"), &kept);

    let mut written = Vec::new();
    let mut refusal = None;
    for number in 0..40 {
        let path = cluster.mount().join(format!("filler-{number}"));
        let content = pattern(8 << 20, 100 + number);
        let result = File::create(&path).and_then(|mut file| {
            file.write_all(&content)?;
            file.sync_all()
        });
        match result {
            Ok(()) => written.push((path, content)),
            Err(error) => {
                refusal = Some((path, error));
                break;
            }
        }
    }
    let (refused_path, error) = refusal.expect("320 MiB do not fit on 192 MiB");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    // As with a program that never syncs, and goes on after a write has failed.
    let unsynced = cluster.mount().join("unsynced");
    let mut file = File::create(&unsynced).unwrap();
    let beyond = pattern(48 << 20, 99);
    let failed = beyond.chunks(1_000_000).filter(|part| file.write_all(part).is_err()).count();
    drop(file);
    // Refused bytes are not the end of a file, read as zeros.
    let second = cluster.mount_again("second");
    let refused = pattern(8 << 20, 100 + u64::try_from(written.len()).unwrap());
    for (name, whole) in
        [(refused_path.file_name().unwrap(), &refused), ("unsynced".as_ref(), &beyond)]
    {
        let found = std::fs::read(second.join(name)).unwrap();
        assert_eq!(
            found.len(),
            std::fs::read(cluster.mount().join(name)).unwrap().len(),
            "{name:?}"
        );
        assert!(found.len() < whole.len(), "{name:?} has all of {}", whole.len());
        let last = found.len().saturating_sub(64);
        let is_stored = |end: &[u8]| whole.windows(end.len().max(1)).any(|part| part == end);
        assert!(
            found.is_empty() || is_stored(&found[last..]),
            "{name:?} of {} ends with {:?}, {failed} writes failed",
            found.len(),
            &found[last..]
        );
    }
    std::fs::remove_file(unsynced).unwrap();
    check_content(&cluster.mount().join("kept"), &kept);
    for (path, content) in &written {
        check_content(path, content);
    }
    // Freed: it goes on.
    std::fs::remove_file(refused_path).unwrap();
    for (path, _) in written.iter().skip(1) {
        std::fs::remove_file(path).unwrap();
    }
    let again = cluster.mount().join("again");
    // More than a sixth of the disk: the journal must not have taken what was freed.
    let content = pattern(32 << 20, 7);
    wait_until("freed space is written to", || {
        File::create(&again)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .is_ok()
    });
    check_content(&again, &content);
    check_content(&cluster.mount().join("kept"), &kept);
    drop(cluster);
    drop(disks);
}

#[test]
fn names_and_paths_have_their_limits() {
    need_fuse!();
    let cluster = Cluster::start();
    let root = cluster.mount();
    File::create(root.join("n".repeat(255))).unwrap();
    let error = File::create(root.join("n".repeat(256))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    // Any byte but / and NUL.
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\x01 \n'\"\\");
    write_synced(&root.join(odd), b"odd");
    check_content(&root.join(odd), b"odd");

    // A path of 4,096 bytes is one too long for one call (PATH_MAX counts the NUL); deeper trees are fine.
    let name = "d".repeat(200);
    let mut deep = root.clone();
    while deep.as_os_str().len() + 1 + name.len() < 4_095 {
        deep.push(&name);
    }
    std::fs::create_dir_all(&deep).unwrap();
    let rest = 4_095 - deep.as_os_str().len() - 1;
    let longest = deep.join("f".repeat(rest.min(255)));
    write_synced(&longest, b"deep");
    check_content(&longest, b"deep");
    let too_long = deep.join("x".repeat(rest + 1));
    let error = File::create(&too_long).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    cluster.dfs(["rm", "-r", &format!("/{name}")]);
    // The mount may believe in it for as long as its entries live.
    wait_until("the mount sees that it is gone", || !root.join(&name).exists());
}

#[test]
fn a_directory_holds_a_hundred_thousand_entries() {
    need_fuse!();
    let cluster = Cluster::start();
    let dir = cluster.mount().join("many");
    std::fs::create_dir(&dir).unwrap();
    const THREADS: usize = 8;
    const EACH: usize = 12_500;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let dir = &dir;
            scope.spawn(move || {
                for number in 0..EACH {
                    std::os::unix::fs::symlink(
                        "x",
                        dir.join(format!("entry-{thread}-{number:05}")),
                    )
                    .unwrap();
                }
            });
        }
    });
    let mut names: Vec<_> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), THREADS * EACH);
    assert_eq!(cluster.dfs(["ls", "/many"]).lines().count(), THREADS * EACH);
    assert!(dir.join("entry-7-12499").symlink_metadata().is_ok());
    // Removing while listing misses nothing.
    for entry in dir.read_dir().unwrap().take(1_000) {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(dir.read_dir().unwrap().count(), THREADS * EACH - 1_000);
    cluster.dfs(["rm", "-r", "/many"]);
    wait_until("the mount sees that it is gone", || !dir.exists());
}

#[test]
fn a_sparse_file_of_a_tebibyte_costs_what_is_written() {
    need_fuse!();
    const TIB: u64 = 1 << 40;
    let cluster = Cluster::start();
    let path = cluster.mount().join("sparse");
    let mut file =
        File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    file.set_len(TIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), TIB);
    file.write_all_at(b"middle", TIB / 2 + 123).unwrap();
    file.write_all_at(b"end", TIB - 3).unwrap();
    file.sync_all().unwrap();
    let mut bytes = [1; 10];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 10]);
    file.read_exact_at(&mut bytes, TIB / 2 + 121).unwrap();
    assert_eq!(&bytes, b"\0\0middle\0\0");
    file.seek(SeekFrom::Start(TIB - 5)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, b"\0\0end");
    let located = cluster.dfs_json(["locate", "/sparse"]);
    let chunks = located["chunks"].as_array().unwrap();
    assert!(chunks.len() <= 4, "a few chunks, not sixteen thousand: {}", chunks.len());
    file.set_len(0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn what_is_synced_after_an_interrupted_truncate_is_not_cut_with_it() {
    need_fuse!();
    let mut cluster = Cluster::start();
    let path = cluster.mount().join("f");
    let old = pattern(100_000, 1);
    write_synced(&path, &old);
    // Layouts of the time before are used up: nobody has to be fenced, the intent is logged without any server.
    std::thread::sleep(Duration::from_secs(11));
    for server in ["cs-1", "cs-2", "cs-3"] {
        cluster.kill(server);
    }
    let asked = {
        let path = path.clone();
        std::thread::spawn(move || File::options().write(true).open(path)?.set_len(50_000))
    };
    wait_until("the size is lowered", || cluster.dfs_json(["stat", "/f"])[0]["size"] == 50_000);
    for role in ["mount", "master"] {
        cluster.kill(role);
    }
    assert!(asked.join().unwrap().is_err(), "nobody answered");
    cluster.down();
    cluster.up();
    let new = pattern(40_000, 2);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&new, 60_000).unwrap();
    file.sync_all().unwrap();
    let log = cluster.dir().join("log/master.log");
    wait_until("the truncation is finished", || {
        std::fs::read_to_string(&log).unwrap().contains("truncation of an earlier reign finished")
    });
    let expected = [&old[..50_000], &[0; 10_000], &new].concat();
    let found = std::fs::read(cluster.mount_again("second").join("f")).unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "the bytes written after the truncate");
}
