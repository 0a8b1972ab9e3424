//! The protocol with one rule broken each. The tests demand that every one of them is caught.

/// One broken rule. Nine of DECISIONS 1, then seven of PROTOCOL §7.1, then
/// two that came up while this model was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A dirty replica serves after a reboot as if nothing were missing.
    DirtyServes,
    /// A rebooted replica counts operations whose bytes were never synced.
    CountsUnstable,
    /// The DIRTY mark is only in memory.
    DirtyNotDurable,
    /// The client frees the arena slot at the acknowledgement and no longer sends the operation again.
    FreedAtAck,
    /// The DIRTY mark ends with the member's own sync.
    ClearsOnOwnSync,
    /// `Adopt` copies what the source has now, not what it reported.
    CopiesPresentLog,
    /// A NOT_CURRENT member declares itself current.
    ClearsOwnMark,
    /// An adopted log is acknowledged before it is on disk.
    AdoptNotSynced,
    /// A new configuration needs the promise of any one member, NOT_CURRENT or not.
    AnyMemberSuffices,
    /// Members and source may come from outside the last activated configuration.
    ForeignMembers,
    /// A replica accepts messages of an older version.
    AcceptsOlderVersion,
    /// An operation counts as acknowledged, and as stable, when a majority has it.
    AckOnMajority,
    /// The primary gives an operation it already has a new sequence number.
    NoDedup,
    /// A primary serves from its adoption on, before `Activate`.
    ServesBeforeActivate,
    /// A crash undoes a promise, and a repeated `Promise` leaves the old report in use.
    PromiseLost,
    /// A restarted primary takes up its version again.
    ResumeInSameVersion,
    /// An attempt after an abandoned one that went on after the wait takes what was adopted there as complete.
    ForgetsTheWait,
    /// A member with an emptied disk counts as one that was never written to.
    EmptiedDiskVotes,
}

#[cfg(test)]
mod tests {
    use super::Mutant;
    use crate::properties::{I6, I7, I8, I9, I10, I11, I12, I21, IN_MEMORY, KEPT};
    use crate::scenarios::{ALL_THREE, Bounds, FIRST_TWO, NO_FAULTS, check_caught};

    /// Two members and a spare, one operation, one reconfiguration.
    const PAIR: Bounds = Bounds { ops: 1, versions: 2, members: FIRST_TWO, ..NO_FAULTS };
    const TRIPLE: Bounds = Bounds { members: ALL_THREE, ..PAIR };
    const ONE_REBOOT: Bounds = Bounds { reboots: 1, ..PAIR };

    #[test]
    fn a_dirty_replica_must_not_serve_after_a_reboot() {
        check_caught(Mutant::DirtyServes, ONE_REBOOT, I12);
    }

    #[test]
    fn a_rebooted_source_must_not_count_unstable_operations() {
        check_caught(Mutant::CountsUnstable, ONE_REBOOT, I21);
    }

    #[test]
    fn the_dirty_mark_must_be_durable() {
        check_caught(Mutant::DirtyNotDurable, ONE_REBOOT, I12);
    }

    #[test]
    fn a_slot_must_not_be_freed_at_acknowledgement() {
        check_caught(Mutant::FreedAtAck, Bounds { reboots: 2, ..PAIR }, KEPT);
    }

    #[test]
    fn the_dirty_mark_must_outlive_the_own_sync() {
        check_caught(Mutant::ClearsOnOwnSync, PAIR, I12);
    }

    #[test]
    fn adopt_must_copy_what_was_reported() {
        check_caught(Mutant::CopiesPresentLog, ONE_REBOOT, I12);
    }

    #[test]
    fn a_not_current_member_must_not_clear_its_own_mark() {
        check_caught(Mutant::ClearsOwnMark, ONE_REBOOT, I12);
    }

    #[test]
    fn an_adopted_log_must_be_synced() {
        check_caught(Mutant::AdoptNotSynced, ONE_REBOOT, KEPT);
    }

    #[test]
    fn one_not_current_member_must_not_decide_alone() {
        check_caught(Mutant::AnyMemberSuffices, ONE_REBOOT, I12);
    }

    #[test]
    fn members_must_come_from_the_last_activated_configuration() {
        check_caught(Mutant::ForeignMembers, PAIR, KEPT);
        check_caught(Mutant::ForeignMembers, PAIR, I7);
    }

    #[test]
    fn a_replica_must_refuse_older_versions() {
        check_caught(Mutant::AcceptsOlderVersion, PAIR, KEPT);
    }

    #[test]
    fn a_majority_must_not_suffice() {
        check_caught(Mutant::AckOnMajority, TRIPLE, KEPT);
        check_caught(Mutant::AckOnMajority, TRIPLE, IN_MEMORY);
        check_caught(Mutant::AckOnMajority, TRIPLE, I8);
    }

    #[test]
    fn a_retry_must_be_recognised() {
        check_caught(Mutant::NoDedup, PAIR, I10);
    }

    #[test]
    fn a_primary_must_not_serve_before_activate() {
        check_caught(Mutant::ServesBeforeActivate, PAIR, I7);
        // The member left out still serves the last activated version and is read next.
        check_caught(Mutant::ServesBeforeActivate, PAIR, I12);
    }

    #[test]
    fn a_promise_must_survive_a_crash() {
        check_caught(Mutant::PromiseLost, ONE_REBOOT, KEPT);
        check_caught(Mutant::PromiseLost, ONE_REBOOT, I6);
    }

    #[test]
    fn a_primary_must_not_lead_a_version_twice() {
        let restart = Bounds { ops: 2, restarts: 1, ..PAIR };
        check_caught(Mutant::ResumeInSameVersion, restart, I10);
        check_caught(Mutant::ResumeInSameVersion, restart, I9);
    }

    #[test]
    fn the_wait_must_be_remembered_over_attempts() {
        check_caught(
            Mutant::ForgetsTheWait,
            Bounds { versions: 3, reboots: 1, forces: 1, ..PAIR },
            I12,
        );
    }

    #[test]
    fn an_emptied_disk_must_not_vote() {
        check_caught(Mutant::EmptiedDiskVotes, Bounds { disk_losses: 1, ..PAIR }, KEPT);
    }

    #[test]
    fn order_is_lost_with_a_lost_operation() {
        check_caught(Mutant::ForeignMembers, Bounds { ops: 2, ..PAIR }, I11);
    }
}
