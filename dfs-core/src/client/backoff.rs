//! How long to wait before asking again.

/// First and longest pause between attempts, in milliseconds.
const PAUSE_MS_FIRST: u64 = 20;
const PAUSE_MS_MAX: u64 = 1000;

/// Pauses that double from 20 ms to 1 s, each shortened by up to half: clients that lost the same server at the same
/// moment must not come back at the same moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause in milliseconds. `random` is any number the caller drew.
    pub fn next_ms(&mut self, random: u64) -> u64 {
        let full = PAUSE_MS_FIRST.saturating_mul(1 << self.attempts.min(10)).min(PAUSE_MS_MAX);
        self.attempts = self.attempts.saturating_add(1);
        full - random % (full / 2 + 1)
    }

    /// Something worked: the next pause is the first again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_stay_between_half_and_full() {
        let mut backoff = Backoff::default();
        for expected in [20, 40, 80, 160, 320, 640, 1000, 1000] {
            let mut low = backoff;
            assert_eq!(backoff.next_ms(0), expected);
            let shortest = low.next_ms(expected / 2);
            assert_eq!(shortest, expected - expected / 2);
        }
        backoff.reset();
        assert_eq!(backoff.next_ms(0), 20);
    }
}
