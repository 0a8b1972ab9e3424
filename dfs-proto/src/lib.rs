//! Promises. Every byte that another process or another version must read is made and read here.

pub mod chunk_file;
pub mod chunk_journal;
pub mod codec;
pub mod convert;
pub mod data_rpc;
pub mod frame;
pub mod frame_conn;
pub mod local_door;
pub mod meta_rpc;
pub mod record_list;
pub mod search;

/// Control plane messages and services, generated from `proto/*.proto`.
pub mod control {
    #![allow(
        clippy::all,
        clippy::pedantic,
        unreachable_pub,
        missing_debug_implementations,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("dfs.v1");
}
