//! `dfs mkdir`.

use dfs_core::namespace::FileKind;

use crate::args::{ClusterArgs, MkdirArgs};
use crate::failure::{fail, for_all};
use crate::files::Files;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &MkdirArgs) -> anyhow::Result<()> {
    let MkdirArgs { chunk_size, parents, paths } = args;
    let files = Files::open(cluster)?;
    for_all(paths, |path| {
        let path = RemotePath::parse(path)?;
        if *parents {
            make_parents(&files, &path)?;
            if exists(&files, &path)? {
                return Ok(());
            }
        }
        files.mkdir(&path, *chunk_size)
    })
}

fn make_parents(files: &Files, path: &RemotePath) -> anyhow::Result<()> {
    for count in 1..path.names.len() {
        let parent = RemotePath {
            names: path.names.iter().take(count).cloned().collect(),
            wants_directory: true,
            is_dot: false,
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
