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
    /// The master wishes this server to be silent, whatever its lease.
    suspended: AtomicBool,
    /// This start's directory is known to be the newest of its disk: an older copy takes part in nothing, also before the
    /// first answer, which its address may be asked for by whoever knew the newer one.
    admitted: AtomicBool,
}

impl Fence {
    pub(crate) fn new(has_master: bool) -> Self {
        Self {
            serve_until: AtomicU64::new(if has_master { 0 } else { u64::MAX }),
            answered: AtomicBool::new(!has_master),
            suspended: AtomicBool::new(false),
            admitted: AtomicBool::new(!has_master),
        }
    }

    /// The heartbeat sent at `sent_nanos` was answered.
    pub(crate) fn on_answer(&self, sent_nanos: u64, dead_after_ms: u32) {
        let lease = u64::from(dead_after_ms) * 1_000_000 / 10 * 8;
        self.answered.store(true, Ordering::Release);
        self.serve_until.fetch_max(sent_nanos.saturating_add(lease), Ordering::AcqRel);
    }

    /// When the lease ends, on our clock.
    pub(crate) fn serve_until(&self) -> u64 {
        self.serve_until.load(Ordering::Acquire)
    }

    /// The master wishes silence, or no longer. Its end is no leave to serve: that comes with the next answer.
    pub(crate) fn suspend(&self, suspended: bool) {
        if suspended {
            self.close();
        }
        self.suspended.store(suspended, Ordering::Release);
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// # Errors
    /// `Fenced` while the master wishes silence.
    pub(crate) fn check_not_suspended(&self) -> Result<(), DataFailure> {
        if self.is_suspended() {
            return Err(DataFailure::Fenced { reason: "suspended by `dfs failover`".to_owned() });
        }
        Ok(())
    }

    /// The master's log has this start's mark, or it is refused as an older copy.
    pub(crate) fn admit(&self, admitted: bool) {
        self.admitted.store(admitted, Ordering::Release);
        if !admitted {
            self.close();
        }
    }

    /// Whether this server may do anything for anybody: it is not wished silent, and its directory is no older copy.
    ///
    /// # Errors
    /// `Fenced` if not.
    pub(crate) fn check_takes_part(&self) -> Result<(), DataFailure> {
        self.check_not_suspended()?;
        if !self.admitted.load(Ordering::Acquire) {
            let reason = "the master has not admitted this data directory".to_owned();
            return Err(DataFailure::Fenced { reason });
        }
        Ok(())
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
        self.check_takes_part().is_err() || self.serve_until() <= monotonic_nanos()
    }

    /// # Errors
    /// `Fenced` while this server must not serve.
    pub(crate) fn check(&self) -> Result<(), DataFailure> {
        self.check_takes_part()?;
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
        fence.admit(true);
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

    #[test]
    fn a_suspended_server_serves_nothing_until_it_is_answered_after_the_end_of_the_wish() {
        let fence = Fence::new(true);
        fence.admit(true);
        fence.on_answer(monotonic_nanos(), 60_000);
        fence.suspend(true);
        assert!(fence.is_closed() && fence.check().is_err());
        // An answer on its way changes nothing.
        fence.on_answer(monotonic_nanos(), 60_000);
        assert!(fence.check().is_err() && fence.check_not_suspended().is_err());
        fence.suspend(true);
        fence.suspend(false);
        assert!(fence.check_not_suspended().is_ok() && fence.check().is_err());
        fence.on_answer(monotonic_nanos(), 60_000);
        assert!(fence.check().is_ok());
    }

    #[test]
    fn a_directory_that_is_not_admitted_takes_part_in_nothing_whatever_is_answered() {
        let fence = Fence::new(true);
        fence.on_answer(monotonic_nanos(), 60_000);
        assert!(fence.check().is_err() && fence.check_takes_part().is_err());
        assert!(fence.check_not_suspended().is_ok(), "copies of the metadata are given");
        fence.admit(true);
        assert!(fence.check().is_ok() && fence.check_takes_part().is_ok());
        fence.admit(false);
        fence.on_answer(monotonic_nanos(), 60_000);
        assert!(fence.check().is_err() && fence.check_takes_part().is_err());
    }
}
