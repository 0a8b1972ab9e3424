//! Jobs that the master carries out: begun and ended with the wish they are for, their progress in the log.
//!
//! A move of a chunk is counted by the very command that makes it true, so that none is counted twice or not at all. A
//! scrub has marks: what lies below was read, and is not read again by the next master.

use super::jobs::{jobs, key, state_at};
use super::read::job;
use super::transaction::{Answer, Transaction};
use super::{Key, MetaStore, Record};
use crate::cluster::overlay::OverlayKind;
use crate::command::Outcome;
use crate::ids::{ChunkId, ServerId};
use crate::job::{Job, JobId, JobPhase, JobWork, JobWorker, STALLED_AFTER, WorkProgress};
use crate::namespace::NamespaceError;

/// Jobs in one page of a search.
const PAGE: usize = 100;

/// Jobs of the master that have not ended.
#[must_use]
pub fn open_work(store: &dyn MetaStore) -> Vec<(JobId, Job)> {
    let mut found = Vec::new();
    let mut from = JobId(0);
    loop {
        let page = jobs(store, from, PAGE);
        let Some((last, _)) = page.last() else { return found };
        from = JobId(last.0 + 1);
        let open = |job: &Job| job.work.is_some() && !job.phase.has_ended();
        found.extend(page.into_iter().filter(|(_, job)| open(job)));
    }
}

impl Transaction<'_> {
    /// `Number`: the job's; of a kind of which there is one at a time, the one that goes on.
    pub(super) fn begin_work(&mut self, work: &JobWork, by: &str, request: u128) -> Answer {
        if let Some(made) = self.made_by(request).filter(|_| request != 0) {
            return Ok(Outcome::Number(made.0));
        }
        let same = |known: &Job| !work.is_many() && known.work.as_ref() == Some(work);
        if let Some((id, _)) = open_work(self.store).into_iter().find(|(_, known)| same(known)) {
            return Ok(Outcome::Number(id.0));
        }
        let mut work = work.clone();
        if let JobWork::Scrub { end, .. } = &mut work {
            // Chunks that come later were never on a disk for long.
            *end = ChunkId(self.superblock.next_chunk);
        }
        let id = JobId(self.superblock.next_job);
        self.superblock.next_job += 1;
        let record = Job {
            name: work.to_string(),
            by: by.chars().take(200).collect(),
            phase: JobPhase::Running,
            workers: 0,
            snapshots: 0,
            began: self.now,
            ended: None,
            request,
            snapshot_request: 0,
            older_requests: Vec::new(),
            work: Some(work),
            servers: Vec::new(),
            total: 0,
            found: 0,
        };
        self.store.put(Key::Job(id), Record::Job(record));
        Ok(Outcome::Number(id.0))
    }

    /// The wish that such a job is for has ended.
    pub(super) fn end_drain_job(&mut self, server: ServerId, phase: JobPhase) {
        let is_its = |job: &Job| job.work == Some(JobWork::Drain { server });
        for (id, mut record) in open_work(self.store).into_iter().filter(|(_, job)| is_its(job)) {
            record.phase = phase;
            record.ended = Some(self.now);
            self.store.put(Key::Job(id), Record::Job(record));
        }
    }

    /// A job that is cancelled takes its wish back.
    pub(super) fn end_wish_of(&mut self, id: JobId, work: &JobWork) -> Answer {
        match work {
            JobWork::Drain { server } => {
                let by = format!("job {id} was cancelled");
                self.clear_overlay(*server, OverlayKind::Draining, None, &by)
            }
            JobWork::Rebalance | JobWork::Scrub { .. } => Ok(Outcome::Done),
        }
    }

    /// One more subtask of `worker` is done.
    pub(super) fn count_done(&mut self, id: JobId, worker: ServerId) {
        let Some(mut record) = job(self.store, id).filter(|job| !job.phase.has_ended()) else {
            return;
        };
        let index = record.worker_of(worker);
        let done = state_at(self.store, id, index, record.snapshots) + 1;
        self.put_done(id, &mut record, index, done);
        self.store.put(Key::Job(id), Record::Job(record));
    }

    fn put_done(&mut self, id: JobId, record: &mut Job, index: u32, done: u64) {
        if state_at(self.store, id, index, record.snapshots) == done {
            return;
        }
        self.store.put(key(id, index, record.snapshots), Record::JobState(done));
        if let Some(worker) = record.servers.get_mut(index as usize) {
            (worker.since, worker.stalled) = (record.snapshots, false);
        }
    }

    /// What the master says of a job it carries out. With `snapshot` one is taken, and who had work all the time and did
    /// none of it is stalled.
    pub(super) fn advance_job(
        &mut self,
        id: JobId,
        (total, found): (u64, u64),
        workers: &[WorkProgress],
        snapshot: bool,
    ) -> Answer {
        let mut record = self.open_job(id)?;
        if record.work.is_none() {
            return Err(NamespaceError::Invalid(format!("job {id} is not the master's")));
        }
        (record.total, record.found) = (total, found);
        for progress in workers {
            let WorkProgress { server, done, mark, busy } = *progress;
            let index = record.worker_of(server);
            if let Some(done) = done {
                self.put_done(id, &mut record, index, done);
            }
            let snapshots = record.snapshots;
            let Some(worker) = record.servers.get_mut(index as usize) else { continue };
            worker.mark = mark;
            if !busy {
                (worker.since, worker.stalled) = (snapshots, false);
            }
        }
        if snapshot {
            record.snapshots += 1;
            let snapshots = record.snapshots;
            for progress in workers.iter().filter(|progress| progress.busy) {
                let index = record.worker_of(progress.server);
                let Some(worker) = record.servers.get_mut(index as usize) else { continue };
                worker.stalled |= worker.since + STALLED_AFTER <= snapshots;
            }
        }
        let taken = record.snapshots;
        self.store.put(Key::Job(id), Record::Job(record));
        Ok(Outcome::Number(taken))
    }
}

impl Job {
    /// The worker's number; one that is new gets the next.
    fn worker_of(&mut self, server: ServerId) -> u32 {
        let known = self.servers.iter().position(|worker| worker.server == server);
        let index = known.unwrap_or_else(|| {
            let since = self.snapshots;
            self.servers.push(JobWorker { server, mark: 0, stalled: false, since });
            self.servers.len() - 1
        });
        self.workers = u32::try_from(self.servers.len()).unwrap_or(u32::MAX);
        u32::try_from(index).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Change;
    use crate::ids::DiskId;
    use crate::meta::jobs::fetch_state;
    use crate::meta::samples::{run, started};
    use crate::meta::{MemStore, server};

    const CS3: ServerId = ServerId(3);

    fn made() -> MemStore {
        let mut store = started();
        run(&mut store, Change::RegisterServer { server: CS3, disk: DiskId(3) });
        store
    }

    fn drain(store: &mut MemStore, end: bool) -> Outcome {
        let (server, kind, by) = (CS3, OverlayKind::Draining, "ada".to_owned());
        run(
            store,
            match end {
                false => Change::SetOverlay { server, kind, until: None, by, cause: String::new() },
                true => Change::ClearOverlay { server, kind, only_until: None, by },
            },
        )
    }

    fn phase(store: &mut MemStore, id: u64, phase: JobPhase) -> Outcome {
        run(store, Change::SetJobPhase { job: JobId(id), phase })
    }

    fn is_drained(store: &MemStore) -> bool {
        let record = server(store, CS3).unwrap();
        record.overlays.iter().any(|overlay| overlay.kind == OverlayKind::Draining)
    }

    #[test]
    fn a_drain_and_its_job_begin_and_end_together() {
        let mut store = made();
        drain(&mut store, false);
        drain(&mut store, false);
        let open = open_work(&store);
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].1.name.as_str(), open[0].1.by.as_str()), ("drain cs-3", "ada"));
        drain(&mut store, true);
        assert_eq!(job(&store, JobId(1)).unwrap().phase, JobPhase::Cancelled);
        drain(&mut store, false);
        assert_eq!(phase(&mut store, 2, JobPhase::Paused), Outcome::Done);
        assert!(is_drained(&store), "a pause takes nothing back");
        assert_eq!(phase(&mut store, 2, JobPhase::Cancelled), Outcome::Done);
        assert!(!is_drained(&store));
        drain(&mut store, false);
        let kind = OverlayKind::Decommissioned;
        let by = "ada".to_owned();
        run(
            &mut store,
            Change::SetOverlay { server: CS3, kind, until: None, by, cause: String::new() },
        );
        assert_eq!(job(&store, JobId(3)).unwrap().phase, JobPhase::Done);
        assert!(open_work(&store).is_empty());
    }

    fn begin(store: &mut MemStore, work: JobWork, request: u128) -> Outcome {
        run(store, Change::BeginWork { work, by: "ada".to_owned(), request })
    }

    #[test]
    fn there_is_one_rebalance_and_a_repeated_request_begins_nothing() {
        let mut store = made();
        assert_eq!(begin(&mut store, JobWork::Rebalance, 1), Outcome::Number(1));
        assert_eq!(begin(&mut store, JobWork::Rebalance, 2), Outcome::Number(1));
        let scrub = JobWork::Scrub { server: None, ino: None, end: ChunkId(0) };
        assert_eq!(begin(&mut store, scrub.clone(), 3), Outcome::Number(2));
        assert_eq!(begin(&mut store, scrub.clone(), 3), Outcome::Number(2));
        assert_eq!(begin(&mut store, scrub, 4), Outcome::Number(3));
        phase(&mut store, 1, JobPhase::Cancelled);
        assert_eq!(begin(&mut store, JobWork::Rebalance, 5), Outcome::Number(4));
        let states = vec![(0, 1)];
        let refused = run(&mut store, Change::SetJobStates { job: JobId(4), states });
        assert!(matches!(refused, Outcome::Refused(_)), "nobody else says what the master did");
    }

    fn advance(store: &mut MemStore, workers: &[(u32, Option<u64>, bool)]) -> Job {
        let workers = workers.iter().map(|(server, done, busy)| WorkProgress {
            server: ServerId(*server),
            done: *done,
            mark: 7,
            busy: *busy,
        });
        let (total, found, workers) = (9, 1, workers.collect());
        let id = JobId(1);
        run(store, Change::AdvanceJob { job: id, total, found, workers, snapshot: true });
        job(store, id).unwrap()
    }

    fn stalled(job: &Job) -> Vec<u32> {
        let stalled = job.servers.iter().filter(|worker| worker.stalled);
        stalled.map(|worker| worker.server.0).collect()
    }

    #[test]
    fn who_has_work_and_does_none_of_it_over_several_snapshots_is_stalled() {
        let mut store = made();
        begin(&mut store, JobWork::Rebalance, 1);
        for n in 1..=10 {
            // cs-4 goes on, cs-5 has nothing to do, cs-6 hangs from its second subtask on.
            let progress = [(4, Some(n), true), (5, Some(1), false), (6, Some(n.min(2)), true)];
            let at = advance(&mut store, &progress);
            let expected: &[u32] = if 2 + STALLED_AFTER <= n + 1 { &[6] } else { &[] };
            assert_eq!(stalled(&at), expected, "after {n} snapshots");
        }
        let at = advance(&mut store, &[(6, Some(3), true)]);
        assert_eq!((stalled(&at), at.total, at.found, at.workers), (vec![], 9, 1, 3));
        let history = |server, snapshot| fetch_state(&store, JobId(1), server, Some(snapshot));
        assert_eq!((history(0, 4), history(2, 4), history(2, 10)), (Ok(5), Ok(2), Ok(3)));
    }
}
