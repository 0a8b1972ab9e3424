//! Files whose content is in the inode, written by several programs and mounts at once: nobody's bytes are written but
//! those a program wrote, and those once.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::promises::on_two_mounts;

/// Writes bytes of its own in `path` until told to stop: single ones, so that commits of others find some that came
/// meanwhile.
fn write_beside(path: &Path, at: u64, stop: &AtomicBool) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let mut turn = 0_u8;
    while !stop.load(Ordering::Acquire) {
        turn = turn.wrapping_add(1);
        file.write_all_at(&[turn], at).unwrap();
    }
}

/// `round` with somebody on the first mount who writes at 900 meanwhile.
fn beside_a_bystander(rounds: u32, round: impl Fn(u32, &Path, &Path)) {
    on_two_mounts(|a, b| {
        let (here, there) = (a.join("f"), b.join("f"));
        fs::write(&here, [b'.'; 1000]).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write_beside(&here, 900, &stop));
            let end = StopAtEnd(&stop);
            (0..rounds).for_each(|number| round(number, &here, &there));
            drop(end);
        });
    });
}

/// Also when a round fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn write_closed(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn read_opened(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn what_was_closed_is_not_written_again_over_what_others_wrote_since() {
    beside_a_bystander(150, |round, here, there| {
        let (first, second) = (format!("here {round:>5}"), format!("there {round:>4}"));
        write_closed(here, 100, first.as_bytes());
        assert_eq!(read_opened(there, 100, 10), first.as_bytes(), "round {round}");
        write_closed(there, 100, second.as_bytes());
        // The next close here has the bystander's bytes with it, and nothing else.
        write_closed(here, 200, b"x");
        for path in [here, there] {
            let found = read_opened(path, 100, 10);
            let text = String::from_utf8_lossy(&found);
            assert_eq!(text, second, "round {round}, {}", path.display());
        }
    });
}

#[test]
fn what_was_cut_elsewhere_after_a_close_does_not_come_back() {
    beside_a_bystander(60, |round, here, there| {
        let long = vec![b'l'; 1000];
        write_closed(here, 1000, &long);
        let file = OpenOptions::new().write(true).open(there).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2000, "round {round}");
        file.set_len(950).unwrap();
        drop(file);
        write_closed(here, 200, b"x");
        for path in [here, there] {
            let len = fs::File::open(path).unwrap().metadata().unwrap().len();
            assert_eq!(len, 950, "round {round}, {}", path.display());
        }
    });
}

#[test]
fn what_lies_between_many_small_writes_stays_as_others_wrote_it() {
    on_two_mounts(|a, b| {
        let (here, there) = (a.join("f"), b.join("f"));
        fs::write(&here, [b'.'; 1000]).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = OpenOptions::new().write(true).open(&here).unwrap();
                while !stop.load(Ordering::Acquire) {
                    for at in 0..14 {
                        file.write_all_at(b"h", at * 60).unwrap();
                    }
                    file.sync_all().unwrap();
                }
            });
            let end = StopAtEnd(&stop);
            let mut how = OpenOptions::new();
            let file = how.write(true).custom_flags(libc::O_SYNC).open(&there).unwrap();
            for round in 0..300 {
                let bytes = format!("{round:>8}");
                file.write_all_at(bytes.as_bytes(), 30).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
                let found = read_opened(&there, 30, 8);
                assert_eq!(String::from_utf8_lossy(&found), bytes, "round {round}");
            }
            drop(end);
        });
        assert_eq!(read_opened(&there, 0, 1), b"h");
    });
}
