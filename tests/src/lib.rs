//! The harness: real clusters made by the real `dfs`, in directories of their own, gone when the test ends.
//!
//! Nothing outlives a test: a [`Cluster`] that is dropped stops its processes, kills what does not stop, and unmounts.
//! Which program is tried: `DFS_BIN`, else the `dfs` beside the test's own executable, built first if it is old.

pub mod canary;
mod disk;
pub mod monitoring;
mod random;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use disk::SmallDisk;
pub use random::{Random, setting};
use rustix::process::{Pid, Signal};

/// Leave room for slow machines: a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The `dfs` program under test.
///
/// # Panics
/// If there is none and it cannot be built.
pub fn dfs_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("DFS_BIN") {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "DFS_BIN {}: no such file", path.display());
            return path;
        }
        let test = std::env::current_exe().expect("path of this test");
        // target/PROFILE/deps/NAME-HASH
        let profile_dir = test.parent().and_then(Path::parent).expect("cargo's layout").to_owned();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "cli"]).current_dir(repository());
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        if let Some(target) = profile_dir.parent() {
            build.env("CARGO_TARGET_DIR", target);
        }
        let built = build.status().expect("run cargo");
        assert!(built.success(), "cargo build --package cli failed");
        profile_dir.join("dfs")
    })
}

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
        .to_owned()
}

/// A test that cannot be tried here. With `DFS_TESTS_REQUIRE=1` that is a failure; else `tests/run` counts it as
/// skipped. Use: `if let Some(reason) = … { return skipped(reason); }`.
///
/// # Panics
/// If skipping is not allowed.
pub fn skipped(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("DFS_TESTS_REQUIRE").is_none_or(|v| v != "1"),
        "{name} cannot run here and DFS_TESTS_REQUIRE=1: {reason}"
    );
    let line = format!("skipped {name}, because {reason}\n");
    match std::env::var_os("DFS_TESTS_SKIPPED") {
        Some(list) => std::fs::File::options()
            .create(true)
            .append(true)
            .open(list)
            .and_then(|mut list| list.write_all(line.as_bytes()))
            .expect("write DFS_TESTS_SKIPPED"),
        None => eprint!("{line}"),
    }
}

/// Why mounts cannot be tried here, if so.
#[must_use]
pub fn no_fuse() -> Option<String> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/fuse: {error}")),
    }
}

/// Runs `command` to its end, at most `limit`.
///
/// # Panics
/// If it does not end in time (it is killed then) or cannot be started.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with_input(command, b"", limit)
}

/// As [`run`], with `input` on its standard input.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        // A program that does not read its input closes it: not this function's concern.
        let _closed = stdin.write_all(&input);
    });
    let pid = child.id();
    let (done, wait) = std::sync::mpsc::channel();
    let collector = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _receiver = done.send(());
        output
    });
    if wait.recv_timeout(limit).is_err() {
        let threads = threads_of(pid);
        signal(pid, Signal::KILL);
        let output = collector.join().expect("collector").expect("output");
        panic!(
            "{command:?} did not end within {limit:?}; its threads: {threads}; it said: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    feeder.join().expect("feeder");
    collector.join().expect("collector").expect("output")
}

/// Where each thread of a process waits: name, state, system call, function of the kernel.
fn threads_of(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten().map(|task| {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
        let (comm, syscall, wchan) = (read("comm"), read("syscall"), read("wchan"));
        format!("{} {state} {} {wchan}", comm.trim(), syscall.trim())
    });
    tasks.collect::<Vec<_>>().join(", ")
}

/// Standard output of a run that must succeed.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn stdout_of(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `holds`, at most [`PATIENCE`].
///
/// # Panics
/// If it does not come true; `what` names it.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to one process; one that is gone already is left alone.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

/// Whether a process runs; a zombie does not, unless it has threads left: then its files are still open.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')));
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    match zombie {
        None => false,
        Some(false) => true,
        Some(true) => 1 < threads(),
    }
}

/// Whether a FUSE file system is mounted at `path`.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| {
        line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path) && line.contains(" - fuse")
    })
}

/// What [`Cluster::start_with`] starts.
#[derive(Clone, Debug)]
pub struct Options {
    pub chunkservers: u32,
    pub profile: &'static str,
    /// `never` or `on-failure`: tests that kill processes usually want to see them dead.
    pub restart: &'static str,
    /// More arguments of the first start.
    pub timing: &'static [&'static str],
    /// Of each chunkserver; `None`: what its disk has, which is another thing on each machine.
    pub capacity: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunkservers: 3,
            profile: "drill",
            restart: "never",
            timing: &[],
            capacity: Some("20GiB"),
        }
    }
}

/// A cluster of real processes with one mount, in a temporary directory.
#[derive(Debug)]
pub struct Cluster {
    temp: tempfile::TempDir,
    options: Options,
    more_mounts: Vec<(Child, PathBuf)>,
}

impl Cluster {
    /// Three chunkservers, drill profile, no restarts.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// # Panics
    /// If it does not come up.
    #[track_caller]
    #[must_use]
    pub fn start_with(options: Options) -> Self {
        let temp = tempfile::Builder::new().prefix("t-").tempdir().expect("temporary directory");
        let cluster = Self { temp, options, more_mounts: Vec::new() };
        cluster.up();
        cluster
    }

    /// As [`Self::start_with`], with some servers on disks of these sizes, which go after the cluster.
    ///
    /// # Errors
    /// Why such a disk cannot be had.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn start_on_small_disks(
        options: Options,
        sizes: &[(&str, &str)],
    ) -> Result<(Self, Vec<SmallDisk>), String> {
        let cluster = Self::start_with(options);
        cluster.down();
        let data = cluster.dir().join("data");
        let mut disks = Vec::new();
        for (server, size) in sizes {
            std::fs::remove_dir_all(data.join(server)).expect("a server's directory");
            disks.push(SmallDisk::mount(&data.join(server), size)?);
        }
        // New disks: a new cluster, so that they are not taken for lost ones.
        for entry in std::fs::read_dir(&data).expect("data directory").flatten() {
            if !sizes.iter().any(|(server, _)| entry.file_name() == *server) {
                std::fs::remove_dir_all(entry.path()).expect("an old directory");
            }
        }
        cluster.up();
        Ok((cluster, disks))
    }

    /// The cluster's directory, as `--dir` names it.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.temp.path().join("cluster")
    }

    /// A directory outside of the cluster that goes with it.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.temp.path()
    }

    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.dir().join("mnt")
    }

    /// Starts it (again, after [`Self::down`]).
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn up(&self) {
        let Options { chunkservers, profile, restart, timing, capacity } = &self.options;
        let chunkservers = chunkservers.to_string();
        // What a profile differs by is remembered until another is named.
        let again = self.dir().join("cluster.json").exists();
        let (profile, timing): (&[&str], &[&str]) =
            if again { (&[], &[]) } else { (&["--profile", profile], timing) };
        let arguments = ["up", "--detach", "--chunkservers", &chunkservers, "--restart", restart];
        let capacity: Vec<&str> = capacity.iter().flat_map(|size| ["--capacity", size]).collect();
        let output = self.try_dfs(arguments.iter().chain(profile).chain(timing).chain(&capacity));
        assert!(
            output.status.success(),
            "dfs up: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
    }

    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn down(&self) {
        let output = self.try_dfs(["down"]);
        assert!(
            output.status.success(),
            "dfs down: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
    }

    /// A `dfs` command that talks to this cluster.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(dfs_program());
        command
            .args(arguments)
            .env("DFS_DIR", self.dir())
            .env_remove("DFS_MASTER")
            .env_remove("DFS_KEY_FILE");
        command
    }

    /// Runs `dfs` with this cluster and returns what it did, whatever that is.
    #[track_caller]
    pub fn try_dfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        run(&mut self.command(arguments), PATIENCE * 2)
    }

    /// Waits until `dfs fsck` finds nothing, at most [`PATIENCE`] and one more check.
    ///
    /// # Panics
    /// If it still finds something then: with what it said.
    #[track_caller]
    pub fn until_clean(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let checked = self.try_dfs(["fsck"]);
            if checked.status.success() {
                return;
            }
            assert!(
                Instant::now() < until,
                "not clean within {PATIENCE:?}: {}{}",
                String::from_utf8_lossy(&checked.stdout),
                String::from_utf8_lossy(&checked.stderr)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs `dfs` with this cluster and returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn dfs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        stdout_of(&self.try_dfs(arguments))
    }

    /// As [`Self::dfs`], with `-o json` added and read.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[track_caller]
    pub fn dfs_json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> serde_json::Value {
        let text = self.dfs(arguments.into_iter().chain(["-o", "json"]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
    }

    /// As [`Self::dfs`], with bytes on standard input.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn dfs_fed<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &[u8],
    ) -> String {
        stdout_of(&run_with_input(&mut self.command(arguments), input, PATIENCE * 2))
    }

    /// Address of the master, from `cluster.json`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn master_address(&self) -> String {
        let text = std::fs::read_to_string(self.dir().join("cluster.json")).expect("cluster.json");
        let json: serde_json::Value = serde_json::from_str(&text).expect("cluster.json");
        json.get("master").and_then(|m| m.as_str()).expect("master's address").to_owned()
    }

    /// Address of `cs-1`, ….
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn chunkserver_address(&self, id: &str) -> String {
        let path = self.dir().join(format!("run/{id}.addr"));
        std::fs::read_to_string(&path).expect("address file").trim().to_owned()
    }

    /// Pid of `master`, `cs-1`, …, `mount`, `supervisor`.
    #[must_use]
    pub fn pid(&self, role: &str) -> Option<u32> {
        let path = self.dir().join(format!("run/{role}.pid"));
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// If there is no such process.
    #[track_caller]
    pub fn kill(&self, role: &str) {
        let pid = self.pid(role).unwrap_or_else(|| panic!("no pid file of {role}"));
        signal(pid, Signal::KILL);
        wait_until(&format!("{role} (pid {pid}) is gone"), || !is_running(pid));
    }

    /// State of a server in `dfs status`, if it is listed.
    #[track_caller]
    #[must_use]
    pub fn server_state(&self, id: &str) -> Option<String> {
        let status = self.dfs_json(["status"]);
        let servers = status.get("servers")?.as_array()?.clone();
        let server = servers.iter().find(|server| server.get("id").is_some_and(|i| i == id))?;
        Some(server.get("state")?.as_str()?.to_owned())
    }

    /// Mounts this cluster once more; goes with the cluster.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn mount_again(&mut self, name: &str) -> PathBuf {
        self.mount_with(name, &[])
    }

    /// As [`Self::mount_again`], with more arguments.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn mount_with(&mut self, name: &str, arguments: &[&str]) -> PathBuf {
        self.mount_by(name, |cluster, path| {
            let mut command = cluster.command([OsStr::new("mount"), path.as_os_str()]);
            command.args(arguments);
            command
        })
    }

    /// As [`Self::mount_with`], by the command that is made for the path.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn mount_by(&mut self, name: &str, make: impl FnOnce(&Self, &Path) -> Command) -> PathBuf {
        let path = self.temp.path().join(name);
        // One that nobody serves keeps whoever looks at it waiting.
        if !is_mounted(&path) {
            std::fs::create_dir_all(&path).expect("make mount point");
        }
        let log = std::fs::File::create(self.temp.path().join(format!("{name}.log"))).expect("log");
        let child = make(self, &path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("start dfs mount");
        self.more_mounts.push((child, path.clone()));
        wait_until("the second mount answers", || {
            is_mounted(&path) && path.join(".").metadata().is_ok()
        });
        path
    }

    /// Waits until the processes of [`Self::mount_again`] have ended by themselves, without an error.
    ///
    /// # Panics
    /// If one does not, or failed.
    #[track_caller]
    pub fn wait_for_mounts_to_end(&mut self) {
        for (child, path) in self.more_mounts.drain(..) {
            let mut child = child;
            let mut ended = None;
            wait_until(&format!("the mount at {} ends", path.display()), || {
                ended = child.try_wait().expect("wait for a child");
                ended.is_some()
            });
            assert!(ended.is_some_and(|status| status.success()), "{}: {ended:?}", path.display());
        }
    }

    /// The end of every log, for messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut out = String::new();
        let mut files: Vec<PathBuf> = [self.dir().join("log"), self.temp.path().to_owned()]
            .into_iter()
            .filter_map(|dir| dir.read_dir().ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect();
        files.sort();
        for path in files {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(20);
            out.push_str(&format!("--- {}\n", path.display()));
            for line in lines.iter().skip(from) {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }

    fn every_pid(&self) -> Vec<u32> {
        let files = self.dir().join("run").read_dir().into_iter().flatten();
        files
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                path.extension().filter(|e| *e == "pid")?;
                std::fs::read_to_string(path).ok()?.trim().parse().ok()
            })
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for (child, path) in &mut self.more_mounts {
            signal(child.id(), Signal::TERM);
            let until = Instant::now() + Duration::from_secs(20);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ended = child.kill();
            let _status = child.wait();
            force_unmount(path);
        }
        let pids = self.every_pid();
        let _whatever_is_left_is_killed = self
            .command(["down", "--grace", "10s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        for pid in pids.into_iter().filter(|pid| self.owns(*pid)) {
            signal(pid, Signal::KILL);
        }
        force_unmount(&self.mount());
    }
}

impl Cluster {
    /// Whether a process was started for this cluster: its arguments name the directory.
    fn owns(&self, pid: u32) -> bool {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let dir = self.dir();
        String::from_utf8_lossy(&line).contains(&*dir.to_string_lossy())
    }
}

/// Takes a mount off, dead or alive.
pub fn force_unmount(path: &Path) {
    if !is_mounted(path) {
        return;
    }
    for (program, flag) in [("fusermount3", "-uz"), ("umount", "-l")] {
        let _tried = Command::new(program).arg(flag).arg(path).stderr(Stdio::null()).status();
        if !is_mounted(path) {
            return;
        }
    }
}
