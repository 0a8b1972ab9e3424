//! Where the chunks of files are, and somebody who reads what one server holds.

use std::collections::BTreeSet;
use std::io;

use crate::client::{BLOCK, CHUNK};
use crate::kernel::{HostId, SECOND};
use crate::world::{Act, KEY_FILE, World, words};

/// A block of a client's file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) file: u64,
    pub(crate) block: u64,
}

impl World {
    /// Asks where the chunks of one file are.
    pub(crate) fn locate_one(&mut self) -> io::Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let n = self.kernel.random.below(self.names.len() as u64);
        let file = self.names[usize::try_from(n).unwrap_or(0)];
        self.command("locate", &words(&format!("locate -o json /f{file}")))
    }

    /// What it was told: remembered, and looked at.
    pub(crate) fn located(&mut self, said: &str) {
        let Ok(told) = serde_json::from_str::<serde_json::Value>(said) else { return };
        let path = told["path"].as_str().unwrap_or_default();
        let file = path.strip_prefix("/f").and_then(|number| number.parse::<u64>().ok());
        let chunks = told["chunks"].as_array().into_iter().flatten();
        for chunk in chunks {
            let (Some(id), Some(index)) = (chunk["id"].as_u64(), chunk["index"].as_u64()) else {
                continue;
            };
            let servers: Vec<&str> = chunk["servers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|s| s.as_str())
                .collect();
            if servers.iter().collect::<BTreeSet<_>>().len() != servers.len() {
                self.wrong(format!("I15 chunk {id} of {path} is twice on one server: {servers:?}"));
            }
            let zone = |server: &&str| {
                let number = server.strip_prefix("cs-").and_then(|n| n.parse::<usize>().ok());
                number.map_or(0, |number| (number - 1) % 3)
            };
            let zones = servers.iter().map(zone).collect::<BTreeSet<_>>().len();
            // Nothing went wrong yet: there was no reason for less.
            if self.zoned && self.faults.is_empty() && zones != servers.len().min(3) {
                self.wrong(format!("I15 chunk {id} of {path} is twice in one zone: {servers:?}"));
            }
            if let Some(file) = file {
                self.chunks.insert(id, Place { file, block: index * (CHUNK / BLOCK as u64) });
            }
        }
    }

    /// Somebody reads those blocks within a minute, several times, and reaches no server but this one.
    pub(crate) fn look_there(&mut self, server: HostId, places: Vec<Place>) -> io::Result<()> {
        let places: BTreeSet<Place> = places.into_iter().collect();
        if places.is_empty() {
            return Ok(());
        }
        let others = self.servers.iter().filter(|other| **other != server);
        self.kernel.net.refused = others.map(|other| (self.reader, *other)).collect();
        let mut args = format!("client 10.0.0.1:7000 {KEY_FILE} 998 peek");
        for Place { file, block } in places {
            args.push_str(&format!(" {file} {block}"));
        }
        let program = self.plan.own_program.clone();
        let looks = self.launch(self.reader, &program, &words(&args))?;
        self.after(40 * SECOND, Act::EndLook(looks));
        Ok(())
    }
}
