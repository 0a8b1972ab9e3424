//! What this server knows to be wrong with its replicas: told to the master, mended from other members until it is good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::time::Timestamp;
use dfs_proto::chunk_file::chunk_path;
use dfs_proto::control::{self, RepairSource};
use dfs_service::page::Page;

use crate::node::{Node, lock, now};
use crate::store::ReplicaReport;

/// Bad blocks of one chunk told to the master.
const TOLD_MAX: usize = 64;
/// Bad blocks known at once; the rest of a rotten disk is found again.
const BLOCKS_MAX: usize = 65_536;
const RETRY_FIRST_NANOS: u64 = 1_000_000_000;
const RETRY_MAX_NANOS: u64 = 300_000_000_000;

#[derive(Default, Debug)]
pub(crate) struct Damage {
    blocks: Mutex<BTreeMap<(ChunkId, u32), Due>>,
    /// Their file is gone or belongs elsewhere; what is read comes from an open descriptor.
    files: Mutex<BTreeSet<ChunkId>>,
    /// Blocks made right again since the start, for the master to tell of.
    mended: Mutex<BTreeMap<ChunkId, u32>>,
    /// Who else has them, as the master last said.
    sources: Mutex<BTreeMap<ChunkId, Sources>>,
}

type Sources = BTreeSet<(ServerId, String)>;

/// When a repair is tried next.
#[derive(Debug)]
struct Due {
    at: Timestamp,
    pause_nanos: u64,
}

impl Damage {
    /// Forgets what is known of a replica that was replaced or put aside.
    pub(crate) fn forget(&self, chunk: ChunkId) {
        lock(&self.blocks).retain(|(of, _), _| *of != chunk);
        lock(&self.files).remove(&chunk);
    }

    /// The master names members of what was reported as damaged; with news of one, its repair is due.
    pub(crate) fn on_sources(&self, told: Vec<RepairSource>) {
        let mut named: BTreeMap<ChunkId, Sources> = BTreeMap::new();
        for RepairSource { chunk, server, address } in told {
            // A name that is none cannot be called.
            let Ok(server) = server.parse() else { continue };
            named.entry(ChunkId(chunk)).or_default().insert((server, address));
        }
        let mut known = lock(&self.sources);
        let news = named.iter().filter(|(chunk, sources)| known.get(chunk) != Some(sources));
        for (chunk, _) in news {
            for (_, due) in lock(&self.blocks).range_mut((*chunk, 0)..=(*chunk, u32::MAX)) {
                due.at = Timestamp(0);
            }
        }
        *known = named;
    }

    pub(crate) fn sources(&self, chunk: ChunkId) -> Vec<(ServerId, String)> {
        lock(&self.sources).get(&chunk).into_iter().flatten().cloned().collect()
    }

    /// Blocks whose repair is due, at most `max`; each is due again after a growing pause.
    pub(crate) fn due(&self, now: Timestamp, max: usize) -> Vec<(ChunkId, u32)> {
        let mut blocks = lock(&self.blocks);
        let due = blocks.iter_mut().filter(|(_, due)| due.at <= now).take(max);
        due.map(|(place, due)| {
            due.at = Timestamp(now.0.saturating_add(due.pause_nanos));
            due.pause_nanos = (due.pause_nanos * 2).min(RETRY_MAX_NANOS);
            *place
        })
        .collect()
    }

    fn of(&self, chunk: ChunkId) -> (Vec<u32>, bool) {
        let blocks = lock(&self.blocks);
        let bad = blocks.range((chunk, 0)..=(chunk, u32::MAX)).map(|((_, block), _)| *block);
        (bad.take(TOLD_MAX).collect(), lock(&self.files).contains(&chunk))
    }
}

impl Node {
    /// A block did not have its checksum, or the disk did not give it.
    pub(crate) fn on_bad_block(&self, chunk: ChunkId, block: u32) {
        {
            let mut blocks = lock(&self.damage.blocks);
            if BLOCKS_MAX <= blocks.len() || blocks.contains_key(&(chunk, block)) {
                return;
            }
            blocks.insert((chunk, block), Due { at: now(), pause_nanos: RETRY_FIRST_NANOS });
        }
        self.metrics.bad_blocks.inc();
        tracing::error!(
            chunk = chunk.0,
            block,
            see = %Page::BadBlock,
            "bad block: its checksum is wrong, or the disk does not give it"
        );
        self.on_changed(chunk);
        self.news.urgent.notify_one();
    }

    /// A block has its checksum.
    pub(crate) fn on_good_block(&self, chunk: ChunkId, block: u32) {
        if lock(&self.damage.blocks).remove(&(chunk, block)).is_some() {
            self.on_changed(chunk);
            self.news.urgent.notify_one();
        }
    }

    /// A bad block was made right again.
    pub(crate) fn on_mended(&self, chunk: ChunkId, block: u32) {
        {
            let mut mended = lock(&self.damage.mended);
            if mended.len() < BLOCKS_MAX {
                let count = mended.entry(chunk).or_default();
                *count = count.saturating_add(1);
            }
        }
        self.metrics.repaired_blocks.inc();
        self.on_good_block(chunk, block);
        self.on_changed(chunk);
    }

    /// Whether the chunk's file is where it should be.
    pub(crate) fn on_file_seen(&self, chunk: ChunkId, wrong: Option<&str>) {
        let mut files = lock(&self.damage.files);
        let is_news = match wrong {
            Some(what) => {
                let new = files.insert(chunk);
                if new {
                    let path = format_args!("{}/{}", self.directory, chunk_path(chunk));
                    tracing::error!(chunk = chunk.0, %path, what, see = %Page::BadBlock, "chunk file");
                }
                new
            }
            None => files.remove(&chunk),
        };
        drop(files);
        if is_news {
            self.on_changed(chunk);
            self.news.urgent.notify_one();
        }
    }

    pub(crate) fn report_to_wire(&self, report: &ReplicaReport) -> control::ReplicaReport {
        let (bad_blocks, file_damaged) = self.damage.of(report.chunk);
        control::ReplicaReport {
            chunk: report.chunk.0,
            promised: report.promised.0,
            version: report.position.version.0,
            seq: report.position.seq,
            len: report.len,
            sealed: report.sealed,
            dirty: report.dirty,
            not_current: report.not_current,
            digest: report.digest,
            inode: report.spec.inode.0,
            index: report.spec.index,
            chunk_size: report.spec.chunk_size,
            bad_blocks,
            file_damaged,
            file_problem: String::new(),
            data_end: 0,
            copied_bytes: 0,
            mended_blocks: lock(&self.damage.mended).get(&report.chunk).copied().unwrap_or(0),
        }
    }
}
