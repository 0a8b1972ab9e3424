//! Mount points as the kernel lists them: is one mounted, may one be used, take it off.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use fuse_client::mount_table::{Health, health, mounted_at};

use crate::failure::fail;
use crate::process::run_within;

/// A mount whose process does not read requests keeps whoever asks it waiting.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Taking a mount off waits for its process to close it.
const UNMOUNT_MAX: Duration = Duration::from_secs(15);

pub(crate) fn is_fuse_mounted(path: &Path) -> bool {
    mounted_at(path)
        .is_ok_and(|on_top| on_top.is_some_and(|on_top| on_top.kind.starts_with("fuse")))
}

/// Whether the mount answers within `timeout`. A dead one answers ENOTCONN, a hanging one not at all.
pub(crate) fn answers(path: &Path, timeout: Duration) -> bool {
    is_fuse_mounted(path) && health(path, timeout) == Health::Answers
}

/// Takes a mount off, lazily if need be (its process may be dead). Says so if nothing is mounted.
pub(crate) fn unmount(path: &Path) -> anyhow::Result<()> {
    let mut said = String::new();
    for (program, flags) in
        [("fusermount3", "-u"), ("umount", ""), ("fusermount3", "-uz"), ("umount", "-l")]
    {
        if !is_fuse_mounted(path) {
            return Ok(());
        }
        let mut command = Command::new(program);
        if !flags.is_empty() {
            command.arg(flags);
        }
        match run_within(command.arg(path), UNMOUNT_MAX) {
            Ok(Some((status, _))) if status.success() => {}
            Ok(Some((_, words))) => said = words,
            Ok(None) => said = format!("{program}: not done after {} s", UNMOUNT_MAX.as_secs()),
            Err(error) if said.is_empty() => said = format!("{program}: {error}"),
            Err(_) => {}
        }
    }
    if is_fuse_mounted(path) {
        return fail(
            format!("unmount {}: {said}", path.display()),
            "end the programs that use it (fuser -vm PATH shows them) and try again",
        );
    }
    Ok(())
}

/// Refuses what cannot be a mount point and changes nothing. Returns the absolute path.
pub(crate) fn check(path: &Path) -> anyhow::Result<PathBuf> {
    fuse_client::check_device()?;
    // `absolute` does not touch the disk: a dead mount in the way would answer every look at it with an error.
    let wanted = absolute(path)?;
    if is_fuse_mounted(&wanted) {
        if health(&wanted, ANSWER_MAX) == Health::Dead {
            return Ok(wanted);
        }
        return fail(
            format!("mount point {}: something is mounted there already", wanted.display()),
            format!("unmount it with `dfs umount {}` or name another directory", wanted.display()),
        );
    }
    // What is missing can be made, but only below a directory.
    let Some(there) = wanted.ancestors().find(|part| part.symlink_metadata().is_ok()) else {
        return Ok(wanted);
    };
    if !there.is_dir() {
        return fail(
            format!("mount point {}: {} is not a directory", wanted.display(), there.display()),
            "name an empty or new directory",
        );
    }
    if there != wanted {
        return Ok(wanted);
    }
    let mut entries =
        wanted.read_dir().with_context(|| format!("read mount point {}", wanted.display()))?;
    if let Some(entry) = entries.next() {
        let name = entry.map(|e| e.file_name().to_string_lossy().into_owned()).unwrap_or_default();
        return fail(
            format!("mount point {}: not empty, it holds '{name}'", wanted.display()),
            "name an empty or new directory",
        );
    }
    Ok(wanted)
}

/// As [`check`], and makes the directory if it is missing. A dead mount there stays: the new one takes its place.
pub(crate) fn prepare(path: &Path) -> anyhow::Result<PathBuf> {
    let made = Made::at(path)?;
    made.keep();
    Ok(made.at.clone())
}

/// A mount point as [`prepare`] makes it. The directories that were made for it go again with this, unless something
/// was mounted.
#[derive(Debug)]
pub(crate) struct Made {
    pub at: PathBuf,
    /// The lowest first.
    dirs: Vec<PathBuf>,
    kept: AtomicBool,
}

impl Made {
    pub(crate) fn at(path: &Path) -> anyhow::Result<Self> {
        let wanted = check(path)?;
        if is_fuse_mounted(&wanted) {
            // A dead one: it stays until the new mount can take its place, which may wait for the master.
            return Ok(Self { at: wanted, dirs: Vec::new(), kept: AtomicBool::new(true) });
        }
        let absent = |part: &&Path| part.symlink_metadata().is_err();
        let dirs = wanted.ancestors().take_while(absent).map(Path::to_owned).collect();
        let mut made = Self { at: wanted, dirs, kept: AtomicBool::new(false) };
        std::fs::create_dir_all(&made.at)
            .with_context(|| format!("make mount point {}", made.at.display()))?;
        made.at =
            made.at.canonicalize().with_context(|| format!("mount point {}", made.at.display()))?;
        // Once more: a link may have hidden what is there.
        check(&made.at)?;
        Ok(made)
    }

    /// The directories stay.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            for dir in &self.dirs {
                // One that somebody uses by now stays, and so do those above it.
                let _in_use_or_never_made = std::fs::remove_dir(dir);
            }
        }
    }
}

/// Absolute and without symbolic links in the parents, so that it compares equal to the kernel's table; the last
/// component itself is not looked at.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return fail("mount point: the path is empty", "name a directory");
    }
    let whole = std::path::absolute(path).with_context(|| format!("path {}", path.display()))?;
    Ok(match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => whole,
    })
}

/// An absolute path without symbolic links, as far as it exists.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|part| Some(part.canonicalize().ok()?.join(path.strip_prefix(part).ok()?)))
        // `join("")` leaves a slash behind, which components do not have.
        .map_or_else(|| path.to_owned(), |found| found.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_a_mount_that_failed_goes_and_nothing_else() {
        let above = std::env::temp_dir().join(format!("dfs-made-{}", std::process::id()));
        std::fs::create_dir_all(&above).unwrap();
        if fuse_client::check_device().is_err() {
            return;
        }
        drop(Made::at(&above.join("a/b/c")).unwrap());
        assert!(above.is_dir() && !above.join("a").exists());
        drop(Made::at(&above).unwrap());
        assert!(above.is_dir(), "it was there before");
        let used = Made::at(&above.join("a/b")).unwrap();
        std::fs::write(above.join("a/mine"), "").unwrap();
        drop(used);
        assert!(above.join("a/mine").exists() && !above.join("a/b").exists());
        prepare(&above.join("kept")).unwrap();
        assert!(above.join("kept").is_dir());
        std::fs::remove_dir_all(&above).unwrap();
    }

    #[test]
    fn a_plain_directory_is_not_mounted() {
        let dir = std::env::temp_dir();
        assert!(!is_fuse_mounted(&dir) && !answers(&dir, Duration::from_secs(1)));
    }
}
