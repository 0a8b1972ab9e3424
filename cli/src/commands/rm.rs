//! `dfs rm`.

use dfs_core::ids::InodeNo;
use dfs_core::namespace::FileKind;

use crate::args::{ClusterArgs, RmArgs};
use crate::failure::{fail, for_all};
use crate::files::{Entry, Files};
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &RmArgs) -> anyhow::Result<()> {
    let RmArgs { recursive, force, paths } = args;
    let files = Files::open(cluster)?;
    for_all(paths, |path| remove(&files, &RemotePath::parse(path)?, *recursive, *force))
}

fn remove(files: &Files, path: &RemotePath, recursive: bool, force: bool) -> anyhow::Result<()> {
    if path.is_root() {
        return fail("rm /: the root cannot be removed", "remove what is in it");
    }
    if path.is_dot {
        return fail(
            format!("rm {}/.: '.' is not removed", path.shown()),
            "name the directory without it",
        );
    }
    let attr = match files.find_link(path)? {
        Some(attr) => attr,
        None if force => return Ok(()),
        None => files.attr(path)?,
    };
    if attr.kind != FileKind::Directory {
        files.unlink(path)
    } else if recursive {
        remove_tree(files, attr.ino, path)
    } else {
        fail(format!("rm {}: is a directory", path.shown()), "give -r to remove it and all in it")
    }
}

/// How many names of one directory are removed at once: the master commits what arrives together in one go.
const AT_ONCE: usize = 16;

/// Depth first, with a list of its own: a tree may be deeper than the stack.
fn remove_tree(files: &Files, root: InodeNo, path: &RemotePath) -> anyhow::Result<()> {
    let mut open = vec![(root, path.clone(), false)];
    while let Some((ino, path, emptied)) = open.pop() {
        if emptied {
            files.rmdir(&path)?;
            continue;
        }
        open.push((ino, path.clone(), true));
        let (directories, others): (Vec<Entry>, Vec<Entry>) = files
            .list(ino, &path)?
            .into_iter()
            .partition(|entry| entry.kind == FileKind::Directory);
        unlink_all(files, ino, &path, &others)?;
        open.extend(
            directories.into_iter().map(|entry| (entry.ino, path.join(&entry.name), false)),
        );
    }
    Ok(())
}

fn unlink_all(
    files: &Files,
    parent: InodeNo,
    path: &RemotePath,
    entries: &[Entry],
) -> anyhow::Result<()> {
    let share = entries.len().div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = entries
            .chunks(share)
            .map(|part| {
                scope.spawn(move || {
                    part.iter()
                        .try_for_each(|entry| files.unlink_in(parent, &path.join(&entry.name)))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| {
                Err(anyhow::anyhow!("rm {}: a thread ended early", path.shown()))
            })
        })
    })
}
