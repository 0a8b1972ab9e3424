//! Requests to chunkservers, in frames ([`crate::frame`]): the call in the arguments, file bytes as the payload.
//!
//! Clients write and append at the primary and read anywhere; the primary sends [`DataCall::Replicate`] to the other
//! members on one connection each, in sequence order. The layout travels with each write: having it proves that its
//! version was activated.

use dfs_core::ids::{ChunkId, ChunkVersion, ClientId, Epoch, FsId, ServerId};

use crate::codec::{DecodeError, wire_enum};
use crate::meta_rpc::ChunkLayout;

/// Most bytes that one [`DataCall::Search`] looks through: an answer comes soon, and may be given by another server.
pub const SEARCH_BYTES_MAX: u32 = 4 << 20;
/// The list in one [`DataReply::Records`] ends with the record that brings it to so many bytes.
pub const RECORDS_BYTES_MAX: usize = 64 << 10;

/// Arguments of a request frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DataCall {
    /// First call on a connection.
    Hello { fs: FsId, from: Peer },
    /// Bytes `offset..offset+len` of the chunk; fewer at its end. Reply payload: the bytes.
    Read { chunk: ChunkId, version: ChunkVersion, offset: u64, len: u32 },
    /// Length and position of a replica; at the primary, of what is acknowledged.
    Stat { chunk: ChunkId, version: ChunkVersion },
    /// One mutation at the primary. `counter` is per chunk and client, taken in order.
    Mutate {
        layout: ChunkLayout,
        client: ClientId,
        counter: u64,
        low_water: u64,
        mutation: WireMutation,
    },
    /// All operations of the chunk so far are on every member's disk when this is answered.
    Sync { layout: ChunkLayout },

    // Between members.
    /// From the primary: operation `seq` of `version`.
    Replicate {
        layout: ChunkLayout,
        seq: u64,
        client: ClientId,
        counter: u64,
        low_water: u64,
        mutation: WireMutation,
        /// Where an append went.
        append: Option<(u64, u64)>,
        /// All members have applied everything up to here: a member may serve it.
        committed: u64,
        /// The append is a record of a record log.
        record: bool,
    },
    /// Make everything up to `seq` stable here.
    SyncMember { chunk: ChunkId, version: ChunkVersion, seq: u64 },
    /// All members have everything up to `seq` on disk: DIRTY may be cleared.
    AllStable { chunk: ChunkId, version: ChunkVersion, seq: u64 },
    /// For adoption and repair: report, block checksums, client table and record list of a replica (reply payload: see
    /// `Sums`).
    FetchSums { chunk: ChunkId },
    /// One block for adoption, refused if the replica is no longer at (`source_version`, `source_seq`).
    FetchBlock { chunk: ChunkId, source_version: ChunkVersion, source_seq: u64, block: u32 },
    /// One-way, from the primary: everything up to `seq` is applied by all members.
    Committed { chunk: ChunkId, version: ChunkVersion, seq: u64 },
    /// Answered with `Applied { seq: 0, free_bytes }`.
    Space,
    /// As `Read`, by a client that reads the file itself ([`crate::local_door`]). Reply payload: checksums.
    ReadSums { chunk: ChunkId, version: ChunkVersion, offset: u64, len: u32 },
    /// Where files are handed out to clients on the same machine.
    LocalDoor,
    /// Where `word` stands in bytes `offset..offset+len` of the chunk, at most [`SEARCH_BYTES_MAX`]; `whole` as in
    /// [`crate::search`]. The bytes are verified and committed ones, as for `Read`.
    Search {
        chunk: ChunkId,
        version: ChunkVersion,
        offset: u64,
        len: u32,
        word: Vec<u8>,
        whole: bool,
        /// No offsets are wanted, but their number.
        count_only: bool,
    },
    /// The records of a record log's chunk that begin at `from` or behind it, in order, under the rules of `Read`.
    Records { chunk: ChunkId, version: ChunkVersion, from: u64 },
    /// One-way, from whoever got `BadBlock`: these members may have the right bytes.
    Repair { layout: ChunkLayout, block: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Client(ClientId),
    Server(ServerId),
}

/// What to do to a chunk; the bytes of `Write` and `Append` are the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireMutation {
    Write {
        offset: u64,
    },
    /// The primary chooses the offset. `record`: never split, pads and seals if it does not fit (record log);
    /// otherwise what fits is appended and the rest left to the next chunk, whose first bytes are kept for it.
    /// `at_least`: the file's size says that the chunk is at least this long.
    Append {
        record: bool,
        at_least: u64,
    },
    /// No more appends; between members.
    Seal,
    /// Zeros over `offset..offset+len`, never beyond the end.
    Zero {
        offset: u64,
        len: u64,
    },
    Truncate {
        len: u64,
    },
}

/// Arguments of a reply frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DataReply {
    Welcome {
        fs: FsId,
        server: ServerId,
    },
    /// The payload is the bytes; `replica_len` the chunk's length there.
    Read {
        replica_len: u64,
    },
    Stat {
        version: ChunkVersion,
        seq: u64,
        len: u64,
        sealed: bool,
    },
    /// Acknowledged: every member's kernel has it. `len`: the chunk's length after it.
    Mutated {
        seq: u64,
        len: u64,
    },
    /// Stable on all members. `appended` < asked: the chunk is full, the rest, `carried` bytes, goes to the first bytes of
    /// the next one, which nobody else takes as long as this operation is above its client's low-water mark. Without
    /// any the file was cut since, and the rest with it.
    Appended {
        seq: u64,
        offset: u64,
        appended: u64,
        carried: u64,
        sealed: bool,
    },
    Synced {
        seq: u64,
        len: u64,
    },
    /// A member applied `seq` (or, for `SyncMember`, has it on disk). `free_bytes`: its space, for credits.
    Applied {
        seq: u64,
        free_bytes: u64,
    },
    /// Payload: u32 little-endian block checksums, then `client_table_bytes` and `record_list_bytes` opaque bytes.
    Sums {
        version: ChunkVersion,
        seq: u64,
        len: u64,
        sealed: bool,
        digest: u32,
        client_table_bytes: u32,
        record_list_bytes: u32,
    },
    /// Payload: the block.
    Block {
        crc: u32,
    },
    /// `in_file`: the file holds it all. Payload: u32 little-endian checksums of the blocks in question.
    ReadSums {
        replica_len: u64,
        in_file: bool,
    },
    LocalDoor {
        name: String,
        token: Vec<u8>,
    },
    /// `scanned` bytes from `offset` on were looked through: fewer than asked at the replica's end, `replica_len`, or
    /// when there were many hits. `hits` lie in them with all that decides them, and the payload has their distances
    /// from `offset` (see [`encode_hits`]), unless only the number was wanted. `head` and `tail`: the first and last bytes
    /// of what was scanned, as many as a hit may share with its neighbours.
    Search {
        replica_len: u64,
        scanned: u32,
        hits: u64,
        head: Vec<u8>,
        tail: Vec<u8>,
    },
    /// Payload: a [`crate::record_list::RecordList`], see [`RECORDS_BYTES_MAX`]. `more`: there are others behind the
    /// last of it. `all_known`: false if some were appended before lists of them were kept.
    Records {
        replica_len: u64,
        more: bool,
        all_known: bool,
    },
    Failed(DataFailure),
}

/// Why a chunkserver refused. The type says what the asker does next.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DataFailure {
    /// This server has no such replica. For reads of unborn chunks: a hole.
    #[error("no replica of this chunk here")]
    NoReplica,
    /// Get a new layout: a higher version was promised, or another one is held.
    #[error("version {asked} refused, promised {promised}, have {have}")]
    StaleVersion { asked: u64, promised: u64, have: u64 },
    /// The replica may lack operations: ask another member.
    #[error("replica not current after a reboot")]
    NotCurrent,
    #[error("not the primary of this version")]
    NotPrimary,
    /// The primary cannot reach or agree with this member: report it to the master, get a new layout, retry.
    #[error("member {server} failed: {reason}")]
    MemberFailed { server: ServerId, reason: String },
    /// Ask another member; this one reports and repairs itself.
    #[error("block {block} has a bad checksum")]
    BadBlock { block: u32 },
    #[error("no space on {server}")]
    NoSpace { server: ServerId },
    /// Applied once, answered, acknowledged by the client: its result is gone.
    #[error("outcome unknown")]
    OutcomeUnknown,
    /// Appends go to the next chunk, behind its first `carry` bytes: they belong to an operation that crossed.
    #[error("chunk is full or sealed")]
    ChunkFull { carry: u64 },
    /// A member: sequence numbers are missing before this one.
    #[error("sequence gap: have {have}")]
    Gap { have: u64 },
    /// The server fenced itself (no answer from the master for too long, or suspended).
    #[error("server is fenced: {reason}")]
    Fenced { reason: String },
    #[error("too many operations in flight")]
    Busy,
    #[error("bad request: {reason}")]
    BadRequest { reason: String },
    /// The master's epoch in the layout is lower than one seen here.
    #[error("epoch {} is over, {} reigns", asked.0, current.0)]
    StaleEpoch { asked: Epoch, current: Epoch },
    #[error("disk error: {reason}")]
    Disk { reason: String },
}

wire_enum!(DataCall {
    1 = Hello { fs, from },
    2 = Read { chunk, version, offset, len },
    3 = Stat { chunk, version },
    4 = Mutate { layout, client, counter, low_water, mutation },
    5 = Sync { layout },
    20 = Replicate { layout, seq, client, counter, low_water, mutation, append, committed, record },
    21 = SyncMember { chunk, version, seq },
    22 = AllStable { chunk, version, seq },
    23 = FetchSums { chunk },
    24 = FetchBlock { chunk, source_version, source_seq, block },
    25 = Committed { chunk, version, seq },
    26 = Space,
    27 = Repair { layout, block },
    28 = ReadSums { chunk, version, offset, len },
    29 = LocalDoor,
    30 = Search { chunk, version, offset, len, word, whole, count_only },
    31 = Records { chunk, version, from },
});
wire_enum!(Peer { 1 = Client(client), 2 = Server(server) });
wire_enum!(WireMutation {
    1 = Write { offset },
    2 = Append { record, at_least },
    3 = Zero { offset, len },
    4 = Truncate { len },
    5 = Seal,
});
wire_enum!(DataReply {
    1 = Welcome { fs, server },
    2 = Read { replica_len },
    3 = Stat { version, seq, len, sealed },
    4 = Mutated { seq, len },
    5 = Appended { seq, offset, appended, carried, sealed },
    6 = Synced { seq, len },
    7 = Applied { seq, free_bytes },
    8 = Sums { version, seq, len, sealed, digest, client_table_bytes, record_list_bytes },
    9 = Block { crc },
    10 = ReadSums { replica_len, in_file },
    11 = LocalDoor { name, token },
    12 = Search { replica_len, scanned, hits, head, tail },
    13 = Records { replica_len, more, all_known },
    20 = Failed(failure),
});
wire_enum!(DataFailure {
    1 = NoReplica,
    2 = StaleVersion { asked, promised, have },
    3 = NotCurrent,
    4 = NotPrimary,
    5 = MemberFailed { server, reason },
    6 = BadBlock { block },
    7 = NoSpace { server },
    8 = OutcomeUnknown,
    9 = ChunkFull { carry },
    10 = Gap { have },
    11 = Fenced { reason },
    12 = Busy,
    13 = BadRequest { reason },
    14 = StaleEpoch { asked, current },
    15 = Disk { reason },
});

/// Payload of [`DataReply::Sums`].
#[must_use]
pub fn encode_sums(sums: &[u32], client_table: &[u8], record_list: &[u8]) -> Vec<u8> {
    let mut payload: Vec<u8> = sums.iter().flat_map(|crc| crc.to_le_bytes()).collect();
    payload.extend_from_slice(client_table);
    payload.extend_from_slice(record_list);
    payload
}

/// What [`encode_sums`] made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecodedSums<'a> {
    pub sums: Vec<u32>,
    pub client_table: &'a [u8],
    pub record_list: &'a [u8],
}

/// Takes apart what [`encode_sums`] made.
///
/// # Errors
/// `Range` if the length fits no list of checksums.
pub fn decode_sums(
    payload: &[u8],
    client_table_bytes: u32,
    record_list_bytes: u32,
) -> Result<DecodedSums<'_>, DecodeError> {
    let wrong = DecodeError::Range("length of checksums");
    let lists = u64::from(client_table_bytes) + u64::from(record_list_bytes);
    let at = usize::try_from(lists).ok().and_then(|lists| payload.len().checked_sub(lists));
    let at = at.filter(|at| at % 4 == 0).ok_or(wrong)?;
    let (sums, lists) = payload.split_at_checked(at).ok_or(wrong)?;
    let (client_table, record_list) =
        lists.split_at_checked(client_table_bytes as usize).ok_or(wrong)?;
    let (words, _rest) = sums.as_chunks::<4>();
    let sums = words.iter().copied().map(u32::from_le_bytes).collect();
    Ok(DecodedSums { sums, client_table, record_list })
}

/// Payload of [`DataReply::Search`].
#[must_use]
pub fn encode_hits(hits: &[u32]) -> Vec<u8> {
    hits.iter().flat_map(|hit| hit.to_le_bytes()).collect()
}

/// The hits of what [`encode_hits`] made.
///
/// # Errors
/// `Range` if the payload is no list of numbers, or they do not rise and lie below `scanned`.
pub fn decode_hits(payload: &[u8], scanned: u32) -> Result<Vec<u32>, DecodeError> {
    let (words, rest) = payload.as_chunks::<4>();
    let hits: Vec<u32> = words.iter().copied().map(u32::from_le_bytes).collect();
    let risen = hits.is_sorted_by(|a, b| a < b) && hits.last().is_none_or(|last| *last < scanned);
    if rest.is_empty() && risen { Ok(hits) } else { Err(DecodeError::Range("hits")) }
}
