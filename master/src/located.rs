//! Chunk files on the servers: where each is, and when its server last vouched for it.

use dfs_core::chunk::Chunk;
use dfs_core::cluster::Cluster;
use dfs_core::ids::{ChunkId, ServerId};
use dfs_core::time::Timestamp;
use dfs_proto::chunk_file::chunk_path;
use dfs_proto::control::{HeartbeatRequest, LocatedFile};
use dfs_service::clock::wall_nanos;

use crate::state::{Master, lock};

/// Longer is no path (`PATH_MAX`, limits.h).
const PATH_BYTES_MAX: usize = 4096;

pub(crate) fn on_heartbeat(master: &Master, server: ServerId, beat: &HeartbeatRequest) {
    let HeartbeatRequest { directory, .. } = beat;
    let mut directories = lock(&master.directories);
    if directories.get(&server) != Some(directory) && directory.len() <= PATH_BYTES_MAX {
        directories.insert(server, directory.clone());
    }
}

/// One for each member of `record`, in their order.
pub(crate) fn files(
    master: &Master,
    cluster: &Cluster,
    now: Timestamp,
    chunk: ChunkId,
    record: &Chunk,
) -> Vec<LocatedFile> {
    let directories = lock(&master.directories);
    let file = |server: ServerId| {
        let directory = directories.get(&server).filter(|directory| !directory.is_empty());
        let row = cluster.row(server).filter(|row| row.replicas.contains_key(&chunk));
        let age = row.map(|row| i64::try_from(now.nanos_since(row.heard_at)).unwrap_or(i64::MAX));
        LocatedFile {
            server: server.to_string(),
            path: directory.map_or_else(String::new, |dir| format!("{dir}/{}", chunk_path(chunk))),
            updated_ns: age.map(|age| wall_nanos().saturating_sub(age)),
        }
    };
    record.active.members.iter().map(|member| file(member.server)).collect()
}
