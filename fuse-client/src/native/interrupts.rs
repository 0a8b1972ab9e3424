//! Requests under way, and what becomes of one whose program was sent a signal.
//!
//! A wait for a lock is told to end, and what it then says is the answer. All else is as on a local disk, where no
//! signal with a handler is noticed before the call is done: programs do not expect EINTR of `mkdir(2)` because a child ended.
//! Only a program that is being killed need not learn how it ends, and whoever is finding the answer is not waited for. The
//! kernel tells of the first signal only, so that who was sent one is looked at from then on.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::abi;
use super::reply::Encoded;
use crate::errno::Errno;
use crate::seam::{Caller, Cancelled, Operation};

/// Interrupts that came before their requests: several readers take them from the queue, in any order.
const EARLY_MAX: usize = 1024;
/// `SIGKILL`, as a bit of the sets in `/proc/PID/status`.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// How often it is looked whether a program that was sent a signal is being killed.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Of a program of another pid namespace nothing is known: what it only asks ends so long after a signal.
const UNKNOWN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Interrupts {
    table: Mutex<Table>,
    /// Requests of programs that were sent a signal, and when; a thread looks at them while there are any.
    watched: Mutex<Vec<(Weak<UnderWay>, Instant)>>,
}

#[derive(Debug, Default)]
struct Table {
    under_way: HashMap<u64, Arc<UnderWay>>,
    early: VecDeque<u64>,
}

#[derive(Debug)]
struct UnderWay {
    device: Arc<OwnedFd>,
    /// As it came.
    unique: u64,
    pid: u32,
    kind: Kind,
    answered: AtomicBool,
    cancelled: Cancelled,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Asks,
    WaitsForLock,
    Changes,
}

/// One request, until it is answered.
#[derive(Debug)]
pub(super) struct Registered {
    interrupts: Arc<Interrupts>,
    request: Arc<UnderWay>,
}

fn kind(operation: &Operation) -> Kind {
    if operation.only_asks() {
        Kind::Asks
    } else if operation.waits() {
        Kind::WaitsForLock
    } else {
        Kind::Changes
    }
}

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was read. To be called before anything is done for it.
    pub(super) fn begin(
        self: &Arc<Self>,
        device: &Arc<OwnedFd>,
        unique: u64,
        caller: Caller,
        operation: &Operation,
    ) -> Registered {
        let request = Arc::new(UnderWay {
            device: Arc::clone(device),
            unique,
            pid: caller.pid,
            kind: kind(operation),
            answered: AtomicBool::new(false),
            cancelled: Cancelled::default(),
        });
        let mut table = self.lock();
        table.under_way.insert(caller.unique, Arc::clone(&request));
        let early = table.early.iter().position(|early| *early == caller.unique);
        if let Some(at) = early {
            table.early.remove(at);
        }
        drop(table);
        if early.is_some() {
            self.was_interrupted(&request);
        }
        Registered { interrupts: Arc::clone(self), request }
    }

    /// `unique`: of the request that is to stop.
    pub(super) fn interrupt(self: &Arc<Self>, unique: u64) {
        let unique = unique & !abi::UNIQUE_RESENT;
        let mut table = self.lock();
        match table.under_way.get(&unique).cloned() {
            Some(request) => {
                drop(table);
                self.was_interrupted(&request);
            }
            None => {
                if EARLY_MAX <= table.early.len() {
                    table.early.pop_front();
                }
                table.early.push_back(unique);
            }
        }
    }
}

impl Interrupts {
    fn was_interrupted(self: &Arc<Self>, request: &Arc<UnderWay>) {
        if request.is_ended_by_signal(Duration::ZERO) {
            return;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push((Arc::downgrade(request), Instant::now()));
        if 1 < watched.len() {
            return;
        }
        let interrupts = Arc::clone(self);
        let watches = std::thread::Builder::new().name("dfs-interrupts".to_owned());
        if let Err(error) = watches.spawn(move || interrupts.watch()) {
            watched.clear();
            tracing::warn!(%error, "begin a thread to look after interrupted programs");
        }
    }

    /// Until nobody is left.
    fn watch(&self) {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|(request, since)| {
                let request = request.upgrade();
                request.is_some_and(|request| !request.is_ended_by_signal(since.elapsed()))
            });
            if watched.is_empty() {
                return;
            }
        }
    }
}

impl UnderWay {
    /// Whether it is answered, now at the latest; `after`: how long ago its program was sent the first signal.
    fn is_ended_by_signal(&self, after: Duration) -> bool {
        if self.answered.load(Ordering::Acquire) {
            return true;
        }
        let is_unknown = self.pid == 0 && UNKNOWN_AFTER <= after;
        let ends = match self.kind {
            Kind::WaitsForLock => self.cancelled.cancel(),
            Kind::Asks => is_unknown || is_killed(self.pid),
            Kind::Changes => is_unknown && self.cancelled.cancel() || is_killed(self.pid),
        };
        if ends {
            // Whoever is finding the answer need not go on, if nothing was sent yet.
            let _goes_on = self.cancelled.cancel();
            self.answer(&Encoded::Failed(Errno::INTERRUPTED));
        }
        ends
    }

    /// The first answer counts.
    fn answer(&self, answer: &Encoded) {
        if !self.answered.swap(true, Ordering::AcqRel) {
            super::respond(&self.device, self.unique, answer);
        }
    }
}

impl Registered {
    pub(super) fn cancelled(&self) -> Cancelled {
        self.request.cancelled.clone()
    }

    pub(super) fn answer(self, answer: Encoded) {
        self.request.answer(&answer);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.interrupts.lock().under_way.remove(&(self.request.unique & !abi::UNIQUE_RESENT));
    }
}

/// Whether thread `pid` has been sent SIGKILL.
fn is_killed(pid: u32) -> bool {
    // Gone, or of another pid namespace: then nothing is known.
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_kill(&status))
}

fn has_kill(status: &str) -> bool {
    let set = |line: &str| u64::from_str_radix(line.split(':').nth(1)?.trim(), 16).ok();
    let pending = |line: &&str| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:");
    status.lines().filter(pending).filter_map(set).any(|set| set & KILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_thread_has_the_signal_pending_itself_or_with_its_process() {
        let status =
            |own: &str, shared: &str| format!("Name:\tx\nSigPnd:\t{own}\nShdPnd:\t{shared}\n");
        let (none, kill, int) = ("0000000000000000", "0000000000000100", "0000000000000002");
        assert!(has_kill(&status(kill, none)) && has_kill(&status(none, kill)));
        assert!(!has_kill(&status(int, none)) && !has_kill(&status(none, int)));
    }
}
