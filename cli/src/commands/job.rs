//! `dfs job` and `dfs jobs`.

use std::error::Error as _;

use anyhow::Context as _;
use dfs_proto::control::jobs_client::JobsClient;
use dfs_proto::control::{
    JobCreateRequest, JobDone, JobFetchStateRequest, JobForgetRequest, JobHistoryRequest,
    JobListRequest, JobSetPhaseRequest, JobSetStatesRequest, JobSnapshotRequest, JobStatus,
    JobWorkerState, JobWorkersRequest,
};
use dfs_service::conn::control_channel;
use serde::Serialize;

use crate::admin::call;
use crate::args::ClusterArgs;
use crate::args::jobs::{JobArgs, JobVerb, JobsArgs};
use crate::cluster::Target;
use crate::output::{self, Table, columns, printable, utc};
use crate::{cluster, servers};

const PAGE: u32 = 1_000;
/// Between attempts while the master is away.
pub(super) const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// Calls `$method` until the master answers. Every request may be repeated: those that count carry an id of their own.
macro_rules! ask_jobs {
    ($target:expr, $method:ident, $request:expr) => {
        ask_jobs!($target, $method, $request, |_| None)
    };
    // `$gone`: the answer if what is refused now was asked before, and may have been done.
    ($target:expr, $method:ident, $request:expr, $gone:expr) => {{
        let request = $request;
        call($target, async |target: &Target| {
            let mut lost = false;
            loop {
                let channel = control_channel(&target.master, &target.key);
                match JobsClient::new(channel).$method(request.clone()).await {
                    Ok(reply) => return Ok(reply.into_inner()),
                    Err(refusal) if $crate::commands::job::was_lost(&refusal) => {
                        lost = true;
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(refusal) => {
                        let gone: fn(tonic::Code) -> Option<_> = $gone;
                        return match gone(refusal.code()).filter(|_| lost) {
                            Some(done) => Ok(done),
                            None => Err(refusal.message().to_owned()),
                        };
                    }
                }
            }
        })
    }};
}

pub(super) use ask_jobs;

/// The request or its answer, as when the master dies in between: what the master says itself has no cause.
pub(crate) fn was_lost(refusal: &tonic::Status) -> bool {
    refusal.code() == tonic::Code::Unavailable || refusal.source().is_some()
}

pub(super) fn request_id() -> anyhow::Result<Vec<u8>> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).context("draw a request id")?;
    Ok(id.to_vec())
}

/// One number, under its name in JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Number {
    Job { id: u64 },
    Snapshot { snapshot: u64 },
    State { state: u64 },
}

impl Table for Number {
    fn table(&self) -> String {
        let (Self::Job { id: number }
        | Self::Snapshot { snapshot: number }
        | Self::State { state: number }) = self;
        format!("{number}\n")
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    id: u64,
    name: String,
    by: String,
    phase: String,
    workers: u32,
    /// Taken; the next one has this number.
    snapshots: u64,
    /// UTC.
    began: String,
    /// UTC; null: it has not ended.
    ended: Option<String>,
    /// drain, rebalance or scrub if the master does it, with servers as workers; null: a program of somebody's own.
    work: Option<String>,
    /// Subtasks of such work.
    done: u64,
    /// 0: not known.
    total: u64,
    /// By a scrub: replicas that are damaged.
    found: u64,
    /// Servers that have work and do none of it.
    stalled: Vec<String>,
}

impl Job {
    fn phase(&self) -> String {
        if self.stalled.is_empty() {
            return self.phase.clone();
        }
        format!("{}, stalled: {}", self.phase, self.stalled.join(" "))
    }

    fn progress(&self) -> String {
        match (&self.work, self.total) {
            (None, _) => String::new(),
            (Some(_), 0) => self.done.to_string(),
            (Some(_), total) => format!("{} of {total}", self.done),
        }
    }
}

impl From<JobStatus> for Job {
    fn from(job: JobStatus) -> Self {
        let at = |nanos: i64| utc(nanos.div_euclid(1_000_000_000));
        Self {
            id: job.id,
            name: job.name,
            by: job.by,
            phase: job.phase,
            workers: job.workers,
            snapshots: job.snapshots,
            began: at(job.began_ns),
            ended: job.ended_ns.map(at),
            work: Some(job.work).filter(|work| !work.is_empty()),
            done: job.done,
            total: job.total,
            found: job.found,
            stalled: job.stalled,
        }
    }
}

#[derive(Debug, Serialize)]
struct Jobs {
    jobs: Vec<Job>,
}

impl Table for Jobs {
    fn table(&self) -> String {
        if self.jobs.is_empty() {
            return "no jobs\n".to_owned();
        }
        let head = ["JOB", "PHASE", "DONE", "WORKERS", "SNAPSHOTS", "BEGAN", "BY", "NAME"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.jobs.iter().map(|job| {
            vec![
                job.id.to_string(),
                job.phase(),
                job.progress(),
                job.workers.to_string(),
                job.snapshots.to_string(),
                job.began.clone(),
                printable(&job.by),
                printable(&job.name),
            ]
        }));
        columns(&rows, &[0, 2, 3, 4])
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Worker {
    worker: u32,
    /// That does the master's work.
    server: Option<String>,
    stalled: bool,
    state: u64,
    /// At the last snapshot.
    snapshot_state: u64,
    /// Since which snapshot the state is what it is.
    since_snapshot: u64,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    job: Job,
    /// From the first that was asked for, at most a thousand.
    states: Vec<Worker>,
}

impl Table for Shown {
    fn table(&self) -> String {
        let Job { id, name, by, workers, snapshots, began, ended, .. } = &self.job;
        let phase = self.job.phase();
        let done = match self.job.progress() {
            none if none.is_empty() => none,
            done => format!(", {done} done"),
        };
        let named = if name.is_empty() { String::new() } else { format!(" ({})", printable(name)) };
        let ended = ended.as_ref().map_or_else(String::new, |at| format!(", ended {at}"));
        let mut text = format!(
            "job {id}{named}: {phase}{done}, {workers} workers, {snapshots} snapshots; began {began} by {}{ended}\n",
            printable(by)
        );
        let head = ["WORKER", "STATE", "AT LAST SNAPSHOT", "SINCE SNAPSHOT"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.states.iter().map(|worker| {
            let Worker { worker, server, stalled, state, snapshot_state, since_snapshot } = worker;
            let name = server.clone().unwrap_or_else(|| worker.to_string());
            vec![
                format!("{name}{}", if *stalled { " (stalled)" } else { "" }),
                state.to_string(),
                snapshot_state.to_string(),
                since_snapshot.to_string(),
            ]
        }));
        text.push_str(&columns(&rows, &[0, 1, 2, 3]));
        text
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    /// The first snapshot that shows it.
    from_snapshot: u64,
    state: u64,
}

#[derive(Debug, Serialize)]
struct History {
    changes: Vec<Change>,
}

impl Table for History {
    fn table(&self) -> String {
        let mut rows = vec![vec!["FROM SNAPSHOT".to_owned(), "STATE".to_owned()]];
        rows.extend(
            self.changes
                .iter()
                .map(|change| vec![change.from_snapshot.to_string(), change.state.to_string()]),
        );
        columns(&rows, &[0, 1])
    }
}

pub(crate) fn list(cluster: &ClusterArgs, args: &JobsArgs) -> anyhow::Result<()> {
    let target = cluster::target(cluster)?;
    let mut jobs: Vec<Job> = Vec::new();
    loop {
        let from = jobs.last().map_or(0, |job| job.id + 1);
        let page =
            ask_jobs!(&target, list, JobListRequest { from, max: PAGE }).context("list jobs")?;
        if page.jobs.is_empty() {
            return output::print(args.output.format, &Jobs { jobs });
        }
        jobs.extend(page.jobs.into_iter().map(Job::from));
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &JobArgs) -> anyhow::Result<()> {
    let target = &cluster::target(cluster)?;
    match &args.verb {
        JobVerb::Create { workers, name, output } => {
            let request = JobCreateRequest {
                name: name.clone(),
                workers: *workers,
                by: servers::myself(),
                request: request_id()?,
            };
            let made = ask_jobs!(target, create, request).context("job create")?;
            output::print(output.format, &Number::Job { id: made.id })
        }
        JobVerb::SetState { id, worker, state } => {
            let states = vec![JobWorkerState { worker: *worker, state: *state }];
            let request = JobSetStatesRequest { id: *id, states };
            ask_jobs!(target, set_states, request).context("job set-state")?;
            Ok(())
        }
        JobVerb::Snapshot { id, output } => {
            let request = JobSnapshotRequest { id: *id, request: request_id()? };
            let taken = ask_jobs!(target, snapshot, request).context("job snapshot")?;
            output::print(output.format, &Number::Snapshot { snapshot: taken.snapshot })
        }
        JobVerb::FetchState { id, worker, snapshot, output } => {
            let request = JobFetchStateRequest { id: *id, worker: *worker, snapshot: *snapshot };
            let found = ask_jobs!(target, fetch_state, request).context("job fetch-state")?;
            output::print(output.format, &Number::State { state: found.state })
        }
        JobVerb::Show { id, first, output } => {
            let request = JobWorkersRequest { id: *id, first: *first, max: PAGE };
            let found = ask_jobs!(target, workers, request).context("job show")?;
            let states = found.workers.into_iter().map(|worker| Worker {
                worker: worker.worker,
                server: Some(worker.server).filter(|server| !server.is_empty()),
                stalled: worker.stalled,
                state: worker.state,
                snapshot_state: worker.snapshot_state,
                since_snapshot: worker.since_snapshot,
            });
            let job = Job::from(found.job.unwrap_or_default());
            output::print(output.format, &Shown { job, states: states.collect() })
        }
        JobVerb::History { id, worker, last, output } => {
            let request = JobHistoryRequest { id: *id, worker: *worker, max: *last };
            let found = ask_jobs!(target, history, request).context("job history")?;
            let changes = found
                .changes
                .into_iter()
                .map(|change| Change { from_snapshot: change.from_snapshot, state: change.state });
            output::print(output.format, &History { changes: changes.collect() })
        }
        JobVerb::Pause { id } => set_phase(target, *id, "paused"),
        JobVerb::Resume { id } => set_phase(target, *id, "running"),
        JobVerb::Finish { id } => set_phase(target, *id, "done"),
        JobVerb::Cancel { id } => set_phase(target, *id, "cancelled"),
        JobVerb::Rm { id } => {
            let gone = |code| (code == tonic::Code::NotFound).then_some(JobDone {});
            ask_jobs!(target, forget, JobForgetRequest { id: *id }, gone).context("job rm")?;
            Ok(())
        }
    }
}

fn set_phase(target: &Target, id: u64, phase: &str) -> anyhow::Result<()> {
    let request = JobSetPhaseRequest { id, phase: phase.to_owned() };
    ask_jobs!(target, set_phase, request).with_context(|| format!("job {id}"))?;
    Ok(())
}
