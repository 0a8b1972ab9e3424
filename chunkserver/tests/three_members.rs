//! Writes, appends, syncs and reads on three servers, and what happens when something breaks.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    dead_code,
    reason = "a test that meets the unexpected fails; each test file uses a part of the harness"
)]

mod harness;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use chunkserver::store::{ChunkSpec, ClientTable, Position};
use dfs_core::ids::{ChunkId, ChunkVersion, InodeNo, ServerId};
use dfs_proto::codec::Wire as _;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, WireMutation};
use dfs_proto::frame::{FrameHeader, FrameKind};
use dfs_proto::record_list::{RECORD_LIST_BYTES_MAX, RecordList};
use dfs_service::conn::{ClusterKey, Door, dial};
use harness::{Client, Cluster, DEADLINE, MIB, pattern};

#[test]
fn what_is_written_is_on_three_members_byte_for_byte() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let mut model = pattern(1, 300_000);
    assert_eq!(client.write(&layout, 1, 0, &model), Ok((1, 300_000)));
    let more = pattern(2, 70_001);
    assert_eq!(client.write(&layout, 2, 65_000, &more), Ok((2, 300_000)));
    model[65_000..135_001].copy_from_slice(&more);
    // A hole, then the tail.
    assert_eq!(client.write(&layout, 3, 400_000, b"tail"), Ok((3, 400_004)));
    model.resize(400_000, 0);
    model.extend_from_slice(b"tail");
    client.mutate(&layout, 4, WireMutation::Zero { offset: 10, len: 100_000 }, &[]).unwrap();
    model[10..100_010].fill(0);
    client.mutate(&layout, 5, WireMutation::Truncate { len: 200_000 }, &[]).unwrap();
    client.mutate(&layout, 6, WireMutation::Truncate { len: 210_000 }, &[]).unwrap();
    model.truncate(200_000);
    model.resize(210_000, 0);
    assert_eq!(client.sync(&layout), Ok((6, 210_000)));
    for index in 0..3 {
        assert!(cluster.content(index, 1, 1) == model, "cs-{}", index + 1);
        let reader = cluster.client(index, 9);
        assert!(reader.read_soon(&layout, 0, 1 << 20) == model);
        assert_eq!(
            reader.read_soon(&layout, 199_990, 20),
            [&model[199_990..200_000], &[0; 10]].concat()
        );
        assert_eq!(reader.read_soon(&layout, 999_999, 20), b"");
    }
    let digests: Vec<u32> =
        (0..3).map(|i| cluster.server(i).store().report(layout.chunk).unwrap().digest).collect();
    assert!(digests[0] == digests[1] && digests[1] == digests[2]);
}

#[test]
fn a_written_chunk_is_clean_on_every_member_soon() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, b"some bytes").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let dirty = |i: usize| cluster.server(i).store().report(layout.chunk).unwrap().dirty;
    while (0..3).any(dirty) {
        assert!(Instant::now() < until, "still dirty");
        std::thread::sleep(Duration::from_millis(20));
    }
    // And it goes on from there.
    assert_eq!(client.write(&layout, 2, 10, b" more"), Ok((2, 15)));
}

#[test]
fn many_appenders_lose_and_double_nothing_though_connections_die() {
    const WRITERS: u64 = 6;
    const RECORDS: u64 = 60;
    let mut cluster = Cluster::new(3);
    cluster.chunk_size = 4 * MIB;
    let layout = cluster.layout(1, 1, &[1, 0, 2]);
    let mut offsets = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (cluster, layout) = (&cluster, &layout);
                scope.spawn(move || {
                    let mut client = cluster.client(1, 100 + u128::from(writer));
                    let mut mine = Vec::new();
                    for n in 0..RECORDS {
                        let record = record(writer, n);
                        if n % 5 == writer % 5 {
                            // The answer is lost with the connection; whether the append arrived is not known.
                            let call = DataCall::Mutate {
                                layout: layout.clone(),
                                client: client.id,
                                counter: n + 1,
                                low_water: n + 1,
                                mutation: WireMutation::Append { record: true, at_least: 0 },
                            };
                            client
                                .connection
                                .start(&call.to_bytes(), &[&record], None, Box::new(|_| {}))
                                .unwrap();
                            std::thread::sleep(Duration::from_micros(200 * (n % 7)));
                            client.connection.close();
                            client = cluster.client(1, 100 + u128::from(writer));
                        }
                        let first = client.append(layout, n + 1, true, &record).unwrap();
                        assert_eq!(first.1, record.len() as u64);
                        // Asked again, the same answer.
                        assert_eq!(client.append(layout, n + 1, true, &record), Ok(first));
                        mine.push((first.0, record));
                    }
                    mine
                })
            })
            .collect();
        for worker in workers {
            for (offset, record) in worker.join().unwrap() {
                assert!(offsets.insert(offset, record).is_none(), "two records at {offset}");
            }
        }
    });
    assert_eq!(offsets.len() as u64, WRITERS * RECORDS);
    // End to end: nothing in between that nobody was told of.
    let mut whole = Vec::new();
    for (offset, record) in offsets {
        assert_eq!(whole.len() as u64, offset);
        whole.extend(record);
    }
    for index in 0..3 {
        assert!(cluster.content(index, 1, 1) == whole, "cs-{}", index + 1);
    }
}

fn record(writer: u64, n: u64) -> Vec<u8> {
    pattern(writer << 32 | n, 500 + usize::try_from(n * 37 % 1500).unwrap())
}

#[test]
fn one_client_may_have_many_operations_in_flight() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let (hand, taken) = std::sync::mpsc::channel();
    let mut model = vec![0; 300 * 1000];
    for n in 0..300u64 {
        let at = usize::try_from(n * 1000 % 250_000).unwrap();
        let data = pattern(n, 1500);
        model[at..at + 1500].copy_from_slice(&data);
        let call = DataCall::Mutate {
            layout: layout.clone(),
            client: client.id,
            counter: n + 1,
            low_water: 1,
            mutation: WireMutation::Write { offset: at as u64 },
        };
        let hand = hand.clone();
        let on_reply = Box::new(move |frame: std::io::Result<_>| {
            hand.send((n, harness::answer(frame.unwrap()))).unwrap();
        });
        client.connection.start(&call.to_bytes(), &[&data], None, on_reply).unwrap();
    }
    for _ in 0..300 {
        let (n, answer) = taken.recv_timeout(DEADLINE).unwrap();
        match answer.unwrap().0 {
            DataReply::Mutated { seq, .. } => assert_eq!(seq, n + 1),
            other => panic!("{other:?}"),
        }
    }
    model.truncate(251_500 - 500);
    let len = cluster.content(0, 1, 1).len();
    model.resize(len, 0);
    for index in 0..3 {
        assert!(cluster.content(index, 1, 1) == model, "cs-{}", index + 1);
    }
}

#[test]
fn a_lost_member_ends_the_version_and_the_next_one_goes_on_with_the_same_operations() {
    let mut cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let (first, _) = client.append(&layout, 1, true, b"first ").unwrap();
    cluster.stop(2);
    let lost = client.append(&layout, 2, true, b"second ").unwrap_err();
    assert!(matches!(&lost, DataFailure::MemberFailed { server: ServerId(3), .. }), "{lost}");
    // Nothing is acknowledged in this version any more.
    let again = client.append(&layout, 2, true, b"second ").unwrap_err();
    assert!(matches!(&again, DataFailure::MemberFailed { server: ServerId(3), .. }), "{again}");
    assert!(client.sync(&layout).is_err());

    let next = cluster.reconfigure(1, 2, &[0, 1], None);
    let stale = client.append(&layout, 2, true, b"second ").unwrap_err();
    assert!(matches!(stale, DataFailure::StaleVersion { .. }), "{stale}");
    let (second, _) = client.append(&next, 2, true, b"second ").unwrap();
    assert_eq!((first, second), (0, 6));
    let (third, _) = client.append(&next, 3, true, b"third").unwrap();
    assert_eq!(third, 13);

    // The lost one comes back: of no use until it learned.
    cluster.start(2);
    let back = cluster.client(2, 2);
    assert!(matches!(back.read(&next, 0, 100), Err(DataFailure::StaleVersion { .. })));
    let healed = cluster.reconfigure(1, 3, &[1, 0], Some(2));
    let client = cluster.client(1, 1);
    // An old operation, already done two versions ago, is still the same one.
    assert_eq!(client.append(&healed, 3, true, b"third"), Ok((13, 5)));
    assert_eq!(client.append(&healed, 4, true, b" end"), Ok((18, 4)));
    for index in 0..3 {
        assert_eq!(cluster.content(index, 1, 3), b"first second third end", "cs-{}", index + 1);
    }
}

#[test]
fn a_primary_that_was_restarted_does_not_lead_the_version_again() {
    let mut cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    cluster.client(0, 1).write(&layout, 1, 0, b"before").unwrap();
    cluster.stop(0);
    cluster.start(0);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    let refused = client.write(&layout, 2, 6, b" after").unwrap_err();
    assert!(matches!(&refused, DataFailure::MemberFailed { server: ServerId(1), .. }), "{refused}");
    let next = cluster.reconfigure(1, 2, &[0, 1, 2], None);
    client.write(&next, 2, 6, b" after").unwrap();
    for index in 0..3 {
        assert_eq!(cluster.content(index, 1, 2), b"before after");
    }
}

#[test]
fn after_a_restart_of_all_nothing_uncertain_is_served_until_the_next_version_settles_it() {
    let mut cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    cluster.client(0, 1).write(&layout, 1, 0, b"acknowledged").unwrap();
    for index in 0..3 {
        cluster.stop(index);
    }
    for index in 0..3 {
        cluster.start(index);
    }
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    for index in 0..3 {
        let refused = cluster.client(index, 2).read(&layout, 0, 12).unwrap_err();
        let me = ServerId(u32::try_from(index).unwrap() + 1);
        assert!(matches!(&refused, DataFailure::MemberFailed { server, .. } if *server == me));
    }
    let next = cluster.reconfigure(1, 2, &[0, 1, 2], None);
    for index in 0..3 {
        assert_eq!(cluster.client(index, 2).read(&next, 0, 20).unwrap(), b"acknowledged");
    }
    // What was clean is served at once, and a sync of it has nothing to do.
    cluster.stop(1);
    cluster.start(1);
    let next = cluster.layout(1, 2, &[1, 0, 2]);
    let client = cluster.client(1, 2);
    assert_eq!(client.read(&next, 0, 20).unwrap(), b"acknowledged");
    assert_eq!(client.sync(&next), Ok((0, 12)));
}

#[test]
fn a_source_that_went_on_is_refused() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, b"one").unwrap();
    let early = cluster.server(0).store().report(layout.chunk).unwrap();
    client.write(&layout, 2, 3, b"two").unwrap();
    let promised = cluster.promise(0, 1, 2, false).unwrap();
    cluster.promise(2, 1, 2, true).unwrap();
    let mut wrong = promised.clone();
    wrong.seq = early.position.seq;
    assert_eq!(cluster.adopt(2, 2, 0, &wrong).unwrap_err().code(), tonic::Code::FailedPrecondition);
    wrong = promised.clone();
    wrong.digest ^= 1;
    assert_eq!(cluster.adopt(2, 2, 0, &wrong).unwrap_err().code(), tonic::Code::FailedPrecondition);
    cluster.adopt(2, 2, 0, &promised).unwrap();
    assert_eq!(cluster.content(2, 1, 2), b"onetwo");
    // A version that was not promised cannot be taken up.
    assert!(cluster.adopt(2, 3, 0, &promised).is_err());
}

/// Inode numbers of the files of chunks below `dir`.
fn chunk_files(dir: &Path) -> Vec<u64> {
    let list = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    // Chunks are in directories of two digits.
    let of_chunks = list(dir).filter(|entry| entry.file_name().len() == 2);
    of_chunks
        .flat_map(|entry| list(&entry.path()))
        .map(|file| file.metadata().unwrap().ino())
        .collect()
}

/// On a full disk there is no room for a copy, and none is needed.
#[test]
fn a_member_that_has_what_the_source_has_takes_up_its_own_file() {
    let cluster = Cluster::new(2);
    let layout = cluster.layout(1, 1, &[0, 1]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, &pattern(1, 300_000)).unwrap();
    let promised = cluster.promise(0, 1, 2, false).unwrap();
    let other = cluster.promise(1, 1, 2, false).unwrap();
    assert_eq!((other.seq, other.digest), (promised.seq, promised.digest));
    let files = || chunk_files(cluster.dirs[1].path());
    let before = files();
    assert_eq!(before.len(), 1);
    let adopted = cluster.adopt(1, 2, 0, &promised).unwrap();
    assert_eq!((adopted.version, adopted.seq, adopted.digest), (2, 0, promised.digest));
    assert_eq!(files(), before, "another file took its place");
    cluster.adopt(0, 2, 0, &promised).unwrap();
    let layout = cluster.layout(1, 2, &[0, 1]);
    cluster.client(0, 2).write(&layout, 1, 300_000, b"goes on").unwrap();
    for index in 0..2 {
        let content = cluster.content(index, 1, 2);
        assert!(content[..300_000] == pattern(1, 300_000) && content[300_000..] == *b"goes on");
    }
}

#[test]
fn a_chunk_nobody_wrote_is_taken_up_empty_and_an_adoption_may_be_repeated() {
    let cluster = Cluster::new(3);
    let mut nobody = cluster.promise(0, 1, 2, true).unwrap();
    cluster.promise(1, 1, 2, true).unwrap();
    assert_eq!((nobody.version, nobody.seq, nobody.len), (0, 0, 0));
    let empty = |index| cluster.adopt_from(index, 2, "", "", &nobody).unwrap();
    for report in [empty(0), empty(1), empty(1)] {
        assert_eq!((report.version, report.seq, report.len), (2, 0, 0));
    }
    let layout = cluster.layout(1, 2, &[0, 1]);
    cluster.client(0, 1).write(&layout, 1, 0, b"born late").unwrap();
    nobody = cluster.promise(0, 1, 3, false).unwrap();
    cluster.promise(1, 1, 3, false).unwrap();
    // Nobody wrote? This one knows better.
    assert!(cluster.adopt_from(1, 3, "", "", &nobody).is_err());
    for index in [1, 1, 0, 0] {
        assert_eq!(cluster.adopt(index, 3, 0, &nobody).unwrap().version, 3);
    }
    assert_eq!(cluster.content(1, 1, 3), b"born late");
}

#[test]
fn a_promise_stops_lower_versions_and_is_not_taken_back() {
    let cluster = Cluster::new(2);
    let layout = cluster.layout(1, 1, &[0, 1]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, b"x").unwrap();
    cluster.promise(1, 1, 5, false).unwrap();
    // The member refuses, so the primary cannot acknowledge.
    let refused = client.write(&layout, 2, 1, b"y").unwrap_err();
    assert!(matches!(&refused, DataFailure::MemberFailed { server: ServerId(2), .. }), "{refused}");
    assert!(cluster.promise(1, 1, 4, false).is_err());
    let again = cluster.promise(1, 1, 5, false).unwrap();
    assert_eq!((again.promised, again.version, again.seq), (5, 1, 1));
    assert!(cluster.promise(1, 99, 2, false).is_err_and(|s| s.code() == tonic::Code::NotFound));
}

#[test]
fn records_that_do_not_fit_seal_the_chunk_and_plain_appends_split() {
    let mut cluster = Cluster::new(3);
    cluster.chunk_size = 8192;
    let client = cluster.client(0, 1);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    for n in 0..4u64 {
        assert_eq!(client.append(&layout, n + 1, true, &[b'r'; 2000]), Ok((n * 2000, 2000)));
    }
    assert_eq!(
        client.append(&layout, 5, true, &[b'r'; 2000]),
        Err(DataFailure::ChunkFull { carry: 0 })
    );
    assert_eq!(
        client.append(&layout, 5, true, &[b'r'; 2000]),
        Err(DataFailure::ChunkFull { carry: 0 })
    );
    assert_eq!(client.append(&layout, 6, true, b"s"), Err(DataFailure::ChunkFull { carry: 0 }));
    assert!(matches!(
        client.append(&layout, 7, true, &[0; 2049]),
        Err(DataFailure::BadRequest { .. })
    ));
    for index in 0..3 {
        let content = cluster.content(index, 1, 1);
        assert_eq!(content.len(), 8192);
        assert!(
            content[..8000].iter().all(|b| *b == b'r') && content[8000..].iter().all(|b| *b == 0)
        );
        assert!(cluster.server(index).store().report(layout.chunk).unwrap().sealed);
    }
    let plain = cluster.layout(2, 1, &[0, 1, 2]);
    assert_eq!(client.append(&plain, 1, false, &[b'p'; 8000]), Ok((0, 8000)));
    assert_eq!(client.append(&plain, 2, false, &[b'q'; 500]), Ok((8000, 192)));
    assert_eq!(client.append(&plain, 2, false, &[b'q'; 500]), Ok((8000, 192)));
    // Whoever comes next leaves room for what crossed the end, as long as its client may ask for it again.
    let other = cluster.client(0, 2);
    assert_eq!(other.append(&plain, 1, false, b"z"), Err(DataFailure::ChunkFull { carry: 308 }));
    assert_eq!(client.append(&plain, 3, false, b"z"), Err(DataFailure::ChunkFull { carry: 308 }));
    let carried = || {
        let append = WireMutation::Append { record: false, at_least: 0 };
        match client.mutate(&plain, 2, append, &[b'q'; 500]).unwrap() {
            DataReply::Appended { offset: 8000, appended: 192, carried, .. } => carried,
            reply => panic!("{reply:?}"),
        }
    };
    assert_eq!(carried(), 308);
    // The file is cut right where the chunk ends: what crossed goes with it, and whoever asks again is told.
    other.mutate(&plain, 2, WireMutation::Truncate { len: 8192 }, &[]).unwrap();
    assert_eq!(carried(), 0);
    assert_eq!(other.append(&plain, 3, false, b"z"), Err(DataFailure::ChunkFull { carry: 0 }));
}

#[test]
fn every_member_knows_which_bytes_are_records_also_after_a_restart_and_a_copy() {
    let mut cluster = Cluster::new(4);
    cluster.chunk_size = 8192;
    let client = cluster.client(0, 1);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    assert_eq!(client.records(&layout), Err(DataFailure::NoReplica));
    // The bytes do not tell: records end in NUL, as padding does.
    let mut expected = Vec::new();
    for (counter, len) in (1..).zip([2000, 1, 2048, 300, 2000]) {
        let (offset, appended) = client.append(&layout, counter, true, &vec![0; len]).unwrap();
        assert_eq!(appended, len as u64);
        expected.push((offset, appended));
        // Asked again, it is there once.
        assert_eq!(client.append(&layout, counter, true, &vec![0; len]), Ok((offset, appended)));
    }
    assert_eq!(client.records(&layout), Ok((expected.clone(), 1)));
    let full = Err(DataFailure::ChunkFull { carry: 0 });
    assert_eq!(client.append(&layout, 6, true, &[0; 2000]), full, "padding is no record");
    assert!(client.append(&layout, 7, true, &[0; 2049]).is_err());
    assert_eq!(client.records(&layout), Ok((expected.clone(), 1)));
    client.sync(&layout).unwrap();

    // As it was, from its journal.
    cluster.stop(1);
    cluster.start(1);
    let layout = cluster.reconfigure(1, 2, &[0, 1], Some(3));
    for index in [0, 1, 3] {
        assert_eq!(cluster.client(index, 2).records(&layout), Ok((expected.clone(), 1)), "{index}");
    }
    // Who is behind says nothing.
    let behind = cluster.client(2, 2).records(&layout);
    assert!(matches!(behind, Err(DataFailure::StaleVersion { .. })), "{behind:?}");
    // The new server's copy is as good as those that it comes from, and others can be made of it.
    cluster.stop(3);
    cluster.start(3);
    cluster.stop(0);
    cluster.stop(1);
    let layout = cluster.reconfigure(1, 3, &[3], Some(2));
    for index in [2, 3] {
        assert_eq!(cluster.client(index, 2).records(&layout), Ok((expected.clone(), 1)), "{index}");
    }
}

#[test]
fn what_is_no_record_is_not_listed_and_records_go_with_the_bytes_that_are_cut() {
    let mut cluster = Cluster::new(1);
    cluster.chunk_size = 8192;
    let client = cluster.client(0, 1);
    let plain = cluster.layout(1, 1, &[0]);
    client.append(&plain, 1, false, &[b'p'; 100]).unwrap();
    let call = DataCall::Records { chunk: plain.chunk, version: plain.version, from: 0 };
    let (reply, list) = client.call(&call, &[]).unwrap();
    // As after an upgrade: there are bytes, and nobody knows what they are.
    assert_eq!(reply, DataReply::Records { replica_len: 100, more: false, all_known: false });
    assert!(list.is_empty());
    let layout = cluster.layout(2, 1, &[0]);
    for counter in 1..=3 {
        client.append(&layout, counter, true, &[b'r'; 100]).unwrap();
    }
    client.mutate(&layout, 4, WireMutation::Truncate { len: 200 }, &[]).unwrap();
    client.append(&layout, 5, true, &[b's'; 7]).unwrap();
    assert_eq!(client.records(&layout), Ok((vec![(0, 100), (100, 100), (200, 7)], 1)));
    client.mutate(&layout, 6, WireMutation::Truncate { len: 0 }, &[]).unwrap();
    assert_eq!(client.records(&layout), Ok((Vec::new(), 1)));
}

#[test]
fn a_chunk_whose_list_of_records_is_full_is_sealed_and_the_list_comes_in_parts() {
    let cluster = Cluster::new(1);
    // As many records of one byte as would take an hour to append.
    let count = RECORD_LIST_BYTES_MAX - 11;
    let list = RecordList::decode(&vec![1; count]).unwrap();
    let spec = ChunkSpec { inode: InodeNo(7), index: 0, chunk_size: cluster.chunk_size };
    let (chunk, version) = (ChunkId(1), ChunkVersion(2));
    let store = cluster.server(0).store();
    store.promise(chunk, version, Some(&spec)).unwrap();
    let from = Position { version: ChunkVersion(1), seq: 1 };
    let mut copy = store.adopt_begin(chunk, version, from, count as u64, &spec).unwrap();
    let content = pattern(1, count);
    for (block, bytes) in (0..).zip(content.chunks(64 << 10)) {
        copy.put_block(block, bytes, crc32c::crc32c(bytes)).unwrap();
    }
    copy.finish(count as u64, false, &ClientTable::default(), &list).unwrap();
    let layout = cluster.layout(1, 2, &[0]);
    let client = cluster.client(0, 1);
    // The last one that it has a place for.
    assert_eq!(client.append(&layout, 1, true, b"last"), Ok((count as u64, 4)));
    let full = Err(DataFailure::ChunkFull { carry: 0 });
    assert_eq!(client.append(&layout, 2, true, b"next"), full);
    assert!(store.report(chunk).unwrap().sealed);
    assert_eq!(cluster.content(0, 1, 2).len() as u64, cluster.chunk_size, "padded");
    let (records, answers) = client.records(&layout).unwrap();
    assert_eq!((records.len(), answers), (count + 1, 7));
    let mut end = 0;
    for (offset, len) in records {
        assert_eq!((offset, len), (end, if end == count as u64 { 4 } else { 1 }));
        end += len;
    }
}

#[test]
fn a_counter_that_skips_one_still_coming_waits_for_it() {
    let cluster = Cluster::new(1);
    let layout = cluster.layout(1, 1, &[0]);
    let client = cluster.client(0, 1);
    let mutate = |counter, low_water, byte: u8| {
        let mutation = WireMutation::Write { offset: 0 };
        let call = DataCall::Mutate {
            layout: layout.clone(),
            client: client.id,
            counter,
            low_water,
            mutation,
        };
        client.call(&call, &[byte])
    };
    mutate(1, 1, b'a').unwrap();
    assert_eq!(mutate(3, 2, b'c').unwrap_err(), DataFailure::Busy);
    mutate(2, 2, b'b').unwrap();
    mutate(3, 2, b'c').unwrap();
    // Given up by the client: its low-water mark says so.
    mutate(6, 6, b'f').unwrap();
    assert_eq!(mutate(4, 6, b'd').unwrap_err(), DataFailure::OutcomeUnknown);
    assert_eq!(cluster.content(0, 1, 1), b"f");
}

#[test]
fn a_full_server_refuses_before_anything_is_numbered() {
    let cluster = Cluster::with(2, |config| {
        if config.server == ServerId(2) {
            config.capacity_bytes = Some(3 * MIB);
            config.reserve_percent = 0;
        }
    });
    let mut client = cluster.client(0, 1);
    let mut written = 0;
    let refused = loop {
        let layout = cluster.layout(1 + written, 1, &[0, 1]);
        match client.write(&layout, 1, 0, &pattern(written, 512 << 10)) {
            Ok(_) => written += 1,
            Err(failure) => break failure,
        }
        assert!(written < 100, "never full");
    };
    assert_eq!(refused, DataFailure::NoSpace { server: ServerId(2) });
    // Nothing was numbered, nothing is broken: what is there can be read and overwritten in place later.
    for chunk in 0..written {
        for index in 0..2 {
            assert!(cluster.content(index, 1 + chunk, 1) == pattern(chunk, 512 << 10));
        }
    }
    // Space that comes back makes it go on.
    for chunk in 0..2 {
        cluster.server(1).store().quarantine(ChunkId(1 + chunk)).unwrap();
    }
    cluster.server(1).store().purge_quarantine(u64::MAX).unwrap();
    let layout = cluster.layout(1 + written, 1, &[0, 1]);
    let until = Instant::now() + Duration::from_secs(10);
    client = cluster.client(0, 1);
    while let Err(failure) = client.write(&layout, 1, 0, &pattern(9, 512 << 10)) {
        assert_eq!(failure, DataFailure::NoSpace { server: ServerId(2) });
        assert!(Instant::now() < until, "space came back, writes did not");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn bad_bytes_cost_only_their_connection() {
    let cluster = Cluster::new(1);
    let addr = cluster.server(0).addr().to_string();
    // Before the handshake.
    let mut raw = TcpStream::connect(&addr).unwrap();
    raw.set_read_timeout(Some(DEADLINE)).unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_closed(&mut raw);
    // After it: garbage, an oversized frame, arguments that are nothing, a call before hello.
    let open = || {
        let stream = dial(&addr, &ClusterKey::none(), Door::Frames, DEADLINE).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let mut garbage = open();
    garbage.write_all(&pattern(1, 4096)).unwrap();
    assert_closed(&mut garbage);
    let mut oversized = open();
    oversized
        .write_all(&FrameHeader::new(FrameKind::Request, 1, b"", u32::MAX as usize, 0).encode())
        .unwrap();
    assert_closed(&mut oversized);
    let mut senseless = open();
    let args = pattern(2, 100);
    senseless.write_all(&FrameHeader::new(FrameKind::Request, 1, &args, 0, 0).encode()).unwrap();
    senseless.write_all(&args).unwrap();
    assert_closed(&mut senseless);
    let mut rude = open();
    let args = DataCall::Space.to_bytes();
    rude.write_all(&FrameHeader::new(FrameKind::Request, 1, &args, 0, 0).encode()).unwrap();
    rude.write_all(&args).unwrap();
    assert_closed(&mut rude);
    // The server goes on.
    let client = cluster.client(0, 1);
    client.write(&cluster.layout(1, 1, &[0]), 1, 0, b"fine").unwrap();
}

#[track_caller]
fn assert_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_client_of_another_file_system_and_a_dead_reign_are_refused() {
    let cluster = Cluster::new(1);
    let stream =
        dial(&cluster.server(0).addr().to_string(), &ClusterKey::none(), Door::Frames, DEADLINE)
            .unwrap();
    let connection = dfs_proto::frame_conn::FrameClient::new(stream).unwrap();
    let hello = DataCall::Hello {
        fs: dfs_core::ids::FsId(99),
        from: dfs_proto::data_rpc::Peer::Client(dfs_core::ids::ClientId(1)),
    };
    let refused =
        harness::answer(connection.call(&hello.to_bytes(), &[], DEADLINE).unwrap()).unwrap_err();
    assert!(matches!(refused, DataFailure::BadRequest { .. }), "{refused}");

    let layout = cluster.layout(1, 1, &[0]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, b"x").unwrap();
    // A master of epoch 1 has spoken; epoch 0 is over.
    cluster.promise(0, 1, 1, false).unwrap();
    let mut old = layout.clone();
    old.epoch = dfs_core::ids::Epoch(0);
    assert!(matches!(client.write(&old, 2, 0, b"y"), Err(DataFailure::StaleEpoch { .. })));
    // A layout that names another disk of this server, or another primary.
    let mut other = layout.clone();
    other.members[0].member.disk = dfs_core::ids::DiskId(1);
    assert!(matches!(client.write(&other, 2, 0, b"y"), Err(DataFailure::MemberFailed { .. })));
    let mut other = layout;
    other.primary = ServerId(2);
    assert!(matches!(client.write(&other, 2, 0, b"y"), Err(DataFailure::NotPrimary)));
}

#[test]
fn a_member_does_not_serve_what_is_not_known_to_be_everywhere() {
    let cluster = Cluster::new(3);
    let layout = cluster.layout(1, 1, &[0, 1, 2]);
    let client = cluster.client(0, 1);
    client.write(&layout, 1, 0, &[b'a'; 1000]).unwrap();
    let reader = cluster.client(1, 2);
    assert_eq!(reader.read_soon(&layout, 0, 1000), [b'a'; 1000]);
    // One member gets an operation that the others do not have: as if the primary died in between.
    let as_primary = Client::open(&cluster.server(1).addr().to_string(), 3);
    let replicate = DataCall::Replicate {
        layout: layout.clone(),
        seq: 2,
        client: client.id,
        counter: 2,
        low_water: 2,
        mutation: WireMutation::Write { offset: 100 },
        append: None,
        committed: 1,
        record: false,
    };
    // Not from a client.
    assert!(matches!(as_primary.call(&replicate, b"zz"), Err(DataFailure::BadRequest { .. })));
    let stream =
        dial(&cluster.server(1).addr().to_string(), &ClusterKey::none(), Door::Frames, DEADLINE)
            .unwrap();
    let primary = dfs_proto::frame_conn::FrameClient::new(stream).unwrap();
    let hello =
        DataCall::Hello { fs: harness::FS, from: dfs_proto::data_rpc::Peer::Server(ServerId(1)) };
    harness::answer(primary.call(&hello.to_bytes(), &[], DEADLINE).unwrap()).unwrap();
    let applied =
        harness::answer(primary.call(&replicate.to_bytes(), &[b"zz"], DEADLINE).unwrap()).unwrap();
    assert!(matches!(applied.0, DataReply::Applied { seq: 2, .. }));
    assert_eq!(reader.read(&layout, 50, 100), Err(DataFailure::NotPrimary));
    assert_eq!(reader.records(&layout), Err(DataFailure::NotPrimary));
    assert_eq!(reader.read(&layout, 200, 100).unwrap(), [b'a'; 100]);
    // A gap is said to be one.
    let DataCall::Replicate { layout, client, counter, low_water, mutation, append, .. } =
        replicate
    else {
        return;
    };
    let gap = DataCall::Replicate {
        layout,
        seq: 4,
        client,
        counter,
        low_water,
        mutation,
        append,
        committed: 1,
        record: false,
    };
    let refused =
        harness::answer(primary.call(&gap.to_bytes(), &[b"zz"], DEADLINE).unwrap()).unwrap_err();
    assert_eq!(refused, DataFailure::Gap { have: 2 });
}

#[test]
fn an_unborn_chunk_is_nowhere_and_a_second_server_on_a_directory_is_refused() {
    let cluster = Cluster::new(1);
    let layout = cluster.layout(1, 1, &[0]);
    let client = cluster.client(0, 1);
    assert_eq!(client.read(&layout, 0, 10), Err(DataFailure::NoReplica));
    assert_eq!(client.sync(&layout), Ok((0, 0)));
    let mut config = chunkserver::Config::new(ServerId(1), cluster.dirs[0].path().to_owned());
    config.fs = Some(harness::FS);
    assert!(chunkserver::Server::start(config).is_err());
}
