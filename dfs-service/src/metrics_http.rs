//! `/metrics`, `/healthz` and `/readyz` over plain HTTP, on a thread of its own.
//!
//! Whoever connects can hold little: so many connections at once, each for a few seconds, one request each, heads of a
//! few kilobytes. More are closed at once. There is no authentication: what the pages say is figures, never content.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::sync::{Semaphore, oneshot};

const CONNECTIONS_MAX: usize = 32;
/// From the accepted connection to the last byte of its answer.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Lines about connections that make no sense, in each [`TOLD_EVERY`]: nobody had to show a key to make them.
const TOLD_MAX: u32 = 10;
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What the pages of one process say.
pub struct Pages {
    pub registry: Registry,
    /// Brings figures up to date that are not counted as they happen; called before each `/metrics`.
    pub refresh: Box<dyn Fn() + Send + Sync>,
    /// Whether this process can do its work now, and if not why.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// A running server of the pages; ends when dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves `pages` at `listen` (port 0: a free one) from now on.
    ///
    /// # Errors
    /// If the address is taken or not of this machine.
    pub fn start(listen: SocketAddr, pages: Pages) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("metrics at {listen}: {error}"))
        };
        let listener = std::net::TcpListener::bind(listen).map_err(named)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // For refreshing and rendering, which may wait for locks.
            .max_blocking_threads(2)
            .thread_name("metrics")
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, Arc::new(pages)) => {}
                    // Told or dropped: both end it.
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        tracing::info!("metrics at http://{address}/metrics");
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

async fn accept(listener: std::net::TcpListener, pages: Arc<Pages>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics are not served"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let told = Arc::new(Mutex::new(Told { began: Instant::now(), lines: 0, left_out: 0 }));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the asker was gone: both pass.
                tracing::debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (pages, told) = (Arc::clone(&pages), Arc::clone(&told));
        tokio::spawn(async move {
            let serve = service_fn(move |request| answer(Arc::clone(&pages), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), serve);
            match tokio::time::timeout(CONNECTION_MAX, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.is_parse() || error.is_timeout() => {
                    tell(&told, peer, &error.to_string());
                }
                // Such as one that was closed by the asker.
                Ok(Err(error)) => tracing::debug!(%peer, %error, "metrics connection"),
                Err(_) => tell(&told, peer, "it took too long"),
            }
            drop(place);
        });
    }
}

/// What was said lately about connections.
#[derive(Debug)]
struct Told {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Told {
    /// Whether a line may be said now; with how many were not since the last one.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if TOLD_EVERY <= now.duration_since(self.began) {
            (self.began, self.lines) = (now, 0);
        }
        if TOLD_MAX <= self.lines {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

fn tell(told: &Mutex<Told>, peer: SocketAddr, reason: &str) {
    let next = told.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
    match next {
        Some(0) => tracing::warn!(%peer, reason, "metrics connection refused"),
        Some(more) => {
            tracing::warn!(%peer, reason, more, "metrics connection refused, and others before it");
        }
        None => {}
    }
}

async fn answer(
    pages: Arc<Pages>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(response(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()));
    }
    let page = match request.uri().path() {
        "/metrics" => metrics_page as fn(&Pages) -> Response<Full<Bytes>>,
        "/readyz" => ready_page,
        // Here, so that it answers also when the others wait for something.
        "/healthz" => return Ok(response(StatusCode::OK, "ok\n".to_owned())),
        _ => {
            let text = "pages: /metrics /healthz /readyz\n".to_owned();
            return Ok(response(StatusCode::NOT_FOUND, text));
        }
    };
    let made = tokio::task::spawn_blocking(move || page(&pages)).await;
    Ok(made
        .unwrap_or_else(|error| response(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))))
}

fn response(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn metrics_page(pages: &Pages) -> Response<Full<Bytes>> {
    (pages.refresh)();
    let mut response = response(StatusCode::OK, render(&pages.registry));
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}

fn ready_page(pages: &Pages) -> Response<Full<Bytes>> {
    match (pages.ready)() {
        Ok(()) => response(StatusCode::OK, "ready\n".to_owned()),
        Err(why) => response(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

/// The text form that Prometheus reads.
#[must_use]
pub fn render(registry: &Registry) -> String {
    let mut text = Vec::new();
    // Encoding into memory fails only on metrics without a name.
    match TextEncoder::new().encode(&registry.gather(), &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn start(ready: Arc<AtomicBool>) -> MetricsServer {
        let mut made = crate::metrics::Registrar::new();
        let refreshed = made.counter("dfs_test_refreshed_total", "times refreshed");
        let pages = Pages {
            registry: made.done().0,
            refresh: Box::new(move || refreshed.inc()),
            ready: Box::new(move || match ready.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err("no disk".to_owned()),
            }),
        };
        MetricsServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), pages).unwrap()
    }

    fn ask(server: &MetricsServer, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(CONNECTION_MAX * 3)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Closed in the middle of what it was sent: as good as an end.
        let _reset = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(server: &MetricsServer, path: &str) -> String {
        ask(server, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }

    #[test]
    fn pages_say_what_is_so_now() {
        let ready = Arc::new(AtomicBool::new(false));
        let server = start(Arc::clone(&ready));
        let text = get(&server, "/readyz");
        assert!(
            text.starts_with("HTTP/1.1 503") && text.ends_with("not ready: no disk\n"),
            "{text}"
        );
        ready.store(true, Ordering::Relaxed);
        assert!(get(&server, "/readyz").starts_with("HTTP/1.1 200"));
        assert!(get(&server, "/healthz").ends_with("\r\n\r\nok\n"));
        for count in 1..3 {
            let text = get(&server, "/metrics");
            assert!(text.contains(&format!("\ndfs_test_refreshed_total {count}\n")), "{text}");
            assert!(text.contains("version=0.0.4"), "{text}");
        }
        assert!(get(&server, "/other").starts_with("HTTP/1.1 404"));
        let text = ask(&server, b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    }

    #[test]
    fn a_flood_of_refused_connections_is_a_few_lines() {
        let began = Instant::now();
        let mut told = Told { began, lines: 0, left_out: 0 };
        let said = (0..1000).filter(|_| told.next(began).is_some()).count();
        assert_eq!(said, TOLD_MAX as usize);
        assert_eq!(told.next(began + TOLD_EVERY), Some(1000 - u64::from(TOLD_MAX)));
        assert_eq!(told.next(began + TOLD_EVERY), Some(0));
    }

    #[test]
    fn garbage_and_silence_hold_nothing() {
        let server = start(Arc::new(AtomicBool::new(true)));
        let long = [b"GET /".as_slice(), &vec![b'a'; 64 << 10], b" HTTP/1.1\r\n\r\n"].concat();
        for garbage in
            [b"\x16\x03\x01\x02\x00\x01\x00".as_slice(), b"\r\n\r\n\0\0 x\r\n\r\n", &long]
        {
            let text = ask(&server, garbage);
            assert!(!text.contains(" 200 "), "{text}");
        }
        // More silent ones than there are places.
        let silent: Vec<_> = (0..CONNECTIONS_MAX * 2)
            .map(|_| TcpStream::connect(server.address()).unwrap())
            .collect();
        let until = Instant::now() + CONNECTION_MAX * 6;
        while !get(&server, "/healthz").ends_with("ok\n") {
            assert!(Instant::now() < until, "silent connections hold all places");
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(silent);
    }
}
