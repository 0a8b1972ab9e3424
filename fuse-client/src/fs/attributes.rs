//! Attributes, times and extended attributes.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each change has one kind of outcome; all others, also new ones, are the master's mistake"
)]

use std::sync::PoisonError;
use std::time::Instant;

use dfs_core::command::{Change, Outcome, SetTime, XattrMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, acl};

use super::{Answer, FileSystem, unexpected};
use crate::errno::Errno;
use crate::privilege;
use crate::seam::{Caller, Name, Reply, SetAttr};

/// What `capabilities(7)` takes CAP_FSETID for; the kernel does not say who has it.
fn keeps_privileges(caller: Caller) -> bool {
    caller.uid == 0
}

/// Where file capabilities are kept.
const CAPABILITY: &[u8] = b"security.capability";

impl FileSystem {
    /// Created here a moment ago, and given no extended attribute here since.
    fn is_bare(&self, ino: InodeNo) -> bool {
        let bare = self.bare.lock().unwrap_or_else(PoisonError::into_inner);
        bare.get(&ino)
            .is_some_and(|created: &Instant| created.elapsed() < self.options.lifetimes.attr)
    }

    pub(super) fn note_bare(&self, ino: InodeNo) {
        self.bare.lock().unwrap_or_else(PoisonError::into_inner).insert(ino, Instant::now());
    }

    pub(super) fn get_attr(&self, ino: InodeNo) -> Answer {
        // After each change of a name the kernel asks for the directory; the answer to that change had it.
        if let Some((attr, age)) = self.session.recent_directory(ino)
            && let Some(ttl) = self.options.lifetimes.attr.checked_sub(age)
        {
            return Ok(Reply::Attr { attr, ttl });
        }
        Ok(self.attr_reply(self.session.getattr(ino)?))
    }

    pub(super) fn set_attr(&self, caller: Caller, ino: InodeNo, set: SetAttr) -> Answer {
        let SetAttr { mode, uid, gid, size, atime, mut mtime } = set;
        let mut cut = None;
        if let Some(size) = size {
            cut = Some(self.truncate(caller, ino, size)?);
            // truncate(2) comes with "mtime now", which cutting did.
            if mtime == SetTime::Now {
                mtime = SetTime::Keep;
            }
        }
        let times = atime != SetTime::Keep || mtime != SetTime::Keep;
        if let Some(attr) =
            cut.filter(|_| !times && mode.is_none() && uid.is_none() && gid.is_none())
        {
            return Ok(self.attr_reply(attr));
        }
        // A call that sets nothing is `chown(path, -1, -1)`, which takes setuid and setgid away all the same.
        let chown = uid.is_some() || gid.is_some() || !times && mode.is_none() && size.is_none();
        let file = times.then(|| self.session.file(ino));
        if let Some(file) = &file {
            // Bytes written before this call must not move the times after it.
            let alone = atime == SetTime::Keep && mode.is_none() && uid.is_none() && gid.is_none();
            if let (true, SetTime::To(to)) = (alone, mtime) {
                // As tar sets it: logged together with the bytes.
                if let Some(attr) = file.flush_at(to)? {
                    return Ok(self.attr_reply(self.session.overlay(attr)));
                }
            } else {
                file.flush()?;
            }
        }
        let change = Change::SetAttr { ino, mode, uid, gid, atime, mtime, kill_priv: chown };
        let attr = match self.change(change)? {
            Outcome::Attr(attr) => attr,
            other => return Err(unexpected(&other)),
        };
        if let Some(file) = &file {
            file.set_times_override();
        }
        Ok(self.attr_reply(self.session.overlay(self.session.complete(attr))))
    }

    /// Cuts or grows; setuid and setgid go as after a write.
    pub(super) fn truncate(&self, caller: Caller, ino: InodeNo, size: u64) -> Result<Attr, Errno> {
        let attr = self.session.file(ino).truncate(size);
        self.listings.outdate();
        let attr = attr?;
        if keeps_privileges(caller) || attr.mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
            return Ok(attr);
        }
        let change = Change::SetAttr {
            ino,
            mode: None,
            uid: None,
            gid: None,
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
            kill_priv: true,
        };
        match self.change(change)? {
            Outcome::Attr(attr) => Ok(self.session.overlay(attr)),
            other => Err(unexpected(&other)),
        }
    }

    /// For what changes content without saying whether privileges go.
    pub(super) fn kill_privileges_of(&self, caller: Caller, ino: InodeNo) {
        if !keeps_privileges(caller) {
            self.session.file(ino).set_kill_priv();
        }
    }

    pub(super) fn set_xattr(&self, ino: InodeNo, name: Name, value: &[u8], flags: i32) -> Answer {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::INVALID),
        };
        check_namespace(&name)?;
        self.bare.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
        self.change(Change::SetXattr { ino, name, value: value.to_vec(), mode })?;
        Ok(Reply::Done)
    }

    pub(super) fn get_xattr(&self, ino: InodeNo, name: &[u8], size_max: u32) -> Answer {
        // The kernel asks this at the first write to each file.
        if name == CAPABILITY && self.is_bare(ino) {
            return Err(Errno::NO_ATTRIBUTE);
        }
        check_namespace(name)?;
        xattr_reply(self.session.getxattr(ino, name)?, size_max)
    }

    pub(super) fn remove_xattr(&self, ino: InodeNo, name: Name) -> Answer {
        check_namespace(&name)?;
        self.change(Change::RemoveXattr { ino, name }).map(|_| Reply::Done)
    }

    /// Names one after the other, each ended by a zero byte (`listxattr(2)`). `trusted.` is for administrators, also
    /// in lists (`xattr(7)`); the kernel guards their values, not their names.
    pub(super) fn list_xattr(&self, caller: Caller, ino: InodeNo, size_max: u32) -> Answer {
        let mut list = Vec::new();
        let mut is_admin = None;
        for name in self.session.listxattrs(ino)? {
            if name.starts_with(b"trusted.")
                && !*is_admin.get_or_insert_with(|| privilege::is_admin(caller))
            {
                continue;
            }
            list.extend_from_slice(&name);
            list.push(0);
        }
        xattr_reply(list, size_max)
    }
}

/// What `xattr(7)` knows; any other name is refused as local file systems refuse it.
fn check_namespace(name: &[u8]) -> Result<(), Errno> {
    let prefixes = [b"user.".as_slice(), b"trusted.", b"security."];
    if prefixes.contains(&name) {
        return Err(Errno::INVALID);
    }
    let known = prefixes.into_iter().any(|prefix| name.starts_with(prefix));
    let acl = name == acl::ACCESS_NAME || name == acl::DEFAULT_NAME;
    if known || acl { Ok(()) } else { Err(Errno::NOT_SUPPORTED) }
}

fn xattr_reply(bytes: Vec<u8>, size_max: u32) -> Answer {
    let size = u32::try_from(bytes.len()).map_err(|_| Errno::RANGE)?;
    match size_max {
        0 => Ok(Reply::XattrSize(size)),
        max if size <= max => Ok(Reply::Xattr(bytes)),
        _ => Err(Errno::RANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_no_namespace_are_refused_as_local_file_systems_do() {
        assert_eq!(check_namespace(b"user.a"), Ok(()));
        assert_eq!(check_namespace(b"system.posix_acl_default"), Ok(()));
        for name in [b"nonsense".as_slice(), b"use", b"system.other", b"system."] {
            assert_eq!(check_namespace(name), Err(Errno::NOT_SUPPORTED));
        }
        for name in [b"user.".as_slice(), b"trusted.", b"security."] {
            assert_eq!(check_namespace(name), Err(Errno::INVALID));
        }
    }

    #[test]
    fn an_xattr_that_does_not_fit_says_so_and_its_size_can_be_asked() {
        assert!(matches!(xattr_reply(vec![1; 5], 0), Ok(Reply::XattrSize(5))));
        assert!(matches!(xattr_reply(vec![1; 5], 5), Ok(Reply::Xattr(value)) if value.len() == 5));
        assert_eq!(xattr_reply(vec![1; 5], 4).err(), Some(Errno::RANGE));
        assert!(matches!(xattr_reply(vec![], 0), Ok(Reply::XattrSize(0))));
    }
}
