//! What the master does without being asked: reclaiming, forgetting, ending leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfs_core::chunk::Member;
use dfs_core::cluster::{Liveness, running};
use dfs_core::command::Change;
use dfs_core::ids::{ChunkId, ClientId, Epoch, InodeNo, ServerId};
use dfs_core::meta::{self, Client, Key, MetaStore, Record};
use dfs_core::time::Timestamp;
use dfs_service::page::Page;
use dfs_service::shutdown::Shutdown;

use crate::chunks::WRITE_LAYOUT_MS;
use crate::clients::GRACE_MS;
use crate::rpc::{end_client, fence_client};
use crate::settle;
use crate::state::{Master, lock, now};
use crate::trash;

const TICK: Duration = Duration::from_millis(250);
const FIRST_REIGN: Epoch = Epoch(1);
const RECLAIM_PAUSE: Duration = Duration::from_millis(20);
const RECLAIM_BATCH: usize = 256;
const STORED_BATCH: usize = 512;
const STORED_BATCHES: usize = 64;

/// Tells the detector that this process runs, so that a time in which it did not is held against nobody. A task: threads
/// of ours wait for the disk.
pub async fn say_it_runs(master: Arc<Master>) {
    let pause = Duration::from_millis(running::tick_ms(&master.config.profile));
    loop {
        let slept = lock(&master.cluster).on_running(now());
        if let Some(slept_ms) = slept {
            tracing::warn!(slept_ms, "this process did not run: nobody's silence meanwhile counts");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Frees inodes that nobody can reach any more, in batches, as [`Master::maybe_reclaim`] hands them over.
pub async fn reclaim(master: Arc<Master>, mut inodes: tokio::sync::mpsc::Receiver<InodeNo>) {
    while let Some(first) = inodes.recv().await {
        // Whoever removes many files waits for the log after each: reclaims go together, not between any two of them.
        tokio::time::sleep(RECLAIM_PAUSE).await;
        let mut batch = vec![first];
        while batch.len() < RECLAIM_BATCH {
            let Ok(next) = inodes.try_recv() else { break };
            batch.push(next);
        }
        let running: Vec<_> = batch
            .into_iter()
            .map(|ino| {
                let master = Arc::clone(&master);
                tokio::spawn(async move {
                    let freed = master.propose_async(Change::Reclaim { ino }).await;
                    lock(&master.clients).end_reclaim(ino);
                    if let Err(error) = freed {
                        // It stays an orphan, which the ticks look at.
                        tracing::debug!(ino = ino.0, %error, "reclaim");
                    }
                })
            })
            .collect();
        for task in running {
            // A panic in the task is reported by its own thread.
            let _ended = task.await;
        }
    }
}

/// The master's slow loop, on a thread of its own until `shutdown`.
pub fn run(master: &Arc<Master>, shutdown: &Shutdown) {
    let mut garbage_since: HashMap<ChunkId, Timestamp> = HashMap::new();
    // Not the start: a master that restarts often has a log that grows all the same.
    let mut snapshot_at = master.group.snapshot_index().unwrap_or(0);
    let mut round: u64 = 0;
    let mut trash_from = 0;
    // Where none could be read, the start itself wrote one.
    say_removed(master);
    while !shutdown.wait_for(TICK) {
        round += 1;
        if round.is_multiple_of(4) {
            reclaim_orphans(master);
            forget_garbage(master, &mut garbage_since);
            trash::empty_expired(master, &mut trash_from);
            end_leases(master);
            master.finish_truncations();
        }
        if round % 4 == 2 {
            note_stored(master);
        }
        if round % 4 == 3 {
            settle::begin(master);
        }
        if round % 4 == 1 {
            master.note_surplus();
        }
        let index = master.group.applied_index().unwrap_or(0);
        if snapshot_at + master.config.snapshot_entries <= index {
            snapshot_at = index;
            snapshot(master);
        }
    }
    note_stored(master);
}

/// Logs of which chunks a disk was seen to hold a replica. What is not logged is told again with the next full
/// inventory.
fn note_stored(master: &Arc<Master>) {
    for _ in 0..STORED_BATCHES {
        let mut chunks = lock(&master.cluster).take_told(STORED_BATCH);
        if chunks.is_empty() {
            return;
        }
        let reader = master.reader();
        chunks.retain(|chunk| {
            let record = meta::chunk(&reader, *chunk);
            record.is_some_and(|record| record.active.version.0 == 1 && !record.stored)
        });
        if chunks.is_empty() {
            continue;
        }
        if let Err(error) = master.propose(None, Change::NoteStored { chunks }) {
            tracing::debug!(%error, "note stored chunks");
            return;
        }
    }
}

fn reclaim_orphans(master: &Arc<Master>) {
    let ended = lock(&master.clients).end_replaced(now());
    for ino in ended {
        master.maybe_reclaim(ino);
    }
    if !opens_are_known(master) {
        return;
    }
    let orphans =
        master.reader().range(&Key::Orphan(InodeNo(0)), &Key::Orphan(InodeNo(u64::MAX)), 10_000);
    for (key, _) in orphans {
        if let Key::Orphan(ino) = key {
            master.maybe_reclaim(ino);
        }
    }
}

/// Whether nobody can have something open that this reign has not heard of: each client of an earlier one has said what
/// it has open, or has ended. One that was stopped for a minute is still expected.
fn opens_are_known(master: &Master) -> bool {
    // Before the first reign there was nobody who could.
    if FIRST_REIGN < master.epoch && master.uptime_ms() < GRACE_MS {
        return false;
    }
    if master.opens_known.load(Ordering::Acquire) {
        return true;
    }
    let awaited = registered(master)
        .any(|(client, record)| !record.fenced && !lock(&master.clients).has_told_opens(client));
    let known = !awaited || master.config.client_lease_ms <= master.uptime_ms();
    master.opens_known.store(known, Ordering::Release);
    known
}

/// Drops garbage records whose members all reported, at least two heartbeats after the deletion, that it is gone.
fn forget_garbage(master: &Arc<Master>, since: &mut HashMap<ChunkId, Timestamp>) {
    let old_enough = (2 * master.config.profile.interval_ms + 1_000) * 1_000_000;
    let garbage =
        master.reader().range(&Key::Garbage(ChunkId(0)), &Key::Garbage(ChunkId(u64::MAX)), 100_000);
    let now = now();
    let mut known = HashMap::with_capacity(garbage.len());
    for (key, record) in garbage {
        let (Key::Garbage(chunk), Record::Garbage(garbage)) = (key, record) else { continue };
        let first_seen = since.get(&chunk).copied().unwrap_or(now);
        known.insert(chunk, first_seen);
        let gone = {
            let reader = master.reader();
            let out = |member: &Member| {
                let known = meta::server(&reader, member.server);
                known.is_some_and(|known| known.decommissioned().is_some())
            };
            let cluster = lock(&master.cluster);
            garbage.members.iter().filter(|member| !out(member)).all(|member| {
                cluster.row(member.server).is_some_and(|row| {
                    row.disk != member.disk
                        || (row.inventory_complete && !row.replicas.contains_key(&chunk))
                })
            }) && cluster.rows().iter().all(|(server, row)| {
                let (server, disk) = (*server, row.disk);
                // Left by an earlier configuration: it is told to delete that as long as the chunk is known.
                !row.replicas.contains_key(&chunk) || out(&Member { server, disk })
            })
        };
        if gone && !master.is_fenced_lately(chunk) && old_enough <= now.nanos_since(first_seen) {
            let master = Arc::clone(master);
            master.runtime.clone().spawn(async move {
                if let Err(error) = master.propose_async(Change::ForgetGarbage { chunk }).await {
                    tracing::debug!(chunk = chunk.0, %error, "forget garbage");
                }
            });
        }
    }
    lock(&master.fenced).retain(|_, since| now.nanos_since(*since) < WRITE_LAYOUT_MS * 1_000_000);
    *since = known;
}

/// Clients that did not end.
pub fn registered(master: &Master) -> impl Iterator<Item = (ClientId, Client)> + use<> {
    let (from, below) = (Key::Client(ClientId(0)), Key::Client(ClientId(u128::MAX)));
    let page = master.reader().range(&from, &below, 100_000);
    page.into_iter().filter_map(|(key, record)| match (key, record) {
        (Key::Client(client), Record::Client(record)) => Some((client, record)),
        _ => None,
    })
}

/// Clients that an earlier reign fenced and did not end.
pub fn refuse_fenced(master: &Master) {
    for (client, record) in registered(master) {
        if record.fenced {
            lock(&master.clients).fence(client);
        }
    }
}

fn end_leases(master: &Arc<Master>) {
    let lease_ms = master.config.client_lease_ms;
    let expired = lock(&master.clients).expired(now(), lease_ms);
    for client in expired {
        master.notice(format!(
            "client {client} was silent for {} s: its locks and opens end; see {}",
            lease_ms / 1000,
            Page::ClientSilent
        ));
        if let Err(error) = fence_client(master, client) {
            tracing::debug!(%client, %error, "fence client");
        }
    }
    end_refused(master);
    if master.uptime_ms() < lease_ms {
        return;
    }
    // Clients of an earlier reign that never spoke to this one.
    for (client, record) in registered(master) {
        if !record.fenced
            && !lock(&master.clients).is_heard(client)
            && let Err(error) = fence_client(master, client)
        {
            tracing::debug!(%client, %error, "fence client");
        }
    }
}

/// Ends clients that no server takes anything of any more: each refuses them, or was silent for so long that it
/// serves nobody before it is told.
fn end_refused(master: &Arc<Master>) {
    // Servers that did not come back yet may still serve on the word of the master before.
    if master.is_warming() {
        return;
    }
    let up: Vec<ServerId> = {
        let cluster = lock(&master.cluster);
        let now = now();
        let servers = cluster.rows().keys().copied();
        servers.filter(|server| cluster.liveness(now, *server) != Liveness::Dead).collect()
    };
    let reader = master.reader();
    let fenced = lock(&master.clients).fenced();
    for client in fenced {
        if reader.get(&Key::Client(client)).is_some()
            && lock(&master.clients).refused_by_all(client, up.iter().copied())
            && let Err(error) = end_client(master, client)
        {
            tracing::debug!(%client, %error, "end client");
        }
    }
}

fn say_removed(master: &Master) {
    for error in master.group.take_removed_snapshots() {
        master.notice(format!(
            "a damaged snapshot was removed, a newer one has all that it had: {error}; see {}",
            error.page()
        ));
    }
}

fn snapshot(master: &Arc<Master>) {
    let written = master.group.snapshot();
    say_removed(master);
    match written {
        Ok(info) => tracing::info!(?info, "snapshot written and read back"),
        Err(error) => {
            return master.notice(format!(
                "snapshot failed, the log is kept: {error}; see {}",
                error.page()
            ));
        }
    }
    match master.group.purge_behind(u64::MAX) {
        Ok(purged) => tracing::info!(?purged, "log purged"),
        Err(error) => master.notice(format!("log not purged: {error}; see {}", Page::DamagedLog)),
    }
}
