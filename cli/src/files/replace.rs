//! A file whose content is replaced: what was there stays whole until what comes is stable.
//!
//! Order: a file without a name → written, stable → owner, mode and extended attributes of what it replaces → put in
//! its place. Until then only this client's open keeps it, so that however the command ends, also killed, the master
//! frees what was written: at once if told, otherwise when the client's lease is over. A file with several names is
//! written in place: what is put in place would leave the other names behind.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use dfs_client::ClientError;
use dfs_client::session::Session;
use dfs_core::command::{Change, SetTime, XattrMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FileKind, NamespaceError};
use dfs_service::shutdown::Shutdown;

use super::{Files, Found, Writer, check_is_file, explain};
use crate::remote_path::RemotePath;

/// `chmod` bits that a change of content by an ordinary user takes away.
const SETID_BITS: u32 = 0o6000;
/// How often the attributes of a file are taken over that others change all the time.
const TAKE_OVERS_MAX: u32 = 10;
/// How long an interrupted command waits for the master to hear that it ends.
const GOODBYE_MAX: Duration = Duration::from_secs(3);
/// As shells report a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// New content of a file, on its way.
#[derive(Debug)]
pub(crate) struct Replacement<'a> {
    writer: Writer<'a>,
    draft: Option<Draft>,
}

impl Replacement<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.writer.write(bytes)
    }

    /// Leaves so many bytes out, which read as zeros. To be followed by [`Self::end_in_hole`] if nothing is written
    /// behind them.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.writer.skip(bytes);
    }

    pub(crate) fn end_in_hole(&self) -> anyhow::Result<()> {
        self.writer.extend()
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
    Interrupted,
}

/// A file without a name that becomes the one with the name, or goes.
#[derive(Debug)]
struct Draft {
    session: Arc<Session>,
    ino: InodeNo,
    parent: InodeNo,
    name: Vec<u8>,
    replaces: Option<Attr>,
    /// Held while the draft is put in place: a signal comes before that, or too late.
    state: Arc<Mutex<State>>,
}

impl Drop for Draft {
    /// Once a signal came, its thread says so and ends the process: whatever else this one would say is a consequence.
    fn drop(&mut self) {
        drop(self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Draft {
    fn put_in_place(&self) -> Result<(), ClientError> {
        for _again in 0..TAKE_OVERS_MAX {
            let Some(old) = self.replaced_now()? else { break };
            self.take_over(&old)?;
            // Somebody may have changed them meanwhile, or put another file there.
            if self.replaced_now()?.is_none_or(|now| now.ino == old.ino && now.ctime == old.ctime) {
                break;
            }
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (ino, parent, name) = (self.ino, self.parent, self.name.clone());
        self.session.change(Change::PutInPlace { ino, parent, name })?;
        *state = State::InPlace;
        Ok(())
    }

    /// What has the name by now. Of a file that is gone, what it was at the beginning.
    fn replaced_now(&self) -> Result<Option<Attr>, ClientError> {
        match self.session.lookup_logged(self.parent, &self.name) {
            Ok(now) if now.kind == FileKind::File => Ok(Some(now)),
            // Refused, or replaced as itself.
            Ok(_) => Ok(None),
            Err(ClientError::Refused(NamespaceError::NotFound)) => Ok(self.replaces.clone()),
            Err(error) => Err(error),
        }
    }

    /// Owner, mode, extended attributes (ACLs are among them) of `old`.
    fn take_over(&self, old: &Attr) -> Result<(), ClientError> {
        let names = match self.session.listxattrs(old.ino) {
            // Somebody removed it meanwhile: owner and mode are known.
            Err(ClientError::Refused(NamespaceError::Stale | NamespaceError::NotFound)) => {
                Vec::new()
            }
            names => names?,
        };
        for name in self.session.listxattrs(self.ino)? {
            if !names.contains(&name) {
                self.session.change(Change::RemoveXattr { ino: self.ino, name })?;
            }
        }
        for name in names {
            let value = match self.session.getxattr(old.ino, &name) {
                // As above, or it was removed: the next look finds out.
                Err(ClientError::Refused(_)) => continue,
                value => value?,
            };
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

    /// SIGINT and SIGTERM end the process, wherever it waits; the master is told that nobody has the draft any more.
    fn end_on_signals(&self, what: String) -> anyhow::Result<()> {
        let shutdown = Shutdown::on_signals().context("handle signals")?;
        let session = Arc::clone(&self.session);
        let state = Arc::clone(&self.state);
        std::thread::Builder::new()
            .name("interrupted".to_owned())
            .spawn(move || {
                shutdown.wait();
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if std::mem::replace(&mut *state, State::Interrupted) == State::InPlace {
                    // Done but for saying so.
                    return;
                }
                let (done, wait) = std::sync::mpsc::channel();
                let goodbye = std::thread::spawn(move || {
                    session.close();
                    let _nobody_waits = done.send(());
                });
                let _silent = wait.recv_timeout(GOODBYE_MAX);
                drop(goodbye);
                crate::say_error(&format!("{what}: interrupted; the file is as it was"));
                std::process::exit(INTERRUPTED);
            })
            .context("handle signals")?;
        Ok(())
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
        let change = Change::CreateUnnamed {
            parent,
            // What replaces a file is nobody else's to read before it has that file's mode.
            mode: if old.is_some() { 0o600 } else { 0o666 },
            umask: self.umask,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            layout: old.as_ref().map(|old| old.layout),
        };
        let attr = self.create_unnamed(&change).map_err(|error| explain(&what, error))?;
        let ino = attr.ino;
        let writer = Writer {
            files: self,
            ino,
            file: self.session.file(ino),
            offset: 0,
            what: what.clone(),
        };
        let draft = Draft {
            session: Arc::clone(&self.session),
            ino,
            parent,
            name,
            replaces: old,
            state: Arc::new(Mutex::new(State::Written)),
        };
        draft.end_on_signals(what)?;
        Ok(Replacement { writer, draft: Some(draft) })
    }

    /// A file without a name, open.
    fn create_unnamed(&self, change: &Change) -> Result<Attr, ClientError> {
        let mut made = self.session.create_open(change.clone(), true);
        // The master, which looks for files that nobody has open, may come between making it and counting the open.
        for _again in 0..2 {
            if matches!(made, Err(ClientError::Refused(NamespaceError::Stale))) {
                made = self.session.create_open(change.clone(), true);
            }
        }
        made.map(|(attr, _created)| attr)
    }
}
