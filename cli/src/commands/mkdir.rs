//! `dfs mkdir`.

use dfs_core::namespace::{FileKind, Layout};

use crate::args::{ClusterArgs, FileLayout, MkdirArgs};
use crate::failure::{fail, for_all};
use crate::files::Files;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &MkdirArgs) -> anyhow::Result<()> {
    let MkdirArgs { chunk_size, layout, record_max, parents, paths } = args;
    let given = layout.is_some() || chunk_size.is_some() || record_max.is_some();
    let wanted = |parent: Layout| laid_out(args, parent);
    let wanted: Option<&dyn Fn(Layout) -> Layout> = if given { Some(&wanted) } else { None };
    let files = Files::open(cluster)?;
    for_all(paths, |path| {
        let path = RemotePath::parse(path)?;
        if *parents {
            make_parents(&files, &path)?;
            if exists(&files, &path)? {
                return Ok(());
            }
        }
        files.mkdir(&path, wanted)
    })
}

/// What is not said is as the parent has it, but another chunk size or layout begins with the longest record it allows.
fn laid_out(args: &MkdirArgs, parent: Layout) -> Layout {
    let chunk_size = args.chunk_size.unwrap_or(parent.chunk_size);
    let record_log =
        args.layout.map_or(parent.record_log, |layout| layout == FileLayout::RecordLog);
    let same = (chunk_size, record_log) == (parent.chunk_size, parent.record_log);
    let record_max = args.record_max.unwrap_or(if same { parent.record_max } else { 0 });
    Layout { chunk_size, record_log, record_max }
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
