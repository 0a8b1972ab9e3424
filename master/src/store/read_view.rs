use std::fmt;
use std::sync::Arc;

use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::codec::Wire;
use dfs_proto::convert::{decode_key, encode_key};

use super::merged::Merged;
use super::recent::{Batch, Recent};
use super::{Table, fatal};

/// The state after one batch, whatever is applied meanwhile. Any number of threads may have one each, or share one.
#[derive(Clone, Default)]
pub struct ReadView {
    pub(super) batch: Batch,
    /// What changed after `flushing`.
    pub(super) recent: Arc<Recent>,
    /// What is being written to the file.
    pub(super) flushing: Arc<Recent>,
    /// The file before; `None`: nothing was ever written.
    pub(super) table: Option<Arc<Table>>,
}

impl ReadView {
    /// What `read` makes of each key with `from <= key < below`, in order.
    fn merged<'a, K: Ord, V, F>(
        &'a self,
        from: &[u8],
        below: Option<&[u8]>,
        read: F,
    ) -> impl Iterator<Item = (K, V)> + use<'a, K, V, F>
    where
        F: Fn(&[u8], Option<&[u8]>) -> (K, Option<V>) + Copy,
    {
        let table = self.table.as_ref().map(|table| {
            let range = match below {
                Some(below) => table.range::<&[u8]>(from..below),
                None => table.range::<&[u8]>(from..),
            };
            fatal(range, "read the metadata store")
        });
        let table = table.into_iter().flatten().map(move |pair| {
            let (key, value) = fatal(pair, "read the metadata store");
            read(key.value(), Some(value.value()))
        });
        let flushing = self.flushing.range(from, below, self.batch, read);
        let recent = self.recent.range(from, below, self.batch, read);
        Merged::new(recent, Merged::new(flushing, table))
            .filter_map(|(key, value)| Some((key, value?)))
    }

    /// Every stored pair with `from <= key`, in key order, as bytes.
    pub(super) fn pairs(&self, from: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + use<'_> {
        self.merged(from, None, |key, value| (key.to_vec(), value.map(<[u8]>::to_vec)))
    }

    /// As [`MetaStore::range`], without a limit.
    pub(super) fn records(
        &self,
        from: &Key,
        below: &Key,
    ) -> impl Iterator<Item = (Key, Record)> + use<'_> {
        let (from, below) = (encode_key(from), encode_key(below));
        // A range that ends before it begins is empty, not an error.
        let below = if below < from { &from } else { &below };
        self.merged(&from, Some(below), |key, value| {
            let key = fatal(decode_key(key), "decode a key of the metadata store");
            (key, value.map(decode_record))
        })
    }
}

impl fmt::Debug for ReadView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadView").field("batch", &self.batch).finish_non_exhaustive()
    }
}

impl MetaStore for ReadView {
    fn get(&self, key: &Key) -> Option<Record> {
        let bytes = encode_key(key);
        let decode = |value: Option<&[u8]>| value.map(decode_record);
        for recent in [&self.recent, &self.flushing] {
            if let Some(found) = recent.get(&bytes, self.batch, decode) {
                return found;
            }
        }
        let found = fatal(self.table.as_ref()?.get(bytes.as_slice()), "read the metadata store");
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
        self.records(from, below).take(limit).collect()
    }
}

fn decode_record(bytes: &[u8]) -> Record {
    fatal(Record::from_bytes(bytes), "decode a record of the metadata store")
}
