//! Addresses of names, within a time.
//!
//! The system's lookup cannot be told when to end: it has a thread of its own, which is left behind.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Names being looked up; the resolver's own time-outs end each of them, some time.
const LOOKUPS_MAX: usize = 16;
static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn resolve(addr: &str, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = addr.parse() {
        return Ok(vec![literal]);
    }
    let name = addr.to_owned();
    within(timeout, move || name.to_socket_addrs().map(Iterator::collect))
}

fn within<T: Send + 'static>(
    timeout: Duration,
    look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let running = LOOKUPS.fetch_add(1, Ordering::AcqRel);
    let running = LookingUp(running + 1);
    if LOOKUPS_MAX < running.0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer to earlier lookups of names",
        ));
    }
    let (send, answer) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("lookup".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = send.send(look_up());
        drop(running);
    })?;
    answer.recv_timeout(timeout).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "looking up the name took too long"))
    })
}

/// One of the lookups that run; the number is how many there were with it.
struct LookingUp(usize);

impl Drop for LookingUp {
    fn drop(&mut self) {
        LOOKUPS.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_that_hangs_is_given_up_and_only_so_many_hang() {
        let (let_go, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let hang = || {
            let held = std::sync::Arc::clone(&held);
            within(Duration::from_millis(10), move || {
                let _ended = held.lock().unwrap().recv();
                Ok(())
            })
        };
        let first = hang().unwrap_err();
        assert_eq!(first.kind(), io::ErrorKind::TimedOut);
        assert!(first.to_string().contains("took too long"), "{first}");
        let all: Vec<_> = (1..=LOOKUPS_MAX).map(|_| hang().unwrap_err().to_string()).collect();
        assert!(all.last().unwrap().contains("earlier lookups"), "{all:?}");
        drop(let_go);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while 0 < LOOKUPS.load(Ordering::Acquire) {
            assert!(std::time::Instant::now() < until, "they end");
            std::thread::sleep(Duration::from_millis(5));
        }
        // A name from the hosts file, and a literal, which asks nobody.
        let found = resolve("localhost:7", Duration::from_secs(60)).unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7));
        assert_eq!(resolve("[::1]:7", Duration::ZERO).unwrap().len(), 1);
        assert!(resolve("no port", Duration::from_secs(60)).is_err());
    }
}
