//! `dfs append`: standard input as one record; the primary chooses the offset, the command prints it.

use std::io::Read as _;

use anyhow::Context as _;
use serde::Serialize;

use crate::args::{AppendArgs, ClusterArgs};
use crate::failure::fail;
use crate::files::Files;
use crate::output::{self, Table};
use crate::remote_path::RemotePath;

/// An append is one operation and kept in memory whole.
const RECORD_MAX: u64 = 4 << 20;

#[derive(Debug, Serialize)]
struct Appended {
    path: String,
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
    let mut record = Vec::new();
    std::io::stdin()
        .lock()
        .take(RECORD_MAX + 1)
        .read_to_end(&mut record)
        .context("read standard input")?;
    if RECORD_MAX < record.len() as u64 {
        return fail(
            format!(
                "append {}: standard input is longer than 4 MiB, the longest append",
                path.shown()
            ),
            "append in parts, or use `dfs put`",
        );
    }
    let files = Files::open(cluster)?;
    let offset = files.append(&path, &record)?;
    output::print(
        args.output.format,
        &Appended { path: path.shown(), offset, bytes: record.len() as u64 },
    )
}
