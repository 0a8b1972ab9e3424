//! master

pub mod group;
pub mod journal;
