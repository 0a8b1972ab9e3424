//! openraft's log storage on [`Journal`]: turns entries into bytes and waits for their sync.

#![expect(clippy::result_large_err, reason = "the error type is openraft's")]

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
    Vote,
};
use tokio::sync::oneshot;

use super::types::{TypeConfig, decode_entry, encode_payload, log_id, position};
use crate::journal::{Journal, JournalError, OnDurable, SavedVote};

/// How much of the log one replication request takes from disk, about: what a follower can
/// digest within a heartbeat, far below the frame limit.
const READ_BYTES_MAX: usize = 1 << 20;

/// A handle to the log, for openraft.
#[derive(Clone, Debug)]
pub(super) struct LogStore {
    journal: Journal,
}

impl LogStore {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal }
    }

    fn read(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        self.journal
            .read_limited(range, bytes_max)
            .map_err(|err| read_error(&err))?
            .into_iter()
            .map(|(at, payload)| decode_entry(at, payload).map_err(|err| read_error(&err)))
            .collect()
    }
}

fn read_error(err: &(impl std::error::Error + 'static)) -> StorageError<u64> {
    StorageIOError::read_logs(AnyError::new(err)).into()
}

fn write_error(err: &(impl std::error::Error + 'static)) -> StorageError<u64> {
    StorageIOError::write_logs(AnyError::new(err)).into()
}

/// Hands something to the log and waits until it is durable.
async fn durably(
    hand_in: impl FnOnce(OnDurable) -> Result<(), JournalError>,
) -> Result<(), StorageError<u64>> {
    let (done, durable) = oneshot::channel();
    hand_in(Box::new(move |result| {
        // Nobody waits any more only when openraft itself was dropped.
        let _ = done.send(result);
    }))
    .map_err(|err| write_error(&err))?;
    durable.await.unwrap_or(Err(JournalError::Stopped)).map_err(|err| write_error(&err))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        self.read(range, usize::MAX)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        self.read(start..end, READ_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<u64>> {
        Ok(LogState {
            last_purged_log_id: self.journal.purged().map(log_id),
            last_log_id: self.journal.last().map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = SavedVote {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            committed: vote.committed,
        };
        durably(|done| self.journal.save_vote(vote, done)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.journal.vote().map(|SavedVote { term, node, committed }| {
            let mut vote = Vote::new(term, node);
            vote.committed = committed;
            vote
        }))
    }

    async fn save_committed(
        &mut self,
        committed: Option<LogId<u64>>,
    ) -> Result<(), StorageError<u64>> {
        match committed {
            Some(committed) => {
                self.journal.note_committed(position(committed)).map_err(|err| write_error(&err))
            }
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, StorageError<u64>> {
        Ok(self.journal.committed().map(log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|Entry { log_id, payload }| (position(log_id), encode_payload(&payload)));
        let done = Box::new(|result: Result<(), JournalError>| {
            callback.log_io_completed(result.map_err(std::io::Error::other));
        });
        // openraft appends nothing more before this is durable: its thread may as well write itself.
        self.journal.append_here(entries, done).map_err(|err| write_error(&err))
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        durably(|done| self.journal.truncate(log_id.index, done)).await
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        durably(|done| self.journal.purge(position(log_id), done)).await
    }
}
