//! Paths in the file system as people type them: from the root, with or without the first slash.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::failure::fail;
use crate::output::{escaped, hex_unless_utf8};

/// `PATH_MAX` of Linux: bytes of a path with the zero byte at its end.
const PATH_BYTES_MAX: usize = 4096;
/// Of a path that is too long, messages show so many bytes.
const SHOWN_BYTES: usize = 64;

/// Names from the root down; empty: the root itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemotePath {
    pub names: Vec<Vec<u8>>,
    /// Written with `/` or `.` at the end: only a directory is meant.
    pub wants_directory: bool,
    /// Written with `.` at the end: the directory itself, which rmdir(2) refuses to remove under that name.
    pub is_dot: bool,
}

impl RemotePath {
    /// `..` is refused: where it leads depends on symbolic links that nobody follows here.
    pub(crate) fn parse(text: &OsStr) -> anyhow::Result<Self> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return fail("path '': empty", "name a path such as /notes.txt, or / for the root");
        }
        // The kernel says the same of a path on a mount.
        if PATH_BYTES_MAX <= bytes.len() {
            let start = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
            return fail(
                format!(
                    "path '{}…': File name too long: {} bytes, the limit is {} ({PATH_BYTES_MAX} with the zero byte behind it, \
                     PATH_MAX)",
                    String::from_utf8_lossy(start),
                    bytes.len(),
                    PATH_BYTES_MAX - 1
                ),
                "use shorter names or fewer directories; through a mount, go down in steps with cd",
            );
        }
        let mut names = Vec::new();
        for name in bytes.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => {
                    return fail(
                        format!("path '{}': '..' is not resolved here", text.to_string_lossy()),
                        "write the path from the root",
                    );
                }
                name => names.push(name.to_owned()),
            }
        }
        let is_dot = bytes.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty()) == Some(b".");
        Ok(Self { names, wants_directory: is_dot || bytes.ends_with(b"/"), is_dot })
    }

    /// `/a/b`, for messages and tables: what a terminal would not print as it is, is escaped.
    pub(crate) fn shown(&self) -> String {
        escaped(&self.bytes())
    }

    /// `/a/b`, for JSON, which has escapes of its own.
    pub(crate) fn json(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The same in hexadecimal digits, if [`Self::json`] loses something.
    pub(crate) fn json_hex(&self) -> Option<String> {
        hex_unless_utf8(&self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        if self.names.is_empty() {
            return b"/".to_vec();
        }
        self.names.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect()
    }

    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.names.last().map(Vec::as_slice)
    }

    /// The directory it lies in; the root's is the root.
    pub(crate) fn parent(&self) -> Self {
        let mut names = self.names.clone();
        names.pop();
        Self { names, wants_directory: true, is_dot: false }
    }

    pub(crate) fn join(&self, name: &[u8]) -> Self {
        let mut names = self.names.clone();
        names.push(name.to_owned());
        Self { names, wants_directory: false, is_dot: false }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether `other` is this or lies below it.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        other.names.starts_with(&self.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let path = RemotePath::parse(OsStr::new(text)).unwrap();
        assert_eq!(path.shown(), expected);
    }

    #[test]
    fn paths_start_at_the_root() {
        check("/", "/");
        check("a/b", "/a/b");
        check("//a/./b/", "/a/b");
        check(".", "/");
    }

    #[test]
    fn what_only_a_directory_can_be_is_known() {
        let path = |text: &str| RemotePath::parse(OsStr::new(text)).unwrap();
        assert!(path("/a/").wants_directory && path("/a/.").wants_directory);
        assert!(!path("/a").wants_directory && !path("/a.").wants_directory);
        assert!(path("/a/.").is_dot && path("/a/./").is_dot && path(".").is_dot);
        assert!(!path("/a/./b").is_dot && !path("/a/").is_dot && !path("/").is_dot);
    }

    #[test]
    fn empty_paths_and_parents_are_refused() {
        for bad in ["", "/a/../b", ".."] {
            assert!(RemotePath::parse(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_as_long_as_the_kernel_lets_them_be() {
        let path = |bytes: usize| RemotePath::parse(OsStr::new(&"a/".repeat(4096)[..bytes]));
        assert_eq!(path(4095).unwrap().names.len(), 2048);
        for bytes in [4096, 4200] {
            let said = format!("{:#}", path(bytes).unwrap_err());
            assert!(said.contains("File name too long"), "{said}");
            assert!(said.contains(&format!(": {bytes} bytes, the limit is 4095")), "{said}");
            assert!(said.len() < 400, "{said}");
        }
    }

    #[test]
    fn a_directory_holds_what_is_below_it() {
        let path = |text: &str| RemotePath::parse(OsStr::new(text)).unwrap();
        assert!(path("/a").holds(&path("/a/b")) && path("/").holds(&path("/a")));
        assert!(!path("/a").holds(&path("/ab")));
    }
}
