//! Mounts that outlive their clients: programs use one while the process that serves it is killed, again and again.
//!
//! `DFS_MOUNT_KILLS` and `DFS_MOUNT_SEED` choose how often and when.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod holders;
mod interrupts;
mod matrix;
mod once;
mod programs;

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Cluster, Options, Random, is_running, no_fuse, setting, signal, skipped, wait_until};

use programs::{Outcome, Programs};

/// A held mount of a cluster.
struct Held {
    cluster: Cluster,
    at: PathBuf,
}

impl Held {
    fn start() -> Self {
        Self::start_on(Cluster::start())
    }

    fn start_on(cluster: Cluster) -> Self {
        Self::start_with(cluster, &[])
    }

    fn start_with(mut cluster: Cluster, more: &[&str]) -> Self {
        let pids = cluster.scratch().join("pids");
        std::fs::create_dir(&pids).unwrap();
        let (pids, exercise) = (pids.to_str().unwrap(), cluster.scratch().join("exercise"));
        let mut arguments =
            vec!["--hold", "--pid-dir", pids, "--exercise", exercise.to_str().unwrap()];
        arguments.extend(more);
        let at = cluster.mount_with("held", &arguments);
        Self { cluster, at }
    }

    fn pid(&self, name: &str) -> u32 {
        let path = self.cluster.scratch().join("pids").join(name);
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    fn client(&self) -> u32 {
        self.pid("mount.pid")
    }

    /// Kills the client: how long the next call of a program takes.
    fn stall(&self) -> Duration {
        let began = Instant::now();
        self.kill_client();
        // Not in any cache, and not there.
        assert!(std::fs::metadata(self.at.join(format!("stall-{began:?}"))).is_err());
        began.elapsed()
    }

    fn kill_client(&self) {
        signal(self.client(), Signal::KILL);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.scratch().join("held.log")).unwrap()
    }

    /// Clients so far.
    fn generations(&self) -> usize {
        self.log().matches("a client serves").count()
    }
}

/// Runs the programs and `disturb` beside them, and checks what they left.
fn run_beside(at: &Path, other: Option<&Path>, disturb: impl FnOnce()) -> Vec<Outcome> {
    let programs = Programs::prepare(at, other);
    let outcomes = std::thread::scope(|scope| {
        let running = programs.start(scope);
        disturb();
        programs.stop();
        running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let left = programs.check(&outcomes);
    outcomes.into_iter().chain(left).collect()
}

/// Whether this process runs only the test `name`. If not, it is run so, and must pass.
fn is_alone(name: &str) -> bool {
    const ALONE: &str = "DFS_TESTS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let run = Command::new(own).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn errors(outcomes: &[Outcome]) -> Vec<&String> {
    outcomes.iter().flat_map(|outcome| &outcome.errors).collect()
}

fn say(outcomes: &[Outcome], kills: u64) {
    let calls: u64 = outcomes.iter().map(|outcome| outcome.calls).sum();
    let longest = outcomes.iter().map(|outcome| outcome.longest).max().unwrap_or_default();
    println!(
        "{kills} kills, {calls} calls, {} errors, longest {longest:?}",
        errors(outcomes).len()
    );
}

#[test]
fn programs_see_nothing_of_clients_that_are_killed() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let kills = setting("DFS_MOUNT_KILLS", 60);
    let mut random = Random::new(setting("DFS_MOUNT_SEED", 1), 1);
    let before = held.generations();
    let other = held.cluster.mount();
    held.cluster.dfs(["mkdir", "/append", "--chunk-size", "64KiB"]);
    let mut stalls = Vec::new();
    let outcomes = run_beside(&held.at, Some(&other), || {
        for kill in 0..kills {
            // Some are killed while they take over.
            if kill % 4 == 3 {
                std::thread::sleep(Duration::from_millis(5 + random.below(36)));
                held.kill_client();
            } else {
                std::thread::sleep(Duration::from_millis(80 + random.below(400)));
                stalls.push(held.stall());
            }
        }
        wait_until("the last client serves", || {
            is_running(held.client()) && std::fs::metadata(&held.at).is_ok()
        });
    });
    say(&outcomes, kills);
    stalls.sort();
    let at = |part: usize| stalls.get(stalls.len() * part / 10).or(stalls.last());
    println!("stalls: median {:?}, p90 {:?}, longest {:?}", at(5), at(9), stalls.last());
    assert_eq!(errors(&outcomes), Vec::<&String>::new(), "{}", held.log());
    assert!(before + 10 < held.generations(), "clients took over: {}", held.log());
}

#[test]
fn servers_may_be_killed_with_the_client() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let options = Options { restart: "on-failure", ..Options::default() };
    let held = Held::start_on(Cluster::start_with(options));
    let mut random = Random::new(setting("DFS_MOUNT_SEED", 1), 2);
    let outcomes = run_beside(&held.at, None, || {
        for role in ["cs-1", "master", "cs-2", "master", "cs-3", "master"] {
            std::thread::sleep(Duration::from_millis(500 + random.below(1000)));
            let (server, client) = (held.cluster.pid(role).unwrap(), held.client());
            signal(server, Signal::KILL);
            std::thread::sleep(Duration::from_millis(random.below(30)));
            signal(client, Signal::KILL);
            wait_until("both are there again", || {
                let now = held.cluster.pid(role);
                now.is_some_and(|now| now != server && is_running(now)) && held.client() != client
            });
        }
    });
    say(&outcomes, 6);
    assert_eq!(errors(&outcomes), Vec::<&String>::new(), "{}", held.log());
}

#[test]
fn programs_go_on_after_a_time_without_servers() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    // A child that another test starts closes what it inherited, and would wait for this mount before it begins.
    if !is_alone("programs_go_on_after_a_time_without_servers") {
        return;
    }
    let held = Held::start();
    let away = Duration::from_secs(setting("DFS_MOUNT_AWAY_S", 60));
    // As would this one later.
    let mut waits = Command::new("sh")
        .args(["-c", "read -r go && exec ls \"$0\""])
        .arg(held.at.join("no"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let outcomes = run_beside(&held.at, None, || {
        std::thread::sleep(Duration::from_millis(500));
        let servers =
            ["master", "cs-1", "cs-2", "cs-3"].map(|role| held.cluster.pid(role).unwrap());
        for server in servers {
            signal(server, Signal::STOP);
        }
        waits.stdin.take().unwrap().write_all(b"go\n").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        held.kill_client();
        std::thread::sleep(away);
        assert!(waits.try_wait().unwrap().is_none(), "it has an answer without servers");
        waits.kill().unwrap();
        wait_until("the killed program ends", || waits.try_wait().unwrap().is_some());
        for server in servers {
            signal(server, Signal::CONT);
        }
        std::thread::sleep(Duration::from_secs(2));
    });
    say(&outcomes, 1);
    assert_eq!(errors(&outcomes), Vec::<&String>::new(), "{}", held.log());
}

#[test]
fn a_lock_wait_and_an_unlinked_file_outlive_the_client() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let path = held.at.join("locked");
    let holder = std::fs::File::create(&path).unwrap();
    holder.lock().unwrap();
    let nameless = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(held.at.join("gone"))
        .unwrap();
    nameless.write_all_at(b"still here", 0).unwrap();
    std::fs::remove_file(held.at.join("gone")).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let file = std::fs::File::open(&path).unwrap();
            file.lock().unwrap();
        });
        std::thread::sleep(Duration::from_millis(300));
        held.kill_client();
        std::thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished(), "the lock was granted twice");
        let mut bytes = [0; 10];
        nameless.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"still here");
        holder.unlock().unwrap();
        waiting.join().unwrap();
    });
}

#[test]
fn an_unmount_ends_holder_and_client_and_a_stop_of_the_holder_unmounts() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut held = Held::start();
    let (holder, client) = (held.pid("mount-holder.pid"), held.client());
    std::fs::write(held.at.join("a"), "1").unwrap();
    signal(holder, Signal::TERM);
    held.cluster.wait_for_mounts_to_end();
    wait_until("the client ends", || !is_running(client));
    assert!(!tests::is_mounted(&held.at));
    assert_eq!(std::fs::read(held.cluster.mount().join("a")).unwrap(), b"1");
}

#[test]
fn up_holds_its_mount_and_down_ends_all_of_it() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let cluster = Cluster::start();
    cluster.down();
    cluster.dfs(["up", "--detach", "--hold"]);
    let (client, holder) = (cluster.pid("mount").unwrap(), cluster.pid("mount-holder").unwrap());
    assert_ne!(client, holder);
    std::fs::write(cluster.mount().join("a"), "1").unwrap();
    cluster.kill("mount");
    assert_eq!(std::fs::read(cluster.mount().join("a")).unwrap(), b"1");
    std::fs::write(cluster.mount().join("b"), "2").unwrap();
    let next = cluster.pid("mount").unwrap();
    assert!(next != client && is_running(next) && is_running(holder));
    cluster.down();
    assert!(!is_running(next) && !is_running(holder) && !tests::is_mounted(&cluster.mount()));
}

/// The tests above would pass if kills did nothing: without a holder they do.
#[test]
fn without_a_holder_programs_see_the_kill() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let cluster = Cluster::start();
    let outcomes = run_beside(&cluster.mount(), None, || {
        std::thread::sleep(Duration::from_millis(500));
        cluster.kill("mount");
    });
    assert!(!errors(&outcomes).is_empty(), "{outcomes:?}");
}

/// Nor would they tell whether what is kept counts: without it a request that is sent again is a new one.
#[test]
fn without_what_is_kept_effects_happen_twice() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let holder = held.pid("mount-holder.pid");
    let memory = kept_memory(holder);
    let began = Instant::now();
    let outcomes = run_beside(&held.at, None, || {
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(150));
            signal(holder, Signal::STOP);
            let client = held.client();
            signal(client, Signal::KILL);
            // A zombie has nothing open: the holder would wait for it.
            std::thread::sleep(Duration::from_millis(30));
            forget_requests(&memory);
            signal(holder, Signal::CONT);
        }
    });
    let found = errors(&outcomes);
    println!("{} errors in {:?}", found.len(), began.elapsed());
    assert!(!found.is_empty(), "nothing happened twice");
}

fn kept_memory(holder: u32) -> PathBuf {
    let descriptors = std::fs::read_dir(format!("/proc/{holder}/fd")).unwrap();
    descriptors
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_link(path).unwrap().to_string_lossy().contains("dfs-kept"))
        .expect("the holder's memory")
}

/// Takes out all that is kept of requests under way (`dfs_client::kept`).
fn forget_requests(memory: &Path) {
    let memory = std::fs::File::options().write(true).open(memory).unwrap();
    memory.write_all_at(&vec![0; 1024 * 32 * 8], 64 * 8).unwrap();
}
