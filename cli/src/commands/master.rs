//! `dfs master`: one master process.

use anyhow::Context as _;

use crate::args::{ClusterArgs, MasterArgs, PagesArgs};
use crate::cluster;
use crate::failure::fail_usage;

pub(crate) fn run(cluster: &ClusterArgs, args: &MasterArgs) -> anyhow::Result<()> {
    let MasterArgs {
        data,
        listen,
        address_file,
        profile,
        timing,
        replication,
        min_replicas,
        accept_loss,
        pages: PagesArgs { metrics, metrics_file },
    } = args;
    if replication < min_replicas {
        return fail_usage(
            format!(
                "usage: --min-replicas {min_replicas}: more than --replication {replication}, no write would ever be accepted"
            ),
            format!("give a number from 1 to {replication}"),
        );
    }
    let profile = timing.profile(profile.name())?;
    dfs_service::log::init()?;
    let config = master::Config {
        listen: *listen,
        address_file: address_file.clone(),
        metrics: *metrics,
        metrics_file: metrics_file.clone(),
        key: cluster::key(cluster)?,
        profile,
        replication: *replication,
        min_replicas: *min_replicas,
        accept_loss: *accept_loss,
        ..master::Config::new(data.clone())
    };
    master::run(config).with_context(|| format!("master in {}", data.display()))
}
