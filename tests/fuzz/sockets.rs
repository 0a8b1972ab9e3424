//! Frames and the handshake, on real sockets where the decoder wants one.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_proto::frame::{ARGS_BYTES_MAX, FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use dfs_proto::frame_conn::{read_frame, write_frame};
use dfs_service::conn::{Acceptor, ClusterKey, Door, Limits, dial};

use crate::engine::Target;

fn seal_header(bytes: &mut [u8]) {
    if HEADER_BYTES <= bytes.len() {
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Checksums of whatever parts the lengths make.
fn seal_frame(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let rest = bytes.len() - HEADER_BYTES;
    let args = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize % (rest + 1);
    let payload_bytes = u32::try_from(rest - args).unwrap();
    bytes[4..8].copy_from_slice(&u32::try_from(args).unwrap().to_le_bytes());
    bytes[8..12].copy_from_slice(&payload_bytes.to_le_bytes());
    let (args_crc, payload_crc) = {
        let (args, payload) = bytes[HEADER_BYTES..].split_at(args);
        (crc32c::crc32c(args), crc32c::crc32c(payload))
    };
    bytes[20..24].copy_from_slice(&args_crc.to_le_bytes());
    bytes[24..28].copy_from_slice(&payload_crc.to_le_bytes());
    seal_header(bytes);
}

#[test]
fn frames_on_a_socket() {
    let frame = |args: &[u8], payload: &[u8]| {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Request, 7, args, &[payload], None).unwrap();
        bytes
    };
    let valid = vec![frame(b"", b""), frame(b"arguments", b""), frame(b"a", &[9; 5000])];
    // Both parts have a stated limit, and are allocated when the header was right.
    let limits = (ARGS_BYTES_MAX + PAYLOAD_BYTES_MAX) as usize;
    Target::new("frame", valid)
        .memory(limits + (64 << 10))
        .repaired_by(|bytes| seal_frame(bytes))
        .run(|mut bytes| {
            let Ok(Some(frame)) = read_frame(&mut bytes) else { return false };
            let mut again = Vec::new();
            let (kind, request) = (frame.header.kind, frame.header.request);
            write_frame(&mut again, kind, request, &frame.args, &[&frame.payload], None).unwrap();
            let again = read_frame(&mut again.as_slice()).unwrap().unwrap();
            assert_eq!((again.header, again.args), (frame.header, frame.args));
            assert!(again.payload == frame.payload);
            true
        });
}

#[test]
fn frame_headers() {
    let header = |kind| FrameHeader::new(kind, 1, b"x", 10, 11).encode().to_vec();
    let kinds = [FrameKind::Request, FrameKind::Reply, FrameKind::OneWay];
    Target::new("frame_header", kinds.map(header).to_vec())
        .repaired_by(|bytes| seal_header(bytes))
        .run(|bytes| {
            let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
            let Ok(header) = FrameHeader::decode(bytes) else { return false };
            assert!(header.args_bytes <= ARGS_BYTES_MAX);
            assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX);
            assert_eq!(header.encode(), *bytes);
            true
        });
}

const NONCE: usize = 16;

fn key() -> ClusterKey {
    let dir = tempfile::tempdir().unwrap();
    ClusterKey::load_or_create(&dir.path().join("key")).unwrap()
}

/// Whatever an asker says that has no key: no door opens, and its connection ends.
#[test]
fn handshakes_of_askers() {
    let acceptor =
        Acceptor::bind("127.0.0.1:0".parse().unwrap(), key(), Limits::default()).unwrap();
    let opened = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&opened);
    let (control, _connections) = tokio::sync::mpsc::channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = acceptor
        .run(
            Arc::new(move |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            }),
            control,
            runtime.handle().clone(),
        )
        .unwrap();
    let hello = |door: u8| [b"DFSH\x01", &[door][..], &[7; NONCE]].concat();
    let proof = [&hello(1)[..], &[0; 32]].concat();
    Target::new("handshake_asker", vec![hello(1), hello(2), proof])
        .inputs(300)
        .prefixes_may_be_valid()
        .run(|bytes| {
            let mut stream = TcpStream::connect(handle.addr()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // The server may have closed it after the first bytes.
            let _closed = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
            let mut answer = Vec::new();
            let ended = stream.read_to_end(&mut answer);
            let timed_out = ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!timed_out, "the connection stays open");
            assert_eq!(opened.load(Ordering::Relaxed), 0, "a door was opened");
            // Its nonce and proof, and no word more.
            assert!(answer.is_empty() || answer.len() == 6 + NONCE + 32, "{answer:02x?}");
            6 + NONCE <= bytes.len()
        });
    handle.stop();
}

/// Whatever a server without the key answers: the asker says no.
#[test]
fn handshakes_of_servers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (answers, next) = std::sync::mpsc::channel::<Vec<u8>>();
    let server = std::thread::spawn(move || {
        for answer in next {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; 6 + NONCE];
            stream.read_exact(&mut hello).unwrap();
            // The asker may leave before it has read everything.
            let _closed = stream.write_all(&answer);
        }
    });
    let answer = [b"DFSH\x01", &[0][..], &[7; NONCE], &[0; 32]].concat();
    let key = key();
    Target::new("handshake_server", vec![answer]).inputs(300).prefixes_may_be_valid().run(
        |bytes| {
            answers.send(bytes.to_vec()).unwrap();
            let dialled = dial(&address, &key, Door::Frames, Duration::from_secs(20));
            assert!(dialled.is_err(), "accepted a server that cannot prove the key");
            true
        },
    );
    drop(answers);
    server.join().unwrap();
}
