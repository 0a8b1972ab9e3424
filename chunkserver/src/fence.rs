//! Whether this server may serve: it was answered by the master recently enough (PROTOCOL §5.3).
//!
//! Counted from the moment the last answered heartbeat was *sent*, so that this server stops before the master, which
//! counts from receipt, believes it dead.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::data_rpc::DataFailure;
use dfs_service::clock::monotonic_nanos;

#[derive(Debug)]
pub(crate) struct Fence {
    /// Until then on our clock. `u64::MAX`: there is no master to ask.
    serve_until: AtomicU64,
    answered: AtomicBool,
}

impl Fence {
    pub(crate) fn new(has_master: bool) -> Self {
        Self {
            serve_until: AtomicU64::new(if has_master { 0 } else { u64::MAX }),
            answered: AtomicBool::new(!has_master),
        }
    }

    /// The heartbeat sent at `sent_nanos` was answered.
    pub(crate) fn on_answer(&self, sent_nanos: u64, dead_after_ms: u32) {
        let lease = u64::from(dead_after_ms) * 1_000_000 / 10 * 8;
        self.answered.store(true, Ordering::Release);
        self.serve_until.fetch_max(sent_nanos.saturating_add(lease), Ordering::AcqRel);
    }

    /// The master refused us.
    pub(crate) fn close(&self) {
        self.serve_until.store(0, Ordering::Release);
    }

    /// No answer came since this process began.
    pub(crate) fn was_never_answered(&self) -> bool {
        !self.answered.load(Ordering::Acquire)
    }

    /// How long this server may still serve; `None`: nobody has to let it.
    pub(crate) fn left_nanos(&self) -> Option<u64> {
        match self.serve_until.load(Ordering::Acquire) {
            u64::MAX => None,
            until => Some(until.saturating_sub(monotonic_nanos())),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.serve_until.load(Ordering::Acquire) <= monotonic_nanos()
    }

    /// # Errors
    /// `Fenced` while this server must not serve.
    pub(crate) fn check(&self) -> Result<(), DataFailure> {
        if self.is_closed() {
            return Err(DataFailure::Fenced { reason: "no answer from the master".to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serves_only_within_eight_tenths_of_dead_after_from_sending() {
        let fence = Fence::new(true);
        assert!(fence.is_closed() && fence.was_never_answered());
        let now = monotonic_nanos();
        fence.on_answer(now, 60_000);
        assert!(fence.check().is_ok());
        assert_eq!(fence.serve_until.load(Ordering::Acquire), now + 48_000_000_000);
        // A late answer to an older heartbeat takes nothing away.
        fence.on_answer(0, 1);
        assert!(fence.check().is_ok());
        assert!(fence.left_nanos().is_some_and(|left| left <= 48_000_000_000));
        fence.close();
        assert!(!fence.was_never_answered() && fence.left_nanos() == Some(0));
        assert!(fence.check().is_err());
        assert!(Fence::new(false).check().is_ok());
    }
}
