//! The mount: requests of the kernel to calls of dfs-client.
//!
//! [`mount`] checks, mounts, serves and unmounts; [`adapter`] speaks fuser; [`seam`] is all that it and [`fs`] know of
//! each other, so that another transport can drive the same file system. [`errno`] is the one table of errors.

mod adapter;
mod buffers;
pub mod cache;
pub mod errno;
pub mod fs;
pub mod metrics;
mod mount;
mod mount_point;
pub mod mount_table;
mod pages;
mod privilege;
pub mod seam;
mod workers;

#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

pub use buffers::{Buffer, Buffers};
pub use mount::{MountConfig, run};
pub use mount_point::check_device;
