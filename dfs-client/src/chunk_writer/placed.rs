//! Operations at a place of the chunk, each of one request that waits for it: under a counter that is kept, so that a
//! successor of this process can ask again with the same one. The servers do then what they have not done (DECISIONS 4).

use std::sync::Arc;

use dfs_core::client::resend::ResendQueue;

use super::{Body, ChunkWriter, seal};
use crate::error::{ClientError, Result};
use crate::kept::{self, Begun};

/// What became of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placed {
    Done,
    /// It was taken out, and is to be asked for by another number: its chunk was cut away, or bytes before it found no room.
    Moved,
    /// Not taken: somebody is to be told of bytes that were lost before.
    Refused,
}

impl ChunkWriter {
    /// Writes `data`, whose bytes the caller has taken from the budget, at `offset`; returns when every member has it.
    /// `at`: the place in the file. `again`: the counter that a predecessor of this process gave it; then nothing else
    /// is done to the chunk meanwhile, and it is stable.
    pub(crate) fn place_write(
        self: &Arc<Self>,
        offset: u64,
        data: &[u8],
        at: u64,
        again: Option<u64>,
    ) -> Result<Placed> {
        let body = Body::Write { offset, data: Arc::new(data.to_vec()), awaited: true };
        self.place(body, data.len() as u64, at, again)
    }

    /// As [`Self::place_write`], of zeros, which are not part of the budget.
    pub(crate) fn place_zero(
        self: &Arc<Self>,
        (offset, len): (u64, u64),
        at: u64,
        again: Option<u64>,
    ) -> Result<Placed> {
        self.place(Body::Zero { offset, len, awaited: true }, 0, at, again)
    }

    fn place(
        self: &Arc<Self>,
        body: Body,
        bytes: u64,
        at: u64,
        again: Option<u64>,
    ) -> Result<Placed> {
        let counter = match again {
            Some(counter) => {
                self.push_again(counter, body, bytes).inspect_err(|_| {
                    self.io.budget.give_back(bytes);
                })?;
                counter
            }
            None => {
                let mut state = self.lock();
                let is_told = state.error.is_none() && self.refused.takes(at + bytes);
                if state.retired || !is_told {
                    drop(state);
                    self.io.budget.give_back(bytes);
                    return Ok(if is_told { Placed::Moved } else { Placed::Refused });
                }
                seal(&mut state);
                self.add_held(bytes);
                let counter = state.queue.push(body, bytes);
                // Before anybody can send it.
                let (ino, index) = (self.ino, self.index);
                kept::begin_operation(Begun { ino, index, counter, done: at });
                counter
            }
        };
        self.pump_as(true);
        let placed = self.wait_placed(counter);
        if again.is_some() {
            let stable = self.stable();
            self.count_anew();
            stable?;
        }
        placed
    }

    fn wait_placed(&self, counter: u64) -> Result<Placed> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.appends.remove(&counter) {
                return answer.map(|_moved| Placed::Moved);
            }
            if state.retired {
                return Ok(Placed::Moved);
            }
            if !state.queue.has_unacknowledged_below(counter + 1) {
                return Ok(Placed::Done);
            }
            state = self.wait(state);
        }
    }

    /// Has `body` sent next, with a counter of a predecessor of this process: below all that this one gives.
    pub(super) fn push_again(self: &Arc<Self>, counter: u64, body: Body, bytes: u64) -> Result<()> {
        loop {
            let mut state = self.lock();
            if state.retired {
                return Err(ClientError::OutcomeUnknown);
            }
            if state.queue.is_empty() && state.dirty.is_empty() {
                state.queue = ResendQueue::new(counter);
                state.queue.push(body, bytes);
                self.add_held(bytes);
                return Ok(());
            }
            drop(state);
            self.stable()?;
        }
    }

    /// What is sent from now on has counters of this process.
    pub(super) fn count_anew(&self) {
        let mut state = self.lock();
        if state.queue.is_empty() {
            state.queue = ResendQueue::new(self.io.first_counter());
        }
    }
}
