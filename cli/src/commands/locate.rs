//! `dfs locate`.

use dfs_proto::control::LocatedFile;
use serde::Serialize;

use crate::args::{ClusterArgs, LocateArgs};
use crate::files::Files;
use crate::output::{self, Table, columns, printable, utc};
use crate::remote_path::RemotePath;
use crate::{admin, cluster};

#[derive(Debug, Serialize)]
struct Location {
    path: String,
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    inode: u64,
    size: u64,
    /// The content is in the master's inode; there are no chunks.
    inline: bool,
    chunks: Vec<Chunk>,
}

#[derive(Debug, Serialize)]
struct Chunk {
    index: u64,
    id: u64,
    version: u64,
    servers: Vec<String>,
    primary: String,
    /// Those of `servers` that are up.
    live: Vec<String>,
    /// With --files: one for each of `servers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<File>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    server: String,
    /// On the server's machine; null: it was not heard of since the master began its reign.
    path: Option<String>,
    /// Nanoseconds since 1970: the server's last heartbeat that vouched for the chunk; null: none since then.
    updated_ns: Option<i64>,
}

impl From<LocatedFile> for File {
    fn from(file: LocatedFile) -> Self {
        Self {
            server: file.server,
            path: Some(file.path).filter(|path| !path.is_empty()),
            updated_ns: file.updated_ns,
        }
    }
}

impl Location {
    fn files(&self) -> String {
        let head = ["INDEX", "SERVER", "UPDATED", "FILE"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for chunk in &self.chunks {
            rows.extend(chunk.files.iter().flatten().map(|file| {
                let updated = file.updated_ns.map(|at| utc(at.div_euclid(1_000_000_000)));
                vec![
                    chunk.index.to_string(),
                    file.server.clone(),
                    updated.unwrap_or_else(|| "not yet".to_owned()),
                    file.path.as_deref().map_or_else(|| "-".to_owned(), printable),
                ]
            }));
        }
        columns(&rows, &[0])
    }
}

impl Table for Location {
    fn table(&self) -> String {
        if self.inline {
            return "inline\n".to_owned();
        }
        if self.chunks.iter().any(|chunk| chunk.files.is_some()) {
            return self.files();
        }
        let head = ["INDEX", "ID", "VERSION", "PRIMARY", "SERVERS"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.chunks.iter().map(|chunk| {
            let servers = chunk.servers.iter().map(|server| {
                if chunk.live.contains(server) {
                    server.clone()
                } else {
                    format!("{server} (down)")
                }
            });
            vec![
                chunk.index.to_string(),
                chunk.id.to_string(),
                chunk.version.to_string(),
                chunk.primary.clone(),
                servers.collect::<Vec<_>>().join(" "),
            ]
        }));
        columns(&rows, &[0, 1, 2])
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &LocateArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let target = cluster::target(cluster)?;
    let attr = Files::open(cluster)?.regular_file("locate", &path)?;
    let chunks = if attr.inline {
        Vec::new()
    } else {
        admin::locate(&target, attr.ino.0, args.files)?.chunks
    };
    let location = Location {
        path: path.json(),
        path_hex: path.json_hex(),
        inode: attr.ino.0,
        size: attr.size,
        inline: attr.inline,
        chunks: chunks
            .into_iter()
            .map(|chunk| Chunk {
                index: chunk.index,
                id: chunk.id,
                version: chunk.version,
                servers: chunk.servers,
                primary: chunk.primary,
                live: chunk.live,
                files: args.files.then(|| chunk.files.into_iter().map(File::from).collect()),
            })
            .collect(),
    };
    output::print(args.output.format, &location)
}
