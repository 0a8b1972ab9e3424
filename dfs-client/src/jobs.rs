//! Work that must not hold up the threads that find it: a few threads send and sync for all chunks of a session.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::chunk_writer::ChunkWriter;
use crate::error::Result;
use crate::session::{lock, spawn};

/// Work that a connection's reader thread leaves to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    Pump,
    Sync,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Arc<ChunkWriter>, Job)>,
    closed: bool,
}

/// The queue of such work: each chunk is in it at most once per kind.
#[derive(Default)]
pub(crate) struct Jobs {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// A server that does not take bytes may hold one of them for seconds.
const WORKERS: usize = 3;

impl Jobs {
    pub(crate) fn start() -> Result<Arc<Self>> {
        let jobs = Arc::new(Self::default());
        for _ in 0..WORKERS {
            let jobs = Arc::clone(&jobs);
            spawn("writes", move || jobs.work())?;
        }
        Ok(jobs)
    }

    pub(crate) fn put(&self, writer: Arc<ChunkWriter>, job: Job) {
        lock(&self.queue).waiting.push_back((writer, job));
        self.filled.notify_one();
    }

    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        self.filled.notify_all();
    }

    fn work(&self) {
        loop {
            let (writer, job) = {
                let mut queue = lock(&self.queue);
                loop {
                    if let Some(next) = queue.waiting.pop_front() {
                        break next;
                    }
                    if queue.closed {
                        return;
                    }
                    queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            writer.queued[job as usize].store(false, Ordering::Release);
            match job {
                Job::Pump => writer.pump(),
                Job::Sync => writer.start_sync(),
            }
        }
    }
}

/// Most carriers: each has a stack and memory of its own, and there may be thousands of files to append to.
const CARRIERS_MAX: usize = 64;
/// A carrier without work ends after this.
const CARRIER_IDLE: Duration = Duration::from_secs(5);

type Load = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Loads {
    waiting: VecDeque<Load>,
    carriers: usize,
    idle: usize,
}

/// Threads for work that waits for servers itself, though never for other such work: made when all others wait, kept a
/// while for the next. Work beyond [`CARRIERS_MAX`] waits for its turn.
#[derive(Default)]
pub(crate) struct Carriers {
    loads: Mutex<Loads>,
    filled: Condvar,
}

impl Carriers {
    /// Runs `load` on another thread; on this one if there can be none.
    pub(crate) fn run(self: &Arc<Self>, load: Load) {
        let mut loads = lock(&self.loads);
        loads.waiting.push_back(load);
        if loads.waiting.len() <= loads.idle || CARRIERS_MAX <= loads.carriers {
            drop(loads);
            self.filled.notify_one();
            return;
        }
        loads.carriers += 1;
        drop(loads);
        let carriers = Arc::clone(self);
        if let Err(error) = spawn("appends", move || carriers.carry()) {
            tracing::warn!(%error, "a thread that waits for servers");
            let load = {
                let mut loads = lock(&self.loads);
                loads.carriers -= 1;
                loads.waiting.pop_front()
            };
            if let Some(load) = load {
                load();
            }
        }
    }

    /// Work waits and nobody is free: who has done a part of his lets others go on.
    pub(crate) fn are_short(&self) -> bool {
        let loads = lock(&self.loads);
        CARRIERS_MAX <= loads.carriers && loads.idle < loads.waiting.len()
    }

    fn carry(&self) {
        loop {
            let load = {
                let mut loads = lock(&self.loads);
                loop {
                    if let Some(load) = loads.waiting.pop_front() {
                        break load;
                    }
                    loads.idle += 1;
                    let (again, waited) = self
                        .filled
                        .wait_timeout(loads, CARRIER_IDLE)
                        .unwrap_or_else(PoisonError::into_inner);
                    loads = again;
                    loads.idle -= 1;
                    if waited.timed_out() && loads.waiting.is_empty() {
                        loads.carriers -= 1;
                        return;
                    }
                }
            };
            load();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn more_work_than_carriers_waits_for_its_turn() {
        let carriers = Arc::new(Carriers::default());
        let (begin, begun) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for n in 0..3 * CARRIERS_MAX {
            let (begin, gate) = (begin.clone(), Arc::clone(&gate));
            carriers.run(Box::new(move || {
                begin.send(n).unwrap();
                lock(&gate).recv().unwrap();
            }));
        }
        let wait = Duration::from_secs(20);
        for _ in 0..CARRIERS_MAX {
            begun.recv_timeout(wait).unwrap();
        }
        assert!(begun.recv_timeout(Duration::from_millis(50)).is_err(), "one more");
        assert_eq!(lock(&carriers.loads).carriers, CARRIERS_MAX);
        assert!(carriers.are_short());
        for _ in 0..3 * CARRIERS_MAX {
            open.send(()).unwrap();
        }
        for _ in CARRIERS_MAX..3 * CARRIERS_MAX {
            begun.recv_timeout(wait).unwrap();
        }
        assert!(!carriers.are_short());
    }

    #[test]
    fn work_that_waits_for_other_work_is_carried_beside_it() {
        let carriers = Arc::new(Carriers::default());
        let (done, all_done) = mpsc::channel();
        for _ in 0..20 {
            let (open, gate) = mpsc::channel::<()>();
            let done = done.clone();
            carriers.run(Box::new(move || done.send(gate.recv()).unwrap()));
            carriers.run(Box::new(move || open.send(()).unwrap()));
            let waited = all_done.recv_timeout(Duration::from_secs(20));
            assert_eq!(waited.unwrap(), Ok(()));
        }
    }
}
