//! The client library against real processes: files written behind and read ahead, shared by several sessions, while
//! servers die under them.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_client::ClientError;
use dfs_client::error::OpenId;
use dfs_client::file::FileState;
use dfs_client::session::{LockRequest, Session, SessionConfig};
use dfs_core::command::{Change, LockKind, NewKind, Outcome, RenameMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, Layout, NamespaceError};
use dfs_core::time::WallTime;
use dfs_service::conn::ClusterKey;
use tests::{Cluster, Options, signal, wait_until};

const MIB: usize = 1 << 20;

fn start(restart: &'static str) -> Cluster {
    Cluster::start_with(Options { restart, ..Options::default() })
}

fn config(cluster: &Cluster, name: &str) -> SessionConfig {
    let key_file = ["cluster.key", "key"]
        .iter()
        .map(|name| cluster.dir().join(name))
        .find(|path| path.exists());
    let key = key_file.map_or_else(ClusterKey::none, |path| ClusterKey::load(&path).unwrap());
    let mut config = SessionConfig::new(cluster.master_address(), key, name);
    config.server_wait = Duration::from_secs(60);
    config
}

fn session(cluster: &Cluster, name: &str) -> Arc<Session> {
    Session::connect(config(cluster, name)).unwrap()
}

fn create(session: &Arc<Session>, name: &str, layout: Option<Layout>) -> Arc<FileState> {
    let change = Change::Create {
        parent: InodeNo::ROOT,
        name: name.as_bytes().to_vec(),
        kind: NewKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        layout,
        open_existing: true,
    };
    let Outcome::Entry { attr, .. } = session.change(change).unwrap() else { panic!("no entry") };
    session.open(attr.ino, true).unwrap();
    session.file(attr.ino)
}

fn chunks(chunk_size: u64) -> Option<Layout> {
    Some(Layout::striped(chunk_size))
}

/// Bytes that say where they belong.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

#[track_caller]
fn read_all(file: &FileState) -> Vec<u8> {
    let size = usize::try_from(file.size().unwrap()).unwrap();
    let mut out = vec![0xee; size + 10];
    let mut done = 0;
    loop {
        let upto = (done + 300_000).min(out.len());
        let read = file.read(done as u64, &mut out[done..upto]).unwrap();
        if read == 0 {
            break;
        }
        done += read;
    }
    out.truncate(done);
    out
}

#[track_caller]
fn check_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    if let Some(place) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {place} of {} is {}, not {}", found.len(), found[place], expected[place]);
    }
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % n
    }
}

/// An append that finds its chunk full leaves no gap among the numbers of what is written there before and after it.
#[test]
fn a_chunk_that_an_append_found_full_is_written_on() {
    let cluster = start("never");
    let mut config = config(&cluster, "both");
    config.server_wait = Duration::from_secs(5);
    let session = Session::connect(config).unwrap();
    let file = create(&session, "f", chunks(65_536));
    let mut content = pattern(3, 65_536);
    file.write(0, &content).unwrap();
    file.sync(OpenId::NOBODY, false).unwrap();
    for round in 0..3 {
        let (before, after) = (&[round | 0x10; 10][..], &[round | 0x20; 10][..]);
        file.write(0, before).unwrap();
        let at = if round == 0 { content.len() } else { 65_536 };
        assert_eq!(file.append(&[b'x'; 65_536]).unwrap(), at as u64);
        content.truncate(at);
        content.extend_from_slice(&[b'x'; 65_536]);
        file.write(20, after).unwrap();
        file.sync(OpenId::NOBODY, false).unwrap();
        content[..10].copy_from_slice(before);
        content[20..30].copy_from_slice(after);
        check_same(&read_all(&file), &content);
        file.truncate(65_536).unwrap();
    }
}

#[test]
fn what_one_session_closes_another_reads() {
    let cluster = start("never");
    let (writer, reader) = (session(&cluster, "writer"), session(&cluster, "reader"));
    for (number, len) in [0, 1, 4096, 4097, 70_000, 3 * MIB + 17, 70 * MIB].into_iter().enumerate()
    {
        let file = create(&writer, &format!("f{number}"), None);
        let content = pattern(number as u64, len);
        for (piece, part) in content.chunks(100_000).enumerate() {
            file.write(piece as u64 * 100_000, part).unwrap();
        }
        check_same(&read_all(&file), &content);
        file.flush().unwrap();
        writer.release(file.ino(), true);
        let attr = reader.open(file.ino(), false).unwrap();
        assert_eq!((attr.size, attr.writing), (len as u64, false), "{len} bytes");
        check_same(&read_all(&reader.file(file.ino())), &content);
    }
    writer.close();
    assert!(matches!(writer.getattr(InodeNo::ROOT), Err(ClientError::Closed)));
}

/// Random operations on one file from two sessions, each flushed before the other goes on, against a plain buffer.
/// `DFS_TEST_SEED` tries another run. With `deaths` a server dies and comes back now and then.
#[test]
fn a_time_that_is_set_behind_a_write_is_logged_with_it() {
    let cluster = start("never");
    let (writer, reader) = (session(&cluster, "writer"), session(&cluster, "reader"));
    let then = WallTime(1_600_000_000 * 1_000_000_000);
    for (name, layout, len) in [("inline", None, 3000), ("chunks", chunks(64 << 10), 200_000)] {
        let file = create(&writer, name, layout);
        assert_eq!(file.flush_at(then).unwrap(), None, "{name}: nothing was written");
        let content = pattern(7, len);
        file.write(0, &content).unwrap();
        let before = writer.getattr(file.ino()).unwrap();
        let attr = file.flush_at(then).unwrap().expect("it went with the bytes");
        assert_eq!((attr.mtime, attr.size), (then, len as u64), "{name}");
        assert!(then < attr.ctime, "{name}: a change is a change");
        // A mark is cleared with it; nothing else was logged.
        let opened = reader.open(file.ino(), false).unwrap();
        assert_eq!((opened.mtime, opened.size), (then, len as u64), "{name}");
        assert_eq!(opened.change, before.change + 1, "{name}: one step, bytes and time");
        check_same(&read_all(&reader.file(file.ino())), &content);
        // Later than now is for the master to set: what it logs with bytes is never in its future.
        file.write(0, &content[..10]).unwrap();
        assert_eq!(file.flush_at(WallTime(i64::MAX >> 1)).unwrap(), None, "{name}");
        let attr = writer.getattr(file.ino()).unwrap();
        assert!(then < attr.mtime && attr.mtime < WallTime(i64::MAX >> 1), "{name}");
    }
}

fn check_against_a_buffer(
    layout: Option<Layout>,
    size_max: usize,
    seed: u64,
    steps: usize,
    deaths: bool,
) {
    let named = std::env::var("DFS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = named.unwrap_or(seed);
    let cluster = start(if deaths { "on-failure" } else { "never" });
    let mut died_at = Instant::now();
    let sessions = [session(&cluster, "a"), session(&cluster, "b")];
    let first = create(&sessions[0], "file", layout);
    sessions[1].open(first.ino(), true).unwrap();
    let files = [Arc::clone(&first), sessions[1].file(first.ino())];
    let mut model: Vec<u8> = Vec::new();
    let mut draw = Draw(seed);
    let mut who = 0;
    for step in 0..steps {
        if deaths && Duration::from_secs(4) < died_at.elapsed() {
            let victim = ["cs-1", "cs-2", "cs-3", "master"][draw.below(4)];
            if cluster.pid(victim).is_some_and(tests::is_running) {
                cluster.kill(victim);
            }
            died_at = Instant::now();
        }
        if draw.below(8) == 0 {
            files[who].flush().unwrap();
            who = 1 - who;
            files[who].invalidate();
        }
        let file = &files[who];
        let offset = draw.below(size_max);
        let len = match draw.below(3) {
            0 => draw.below(50) + 1,
            1 => draw.below(5000) + 1,
            _ => draw.below(size_max / 3) + 1,
        }
        .min(size_max - offset);
        let what = draw.below(10);
        let end = offset + len;
        match what {
            0..=3 => {
                let data = pattern(step as u64 + 1, len);
                file.write(offset as u64, &data).unwrap();
                model.resize(model.len().max(end), 0);
                model[offset..end].copy_from_slice(&data);
            }
            4 => {
                let data = pattern(step as u64 + 1, len.min(size_max - model.len().min(size_max)));
                if draw.below(3) == 0 {
                    let at = file.append(&data).unwrap();
                    assert_eq!(at, model.len() as u64, "step {step}");
                } else {
                    file.append_behind(&data).unwrap();
                }
                model.extend_from_slice(&data);
            }
            5 => {
                file.truncate(offset as u64).unwrap();
                model.resize(offset, 0);
            }
            6 => {
                let keep_size = draw.below(2) == 0;
                file.zero(offset as u64, len as u64, keep_size).unwrap();
                if !keep_size {
                    model.resize(model.len().max(end), 0);
                }
                let to = end.min(model.len());
                if offset < to {
                    model[offset..to].fill(0);
                }
            }
            _ => {
                let mut out = vec![0xee; len];
                let read = file.read(offset as u64, &mut out).unwrap();
                let expected = model.get(offset..end.min(model.len())).unwrap_or_default();
                assert_eq!(read, expected.len(), "step {step} seed {seed}: read {len} at {offset}");
                if let Some(place) = out.iter().zip(expected).position(|(a, b)| a != b) {
                    panic!(
                        "seed {seed} step {step}: byte {} is {}, not {}",
                        offset + place,
                        out[place],
                        expected[place]
                    );
                }
            }
        }
        assert_eq!(
            file.size().unwrap(),
            model.len() as u64,
            "seed {seed} step {step} operation {what}"
        );
    }
    files[who].fsync().unwrap();
    files[1 - who].invalidate();
    check_same(&read_all(&files[0]), &model);
    check_same(&read_all(&files[1]), &model);
    cluster.until_clean();
}

#[test]
fn two_sessions_see_what_a_buffer_holds_in_chunks_of_64_kib() {
    check_against_a_buffer(chunks(64 << 10), 400_000, 11, 400, false);
}

#[test]
fn two_sessions_see_what_a_buffer_holds_in_chunks_of_4_kib() {
    check_against_a_buffer(chunks(4 << 10), 60_000, 12, 400, false);
}

#[test]
fn two_sessions_see_what_a_buffer_holds_around_the_inline_limit() {
    check_against_a_buffer(None, 6_000, 13, 500, false);
}

#[test]
fn two_sessions_see_what_a_buffer_holds_while_servers_die() {
    check_against_a_buffer(chunks(64 << 10), 400_000, 14, 1500, true);
}

#[test]
fn a_chunkserver_that_dies_under_a_writer_and_a_reader_is_not_noticed() {
    let cluster = start("never");
    let session = session(&cluster, "writer");
    let file = create(&session, "file", chunks(1 << 20));
    let content = pattern(5, 24 * MIB);
    let half = content.len() / 2;
    for (piece, part) in content.chunks(60_000).enumerate() {
        file.write(piece as u64 * 60_000, part).unwrap();
        if piece * 60_000 / MIB == 6 && cluster.pid("cs-2").is_some_and(tests::is_running) {
            cluster.kill("cs-2");
        }
    }
    let began = Instant::now();
    file.flush().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "flush took {:?}", began.elapsed());
    check_same(&read_all(&file), &content);
    let other = self::session(&cluster, "reader");
    other.open(file.ino(), false).unwrap();
    let reader = other.file(file.ino());
    let mut out = vec![0; half];
    assert_eq!(reader.read(half as u64, &mut out).unwrap(), half);
    check_same(&out, &content[half..]);
}

#[test]
fn a_frozen_primary_is_left_out_and_nothing_is_lost() {
    let cluster = start("never");
    let session = session(&cluster, "writer");
    let file = create(&session, "file", chunks(1 << 20));
    let content = pattern(6, 9 * MIB);
    file.write(0, &content[..3 * MIB]).unwrap();
    let frozen = cluster.pid("cs-1").unwrap();
    signal(frozen, rustix::process::Signal::STOP);
    file.write(3 * MIB as u64, &content[3 * MIB..]).unwrap();
    let flushed = file.flush();
    signal(frozen, rustix::process::Signal::CONT);
    flushed.unwrap();
    check_same(&read_all(&file), &content);
}

const RECORD_LEN: usize = 500;

fn record(who: u64, number: u64) -> Vec<u8> {
    let mut record = pattern(who * 1_000_000 + number + 1, RECORD_LEN);
    record[..8].copy_from_slice(&who.to_le_bytes());
    record[8..16].copy_from_slice(&number.to_le_bytes());
    record
}

/// Appends records until `go_on` says no, and flushes: how many, and the offsets of those that were waited for.
fn append_records(
    session: &Arc<Session>,
    ino: InodeNo,
    who: u64,
    go_on: impl Fn(usize) -> bool,
) -> (usize, Vec<u64>) {
    session.open(ino, true).unwrap();
    let file = session.file(ino);
    let mut offsets = Vec::new();
    let mut number = 0;
    while go_on(number) {
        let record = record(who, number as u64);
        if who < 2 {
            offsets.push(file.append(&record).unwrap());
        } else {
            file.append_behind(&record).unwrap();
            if number % 64 == 63 {
                file.fsync().unwrap();
            }
        }
        number += 1;
    }
    file.flush().unwrap();
    (number, offsets)
}

/// Every record is there once, whole, where it was said to be, those of each writer in order.
fn check_records(content: &[u8], written: &[(usize, Vec<u64>)]) {
    let mut found = vec![0; written.len()];
    for (place, bytes) in content.chunks(RECORD_LEN).enumerate() {
        let who = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let writer = usize::try_from(who).unwrap();
        let next: &mut usize = &mut found[writer];
        let at = place * RECORD_LEN;
        let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        assert!(
            bytes == record(who, *next as u64),
            "at {at}: record {number}, not record {next}, of {who}"
        );
        if let Some(offset) = written[writer].1.get(*next) {
            assert_eq!(*offset, at as u64);
        }
        *next += 1;
    }
    let counts: Vec<usize> = written.iter().map(|(count, _)| *count).collect();
    assert_eq!(found, counts);
}

/// Two of them wait for each record, two write behind.
#[test]
fn appends_of_four_sessions_are_there_once_each_while_servers_die() {
    let cluster = start("on-failure");
    let stop = Arc::new(AtomicBool::new(false));
    let maker = session(&cluster, "maker");
    let ino = create(&maker, "log", chunks(64 << 10)).ino();
    let writers: Vec<_> = (0..4u64)
        .map(|who| {
            let session = session(&cluster, &format!("appender {who}"));
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                append_records(&session, ino, who, |_| !stop.load(Ordering::Acquire))
            })
        })
        .collect();
    for victim in ["cs-1", "cs-3"] {
        std::thread::sleep(Duration::from_millis(1500));
        cluster.kill(victim);
    }
    std::thread::sleep(Duration::from_millis(3000));
    stop.store(true, Ordering::Release);
    let written: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    maker.file(ino).invalidate();
    let content = read_all(&maker.file(ino));
    check_records(&content, &written);
    let total: usize = written.iter().map(|(count, _)| *count).sum();
    assert!(400 < total, "only {total} records");
    // No multiple of the record's length is one of the chunk's: the ends that were passed were crossed.
    assert!(2 * (64 << 10) < content.len(), "no record crossed a chunk's end");
}

#[test]
fn a_file_that_leaves_its_inode_while_four_sessions_append_loses_no_record() {
    let cluster = start("never");
    let maker = session(&cluster, "maker");
    let sessions: Vec<_> =
        (0..4).map(|who| session(&cluster, &format!("appender {who}"))).collect();
    for round in 0..40 {
        let ino = create(&maker, &format!("log {round}"), chunks(64 << 10)).ino();
        let written: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = sessions
                .iter()
                .enumerate()
                .map(|(who, session)| {
                    let records = if who < 2 { 9 } else { 100 };
                    scope.spawn(move || {
                        append_records(session, ino, who as u64, |number| number < records)
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        maker.file(ino).invalidate();
        check_records(&read_all(&maker.file(ino)), &written);
    }
}

#[test]
fn a_master_that_dies_and_returns_is_waited_for() {
    let cluster = start("on-failure");
    let session = session(&cluster, "writer");
    let file = create(&session, "file", chunks(1 << 20));
    let content = pattern(8, 8 * MIB);
    file.write(0, &content[..2 * MIB]).unwrap();
    file.fsync().unwrap();
    file.write(2 * MIB as u64, &content[2 * MIB..4 * MIB]).unwrap();
    cluster.kill("master");
    file.write(4 * MIB as u64, &content[4 * MIB..]).unwrap();
    file.flush().unwrap();
    session.change(Change::Unlink { parent: InodeNo::ROOT, name: b"file".to_vec() }).unwrap();
    cluster.kill("master");
    // Open, so it outlives its name and the master.
    check_same(&read_all(&file), &content);
    session.release(file.ino(), true);
}

/// More changes than the master keeps answers for, all younger than one that waits for servers.
#[test]
fn a_truncate_that_waits_for_servers_holds_up_no_other_request_and_no_close() {
    let cluster = start("never");
    let mut config = config(&cluster, "one that waits");
    config.server_wait = Duration::from_secs(120);
    let session = Session::connect(config).unwrap();
    let file = create(&session, "file", chunks(1 << 20));
    file.write(0, &pattern(12, MIB)).unwrap();
    file.fsync().unwrap();
    // Its last word: from here on a close has nothing to say.
    file.flush().unwrap();
    let servers = ["cs-1", "cs-2", "cs-3"].map(|name| cluster.pid(name).unwrap());
    servers.iter().for_each(|pid| signal(*pid, rustix::process::Signal::STOP));
    std::thread::scope(|scope| {
        let truncating = scope.spawn(|| file.truncate(1000));
        std::thread::sleep(Duration::from_millis(500));
        let mkdir = |n: u32| Change::Create {
            parent: InodeNo::ROOT,
            name: format!("dir-{n}").into_bytes(),
            kind: NewKind::Directory,
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
            layout: None,
            open_existing: false,
        };
        for n in 0..2000 {
            session.change(mkdir(n)).unwrap();
        }
        file.flush().unwrap();
        let waited = !truncating.is_finished();
        servers.iter().for_each(|pid| signal(*pid, rustix::process::Signal::CONT));
        truncating.join().unwrap().unwrap();
        assert!(waited, "nothing waited");
    });
    assert_eq!(file.size().unwrap(), 1000);
    let again = session.change(Change::Rmdir { parent: InodeNo::ROOT, name: b"dir-7".to_vec() });
    again.unwrap();
}

#[test]
fn what_a_name_stood_for_can_be_opened_for_a_while_after_another_file_took_it() {
    let cluster = start("never");
    let (reader, writer) = (session(&cluster, "reader"), session(&cluster, "writer"));
    let name = |name: &str| name.as_bytes().to_vec();
    let inodes = || {
        let found = reader.statfs().unwrap();
        found.inodes_total - found.inodes_free
    };
    let before = inodes();
    let gone = create(&writer, "gone", None).ino();
    writer.release(gone, true);
    writer.change(Change::Unlink { parent: InodeNo::ROOT, name: name("gone") }).unwrap();
    wait_until("the master frees what has no name", || inodes() == before);
    let put = |from: &str, content: &[u8]| {
        let file = create(&writer, from, None);
        file.write(0, content).unwrap();
        file.flush().unwrap();
        writer.release(file.ino(), true);
    };
    put("f", b"0");
    let mut opened = 0;
    // Once may be too late on a busy machine.
    for round in 1..=10_u8 {
        let looked_up = reader.lookup(InodeNo::ROOT, b"f").unwrap();
        put("new", &[b'0' + round]);
        let (from_parent, to_parent) = (InodeNo::ROOT, InodeNo::ROOT);
        let mode = RenameMode::Replace;
        let (from, to) = (name("new"), name("f"));
        writer.change(Change::Rename { from_parent, from, to_parent, to, mode }).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        match reader.open(looked_up.ino, false) {
            Ok(_) => {
                check_same(&read_all(&reader.file(looked_up.ino)), &[b'0' + round - 1]);
                reader.release(looked_up.ino, false);
                opened += 1;
            }
            Err(error) => assert_eq!(error, ClientError::Refused(NamespaceError::Stale)),
        }
    }
    assert!(5 < opened, "{opened}");
    wait_until("what was replaced is freed", || inodes() == before + 1);
}

#[test]
fn little_memory_only_makes_the_writer_wait() {
    let cluster = start("never");
    let mut config = config(&cluster, "narrow");
    config.write_budget_bytes = 2 << 20;
    config.readahead_bytes = 2 << 20;
    let session = Session::connect(config).unwrap();
    let content = pattern(9, 40 * MIB);
    let file = create(&session, "file", chunks(4 << 20));
    for (piece, part) in content.chunks(MIB).enumerate() {
        file.write((piece * MIB) as u64, part).unwrap();
    }
    file.flush().unwrap();
    check_same(&read_all(&file), &content);
    // Most of these cross a chunk's end.
    let log = create(&session, "log", chunks(512 << 10));
    for record in content.chunks(300_000) {
        log.append_behind(record).unwrap();
    }
    check_same(&read_all(&log), &content);
}

#[test]
fn a_record_log_keeps_records_whole() {
    let cluster = start("never");
    let session = session(&cluster, "records");
    let file = create(&session, "log", Some(Layout { record_log: true, ..Layout::striped(8192) }));
    let mut expected = Vec::new();
    for number in 0..40 {
        let record = pattern(number + 1, 1500);
        let at = file.append(&record).unwrap();
        assert!(at % 8192 + 1500 <= 8192, "record {number} at {at} crosses a chunk's end");
        expected.push((at, record));
    }
    let too_long = file.append(&[1; 2049]);
    assert!(
        matches!(too_long, Err(ClientError::RecordTooLong { bytes: 2049, most: 2048 })),
        "{too_long:?}"
    );
    assert!(matches!(
        file.write(0, b"x"),
        Err(ClientError::Refused(NamespaceError::NotPermitted(_)))
    ));
    file.flush().unwrap();
    let content = read_all(&file);
    for (at, record) in expected {
        let at = usize::try_from(at).unwrap();
        assert_eq!(&content[at..at + record.len()], &record[..]);
    }
}

#[test]
fn holes_are_found_and_read_as_zeros() {
    let cluster = start("never");
    let session = session(&cluster, "sparse");
    let file = create(&session, "file", chunks(64 << 10));
    let step = 64u64 << 10;
    file.write(5 * step, &[1; 100]).unwrap();
    assert_eq!(file.seek_data(0).unwrap(), Some(5 * step));
    assert_eq!(file.seek_hole(0).unwrap(), Some(0));
    assert_eq!(file.seek_hole(5 * step).unwrap(), Some(5 * step + 100));
    assert_eq!(file.seek_data(5 * step + 100).unwrap(), None);
    file.truncate(1 << 40).unwrap();
    assert_eq!(file.seek_hole(5 * step).unwrap(), Some(6 * step));
    let mut out = [7; 200];
    assert_eq!(file.read((1 << 40) - 100, &mut out).unwrap(), 100);
    assert_eq!(out[..100], [0; 100]);
    let Attr { size, .. } = file.attr().unwrap();
    assert_eq!(size, 1 << 40);
}

#[test]
fn a_lock_is_waited_for_and_a_cancelled_wait_ends() {
    let cluster = start("never");
    let (one, two) = (session(&cluster, "one"), session(&cluster, "two"));
    let ino = create(&one, "file", None).ino();
    let request =
        LockRequest { ino, owner: 1, start: 0, end: 9, kind: Some(LockKind::Exclusive), pid: 1 };
    let wait = Some(Duration::from_secs(30));
    one.set_lock(request, None, &|| false).unwrap();
    let held = two.set_lock(request, None, &|| false);
    assert_eq!(held, Err(ClientError::Refused(NamespaceError::Locked)));
    assert_eq!(two.set_lock(request, wait, &|| true), Err(ClientError::Interrupted));
    let conflict = two.test_lock(ino, 1, 5, 5, LockKind::Shared).unwrap().unwrap();
    assert_eq!((conflict.client, conflict.start, conflict.end), (one.client(), 0, 9));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| two.set_lock(request, wait, &|| false));
        std::thread::sleep(Duration::from_millis(300));
        one.set_lock(LockRequest { kind: None, ..request }, None, &|| false).unwrap();
        waiting.join().unwrap().unwrap();
    });
    // The end of a client ends its locks.
    two.close();
    one.set_lock(request, wait, &|| false).unwrap();
}

#[test]
fn without_a_master_requests_end_after_their_wait() {
    let mut config = SessionConfig::new("127.0.0.1:1", ClusterKey::none(), "nobody");
    config.server_wait = Duration::from_millis(300);
    let began = Instant::now();
    let refused = Session::connect(config);
    assert!(matches!(refused, Err(ClientError::MasterSilent { .. })), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
}
