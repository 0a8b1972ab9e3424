//! A bound on memory shared by many: whoever would pass it waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::session::lock;

/// Bytes in use, never more than the limit (but for one single request larger than all of it).
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
    given_back: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: Mutex::new(0), freed: Condvar::new(), given_back: AtomicU64::new(0) }
    }

    /// Takes `bytes` if they fit now.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        let mut used = lock(&self.used);
        let fits = *used == 0 || *used + bytes <= self.limit;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Takes `bytes`, waiting up to `wait` for others to give back; false if they did not.
    pub(crate) fn take(&self, bytes: u64, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut used = lock(&self.used);
        while *used != 0 && self.limit < *used + bytes {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            used = self.freed.wait_timeout(used, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *used += bytes;
        true
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut used = lock(&self.used);
        *used = used.saturating_sub(bytes);
        self.given_back.fetch_add(bytes, Ordering::Relaxed);
        drop(used);
        self.freed.notify_all();
    }

    pub(crate) fn used(&self) -> u64 {
        *lock(&self.used)
    }

    /// Of all that was ever taken; only rises.
    pub(crate) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_request_over_the_limit_waits_for_bytes_given_back() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.try_take(80) && !budget.try_take(30));
        assert!(!budget.take(30, Duration::from_millis(5)));
        let other = Arc::clone(&budget);
        let waiting = std::thread::spawn(move || other.take(30, Duration::from_secs(10)));
        std::thread::sleep(Duration::from_millis(5));
        budget.give_back(80);
        assert!(waiting.join().unwrap());
        assert_eq!((budget.used(), budget.given_back()), (30, 80));
    }

    #[test]
    fn one_request_larger_than_everything_passes_alone() {
        let budget = Budget::new(100);
        assert!(budget.take(500, Duration::ZERO));
        assert!(!budget.try_take(1));
        budget.give_back(500);
        assert!(budget.try_take(1));
    }
}
