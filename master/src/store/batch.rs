//! The open transaction of one batch: records that many of its commands touch (superblock, a directory) are
//! encoded and written once, at its end.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::codec::Wire;
use dfs_proto::convert::encode_key;
use redb::{ReadableTable, Table};

use super::read_view::{decode_pair, decode_record};
use super::{RECORD_OVERHEAD_BYTES, fatal};

type OpenTable<'a> = Table<'a, &'static [u8], &'static [u8]>;

pub(super) struct OpenBatch<'a> {
    table: OpenTable<'a>,
    /// `None`: deleted.
    pending: BTreeMap<Key, Option<Record>>,
}

impl<'a> OpenBatch<'a> {
    pub(super) fn new(table: OpenTable<'a>) -> Self {
        Self { table, pending: BTreeMap::new() }
    }

    /// Writes what is pending; answers the table and how many bytes changed.
    pub(super) fn finish(mut self) -> Result<(OpenTable<'a>, u64), redb::Error> {
        let mut changed_bytes = 0;
        let mut value = Vec::new();
        for (key, record) in self.pending {
            let key = encode_key(&key);
            value.clear();
            match record {
                Some(record) => {
                    record.put(&mut value);
                    self.table.insert(key.as_slice(), value.as_slice())?;
                }
                None => {
                    self.table.remove(key.as_slice())?;
                }
            }
            changed_bytes += (key.len() + value.len()) as u64 + RECORD_OVERHEAD_BYTES;
        }
        Ok((self.table, changed_bytes))
    }
}

impl MetaStore for OpenBatch<'_> {
    fn get(&self, key: &Key) -> Option<Record> {
        if let Some(pending) = self.pending.get(key) {
            return pending.clone();
        }
        let found = fatal(self.table.get(encode_key(key).as_slice()), "read the metadata store");
        found.map(|bytes| decode_record(bytes.value()))
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
        let (first, last) = (encode_key(from), encode_key(below));
        let stored = fatal(
            self.table.range::<&[u8]>(first.as_slice()..last.as_slice()),
            "read the metadata store",
        )
        .map(|pair| {
            let (key, value) = fatal(pair, "read the metadata store");
            decode_pair(key.value(), value.value())
        });
        Merged { pending: pending.peekable(), stored: stored.peekable() }.take(limit).collect()
    }
}

/// Both in key order; what is pending hides what is stored.
struct Merged<'a, S: Iterator<Item = (Key, Record)>> {
    pending: Peekable<btree_map::Range<'a, Key, Option<Record>>>,
    stored: Peekable<S>,
}

impl<S: Iterator<Item = (Key, Record)>> Iterator for Merged<'_, S> {
    type Item = (Key, Record);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((pending, _)) = self.pending.peek() else { return self.stored.next() };
            if self.stored.peek().is_some_and(|(stored, _)| stored < *pending) {
                return self.stored.next();
            }
            if self.stored.peek().is_some_and(|(stored, _)| stored == *pending) {
                self.stored.next();
            }
            if let Some((key, Some(record))) = self.pending.next() {
                return Some((key.clone(), record.clone()));
            }
        }
    }
}
