//! Starts the processes of a local cluster in order, watches them, stops them in order.
//!
//! Order up: master, chunkservers, mount. Order down: mount (flushes), chunkservers, master. A process that ends by
//! itself is started again after a pause that doubles with each early end. Whoever wants to stop the cluster stops the
//! supervisor first, so that nothing is restarted behind its back.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_client::session::{Session, SessionConfig};
use dfs_core::command::{Change, SetTime};
use dfs_core::ids::{InodeNo, ServerId};
use dfs_service::conn::ClusterKey;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::args::Restart;
use crate::failure::{Failure, fail, one_line};
use crate::local::{ChunkserverEntry, ClusterDir, ClusterFile, Doing, Lock, Role, free_address};
use crate::mount_point;
use crate::process::{KILLED_MAX, Process};

/// How often children are looked at.
const TICK: Duration = Duration::from_millis(20);
/// A server that has not written its address by then is stuck: a log of gigabytes may have to be replayed.
const START_MAX: Duration = Duration::from_secs(300);
/// Chunkservers that have not joined by then are reported; the mount works with those that have.
const JOIN_MAX: Duration = Duration::from_secs(20);
const MOUNT_MAX: Duration = Duration::from_secs(60);
/// What was started of a failed start gets this long to stop.
const FAILED_GRACE: Duration = Duration::from_secs(10);
/// A start that has not succeeded or failed by then hangs: master, chunkservers, what lies between and behind.
pub(crate) const START_ALL_MAX: Duration = Duration::from_secs(2 * 300 + 180);
/// First and longest pause before a restart; a life longer than `STEADY` counts as a fresh start.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(30);
/// Rounds of watching between two looks at where restarted processes serve their metrics.
const METRICS_ROUNDS: u32 = 25;
/// A log larger than this is moved to `.old` when its process starts.
const LOG_BYTES_MAX: u64 = 32 << 20;

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub dir: ClusterDir,
    pub file: ClusterFile,
    pub chunkservers: u32,
    pub restart: Restart,
    pub accept_loss: bool,
    /// For `dfs shell`: such a master, and no mount.
    pub exercise: bool,
    /// The mount outlives its client: `run/mount.pid` names the client then, `run/mount-holder.pid` whoever starts it.
    pub hold: bool,
    /// How long the mount waits for servers, if not as usual.
    pub server_wait: Option<Duration>,
}

/// Says one line to whoever watches the start.
pub(crate) type Say<'a> = &'a mut dyn FnMut(&str);

#[derive(Debug)]
struct Watched {
    role: Role,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    restart_at: Option<Instant>,
}

/// Running children of this process. Dropping it without [`Supervisor::stop`] leaves them running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    plan: Plan,
    program: PathBuf,
    watched: Vec<Watched>,
    /// Held until the end: tells others that somebody is responsible.
    lock: Lock,
}

impl Supervisor {
    /// Starts everything and returns when the mount answers, if there is to be one. On an error all that was started is stopped again.
    pub(crate) fn start(
        plan: Plan,
        lock: Lock,
        shutdown: &Shutdown,
        say: Say<'_>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut supervisor = Self { plan, program, watched: Vec::new(), lock };
        match supervisor.start_all(shutdown, say) {
            Ok(()) => Ok(supervisor),
            Err(error) => {
                supervisor.stop(FAILED_GRACE, say);
                Err(error)
            }
        }
    }

    pub(crate) fn file(&self) -> &ClusterFile {
        &self.plan.file
    }

    fn start_all(&mut self, shutdown: &Shutdown, say: Say<'_>) -> anyhow::Result<()> {
        let dir = self.plan.dir.clone();
        write_pid(&dir, Role::Supervisor, std::process::id())?;

        self.plan.file.master = free_address(&self.plan.file.master).to_string();
        self.spawn(Role::Master)?;
        let address = self
            .await_address(Role::Master, Instant::now() + START_MAX, shutdown, say)?
            .context("the master has ended")?;
        say(&format!("master        {address}   log {}", dir.log_file(Role::Master).display()));
        self.plan.file.master = address;

        let ids: Vec<ServerId> = (1..=self.plan.chunkservers).map(ServerId).collect();
        for id in &ids {
            let known = self.plan.file.chunkservers.iter().find(|entry| entry.id == id.to_string());
            let address =
                free_address(known.map_or("", |entry| entry.address.as_str())).to_string();
            self.remember(*id, address);
            self.spawn(Role::Chunkserver(*id))?;
        }
        let until = Instant::now() + START_MAX;
        for id in ids {
            let role = Role::Chunkserver(id);
            let Some(address) = self.await_address(role, until, shutdown, say)? else { continue };
            say(&format!(
                "{:<13} {address}   log {}",
                role.to_string(),
                dir.log_file(role).display()
            ));
            self.remember(id, address);
        }
        self.plan.dir.write(&self.plan.file)?;
        self.await_joined(shutdown, say)?;
        self.own_root().context("make the root directory yours")?;
        if self.plan.exercise {
            return self.note_metrics();
        }

        self.spawn(Role::Mount)?;
        self.await_mount(shutdown, say)?;
        say(&format!(
            "mount         {}   log {}",
            self.plan.file.mount.display(),
            dir.log_file(Role::Mount).display()
        ));
        self.note_metrics()?;
        Ok(())
    }

    /// The file system of an ordinary user: its root directory is theirs, or they could make nothing in it.
    fn own_root(&self) -> anyhow::Result<()> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            return Ok(());
        }
        let key = ClusterKey::load(&self.plan.dir.key_file())?;
        let session =
            Session::connect(SessionConfig::new(self.plan.file.master.clone(), key, "dfs up"))?;
        if session.getattr(InodeNo::ROOT)?.uid != 0 {
            return Ok(());
        }
        session.change(Change::SetAttr {
            ino: InodeNo::ROOT,
            mode: None,
            uid: Some(uid.as_raw()),
            gid: Some(gid.as_raw()),
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
            kill_priv: false,
        })?;
        Ok(())
    }

    fn remember(&mut self, id: ServerId, address: String) {
        let id = id.to_string();
        match self.plan.file.chunkservers.iter_mut().find(|entry| entry.id == id) {
            Some(entry) => entry.address = address,
            None => self.plan.file.chunkservers.push(ChunkserverEntry { id, address }),
        }
    }

    /// Keeps in `cluster.json` where the processes serve their metrics now.
    fn note_metrics(&mut self) -> anyhow::Result<()> {
        let dir = &self.plan.dir;
        let metrics = self.watched.iter().filter_map(|watched| {
            let text = std::fs::read_to_string(dir.metrics_file(watched.role)).ok()?;
            Some((watched.role.to_string(), text.strip_suffix('\n')?.to_owned()))
        });
        let metrics = metrics.collect();
        if self.plan.file.metrics != metrics {
            self.plan.file.metrics = metrics;
            dir.write(&self.plan.file)?;
        }
        Ok(())
    }

    /// The arguments a person would type for this process.
    fn arguments(&self, role: Role) -> Vec<String> {
        let Plan { dir, file, accept_loss, exercise, hold, server_wait, .. } = &self.plan;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let key = text(&dir.key_file());
        let mut arguments: Vec<String> = match role {
            Role::Master => vec![
                "master".into(),
                "--data".into(),
                text(&dir.data(role)),
                "--listen".into(),
                file.master.clone(),
                "--profile".into(),
                file.profile.clone(),
                "--replication".into(),
                file.replication.to_string(),
                "--min-replicas".into(),
                file.min_replicas.to_string(),
                // An earlier start with fewer chunkservers lowered them.
                "--change-replication".into(),
            ],
            Role::Chunkserver(id) => {
                let listen = file
                    .chunkservers
                    .iter()
                    .find(|entry| entry.id == id.to_string())
                    .map_or_else(|| "127.0.0.1:0".to_owned(), |entry| entry.address.clone());
                vec![
                    "chunkserver".into(),
                    "--data".into(),
                    text(&dir.data(role)),
                    "--id".into(),
                    id.to_string(),
                    "--listen".into(),
                    listen,
                    "--master".into(),
                    file.master.clone(),
                ]
            }
            Role::Mount | Role::Supervisor => {
                vec!["mount".into(), file.master.clone(), text(&file.mount)]
            }
        };
        if role == Role::Master {
            arguments.extend(file.timing().arguments());
            arguments.extend(exercise.then(|| "--exercise".to_owned()));
        }
        if let (Role::Chunkserver(_), Some(capacity)) = (role, file.capacity_bytes) {
            arguments.extend(["--capacity".into(), capacity.to_string()]);
        }
        if let (Role::Chunkserver(_), Some(millis)) = (role, file.scrub_period_ms) {
            arguments.extend(["--scrub-period".into(), format!("{millis}ms")]);
        }
        if *accept_loss && role != Role::Mount {
            arguments.push("--accept-loss".into());
        }
        if *hold && role == Role::Mount {
            arguments.extend(["--hold".into(), "--pid-dir".into(), text(&dir.run())]);
        }
        if let Some(wait) = server_wait
            && role == Role::Mount
        {
            arguments.extend(["--server-wait".into(), format!("{}ms", wait.as_millis())]);
        }
        if role != Role::Mount {
            arguments.extend(["--address-file".into(), text(&dir.address_file(role))]);
        }
        let metrics = file.metrics.get(&role.to_string()).map_or("", String::as_str);
        arguments.extend(["--metrics".into(), free_address(metrics).to_string()]);
        arguments.extend(["--metrics-file".into(), text(&dir.metrics_file(role))]);
        arguments.extend(["--key-file".into(), key]);
        arguments
    }

    fn spawn(&mut self, role: Role) -> anyhow::Result<()> {
        let dir = &self.plan.dir;
        // A stale address would be taken for the new one.
        let _absent = std::fs::remove_file(dir.address_file(role));
        let _absent = std::fs::remove_file(dir.metrics_file(role));
        let log = open_log(&dir.log_file(role))?;
        let child = Command::new(&self.program)
            .args(self.arguments(role))
            // Only what is said here decides: these would redirect the child.
            .env_remove("DFS_DIR")
            .env_remove("DFS_MASTER")
            .env_remove("DFS_KEY_FILE")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open log")?)
            .stderr(log)
            // Ctrl-C at the terminal reaches the supervisor alone, which stops the others in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {role}"))?;
        // A holder writes its own and its client's.
        if role != Role::Mount || !self.plan.hold {
            write_pid(dir, role, child.id())?;
        }
        let now = Instant::now();
        match self.watched.iter_mut().find(|watched| watched.role == role) {
            Some(watched) => {
                watched.child = Some(child);
                watched.started = now;
                watched.restart_at = None;
            }
            None => self.watched.push(Watched {
                role,
                child: Some(child),
                started: now,
                pause: PAUSE_MIN,
                restart_at: None,
            }),
        }
        Ok(())
    }

    /// Looks whether a child of the start has ended. Chunkservers may, as long as there are enough for a write: their
    /// chunks have copies on others, and what they say is told. Anything else fails, as does a wish to stop.
    fn check_start(&mut self, shutdown: &Shutdown, say: Say<'_>) -> anyhow::Result<()> {
        if shutdown.is_asked() {
            return fail("start interrupted", "nothing is left running");
        }
        let dir = &self.plan.dir;
        let needed = usize::try_from(self.plan.file.min_replicas).unwrap_or(usize::MAX);
        let (restart, mut left) = (self.plan.restart, self.chunkservers_running().len());
        for watched in &mut self.watched {
            let Some(child) = &mut watched.child else { continue };
            let Some(status) = child.try_wait().context("wait for child")? else { continue };
            watched.child = None;
            let (role, log) = (watched.role, dir.log_file(watched.role));
            dir.forget_pid(role);
            let words = last_words(&log, status);
            let whole_log = format!("the whole log is in {}", log.display());
            left -= usize::from(matches!(role, Role::Chunkserver(_)));
            if !matches!(role, Role::Chunkserver(_)) || left < needed {
                return fail(format!("start {role}: {words}"), whole_log);
            }
            let see = match words.contains(Page::FILE) {
                true => String::new(),
                false => format!("; see {}", Page::DeadServer),
            };
            say(&format!(
                "warning: {role} does not start: {words}{see}; going on with {left} chunkservers; {whole_log}"
            ));
            if restart == Restart::OnFailure {
                watched.restart_at = Some(Instant::now() + watched.pause);
            }
        }
        Ok(())
    }

    fn chunkservers_running(&self) -> Vec<Role> {
        let is_running = |watched: &&Watched| {
            matches!(watched.role, Role::Chunkserver(_)) && watched.child.is_some()
        };
        self.watched.iter().filter(is_running).map(|watched| watched.role).collect()
    }

    /// `None`: it has ended, which [`Self::check_start`] let pass.
    fn await_address(
        &mut self,
        role: Role,
        until: Instant,
        shutdown: &Shutdown,
        say: Say<'_>,
    ) -> anyhow::Result<Option<String>> {
        let path = self.plan.dir.address_file(role);
        loop {
            // Complete only with its newline: it may be read while it is written.
            if let Ok(text) = std::fs::read_to_string(&path)
                && let Some(address) = text.strip_suffix('\n')
            {
                return Ok(Some(address.to_owned()));
            }
            self.check_start(shutdown, say)?;
            if self.watched.iter().any(|it| it.role == role && it.child.is_none()) {
                return Ok(None);
            }
            if until <= Instant::now() {
                return fail(
                    format!("start {role}: no address after {} s", START_MAX.as_secs()),
                    format!("see {}", self.plan.dir.log_file(role).display()),
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until the master has heard of every chunkserver: a first write should not be refused.
    fn await_joined(&mut self, shutdown: &Shutdown, say: Say<'_>) -> anyhow::Result<()> {
        let until = Instant::now() + JOIN_MAX;
        loop {
            self.check_start(shutdown, say)?;
            let wanted = self.chunkservers_running();
            let alive =
                crate::admin::alive_servers(&self.plan.file.master, &self.plan.dir.key_file());
            match alive {
                Ok(alive) if wanted.len() <= alive.len() => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < until => std::thread::sleep(TICK * 5),
                Ok(alive) => {
                    let is_missing = |role: &&Role| !alive.contains(&role.to_string());
                    for role in wanted.iter().filter(is_missing) {
                        let log = self.plan.dir.log_file(*role);
                        let why = last_trouble(&log)
                            .map_or_else(String::new, |trouble| format!("it says: {trouble}; "));
                        say(&format!(
                            "warning: {role} has not joined; {why}the whole log is in {}",
                            log.display()
                        ));
                    }
                    let (joined, wanted) = (alive.len(), wanted.len());
                    say(&format!(
                        "warning: {joined} of {wanted} chunkservers have joined; going on with those"
                    ));
                    return Ok(());
                }
                Err(error) => return Err(error.context("ask the master for its chunkservers")),
            }
        }
    }

    fn await_mount(&mut self, shutdown: &Shutdown, say: Say<'_>) -> anyhow::Result<()> {
        let until = Instant::now() + MOUNT_MAX;
        loop {
            if mount_point::answers(&self.plan.file.mount, Duration::from_secs(5)) {
                return Ok(());
            }
            self.check_start(shutdown, say)?;
            if until <= Instant::now() {
                return fail(
                    format!(
                        "mount {}: no answer after {} s",
                        self.plan.file.mount.display(),
                        MOUNT_MAX.as_secs()
                    ),
                    format!("see {}", self.plan.dir.log_file(Role::Mount).display()),
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Watches until asked to stop.
    pub(crate) fn watch(&mut self, shutdown: &Shutdown, say: Say<'_>) {
        let mut rounds = 0_u32;
        while !shutdown.wait_for(TICK * 2) {
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(METRICS_ROUNDS)
                && let Err(error) = self.note_metrics()
            {
                say(&format!("warning: {error:#}"));
            }
            self.look(say);
        }
    }

    /// Says what has ended since the last look, and starts again what is to be.
    pub(crate) fn look(&mut self, say: Say<'_>) {
        for index in 0..self.watched.len() {
            self.look_at(index, say);
        }
    }

    fn look_at(&mut self, index: usize, say: Say<'_>) {
        let restart = self.plan.restart;
        let Some(watched) = self.watched.get_mut(index) else { return };
        let role = watched.role;
        if let Some(child) = &mut watched.child {
            let Ok(Some(status)) = child.try_wait() else { return };
            watched.child = None;
            self.plan.dir.forget_pid(role);
            let log = self.plan.dir.log_file(role);
            if restart == Restart::Never || status.success() {
                // Told to stop, or unmounted.
                let (ended, log) = (ended(status), log.display());
                say(&match status.success() {
                    true => {
                        format!("{role} ended ({ended}); not restarted, that is no failure; {log}")
                    }
                    false => {
                        let page = page_of(role);
                        format!(
                            "{role} ended ({ended}); not restarted, as asked; {log}; see {page}"
                        )
                    }
                });
                return;
            }
            if STEADY <= watched.started.elapsed() {
                watched.pause = PAUSE_MIN;
            }
            say(&format!(
                "{role} ended ({}); restart in {} ms; {}; see {}",
                ended(status),
                watched.pause.as_millis(),
                log.display(),
                page_of(role)
            ));
            watched.restart_at = Some(Instant::now() + watched.pause);
            watched.pause = (watched.pause * 2).min(PAUSE_MAX);
        } else if watched.restart_at.is_some_and(|at| at <= Instant::now()) {
            // A new mount takes the dead one's place itself: until it can, programs are told that there is none.
            match self.spawn(role) {
                Ok(()) => say(&format!("{role} restarted")),
                Err(error) => {
                    say(&format!("restart {role}: {error:#}; see {}", page_of(role)));
                    if let Some(watched) = self.watched.get_mut(index) {
                        watched.restart_at = Some(Instant::now() + watched.pause);
                        watched.pause = (watched.pause * 2).min(PAUSE_MAX);
                    }
                }
            }
        }
    }

    /// Stops mount, chunkservers, master, each at most `grace` before it is killed.
    pub(crate) fn stop(&mut self, grace: Duration, say: Say<'_>) {
        self.lock.now(Doing::Down);
        // Reversed start order, but chunkservers together: each stops for itself.
        let groups: [fn(Role) -> bool; 3] = [
            |role| role == Role::Mount,
            |role| matches!(role, Role::Chunkserver(_)),
            |role| role == Role::Master,
        ];
        for group in groups {
            let mut stopping: Vec<&mut Watched> =
                self.watched.iter_mut().filter(|watched| group(watched.role)).collect();
            for watched in &mut stopping {
                watched.restart_at = None;
                if let Some(child) = &watched.child {
                    own(child).signal(rustix::process::Signal::TERM);
                }
            }
            let until = Instant::now() + grace;
            for watched in stopping {
                let Some(mut child) = watched.child.take() else { continue };
                if ended_by(&mut child, until) {
                    say(&format!("{} stopped", watched.role));
                } else {
                    let log = self.plan.dir.log_file(watched.role);
                    say(&killed(watched.role, grace, &log));
                    let _ended_meanwhile = child.kill();
                    if !ended_by(&mut child, Instant::now() + KILLED_MAX) {
                        say(&format!(
                            "{} (pid {}) is still there after SIGKILL: the kernel works for it; see {}",
                            watched.role,
                            child.id(),
                            log.display()
                        ));
                        // Its pid file stays: the next start must not meet it.
                        continue;
                    }
                }
                self.plan.dir.forget_pid(watched.role);
            }
            if group(Role::Mount)
                && !self.plan.exercise
                && let Err(error) = mount_point::unmount(&self.plan.file.mount)
            {
                say(&format!("warning: {error:#}"));
            }
        }
        self.plan.dir.forget_pid(Role::Supervisor);
        self.lock.done();
    }
}

/// What helps when one of these is gone.
fn page_of(role: Role) -> Page {
    match role {
        Role::Chunkserver(_) => Page::DeadServer,
        Role::Master | Role::Supervisor => Page::MasterSilent,
        Role::Mount => Page::ClientSilent,
    }
}

/// Waits until `child` has ended, at most `until`; says whether it has.
pub(crate) fn ended_by(child: &mut Child, until: Instant) -> bool {
    while matches!(child.try_wait(), Ok(None)) {
        if until <= Instant::now() {
            return false;
        }
        std::thread::sleep(TICK / 2);
    }
    true
}

/// A child of ours that has not been waited for keeps its pid: no marks needed.
fn own(child: &Child) -> Process {
    Process { pid: child.id(), marks: Vec::new() }
}

pub(crate) fn write_pid(dir: &ClusterDir, role: Role, pid: u32) -> anyhow::Result<()> {
    let path = dir.pid_file(role);
    std::fs::write(&path, format!("{pid}\n")).with_context(|| format!("write {}", path.display()))
}

pub(crate) fn open_log(path: &Path) -> anyhow::Result<File> {
    if std::fs::metadata(path).is_ok_and(|meta| LOG_BYTES_MAX < meta.len()) {
        std::fs::rename(path, path.with_extension("log.old"))
            .with_context(|| format!("move {}", path.display()))?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown reason".to_owned(),
    }
}

/// The last line of a log, as the reason of an end: our programs say it there.
/// In what [`killed`] says.
pub(crate) const DID_NOT_STOP: &str = " did not stop within ";

/// What is said of a process that was killed because it did not stop.
pub(crate) fn killed(role: Role, grace: Duration, log: &Path) -> String {
    let lost = if role == Role::Mount { " (what it had not sent yet is lost)" } else { "" };
    let seconds = grace.as_secs_f64();
    format!("{role}{DID_NOT_STOP}{seconds} s: killed{lost}; see {}", log.display())
}

fn last_words(log: &Path, status: ExitStatus) -> String {
    let words = tail(log, 4096);
    // What it said as its reason, else whatever came last.
    let reason = words.lines().rev().find_map(|line| line.strip_prefix("dfs: "));
    let last = || words.lines().rev().find(|line| !line.trim().is_empty());
    match reason.or_else(last) {
        Some(line) => one_line(line),
        None => ended(status),
    }
}

/// The last warning or error of a log, without its time.
fn last_trouble(log: &Path) -> Option<String> {
    let words = tail(log, 16 << 10);
    let trouble = |line: &str| {
        let levels = [" ERROR ", " WARN "];
        levels.iter().find_map(|level| line.split_once(level)).map(|(_, said)| one_line(said))
    };
    words.lines().rev().find_map(trouble)
}

fn tail(path: &Path, bytes: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        file.take(bytes).read_to_end(&mut text)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => Failure::new(error.to_string(), "no log").to_string(),
    }
}
