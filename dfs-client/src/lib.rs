//! Talks. The file system as a client uses it: sessions with the master, files with write-behind and read-ahead.
//! Calls block the caller's thread.
//!
//! `session` and `master_link` know the master, `file` what one file has pending, `chunk_writer` one chunk being written, `chunk_io`
//! layouts and reads, `servers` connections; decisions are in `dfs_core::client`.

pub mod deadline;
pub mod error;
pub mod exercise;
pub mod file;
pub mod session;

mod budget;
pub mod cancel;
mod chunk_io;
mod chunk_writer;
mod jobs;
mod keeper;
pub mod kept;
mod local_files;
mod master_link;
mod own_changes;
mod pool;
mod readahead;
mod recent_dirs;
mod servers;

#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

pub use error::ClientError;
