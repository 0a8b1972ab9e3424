//! Copies of the log and its snapshots at two chunkservers, never more than a second behind (DECISIONS 6): from one of
//! them a master's directory that was lost is made again.
//!
//! A holder gets what it lacks of each file, then is told that this is all. Whoever restarts is asked what it has first:
//! its files are compared by their checksums, and begun anew where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_core::cluster::Liveness;
use dfs_core::cluster::overlay::OverlayKind;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::plan::rebuild::{Place, mix};
use dfs_core::time::Timestamp;
use dfs_proto::control::metadata_copies_client::MetadataCopiesClient;
use dfs_proto::control::{
    CopyFile, CopyListRequest, CopyPiece, CopySettleRequest, CopyWriteRequest,
};
use dfs_service::clock;
use dfs_service::shutdown::Shutdown;
use tonic::transport::Channel;

use crate::group::CopySource;
use crate::state::{Master, lock, now};

/// How many servers hold one.
const COPIES: usize = 2;
const TICK: Duration = Duration::from_millis(500);
/// In one call.
const PIECE: u64 = 1 << 20;
const CALL_MAX: Duration = Duration::from_secs(2);
/// Also the call that waits for the disk after so much was written.
const MUCH: u64 = 8 << 20;
const SYNC_MAX: Duration = Duration::from_secs(20);
/// Nobody waits long for a master that stops.
const LAST_CALL_MAX: Duration = Duration::from_millis(500);
/// Reading and comparing what a holder has, which may be gigabytes.
const LIST_MAX: Duration = Duration::from_secs(120);
/// A holder that failed is left alone for so long; another takes its place.
const AVOID_MS: u64 = 10_000;
/// The time of an idle copy is renewed this often.
const RENEW_MS: u64 = 10_000;

/// What a holder was told last.
#[derive(Clone, Copy, Debug)]
struct Settled {
    index: u64,
    at: Timestamp,
}

#[derive(Debug)]
struct Holder {
    incarnation: u64,
    /// Bytes of each file there.
    files: BTreeMap<String, u64>,
    settled: Option<Settled>,
}

/// Which servers hold a copy.
#[derive(Default, Debug)]
pub struct Copies {
    settled: BTreeMap<ServerId, Settled>,
}

impl Copies {
    /// The holders, and for how many milliseconds the one furthest behind lacks something that is logged by now.
    #[must_use]
    pub fn state(&self, now: Timestamp, applied: u64) -> (Vec<ServerId>, Option<u64>) {
        let lag = |settled: &Settled| match settled.index < applied {
            true => now.nanos_since(settled.at) / 1_000_000,
            false => 0,
        };
        (self.settled.keys().copied().collect(), self.settled.values().map(lag).max())
    }
}

/// All that a round copies.
struct Round<'a> {
    /// All entries up to here are in `sources`.
    index: u64,
    at: Timestamp,
    at_ns: i64,
    sources: Vec<CopySource>,
    /// `None`: this is the last one, for holders that are known.
    shutdown: Option<&'a Shutdown>,
}

impl Round<'_> {
    fn limit(&self, usual: Duration) -> Duration {
        if self.shutdown.is_some() { usual } else { LAST_CALL_MAX }
    }
}

#[derive(Default)]
struct Copier {
    holders: BTreeMap<ServerId, Holder>,
    avoided: BTreeMap<ServerId, Timestamp>,
    /// In these incarnations they were told to keep nothing.
    cleared: BTreeMap<ServerId, u64>,
}

/// Copies until `shutdown`, and once more then.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    let mut copier = Copier::default();
    while !shutdown.wait_for(TICK) {
        copier.round(master, Some(shutdown));
    }
    copier.round(master, None);
}

impl Copier {
    fn round(&mut self, master: &Arc<Master>, shutdown: Option<&Shutdown>) {
        let index = master.group.applied_index().unwrap_or(0);
        let (at, at_ns) = (now(), clock::wall_nanos());
        let sources = match master.group.copy_sources() {
            Ok(sources) if sources.is_empty() => return,
            Ok(sources) => sources,
            Err(error) => {
                tracing::warn!(%error, "no copies of the metadata are made now");
                return;
            }
        };
        let round = Round { index, at, at_ns, sources, shutdown };
        let able = self.able(master);
        let mut good = BTreeSet::new();
        for (server, incarnation, address) in &able {
            if good.len() == COPIES {
                break;
            }
            match self.bring(master, &round, *server, *incarnation, address) {
                Ok(settled) => {
                    good.insert(*server);
                    self.cleared.remove(server);
                    lock(&master.copies).settled.insert(*server, settled);
                }
                Err(reason) => {
                    tracing::warn!(%server, reason, "no copy of the metadata there now");
                    self.holders.remove(server);
                    self.avoided.insert(*server, now());
                }
            }
        }
        let alive: BTreeSet<ServerId> = able.iter().map(|(server, ..)| *server).collect();
        self.holders.retain(|server, _| alive.contains(server));
        lock(&master.copies).settled.retain(|server, _| good.contains(server));
        if good.len() == COPIES && round.shutdown.is_some() {
            self.clear_others(master, &able, &good, &round);
        }
    }

    /// Servers that can hold a copy, in the order in which they should: always the same, so that copies stay where
    /// they are, and on other hosts and in other zones than those before where there are such.
    fn able(&mut self, master: &Master) -> Vec<(ServerId, u64, String)> {
        let now = now();
        self.avoided.retain(|_, since| now.nanos_since(*since) < AVOID_MS * 1_000_000);
        let fs = ChunkId((master.fs.0 >> 64) as u64);
        let cluster = lock(&master.cluster);
        let mut rows: Vec<_> = cluster
            .rows()
            .iter()
            .filter(|(server, row)| {
                !self.avoided.contains_key(server)
                    && row.connected
                    && cluster.liveness(now, **server) == Liveness::Alive
                    && !cluster.has_overlay(**server, OverlayKind::Suspended)
                    && !cluster.has_overlay(**server, OverlayKind::Draining)
            })
            .collect();
        rows.sort_by_key(|(server, _)| mix(fs, **server));
        let mut able: Vec<(ServerId, u64, String)> = Vec::new();
        let mut places: Vec<&Place> = Vec::new();
        while !rows.is_empty() {
            let shared =
                |place: &Place| places.iter().map(|taken| place.shared_with(taken)).sum::<u32>();
            let best = (0..rows.len()).min_by_key(|at| (shared(&rows[*at].1.place), *at));
            let (server, row) = rows.remove(best.unwrap_or(0));
            places.push(&row.place);
            able.push((*server, row.incarnation, row.address.clone()));
        }
        able
    }

    fn bring(
        &mut self,
        master: &Master,
        round: &Round<'_>,
        server: ServerId,
        incarnation: u64,
        address: &str,
    ) -> Result<Settled, String> {
        let client = master.copies_at(address);
        let known = self.holders.get(&server).is_some_and(|it| it.incarnation == incarnation);
        if !known {
            if round.shutdown.is_none() {
                return Err("the master stops".to_owned());
            }
            let files = what_it_has(master, client.clone(), round)?;
            self.holders.insert(server, Holder { incarnation, files, settled: None });
        }
        let Some(holder) = self.holders.get_mut(&server) else {
            return Err("it is not known".to_owned());
        };
        let mut written = 0;
        // The last ones go with what makes them a copy, as a rule all there are: one call twice a second, not two.
        let (mut pieces, mut waiting) = (Vec::new(), 0);
        for source in &round.sources {
            let there = holder.files.entry(source.name.clone()).or_default();
            while *there < source.bytes {
                if round.shutdown.is_some_and(Shutdown::is_asked) {
                    return Err("the master stops".to_owned());
                }
                let data = source.read(*there, PIECE).map_err(|error| error.to_string())?;
                let length = data.len() as u64;
                if PIECE < waiting + length {
                    for piece in pieces.drain(..) {
                        write(master, &client, piece, round)?;
                    }
                    waiting = 0;
                }
                pieces.push(CopyPiece { name: source.name.clone(), offset: *there, data });
                waiting += length;
                *there += length;
                written += length;
            }
        }
        let names: BTreeSet<&str> = round.sources.iter().map(|it| it.name.as_str()).collect();
        let fewer = holder.files.keys().any(|name| !names.contains(name.as_str()));
        if let Some(settled) = holder.settled
            && written == 0
            && !fewer
            && settled.index == round.index
            && round.at.nanos_since(settled.at) < RENEW_MS * 1_000_000
        {
            // It lacks nothing now either, whenever it was told so last.
            return Ok(Settled { at: round.at, ..settled });
        }
        let files = round.sources.iter();
        let files = files.map(|it| (it.name.clone(), it.bytes)).collect::<Vec<_>>();
        let limit = round.limit(if written < MUCH { CALL_MAX } else { SYNC_MAX });
        settle(master, client, files, pieces, round, limit)?;
        holder.files.retain(|name, _| names.contains(name.as_str()));
        let settled = Settled { index: round.index, at: round.at };
        holder.settled = Some(settled);
        Ok(settled)
    }

    /// Servers that held a copy once, or may have, hold none any more: an old one must not be taken for the newest.
    fn clear_others(
        &mut self,
        master: &Master,
        able: &[(ServerId, u64, String)],
        good: &BTreeSet<ServerId>,
        round: &Round<'_>,
    ) {
        for (server, incarnation, address) in able.iter().filter(|(it, ..)| !good.contains(it)) {
            if self.cleared.get(server) == Some(incarnation) {
                continue;
            }
            let limit = round.limit(CALL_MAX);
            match settle(master, master.copies_at(address), Vec::new(), Vec::new(), round, limit) {
                Ok(()) => {
                    self.holders.remove(server);
                    self.cleared.insert(*server, *incarnation);
                }
                Err(reason) => tracing::debug!(%server, reason, "an old copy stays for now"),
            }
        }
    }
}

/// Bytes of each file that are the same there as here.
fn what_it_has(
    master: &Master,
    mut client: MetadataCopiesClient<Channel>,
    round: &Round<'_>,
) -> Result<BTreeMap<String, u64>, String> {
    let list = ask(master, LIST_MAX, async move { client.list(CopyListRequest {}).await })?;
    let mut same = BTreeMap::new();
    for CopyFile { name, length, crc } in list.files {
        let Some(source) = round.sources.iter().find(|source| source.name == name) else {
            continue;
        };
        if length <= source.bytes
            && checksum(source, length).map_err(|error| error.to_string())? == crc
        {
            same.insert(name, length);
        }
    }
    Ok(same)
}

fn checksum(source: &CopySource, length: u64) -> std::io::Result<u32> {
    let (mut crc, mut at) = (0, 0);
    while at < length {
        let data = source.read(at, PIECE.min(length - at))?;
        crc = crc32c::crc32c_append(crc, &data);
        at += data.len() as u64;
    }
    Ok(crc)
}

fn write(
    master: &Master,
    client: &MetadataCopiesClient<Channel>,
    CopyPiece { name, offset, data }: CopyPiece,
    round: &Round<'_>,
) -> Result<(), String> {
    let (epoch, nonce) = (master.epoch.0, master.nonce);
    let request = CopyWriteRequest { epoch, nonce, name, offset, data };
    let mut client = client.clone();
    ask(master, round.limit(CALL_MAX), async move { client.write(request).await }).map(drop)
}

fn settle(
    master: &Master,
    mut client: MetadataCopiesClient<Channel>,
    files: Vec<(String, u64)>,
    pieces: Vec<CopyPiece>,
    round: &Round<'_>,
    limit: Duration,
) -> Result<(), String> {
    let file = |(name, length)| CopyFile { name, length, crc: 0 };
    let request = CopySettleRequest {
        epoch: master.epoch.0,
        nonce: master.nonce,
        files: files.into_iter().map(file).collect(),
        index: round.index,
        at_ns: round.at_ns,
        pieces,
    };
    ask(master, limit, async move { client.settle(request).await }).map(drop)
}

/// The answer to one call, on this plain thread.
fn ask<T: Send + 'static>(
    master: &Master,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send + 'static,
) -> Result<T, String> {
    let asked = master.runtime.spawn(async move { tokio::time::timeout(limit, call).await });
    match master.runtime.block_on(asked) {
        Ok(Ok(Ok(reply))) => Ok(reply.into_inner()),
        Ok(Ok(Err(status))) => Err(status.message().to_owned()),
        Ok(Err(_)) => Err(format!("no answer within {limit:?}")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_that_of_the_copy_furthest_behind() {
        let at = |millis: u64| Timestamp(millis * 1_000_000);
        let mut copies = Copies::default();
        assert_eq!(copies.state(at(9_000), 7), (Vec::new(), None));
        copies.settled.insert(ServerId(1), Settled { index: 7, at: at(1_000) });
        assert_eq!(copies.state(at(9_000), 7), (vec![ServerId(1)], Some(0)));
        copies.settled.insert(ServerId(2), Settled { index: 6, at: at(8_500) });
        assert_eq!(copies.state(at(9_000), 7).1, Some(500));
        assert_eq!(copies.state(at(9_000), 8).1, Some(8_000));
    }
}
