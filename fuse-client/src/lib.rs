//! fuse-client
