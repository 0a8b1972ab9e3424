//! Stands between an operator and the API server: passes everything on until the n-th write that is not the election's,
//! lets the API server do that one, and then passes nothing on any more.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::cluster::{Cluster, programs, wait_for};

/// An operator that has not written for so long has nothing to write: its rounds are 10 s apart at most.
const CALM: Duration = Duration::from_secs(25);

pub(crate) struct Gate {
    /// For the operator.
    pub(crate) kubeconfig: PathBuf,
    /// Takes plain HTTP, and is the operator to the API server.
    proxy: Child,
    written: Receiver<String>,
    over: Arc<AtomicBool>,
}

impl Gate {
    /// Until `writes` are done; `config` says who the operator is.
    #[track_caller]
    pub(crate) fn open(cluster: &Cluster, config: &Path, writes: usize) -> Self {
        let log = cluster.dir.join("run/log/gate.log");
        let file = std::fs::File::create(&log).unwrap();
        let mut proxy = Command::new(programs().join("kubectl"))
            .arg("--kubeconfig")
            .arg(config)
            .args(["proxy", "--port=0", "--address=127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let upstream = wait_for("kubectl proxy", || {
            assert!(proxy.try_wait().unwrap().is_none(), "kubectl proxy ended");
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            said.trim().rsplit(' ').next()?.parse::<SocketAddr>().ok()
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kubeconfig = cluster.dir.join("gate.kubeconfig");
        std::fs::write(
            &kubeconfig,
            format!(
                "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
                 users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
            ),
        )
        .unwrap();
        let (tell, written) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&over);
        let left = Arc::new(AtomicUsize::new(writes));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(connection), Ok(server)) = (connection, TcpStream::connect(upstream))
                else {
                    continue;
                };
                let (tell, closed, left) = (tell.clone(), Arc::clone(&closed), Arc::clone(&left));
                std::thread::spawn(move || pass(&connection, &server, &tell, &closed, &left));
            }
        });
        Self { kubeconfig, proxy, written, over }
    }

    /// The last write, once the API server has answered it; none if there are fewer for a while.
    pub(crate) fn wait_for_write(&self) -> Option<String> {
        self.written.recv_timeout(CALM).ok()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ended = self.proxy.kill();
        let _waited = self.proxy.wait();
    }
}

/// One connection: requests one after the other, answers as they come.
fn pass(
    client: &TcpStream,
    server: &TcpStream,
    tell: &Sender<String>,
    closed: &Arc<AtomicBool>,
    left: &AtomicUsize,
) {
    let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let pending = Arc::new(AtomicBool::new(false));
    let shown = Arc::new(std::sync::Mutex::new(String::new()));
    let back = {
        let (pending, shown, closed, tell) =
            (Arc::clone(&pending), Arc::clone(&shown), Arc::clone(closed), tell.clone());
        std::thread::spawn(move || {
            let (mut server, mut client) = answers;
            let mut bytes = [0_u8; 16 << 10];
            while let Ok(count) = server.read(&mut bytes) {
                if count == 0 {
                    break;
                }
                if pending.load(Ordering::SeqCst) {
                    // It is done, and the operator does not hear so.
                    closed.store(true, Ordering::SeqCst);
                    let _gone = tell.send(shown.lock().unwrap().clone());
                    break;
                }
                if closed.load(Ordering::SeqCst) || client.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _closed = client.shutdown(Shutdown::Both);
        })
    };
    requests(client, server, |line| {
        if closed.load(Ordering::SeqCst) {
            return false;
        }
        if is_write(line) && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            *shown.lock().unwrap() = line.to_owned();
            pending.store(true, Ordering::SeqCst);
        }
        true
    });
    let _closed = server.shutdown(Shutdown::Write);
    let _ended = back.join();
}

/// Not of the election, and no Event: those change nothing.
fn is_write(line: &str) -> bool {
    let method = line.split(' ').next().unwrap_or_default();
    !matches!(method, "GET" | "HEAD")
        && !line.contains("/leases")
        && !line.contains("/apis/events.k8s.io/")
}

/// Passes requests on whole, each after `let_through` has seen its first line.
fn requests(mut client: &TcpStream, mut server: &TcpStream, let_through: impl Fn(&str) -> bool) {
    let mut kept = Vec::new();
    let mut bytes = [0_u8; 16 << 10];
    loop {
        let head = loop {
            if let Some(end) = kept.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match client.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => kept.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        };
        let text = String::from_utf8_lossy(&kept[..head]).into_owned();
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        let whole = head + length.unwrap_or(0);
        while kept.len() < whole {
            match client.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(count) => kept.extend_from_slice(&bytes[..count]),
            }
        }
        let line = text.lines().next().unwrap_or_default();
        if !let_through(line) || server.write_all(&kept[..whole]).is_err() {
            return;
        }
        kept.drain(..whole);
    }
}
