//! `dfs up`: a whole cluster on this machine, in the foreground or behind a supervisor of its own.

mod lost_master;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use dfs_service::conn::ClusterKey;
use dfs_service::shutdown::Shutdown;

use crate::args::servers::TimingArgs;
use crate::args::{ClusterArgs, Profile, UpArgs};
use crate::failure::{fail, one_line};
use crate::local::{ClusterDir, ClusterFile, Doing, Lock, Role, replication_for};
use crate::process::KILLED_MAX;
use crate::supervisor::{Plan, START_ALL_MAX, Supervisor, ended_by, open_log, write_pid};
use crate::{cluster, mount_point, output};

const CHUNKSERVERS: u32 = 3;
/// Each process gets this long to stop before it is killed: the mount may have to flush.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) fn run(cluster: &ClusterArgs, args: &UpArgs) -> anyhow::Result<()> {
    let dir = cluster::required_dir(cluster, "up")?;
    let wanted = Wanted { cluster, args };
    if args.detach {
        let lock = begin(&dir, &wanted)?;
        return detach(&dir, &wanted, lock);
    }
    let mut say = |line: &str| {
        let _closed = output::line(line);
    };
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let lock = begin(&dir, &wanted)?;
    say(&format!("starting in {}", dir.root().display()));
    let mut supervisor = start(&dir, &wanted, lock, &shutdown, &mut say)?;
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
    let wanted = Wanted { cluster, args };
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let mut say = |line: &str| {
        let _log_closed = output::line(line);
    };
    // `dfs up` holds the lock until this process has it: nobody comes between.
    let lock = match dir.inherited_lock() {
        Some(lock) => lock,
        None => begin(&dir, &wanted)?,
    };
    let started = start(&dir, &wanted, lock, &shutdown, &mut say);
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

/// The flags of one `dfs up`.
struct Wanted<'a> {
    cluster: &'a ClusterArgs,
    args: &'a UpArgs,
}

/// Checks everything that can be checked, then makes the directory and takes its lock: of two starts at once one gets
/// it, and the other is told. A start that is refused leaves nothing behind.
fn begin(dir: &ClusterDir, wanted: &Wanted<'_>) -> anyhow::Result<Lock> {
    if !dir.lock_file().exists() {
        let checked = plan(dir, wanted, &mut |_| ()).and_then(|plan| {
            let mount = mount_point::Made::at(&plan.file.mount)?;
            dir.make().inspect(|()| mount.keep())
        });
        // Unless somebody else was faster: then theirs is the mount that is in the way.
        if let Err(error) = checked
            && !dir.lock_file().exists()
        {
            return Err(error);
        }
    }
    let Some(lock) = dir.try_lock(Doing::Up)? else {
        return already_running(dir);
    };
    check_nothing_left(dir)?;
    plan(dir, wanted, &mut |_| ())?;
    Ok(lock)
}

fn start(
    dir: &ClusterDir,
    wanted: &Wanted<'_>,
    lock: Lock,
    shutdown: &Shutdown,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Supervisor> {
    let mut plan = plan(dir, wanted, say)?;
    plan.file.mount = mount_point::prepare(&plan.file.mount)?;
    dir.make()?;
    install_key(dir, wanted.cluster.key_file.as_deref())?;
    dir.write(&plan.file)?;
    Supervisor::start(plan, lock, shutdown, say)
}

/// The key the cluster has, or gets: `named`, or a random one.
fn install_key(dir: &ClusterDir, named: Option<&Path>) -> anyhow::Result<()> {
    let path = dir.key_file();
    if let Some(named) = named
        && !path.exists()
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        let digits =
            std::fs::read(named).with_context(|| format!("read --key-file {}", named.display()))?;
        std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&digits)?;
                file.sync_all()
            })
            .with_context(|| format!("write {}", path.display()))?;
    }
    ClusterKey::load_or_create(&path)?;
    Ok(())
}

/// A key other than the one the directory has would lock its owner out.
fn check_key(dir: &ClusterDir, named: Option<&Path>) -> anyhow::Result<()> {
    let Some(named) = named else { return Ok(()) };
    let key = cluster::load_key(named)?;
    let path = dir.key_file();
    if path.exists() && ClusterKey::load(&path)? != key {
        return fail(
            format!(
                "--key-file {}: the cluster has another key, in {}",
                named.display(),
                path.display()
            ),
            "leave the flag out",
        );
    }
    Ok(())
}

/// What this start does, from the flags and what the directory remembers. Changes nothing.
fn plan(dir: &ClusterDir, wanted: &Wanted<'_>, say: &mut dyn FnMut(&str)) -> anyhow::Result<Plan> {
    let UpArgs {
        mount,
        chunkservers,
        profile,
        timing,
        capacity,
        scrub_period,
        restart,
        accept_loss,
        hold,
        detach: _,
    } = wanted.args;
    let remembered = dir.read()?;
    lost_master::check(dir, remembered.as_ref())?;
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
    dir.check_ours(&mount_point::absolute(&asked_mount)?)?;
    check_key(dir, wanted.cluster.key_file.as_deref())?;
    let mut file = remembered.unwrap_or_else(|| ClusterFile::new(PathBuf::new()));
    file.mount = mount_point::check(&asked_mount)?;
    if let Some(profile) = profile {
        file.profile = profile.name().to_owned();
        // Whoever names a profile means all of it.
        file.set_timing(TimingArgs::default());
    }
    file.set_timing(timing.or(file.timing()));
    Profile::from_str(&file.profile, false).map_err(|_| {
        crate::failure::Failure::new(
            format!("{}: profile '{}' is unknown", dir.cluster_file().display(), file.profile),
            "give --profile standard, drill or router",
        )
    })?;
    file.timing().profile(&file.profile)?;
    file.capacity_bytes = capacity.or(file.capacity_bytes);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    file.scrub_period_ms = scrub_period.map(millis).or(file.scrub_period_ms);
    let before = file.replication;
    (file.replication, file.min_replicas) = replication_for(chunkservers);
    if 0 < known && before < file.replication {
        say(&format!(
            "replication raised from {before} to {}, replicas needed for a write {}: what is there is copied by and by",
            file.replication, file.min_replicas
        ));
    }
    if chunkservers < CHUNKSERVERS {
        say(&format!(
            "only {chunkservers} chunkserver{}: replication lowered to {} and replicas needed for a write to {}; \
             a cluster that survives the loss of a disk wants 3",
            if chunkservers == 1 { "" } else { "s" },
            file.replication,
            file.min_replicas
        ));
    }
    Ok(Plan {
        dir: dir.clone(),
        file,
        chunkservers,
        restart: *restart,
        accept_loss: *accept_loss,
        exercise: false,
        hold: *hold,
        server_wait: wanted.cluster.server_wait,
    })
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
    let root = dir.root().display();
    if dir.doing() == Some(Doing::Down) {
        return fail(
            format!("up: the cluster in {root} is being stopped"),
            format!("try again when it is; {} has what it waits for", supervisor_log(dir)),
        );
    }
    let mount = dir.read().ok().flatten().map(|file| file.mount);
    if let Some(path) = mount.as_ref().filter(|path| !mount_point::is_fuse_mounted(path)) {
        return fail(
            format!(
                "up: the cluster in {root} is running already, and nothing is mounted at {}: it is still starting, or was unmounted",
                path.display()
            ),
            format!(
                "wait a moment; or mount it again with `dfs down --dir {root}` and `dfs up --dir {root}`, or elsewhere with `dfs mount`"
            ),
        );
    }
    fail(
        format!(
            "up: the cluster in {root} is running already{}",
            mount.map(|path| format!(", mounted at {}", path.display())).unwrap_or_default()
        ),
        format!("use it, or stop it with `dfs down --dir {root}`"),
    )
}

fn supervisor_log(dir: &ClusterDir) -> String {
    dir.log_file(Role::Supervisor).display().to_string()
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
fn detach(dir: &ClusterDir, wanted: &Wanted<'_>, lock: Lock) -> anyhow::Result<()> {
    output::line(&format!("starting in {}", dir.root().display()))?;
    let _absent = std::fs::remove_file(dir.outcome_file());
    let log_path = dir.log_file(Role::Supervisor);
    let log = open_log(&log_path)?;
    let mut shown = log.metadata().map(|meta| meta.len()).unwrap_or(0);
    let mut child = Command::new(std::env::current_exe().context("find this program")?)
        .args(supervise_arguments(dir, wanted)?)
        .stdin(lock.into_stdio())
        .stdout(log.try_clone().context("open log")?)
        .stderr(log)
        .spawn()
        .context("start the supervisor")?;
    write_pid(dir, Role::Supervisor, child.id())?;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let until = Instant::now() + START_ALL_MAX;
    await_outcome(dir, &mut child, until, &shutdown, &mut || {
        shown = show_new(&log_path, shown)?;
        Ok(())
    })?;
    output::line("")?;
    output::line(&try_next(dir, &dir.existing()?, true))
}

fn supervise_arguments(dir: &ClusterDir, wanted: &Wanted<'_>) -> anyhow::Result<Vec<OsString>> {
    let ClusterArgs { dir: _, master: _, key_file, server_wait, known_key: _ } = wanted.cluster;
    let UpArgs {
        mount,
        chunkservers,
        profile,
        timing,
        capacity,
        scrub_period,
        restart,
        detach: _,
        hold,
        accept_loss,
    } = wanted.args;
    let mut arguments: Vec<OsString> =
        vec!["supervise".into(), "--dir".into(), dir.root().into(), "--restart".into()];
    arguments.push(restart.name().into());
    if let Some(mount) = mount {
        arguments.extend(["--mount".into(), mount_point::absolute(mount)?.into()]);
    }
    if let Some(count) = chunkservers {
        arguments.extend(["--chunkservers".into(), count.to_string().into()]);
    }
    if let Some(profile) = profile {
        arguments.extend(["--profile".into(), profile.name().into()]);
    }
    arguments.extend(timing.arguments().into_iter().map(OsString::from));
    if let Some(capacity) = capacity {
        arguments.extend(["--capacity".into(), capacity.to_string().into()]);
    }
    if let Some(period) = scrub_period {
        arguments.extend(["--scrub-period".into(), format!("{}ms", period.as_millis()).into()]);
    }
    if let Some(path) = key_file {
        arguments.extend(["--key-file".into(), path.into()]);
    }
    if let Some(wait) = server_wait {
        arguments.extend(["--server-wait".into(), format!("{}ms", wait.as_millis()).into()]);
    }
    if *hold {
        arguments.push("--hold".into());
    }
    if *accept_loss {
        arguments.push("--accept-loss".into());
    }
    Ok(arguments)
}

/// Waits until the supervisor says how its start went, at most `until`.
fn await_outcome(
    dir: &ClusterDir,
    child: &mut Child,
    until: Instant,
    shutdown: &Shutdown,
    show: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut interrupted = false;
    loop {
        // The file first: all the supervisor said before it is then in the log.
        let outcome = std::fs::read_to_string(dir.outcome_file()).ok();
        let ended = child.try_wait().context("wait for the supervisor")?;
        show()?;
        match (outcome.as_deref(), ended) {
            (Some("ok"), _) => return Ok(()),
            (Some(text), _) => {
                // It holds the lock until its end: who tries again at once must not be refused.
                ended_by(child, Instant::now() + KILLED_MAX);
                anyhow::bail!("{}", text.strip_prefix("failed ").unwrap_or(text).to_owned());
            }
            (None, Some(status)) => {
                return fail(
                    format!("up: the supervisor ended before it was done ({status})"),
                    format!("see {}", supervisor_log(dir)),
                );
            }
            (None, None) if until <= Instant::now() => {
                return fail(
                    format!("up: no word from the supervisor (pid {}) in time", child.id()),
                    format!(
                        "see {}; `dfs down --dir {}` stops what runs",
                        supervisor_log(dir),
                        dir.root().display()
                    ),
                );
            }
            (None, None) => {}
        }
        if shutdown.wait_for(Duration::from_millis(20)) && !interrupted {
            interrupted = true;
            crate::process::Process { pid: child.id(), marks: Vec::new() }
                .signal(rustix::process::Signal::TERM);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_says_nothing_is_not_waited_for_for_ever() {
        let root = std::env::temp_dir().join(format!("dfs-silent-{}", std::process::id()));
        let dir = ClusterDir::new(&root).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let error = await_outcome(&dir, &mut child, until, &Shutdown::new(), &mut || Ok(()));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = format!("{:#}", error.unwrap_err());
        assert!(said.contains("log/supervisor.log") && said.contains("dfs down"), "{said}");
    }
}
