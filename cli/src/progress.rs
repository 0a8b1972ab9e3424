//! A progress bar for copies a person waits for.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shorter waits are not worth a flicker.
const SHOW_AFTER: Duration = Duration::from_secs(2);

/// Counts bytes; draws on standard error once two seconds have passed, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    done: u64,
    total: Option<u64>,
}

impl Progress {
    /// `total`: bytes expected, if known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        Self { bar: None, started: Instant::now(), done: 0, total }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.bar.is_none()
            && SHOW_AFTER <= self.started.elapsed()
            && std::io::stderr().is_terminal()
        {
            self.bar = Some(bar(self.total));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    /// Takes the bar away; the number of bytes seen.
    pub(crate) fn finish(self) -> u64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.done
    }
}

/// One line that says what is being done; as [`Progress`] else.
#[derive(Debug)]
pub(crate) struct Steps {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { bar: None, started: Instant::now() }
    }

    pub(crate) fn say(&mut self, what: &str) {
        if self.bar.is_none()
            && SHOW_AFTER <= self.started.elapsed()
            && std::io::stderr().is_terminal()
        {
            self.bar = Some(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        }
        if let Some(bar) = &self.bar {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            bar.tick();
        }
    }

    /// Does `print` while the line is away.
    pub(crate) fn hidden<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}",
        None => "{spinner} {binary_bytes}  {binary_bytes_per_sec}",
    };
    // The templates are constants: a wrong one shows as the default style.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bars_count() {
        for total in [Some(10), None] {
            let drawn = bar(total);
            drawn.set_position(5);
            assert_eq!(drawn.position(), 5);
        }
    }

    #[test]
    fn bytes_add_up() {
        let mut progress = Progress::new(None);
        progress.add(3);
        progress.add(4);
        assert_eq!(progress.finish(), 7);
    }
}
