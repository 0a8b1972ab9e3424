use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::machine::Machine;
use super::snapshot_files::{SnapshotFiles, SnapshotReader, named, verify};
use super::types::TypeConfig;
use super::*;
use crate::journal::Position;

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

fn log_bytes(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("log")).unwrap().count()
}

#[test]
fn the_log_is_purged_only_behind_the_older_of_two_snapshots() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    for number in 0..40 {
        group.propose_blocking(Bytes::from(vec![number; 10_000])).unwrap();
    }
    let files_before = log_bytes(dir.path());
    let first = group.snapshot().unwrap();
    assert_eq!(group.purge_behind(u64::MAX).unwrap(), None, "one snapshot is not enough");
    propose(&group, 0..1);
    group.snapshot().unwrap();
    let purged = group.purge_behind(u64::MAX).unwrap();
    assert_eq!(purged, Some(first.position.index));
    propose(&group, 1..2);
    group.snapshot().unwrap();
    let kept = std::fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    assert_eq!(kept, 2);
    group.shutdown();
    assert!(log_bytes(dir.path()) < files_before);

    // The store is lost: the newest snapshot and the log after it give it back.
    let before = store.commands();
    let lost = Recorder::default();
    let group = open(dir.path(), &lost);
    assert_eq!(lost.commands(), before);
    assert_eq!(lost.state.lock().unwrap().installed_count, 1);
    propose(&group, 2..5);
    group.shutdown();
    let group = open(dir.path(), &lost);
    propose(&group, 5..6);
    assert_eq!(lost.commands().len(), before.len() + 4);
}

#[test]
fn a_damaged_snapshot_is_named_and_stops_the_purge() {
    let dir = TempDir::new().unwrap();
    let group = open(dir.path(), &Recorder::default());
    for number in 0..20 {
        group.propose_blocking(Bytes::from(vec![number; 10_000])).unwrap();
    }
    let older = group.snapshot().unwrap();
    propose(&group, 0..1);
    group.snapshot().unwrap();
    let whole = std::fs::read(&older.path).unwrap();
    // Somewhere in the third block.
    let mut rotten = whole.clone();
    let third_block =
        whole.len() - 8 - (usize::try_from(older.content_bytes).unwrap() % 65_536) - 8;
    rotten[third_block + 100] ^= 1;
    std::fs::write(&older.path, &rotten).unwrap();
    let err = group.purge_behind(u64::MAX).unwrap_err();
    assert_eq!(
        err.to_string(),
        format!(
            "{} is damaged at byte {third_block}: the block's checksum does not match",
            older.path.display()
        )
    );
    std::fs::write(&older.path, &whole).unwrap();
    assert_eq!(group.purge_behind(u64::MAX).unwrap(), Some(older.position.index));
}

#[test]
fn every_flipped_or_missing_byte_of_a_snapshot_is_noticed() {
    let dir = TempDir::new().unwrap();
    let files = SnapshotFiles::open(dir.path()).unwrap();
    let position = Position { term: 3, node: 1, index: 77 };
    let group_state = Bytes::from_static(b"group state");
    let content: Vec<u8> = (0..=255).cycle().take(300).collect();
    let info = files.write(position, &group_state, |out| out.write_all(&content)).unwrap();
    let mut read = Vec::new();
    let mut reader = SnapshotReader::open(&info.path).unwrap();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, content);
    assert_eq!(reader.info.position, position);

    let whole = std::fs::read(&info.path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x20;
        std::fs::write(&info.path, &flipped).unwrap();
        verify(&info.path).expect_err(&format!("byte {at} is flipped"));
        std::fs::write(&info.path, &whole[..at]).unwrap();
        verify(&info.path).expect_err(&format!("only {at} bytes are left"));
    }
}

#[test]
fn a_log_that_ends_before_the_store_is_refused_unless_the_loss_is_accepted() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    propose(&group, 0..20);
    group.shutdown();
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let err = Group::open(config(dir.path()), store.clone()).unwrap_err();
    assert!(matches!(err, GroupError::LogBehindStore { last: None, .. }), "{err}");

    let accepting = GroupConfig { accept_loss: true, ..config(dir.path()) };
    let group = Group::open(accepting, store.clone()).unwrap();
    propose(&group, 20..30);
    group.shutdown();
    let group = open(dir.path(), &store);
    propose(&group, 30..31);
    assert_eq!(store.commands(), (0..31).map(command).collect::<Vec<_>>());
}

#[test]
fn a_second_group_on_the_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let _group = open(dir.path(), &Recorder::default());
    let err = Group::open(config(dir.path()), Recorder::default()).unwrap_err();
    let log = dir.path().join("log");
    assert_eq!(err.to_string(), format!("{} is in use by another process", log.display()));
}

#[test]
fn after_shutdown_proposals_say_so() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    propose(&group, 0..3);
    let other = group.clone();
    group.shutdown();
    assert_eq!(other.propose_blocking(command(3)), Err(ProposeError::Stopped));
    assert_eq!(store.commands().len(), 3);
}

/// Waits in `apply` until it may go on.
struct Slow {
    recorder: Recorder,
    go_on: mpsc::Receiver<()>,
}

impl Applier for Slow {
    fn applied(&self) -> Option<Applied> {
        self.recorder.applied()
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        if !commands.is_empty() {
            // An error means that the test does not hold it back any more.
            let _ = self.go_on.recv();
        }
        self.recorder.apply(at, commands)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        self.recorder.snapshot()
    }

    fn install(&mut self, at: &Applied, from: &mut dyn Read) -> io::Result<()> {
        self.recorder.install(at, from)
    }
}

/// Notes which threads apply.
struct Threads {
    recorder: Recorder,
    applied_by: Arc<Mutex<Vec<std::thread::ThreadId>>>,
}

impl Applier for Threads {
    fn applied(&self) -> Option<Applied> {
        self.recorder.applied()
    }

    fn apply(&mut self, at: &Applied, commands: &[Bytes]) -> Vec<Bytes> {
        self.applied_by.lock().unwrap().push(std::thread::current().id());
        self.recorder.apply(at, commands)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        self.recorder.snapshot()
    }

    fn install(&mut self, at: &Applied, from: &mut dyn Read) -> io::Result<()> {
        self.recorder.install(at, from)
    }
}

#[test]
fn a_lone_caller_takes_its_command_through_the_log_itself() {
    let dir = TempDir::new().unwrap();
    let applied_by = Arc::new(Mutex::new(Vec::new()));
    let store = Threads { recorder: Recorder::default(), applied_by: Arc::clone(&applied_by) };
    let group = Group::open(config(dir.path()), store).unwrap();
    let me = std::thread::current().id();
    // The thread that stands by has its turns too.
    let own = (0..1000).any(|number| {
        propose(&group, number..number + 1);
        applied_by.lock().unwrap().contains(&me)
    });
    assert!(own, "another thread applied each of 1000 commands");
}

#[test]
fn callers_side_by_side_with_and_without_a_thread_get_their_own_answers() {
    let dir = TempDir::new().unwrap();
    let store = Recorder::default();
    let group = open(dir.path(), &store);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let group = &group;
            scope.spawn(move || propose(group, caller * 100..caller * 100 + 40));
        }
        for number in 900..940 {
            let (_, outcome) = runtime.block_on(group.propose(command(number))).unwrap();
            assert_eq!(outcome, format!("did command {number}"));
            // Queued all the same, and nobody waits for it.
            drop(group.propose(command(number + 100)));
        }
    });
    while store.commands().len() < 8 * 40 + 2 * 40 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_group_that_stops_answers_whoever_waits_and_leaves_its_directory() {
    let dir = TempDir::new().unwrap();
    let recorder = Recorder::default();
    let (go, go_on) = mpsc::channel();
    let group =
        Group::open(config(dir.path()), Slow { recorder: recorder.clone(), go_on }).unwrap();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|number| {
                let group = &group;
                scope.spawn(move || group.propose_blocking(command(number)))
            })
            .collect();
        let stopper = scope.spawn(|| group.shutdown());
        drop(go);
        for caller in callers {
            match caller.join().unwrap() {
                Ok(_) | Err(ProposeError::OutcomeUnknown | ProposeError::Stopped) => {}
                Err(other) => panic!("{other}"),
            }
        }
        stopper.join().unwrap();
    });
    let known = recorder.commands();
    drop(group);
    let _again = open(dir.path(), &recorder);
    assert!(recorder.commands().starts_with(&known));
}

#[test]
fn what_waits_is_bounded_and_goes_into_few_entries() {
    let dir = TempDir::new().unwrap();
    let recorder = Recorder::default();
    let (go, go_on) = mpsc::channel();
    let group =
        Group::open(config(dir.path()), Slow { recorder: recorder.clone(), go_on }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        let mut proposal = Box::pin(group.propose(command(waiting.len())));
        // A refusal is there at once, an outcome is not: the store waits.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match proposal.as_mut().poll(&mut context) {
            std::task::Poll::Ready(result) => break result,
            std::task::Poll::Pending => waiting.push(proposal),
        }
        assert!(waiting.len() < 20_000, "the queue has no bound");
    };
    assert_eq!(refused, Err(ProposeError::Busy));
    drop(go);
    let before = recorder.applied_index().unwrap();
    let count = waiting.len();
    assert!(count >= 10_000);
    for (number, proposal) in waiting.into_iter().enumerate() {
        let (_, outcome) = runtime.block_on(proposal).unwrap();
        assert_eq!(outcome, format!("did command {number}"));
    }
    let entries = recorder.applied_index().unwrap() - before;
    assert!(entries < 60, "{count} commands took {entries} entries");
}

#[test]
fn a_command_that_no_entry_could_hold_is_refused() {
    let dir = TempDir::new().unwrap();
    let group = open(dir.path(), &Recorder::default());
    let command_bytes = proposer::COMMAND_BYTES_MAX + 1;
    let err = group.propose_blocking(Bytes::from(vec![0; command_bytes])).unwrap_err();
    assert_eq!(err, ProposeError::TooLarge { command_bytes });
    // One larger than a segment is fine.
    group.propose_blocking(Bytes::from(vec![0; 2 << 20])).unwrap();
}

/// A group with `count` snapshots, the log purged behind the older of the newest two; and what was proposed.
fn with_snapshots(dir: &Path, count: usize) -> (Recorder, Vec<Bytes>, Vec<SnapshotInfo>) {
    let store = Recorder::default();
    let group = open(dir, &store);
    let mut snapshots = Vec::new();
    for round in 0..count {
        propose(&group, round * 10..round * 10 + 10);
        snapshots.push(group.snapshot().unwrap());
        group.purge_behind(u64::MAX).unwrap();
    }
    propose(&group, count * 10..count * 10 + 5);
    group.shutdown();
    let commands = (0..count * 10 + 5).map(command).collect();
    (store, commands, snapshots)
}

fn damage_header(snapshot: &SnapshotInfo) {
    let mut bytes = std::fs::read(&snapshot.path).unwrap();
    bytes[2] = b'X';
    std::fs::write(&snapshot.path, bytes).unwrap();
}

fn accepting(dir: &Path) -> GroupConfig {
    GroupConfig { accept_loss: true, ..config(dir) }
}

fn names(dir: &Path) -> Vec<PathBuf> {
    SnapshotFiles::open(&dir.join("snapshots")).unwrap().paths().unwrap()
}

#[test]
fn a_damaged_snapshot_that_nobody_needs_does_not_stop_the_start() {
    for empty in [false, true] {
        for with_state in [true, false] {
            for accept_loss in [false, true] {
                let dir = TempDir::new().unwrap();
                let (store, commands, snapshots) = with_snapshots(dir.path(), 1);
                if empty {
                    std::fs::write(&snapshots[0].path, b"").unwrap();
                } else {
                    damage_header(&snapshots[0]);
                }
                let store = if with_state { store } else { Recorder::default() };
                let config = GroupConfig { accept_loss, ..config(dir.path()) };
                let group = Group::open(config, store.clone()).unwrap();
                assert_eq!(store.commands(), commands);
                assert_eq!(group.snapshot_index(), None, "one is due");
                let next = group.snapshot().unwrap();
                assert_eq!(names(dir.path()), [next.path]);
                assert_eq!(group.purge_behind(u64::MAX).unwrap(), None, "one is not enough");
            }
        }
    }
}

#[test]
fn a_state_that_reaches_the_purged_log_needs_no_snapshot() {
    let dir = TempDir::new().unwrap();
    let (store, mut commands, snapshots) = with_snapshots(dir.path(), 2);
    snapshots.iter().for_each(damage_header);
    let group = open(dir.path(), &store);
    assert_eq!(store.commands(), commands);
    propose(&group, 25..26);
    commands.push(command(25));
    group.snapshot().unwrap();
    group.shutdown();
    let lost = Recorder::default();
    let _group = open(dir.path(), &lost);
    assert_eq!(lost.commands(), commands);
}

#[test]
fn a_snapshot_that_is_needed_and_damaged_is_named_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let (_, commands, snapshots) = with_snapshots(dir.path(), 2);
    let whole = std::fs::read(&snapshots[1].path).unwrap();
    damage_header(&snapshots[1]);
    let lost = Recorder::default();
    let group = open(dir.path(), &lost);
    assert_eq!(lost.commands(), commands, "the one before it is whole");
    drop(group);
    // Not readable at all, and as a newer version would write it.
    std::fs::remove_file(&snapshots[1].path).unwrap();
    std::fs::create_dir(&snapshots[1].path).unwrap();
    let lost = Recorder::default();
    drop(open(dir.path(), &lost));
    assert_eq!(lost.commands(), commands);
    std::fs::remove_dir(&snapshots[1].path).unwrap();
    let newer = [&whole[..8], &[2, 0, 0, 0, !whole[12]], &whole[13..]].concat();
    std::fs::write(&snapshots[1].path, newer).unwrap();
    let lost = Recorder::default();
    drop(open(dir.path(), &lost));
    assert_eq!(lost.commands(), commands);

    damage_header(&snapshots[0]);
    let err = Group::open(config(dir.path()), Recorder::default()).unwrap_err();
    let newer =
        format!("{} has snapshot format 2, this program reads 1", snapshots[1].path.display());
    assert_eq!((err.to_string(), err.page()), (newer, Some(Page::DirectoryRefused)));
    // All else is as in this format: a flipped bit.
    for number in [0, 2, 3] {
        let flipped = [&whole[..8], &[number], &whole[9..]].concat();
        std::fs::write(&snapshots[1].path, flipped).unwrap();
        let err = Group::open(config(dir.path()), Recorder::default()).unwrap_err();
        assert!(err.to_string().contains("damaged at byte 8: the format's number"), "{err}");
        assert_eq!(err.page(), Some(Page::DamagedLog));
    }
    std::fs::write(&snapshots[1].path, whole).unwrap();
    damage_header(&snapshots[1]);
    for config in [config(dir.path()), accepting(dir.path())] {
        let err = Group::open(config, Recorder::default()).unwrap_err();
        assert_eq!(err.page(), Some(Page::DamagedLog));
        let expected = format!(
            "{} is damaged at byte 0: this is not a snapshot; the store is empty, but the log begins behind entry {}: \
             make the directory again with `dfs master restore`, --accept-loss does not help",
            snapshots[1].path.display(),
            snapshots[0].position.index,
        );
        assert_eq!(err.to_string(), expected);
        let (wrong, _advice) = expected.split_once(": make").unwrap();
        assert_eq!(err.without_advice(), wrong);
    }
}

#[test]
fn a_good_snapshot_is_not_deleted_beside_a_damaged_one() {
    let dir = TempDir::new().unwrap();
    let (store, mut commands, snapshots) = with_snapshots(dir.path(), 3);
    damage_header(&snapshots[2]);
    let group = open(dir.path(), &store);
    propose(&group, 35..40);
    commands.extend((35..40).map(command));
    let next = group.snapshot().unwrap();
    assert_eq!(names(dir.path()), [&next.path, &snapshots[1].path].map(PathBuf::clone));
    let limit = snapshots[1].position.index;
    assert_eq!(group.purge_behind(u64::MAX).unwrap(), Some(limit));
    group.shutdown();
    // Damage behind the header is no better.
    let mut bytes = std::fs::read(&next.path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&next.path, bytes).unwrap();
    let group = open(dir.path(), &store);
    propose(&group, 40..41);
    commands.push(command(40));
    let last = group.snapshot().unwrap();
    assert_eq!(names(dir.path()), [&last.path, &snapshots[1].path].map(PathBuf::clone));
    group.shutdown();
    std::fs::remove_file(&last.path).unwrap();
    let lost = Recorder::default();
    let _group = open(dir.path(), &lost);
    assert_eq!(lost.commands(), commands);
}

#[test]
fn what_only_a_damaged_snapshot_had_is_not_passed_over() {
    let dir = TempDir::new().unwrap();
    let (_, _, snapshots) = with_snapshots(dir.path(), 1);
    damage_header(&snapshots[0]);
    let path = snapshots[0].path.display().to_string();
    let index = snapshots[0].position.index;
    // It is nothing to begin with in place of a damaged log, which stays as it is.
    let segment = dir.path().join("log/0000000000000001.log");
    let mut log = std::fs::read(&segment).unwrap();
    log[60] ^= 1;
    std::fs::write(&segment, &log).unwrap();
    let err = Group::open(accepting(dir.path()), Recorder::default()).unwrap_err();
    assert!(matches!(err, GroupError::Journal(JournalError::NothingLeft { .. })), "{err}");
    assert_eq!(std::fs::read(&segment).unwrap(), log);

    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    for config in [config(dir.path()), accepting(dir.path())] {
        let err = Group::open(config, Recorder::default()).unwrap_err();
        let expected = format!(
            "{path} is damaged at byte 0: this is not a snapshot; it had entry {index}, and nothing else is left: \
             make the directory again with `dfs master restore`, --accept-loss does not help"
        );
        assert_eq!(err.to_string(), expected);
    }

    // An older log without what followed it.
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let older = TempDir::new().unwrap();
    let group = open(older.path(), &Recorder::default());
    propose(&group, 0..3);
    let end = group.applied_index().unwrap();
    group.shutdown();
    std::fs::rename(older.path().join("log"), dir.path().join("log")).unwrap();
    let err = Group::open(config(dir.path()), Recorder::default()).unwrap_err();
    let expected = format!(
        "{path} is damaged at byte 0: this is not a snapshot; it had entry {index}, and log and store end at entry \
         {end}: make the directory again with `dfs master restore`, or go on without what is missing with --accept-loss"
    );
    assert_eq!(err.to_string(), expected);
    let store = Recorder::default();
    let group = Group::open(accepting(dir.path()), store.clone()).unwrap();
    assert_eq!(store.commands(), (0..3).map(command).collect::<Vec<_>>());
    group.shutdown();
    let _group = open(dir.path(), &store);
    assert!(std::fs::exists(format!("{path}.damaged")).unwrap(), "put aside");
}

#[test]
fn a_good_snapshot_beyond_the_log_is_what_an_accepted_loss_goes_on_with() {
    let dir = TempDir::new().unwrap();
    let (_, commands, snapshots) = with_snapshots(dir.path(), 1);
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let err = Group::open(config(dir.path()), Recorder::default()).unwrap_err();
    let expected = format!(
        "{} has entry {}, and log and store end at entry 0: \
         make the directory again with `dfs master restore`, or go on from this snapshot with --accept-loss",
        snapshots[0].path.display(),
        snapshots[0].position.index,
    );
    assert_eq!(err.to_string(), expected);
    let store = Recorder::default();
    let group = Group::open(accepting(dir.path()), store.clone()).unwrap();
    assert_eq!(store.commands(), commands[..10]);
    propose(&group, 10..20);
    group.shutdown();
    let group = open(dir.path(), &store);
    propose(&group, 20..21);

    // One of an older reign is of entries that an earlier accepted loss gave up.
    let shorter = TempDir::new().unwrap();
    let store = Recorder::default();
    for number in 0..2 {
        propose(&open(shorter.path(), &store), number..number + 1);
    }
    let files = SnapshotFiles::open(&shorter.path().join("snapshots")).unwrap();
    let given_up = Position { term: 0, ..snapshots[0].position };
    files.write(given_up, &snapshots[0].group_state, |_| Ok(())).unwrap();
    propose(&open(shorter.path(), &store), 2..3);
    assert_eq!(store.commands(), (0..3).map(command).collect::<Vec<_>>());
}

#[test]
fn a_snapshots_name_says_its_term_and_index() {
    let dir = TempDir::new().unwrap();
    let (_, _, snapshots) = with_snapshots(dir.path(), 1);
    let Position { term, index, node: _ } = snapshots[0].position;
    assert_eq!(named(&snapshots[0].path), Some((term, index)));
    for other in ["1.snapshot", "x-1.snapshot", "1-.snapshot", "1-18446744073709551616.snapshot"] {
        assert_eq!(named(Path::new(other)), None, "{other}");
    }
}
