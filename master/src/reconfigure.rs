//! Carries out what `dfs_core::plan::reconfigure` chooses.
//!
//! Order of a configuration change: `Reconfigure` committed → promises (durable) → adoptions (durable) → `Activate`
//! committed → layouts with the new version are given out. One change per chunk at a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_core::chunk::{Chunk, Configuration, Member, Preparing};
use dfs_core::cluster::{Liveness, Replica};
use dfs_core::command::{Change, Outcome};
use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_core::job::JobId;
use dfs_core::plan::reconfigure::{
    PromiseReport, Source, choose_source, choose_source_beside, members_after, plan,
};
use dfs_proto::control::{AdoptRequest, PromiseRequest, ReplicaReport};
use dfs_service::canary;
use dfs_service::page::Page;

use crate::state::{Master, lock, now};

/// A member that has not promised by then is left out of the next attempt.
pub(crate) const PROMISE_MAX: Duration = Duration::from_millis(1500);
/// Copying a whole chunk from a peer, at worst.
const ADOPT_MAX: Duration = Duration::from_secs(60);
/// Whether who copies is dead is looked at so often.
const DEATH_EVERY: Duration = Duration::from_millis(500);
/// How long a server that did not answer is avoided.
const UNRESPONSIVE_MS: u64 = 5_000;
/// Attempts of one change before the asker is told to come back.
const ATTEMPTS: u32 = 4;

/// What a change does beside leaving out members that cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Step {
    pub learner: Option<Member>,
    /// Gives its place to the learner. It promises and adopts like the others, so that it refuses what is older; if no
    /// learner does, it stays.
    pub leaver: Option<Member>,
    /// Of which this is a subtask, done by the learner.
    pub job: Option<JobId>,
}

impl Master {
    /// Moves `chunk` to its next configuration: reachable members, and `learner` if given. If another thread is at it,
    /// waits for that one instead.
    ///
    /// # Errors
    /// The reason, for people; ask again later.
    pub fn reconfigure(&self, chunk: ChunkId, learner: Option<Member>) -> Result<(), String> {
        self.change(chunk, Step { learner, ..Step::default() })
    }

    /// As [`Self::reconfigure`], with all a step can say.
    ///
    /// # Errors
    /// As there.
    pub fn change(&self, chunk: ChunkId, step: Step) -> Result<(), String> {
        if !lock(&self.reconfiguring).insert(chunk) {
            let seen = self.turns.count();
            if lock(&self.reconfiguring).contains(&chunk) {
                self.turns.wait(seen, Duration::from_millis(500));
            }
            return Ok(());
        }
        let next_version = || self.chunk(chunk).map(|record| record.next_version);
        let before = next_version();
        let outcome = self.change_unless_paused(chunk, step);
        lock(&self.reconfiguring).remove(&chunk);
        self.turns.tell();
        // Who asks again and again until something changes must not wake itself by asking.
        if outcome.is_ok() || before != next_version() {
            self.changed.tell();
        }
        let label = if outcome.is_ok() { "activated" } else { "failed" };
        self.metrics.reconfigurations.with_label_values(&[label]).inc();
        outcome
    }

    fn change_unless_paused(&self, chunk: ChunkId, step: Step) -> Result<(), String> {
        if let Some(reason) = lock(&self.pauses).reason(now(), chunk) {
            return Err(reason);
        }
        let next_version = || self.chunk(chunk).map(|record| record.next_version);
        let before = next_version();
        let outcome = self.change_alone(chunk, step);
        match &outcome {
            Ok(()) => lock(&self.pauses).succeeded(chunk),
            Err(reason) if before != next_version() => {
                lock(&self.pauses).failed(now(), chunk, reason);
            }
            // Nothing was tried.
            Err(_) => {}
        }
        outcome
    }

    fn change_alone(&self, chunk: ChunkId, step: Step) -> Result<(), String> {
        let Step { mut learner, leaver, job } = step;
        let mut after_wait = false;
        let mut last = String::new();
        let mut left_out = Vec::new();
        let mut flawed = Flawed::default();
        for attempt in 1..=ATTEMPTS {
            // Better with a bad block than never.
            flawed.is_last_attempt = attempt == ATTEMPTS;
            let record = self.chunk(chunk).ok_or_else(|| format!("chunk {} is gone", chunk.0))?;
            let mut preparing = {
                let cluster = lock(&self.cluster);
                plan(&record, self.min_replicas, learner, |member| {
                    cluster.is_up(now(), member) && !left_out.contains(member)
                })
            }
            .map_err(|wait| wait.to_string())?;
            preparing.after_wait |= after_wait;
            let change = Change::Reconfigure {
                chunk,
                version: preparing.version,
                members: preparing.members.clone(),
                learner: preparing.learner,
                after_wait: preparing.after_wait,
            };
            match self.propose(None, change) {
                Ok(Outcome::Refused(error)) => last = format!("reconfigure refused: {error}"),
                Err(error) => last = error.to_string(),
                Ok(_) => match self.attempt(chunk, &record, &preparing, &flawed, leaver, job) {
                    Ok(active) => {
                        let members: Vec<String> =
                            active.members.iter().map(|m| m.server.to_string()).collect();
                        tracing::info!(
                            chunk = chunk.0,
                            version = active.version.0,
                            members = members.join(","),
                            "configuration activated"
                        );
                        return Ok(());
                    }
                    Err(Failed::Member(member, Unable { reason, is_silent })) => {
                        last = format!(
                            "{} failed to take up version {}: {reason}",
                            member.server, preparing.version.0
                        );
                        tracing::info!(chunk = chunk.0, "{last}");
                        if Some(member) == learner {
                            learner = None;
                            if preparing.members.len() == record.active.members.len() {
                                return Err(last);
                            }
                        } else if is_silent {
                            lock(&self.cluster).on_unresponsive(
                                now(),
                                member.server,
                                UNRESPONSIVE_MS,
                            );
                        } else {
                            // One chunk is not right there; the server and its other chunks are.
                            left_out.push(member);
                        }
                    }
                    Err(Failed::Source(member, reason)) => {
                        last = format!("{} is no good source: {reason}", member.server);
                        tracing::info!(chunk = chunk.0, "{last}");
                        flawed.members.push(member);
                    }
                    // Said in the log before anything is adopted because of it.
                    Err(Failed::WaitIsOver) => after_wait = true,
                    Err(Failed::Final(reason)) => return Err(reason),
                },
            }
        }
        Err(last)
    }

    fn attempt(
        &self,
        chunk: ChunkId,
        record: &Chunk,
        preparing: &Preparing,
        flawed: &Flawed,
        leaver: Option<Member>,
        job: Option<JobId>,
    ) -> Result<Configuration, Failed> {
        let everybody: Vec<Member> =
            preparing.members.iter().copied().chain(preparing.learner).collect();
        let mut reports = self.collect_promises(chunk, record, preparing, &everybody)?;
        if canary::sings("shortest-log-taken") {
            reports.sort_by_key(|report| (report.version, report.seq));
            reports.truncate(1);
        }
        let source = match flawed.choose(record, preparing, &reports) {
            Source::Adopt(report) => Some(report),
            Source::Empty => None,
            Source::OnlyRebooted => {
                self.check_wait(record, preparing)?;
                return Err(Failed::WaitIsOver);
            }
            Source::DataLost => {
                return Err(Failed::Final(format!(
                    "no reachable member of chunk {} holds version {}: their data is gone",
                    chunk.0, record.active.version.0
                )));
            }
        };
        if preparing.after_wait {
            self.check_wait(record, preparing)?;
        }
        let adopted = match canary::sings("activated-unconfirmed") {
            true => Vec::new(),
            false => {
                let another_source = source.as_ref().is_some_and(|source| {
                    flawed.leaves_another(record, preparing, &reports, source.member)
                });
                let source = source.as_ref();
                self.adopt(chunk, record, preparing, &everybody, source, another_source)?
            }
        };
        if preparing.after_wait {
            // One that was heard of in between may have served what this attempt does not have.
            self.check_wait(record, preparing)?;
            if let Some(report) = &source {
                self.notice(format!(
                    "chunk {} goes on with what {} has on its disk: no member that did not reboot came back; see {}",
                    chunk.0, report.member.server, Page::Unavailable
                ));
            }
        }
        let members = members_after(preparing, leaver, self.replication, self.min_replicas);
        let primary = match &source {
            // The old primary has the connections; otherwise whoever was first.
            _ if members.iter().any(|member| member.server == record.active.primary) => {
                record.active.primary
            }
            Some(report) if members.contains(&report.member) => report.member.server,
            Some(_) | None => match members.first() {
                Some(member) => member.server,
                None => {
                    let reason = format!("chunk {} would have no member left", chunk.0);
                    return Err(Failed::Final(reason));
                }
            },
        };
        let configuration = Configuration { version: preparing.version, members, primary };
        let done_by = job.zip(preparing.learner).map(|(job, learner)| (job, learner.server));
        let change = Change::Activate { chunk, configuration: configuration.clone(), done_by };
        {
            // Before the version counts: whoever looks at the chunk in between would find nobody with it.
            let mut cluster = lock(&self.cluster);
            for (member, report) in adopted {
                self.copied_bytes.fetch_add(report.copied_bytes, Ordering::Relaxed);
                let replica = Replica {
                    version: ChunkVersion(report.version),
                    seq: report.seq,
                    len: report.len,
                    not_current: report.not_current,
                    digest: report.digest,
                };
                cluster.on_replica(&member, chunk, replica);
            }
        }
        match self.propose(None, change) {
            Ok(Outcome::Refused(error)) => {
                Err(Failed::Final(format!("activation refused: {error}")))
            }
            Err(error) => Err(Failed::Final(error.to_string())),
            Ok(_) => {
                self.reconfigured.fetch_add(1, Ordering::Relaxed);
                Ok(configuration)
            }
        }
    }

    /// How long members that may know more are waited for (DECISIONS 1).
    pub(crate) fn wait_ms(&self) -> u64 {
        let profile = self.config.profile;
        profile.rebuild_delay_ms.max(profile.dead_after_ms)
    }

    /// Members that take no part have been silent for so long that they serve nobody, and that waiting for them ends
    /// (DECISIONS 1).
    fn check_wait(&self, record: &Chunk, preparing: &Preparing) -> Result<(), Failed> {
        let wait_ms = self.wait_ms();
        let cluster = lock(&self.cluster);
        let mut absent = record.active.members.iter().filter(|m| !preparing.members.contains(m));
        match absent.find(|member| cluster.silent_ms(now(), self.started, member) < wait_ms) {
            None => Ok(()),
            Some(member) => Err(Failed::Final(format!(
                "only members that rebooted with unsynced data are reachable: waiting for {}",
                member.server
            ))),
        }
    }

    pub(crate) fn address_of(&self, member: &Member) -> Result<String, Failed> {
        lock(&self.cluster)
            .address(now(), member)
            .map(str::to_owned)
            .ok_or_else(|| Failed::Member(*member, Unable::silent("not reachable".to_owned())))
    }

    fn collect_promises(
        &self,
        chunk: ChunkId,
        record: &Chunk,
        preparing: &Preparing,
        everybody: &[Member],
    ) -> Result<Vec<PromiseReport>, Failed> {
        let calls: Vec<_> = everybody
            .iter()
            .map(|member| {
                let request = PromiseRequest {
                    epoch: self.epoch.0,
                    nonce: self.nonce,
                    chunk: chunk.0,
                    version: preparing.version.0,
                    inode: record.ino.0,
                    index: record.index,
                    chunk_size: record.chunk_size,
                    // Version 1 is made by the first operation: a member that saw none still may promise.
                    learner: Some(*member) == preparing.learner || record.active.version.0 == 1,
                };
                let mut client = self.control(&self.address_of(member)?);
                let member = *member;
                Ok(self.runtime.spawn(async move {
                    (member, tokio::time::timeout(PROMISE_MAX, client.promise(request)).await)
                }))
            })
            .collect::<Result<_, Failed>>()?;
        let mut reports = Vec::new();
        let mut failed = None;
        for call in calls {
            match self.runtime.block_on(call) {
                Ok((member, Ok(Ok(report)))) => {
                    reports.push(promise_report(member, &report.into_inner()))
                }
                Ok((member, Ok(Err(status)))) => {
                    failed = Some(Failed::Member(member, Unable::from(&status)))
                }
                Ok((member, Err(_))) => {
                    let late = Unable::silent(format!("no promise within {PROMISE_MAX:?}"));
                    failed = Some(Failed::Member(member, late))
                }
                Err(error) => return Err(Failed::Final(error.to_string())),
            }
        }
        match failed {
            Some(failed) => Err(failed),
            None => Ok(reports),
        }
    }

    fn adopt(
        &self,
        chunk: ChunkId,
        record: &Chunk,
        preparing: &Preparing,
        everybody: &[Member],
        source: Option<&PromiseReport>,
        another_source: bool,
    ) -> Result<Vec<(Member, ReplicaReport)>, Failed> {
        let source_address = match source {
            Some(report) => self.address_of(&report.member)?,
            None => String::new(),
        };
        let mut calls = Vec::new();
        let mut adopted = Vec::new();
        for member in everybody {
            let request = AdoptRequest {
                epoch: self.epoch.0,
                nonce: self.nonce,
                chunk: chunk.0,
                version: preparing.version.0,
                // Nobody as the source: everybody takes up the empty chunk.
                source_server: source.map(|s| s.member.server.to_string()).unwrap_or_default(),
                source_address: source_address.clone(),
                source_version: source.map_or(0, |s| s.version.0),
                source_seq: source.map_or(0, |s| s.seq),
                source_digest: source.map_or(0, |s| s.digest),
                inode: record.ino.0,
                index: record.index,
                chunk_size: record.chunk_size,
                another_source,
            };
            let is_source = source.is_some_and(|s| s.member == *member);
            calls.push((is_source, *member, request));
        }
        // The source last: once it has taken up the new version its old position can no longer be copied.
        calls.sort_by_key(|(is_source, ..)| *is_source);
        for last in [false, true] {
            let mut running = Vec::new();
            for (_, member, request) in calls.iter().filter(|(is_source, ..)| *is_source == last) {
                let mut client = self.control(&self.address_of(member)?);
                let (member, request) = (*member, request.clone());
                let call = self.runtime.spawn(async move {
                    tokio::time::timeout(ADOPT_MAX, client.adopt(request)).await
                });
                running.push((member, call));
            }
            let mut failed = None;
            for (member, call) in running {
                match self.unless_dead(&member, call) {
                    Ok(Ok(Ok(report))) => {
                        let report = report.into_inner();
                        self.metrics.copied_bytes.inc_by(report.copied_bytes);
                        adopted.push((member, report));
                    }
                    Ok(Ok(Err(status))) => {
                        failed = Some(match source {
                            Some(source) if status.code() == tonic::Code::DataLoss => {
                                Failed::Source(source.member, status.message().to_owned())
                            }
                            Some(_) | None => Failed::Member(member, Unable::from(&status)),
                        });
                    }
                    Ok(Err(_)) => {
                        let late = Unable::silent(format!("not adopted within {ADOPT_MAX:?}"));
                        failed = Some(Failed::Member(member, late));
                    }
                    Err(failure @ Failed::Member(..)) => failed = Some(failure),
                    Err(failure) => return Err(failure),
                }
            }
            if let Some(failed) = failed {
                return Err(failed);
            }
        }
        Ok(adopted)
    }

    /// Waits for the end of a call to `member`; one that is dead by now is not waited for, others can take its work.
    fn unless_dead<T>(
        &self,
        member: &Member,
        mut call: tokio::task::JoinHandle<T>,
    ) -> Result<T, Failed> {
        self.runtime.block_on(async {
            loop {
                tokio::select! {
                    ended = &mut call => {
                        return ended.map_err(|error| Failed::Final(error.to_string()));
                    }
                    () = tokio::time::sleep(DEATH_EVERY) => {}
                }
                if lock(&self.cluster).liveness(now(), member.server) == Liveness::Dead {
                    call.abort();
                    return Err(Failed::Member(*member, Unable::silent("it is dead".to_owned())));
                }
            }
        })
    }
}

/// Members that turned out to lack blocks that others have, in the attempts of one change.
#[derive(Default)]
struct Flawed {
    members: Vec<Member>,
    is_last_attempt: bool,
}

impl Flawed {
    fn choose(&self, record: &Chunk, preparing: &Preparing, reports: &[PromiseReport]) -> Source {
        match choose_source_beside(record, preparing, reports, &self.members) {
            Some(other) if !self.members.is_empty() => Source::Adopt(other),
            Some(_) | None => choose_source(record, preparing, reports),
        }
    }

    /// Whether the next attempt could do with another source than `member`.
    fn leaves_another(
        &self,
        record: &Chunk,
        preparing: &Preparing,
        reports: &[PromiseReport],
        member: Member,
    ) -> bool {
        let mut without = self.members.clone();
        without.push(member);
        !self.is_last_attempt
            && choose_source_beside(record, preparing, reports, &without).is_some()
    }
}

pub(crate) enum Failed {
    /// Leave this one out and try again.
    Member(Member, Unable),
    /// This one has bad bytes where others have good ones: try again with another source.
    Source(Member, String),
    /// Only rebooted members answered, and the others were waited for: the next attempt may say so.
    WaitIsOver,
    Final(String),
}

/// Why a member did not take part.
pub(crate) struct Unable {
    reason: String,
    /// It did not answer, rather than answer that it cannot.
    is_silent: bool,
}

impl Unable {
    fn silent(reason: String) -> Self {
        Self { reason, is_silent: true }
    }
}

impl From<&tonic::Status> for Unable {
    fn from(status: &tonic::Status) -> Self {
        use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable, Unknown};
        // What a server answers has no source; what happened to a connection has.
        let is_silent = std::error::Error::source(status).is_some()
            || matches!(status.code(), Cancelled | DeadlineExceeded | Unavailable | Unknown);
        Self { reason: status.message().to_owned(), is_silent }
    }
}

fn promise_report(member: Member, report: &ReplicaReport) -> PromiseReport {
    PromiseReport {
        member,
        promised: ChunkVersion(report.promised),
        version: ChunkVersion(report.version),
        seq: report.seq,
        len: report.len,
        digest: report.digest,
        not_current: report.not_current,
    }
}
