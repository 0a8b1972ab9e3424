//! The file system of one machine, in memory, with what a power loss leaves of it.
//!
//! Content reaches the disk by `fsync`, page by page, or by itself before; what did not may be there, be missing, or be
//! torn at 512 bytes. Names reach it in the order they were made, by an `fsync` of any directory, or by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tests::Random;

pub(crate) const PAGE: usize = 4096;
const SECTOR: usize = 512;

pub(crate) type Ino = u64;
/// With an errno.
pub(crate) type Result<T> = std::result::Result<T, i32>;

type Page = Rc<[u8; PAGE]>;
type Names = BTreeMap<Vec<u8>, Ino>;

static NOTHING: [u8; PAGE] = [0; PAGE];

thread_local! {
    /// Files that are filled with zeros in advance share one page.
    static ZERO: Page = Rc::new([0; PAGE]);
}

#[derive(Clone, Default, Debug)]
pub(crate) struct FileData {
    pages: BTreeMap<u64, Page>,
    len: u64,
    on_disk: BTreeMap<u64, Page>,
    on_disk_len: u64,
    /// Pages that differ from those on disk.
    dirty: BTreeSet<u64>,
    /// Room that was asked for.
    reserved: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(FileData),
    Directory { names: Names, on_disk: Names },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    pub(crate) ino: Ino,
    pub(crate) len: u64,
    pub(crate) is_dir: bool,
    /// In 512 bytes.
    pub(crate) blocks: u64,
    /// Nanoseconds since 1970.
    pub(crate) changed: u64,
}

/// One change of names that is not on disk yet.
#[derive(Clone, Debug)]
struct NameChange {
    remove: Option<(Ino, Vec<u8>)>,
    set: Option<(Ino, Vec<u8>, Ino)>,
}

/// What a disk does wrong, each once in so many times; 0: never.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Trouble {
    pub(crate) read_fails: u64,
    pub(crate) sync_fails: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    nodes: BTreeMap<Ino, Node>,
    changed: BTreeMap<Ino, u64>,
    next: Ino,
    pending: Vec<NameChange>,
    pub(crate) capacity: u64,
    used: u64,
    pub(crate) trouble: Trouble,
    /// Descriptors by file: those without a name are kept until the last is closed.
    open: BTreeMap<Ino, usize>,
    nameless: BTreeSet<Ino>,
    pub(crate) locks: BTreeMap<Ino, u64>,
}

pub(crate) const ROOT: Ino = 1;

/// Whether a slice of [`FileData::slices`] is of a page without content.
pub(crate) fn is_nothing(slice: &[u8]) -> bool {
    NOTHING.as_ptr_range().contains(&slice.as_ptr())
}

impl FileData {
    fn room(&self) -> u64 {
        (self.pages.len() as u64 * PAGE as u64).max(self.reserved)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            match self.pages.get(&page) {
                Some(content) => self.on_disk.insert(page, Rc::clone(content)),
                None => self.on_disk.remove(&page),
            };
        }
        self.on_disk_len = self.len;
    }

    /// What is there after a power loss.
    fn lose_power(&mut self, random: &mut Random) {
        for page in std::mem::take(&mut self.dirty) {
            let new = self.pages.get(&page).cloned();
            match random.below(3) {
                0 => {}
                1 => {
                    match new {
                        Some(content) => self.on_disk.insert(page, content),
                        None => self.on_disk.remove(&page),
                    };
                }
                _ => {
                    let zero: Page = Rc::new([0; PAGE]);
                    let new = new.unwrap_or_else(|| Rc::clone(&zero));
                    let mut torn = **self.on_disk.get(&page).unwrap_or(&zero);
                    for (sector, bytes) in torn.chunks_mut(SECTOR).enumerate() {
                        if random.below(2) == 0 {
                            bytes.copy_from_slice(&new[sector * SECTOR..(sector + 1) * SECTOR]);
                        }
                    }
                    self.on_disk.insert(page, Rc::new(torn));
                }
            }
        }
        // A length reaches the disk with or without the bytes.
        if random.below(2) == 0 {
            self.on_disk_len = self.len;
        }
        self.len = self.on_disk_len;
        let (end, rest) = (self.len / PAGE as u64, usize::try_from(self.len).unwrap_or(0) % PAGE);
        self.on_disk.retain(|page, _| *page < end || (*page == end && rest != 0));
        if let Some(last) = self.on_disk.get_mut(&end) {
            Rc::make_mut(last)[rest..].fill(0);
        }
        self.pages.clone_from(&self.on_disk);
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.slices(offset, len).concat()
    }

    /// The same as [`Self::read`], page by page.
    pub(crate) fn slices(&self, offset: u64, len: usize) -> Vec<&[u8]> {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut out = Vec::with_capacity(len.div_ceil(PAGE) + 1);
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE as u64, usize::try_from(at).unwrap_or(0) % PAGE);
            let take = (PAGE - within).min(usize::try_from(end - at).unwrap_or(PAGE));
            let content: &[u8] = match self.pages.get(&page) {
                Some(content) if !ZERO.with(|zero| Rc::ptr_eq(zero, content)) => &content[..],
                Some(_) | None => &NOTHING,
            };
            out.push(&content[within..within + take]);
            at += take as u64;
        }
        out
    }

    fn write(&mut self, offset: u64, data: &[u8], random: &mut Random) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE as u64, usize::try_from(at).unwrap_or(0) % PAGE);
            let take = (PAGE - within).min(data.len() - done);
            let new = &data[done..done + take];
            let content = self.pages.entry(page).or_insert_with(|| ZERO.with(Rc::clone));
            if take == PAGE && new.iter().all(|byte| *byte == 0) {
                *content = ZERO.with(Rc::clone);
            } else {
                Rc::make_mut(content)[within..within + take].copy_from_slice(new);
            }
            // Sometimes it is on disk before anybody asks.
            if random.below(64) == 0 {
                self.on_disk.insert(page, Rc::clone(content));
                self.dirty.remove(&page);
            } else {
                self.dirty.insert(page);
            }
            done += take;
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    fn zero(&mut self, from: u64, to: u64) {
        let (first, last) = (from / PAGE as u64, to.div_ceil(PAGE as u64));
        let touched: Vec<u64> = self.pages.range(first..last).map(|(page, _)| *page).collect();
        for page in touched {
            let start = page * PAGE as u64;
            if from <= start && start + PAGE as u64 <= to {
                self.pages.remove(&page);
            } else if let Some(content) = self.pages.get_mut(&page) {
                let within = |at: u64| {
                    usize::try_from(at.clamp(start, start + PAGE as u64) - start).unwrap_or(0)
                };
                Rc::make_mut(content)[within(from)..within(to)].fill(0);
            }
            self.dirty.insert(page);
        }
    }

    fn truncate(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len.next_multiple_of(PAGE as u64));
            self.reserved = self.reserved.min(len.next_multiple_of(PAGE as u64));
        }
        self.len = len;
    }

    /// The first byte at or after `offset` that is (not) on a page; `None` behind the last such.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if self.len <= offset {
            return None;
        }
        let size = PAGE as u64;
        if data {
            let (page, _) = self.pages.range(offset / size..).next()?;
            let at = (page * size).max(offset);
            return (at < self.len).then_some(at);
        }
        let mut page = offset / size;
        while self.pages.contains_key(&page) {
            page += 1;
        }
        Some((page * size).clamp(offset, self.len))
    }
}

impl Disk {
    pub(crate) fn new(capacity: u64) -> Self {
        let root = Node::Directory { names: Names::new(), on_disk: Names::new() };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            changed: BTreeMap::new(),
            next: ROOT + 1,
            pending: Vec::new(),
            capacity,
            used: 0,
            trouble: Trouble::default(),
            open: BTreeMap::new(),
            nameless: BTreeSet::new(),
            locks: BTreeMap::new(),
        }
    }

    fn names(&mut self, dir: Ino) -> Result<&mut Names> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Directory { names, .. }) => Ok(names),
            Some(Node::File(_)) => Err(libc::ENOTDIR),
            None => Err(libc::ENOENT),
        }
    }

    /// # Errors
    /// ENOENT, EISDIR.
    pub(crate) fn file(&self, ino: Ino) -> Result<&FileData> {
        match self.nodes.get(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory { .. }) => Err(libc::EISDIR),
            None => Err(libc::ENOENT),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut FileData> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory { .. }) => Err(libc::EISDIR),
            None => Err(libc::ENOENT),
        }
    }

    /// The directory and last name of a path below `start`; no name: the directory itself.
    pub(crate) fn walk(&mut self, start: Ino, path: &[u8]) -> Result<(Ino, Option<Vec<u8>>)> {
        let mut at = if path.starts_with(b"/") { ROOT } else { start };
        let parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        let Some((last, above)) = parts.split_last() else { return Ok((at, None)) };
        for part in above {
            at = *self.names(at)?.get(*part).ok_or(libc::ENOENT)?;
        }
        self.names(at)?;
        Ok((at, Some(last.to_vec())))
    }

    pub(crate) fn find(&mut self, start: Ino, path: &[u8]) -> Result<Ino> {
        match self.walk(start, path)? {
            (dir, None) => Ok(dir),
            (dir, Some(name)) => self.names(dir)?.get(&name).copied().ok_or(libc::ENOENT),
        }
    }

    fn add(&mut self, dir: Ino, name: Vec<u8>, node: Node, now: u64) -> Result<Ino> {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.changed.insert(ino, now);
        self.names(dir)?.insert(name.clone(), ino);
        self.pending.push(NameChange { remove: None, set: Some((dir, name, ino)) });
        Ok(ino)
    }

    /// Makes it if `create`; whether it was there.
    pub(crate) fn open(
        &mut self,
        start: Ino,
        path: &[u8],
        create: bool,
        now: u64,
    ) -> Result<(Ino, bool)> {
        match self.walk(start, path)? {
            (dir, None) => Ok((dir, true)),
            (dir, Some(name)) => match self.names(dir)?.get(&name) {
                Some(ino) => Ok((*ino, true)),
                None if create => {
                    let file = Node::File(FileData::default());
                    self.add(dir, name, file, now).map(|ino| (ino, false))
                }
                None => Err(libc::ENOENT),
            },
        }
    }

    pub(crate) fn mkdir(&mut self, start: Ino, path: &[u8], now: u64) -> Result<()> {
        let (dir, Some(name)) = self.walk(start, path)? else { return Err(libc::EEXIST) };
        if self.names(dir)?.contains_key(&name) {
            return Err(libc::EEXIST);
        }
        let node = Node::Directory { names: Names::new(), on_disk: Names::new() };
        self.add(dir, name, node, now).map(|_| ())
    }

    pub(crate) fn unlink(&mut self, start: Ino, path: &[u8], want_dir: bool) -> Result<()> {
        let (dir, Some(name)) = self.walk(start, path)? else { return Err(libc::EBUSY) };
        let ino = *self.names(dir)?.get(&name).ok_or(libc::ENOENT)?;
        match self.nodes.get(&ino) {
            Some(Node::Directory { names, .. }) if want_dir && !names.is_empty() => {
                return Err(libc::ENOTEMPTY);
            }
            Some(Node::Directory { .. }) if !want_dir => return Err(libc::EISDIR),
            Some(Node::File(_)) if want_dir => return Err(libc::ENOTDIR),
            Some(Node::Directory { .. } | Node::File(_)) | None => {}
        }
        self.names(dir)?.remove(&name);
        self.pending.push(NameChange { remove: Some((dir, name)), set: None });
        self.forget(ino);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        let (dir, Some(name)) = self.walk(from.0, from.1)? else { return Err(libc::EBUSY) };
        let (to_dir, Some(to_name)) = self.walk(to.0, to.1)? else { return Err(libc::EBUSY) };
        let ino = *self.names(dir)?.get(&name).ok_or(libc::ENOENT)?;
        self.names(dir)?.remove(&name);
        let replaced = self.names(to_dir)?.insert(to_name.clone(), ino);
        self.pending
            .push(NameChange { remove: Some((dir, name)), set: Some((to_dir, to_name, ino)) });
        if let Some(replaced) = replaced.filter(|replaced| *replaced != ino) {
            self.forget(replaced);
        }
        Ok(())
    }

    /// Room of a file that lost its name is free once no descriptor is left; its bytes may still come back by a power
    /// loss, until the names are on disk.
    fn forget(&mut self, ino: Ino) {
        self.nameless.insert(ino);
        if self.open.contains_key(&ino) {
            return;
        }
        if let Some(Node::File(file)) = self.nodes.get_mut(&ino) {
            self.used = self.used.saturating_sub(file.room());
            file.reserved = 0;
            file.pages.clear();
            file.dirty.clear();
        }
    }

    pub(crate) fn opened(&mut self, ino: Ino) {
        *self.open.entry(ino).or_default() += 1;
    }

    pub(crate) fn closed(&mut self, ino: Ino) {
        if let Some(count) = self.open.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&ino);
                if self.nameless.contains(&ino) {
                    self.forget(ino);
                }
            }
        }
    }

    pub(crate) fn list(&mut self, dir: Ino) -> Result<Vec<(Vec<u8>, Ino, bool)>> {
        let names: Vec<(Vec<u8>, Ino)> =
            self.names(dir)?.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
        let is_dir = |ino: &Ino| matches!(self.nodes.get(ino), Some(Node::Directory { .. }));
        Ok(names
            .into_iter()
            .map(|(name, ino)| {
                let dir = is_dir(&ino);
                (name, ino, dir)
            })
            .collect())
    }

    pub(crate) fn stat(&self, ino: Ino) -> Result<Stat> {
        let (len, is_dir, room) = match self.nodes.get(&ino).ok_or(libc::ENOENT)? {
            Node::File(file) => (file.len, false, file.room()),
            Node::Directory { .. } => (PAGE as u64, true, PAGE as u64),
        };
        let changed = self.changed.get(&ino).copied().unwrap_or(0);
        Ok(Stat { ino, len, is_dir, blocks: room / SECTOR as u64, changed })
    }

    pub(crate) fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    fn change<T>(
        &mut self,
        ino: Ino,
        now: u64,
        change: impl FnOnce(&mut FileData) -> T,
    ) -> Result<T> {
        let file = self.file_mut(ino)?;
        let before = file.room();
        let done = change(file);
        let after = file.room();
        self.used = (self.used + after).saturating_sub(before);
        self.changed.insert(ino, now);
        Ok(done)
    }

    /// # Errors
    /// ENOSPC: nothing is written.
    pub(crate) fn write(
        &mut self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        now: u64,
        random: &mut Random,
    ) -> Result<()> {
        let file = self.file(ino)?;
        let pages = (offset / PAGE as u64..(offset + data.len() as u64).div_ceil(PAGE as u64))
            .filter(|page| !file.pages.contains_key(page));
        let more = pages.count() as u64 * PAGE as u64;
        let spare = file.reserved.saturating_sub(file.pages.len() as u64 * PAGE as u64);
        if self.free() + spare < more {
            return Err(libc::ENOSPC);
        }
        self.change(ino, now, |file| file.write(offset, data, random))
    }

    pub(crate) fn truncate(&mut self, ino: Ino, len: u64, now: u64) -> Result<()> {
        self.change(ino, now, |file| file.truncate(len))
    }

    pub(crate) fn fallocate(
        &mut self,
        ino: Ino,
        mode: i32,
        offset: u64,
        len: u64,
        now: u64,
    ) -> Result<()> {
        let end = offset + len;
        let file = self.file(ino)?;
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let to = if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                end
            } else {
                end.min(file.len.next_multiple_of(PAGE as u64))
            };
            return self.change(ino, now, |file| {
                if offset < to {
                    file.zero(offset, to);
                }
                if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                    file.len = file.len.max(end);
                }
            });
        }
        if self.free() + file.room() < end {
            return Err(libc::ENOSPC);
        }
        self.change(ino, now, |file| {
            file.reserved = file.reserved.max(end.next_multiple_of(PAGE as u64));
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                file.len = file.len.max(end);
            }
        })
    }

    /// # Errors
    /// EIO, by [`Trouble`]: the pages are then neither on disk nor written again by a later sync, as on Linux.
    pub(crate) fn sync(&mut self, ino: Ino, random: &mut Random) -> Result<()> {
        let fails = self.trouble.sync_fails != 0 && random.below(self.trouble.sync_fails) == 0;
        match self.nodes.get_mut(&ino).ok_or(libc::ENOENT)? {
            Node::File(file) if fails => {
                file.dirty.clear();
                return Err(libc::EIO);
            }
            Node::File(file) => file.sync(),
            Node::Directory { .. } if fails => return Err(libc::EIO),
            Node::Directory { .. } => self.commit_names(self.pending.len()),
        }
        Ok(())
    }

    pub(crate) fn sync_all(&mut self) {
        for node in self.nodes.values_mut() {
            if let Node::File(file) = node {
                file.sync();
            }
        }
        self.commit_names(self.pending.len());
    }

    fn commit_names(&mut self, count: usize) {
        for change in self.pending.drain(..count).collect::<Vec<_>>() {
            let mut on_disk = |dir: Ino, change: &mut dyn FnMut(&mut Names)| {
                if let Some(Node::Directory { on_disk, .. }) = self.nodes.get_mut(&dir) {
                    change(on_disk);
                }
            };
            if let Some((dir, name)) = change.remove {
                on_disk(dir, &mut |names| _ = names.remove(&name));
            }
            if let Some((dir, name, ino)) = change.set {
                on_disk(dir, &mut |names| _ = names.insert(name.clone(), ino));
            }
        }
    }

    /// What the disk holds when power comes back; no descriptor is left.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        let kept = usize::try_from(random.below(self.pending.len() as u64 + 1)).unwrap_or(0);
        self.commit_names(kept);
        self.pending.clear();
        self.open.clear();
        self.nameless.clear();
        self.locks.clear();
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => {
                    file.reserved = 0;
                    file.lose_power(random);
                }
                Node::Directory { names, on_disk } => names.clone_from(on_disk),
            }
        }
        self.drop_unnamed();
    }

    /// Whatever was wrong with it is over.
    pub(crate) fn be_well(&mut self, capacity: u64) {
        (self.trouble, self.capacity) = (Trouble::default(), capacity);
    }

    /// Descriptors of killed processes are gone.
    pub(crate) fn all_closed(&mut self) {
        self.locks.clear();
        let open: Vec<Ino> = std::mem::take(&mut self.open).into_keys().collect();
        for ino in open {
            if self.nameless.contains(&ino) {
                self.forget(ino);
            }
        }
    }

    fn drop_unnamed(&mut self) {
        let mut named = BTreeSet::from([ROOT]);
        for node in self.nodes.values() {
            if let Node::Directory { names, on_disk } = node {
                named.extend(names.values().chain(on_disk.values()));
            }
        }
        self.nodes.retain(|ino, _| named.contains(ino));
        self.used = self
            .nodes
            .values()
            .map(|node| if let Node::File(file) = node { file.room() } else { 0 })
            .sum();
    }

    /// Files below `dir` that have content, with their paths.
    pub(crate) fn files(&self, dir: Ino, above: &str) -> Vec<(String, Ino, u64)> {
        let Some(Node::Directory { names, .. }) = self.nodes.get(&dir) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, ino) in names {
            let path = format!("{above}/{}", String::from_utf8_lossy(name));
            match self.nodes.get(ino) {
                Some(Node::Directory { .. }) => found.extend(self.files(*ino, &path)),
                Some(Node::File(file)) => found.push((path, *ino, file.len)),
                None => {}
            }
        }
        found
    }

    /// Turns one bit over, in memory and on disk.
    pub(crate) fn flip(&mut self, ino: Ino, offset: u64, bit: u8) {
        let (page, within) = (offset / PAGE as u64, usize::try_from(offset).unwrap_or(0) % PAGE);
        if let Some(Node::File(file)) = self.nodes.get_mut(&ino) {
            for pages in [&mut file.pages, &mut file.on_disk] {
                if let Some(content) = pages.get_mut(&page) {
                    Rc::make_mut(content)[within] ^= 1 << bit;
                }
            }
        }
    }

    /// Removes a file, also from the disk.
    pub(crate) fn destroy(&mut self, path: &str) {
        if self.unlink(ROOT, path.as_bytes(), false).is_ok() {
            self.commit_names(self.pending.len());
        }
    }

    /// Puts a file on the disk, with directories above it.
    pub(crate) fn install(&mut self, path: &str, content: &[u8], random: &mut Random) {
        let mut at = 0;
        while let Some(slash) = path[at + 1..].find('/') {
            at += 1 + slash;
            let _there = self.mkdir(ROOT, &path.as_bytes()[..at], 0);
        }
        if let Ok((ino, _)) = self.open(ROOT, path.as_bytes(), true, 0) {
            let _room = self.write(ino, 0, content, 0, random);
        }
        self.sync_all();
    }
}
