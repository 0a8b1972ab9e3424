//! `dfs up`: a whole cluster on this machine, in the foreground or behind a supervisor of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use dfs_service::conn::ClusterKey;
use dfs_service::shutdown::Shutdown;

use crate::args::{ClusterArgs, Profile, UpArgs};
use crate::failure::{fail, one_line};
use crate::local::{ClusterDir, ClusterFile, Role, replication_for};
use crate::supervisor::{Plan, Supervisor, open_log};
use crate::{cluster, mount_point, output};

const CHUNKSERVERS: u32 = 3;
/// Each process gets this long to stop before it is killed: the mount may have to flush.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) fn run(cluster: &ClusterArgs, args: &UpArgs) -> anyhow::Result<()> {
    let dir = cluster::required_dir(cluster, "up")?;
    let program_says = |line: &str| output::line(line);
    if args.detach {
        check_not_running(&dir)?;
        return detach(&dir, args);
    }
    let mut say = |line: &str| {
        let _closed = program_says(line);
    };
    say(&format!("starting in {}", dir.root().display()));
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let mut supervisor = start(&dir, args, &shutdown, &mut say)?;
    say("");
    say(&try_next(&dir, supervisor.file(), false));
    supervisor.watch(&shutdown, &mut say);
    say("stopping");
    supervisor.stop(GRACE, &mut say);
    Ok(())
}

/// The process behind `--detach`: says how the start went in a file, then watches.
pub(crate) fn supervise(cluster: &ClusterArgs, args: &UpArgs) -> anyhow::Result<()> {
    // The terminal's end must not end the cluster.
    let _session = rustix::process::setsid();
    let dir = cluster::required_dir(cluster, "supervise")?;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let mut say = |line: &str| {
        let _log_closed = output::line(line);
    };
    let started = start(&dir, args, &shutdown, &mut say);
    let outcome = match &started {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("failed {}", one_line(&format!("{error:#}"))),
    };
    let path = dir.outcome_file();
    let draft = path.with_extension("new");
    std::fs::write(&draft, outcome)
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("write {}", path.display()))?;
    let mut supervisor = started?;
    let mut say = |line: &str| {
        let _log_closed = output::line(&format!("{} {line}", output::utc_now()));
    };
    supervisor.watch(&shutdown, &mut say);
    say("stopping");
    supervisor.stop(GRACE, &mut say);
    Ok(())
}

fn start(
    dir: &ClusterDir,
    args: &UpArgs,
    shutdown: &Shutdown,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Supervisor> {
    dir.claim()?;
    let Some(lock) = dir.try_lock()? else {
        return already_running(dir);
    };
    check_nothing_left(dir)?;
    let plan = plan(dir, args, say)?;
    ClusterKey::load_or_create(&dir.key_file())?;
    dir.write(&plan.file)?;
    Supervisor::start(plan, lock, shutdown, say)
}

/// What this start does, from the flags and what the directory remembers.
fn plan(dir: &ClusterDir, args: &UpArgs, say: &mut dyn FnMut(&str)) -> anyhow::Result<Plan> {
    let UpArgs { mount, chunkservers, profile, restart, detach: _, accept_loss } = args;
    let remembered = dir.read()?;
    let known = remembered.as_ref().map_or(0, |file| file.chunkservers.len());
    let known = u32::try_from(known).unwrap_or(u32::MAX);
    let chunkservers = match chunkservers {
        Some(wanted) if *wanted < known => {
            return fail(
                format!(
                    "--chunkservers {wanted}: {} has {known}, and leaving one out would take its data away",
                    dir.root().display()
                ),
                format!("give --chunkservers {known} or more, or leave the flag out"),
            );
        }
        Some(wanted) => *wanted,
        None if known == 0 => CHUNKSERVERS,
        None => known,
    };
    let asked_mount: PathBuf = match (mount, &remembered) {
        (Some(path), _) => path.clone(),
        (None, Some(file)) => file.mount.clone(),
        (None, None) => dir.default_mount(),
    };
    check_mount_outside(dir, &asked_mount)?;
    let mut file = remembered.unwrap_or_else(|| ClusterFile::new(PathBuf::new()));
    file.mount = mount_point::prepare(&asked_mount)?;
    if let Some(profile) = profile {
        file.profile = profile.name().to_owned();
    }
    Profile::from_str(&file.profile, false).map_err(|_| {
        crate::failure::Failure::new(
            format!("{}: profile '{}' is unknown", dir.cluster_file().display(), file.profile),
            "give --profile standard, drill or router",
        )
    })?;
    (file.replication, file.min_replicas) = replication_for(chunkservers);
    if chunkservers < CHUNKSERVERS {
        say(&format!(
            "only {chunkservers} chunkserver{}: replication lowered to {} and replicas needed for a write to {}; \
             a cluster that survives the loss of a disk wants 3",
            if chunkservers == 1 { "" } else { "s" },
            file.replication,
            file.min_replicas
        ));
    }
    Ok(Plan { dir: dir.clone(), file, chunkservers, restart: *restart, accept_loss: *accept_loss })
}

/// A mount over the servers' own directories would hide them from themselves.
fn check_mount_outside(dir: &ClusterDir, mount: &Path) -> anyhow::Result<()> {
    let mount = mount_point::absolute(mount)?;
    let inside = |part: &str| mount.starts_with(dir.root().join(part));
    if dir.root().starts_with(&mount) || ["run", "log", "data"].into_iter().any(inside) {
        return fail(
            format!(
                "--mount {}: it would cover or lie in the cluster's own files in {}",
                mount.display(),
                dir.root().display()
            ),
            format!("name another directory, for example {}", dir.default_mount().display()),
        );
    }
    Ok(())
}

fn already_running<T>(dir: &ClusterDir) -> anyhow::Result<T> {
    let mount = dir.read().ok().flatten().map(|file| file.mount.display().to_string());
    fail(
        format!(
            "up: the cluster in {} is running already{}",
            dir.root().display(),
            mount.map(|path| format!(", mounted at {path}")).unwrap_or_default()
        ),
        format!("use it, or stop it with `dfs down --dir {}`", dir.root().display()),
    )
}

/// Refuses if a supervisor or any process of the directory runs.
fn check_not_running(dir: &ClusterDir) -> anyhow::Result<()> {
    if dir.supervisor()?.is_some() {
        return already_running(dir);
    }
    check_nothing_left(dir)
}

/// Refuses if a process outlived its supervisor; forgets pid files that are stale.
fn check_nothing_left(dir: &ClusterDir) -> anyhow::Result<()> {
    let mount = dir.read()?.map(|file| file.mount).unwrap_or_default();
    for role in dir.roles() {
        if let Some(process) = dir.running(role, &mount) {
            return fail(
                format!("up: {role} of {} still runs (pid {})", dir.root().display(), process.pid),
                format!("stop what is left with `dfs down --dir {}`", dir.root().display()),
            );
        }
        dir.forget_pid(role);
    }
    Ok(())
}

/// Starts a supervisor that outlives this process and shows what it says until it is done or gives up.
fn detach(dir: &ClusterDir, args: &UpArgs) -> anyhow::Result<()> {
    let UpArgs { mount, chunkservers, profile, restart, detach: _, accept_loss } = args;
    output::line(&format!("starting in {}", dir.root().display()))?;
    dir.claim()?;
    let _absent = std::fs::remove_file(dir.outcome_file());
    let log_path = dir.log_file(Role::Supervisor);
    let log = open_log(&log_path)?;
    let mut shown = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("supervise").arg("--dir").arg(dir.root()).args(["--restart", restart.name()]);
    if let Some(mount) = mount {
        command.arg("--mount").arg(mount_point::absolute(mount)?);
    }
    if let Some(count) = chunkservers {
        command.args(["--chunkservers", &count.to_string()]);
    }
    if let Some(profile) = profile {
        command.args(["--profile", profile.name()]);
    }
    if *accept_loss {
        command.arg("--accept-loss");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("open log")?)
        .stderr(log)
        .spawn()
        .context("start the supervisor")?;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let mut interrupted_at: Option<Instant> = None;
    loop {
        // The file first: all the supervisor said before it is then in the log.
        let outcome = std::fs::read_to_string(dir.outcome_file()).ok();
        let ended = child.try_wait().context("wait for the supervisor")?;
        shown = show_new(&log_path, shown)?;
        match (outcome.as_deref(), ended) {
            (Some("ok"), _) => break,
            (Some(text), _) => {
                let _status = child.wait();
                anyhow::bail!("{}", text.strip_prefix("failed ").unwrap_or(text).to_owned());
            }
            (None, Some(status)) => {
                return fail(
                    format!("up: the supervisor ended before it was done ({status})"),
                    format!("see {}", log_path.display()),
                );
            }
            (None, None) => {}
        }
        if shutdown.wait_for(Duration::from_millis(20)) && interrupted_at.is_none() {
            interrupted_at = Some(Instant::now());
            crate::process::Process { pid: child.id(), marks: Vec::new() }
                .signal(rustix::process::Signal::TERM);
        }
    }
    output::line("")?;
    output::line(&try_next(dir, &dir.existing()?, true))
}

/// Prints what a log got since `from`, without lines that are still being written.
fn show_new(log: &Path, from: u64) -> anyhow::Result<u64> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(log).context("open log")?;
    file.seek(SeekFrom::Start(from)).context("read log")?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).context("read log")?;
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Ok(from) };
    let (whole, _) = text.split_at(end + 1);
    // Its own error comes back through the outcome.
    let lines: Vec<u8> = whole
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"dfs: "))
        .flatten()
        .copied()
        .collect();
    std::io::stdout().write_all(&lines).context("write")?;
    Ok(from + whole.len() as u64)
}

fn try_next(dir: &ClusterDir, file: &ClusterFile, detached: bool) -> String {
    let root = dir.root().display();
    let stop = if detached { format!("dfs down --dir {root}") } else { "Ctrl-C".to_owned() };
    format!(
        "ready: {} is mounted. Try: ls {0}; dfs status --dir {root}; stop with {stop}",
        file.mount.display()
    )
}
