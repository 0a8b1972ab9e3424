//! How long one call of a program waits, over everything that is asked for it: the deadline belongs to the thread that
//! carries the call out, so that no step between has to hand it on.

use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// While it lives nothing that this thread asks for is waited for beyond its end. What is asked then is asked once.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Deadline {
    before: Option<Instant>,
}

impl Deadline {
    /// Ends after `wait`, or with the one that this thread has already if that is sooner.
    pub fn begin(wait: Duration) -> Self {
        let before = UNTIL.get();
        let until = Instant::now() + wait;
        UNTIL.set(Some(before.map_or(until, |before| before.min(until))));
        Self { before }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        UNTIL.set(self.before);
    }
}

/// `wait`, or what is left until the deadline of this thread.
pub(crate) fn left_of(wait: Duration) -> Duration {
    UNTIL.get().map_or(wait, |until| wait.min(until.saturating_duration_since(Instant::now())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_of_two_deadlines_holds_and_only_while_it_lives_and_on_its_thread() {
        const HOUR: Duration = Duration::from_secs(3600);
        assert_eq!(left_of(HOUR), HOUR);
        let outer = Deadline::begin(HOUR / 2);
        assert!(left_of(HOUR) <= HOUR / 2 && HOUR / 3 < left_of(HOUR));
        {
            let _longer = Deadline::begin(HOUR);
            assert!(left_of(HOUR) <= HOUR / 2);
            let _over = Deadline::begin(Duration::ZERO);
            assert_eq!(left_of(HOUR), Duration::ZERO);
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(left_of(HOUR), HOUR));
            });
        }
        assert!(HOUR / 3 < left_of(HOUR));
        drop(outer);
        assert_eq!(left_of(HOUR), HOUR);
    }
}
