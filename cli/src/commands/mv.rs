//! `dfs mv`.

use dfs_core::namespace::FileKind;

use crate::args::{ClusterArgs, MvArgs};
use crate::failure::fail;
use crate::files::Files;
use crate::remote_path::RemotePath;

pub(crate) fn run(cluster: &ClusterArgs, args: &MvArgs) -> anyhow::Result<()> {
    let from = RemotePath::parse(&args.from)?;
    let to = RemotePath::parse(&args.to)?;
    let Some(name) = from.last() else {
        return fail("mv /: the root cannot be moved", "move what is in it");
    };
    let files = Files::open(cluster)?;
    // A slash behind what is moved must be true of it: rename(2) is not told.
    if from.wants_directory {
        files.find_link(&from)?;
    }
    let target = match files.find(&to)? {
        Some(attr) if attr.kind == FileKind::Directory => to.join(name),
        None if to.wants_directory && files.attr(&from)?.kind != FileKind::Directory => {
            return fail(
                format!("mv {}: no such directory {}/", from.shown(), to.shown()),
                "make it first, or leave the last slash out",
            );
        }
        Some(_) | None => to,
    };
    if from != target && from.holds(&target) {
        return fail(
            format!(
                "mv {} {}: a directory cannot be moved into itself",
                from.shown(),
                target.shown()
            ),
            "choose a target outside of it",
        );
    }
    files.rename(&from, &target)
}
