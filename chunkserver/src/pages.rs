//! The metrics and health pages of this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_service::metrics_http::{MetricsServer, Pages};

use crate::metrics::Metrics;
use crate::node::Node;
use crate::store::JOURNAL_DIR;

/// Serves the pages of a process that becomes `node` when its journal is read.
pub(crate) fn serve(
    listen: SocketAddr,
    metrics: &Arc<Metrics>,
    node: &Arc<OnceLock<Arc<Node>>>,
) -> std::io::Result<MetricsServer> {
    let (refreshed, ready) = (Arc::clone(node), Arc::clone(node));
    let pages = Pages {
        registry: metrics.registry.clone(),
        refresh: Box::new(move || {
            if let Some(node) = refreshed.get() {
                refresh(node);
            }
        }),
        ready: Box::new(move || match ready.get() {
            Some(node) => check_ready(node),
            None => Err("starting: replicas are being read in".to_owned()),
        }),
    };
    MetricsServer::start(listen, pages)
}

fn check_ready(node: &Node) -> Result<(), String> {
    if !node.store.is_writable() {
        return Err("the disk failed".to_owned());
    }
    if node.store.space().total_bytes == 0 {
        return Err("the disk does not say how much room it has".to_owned());
    }
    if node.fence.was_never_answered() {
        return Err("not registered: the master has not answered yet".to_owned());
    }
    if node.fence.is_closed() {
        return Err(
            "fenced: the master has not answered for too long, or refused this server".to_owned()
        );
    }
    Ok(())
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn refresh(node: &Node) {
    let metrics = &node.metrics;
    let space = node.store.space();
    metrics.chunks.set(whole(space.chunk_count));
    metrics.used_bytes.set(whole(space.used_bytes));
    metrics.free_bytes.set(whole(space.free_bytes));
    metrics.total_bytes.set(whole(space.total_bytes));
    metrics.journal_bytes.set(whole(bytes_in(&node.config.data_dir.join(JOURNAL_DIR))));
    metrics.fenced.set(i64::from(node.fence.is_closed()));
    let left = node
        .fence
        .left_nanos()
        .map_or(f64::INFINITY, |nanos| Duration::from_nanos(nanos).as_secs_f64());
    metrics.lease_left.set(left);
}

/// Of the files in one directory; one that goes meanwhile is not counted.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len()).sum()
}
