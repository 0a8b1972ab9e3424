//! Whatever is sent to a port: the connection ends, one line says so, memory stays bounded, the service goes on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_service::conn::{ClusterKey, Door, dial};
use tests::{Cluster, wait_until};

use crate::{check_content, need_fuse, pages, pattern, write_synced};

/// The handshake's own limit is 5 s.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);
const GROWTH_MAX_KIB: u64 = 64 << 10;

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Lines about connections that were refused: on a busy machine there are others, of late heartbeats for example.
fn log_lines(path: &Path) -> usize {
    let log = std::fs::read_to_string(path).unwrap();
    log.lines().filter(|line| line.contains("connection refused")).count()
}

/// Waits until the other side closes; what it sends meanwhile does not matter.
#[track_caller]
fn check_closed(stream: &mut TcpStream, what: &str) {
    let until = Instant::now() + CLOSED_WITHIN;
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sink = [0; 4096];
    while Instant::now() < until {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            // A reset is a close, too.
            Err(_) => return,
        }
    }
    panic!("{what}: still open after {CLOSED_WITHIN:?}");
}

/// Every server of the cluster: role and address.
fn servers(cluster: &Cluster) -> Vec<(String, String)> {
    let mut out = vec![("master".to_owned(), cluster.master_address())];
    out.extend(["cs-1", "cs-2", "cs-3"].map(|id| (id.to_owned(), cluster.chunkserver_address(id))));
    out
}

#[test]
fn garbage_before_the_handshake_ends_the_connection_with_one_line() {
    need_fuse!();
    let cluster = Cluster::start();
    for (role, address) in servers(&cluster) {
        let log = cluster.dir().join(format!("log/{role}.log"));
        for (what, bytes) in [
            ("noise", pattern(100_000, 9)),
            ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
            ("a wrong door", b"DFSH\x01\x63aaaaaaaaaaaaaaaa".to_vec()),
        ] {
            let before = log_lines(&log);
            let mut stream = TcpStream::connect(&address).unwrap();
            // It may be closed before all is written.
            let _closed_early = stream.write_all(&bytes);
            check_closed(&mut stream, &format!("{role}: {what}"));
            wait_until(&format!("{role} logs {what}"), || before < log_lines(&log));
            assert_eq!(log_lines(&log), before + 1, "{role}: {what}: {}", cluster.logs());
        }
    }
    for role in ["master", "cs-1", "cs-2", "cs-3", "mount"] {
        let log = cluster.dir().join(format!("log/{role}.log"));
        let pid = cluster.pid(role).unwrap();
        let resident = resident_kib(pid);
        for (what, bytes) in [
            ("noise", pattern(100_000, 9)),
            ("a handshake", b"DFSH\x01\x63aaaaaaaaaaaaaaaa\r\n\r\n".to_vec()),
            ("an oversized head", [b"GET /".to_vec(), vec![b'a'; 4 << 20]].concat()),
        ] {
            let before = log_lines(&log);
            let mut stream = TcpStream::connect(pages::address(&cluster, role)).unwrap();
            let _closed_early = stream.write_all(&bytes);
            check_closed(&mut stream, &format!("{role}'s pages: {what}"));
            wait_until(&format!("{role} logs {what}"), || before < log_lines(&log));
            assert_eq!(log_lines(&log), before + 1, "{role}: {what}: {}", cluster.logs());
        }
        let grown = resident_kib(pid).saturating_sub(resident);
        assert!(grown < GROWTH_MAX_KIB, "{role}: grew by {grown} KiB");
        let (status, _) = pages::get(&pages::address(&cluster, role), "/healthz");
        assert_eq!(status, 200);
    }
    write_synced(&cluster.mount().join("after"), b"still served");
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    need_fuse!();
    let cluster = Cluster::start();
    for (role, address) in servers(&cluster) {
        let mut stream = TcpStream::connect(&address).unwrap();
        check_closed(&mut stream, &role);
    }
}

#[test]
fn garbage_from_somebody_with_the_key_is_refused_with_bounded_memory() {
    need_fuse!();
    let cluster = Cluster::start();
    let content = pattern(1 << 20, 1);
    write_synced(&cluster.mount().join("f"), &content);
    let key = ClusterKey::load(&cluster.dir().join("cluster.key")).unwrap();
    for (role, address) in servers(&cluster) {
        let pid = cluster.pid(&role).unwrap();
        let before = resident_kib(pid);
        for door in [Door::Frames, Door::Control] {
            let oversized = {
                // A frame header of all ones: every length in it is far beyond what is allowed.
                let mut bytes = vec![0xFF; 64];
                bytes.extend_from_slice(&pattern(1 << 16, 2));
                bytes
            };
            for (what, bytes) in [("noise", pattern(1 << 20, 3)), ("oversized lengths", oversized)]
            {
                // Many at once: each may hold only a bounded piece of memory.
                let mut streams: Vec<TcpStream> = (0..20)
                    .map(|_| dial(&address, &key, door, Duration::from_secs(5)).unwrap())
                    .collect();
                for stream in &mut streams {
                    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                    let _closed_early = stream.write_all(&bytes);
                }
                let grown = resident_kib(pid).saturating_sub(before);
                assert!(grown < GROWTH_MAX_KIB, "{role}, {door:?}, {what}: grew by {grown} KiB");
                for mut stream in streams {
                    check_closed(&mut stream, &format!("{role}, {door:?}, {what}"));
                }
            }
        }
        assert_eq!(cluster.pid(&role), Some(pid));
        assert!(tests::is_running(pid), "{role} lives");
    }
    check_content(&cluster.mount().join("f"), &content);
    assert!(cluster.dfs(["fsck"]).contains("clean"));
}
