use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::machine::Machine;
use super::snapshot_files::SnapshotFiles;
use super::types::TypeConfig;
use super::*;

/// Remembers every command. What it holds outlives the group, as a store on disk would.
#[derive(Clone, Default)]
struct Recorder {
    state: Arc<Mutex<Recorded>>,
}

#[derive(Clone, Default)]
struct Recorded {
    applied: Option<Applied>,
    commands: Vec<(u64, Bytes)>,
    installed_count: usize,
}

impl Recorder {
    fn commands(&self) -> Vec<Bytes> {
        self.state.lock().unwrap().commands.iter().map(|(_, command)| command.clone()).collect()
    }

    fn applied_index(&self) -> Option<u64> {
        self.state.lock().unwrap().applied.as_ref().map(|applied| applied.index)
    }

    /// The state as it was after `index`, as a store that had not yet synced the rest.
    fn forget_after(&self, index: u64) {
        let mut state = self.state.lock().unwrap();
        state.commands.retain(|(at, _)| *at <= index);
        if let Some(applied) = &mut state.applied {
            applied.index = applied.index.min(index);
        }
    }
}

impl Applier for Recorder {
    fn applied(&self) -> Option<Applied> {
        self.state.lock().unwrap().applied.clone()
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        let mut state = self.state.lock().unwrap();
        if let Some(before) = &state.applied {
            assert_eq!(before.index + 1, at.index, "every entry once, in order");
        }
        state.applied = Some(at.clone());
        state.commands.extend(commands.iter().map(|command| (at.index, command.clone())));
        commands.iter().map(|command| Bytes::from([b"did ", &command[..]].concat())).collect()
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let state = self.state.lock().unwrap().clone();
        Ok(Box::new(move |out| {
            for (at, command) in &state.commands {
                out.write_all(&at.to_le_bytes())?;
                out.write_all(&(command.len() as u64).to_le_bytes())?;
                out.write_all(command)?;
            }
            Ok(())
        }))
    }

    fn install(&mut self, at: &Applied, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut commands = Vec::new();
        let mut rest = &bytes[..];
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let index = u64::from_le_bytes(head[..8].try_into().unwrap());
            let command_bytes = u64::from_le_bytes(head[8..].try_into().unwrap());
            let command_bytes = usize::try_from(command_bytes).unwrap();
            commands.push((index, Bytes::copy_from_slice(&tail[..command_bytes])));
            rest = &tail[command_bytes..];
        }
        let mut state = self.state.lock().unwrap();
        *state = Recorded {
            applied: Some(at.clone()),
            commands,
            installed_count: state.installed_count + 1,
        };
        Ok(())
    }
}

fn config(dir: &Path) -> GroupConfig {
    GroupConfig::new(dir).segment_bytes(64 << 10).on_failure(Arc::new(|failure| {
        panic!("the log failed: {failure:?}");
    }))
}

fn open(dir: &Path, store: &Recorder) -> Group {
    Group::open(config(dir), store.clone()).unwrap()
}

fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

fn propose(group: &Group, range: std::ops::Range<usize>) {
    for number in range {
        let (_, outcome) = group.propose_blocking(command(number)).unwrap();
        assert_eq!(outcome, format!("did command {number}"));
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<u64>> {
        let dir = TempDir::new().unwrap();
        let config = JournalConfig { segment_bytes: 64 << 10, ..JournalConfig::default() };
        let journal = Journal::open(&dir.path().join("log"), config).unwrap();
        let files = SnapshotFiles::open(&dir.path().join("snapshots")).unwrap();
        let machine = Machine::new(Box::new(SuiteRecorder::default()), files);
        Ok((dir, LogStore::new(journal), machine))
    }
}

/// The suite applies entries with gaps.
#[derive(Default)]
struct SuiteRecorder(Recorder);

impl Applier for SuiteRecorder {
    fn applied(&self) -> Option<Applied> {
        self.0.applied()
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        self.0.state.lock().unwrap().applied = None;
        self.0.apply(at, commands)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        self.0.snapshot()
    }

    fn install(&mut self, at: &Applied, from: &mut dyn Read) -> io::Result<()> {
        self.0.install(at, from)
    }
}

#[test]
fn log_and_machine_pass_the_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}

#[test]
fn commands_are_applied_once_in_order_over_restarts() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    for round in 0..4 {
        let group = open(dir.path(), &store);
        assert!(group.is_leader());
        propose(&group, round * 25..(round + 1) * 25);
        if round % 2 == 0 {
            group.shutdown();
        }
    }
    let expected: Vec<_> = (0..100).map(command).collect();
    assert_eq!(store.commands(), expected);
}

#[test]
fn a_store_that_fell_behind_is_caught_up_before_open_returns() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    propose(&group, 0..50);
    group.shutdown();
    store.forget_after(20);
    assert!(store.commands().len() < 50);
    let group = open(dir.path(), &store);
    assert_eq!(store.commands(), (0..50).map(command).collect::<Vec<_>>());
    propose(&group, 50..51);
}

#[test]
fn concurrent_proposals_share_entries_and_get_their_own_outcomes() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let group = group.clone();
            scope.spawn(move || propose(&group, thread * 1000..thread * 1000 + 100));
        }
    });
    let commands = store.commands();
    assert_eq!(commands.len(), 1600);
    // Each thread's own commands keep their order.
    let mut last = BTreeMap::new();
    for command in commands {
        let number: usize =
            std::str::from_utf8(&command).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        if let Some(before) = last.insert(number / 1000, number) {
            assert!(before < number);
        }
    }
    assert!(store.applied_index().unwrap() < 1600, "no two proposals shared an entry");
}
