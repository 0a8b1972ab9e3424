//! What a chunkserver remembers besides replicas: the highest reign seen, its starts, clients that ended.
//!
//! `server_state` (one line, replaced atomically) and `ended_clients` (one line per client, appended), both in the
//! data directory, both on disk before anything is answered because of them.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dfs_core::ids::{ClientId, Epoch};
use dfs_proto::data_rpc::DataFailure;
use dfs_service::sealed::{seal, unseal};

const ENDED_CLIENTS: &str = "ended_clients";

/// The reign a server obeys (DECISIONS 5).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Reign {
    pub(crate) epoch: Epoch,
    pub(crate) nonce: u64,
    pub(crate) log_index: u64,
}

#[derive(Debug)]
pub(crate) struct ServerState {
    dir: PathBuf,
    incarnation: u64,
    /// Never held while the disk works: heartbeats and every request look at it.
    reign: Mutex<Reign>,
    /// Held while the file is replaced; taken before `reign`.
    writing: Mutex<()>,
    ended: Mutex<HashSet<ClientId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
}

impl ServerState {
    /// Reads the state in `dir` (none: a first start) and counts this start.
    ///
    /// # Errors
    /// I/O errors; `InvalidData` for a damaged file.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("server_state");
        let (incarnation, reign) = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, Reign::default()),
            Err(e) => return Err(e),
            Ok(text) => parse(&text).ok_or_else(|| bad(&path))?,
        };
        let path = dir.join(ENDED_CLIENTS);
        let mut ended = HashSet::new();
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(text) => {
                let whole;
                (ended, whole) = parse_ended(&text).ok_or_else(|| bad(&path))?;
                if whole < text.len() {
                    // A line cut short by a crash was never acted upon.
                    OpenOptions::new().write(true).open(&path)?.set_len(whole as u64)?;
                }
                // What a killed process wrote is not said again, and must outlive the page cache.
                File::open(&path)?.sync_all()?;
            }
        }
        let state = Self {
            dir: dir.to_owned(),
            incarnation: incarnation + 1,
            reign: Mutex::new(reign),
            writing: Mutex::new(()),
            ended: Mutex::new(ended),
        };
        state.write(reign)?;
        Ok(state)
    }

    /// Number of this process start.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn reign(&self) -> Reign {
        *lock(&self.reign)
    }

    /// A master of `epoch` speaks: obeyed from now on if it is not older than what was seen.
    ///
    /// # Errors
    /// `StaleEpoch` for an older reign, or another one of the same number; `Disk` if it cannot be kept.
    pub(crate) fn obey(&self, epoch: Epoch, nonce: u64) -> Result<(), DataFailure> {
        let is_same = |reign: &Reign| reign.epoch == epoch && reign.nonce == nonce;
        if is_same(&lock(&self.reign)) {
            return Ok(());
        }
        let _writing = lock(&self.writing);
        let reign = *lock(&self.reign);
        let same = is_same(&reign);
        if epoch < reign.epoch || epoch == reign.epoch && !same && reign.epoch != Epoch(0) {
            return Err(DataFailure::StaleEpoch { asked: epoch, current: reign.epoch });
        }
        if !same {
            let next = Reign { epoch, nonce, log_index: reign.log_index };
            let disk = |e: io::Error| DataFailure::Disk { reason: e.to_string() };
            self.write(next).map_err(disk)?;
            let mut current = lock(&self.reign);
            *current = next;
            // Their layouts are of older reigns, which are refused, and they get no others.
            let mut ended = lock(&self.ended);
            ended.clear();
            match fs::remove_file(self.dir.join(ENDED_CLIENTS)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether [`Self::keep_index`] would write: within a reign the index is a hint against older directories, every
    /// thousand entries will do.
    pub(crate) fn wants_index(&self, log_index: u64) -> bool {
        lock(&self.reign).log_index + 1000 <= log_index
    }

    /// Keeps how far the master's log is known to reach. Waits for the disk.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn keep_index(&self, log_index: u64) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let reign = *lock(&self.reign);
        let next = Reign { log_index: log_index.max(reign.log_index), ..reign };
        self.write(next)?;
        *lock(&self.reign) = next;
        Ok(())
    }

    /// A layout carries the epoch it was made in.
    ///
    /// # Errors
    /// `StaleEpoch` for one of an older reign.
    pub(crate) fn check_epoch(&self, asked: Epoch) -> Result<(), DataFailure> {
        let current = lock(&self.reign).epoch;
        if asked < current { Err(DataFailure::StaleEpoch { asked, current }) } else { Ok(()) }
    }

    /// Refuses these clients for the rest of this reign.
    ///
    /// # Errors
    /// I/O errors: then it must be said again.
    pub(crate) fn end_clients(&self, clients: &[ClientId]) -> io::Result<()> {
        let mut ended = lock(&self.ended);
        let new: Vec<_> = clients.iter().filter(|client| !ended.contains(client)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut file =
            OpenOptions::new().append(true).create(true).open(self.dir.join(ENDED_CLIENTS))?;
        let lines: String = new.iter().map(|client| format!("{client}\n")).collect();
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        ended.extend(new);
        Ok(())
    }

    pub(crate) fn is_ended(&self, client: ClientId) -> bool {
        lock(&self.ended).contains(&client)
    }

    fn write(&self, reign: Reign) -> io::Result<()> {
        let next = self.dir.join("server_state.next");
        let mut file = File::create(&next)?;
        file.write_all(text_of(self.incarnation, reign).as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, self.dir.join("server_state"))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn text_of(incarnation: u64, reign: Reign) -> String {
    let Reign { epoch, nonce, log_index } = reign;
    let body = format!("dfs-server-state 1 {incarnation} {} {nonce} {log_index}", epoch.0);
    seal(&body)
}

/// Clients of all whole lines, and the bytes of these.
fn parse_ended(text: &str) -> Option<(HashSet<ClientId>, usize)> {
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    let id = |line| u128::from_str_radix(line, 16).ok().map(ClientId);
    Some((text[..whole].lines().map(id).collect::<Option<_>>()?, whole))
}

fn parse(text: &str) -> Option<(u64, Reign)> {
    let body = unseal(text)?;
    let mut words = body.strip_prefix("dfs-server-state 1 ")?.split(' ').map(str::parse);
    let mut next = || words.next()?.ok();
    let incarnation = next()?;
    let reign = Reign { epoch: Epoch(next()?), nonce: next()?, log_index: next()? };
    Some((incarnation, reign))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_reign_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = ServerState::open(dir.path()).unwrap();
        state.obey(Epoch(3), 7).unwrap();
        state.obey(Epoch(3), 7).unwrap();
        assert!(state.obey(Epoch(2), 7).is_err());
        assert!(state.obey(Epoch(3), 8).is_err(), "another reign of the same number");
        state.end_clients(&[ClientId(5)]).unwrap();
        assert!(state.wants_index(5000));
        state.keep_index(5000).unwrap();
        assert!(!state.wants_index(5999));
        let again = ServerState::open(dir.path()).unwrap();
        assert_eq!(again.incarnation(), 2);
        assert_eq!(again.reign(), Reign { epoch: Epoch(3), nonce: 7, log_index: 5000 });
        assert!(again.obey(Epoch(2), 9).is_err());
        assert!(again.check_epoch(Epoch(2)).is_err());
        assert!(again.is_ended(ClientId(5)) && !again.is_ended(ClientId(6)));
        // A new reign begins without: its master gives them no layout.
        again.obey(Epoch(4), 1).unwrap();
        assert!(!again.is_ended(ClientId(5)));
        again.end_clients(&[ClientId(6)]).unwrap();
        let third = ServerState::open(dir.path()).unwrap();
        assert!(!third.is_ended(ClientId(5)) && third.is_ended(ClientId(6)));
    }

    #[test]
    fn a_damaged_state_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(ServerState::open(dir.path()).unwrap());
        let path = dir.path().join("server_state");
        let text = fs::read_to_string(&path).unwrap().replace(" 1 1 ", " 1 2 ");
        fs::write(&path, text).unwrap();
        assert_eq!(ServerState::open(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
