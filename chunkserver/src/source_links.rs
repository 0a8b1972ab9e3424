//! Connections over which replicas are copied from other servers, each used by one copy at a time. Kept for a moment: the
//! next chunk, as a rule, comes from a server that one came from just now.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_core::ids::{ChunkId, ServerId};
use dfs_proto::frame_conn::LoneClient;

use crate::adopt::{Sums, fetch_sums, open};
use crate::node::{Node, lock};

const IDLE_MAX: Duration = Duration::from_secs(10);
/// Of all servers together: each keeps a thread there.
const IDLE_LINKS_MAX: usize = 16;

#[derive(Default)]
pub(crate) struct SourceLinks {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    server: ServerId,
    address: String,
    client: LoneClient,
    since: Instant,
}

impl std::fmt::Debug for SourceLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceLinks").field("idle", &lock(&self.idle).len()).finish()
    }
}

impl SourceLinks {
    /// Gives back one that did all that was asked of it.
    pub(crate) fn keep(&self, server: ServerId, address: &str, client: LoneClient) {
        let link = Idle { server, address: address.to_owned(), client, since: Instant::now() };
        let mut idle = lock(&self.idle);
        if idle.len() == IDLE_LINKS_MAX {
            idle.remove(0);
        }
        idle.push(link);
    }

    fn take(&self, server: ServerId, address: &str) -> Option<LoneClient> {
        let mut idle = lock(&self.idle);
        let at = idle.iter().rposition(|it| it.server == server && it.address == address)?;
        Some(idle.remove(at).client)
    }

    /// Closes those that nobody used for long.
    pub(crate) fn tick(&self) {
        lock(&self.idle).retain(|it| it.since.elapsed() < IDLE_MAX);
    }
}

/// A connection to `server`, and what it has of `chunk`.
///
/// # Errors
/// Text for a log, with the server in it where it cannot be reached.
pub(crate) fn ask_for_sums(
    node: &Node,
    server: ServerId,
    address: &str,
    chunk: ChunkId,
) -> Result<(LoneClient, Sums), String> {
    if let Some(mut client) = node.source_links.take(server, address) {
        match fetch_sums(&mut client, chunk) {
            Ok(sums) => return Ok((client, sums)),
            // It may have been closed meanwhile, or be another process by now.
            Err(reason) => tracing::debug!(%server, reason, "a kept connection is of no use"),
        }
    }
    let mut client = open(node, server, address)?;
    let sums = fetch_sums(&mut client, chunk)?;
    Ok((client, sums))
}
