//! `dfs chunkserver`: one chunkserver process.

use anyhow::Context as _;

use crate::args::{ChunkserverArgs, ClusterArgs, PagesArgs};
use crate::cluster;

pub(crate) fn run(cluster: &ClusterArgs, args: &ChunkserverArgs) -> anyhow::Result<()> {
    let ChunkserverArgs {
        data,
        id,
        listen,
        advertise,
        address_file,
        capacity,
        zone,
        host,
        scrub_period,
        accept_loss,
        kubernetes_lease,
        pages: PagesArgs { metrics, metrics_file },
    } = args;
    let target = cluster::target(cluster)?;
    dfs_service::log::init()?;
    let scrub_period = scrub_period.unwrap_or(chunkserver::config::SCRUB_PERIOD);
    if let Some(lease) = kubernetes_lease {
        super::operator::hold_lease(lease)?;
    }
    let config = chunkserver::Config {
        listen: *listen,
        advertise: advertise.map(|address| address.to_string()),
        master: Some(target.master),
        key: target.key,
        capacity_bytes: *capacity,
        zone: zone.clone(),
        host: host.clone(),
        scrub_period: Some(scrub_period).filter(|period| !period.is_zero()),
        accept_loss: *accept_loss,
        address_file: address_file.clone(),
        metrics: *metrics,
        metrics_file: metrics_file.clone(),
        ..chunkserver::Config::new(*id, data.clone())
    };
    chunkserver::run(config).with_context(|| format!("{id} in {}", data.display()))
}
