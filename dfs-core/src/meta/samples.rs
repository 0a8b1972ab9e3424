//! What the tests of the state machine begin with.

use super::{MemStore, apply};
use crate::check::check;
use crate::command::{Change, Command, Outcome};
use crate::ids::{Epoch, FsId};
use crate::results::Results;
use crate::time::WallTime;

/// A file system in its first reign.
pub(super) fn started() -> MemStore {
    let mut store = MemStore::default();
    let fs = FsId(1);
    let start = Change::Start { epoch: Epoch(1), nonce: 1, fs, replication: 3, min_replicas: 2 };
    run(&mut store, start);
    store
}

/// `change`, after which everything still fits together.
pub(super) fn run(store: &mut MemStore, change: Change) -> Outcome {
    run_at(store, WallTime(5), change)
}

pub(super) fn run_at(store: &mut MemStore, at: WallTime, change: Change) -> Outcome {
    let outcome = apply(store, &Command { at, id: None, results: Results::default(), change });
    let wrong: Vec<String> = check(store).iter().map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    outcome
}
