//! A block with a bad checksum is made right from another member, in place.
//!
//! Only bytes with the checksum this replica has on record are written: whatever the other member holds by now, either
//! it is what was here, or it is not taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dfs_core::ids::{ChunkId, ServerId};
use dfs_proto::meta_rpc::MemberAddress;
use dfs_service::page::Page;

use crate::adopt::fetch_block;
use crate::node::{Node, lock, now};
use crate::source_links::ask_for_sums;
use crate::store::StoreError;

/// Blocks being repaired; a disk that rots faster is not saved by this.
const RUNNING_MAX: usize = 64;

/// Which block of which server's replica.
type Place = (ServerId, ChunkId, u32);

/// With whom else was named since the repair began.
static RUNNING: Mutex<Option<HashMap<Place, Vec<MemberAddress>>>> = Mutex::new(None);

/// Tries what is due.
pub(crate) fn tick(node: &Arc<Node>) {
    node.source_links.tick();
    for chunk in node.store.take_made_again() {
        node.damage.forget(chunk);
        node.on_changed(chunk);
        node.news.urgent.notify_one();
    }
    for (chunk, block) in node.damage.due(now(), RUNNING_MAX / 2) {
        repair_later(node, chunk, block, Vec::new());
    }
}

/// Repairs the block on a thread of its own. `members`: who may have it, besides those known here.
pub(crate) fn repair_later(
    node: &Arc<Node>,
    chunk: ChunkId,
    block: u32,
    members: Vec<MemberAddress>,
) {
    let key = (node.server, chunk, block);
    {
        let mut running = lock(&RUNNING);
        let running = running.get_or_insert_default();
        if let Some(named) = running.get_mut(&key) {
            *named = members;
            return;
        }
        if RUNNING_MAX <= running.len() {
            return;
        }
        running.insert(key, Vec::new());
    }
    let node = Arc::clone(node);
    let spawned = std::thread::Builder::new().name("repair".to_owned()).spawn(move || {
        let mut members = members;
        loop {
            let outcome = repair(&node, chunk, block, &members);
            let failed = outcome.is_err();
            say(chunk, block, outcome);
            let mut running = lock(&RUNNING);
            let named = running.as_mut().and_then(|running| running.remove(&key));
            match named.filter(|named| failed && !named.is_empty()) {
                None => return,
                // It failed for want of a member that somebody has named since.
                Some(named) => {
                    running.get_or_insert_default().insert(key, Vec::new());
                    members = named;
                }
            }
        }
    });
    if let Err(error) = spawned {
        tracing::error!(chunk = chunk.0, block, %error, "no thread to repair on");
        if let Some(running) = lock(&RUNNING).as_mut() {
            running.remove(&key);
        }
    }
}

fn say(chunk: ChunkId, block: u32, outcome: Result<Option<ServerId>, String>) {
    match outcome {
        Ok(Some(from)) => {
            tracing::warn!(chunk = chunk.0, block, %from, "bad block repaired");
        }
        Ok(None) => tracing::debug!(chunk = chunk.0, block, "block is good"),
        Err(reason) => {
            tracing::warn!(chunk = chunk.0, block, %reason, see = %Page::BadBlock, "bad block not repaired yet")
        }
    }
}

fn repair(
    node: &Arc<Node>,
    chunk: ChunkId,
    block: u32,
    members: &[MemberAddress],
) -> Result<Option<ServerId>, String> {
    match node.store.read_for_copy(chunk, block) {
        // Whoever asked may be wrong or late.
        Ok(_) => {
            node.on_good_block(chunk, block);
            return Ok(None);
        }
        Err(StoreError::BadBlock { .. }) => {}
        Err(error) => return Err(error.to_string()),
    }
    let mine = node.store.describe(chunk).map_err(|e| e.to_string())?.sums;
    let Some(&crc) = mine.get(block as usize) else {
        // Cut off since.
        node.on_good_block(chunk, block);
        return Ok(None);
    };
    node.on_bad_block(chunk, block);
    let led =
        node.store.report(chunk).and_then(|r| node.leaders.of_version(chunk, r.position.version));
    let mut sources: Vec<(ServerId, String)> = Vec::new();
    let named = members.iter().cloned();
    let known = led.map(|led| led.others().to_vec()).unwrap_or_default();
    let told = node.members.others(node, chunk);
    for member in named.chain(known).chain(told) {
        let source = (member.member.server, member.address);
        if source.0 != node.server && !source.1.is_empty() && !sources.contains(&source) {
            sources.push(source);
        }
    }
    for source in node.damage.sources(chunk) {
        if source.0 != node.server && !sources.contains(&source) {
            sources.push(source);
        }
    }
    // Nobody said who the members are: any server this one ever talked to may be one.
    for source in node.peers.known() {
        if !sources.iter().any(|known| known.0 == source.0) {
            sources.push(source);
        }
    }
    let mut last = "no other member known".to_owned();
    for (server, address) in sources {
        let asked = ask_for_sums(node, server, &address, chunk);
        let fetched = asked.and_then(|(mut client, sums)| {
            if sums.sums.get(block as usize) != Some(&crc) {
                return Err("has other content".to_owned());
            }
            let fetched = fetch_block(&mut client, chunk, sums.position, block, crc)?;
            node.source_links.keep(server, &address, client);
            fetched.ok_or_else(|| "its block is bad as well".to_owned())
        });
        match fetched {
            Ok(bytes) => {
                node.store.repair_block(chunk, block, &bytes, crc).map_err(|e| e.to_string())?;
                node.on_mended(chunk, block);
                return Ok(Some(server));
            }
            Err(reason) => last = format!("{server}: {reason}"),
        }
    }
    Err(last)
}
