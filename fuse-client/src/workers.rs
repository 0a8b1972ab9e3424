//! Threads for requests that a reader of the kernel's queue must not answer itself.
//!
//! A request is answered on the thread that read it, without a hop, as long as another reader is free. The last free
//! reader hands over instead, so that the queue is read whatever waits for a server. Locks that wait are always
//! handed over, to threads of their own: a crowd of them must not stand in the way of the unlock they wait for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A thread without work ends after this.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Readers of the kernel's queue that are answering.
#[derive(Debug)]
pub(crate) struct Readers {
    busy: AtomicUsize,
    count: usize,
}

/// A reader's place; given back when dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Readers);

impl Readers {
    #[must_use]
    pub(crate) fn new(count: usize) -> Self {
        Self { busy: AtomicUsize::new(0), count }
    }

    /// Takes a place, unless the asker is the last free reader.
    #[must_use]
    pub(crate) fn try_answer(&self) -> Option<Place<'_>> {
        let last = self.count.saturating_sub(1);
        self.busy
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |busy| {
                (busy < last).then_some(busy + 1)
            })
            .ok()
            .map(|_| Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// At most `threads_max` threads, made when needed, and at most `waiting_max` jobs in line.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    threads_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("jobs", &self.jobs.len())
            .field("threads", &self.threads)
            .field("idle", &self.idle)
            .finish()
    }
}

impl Workers {
    #[must_use]
    pub(crate) fn new(name: &'static str, threads_max: usize, waiting_max: usize) -> Self {
        let state = Mutex::default();
        let inner = Inner { name, threads_max, waiting_max, state, work: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Runs `job` on another thread.
    ///
    /// # Errors
    /// Gives it back if all threads are busy and the line is full, or no thread can be made.
    pub(crate) fn try_run<J: FnOnce() + Send + 'static>(&self, job: J) -> Result<(), J> {
        let inner = &self.inner;
        let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.idle <= state.jobs.len() {
            let made = state.threads < inner.threads_max && {
                let worker = Arc::clone(inner);
                std::thread::Builder::new()
                    .name(inner.name.to_owned())
                    .spawn(move || worker.run())
                    .is_ok()
            };
            if made {
                state.threads += 1;
            } else if state.threads == 0 || inner.waiting_max <= state.jobs.len() {
                return Err(job);
            }
        }
        state.jobs.push_back(Box::new(job));
        inner.work.notify_one();
        Ok(())
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // A handler that panics has answered EIO; the thread goes on.
                let _panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.idle += 1;
            let (next, timeout) =
                self.work.wait_timeout(state, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_last_free_reader_does_not_answer() {
        let readers = Readers::new(3);
        let first = readers.try_answer();
        let second = readers.try_answer();
        assert!(first.is_some() && second.is_some());
        assert!(readers.try_answer().is_none());
        drop(first);
        assert!(readers.try_answer().is_some());
    }

    #[test]
    fn jobs_run_side_by_side_up_to_the_limit_and_then_wait_or_come_back() {
        let workers = Workers::new("test", 2, 1);
        let (started, starts) = mpsc::channel();
        let gate = Arc::new(std::sync::Barrier::new(3));
        for _ in 0..2 {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            assert!(
                workers
                    .try_run(move || {
                        started.send("busy").unwrap();
                        gate.wait();
                    })
                    .is_ok()
            );
        }
        assert_eq!((starts.recv().unwrap(), starts.recv().unwrap()), ("busy", "busy"));
        let queued = started.clone();
        assert!(workers.try_run(move || queued.send("queued").unwrap()).is_ok());
        assert!(workers.try_run(|| ()).is_err(), "the line holds one");
        gate.wait();
        assert_eq!(starts.recv().unwrap(), "queued");
    }

    #[test]
    fn a_panicking_job_does_not_take_its_thread_along() {
        let workers = Workers::new("test", 1, 8);
        assert!(workers.try_run(|| panic!("on purpose")).is_ok());
        let (done, wait) = mpsc::channel();
        assert!(workers.try_run(move || done.send(()).unwrap()).is_ok());
        wait.recv().unwrap();
    }
}
