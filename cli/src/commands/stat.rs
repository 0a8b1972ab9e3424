//! `dfs stat`.

use dfs_core::namespace::Attr;
use serde::Serialize;

use crate::args::{ClusterArgs, StatArgs};
use crate::files::{Files, kind_name};
use crate::output::{self, Table, bytes, utc};
use crate::remote_path::RemotePath;

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Stats(Vec<Stat>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stat {
    path: String,
    inode: u64,
    kind: &'static str,
    /// Four octal digits.
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    allocated_bytes: u64,
    chunk_size: u64,
    inline: bool,
    change: u64,
    /// Nanoseconds since 1970.
    accessed_ns: i64,
    modified_ns: i64,
    changed_ns: i64,
    created_ns: i64,
}

impl Stat {
    fn new(path: &RemotePath, attr: &Attr) -> Self {
        Self {
            path: path.shown(),
            inode: attr.ino.0,
            kind: kind_name(attr.kind),
            mode: format!("{:04o}", attr.mode),
            links: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            allocated_bytes: attr.allocated_bytes,
            chunk_size: attr.layout.chunk_size,
            inline: attr.inline,
            change: attr.change,
            accessed_ns: attr.atime.0,
            modified_ns: attr.mtime.0,
            changed_ns: attr.ctime.0,
            created_ns: attr.btime.0,
        }
    }
}

impl Table for Stats {
    fn table(&self) -> String {
        let time = |ns: i64| utc(ns.div_euclid(1_000_000_000));
        let parts = self.0.iter().map(|stat| {
            format!(
                "path      {}\nkind      {}, inode {}, {} link(s)\nsize      {} bytes, {} allocated, chunks of {}{}\n\
                 mode      {}, owner {}:{}\nmodified  {}\nchanged   {}\naccessed  {}\ncreated   {}\n",
                stat.path,
                stat.kind,
                stat.inode,
                stat.links,
                stat.size,
                bytes(stat.allocated_bytes),
                bytes(stat.chunk_size),
                if stat.inline { ", inline" } else { "" },
                stat.mode,
                stat.uid,
                stat.gid,
                time(stat.modified_ns),
                time(stat.changed_ns),
                time(stat.accessed_ns),
                time(stat.created_ns),
            )
        });
        parts.collect::<Vec<_>>().join("\n")
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &StatArgs) -> anyhow::Result<()> {
    let paths = args
        .paths
        .iter()
        .map(|path| RemotePath::parse(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let files = Files::open(cluster)?;
    let stats = paths
        .iter()
        .map(|path| match files.find_link(path)? {
            Some(attr) => Ok(Stat::new(path, &attr)),
            None => files.attr(path).map(|attr| Stat::new(path, &attr)),
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    output::print(args.output.format, &Stats(stats))
}
