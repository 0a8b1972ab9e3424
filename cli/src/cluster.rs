//! Which cluster a command talks to, from flags, environment and `cluster.json`.
//!
//! Order: `--master`, `--dir`, `DFS_MASTER`, `DFS_DIR`. What is typed wins over what is set.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use dfs_service::conn::ClusterKey;

use crate::args::{ClusterArgs, Command, unused_flags};
use crate::failure::{fail, fail_usage};
use crate::local::ClusterDir;

/// Commands without a mount do not wait longer for a silent server unless told so.
const WAIT: Duration = Duration::from_secs(10);

/// A cluster's master and the key it knows us by.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub master: String,
    pub key: ClusterKey,
    pub wait: Duration,
    /// Also for a master that is not there at all: somebody said how long. Else that is told at once.
    pub wait_for_start: bool,
}

fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

pub(crate) fn named_dir(args: &ClusterArgs) -> anyhow::Result<Option<ClusterDir>> {
    let named = args.dir.clone().or_else(|| env("DFS_DIR").map(PathBuf::from));
    named.map(|dir| ClusterDir::new(&dir)).transpose()
}

/// Refuses a typed flag that `command` would not look at: who typed it believes that it does something.
pub(crate) fn check_used(command: &Command, args: &ClusterArgs) -> anyhow::Result<()> {
    let ClusterArgs { dir, master, key_file, server_wait, known_key: _ } = args;
    let name = match command {
        Command::Up(_) => "up",
        Command::Supervise(_) => "supervise",
        Command::Down(_) => "down",
        Command::Bench(_) => "bench",
        Command::Master(_) => "master",
        Command::Replay(_) => "replay",
        Command::Chunkserver(_) => "chunkserver",
        Command::Shell(_) => "shell",
        Command::Umount(_) => "umount",
        Command::Operator(_) => "operator",
        Command::Completions(_) => "completions",
        Command::Man(_) => "man",
        Command::Status(_)
        | Command::Fsck(_)
        | Command::Failover(_)
        | Command::Recover(_)
        | Command::Maintenance(_)
        | Command::Drain(_)
        | Command::Decommission(_)
        | Command::Rebalance(_)
        | Command::Route(_)
        | Command::Scrub(_)
        | Command::Undrain(_)
        | Command::Events(_)
        | Command::Job(_)
        | Command::Jobs(_)
        | Command::Trash(_)
        | Command::Top(_)
        | Command::Put(_)
        | Command::Get(_)
        | Command::Ls(_)
        | Command::Mkdir(_)
        | Command::Rm(_)
        | Command::Mv(_)
        | Command::Stat(_)
        | Command::Cat(_)
        | Command::Grep(_)
        | Command::Records(_)
        | Command::Locate(_)
        | Command::Explain(_)
        | Command::WhatIf(_)
        | Command::Append(_)
        | Command::Mount(_) => return Ok(()),
    };
    let given = [
        ("dir", dir.is_some()),
        ("master", master.is_some()),
        ("key-file", key_file.is_some()),
        ("server-wait", server_wait.is_some()),
    ];
    match unused_flags(name).find(|flag| given.contains(&(flag, true))) {
        None => Ok(()),
        Some(flag) => fail_usage(
            format!("usage: --{flag} has no meaning for `dfs {name}`{}", what_instead(name).0),
            format!("{}see `dfs {name} --help`", what_instead(name).1),
        ),
    }
}

/// Why a command looks at no cluster, and what to do.
fn what_instead(command: &str) -> (&'static str, &'static str) {
    match command {
        "bench" => (
            ", which measures a directory and asks no cluster",
            "mount it with `dfs mount HOST:PORT DIR --key-file FILE` and name DIR, as in `dfs bench DIR`; ",
        ),
        _ => ("", "leave it out; "),
    }
}

/// The directory for commands that need one.
pub(crate) fn required_dir(args: &ClusterArgs, verb: &str) -> anyhow::Result<ClusterDir> {
    match named_dir(args)? {
        Some(dir) => Ok(dir),
        None => fail_usage(
            format!("{verb}: no directory named"),
            format!("give one with `dfs {verb} --dir DIR` or set DFS_DIR"),
        ),
    }
}

/// The master's address and the key.
pub(crate) fn target(args: &ClusterArgs) -> anyhow::Result<Target> {
    let dir = named_dir(args)?;
    let from_dir = |dir: &ClusterDir| -> anyhow::Result<String> {
        let file = dir.existing()?;
        if file.master.is_empty() {
            return fail(
                format!(
                    "{}: its first start has not succeeded, there is no master yet",
                    dir.root().display()
                ),
                format!("start it with `dfs up --dir {}`", dir.root().display()),
            );
        }
        Ok(file.master)
    };
    let master = match (&args.master, &args.dir, env("DFS_MASTER"), &dir) {
        (Some(master), _, _, _) => master.clone(),
        (None, Some(_), _, Some(dir)) => from_dir(dir)?,
        (None, _, Some(master), _) => master.to_string_lossy().into_owned(),
        (None, _, None, Some(dir)) => from_dir(dir)?,
        (None, _, None, None) => {
            return fail_usage(
                "no cluster named",
                "give --dir DIR or --master HOST:PORT, or set DFS_DIR or DFS_MASTER",
            );
        }
    };
    check_address(&master)?;
    let (wait, wait_for_start) = (args.server_wait.unwrap_or(WAIT), args.server_wait.is_some());
    Ok(Target { master, key: key(args)?, wait, wait_for_start })
}

/// `HOST:PORT`, so that a forgotten port is not found out by a failed connection.
pub(crate) fn check_address(address: &str) -> anyhow::Result<()> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if good {
        Ok(())
    } else {
        fail_usage(
            format!("master address '{address}': not of the form HOST:PORT"),
            "give for example 127.0.0.1:7000",
        )
    }
}

/// The file that [`key`] would read, if there is one.
pub(crate) fn key_file(args: &ClusterArgs) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = &args.key_file {
        return Ok(Some(path.clone()));
    }
    if args.dir.is_none()
        && let Some(path) = env("DFS_KEY_FILE")
    {
        return Ok(Some(PathBuf::from(path)));
    }
    Ok(named_dir(args)?.map(|dir| dir.key_file()).filter(|path| path.exists()))
}

/// `--key-file`, else the key of a typed directory, `DFS_KEY_FILE`, the key of `DFS_DIR`, else none (loopback clusters
/// without a key).
pub(crate) fn key(args: &ClusterArgs) -> anyhow::Result<ClusterKey> {
    if let Some(key) = &args.known_key {
        return Ok(key.clone());
    }
    if let Some(path) = &args.key_file {
        return load_key(path);
    }
    if args.dir.is_none()
        && let Some(path) = env("DFS_KEY_FILE")
    {
        return ClusterKey::load(Path::new(&path)).context("DFS_KEY_FILE");
    }
    let Some(dir) = named_dir(args)? else { return Ok(ClusterKey::none()) };
    let path = dir.key_file();
    match ClusterKey::load(&path) {
        Ok(key) => Ok(key),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !dir.cluster_file().exists() {
                return Ok(ClusterKey::none());
            }
            // A cluster of `dfs up` always has one.
            fail(
                format!("cluster key: looked for in {}: no such file", path.display()),
                "name it with --key-file FILE or DFS_KEY_FILE, or copy it there from where the cluster was made",
            )
        }
        Err(error) => fail(
            format!("key of the cluster in {}: {error}", dir.root().display()),
            "mend that file, or name another with --key-file FILE",
        ),
    }
}

pub(crate) fn load_key(path: &Path) -> anyhow::Result<ClusterKey> {
    ClusterKey::load(path).context("--key-file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_host_and_port() {
        for good in ["127.0.0.1:7000", "master.example:1", "[::1]:7000"] {
            check_address(good).unwrap();
        }
        for bad in ["", "127.0.0.1", ":7000", "host:", "host:0", "host:70000"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_typed_master_needs_no_directory() {
        let args =
            ClusterArgs { master: Some("127.0.0.1:7000".to_owned()), ..ClusterArgs::default() };
        assert_eq!(target(&args).unwrap().master, "127.0.0.1:7000");
    }
}
