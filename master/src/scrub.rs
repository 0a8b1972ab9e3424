//! Has chunkservers read their replicas for `dfs scrub --now`: all servers at once, each in the order of chunk ids.
//!
//! Whatever is wrong a server tells with its heartbeats and mends, as if a client had found it. Up to where a server has
//! read is a mark in the log: the next master does not begin anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dfs_core::cluster::Liveness;
use dfs_core::ids::{ChunkId, InodeNo, ServerId};
use dfs_core::job::{Job, JobId, JobPhase, JobWork, WorkProgress};
use dfs_core::meta::jobs::fetch_state;
use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::control::{ReplicaReport, VerifyRequest};
use dfs_service::page::Page;

use crate::state::{Master, lock, now};
use crate::work::Standing;

/// Replicas asked for in one request.
const ASKED: usize = 64;
/// A server that reads this long in one replica, or gives way to its clients, is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(120);
const AGAIN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);
/// A replica whose reading fails so often on a server that is alive is left.
const TRIES: u32 = 3;
const PAGE: usize = 1024;

/// Scrubs under way in this process.
#[derive(Default)]
pub(crate) struct Scrubs(BTreeMap<JobId, BTreeMap<ServerId, Reader>>);

/// One server's part.
struct Reader {
    at: Arc<At>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How far it is; the task writes, the job's thread reads.
#[derive(Debug, Default)]
struct At {
    mark: AtomicU64,
    done: AtomicU64,
    found: AtomicU64,
    left: Mutex<VecDeque<ChunkId>>,
}

impl At {
    fn progress(&self, server: ServerId, running: bool) -> (WorkProgress, u64) {
        // Under its lock what is read counts either as left or as done.
        let left = lock(&self.left);
        let progress = WorkProgress {
            server,
            done: Some(self.done.load(Ordering::Relaxed)),
            mark: self.mark.load(Ordering::Relaxed),
            busy: running && !left.is_empty(),
        };
        (progress, left.len() as u64)
    }

    /// `chunk` was read, or is not there: it and all before it are over.
    fn pass(&self, chunk: ChunkId, damaged: bool) {
        let mut left = lock(&self.left);
        while let Some(first) = left.front().copied().filter(|first| *first <= chunk) {
            left.pop_front();
            self.mark.store(first.0 + 1, Ordering::Relaxed);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.found.fetch_add(u64::from(damaged), Ordering::Relaxed);
    }
}

impl Scrubs {
    pub(crate) fn keep_only(&mut self, is_open: impl Fn(&JobId) -> bool) {
        self.0.retain(|id, _| is_open(id));
    }

    /// Begins what is not begun, and says how far it is.
    pub(crate) fn go_on(&mut self, master: &Arc<Master>, id: JobId, job: &Job) -> Standing {
        let readers = self.0.entry(id).or_insert_with(|| begin(master, id, job));
        let (mut total, mut found, mut over) = (0, 0, true);
        let mut workers = Vec::new();
        for (server, reader) in readers.iter() {
            let running = job.phase == JobPhase::Running;
            let (progress, left) = reader.at.progress(*server, running);
            total += progress.done.unwrap_or(0) + left;
            found += reader.at.found.load(Ordering::Relaxed);
            over &= left == 0;
            workers.push(progress);
        }
        Standing { total, found, workers, over }
    }
}

fn begin(master: &Arc<Master>, id: JobId, job: &Job) -> BTreeMap<ServerId, Reader> {
    let Some(JobWork::Scrub { server: only, ino, end }) = &job.work else {
        return BTreeMap::new();
    };
    let files = ino.map(|ino| files_below(&master.reader(), ino));
    let mut todo: BTreeMap<ServerId, VecDeque<ChunkId>> = BTreeMap::new();
    let mark = |server: &ServerId| {
        let worker = job.servers.iter().find(|worker| worker.server == *server);
        worker.map_or(0, |worker| worker.mark)
    };
    master.for_each_chunk(|chunk, record| {
        let wanted = chunk < *end && files.as_ref().is_none_or(|files| files.contains(&record.ino));
        let members = record.active.members.iter().map(|member| member.server);
        let wanted = |server: &ServerId| wanted && only.is_none_or(|only| only == *server);
        for server in members.filter(wanted) {
            let left = todo.entry(server).or_default();
            if mark(&server) <= chunk.0 {
                left.push_back(chunk);
            }
        }
    });
    // Those that have done their part, and no longer a chunk.
    for worker in &job.servers {
        todo.entry(worker.server).or_default();
    }
    let mut found = job.found;
    let begin = todo.into_iter().map(|(server, left)| {
        let index = job.servers.iter().position(|worker| worker.server == server);
        let index = index.and_then(|index| u32::try_from(index).ok());
        let done =
            index.map_or(0, |index| fetch_state(&master.reader(), id, index, None).unwrap_or(0));
        let at = Arc::new(At {
            mark: AtomicU64::new(mark(&server)),
            done: AtomicU64::new(done),
            // Of the reign before, with the first: only the sum is told.
            found: AtomicU64::new(std::mem::take(&mut found)),
            left: Mutex::new(left),
        });
        let task = master.runtime.spawn(read(Arc::clone(master), id, server, Arc::clone(&at)));
        (server, Reader { at, task })
    });
    begin.collect()
}

/// A file, or all that is below a directory.
fn files_below(store: &dyn MetaStore, ino: InodeNo) -> BTreeSet<InodeNo> {
    let mut files = BTreeSet::from([ino]);
    let mut open = vec![ino];
    while let Some(dir) = open.pop() {
        let mut from = Key::Dentry(dir, Vec::new());
        loop {
            let page = store.range(&from, &Key::Dentry(InodeNo(dir.0 + 1), Vec::new()), PAGE);
            let full = page.len() == PAGE;
            for (key, record) in page {
                if let (Key::Dentry(_, name), Record::Dentry(dentry)) = (key, record) {
                    from = Key::Dentry(dir, [name.as_slice(), &[0]].concat());
                    if files.insert(dentry.ino) {
                        open.push(dentry.ino);
                    }
                }
            }
            if !full {
                break;
            }
        }
    }
    files
}

/// Why a request ended before all was read.
enum Ended {
    /// The server is away, or does not answer.
    Away,
    /// Somebody paused the job, or the server died.
    Stopped,
    /// It says that it cannot.
    Refused(String),
}

async fn read(master: Arc<Master>, id: JobId, server: ServerId, at: Arc<At>) {
    let mut tries: (Option<ChunkId>, u32) = (None, 0);
    loop {
        let Some(first) = lock(&at.left).front().copied() else { return };
        if master.works.is_paused(id) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        match read_some(&master, id, server, &at).await {
            Ok(()) | Err(Ended::Stopped) => {}
            Err(Ended::Away) => {
                forget_moved(&master, server, &at);
                tokio::time::sleep(AGAIN).await;
            }
            Err(Ended::Refused(reason)) => {
                let now_first = lock(&at.left).front().copied();
                tries = if now_first == tries.0 { (tries.0, tries.1 + 1) } else { (now_first, 1) };
                if TRIES <= tries.1 {
                    tracing::warn!(%server, chunk = first.0, reason, see = %Page::BadBlock, "a replica cannot be read");
                    at.pass(now_first.unwrap_or(first), true);
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Has the next replicas read. A server that dies meanwhile is not waited for.
async fn read_some(
    master: &Arc<Master>,
    id: JobId,
    server: ServerId,
    at: &At,
) -> Result<(), Ended> {
    let address = {
        let (cluster, now) = (lock(&master.cluster), now());
        let row = cluster.row(server).filter(|_| cluster.liveness(now, server) == Liveness::Alive);
        row.map(|row| row.address.clone())
    };
    let address = address.ok_or(Ended::Away)?;
    tokio::select! {
        ended = ask(master, id, &address, at) => ended,
        () = until_paused_or_dead(master, id, server) => Err(Ended::Stopped),
    }
}

async fn ask(master: &Arc<Master>, id: JobId, address: &str, at: &At) -> Result<(), Ended> {
    let chunks: Vec<ChunkId> = lock(&at.left).iter().take(ASKED).copied().collect();
    let Some(last) = chunks.last().copied() else { return Ok(()) };
    let chunks = chunks.iter().map(|chunk| chunk.0).collect();
    let request = VerifyRequest { chunks, paced: true };
    let refused = |status: tonic::Status| {
        use tonic::Code::{Cancelled, Unavailable, Unknown};
        if matches!(status.code(), Unavailable | Cancelled | Unknown) {
            return Ended::Away;
        }
        Ended::Refused(status.message().to_owned())
    };
    let mut client = master.control(address);
    let reports = tokio::time::timeout(ANSWER_MAX, client.verify(request)).await;
    let mut reports = reports.map_err(|_| Ended::Away)?.map_err(refused)?.into_inner();
    loop {
        let next = tokio::time::timeout(ANSWER_MAX, reports.message()).await;
        match next.map_err(|_| Ended::Away)?.map_err(refused)? {
            Some(_) | None if master.works.is_paused(id) => return Err(Ended::Stopped),
            Some(report) => at.pass(ChunkId(report.chunk), is_damaged(&report)),
            // What was not answered for is not there.
            None => {
                at.pass(last, false);
                return Ok(());
            }
        }
    }
}

async fn until_paused_or_dead(master: &Master, id: JobId, server: ServerId) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let dead = lock(&master.cluster).liveness(now(), server) == Liveness::Dead;
        if master.works.is_paused(id) || dead {
            return;
        }
    }
}

fn is_damaged(report: &ReplicaReport) -> bool {
    report.file_damaged || !report.file_problem.is_empty() || !report.bad_blocks.is_empty()
}

/// Copies that are elsewhere by now were compared with their checksums when they were made.
fn forget_moved(master: &Master, server: ServerId, at: &At) {
    let left: Vec<ChunkId> = lock(&at.left).iter().copied().collect();
    let is_here = |chunk: &ChunkId| {
        let record = master.chunk(*chunk);
        record.is_some_and(|it| it.active.members.iter().any(|member| member.server == server))
    };
    let kept: BTreeSet<ChunkId> = left.into_iter().filter(is_here).collect();
    lock(&at.left).retain(|chunk| kept.contains(chunk));
}
