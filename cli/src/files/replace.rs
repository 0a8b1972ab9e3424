//! A file whose content is replaced: what was there stays whole until what comes is stable.
//!
//! Order: a hidden draft in the same directory → written, stable → owner, mode and extended attributes of what it
//! replaces → renamed over it. An error or a signal takes the draft away; a process that is killed leaves it, and
//! nothing reads it. A file with several names is written in place: a rename would leave the other names behind.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use dfs_client::session::Session;
use dfs_core::command::{Change, NewKind, Outcome, RenameMode, SetTime, XattrMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, NAME_BYTES_MAX};
use dfs_service::shutdown::Shutdown;

use super::{Files, Found, Writer, check_is_file, explain};
use crate::remote_path::RemotePath;

/// `chmod` bits that a change of content by an ordinary user takes away.
const SETID_BITS: u32 = 0o6000;
/// How long an interrupted command waits for the master to take its draft away.
const CLEAN_MAX: Duration = Duration::from_secs(3);
/// As shells report a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// New content of a file, on its way.
#[derive(Debug)]
pub(crate) struct Replacement<'a> {
    /// Before the draft: it is closed first.
    writer: Writer<'a>,
    draft: Option<Draft>,
}

impl Replacement<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.writer.write(bytes)
    }

    /// Returns when all is on every replica's disk, under the name.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Self { writer, draft } = self;
        writer.sync()?;
        match draft {
            Some(draft) => draft.put_in_place().map_err(|error| explain(&writer.what, error)),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Written,
    InPlace,
    Removed,
}

/// A hidden file that becomes the one with the name, or goes.
#[derive(Debug)]
struct Draft {
    session: Arc<Session>,
    ino: InodeNo,
    parent: InodeNo,
    name: Vec<u8>,
    to: Vec<u8>,
    replaces: Option<Attr>,
    /// Held while the draft is moved or removed: a signal comes before that, or too late.
    state: Arc<Mutex<State>>,
}

impl Draft {
    fn put_in_place(&self) -> Result<(), dfs_client::ClientError> {
        if let Some(old) = &self.replaces {
            self.take_over(old)?;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.session.change(Change::Rename {
            from_parent: self.parent,
            from: self.name.clone(),
            to_parent: self.parent,
            to: self.to.clone(),
            mode: RenameMode::Replace,
        })?;
        *state = State::InPlace;
        Ok(())
    }

    /// Owner, mode, extended attributes (ACLs are among them) of `old`.
    fn take_over(&self, old: &Attr) -> Result<(), dfs_client::ClientError> {
        let names = self.session.listxattrs(old.ino)?;
        for name in self.session.listxattrs(self.ino)? {
            if !names.contains(&name) {
                self.session.change(Change::RemoveXattr { ino: self.ino, name })?;
            }
        }
        for name in names {
            let value = self.session.getxattr(old.ino, &name)?;
            let mode = XattrMode::Set;
            self.session.change(Change::SetXattr { ino: self.ino, name, value, mode })?;
        }
        let root = rustix::process::geteuid().is_root();
        let mode = if root { old.mode } else { old.mode & !SETID_BITS };
        // The mode last: setting an ACL changes it, and so does a new owner.
        for (mode, owner) in [(None, Some((old.uid, old.gid))), (Some(mode), None)] {
            self.session.change(Change::SetAttr {
                ino: self.ino,
                mode,
                uid: owner.map(|(uid, _)| uid),
                gid: owner.map(|(_, gid)| gid),
                atime: SetTime::Keep,
                mtime: SetTime::Keep,
                kill_priv: false,
            })?;
        }
        Ok(())
    }

    /// SIGINT and SIGTERM take the draft away and end the process, wherever it waits.
    fn remove_on_signals(&self, what: String) -> anyhow::Result<()> {
        let shutdown = Shutdown::on_signals().context("handle signals")?;
        let (session, parent, name) = (Arc::clone(&self.session), self.parent, self.name.clone());
        let state = Arc::clone(&self.state);
        std::thread::Builder::new()
            .name("interrupted".to_owned())
            .spawn(move || {
                shutdown.wait();
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if std::mem::replace(&mut *state, State::Removed) == State::InPlace {
                    // Done but for saying so.
                    return;
                }
                let (done, wait) = std::sync::mpsc::channel();
                let removal = std::thread::spawn(move || {
                    let removed = session.change(Change::Unlink { parent, name });
                    let _nobody_waits = done.send(removed.is_ok());
                    // So that its space is free at once, not when this client's lease ends.
                    session.close();
                    let _nobody_waits = done.send(true);
                });
                let removed = wait.recv_timeout(CLEAN_MAX).unwrap_or(false);
                let _closed = wait.recv_timeout(CLEAN_MAX);
                drop(removal);
                let left = if removed { "" } else { "; a hidden draft stays behind" };
                crate::say_error(&format!("{what}: interrupted; the file is as it was{left}"));
                std::process::exit(INTERRUPTED);
            })
            .context("handle signals")?;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Written {
            *state = State::Removed;
            let unlink = Change::Unlink { parent: self.parent, name: self.name.clone() };
            if let Err(error) = self.session.change(unlink) {
                let name = String::from_utf8_lossy(&self.name);
                crate::say_error(&format!("draft {name}: {error}; remove it with `dfs rm`"));
            }
        }
    }
}

impl Files {
    /// A file whose content is replaced whole; made if absent.
    pub(crate) fn replace(&self, path: &RemotePath) -> anyhow::Result<Replacement<'_>> {
        const VERB: &str = "put";
        let what = format!("{VERB} {}", path.shown());
        self.place(path, VERB)?;
        let Found { parent, name, attr: old } =
            self.resolve(path, true).map_err(|error| explain(&what, error))?;
        if let Some(old) = &old {
            check_is_file(VERB, old, path)?;
            if 1 < old.nlink {
                crate::say_error(&format!(
                    "{what}: the file has {} names: written in place, so that all of them show the \
                     new content; if this is interrupted it is neither old nor new",
                    old.nlink
                ));
                let writer = self.open_to_write(VERB, path)?;
                writer.file.truncate(0).map_err(|error| explain(&what, error))?;
                return Ok(Replacement { writer, draft: None });
            }
        }
        let draft_name = draft_name(&name)?;
        let change = Change::Create {
            parent,
            name: draft_name.clone(),
            kind: NewKind::File,
            // What replaces a file is nobody else's to read before it has that file's mode.
            mode: if old.is_some() { 0o600 } else { 0o666 },
            umask: self.umask,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            layout: old.as_ref().map(|old| old.layout),
            open_existing: false,
        };
        let outcome = self.session.change(change).map_err(|error| explain(&what, error))?;
        let Outcome::Entry { attr, .. } = outcome else {
            anyhow::bail!("{what}: the master answered {outcome:?}")
        };
        let draft = Draft {
            session: Arc::clone(&self.session),
            ino: attr.ino,
            parent,
            name: draft_name,
            to: name,
            replaces: old,
            state: Arc::new(Mutex::new(State::Written)),
        };
        draft.remove_on_signals(what.clone())?;
        let writer = self.writer(&attr, what)?;
        Ok(Replacement { writer, draft: Some(draft) })
    }
}

/// `.NAME.dfs-part-` and a number nobody else draws.
fn draft_name(name: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut drawn = [0; 8];
    getrandom::fill(&mut drawn).context("draw a name")?;
    let end = format!(".dfs-part-{:016x}", u64::from_le_bytes(drawn));
    let kept = name.len().min(NAME_BYTES_MAX - 1 - end.len());
    let kept = name.get(..kept).unwrap_or_default();
    Ok([b".".as_slice(), kept, end.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_hidden_and_its_name_fits() {
        let name = draft_name(b"notes.txt").unwrap();
        assert!(name.starts_with(b".notes.txt.dfs-part-"));
        assert_ne!(name, draft_name(b"notes.txt").unwrap());
        assert_eq!(draft_name(&[b'n'; NAME_BYTES_MAX]).unwrap().len(), NAME_BYTES_MAX);
    }
}
