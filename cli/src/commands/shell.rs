//! `dfs shell`: commands from standard input, one a line, to a cluster that is started for them and ends with them.
//!
//! The cluster is what `dfs up` starts, without a mount, in a directory of its own. Whatever ends the shell, short of
//! SIGKILL, stops the processes first and removes the directory then.

pub(crate) mod ranks;

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use dfs_service::conn::ClusterKey;
use dfs_service::shutdown::Shutdown;

use crate::args::values::whole;
use crate::args::{Profile, Restart};
use crate::failure::{one_line, say_error};
use crate::local::{ClusterDir, ClusterFile, Doing, replication_for};
use crate::supervisor::{Plan, Supervisor};
use ranks::{Answer, Ranks};

/// Longer lines are refused: a path has at most 4,095 bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// How often signals and ended processes are looked for while no line comes.
const LOOK: Duration = Duration::from_millis(50);
/// Chunkservers, and then the master, get so long to stop before they are killed: all are gone within five seconds.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(
    after_help = "Starts a master (rank 0) and N chunkservers (ranks 1 to N) in a directory of its own below TMPDIR, without a mount,
and removes all of it at the end of the input, at `exit`, and at SIGINT, SIGTERM, SIGHUP or SIGQUIT. Chunks have 32 bytes and three
copies, on the servers with the fewest chunks, of equal ones those of lowest rank; a heartbeat comes each second, a
server is down after 3 s of silence, and nothing is copied because of that. docs/behaviours.md has a session.

Commands, one a line; each is answered by -1 if it cannot be done, and why is said on standard error:
  upload NAME PATH    copy a local file of up to 2 MiB: 1, then for each chunk its number, its copies, their ranks
  list_file NAME      the same lines, with the servers that are up
  retrieve NAME       the content, and a newline if it does not end in one
  search NAME WORD    how often WORD is a word of it, then the offsets: see `dfs grep -w`
  failover RANK       the server falls silent: 1 when the master has found it dead
  recover RANK        it speaks again: 1 when the master has heard it
  exit

Examples:
  dfs shell --compat ranks
  dfs shell --compat ranks --servers 7 < commands.txt"
)]
pub(crate) struct ShellArgs {
    /// Whose commands and answers
    #[arg(long, value_enum)]
    pub compat: Compat,
    /// Number of chunkservers
    #[arg(long, value_name = "N", default_value = "4", value_parser = whole::<u32>(3..=16))]
    pub servers: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Compat {
    /// Servers by rank, files of 32-byte chunks: requirement set 0
    Ranks,
}

/// A directory that goes when this does.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> anyhow::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).context("draw a random number")?;
        let name = format!("dfs-shell-{:016x}", u64::from_ne_bytes(random));
        let path = std::env::temp_dir().join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            say_error(&format!("{} stays: {error}; remove it", self.0.display()));
        }
    }
}

/// The processes, which are stopped when this is dropped.
#[derive(Debug)]
struct Running(Supervisor);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop(GRACE, &mut |line| {
            if !line.ends_with(" stopped") {
                say_error(line);
            }
        });
    }
}

pub(crate) fn run(args: &ShellArgs) -> anyhow::Result<()> {
    let ShellArgs { compat: Compat::Ranks, servers } = args;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    // In this order, so that they go in the other one.
    let scratch = Scratch::make()?;
    let started = start(&scratch.0, *servers, &shutdown);
    if shutdown.is_asked() {
        return Ok(());
    }
    let mut running = Running(started?);
    let master = running.0.file().master.clone();
    let mut ranks = Ranks::connect(&scratch.0, &master, *servers)?;
    converse(&mut ranks, &mut running, &shutdown)
}

fn start(root: &Path, servers: u32, shutdown: &Shutdown) -> anyhow::Result<Supervisor> {
    let dir = ClusterDir::new(root)?;
    dir.make()?;
    ClusterKey::load_or_create(&dir.key_file())?;
    let lock = dir.try_lock(Doing::Up)?.context("somebody else uses the new directory")?;
    let mut file = ClusterFile::new(PathBuf::new());
    file.profile = Profile::Drill.name().to_owned();
    (file.replication, file.min_replicas) = replication_for(servers);
    let plan = Plan {
        dir,
        file,
        chunkservers: servers,
        restart: Restart::Never,
        accept_loss: false,
        exercise: true,
        hold: false,
        server_wait: None,
    };
    Supervisor::start(plan, lock, shutdown, &mut |_| ())
}

/// Answers lines until there are no more of them, nobody takes the answers, or it is time to stop.
fn converse(ranks: &mut Ranks, running: &mut Running, shutdown: &Shutdown) -> anyhow::Result<()> {
    let lines = lines()?;
    while !shutdown.is_asked() {
        running.0.look(&mut |line| say_error(line));
        let line = match lines.recv_timeout(LOOK) {
            Ok(line) => line.context("read standard input")?,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let answer = ranks.answer(&line, shutdown).unwrap_or_else(|error| {
            say_error(&one_line(&format!("{error:#}")));
            Answer::Text(b"-1\n".to_vec())
        });
        let Answer::Text(text) = answer else { break };
        let mut out = std::io::stdout().lock();
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Lines of standard input, from a thread that waits for them and ends with the process.
fn lines() -> anyhow::Result<Receiver<std::io::Result<Vec<u8>>>> {
    let (read, lines) = sync_channel(1);
    let thread = std::thread::Builder::new().name("input".to_owned());
    thread.spawn(move || read_lines(&read)).context("start a thread")?;
    Ok(lines)
}

/// Of a line that is too long only so much is kept that this shows.
fn read_lines(lines: &SyncSender<std::io::Result<Vec<u8>>>) {
    let mut input = std::io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let mut rest = Vec::new();
        let limit = LINE_BYTES_MAX + 1;
        let read = input.by_ref().take(limit).read_until(b'\n', &mut line);
        let ended = loop {
            match &read {
                Ok(0) | Err(_) => break true,
                Ok(_) if line.ends_with(b"\n") || rest.ends_with(b"\n") => break false,
                Ok(_) => {}
            }
            rest.clear();
            match input.by_ref().take(limit).read_until(b'\n', &mut rest) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(_) => break true,
            }
        };
        let told = match read {
            Err(error) => lines.send(Err(error)),
            Ok(0) => return,
            Ok(_) => lines.send(Ok(line)),
        };
        if ended || told.is_err() {
            return;
        }
    }
}
