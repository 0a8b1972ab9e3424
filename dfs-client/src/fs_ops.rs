//! Paths and whole files, for tools that work without a mount.
