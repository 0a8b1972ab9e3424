//! What a chunkserver remembers besides replicas: the highest reign seen, its starts, the marks of its directory, clients
//! that ended.
//!
//! `server_state` (one line, replaced atomically) and `ended_clients` (one line per client, appended), both in the
//! data directory, both on disk before anything is answered because of them.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dfs_core::ids::{ClientId, Epoch};
use dfs_core::meta::marks::Mark;
use dfs_proto::data_rpc::DataFailure;
use dfs_service::page::Page;
use dfs_service::sealed::{replace_durably, seal, unseal};

const ENDED_CLIENTS: &str = "ended_clients";
/// The log's index is written no more often, however often the master is heard.
const INDEX_PAUSE: Duration = Duration::from_secs(1);

/// The reign a server obeys (DECISIONS 5).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Reign {
    pub(crate) epoch: Epoch,
    pub(crate) nonce: u64,
    /// The last log entry this reign is known to have applied; 0: it has not said.
    pub(crate) log_index: u64,
}

impl Reign {
    fn is(&self, epoch: Epoch, nonce: u64) -> bool {
        self.epoch == epoch && self.nonce == nonce
    }
}

/// What tells this directory from its copies (`dfs_core::meta::marks`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct OwnMarks {
    /// The highest number ever drawn here.
    drawn: u64,
    /// The last mark that the master's log is known to have.
    pub(crate) taken: Mark,
    /// The master said that this is an older copy, and nothing was taken since.
    pub(crate) older: bool,
}

#[derive(Debug)]
pub(crate) struct ServerState {
    dir: PathBuf,
    incarnation: u64,
    /// As `reign`.
    marks: Mutex<OwnMarks>,
    /// Never held while the disk works: heartbeats and every request look at it.
    reign: Mutex<Reign>,
    /// Held while the file is replaced, which was last done then; taken before `reign`.
    writing: Mutex<Option<Instant>>,
    ended: Mutex<HashSet<ClientId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad(path: &Path) -> io::Error {
    let text = format!("{} is damaged; see {}", path.display(), Page::DamagedLog);
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl ServerState {
    /// Reads the state in `dir` (none: a first start) and counts this start.
    ///
    /// # Errors
    /// I/O errors; `InvalidData` for a damaged file.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let (incarnation, reign, marks) = read(dir)?;
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
            marks: Mutex::new(marks),
            reign: Mutex::new(reign),
            writing: Mutex::default(),
            ended: Mutex::new(ended),
        };
        state.write(reign, marks)?;
        Ok(state)
    }

    /// Number of this process start.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn reign(&self) -> Reign {
        *lock(&self.reign)
    }

    /// A master of `epoch` speaks: obeyed from now on if it is not older than what was seen. `log_index` is the last
    /// entry it has applied, 0 where it does not say so. A reign that is new here begins with that, which may be less
    /// than an earlier one had: loss that was accepted, or a restored directory.
    ///
    /// # Errors
    /// `StaleEpoch` for an older reign, or another one of the same number; `Disk` if it cannot be kept.
    pub(crate) fn obey(&self, epoch: Epoch, nonce: u64, log_index: u64) -> Result<(), DataFailure> {
        if lock(&self.reign).is(epoch, nonce) {
            return Ok(());
        }
        let mut written_at = lock(&self.writing);
        let reign = *lock(&self.reign);
        let same = reign.is(epoch, nonce);
        if epoch < reign.epoch || epoch == reign.epoch && !same && reign.epoch != Epoch(0) {
            return Err(DataFailure::StaleEpoch { asked: epoch, current: reign.epoch });
        }
        if !same {
            let next = Reign { epoch, nonce, log_index };
            let disk = |e: io::Error| DataFailure::Disk { reason: e.to_string() };
            self.write(next, self.marks()).map_err(disk)?;
            *written_at = Some(Instant::now());
            *lock(&self.reign) = next;
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

    /// Whether [`Self::keep_index`] is due: the index is news, and nothing was written just now.
    ///
    /// What the master logged since the last heartbeat (or in the second before it) is in no file here: if all servers
    /// and the master die together, a directory older by no more than that cannot be told from the newest. A clean
    /// stop of either side leaves no such window.
    pub(crate) fn wants_index(&self, log_index: u64) -> bool {
        // Held: it is being written, and a disk that is slow must not be waited for by more and more threads.
        let Ok(written_at) = self.writing.try_lock() else { return false };
        lock(&self.reign).log_index < log_index
            && written_at.is_none_or(|at| INDEX_PAUSE <= at.elapsed())
    }

    /// Keeps how far the log of this reign is known to reach, if it is still obeyed. Waits for the disk.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn keep_index(&self, epoch: Epoch, nonce: u64, log_index: u64) -> io::Result<()> {
        let mut written_at = lock(&self.writing);
        let reign = *lock(&self.reign);
        if !reign.is(epoch, nonce) || log_index <= reign.log_index {
            return Ok(());
        }
        let next = Reign { log_index, ..reign };
        self.write(next, self.marks())?;
        *written_at = Some(Instant::now());
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

    pub(crate) fn marks(&self) -> OwnMarks {
        *lock(&self.marks)
    }

    /// A mark with a number above all drawn here and above `above`. On disk before it is returned: asked for twice, it
    /// would be one mark of two starts.
    ///
    /// # Errors
    /// I/O errors, or no random number.
    pub(crate) fn draw_mark(&self, above: u64) -> io::Result<Mark> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|err| io::Error::other(err.to_string()))?;
        let drawn = |marks: OwnMarks| OwnMarks {
            drawn: marks.drawn.max(marks.taken.number).max(above).saturating_add(1),
            ..marks
        };
        let number = self.change_marks(drawn)?.drawn;
        Ok(Mark { number, nonce: u64::from_le_bytes(nonce) })
    }

    /// The master's log has `mark` for this directory. On disk when it returns.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn keep_mark(&self, mark: Mark) -> io::Result<()> {
        self.change_marks(|marks| OwnMarks { taken: mark, older: false, ..marks }).map(drop)
    }

    /// The master refuses this directory as an older copy. On disk when it returns.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn keep_refusal(&self) -> io::Result<()> {
        self.change_marks(|marks| OwnMarks { older: true, ..marks }).map(drop)
    }

    fn change_marks(&self, change: impl FnOnce(OwnMarks) -> OwnMarks) -> io::Result<OwnMarks> {
        let mut written_at = lock(&self.writing);
        let before = self.marks();
        let next = change(before);
        if next != before {
            self.write(self.reign(), next)?;
            *written_at = Some(Instant::now());
            *lock(&self.marks) = next;
        }
        Ok(next)
    }

    fn write(&self, reign: Reign, marks: OwnMarks) -> io::Result<()> {
        let path = self.dir.join("server_state");
        replace_durably(&path, &text_of(self.incarnation, reign, marks))
    }
}

/// Whether the master said of the directory `dir` that it is an older copy, when it was last started.
///
/// # Errors
/// I/O errors; `InvalidData` for a damaged file.
pub(crate) fn is_older_copy(dir: &Path) -> io::Result<bool> {
    read(dir).map(|(_, _, marks)| marks.older)
}

fn read(dir: &Path) -> io::Result<(u64, Reign, OwnMarks)> {
    let path = dir.join("server_state");
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
        Err(e) => Err(e),
        Ok(text) => parse(&text).ok_or_else(|| bad(&path)),
    }
}

fn text_of(incarnation: u64, reign: Reign, marks: OwnMarks) -> String {
    let Reign { epoch, nonce, log_index } = reign;
    let OwnMarks { drawn, taken, older } = marks;
    let body = format!(
        "dfs-server-state 2 {incarnation} {} {nonce} {log_index} {drawn} {} {} {}",
        epoch.0,
        taken.number,
        taken.nonce,
        u8::from(older)
    );
    seal(&body)
}

/// Clients of all whole lines, and the bytes of these.
fn parse_ended(text: &str) -> Option<(HashSet<ClientId>, usize)> {
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    let id = |line| u128::from_str_radix(line, 16).ok().map(ClientId);
    Some((text[..whole].lines().map(id).collect::<Option<_>>()?, whole))
}

fn parse(text: &str) -> Option<(u64, Reign, OwnMarks)> {
    let mut words = unseal(text)?.strip_prefix("dfs-server-state ")?.split(' ');
    // The first form knew no marks.
    let has_marks = match words.next()? {
        "1" => false,
        "2" => true,
        _ => return None,
    };
    let mut words = words.map(str::parse);
    let mut next = || words.next()?.ok();
    let incarnation = next()?;
    let reign = Reign { epoch: Epoch(next()?), nonce: next()?, log_index: next()? };
    let mut marks = OwnMarks::default();
    if has_marks {
        marks.drawn = next()?;
        marks.taken = Mark { number: next()?, nonce: next()? };
        marks.older = match next()? {
            0 => false,
            1 => true,
            _ => return None,
        };
    }
    Some((incarnation, reign, marks))
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
        state.obey(Epoch(3), 7, 5000).unwrap();
        state.obey(Epoch(3), 7, 0).unwrap();
        assert!(state.obey(Epoch(2), 7, 0).is_err());
        assert!(state.obey(Epoch(3), 8, 0).is_err(), "another reign of the same number");
        state.end_clients(&[ClientId(5)]).unwrap();
        let again = ServerState::open(dir.path()).unwrap();
        assert_eq!(again.incarnation(), 2);
        assert_eq!(again.reign(), Reign { epoch: Epoch(3), nonce: 7, log_index: 5000 });
        assert!(again.obey(Epoch(2), 9, 0).is_err());
        assert!(again.check_epoch(Epoch(2)).is_err());
        assert!(again.is_ended(ClientId(5)) && !again.is_ended(ClientId(6)));
        // A new reign begins without: its master gives them no layout.
        again.obey(Epoch(4), 1, 0).unwrap();
        assert!(!again.is_ended(ClientId(5)));
        again.end_clients(&[ClientId(6)]).unwrap();
        let third = ServerState::open(dir.path()).unwrap();
        assert!(!third.is_ended(ClientId(5)) && third.is_ended(ClientId(6)));
    }

    #[test]
    fn every_index_of_the_reign_is_kept_and_a_new_reign_begins_with_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let state = ServerState::open(dir.path()).unwrap();
        assert!(!state.wants_index(0) && state.wants_index(1));
        state.obey(Epoch(3), 7, 10).unwrap();
        let kept = || ServerState::open(dir.path()).unwrap().reign().log_index;
        assert_eq!(kept(), 10);
        state.keep_index(Epoch(3), 7, 11).unwrap();
        assert_eq!(kept(), 11);
        // A late one, and one of a reign that is over or not yet obeyed.
        state.keep_index(Epoch(3), 7, 9).unwrap();
        state.keep_index(Epoch(2), 1, 50).unwrap();
        state.keep_index(Epoch(3), 8, 50).unwrap();
        assert_eq!(kept(), 11);
        // After a loss that was accepted the log is shorter.
        state.obey(Epoch(1003), 5, 4).unwrap();
        assert_eq!(kept(), 4);
        assert_eq!(state.reign(), Reign { epoch: Epoch(1003), nonce: 5, log_index: 4 });
    }

    #[test]
    fn marks_are_kept_and_no_number_is_drawn_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = ServerState::open(dir.path()).unwrap();
        let first = state.draw_mark(0).unwrap();
        assert_eq!((first.number, state.marks().taken), (1, Mark::NONE));
        // Asked for and not answered before the end of the process.
        let state = ServerState::open(dir.path()).unwrap();
        let second = state.draw_mark(0).unwrap();
        assert_eq!(second.number, 2);
        state.keep_mark(second).unwrap();
        state.obey(Epoch(3), 7, 10).unwrap();
        state.keep_index(Epoch(3), 7, 11).unwrap();
        let state = ServerState::open(dir.path()).unwrap();
        assert_eq!(state.marks(), OwnMarks { drawn: 2, taken: second, older: false });
        assert_eq!(state.reign().log_index, 11);
        state.keep_refusal().unwrap();
        assert!(is_older_copy(dir.path()).unwrap());
        // What the master has seen of this disk goes further than this copy of it.
        let later = state.draw_mark(40).unwrap();
        assert_eq!(later.number, 41);
        assert!(is_older_copy(dir.path()).unwrap());
        state.keep_mark(later).unwrap();
        assert!(!is_older_copy(dir.path()).unwrap());
    }

    #[test]
    fn a_directory_from_before_there_were_marks_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let text = seal("dfs-server-state 1 4 3 7 5000");
        fs::write(dir.path().join("server_state"), text).unwrap();
        let state = ServerState::open(dir.path()).unwrap();
        assert_eq!((state.incarnation(), state.marks()), (5, OwnMarks::default()));
        assert_eq!(state.reign(), Reign { epoch: Epoch(3), nonce: 7, log_index: 5000 });
    }

    #[test]
    fn a_damaged_state_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(ServerState::open(dir.path()).unwrap());
        let path = dir.path().join("server_state");
        let text = fs::read_to_string(&path).unwrap().replace(" 2 1 ", " 2 2 ");
        fs::write(&path, text).unwrap();
        assert_eq!(ServerState::open(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
