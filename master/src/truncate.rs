//! Truncation of files in chunks (DECISIONS 8).
//!
//! Order: no layouts to write at or behind the cut are given out → layouts that are out are fenced → intent logged,
//! freed chunks taken out of the file, a lower size shown → the tail cut through its primary, stable → the end logged →
//! layouts again, the reply. So whoever sees the lower size, and writes, writes behind the cut. A master that stops in
//! between finishes what it finds logged when it starts again.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a request has one kind of answer, every other one is an error by itself"
)]

use std::collections::hash_map::Entry;
use std::time::Duration;

use dfs_core::command::{Change, Outcome};
use dfs_core::ids::{ChunkId, ClientId, InodeNo, OpId};
use dfs_core::meta::{self, Key, MetaStore, Record};
use dfs_core::namespace::{Body, NamespaceError};
use dfs_core::results::Results;
use dfs_core::time::Timestamp;
use dfs_proto::chunk_file::BLOCK_BYTES_MAX;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, Peer, WireMutation};
use dfs_proto::frame_conn::LoneClient;
use dfs_proto::meta_rpc::{ChunkLayout, MetaFailure};
use dfs_service::conn::{self, Door};

use crate::chunks::WRITE_LAYOUT_MS;
use crate::state::{Master, accepted, lock, now};

const DATA_CALL_MAX: Duration = Duration::from_secs(10);
const TAIL_ATTEMPTS: u32 = 8;
const FENCES_AT_ONCE: usize = 8;

impl Master {
    /// Cuts or grows `ino` to `size`; exactly once for `id` (parts 0 and 1).
    ///
    /// # Errors
    /// As changes, and `Unavailable` if the tail's members cannot be reached: the client asks again with the same id.
    pub fn truncate(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        size: u64,
    ) -> Result<Outcome, MetaFailure> {
        self.while_truncating(ino, size, || self.truncate_alone(id, results, ino, size))
    }

    /// One at a time per file; a repeated request waits for the first and then finds its answer.
    fn while_truncating(
        &self,
        ino: InodeNo,
        size: u64,
        then: impl FnOnce() -> Result<Outcome, MetaFailure>,
    ) -> Result<Outcome, MetaFailure> {
        if !self.begin_truncating(ino, size) {
            return Err(MetaFailure::Busy { retry_after_ms: 10 });
        }
        let outcome = then();
        lock(&self.truncating).remove(&ino);
        outcome
    }

    fn truncate_alone(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        size: u64,
    ) -> Result<Outcome, MetaFailure> {
        if let Some(Record::Reply(answered)) = self.reader().get(&Key::Reply(id.client, id.op, 1)) {
            return Ok(answered);
        }
        let inode = self.inode(ino)?;
        let inline = match &inode.body {
            Body::Inline(_) => true,
            Body::Chunks { .. } => false,
            Body::Directory { .. } => {
                return Err(MetaFailure::Refused(NamespaceError::IsDirectory));
            }
            Body::Symlink(_) | Body::Special => {
                return Err(MetaFailure::Refused(NamespaceError::Invalid(
                    "not a regular file".to_owned(),
                )));
            }
        };
        if inline {
            return self.propose(
                Some((OpId { part: 1, ..id }, results)),
                Change::InlineTruncate { ino, size },
            );
        }
        // Also when the file grows: a writer may have chunks beyond the logged size.
        let chunk_size = inode.layout.chunk_size.max(1);
        let freed = self.chunks_beyond(ino, size, chunk_size);
        self.fence_writers(id.client, ino, size, chunk_size, &freed)
            .map_err(|reason| MetaFailure::Unavailable { reason, retry_after_ms: 100 })?;
        if meta::truncating(&self.reader(), ino).is_none() {
            self.check_block_at_cut(ino, size, chunk_size)?;
        }
        let begun = self.propose(
            Some((OpId { part: 0, ..id }, results)),
            Change::TruncateBegin { ino, size },
        )?;
        let tail = match accepted(begun)? {
            Outcome::Truncating { tail, .. } => tail,
            other => {
                return Err(MetaFailure::BadRequest {
                    reason: format!("truncate was answered {other:?}"),
                });
            }
        };
        for chunk in &freed {
            lock(&self.write_layouts).remove(chunk);
        }
        // Asked again by its client, after it was finished for it: what is behind the cut by now was written since.
        if meta::truncating(&self.reader(), ino) != Some(size) {
            let attr = meta::attr(&self.reader(), ino);
            return attr.map(Outcome::Attr).ok_or(MetaFailure::Refused(NamespaceError::Stale));
        }
        self.cut_tail(tail)?;
        self.propose(Some((OpId { part: 1, ..id }, results)), Change::TruncateEnd { ino, size })
    }

    /// Makes `ino` at least `size` long, exactly once for `id`. Who appends to the chunk that it will end in learns so
    /// before he goes on there.
    ///
    /// # Errors
    /// As [`Self::truncate`].
    pub fn grow(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        size: u64,
    ) -> Result<Outcome, MetaFailure> {
        self.while_truncating(ino, size, || self.grow_alone(id, results, ino, size))
    }

    fn grow_alone(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        size: u64,
    ) -> Result<Outcome, MetaFailure> {
        if let Some(Record::Reply(answered)) = self.reader().get(&Key::Reply(id.client, id.op, 0)) {
            return Ok(answered);
        }
        let inode = self.inode(ino)?;
        if matches!(inode.body, Body::Chunks { .. }) && inode.size < size {
            let chunk_size = inode.layout.chunk_size.max(1);
            self.fence_writers(id.client, ino, size, chunk_size, &[])
                .map_err(|reason| MetaFailure::Unavailable { reason, retry_after_ms: 100 })?;
        }
        self.propose(Some((id, results)), Change::Grow { ino, size })
    }

    fn begin_truncating(&self, ino: InodeNo, size: u64) -> bool {
        match lock(&self.truncating).entry(ino) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(size);
                true
            }
        }
    }

    /// Whether chunk `index` of a file may still be cut by a truncation that is under way.
    #[must_use]
    pub fn may_be_cut(&self, ino: InodeNo, index: u64, chunk_size: u64) -> bool {
        let running = lock(&self.truncating).get(&ino).copied();
        let logged = meta::truncating(&self.reader(), ino);
        running.into_iter().chain(logged).any(|size| last_chunk(size, chunk_size) <= index)
    }

    /// Whoever else may still write behind the cut is refused from here on: their layouts are of an older version.
    fn fence_writers(
        &self,
        client: ClientId,
        ino: InodeNo,
        size: u64,
        chunk_size: u64,
        freed: &[ChunkId],
    ) -> Result<(), String> {
        let tail = (0 < size).then(|| self.file_chunk(ino, last_chunk(size, chunk_size)));
        let chunks: Vec<ChunkId> = freed.iter().copied().chain(tail.flatten()).collect();
        self.fence(client, &chunks)
    }

    fn fence(&self, client: ClientId, chunks: &[ChunkId]) -> Result<(), String> {
        let is_out = |chunk: &&ChunkId| self.write_layout_is_out(**chunk, client);
        let out: Vec<ChunkId> = chunks.iter().filter(is_out).copied().collect();
        // Each is a few round trips to its members.
        for some in out.chunks(FENCES_AT_ONCE) {
            std::thread::scope(|scope| {
                let fence = |chunk: &ChunkId| {
                    let chunk = *chunk;
                    scope.spawn(move || self.reconfigure(chunk, None))
                };
                let running: Vec<_> = some.iter().map(fence).collect();
                running.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| Err("a thread that fences failed".to_owned()))
                })
            })?;
            let now = now();
            for chunk in some {
                lock(&self.fenced).insert(*chunk, now);
                lock(&self.write_layouts).remove(chunk);
            }
        }
        Ok(())
    }

    /// Whether somebody may still try to write a freed chunk with a layout of before. Without its replicas he would begin
    /// it anew, and be told that his bytes are stable.
    #[must_use]
    pub fn is_fenced_lately(&self, chunk: ChunkId) -> bool {
        let now = now();
        let lately = |since: Timestamp| now.nanos_since(since) < WRITE_LAYOUT_MS * 1_000_000;
        // What the master before this one fenced is not known.
        lately(self.started) || lock(&self.fenced).get(&chunk).copied().is_some_and(lately)
    }

    /// Takes chunks out of `ino`: holes from now on.
    ///
    /// # Errors
    /// As [`Self::truncate`].
    pub fn free_chunks(
        &self,
        id: OpId,
        results: &Results,
        (ino, first, count): (InodeNo, u64, u64),
    ) -> Result<Outcome, MetaFailure> {
        self.while_freeing(ino, first, || self.free_alone(id, results, (ino, first, count)))
    }

    /// Frees chunks from `first` on that lie wholly behind the logged size of `ino`, unless somebody else writes it: what
    /// a client stored there is behind bytes that found no room. Answers the attributes, also if nothing was done.
    ///
    /// # Errors
    /// As [`Self::truncate`]; `Unavailable` while it is not known who writes.
    pub fn free_unlogged(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        first: u64,
    ) -> Result<Outcome, MetaFailure> {
        self.while_freeing(ino, first, || self.free_unlogged_alone(id, results, ino, first))
    }

    fn free_unlogged_alone(
        &self,
        id: OpId,
        results: &Results,
        ino: InodeNo,
        first: u64,
    ) -> Result<Outcome, MetaFailure> {
        if let Some(Record::Reply(answered)) = self.reader().get(&Key::Reply(id.client, id.op, 0)) {
            return Ok(answered);
        }
        let all_known = WRITE_LAYOUT_MS <= self.uptime_ms();
        let alone = lock(&self.clients).writes_alone(id.client, ino, all_known);
        let Some(alone) = alone else {
            return Err(MetaFailure::Unavailable {
                reason: "who writes the file is not known yet".to_owned(),
                retry_after_ms: 200,
            });
        };
        // Looked at after the writers: whoever was done by then has logged its size.
        let inode = self.inode(ino)?;
        // What is in the inode has no chunks: the first one was refused.
        if !alone || !matches!(inode.body, Body::Chunks { .. }) {
            return Ok(Outcome::Attr(meta::attr_of(&self.reader(), ino, &inode)));
        }
        let first = first.max(inode.size.div_ceil(inode.layout.chunk_size.max(1)));
        self.free_alone(id, results, (ino, first, u64::MAX))
    }

    /// No layouts at or behind chunk `first` are given out from here on.
    fn while_freeing(
        &self,
        ino: InodeNo,
        first: u64,
        then: impl FnOnce() -> Result<Outcome, MetaFailure>,
    ) -> Result<Outcome, MetaFailure> {
        let chunk_size = self.inode(ino)?.layout.chunk_size.max(1);
        self.while_truncating(ino, first.saturating_mul(chunk_size).saturating_add(1), then)
    }

    fn free_alone(
        &self,
        id: OpId,
        results: &Results,
        (ino, first, count): (InodeNo, u64, u64),
    ) -> Result<Outcome, MetaFailure> {
        let freed: Vec<ChunkId> = self
            .chunks_of(ino, first)
            .into_iter()
            .take_while(|(index, _)| index - first < count)
            .map(|(_, chunk)| chunk)
            .collect();
        self.fence(id.client, &freed)
            .map_err(|reason| MetaFailure::Unavailable { reason, retry_after_ms: 100 })?;
        self.propose(Some((id, results)), Change::FreeChunks { ino, first, count })
    }

    fn chunks_beyond(&self, ino: InodeNo, size: u64, chunk_size: u64) -> Vec<ChunkId> {
        let found = self.chunks_of(ino, size.div_ceil(chunk_size));
        found.into_iter().map(|(_, chunk)| chunk).collect()
    }

    fn chunks_of(&self, ino: InodeNo, first: u64) -> Vec<(u64, ChunkId)> {
        let reader = self.reader();
        reader
            .range(&Key::FileChunk(ino, first), &Key::FileChunk(InodeNo(ino.0 + 1), 0), usize::MAX)
            .into_iter()
            .filter_map(|(key, record)| match (key, record) {
                (Key::FileChunk(_, index), Record::FileChunk(chunk)) => Some((index, chunk)),
                _ => None,
            })
            .collect()
    }

    /// Half a block can only be kept by who can read it. Found out after the intent is logged, nothing more could be
    /// written to the chunk.
    fn check_block_at_cut(
        &self,
        ino: InodeNo,
        size: u64,
        chunk_size: u64,
    ) -> Result<(), MetaFailure> {
        let (index, within) = (size / chunk_size, size % chunk_size);
        if within.is_multiple_of(chunk_size.min(BLOCK_BYTES_MAX)) {
            return Ok(());
        }
        let Some(Record::FileChunk(chunk)) = self.reader().get(&Key::FileChunk(ino, index)) else {
            return Ok(());
        };
        // Without servers it is not known: the intent is logged, and the cut waits for them.
        let Ok(layout) = self.existing_layout_to_write(chunk, Duration::from_secs(2)) else {
            return Ok(());
        };
        let read = DataCall::Read { chunk, version: layout.version, offset: within - 1, len: 1 };
        let found = self.call_primary(&layout).and_then(|mut client| answer(&mut client, &read));
        match found {
            // It asks the other members for the block; the client asks again meanwhile.
            Ok(Err(failure @ DataFailure::BadBlock { .. })) => Err(MetaFailure::Unavailable {
                reason: format!("cut chunk {}: {failure}", chunk.0),
                retry_after_ms: 200,
            }),
            // Whatever else is wrong the cut itself meets again, and goes on without that member.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn cut_tail(&self, tail: Option<(ChunkId, u64)>) -> Result<(), MetaFailure> {
        let Some((chunk, len)) = tail else { return Ok(()) };
        let mut last = String::new();
        for _ in 0..TAIL_ATTEMPTS {
            let layout = self.existing_layout_to_write(chunk, Duration::from_secs(2))?;
            match self.cut_at_primary(&layout, len) {
                Ok(()) => return Ok(()),
                Err(reason) => {
                    last = reason;
                    // The primary or a member failed: the next configuration is without it.
                    if let Err(reason) = self.reconfigure(chunk, None) {
                        last = reason;
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        }
        Err(MetaFailure::Unavailable {
            reason: format!("cut chunk {}: {last}", chunk.0),
            retry_after_ms: 200,
        })
    }

    /// A connection to the primary of `layout`, as a client of it.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn call_primary(&self, layout: &ChunkLayout) -> Result<LoneClient, String> {
        let primary = layout
            .members
            .iter()
            .find(|member| member.member.server == layout.primary)
            .ok_or_else(|| "the layout has no primary".to_owned())?;
        let stream =
            conn::dial(&primary.address, &self.config.key, Door::Frames, Duration::from_secs(2))
                .map_err(|error| format!("{}: {error}", primary.address))?;
        let mut client = LoneClient::new(stream);
        let hello = DataCall::Hello { fs: self.fs, from: Peer::Client(self.own_client) };
        call(&mut client, &hello)?;
        Ok(client)
    }

    fn cut_at_primary(&self, layout: &ChunkLayout, len: u64) -> Result<(), String> {
        let mut client = self.call_primary(layout)?;
        let stat = DataCall::Stat { chunk: layout.chunk, version: layout.version };
        match call(&mut client, &stat) {
            // A full one may have bytes in the next chunk that appends carried there.
            Ok(DataReply::Stat { len: have, .. })
                if have < len || (have == len && len < layout.chunk_size) =>
            {
                return Ok(());
            }
            Ok(_) => {}
            // Never written: nothing to cut.
            Err(reason) if reason == DataFailure::NoReplica.to_string() => return Ok(()),
            Err(reason) => return Err(reason),
        }
        let counter = self.next_own_counter();
        let cut = DataCall::Mutate {
            layout: layout.clone(),
            client: self.own_client,
            counter,
            low_water: counter,
            mutation: WireMutation::Truncate { len },
        };
        call(&mut client, &cut)?;
        call(&mut client, &DataCall::Sync { layout: layout.clone() })?;
        Ok(())
    }

    /// Finishes truncations that an earlier reign began.
    pub fn finish_truncations(&self) {
        let begun = self.reader().range(
            &Key::Truncating(InodeNo(0)),
            &Key::Truncating(InodeNo(u64::MAX)),
            usize::MAX,
        );
        for (key, record) in begun {
            let (Key::Truncating(ino), Record::Truncating(listed)) = (key, record) else {
                continue;
            };
            if !self.begin_truncating(ino, listed) {
                continue;
            }
            // It may have ended, and the file have grown again, since it was listed: a cut now would be of new bytes.
            let Some(size) = meta::truncating(&self.reader(), ino).filter(|size| *size == listed)
            else {
                lock(&self.truncating).remove(&ino);
                continue;
            };
            let chunk_size = self.inode(ino).map_or(1, |inode| inode.layout.chunk_size.max(1));
            let index = last_chunk(size, chunk_size);
            let tail = match size {
                0 => None,
                _ => self.file_chunk(ino, index).map(|chunk| (chunk, size - index * chunk_size)),
            };
            let finished = self
                .cut_tail(tail)
                .and_then(|()| self.propose(None, Change::TruncateEnd { ino, size }));
            lock(&self.truncating).remove(&ino);
            match finished {
                Ok(_) => {
                    tracing::info!(ino = ino.0, size, "truncation of an earlier reign finished")
                }
                Err(error) => {
                    tracing::debug!(ino = ino.0, %error, "truncation of an earlier reign waits")
                }
            }
        }
    }
}

/// The chunk that the last of `size` bytes is in.
fn last_chunk(size: u64, chunk_size: u64) -> u64 {
    size.saturating_sub(1) / chunk_size.max(1)
}

pub(crate) fn call(client: &mut LoneClient, call: &DataCall) -> Result<DataReply, String> {
    answer(client, call)?.map_err(|failure| failure.to_string())
}

/// As [`call`], for callers to whom it matters what failed.
fn answer(
    client: &mut LoneClient,
    call: &DataCall,
) -> Result<Result<DataReply, DataFailure>, String> {
    let frame =
        client.call(&call.to_bytes(), &[], DATA_CALL_MAX).map_err(|error| error.to_string())?;
    match DataReply::from_bytes(&frame.args).map_err(|error| error.to_string())? {
        DataReply::Failed(failure) => Ok(Err(failure)),
        reply => Ok(Ok(reply)),
    }
}
