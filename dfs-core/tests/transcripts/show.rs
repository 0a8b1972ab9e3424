//! Outcomes and state as text.

use std::fmt::Write as _;

use dfs_core::chunk::{Chunk, Garbage, Member};
use dfs_core::command::{LockKind, Outcome};
use dfs_core::ids::{ChunkId, ClientId, InodeNo};
use dfs_core::meta::{self, Key, MemStore, MetaStore as _, Record};
use dfs_core::namespace::{Attr, Body};

use crate::parse::Question;

pub(crate) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Refused(error) => format!("refused: {error}"),
        Outcome::Entry { attr: found, created } => {
            format!("{} {}", if *created { "new" } else { "found" }, attr(found))
        }
        Outcome::Attr(found) => attr(found),
        Outcome::Unlinked { ino, nlink } => format!("unlinked #{}, {nlink} names left", ino.0),
        Outcome::Renamed { moved, replaced: None } => format!("moved #{}", moved.0),
        Outcome::Renamed { moved, replaced: Some(gone) } => {
            format!("moved #{}, #{} is gone", moved.0, gone.0)
        }
        Outcome::Appended { offset, attr: found } => format!("at {offset}, {}", attr(found)),
        Outcome::Chunk { chunk: id, record } => chunk(*id, record),
        Outcome::Truncating { tail: None, attr: found } => {
            format!("nothing to cut, {}", attr(found))
        }
        Outcome::Truncating { tail: Some((id, len)), attr: found } => {
            format!("cut c{} to {len}, {}", id.0, attr(found))
        }
        Outcome::LockChanged => "lock changed".into(),
        Outcome::Number(number) => format!("number {number}"),
    }
}

pub(crate) fn answer(store: &MemStore, question: &Question) -> String {
    match question {
        Question::Stat(ino) => meta::attr(store, *ino).map_or("gone".into(), |attr| full(&attr)),
        Question::List(ino) => match meta::readdir(store, *ino, 0, 1000) {
            Ok(entries) => lines(entries.iter().map(|entry| {
                format!(
                    "{} {} #{} {:?}",
                    entry.cookie,
                    String::from_utf8_lossy(&entry.name),
                    entry.ino.0,
                    entry.kind
                )
            })),
            Err(error) => format!("refused: {error}"),
        },
        Question::Lookup(parent, name) => match meta::lookup(store, *parent, name) {
            Ok(found) => attr(&found),
            Err(error) => format!("refused: {error}"),
        },
        Question::Xattrs(ino) => lines(
            between(
                store,
                &Key::Xattr(*ino, Vec::new()),
                &Key::Xattr(InodeNo(ino.0 + 1), Vec::new()),
            )
            .filter_map(|(key, record)| match (key, record) {
                (Key::Xattr(_, name), Record::Xattr(value)) => {
                    Some(format!("{} = {}", String::from_utf8_lossy(&name), shown(&value)))
                }
                _ => None,
            }),
        ),
        Question::Locks(ino) => lines(meta::locks(store, *ino).iter().map(|lock| {
            let end = if lock.end == u64::MAX { "max".into() } else { lock.end.to_string() };
            let kind = if lock.kind == LockKind::Shared { "shared" } else { "exclusive" };
            format!("{}:{} {}-{end} {kind}", lock.client.0, lock.owner, lock.start)
        })),
        Question::Chunks(ino) => {
            let all = between(store, &Key::FileChunk(*ino, 0), &Key::FileChunk(*ino, u64::MAX));
            let attached = all.filter_map(|(key, record)| match (key, record) {
                (Key::FileChunk(_, index), Record::FileChunk(id)) => {
                    meta::chunk(store, id).map(|record| format!("{index}: {}", chunk(id, &record)))
                }
                _ => None,
            });
            let waiting = meta::unborn_chunks(store, *ino).into_iter().filter_map(|id| {
                meta::chunk(store, id)
                    .filter(|record| !record.attached)
                    .map(|record| chunk(id, &record))
            });
            lines(attached.chain(waiting))
        }
        Question::Read(ino) => match meta::inode(store, *ino).map(|inode| inode.body) {
            Some(Body::Inline(content) | Body::Symlink(content)) => shown(&content),
            Some(Body::Chunks { chunk_count, .. }) => format!("{chunk_count} chunks"),
            Some(Body::Directory { .. } | Body::Special) | None => "nothing to read".into(),
        },
        Question::Totals => {
            let superblock = meta::superblock(store).unwrap();
            let (from, below) = (Key::Client(ClientId(0)), Key::Client(ClientId(u128::MAX)));
            let clients = between(store, &from, &below).filter_map(|pair| match pair {
                (Key::Client(id), Record::Client(client)) => Some(format!(
                    "client {}: {} results from op {} on",
                    id.0,
                    client.reply_count,
                    client.results.low_water()
                )),
                _ => None,
            });
            let totals = format!(
                "epoch {}, {} inodes, {} chunks, {} bytes in files, now {}",
                superblock.epoch.0,
                superblock.inode_count,
                superblock.chunk_count,
                superblock.file_bytes,
                superblock.now.0
            );
            lines(std::iter::once(totals).chain(clients))
        }
        Question::Lost => {
            let orphans = between(store, &Key::Orphan(InodeNo(0)), &Key::Orphan(InodeNo(u64::MAX)));
            let truncations =
                between(store, &Key::Truncating(InodeNo(0)), &Key::Truncating(InodeNo(u64::MAX)));
            let garbage =
                between(store, &Key::Garbage(ChunkId(0)), &Key::Garbage(ChunkId(u64::MAX)));
            lines(orphans.chain(truncations).chain(garbage).filter_map(|pair| match pair {
                (Key::Orphan(ino), _) => Some(format!("orphan #{}", ino.0)),
                (Key::Truncating(ino), Record::Truncating(size)) => {
                    Some(format!("truncating #{} to {size}", ino.0))
                }
                (Key::Garbage(id), Record::Garbage(Garbage { version, members: all })) => {
                    Some(format!("garbage c{} v{} on {}", id.0, version.0, members(&all)))
                }
                _ => None,
            }))
        }
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() { "none".into() } else { lines.join("\n") }
}

/// Text as text, long runs shortened, the rest in hexadecimal.
fn shown(bytes: &[u8]) -> String {
    if bytes.iter().all(u8::is_ascii_graphic) && bytes.len() <= 40 {
        return format!("'{}'", String::from_utf8_lossy(bytes));
    }
    let mut out = format!("{} bytes:", bytes.len());
    let mut rest = bytes;
    for _ in 0..48 {
        let Some(&first) = rest.first() else { return out };
        let run = rest.iter().take_while(|byte| **byte == first).count();
        let unit = if first.is_ascii_graphic() {
            char::from(first).to_string()
        } else {
            format!("{first:02x}")
        };
        let _ = if run == 1 { write!(out, " {unit}") } else { write!(out, " {unit}*{run}") };
        rest = &rest[run..];
    }
    out + " …"
}

/// What most commands change. Times are in [`full`].
fn attr(attr: &Attr) -> String {
    let mut out = format!(
        "#{} {:?} {:04o} {}:{} nlink={} size={} change={}",
        attr.ino.0, attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, attr.change
    );
    if attr.rdev != 0 {
        let _ = write!(out, " rdev={}", attr.rdev);
    }
    if attr.allocated_bytes != 0 {
        let _ = write!(out, " allocated={}", attr.allocated_bytes);
    }
    for (flag, set) in
        [("inline", attr.inline), ("writing", attr.writing), ("recordlog", attr.layout.record_log)]
    {
        if set {
            let _ = write!(out, " {flag}");
        }
    }
    out
}

fn full(found: &Attr) -> String {
    format!(
        "{} atime={} mtime={} ctime={} btime={}",
        attr(found),
        found.atime.0,
        found.mtime.0,
        found.ctime.0,
        found.btime.0
    )
}

fn members(members: &[Member]) -> String {
    members.iter().map(|member| member.server.to_string()).collect::<Vec<_>>().join(",")
}

fn chunk(id: ChunkId, chunk: &Chunk) -> String {
    let active = &chunk.active;
    let mut out = format!(
        "c{} v{} on {}, primary {}",
        id.0,
        active.version.0,
        members(&active.members),
        active.primary
    );
    if let Some(preparing) = &chunk.preparing {
        let _ =
            write!(out, ", preparing v{} on {}", preparing.version.0, members(&preparing.members));
        if let Some(learner) = &preparing.learner {
            let _ = write!(out, " + {}", learner.server);
        }
        if preparing.after_wait {
            out.push_str(" after the wait");
        }
    }
    for (flag, set) in [
        ("waiting", !chunk.attached),
        ("unborn", !chunk.born),
        ("sealed", chunk.sealed),
        ("stored", chunk.stored),
    ] {
        if set {
            let _ = write!(out, ", {flag}");
        }
    }
    out
}

fn between(
    store: &MemStore,
    from: &Key,
    below: &Key,
) -> impl Iterator<Item = (Key, Record)> + use<> {
    store.range(from, below, usize::MAX).into_iter()
}
