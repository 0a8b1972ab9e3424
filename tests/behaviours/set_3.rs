//! Set 3: files of records, in chunks on three servers each, that outlive their servers.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_client::file::FileState;
use dfs_client::session::{Session, SessionConfig};
use dfs_core::cluster::{Cluster as Table, LivenessProfile, room_for_new_chunk};
use dfs_core::command::{Change, NewKind, Outcome};
use dfs_core::ids::{ChunkId, InodeNo, ServerId};
use dfs_proto::chunk_file::{DATA_AT, chunk_path};
use dfs_service::conn::ClusterKey;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Cluster, Options, Random, run_with_input, setting, signal, wait_until};

use crate::set_2::{Started, at, beat};
use crate::{need_fuse, refusal};

const CHUNK: u64 = 8192;

/// With a directory `/log` of record logs, as the requirement has them.
fn start(options: Options) -> Cluster {
    let cluster = Cluster::start_with(options);
    let recordlog = ["mkdir", "--layout", "recordlog", "--chunk-size", "8KiB"];
    cluster.dfs([&recordlog[..], &["--record-max", "2KiB", "/log"]].concat());
    cluster
}

/// Appends through the command: the offset it prints.
fn append(cluster: &Cluster, path: &str, record: &[u8]) -> u64 {
    cluster.dfs_fed(["append", path], record).trim().parse().unwrap()
}

/// Bytes that differ from record to record, and are never NUL.
fn record(number: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(number, 3);
    (0..len).map(|_| random.byte() | 1).collect()
}

fn content(cluster: &Cluster, path: &str) -> Vec<u8> {
    let copy = cluster.scratch().join("copy");
    let _absent = std::fs::remove_file(&copy);
    cluster.dfs(["get", path, copy.to_str().unwrap()]);
    std::fs::read(copy).unwrap()
}

fn size(cluster: &Cluster, path: &str) -> u64 {
    cluster.dfs_json(["stat", path])[0]["size"].as_u64().unwrap()
}

pub(crate) fn chunks(cluster: &Cluster, path: &str) -> Vec<Value> {
    cluster.dfs_json(["locate", "--files", path])["chunks"].as_array().unwrap().clone()
}

/// Bytes of each of its chunks, by its size.
fn chunk_bytes(cluster: &Cluster, path: &str) -> Vec<u64> {
    let size = size(cluster, path);
    let of = |chunk: &Value| (size - chunk["index"].as_u64().unwrap() * CHUNK).min(CHUNK);
    chunks(cluster, path).iter().map(of).collect()
}

#[test]
fn case_3_1_ten_records_of_2048_fill_chunks_without_padding() {
    need_fuse!();
    let cluster = start(Options::default());
    let records: Vec<Vec<u8>> = (0..10).map(|n| record(n, 2048)).collect();
    for (number, record) in (0..).zip(&records) {
        assert_eq!(append(&cluster, "/log/f", record), number * 2048);
    }
    assert_eq!(chunk_bytes(&cluster, "/log/f"), [8192, 8192, 4096]);
    assert!(content(&cluster, "/log/f") == records.concat(), "bytes differ");
}

#[test]
fn case_3_2_a_record_that_does_not_fit_begins_the_next_chunk_and_nul_fills_the_rest() {
    need_fuse!();
    let cluster = start(Options::default());
    let records: Vec<Vec<u8>> = (0..6).map(|n| record(n, 1500)).collect();
    let offsets: Vec<u64> = records.iter().map(|r| append(&cluster, "/log/f", r)).collect();
    assert_eq!(offsets, [0, 1500, 3000, 4500, 6000, 8192]);
    assert_eq!(size(&cluster, "/log/f"), 9692);
    let expected = [&records[..5].concat()[..], &[0; 692], &records[5][..]].concat();
    assert!(content(&cluster, "/log/f") == expected, "bytes differ");
    // The same through a mount.
    assert!(std::fs::read(cluster.mount().join("log/f")).unwrap() == expected, "bytes differ");
}

#[test]
fn case_3_3_a_record_that_fits_exactly_needs_no_padding_nor_does_the_next() {
    need_fuse!();
    let cluster = start(Options::default());
    let records: Vec<Vec<u8>> = (0..5).map(|n| record(n, if n == 4 { 1 } else { 2048 })).collect();
    let offsets: Vec<u64> = records.iter().map(|r| append(&cluster, "/log/f", r)).collect();
    assert_eq!(offsets, [0, 2048, 4096, 6144, 8192]);
    assert!(content(&cluster, "/log/f") == records.concat(), "bytes differ");
}

#[test]
fn case_3_4_a_record_that_is_too_long_is_refused_and_an_empty_one_is_none() {
    need_fuse!();
    let cluster = start(Options::default());
    append(&cluster, "/log/f", &record(1, 100));
    let before = cluster.dfs_json(["stat", "/log/f"]);
    let mut command = cluster.command(["append", "/log/f"]);
    let refused = run_with_input(&mut command, &record(2, 2049), Duration::from_secs(60));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("longer than 2048 bytes") && refused.stdout.is_empty(), "{said}");
    assert_eq!(cluster.dfs_json(["stat", "/log/f"]), before);
    assert_eq!(append(&cluster, "/log/f", b""), 100);
    assert_eq!(size(&cluster, "/log/f"), 100);
    assert_eq!(append(&cluster, "/log/f", &record(3, 2048)), 100);

    // Directories that make no sense are not made.
    let mkdir = |more: &[&str], code| refusal(&cluster, &[&["mkdir"], more].concat(), code);
    let long = ["--layout", "recordlog", "--chunk-size", "8KiB", "--record-max", "4KiB", "/x"];
    assert!(mkdir(&long, 1).contains("at most 2048"));
    assert!(mkdir(&["--record-max", "1KiB", "/x"], 1).contains("only a record log"));
    assert!(mkdir(&["--layout", "tree", "/x"], 2).contains("'tree'"));
    assert!(mkdir(&["--record-max", "0", "/x"], 2).contains("from 1 to 4MiB"));
    assert!(!cluster.dfs(["ls", "/"]).contains('x'));
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// DECISIONS 23, beside case 3.4.
#[test]
fn case_3_4_a_mount_takes_appends_and_nothing_else() {
    need_fuse!();
    let cluster = start(Options::default());
    let path = cluster.mount().join("log/f");
    let mut log = File::options().create(true).append(true).open(&path).unwrap();
    let first = record(1, 2000);
    log.write_all(&first).unwrap();
    assert_eq!(errno(log.write(&record(2, 2049))), Some(libc::EMSGSIZE));
    // Each write is one record: the fifth does not fit.
    (2..=5).for_each(|n| log.write_all(&record(n, 2000)).unwrap());
    assert_eq!(path.metadata().unwrap().len(), 8192 + 2000);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(before[..2000], first[..]);
    assert_eq!(before[8000..8192], [0; 192]);

    let plain = File::options().write(true).open(&path).unwrap();
    assert_eq!(errno(plain.write_all_at(b"x", 0)), Some(libc::EPERM));
    assert_eq!(errno(plain.set_len(100)), Some(libc::EPERM));
    assert_eq!(errno(plain.set_len(1 << 20)), Some(libc::EPERM));
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let punched = rustix::fs::fallocate(&plain, punch, 0, 4096);
    assert_eq!(punched.err(), Some(rustix::io::Errno::PERM));
    assert!(std::fs::read(&path).unwrap() == before, "a refused call changed it");
    plain.set_len(0).unwrap();
    log.write_all(&first).unwrap();
    assert!(std::fs::read(&path).unwrap() == first, "it begins anew");
}

/// DECISIONS 23: a record is whole or refused, however the kernel cuts the write.
#[test]
fn case_3_4_a_write_through_a_mount_is_one_record_or_none() {
    need_fuse!();
    const MIB: usize = 1 << 20;
    let cluster = Cluster::start_with(Options::default());
    cluster.dfs(["mkdir", "--layout", "recordlog", "/log"]);
    let path = cluster.mount().join("log/f");
    let mut log = File::options().create(true).append(true).open(&path).unwrap();
    let page = rustix::param::page_size();
    let most = MIB - page;
    let bytes = record(1, 3 * MIB + page);
    // A page begins here.
    let aligned = bytes.as_ptr().align_offset(page);
    let mut content = Vec::new();
    for unaligned in [0, 1, page - 1] {
        for len in [most - 1, most, most + 1, MIB - 1, MIB, MIB + 1, 3 * MIB / 2, 3 * MIB - page] {
            let record = &bytes[aligned + unaligned..][..len];
            let written = log.write(record);
            if len <= most {
                assert_eq!(written.unwrap(), len, "{len} bytes, {unaligned} behind a page's begin");
                content.extend_from_slice(record);
            } else {
                assert_eq!(errno(written), Some(libc::EMSGSIZE), "{len} bytes, {unaligned} behind");
            }
            assert_eq!(size(&cluster, "/log/f"), content.len() as u64, "{len}, {unaligned}");
        }
    }
    assert!(std::fs::read(&path).unwrap() == content, "bytes differ");
    // `dfs append` is no write of a kernel.
    assert_eq!(append(&cluster, "/log/f", &bytes[..3 * MIB]), content.len() as u64);
}

fn session(cluster: &Cluster, name: &str) -> Arc<Session> {
    let key = ClusterKey::load(&cluster.dir().join("cluster.key")).unwrap();
    let mut config = SessionConfig::new(cluster.master_address(), key, name);
    config.server_wait = Duration::from_secs(60);
    Session::connect(config).unwrap()
}

/// Opens a file of `/log` to append, made if it is absent.
fn open(session: &Arc<Session>, log: InodeNo, name: &str) -> Arc<FileState> {
    let change = Change::Create {
        parent: log,
        name: name.as_bytes().to_vec(),
        kind: NewKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        layout: None,
        open_existing: true,
    };
    let Outcome::Entry { attr, .. } = session.change(change).unwrap() else { panic!("no entry") };
    session.open(attr.ino, true).unwrap();
    session.file(attr.ino)
}

fn log_inode(cluster: &Cluster) -> InodeNo {
    InodeNo(cluster.dfs_json(["stat", "/log"])[0]["inode"].as_u64().unwrap())
}

/// Appends of one client until `over` says so of their number; each record with the offset it was told.
fn append_until(
    cluster: &Cluster,
    log: InodeNo,
    client: u64,
    over: impl Fn(u64) -> bool,
) -> Vec<(u64, Vec<u8>)> {
    let session = session(cluster, &format!("client-{client}"));
    let file = open(&session, log, "shared");
    let mut random = Random::new(client, 5);
    let mut appended = Vec::new();
    while !over(appended.len() as u64) {
        let len = usize::try_from(random.below(2048)).unwrap() + 1;
        let record = record(client << 32 | appended.len() as u64, len);
        appended.push((file.append(&record).unwrap(), record));
    }
    file.flush().unwrap();
    appended
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each record is at its offset, within one chunk, and what is between them is NUL. Answers the bytes of that.
fn check_records(content: &[u8], records: &mut [(u64, Vec<u8>)]) -> u64 {
    records.sort();
    let (mut end, mut padding) = (0, 0);
    for (offset, record) in records.iter() {
        let from = usize::try_from(*offset).unwrap();
        assert!(end <= from, "two records at {from}");
        assert!(content[end..from].iter().all(|byte| *byte == 0), "bytes of nobody before {from}");
        padding += (from - end) as u64;
        assert!(content[from..from + record.len()] == record[..], "record at {from}");
        end = from + record.len();
        assert!(*offset / CHUNK == (end as u64 - 1) / CHUNK, "the record at {from} is split");
    }
    assert!(content[end..].iter().all(|byte| *byte == 0), "bytes of nobody after {end}");
    padding
}

/// After a restart all bytes are in the chunk files.
fn check_replicas_are_identical(cluster: &Cluster, path: &str, content: &[u8]) {
    let located = chunks(cluster, path);
    cluster.down();
    cluster.up();
    for (chunk, bytes) in located.iter().zip(content.chunks(8192)) {
        let files = chunk["files"].as_array().unwrap();
        assert_eq!(files.len(), 3);
        for file in files {
            let path = Path::new(file["path"].as_str().unwrap());
            let whole = std::fs::read(path).unwrap();
            let mut found = whole[usize::try_from(DATA_AT).unwrap()..].to_vec();
            // The file may end before its padding, and hold anything behind the chunk's end.
            found.resize(bytes.len(), 0);
            assert!(found == bytes, "{} differs", path.display());
        }
    }
    assert_eq!(located.len(), content.len().div_ceil(8192));
}

#[test]
fn case_3_5_five_clients_append_to_one_file_and_every_record_is_there_once() {
    need_fuse!();
    let count = setting("DFS_BEHAVIOURS_APPENDS", 100);
    let cluster = start(Options { chunkservers: 7, ..Options::default() });
    let log = log_inode(&cluster);
    let mut records: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
        let cluster = &cluster;
        let clients: Vec<_> = (1..=5)
            .map(|client| {
                scope.spawn(move || append_until(cluster, log, client, |done| count <= done))
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(records.len() as u64, 5 * count);
    let content = content(&cluster, "/log/shared");
    let padding = check_records(&content, &mut records);
    assert!(padding * 100 <= content.len() as u64 * 25, "{padding} of {}", content.len());
    check_replicas_are_identical(&cluster, "/log/shared", &content);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

/// Servers that the map lists for each chunk of these files.
fn listed(cluster: &Cluster, names: &[String]) -> BTreeMap<u64, BTreeSet<String>> {
    let mut listed = BTreeMap::new();
    for chunk in names.iter().flat_map(|name| chunks(cluster, name)) {
        let servers = chunk["servers"].as_array().unwrap().iter();
        let servers = servers.map(|server| server.as_str().unwrap().to_owned());
        listed.insert(chunk["id"].as_u64().unwrap(), servers.collect());
    }
    listed
}

/// Forty files of one chunk each, on seven servers, of which one with twelve chunks or more is killed.
fn forty_files_without_a_server() -> (Cluster, Vec<String>, String) {
    let cluster = start(Options { chunkservers: 7, ..Options::default() });
    let names: Vec<String> = (0..40).map(|n| format!("/log/f{n}")).collect();
    for (number, name) in (0..).zip(&names) {
        let path = cluster.mount().join(&name[1..]);
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(&record(number, 1000)).unwrap();
    }
    let before = listed(&cluster, &names);
    let chunks_of = |server: &String| before.values().filter(|on| on.contains(server)).count();
    let killed = (1..=7).map(|n| format!("cs-{n}")).max_by_key(chunks_of).unwrap();
    let lost = chunks_of(&killed);
    assert!(12 <= lost, "{lost}");
    cluster.kill(&killed);
    wait_until("every chunk has three live copies", || {
        listed(&cluster, &names).values().all(|on| on.len() == 3 && !on.contains(&killed))
            && cluster.dfs_json(["status"])["chunks"]["safe"] == 40
    });
    let after = listed(&cluster, &names);
    let mut gained: BTreeMap<&String, usize> = BTreeMap::new();
    for (chunk, servers) in &after {
        for server in servers.difference(&before[chunk]) {
            *gained.entry(server).or_default() += 1;
        }
    }
    assert_eq!(gained.values().sum::<usize>(), lost);
    let most = lost.div_ceil(6) + 1;
    assert!(gained.values().all(|copies| *copies <= most), "{most}: {gained:?}");
    (cluster, names, killed)
}

#[test]
fn case_3_6_lost_copies_are_made_again_on_all_the_others() {
    need_fuse!();
    let (cluster, names, _killed) = forty_files_without_a_server();
    assert!(content(&cluster, &names[0]) == record(0, 1000), "bytes differ");
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn case_3_7_a_server_that_returns_keeps_no_surplus_and_no_stale_copy() {
    need_fuse!();
    let (cluster, names, killed) = forty_files_without_a_server();
    let mut expected = Vec::new();
    for (number, name) in (0..).zip(&names) {
        let mut bytes = record(number, 1000);
        if number % 4 == 0 {
            append(&cluster, name, &record(100 + number, 500));
            bytes.extend(record(100 + number, 500));
        }
        expected.push(bytes);
    }
    let data = cluster.dir().join("data");
    let holds =
        |chunk: u64, server: &str| data.join(server).join(chunk_path(ChunkId(chunk))).is_file();
    let left = listed(&cluster, &names).keys().filter(|chunk| holds(**chunk, &killed)).count();
    assert!(12 <= left, "what the dead server holds: {left}");
    let _back = Started::again(&cluster, &killed);
    wait_until("each chunk has three files, on the servers that are listed", || {
        listed(&cluster, &names).iter().all(|(chunk, servers)| {
            let on = (1..=7).map(|n| format!("cs-{n}")).filter(|server| holds(*chunk, server));
            servers.len() == 3 && on.collect::<BTreeSet<_>>() == *servers
        })
    });
    for (name, expected) in names.iter().zip(&expected) {
        assert!(content(&cluster, name) == *expected, "{name}");
    }
    cluster.until_clean();
}

#[test]
fn case_3_8_a_chunk_without_a_server_is_named_with_its_last_holders_and_others_are_fine() {
    need_fuse!();
    let options = Options { chunkservers: 6, profile: "standard", ..Options::default() };
    let cluster = start(options);
    let names: Vec<String> = (0..10).map(|n| format!("/log/f{n}")).collect();
    for (number, name) in (0..).zip(&names) {
        append(&cluster, name, &record(number, 1000));
    }
    let holders = |name: &str| -> BTreeSet<String> {
        let chunks = chunks(&cluster, name);
        let servers = chunks[0]["servers"].as_array().unwrap().iter();
        servers.map(|server| server.as_str().unwrap().to_owned()).collect()
    };
    wait_until("it serves", || cluster.dfs_json(["status"])["phase"] == "serving");
    let dead = holders(&names[0]);
    dead.iter().for_each(|server| cluster.kill(server));
    for arguments in [["cat", names[0].as_str()], ["append", names[0].as_str()]] {
        let mut command = cluster.command(arguments);
        command.args(["--server-wait", "500ms"]);
        let refused = run_with_input(&mut command, b"more", Duration::from_secs(60));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(refused.stdout.is_empty() && said.contains("chunk "), "{said}");
        assert!(dead.iter().all(|server| said.contains(server)), "{dead:?}: {said}");
    }
    let mut others = 0;
    for (number, name) in (1..).zip(&names[1..]) {
        let left = holders(name).difference(&dead).count();
        if 0 < left {
            others += 1;
            assert!(content(&cluster, name) == record(number, 1000), "{name}");
        }
    }
    assert!(0 < others, "every chunk is on the same three servers");
    let _back = Started::again(&cluster, dead.first().unwrap());
    wait_until("it is read again", || {
        let read = cluster.try_dfs(["cat", &names[0], "--server-wait", "500ms"]);
        read.status.success() && read.stdout == record(0, 1000)
    });
}

#[test]
fn case_3_9_a_master_that_restarts_knows_no_file_until_the_servers_tell() {
    need_fuse!();
    let options = Options { profile: "standard", restart: "on-failure", ..Options::default() };
    let cluster = start(options);
    append(&cluster, "/log/f", &record(1, 2000));
    let servers = ["cs-1", "cs-2", "cs-3"].map(|id| cluster.pid(id).unwrap());
    servers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let old = cluster.pid("master").unwrap();
    cluster.kill("master");
    wait_until("a new master", || cluster.pid("master").is_some_and(|new| new != old));
    let status = cluster.dfs_json(["status", "--server-wait", "60s"]);
    assert_eq!(status["phase"], "warming");
    let restarted = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let files = |cluster: &Cluster| chunks(cluster, "/log/f")[0]["files"].clone();
    let updated = |cluster: &Cluster| -> Vec<Option<i64>> {
        let files = files(cluster);
        files.as_array().unwrap().iter().map(|file| file["updatedNs"].as_i64()).collect()
    };
    assert_eq!(updated(&cluster), [None; 3], "nobody has told yet");
    let said = refusal(&cluster, &["cat", "/log/f", "--server-wait", "500ms"], 1);
    assert!(said.contains("warming"), "{said}");
    servers.iter().for_each(|pid| signal(*pid, Signal::CONT));
    wait_until("all have told", || updated(&cluster).iter().all(Option::is_some));
    let newer = |at: &Option<i64>| at.is_some_and(|at| restarted < u128::try_from(at).unwrap());
    assert!(updated(&cluster).iter().all(newer), "{restarted} {:?}", updated(&cluster));
    assert!(content(&cluster, "/log/f") == record(1, 2000), "bytes differ");
    wait_until("it serves", || cluster.dfs_json(["status"])["phase"] == "serving");
}

#[test]
fn case_3_10_a_file_is_read_while_one_and_two_of_its_three_servers_are_dead() {
    need_fuse!();
    let cluster = start(Options { profile: "standard", ..Options::default() });
    let records: Vec<Vec<u8>> = (0..9).map(|n| record(n, 2048)).collect();
    for record in &records {
        append(&cluster, "/log/f", record);
    }
    for server in ["cs-2", "cs-1"] {
        cluster.kill(server);
        assert!(content(&cluster, "/log/f") == records.concat(), "without {server}");
    }
}

#[test]
fn case_3_11_a_record_is_there_once_although_primaries_are_killed_in_mid_append() {
    need_fuse!();
    const KILLS: u64 = 4;
    let cluster = start(Options { chunkservers: 4, restart: "on-failure", ..Options::default() });
    let log = log_inode(&cluster);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let over = |count| {
        done.store(count, Ordering::Relaxed);
        stop.load(Ordering::Relaxed)
    };
    let mut records = std::thread::scope(|scope| {
        let client = scope.spawn(|| append_until(&cluster, log, 1, over));
        // Also when this fails: the scope waits for its threads.
        let stop = StopAtEnd(&stop);
        let goes_on = || {
            let before = done.load(Ordering::Relaxed);
            wait_until("it appends", || before + 20 <= done.load(Ordering::Relaxed));
        };
        for _ in 0..KILLS {
            goes_on();
            // Of the last chunk: where the next record goes.
            let located = chunks(&cluster, "/log/shared");
            let primary = located.last().unwrap()["primary"].as_str().unwrap().to_owned();
            wait_until("it is up", || cluster.pid(&primary).is_some_and(tests::is_running));
            signal(cluster.pid(&primary).unwrap(), Signal::KILL);
        }
        goes_on();
        drop(stop);
        client.join().unwrap()
    });
    assert!(20 * (KILLS + 1) <= records.len() as u64);
    let content = content(&cluster, "/log/shared");
    check_records(&content, &mut records);
    cluster.until_clean();
}

#[test]
fn case_3_12_chunks_go_to_servers_in_proportion_to_their_free_space() {
    const CREATES: u64 = 10_000;
    const GIB: u64 = 1 << 30;
    // Three of each kind, so that each chunk's three servers can be chosen freely.
    let sizes = [100 * GIB, 50 * GIB, 10 * GIB];
    let mut table = Table::new(LivenessProfile::STANDARD);
    let mut counts: BTreeMap<ServerId, u64> = BTreeMap::new();
    let mut held: BTreeMap<ServerId, u64> = BTreeMap::new();
    for create in 0..CREATES {
        // A heartbeat of each now and then.
        if create % 100 == 0 {
            for server in 1..=9_u32 {
                let free = sizes[usize::try_from(server - 1).unwrap() / 3];
                let count = held.get(&ServerId(server)).copied().unwrap_or(0);
                let told = dfs_core::cluster::Heartbeat {
                    free_bytes: free - count * CHUNK,
                    used_bytes: count * CHUNK,
                    total_bytes: 100 * GIB,
                    chunk_count: count,
                    ..beat(server, format!("10.0.0.{server}:7000"), 1)
                };
                table.on_heartbeat(at(create), told);
            }
        }
        let chosen = table.place(at(create), 3, CHUNK, &[]);
        assert_eq!(chosen.iter().map(|m| m.server).collect::<BTreeSet<_>>().len(), 3);
        for member in chosen {
            *counts.entry(member.server).or_default() += 1;
            *held.entry(member.server).or_default() += 1;
        }
    }
    let all: u64 = counts.values().sum();
    let kind = |from: u32| (from..from + 3).filter_map(|n| counts.get(&ServerId(n))).sum::<u64>();
    for (from, size) in [(1, sizes[0]), (4, sizes[1]), (7, sizes[2])] {
        let (share, due) = (kind(from) * 100 / all, size * 100 / (160 * GIB));
        assert!(share.abs_diff(due) <= 10, "{from}: {share} % instead of {due} %: {counts:?}");
    }
    // Whoever has no room for a chunk gets none.
    let full = dfs_core::cluster::Heartbeat {
        free_bytes: room_for_new_chunk(CHUNK) - 1,
        total_bytes: 100 * GIB,
        ..beat(1, "10.0.0.1:7000".to_owned(), 1)
    };
    table.on_heartbeat(at(CREATES), full);
    for _ in 0..100 {
        let chosen = table.place(at(CREATES), 3, CHUNK, &[]);
        assert!(chosen.iter().all(|member| member.server != ServerId(1)), "{chosen:?}");
    }
}

pub(crate) fn file_on(chunk: &Value, server: &str) -> PathBuf {
    let mut files = chunk["files"].as_array().unwrap().iter();
    let file = files.find(|file| file["server"] == server).unwrap();
    PathBuf::from(file["path"].as_str().unwrap())
}

#[test]
fn case_3_13_a_removed_chunk_file_and_a_flipped_byte_are_found_and_mended() {
    need_fuse!();
    // No scrub but the one that is asked for.
    let timing = &["--scrub-period", "0"];
    let cluster = start(Options { timing, ..Options::default() });
    let records: Vec<Vec<u8>> = (0..8).map(|n| record(n, 2048)).collect();
    for record in &records {
        append(&cluster, "/log/f", record);
    }
    // What is written is put in place.
    cluster.down();
    cluster.up();
    wait_until("all is safe", || cluster.dfs_json(["status"])["chunks"]["safe"] == 2);
    let located = chunks(&cluster, "/log/f");
    let servers = |chunk: &Value| chunk["servers"].clone();
    assert_eq!(located.iter().map(servers).map(|s| s.as_array().unwrap().len()).sum::<usize>(), 6);
    // Missed although nobody reads it.
    let removed = file_on(&located[0], "cs-1");
    std::fs::remove_file(&removed).unwrap();
    wait_until("the file is there again", || removed.is_file());
    let log = std::fs::read_to_string(cluster.dir().join("log/cs-1.log")).unwrap();
    let missed = log
        .lines()
        .any(|line| line.contains("the file is gone") && line.contains(removed.to_str().unwrap()));
    assert!(missed, "{log}");
    let flipped = file_on(&located[1], "cs-2");
    let opened = || File::options().read(true).write(true).open(&flipped).unwrap();
    let mut byte = [0];
    opened().read_exact_at(&mut byte, DATA_AT + 100).unwrap();
    let right = byte[0];
    // A replica that was mended may be another file.
    let flip = || opened().write_all_at(&[right ^ 0x40], DATA_AT + 100).unwrap();
    let until_mended = || {
        wait_until("the byte is mended", || {
            let mut byte = [0];
            let found =
                File::open(&flipped).and_then(|file| file.read_exact_at(&mut byte, DATA_AT + 100));
            found.is_ok() && byte[0] == right
        });
        let safe = json!(2);
        wait_until("all is safe", || cluster.dfs_json(["status"])["chunks"]["safe"] == safe);
        assert!(content(&cluster, "/log/f") == records.concat(), "bytes differ");
    };
    flip();
    assert!(content(&cluster, "/log/f") == records.concat(), "bytes differ");
    cluster.dfs(["scrub", "--now"]);
    until_mended();

    // Never returned, also if there is no other replica to read.
    flip();
    cluster.kill("cs-1");
    cluster.kill("cs-3");
    let refused = cluster.try_dfs(["cat", "/log/f", "--server-wait", "1s"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("block 0 is damaged on cs-2"), "{said}");
    assert!(refused.stdout.len() <= 8192 && records.concat().starts_with(&refused.stdout));
    cluster.down();
    cluster.up();
    cluster.dfs(["scrub", "--now"]);
    until_mended();
    cluster.until_clean();
}

/// A record and where it is.
type Placed = (u64, Vec<u8>);

/// What one client appended until `stop`: to the file of all, to its own, and to new ones of one record each, by number.
/// What was told it reads back.
fn append_and_read_until(
    cluster: &Cluster,
    log: InodeNo,
    client: u64,
    stop: &AtomicBool,
) -> ([Vec<Placed>; 2], Vec<Vec<u8>>) {
    let session = session(cluster, &format!("client-{client}"));
    let files =
        ["shared".to_owned(), format!("own-{client}")].map(|name| open(&session, log, &name));
    let mut random = Random::new(client, 14);
    let mut appended = [Vec::new(), Vec::new()];
    let mut created = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        // Not with every record: each is a chunk that all of them look after until the end.
        if count % 20 == 0 {
            let first = record(client << 32 | 1 << 31 | created.len() as u64, 100);
            let file = open(&session, log, &format!("new-{client}-{}", created.len()));
            assert_eq!(file.append(&first).unwrap(), 0);
            let mut found = vec![0; first.len()];
            assert_eq!(file.read(0, &mut found).unwrap(), first.len());
            assert!(found == first, "client {client}: new file {}", created.len());
            file.flush().unwrap();
            session.release(file.ino(), true);
            created.push(first);
        }
        for (file, appended) in files.iter().zip(&mut appended) {
            count += 1;
            let record =
                record(client << 32 | count, usize::try_from(random.below(2048)).unwrap() + 1);
            appended.push((file.append(&record).unwrap(), record));
            let earlier = random.below(appended.len() as u64);
            let (offset, expected) = &appended[usize::try_from(earlier).unwrap()];
            let mut found = vec![0; expected.len()];
            assert_eq!(file.read(*offset, &mut found).unwrap(), expected.len());
            assert!(found == *expected, "client {client}: the record at {offset}");
        }
    }
    files.iter().for_each(|file| file.flush().unwrap());
    (appended, created)
}

/// The requirement's ten minutes with a restart every 20 s: `DFS_BEHAVIOURS_RESTARTS=30 DFS_BEHAVIOURS_PAUSE=20`.
#[test]
fn case_3_14_no_record_is_lost_while_one_of_seven_servers_after_the_other_restarts() {
    need_fuse!();
    let restarts = setting("DFS_BEHAVIOURS_RESTARTS", 5);
    let pause = Duration::from_secs(setting("DFS_BEHAVIOURS_PAUSE", 3));
    let cluster = start(Options { chunkservers: 7, restart: "on-failure", ..Options::default() });
    let log = log_inode(&cluster);
    let stop = AtomicBool::new(false);
    let appended: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=5)
            .map(|client| {
                let (cluster, stop) = (&cluster, &stop);
                scope.spawn(move || append_and_read_until(cluster, log, client, stop))
            })
            .collect();
        let stop = StopAtEnd(&stop);
        for n in 0..restarts {
            std::thread::sleep(pause);
            let server = format!("cs-{}", n % 7 + 1);
            wait_until("it is up", || cluster.pid(&server).is_some_and(tests::is_running));
            signal(cluster.pid(&server).unwrap(), Signal::KILL);
        }
        std::thread::sleep(pause);
        drop(stop);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut shared = Vec::new();
    for (client, ([of_all, mut own], created)) in (1..).zip(appended) {
        let (records, files) = (of_all.len() + own.len(), created.len());
        println!("client {client}: {records} records, {files} new files");
        assert!(10 <= own.len() && 3 <= files, "it appended nothing, or made no file");
        for (number, first) in created.iter().enumerate() {
            let path = cluster.mount().join(format!("log/new-{client}-{number}"));
            assert!(std::fs::read(&path).unwrap() == *first, "{}", path.display());
        }
        check_records(&content(&cluster, &format!("/log/own-{client}")), &mut own);
        shared.extend(of_all);
    }
    check_records(&content(&cluster, "/log/shared"), &mut shared);
    cluster.until_clean();
}
