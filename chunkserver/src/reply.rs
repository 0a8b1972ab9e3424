//! Replies of one connection, from any thread, without one asker's slowness holding up another's thread.
//!
//! Acknowledgements come on threads that serve many chunks: they never wait for a socket. What the kernel does not take
//! at once is left to a thread of its own. The connection's own thread, which reads for nobody else, may wait.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_proto::frame::FrameKind;
use dfs_proto::frame_conn::write_frame;

use crate::node::lock;

/// Another thread's answer is on its way at most this long; its asker takes nothing otherwise.
const TURN_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(crate) struct ReplyWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    turn: Mutex<Turn>,
    free: Condvar,
}

/// Whose turn it is to write. Bounded: a connection has a bounded number of requests in flight.
#[derive(Default, Debug)]
struct Turn {
    busy: bool,
    queued: VecDeque<Vec<u8>>,
    broken: bool,
}

impl ReplyWriter {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { shared: Arc::new(Shared { stream, turn: Mutex::default(), free: Condvar::new() }) }
    }

    /// Replies from the connection's own thread.
    ///
    /// # Errors
    /// Connection errors; it is closed then.
    pub(crate) fn reply(
        &self,
        request: u64,
        args: &[u8],
        payload: &[u8],
        crc: Option<u32>,
    ) -> io::Result<()> {
        let mut turn = lock(&self.shared.turn);
        while turn.busy {
            let waited = self.shared.free.wait_timeout(turn, TURN_MAX);
            let (now, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            turn = now;
            if timed_out.timed_out() && turn.busy {
                drop(turn);
                self.close();
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        if turn.broken {
            return Err(io::ErrorKind::NotConnected.into());
        }
        turn.busy = true;
        drop(turn);
        let written =
            write_frame(&mut &self.shared.stream, FrameKind::Reply, request, args, &[payload], crc);
        self.shared.finish(written.is_err());
        written
    }

    /// Replies without waiting.
    pub(crate) fn reply_soon(&self, request: u64, args: &[u8]) {
        let mut frame = Vec::with_capacity(dfs_proto::frame::HEADER_BYTES + args.len());
        if let Err(error) = write_frame(&mut frame, FrameKind::Reply, request, args, &[], None) {
            tracing::error!(%error, "a reply of ours is no frame");
            return self.close();
        }
        let mut turn = lock(&self.shared.turn);
        if turn.broken {
            return;
        }
        if turn.busy {
            turn.queued.push_back(frame);
            return;
        }
        turn.busy = true;
        drop(turn);
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let sent = match rustix::net::send(&self.shared.stream, &frame, flags) {
            Ok(sent) if sent == frame.len() => return self.shared.finish(false),
            Ok(sent) => sent,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(_) => return self.shared.finish(true),
        };
        frame.drain(..sent);
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name("late reply".to_owned()).spawn(move || {
            let written = (&shared.stream).write_all(&frame);
            shared.finish(written.is_err());
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a late reply");
            self.shared.finish(true);
        }
    }

    /// Ends the connection in both directions.
    pub(crate) fn close(&self) {
        lock(&self.shared.turn).broken = true;
        let _closed = self.shared.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Ends a turn: writes what was queued meanwhile, then lets others.
    fn finish(&self, mut broken: bool) {
        loop {
            let mut turn = lock(&self.turn);
            broken |= turn.broken;
            if broken {
                turn.broken = true;
                turn.queued.clear();
                let _closed = self.stream.shutdown(Shutdown::Both);
            }
            let Some(frame) = turn.queued.pop_front() else {
                turn.busy = false;
                drop(turn);
                self.free.notify_all();
                return;
            };
            drop(turn);
            broken = (&self.stream).write_all(&frame).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::frame_conn::read_frame;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    #[test]
    fn an_asker_that_does_not_read_holds_up_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut asker = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let writer = ReplyWriter::new(listener.accept().unwrap().0);
        let begun = Instant::now();
        let args = vec![7; 1000];
        for request in 0..20_000 {
            writer.reply_soon(request, &args);
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        // 20 MB: far more than the kernel buffers. All of it comes once it is read, each frame whole.
        let mut seen = std::collections::BTreeSet::new();
        asker.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        while seen.len() < 20_000 {
            let frame = read_frame(&mut asker).unwrap().unwrap();
            assert_eq!(frame.args, args);
            assert!(seen.insert(frame.header.request));
        }
        writer.reply(1, b"x", b"payload", None).unwrap();
        assert_eq!(read_frame(&mut asker).unwrap().unwrap().payload, b"payload");
        writer.close();
        assert!(writer.reply(2, b"x", b"", None).is_err());
    }
}
