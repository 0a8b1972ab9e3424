//! A local directory and the mounts beside it, and doing one operation on both.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use super::operation::{Allocate, Operation, Rename, Xattr};

/// What an operation answered, as far as it must agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Done,
    Failed(Errno),
    Count(u64),
    Bytes {
        len: usize,
        crc: u32,
    },
    Link(Vec<u8>),
    Names(Vec<(Vec<u8>, String)>),
    Stat(Stat),
    /// It would show what is promised only after a close.
    NotCompared,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    /// `None`: of a directory.
    size: Option<u64>,
    /// Only if somebody set it.
    mtime: Option<(i64, i64)>,
}

#[derive(Debug)]
struct Handle {
    mount: usize,
    local: File,
    remote: File,
    append: bool,
    write: bool,
    /// Inode on the local disk: tells which names and handles mean one file.
    file: u64,
    opened_at: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    local: PathBuf,
    mounts: Vec<PathBuf>,
    handles: Vec<Handle>,
    /// The step of the last change of content, by file and mount.
    written: BTreeMap<(u64, usize), u64>,
    step: u64,
    history: VecDeque<String>,
    results: BTreeMap<String, u64>,
}

type Result<T> = std::result::Result<T, Errno>;

fn seen(result: Result<Seen>) -> Seen {
    result.unwrap_or_else(Seen::Failed)
}

fn io<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Errno::from_io_error(&error).expect("an error of the kernel"))
}

impl World {
    pub(crate) fn new(local: PathBuf, mounts: Vec<PathBuf>) -> Self {
        Self {
            local,
            mounts,
            handles: Vec::new(),
            written: BTreeMap::new(),
            step: 0,
            history: VecDeque::new(),
            results: BTreeMap::new(),
        }
    }

    pub(crate) fn mounts(&self) -> usize {
        self.mounts.len()
    }

    pub(crate) fn handles(&self) -> usize {
        self.handles.len()
    }

    pub(crate) fn history(&self) -> String {
        self.history.iter().fold(String::new(), |all, line| all + line + "\n")
    }

    /// How often each kind of operation succeeded and failed: a comparison of failures alone would be worth little.
    pub(crate) fn statistics(&self) -> String {
        self.results
            .iter()
            .map(|(what, count)| format!("{what}: {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(crate) fn close_all(&mut self) {
        self.handles.clear();
    }

    /// What the local disk and the mount answered.
    pub(crate) fn perform(&mut self, operation: &Operation) -> (Seen, Seen) {
        self.step += 1;
        let handles = self.describe_handles(operation);
        let answers = self.perform_inner(operation);
        let name = format!("{operation:?}");
        let name = name.split([' ', '{']).next().unwrap_or_default().to_owned();
        let verdict = if matches!(answers.0, Seen::Failed(_)) {
            "refused"
        } else if answers.0 == Seen::NotCompared {
            "not compared"
        } else {
            "done"
        };
        *self.results.entry(format!("{name} {verdict}")).or_default() += 1;
        let mut line = format!("{operation:?}");
        line.truncate(200);
        self.history.push_back(format!("{}: {line}{handles} -> {:?}", self.step, answers.0));
        if 400 < self.history.len() {
            self.history.pop_front();
        }
        answers
    }

    /// Which files the handles of an operation mean, for messages.
    fn describe_handles(&self, operation: &Operation) -> String {
        let text = format!("{operation:?}");
        let named = ["handle: ", "CopyRange { from: ", " to: "].iter().filter_map(|word| {
            let digits = text.split_once(word)?.1;
            let digits = digits.split(|c: char| !c.is_ascii_digit()).next()?;
            self.handles.get(digits.parse::<usize>().ok()?)
        });
        named.fold(String::new(), |all, handle| {
            format!("{all} [file {} on mount {}]", handle.file, handle.mount)
        })
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are done by name_operation")]
    fn perform_inner(&mut self, operation: &Operation) -> (Seen, Seen) {
        match operation {
            Operation::Open { .. } => self.open(operation),
            Operation::Close { handle } => {
                drop(self.handles.swap_remove(*handle));
                (Seen::Done, Seen::Done)
            }
            Operation::Read { handle, offset, len } => {
                if self.is_behind(*handle) {
                    return (Seen::NotCompared, Seen::NotCompared);
                }
                self.on_handle(*handle, |file, _| read(file, *offset, *len))
            }
            Operation::HandleStat { handle } => {
                if self.is_behind(*handle) {
                    return (Seen::NotCompared, Seen::NotCompared);
                }
                self.on_handle(*handle, |file, _| Ok(Seen::Stat(stat_of(&io(file.metadata())?))))
            }
            Operation::Write { handle, offset, len, fill } => {
                let data: Vec<u8> =
                    (0..*len).map(|n| fill.wrapping_add((n / 7 % 251).to_le_bytes()[0])).collect();
                self.change_by_handle(*handle, |file, append| {
                    let written = if append {
                        rustix::io::write(file, &data)?
                    } else {
                        rustix::io::pwrite(file, &data, *offset)?
                    };
                    Ok(Seen::Count(written as u64))
                })
            }
            Operation::HandleTruncate { handle, size } => {
                self.change_by_handle(*handle, |file, _| {
                    rustix::fs::ftruncate(file, *size)?;
                    Ok(Seen::Done)
                })
            }
            Operation::Allocate { handle, offset, len, mode } => {
                self.change_by_handle(*handle, |file, _| {
                    rustix::fs::fallocate(file, allocate_flags(*mode), *offset, *len)?;
                    Ok(Seen::Done)
                })
            }
            Operation::CopyRange { from, to, from_offset, to_offset, len } => {
                self.copy_range((*from, *from_offset), (*to, *to_offset), *len)
            }
            Operation::Truncate { mount, path, size } => {
                let answers = self.on_path(*mount, path, |path| {
                    let path = c_path(path)?;
                    // rustix has ftruncate only; opening would be another operation.
                    truncate(&path, *size)
                });
                self.note_written_path(*mount, path);
                answers
            }
            Operation::ReadWhole { mount, path } => self.on_path(*mount, path, |path| {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
                let len = io(file.metadata())?.len();
                read(&file, 0, usize::try_from(len).unwrap() + 10)
            }),
            Operation::Stat { mount, path, follow } => self.on_path(*mount, path, |path| {
                let metadata = if *follow { path.metadata() } else { path.symlink_metadata() };
                Ok(Seen::Stat(stat_of(&io(metadata)?)))
            }),
            other => self.name_operation(other),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are done by the caller")]
    fn name_operation(&self, operation: &Operation) -> (Seen, Seen) {
        match operation {
            Operation::Mkdir { mount, path, mode } => self.done_on_path(*mount, path, |path| {
                rustix::fs::mkdir(path, Mode::from_raw_mode(*mode))
            }),
            Operation::Rmdir { mount, path } => {
                self.done_on_path(*mount, path, |path| rustix::fs::rmdir(path))
            }
            Operation::Unlink { mount, path } => {
                self.done_on_path(*mount, path, |path| rustix::fs::unlink(path))
            }
            Operation::Rename { mount, from, to, mode } => {
                let flags = match mode {
                    Rename::Replace => RenameFlags::empty(),
                    Rename::NoReplace => RenameFlags::NOREPLACE,
                    Rename::Exchange => RenameFlags::EXCHANGE,
                };
                self.on_paths(*mount, from, to, |from, to| {
                    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
                })
            }
            Operation::Link { mount, from, to } => {
                self.on_paths(*mount, from, to, |from, to| rustix::fs::link(from, to))
            }
            Operation::Symlink { mount, target, path } => self.done_on_path(*mount, path, |path| {
                rustix::fs::symlink(std::ffi::OsStr::from_bytes(target), path)
            }),
            Operation::Readlink { mount, path } => self.on_path(*mount, path, |path| {
                Ok(Seen::Link(rustix::fs::readlink(path, Vec::new())?.into_bytes()))
            }),
            Operation::Mkfifo { mount, path, mode } => self.done_on_path(*mount, path, |path| {
                let mode = Mode::from_raw_mode(*mode & 0o777);
                rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0)
            }),
            Operation::Chmod { mount, path, mode } => self.done_on_path(*mount, path, |path| {
                rustix::fs::chmod(path, Mode::from_raw_mode(*mode))
            }),
            Operation::Chown { mount, path, uid, gid } => self.done_on_path(*mount, path, |path| {
                let uid = (*uid != u32::MAX).then(|| Uid::from_raw(*uid));
                let gid = (*gid != u32::MAX).then(|| Gid::from_raw(*gid));
                rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }),
            Operation::Times { mount, path, atime, mtime } => {
                let spec = |(sec, nsec): (i64, i64)| Timespec { tv_sec: sec, tv_nsec: nsec };
                let times =
                    Timestamps { last_access: spec(*atime), last_modification: spec(*mtime) };
                self.on_path(*mount, path, |path| {
                    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                    let mut stat = stat_of(&io(path.symlink_metadata())?);
                    let metadata = io(path.symlink_metadata())?;
                    if mtime.1 < 1_000_000_000 {
                        stat.mtime = Some((metadata.mtime(), metadata.mtime_nsec()));
                    }
                    Ok(Seen::Stat(stat))
                })
            }
            Operation::List { mount, path } => self.on_path(*mount, path, list),
            Operation::SetXattr { mount, path, name, value, mode } => {
                let flags = match mode {
                    Xattr::Set => XattrFlags::empty(),
                    Xattr::Create => XattrFlags::CREATE,
                    Xattr::Replace => XattrFlags::REPLACE,
                };
                self.done_on_path(*mount, path, |path| {
                    rustix::fs::lsetxattr(path, *name, value, flags)
                })
            }
            Operation::GetXattr { mount, path, name } => self.on_path(*mount, path, |path| {
                let mut value = vec![0; 1_000];
                let len = rustix::fs::lgetxattr(path, *name, &mut value)?;
                Ok(Seen::Bytes { len, crc: crc32c::crc32c(&value[..len]) })
            }),
            Operation::RemoveXattr { mount, path, name } => {
                self.done_on_path(*mount, path, |path| rustix::fs::lremovexattr(path, *name))
            }
            Operation::ListXattr { mount, path } => self.on_path(*mount, path, |path| {
                let mut names = vec![0; 1_000];
                let len = rustix::fs::llistxattr(path, &mut names)?;
                let mut names: Vec<(Vec<u8>, String)> = names[..len]
                    .split(|byte| *byte == 0)
                    .filter(|name| name.starts_with(b"user.") || name.starts_with(b"trusted."))
                    .map(|name| (name.to_vec(), String::new()))
                    .collect();
                names.sort();
                Ok(Seen::Names(names))
            }),
            other => unreachable!("{other:?}"),
        }
    }

    fn open(&mut self, operation: &Operation) -> (Seen, Seen) {
        let Operation::Open { mount, path, write, create, excl, trunc, append, mode } = operation
        else {
            unreachable!("{operation:?}")
        };
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        flags |= if *write { OFlags::RDWR } else { OFlags::RDONLY };
        for (wanted, flag) in [
            (*create, OFlags::CREATE),
            (*excl, OFlags::EXCL),
            (*trunc, OFlags::TRUNC),
            (*append, OFlags::APPEND),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        let mode = Mode::from_raw_mode(*mode);
        let both = [&self.local, &self.mounts[*mount]]
            .map(|root| rustix::fs::open(root.join(path), flags, mode).map(File::from));
        let (local, remote) = match both {
            [Ok(local), Ok(remote)] => (local, remote),
            [local, remote] => {
                let seen = |result: Result<File>| result.map_or_else(Seen::Failed, |_| Seen::Done);
                return (seen(local), seen(remote));
            }
        };
        let metadata = local.metadata().unwrap();
        let answers = (
            Seen::Stat(stat_of(&metadata)),
            seen(io(remote.metadata()).map(|metadata| Seen::Stat(stat_of(&metadata)))),
        );
        let file = metadata.ino();
        if metadata.is_file() {
            if *trunc {
                self.note_written(*mount, file);
            }
            let (append, write, opened_at) = (*append, *write, self.step);
            self.handles.push(Handle {
                mount: *mount,
                local,
                remote,
                append,
                write,
                file,
                opened_at,
            });
            if *create || *trunc {
                return answers;
            }
            if self.is_behind(self.handles.len() - 1) {
                return (Seen::NotCompared, Seen::NotCompared);
            }
        }
        answers
    }

    fn copy_range(
        &mut self,
        (from, from_offset): (usize, u64),
        (to, to_offset): (usize, u64),
        len: usize,
    ) -> (Seen, Seen) {
        let (source, target) = (&self.handles[from], &self.handles[to]);
        // Two mounts are two file systems to the kernel; overlapping ranges and O_APPEND are refused, which is its own.
        if source.mount != target.mount || source.file == target.file || self.is_behind(from) {
            return (Seen::NotCompared, Seen::NotCompared);
        }
        let copy = |source: &File, target: &File| -> Result<Seen> {
            let (mut source_at, mut target_at) = (from_offset, to_offset);
            let mut copied = 0;
            while copied < len {
                let step = rustix::fs::copy_file_range(
                    source,
                    Some(&mut source_at),
                    target,
                    Some(&mut target_at),
                    len - copied,
                )?;
                if step == 0 {
                    break;
                }
                copied += step;
            }
            Ok(Seen::Count(copied as u64))
        };
        let answers =
            (seen(copy(&source.local, &target.local)), seen(copy(&source.remote, &target.remote)));
        self.publish(to);
        answers
    }

    fn on_handle(&self, handle: usize, act: impl Fn(&File, bool) -> Result<Seen>) -> (Seen, Seen) {
        let handle = &self.handles[handle];
        (seen(act(&handle.local, handle.append)), seen(act(&handle.remote, handle.append)))
    }

    fn change_by_handle(
        &mut self,
        handle: usize,
        act: impl Fn(&File, bool) -> Result<Seen>,
    ) -> (Seen, Seen) {
        let answers = self.on_handle(handle, act);
        self.publish(handle);
        answers
    }

    /// Makes what was written visible to the other mounts, as close(2) would.
    fn publish(&mut self, handle: usize) {
        let Handle { mount, file, write, .. } = self.handles[handle];
        if write {
            self.handles[handle].remote.sync_all().unwrap();
            self.note_written(mount, file);
        }
    }

    fn note_written(&mut self, mount: usize, file: u64) {
        self.written.insert((file, mount), self.step);
    }

    fn note_written_path(&mut self, mount: usize, path: &Path) {
        if let Ok(metadata) = self.local.join(path).metadata() {
            self.note_written(mount, metadata.ino());
        }
    }

    /// Whether another mount wrote the file after this handle was opened.
    fn is_behind(&self, handle: usize) -> bool {
        let Handle { mount, file, opened_at, .. } = &self.handles[handle];
        (0..self.mounts.len())
            .filter(|other| other != mount)
            .any(|other| self.written.get(&(*file, other)).is_some_and(|at| opened_at <= at))
    }

    fn on_path(
        &self,
        mount: usize,
        path: &Path,
        act: impl Fn(&Path) -> Result<Seen>,
    ) -> (Seen, Seen) {
        (seen(act(&self.local.join(path))), seen(act(&self.mounts[mount].join(path))))
    }

    fn done_on_path(
        &self,
        mount: usize,
        path: &Path,
        act: impl Fn(&Path) -> Result<()>,
    ) -> (Seen, Seen) {
        self.on_path(mount, path, |path| act(path).map(|()| Seen::Done))
    }

    fn on_paths(
        &self,
        mount: usize,
        from: &Path,
        to: &Path,
        act: impl Fn(&Path, &Path) -> Result<()>,
    ) -> (Seen, Seen) {
        // A directory that the other mount moved is met here first by rename(2) under its own lock: Linux then answers
        // ESTALE on every network file system. A look before it lets the kernel follow.
        for path in [from, to] {
            let _looked_at = self.mounts[mount].join(path).symlink_metadata();
        }
        let both = |root: &Path| seen(act(&root.join(from), &root.join(to)).map(|()| Seen::Done));
        (both(&self.local), both(&self.mounts[mount]))
    }

    /// Every name, attribute and byte below the roots agrees.
    pub(crate) fn check_trees(&self, seed: u64, step: u64) {
        let expected = tree(&self.local);
        for mount in &self.mounts {
            let found = tree(mount);
            for path in expected.keys().chain(found.keys()) {
                assert_eq!(
                    found.get(path),
                    expected.get(path),
                    "seed {seed}, after step {step}: {} below {} (left) differs from the local disk\n{}",
                    path.display(),
                    mount.display(),
                    self.history()
                );
            }
        }
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, (Stat, Seen)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_dir() {
                dirs.push(path.clone());
                Seen::Done
            } else if metadata.is_symlink() {
                Seen::Link(path.read_link().unwrap().as_os_str().as_bytes().to_vec())
            } else if metadata.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                Seen::Bytes { len: bytes.len(), crc: crc32c::crc32c(&bytes) }
            } else {
                Seen::Done
            };
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (stat_of(&metadata), content));
        }
    }
    found
}

fn stat_of(metadata: &std::fs::Metadata) -> Stat {
    Stat {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        nlink: metadata.nlink(),
        size: (!metadata.is_dir()).then_some(metadata.len()),
        mtime: None,
    }
}

fn read(file: &File, offset: u64, len: usize) -> Result<Seen> {
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match io(file.read_at(&mut bytes[read..], offset + read as u64))? {
            0 => break,
            step => read += step,
        }
    }
    Ok(Seen::Bytes { len: read, crc: crc32c::crc32c(&bytes[..read]) })
}

fn list(path: &Path) -> Result<Seen> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        names.push((entry.file_name().to_bytes().to_vec(), format!("{:?}", entry.file_type())));
    }
    names.sort();
    Ok(Seen::Names(names))
}

fn allocate_flags(mode: Allocate) -> FallocateFlags {
    let keep = FallocateFlags::KEEP_SIZE;
    match mode {
        Allocate::Grow => FallocateFlags::empty(),
        Allocate::KeepSize => keep,
        Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | keep,
        Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
        Allocate::ZeroRangeKeepSize => FallocateFlags::ZERO_RANGE | keep,
        Allocate::PunchWithoutKeep => FallocateFlags::PUNCH_HOLE,
    }
}

fn c_path(path: &Path) -> Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

#[expect(unsafe_code, reason = "neither std nor rustix has truncate(2)")]
fn truncate(path: &std::ffi::CStr, size: u64) -> Result<Seen> {
    let size = i64::try_from(size).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` is a C string that lives through the call.
    let result = unsafe { libc::truncate(path.as_ptr(), size) };
    if result == 0 {
        return Ok(Seen::Done);
    }
    io(Err(std::io::Error::last_os_error()))
}
