//! `dfs whatif`.

use clap::{Args, Subcommand};
use dfs_core::exposure::eta_ms;
use dfs_core::ids::ServerId;
use dfs_proto::control::{ChunkTotals, WhatIfReply};
use serde::Serialize;

use crate::args::{ClusterArgs, OutputArgs};
use crate::commands::status::time;
use crate::output::{self, Table, bytes, columns};
use crate::{admin, cluster};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs whatif kill cs-2               chunks by safety, writes and times if cs-2 died now
  dfs whatif kill cs-2 cs-5 -o json  both at once

Nothing is changed: the numbers are those `dfs status` would show just after.")]
pub(crate) struct WhatIfArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Subcommand, Debug)]
pub(crate) enum What {
    /// What if these chunkservers died now, all at once
    Kill(KillArgs),
}

#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// Names of servers: cs-1, cs-2, …
    #[arg(required = true, value_name = "SERVER")]
    pub servers: Vec<ServerId>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Prediction {
    kill: Vec<String>,
    before: Chunks,
    /// At once, before anything is copied.
    after: Chunks,
    /// To every file there is and to new ones, without waiting for a copy.
    writes_go_on: bool,
    chunks_not_writable: u64,
    new_chunks: bool,
    /// If none of them comes back.
    bytes_to_copy: u64,
    /// As last measured; null: nothing was copied since the master started.
    copy_bytes_per_second: Option<u64>,
    rebuild_ms: Option<u64>,
    /// Why copies of chunks with more than one left would wait.
    hold: Option<String>,
    profiles: Vec<Profile>,
}

#[derive(Debug, Serialize)]
struct Chunks {
    total: u64,
    safe: u64,
    degraded: u64,
    endangered: u64,
    unavailable: u64,
    lost: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    name: String,
    /// This cluster's.
    current: bool,
    hang_noticed_ms: u64,
    dead_ms: u64,
    copies_begin_ms: u64,
}

impl From<Option<ChunkTotals>> for Chunks {
    fn from(totals: Option<ChunkTotals>) -> Self {
        let ChunkTotals { total, safe, degraded, endangered, unavailable, lost } =
            totals.unwrap_or_default();
        Self { total, safe, degraded, endangered, unavailable, lost }
    }
}

impl Prediction {
    fn new(kill: Vec<String>, reply: WhatIfReply) -> Self {
        let WhatIfReply {
            before,
            after,
            chunks_not_writable,
            new_chunks,
            bytes_to_copy,
            copy_rate,
            profiles,
            hold,
        } = reply;
        Self {
            kill,
            before: before.into(),
            after: after.into(),
            writes_go_on: chunks_not_writable == 0 && new_chunks,
            chunks_not_writable,
            new_chunks,
            bytes_to_copy,
            copy_bytes_per_second: copy_rate,
            rebuild_ms: eta_ms(bytes_to_copy, copy_rate.unwrap_or(0)),
            hold: Some(hold).filter(|hold| !hold.is_empty()),
            profiles: profiles
                .into_iter()
                .map(|profile| Profile {
                    name: profile.name,
                    current: profile.current,
                    hang_noticed_ms: profile.hang_noticed_ms,
                    dead_ms: profile.dead_ms,
                    copies_begin_ms: profile.copies_begin_ms,
                })
                .collect(),
        }
    }

    fn writes(&self) -> String {
        match (self.chunks_not_writable, self.new_chunks) {
            (0, true) => "go on".to_owned(),
            (0, false) => "to new chunks wait: too few servers would be left".to_owned(),
            (waiting, new) => format!(
                "to {waiting} chunk{} wait until a server comes back or a copy is made{}",
                if waiting == 1 { "" } else { "s" },
                if new { "; new chunks can be written" } else { "; so do those to new chunks" }
            ),
        }
    }

    fn rebuild(&self) -> String {
        let left = match (self.bytes_to_copy, self.rebuild_ms) {
            (0, _) => return "nothing that could be copied".to_owned(),
            (left, Some(ms)) => format!("{} to copy, about {}", bytes(left), time(ms)),
            (left, None) => {
                format!("{} to copy; how long that takes was not measured yet", bytes(left))
            }
        };
        match &self.hold {
            Some(hold) => format!("{left}; chunks with more than one copy wait: {hold}"),
            None => left,
        }
    }
}

impl Table for Prediction {
    fn table(&self) -> String {
        let row = |name: &str, chunks: &Chunks| {
            let Chunks { total, safe, degraded, endangered, unavailable, lost } = chunks;
            let counts = [total, safe, degraded, endangered, unavailable, lost];
            std::iter::once(name.to_owned()).chain(counts.map(ToString::to_string)).collect()
        };
        let head = ["CHUNKS", "TOTAL", "SAFE", "DEGRADED", "ENDANGERED", "UNAVAILABLE", "LOST"];
        let killed = format!("without {}", self.kill.join(", "));
        let rows: Vec<Vec<String>> = vec![
            head.map(str::to_owned).to_vec(),
            row("now", &self.before),
            row(&killed, &self.after),
        ];
        let mut out = columns(&rows, &[1, 2, 3, 4, 5, 6]);
        out.push_str(&format!("\nwrites   {}\n", self.writes()));
        out.push_str(&format!("rebuild  {}\n\n", self.rebuild()));
        let head = ["PROFILE", "KILL NOTICED", "HANG NOTICED", "DEAD", "COPIES BEGIN"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.profiles.iter().map(|profile| {
            let current = if profile.current { " (this cluster)" } else { "" };
            vec![
                format!("{}{current}", profile.name),
                "at once".to_owned(),
                time(profile.hang_noticed_ms),
                time(profile.dead_ms),
                time(profile.copies_begin_ms),
            ]
        }));
        out.push_str(&columns(&rows, &[]));
        out.push_str("Chunks with one copy left are copied at once.\n");
        out
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &WhatIfArgs) -> anyhow::Result<()> {
    let What::Kill(KillArgs { servers, output }) = &args.what;
    let mut names: Vec<String> = servers.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    let target = cluster::target(cluster)?;
    let reply = admin::what_if(&target, names.clone())?;
    output::print(output.format, &Prediction::new(names, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::control::ProfileTimes;

    fn reply() -> WhatIfReply {
        WhatIfReply {
            before: Some(ChunkTotals { total: 9, safe: 9, ..ChunkTotals::default() }),
            after: Some(ChunkTotals {
                total: 9,
                safe: 4,
                degraded: 3,
                endangered: 2,
                ..ChunkTotals::default()
            }),
            chunks_not_writable: 2,
            new_chunks: true,
            bytes_to_copy: 7 << 20,
            copy_rate: Some(1 << 20),
            profiles: vec![ProfileTimes {
                name: "drill".into(),
                current: true,
                hang_noticed_ms: 1500,
                dead_ms: 3000,
                copies_begin_ms: 3000,
            }],
            hold: String::new(),
        }
    }

    #[test]
    fn a_prediction_is_the_same_in_words_and_in_json() {
        let prediction = Prediction::new(vec!["cs-2".into()], reply());
        let table = prediction.table();
        for line in [
            "without cs-2      9     4         3           2            0     0",
            "writes   to 2 chunks wait until a server comes back or a copy is made; new chunks can",
            "rebuild  7.0 MiB to copy, about 7.0 s",
            "drill (this cluster)  at once       1.5 s         3.0 s  3.0 s",
        ] {
            assert!(table.contains(line), "{line}\n{table}");
        }
        let json = serde_json::to_value(&prediction).unwrap();
        assert_eq!(json["after"]["endangered"], 2);
        assert_eq!(json["writesGoOn"], false);
        assert_eq!(json["rebuildMs"], 7000);
        assert_eq!(json["profiles"][0]["copiesBeginMs"], 3000);
        assert!(json["hold"].is_null());
    }
}
