//! The chunkserver: replicas on one disk, read and written over frames, told by the master who is a member of what.
//!
//! The life of a write: [`data`] takes it off a client's connection, [`primary`] numbers it and sends it to the other
//! members through [`peer`], `store` applies it; the last acknowledgement answers the client, on whichever thread it
//! arrives. [`member`] is the other end. [`control`] obeys the master, [`master_link`] shows it that we live.

pub mod config;
pub mod store;

mod adopt;
mod control;
mod copies;
mod damage;
mod data;
mod error;
mod fence;
mod gather;
mod local_door;
mod lookout;
mod marks;
mod master_link;
mod member;
pub mod metrics;
mod node;
mod pace;
mod pages;
mod peer;
mod primary;
mod repair;
mod reply;
mod run;
mod scrub;
mod search;
mod source_links;
mod state;

#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

pub use config::Config;
pub use run::{Server, run};
