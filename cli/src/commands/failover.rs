//! `dfs failover` and `dfs recover`: a wish, and what came of it.

use std::time::{Duration, Instant};

use dfs_core::ids::ServerId;
use dfs_proto::control::{DrillReply, WishRequest};
use serde::Serialize;

use crate::args::servers::{FailoverArgs, RecoverArgs, WaitArgs};
use crate::args::{ClusterArgs, Format, OutputArgs};
use crate::cluster::Target;
use crate::output::{self, Table, bytes, seconds};
use crate::{cluster, servers};

const POLL: Duration = Duration::from_millis(100);

/// What a drill showed; the keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    server: String,
    /// failover or recover.
    drill: &'static str,
    /// False: it was wished already.
    changed: bool,
    state: String,
    /// From the wish until the server was found dead (failover) or alive (recover).
    noticed_ms: Option<u64>,
    /// From the wish until all chunks were safe.
    safe_ms: Option<u64>,
    short_chunks: u64,
    copied_bytes: u64,
    reconfigured_chunks: u64,
    /// Clients do not tell the master of their errors: never measured.
    client_errors: Option<u64>,
    /// Why not all chunks are safe, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_safe_because: Option<String>,
    #[serde(skip)]
    waited: bool,
}

impl Table for Report {
    fn table(&self) -> String {
        let failover = self.drill == "failover";
        if !self.waited {
            return String::new();
        }
        let noticed = match self.noticed_ms {
            Some(millis) => format!(
                "{} after {}",
                if failover { "found dead" } else { "alive again" },
                seconds(millis)
            ),
            None => format!("not noticed yet, it is {}", self.state),
        };
        let safe = match (self.safe_ms, &self.not_safe_because) {
            (Some(millis), _) => format!("after {}", seconds(millis)),
            (None, Some(because)) => format!("no: {} short, {because}", self.short_chunks),
            (None, None) => format!("not yet: {} short", self.short_chunks),
        };
        format!(
            "detection      {noticed}\n\
             chunks safe    {safe}\n\
             bytes copied   {} between servers, {} configuration change(s)\n\
             client errors  not measured: clients do not tell the master\n",
            bytes(self.copied_bytes),
            self.reconfigured_chunks
        )
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &FailoverArgs) -> anyhow::Result<()> {
    let FailoverArgs { server, for_time, force, wait, output } = args;
    super::maintenance::check_time(*for_time)?;
    let request = WishRequest {
        server: server.to_string(),
        overlay: "suspended".to_owned(),
        end: false,
        for_ms: for_time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        force: *force,
        by: servers::myself(),
    };
    let target = cluster::target(cluster)?;
    let reply = servers::wish(&target, request).map_err(|error| {
        let text = format!("{error:#}");
        let advice = if text.contains(" holds ") {
            "wait until `dfs status` shows all chunks safe, or give --force"
        } else {
            "see `dfs status`"
        };
        crate::failure::Failure::new(format!("failover {server}: {text}"), advice)
    })?;
    let until = reply.overlays.iter().find(|o| o.kind == "suspended").and_then(|o| o.until_ns);
    let until = until.map_or_else(String::new, |at| {
        format!(" until {}", output::utc(at.div_euclid(1_000_000_000)))
    });
    let said = format!(
        "{server} {} suspended{until}; `dfs recover {server}` ends it",
        if reply.changed { "is" } else { "was already" }
    );
    watch(&target, *server, "failover", reply.changed, &said, *wait, *output)
}

pub(crate) fn recover(cluster: &ClusterArgs, args: &RecoverArgs) -> anyhow::Result<()> {
    let RecoverArgs { server, wait, output } = args;
    let request = WishRequest {
        server: server.to_string(),
        overlay: "suspended".to_owned(),
        end: true,
        for_ms: None,
        force: false,
        by: servers::myself(),
    };
    let target = cluster::target(cluster)?;
    let reply = servers::wish(&target, request).map_err(|error| {
        crate::failure::Failure::new(format!("recover {server}: {error:#}"), "see `dfs status`")
    })?;
    let said = if reply.changed {
        format!("{server} is no longer suspended")
    } else {
        format!("{server} was not suspended")
    };
    watch(&target, *server, "recover", reply.changed, &said, *wait, *output)
}

/// Says what is to be said and follows the drill to its end, or as long as it is worth it.
fn watch(
    target: &Target,
    server: ServerId,
    drill: &'static str,
    changed: bool,
    said: &str,
    wait: WaitArgs,
    output: OutputArgs,
) -> anyhow::Result<()> {
    if output.format == Format::Table {
        output::line(said)?;
    }
    let until = Instant::now() + wait.wait;
    loop {
        let now = servers::drill(target, server.to_string())?;
        let ours = now.found && now.kind == drill;
        let over = !ours
            || now.safe_ms.is_some()
            || !now.not_safe_because.is_empty()
            // Nothing began now: what the last drill showed is all there is.
            || !changed && now.noticed_ms.is_some();
        if over || wait.no_wait || until <= Instant::now() {
            let report = report(server, drill, changed, now, ours && !wait.no_wait);
            return output::print(output.format, &report);
        }
        std::thread::sleep(POLL);
    }
}

fn report(
    server: ServerId,
    drill: &'static str,
    changed: bool,
    reply: DrillReply,
    waited: bool,
) -> Report {
    Report {
        server: server.to_string(),
        drill,
        changed,
        state: reply.state,
        noticed_ms: reply.noticed_ms,
        safe_ms: reply.safe_ms,
        short_chunks: reply.short_chunks,
        copied_bytes: reply.copied_bytes,
        reconfigured_chunks: reply.reconfigured,
        client_errors: None,
        not_safe_because: Some(reply.not_safe_because).filter(|text| !text.is_empty()),
        waited,
    }
}
