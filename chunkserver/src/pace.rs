//! How fast copies may go, by what clients feel.
//!
//! Every answer to a client is timed. While answers come as they do without copies, copies go as fast as they can; when
//! the answers of one kind took far longer in the last moment, copies from and to this server are slowed down, by half each time,
//! and let go again step by step. A server that answers no clients copies at full speed.

use std::sync::Mutex;
use std::time::Duration;

use dfs_service::shutdown::Shutdown;

use crate::node::{lock, now};

/// Answers are judged over so long.
const WINDOW_NANOS: u64 = 100_000_000;
/// Fewer answers in a window say nothing.
const ANSWERS_MIN: u64 = 4;
/// So many times what is usual, and so much longer at least, is felt.
const FELT_FACTOR: f64 = 2.0;
const FELT_NANOS: f64 = 2_000_000.0;
/// Copies never go slower than this: rebuilding must end.
const RATE_MIN: f64 = 32.0 * 1_048_576.0;
/// As good as no limit.
const RATE_MAX: f64 = 8.0 * 1_073_741_824.0;
/// Each quiet window raises the rate so many times.
const RISE: f64 = 1.5;
/// Weight of one quiet window in what is usual: a minute of them forgets the one before.
const USUAL_WEIGHT: f64 = 0.01;

#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

/// Each kind of request has its own usual time.
const KINDS: [&str; 3] = ["read", "mutate", "sync"];

#[derive(Clone, Copy, Default, Debug)]
struct Answers {
    count: u64,
    sum_nanos: f64,
    /// Mean time of an answer while nothing was copied.
    usual_nanos: Option<f64>,
}

impl Answers {
    fn mean(&self) -> Option<f64> {
        (ANSWERS_MIN <= self.count).then(|| self.sum_nanos / self.count as f64)
    }

    fn is_felt(&self) -> bool {
        let both = self.mean().zip(self.usual_nanos);
        both.is_some_and(|(mean, usual)| (usual * FELT_FACTOR).max(usual + FELT_NANOS) < mean)
    }

    fn learn(&mut self) {
        if let Some(mean) = self.mean() {
            let usual = self.usual_nanos.unwrap_or(mean);
            self.usual_nanos = Some(usual + (mean - usual) * USUAL_WEIGHT);
        }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.sum_nanos = 0.0;
    }
}

#[derive(Clone, Debug)]
struct State {
    window_began: u64,
    kinds: [Answers; KINDS.len()],
    copied_in_window: u64,
    /// Bytes per second.
    rate: f64,
    /// When the bytes let through so far are used up.
    free_at: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(State {
            window_began: 0,
            kinds: Default::default(),
            copied_in_window: 0,
            rate: RATE_MAX,
            free_at: 0,
        }))
    }
}

impl Pace {
    /// A client was answered after so long; kinds of calls that are rare are not judged.
    pub(crate) fn answered(&self, call: &str, nanos: u64) {
        if let Some(kind) = KINDS.iter().position(|kind| *kind == call) {
            lock(&self.0).answered(now().0, kind, nanos);
        }
    }

    /// Waits until `bytes` more may be read that nobody waits for: a scrub stands still where a copy goes slower. Says
    /// whether it did.
    pub(crate) fn before_scrub(&self, bytes: u64, stop: &Shutdown) -> bool {
        let mut stood_still = false;
        while !lock(&self.0).admit_scrub(now().0, bytes) {
            stood_still = true;
            if stop.wait_for(Duration::from_nanos(WINDOW_NANOS)) {
                break;
            }
        }
        stood_still
    }

    /// Waits until `bytes` more may be copied.
    pub(crate) fn before_copy(&self, bytes: u64) {
        let wait = lock(&self.0).admit(now().0, bytes);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

impl State {
    /// Whether a scrub may read `bytes` now: copies and scrubs are not felt, and were not lately.
    fn admit_scrub(&mut self, now: u64, bytes: u64) -> bool {
        self.turn(now);
        let free = RATE_MAX <= self.rate;
        if free {
            self.copied_in_window += bytes;
        }
        free
    }

    fn answered(&mut self, now: u64, kind: usize, nanos: u64) {
        self.turn(now);
        let Some(answers) = self.kinds.get_mut(kind) else { return };
        answers.count += 1;
        answers.sum_nanos += nanos as f64;
    }

    fn turn(&mut self, now: u64) {
        let passed = now.saturating_sub(self.window_began);
        if passed < WINDOW_NANOS {
            return;
        }
        if self.copied_in_window == 0 {
            self.kinds.iter_mut().for_each(Answers::learn);
        }
        if 0 < self.copied_in_window && self.kinds.iter().any(Answers::is_felt) {
            let went = self.copied_in_window as f64 / (passed as f64 / 1e9);
            self.rate = (self.rate.min(went) / 2.0).max(RATE_MIN);
        } else {
            // Nobody here, or nobody who feels it. Windows that passed unseen count, too.
            let windows = i32::try_from((passed / WINDOW_NANOS).min(100)).unwrap_or(100);
            self.rate = (self.rate * RISE.powi(windows)).min(RATE_MAX);
        }
        self.window_began = now;
        self.kinds.iter_mut().for_each(Answers::clear);
        self.copied_in_window = 0;
    }

    fn admit(&mut self, now: u64, bytes: u64) -> Duration {
        self.turn(now);
        self.copied_in_window += bytes;
        if RATE_MAX <= self.rate {
            self.free_at = now;
            return Duration::ZERO;
        }
        let begins = self.free_at.max(now);
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate);
        self.free_at = begins + u64::try_from(takes.as_nanos()).unwrap_or(u64::MAX / 2);
        Duration::from_nanos(begins - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Windows of answers that take `answer_ms` each, with copies as fast as they are let; bytes copied in the last one.
    fn run(state: &mut State, now: &mut u64, windows: u32, answer_ms: u64, copies: bool) -> u64 {
        let mut copied = 0;
        for _ in 0..windows {
            let end = *now + WINDOW_NANOS;
            copied = 0;
            while *now < end {
                let mut at = *now;
                while copies && at < *now + 10 * MS {
                    // 500 MiB/s is what the disk can do.
                    at += 125_000 + u64::try_from(state.admit(at, 65_536).as_nanos()).unwrap();
                    copied += 65_536;
                }
                *now += 10 * MS;
                if 0 < answer_ms {
                    state.answered(*now, 1, answer_ms * MS);
                }
            }
        }
        copied
    }

    #[test]
    fn copies_give_way_to_clients_that_feel_them_and_come_back() {
        let mut state = lock(&Pace::default().0).clone();
        let mut now = 1_000 * MS;
        let full = run(&mut state, &mut now, 5, 0, true);
        assert!(40 << 20 < full, "nobody to give way to: {full} in 100 ms");
        run(&mut state, &mut now, 50, 1, false);
        let usual_ms = |state: &State| state.kinds[1].usual_nanos.map(|nanos| nanos / 1e6);
        assert_eq!(usual_ms(&state), Some(1.0));
        let quiet = run(&mut state, &mut now, 5, 2, true);
        assert!(full / 2 < quiet, "2 ms instead of 1 are not felt: {quiet}");
        let slowed = run(&mut state, &mut now, 10, 20, true);
        assert!(slowed < full / 8, "20 ms are: {slowed} of {full}");
        let least = run(&mut state, &mut now, 50, 20, true);
        assert!(1 << 20 < least, "{least}");
        let back = run(&mut state, &mut now, 30, 1, true);
        assert!(full / 2 < back, "{back} of {full}");
        assert_eq!(usual_ms(&state), Some(1.0), "copies are no measure");
    }

    #[test]
    fn a_scrub_stands_still_while_it_is_felt_and_goes_on_afterwards() {
        let mut state = lock(&Pace::default().0).clone();
        let mut now = 1_000 * MS;
        run(&mut state, &mut now, 50, 1, false);
        assert!(state.admit_scrub(now, 65_536));
        let mut answers = |state: &mut State, windows: u64, ms: u64| {
            let mut let_through = 0;
            for _ in 0..10 * windows {
                let_through += u32::from(state.admit_scrub(now, 65_536));
                now += 10 * MS;
                state.answered(now, 1, ms * MS);
            }
            let_through
        };
        assert_eq!(answers(&mut state, 5, 1), 50, "nobody feels it");
        let felt = answers(&mut state, 50, 20);
        assert!(
            (10..150).contains(&felt),
            "a window now and then shows whether it is still felt: {felt} of 500"
        );
        answers(&mut state, 20, 1);
        assert_eq!(answers(&mut state, 5, 1), 50, "nobody feels it any more");
    }
}
