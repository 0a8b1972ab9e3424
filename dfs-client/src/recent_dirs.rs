//! Attributes of directories as they came with answers to this client's own changes of names.
//!
//! The kernel forgets a directory's attributes whenever it changes a name in it, and asks for them before the next
//! step: for untar and `rm -r` once for every file. Disposable: what is forgotten costs a request.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_core::ids::InodeNo;
use dfs_core::namespace::Attr;

use crate::session::lock;

/// Directories remembered before all are forgotten.
const DIRECTORIES_MAX: usize = 1024;

#[derive(Default)]
pub(crate) struct RecentDirs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    held: HashMap<InodeNo, (Attr, Instant)>,
    /// What was asked for before this may be older than a change that says nothing about attributes.
    barrier: Option<Instant>,
}

impl RecentDirs {
    /// `attrs` came with an answer to a request of `asked_at`.
    pub(crate) fn learn(&self, attrs: Vec<Attr>, asked_at: Instant) {
        let mut inner = lock(&self.inner);
        if inner.barrier.is_some_and(|barrier| asked_at <= barrier) {
            return;
        }
        if DIRECTORIES_MAX < inner.held.len() {
            inner.held.clear();
        }
        for attr in attrs {
            let newer =
                inner.held.get(&attr.ino).is_none_or(|(known, _)| known.change <= attr.change);
            if newer {
                inner.held.insert(attr.ino, (attr, asked_at));
            }
        }
    }

    /// This client has changed attributes by other means.
    pub(crate) fn forget(&self) {
        let mut inner = lock(&self.inner);
        inner.held.clear();
        inner.barrier = Some(Instant::now());
    }

    /// With how old it may be.
    pub(crate) fn get(&self, ino: InodeNo) -> Option<(Attr, Duration)> {
        let inner = lock(&self.inner);
        inner.held.get(&ino).map(|(attr, asked_at)| (attr.clone(), asked_at.elapsed()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dfs_core::command::{Change, Command, NewKind, Outcome};
    use dfs_core::ids::FsId;
    use dfs_core::meta::{MemStore, apply, attr, init};
    use dfs_core::results::Results;
    use dfs_core::time::WallTime;

    pub(crate) fn root_after(names: i64) -> Attr {
        let mut store = MemStore::default();
        init(&mut store, FsId(1), 3, 2, WallTime(1));
        for n in 0..names {
            let change = Change::Create {
                parent: InodeNo::ROOT,
                name: n.to_string().into_bytes(),
                kind: NewKind::Directory,
                mode: 0o755,
                umask: 0,
                uid: 0,
                gid: 0,
                layout: None,
                open_existing: false,
            };
            let command =
                Command { at: WallTime(n + 2), id: None, results: Results::default(), change };
            assert!(matches!(apply(&mut store, &command), Outcome::Entry { .. }));
        }
        attr(&store, InodeNo::ROOT).unwrap()
    }

    #[test]
    fn the_newest_is_kept_whatever_the_order_of_answers() {
        let recent = RecentDirs::default();
        let (old, new) = (root_after(1), root_after(2));
        recent.learn(vec![new.clone()], Instant::now());
        recent.learn(vec![old], Instant::now());
        assert_eq!(recent.get(InodeNo::ROOT).map(|(attr, _)| attr.change), Some(new.change));
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_change_of_attributes_is_not_taken() {
        let recent = RecentDirs::default();
        let asked_at = Instant::now();
        recent.learn(vec![root_after(1)], asked_at);
        recent.forget();
        assert!(recent.get(InodeNo::ROOT).is_none());
        recent.learn(vec![root_after(1)], asked_at);
        assert!(recent.get(InodeNo::ROOT).is_none());
    }
}
