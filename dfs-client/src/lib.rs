//! Talks. What needs the file system from outside uses this: sessions with the master, files in chunks.

pub mod error;
pub mod file;
pub mod session;

pub use error::ClientError;
