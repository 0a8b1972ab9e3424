//! Promises. Every byte that another process or another version must read is made and read here.

pub mod codec;
pub mod convert;
