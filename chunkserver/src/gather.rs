//! What a heartbeat says of the store, asked on another thread than the heartbeats'.
//!
//! The store's locks are held while the disk works, and a busy disk must not look like a dead server: a heartbeat whose
//! news are not there in time goes without them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_core::chunk::inventory_digest_of;
use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::control::ReplicaReport;
use tokio::task::JoinHandle;

use crate::node::{Node, lock};
use crate::store::Space;

/// Replicas in one heartbeat (PROTOCOL §4.5).
const REPLICAS_MAX: usize = 10_000;
/// Clients told in one heartbeat; of more than these the rest is told to the next stream.
const CLIENTS_MAX: usize = 10_000;

/// What one heartbeat can tell.
#[derive(Default, Debug)]
pub(crate) struct Content {
    pub(crate) chunks: Vec<ChunkId>,
    /// The beginning of everything that is held.
    pub(crate) full: bool,
    pub(crate) more: bool,
    pub(crate) replicas: Vec<ReplicaReport>,
    pub(crate) gone: Vec<u64>,
    pub(crate) clients: Vec<Vec<u8>>,
}

/// What the master was told of the store, and what to tell it next.
#[derive(Debug)]
pub(crate) struct Gatherer {
    node: Arc<Node>,
    inventory: Option<Box<Inventory>>,
    running: Option<JoinHandle<(Box<Inventory>, Content)>>,
    pub(crate) space: Space,
    pub(crate) digest: u64,
    /// A full inventory has begun and not ended.
    pub(crate) pages: bool,
}

#[derive(Default, Debug)]
struct Inventory {
    told: HashMap<ChunkId, ChunkVersion>,
    digest: u64,
    space: Space,
}

impl Gatherer {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        Self {
            node: Arc::clone(node),
            inventory: None,
            running: None,
            space: Space::default(),
            digest: 0,
            pages: false,
        }
    }

    /// What is there within `wait`; nothing if the store is too busy, and then it comes with a later call.
    pub(crate) async fn content(&mut self, full: bool, wait: Duration) -> Content {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let mut running = match self.running.take() {
                Some(running) => running,
                None => {
                    let node = Arc::clone(&self.node);
                    let inventory = self.inventory.take().unwrap_or_default();
                    tokio::task::spawn_blocking(move || inventory.gather(&node, full))
                }
            };
            let gathered = match tokio::time::timeout_at(deadline, &mut running).await {
                Ok(gathered) => gathered,
                Err(_) => {
                    self.running = Some(running);
                    return Content::default();
                }
            };
            let Ok((inventory, content)) = gathered else {
                // It panicked, which ends the process; what was told is not known any more.
                self.inventory = None;
                return Content::default();
            };
            (self.space, self.digest) = (inventory.space, inventory.digest);
            self.inventory = Some(inventory);
            if full && !content.full {
                // Begun for what went before.
                lock(&self.node.news.changed).extend(content.chunks);
                continue;
            }
            self.pages = content.more && (content.full || self.pages);
            return content;
        }
    }
}

impl Inventory {
    fn gather(mut self: Box<Self>, node: &Node, full: bool) -> (Box<Self>, Content) {
        let mut content = Content { full, ..Content::default() };
        let everything = if full { node.store.inventory() } else { Vec::new() };
        {
            let mut changed = lock(&node.news.changed);
            if full {
                self.told.clear();
                self.digest = 0;
                changed.extend(everything.iter().map(|report| report.chunk));
            }
            if changed.len() <= REPLICAS_MAX {
                content.chunks = changed.drain().collect();
            } else {
                content.chunks = changed.iter().take(REPLICAS_MAX).copied().collect();
                for chunk in &content.chunks {
                    changed.remove(chunk);
                }
                content.more = true;
            }
        }
        for &chunk in &content.chunks {
            let before = self.told.remove(&chunk);
            self.digest = before.map_or(self.digest, |version| {
                self.digest.wrapping_sub(inventory_digest_of(chunk, version))
            });
            match node.store.report(chunk) {
                Some(report) => {
                    let version = report.position.version;
                    self.told.insert(chunk, version);
                    self.digest = self.digest.wrapping_add(inventory_digest_of(chunk, version));
                    content.replicas.push(node.report_to_wire(&report));
                }
                None => {
                    node.damage.forget(chunk);
                    content.gone.push(chunk.0);
                }
            }
        }
        if full {
            let held = node.store.clients().into_iter().take(CLIENTS_MAX);
            content.clients.extend(held.map(|client| client.0.to_be_bytes().to_vec()));
        }
        self.space = node.store.space();
        (self, content)
    }
}
