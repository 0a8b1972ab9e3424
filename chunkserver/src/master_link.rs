//! Heartbeats: one stream to the master, on a thread and a runtime of its own, so that load does not fake death.
//!
//! The first heartbeat of a stream tells everything, later ones what changed since. A reply is the leave to serve for
//! a while (see [`crate::fence`]). A server that is wished silent asks for the end of that, which is no heartbeat. What a heartbeat told counts as told when its reply arrived.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, Epoch};
use dfs_proto::control::master_control_client::MasterControlClient;
use dfs_proto::control::wishes_client::WishesClient;
use dfs_proto::control::{
    AskRequest, HeartbeatReply, HeartbeatRequest, MemberFailure, StaleReplica,
};
use dfs_service::clock::monotonic_nanos;
use dfs_service::conn::{control_channel, said};
use dfs_service::page::Page;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::control::{delete, delete_below};
use crate::gather::{Content, Gatherer};
use crate::marks::Marking;
use crate::node::{FAILURES_MAX, Node, lock};

/// What the store has to tell is waited for no longer, then the heartbeat goes without.
const NEWS_MAX: Duration = Duration::from_millis(250);
const INTERVAL_FIRST: Duration = Duration::from_millis(500);
const RECONNECT: Duration = Duration::from_millis(200);
const RECONNECT_REFUSED: Duration = Duration::from_secs(2);
/// A server that was decommissioned asks rarely: people who look for it find why it does nothing.
const RECONNECT_GONE: Duration = Duration::from_secs(10);
/// A question whether to be silent that is not answered by then is asked again.
const ASK_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Link {
    stopping: Arc<Stopping>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default, Debug)]
struct Stopping {
    asked: AtomicBool,
    notify: Notify,
}

impl Link {
    /// Starts heartbeats to `master`.
    ///
    /// # Errors
    /// If thread or runtime cannot be made.
    pub(crate) fn start(
        node: &Arc<Node>,
        master: String,
        address: String,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Its helpers are in no hurry.
            .on_thread_start(|| set_nice(0))
            .build()?;
        let stopping = Arc::new(Stopping::default());
        let mut talk = Talk {
            node: Arc::clone(node),
            master,
            address,
            stopping: Arc::clone(&stopping),
            sequence: 0,
            interval: INTERVAL_FIRST,
            dead_after: Duration::from_secs(15),
            gatherer: Gatherer::new(node),
            marking: Marking::new(node),
            status: String::new(),
            ended_serial: 0,
            gone: false,
            refused: false,
            refused_until_changed: false,
        };
        let thread = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            hurry();
            runtime.block_on(talk.run());
        })?;
        Ok(Self { stopping, thread: Some(thread) })
    }

    /// Tells the master that this server leaves, and ends.
    pub(crate) fn stop(&mut self) {
        self.stopping.asked.store(true, Ordering::Release);
        self.stopping.notify.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("heartbeat thread panicked");
        }
    }
}

/// This thread goes before others, if that is permitted.
fn hurry() {
    set_nice(-15);
}

fn set_nice(nice: i32) {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), nice) {
        tracing::debug!(%error, "heartbeats have no priority over other threads");
    }
}

fn client_ids(wire: &[Vec<u8>]) -> BTreeSet<ClientId> {
    let whole = wire.iter().filter_map(|bytes| bytes.as_slice().try_into().ok());
    whole.map(|bytes| ClientId(u128::from_be_bytes(bytes))).collect()
}

struct Talk {
    node: Arc<Node>,
    master: String,
    address: String,
    stopping: Arc<Stopping>,
    sequence: u64,
    interval: Duration,
    dead_after: Duration,
    gatherer: Gatherer,
    marking: Marking,
    status: String,
    /// Up to where the master's list of ended clients is known on this stream.
    ended_serial: u64,
    /// The master said that this server was decommissioned, or that its directory is an older copy.
    gone: bool,
    /// The last answer was a refusal.
    refused: bool,
    /// It was one that a mark does not end: somebody has to do something.
    refused_until_changed: bool,
}

/// What one heartbeat told, put back if it is not answered.
#[derive(Default)]
struct Told {
    chunks: Vec<ChunkId>,
    failures: Vec<MemberFailure>,
    more: bool,
}

impl Talk {
    async fn run(&mut self) {
        while !self.stopping.asked.load(Ordering::Acquire) {
            if let Err(reason) = self.one_stream().await {
                let pause = self.pause_after(&reason);
                if self.status != reason {
                    let see =
                        if self.refused { Page::DirectoryRefused } else { Page::MasterSilent };
                    let see = see.unless_named(&reason).map(tracing::field::display);
                    tracing::warn!(master = %self.master, %reason, see, "no heartbeats");
                    self.status = reason;
                }
                self.show_fence();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.stopping.notify.notified() => {}
                }
            }
        }
    }

    fn pause_after(&self, reason: &str) -> Duration {
        match (self.gone, self.refused_until_changed && self.status == reason) {
            (true, _) => RECONNECT_GONE,
            (false, true) => RECONNECT_REFUSED,
            (false, false) => RECONNECT,
        }
    }

    /// The master stops, or this server does: whoever comes next must not be older than this.
    fn keep_last_index(&self, last: &HeartbeatReply) {
        let HeartbeatReply { epoch, nonce, log_index, .. } = *last;
        if last.status != "alive" {
            return;
        }
        // Waited for: there is nothing else to do any more.
        if let Err(error) = self.node.state.keep_index(Epoch(epoch), nonce, log_index) {
            tracing::error!(%error, "keep the master's log index");
        }
    }

    /// The master says something that is no answer: that this server is to be silent, or that it stops.
    fn on_unasked(&mut self, reply: &HeartbeatReply) {
        let (epoch, nonce) = (Epoch(reply.epoch), reply.nonce);
        if reply.wish != "suspended" {
            self.keep_last_index(reply);
        } else if let Err(refused) = self.node.state.obey(epoch, nonce, reply.log_index) {
            tracing::warn!(%refused, "the wish of another master");
        } else {
            self.suspend(true);
        }
    }

    fn show_fence(&self) {
        self.node.metrics.fenced.set(i64::from(self.node.fence.is_closed()));
    }

    async fn one_stream(&mut self) -> Result<(), String> {
        (self.refused, self.refused_until_changed) = (false, false);
        let channel = control_channel(&self.master, &self.node.config.key);
        // Before the first heartbeat: it would make a server alive that is wished silent.
        self.stay_silent(WishesClient::new(channel.clone())).await?;
        if self.stopping.asked.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut client = MasterControlClient::new(channel.clone());
        let (send, queued) = mpsc::channel(4);
        let mut full = true;
        self.ended_serial = 0;
        // The request stream's first message goes with the call: a server may wait for it before it answers.
        self.marking.begin().await?;
        let (mut sent_at, mut told) = if self.marking.has_joined() {
            self.send(&send, full, false).await?
        } else {
            self.send_mark(&send).await?
        };
        let answer_max = self.dead_after.max(Duration::from_secs(2));
        let within = |e: tokio::time::error::Elapsed| e.to_string();
        let mut replies =
            tokio::time::timeout(answer_max, client.heartbeat(ReceiverStream::new(queued)))
                .await
                .map_err(within)
                .and_then(|reply| reply.map_err(|status| said(&status)))
                .map_err(|reason| self.not_told(&mut told, reason))?
                .into_inner();
        loop {
            let answer = tokio::time::timeout(answer_max, replies.message());
            let reply = match self.telling_the_end(answer).await {
                Ok(Ok(Some(reply))) => reply,
                Ok(Ok(None)) => {
                    return Err(self.not_told(&mut told, "the master closed the stream".to_owned()));
                }
                Ok(Err(status)) => return Err(self.not_told(&mut told, said(&status))),
                Err(elapsed) => return Err(self.not_told(&mut told, elapsed.to_string())),
            };
            if reply.sequence != self.sequence {
                self.on_unasked(&reply);
                continue;
            }
            full = match self.on_reply(sent_at, reply).await {
                Ok(want_full) => want_full,
                Err(reason) => return Err(self.not_told(&mut told, reason)),
            };
            let more = told.more;
            self.show_fence();
            if self.node.fence.is_suspended() {
                // The stream stays open: a closed one would tell the master more than silence does.
                self.stay_silent(WishesClient::new(channel.clone())).await?;
                return Ok(());
            }
            if !more && !full {
                let next = tokio::time::Instant::from_std(std::time::Instant::now())
                    + self.interval
                    - Duration::from_nanos(monotonic_nanos().saturating_sub(sent_at))
                        .min(self.interval);
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.node.news.urgent.notified() => {}
                    () = self.stopping.notify.notified() => {}
                    // The next heartbeat finds out if the stream has ended.
                    unasked = replies.message() => if let Ok(Some(unasked)) = unasked {
                        self.on_unasked(&unasked);
                        if self.node.fence.is_suspended() {
                            self.stay_silent(WishesClient::new(channel.clone())).await?;
                            return Ok(());
                        }
                    }
                }
            }
            let leaving = self.stopping.asked.load(Ordering::Acquire);
            (sent_at, told) = self.send(&send, full, leaving).await?;
            if leaving {
                // The moment lets it out, and the answer says how far the log reaches.
                let answer =
                    tokio::time::timeout(Duration::from_millis(500), replies.message()).await;
                if let Ok(Ok(Some(last))) = answer {
                    self.keep_last_index(&last);
                }
                return Ok(());
            }
        }
    }

    /// Waits for an answer, and says so when the lease ends before it comes.
    async fn telling_the_end<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        let left = self.node.fence.serve_until().saturating_sub(monotonic_nanos());
        tokio::select! {
            answered = &mut answer => return answered,
            () = tokio::time::sleep(Duration::from_nanos(left)), if 0 < left => {}
        }
        if self.node.fence.is_closed() && 0 < left {
            tracing::warn!(master = %self.master, see = %Page::MasterSilent, "no answer for 0.8 of the time after which servers count as dead: serving stops");
        }
        self.show_fence();
        answer.await
    }

    /// Asks the master whether to be silent until it says no.
    async fn stay_silent(
        &mut self,
        mut wishes: WishesClient<tonic::transport::Channel>,
    ) -> Result<(), String> {
        let fs = self.node.fs.0.to_be_bytes().to_vec();
        let server = self.node.server.to_string();
        while !self.stopping.asked.load(Ordering::Acquire) {
            let ask = wishes.ask(AskRequest { server: server.clone(), fs: fs.clone() });
            let reply = match tokio::time::timeout(ASK_MAX, ask).await {
                Ok(Ok(reply)) => reply.into_inner(),
                // A master of an earlier release wishes nothing.
                Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => return Ok(()),
                Ok(Err(status)) => return Err(said(&status)),
                Err(elapsed) => return Err(elapsed.to_string()),
            };
            if reply.fs != fs {
                self.node.fence.close();
                return Err("the master is of another file system".to_owned());
            }
            self.suspend(reply.suspended);
            if !reply.suspended {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(u64::from(reply.ask_again_ms).max(20))) => {}
                () = self.stopping.notify.notified() => {}
            }
        }
        Ok(())
    }

    fn suspend(&mut self, suspended: bool) {
        let before = self.node.fence.is_suspended();
        if before != suspended {
            tracing::info!(suspended, "the master's wish");
            // Else it would say "serving" only once.
            self.status.clear();
        }
        self.node.fence.suspend(suspended);
        self.show_fence();
    }

    fn not_told(&self, told: &mut Told, reason: String) -> String {
        lock(&self.node.news.changed).extend(told.chunks.drain(..));
        let mut failures = lock(&self.node.news.failures);
        let room = FAILURES_MAX.saturating_sub(failures.len());
        failures.extend(told.failures.drain(..).take(room));
        reason
    }

    async fn send(
        &mut self,
        to: &mpsc::Sender<HeartbeatRequest>,
        full: bool,
        leaving: bool,
    ) -> Result<(u64, Told), String> {
        self.marking.look().await?;
        let (request, mut told) = self.heartbeat(full, leaving).await;
        let sent_at = monotonic_nanos();
        if to.send(request).await.is_err() {
            return Err(self.not_told(&mut told, "the stream ended".to_owned()));
        }
        Ok((sent_at, told))
    }

    /// The first message of a start: nothing but its mark.
    async fn send_mark(
        &mut self,
        to: &mpsc::Sender<HeartbeatRequest>,
    ) -> Result<(u64, Told), String> {
        self.sequence += 1;
        let loss_accepted = self.node.loss_accepted;
        let request = HeartbeatRequest { joining: true, loss_accepted, ..self.identity() };
        let sent_at = monotonic_nanos();
        to.send(request).await.map_err(|_| "the stream ended".to_owned())?;
        Ok((sent_at, Told::default()))
    }

    /// Who this is, and whom it obeys.
    fn identity(&self) -> HeartbeatRequest {
        let node = &self.node;
        let reign = node.state.reign();
        let (mark, next_mark) = self.marking.shown();
        HeartbeatRequest {
            server: node.server.to_string(),
            disk: node.disk.0.to_be_bytes().to_vec(),
            fs: node.fs.0.to_be_bytes().to_vec(),
            incarnation: node.state.incarnation(),
            address: self.address.clone(),
            epoch: reign.epoch.0,
            nonce: reign.nonce,
            log_index: reign.log_index,
            sequence: self.sequence,
            device: node.device,
            directory: node.directory.clone(),
            zone: node.config.zone.clone(),
            host: node.config.host.clone(),
            mark,
            next_mark,
            ..HeartbeatRequest::default()
        }
    }

    async fn heartbeat(&mut self, full: bool, leaving: bool) -> (HeartbeatRequest, Told) {
        let content = self.gatherer.content(full, (self.interval / 10).min(NEWS_MAX)).await;
        let Content { chunks, full, more, replicas, gone, clients } = content;
        let (space, digest, pages) =
            (self.gatherer.space, self.gatherer.digest, self.gatherer.pages);
        let node = Arc::clone(&self.node);
        self.sequence += 1;
        let mut failures = std::mem::take(&mut *lock(&node.news.failures));
        failures.truncate(FAILURES_MAX);
        let told = Told { chunks, failures, more };
        let request = HeartbeatRequest {
            full_inventory: full,
            replicas,
            gone,
            chunk_count: space.chunk_count,
            used_bytes: space.used_bytes,
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            member_failures: told.failures.clone(),
            leaving,
            inventory_digest: digest,
            // A heartbeat without news does not end an inventory in pages.
            inventory_more: pages && (full || told.chunks.is_empty()),
            ended_serial: self.ended_serial,
            clients,
            client_read_bytes: node.metrics.read_bytes.get() + node.metrics.local_read_bytes.get(),
            client_written_bytes: node.metrics.led_bytes.get(),
            ..self.identity()
        };
        (request, told)
    }

    /// Says whether the master wants the full inventory.
    async fn on_reply(&mut self, sent_at: u64, reply: HeartbeatReply) -> Result<bool, String> {
        let node = &self.node;
        self.gone = matches!(reply.status.as_str(), "decommissioned" | "older-copy");
        self.refused = !matches!(reply.status.as_str(), "alive" | "marked");
        self.refused_until_changed = self.refused && reply.pending_mark.is_none();
        if self.refused {
            node.fence.close();
            self.marking.on_refused(reply.pending_mark);
            if reply.status == "older-copy" {
                self.marking.on_older_copy(&reply.reason).await?;
            }
            return Err(format!("the master says {}: {}", reply.status, reply.reason));
        }
        if reply.fs != node.fs.0.to_be_bytes() {
            node.fence.close();
            return Err("the master is of another file system".to_owned());
        }
        let (epoch, nonce) = (Epoch(reply.epoch), reply.nonce);
        if let Err(refused) = node.state.obey(epoch, nonce, reply.log_index) {
            return Err(refused.to_string());
        }
        if reply.status == "marked" {
            self.marking.on_marked(reply.pending_mark).await?;
            // What is held here is told now.
            return Ok(true);
        }
        self.marking.on_alive(reply.pending_mark);
        if reply.wish == "suspended" {
            self.suspend(true);
            return Ok(false);
        }
        if node.state.wants_index(reply.log_index) {
            let node = Arc::clone(node);
            // Not here: a busy disk must not look like a dead server.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = node.state.keep_index(epoch, nonce, reply.log_index) {
                    tracing::error!(%error, "keep the master's log index");
                }
            });
        }
        let ended = client_ids(&reply.ended_clients);
        // Before the reply counts as a leave to serve: a server that was silent serves no client that ended meanwhile.
        if !ended.is_empty() {
            let (kept, node) = (ended.iter().copied().collect::<Vec<_>>(), Arc::clone(node));
            let kept = tokio::task::spawn_blocking(move || node.state.end_clients(&kept));
            match tokio::time::timeout(self.interval / 2, kept).await {
                Ok(Ok(kept)) => kept.map_err(|e| format!("keep ended clients: {e}"))?,
                Ok(Err(error)) => return Err(format!("keep ended clients: {error}")),
                // Not on disk yet: told again with the next answer, and until then there is no leave to serve.
                Err(_) => return Ok(reply.want_full_inventory),
            }
        }
        self.ended_serial = self.ended_serial.max(reply.ended_serial);
        let mut left = client_ids(&reply.left_clients);
        left.extend(ended);
        if !left.is_empty() {
            let node = Arc::clone(node);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = node.store.forget_clients(&left) {
                    tracing::warn!(%error, "forget clients that ended");
                }
            });
        }
        if self.status != "alive" {
            tracing::info!(master = %self.master, epoch = reply.epoch, "serving");
            "alive".clone_into(&mut self.status);
        }
        let millis = |ms: u32, least: u64| Duration::from_millis(u64::from(ms).max(least));
        if 0 < reply.heartbeat_interval_ms {
            self.interval = millis(reply.heartbeat_interval_ms, 20);
            node.set_heartbeat_interval(self.interval);
        }
        if 0 < reply.dead_after_ms {
            self.dead_after = millis(reply.dead_after_ms, 100);
        }
        let nanos = monotonic_nanos().saturating_sub(sent_at);
        node.metrics.heartbeat_seconds.observe(Duration::from_nanos(nanos).as_secs_f64());
        node.metrics.heartbeats.inc();
        node.fence
            .on_answer(sent_at, u32::try_from(self.dead_after.as_millis()).unwrap_or(u32::MAX));
        node.damage.on_sources(reply.repair_sources);
        if !reply.chunks_to_delete.is_empty() || !reply.stale_replicas.is_empty() {
            let node = Arc::clone(node);
            tokio::task::spawn_blocking(move || {
                for chunk in reply.chunks_to_delete {
                    delete(&node, ChunkId(chunk));
                }
                for StaleReplica { chunk, below } in reply.stale_replicas {
                    delete_below(&node, ChunkId(chunk), ChunkVersion(below));
                }
            });
        }
        Ok(reply.want_full_inventory)
    }
}
