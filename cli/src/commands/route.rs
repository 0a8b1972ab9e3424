//! `dfs route`: the live server for a client, or an error; never an address that is only hoped for.

use std::time::Duration;

use clap::ValueEnum as _;
use dfs_proto::control::{RouteReply, RouteRequest, RouteServer};
use dfs_service::conn::{Door, dial};
use serde::Serialize;

use crate::args::ClusterArgs;
use crate::args::servers::{RouteArgs, RouteStrategy};
use crate::failure::{Failure, fail};
use crate::output::{self, Table, columns};
use crate::{cluster, servers};

/// How long a server has to answer `--check`.
const CHECK_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Routed {
    client: u64,
    strategy: String,
    /// Number of the server among the registered ones, from 1 on.
    cluster: u64,
    server: String,
    /// As it told the master: HOST:PORT.
    address: String,
    host: String,
    port: Option<u16>,
    /// alive or suspect, by its heartbeats.
    state: String,
    /// With --explain.
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<Explained>,
}

/// In the place of [`Routed`] if there is no server to name; beside the error.
#[derive(Debug, Serialize)]
struct Unrouted {
    client: u64,
    strategy: String,
    unavailable: String,
    explained: Explained,
}

impl Table for Unrouted {
    fn table(&self) -> String {
        self.explained.table()
    }
}

#[derive(Debug, Serialize)]
struct Explained {
    because: String,
    servers: Vec<Server>,
}

#[derive(Debug, Serialize)]
struct Server {
    cluster: u64,
    server: String,
    address: Option<String>,
    state: String,
    cause: String,
    /// For this client: hexadecimal, JSON's numbers are too short.
    weight: String,
}

impl From<RouteServer> for Server {
    fn from(server: RouteServer) -> Self {
        Self {
            cluster: server.cluster,
            server: server.server,
            address: Some(server.address).filter(|address| !address.is_empty()),
            state: server.state,
            cause: server.cause,
            weight: format!("{:016x}", server.weight),
        }
    }
}

impl Table for Routed {
    fn table(&self) -> String {
        let line = format!("{} {}\n", self.server, self.address);
        self.explained.iter().fold(line, |line, explained| line + &explained.table())
    }
}

impl Table for Explained {
    fn table(&self) -> String {
        let head = ["CLUSTER", "SERVER", "STATE", "ADDRESS", "WEIGHT", "CAUSE"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.servers.iter().map(|server| {
            vec![
                server.cluster.to_string(),
                server.server.clone(),
                server.state.clone(),
                server.address.clone().unwrap_or_else(|| "-".to_owned()),
                server.weight.clone(),
                server.cause.clone(),
            ]
        }));
        format!("{}\n{}", self.because, columns(&rows, &[0]))
    }
}

fn name(strategy: RouteStrategy) -> String {
    strategy.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn because(client: u64, strategy: RouteStrategy, reply: &RouteReply) -> String {
    let count = reply.servers.len() as u64;
    match strategy {
        RouteStrategy::Modulo => match client.checked_sub(1).and_then(|n| n.checked_rem(count)) {
            Some(turn) => format!("modulo: ({client} - 1) mod {count} + 1 = cluster {}", turn + 1),
            None => "modulo: no server is registered".to_owned(),
        },
        RouteStrategy::Rendezvous => {
            let live = reply.servers.iter().filter(|server| server.state != "dead").count();
            format!(
                "rendezvous: the highest weight for client {client} among {live} live of {count} servers"
            )
        }
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &RouteArgs) -> anyhow::Result<()> {
    let RouteArgs { client, strategy, explain, check, output } = args;
    let target = cluster::target(cluster)?;
    let request = RouteRequest { client: *client, strategy: name(*strategy) };
    let reply = servers::route(&target, request)
        .map_err(|error| Failure::new(format!("route {client}: {error:#}"), "see `dfs status`"))?;
    let explained = explain.then(|| Explained {
        because: because(*client, *strategy, &reply),
        servers: reply.servers.iter().cloned().map(Server::from).collect(),
    });
    let RouteReply { cluster, server, address, state, unavailable, servers: _ } = reply;
    if server.is_empty() {
        if let Some(explained) = explained {
            let (strategy, unavailable) = (name(*strategy), unavailable.clone());
            let unrouted = Unrouted { client: *client, strategy, unavailable, explained };
            output::print(output.format, &unrouted)?;
        }
        return fail(
            format!("UNAVAILABLE: {unavailable}"),
            match strategy {
                RouteStrategy::Modulo => "wait until it is back, or use --strategy rendezvous",
                RouteStrategy::Rendezvous => "see `dfs status`",
            },
        );
    }
    if *check && let Err(error) = dial(&address, &target.key, Door::Frames, CHECK_MAX) {
        return fail(
            format!("UNAVAILABLE: {server} is {state} to the master, but {address}: {error}"),
            "ask again: the master notices that it is silent",
        );
    }
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
    let routed = Routed {
        client: *client,
        strategy: name(*strategy),
        cluster,
        server,
        host: host.trim_matches(['[', ']']).to_owned(),
        port: port.parse().ok(),
        address: address.clone(),
        state,
        explained,
    };
    output::print(output.format, &routed)
}
