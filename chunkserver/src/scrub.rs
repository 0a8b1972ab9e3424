//! Reads all replicas of this disk and compares checksums, so that rot is found while other copies are good.
//!
//! Round after round, in the order of chunk ids. A round takes half the period: what came when it had gone by is read in
//! the next one, in time. How far a round is outlives the process. What is wrong is told to the master and mended as if a
//! client had found it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_core::ids::ChunkId;
use dfs_proto::control::ReplicaReport;
use dfs_service::clock::wall_nanos;
use dfs_service::page::Page;
use dfs_service::sealed::{replace, seal, unseal};
use dfs_service::shutdown::Shutdown;

use crate::node::Node;
use crate::store::{ScrubbedBlock, StoreError};

/// Longest sleep: the clock of the wall may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// A killed process reads again what it read since.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// What a replica costs beside its bytes.
const HEADER_BYTES: u64 = 4096;

/// Where the reading is. Times are nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Round {
    began: i64,
    /// Chunks below were read.
    next: u64,
    /// The last round that was finished began then: what is here has been read since. 0: none was.
    all_since: i64,
}

/// Runs until `stop`, on a thread of its own.
pub(crate) fn run(node: &Node, stop: &Shutdown) {
    let Some(period) = node.config.scrub_period else { return };
    let path = node.config.data_dir.join("scrub_state");
    let text = fs::read_to_string(&path).ok();
    // A file that is none costs a round that begins anew, nothing else.
    let kept = text.as_deref().and_then(parse);
    let mut round = kept.unwrap_or(Round { began: wall_nanos(), ..Round::default() });
    loop {
        show(node, round);
        if !read_round(node, period, &mut round, &path, stop) {
            return;
        }
        let end = due(round.began, period, 1, 1);
        if !sleep_until(round.began, end, stop) {
            return;
        }
        round = Round { began: wall_nanos(), next: 0, all_since: round.began };
        keep(&path, round);
        tracing::debug!("all replicas were read");
    }
}

/// False: it was stopped.
fn read_round(
    node: &Node,
    period: Duration,
    round: &mut Round,
    path: &Path,
    stop: &Shutdown,
) -> bool {
    let replicas = node.store.inventory();
    let replicas = replicas.iter().map(|report| (report.chunk, report.len + HEADER_BYTES));
    let replicas: Vec<(ChunkId, u64)> = replicas.collect();
    let total = replicas.iter().map(|(_, bytes)| bytes).sum();
    let mut done = 0;
    let mut kept = Instant::now();
    for (chunk, bytes) in replicas {
        if round.next <= chunk.0 {
            let at = due(round.began, period, done, total);
            if !sleep_until(round.began, at, stop) {
                return false;
            }
            while node.fence.check_takes_part().is_err() {
                if stop.wait_for(Duration::from_secs(1)) {
                    return false;
                }
            }
            match verify(node, chunk, &mut |bytes| give_way(node, bytes, stop)) {
                // Gone since the round began.
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::error!(chunk = chunk.0, %error, see = %Page::BadBlock, "replica cannot be read")
                }
            }
            if stop.is_asked() {
                return false;
            }
            round.next = chunk.0.saturating_add(1);
            if KEEP_EVERY <= kept.elapsed() {
                keep(path, *round);
                kept = Instant::now();
            }
        }
        done += bytes;
    }
    keep(path, *round);
    true
}

/// When what is behind the first `done` of `total` is read.
fn due(began: i64, period: Duration, done: u64, total: u64) -> i64 {
    let round = period.as_nanos() / 2;
    let passed = round.saturating_mul(done.into()) / u128::from(total.max(1));
    began.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
}

/// False: it was stopped. A clock that was set back behind the round's beginning is not waited for.
fn sleep_until(began: i64, at: i64, stop: &Shutdown) -> bool {
    loop {
        let now = wall_nanos();
        let left = u64::try_from(at.saturating_sub(now)).unwrap_or(0);
        if left == 0 || now < began {
            return !stop.is_asked();
        }
        if stop.wait_for(Duration::from_nanos(left).min(SLEEP_MAX)) {
            return false;
        }
    }
}

/// Before `bytes` are read.
pub(crate) fn give_way(node: &Node, bytes: u64, stop: &Shutdown) {
    if node.pace.before_scrub(bytes, stop) {
        node.metrics.scrub_pauses.inc();
    }
}

fn show(node: &Node, round: Round) {
    node.metrics.scrubbed_since.set(round.all_since as f64 / 1e9);
}

/// Reads a whole replica from the disk; what is wrong with it is in the report, and remembered. `before` is told of
/// each block's bytes.
pub(crate) fn verify(
    node: &Node,
    chunk: ChunkId,
    before: &mut dyn FnMut(u64),
) -> Result<ReplicaReport, StoreError> {
    let told = || node.store.report(chunk).ok_or(StoreError::NotFound { chunk });
    let (file_problem, readable) = look_at_file(node, chunk)?;
    if !readable {
        let report = node.report_to_wire(&told()?);
        return Ok(ReplicaReport { file_problem, ..report });
    }
    let block_bytes = told()?.spec.block_size();
    let (mut block, mut data_end) = (0, 0);
    // One may be mended before the last block is read.
    let mut found = BTreeSet::new();
    loop {
        before(block_bytes);
        match node.store.read_for_scrub(chunk, block) {
            Ok(ScrubbedBlock { bytes, data_end: end }) => {
                data_end = end.max(data_end);
                node.metrics.scrubbed_bytes.inc_by(bytes);
                node.on_good_block(chunk, block);
            }
            Err(StoreError::BadBlock { .. }) => {
                let report = told()?;
                if report.len <= u64::from(block) * block_bytes {
                    let report = node.report_to_wire(&report);
                    found.extend(&report.bad_blocks);
                    let bad_blocks = found.into_iter().collect();
                    return Ok(ReplicaReport { file_problem, data_end, bad_blocks, ..report });
                }
                // It may have come into being between the two looks.
                if let Err(StoreError::BadBlock { .. }) = node.store.read_for_scrub(chunk, block) {
                    found.insert(block);
                    node.on_bad_block(chunk, block);
                }
            }
            Err(error) => return Err(error),
        }
        block += 1;
    }
}

/// Whether the chunk's file is there and begins as it should; it is mended if not. Answers what was wrong with it, empty
/// for nothing, and whether there is anything to read in it.
pub(crate) fn look_at_file(node: &Node, chunk: ChunkId) -> Result<(String, bool), StoreError> {
    let what = match node.store.check_file(chunk) {
        Ok(()) => {
            node.on_file_seen(chunk, None);
            return Ok((String::new(), true));
        }
        Err(StoreError::Corrupt { what, .. }) => what,
        Err(error) => return Err(error),
    };
    node.on_file_seen(chunk, Some(&what));
    match node.store.make_whole(chunk) {
        Ok(true) => {
            let file_problem = format!("{what}; written anew from what the server knows");
            tracing::warn!(chunk = chunk.0, file_problem, see = %Page::BadBlock, "chunk file");
            node.on_file_seen(chunk, None);
            Ok((file_problem, true))
        }
        Ok(false) => {
            node.on_file_seen(chunk, None);
            Ok((format!("{what}; it will be copied anew from another member"), false))
        }
        Err(error) => {
            let file_problem = format!("{what}; not mended yet: {error}");
            tracing::error!(chunk = chunk.0, file_problem, see = %Page::BadBlock, "chunk file");
            Ok((file_problem, false))
        }
    }
}

fn text_of(round: Round) -> String {
    let Round { began, next, all_since } = round;
    let body = format!("dfs-scrub-state 1 {began} {next} {all_since}");
    seal(&body)
}

fn parse(text: &str) -> Option<Round> {
    let body = unseal(text)?;
    let mut words = body.strip_prefix("dfs-scrub-state 1 ")?.split(' ');
    let mut next = || words.next();
    let (began, at, all_since) = (next()?, next()?, next()?);
    if next().is_some() {
        return None;
    }
    Some(Round {
        began: began.parse().ok()?,
        next: at.parse().ok()?,
        all_since: all_since.parse().ok()?,
    })
}

fn keep(path: &Path, round: Round) {
    if let Err(error) = replace(path, &text_of(round)) {
        tracing::warn!(%error, path = %path.display(), "keep how far the reading of all replicas is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz_engine::Target;

    const DAY: i64 = 86_400_000_000_000;

    #[test]
    fn a_round_takes_half_the_period_and_each_byte_its_share() {
        let period = Duration::from_secs(14 * 86_400);
        assert_eq!(due(5, period, 0, 100), 5);
        assert_eq!(due(5, period, 50, 100), 5 + 7 * DAY / 2);
        assert_eq!(due(5, period, 100, 100), 5 + 7 * DAY);
        assert_eq!(due(5, period, 0, 0), 5, "an empty disk");
        assert_eq!(due(0, Duration::MAX, u64::MAX, 1), i64::MAX);
    }

    #[test]
    fn scrub_state_file() {
        let round = Round { began: -1, next: u64::MAX, all_since: i64::MAX };
        let valid = [text_of(Round::default()), text_of(round)].map(String::into_bytes).to_vec();
        Target::new("scrub_state", valid).sealed_by(seal).run(|bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return false };
            let Some(round) = parse(text) else { return false };
            assert_eq!(parse(&text_of(round)), Some(round));
            true
        });
    }
}
