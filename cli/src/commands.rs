//! One file per verb.

pub(crate) mod append;
pub(crate) mod cat;
pub(crate) mod chunkserver;
pub(crate) mod completions;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod failover;
pub(crate) mod fsck;
pub(crate) mod get;
pub(crate) mod job;
pub(crate) mod locate;
pub(crate) mod ls;
pub(crate) mod maintenance;
pub(crate) mod man;
pub(crate) mod master;
pub(crate) mod mkdir;
pub(crate) mod mount;
pub(crate) mod mv;
pub(crate) mod put;
pub(crate) mod rm;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod umount;
pub(crate) mod up;
pub(crate) mod whatif;
