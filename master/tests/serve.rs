//! A real master on a real directory and port: requests, retries, restarts, bad bytes.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use dfs_core::command::{NewKind, Outcome};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, NamespaceError};
use dfs_proto::meta_rpc::{MetaCall, MetaFailure, MetaReply};
use dfs_service::conn::{ClusterKey, Door, dial};
use master::{Config, Server};

use harness::{Caller, WAIT};

fn start(dir: &Path) -> Server {
    Server::start(harness::config(dir, 4 << 20)).unwrap()
}

struct Client(Caller);

impl Client {
    fn new(server: &Server, id: u128) -> Self {
        Self(Caller::new(server, id))
    }

    fn call(&mut self, call: MetaCall) -> MetaReply {
        self.0.call(0, call)
    }

    fn create(&mut self, op: u64, name: &str) -> Outcome {
        let change = harness::create(InodeNo::ROOT, name, NewKind::File);
        match self.call(MetaCall::Change { op, part: 0, change }) {
            MetaReply::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn lookup(&mut self, name: &str) -> Result<Attr, NamespaceError> {
        match self.call(MetaCall::Lookup { parent: InodeNo::ROOT, name: name.as_bytes().to_vec() })
        {
            MetaReply::Attr(attr) => Ok(attr),
            MetaReply::Failed(MetaFailure::Refused(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_a_retry_gets_the_first_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut client = Client::new(&server, 1);
    let first = client.create(1, "a");
    assert!(matches!(first, Outcome::Entry { created: true, .. }), "{first:?}");
    assert_eq!(client.create(1, "a"), first, "a retry of the same request");
    assert_eq!(client.create(2, "a"), Outcome::Refused(NamespaceError::Exists), "a new request");
    let epoch = server.master.epoch;
    server.stop();

    let server = start(dir.path());
    assert!(epoch < server.master.epoch, "each reign has a higher epoch");
    let mut client = Client::new(&server, 1);
    assert_eq!(client.create(1, "a"), first, "the record of the reply survived");
    client.lookup("a").unwrap();
    assert_eq!(client.lookup("b").unwrap_err(), NamespaceError::NotFound);
    server.stop();
}

#[test]
fn a_second_master_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let config = Config { dir: dir.path().to_path_buf(), ..server.master.config.clone() };
    let error = format!(
        "{:#}",
        Server::start(Config { listen: "127.0.0.1:0".parse().unwrap(), ..config }).unwrap_err()
    );
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
    server.stop();
}

#[test]
fn garbage_closes_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut client = Client::new(&server, 1);
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n        "[..], &[0xff; 4096][..], b""] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(garbage).unwrap();
        // The first bytes may have been enough: it is closed by then, with or without a reset.
        let _closed = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _end = stream.read_to_end(&mut rest);
    }
    // Past the handshake: a frame that is none.
    let mut stream =
        dial(&server.address.to_string(), &ClusterKey::none(), Door::Frames, WAIT).unwrap();
    stream.write_all(&[0xee; 64]).unwrap();
    let mut rest = Vec::new();
    let _end = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(matches!(client.create(1, "still-there"), Outcome::Entry { .. }));
    server.stop();
}

#[test]
fn a_chunk_is_not_promised_without_servers() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut client = Client::new(&server, 1);
    let Outcome::Entry { attr, .. } = client.create(1, "a") else { panic!() };
    let layout =
        |spill| MetaCall::Layout { ino: attr.ino, index: 0, write: true, spill, failed: None };
    match client.call(layout(false)) {
        MetaReply::Failed(MetaFailure::Warming { .. } | MetaFailure::Unavailable { .. }) => {}
        other => panic!("{other:?}"),
    }
    server.stop();
}
