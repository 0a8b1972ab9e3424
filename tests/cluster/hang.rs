//! Chunkservers that hang: stopped, with their connections open.

use std::fs::File;
use std::io::Write as _;
use std::time::Instant;

use rustix::process::Signal;
use tests::{Cluster, Options, wait_until};

use crate::{check_content, need_fuse, pattern};

fn primary_of(cluster: &Cluster, path: &str) -> String {
    let located = cluster.dfs_json(["locate", path]);
    let chunk = &located["chunks"][0];
    chunk["primary"].as_str().unwrap_or_else(|| panic!("primary in {located}")).to_owned()
}

fn check_goes_on(profile: &'static str) {
    let cluster = Cluster::start_with(Options { profile, ..Options::default() });
    let path = cluster.mount().join("f");
    let mut expected = pattern(2 << 20, 1);
    let mut file = File::create(&path).unwrap();
    file.write_all(&expected).unwrap();
    file.sync_all().unwrap();
    let primary = primary_of(&cluster, "/f");
    let pid = cluster.pid(&primary).unwrap();
    tests::signal(pid, Signal::STOP);
    // More than fits on the way: the writer itself is stuck in a send.
    let more = pattern(24 << 20, 2);
    let began = Instant::now();
    file.write_all(&more).unwrap();
    file.sync_all().unwrap();
    let took = began.elapsed();
    tests::signal(pid, Signal::CONT);
    // For people: docs/semantics.md has the figures.
    eprintln!("write and fsync with {primary} stopped, {profile}: {took:?}");
    expected.extend(more);
    file.write_all(b"end").unwrap();
    file.sync_all().unwrap();
    expected.extend(b"end");
    wait_until("all chunks are safe again", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"] && chunks["total"] != 0
    });
    check_content(&path, &expected);
    let second = cluster.scratch().join("second");
    cluster.dfs(["get", "/f", second.to_str().unwrap()]);
    check_content(&second, &expected);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn writes_go_on_without_a_primary_that_hangs() {
    need_fuse!();
    check_goes_on("drill");
}

#[test]
fn writes_go_on_before_heartbeats_are_missed() {
    need_fuse!();
    check_goes_on("standard");
}
