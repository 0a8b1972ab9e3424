//! openraft's state machine: hands committed entries to the store in order, one at a time, and
//! keeps its snapshots. All access to the store goes through one lock, held by openraft's one
//! state machine task while it applies.

#![expect(clippy::result_large_err, reason = "the error type is openraft's")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, BasicNode, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};

use super::snapshot_files::{
    SnapshotError, SnapshotFiles, SnapshotHandle, SnapshotInfo, SnapshotReader, verify,
};
use super::types::{Batch, GroupState, TypeConfig, log_id, position};
use super::{Applied, Applier};
use crate::journal::Position;

/// A handle to the store and its snapshots.
#[derive(Clone)]
pub(super) struct Machine {
    shared: Arc<Shared>,
}

struct Shared {
    applier: Mutex<Box<dyn Applier>>,
    files: SnapshotFiles,
    /// One builder at a time: all write the same temporary file.
    building: Mutex<Option<SnapshotInfo>>,
}

impl Machine {
    pub(super) fn new(applier: Box<dyn Applier>, files: SnapshotFiles) -> Self {
        Self {
            shared: Arc::new(Shared {
                applier: Mutex::new(applier),
                files,
                building: Mutex::new(None),
            }),
        }
    }

    pub(super) fn files(&self) -> &SnapshotFiles {
        &self.shared.files
    }

    fn applier(&self) -> MutexGuard<'_, Box<dyn Applier>> {
        self.shared.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the store holds.
    pub(super) fn applied(&self) -> io::Result<Option<(Position, GroupState)>> {
        let Some(Applied { term, index, group_state }) = self.applier().applied() else {
            return Ok(None);
        };
        let group_state = GroupState::decode(group_state)?;
        Ok(Some((Position { term, node: group_state.node, index }, group_state)))
    }

    /// Replaces the store's content by a snapshot.
    pub(super) fn install(&self, info: &SnapshotInfo) -> Result<(), SnapshotError> {
        let SnapshotInfo { position, content_bytes: _, path, group_state } = info;
        // Whole first: a store half replaced by a damaged snapshot would be nobody's state.
        verify(path)?;
        let mut reader = SnapshotReader::open(path)?;
        let applied = Applied {
            term: position.term,
            index: position.index,
            group_state: group_state.clone(),
        };
        self.applier().install(&applied, &mut reader).map_err(|source| SnapshotError::Io {
            doing: "install",
            path: path.clone(),
            source,
        })
    }

    /// Writes a snapshot of the present state and reads it back. Applying goes on meanwhile, but
    /// for the moment in which the store fixes what the snapshot will contain.
    pub(super) fn build(&self) -> Result<SnapshotInfo, SnapshotError> {
        let mut building = self.shared.building.lock().unwrap_or_else(PoisonError::into_inner);
        let info = self.build_locked()?;
        *building = Some(info.clone());
        Ok(info)
    }

    /// The snapshot openraft asked for: the one just built at the caller's request if there is one.
    fn take_built(&self) -> Result<SnapshotInfo, SnapshotError> {
        let mut building = self.shared.building.lock().unwrap_or_else(PoisonError::into_inner);
        match building.take() {
            Some(info) => Ok(info),
            None => self.build_locked(),
        }
    }

    fn build_locked(&self) -> Result<SnapshotInfo, SnapshotError> {
        let (applied, writer) = {
            let mut applier = self.applier();
            let applied = applier.applied().ok_or(SnapshotError::Empty)?;
            let writer = applier.snapshot().map_err(|err| self.store_error("begin", err))?;
            (applied, writer)
        };
        let Applied { term, index, group_state } = applied;
        let node = GroupState::decode(group_state.clone())
            .map_err(|err| self.store_error("read the group's state for", err))?
            .node;
        self.shared.files.write(Position { term, node, index }, &group_state, writer)
    }

    fn store_error(&self, doing: &'static str, source: io::Error) -> SnapshotError {
        SnapshotError::Io { doing, path: "the snapshot".into(), source }
    }
}

fn meta(info: &SnapshotInfo) -> io::Result<SnapshotMeta<u64, BasicNode>> {
    let group_state = GroupState::decode(info.group_state.clone())?;
    let Position { term, node, index } = info.position;
    Ok(SnapshotMeta {
        last_log_id: Some(log_id(info.position)),
        last_membership: group_state.membership,
        snapshot_id: format!("{term}-{node}-{index}"),
    })
}

fn snapshot(info: &SnapshotInfo) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
    let meta = meta(info).map_err(|err| read_error(&err))?;
    let handle = SnapshotHandle::open(&info.path).map_err(|err| read_error(&err))?;
    Ok(Snapshot { meta, snapshot: Box::new(handle) })
}

fn read_error(err: &(impl std::error::Error + 'static)) -> StorageError<u64> {
    StorageIOError::read_snapshot(None, AnyError::new(err)).into()
}

fn write_error(err: &(impl std::error::Error + 'static)) -> StorageError<u64> {
    StorageIOError::write_snapshot(None, AnyError::new(err)).into()
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        match self.take_built() {
            Ok(info) => snapshot(&info),
            // openraft asks for one whenever the log is purged and there is none. Nothing is what a
            // new member has anyway, so there is nothing to keep.
            Err(SnapshotError::Empty) => {
                let nothing = self.files().begin_receiving().map_err(|err| write_error(&err))?;
                Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(nothing) })
            }
            Err(err) => Err(write_error(&err)),
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), StorageError<u64>> {
        let applied = self
            .applied()
            .map_err(|err| StorageIOError::read_state_machine(AnyError::new(&err)))?;
        Ok(match applied {
            Some((at, group_state)) => (Some(log_id(at)), group_state.membership),
            None => (None, StoredMembership::default()),
        })
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<Bytes>>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut membership = match self.applied() {
            Ok(applied) => applied.map(|(_, group_state)| group_state.membership),
            Err(err) => {
                return Err(StorageIOError::read_state_machine(AnyError::new(&err)).into());
            }
        }
        .unwrap_or_default();
        let mut applier = self.applier();
        let mut outcomes = Vec::new();
        for Entry { log_id, payload } in entries {
            let at = position(log_id);
            let commands = match payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(Batch(commands)) => commands,
                EntryPayload::Membership(changed) => {
                    membership = StoredMembership::new(Some(log_id), changed);
                    Vec::new()
                }
            };
            let group_state = GroupState { node: at.node, membership: membership.clone() };
            let applied =
                Applied { term: at.term, index: at.index, group_state: group_state.encode() };
            let results = applier.apply(&applied, &commands);
            assert_eq!(results.len(), commands.len(), "one outcome for each command");
            outcomes.push(results);
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotHandle>, StorageError<u64>> {
        let handle = self.files().begin_receiving().map_err(|err| write_error(&err))?;
        Ok(Box::new(handle))
    }

    async fn install_snapshot(
        &mut self,
        wanted: &SnapshotMeta<u64, BasicNode>,
        mut received: Box<SnapshotHandle>,
    ) -> Result<(), StorageError<u64>> {
        let info = {
            let _building = self.shared.building.lock().unwrap_or_else(PoisonError::into_inner);
            self.files().adopt(&mut received.file).map_err(|err| write_error(&err))?
        };
        let found = meta(&info).map_err(|err| write_error(&err))?;
        if found.last_log_id != wanted.last_log_id {
            let err = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a snapshot of {found} was sent as one of {wanted}"),
            );
            return Err(write_error(&err));
        }
        self.install(&info).map_err(|err| write_error(&err))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<TypeConfig>>, StorageError<u64>> {
        let newest = self.files().newest().map_err(|err| read_error(&err))?;
        newest.as_ref().map(snapshot).transpose()
    }
}
