//! Operations that come to nothing before they are sent; the counters behind them must still follow on.

use dfs_core::namespace::Attr;

use super::{Appended, Body, State};
use crate::error::ClientError;

/// Appends must not go behind where the file ended before it was cut. `attr` is newer than the layout that is to be
/// used: whoever cuts the file later makes that layout void first.
pub(super) fn forget_what_was_cut(state: &mut State, index: u64, attr: &Attr) {
    let here = attr.size.saturating_sub(index * attr.layout.chunk_size);
    // Without a layout nothing of the queue was sent. What was sent may have been taken before the cut, and only its
    // primary can tell.
    let is_sent = state.layout.is_some();
    let mut moved = Vec::new();
    for (counter, body) in state.queue.bodies_mut() {
        // Without a cut the end only rises, and where others carried bytes to may be beyond what is logged.
        if let Body::Append { at_least, cuts, .. } = body
            && *cuts != attr.cuts
        {
            *at_least = here.min(*at_least);
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

/// Takes one refused operation out, leaving its number to an operation that does nothing. Answers the bytes freed.
pub(super) fn refuse(state: &mut State, counter: u64, error: ClientError) -> u64 {
    let Some((body, bytes)) = state.queue.replace(counter, Body::nothing()) else { return 0 };
    if body.is_append() {
        state.appends.insert(counter, Err(error));
    } else {
        state.error.get_or_insert(error);
    }
    bytes
}
