//! chunkserver
pub mod store;
