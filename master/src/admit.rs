//! Which chunkservers' directories are let in: the newest of their disks, no older copies (`dfs_core::meta::marks`).
//!
//! A server's first message asks for its mark and is answered when the log has it. What comes later beside its heartbeats
//! waits for the log a moment only; whatever did not get done is asked for again with the next.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_core::chunk::Member;
use dfs_core::cluster::Liveness;
use dfs_core::command::{Change, Outcome};
use dfs_core::event::{Event, EventKind};
use dfs_core::ids::{DiskId, ServerId};
use dfs_core::meta::marks::{Mark, Marks, Shown};
use dfs_core::time::WallTime;
use dfs_proto::control::{DiskMark, HeartbeatRequest};
use dfs_service::page::Page;
use dfs_service::{canary, clock};

use crate::state::{Master, lock, now};

/// A heartbeat waits no longer for the log: a busy one must not look like a dead server.
const LOG_MAX: Duration = Duration::from_millis(250);
/// Events that wait to be logged.
const EVENTS_MAX: usize = 1_000;

/// Servers whose directories are refused.
#[derive(Debug, Default)]
pub struct Refusals {
    /// One for each registered server at most, until it comes with the right one.
    now: BTreeMap<ServerId, (DiskId, String)>,
    events: Vec<Event>,
}

impl Refusals {
    /// Why the directory of `server` is refused, if it is.
    #[must_use]
    pub fn reason(&self, server: ServerId) -> Option<&str> {
        self.now.get(&server).map(|(_, reason)| reason.as_str())
    }

    /// Whether it is this disk whose directory is refused.
    #[must_use]
    pub fn is_refused(&self, member: &Member) -> bool {
        self.now.get(&member.server).is_some_and(|(disk, _)| *disk == member.disk)
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// True: it is news.
    fn refuse(&mut self, server: ServerId, disk: DiskId, reason: &str) -> bool {
        let news = self.now.insert(server, (disk, reason.to_owned())).is_none();
        if news {
            self.say(server, format!("{reason}; see {}", Page::DirectoryRefused));
        }
        news
    }

    fn admit(&mut self, server: ServerId) {
        if self.now.remove(&server).is_some() {
            self.say(server, "its directory is refused no longer".to_owned());
        }
    }

    fn say(&mut self, server: ServerId, cause: String) {
        if self.events.len() < EVENTS_MAX {
            let at = WallTime(clock::wall_nanos());
            let (kind, server) = (EventKind::Directory, Some(server));
            self.events.push(Event { at, kind, server, cause, lasted_ms: None });
        }
    }
}

/// What is to become of a heartbeat.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It only asked for its mark, which the log has now.
    Marked(DiskMark),
    /// It goes on. What the log has for its disk.
    Serving(DiskMark),
}

#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// An older copy, of a disk for which the log has this.
    OlderCopy { reason: String, pending: DiskMark },
    /// Try again, with a mark above this one.
    Again { reason: String, pending: DiskMark },
}

fn of_wire(mark: Option<DiskMark>) -> Mark {
    mark.map_or(Mark::NONE, |mark| Mark { number: mark.number, nonce: mark.nonce })
}

/// The last one that the log has, which has the highest number.
fn to_wire(marks: Marks) -> DiskMark {
    let Mark { number, nonce } = marks.pending;
    DiskMark { number, nonce }
}

/// What `beat` shows of the directory of `disk`, of which the log has `marks`, and what these become by it.
pub(crate) fn check(
    master: &Master,
    server: ServerId,
    disk: DiskId,
    marks: Marks,
    beat: &HeartbeatRequest,
) -> Result<(Shown, Marks), NotAdmitted> {
    let shown = Shown {
        last: of_wire(beat.mark),
        next: of_wire(beat.next_mark),
        loss_accepted: beat.loss_accepted || canary::sings("older-copy-believed"),
    };
    match marks.after(&shown) {
        Some(after) => Ok((shown, after)),
        None => Err(master.refuse_older_copy(server, disk, &shown, marks, beat.incarnation)),
    }
}

/// Looks at the marks of `beat`, from the registered `disk` of `server` of which the log has `marks`.
pub(crate) async fn admit(
    master: &Master,
    server: ServerId,
    disk: DiskId,
    marks: Marks,
    beat: &HeartbeatRequest,
) -> Result<Admitted, NotAdmitted> {
    let (shown, after) = check(master, server, disk, marks, beat)?;
    let pending = to_wire(marks);
    let again = |reason: &str| {
        let reason = format!("{server}: {reason}");
        Err(NotAdmitted::Again { reason, pending })
    };
    if beat.joining && (shown.next == Mark::NONE || after.pending != shown.next) {
        return again("the log has a higher mark than the one it asks for");
    }
    let known = lock(&master.cluster)
        .row(server)
        .is_some_and(|row| row.disk == disk && row.incarnation == beat.incarnation);
    if after != marks {
        let logged = master.propose_async(Change::MarkDisk { server, disk, shown });
        if known && !beat.joining {
            match tokio::time::timeout(LOG_MAX, logged).await {
                Ok(Ok(Outcome::Done)) => {}
                // The log has what it had, and the next heartbeat asks again.
                _ => return Ok(Admitted::Serving(pending)),
            }
        } else {
            match logged.await {
                Ok(Outcome::Done) => {}
                Ok(other) => return again(&format!("its mark is not taken: {other:?}")),
                Err(error) => return again(&format!("its mark is not logged: {error}")),
            }
        }
    }
    lock(&master.refusals).admit(server);
    let pending = to_wire(after);
    Ok(if beat.joining { Admitted::Marked(pending) } else { Admitted::Serving(pending) })
}

impl Master {
    fn refuse_older_copy(
        &self,
        server: ServerId,
        disk: DiskId,
        shown: &Shown,
        marks: Marks,
        incarnation: u64,
    ) -> NotAdmitted {
        let pending = to_wire(marks);
        let newer_runs = {
            let cluster = lock(&self.cluster);
            let same = cluster
                .row(server)
                .is_some_and(|row| row.disk == disk && incarnation <= row.incarnation);
            same && cluster.liveness(now(), server) == Liveness::Alive
        };
        if newer_runs {
            // A message of an earlier start that was long under way, or a copy beside the one that serves.
            let reason = format!("{server} is alive with a newer state of this data directory");
            return NotAdmitted::Again { reason, pending };
        }
        let reason = format!(
            "the data directory of {server} is an older copy: its last mark is {}, the newest state of this disk had \
             mark {}",
            shown.last.number, marks.confirmed.number
        );
        lock(&self.refusals).refuse(server, disk, &reason);
        NotAdmitted::OlderCopy { reason, pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_its_end_once() {
        let mut refusals = Refusals::default();
        let (server, disk) = (ServerId(2), DiskId(9));
        assert!(refusals.refuse(server, disk, "old"));
        assert!(!refusals.refuse(server, disk, "old"));
        assert_eq!(refusals.reason(server), Some("old"));
        refusals.admit(server);
        refusals.admit(server);
        assert_eq!(refusals.reason(server), None);
        let causes: Vec<_> = refusals.take_events().into_iter().map(|event| event.cause).collect();
        assert_eq!(
            causes,
            [
                "old; see docs/operations.md#a-directory-is-refused",
                "its directory is refused no longer"
            ]
        );
        assert!(refusals.take_events().is_empty());
    }
}
