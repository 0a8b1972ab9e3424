//! What one mount has stored is seen on the other by the next open, whatever its kernel was told before.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};

use crate::promises::on_two_mounts;

fn read(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    content
}

#[test]
fn what_was_synced_without_its_time_is_read_by_the_next_open_and_under_a_lock() {
    on_two_mounts(|a, b| {
        let (here, there) = (a.join("f"), b.join("f"));
        fs::write(&here, vec![b'.'; 100_000]).unwrap();
        let writer = OpenOptions::new().write(true).open(&here).unwrap();
        let open = OpenOptions::new().read(true).write(true).open(&there).unwrap();
        for round in 0..30_u64 {
            assert_eq!(read(&there).len(), 100_000);
            let text = format!("round {round:>4}");
            writer.write_all_at(text.as_bytes(), round * 3_000).unwrap();
            writer.sync_data().unwrap();
            let found = match round % 2 {
                0 => read(&there),
                _ => {
                    fcntl_lock(&open, FlockOperation::LockExclusive).unwrap();
                    let mut found = vec![0; 100_000];
                    open.read_exact_at(&mut found, 0).unwrap();
                    fcntl_lock(&open, FlockOperation::Unlock).unwrap();
                    found
                }
            };
            let at = usize::try_from(round).unwrap() * 3_000;
            assert_eq!(String::from_utf8_lossy(&found[at..at + 10]), text);
        }
    });
}

#[test]
fn a_listing_that_goes_on_does_not_bring_back_what_was_before() {
    on_two_mounts(|a, b| {
        // Long names: a listing of them takes many answers.
        let name = |n: usize| format!("{n:0>200}");
        for n in 0..500 {
            fs::write(a.join(name(n)), vec![b'1'; 6_000]).unwrap();
        }
        let mut listing = fs::read_dir(b).unwrap();
        let mut list = |most: usize| {
            let some = listing.by_ref().take(most);
            some.map(|entry| {
                let entry = entry.unwrap();
                let _size = entry.metadata().unwrap().len();
                entry.file_name().into_string().unwrap()
            })
            .collect::<Vec<String>>()
        };
        let listed = list(200);
        let rest: Vec<usize> =
            (0..500).filter(|n| !listed.contains(&name(*n))).step_by(35).collect();
        let mut contents: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for n in rest {
            let path = a.join(name(n));
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&[b'2'; 4_000]).unwrap();
            drop(file);
            contents.insert(n, fs::read(&path).unwrap());
        }
        let check = |when: &str| {
            for (n, content) in &contents {
                let found = read(&b.join(name(*n)));
                assert!(found == *content, "{when}: {n}, {} bytes", found.len());
            }
        };
        check("before the listing goes on");
        while !list(30).is_empty() {
            check("while it is listed");
        }
        check("afterwards");
    });
}
