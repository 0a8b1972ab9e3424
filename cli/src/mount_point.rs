//! Mount points as the kernel lists them: is one mounted, may one be used, take it off.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;

use crate::failure::fail;
use crate::process::run_within;

/// A mount whose process does not read requests keeps whoever asks it waiting.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Taking a mount off waits for its process to close it.
const UNMOUNT_MAX: Duration = Duration::from_secs(15);

/// File systems mounted exactly at `path`, by type; the last one is on top.
pub(crate) fn mounted_at(path: &Path) -> Vec<String> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts_in(&table).into_iter().filter(|(at, _)| at == path).map(|(_, kind)| kind).collect()
}

/// Mount points and types of a `mountinfo` table, proc(5).
pub(crate) fn mounts_in(table: &[u8]) -> Vec<(PathBuf, String)> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let at = PathBuf::from(OsString::from_vec(unescape(words.get(4)?)));
            let dash = words.iter().position(|word| *word == b"-")?;
            let kind = String::from_utf8_lossy(words.get(dash + 1)?).into_owned();
            Some((at, kind))
        })
        .collect()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

pub(crate) fn is_fuse_mounted(path: &Path) -> bool {
    mounted_at(path).last().is_some_and(|kind| kind.starts_with("fuse"))
}

/// What a mount says when it is asked something that no cache answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Health {
    Answers,
    /// Its process is gone: every call ends with ENOTCONN until it is taken off.
    Dead,
    /// No answer in time, or another error: its servers may be away.
    Silent,
}

fn health(path: &Path, timeout: Duration) -> Health {
    use rustix::io::Errno;
    let (tell, told) = std::sync::mpsc::channel();
    let path = path.to_owned();
    // A thread, because a hanging mount never answers. statfs(2), because stat(2) is answered from the kernel's cache
    // for a moment after the process has died.
    std::thread::spawn(move || {
        let _receiver_gave_up = tell.send(rustix::fs::statvfs(&path).map(|_| ()));
    });
    match told.recv_timeout(timeout) {
        Ok(Ok(())) => Health::Answers,
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Health::Dead,
        Ok(Err(_)) | Err(_) => Health::Silent,
    }
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
    if path.as_os_str().as_bytes().is_empty() {
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
    fn mount_points_with_spaces_are_read_back() {
        let table = b"36 35 0:52 / /mnt/a\\040b rw,nosuid - fuse.dfs dfs rw\n22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
        assert_eq!(
            mounts_in(table),
            [
                (PathBuf::from("/mnt/a b"), "fuse.dfs".to_owned()),
                (PathBuf::from("/"), "ext4".to_owned())
            ]
        );
    }

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
