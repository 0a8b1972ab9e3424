//! `dfs replay`: a recording of heartbeats, seen again.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::Context as _;
use master::lines::{Replayed, Settings, replay};

use crate::args::servers::ReplayArgs;
use crate::output::{self, printable, utc};

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let ReplayArgs { file, profile, timing, replication } = args;
    let profile = timing.profile(profile.name())?;
    let settings = Settings {
        profile,
        replication: *replication as usize,
        rebuild_delay_ms: profile.rebuild_delay_ms,
    };
    let input: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let open = File::open(file).with_context(|| format!("open {}", file.display()))?;
        Box::new(BufReader::new(open))
    };
    let mut printed = Ok(());
    let Replayed { messages, events } = replay(settings, input.split(b'\n'), |ms, event| {
        if printed.is_ok() {
            printed = output::line(&format!("{} {}", time_of(ms), printable(event)));
        }
    })
    .with_context(|| format!("replay {}", file.display()))?;
    printed?;
    output::line(&format!("{messages} messages, {events} events"))
}

/// UTC, with milliseconds.
fn time_of(ms: u64) -> String {
    format!("{}.{:03}", utc(i64::try_from(ms / 1000).unwrap_or(i64::MAX)), ms % 1000)
}
