//! The metrics and health pages of a mount.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_client::session::{Figures, Session};
use dfs_service::metrics_http::{MetricsServer, Pages};
use dfs_service::shutdown::Shutdown;

use crate::metrics::Metrics;

/// A master that has not answered by then counts as away.
const PING_MAX: Duration = Duration::from_secs(2);

/// A mount that answers the kernel.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) session: Arc<Session>,
    /// The kernel's connection is gone.
    pub(crate) ended: Shutdown,
}

pub(crate) fn serve(
    listen: SocketAddr,
    metrics: &Arc<Metrics>,
    mounted: &Arc<OnceLock<Mounted>>,
) -> std::io::Result<MetricsServer> {
    let (refreshed, ready, metrics) =
        (Arc::clone(mounted), Arc::clone(mounted), Arc::clone(metrics));
    let pages = Pages {
        registry: metrics.registry.clone(),
        refresh: Box::new(move || {
            if let Some(mounted) = refreshed.get() {
                refresh(&metrics, mounted);
            }
        }),
        ready: Box::new(move || match ready.get() {
            Some(mounted) => check_ready(mounted),
            None => Err("starting: not mounted yet".to_owned()),
        }),
    };
    MetricsServer::start(listen, pages)
}

fn check_ready(mounted: &Mounted) -> Result<(), String> {
    if mounted.ended.is_asked() {
        return Err("unmounted".to_owned());
    }
    let answered = mounted.session.ping(PING_MAX);
    answered.map_err(|error| format!("the master cannot be reached: {error}"))
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn refresh(metrics: &Metrics, mounted: &Mounted) {
    let Figures {
        unstable_bytes,
        unstable_limit_bytes,
        readahead_bytes,
        freed_bytes: _,
        ahead_bytes,
        asked_bytes,
        master_connections,
    } = mounted.session.figures();
    metrics.unsent_bytes.set(whole(unstable_bytes));
    metrics.unsent_limit_bytes.set(whole(unstable_limit_bytes));
    metrics.readahead_bytes.set(whole(readahead_bytes));
    metrics.master_connections.set(whole(master_connections));
    for (how, bytes) in [("ahead", ahead_bytes), ("asked", asked_bytes)] {
        if let Some(counter) = metrics.fetched.get(how) {
            // Counted by the session; two pages at once may each add: the larger sum stays.
            counter.inc_by(bytes.saturating_sub(counter.get()));
        }
    }
    let reachable = mounted.session.ping(PING_MAX).is_ok();
    metrics.master_reachable.set(i64::from(reachable));
}
