//! One cluster from one seed: its machines, its programs, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::disk::{Disk, ROOT};
use crate::faults::Fault;
use crate::kernel::{HostId, Kernel, MILLI, ProcId, Report, SECOND};
use crate::lookout::{DRILL, Lookout, STANDARD};
use crate::oracle::Oracle;
use crate::peek::Place;

const KEY: &str = "9667cd56c5bb3e2769612ca5226fc5590123456789abcdef0123456789abcdef\n";
pub(crate) const KEY_FILE: &str = "/etc/cluster.key";
/// Small: journals are filled in advance by a share of it.
pub(crate) const DISK_BYTES: u64 = 256 << 20;
/// The whole must be well again within this, once nothing goes wrong any more.
const HEALED_WITHIN: u64 = 900 * SECOND;
/// A server that ended so often in a row, each time so soon after its start, does not start again by itself. More
/// than the seconds for which a disk can be bad or full.
const BAD_STARTS_MAX: u32 = 30;
const BAD_START: u64 = 5 * SECOND;
/// Within this a server has on its disk again what others had when it came back.
const FORGETS_WITHIN: u64 = 120 * SECOND;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) minutes: u64,
    /// A deliberate bug.
    pub(crate) canary: Option<String>,
    pub(crate) program: String,
    pub(crate) own_program: String,
    /// Everything that is said goes to the standard error.
    pub(crate) verbose: bool,
    pub(crate) follow: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) calls: u64,
    pub(crate) trace: u64,
    pub(crate) acknowledged: u64,
    pub(crate) errors: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) virtual_seconds: u64,
    pub(crate) profile: &'static str,
}

/// What happens at a time that was set before.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Start(HostId),
    Boot(HostId),
    Client(usize),
    Misfortune,
    Relief(Fault),
    Heal,
    /// Killed; whoever watches over it starts it again.
    Restart(ProcId),
    Admin(&'static str, Vec<String>),
    /// Two disks go back to where they belong.
    SwapBack(HostId, HostId),
    /// An empty disk instead of the one that was put back.
    NewDisk(HostId),
    /// Who looks at one server's replicas has had its time.
    EndLook(ProcId),
    /// Nothing got whole in time.
    TooLate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Trouble,
    Healing,
    Checking,
}

/// A command of the admin that runs.
#[derive(Debug)]
struct Command {
    purpose: &'static str,
    /// Its last argument.
    about: String,
    asked: u64,
    said: String,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) plan: Plan,
    pub(crate) master: HostId,
    pub(crate) servers: Vec<HostId>,
    pub(crate) clients: Vec<HostId>,
    admin: HostId,
    /// Reaches one server, when somebody is to see what that one holds.
    pub(crate) reader: HostId,
    pub(crate) zoned: bool,
    /// By alarm.
    acts: BTreeMap<u64, Act>,
    next_act: u64,
    oracle: Oracle,
    phase: Phase,
    /// Numbers of all clients there were.
    pub(crate) names: Vec<u64>,
    commands: BTreeMap<ProcId, Command>,
    pub(crate) lookout: Lookout,
    /// Where chunks are in files, as far as somebody asked.
    pub(crate) chunks: BTreeMap<u64, Place>,
    /// By server, when it last lost its power.
    powerless: BTreeMap<HostId, u64>,
    pub(crate) swapped: Option<(HostId, HostId)>,
    /// What a disk held once.
    pub(crate) older: Option<Disk>,
    /// The server that has it again.
    pub(crate) aged: Option<HostId>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) down: BTreeSet<HostId>,
    checker: Option<ProcId>,
    /// By server: since when it runs, how many times in a row it did not run for long, and what it said last.
    starts: BTreeMap<HostId, (u64, u32, String)>,
    violation: Option<String>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut kernel = Kernel::new(plan.seed);
        kernel.follow = plan.follow;
        // Small clusters more often than large ones: they find as much, and more of them can be tried.
        let more = kernel.random.below(6).min(kernel.random.below(6));
        let count = usize::try_from(4 + more).unwrap_or(4);
        let clients = usize::try_from(2 + kernel.random.below(4)).unwrap_or(2);
        kernel.net.latency_max =
            [100_000, 400_000, 4 * MILLI][usize::try_from(kernel.random.below(3)).unwrap_or(0)];
        let zoned = kernel.random.below(2) == 0;
        let profile = if kernel.random.below(3) == 0 { DRILL } else { STANDARD };
        kernel.two_cores = kernel.random.below(4) == 0;
        let mut add = |name: &str, ip: u8| {
            let host = kernel.add_host(name, [10, 0, 0, ip], DISK_BYTES);
            // Clocks differ by up to one in a hundred.
            let drift = i64::try_from(kernel.random.below(20_001)).unwrap_or(0) - 10_000;
            let machine = &mut kernel.hosts[host];
            machine.drift_ppm = drift;
            machine.disk.install(KEY_FILE, KEY.as_bytes(), &mut kernel.random);
            let _root_is_there = machine.disk.mkdir(ROOT, b"/data", 0);
            machine.disk.sync_all();
            host
        };
        let number = |n: usize| u8::try_from(n).unwrap_or(0);
        let master = add("master", 1);
        let servers = (1..=count).map(|n| add(&format!("cs-{n}"), 10 + number(n))).collect();
        let clients = (1..=clients).map(|n| add(&format!("client-{n}"), 100 + number(n))).collect();
        let admin = add("admin", 200);
        let reader = add("reader", 201);
        Self {
            kernel,
            plan,
            master,
            servers,
            clients,
            admin,
            reader,
            zoned,
            acts: BTreeMap::new(),
            next_act: 0,
            oracle: Oracle::default(),
            phase: Phase::Trouble,
            names: Vec::new(),
            commands: BTreeMap::new(),
            lookout: Lookout::new(profile),
            chunks: BTreeMap::new(),
            powerless: BTreeMap::new(),
            swapped: None,
            older: None,
            aged: None,
            faults: BTreeMap::new(),
            down: BTreeSet::new(),
            checker: None,
            starts: BTreeMap::new(),
            violation: None,
        }
    }

    pub(crate) fn after(&mut self, nanos: u64, act: Act) {
        self.next_act += 1;
        self.acts.insert(self.next_act, act);
        let at = self.kernel.now + nanos;
        self.kernel.alarm(at, self.next_act);
    }

    pub(crate) fn is_trouble(&self) -> bool {
        self.phase == Phase::Trouble
    }

    /// # Errors
    /// Of the machine it runs on.
    pub(crate) fn run(mut self) -> io::Result<Outcome> {
        self.start(self.master)?;
        for server in self.servers.clone() {
            self.start(server)?;
        }
        for n in 0..self.clients.len() {
            self.after(3 * SECOND, Act::Client(n));
        }
        let trouble = self.plan.minutes * 60 * SECOND;
        self.after(15 * SECOND, Act::Misfortune);
        self.after(14 * SECOND, Act::Admin("status", words("status -o json")));
        self.after(trouble, Act::Heal);
        self.after(trouble + HEALED_WITHIN, Act::TooLate);
        while self.violation.is_none() && !self.oracle.checked {
            match self.kernel.run()? {
                Report::Line { proc, line } => self.hear(proc, &line),
                Report::Ended { proc, code } => self.ended(proc, code)?,
                Report::Served { from, to } => self.served(from, to),
                Report::Busy { proc, thread } => {
                    let name = &self.kernel.procs[proc].name;
                    let wrong = format!(
                        "I23 thread '{thread}' of {name} asks on and on, and waits for nothing"
                    );
                    self.violation.get_or_insert(wrong);
                }
                Report::Alarm(number) => {
                    if let Some(act) = self.acts.remove(&number) {
                        self.act(act)?;
                    }
                }
            }
        }
        Ok(Outcome {
            violation: self.violation,
            calls: self.kernel.calls,
            trace: self.kernel.trace,
            acknowledged: self.oracle.acknowledged,
            errors: self.oracle.errors,
            faults: self.faults,
            virtual_seconds: self.kernel.now / SECOND,
            profile: self.lookout.profile.name,
        })
    }

    pub(crate) fn say(&self, text: &str) {
        if self.plan.verbose {
            eprintln!("{:>12.6} {text}", self.kernel.now as f64 / 1e9);
        }
    }

    fn hear(&mut self, proc: ProcId, line: &str) {
        let name = self.kernel.procs[proc].name.clone();
        self.say(&format!("{name}: {line}"));
        if let Some(command) = self.commands.get_mut(&proc) {
            command.said.push_str(line);
            command.said.push('\n');
        }
        if self.kernel.procs[proc].host == self.master {
            self.hear_master(line);
        }
        if name.starts_with("client") || name == "reader" || Some(proc) == self.checker {
            let wrong = self.oracle.hear(proc, line);
            if self.violation.is_none() {
                self.violation = wrong;
            }
        }
        if let Some((_, _, said)) = self.starts.get_mut(&self.kernel.procs[proc].host) {
            line.clone_into(said);
        }
        if line.contains("panicked at") {
            self.violation = Some(format!("{name}: {line}"));
        }
    }

    fn ended(&mut self, proc: ProcId, code: i32) -> io::Result<()> {
        let (name, host) = (self.kernel.procs[proc].name.clone(), self.kernel.procs[proc].host);
        self.say(&format!("{name} ended: {code}"));
        if let Some(command) = self.commands.remove(&proc) {
            self.command_is_over(command.purpose, &command.about, code);
            return self.command_ended(&command, code);
        }
        if Some(proc) == self.checker {
            self.violation = Some(format!("the last check ended with {code}"));
        } else if host == self.master || self.servers.contains(&host) {
            self.count_bad_start(host, &name, code);
            // As whoever watches over them would.
            self.after(SECOND, Act::Start(host));
        }
        Ok(())
    }

    /// A server ended by itself.
    fn count_bad_start(&mut self, host: HostId, name: &str, code: i32) {
        let now = self.kernel.now;
        let Some((since, bad, said)) = self.starts.get_mut(&host) else { return };
        *bad = if code != 0 && now - *since < BAD_START { *bad + 1 } else { 0 };
        if BAD_STARTS_MAX <= *bad {
            self.violation =
                Some(format!("I4 {name} does not start again, {bad} times in a row: {said}"));
        }
    }

    fn act(&mut self, act: Act) -> io::Result<()> {
        match act {
            Act::Start(host) => {
                let runs =
                    self.kernel.alive().iter().any(|proc| self.kernel.procs[*proc].host == host);
                if self.kernel.hosts[host].up && !runs {
                    self.start(host)?;
                }
            }
            Act::Boot(host) => {
                self.down.remove(&host);
                if !self.kernel.hosts[host].up {
                    self.kernel.boot(host);
                }
                self.act(Act::Start(host))?;
            }
            Act::Client(n) => {
                if self.phase == Phase::Trouble {
                    self.start_client(n)?;
                }
            }
            Act::Misfortune => {
                if self.phase == Phase::Trouble {
                    self.misfortune()?;
                    let pause = 3 * SECOND + self.kernel.random.below(25 * SECOND);
                    self.after(pause, Act::Misfortune);
                }
            }
            Act::Relief(fault) => self.relieve(&fault),
            Act::Heal => self.heal()?,
            Act::Restart(proc) => {
                let host = self.kernel.procs[proc].host;
                self.kernel.kill(proc, true);
                self.after(SECOND, Act::Start(host));
            }
            Act::Admin(purpose, args) => self.command(purpose, &args)?,
            Act::SwapBack(one, other) => {
                if self.swapped.take().is_some() {
                    self.exchange(one, other);
                }
            }
            Act::NewDisk(host) => {
                if self.aged.take().is_some() {
                    self.lose_power(host);
                    self.new_disk(host);
                    self.after(2 * SECOND, Act::Boot(host));
                }
            }
            Act::EndLook(proc) => self.kernel.kill(proc, true),
            Act::TooLate => {
                self.violation = Some(format!(
                    "I16 not whole {} s after all faults ended",
                    HEALED_WITHIN / SECOND
                ));
            }
        }
        Ok(())
    }

    // --- programs ---------------------------------------------------------------------------------------------------

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("DFS_KEY_FILE", KEY_FILE.to_owned()),
            ("DFS_MASTER", "10.0.0.1:7000".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
            // Journals are read into large buffers: a page of 2 MiB of zeros is there faster than 512.
            ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1".to_owned()),
            // Copies that begin are looked at.
            ("DFS_LOG", "info,master::rebuild=debug".to_owned()),
        ];
        if let Some(canary) = &self.plan.canary {
            environment.push(("DFS_CANARY", canary.clone()));
        }
        environment
    }

    pub(crate) fn launch(
        &mut self,
        host: HostId,
        program: &str,
        args: &[String],
    ) -> io::Result<ProcId> {
        let environment = self.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let name = self.kernel.hosts[host].name.clone();
        self.kernel.start(host, &name, program, args, &environment)
    }

    /// The server that is to run there.
    fn start(&mut self, host: HostId) -> io::Result<()> {
        let args = if host == self.master {
            self.lookout.master_began = self.kernel.now;
            format!(
                "master --data /data/m --listen 10.0.0.1:7000 --profile {}",
                self.lookout.profile.name
            )
        } else {
            let Some(n) = self.servers.iter().position(|server| *server == host) else {
                return Ok(());
            };
            let zone = if self.zoned { format!(" --zone z{}", n % 3) } else { String::new() };
            format!(
                "chunkserver --data /data --id cs-{} --listen 10.0.0.{}:7001 --scrub-period 20m{zone}",
                n + 1,
                11 + n
            )
        };
        let (program, now) = (self.plan.program.clone(), self.kernel.now);
        let (since, bad, _) = self.starts.entry(host).or_insert((now, 0, String::new()));
        // The last one was no bad one, however it was ended.
        if BAD_START + SECOND < now - *since {
            *bad = 0;
        }
        *since = now;
        self.launch(host, &program, &words(&args)).map(drop)
    }

    fn start_client(&mut self, n: usize) -> io::Result<()> {
        let host = self.clients[n];
        let id = self.names.len() as u64;
        self.names.push(id);
        let args = format!("client 10.0.0.1:7000 {KEY_FILE} {id} {}", self.plan.seed);
        let program = self.plan.own_program.clone();
        self.launch(host, &program, &words(&args)).map(drop)
    }

    pub(crate) fn command(&mut self, purpose: &'static str, args: &[String]) -> io::Result<()> {
        let program = self.plan.program.clone();
        let proc = self.launch(self.admin, &program, args)?;
        let about = args.last().cloned().unwrap_or_default();
        self.command_begins(purpose, &about);
        let command = Command { purpose, about, asked: self.kernel.now, said: String::new() };
        self.commands.insert(proc, command);
        Ok(())
    }

    pub(crate) fn wrong(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn command_ended(&mut self, command: &Command, code: i32) -> io::Result<()> {
        let Command { purpose, asked, said, .. } = command;
        let json = |said: &str| serde_json::from_str::<serde_json::Value>(said).ok();
        match *purpose {
            "status" => {
                if let Some(status) = json(said).filter(|_| code == 0) {
                    self.check_status(&status, *asked);
                    let chunks = &status["chunks"];
                    if chunks["lost"].as_u64() != Some(0) {
                        self.violation = Some(format!("I18 chunks are said to be lost: {chunks}"));
                    }
                    let safe =
                        chunks["safe"] == chunks["total"] && chunks["total"].as_u64() != Some(0);
                    self.safe(safe)?;
                }
                if self.phase == Phase::Trouble {
                    self.locate_one()?;
                    self.after(40 * SECOND, Act::Admin("status", words("status -o json")));
                }
            }
            "locate" if code == 0 => self.located(said),
            "fsck" => {
                if code == 0 && self.phase == Phase::Healing {
                    self.phase = Phase::Checking;
                    self.oracle.is_end = true;
                    let all: Vec<String> = self.names.iter().map(ToString::to_string).collect();
                    let args =
                        format!("client 10.0.0.1:7000 {KEY_FILE} 999 check {}", all.join(" "));
                    let program = self.plan.own_program.clone();
                    self.checker =
                        Some(self.launch(self.admin, &program, &words(args.trim_end()))?);
                } else {
                    self.after(10 * SECOND, Act::Admin("fsck", words("fsck")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    // --- the end of all trouble -------------------------------------------------------------------------------------

    fn heal(&mut self) -> io::Result<()> {
        self.phase = Phase::Healing;
        self.say("nothing goes wrong any more");
        self.kernel.net.cut.clear();
        for proc in self.kernel.alive() {
            self.kernel.pause(proc, false);
        }
        self.kernel.net.stuck.clear();
        if let Some((one, other)) = self.swapped.take() {
            self.exchange(one, other);
        }
        if let Some(host) = self.aged {
            self.act(Act::NewDisk(host))?;
        }
        for client in self.clients.iter().copied().chain([self.reader]).collect::<Vec<_>>() {
            for proc in self.kernel.alive() {
                if self.kernel.procs[proc].host == client {
                    self.kernel.kill(proc, true);
                }
            }
        }
        for host in self.servers.iter().copied().chain([self.master]).collect::<Vec<_>>() {
            let machine = &mut self.kernel.hosts[host];
            machine.disk.be_well(DISK_BYTES);
            machine.sync_nanos_max = 2 * MILLI;
            self.act(Act::Boot(host))?;
        }
        self.kernel.resend();
        for n in 1..=self.servers.len() {
            self.after(5 * SECOND, Act::Admin("recover", words(&format!("recover cs-{n}"))));
            self.after(6 * SECOND, Act::Admin("undrain", words(&format!("undrain cs-{n}"))));
        }
        self.after(20 * SECOND, Act::Admin("fsck", words("fsck")));
        Ok(())
    }

    /// A machine loses its power. What two servers lose soon after one another may have been on no third.
    pub(crate) fn lose_power(&mut self, host: HostId) {
        let now = self.kernel.now;
        let mut others = self.powerless.iter().filter(|(other, _)| **other != host);
        if self.servers.contains(&host) && others.any(|(_, at)| now < at + FORGETS_WITHIN) {
            self.oracle.may_forget();
        }
        if self.servers.contains(&host) {
            self.powerless.insert(host, now);
        }
        self.kernel.crash_host(host, true);
    }

    /// A server's disk is gone, and an empty one is there.
    pub(crate) fn new_disk(&mut self, host: HostId) {
        // An older copy would be one of another disk.
        self.older = None;
        let mut disk = Disk::new(DISK_BYTES);
        disk.install(KEY_FILE, KEY.as_bytes(), &mut self.kernel.random);
        let _root_is_there = disk.mkdir(ROOT, b"/data", 0);
        disk.sync_all();
        self.kernel.hosts[host].disk = disk;
    }
}

pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}
