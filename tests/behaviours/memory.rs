//! What the running thread has allocated: tests beside it do not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

/// The system's, counted for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: i64) {
    // A thread that ends has no counter any more.
    let _ending = LIVE.try_with(|live| live.set(live.get() + bytes));
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[expect(unsafe_code, reason = "an allocator; it only counts what the system's does")]
// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(signed(bytes) - signed(layout.size()));
        // SAFETY: as this call.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// Bytes this thread had allocated at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated(i64);

impl Allocated {
    pub(crate) fn now() -> Self {
        Self(LIVE.with(Cell::get))
    }

    /// Bytes allocated since and not freed; 0 if more was freed.
    pub(crate) fn more(self) -> u64 {
        u64::try_from(LIVE.with(Cell::get) - self.0).unwrap_or(0)
    }
}
