//! Copies that are lost and made again.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use tests::{Cluster, Options, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

const FILES: u64 = 60;
const FILE_BYTES: usize = 200_000;

/// Files of one chunk each.
fn write_files(cluster: &Cluster) {
    for n in 0..FILES {
        write_synced(&cluster.mount().join(format!("f{n}")), &pattern(FILE_BYTES, n));
    }
}

fn check_files(cluster: &Cluster) {
    for n in 0..FILES {
        check_content(&cluster.mount().join(format!("f{n}")), &pattern(FILE_BYTES, n));
    }
}

/// Members of each file's chunk.
fn members(cluster: &Cluster) -> BTreeMap<u64, Vec<String>> {
    let of = |n: u64| {
        let located = cluster.dfs_json(["locate", &format!("/f{n}")]);
        let servers = located["chunks"][0]["servers"].as_array().unwrap().iter();
        let mut servers: Vec<String> =
            servers.map(|server| server.as_str().unwrap().to_owned()).collect();
        servers.sort();
        servers
    };
    (0..FILES).map(|n| (n, of(n))).collect()
}

fn chunks(cluster: &Cluster) -> serde_json::Value {
    cluster.dfs_json(["status"])["chunks"].clone()
}

fn wait_until_safe(cluster: &Cluster) {
    wait_until("all chunks are safe", || {
        let chunks = chunks(cluster);
        chunks["total"] == FILES && chunks["safe"] == FILES
    });
}

fn wait_until_dead(cluster: &Cluster, id: &str) {
    wait_until("it is dead", || cluster.server_state(id).as_deref() == Some("dead"));
}

/// A chunkserver started by hand, as `dfs up` would.
struct Returned(Child);

impl Returned {
    fn start(cluster: &Cluster, id: &str) -> Self {
        let data = cluster.dir().join("data").join(id);
        let log = std::fs::File::create(cluster.scratch().join("returned.log")).unwrap();
        let mut command = cluster.command(["chunkserver", "--id", id, "--data"]);
        command.arg(data).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        // Gone already only if the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_dead_servers_copies_are_made_again_on_all_the_others() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 6, ..Options::default() });
    write_files(&cluster);
    let before = members(&cluster);
    cluster.kill("cs-1");
    wait_until_dead(&cluster, "cs-1");
    wait_until_safe(&cluster);
    let after = members(&cluster);
    let mut given: BTreeMap<&String, u64> = BTreeMap::new();
    let mut lost = 0;
    for (n, servers) in &after {
        let mut different = servers.clone();
        different.dedup();
        assert_eq!(different.len(), 3, "/f{n} is on {servers:?}");
        assert!(!servers.iter().any(|server| server == "cs-1"), "/f{n} is on {servers:?}");
        let had_it = before[n].iter().any(|server| server == "cs-1");
        lost += u64::from(had_it);
        let new: Vec<&String> = servers.iter().filter(|s| !before[n].contains(s)).collect();
        assert_eq!(
            new.len(),
            usize::from(had_it),
            "/f{n} was on {:?}, is on {servers:?}",
            before[n]
        );
        for server in new {
            *given.entry(server).or_default() += 1;
        }
    }
    assert!(20 <= lost, "cs-1 had {lost} of {FILES}");
    for (server, given) in &given {
        assert!(2 * given <= 3 * lost.div_ceil(5) + 4, "{server} got {given} of {lost}: {after:?}");
    }
    check_files(&cluster);
    assert!(cluster.dfs(["fsck"]).contains("clean"));

    // Nobody needs what it has when it comes back.
    let returned = Returned::start(&cluster, "cs-1");
    wait_until("its copies are gone", || {
        let status = cluster.dfs_json(["status"]);
        let servers = status["servers"].as_array().unwrap();
        let chunks = servers.iter().find(|server| server["id"] == "cs-1").unwrap();
        chunks["state"] == "alive" && chunks["chunks"] == 0
    });
    assert_eq!(members(&cluster), after);
    check_files(&cluster);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    drop(returned);
}

#[test]
fn a_server_that_comes_back_in_time_copies_only_what_changed() {
    need_fuse!();
    let cluster =
        Cluster::start_with(Options { chunkservers: 4, profile: "router", ..Options::default() });
    write_files(&cluster);
    let before = members(&cluster);
    let (changed, _) =
        before.iter().find(|(_, servers)| servers.iter().any(|s| s == "cs-1")).unwrap();
    cluster.kill("cs-1");
    wait_until_dead(&cluster, "cs-1");
    let path = cluster.mount().join(format!("f{changed}"));
    write_synced(&path, &pattern(FILE_BYTES, 1_000));
    let returned = Returned::start(&cluster, "cs-1");
    wait_until_safe(&cluster);
    let mut after = members(&cluster);
    let mut expected = before.clone();
    // Its new chunk may be anywhere.
    assert_eq!(after.remove(changed).unwrap().len(), 3);
    expected.remove(changed);
    assert_eq!(after, expected, "nothing was made elsewhere");
    let logs: Vec<String> = ["cs-2", "cs-3", "cs-4"]
        .map(|id| std::fs::read_to_string(cluster.dir().join(format!("log/{id}.log"))).unwrap())
        .into_iter()
        .chain([std::fs::read_to_string(cluster.scratch().join("returned.log")).unwrap()])
        .collect();
    let copies = logs.iter().flat_map(|log| log.lines());
    let copies: Vec<&str> =
        copies.filter(|line| line.contains("copied=") && !line.contains("copied=0")).collect();
    assert!(copies.len() <= 2, "{copies:#?}");
    write_synced(&path, &pattern(FILE_BYTES, *changed));
    check_files(&cluster);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    drop(returned);
}

/// As a master that is to have fewer copies, which makes one too many of each chunk. (A server that comes back while its place
/// is being filled does that too, with luck.) All servers but one have a copy, and that one is drained to.
#[test]
fn no_chunk_keeps_more_copies_than_are_wished() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 4, ..Options::default() });
    write_files(&cluster);
    wait_until("it serves", || cluster.dfs_json(["status"])["phase"] == "serving");
    cluster.dfs(["decommission", "cs-4"]);
    wait_until_safe(&cluster);
    let pid = cluster.pid("master").unwrap();
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let mut arguments: Vec<String> = command_line
        .split(|byte| *byte == 0)
        .skip(1)
        .map(|it| String::from_utf8_lossy(it).into_owned())
        .collect();
    arguments.pop();
    for (option, value) in [("--replication", "2"), ("--listen", &cluster.master_address())] {
        let at = arguments.iter().position(|argument| argument == option).unwrap();
        value.clone_into(&mut arguments[at + 1]);
    }
    cluster.kill("master");
    let master = Returned(cluster.command(&arguments).stdin(Stdio::null()).spawn().unwrap());
    wait_until("it answers", || cluster.try_dfs(["status"]).status.success());
    wait_until("each has two", || members(&cluster).values().all(|servers| servers.len() == 2));
    wait_until_safe(&cluster);
    check_files(&cluster);
    // The last two have all that is left.
    cluster.dfs(["decommission", "cs-3"]);
    let left = members(&cluster);
    assert!(left.values().all(|servers| servers == &["cs-1", "cs-2"]), "{left:?}");
    check_files(&cluster);
    drop(master);
}

#[test]
fn many_that_are_silent_together_are_waited_for_but_not_with_last_copies() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 6, ..Options::default() });
    write_files(&cluster);
    let before = members(&cluster);
    let had = |lost: &[String; 2], n: &u64| before[n].iter().filter(|s| lost.contains(s)).count();
    // Two that have some chunks both, and some only one of them.
    let ids = (1..=6).map(|n| format!("cs-{n}")).collect::<Vec<_>>();
    let mut pairs = ids
        .iter()
        .enumerate()
        .flat_map(|(at, a)| ids[at + 1..].iter().map(move |b| [a.clone(), b.clone()]));
    let fits = |pair: &[String; 2]| {
        [1, 2].iter().all(|count| before.keys().any(|n| had(pair, n) == *count))
    };
    let lost = pairs.find(fits).unwrap_or_else(|| panic!("{before:?}"));
    let had = |n: &u64| had(&lost, n);
    for id in &lost {
        cluster.kill(id);
    }
    for id in &lost {
        wait_until_dead(&cluster, id);
    }
    let said = format!("2 of 6 servers fell silent together ({}, {})", lost[0], lost[1]);
    wait_until("it is said", || cluster.dfs(["status"]).contains(&said));
    wait_until("no chunk has one copy only", || chunks(&cluster)["endangered"] == 0);
    let meanwhile = members(&cluster);
    for (n, servers) in &meanwhile {
        let copied = servers != &before[n];
        assert_eq!(copied, had(n) == 2, "/f{n} was on {:?}, is on {servers:?}", before[n]);
    }
    // 30 s for this profile.
    wait_until_safe(&cluster);
    check_files(&cluster);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_server_with_a_new_disk_gets_its_copies_again_where_there_is_no_other() {
    need_fuse!();
    let cluster = Cluster::start();
    write_files(&cluster);
    wait_until_safe(&cluster);
    // A clean stop: no replica gives any other reason to change a configuration.
    cluster.down();
    std::fs::rename(cluster.dir().join("data/cs-2"), cluster.scratch().join("lost")).unwrap();
    cluster.up();
    wait_until_safe(&cluster);
    for of in members(&cluster).values() {
        assert_eq!(of, &["cs-1", "cs-2", "cs-3"]);
    }
    cluster.kill("cs-1");
    check_files(&cluster);
}
