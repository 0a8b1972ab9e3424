//! Jobs as people's tools ask for them.

use std::sync::Arc;

use dfs_core::command::{Change, Outcome};
use dfs_core::ids::{ChunkId, InodeNo};
use dfs_core::job::{Job, JobError, JobId, JobPhase, JobWork, STATES_MAX};
use dfs_core::meta::{self, jobs};
use dfs_proto::control::jobs_server::Jobs;
use dfs_proto::control::{
    JobChange, JobCreateReply, JobCreateRequest, JobDone, JobFetchStateReply, JobFetchStateRequest,
    JobForgetRequest, JobHistoryReply, JobHistoryRequest, JobListReply, JobListRequest,
    JobScrubRequest, JobSetPhaseRequest, JobSetStatesRequest, JobSnapshotReply, JobSnapshotRequest,
    JobStatus, JobWorkerProgress, JobWorkersReply, JobWorkersRequest,
};
use tonic::{Request, Response, Status};

use crate::control::{Control, id128};
use crate::servers::blocking;
use crate::state::Master;

/// Jobs, workers or changes in one answer.
const PAGE: u32 = 1_000;

fn refused(error: JobError) -> Status {
    match error {
        JobError::Unknown(_) => Status::not_found(error.to_string()),
        JobError::Worker { .. } | JobError::Snapshot { .. } | JobError::Workers(_) => {
            Status::invalid_argument(error.to_string())
        }
        JobError::Ended { .. } => Status::failed_precondition(error.to_string()),
    }
}

fn propose(master: &Master, change: Change) -> Result<Outcome, Status> {
    match master.propose(None, change) {
        Ok(Outcome::Refused(error)) => Err(Status::failed_precondition(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
        Ok(outcome) => Ok(outcome),
    }
}

fn number(outcome: &Outcome) -> Result<u64, Status> {
    if let Outcome::Number(number) = outcome {
        return Ok(*number);
    }
    Err(Status::internal(format!("not a number: {outcome:?}")))
}

fn request_id(bytes: &[u8]) -> Result<u128, Status> {
    id128(bytes, "a request").map_err(Status::invalid_argument)
}

fn phase(text: &str) -> Result<JobPhase, Status> {
    let all = [JobPhase::Running, JobPhase::Paused, JobPhase::Done, JobPhase::Cancelled];
    all.into_iter()
        .find(|phase| phase.to_string() == text)
        .ok_or_else(|| Status::invalid_argument(format!("unknown phase '{text}'")))
}

fn known(master: &Master, id: JobId) -> Result<Job, Status> {
    jobs::job(&master.reader(), id).ok_or_else(|| refused(JobError::Unknown(id)))
}

fn to_wire(master: &Master, id: JobId, job: Job) -> JobStatus {
    let done = if job.work.is_some() { master.done_of(id, &job) } else { 0 };
    let Job {
        name,
        by,
        phase,
        workers,
        snapshots,
        began,
        ended,
        request: _,
        snapshot_request: _,
        older_requests: _,
        work,
        servers,
        total,
        found,
    } = job;
    let work = match work {
        None => "",
        Some(JobWork::Drain { .. }) => "drain",
        Some(JobWork::Rebalance) => "rebalance",
        Some(JobWork::Scrub { .. }) => "scrub",
    };
    let stalled = servers.iter().filter(|worker| worker.stalled && phase == JobPhase::Running);
    JobStatus {
        work: work.to_owned(),
        done,
        total,
        found,
        stalled: stalled.map(|worker| worker.server.to_string()).collect(),
        id: id.0,
        name,
        by,
        phase: phase.to_string(),
        workers,
        snapshots,
        began_ns: began.0,
        ended_ns: ended.map(|ended| ended.0),
    }
}

/// Answers with what `work` finds, on a thread that may wait for the log.
macro_rules! answer {
    ($control:expr, $request:expr, $work:expr) => {{
        let (master, request) = (Arc::clone(&$control.0), $request.into_inner());
        blocking(move || $work(&master, request)).await
    }};
}

#[tonic::async_trait]
impl Jobs for Control {
    async fn create(
        &self,
        request: Request<JobCreateRequest>,
    ) -> Result<Response<JobCreateReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobCreateRequest { name, workers, by, request } = request;
            let request = request_id(&request)?;
            let made = propose(master, Change::CreateJob { name, workers, by, request })?;
            Ok(JobCreateReply { id: number(&made)? })
        })
    }

    async fn set_states(
        &self,
        request: Request<JobSetStatesRequest>,
    ) -> Result<Response<JobDone>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobSetStatesRequest { id, states } = request;
            if STATES_MAX < states.len() {
                let text = format!("at most {STATES_MAX} states at once, not {}", states.len());
                return Err(Status::invalid_argument(text));
            }
            let states = states.into_iter().map(|set| (set.worker, set.state)).collect();
            propose(master, Change::SetJobStates { job: JobId(id), states })?;
            Ok(JobDone {})
        })
    }

    async fn snapshot(
        &self,
        request: Request<JobSnapshotRequest>,
    ) -> Result<Response<JobSnapshotReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobSnapshotRequest { id, request } = request;
            let request = request_id(&request)?;
            let taken = propose(master, Change::SnapshotJob { job: JobId(id), request })?;
            Ok(JobSnapshotReply { snapshot: number(&taken)? })
        })
    }

    async fn fetch_state(
        &self,
        request: Request<JobFetchStateRequest>,
    ) -> Result<Response<JobFetchStateReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobFetchStateRequest { id, worker, snapshot } = request;
            let state = jobs::fetch_state(&master.reader(), JobId(id), worker, snapshot);
            Ok(JobFetchStateReply { state: state.map_err(refused)? })
        })
    }

    async fn set_phase(
        &self,
        request: Request<JobSetPhaseRequest>,
    ) -> Result<Response<JobDone>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobSetPhaseRequest { id, phase: text } = request;
            let (id, phase) = (JobId(id), phase(&text)?);
            if phase == JobPhase::Done && known(master, id)?.work.is_some() {
                let text = format!("job {id} is the master's own: it ends when all is done");
                return Err(Status::failed_precondition(text));
            }
            propose(master, Change::SetJobPhase { job: id, phase })?;
            // The wish that it was for may have ended with it.
            master.refresh_overlays();
            master.refresh_work();
            Ok(JobDone {})
        })
    }

    async fn forget(
        &self,
        request: Request<JobForgetRequest>,
    ) -> Result<Response<JobDone>, Status> {
        answer!(self, request, |master: &Master, request: JobForgetRequest| {
            let job = JobId(request.id);
            known(master, job)?;
            while 0 < number(&propose(master, Change::ForgetJob { job })?)? {}
            Ok(JobDone {})
        })
    }

    async fn scrub(
        &self,
        request: Request<JobScrubRequest>,
    ) -> Result<Response<JobCreateReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobScrubRequest { server, inode, by, request } = request;
            let request = request_id(&request)?;
            let server = match server.as_str() {
                "" => None,
                name => Some(crate::servers::known_id(master, name)?),
            };
            let ino = inode.map(InodeNo);
            if let Some(ino) = ino.filter(|ino| meta::inode(&master.reader(), *ino).is_none()) {
                return Err(Status::not_found(format!("no inode {}", ino.0)));
            }
            let work = JobWork::Scrub { server, ino, end: ChunkId(0) };
            let begun = propose(master, Change::BeginWork { work, by, request })?;
            master.refresh_work();
            Ok(JobCreateReply { id: number(&begun)? })
        })
    }

    async fn list(
        &self,
        request: Request<JobListRequest>,
    ) -> Result<Response<JobListReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobListRequest { from, max } = request;
            let page =
                jobs::jobs(&master.reader(), JobId(from), max.clamp(1, PAGE) as usize).into_iter();
            Ok(JobListReply { jobs: page.map(|(id, job)| to_wire(master, id, job)).collect() })
        })
    }

    async fn workers(
        &self,
        request: Request<JobWorkersRequest>,
    ) -> Result<Response<JobWorkersReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobWorkersRequest { id, first, max } = request;
            let (id, store) = (JobId(id), master.reader());
            let job = known(master, id)?;
            let end = first.saturating_add(max.clamp(1, PAGE)).min(job.workers);
            let workers = (first..end).map(|worker| {
                let newest = jobs::changes(&store, id, worker, job.snapshots, 1);
                let (since_snapshot, state) = newest.first().copied().unwrap_or((0, 0));
                let last = job.snapshots.checked_sub(1);
                let at_last = last.map(|last| jobs::changes(&store, id, worker, last, 1));
                let at_last = at_last.and_then(|changes| changes.first().copied());
                let snapshot_state = at_last.map_or(0, |(_, state)| state);
                let of = job.servers.get(worker as usize);
                JobWorkerProgress {
                    worker,
                    state,
                    snapshot_state,
                    since_snapshot,
                    server: of.map(|of| of.server.to_string()).unwrap_or_default(),
                    stalled: of.is_some_and(|of| of.stalled && job.phase == JobPhase::Running),
                }
            });
            let workers = workers.collect();
            Ok(JobWorkersReply { job: Some(to_wire(master, id, job)), workers })
        })
    }

    async fn history(
        &self,
        request: Request<JobHistoryRequest>,
    ) -> Result<Response<JobHistoryReply>, Status> {
        answer!(self, request, |master: &Master, request| {
            let JobHistoryRequest { id, worker, max } = request;
            let (id, store) = (JobId(id), master.reader());
            let job = known(master, id)?;
            dfs_core::job::check_worker(worker, job.workers).map_err(refused)?;
            let max = max.clamp(1, PAGE) as usize;
            let mut changes = jobs::changes(&store, id, worker, job.snapshots, max);
            changes.reverse();
            let changes = changes
                .into_iter()
                .map(|(from_snapshot, state)| JobChange { from_snapshot, state });
            Ok(JobHistoryReply { changes: changes.collect() })
        })
    }
}
