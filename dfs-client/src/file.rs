//! One file's content: inline at the master, or in chunks at their primaries. Writes go through at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dfs_core::command::{Change, Outcome};
use dfs_core::ids::{ChunkId, InodeNo};
use dfs_core::namespace::{Attr, INLINE_BYTES_MAX, NamespaceError};
use dfs_core::time::WallTime;
use dfs_proto::codec::Wire;
use dfs_proto::data_rpc::{DataCall, DataFailure, DataReply, WireMutation};
use dfs_proto::meta_rpc::{ChunkLayout, FailedMember, MetaCall, MetaReply};

use crate::error::ClientError;
use crate::session::{Session, lock, unexpected};

#[derive(Debug, Default)]
struct Inner {
    /// Written, not yet committed: end, time, chunks to sync.
    end: u64,
    mtime: Option<WallTime>,
    dirty: BTreeMap<u64, ()>,
    counters: BTreeMap<ChunkId, u64>,
    layouts: BTreeMap<u64, (ChunkLayout, Instant)>,
    kill_priv: bool,
}

#[derive(Debug)]
pub struct FileState {
    session: Arc<Session>,
    ino: InodeNo,
    inner: Mutex<Inner>,
}

const CALL: Duration = Duration::from_secs(30);
const PIECE: u64 = 1 << 20;

impl Drop for FileState {
    fn drop(&mut self) {
        let _flushed = self.flush();
    }
}

impl FileState {
    pub(crate) fn new(session: Arc<Session>, ino: InodeNo) -> Self {
        Self { session, ino, inner: Mutex::default() }
    }

    pub(crate) fn overlay(&self, mut attr: Attr) -> Attr {
        if let Ok(inner) = self.inner.try_lock() {
            attr.size = attr.size.max(inner.end);
            if let Some(mtime) = inner.mtime {
                attr.mtime = attr.mtime.max(mtime);
            }
        }
        attr
    }

    pub fn attr(&self) -> Result<Attr, ClientError> {
        self.session.getattr(self.ino)
    }
    pub fn size(&self) -> Result<u64, ClientError> {
        Ok(self.attr()?.size)
    }

    fn opened(&self) -> Result<(Attr, Option<Vec<u8>>), ClientError> {
        match self.session.call(MetaCall::ReadInline { ino: self.ino })? {
            MetaReply::Opened { attr, content } => Ok((attr, content)),
            other => Err(unexpected(&other)),
        }
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, ClientError> {
        let (attr, content) = self.opened()?;
        let size = attr.size.max(lock(&self.inner).end);
        let end = size.min(offset.saturating_add(buf.len() as u64));
        if end <= offset {
            return Ok(0);
        }
        let buf = &mut buf[..(end - offset) as usize];
        buf.fill(0);
        if let Some(content) = content {
            let from = (offset as usize).min(content.len());
            let to = (end as usize).min(content.len());
            buf[..to - from].copy_from_slice(&content[from..to]);
            return Ok(buf.len());
        }
        let chunk_size = attr.layout.chunk_size;
        let mut at = offset;
        while at < end {
            let (index, within) = (at / chunk_size, at % chunk_size);
            let len = (chunk_size - within).min(end - at).min(PIECE);
            let target = &mut buf[(at - offset) as usize..(at - offset + len) as usize];
            self.read_chunk(index, within, target)?;
            at += len;
        }
        Ok(buf.len())
    }

    fn layout(
        &self,
        index: u64,
        write: bool,
        failed: Option<FailedMember>,
    ) -> Result<Option<ChunkLayout>, ClientError> {
        let call = MetaCall::Layout { ino: self.ino, index, write, spill: false, failed };
        match self.session.call(call)? {
            MetaReply::Layout(layout) => Ok(Some(layout)),
            MetaReply::Hole => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    fn read_chunk(&self, index: u64, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        let start = Instant::now();
        loop {
            let Some(layout) = self.layout(index, false, None)? else { return Ok(()) };
            let mut members: Vec<_> =
                layout.members.iter().filter(|member| !member.address.is_empty()).collect();
            members.sort_by_key(|member| member.member.server != layout.primary);
            for member in members {
                let call = DataCall::Read {
                    chunk: layout.chunk,
                    version: layout.version,
                    offset,
                    len: buf.len() as u32,
                };
                let Ok(frame) = self
                    .session
                    .chunkserver(&member.address)
                    .and_then(|conn| conn.call(&call.to_bytes(), &[], CALL))
                else {
                    continue;
                };
                match DataReply::from_bytes(&frame.args) {
                    Ok(DataReply::Read { .. }) => {
                        let len = frame.payload.len().min(buf.len());
                        buf[..len].copy_from_slice(&frame.payload[..len]);
                        return Ok(());
                    }
                    Ok(DataReply::Failed(DataFailure::NoReplica)) if !layout.born => return Ok(()),
                    _ => {}
                }
            }
            if CALL < start.elapsed() {
                return Err(ClientError::NoCurrentReplica {
                    chunk: layout.chunk,
                    wanted: layout.version,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One operation at the primary of chunk `index`, with one counter however often it is sent.
    fn mutate(
        &self,
        inner: &mut Inner,
        index: u64,
        mutation: WireMutation,
        payload: &[u8],
    ) -> Result<DataReply, ClientError> {
        let mut layout = match inner.layouts.get(&index) {
            Some((layout, at)) if at.elapsed() < Duration::from_secs(4) => layout.clone(),
            _ => self.write_layout(index, None)?,
        };
        let counter = {
            let counter = inner.counters.entry(layout.chunk).or_default();
            *counter += 1;
            *counter
        };
        let start = Instant::now();
        loop {
            let call = DataCall::Mutate {
                layout: layout.clone(),
                client: self.session.client(),
                counter,
                low_water: counter,
                mutation,
            };
            let answer = self.at_primary(&layout, &call, payload);
            let why = match answer {
                Ok(DataReply::Failed(DataFailure::NoSpace { server })) => {
                    return Err(ClientError::NoSpace { reason: server.to_string() });
                }
                Ok(DataReply::Failed(DataFailure::OutcomeUnknown)) => {
                    return Err(ClientError::OutcomeUnknown);
                }
                Ok(DataReply::Failed(failure)) => failure.to_string(),
                Ok(reply) => {
                    inner.layouts.insert(index, (layout, Instant::now()));
                    return Ok(reply);
                }
                Err(error) => error,
            };
            tracing::debug!(why, "mutate");
            if self.session.config.server_wait < start.elapsed() {
                return Err(ClientError::ChunkUnavailable { reason: why, waited: start.elapsed() });
            }
            let failed = FailedMember { version: layout.version, server: layout.primary };
            layout = self.write_layout(index, Some(failed))?;
        }
    }

    fn write_layout(
        &self,
        index: u64,
        failed: Option<FailedMember>,
    ) -> Result<ChunkLayout, ClientError> {
        self.layout(index, true, failed)?
            .ok_or(ClientError::Protocol { reason: "no layout to write".to_owned() })
    }

    fn at_primary(
        &self,
        layout: &ChunkLayout,
        call: &DataCall,
        payload: &[u8],
    ) -> Result<DataReply, String> {
        let primary = layout
            .members
            .iter()
            .find(|member| member.member.server == layout.primary)
            .ok_or_else(|| "no primary".to_owned())?;
        let conn = self.session.chunkserver(&primary.address).map_err(|e| e.to_string())?;
        let frame = conn.call(&call.to_bytes(), &[payload], CALL).map_err(|e| e.to_string())?;
        DataReply::from_bytes(&frame.args).map_err(|e| e.to_string())
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        if data.is_empty() {
            return Ok(());
        }
        let mut inner = lock(&self.inner);
        self.write_locked(&mut inner, offset, data)
    }

    fn write_locked(&self, inner: &mut Inner, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let end = offset + data.len() as u64;
        loop {
            let (attr, content) = self.opened()?;
            let Some(content) = content else {
                break self.write_chunks(inner, &attr, offset, data)?;
            };
            if end <= INLINE_BYTES_MAX && attr.layout.allows_inline() {
                let change = Change::InlineWrite {
                    ino: self.ino,
                    offset,
                    data: data.to_vec(),
                    append: false,
                    mtime: None,
                    kill_priv: inner.kill_priv,
                };
                match self.session.change(change) {
                    Err(ClientError::Refused(NamespaceError::LayoutChanged)) => continue,
                    other => return other.map(|_| ()),
                }
            }
            self.to_chunks(inner, &attr, &content)?;
        }
        inner.end = inner.end.max(end);
        inner.mtime = Some(self.session.wall_now());
        Ok(())
    }

    /// Moves inline content to chunks; somebody else's doing it is as good.
    fn to_chunks(&self, inner: &mut Inner, attr: &Attr, content: &[u8]) -> Result<(), ClientError> {
        inner.layouts.clear();
        if attr.size == 0 {
            return self
                .session
                .change(Change::BeginWrite { ino: self.ino })
                .map(|_| ())
                .or_else(raced);
        }
        let call =
            MetaCall::Layout { ino: self.ino, index: 0, write: true, spill: true, failed: None };
        let layout = match self.session.call(call) {
            Ok(MetaReply::Layout(layout)) => layout,
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return raced(error),
        };
        let counter = inner.counters.entry(layout.chunk).or_default();
        *counter += 1;
        let call = DataCall::Mutate {
            layout: layout.clone(),
            client: self.session.client(),
            counter: *counter,
            low_water: *counter,
            mutation: WireMutation::Write { offset: 0 },
        };
        let copied = content.is_empty()
            || matches!(self.at_primary(&layout, &call, content), Ok(DataReply::Mutated { .. }))
                && matches!(
                    self.at_primary(&layout, &DataCall::Sync { layout: layout.clone() }, &[]),
                    Ok(DataReply::Synced { .. })
                );
        if !copied {
            let _dropped = self.session.change(Change::DropChunk { chunk: layout.chunk });
            return Ok(());
        }
        let spill = Change::Spill { ino: self.ino, change_seen: attr.change, chunk: layout.chunk };
        match self.session.change(spill) {
            Ok(_) => Ok(()),
            Err(error) => {
                let _dropped = self.session.change(Change::DropChunk { chunk: layout.chunk });
                raced(error)
            }
        }
    }

    fn write_chunks(
        &self,
        inner: &mut Inner,
        attr: &Attr,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let chunk_size = attr.layout.chunk_size;
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (index, within) = (place / chunk_size, place % chunk_size);
            let len = (chunk_size - within).min((data.len() - at) as u64).min(PIECE) as usize;
            self.mutate(inner, index, WireMutation::Write { offset: within }, &data[at..at + len])?;
            inner.dirty.insert(index, ());
            at += len;
        }
        Ok(())
    }

    pub fn append(&self, data: &[u8]) -> Result<u64, ClientError> {
        let mut inner = lock(&self.inner);
        self.commit(&mut inner)?;
        loop {
            let (attr, content) = self.opened()?;
            if let Some(content) = content {
                if attr.size + data.len() as u64 <= INLINE_BYTES_MAX && attr.layout.allows_inline()
                {
                    let change = Change::InlineWrite {
                        ino: self.ino,
                        offset: 0,
                        data: data.to_vec(),
                        append: true,
                        mtime: None,
                        kill_priv: inner.kill_priv,
                    };
                    match self.session.change(change) {
                        Ok(Outcome::Appended { offset, .. }) => return Ok(offset),
                        Ok(_) | Err(ClientError::Refused(NamespaceError::LayoutChanged)) => {
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
                self.to_chunks(&mut inner, &attr, &content)?;
                continue;
            }
            let chunk_size = attr.layout.chunk_size;
            let mut index = self.tail(&attr)?;
            let mut first = None;
            let mut at = 0;
            while at < data.len() || first.is_none() {
                let at_least = attr.size.saturating_sub(index * chunk_size).min(chunk_size);
                let mutation = WireMutation::Append { record: attr.layout.record_log, at_least };
                match self.mutate_append(&mut inner, index, mutation, &data[at..])? {
                    None => index += 1,
                    Some((offset, appended, sealed)) => {
                        first.get_or_insert(index * chunk_size + offset);
                        at += appended as usize;
                        inner.end = inner.end.max(index * chunk_size + offset + appended);
                        inner.dirty.insert(index, ());
                        if sealed || at < data.len() {
                            index += 1;
                        }
                    }
                }
            }
            inner.mtime = Some(self.session.wall_now());
            self.commit(&mut inner)?;
            return Ok(first.unwrap_or(0));
        }
    }

    fn tail(&self, attr: &Attr) -> Result<u64, ClientError> {
        let chunk_size = attr.layout.chunk_size;
        let mut index = attr.size.saturating_sub(1) / chunk_size;
        while self.layout(index + 1, false, None)?.is_some() {
            index += 1;
        }
        Ok(index)
    }

    fn mutate_append(
        &self,
        inner: &mut Inner,
        index: u64,
        mutation: WireMutation,
        data: &[u8],
    ) -> Result<Option<(u64, u64, bool)>, ClientError> {
        let mut layout = self.write_layout(index, None)?;
        let counter = {
            let counter = inner.counters.entry(layout.chunk).or_default();
            *counter += 1;
            *counter
        };
        loop {
            let call = DataCall::Mutate {
                layout: layout.clone(),
                client: self.session.client(),
                counter,
                low_water: counter,
                mutation,
            };
            match self.at_primary(&layout, &call, data) {
                Ok(DataReply::Appended { offset, appended, sealed, .. }) => {
                    return Ok(Some((offset, appended, sealed)));
                }
                Ok(DataReply::Failed(DataFailure::ChunkFull)) => return Ok(None),
                Ok(DataReply::Failed(DataFailure::NoSpace { server })) => {
                    return Err(ClientError::NoSpace { reason: server.to_string() });
                }
                Ok(DataReply::Failed(DataFailure::OutcomeUnknown)) => {
                    return Err(ClientError::OutcomeUnknown);
                }
                Ok(_) | Err(_) => {
                    let failed = FailedMember { version: layout.version, server: layout.primary };
                    layout = self.write_layout(index, Some(failed))?;
                }
            }
        }
    }

    fn commit(&self, inner: &mut Inner) -> Result<(), ClientError> {
        if inner.dirty.is_empty() {
            return Ok(());
        }
        let indexes: Vec<u64> = inner.dirty.keys().copied().collect();
        for index in indexes {
            let mut failed = None;
            loop {
                let layout = self.write_layout(index, failed)?;
                match self.at_primary(&layout, &DataCall::Sync { layout: layout.clone() }, &[]) {
                    Ok(DataReply::Synced { .. }) => break,
                    _ => {
                        failed =
                            Some(FailedMember { version: layout.version, server: layout.primary })
                    }
                }
            }
            inner.dirty.remove(&index);
        }
        let change = Change::CommitSize {
            ino: self.ino,
            size: inner.end,
            mtime: inner.mtime,
            done_writing: true,
            kill_priv: inner.kill_priv,
        };
        self.session.change(change)?;
        inner.end = 0;
        inner.mtime = None;
        Ok(())
    }

    pub fn flush(&self) -> Result<(), ClientError> {
        self.commit(&mut lock(&self.inner))
    }
    pub fn fsync(&self) -> Result<(), ClientError> {
        self.flush()
    }
    pub fn acknowledge(&self) -> Result<(), ClientError> {
        self.flush()
    }

    pub fn truncate(&self, size: u64) -> Result<Attr, ClientError> {
        let mut inner = lock(&self.inner);
        self.commit(&mut inner)?;
        inner.layouts.clear();
        let reply = self
            .session
            .with_op(|op| self.session.call(MetaCall::Truncate { op, ino: self.ino, size }))?;
        match reply {
            MetaReply::Outcome(Outcome::Attr(attr)) => Ok(attr),
            MetaReply::Outcome(Outcome::Refused(error)) => Err(error.into()),
            other => Err(unexpected(&other)),
        }
    }

    pub fn zero(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), ClientError> {
        let mut inner = lock(&self.inner);
        self.commit(&mut inner)?;
        let (attr, content) = self.opened()?;
        if content.is_some() {
            let change = Change::InlineZero { ino: self.ino, offset, len, keep_size };
            return self.session.change(change).map(|_| ());
        }
        let chunk_size = attr.layout.chunk_size;
        let end = (offset + len).min(attr.size);
        let mut at = offset;
        while at < end {
            let (index, within) = (at / chunk_size, at % chunk_size);
            let piece = (chunk_size - within).min(end - at);
            if self.layout(index, false, None)?.is_some() {
                self.mutate(
                    &mut inner,
                    index,
                    WireMutation::Zero { offset: within, len: piece },
                    &[],
                )?;
                inner.dirty.insert(index, ());
                inner.mtime = Some(self.session.wall_now());
            }
            at += piece;
        }
        self.commit(&mut inner)?;
        drop(inner);
        if !keep_size && attr.size < offset + len {
            self.truncate(offset + len)?;
        }
        Ok(())
    }

    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), ClientError> {
        self.flush()?;
        if !keep_size && self.size()? < offset + len {
            self.truncate(offset + len)?;
        }
        Ok(())
    }

    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>, ClientError> {
        let attr = self.attr()?;
        if attr.size <= offset {
            return Ok(None);
        }
        if attr.inline {
            return Ok(Some(offset));
        }
        match self.session.call(MetaCall::Layouts {
            ino: self.ino,
            first: offset / attr.layout.chunk_size,
            max: 1,
        })? {
            MetaReply::Layouts(layouts) => Ok(layouts
                .first()
                .map(|layout| (layout.index * attr.layout.chunk_size).max(offset))
                .filter(|at| *at < attr.size)),
            other => Err(unexpected(&other)),
        }
    }

    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>, ClientError> {
        let attr = self.attr()?;
        if attr.size <= offset {
            return Ok(None);
        }
        if attr.inline {
            return Ok(Some(attr.size));
        }
        let mut index = offset / attr.layout.chunk_size;
        while index * attr.layout.chunk_size < attr.size
            && self.layout(index, false, None)?.is_some()
        {
            index += 1;
        }
        Ok(Some((index * attr.layout.chunk_size).max(offset).min(attr.size)))
    }

    pub fn set_kill_priv(&self) {
        lock(&self.inner).kill_priv = true;
    }
    pub fn set_times_override(&self) {
        lock(&self.inner).mtime = None;
    }
    pub fn invalidate(&self) {
        lock(&self.inner).layouts.clear();
    }
}

fn raced(error: ClientError) -> Result<(), ClientError> {
    match error {
        ClientError::Refused(NamespaceError::LayoutChanged) => Ok(()),
        other => Err(other),
    }
}
