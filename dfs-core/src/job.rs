//! Long work over many workers, told in numbers: how many subtasks each has done, now and at every snapshot.
//!
//! Workers are numbered from 0, and so are snapshots. A snapshot is a number that rises and nothing else, so that it
//! costs the same however many workers there are; a state is kept per worker and change, so that a fetch looks one up
//! among that worker's changes. The same rules are in the log ([`crate::meta::jobs`]) and, for a program of its own,
//! in [`Progress`].

use std::fmt;

use crate::ids::{ChunkId, InodeNo, ServerId};
use crate::time::WallTime;

/// Workers of one job.
pub const WORKERS_MAX: u32 = 1_000_000;
/// Bytes of a job's name; more are refused.
pub const NAME_BYTES_MAX: usize = 200;
/// States set by one command.
pub const STATES_MAX: usize = 10_000;
/// Requests besides the newest that are known again: answers to so many callers at once may be lost with a master.
pub const OLDER_REQUESTS_MAX: usize = 31;

/// A job. Never reused; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum JobPhase {
    Running,
    /// Nothing new is begun; what is under way may still be reported.
    Paused,
    Done,
    Cancelled,
}

impl JobPhase {
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A worker that had work and did none of it over so many snapshots is stalled.
pub const STALLED_AFTER: u64 = 3;

/// What the master carries out itself; its workers are servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobWork {
    /// Each chunk that lists the server is a subtask, done by the one that takes the copy over.
    Drain { server: ServerId },
    /// Each chunk that moves is a subtask of the server it comes to.
    Rebalance,
    /// Each replica is a subtask of the server that has it: of one server or all, of one file or of what is below one
    /// directory or of all, of chunks below `end`.
    Scrub { server: Option<ServerId>, ino: Option<InodeNo>, end: ChunkId },
}

impl JobWork {
    /// Whether there may be several at once.
    #[must_use]
    pub const fn is_many(&self) -> bool {
        matches!(self, Self::Scrub { .. })
    }
}

impl fmt::Display for JobWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain { server } => write!(f, "drain {server}"),
            Self::Rebalance => f.write_str("rebalance"),
            Self::Scrub { server, ino, end: _ } => {
                f.write_str("scrub")?;
                server.iter().try_for_each(|server| write!(f, " {server}"))?;
                ino.iter().try_for_each(|ino| write!(f, " inode {}", ino.0))
            }
        }
    }
}

/// A worker of such a job. Its number is its place in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobWorker {
    pub server: ServerId,
    /// Where it goes on, if the work is in an order.
    pub mark: u64,
    /// It had work over several snapshots and did none of it.
    pub stalled: bool,
    /// Snapshots there were when it did something last, or had nothing to do.
    pub since: u64,
}

/// What the master says of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkProgress {
    pub server: ServerId,
    /// Subtasks done; `None`: as counted so far.
    pub done: Option<u64>,
    pub mark: u64,
    /// Has subtasks that it is to do now.
    pub busy: bool,
}

/// What the log holds of a job beside the states of its workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    pub name: String,
    /// Who asked for it, as they said.
    pub by: String,
    pub phase: JobPhase,
    pub workers: u32,
    /// Snapshots taken: the next one has this number.
    pub snapshots: u64,
    pub began: WallTime,
    pub ended: Option<WallTime>,
    /// The request that made it, and the one that took the newest snapshot: asked again, they get the same answer.
    pub request: u128,
    pub snapshot_request: u128,
    /// Those that took the snapshots before, newest first, at most [`OLDER_REQUESTS_MAX`]: several may ask at once.
    pub older_requests: Vec<u128>,
    /// `None`: a program of somebody's own does it, and says how far it is.
    pub work: Option<JobWork>,
    /// Of the master's work: who does it.
    pub servers: Vec<JobWorker>,
    /// Subtasks in all, as far as is known; 0: not yet.
    pub total: u64,
    /// Of a scrub: replicas found damaged.
    pub found: u64,
}

/// A call that means nothing. The state is unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JobError {
    #[error("unknown job {0}")]
    Unknown(JobId),
    #[error("worker {worker}: the job has {workers} workers, numbered from 0")]
    Worker { worker: u32, workers: u32 },
    #[error("snapshot {snapshot}: {taken} {} taken, numbered from 0", if *.taken == 1 { "was" } else { "were" })]
    Snapshot { snapshot: u64, taken: u64 },
    #[error("a job has 1 to {WORKERS_MAX} workers, not {0}")]
    Workers(u32),
    #[error("job {job} is {phase}")]
    Ended { job: JobId, phase: JobPhase },
}

/// `Ok` if `worker` is one of `workers`.
///
/// # Errors
/// `Worker`.
pub const fn check_worker(worker: u32, workers: u32) -> Result<(), JobError> {
    if worker < workers { Ok(()) } else { Err(JobError::Worker { worker, workers }) }
}

/// `Ok` if `snapshot` was taken.
///
/// # Errors
/// `Snapshot`.
pub const fn check_snapshot(snapshot: u64, taken: u64) -> Result<(), JobError> {
    if snapshot < taken { Ok(()) } else { Err(JobError::Snapshot { snapshot, taken }) }
}

/// The states of a job's workers, in memory: about 16 bytes a change, none for a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// By worker: from which snapshot on, which state. Rising.
    changes: Vec<Vec<(u64, u64)>>,
    snapshots: u64,
}

impl Progress {
    /// All states are 0.
    ///
    /// # Errors
    /// `Workers`: none, or more than [`WORKERS_MAX`].
    pub fn new(workers: u32) -> Result<Self, JobError> {
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(JobError::Workers(workers));
        }
        Ok(Self { changes: vec![Vec::new(); workers as usize], snapshots: 0 })
    }

    fn workers(&self) -> u32 {
        u32::try_from(self.changes.len()).unwrap_or(u32::MAX)
    }

    /// Between two snapshots the last state wins.
    ///
    /// # Errors
    /// `Worker`.
    pub fn set_state(&mut self, worker: u32, state: u64) -> Result<(), JobError> {
        check_worker(worker, self.workers())?;
        let next = self.snapshots;
        let Some(changes) = self.changes.get_mut(worker as usize) else { return Ok(()) };
        match changes.last_mut() {
            Some((at, last)) if *at == next => *last = state,
            Some((_, last)) if *last == state => {}
            None if state == 0 => {}
            Some(_) | None => changes.push((next, state)),
        }
        Ok(())
    }

    /// The number of the snapshot, from 0 on. O(1).
    pub fn snapshot(&mut self) -> u64 {
        let taken = self.snapshots;
        self.snapshots += 1;
        taken
    }

    /// The worker's state when the snapshot was taken. O(log changes of the worker).
    ///
    /// # Errors
    /// `Worker`, `Snapshot`.
    pub fn fetch_state(&self, worker: u32, snapshot: u64) -> Result<u64, JobError> {
        check_worker(worker, self.workers())?;
        check_snapshot(snapshot, self.snapshots)?;
        let changes = self.changes.get(worker as usize).map_or(&[][..], Vec::as_slice);
        Ok(last_of(changes, |at| at <= snapshot))
    }

    /// Bytes of the changes, as far as they are in use.
    #[must_use]
    pub fn change_bytes(&self) -> usize {
        self.changes.iter().map(|changes| size_of_val(changes.as_slice())).sum()
    }
}

/// The state of the last of `changes` from which `is_until` holds; 0 if there is none. Looks at O(log changes) of them.
fn last_of(changes: &[(u64, u64)], mut is_until: impl FnMut(u64) -> bool) -> u64 {
    let later = changes.partition_point(|(at, _)| is_until(*at));
    later.checked_sub(1).and_then(|at| changes.get(at)).map_or(0, |(_, state)| *state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_found_among_a_million_changes_by_looking_at_few() {
        for (count, most) in [(0, 0), (1, 1), (1_000, 11), (1_000_000, 21)] {
            let changes: Vec<(u64, u64)> = (0..count).map(|n| (2 * n, n + 1)).collect();
            for snapshot in [0, 1, count, 2 * count - count.min(2), u64::MAX] {
                let mut looks = 0;
                let state = last_of(&changes, |at| {
                    looks += 1;
                    at <= snapshot
                });
                assert_eq!(
                    state,
                    count.min((snapshot / 2).saturating_add(1)),
                    "{count} {snapshot}"
                );
                assert!(looks <= most, "{looks} of {count}");
            }
        }
    }

    #[test]
    fn states_are_as_of_their_snapshot() {
        let mut progress = Progress::new(3).unwrap();
        progress.set_state(1, 4).unwrap();
        assert_eq!(progress.snapshot(), 0);
        progress.set_state(1, 7).unwrap();
        assert_eq!(progress.fetch_state(1, 0), Ok(4));
        assert_eq!((progress.fetch_state(0, 0), progress.fetch_state(2, 0)), (Ok(0), Ok(0)));
        progress.set_state(1, 9).unwrap();
        assert_eq!((progress.snapshot(), progress.snapshot()), (1, 2));
        assert_eq!((progress.fetch_state(1, 0), progress.fetch_state(1, 2)), (Ok(4), Ok(9)));
    }

    #[test]
    fn what_means_nothing_is_refused_and_changes_nothing() {
        let mut progress = Progress::new(2).unwrap();
        progress.snapshot();
        let before = progress.clone();
        let outside = JobError::Worker { worker: 2, workers: 2 };
        assert_eq!(progress.set_state(2, 1), Err(outside.clone()));
        assert_eq!(progress.fetch_state(2, 0), Err(outside));
        let early = progress.fetch_state(0, 1).unwrap_err();
        assert_eq!(early.to_string(), "snapshot 1: 1 was taken, numbered from 0");
        assert_eq!(progress, before);
        assert_eq!(Progress::new(0), Err(JobError::Workers(0)));
        assert_eq!(Progress::new(WORKERS_MAX + 1), Err(JobError::Workers(WORKERS_MAX + 1)));
    }

    #[test]
    fn snapshots_cost_nothing_and_states_that_stay_cost_nothing() {
        let mut progress = Progress::new(10_000).unwrap();
        for n in 0..1_000_000_u64 {
            // Five changes in every thousandth.
            if n % 1_000 == 0 {
                for worker in 0..5_u32 {
                    progress.set_state(worker * 2_000, n + 1).unwrap();
                }
            }
            progress.set_state(1, 3).unwrap();
            assert_eq!(progress.snapshot(), n);
        }
        assert_eq!(progress.change_bytes(), 16 * (5 * 1_000 + 1));
        assert_eq!(progress.fetch_state(2_000, 999_999), Ok(999_001));
        assert_eq!(progress.fetch_state(2_000, 998_999), Ok(998_001));
        assert_eq!(progress.fetch_state(1, 0), Ok(3));
        assert_eq!(progress.fetch_state(9_999, 500_000), Ok(0));
    }
}
