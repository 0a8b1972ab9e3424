//! `dfs rebalance`.

use std::time::Duration;

use dfs_proto::control::RebalanceReply;
use serde::Serialize;

use crate::args::ClusterArgs;
use crate::args::servers::RebalanceArgs;
use crate::cluster::Target;
use crate::failure::Failure;
use crate::output::{self, Table, bytes, columns};
use crate::progress::Steps;
use crate::{cluster, servers};

const POLL: Duration = Duration::from_millis(500);

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rebalanced {
    /// False: it was so already, or nothing was to be changed.
    changed: bool,
    running: bool,
    moved_chunks: u64,
    moved_bytes: u64,
    /// That would have to move for all to be equally full; 0: they are about equal.
    uneven_bytes: u64,
    servers: Vec<Share>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Share {
    id: String,
    /// Of its disk that chunks take.
    permille: u64,
    bytes: u64,
}

impl From<RebalanceReply> for Rebalanced {
    fn from(reply: RebalanceReply) -> Self {
        let servers = reply.servers.into_iter().map(|share| Share {
            id: share.server,
            permille: share.permille,
            bytes: share.listed_bytes,
        });
        Self {
            changed: reply.changed,
            running: reply.running,
            moved_chunks: reply.moved_chunks,
            moved_bytes: reply.moved_bytes,
            uneven_bytes: reply.uneven_bytes,
            servers: servers.collect(),
        }
    }
}

impl Table for Rebalanced {
    fn table(&self) -> String {
        let mut rows = vec![["SERVER", "CHUNKS TAKE", "OF ITS DISK"].map(str::to_owned).to_vec()];
        rows.extend(self.servers.iter().map(|share| {
            let part = format!("{}.{} %", share.permille / 10, share.permille % 10);
            vec![share.id.clone(), bytes(share.bytes), part]
        }));
        let state = match (self.running, self.uneven_bytes) {
            (true, left) => {
                format!("running, {} to move; `dfs rebalance --stop` ends it", bytes(left))
            }
            (false, 0) => "the servers are about equally full".to_owned(),
            (false, left) => format!("not running; {} would have to move", bytes(left)),
        };
        let moved = match self.moved_chunks {
            0 => String::new(),
            chunks => format!("; {chunks} chunk(s), {} moved", bytes(self.moved_bytes)),
        };
        format!("{}\n{state}{moved}\n", columns(&rows, &[1, 2]))
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &RebalanceArgs) -> anyhow::Result<()> {
    let RebalanceArgs { dry_run, stop, no_wait, output } = args;
    let target = cluster::target(cluster)?;
    let action = match (dry_run, stop) {
        (true, _) => "show",
        (false, true) => "stop",
        (false, false) => "start",
    };
    let mut reply = servers::rebalance(&target, action)
        .map_err(|error| Failure::new(format!("rebalance: {error:#}"), "see `dfs status`"))?;
    if action == "start" && !no_wait {
        reply = RebalanceReply { changed: reply.changed, ..wait_until_over(&target)? };
    }
    output::print(output.format, &Rebalanced::from(reply))
}

/// Follows it to its end. Interrupting that ends the watching only.
fn wait_until_over(target: &Target) -> anyhow::Result<RebalanceReply> {
    let mut steps = Steps::new();
    loop {
        let reply = servers::rebalance(target, "show")
            .map_err(|error| Failure::new(format!("rebalance: {error:#}"), "give it again"))?;
        if !reply.running {
            steps.finish();
            return Ok(reply);
        }
        steps.say(&progress(&reply));
        std::thread::sleep(POLL);
    }
}

fn progress(reply: &RebalanceReply) -> String {
    let RebalanceReply { uneven_bytes, moved_chunks, rate, eta_ms, waits_because, .. } = reply;
    let pace = match waits_because.as_str() {
        "" => output::pace(*rate, *eta_ms),
        why => format!("waits: {}", output::printable(why)),
    };
    format!("{moved_chunks} chunks moved, {} to move; {pace}", bytes(*uneven_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_left_or_why_nothing_moves() {
        let reply = RebalanceReply {
            running: true,
            moved_chunks: 4,
            uneven_bytes: 2 << 20,
            rate: 1 << 20,
            eta_ms: Some(2_000),
            ..RebalanceReply::default()
        };
        assert_eq!(progress(&reply), "4 chunks moved, 2.0 MiB to move; 1.0 MiB/s, 2.0 s left");
        let waits = RebalanceReply { waits_because: "chunks lack copies".to_owned(), ..reply };
        assert!(progress(&waits).ends_with("waits: chunks lack copies"));
    }
}
