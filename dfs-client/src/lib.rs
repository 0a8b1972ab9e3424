//! Talks. The file system as a client uses it: sessions with the master, files with write-behind and read-ahead,
//! paths, administration. Blocking calls on the caller's thread; tokio only inside [`admin`].

pub mod error;
pub mod session;
pub mod file;
pub mod fs_ops;
pub mod admin;

mod budget;
mod chunk_io;
mod chunk_writer;
mod keeper;
mod readahead;
mod servers;

pub use error::ClientError;
