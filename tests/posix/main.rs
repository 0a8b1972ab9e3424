//! What a mount does, held against what a local file system does: other people's suites, a comparison operation by
//! operation, and the promises of `docs/semantics.md` between two mounts.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod beside;
mod compare;
mod cuts;
mod examples;
mod fsx;
mod grown;
mod pjdfstest;
mod promises;
mod reopened;
mod seen;
mod small;
mod tools;
