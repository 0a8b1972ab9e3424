//! Jobs in the log, so that they go on at the same snapshot whoever is the master.
//!
//! A state is kept under (job, worker, snapshot it is from on), later ones first: the newest that is not too new is
//! the first of a range.

pub use super::read::job;
use super::transaction::{Answer, Transaction};
use super::{Key, MetaStore, Record};
use crate::command::Outcome;
use crate::job::{
    Job, JobError, JobId, JobPhase, NAME_BYTES_MAX, OLDER_REQUESTS_MAX, STATES_MAX, WORKERS_MAX,
    check_snapshot, check_worker,
};
use crate::namespace::NamespaceError;

/// States that one command of a forgotten job takes away.
const FORGET_AT_ONCE: usize = 1_000;

impl From<JobError> for NamespaceError {
    fn from(error: JobError) -> Self {
        Self::Invalid(error.to_string())
    }
}

pub(super) fn key(job: JobId, worker: u32, from: u64) -> Key {
    Key::JobState(job, worker, u64::MAX - from)
}

impl Transaction<'_> {
    fn known_job(&self, id: JobId) -> Result<Job, JobError> {
        job(self.store, id).ok_or(JobError::Unknown(id))
    }

    pub(super) fn open_job(&self, id: JobId) -> Result<Job, JobError> {
        let job = self.known_job(id)?;
        if job.phase.has_ended() {
            return Err(JobError::Ended { job: id, phase: job.phase });
        }
        Ok(job)
    }

    /// The job that this request made, if it is one of the newest.
    pub(super) fn made_by(&self, request: u128) -> Option<JobId> {
        let below = self.superblock.next_job;
        let oldest = below.saturating_sub(1 + OLDER_REQUESTS_MAX as u64);
        let newest =
            self.store.range(&Key::Job(JobId(oldest)), &Key::Job(JobId(below)), usize::MAX);
        newest.into_iter().rev().find_map(|pair| match pair {
            (Key::Job(id), Record::Job(job)) if job.request == request => Some(id),
            _ => None,
        })
    }

    pub(super) fn create_job(
        &mut self,
        name: &str,
        workers: u32,
        by: &str,
        request: u128,
    ) -> Answer {
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(JobError::Workers(workers).into());
        }
        if NAME_BYTES_MAX < name.len() {
            let len = name.len();
            let text = format!("a job's name has at most {NAME_BYTES_MAX} bytes, not {len}");
            return Err(NamespaceError::Invalid(text));
        }
        let id = JobId(self.superblock.next_job);
        if let Some(made) = self.made_by(request) {
            return Ok(Outcome::Number(made.0));
        }
        self.superblock.next_job += 1;
        let record = Job {
            name: name.to_owned(),
            by: by.chars().take(200).collect(),
            phase: JobPhase::Running,
            workers,
            snapshots: 0,
            began: self.now,
            ended: None,
            request,
            snapshot_request: 0,
            older_requests: Vec::new(),
            work: None,
            servers: Vec::new(),
            total: 0,
            found: 0,
        };
        self.store.put(Key::Job(id), Record::Job(record));
        Ok(Outcome::Number(id.0))
    }

    /// A job whose progress others tell.
    fn told_job(&self, id: JobId) -> Result<Job, NamespaceError> {
        let job = self.open_job(id)?;
        if job.work.is_some() {
            let text =
                format!("job {id} ({}) is the master's own: it says how far it is", job.name);
            return Err(NamespaceError::Invalid(text));
        }
        Ok(job)
    }

    /// All or none.
    pub(super) fn set_job_states(&mut self, id: JobId, states: &[(u32, u64)]) -> Answer {
        let job = self.told_job(id)?;
        if STATES_MAX < states.len() {
            let text = format!("at most {STATES_MAX} states at once, not {}", states.len());
            return Err(NamespaceError::Invalid(text));
        }
        for (worker, _) in states {
            check_worker(*worker, job.workers)?;
        }
        for (worker, state) in states {
            if state_at(self.store, id, *worker, job.snapshots) != *state {
                self.store.put(key(id, *worker, job.snapshots), Record::JobState(*state));
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn snapshot_job(&mut self, id: JobId, request: u128) -> Answer {
        let mut job = self.told_job(id)?;
        let taken = job.snapshots;
        if 0 < taken {
            let known = std::iter::once(&job.snapshot_request).chain(&job.older_requests);
            if let Some((_, number)) =
                known.zip((0..taken).rev()).find(|(known, _)| **known == request)
            {
                return Ok(Outcome::Number(number));
            }
            job.older_requests.insert(0, job.snapshot_request);
            job.older_requests.truncate(OLDER_REQUESTS_MAX);
        }
        job.snapshots += 1;
        job.snapshot_request = request;
        self.store.put(Key::Job(id), Record::Job(job));
        Ok(Outcome::Number(taken))
    }

    /// To the phase it is in already: nothing happens.
    pub(super) fn set_job_phase(&mut self, id: JobId, phase: JobPhase) -> Answer {
        let mut job = self.known_job(id)?;
        if job.phase == phase {
            return Ok(Outcome::Done);
        }
        if job.phase.has_ended() {
            return Err(JobError::Ended { job: id, phase: job.phase }.into());
        }
        if let (JobPhase::Cancelled, Some(work)) = (phase, &job.work) {
            self.end_wish_of(id, work)?;
        }
        job.phase = phase;
        job.ended = phase.has_ended().then_some(self.now);
        self.store.put(Key::Job(id), Record::Job(job));
        Ok(Outcome::Done)
    }

    /// Takes away some of the states of a job that has ended, and the job with the last of them: `Number` says how many
    /// records went; 0: there is no such job (any more).
    pub(super) fn forget_job(&mut self, id: JobId) -> Answer {
        let Some(found) = job(self.store, id) else { return Ok(Outcome::Number(0)) };
        if !found.phase.has_ended() {
            let text = format!("job {id} is {}: cancel it first", found.phase);
            return Err(NamespaceError::Invalid(text));
        }
        let (first, end) = (Key::JobState(id, 0, 0), Key::JobState(JobId(id.0 + 1), 0, 0));
        let states = self.store.range(&first, &end, FORGET_AT_ONCE);
        for (key, _) in &states {
            self.store.delete(key);
        }
        let last = states.len() < FORGET_AT_ONCE;
        if last {
            self.store.delete(&Key::Job(id));
        }
        Ok(Outcome::Number(states.len() as u64 + u64::from(last)))
    }
}

/// At most `limit` jobs from `from` on.
#[must_use]
pub fn jobs(store: &dyn MetaStore, from: JobId, limit: usize) -> Vec<(JobId, Job)> {
    let page = store.range(&Key::Job(from), &Key::Job(JobId(u64::MAX)), limit).into_iter();
    page.filter_map(|pair| match pair {
        (Key::Job(id), Record::Job(job)) => Some((id, job)),
        _ => None,
    })
    .collect()
}

/// The state as of `snapshot`, taken or the one to come, whether there is such a worker or not.
pub(super) fn state_at(store: &dyn MetaStore, id: JobId, worker: u32, snapshot: u64) -> u64 {
    changes(store, id, worker, snapshot, 1).first().map_or(0, |(_, state)| *state)
}

/// At most `limit` changes of a worker's state up to `snapshot`, newest first: from which snapshot on, which state.
#[must_use]
pub fn changes(
    store: &dyn MetaStore,
    id: JobId,
    worker: u32,
    snapshot: u64,
    limit: usize,
) -> Vec<(u64, u64)> {
    // Beyond the last: the key before everything of the next worker.
    let end = match worker.checked_add(1) {
        Some(next) => Key::JobState(id, next, 0),
        None => Key::JobState(JobId(id.0 + 1), 0, 0),
    };
    let page = store.range(&key(id, worker, snapshot), &end, limit).into_iter();
    page.filter_map(|pair| match pair {
        (Key::JobState(_, _, from), Record::JobState(state)) => Some((u64::MAX - from, state)),
        _ => None,
    })
    .collect()
}

/// The worker's state when the snapshot was taken; without one: now.
///
/// # Errors
/// `Unknown`, `Worker`, `Snapshot`.
pub fn fetch_state(
    store: &dyn MetaStore,
    id: JobId,
    worker: u32,
    snapshot: Option<u64>,
) -> Result<u64, JobError> {
    let job = job(store, id).ok_or(JobError::Unknown(id))?;
    check_worker(worker, job.workers)?;
    if let Some(snapshot) = snapshot {
        check_snapshot(snapshot, job.snapshots)?;
    }
    Ok(state_at(store, id, worker, snapshot.unwrap_or(job.snapshots)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Change;
    use crate::job::Progress;
    use crate::meta::MemStore;
    use crate::meta::samples::{run, started};

    fn create(store: &mut MemStore, workers: u32, request: u128) -> Outcome {
        let (name, by) = ("copy".to_owned(), "ada".to_owned());
        run(store, Change::CreateJob { name, workers, by, request })
    }

    const JOB: JobId = JobId(1);

    fn set(store: &mut MemStore, states: &[(u32, u64)]) -> Outcome {
        run(store, Change::SetJobStates { job: JOB, states: states.to_vec() })
    }

    fn refusal(outcome: Outcome) -> String {
        if let Outcome::Refused(NamespaceError::Invalid(text)) = outcome {
            return text;
        }
        panic!("{outcome:?}")
    }

    #[test]
    fn the_log_answers_as_the_library_does() {
        let mut store = started();
        assert_eq!(create(&mut store, 7, 1), Outcome::Number(1));
        let mut model = Progress::new(7).unwrap();
        let mut dice = 1_u64;
        for request in 0..2_000_u128 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let draw = dice >> 33;
            if draw.is_multiple_of(3) {
                let taken = run(&mut store, Change::SnapshotJob { job: JOB, request });
                assert_eq!(taken, Outcome::Number(model.snapshot()));
            } else {
                let (worker, state) = ((draw % 7) as u32, (draw / 7) % 5);
                model.set_state(worker, state).unwrap();
                assert_eq!(set(&mut store, &[(worker, state)]), Outcome::Done);
            }
        }
        let snapshots = job(&store, JOB).unwrap().snapshots;
        assert!(500 < snapshots);
        for worker in 0..8 {
            for snapshot in 0..=snapshots {
                let expected = model.fetch_state(worker, snapshot);
                assert_eq!(fetch_state(&store, JOB, worker, Some(snapshot)), expected);
            }
        }
    }

    #[test]
    fn a_call_that_is_repeated_gets_the_same_answer() {
        let mut store = started();
        assert_eq!(create(&mut store, 3, 11), Outcome::Number(1));
        assert_eq!(create(&mut store, 3, 11), Outcome::Number(1));
        assert_eq!(create(&mut store, 3, 12), Outcome::Number(2));
        let snapshot = |request| Change::SnapshotJob { job: JOB, request };
        assert_eq!(run(&mut store, snapshot(0)), Outcome::Number(0));
        assert_eq!(run(&mut store, snapshot(0)), Outcome::Number(0));
        assert_eq!(run(&mut store, snapshot(5)), Outcome::Number(1));
    }

    #[test]
    fn callers_whose_answers_were_lost_together_get_theirs_whoever_asks_first() {
        let mut store = started();
        let callers = OLDER_REQUESTS_MAX as u64 + 1;
        let create = |store: &mut MemStore, of: u64| create(store, 3, u128::from(of + 100));
        let jobs: Vec<Outcome> = (0..callers).map(|of| create(&mut store, of)).collect();
        for (of, job) in (0..callers).zip(&jobs) {
            assert_eq!(create(&mut store, of), *job);
        }
        let snapshot = |of: u64| Change::SnapshotJob { job: JOB, request: u128::from(of) };
        for of in 0..callers {
            assert_eq!(run(&mut store, snapshot(of)), Outcome::Number(of));
        }
        for of in (0..callers).rev() {
            assert_eq!(run(&mut store, snapshot(of)), Outcome::Number(of));
        }
        assert_eq!(run(&mut store, snapshot(callers)), Outcome::Number(callers));
        assert_eq!(job(&store, JOB).unwrap().older_requests.len(), OLDER_REQUESTS_MAX);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let mut store = started();
        create(&mut store, 3, 1);
        let before = store.clone();
        let said = refusal(set(&mut store, &[(0, 5), (3, 1)]));
        assert_eq!(said, "worker 3: the job has 3 workers, numbered from 0");
        assert_eq!(fetch_state(&store, JOB, 0, None), Ok(0));
        assert!(refusal(create(&mut store, 0, 2)).contains("1 to 1000000 workers, not 0"));
        let unknown = Change::SnapshotJob { job: JobId(9), request: 1 };
        assert_eq!(refusal(run(&mut store, unknown)), "unknown job 9");
        assert!(refusal(run(&mut store, Change::ForgetJob { job: JOB })).contains("cancel it"));
        let states = |store: &MemStore| jobs(store, JobId(0), 10);
        assert_eq!(states(&store), states(&before));
        let phase = |phase| Change::SetJobPhase { job: JOB, phase };
        assert_eq!(run(&mut store, phase(JobPhase::Paused)), Outcome::Done);
        assert_eq!(set(&mut store, &[(0, 5)]), Outcome::Done);
        assert_eq!(run(&mut store, phase(JobPhase::Cancelled)), Outcome::Done);
        assert_eq!(refusal(set(&mut store, &[(0, 6)])), "job 1 is cancelled");
        assert_eq!(refusal(run(&mut store, phase(JobPhase::Running))), "job 1 is cancelled");
        assert_eq!(fetch_state(&store, JOB, 0, None), Ok(5));
    }

    #[test]
    fn a_forgotten_job_leaves_nothing_and_no_other_loses_anything() {
        let mut store = started();
        create(&mut store, 2_500, 1);
        create(&mut store, 2, 2);
        let states: Vec<(u32, u64)> = (0..2_500).map(|worker| (worker, 1)).collect();
        set(&mut store, &states);
        run(&mut store, Change::SetJobStates { job: JobId(2), states: vec![(0, 9)] });
        run(&mut store, Change::SetJobPhase { job: JOB, phase: JobPhase::Done });
        let mut gone = 0;
        while let Outcome::Number(count @ 1..) = run(&mut store, Change::ForgetJob { job: JOB }) {
            gone += count;
        }
        assert_eq!(gone, 2_501);
        assert_eq!(job(&store, JOB), None);
        assert_eq!(fetch_state(&store, JobId(2), 0, None), Ok(9));
        assert_eq!(create(&mut store, 1, 3), Outcome::Number(3), "no number is used again");
    }
}
