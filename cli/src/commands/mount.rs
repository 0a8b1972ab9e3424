//! `dfs mount`: one mount process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use dfs_service::conn::ClusterKey;
use fuse_client::cache::Lifetimes;
use fuse_client::{HoldConfig, MountConfig, Stored, Transport};
use rustix::io::FdFlags;

use crate::args::mount::MountArgs;
use crate::args::values::ClientUser;
use crate::args::{ClusterArgs, PagesArgs};
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
        standby,
        client_user,
        binary,
        held_by,
        held_key,
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
    if let [first, path] = targets.as_slice()
        && first == "upgrade"
    {
        return upgrade(Path::new(path), binary.as_deref());
    }
    if let Some(binary) = binary {
        return fail_usage(
            format!("usage: --binary {} without upgrade", binary.display()),
            "`dfs mount upgrade PATH --binary FILE` puts it in place of a held mount's client",
        );
    }
    if client_user.is_some() && held_by.is_some() {
        // Before there is another thread.
        rustix::thread::set_no_new_privs(true).context("give up new privileges")?;
    }
    if client_user.is_some() && !*hold && held_by.is_none() {
        return fail_usage("usage: mount --client-user: only a held mount has one", "add --hold");
    }
    if *standby && !*hold && held_by.is_none() {
        return fail_usage("usage: mount --standby: only a held mount has one", "add --hold");
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
    if let Some(number) = held_key {
        let text = fuse_client::read_inherited(*number).context("read the key of the holder")?;
        let key = ClusterKey::from_hex(String::from_utf8_lossy(&text).trim());
        named.known_key = Some(key.context("the holder's key file holds no key")?);
    }
    let target = cluster::target(&named)?;
    if *hold && *transport == TransportName::Fuser {
        return fail_usage(
            "usage: mount --hold: the fuser library cannot take a mount over",
            "leave out --transport fuser",
        );
    }
    let stored = if *hold { stored()? } else { None };
    // The path of a held mount is the holder's concern: there is nobody yet who would answer a look at it.
    let made = match (held_by, &stored) {
        (None, None) => Some(Arc::new(mount_point::Made::at(&path)?)),
        (Some(_), _) | (_, Some(_)) => None,
    };
    let at = match &made {
        Some(made) => made.at.clone(),
        None => mount_point::absolute(&path)?,
    };
    if held_by.is_none() && stored.is_none() {
        // A wrong address should be said now, not after the five minutes for which a mount waits for its servers.
        admin::check_reachable(&target)?;
    }
    dfs_service::log::init()?;
    if let Some(file) = exercise {
        fuse_client::exercise::choose(file.clone());
    }
    if *hold {
        return hold_mount(&named, args, at, made, stored);
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
fn hold_mount(
    cluster: &ClusterArgs,
    args: &MountArgs,
    at: PathBuf,
    made: Option<Arc<mount_point::Made>>,
    stored: Option<Stored>,
) -> anyhow::Result<()> {
    let words: Vec<OsString> = std::env::args_os()
        .skip(1)
        .filter(|word| word != "--hold" && word != "--standby")
        .collect();
    let user = args.client_user;
    // Of another user, who may not read it.
    let key_file = if user.is_some() { cluster::key_file(cluster)? } else { None };
    // Open until it has been passed on.
    let mut passed: Vec<File> = Vec::new();
    let config = HoldConfig {
        mount_point: at.clone(),
        unmounts: user.is_some(),
        read_only: args.read_only,
        readers: usize::try_from(args.threads.unwrap_or(THREADS))?,
        program: std::env::current_exe().context("find this program")?,
        client: Box::new(move |program, descriptor| {
            let mut client = Command::new(program);
            client.args(&words).arg("--held-by").arg(descriptor.to_string());
            // What the service manager said is for this process.
            for name in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
                client.env_remove(name);
            }
            if let Some(ClientUser { uid, gid }) = user {
                client.uid(uid).gid(gid);
            }
            if let Some(path) = &key_file {
                let opened =
                    File::open(path).with_context(|| format!("cluster key {}", path.display()))?;
                rustix::io::fcntl_setfd(&opened, FdFlags::empty()).context("fcntl")?;
                client.arg("--held-key").arg(opened.as_raw_fd().to_string());
                passed.clear();
                passed.push(opened);
            }
            Ok(client)
        }),
        standby: args.standby,
        store: std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()),
        stored,
        pid_dir: args.pid_dir.clone(),
        ready: Box::new(move || {
            if let Some(made) = made {
                made.keep();
            }
        }),
    };
    fuse_client::hold(config).with_context(|| format!("mount {}", at.display()))
}

/// A mount that a holder before this process had stored.
fn stored() -> anyhow::Result<Option<Stored>> {
    let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(std::env::var_os);
    fuse_client::stored(pid, count, names)
}

/// Puts `binary`, or this program, in the place of the client of the held mount at `path`.
fn upgrade(path: &Path, binary: Option<&Path>) -> anyhow::Result<()> {
    let at = mount_point::absolute(path)?;
    let program = match binary {
        Some(binary) => binary
            .canonicalize()
            .with_context(|| format!("program {}: name one that is there", binary.display()))?,
        None => std::env::current_exe().context("find this program")?,
    };
    let said = Command::new(&program).arg("--version").output();
    let said = said.with_context(|| format!("run {}", program.display()))?;
    if !said.status.success() || !said.stdout.starts_with(b"dfs ") {
        return fail_usage(
            format!("program {}: not dfs", program.display()),
            "name another build of this program",
        );
    }
    let client = fuse_client::upgrade(&at, &program)?;
    crate::output::line(&format!("{} runs {} now: {client}", at.display(), program.display()))
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
