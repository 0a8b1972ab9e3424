//! How a primary leads one version of one chunk: numbers operations, counts acknowledgements, decides when to sync.
//!
//! Told of one operation at a time: [`Leader::check`] (may it be taken?), [`Leader::plan`] (what it does, and where),
//! [`Leader::begin`] (it has its number), then [`Leader::on_applied`] and [`Leader::on_synced`] for each member, in any
//! order. *Committed* is what every member applied, *stable* what every member has on disk (DECISIONS 1). After the
//! first failure of a member nothing more is acknowledged in this version; the next version is the master's business.
//! A process begins a `Leader` only at sequence 0 of its version: a primary leads a version at most once.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::{ClientId, ServerId};
use crate::namespace::record_bytes_max;
use crate::time::Timestamp;

/// Operations and their bytes that may wait for acknowledgement in one chunk.
pub const WINDOW_OPS: usize = 64;
pub const WINDOW_BYTES: u64 = 8 << 20;
/// Unstable operations are synced when nothing was written for this long, or after [`SYNC_LATEST_NANOS`] anyway.
pub const SYNC_IDLE_NANOS: u64 = 1_000_000_000;
pub const SYNC_LATEST_NANOS: u64 = 5_000_000_000;

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
        /// Of an append: where it went and how long it was asked to be. What does not fit goes to the next chunk.
        append: Option<(u64, u64)>,
    },
    /// A record that does not fit, or has no place in the list of records: zeros to the end, no more appends; the asker is told that the chunk is full.
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
        carried: u64,
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
    Appended { offset: u64, appended: u64, carried: u64, sealed: bool },
    /// When stable.
    Full,
    /// Nobody asked: first half of two.
    Nothing,
}

/// Why an operation was not numbered, and who waits for it.
#[derive(PartialEq, Eq, Debug)]
pub struct Refused<W> {
    pub failure: MemberFailure,
    pub waiter: Option<W>,
}

/// What became of one who asked for the same operation again.
#[derive(PartialEq, Eq, Debug)]
pub enum Joined<W> {
    Waits,
    NotInFlight(W),
    Failed(MemberFailure, W),
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
    pub fn join(&mut self, client: ClientId, counter: u64, waiter: W) -> Joined<W> {
        if let Some(failure) = &self.failed {
            return Joined::Failed(failure.clone(), waiter);
        }
        let found = self.pending.iter_mut().rev().find(|op| {
            op.client == client && op.counter == counter && op.promised != Promised::Nothing
        });
        match found {
            Some(op) => {
                op.waiters.push(waiter);
                Joined::Waits
            }
            None => Joined::NotInFlight(waiter),
        }
    }

    /// What `wish` comes to at this moment. `records_full`: the chunk can have no more records, whatever room it has.
    #[must_use]
    pub fn plan(&self, wish: Wish, records_full: bool) -> Plan {
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
                if record && records_full {
                    Plan::PadAndSeal { pad_to: self.chunk_size }
                } else if len <= room && (0 < room || len == 0) {
                    Plan::Apply { step: Step::Write { offset, len }, append: Some((offset, len)) }
                } else if record {
                    Plan::PadAndSeal { pad_to: self.chunk_size }
                } else if room == 0 {
                    Plan::Full
                } else {
                    Plan::Apply {
                        step: Step::Write { offset, len: room },
                        append: Some((offset, len)),
                    }
                }
            }
        }
    }

    /// Gives `step` the next number. The shell now sends it to the members in order and applies it here.
    ///
    /// # Errors
    /// After a failure nothing is numbered: nobody would ever answer the waiter, which is given back. It may have come
    /// since [`Self::check`].
    pub fn begin(
        &mut self,
        now: Timestamp,
        step: Step,
        client: ClientId,
        counter: u64,
        promised: Promised,
        waiter: Option<W>,
    ) -> Result<u64, Refused<W>> {
        if let Some(failure) = &self.failed {
            return Err(Refused { failure: failure.clone(), waiter });
        }
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
        Ok(self.last)
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
                    self.announce(entry.seq, &mut effects);
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
        self.when_stable(self.last, Answer::Synced { seq: 0, len: 0 }, waiter, now)
    }

    /// Answers `answer` once `seq` is stable everywhere.
    pub fn when_stable(
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
            let mut effects = Vec::new();
            self.announce(seq, &mut effects);
            effects.push(Effect::Reply(waiter, self.as_of_now(answer)));
            return effects;
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

    /// Goes out before the answer to `seq`: what was answered as stable can be read although every server but one
    /// member dies the moment after.
    fn announce(&mut self, seq: u64, effects: &mut Vec<Effect<W>>) {
        if self.announced < seq {
            self.announced = self.committed;
            effects.push(Effect::Announce { committed: self.committed });
        }
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
                Promised::Appended { offset, appended, carried, sealed } => {
                    Answer::Appended { seq: op.seq, offset, appended, carried, sealed }
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
mod tests;
