//! The memory that clients leave each other ([`dfs_client::kept`]), and in its head what a holder leaves the next one.
//!
//! ```text
//! words    8 layout of these words, 9 and 10 client id, 11 generation, 12 bytes of the answer to INIT, from 13 that answer
//! ```

use std::os::fd::OwnedFd;

use anyhow::Context as _;
use dfs_client::kept;

use crate::native::INIT_OUT_BYTES;

/// Number of this layout. Another program reads it, so it never changes its meaning.
const LAYOUT: u64 = 1;
const AT: u64 = kept::HOLDER_WORD as u64 * 8;
const HEAD_BYTES: usize = 40;

/// The memory, and a copy of what its head says.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) fd: OwnedFd,
    client_id: [u8; 16],
    pub(super) generation: u64,
    pub(super) init: Option<Vec<u8>>,
}

impl Memory {
    pub(super) fn new() -> anyhow::Result<Self> {
        let fd = rustix::fs::memfd_create("dfs-kept", rustix::fs::MemfdFlags::CLOEXEC)
            .context("make the memory that outlives clients")?;
        rustix::fs::ftruncate(&fd, kept::WORDS as u64 * 8).context("size that memory")?;
        let mut client_id = [0; 16];
        getrandom::fill(&mut client_id).context("draw a client id")?;
        Ok(Self { fd, client_id, generation: 0, init: None })
    }

    /// As a holder before left it.
    pub(super) fn taken_over(fd: OwnedFd) -> anyhow::Result<Self> {
        let size = rustix::fs::fstat(&fd).context("look at the stored memory")?.st_size;
        anyhow::ensure!(
            size == kept::WORDS as i64 * 8,
            "stored memory of {size} bytes, not {}: unmount, and mount anew",
            kept::WORDS * 8
        );
        let mut head = [0; HEAD_BYTES + INIT_OUT_BYTES];
        let read = rustix::io::pread(&fd, &mut head, AT).context("read the stored memory")?;
        anyhow::ensure!(read == head.len(), "stored memory that ends after {read} bytes");
        let (head, init) = head.split_at(HEAD_BYTES);
        let word = |word: usize| {
            let bytes = head.get(word * 8..word * 8 + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (layout, init_bytes) = (word(0), word(4));
        anyhow::ensure!(
            layout == LAYOUT,
            "stored memory of a holder's layout {layout}, this program knows {LAYOUT}: unmount, and mount anew"
        );
        let mut client_id = [0; 16];
        client_id.copy_from_slice(head.get(8..24).unwrap_or(&[0; 16]));
        let init = (init_bytes == INIT_OUT_BYTES as u64).then(|| init.to_vec());
        anyhow::ensure!(init.is_some(), "stored memory without what was agreed with the kernel");
        Ok(Self { fd, client_id, generation: word(3), init })
    }

    /// A client's turn begins.
    pub(super) fn begin_generation(&mut self) -> anyhow::Result<()> {
        self.generation += 1;
        self.write()
    }

    pub(super) fn keep_init(&mut self, answer: Vec<u8>) -> anyhow::Result<()> {
        self.init = Some(answer);
        self.write()
    }

    /// What a client is told first.
    pub(super) fn start(&self) -> Vec<u8> {
        let mut start = self.generation.to_ne_bytes().to_vec();
        start.extend_from_slice(&self.client_id);
        start
    }

    fn write(&self) -> anyhow::Result<()> {
        let init = self.init.as_deref().unwrap_or_default();
        let mut head = LAYOUT.to_le_bytes().to_vec();
        head.extend_from_slice(&self.client_id);
        head.extend_from_slice(&self.generation.to_le_bytes());
        head.extend_from_slice(&(init.len() as u64).to_le_bytes());
        head.extend_from_slice(init);
        let written = rustix::io::pwrite(&self.fd, &head, AT).context("write the memory")?;
        anyhow::ensure!(written == head.len(), "wrote {written} bytes of the memory's head");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_holder_goes_on_where_this_one_was() {
        let mut memory = Memory::new().unwrap();
        let copy = |memory: &Memory| memory.fd.try_clone().unwrap();
        let refused = Memory::taken_over(copy(&memory)).unwrap_err().to_string();
        assert!(refused.contains("layout 0"), "{refused}");
        memory.begin_generation().unwrap();
        let refused = Memory::taken_over(copy(&memory)).unwrap_err().to_string();
        assert!(refused.contains("agreed"), "{refused}");
        memory.keep_init(vec![7; INIT_OUT_BYTES]).unwrap();
        memory.begin_generation().unwrap();
        let next = Memory::taken_over(copy(&memory)).unwrap();
        assert_eq!((next.generation, next.start()), (2, memory.start()));
        assert_eq!(next.init, Some(vec![7; INIT_OUT_BYTES]));
        rustix::fs::ftruncate(&memory.fd, 100).unwrap();
        assert!(Memory::taken_over(memory.fd).unwrap_err().to_string().contains("100 bytes"));
    }

    /// Written down as in the tests of [`dfs_client::kept`].
    #[test]
    fn memory_that_an_earlier_holder_left_is_taken_over() {
        let memory = Memory::new().unwrap();
        for line in include_str!("../../../dfs-client/src/kept/layout-1.txt").lines() {
            let (word, value) = line.split_once(' ').unwrap();
            let value: u64 = value.parse().unwrap();
            let at = word.parse::<u64>().unwrap() * 8;
            assert_eq!(rustix::io::pwrite(&memory.fd, &value.to_le_bytes(), at).unwrap(), 8);
        }
        let next = Memory::taken_over(memory.fd).unwrap();
        assert_eq!(next.generation, 1);
        let init = next.init.unwrap();
        // Version 7.45 of the interface, agreed with the kernel by that client.
        assert_eq!(init.get(..8), Some([7, 0, 0, 0, 45, 0, 0, 0].as_slice()));
    }
}
