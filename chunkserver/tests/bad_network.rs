//! Networks that break and fall silent, masters that do not answer.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    dead_code,
    reason = "a test that meets the unexpected fails; each test file uses a part of the harness"
)]

mod harness;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use dfs_core::ids::{ChunkId, ServerId};
use dfs_proto::data_rpc::{DataFailure, DataReply, WireMutation};
use dfs_proto::meta_rpc::ChunkLayout;
use harness::proxy::Proxy;
use harness::{Client, Cluster, MIB, pattern};

#[test]
fn a_member_that_falls_silent_is_found_in_time() {
    let cluster = Cluster::with(3, |config| config.apply_timeout = Duration::from_millis(400));
    let proxy = Proxy::to(cluster.server(2).addr());
    let mut layout = cluster.layout(1, 1, &[0, 1, 2]);
    layout.members[2].address = proxy.addr.to_string();
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, b"heard").unwrap();
    proxy.fall_silent();
    let begun = Instant::now();
    let failed = client.write(&layout, 2, 5, b"silence").unwrap_err();
    assert!(matches!(&failed, DataFailure::MemberFailed { server: ServerId(3), .. }), "{failed}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // The bytes that were not acknowledged are not served by the old leader.
    let read = client.read(&layout, 0, 12).unwrap_err();
    assert!(matches!(&read, DataFailure::MemberFailed { server: ServerId(3), .. }), "{read}");
    assert_eq!(client.read(&layout, 0, 5).unwrap(), b"heard");
    let next = cluster.reconfigure(1, 2, &[0, 1], None);
    client.write(&next, 2, 5, b"silence").unwrap();
    assert_eq!(client.read(&next, 0, 20).unwrap(), b"heardsilence");
}

#[test]
fn a_server_that_no_master_answers_serves_nothing() {
    let cluster = Cluster::with(2, |config| {
        if config.server == ServerId(1) {
            // Nobody listens there.
            config.master = Some("127.0.0.1:1".to_owned());
        }
    });
    let layout = cluster.layout(1, 1, &[0, 1]);
    let client = cluster.client(0, 1);
    let fenced = |result: Result<(), DataFailure>| {
        assert!(matches!(result, Err(DataFailure::Fenced { .. })), "{result:?}");
    };
    fenced(client.write(&layout, 1, 0, b"x").map(drop));
    fenced(client.sync(&layout).map(drop));
    fenced(client.read(&layout, 0, 1).map(drop));
    let stat = dfs_proto::data_rpc::DataCall::Stat { chunk: layout.chunk, version: layout.version };
    fenced(client.call(&stat, &[]).map(drop));
    // Nor is it a member: whether its directory is an older copy only the master knows, and it was never asked.
    let other = cluster.layout(2, 1, &[1, 0]);
    let refused = cluster.client(1, 1).write(&other, 1, 0, b"y").unwrap_err();
    assert!(
        matches!(&refused, DataFailure::MemberFailed { server: ServerId(1), reason } if reason.contains("not admitted")),
        "{refused}"
    );
}

/// Stands for the master: one configuration at a time, the next one when somebody asks.
struct Configurations<'a> {
    cluster: &'a Cluster,
    proxies: &'a [Proxy],
    current: RwLock<ChunkLayout>,
    changing: Mutex<()>,
}

impl Configurations<'_> {
    fn proxied(&self, mut layout: ChunkLayout) -> ChunkLayout {
        for member in &mut layout.members {
            let index = member.member.server.0 as usize - 1;
            member.address = self.proxies[index].addr.to_string();
        }
        layout
    }

    fn after(&self, failed: &ChunkLayout) -> ChunkLayout {
        let _one = self.changing.lock().unwrap();
        let current = self.current.read().unwrap().clone();
        if current.version != failed.version {
            return current;
        }
        let next = current.version.0 + 1;
        // Another primary each time.
        let first = usize::try_from(next % 3).unwrap();
        let order = [first, (first + 1) % 3, (first + 2) % 3];
        let layout = self.proxied(self.cluster.reconfigure(current.chunk.0, next, &order, None));
        *self.current.write().unwrap() = layout.clone();
        layout
    }
}

fn record(writer: u64, n: u64) -> Vec<u8> {
    let mut record = format!("<{writer}:{n}>").into_bytes();
    record.extend(pattern(writer << 20 | n, usize::try_from(n * 31 % 900).unwrap()));
    record
}

#[test]
fn appends_and_writes_are_there_exactly_once_though_the_network_between_members_breaks() {
    const WRITERS: u64 = 4;
    let mut cluster = Cluster::new(3);
    cluster.chunk_size = 16 * MIB;
    let proxies: Vec<Proxy> = (0..3).map(|i| Proxy::to(cluster.server(i).addr())).collect();
    let configurations = Configurations {
        cluster: &cluster,
        proxies: &proxies,
        current: RwLock::new(cluster.layout(1, 1, &[0, 1, 2])),
        changing: Mutex::new(()),
    };
    let first = configurations.proxied(cluster.layout(1, 1, &[0, 1, 2]));
    *configurations.current.write().unwrap() = first;
    let (stop, reconfigured) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut records = BTreeMap::new();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (configurations, stop, reconfigured) = (&configurations, &stop, &reconfigured);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    let mut layout = configurations.current.read().unwrap().clone();
                    let mut client = client_of(configurations, &layout, writer);
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        n += 1;
                        let record = record(writer, n);
                        let offset = loop {
                            match client.append(&layout, n, true, &record) {
                                Ok((offset, _)) => break offset,
                                Err(DataFailure::Busy) => {}
                                // Another configuration helps against neither.
                                Err(
                                    full @ (DataFailure::ChunkFull { .. }
                                    | DataFailure::NoSpace { .. }),
                                ) => panic!("{full}"),
                                Err(_) => {
                                    reconfigured.fetch_add(1, Ordering::Relaxed);
                                    layout = configurations.after(&layout);
                                    client = client_of(configurations, &layout, writer);
                                }
                            }
                        };
                        mine.push((offset, record));
                    }
                    mine
                })
            })
            .collect();
        let mut n = 0u64;
        while begun.elapsed() < Duration::from_secs(6) {
            n += 1;
            std::thread::sleep(Duration::from_millis(40 + n * 37 % 150));
            proxies[usize::try_from(n * 7 % 3).unwrap()].cut();
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            for (offset, record) in worker.join().unwrap() {
                assert!(records.insert(offset, record).is_none(), "two records at {offset}");
            }
        }
    });
    let last = configurations.current.read().unwrap().clone();
    let settled = configurations.after(&last);
    let version = settled.version.0;
    println!("{} records, {version} versions, {reconfigured:?} failures", records.len());
    assert!(3 < version, "only {version} versions: the network was too good");
    assert!(10 * WRITERS < records.len() as u64, "only {} records", records.len());
    let mut whole = Vec::new();
    for (offset, record) in &records {
        assert_eq!(whole.len() as u64, *offset, "a record that nobody was told of");
        whole.extend_from_slice(record);
    }
    for index in 0..3 {
        assert!(cluster.content(index, 1, version) == whole, "cs-{}", index + 1);
    }
}

/// Connected to the primary of `layout`.
fn client_of(configurations: &Configurations<'_>, layout: &ChunkLayout, writer: u64) -> Client {
    let index = layout.primary.0 as usize - 1;
    configurations.cluster.client(index, 100 + u128::from(writer))
}

#[test]
fn reads_while_writing_never_go_back() {
    // One register of 8 bytes, written with rising values, read at all members: I12.
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let writer = cluster.client(0, 1);
    writer.write(&layout, 1, 0, &1u64.to_le_bytes()).unwrap();
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(1));
    std::thread::scope(|scope| {
        for index in 0..3 {
            for reader in 0..2 {
                let (cluster, layout, stop, seen) = (&cluster, &layout, &stop, &seen);
                scope.spawn(move || {
                    let client = cluster.client(index, 50 + reader);
                    while !stop.load(Ordering::Relaxed) {
                        // Whatever anybody has seen by now, this read must see too.
                        let before = seen.load(Ordering::SeqCst);
                        let at = match client.read(layout, 0, 8) {
                            Ok(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
                            Err(DataFailure::NotPrimary) if index != 0 => continue,
                            Err(other) => panic!("{other}"),
                        };
                        assert!(before <= at, "cs-{}: {at} after {before}", index + 1);
                        seen.fetch_max(at, Ordering::SeqCst);
                    }
                });
            }
        }
        let begun = Instant::now();
        let mut n = 1;
        let call = loop {
            n += 1;
            let call =
                writer.mutate(&layout, n, WireMutation::Write { offset: 0 }, &n.to_le_bytes());
            if !matches!(call, Ok(DataReply::Mutated { .. })) {
                break call;
            }
            // Acknowledged: every read that begins now sees it.
            seen.fetch_max(n, Ordering::SeqCst);
            if Duration::from_secs(3) <= begun.elapsed() {
                break call;
            }
        };
        // Before anything can fail: the readers would go on for ever.
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(call, Ok(DataReply::Mutated { .. })), "write {n}: {call:?}");
    });
    let report = cluster.server(1).store().report(ChunkId(1)).unwrap();
    assert_eq!(u128::from(report.position.seq), u128::from(seen.load(Ordering::SeqCst)));
}
