//! `dfs put` over a file that is there: the old content stays whole until the new one is.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::Signal;
use tests::{Cluster, Options, wait_until};

use crate::top::InTerminal;
use crate::{check_bytes, check_content, need_fuse, pattern, write_synced};

/// Chunks in the map, and on the server that has the most.
fn chunks(cluster: &Cluster) -> (u64, u64) {
    let status = cluster.dfs_json(["status"]);
    let servers = status["servers"].as_array().unwrap();
    let of = |server: &serde_json::Value| server["chunks"].as_u64().unwrap();
    (status["chunks"]["total"].as_u64().unwrap(), servers.iter().map(of).max().unwrap())
}

fn clients(cluster: &Cluster) -> Vec<String> {
    let status = cluster.dfs_json(["status"]);
    let clients = status["mounts"].as_array().unwrap();
    clients.iter().map(|client| client["id"].as_str().unwrap().to_owned()).collect()
}

/// A `dfs put` of standard input that has sent some of it and waits for more. Before it there are no chunks but
/// `before`.
fn begin_put(cluster: &Cluster, path: &str, before: u64) -> Child {
    let mut put = cluster
        .command(["put", "-", path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    put.stdin.as_mut().unwrap().write_all(&pattern(6 << 20, 2)).unwrap();
    wait_until("some of it is stored", || before < chunks(cluster).0);
    put
}

#[test]
fn a_put_that_is_killed_leaves_the_old_content_whole_and_nothing_else() {
    need_fuse!();
    let cluster = Cluster::start();
    let root = cluster.mount();
    let names = || {
        let names = root.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    let old = pattern(3 << 20, 1);
    write_synced(&root.join("f"), &old);
    let inodes = || cluster.dfs_json(["status"])["inodes"].as_u64().unwrap();
    let before = (clients(&cluster), inodes());
    for (path, stored) in [("/f", 1), ("/absent", 2)] {
        let mut put = begin_put(&cluster, path, stored);
        put.kill().unwrap();
        put.wait().unwrap();
    }
    assert_eq!(names(), ["f"]);
    check_bytes("old", &cluster.try_dfs(["cat", "/f"]).stdout, &old);
    check_content(&root.join("f"), &old);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
    // What was sent goes when the dead are ended: by their lease, or at once.
    let dead: Vec<_> = clients(&cluster).into_iter().filter(|id| !before.0.contains(id)).collect();
    assert_eq!(dead.len(), 2, "{dead:?}");
    for id in dead {
        cluster.dfs(["mount", "evict", &id]);
    }
    wait_until("its chunks are freed", || chunks(&cluster) == (1, 1) && inodes() == before.1);
    cluster.dfs_fed(["put", "-", "/f"], b"new");
    assert_eq!(cluster.dfs(["cat", "/f"]), "new");
    assert_eq!(names(), ["f"]);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_put_goes_on_when_the_master_starts_again() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { restart: "on-failure", ..Options::default() });
    cluster.dfs_fed(["put", "-", "/f"], b"old");
    let mut put = begin_put(&cluster, "/f", 0);
    cluster.kill("master");
    put.stdin.as_mut().unwrap().write_all(&pattern(6 << 20, 3)).unwrap();
    let ended = put.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let expected = [pattern(6 << 20, 2), pattern(6 << 20, 3)].concat();
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &expected);
    assert_eq!(cluster.dfs(["ls", "/"]), "f\n");
}

#[test]
fn what_a_dead_client_wrote_counts_in_the_size_when_it_is_ended() {
    need_fuse!();
    let cluster = Cluster::start();
    // One of two names: it is written in place.
    cluster.dfs_fed(["put", "-", "/f"], b"");
    std::fs::hard_link(cluster.mount().join("f"), cluster.mount().join("g")).unwrap();
    let before = clients(&cluster);
    // Stands for any client that dies with bytes at the servers and no word to the master of how far they reach.
    let mut put = begin_put(&cluster, "/f", 0);
    let written = || cluster.dfs_json(["stat", "/f"])[0]["size"].as_u64().unwrap();
    wait_until("some of it is stored", || written() != 0);
    put.kill().unwrap();
    put.wait().unwrap();
    // A listing shows what the master has logged.
    let logged = || cluster.dfs_json(["ls", "-l", "/"])["entries"][0]["size"].as_u64().unwrap();
    assert_eq!(logged(), 0);
    let dead: Vec<_> = clients(&cluster).into_iter().filter(|id| !before.contains(id)).collect();
    assert_eq!(dead.len(), 1, "{dead:?}");
    cluster.dfs(["mount", "evict", &dead[0]]);
    wait_until("the size is logged", || 0 < written() && logged() == written());
    let len = usize::try_from(logged()).unwrap();
    let content = pattern(6 << 20, 2);
    check_bytes("cat", &cluster.try_dfs(["cat", "/f"]).stdout, &content[..len]);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}

#[test]
fn a_put_that_is_interrupted_leaves_nothing_behind() {
    need_fuse!();
    let cluster = Cluster::start();
    let old = pattern(3 << 20, 1);
    write_synced(&cluster.mount().join("f"), &old);
    for (signal, path) in [(Signal::INT, "/f"), (Signal::TERM, "/absent")] {
        let put = begin_put(&cluster, path, 1);
        tests::signal(put.id(), signal);
        let ended = put.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(130), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert_eq!(cluster.dfs(["ls", "/"]), "f\n");
        wait_until("its chunks are freed", || chunks(&cluster) == (1, 1));
    }
    check_content(&cluster.mount().join("f"), &old);
}

#[test]
fn a_put_keeps_mode_owner_attributes_and_links() {
    need_fuse!();
    let cluster = Cluster::start();
    let root = cluster.mount();
    let path = root.join("f");
    write_synced(&path, b"old");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o751)).unwrap();
    setxattr(&path, "user.kept", b"value", XattrFlags::empty()).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
    }
    let before = path.metadata().unwrap();
    std::os::unix::fs::symlink("f", root.join("link")).unwrap();
    cluster.dfs_fed(["put", "-", "/link"], b"through the link");

    assert!(root.join("link").symlink_metadata().unwrap().is_symlink());
    assert_eq!(cluster.dfs(["cat", "/f"]), "through the link");
    let stat = &cluster.dfs_json(["stat", "/f"])[0];
    assert_eq!(stat["size"], 16, "{stat}");
    wait_until("the mount sees the new file", || path.metadata().unwrap().ino() != before.ino());
    let after = path.metadata().unwrap();
    assert_eq!(
        (after.mode(), after.uid(), after.gid()),
        (before.mode(), before.uid(), before.gid())
    );
    let mut value = [0; 16];
    let len = getxattr(&path, "user.kept", &mut value).unwrap();
    assert_eq!(&value[..len], b"value");

    // Two names are one file, also afterwards.
    std::fs::hard_link(&path, root.join("other")).unwrap();
    let mut put = cluster.command(["put", "-", "/f"]);
    let output = tests::run_with_input(&mut put, b"both", tests::PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("2 names"), "{said}");
    for name in ["/f", "/other"] {
        assert_eq!(cluster.dfs(["cat", name]), "both");
    }
    assert_eq!(cluster.dfs(["ls", "/"]), "f\nlink\nother\n");
    let refused = cluster.try_dfs(["put", "/dev/null", "/absent/f"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_put_keeps_what_was_changed_of_mode_owner_and_attributes_while_it_ran() {
    need_fuse!();
    let cluster = Cluster::start();
    let path = cluster.mount().join("f");
    write_synced(&path, b"old");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = path.metadata().unwrap();
    let mut put = cluster.command(["put", "-", "/f"]);
    let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = put.stdin.take().unwrap();
    input.write_all(b"new ").unwrap();
    wait_until("it has begun", || cluster.dfs_json(["status"])["inodes"].as_u64().unwrap() == 3);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    setxattr(&path, "user.late", b"value", XattrFlags::empty()).unwrap();
    input.write_all(b"content").unwrap();
    drop(input);
    assert!(put.wait().unwrap().success());
    assert_eq!(cluster.dfs(["cat", "/f"]), "new content");
    wait_until("the mount sees the new file", || path.metadata().unwrap().ino() != before.ino());
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let mut value = [0; 16];
    let len = getxattr(&path, "user.late", &mut value).unwrap();
    assert_eq!(&value[..len], b"value");
}

#[test]
fn a_put_whose_input_stalls_says_what_it_waits_for() {
    need_fuse!();
    let cluster = Cluster::start();
    let mut command = cluster.command(["put", "-", "/f"]);
    command.env("TERM", "xterm");
    // Its input is the keyboard.
    let mut put = InTerminal::start(command);
    wait_until("it says so before anything came", || {
        put.text().contains("waiting for standard input")
    });
    put.keys.write_all(b"one line\n").unwrap();
    wait_until("bytes that came are counted", || put.text().contains("9 B"));
    // Ctrl-D
    put.keys.write_all(&[4]).unwrap();
    wait_until("it ends", || put.child.try_wait().unwrap().is_some());
    assert!(put.child.wait().unwrap().success(), "{}", put.text());
    check_content(&cluster.mount().join("f"), b"one line\n");
}

#[test]
fn holes_are_neither_sent_nor_written() {
    const TIB: u64 = 1 << 40;
    let cluster = Cluster::start();
    let local = cluster.scratch().join("local");
    let file = File::create(&local).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", TIB / 2 + 123).unwrap();
    file.set_len(TIB).unwrap();
    let (from, back) = (local.to_str().unwrap(), cluster.scratch().join("back"));
    cluster.dfs(["put", from, "/sparse"]);
    assert_eq!(cluster.dfs_json(["stat", "/sparse"])[0]["size"], TIB);
    let located = cluster.dfs_json(["locate", "/sparse"]);
    assert_eq!(located["chunks"].as_array().unwrap().len(), 2);
    cluster.dfs(["get", "/sparse", back.to_str().unwrap()]);
    let copy = File::open(&back).unwrap();
    let meta = copy.metadata().unwrap();
    assert_eq!(meta.len(), TIB);
    assert!(meta.blocks() * 512 <= 256 << 20, "{} blocks", meta.blocks());
    let at = |offset, len| {
        let mut bytes = vec![1; len];
        copy.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    assert_eq!(at(0, 7), b"begin\0\0");
    assert_eq!(at(TIB / 2 + 121, 10), b"\0\0middle\0\0");
    assert_eq!(at(TIB - 3, 3), [0; 3]);

    // A file that says it has no bytes, and has some.
    cluster.dfs(["put", "/proc/version", "/version"]);
    assert_eq!(cluster.dfs(["cat", "/version"]), std::fs::read_to_string("/proc/version").unwrap());

    // Nothing but a hole, and a small file with one: inline content ends before the file does.
    File::create(&local).unwrap().set_len(3 << 30).unwrap();
    cluster.dfs(["put", from, "/empty"]);
    cluster.dfs(["get", "/empty", back.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(&back).unwrap().len(), 3 << 30);
    assert_eq!(cluster.dfs_json(["locate", "/empty"])["chunks"].as_array().unwrap().len(), 0);
    std::fs::write(&local, b"short").unwrap();
    File::options().write(true).open(&local).unwrap().set_len(100_000).unwrap();
    cluster.dfs(["put", from, "/short"]);
    let mut expected = b"short".to_vec();
    expected.resize(100_000, 0);
    assert!(cluster.dfs(["cat", "/short"]).into_bytes() == expected);
}

/// Each time it is of one letter, and what is not there any more is not read.
#[test]
fn what_is_cut_while_it_is_read_leaves_no_zeros() {
    need_fuse!();
    let cluster = Cluster::start();
    let path = cluster.mount().join("f");
    let content = vec![b'x'; 204_800];
    std::fs::write(&path, &content).unwrap();
    let over = AtomicBool::new(false);
    let zeros = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                std::fs::write(&path, &content).unwrap();
            }
        });
        let has_zeros = |_: &u32| cluster.try_dfs(["cat", "/f"]).stdout.contains(&0);
        let zeros = (0..500).find(has_zeros);
        over.store(true, Ordering::Release);
        zeros
    });
    assert_eq!(zeros, None, "the first read with zeros");
}
