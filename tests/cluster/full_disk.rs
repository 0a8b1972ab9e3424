//! A disk that is full while others have room: nobody who writes is to notice.

use std::fs::File;
use std::io::Write as _;

use tests::{Cluster, Options, wait_until};

use crate::{check_content, need_fuse, pattern, write_synced};

const FILES: u64 = 10;
const FIRST: usize = 1 << 20;
const REST: usize = 15 << 20;
const RECORD: usize = 60_000;

/// Servers that have the file's only chunk.
fn servers(cluster: &Cluster, path: &str) -> Vec<String> {
    let located = cluster.dfs_json(["locate", path]);
    let servers = located["chunks"][0]["servers"].as_array().unwrap().iter();
    servers.map(|server| server.as_str().unwrap().to_owned()).collect()
}

#[test]
fn writes_go_on_elsewhere_when_one_disk_of_many_is_full() {
    need_fuse!();
    let options = Options { chunkservers: 5, capacity: None, ..Options::default() };
    let (mut cluster, disk) = match Cluster::start_on_small_disks(options, &[("cs-1", "128m")]) {
        Ok(started) => started,
        Err(reason) => return tests::skipped(&reason),
    };
    // All chunks are placed while there is room: the disk gets full in the middle of them.
    let content = |n: u64| pattern(FIRST + REST, n + 1);
    let mut files = Vec::new();
    let mut on_small = 0;
    while on_small < FILES {
        let n = files.len() as u64;
        let mut file = File::create(cluster.mount().join(format!("f{n}"))).unwrap();
        file.write_all(&content(n)[..FIRST]).unwrap();
        file.sync_all().unwrap();
        on_small += u64::from(servers(&cluster, &format!("/f{n}")).contains(&"cs-1".to_owned()));
        files.push(file);
        assert!(files.len() < 60, "a chunk in five or more is on cs-1");
    }
    let appended = cluster.mount().join("log");
    write_synced(&appended, &pattern(RECORD, 100));
    let mut log = File::options().append(true).open(&appended).unwrap();
    for (n, file) in files.iter_mut().enumerate() {
        for (part, record) in content(n as u64)[FIRST..].chunks(REST / 3).zip(1..) {
            file.write_all(part).unwrap();
            log.write_all(&pattern(RECORD, 100 + 3 * n as u64 + record)).unwrap();
        }
        file.sync_all().unwrap();
    }
    let status = cluster.dfs(["status"]);
    let told = "the disk of cs-1 is full: what is written goes to others; see docs/operations.md#a-disk-is-full";
    assert!(status.contains(told), "{status}");
    // Content that was in the inode and has to leave it, and what is new.
    for n in 0..8 {
        let path = cluster.mount().join(format!("small{n}"));
        write_synced(&path, &[b's'; 2_000]);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&[b't'; 200_000]).unwrap();
        file.sync_all().unwrap();
        check_content(&path, &[[b's'; 2_000].as_slice(), &[b't'; 200_000]].concat());
    }
    wait_until("all chunks are safe", || {
        let chunks = cluster.dfs_json(["status"])["chunks"].clone();
        chunks["total"] == chunks["safe"]
    });
    let second = cluster.mount_again("second");
    for n in 0..files.len() as u64 {
        check_content(&second.join(format!("f{n}")), &content(n));
    }
    let records = 3 * files.len() as u64 + 1;
    let expected: Vec<u8> = (0..records).flat_map(|n| pattern(RECORD, 100 + n)).collect();
    check_content(&second.join("log"), &expected);
    cluster.until_clean();
    drop(cluster);
    drop(disk);
}
