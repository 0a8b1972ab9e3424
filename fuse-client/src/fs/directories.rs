//! Listing: the kernel asks for a few entries at a time, the master is asked for a thousand.
//!
//! What was fetched ahead is used only while this mount changed nothing since, and briefly, and nobody here has learned
//! or done anything that it contradicts: a listing must not overwrite what the kernel has learned meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::ids::InodeNo;
use dfs_proto::meta_rpc::EntryPlus;

use super::{Answer, FileSystem};
use crate::cache::Bounded;
use crate::errno::Errno;
use crate::seam::{Dot, Listing, Reply};

/// Entries asked of the master at once: with attributes, and without.
const FETCH_PLUS: u32 = 1024;
/// As the kernel asks for attributes at the start of every listing, and goes on so only if somebody wants them.
const FETCH_PLUS_FIRST: u32 = 128;
const FETCH_PLAIN: u32 = 4096;
/// Directories with entries fetched ahead.
const AHEAD_MAX: usize = 64;
const AHEAD_AGE_MAX: Duration = Duration::from_secs(1);
/// Entries with attributes handed out at once: more than fit into an answer.
const HANDED_MAX: usize = 512;
/// Cookies of `.` and `..`; the master uses neither.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// The last batch of entries that was fetched of each directory.
#[derive(Debug)]
pub(super) struct Listings {
    batches: Mutex<Bounded<InodeNo, Arc<Batch>>>,
    /// Counts this mount's changes.
    changes: AtomicU64,
}

/// Entries after the cookie `after`, in cookie order.
#[derive(Debug)]
struct Batch {
    after: u64,
    entries: Arc<Vec<EntryPlus>>,
    /// Nothing follows `entries`.
    end: bool,
    plus: bool,
    /// Before it was asked for.
    asked_at: Instant,
    changes: u64,
    /// Of [`crate::cache::KernelSizes`], when it was asked for.
    clock: u64,
}

impl Batch {
    /// Where the entries after `cookie` begin, if this batch knows.
    fn position(&self, cookie: u64) -> Option<usize> {
        let last = self.entries.last().map_or(self.after, |entry| entry.cookie);
        let known = self.after <= cookie && (cookie < last || cookie == last && self.end);
        known.then(|| self.entries.partition_point(|entry| entry.cookie <= cookie))
    }
}

impl Default for Listings {
    fn default() -> Self {
        Self { batches: Mutex::new(Bounded::new(AHEAD_MAX)), changes: AtomicU64::new(0) }
    }
}

impl Listings {
    /// This mount changed something: what was fetched before it is not handed out.
    pub(super) fn outdate(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn find(&self, ino: InodeNo, cookie: u64, plus: bool) -> Option<(Arc<Batch>, usize)> {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.get(&ino)?;
        let usable = (batch.plus || !plus)
            && batch.asked_at.elapsed() < AHEAD_AGE_MAX
            && batch.changes == self.changes.load(Ordering::Acquire);
        let position = batch.position(cookie).filter(|_| usable)?;
        Some((Arc::clone(batch), position))
    }

    /// Somebody was told what `name` stands for, or that it does not: what says otherwise is not handed out.
    pub(super) fn looked_up(&self, directory: InodeNo, name: &[u8], ino: Option<InodeNo>) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let says_otherwise = batches.get(&directory).is_some_and(|batch| {
            batch.entries.iter().any(|entry| entry.name == name && Some(entry.ino) != ino)
        });
        if says_otherwise {
            batches.remove(&directory);
        }
    }

    fn keep(&self, ino: InodeNo, batch: Arc<Batch>) {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).insert(ino, batch);
    }
}

impl FileSystem {
    pub(super) fn read_dir(&self, ino: InodeNo, cookie: u64, plus: bool) -> Answer {
        // The kernel has the real number of `..` from its own tree; its entry here names the directory itself.
        let dots: Vec<Dot> =
            [Dot { name: b".", ino, cookie: DOT }, Dot { name: b"..", ino, cookie: DOT_DOT }]
                .into_iter()
                .filter(|dot| cookie < dot.cookie)
                .collect();
        let after = if cookie <= DOT_DOT { 0 } else { cookie };
        // A listing that starts sees what is there now.
        let found = if cookie == 0 { None } else { self.listings.find(ino, after, plus) };
        let outdated = |batch: &Batch, from: usize| {
            let handed = batch.entries[from..].iter().take(HANDED_MAX);
            plus && handed.into_iter().any(|it| self.sizes.touched_since(it.ino, batch.clock))
        };
        // It may be so again soon.
        let few = found.as_ref().is_some_and(|(batch, from)| outdated(batch, *from));
        let known = found.filter(|_| !few);
        self.metrics.listings.inc(if known.is_some() { "memory" } else { "master" });
        let (batch, from) = match known {
            Some(found) => found,
            None => (self.fetch(ino, after, plus, few)?, 0),
        };
        let entries = Arc::clone(&batch.entries);
        let lifetimes = self.options.lifetimes;
        // One lifetime serves both in a listing; some of it is over.
        let ttl = lifetimes.attr.min(lifetimes.entry).saturating_sub(batch.asked_at.elapsed());
        let handed_max = if plus { HANDED_MAX } else { usize::MAX };
        let end = entries.len().min(from.saturating_add(handed_max));
        Ok(Reply::Entries(Listing { dots, range: from..end, entries, ttl }))
    }

    fn fetch(&self, ino: InodeNo, after: u64, plus: bool, few: bool) -> Result<Arc<Batch>, Errno> {
        let changes = self.listings.changes.load(Ordering::Acquire);
        let (clock, asked_at) = (self.sizes.clock(), Instant::now());
        let entries_max = match (plus, after) {
            (true, 0) => FETCH_PLUS_FIRST,
            (true, _) if few => FETCH_PLUS_FIRST,
            (true, _) => FETCH_PLUS,
            (false, _) => FETCH_PLAIN,
        };
        let (mut entries, end) = self.session.readdir(ino, after, entries_max, plus)?;
        for entry in &mut entries {
            entry.attr = entry.attr.take().map(|attr| self.session.overlay(attr));
            if let Some(attr) = &entry.attr {
                // If this one still fits into the answer.
                self.sizes.may_learn(attr.ino, attr.size);
                if plus {
                    self.beliefs.may_learn(attr.ino, attr.change, self.options.lifetimes.attr);
                }
            }
        }
        let entries = Arc::new(entries);
        let batch = Arc::new(Batch { after, entries, end, plus, asked_at, changes, clock });
        self.listings.keep(ino, Arc::clone(&batch));
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use dfs_core::namespace::FileKind;

    use super::*;

    const DIR: InodeNo = InodeNo(1);

    fn keep(listings: &Listings, plus: bool, end: bool) {
        let entry = |cookie| EntryPlus {
            cookie,
            name: vec![b'a'],
            ino: InodeNo(cookie),
            kind: FileKind::File,
            attr: None,
        };
        let batch = Batch {
            after: 0,
            entries: Arc::new(vec![entry(3), entry(5), entry(9)]),
            end,
            plus,
            asked_at: Instant::now(),
            changes: listings.changes.load(Ordering::Acquire),
            clock: 0,
        };
        listings.keep(DIR, Arc::new(batch));
    }

    #[track_caller]
    fn check(listings: &Listings, cookie: u64, plus: bool, expected: Option<usize>) {
        assert_eq!(listings.find(DIR, cookie, plus).map(|(_, position)| position), expected);
    }

    #[test]
    fn a_listing_goes_on_after_any_entry_also_one_that_is_gone() {
        let listings = Listings::default();
        keep(&listings, true, false);
        check(&listings, 0, true, Some(0));
        check(&listings, 3, true, Some(1));
        check(&listings, 4, true, Some(1));
        check(&listings, 9, true, None);
        keep(&listings, true, true);
        check(&listings, 9, true, Some(3));
        check(&listings, 10, true, None);
    }

    #[test]
    fn entries_fetched_before_a_change_are_fetched_again() {
        let listings = Listings::default();
        keep(&listings, true, true);
        listings.outdate();
        check(&listings, 3, true, None);
    }

    #[test]
    fn entries_that_a_lookup_contradicts_are_fetched_again() {
        let listings = Listings::default();
        keep(&listings, true, true);
        listings.looked_up(DIR, b"b", None);
        listings.looked_up(InodeNo(77), b"a", None);
        check(&listings, 3, true, Some(1));
        listings.looked_up(DIR, b"a", None);
        check(&listings, 3, true, None);
    }

    #[test]
    fn entries_without_attributes_do_not_serve_readdirplus() {
        let listings = Listings::default();
        keep(&listings, false, true);
        check(&listings, 3, true, None);
        check(&listings, 3, false, Some(1));
    }
}
