use std::fmt;

use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::codec::Wire;
use dfs_proto::convert::{decode_key, encode_key};

use super::{Table, fatal};

/// The state after one batch, whatever is applied meanwhile. Any number of threads may have one each, or share one.
pub struct ReadView {
    /// `None`: nothing was ever written.
    table: Option<Table>,
}

impl ReadView {
    pub(super) fn new(table: Option<Table>) -> Self {
        Self { table }
    }

    /// Every stored pair with `from <= key`, in key order, as bytes.
    pub(super) fn pairs(&self, from: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let range =
            self.table.as_ref().map(|table| fatal(table.range(from..), "read the metadata store"));
        range.into_iter().flatten().map(|pair| {
            let (key, value) = fatal(pair, "read the metadata store");
            (key.value().to_vec(), value.value().to_vec())
        })
    }
}

impl fmt::Debug for ReadView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadView").finish_non_exhaustive()
    }
}

impl MetaStore for ReadView {
    fn get(&self, key: &Key) -> Option<Record> {
        let table = self.table.as_ref()?;
        let found = fatal(table.get(encode_key(key).as_slice()), "read the metadata store");
        found.map(|bytes| decode_record(bytes.value()))
    }

    /// Nobody is given a view to write to: it is handed out behind `&`.
    fn put(&mut self, key: Key, _: Record) {
        unreachable!("put {key:?} into a read view");
    }

    fn delete(&mut self, key: &Key) {
        unreachable!("delete {key:?} from a read view");
    }

    fn range(&self, from: &Key, below: &Key, limit: usize) -> Vec<(Key, Record)> {
        let Some(table) = &self.table else { return Vec::new() };
        if below <= from {
            return Vec::new();
        }
        let (first, last) = (encode_key(from), encode_key(below));
        let range = table.range::<&[u8]>(first.as_slice()..last.as_slice());
        fatal(range, "read the metadata store")
            .take(limit)
            .map(|pair| {
                let (key, value) = fatal(pair, "read the metadata store");
                decode_pair(key.value(), value.value())
            })
            .collect()
    }
}

pub(super) fn decode_record(bytes: &[u8]) -> Record {
    fatal(Record::from_bytes(bytes), "decode a record of the metadata store")
}

pub(super) fn decode_pair(key: &[u8], value: &[u8]) -> (Key, Record) {
    (fatal(decode_key(key), "decode a key of the metadata store"), decode_record(value))
}
