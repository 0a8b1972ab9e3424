//! Makes log, store and snapshots agree before openraft sees them. What is damaged and not needed is passed over; what is
//! needed and cannot be read is named here, and nothing begins without it.

use std::sync::mpsc;

use dfs_service::page::Page;

use super::GroupError;
use super::machine::Machine;
use super::snapshot_files::{SnapshotError, SnapshotReader, named, verify};
use crate::journal::{Journal, JournalError, Position, SavedVote};

/// Returns the index of the last entry, 0 if there is none.
pub(super) fn reconcile(
    journal: &Journal,
    machine: &Machine,
    node_id: u64,
    accept_loss: bool,
) -> Result<u64, GroupError> {
    let applied = machine.applied().map_err(GroupError::GroupState)?;
    let applied_index = applied.as_ref().map(|(at, _)| at.index);
    if let Some(purged) = journal.purged()
        && applied_index < Some(purged.index)
    {
        // The store was lost or replaced: it is a cache, and a snapshot begins it again.
        install_newest(machine, applied_index, purged.index)?;
    }
    let last = journal.last();
    check_snapshots_beyond(machine, last, accept_loss)?;
    let end = last.map_or(0, |last| last.index);
    let applied = machine.applied().map_err(GroupError::GroupState)?;
    let Some((at, _)) = applied else { return Ok(end) };
    if last.is_none_or(|last| last.index < at.index) {
        if !accept_loss {
            return Err(GroupError::LogBehindStore {
                last: last.map(|last| last.index),
                applied: at.index,
            });
        }
        tracing::error!(
            ?last,
            applied = at.index,
            see = %Page::DamagedLog,
            "the log ends before the store's state, going on with the store's state, as told"
        );
    }
    // Entries must never be proposed in a term older than one that was already used. The log's own
    // vote says so, unless it was cut away.
    let vote_term = journal.vote().map_or(0, |vote| vote.term);
    let used_term = at.term.max(last.map_or(0, |last: Position| last.term));
    if vote_term < used_term {
        save_vote(journal, SavedVote { term: used_term, node: node_id, committed: false })?;
    }
    Ok(end.max(at.index))
}

/// Installs the newest snapshot that is whole and that the log, purged up to `purged`, continues.
fn install_newest(machine: &Machine, applied: Option<u64>, purged: u64) -> Result<(), GroupError> {
    let mut first_error = None;
    for path in machine.files().paths()? {
        let installed = SnapshotReader::open(&path).and_then(|reader| {
            let info = &reader.info;
            let reaches = purged <= info.position.index;
            if reaches {
                machine.install(info)?;
            }
            Ok(reaches)
        });
        match installed {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(
                    file = %path.display(),
                    "the store ends before the log begins, starting from a snapshot"
                );
                return Ok(());
            }
            Err(error) if error.is_of_file() => {
                let consequence = "a snapshot cannot be used, trying the one before it";
                machine.files().tell(&path, &error, consequence);
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(match first_error {
        // It says what is to be done about it.
        Some(error @ SnapshotError::Newer { .. }) => error.into(),
        Some(error) => GroupError::SnapshotNeeded { error, applied, purged },
        None => GroupError::StoreBehindLog { applied, purged },
    })
}

/// Looks for entries that only a snapshot has, though the log has all that were not purged: then it was cut or lost, and
/// an accepted loss goes on from the newest such snapshot that is whole.
fn check_snapshots_beyond(
    machine: &Machine,
    last: Option<Position>,
    accept_loss: bool,
) -> Result<(), GroupError> {
    let files = machine.files();
    let applied = machine.applied().map_err(GroupError::GroupState)?;
    let ends = [last, applied.map(|(at, _)| at)];
    let end = ends.iter().flatten().map(|at| at.index).max().unwrap_or(0);
    let term = ends.iter().flatten().map(|at| at.term).max().unwrap_or(0);
    let mut unreadable = Vec::new();
    for path in files.paths()? {
        // In an older term it is of entries that were given up by an earlier accepted loss.
        let Some((_, index)) = named(&path).filter(|it| end < it.1 && term <= it.0) else {
            continue;
        };
        match verify(&path) {
            Ok(info) if accept_loss => {
                machine.install(&info)?;
                tracing::error!(
                    file = %path.display(), end, see = %Page::DamagedLog,
                    "log and store end before this snapshot, going on from it, as told"
                );
                break;
            }
            Ok(_) => return Err(GroupError::BehindSnapshot { file: path, index, end }),
            // What it has is not lost.
            Err(error @ SnapshotError::Newer { .. }) => return Err(error.into()),
            Err(error) if error.is_of_file() => unreadable.push((path, index, error)),
            Err(error) => return Err(error.into()),
        }
    }
    let left = machine.applied().map_err(GroupError::GroupState)?.is_some() || 0 < end;
    for (path, index, error) in unreadable {
        if !accept_loss || !left {
            return Err(GroupError::BehindDamagedSnapshot { error, index, end });
        }
        // Or the next start would be told of it again.
        let aside = files.put_aside(&path)?;
        tracing::error!(
            %error, aside = %aside.display(), end, see = %Page::DamagedLog,
            "a snapshot of entries that are nowhere else cannot be used, going on without it, as told"
        );
    }
    Ok(())
}

fn save_vote(journal: &Journal, vote: SavedVote) -> Result<(), JournalError> {
    let (done, durable) = mpsc::sync_channel(1);
    let done = Box::new(move |result| {
        let _ = done.send(result);
    });
    journal.save_vote(vote, done)?;
    durable.recv().unwrap_or(Err(JournalError::Stopped))
}
