//! `dfs down`: the supervisor first, so that nothing is restarted meanwhile, then whatever is left, in order.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::args::{ClusterArgs, DownArgs};
use crate::failure::fail;
use crate::local::{ClusterDir, Doing, Lock, Role};
use crate::process::{KILLED_MAX, Process, Stopped};
use crate::supervisor::{DID_NOT_STOP, killed};
use crate::{cluster, mount_point, output};

/// How often a directory that another command works on is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) fn run(cluster: &ClusterArgs, args: &DownArgs) -> anyhow::Result<()> {
    let dir = cluster::required_dir(cluster, "down")?;
    let file = dir.existing()?;
    dir.make()?;
    let mut stopped = false;
    // Held to the end: a start meanwhile would see its processes stopped one by one.
    let Some(lock) = take_over(&dir, args, &mut stopped)? else {
        return output::line(&format!(
            "stopped the cluster in {}; it is being started again",
            dir.root().display()
        ));
    };
    // Left over if the supervisor was killed.
    for role in dir.roles() {
        if role == Role::Mount {
            stopped |= mount_point::is_fuse_mounted(&file.mount);
        }
        if let Some(process) = dir.running(role, &file.mount) {
            stopped = true;
            stop(&dir, role, &process, args)?;
        }
        dir.forget_pid(role);
        if role == Role::Mount {
            unmount(&dir, &file.mount)?;
        }
    }
    unmount(&dir, &file.mount)?;
    lock.done();
    output::line(&format!(
        "{} in {}",
        if stopped { "stopped the cluster" } else { "nothing was running" },
        dir.root().display()
    ))
}

/// Stops the supervisor and takes its lock. `None`: somebody started the cluster again first.
fn take_over(
    dir: &ClusterDir,
    args: &DownArgs,
    stopped: &mut bool,
) -> anyhow::Result<Option<Lock>> {
    let mut until = Instant::now() + args.grace * STAGES + KILLED_MAX;
    loop {
        if let Some(lock) = dir.try_lock(Doing::Down)? {
            return Ok(Some(lock));
        }
        if let Some(supervisor) = dir.supervisor() {
            if *stopped {
                return Ok(None);
            }
            *stopped = true;
            let log = dir.log_file(Role::Supervisor);
            let before = std::fs::metadata(&log).map_or(0, |log| log.len());
            stop(dir, Role::Supervisor, &supervisor, args)?;
            tell_of_the_killed(&log, before)?;
            dir.forget_pid(Role::Supervisor);
            until = Instant::now() + KILLED_MAX;
        }
        if until <= Instant::now() {
            return fail(
                format!(
                    "down: another command has held {} all the time",
                    dir.lock_file().display()
                ),
                format!("see {}", dir.log_file(Role::Supervisor).display()),
            );
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The supervisor stops mount, chunkservers and master one after the other, and must not be killed between them.
const STAGES: u32 = 3;

fn stop(dir: &ClusterDir, role: Role, process: &Process, args: &DownArgs) -> anyhow::Result<()> {
    let grace = if role == Role::Supervisor { args.grace * STAGES } else { args.grace };
    let log = dir.log_file(role);
    match process.stop(grace) {
        Stopped::ByItself => Ok(()),
        Stopped::Killed => output::line(&killed(role, grace, &log)),
        Stopped::StillThere => fail(
            format!("down: {role} (pid {}) is still there after SIGKILL", process.pid),
            format!("the kernel works for it, on a disk that hangs perhaps; see {}", log.display()),
        ),
    }
}

/// What the supervisor had to kill is in its log, behind the byte `before`.
fn tell_of_the_killed(log: &Path, before: u64) -> anyhow::Result<()> {
    let Ok(text) = std::fs::read(log) else { return Ok(()) };
    let new = text.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
    let new = String::from_utf8_lossy(new);
    for line in new.lines().filter(|line| line.contains(DID_NOT_STOP)) {
        output::line(line)?;
    }
    Ok(())
}

fn unmount(dir: &ClusterDir, mount: &Path) -> anyhow::Result<()> {
    mount_point::unmount(mount)
        .with_context(|| format!("down (see {})", dir.log_file(Role::Mount).display()))
}
