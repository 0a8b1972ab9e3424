//! The open transaction of one batch: records that many of its commands touch (superblock, a directory) are
//! encoded and written once, at its end.

use std::collections::BTreeMap;
use std::ops::Bound;

use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::codec::Wire;
use dfs_proto::convert::encode_key;

use super::RECORD_OVERHEAD_BYTES;
use super::merged::Merged;
use super::read_view::ReadView;

pub(super) struct OpenBatch {
    before: ReadView,
    /// `None`: deleted.
    pending: BTreeMap<Key, Option<Record>>,
}

impl OpenBatch {
    pub(super) fn new(before: ReadView) -> Self {
        Self { before, pending: BTreeMap::new() }
    }

    /// Adds what is pending; answers the view after it and how many bytes changed.
    pub(super) fn finish(self) -> (ReadView, u64) {
        let mut view = self.before;
        view.batch += 1;
        let mut changed_bytes = 0;
        for (key, record) in self.pending {
            let key = encode_key(&key);
            let value = record.map(|record| record.to_bytes().into_boxed_slice());
            let value_bytes = value.as_ref().map_or(0, |value| value.len());
            changed_bytes += (key.len() + value_bytes) as u64 + RECORD_OVERHEAD_BYTES;
            view.recent.put(key, view.batch, value);
        }
        (view, changed_bytes)
    }
}

impl MetaStore for OpenBatch {
    fn get(&self, key: &Key) -> Option<Record> {
        match self.pending.get(key) {
            Some(pending) => pending.clone(),
            None => self.before.get(key),
        }
    }

    fn put(&mut self, key: Key, record: Record) {
        self.pending.insert(key, Some(record));
    }

    fn delete(&mut self, key: &Key) {
        self.pending.insert(key.clone(), None);
    }

    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, Record)> {
        if below <= from {
            return Vec::new();
        }
        let pending = self.pending.range::<Key, _>((Bound::Included(from), Bound::Excluded(below)));
        let pending = pending.map(|(key, record)| (key.clone(), record.clone()));
        let before = self.before.records(from, below).map(|(key, record)| (key, Some(record)));
        Merged::new(pending, before)
            .filter_map(|(key, record)| Some((key, record?)))
            .take(limit)
            .collect()
    }
}
