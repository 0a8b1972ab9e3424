//! chunkserver
