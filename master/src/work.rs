//! Jobs that the master carries out: which are open, and how far each is, told to the log.
//!
//! What is to be done is read off the chunk map and the jobs in the log each time, so that a new master goes on where the
//! last one was. [`crate::rebuild`] moves chunks for drains and rebalances, [`crate::scrub`] has replicas read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dfs_core::command::{Change, Outcome};
use dfs_core::ids::ServerId;
use dfs_core::job::{Job, JobId, JobPhase, JobWork, WorkProgress};
use dfs_core::meta::jobs::fetch_state;
use dfs_core::meta::work::open_work;
use dfs_core::time::Timestamp;
use dfs_service::shutdown::Shutdown;

use crate::scrub::Scrubs;
use crate::state::{Master, lock, now};

const TICK: Duration = Duration::from_millis(200);
/// Between two commands that say how far a job is.
const TOLD_EVERY_MS: u64 = 1_000;

/// Jobs of the master that had not ended when it last looked.
#[derive(Debug, Default)]
pub struct Works(Mutex<Vec<(JobId, Job)>>);

impl Works {
    fn find(&self, is_it: impl Fn(&JobWork) -> bool) -> Option<(JobId, JobPhase)> {
        let open = lock(&self.0);
        let mut found = open.iter().filter(|(_, job)| job.work.as_ref().is_some_and(&is_it));
        found.next().map(|(id, job)| (*id, job.phase))
    }

    /// The job that empties `server`.
    pub(crate) fn drain(&self, server: ServerId) -> Option<(JobId, JobPhase)> {
        self.find(|work| *work == JobWork::Drain { server })
    }

    pub(crate) fn rebalance(&self) -> Option<(JobId, JobPhase)> {
        self.find(|work| *work == JobWork::Rebalance)
    }

    /// Whether somebody paused it.
    pub(crate) fn is_paused(&self, id: JobId) -> bool {
        lock(&self.0).iter().any(|(open, job)| *open == id && job.phase == JobPhase::Paused)
    }

    /// By what a metric calls it.
    pub(crate) fn counts(&self) -> [(&'static str, i64); 3] {
        let (mut running, mut paused, mut stalled) = (0, 0, 0);
        for (_, job) in lock(&self.0).iter() {
            match job.phase {
                JobPhase::Paused => paused += 1,
                _ if job.servers.iter().any(|worker| worker.stalled) => stalled += 1,
                JobPhase::Running | JobPhase::Done | JobPhase::Cancelled => running += 1,
            }
        }
        [("running", running), ("paused", paused), ("stalled", stalled)]
    }

    /// Servers that hold up a job which moves chunks to them: they get no more while there is another.
    pub(crate) fn stalled(&self) -> BTreeSet<ServerId> {
        let open = lock(&self.0);
        let workers = open.iter().flat_map(|(_, job)| &job.servers);
        workers.filter(|worker| worker.stalled).map(|worker| worker.server).collect()
    }
}

impl Master {
    /// Looks which of its jobs are open.
    pub fn refresh_work(&self) {
        *lock(&self.works.0) = open_work(&self.reader());
    }

    /// What `job`'s workers have done together.
    pub(crate) fn done_of(&self, id: JobId, job: &Job) -> u64 {
        let reader = self.reader();
        let states = (0..job.workers).map(|worker| fetch_state(&reader, id, worker, None));
        states.map(|state| state.unwrap_or(0)).fold(0, u64::saturating_add)
    }

    pub(crate) fn set_work_phase(&self, job: JobId, phase: JobPhase) -> Result<(), String> {
        let outcome = self.propose(None, Change::SetJobPhase { job, phase });
        self.refresh_work();
        match outcome {
            Ok(Outcome::Refused(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Ok(()),
        }
    }
}

/// How far one job is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    pub(crate) total: u64,
    pub(crate) found: u64,
    pub(crate) workers: Vec<WorkProgress>,
    pub(crate) over: bool,
}

/// Until `shutdown`, on a thread of its own.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    let snapshot_ms = master.config.profile.dead_after_ms;
    let mut scrubs = Scrubs::default();
    let mut told: BTreeMap<JobId, (Standing, Timestamp)> = BTreeMap::new();
    let mut snapshots: BTreeMap<JobId, Timestamp> = BTreeMap::new();
    while !shutdown.wait_for(TICK) {
        master.refresh_work();
        if master.is_warming() {
            continue;
        }
        let open = lock(&master.works.0).clone();
        let is_open = |id: &JobId| open.iter().any(|(open, _)| open == id);
        told.retain(|id, _| is_open(id));
        snapshots.retain(|id, _| is_open(id));
        scrubs.keep_only(is_open);
        for (id, job) in &open {
            let due = |at: Option<&Timestamp>, ms: u64| {
                at.is_none_or(|at| ms <= now().nanos_since(*at) / 1_000_000)
            };
            if !due(told.get(id).map(|(_, at)| at), TOLD_EVERY_MS) {
                continue;
            }
            let Some(work) = &job.work else { continue };
            let standing = match work {
                JobWork::Drain { server } => drain(master, *id, job, *server),
                JobWork::Rebalance => moving(master, *id, job),
                JobWork::Scrub { .. } => scrubs.go_on(master, *id, job),
            };
            let running = job.phase == JobPhase::Running;
            // The first of a reign says that it goes on.
            let snapshot = running && due(snapshots.get(id), snapshot_ms);
            let is_news = told.get(id).is_none_or(|(before, _)| *before != standing);
            if is_news || snapshot || standing.over {
                let Standing { total, found, workers, over } = standing.clone();
                let last = snapshot || over;
                let change = Change::AdvanceJob { job: *id, total, found, workers, snapshot: last };
                if let Err(error) = master.propose(None, change) {
                    tracing::debug!(job = id.0, %error, "how far a job is");
                    continue;
                }
                if snapshot {
                    snapshots.insert(*id, now());
                }
                if over {
                    end(master, *id, job);
                }
            }
            told.insert(*id, (standing, now()));
        }
    }
}

fn end(master: &Master, id: JobId, job: &Job) {
    match master.set_work_phase(id, JobPhase::Done) {
        Ok(()) => tracing::info!(job = id.0, name = job.name, "job is done"),
        Err(error) => tracing::debug!(job = id.0, error, "end a job"),
    }
}

/// Servers that have copies for this job under way, and those that had.
fn moving(master: &Master, id: JobId, job: &Job) -> Standing {
    let busy = master.rebuild.learners_of(id);
    let known = job.servers.iter().map(|worker| worker.server);
    let all: BTreeSet<ServerId> = known.chain(busy.iter().copied()).collect();
    let workers = all.into_iter().map(|server| {
        let busy = busy.contains(&server);
        WorkProgress { server, done: None, mark: 0, busy }
    });
    Standing { total: job.total, found: 0, workers: workers.collect(), over: false }
}

fn drain(master: &Master, id: JobId, job: &Job, server: ServerId) -> Standing {
    let left = master.listed_on(server).chunks;
    let standing = moving(master, id, job);
    // A chunk that was deleted meanwhile is none of it any more.
    let total = master.done_of(id, job).saturating_add(left);
    Standing { total, over: left == 0, ..standing }
}
