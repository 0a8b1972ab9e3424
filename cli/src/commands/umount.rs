//! `dfs umount PATH`: also where the mount's process is dead and every look at the path fails.

use crate::args::mount::UmountArgs;
use crate::failure::fail;
use crate::{mount_point, output};

pub(crate) fn run(args: &UmountArgs) -> anyhow::Result<()> {
    let path = mount_point::absolute(&args.path)?;
    if !mount_point::is_fuse_mounted(&path) {
        return fail(
            format!("umount {}: no file system of ours is mounted there", path.display()),
            "see `findmnt -t fuse` for what is mounted",
        );
    }
    mount_point::unmount(&path)?;
    output::line(&format!("unmounted {}", path.display()))
}
