//! Deleted files that are kept for a while: shown, restored, emptied when their time is over or somebody says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_core::command::{Change, Outcome};
use dfs_core::ids::InodeNo;
use dfs_core::meta::trash::{EMPTIED_MAX, trash};
use dfs_core::meta::{self, Key, MetaStore, Record, Trashed};
use dfs_core::namespace::{Body, NamespaceError};
use dfs_core::time::WallTime;
use dfs_proto::control::trash_server::Trash;
use dfs_proto::control::{
    TrashEmptyReply, TrashEmptyRequest, TrashEntry, TrashKeepReply, TrashKeepRequest,
    TrashListReply, TrashListRequest, TrashRestoreReply, TrashRestoreRequest,
};
use dfs_service::clock;
use tonic::{Request, Response, Status};

use crate::control::Control;
use crate::servers::blocking;
use crate::state::Master;

const PAGE: usize = 1_000;
/// Directories above one another that a path is followed through.
const DEPTH_MAX: usize = 4_096;

/// Empties what was kept for as long as was promised, a part of the trash at each call: `from` is where the next begins.
pub(crate) fn empty_expired(master: &Master, from: &mut u64) {
    let page = trash(&master.reader(), *from, PAGE);
    *from = page.last().filter(|_| page.len() == PAGE).map_or(0, |(number, _)| number + 1);
    let at = WallTime(clock::wall_nanos());
    let over = page.into_iter().filter(|(_, trashed)| trashed.until <= at);
    let numbers: Vec<u64> = over.map(|(number, _)| number).collect();
    if !numbers.is_empty()
        && let Err(error) = master.propose(None, Change::EmptyTrash { numbers })
    {
        tracing::debug!(%error, "empty the trash");
    }
}

fn propose(master: &Master, change: Change) -> Result<Outcome, Status> {
    match master.propose(None, change) {
        Ok(Outcome::Refused(error)) => Err(Status::failed_precondition(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
        Ok(outcome) => Ok(outcome),
    }
}

/// Paths of directories, found by reading the one above.
#[derive(Default)]
struct Paths(BTreeMap<InodeNo, Option<Vec<u8>>>);

impl Paths {
    /// `/a/b`; the root is empty. `None`: it is gone.
    fn of(&mut self, store: &dyn MetaStore, dir: InodeNo) -> Option<Vec<u8>> {
        let mut below = Vec::new();
        let mut at = dir;
        let mut path = loop {
            if at == InodeNo::ROOT {
                break Some(Vec::new());
            }
            if let Some(known) = self.0.get(&at) {
                break known.clone();
            }
            let found = meta::inode(store, at).filter(|inode| inode.nlink != 0);
            let Some(Body::Directory { parent, .. }) = found.map(|inode| inode.body) else {
                break None;
            };
            let Some(name) = name_in(store, parent, at) else { break None };
            below.push((at, name));
            if DEPTH_MAX < below.len() {
                break None;
            }
            at = parent;
        };
        for (ino, name) in below.into_iter().rev() {
            if let Some(path) = &mut path {
                path.push(b'/');
                path.extend_from_slice(&name);
            }
            self.0.insert(ino, path.clone());
        }
        path
    }
}

/// The name of `ino` in `parent`.
fn name_in(store: &dyn MetaStore, parent: InodeNo, ino: InodeNo) -> Option<Vec<u8>> {
    let mut from = Key::Dentry(parent, Vec::new());
    let end = Key::Dentry(InodeNo(parent.0.checked_add(1)?), Vec::new());
    loop {
        let page = store.range(&from, &end, PAGE);
        let full = page.len() == PAGE;
        for (key, record) in page {
            let (Key::Dentry(_, name), Record::Dentry(dentry)) = (key, record) else { continue };
            if dentry.ino == ino {
                return Some(name);
            }
            from = Key::Dentry(parent, [name.as_slice(), &[0]].concat());
        }
        if !full {
            return None;
        }
    }
}

fn path_of(store: &dyn MetaStore, paths: &mut Paths, trashed: &Trashed) -> Vec<u8> {
    let dir = paths.of(store, trashed.parent);
    dir.map(|dir| [dir.as_slice(), b"/", &trashed.name].concat()).unwrap_or_default()
}

fn list(master: &Master, request: &TrashListRequest) -> TrashListReply {
    let store = master.reader();
    let mut paths = Paths::default();
    let max = (request.max as usize).clamp(1, PAGE);
    let page = trash(&store, request.from, max);
    let next = page.last().filter(|_| page.len() == max).map(|(number, _)| number + 1);
    let entries = page.into_iter().map(|(number, trashed)| TrashEntry {
        number,
        inode: trashed.ino.0,
        size: meta::inode(&store, trashed.ino).map_or(0, |inode| inode.size),
        path: path_of(&store, &mut paths, &trashed),
        deleted_ns: trashed.at.0,
        until_ns: trashed.until.0,
        name: trashed.name,
    });
    let entries = entries.collect();
    let keep_ms = meta::superblock(&store).map_or(0, |superblock| superblock.trash_ms);
    TrashListReply { entries, next, keep_ms }
}

fn restore(master: &Master, request: TrashRestoreRequest) -> Result<TrashRestoreReply, Status> {
    let TrashRestoreRequest { number, parent, name } = request;
    let store = master.reader();
    let Some(trashed) = meta::trashed(&store, number) else {
        return Err(Status::not_found(format!("no {number} in the trash")));
    };
    let (parent, name) = match parent {
        Some(parent) => (InodeNo(parent), name),
        None => (trashed.parent, trashed.name),
    };
    let place = Trashed { parent, name: name.clone(), ..trashed };
    let path = path_of(&store, &mut Paths::default(), &place);
    if path.is_empty() {
        let text = "the directory it was in is gone: name a path";
        return Err(Status::failed_precondition(text));
    }
    match master.propose(None, Change::Restore { number, parent, name }) {
        Ok(Outcome::Refused(NamespaceError::Exists)) => {
            let shown = String::from_utf8_lossy(&path).into_owned();
            Err(Status::already_exists(format!("{shown} exists: name another path")))
        }
        Ok(Outcome::Refused(error)) => Err(Status::failed_precondition(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
        Ok(_) => Ok(TrashRestoreReply { path }),
    }
}

fn empty(master: &Master, request: TrashEmptyRequest) -> Result<TrashEmptyReply, Status> {
    let TrashEmptyRequest { numbers, older_ms } = request;
    let older = i64::try_from(older_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let before = WallTime(clock::wall_nanos().saturating_sub(older));
    let mut emptied = 0;
    let mut go = |numbers: Vec<u64>| -> Result<(), Status> {
        if let Outcome::Number(gone) = propose(master, Change::EmptyTrash { numbers })? {
            emptied += gone;
        }
        Ok(())
    };
    if !numbers.is_empty() {
        let missing =
            numbers.iter().find(|number| meta::trashed(&master.reader(), **number).is_none());
        if let Some(missing) = missing {
            return Err(Status::not_found(format!("no {missing} in the trash")));
        }
        numbers.chunks(EMPTIED_MAX).try_for_each(|part| go(part.to_vec()))?;
        return Ok(TrashEmptyReply { emptied });
    }
    let mut from = 0;
    loop {
        let page = trash(&master.reader(), from, EMPTIED_MAX);
        let Some((last, _)) = page.last() else { return Ok(TrashEmptyReply { emptied }) };
        from = last + 1;
        let old = page.iter().filter(|(_, trashed)| trashed.at <= before);
        let numbers: Vec<u64> = old.map(|(number, _)| *number).collect();
        if !numbers.is_empty() {
            go(numbers)?;
        }
    }
}

#[tonic::async_trait]
impl Trash for Control {
    async fn list(
        &self,
        request: Request<TrashListRequest>,
    ) -> Result<Response<TrashListReply>, Status> {
        let (master, request) = (Arc::clone(&self.0), request.into_inner());
        blocking(move || Ok(list(&master, &request))).await
    }

    async fn keep(
        &self,
        request: Request<TrashKeepRequest>,
    ) -> Result<Response<TrashKeepReply>, Status> {
        let TrashKeepRequest { keep_ms, by } = request.into_inner();
        let master = Arc::clone(&self.0);
        blocking(move || {
            propose(&master, Change::SetTrash { keep_ms, by })?;
            Ok(TrashKeepReply {})
        })
        .await
    }

    async fn restore(
        &self,
        request: Request<TrashRestoreRequest>,
    ) -> Result<Response<TrashRestoreReply>, Status> {
        let (master, request) = (Arc::clone(&self.0), request.into_inner());
        blocking(move || restore(&master, request)).await
    }

    async fn empty(
        &self,
        request: Request<TrashEmptyRequest>,
    ) -> Result<Response<TrashEmptyReply>, Status> {
        let (master, request) = (Arc::clone(&self.0), request.into_inner());
        blocking(move || empty(&master, request)).await
    }
}
