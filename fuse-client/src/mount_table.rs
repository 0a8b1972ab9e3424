//! What is mounted where, as the kernel lists it, and whether it is alive.
//!
//! A mount whose process hangs answers nothing for ever, so whatever may touch one runs on a thread with a deadline.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

/// One line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    pub at: PathBuf,
    /// `major:minor`
    pub device: String,
    /// Type of file system.
    pub kind: String,
}

/// What a mount says when it is asked something that no cache answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    Answers,
    /// Its process is gone: every call ends with ENOTCONN until it is taken off.
    Dead,
    /// No answer in time, or another error: its servers may be away.
    Silent,
}

/// Asks what is mounted at `path`; `timeout` is the most this takes.
#[must_use]
pub fn health(path: &Path, timeout: Duration) -> Health {
    let (tell, told) = std::sync::mpsc::channel();
    let path = path.to_owned();
    // statfs(2), because stat(2) is answered from the kernel's cache for a moment after the process has died.
    std::thread::spawn(move || {
        let _receiver_gave_up = tell.send(rustix::fs::statvfs(&path).map(|_| ()));
    });
    match told.recv_timeout(timeout) {
        Ok(Ok(())) => Health::Answers,
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Health::Dead,
        Ok(Err(_)) | Err(_) => Health::Silent,
    }
}

/// The topmost mount exactly at `path`.
///
/// # Errors
/// If the kernel's table cannot be read.
pub fn mounted_at(path: &Path) -> std::io::Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).filter(|mounted| mounted.at == path).last())
}

fn parse(table: &[u8]) -> impl Iterator<Item = Mounted> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
        let at = PathBuf::from(OsString::from_vec(unescape(words.nth(1)?)));
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        Some(Mounted { at, device, kind: String::from_utf8_lossy(kind).into_owned() })
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    out
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_of_a_path_with_spaces_is_found() {
        let table = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            36 35 0:52 / /mnt/a\\040b rw,nosuid shared:9 - fuse.dfs dfs rw\n";
        let found: Vec<Mounted> = parse(table).collect();
        let expected = Mounted {
            at: PathBuf::from("/mnt/a b"),
            device: "0:52".to_owned(),
            kind: "fuse.dfs".to_owned(),
        };
        assert_eq!(found.last(), Some(&expected));
        assert_eq!(found.len(), 2);
    }
}
