//! The two threads of a store: one syncs for all that ask; one, in the background, syncs what nobody asked for and makes
//! checkpoints.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dfs_core::ids::ChunkId;

use super::SyncDone;
use super::engine::Engine;
use super::error::StoreError;
use super::journal::lock;

/// How long an operation may wait in memory when nobody syncs.
const IDLE: Duration = Duration::from_secs(1);

/// What the threads wait for.
#[derive(Debug, Default)]
pub(super) struct Signal {
    flags: Mutex<Flags>,
    sync: Condvar,
    checkpoint: Condvar,
}

#[derive(Default)]
struct Flags {
    asked: Vec<(ChunkId, SyncDone)>,
    checkpoint: bool,
    stop: bool,
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { asked, checkpoint, stop } = self;
        let asked = asked.len();
        write!(f, "Flags {{ {asked} asked, checkpoint: {checkpoint}, stop: {stop} }}")
    }
}

impl Signal {
    pub(super) fn poke_checkpoint(&self) {
        lock(&self.flags).checkpoint = true;
        self.checkpoint.notify_one();
    }
}

/// A store with its threads.
#[derive(Debug)]
pub(super) struct Running {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Running {
    pub(super) fn start(engine: Arc<Engine>) -> Result<Self, StoreError> {
        let spawn = |name: &str, run: fn(&Engine)| {
            let engine = Arc::clone(&engine);
            thread::Builder::new().name(name.to_owned()).spawn(move || run(&engine))
        };
        let threads =
            vec![spawn("store-sync", run_syncs)?, spawn("store-checkpoint", run_checkpoints)?];
        Ok(Self { engine, threads: Mutex::new(threads) })
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(super) fn queue_sync(&self, chunk: ChunkId, done: SyncDone) {
        let signal = &self.engine.signal;
        let mut flags = lock(&signal.flags);
        if flags.stop {
            drop(flags);
            return done(Err(io::Error::other("the store was shut down").into()));
        }
        flags.asked.push((chunk, done));
        drop(flags);
        signal.sync.notify_one();
    }

    pub(super) fn stop(&self) {
        let signal = &self.engine.signal;
        lock(&signal.flags).stop = true;
        signal.sync.notify_all();
        signal.checkpoint.notify_all();
        self.engine.journal.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // The last handle may be dropped by a callback, on the sync thread itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run_syncs(engine: &Engine) {
    let signal = &engine.signal;
    loop {
        let mut flags = lock(&signal.flags);
        while flags.asked.is_empty() && !flags.stop {
            flags = signal.sync.wait(flags).unwrap_or_else(PoisonError::into_inner);
        }
        let asked = std::mem::take(&mut flags.asked);
        drop(flags);
        if asked.is_empty() {
            return;
        }
        answer(engine, asked);
        // After the answers: of chunks that nobody asked for too, as far as the same sync reached.
        if !engine.fate.is_dead()
            && let Err(err) = engine.place_all()
        {
            tracing::warn!(%err, "put operations in place");
        }
    }
}

fn answer(engine: &Engine, asked: Vec<(ChunkId, SyncDone)>) {
    let mut by_chunk: BTreeMap<ChunkId, Vec<SyncDone>> = BTreeMap::new();
    for (chunk, done) in asked {
        by_chunk.entry(chunk).or_default().push(done);
    }
    let mut cells = Vec::new();
    let mut waiting = Vec::new();
    for (chunk, callers) in by_chunk {
        let cell = engine.cell(chunk).and_then(|cell| {
            match cell.read().held(chunk)?.not_current {
                true => Err(StoreError::NotCurrent { chunk }),
                false => Ok(()),
            }?;
            Ok(cell)
        });
        match cell {
            Ok(cell) => {
                cells.push(cell);
                waiting.push(callers);
            }
            Err(err) => answer_all(callers, &Err(err), chunk),
        }
    }
    match engine.settle_cells(&cells) {
        Ok(results) => {
            for ((callers, result), cell) in waiting.into_iter().zip(results).zip(&cells) {
                answer_all(callers, &result, cell.chunk);
            }
        }
        Err(err) => {
            let result = Err(err);
            for (callers, cell) in waiting.into_iter().zip(&cells) {
                answer_all(callers, &result, cell.chunk);
            }
        }
    }
}

fn answer_all(callers: Vec<SyncDone>, result: &Result<u64, StoreError>, chunk: ChunkId) {
    for done in callers {
        done(match result {
            Ok(seq) => Ok(*seq),
            Err(StoreError::NotFound { .. }) => Err(StoreError::NotFound { chunk }),
            Err(StoreError::NotCurrent { .. }) => Err(StoreError::NotCurrent { chunk }),
            Err(StoreError::Io(err)) => Err(StoreError::again(err)),
            Err(other) => Err(io::Error::other(other.to_string()).into()),
        });
    }
}

fn run_checkpoints(engine: &Engine) {
    let signal = &engine.signal;
    loop {
        {
            let mut flags = lock(&signal.flags);
            if !flags.checkpoint && !flags.stop {
                let waited = signal.checkpoint.wait_timeout(flags, IDLE);
                flags = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if flags.stop {
                return;
            }
            flags.checkpoint = false;
        }
        if engine.fate.is_dead() {
            continue;
        }
        // First of all: what follows may need the room.
        match engine.keep_some_free() {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "quarantined replicas removed for room"),
            Err(err) => tracing::warn!(%err, "make room"),
        }
        // Not on the sync thread: bulk data that nobody waits for must not hold up those who wait.
        if let Err(err) = engine.settle_all() {
            tracing::warn!(%err, "settle the journal");
        }
        if let Err(err) = engine.journal.prepare_spare() {
            tracing::warn!(%err, "prepare a journal segment");
        }
        if let Some(up_to) = engine.journal.full_up_to()
            && let Err(err) = engine.checkpoint_up_to(up_to)
        {
            tracing::warn!(%err, "checkpoint");
        }
    }
}
