//! Every decoder of bytes from disks, networks and people, fed with a kept corpus and seeded mutations of it.
//!
//! Targets of decoders that a crate does not show are in that crate (modules `fuzz`), with the same [`engine`];
//! [`source`] sees to it that no decoder is without one.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod disks;
mod engine;
mod messages;
mod sockets;
mod source;
mod values;
