//! Ends or stops this process at a chosen point of a request, so that a test sees what its successor makes of it
//! (`dfs mount --exercise FILE`). Without such a file nothing of it happens.
//!
//! ```text
//! end mkdir effect    SIGKILL at this point of the next request of this kind; the file is renamed to FILE.reached
//! stop write sent     SIGSTOP there
//! without resend      the kernel is not asked to send again what predecessors did not answer
//! without clones      requests are read from descriptors that nobody else keeps
//! without records     what predecessors began is forgotten
//! ```

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// Taken from the kernel's queue.
    Read,
    /// Something was sent to a server for it, a moment ago.
    Sent,
    /// Carried out, and not answered.
    Effect,
    /// Answered, and not forgotten.
    Replied,
}

/// So long is what is sent on its way.
const SENT: Duration = Duration::from_millis(1);

static FILE: OnceLock<PathBuf> = OnceLock::new();

thread_local! {
    static OPERATION: Cell<&'static str> = const { Cell::new("") };
}

/// From now on `file` says what is to happen.
pub fn choose(file: PathBuf) {
    FILE.get_or_init(|| file);
}

/// Whether something is to be left out.
#[must_use]
pub fn is_without(what: &str) -> bool {
    let is_said = |file: &Path| has_line(file, &format!("without {what}"));
    FILE.get().is_some_and(|file| is_said(file) || is_said(&reached_file(file)))
}

/// This thread carries out `operation`.
pub fn begin(operation: &'static str) {
    OPERATION.set(operation);
}

/// This thread's operation is so far.
pub fn reached(point: Point) {
    if let Some(file) = FILE.get() {
        reach(file, OPERATION.get(), point);
    }
}

fn reach(file: &Path, operation: &'static str, point: Point) {
    let signal = match asked(file, operation, point) {
        Some(signal) => signal,
        // Nothing was sent for it.
        None if point == Point::Effect => match asked(file, operation, Point::Sent) {
            Some(signal) => signal,
            None => return,
        },
        None => return,
    };
    // One thread only.
    if std::fs::rename(file, reached_file(file)).is_err() {
        return;
    }
    let act = move || {
        let _told = rustix::process::kill_process(rustix::process::getpid(), signal);
        // Another thread may be the one that is stopped first.
        loop {
            std::thread::park();
        }
    };
    if point == Point::Sent {
        std::thread::spawn(move || {
            std::thread::sleep(SENT);
            act();
        });
    } else {
        act();
    }
}

fn asked(file: &Path, operation: &str, point: Point) -> Option<Signal> {
    let point = match point {
        Point::Read => "read",
        Point::Sent => "sent",
        Point::Effect => "effect",
        Point::Replied => "replied",
    };
    let what = format!("{operation} {point}");
    if has_line(file, &format!("end {what}")) {
        Some(Signal::KILL)
    } else if has_line(file, &format!("stop {what}")) {
        Some(Signal::STOP)
    } else {
        None
    }
}

fn reached_file(file: &Path) -> PathBuf {
    file.with_extension("reached")
}

fn has_line(file: &Path, wanted: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == wanted))
}
