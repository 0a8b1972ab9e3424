//! `dfs append`: standard input as one record, at one offset that the primary chooses and the command prints. What is
//! longer than a record may be is refused before anything is written (DECISIONS 22).

use std::io::Read as _;

use anyhow::Context as _;
use serde::Serialize;

use crate::args::{AppendArgs, ClusterArgs};
use crate::failure::fail;
use crate::files::Files;
use crate::output::{self, Table};
use crate::remote_path::RemotePath;

#[derive(Debug, Serialize)]
struct Appended {
    path: String,
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    offset: u64,
    bytes: u64,
}

impl Table for Appended {
    fn table(&self) -> String {
        format!("{}\n", self.offset)
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &AppendArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let files = Files::open(cluster)?;
    let longest = files.longest_record(&path)?;
    let mut record = Vec::new();
    std::io::stdin()
        .lock()
        .take(longest + 1)
        .read_to_end(&mut record)
        .context("read standard input")?;
    if longest < record.len() as u64 {
        return fail(
            format!(
                "append {}: standard input is longer than {longest} bytes, the longest append to \
                 this file (at most a quarter of its chunk size, and 4 MiB)",
                path.shown()
            ),
            "append in parts; each is a record of its own",
        );
    }
    let offset = files.append(&path, &record)?;
    output::print(
        args.output.format,
        &Appended {
            path: path.json(),
            path_hex: path.json_hex(),
            offset,
            bytes: record.len() as u64,
        },
    )
}
