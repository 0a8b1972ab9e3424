//! The routing table: chunkservers as the log registers them, with the addresses and states of this moment.

use dfs_core::cluster::Cluster;
use dfs_core::ids::ServerId;
use dfs_core::meta;
use dfs_core::route::{Registered, RouteError, Strategy, route as choose, weight};
use dfs_core::time::Timestamp;
use dfs_proto::control::{RouteReply, RouteRequest, RouteServer};
use tonic::Status;

use crate::state::{Master, lock, now};

/// To which server a client is sent.
pub(crate) fn route(master: &Master, request: &RouteRequest) -> Result<RouteReply, Status> {
    let registered: Vec<ServerId> =
        meta::servers(&master.reader()).into_iter().map(|(server, _)| server).collect();
    // Under one lock: a server's state, and the address of the same heartbeat.
    route_in(&lock(&master.cluster), &registered, now(), request)
}

/// As [`route`], from one state of `cluster`, which the caller keeps as it is meanwhile.
///
/// # Errors
/// `InvalidArgument` for an unknown strategy or a client that is none.
pub fn route_in(
    cluster: &Cluster,
    registered: &[ServerId],
    now: Timestamp,
    request: &RouteRequest,
) -> Result<RouteReply, Status> {
    let RouteRequest { client, strategy } = request;
    let known = Strategy::ALL.into_iter().find(|known| known.to_string() == *strategy);
    let strategy = known.ok_or_else(|| {
        Status::invalid_argument(format!(
            "unknown strategy '{strategy}': expected modulo or rendezvous"
        ))
    })?;
    let table: Vec<Registered> = registered
        .iter()
        .map(|server| Registered { server: *server, liveness: cluster.liveness(now, *server) })
        .collect();
    let servers = (1..).zip(&table).map(|(number, Registered { server, liveness })| RouteServer {
        cluster: number,
        server: server.to_string(),
        address: cluster.row(*server).map_or_else(String::new, |row| row.address.clone()),
        state: liveness.to_string(),
        cause: cluster.cause(now, *server),
        weight: weight(*client, *server),
    });
    let servers: Vec<RouteServer> = servers.collect();
    let chosen = match choose(strategy, *client, &table) {
        Ok(route) => route.cluster,
        Err(error @ RouteError::NoClient) => {
            return Err(Status::invalid_argument(error.to_string()));
        }
        Err(error) => {
            let unavailable = match &error {
                RouteError::ClusterDead { server, .. } => {
                    format!("{error}, {}", cluster.cause(now, *server))
                }
                RouteError::NoClient | RouteError::NoServers | RouteError::AllDead(_) => {
                    error.to_string()
                }
            };
            return Ok(RouteReply { unavailable, servers, ..RouteReply::default() });
        }
    };
    let found = servers.iter().find(|server| server.cluster == chosen).cloned().unwrap_or_default();
    let RouteServer { cluster, server, address, state, .. } = found;
    Ok(RouteReply { cluster, server, address, state, unavailable: String::new(), servers })
}
