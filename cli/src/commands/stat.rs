//! `dfs stat`.

use dfs_core::namespace::Attr;
use serde::Serialize;

use crate::args::{ClusterArgs, StatArgs};
use crate::failure::for_all;
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
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip)]
    shown: String,
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
    /// striped, recordlog
    layout: &'static str,
    /// Of a record log.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_max: Option<u64>,
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
            path: path.json(),
            path_hex: path.json_hex(),
            shown: path.shown(),
            inode: attr.ino.0,
            kind: kind_name(attr.kind),
            mode: format!("{:04o}", attr.mode),
            links: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            allocated_bytes: attr.allocated_bytes,
            chunk_size: attr.layout.chunk_size,
            layout: if attr.layout.record_log { "recordlog" } else { "striped" },
            record_max: attr.layout.record_log.then(|| attr.layout.record_bytes_max()),
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
                stat.shown,
                stat.kind,
                stat.inode,
                stat.links,
                stat.size,
                bytes(stat.allocated_bytes),
                bytes(stat.chunk_size),
                match stat.record_max {
                    Some(most) => format!(", a record log: records of at most {}", bytes(most)),
                    None if stat.inline => ", inline".to_owned(),
                    None => String::new(),
                },
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
    let files = Files::open(cluster)?;
    let mut stats = Vec::new();
    let all = for_all(&args.paths, |path| {
        let path = RemotePath::parse(path)?;
        // A slash at the end asks for what a link leads to, as lstat(2) takes it.
        let found = if path.wants_directory { None } else { files.find_link(&path)? };
        let attr = match found {
            Some(attr) => attr,
            None => files.attr(&path)?,
        };
        stats.push(Stat::new(&path, &attr));
        Ok(())
    });
    if !stats.is_empty() {
        output::print(args.output.format, &Stats(stats))?;
    }
    all
}
