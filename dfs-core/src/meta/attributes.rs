//! Attributes: chmod, chown, times, extended attributes and ACLs.

use super::names::SETGID;
use super::transaction::{Answer, Transaction};
use super::{Key, Record, read};
use crate::command::{Outcome, SetTime, XattrMode};
use crate::ids::InodeNo;
use crate::namespace::acl::{self, Acl};
use crate::namespace::{
    FileKind, Inode, NamespaceError, XATTR_NAME_BYTES_MAX, XATTR_TOTAL_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
};

const SETUID: u32 = 0o4000;
const GROUP_EXECUTE: u32 = 0o010;

/// Where file capabilities are kept.
const CAPABILITY: &[u8] = b"security.capability";

/// Setuid, and setgid where it means execution (without group execution it once meant mandatory locking, and Linux leaves
/// it alone).
fn drop_set_ids(inode: &mut Inode) -> bool {
    let before = inode.mode;
    inode.mode &= !SETUID;
    if inode.mode & GROUP_EXECUTE != 0 {
        inode.mode &= !SETGID;
    }
    inode.mode != before
}

impl Transaction<'_> {
    /// What a write or a change of owner takes away: set-ids and file capabilities. Whether there was any.
    pub(super) fn kill_privileges(&mut self, ino: InodeNo, inode: &mut Inode) -> bool {
        let capability = read::xattr(self.store, ino, CAPABILITY).is_some();
        if capability {
            self.store.delete(&Key::Xattr(ino, CAPABILITY.to_vec()));
        }
        drop_set_ids(inode) || capability
    }

    /// A request that asks for nothing leaves even ctime alone.
    pub(super) fn set_attr(
        &mut self,
        ino: InodeNo,
        mode: Option<u32>,
        (uid, gid): (Option<u32>, Option<u32>),
        (atime, mtime): (SetTime, SetTime),
        kill_priv: bool,
    ) -> Answer {
        let mut inode = self.inode(ino)?;
        let chown = uid.is_some() || gid.is_some();
        let mut asked = chown || mode.is_some();
        if (chown || kill_priv) && inode.kind != FileKind::Directory {
            asked |= self.kill_privileges(ino, &mut inode);
        }
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        for (set, time) in [(atime, &mut inode.atime), (mtime, &mut inode.mtime)] {
            match set {
                SetTime::Keep => continue,
                SetTime::Now => *time = self.now,
                SetTime::To(to) => *time = to,
            }
            asked = true;
        }
        if let Some(mode) = mode {
            inode.mode = mode & 0o7777;
            if let Some(bytes) = read::xattr(self.store, ino, acl::ACCESS_NAME)
                && let Ok(Some(access)) = Acl::decode(&bytes)
            {
                let key = Key::Xattr(ino, acl::ACCESS_NAME.to_vec());
                self.store.put(key, Record::Xattr(access.after_chmod(mode).encode()));
            }
        }
        if asked {
            self.touch(&mut inode, false);
        }
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn set_xattr(
        &mut self,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Answer {
        let mut inode = self.inode(ino)?;
        check_xattr_name(name, inode.kind)?;
        if XATTR_VALUE_BYTES_MAX < value.len() {
            return Err(NamespaceError::AttributeTooLarge);
        }
        let existing = read::xattr(self.store, ino, name);
        match (mode, &existing) {
            (XattrMode::Create, Some(_)) => return Err(NamespaceError::Exists),
            (XattrMode::Replace, None) => return Err(NamespaceError::NoAttribute),
            (XattrMode::Set | XattrMode::Create | XattrMode::Replace, _) => {}
        }
        let mut stored = Some(value.to_vec());
        if name == acl::ACCESS_NAME || name == acl::DEFAULT_NAME {
            let decoded =
                Acl::decode(value).map_err(|bad| NamespaceError::Invalid(bad.to_string()))?;
            stored = decoded.as_ref().map(Acl::encode);
            if let (acl::ACCESS_NAME, Some(access)) = (name, &decoded) {
                inode.mode = access.sync_mode(inode.mode);
                // What permission bits say is not said twice.
                if access.is_minimal() {
                    stored = None;
                }
            }
        }
        let key = Key::Xattr(ino, name.to_vec());
        match stored {
            Some(value) => {
                self.check_xattrs_fit(ino, name, &value)?;
                self.store.put(key, Record::Xattr(value));
            }
            None => self.store.delete(&key),
        }
        self.touch(&mut inode, false);
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn remove_xattr(&mut self, ino: InodeNo, name: &[u8]) -> Answer {
        let mut inode = self.inode(ino)?;
        if read::xattr(self.store, ino, name).is_none() {
            return Err(NamespaceError::NoAttribute);
        }
        self.store.delete(&Key::Xattr(ino, name.to_vec()));
        self.touch(&mut inode, false);
        Ok(self.put_and_answer(ino, inode))
    }

    pub(super) fn put_and_answer(&mut self, ino: InodeNo, inode: Inode) -> Outcome {
        let attr = read::attr_of(self.store, ino, &inode);
        self.put_inode(ino, inode);
        Outcome::Attr(attr)
    }

    fn check_xattrs_fit(
        &self,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), NamespaceError> {
        let others: usize = read::xattr_range(self.store, ino)
            .iter()
            .map(|pair| match pair {
                (Key::Xattr(_, other), Record::Xattr(held)) if other != name => {
                    other.len() + held.len()
                }
                _ => 0,
            })
            .sum();
        if XATTR_TOTAL_BYTES_MAX < others + name.len() + value.len() {
            return Err(NamespaceError::AttributeTooLarge);
        }
        Ok(())
    }
}

fn check_xattr_name(name: &[u8], kind: FileKind) -> Result<(), NamespaceError> {
    if name.is_empty() || XATTR_NAME_BYTES_MAX < name.len() || name.contains(&0) {
        return Err(NamespaceError::Invalid("not a name of an attribute".into()));
    }
    let not_permitted = |why: &str| Err(NamespaceError::NotPermitted(why.into()));
    if name == acl::ACCESS_NAME {
        return match kind {
            FileKind::Symlink => not_permitted("a symlink has no ACL"),
            FileKind::File
            | FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => Ok(()),
        };
    }
    if name == acl::DEFAULT_NAME {
        return if kind == FileKind::Directory {
            Ok(())
        } else {
            not_permitted("only a directory has a default ACL")
        };
    }
    // xattr(7): permission bits of other kinds do not mean what access to `user.` needs.
    if name.starts_with(b"user.") {
        return match kind {
            FileKind::File | FileKind::Directory => Ok(()),
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {
                not_permitted("user attributes are for files and directories")
            }
        };
    }
    if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        return Ok(());
    }
    not_permitted("attributes start with user., trusted. or security.")
}
