//! Decides. Namespace rules, chunk map, replica protocol, liveness, placement: told what happened and what
//! time it is, returns what should be done. No I/O, no clock, no async, no randomness.

pub mod check;
pub mod chunk;
pub mod client;
pub mod cluster;
pub mod command;
pub mod cuts;
pub mod event;
pub mod exposure;
pub mod ids;
pub mod job;
pub mod meta;
pub mod namespace;
pub mod plan;
pub mod results;
pub mod route;
pub mod time;
pub mod whatif;
