//! Files and directories by path, for commands that work without a mount.

mod replace;

use std::sync::Arc;

use anyhow::Context as _;
use dfs_client::ClientError;
use dfs_client::file::FileState;
use dfs_client::file::records::FileRecord;
use dfs_client::file::search::Hits;
use dfs_client::session::{Session, SessionConfig};
use dfs_core::command::{Change, NewKind, Outcome, RenameMode};
use dfs_core::ids::InodeNo;
use dfs_core::namespace::{Attr, FileKind, Layout, NamespaceError};
use dfs_proto::search::Needle;
use dfs_service::shutdown::Shutdown;
use rustix::fs::Mode;

use crate::args::ClusterArgs;
use crate::failure::{Failure, fail};
use crate::remote_path::RemotePath;
use crate::{admin, cluster};

/// How much is read at once.
const PIECE: usize = 1 << 20;
/// Entries asked for at once.
const PAGE: u32 = 4096;
/// Symbolic links followed on one path, as Linux does (`path_resolution(7)`).
const LINKS_MAX: u32 = 40;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub ino: InodeNo,
    pub kind: FileKind,
    pub attr: Option<Attr>,
}

/// What a path leads to, and the name that is its own there.
struct Found {
    parent: InodeNo,
    name: Vec<u8>,
    attr: Option<Attr>,
}

/// As `ls -l` and JSON name it.
pub(crate) fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

/// A session with the cluster that a command talks to; ends with it.
#[derive(Debug)]
pub(crate) struct Files {
    session: Arc<Session>,
    umask: u32,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl Files {
    pub(crate) fn open(args: &ClusterArgs) -> anyhow::Result<Self> {
        let target = cluster::target(args)?;
        admin::check_reachable(&target)?;
        let mut config = SessionConfig::new(target.master.clone(), target.key, "dfs");
        config.server_wait = target.wait;
        let session = Session::connect(config)
            .with_context(|| format!("connect to master {}", target.master))?;
        // The only way to read it is to set it.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::umask(umask);
        Ok(Self { session, umask: umask.as_raw_mode() })
    }

    /// What `path` names, if that can have chunks.
    pub(crate) fn regular_file(&self, verb: &str, path: &RemotePath) -> anyhow::Result<Attr> {
        let attr = self.attr(path)?;
        if attr.kind != FileKind::File {
            return fail(
                format!("{verb} {}: not a regular file", path.shown()),
                "only files have chunks",
            );
        }
        Ok(attr)
    }

    /// Attributes of what the path leads to, symbolic links on the way followed.
    pub(crate) fn attr(&self, path: &RemotePath) -> anyhow::Result<Attr> {
        some(path, self.find(path)?)
    }

    /// As [`Self::attr`], `None` if there is nothing.
    pub(crate) fn find(&self, path: &RemotePath) -> anyhow::Result<Option<Attr>> {
        Ok(self.find_logged(path, true)?.map(|attr| self.session.complete(attr)))
    }

    /// As [`Self::find`], of a symbolic link itself.
    pub(crate) fn find_link(&self, path: &RemotePath) -> anyhow::Result<Option<Attr>> {
        Ok(self.find_logged(path, false)?.map(|attr| self.session.complete(attr)))
    }

    /// As [`Self::attr`], for who is going to use the content or does not ask how large it is: a file that somebody is
    /// writing may be larger than this says. Its servers are waited for once then, not for the size and again.
    pub(crate) fn logged_attr(&self, path: &RemotePath) -> anyhow::Result<Attr> {
        some(path, self.find_logged(path, true)?)
    }

    fn find_logged(&self, path: &RemotePath, follow_last: bool) -> anyhow::Result<Option<Attr>> {
        match self.resolve(path, follow_last) {
            Ok(found) => Ok(found.attr),
            Err(ClientError::Refused(NamespaceError::NotFound)) => Ok(None),
            Err(error) => Err(explain(&path.shown(), error)),
        }
    }

    /// Where the path leads; of the last name, only the directory must be there.
    fn resolve(&self, path: &RemotePath, follow_last: bool) -> Result<Found, ClientError> {
        let mut at = self.session.getattr(InodeNo::ROOT)?;
        let mut last = Vec::new();
        // Next name last.
        let mut names: Vec<Vec<u8>> = path.names.iter().rev().cloned().collect();
        let mut parents = Vec::new();
        let mut links = 0;
        while let Some(name) = names.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = parents.pop().unwrap_or(at);
                    continue;
                }
                _ => {}
            }
            let next = match self.session.lookup_logged(at.ino, &name) {
                Ok(next) => next,
                Err(ClientError::Refused(NamespaceError::NotFound)) if names.is_empty() => {
                    return Ok(Found { parent: at.ino, name, attr: None });
                }
                Err(error) => return Err(error),
            };
            if next.kind != FileKind::Symlink || (names.is_empty() && !follow_last) {
                parents.push(std::mem::replace(&mut at, next));
                last = name;
                continue;
            }
            links += 1;
            if LINKS_MAX < links {
                return Err(NamespaceError::Invalid("too many symbolic links".to_owned()).into());
            }
            let target = self.session.readlink(next.ino)?;
            if target.first() == Some(&b'/') {
                parents.clear();
                at = self.session.getattr(InodeNo::ROOT)?;
            }
            names.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        // As the kernel does for a path with a slash at the end.
        if path.wants_directory && at.kind != FileKind::Directory {
            return Err(NamespaceError::NotDirectory.into());
        }
        let parent = parents.last().map_or(InodeNo::ROOT, |parent| parent.ino);
        Ok(Found { parent, name: last, attr: Some(at) })
    }

    /// All entries of a directory, with attributes.
    pub(crate) fn list(&self, ino: InodeNo, path: &RemotePath) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut after = 0;
        loop {
            let (page, end) = self
                .session
                .readdir(ino, after, PAGE, true)
                .map_err(|error| explain(&path.shown(), error))?;
            let empty = page.is_empty();
            for entry in page {
                after = entry.cookie;
                if entry.name != b"." && entry.name != b".." {
                    entries.push(Entry {
                        name: entry.name,
                        ino: entry.ino,
                        kind: entry.kind,
                        attr: entry.attr,
                    });
                }
            }
            if end || empty {
                return Ok(entries);
            }
        }
    }

    /// The directory a new name goes into, and the name.
    fn place<'a>(&self, path: &'a RemotePath, verb: &str) -> anyhow::Result<(InodeNo, &'a [u8])> {
        let Some(name) = path.last() else {
            return fail(format!("{verb} /: is the root directory"), "name something in it");
        };
        Ok((self.logged_attr(&path.parent()).context(verb.to_owned())?.ino, name))
    }

    fn change(&self, verb: &str, path: &RemotePath, change: Change) -> anyhow::Result<Outcome> {
        self.session
            .change(change)
            .map_err(|error| explain(&format!("{verb} {}", path.shown()), error))
    }

    fn create(
        &self,
        verb: &str,
        path: &RemotePath,
        kind: NewKind,
        mode: u32,
        layout: Option<Layout>,
    ) -> anyhow::Result<Attr> {
        let (parent, name) = self.place(path, verb)?;
        let change = Change::Create {
            parent,
            name: name.to_owned(),
            open_existing: kind == NewKind::File,
            kind,
            mode,
            umask: self.umask,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            layout,
        };
        let outcome = self.change(verb, path, change)?;
        if let Outcome::Entry { attr, .. } = outcome {
            Ok(attr)
        } else {
            anyhow::bail!("{verb} {}: the master answered {outcome:?}", path.shown())
        }
    }

    /// `wanted`: the layout of files made in it, from its parent's.
    pub(crate) fn mkdir(
        &self,
        path: &RemotePath,
        wanted: Option<&dyn Fn(Layout) -> Layout>,
    ) -> anyhow::Result<()> {
        let layout = match wanted {
            None => None,
            Some(wanted) => Some(wanted(self.attr(&path.parent()).context("mkdir")?.layout)),
        };
        self.create("mkdir", path, NewKind::Directory, 0o777, layout).map(drop)
    }

    pub(crate) fn unlink(&self, path: &RemotePath) -> anyhow::Result<()> {
        let (parent, _) = self.place(path, "rm")?;
        self.unlink_in(parent, path)
    }

    /// As [`Self::unlink`], with the directory known already.
    pub(crate) fn unlink_in(&self, parent: InodeNo, path: &RemotePath) -> anyhow::Result<()> {
        let name = path.last().unwrap_or_default();
        self.change("rm", path, Change::Unlink { parent, name: name.to_owned() }).map(drop)
    }

    pub(crate) fn rmdir(&self, path: &RemotePath) -> anyhow::Result<()> {
        let (parent, name) = self.place(path, "rm")?;
        self.change("rm", path, Change::Rmdir { parent, name: name.to_owned() }).map(drop)
    }

    pub(crate) fn rename(&self, from: &RemotePath, to: &RemotePath) -> anyhow::Result<()> {
        let (from_parent, from_name) = self.place(from, "mv")?;
        let (to_parent, to_name) = self.place(to, "mv")?;
        let change = Change::Rename {
            from_parent,
            from: from_name.to_owned(),
            to_parent,
            to: to_name.to_owned(),
            mode: RenameMode::Replace,
        };
        self.session
            .change(change)
            .map(drop)
            .map_err(|error| explain(&format!("mv {} {}", from.shown(), to.shown()), error))
    }

    /// Gives `each` the content in order, in pieces.
    pub(crate) fn read_all(
        &self,
        attr: &Attr,
        path: &RemotePath,
        each: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let zeros = vec![0; PIECE];
        self.read_parts(attr, path, &mut |part| match part {
            Part::Data(bytes) => each(bytes),
            Part::Hole(mut left) => {
                while 0 < left {
                    let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    each(zeros.get(..now).unwrap_or_default())?;
                    left -= now as u64;
                }
                Ok(())
            }
        })
    }

    /// Gives `each` the content in order, and tells of holes instead of reading them.
    pub(crate) fn read_parts(
        &self,
        attr: &Attr,
        path: &RemotePath,
        each: &mut dyn FnMut(Part<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        check_is_file("read", attr, path)?;
        let failed = |error| explain(&format!("read {}", path.shown()), error);
        self.session.open_logged(attr.ino, false).map_err(failed)?;
        let file = self.session.file(attr.ino);
        let result = parts_of(&file, attr, &failed, each);
        self.session.release(attr.ino, false);
        result
    }

    /// How many hits the file at `path` has; see [`FileState::search`].
    pub(crate) fn search(
        &self,
        attr: &Attr,
        path: &RemotePath,
        needle: &Needle,
        hits: Hits<'_>,
    ) -> anyhow::Result<u64> {
        check_is_file("grep", attr, path)?;
        let failed = |error| explain(&format!("grep {}", path.shown()), error);
        self.session.open_logged(attr.ino, false).map_err(failed)?;
        let count = self.session.file(attr.ino).search(needle, hits).map_err(failed);
        self.session.release(attr.ino, false);
        count
    }

    /// Calls `each` for every record of the file at `path`; see [`FileState::records`].
    pub(crate) fn records(
        &self,
        attr: &Attr,
        path: &RemotePath,
        each: &mut dyn FnMut(FileRecord),
    ) -> anyhow::Result<()> {
        check_is_file("records", attr, path)?;
        if !attr.layout.record_log {
            return fail(
                format!("records {}: is not in a record log", path.shown()),
                "only files of a directory made with `dfs mkdir --layout recordlog` have records",
            );
        }
        let failed = |error| explain(&format!("records {}", path.shown()), error);
        self.session.open(attr.ino, false).map_err(failed)?;
        let listed = self.session.file(attr.ino).records(each).map_err(failed);
        self.session.release(attr.ino, false);
        listed
    }

    fn open_to_write(&self, verb: &'static str, path: &RemotePath) -> anyhow::Result<Writer<'_>> {
        let attr = match self.find_logged(path, true)? {
            Some(attr) => attr,
            None => self.create(verb, path, NewKind::File, 0o666, None)?,
        };
        check_is_file(verb, &attr, path)?;
        self.writer(&attr, format!("{verb} {}", path.shown()))
    }

    fn writer(&self, attr: &Attr, what: String) -> anyhow::Result<Writer<'_>> {
        self.session.open_logged(attr.ino, true).map_err(|error| explain(&what, error))?;
        let file = self.session.file(attr.ino);
        Ok(Writer { files: self, ino: attr.ino, file, offset: 0, what })
    }

    /// How many bytes one append to `path` may have, also if the file is yet to be made.
    pub(crate) fn longest_record(&self, path: &RemotePath) -> anyhow::Result<u64> {
        let layout = match self.find_logged(path, true)? {
            Some(attr) => {
                check_is_file("append", &attr, path)?;
                attr.layout
            }
            None => {
                let (parent, _) = self.place(path, "append")?;
                let parent = self.session.getattr(parent);
                parent.map_err(|error| explain(&path.shown(), error))?.layout
            }
        };
        Ok(layout.record_bytes_max())
    }

    /// One append, stable when this returns; the offset it got.
    pub(crate) fn append(&self, path: &RemotePath, record: &[u8]) -> anyhow::Result<u64> {
        let writer = self.open_to_write("append", path)?;
        writer.file.append(record).map_err(|error| explain(&writer.what, error))
    }
}

impl Files {
    /// A new file with `content`, whose chunks are made one after the other: which servers they go to then follows from
    /// their order. Nothing is left of it if it fails, or is to `stop` between two chunks.
    pub(crate) fn put_in_order(
        &self,
        path: &RemotePath,
        content: &[u8],
        stop: &Shutdown,
    ) -> anyhow::Result<Attr> {
        if self.find(path)?.is_some() {
            return fail(format!("{}: exists", path.shown()), "choose another name");
        }
        let attr = self.create("upload", path, NewKind::File, 0o666, None)?;
        let written = self.write_in_order(&attr, path, content, stop);
        if written.is_err()
            && let Err(error) = self.unlink(path)
        {
            tracing::warn!(%error, "what was written stays");
        }
        written
    }

    fn write_in_order(
        &self,
        attr: &Attr,
        path: &RemotePath,
        content: &[u8],
        stop: &Shutdown,
    ) -> anyhow::Result<Attr> {
        let mut writer = self.writer(attr, format!("upload {}", path.shown()))?;
        let chunk = usize::try_from(attr.layout.chunk_size.max(1))?;
        for bytes in content.chunks(chunk) {
            if stop.is_asked() {
                let at = writer.offset;
                let what =
                    format!("{}: stopped after {at} of {} bytes", writer.what, content.len());
                return fail(what, "nothing of it stays");
            }
            writer.write(bytes)?;
            writer.file.flush().map_err(|error| explain(&writer.what, error))?;
        }
        writer.sync()?;
        self.attr(path)
    }
}

fn some(path: &RemotePath, found: Option<Attr>) -> anyhow::Result<Attr> {
    match found {
        Some(attr) => Ok(attr),
        None => fail(
            format!("{}: no such file or directory", path.shown()),
            "see `dfs ls` of its directory",
        ),
    }
}

/// Of a file's content.
#[derive(Debug)]
pub(crate) enum Part<'a> {
    Data(&'a [u8]),
    /// So many zeros that are stored nowhere.
    Hole(u64),
}

fn parts_of(
    file: &FileState,
    attr: &Attr,
    failed: &dyn Fn(ClientError) -> anyhow::Error,
    each: &mut dyn FnMut(Part<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    // Holes of a small file are not worth asking for.
    let small = !attr.writing && attr.size <= PIECE as u64;
    let mut data_end = if small { u64::MAX } else { 0 };
    loop {
        if data_end <= offset {
            let (data, size) = file.data_from(offset).map_err(failed)?;
            let next = data.unwrap_or(size);
            if offset < next {
                each(Part::Hole(next - offset))?;
            } else if data.is_none() {
                return Ok(());
            }
            offset = next;
            // Somebody may cut the file meanwhile: reading finds its end.
            data_end = file.seek_hole(offset).map_err(failed)?.unwrap_or(u64::MAX);
        }
        let wanted = usize::try_from(data_end - offset).unwrap_or(PIECE).min(PIECE);
        match file.read(offset, piece.get_mut(..wanted).unwrap_or_default()).map_err(failed)? {
            0 if wanted == 0 => {}
            0 => return Ok(()),
            read => {
                offset += read as u64;
                each(Part::Data(piece.get(..read).unwrap_or_default()))?;
            }
        }
    }
}

/// A file open for writing.
#[derive(Debug)]
struct Writer<'a> {
    files: &'a Files,
    ino: InodeNo,
    file: Arc<FileState>,
    offset: u64,
    what: String,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write(self.offset, bytes).map_err(|error| explain(&self.what, error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Leaves so many bytes out, which read as zeros.
    fn skip(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// A file that ends in a hole gets its size.
    fn extend(&self) -> anyhow::Result<()> {
        if self.file.attr().map_err(|error| explain(&self.what, error))?.size < self.offset {
            self.file.truncate(self.offset).map_err(|error| explain(&self.what, error))?;
        }
        Ok(())
    }

    /// Returns when all is on every replica's disk.
    fn sync(&self) -> anyhow::Result<()> {
        self.file.fsync().map_err(|error| explain(&self.what, error))
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.files.session.release(self.ino, true);
    }
}

fn check_is_file(verb: &str, attr: &Attr, path: &RemotePath) -> anyhow::Result<()> {
    match attr.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => {
            fail(format!("{verb} {}: is a directory", path.shown()), "name a file in it")
        }
        FileKind::Symlink
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => fail(
            format!("{verb} {}: is a {}", path.shown(), kind_name(attr.kind)),
            "name a regular file",
        ),
    }
}

/// A client's error in the words of a person at a terminal.
fn explain(what: &str, error: ClientError) -> anyhow::Error {
    let advice = match &error {
        ClientError::Refused(NamespaceError::NotFound) => "see `dfs ls` of its directory",
        ClientError::Refused(NamespaceError::Exists) => "choose another name, or remove it first",
        ClientError::Refused(NamespaceError::NotEmpty) => "give -r to remove what is in it",
        ClientError::Refused(NamespaceError::NotDirectory | NamespaceError::IsDirectory) => {
            "see `dfs stat` of the path"
        }
        ClientError::Refused(NamespaceError::NameTooLong) => "use a shorter name",
        ClientError::Refused(_) => "nothing was changed",
        ClientError::NoSpace { .. } => "free space, or add a chunkserver",
        ClientError::RecordTooLong { .. } => "append in parts: each is a record of its own",
        ClientError::RecordsUnknown { .. } => {
            "`dfs cat` prints the bytes; append them to a new file to list it"
        }
        ClientError::MasterSilent { .. } => {
            "is the master up? --server-wait makes this command wait longer"
        }
        ClientError::NoCurrentReplica { faults, .. } if !faults.is_anybody_away() => {
            "these bytes are on no server in order: see `dfs fsck`, and `dfs rm` or `dfs put` the file"
        }
        ClientError::NoCurrentReplica { .. } | ClientError::ChunkUnavailable { .. } => {
            "see `dfs status` for the servers that are missing"
        }
        ClientError::OutcomeUnknown => "look whether it was done before trying again",
        ClientError::Interrupted | ClientError::Protocol { .. } | ClientError::Closed => {
            "try again; if it stays, see the logs of master and chunkservers"
        }
    };
    let see = error.page().map_or_else(String::new, |page| format!("; see {page}"));
    Failure::new(format!("{what}: {error}"), format!("{advice}{see}")).into()
}
