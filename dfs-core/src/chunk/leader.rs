//! How a primary leads one version of one chunk: numbers operations, counts acknowledgements, decides when to sync.
//!
//! Told of one operation at a time: [`Leader::check`] (may it be taken?), [`Leader::plan`] (what it does, and where),
//! [`Leader::begin`] (it has its number), then [`Leader::on_applied`] and [`Leader::on_synced`] for each member, in any
//! order. *Committed* is what every member applied, *stable* what every member has on disk (DECISIONS 1). After the
//! first failure of a member nothing more is acknowledged in this version; the next version is the master's business.
//! A process begins a `Leader` only at sequence 0 of its version: a primary leads a version at most once.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{ClientId, ServerId};
use crate::time::Timestamp;

/// Operations and their bytes that may wait for acknowledgement in one chunk.
pub const WINDOW_OPS: usize = 64;
pub const WINDOW_BYTES: u64 = 8 << 20;
/// Unstable operations are synced when nothing was written for this long, or after [`SYNC_LATEST_NANOS`] anyway.
pub const SYNC_IDLE_NANOS: u64 = 1_000_000_000;
pub const SYNC_LATEST_NANOS: u64 = 5_000_000_000;

/// Longest record of a record log (DECISIONS 22).
#[must_use]
pub fn record_bytes_max(chunk_size: u64) -> u64 {
    (chunk_size / 4).min(4 << 20)
}

/// One change asked for by a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Write {
        offset: u64,
        len: u64,
    },
    /// See `WireMutation::Append`: the offset is the leader's choice.
    Append {
        len: u64,
        record: bool,
        at_least: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Truncate {
        len: u64,
    },
}

/// What one operation does to the replicas, everything decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The first `len` bytes given go to `offset`.
    Write {
        offset: u64,
        len: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Truncate {
        len: u64,
    },
    Seal,
}

/// The operations that fulfil a wish, and what is answered once they are acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    Apply {
        step: Step,
        append: Option<(u64, u64)>,
    },
    /// A record that does not fit: zeros to the end, no more appends; the asker is told that the chunk is full.
    PadAndSeal {
        pad_to: u64,
    },
    /// Nothing changes.
    Full,
    Invalid(&'static str),
}

/// Whether an operation may be numbered now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Go,
    /// The window is full, or an earlier operation of this client has not arrived.
    Later,
    Failed(MemberFailure),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberFailure {
    pub server: ServerId,
    pub reason: String,
}

/// What was acknowledged, or why it will not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Mutated {
        seq: u64,
        len: u64,
    },
    Appended {
        seq: u64,
        offset: u64,
        appended: u64,
        sealed: bool,
    },
    /// Stable: the chunk is sealed now, the record goes to the next one.
    Full,
    Synced {
        seq: u64,
        len: u64,
    },
    Failed(MemberFailure),
}

/// What the shell does, in this order.
#[derive(Debug)]
pub enum Effect<W> {
    Reply(W, Answer),
    /// Sync up to here on every member, this server included.
    Sync {
        up_to: u64,
    },
    /// Say to members what is committed, so that they may serve it.
    Announce {
        committed: u64,
    },
    /// Everything is stable everywhere: DIRTY may be cleared here and at the members.
    AllStable {
        seq: u64,
    },
    /// Tell the master.
    Report(MemberFailure),
    /// Whoever waits for the window or for a commit looks again.
    Progress,
}

/// What the asker of an operation gets when it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promised {
    /// When committed.
    Mutated,
    /// When stable.
    Appended { offset: u64, appended: u64, sealed: bool },
    /// When stable.
    Full,
    /// Nobody asked: first half of two.
    Nothing,
}

#[derive(Debug)]
struct Pending<W> {
    seq: u64,
    client: ClientId,
    counter: u64,
    /// Bytes of the chunk it touches, for readers.
    range: (u64, u64),
    bytes: u64,
    len_after: u64,
    begun: Timestamp,
    promised: Promised,
    waiters: Vec<W>,
}

#[derive(Debug)]
struct StableWaiter<W> {
    seq: u64,
    answer: Answer,
    waiter: W,
}

#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    applied: u64,
    synced: u64,
}

/// The leader of one version of one chunk. `W` is whatever the shell answers a request with.
#[derive(Debug)]
pub struct Leader<W> {
    me: ServerId,
    chunk_size: u64,
    progress: BTreeMap<ServerId, Progress>,
    last: u64,
    len: u64,
    sealed: bool,
    committed: u64,
    committed_len: u64,
    announced: u64,
    stable: u64,
    clean: u64,
    pending: VecDeque<Pending<W>>,
    pending_bytes: u64,
    stable_waiters: Vec<StableWaiter<W>>,
    /// Target and start of the sync that is running.
    syncing: Option<(u64, Timestamp)>,
    first_unsynced: Option<Timestamp>,
    last_write: Timestamp,
    failed: Option<MemberFailure>,
}

impl<W> Leader<W> {
    /// Begins at sequence 0 of a version: the replica has `len` bytes, `members` include `me`.
    #[must_use]
    pub fn new(
        me: ServerId,
        members: &[ServerId],
        chunk_size: u64,
        len: u64,
        sealed: bool,
    ) -> Self {
        let mut progress: BTreeMap<_, _> =
            members.iter().map(|&server| (server, Progress::default())).collect();
        progress.entry(me).or_default();
        Self {
            me,
            chunk_size,
            progress,
            last: 0,
            len,
            sealed,
            committed: 0,
            committed_len: len,
            announced: 0,
            stable: 0,
            clean: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            stable_waiters: Vec::new(),
            syncing: None,
            first_unsynced: None,
            last_write: Timestamp(0),
            failed: None,
        }
    }

    /// The last number given.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    #[must_use]
    pub fn stable(&self) -> u64 {
        self.stable
    }

    /// Length as far as it is acknowledged.
    #[must_use]
    pub fn committed_len(&self) -> u64 {
        self.committed_len
    }

    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    #[must_use]
    pub fn failed(&self) -> Option<&MemberFailure> {
        self.failed.as_ref()
    }

    /// Ticks have nothing to do: failed, or everything is on every disk and everybody was told.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.failed.is_some() || self.clean == self.last && self.announced == self.last
    }

    /// Whether an operation of `bytes` may be numbered now. `predecessor_missing`: the client's counter before this
    /// one was not applied and is not given up.
    #[must_use]
    pub fn check(&self, bytes: u64, predecessor_missing: bool) -> Verdict {
        if let Some(failure) = &self.failed {
            return Verdict::Failed(failure.clone());
        }
        let full = WINDOW_OPS <= self.pending.len()
            || !self.pending.is_empty() && WINDOW_BYTES < self.pending_bytes + bytes;
        if full || predecessor_missing { Verdict::Later } else { Verdict::Go }
    }

    /// If this very operation is in flight: its asker came again, `waiter` is answered too.
    ///
    /// # Errors
    /// Gives the waiter back if it is not in flight.
    pub fn join(&mut self, client: ClientId, counter: u64, waiter: W) -> Result<(), W> {
        let found = self.pending.iter_mut().rev().find(|op| {
            op.client == client && op.counter == counter && op.promised != Promised::Nothing
        });
        match found {
            Some(op) => {
                op.waiters.push(waiter);
                Ok(())
            }
            None => Err(waiter),
        }
    }

    /// What `wish` comes to at this moment.
    #[must_use]
    pub fn plan(&self, wish: Wish) -> Plan {
        let fits = |offset: u64, len: u64| {
            offset.checked_add(len).is_some_and(|end| end <= self.chunk_size)
        };
        match wish {
            Wish::Write { offset, len } if fits(offset, len) => {
                Plan::Apply { step: Step::Write { offset, len }, append: None }
            }
            Wish::Write { .. } => Plan::Invalid("write beyond the end of the chunk"),
            Wish::Zero { offset, len } => {
                let end = offset.saturating_add(len).min(self.len);
                let offset = offset.min(end);
                Plan::Apply { step: Step::Zero { offset, len: end - offset }, append: None }
            }
            Wish::Truncate { len } if len <= self.chunk_size => {
                Plan::Apply { step: Step::Truncate { len }, append: None }
            }
            Wish::Truncate { .. } => Plan::Invalid("truncate beyond the end of the chunk"),
            Wish::Append { at_least, .. } if self.chunk_size < at_least => {
                Plan::Invalid("append beyond the end of the chunk")
            }
            Wish::Append { len, record: true, .. } if record_bytes_max(self.chunk_size) < len => {
                Plan::Invalid("record longer than recordMax")
            }
            Wish::Append { .. } if self.sealed => Plan::Full,
            Wish::Append { len, record, at_least } => {
                let offset = self.len.max(at_least);
                let room = self.chunk_size - offset;
                if len <= room && (0 < room || len == 0) {
                    Plan::Apply { step: Step::Write { offset, len }, append: Some((offset, len)) }
                } else if record {
                    Plan::PadAndSeal { pad_to: self.chunk_size }
                } else if room == 0 {
                    Plan::Full
                } else {
                    Plan::Apply {
                        step: Step::Write { offset, len: room },
                        append: Some((offset, room)),
                    }
                }
            }
        }
    }

    /// Gives `step` the next number. The shell now sends it to the members in order and applies it here.
    pub fn begin(
        &mut self,
        now: Timestamp,
        step: Step,
        client: ClientId,
        counter: u64,
        promised: Promised,
        waiter: Option<W>,
    ) -> u64 {
        self.last += 1;
        let (range, bytes) = match step {
            Step::Write { offset, len } => {
                let range = (offset.min(self.len), offset + len);
                self.len = self.len.max(offset + len);
                (range, len)
            }
            Step::Zero { offset, len } => ((offset, offset + len), 0),
            Step::Truncate { len } => {
                let range = (len.min(self.len), u64::MAX);
                self.len = len;
                (range, 0)
            }
            Step::Seal => {
                self.sealed = true;
                ((0, 0), 0)
            }
        };
        self.pending_bytes += bytes;
        self.pending.push_back(Pending {
            seq: self.last,
            client,
            counter,
            range,
            bytes,
            len_after: self.len,
            begun: now,
            promised,
            waiters: waiter.into_iter().collect(),
        });
        self.last_write = now;
        self.first_unsynced.get_or_insert(now);
        self.last
    }

    /// The highest number of an unacknowledged operation that touches `start..end`.
    #[must_use]
    pub fn uncommitted_over(&self, start: u64, end: u64) -> Option<u64> {
        let touches = |op: &&Pending<W>| op.range.0 < end && start < op.range.1;
        self.pending.iter().rev().find(touches).map(|op| op.seq)
    }

    /// `server` has applied everything up to `seq`.
    pub fn on_applied(&mut self, now: Timestamp, server: ServerId, seq: u64) -> Vec<Effect<W>> {
        let mut effects = Vec::new();
        if self.failed.is_some() {
            return effects;
        }
        if let Some(progress) = self.progress.get_mut(&server) {
            progress.applied = progress.applied.max(seq.min(self.last));
        }
        self.commit(&mut effects);
        self.sync_if_wanted(now, &mut effects);
        effects
    }

    /// `server` has everything up to `seq` on its disk.
    pub fn on_synced(&mut self, now: Timestamp, server: ServerId, seq: u64) -> Vec<Effect<W>> {
        let mut effects = Vec::new();
        if self.failed.is_some() {
            return effects;
        }
        if let Some(progress) = self.progress.get_mut(&server) {
            progress.synced = progress.synced.max(seq.min(self.last));
            progress.applied = progress.applied.max(progress.synced);
        }
        self.commit(&mut effects);
        let stable = self.progress.values().map(|p| p.synced).min().unwrap_or(0);
        if self.stable < stable {
            self.stable = stable;
            self.first_unsynced = (stable < self.last).then_some(now);
            let waiting = std::mem::take(&mut self.stable_waiters);
            for entry in waiting {
                if entry.seq <= stable {
                    effects.push(Effect::Reply(entry.waiter, self.as_of_now(entry.answer)));
                } else {
                    self.stable_waiters.push(entry);
                }
            }
        }
        if self.syncing.is_some_and(|(up_to, _)| up_to <= self.stable) {
            self.syncing = None;
        }
        self.sync_if_wanted(now, &mut effects);
        effects
    }

    /// Wants everything numbered so far to be stable.
    pub fn on_sync(&mut self, now: Timestamp, waiter: W) -> Vec<Effect<W>> {
        if let Some(failure) = &self.failed {
            return vec![Effect::Reply(waiter, Answer::Failed(failure.clone()))];
        }
        self.await_stable(self.last, Answer::Synced { seq: 0, len: 0 }, waiter, now)
    }

    /// Answers `answer` once `seq` is stable everywhere.
    pub fn await_stable(
        &mut self,
        seq: u64,
        answer: Answer,
        waiter: W,
        now: Timestamp,
    ) -> Vec<Effect<W>> {
        if let Some(failure) = &self.failed {
            return vec![Effect::Reply(waiter, Answer::Failed(failure.clone()))];
        }
        if seq <= self.stable {
            return vec![Effect::Reply(waiter, self.as_of_now(answer))];
        }
        self.stable_waiters.push(StableWaiter { seq, answer, waiter });
        let mut effects = Vec::new();
        self.sync_if_wanted(now, &mut effects);
        effects
    }

    /// A member (or this server) cannot go on: nothing more is acknowledged in this version.
    pub fn on_failed(&mut self, failure: MemberFailure) -> Vec<Effect<W>> {
        if self.failed.is_some() {
            return Vec::new();
        }
        self.failed = Some(failure.clone());
        let mut effects = vec![Effect::Report(failure.clone())];
        let waiters = self.pending.iter_mut().flat_map(|op| op.waiters.drain(..));
        effects
            .extend(waiters.map(|waiter| Effect::Reply(waiter, Answer::Failed(failure.clone()))));
        let waiters = self.stable_waiters.drain(..);
        effects.extend(
            waiters.map(|entry| Effect::Reply(entry.waiter, Answer::Failed(failure.clone()))),
        );
        // The operations stay pending: what they touch is not served by this leader any more.
        self.syncing = None;
        effects.push(Effect::Progress);
        effects
    }

    /// Looks at the clock: members that are silent for too long, syncs and announcements that are due.
    pub fn on_tick(
        &mut self,
        now: Timestamp,
        apply_nanos_max: u64,
        sync_nanos_max: u64,
    ) -> Vec<Effect<W>> {
        if self.failed.is_some() {
            return Vec::new();
        }
        if let Some(op) = self.pending.front()
            && apply_nanos_max <= now.nanos_since(op.begun)
            && let Some(server) = self.slowest(|p| p.applied)
        {
            let reason = format!(
                "operation {} not applied within {} ms",
                op.seq,
                apply_nanos_max / 1_000_000
            );
            return self.on_failed(MemberFailure { server, reason });
        }
        if let Some((up_to, begun)) = self.syncing
            && sync_nanos_max <= now.nanos_since(begun)
            && let Some(server) = self.slowest(|p| p.synced)
        {
            let reason =
                format!("operation {up_to} not synced within {} ms", sync_nanos_max / 1_000_000);
            return self.on_failed(MemberFailure { server, reason });
        }
        let mut effects = Vec::new();
        let idle = SYNC_IDLE_NANOS <= now.nanos_since(self.last_write);
        let late = self.first_unsynced.is_some_and(|t| SYNC_LATEST_NANOS <= now.nanos_since(t));
        if self.stable < self.last && (idle || late) {
            self.start_sync(now, &mut effects);
        }
        if idle && self.stable == self.last && self.clean < self.last {
            self.clean = self.last;
            self.announced = self.last;
            effects.push(Effect::AllStable { seq: self.last });
        } else if self.announced < self.committed && self.pending.is_empty() {
            self.announced = self.committed;
            effects.push(Effect::Announce { committed: self.committed });
        }
        effects
    }

    /// A sync is answered with what it found.
    fn as_of_now(&self, answer: Answer) -> Answer {
        if matches!(answer, Answer::Synced { .. }) {
            Answer::Synced { seq: self.stable, len: self.committed_len }
        } else {
            answer
        }
    }

    fn slowest(&self, of: impl Fn(&Progress) -> u64) -> Option<ServerId> {
        // This server last: a slow own disk is blamed only if the others are not behind it.
        self.progress
            .iter()
            .min_by_key(|(server, progress)| (of(progress), **server == self.me))
            .map(|(server, _)| *server)
    }

    fn commit(&mut self, effects: &mut Vec<Effect<W>>) {
        let committed = self.progress.values().map(|p| p.applied).min().unwrap_or(0);
        if committed <= self.committed {
            return;
        }
        self.committed = committed;
        while self.pending.front().is_some_and(|op| op.seq <= committed) {
            let Some(op) = self.pending.pop_front() else { break };
            self.pending_bytes -= op.bytes;
            self.committed_len = op.len_after;
            let answer = match op.promised {
                Promised::Mutated => Answer::Mutated { seq: op.seq, len: op.len_after },
                Promised::Appended { offset, appended, sealed } => {
                    Answer::Appended { seq: op.seq, offset, appended, sealed }
                }
                Promised::Full => Answer::Full,
                Promised::Nothing => continue,
            };
            let wait_stable = op.promised != Promised::Mutated && self.stable < op.seq;
            for waiter in op.waiters {
                if wait_stable {
                    self.stable_waiters.push(StableWaiter {
                        seq: op.seq,
                        answer: answer.clone(),
                        waiter,
                    });
                } else {
                    effects.push(Effect::Reply(waiter, answer.clone()));
                }
            }
        }
        effects.push(Effect::Progress);
    }

    fn sync_if_wanted(&mut self, now: Timestamp, effects: &mut Vec<Effect<W>>) {
        let stable = self.stable;
        let appends = self.pending.iter().any(|op| {
            matches!(op.promised, Promised::Appended { .. } | Promised::Full)
                && op.seq <= self.own_applied()
        });
        if appends || self.stable_waiters.iter().any(|entry| stable < entry.seq) {
            self.start_sync(now, effects);
        }
    }

    fn own_applied(&self) -> u64 {
        self.progress.get(&self.me).map_or(0, |p| p.applied)
    }

    /// One sync at a time; whoever comes meanwhile shares the next.
    fn start_sync(&mut self, now: Timestamp, effects: &mut Vec<Effect<W>>) {
        // Not beyond what is applied here: this server's own sync covers no more. It is applied after it was sent,
        // so the members get the sync after the operation.
        let up_to = self.own_applied();
        if self.syncing.is_none() && self.stable < up_to {
            self.syncing = Some((up_to, now));
            effects.push(Effect::Sync { up_to });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ServerId = ServerId(1);
    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    fn leader() -> Leader<u32> {
        Leader::new(ME, &[ME, ServerId(2), ServerId(3)], 8192, 0, false)
    }

    fn write(leader: &mut Leader<u32>, counter: u64, waiter: u32) -> u64 {
        let step = Step::Write { offset: 10 * counter, len: 10 };
        leader.begin(Timestamp(0), step, ClientId(9), counter, Promised::Mutated, Some(waiter))
    }

    fn append(leader: &mut Leader<u32>, counter: u64, len: u64, waiter: u32) -> u64 {
        let wish = Wish::Append { len, record: true, at_least: 0 };
        let Plan::Apply { step, append: Some((offset, appended)) } = leader.plan(wish) else {
            panic!("{:?}", leader.plan(wish))
        };
        let promised = Promised::Appended { offset, appended, sealed: false };
        leader.begin(Timestamp(0), step, ClientId(9), counter, promised, Some(waiter))
    }

    fn replies(effects: Vec<Effect<u32>>) -> Vec<(u32, Answer)> {
        let mut found = Vec::new();
        for effect in effects {
            if let Effect::Reply(waiter, answer) = effect {
                found.push((waiter, answer));
            }
        }
        found
    }

    fn syncs(effects: &[Effect<u32>]) -> Vec<u64> {
        let mut found = Vec::new();
        for effect in effects {
            if let Effect::Sync { up_to } = effect {
                found.push(*up_to);
            }
        }
        found
    }

    #[test]
    fn a_write_is_acknowledged_by_the_last_member_in_any_order() {
        let mut leader = leader();
        write(&mut leader, 1, 100);
        write(&mut leader, 2, 200);
        let t = Timestamp(0);
        assert!(replies(leader.on_applied(t, ServerId(3), 2)).is_empty());
        assert!(replies(leader.on_applied(t, ServerId(2), 1)).is_empty());
        assert_eq!(
            replies(leader.on_applied(t, ME, 2)),
            [(100, Answer::Mutated { seq: 1, len: 20 })]
        );
        assert_eq!(leader.uncommitted_over(0, 20), None);
        assert_eq!(leader.uncommitted_over(0, 21), Some(2));
        assert_eq!(
            replies(leader.on_applied(t, ServerId(2), 2)),
            [(200, Answer::Mutated { seq: 2, len: 30 })]
        );
        assert_eq!((leader.committed(), leader.committed_len(), leader.stable()), (2, 30, 0));
    }

    #[test]
    fn an_append_is_answered_only_when_it_is_on_every_disk() {
        let mut leader = leader();
        let t = Timestamp(0);
        append(&mut leader, 1, 100, 7);
        assert!(syncs(&leader.on_applied(t, ServerId(2), 1)).is_empty());
        // Applied here: everybody may sync.
        assert_eq!(syncs(&leader.on_applied(t, ME, 1)), [1]);
        assert!(leader.on_synced(t, ME, 1).is_empty());
        assert!(replies(leader.on_synced(t, ServerId(2), 1)).is_empty());
        assert!(replies(leader.on_applied(t, ServerId(3), 1)).is_empty());
        assert_eq!(
            replies(leader.on_synced(t, ServerId(3), 1)),
            [(7, Answer::Appended { seq: 1, offset: 0, appended: 100, sealed: false })]
        );
    }

    #[test]
    fn syncs_that_come_while_one_runs_share_the_next() {
        let mut leader = leader();
        let t = Timestamp(0);
        for (counter, waiter) in [(1, 1), (2, 2), (3, 3)] {
            write(&mut leader, counter, 0);
            for server in [ME, ServerId(2), ServerId(3)] {
                leader.on_applied(t, server, counter);
            }
            assert_eq!(syncs(&leader.on_sync(t, waiter)).len(), usize::from(counter == 1));
        }
        let mut effects = Vec::new();
        for server in [ME, ServerId(2), ServerId(3)] {
            effects.extend(leader.on_synced(t, server, 1));
        }
        assert_eq!(syncs(&effects), [3]);
        assert_eq!(replies(effects), [(1, Answer::Synced { seq: 1, len: 40 })]);
        effects = Vec::new();
        for server in [ME, ServerId(2), ServerId(3)] {
            effects.extend(leader.on_synced(t, server, 3));
        }
        let synced = Answer::Synced { seq: 3, len: 40 };
        assert_eq!(replies(effects), [(2, synced.clone()), (3, synced.clone())]);
        // Nothing to do: answered at once.
        assert_eq!(replies(leader.on_sync(t, 9)), [(9, synced)]);
    }

    #[test]
    fn after_a_failure_nothing_is_acknowledged() {
        let mut leader = leader();
        let t = Timestamp(0);
        write(&mut leader, 1, 1);
        append(&mut leader, 2, 10, 2);
        leader.on_applied(t, ME, 2);
        let failure = MemberFailure { server: ServerId(3), reason: "gone".to_owned() };
        let answers = replies(leader.on_failed(failure.clone()));
        let failed = Answer::Failed(failure.clone());
        assert_eq!(answers, [(1, failed.clone()), (2, failed.clone())]);
        assert!(leader.on_failed(failure.clone()).is_empty(), "reported once");
        for server in [ServerId(2), ServerId(3)] {
            assert!(leader.on_applied(t, server, 2).is_empty());
            assert!(leader.on_synced(t, server, 2).is_empty());
        }
        assert_eq!(leader.check(1, false), Verdict::Failed(failure));
        assert_eq!(replies(leader.on_sync(t, 3)), [(3, failed)]);
        // What was never acknowledged is not served.
        assert_eq!(leader.uncommitted_over(10, 11), Some(1));
    }

    #[test]
    fn a_repeated_operation_in_flight_is_answered_together_with_the_first() {
        let mut leader = leader();
        let t = Timestamp(0);
        write(&mut leader, 1, 1);
        assert_eq!(leader.join(ClientId(9), 1, 2), Ok(()));
        assert_eq!(leader.join(ClientId(9), 2, 3), Err(3));
        assert_eq!(leader.join(ClientId(8), 1, 3), Err(3));
        for server in [ServerId(2), ServerId(3)] {
            leader.on_applied(t, server, 1);
        }
        let answer = Answer::Mutated { seq: 1, len: 20 };
        assert_eq!(replies(leader.on_applied(t, ME, 1)), [(1, answer.clone()), (2, answer)]);
    }

    #[test]
    fn the_window_bounds_operations_and_bytes() {
        let mut leader = Leader::<u32>::new(ME, &[ME, ServerId(2)], 256 << 20, 0, false);
        for counter in 0..WINDOW_OPS as u64 {
            assert_eq!(leader.check(1, false), Verdict::Go);
            write(&mut leader, counter, 0);
        }
        assert_eq!(leader.check(1, false), Verdict::Later);
        let mut leader = Leader::<u32>::new(ME, &[ME, ServerId(2)], 256 << 20, 0, false);
        assert_eq!(leader.check(WINDOW_BYTES * 2, false), Verdict::Go, "one is always taken");
        let step = Step::Write { offset: 0, len: WINDOW_BYTES };
        leader.begin(Timestamp(0), step, ClientId(9), 1, Promised::Mutated, None);
        assert_eq!(leader.check(1, false), Verdict::Later);
        for server in [ME, ServerId(2)] {
            leader.on_applied(Timestamp(0), server, 1);
        }
        assert_eq!(leader.check(1, false), Verdict::Go);
        assert_eq!(leader.check(1, true), Verdict::Later);
    }

    #[track_caller]
    fn check_plan(len: u64, wish: Wish, expected: Plan) {
        let leader = Leader::<u32>::new(ME, &[ME], 8192, len, false);
        assert_eq!(leader.plan(wish), expected);
    }

    #[test]
    fn appends_go_to_the_end_split_or_seal() {
        let plain = |len, at_least| Wish::Append { len, record: false, at_least };
        let record = |len| Wish::Append { len, record: true, at_least: 0 };
        let at = |offset, len| Plan::Apply {
            step: Step::Write { offset, len },
            append: Some((offset, len)),
        };
        check_plan(100, plain(50, 0), at(100, 50));
        check_plan(100, plain(50, 4096), at(4096, 50));
        check_plan(8000, plain(500, 0), at(8000, 192));
        check_plan(8192, plain(1, 0), Plan::Full);
        check_plan(100, plain(50, 8193), Plan::Invalid("append beyond the end of the chunk"));
        check_plan(6144, record(2048), at(6144, 2048));
        check_plan(6145, record(2048), Plan::PadAndSeal { pad_to: 8192 });
        check_plan(0, record(2049), Plan::Invalid("record longer than recordMax"));
        let mut sealed = Leader::<u32>::new(ME, &[ME], 8192, 10, false);
        sealed.begin(Timestamp(0), Step::Seal, ClientId(9), 1, Promised::Full, None);
        assert_eq!(sealed.plan(record(1)), Plan::Full);
        assert_eq!(sealed.plan(plain(1, 0)), Plan::Full);
    }

    #[test]
    fn nothing_reaches_beyond_the_chunk() {
        let invalid = Plan::Invalid("write beyond the end of the chunk");
        check_plan(0, Wish::Write { offset: 8192, len: 1 }, invalid.clone());
        check_plan(0, Wish::Write { offset: u64::MAX, len: 2 }, invalid);
        let zero = |offset, len| Plan::Apply { step: Step::Zero { offset, len }, append: None };
        check_plan(100, Wish::Zero { offset: 50, len: u64::MAX }, zero(50, 50));
        check_plan(100, Wish::Zero { offset: 200, len: 10 }, zero(100, 0));
    }

    #[test]
    fn unstable_operations_are_synced_when_idle_and_clean_is_said_once() {
        let mut leader = leader();
        write(&mut leader, 1, 1);
        for server in [ME, ServerId(2), ServerId(3)] {
            leader.on_applied(Timestamp(0), server, 1);
        }
        let soon = leader.on_tick(Timestamp(SECOND / 2), MINUTE, MINUTE);
        assert!(matches!(soon[..], [Effect::Announce { committed: 1 }]));
        assert!(leader.on_tick(Timestamp(SECOND / 2), MINUTE, MINUTE).is_empty());
        assert_eq!(syncs(&leader.on_tick(Timestamp(SECOND), MINUTE, MINUTE)), [1]);
        assert!(leader.on_tick(Timestamp(SECOND), MINUTE, MINUTE).is_empty(), "one sync at a time");
        for server in [ME, ServerId(2), ServerId(3)] {
            leader.on_synced(Timestamp(SECOND), server, 1);
        }
        let tick = leader.on_tick(Timestamp(2 * SECOND), MINUTE, MINUTE);
        assert!(matches!(tick[..], [Effect::AllStable { seq: 1 }]));
        assert!(leader.is_quiet());
        assert!(leader.on_tick(Timestamp(3 * SECOND), MINUTE, MINUTE).is_empty());
    }

    #[test]
    fn a_busy_chunk_is_synced_after_five_seconds() {
        let mut leader = leader();
        for n in 0..60 {
            let now = Timestamp(n * SECOND / 10);
            let step = Step::Write { offset: 0, len: 1 };
            let seq = leader.begin(now, step, ClientId(9), n, Promised::Mutated, Some(0));
            for server in [ME, ServerId(2), ServerId(3)] {
                leader.on_applied(now, server, seq);
            }
            let synced = !syncs(&leader.on_tick(now, MINUTE, MINUTE)).is_empty();
            assert_eq!(synced, n == 50, "after {n} tenths of a second");
        }
    }

    #[test]
    fn the_member_that_is_behind_is_the_one_that_failed() {
        let mut leader = leader();
        write(&mut leader, 1, 1);
        leader.on_applied(Timestamp(0), ServerId(3), 1);
        leader.on_applied(Timestamp(0), ME, 1);
        leader.on_tick(Timestamp(2 * SECOND), 3 * SECOND, MINUTE);
        assert_eq!(leader.failed(), None);
        let effects = leader.on_tick(Timestamp(3 * SECOND), 3 * SECOND, MINUTE);
        assert!(matches!(&effects[0], Effect::Report(f) if f.server == ServerId(2)));
        assert_eq!(leader.failed().map(|f| f.server), Some(ServerId(2)));
    }
}
