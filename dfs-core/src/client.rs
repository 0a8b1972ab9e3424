//! A client's decisions: operation ids, retry times, what to send again and in which order, which replica to read.
//!
//! The simulation drives these very functions; `dfs-client` adds sockets, threads and clocks.

pub mod backoff;
pub mod dirty;
pub mod ops;
pub mod readahead;
pub mod replica;
pub mod resend;

/// Longest record of a record log (DECISIONS 22).
#[must_use]
pub fn record_bytes_max(chunk_size: u64) -> u64 {
    (chunk_size / 4).min(4 << 20)
}
