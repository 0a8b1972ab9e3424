//! The mount: requests of the kernel to calls of dfs-client.
//!
//! [`mount`] checks, mounts, serves and unmounts. Two transports drive the same file system: [`native`] on `/dev/fuse`
//! itself and [`adapter`] over fuser; [`seam`] is all that they and [`fs`] know of each other, [`transport`] what they share.
//! [`holder`] is another process, which keeps a mount alive while its clients ([`held`]) come and go. [`errno`] is the one table of errors.

mod adapter;
mod buffers;
pub mod cache;
pub mod errno;
pub mod fs;
mod held;
mod holder;
pub mod metrics;
mod mount;
mod mount_point;
pub mod mount_table;
mod native;
mod pages;
mod privilege;
pub mod seam;
mod transport;
mod workers;

#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

pub use buffers::{Buffer, Buffers};
pub use dfs_client::exercise;
pub use held::read_inherited;
pub use holder::{ClientCommand, HoldConfig, Stored, hold, stored, upgrade};
pub use mount::{MountConfig, run};
pub use mount_point::check_device;
pub use transport::Transport;
