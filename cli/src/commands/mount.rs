//! `dfs mount`: one mount process.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use fuse_client::cache::Lifetimes;
use fuse_client::{HoldConfig, MountConfig, Transport};

use crate::args::{ClusterArgs, MountArgs, PagesArgs};
use crate::cluster::check_address;
use crate::failure::fail_usage;
use crate::{admin, cluster, mount_point};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TransportName {
    /// Whichever is best here
    Auto,
    /// On /dev/fuse itself: a program that waits can be interrupted
    Native,
    /// Over the fuser library
    Fuser,
}

pub(crate) fn run(cluster: &ClusterArgs, args: &MountArgs) -> anyhow::Result<()> {
    let MountArgs {
        targets,
        read_only,
        transport,
        hold,
        pid_dir: _,
        held_by,
        exercise,
        threads,
        write_buffer,
        readahead,
        attr_ttl,
        entry_ttl,
        pages: PagesArgs { metrics, metrics_file },
    } = args;
    if let [first, client] = targets.as_slice()
        && first == "evict"
    {
        if [write_buffer.is_some(), readahead.is_some(), threads.is_some(), *read_only]
            .into_iter()
            .chain([attr_ttl.is_some(), entry_ttl.is_some(), metrics.is_some()])
            .any(|given| given)
        {
            return fail_usage(
                "usage: mount evict: options of a mount have no meaning here",
                "see `dfs mount --help`",
            );
        }
        return evict(cluster, client);
    }
    if targets.as_slice() == ["evict"] {
        return fail_usage(
            "usage: mount evict: which mount? Its id is missing",
            "`dfs status` lists the ids; to mount at a directory of that name: ./evict",
        );
    }
    let (master, path) = split(targets)?;
    let mut named = cluster.clone();
    if let Some(master) = master
        && let Some(other) = named.master.replace(master.clone())
    {
        return fail_usage(
            format!("usage: two masters named, {master} and --master {other}"),
            "give one of them; see `dfs mount --help`",
        );
    }
    let target = cluster::target(&named)?;
    if *hold && *transport == TransportName::Fuser {
        return fail_usage(
            "usage: mount --hold: the fuser library cannot take a mount over",
            "leave out --transport fuser",
        );
    }
    // The path of a held mount is the holder's concern: there is nobody yet who would answer a look at it.
    let made = match held_by {
        Some(_) => None,
        None => Some(Arc::new(mount_point::Made::at(&path)?)),
    };
    let at = match &made {
        Some(made) => made.at.clone(),
        None => mount_point::absolute(&path)?,
    };
    if held_by.is_none() {
        // A wrong address should be said now, not after the five minutes for which a mount waits for its servers.
        admin::check_reachable(&target)?;
    }
    dfs_service::log::init()?;
    if let (true, Some(made)) = (hold, &made) {
        return hold_mount(args, made);
    }
    if let Some(file) = exercise {
        fuse_client::exercise::choose(file.clone());
    }
    let mut config = MountConfig::new(target.master, target.key, at.clone());
    config.held_by = *held_by;
    config.read_only = *read_only;
    config.transport = match transport {
        TransportName::Auto => Transport::Auto,
        TransportName::Native => Transport::Native,
        TransportName::Fuser => Transport::Fuser,
    };
    config.metrics = *metrics;
    config.metrics_file.clone_from(metrics_file);
    let Lifetimes { attr, entry } = Lifetimes::default();
    config.lifetimes =
        Lifetimes { attr: attr_ttl.unwrap_or(attr), entry: entry_ttl.unwrap_or(entry) };
    if let Some(threads) = threads {
        config.threads = usize::try_from(*threads)?;
    }
    config.write_budget_bytes = *write_buffer;
    config.readahead_bytes = *readahead;
    if let Some(wait) = cluster.server_wait {
        config.server_wait = wait;
    }
    if let Some(made) = made {
        config.ready = Box::new(move || made.keep());
    }
    fuse_client::run(config).with_context(|| format!("mount {}", at.display()))
}

/// Threads that read requests, without `--threads`.
const THREADS: u32 = 4;

/// Its clients are this program with the same arguments, and a descriptor.
fn hold_mount(args: &MountArgs, made: &Arc<mount_point::Made>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let words: Vec<OsString> =
        std::env::args_os().skip(1).filter(|word| word != "--hold").collect();
    let kept = Arc::clone(made);
    let config = HoldConfig {
        mount_point: made.at.clone(),
        read_only: args.read_only,
        readers: usize::try_from(args.threads.unwrap_or(THREADS))?,
        client: Box::new(move |descriptor| {
            let mut client = Command::new(&program);
            client.args(&words).arg("--held-by").arg(descriptor.to_string());
            client
        }),
        pid_dir: args.pid_dir.clone(),
        ready: Box::new(move || kept.keep()),
    };
    fuse_client::hold(config).with_context(|| format!("mount {}", made.at.display()))
}

fn evict(cluster: &ClusterArgs, client: &OsStr) -> anyhow::Result<()> {
    let text = client.to_string_lossy();
    let id = (text.len() == 32).then(|| u128::from_str_radix(&text, 16));
    let Some(Ok(id)) = id else {
        return fail_usage(
            format!("client id '{text}': not of 32 hexadecimal digits"),
            "`dfs status` lists the clients with their ids",
        );
    };
    admin::evict(&cluster::target(cluster)?, id)
}

/// `[MASTER] PATH`.
fn split(targets: &[OsString]) -> anyhow::Result<(Option<String>, PathBuf)> {
    match targets {
        [only] => match only.to_str() {
            Some(master) if !master.contains('/') && check_address(master).is_ok() => fail_usage(
                format!("mount {master}: a master's address, and no path"),
                format!(
                    "say where: `dfs mount {master} PATH` (a directory of that name: ./{master})"
                ),
            ),
            _ => Ok((None, Path::new(only).to_owned())),
        },
        [master, path] => match master.to_str() {
            Some(master) => Ok((Some(master.to_owned()), Path::new(path).to_owned())),
            None => fail_usage(
                format!("master address '{}': not of the form HOST:PORT", master.to_string_lossy()),
                "give for example 127.0.0.1:7000",
            ),
        },
        _ => fail_usage("mount: needs a path", "see `dfs mount --help`"),
    }
}
