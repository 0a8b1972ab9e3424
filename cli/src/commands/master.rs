//! `dfs master`: one master process.

use anyhow::Context as _;

use crate::args::servers::{MasterAction, MasterRestoreArgs};
use crate::args::{ClusterArgs, MasterArgs, PagesArgs};
use crate::cluster;
use crate::failure::fail_usage;
use crate::output::{self, printable, utc};

pub(crate) fn run(cluster: &ClusterArgs, args: &MasterArgs) -> anyhow::Result<()> {
    if let Some(MasterAction::Restore(args)) = &args.action {
        return restore(cluster, args);
    }
    let MasterArgs {
        action: _,
        data,
        listen,
        address_file,
        profile,
        timing,
        replication,
        min_replicas,
        change_replication,
        accept_loss,
        pages: PagesArgs { metrics, metrics_file },
    } = args;
    let data = data.as_ref().context("--data is missing")?;
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
        change_replication: *change_replication,
        accept_loss: *accept_loss,
        ..master::Config::new(data.clone())
    };
    master::run(config).with_context(|| format!("master in {}", data.display()))
}

fn restore(cluster: &ClusterArgs, args: &MasterRestoreArgs) -> anyhow::Result<()> {
    let MasterRestoreArgs { data, from } = args;
    from.iter().try_for_each(|address| cluster::check_address(address))?;
    let key = cluster::key(cluster)?;
    let restored =
        master::restore::restore(data, from, &key, &mut |step| eprintln!("{}", printable(step)))?;
    let master::restore::Restored { server, index, at_ns, heard_of, inodes, chunks } = restored;
    output::line(&format!(
        "{}: log entries up to {index}, {inodes} inodes, {chunks} chunks, from {}",
        data.display(),
        printable(&server)
    ))?;
    output::line(&format!(
        "complete as of {} UTC; what was logged after that is missing",
        utc(at_ns.div_euclid(1_000_000_000))
    ))?;
    if index < heard_of {
        output::line(&format!(
            "a chunkserver has heard of entry {heard_of}: at least {} entries are missing",
            heard_of - index
        ))?;
    }
    output::line(
        "start the master in it, and then run `dfs fsck`: it names what does not fit together",
    )
}
