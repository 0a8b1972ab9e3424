//! The marks of this server's directory, from its side: drawn, asked for, kept (`dfs_core::meta::marks`).
//!
//! Order of events at a start: a number is drawn and on disk, the first message of the first stream asks for it, the
//! master answers that the log has it, it is on disk as taken, and only then this server tells what it holds. Later, while
//! it writes, the same goes on beside the heartbeats, which wait for none of it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_core::meta::marks::Mark;
use dfs_proto::control::DiskMark;
use dfs_service::page::Page;
use tokio::task::JoinHandle;

use crate::node::Node;

/// A server that writes asks for a new mark so often: a copy of its directory that was made while it ran, and put back
/// before its next start, is not recognised if it is younger.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Marking {
    node: Arc<Node>,
    /// This start has its mark, or a master that knows none.
    joined: bool,
    /// To be asked for.
    next: Option<Mark>,
    /// Marks are drawn above this: as far as the master's log is.
    above: u64,
    /// On the disk's way: a mark that is drawn, or one that is kept.
    running: Option<JoinHandle<io::Result<Option<Mark>>>>,
    drawn_at: Instant,
    /// What was durable then.
    drawn_lsn: u64,
    /// That this is an older copy.
    said: bool,
}

fn to_wire(mark: Mark) -> DiskMark {
    DiskMark { number: mark.number, nonce: mark.nonce }
}

fn of_wire(mark: DiskMark) -> Mark {
    Mark { number: mark.number, nonce: mark.nonce }
}

impl Marking {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        Self {
            node: Arc::clone(node),
            joined: false,
            next: None,
            above: 0,
            running: None,
            drawn_at: Instant::now(),
            drawn_lsn: 0,
            said: false,
        }
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.joined
    }

    /// What a message shows: the mark that is kept, and the one asked for.
    pub(crate) fn shown(&self) -> (Option<DiskMark>, Option<DiskMark>) {
        let kept = self.node.state.marks().taken;
        ((kept != Mark::NONE).then(|| to_wire(kept)), self.next.map(to_wire))
    }

    /// Draws this start's mark, unless it has one.
    pub(crate) async fn begin(&mut self) -> Result<(), String> {
        if !self.joined && self.next.is_none() {
            self.draw();
            self.finish().await?;
        }
        Ok(())
    }

    /// The master answered the first message. `pending`: what its log has.
    pub(crate) async fn on_marked(&mut self, pending: Option<DiskMark>) -> Result<(), String> {
        let Some(mark) = self.next.filter(|next| pending.map(of_wire) == Some(*next)) else {
            self.next = None;
            return Err("the master took another mark than was asked for".to_owned());
        };
        self.keep(mark);
        self.finish().await?;
        self.admitted();
        Ok(())
    }

    /// The master let this server serve, which one of an earlier release does without marks.
    pub(crate) fn on_alive(&mut self, pending: Option<DiskMark>) {
        if !self.joined {
            self.next = None;
            return self.admitted();
        }
        let (Some(next), Some(pending)) = (self.next, pending.map(of_wire)) else { return };
        if pending == next {
            if self.running.is_none() {
                self.keep(next);
            }
        } else if next.number <= pending.number {
            self.next = None;
            self.above = pending.number;
        }
    }

    fn admitted(&mut self) {
        self.joined = true;
        self.node.fence.admit(true);
    }

    /// The master refuses this server, or its directory: the next stream begins anew with a mark that is above `pending`.
    pub(crate) fn on_refused(&mut self, pending: Option<DiskMark>) {
        if let Some(pending) = pending {
            self.above = self.above.max(pending.number);
            self.next = self.next.filter(|next| pending.number < next.number);
        }
    }

    /// The master says that this is an older copy of what it knows.
    pub(crate) async fn on_older_copy(&mut self, reason: &str) -> Result<(), String> {
        self.node.fence.admit(false);
        self.joined = false;
        // A mark that is being kept is of a directory that is not believed any more.
        self.finish().await?;
        self.next = None;
        let node = Arc::clone(&self.node);
        let kept = tokio::task::spawn_blocking(move || node.state.keep_refusal());
        told(kept.await).map_err(|error| format!("keep that this is an older copy: {error}"))?;
        if !std::mem::replace(&mut self.said, true) {
            tracing::error!(
                directory = %self.node.config.data_dir.display(), reason, see = %Page::DirectoryRefused,
                "this data directory is an older copy: nothing in it is served or believed"
            );
        }
        if self.node.config.accept_loss && !self.node.loss_accepted {
            tracing::warn!("--accept-loss: starting again, with nothing in it counted as current");
            self.node.start_again.ask();
        }
        Ok(())
    }

    /// With every heartbeat: whether a mark is due, or what was under way is done.
    pub(crate) async fn look(&mut self) -> Result<(), String> {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish().await?;
        }
        let due = self.joined && self.next.is_none() && self.running.is_none();
        if due
            && self.node.state.marks().taken != Mark::NONE
            && PAUSE <= self.drawn_at.elapsed()
            && self.drawn_lsn != self.node.store.synced_lsn()
        {
            self.draw();
        }
        Ok(())
    }

    fn draw(&mut self) {
        self.drawn_at = Instant::now();
        self.drawn_lsn = self.node.store.synced_lsn();
        let (node, above) = (Arc::clone(&self.node), self.above);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let drawn = node.state.draw_mark(above);
            node.news.urgent.notify_one();
            drawn.map(Some)
        }));
    }

    fn keep(&mut self, mark: Mark) {
        let node = Arc::clone(&self.node);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let kept = node.state.keep_mark(mark);
            node.news.urgent.notify_one();
            kept.map(|()| None)
        }));
    }

    async fn finish(&mut self) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let done = running.await;
        self.running = None;
        self.next = told(done).map_err(|error| format!("keep a mark of the directory: {error}"))?;
        Ok(())
    }
}

fn told<T>(done: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    done.unwrap_or_else(|error| Err(io::Error::other(error.to_string())))
}
