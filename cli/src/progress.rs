//! A progress bar for copies a person waits for.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shorter waits are not worth a flicker.
const SHOW_AFTER: Duration = Duration::from_secs(2);
const REDRAW: Duration = Duration::from_millis(200);

/// Counts bytes; draws on standard error once two seconds have passed, if that is a terminal, also while nothing moves:
/// then it says what is waited for.
#[derive(Debug)]
pub(crate) struct Progress {
    seen: Arc<Seen>,
    /// Gone, it ends the thread that draws.
    drawing: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// What the thread that draws knows.
#[derive(Debug, Default)]
struct Seen {
    done: AtomicU64,
    waits_for: Mutex<&'static str>,
}

impl Progress {
    /// `total`: bytes expected, if known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        let seen = Arc::new(Seen::default());
        let drawing = std::io::stderr().is_terminal().then(|| {
            let (end, ended) = mpsc::channel();
            let seen = Arc::clone(&seen);
            let draws = move || draw(&seen, total, &ended);
            // Without the thread there is no bar, and all else goes on.
            let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(draws);
            thread.ok().map(|thread| (end, thread))
        });
        Self { seen, drawing: drawing.flatten() }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.seen.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// From now on a standstill is because of `what`.
    pub(crate) fn waits_for(&self, what: &'static str) {
        *self.seen.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Takes the bar away; the number of bytes seen.
    pub(crate) fn finish(mut self) -> u64 {
        self.end();
        self.seen.done.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        if let Some((end, thread)) = self.drawing.take() {
            drop(end);
            // It panics only with the whole process.
            let _ended = thread.join();
        }
    }
}

/// An error is said below no bar.
impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Until `ended` says so, or is gone.
fn draw(seen: &Seen, total: Option<u64>, ended: &mpsc::Receiver<()>) {
    if ended.recv_timeout(SHOW_AFTER) != Err(mpsc::RecvTimeoutError::Timeout) {
        return;
    }
    let bar = bar(total);
    let (mut before, mut moved_at) = (0, None::<Instant>);
    loop {
        let done = seen.done.load(Ordering::Relaxed);
        if done != before {
            (before, moved_at) = (done, Some(Instant::now()));
        }
        let what = *seen.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = moved_at.is_none_or(|at| SHOW_AFTER <= at.elapsed()) && !what.is_empty();
        bar.set_message(if stands { format!("waiting for {what}") } else { String::new() });
        bar.set_position(done);
        bar.tick();
        if ended.recv_timeout(REDRAW) != Err(mpsc::RecvTimeoutError::Timeout) {
            bar.finish_and_clear();
            return;
        }
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
        Some(_) => {
            "{wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}  {msg}"
        }
        None => "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {msg}",
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
