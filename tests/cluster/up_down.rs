//! `dfs up` and `dfs down`: what they leave on disk, what they start again, what they refuse.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use tests::{Cluster, Options, PATIENCE, is_mounted, is_running, run, stdout_of, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

const ROLES: [&str; 5] = ["master", "cs-1", "cs-2", "cs-3", "mount"];

#[test]
fn a_cluster_comes_up_as_named_and_serves_the_same_data_after_down_and_up() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(10 << 20, 1);
    write_synced(&cluster.mount().join("ten"), &content);

    let pids =
        ROLES.map(|role| cluster.pid(role).unwrap_or_else(|| panic!("no pid file of {role}")));
    for (role, pid) in ROLES.iter().zip(pids) {
        assert!(is_running(pid), "{role} runs");
        assert!(cluster.dir().join(format!("log/{role}.log")).is_file(), "log of {role}");
    }
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(cluster.dir().join("cluster.key").metadata().unwrap().mode() & 0o777, 0o600);

    // The 10 MiB are on three servers.
    let located = cluster.dfs_json(["locate", "/ten"]);
    let chunks = located["chunks"].as_array().unwrap();
    assert_eq!(chunks.len(), 1, "{located}");
    for key in ["index", "id", "version", "servers"] {
        assert!(chunks[0].get(key).is_some(), "{key} in {located}");
    }
    let mut servers: Vec<_> =
        chunks[0]["servers"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    servers.sort_unstable();
    assert_eq!(servers, ["cs-1", "cs-2", "cs-3"]);

    let address = cluster.master_address();
    cluster.down();
    assert!(!is_mounted(&cluster.mount()));
    for (role, pid) in ROLES.iter().zip(pids) {
        assert!(!is_running(pid), "{role} runs after down");
        assert_eq!(cluster.pid(role), None, "pid file of {role} after down");
    }
    cluster.up();
    assert_eq!(cluster.master_address(), address, "the port was free and should be kept");
    check_content(&cluster.mount().join("ten"), &content);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    // An error deserves a person: there is none in a start that went well.
    let log = std::fs::read_to_string(cluster.dir().join("log/master.log")).unwrap();
    let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn a_running_directory_is_not_started_again() {
    need_fuse!();
    let cluster = Cluster::start();
    let second = cluster.try_dfs(["up", "--detach"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("running already") && said.contains("dfs down"), "{said}");
    assert!(is_mounted(&cluster.mount()), "the first one goes on");
    cluster.dfs([std::ffi::OsStr::new("umount"), cluster.mount().as_os_str()]);
    wait_until("it is unmounted", || !is_mounted(&cluster.mount()));
    let third = cluster.try_dfs(["up", "--detach"]);
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(!third.status.success() && said.contains("nothing is mounted at"), "{said}");
}

/// Runs commands at the same time, the later ones `apart` behind each other.
fn at_once(commands: Vec<Command>, apart: Duration) -> Vec<Output> {
    let running: Vec<_> = commands
        .into_iter()
        .enumerate()
        .map(|(nth, mut command)| {
            let delay = apart * u32::try_from(nth).unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                run(&mut command, PATIENCE * 2)
            })
        })
        .collect();
    running.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[track_caller]
fn check_all_run(cluster: &Cluster) {
    for role in ROLES {
        assert!(cluster.pid(role).is_some_and(is_running), "{role} runs\n{}", cluster.logs());
    }
    assert!(is_mounted(&cluster.mount()));
}

#[test]
fn of_starts_at_the_same_time_one_starts_and_the_others_say_so() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.down();
    for fresh in [true, false] {
        if fresh {
            std::fs::remove_dir_all(cluster.dir()).unwrap();
        }
        let starts = (0..4).map(|_| cluster.command(["up", "--detach"])).collect();
        let ended = at_once(starts, Duration::ZERO);
        let (started, refused): (Vec<_>, Vec<_>) =
            ended.iter().partition(|output| output.status.success());
        assert_eq!(started.len(), 1, "{ended:?}");
        for output in refused {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("running already"), "{said}");
        }
        check_all_run(&cluster);
        cluster.down();
    }
}

#[test]
fn a_start_during_a_stop_starts_all_or_is_refused() {
    need_fuse!();
    let cluster = Cluster::start();
    for apart in [0, 150, 600, 1500].map(Duration::from_millis) {
        let commands = vec![cluster.command(["down"]), cluster.command(["up", "--detach"])];
        let ended = at_once(commands, apart);
        let (down, up) = (&ended[0], &ended[1]);
        stdout_of(down);
        if up.status.success() {
            check_all_run(&cluster);
        } else {
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            assert_eq!(up.status.code(), Some(1), "{said}{down:?}");
            assert!(said.contains("running already") || said.contains("being stopped"), "{said}");
            assert!(!is_mounted(&cluster.mount()));
            cluster.up();
        }
    }
}

#[test]
fn a_stop_during_a_start_leaves_nothing_running() {
    need_fuse!();
    let cluster = Cluster::start();
    for apart in [100, 700].map(Duration::from_millis) {
        cluster.down();
        let commands = vec![cluster.command(["up", "--detach"]), cluster.command(["down"])];
        let ended = at_once(commands, apart);
        stdout_of(&ended[1]);
        assert!(!is_mounted(&cluster.mount()));
        for role in ROLES {
            assert_eq!(cluster.pid(role), None, "{role}: {ended:?}");
        }
        cluster.up();
    }
}

#[test]
fn a_start_takes_the_key_it_is_given_and_tells_the_mount_how_long_to_wait() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let kept = std::fs::read(cluster.dir().join("cluster.key")).unwrap();
    cluster.down();
    let other = cluster.scratch().join("other.key");
    std::fs::write(&other, "00ff".repeat(16)).unwrap();
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o600)).unwrap();
    let other = other.to_str().unwrap();
    let refused = cluster.try_dfs(["up", "--detach", "--key-file", other]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("another key"), "{said}");
    assert_eq!(std::fs::read(cluster.dir().join("cluster.key")).unwrap(), kept);

    std::fs::remove_dir_all(cluster.dir()).unwrap();
    let up = ["up", "--detach", "--chunkservers", "1", "--key-file", other, "--server-wait", "7s"];
    cluster.dfs(up);
    let line = std::fs::read(format!("/proc/{}/cmdline", cluster.pid("mount").unwrap())).unwrap();
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    assert!(words.windows(2).any(|pair| pair == [b"--server-wait".as_slice(), b"7000ms"]));
    cluster.dfs(["ls", "/", "--master", &cluster.master_address(), "--key-file", other]);
}

#[test]
fn stale_pid_files_do_not_stop_a_start_and_nobody_else_is_killed() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.down();
    let run_dir = cluster.dir().join("run");
    // One that never was, and one that is another program: this test.
    std::fs::write(run_dir.join("cs-1.pid"), "4194000\n").unwrap();
    std::fs::write(run_dir.join("master.pid"), format!("{}\n", std::process::id())).unwrap();
    cluster.down();
    cluster.up();
    assert!(cluster.pid("master") != Some(std::process::id()));
}

#[test]
fn everything_killed_at_once_comes_back_with_what_was_synced() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(3 << 20, 2);
    write_synced(&cluster.mount().join("kept"), &content);
    for role in ["supervisor", "mount", "cs-1", "cs-2", "cs-3", "master"] {
        cluster.kill(role);
    }
    cluster.up();
    check_content(&cluster.mount().join("kept"), &content);
}

#[test]
fn what_dies_is_started_again_unless_told_otherwise() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    let content = pattern(100_000, 3);
    write_synced(&cluster.mount().join("f"), &content);
    for role in ["cs-2", "master", "mount"] {
        let before = cluster.pid(role);
        cluster.kill(role);
        wait_until(&format!("{role} is started again"), || {
            cluster.pid(role).is_some_and(|pid| Some(pid) != before && is_running(pid))
        });
    }
    wait_until("the mount answers again", || {
        std::fs::read(cluster.mount().join("f")).is_ok_and(|found| found == content)
    });
    let log = std::fs::read_to_string(cluster.dir().join("log/supervisor.log")).unwrap();
    for role in ["cs-2", "master", "mount"] {
        assert!(log.contains(&format!("{role} restarted")), "{role} in {log}");
    }
}

#[test]
fn a_dead_process_stays_dead_if_told_so() {
    need_fuse!();
    let cluster = Cluster::start();
    cluster.kill("cs-3");
    wait_until("the supervisor says so", || {
        std::fs::read_to_string(cluster.dir().join("log/supervisor.log"))
            .unwrap()
            .contains("cs-3 ended (signal 9); not restarted")
    });
    wait_until("cs-3 is dead in the status", || {
        cluster.server_state("cs-3").as_deref() == Some("dead")
    });
    assert_eq!(cluster.server_state("cs-1").as_deref(), Some("alive"));
}

#[test]
fn fewer_chunkservers_lower_replication_more_are_added_fewer_refused() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let status = cluster.dfs_json(["status"]);
    assert_eq!((&status["replication"], &status["minReplicas"]), (&1.into(), &1.into()));
    let content = pattern(200_000, 4);
    write_synced(&cluster.mount().join("f"), &content);
    cluster.down();

    let more = cluster.dfs(["up", "--detach", "--chunkservers", "2"]);
    assert!(more.contains("only 2 chunkservers"), "{more}");
    assert!(more.contains("replication raised from 1 to 2"), "{more}");
    check_content(&cluster.mount().join("f"), &content);
    cluster.until_clean();
    let status = cluster.dfs_json(["status"]);
    assert_eq!((&status["replication"], &status["minReplicas"]), (&2.into(), &1.into()));
    cluster.down();

    let fewer = cluster.try_dfs(["up", "--detach", "--chunkservers", "1"]);
    assert_eq!(fewer.status.code(), Some(1));
    let said = String::from_utf8_lossy(&fewer.stderr).into_owned();
    assert!(said.contains("--chunkservers 1") && said.contains('2'), "{said}");

    // Without the flag: as many as last time.
    let same = stdout_of(&cluster.try_dfs(["up", "--detach"]));
    assert!(!same.contains("raised"), "{same}");
    assert_eq!(cluster.dfs_json(["status"])["servers"].as_array().unwrap().len(), 2);
    cluster.down();

    let three = cluster.dfs(["up", "--detach", "--chunkservers", "3"]);
    assert!(three.contains("replication raised from 2 to 3"), "{three}");
    let status = cluster.dfs_json(["status"]);
    assert_eq!((&status["replication"], &status["minReplicas"]), (&3.into(), &2.into()));
    cluster.until_clean();
    write_synced(&cluster.mount().join("g"), &content);
    check_content(&cluster.mount().join("f"), &content);
}

#[test]
fn in_the_foreground_ctrl_c_stops_everything_in_order() {
    need_fuse!();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("cluster");
    let out = temp.path().join("out");
    let child = Command::new(tests::dfs_program())
        .args(["up", "--dir"])
        .arg(&dir)
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(temp.path().join("err")).unwrap())
        .spawn()
        .unwrap();
    let mut child = Guard(child, dir.clone());
    wait_until("it says that it is ready", || {
        std::fs::read_to_string(&out).unwrap().contains("ready: ")
    });
    assert!(is_mounted(&dir.canonicalize().unwrap().join("mnt")));
    tests::signal(child.0.id(), rustix::process::Signal::INT);
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    let said = std::fs::read_to_string(&out).unwrap();
    let order: Vec<_> =
        ["mount stopped", "cs-1 stopped", "master stopped"].map(|line| said.find(line)).to_vec();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{said}");
    assert!(!is_mounted(&dir.canonicalize().unwrap().join("mnt")));
}

/// A foreground cluster that must not outlive its test.
struct Guard(std::process::Child, std::path::PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let _stopped = run(
            Command::new(tests::dfs_program())
                .args(["down", "--grace", "10s", "--dir"])
                .arg(&self.1),
            PATIENCE,
        );
        let _ended = self.0.kill();
        let _status = self.0.wait();
        tests::force_unmount(&self.1.join("mnt"));
    }
}

#[test]
fn an_old_copy_of_the_masters_directory_is_refused() {
    need_fuse!();
    let cluster = Cluster::start();
    let data = cluster.dir().join("data");
    let (master, copy) = (data.join("master"), cluster.scratch().join("copy"));
    let copied = run(Command::new("cp").arg("-a").arg(&master).arg(&copy), PATIENCE);
    assert!(copied.status.success(), "{copied:?}");
    for n in 0..1_200 {
        std::fs::create_dir(cluster.mount().join(format!("d{n}"))).unwrap();
    }
    wait_until("the chunkservers know how long the log is", || {
        (1..=3).all(|n| {
            let state = std::fs::read_to_string(data.join(format!("cs-{n}/server_state")));
            let known = state.ok().and_then(|line| line.split_whitespace().nth(5)?.parse().ok());
            known.is_some_and(|index: u64| 1_000 <= index)
        })
    });
    cluster.down();
    std::fs::rename(&master, cluster.scratch().join("newest")).unwrap();
    std::fs::rename(&copy, &master).unwrap();

    let up = cluster.try_dfs(["up", "--detach", "--restart", "never"]);
    wait_until("the master says why it stops", || {
        std::fs::read_to_string(cluster.dir().join("log/master.log"))
            .is_ok_and(|log| log.contains("older than the cluster"))
    });
    drop(up);
    let _stopped = cluster.try_dfs(["down"]);
    // The real one is served as before.
    std::fs::remove_dir_all(&master).unwrap();
    std::fs::rename(cluster.scratch().join("newest"), &master).unwrap();
    cluster.up();
    assert!(cluster.mount().join("d1199").is_dir());
}

#[test]
fn df_counts_a_disk_that_all_servers_fill_once() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { capacity: None, ..Options::default() });
    let disk = rustix::fs::statvfs(cluster.dir()).unwrap();
    let found = rustix::fs::statvfs(cluster.mount()).unwrap();
    let (disk_total, disk_free) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    let (total, free) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
    assert!(
        total <= disk_total / 3 && disk_total / 4 < total,
        "{total} of {disk_total}, three copies of each"
    );
    // Others may write to the disk between the two questions.
    assert!(0 < free && free <= disk_free / 3 + (1 << 30), "{free} of {disk_free}");
}

#[test]
fn a_command_that_is_told_how_long_waits_for_a_master_that_is_started_again() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    cluster.kill("master");
    assert!(cluster.dfs(["status", "--server-wait", "60s"]).contains("cs-3"));
}
