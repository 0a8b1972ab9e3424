//! The state in memory, made anew from the log at each start.
use dfs_core::meta::{Key, MemStore, MetaStore, Record};
use std::sync::{RwLock, RwLockReadGuard};
#[derive(Debug)]
pub struct RedbStore(RwLock<MemStore>);
#[derive(Clone, Debug)]
pub struct Applied {
    pub term: u64,
    pub index: u64,
    pub group_state: Vec<u8>,
}
#[expect(missing_debug_implementations, reason = "a guard")]
pub struct Reader<'a>(RwLockReadGuard<'a, MemStore>);
impl MetaStore for Reader<'_> {
    fn get(&self, key: &Key) -> Option<Record> {
        self.0.get(key)
    }
    fn put(&mut self, _: Key, _: Record) {
        unreachable!()
    }
    fn delete(&mut self, _: &Key) {
        unreachable!()
    }
    fn range(&self, a: &Key, b: &Key, l: usize) -> Vec<(Key, Record)> {
        self.0.range(a, b, l)
    }
}
impl RedbStore {
    pub fn open(_: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self(RwLock::new(MemStore::new())))
    }
    pub fn applied(&self) -> Option<Applied> {
        None
    }
    pub fn reader(&self) -> Reader<'_> {
        Reader(self.0.read().unwrap())
    }
    pub fn batch<T>(&self, _: &Applied, f: impl FnOnce(&mut dyn MetaStore) -> T) -> T {
        f(&mut *self.0.write().unwrap())
    }
    pub fn snapshot(&self) -> std::io::Result<crate::group::SnapshotWriter> {
        Err(std::io::Error::other("scratch"))
    }
    pub fn install(&self, _: &Applied, _: &mut dyn std::io::Read) -> std::io::Result<()> {
        Err(std::io::Error::other("scratch"))
    }
}
