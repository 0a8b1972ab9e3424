//! `dfs trash`: deleted files that are kept for a while.

use std::time::Duration;

use anyhow::Context as _;
use dfs_proto::control::trash_client::TrashClient;
use dfs_proto::control::{
    TrashEmptyRequest, TrashEntry, TrashKeepRequest, TrashListRequest, TrashRestoreRequest,
};
use dfs_service::conn::control_channel;
use serde::Serialize;

use crate::admin::call;
use crate::args::trash::{TrashArgs, TrashVerb};
use crate::args::{ClusterArgs, OutputArgs};
use crate::cluster::{self, Target};
use crate::failure::{Failure, fail};
use crate::files::Files;
use crate::output::{self, Table, bytes, columns, escaped, hex_unless_utf8, utc};
use crate::remote_path::RemotePath;
use crate::servers;

const PAGE: u32 = 1_000;

macro_rules! ask {
    ($target:expr, $method:ident, $request:expr) => {{
        let request = $request;
        call($target, async |target: &Target| {
            let channel = control_channel(&target.master, &target.key);
            let answer = TrashClient::new(channel).$method(request.clone()).await;
            answer.map(|reply| reply.into_inner()).map_err(|refusal| refusal.message().to_owned())
        })
    }};
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// 0: what is deleted is not kept.
    keep_seconds: u64,
    files: Vec<Deleted>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    number: u64,
    inode: u64,
    size: u64,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    /// Null: its directory is gone.
    path: Option<String>,
    /// UTC.
    deleted: String,
    until: String,
    #[serde(skip)]
    shown: String,
}

impl From<TrashEntry> for Deleted {
    fn from(entry: TrashEntry) -> Self {
        let TrashEntry { number, inode, size, name, path, deleted_ns, until_ns } = entry;
        let at = |nanos: i64| utc(nanos.div_euclid(1_000_000_000));
        let shown = if path.is_empty() {
            format!("{} (its directory is gone)", escaped(&name))
        } else {
            escaped(&path)
        };
        Self {
            number,
            inode,
            size,
            name: String::from_utf8_lossy(&name).into_owned(),
            name_hex: hex_unless_utf8(&name),
            path: (!path.is_empty()).then(|| String::from_utf8_lossy(&path).into_owned()),
            deleted: at(deleted_ns),
            until: at(until_ns),
            shown,
        }
    }
}

impl Table for Listed {
    fn table(&self) -> String {
        let keeps = match self.keep_seconds {
            0 => "deleted files are not kept; `dfs trash keep 7d` changes that\n".to_owned(),
            seconds => format!("deleted files are kept for {}\n", long_time(seconds)),
        };
        if self.files.is_empty() {
            return format!("the trash is empty; {keeps}");
        }
        let mut rows =
            vec![["NUMBER", "SIZE", "DELETED", "UNTIL", "PATH"].map(str::to_owned).to_vec()];
        rows.extend(self.files.iter().map(|file| {
            let Deleted { number, size, deleted, until, shown, .. } = file;
            vec![number.to_string(), bytes(*size), deleted.clone(), until.clone(), shown.clone()]
        }));
        format!("{}\n{keeps}", columns(&rows, &[0, 1]))
    }
}

#[derive(Debug, Serialize)]
struct Restored {
    path: String,
    #[serde(skip)]
    shown: String,
}

impl Table for Restored {
    fn table(&self) -> String {
        format!("{} is back\n", self.shown)
    }
}

#[derive(Debug, Serialize)]
struct Emptied {
    emptied: u64,
}

impl Table for Emptied {
    fn table(&self) -> String {
        format!("{} file(s) deleted for good\n", self.emptied)
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &TrashArgs) -> anyhow::Result<()> {
    let target = &cluster::target(cluster)?;
    match &args.verb {
        TrashVerb::Ls { output } => list(target, *output),
        TrashVerb::Keep { time } => {
            let request = TrashKeepRequest { keep_ms: millis(*time), by: servers::myself() };
            ask!(target, keep, request).context("trash keep")?;
            Ok(())
        }
        TrashVerb::Restore { number, path, output } => {
            let mut request = TrashRestoreRequest { number: *number, ..Default::default() };
            if let Some(path) = path {
                let (parent, name) = place(cluster, &RemotePath::parse(path)?)?;
                request = TrashRestoreRequest { parent: Some(parent), name, ..request };
            }
            let restored = ask!(target, restore, request).map_err(|error| {
                Failure::new(format!("trash restore {number}: {error:#}"), "see `dfs trash ls`")
            })?;
            let path = String::from_utf8_lossy(&restored.path).into_owned();
            output::print(output.format, &Restored { path, shown: escaped(&restored.path) })
        }
        TrashVerb::Empty { numbers, older, output } => {
            let older_ms = older.map_or(0, millis);
            let request = TrashEmptyRequest { numbers: numbers.clone(), older_ms };
            let emptied = ask!(target, empty, request).map_err(|error| {
                Failure::new(format!("trash empty: {error:#}"), "see `dfs trash ls`")
            })?;
            output::print(output.format, &Emptied { emptied: emptied.emptied })
        }
    }
}

/// In the largest unit that is exact.
fn long_time(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let exact = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
    exact
        .map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The directory that `path` is to be in, and its name there.
fn place(cluster: &ClusterArgs, path: &RemotePath) -> anyhow::Result<(u64, Vec<u8>)> {
    let Some((name, above)) = path.names.split_last().filter(|_| !path.wants_directory) else {
        return fail(
            format!("trash restore: {} is no name for a file", path.shown()),
            "name a path that ends with the file's name",
        );
    };
    let dir = RemotePath { names: above.to_vec(), wants_directory: true, is_dot: false };
    Ok((Files::open(cluster)?.attr(&dir)?.ino.0, name.clone()))
}

fn list(target: &Target, output: OutputArgs) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let mut from = 0;
    loop {
        let page = ask!(target, list, TrashListRequest { from, max: PAGE }).context("trash ls")?;
        files.extend(page.entries.into_iter().map(Deleted::from));
        match page.next {
            Some(next) => from = next,
            None => {
                let listed = Listed { keep_seconds: page.keep_ms / 1000, files };
                return output::print(output.format, &listed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_listed_with_its_path_or_that_its_directory_is_gone() {
        let entry = |number, path: &[u8]| TrashEntry {
            number,
            inode: 9,
            size: 2048,
            name: b"a\n".to_vec(),
            path: path.to_vec(),
            deleted_ns: 0,
            until_ns: 60_000_000_000,
        };
        let files = [entry(1, b"/d/a\n"), entry(2, b"")].map(Deleted::from);
        let listed = Listed { keep_seconds: 172_800, files: files.into() };
        let said = listed.table();
        assert!(said.contains("/d/a\\n") && said.contains("its directory is gone"), "{said}");
        assert!(said.ends_with("deleted files are kept for 2 d\n"), "{said}");
        let json = serde_json::to_value(&listed).unwrap();
        assert_eq!(json["files"][1]["path"], serde_json::Value::Null);
        let none = Listed { keep_seconds: 0, files: Vec::new() };
        assert!(none.table().starts_with("the trash is empty; deleted files are not kept"));
    }

    #[test]
    fn times_are_told_in_the_largest_exact_unit() {
        for (seconds, expected) in [(90, "90 s"), (120, "2 min"), (7_200, "2 h"), (86_400, "1 d")] {
            assert_eq!(long_time(seconds), expected);
        }
    }
}
