//! Memory that requests are read into: there from the start and never paged out.
//!
//! The kernel copies a request while the reader may be dying. A page that is missing then cannot be faulted in, and the
//! request fails with EIO instead of going to the next client.

use std::io;
use std::ptr::NonNull;

/// A mapping of whole pages, populated.
#[derive(Debug)]
pub(super) struct Resident {
    at: NonNull<u8>,
    bytes: usize,
    /// False: the limit of locked memory was in the way, and the kernel may page it out.
    pub(super) locked: bool,
}

// SAFETY: it owns its mapping alone, and gives it out by reference only.
#[expect(unsafe_code, reason = "owns memory that no type of the standard library can")]
unsafe impl Send for Resident {}

impl Resident {
    #[expect(unsafe_code, reason = "mmap(2), for memory that is locked from the start")]
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let map = |flags| {
            // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | flags,
                    -1,
                    0,
                )
            };
            if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast::<u8>()) }
        };
        if let Some(at) = map(libc::MAP_LOCKED) {
            return Ok(Self { at, bytes: size, locked: true });
        }
        let at = map(0).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { at, bytes: size, locked: false })
    }

    #[expect(unsafe_code, reason = "the mapping as bytes")]
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` bytes were mapped, zeroed, and live as long as `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }
}

impl Drop for Resident {
    #[expect(unsafe_code, reason = "munmap(2) of what was mapped here")]
    fn drop(&mut self) {
        // SAFETY: nobody borrows it any more.
        let _unmapped = unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}
