//! What the kernel may believe, and for how long: lifetimes, and whether cached pages still hold.
//!
//! Two small tables, both disposable: losing an entry costs a re-read, never a wrong answer.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_client::error::OpenId;
use dfs_core::ids::InodeNo;

/// Lifetimes of what the kernel caches. A name that is not there is never cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    pub attr: Duration,
    pub entry: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { attr: Duration::from_secs(1), entry: Duration::from_secs(1) }
    }
}

/// The change number at which each inode's pages in the kernel's cache were begun (DECISIONS 3).
///
/// Pages read later hold what is at least as new, so an equal number at an open means that nothing moved since. The kernel
/// drops pages when it has the answer to an open, not before: until the file that was opened is used, another open must
/// not count on it.
#[derive(Debug)]
pub struct PageVersions {
    table: Mutex<Bounded<InodeNo, u64>>,
    /// Opens with whose answers pages are dropped, and at which change number: until they are used, or released.
    dropping: Mutex<BTreeMap<OpenId, (InodeNo, u64)>>,
    /// How many these are.
    droppings: AtomicUsize,
}

impl PageVersions {
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            table: Mutex::new(Bounded::new(entries_max)),
            dropping: Mutex::default(),
            droppings: AtomicUsize::new(0),
        }
    }

    /// For an inode found at `change`: whether what is cached may stay. If not, the caller drops it and says so:
    /// [`Self::dropping_with`], [`Self::dropped`]. `only_here` says whether all changes since a number were this mount's
    /// own: those are in its pages.
    pub fn may_keep(&self, ino: InodeNo, change: u64, only_here: impl Fn(u64) -> bool) -> bool {
        let mut table = lock(&self.table);
        let keep = table.get(&ino).is_some_and(|begun| *begun == change || only_here(*begun));
        if keep {
            table.insert(ino, change);
        }
        keep
    }

    /// The pages go when the kernel has the answer to `open`.
    pub fn dropping_with(&self, open: OpenId, ino: InodeNo, change: u64) {
        let mut dropping = lock(&self.dropping);
        dropping.insert(open, (ino, change));
        self.droppings.store(dropping.len(), Ordering::Release);
    }

    /// Whether pages of it will go with an answer.
    #[must_use]
    pub fn is_dropping(&self, ino: InodeNo) -> bool {
        self.droppings.load(Ordering::Acquire) != 0
            && lock(&self.dropping).values().any(|(of, _)| *of == ino)
    }

    /// The kernel does something with `open`: it had the answer.
    pub fn used(&self, open: OpenId) {
        if self.droppings.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut dropping = lock(&self.dropping);
        if let Some((ino, change)) = dropping.remove(&open) {
            self.droppings.store(dropping.len(), Ordering::Release);
            self.dropped(ino, change);
        }
    }

    /// There are no pages from before `change`.
    pub fn dropped(&self, ino: InodeNo, change: u64) {
        let mut table = lock(&self.table);
        if table.get(&ino).is_none_or(|begun| *begun < change) {
            table.insert(ino, change);
        }
    }

    /// Nothing that is cached of it may stay.
    pub fn forget(&self, ino: InodeNo) {
        let mut dropping = lock(&self.dropping);
        dropping.retain(|_, (of, _)| *of != ino);
        self.droppings.store(dropping.len(), Ordering::Release);
        lock(&self.table).remove(&ino);
    }
}

pub(crate) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size that the kernel has of each inode, at most.
///
/// It reads ahead in several requests at once as far as that reaches. Is the file shorter, they are answered short in any
/// order, and the kernel takes the first answer for the end: behind the real one a program would read zeros. What it
/// was told longer ago than attributes live does not matter: at an open it asks anew.
#[derive(Debug)]
pub struct KernelSizes {
    table: Mutex<Bounded<InodeNo, Told>>,
    /// Counts what the kernel is told and does.
    clock: AtomicU64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Told {
    size: u64,
    /// When something of the inode was told or done, by [`KernelSizes::clock`].
    at: u64,
}

impl KernelSizes {
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { table: Mutex::new(Bounded::new(entries_max)), clock: AtomicU64::new(0) }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::AcqRel) + 1
    }

    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    /// It is told `size` in an answer.
    pub fn told(&self, ino: InodeNo, size: u64) {
        let at = self.tick();
        lock(&self.table).insert(ino, Told { size, at });
    }

    /// It finds out by itself that the file reaches so far, or counts on what an open found.
    pub fn reaches(&self, ino: InodeNo, size: u64) {
        let at = self.tick();
        let mut table = lock(&self.table);
        let known = table.get(&ino).copied().unwrap_or_default();
        table.insert(ino, Told { size: known.size.max(size), at });
    }

    /// It may be told `size` later.
    pub fn may_learn(&self, ino: InodeNo, size: u64) {
        let mut table = lock(&self.table);
        let known = table.get(&ino).copied().unwrap_or_default();
        table.insert(ino, Told { size: known.size.max(size), ..known });
    }

    /// Whether something of `ino` was told or done since `clock`: what was asked before may be older.
    #[must_use]
    pub fn touched_since(&self, ino: InodeNo, clock: u64) -> bool {
        lock(&self.table).get(&ino).is_some_and(|known| clock < known.at)
    }

    /// Whether it may believe that the file is longer than `size`.
    #[must_use]
    pub fn may_exceed(&self, ino: InodeNo, size: u64) -> bool {
        let table = lock(&self.table);
        table.get(&ino).is_some_and(|known| size < known.size)
    }
}

/// Until when the kernel may believe the attributes it has of each inode, and as of which change.
///
/// Told to drop them, it disregards an answer that is on its way at that moment, and whoever asked goes on with what it had:
/// it reads up to an end that has moved, or seeks to it. So it is told only if it may believe something old; and of what
/// others change too it is told nothing that lasts, so that there is nothing to drop.
#[derive(Debug)]
pub struct Beliefs {
    table: Mutex<Bounded<InodeNo, Belief>>,
}

#[derive(Clone, Copy, Debug)]
struct Belief {
    until: Instant,
    /// `None`: of one of several, or of before.
    change: Option<u64>,
    /// What it is told until then does not last.
    shared_until: Option<Instant>,
}

impl Beliefs {
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { table: Mutex::new(Bounded::new(entries_max)) }
    }

    /// How long attributes as of `change` may live that it is told now, at most `most`.
    pub fn lifetime(&self, ino: InodeNo, change: u64, most: Duration) -> Duration {
        let now = Instant::now();
        let mut table = lock(&self.table);
        let shared_until = table.get(&ino).and_then(|belief| belief.shared_until);
        let shared_until = shared_until.filter(|until| now < *until);
        let lives = if shared_until.is_some() { Duration::ZERO } else { most };
        table.insert(ino, Belief { until: now + lives, change: Some(change), shared_until });
        lives
    }

    /// It may be told attributes as of `change` that live for `most`, whatever is known of the inode.
    pub fn may_learn(&self, ino: InodeNo, change: u64, most: Duration) {
        let now = Instant::now();
        let mut table = lock(&self.table);
        let known = table.get(&ino).copied();
        let believed = known.map_or(now, |belief| belief.until);
        // What is over does not count.
        let same = believed <= now || known.is_some_and(|belief| belief.change == Some(change));
        table.insert(
            ino,
            Belief {
                until: believed.max(now + most),
                change: same.then_some(change),
                shared_until: known.and_then(|belief| belief.shared_until),
            },
        );
    }

    /// As of which change it was told attributes last, if that is known.
    #[must_use]
    pub fn change(&self, ino: InodeNo) -> Option<u64> {
        lock(&self.table).get(&ino)?.change
    }

    /// Whether it is to be told now that the attributes of `ino` are old. Those of the next `shared_for` do not last.
    pub fn must_drop(&self, ino: InodeNo, shared_for: Duration) -> bool {
        let now = Instant::now();
        let mut table = lock(&self.table);
        let known = table.get(&ino).copied();
        let shared_until = known.and_then(|belief| belief.shared_until);
        let shared_until = shared_until.max(Some(now + shared_for)).filter(|until| now < *until);
        let change = known.and_then(|belief| belief.change);
        table.insert(ino, Belief { until: now, change, shared_until });
        known.is_none_or(|belief| now < belief.until)
    }
}

/// A set that is either complete or knows that it is not: full, it says "perhaps" to every question.
#[derive(Debug)]
pub struct Hints<K> {
    inner: Mutex<HintsInner<K>>,
    entries_max: usize,
}

#[derive(Debug)]
struct HintsInner<K> {
    held: HashSet<K>,
    overflown: bool,
}

impl<K: Eq + Hash> Hints<K> {
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            inner: Mutex::new(HintsInner { held: HashSet::new(), overflown: false }),
            entries_max,
        }
    }

    /// What it holds is not known: it says "perhaps" to every question.
    #[must_use]
    pub fn unknown() -> Self {
        let inner = HintsInner { held: HashSet::new(), overflown: true };
        Self { inner: Mutex::new(inner), entries_max: 0 }
    }

    pub fn add(&self, key: K) {
        let mut inner = lock(&self.inner);
        if inner.held.len() < self.entries_max {
            inner.held.insert(key);
        } else {
            inner.overflown = true;
        }
    }

    pub fn remove(&self, key: &K) {
        lock(&self.inner).held.remove(key);
    }

    /// False only if it was never added, or removed since.
    #[must_use]
    pub fn may_hold(&self, key: &K) -> bool {
        let inner = lock(&self.inner);
        inner.overflown || inner.held.contains(key)
    }

    #[must_use]
    pub fn is_surely_empty(&self) -> bool {
        let inner = lock(&self.inner);
        inner.held.is_empty() && !inner.overflown
    }
}

/// A map that forgets the oldest insertion when it is full.
#[derive(Debug)]
pub struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
    entries_max: usize,
}

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self { map: HashMap::new(), order: VecDeque::new(), entries_max }
    }

    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        // Keys that were removed are still in line: they go when their turn comes.
        while self.entries_max < self.order.len() {
            if let Some(oldest) = self.order.pop_front() {
                self.map.remove(&oldest);
            }
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.map.remove(key)?;
        self.order.retain(|held| held != key);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_may_believe_what_it_was_told_last_and_what_it_found_out_since() {
        let sizes = KernelSizes::new(2);
        let (file, other) = (InodeNo(2), InodeNo(3));
        assert!(!sizes.may_exceed(file, 100), "it was told nothing");
        sizes.reaches(other, 7);
        assert!(sizes.may_exceed(other, 6) && !sizes.may_exceed(other, 7));
        sizes.told(file, 100);
        assert!(!sizes.may_exceed(file, 100) && sizes.may_exceed(file, 99));
        sizes.reaches(file, 50);
        sizes.reaches(file, 200);
        assert!(sizes.may_exceed(file, 199) && !sizes.may_exceed(file, 200));
        sizes.told(file, 10);
        assert!(!sizes.may_exceed(file, 10));
        for ino in 10..20 {
            sizes.told(InodeNo(ino), 1);
        }
        assert!(!sizes.may_exceed(file, 0) && !sizes.may_exceed(other, 0), "bounded");
    }

    #[test]
    fn what_was_touched_since_a_moment_is_known() {
        let sizes = KernelSizes::new(8);
        let [told, grown, listed, other] = [2, 3, 4, 5].map(InodeNo);
        sizes.told(other, 1);
        let clock = sizes.clock();
        sizes.told(told, 1);
        sizes.reaches(grown, 1);
        sizes.may_learn(listed, 1);
        let touched = [told, grown, listed, other].map(|ino| sizes.touched_since(ino, clock));
        assert_eq!(touched, [true, true, false, false]);
    }

    #[test]
    fn attributes_of_what_others_change_are_dropped_once_and_do_not_live() {
        let beliefs = Beliefs::new(8);
        let (ttl, long, file) = (Duration::from_secs(60), Duration::from_secs(60), InodeNo(2));
        assert!(beliefs.must_drop(file, long), "nothing is known of it");
        assert_eq!(beliefs.lifetime(file, 5, ttl), Duration::ZERO);
        assert!(!beliefs.must_drop(file, long), "there is nothing to drop");
        beliefs.may_learn(file, 5, ttl);
        assert!(beliefs.must_drop(file, long), "a listing brought some");
        assert!(!beliefs.must_drop(file, long));
        let other = InodeNo(3);
        assert_eq!(beliefs.lifetime(other, 5, ttl), ttl);
        assert!(beliefs.must_drop(other, Duration::ZERO));
        assert_eq!(beliefs.lifetime(other, 6, ttl), ttl, "nobody else changed it");
    }

    #[test]
    fn as_of_which_change_attributes_were_told_is_known_unless_they_are_mixed() {
        let beliefs = Beliefs::new(8);
        let (ttl, file) = (Duration::from_secs(60), InodeNo(2));
        assert_eq!(beliefs.change(file), None);
        beliefs.lifetime(file, 5, ttl);
        assert_eq!(beliefs.change(file), Some(5));
        beliefs.may_learn(file, 5, ttl);
        assert_eq!(beliefs.change(file), Some(5));
        beliefs.may_learn(file, 4, ttl);
        assert_eq!(beliefs.change(file), None);
        beliefs.lifetime(file, 6, ttl);
        assert_eq!(beliefs.change(file), Some(6));
    }

    const A: InodeNo = InodeNo(10);

    fn kept(pages: &PageVersions, change: u64, only_here: impl Fn(u64) -> bool) -> bool {
        let keep = pages.may_keep(A, change, only_here);
        if !keep {
            pages.dropped(A, change);
        }
        keep
    }

    #[test]
    fn pages_are_kept_only_under_an_equal_change_number() {
        let pages = PageVersions::new(4);
        let foreign = |_| false;
        assert!(!kept(&pages, 5, foreign), "nothing is known at first");
        assert!(kept(&pages, 5, foreign));
        assert!(!kept(&pages, 6, foreign));
        assert!(!kept(&pages, 5, foreign), "numbers only rise, but a wrong one must not match");
    }

    #[test]
    fn pages_are_kept_over_changes_of_this_mount_alone() {
        let pages = PageVersions::new(4);
        assert!(!kept(&pages, 5, |_| true), "what was never cached cannot be kept");
        assert!(kept(&pages, 8, |since| 5 <= since));
        assert!(!kept(&pages, 11, |since| 9 <= since));
        assert!(kept(&pages, 12, |since| 9 <= since), "begun anew at 11");
    }

    #[test]
    fn an_open_that_drops_pages_counts_when_it_is_used() {
        let pages = PageVersions::new(4);
        let (one, other) = (OpenId::new(1, false), OpenId::new(2, false));
        let keeps = |change| pages.may_keep(A, change, |_| false);
        pages.dropping_with(one, A, 5);
        assert!(!keeps(5), "the kernel may not have the answer yet");
        pages.used(other);
        assert!(!keeps(5));
        pages.used(one);
        assert!(keeps(5));
        // The later one is used first.
        pages.dropping_with(one, A, 6);
        pages.dropping_with(other, A, 7);
        pages.used(other);
        pages.used(one);
        assert!(keeps(7) && !keeps(6));
        pages.dropping_with(one, A, 8);
        pages.forget(A);
        pages.used(one);
        assert!(!keeps(7) && !keeps(8));
    }

    #[test]
    fn a_forgotten_inode_is_read_again() {
        let pages = PageVersions::new(2);
        for ino in 1..=3 {
            assert!(!pages.may_keep(InodeNo(ino), 1, |_| false));
            pages.dropped(InodeNo(ino), 1);
        }
        assert!(pages.may_keep(InodeNo(3), 1, |_| false));
        assert!(!pages.may_keep(InodeNo(1), 1, |_| false));
    }

    #[test]
    fn a_full_hint_says_perhaps() {
        let hints = Hints::new(1);
        assert!(!hints.may_hold(&1) && hints.is_surely_empty());
        hints.add(1);
        assert!(hints.may_hold(&1) && !hints.may_hold(&2));
        hints.add(2);
        assert!(hints.may_hold(&3));
        hints.remove(&1);
        assert!(!hints.is_surely_empty());
    }

    #[test]
    fn a_bounded_map_stays_bounded_under_removal() {
        let mut map = Bounded::new(2);
        for n in 0..100 {
            map.insert(n, n);
            map.remove(&n);
        }
        assert_eq!((map.map.len(), map.order.len()), (0, 0));
    }
}
