//! The primary's shell around [`Leader`]: sends to the members, applies here, answers clients.
//!
//! Two locks per chunk. `order` is held while an operation is numbered, sent to every member and applied here, so that
//! every connection carries the operations in order. `state` guards the decisions and is never held over I/O:
//! acknowledgements arrive on other threads meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use dfs_core::chunk::leader::{
    Answer, Effect, Joined, Leader, MemberFailure, Plan, Promised, Refused, Step, Verdict, Wish,
};
use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, ServerId};
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, WireMutation};
use dfs_proto::meta_rpc::{ChunkLayout, MemberAddress};
use dfs_service::canary;
use dfs_service::clock::monotonic_nanos;

use crate::data::Waiter;
use crate::node::{Node, lock, now, spec_of};
use crate::peer::reply_of;
use crate::store::{ChunkSpec, Mutation, OpTag, Seen};

/// A request waits this long for room in the window before it is told to come back.
const WINDOW_WAIT: Duration = Duration::from_secs(5);
/// A read of bytes under an unacknowledged operation.
const COMMIT_WAIT: Duration = Duration::from_secs(5);
/// Leaders kept in memory. A quiet one beyond it is forgotten, its chunk then needs a new version to be written.
const LEADERS_MAX: usize = 65_536;

#[derive(Default, Debug)]
pub(crate) struct Leaders {
    led: Mutex<HashMap<ChunkId, Arc<Led>>>,
    /// Those a tick has to look at.
    active: Mutex<HashSet<ChunkId>>,
    ticker: OnceLock<Thread>,
}

/// One version of one chunk, led by this process from its beginning.
#[derive(Debug)]
pub(crate) struct Led {
    chunk: ChunkId,
    version: ChunkVersion,
    spec: ChunkSpec,
    layout: ChunkLayout,
    others: Vec<MemberAddress>,
    order: Mutex<()>,
    state: Mutex<Leader<Waiter>>,
    /// The window moved, something was committed, or nothing will be.
    progress: Condvar,
    /// The higher version that was promised, 0 if none.
    superseded: AtomicU64,
    active: AtomicBool,
}

/// One `Mutate` as it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) layout: ChunkLayout,
    pub(crate) client: ClientId,
    pub(crate) counter: u64,
    pub(crate) low_water: u64,
    pub(crate) mutation: WireMutation,
    pub(crate) payload: Vec<u8>,
    pub(crate) payload_crc: u32,
}

fn wish_of(mutation: WireMutation, len: u64) -> Option<Wish> {
    Some(match mutation {
        WireMutation::Write { offset } => Wish::Write { offset, len },
        WireMutation::Append { record, at_least } => Wish::Append { len, record, at_least },
        WireMutation::Zero { offset, len } => Wish::Zero { offset, len },
        WireMutation::Truncate { len } => Wish::Truncate { len },
        WireMutation::Seal => return None,
    })
}

fn wire_of(step: Step) -> WireMutation {
    match step {
        Step::Write { offset, .. } => WireMutation::Write { offset },
        Step::Zero { offset, len } => WireMutation::Zero { offset, len },
        Step::Truncate { len } => WireMutation::Truncate { len },
        Step::Seal => WireMutation::Seal,
    }
}

/// What a member applies for an operation of the wire; appends got their offset from the primary.
pub(crate) fn to_store(mutation: WireMutation, payload: &[u8]) -> Option<Mutation<'_>> {
    Some(match mutation {
        WireMutation::Write { offset } => Mutation::Write { offset, data: payload },
        WireMutation::Zero { offset, len } => Mutation::Zero { offset, len },
        WireMutation::Truncate { len } => Mutation::Truncate { len },
        WireMutation::Seal => Mutation::Seal,
        WireMutation::Append { .. } => return None,
    })
}

fn answer_of(answer: Answer) -> DataReply {
    match answer {
        Answer::Mutated { seq, len } => DataReply::Mutated { seq, len },
        Answer::Appended { seq, offset, appended, carried, sealed } => {
            DataReply::Appended { seq, offset, appended, carried, sealed }
        }
        // Of records only, which never cross.
        Answer::Full => DataReply::Failed(DataFailure::ChunkFull { carry: 0 }),
        Answer::Synced { seq, len } => DataReply::Synced { seq, len },
        Answer::Failed(MemberFailure { server, reason }) => {
            DataReply::Failed(DataFailure::MemberFailed { server, reason })
        }
    }
}

impl Leaders {
    fn find(&self, chunk: ChunkId) -> Option<Arc<Led>> {
        lock(&self.led).get(&chunk).map(Arc::clone)
    }

    /// The leader of exactly this version, if this process has it.
    pub(crate) fn of_version(&self, chunk: ChunkId, version: ChunkVersion) -> Option<Arc<Led>> {
        self.find(chunk).filter(|led| led.version == version)
    }

    /// The calling thread ticks: it is unparked when a chunk becomes active and none was.
    pub(crate) fn wake_this_thread(&self) {
        self.ticker.get_or_init(std::thread::current);
    }
}

/// The leader for `layout`; begun now if nothing was done in its version yet.
fn lead(node: &Node, layout: &ChunkLayout) -> Result<Arc<Led>, DataFailure> {
    node.check_layout(layout)?;
    if layout.primary != node.server {
        return Err(DataFailure::NotPrimary);
    }
    let (chunk, version) = (layout.chunk, layout.version);
    if let Some(led) = node.leaders.of_version(chunk, version) {
        return led.check_current().map(|()| led);
    }
    let mut leaders = lock(&node.leaders.led);
    if let Some(led) = leaders.get(&chunk)
        && version <= led.version
    {
        if led.version == version {
            return led.check_current().map(|()| Arc::clone(led));
        }
        return Err(DataFailure::StaleVersion {
            asked: version.0,
            promised: 0,
            have: led.version.0,
        });
    }
    let (len, sealed) = match node.store.report(chunk) {
        None if version == ChunkVersion(1) => (0, false),
        None => return Err(node.failed("no replica of this chunk")),
        Some(report) if version < report.promised => {
            return Err(DataFailure::StaleVersion {
                asked: version.0,
                promised: report.promised.0,
                have: report.position.version.0,
            });
        }
        Some(report) if report.not_current => {
            return Err(node.failed("replica not current after a reboot"));
        }
        Some(report)
            if report.position.version == version
                && (report.position.seq == 0 || canary::sings("version-led-twice")) =>
        {
            (report.len, report.sealed)
        }
        Some(report) if report.position.version == version => {
            // What was sent to others before the restart is not known: the next version will find out.
            return Err(node.failed("led this version before a restart"));
        }
        // Version 1 of a chunk that was only promised: nothing was ever done.
        Some(report)
            if report.position.version == ChunkVersion(0) && version == ChunkVersion(1) =>
        {
            (0, false)
        }
        Some(report) => {
            return Err(node.failed(&format!(
                "has version {} of this chunk, not {}",
                report.position.version.0, version.0
            )));
        }
    };
    if LEADERS_MAX <= leaders.len() {
        leaders.retain(|_, led| !lock(&led.state).is_quiet());
        if LEADERS_MAX <= leaders.len() {
            return Err(DataFailure::Busy);
        }
    }
    let len = len.saturating_sub(u64::from(canary::sings("begins-one-byte-short")));
    let servers: Vec<ServerId> = layout.members.iter().map(|m| m.member.server).collect();
    let led = Arc::new(Led {
        chunk,
        version,
        spec: spec_of(layout),
        layout: layout.clone(),
        others: layout.members.iter().filter(|m| m.member.server != node.server).cloned().collect(),
        order: Mutex::new(()),
        state: Mutex::new(Leader::new(node.server, &servers, layout.chunk_size, len, sealed)),
        progress: Condvar::new(),
        superseded: AtomicU64::new(0),
        active: AtomicBool::new(false),
    });
    leaders.insert(chunk, Arc::clone(&led));
    node.metrics.leaders.set(i64::try_from(leaders.len()).unwrap_or(i64::MAX));
    Ok(led)
}

impl Led {
    fn check_current(&self) -> Result<(), DataFailure> {
        match self.superseded.load(Ordering::Acquire) {
            0 => Ok(()),
            promised => Err(DataFailure::StaleVersion {
                asked: self.version.0,
                promised,
                have: self.version.0,
            }),
        }
    }

    fn activate(&self, node: &Node) {
        if !self.active.swap(true, Ordering::AcqRel) {
            let first = {
                let mut active = lock(&node.leaders.active);
                let first = active.is_empty();
                active.insert(self.chunk);
                first
            };
            if let Some(ticker) = node.leaders.ticker.get().filter(|_| first) {
                ticker.unpark();
            }
        }
    }
}

/// A client's mutation: answers `waiter` now or when the members have acknowledged.
pub(crate) fn mutate(node: &Arc<Node>, request: Request, waiter: Waiter) {
    let mut waiter = Some(waiter);
    if let Err(failure) = try_mutate(node, &request, &mut waiter)
        && let Some(waiter) = waiter
    {
        waiter.reply(node, &DataReply::Failed(failure));
    }
}

fn try_mutate(
    node: &Arc<Node>,
    request: &Request,
    waiter: &mut Option<Waiter>,
) -> Result<(), DataFailure> {
    let Request { layout, client, counter, low_water, mutation, payload, .. } = request;
    let (client, counter, low_water) = (*client, *counter, *low_water);
    let bad = |reason: &str| DataFailure::BadRequest { reason: reason.to_owned() };
    node.fence.check()?;
    if node.state.is_ended(client) {
        return Err(bad("this client's lease ended"));
    }
    let wish =
        wish_of(*mutation, payload.len() as u64).ok_or_else(|| bad("not a client's mutation"))?;
    if client == ClientId(0) {
        return Err(bad("client id 0"));
    }
    if !layout.writable {
        return Err(node.failed("the layout is for reading only: too few members"));
    }
    let led = lead(node, layout)?;
    let chunk = led.chunk;
    let deadline = monotonic_nanos() + nanos(WINDOW_WAIT);
    loop {
        let order = lock(&led.order);
        led.check_current()?;
        let seen = match node.store.seen(chunk, client, counter) {
            Ok(seen) => seen,
            Err(error) => return Err(node.failure(led.version, &error)),
        };
        if let Some(failure) = lock(&led.state).failed() {
            return Err(member_failed(failure));
        }
        match seen {
            Seen::New => {}
            Seen::Done { .. } if canary::sings("operation-done-again") => {}
            Seen::Unknown => return Err(DataFailure::OutcomeUnknown),
            Seen::Done { append } => {
                let Some(asker) = waiter.take() else { return Ok(()) };
                repeat(node, &led, wish, client, counter, append, asker);
                return Ok(());
            }
        }
        let missing = low_water < counter
            && 1 < counter
            && matches!(node.store.seen(chunk, client, counter - 1), Ok(Seen::New));
        let state = lock(&led.state);
        match state.check(payload.len() as u64, missing) {
            Verdict::Failed(failure) => return Err(member_failed(&failure)),
            Verdict::Later if missing => {
                tracing::debug!(
                    chunk = chunk.0,
                    version = led.version.0,
                    counter,
                    low_water,
                    "the operation before this one is missing"
                );
                return Err(DataFailure::Busy);
            }
            Verdict::Later => {
                drop(order);
                let left = Duration::from_nanos(deadline.saturating_sub(monotonic_nanos()));
                if left.is_zero() {
                    return Err(DataFailure::Busy);
                }
                let _state =
                    led.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
            Verdict::Go => {
                let plan = state.plan(wish, node.store.takes_no_records(chunk));
                drop(state);
                run_plan(node, &led, request, plan, waiter)?;
                drop(order);
                return Ok(());
            }
        }
    }
}

fn member_failed(failure: &MemberFailure) -> DataFailure {
    DataFailure::MemberFailed { server: failure.server, reason: failure.reason.clone() }
}

/// The answer after `failure`: where to go instead, if that is known.
fn failed_reply(led: &Led, failure: &MemberFailure) -> DataReply {
    DataReply::Failed(led.check_current().err().unwrap_or_else(|| member_failed(failure)))
}

/// The operation was applied before: its asker lost the answer.
fn repeat(
    node: &Arc<Node>,
    led: &Arc<Led>,
    wish: Wish,
    client: ClientId,
    counter: u64,
    append: Option<(u64, u64)>,
    asker: Waiter,
) {
    node.metrics.repeated.inc();
    let mut state = lock(&led.state);
    let asker = match state.join(client, counter, asker) {
        Joined::Waits => return,
        Joined::NotInFlight(asker) => asker,
        Joined::Failed(failure, asker) => {
            drop(state);
            return asker.reply(node, &failed_reply(led, &failure));
        }
    };
    // Not in flight, so committed: in this version, or before it and adopted by all.
    let (seq, len) = (state.last(), state.committed_len());
    let effects = match (wish, append) {
        (Wish::Append { .. }, Some((offset, asked))) => {
            let (appended, filled) = within(offset, asked, led.spec.chunk_size);
            let (carried, sealed) = (asked - appended, state.is_sealed() || filled);
            let answer = Answer::Appended { seq, offset, appended, carried, sealed };
            state.when_stable(seq, answer, asker, now())
        }
        (Wish::Append { .. }, None) => state.when_stable(seq, Answer::Full, asker, now()),
        (Wish::Write { .. } | Wish::Zero { .. } | Wish::Truncate { .. }, _) => {
            vec![Effect::Reply(asker, Answer::Mutated { seq, len })]
        }
    };
    drop(state);
    led.activate(node);
    perform(node, led, effects);
}

/// How much of an append fits, and whether the chunk is full then.
fn within(offset: u64, asked: u64, chunk_size: u64) -> (u64, bool) {
    let room = chunk_size.saturating_sub(offset);
    (asked.min(room), room <= asked)
}

fn run_plan(
    node: &Arc<Node>,
    led: &Arc<Led>,
    request: &Request,
    plan: Plan,
    waiter: &mut Option<Waiter>,
) -> Result<(), DataFailure> {
    let (client, counter) = (request.client, request.counter);
    match plan {
        Plan::Invalid(reason) => Err(DataFailure::BadRequest { reason: reason.to_owned() }),
        Plan::Full => Err(DataFailure::ChunkFull { carry: node.store.carry(led.chunk) }),
        Plan::PadAndSeal { pad_to } => {
            // The padding is nobody's operation; the seal carries the asker's number, so that asking again is seen.
            let pad = Op {
                step: Step::Truncate { len: pad_to },
                client: ClientId(0),
                counter: 0,
                append: None,
            };
            submit(node, led, request, pad, Promised::Nothing, None);
            let seal = Op { step: Step::Seal, client, counter, append: None };
            submit(node, led, request, seal, Promised::Full, waiter.take());
            Ok(())
        }
        Plan::Apply { step, append } => {
            let bytes = match step {
                Step::Write { len, .. } => len,
                Step::Zero { .. } | Step::Truncate { .. } | Step::Seal => 0,
            };
            for member in &led.others {
                if !node.peers.has_space(member.member.server, &member.address, bytes) {
                    return Err(DataFailure::NoSpace { server: member.member.server });
                }
            }
            let _credit = match bytes {
                0 => None,
                bytes => Some(
                    node.store
                        .reserve(bytes)
                        .map_err(|_| DataFailure::NoSpace { server: node.server })?,
                ),
            };
            let promised = match append {
                Some((offset, asked)) => {
                    let (appended, sealed) = within(offset, asked, led.spec.chunk_size);
                    Promised::Appended { offset, appended, carried: asked - appended, sealed }
                }
                None => Promised::Mutated,
            };
            submit(
                node,
                led,
                request,
                Op { step, client, counter, append },
                promised,
                waiter.take(),
            );
            Ok(())
        }
    }
}

#[derive(Clone, Copy)]
struct Op {
    step: Step,
    client: ClientId,
    counter: u64,
    append: Option<(u64, u64)>,
}

/// Numbers the operation, sends it to every member, applies it here. Called with `order` held.
fn submit(
    node: &Arc<Node>,
    led: &Arc<Led>,
    request: &Request,
    op: Op,
    promised: Promised,
    waiter: Option<Waiter>,
) {
    let Op { step, client, counter, append } = op;
    let low_water = if client == request.client { request.low_water } else { 0 };
    let record =
        append.is_some() && matches!(request.mutation, WireMutation::Append { record: true, .. });
    let data: &[u8] = match step {
        Step::Write { len, .. } => {
            &request.payload[..usize::try_from(len).unwrap_or(0).min(request.payload.len())]
        }
        Step::Zero { .. } | Step::Truncate { .. } | Step::Seal => &[],
    };
    let begun = {
        let mut state = lock(&led.state);
        let begun = state.begin(now(), step, client, counter, promised, waiter);
        begun.map(|seq| (seq, state.committed()))
    };
    let (seq, committed) = match begun {
        Ok(begun) => begun,
        Err(Refused { failure, waiter }) => {
            if let Some(waiter) = waiter {
                waiter.reply(node, &failed_reply(led, &failure));
            }
            return;
        }
    };
    led.activate(node);
    let mutation = wire_of(step);
    if !led.others.is_empty() {
        let args = DataCall::Replicate {
            layout: led.layout.clone(),
            seq,
            client,
            counter,
            low_water,
            mutation,
            append,
            committed,
            record,
        }
        .to_bytes();
        let crc = (data.len() == request.payload.len()).then_some(request.payload_crc);
        for member in &led.others {
            let server = member.member.server;
            send(node, led, member, &args, data, crc, move |led, _| {
                lock(&led.state).on_applied(now(), server, seq)
            });
        }
    }
    let tag = OpTag { client, counter, low_water, append, record };
    let applied = match to_store(mutation, data) {
        Some(mutation) => node.store.apply(led.chunk, led.version, seq, &led.spec, tag, mutation),
        None => return,
    };
    node.on_changed(led.chunk);
    let effects = match applied {
        Ok(()) => {
            node.metrics.written_bytes.inc_by(data.len() as u64);
            node.metrics.led_bytes.inc_by(data.len() as u64);
            lock(&led.state).on_applied(now(), node.server, seq)
        }
        Err(error) => {
            tracing::warn!(chunk = led.chunk.0, version = led.version.0, seq, %error, "apply as primary");
            lock(&led.state)
                .on_failed(MemberFailure { server: node.server, reason: error.to_string() })
        }
    };
    perform(node, led, effects);
}

/// Sends one call to a member; `on_applied` is told of its success, a failure ends the version.
fn send(
    node: &Arc<Node>,
    led: &Arc<Led>,
    member: &MemberAddress,
    args: &[u8],
    payload: &[u8],
    payload_crc: Option<u32>,
    on_success: impl FnOnce(&Led, u64) -> Vec<Effect<Waiter>> + Send + 'static,
) {
    let server = member.member.server;
    let bytes = payload.len() as u64;
    node.peers.on_sent(server, bytes);
    let on_reply = {
        let (node, led) = (Arc::clone(node), Arc::clone(led));
        Box::new(move |frame| {
            node.peers.on_answered(server, bytes);
            let effects = match reply_of(frame) {
                Ok((DataReply::Applied { seq, free_bytes }, _)) => {
                    node.peers.on_free_bytes(server, free_bytes);
                    on_success(&led, seq)
                }
                Ok((other, _)) => fail(&node, &led, server, format!("unexpected reply {other:?}")),
                Err(reason) => fail(&node, &led, server, reason),
            };
            perform(&node, &led, effects);
        })
    };
    let started = node
        .peers
        .client(server, &member.address)
        .and_then(|client| client.start(args, &[payload], payload_crc, on_reply));
    if let Err(error) = started {
        node.peers.on_answered(server, bytes);
        let effects = fail(node, led, server, error.to_string());
        perform(node, led, effects);
    }
}

fn fail(node: &Node, led: &Led, server: ServerId, reason: String) -> Vec<Effect<Waiter>> {
    let mut state = lock(&led.state);
    if state.failed().is_none() {
        tracing::warn!(chunk = led.chunk.0, version = led.version.0, %server, %reason, "member failed");
        node.metrics.member_failures.inc();
    }
    state.on_failed(MemberFailure { server, reason })
}

/// Does what was decided, and what is decided because of it.
fn perform(node: &Arc<Node>, led: &Arc<Led>, effects: Vec<Effect<Waiter>>) {
    let mut queue = VecDeque::from(effects);
    while let Some(effect) = queue.pop_front() {
        match effect {
            Effect::Reply(waiter, answer) => {
                let reply = match (answer, led.check_current()) {
                    (Answer::Failed(_), Err(superseded)) => DataReply::Failed(superseded),
                    (answer, _) => answer_of(answer),
                };
                waiter.reply(node, &reply);
            }
            Effect::Sync { up_to } => sync_everywhere(node, led, up_to),
            Effect::Announce { committed } => {
                tell(
                    node,
                    led,
                    &DataCall::Committed { chunk: led.chunk, version: led.version, seq: committed },
                );
            }
            Effect::AllStable { seq } => {
                crate::member::mark_clean(node, led.chunk, led.version, seq);
                tell(
                    node,
                    led,
                    &DataCall::AllStable { chunk: led.chunk, version: led.version, seq },
                );
            }
            Effect::Report(MemberFailure { server, reason }) => {
                if led.check_current().is_ok() {
                    node.report_failure(led.chunk, led.version, server, reason);
                }
            }
            Effect::Progress => led.progress.notify_all(),
        }
    }
}

fn tell(node: &Node, led: &Led, call: &DataCall) {
    let args = call.to_bytes();
    for member in &led.others {
        // Only what lets members serve sooner: a lost one costs a redirect.
        let told = node
            .peers
            .client(member.member.server, &member.address)
            .and_then(|client| client.send_one_way(&args, &[]));
        if let Err(error) = told {
            tracing::debug!(server = %member.member.server, %error, "tell member");
        }
    }
}

fn sync_everywhere(node: &Arc<Node>, led: &Arc<Led>, up_to: u64) {
    node.metrics.syncs.inc();
    let args =
        DataCall::SyncMember { chunk: led.chunk, version: led.version, seq: up_to }.to_bytes();
    for member in &led.others {
        let server = member.member.server;
        send(node, led, member, &args, &[], None, move |led, seq| {
            lock(&led.state).on_synced(now(), server, seq.max(up_to))
        });
    }
    let (node2, led2) = (Arc::clone(node), Arc::clone(led));
    node.store.sync(
        led.chunk,
        Box::new(move |synced| {
            let effects = match synced {
                Ok(seq) => lock(&led2.state).on_synced(now(), node2.server, seq),
                Err(error) => {
                    tracing::error!(chunk = led2.chunk.0, %error, "sync");
                    fail(&node2, &led2, node2.server, format!("sync: {error}"))
                }
            };
            perform(&node2, &led2, effects);
        }),
    );
}

/// A client's `Sync`.
pub(crate) fn sync(node: &Arc<Node>, layout: &ChunkLayout, waiter: Waiter) {
    if let Err(failure) = node.fence.check().and_then(|()| node.check_layout(layout)) {
        return waiter.reply(node, &DataReply::Failed(failure));
    }
    let led = match node.leaders.of_version(layout.chunk, layout.version) {
        Some(led) => led,
        // Nothing was done in this version, or it was left clean: all of it is stable.
        None if layout.primary == node.server => match node.store.report(layout.chunk) {
            None if layout.version == ChunkVersion(1) => {
                return waiter.reply(node, &DataReply::Synced { seq: 0, len: 0 });
            }
            Some(report)
                if report.position.version == layout.version
                    && report.promised <= layout.version
                    && !report.dirty
                    && !report.not_current =>
            {
                return waiter
                    .reply(node, &DataReply::Synced { seq: report.position.seq, len: report.len });
            }
            Some(_) | None => match lead(node, layout) {
                Ok(led) => led,
                Err(failure) => return waiter.reply(node, &DataReply::Failed(failure)),
            },
        },
        None => return waiter.reply(node, &DataReply::Failed(DataFailure::NotPrimary)),
    };
    if let Err(failure) = led.check_current() {
        return waiter.reply(node, &DataReply::Failed(failure));
    }
    // After whatever is being applied: a sync covers what was answered before it was asked.
    drop(lock(&led.order));
    let effects = lock(&led.state).on_sync(now(), waiter);
    led.activate(node);
    perform(node, &led, effects);
}

/// `version` of `chunk` is promised: whoever leads a lower one stops.
pub(crate) fn on_promised(node: &Arc<Node>, chunk: ChunkId, version: ChunkVersion) {
    let led = {
        let mut leaders = lock(&node.leaders.led);
        match leaders.get(&chunk) {
            Some(led) if led.version < version => leaders.remove(&chunk),
            Some(_) | None => None,
        }
    };
    if let Some(led) = led {
        led.superseded.store(version.0, Ordering::Release);
        let failure = MemberFailure {
            server: node.server,
            reason: format!("version {} was promised", version.0),
        };
        let effects = lock(&led.state).on_failed(failure);
        perform(node, &led, effects);
    }
}

/// The replica is gone.
pub(crate) fn on_deleted(node: &Arc<Node>, chunk: ChunkId) {
    on_promised(node, chunk, ChunkVersion(u64::MAX));
}

/// Waits until nothing unacknowledged that was applied before now touches `start..end`.
///
/// # Errors
/// `MemberFailed` if that will never be, `Busy` if not within [`COMMIT_WAIT`].
pub(crate) fn wait_committed(led: &Led, start: u64, end: u64) -> Result<(), DataFailure> {
    let mut state = lock(&led.state);
    let Some(seq) = state.uncommitted_over(start, end) else { return Ok(()) };
    let deadline = monotonic_nanos() + nanos(COMMIT_WAIT);
    while state.committed() < seq {
        if let Some(failure) = state.failed() {
            led.check_current()?;
            return Err(member_failed(failure));
        }
        let left = Duration::from_nanos(deadline.saturating_sub(monotonic_nanos()));
        if left.is_zero() {
            return Err(DataFailure::Busy);
        }
        state = led.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    Ok(())
}

/// Position, length and seal as far as they are acknowledged.
pub(crate) fn committed_stat(led: &Led) -> DataReply {
    let state = lock(&led.state);
    DataReply::Stat {
        version: led.version,
        seq: state.committed(),
        len: state.committed_len(),
        sealed: state.is_sealed(),
    }
}

impl Led {
    /// The members' addresses, for repair.
    pub(crate) fn others(&self) -> &[MemberAddress] {
        &self.others
    }
}

/// Looks after silent members, late syncs and announcements; called every few milliseconds. Whether there was a chunk to
/// look after.
pub(crate) fn tick(node: &Arc<Node>) -> bool {
    let active: Vec<ChunkId> = lock(&node.leaders.active).iter().copied().collect();
    let any = !active.is_empty();
    for chunk in active {
        let Some(led) = node.leaders.find(chunk) else {
            lock(&node.leaders.active).remove(&chunk);
            continue;
        };
        let (effects, quiet) = {
            let mut state = lock(&led.state);
            let effects = state.on_tick(
                now(),
                nanos(node.config.apply_timeout),
                nanos(node.config.sync_timeout),
            );
            (effects, state.is_quiet())
        };
        if quiet {
            // Removed before the flag falls: an operation that comes in between puts it back.
            lock(&node.leaders.active).remove(&chunk);
            led.active.store(false, Ordering::Release);
            if !lock(&led.state).is_quiet() {
                led.activate(node);
            }
        }
        perform(node, &led, effects);
    }
    any
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
