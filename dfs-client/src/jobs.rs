//! Work that must not hold up the threads that find it: a few threads send and sync for all chunks of a session.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

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
