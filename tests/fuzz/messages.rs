//! What clients, servers and the log say to each other, and the records and keys of the store.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

use dfs_core::command::{Command, Outcome};
use dfs_core::meta::Record;
use dfs_core::namespace::acl::Acl;
use dfs_proto::codec::{Reader, Wire};
use dfs_proto::control;
use dfs_proto::convert::{decode_key, encode_key};
use dfs_proto::data_rpc::{DataCall, DataReply, DecodedSums, decode_sums, encode_sums};
use dfs_proto::meta_rpc::{MetaReply, MetaRequest};
use prost::Message;

use crate::engine::Target;
use crate::values;

/// Accepted bytes must mean the same after being written and read again.
fn round_trip<T: Wire + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = T::from_bytes(bytes) else { return false };
    assert_eq!(T::from_bytes(&value.to_bytes()).as_ref(), Ok(&value), "round trip");
    true
}

fn bytes_of<T: Wire>(values: Vec<T>) -> Vec<Vec<u8>> {
    values.iter().map(Wire::to_bytes).collect()
}

#[test]
fn commands_of_the_log() {
    Target::new("command", bytes_of(values::commands())).run(round_trip::<Command>);
}

#[test]
fn outcomes_of_commands() {
    Target::new("outcome", bytes_of(values::outcomes())).run(round_trip::<Outcome>);
}

#[test]
fn records_of_the_store() {
    Target::new("record", bytes_of(values::records())).run(round_trip::<Record>);
}

#[test]
fn keys_of_the_store_and_their_order() {
    let keys = values::keys();
    for (a, b) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
        assert_eq!(a.cmp(b), encode_key(a).cmp(&encode_key(b)), "{a:?} {b:?}");
    }
    // A name is the rest of the key.
    Target::new("key", keys.iter().map(encode_key).collect()).prefixes_may_be_valid().run(
        |bytes| {
            let Ok(key) = decode_key(bytes) else { return false };
            assert_eq!(encode_key(&key), bytes);
            true
        },
    );
}

#[test]
fn requests_to_the_master() {
    Target::new("meta_request", bytes_of(values::meta_requests())).run(round_trip::<MetaRequest>);
}

#[test]
fn replies_of_the_master() {
    Target::new("meta_reply", bytes_of(values::meta_replies())).run(round_trip::<MetaReply>);
}

#[test]
fn requests_to_chunkservers() {
    Target::new("data_call", bytes_of(values::data_calls())).run(round_trip::<DataCall>);
}

#[test]
fn replies_of_chunkservers() {
    Target::new("data_reply", bytes_of(values::data_replies())).run(round_trip::<DataReply>);
}

#[test]
fn hits_of_a_search() {
    use dfs_proto::data_rpc::{decode_hits, encode_hits};
    let payload = |scanned: u32, hits: &[u32]| {
        let mut bytes = scanned.to_le_bytes().to_vec();
        bytes.extend_from_slice(&encode_hits(hits));
        bytes
    };
    let valid = vec![payload(0, &[]), payload(9, &[0, 1, 8]), payload(u32::MAX, &[7, 1 << 30])];
    Target::new("hits", valid).prefixes_may_be_valid().run(|bytes| {
        let Some((scanned, payload)) = bytes.split_first_chunk() else { return false };
        let scanned = u32::from_le_bytes(*scanned);
        let Ok(hits) = decode_hits(payload, scanned) else { return false };
        assert_eq!(encode_hits(&hits), payload);
        assert!(hits.iter().all(|hit| *hit < scanned));
        true
    });
}

#[test]
fn checksums_and_lists_of_a_replica() {
    // Lengths of both lists in one number, as there was one list when the first of these were kept.
    let payload = |sums: &[u32], table: &[u8], records: &[u8]| {
        let lens = u32::try_from(table.len() | records.len() << 16).unwrap();
        [&lens.to_le_bytes()[..], &encode_sums(sums, table, records)].concat()
    };
    let valid = vec![
        payload(&[], b"", b""),
        payload(&[1, u32::MAX, 3], b"table", b""),
        payload(&[1, u32::MAX, 3], b"table", b"records"),
    ];
    Target::new("sums", valid).prefixes_may_be_valid().run(|bytes| {
        let Some((lens, payload)) = bytes.split_first_chunk() else { return false };
        let lens = u32::from_le_bytes(*lens);
        let (table_bytes, record_bytes) = (lens & 0xffff, lens >> 16);
        let Ok(found) = decode_sums(payload, table_bytes, record_bytes) else { return false };
        let DecodedSums { sums, client_table, record_list } = found;
        assert_eq!(encode_sums(&sums, client_table, record_list), payload);
        let lens = [client_table, record_list].map(<[u8]>::len);
        assert_eq!(lens, [table_bytes, record_bytes].map(|n| n as usize));
        true
    });
}

#[test]
fn lists_of_records() {
    use dfs_proto::record_list::{RecordList, RecordPlace};
    let list = |places: &[(u64, u64)]| {
        let mut list = RecordList::default();
        for &(offset, len) in places {
            assert!(list.push(RecordPlace { offset, len }));
        }
        list.as_bytes().to_vec()
    };
    let valid = vec![
        list(&[]),
        list(&[(0, 1), (1, 127), (128, 128), (300, 20_000)]),
        list(&[(1 << 27, 1 << 27)]),
    ];
    Target::new("record_list", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(list) = RecordList::decode(bytes) else { return false };
        let mut again = RecordList::default();
        for place in list.iter() {
            assert!(again.push(place), "{place:?}");
        }
        assert_eq!((&again, again.as_bytes()), (&list, bytes));
        let half = list.end() / 2;
        again.cut(half);
        assert!(again.end() <= half && again.iter().zip(list.iter()).all(|(a, b)| a == b));
        true
    });
}

#[test]
fn access_lists_from_users() {
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let (user, group, other) =
        (entry(1, 6, u32::MAX), entry(4, 4, u32::MAX), entry(0x20, 0, u32::MAX));
    let version = 2_u32.to_le_bytes().to_vec();
    let minimal = [&version[..], &user, &group, &other].concat();
    let extended = [
        &version[..],
        &user,
        &entry(2, 7, 1000),
        &entry(2, 5, 1001),
        &group,
        &entry(8, 6, 100),
        &entry(0x10, 7, u32::MAX),
        &other,
    ]
    .concat();
    Target::new("acl", vec![minimal, extended, version]).prefixes_may_be_valid().run(|bytes| {
        let Ok(acl) = Acl::decode(bytes) else { return false };
        let Some(acl) = acl else { return true };
        // Linux ignores the id of entries that have none, and so do we.
        assert_eq!(Acl::decode(&acl.encode()).as_ref(), Ok(&Some(acl.clone())));
        assert!(acl.sync_mode(0) <= 0o777);
        true
    });
}

#[test]
fn server_ids_that_people_type() {
    let valid = ["cs-1", "cs-12", "cs-4294967295"].map(|text| text.as_bytes().to_vec()).to_vec();
    Target::new("server_id", valid).prefixes_may_be_valid().run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(id) = text.parse::<dfs_core::ids::ServerId>() else { return false };
        assert_eq!(id.to_string(), text, "one server has one name");
        true
    });
}

#[test]
fn commands_in_annotations() {
    use operator::command::{Command, parse, parse_on_pod};
    let said = |command: &Command| {
        let list = |servers: &[dfs_core::ids::ServerId]| {
            servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let seconds = |time: &Option<std::time::Duration>| {
            time.map_or_else(String::new, |time| format!(";for={}s", time.as_secs()))
        };
        let flag = |is: bool, text: &'static str| if is { text } else { "" };
        match command {
            Command::Failover { servers, time, force } => {
                ("failover", list(servers) + &seconds(time) + flag(*force, ";force"))
            }
            Command::Recover { servers } => ("recover", list(servers)),
            Command::Drain { servers, end } => ("drain", list(servers) + flag(*end, ";end")),
            Command::Maintenance { servers, time, end } => {
                ("maintenance", list(servers) + &seconds(time) + flag(*end, ";end"))
            }
            Command::Rebalance { start } => {
                ("rebalance", if *start { "start" } else { "stop" }.to_owned())
            }
        }
    };
    let valid = [
        "failover=cs-3,cs-5;for=10m;force",
        "recover=cs-3",
        "drain=cs-3;end",
        "maintenance=cs-1;for=2h",
        "rebalance=stop",
        "pod=true",
    ];
    let valid = valid.map(|text| text.as_bytes().to_vec()).to_vec();
    Target::new("annotation", valid).prefixes_may_be_valid().run(|bytes| {
        let Some((name, value)) = std::str::from_utf8(bytes).ok().and_then(|s| s.split_once('='))
        else {
            return false;
        };
        let server = dfs_core::ids::ServerId(7);
        let read = if name == "pod" { parse_on_pod(server, value) } else { parse(name, value) };
        let Ok(command) = read else { return false };
        let (name, value) = said(&command);
        assert_eq!(parse(name, &value).as_ref(), Ok(&command), "{name}={value}");
        true
    });
}

/// A decoder that leaves the rest, of every type with a byte form.
type Part = (&'static str, fn(&[u8]) -> bool);

fn part<T: Wire + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let mut input = Reader::new(bytes);
    let Ok(value) = T::get(&mut input) else { return false };
    assert!(input.remaining() <= bytes.len());
    assert_eq!(T::from_bytes(&value.to_bytes()).as_ref(), Ok(&value), "round trip");
    true
}

macro_rules! parts {
    ($($module:path { $($name:ident),* $(,)? })*) => {
        #[allow(clippy::allow_attributes, unused_imports, reason = "globs, so that names stay short")]
        fn parts() -> Vec<Part> {
            let mut parts: Vec<Part> = Vec::new();
            $({
                use $module::*;
                $(parts.push((stringify!($name), part::<$name>));)*
            })*
            parts
        }
    };
}

parts! {
    dfs_core::ids { InodeNo, ChunkId, ChunkVersion, ServerId, DiskId, FsId, ClientId, Epoch, OpId }
    dfs_core::time { WallTime, Timestamp }
    dfs_core::namespace { FileKind, Layout, Body, Inode, Attr, Dentry, NamespaceError }
    dfs_core::chunk { Member, Configuration, Preparing, Chunk, Garbage, ChunkIdentity }
    dfs_core::cluster::overlay { OverlayKind, Overlay }
    dfs_core::cuts { Cut, Cuts }
    dfs_core::event { EventKind, Event }
    dfs_core::job { JobId, JobPhase, JobWork, JobWorker, WorkProgress, Job }
    dfs_core::command {
        NewKind, SetTime, RenameMode, XattrMode, LockKind, Lock, Command, Change, Outcome,
    }
    dfs_core::meta::marks { Mark, Marks, Shown }
    dfs_core::meta { Superblock, FormerDisk, Server, Client, Trashed, Record }
    dfs_proto::meta_rpc {
        MetaRequest, FailedMember, MetaCall, MetaReply, MetaFailure, Welcome, EntryPlus, NameBytes,
        StatfsReply, ChunkLayout, MemberAddress,
    }
    dfs_proto::data_rpc { DataCall, Peer, WireMutation, DataReply, DataFailure }
    dfs_proto::chunk_file { ChunkSpec, Position, ChunkHeader, ClientTable }
    dfs_proto::record_list { RecordList }
    dfs_proto::chunk_journal { SegmentHeader, Op, Event }
}

mod journal {
    pub(super) use dfs_proto::chunk_journal::{Change as JournalChange, Record as JournalRecord};
}

/// Names as in `wire_struct!(NAME` and so on, with the types beside them that macros cannot name twice.
fn every_part() -> Vec<Part> {
    let mut parts = parts();
    parts.push(("Change", part::<journal::JournalChange>));
    parts.push(("Record", part::<journal::JournalRecord>));
    parts.push(("u8", part::<u8>));
    parts.push(("bool", part::<bool>));
    parts.push(("String", part::<String>));
    parts.push(("Vec<u8>", part::<Vec<u8>>));
    parts.push(("Option<T>", part::<Option<(u64, u32)>>));
    parts.push(("Vec<(u32, u32)>", part::<Vec<(u32, u32)>>));
    parts
}

/// Every type that has a byte form, at every place of valid bytes and at some place of mutated ones.
#[test]
fn every_type_with_a_byte_form() {
    let parts = every_part();
    let mut valid: Vec<Vec<u8>> = Vec::new();
    valid.extend(bytes_of(values::commands()));
    valid.extend(bytes_of(values::records()));
    valid.extend(bytes_of(values::meta_requests()));
    valid.extend(bytes_of(values::meta_replies()));
    valid.extend(bytes_of(values::data_calls()));
    valid.extend(bytes_of(values::data_replies()));
    valid.extend(crate::disks::wire_values());
    let mut accepted_by = BTreeSet::new();
    for bytes in &valid {
        for (name, decode) in &parts {
            if (0..bytes.len()).any(|at| decode(&bytes[at..])) {
                accepted_by.insert(*name);
            }
        }
    }
    for (name, _) in &parts {
        assert!(accepted_by.contains(name), "{name}: no value among the valid inputs");
    }
    let turn = RefCell::new(0_usize);
    Target::new("wire", valid).prefixes_may_be_valid().run(|bytes| {
        // Not all types on each input: they take turns.
        let mut turn = turn.borrow_mut();
        *turn = turn.wrapping_add(1);
        let at = turn.wrapping_mul(7919) % bytes.len().max(1);
        for n in 0..4 {
            let (_, decode) = parts[(*turn * 4 + n) % parts.len()];
            decode(&bytes[at.min(bytes.len())..]);
        }
        true
    });
}

/// Every `impl Wire` of the source has a place in [`every_part`].
#[test]
fn no_byte_form_is_left_out() {
    let known: BTreeSet<&str> = every_part().iter().map(|(name, _)| *name).collect();
    let found = crate::source::wire_types();
    assert!(40 < found.len(), "{found:?}");
    // Private, the list in a slot: `chunk_slot`.
    let inside = ["Sums"];
    let missing: Vec<_> = found
        .iter()
        .filter(|name| !known.contains(name.as_str()) && !inside.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "types with a byte form that no target decodes: {missing:?}");
}

/// Every variant of the source is among the values that all mutations start from.
#[test]
fn no_variant_is_left_out() {
    let values = format!(
        "{:?}{:?}{:?}{:?}{:?}{:?}{:?}",
        values::commands(),
        values::records(),
        values::meta_requests(),
        values::meta_replies(),
        values::data_calls(),
        values::data_replies(),
        crate::disks::records(),
    );
    let words: BTreeSet<&str> = values.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let found = crate::source::wire_variants();
    assert!(150 < found.len(), "{found:?}");
    let missing: Vec<_> =
        found.iter().filter(|(_, variant)| !words.contains(variant.as_str())).collect();
    assert!(missing.is_empty(), "variants that no value has: {missing:?}");
}

fn message<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = M::decode(bytes) else { return false };
    let again = M::decode(value.encode_to_vec().as_slice());
    assert!(again.as_ref() == Ok(&value), "round trip: {value:?} {again:?}");
    true
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {
        const MESSAGES: &[Part] = &[$((stringify!($name), message::<control::$name>)),*];
    };
}

messages!(
    HeartbeatRequest,
    DiskMark,
    MemberFailure,
    HeartbeatReply,
    WhatIfRequest,
    WhatIfReply,
    ProfileTimes,
    ExplainRequest,
    ExplainReply,
    ExplainedChunk,
    ExplainedMember,
    IfDied,
    RepairSource,
    StaleReplica,
    ReplicaReport,
    PromiseRequest,
    AdoptRequest,
    ReportRequest,
    VerifyRequest,
    DeleteRequest,
    DeleteReply,
    StatusRequest,
    StatusReply,
    WaitingWrites,
    WaitingWrite,
    EvictRequest,
    EvictReply,
    ClientStatus,
    ServerStatus,
    ChunkTotals,
    LocateRequest,
    LocateReply,
    LocatedChunk,
    LocatedFile,
    FsckRequest,
    FsckFinding,
    Notice,
    AskRequest,
    AskReply,
    WishRequest,
    WishReply,
    Overlay,
    DrillRequest,
    DrillReply,
    EventsRequest,
    EventsReply,
    Event,
    DrainRequest,
    DrainReply,
    DecommissionRequest,
    DecommissionReply,
    RebalanceRequest,
    RebalanceReply,
    RouteRequest,
    RouteReply,
    RouteServer,
    ServerShare,
    TrashListRequest,
    TrashListReply,
    TrashEntry,
    TrashKeepRequest,
    TrashKeepReply,
    TrashRestoreRequest,
    TrashRestoreReply,
    TrashEmptyRequest,
    TrashEmptyReply,
    JobDone,
    JobCreateRequest,
    JobCreateReply,
    JobSetStatesRequest,
    JobWorkerState,
    JobSnapshotRequest,
    JobSnapshotReply,
    JobFetchStateRequest,
    JobFetchStateReply,
    JobSetPhaseRequest,
    JobForgetRequest,
    JobScrubRequest,
    JobListRequest,
    JobListReply,
    JobStatus,
    JobWorkersRequest,
    JobWorkersReply,
    JobWorkerProgress,
    JobHistoryRequest,
    JobHistoryReply,
    JobChange,
);

#[test]
fn messages_of_the_control_plane() {
    let report = control::ReplicaReport {
        chunk: 1,
        promised: 2,
        version: 2,
        seq: u64::MAX,
        len: 5,
        sealed: true,
        dirty: true,
        not_current: true,
        digest: u32::MAX,
        inode: 9,
        index: 1,
        chunk_size: 65536,
        bad_blocks: vec![0, u32::MAX],
        file_damaged: true,
        file_problem: "gone".into(),
        data_end: 5,
        copied_bytes: 4096,
        mended_blocks: 1,
    };
    let beat = control::HeartbeatRequest {
        server: "cs-1".into(),
        disk: vec![1; 16],
        fs: vec![2; 16],
        address: "127.0.0.1:1".into(),
        replicas: vec![report.clone(), report.clone()],
        gone: vec![1, u64::MAX],
        member_failures: vec![control::MemberFailure {
            chunk: 1,
            version: 2,
            server: "cs-2".into(),
            reason: "r".into(),
        }],
        clients: vec![vec![3; 16]],
        device: 1 << 63 | 5,
        mark: Some(control::DiskMark { number: 4, nonce: 1 << 63 | 9 }),
        next_mark: Some(control::DiskMark { number: 5, nonce: 0 }),
        joining: true,
        loss_accepted: true,
        ..Default::default()
    };
    let reply = control::HeartbeatReply {
        status: "alive".into(),
        fs: vec![2; 16],
        chunks_to_delete: vec![1, 2],
        ended_clients: vec![vec![1; 16]],
        stale_replicas: vec![control::StaleReplica { chunk: 1, below: 2 }],
        left_clients: vec![vec![2; 16]],
        pending_mark: Some(control::DiskMark { number: 5, nonce: 1 }),
        repair_sources: vec![control::RepairSource {
            chunk: 1,
            server: "cs-2".into(),
            address: "127.0.0.1:2".into(),
        }],
        ..Default::default()
    };
    let status = control::StatusReply {
        servers: vec![control::ServerStatus {
            id: "cs-1".into(),
            refused: "older".into(),
            ..Default::default()
        }],
        chunks: Some(control::ChunkTotals { total: 3, ..Default::default() }),
        diverging_chunks: 1,
        notices: vec![control::Notice { text: "n".into(), at_ns: -1 }],
        client_list: vec![control::ClientStatus {
            last_heard_ms_ago: -1,
            ends_in_ms: Some(0),
            ..Default::default()
        }],
        waiting_writes: Some(control::WaitingWrites {
            total: 1,
            longest: vec![control::WaitingWrite { reason: "r".into(), ..Default::default() }],
        }),
        ..Default::default()
    };
    let located = control::LocatedChunk { servers: vec!["cs-1".into()], ..Default::default() };
    let adopt = control::AdoptRequest {
        epoch: 1,
        source_server: "cs-1".into(),
        source_address: "127.0.0.1:1".into(),
        ..Default::default()
    };
    let what_if = control::WhatIfReply {
        after: Some(control::ChunkTotals { total: 3, endangered: 3, ..Default::default() }),
        profiles: vec![control::ProfileTimes { name: "drill".into(), ..Default::default() }],
        copy_rate: Some(0),
        ..Default::default()
    };
    let explained = control::ExplainReply {
        chunks: vec![control::ExplainedChunk {
            members: vec![control::ExplainedMember { server: "cs-1".into(), ..Default::default() }],
            if_died: vec![control::IfDied { server: "cs-1".into(), ..Default::default() }],
            exposed_ms: Some(1),
            ..Default::default()
        }],
        next: Some(500),
        ..Default::default()
    };
    let finding = control::FsckFinding { kind: "violation".into(), text: "t".into(), checked: 1 };
    let valid = vec![
        report.encode_to_vec(),
        beat.encode_to_vec(),
        reply.encode_to_vec(),
        status.encode_to_vec(),
        control::LocateReply { chunks: vec![located] }.encode_to_vec(),
        adopt.encode_to_vec(),
        finding.encode_to_vec(),
        control::WhatIfRequest { kill: vec!["cs-2".into(), "cs-5".into()] }.encode_to_vec(),
        what_if.encode_to_vec(),
        explained.encode_to_vec(),
        control::ExplainRequest { inode: 9, first: u64::MAX }.encode_to_vec(),
        control::VerifyRequest { chunks: vec![1, u64::MAX], paced: true }.encode_to_vec(),
        control::EvictRequest { client: vec![1; 16] }.encode_to_vec(),
        control::DeleteRequest { chunks: vec![1, 2], epoch: 1, nonce: 2 }.encode_to_vec(),
    ];
    let overlay = control::Overlay {
        kind: "suspended".into(),
        since_ns: -1,
        until_ns: Some(i64::MAX),
        by: "ada".into(),
    };
    let event = control::Event { server: "cs-1".into(), lasted_ms: Some(0), ..Default::default() };
    let wish = control::WishRequest {
        server: "cs-1".into(),
        overlay: "suspended".into(),
        for_ms: Some(u64::MAX),
        ..Default::default()
    };
    let mut valid = valid;
    valid.extend([
        control::WishReply { overlays: vec![overlay], ..Default::default() }.encode_to_vec(),
        control::EventsReply { events: vec![event], next: 9 }.encode_to_vec(),
        control::EventsRequest { last: Some(0), ..Default::default() }.encode_to_vec(),
        control::DrillReply { safe_ms: Some(1), noticed_ms: Some(0), ..Default::default() }
            .encode_to_vec(),
        control::AskReply { suspended: true, fs: vec![1; 16], ..Default::default() }
            .encode_to_vec(),
        control::AskRequest { server: "cs-1".into(), fs: vec![1; 16] }.encode_to_vec(),
        wish.encode_to_vec(),
        control::JobSetStatesRequest {
            id: 1,
            states: vec![control::JobWorkerState { worker: 2, state: u64::MAX }],
        }
        .encode_to_vec(),
        control::JobWorkersReply {
            job: Some(control::JobStatus { ended_ns: Some(-1), ..Default::default() }),
            workers: vec![control::JobWorkerProgress { worker: 1, ..Default::default() }],
        }
        .encode_to_vec(),
        control::JobFetchStateRequest { snapshot: Some(0), ..Default::default() }.encode_to_vec(),
    ]);
    // A message without its last fields is a message.
    Target::new("control", valid).prefixes_may_be_valid().run(|bytes| {
        let accepted: Vec<bool> = MESSAGES.iter().map(|(_, decode)| decode(bytes)).collect();
        accepted.contains(&true)
    });
}

#[test]
fn no_message_of_the_control_plane_is_left_out() {
    let known: BTreeSet<&str> = MESSAGES.iter().map(|(name, _)| *name).collect();
    let text = ["control", "servers", "jobs", "trash"]
        .map(|name| {
            let path = format!("dfs-proto/proto/{name}.proto");
            std::fs::read_to_string(tests::repository().join(path)).unwrap()
        })
        .concat();
    let found: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("message "))
        .filter_map(|rest| rest.split([' ', '{']).next())
        .collect();
    assert_eq!(found, known);
}
