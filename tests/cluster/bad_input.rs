//! Wrong flags, wrong addresses, wrong directories: one line that names the value, and the promised exit code.

use std::path::Path;
use std::process::{Command, Output};

use tests::{Cluster, Options, PATIENCE, dfs_program, run, run_with_input};

use crate::need_fuse;

/// One line on standard error that begins with `dfs: ` and names each of `words`.
#[track_caller]
fn check_refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "nothing on standard output");
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 1 && said.starts_with("dfs: "), "one line: {said}");
    for word in words {
        assert!(said.contains(word), "'{word}' in {said}");
    }
}

fn dfs(arguments: &[&str]) -> Output {
    let mut command = Command::new(dfs_program());
    command
        .args(arguments)
        .env_remove("DFS_DIR")
        .env_remove("DFS_MASTER")
        .env_remove("DFS_KEY_FILE");
    run(&mut command, PATIENCE)
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for (arguments, words) in [
        (vec!["ls", "--bogus"], vec!["--bogus", "dfs ls --help"]),
        (vec!["frobnicate"], vec!["frobnicate"]),
        (vec!["up", "--dir", "/tmp/x", "--chunkservers", "0"], vec!["--chunkservers", "'0'"]),
        (vec!["up", "--dir", "/tmp/x", "--capacity", "1k"], vec!["--capacity", "'1k'", "64MiB"]),
        (vec!["up", "--dir", "/tmp/x", "--profile", "fast"], vec!["fast", "standard"]),
        (vec!["mkdir", "--chunk-size", "3MiB", "/x"], vec!["3MiB", "power of two"]),
        (vec!["chunkserver", "--id", "server-1", "--data", "/tmp/x"], vec!["server-1", "cs-1"]),
        (vec!["master", "--data", "/tmp/x", "--listen", "here"], vec!["here"]),
        (vec!["status", "-o", "xml"], vec!["xml", "json"]),
        (vec!["put", "only-one"], vec!["PATH"]),
        (vec!["ls", "/"], vec!["--dir", "DFS_MASTER"]),
        (vec!["ls", "/", "--master", "nonsense"], vec!["nonsense", "HOST:PORT"]),
        (vec!["up", "--dir", "/tmp/x", "--master", "h:1"], vec!["--master", "dfs up --help"]),
        (vec!["down", "--dir", "/tmp/x", "--master", "h:1"], vec!["--master", "dfs down"]),
        (vec!["down", "--dir", "/tmp/x", "--server-wait", "1s"], vec!["--server-wait"]),
        (vec!["down", "--dir", "/tmp/x", "--key-file", "k"], vec!["--key-file"]),
        (vec!["umount", "/tmp/x", "--dir", "/tmp/x"], vec!["--dir", "dfs umount"]),
        (
            vec!["bench", "/tmp/x", "--master", "h:1"],
            vec!["--master", "dfs bench DIR", "dfs mount"],
        ),
        (vec!["bench", "--master", "h:1"], vec!["<PATH>", "a mounted directory", "dfs mount"]),
        (vec!["master", "--data", "/tmp/x", "--server-wait", "1s"], vec!["--server-wait"]),
        (vec!["mount", "h:1", "/tmp/x", "--master", "h:2"], vec!["h:1", "h:2"]),
        (vec!["mount", "h:1"], vec!["h:1", "no path", "dfs mount h:1 PATH"]),
        (vec!["mount", "evict", "00", "--read-only"], vec!["mount evict"]),
        (vec!["up", "--dir", "/tmp/x", "--server-wait", "0"], vec!["--server-wait", "'0'", "30s"]),
        (vec!["ls", "--server-wait", "-1"], vec!["--server-wait", "'-1'", "30s", "dfs ls --help"]),
        (vec!["failover", "cs-1", "--for", "18446744073709551615ms"], vec!["--for", "87600h"]),
        (vec!["events", "-n", "many"], vec!["--last", "'many'", "whole number"]),
        (vec!["job", "create", "--workers", "0"], vec!["'0'", "1 to 1000000", "dfs job create"]),
        (vec!["master", "--data", "/tmp/x", "--metrics", "9100"], vec!["'9100'", "IP:PORT"]),
        (vec!["master", "--data", "/tmp/x", "--min-replicas", "4"], vec!["--min-replicas 4"]),
    ] {
        check_refused(&dfs(&arguments), 2, &words);
    }
}

#[test]
fn words_that_are_no_utf_8_are_wrong_usage_too() {
    use std::os::unix::ffi::OsStrExt as _;
    let word = std::ffi::OsStr::from_bytes(b"\xff");
    for arguments in [vec![word], vec!["ls".as_ref(), "--bogus".as_ref(), word]] {
        let output = run(Command::new(dfs_program()).args(&arguments), PATIENCE);
        check_refused(&output, 2, &["usage", "--help"]);
    }
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_called_too_long() {
    need_fuse!();
    let cluster = Cluster::start();
    let long = "a/".repeat(2100);
    // The kernel's own words for it, through the mount.
    let error = std::fs::metadata(cluster.mount().join(&long)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(36), "{error}");
    for command in ["mkdir", "ls", "stat", "cat", "rm", "locate", "explain"] {
        let output = cluster.try_dfs([command, &long]);
        check_refused(&output, 1, &["File name too long", "4200 bytes", "4095"]);
    }
    for arguments in [["put", "/etc/hostname", &long], ["mv", "/a", &long], ["get", &long, "-"]] {
        let output = cluster.try_dfs(arguments);
        check_refused(&output, 1, &["File name too long", "4200 bytes", "4095"]);
    }
}

/// In a mount namespace of its own, where the device is another one.
#[test]
fn the_quickstart_says_at_once_what_to_do_where_the_device_is_for_root_only_or_missing() {
    if !rustix::process::geteuid().is_root() {
        return tests::skipped("another /dev/fuse takes root");
    }
    let script = std::fs::read(tests::repository().join("deploy/quickstart")).unwrap();
    let temp = tempfile::Builder::new().prefix("t-").tempdir().unwrap();
    let run_as_nobody = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \
                         env -u CARGO_TARGET_DIR PATH=/usr/bin:/bin HOME=/nonexistent bash -s";
    for (device, words) in [
        ("mknod fuse c 10 229 && chmod 600 fuse", ["mode 600", "chmod 666 /dev/fuse"]),
        ("mkdir empty && mount --bind empty /dev", ["is missing", "modprobe fuse"]),
    ] {
        let bind = "test -e fuse && mount --bind fuse /dev/fuse; rm -f fuse";
        let shell = format!("{device} && {{ {bind}; {run_as_nobody}; }}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &shell]).current_dir(temp.path());
        let output = run_with_input(&mut command, &script, PATIENCE);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("quickstart: /dev/fuse"), "{said}");
        for word in words {
            assert!(said.contains(word), "'{word}' in {said}");
        }
        assert!(output.stdout.is_empty(), "nothing was installed or built");
    }
}

#[test]
fn an_unreachable_master_is_named() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for verb in [&["status"][..], &["ls", "/"], &["fsck"], &["mkdir", "/x"]] {
        let arguments = [verb, &["--master", &free, "--server-wait", "1s"]].concat();
        check_refused(&dfs(&arguments), 1, &[&free, "dfs up"]);
    }
    // Somebody else listens there.
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let accepts = std::thread::spawn(move || drop(stranger.accept()));
    check_refused(&dfs(&["status", "--master", &address, "--server-wait", "2s"]), 1, &[&address]);
    accepts.join().unwrap();
}

#[test]
fn a_cluster_named_without_its_key_says_how_to_give_it() {
    need_fuse!();
    let cluster = Cluster::start();
    let master = cluster.master_address();
    let with_env = |name: &str, value: &Path| {
        let mut command = Command::new(dfs_program());
        command.args(["ls", "/"]).env_remove("DFS_DIR").env("DFS_MASTER", &master);
        run(command.env_remove("DFS_KEY_FILE").env(name, value), PATIENCE)
    };
    let none = Path::new("1");
    let page = "docs/operations.md#a-key-is-refused";
    let how = ["no cluster key was given", "--key-file", "DFS_KEY_FILE", "--dir", page];
    check_refused(&with_env("UNRELATED", none), 1, &how);
    for verb in [&["status"][..], &["fsck"], &["events"], &["cat", "/f"]] {
        check_refused(&dfs(&[verb, &["--master", &master]].concat()), 1, &how);
    }
    let wrong = cluster.scratch().join("wrong.key");
    std::fs::write(&wrong, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    check_refused(&with_env("DFS_KEY_FILE", &wrong), 1, &["another cluster key"]);
    let right = with_env("DFS_KEY_FILE", &cluster.dir().join("cluster.key"));
    assert!(right.status.success(), "{right:?}");
}

/// One that lets everybody in and then says nothing, as a process does that is stopped.
#[test]
fn a_silent_master_is_given_up() {
    use dfs_service::conn::{Acceptor, ClusterKey, Limits};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let any_port = "127.0.0.1:0".parse().unwrap();
    let silent = Acceptor::bind(any_port, ClusterKey::none(), Limits::default()).unwrap();
    let (taken, _never_served) = tokio::sync::mpsc::channel(64);
    let held = std::sync::Mutex::new(Vec::new());
    let on_frames = std::sync::Arc::new(move |stream, _| held.lock().unwrap().push(stream));
    let silent = silent.run(on_frames, taken, runtime.handle().clone()).unwrap();
    let address = silent.addr().to_string();
    for verb in [&["status"][..], &["fsck"], &["events"], &["jobs"], &["ls", "/"]] {
        let arguments = [verb, &["--master", &address, "--server-wait", "1s"]].concat();
        check_refused(&dfs(&arguments), 1, &[&address]);
    }
    silent.stop();
}

#[test]
fn directories_without_a_cluster_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_str().unwrap();
    check_refused(&dfs(&["down", "--dir", dir]), 1, &[dir, "dfs up"]);
    check_refused(&dfs(&["status", "--dir", dir]), 1, &[dir, "cluster.json"]);
    std::fs::write(temp.path().join("thesis.txt"), "mine").unwrap();
    let refused = dfs(&["up", "--dir", dir]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("thesis.txt"));
    assert!(!temp.path().join("run").exists(), "nothing was made in somebody else's directory");
}

#[test]
fn a_newer_cluster_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("cluster.json"), r#"{"format": 99, "shape": "new"}"#).unwrap();
    let dir = temp.path().to_str().unwrap();
    check_refused(&dfs(&["status", "--dir", dir]), 1, &["format 99", "cluster.json"]);
}

#[test]
fn a_mount_that_fails_leaves_no_directory_behind() {
    need_fuse!();
    let temp = tempfile::tempdir().unwrap();
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let path = temp.path().join("new/mnt");
    let refused = dfs(&["mount", &free, path.to_str().unwrap(), "--server-wait", "1s"]);
    check_refused(&refused, 1, &[&free, "dfs up"]);
    assert!(!temp.path().join("new").exists());
    // Nor one that fails later: the port of its pages is taken.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let refused = cluster.try_dfs(["mount", path.to_str().unwrap(), "--metrics", &taken]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains(&taken), "{said}");
    assert!(!temp.path().join("new").exists());
}

#[test]
fn mount_points_that_hold_something_are_refused() {
    need_fuse!();
    let temp = tempfile::tempdir().unwrap();
    let full = temp.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine.txt"), "x").unwrap();
    let full = full.to_str().unwrap();
    check_refused(&dfs(&["mount", "127.0.0.1:1", full]), 1, &[full, "mine.txt", "empty"]);
    let dir = temp.path().join("c");
    let dir = dir.to_str().unwrap();
    let output = dfs(&["up", "--dir", dir, "--mount", full]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mine.txt"));
    // A file is no directory.
    let file = Path::new(full).join("mine.txt");
    let output = dfs(&["mount", "127.0.0.1:1", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    // Over the servers' own data, on a file, below a file.
    let inside = Path::new(dir).join("data/x");
    for bad in [inside, Path::new(dir).to_owned(), file.clone(), file.join("x")] {
        let bad = bad.to_str().unwrap();
        for detach in [&["--detach"][..], &[]] {
            let output = dfs(&[&["up", "--dir", dir, "--mount", bad], detach].concat());
            check_refused(&output, 1, &[bad]);
        }
    }
    let bad_key = dfs(&["up", "--dir", dir, "--key-file", file.to_str().unwrap()]);
    check_refused(&bad_key, 1, &["--key-file", "mine.txt"]);
    assert!(!Path::new(dir).exists(), "a refused start leaves nothing behind");
}

#[test]
fn a_missing_fuse_device_is_named() {
    need_fuse!();
    let temp = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs none /dev && exec '{}' mount 127.0.0.1:1 '{}'",
        dfs_program().display(),
        temp.path().join("m").display()
    );
    let output = run(
        Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c", &script]),
        PATIENCE,
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !said.starts_with("dfs: ") {
        return tests::skipped(&format!("an own mount namespace cannot be made: {said}"));
    }
    check_refused(&output, 1, &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn a_fuse_device_for_root_alone_is_not_called_missing() {
    need_fuse!();
    let temp = tempfile::tempdir().unwrap();
    let mut mode = temp.path().metadata().unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o777);
    std::fs::set_permissions(temp.path(), mode).unwrap();
    let script = format!(
        "cp '{}' '{1}/dfs' && mount -t tmpfs none /dev && mknod -m 600 /dev/fuse c 10 229 && \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups '{1}/dfs' mount 127.0.0.1:1 '{1}/m'",
        dfs_program().display(),
        temp.path().display()
    );
    let output = run(Command::new("unshare").args(["--mount", "sh", "-c", &script]), PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !said.starts_with("dfs: ") {
        return tests::skipped(&format!("only root can make a device that is root's: {said}"));
    }
    check_refused(&output, 1, &["/dev/fuse", "Permission denied", "chmod 666", "group"]);
    assert!(!said.contains("modprobe"), "{said}");
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("m");
    let output = dfs(&["master", "--data", data.to_str().unwrap(), "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(last_line(&output).contains(&address), "{}", last_line(&output));
}

#[test]
fn a_server_without_a_key_listens_on_loopback_only() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("m");
    let output = dfs(&["master", "--data", data.to_str().unwrap(), "--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(last_line(&output).contains("--key-file"), "{}", last_line(&output));
}

#[test]
fn somebody_without_the_key_gets_nothing() {
    need_fuse!();
    let cluster = Cluster::start();
    let address = cluster.master_address();
    check_refused(&dfs(&["status", "--master", &address]), 1, &[&address, "--key-file"]);
    check_refused(&dfs(&["ls", "/", "--master", &address]), 1, &[&address, "--key-file"]);
    let other = cluster.scratch().join("other.key");
    std::fs::write(&other, "00ff".repeat(16)).unwrap();
    let mut mode = std::fs::metadata(&other).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    std::fs::set_permissions(&other, mode).unwrap();
    check_refused(
        &dfs(&["ls", "/", "--master", &address, "--key-file", other.to_str().unwrap()]),
        1,
        &["key"],
    );
}

#[test]
fn a_second_process_on_a_directory_is_refused() {
    need_fuse!();
    let cluster = Cluster::start();
    let key = cluster.dir().join("cluster.key");
    let key = key.to_str().unwrap();
    let master = cluster.dir().join("data/master");
    let output = dfs(&[
        "master",
        "--data",
        master.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--key-file",
        key,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(last_line(&output).contains(master.to_str().unwrap()), "{}", last_line(&output));
    let data = cluster.dir().join("data/cs-1");
    let address = cluster.master_address();
    let output = dfs(&[
        "chunkserver",
        "--data",
        data.to_str().unwrap(),
        "--id",
        "cs-1",
        "--master",
        &address,
        "--key-file",
        key,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(last_line(&output).contains(data.to_str().unwrap()), "{}", last_line(&output));
}

#[test]
fn a_chunkserver_of_another_file_system_is_refused() {
    need_fuse!();
    let one = Options { chunkservers: 1, ..Options::default() };
    let mine = Cluster::start_with(one.clone());
    let foreign = Cluster::start_with(one);
    mine.down();
    let data = mine.dir().join("data/cs-1");
    let before = tree_of(&data);
    let output = dfs(&[
        "chunkserver",
        "--data",
        data.to_str().unwrap(),
        "--id",
        "cs-1",
        "--master",
        &foreign.master_address(),
        "--key-file",
        foreign.dir().join("cluster.key").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", last_line(&output));
    assert!(last_line(&output).contains(data.to_str().unwrap()), "{}", last_line(&output));
    assert_eq!(tree_of(&data), before, "a refused directory is left as it is");
}

#[test]
fn a_data_directory_under_another_name_or_of_a_newer_format_is_refused() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    cluster.kill("cs-1");
    let data = cluster.dir().join("data/cs-1");
    let start = |id: &str| {
        dfs(&[
            "chunkserver",
            "--data",
            data.to_str().unwrap(),
            "--id",
            id,
            "--master",
            &cluster.master_address(),
            "--key-file",
            cluster.dir().join("cluster.key").to_str().unwrap(),
        ])
    };
    let output = start("cs-7");
    assert_eq!(output.status.code(), Some(1), "{}", last_line(&output));
    assert!(
        last_line(&output).contains("cs-1") && last_line(&output).contains("cs-7"),
        "{}",
        last_line(&output)
    );

    let label = data.join("label");
    let text = std::fs::read_to_string(&label).unwrap();
    let newer = text.replacen("format 1\n", "format 99\n", 1);
    assert_ne!(newer, text, "the label states its format: {text}");
    std::fs::write(&label, newer).unwrap();
    let output = start("cs-1");
    assert_eq!(output.status.code(), Some(1), "{}", last_line(&output));
    assert!(last_line(&output).contains("format 99"), "{}", last_line(&output));
}

/// Names below a directory.
fn tree_of(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            names.push(path.display().to_string());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    names.sort();
    names
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_missing_key_is_looked_for_where_it_is_said_to_be() {
    let temp = tempfile::tempdir().unwrap();
    let file = r#"{"format": 1, "master": "127.0.0.1:1", "mount": "/m", "profile": "standard",
        "replication": 3, "minReplicas": 2, "chunkservers": []}"#;
    std::fs::write(temp.path().join("cluster.json"), file).unwrap();
    let dir = temp.path().to_str().unwrap();
    let key = temp.path().join("cluster.key");
    check_refused(&dfs(&["ls", "/", "--dir", dir]), 1, &[key.to_str().unwrap(), "DFS_KEY_FILE"]);
}

#[test]
fn wrong_paths_are_named() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    cluster.dfs(["mkdir", "/d"]);
    cluster.dfs_fed(["put", "-", "/f"], b"x");
    let long = format!("/{}", "n".repeat(256));
    for (arguments, words) in [
        (vec!["cat", "/nothing"], vec!["/nothing", "no such file"]),
        (vec!["cat", "/d"], vec!["/d", "directory"]),
        (vec!["ls", "/nothing"], vec!["/nothing"]),
        (vec!["rm", "/d"], vec!["/d", "-r"]),
        (vec!["rm", "-r", "/"], vec!["root"]),
        (vec!["mkdir", "/d"], vec!["/d", "exists"]),
        (vec!["mkdir", "/no/such/parent"], vec!["/no"]),
        (vec!["mv", "/d", "/d/below"], vec!["/d", "itself"]),
        (vec!["get", "/nothing", "-"], vec!["/nothing"]),
        (vec!["put", "/nothing-local", "/x"], vec!["/nothing-local"]),
        (vec!["stat", "/d/../d"], vec![".."]),
        (vec!["mkdir", &long], vec!["255"]),
        (vec!["locate", "/d"], vec!["/d", "regular file"]),
        (vec!["rm", "-r", "/d/."], vec!["/d/.", "not removed"]),
        (vec!["rm", "/f/"], vec!["/f", "not a directory"]),
        (vec!["rm", "-r", "/f/."], vec!["/f/.", "not removed"]),
        (vec!["stat", "/f/"], vec!["/f", "not a directory"]),
        (vec!["ls", "/f/."], vec!["/f", "not a directory"]),
        (vec!["cat", "/f/"], vec!["/f", "not a directory"]),
        (vec!["mv", "/f/", "/g"], vec!["/f", "not a directory"]),
        (vec!["put", "/etc/hostname", "/f/"], vec!["/f", "not a directory"]),
    ] {
        check_refused(&cluster.try_dfs(&arguments), 1, &words);
    }
    let mut put = cluster.command(["put", "-", "/d"]);
    check_refused(&run_with_input(&mut put, b"x", PATIENCE), 1, &["/d", "directory"]);
}
