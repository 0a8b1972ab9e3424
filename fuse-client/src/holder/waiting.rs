//! Watches how many requests wait while nobody serves, by the kernel's own count: a look at the mount would wait with them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::mount_table::mounted_at;

/// How long nobody serves before it is told, and how often it is told again.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(60);

/// Since when nobody serves.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Watch {
    /// To be called all the time.
    pub(super) fn look(&mut self, at: &Path, is_served: bool) {
        if is_served {
            if self.told.take().is_some() {
                tracing::info!(at = %at.display(), "requests are served again");
            }
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let is_due = self.told.is_none_or(|told| AGAIN <= told.elapsed());
        if since.elapsed() < PATIENCE || !is_due {
            return;
        }
        let waiting = waiting(at);
        // Where the kernel's count is not to be seen, programs may wait.
        if waiting == Some(0) {
            return;
        }
        self.told = Some(Instant::now());
        let unserved = since.elapsed();
        tracing::warn!(
            at = %at.display(), waiting, ?unserved,
            "no client serves, and programs wait: see what the client says, and whether the master is there"
        );
    }
}

/// Requests that the kernel has no answer to; nothing where the control file system (`fusectl`) is not mounted.
fn waiting(at: &Path) -> Option<u64> {
    let device = mounted_at(at).ok()??.device;
    let connection = device.split(':').nth(1)?.to_owned();
    let count = std::fs::read_to_string(format!("/sys/fs/fuse/connections/{connection}/waiting"));
    count.ok()?.trim().parse().ok()
}
