//! The metadata server: one log, the namespace and chunk map it makes, and the servers that hold the chunks.
//!
//! [`run`] is a whole process. A request comes in by `rpc` (clients) or `control` (chunkservers, tools), becomes a
//! command in `group`'s log, is applied by `apply` to `store`, and is answered.

mod admit;
pub mod apply;
pub mod background;
pub mod balance;
pub mod chunks;
pub mod clients;
pub mod config;
pub mod control;
pub mod copies;
pub mod drain;
mod end;
pub mod fsck;
mod full;
pub mod group;
pub mod health;
pub mod jobs;
pub mod journal;
pub mod lines;
mod located;
pub mod metrics;
pub mod pauses;
pub mod rebuild;
pub mod reconfigure;
mod reigns;
pub mod restore;
pub mod routing;
pub mod rpc;
pub mod run;
mod scrub;
pub mod servers;
pub mod settle;
pub mod state;
pub mod store;
pub mod surplus;
pub mod survey;
mod traffic;
mod trash;
pub mod truncate;
mod truth;
pub mod waits;
pub mod watch;
pub mod work;

#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

pub use config::Config;
pub use run::{Server, run};
