//! Watches servers: what the detector finds becomes events, wishes end when their time is over, drills are timed.
//!
//! A thread of its own: configuration changes take seconds, and detection must not wait for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_core::chunk::Chunk;
use dfs_core::cluster::flapping::Flapping;
use dfs_core::cluster::overlay::{OverlayKind, Room};
use dfs_core::cluster::{Copies, Liveness};
use dfs_core::command::{Change, Outcome};
use dfs_core::event::{Event, EventKind};
use dfs_core::exposure::settled;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::meta;
use dfs_core::time::{Timestamp, WallTime};
use dfs_proto::control::DrillReply;
use dfs_service::clock;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::state::{Master, lock, now};

const TICK: Duration = Duration::from_millis(100);
/// Configuration changes are told together once there were none for so long …
const QUIET_MS: u64 = 1_000;
/// … or so long after the first.
const TOGETHER_MS: u64 = 10_000;
/// Looking at all chunks takes at most one part in so many of the time.
const SCAN_SHARE: u64 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrillKind {
    Failover,
    Recover,
}

/// One drill, from the wish on. Of each server the last is kept.
#[derive(Clone, Debug)]
pub struct Drill {
    kind: DrillKind,
    began: Timestamp,
    noticed_ms: Option<u64>,
    safe_ms: Option<u64>,
    short: u64,
    copied_before: u64,
    reconfigured_before: u64,
    reported: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    state: Liveness,
    since: Timestamp,
    /// Silent or cut off, not only late.
    down: bool,
    /// Down on purpose.
    excused: bool,
    /// Of the process that was heard of, if one was.
    incarnation: Option<u64>,
}

/// Chunks that are not safe, by one look at all of them.
#[derive(Clone, Default, Debug)]
struct Scan {
    short: u64,
    lost: u64,
    first_lost: Vec<ChunkId>,
}

#[derive(Debug)]
struct Watch {
    seen: BTreeMap<ServerId, Seen>,
    flapping: Flapping,
    /// Something changed since the last scan.
    scan_due: bool,
    scan_after: Timestamp,
    lost: u64,
    told: u64,
    told_bytes: u64,
    first_untold: Option<Timestamp>,
    last_count: (u64, Timestamp),
    events: Vec<Event>,
}

fn millis_since(at: Timestamp) -> u64 {
    now().nanos_since(at) / 1_000_000
}

/// Until `shutdown`.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    let mut watch = Watch {
        seen: BTreeMap::new(),
        flapping: Flapping::default(),
        scan_due: true,
        scan_after: now(),
        lost: 0,
        told: 0,
        told_bytes: 0,
        first_untold: None,
        last_count: (0, now()),
        events: Vec::new(),
    };
    while !shutdown.wait_for(TICK) {
        master.refresh_overlays();
        end_wishes(master);
        watch.transitions(master);
        watch.scan(master);
        watch.drills(master);
        watch.configurations(master);
        watch.events.extend(lock(&master.health).look(master));
        watch.events.extend(lock(&master.refusals).take_events());
        watch.write(master);
    }
}

/// Takes back what was wished until now.
fn end_wishes(master: &Arc<Master>) {
    let at = WallTime(clock::wall_nanos());
    for (server, record) in meta::servers(&master.reader()) {
        for overlay in record.overlays {
            let Some(until) = overlay.until.filter(|until| until.0 <= at.0) else { continue };
            let change = Change::ClearOverlay {
                server,
                kind: overlay.kind,
                only_until: Some(until),
                by: "its time is over".to_owned(),
            };
            match master.propose(None, change) {
                Ok(Outcome::Refused(error)) => tracing::warn!(%server, %error, "end a wish"),
                // Tried again at the next tick.
                Err(error) => tracing::debug!(%server, %error, "end a wish"),
                Ok(_) if overlay.kind == OverlayKind::Suspended => {
                    master.begin_drill(server, DrillKind::Recover);
                }
                Ok(_) => {}
            }
            master.refresh_overlays();
        }
    }
}

impl Watch {
    fn say(
        &mut self,
        kind: EventKind,
        server: Option<ServerId>,
        cause: String,
        lasted: Option<u64>,
    ) {
        let at = WallTime(clock::wall_nanos());
        self.events.push(Event { at, kind, server, cause, lasted_ms: lasted });
    }

    fn transitions(&mut self, master: &Arc<Master>) {
        for (server, _) in meta::servers(&master.reader()) {
            let (state, down, excused, cause, incarnation) = {
                let (cluster, now) = (lock(&master.cluster), now());
                let row = cluster.row(server);
                if row.is_none() && (master.is_warming() || cluster.is_introduced(now, server)) {
                    continue;
                }
                let state = cluster.liveness(now, server);
                let down = state == Liveness::Dead || row.is_some_and(|row| !row.connected);
                let excused = [OverlayKind::Suspended, OverlayKind::Maintenance]
                    .into_iter()
                    .any(|kind| cluster.has_overlay(server, kind));
                let incarnation = row.map(|row| row.incarnation);
                (state, down, excused, cluster.cause(now, server), incarnation)
            };
            let before = self.seen.get(&server).copied();
            // It went and was here again before anybody looked.
            let restarted = state == Liveness::Alive
                && before.is_some_and(|it| it.state == state && it.incarnation != incarnation);
            if let Some(before) = before.filter(|before| before.state == state && !restarted) {
                let seen = Seen {
                    down: before.down || down,
                    excused: before.excused || excused,
                    incarnation,
                    ..before
                };
                self.seen.insert(server, seen);
                continue;
            }
            let kept = before.filter(|_| state != Liveness::Alive);
            let seen = Seen {
                state,
                since: now(),
                down: down || kept.is_some_and(|before| before.down),
                excused: excused || kept.is_some_and(|before| before.excused),
                incarnation,
            };
            let cause = if restarted { "started anew".to_owned() } else { cause };
            self.seen.insert(server, seen);
            self.scan_due = true;
            master.changed.tell();
            let lasted = before.map(|before| millis_since(before.since));
            let kind = match state {
                Liveness::Alive => EventKind::Alive,
                Liveness::Suspect => EventKind::Suspect,
                Liveness::Dead => EventKind::Dead,
            };
            if state == Liveness::Dead {
                master.notice(format!("{server} is dead: {cause}; see {}", Page::DeadServer));
            } else {
                tracing::info!(%server, %kind, cause, "server");
            }
            self.say(kind, Some(server), cause, lasted);
            let went = |before: Seen| (before.down || restarted) && !before.excused;
            if state == Liveness::Alive && before.is_some_and(went) {
                self.on_return(master, server);
            }
        }
    }

    /// A server that went by itself is here again.
    fn on_return(&mut self, master: &Master, server: ServerId) {
        let Some(millis) = self.flapping.on_return(now(), server) else { return };
        let until = clock::wall_nanos()
            .saturating_add(i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000_000));
        let change = Change::SetOverlay {
            server,
            kind: OverlayKind::Probation,
            until: Some(WallTime(until)),
            by: "the master".to_owned(),
            cause: format!(
                "went and came back more than {} times in {} min; no new chunks while there is another place",
                dfs_core::cluster::flapping::RETURNS_MAX,
                dfs_core::cluster::flapping::WINDOW_MS / 60_000
            ),
        };
        if let Err(error) = master.propose(None, change) {
            tracing::warn!(%server, %error, "probation not logged");
        }
        master.refresh_overlays();
    }

    /// Looks at all chunks if something changed or a drill waits for them.
    fn scan(&mut self, master: &Master) {
        let count = master.reconfigured.load(Ordering::Relaxed);
        if self.last_count.0 != count {
            self.last_count = (count, now());
            self.scan_due = true;
        }
        let waited_for = lock(&master.drills)
            .values()
            .any(|drill| !drill.reported && drill.noticed_ms.is_some() && drill.safe_ms.is_none());
        if !(self.scan_due || waited_for) || now() < self.scan_after || master.is_warming() {
            return;
        }
        let began = now();
        let scan = scan(master);
        let pause = now().nanos_since(began).saturating_mul(SCAN_SHARE);
        self.scan_after = Timestamp(now().0.saturating_add(pause));
        self.scan_due = false;
        if self.lost < scan.lost {
            let ids: Vec<String> =
                scan.first_lost.iter().map(|chunk| chunk.0.to_string()).collect();
            let more = if (ids.len() as u64) < scan.lost { ", …" } else { "" };
            let text = format!(
                "{} chunk(s) have no good copy on any disk that is known: {}{more}",
                scan.lost,
                ids.join(", ")
            );
            self.say(EventKind::Lost, None, text, None);
        }
        self.lost = scan.lost;
        for drill in lock(&master.drills).values_mut().filter(|drill| !drill.reported) {
            drill.short = scan.short;
            // What was found is as of the beginning.
            if drill.safe_ms.is_none()
                && scan.short == 0
                && drill
                    .noticed_ms
                    .is_some_and(|noticed| noticed * 1_000_000 <= began.nanos_since(drill.began))
            {
                drill.safe_ms = Some(millis_since(drill.began));
            }
        }
    }

    fn drills(&mut self, master: &Master) {
        let mut reports = Vec::new();
        let mut drills = lock(&master.drills);
        for (server, drill) in drills.iter_mut().filter(|(_, drill)| !drill.reported) {
            let wanted = match drill.kind {
                DrillKind::Failover => Liveness::Dead,
                DrillKind::Recover => Liveness::Alive,
            };
            let seen = self.seen.get(server).is_some_and(|seen| seen.state == wanted);
            // One that comes back before its silence was noticed was alive all the time.
            let seen = seen
                && (drill.kind == DrillKind::Failover
                    || lock(&master.cluster)
                        .row(*server)
                        .is_some_and(|row| drill.began < row.heard_at));
            if drill.noticed_ms.is_none() && seen {
                drill.noticed_ms = Some(millis_since(drill.began));
                self.scan_due = true;
            }
            if drill.safe_ms.is_some() {
                drill.reported = true;
                reports.push((*server, drill.text(master)));
            }
        }
        drop(drills);
        for (server, text) in reports {
            self.say(EventKind::Report, Some(server), text, None);
        }
        let replaced = std::mem::take(&mut *lock(&master.replaced_drills));
        for (server, text) in replaced {
            self.say(EventKind::Report, Some(server), text, None);
        }
    }

    /// Tells of configuration changes, many at once.
    fn configurations(&mut self, master: &Master) {
        let count = master.reconfigured.load(Ordering::Relaxed);
        if count == self.told {
            return;
        }
        let first = *self.first_untold.get_or_insert_with(now);
        let quiet = QUIET_MS <= millis_since(self.last_count.1);
        if !quiet && millis_since(first) < TOGETHER_MS {
            return;
        }
        let bytes = master.copied_bytes.load(Ordering::Relaxed);
        let text = format!(
            "{} configuration change(s) of chunks, {} bytes copied between servers",
            count - self.told,
            bytes - self.told_bytes
        );
        self.say(EventKind::Reconfigured, None, text, Some(millis_since(first)));
        (self.told, self.told_bytes, self.first_untold) = (count, bytes, None);
    }

    fn write(&mut self, master: &Master) {
        if self.events.is_empty() {
            return;
        }
        let events = self.events.clone();
        match master.propose(None, Change::Note { events }) {
            Ok(_) => self.events.clear(),
            // Kept for the next tick, not without a bound.
            Err(error) => {
                tracing::debug!(%error, "note events");
                self.events.truncate(1_000);
            }
        }
    }
}

fn scan(master: &Master) -> Scan {
    let mut scan = Scan::default();
    let replication = master.replication as usize;
    master.for_each_chunk(|chunk, record| {
        let look = |record: &Chunk| {
            let written_lately = master.was_written_lately(chunk);
            lock(&master.cluster).copies(now(), chunk, record, written_lately)
        };
        let is_short = |copies: &Copies| copies.good < replication;
        let Some(copies) = settled(record, || master.chunk(chunk), look, is_short) else { return };
        if !is_short(&copies) {
            return;
        }
        scan.short += 1;
        if copies.good == 0 && !copies.may_return {
            scan.lost += 1;
            if scan.first_lost.len() < 5 {
                scan.first_lost.push(chunk);
            }
        }
    });
    scan
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

impl Drill {
    fn copied(&self, master: &Master) -> u64 {
        master.copied_bytes.load(Ordering::Relaxed).saturating_sub(self.copied_before)
    }

    fn text(&self, master: &Master) -> String {
        let (kind, noticed) = match self.kind {
            DrillKind::Failover => ("failover", "dead"),
            DrillKind::Recover => ("recover", "alive"),
        };
        let noticed = self.noticed_ms.map_or_else(
            || format!("never found {noticed}"),
            |millis| format!("{noticed} after {}", seconds(millis)),
        );
        let safe = self.safe_ms.map_or_else(
            || format!("not all chunks were safe: {} short", self.short),
            |millis| format!("all chunks safe after {}", seconds(millis)),
        );
        format!("{kind}: {noticed}, {safe}, {} bytes copied between servers", self.copied(master))
    }
}

impl Master {
    /// `server` was told to fall silent, or to come back.
    pub fn begin_drill(&self, server: ServerId, kind: DrillKind) {
        let drill = Drill {
            kind,
            began: now(),
            noticed_ms: None,
            safe_ms: None,
            short: 0,
            copied_before: self.copied_bytes.load(Ordering::Relaxed),
            reconfigured_before: self.reconfigured.load(Ordering::Relaxed),
            reported: false,
        };
        let before = lock(&self.drills).insert(server, drill);
        if let Some(before) = before.filter(|before| !before.reported) {
            lock(&self.replaced_drills).push((server, before.text(self)));
        }
    }

    #[must_use]
    pub fn drill_report(&self, server: ServerId) -> DrillReply {
        let (state, room) = {
            let cluster = lock(&self.cluster);
            let now = now();
            let open = cluster.rows().keys().filter(|server| {
                cluster.liveness(now, **server) == Liveness::Alive
                    && cluster.room(**server) != Room::Closed
            });
            (cluster.liveness(now, server), open.count())
        };
        let state = match state {
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
        };
        let drills = lock(&self.drills);
        let Some(drill) = drills.get(&server) else {
            return DrillReply { state: state.to_owned(), ..DrillReply::default() };
        };
        let stuck = drill.noticed_ms.is_some()
            && drill.safe_ms.is_none()
            && room < self.replication as usize;
        let because =
            format!("{room} server(s) are left for {} copies of each chunk", self.replication);
        DrillReply {
            found: true,
            kind: match drill.kind {
                DrillKind::Failover => "failover",
                DrillKind::Recover => "recover",
            }
            .to_owned(),
            state: state.to_owned(),
            running_ms: millis_since(drill.began),
            noticed_ms: drill.noticed_ms,
            safe_ms: drill.safe_ms,
            short_chunks: drill.short,
            copied_bytes: drill.copied(self),
            reconfigured: self
                .reconfigured
                .load(Ordering::Relaxed)
                .saturating_sub(drill.reconfigured_before),
            not_safe_because: if stuck { because } else { String::new() },
        }
    }
}
