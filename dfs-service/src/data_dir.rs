//! Whose a data directory is. A server takes an empty one or its own, never what somebody else keeps there.
//!
//! Both kinds of server hold the same lock ([`LOCK`]), so that two of them never share a directory.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use crate::page::Page;

/// Locked by `flock(2)` as long as a server uses the directory; the kernel drops it with the process.
pub const LOCK: &str = "lock";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Master,
    Chunkserver,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Chunkserver => "chunkserver",
        })
    }
}

/// In any directory: a file system's own, the lock, and the key where somebody keeps it there.
const ANYBODYS: [&str; 3] = ["lost+found", LOCK, "cluster.key"];

impl Kind {
    /// A name in `dir` that only this kind makes, and not before it is sure to use the directory.
    fn mark(self, dir: &Path) -> Option<&'static str> {
        match self {
            Self::Master if dir.join("state.redb").is_file() => Some("state.redb"),
            // Before there is a store: a directory that was restored.
            Self::Master if dir.join("log/0000000000000001.log").is_file() => Some("log"),
            Self::Master if dir.join("restored").is_file() => Some("restored"),
            Self::Chunkserver if dir.join("label").is_file() => Some("label"),
            Self::Master | Self::Chunkserver => None,
        }
    }

    /// Whether a first start that did not come to its end may have left this.
    fn makes(self, name: &str) -> bool {
        let hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        match self {
            Self::Master => matches!(name, "log" | "snapshots" | "reigns" | "reigns.next"),
            Self::Chunkserver => {
                matches!(name, "journal" | "quarantine" | "label.new")
                    || (name.len() == 2 && name.bytes().all(hex))
            }
        }
    }
}

/// Refuses a directory that is neither empty nor of this kind. Changes nothing in it.
///
/// # Errors
/// What was found there and what to do; or the operating system's.
pub fn check(dir: &Path, kind: Kind) -> anyhow::Result<()> {
    let other = match kind {
        Kind::Master => Kind::Chunkserver,
        Kind::Chunkserver => Kind::Master,
    };
    if let Some(mark) = other.mark(dir) {
        anyhow::bail!(
            "{} is the data directory of a {other} ('{mark}' is in it), a {kind} needs one of its own: name that, or an \
             empty one; see {}",
            dir.display(),
            Page::DirectoryRefused
        );
    }
    if kind.mark(dir).is_some() {
        return Ok(());
    }
    let looked = || format!("look into {}", dir.display());
    for entry in fs::read_dir(dir).with_context(looked)? {
        let name = entry.with_context(looked)?.file_name();
        let name = name.to_string_lossy();
        anyhow::ensure!(
            ANYBODYS.contains(&&*name) || kind.makes(&name),
            "{} is no data directory of a {kind} and not empty: {name:?} is in it; name an empty directory, or the one \
             this {kind} had; see {}",
            dir.display(),
            Page::DirectoryRefused
        );
    }
    Ok(())
}

/// Whether a server of this kind has used `dir`. A directory that cannot be read counts as not.
#[must_use]
pub fn is_of(dir: &Path, kind: Kind) -> bool {
    kind.mark(dir).is_some()
}

/// Whether nobody keeps anything in `dir`, or it does not exist. A directory that cannot be read counts as used.
#[must_use]
pub fn is_unused(dir: &Path) -> bool {
    match fs::read_dir(dir) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(entries) => entries.into_iter().all(|entry| {
            entry.is_ok_and(|entry| ANYBODYS.contains(&&*entry.file_name().to_string_lossy()))
        }),
    }
}

/// Takes the lock of `dir`, until it is dropped; `None` if another process has it.
///
/// # Errors
/// The operating system's.
pub fn lock(dir: &Path) -> std::io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_names(names: &[&str], kind: Kind, refused: &[&str]) {
        let dir = std::env::temp_dir().join(format!("dfs-dir-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match name.strip_suffix('/') {
                Some(_) => fs::create_dir(&path).unwrap(),
                None => fs::write(&path, b"").unwrap(),
            }
        }
        let said = check(&dir, kind).map_or_else(|error| error.to_string(), |()| String::new());
        let whole = refused.iter().all(|word| said.contains(word));
        assert_eq!(refused.is_empty(), said.is_empty(), "{names:?}, {kind}: {said}");
        assert!(whole && (refused.is_empty() || said.contains(&*dir.to_string_lossy())), "{said}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn only_empty_directories_and_those_of_the_own_kind_are_taken() {
        use Kind::{Chunkserver, Master};
        for kind in [Master, Chunkserver] {
            check_names(&[], kind, &[]);
            check_names(&["lost+found/", "lock", "cluster.key"], kind, &[]);
            check_names(&["letters.txt"], kind, &["\"letters.txt\"", "name an empty directory"]);
            check_names(&["run/", "log/", "data/"], kind, &["is in it", "a-directory-is-refused"]);
        }
        let master = ["state.redb", "log/0000000000000007.log", "lock", "addr"];
        check_names(&master, Master, &[]);
        check_names(&master, Chunkserver, &["data directory of a master", "'state.redb'"]);
        check_names(&["log/0000000000000001.log", "snapshots/"], Master, &[]);
        check_names(&["log/", "snapshots/"], Master, &[]);
        let chunkserver = ["label", "00/", "journal/", "server_state", "notes"];
        check_names(&chunkserver, Chunkserver, &[]);
        check_names(&chunkserver, Master, &["data directory of a chunkserver", "'label'"]);
        // Of a first start that was killed.
        check_names(&["00/", "ff/", "journal/", "lock"], Chunkserver, &[]);
        check_names(&["00/", "0g/"], Chunkserver, &["\"0g\""]);
    }
}
