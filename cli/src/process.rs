//! Other processes as `/proc` shows them: is it ours, does it live, make it stop.
//!
//! A pid alone proves nothing, the kernel uses it again: a process counts as ours only if its command line contains
//! the words it was started with.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How often a process that should end is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A killed process that the kernel still works for, on a disk that hangs, is waited for this long.
pub(crate) const KILLED_MAX: Duration = Duration::from_secs(10);

/// How [`Process::stop`] went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopped {
    ByItself,
    Killed,
    /// SIGKILL did not end it either.
    StillThere,
}

/// A pid and the words that must be among its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: u32,
    pub marks: Vec<String>,
}

impl Process {
    /// Whether it runs and is the program we started. A zombie does not run.
    pub(crate) fn is_running(&self) -> bool {
        if self.pid == 0 || is_zombie(self.pid) {
            return false;
        }
        let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", self.pid)) else { return false };
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        self.marks.iter().all(|mark| words.contains(&mark.as_bytes()))
    }

    /// Killed, its memory is gone, but not yet its locks and open files.
    fn is_going(&self) -> bool {
        std::fs::read(format!("/proc/{}/cmdline", self.pid)).is_ok_and(|line| line.is_empty())
            && !is_zombie(self.pid)
    }

    /// Sends a signal, unless the pid is another program by now.
    pub(crate) fn signal(&self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended since: then there is nothing to stop.
            let _gone = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits until it is gone; says whether it is.
    pub(crate) fn wait_gone(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        while self.is_running() || self.is_going() {
            if until <= Instant::now() {
                return false;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        true
    }

    /// SIGTERM, after `grace` SIGKILL.
    pub(crate) fn stop(&self, grace: Duration) -> Stopped {
        self.signal(Signal::TERM);
        if self.wait_gone(grace) {
            return Stopped::ByItself;
        }
        self.signal(Signal::KILL);
        if self.wait_gone(KILLED_MAX) { Stopped::Killed } else { Stopped::StillThere }
    }
}

/// Runs `command` and returns how it ended and what it said on standard error: `None` if it did not end within
/// `limit` (it is killed then). A program that looks at a hanging mount may never end, nor be killed.
pub(crate) fn run_within(
    command: &mut Command,
    limit: Duration,
) -> std::io::Result<Option<(ExitStatus, String)>> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if until <= Instant::now() {
            let _ended_meanwhile = child.kill();
            return Ok(None);
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_end(&mut said)?;
    }
    Ok(Some((status, String::from_utf8_lossy(&said).trim().to_owned())))
}

/// All of it has ended, only its parent has not asked yet. While one thread is left its files are still open.
fn is_zombie(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if 1 < threads {
        return false;
    }
    // "pid (name) state …": the name may contain anything, so the last ')' counts.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

/// Reads a pid file: `None` if absent or not a number.
pub(crate) fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn a_process_with_other_arguments_is_not_ours() {
        let mut child = sleeper();
        let mut process = Process { pid: child.id(), marks: vec!["60".into()] };
        // The child is ours only after its exec; before it shows this test's own arguments.
        let until = Instant::now() + Duration::from_secs(10);
        while !process.is_running() && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
        }
        assert!(process.is_running());
        process.marks = vec!["61".into()];
        assert!(!process.is_running());
        process.stop(Duration::from_secs(5));
        assert!(child.try_wait().unwrap().is_none(), "another program was stopped");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = sleeper();
        child.kill().unwrap();
        let process = Process { pid: child.id(), marks: vec![] };
        assert!(process.wait_gone(Duration::from_secs(10)), "killed but not reaped counts as gone");
        child.wait().unwrap();
    }

    #[test]
    fn stopping_ends_a_process_by_itself() {
        let mut child = sleeper();
        let process = Process { pid: child.id(), marks: vec![] };
        assert_eq!(process.stop(Duration::from_secs(10)), Stopped::ByItself);
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_does_not_end_is_not_waited_for() {
        let mut sleeps = Command::new("sleep");
        assert_eq!(run_within(sleeps.arg("60"), Duration::from_millis(50)).unwrap(), None);
        let mut speaks = Command::new("sh");
        speaks.args(["-c", "echo no >&2; exit 3"]);
        let (status, said) = run_within(&mut speaks, Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(3), "no"));
    }
}
