//! Where to mount: what may be mounted on, what is mounted there already, what a killed mount left behind.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use dfs_service::page::Page;

use crate::mount_table::{Health, health, mounted_at};

/// A live mount answers `statfs(2)` within this.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A place that may be mounted on.
#[derive(Debug)]
pub(crate) struct Place {
    /// As the kernel lists it.
    pub(crate) at: PathBuf,
    /// A mount whose process is gone is still there.
    dead: bool,
}

/// Checks `path`, changing nothing: a dead mount stays where it is, and whoever uses it is told so, until another can
/// take its place.
pub(crate) fn prepare(path: &Path) -> anyhow::Result<Place> {
    check_device()?;
    let at = as_listed(path)?;
    if let Some(mounted) = mounted_at(&at).context("read /proc/self/mountinfo")? {
        match health(&at, ANSWER_MAX) {
            Health::Answers => anyhow::bail!(
                "mount point {}: a {} file system is mounted there already; unmount it first \
                 (fusermount3 -u {0}) or choose another directory",
                at.display(),
                mounted.kind
            ),
            Health::Dead => {
                tracing::warn!(at = %at.display(), "the last mount here was killed; this one takes its place");
                return Ok(Place { at, dead: true });
            }
            Health::Silent => anyhow::bail!(
                "mount point {}: a {} file system is mounted there and does not answer within {:?}; \
                 end its process, then run fusermount3 -uz {0}",
                at.display(),
                mounted.kind,
                ANSWER_MAX
            ),
        }
    }
    let metadata = std::fs::metadata(&at)
        .with_context(|| format!("mount point {}: make the directory first", at.display()))?;
    anyhow::ensure!(metadata.is_dir(), "mount point {}: not a directory", at.display());
    let at = at.canonicalize().with_context(|| format!("mount point {}", at.display()))?;
    if let Some(name) = first_in(&at)? {
        anyhow::bail!(
            "mount point {}: not empty, it holds {name:?}; choose an empty directory",
            at.display(),
        );
    }
    Ok(Place { at, dead: false })
}

impl Place {
    /// Where something of ours is mounted already, whose requests nobody answers yet.
    pub(crate) fn taken_over(path: &Path) -> Self {
        Self { at: path.to_owned(), dead: false }
    }

    /// Takes a dead mount off, to be followed by the new one at once: in between programs see the bare directory.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        if !self.dead {
            return Ok(());
        }
        detach(&self.at).with_context(|| format!("take a dead mount off {}", self.at.display()))?;
        // What is there was written since a moment ago: refusing would leave programs to write more of it.
        if let Some(name) = first_in(&self.at)? {
            tracing::error!(
                at = %self.at.display(), ?name, see = %Page::ClientSilent,
                "the directory under the mount is not empty: what was written there while nothing was mounted is hidden now"
            );
        }
        Ok(())
    }
}

/// A name in the directory, if it has one.
fn first_in(dir: &Path) -> anyhow::Result<Option<OsString>> {
    let first = std::fs::read_dir(dir).and_then(|mut entries| entries.next().transpose());
    let first = first.with_context(|| format!("read mount point {}", dir.display()))?;
    Ok(first.map(|entry| entry.file_name()))
}

/// Absolute, without links in the parents; the last component is not touched, since it may be a dead mount.
fn as_listed(path: &Path) -> anyhow::Result<PathBuf> {
    anyhow::ensure!(!path.as_os_str().is_empty(), "mount point: the path is empty");
    let whole = std::path::absolute(path).with_context(|| format!("path {}", path.display()))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        anyhow::bail!("mount point {}: not the root of this machine", whole.display());
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) => Err(error).with_context(|| format!("mount point {}", whole.display())),
    }
}

/// Takes off what is mounted at `path`, unless somebody uses it.
pub(crate) fn unmount(path: &Path) -> std::io::Result<()> {
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()) {
        Err(rustix::io::Errno::PERM) => {
            let output = Command::new("fusermount3").arg("-u").arg("--").arg(path).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let failed = || Err(std::io::Error::other(format!("fusermount3 -u: {}", said.trim())));
            if output.status.success() { Ok(()) } else { failed() }
        }
        unmounted => Ok(unmounted?),
    }
}

/// Takes what is mounted at `path` out of the tree now, whoever still uses it.
pub(crate) fn detach(path: &Path) -> anyhow::Result<()> {
    let detached = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    match detached {
        Ok(()) => Ok(()),
        // Only root may; fusermount3 is set-uid and checks that the mount is ours.
        Err(rustix::io::Errno::PERM) => {
            let output = Command::new("fusermount3")
                .arg("-uz")
                .arg("--")
                .arg(path)
                .output()
                .context("run fusermount3 (package fuse3)")?;
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "fusermount3 -uz: {}", said.trim());
            Ok(())
        }
        Err(error) => Err(error).context("umount2"),
    }
}

/// Whether others than the mounting user may look: root may allow it, `/etc/fuse.conf` may.
pub(crate) fn may_allow_other() -> bool {
    rustix::process::geteuid().is_root()
        || std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|conf| allows_other(&conf))
}

fn allows_other(fuse_conf: &str) -> bool {
    fuse_conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// FUSE needs its device; containers often do not have it, and some machines keep it for root.
///
/// # Errors
/// If it cannot be opened: why, and what to do about that.
pub fn check_device() -> anyhow::Result<()> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| {
        let advice = device_advice(&error, rustix::process::geteuid().is_root());
        anyhow::anyhow!("mount: /dev/fuse: {error}; {advice}; put, get and ls work without a mount")
    })
}

fn device_advice(error: &std::io::Error, is_root: bool) -> &'static str {
    match (error.kind(), is_root) {
        // What it may be used for is decided by fusermount3, not by its mode.
        (std::io::ErrorKind::PermissionDenied, false) => {
            "you may not open it: as root `chmod 666 /dev/fuse`, which most distributions do, or join the group that may, \
             or mount as root"
        }
        (std::io::ErrorKind::PermissionDenied, true) => {
            "it exists, but this container may not use it: start it with `--device /dev/fuse --cap-add SYS_ADMIN`"
        }
        _ => {
            "load the module with `modprobe fuse`, or give the container the device with \
             `--device /dev/fuse --cap-add SYS_ADMIN`"
        }
    }
}

/// Readahead of the whole mount; `device` as [`crate::mount_table::Mounted::device`] has it.
pub(crate) fn set_readahead(device: &str, kib: u32) -> std::io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(path: &Path, expected: &str) {
        let error = format!("{:#}", prepare(path).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_cannot_be_a_mount_point_is_refused_and_named() {
        if !Path::new("/dev/fuse").exists() {
            return;
        }
        let name = format!("fuse-client-mount-point-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(dir.join("full/inside")).unwrap();
        std::fs::write(dir.join("file"), b"").unwrap();
        check_refused(&dir.join("missing"), "make the directory first");
        check_refused(&dir.join("file"), "not a directory");
        check_refused(&dir.join("full"), "it holds \"inside\"");
        assert!(prepare(&dir.join("full/inside")).is_ok());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[track_caller]
    fn check_advice(error: rustix::io::Errno, is_root: bool, expected: &str) {
        let advice = device_advice(&error.into(), is_root);
        assert!(advice.contains(expected), "{advice}");
    }

    #[test]
    fn advice_fits_what_is_wrong_with_the_device() {
        use rustix::io::Errno;
        check_advice(Errno::NOENT, false, "modprobe fuse");
        // The node is there, its driver is not.
        check_advice(Errno::NODEV, true, "modprobe fuse");
        check_advice(Errno::ACCESS, false, "chmod 666 /dev/fuse");
        check_advice(Errno::ACCESS, false, "group");
        check_advice(Errno::PERM, true, "--device /dev/fuse");
        assert!(!device_advice(&Errno::ACCESS.into(), false).contains("modprobe"));
    }

    #[test]
    fn fuse_conf_allows_others_only_outside_comments() {
        assert!(allows_other("# x\nuser_allow_other\n"));
        assert!(!allows_other("#user_allow_other\nmount_max = 1000\n"));
    }
}
