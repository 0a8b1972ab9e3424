//! The required behaviours, case by case: what each of the five requirement sets asks of the product, driven as its user
//! would. A test is named by its case, `case_SET_NUMBER_…`; `tests/run behaviours` prints all cases, also those that have
//! no test yet. `docs/behaviours.md` explains the sets.

#![allow(clippy::unwrap_used, reason = "a test that cannot look has failed")]

mod fleet;
mod memory;
mod set_0;
mod set_1;
mod set_2;
mod set_3;
mod set_4;

use tests::Cluster;

/// Skips a test that needs a mount where there is none.
macro_rules! need_fuse {
    () => {
        if let Some(reason) = tests::no_fuse() {
            return tests::skipped(&reason);
        }
    };
}
pub(crate) use need_fuse;

/// What a command says that must fail with this exit code: one line, and nothing on standard output.
#[track_caller]
fn refusal(cluster: &Cluster, arguments: &[&str], code: i32) -> String {
    let output = cluster.try_dfs(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty() && said.lines().count() == 1, "{arguments:?}: {said}");
    said
}
