//! Many servers with many chunks, as far as a master sees them: heartbeats over real connections, and nothing behind.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_core::chunk::inventory_digest_of;
use dfs_core::ids::{ChunkId, ChunkVersion};
use dfs_proto::control::master_control_client::MasterControlClient;
use dfs_proto::control::{HeartbeatReply, HeartbeatRequest, ReplicaReport};
use dfs_service::conn::{ClusterKey, control_channel};
use prost::Message as _;
use tests::{Cluster, Options, setting, wait_until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::need_fuse;
use crate::set_2::Started;

/// What one heartbeat of an inventory tells at most (`dfs_core::cluster::INVENTORY_PAGE`).
const PAGE: u64 = 10_000;
/// Above all ids that a small cluster gives out.
const FIRST_CHUNK: u64 = 1 << 40;
/// Replicas of each server that change between two heartbeats.
const CHANGES: u64 = 8;
const BEATS: u64 = 10;

struct FakeServer {
    number: u64,
    chunks: u64,
    sequence: u64,
    versions: Vec<u64>,
    digest: u64,
    send: mpsc::Sender<HeartbeatRequest>,
    replies: Streaming<HeartbeatReply>,
    /// Full inventories told, and the largest of the other heartbeats.
    inventories: u64,
    steady_bytes_max: usize,
}

impl FakeServer {
    async fn join(master: &str, key: &ClusterKey, number: u64, chunks: u64) -> Self {
        let mut client = MasterControlClient::new(control_channel(master, key));
        let (send, queued) = mpsc::channel(4);
        let versions = vec![1; usize::try_from(chunks).unwrap()];
        let id = |n: u64| ChunkId(FIRST_CHUNK + number * chunks + n);
        let digest = (0..chunks)
            .map(|n| inventory_digest_of(id(n), ChunkVersion(1)))
            .fold(0, u64::wrapping_add);
        // The first heartbeat goes with the call.
        let first = Self::page(number, chunks, &versions, 0, digest, 1);
        send.send(first).await.unwrap();
        let mut replies = client.heartbeat(ReceiverStream::new(queued)).await.unwrap().into_inner();
        replies.message().await.unwrap().unwrap();
        let mut server = Self {
            number,
            chunks,
            sequence: 1,
            versions,
            digest,
            send,
            replies,
            inventories: 1,
            steady_bytes_max: 0,
        };
        server.other_pages().await;
        server
    }

    fn request(number: u64, sequence: u64, digest: u64) -> HeartbeatRequest {
        HeartbeatRequest {
            server: format!("cs-{}", 1000 + number),
            disk: u128::from(number + 1).to_be_bytes().to_vec(),
            incarnation: 1,
            address: format!("10.0.{}.{}:7000", number / 250, number % 250 + 1),
            used_bytes: 1 << 40,
            free_bytes: 1 << 40,
            total_bytes: 1 << 41,
            sequence,
            inventory_digest: digest,
            zone: format!("zone-{}", number % 3),
            host: format!("host-{number}.example.org"),
            directory: "/var/lib/dfs/chunkserver".to_owned(),
            ..HeartbeatRequest::default()
        }
    }

    fn report(number: u64, chunks: u64, n: u64, version: u64) -> ReplicaReport {
        ReplicaReport {
            chunk: FIRST_CHUNK + number * chunks + n,
            version,
            seq: 1000,
            len: 64 << 20,
            digest: 0xdead_beef,
            ..ReplicaReport::default()
        }
    }

    /// The page of the inventory from its `from`th chunk on.
    fn page(
        number: u64,
        chunks: u64,
        versions: &[u64],
        from: u64,
        digest: u64,
        sequence: u64,
    ) -> HeartbeatRequest {
        let to = chunks.min(from + PAGE);
        let report = |n| Self::report(number, chunks, n, versions[usize::try_from(n).unwrap()]);
        HeartbeatRequest {
            full_inventory: from == 0,
            inventory_more: to < chunks,
            replicas: (from..to).map(report).collect(),
            chunk_count: chunks,
            ..Self::request(number, sequence, digest)
        }
    }

    async fn tell(&mut self, heartbeat: HeartbeatRequest) -> HeartbeatReply {
        self.sequence = heartbeat.sequence;
        self.send.send(heartbeat).await.unwrap();
        let reply = self.replies.message().await.unwrap().unwrap();
        assert_eq!((reply.sequence, reply.status.as_str()), (self.sequence, "alive"));
        reply
    }

    async fn other_pages(&mut self) {
        for from in (PAGE..self.chunks).step_by(usize::try_from(PAGE).unwrap()) {
            let page = Self::page(
                self.number,
                self.chunks,
                &self.versions,
                from,
                self.digest,
                self.sequence + 1,
            );
            let reply = self.tell(page).await;
            assert!(!reply.want_full_inventory, "it is being told");
        }
    }

    /// A heartbeat with some news, `forgotten` of which the master does not hear of. Tells everything if asked to.
    async fn beat(&mut self, beat: u64, forgotten: bool) {
        let mut replicas = Vec::new();
        for n in (0..CHANGES).map(|n| (beat * CHANGES + n) % self.chunks) {
            let id = ChunkId(FIRST_CHUNK + self.number * self.chunks + n);
            let version = &mut self.versions[usize::try_from(n).unwrap()];
            let before = inventory_digest_of(id, ChunkVersion(*version));
            *version += 1;
            let after = inventory_digest_of(id, ChunkVersion(*version));
            self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
            replicas.push(Self::report(self.number, self.chunks, n, *version));
        }
        if forgotten {
            replicas.clear();
        }
        let heartbeat = HeartbeatRequest {
            replicas,
            chunk_count: self.chunks,
            ..Self::request(self.number, self.sequence + 1, self.digest)
        };
        self.steady_bytes_max = self.steady_bytes_max.max(heartbeat.encoded_len());
        if self.tell(heartbeat).await.want_full_inventory {
            self.inventories += 1;
            let first = Self::page(
                self.number,
                self.chunks,
                &self.versions,
                0,
                self.digest,
                self.sequence + 1,
            );
            self.tell(first).await;
            self.other_pages().await;
        }
    }
}

/// Processor time of a process since it began (`proc_pid_stat(5)`).
fn cpu_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_millis(ticks * 1000 / per_second)
}

#[test]
fn case_1_10_a_master_of_200_servers_hears_changes_only_and_everything_again_when_digests_differ() {
    need_fuse!();
    let (servers, chunks) =
        (setting("DFS_BEHAVIOURS_SERVERS", 200), setting("DFS_BEHAVIOURS_CHUNKS", 50_000));
    // Five times as often as the standard profile: a second between two heartbeats.
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    let key = ClusterKey::load(&cluster.dir().join("cluster.key")).unwrap();
    let master = cluster.master_address();
    let pid = cluster.pid("master").unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let began = Instant::now();
    let mut fleet = Vec::new();
    for number in 0..servers {
        fleet.push(runtime.block_on(FakeServer::join(&master, &key, number, chunks)));
    }
    println!("{} replicas told in {:?}", servers * chunks, began.elapsed());

    let (before, began) = (cpu_time(pid), Instant::now());
    for beat in 0..BEATS {
        let round = Instant::now();
        fleet.iter_mut().for_each(|server| runtime.block_on(server.beat(beat, false)));
        std::thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
    }
    let (used, wall) = (cpu_time(pid) - before, began.elapsed());
    let largest = fleet.iter().map(|server| server.steady_bytes_max).max().unwrap();
    println!(
        "{BEATS} heartbeats of each: at most {largest} bytes; the master used {used:?} in {wall:?}"
    );
    assert!(fleet.iter().all(|server| server.inventories == 1), "an inventory again without need");
    assert!(largest <= 1024, "{largest} bytes");
    assert!(used < wall, "more than a core");

    // One whose news was lost tells everything again, once, and nobody else does.
    runtime.block_on(async {
        fleet[7].beat(BEATS, true).await;
        for beat in BEATS + 1..BEATS + 6 {
            fleet[7].beat(beat, false).await;
            fleet[8].beat(beat, false).await;
        }
    });
    assert_eq!((fleet[7].inventories, fleet[8].inventories), (2, 1));
}

/// Hands on what comes to the address in the answer, to `to` and back, and counts the bytes to it.
fn counting_proxy(to: String) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let counted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&counted);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(&to).unwrap());
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let count = Arc::clone(&count);
            std::thread::spawn(move || hand_on(near, far, &count));
            std::thread::spawn(move || hand_on(back.0, back.1, &AtomicU64::new(0)));
        }
    });
    (address, counted)
}

/// Until one of them ends.
fn hand_on(mut from: TcpStream, mut to: TcpStream, counted: &AtomicU64) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        counted.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(std::net::Shutdown::Both);
}

/// Heartbeats that a server got an answer to, as its metrics say.
fn answered(page: &str) -> u64 {
    let mut stream = TcpStream::connect(page).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: dfs\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("dfs_chunkserver_heartbeats_total "));
    value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// All that a real server sends to its master, measured on the wire.
#[test]
fn case_1_10_a_server_whose_chunks_do_not_change_sends_a_kibibyte_a_heartbeat_at_most() {
    need_fuse!();
    const CHUNKS: usize = 256;
    let cluster = Cluster::start();
    let source = cluster.scratch().join("source");
    std::fs::write(&source, vec![7; CHUNKS * 4096]).unwrap();
    cluster.dfs(["mkdir", "--chunk-size", "4KiB", "/small"]);
    cluster.dfs(["put", source.to_str().unwrap(), "/small/f"]);
    let is_safe = || cluster.dfs_json(["status"])["chunks"]["safe"] == CHUNKS;
    wait_until("all have their copies", is_safe);

    cluster.kill("cs-1");
    let (proxy, sent) = counting_proxy(cluster.master_address());
    let page = cluster.scratch().join("page");
    let pages = ["--metrics", "127.0.0.1:0", "--metrics-file", page.to_str().unwrap()];
    let _again = Started::with(&cluster, "cs-1", &proxy, &pages);
    wait_until("it serves its metrics", || page.is_file());
    let page = std::fs::read_to_string(&page).unwrap().trim().to_owned();
    wait_until("it is heard of", || 3 < answered(&page));
    wait_until("all have their copies", is_safe);
    // What it has it told when it came, which would be more than a kibibyte each time.
    let inventory = sent.load(Ordering::Relaxed);
    assert!(8 * CHUNKS as u64 <= inventory, "{inventory} bytes");

    let settled = answered(&page);
    wait_until("it has nothing to add", || settled + 3 < answered(&page));
    let (before, heartbeats) = (sent.load(Ordering::Relaxed), answered(&page));
    wait_until("twenty more", || heartbeats + 20 < answered(&page));
    // One more may be on its way: that counts against it.
    let (bytes, heartbeats) = (sent.load(Ordering::Relaxed) - before, answered(&page) - heartbeats);
    println!(
        "{CHUNKS} chunks: {inventory} bytes at its start, then {bytes} in {heartbeats} heartbeats"
    );
    assert!(0 < bytes && bytes <= 1024 * heartbeats, "{bytes} bytes in {heartbeats} heartbeats");
}

/// Beside set 1's own case in lines of JSON, where each handle is known from the first list on that has it (DECISIONS 15).
#[test]
fn case_1_6_a_replica_of_no_file_is_deleted_though_not_at_first_sight() {
    need_fuse!();
    let cluster = Cluster::start_with(Options { chunkservers: 1, ..Options::default() });
    // An id that was given out, of a file that is gone.
    let path = cluster.mount().join("f");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[1; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let located = cluster.dfs_json(["locate", "/f"]);
    let chunk = located["chunks"][0]["id"].as_u64().unwrap();
    std::fs::remove_file(&path).unwrap();

    let key = ClusterKey::load(&cluster.dir().join("cluster.key")).unwrap();
    let master = cluster.master_address();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut server = FakeServer::join(&master, &key, 7, 0).await;
        // And one that no master ever gave out: whose it is cannot be known.
        let held = [chunk, FIRST_CHUNK].map(ChunkId);
        let replicas = held.map(|chunk| ReplicaReport {
            chunk: chunk.0,
            version: 1,
            len: 1 << 20,
            ..ReplicaReport::default()
        });
        let digest = held.map(|chunk| inventory_digest_of(chunk, ChunkVersion(1)));
        let digest = digest[0].wrapping_add(digest[1]);
        let mut news = replicas.to_vec();
        let until = Instant::now() + Duration::from_secs(60);
        for beat in 0.. {
            let heartbeat = HeartbeatRequest {
                replicas: std::mem::take(&mut news),
                chunk_count: 2,
                ..FakeServer::request(7, server.sequence + 1, digest)
            };
            let reply = server.tell(heartbeat).await;
            let named: Vec<u64> = reply
                .chunks_to_delete
                .into_iter()
                .chain(reply.stale_replicas.into_iter().map(|stale| stale.chunk))
                .collect();
            assert!(beat != 0 || named.is_empty(), "at first sight: {named:?}");
            if named == [chunk] {
                break;
            }
            assert!(named.is_empty() && Instant::now() < until, "{named:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
}
