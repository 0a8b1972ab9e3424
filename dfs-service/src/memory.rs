//! Memory that a burst of work left behind.
//!
//! The allocator keeps what is freed below memory still in use, and at the end of each of its arenas as much as twice the
//! largest piece it ever gave back. There it stays, however long nothing happens: a mount that had 64 MiB of written
//! bytes on their way in thousands of pieces went on with 85 to 96 MiB, of which it used 9. Given back without a bound
//! for the ends that was 48 MiB, with one 17 MiB; fewer arenas alone changed nothing.

/// Free memory at the end of an arena goes back beyond this: still a few of the largest buffers.
#[cfg(target_env = "gnu")]
const END_MAX: i32 = 4 << 20;
/// Pieces from here on are mapped and unmapped one by one. Said, because otherwise the bound above is not kept, and above
/// the largest buffer, because mapping each costs.
#[cfg(target_env = "gnu")]
const MAPPED_MIN: i32 = 8 << 20;
/// Less is not worth walking all free lists for.
const FREED_MIN: u64 = 16 << 20;
/// Work that frees no more from look to look is a trickle.
const TRICKLE: u64 = 1 << 20;

/// Decides when to give memory back: once after each burst, when it has been over for a while.
#[derive(Debug)]
pub struct Trimmer {
    quiet_looks_min: u32,
    seen_bytes: u64,
    trimmed_bytes: u64,
    quiet_looks: u32,
}

impl Trimmer {
    /// A burst is over after `quiet_looks_min` looks at a trickle.
    #[must_use]
    pub fn new(quiet_looks_min: u32) -> Self {
        Self { quiet_looks_min, seen_bytes: 0, trimmed_bytes: 0, quiet_looks: 0 }
    }

    /// `freed_bytes`: all that was ever freed, as far as it is counted. True: now is the time for [`give_back`].
    pub fn on_look(&mut self, freed_bytes: u64) -> bool {
        let quiet = freed_bytes.saturating_sub(self.seen_bytes) < TRICKLE;
        self.seen_bytes = freed_bytes;
        self.quiet_looks = if quiet { self.quiet_looks.saturating_add(1) } else { 0 };
        let due = self.quiet_looks_min <= self.quiet_looks
            && FREED_MIN <= freed_bytes.saturating_sub(self.trimmed_bytes);
        if due {
            self.trimmed_bytes = freed_bytes;
        }
        due
    }
}

/// Bounds what the allocator keeps, from now on.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "nothing safe calls mallopt(3)")]
    // SAFETY: it takes two numbers and may be called by any thread at any time.
    unsafe {
        // A value that is refused leaves the default.
        let _refused = libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_MIN);
        let _refused = libc::mallopt(libc::M_TRIM_THRESHOLD, END_MAX);
    }
}

/// Gives pages that hold nothing back to the kernel. Takes milliseconds for a hundred MiB; who allocates meanwhile may
/// wait for that. True: there were some.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "nothing safe calls malloc_trim(3)")]
    // SAFETY: it takes a number, may be called by any thread at any time, and touches free memory only.
    let given = unsafe { libc::malloc_trim(0) } != 0;
    #[cfg(not(target_env = "gnu"))]
    let given = false;
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_once_when_a_burst_is_over() {
        let mut trimmer = Trimmer::new(3);
        let mut looks = |freed_mib: [u64; 6]| freed_mib.map(|mib| trimmer.on_look(mib << 20));
        assert_eq!(looks([0, 0, 0, 0, 0, 0]), [false; 6], "nothing was freed");
        assert_eq!(looks([40, 80, 120, 120, 120, 120]), [false, false, false, false, false, true]);
        assert_eq!(looks([120, 120, 125, 125, 125, 125]), [false; 6], "too little since");
        assert_eq!(looks([160, 160, 160, 161, 161, 161]), [false; 6], "work goes on");
        assert_eq!(looks([161, 161, 161, 161, 161, 161])[..2], [true, false]);
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_lies_between_pieces_in_use_goes_back() {
        const PIECES: usize = 2_000;
        let resident_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let pieces: Vec<_> = (0..PIECES).map(|_| (vec![1_u8; 32 << 10], vec![1_u8; 64])).collect();
        let kept: Vec<_> = pieces.into_iter().map(|(_, kept)| kept).collect();
        let before = resident_kib();
        assert!(give_back());
        let after = resident_kib();
        assert!(after + (32 << 10) < before, "{before} KiB before, {after} KiB after");
        drop(kept);
    }

    #[test]
    fn a_trickle_does_not_hold_it_up() {
        let mut trimmer = Trimmer::new(3);
        let freed = |look: u64| (100 << 20) + look * 4096;
        let first = (0..20).position(|look| trimmer.on_look(freed(look)));
        assert_eq!(first, Some(3));
    }
}
