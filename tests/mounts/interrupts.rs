//! Signals to programs that wait for what a server or another program has to do, on our own transport.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::thread::JoinHandleExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::process::Signal;
use tests::{Cluster, no_fuse, signal, skipped, wait_until};

/// Long enough for a call to be on its way.
const BEGUN: Duration = Duration::from_millis(300);

/// A signal with a handler that does nothing: calls that wait end with EINTR.
#[expect(unsafe_code, reason = "signals of threads")]
fn interrupt<T>(thread: &JoinHandle<T>) {
    static HANDLED: Once = Once::new();
    extern "C" fn nothing(_signal: i32) {}
    HANDLED.call_once(|| {
        // SAFETY: the structure is plain numbers, and the handler does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
    });
    // SAFETY: the thread is not joined yet.
    let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
    assert_eq!(sent, 0);
}

/// Sends signals to a thread until its call returns: one that comes before the call is lost.
fn interrupted<T>(what: &str, thread: JoinHandle<T>) -> T {
    std::thread::sleep(BEGUN);
    let began = Instant::now();
    wait_until(what, || {
        if !thread.is_finished() {
            interrupt(&thread);
            std::thread::sleep(Duration::from_millis(20));
        }
        thread.is_finished()
    });
    println!("{what}: {:?}", began.elapsed());
    thread.join().unwrap()
}

fn start() -> Option<(Cluster, std::path::PathBuf)> {
    if let Some(reason) = no_fuse() {
        skipped(&reason);
        return None;
    }
    let mut cluster = Cluster::start();
    let at = cluster.mount_with("native", &["--transport", "native", "--attr-ttl", "0s"]);
    Some((cluster, at))
}

fn lock(path: &Path, how: FlockOperation) -> (std::fs::File, Result<(), Errno>) {
    let file = std::fs::File::open(path).unwrap();
    let locked = rustix::fs::flock(&file, how);
    (file, locked)
}

#[test]
fn a_wait_for_a_lock_is_interrupted_and_leaves_no_lock_behind() {
    let Some((cluster, at)) = start() else { return };
    let path = at.join("file");
    std::fs::write(&path, "1").unwrap();
    let (held, locked) = lock(&path, FlockOperation::LockExclusive);
    locked.unwrap();
    let waits = {
        let path = path.clone();
        std::thread::spawn(move || lock(&path, FlockOperation::LockExclusive))
    };
    let (waited, ended) = interrupted("the wait for a lock", waits);
    assert_eq!(ended, Err(Errno::INTR));
    drop(held);
    // What was given up is given back, if it was granted meanwhile: also while its file is open.
    wait_until("the lock can be had on the other mount", || {
        lock(&cluster.mount().join("file"), FlockOperation::NonBlockingLockExclusive).1.is_ok()
    });
    rustix::fs::flock(&waited, FlockOperation::LockShared).unwrap();
}

/// As on a local disk: programs do not expect EINTR of `mkdir(2)` because a child of theirs ended.
#[test]
fn a_signal_with_a_handler_ends_no_call_but_a_wait_for_a_lock() {
    let Some((cluster, at)) = start() else { return };
    std::fs::write(at.join("file"), "1").unwrap();
    let master = cluster.pid("master").unwrap();
    signal(master, Signal::STOP);
    let asks = {
        let path = at.join("file");
        std::thread::spawn(move || rustix::fs::stat(&path).map(|stat| stat.st_size))
    };
    let changes = {
        let path = at.join("dir");
        std::thread::spawn(move || rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)))
    };
    for _ in 0..20 {
        std::thread::sleep(BEGUN / 10);
        interrupt(&asks);
        interrupt(&changes);
    }
    assert!(!asks.is_finished() && !changes.is_finished(), "the master was stopped");
    signal(master, Signal::CONT);
    assert_eq!(asks.join().unwrap(), Ok(1));
    assert_eq!(changes.join().unwrap(), Ok(()));
}

#[test]
fn a_program_that_waits_for_the_master_is_killed_at_once() {
    let Some((cluster, at)) = start() else { return };
    std::fs::write(at.join("file"), "1").unwrap();
    let master = cluster.pid("master").unwrap();
    signal(master, Signal::STOP);
    for (program, name) in [("stat", "file"), ("mkdir", "dir")] {
        for end in [Signal::KILL, Signal::INT] {
            let mut child = Command::new(program)
                .arg(at.join(name))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(BEGUN);
            let began = Instant::now();
            signal(child.id(), end);
            wait_until("it ends", || child.try_wait().unwrap().is_some());
            println!("{program}, {end:?}: {:?}", began.elapsed());
        }
    }
    // Also if a signal that it handles came before, of which alone the kernel tells. Others then wait behind that one.
    let mut shell = Command::new("sh")
        .args(["-c", "trap : USR1; echo begins; read line < \"$0\"; echo done"])
        .arg(at.join("file"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(BEGUN);
    signal(shell.id(), Signal::USR1);
    std::thread::sleep(BEGUN);
    assert!(shell.try_wait().unwrap().is_none(), "the master is stopped");
    signal(shell.id(), Signal::KILL);
    wait_until("the shell ends", || shell.try_wait().unwrap().is_some());
    signal(master, Signal::CONT);
}

/// Of the second: changes the mode of the file at this path when told to by its standard input.
const CHANGED: &str = "DFS_TEST_CHANGES_MODE_OF";

#[test]
fn a_change_that_was_not_sent_is_not_made_after_its_program_was_killed() {
    let change = |file: std::fs::File| rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640));
    if let Some(path) = std::env::var_os(CHANGED) {
        let file = std::fs::File::open(path).unwrap();
        println!("open");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return change(file).unwrap();
    }
    let Some((cluster, at)) = start() else { return };
    let first = std::fs::File::create(at.join("first")).unwrap();
    std::fs::File::create(at.join("second")).unwrap();
    let name = "interrupts::a_change_that_was_not_sent_is_not_made_after_its_program_was_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHANGED, at.join("second"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains("open")));
    cluster.kill("master");
    // The first request may go out on a connection that is not known to be gone.
    let goes_on = std::thread::spawn(move || change(first));
    std::thread::sleep(BEGUN);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    std::thread::sleep(BEGUN);
    assert!(child.try_wait().unwrap().is_none(), "there is no master");
    child.kill().unwrap();
    wait_until("the killed program ends", || child.try_wait().unwrap().is_some());
    cluster.dfs(["down"]);
    cluster.up();
    goes_on.join().unwrap().unwrap();
    let mode = |name| {
        let found = std::fs::metadata(cluster.mount().join(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    assert_eq!((mode("first"), mode("second")), (0o640, 0o644));
}
