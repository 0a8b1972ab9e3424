//! Every decoder of bytes from disks, networks and people, fed with a kept corpus and seeded mutations of it.
//!
//! A decoder is total: any bytes give a value or an error, never a panic, and memory bounded by the input. What is
//! accepted must also survive a round trip, or two readers could disagree. `DFS_FUZZ_MS` (default 1500) is the time
//! for each decoder, `DFS_FUZZ_SEED` the seed; a failure prints seed and input, which belong into `corpus/`.
#![allow(clippy::wildcard_enum_match_arm, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod corpus;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dfs_core::command::{Command, Outcome};
use dfs_core::meta::Record;
use dfs_proto::codec::Wire;
use dfs_proto::convert::{decode_key, encode_key};
use dfs_proto::data_rpc::{DataCall, DataReply};
use dfs_proto::frame::{FrameHeader, HEADER_BYTES};
use dfs_proto::frame_conn::{read_frame, write_frame};
use dfs_proto::meta_rpc::{MetaReply, MetaRequest};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}='{text}' is no number"))
    })
}

/// xorshift64*: seeded, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        match random.below(7) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(random.below(bytes.len() + 1)),
            2 => {
                let at = random.below(bytes.len() + 1);
                bytes.insert(at, random.next() as u8);
            }
            3 if 4 <= bytes.len() => {
                // Lengths and counts are where decoders break.
                let at = random.below(bytes.len() - 3);
                let extreme = [0, 1, 0x7fff_ffff, u32::MAX, bytes.len() as u32][random.below(5)];
                bytes[at..at + 4].copy_from_slice(&extreme.to_le_bytes());
            }
            4 => {
                let other = &inputs[random.below(inputs.len())];
                let (at, from) = (random.below(bytes.len() + 1), random.below(other.len() + 1));
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            5 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes.remove(at);
            }
            _ => bytes.extend((0..random.below(16)).map(|_| random.next() as u8)),
        }
    }
    bytes
}

fn kept(name: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// Runs `decode` on the corpus, the kept inputs and mutations of both; `decode` says whether it accepted the bytes.
fn fuzz(name: &str, valid: Vec<Vec<u8>>, decode: impl Fn(&[u8]) -> bool) {
    let seed = setting("DFS_FUZZ_SEED", 0x00d5_eed5);
    let mut random = Random(seed | 1);
    for bytes in &valid {
        assert!(decode(bytes), "{name}: a valid input of the corpus is refused: {bytes:02x?}");
    }
    let mut inputs = valid;
    inputs.extend(kept(name));
    let (start, limit) = (Instant::now(), Duration::from_millis(setting("DFS_FUZZ_MS", 1500)));
    let (mut tried, mut accepted) = (0_u64, 0_u64);
    while start.elapsed() < limit {
        let bytes = mutate(&mut random, &inputs);
        match catch_unwind(AssertUnwindSafe(|| decode(&bytes))) {
            Ok(ok) => accepted += u64::from(ok),
            Err(_) => panic!("{name}: seed {seed}: decoder panicked on {bytes:02x?}"),
        }
        tried += 1;
    }
    println!("{name}: {tried} inputs, {accepted} accepted, seed {seed}");
    assert!(1000 < tried, "{name}: only {tried} inputs were tried");
}

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
    fuzz("command", bytes_of(corpus::commands()), round_trip::<Command>);
}

#[test]
fn outcomes_of_commands() {
    fuzz("outcome", bytes_of(corpus::outcomes()), round_trip::<Outcome>);
}

#[test]
fn records_of_the_store() {
    fuzz("record", bytes_of(corpus::records()), round_trip::<Record>);
}

#[test]
fn keys_of_the_store_and_their_order() {
    let keys = corpus::keys();
    for (a, b) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
        assert_eq!(a.cmp(b), encode_key(a).cmp(&encode_key(b)), "{a:?} {b:?}");
    }
    fuzz("key", keys.iter().map(encode_key).collect(), |bytes| {
        let Ok(key) = decode_key(bytes) else { return false };
        assert_eq!(encode_key(&key), bytes);
        true
    });
}

#[test]
fn requests_to_the_master() {
    fuzz("meta_request", bytes_of(corpus::meta_requests()), round_trip::<MetaRequest>);
}

#[test]
fn replies_of_the_master() {
    fuzz("meta_reply", bytes_of(corpus::meta_replies()), round_trip::<MetaReply>);
}

#[test]
fn requests_to_chunkservers() {
    fuzz("data_call", bytes_of(corpus::data_calls()), round_trip::<DataCall>);
}

#[test]
fn replies_of_chunkservers() {
    fuzz("data_reply", bytes_of(corpus::data_replies()), round_trip::<DataReply>);
}

#[test]
fn frames_on_a_socket() {
    let frame = |args: &[u8], payload: &[u8]| {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, dfs_proto::frame::FrameKind::Request, 7, args, &[payload], None)
            .unwrap();
        bytes
    };
    let valid = vec![frame(b"", b""), frame(b"arguments", b""), frame(b"a", &[9; 5000])];
    fuzz("frame", valid, |mut bytes| matches!(read_frame(&mut bytes), Ok(Some(_))));
}

#[test]
fn frame_headers() {
    let header = FrameHeader::new(dfs_proto::frame::FrameKind::Reply, 1, b"x", 10, 11);
    fuzz("frame_header", vec![header.encode().to_vec()], |bytes| {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
        let Ok(header) = FrameHeader::decode(bytes) else { return false };
        assert_eq!(header.encode(), *bytes);
        true
    });
}

#[test]
fn server_ids_that_people_type() {
    let valid = ["cs-1", "cs-12", "cs-4294967295"].map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz("server_id", valid, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        text.parse::<dfs_core::ids::ServerId>().is_ok()
    });
}
