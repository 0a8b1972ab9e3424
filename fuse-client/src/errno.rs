//! The one table from errors to errno. Nothing else here names an errno.
//!
//! `match` without a wildcard, so that a new variant fails to compile until someone has thought about it.

use dfs_client::ClientError;
use dfs_core::namespace::NamespaceError;

/// What an application sees go wrong (`errno(3)`); never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(i32);

impl Errno {
    /// A waiting lock whose time is over: the caller may ask again.
    pub const TIMED_OUT: Self = Self(libc::ETIMEDOUT);
    /// A flag or mode that no file supports.
    pub const INVALID: Self = Self(libc::EINVAL);
    pub const NO_ATTRIBUTE: Self = Self(libc::ENODATA);
    pub const IO: Self = Self(libc::EIO);
    pub const STALE: Self = Self(libc::ESTALE);
    pub const NO_ENTRY: Self = Self(libc::ENOENT);
    /// The buffer given for an extended attribute is too small.
    pub const RANGE: Self = Self(libc::ERANGE);
    /// `ioctl(2)` on what has none.
    pub const NO_IOCTL: Self = Self(libc::ENOTTY);
    /// No data (or hole) beyond this offset (`lseek(2)`).
    pub const NO_SUCH_OFFSET: Self = Self(libc::ENXIO);
    /// The mount is going away.
    pub const NOT_CONNECTED: Self = Self(libc::ENOTCONN);
    /// The kernel does without the request from now on.
    pub const UNKNOWN: Self = Self(libc::ENOSYS);
    pub const INTERRUPTED: Self = Self(libc::EINTR);
    pub const NOT_SUPPORTED: Self = Self(libc::EOPNOTSUPP);

    #[must_use]
    pub fn code(self) -> i32 {
        self.0
    }
}

impl From<&ClientError> for Errno {
    fn from(error: &ClientError) -> Self {
        Self(match error {
            ClientError::Refused(refusal) => refused(refusal),
            // Bytes may exist, but none can be shown to be the newest: say so, never guess.
            ClientError::NoCurrentReplica { .. } => libc::EIO,
            // Asked again until `--server-wait` or the deadline for data was over.
            ClientError::MasterSilent { .. } | ClientError::ChunkUnavailable { .. } => libc::EIO,
            ClientError::NoSpace { .. } => libc::ENOSPC,
            // As send(2) refuses a message that cannot be passed whole (DECISIONS 23).
            ClientError::RecordTooLong { .. } => libc::EMSGSIZE,
            // Done or not: nobody can tell any more. Repeating it is the application's decision.
            ClientError::OutcomeUnknown => libc::EIO,
            ClientError::Interrupted => libc::EINTR,
            // No request of the kernel asks for them.
            ClientError::RecordsUnknown { .. } => libc::ENODATA,
            ClientError::Protocol { .. } => libc::EIO,
            // The mount is going away.
            ClientError::Closed => libc::ENOTCONN,
        })
    }
}

impl From<ClientError> for Errno {
    /// For an answer to the kernel: what EIO hides is logged here, once.
    fn from(error: ClientError) -> Self {
        let errno = Self::from(&error);
        if errno == Self::IO {
            tracing::warn!(%error, see = error.page().map(tracing::field::display), "a request fails with EIO");
        }
        errno
    }
}

fn refused(refusal: &NamespaceError) -> i32 {
    match refusal {
        NamespaceError::NotFound => libc::ENOENT,
        NamespaceError::Exists => libc::EEXIST,
        NamespaceError::NotDirectory => libc::ENOTDIR,
        NamespaceError::IsDirectory => libc::EISDIR,
        NamespaceError::NotEmpty => libc::ENOTEMPTY,
        NamespaceError::NameTooLong => libc::ENAMETOOLONG,
        NamespaceError::Invalid(_) => libc::EINVAL,
        NamespaceError::TooManyLinks => libc::EMLINK,
        NamespaceError::NotPermitted(_) => libc::EPERM,
        NamespaceError::NoAttribute => libc::ENODATA,
        // setxattr(2): ENOSPC is for what the file system cannot store; E2BIG is the kernel's own limit.
        NamespaceError::AttributeTooLarge => libc::ENOSPC,
        NamespaceError::FileTooLarge => libc::EFBIG,
        // dfs-client chooses again by itself; what comes here gave up after many changes in a row.
        NamespaceError::LayoutChanged | NamespaceError::Truncated => libc::EIO,
        NamespaceError::Stale => libc::ESTALE,
        NamespaceError::Locked => libc::EAGAIN,
        NamespaceError::NoLocks => libc::ENOLCK,
        // The lease ended while this mount was cut off: its locks and opens are gone, and it must say so.
        NamespaceError::NoSession => libc::EIO,
        NamespaceError::OutcomeUnknown => libc::EIO,
        NamespaceError::Busy => libc::EBUSY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: ClientError, expected: i32) {
        assert_eq!(Errno::from(error).code(), expected);
    }

    #[test]
    fn applications_see_the_errno_of_a_local_file_system() {
        check(ClientError::Refused(NamespaceError::NotFound), libc::ENOENT);
        check(ClientError::Refused(NamespaceError::NotEmpty), libc::ENOTEMPTY);
        check(ClientError::Refused(NamespaceError::NoAttribute), libc::ENODATA);
        check(ClientError::Refused(NamespaceError::Locked), libc::EAGAIN);
        check(ClientError::OutcomeUnknown, libc::EIO);
        check(ClientError::Interrupted, libc::EINTR);
    }
}
