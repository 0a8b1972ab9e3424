use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tempfile::TempDir;

use super::faulty::FaultyDisk;
use super::*;

fn config(segment_bytes: u64) -> JournalConfig {
    JournalConfig {
        segment_bytes,
        on_failure: Arc::new(|failure| panic!("the log failed: {failure:?}")),
        ..JournalConfig::default()
    }
}

fn open(disk: &FaultyDisk) -> Journal {
    Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap()
}

fn entry(index: u64) -> (Position, Bytes) {
    (Position { term: 1, node: 1, index }, Bytes::from(format!("payload of entry {index}")))
}

#[track_caller]
fn durably(hand_in: impl FnOnce(OnDurable) -> Result<(), JournalError>) {
    let (done, durable) = mpsc::channel();
    hand_in(Box::new(move |result| done.send(result).unwrap())).unwrap();
    durable.recv().unwrap().unwrap();
}

#[track_caller]
fn append(journal: &Journal, indexes: std::ops::Range<u64>) {
    for index in indexes {
        durably(|done| journal.append([entry(index)], done));
    }
}

fn indexes(journal: &Journal) -> Vec<u64> {
    journal.read(..).unwrap().into_iter().map(|(position, _)| position.index).collect()
}

fn location(journal: &Journal, index: u64) -> Location {
    // The writer publishes before it calls `done`, so an acknowledged entry has one.
    journal.inner.shared.lock().entries[&index].location.unwrap()
}

fn record_offset(journal: &Journal, index: u64) -> usize {
    usize::try_from(location(journal, index).offset).unwrap() - format::RECORD_HEADER_BYTES
}

const FIRST: &str = "0000000000000001.log";

#[test]
fn everything_reads_back_after_a_restart() {
    let disk = FaultyDisk::new(1);
    let vote = SavedVote { term: 3, node: 7, committed: true };
    {
        let journal = open(&disk);
        append(&journal, 0..20);
        durably(|done| journal.save_vote(vote, done));
        durably(|done| journal.truncate(15, done));
        append(&journal, 15..18);
        durably(|done| journal.purge(entry(4).0, done));
        journal.note_committed(entry(16).0).unwrap();
    }
    let journal = open(&disk);
    assert_eq!(journal.vote(), Some(vote));
    assert_eq!(journal.purged(), Some(entry(4).0));
    assert_eq!(journal.committed(), Some(entry(16).0));
    assert_eq!(journal.last(), Some(entry(17).0));
    assert_eq!(journal.read(..).unwrap(), (5..18).map(entry).collect::<Vec<_>>());
    assert_eq!(journal.read(7..9).unwrap(), (7..9).map(entry).collect::<Vec<_>>());
    assert_eq!(journal.cut(), None);
}

#[test]
fn a_vote_survives_a_power_loss() {
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed);
        let vote = SavedVote { term: seed + 1, node: 1, committed: false };
        let journal = open(&disk);
        durably(|done| journal.save_vote(vote, done));
        disk.fail_after(0);
        disk.lose_power();
        // The first log is still open, as a process would be that the power took away.
        let again = Segments::open(Arc::new(disk.clone()), 8 << 10, OnDamage::Refuse).unwrap().1;
        assert_eq!(again.carried.vote, Some(vote));
    }
}

#[test]
fn entries_that_left_the_cache_are_read_from_disk() {
    let disk = FaultyDisk::new(1);
    let journal = Journal::open_on(
        Arc::new(disk.clone()),
        JournalConfig { cache_bytes: 100, ..config(8 << 10) },
    )
    .unwrap();
    append(&journal, 0..500);
    let in_memory =
        journal.inner.shared.lock().entries.values().filter(|slot| slot.payload.is_some()).count();
    assert!(in_memory < 10, "{in_memory} payloads are in memory");
    assert_eq!(journal.read(..).unwrap(), (0..500).map(entry).collect::<Vec<_>>());
    let limited = journal.read_limited(10.., 50).unwrap();
    assert_eq!(limited, (10..13).map(entry).collect::<Vec<_>>());
}

#[test]
fn a_payload_that_rots_on_disk_is_not_returned() {
    let disk = FaultyDisk::new(1);
    drop({
        let journal = open(&disk);
        append(&journal, 0..3);
        journal
    });
    let journal = open(&disk);
    let offset = location(&journal, 1).offset;
    disk.edit(FIRST, |bytes| bytes[usize::try_from(offset).unwrap()] ^= 1);
    let err = journal.read(..).unwrap_err();
    assert!(
        matches!(&err, JournalError::Damaged { file, offset: at, .. }
            if *at == offset && file.ends_with(FIRST)),
        "{err}"
    );
}

#[test]
fn purging_deletes_whole_old_segments_and_nothing_else() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..300);
    let before = disk.list().unwrap().len();
    durably(|done| journal.purge(entry(199).0, done));
    drop(journal);
    let after = disk.list().unwrap().len();
    assert!(after < before, "{before} segments became {after}");
    let journal = open(&disk);
    assert_eq!(indexes(&journal), (200..300).collect::<Vec<_>>());
    assert_eq!(journal.purged(), Some(entry(199).0));
}

#[test]
fn an_entry_out_of_order_is_refused_and_the_log_goes_on() {
    let journal = open(&FaultyDisk::new(1));
    append(&journal, 0..3);
    let err = journal.append([entry(2)], Box::new(|_| panic!("it was refused"))).unwrap_err();
    assert!(matches!(err, JournalError::OutOfOrder { index: 2, last: 2 }), "{err}");
    append(&journal, 3..4);
    assert_eq!(indexes(&journal), [0, 1, 2, 3]);
}

#[test]
fn a_file_cut_anywhere_in_the_last_record_loses_only_that_record() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..5);
    let start = record_offset(&journal, 4);
    // Behind its payload are zeros anyway.
    let end = start + format::RECORD_HEADER_BYTES + entry(4).1.len();
    drop(journal);
    let mut whole = Vec::new();
    disk.edit(FIRST, |bytes| whole.clone_from(bytes));
    for length in start + 1..end {
        // The file keeps its size: no crash makes it shorter.
        disk.edit(FIRST, |bytes| {
            bytes.clone_from(&whole);
            bytes[length..].fill(0);
        });
        let journal = open(&disk);
        assert_eq!(indexes(&journal), [0, 1, 2, 3], "cut to {length} bytes");
        let cut = journal.cut().unwrap();
        assert!(!cut.lossy);
        assert_eq!(cut.offset, start as u64);
        // And what is written next does not meet remains of the old record.
        append(&journal, 4..6);
        drop(journal);
        assert_eq!(indexes(&open(&disk)), [0, 1, 2, 3, 4, 5]);
    }
}

fn stored_bytes(index: u64) -> u64 {
    let (position, payload) = entry(index);
    Record::Entry { position, payload }.stored_bytes()
}

#[test]
fn any_flipped_byte_before_the_last_marker_is_refused_with_file_and_offset() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..4);
    // Each record is followed by its marker.
    let starts: Vec<usize> = (0..4)
        .map(|index| record_offset(&journal, index))
        .flat_map(|start| [start, start + usize::try_from(stored_bytes(0)).unwrap()])
        .collect();
    drop(journal);
    let last_marker = starts[7];
    for at in format::HEADER_SIZE..last_marker {
        disk.edit(FIRST, |bytes| bytes[at] ^= 0x10);
        let expected = *starts.iter().rfind(|&&start| start <= at).unwrap() as u64;
        let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
        assert!(
            matches!(&err, JournalError::Damaged { file, offset, .. }
                if *offset == expected && file.ends_with(FIRST)),
            "byte {at}: {err}"
        );
        disk.edit(FIRST, |bytes| bytes[at] ^= 0x10);
    }
    // The marker itself is nothing that anybody was promised.
    disk.edit(FIRST, |bytes| bytes[last_marker + 50] ^= 0x10);
    assert_eq!(indexes(&open(&disk)), [0, 1, 2, 3]);
}

#[test]
fn damage_is_cut_only_where_the_loss_is_accepted() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..200);
    let Location { sequence, offset, .. } = location(&journal, 60);
    drop(journal);
    let count = disk.list().unwrap().len();
    assert!(2 < count && sequence > 1, "the damage is in the middle of several segments");
    let name = segments::segment_name(sequence);
    disk.edit(&name, |bytes| bytes[usize::try_from(offset).unwrap()] ^= 1);

    let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
    let record_offset = offset - format::RECORD_HEADER_BYTES as u64;
    assert_eq!(
        err.to_string(),
        format!(
            "/faulty/{name} is damaged at byte {record_offset}: \
             the record's checksum does not match"
        )
    );
    assert_eq!(disk.list().unwrap().len(), count, "a refusal changes nothing");

    let accepting = JournalConfig { accept_loss: true, ..config(8 << 10) };
    let journal = Journal::open_on(Arc::new(disk.clone()), accepting).unwrap();
    assert!(journal.cut().unwrap().lossy);
    assert_eq!(indexes(&journal), (0..60).collect::<Vec<_>>());
    append(&journal, 60..70);
    drop(journal);
    assert_eq!(indexes(&open(&disk)), (0..70).collect::<Vec<_>>());
}

/// That the log was purged stands behind the damage, in its last segment.
#[test]
fn damage_in_a_purged_log_is_named_where_it_is() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..300);
    durably(|done| journal.purge(entry(99).0, done));
    let places = [101, 200, 290].map(|index| (index, location(&journal, index)));
    drop(journal);
    for (index, Location { sequence, offset, .. }) in places {
        let name = segments::segment_name(sequence);
        let change = |bytes: &mut Vec<u8>| bytes[usize::try_from(offset).unwrap()] ^= 1;
        disk.edit(&name, change);
        let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
        let expected = offset - format::RECORD_HEADER_BYTES as u64;
        assert!(
            matches!(&err, JournalError::Damaged { file, offset, .. }
                if *offset == expected && file.ends_with(&name)),
            "entry {index}: {err}"
        );
        disk.edit(&name, change);
    }
    assert_eq!(indexes(&open(&disk)), (100..300).collect::<Vec<_>>());
}

#[test]
fn a_missing_segment_is_damage() {
    for missing in [1, 2] {
        let disk = FaultyDisk::new(1);
        append(&open(&disk), 0..200);
        disk.remove(&segments::segment_name(missing)).unwrap();
        let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
        assert!(matches!(err, JournalError::Damaged { .. }), "without segment {missing}: {err}");
        let accepting = JournalConfig { accept_loss: true, ..config(8 << 10) };
        let journal = Journal::open_on(Arc::new(disk.clone()), accepting).unwrap();
        let next = journal.last().unwrap().index + 1;
        append(&journal, next..next + 3);
        let left = indexes(&journal);
        drop(journal);
        assert_eq!(indexes(&open(&disk)), left);
    }
}

#[test]
fn newer_and_damaged_headers_are_told_apart() {
    let disk = FaultyDisk::new(1);
    append(&open(&disk), 0..3);
    let refused = |at: usize, change: fn(u8) -> u8| {
        let mut before = 0;
        disk.edit(FIRST, |bytes| {
            before = bytes[at];
            bytes[at] = change(before);
        });
        let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
        disk.edit(FIRST, |bytes| bytes[at] = before);
        err
    };
    for at in 0..120 {
        let err = refused(at, |byte| !byte);
        assert!(matches!(err, JournalError::Damaged { offset: 0, .. }), "byte {at}: {err}");
    }
    // A newer program's own: its checksum is another, or elsewhere.
    disk.edit(FIRST, |bytes| (bytes[8], bytes[12]) = (9, !bytes[12]));
    let err = Journal::open_on(Arc::new(disk.clone()), config(8 << 10)).unwrap_err();
    assert_eq!(
        err.to_string(),
        format!("/faulty/{FIRST} has log format 9, this program reads formats up to 1")
    );
}

#[test]
fn a_payload_cannot_pretend_to_be_a_marker() {
    let disk = FaultyDisk::new(1);
    let journal = open(&disk);
    append(&journal, 0..2);
    // The second marker as it stands on disk, offered as a payload and then torn.
    let marker = record_offset(&journal, 1) + usize::try_from(stored_bytes(1)).unwrap();
    let mut payload = Vec::new();
    disk.edit(FIRST, |bytes| payload.extend_from_slice(&bytes[marker..marker + 80]));
    let payload = Bytes::from(payload);
    durably(|done| journal.append([(entry(2).0, payload)], done));
    let start = record_offset(&journal, 2);
    drop(journal);
    disk.edit(FIRST, |bytes| {
        bytes[start] ^= 1;
        bytes[start + format::RECORD_HEADER_BYTES + 80..].fill(0);
    });
    assert_eq!(indexes(&open(&disk)), [0, 1]);
}

/// No crash does it: what was acknowledged stood there, or may have.
#[test]
fn a_last_segment_that_is_shorter_than_it_was_made_is_damage() {
    for records_cut in [true, false] {
        let disk = FaultyDisk::new(1);
        let journal = open(&disk);
        append(&journal, 0..3);
        let start = record_offset(&journal, 2);
        drop(journal);
        // Before the last record's end, or somewhere in the zeros behind it.
        let mut size = 0;
        disk.edit(FIRST, |bytes| {
            size = bytes.len();
            bytes.truncate(if records_cut { start + 20 } else { size - 1 });
        });
        let again = || Journal::open_on(Arc::new(disk.clone()), config(8 << 10));
        for _ in 0..2 {
            let err = again().unwrap_err();
            assert!(matches!(err, JournalError::Damaged { .. }), "{err}");
            let text = err.to_string();
            assert!(text.contains(FIRST) && text.contains("shorter than it was made"), "{text}");
            if records_cut {
                assert!(text.contains(&format!("at byte {start}:")), "{text}");
            }
        }
        let told = JournalConfig { accept_loss: true, ..config(8 << 10) };
        let journal = Journal::open_on(Arc::new(disk.clone()), told).unwrap();
        assert_eq!(indexes(&journal), if records_cut { vec![0, 1] } else { vec![0, 1, 2] });
        assert!(journal.cut().unwrap().lossy);
        drop(journal);
        disk.edit(FIRST, |bytes| assert_eq!(bytes.len(), size));
        drop(again().unwrap());
    }
}

#[test]
fn a_copy_that_ends_with_its_last_record_is_completed() {
    let dir = TempDir::new().unwrap();
    complete_copy(dir.path()).unwrap();
    let journal = Journal::open(dir.path(), config(64 << 10)).unwrap();
    append(&journal, 0..10);
    let durable = journal.durable_segments().unwrap().pop().unwrap();
    let file = std::fs::File::options().write(true).open(dir.path().join(&durable.name)).unwrap();
    drop(journal);
    file.set_len(durable.bytes).unwrap();
    Journal::open(dir.path(), config(64 << 10)).unwrap_err();
    complete_copy(dir.path()).unwrap();
    let journal = Journal::open(dir.path(), config(64 << 10)).unwrap();
    assert_eq!(indexes(&journal), (0..10).collect::<Vec<_>>());
    assert!(journal.cut().is_none_or(|cut| !cut.lossy));
}

#[test]
fn a_failed_write_is_told_to_everybody_and_ends_the_log() {
    let disk = FaultyDisk::new(1);
    let failures = Arc::new(AtomicUsize::new(0));
    let on_failure: OnFailure = {
        let failures = Arc::clone(&failures);
        Arc::new(move |_| {
            failures.fetch_add(1, Ordering::SeqCst);
        })
    };
    let journal =
        Journal::open_on(Arc::new(disk.clone()), JournalConfig { on_failure, ..config(8 << 10) })
            .unwrap();
    append(&journal, 0..2);
    // The write succeeds, its sync does not.
    while failures.load(Ordering::SeqCst) == 0 {
        disk.fail_after(1);
        let (done, durable) = mpsc::channel();
        let index = journal.last().unwrap().index + 1;
        journal.append([entry(index)], Box::new(move |result| done.send(result).unwrap())).unwrap();
        let told = durable.recv().unwrap();
        assert_eq!(told.is_err(), failures.load(Ordering::SeqCst) == 1);
    }
    let err = journal.append([entry(9)], Box::new(|_| panic!("it was refused"))).unwrap_err();
    assert!(matches!(err, JournalError::Stopped), "{err}");
    drop(journal);
    assert_eq!(failures.load(Ordering::SeqCst), 1);
}

#[test]
fn a_directory_has_one_user() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(dir.path(), config(64 << 10)).unwrap();
    append(&journal, 0..10);
    let err = Journal::open(dir.path(), config(64 << 10)).unwrap_err();
    assert_eq!(err.to_string(), format!("{} is in use by another process", dir.path().display()));
    drop(journal);
    let journal = Journal::open(dir.path(), config(64 << 10)).unwrap();
    assert_eq!(indexes(&journal), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_label_that_is_not_one_is_mended_and_nothing_is_cut_where_nothing_would_be_left() {
    let disk = FaultyDisk::new(1);
    append(&open(&disk), 0..3);
    let try_open = |may_begin_anew| {
        let config = JournalConfig { accept_loss: true, may_begin_anew, ..config(8 << 10) };
        Journal::open_on(Arc::new(disk.clone()), config)
    };
    disk.edit(FIRST, |bytes| bytes[..12].fill(b'?'));
    assert!(try_open(false).is_ok());
    assert_eq!(indexes(&open(&disk)), [0, 1, 2]);

    for at in [20, format::HEADER_SIZE + 5] {
        let mut before = 0;
        disk.edit(FIRST, |bytes| (before, bytes[at]) = (bytes[at], !bytes[at]));
        let error = try_open(false).unwrap_err();
        assert!(matches!(error, JournalError::NothingLeft { .. }), "byte {at}: {error}");
        disk.edit(FIRST, |bytes| bytes[at] = before);
    }
    assert_eq!(indexes(&open(&disk)), [0, 1, 2]);
}
