//! What the modelled cluster keeps: servers, versions, the master's attempt and the ghosts of the checker.
//!
//! It knows no rule of the protocol, only how things are written down. All is small and `Copy`, because
//! millions of states pass through the checker's table.

/// Servers in every scenario; some may start outside the configuration.
pub(crate) const SERVERS: usize = 3;
/// The servers' numbers in the size a state keeps them in.
pub(crate) const SERVER_IDS: [u8; SERVERS] = [0, 1, 2];
/// Versions a chunk may go through; version 1 is active at the start.
pub(crate) const VERSIONS: usize = 4;
/// Different operations the clients may submit.
pub(crate) const OPS: usize = 3;
/// Stands in a log for an operation whose record survived a reboot and whose bytes did not.
pub(crate) const TORN: u8 = 0xF;
/// `Server::lost_from` of a server that lost nothing.
pub(crate) const NOTHING_LOST: u8 = 0xF;

/// Up to four operations in sequence order, one nibble each, the first in the lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log(u16);

impl Log {
    /// Operations one log can hold; only variants that write an operation twice ever fill it.
    pub(crate) const CAPACITY: u8 = 4;

    pub(crate) fn len(self) -> u8 {
        let mut len = 0;
        while len < Self::CAPACITY && self.0 >> (4 * len) != 0 {
            len += 1;
        }
        len
    }

    pub(crate) fn get(self, index: u8) -> Option<u8> {
        (index < self.len())
            .then(|| self.0.to_le_bytes()[usize::from(index / 2)] >> (4 * (index % 2)) & 0xF)
    }

    pub(crate) fn push(&mut self, op: u8) {
        assert!(self.len() < Self::CAPACITY, "a modelled log overflows");
        self.0 |= u16::from(op) << (4 * self.len());
    }

    pub(crate) fn prefix(self, len: u8) -> Log {
        if len >= Self::CAPACITY { self } else { Log(self.0 & ((1 << (4 * len)) - 1)) }
    }

    pub(crate) fn starts_with(self, other: Log) -> bool {
        self.prefix(other.len()) == other
    }

    pub(crate) fn common_len(self, other: Log) -> u8 {
        let shorter = self.len().min(other.len());
        (0..shorter).find(|&index| self.get(index) != other.get(index)).unwrap_or(shorter)
    }

    pub(crate) fn position(self, op: u8) -> Option<u8> {
        (0..self.len()).find(|&index| self.get(index) == Some(op))
    }

    pub(crate) fn contains(self, op: u8) -> bool {
        self.position(op).is_some()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..self.len()).filter_map(move |index| self.get(index))
    }
}

/// One chunkserver's replica of the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    /// Version of the last adoption; 0 without a replica. Durable.
    pub(crate) version: u8,
    /// Every message of a lower version is refused. Durable.
    pub(crate) promise: u8,
    /// What is in memory, the durable part included.
    pub(crate) log: Log,
    /// How many operations of `log` are on disk.
    pub(crate) synced: u8,
    /// The mark of DECISIONS 1. Durable before the first unstable operation.
    pub(crate) dirty: bool,
    /// Rebooted while dirty. Durable: the mark names the boot that set it.
    pub(crate) not_current: bool,
    /// Ghost: first position lost at a reboot since the last activation, or `NOTHING_LOST`.
    pub(crate) lost_from: u8,
}

impl Default for Server {
    /// A server without a replica of the chunk.
    fn default() -> Server {
        Server {
            version: 0,
            promise: 0,
            log: Log::default(),
            synced: 0,
            dirty: false,
            not_current: false,
            lost_from: NOTHING_LOST,
        }
    }
}

/// How far the master is with one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    #[default]
    Unused,
    /// Promises are asked for.
    Promising,
    /// The source is chosen, adoptions are asked for.
    Adopting,
    Activated,
}

/// One version of the chunk: what the master logged about it and the messages sent under it, which may
/// arrive at any later time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    pub(crate) phase: Phase,
    /// Bit per server.
    pub(crate) members: u8,
    pub(crate) adopted: u8,
    pub(crate) source: u8,
    /// What `Adopt` names.
    pub(crate) named: Log,
    /// The wait of DECISIONS 1 was over in this attempt or in an earlier one from the same base.
    pub(crate) forced: bool,
    pub(crate) primary: u8,
    /// The primary's process is at work in this version. Once false it stays so.
    pub(crate) leads: bool,
    /// Operations in the order the primary gave them, all of them possibly under way to any member.
    pub(crate) sent: Log,
    /// Highest length each member told the primary it has in memory, and on disk.
    pub(crate) acked: [u8; SERVERS],
    pub(crate) stable: [u8; SERVERS],
}

impl Config {
    pub(crate) fn has(&self, server: usize) -> bool {
        self.members >> server & 1 == 1
    }
}

/// A member's answer to `Promise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Report {
    pub(crate) version: u8,
    pub(crate) log: Log,
    pub(crate) not_current: bool,
}

/// Violations seen during a step rather than in a state.
pub(crate) mod flag {
    pub(crate) const PROMISE_FELL: u8 = 1;
    pub(crate) const FOREIGN_MEMBERS: u8 = 2;
    pub(crate) const EARLY_ACK: u8 = 4;
    pub(crate) const UNDONE: u8 = 8;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) servers: [Server; SERVERS],
    pub(crate) configs: [Config; VERSIONS],
    /// Last activated version, and last proposed one.
    pub(crate) active: u8,
    pub(crate) attempt: u8,
    /// Last version activated after the wait of DECISIONS 1, without a member that knew everything.
    pub(crate) forced: u8,
    /// Of the attempt, kept until `Adopt` is sent.
    pub(crate) reports: [Option<Report>; SERVERS],
    /// Operations 1..=submitted have been sent by their clients at least once.
    pub(crate) submitted: u8,
    /// Bit per operation: its client was told "stable" and freed the arena slot.
    pub(crate) freed: u8,
    /// Ghost, per operation: those freed before its submission.
    pub(crate) after: [u8; OPS],
    /// Ghost: the longest log anybody has read from or had acknowledged.
    pub(crate) observed: Log,
    pub(crate) reboots_left: u8,
    pub(crate) restarts_left: u8,
    pub(crate) forces_left: u8,
    pub(crate) disk_losses_left: u8,
    pub(crate) flags: u8,
}

impl State {
    /// Version 1 active on `members` (bit per server), led by the first of them, nothing written.
    pub(crate) fn initial(members: u8) -> State {
        let mut servers = [Server::default(); SERVERS];
        for (index, server) in servers.iter_mut().enumerate() {
            server.version = members >> index & 1;
            server.promise = server.version;
        }
        let mut configs = [Config::default(); VERSIONS];
        configs[0] = Config { phase: Phase::Activated, members, leads: true, ..Config::default() };
        State {
            servers,
            configs,
            active: 1,
            attempt: 1,
            forced: 0,
            reports: [None; SERVERS],
            submitted: 0,
            freed: 0,
            after: [0; OPS],
            observed: Log::default(),
            reboots_left: 0,
            restarts_left: 0,
            forces_left: 0,
            disk_losses_left: 0,
            flags: 0,
        }
    }

    pub(crate) fn config(&self, version: u8) -> &Config {
        &self.configs[usize::from(version) - 1]
    }

    pub(crate) fn config_mut(&mut self, version: u8) -> &mut Config {
        &mut self.configs[usize::from(version) - 1]
    }

    /// The version this server's process is primary of, if any.
    pub(crate) fn leading(&self, server: usize) -> Option<u8> {
        let version = self.servers[server].version;
        if version == 0 {
            return None;
        }
        let config = self.config(version);
        (config.leads && usize::from(config.primary) == server).then_some(version)
    }
}
