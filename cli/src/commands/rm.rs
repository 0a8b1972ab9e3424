//! `dfs rm`.

use dfs_core::ids::InodeNo;
use dfs_core::namespace::FileKind;

use crate::args::{ClusterArgs, RmArgs};
use crate::failure::fail;
use crate::files::{Entry, Files};
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &RmArgs) -> anyhow::Result<()> {
    let RmArgs { recursive, force, paths } = args;
    let paths =
        paths.iter().map(|path| RemotePath::parse(path)).collect::<anyhow::Result<Vec<_>>>()?;
    if paths.iter().any(RemotePath::is_root) {
        return fail("rm /: the root cannot be removed", "remove what is in it");
    }
    let files = Files::open(cluster)?;
    for path in &paths {
        let attr = match files.find_link(path)? {
            Some(attr) => attr,
            None if *force => continue,
            None => files.attr(path)?,
        };
        if attr.kind != FileKind::Directory {
            if path.wants_directory {
                return fail(
                    format!("rm {}/: not a directory", path.shown()),
                    "leave the slash out",
                );
            }
            files.unlink(path)?;
        } else if *recursive {
            remove_tree(&files, attr.ino, path)?;
        } else {
            return fail(
                format!("rm {}: is a directory", path.shown()),
                "give -r to remove it and all in it",
            );
        }
    }
    Ok(())
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
