//! Frames on blocking sockets: reading, writing, and a client with many calls in flight.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::frame::{FrameError, FrameHeader, FrameKind, HEADER_BYTES};

/// A frame as read: both checksums were right.
#[derive(Debug)]
pub struct Frame {
    pub header: FrameHeader,
    pub args: Vec<u8>,
    pub payload: Vec<u8>,
}

fn bad_frame(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The next frame; `None` if the connection was closed between frames.
///
/// # Errors
/// I/O errors; `InvalidData` with a [`FrameError`] for bytes that are no frame. Nothing is allocated before the
/// header's checksum and limits were checked.
pub fn read_frame(input: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match input.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let header = FrameHeader::decode(&header).map_err(bad_frame)?;
    let args = read_exactly(input, header.args_bytes)?;
    header.check_args(&args).map_err(bad_frame)?;
    let payload = read_exactly(input, header.payload_bytes)?;
    header.check_payload(&payload).map_err(bad_frame)?;
    Ok(Some(Frame { header, args, payload }))
}

fn read_exactly(input: &mut impl Read, bytes: u32) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(bytes as usize);
    // Reads into the spare capacity: nothing is zeroed first.
    input.take(u64::from(bytes)).read_to_end(&mut buffer)?;
    if buffer.len() < bytes as usize {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(buffer)
    }
}

/// Writes one frame with one gathered write where the kernel takes it. `payload_crc`: of all slices together, if known.
///
/// # Errors
/// I/O errors; `InvalidInput` for what is over the limits of [`crate::frame`].
pub fn write_frame(
    output: &mut impl Write,
    kind: FrameKind,
    request: u64,
    args: &[u8],
    payload: &[&[u8]],
    payload_crc: Option<u32>,
) -> io::Result<()> {
    let payload_bytes: usize = payload.iter().map(|slice| slice.len()).sum();
    let crc = payload_crc
        .unwrap_or_else(|| payload.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice)));
    let header = FrameHeader::new(kind, request, args, payload_bytes, crc).encode();
    // A frame the other side would refuse costs the connection: better no frame.
    if let Err(error) = FrameHeader::decode(&header) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let mut slices = Vec::with_capacity(2 + payload.len());
    slices.push(IoSlice::new(&header));
    slices.push(IoSlice::new(args));
    slices.extend(payload.iter().map(|slice| IoSlice::new(slice)));
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match output.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replies of one server connection, from any thread.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    stream: Arc<Mutex<TcpStream>>,
}

impl FrameWriter {
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(Mutex::new(stream)) }
    }

    /// # Errors
    /// As [`write_frame`]; the connection is closed then, so that its reader ends too.
    pub fn reply(
        &self,
        request: u64,
        args: &[u8],
        payload: &[&[u8]],
        payload_crc: Option<u32>,
    ) -> io::Result<()> {
        let mut stream = lock(&self.stream);
        let written =
            write_frame(&mut *stream, FrameKind::Reply, request, args, payload, payload_crc);
        if written.is_err() {
            let _closed = stream.shutdown(Shutdown::Both);
        }
        written
    }

    /// Ends the connection in both directions.
    pub fn close(&self) {
        let _closed = lock(&self.stream).shutdown(Shutdown::Both);
    }
}

/// What is called with a reply, on the connection's reader thread: it must not wait.
pub type OnReply = Box<dyn FnOnce(io::Result<Frame>) + Send>;

/// One connection with many calls in flight; replies may come in any order.
pub struct FrameClient {
    shared: Arc<Shared>,
    next_request: AtomicU64,
    /// Held while a frame is written: order of `start` calls = order on the wire.
    writer: Mutex<TcpStream>,
    control: TcpStream,
}

struct Shared {
    pending: Mutex<HashMap<u64, OnReply>>,
    closed: AtomicBool,
}

impl fmt::Debug for FrameClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameClient")
            .field("peer", &self.control.peer_addr().ok())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn fail_all(&self, error: &io::Error) {
        self.closed.store(true, Ordering::Release);
        let pending = std::mem::take(&mut *lock(&self.pending));
        for on_reply in pending.into_values() {
            on_reply(Err(io::Error::new(error.kind(), error.to_string())));
        }
    }
}

impl FrameClient {
    /// # Errors
    /// If the socket cannot be duplicated or the reader thread not started.
    pub fn new(stream: TcpStream) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            pending: Mutex::new(HashMap::new()),
            closed: AtomicBool::new(false),
        });
        let mut input = io::BufReader::with_capacity(64 << 10, stream.try_clone()?);
        let client = Arc::new(Self {
            shared: Arc::clone(&shared),
            next_request: AtomicU64::new(1),
            writer: Mutex::new(stream.try_clone()?),
            control: stream,
        });
        std::thread::Builder::new().name("replies".to_owned()).spawn(move || {
            let ended = loop {
                match read_frame(&mut input) {
                    Ok(Some(frame)) => {
                        let waiting = lock(&shared.pending).remove(&frame.header.request);
                        match waiting {
                            Some(on_reply) => on_reply(Ok(frame)),
                            // Its caller stopped waiting.
                            None => tracing::debug!(request = frame.header.request, "late reply"),
                        }
                    }
                    Ok(None) => {
                        break io::Error::new(
                            io::ErrorKind::ConnectionReset,
                            "the server closed the connection",
                        );
                    }
                    Err(error) => break error,
                }
            };
            let _closed = input.get_ref().shutdown(Shutdown::Both);
            shared.fail_all(&ended);
        })?;
        Ok(client)
    }

    /// Sends a request; `on_reply` gets its reply, or the error that ended the connection. Exactly one call.
    ///
    /// # Errors
    /// If it could not be sent: then `on_reply` is never called.
    pub fn start(
        &self,
        args: &[u8],
        payload: &[&[u8]],
        payload_crc: Option<u32>,
        on_reply: OnReply,
    ) -> io::Result<u64> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.pending).insert(request, on_reply);
        let written = if self.is_closed() {
            Err(io::ErrorKind::NotConnected.into())
        } else {
            write_frame(
                &mut *lock(&self.writer),
                FrameKind::Request,
                request,
                args,
                payload,
                payload_crc,
            )
        };
        match written {
            Ok(()) if !self.is_closed() => Ok(request),
            // Closed meanwhile: whoever takes the entry out of the table answers.
            outcome => match lock(&self.shared.pending).remove(&request) {
                None => Ok(request),
                Some(_) => {
                    let error = outcome.err().unwrap_or_else(|| io::ErrorKind::NotConnected.into());
                    if error.kind() != io::ErrorKind::InvalidInput {
                        self.close();
                    }
                    Err(error)
                }
            },
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// Connection errors; `TimedOut` after `deadline` (the connection stays, a late reply is dropped).
    pub fn call(&self, args: &[u8], payload: &[&[u8]], deadline: Duration) -> io::Result<Frame> {
        let (hand, taken) = mpsc::sync_channel(1);
        let request = self.start(
            args,
            payload,
            None,
            Box::new(move |reply| {
                // Nobody takes it after the deadline.
                let _dropped = hand.send(reply);
            }),
        )?;
        taken.recv_timeout(deadline).unwrap_or_else(|_| {
            lock(&self.shared.pending).remove(&request);
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no reply within {deadline:?}")))
        })
    }

    /// # Errors
    /// As [`write_frame`].
    pub fn send_one_way(&self, args: &[u8], payload: &[&[u8]]) -> io::Result<()> {
        write_frame(&mut *lock(&self.writer), FrameKind::OneWay, 0, args, payload, None)
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Calls in flight.
    #[must_use]
    pub fn pending(&self) -> usize {
        lock(&self.shared.pending).len()
    }

    /// Ends the connection: everything pending fails.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let _closed = self.control.shutdown(Shutdown::Both);
    }
}

impl Drop for FrameClient {
    fn drop(&mut self) {
        self.close();
    }
}

/// One connection for one caller at a time, on the caller's own thread: no reader thread, no hand-over.
#[derive(Debug)]
pub struct LoneClient {
    input: io::BufReader<TcpStream>,
    next_request: u64,
    /// As the stream has it: callers mostly give the same one.
    deadline: Option<Duration>,
}

impl LoneClient {
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        let input = io::BufReader::with_capacity(64 << 10, stream);
        Self { input, next_request: 1, deadline: None }
    }

    /// # Errors
    /// Connection errors, after which the connection is of no use; `TimedOut`/`WouldBlock` after `deadline`.
    pub fn call(
        &mut self,
        args: &[u8],
        payload: &[&[u8]],
        deadline: Duration,
    ) -> io::Result<Frame> {
        let request = self.next_request;
        self.next_request += 1;
        let deadline = Some(deadline.max(Duration::from_millis(1)));
        if self.deadline != deadline {
            self.input.get_ref().set_read_timeout(deadline)?;
            self.deadline = deadline;
        }
        write_frame(self.input.get_mut(), FrameKind::Request, request, args, payload, None)?;
        match read_frame(&mut self.input)? {
            Some(frame) if frame.header.request == request => Ok(frame),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "reply to another request")),
            None => Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the server closed the connection",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn echo() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        let writer = FrameWriter::new(served.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut input = io::BufReader::new(served);
            let mut held: Vec<Frame> = Vec::new();
            while let Ok(Some(frame)) = read_frame(&mut input) {
                if frame.args == b"die" {
                    writer.close();
                    return;
                }
                // Two by two, the later first.
                held.push(frame);
                if held.len() == 2 {
                    while let Some(frame) = held.pop() {
                        writer
                            .reply(frame.header.request, &frame.args, &[&frame.payload], None)
                            .unwrap();
                    }
                }
            }
        });
        stream
    }

    #[test]
    fn each_call_of_a_lone_client_has_its_own_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // Another's wish, from before.
        stream.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
        let served = listener.accept().unwrap().0;
        std::thread::spawn(move || {
            let writer = FrameWriter::new(served.try_clone().unwrap());
            let mut input = io::BufReader::new(served);
            while let Ok(Some(frame)) = read_frame(&mut input) {
                writer.reply(frame.header.request, &frame.args, &[], None).unwrap();
            }
        });
        let mut client = LoneClient::new(stream);
        for seconds in [60, 60, 70, 60] {
            let deadline = Duration::from_secs(seconds);
            assert_eq!(client.call(b"a", &[], deadline).unwrap().args, b"a");
            let set = client.input.get_ref().read_timeout().unwrap();
            assert_eq!(set, Some(deadline));
        }
    }

    #[test]
    fn replies_out_of_order_reach_their_callers() {
        let client = FrameClient::new(echo()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8u8 {
                let client = &client;
                scope.spawn(move || {
                    let big = vec![n; 100_000];
                    let frame = client
                        .call(&[n], &[&big[..10], &big[10..]], Duration::from_secs(10))
                        .unwrap();
                    assert_eq!((frame.args, frame.payload), (vec![n], big));
                });
            }
        });
        assert_eq!(client.pending(), 0);
    }

    #[test]
    fn a_lost_connection_fails_every_pending_call_once() {
        let client = FrameClient::new(echo()).unwrap();
        let (hand, taken) = mpsc::channel();
        client
            .start(b"a", &[], None, Box::new(move |reply| hand.send(reply.is_err()).unwrap()))
            .unwrap();
        client.call(b"die", &[], Duration::from_secs(10)).unwrap_err();
        assert!(taken.recv_timeout(Duration::from_secs(10)).unwrap());
        assert!(client.start(b"b", &[], None, Box::new(|_| panic!("never"))).is_err());
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error() {
        // A valid frame with each byte flipped: never a panic, never another content.
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Request, 9, b"args", &[b"payload"], None).unwrap();
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 0x55;
            assert!(read_frame(&mut &torn[..]).is_err(), "byte {at}");
            assert!(at == 0 || read_frame(&mut &bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
