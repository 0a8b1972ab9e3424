//! Bytes in replicas behind their file's end.

use dfs_core::namespace::Attr;

use super::*;

impl Client {
    fn commit(&mut self, ino: InodeNo, size: u64, done_writing: bool) -> Attr {
        let change = Change::CommitSize {
            ino,
            size,
            cuts_seen: 0,
            mtime: None,
            done_writing,
            kill_priv: false,
        };
        match self.change(change) {
            Outcome::Attr(attr) => attr,
            other => panic!("{other:?}"),
        }
    }
}

impl World {
    /// What the check finds wrong with bytes behind an end.
    fn behind(&self) -> Vec<String> {
        let mut found = Vec::new();
        master::fsck::fsck(&self.master().master, true, &mut |kind, text, _| {
            if kind == "violation" {
                found.push(text);
            }
        });
        found.retain(|text| text.contains("behind the file's end"));
        found
    }
}

#[test]
fn bytes_behind_a_files_end_are_told_of_unless_somebody_writes_it() {
    let world = World::new(3);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    client.write(ino, 0, &[7; 1000]);
    client.commit(ino, 1000, false);
    client.write(ino, 2000, &[7; 100]);
    assert!(client.commit(ino, 1000, false).writing);
    assert!(world.behind().is_empty(), "its writer will say how far it reaches");
    assert!(!client.commit(ino, 1000, true).writing);
    let found = world.behind();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("cs-1, cs-2, cs-3"), "{found:?}");

    client.op += 1;
    let call = MetaCall::Truncate { op: client.op, ino, size: 1000 };
    match client.meta(call) {
        MetaReply::Outcome(Outcome::Attr(attr)) => assert_eq!(attr.size, 1000),
        other => panic!("{other:?}"),
    }
    assert!(world.behind().is_empty());
    // Zeros are what a longer file would show.
    client.write(ino, 5000, &[0; 100]);
    assert!(!client.commit(ino, 1000, true).writing);
    assert!(world.behind().is_empty());
}

/// A master that stopped between the two halves of a cut: the last chunk still has its old length.
#[test]
fn while_a_cut_is_under_way_its_size_is_exact() {
    let world = World::new(3);
    let mut client = Client::new(&world, 1);
    let ino = client.create("file");
    client.write(ino, 0, &[7; 1000]);
    assert!(client.commit(ino, 1000, false).writing);
    let begun = world.master().master.propose(None, Change::TruncateBegin { ino, size: 300 });
    assert!(matches!(begun, Ok(Outcome::Truncating { tail: Some((_, 300)), .. })), "{begun:?}");
    for call in [MetaCall::GetAttr { ino }, MetaCall::Open { ino, write: true }] {
        match client.meta(call.clone()) {
            MetaReply::Attr(attr) | MetaReply::Opened { attr, .. } => {
                assert_eq!((attr.size, attr.writing), (300, false), "{call:?}");
            }
            other => panic!("{call:?}: {other:?}"),
        }
    }
    client.op += 1;
    match client.meta(MetaCall::Truncate { op: client.op, ino, size: 300 }) {
        MetaReply::Outcome(Outcome::Attr(attr)) => {
            assert_eq!((attr.size, attr.writing), (300, true));
        }
        other => panic!("{other:?}"),
    }
}
