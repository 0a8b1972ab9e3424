//! `/metrics`, `/healthz` and `/readyz` of real processes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tests::{Cluster, Options, PATIENCE, run_with_input, signal, skipped, wait_until};

use crate::{need_fuse, pattern, write_synced};

const ROLES: [&str; 5] = ["master", "cs-1", "cs-2", "cs-3", "mount"];

/// Where `role` serves its pages, as `cluster.json` says.
pub(crate) fn address(cluster: &Cluster, role: &str) -> String {
    let text = std::fs::read_to_string(cluster.dir().join("cluster.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["metrics"][role].as_str().unwrap_or_else(|| panic!("{role} in {json}")).to_owned()
}

fn try_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: dfs\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no head"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

#[track_caller]
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).unwrap_or_else(|error| panic!("{address}{path}: {error}"))
}

/// One value of a metrics page; `series` with its labels, as it stands there.
#[track_caller]
pub(crate) fn value(page: &str, series: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series} in {page}"))
}

#[test]
fn every_process_says_what_it_does_and_whether_it_can() {
    need_fuse!();
    let cluster = Cluster::start();
    let at: BTreeMap<&str, String> =
        ROLES.iter().map(|role| (*role, address(&cluster, role))).collect();
    for role in ROLES {
        assert_eq!(get(&at[role], "/healthz"), (200, "ok\n".to_owned()), "{role}");
        wait_until(role, || get(&at[role], "/readyz") == (200, "ready\n".to_owned()));
    }
    let size = 3 << 20;
    write_synced(&cluster.mount().join("three"), &pattern(size, 1));
    assert_eq!(std::fs::read(cluster.mount().join("three")).unwrap().len(), size);

    let mount = get(&at["mount"], "/metrics").1;
    let written = value(&mount, "dfs_mount_written_bytes_total");
    assert!(size as f64 <= written, "{written}");
    assert!(1.0 <= value(&mount, r#"dfs_mount_operation_seconds_count{operation="fsync"}"#));
    assert!(1.0 <= value(&mount, "process_open_fds"));
    assert_eq!(value(&mount, "dfs_mount_master_reachable_info"), 1.0);

    let master = get(&at["master"], "/metrics").1;
    assert!(1.0 <= value(&master, r#"dfs_master_request_seconds_count{call="layout"}"#));
    assert!(1.0 <= value(&master, "dfs_master_log_sync_seconds_count"));
    assert_eq!(value(&master, r#"dfs_master_servers{state="alive"}"#), 3.0);
    for server in ["cs-1", "cs-2", "cs-3"] {
        let age =
            value(&master, &format!(r#"dfs_master_heartbeat_age_seconds{{server="{server}"}}"#));
        assert!((0.0..60.0).contains(&age), "{age}");
        let page = get(&at[server], "/metrics").1;
        assert_eq!(value(&page, "dfs_chunkserver_written_bytes_total"), size as f64);
        assert_eq!(value(&page, "dfs_chunkserver_chunks"), 1.0);
        assert!(1.0 <= value(&page, "dfs_chunkserver_fsync_seconds_count"));
        assert!(1.0 <= value(&page, "dfs_chunkserver_heartbeats_total"));
        assert!(0.0 < value(&page, "dfs_chunkserver_lease_seconds"));
    }
    wait_until("the survey sees the chunk", || {
        let page = get(&at["master"], "/metrics").1;
        value(&page, r#"dfs_master_chunks{state="safe"}"#) == 1.0
    });
}

#[test]
fn what_cannot_work_is_not_ready_and_says_why() {
    need_fuse!();
    let cluster = Cluster::start();
    write_synced(&cluster.mount().join("file"), &pattern(100_000, 1));
    let at = |role: &str| address(&cluster, role);
    let (master, server, mount) = (at("master"), at("cs-1"), at("mount"));
    signal(cluster.pid("cs-2").unwrap(), Signal::KILL);
    wait_until("the exposure is told", || {
        let page = get(&master, "/metrics").1;
        value(&page, r#"dfs_master_chunks{state="degraded"}"#) == 1.0
            && 0.0 < value(&page, "dfs_master_oldest_exposure_seconds")
            && 100_000.0 <= value(&page, "dfs_master_copy_backlog_bytes")
            && value(&page, "dfs_master_copy_eta_seconds").is_infinite()
    });
    let status = cluster.dfs_json(["status"]);
    assert!(0 < status["oldestExposureMs"].as_u64().unwrap(), "{status}");
    assert!(100_000 <= status["bytesToCopy"].as_u64().unwrap(), "{status}");
    assert!(status["copyBytesPerSecond"].is_u64() && status["etaMs"].is_null(), "{status}");

    signal(cluster.pid("master").unwrap(), Signal::KILL);
    let says = |at: &str, word: &str| {
        let (status, body) = get(at, "/readyz");
        status == 503 && body.contains(word)
    };
    wait_until("a server without a master is fenced", || says(&server, "fenced"));
    wait_until("a mount without a master is not ready", || says(&mount, "cannot be reached"));
    assert_eq!(get(&server, "/healthz").0, 200);
}

#[test]
fn a_restarted_process_keeps_its_pages_and_a_new_master_is_not_ready_while_it_warms() {
    need_fuse!();
    // Warming lasts as long as a server may be silent.
    let options = Options { profile: "standard", restart: "on-failure", ..Options::default() };
    let cluster = Cluster::start_with(options);
    let before = address(&cluster, "master");
    let pid = cluster.pid("master").unwrap();
    signal(pid, Signal::KILL);
    wait_until("the new master is asked", || {
        cluster.pid("master").is_some_and(|now| now != pid)
            && try_get(&address(&cluster, "master"), "/readyz")
                .is_ok_and(|(status, body)| status == 503 && body.contains("warming"))
    });
    wait_until("it is ready", || get(&address(&cluster, "master"), "/readyz").0 == 200);
    assert_eq!(address(&cluster, "master"), before, "the port was free and should be kept");
}

#[test]
fn who_connects_and_says_nothing_holds_nobody_up() {
    need_fuse!();
    let cluster = Cluster::start();
    let master = address(&cluster, "master");
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(&master).unwrap()).collect();
    let mut garbage = TcpStream::connect(&master).unwrap();
    let _refused = garbage.write_all(&[0xff; 1000]);
    write_synced(&cluster.mount().join("meanwhile"), &pattern(1000, 1));
    wait_until("the page is served again", || {
        try_get(&master, "/healthz").is_ok_and(|(status, _)| status == 200)
    });
    drop(silent);
}

#[test]
fn promtool_takes_every_page() {
    need_fuse!();
    if Command::new("promtool").arg("--version").output().is_err() {
        return skipped("promtool is not installed (apt-get install prometheus)");
    }
    let cluster = Cluster::start();
    write_synced(&cluster.mount().join("file"), &pattern(100_000, 1));
    for role in ROLES {
        let page = get(&address(&cluster, role), "/metrics").1;
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]);
        let checked = run_with_input(&mut promtool, page.as_bytes(), Duration::from_secs(60));
        let said = [checked.stdout, checked.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(checked.status.success() && said.is_empty(), "{role}: {said}");
    }
}

/// Found by a review: after the cut of another mount each append began at the logged size again and asked every full
/// chunk, so that thousands of them took minutes.
#[test]
fn appends_after_the_cut_of_another_mount_do_not_ask_every_full_chunk_again() {
    need_fuse!();
    let mut cluster = Cluster::start();
    cluster.dfs(["mkdir", "--chunk-size", "4KiB", "/d"]);
    let other = cluster.mount_again("other");
    let servers: Vec<String> = (1..=3).map(|n| address(&cluster, &format!("cs-{n}"))).collect();
    let full = || {
        let pages = servers.iter().map(|server| get(server, "/metrics").1);
        let series = "dfs_chunkserver_refusals_total{reason=\"chunk_full\"} ";
        let found = pages.map(|page| {
            let value = page.lines().find_map(|line| line.strip_prefix(series).map(str::to_owned));
            value.map_or(0, |value| value.parse::<u64>().unwrap())
        });
        found.sum::<u64>()
    };
    let path = cluster.mount().join("d/log");
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let record = [b'r'; 1000];
    for _ in 0..50 {
        log.write_all(&record).unwrap();
    }
    log.sync_all().unwrap();
    for _ in 0..20 {
        log.write_all(&record).unwrap();
    }
    std::fs::OpenOptions::new()
        .write(true)
        .open(other.join("d/log"))
        .unwrap()
        .set_len(1000)
        .unwrap();
    let before = full();
    for _ in 0..400 {
        log.write_all(&record).unwrap();
    }
    log.sync_all().unwrap();
    let asked = full() - before;
    // Four records fill a chunk; every one of them asking is seen often enough.
    assert!(asked <= 800, "{asked} times for 400 records");
    assert!(400_000 <= std::fs::metadata(&path).unwrap().len());
}

/// Whatever the chart's rules and dashboards ask for is there once it happened: bytes, a name that does not exist, and a
/// server that fell silent. The operator's are looked at where it runs, in tests/k8s.
#[test]
fn rules_and_dashboards_ask_for_what_running_processes_export() {
    need_fuse!();
    let cluster = Cluster::start();
    let wanted: Vec<String> = tests::monitoring::used()
        .into_iter()
        .filter(|name| !name.starts_with("dfs_operator_"))
        .collect();
    assert!(30 <= wanted.len(), "{wanted:?}");
    let missing = || -> Vec<&String> {
        let pages = ROLES.map(|role| get(&address(&cluster, role), "/metrics").1);
        let there = tests::monitoring::exported(&pages.concat());
        wanted.iter().filter(|name| !there.contains(name.as_str())).collect()
    };
    let path = cluster.mount().join("file");
    write_synced(&path, &pattern(3 << 20, 1));
    assert_eq!(std::fs::read(&path).unwrap().len(), 3 << 20);
    assert!(std::fs::metadata(cluster.mount().join("nothing")).is_err());
    cluster.dfs(["failover", "cs-1", "--no-wait"]);
    // Its chunk goes on with the two that are left.
    write_synced(&path, &pattern(1 << 20, 2));
    assert_eq!(missing(), [""; 0], "named in charts/distributedfs and exported by nobody");
}
