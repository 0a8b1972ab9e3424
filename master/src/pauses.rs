//! Pauses between attempts that came to nothing. Each costs a version and entries of the log, and clients that wait ask
//! for one ten times a second.

use std::collections::HashMap;

use dfs_core::ids::ChunkId;
use dfs_core::time::Timestamp;

const PAUSE_MIN_MS: u64 = 20;
pub(crate) const PAUSE_MIN: std::time::Duration = std::time::Duration::from_millis(PAUSE_MIN_MS);
/// A member that returns is not kept waiting for longer.
const PAUSE_MAX_MS: u64 = 1_000;
/// Chunks in trouble that are remembered; beyond, those whose pause is over are forgotten.
const KEPT_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Pauses(HashMap<ChunkId, Pause>);

#[derive(Debug)]
struct Pause {
    until: Timestamp,
    pause_ms: u64,
    reason: String,
}

impl Pauses {
    /// Why the last attempt came to nothing, if it is too early for another.
    #[must_use]
    pub fn reason(&self, now: Timestamp, chunk: ChunkId) -> Option<String> {
        self.0.get(&chunk).filter(|pause| now < pause.until).map(|pause| pause.reason.clone())
    }

    pub fn succeeded(&mut self, chunk: ChunkId) {
        self.0.remove(&chunk);
    }

    pub fn failed(&mut self, now: Timestamp, chunk: ChunkId, reason: &str) {
        if KEPT_MAX <= self.0.len() {
            self.0.retain(|_, pause| now < pause.until);
        }
        let before = self.0.get(&chunk).map(|pause| pause.pause_ms);
        let pause_ms = before.map_or(PAUSE_MIN_MS, |before| (2 * before).min(PAUSE_MAX_MS));
        let until = Timestamp(now.0 + pause_ms * 1_000_000);
        self.0.insert(chunk, Pause { until, pause_ms, reason: reason.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_end_with_success() {
        const CHUNK: ChunkId = ChunkId(1);
        let mut pauses = Pauses::default();
        let mut now = 0;
        let mut attempts = 0;
        while now < 10_000 {
            let at = Timestamp(now * 1_000_000);
            if pauses.reason(at, CHUNK).is_none() {
                attempts += 1;
                pauses.failed(at, CHUNK, "full");
                assert_eq!(pauses.reason(at, CHUNK).as_deref(), Some("full"));
            }
            now += 10;
        }
        assert!((12..=20).contains(&attempts), "{attempts} in 10 s");
        pauses.succeeded(CHUNK);
        assert_eq!(pauses.reason(Timestamp(now * 1_000_000), CHUNK), None);
    }
}
