//! What goes wrong, and when it is over.

use std::io;

use dfs_proto::chunk_file::DATA_AT;

use crate::client::BLOCK;
use crate::disk::{Disk, ROOT, Trouble};
use crate::kernel::{DescId, HostId, MILLI, ProcId, SECOND};
use crate::peek::Place;
use crate::world::{Act, DISK_BYTES, World, words};

/// Blocks that somebody wants of a server with an older copy of its disk.
const LOOKED_AT_MAX: usize = 8;

/// Something that is over at some time.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Paused(ProcId),
    Cut(Vec<(HostId, HostId)>),
    SlowDisk(HostId),
    BadDisk(HostId),
    FullDisk(HostId),
    Stuck(Vec<DescId>),
}

impl World {
    fn seconds(&mut self, most: u64) -> u64 {
        SECOND / 10 + self.kernel.random.below(most * SECOND)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        let pick = self.kernel.random.below(of.len() as u64);
        of[usize::try_from(pick).unwrap_or(0)]
    }

    fn server_of(&self, host: HostId) -> Option<ProcId> {
        self.kernel.alive().into_iter().find(|proc| self.kernel.procs[*proc].host == host)
    }

    fn count(&mut self, what: &'static str, of: &str) {
        *self.faults.entry(what).or_default() += 1;
        self.say(&format!("--- {what}: {of}"));
    }

    fn name(&self, host: HostId) -> String {
        self.kernel.hosts[host].name.clone()
    }

    /// One thing goes wrong.
    pub(crate) fn misfortune(&mut self) -> io::Result<()> {
        let server = self.one(&self.servers.clone());
        match self.kernel.random.below(24) {
            0..=2 => self.kill(server, "server killed"),
            3 | 4 => {
                let length = self.seconds(20);
                self.power_loss(&[server], length, SECOND, "server without power");
            }
            5 => self.kill(self.master, "master killed"),
            6 => {
                let length = self.seconds(10);
                self.power_loss(&[self.master], length, SECOND, "master without power");
            }
            7 => {
                let length = self.seconds(5);
                let all: Vec<HostId> = self.servers.iter().copied().chain([self.master]).collect();
                // One after the other, the last ones when the first have given them up.
                self.power_loss(&all, length, 12 * SECOND, "all without power");
            }
            8 | 9 => self.pause(server),
            10 => self.pause(self.master),
            11 => self.cut(server),
            12 => {
                let of = self.one(&[server, self.master]);
                self.cut(of);
            }
            13 => self.kill_client(),
            14 => {
                self.count("slow disk", &self.name(server));
                self.kernel.hosts[server].sync_nanos_max = 400 * MILLI;
                let length = self.seconds(20);
                self.after(length, Act::Relief(Fault::SlowDisk(server)));
            }
            15 => self.drill(server)?,
            16 => self.drain(server)?,
            17 => self.rolling_restart(),
            18 => {
                let zone = usize::try_from(self.kernel.random.below(3)).unwrap_or(0);
                let all: Vec<HostId> = self.servers.iter().copied().skip(zone).step_by(3).collect();
                let length = self.seconds(20);
                self.power_loss(&all, length, 3 * SECOND, "zone without power");
            }
            19 => self.stick(),
            20 => self.break_connections(),
            21 => {
                let other = self.one(&self.servers.clone());
                self.swap_disks(server, other);
            }
            // Only while every chunk has all its copies: more than the cluster promises to survive is no test of it.
            _ => self.command("status", &words("status -o json"))?,
        }
        Ok(())
    }

    /// The master just said whether all chunks have their copies.
    pub(crate) fn safe(&mut self, all: bool) -> io::Result<()> {
        if !all || !self.is_trouble() || self.swapped.is_some() || self.aged.is_some() {
            return Ok(());
        }
        // One server of each cluster has the bad luck: no chunk loses more than one copy by it.
        let server = self.servers[0];
        match self.kernel.random.below(8) {
            // One bad place of a disk is seldom alone.
            0 => self.flip_some(server)?,
            1 => self.lose_file(server),
            2 => {
                self.count("disk replaced by an empty one", &self.name(server));
                self.lose_power(server);
                self.new_disk(server);
                // Put into another machine before its first start, it would be made for that one.
                self.down.insert(server);
                self.after(2 * SECOND, Act::Boot(server));
            }
            3 => {
                self.count("disk fails", &self.name(server));
                self.kernel.hosts[server].disk.trouble = Trouble { read_fails: 20, sync_fails: 20 };
                let length = self.seconds(10);
                self.after(length, Act::Relief(Fault::BadDisk(server)));
            }
            4 => {
                self.count("disk full", &self.name(server));
                let disk = &mut self.kernel.hosts[server].disk;
                disk.capacity = DISK_BYTES - disk.free();
                let length = self.seconds(15);
                self.after(length, Act::Relief(Fault::FullDisk(server)));
            }
            5 => self.older_disk(server)?,
            _ => {
                let mut disk = self.kernel.hosts[server].disk.clone();
                disk.lose_power(&mut self.kernel.random);
                disk.be_well(DISK_BYTES);
                // Of an empty one that was not yet started it would be a new disk, which may serve.
                if mark_on(&mut disk) != 0 {
                    self.older = Some(disk);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn relieve(&mut self, fault: &Fault) {
        self.say(&format!("--- over: {fault:?}"));
        match fault {
            Fault::Paused(proc) => {
                self.kernel.pause(*proc, false);
                let host = self.kernel.procs[*proc].host;
                self.lookout.resumed.insert(host, self.kernel.now);
            }
            Fault::Stuck(ends) => {
                for end in ends {
                    self.kernel.net.stuck.remove(end);
                }
                self.kernel.resend();
            }
            Fault::Cut(links) => {
                for link in links {
                    self.kernel.net.cut.remove(link);
                }
                self.kernel.resend();
            }
            Fault::SlowDisk(host) => self.kernel.hosts[*host].sync_nanos_max = 2 * MILLI,
            Fault::BadDisk(host) => self.kernel.hosts[*host].disk.trouble = Trouble::default(),
            Fault::FullDisk(host) => self.kernel.hosts[*host].disk.capacity = DISK_BYTES,
        }
    }

    fn kill(&mut self, host: HostId, what: &'static str) {
        if let Some(proc) = self.server_of(host) {
            self.count(what, &self.name(host));
            self.kernel.kill(proc, true);
            let back = self.seconds(8);
            self.after(back, Act::Start(host));
        }
    }

    /// For `length`, and for each of them up to `spread` more.
    fn power_loss(&mut self, hosts: &[HostId], length: u64, spread: u64, what: &'static str) {
        let names: Vec<String> = hosts.iter().map(|host| self.name(*host)).collect();
        self.count(what, &names.join(" "));
        for host in hosts {
            if self.kernel.hosts[*host].up {
                self.lose_power(*host);
                self.down.insert(*host);
                let back = length + self.kernel.random.below(spread);
                self.after(back, Act::Boot(*host));
            }
        }
    }

    fn pause(&mut self, host: HostId) {
        if let Some(proc) = self.server_of(host) {
            self.count("paused", &self.name(host));
            self.kernel.pause(proc, true);
            let length = self.seconds(12);
            self.after(length, Act::Relief(Fault::Paused(proc)));
        }
    }

    fn cut(&mut self, server: HostId) {
        let others: Vec<HostId> = self
            .servers
            .iter()
            .chain(&self.clients)
            .copied()
            .chain([self.master])
            .filter(|host| *host != server)
            .collect();
        // From all, or from one.
        let from = if self.kernel.random.below(2) == 0 { others } else { vec![self.one(&others)] };
        let ways = self.kernel.random.below(3);
        let mut links = Vec::new();
        for other in from {
            if ways != 1 {
                links.push((server, other));
            }
            if ways != 2 {
                links.push((other, server));
            }
        }
        let names: Vec<String> = links
            .iter()
            .map(|(from, to)| format!("{}>{}", self.name(*from), self.name(*to)))
            .collect();
        self.count(if ways == 0 { "cut off" } else { "cut off one way" }, &names.join(" "));
        self.kernel.net.cut.extend(&links);
        let length = self.seconds(15);
        self.after(length, Act::Relief(Fault::Cut(links)));
    }

    /// Everything that is under way on one connection waits, and with it the end of the connection: what was asked is
    /// asked again by another, and comes a second time when the first is free, after what was asked since.
    fn stick(&mut self) {
        let streams = self.kernel.streams(|_, _| true);
        if streams.is_empty() {
            return;
        }
        let (a, b) = self.one(&streams);
        let ends = match self.kernel.random.below(3) {
            0 => vec![a],
            1 => vec![b],
            _ => vec![a, b],
        };
        let host =
            |end| self.kernel.net.descs.get(&end).map_or_else(String::new, |d| self.name(d.host));
        let names = format!("{} and {}, {} way(s)", host(a), host(b), ends.len());
        self.count("connection stuck", &names);
        self.kernel.net.stuck.extend(&ends);
        let length = self.seconds(20);
        self.after(length, Act::Relief(Fault::Stuck(ends)));
    }

    /// Connections end at once, with what was under way: nobody knows whether it was done.
    fn break_connections(&mut self) {
        let all: Vec<HostId> =
            self.servers.iter().chain(&self.clients).copied().chain([self.master]).collect();
        let of = self.one(&all);
        let streams = self.kernel.streams(|from, to| from == of || to == of);
        self.count("connections broken", &format!("{} of {}", streams.len(), self.name(of)));
        for ends in streams {
            self.kernel.break_stream(ends);
        }
    }

    /// Somebody put each disk into the other machine, and back a while later.
    fn swap_disks(&mut self, one: HostId, other: HostId) {
        let busy = self.swapped.is_some() || self.aged.is_some();
        if one == other || busy || !self.down.is_disjoint(&[one, other].into()) {
            return;
        }
        self.count("disks swapped", &format!("{} and {}", self.name(one), self.name(other)));
        self.exchange(one, other);
        self.swapped = Some((one, other));
        let length = self.seconds(12);
        self.after(length, Act::SwapBack(one, other));
    }

    pub(crate) fn exchange(&mut self, one: HostId, other: HostId) {
        for host in [one, other] {
            self.lose_power(host);
            self.down.insert(host);
        }
        let (low, high) = (one.min(other), one.max(other));
        let (left, right) = self.kernel.hosts.split_at_mut(high);
        std::mem::swap(&mut left[low].disk, &mut right[0].disk);
        for host in [one, other] {
            self.kernel.hosts[host].disk.be_well(DISK_BYTES);
        }
        for host in [one, other] {
            let back = self.seconds(2);
            self.after(back, Act::Boot(host));
        }
    }

    /// What its disk held some time ago is there again, until somebody takes it away. Nobody may be given anything of it.
    fn older_disk(&mut self, server: HostId) -> io::Result<()> {
        let Some(mut disk) = self.older.take() else { return Ok(()) };
        let (old, new) = (mark_on(&mut disk), mark_on(&mut self.kernel.hosts[server].disk));
        // Of one mark, or of one that may not be confirmed yet, nobody can tell: the server wrote nothing since, or only
        // for the seconds for which a mark is good.
        if new < old + 2 {
            self.older = Some(disk);
            return Ok(());
        }
        self.count("older copy of a disk put back", &self.name(server));
        self.lose_power(server);
        self.kernel.hosts[server].disk = disk;
        self.aged = Some(server);
        self.after(SECOND, Act::Boot(server));
        let length = 10 * SECOND + self.seconds(10);
        self.after(length, Act::NewDisk(server));
        let places = self.chunks.values().copied().take(LOOKED_AT_MAX).collect();
        self.look_there(server, places)
    }

    fn kill_client(&mut self) {
        let n = usize::try_from(self.kernel.random.below(self.clients.len() as u64)).unwrap_or(0);
        let host = self.clients[n];
        if let Some(proc) = self.server_of(host) {
            self.count("client killed", &self.name(host));
            let tell = self.kernel.random.below(2) == 0;
            self.kernel.kill(proc, tell);
            let back = self.seconds(8);
            self.after(back, Act::Client(n));
        }
    }

    fn drill(&mut self, server: HostId) -> io::Result<()> {
        let name = self.name(server);
        self.count("failover", &name);
        let length = self.seconds(20);
        self.after(length, Act::Admin("recover", words(&format!("recover {name}"))));
        self.command("failover", &words(&format!("failover {name}")))
    }

    fn drain(&mut self, server: HostId) -> io::Result<()> {
        let name = self.name(server);
        self.count("drain", &name);
        let length = self.seconds(60);
        self.after(length, Act::Admin("undrain", words(&format!("undrain {name}"))));
        self.command("drain", &words(&format!("drain {name}")))
    }

    fn rolling_restart(&mut self) {
        self.count("rolling restart", "");
        for (n, server) in self.servers.clone().into_iter().enumerate() {
            if let Some(proc) = self.server_of(server) {
                // One after the other, by the supervisor that finds them ended.
                self.after(n as u64 * 2 * SECOND, Act::Restart(proc));
            }
        }
    }

    /// Chunk files of a server that have content.
    fn chunk_files(&self, server: HostId) -> Vec<(String, u64, u64)> {
        let disk = &self.kernel.hosts[server].disk;
        let is_chunk = |path: &str| {
            let parts: Vec<&str> = path.split('/').collect();
            matches!(parts.as_slice(), ["", "data", dir, name] if dir.len() == 2 && name.len() == 16)
        };
        disk.files(ROOT, "")
            .into_iter()
            .filter(|(path, _, len)| is_chunk(path) && 0 < *len)
            .collect()
    }

    /// Some bits turn over, and soon somebody reads there.
    fn flip_some(&mut self, server: HostId) -> io::Result<()> {
        let count = 1 + self.kernel.random.below(8);
        let places: Vec<Place> = (0..count).filter_map(|_| self.flip(server)).collect();
        self.look_there(server, places)
    }

    /// Where that is in a file, if it is known.
    fn flip(&mut self, server: HostId) -> Option<Place> {
        let files = self.chunk_files(server);
        // Mostly where somebody can look.
        let (known, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(path, ..)| self.chunks.contains_key(&chunk_of(path)));
        let most = !known.is_empty() && self.kernel.random.below(8) != 0;
        let files = if most || others.is_empty() { known } else { others };
        if files.is_empty() {
            return None;
        }
        let n = usize::try_from(self.kernel.random.below(files.len() as u64)).unwrap_or(0);
        let (path, ino, len) = files[n].clone();
        // And where the file's bytes are: what comes before them is much longer.
        let from = if self.kernel.random.below(4) == 0 { 0 } else { DATA_AT.min(len - 1) };
        let at = from + self.kernel.random.below(len - from);
        let bit = self.kernel.random.below(8);
        self.count("bit flipped", &format!("{} {path} at {at}", self.name(server)));
        self.kernel.hosts[server].disk.flip(ino, at, u8::try_from(bit).unwrap_or(0));
        let place = *self.chunks.get(&chunk_of(&path))?;
        let block = at.checked_sub(DATA_AT)? / BLOCK as u64;
        Some(Place { block: place.block + block, ..place })
    }

    fn lose_file(&mut self, server: HostId) {
        let files = self.chunk_files(server);
        if files.is_empty() {
            return;
        }
        let n = usize::try_from(self.kernel.random.below(files.len() as u64)).unwrap_or(0);
        let path = files[n].0.clone();
        self.count("chunk file gone", &format!("{} {path}", self.name(server)));
        self.kernel.hosts[server].disk.destroy(&path);
    }
}

/// The number of the last mark that a chunkserver's directory holds; 0: it has none.
fn mark_on(disk: &mut Disk) -> u64 {
    let text = disk.find(ROOT, b"/data/server_state").and_then(|ino| {
        let file = disk.file(ino)?;
        Ok(file.read(0, usize::try_from(file.len()).unwrap_or(0)))
    });
    let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    text.split(' ').nth(7).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// By the name of its file.
fn chunk_of(path: &str) -> u64 {
    path.rsplit('/').next().and_then(|name| u64::from_str_radix(name, 16).ok()).unwrap_or(0)
}
