//! The session's own thread: sends what waited long enough, syncs when memory is short, notices silent servers,
//! forgets files nobody uses.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::session::{Session, spawn};

const TURN: Duration = Duration::from_millis(250);
/// Written bytes are sent after so long even if the writer never asks for it.
const DIRTY_MAX: Duration = Duration::from_secs(1);
/// A file nobody touched for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(10);

pub(crate) fn start(session: &Arc<Session>) -> Result<()> {
    let link = Arc::clone(&session.link);
    let session = Arc::downgrade(session);
    spawn("keeper", move || {
        while !link.is_closed() {
            std::thread::sleep(TURN);
            let Some(session) = session.upgrade() else { return };
            turn(&session);
        }
    })
}

fn turn(session: &Arc<Session>) {
    let budget = &session.io.budget;
    let short = budget.limit() / 2 < budget.used();
    for file in session.all_files() {
        for writer in file.writers() {
            writer.push_older_than(if short { Duration::ZERO } else { DIRTY_MAX });
            writer.check_silence();
            if short && 0 < writer.held_bytes() {
                writer.start_sync();
            }
        }
        file.sweep();
        if !session.is_open(file.ino()) {
            file.commit_late();
        }
        file.commit_deferred();
    }
    session.io.servers.sweep_local_files();
    session.forget_files(|file| file.is_idle(IDLE_MAX) && !session.is_open(file.ino()));
}
