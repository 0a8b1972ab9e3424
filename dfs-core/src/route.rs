//! Routing: which chunkserver a client is sent to, from the servers that are registered and what the one detector says
//! of them. Of equal servers in an equal state every master gives the same answer, so none of it is kept.
//!
//! `modulo` pins a client to one server of the cluster, dead or not; `rendezvous` gives it the live one with the highest
//! weight for this client, so that a death moves the dead server's clients and nobody else.

use std::fmt;

use crate::cluster::Liveness;
use crate::ids::ServerId;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// Cluster `(id - 1) mod n + 1` of the `n` registered servers, which have the numbers 1, 2, … in the order of their ids.
    Modulo,
    /// Of the live servers the one that has the highest [`weight`] for the client.
    Rendezvous,
}

impl Strategy {
    pub const ALL: [Self; 2] = [Self::Modulo, Self::Rendezvous];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Modulo => "modulo",
            Self::Rendezvous => "rendezvous",
        })
    }
}

/// A registered server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registered {
    pub server: ServerId,
    pub liveness: Liveness,
}

impl Registered {
    /// A suspect server is routed to: only silence decides, and until it is over the server may well answer.
    fn is_live(&self) -> bool {
        self.liveness != Liveness::Dead
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Number of the server among the registered ones, from 1 on.
    pub cluster: u64,
    pub server: ServerId,
}

/// Nobody to send the client to. Asking again helps when a server is back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteError {
    #[error("client 0: client ids begin with 1")]
    NoClient,
    #[error("no server is registered")]
    NoServers,
    #[error("no live server in cluster {cluster}: {server} is dead")]
    ClusterDead { cluster: u64, server: ServerId },
    #[error("no live server: all {0} are dead")]
    AllDead(usize),
}

/// Whose turn `number` is among `count` that take turns, from 0 on; 0 if there are none.
#[must_use]
pub const fn turn(number: u64, count: u64) -> u64 {
    match number.checked_rem(count) {
        Some(turn) => turn,
        None => 0,
    }
}

/// The weight of `server` for `client`: the same everywhere, spread evenly over 64 bits.
#[must_use]
pub const fn weight(client: u64, server: ServerId) -> u64 {
    // splitmix64 (Steele, Lea and Flood 2014), of the client and then of both: neighbours share no bits.
    mix(mix(client) ^ (server.0 as u64))
}

const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The server for `client` (from 1 on) among `servers`, in the order of their ids.
///
/// # Errors
/// See [`RouteError`]: never another server in place of one that `strategy` names and that is dead.
pub fn route(strategy: Strategy, client: u64, servers: &[Registered]) -> Result<Route, RouteError> {
    let from_zero = client.checked_sub(1).ok_or(RouteError::NoClient)?;
    let mut numbered = (1_u64..).zip(servers);
    match strategy {
        Strategy::Modulo => {
            let wanted = turn(from_zero, servers.len() as u64) + 1;
            let found = numbered.find(|(cluster, _)| *cluster == wanted);
            let (cluster, found) = found.ok_or(RouteError::NoServers)?;
            let server = found.server;
            if found.is_live() {
                Ok(Route { cluster, server })
            } else {
                Err(RouteError::ClusterDead { cluster, server })
            }
        }
        Strategy::Rendezvous if servers.is_empty() => Err(RouteError::NoServers),
        Strategy::Rendezvous => numbered
            .filter(|(_, registered)| registered.is_live())
            .max_by_key(|(_, registered)| (weight(client, registered.server), registered.server))
            .map(|(cluster, registered)| Route { cluster, server: registered.server })
            .ok_or(RouteError::AllDead(servers.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(states: &[(u32, Liveness)]) -> Vec<Registered> {
        states
            .iter()
            .map(|(server, liveness)| Registered { server: ServerId(*server), liveness: *liveness })
            .collect()
    }

    #[track_caller]
    fn check_modulo(states: &[(u32, Liveness)], expected: &[Option<u32>]) {
        let servers = servers(states);
        let found = (1..=expected.len() as u64)
            .map(|id| route(Strategy::Modulo, id, &servers).ok().map(|route| route.server.0));
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn modulo_goes_round_over_all_that_are_registered_and_refuses_for_the_dead() {
        use Liveness::{Alive, Dead, Suspect};
        check_modulo(&[(1, Alive), (2, Alive), (3, Alive)], &[1, 2, 3, 1, 2, 3].map(Some));
        check_modulo(&[(2, Alive), (5, Dead), (9, Suspect)], &[Some(2), None, Some(9), Some(2)]);
        let dead = servers(&[(4, Dead)]);
        let refused = route(Strategy::Modulo, 7, &dead).unwrap_err().to_string();
        assert_eq!(refused, "no live server in cluster 1: cs-4 is dead");
    }

    #[test]
    fn there_is_no_client_0_and_nobody_to_go_to_without_servers() {
        for strategy in Strategy::ALL {
            let one = servers(&[(1, Liveness::Alive)]);
            assert_eq!(route(strategy, 0, &one), Err(RouteError::NoClient));
            assert_eq!(route(strategy, 1, &[]), Err(RouteError::NoServers));
            let last = route(strategy, u64::MAX, &one);
            assert_eq!(last, Ok(Route { cluster: 1, server: ServerId(1) }));
        }
        let dead = servers(&[(1, Liveness::Dead), (2, Liveness::Dead)]);
        assert_eq!(route(Strategy::Rendezvous, 1, &dead), Err(RouteError::AllDead(2)));
    }

    #[test]
    fn rendezvous_spreads_evenly() {
        let all = servers(&(1..=10).map(|n| (n, Liveness::Alive)).collect::<Vec<_>>());
        let mut counts = [0_u32; 10];
        for client in 1..=10_000 {
            let found = route(Strategy::Rendezvous, client, &all).unwrap();
            counts[found.server.0 as usize - 1] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
