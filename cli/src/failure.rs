//! How a command says that it failed: one line, `dfs: what: why; what to do`.

use std::fmt;
use std::io::Write as _;

use chunkserver::store::StoreError;
use dfs_client::ClientError;
use dfs_service::page::Page;
use master::group::GroupError;

use crate::output::printable;

/// A refusal with advice. `anyhow` context added on the way goes in front of `what`.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    advice: String,
    /// The command line itself is wrong: exit code 2.
    pub is_usage: bool,
}

impl Failure {
    /// `what` names the offending value and why it is refused; `advice` says what to do.
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into(), is_usage: false }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.advice)
    }
}

impl std::error::Error for Failure {}

/// `Err(Failure)` as `anyhow` wants it.
pub(crate) fn fail<T>(what: impl Into<String>, advice: impl Into<String>) -> anyhow::Result<T> {
    Err(Failure::new(what, advice).into())
}

/// As [`fail`], for wrong usage.
pub(crate) fn fail_usage<T>(
    what: impl Into<String>,
    advice: impl Into<String>,
) -> anyhow::Result<T> {
    Err(Failure { what: what.into(), advice: advice.into(), is_usage: true }.into())
}

/// A command that did what it was asked, with a bad result (`dfs fsck` that found something): exit code 1, no message.
#[derive(Debug)]
pub(crate) struct AlreadySaid;

impl fmt::Display for AlreadySaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed, as printed")
    }
}

impl std::error::Error for AlreadySaid {}

/// Which section of the manual helps, if a cause knows one.
pub(crate) fn page_of(error: &anyhow::Error) -> Option<Page> {
    error.chain().find_map(|cause| {
        let of_client = cause.downcast_ref::<ClientError>().map(ClientError::page);
        let of_master = || cause.downcast_ref::<GroupError>().map(GroupError::page);
        let of_chunkserver = || cause.downcast_ref::<StoreError>().map(StoreError::page);
        of_client.or_else(of_master).or_else(of_chunkserver).flatten()
    })
}

/// As [`page_of`], of a master or chunkserver: what its disk answers is of its own directory.
pub(crate) fn page_of_server(error: &anyhow::Error) -> Option<Page> {
    let of_disk = || error.chain().find_map(|cause| cause.downcast_ref().and_then(Page::of_disk));
    page_of(error).or_else(of_disk)
}

/// Says in one line what went wrong.
pub(crate) fn say_error(text: &str) {
    // Nothing can be said if standard error is closed.
    let _closed = writeln!(std::io::stderr(), "dfs: {}", printable(text));
}

/// Does `each` for all of `items`: one that fails is said and the others are done all the same, as coreutils do.
pub(crate) fn for_all<T>(
    items: &[T],
    mut each: impl FnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if let [only] = items {
        return each(only);
    }
    let mut failed = false;
    for item in items {
        if let Err(error) = each(item) {
            failed = true;
            say_error(&one_line(&format!("{error:#}")));
        }
    }
    if failed { Err(AlreadySaid.into()) } else { Ok(()) }
}

/// All on one line, whatever the causes contain.
pub(crate) fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_failure_reads_what_why_and_what_to_do() {
        let error =
            fail::<()>("/data: not empty", "name another directory").context("up").unwrap_err();
        assert_eq!(format!("{error:#}"), "up: /data: not empty; name another directory");
    }

    #[test]
    fn a_cause_below_names_the_page_that_helps() {
        let file = std::path::PathBuf::from("log/1");
        let damaged = master::journal::JournalError::Damaged { file, offset: 7, reason: "torn" };
        let error = anyhow::Error::from(GroupError::from(damaged)).context("start the master");
        assert_eq!(page_of(&error), Some(Page::DamagedLog));
        let file = "label".to_owned();
        let newer = StoreError::NewerFormat { file, found: 9, known: 1 };
        let error = anyhow::Error::from(newer).context("open").context("start");
        assert_eq!(page_of(&error), Some(Page::DirectoryRefused));
        assert_eq!(page_of(&anyhow::anyhow!("no such file")), None);
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = anyhow::Error::from(full()).context("write the server's state");
        assert_eq!((page_of(&error), page_of_server(&error)), (None, Some(Page::FullDisk)));
        let error = anyhow::Error::from(StoreError::Io(full())).context("open");
        assert_eq!(page_of_server(&error), Some(Page::FullDisk));
    }

    #[test]
    fn messages_of_several_lines_become_one() {
        assert_eq!(one_line("a\n\n  b\r\nc"), "a b c");
    }
}
