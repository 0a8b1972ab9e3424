//! Set 2: a coordinator that sends each client to a server, and says so when there is none.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dfs_core::cluster::{Cluster as Table, Heartbeat, Liveness, LivenessProfile};
use dfs_core::ids::{DiskId, ServerId};
use dfs_core::plan::rebuild::Place;
use dfs_core::route::{Registered, RouteError, Strategy, route};
use dfs_core::time::Timestamp;
use dfs_proto::control::{RouteReply, RouteRequest};
use serde_json::Value;
use tests::{Cluster, Options, dfs_program, setting, wait_until};

use crate::{need_fuse, refusal};

fn routers(chunkservers: u32) -> Cluster {
    Cluster::start_with(Options { chunkservers, profile: "router", ..Options::default() })
}

fn routed(cluster: &Cluster, client: u64) -> Value {
    cluster.dfs_json(["route", "--strategy", "modulo", &client.to_string()])
}

fn address(cluster: &Cluster, client: u64) -> String {
    routed(cluster, client)["address"].as_str().unwrap().to_owned()
}

fn until_dead(cluster: &Cluster, server: &str) {
    wait_until("it is dead", || cluster.server_state(server).unwrap() == "dead");
}

const MODULO: [&str; 3] = ["route", "--strategy", "modulo"];

#[test]
fn case_2_1_clients_go_round_over_the_clusters() {
    need_fuse!();
    let cluster = routers(3);
    for (client, server) in (1..=6).zip([1, 2, 3, 1, 2, 3]) {
        let found = routed(&cluster, client);
        let name = format!("cs-{server}");
        assert_eq!((&found["cluster"], &found["server"]), (&server.into(), &name.as_str().into()));
        let registered = cluster.chunkserver_address(&name);
        let (host, port) = registered.rsplit_once(':').unwrap();
        assert_eq!((&found["host"], &found["port"].to_string()), (&host.into(), &port.to_owned()));
        let line = cluster.dfs([&MODULO[..], &[&client.to_string()]].concat());
        assert_eq!(line, format!("{name} {registered}\n"));
    }
    let explained = cluster.dfs([&MODULO[..], &["--explain", "5"]].concat());
    assert!(explained.contains("(5 - 1) mod 3 + 1 = cluster 2"), "{explained}");
    for (bad, expected) in [("0", "from 1 to"), ("-1", "'-1'"), ("x", "'x'"), ("", "whole number")]
    {
        let said = refusal(&cluster, &["route", bad], 2);
        assert!(said.contains(expected), "{said}");
    }
    assert!(refusal(&cluster, &["route", "--strategy", "nearest", "1"], 2).contains("nearest"));
}

#[test]
fn case_2_2_a_client_of_a_dead_server_is_told_so_and_others_are_not_touched() {
    need_fuse!();
    let cluster = routers(3);
    cluster.kill("cs-1");
    until_dead(&cluster, "cs-1");
    let said = refusal(&cluster, &[&MODULO[..], &["1"]].concat(), 1);
    assert!(said.contains("UNAVAILABLE: no live server in cluster 1"), "{said}");
    let json = refusal(&cluster, &[&MODULO[..], &["1", "-o", "json"]].concat(), 1);
    assert_eq!(json, said);
    assert_eq!(routed(&cluster, 2)["server"], "cs-2");
    // By the default strategy nobody is pinned to it.
    for client in 1..=6 {
        let found = cluster.dfs_json(["route", &client.to_string()]);
        assert_ne!(found["server"], "cs-1", "{found}");
    }
    let explained = cluster.try_dfs([&MODULO[..], &["--explain", "4"]].concat());
    let table = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert_eq!(explained.status.code(), Some(1));
    assert!(table.contains("dead") && table.contains("silent for"), "{table}");
    let explained = [&MODULO[..], &["--explain", "4", "-o", "json"]].concat();
    let explained = cluster.try_dfs(explained);
    assert_eq!(explained.status.code(), Some(1));
    let explained: Value = serde_json::from_slice(&explained.stdout).unwrap();
    let unavailable = explained["unavailable"].as_str().unwrap();
    assert!(unavailable.starts_with("no live server in cluster 1"), "{explained}");
    assert_eq!(explained["explained"]["servers"][0]["state"], "dead", "{explained}");
}

#[test]
fn case_2_3_a_connected_client_of_a_killed_server_fails_clearly_and_the_other_never() {
    need_fuse!();
    let cluster = routers(2);
    let (first, second) = (address(&cluster, 1), address(&cluster, 2));
    let ask = |client: &str| cluster.try_dfs([&MODULO[..], &["--check", client]].concat());
    assert_eq!(tests::stdout_of(&ask("1")), format!("cs-1 {first}\n"));
    cluster.kill("cs-1");
    let mut dead = false;
    while !dead {
        // Before the detector knows, and after: an error, never an address.
        dead = cluster.server_state("cs-1").unwrap() == "dead";
        let failed = ask("1");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(failed.stdout.is_empty() && said.contains("UNAVAILABLE: "), "{said}");
        assert_eq!(tests::stdout_of(&ask("2")), format!("cs-2 {second}\n"));
    }
    assert!(refusal(&cluster, &[&MODULO[..], &["1"]].concat(), 1).contains("in cluster 1"));
}

/// A chunkserver beside those that the cluster started; killed with the test.
pub(crate) struct Started(Child);

impl Started {
    pub(crate) fn again(cluster: &Cluster, id: &str) -> Self {
        Self::with(cluster, id, &cluster.master_address(), &[])
    }

    /// One that reaches the master at `master`.
    pub(crate) fn with(cluster: &Cluster, id: &str, master: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(dfs_program());
        command.args(["chunkserver", "--listen", "127.0.0.1:0", "--id", id, "--data"]);
        command.arg(cluster.dir().join("data").join(id));
        command.args(["--master", master, "--key-file"]);
        command.arg(cluster.dir().join("cluster.key")).args(arguments);
        let log = std::fs::File::create(cluster.scratch().join(format!("{id}-again.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn case_2_4_a_server_that_restarts_on_another_port_is_found_there() {
    need_fuse!();
    let cluster = routers(3);
    let before = address(&cluster, 1);
    cluster.kill("cs-1");
    // The old port stays taken: the new server cannot have it by chance.
    let _taken = std::net::TcpListener::bind(&before);
    let _again = Started::again(&cluster, "cs-1");
    wait_until("the new address", || address(&cluster, 1) != before);
    let new = address(&cluster, 1);
    let checked = cluster.dfs([&MODULO[..], &["--check", "1"]].concat());
    assert_eq!(checked, format!("cs-1 {new}\n"));
    assert_eq!(routed(&cluster, 1)["state"], "alive");
    assert_eq!(routed(&cluster, 2)["server"], "cs-2");
}

pub(crate) fn at(millis: u64) -> Timestamp {
    Timestamp(millis * 1_000_000)
}

pub(crate) fn beat(server: u32, address: String, incarnation: u64) -> Heartbeat {
    Heartbeat {
        server: ServerId(server),
        disk: DiskId(u128::from(server)),
        incarnation,
        address,
        full_inventory: true,
        inventory_more: false,
        replicas: vec![],
        damaged: vec![],
        gone: vec![],
        inventory_digest: None,
        chunk_count: 0,
        used_bytes: 0,
        free_bytes: 1,
        total_bytes: 1,
        device: 0,
        place: Place::default(),
    }
}

fn registered(table: &Table, now: Timestamp, servers: u32) -> Vec<Registered> {
    let servers = (1..=servers).map(ServerId);
    servers.map(|server| Registered { server, liveness: table.liveness(now, server) }).collect()
}

#[test]
fn case_2_5_silence_of_9_5_s_is_routed_and_of_10_5_s_refused() {
    let mut table = Table::new(LivenessProfile::ROUTER);
    for server in 1..=3 {
        table.on_heartbeat(at(1_000), beat(server, format!("10.0.0.{server}:7000"), 1));
    }
    for (silence, expected) in [(0, true), (9_500, true), (10_500, false)] {
        let now = at(1_000 + silence);
        let found = route(Strategy::Modulo, 1, &registered(&table, now, 3));
        assert_eq!(found.is_ok(), expected, "{silence} ms: {found:?}");
    }
    let late = registered(&table, at(11_500), 3);
    let dead = RouteError::ClusterDead { cluster: 1, server: ServerId(1) };
    assert_eq!(route(Strategy::Modulo, 4, &late), Err(dead));
    assert_eq!(route(Strategy::Rendezvous, 4, &late), Err(RouteError::AllDead(3)));
    table.on_heartbeat(at(12_000), beat(1, "10.0.0.1:7000".to_owned(), 1));
    assert!(route(Strategy::Modulo, 4, &registered(&table, at(12_001), 3)).is_ok());
}

#[test]
fn case_2_7_rendezvous_moves_the_clients_of_the_dead_server_only() {
    const CLIENTS: u64 = 10_000;
    let alive = |n: u32| Registered { server: ServerId(n), liveness: Liveness::Alive };
    let before: Vec<Registered> = (1..=10).map(alive).collect();
    let mut after = before.clone();
    after[3].liveness = Liveness::Dead;
    let mut left = before.clone();
    left.remove(3);
    let (mut moved, mut moved_by_modulo) = (0, 0);
    for client in 1..=CLIENTS {
        let first = route(Strategy::Rendezvous, client, &before).unwrap().server;
        let then = route(Strategy::Rendezvous, client, &after).unwrap().server;
        if first == ServerId(4) {
            assert_ne!(then, ServerId(4));
            moved += 1;
        } else {
            assert_eq!(then, first, "client {client} has nothing to do with the dead server");
        }
        // Modulo sends nobody elsewhere while the server is registered; without it nearly everybody moves.
        let first = route(Strategy::Modulo, client, &before).unwrap().server;
        let then = route(Strategy::Modulo, client, &left).unwrap().server;
        moved_by_modulo += u64::from(first != then);
    }
    assert!(0 < moved && moved * 100 <= CLIENTS * 12, "{moved}");
    assert!(CLIENTS * 88 <= moved_by_modulo * 100, "{moved_by_modulo}");
}

const THREADS: u32 = 64;
const SERVERS: u32 = 8;

/// What thread `thread` does for the `round`th time: every other one is a server that comes back somewhere else, the
/// others ask for a client's server. Answers what it was told.
fn beat_or_route(thread: u32, round: u32, table: &mut Table) -> Option<RouteReply> {
    let server = thread / 2 % SERVERS + 1;
    if thread.is_multiple_of(2) {
        let start = thread / 2 + THREADS * round;
        let (host, port) = (format!("10.{server}.{}.{}", start / 250, start % 250), 1000 + start);
        table.on_heartbeat(at(1_000), beat(server, format!("{host}:{port}"), u64::from(start) + 1));
        return None;
    }
    let registered: Vec<ServerId> = (1..=SERVERS).map(ServerId).collect();
    let request = RouteRequest {
        client: u64::from(thread * 100 + round) + 1,
        strategy: "rendezvous".to_owned(),
    };
    Some(master::routing::route_in(table, &registered, at(1_001), &request).unwrap())
}

/// Host and port are of one heartbeat of this server, in the answer and in each row of the table behind it.
fn check_is_whole(reply: &RouteReply) {
    let rows = reply.servers.iter().map(|row| (&row.server, &row.address, row.state.as_str()));
    for (server, address, state) in
        rows.chain([(&reply.server, &reply.address, reply.state.as_str())])
    {
        if address.is_empty() {
            assert_ne!(state, "alive", "{server} is alive nowhere");
            continue;
        }
        let (host, port) = address.rsplit_once(':').unwrap();
        let parts: Vec<u32> = host.split('.').map(|part| part.parse().unwrap()).collect();
        assert_eq!(format!("cs-{}", parts[1]), *server, "{address}");
        assert_eq!(port.parse(), Ok(1000 + 250 * parts[2] + parts[3]), "{address}");
    }
}

fn check_nobody_is_lost(table: &Table) {
    for server in (1..=SERVERS).map(ServerId) {
        assert_eq!(table.liveness(at(1_001), server), Liveness::Alive, "{server}");
    }
}

/// Under a checker that tries other orders of the threads' steps each time, from a seed that it prints when one fails.
#[test]
fn case_2_6_no_order_of_64_threads_tears_an_entry_or_loses_a_registration() {
    let one_order = || {
        let table = Arc::new(shuttle::sync::Mutex::new(Table::new(LivenessProfile::ROUTER)));
        let run = |thread| {
            let table = Arc::clone(&table);
            shuttle::thread::spawn(move || {
                for round in 0..3 {
                    let reply = beat_or_route(thread, round, &mut table.lock().unwrap());
                    reply.iter().for_each(check_is_whole);
                }
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        check_nobody_is_lost(&table.lock().unwrap());
    };
    shuttle::check_random(
        one_order,
        usize::try_from(setting("DFS_BEHAVIOURS_ORDERS", 200)).unwrap(),
    );
}

/// The requirement's minute: `DFS_BEHAVIOURS_SECONDS=60`.
#[test]
fn case_2_6_64_real_threads_tear_no_entry_and_lose_no_registration() {
    let until = Instant::now() + Duration::from_secs(setting("DFS_BEHAVIOURS_SECONDS", 3));
    let table = Mutex::new(Table::new(LivenessProfile::ROUTER));
    let routed = std::thread::scope(|scope| {
        let run = |thread| {
            let table = &table;
            scope.spawn(move || {
                let (mut round, mut routed) = (0, 0_u64);
                while Instant::now() < until {
                    let reply = beat_or_route(thread, round % 900, &mut table.lock().unwrap());
                    reply.iter().for_each(check_is_whole);
                    routed += u64::from(reply.is_some_and(|reply| !reply.address.is_empty()));
                    round += 1;
                }
                routed
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    assert!(u64::from(THREADS) <= routed, "{routed}");
    check_nobody_is_lost(&table.lock().unwrap());
}
