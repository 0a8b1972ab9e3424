//! Older copies of a chunkserver's data directory, put back: never believed, told, and gone on with as a person says.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Cluster, Options, PATIENCE, run, wait_until};

use crate::{check_bytes, need_fuse, pattern, write_synced};

/// So long a server that is started again is not given up.
const PATIENT: &[&str] = &["--dead-after", "6s", "--rebuild-delay", "3s"];
const LEN: usize = 1 << 20;
/// What is written again and again, in place.
const PIECE: usize = 100_000;

fn four() -> Cluster {
    Cluster::start_with(Options { chunkservers: 4, timing: PATIENT, ..Options::default() })
}

/// A chunkserver started by hand, in its directory under `dfs up` and at its old address.
struct ByHand {
    child: Child,
    log: PathBuf,
}

impl ByHand {
    fn start(cluster: &Cluster, id: &str, more: &[&str]) -> Self {
        let log = cluster.scratch().join(format!("{id}.by-hand.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let address = cluster.chunkserver_address(id);
        let arguments = ["chunkserver", "--capacity", "20GiB", "--id", id, "--listen", &address];
        let mut command = cluster.command(arguments.iter().chain(more));
        command.arg("--data").arg(data_of(cluster, id));
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // Gone already only if the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn data_of(cluster: &Cluster, id: &str) -> PathBuf {
    cluster.dir().join("data").join(id)
}

#[track_caller]
fn copy(from: &Path, to: &Path) {
    let copied = run(Command::new("cp").arg("-a").arg(from).arg(to), PATIENCE);
    assert!(copied.status.success(), "{copied:?}");
}

/// What is at `data` goes to `aside`, and a copy of `from` takes its place.
#[track_caller]
fn put_back(from: &Path, data: &Path, aside: &Path) {
    std::fs::rename(data, aside).unwrap();
    copy(from, data);
}

/// Version, primary and members of a file's first chunk.
fn chunk_of(cluster: &Cluster, path: &str) -> (u64, String, Vec<String>) {
    let chunk = cluster.dfs_json(["locate", path])["chunks"][0].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let servers = chunk["servers"].as_array().unwrap().iter().map(text).collect();
    (chunk["version"].as_u64().unwrap(), text(&chunk["primary"]), servers)
}

/// A member of the chunk that others can do without: it does not lead it.
fn follower(cluster: &Cluster, path: &str) -> String {
    let (_, primary, servers) = chunk_of(cluster, path);
    servers.into_iter().find(|server| *server != primary).unwrap()
}

fn server(cluster: &Cluster, id: &str) -> Value {
    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    servers.iter().find(|server| server["id"] == id).unwrap().clone()
}

fn wait_until_alive(cluster: &Cluster, id: &str) {
    wait_until("it is alive", || cluster.server_state(id).as_deref() == Some("alive"));
}

fn wait_until_refused(cluster: &Cluster, id: &str) {
    wait_until("it is refused as an older copy", || {
        server(cluster, id)["refused"].as_str().is_some_and(|why| why.contains("older copy"))
    });
}

fn wait_until_safe(cluster: &Cluster) {
    wait_until("all chunks are safe", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"] && chunks["total"] != 0
    });
}

/// By clients of their own, which ask one member or another.
#[track_caller]
fn check_read_often(cluster: &Cluster, path: &str, expected: &[u8]) {
    for _ in 0..12 {
        let read = cluster.try_dfs(["cat", path]);
        check_bytes("cat", &read.stdout, expected);
    }
}

fn write_at(path: &Path, bytes: &[u8], at: usize, content: &mut [u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
    file.sync_all().unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes to `/f` until all of `ids` got new marks because of it: the second one confirms the first.
#[track_caller]
fn write_until_remarked(cluster: &Cluster, ids: &[&str], content: &mut [u8]) {
    let mark = |id: &&str| {
        let text = std::fs::read_to_string(data_of(cluster, id).join("server_state")).unwrap();
        text.split(' ').nth(7).unwrap().parse::<u64>().unwrap()
    };
    let marks = || ids.iter().map(mark).collect::<Vec<u64>>();
    let (version, first) = (chunk_of(cluster, "/f").0, marks());
    let deadline = Instant::now() + PATIENCE;
    let mut round = 2;
    while marks().iter().zip(&first).any(|(now, first)| *now < first + 2) {
        assert!(Instant::now() < deadline, "no new marks: {first:?}, {:?}", marks());
        write_at(&cluster.mount().join("f"), &pattern(PIECE, round), 5_000, content);
        round += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(chunk_of(cluster, "/f").0, version, "what was copied is of this version");
}

#[test]
fn a_copy_made_while_a_server_was_stopped_is_never_read_and_its_chunks_get_safe_without_it() {
    need_fuse!();
    let cluster = four();
    let path = cluster.mount().join("f");
    let mut content = pattern(LEN, 1);
    write_synced(&path, &content);
    let id = follower(&cluster, "/f");
    let (data, older) = (data_of(&cluster, &id), cluster.scratch().join("older"));
    cluster.kill(&id);
    // Else it would count as alive until then, and a write would go on without it.
    wait_until("its end is seen", || cluster.server_state(&id).as_deref() != Some("alive"));
    copy(&data, &older);
    let runs = ByHand::start(&cluster, &id, &[]);
    wait_until_alive(&cluster, &id);
    write_at(&path, &pattern(PIECE, 2), 5_000, &mut content);
    let before = chunk_of(&cluster, "/f");
    assert!(before.2.contains(&id), "it is a member: {before:?}");
    drop(runs);
    put_back(&older, &data, &cluster.scratch().join("newest"));
    let runs = ByHand::start(&cluster, &id, &[]);
    wait_until_refused(&cluster, &id);
    check_read_often(&cluster, "/f", &content);
    wait_until_safe(&cluster);
    check_read_often(&cluster, "/f", &content);
    assert!(!chunk_of(&cluster, "/f").2.contains(&id), "{:?}", chunk_of(&cluster, "/f"));
    // Everybody is told, with the directory and the page.
    let said = runs.said();
    for word in ["older copy", data.to_str().unwrap(), "#a-directory-is-refused"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    let events = cluster.dfs(["events", "-n", "0"]);
    let event = events.lines().find(|line| line.contains("older copy")).unwrap_or_default();
    assert!(event.contains(&id) && event.contains("#a-directory-is-refused"), "{events}");
    assert!(cluster.dfs(["status"]).contains("(refused)"));
    // The newest one is let in again, and what it holds that nobody needs any more goes.
    drop(runs);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(cluster.scratch().join("newest"), &data).unwrap();
    let _runs = ByHand::start(&cluster, &id, &[]);
    wait_until_alive(&cluster, &id);
    assert_eq!(server(&cluster, &id)["refused"], Value::Null);
    check_read_often(&cluster, "/f", &content);
    cluster.until_clean();
}

#[test]
fn a_copy_made_of_a_running_server_is_refused_after_a_while_and_goes_on_with_its_loss_accepted() {
    need_fuse!();
    let cluster = four();
    let path = cluster.mount().join("f");
    let mut content = pattern(LEN, 1);
    write_synced(&path, &content);
    let id = follower(&cluster, "/f");
    let (data, older) = (data_of(&cluster, &id), cluster.scratch().join("older"));
    copy(&data, &older);
    write_until_remarked(&cluster, &[&id], &mut content);
    cluster.kill(&id);
    put_back(&older, &data, &cluster.scratch().join("newest"));
    let runs = ByHand::start(&cluster, &id, &[]);
    wait_until_refused(&cluster, &id);
    check_read_often(&cluster, "/f", &content);
    drop(runs);
    // Nothing in it counts as current then, until it was copied from the others.
    let runs = ByHand::start(&cluster, &id, &["--accept-loss"]);
    wait_until_alive(&cluster, &id);
    check_read_often(&cluster, "/f", &content);
    wait_until_safe(&cluster);
    check_read_often(&cluster, "/f", &content);
    let events = cluster.dfs(["events", "-n", "0"]);
    assert!(events.contains("goes on with its loss accepted"), "{events}");
    cluster.until_clean();
    // Now the other one is an older state than what this disk went on to be.
    drop(runs);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(cluster.scratch().join("newest"), &data).unwrap();
    let _runs = ByHand::start(&cluster, &id, &[]);
    wait_until_refused(&cluster, &id);
    check_read_often(&cluster, "/f", &content);
}

#[test]
fn accept_loss_goes_on_with_an_older_copy_that_was_not_refused_before_in_one_start() {
    need_fuse!();
    let cluster = Cluster::start();
    let path = cluster.mount().join("f");
    let mut content = pattern(LEN, 1);
    write_synced(&path, &content);
    cluster.down();
    let older = cluster.scratch().join("older");
    copy(&data_of(&cluster, "cs-2"), &older);
    // Each start takes a mark: the copy's numbers are far behind those of the log.
    for round in 2..6 {
        cluster.up();
        write_at(&path, &pattern(PIECE, round), 5_000, &mut content);
        cluster.down();
    }
    put_back(&older, &data_of(&cluster, "cs-2"), &cluster.scratch().join("newest"));
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{up:?}");
    wait_until_alive(&cluster, "cs-2");
    check_read_often(&cluster, "/f", &content);
    wait_until_safe(&cluster);
    check_read_often(&cluster, "/f", &content);
    cluster.until_clean();
}

#[test]
fn where_all_copies_are_older_ones_they_are_read_only_when_a_person_accepts_the_loss() {
    need_fuse!();
    let cluster = Cluster::start();
    let mut content = pattern(LEN, 1);
    write_synced(&cluster.mount().join("f"), &content);
    let at_copy = content.clone();
    let ids = ["cs-1", "cs-2", "cs-3"];
    let backup = cluster.scratch().join("backup");
    std::fs::create_dir(&backup).unwrap();
    for id in ids {
        copy(&data_of(&cluster, id), &backup.join(id));
    }
    write_until_remarked(&cluster, &ids, &mut content);
    cluster.down();
    for id in ids {
        std::fs::remove_dir_all(data_of(&cluster, id)).unwrap();
        copy(&backup.join(id), &data_of(&cluster, id));
    }
    // Nobody joins: what it says then is not of interest here.
    let _not_up = cluster.try_dfs(["up", "--detach"]);
    for id in ids {
        wait_until_refused(&cluster, id);
    }
    let refused = cluster.try_dfs(["cat", "/f", "--server-wait", "2s"]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    cluster.down();
    let up = cluster.try_dfs(["up", "--detach", "--accept-loss"]);
    assert!(up.status.success(), "{up:?}");
    wait_until_safe(&cluster);
    check_read_often(&cluster, "/f", &at_copy);
    let events = cluster.dfs(["events", "-n", "0"]);
    let accepted = events.lines().filter(|line| line.contains("goes on with its loss accepted"));
    assert_eq!(accepted.count(), ids.len(), "{events}");
    cluster.until_clean();
}
