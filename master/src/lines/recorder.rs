//! The flight recorder of a running master: its heartbeats as lines that can be replayed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dfs_proto::control::HeartbeatRequest;
use serde_json::json;

use super::{LINE_BYTES_MAX, parse};
use crate::state::lock;

/// Read at once from the end of a recording.
const BLOCK_BYTES: usize = 64 << 10;

/// Lines are added; each start of the master adds an `init`.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    /// `None`: it could not be written, which was said.
    file: Mutex<Option<File>>,
}

impl Recorder {
    /// Goes on with the recording that is there. The last line is cut off if it has no end, as after a power cut: what is
    /// added would become part of it, and a replay would end there.
    ///
    /// # Errors
    /// The file cannot be opened or written, or is there and no recording: then it is as it was.
    pub fn open(path: &Path, wall_ms: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        // A pipe, say, has no past.
        if file.metadata()?.is_file() {
            let past = File::open(path)?;
            check_is_recording(&past)?;
            let bytes = unfinished_bytes(&past)?;
            if 0 < bytes {
                file.set_len(file.metadata()?.len().saturating_sub(bytes))?;
                let path = path.display();
                tracing::warn!(
                    bytes,
                    %path,
                    "the last line of the recording has no end, as after a power cut or on a full disk: it is cut off"
                );
            }
        }
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

/// `Ok` if `file` is empty or begins with a line of a recording.
fn check_is_recording(file: &File) -> io::Result<()> {
    let mut line = Vec::new();
    BufReader::new(file.take(LINE_BYTES_MAX as u64 + 1)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(());
    }
    let wrong = match parse(&line) {
        Ok(message) if message.at_ms.is_some() => return Ok(()),
        Ok(_) => "at_ms is missing".to_owned(),
        Err(error) => error.to_string(),
    };
    let text = format!(
        "it is no recording, and nothing was added to it: its first line: {wrong}; name a new file, or move this one away"
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Bytes behind the end of the last whole line.
fn unfinished_bytes(file: &File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let mut block = vec![0; BLOCK_BYTES];
    let mut end = len;
    while 0 < end {
        let from = end.saturating_sub(BLOCK_BYTES as u64);
        let block = block.get_mut(..usize::try_from(end - from).unwrap_or(0)).unwrap_or_default();
        file.read_exact_at(block, from)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(len - from - at as u64 - 1);
        }
        end = from;
    }
    Ok(len)
}
