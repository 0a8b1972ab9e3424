//! Noticing a primary that hangs: its connections are open and nothing comes back.
//!
//! Order: no answer for as long as the server is given → it is asked for a sign of life, by a connection of its own →
//! only if there is none either its connections are closed, and the master is told, which asks it once more before it
//! goes on without it. A server that is slow, because its disk is, answers the second question and keeps its place.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{ChunkWriter, Trouble};
use crate::servers::ServerLink;
use crate::session::spawn;

/// A primary that leaves an operation or a sync unanswered for so long has failed, alive or not.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const SYNC_ANSWER_MAX: Duration = Duration::from_secs(40);

impl ChunkWriter {
    /// Looks for a primary that does not answer; called now and then.
    pub(crate) fn check_silence(self: &Arc<Self>) {
        let (attempt, layout, operation, sync, sending) = {
            let state = self.lock();
            let waiting = 0 < state.queue.unacknowledged_count() && !state.recovering;
            let operation = waiting.then(|| state.moved_at.elapsed());
            let sync = state.syncing.map(|since| since.elapsed());
            (state.attempt, state.layout.clone(), operation, sync, state.sending)
        };
        let Some(silence) = operation.max(sync) else { return };
        let link = layout.and_then(|layout| self.io.primary_link(&layout).ok());
        // What is being sent may be long and the network slow.
        let operation_max = if sending { 2 * ANSWER_MAX } else { ANSWER_MAX };
        let over = operation.is_some_and(|silence| operation_max < silence)
            || sync.is_some_and(|silence| SYNC_ANSWER_MAX < silence);
        match link {
            _ if over => self.on_silence(attempt, link.as_deref()),
            Some(link) if link.is_worth_asking(silence) => self.ask(attempt, link),
            Some(_) | None => {}
        }
    }

    fn ask(self: &Arc<Self>, attempt: u64, link: Arc<ServerLink>) {
        let writer = Arc::clone(self);
        let asked = Arc::clone(&link);
        let begun = spawn("sign of life", move || {
            let sign = writer.io.servers.ask_for_life(&link);
            link.asked(sign.is_ok());
            if let Err(error) = sign {
                tracing::debug!(server = %link.server(), %error, "no sign of life");
                writer.on_silence(attempt, Some(&link));
            }
        });
        if begun.is_err() {
            asked.asked(true);
        }
    }

    fn on_silence(self: &Arc<Self>, attempt: u64, link: Option<&ServerLink>) {
        if let Some(link) = link {
            tracing::warn!(
                ino = self.ino.0, index = self.index, server = %link.server(), "no answer to a write"
            );
            link.failed();
            link.close();
        }
        let error = io::Error::new(io::ErrorKind::TimedOut, "no answer to a write");
        self.on_trouble(attempt, None, Trouble::Lost(error));
    }
}
