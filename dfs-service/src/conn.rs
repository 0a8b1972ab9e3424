//! Connections: one port per server, every connection authenticated by the cluster key, two doors behind it.
//!
//! Handshake, all before anything else is read (DECISIONS 24):
//! ```text
//! asker  -> "DFSH" 1 door  16-byte nonce
//! server -> "DFSH" 1 0     16-byte nonce  HMAC-SHA256(key, "server" door asker-nonce server-nonce)
//! asker  -> HMAC-SHA256(key, "asker" door asker-nonce server-nonce)
//! server -> 1
//! ```
//! Both sides prove the key; a recording cannot be played again because the other side's nonce differs. Nothing is
//! encrypted: keep the network private until TLS comes.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::page::Page;

const MAGIC: [u8; 5] = *b"DFSH\x01";
const NONCE: usize = 16;
const PROOF: usize = 32;
/// A peer that has not proved itself by then is dropped, however many bytes it sends meanwhile.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// 32 bytes that every process of a cluster shares.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

impl ClusterKey {
    /// The key of clusters without one: servers then bind to loopback only.
    #[must_use]
    pub fn none() -> Self {
        Self([0; 32])
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0 == [0; 32]
    }

    /// Reads 64 hexadecimal digits from `path`.
    ///
    /// # Errors
    /// If the file cannot be read, holds something else, or others may read it.
    pub fn load(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("cluster key {}: {e}", path.display()));
        let bad = |text: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("cluster key {}: {text}", path.display()),
            )
        };
        let bytes = std::fs::read(path).map_err(named)?;
        let text = String::from_utf8_lossy(&bytes);
        let mode = std::fs::metadata(path).map_err(named)?.mode();
        // Group-readable is how Kubernetes mounts a Secret for a non-root process.
        if mode & 0o007 != 0 {
            return Err(bad(&format!("mode {:o} lets others read it: chmod 600", mode & 0o777)));
        }
        Self::from_hex(text.trim_ascii())
            .ok_or_else(|| bad("expected 64 hexadecimal digits, as `openssl rand -hex 32` prints"))
    }

    /// The key of 64 hexadecimal digits; none if it is anything else.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        // `from_str_radix` alone would take "+f", too.
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *byte = std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())?;
        }
        Some(Self(key))
    }

    /// Reads `path`, or makes it (mode 0600) with a random key if it does not exist.
    ///
    /// # Errors
    /// As [`Self::load`], or if it cannot be written.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(e) => Err(io::Error::new(e.kind(), format!("cluster key {}: {e}", path.display()))),
            Ok(mut file) => {
                let mut key = [0; 32];
                getrandom::fill(&mut key)?;
                let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(file, "{digits}")?;
                file.sync_all()?;
                Ok(Self(key))
            }
        }
    }

    fn proof(
        &self,
        role: &[u8],
        door: u8,
        asker: &[u8; NONCE],
        server: &[u8; NONCE],
    ) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length");
        mac.update(role);
        mac.update(&[door]);
        mac.update(asker);
        mac.update(server);
        mac
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// Our frames: metadata requests and chunk data.
    Frames,
    /// HTTP/2 for tonic.
    Control,
}

impl Door {
    fn byte(self) -> u8 {
        match self {
            Self::Frames => 1,
            Self::Control => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Frames),
            2 => Some(Self::Control),
            _ => None,
        }
    }
}

/// What a server or the transport said, for people: a [`tonic::Status`] shows itself as a program's value.
#[must_use]
pub fn said(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

fn refused_key(text: &str) -> io::Error {
    refused(&format!("{text}; see {}", Page::KeyRefused))
}

fn refused(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned())
}

/// A stream for as long as the handshake may take: each read and write has the time that is left of it.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a TcpStream, limit: Duration) -> Self {
        Self { stream, until: Instant::now() + limit }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(too_slow()) } else { Ok(left) }
    }

    /// The handshake is over.
    fn end(self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")
}

fn timed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { too_slow() } else { error }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buf).map_err(timed)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buf).map_err(timed)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Connects to `addr` (`host:port`) within `timeout`, handshake included. Blocking; nodelay is set.
///
/// # Errors
/// Connection errors; `PermissionDenied` if the other side does not have our key.
pub fn dial(addr: &str, key: &ClusterKey, door: Door, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("'{addr}' names no address (expected host:port)"),
    );
    let began = Instant::now();
    let found = crate::lookup::resolve(addr, timeout)
        .map_err(|e| io::Error::new(e.kind(), format!("address '{addr}': {e}")))?;
    let mut untried = u32::try_from(found.len()).unwrap_or(u32::MAX);
    for resolved in found {
        // What is left is shared out: one address that drops everything does not cost the others their turn.
        let share = timeout.saturating_sub(began.elapsed()) / untried;
        untried -= 1;
        match TcpStream::connect_timeout(&resolved, share.max(Duration::from_millis(1))) {
            Err(e) => last = e,
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let limit = timeout.saturating_sub(began.elapsed()).min(HANDSHAKE_MAX);
                ask(Timed::new(&stream, limit), key, door)?;
                return Ok(stream);
            }
        }
    }
    Err(last)
}

fn ask(mut stream: Timed<'_>, key: &ClusterKey, door: Door) -> io::Result<()> {
    // Every index in a handshake is a constant within an array of fixed size, read whole before it is looked at.
    let mut asker = [0; NONCE];
    getrandom::fill(&mut asker)?;
    let mut hello = [0; 6 + NONCE];
    hello[..5].copy_from_slice(&MAGIC);
    hello[5] = door.byte();
    hello[6..].copy_from_slice(&asker);
    stream.write_all(&hello)?;
    let mut answer = [0; 6 + NONCE + PROOF];
    stream.read_exact(&mut answer).map_err(|e| {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            refused("the server closed the connection in the handshake: not a DistributedFS server, or overloaded")
        } else {
            e
        }
    })?;
    if answer[..5] != MAGIC {
        return Err(refused("the server does not speak our handshake"));
    }
    let mut server = [0; NONCE];
    server.copy_from_slice(&answer[6..6 + NONCE]);
    key.proof(b"server", door.byte(), &asker, &server).verify_slice(&answer[6 + NONCE..]).map_err(
        |_| match key.is_none() {
            true => refused_key("no cluster key was given, and the server has one"),
            false => refused_key("the server has another cluster key"),
        },
    )?;
    stream.write_all(&key.proof(b"asker", door.byte(), &asker, &server).finalize().into_bytes())?;
    let mut ok = [0; 1];
    stream.read_exact(&mut ok).map_err(|error| {
        let late = error.kind() == io::ErrorKind::TimedOut;
        if late { error } else { refused("the server refused our cluster key") }
    })?;
    stream.end()
}

/// As [`dial`], for async callers.
///
/// # Errors
/// As [`dial`].
pub async fn dial_async(
    addr: &str,
    key: &ClusterKey,
    door: Door,
    timeout: Duration,
) -> io::Result<tokio::net::TcpStream> {
    let (addr, key) = (addr.to_owned(), key.clone());
    // Four small messages: not worth a second implementation.
    let stream = tokio::task::spawn_blocking(move || dial(&addr, &key, door, timeout))
        .await
        .map_err(|_| io::Error::other("connect task ended"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// The server's side of the handshake.
fn answer(stream: &TcpStream, key: &ClusterKey, limit: Duration) -> io::Result<Door> {
    stream.set_nodelay(true)?;
    let mut stream = Timed::new(stream, limit);
    let mut hello = [0; 6 + NONCE];
    stream.read_exact(&mut hello)?;
    if hello[..5] != MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("first bytes {:02x?} are not our handshake", &hello[..5]),
        ));
    }
    let door = Door::from_byte(hello[5]).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("unknown door {}", hello[5]))
    })?;
    let mut asker = [0; NONCE];
    asker.copy_from_slice(&hello[6..]);
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)?;
    let mut reply = Vec::with_capacity(6 + NONCE + PROOF);
    reply.extend_from_slice(&MAGIC);
    reply.push(0);
    reply.extend_from_slice(&nonce);
    reply.extend_from_slice(
        &key.proof(b"server", door.byte(), &asker, &nonce).finalize().into_bytes(),
    );
    stream.write_all(&reply)?;
    let mut proof = [0; PROOF];
    stream.read_exact(&mut proof)?;
    key.proof(b"asker", door.byte(), &asker, &nonce)
        .verify_slice(&proof)
        .map_err(|_| refused_key("the asker has another cluster key"))?;
    stream.write_all(&[1])?;
    stream.end()?;
    Ok(door)
}

/// Bounds of an [`Acceptor`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections, of both doors and in handshakes.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_max: 2048 }
    }
}

/// A listening port whose connections are authenticated and handed to their door.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    key: ClusterKey,
    limits: Limits,
    stopped: Arc<AtomicBool>,
}

/// What serves one frames connection, on the connection's own thread.
pub type OnFrames = Arc<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

impl Acceptor {
    /// # Errors
    /// If the port is taken, or `addr` is not loopback and there is no key.
    pub fn bind(addr: SocketAddr, key: ClusterKey, limits: Limits) -> io::Result<Self> {
        if key.is_none() && !addr.ip().is_loopback() {
            return Err(refused(&format!(
                "without a cluster key servers listen on loopback only, not on {addr}: give --key-file"
            )));
        }
        let listener = TcpListener::bind(addr)
            .map_err(|e| io::Error::new(e.kind(), format!("listen on {addr}: {e}")))?;
        Ok(Self { listener, key, limits, stopped: Arc::new(AtomicBool::new(false)) })
    }

    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts on a thread of its own until the returned handle stops it.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn run(
        self,
        on_frames: OnFrames,
        control: tokio::sync::mpsc::Sender<ControlStream>,
        runtime: tokio::runtime::Handle,
    ) -> io::Result<AcceptorHandle> {
        let addr = self.local_addr()?;
        let handle = AcceptorHandle { addr, stopped: Arc::clone(&self.stopped) };
        std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || self.accept(&on_frames, &control, &runtime))?;
        Ok(handle)
    }

    fn accept(
        &self,
        on_frames: &OnFrames,
        control: &tokio::sync::mpsc::Sender<ControlStream>,
        runtime: &tokio::runtime::Handle,
    ) {
        let open = Arc::new(AtomicUsize::new(0));
        loop {
            let accepted = self.listener.accept();
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    // Out of descriptors: waiting lets some close.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            if self.limits.connections_max <= open.fetch_add(1, Ordering::AcqRel) {
                open.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(%peer, limit = self.limits.connections_max, "connection refused: too many open");
                continue;
            }
            let slot = Slot(Arc::clone(&open));
            let (key, on_frames, control, runtime) =
                (self.key.clone(), Arc::clone(on_frames), control.clone(), runtime.clone());
            let serve = move || {
                match answer(&stream, &key, HANDSHAKE_MAX) {
                    Ok(Door::Frames) => {
                        on_frames(stream, peer);
                        drop(slot);
                    }
                    Ok(Door::Control) => {
                        if let Err(error) = hand_over(stream, slot, &control, &runtime) {
                            tracing::warn!(%peer, %error, "hand over control connection");
                        }
                    }
                    // Connections that say nothing are what port checks do.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        tracing::debug!(%peer, %error, "connection closed in the handshake");
                    }
                    Err(error) => {
                        tracing::warn!(%peer, %error, "connection refused in the handshake")
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name("conn".to_owned()).spawn(serve) {
                tracing::warn!(%peer, %error, "no thread for the connection");
            }
        }
    }
}

/// Gives a connection to tonic, with its slot, which it then holds for its life.
fn hand_over(
    stream: TcpStream,
    slot: Slot,
    control: &tokio::sync::mpsc::Sender<ControlStream>,
    runtime: &tokio::runtime::Handle,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    runtime.block_on(async {
        let stream =
            ControlStream { stream: tokio::net::TcpStream::from_std(stream)?, _slot: slot };
        match tokio::time::timeout(HANDSHAKE_MAX, control.send(stream)).await {
            Ok(sent) => sent.map_err(|_| io::Error::other("the control service has ended")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    })
}

/// One of the connections that may be open.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Stops an [`Acceptor`]'s thread; connections that are open stay.
#[derive(Debug)]
pub struct AcceptorHandle {
    addr: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl AcceptorHandle {
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the accept call.
        let _woken = TcpStream::connect_timeout(&self.addr, Duration::from_millis(200));
    }
}

/// A lazily connected tonic channel to `addr`; every connection it makes is authenticated.
#[must_use]
pub fn control_channel(addr: &str, key: &ClusterKey) -> tonic::transport::Channel {
    connected(endpoint(), addr, key)
}

/// As [`control_channel`], for a call without a deadline of its own: its answer may take as long as it wants, but a server
/// that does not even answer a ping within `silence` ends it.
#[must_use]
pub fn watched_control_channel(
    addr: &str,
    key: &ClusterKey,
    silence: Duration,
) -> tonic::transport::Channel {
    let endpoint = endpoint().http2_keep_alive_interval(silence / 2).keep_alive_timeout(silence);
    connected(endpoint, addr, key)
}

fn endpoint() -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::from_static("http://dfs.invalid")
}

fn connected(
    endpoint: tonic::transport::Endpoint,
    addr: &str,
    key: &ClusterKey,
) -> tonic::transport::Channel {
    let (addr, key) = (addr.to_owned(), key.clone());
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (addr, key) = (addr.clone(), key.clone());
        async move {
            dial_async(&addr, &key, Door::Control, Duration::from_secs(2))
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    endpoint.connect_with_connector_lazy(connector)
}

/// A control connection as tonic's server wants it.
#[derive(Debug)]
pub struct ControlStream {
    stream: tokio::net::TcpStream,
    _slot: Slot,
}

impl tonic::transport::server::Connected for ControlStream {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for ControlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Runs what a server does at its control door: on two threads, on one where there is but one core.
///
/// # Errors
/// The kernel's.
pub fn control_runtime() -> io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(2))
        .thread_name("control")
        .enable_all()
        .build()
}

/// The control door's connections, for `serve_with_incoming`.
pub fn control_incoming(
    connections: tokio::sync::mpsc::Receiver<ControlStream>,
) -> impl tokio_stream::Stream<Item = io::Result<ControlStream>> {
    tokio_stream::StreamExt::map(tokio_stream::wrappers::ReceiverStream::new(connections), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(
        key: ClusterKey,
    ) -> (AcceptorHandle, tokio::runtime::Runtime, std::sync::mpsc::Receiver<()>) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let acceptor =
            Acceptor::bind("127.0.0.1:0".parse().unwrap(), key, Limits { connections_max: 4 })
                .unwrap();
        let (seen, frames) = std::sync::mpsc::channel();
        let (control, _keep) = tokio::sync::mpsc::channel(4);
        let on_frames: OnFrames = Arc::new(move |mut stream, _| {
            let _closed = seen.send(());
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let handle = acceptor.run(on_frames, control, runtime.handle().clone()).unwrap();
        (handle, runtime, frames)
    }

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn the_same_key_opens_the_door_and_another_does_not() {
        let (server, _runtime, frames) = served(ClusterKey([7; 32]));
        let addr = server.addr().to_string();
        let mut stream = dial(&addr, &ClusterKey([7; 32]), Door::Frames, WAIT).unwrap();
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        frames.recv_timeout(WAIT).unwrap();
        let refused = dial(&addr, &ClusterKey([8; 32]), Door::Frames, WAIT).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
        assert!(frames.try_recv().is_err(), "nothing reached the door");
        server.stop();
    }

    #[test]
    fn garbage_is_closed_and_the_server_goes_on() {
        let (server, _runtime, _frames) = served(ClusterKey([7; 32]));
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").unwrap();
        let mut rest = Vec::new();
        // Closed with or without a reset: either way nothing is answered.
        let _reset = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
        dial(&server.addr().to_string(), &ClusterKey([7; 32]), Door::Frames, WAIT).unwrap();
        server.stop();
    }

    /// Long enough for each byte of [`trickle`], and shorter than all of them.
    const SHORT: Duration = Duration::from_millis(400);

    /// Sends 32 bytes or more, one at a time; false if the other side does not want them.
    fn trickle(mut stream: &TcpStream, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| {
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(&[*byte]).is_ok()
        })
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asker = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (asker, listener.accept().unwrap().0)
    }

    #[test]
    fn one_that_sends_its_proof_byte_by_byte_is_dropped() {
        let key = ClusterKey([7; 32]);
        let (mut asker, server) = pair();
        std::thread::scope(|scope| {
            let answered = scope.spawn(|| {
                let answered = answer(&server, &key, SHORT);
                server.shutdown(std::net::Shutdown::Both).unwrap();
                answered
            });
            let mut hello = [1; 6 + NONCE];
            hello[..5].copy_from_slice(&MAGIC);
            asker.write_all(&hello).unwrap();
            let mut reply = [0; 6 + NONCE + PROOF];
            asker.read_exact(&mut reply).unwrap();
            let nonce: [u8; NONCE] = reply[6..6 + NONCE].try_into().unwrap();
            // A proof that would be good.
            let proof = key.proof(b"asker", 1, &[1; NONCE], &nonce).finalize().into_bytes();
            let _dropped = trickle(&asker, &proof);
            let refused = answered.join().unwrap().unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "{refused}");
        });
    }

    #[test]
    fn a_server_that_answers_byte_by_byte_is_given_up() {
        let key = ClusterKey([7; 32]);
        let (asker, mut server) = pair();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let asked = ask(Timed::new(&asker, SHORT), &key, Door::Frames);
                asker.shutdown(std::net::Shutdown::Both).unwrap();
                asked
            });
            let mut hello = [0; 6 + NONCE];
            server.read_exact(&mut hello).unwrap();
            let nonce: [u8; NONCE] = hello[6..].try_into().unwrap();
            let mut reply = MAGIC.to_vec();
            reply.extend_from_slice(&[0; 1 + NONCE]);
            reply.extend(key.proof(b"server", 1, &nonce, &[0; NONCE]).finalize().into_bytes());
            let _dropped = trickle(&server, &reply);
            let given_up = asked.join().unwrap().unwrap_err();
            assert_eq!(given_up.kind(), io::ErrorKind::TimedOut, "{given_up}");
        });
    }

    #[test]
    fn a_control_connection_holds_its_slot_until_it_is_closed() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let key = ClusterKey([7; 32]);
        let limits = Limits { connections_max: 2 };
        let acceptor = Acceptor::bind("127.0.0.1:0".parse().unwrap(), key.clone(), limits).unwrap();
        let (control, mut taken) = tokio::sync::mpsc::channel(4);
        let on_frames: OnFrames = Arc::new(|_, _| ());
        let server = acceptor.run(on_frames, control, runtime.handle().clone()).unwrap();
        let addr = server.addr().to_string();
        let ask = || dial(&addr, &key, Door::Control, WAIT);

        let _asked = (ask().unwrap(), ask().unwrap());
        let served = (taken.blocking_recv().unwrap(), taken.blocking_recv().unwrap());
        ask().unwrap_err();
        drop(served);
        ask().unwrap();
        server.stop();
    }

    #[test]
    fn without_a_key_only_loopback_is_served() {
        let error =
            Acceptor::bind("0.0.0.0:0".parse().unwrap(), ClusterKey::none(), Limits::default())
                .unwrap_err();
        assert!(error.to_string().contains("loopback"), "{error}");
    }
}
