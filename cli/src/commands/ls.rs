//! `dfs ls`.

use dfs_core::namespace::{Attr, FileKind};
use serde::Serialize;

use crate::args::{ClusterArgs, LsArgs};
use crate::files::{Entry, Files, kind_name};
use crate::output::{self, Table, columns, utc};
use crate::remote_path::RemotePath;

#[derive(Debug, Serialize)]
struct Listing {
    path: String,
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    entries: Vec<Row>,
    #[serde(skip)]
    long: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    /// The name in hexadecimal digits, if it is no UTF-8: `name` has replacement characters then.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    #[serde(skip)]
    shown: String,
    kind: &'static str,
    inode: u64,
    #[serde(flatten)]
    attributes: Option<Attributes>,
}

#[derive(Debug, Serialize)]
struct Attributes {
    /// Four octal digits.
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// UTC.
    modified: String,
}

impl Table for Listing {
    fn table(&self) -> String {
        if !self.long {
            return self.entries.iter().map(|row| format!("{}\n", row.shown)).collect();
        }
        let rows: Vec<Vec<String>> = self
            .entries
            .iter()
            .map(|row| match &row.attributes {
                Some(a) => vec![
                    row.kind.to_owned(),
                    a.mode.clone(),
                    a.links.to_string(),
                    a.uid.to_string(),
                    a.gid.to_string(),
                    a.size.to_string(),
                    a.modified.clone(),
                    row.shown.clone(),
                ],
                None => vec![
                    row.kind.to_owned(),
                    String::new(),
                    String::new(),
                    String::new(),
                    String::new(),
                    String::new(),
                    String::new(),
                    row.shown.clone(),
                ],
            })
            .collect();
        columns(&rows, &[2, 3, 4, 5])
    }
}

fn attributes(attr: &Attr) -> Attributes {
    Attributes {
        mode: format!("{:04o}", attr.mode),
        links: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        modified: utc(attr.mtime.0.div_euclid(1_000_000_000)),
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &LsArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let files = Files::open(cluster)?;
    let attr = files.attr(&path)?;
    let mut entries = if attr.kind == FileKind::Directory {
        files.list(attr.ino, &path)?
    } else {
        let name = path.last().unwrap_or(b"/").to_vec();
        vec![Entry { name, ino: attr.ino, kind: attr.kind, attr: Some(attr) }]
    };
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let rows = entries.iter().map(|entry| Row {
        name: String::from_utf8_lossy(&entry.name).into_owned(),
        name_hex: output::hex_unless_utf8(&entry.name),
        shown: output::escaped(&entry.name),
        kind: kind_name(entry.kind),
        inode: entry.ino.0,
        attributes: entry.attr.as_ref().filter(|_| args.long).map(attributes),
    });
    let listing = Listing {
        path: path.json(),
        path_hex: path.json_hex(),
        entries: rows.collect(),
        long: args.long,
    };
    output::print(args.output.format, &listing)
}
