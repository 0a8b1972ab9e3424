//! What the tests of a real master share: starting one, and talking to it as a client does.

use std::path::Path;
use std::time::Duration;

use dfs_core::cluster::LivenessProfile;
use dfs_core::command::{Change, NewKind};
use dfs_core::ids::{ClientId, InodeNo};
use dfs_core::results::Results;
use dfs_proto::codec::Wire;
use dfs_proto::frame_conn::LoneClient;
use dfs_proto::meta_rpc::{MetaCall, MetaReply, MetaRequest};
use dfs_service::conn::{ClusterKey, Door, dial};
use master::{Config, Server};

pub(crate) const WAIT: Duration = Duration::from_secs(20);

/// A master that notices failures soon, and whose log has small segments.
pub(crate) fn config(dir: &Path, segment_bytes: u64) -> Config {
    Config { profile: LivenessProfile::DRILL, segment_bytes, ..Config::new(dir.to_path_buf()) }
}

/// A client's connection.
pub(crate) struct Caller {
    id: ClientId,
    conn: LoneClient,
}

impl Caller {
    pub(crate) fn new(server: &Server, id: u128) -> Self {
        let stream =
            dial(&server.address.to_string(), &ClusterKey::none(), Door::Frames, WAIT).unwrap();
        let mut caller = Self { id: ClientId(id), conn: LoneClient::new(stream) };
        let welcome = caller.call(0, MetaCall::Hello { name: "test".to_owned(), known: false });
        assert!(matches!(welcome, MetaReply::Welcome(_)), "{welcome:?}");
        caller
    }

    pub(crate) fn call(&mut self, low_water: u64, call: MetaCall) -> MetaReply {
        let results = Results::all_below(low_water);
        let request = MetaRequest { client: self.id, results, call };
        let frame = self.conn.call(&request.to_bytes(), &[], WAIT).unwrap();
        MetaReply::from_bytes(&frame.args).unwrap()
    }
}

/// A new entry of somebody's, as the tests do not mind how.
pub(crate) fn create(parent: InodeNo, name: &str, kind: NewKind) -> Change {
    Change::Create {
        parent,
        name: name.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        umask: 0,
        uid: 1,
        gid: 2,
        layout: None,
        open_existing: false,
    }
}
