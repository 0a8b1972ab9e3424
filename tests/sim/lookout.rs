//! What can be told from outside of the machines at any time: who serves, who deletes and who copies when nobody may.

use std::collections::BTreeMap;

use crate::kernel::{HostId, MILLI, SECOND};
use crate::world::World;

/// Who went on after a pause may still send what it was about to.
const ABOUT_TO_NANOS: u64 = 100 * MILLI;
/// Clocks go wrong by one in a hundred, on both sides.
const DRIFT_PERCENT: u64 = 102;

/// How long silence lasts until it counts; the names are those of `dfs master --profile`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    pub(crate) dead_after: u64,
}

pub(crate) const DRILL: Profile = Profile { name: "drill", dead_after: 3 * SECOND };
pub(crate) const STANDARD: Profile = Profile { name: "standard", dead_after: 15 * SECOND };

#[derive(Debug)]
pub(crate) struct Lookout {
    pub(crate) profile: Profile,
    pub(crate) master_began: u64,
    pub(crate) resumed: BTreeMap<HostId, u64>,
    /// Since when `dfs failover` of a server is done, 0: it is not yet; gone when its end is asked for.
    suspended: BTreeMap<HostId, u64>,
    /// Commands that run and end a suspension.
    ending: BTreeMap<HostId, u64>,
}

impl Lookout {
    pub(crate) fn new(profile: Profile) -> Self {
        Self {
            profile,
            master_began: 0,
            resumed: BTreeMap::new(),
            suspended: BTreeMap::new(),
            ending: BTreeMap::new(),
        }
    }
}

impl World {
    /// A server sent content to somebody.
    pub(crate) fn served(&mut self, from: HostId, to: HostId) {
        if self.aged == Some(from) && to != self.master {
            let name = &self.kernel.hosts[from].name;
            return self.wrong(format!("I14 {name} serves what an older copy of its disk holds"));
        }
        if self.servers.contains(&to) || to == self.master || !self.servers.contains(&from) {
            return;
        }
        let now = self.kernel.now;
        let Lookout { profile, resumed, suspended, .. } = &self.lookout;
        if resumed.get(&from).is_some_and(|at| now < at + ABOUT_TO_NANOS) {
            return;
        }
        let name = &self.kernel.hosts[from].name;
        // Counted from when it asked for the lease, which was before it was answered.
        let heard = self.kernel.net.heard.get(&(self.master, from)).copied().unwrap_or(0);
        let lease = profile.dead_after / 10 * 8 / 100 * DRIFT_PERCENT;
        if heard + lease < now {
            let silence = (now - heard) / MILLI;
            return self.wrong(format!(
                "I13 {name} serves {silence} ms after it heard of its master, within its lease of {} ms",
                lease / MILLI
            ));
        }
        let since = suspended.get(&from).copied().filter(|since| *since != 0);
        if let Some(since) = since
            && since + profile.dead_after / 100 * DRIFT_PERCENT + SECOND < now
        {
            self.wrong(format!(
                "I20 {name} serves {} s after it was suspended",
                (now - since) / SECOND
            ));
        }
    }

    /// What the master says of its own doing.
    pub(crate) fn hear_master(&mut self, line: &str) {
        let deletes = line.contains("replica that nobody needs");
        let copies = line.contains("copy begins");
        let grace = self.lookout.profile.dead_after / DRIFT_PERCENT * 100;
        if (deletes || copies) && self.kernel.now < self.lookout.master_began + grace {
            self.wrong(format!(
                "I19 {} ms after its start the master does not wait for servers: {line}",
                (self.kernel.now - self.lookout.master_began) / MILLI
            ));
        }
    }

    fn server_named(&self, name: &str) -> Option<HostId> {
        self.servers.iter().copied().find(|host| self.kernel.hosts[*host].name == name)
    }

    /// A command about `server` begins.
    pub(crate) fn command_begins(&mut self, purpose: &str, server: &str) {
        let Some(host) = self.server_named(server) else { return };
        let Lookout { suspended, ending, .. } = &mut self.lookout;
        match purpose {
            // What still ends an earlier one may end this one.
            "failover" if !ending.contains_key(&host) => _ = suspended.insert(host, 0),
            "recover" => {
                suspended.remove(&host);
                *ending.entry(host).or_default() += 1;
            }
            _ => {}
        }
    }

    pub(crate) fn command_is_over(&mut self, purpose: &str, server: &str, code: i32) {
        let (Some(host), now) = (self.server_named(server), self.kernel.now) else { return };
        let Lookout { suspended, ending, .. } = &mut self.lookout;
        match purpose {
            "failover" => {
                if let Some(since) = suspended.get_mut(&host)
                    && code == 0
                {
                    *since = now;
                }
            }
            "recover" => {
                if let Some(running) = ending.get_mut(&host) {
                    *running -= 1;
                    if *running == 0 {
                        ending.remove(&host);
                    }
                }
            }
            _ => {}
        }
    }

    /// `status -o json`, asked for at `asked`.
    pub(crate) fn check_status(&mut self, status: &serde_json::Value, asked: u64) {
        let slack = self.lookout.profile.dead_after / 100 * DRIFT_PERCENT + 2 * SECOND;
        for server in status["servers"].as_array().into_iter().flatten() {
            let id = server["id"].as_str().unwrap_or_default();
            let Some(host) = self.server_named(id) else { continue };
            let since = self.lookout.suspended.get(&host).copied().filter(|since| *since != 0);
            if since.is_some_and(|since| since + slack < asked) && server["state"] == "alive" {
                self.wrong(format!("I20 {id} is suspended and still sends heartbeats: {server}"));
            }
        }
    }
}
