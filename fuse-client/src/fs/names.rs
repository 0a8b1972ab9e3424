//! Names: lookup, what makes, moves and removes them.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each change has one kind of outcome; all others, also new ones, are the master's mistake"
)]

use dfs_core::command::{Change, NewKind, Outcome, RenameMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{FileKind, NamespaceError};

use super::{Answer, FileSystem, unexpected};
use crate::errno::Errno;
use crate::seam::{Caller, Name, OpenFlags, Reply};
use dfs_client::ClientError;

/// A name that others remove all the time is made so often.
const CREATE_AGAIN_MAX: u32 = 20;

impl FileSystem {
    pub(super) fn lookup(&self, parent: InodeNo, name: &[u8]) -> Answer {
        let found = self.session.lookup(parent, name);
        match &found {
            Ok(attr) => self.listings.looked_up(parent, name, Some(attr.ino)),
            Err(ClientError::Refused(NamespaceError::NotFound)) => {
                self.listings.looked_up(parent, name, None);
            }
            Err(_) => {}
        }
        Ok(Reply::Entry(self.entry(self.session.overlay(found?))))
    }

    pub(super) fn mknod(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Answer {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => NewKind::File,
            libc::S_IFIFO => NewKind::Fifo,
            libc::S_IFSOCK => NewKind::Socket,
            libc::S_IFCHR => NewKind::CharDevice(rdev),
            libc::S_IFBLK => NewKind::BlockDevice(rdev),
            _ => return Err(Errno::INVALID),
        };
        self.make(caller, parent, name, kind, (mode, umask))
    }

    pub(super) fn mkdir(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
    ) -> Answer {
        self.make(caller, parent, name, NewKind::Directory, (mode, umask))
    }

    pub(super) fn symlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        target: Vec<u8>,
    ) -> Answer {
        self.make(caller, parent, name, NewKind::Symlink(target), (0o777, 0))
    }

    fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        kind: NewKind,
        modes: (u32, u32),
    ) -> Answer {
        match self.change(creation(caller, parent, name, kind, modes, false))? {
            Outcome::Entry { attr, .. } => Ok(Reply::Entry(self.entry(attr))),
            other => Err(unexpected(&other)),
        }
    }

    /// `open(2)` with `O_CREAT` of a name the kernel did not find.
    pub(super) fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        mode: u32,
        umask: u32,
        flags: OpenFlags,
    ) -> Answer {
        // Somebody else may remove what was found before it is open; then it is made.
        for _again in 0..CREATE_AGAIN_MAX {
            match self.create_once(caller, parent, name.clone(), (mode, umask), flags) {
                Err(Errno::STALE) if !flags.has(libc::O_EXCL) => {}
                created => return created,
            }
        }
        self.create_once(caller, parent, name, (mode, umask), flags)
    }

    fn create_once(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: Name,
        modes: (u32, u32),
        flags: OpenFlags,
    ) -> Answer {
        let open_existing = !flags.has(libc::O_EXCL);
        let change = creation(caller, parent, name, NewKind::File, modes, open_existing);
        let created = self.session.create_open(change, flags.writes());
        self.listings.outdate();
        let (attr, created) = created?;
        if attr.kind != FileKind::File {
            return Err(Errno::from(ClientError::Refused(NamespaceError::Exists)));
        }
        if created {
            self.note_bare(attr.ino);
            let cache = self.cache_use(&attr, flags);
            let open = self.new_open(&attr, flags, cache);
            return Ok(Reply::Created { entry: self.entry(attr), cache, open });
        }
        let (attr, cache) = self.open_file(caller, attr.ino, flags)?;
        let open = self.new_open(&attr, flags, cache);
        Ok(Reply::Created { entry: self.entry(attr), cache, open })
    }

    /// `open(2)` with `O_TMPFILE`.
    pub(super) fn create_unnamed(
        &self,
        caller: Caller,
        parent: InodeNo,
        (mode, umask): (u32, u32),
        flags: OpenFlags,
    ) -> Answer {
        let (mode, umask) = (mode & 0o7777, umask & 0o777);
        let Caller { uid, gid, .. } = caller;
        let change = Change::CreateUnnamed { parent, mode, umask, uid, gid, layout: None };
        let (attr, _) = self.session.create_open(change, flags.writes())?;
        let cache = self.cache_use(&attr, flags);
        let open = self.new_open(&attr, flags, cache);
        Ok(Reply::Created { entry: self.entry(attr), cache, open })
    }

    fn has_no_name(&self, ino: InodeNo) -> bool {
        match self.session.getattr(ino) {
            Ok(attr) => attr.nlink == 0,
            Err(error) => Errno::from(error) == Errno::STALE,
        }
    }

    pub(super) fn link(&self, ino: InodeNo, parent: InodeNo, name: Name) -> Answer {
        let linked = match self.change(Change::Link { ino, parent, name }) {
            // Another mount removed what the kernel believes to be under the old name: it is to look that up again.
            Err(Errno::NO_ENTRY) if self.has_no_name(ino) => Err(Errno::STALE),
            linked => linked,
        };
        match linked? {
            Outcome::Entry { attr, .. } | Outcome::Attr(attr) => {
                Ok(Reply::Entry(self.entry(self.session.overlay(self.session.complete(attr)))))
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn rename(
        &self,
        from_parent: InodeNo,
        from: Name,
        to_parent: InodeNo,
        to: Name,
        flags: u32,
    ) -> Answer {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            // RENAME_WHITEOUT, which overlayfs tries first and does without.
            _ => return Err(Errno::INVALID),
        };
        if mode != RenameMode::NoReplace && !self.unsynced.is_surely_empty() {
            self.make_stable_before_replacing(from_parent, &from)?;
            if mode == RenameMode::Exchange {
                self.make_stable_before_replacing(to_parent, &to)?;
            }
        }
        self.change(Change::Rename { from_parent, from, to_parent, to, mode })?;
        Ok(Reply::Done)
    }

    /// Programs write, rename and expect one of the two contents (DECISIONS 7).
    fn make_stable_before_replacing(&self, parent: InodeNo, name: &[u8]) -> Result<(), Errno> {
        let ino = match self.session.lookup(parent, name) {
            Ok(attr) if attr.kind == FileKind::File => attr.ino,
            // Nothing to move, or nothing with content: the rename itself answers.
            Ok(_) | Err(_) => return Ok(()),
        };
        if self.unsynced.may_hold(&ino) {
            self.session.file(ino).fsync()?;
            self.unsynced.remove(&ino);
        }
        Ok(())
    }
}

fn creation(
    caller: Caller,
    parent: InodeNo,
    name: Name,
    kind: NewKind,
    (mode, umask): (u32, u32),
    open_existing: bool,
) -> Change {
    Change::Create {
        parent,
        name,
        kind,
        mode: mode & 0o7777,
        umask: umask & 0o777,
        uid: caller.uid,
        gid: caller.gid,
        layout: None,
        open_existing,
    }
}
