//! Wishes about servers, how drills go, and the record of events.

use std::sync::Arc;
use std::time::Duration;

use dfs_core::chunk::Chunk;
use dfs_core::cluster::Liveness;
use dfs_core::cluster::overlay::OverlayKind;
use dfs_core::command::{Change, Outcome};
use dfs_core::exposure::settled;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::meta;
use dfs_core::time::WallTime;
use dfs_proto::control::server_admin_server::ServerAdmin;
use dfs_proto::control::wishes_server::Wishes;
use dfs_proto::control::{
    AskReply, AskRequest, DecommissionReply, DecommissionRequest, DrainReply, DrainRequest,
    DrillReply, DrillRequest, Event, EventsReply, EventsRequest, Overlay, RebalanceReply,
    RebalanceRequest, RouteReply, RouteRequest, WishReply, WishRequest,
};
use dfs_service::clock;
use tonic::{Request, Response, Status};

use crate::control::Control;
use crate::state::{Master, lock, now};
use crate::watch::DrillKind;

/// A server that is to be silent asks this often whether it still is, at the least.
const ASK_AGAIN_MS: u64 = 500;
/// Chunks named in a refusal.
const NAMED_MAX: usize = 5;
/// A server is out of the chunk map if it was so twice: what was under way at the first look has come in by then.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const EVENTS_PAGE: u32 = 1_000;
const EVENTS_WAIT_MAX_MS: u32 = 30_000;

#[tonic::async_trait]
impl Wishes for Control {
    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        let AskRequest { server, fs: _ } = request.into_inner();
        let server = id(&server)?;
        let master = &self.0;
        let suspended = lock(&master.cluster).has_overlay(server, OverlayKind::Suspended);
        let ask_again_ms = master.config.profile.interval_ms.min(ASK_AGAIN_MS);
        Ok(Response::new(AskReply {
            suspended,
            ask_again_ms: u32::try_from(ask_again_ms).unwrap_or(500),
            fs: master.fs.0.to_be_bytes().to_vec(),
        }))
    }
}

fn id(text: &str) -> Result<ServerId, Status> {
    text.parse()
        .map_err(|error: dfs_core::ids::BadServerId| Status::invalid_argument(error.to_string()))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<Response<T>, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map(Response::new)
}

#[tonic::async_trait]
impl ServerAdmin for Control {
    async fn wish(&self, request: Request<WishRequest>) -> Result<Response<WishReply>, Status> {
        let master = Arc::clone(&self.0);
        let request = request.into_inner();
        blocking(move || wish(&master, &request)).await
    }

    async fn drill(&self, request: Request<DrillRequest>) -> Result<Response<DrillReply>, Status> {
        let server = id(&request.into_inner().server)?;
        let master = Arc::clone(&self.0);
        blocking(move || {
            check_known(&master, server)?;
            Ok(master.drill_report(server))
        })
        .await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let server = id(&request.into_inner().server)?;
        let master = Arc::clone(&self.0);
        blocking(move || {
            let record = meta::server(&master.reader(), server);
            if record.is_some_and(|record| record.decommissioned().is_some()) {
                return Ok(DrainReply { decommissioned: true, ..DrainReply::default() });
            }
            check_known(&master, server)?;
            Ok(master.drain_progress(server))
        })
        .await
    }

    async fn rebalance(
        &self,
        request: Request<RebalanceRequest>,
    ) -> Result<Response<RebalanceReply>, Status> {
        let master = Arc::clone(&self.0);
        let request = request.into_inner();
        blocking(move || crate::balance::rebalance(&master, &request)).await
    }

    async fn route(&self, request: Request<RouteRequest>) -> Result<Response<RouteReply>, Status> {
        crate::routing::route(&self.0, &request.into_inner()).map(Response::new)
    }

    async fn decommission(
        &self,
        request: Request<DecommissionRequest>,
    ) -> Result<Response<DecommissionReply>, Status> {
        let DecommissionRequest { server, by } = request.into_inner();
        let server = id(&server)?;
        let master = Arc::clone(&self.0);
        blocking(move || {
            let record = meta::server(&master.reader(), server);
            if record.is_some_and(|record| record.decommissioned().is_some()) {
                return Ok(DecommissionReply { changed: false });
            }
            check_known(&master, server)?;
            master.check_is_empty(server)?;
            std::thread::sleep(LOOK_AGAIN);
            let _one_at_a_time = lock(&master.wishing);
            master.check_is_empty(server)?;
            let kind = OverlayKind::Decommissioned;
            let change = Change::SetOverlay { server, kind, until: None, by, cause: String::new() };
            propose(&master, change)?;
            master.notice(format!("{server} is decommissioned"));
            Ok(DecommissionReply { changed: true })
        })
        .await
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<EventsReply>, Status> {
        let EventsRequest { mut from, max, wait_ms, last } = request.into_inner();
        let master = Arc::clone(&self.0);
        let max = max.clamp(1, EVENTS_PAGE);
        let until = tokio::time::Instant::now()
            + Duration::from_millis(u64::from(wait_ms.min(EVENTS_WAIT_MAX_MS)));
        if let Some(last) = last {
            from = next_event(&master).saturating_sub(u64::from(last));
        }
        loop {
            let found = meta::events(&master.reader(), from, max as usize);
            if found.is_empty() && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            let next = match found.last() {
                Some((number, _)) => number + 1,
                // Not further than there is: a restored master may know fewer.
                None => from.min(next_event(&master)),
            };
            let events = found.into_iter().map(|(number, event)| Event {
                number,
                at_ns: event.at.0,
                kind: event.kind.to_string(),
                server: event.server.map(|server| server.to_string()).unwrap_or_default(),
                cause: event.cause,
                lasted_ms: event.lasted_ms,
            });
            return Ok(Response::new(EventsReply { events: events.collect(), next }));
        }
    }
}

fn next_event(master: &Master) -> u64 {
    meta::superblock(&master.reader()).map_or(0, |superblock| superblock.next_event)
}

/// The server of this name, which the cluster has.
pub(crate) fn known_id(master: &Master, name: &str) -> Result<ServerId, Status> {
    let server = id(name)?;
    check_known(master, server)?;
    Ok(server)
}

fn check_known(master: &Master, server: ServerId) -> Result<meta::Server, Status> {
    let reader = master.reader();
    match meta::server(&reader, server) {
        Some(record) if record.decommissioned().is_none() => return Ok(record),
        Some(_) => {
            return Err(Status::not_found(format!("{server} was decommissioned")));
        }
        None => {}
    }
    let known: Vec<String> =
        meta::servers(&reader).into_iter().map(|(known, _)| known.to_string()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(Status::not_found(format!("unknown server {server}: this cluster has {known}")))
}

fn wish(master: &Arc<Master>, request: &WishRequest) -> Result<WishReply, Status> {
    let WishRequest { server, overlay, end, for_ms, force, by } = request;
    let server = id(server)?;
    let kind = match overlay.as_str() {
        "suspended" => OverlayKind::Suspended,
        "maintenance" => OverlayKind::Maintenance,
        "draining" => OverlayKind::Draining,
        other => return Err(Status::invalid_argument(format!("unknown wish '{other}'"))),
    };
    // Two at once could each be harmless alone.
    let _one_at_a_time = lock(&master.wishing);
    let record = check_known(master, server)?;
    let known = record.overlays.iter().find(|overlay| overlay.kind == kind);
    let now = WallTime(clock::wall_nanos());
    let until = for_ms.map(|millis| {
        let nanos = i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        WallTime(now.0.saturating_add(nanos))
    });
    let is_new = known.is_none();
    let changed = match (end, known) {
        (true, known) => known.is_some(),
        (false, known) => known.is_none_or(|known| known.until != until),
    };
    if changed {
        if kind == OverlayKind::Suspended && !end && is_new && !force {
            let danger = master.danger_without(server);
            if let Some(text) = danger.refusal(server, master.min_replicas) {
                let away = master.away_besides(server);
                return Err(Status::failed_precondition(format!("{text}{away}")));
            }
        }
        if kind == OverlayKind::Draining && !end && is_new {
            master.check_can_drain(server)?;
        }
        let by = by.clone();
        let change = if *end {
            Change::ClearOverlay { server, kind, only_until: None, by }
        } else {
            let cause = if *force { "forced" } else { "" }.to_owned();
            Change::SetOverlay { server, kind, until, by, cause }
        };
        propose(master, change)?;
        if kind == OverlayKind::Suspended && (*end || is_new) {
            master.begin_drill(server, if *end { DrillKind::Recover } else { DrillKind::Failover });
        }
    }
    if kind == OverlayKind::Draining {
        master.refresh_work();
    }
    let overlays = check_known(master, server)?.overlays;
    Ok(WishReply {
        changed,
        log_index: master.group.applied_index().unwrap_or(0),
        overlays: overlays.iter().map(overlay_to_wire).collect(),
    })
}

fn propose(master: &Master, change: Change) -> Result<(), Status> {
    match master.propose(None, change) {
        Ok(Outcome::Refused(error)) => Err(Status::failed_precondition(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
        Ok(_) => {
            master.refresh_overlays();
            Ok(())
        }
    }
}

#[must_use]
pub fn overlay_to_wire(overlay: &dfs_core::cluster::overlay::Overlay) -> Overlay {
    Overlay {
        kind: overlay.kind.to_string(),
        since_ns: overlay.since.0,
        until_ns: overlay.until.map(|until| until.0),
        by: overlay.by.clone(),
    }
}

/// What would be if one server fell silent.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Danger {
    /// Chunks without a copy then: how many, and the first of them.
    pub last_copies: (u64, Vec<ChunkId>),
    /// Chunks with copies, but too few to be written.
    pub below_minimum: (u64, Vec<ChunkId>),
}

pub(crate) fn count(into: &mut (u64, Vec<ChunkId>), chunk: ChunkId) {
    into.0 += 1;
    if into.1.len() < NAMED_MAX {
        into.1.push(chunk);
    }
}

pub(crate) fn named((count, first): &(u64, Vec<ChunkId>)) -> String {
    let ids: Vec<String> = first.iter().map(|chunk| chunk.0.to_string()).collect();
    let more = if (first.len() as u64) < *count { ", …" } else { "" };
    let chunks = if *count == 1 { "chunk" } else { "chunks" };
    format!("{count} {chunks} ({}{more})", ids.join(", "))
}

impl Danger {
    /// Why it must not be, if so.
    #[must_use]
    pub fn refusal(&self, server: ServerId, min_replicas: u32) -> Option<String> {
        let mut reasons = Vec::new();
        if 0 < self.last_copies.0 {
            reasons.push(format!("the last good copy of {}", named(&self.last_copies)));
        }
        if 0 < self.below_minimum.0 {
            reasons.push(format!(
                "a copy of {} of which fewer than {min_replicas} would be left",
                named(&self.below_minimum)
            ));
        }
        (!reasons.is_empty()).then(|| format!("{server} holds {}", reasons.join(", and ")))
    }
}

impl Master {
    /// Takes over what the log says of servers.
    pub fn refresh_overlays(&self) {
        let (servers, gone) = {
            let reader = self.reader();
            (meta::servers(&reader), meta::decommissioned(&reader))
        };
        let overlays = servers
            .into_iter()
            .filter(|(_, record)| !record.overlays.is_empty())
            .map(|(server, record)| {
                (server, record.overlays.iter().map(|overlay| overlay.kind).collect())
            })
            .collect();
        let mut cluster = lock(&self.cluster);
        cluster.set_overlays(overlays);
        for (server, record) in gone {
            // Its name may have come back with another disk since.
            if cluster.row(server).is_some_and(|row| row.disk == record.disk) {
                cluster.forget(server);
            }
        }
        drop(cluster);
        self.wished.send_modify(|count| *count += 1);
    }

    /// Who else is not alive, and why, as the end of a sentence.
    fn away_besides(&self, server: ServerId) -> String {
        let known = meta::servers(&self.reader());
        let (cluster, now) = (lock(&self.cluster), now());
        let away: Vec<String> = known
            .into_iter()
            .map(|(other, _)| (other, cluster.liveness(now, other)))
            .filter(|(other, liveness)| *other != server && *liveness != Liveness::Alive)
            .map(|(other, liveness)| {
                format!("{other} is {liveness}: {}", cluster.cause(now, other))
            })
            .collect();
        match away.is_empty() {
            true => String::new(),
            false => format!(" ({})", away.join("; ")),
        }
    }

    /// What becomes of chunks if `server` falls silent, too.
    #[must_use]
    pub fn danger_without(&self, server: ServerId) -> Danger {
        let mut danger = Danger::default();
        let minimum = self.min_replicas as usize;
        self.for_each_chunk(|chunk, record| {
            let look = |record: &Chunk| {
                if !record.active.members.iter().any(|member| member.server == server) {
                    return (0, 0);
                }
                let unreported = self.was_written_lately(chunk);
                let cluster = lock(&self.cluster);
                let mut left = record.clone();
                left.active
                    .members
                    .retain(|member| !cluster.has_overlay(member.server, OverlayKind::Suspended));
                let before = cluster.copies(now(), chunk, &left, unreported).good;
                left.active.members.retain(|member| member.server != server);
                (before, cluster.copies(now(), chunk, &left, unreported).good)
            };
            let is_bad = |(before, after): &(usize, usize)| after < before && *after < minimum;
            let looked = settled(record, || self.chunk(chunk), look, is_bad);
            let Some((before, after)) = looked else { return };
            if after == before {
                // It has no good copy to lose.
            } else if after == 0 {
                count(&mut danger.last_copies, chunk);
            } else if after < minimum {
                count(&mut danger.below_minimum, chunk);
            }
        });
        danger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_first_chunks_and_how_many() {
        let mut danger = Danger::default();
        assert_eq!(danger.refusal(ServerId(3), 2), None);
        count(&mut danger.last_copies, ChunkId(9));
        (1..=7).for_each(|n| count(&mut danger.below_minimum, ChunkId(n)));
        assert_eq!(
            danger.refusal(ServerId(3), 2).unwrap(),
            "cs-3 holds the last good copy of 1 chunk (9), and a copy of 7 chunks (1, 2, 3, 4, 5, …) of which fewer \
             than 2 would be left"
        );
    }
}
