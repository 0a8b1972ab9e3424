use std::collections::BTreeMap;

use super::{Key, MetaStore, Record};

/// A [`MetaStore`] in memory: tests, simulation, and the model that other stores are compared with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemStore {
    records: BTreeMap<Key, Record>,
}

impl MemStore {
    /// An empty store, without a file system.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All records in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.records.iter()
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record at all, not even a superblock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl MetaStore for MemStore {
    fn get(&self, key: &Key) -> Option<Record> {
        self.records.get(key).cloned()
    }

    fn put(&mut self, key: Key, record: Record) {
        self.records.insert(key, record);
    }

    fn delete(&mut self, key: &Key) {
        self.records.remove(key);
    }

    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, Record)> {
        if below <= from {
            return Vec::new();
        }
        self.records
            .range(from..below)
            .take(limit)
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect()
    }
}
