//! Case 3.5 again: what `dfs records` lists, whatever happens to the servers.

use super::*;

/// What `dfs records` lists: index, offset and length of each.
fn listed_records(cluster: &Cluster, path: &str) -> Vec<(u64, u64, u64)> {
    let listed = cluster.dfs_json(["records", path]);
    let number = |line: &Value, of: &str| line[of].as_u64().unwrap();
    let lines = listed.as_array().unwrap().iter();
    lines.map(|line| ["index", "offset", "length"].map(|of| number(line, of)).into()).collect()
}

/// Beside case 3.5: which bytes are records, and which padding.
#[test]
fn case_3_5_records_are_listed_once_each_whatever_happens_to_their_servers() {
    need_fuse!();
    let options = Options { chunkservers: 7, restart: "on-failure", ..Options::default() };
    let cluster = start(options);
    let log = log_inode(&cluster);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let append_until_stop = |client: u64| {
        let session = session(&cluster, &format!("client-{client}"));
        let file = open(&session, log, "shared");
        let mut random = Random::new(client, 6);
        let mut appended = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let len = usize::try_from(random.below(2048)).unwrap() + 1;
            let mut record = record(client << 32 | appended.len() as u64, len);
            // The bytes do not tell where they end.
            let nul = usize::try_from(random.below(4)).unwrap() * len / 3;
            record[len - nul..].fill(0);
            appended.push((file.append(&record).unwrap(), record));
            done.fetch_add(1, Ordering::Relaxed);
        }
        file.flush().unwrap();
        appended
    };
    let mut seen = Vec::new();
    let mut appended: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
        let append_until_stop = &append_until_stop;
        let clients: Vec<_> =
            (1..=5).map(|client| scope.spawn(move || append_until_stop(client))).collect();
        let stop = StopAtEnd(&stop);
        let goes_on = || {
            let before = done.load(Ordering::Relaxed);
            wait_until("they append", || before + 50 <= done.load(Ordering::Relaxed));
        };
        for _ in 0..3 {
            goes_on();
            let located = chunks(&cluster, "/log/shared");
            let primary = located.last().unwrap()["primary"].as_str().unwrap().to_owned();
            wait_until("it is up", || cluster.pid(&primary).is_some_and(tests::is_running));
            signal(cluster.pid(&primary).unwrap(), Signal::KILL);
            seen.push(listed_records(&cluster, "/log/shared"));
        }
        goes_on();
        drop(stop);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let bytes = content(&cluster, "/log/shared");
    assert!(0 < check_records(&bytes, &mut appended), "nothing is padded");
    let expected: Vec<(u64, u64, u64)> =
        appended.iter().map(|(at, record)| (at / CHUNK, *at, record.len() as u64)).collect();
    let check = |when: &str| {
        let listed = listed_records(&cluster, "/log/shared");
        let wrong = listed.iter().zip(&expected).find(|(found, record)| found != record);
        assert_eq!(wrong, None, "{when}");
        assert_eq!(listed.len(), expected.len(), "{when}");
    };
    check("as appended");
    // What was listed while others were appending has stayed where it was.
    for seen in seen {
        assert!(50 <= seen.len() && expected.starts_with(&seen), "{} records", seen.len());
    }
    cluster.down();
    cluster.up();
    check("after a restart of all");
    wait_until("it serves", || cluster.dfs_json(["status"])["phase"] == "serving");
    // Those that got the first records, one after the other, until only copies are left.
    let servers = chunks(&cluster, "/log/shared")[0]["servers"].clone();
    for server in servers.as_array().unwrap() {
        cluster.dfs(["decommission", server.as_str().unwrap()]);
    }
    let left = chunks(&cluster, "/log/shared")[0]["servers"].clone();
    let moved = |server: &Value| !left.as_array().unwrap().contains(server);
    assert!(servers.as_array().unwrap().iter().all(moved), "{servers} {left}");
    check("on other servers");
    assert!(content(&cluster, "/log/shared") == bytes, "bytes differ");

    // Nothing is left of what was cut off.
    let whole = cluster.mount().join("log/shared");
    File::options().write(true).open(&whole).unwrap().set_len(0).unwrap();
    assert_eq!(listed_records(&cluster, "/log/shared"), []);
    File::options().append(true).open(&whole).unwrap().write_all(b"anew\0").unwrap();
    assert_eq!(append(&cluster, "/log/shared", b"\0"), 5);
    assert_eq!(listed_records(&cluster, "/log/shared"), [(0, 0, 5), (0, 5, 1)]);
    assert_eq!(
        cluster.dfs(["records", "/log/shared"]),
        "INDEX  OFFSET  LENGTH\n    0       0       5\n    0       5       1\n"
    );
}

/// Beside case 3.5: what has no records is named.
#[test]
fn case_3_5_records_of_what_is_no_record_log_are_refused() {
    need_fuse!();
    let cluster = start(Options::default());
    append(&cluster, "/plain", b"bytes");
    File::create_new(cluster.mount().join("log/empty")).unwrap();
    assert!(refusal(&cluster, &["records", "/plain"], 1).contains("--layout recordlog"));
    assert!(refusal(&cluster, &["records", "/log"], 1).contains("is a directory"));
    assert!(refusal(&cluster, &["records", "/log/none"], 1).contains("/log/none"));
    assert!(refusal(&cluster, &["records"], 2).contains("PATH"));
    assert_eq!(listed_records(&cluster, "/log/empty"), []);
    assert_eq!(cluster.dfs(["records", "/log/empty"]), "");
}
