//! `dfs chunkserver`: one chunkserver process.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::args::values::parse_domain;
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
        zone_file,
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
    let zone = match zone_file {
        Some(file) => zone_in(file)?,
        None => zone.clone(),
    };
    let config = chunkserver::Config {
        listen: *listen,
        advertise: advertise.map(|address| address.to_string()),
        master: Some(target.master),
        key: target.key,
        capacity_bytes: *capacity,
        zone,
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

/// Written by somebody who learns it later than this process begins.
fn zone_in(file: &Path) -> anyhow::Result<String> {
    let mut waits = false;
    loop {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("read the zone in {}", file.display()))?;
        let name = text.trim();
        if !name.is_empty() {
            let zone = parse_domain(name);
            return zone
                .map_err(|why| anyhow::anyhow!("zone '{name}' in {}: {why}", file.display()));
        }
        if !waits {
            tracing::info!(file = %file.display(), "waits for its zone");
        }
        waits = true;
        std::thread::sleep(Duration::from_millis(500));
    }
}
