//! How far a file reaches that somebody is writing, asked of the members of its last chunk.
//!
//! Whoever asks waits for a while if none of them answers, as when its primary died: a smaller size would hide what is
//! acknowledged. But not for each file of a directory: servers that were waited for once are not again until they answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dfs_core::client::backoff::Backoff;
use dfs_core::ids::{InodeNo, ServerId};
use dfs_core::namespace::Attr;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply};
use dfs_proto::meta_rpc::ChunkLayout;

use super::{ChunkIo, LAYOUTS_ASKED, READ_ATTEMPT, READ_ATTEMPT_LEAST};
use crate::servers::reply_of;
use crate::session::{lock, random};

/// Longer than a configuration without a dead server takes.
const TAIL_WAIT: Duration = Duration::from_secs(10);
/// What was waited for so lately is not waited for again.
const TAIL_AGAIN: Duration = Duration::from_secs(30);
/// A server that was waited for is asked once in so long.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// What was waited for in vain.
#[derive(Default, Debug)]
pub(super) struct SilentTails {
    files: HashMap<InodeNo, Instant>,
    servers: HashMap<ServerId, Silence>,
}

/// Who was asked in vain.
#[derive(Default, Debug)]
struct Unanswered {
    servers: Vec<ServerId>,
    /// Of the file.
    chunk: Option<u64>,
}

#[derive(Debug)]
struct Silence {
    since: Instant,
    asked: Instant,
}

impl SilentTails {
    fn answered(&mut self, server: ServerId) {
        self.servers.remove(&server);
    }

    /// How long `server` gets to answer; not at all if it was asked just now.
    fn attempt(&mut self, server: ServerId, now: Instant) -> Option<Duration> {
        match self.servers.get_mut(&server) {
            Some(silence) if now < silence.since + TAIL_AGAIN => {
                let is_due = silence.asked + ASK_EVERY <= now;
                is_due.then(|| {
                    silence.asked = now;
                    READ_ATTEMPT_LEAST
                })
            }
            Some(_) | None => Some(READ_ATTEMPT),
        }
    }

    /// Nothing is known of `ino`; `unanswered`: who was asked.
    fn were_waited_for(&mut self, ino: InodeNo, unanswered: &[ServerId], now: Instant) -> bool {
        self.files.retain(|_, at| now < *at + TAIL_AGAIN);
        self.servers.retain(|_, silence| now < silence.since + TAIL_AGAIN);
        let all = unanswered.iter().all(|server| self.servers.contains_key(server));
        self.files.contains_key(&ino) || (!unanswered.is_empty() && all)
    }

    fn give_up(&mut self, ino: InodeNo, unanswered: &[ServerId], now: Instant) {
        self.files.insert(ino, now);
        for server in unanswered {
            self.servers.entry(*server).or_insert(Silence { since: now, asked: now });
        }
    }
}

impl ChunkIo {
    /// How far a file that somebody is writing reaches; 0 if nobody there answers for a while.
    pub(crate) fn tail_size(&self, attr: &Attr) -> u64 {
        let began = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let mut unanswered = Unanswered::default();
            if let Some(size) = self.tail_size_now(attr, false, &mut unanswered) {
                lock(&self.silent_tails).files.remove(&attr.ino);
                return size;
            }
            let (waited, now) = (began.elapsed(), Instant::now());
            let mut silent = lock(&self.silent_tails);
            if silent.were_waited_for(attr.ino, &unanswered.servers, now) {
                return 0;
            }
            if TAIL_WAIT.min(self.link.wait()) <= waited {
                silent.give_up(attr.ino, &unanswered.servers, now);
                // Whoever reads it next has waited for it already.
                if let Some(index) = unanswered.chunk {
                    self.troubles.waited((attr.ino, index), began);
                }
                tracing::warn!(
                    ino = attr.ino.0,
                    size = attr.size,
                    "no server of the last chunk answers: what was written since the last commit is not seen, in this and other files"
                );
                return 0;
            }
            drop(silent);
            std::thread::sleep(Duration::from_millis(backoff.next_ms(random())));
        }
    }

    /// As [`Self::tail_size`]; `None` if nobody there answers. Everybody is asked.
    pub(crate) fn known_tail_size(&self, attr: &Attr) -> Option<u64> {
        self.tail_size_now(attr, true, &mut Unanswered::default())
    }

    fn tail_size_now(
        &self,
        attr: &Attr,
        ask_all: bool,
        unanswered: &mut Unanswered,
    ) -> Option<u64> {
        let chunk_size = attr.layout.chunk_size.max(1);
        let mut first = attr.size / chunk_size;
        let mut tails: Vec<ChunkLayout> = Vec::new();
        loop {
            let found = self.layouts(attr.ino, first, LAYOUTS_ASKED).ok()?;
            let full = found.len() == LAYOUTS_ASKED as usize;
            // One that is not the last has bytes, unless those behind it were only just made.
            let kept = tails.len().saturating_sub(LAYOUTS_ASKED as usize);
            tails.drain(..kept);
            tails.extend(found);
            first = tails.last().map_or(first, |last| last.index + 1);
            if !full {
                break;
            }
        }
        for layout in tails.iter().rev() {
            match self.chunk_len(layout, ask_all, unanswered)? {
                // Made for a writer who has not come yet: the bytes end before it.
                0 => {}
                len => return Some(layout.index * chunk_size + len),
            }
        }
        Some(0)
    }

    /// Bytes of a chunk, asked of its primary or, if that does not answer, of another member.
    fn chunk_len(
        &self,
        layout: &ChunkLayout,
        ask_all: bool,
        unanswered: &mut Unanswered,
    ) -> Option<u64> {
        let (primary, others): (Vec<_>, Vec<_>) =
            layout.members.iter().partition(|member| member.member.server == layout.primary);
        unanswered.chunk = Some(layout.index);
        let mut without = 0;
        for member in primary.into_iter().chain(others) {
            let server = member.member.server;
            let attempt = match ask_all {
                true => Some(READ_ATTEMPT),
                false => lock(&self.silent_tails).attempt(server, Instant::now()),
            };
            let Some(attempt) = attempt else {
                unanswered.servers.push(server);
                continue;
            };
            let link = self.servers.link(server, &member.address);
            let stat = DataCall::Stat { chunk: layout.chunk, version: layout.version }.to_bytes();
            let reply = self.servers.call(&link, &stat, attempt).and_then(|frame| reply_of(&frame));
            if reply.is_ok() {
                lock(&self.silent_tails).answered(server);
            }
            match reply {
                Ok(DataReply::Stat { len, .. }) => return Some(len),
                Ok(DataReply::Failed(DataFailure::NoReplica)) => without += 1,
                Ok(other) => tracing::debug!(?other, "length of the last chunk"),
                Err(error) => {
                    unanswered.servers.push(server);
                    tracing::debug!(%error, "length of the last chunk");
                }
            }
        }
        // No member has made it yet: nothing was written there.
        (without == layout.members.len()).then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);
    const C: ServerId = ServerId(3);
    const INO: InodeNo = InodeNo(7);
    const OTHER: InodeNo = InodeNo(8);

    #[test]
    fn servers_that_were_waited_for_are_not_again_until_they_answer() {
        let mut silent = SilentTails::default();
        let now = Instant::now();
        assert!(!silent.were_waited_for(INO, &[A, B], now));
        silent.give_up(INO, &[A, B], now);
        assert!(silent.were_waited_for(OTHER, &[A, B], now), "another file of theirs");
        assert!(!silent.were_waited_for(OTHER, &[A, C], now), "somebody else may still answer");
        assert!(!silent.were_waited_for(OTHER, &[], now), "nobody was asked");
        assert!(silent.were_waited_for(INO, &[], now));
        silent.answered(A);
        assert!(!silent.were_waited_for(OTHER, &[A, B], now));
        assert!(!silent.were_waited_for(INO, &[A, B], now + TAIL_AGAIN), "long ago");
    }

    #[test]
    fn a_server_that_was_waited_for_is_asked_shortly_and_now_and_then() {
        let mut silent = SilentTails::default();
        let now = Instant::now();
        silent.give_up(INO, &[A], now);
        assert_eq!(silent.attempt(B, now), Some(READ_ATTEMPT));
        assert_eq!(silent.attempt(A, now), None);
        let later = now + ASK_EVERY;
        assert_eq!(silent.attempt(A, later), Some(READ_ATTEMPT_LEAST));
        assert_eq!(silent.attempt(A, later), None);
        assert_eq!(silent.attempt(A, now + TAIL_AGAIN), Some(READ_ATTEMPT));
    }
}
