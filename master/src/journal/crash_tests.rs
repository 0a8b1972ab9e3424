//! Power losses at every kind of moment. A run is a seed; `DFS_CRASH_LOSSES` asks for more of them.

use super::faulty::{FaultyDisk, Random};
use super::segments::Contents;
use super::*;

const SEGMENT_BYTES: u64 = 16 << 10;
const LOSSES_PER_SEED: usize = 20;

fn losses_wanted() -> usize {
    std::env::var("DFS_CRASH_LOSSES").map_or(2000, |count| count.parse().unwrap())
}

/// What a log must contain after exactly these records.
#[derive(Clone, Debug, Default, PartialEq)]
struct Expected {
    entries: BTreeMap<u64, (Position, Bytes)>,
    carried: Carried,
}

impl Expected {
    fn after(&mut self, record: &Record) {
        self.carried.note(record);
        match record {
            Record::Entry { position, payload } => {
                self.entries.insert(position.index, (*position, payload.clone()));
            }
            Record::Truncate { from_index } => {
                self.entries.split_off(from_index);
            }
            Record::Purge(upto) => self.entries.retain(|index, _| *index > upto.index),
            Record::Vote(_) | Record::Committed(_) => {}
        }
    }

    fn next_index(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.carried.purged.map(|purged| purged.index)).map_or(0, |last| last + 1)
    }

    fn random_record(&self, random: &mut Random, term: u64) -> Record {
        let next = self.next_index();
        let position = |index| Position { term, node: 1, index };
        match random.below(20) {
            0 | 1 => Record::Vote(SavedVote {
                term: random.next(),
                node: 1,
                committed: random.below(2) == 0,
            }),
            2 | 3 => Record::Committed(position(random.next())),
            4 if !self.entries.is_empty() => {
                let back = random.below(3.min(self.entries.len())) as u64 + 1;
                Record::Truncate { from_index: next - back }
            }
            5 | 6 if self.entries.len() > 4 => {
                let &first = self.entries.first_key_value().unwrap().0;
                let upto = first + random.below(self.entries.len()) as u64;
                Record::Purge(self.entries[&upto].0)
            }
            _ => {
                let payload_bytes = match random.below(40) {
                    0 => 20_000,
                    1..10 => random.below(3000),
                    _ => random.below(200),
                };
                let payload: Vec<u8> = match random.below(3) {
                    0 => vec![0; payload_bytes],
                    _ => (0..payload_bytes).map(|_| random.next().to_le_bytes()[0]).collect(),
                };
                Record::Entry { position: position(next), payload: Bytes::from(payload) }
            }
        }
    }
}

fn found(contents: &Contents, segments: &Segments) -> Expected {
    let entries = contents.entries.iter().map(|(&index, &(position, location))| {
        let mut payload = vec![0; location.payload_bytes as usize];
        let file = &segments.files()[&location.sequence];
        let filled = file.read_at(location.offset, &mut payload).unwrap();
        assert_eq!(filled, payload.len());
        (index, (position, Bytes::from(payload)))
    });
    Expected { entries: entries.collect(), carried: contents.carried }
}

/// One disk through several lives. `Err` says what was wrong after a power loss.
fn run(seed: u64, losses: usize, lies: bool) -> Result<(), String> {
    let mut random = Random::new(seed);
    let disk = FaultyDisk::new(seed ^ 0x5eed);
    if lies {
        disk.lie();
    }
    // Before `settled`: on disk for certain. The records behind it may or may not be.
    let mut settled = Expected::default();
    let mut acknowledged: Vec<Record> = Vec::new();
    let mut unsure: Vec<Record> = Vec::new();
    for (term, loss) in (2..).zip(0..=losses) {
        let opened = Segments::open(Arc::new(disk.clone()), SEGMENT_BYTES, OnDamage::Refuse);
        let (mut segments, contents) =
            opened.map_err(|err| format!("seed {seed}, loss {loss}: does not open: {err}"))?;
        let found = found(&contents, &segments);
        let mut expected = settled.clone();
        acknowledged.iter().for_each(|record| expected.after(record));
        let mut kept = 0;
        while found != expected {
            let Some(record) = unsure.get(kept) else {
                return Err(format!(
                    "seed {seed}, loss {loss}: {} entries and {:?} are no prefix of what was written, \
                     or one without what was acknowledged",
                    found.entries.len(),
                    found.carried,
                ));
            };
            expected.after(record);
            kept += 1;
        }
        let lost = unsure.split_off(kept);
        settled = expected;
        acknowledged.clear();
        unsure.clear();

        let mut locations: BTreeMap<u64, Location> =
            contents.entries.iter().map(|(&index, &(_, location))| (index, location)).collect();
        disk.fail_after(random.below(60));
        let mut model = settled.clone();
        // The very same bytes again: nothing of the lost ones may come back behind them.
        let mut again = if random.below(2) == 0 { lost } else { Vec::new() }.into_iter();
        loop {
            let mut batch = Vec::new();
            for _ in 0..=random.below(4) {
                let record = again.next().unwrap_or_else(|| model.random_record(&mut random, term));
                model.after(&record);
                batch.push(record);
            }
            match segments.write(&batch) {
                Ok(written) => {
                    let mut written = written.into_iter();
                    for record in &batch {
                        match record {
                            Record::Entry { position, .. } => {
                                locations.insert(position.index, written.next().unwrap());
                            }
                            Record::Truncate { from_index } => {
                                locations.split_off(from_index);
                            }
                            Record::Purge(upto) => locations.retain(|index, _| *index > upto.index),
                            Record::Vote(_) | Record::Committed(_) => {}
                        }
                    }
                    acknowledged.append(&mut batch);
                }
                Err(_) => {
                    unsure = batch;
                    break;
                }
            }
            if segments.mark().is_err() {
                break;
            }
            let first_needed = locations.values().next().map_or(u64::MAX, |at| at.sequence);
            if segments.remove_before(first_needed).is_err() {
                break;
            }
        }
        drop(segments);
        // What a killed process left in the page cache is built upon by the next one, and must outlive its loss.
        if !lies && random.below(3) == 0 {
            disk.kill();
        } else {
            disk.lose_power();
        }
        // Some crashes leave the page cache, and others come while the log is being opened.
        if random.below(4) == 0 {
            disk.fail_after(random.below(6));
            let _ = Segments::open(Arc::new(disk.clone()), SEGMENT_BYTES, OnDamage::Refuse);
            if random.below(2) == 0 {
                disk.kill();
            } else {
                disk.lose_power();
            }
        }
    }
    Ok(())
}

#[test]
fn a_power_loss_leaves_a_prefix_with_everything_acknowledged() {
    let seeds = losses_wanted().div_ceil(LOSSES_PER_SEED) as u64;
    for seed in 0..seeds {
        run(seed, LOSSES_PER_SEED, false).unwrap();
    }
}

#[test]
fn a_disk_that_lies_about_its_sync_is_noticed() {
    let noticed = (0..100).filter(|&seed| run(seed, 1, true).is_err()).count();
    assert!(noticed > 80, "only {noticed} of 100 lies were noticed");
}

/// The same with the writing thread in between: what `done` said is there.
#[test]
fn what_the_writing_thread_acknowledged_survives_a_power_loss() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let disk = FaultyDisk::new(seed);
        let mut acknowledged: Vec<(Position, Bytes)> = Vec::new();
        for life in 0..4 {
            let config = JournalConfig {
                segment_bytes: SEGMENT_BYTES,
                on_failure: Arc::new(|_| {}),
                ..JournalConfig::default()
            };
            let journal = Journal::open_on(Arc::new(disk.clone()), config).unwrap();
            let there = journal.read(..).unwrap();
            assert!(
                there.starts_with(&acknowledged),
                "seed {seed}, life {life}: {} entries, {} acknowledged",
                there.len(),
                acknowledged.len()
            );
            acknowledged = there;
            disk.fail_after(random.below(40) + 3);
            let (done_at, done) = std::sync::mpsc::channel();
            let mut handed_in = Vec::new();
            loop {
                let index = (acknowledged.len() + handed_in.len()) as u64;
                let position = Position { term: life, node: 1, index };
                let payload = Bytes::from(vec![life.to_le_bytes()[0]; random.below(600)]);
                handed_in.push((position, payload.clone()));
                let done_at = done_at.clone();
                let on_durable = Box::new(move |result: Result<(), JournalError>| {
                    let _ = done_at.send(result.map(|()| index));
                });
                if journal.append([(position, payload)], on_durable).is_err() {
                    break;
                }
            }
            drop(journal);
            drop(done_at);
            let last = done.iter().filter_map(Result::ok).max();
            let last = last.map_or(acknowledged.len(), |last| usize::try_from(last).unwrap() + 1);
            handed_in.truncate(last - acknowledged.len());
            acknowledged.append(&mut handed_in);
            disk.lose_power();
        }
    }
}
