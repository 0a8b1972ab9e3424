//! Signals to programs that wait for what a server or another program has to do, on our own transport.

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

#[test]
fn a_wait_for_the_master_is_interrupted_or_killed() {
    let Some((cluster, at)) = start() else { return };
    std::fs::write(at.join("file"), "1").unwrap();
    let master = cluster.pid("master").unwrap();
    signal(master, Signal::STOP);
    let asks = {
        let path = at.join("file");
        std::thread::spawn(move || std::fs::metadata(path).map(|_| ()))
    };
    let ended = interrupted("a question to a master that is away", asks);
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::Interrupted);
    // A change may have been carried out: only who was killed need not know.
    let mut mkdir = Command::new("mkdir").arg(at.join("dir")).stdin(Stdio::null()).spawn().unwrap();
    std::thread::sleep(BEGUN);
    let began = Instant::now();
    mkdir.kill().unwrap();
    wait_until("the killed program ends", || mkdir.try_wait().unwrap().is_some());
    println!("a killed change: {:?}", began.elapsed());
    signal(master, Signal::CONT);
}

#[test]
fn a_change_that_was_not_sent_is_not_made_after_its_program_was_told_so() {
    let Some((cluster, at)) = start() else { return };
    let open = |name| std::fs::File::create(at.join(name)).unwrap();
    let change = |file: std::fs::File| {
        // The standard library would ask again after EINTR.
        std::thread::spawn(move || rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640)))
    };
    let (first, second) = (open("first"), open("second"));
    cluster.kill("master");
    // The first request may go out on a connection that is not known to be gone.
    let goes_on = change(first);
    std::thread::sleep(BEGUN);
    let ended = interrupted("a change while the master is away", change(second));
    assert_eq!(ended, Err(Errno::INTR));
    cluster.dfs(["down"]);
    cluster.up();
    goes_on.join().unwrap().unwrap();
    let mode = |name| {
        let found = std::fs::metadata(cluster.mount().join(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    assert_eq!((mode("first"), mode("second")), (0o640, 0o644));
}
