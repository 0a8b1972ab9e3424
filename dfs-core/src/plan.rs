//! Intentions: what should be done next, from what is known.

pub mod reconfigure;
pub mod surplus;
