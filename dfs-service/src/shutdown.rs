//! Clean stops: SIGTERM and SIGINT seen by plain threads.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

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

    /// A shutdown that SIGTERM and SIGINT ask for.
    ///
    /// # Errors
    /// If signals cannot be handled.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let asked = shutdown.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Registered before this returns, so that no signal is missed.
        let (mut terminate, mut interrupt) = {
            let _guard = runtime.enter();
            use tokio::signal::unix::{SignalKind, signal};
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                    _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
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
