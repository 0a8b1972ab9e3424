//! Connections for one caller at a time, at most so many at once.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::session::lock;

pub(crate) struct Pool<T> {
    open_max: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    idle: Vec<T>,
    open: usize,
    /// Telling nobody costs a system call all the same, and every request gives a connection back.
    waiting: usize,
}

/// What [`Pool::take`] found.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Taken<T> {
    Idle(T),
    /// There is room for another, which counts from now on.
    New,
    /// All are in use, and were until the wait was over.
    Busy,
}

impl<T> Pool<T> {
    pub(crate) fn new(open_max: usize) -> Self {
        let state = State { idle: Vec::new(), open: 0, waiting: 0 };
        Self { open_max, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn take(&self, wait: Duration) -> Taken<T> {
        let until = Instant::now() + wait;
        let mut state = lock(&self.state);
        loop {
            if let Some(connection) = state.idle.pop() {
                return Taken::Idle(connection);
            }
            if state.open < self.open_max {
                state.open += 1;
                return Taken::New;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Busy;
            }
            state.waiting += 1;
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
    }

    pub(crate) fn give_back(&self, connection: T) {
        self.change(|state| state.idle.push(connection));
    }

    /// One that was taken is of no use any more.
    pub(crate) fn lose(&self) {
        self.change(|state| state.open -= 1);
    }

    /// As [`Self::lose`], and those nobody has taken go too.
    pub(crate) fn lose_all_idle(&self) {
        let idle = std::mem::take(&mut lock(&self.state).idle);
        (0..=idle.len()).for_each(|_| self.lose());
    }

    pub(crate) fn open(&self) -> usize {
        lock(&self.state).open
    }

    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let is_awaited = 0 < state.waiting;
        drop(state);
        if is_awaited {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn connections_have_a_limit_and_are_used_again() {
        let pool = Pool::new(2);
        assert_eq!((pool.take(LONG), pool.take(LONG)), (Taken::New, Taken::New));
        assert_eq!(pool.take(Duration::ZERO), Taken::Busy);
        pool.give_back('a');
        assert_eq!(pool.take(LONG), Taken::Idle('a'));
        pool.give_back('a');
        pool.lose_all_idle();
        assert_eq!(pool.open(), 0);
    }

    #[test]
    fn each_that_waits_is_told() {
        let pool = Pool::new(2);
        assert_eq!((pool.take(LONG), pool.take(LONG)), (Taken::New, Taken::New));
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let taken = pool.take(LONG);
                        pool.give_back('b');
                        taken
                    })
                })
                .collect();
            while lock(&pool.state).waiting < waiters.len() {
                std::thread::yield_now();
            }
            pool.give_back('a');
            pool.lose();
            for waiter in waiters {
                assert_ne!(waiter.join().unwrap(), Taken::Busy);
            }
        });
        assert_eq!(lock(&pool.state).waiting, 0);
    }
}
