//! `dfs drain`, `dfs undrain`, `dfs decommission`: a wish, and how far its fulfilment is.

use std::time::{Duration, Instant};

use dfs_core::ids::ServerId;
use dfs_proto::control::{DrainReply, WishRequest};
use serde::Serialize;

use crate::args::servers::{DecommissionArgs, DrainArgs, UndrainArgs};
use crate::args::{ClusterArgs, Format, OutputArgs};
use crate::cluster::Target;
use crate::failure::{Failure, fail};
use crate::output::{self, Table, bytes};
use crate::progress::Steps;
use crate::{cluster, servers};

const POLL: Duration = Duration::from_millis(500);
/// A master that starts again meanwhile is waited for so long.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drained {
    server: String,
    /// False: it was so already.
    changed: bool,
    draining: bool,
    chunks_left: u64,
    bytes_left: u64,
}

impl Table for Drained {
    fn table(&self) -> String {
        let Self { server, changed, draining, chunks_left, bytes_left } = self;
        if !draining {
            let was = if *changed { "is no longer" } else { "was not" };
            return format!("{server} {was} drained\n");
        }
        if *chunks_left == 0 {
            return format!("{server} is empty: no chunk has a copy on it\n");
        }
        format!(
            "{server} is drained in the background: {chunks_left} chunk(s), {} left; `dfs undrain {server}` ends it\n",
            bytes(*bytes_left)
        )
    }
}

fn set(target: &Target, server: ServerId, end: bool) -> anyhow::Result<bool> {
    let request = WishRequest {
        server: server.to_string(),
        overlay: "draining".to_owned(),
        end,
        for_ms: None,
        force: false,
        by: servers::myself(),
    };
    Ok(servers::wish(target, request)?.changed)
}

pub(crate) fn run(cluster: &ClusterArgs, args: &DrainArgs) -> anyhow::Result<()> {
    let DrainArgs { server, no_wait, output } = args;
    let target = cluster::target(cluster)?;
    let changed = begin(&target, *server, "drain")?;
    let left = if *no_wait {
        servers::drain(&target, server.to_string())?
    } else {
        wait_until_empty(&target, *server, "drain", *output)?
    };
    print(*server, changed, &left, *output)
}

/// Wishes that `server` becomes empty; `command` is what people typed.
fn begin(target: &Target, server: ServerId, command: &str) -> anyhow::Result<bool> {
    set(target, server, false).map_err(|error| {
        let text = format!("{error:#}");
        let advice = if text.contains("no good copy is elsewhere") {
            "bring it back, or remove those files; see `dfs fsck`"
        } else if text.contains("would be left") || text.contains("have room") {
            "add servers, or bring back those that are away; see `dfs status`"
        } else {
            "see `dfs status`"
        };
        Failure::new(format!("{command} {server}: {text}"), advice).into()
    })
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Decommissioned {
    server: String,
    /// False: it was so already.
    changed: bool,
}

impl Table for Decommissioned {
    fn table(&self) -> String {
        let Self { server, changed } = self;
        let is = if *changed { "is" } else { "was already" };
        format!(
            "{server} {is} decommissioned: no chunk lists it, and its data directory is not used again\n"
        )
    }
}

pub(crate) fn decommission(cluster: &ClusterArgs, args: &DecommissionArgs) -> anyhow::Result<()> {
    let DecommissionArgs { server, output } = args;
    let target = cluster::target(cluster)?;
    crate::admin::check_reachable(&target)?;
    let failed = |error: anyhow::Error| {
        Failure::new(format!("decommission {server}: {error:#}"), "see `dfs status`, and try again")
    };
    let done = |changed: bool| {
        let result = Decommissioned { server: server.to_string(), changed };
        output::print(output.format, &result)
    };
    if servers::drain(&target, server.to_string()).map_err(failed)?.decommissioned {
        return done(false);
    }
    begin(&target, *server, "decommission")?;
    let left = wait_until_empty(&target, *server, "decommission", *output)?;
    if left.decommissioned {
        return done(false);
    }
    if !left.draining {
        return fail(
            format!("decommission {server}: somebody ended the drain"),
            "give the command again if it is still meant",
        );
    }
    done(servers::decommission(&target, server.to_string()).map_err(failed)?)
}

pub(crate) fn undrain(cluster: &ClusterArgs, args: &UndrainArgs) -> anyhow::Result<()> {
    let UndrainArgs { server, output } = args;
    let target = cluster::target(cluster)?;
    let changed = set(&target, *server, true).map_err(|error| {
        Failure::new(format!("undrain {server}: {error:#}"), "see `dfs status`")
    })?;
    print(*server, changed, &servers::drain(&target, server.to_string())?, *output)
}

fn print(
    server: ServerId,
    changed: bool,
    left: &DrainReply,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let result = Drained {
        server: server.to_string(),
        changed,
        draining: left.draining,
        chunks_left: left.chunks_left,
        bytes_left: left.bytes_left,
    };
    output::print(output.format, &result)
}

/// Follows the emptying of `server` to its end. Interrupting it ends the watching only.
fn wait_until_empty(
    target: &Target,
    server: ServerId,
    command: &str,
    output: OutputArgs,
) -> anyhow::Result<DrainReply> {
    let mut steps = Steps::new();
    let mut said = String::new();
    let mut heard = Instant::now();
    loop {
        let left = match servers::drain(target, server.to_string()) {
            Ok(left) => left,
            Err(error) if SILENCE_MAX < heard.elapsed() => return Err(error),
            Err(_) => {
                steps.say("the master does not answer");
                std::thread::sleep(POLL);
                continue;
            }
        };
        heard = Instant::now();
        // Empty, or somebody else took the wish back.
        if left.chunks_left == 0 || !left.draining {
            steps.finish();
            return Ok(left);
        }
        if !left.needed_because.is_empty() {
            return fail(
                format!("{command} {server}: {}", left.needed_because),
                "bring it back, or remove those files; see `dfs fsck`",
            );
        }
        steps.say(&progress(&left));
        if output.format == Format::Table && said != left.waits_because {
            if !left.waits_because.is_empty() {
                let line = format!("waits: {}", left.waits_because);
                steps.hidden(|| eprintln!("{}", output::printable(&line)));
            }
            said.clone_from(&left.waits_because);
        }
        std::thread::sleep(POLL);
    }
}

fn progress(left: &DrainReply) -> String {
    let DrainReply { chunks_left, bytes_left, rate, eta_ms, .. } = left;
    let pace = output::pace(*rate, *eta_ms);
    format!("{chunks_left} chunks, {} to move; {pace}", bytes(*bytes_left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_left_how_fast_it_goes_and_how_long_that_takes() {
        let left = DrainReply {
            draining: true,
            chunks_left: 12,
            bytes_left: 3 << 20,
            rate: 1 << 20,
            eta_ms: Some(3_000),
            ..DrainReply::default()
        };
        assert_eq!(progress(&left), "12 chunks, 3.0 MiB to move; 1.0 MiB/s, 3.0 s left");
        let still = DrainReply { rate: 0, eta_ms: None, ..left };
        assert_eq!(progress(&still), "12 chunks, 3.0 MiB to move; nothing copied lately");
    }
}
