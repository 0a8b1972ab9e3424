//! POSIX access control lists: the byte form of `system.posix_acl_*`, their rules, and how they and permission bits
//! follow each other (Linux' `fs/posix_acl.c`). Who may do what is checked by the kernel.

#![warn(missing_docs)]

/// The extended attribute with the ACL that access to the object follows.
pub const ACCESS_NAME: &[u8] = b"system.posix_acl_access";
/// The extended attribute with the ACL that new entries of a directory start from.
pub const DEFAULT_NAME: &[u8] = b"system.posix_acl_default";

// linux/posix_acl_xattr.h
const FORMAT_VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const UNDEFINED_ID: u32 = u32::MAX;

/// Whom an entry is about. The order is the one that entries must come in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tag {
    UserObj,
    User(u32),
    GroupObj,
    Group(u32),
    Mask,
    Other,
}

impl Tag {
    fn rank(self) -> u8 {
        match self {
            Self::UserObj => 0,
            Self::User(_) => 1,
            Self::GroupObj => 2,
            Self::Group(_) => 3,
            Self::Mask => 4,
            Self::Other => 5,
        }
    }
}

/// Bytes that are no valid ACL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a valid ACL")]
pub struct BadAcl;

/// A valid ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<(Tag, u32)>,
}

impl Acl {
    /// The ACL that `bytes` are; `None` if they say that there is none (no entries).
    ///
    /// # Errors
    /// [`BadAcl`] for anything that Linux' `posix_acl_from_xattr` or `posix_acl_valid` refuses.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadAcl> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(BadAcl)?;
        if header != FORMAT_VERSION.to_le_bytes() || body.len() % ENTRY_BYTES != 0 {
            return Err(BadAcl);
        }
        let entries: Vec<(Tag, u32)> =
            body.chunks_exact(ENTRY_BYTES).map(decode_entry).collect::<Result<_, _>>()?;
        if entries.is_empty() {
            return Ok(None);
        }
        check_entries(&entries)?;
        Ok(Some(Self { entries }))
    }

    /// The bytes that [`Self::decode`] reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        for (tag, perm) in &self.entries {
            let (tag, id): (u16, u32) = match tag {
                Tag::UserObj => (0x01, UNDEFINED_ID),
                Tag::User(id) => (0x02, *id),
                Tag::GroupObj => (0x04, UNDEFINED_ID),
                Tag::Group(id) => (0x08, *id),
                Tag::Mask => (0x10, UNDEFINED_ID),
                Tag::Other => (0x20, UNDEFINED_ID),
            };
            out.extend_from_slice(&tag.to_le_bytes());
            // Three bits: the decoder refuses more, everything else keeps to them.
            out.extend_from_slice(&perm.to_le_bytes()[..2]);
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    /// Whether permission bits say as much.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|(tag, _)| matches!(tag, Tag::UserObj | Tag::GroupObj | Tag::Other))
    }

    /// `mode` with the permission bits that `stat` shows under this ACL: the mask stands for the group.
    #[must_use]
    pub fn sync_mode(&self, mode: u32) -> u32 {
        let mut bits = 0;
        let mut mask = None;
        for &(tag, perm) in &self.entries {
            match tag {
                Tag::UserObj => bits |= perm << 6,
                Tag::GroupObj => bits |= perm << 3,
                Tag::Other => bits |= perm,
                Tag::Mask => mask = Some(perm),
                Tag::User(_) | Tag::Group(_) => {}
            }
        }
        if let Some(mask) = mask {
            bits = (bits & !0o070) | (mask << 3);
        }
        (mode & !0o777) | bits
    }

    /// This ACL after `chmod` to `mode`: the group's bits go to the mask, if there is one.
    #[must_use]
    pub fn after_chmod(&self, mode: u32) -> Self {
        self.map_classes(|class, _| mode >> class & 0o7)
    }

    /// As a default ACL: the access ACL and permission bits of an object created with `mode` (`posix_acl_create`).
    #[must_use]
    pub fn for_new_object(&self, mode: u32) -> (Self, u32) {
        let access = self.map_classes(|class, perm| perm & (mode >> class));
        let mode = access.sync_mode(mode);
        (access, mode)
    }

    /// Replaces the three entries that permission bits stand for; `class` is the bits' shift in a mode.
    fn map_classes(&self, replace: impl Fn(u32, u32) -> u32) -> Self {
        let has_mask = self.entries.iter().any(|(tag, _)| *tag == Tag::Mask);
        let entries = self.entries.iter().map(|&(tag, perm)| match tag {
            Tag::UserObj => (tag, replace(6, perm)),
            Tag::Mask => (tag, replace(3, perm)),
            Tag::GroupObj if !has_mask => (tag, replace(3, perm)),
            Tag::Other => (tag, replace(0, perm)),
            Tag::GroupObj | Tag::User(_) | Tag::Group(_) => (tag, perm),
        });
        Self { entries: entries.collect() }
    }
}

fn decode_entry(bytes: &[u8]) -> Result<(Tag, u32), BadAcl> {
    let &[tag_low, tag_high, perm_low, perm_high, a, b, c, d] = bytes else { return Err(BadAcl) };
    let id = u32::from_le_bytes([a, b, c, d]);
    let perm = u16::from_le_bytes([perm_low, perm_high]);
    let tag = match u16::from_le_bytes([tag_low, tag_high]) {
        0x01 => Tag::UserObj,
        0x02 if id != UNDEFINED_ID => Tag::User(id),
        0x04 => Tag::GroupObj,
        0x08 if id != UNDEFINED_ID => Tag::Group(id),
        0x10 => Tag::Mask,
        0x20 => Tag::Other,
        _ => return Err(BadAcl),
    };
    if perm & !0o7 != 0 {
        return Err(BadAcl);
    }
    Ok((tag, u32::from(perm)))
}

/// Owner, group and other exactly once, in order; a mask as soon as somebody else is named.
fn check_entries(entries: &[(Tag, u32)]) -> Result<(), BadAcl> {
    let ranks: Vec<u8> = entries.iter().map(|(tag, _)| tag.rank()).collect();
    let count = |rank: u8| ranks.iter().filter(|&&r| r == rank).count();
    let in_order = ranks.is_sorted();
    let once = count(0) == 1 && count(2) == 1 && count(5) == 1 && count(4) <= 1;
    let masked = count(4) == 1 || count(1) + count(3) == 0;
    if in_order && once && masked { Ok(()) } else { Err(BadAcl) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Tag, u32)]) -> Acl {
        Acl { entries: entries.to_vec() }
    }

    fn named_user() -> Acl {
        acl(&[
            (Tag::UserObj, 7),
            (Tag::User(1000), 6),
            (Tag::GroupObj, 5),
            (Tag::Mask, 7),
            (Tag::Other, 4),
        ])
    }

    #[test]
    fn bytes_are_those_of_linux() {
        // What `setfacl -m u:1000:rw` writes on a 0754 file, as `getfattr -e hex` shows it.
        let bytes = named_user().encode();
        let expected = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255,
            255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Acl::decode(&bytes), Ok(Some(named_user())));
    }

    #[test]
    fn mask_stands_for_the_group() {
        assert_eq!(named_user().sync_mode(0o4000), 0o4774);
        let after = named_user().after_chmod(0o710);
        assert_eq!(after.sync_mode(0), 0o710);
        assert!(after.entries.contains(&(Tag::GroupObj, 5)));
    }

    #[test]
    fn new_objects_get_no_more_than_asked_for() {
        let (access, mode) = named_user().for_new_object(0o640);
        assert_eq!(mode, 0o640);
        assert!(access.entries.contains(&(Tag::Mask, 4)));
        assert!(access.entries.contains(&(Tag::User(1000), 6)));
        let minimal = acl(&[(Tag::UserObj, 7), (Tag::GroupObj, 5), (Tag::Other, 0)]);
        let (access, mode) = minimal.for_new_object(0o666);
        assert_eq!(mode, 0o640);
        assert!(access.is_minimal());
    }

    #[test]
    fn invalid_acls_are_refused() {
        let good = named_user().encode();
        assert_eq!(Acl::decode(&[]), Ok(None));
        assert_eq!(Acl::decode(&good[..4]), Ok(None));
        for cut in (1..good.len()).filter(|cut| *cut != 4) {
            assert!(Acl::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        for bad in [
            acl(&[(Tag::UserObj, 7), (Tag::User(1), 6), (Tag::GroupObj, 5), (Tag::Other, 4)]),
            acl(&[(Tag::GroupObj, 5), (Tag::UserObj, 7), (Tag::Other, 4)]),
            acl(&[(Tag::UserObj, 7), (Tag::GroupObj, 5), (Tag::Other, 4), (Tag::Other, 4)]),
            acl(&[(Tag::UserObj, 8), (Tag::GroupObj, 5), (Tag::Other, 4)]),
        ] {
            assert_eq!(Acl::decode(&bad.encode()), Err(BadAcl), "{bad:?}");
        }
    }
}
