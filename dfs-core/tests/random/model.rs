//! Names and small contents, as simply as they can be said: nodes in a map, directories as maps of names, links
//! counted by looking everywhere. Slow, and different enough from the real thing to disagree with it.

use std::collections::{BTreeMap, BTreeSet};

use dfs_core::command::{Change, Command, NewKind, Outcome, RenameMode};
use dfs_core::ids::InodeNo;
use dfs_core::meta::{self, MemStore};
use dfs_core::namespace::{Body, FileKind, NamespaceError};

enum Node {
    Directory(BTreeMap<Vec<u8>, u64>),
    /// Content while it is inline.
    File(Option<Vec<u8>>),
    Other,
}

pub(crate) struct Model {
    nodes: BTreeMap<u64, Node>,
    /// Files that never had a name.
    unnamed: BTreeSet<u64>,
}

type Expected = Result<(), NamespaceError>;

impl Model {
    pub(crate) fn new() -> Self {
        let root = (1, Node::Directory(BTreeMap::new()));
        Self { nodes: BTreeMap::from([root]), unnamed: BTreeSet::new() }
    }

    fn pick(&self, pick: u8, wanted: impl Fn(u64, &Node) -> bool) -> InodeNo {
        let found: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(ino, node)| wanted(**ino, node))
            .map(|(ino, _)| *ino)
            .collect();
        InodeNo(found.get(usize::from(pick) % found.len().max(1)).copied().unwrap_or(12_345))
    }

    pub(crate) fn any(&self, pick: u8) -> InodeNo {
        if pick == 255 { InodeNo(12_345) } else { self.pick(pick, |_, _| true) }
    }

    pub(crate) fn directory(&self, pick: u8) -> InodeNo {
        self.pick(pick, |_, node| matches!(node, Node::Directory(_)))
    }

    pub(crate) fn file(&self, pick: u8) -> InodeNo {
        self.pick(pick, |_, node| matches!(node, Node::File(_)))
    }

    pub(crate) fn orphan(&self, pick: u8) -> InodeNo {
        self.pick(pick, |ino, _| self.names_of(ino) == 0)
    }

    fn names_of(&self, ino: u64) -> u32 {
        let named = |node: &Node| match node {
            Node::Directory(names) => names.values().filter(|named| **named == ino).count(),
            Node::File(_) | Node::Other => 0,
        };
        u32::try_from(self.nodes.values().map(named).sum::<usize>()).unwrap() + u32::from(ino == 1)
    }

    fn is_directory(&self, ino: u64) -> bool {
        matches!(self.nodes.get(&ino), Some(Node::Directory(_)))
    }

    fn nlink(&self, ino: u64) -> u32 {
        match &self.nodes[&ino] {
            Node::Directory(_) if self.names_of(ino) == 0 => 0,
            Node::Directory(names) => {
                2 + u32::try_from(names.values().filter(|ino| self.is_directory(**ino)).count())
                    .unwrap()
            }
            Node::File(_) | Node::Other => self.names_of(ino),
        }
    }

    /// Whether `ino` is `top` or somewhere below it.
    fn is_within(&self, ino: u64, top: u64) -> bool {
        ino == top
            || match &self.nodes[&top] {
                Node::Directory(names) => names.values().any(|below| self.is_within(ino, *below)),
                Node::File(_) | Node::Other => false,
            }
    }

    fn names(&mut self, ino: InodeNo) -> Result<&mut BTreeMap<Vec<u8>, u64>, NamespaceError> {
        match self.nodes.get_mut(&ino.0) {
            None => Err(NamespaceError::Stale),
            Some(Node::Directory(names)) => Ok(names),
            Some(Node::File(_) | Node::Other) => Err(NamespaceError::NotDirectory),
        }
    }

    fn live_names(&mut self, ino: InodeNo) -> Result<&mut BTreeMap<Vec<u8>, u64>, NamespaceError> {
        self.names(ino)?;
        if self.names_of(ino.0) == 0 {
            return Err(NamespaceError::NotFound);
        }
        self.names(ino)
    }

    fn is_empty(&self, ino: u64) -> bool {
        matches!(&self.nodes[&ino], Node::Directory(names) if names.is_empty())
    }

    /// Does the same; answers what should have come out of it, if this model knows.
    pub(crate) fn apply(&mut self, change: &Change, outcome: &Outcome) -> Option<Expected> {
        match change {
            Change::Create { parent, name, kind, open_existing, .. } => {
                Some(self.create(*parent, name, kind, *open_existing, outcome))
            }
            Change::CreateUnnamed { parent, .. } => Some(self.create_unnamed(*parent, outcome)),
            Change::PutInPlace { ino, parent, name } => Some(self.put(*ino, *parent, name)),
            Change::Link { ino, parent, name } => Some(self.link(*ino, *parent, name)),
            Change::Unlink { parent, name } => Some(self.remove(*parent, name, false)),
            Change::Rmdir { parent, name } => Some(self.remove(*parent, name, true)),
            Change::Rename { from_parent, from, to_parent, to, mode } => {
                Some(self.rename((*from_parent, from), (*to_parent, to), *mode))
            }
            Change::Reclaim { ino } => Some(match self.nodes.contains_key(&ino.0) {
                false => Err(NamespaceError::Stale),
                true if self.nlink(ino.0) != 0 => Err(NamespaceError::NotPermitted(String::new())),
                true => {
                    self.nodes.remove(&ino.0);
                    Ok(())
                }
            }),
            Change::InlineWrite { ino, offset, data, append, .. } => {
                self.write(*ino, (!append).then_some(*offset), data)
            }
            Change::InlinePatch { ino, ranges, .. } => {
                let Some(before) = self.content(*ino)?.clone() else {
                    return Some(Err(NamespaceError::LayoutChanged));
                };
                let mut expected = Some(Ok(()));
                for (offset, data) in ranges {
                    if expected == Some(Ok(())) {
                        expected = self.write(*ino, Some(*offset), data);
                    }
                }
                // All or nothing.
                if expected != Some(Ok(())) {
                    *self.content(*ino)? = Some(before);
                }
                expected
            }
            Change::InlineZero { ino, offset, len, keep_size } => {
                let (from, to) =
                    (usize::try_from(*offset).unwrap(), usize::try_from(offset + len).unwrap());
                Some(match self.content(*ino)? {
                    None => Err(NamespaceError::LayoutChanged),
                    Some(_) if *len == 0 => Err(NamespaceError::Invalid(String::new())),
                    Some(content) => {
                        let size = if *keep_size { content.len() } else { content.len().max(to) };
                        content.resize(size.max(to), 0);
                        content[from..to].fill(0);
                        content.truncate(size);
                        Ok(())
                    }
                })
            }
            Change::InlineTruncate { ino, size } => match self.content(*ino)? {
                None => None,
                Some(content) => {
                    content.resize(usize::try_from(*size).unwrap(), 0);
                    Some(Ok(()))
                }
            },
            Change::Grow { ino, size } => match self.content(*ino)? {
                None => None,
                Some(content) => {
                    let size = usize::try_from(*size).unwrap();
                    content.resize(size.max(content.len()), 0);
                    Some(Ok(()))
                }
            },
            // These move content to chunks, which this model only takes note of.
            Change::Spill { ino, .. }
            | Change::BeginWrite { ino }
            | Change::AddChunk { ino, attach: true, .. } => {
                if let (Some(Node::File(content)), Outcome::Attr(_) | Outcome::Chunk { .. }) =
                    (self.nodes.get_mut(&ino.0), outcome)
                {
                    *content = None;
                }
                None
            }
            _ => None,
        }
    }

    /// A file's inline content; `None` if there is no such file.
    fn content(&mut self, ino: InodeNo) -> Option<&mut Option<Vec<u8>>> {
        match self.nodes.get_mut(&ino.0) {
            Some(Node::File(content)) => Some(content),
            Some(Node::Directory(_) | Node::Other) | None => None,
        }
    }

    fn write(&mut self, ino: InodeNo, offset: Option<u64>, data: &[u8]) -> Option<Expected> {
        let Some(content) = self.content(ino)? else {
            return Some(Err(NamespaceError::LayoutChanged));
        };
        let from = offset.map_or(content.len(), |offset| usize::try_from(offset).unwrap());
        if data.is_empty() {
            return Some(Ok(()));
        }
        let to = from + data.len();
        if 4096 < to {
            return Some(Err(NamespaceError::LayoutChanged));
        }
        let size = content.len().max(to);
        content.resize(size, 0);
        content[from..to].copy_from_slice(data);
        Some(Ok(()))
    }

    fn create(
        &mut self,
        parent: InodeNo,
        name: &[u8],
        kind: &NewKind,
        open_existing: bool,
        outcome: &Outcome,
    ) -> Expected {
        check_name(name)?;
        let found = self.live_names(parent)?.get(name).copied();
        if let Some(found) = found {
            let opened = open_existing && matches!(self.nodes[&found], Node::File(_));
            return if opened { Ok(()) } else { Err(NamespaceError::Exists) };
        }
        let Outcome::Entry { attr, created: true } = outcome else { return Ok(()) };
        assert!(!self.nodes.contains_key(&attr.ino.0), "{:?} is used twice", attr.ino);
        let node = match kind {
            NewKind::Directory => Node::Directory(BTreeMap::new()),
            NewKind::File => Node::File(attr.inline.then(Vec::new)),
            _ => Node::Other,
        };
        self.nodes.insert(attr.ino.0, node);
        self.names(parent)?.insert(name.to_vec(), attr.ino.0);
        Ok(())
    }

    fn create_unnamed(&mut self, parent: InodeNo, outcome: &Outcome) -> Expected {
        self.live_names(parent)?;
        let Outcome::Entry { attr, created: true } = outcome else { return Ok(()) };
        let made = self.nodes.insert(attr.ino.0, Node::File(attr.inline.then(Vec::new)));
        assert!(made.is_none(), "{:?} is used twice", attr.ino);
        self.unnamed.insert(attr.ino.0);
        Ok(())
    }

    fn put(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Expected {
        check_name(name)?;
        self.live_names(parent)?;
        match self.nodes.get(&ino.0) {
            None => return Err(NamespaceError::Stale),
            Some(Node::File(_)) if self.names_of(ino.0) == 0 => {}
            Some(_) => return Err(NamespaceError::NotPermitted(String::new())),
        }
        match self.names(parent)?.get(name).copied() {
            Some(target) if self.is_directory(target) => Err(NamespaceError::IsDirectory),
            Some(_) | None => {
                self.names(parent)?.insert(name.to_vec(), ino.0);
                self.unnamed.remove(&ino.0);
                Ok(())
            }
        }
    }

    fn link(&mut self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Expected {
        check_name(name)?;
        self.live_names(parent)?;
        if !self.nodes.contains_key(&ino.0) {
            return Err(NamespaceError::Stale);
        }
        if self.names(parent)?.contains_key(name) {
            return Err(NamespaceError::Exists);
        }
        if self.is_directory(ino.0) {
            return Err(NamespaceError::NotPermitted(String::new()));
        }
        if self.names_of(ino.0) == 0 && !self.unnamed.remove(&ino.0) {
            return Err(NamespaceError::NotFound);
        }
        self.names(parent)?.insert(name.to_vec(), ino.0);
        Ok(())
    }

    fn remove(&mut self, parent: InodeNo, name: &[u8], directory: bool) -> Expected {
        check_name(name)?;
        let found = *self.names(parent)?.get(name).ok_or(NamespaceError::NotFound)?;
        match (directory, self.is_directory(found)) {
            (true, false) => return Err(NamespaceError::NotDirectory),
            (false, true) => return Err(NamespaceError::IsDirectory),
            (true, true) if !self.is_empty(found) => return Err(NamespaceError::NotEmpty),
            (true, true) | (false, false) => {}
        }
        self.names(parent)?.remove(name);
        Ok(())
    }

    fn rename(
        &mut self,
        (from_parent, from): (InodeNo, &[u8]),
        (to_parent, to): (InodeNo, &[u8]),
        mode: RenameMode,
    ) -> Expected {
        check_name(from)?;
        check_name(to)?;
        self.names(from_parent)?;
        self.live_names(to_parent)?;
        let source = *self.names(from_parent)?.get(from).ok_or(NamespaceError::NotFound)?;
        let target = self.names(to_parent)?.get(to).copied();
        let below_itself = || Err(NamespaceError::Invalid(String::new()));
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(NamespaceError::Exists),
            (RenameMode::Exchange, None) => return Err(NamespaceError::NotFound),
            _ => {}
        }
        if self.is_directory(source) && self.is_within(to_parent.0, source) {
            return below_itself();
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, target) {
            if self.is_directory(target) && self.is_within(from_parent.0, target) {
                return below_itself();
            }
            self.names(from_parent)?.insert(from.to_vec(), target);
            self.names(to_parent)?.insert(to.to_vec(), source);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_directory(source), self.is_directory(target)) {
                (true, false) => return Err(NamespaceError::NotDirectory),
                (false, true) => return Err(NamespaceError::IsDirectory),
                (true, true) if !self.is_empty(target) => return Err(NamespaceError::NotEmpty),
                (true, true) | (false, false) => {}
            }
        }
        self.names(from_parent)?.remove(from);
        self.names(to_parent)?.insert(to.to_vec(), source);
        Ok(())
    }

    /// What is different in the store.
    pub(crate) fn compare(&self, store: &MemStore, command: &Command) -> Result<(), String> {
        let count = meta::superblock(store).map_or(0, |superblock| superblock.inode_count);
        if count != self.nodes.len() as u64 {
            return Err(format!("{command:?}: {count} inodes, the model has {}", self.nodes.len()));
        }
        for (&ino, node) in &self.nodes {
            let inode = meta::inode(store, InodeNo(ino))
                .ok_or_else(|| format!("{command:?}: {ino} is gone"))?;
            let expected = self.nlink(ino);
            if inode.nlink != expected {
                return Err(format!(
                    "{command:?}: {ino} has {} links, the model {expected}",
                    inode.nlink
                ));
            }
            let same = match node {
                Node::Directory(names) => *names == listing(store, InodeNo(ino)),
                Node::File(Some(expected)) => match &inode.body {
                    Body::Inline(content) => {
                        let mut content = content.clone();
                        content.resize(usize::try_from(inode.size).unwrap(), 0);
                        content == *expected
                    }
                    _ => false,
                },
                Node::File(None) => matches!(inode.body, Body::Chunks { .. }),
                Node::Other => !matches!(inode.kind, FileKind::File | FileKind::Directory),
            };
            if !same {
                return Err(format!("{command:?}: {ino} is not what the model has"));
            }
        }
        Ok(())
    }
}

/// A directory page by page, names looked up one by one.
fn listing(store: &MemStore, ino: InodeNo) -> BTreeMap<Vec<u8>, u64> {
    let mut listing = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = meta::readdir(store, ino, after, 2).unwrap();
        let Some(last) = page.last() else { return listing };
        after = last.cookie;
        for entry in page {
            assert_eq!(meta::lookup(store, ino, &entry.name).map(|attr| attr.ino), Ok(entry.ino));
            assert!(listing.insert(entry.name, entry.ino.0).is_none(), "an entry is shown twice");
        }
    }
}

fn check_name(name: &[u8]) -> Expected {
    match name {
        b"" | b"." | b".." | b"x/y" => Err(NamespaceError::Invalid(String::new())),
        _ => Ok(()),
    }
}
