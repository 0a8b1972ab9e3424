//! Real processes on this machine: the contract of the commands, bad input and bad luck.

#![allow(clippy::unwrap_used, reason = "a test that cannot look has failed")]

mod bad_input;
mod bad_luck;
mod commands;
mod directories;
mod drain;
mod failover;
mod full_disk;
mod grep;
mod hang;
mod jobs;
mod memory;
mod metadata;
mod older_copy;
mod pages;
mod ports;
mod predictions;
mod put;
mod rebuild;
mod scrub;
mod systemd;
mod top;
mod trash;
mod up_down;

use std::path::Path;

/// Skips a test that needs a mount where there is none.
macro_rules! need_fuse {
    () => {
        if let Some(reason) = tests::no_fuse() {
            return tests::skipped(&reason);
        }
    };
}
pub(crate) use need_fuse;

/// `len` bytes that differ everywhere and are the same in every run.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes and syncs a file.
#[track_caller]
fn write_synced(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// Compares without printing megabytes.
#[track_caller]
fn check_content(path: &Path, expected: &[u8]) {
    let found = std::fs::read(path).unwrap();
    check_bytes(&path.display().to_string(), &found, expected);
}

#[track_caller]
fn check_bytes(what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: differs first at byte {at}");
    }
}
