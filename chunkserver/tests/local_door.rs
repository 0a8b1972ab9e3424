//! Clients on the same machine read chunk files themselves: what they are given, and what they are not.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::panic,
    dead_code,
    reason = "a test that meets the unexpected fails; each test file uses a part of the harness"
)]

mod harness;

use std::fs::File;
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use dfs_proto::chunk_file::DATA_AT;
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply};
use dfs_proto::local_door::GIVEN;
use dfs_proto::meta_rpc::ChunkLayout;
use harness::{Client, Cluster, DEADLINE, pattern};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

fn ask(client: &Client, call: &DataCall) -> (DataReply, Vec<u8>) {
    let frame = client.connection.call(&call.to_bytes(), &[], DEADLINE).unwrap();
    (DataReply::from_bytes(&frame.args).unwrap(), frame.payload)
}

fn dial(client: &Client) -> (UnixStream, Vec<u8>) {
    let (reply, _) = ask(client, &DataCall::LocalDoor);
    let DataReply::LocalDoor { name, token } = reply else { panic!("{reply:?}") };
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let door = UnixStream::connect_addr(&address).unwrap();
    door.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (door, token)
}

fn file(door: &mut UnixStream, chunk: u64) -> Option<File> {
    door.write_all(&chunk.to_le_bytes()).unwrap();
    let mut said = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let into = &mut [IoSliceMut::new(&mut said)];
    assert_eq!(rustix::net::recvmsg(&*door, into, &mut control, flags).unwrap().bytes, 1);
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.map(File::from).collect::<Vec<_>>()),
        _ => None,
    });
    let mut files: Vec<File> = files.flatten().collect();
    assert_eq!(files.len(), usize::from(said[0] == GIVEN));
    files.pop()
}

fn sums(client: &Client, layout: &ChunkLayout, offset: u64, len: u32) -> (u64, bool, Vec<u32>) {
    let ChunkLayout { chunk, version, .. } = *layout;
    let (reply, payload) = ask(client, &DataCall::ReadSums { chunk, version, offset, len });
    let DataReply::ReadSums { replica_len, in_file } = reply else { panic!("{reply:?}") };
    let sums = payload.chunks(4).map(|sum| u32::from_le_bytes(sum.try_into().unwrap()));
    (replica_len, in_file, sums.collect())
}

#[test]
fn a_file_and_the_sums_of_its_blocks_are_what_a_read_would_give() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let model = pattern(1, 300_000);
    client.write(&layout, 1, 0, &model).unwrap();
    client.sync(&layout).unwrap();
    let (mut door, token) = dial(&client);
    door.write_all(&token).unwrap();
    assert!(file(&mut door, 77).is_none(), "no such chunk");
    let given = file(&mut door, 1).unwrap();
    let mut bytes = vec![0; 300_000];
    given.read_exact_at(&mut bytes, DATA_AT).unwrap();
    assert!(bytes == model);
    assert!(given.write_all_at(b"x", DATA_AT).is_err(), "for reading only");
    let of = |bytes: &[u8]| bytes.chunks(65_536).map(crc32c::crc32c).collect::<Vec<_>>();
    assert_eq!(sums(&client, &layout, 0, 1 << 20), (300_000, true, of(&model)));
    assert_eq!(
        sums(&client, &layout, 131_072, 65_536),
        (300_000, true, of(&model[131_072..196_608]))
    );
    assert_eq!(sums(&client, &layout, 300_000, 100), (300_000, true, vec![]));

    // Another version is refused as a read of it is.
    let (chunk, version) = (layout.chunk, dfs_core::ids::ChunkVersion(2));
    let (reply, _) = ask(&client, &DataCall::ReadSums { chunk, version, offset: 0, len: 100 });
    assert!(matches!(reply, DataReply::Failed(DataFailure::StaleVersion { .. })), "{reply:?}");

    // What is overwritten is not in the file before it is stable; its sum is never that of the old bytes.
    client.write(&layout, 2, 70_000, b"other").unwrap();
    let (_, in_file, now) = sums(&client, &layout, 0, 1 << 20);
    assert!(!in_file);
    let mut changed = model.clone();
    changed[70_000..70_005].copy_from_slice(b"other");
    assert_eq!(now, of(&changed));
    assert!(sums(&client, &layout, 131_072, 65_536).1, "that block has no part in it");
}

#[test]
fn whoever_does_not_know_the_token_gets_nothing() {
    let cluster = Cluster::new(1);
    let client = cluster.client(0, 1);
    let (mut door, mut token) = dial(&client);
    token[15] ^= 1;
    door.write_all(&token).unwrap();
    // Closed, with or without a reset for what was not read.
    let _sent = door.write_all(&1u64.to_le_bytes());
    let mut answer = Vec::new();
    let _reset = door.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}
