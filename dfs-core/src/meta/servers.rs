//! Servers as people wish them, and the record of what happened.

use super::transaction::{Answer, Transaction};
use super::{Key, MetaStore, Record, Server, read};
use crate::cluster::overlay::{Overlay, OverlayKind};
use crate::command::Outcome;
use crate::event::{CAUSE_BYTES_MAX, EVENTS_MAX, Event, EventKind};
use crate::ids::{DiskId, ServerId};
use crate::job::{JobPhase, JobWork};
use crate::namespace::NamespaceError;
use crate::time::WallTime;

impl Transaction<'_> {
    pub(super) fn register_server(&mut self, server: ServerId, disk: DiskId) -> Answer {
        let known = read::server(self.store, server);
        if known.as_ref().is_none_or(|known| known.disk != disk) {
            let registered = self.now;
            let marks = known.as_ref().and_then(|known| known.marks_of(disk)).unwrap_or_default();
            let former = known.as_ref().map(|known| known.former_with(disk)).unwrap_or_default();
            // Wishes are of the server, whatever disk it brings; only the end of a disk is of that disk.
            let overlays = known
                .filter(|known| known.decommissioned().is_none())
                .map(|known| known.overlays)
                .unwrap_or_default();
            let record = Server { disk, registered, overlays, marks, former };
            self.store.put(Key::Server(server), Record::Server(record));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn known_server(&self, server: ServerId) -> Result<Server, NamespaceError> {
        read::server(self.store, server)
            .filter(|known| known.decommissioned().is_none())
            .ok_or_else(|| NamespaceError::Invalid(format!("unknown server {server}")))
    }

    /// Begins an overlay; one that is there already goes on with the new end.
    pub(super) fn set_overlay(
        &mut self,
        server: ServerId,
        kind: OverlayKind,
        until: Option<WallTime>,
        by: &str,
        cause: &str,
    ) -> Answer {
        let mut record = self.known_server(server)?;
        let drained = record.overlays.iter().any(|known| known.kind == OverlayKind::Draining);
        if kind == OverlayKind::Decommissioned && !drained {
            return Err(NamespaceError::Invalid(format!("{server} is not drained")));
        }
        let by: String = by.chars().take(200).collect();
        let ends = until.map_or_else(String::new, |until| {
            format!(" for {} s", until.0.saturating_sub(self.now.0).max(0) / 1_000_000_000)
        });
        let text =
            format!("{kind}{ends} by {by}{}{cause}", if cause.is_empty() { "" } else { ": " });
        match record.overlays.iter_mut().find(|overlay| overlay.kind == kind) {
            Some(overlay) if overlay.until == until => return Ok(Outcome::Done),
            Some(overlay) => *overlay = Overlay { until, by: by.clone(), ..overlay.clone() },
            None => record.overlays.push(Overlay { kind, since: self.now, until, by: by.clone() }),
        }
        if kind == OverlayKind::Draining {
            self.begin_work(&JobWork::Drain { server }, &by, 0)?;
        }
        if kind == OverlayKind::Decommissioned {
            record.overlays.retain(|overlay| overlay.kind == kind);
            self.end_drain_job(server, JobPhase::Done);
        }
        self.store.put(Key::Server(server), Record::Server(record));
        self.note(EventKind::Wished, Some(server), &text, None);
        Ok(Outcome::Done)
    }

    /// Ends an overlay. `only_until`: unless somebody gave it another end meanwhile. Not there: nothing happens.
    pub(super) fn clear_overlay(
        &mut self,
        server: ServerId,
        kind: OverlayKind,
        only_until: Option<WallTime>,
        by: &str,
    ) -> Answer {
        let mut record = self.known_server(server)?;
        let ends = |overlay: &Overlay| {
            overlay.kind == kind && (only_until.is_none() || overlay.until == only_until)
        };
        let Some(at) = record.overlays.iter().position(ends) else { return Ok(Outcome::Done) };
        let ended = record.overlays.remove(at);
        self.store.put(Key::Server(server), Record::Server(record));
        if kind == OverlayKind::Draining {
            self.end_drain_job(server, JobPhase::Cancelled);
        }
        let lasted = self.now.0.saturating_sub(ended.since.0) / 1_000_000;
        let text = format!("no longer {kind}: {by}");
        self.note(EventKind::Reverted, Some(server), &text, u64::try_from(lasted).ok());
        Ok(Outcome::Done)
    }

    pub(super) fn note_all(&mut self, events: &[Event]) -> Answer {
        for event in events {
            self.push_event(event.clone());
        }
        Ok(Outcome::Done)
    }

    pub(super) fn note(
        &mut self,
        kind: EventKind,
        server: Option<ServerId>,
        cause: &str,
        lasted: Option<u64>,
    ) {
        let cause = cause.to_owned();
        self.push_event(Event { at: self.now, kind, server, cause, lasted_ms: lasted });
    }

    fn push_event(&mut self, mut event: Event) {
        let mut end = CAUSE_BYTES_MAX.min(event.cause.len());
        while !event.cause.is_char_boundary(end) {
            end -= 1;
        }
        event.cause.truncate(end);
        let number = self.superblock.next_event;
        self.superblock.next_event += 1;
        self.store.put(Key::Event(number), Record::Event(event));
        if let Some(old) = number.checked_sub(EVENTS_MAX) {
            self.store.delete(&Key::Event(old));
        }
    }
}

/// At most `limit` events from number `from` on, with the number of each.
#[must_use]
pub fn events(store: &dyn MetaStore, from: u64, limit: usize) -> Vec<(u64, Event)> {
    let below = Key::Event(u64::MAX);
    let page = store.range(&Key::Event(from), &below, limit).into_iter();
    page.filter_map(|pair| match pair {
        (Key::Event(number), Record::Event(event)) => Some((number, event)),
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Change;
    use crate::meta::MemStore;
    use crate::meta::samples::{run_at, started};

    const SERVER: ServerId = ServerId(3);

    fn made() -> MemStore {
        let mut store = started();
        run(&mut store, 2, Change::RegisterServer { server: SERVER, disk: DiskId(9) });
        store
    }

    fn run(store: &mut MemStore, at: i64, change: Change) -> Outcome {
        let at = WallTime(at * 1_000_000_000);
        run_at(store, at, change)
    }

    fn suspend(until: Option<i64>) -> Change {
        Change::SetOverlay {
            server: SERVER,
            kind: OverlayKind::Suspended,
            until: until.map(|at| WallTime(at * 1_000_000_000)),
            by: "ada".to_owned(),
            cause: String::new(),
        }
    }

    fn clear(only_until: Option<i64>) -> Change {
        Change::ClearOverlay {
            server: SERVER,
            kind: OverlayKind::Suspended,
            only_until: only_until.map(|at| WallTime(at * 1_000_000_000)),
            by: "bob".to_owned(),
        }
    }

    fn causes(store: &MemStore) -> Vec<String> {
        events(store, 1, 100).into_iter().map(|(_, event)| event.cause).collect()
    }

    #[test]
    fn a_wish_is_kept_with_who_and_when_and_a_second_one_changes_nothing() {
        let mut store = made();
        assert_eq!(run(&mut store, 10, suspend(None)), Outcome::Done);
        assert_eq!(run(&mut store, 11, suspend(None)), Outcome::Done);
        // A server that comes with another disk is still suspended.
        run(&mut store, 12, Change::RegisterServer { server: SERVER, disk: DiskId(10) });
        let overlays = read::server(&store, SERVER).unwrap().overlays;
        assert_eq!(overlays.len(), 1);
        assert_eq!((overlays[0].since.0, overlays[0].by.as_str()), (10_000_000_000, "ada"));
        assert_eq!(causes(&store), ["suspended by ada"]);
        run(&mut store, 20, clear(None));
        run(&mut store, 21, clear(None));
        assert!(read::server(&store, SERVER).unwrap().overlays.is_empty());
        assert_eq!(causes(&store)[1..], ["no longer suspended: bob"]);
        assert_eq!(events(&store, 2, 9)[0].1.lasted_ms, Some(10_000));
    }

    #[test]
    fn an_end_that_was_moved_does_not_come_at_the_old_time() {
        let mut store = made();
        run(&mut store, 10, suspend(Some(20)));
        run(&mut store, 11, suspend(Some(60)));
        run(&mut store, 20, clear(Some(20)));
        assert_eq!(read::server(&store, SERVER).unwrap().overlays.len(), 1);
        run(&mut store, 60, clear(Some(60)));
        assert!(read::server(&store, SERVER).unwrap().overlays.is_empty());
    }

    #[test]
    fn a_server_is_decommissioned_after_a_drain_for_good_and_by_its_disk() {
        let mut store = made();
        let set = |kind| Change::SetOverlay {
            server: SERVER,
            kind,
            until: None,
            by: "ada".to_owned(),
            cause: String::new(),
        };
        let gone = set(OverlayKind::Decommissioned);
        assert!(matches!(run(&mut store, 3, gone.clone()), Outcome::Refused(_)), "not drained");
        run(&mut store, 4, set(OverlayKind::Draining));
        assert_eq!(run(&mut store, 5, gone.clone()), Outcome::Done);
        let record = read::server(&store, SERVER).unwrap();
        assert_eq!(record.overlays.len(), 1);
        assert_eq!(record.decommissioned().unwrap().since.0, 5_000_000_000);
        assert_eq!(read::servers(&store), []);
        // Nothing brings this disk back, and no chunk can name it.
        for change in [gone, clear(None), suspend(None)] {
            assert!(matches!(run(&mut store, 6, change), Outcome::Refused(_)));
        }
        run(&mut store, 7, Change::RegisterServer { server: SERVER, disk: DiskId(9) });
        assert_eq!(read::server(&store, SERVER).unwrap(), record);
        assert_eq!(crate::check::check(&store), []);
        // A new disk under the old name is a new server.
        run(&mut store, 8, Change::RegisterServer { server: SERVER, disk: DiskId(10) });
        assert_eq!(read::server(&store, SERVER).unwrap().overlays, []);
        assert_eq!(read::servers(&store).len(), 1);
    }

    #[test]
    fn an_unknown_server_is_refused() {
        let mut store = made();
        let change = Change::ClearOverlay {
            server: ServerId(9),
            kind: OverlayKind::Suspended,
            only_until: None,
            by: String::new(),
        };
        assert!(matches!(run(&mut store, 5, change), Outcome::Refused(_)));
    }

    #[test]
    fn only_the_last_events_are_kept_and_their_numbers_go_on() {
        let mut store = made();
        let event = Event {
            at: WallTime(1),
            kind: EventKind::Alive,
            server: None,
            cause: "ä".repeat(CAUSE_BYTES_MAX),
            lasted_ms: None,
        };
        for _ in 0..=EVENTS_MAX / 100 {
            run(&mut store, 1, Change::Note { events: vec![event.clone(); 100] });
        }
        let kept = events(&store, 0, usize::MAX);
        assert_eq!(kept.len() as u64, EVENTS_MAX);
        assert_eq!(kept[0].0, 101, "with the beginning of the reign");
        assert!(kept[0].1.cause.len() <= CAUSE_BYTES_MAX);
        assert_eq!(crate::check::check(&store), []);
    }
}
