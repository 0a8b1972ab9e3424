//! Opens of files that have lost their last name.
//!
//! The kernel believes a name for a while. What it opens by one that another mount has given to another file would be the
//! file of before: the open is answered ESTALE, whereupon the kernel looks the whole path up anew and opens again, once. That
//! one is carried out: the name was asked for after the program asked for the file, or there is none (`/proc/self/fd`).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cache::lock;

/// The kernel opens again at once, as far as names on the way are found.
const AGAIN_MAX: Duration = Duration::from_secs(10);
const ENTRIES_MAX: usize = 4096;

/// Who was answered ESTALE, and when.
#[derive(Debug, Default)]
pub(super) struct StaleOpens(Mutex<HashMap<u32, Instant>>);

impl StaleOpens {
    /// An open of thread `pid`. False: it is to be answered ESTALE, of which [`Self::refused`] is told.
    pub(super) fn may_go_on(&self, pid: u32, is_nameless: bool) -> bool {
        let mut table = lock(&self.0);
        if table.is_empty() && !is_nameless {
            return true;
        }
        let is_again = table.remove(&pid).is_some_and(|since| since.elapsed() < AGAIN_MAX);
        !is_nameless || is_again
    }

    /// Thread `pid` was answered ESTALE, whatever it asked: what the kernel found may be gone altogether, which it may learn
    /// by asking for attributes first. The next try counts as the second one.
    pub(super) fn refused(&self, pid: u32) {
        let mut table = lock(&self.0);
        if ENTRIES_MAX <= table.len() {
            table.retain(|_, since| since.elapsed() < AGAIN_MAX);
        }
        table.insert(pid, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nameless_file_is_opened_at_the_second_try_of_the_same_thread() {
        let opens = StaleOpens::default();
        let may_go_on = |pid, is_nameless| {
            let may = opens.may_go_on(pid, is_nameless);
            if !may {
                opens.refused(pid);
            }
            may
        };
        assert!(may_go_on(1, false));
        assert!(!may_go_on(1, true) && !may_go_on(2, true));
        assert!(may_go_on(1, true), "again");
        assert!(!may_go_on(1, true), "another open");
        assert!(may_go_on(2, false), "it has found another file");
        assert!(!may_go_on(2, true));
        opens.refused(3);
        assert!(may_go_on(3, true), "the file of the first try was gone");
    }
}
