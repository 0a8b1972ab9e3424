//! What may be done, and choosing it.

use std::path::PathBuf;

use super::Dice;
use super::world::World;

/// One operation. Paths are below the roots; `mount` says which mount does it, `handle` which open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Open {
        mount: usize,
        path: PathBuf,
        write: bool,
        create: bool,
        excl: bool,
        trunc: bool,
        append: bool,
        mode: u32,
    },
    Close {
        handle: usize,
    },
    Read {
        handle: usize,
        offset: u64,
        len: usize,
    },
    Write {
        handle: usize,
        offset: u64,
        len: usize,
        fill: u8,
    },
    HandleTruncate {
        handle: usize,
        size: u64,
    },
    Allocate {
        handle: usize,
        offset: u64,
        len: u64,
        mode: Allocate,
    },
    HandleStat {
        handle: usize,
    },
    CopyRange {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        len: usize,
    },
    Mkdir {
        mount: usize,
        path: PathBuf,
        mode: u32,
    },
    Rmdir {
        mount: usize,
        path: PathBuf,
    },
    Unlink {
        mount: usize,
        path: PathBuf,
    },
    Rename {
        mount: usize,
        from: PathBuf,
        to: PathBuf,
        mode: Rename,
    },
    Link {
        mount: usize,
        from: PathBuf,
        to: PathBuf,
    },
    Symlink {
        mount: usize,
        target: Vec<u8>,
        path: PathBuf,
    },
    Readlink {
        mount: usize,
        path: PathBuf,
    },
    Mkfifo {
        mount: usize,
        path: PathBuf,
        mode: u32,
    },
    Stat {
        mount: usize,
        path: PathBuf,
        follow: bool,
    },
    Chmod {
        mount: usize,
        path: PathBuf,
        mode: u32,
    },
    Chown {
        mount: usize,
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    Truncate {
        mount: usize,
        path: PathBuf,
        size: u64,
    },
    Times {
        mount: usize,
        path: PathBuf,
        atime: (i64, i64),
        mtime: (i64, i64),
    },
    List {
        mount: usize,
        path: PathBuf,
    },
    ReadWhole {
        mount: usize,
        path: PathBuf,
    },
    SetXattr {
        mount: usize,
        path: PathBuf,
        name: &'static str,
        value: Vec<u8>,
        mode: Xattr,
    },
    GetXattr {
        mount: usize,
        path: PathBuf,
        name: &'static str,
    },
    RemoveXattr {
        mount: usize,
        path: PathBuf,
        name: &'static str,
    },
    ListXattr {
        mount: usize,
        path: PathBuf,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Allocate {
    Grow,
    KeepSize,
    PunchHole,
    ZeroRange,
    ZeroRangeKeepSize,
    /// Refused: `PUNCH_HOLE` alone.
    PunchWithoutKeep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Xattr {
    Set,
    Create,
    Replace,
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const XATTRS: [&str; 4] = ["user.one", "user.two", "trusted.three", "nonsense"];
/// Around where content leaves the inode, pages end, checksum blocks end, and larger.
const EDGES: [u64; 8] = [0, 100, 4_095, 4_096, 4_097, 65_536, 131_072, 1 << 20];
const MODES: [u32; 7] = [0o644, 0o600, 0o755, 0o777, 0o4755, 0o2750, 0o1777];
const HANDLES_MAX: usize = 8;

fn path(dice: &mut Dice) -> PathBuf {
    let depth = dice.pick(&[1, 1, 2, 2, 3]);
    let mut path: PathBuf = (0..depth).map(|_| dice.pick(&NAMES)).collect();
    match dice.below(60) {
        0 => path.push("x".repeat(255)),
        1 => path.push("x".repeat(256)),
        2 => path.push(".."),
        3 => path.push("."),
        4 => path.push("missing"),
        _ => {}
    }
    path
}

fn offset(dice: &mut Dice) -> u64 {
    let edge = dice.pick(&EDGES);
    if dice.one_in(2) { edge } else { edge + dice.below(5_000) }
}

fn len(dice: &mut Dice) -> usize {
    match dice.below(4) {
        0 => dice.index(100),
        1 => dice.index(5_000),
        2 => dice.index(70_000),
        _ => dice.index(300_000),
    }
}

fn time(dice: &mut Dice) -> (i64, i64) {
    // utimensat(2): nanoseconds may also say "now" and "leave it".
    match dice.below(6) {
        0 => (0, libc::UTIME_NOW),
        1 => (0, libc::UTIME_OMIT),
        2 => (-5, 250_000_000),
        3 => (4_294_967_297, 1),
        _ => (1_600_000_000, i64::try_from(dice.below(1_000_000_000)).unwrap()),
    }
}

pub(crate) fn choose(dice: &mut Dice, world: &World) -> Operation {
    let mount = dice.index(world.mounts());
    let handles = world.handles();
    if 0 < handles && dice.below(100) < 40 {
        return choose_on_handle(dice, handles);
    }
    match dice.below(100) {
        0..=19 if handles < HANDLES_MAX => {
            let write = dice.below(4) != 0;
            let (create, excl) = (dice.below(3) != 0, dice.one_in(5));
            Operation::Open {
                mount,
                path: path(dice),
                write,
                create,
                excl: create && excl,
                trunc: write && dice.one_in(5),
                append: write && dice.one_in(5),
                mode: dice.pick(&MODES),
            }
        }
        0..=27 => Operation::Mkdir { mount, path: path(dice), mode: dice.pick(&MODES) },
        28..=31 => Operation::Rmdir { mount, path: path(dice) },
        32..=38 => Operation::Unlink { mount, path: path(dice) },
        39..=48 => Operation::Rename {
            mount,
            from: path(dice),
            to: path(dice),
            mode: dice.pick(&[
                Rename::Replace,
                Rename::Replace,
                Rename::NoReplace,
                Rename::Exchange,
            ]),
        },
        49..=53 => Operation::Link { mount, from: path(dice), to: path(dice) },
        54..=57 => {
            let target = match dice.below(4) {
                0 => b"a".to_vec(),
                // Never out of the root: another file system begins there.
                1 => b"a/../b".to_vec(),
                2 => b"nowhere".to_vec(),
                _ => vec![b'y'; 1 + dice.index(4_000)],
            };
            Operation::Symlink { mount, target, path: path(dice) }
        }
        58..=60 => Operation::Readlink { mount, path: path(dice) },
        61..=62 => Operation::Mkfifo { mount, path: path(dice), mode: dice.pick(&MODES) },
        63..=70 => Operation::Stat { mount, path: path(dice), follow: dice.one_in(2) },
        71..=74 => Operation::Chmod { mount, path: path(dice), mode: dice.pick(&MODES) },
        75..=77 => Operation::Chown {
            mount,
            path: path(dice),
            uid: dice.pick(&[0, 1, 65_534, u32::MAX]),
            gid: dice.pick(&[0, 1, 65_534, u32::MAX]),
        },
        78..=81 => Operation::Truncate { mount, path: path(dice), size: offset(dice) },
        82..=84 => {
            Operation::Times { mount, path: path(dice), atime: time(dice), mtime: time(dice) }
        }
        85..=88 => Operation::List { mount, path: path(dice) },
        89..=92 => Operation::ReadWhole { mount, path: path(dice) },
        93..=95 => Operation::SetXattr {
            mount,
            path: path(dice),
            name: dice.pick(&XATTRS),
            value: vec![b'v'; dice.index(600)],
            mode: dice.pick(&[Xattr::Set, Xattr::Set, Xattr::Create, Xattr::Replace]),
        },
        96..=97 => Operation::GetXattr { mount, path: path(dice), name: dice.pick(&XATTRS) },
        98 => Operation::RemoveXattr { mount, path: path(dice), name: dice.pick(&XATTRS) },
        _ => Operation::ListXattr { mount, path: path(dice) },
    }
}

fn choose_on_handle(dice: &mut Dice, handles: usize) -> Operation {
    let handle = dice.index(handles);
    match dice.below(100) {
        0..=29 => Operation::Write {
            handle,
            offset: offset(dice),
            len: len(dice),
            fill: u8::try_from(dice.below(256)).unwrap(),
        },
        30..=59 => Operation::Read { handle, offset: offset(dice), len: len(dice) },
        60..=66 => Operation::HandleTruncate { handle, size: offset(dice) },
        67..=76 => Operation::Allocate {
            handle,
            offset: offset(dice),
            len: 1 + len(dice) as u64,
            mode: dice.pick(&[
                Allocate::Grow,
                Allocate::KeepSize,
                Allocate::PunchHole,
                Allocate::PunchHole,
                Allocate::ZeroRange,
                Allocate::ZeroRangeKeepSize,
                Allocate::PunchWithoutKeep,
            ]),
        },
        77..=83 => Operation::HandleStat { handle },
        84..=88 => Operation::CopyRange {
            from: handle,
            to: dice.index(handles),
            from_offset: offset(dice),
            to_offset: offset(dice),
            len: len(dice),
        },
        _ => Operation::Close { handle },
    }
}
