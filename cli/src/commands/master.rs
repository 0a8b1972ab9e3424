//! `dfs master`: one master process.

use std::io::{BufRead, Read as _};
use std::time::Instant;

use anyhow::Context as _;
use master::lines::{Conversation, LINE_BYTES_MAX, Settings};

use crate::args::servers::{LinesArgs, MasterAction, MasterRestoreArgs};
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
        lines: LinesArgs { stdio, stopped_clock, record },
        listen,
        address_file,
        profile,
        timing,
        replication,
        min_replicas,
        change_replication,
        chunk_size,
        accept_loss,
        exercise,
        pages: PagesArgs { metrics, metrics_file },
    } = args;
    let profile = timing.profile(profile.name())?;
    if *stdio {
        let settings = Settings {
            profile,
            replication: *replication as usize,
            // The exercise wants the copy with the first answer after the death (DECISIONS 15).
            rebuild_delay_ms: 0,
        };
        return converse(settings, *stopped_clock);
    }
    let data = data.as_ref().context("--data is missing")?;
    if replication < min_replicas {
        return fail_usage(
            format!(
                "usage: --min-replicas {min_replicas}: more than --replication {replication}, no write would ever be accepted"
            ),
            format!("give a number from 1 to {replication}"),
        );
    }
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
        chunk_size: *chunk_size,
        accept_loss: *accept_loss,
        exercise: *exercise,
        record: record.clone(),
        ..master::Config::new(data.clone())
    };
    master::run(config).with_context(|| format!("master in {}", data.display()))
}

/// `--stdio`. Events go to standard error.
fn converse(settings: Settings, stopped_clock: bool) -> anyhow::Result<()> {
    let mut conversation = Conversation::new(settings);
    let mut input = std::io::stdin().lock();
    let began = Instant::now();
    let mut line = Vec::new();
    while next_line(&mut input, &mut line).context("read standard input")? {
        let elapsed = if stopped_clock { 0 } else { began.elapsed().as_nanos() };
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        if let Some(answer) = conversation.answer(elapsed, &line) {
            output::line(&answer)?;
        }
        for event in conversation.take_events() {
            eprintln!("{}", printable(&event));
        }
    }
    Ok(())
}

/// Of a line that is too long only so much that this shows is kept. False at the end.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let limit = LINE_BYTES_MAX as u64 + 1;
    let mut read = input.take(limit).read_until(b'\n', line)?;
    while read != 0 && line.last() != Some(&b'\n') {
        let mut rest = Vec::new();
        read = input.take(limit).read_until(b'\n', &mut rest)?;
        if rest.last() == Some(&b'\n') {
            break;
        }
    }
    Ok(!line.is_empty())
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
