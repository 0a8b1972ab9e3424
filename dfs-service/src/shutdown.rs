//! Clean stops: signals seen by plain threads.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set once, seen by everybody. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that SIGTERM and SIGINT ask for; also SIGHUP, of a terminal that is closed, and SIGQUIT, unless
    /// whoever started this process had it ignore them (`nohup`).
    ///
    /// # Errors
    /// If signals cannot be handled.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let asked = shutdown.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Registered before this returns, so that no signal is missed.
        let (mut terminate, mut interrupt, mut hangup, mut quit) = {
            let _guard = runtime.enter();
            let unless_ignored = |kind: SignalKind| match is_ignored(kind) {
                true => Ok(None),
                false => signal(kind).map(Some),
            };
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                unless_ignored(SignalKind::hangup())?,
                unless_ignored(SignalKind::quit())?,
            )
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                    _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                    () = received(&mut hangup) => tracing::info!("SIGHUP: stopping"),
                    () = received(&mut quit) => tracing::info!("SIGQUIT: stopping"),
                }
                asked.ask();
                // Keeps the handlers: a second signal must not kill a clean stop half way.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(shutdown)
    }

    /// Asks everybody to stop.
    pub fn ask(&self) {
        let _guard = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.asked.store(true, Ordering::Release);
        self.inner.changed.notify_all();
    }

    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.inner.asked.load(Ordering::Acquire)
    }

    /// Waits until asked.
    pub fn wait(&self) {
        while !self.wait_for(Duration::from_secs(3600)) {}
    }

    /// Waits until asked, at most `timeout`; says whether it was.
    #[must_use]
    pub fn wait_for(&self, timeout: Duration) -> bool {
        let guard = self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _guard = self
            .inner
            .changed
            .wait_timeout_while(guard, timeout, |()| !self.is_asked())
            .unwrap_or_else(PoisonError::into_inner);
        self.is_asked()
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            let _open = signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// As proc(5) tells it: a bit for each signal. Where it does not, nothing is ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
