use std::fmt;
use std::io;
use std::sync::Arc;

use dfs_core::meta::{Key, MetaStore, Record};
use dfs_proto::codec::Wire;
use dfs_proto::convert::{decode_key, encode_key};

use super::merged::Merged;
use super::recent::{Batch, Recent};
use super::seal::{Audit, unseal};
use super::{APPLIED_KEY, Applied, StoreError, Table, fatal};

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
    /// What `read` makes of each key with `from <= key < below`, in order; `open` gives the value of a key of the file.
    fn merged<'a, K: Ord, V, F, O>(
        &'a self,
        from: &[u8],
        below: Option<&[u8]>,
        read: F,
        mut open: O,
    ) -> impl Iterator<Item = (K, V)> + use<'a, K, V, F, O>
    where
        F: Fn(&[u8], Option<&[u8]>) -> (K, Option<V>) + Copy,
        O: for<'v> FnMut(&[u8], &'v [u8]) -> &'v [u8],
    {
        let table = self.table.as_ref().map(|table| {
            let range = match below {
                Some(below) => table.range::<&[u8]>(from..below),
                None => table.range::<&[u8]>(from..),
            };
            fatal(range, "read the metadata store")
        });
        let table = table.into_iter().flatten().map(move |pair| {
            let (key, sealed) = fatal(pair, "read the metadata store");
            read(key.value(), Some(open(key.value(), sealed.value())))
        });
        let flushing = self.flushing.range(from, below, self.batch, read);
        let recent = self.recent.range(from, below, self.batch, read);
        Merged::new(recent, Merged::new(flushing, table))
            .filter_map(|(key, value)| Some((key, value?)))
    }

    /// Gives every pair of the state to `each`, in key order.
    ///
    /// # Errors
    /// Those of `each`; `InvalidData` if the file is not what was written, which shows after the last pair.
    pub(super) fn for_each_pair(
        &self,
        mut each: impl FnMut(Vec<u8>, Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut audit = Audit::default();
        let copied = |key: &[u8], value: Option<&[u8]>| (key.to_vec(), value.map(<[u8]>::to_vec));
        // From the first tag on: what was applied is told apart from the state.
        let pairs =
            self.merged(&[1], None, copied, |key: &[u8], sealed: &[u8]| audit.look(key, sealed));
        for (key, value) in pairs {
            each(key, value)?;
        }
        self.end(audit).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Reads all of the file.
    ///
    /// # Errors
    /// `Damaged` if it is not what was written.
    pub fn verify(&self) -> Result<(), StoreError> {
        let mut audit = Audit::default();
        for pair in self.table.iter().flat_map(|table| table.range::<&[u8]>(&[1][..]..)).flatten() {
            let (key, sealed) = pair.map_err(redb::Error::from)?;
            audit.look(key.value(), sealed.value());
        }
        self.end(audit)
    }

    fn end(&self, audit: Audit) -> Result<(), StoreError> {
        let Some(table) = &self.table else { return Ok(()) };
        let applied = table.get(APPLIED_KEY).map_err(redb::Error::from)?;
        let missing = || StoreError::Damaged("what was applied is not recorded".to_owned());
        let (_, totals) = Applied::decode(applied.ok_or_else(missing)?.value())?;
        audit.end(totals).map_err(|broken| StoreError::Damaged(broken.to_string()))
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
        let read = |key: &[u8], value: Option<&[u8]>| {
            let key = fatal(decode_key(key), "decode a key of the metadata store");
            (key, value.map(decode_record))
        };
        self.merged(&from, Some(below), read, open)
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
        found.map(|sealed| decode_record(open(&bytes, sealed.value())))
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

fn open<'a>(key: &[u8], sealed: &'a [u8]) -> &'a [u8] {
    fatal(unseal(key, sealed), "read the metadata store")
}

fn decode_record(bytes: &[u8]) -> Record {
    fatal(Record::from_bytes(bytes), "decode a record of the metadata store")
}
