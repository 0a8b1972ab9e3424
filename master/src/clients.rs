//! Clients as the master remembers them in memory: who was heard when, and what they have open.
//!
//! Opens are not logged (DECISIONS 13): after a restart clients send them again within [`GRACE_MS`], and nothing
//! without a name is reclaimed before.

use std::collections::{BTreeMap, BTreeSet};

use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::time::Timestamp;

/// Nothing is reclaimed for so long after a master's start.
pub const GRACE_MS: u64 = 30_000;
/// A client not heard for so long is ended (DECISIONS 12).
pub const LEASE_MS: u64 = 600_000;

#[derive(Debug, Default)]
pub struct Clients {
    heard: BTreeMap<ClientId, Timestamp>,
    opens: BTreeMap<ClientId, BTreeMap<InodeNo, u32>>,
    open_count: BTreeMap<InodeNo, u32>,
    /// Inodes whose `Reclaim` is on its way: they can no longer be opened.
    reclaiming: BTreeSet<InodeNo>,
}

impl Clients {
    pub fn heard(&mut self, now: Timestamp, client: ClientId) {
        self.heard.insert(client, now);
    }

    #[must_use]
    pub fn is_heard(&self, client: ClientId) -> bool {
        self.heard.contains_key(&client)
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

    /// Replaces what is known of `client`'s opens.
    pub fn reopen(&mut self, client: ClientId, opens: &[(InodeNo, u32)]) {
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

    /// Marks an inode as being reclaimed unless somebody has it open or it is marked already.
    pub fn begin_reclaim(&mut self, ino: InodeNo) -> bool {
        !self.is_open(ino) && self.reclaiming.insert(ino)
    }

    pub fn end_reclaim(&mut self, ino: InodeNo) {
        self.reclaiming.remove(&ino);
    }

    /// Forgets `client`; answers the inodes nobody has open any more.
    pub fn end(&mut self, client: ClientId) -> Vec<InodeNo> {
        self.heard.remove(&client);
        let opens = self.opens.remove(&client).unwrap_or_default();
        opens
            .into_iter()
            .filter(|(ino, count)| self.drop_count(*ino, *count))
            .map(|(ino, _)| ino)
            .collect()
    }

    /// Clients whose lease is over.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Vec<ClientId> {
        self.heard
            .iter()
            .filter(|(_, at)| LEASE_MS * 1_000_000 <= now.nanos_since(**at))
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
}
