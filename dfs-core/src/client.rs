//! A client's decisions: operation ids, retry times, what to send again and in which order, which replica to read.
//!
//! The simulation drives these very functions; `dfs-client` adds sockets, threads and clocks.

pub mod backoff;
pub mod dirty;
pub mod ops;
pub mod readahead;
pub mod replica;
pub mod resend;
