//! Intentions: what should be done next, from what is known.

pub mod drain;
pub mod rebalance;
pub mod rebuild;
pub mod reconfigure;
pub mod scrub;
pub mod surplus;
