//! What a holder is asked for: another program, a client that stands by, clients of another user, to be followed by another
//! holder; and what it says of requests that wait.

use std::ffi::{OsStr, OsString};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Signal;
use tests::{Cluster, is_running, no_fuse, setting, signal, skipped, wait_until};

use crate::{Held, errors, run_beside, say};

/// Whom clients of another user run as: nobody.
const NOBODY: u32 = 65534;

impl Held {
    fn program(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/exe", self.client())).unwrap()
    }

    fn upgrade(&self, more: &[&OsStr]) -> Result<String, String> {
        let mut words = vec![OsStr::new("mount"), OsStr::new("upgrade"), self.at.as_os_str()];
        words.extend(more);
        let done = self.cluster.try_dfs(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }

    /// Kills the client, and waits until the next one has taken over.
    fn follow(&self) {
        let (before, served) = (self.client(), self.generations());
        self.kill_client();
        wait_until("the next client serves", || {
            self.client() != before && served < self.generations()
        });
    }
}

/// The program itself under another name, or `DFS_MOUNT_OTHER`: another build of it.
fn other_program(held: &Held) -> PathBuf {
    if let Some(other) = std::env::var_os("DFS_MOUNT_OTHER") {
        return other.into();
    }
    let other = held.cluster.scratch().join("other-dfs");
    std::fs::copy(held.program(), &other).unwrap();
    other
}

#[test]
fn programs_see_nothing_of_an_upgrade() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let (first, other) = (held.program(), other_program(&held));
    let times = setting("DFS_MOUNT_UPGRADES", 3);
    let outcomes = run_beside(&held.at, None, || {
        for _ in 0..times {
            for program in [&other, &first] {
                std::thread::sleep(Duration::from_millis(500));
                let words = [OsStr::new("--binary"), program.as_os_str()];
                println!("{}", held.upgrade(&words).unwrap().trim());
                assert_eq!(held.program(), *program);
            }
        }
    });
    say(&outcomes, 2 * times);
    assert_eq!(errors(&outcomes), Vec::<&String>::new(), "{}", held.log());
    // What is killed later is followed by the program that was put in place.
    held.upgrade(&[OsStr::new("--binary"), other.as_os_str()]).unwrap();
    held.follow();
    assert_eq!(held.program(), other);
    // Without a name it is the one that is asked.
    held.upgrade(&[]).unwrap();
    assert_eq!(held.program(), first);
}

#[test]
fn what_does_not_serve_is_not_put_in_place() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let (before, program) = (held.client(), held.program());
    let refused = held.upgrade(&["--binary".as_ref(), "/bin/true".as_ref()]).unwrap_err();
    assert!(refused.contains("/bin/true: not dfs"), "{refused}");
    let refused = held.upgrade(&["--binary".as_ref(), "/nowhere/dfs".as_ref()]).unwrap_err();
    assert!(refused.contains("/nowhere/dfs"), "{refused}");
    assert_eq!(held.client(), before, "nothing was replaced");
    // It says that it is one, and ends when it is to serve.
    let broken = held.cluster.scratch().join("broken");
    let text = "#!/bin/sh\ntest \"$1\" = --version && echo dfs 9.9.9\n";
    std::fs::write(&broken, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).unwrap();
    std::fs::write(held.at.join("a"), "1").unwrap();
    let refused = held.upgrade(&["--binary".as_ref(), broken.as_os_str()]).unwrap_err();
    assert!(refused.contains("ended before it served"), "{refused}");
    assert_eq!(std::fs::read(held.at.join("a")).unwrap(), b"1");
    assert_eq!(held.program(), program);
    // Of a mount that nobody holds.
    let plain = held.cluster.mount();
    let words = [OsStr::new("mount"), OsStr::new("upgrade"), plain.as_os_str()];
    let refused = held.cluster.try_dfs(words);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--hold"), "{said}");
}

fn children(of: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{of}/task")).unwrap();
    let listed = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    let listed = listed.filter_map(Result::ok).collect::<String>();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_client_that_stands_by_is_the_next_one() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start_with(Cluster::start(), &["--standby"]);
    let holder = held.pid("mount-holder.pid");
    for _ in 0..3 {
        let client = held.client();
        let stands_by = || children(holder).into_iter().find(|pid| *pid != client);
        wait_until("one stands by", || stands_by().is_some());
        let next = stands_by().unwrap();
        held.follow();
        assert_eq!(held.client(), next, "{}", held.log());
    }
    // One that ends before its turn is not waited for.
    let client = held.client();
    wait_until("one stands by", || children(holder).len() == 2);
    let next = children(holder).into_iter().find(|pid| *pid != client).unwrap();
    signal(next, Signal::KILL);
    held.follow();
    std::fs::write(held.at.join("a"), "1").unwrap();
    let all = children(holder);
    signal(holder, Signal::TERM);
    wait_until("all of them end", || !all.iter().any(|pid| is_running(*pid)));
}

#[test]
fn requests_that_nobody_serves_are_told_of() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let held = Held::start();
    let master = held.cluster.pid("master").unwrap();
    signal(master, Signal::STOP);
    let at = held.at.join("absent");
    std::thread::scope(|scope| {
        let asks = scope.spawn(move || std::fs::metadata(at).is_err());
        held.kill_client();
        wait_until("it is told", || held.log().contains("no client serves"));
        signal(master, Signal::CONT);
        assert!(asks.join().unwrap());
    });
    wait_until("it is over", || held.log().contains("requests are served again"));
}

#[test]
fn a_client_without_privileges_serves_what_a_holder_with_them_mounted() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can start processes of other users");
    }
    let mut cluster = Cluster::start();
    let pids = cluster.scratch().join("pids");
    std::fs::create_dir(&pids).unwrap();
    let at = cluster.mount_by("held", |cluster, path| {
        let address = cluster.master_address();
        let mut command =
            cluster.command([OsStr::new("mount"), OsStr::new(&address), path.as_os_str()]);
        command.env_remove("DFS_DIR").args(["--hold", "--client-user", "65534:65534"]);
        command.arg("--key-file").arg(cluster.dir().join("cluster.key"));
        command.arg("--pid-dir").arg(&pids);
        command
    });
    let mut held = Held { cluster, at };
    let status = std::fs::read_to_string(format!("/proc/{}/status", held.client())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![NOBODY.to_string(); 4]);
    assert_eq!(field("Groups:"), Vec::<String>::new());
    assert_eq!((field("CapEff:"), field("CapPrm:")), (field("CapAmb:"), field("CapInh:")));
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    let outcomes = run_beside(&held.at, None, || {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(300));
            held.kill_client();
        }
    });
    say(&outcomes, 8);
    assert_eq!(errors(&outcomes), Vec::<&String>::new(), "{}", held.log());
    // It cannot unmount: its holder does.
    signal(held.pid("mount-holder.pid"), Signal::TERM);
    held.cluster.wait_for_mounts_to_end();
    assert!(!tests::is_mounted(&held.at));
}

/// Plays the store of a service manager: what a message of `FDSTORE` brings, by name.
struct Store {
    socket: UnixDatagram,
    path: PathBuf,
    kept: Vec<(String, OwnedFd)>,
}

impl Store {
    fn new(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, path, kept: Vec::new() }
    }

    fn receive(&mut self) -> String {
        let (mut bytes, mut space) =
            ([0; 256], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(80))]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received =
            rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let len = received.unwrap().bytes;
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap().to_owned();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                assert!(text.starts_with("FDSTORE=1"), "{text}");
                self.kept.extend(rights.map(|descriptor| (name.clone(), descriptor)));
            }
        }
        if text.starts_with("FDSTOREREMOVE=1") {
            self.kept.retain(|(other, _)| *other != name);
        }
        text
    }

    /// `command` as a service manager starts it: with what was stored from descriptor 3 on.
    fn start(&self, command: &Command) -> Command {
        let mut words = String::from("LISTEN_PID=$$ exec \"$0\" \"$@\"");
        let mut names = Vec::new();
        for (place, (name, descriptor)) in self.kept.iter().enumerate() {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).unwrap();
            words.push_str(&format!(" {}<&{}", place + 3, descriptor.as_raw_fd()));
            names.push(name.as_str());
        }
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(words).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.env("NOTIFY_SOCKET", &self.path);
        if !names.is_empty() {
            shell.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        shell
    }
}

fn hold(cluster: &Cluster, path: &Path, pids: &Path) -> Command {
    let mut command = cluster.command([OsStr::new("mount"), path.as_os_str()]);
    command.args([OsString::from("--hold"), "--pid-dir".into(), pids.into()]);
    command
}

#[test]
fn what_a_holder_stored_is_served_by_the_next_one() {
    if let Some(reason) = no_fuse() {
        return skipped(&reason);
    }
    let mut cluster = Cluster::start();
    let pids = cluster.scratch().join("pids");
    std::fs::create_dir(&pids).unwrap();
    let mut store = Store::new(cluster.scratch().join("notify"));
    let start = |store: &Store, cluster: &mut Cluster| {
        cluster.mount_by("held", |cluster, path| store.start(&hold(cluster, path, &pids)))
    };
    let at = start(&store, &mut cluster);
    for _ in 0..2 {
        println!("{:?}", store.receive());
    }
    assert_eq!(store.kept.len(), 5, "{:?}", store.kept);
    let pid = |name: &str| {
        std::fs::read_to_string(pids.join(name)).unwrap().trim().parse::<u32>().unwrap()
    };
    // A process of its own: one that has a file open there and starts a holder would wait for it between fork and exec.
    let words = "set -e; for i in $(seq 300); do echo $i > $0/$i; test $(cat $0/$i) = $i; done";
    let mut program = Command::new("bash").arg("-c").arg(words).arg(&at).spawn().unwrap();
    // The second time the client is left alive: the next one waits for its end.
    for client_too in [true, false] {
        std::thread::sleep(Duration::from_millis(300));
        let (holder, client) = (pid("mount-holder.pid"), pid("mount.pid"));
        signal(holder, Signal::KILL);
        if client_too {
            signal(client, Signal::KILL);
        }
        start(&store, &mut cluster);
        wait_until("the next holder", || pid("mount-holder.pid") != holder);
        if !client_too {
            wait_until("the next client", || pid("mount.pid") != client);
            std::thread::sleep(Duration::from_millis(300));
            assert!(is_running(client));
            signal(client, Signal::KILL);
        }
    }
    assert!(program.wait().unwrap().success(), "{}", cluster.logs());
    // A clean end leaves nothing in the store.
    signal(pid("mount-holder.pid"), Signal::TERM);
    for _ in 0..2 {
        println!("{:?}", store.receive());
    }
    assert!(store.kept.is_empty() && !tests::is_mounted(&at));
}
