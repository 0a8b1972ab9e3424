//! Operations that come to nothing, or to less, before they are sent; the counters behind them must still follow on.

use std::sync::{Arc, MutexGuard};

use dfs_core::cuts::Cuts;
use dfs_core::namespace::Attr;

use super::{Appended, Body, ChunkWriter, State};
use crate::error::{ClientError, Result};

impl ChunkWriter {
    /// The state when nothing is left in the queue that the file's truncations up to `cuts`, which came with the layout
    /// that is to be used, have cut. Later ones make that layout void first.
    pub(super) fn without_what_was_cut(&self, cuts: u64) -> Result<MutexGuard<'_, State>> {
        let mut asked = None;
        loop {
            let mut state = self.lock();
            if !state.queue.bodies_mut().any(|(_, body)| body.is_before(cuts)) {
                return Ok(state);
            }
            if let Some((attr, sizes)) = &asked {
                move_appends(&mut state, self.index, attr, cuts);
                cut_carried(&mut state, sizes, self.index * attr.layout.chunk_size, cuts);
                return Ok(state);
            }
            drop(state);
            // Asked after the layout: it knows of all that the layout does.
            asked = Some((self.io.link.getattr(self.ino)?, self.io.link.cuts(self.ino)?));
        }
    }
}

impl Body {
    /// Whether it is of a time before truncation `cuts`, and not to be sent as it is.
    fn is_before(&self, cuts: u64) -> bool {
        match self {
            Self::Append { cuts: begun, .. } => *begun < cuts,
            Self::Carried { order, .. } => order.begun < cuts,
            Self::Write { .. } | Self::Zero { .. } => false,
        }
    }
}

/// Appends must not go behind where the file ended before it was cut, nor before where it ends since.
fn move_appends(state: &mut State, index: u64, attr: &Attr, cuts: u64) {
    let chunk_size = attr.layout.chunk_size;
    let here = attr.size.saturating_sub(index * chunk_size).min(chunk_size);
    // Without a layout nothing of the queue was sent. What was sent may have been taken before the cut, and only its
    // primary can tell.
    let is_sent = state.layout.is_some();
    let mut moved = Vec::new();
    for (counter, body) in state.queue.bodies_mut().filter(|(_, body)| body.is_before(cuts)) {
        // Without a cut the end only rises, and where others carried bytes to may be beyond what is logged.
        if let Body::Append { at_least, .. } = body {
            *at_least = here;
            if !is_sent {
                moved.push(counter);
            }
        }
    }
    for counter in moved {
        state.queue.replace(counter, Body::nothing());
        state.appends.insert(counter, Ok(Appended::Moved));
    }
}

/// The rest of an append ends where the file was cut since its first part was stored. `start`: of this chunk.
fn cut_carried(state: &mut State, sizes: &Cuts, start: u64, cuts: u64) {
    let mut unknown = false;
    for (_, body) in state.queue.bodies_mut().filter(|(_, body)| body.is_before(cuts)) {
        let Body::Carried { data, order } = body else { continue };
        let limit = sizes.limit(order.begun, order.stored, start);
        unknown |= limit.is_none();
        let left = usize::try_from(limit.unwrap_or(0).saturating_sub(start)).unwrap_or(usize::MAX);
        if left == 0 {
            *body = Body::nothing();
        } else if left < data.len() {
            *data = Arc::new(data[..left].to_vec());
        }
    }
    if unknown {
        state.error.get_or_insert(ClientError::OutcomeUnknown);
    }
}

/// Takes one refused operation out, leaving its number to an operation that does nothing. Answers the bytes freed.
pub(super) fn refuse(state: &mut State, counter: u64, error: ClientError) -> u64 {
    let Some((body, bytes)) = state.queue.replace(counter, Body::nothing()) else { return 0 };
    if body.is_awaited() {
        state.appends.insert(counter, Err(error));
    } else {
        state.error.get_or_insert(error);
    }
    bytes
}
