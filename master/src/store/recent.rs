//! Records changed since the file was last written, each with the batch that changed it: a reader passes over what is
//! newer than its view, so nothing is locked and nothing copied for it.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Bound;

use crossbeam_skiplist::SkipMap;

/// Number of a batch since the store was opened, from 1.
pub(super) type Batch = u64;

/// Ordered by key, the newest first.
#[derive(PartialEq, Eq)]
struct Version {
    key: Vec<u8>,
    batch: Batch,
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then(other.batch.cmp(&self.batch))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Written by one thread, read by many meanwhile.
#[derive(Default)]
pub(super) struct Recent {
    /// `None`: deleted.
    records: SkipMap<Version, Option<Box<[u8]>>>,
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recent").field("records", &self.records.len()).finish()
    }
}

impl Recent {
    pub(super) fn put(&self, key: Vec<u8>, batch: Batch, value: Option<Box<[u8]>>) {
        self.records.insert(Version { key, batch }, value);
    }

    /// What `read` makes of the value after `batch`; `None` if that batch and those before did not touch the key.
    pub(super) fn get<R>(
        &self,
        key: &[u8],
        batch: Batch,
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Option<R> {
        let wanted = Version { key: key.to_vec(), batch };
        let entry = self.records.lower_bound(Bound::Included(&wanted))?;
        (entry.key().key == key).then(|| read(entry.value().as_deref()))
    }

    /// What `read` makes of each key with `from <= key < below`, in order, as it was after `batch`.
    pub(super) fn range<'a, R, F>(
        &'a self,
        from: &[u8],
        below: Option<&[u8]>,
        batch: Batch,
        read: F,
    ) -> impl Iterator<Item = R> + use<'a, R, F>
    where
        F: Fn(&[u8], Option<&[u8]>) -> R,
    {
        // The newest possible version of a key is the first one.
        let first = |key: &[u8]| Version { key: key.to_vec(), batch: Batch::MAX };
        let below = below.map_or(Bound::Unbounded, |key| Bound::Excluded(first(key)));
        let mut last: Option<crossbeam_skiplist::map::Entry<'a, Version, Option<Box<[u8]>>>> = None;
        self.records.range((Bound::Included(first(from)), below)).filter_map(move |entry| {
            let is_seen = last.as_ref().is_some_and(|last| last.key().key == entry.key().key);
            if is_seen || batch < entry.key().batch {
                return None;
            }
            let made = read(&entry.key().key, entry.value().as_deref());
            last = Some(entry);
            Some(made)
        })
    }

    /// The last version of each key.
    pub(super) fn newest(&self) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
        let read = |key: &[u8], value: Option<&[u8]>| (key.to_vec(), value.map(<[u8]>::to_vec));
        self.range(&[], None, Batch::MAX, read)
    }
}
