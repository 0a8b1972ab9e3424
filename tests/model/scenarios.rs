//! Bounds of the runs, running them, and printing what was searched.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

use crate::mutants::Mutant;
use crate::protocol::ChunkModel;

/// How much may happen in one run. Everything within is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) ops: u8,
    /// Highest version; 1 is active at the start, so there are `versions - 1` reconfigurations.
    pub(crate) versions: u8,
    pub(crate) reboots: u8,
    pub(crate) restarts: u8,
    /// How often the master may go on after the wait without a member that knows everything.
    pub(crate) forces: u8,
    pub(crate) disk_losses: u8,
    /// First configuration, bit per server; the others are spares and may become learners.
    pub(crate) members: u8,
}

pub(crate) const ALL_THREE: u8 = 0b111;
/// The third server is a spare.
pub(crate) const FIRST_TWO: u8 = 0b011;
/// Nothing happens here; scenarios name what they add.
pub(crate) const NO_FAULTS: Bounds = Bounds {
    ops: 1,
    versions: 1,
    reboots: 0,
    restarts: 0,
    forces: 0,
    disk_losses: 0,
    members: ALL_THREE,
};

/// One wide search at a time, with both threads: the tables of several would not fit into memory together.
static WIDE_SEARCH: Mutex<()> = Mutex::new(());

/// Larger bounds, for hours of search instead of minutes.
pub(crate) fn full() -> bool {
    std::env::var_os("DFS_MODEL_FULL").is_some_and(|value| value == "1")
}

/// Searches everything within `bounds` and fails on any violation, and on any goal not reached.
#[track_caller]
pub(crate) fn check_holds(name: &str, bounds: Bounds) {
    let _alone = WIDE_SEARCH.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let checker =
        search(bounds, None).threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    say(&format!(
        "{name}: {} states, {} steps, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
    ));
    checker.assert_properties();
}

/// Fails unless breaking the rule breaks `property` within `bounds`, in which the whole protocol holds.
#[track_caller]
pub(crate) fn check_caught(mutant: Mutant, bounds: Bounds, property: &'static str) {
    let started = Instant::now();
    let whole = search(bounds, None).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    for failing in whole.model().properties() {
        if failing.expectation.discovery_is_failure() {
            whole.assert_no_discovery(failing.name);
        }
    }
    // Depth by depth with one thread: the first counterexample is then a shortest one, in every run.
    let mut depth = 1;
    let (path, states) = loop {
        depth += 1;
        let checker = search(bounds, Some(mutant))
            .target_max_depth(depth)
            .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
            .spawn_bfs()
            .join();
        let states = checker.unique_state_count();
        if let Some(path) = checker.discovery(property) {
            break (path, states);
        }
        assert!(
            checker.max_depth() == depth,
            "{mutant:?} does not break {property:?} in {states} states of {bounds:?}"
        );
    };
    let steps = path.into_actions();
    let seconds = started.elapsed().as_secs_f64();
    say(&format!(
        "{mutant:?} breaks \"{property}\" in {} steps ({states} states, {seconds:.1} s): {steps:?}",
        steps.len()
    ));
}

fn search(bounds: Bounds, mutant: Option<Mutant>) -> CheckerBuilder<ChunkModel> {
    ChunkModel { bounds, mutant }.checker()
}

/// Prints also from a test that passes: what was searched is part of the result.
fn say(line: &str) {
    // Nothing is lost if nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}
