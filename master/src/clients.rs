//! Clients as the master remembers them in memory: who was heard when, and what they have open.
//!
//! Opens are not logged (DECISIONS 13): after a restart clients send them again, most within [`GRACE_MS`], and nothing
//! without a name is reclaimed before.
//!
//! A client whose lease is over ends in this order (DECISIONS 12): it is fenced, in the log and here; chunkservers learn
//! it from the replies to their heartbeats and refuse it durably; when none is left that might serve it, it ends, and
//! only then its locks are free. One that says goodbye ends at once. Of both, replicas forget what they remember.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs_core::ids::{ClientId, InodeNo, ServerId};
use dfs_core::time::Timestamp;

/// Nothing is reclaimed for so long after a master's start.
pub const GRACE_MS: u64 = 30_000;
/// A client not heard for so long is ended (DECISIONS 12).
pub const LEASE_MS: u64 = 600_000;
/// Clients give a sign of life every 20 s: who has missed two of them is called silent.
const SILENT_MS: u64 = 45_000;
/// Files whose size is asked in one round.
const SETTLED_AT_ONCE: usize = 64;
/// Ended clients told in one reply.
const TOLD_MAX: usize = 1000;
/// Whoever looked a name up may open what it stood for, though another file was renamed over it: for longer than a mount
/// believes a name.
const REPLACED_MS: u64 = 3_000;
/// Most replaced inodes kept for that.
const REPLACED_MAX: usize = 100_000;
/// Clients that left, kept to be told; servers that missed one ask for it when they connect again.
const LEFT_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Clients {
    heard: BTreeMap<ClientId, Timestamp>,
    opens: BTreeMap<ClientId, BTreeMap<InodeNo, u32>>,
    /// Whose opens are all known.
    told_opens: BTreeSet<ClientId>,
    open_count: BTreeMap<InodeNo, u32>,
    /// Inodes whose `Reclaim` is on its way: they can no longer be opened.
    reclaiming: BTreeSet<InodeNo>,
    /// Inodes whose last name another one took, and when.
    replaced: BTreeMap<InodeNo, Timestamp>,
    /// Clients refused in this reign, under the serials they are told with.
    fenced: BTreeMap<ClientId, u64>,
    /// The same by serial, and those that left.
    ended: VecDeque<(u64, ClientId)>,
    serial: u64,
    /// Up to which serial each server refuses clients, durably.
    kept: BTreeMap<ServerId, u64>,
    /// Who was given a layout to write and has not said that it is done: only the last one clears the `writing` mark.
    writers: BTreeMap<InodeNo, BTreeSet<ClientId>>,
    /// Inodes whose mark was set in this reign: all their writers are known.
    marked: BTreeSet<InodeNo>,
    /// Inodes whose mark is being cleared.
    clearing: BTreeSet<InodeNo>,
    /// Inodes whose writer ended without its last word: the master must ask how far they reach before the mark goes.
    unsettled: BTreeSet<InodeNo>,
    settling: bool,
}

/// Clients that ended, as a chunkserver is told.
#[derive(Debug, Default)]
pub struct Ended {
    /// To be refused.
    pub fenced: Vec<ClientId>,
    /// To be forgotten only.
    pub left: Vec<ClientId>,
    /// Of the last one named.
    pub serial: u64,
}

impl Clients {
    /// False if this client is refused.
    pub fn heard(&mut self, now: Timestamp, client: ClientId) -> bool {
        if self.fenced.contains_key(&client) {
            return false;
        }
        self.heard.insert(client, now);
        true
    }

    /// Refuses `client` from now on, also at the chunkservers as they hear of it.
    pub fn fence(&mut self, client: ClientId) {
        self.heard.remove(&client);
        if !self.fenced.contains_key(&client) {
            let serial = self.list(client);
            self.fenced.insert(client, serial);
        }
    }

    fn list(&mut self, client: ClientId) -> u64 {
        self.serial += 1;
        self.ended.push_back((self.serial, client));
        if LEFT_MAX < self.ended.len()
            && let Some(at) = self.ended.iter().position(|(_, old)| !self.fenced.contains_key(old))
        {
            self.ended.remove(at);
        }
        self.serial
    }

    /// The next clients for a server that has heard of those up to `serial`.
    #[must_use]
    pub fn ended_after(&self, serial: u64) -> Ended {
        let mut told = Ended { serial, ..Ended::default() };
        let from = self.ended.partition_point(|(at, _)| *at <= serial);
        for (at, client) in self.ended.range(from..).take(TOLD_MAX) {
            match self.fenced.contains_key(client) {
                true => told.fenced.push(*client),
                false => told.left.push(*client),
            }
            told.serial = *at;
        }
        told
    }

    /// `server` refuses all clients up to `serial`, on its disk.
    pub fn on_kept(&mut self, server: ServerId, serial: u64) {
        self.kept.insert(server, serial.min(self.serial));
    }

    /// Whether each of these servers refuses `client`.
    pub fn refused_by_all(
        &self,
        client: ClientId,
        servers: impl IntoIterator<Item = ServerId>,
    ) -> bool {
        let Some(serial) = self.fenced.get(&client) else { return false };
        servers.into_iter().all(|server| self.kept.get(&server).is_some_and(|kept| serial <= kept))
    }

    /// Clients that are refused here and may not have ended yet.
    #[must_use]
    pub fn fenced(&self) -> Vec<ClientId> {
        self.fenced.keys().copied().collect()
    }

    #[must_use]
    pub fn is_heard(&self, client: ClientId) -> bool {
        self.heard.contains_key(&client)
    }

    #[must_use]
    pub fn heard_at(&self, client: ClientId) -> Option<Timestamp> {
        self.heard.get(&client).copied()
    }

    /// How long a client that has missed two signs of life has left, if it is one.
    #[must_use]
    pub fn silent_ends_in_ms(
        &self,
        client: ClientId,
        now: Timestamp,
        lease_ms: u64,
    ) -> Option<u64> {
        let silent_ms = now.nanos_since(self.heard_at(client)?) / 1_000_000;
        (SILENT_MS <= silent_ms).then(|| lease_ms.saturating_sub(silent_ms))
    }

    /// How often `client` has something open.
    #[must_use]
    pub fn opens_of(&self, client: ClientId) -> u64 {
        self.opens.get(&client).map_or(0, |opens| opens.values().map(|n| u64::from(*n)).sum())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.heard.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }

    /// Counts an open; false if the inode is being reclaimed.
    pub fn open(&mut self, client: ClientId, ino: InodeNo) -> bool {
        if self.reclaiming.contains(&ino) {
            return false;
        }
        *self.opens.entry(client).or_default().entry(ino).or_default() += 1;
        *self.open_count.entry(ino).or_default() += 1;
        true
    }

    /// Takes one open back; true if nobody has the inode open any more.
    pub fn release(&mut self, client: ClientId, ino: InodeNo) -> bool {
        let Some(opens) = self.opens.get_mut(&client) else { return false };
        let Some(count) = opens.get_mut(&ino) else { return false };
        *count -= 1;
        if *count == 0 {
            opens.remove(&ino);
        }
        self.drop_count(ino, 1)
    }

    /// `client` has nothing open yet.
    pub fn opens_nothing(&mut self, client: ClientId) {
        self.told_opens.insert(client);
    }

    /// Whether all that `client` has open is known to this reign.
    #[must_use]
    pub fn has_told_opens(&self, client: ClientId) -> bool {
        self.told_opens.contains(&client)
    }

    /// Replaces what is known of `client`'s opens.
    pub fn reopen(&mut self, client: ClientId, opens: &[(InodeNo, u32)]) {
        self.told_opens.insert(client);
        for (ino, count) in self.opens.remove(&client).unwrap_or_default() {
            self.drop_count(ino, count);
        }
        for (ino, count) in opens {
            if 0 < *count && !self.reclaiming.contains(ino) {
                self.opens.entry(client).or_default().insert(*ino, *count);
                *self.open_count.entry(*ino).or_default() += count;
            }
        }
    }

    fn drop_count(&mut self, ino: InodeNo, by: u32) -> bool {
        match self.open_count.get_mut(&ino) {
            Some(count) if by < *count => {
                *count -= by;
                false
            }
            Some(_) => {
                self.open_count.remove(&ino);
                true
            }
            None => false,
        }
    }

    #[must_use]
    pub fn is_open(&self, ino: InodeNo) -> bool {
        self.open_count.contains_key(&ino)
    }

    /// Marks an inode as being reclaimed unless somebody has it open, may be about to open it, or it is marked already.
    pub fn begin_reclaim(&mut self, ino: InodeNo) -> bool {
        !self.is_open(ino) && !self.replaced.contains_key(&ino) && self.reclaiming.insert(ino)
    }

    /// Another inode took the last name of `ino`.
    pub fn replaced(&mut self, now: Timestamp, ino: InodeNo) {
        if self.replaced.len() < REPLACED_MAX {
            self.replaced.insert(ino, now);
        }
    }

    /// Replaced inodes that nobody is about to open any more.
    pub fn end_replaced(&mut self, now: Timestamp) -> Vec<InodeNo> {
        let mut ended = Vec::new();
        self.replaced.retain(|ino, at| {
            let keep = now.nanos_since(*at) < REPLACED_MS * 1_000_000;
            if !keep {
                ended.push(*ino);
            }
            keep
        });
        ended
    }

    pub fn end_reclaim(&mut self, ino: InodeNo) {
        self.reclaiming.remove(&ino);
    }

    /// `client` gets a layout to write; false while the mark is being cleared: ask again.
    pub fn begin_writing(&mut self, client: ClientId, ino: InodeNo) -> bool {
        if self.clearing.contains(&ino) {
            return false;
        }
        self.writers.entry(ino).or_default().insert(client);
        true
    }

    /// The `writing` mark is being set.
    pub fn mark(&mut self, ino: InodeNo) {
        self.marked.insert(ino);
    }

    /// `client` has committed all it wrote. True: nobody else writes, and nobody begins until [`Self::end_clearing`].
    /// `all_known`: whoever got a layout from the master before this one has asked here again, or no longer uses it.
    pub fn done_writing(&mut self, client: ClientId, ino: InodeNo, all_known: bool) -> bool {
        if let Some(writers) = self.writers.get_mut(&ino) {
            writers.remove(&client);
            if !writers.is_empty() {
                return false;
            }
            self.writers.remove(&ino);
        }
        if self.unsettled.contains(&ino) {
            return false;
        }
        (self.marked.remove(&ino) || all_known) && self.clearing.insert(ino)
    }

    /// Whether nobody but `client` may have written bytes of `ino` that are not logged; `None` if that is not known yet.
    /// `all_known` as for [`Self::done_writing`].
    #[must_use]
    pub fn writes_alone(&self, client: ClientId, ino: InodeNo, all_known: bool) -> Option<bool> {
        let others = self.writers.get(&ino).into_iter().flatten().any(|writer| *writer != client);
        if others || self.unsettled.contains(&ino) {
            return Some(false);
        }
        (all_known || self.marked.contains(&ino)).then_some(true)
    }

    pub fn end_clearing(&mut self, ino: InodeNo) {
        self.clearing.remove(&ino);
    }

    /// As [`Self::done_writing`], by nobody's word: true if nobody writes `ino`.
    pub fn begin_clearing(&mut self, ino: InodeNo) -> bool {
        let free = !self.writers.contains_key(&ino) && self.clearing.insert(ino);
        if free {
            self.marked.remove(&ino);
        }
        free
    }

    /// `ino` has the mark: somebody must ask how far it reaches if no writer is known.
    pub fn unsettled_unless_written(&mut self, ino: InodeNo) {
        if !self.writers.contains_key(&ino) && !self.clearing.contains(&ino) {
            self.unsettled.insert(ino);
        }
    }

    /// Inodes that nobody writes and whose size is to be asked; nothing while a round of that runs.
    pub fn begin_settling(&mut self) -> Vec<InodeNo> {
        if self.settling {
            return Vec::new();
        }
        let free = self.unsettled.iter().filter(|ino| !self.writers.contains_key(ino));
        let free: Vec<InodeNo> = free.take(SETTLED_AT_ONCE).copied().collect();
        self.settling = !free.is_empty();
        free
    }

    pub fn settled(&mut self, ino: InodeNo) {
        self.unsettled.remove(&ino);
    }

    pub fn end_settling(&mut self) {
        self.settling = false;
    }

    /// `client` ended: forgets it; answers the inodes nobody has open any more.
    pub fn end(&mut self, client: ClientId) -> Vec<InodeNo> {
        self.heard.remove(&client);
        self.told_opens.remove(&client);
        if !self.fenced.contains_key(&client) {
            self.list(client);
        }
        let unsettled = &mut self.unsettled;
        self.writers.retain(|ino, writers| {
            if writers.remove(&client) {
                unsettled.insert(*ino);
            }
            !writers.is_empty()
        });
        let opens = self.opens.remove(&client).unwrap_or_default();
        opens
            .into_iter()
            .filter(|(ino, count)| self.drop_count(*ino, *count))
            .map(|(ino, _)| ino)
            .collect()
    }

    /// Clients whose lease is over.
    #[must_use]
    pub fn expired(&self, now: Timestamp, lease_ms: u64) -> Vec<ClientId> {
        self.heard
            .iter()
            .filter(|(_, at)| lease_ms * 1_000_000 <= now.nanos_since(**at))
            .map(|(client, _)| *client)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);
    const INO: InodeNo = InodeNo(7);

    #[test]
    fn an_inode_is_open_until_the_last_release_of_the_last_client() {
        let mut clients = Clients::default();
        assert!(clients.open(A, INO) && clients.open(A, INO) && clients.open(B, INO));
        assert!(!clients.release(A, INO) && !clients.release(B, INO));
        assert!(!clients.release(B, INO), "a release too many changes nothing");
        assert!(clients.is_open(INO) && clients.release(A, INO) && !clients.is_open(INO));
    }

    #[test]
    fn only_the_last_writer_is_done_and_nobody_begins_while_the_mark_goes() {
        let mut clients = Clients::default();
        assert!(clients.begin_writing(A, INO) && clients.begin_writing(B, INO));
        assert!(!clients.done_writing(A, INO, true) && clients.done_writing(B, INO, true));
        assert!(!clients.begin_writing(A, INO), "the mark is going");
        clients.end_clearing(INO);
        assert!(clients.begin_writing(A, INO) && clients.begin_writing(B, INO));
        assert!(!clients.done_writing(A, INO, false));
        assert!(
            !clients.done_writing(B, INO, false),
            "somebody may have a layout of the master before"
        );
        assert!(clients.begin_writing(B, INO));
        clients.mark(INO);
        assert!(clients.done_writing(B, INO, false));
    }

    #[test]
    fn a_client_writes_alone_if_all_who_may_write_are_known_and_nobody_else_does() {
        let mut clients = Clients::default();
        assert_eq!(clients.writes_alone(A, INO, true), Some(true));
        assert!(clients.begin_writing(A, INO));
        assert_eq!(clients.writes_alone(A, INO, false), None, "one may be of the reign before");
        clients.mark(INO);
        assert_eq!(clients.writes_alone(A, INO, false), Some(true));
        assert!(clients.begin_writing(B, INO));
        assert_eq!(clients.writes_alone(A, INO, true), Some(false));
        clients.end(B);
        assert_eq!(clients.writes_alone(A, INO, true), Some(false), "it is not settled");
        clients.settled(INO);
        assert_eq!(clients.writes_alone(A, INO, true), Some(true));
    }

    #[test]
    fn a_silent_client_ends_when_its_lease_does() {
        let mut clients = Clients::default();
        let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
        assert_eq!(clients.silent_ends_in_ms(A, at(0), LEASE_MS), None, "nobody knows it");
        clients.heard(at(0), A);
        assert_eq!(clients.silent_ends_in_ms(A, at(30), LEASE_MS), None);
        assert_eq!(clients.silent_ends_in_ms(A, at(60), LEASE_MS), Some(540_000));
        assert_eq!(clients.silent_ends_in_ms(A, at(900), LEASE_MS), Some(0));
    }

    #[test]
    fn a_file_whose_writer_ended_is_settled_before_its_mark_goes() {
        let mut clients = Clients::default();
        assert!(clients.begin_writing(A, INO) && clients.begin_writing(B, INO));
        clients.mark(INO);
        clients.end(A);
        assert!(clients.begin_settling().is_empty(), "somebody writes it still");
        assert!(!clients.done_writing(B, INO, true), "what the other wrote is not known yet");
        assert_eq!(clients.begin_settling(), [INO]);
        assert!(clients.begin_settling().is_empty(), "one round at a time");
        assert!(clients.begin_writing(B, INO) && !clients.begin_clearing(INO));
        assert!(!clients.done_writing(B, INO, true));
        assert!(clients.begin_clearing(INO) && !clients.begin_writing(B, INO));
        clients.end_clearing(INO);
        clients.settled(INO);
        clients.end_settling();
        assert!(clients.begin_settling().is_empty());
        clients.unsettled_unless_written(INO);
        assert_eq!(clients.begin_settling(), [INO], "of an earlier reign");
    }

    #[test]
    fn what_was_replaced_can_be_opened_for_a_while() {
        let mut clients = Clients::default();
        let at = |seconds: u64| Timestamp(seconds * 1_000_000_000);
        clients.replaced(at(10), INO);
        assert!(!clients.begin_reclaim(INO) && clients.end_replaced(at(12)).is_empty());
        assert!(clients.open(A, INO), "by the name it had");
        assert_eq!(clients.end_replaced(at(13)), [INO]);
        assert!(!clients.begin_reclaim(INO), "it is open");
        assert!(clients.release(A, INO) && clients.begin_reclaim(INO));
        for n in 0..200_000 {
            clients.replaced(at(20), InodeNo(1000 + n));
        }
        assert_eq!(clients.end_replaced(at(30)).len(), REPLACED_MAX);
    }

    #[test]
    fn what_is_being_reclaimed_cannot_be_opened_and_what_is_open_not_reclaimed() {
        let mut clients = Clients::default();
        clients.open(A, INO);
        assert!(!clients.begin_reclaim(INO));
        clients.release(A, INO);
        assert!(clients.begin_reclaim(INO) && !clients.open(A, INO));
        clients.end_reclaim(INO);
        assert!(clients.open(A, INO));
    }

    #[test]
    fn a_client_that_ends_gives_back_what_only_it_had_open() {
        let mut clients = Clients::default();
        clients.reopen(A, &[(INO, 3), (InodeNo(8), 1)]);
        clients.reopen(A, &[(INO, 2), (InodeNo(9), 1)]);
        clients.open(B, InodeNo(9));
        assert!(!clients.is_open(InodeNo(8)));
        assert_eq!(clients.end(A), [INO]);
        assert!(clients.is_open(InodeNo(9)));
    }

    #[test]
    fn a_fenced_client_is_refused_and_told_until_every_server_keeps_it() {
        let (one, two) = (ServerId(1), ServerId(2));
        let mut clients = Clients::default();
        assert!(clients.heard(Timestamp(0), A) && clients.heard(Timestamp(5), B));
        assert_eq!(clients.expired(Timestamp(3_000_000), 3), [A]);
        clients.end(ClientId(3));
        clients.fence(A);
        assert!(!clients.heard(Timestamp(9), A), "it comes back too late");
        let told = clients.ended_after(0);
        assert_eq!(
            (&told.fenced[..], &told.left[..], told.serial),
            (&[A][..], &[ClientId(3)][..], 2)
        );
        assert!(clients.ended_after(2).fenced.is_empty());
        clients.on_kept(one, 2);
        assert!(clients.refused_by_all(A, [one]) && !clients.refused_by_all(A, [one, two]));
        clients.on_kept(two, 1);
        assert!(!clients.refused_by_all(A, [one, two]));
        clients.on_kept(two, 2);
        assert!(clients.refused_by_all(A, [one, two]) && !clients.refused_by_all(B, [one]));
        // A server that was away hears of it even after it ended.
        clients.end(A);
        assert_eq!(clients.ended_after(0).fenced, [A]);
        // Who left makes room, who is refused stays.
        for n in 0..200_000 {
            clients.end(ClientId(1000 + n));
        }
        assert!(clients.ended.len() <= LEFT_MAX);
        assert_eq!(clients.ended_after(0).fenced, [A]);
    }
}
