//! Who runs the group's tasks: whoever waits for them. They have no thread of their own while one caller at a time
//! proposes: its thread takes them through log and store to its answer, without a switch in between.
//!
//! A thread stands by for all the rest: callers side by side, callers that must not wait, timers. It holds the tasks
//! only as long as somebody needs it to, or the next lone caller would find them taken.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::oneshot;

/// Nobody proposes any more: what is left to do, and timers, wait for so long.
const STAND_BY: Duration = Duration::from_millis(50);
/// Nobody did for some turns: timers wait for so long.
const IDLE_STAND_BY: Duration = Duration::from_millis(250);
const TURNS_UNTIL_IDLE: u32 = 4;
/// And then get so long.
const TURN: Duration = Duration::from_millis(1);
/// How long callers may take to leave when the group stops.
const STOP_MAX: Duration = Duration::from_secs(30);

enum Errand {
    Run(Box<dyn FnOnce(&Runtime) + Send>),
    /// As long as [`Driving`] says.
    Drive,
}

/// As long as it lives the tasks run.
pub(super) struct Driving(Arc<Wanted>);

/// Who cannot run the tasks, or must not.
#[derive(Default)]
struct Wanted {
    count: AtomicUsize,
    none: Notify,
    /// An errand says so and was not taken yet: one is enough.
    told: AtomicBool,
}

impl Drop for Driving {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none.notify_one();
        }
    }
}

pub(super) struct Driver {
    /// `None`: stopped.
    open: Mutex<Option<Open>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wanted: Arc<Wanted>,
    waiting: AtomicUsize,
    /// Callers so far that ran the tasks themselves.
    lone: Arc<AtomicU64>,
}

struct Open {
    runtime: Arc<Runtime>,
    errands: mpsc::Sender<Errand>,
}

/// One of those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Driver {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            // The caller's answer is looked at after every task: it must not take others' commands along first.
            .event_interval(1)
            .enable_time()
            .build()?;
        let runtime = Arc::new(runtime);
        let (errands, todo) = mpsc::channel();
        let wanted = Arc::new(Wanted::default());
        let (standing_by, of_thread) = (Arc::clone(&runtime), Arc::clone(&wanted));
        let lone = Arc::new(AtomicU64::new(0));
        let lone_callers = Arc::clone(&lone);
        let thread = std::thread::Builder::new()
            .name("group".to_owned())
            .spawn(move || stand_by(standing_by, &todo, &of_thread, &lone_callers))?;
        Ok(Self {
            open: Mutex::new(Some(Open { runtime, errands })),
            thread: Mutex::new(Some(thread)),
            wanted,
            waiting: AtomicUsize::new(0),
            lone,
        })
    }

    /// Waits for `answer`, which tasks of the group give or drop. Panics within an async task.
    pub(super) fn wait<T>(&self, answer: oneshot::Receiver<T>) -> Option<T> {
        let alone = self.waiting.fetch_add(1, Ordering::AcqRel) == 0;
        let _waiting = Waiting(&self.waiting);
        if alone && let Some(runtime) = self.runtime() {
            self.lone.fetch_add(1, Ordering::Relaxed);
            return runtime.block_on(answer).ok();
        }
        let _driving = self.drive();
        answer.blocking_recv().ok()
    }

    /// For a caller that waits without a thread.
    pub(super) fn drive(&self) -> Driving {
        self.wanted.count.fetch_add(1, Ordering::SeqCst);
        if !self.wanted.told.swap(true, Ordering::SeqCst) {
            self.send(Errand::Drive);
        }
        Driving(Arc::clone(&self.wanted))
    }

    /// Runs a future among the tasks and waits for it, wherever the caller is; `None` if the group stopped first.
    pub(super) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, waiting) = mpsc::sync_channel(1);
        self.send(Errand::Run(Box::new(move |runtime| {
            // Fails only if the waiting thread is gone.
            let _ = done.send(runtime.block_on(future));
        })));
        waiting.recv().ok()
    }

    /// Returns when all tasks are gone, and with them their handles to log and store.
    pub(super) fn stop(&self) {
        drop(self.open.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the group's thread panicked");
        }
    }

    fn runtime(&self) -> Option<Arc<Runtime>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| Arc::clone(&open.runtime))
    }

    /// Whoever waits for an errand of a group that stopped finds it dropped.
    fn send(&self, errand: Errand) {
        if let Some(open) = &*self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            let _sent = open.errands.send(errand);
        }
    }
}

fn stand_by(
    mut runtime: Arc<Runtime>,
    errands: &mpsc::Receiver<Errand>,
    wanted: &Wanted,
    lone: &AtomicU64,
) {
    let (mut turns, mut seen) = (0, 0);
    loop {
        let now_seen = lone.load(Ordering::Relaxed);
        if seen != now_seen {
            (turns, seen) = (0, now_seen);
        }
        let pause = if turns < TURNS_UNTIL_IDLE { STAND_BY } else { IDLE_STAND_BY };
        match errands.recv_timeout(pause) {
            Ok(Errand::Run(run)) => {
                turns = 0;
                run(&runtime);
            }
            Ok(Errand::Drive) => {
                turns = 0;
                wanted.told.store(false, Ordering::SeqCst);
                runtime.block_on(async {
                    while 0 < wanted.count.load(Ordering::SeqCst) {
                        wanted.none.notified().await;
                    }
                });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                turns += 1;
                runtime.block_on(sleep_within(TURN));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let began = Instant::now();
    loop {
        match Arc::try_unwrap(runtime) {
            Ok(runtime) => return runtime.shutdown_timeout(STOP_MAX),
            // Callers that wait are answered by tasks that end.
            Err(shared) => runtime = shared,
        }
        if STOP_MAX <= began.elapsed() {
            return tracing::error!("somebody still waits for the group that stopped");
        }
        runtime.block_on(sleep_within(TURN));
    }
}

/// A timer belongs to the runtime it is made in.
async fn sleep_within(pause: Duration) {
    tokio::time::sleep(pause).await;
}
