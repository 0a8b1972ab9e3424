//! `dfs fsck`: the metadata against itself, and every block of every replica against its checksum.
//!
//! The chunkservers read their own disks, all at once; what they find they mend from other members, unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_core::check;
use dfs_core::chunk::{Chunk, Member};
use dfs_core::cluster::Liveness;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::meta::{Key, MetaStore, Record};
use dfs_core::namespace::Body;
use dfs_proto::control::{ReplicaReport, VerifyRequest};
use tokio::sync::mpsc;

use crate::state::{Master, lock, now};

/// Replicas asked for in one request.
const ASKED: usize = 1024;
/// A server that reads this long in one replica has a disk that does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// A change of a configuration that takes longer is told of as one that is not finished.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Blocks named one by one.
const NAMED_MAX: usize = 8;

/// Gets kind (`progress`, `violation`), text and how much was checked.
pub type Tell<'a> = &'a mut dyn FnMut(&str, String, u64);

/// What one server said about its disk.
enum Answer {
    Replica(ServerId, ReplicaReport),
    /// It could not go on.
    Broken(ServerId, String),
}

/// Checks all there is; `replicas`: also the chunkservers' disks.
pub fn fsck(master: &Arc<Master>, replicas: bool, tell: Tell<'_>) {
    if let Err(error) = master.store.reader().verify() {
        let text = format!(
            "the master's file state.redb is not what was written: {error}; restart the master, which makes it anew from snapshot and log"
        );
        tell("violation", text, 0);
    }
    for violation in &check::check(&master.reader()) {
        tell("violation", violation.to_string(), 0);
    }
    let checked = if replicas { check_replicas(master, tell) } else { 0 };
    let inodes = match master.reader().get(&Key::Super) {
        Some(Record::Super(superblock)) => superblock.inode_count,
        _ => 0,
    };
    tell("progress", format!("{inodes} inodes and {checked} replicas checked"), inodes + checked);
}

/// Says how many replicas were read.
fn check_replicas(master: &Arc<Master>, tell: Tell<'_>) -> u64 {
    let mut all = BTreeSet::new();
    master.for_each_chunk(|chunk, _| {
        all.insert(chunk);
    });
    let mut checked = 0;
    let moving = look(master, &all, true, &mut checked, tell);
    if !moving.is_empty() {
        let chunks: Vec<String> =
            moving.iter().take(NAMED_MAX).map(|id| id.0.to_string()).collect();
        let (count, more) = (moving.len(), if NAMED_MAX < moving.len() { ", …" } else { "" });
        let text = format!(
            "looking again at {count} chunk(s) that got another configuration meanwhile ({}{more})",
            chunks.join(", ")
        );
        tell("progress", text, checked);
        wait_until_settled(master, &moving);
        look(master, &moving, false, &mut checked, tell);
    }
    checked
}

/// Changes of configurations end, or are given up and begun again later.
fn wait_until_settled(master: &Master, chunks: &BTreeSet<ChunkId>) {
    let began = Instant::now();
    let moves = |chunk: &ChunkId| master.chunk(*chunk).is_some_and(|it| it.preparing.is_some());
    while began.elapsed() < SETTLE_MAX && chunks.iter().any(moves) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Reads and judges `chunks`. With `spare` those that are wrong, and were reconfigured while they were read, are not told
/// of but returned: the answers may be older than what they are judged by.
fn look(
    master: &Arc<Master>,
    chunks: &BTreeSet<ChunkId>,
    spare: bool,
    checked: &mut u64,
    tell: Tell<'_>,
) -> BTreeSet<ChunkId> {
    let mut wanted: BTreeMap<Member, Vec<u64>> = BTreeMap::new();
    let mut versions = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for chunk in chunks {
        let Some(record) = master.chunk(*chunk) else { continue };
        versions.insert(*chunk, record.active.version);
        if let Some(end) = quiet_end(master, &record) {
            ends.insert(*chunk, end);
        }
        for member in &record.active.members {
            wanted.entry(*member).or_default().push(chunk.0);
        }
    }
    let total: usize = wanted.values().map(Vec::len).sum();
    let (mut read, mut bytes) = (0, 0);
    let mut found: BTreeMap<ChunkId, BTreeMap<ServerId, ReplicaReport>> = BTreeMap::new();
    let mut answers = ask(master, wanted);
    let mut told = Instant::now();
    while let Some(answer) = answers.blocking_recv() {
        match answer {
            Answer::Replica(server, report) => {
                read += 1;
                *checked += 1;
                bytes += report.len;
                found.entry(ChunkId(report.chunk)).or_default().insert(server, report);
            }
            Answer::Broken(server, reason) => {
                tell("violation", format!("{server}: {reason}"), *checked);
            }
        }
        if PROGRESS_EVERY <= told.elapsed() {
            told = Instant::now();
            let text = format!("{read} of {total} replicas read, {} MiB", bytes >> 20);
            tell("progress", text, *checked);
        }
    }
    let mut moving = BTreeSet::new();
    for (chunk, version) in versions {
        // As it is now: what was changed or deleted meanwhile is judged as such.
        let Some(record) = master.chunk(chunk) else { continue };
        let mut violations = Vec::new();
        judge(master, chunk, &record, found.get(&chunk), &mut |text| violations.push(text));
        // Whoever wrote or cut the file meanwhile says so in it.
        let end = ends.get(&chunk).filter(|end| quiet_end(master, &record).as_ref() == Some(end));
        if let (Some(end), Some(found)) = (end, found.get(&chunk)) {
            check_end(chunk, &record, end, found, &mut |text| violations.push(text));
        }
        let has_moved = record.preparing.is_some() || record.active.version != version;
        if spare && has_moved && !violations.is_empty() {
            // What the disks have is wrong in any configuration, and may be mended when it is looked at again.
            for (server, report) in found.get(&chunk).into_iter().flatten() {
                for what in file_problem(report).into_iter().chain(damage(report)) {
                    tell("violation", format!("chunk {}: {server} {what}", chunk.0), *checked);
                }
            }
            moving.insert(chunk);
            continue;
        }
        for text in violations {
            tell("violation", text, *checked);
        }
    }
    moving
}

/// Where a file that nobody writes or cuts ends.
#[derive(PartialEq, Eq)]
struct QuietEnd {
    change: u64,
    cuts: u64,
    /// In this chunk.
    at: u64,
}

fn quiet_end(master: &Master, record: &Chunk) -> Option<QuietEnd> {
    let inode = master.inode(record.ino).ok()?;
    let (size, chunk_size) = (inode.size, inode.layout.chunk_size.max(1));
    let quiet = matches!(inode.body, Body::Chunks { writing: false, .. })
        // Its writers pad chunks, and leave what they give up.
        && !inode.layout.record_log
        && !master.may_be_cut(record.ino, record.index, chunk_size);
    let at = size.saturating_sub(record.index.saturating_mul(chunk_size));
    quiet.then_some(QuietEnd { change: inode.change, cuts: inode.cuts, at })
}

/// Bytes behind the file's end would be read when somebody writes behind them.
fn check_end(
    chunk: ChunkId,
    record: &Chunk,
    end: &QuietEnd,
    found: &BTreeMap<ServerId, ReplicaReport>,
    violation: &mut dyn FnMut(String),
) {
    let version = record.active.version.0;
    let current = |report: &ReplicaReport| report.version == version && !report.not_current;
    let beyond = |report: &ReplicaReport| current(report) && end.at < report.data_end;
    let servers: Vec<String> = found
        .iter()
        .filter(|(_, report)| beyond(report))
        .map(|(server, _)| server.to_string())
        .collect();
    if !servers.is_empty() {
        violation(format!(
            "chunk {} (inode {}, index {}) version {version}: bytes behind the file's end on {}; truncating the file to the size it has removes them",
            chunk.0,
            record.ino.0,
            record.index,
            servers.join(", ")
        ));
    }
}

/// Has all live servers read their replicas, each of them one after the other.
fn ask(master: &Arc<Master>, wanted: BTreeMap<Member, Vec<u64>>) -> mpsc::Receiver<Answer> {
    let (send, answers) = mpsc::channel(256);
    for (member, chunks) in wanted {
        let address = lock(&master.cluster).address(now(), &member).map(str::to_owned);
        // One that is away is told of with each of its chunks.
        let Some(address) = address else { continue };
        let mut client = master.control(&address);
        let send = send.clone();
        master.runtime.spawn(async move {
            for part in chunks.chunks(ASKED) {
                let request = VerifyRequest { chunks: part.to_vec(), paced: false };
                let read = async {
                    let late = |_| "its disk does not answer".to_owned();
                    let said = |status: tonic::Status| status.message().to_owned();
                    let mut reports = tokio::time::timeout(ANSWER_MAX, client.verify(request))
                        .await
                        .map_err(late)?
                        .map_err(said)?
                        .into_inner();
                    while let Some(report) = tokio::time::timeout(ANSWER_MAX, reports.message())
                        .await
                        .map_err(late)?
                        .map_err(said)?
                    {
                        if send.send(Answer::Replica(member.server, report)).await.is_err() {
                            return Err(String::new());
                        }
                    }
                    Ok(())
                };
                if let Err(reason) = read.await {
                    let reason = format!("replicas cannot be checked: {reason}");
                    // Whoever asked may be gone; then nobody misses it.
                    let _ = send.send(Answer::Broken(member.server, reason)).await;
                    return;
                }
            }
        });
    }
    answers
}

fn judge(
    master: &Arc<Master>,
    chunk: ChunkId,
    record: &Chunk,
    found: Option<&BTreeMap<ServerId, ReplicaReport>>,
    violation: &mut dyn FnMut(String),
) {
    let place = format!(
        "chunk {} (inode {}, index {}) version {}",
        chunk.0, record.ino.0, record.index, record.active.version.0
    );
    let none = BTreeMap::new();
    let found = found.unwrap_or(&none);
    for member in &record.active.members {
        let read = found.get(&member.server);
        let file = read.and_then(file_problem);
        // A replica that lost its file is not current for that reason.
        let problem = file.or_else(|| problem_of(master, chunk, record, member, read));
        for problem in problem.into_iter().chain(read.and_then(damage)) {
            violation(format!("{place}: {} {problem}", member.server));
        }
    }
    // Two replicas that did the same operations hold the same.
    let mut same: BTreeMap<(u64, u64), (ServerId, u32, u64)> = BTreeMap::new();
    for (server, report) in found.iter().filter(|(_, report)| !report.not_current) {
        let place_of = (report.version, report.seq);
        let first = same.entry(place_of).or_insert((*server, report.digest, report.len));
        if (first.1, first.2) != (report.digest, report.len) {
            let other = first.0;
            violation(format!("{place}: {other} and {server} differ at operation {}", report.seq));
        }
    }
    let (have, want) = (record.active.members.len(), master.replication);
    if have < want as usize {
        violation(format!("{place}: {have} members, {want} are wanted"));
    }
    if record.preparing.is_some() {
        violation(format!("{place}: a configuration change is not finished"));
    }
}

/// What is wrong beside the blocks.
fn file_problem(report: &ReplicaReport) -> Option<String> {
    let what = &report.file_problem;
    (!what.is_empty()).then(|| format!("has a chunk file that is not right: {what}"))
}

/// What cannot be read of a replica.
fn damage(report: &ReplicaReport) -> Option<String> {
    let named: Vec<String> =
        report.bad_blocks.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = match report.bad_blocks.len().saturating_sub(NAMED_MAX) {
        0 => "",
        _ => " and more",
    };
    let blocks = if named.len() == 1 { "block" } else { "blocks" };
    (!named.is_empty()).then(|| {
        format!(
            "has a bad checksum in {blocks} {}{more}; mended from another member if one has the right bytes",
            named.join(", ")
        )
    })
}

/// Why `member` is none with the present content, asked of itself where what it said leaves a doubt.
fn problem_of(
    master: &Arc<Master>,
    chunk: ChunkId,
    record: &Chunk,
    member: &Member,
    read: Option<&ReplicaReport>,
) -> Option<String> {
    {
        let cluster = lock(&master.cluster);
        match cluster.row(member.server).filter(|row| row.disk == member.disk) {
            None => return Some("is not here, or came back with another disk".to_owned()),
            Some(_) if cluster.liveness(now(), member.server) != Liveness::Alive => {
                return Some("is not alive".to_owned());
            }
            Some(_) => {}
        }
    }
    let good =
        |report: &ReplicaReport| report.version == record.active.version.0 && !report.not_current;
    if read.is_some_and(good) {
        return None;
    }
    match master.fresh_report(member, chunk) {
        None if record.born => Some("does not hold it".to_owned()),
        None => None,
        Some(report) if report.version == 0 => record.born.then(|| "does not hold it".to_owned()),
        Some(report) if report.not_current => Some("rebooted with unsynced data".to_owned()),
        Some(report) if report.version != record.active.version.0 => {
            Some(format!("holds version {}", report.version))
        }
        Some(_) => None,
    }
}
