//! What the transports share: which one is asked for, how requests are handed to the file system, what is asked of the kernel.

use std::sync::Arc;

use dfs_client::exercise::{self, Point};

use crate::errno::Errno;
use crate::fs::{FileSystem, KernelCache};
use crate::metrics::Metrics;
use crate::seam::{Call, Reply};
use crate::workers::{Readers, Workers};

/// Largest write of the kernel, in bytes.
pub(crate) const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Pages of a request of the kernel: without `FUSE_MAX_PAGES`, and with it unless this machine says otherwise
/// (`FUSE_DEFAULT_MAX_PAGES_PER_REQ` and `fuse_max_pages_limit` of Linux).
pub(crate) const PAGES_LEAST: u32 = 32;
const PAGES_USUAL: u32 = 256;
/// Where it does.
const PAGES_FILE: &str = "/proc/sys/fs/fuse/max_pages_limit";
/// Requests without a waiting process (readahead, release, …) the kernel sends at once.
pub(crate) const BACKGROUND_MAX: u16 = 128;
/// Threads that answer when no reader is left, and lock waits; each waits most of the time.
const WORKERS_MAX: usize = 64;
const LOCK_WAITS_MAX: usize = 256;
const LOCK_WAITS_IN_LINE_MAX: usize = 4096;
/// Threads for what a predecessor of this process left: most of it was on its way to a server.
const LEFT_MAX: usize = 256;

/// How requests of the kernel come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Whichever is best here.
    #[default]
    Auto,
    /// Our own, on `/dev/fuse` itself.
    Native,
    /// The fuser library.
    Fuser,
}

impl Transport {
    /// The one that `Auto` stands for.
    #[must_use]
    pub fn chosen(self) -> Self {
        match self {
            Self::Auto | Self::Fuser => Self::Fuser,
            Self::Native => Self::Native,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Fuser => "fuser",
        }
    }
}

/// A mount whose requests can be served.
pub(crate) struct Connected {
    pub(crate) kernel: Box<dyn KernelCache>,
    /// Serves until it is unmounted.
    pub(crate) serve: Box<dyn FnOnce() -> std::io::Result<()> + Send>,
    pub(crate) unmount: Box<dyn FnMut() -> std::io::Result<()>>,
}

/// Hands requests to the file system, each on the thread that read it or on another one.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) metrics: Arc<Metrics>,
    readers: Arc<Readers>,
    workers: Workers,
    lock_waits: Workers,
    /// For what a predecessor left.
    left: Workers,
}

impl Dispatch {
    pub(crate) fn new(fs: Arc<FileSystem>, metrics: Arc<Metrics>, readers: usize) -> Self {
        Self {
            fs,
            metrics,
            readers: Arc::new(Readers::new(readers)),
            workers: Workers::new("dfs-answer", WORKERS_MAX, 0),
            lock_waits: Workers::new("dfs-lock-wait", LOCK_WAITS_MAX, LOCK_WAITS_IN_LINE_MAX),
            left: Workers::new("dfs-left", LEFT_MAX, usize::MAX),
        }
    }

    /// As [`Self::answer`] on another thread, by whoever takes over what a predecessor left; in order, if there are many.
    pub(crate) fn answer_elsewhere<F>(&self, call: Call<'static>, reply: F)
    where
        F: FnOnce(Reply) + Send + 'static,
    {
        let (fs, metrics) = (Arc::clone(&self.fs), Arc::clone(&self.metrics));
        let workers = if call.operation.waits() { &self.lock_waits } else { &self.left };
        let job = move || answer_now(&fs, &metrics, call, reply);
        self.metrics.handed_over.inc();
        if let Err(job) = workers.try_run(job) {
            job();
        }
    }

    /// Answers a request here if another reader is free, else on a thread of its own.
    pub(crate) fn answer<F>(&self, call: Call<'_>, reply: F)
    where
        F: FnOnce(Reply) + Send + 'static,
    {
        let waits = call.operation.waits();
        let place = if waits { None } else { self.readers.try_answer() };
        if place.is_some() {
            return answer_now(&self.fs, &self.metrics, call, reply);
        }
        let (fs, metrics) = (Arc::clone(&self.fs), Arc::clone(&self.metrics));
        let call = call.into_owned();
        let job = move || answer_now(&fs, &metrics, call, reply);
        self.metrics.handed_over.inc();
        let workers = if waits { &self.lock_waits } else { &self.workers };
        if let Err(job) = workers.try_run(job) {
            // More is waiting than there are threads: the queue waits with it.
            job();
        }
    }
}

fn answer_now(fs: &FileSystem, metrics: &Metrics, call: Call<'_>, reply: impl FnOnce(Reply)) {
    exercise::begin(call.operation.name());
    let under_way = fs.begin_request(&call);
    let answer = handle(fs, metrics, call);
    exercise::reached(Point::Effect);
    reply(answer);
    exercise::reached(Point::Replied);
    // Not before the kernel has the answer: whoever follows this process would carry it out anew.
    drop(under_way);
}

/// A handler that panics must answer, or its process hangs for ever.
fn handle(fs: &FileSystem, metrics: &Metrics, call: Call<'_>) -> Reply {
    let operation = call.operation.name();
    metrics.in_progress.inc();
    let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fs.handle(call)));
    metrics.in_progress.dec();
    answered.unwrap_or_else(|_| {
        metrics.panics.inc();
        tracing::error!(operation, "handler panicked; answered EIO");
        Reply::Failed(Errno::IO)
    })
}

/// The errno of a reply that is an error, or of one that does not fit the request.
pub(crate) fn failure(reply: &Reply) -> Errno {
    if let Reply::Failed(failed) = reply {
        return *failed;
    }
    tracing::error!(?reply, "reply of another kind than the request; answered EIO");
    Errno::IO
}

pub(crate) fn pages_of_request() -> u32 {
    let said = std::fs::read_to_string(PAGES_FILE).ok();
    said.and_then(|text| text.trim().parse().ok()).unwrap_or(PAGES_USUAL)
}

pub(crate) fn page_bytes() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// The longest write that comes whole, from whatever address its bytes are. The kernel cuts one where it would have
/// more bytes than `max_write`, or lie on more pages than a request has; of the first and the last page an unaligned
/// buffer may have a part only (`fuse_direct_io` of Linux).
pub(crate) fn whole_write_max(pages: u32, page_bytes: u32) -> usize {
    let request = WRITE_BYTES_MAX.min(pages.saturating_mul(page_bytes));
    request.saturating_sub(page_bytes) as usize
}
