//! Compares the directories of chunk files with what the server believes to hold, so that a file that somebody removed is
//! missed before anybody wants to read it (DECISIONS 23).
//!
//! Names only: whether a file says what it should is the scrub's business. What is missing is mended as if a scrub had
//! found it. A file that is nobody's is told of and left alone: the next start sees to it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::time::Duration;

use dfs_core::ids::ChunkId;
use dfs_proto::chunk_file::{chunk_dir, chunk_path};
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::node::Node;
use crate::scrub::look_at_file;
use crate::store::StoreError;

/// From one round to the next, in heartbeats: 5 s where they come each second.
const BEATS: u32 = 5;
const PERIOD_LEAST: Duration = Duration::from_secs(5);
const PERIOD_MAX: Duration = Duration::from_secs(60);
/// Files that are nobody's and were told of.
const STRANGERS_MAX: usize = 1024;

/// How long a round takes with the pause behind it, by how often the master wants to hear of this server.
fn period(heartbeat_interval: Duration) -> Duration {
    (heartbeat_interval * BEATS).clamp(PERIOD_LEAST, PERIOD_MAX)
}

/// Files that no replica has.
#[derive(Default, Debug)]
struct Strangers {
    /// Seen in the last round: one that is there for a moment only may be on its way in or out.
    seen: BTreeSet<ChunkId>,
    told: BTreeSet<ChunkId>,
}

impl Strangers {
    /// What was there in two rounds in a row, and is not told of yet.
    fn news(&mut self, found: BTreeSet<ChunkId>) -> Vec<ChunkId> {
        self.told.retain(|chunk| found.contains(chunk));
        let room = STRANGERS_MAX.saturating_sub(self.told.len());
        let stayed = found.intersection(&self.seen).filter(|chunk| !self.told.contains(chunk));
        let news: Vec<ChunkId> = stayed.take(room).copied().collect();
        self.told.extend(&news);
        self.seen = found.into_iter().take(STRANGERS_MAX).collect();
        news
    }
}

/// Runs until `stop`, on a thread of its own.
pub(crate) fn run(node: &Node, stop: &Shutdown) {
    let mut strangers = Strangers::default();
    loop {
        let period = period(node.heartbeat_interval());
        // A round takes half of the period, so that a large disk is not read all at once.
        if stop.wait_for(period / 2) {
            return;
        }
        if node.fence.check_takes_part().is_err() {
            continue;
        }
        let Some(found) = look(node, period / 2, stop) else { return };
        for chunk in strangers.news(found) {
            let path = format_args!("{}/{}", node.directory, chunk_path(chunk));
            tracing::warn!(chunk = chunk.0, %path, "a chunk file that is nobody's; the next start of this server sees to it");
        }
    }
}

/// One round: files that no replica has. `None`: it was stopped.
fn look(node: &Node, takes: Duration, stop: &Shutdown) -> Option<BTreeSet<ChunkId>> {
    // Before the directories are read: what comes into being meanwhile is not missed.
    let mut held: BTreeMap<String, BTreeSet<ChunkId>> = BTreeMap::new();
    for report in node.store.inventory() {
        held.entry(chunk_dir(report.chunk)).or_default().insert(report.chunk);
    }
    let mut dirs: BTreeSet<String> = held.keys().cloned().collect();
    match dirs_of(node) {
        Ok(found) => dirs.extend(found),
        Err(error) => {
            tracing::error!(path = %node.directory, %error, "read the directory of chunk files");
        }
    }
    let pause = takes / u32::try_from(dirs.len()).unwrap_or(u32::MAX).max(1);
    let mut strangers = BTreeSet::new();
    for dir in dirs {
        if stop.wait_for(pause) {
            return None;
        }
        let files = match files_of(node, &dir) {
            Ok(files) => files,
            Err(error) => {
                let path = format_args!("{}/{dir}", node.directory);
                tracing::error!(%path, %error, "read a directory of chunk files");
                continue;
            }
        };
        let held = held.remove(&dir).unwrap_or_default();
        for chunk in held.difference(&files) {
            match look_at_file(node, *chunk) {
                // Gone since the round began.
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::error!(chunk = chunk.0, %error, see = %Page::BadBlock, "replica cannot be read");
                }
            }
        }
        let is_nobodys = |chunk: &&ChunkId| node.store.report(**chunk).is_none();
        strangers.extend(files.difference(&held).filter(is_nobodys));
    }
    Some(strangers)
}

/// The directories of chunk files that there are.
fn dirs_of(node: &Node) -> io::Result<Vec<String>> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(&node.config.data_dir)? {
        dirs.extend(entry?.file_name().into_string().ok().filter(|name| is_dir_of_chunks(name)));
    }
    Ok(dirs)
}

fn is_dir_of_chunks(name: &str) -> bool {
    u64::from_str_radix(name, 16).is_ok_and(|number| chunk_dir(ChunkId(number)) == name)
}

/// Chunks by the names of the files in `dir`; none if there is no such directory.
fn files_of(node: &Node, dir: &str) -> io::Result<BTreeSet<ChunkId>> {
    let entries = match fs::read_dir(node.config.data_dir.join(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut files = BTreeSet::new();
    for entry in entries {
        files.extend(chunk_of(dir, &entry?.file_name()));
    }
    Ok(files)
}

/// `None`: no name of a chunk file.
fn chunk_of(dir: &str, name: &OsString) -> Option<ChunkId> {
    let chunk = ChunkId(u64::from_str_radix(name.to_str()?, 16).ok()?);
    (chunk_path(chunk).strip_prefix(dir)?.strip_prefix('/')? == name).then_some(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_comes_each_five_heartbeats_within_5_s_and_a_minute() {
        let of = |millis| period(Duration::from_millis(millis)).as_millis();
        assert_eq!([20, 1_000, 5_000, 60_000].map(of), [5_000, 5_000, 25_000, 60_000]);
    }

    #[test]
    fn only_names_of_chunk_files_are_chunks() {
        let of = |dir: &str, name: &str| chunk_of(dir, &name.into()).map(|chunk| chunk.0);
        assert_eq!(of("1f", "000000000000001f"), Some(0x1f));
        for (dir, name) in [
            ("1f", "000000000000001f.adopt"),
            ("1e", "000000000000001f"),
            ("1f", "1f"),
            ("1f", "000000000000001F"),
            ("", ""),
        ] {
            assert_eq!(of(dir, name), None, "{dir}/{name}");
        }
    }

    #[test]
    fn a_directory_of_chunks_is_told_by_its_name() {
        let of = |names: [&str; 5]| names.map(is_dir_of_chunks);
        assert_eq!(of(["00", "1f", "ff", "a0", "9b"]), [true; 5]);
        assert_eq!(of(["1F", "100", "1", "", "journal"]), [false; 5]);
    }

    #[test]
    fn a_stranger_is_told_of_once_and_not_before_it_stayed() {
        let of = |numbers: &[u64]| numbers.iter().copied().map(ChunkId).collect::<BTreeSet<_>>();
        let mut strangers = Strangers::default();
        assert_eq!(strangers.news(of(&[1, 2])), []);
        assert_eq!(strangers.news(of(&[1, 3])), [ChunkId(1)]);
        assert_eq!(strangers.news(of(&[1, 3])), [ChunkId(3)]);
        assert_eq!(strangers.news(of(&[])), []);
        assert_eq!(strangers.news(of(&[1])), []);
        assert_eq!(strangers.news(of(&[1])), [ChunkId(1)], "it had gone, and came again");
    }
}
