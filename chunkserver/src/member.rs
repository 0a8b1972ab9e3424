//! The member's side: applies what the primary sends, and knows what it may serve.
//!
//! A value once read is not un-read (I12): a member serves a range only if every operation on it is known to be
//! applied by all members. What is not known goes to the primary; what nobody can know any more (this process was
//! restarted in the middle of a version) is answered `MemberFailed`, and the next version settles it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId};
use dfs_proto::data_rpc::{DataFailure, DataReply, WireMutation};
use dfs_proto::meta_rpc::{ChunkLayout, MemberAddress};
use dfs_service::canary;

use crate::data::Waiter;
use crate::node::{Node, lock, spec_of};
use crate::primary::to_store;
use crate::store::{Mutation, OpTag, StoreError};

/// Chunks whose view is kept; settled ones beyond it are forgotten (and found again from the replica).
const VIEWS_MAX: usize = 65_536;
/// Operations remembered one by one per chunk; more than the primary's window.
const RANGES_MAX: usize = 1024;

#[derive(Default, Debug)]
pub(crate) struct Members {
    views: Mutex<HashMap<ChunkId, View>>,
}

/// What a member knows of one chunk in one version.
#[derive(Debug)]
struct View {
    version: ChunkVersion,
    /// Applied by all members up to here.
    committed: u64,
    /// Of operations up to here only the number is known.
    blind_up_to: u64,
    /// (seq, start, end) of the others above `committed`.
    ranges: VecDeque<(u64, u64, u64)>,
    /// The primary of this version spoke since this process started.
    heard: bool,
    /// Nothing since everything was on every disk: the view can be made again from the replica.
    clean: bool,
    /// After the last operation sent here.
    len: u64,
    members: Vec<MemberAddress>,
}

/// One `Replicate` as it came.
#[derive(Debug)]
pub(crate) struct Replicated {
    pub(crate) layout: ChunkLayout,
    pub(crate) seq: u64,
    pub(crate) client: ClientId,
    pub(crate) counter: u64,
    pub(crate) low_water: u64,
    pub(crate) mutation: WireMutation,
    pub(crate) append: Option<(u64, u64)>,
    pub(crate) committed: u64,
    pub(crate) record: bool,
    pub(crate) payload: Vec<u8>,
}

impl View {
    fn commit(&mut self, seq: u64) {
        self.committed = self.committed.max(seq);
        while self.ranges.front().is_some_and(|(seq, ..)| *seq <= self.committed) {
            self.ranges.pop_front();
        }
    }

    fn is_settled(&self) -> bool {
        self.blind_up_to <= self.committed && self.ranges.is_empty()
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        self.committed < self.blind_up_to
            || self.ranges.iter().any(|(_, from, to)| *from < end && start < *to)
    }
}

impl Members {
    /// The view of `version`, made from the replica if this process has none yet.
    fn with_view<T>(
        &self,
        node: &Node,
        chunk: ChunkId,
        version: ChunkVersion,
        use_it: impl FnOnce(&mut View) -> T,
    ) -> T {
        let mut views = lock(&self.views);
        if VIEWS_MAX <= views.len() {
            views.retain(|_, view| !view.is_settled() || !view.clean);
        }
        let known = views.get(&chunk).is_some_and(|view| view.version == version);
        if !known {
            // Clean: all of it was stable everywhere. Otherwise nothing is known of what came before.
            let (blind_up_to, len) = match node.store.report(chunk) {
                Some(report) if report.position.version == version && report.dirty => {
                    (report.position.seq, report.len)
                }
                Some(report) => (0, report.len),
                None => (0, 0),
            };
            let view = View {
                version,
                committed: 0,
                blind_up_to,
                ranges: VecDeque::new(),
                heard: false,
                clean: blind_up_to == 0,
                len,
                members: Vec::new(),
            };
            views.insert(chunk, view);
        }
        match views.get_mut(&chunk) {
            Some(view) => use_it(view),
            None => unreachable!("inserted above, under the same lock"),
        }
    }

    /// # Errors
    /// Where the asker has to go if this member cannot answer for `start..end`.
    pub(crate) fn check_committed(
        &self,
        node: &Node,
        chunk: ChunkId,
        version: ChunkVersion,
        start: u64,
        end: u64,
    ) -> Result<(), DataFailure> {
        let (covered, heard) =
            self.with_view(node, chunk, version, |view| (view.covers(start, end), view.heard));
        match (covered, heard) {
            (false, _) => Ok(()),
            (true, true) => Err(DataFailure::NotPrimary),
            (true, false) => {
                let reason = "restarted before its last operations were known to be everywhere";
                node.report_failure(chunk, version, node.server, reason.to_owned());
                Err(node.failed(reason))
            }
        }
    }

    /// Members that the primary named last.
    pub(crate) fn others(&self, node: &Node, chunk: ChunkId) -> Vec<MemberAddress> {
        let views = lock(&self.views);
        let members = views.get(&chunk).map(|view| view.members.clone()).unwrap_or_default();
        members.into_iter().filter(|m| m.member.server != node.server).collect()
    }

    pub(crate) fn forget(&self, chunk: ChunkId) {
        lock(&self.views).remove(&chunk);
    }
}

/// Applies one operation and answers for it.
pub(crate) fn replicate(node: &Node, op: Replicated) -> DataReply {
    match try_replicate(node, &op) {
        Ok(()) => DataReply::Applied { seq: op.seq, free_bytes: node.free_bytes() },
        Err(failure) => {
            tracing::warn!(chunk = op.layout.chunk.0, version = op.layout.version.0, seq = op.seq, %failure, "operation refused");
            DataReply::Failed(failure)
        }
    }
}

fn try_replicate(node: &Node, op: &Replicated) -> Result<(), DataFailure> {
    let (chunk, version) = (op.layout.chunk, op.layout.version);
    node.check_layout(&op.layout)?;
    let mutation = to_store(op.mutation, &op.payload).ok_or_else(|| DataFailure::BadRequest {
        reason: "an append without its offset".to_owned(),
    })?;
    let (start, end) = match op.mutation {
        WireMutation::Write { offset } => (offset, offset.saturating_add(op.payload.len() as u64)),
        WireMutation::Zero { offset, len } => (offset, offset.saturating_add(len)),
        WireMutation::Truncate { len } => (len, u64::MAX),
        WireMutation::Append { .. } | WireMutation::Seal => (0, 0),
    };
    // Before it is applied: a reader that sees it must also see that it is not committed.
    node.members.with_view(node, chunk, version, |view| {
        view.heard = true;
        if view.members.is_empty() {
            view.members.clone_from(&op.layout.members);
        }
        view.commit(op.committed);
        if RANGES_MAX <= view.ranges.len() {
            view.ranges.clear();
            view.blind_up_to = view.blind_up_to.max(op.seq);
        }
        // What grows the chunk changes what is read behind its old end, too.
        view.ranges.push_back((op.seq, start.min(view.len), end));
        view.clean = false;
        match op.mutation {
            WireMutation::Write { .. } => view.len = view.len.max(end),
            WireMutation::Truncate { len } => view.len = len,
            WireMutation::Append { .. } | WireMutation::Zero { .. } | WireMutation::Seal => {}
        }
    });
    let mutation = if canary::sings("applied-as-nothing") { Mutation::Nop } else { mutation };
    let tag = OpTag {
        client: op.client,
        counter: op.counter,
        low_water: op.low_water,
        append: op.append,
        record: op.record,
    };
    node.store
        .apply(chunk, version, op.seq, &spec_of(&op.layout), tag, mutation)
        .map_err(|error| node.failure(version, &error))?;
    node.on_changed(chunk);
    node.on_written(op.payload.len() as u64);
    node.metrics.replicated.inc();
    node.metrics.written_bytes.inc_by(op.payload.len() as u64);
    Ok(())
}

/// Makes `chunk` stable here up to `seq` and answers.
pub(crate) fn sync(
    node: &Arc<Node>,
    chunk: ChunkId,
    version: ChunkVersion,
    seq: u64,
    waiter: Waiter,
) {
    let refused = match node.store.report(chunk) {
        None => Some(DataFailure::NoReplica),
        Some(report) if report.position.version != version || version < report.promised => {
            Some(DataFailure::StaleVersion {
                asked: version.0,
                promised: report.promised.0,
                have: report.position.version.0,
            })
        }
        Some(report) if report.position.seq < seq => {
            Some(DataFailure::Gap { have: report.position.seq })
        }
        Some(_) => None,
    };
    if let Some(failure) = refused {
        return waiter.reply(node, &DataReply::Failed(failure));
    }
    let answering = Arc::clone(node);
    node.store.sync(
        chunk,
        Box::new(move |synced| {
            let reply = match synced {
                Ok(stable) if seq <= stable => {
                    DataReply::Applied { seq: stable, free_bytes: answering.free_bytes() }
                }
                Ok(stable) => DataReply::Failed(DataFailure::Gap { have: stable }),
                Err(error) => {
                    tracing::error!(chunk = chunk.0, %error, "sync");
                    DataReply::Failed(answering.failure(version, &error))
                }
            };
            waiter.reply(&answering, &reply);
        }),
    );
}

/// The primary says what all members have applied.
pub(crate) fn on_committed(node: &Node, chunk: ChunkId, version: ChunkVersion, seq: u64) {
    let current = node.store.report(chunk).is_some_and(|report| report.position.version == version);
    if current {
        node.members.with_view(node, chunk, version, |view| {
            view.heard = true;
            view.commit(seq);
        });
    }
}

/// The primary says that everything is on every disk.
pub(crate) fn on_all_stable(node: &Node, chunk: ChunkId, version: ChunkVersion, seq: u64) {
    on_committed(node, chunk, version, seq);
    if let Some(view) = lock(&node.members.views).get_mut(&chunk)
        && view.version == version
        && view.is_settled()
    {
        view.clean = true;
    }
    mark_clean(node, chunk, version, seq);
}

pub(crate) fn mark_clean(node: &Node, chunk: ChunkId, version: ChunkVersion, seq: u64) {
    match node.store.mark_clean(chunk, version, seq) {
        Ok(()) => {}
        Err(error @ StoreError::NotFound { .. }) => {
            tracing::debug!(chunk = chunk.0, %error, "mark clean: deleted meanwhile");
        }
        Err(error) => tracing::warn!(chunk = chunk.0, %error, "mark clean"),
    }
    node.on_changed(chunk);
}
