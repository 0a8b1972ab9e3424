//! `dfs maintenance`.

use std::time::Duration;

use dfs_proto::control::WishRequest;
use serde::Serialize;

use crate::args::ClusterArgs;
use crate::args::servers::MaintenanceArgs;
use crate::failure::{Failure, fail_usage};
use crate::output::{self, Table};
use crate::{cluster, servers};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Maintenance {
    server: String,
    changed: bool,
    /// UTC; null: not in maintenance.
    until: Option<String>,
}

impl Table for Maintenance {
    fn table(&self) -> String {
        match &self.until {
            Some(until) => format!("{} is in maintenance until {until}\n", self.server),
            None => format!("{} is not in maintenance\n", self.server),
        }
    }
}

/// A time of nothing would end before it began.
pub(crate) fn check_time(time: Option<Duration>) -> anyhow::Result<()> {
    if time.is_some_and(|time| time.is_zero()) {
        return fail_usage("usage: --for 0: nothing would happen", "give a time such as 10m");
    }
    Ok(())
}

pub(crate) fn run(cluster: &ClusterArgs, args: &MaintenanceArgs) -> anyhow::Result<()> {
    let MaintenanceArgs { server, for_time, end, output } = args;
    check_time(*for_time)?;
    let request = WishRequest {
        server: server.to_string(),
        overlay: "maintenance".to_owned(),
        end: *end,
        for_ms: for_time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        force: false,
        by: servers::myself(),
    };
    let reply = servers::wish(&cluster::target(cluster)?, request).map_err(|error| {
        Failure::new(format!("maintenance {server}: {error:#}"), "see `dfs status`")
    })?;
    let overlay = reply.overlays.iter().find(|overlay| overlay.kind == "maintenance");
    let until = overlay.and_then(|overlay| overlay.until_ns);
    let until = until.map(|at| output::utc(at.div_euclid(1_000_000_000)));
    let result = Maintenance { server: server.to_string(), changed: reply.changed, until };
    output::print(output.format, &result)
}
