//! The flight recorder of a running master: its heartbeats as lines that can be replayed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dfs_proto::control::HeartbeatRequest;
use serde_json::json;

use crate::state::lock;

/// Lines are added; each start of the master adds an `init`.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    /// `None`: it could not be written, which was said.
    file: Mutex<Option<File>>,
}

impl Recorder {
    /// # Errors
    /// The file cannot be opened or written.
    pub fn open(path: &Path, wall_ms: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        let init = json!({
            "src": "recorder", "dest": "master", "at_ms": wall_ms, "body": {"type": "init"}
        });
        writeln!(file, "{init}")?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(Some(file)) })
    }

    /// Notes a heartbeat of `server`. A recording that fails ends, not the master.
    pub fn heartbeat(&self, wall_ms: u64, beat: &HeartbeatRequest) {
        // What its server does not vouch for is no copy.
        let (current, not): (Vec<_>, Vec<_>) =
            beat.replicas.iter().partition(|replica| !replica.not_current);
        let chunks = current.iter().map(
            |replica| json!({"handle": replica.chunk.to_string(), "version": replica.version}),
        );
        let chunks: Vec<_> = chunks.collect();
        let gone = beat.gone.iter().copied().chain(not.iter().map(|replica| replica.chunk));
        let gone: Vec<_> = gone.map(|chunk| chunk.to_string()).collect();
        let percent = beat.used_bytes.saturating_mul(1000) / beat.total_bytes.max(1);
        #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
        let percent = percent.min(1000) as f64 / 10.0;
        let line = json!({
            "src": beat.server, "dest": "master", "at_ms": wall_ms,
            "body": {
                "type": "heartbeat", "msg_id": beat.sequence, "full": beat.full_inventory,
                "chunks": chunks, "gone": gone, "disk_usage": percent,
            },
        });
        let mut file = lock(&self.file);
        if let Some(open) = &mut *file
            && let Err(error) = open.write_all(format!("{line}\n").as_bytes())
        {
            let path = self.path.display();
            tracing::warn!(%error, %path, "the recording cannot be written any more: it ends here");
            *file = None;
        }
    }
}
