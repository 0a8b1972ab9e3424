//! `dfs mkdir`.

use dfs_core::namespace::FileKind;

use crate::args::{ClusterArgs, MkdirArgs};
use crate::failure::fail;
use crate::files::Files;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &MkdirArgs) -> anyhow::Result<()> {
    let MkdirArgs { chunk_size, parents, paths } = args;
    let paths =
        paths.iter().map(|path| RemotePath::parse(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let files = Files::open(cluster)?;
    for path in &paths {
        if *parents {
            make_parents(&files, path)?;
            if exists(&files, path)? {
                continue;
            }
        }
        files.mkdir(path, *chunk_size)?;
    }
    Ok(())
}

fn make_parents(files: &Files, path: &RemotePath) -> anyhow::Result<()> {
    for count in 1..path.names.len() {
        let parent = RemotePath {
            names: path.names.iter().take(count).cloned().collect(),
            wants_directory: true,
        };
        if !exists(files, &parent)? {
            files.mkdir(&parent, None)?;
        }
    }
    Ok(())
}

/// Whether the directory is there; something else there is an error.
fn exists(files: &Files, path: &RemotePath) -> anyhow::Result<bool> {
    match files.find(path)? {
        None => Ok(false),
        Some(attr) if attr.kind == FileKind::Directory => Ok(true),
        Some(_) => fail(
            format!("mkdir {}: exists and is not a directory", path.shown()),
            "choose another name",
        ),
    }
}
