//! Appends to one chunk: each is stable when it is answered. An end that is crossed is two operations.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Appended, Body, ChunkWriter, Order, seal};
use crate::error::{ClientError, Result};
use crate::jobs::Job;
use crate::kept::{self, Begun};

impl ChunkWriter {
    /// Appends `data`; returns when it is stable on every member. `done`: bytes of the same call that went before.
    pub(crate) fn append(
        self: &Arc<Self>,
        data: Arc<Vec<u8>>,
        record: bool,
        (at_least, cuts): (u64, u64),
        done: u64,
    ) -> Result<Appended> {
        let counter = {
            let mut state = self.lock();
            if state.layout.is_some() && cuts < state.cuts {
                return Ok(Appended::Moved);
            }
            seal(&mut state);
            // The caller holds these bytes: they are not part of the budget.
            let counter = state.queue.push(Body::Append { data, record, at_least, cuts }, 0);
            // Before anybody can send it.
            kept::begin_operation(Begun { ino: self.ino, index: self.index, counter, done });
            counter
        };
        self.pump_as(true);
        self.wait_appended(counter)
    }

    fn wait_appended(&self, counter: u64) -> Result<Appended> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.appends.remove(&counter) {
                return answer;
            }
            if state.retired {
                return Ok(Appended::Moved);
            }
            state = self.wait(state);
        }
    }

    /// As [`Self::append`] of what a predecessor of this process began under this number: the servers answer what they
    /// did then. Nobody else writes to the chunk meanwhile.
    pub(crate) fn append_again(
        self: &Arc<Self>,
        data: Arc<Vec<u8>>,
        record: bool,
        cuts: u64,
        counter: u64,
    ) -> Result<Appended> {
        self.push_again(counter, Body::Append { data, record, at_least: 0, cuts }, 0)?;
        self.pump_as(true);
        let answer = self.wait_appended(counter);
        self.count_anew();
        answer
    }

    /// Takes the rest of an append that crossed into this chunk, bytes that the caller has already taken from the budget.
    pub(crate) fn carry(self: &Arc<Self>, rest: &[u8], order: Order) {
        let bytes = rest.len() as u64;
        let again = {
            let mut state = self.lock();
            if state.retired {
                state.error.get_or_insert(ClientError::OutcomeUnknown);
                return self.io.budget.give_back(bytes);
            }
            self.held.fetch_add(bytes, Ordering::AcqRel);
            seal(&mut state);
            state.queue.push(Body::Carried { data: Arc::new(rest.to_vec()), order }, bytes);
            // By a layout of after a truncation it must not go out whole.
            let again = order.begun < state.cuts && state.layout.is_some() && !state.recovering;
            state.recovering |= again;
            again
        };
        if again { Arc::clone(self).recover(None) } else { self.pump() }
    }

    /// The rest of an append that crossed the chunk's end is stable, or given up.
    pub(crate) fn crossed(self: &Arc<Self>, counter: u64) {
        let mut state = self.lock();
        state.crossing.remove(&counter);
        if state.gap.is_some() {
            drop(state);
            self.later(Job::Pump);
        }
    }
}
