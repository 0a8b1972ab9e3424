//! The queue in front of the log. openraft 0.9 waits for the sync of one entry before it takes the
//! next, so commands that arrive during a sync are put into one entry. The first command of an idle
//! group goes out at once; there is no timer.

use bytes::Bytes;
use openraft::Raft;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::ProposeError;
use super::types::{Batch, TypeConfig};

/// Commands that may wait. At 100,000 commands a second this is a tenth of a second of work.
const QUEUE_COMMANDS_MAX: usize = 10_000;
const BATCH_COMMANDS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A command larger than this is refused; one larger than a batch travels alone.
pub(super) const COMMAND_BYTES_MAX: usize = 16 << 20;

pub(super) type Reply = Result<(u64, Bytes), ProposeError>;

#[derive(Debug)]
struct Proposal {
    command: Bytes,
    reply: oneshot::Sender<Reply>,
}

/// Puts commands into the queue.
#[derive(Clone, Debug)]
pub(super) struct Proposer {
    queue: mpsc::Sender<Proposal>,
}

/// The other end of the queue.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Receiver<Proposal>);

pub(super) fn channel() -> (Proposer, Queue) {
    let (queue, waiting) = mpsc::channel(QUEUE_COMMANDS_MAX);
    (Proposer { queue }, Queue(waiting))
}

impl Proposer {
    /// Queues a command; the reply comes through the receiver, which is dropped by the other side
    /// only if the group stops.
    pub(super) fn queue(&self, command: Bytes) -> Result<oneshot::Receiver<Reply>, ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { command_bytes: command.len() });
        }
        let (reply, replied) = oneshot::channel();
        self.queue.try_send(Proposal { command, reply }).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        Ok(replied)
    }
}

impl Queue {
    /// Proposes until every [`Proposer`] is gone or the group stops.
    pub(super) async fn run(mut self, raft: Raft<TypeConfig>) {
        let mut left_over = None;
        loop {
            let first = match left_over.take() {
                Some(proposal) => proposal,
                None => match self.0.recv().await {
                    Some(proposal) => proposal,
                    None => return,
                },
            };
            let mut batch_bytes = first.command.len();
            let mut batch = vec![first];
            while batch.len() < BATCH_COMMANDS_MAX
                && let Ok(next) = self.0.try_recv()
            {
                batch_bytes += next.command.len();
                if batch_bytes > BATCH_BYTES_MAX {
                    left_over = Some(next);
                    break;
                }
                batch.push(next);
            }
            let (commands, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|Proposal { command, reply }| (command, reply)).unzip();
            match raft.client_write(Batch(commands)).await {
                Ok(written) => {
                    let index = written.log_id.index;
                    for (reply, outcome) in replies.into_iter().zip(written.data) {
                        // A proposer that went away does not want to know.
                        let _ = reply.send(Ok((index, outcome)));
                    }
                }
                Err(err) => {
                    let stopped = matches!(err, RaftError::Fatal(_));
                    for reply in replies {
                        let _ = reply.send(Err(propose_error(&err)));
                    }
                    if stopped {
                        return;
                    }
                }
            }
        }
    }
}

type WriteError = RaftError<u64, ClientWriteError<u64, openraft::BasicNode>>;

fn propose_error(err: &WriteError) -> ProposeError {
    match err {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            ProposeError::NotLeader { leader: to.leader_id }
        }
        // Only membership changes are answered so, and none comes this way.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) | RaftError::Fatal(_) => {
            ProposeError::OutcomeUnknown
        }
    }
}
