//! The unbroken protocol within bounds: nothing may be violated, everything named as a goal must be reached.

use crate::scenarios::{ALL_THREE, Bounds, FIRST_TWO, NO_FAULTS, check_holds, full};

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn three_members_survive_three_reboots_a_restart_and_the_wait() {
    check_holds(
        "2 operations, 1 reconfiguration, many reboots",
        Bounds {
            ops: 2,
            versions: 2,
            reboots: 3,
            restarts: 1,
            forces: 1,
            members: ALL_THREE,
            ..NO_FAULTS
        },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn three_members_survive_two_reconfigurations() {
    check_holds(
        "1 operation, 2 reconfigurations, all faults",
        Bounds {
            ops: 1,
            versions: 3,
            reboots: 2,
            restarts: 1,
            forces: 1,
            members: ALL_THREE,
            ..NO_FAULTS
        },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn concurrent_writes_survive_two_reconfigurations() {
    check_holds(
        "2 operations, 2 reconfigurations",
        Bounds { ops: 2, versions: 3, reboots: 1, members: ALL_THREE, ..NO_FAULTS },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn concurrent_writes_survive_learners() {
    check_holds(
        "2 operations, 2 reconfigurations, spare",
        Bounds { ops: 2, versions: 3, reboots: 1, members: FIRST_TWO, ..NO_FAULTS },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn three_operations_keep_their_order() {
    check_holds(
        "3 operations, 1 reconfiguration, spare",
        Bounds { ops: 3, versions: 2, reboots: 1, forces: 1, members: FIRST_TWO, ..NO_FAULTS },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn abandoned_attempts_do_no_harm() {
    check_holds(
        "1 operation, 3 reconfigurations, spare",
        Bounds { ops: 1, versions: 4, reboots: 1, forces: 1, members: FIRST_TWO, ..NO_FAULTS },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn emptied_disks_never_win() {
    check_holds(
        "2 operations, 1 reconfiguration, two lost disks",
        Bounds {
            ops: 2,
            versions: 2,
            reboots: 1,
            forces: 1,
            disk_losses: 2,
            members: ALL_THREE,
            ..NO_FAULTS
        },
    );
    check_holds(
        "1 operation, 2 reconfigurations, a lost disk, spare",
        Bounds {
            ops: 1,
            versions: 3,
            reboots: 1,
            forces: 1,
            disk_losses: 1,
            members: FIRST_TWO,
            ..NO_FAULTS
        },
    );
}

#[test]
#[cfg_attr(debug_assertions, ignore = "needs --release")]
fn larger_bounds_when_asked_for() {
    if !full() {
        return;
    }
    check_holds(
        "full: 2 operations, 2 reconfigurations, the wait",
        Bounds { ops: 2, versions: 3, reboots: 1, forces: 1, members: ALL_THREE, ..NO_FAULTS },
    );
    check_holds(
        "full: 2 operations, 2 reconfigurations, restart, the wait, spare",
        Bounds {
            ops: 2,
            versions: 3,
            reboots: 1,
            restarts: 1,
            forces: 1,
            members: FIRST_TWO,
            ..NO_FAULTS
        },
    );
    check_holds(
        "full: 3 operations, 1 reconfiguration, three members",
        Bounds {
            ops: 3,
            versions: 2,
            reboots: 2,
            restarts: 1,
            forces: 1,
            members: ALL_THREE,
            ..NO_FAULTS
        },
    );
    check_holds(
        "full: 1 operation, 3 reconfigurations, three members",
        Bounds { ops: 1, versions: 4, reboots: 1, forces: 1, members: ALL_THREE, ..NO_FAULTS },
    );
    check_holds(
        "full: 1 operation, 2 reconfigurations, all faults and a lost disk",
        Bounds {
            ops: 1,
            versions: 3,
            reboots: 2,
            restarts: 1,
            forces: 1,
            disk_losses: 1,
            members: ALL_THREE,
        },
    );
}
