//! `dfs down`: the supervisor first, so that nothing is restarted meanwhile, then whatever is left, in order.

use crate::args::{ClusterArgs, DownArgs};
use crate::local::Role;
use crate::process::Process;
use crate::{cluster, mount_point, output};

pub(crate) fn run(cluster: &ClusterArgs, args: &DownArgs) -> anyhow::Result<()> {
    let dir = cluster::required_dir(cluster, "down")?;
    let file = dir.existing()?;
    let mut stopped = false;
    if let Some(supervisor) = dir.supervisor()? {
        stopped = true;
        stop(Role::Supervisor, &supervisor, args)?;
        dir.forget_pid(Role::Supervisor);
    }
    // Left over if the supervisor was killed.
    for role in dir.roles() {
        if role == Role::Mount {
            stopped |= mount_point::is_fuse_mounted(&file.mount);
        }
        if let Some(process) = dir.running(role, &file.mount) {
            stopped = true;
            stop(role, &process, args)?;
        }
        dir.forget_pid(role);
        if role == Role::Mount {
            mount_point::unmount(&file.mount)?;
        }
    }
    mount_point::unmount(&file.mount)?;
    output::line(&format!(
        "{} in {}",
        if stopped { "stopped the cluster" } else { "nothing was running" },
        dir.root().display()
    ))
}

fn stop(role: Role, process: &Process, args: &DownArgs) -> anyhow::Result<()> {
    // The supervisor waits for three stages itself, and must not be killed between them.
    let grace = if role == Role::Supervisor { args.grace * 3 } else { args.grace };
    if !process.stop(grace) {
        output::line(&format!("{role} did not stop within {} s: killed", grace.as_secs()))?;
    }
    Ok(())
}
