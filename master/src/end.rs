//! The end of a master whose own disk takes no more.
//!
//! What was acknowledged is in the log, so there is nothing to be saved first; what is half written is cut when the
//! master starts again.

use std::io;
use std::path::Path;

use dfs_service::page::Page;

/// Ends the process if `error` says that the disk of `dir` is full: a person makes room and starts it again.
pub(crate) fn end_if_full(dir: &Path, doing: &str, error: &io::Error) {
    let Some(page) = Page::of_disk(error) else { return };
    // Not through tracing: whatever that is set to, this line is the last that can be said.
    eprintln!(
        "dfs: master in {}: {doing}: {error}: the disk is full, and the master ends; nothing that was acknowledged is \
         lost: make room there and start it again; see {page}",
        dir.display()
    );
    std::process::exit(1);
}
