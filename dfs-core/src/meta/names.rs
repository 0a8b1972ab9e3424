//! Names: create, link, unlink, rename, and freeing what lost its last name.

use super::transaction::{Answer, FIRST_COOKIE, Transaction};
use super::{Key, Record, read};
use crate::command::{NewKind, Outcome, RenameMode};
use crate::cuts::Cuts;
use crate::ids::InodeNo;
use crate::namespace::acl::{self, Acl};
use crate::namespace::{
    Body, CHUNK_BYTES_LEAST, CHUNK_BYTES_MAX, Dentry, FileKind, Inode, LINK_COUNT_MAX, Layout,
    NAME_BYTES_MAX, NamespaceError, SYMLINK_BYTES_MAX, record_bytes_max,
};

pub(super) const SETGID: u32 = 0o2000;

/// Who creates, with which permission bits.
pub(super) struct Creator {
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Whether `name` may name an entry.
pub(super) fn check_name(name: &[u8]) -> Result<(), NamespaceError> {
    if name_too_long(name) {
        return Err(NamespaceError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(NamespaceError::Invalid("not a name of an entry".into()));
    }
    Ok(())
}

/// Whether an entry may have this name.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    check_name(name).is_ok()
}

pub(super) fn name_too_long(name: &[u8]) -> bool {
    NAME_BYTES_MAX < name.len()
}

pub(super) fn check_layout(layout: Layout) -> Result<(), NamespaceError> {
    let Layout { chunk_size, record_log, record_max } = layout;
    if !chunk_size.is_power_of_two() || !(CHUNK_BYTES_LEAST..=CHUNK_BYTES_MAX).contains(&chunk_size)
    {
        return Err(NamespaceError::Invalid(format!(
            "chunk size {chunk_size} is not a power of two from {CHUNK_BYTES_LEAST} to {CHUNK_BYTES_MAX}"
        )));
    }
    let most = record_bytes_max(chunk_size);
    if record_max != 0 && !record_log {
        return Err(NamespaceError::Invalid("only a record log has a longest record".into()));
    }
    if most < record_max {
        return Err(NamespaceError::Invalid(format!(
            "records of {record_max} bytes: chunks of {chunk_size} bytes take records of at most {most}"
        )));
    }
    Ok(())
}

impl Transaction<'_> {
    pub(super) fn create(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        kind: &NewKind,
        layout: Option<Layout>,
        open_existing: bool,
        creator: Creator,
    ) -> Answer {
        check_name(name)?;
        let mut directory = self.live_directory(parent)?;
        if let Some(found) = read::dentry(self.store, parent, name) {
            if open_existing && found.kind == FileKind::File {
                let attr = read::attr_of(self.store, found.ino, &self.inode(found.ino)?);
                return Ok(Outcome::Entry { attr, created: false });
            }
            return Err(NamespaceError::Exists);
        }
        let (ino, inode) = self.make(parent, &directory, kind, layout, creator)?;
        if inode.kind == FileKind::Directory {
            directory.nlink += 1;
        }
        let (attr, kind) = (inode.attr(ino), inode.kind);
        self.put_inode(ino, inode);
        self.add_entry(parent, directory, name, ino, kind);
        Ok(Outcome::Entry { attr, created: true })
    }

    pub(super) fn create_unnamed(
        &mut self,
        parent: InodeNo,
        layout: Option<Layout>,
        creator: Creator,
    ) -> Answer {
        let directory = self.live_directory(parent)?;
        let (ino, mut inode) = self.make(parent, &directory, &NewKind::File, layout, creator)?;
        inode.nlink = 0;
        let attr = inode.attr(ino);
        self.put_inode(ino, inode);
        self.store.put(Key::Orphan(ino), Record::Unnamed);
        Ok(Outcome::Entry { attr, created: true })
    }

    /// A new inode, which the caller stores.
    fn make(
        &mut self,
        parent: InodeNo,
        directory: &Inode,
        kind: &NewKind,
        layout: Option<Layout>,
        creator: Creator,
    ) -> Result<(InodeNo, Inode), NamespaceError> {
        let layout = layout.unwrap_or(directory.layout);
        check_layout(layout)?;
        let ino = InodeNo(self.superblock.next_inode);
        let (kind, rdev, body, size) = new_body(kind, layout, parent)?;

        let default_acl = match kind {
            FileKind::Symlink => None,
            FileKind::File
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => read::xattr(self.store, parent, acl::DEFAULT_NAME),
        };
        let Creator { mode, umask, uid, gid } = creator;
        let mut mode = mode & 0o7777;
        match &default_acl {
            None => mode &= !(umask & 0o777),
            Some(bytes) => mode = self.inherit_acl(ino, kind, mode, bytes),
        }
        if kind == FileKind::Symlink {
            mode = 0o777;
        }
        let gid = if directory.mode & SETGID == 0 { gid } else { directory.gid };
        if kind == FileKind::Directory {
            mode |= directory.mode & SETGID;
        }
        let inode = Inode {
            kind,
            mode,
            uid,
            gid,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            rdev,
            size,
            atime: self.now,
            mtime: self.now,
            ctime: self.now,
            btime: self.now,
            change: 1,
            cuts: 0,
            cut_sizes: Cuts::default(),
            layout,
            body,
        };
        self.superblock.next_inode += 1;
        self.superblock.inode_count += 1;
        Ok((ino, inode))
    }

    /// Gives a new object the ACLs that its directory's default ACL asks for; answers its permission bits.
    fn inherit_acl(&mut self, ino: InodeNo, kind: FileKind, mode: u32, default: &[u8]) -> u32 {
        // Only validated bytes are ever stored under this name.
        let Some(inherited) = Acl::decode(default).ok().flatten() else { return mode };
        let (access, mode) = inherited.for_new_object(mode);
        if !access.is_minimal() {
            let key = Key::Xattr(ino, acl::ACCESS_NAME.to_vec());
            self.store.put(key, Record::Xattr(access.encode()));
        }
        if kind == FileKind::Directory {
            let key = Key::Xattr(ino, acl::DEFAULT_NAME.to_vec());
            self.store.put(key, Record::Xattr(default.to_vec()));
        }
        mode
    }

    pub(super) fn link(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Answer {
        check_name(name)?;
        let directory = self.live_directory(parent)?;
        let mut inode = self.inode(ino)?;
        if read::dentry(self.store, parent, name).is_some() {
            return Err(NamespaceError::Exists);
        }
        if inode.kind == FileKind::Directory {
            return Err(NamespaceError::NotPermitted("a directory has one name".into()));
        }
        // An unlinked file is on its way out, even if it is open: linkat(2) answers ENOENT. One of O_TMPFILE has its name to
        // come.
        if inode.nlink == 0 && self.store.get(&Key::Orphan(ino)) != Some(Record::Unnamed) {
            return Err(NamespaceError::NotFound);
        }
        if LINK_COUNT_MAX <= inode.nlink {
            return Err(NamespaceError::TooManyLinks);
        }
        if inode.nlink == 0 {
            self.store.delete(&Key::Orphan(ino));
        }
        inode.nlink += 1;
        self.touch(&mut inode, false);
        let attr = read::attr_of(self.store, ino, &inode);
        let kind = inode.kind;
        self.put_inode(ino, inode);
        self.add_entry(parent, directory, name, ino, kind);
        Ok(Outcome::Entry { attr, created: true })
    }

    /// As rename(2) of a file that had a name: what has this one loses it in the same step.
    pub(super) fn put_in_place(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Answer {
        check_name(name)?;
        let mut directory = self.live_directory(parent)?;
        let inode = self.inode(ino)?;
        // What is in the trash comes back by a restore only.
        let is_orphan = self.store.get(&Key::Orphan(ino)).is_some();
        if inode.kind != FileKind::File || inode.nlink != 0 || !is_orphan {
            return Err(NamespaceError::NotPermitted("not a file without a name".into()));
        }
        let mut replaced = None;
        if let Some(target) = read::dentry(self.store, parent, name) {
            if target.kind == FileKind::Directory {
                return Err(NamespaceError::IsDirectory);
            }
            self.remove_entry(parent, &mut directory, name, target);
            if self.drop_name(target.ino, parent, name)? == 0 {
                replaced = Some(target.ino);
            }
        }
        let mut inode = Inode { nlink: 1, ..inode };
        self.touch(&mut inode, false);
        self.put_inode(ino, inode);
        self.store.delete(&Key::Orphan(ino));
        self.add_entry(parent, directory, name, ino, FileKind::File);
        Ok(Outcome::Renamed { moved: ino, replaced })
    }

    pub(super) fn unlink(&mut self, parent: InodeNo, name: &[u8]) -> Answer {
        check_name(name)?;
        let mut directory = self.directory(parent)?;
        let dentry = self.dentry(parent, name)?;
        if dentry.kind == FileKind::Directory {
            return Err(NamespaceError::IsDirectory);
        }
        self.remove_entry(parent, &mut directory, name, dentry);
        self.put_inode(parent, directory);
        let nlink = self.drop_name(dentry.ino, parent, name)?;
        Ok(Outcome::Unlinked { ino: dentry.ino, nlink })
    }

    pub(super) fn rmdir(&mut self, parent: InodeNo, name: &[u8]) -> Answer {
        check_name(name)?;
        let mut directory = self.directory(parent)?;
        let dentry = self.dentry(parent, name)?;
        if dentry.kind != FileKind::Directory {
            return Err(NamespaceError::NotDirectory);
        }
        self.check_empty(dentry.ino)?;
        self.remove_entry(parent, &mut directory, name, dentry);
        directory.nlink -= 1;
        self.put_inode(parent, directory);
        let nlink = self.drop_name(dentry.ino, parent, name)?;
        Ok(Outcome::Unlinked { ino: dentry.ino, nlink })
    }

    /// `renameat2(2)`. Order of the checks as in Linux' `do_renameat2` and `vfs_rename`.
    pub(super) fn rename(
        &mut self,
        (from_parent, from): (InodeNo, &[u8]),
        (to_parent, to): (InodeNo, &[u8]),
        mode: RenameMode,
    ) -> Answer {
        check_name(from)?;
        check_name(to)?;
        self.directory(from_parent)?;
        self.live_directory(to_parent)?;
        let source = self.dentry(from_parent, from)?;
        let target = read::dentry(self.store, to_parent, to);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(NamespaceError::Exists),
            (RenameMode::Exchange, None) => return Err(NamespaceError::NotFound),
            (RenameMode::NoReplace | RenameMode::Replace | RenameMode::Exchange, _) => {}
        }
        self.check_not_below(source, from_parent, to_parent)?;
        // rename(2) on the same inode is a no-op, even across directories: POSIX says so.
        if target.is_some_and(|target| target.ino == source.ino) {
            return Ok(Outcome::Renamed { moved: source.ino, replaced: None });
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            self.check_not_below(target, to_parent, from_parent)?;
            return self.exchange((from_parent, from, source), (to_parent, to, target));
        }
        if let Some(target) = target {
            match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
                (true, false) => return Err(NamespaceError::NotDirectory),
                (false, true) => return Err(NamespaceError::IsDirectory),
                (true, true) => self.check_empty(target.ino)?,
                (false, false) => {}
            }
        }

        let mut old_home = self.directory(from_parent)?;
        self.remove_entry(from_parent, &mut old_home, from, source);
        if source.kind == FileKind::Directory {
            old_home.nlink -= 1;
        }
        self.put_inode(from_parent, old_home);

        let mut new_home = self.directory(to_parent)?;
        let mut replaced = None;
        if let Some(target) = target {
            self.remove_entry(to_parent, &mut new_home, to, target);
            if target.kind == FileKind::Directory {
                new_home.nlink -= 1;
            }
            if self.drop_name(target.ino, to_parent, to)? == 0 {
                replaced = Some(target.ino);
            }
        }
        if source.kind == FileKind::Directory {
            new_home.nlink += 1;
        }
        self.add_entry(to_parent, new_home, to, source.ino, source.kind);
        self.moved(source.ino, to_parent)?;
        Ok(Outcome::Renamed { moved: source.ino, replaced })
    }

    /// Both names stay where they are, with their cookies; what they name changes places.
    fn exchange(
        &mut self,
        (from_parent, from, source): (InodeNo, &[u8], Dentry),
        (to_parent, to, target): (InodeNo, &[u8], Dentry),
    ) -> Answer {
        self.put_entry(from_parent, from, Dentry { cookie: source.cookie, ..target });
        self.put_entry(to_parent, to, Dentry { cookie: target.cookie, ..source });
        for (home, gone, come) in [(from_parent, source, target), (to_parent, target, source)] {
            let mut directory = self.directory(home)?;
            directory.nlink += u32::from(come.kind == FileKind::Directory);
            directory.nlink -= u32::from(gone.kind == FileKind::Directory);
            self.touch(&mut directory, true);
            self.put_inode(home, directory);
        }
        self.moved(source.ino, to_parent)?;
        self.moved(target.ino, from_parent)?;
        Ok(Outcome::Renamed { moved: source.ino, replaced: None })
    }

    /// Frees what has no name and is not open any more.
    pub(super) fn reclaim(&mut self, ino: InodeNo) -> Answer {
        let mut inode = self.inode(ino)?;
        if inode.nlink != 0 {
            return Err(NamespaceError::NotPermitted("it still has a name".into()));
        }
        if self.store.get(&Key::Orphan(ino)).is_none() {
            return Err(NamespaceError::NotPermitted("it is in the trash".into()));
        }
        self.free_all_chunks(ino, &mut inode);
        for (key, _) in read::xattr_range(self.store, ino) {
            self.store.delete(&key);
        }
        for key in [Key::Locks(ino), Key::Truncating(ino), Key::Orphan(ino), Key::Inode(ino)] {
            self.store.delete(&key);
        }
        self.superblock.inode_count -= 1;
        if inode.kind == FileKind::File {
            self.superblock.file_bytes = self.superblock.file_bytes.wrapping_sub(inode.size);
        }
        Ok(Outcome::Done)
    }

    fn directory(&self, ino: InodeNo) -> Result<Inode, NamespaceError> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory {
            Ok(inode)
        } else {
            Err(NamespaceError::NotDirectory)
        }
    }

    /// A directory that may get entries: a removed one that somebody has open may not.
    pub(super) fn live_directory(&self, ino: InodeNo) -> Result<Inode, NamespaceError> {
        let inode = self.directory(ino)?;
        if inode.nlink == 0 { Err(NamespaceError::NotFound) } else { Ok(inode) }
    }

    fn dentry(&self, parent: InodeNo, name: &[u8]) -> Result<Dentry, NamespaceError> {
        read::dentry(self.store, parent, name).ok_or(NamespaceError::NotFound)
    }

    fn check_empty(&self, ino: InodeNo) -> Result<(), NamespaceError> {
        match self.inode(ino)?.body {
            Body::Directory { entry_count: 0, .. } => Ok(()),
            Body::Directory { .. } => Err(NamespaceError::NotEmpty),
            Body::Inline(_) | Body::Chunks { .. } | Body::Symlink(_) | Body::Special => {
                Err(NamespaceError::NotDirectory)
            }
        }
    }

    /// Refuses to put `moving` (an entry of `home`) below itself.
    fn check_not_below(
        &self,
        moving: Dentry,
        home: InodeNo,
        new_home: InodeNo,
    ) -> Result<(), NamespaceError> {
        if moving.kind != FileKind::Directory || home == new_home {
            return Ok(());
        }
        let mut at = new_home;
        loop {
            if at == moving.ino {
                return Err(NamespaceError::Invalid("a directory cannot move below itself".into()));
            }
            if at == InodeNo::ROOT {
                return Ok(());
            }
            let Body::Directory { parent, .. } = self.directory(at)?.body else {
                return Err(NamespaceError::NotDirectory);
            };
            at = parent;
        }
    }

    /// Notes on an inode that it was renamed; a directory learns its new `..`.
    fn moved(&mut self, ino: InodeNo, home: InodeNo) -> Result<(), NamespaceError> {
        let mut inode = self.inode(ino)?;
        if let Body::Directory { parent, .. } = &mut inode.body {
            *parent = home;
        }
        self.touch(&mut inode, false);
        self.put_inode(ino, inode);
        Ok(())
    }

    /// Enters a new name in `directory` and stores both.
    pub(super) fn add_entry(
        &mut self,
        parent: InodeNo,
        mut directory: Inode,
        name: &[u8],
        ino: InodeNo,
        kind: FileKind,
    ) {
        if let Body::Directory { entry_count, next_cookie, .. } = &mut directory.body {
            let dentry = Dentry { ino, kind, cookie: *next_cookie };
            *next_cookie += 1;
            *entry_count += 1;
            directory.size = *entry_count;
            self.put_entry(parent, name, dentry);
        }
        self.touch(&mut directory, true);
        self.put_inode(parent, directory);
    }

    fn put_entry(&mut self, parent: InodeNo, name: &[u8], dentry: Dentry) {
        let Dentry { ino, kind, cookie } = dentry;
        self.store.put(Key::Dentry(parent, name.to_vec()), Record::Dentry(dentry));
        self.store
            .put(Key::DirSlot(parent, cookie), Record::DirSlot { name: name.to_vec(), ino, kind });
    }

    /// Takes a name out of `directory`, which the caller stores.
    fn remove_entry(
        &mut self,
        parent: InodeNo,
        directory: &mut Inode,
        name: &[u8],
        dentry: Dentry,
    ) {
        self.store.delete(&Key::Dentry(parent, name.to_vec()));
        self.store.delete(&Key::DirSlot(parent, dentry.cookie));
        if let Body::Directory { entry_count, .. } = &mut directory.body {
            *entry_count -= 1;
            directory.size = *entry_count;
        }
        self.touch(directory, true);
    }

    /// One name less for `ino`; without any it is kept in the trash or becomes an orphan. Answers the names left.
    fn drop_name(
        &mut self,
        ino: InodeNo,
        parent: InodeNo,
        name: &[u8],
    ) -> Result<u32, NamespaceError> {
        let mut inode = self.inode(ino)?;
        inode.nlink =
            if inode.kind == FileKind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
        self.touch(&mut inode, false);
        let nlink = inode.nlink;
        let is_kept = inode.kind == FileKind::File && 0 < self.superblock.trash_ms;
        self.put_inode(ino, inode);
        if nlink == 0 && is_kept {
            self.put_in_trash(ino, parent, name);
        } else if nlink == 0 {
            self.store.put(Key::Orphan(ino), Record::Orphan);
        }
        Ok(nlink)
    }
}

fn new_body(
    kind: &NewKind,
    layout: Layout,
    parent: InodeNo,
) -> Result<(FileKind, u32, Body, u64), NamespaceError> {
    Ok(match kind {
        NewKind::File if layout.allows_inline() => (FileKind::File, 0, Body::Inline(Vec::new()), 0),
        NewKind::File => (FileKind::File, 0, Body::Chunks { chunk_count: 0, writing: false }, 0),
        NewKind::Directory => {
            let body = Body::Directory { parent, entry_count: 0, next_cookie: FIRST_COOKIE };
            (FileKind::Directory, 0, body, 0)
        }
        NewKind::Symlink(target) => {
            if SYMLINK_BYTES_MAX < target.len() {
                return Err(NamespaceError::NameTooLong);
            }
            if target.is_empty() || target.contains(&0) {
                return Err(NamespaceError::Invalid("not a symlink target".into()));
            }
            (FileKind::Symlink, 0, Body::Symlink(target.clone()), target.len() as u64)
        }
        NewKind::Fifo => (FileKind::Fifo, 0, Body::Special, 0),
        NewKind::Socket => (FileKind::Socket, 0, Body::Special, 0),
        NewKind::CharDevice(rdev) => (FileKind::CharDevice, *rdev, Body::Special, 0),
        NewKind::BlockDevice(rdev) => (FileKind::BlockDevice, *rdev, Body::Special, 0),
    })
}
