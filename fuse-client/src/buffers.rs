//! Memory of read replies: kept and used again, so that a large read does not pay for fresh pages each time.

use std::sync::{Arc, Mutex, PoisonError};

/// Largest read of the kernel, in bytes: `max_pages` of INIT.
const BUFFER_BYTES: usize = 1 << 20;
/// Reads below this get their own allocation, which the allocator keeps for us.
const SMALL_BYTES: usize = 64 << 10;
/// Free buffers kept, at most.
const FREE_MAX: usize = 16;

type Free = Arc<Mutex<Vec<Vec<u8>>>>;

/// Hands out [`Buffer`]s.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    free: Free,
}

/// `len` bytes that go back to where they came from.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Option<Free>,
}

impl Buffers {
    /// A buffer of `len` bytes with any content.
    #[must_use]
    pub fn get(&self, len: usize) -> Buffer {
        if !(SMALL_BYTES..=BUFFER_BYTES).contains(&len) {
            return Buffer { bytes: vec![0; len], len, home: None };
        }
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        Buffer { bytes, len, home: Some(Arc::clone(&self.free)) }
    }
}

impl Buffer {
    /// Forgets all beyond the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// `len` is set when the bytes are there, and only made smaller after.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut free = home.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_used_again_and_shows_only_its_length() {
        let buffers = Buffers::default();
        let mut first = buffers.get(BUFFER_BYTES);
        let at = first.as_slice().as_ptr();
        first.as_mut_slice().fill(7);
        drop(first);
        let mut second = buffers.get(SMALL_BYTES);
        assert_eq!(second.as_slice().as_ptr(), at);
        second.truncate(3);
        assert_eq!(second.as_slice(), [7, 7, 7]);
    }

    #[test]
    fn kept_memory_has_a_limit() {
        let buffers = Buffers::default();
        drop((0..FREE_MAX + 5).map(|_| buffers.get(BUFFER_BYTES)).collect::<Vec<_>>());
        assert_eq!(buffers.free.lock().unwrap().len(), FREE_MAX);
    }
}
