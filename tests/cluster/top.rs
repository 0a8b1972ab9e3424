//! `dfs top` in a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tests::{Cluster, Options, wait_until};

use crate::need_fuse;

/// A program in a terminal of 80 columns and 24 lines.
pub(crate) struct InTerminal {
    pub(crate) child: Child,
    pub(crate) keys: File,
    /// All that it ever wrote.
    written: Arc<Mutex<Vec<u8>>>,
}

impl InTerminal {
    pub(crate) fn start(mut command: std::process::Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let ours = openpt(flags).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let theirs: OwnedFd = ioctl_tiocgptpeer(&ours, flags).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let (mut screen, keys) = (File::from(ours.try_clone().unwrap()), File::from(ours));
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            // An error is the end: nobody has the other side open any more.
            while let Ok(n @ 1..) = screen.read(&mut some) {
                to.lock().unwrap().extend_from_slice(&some[..n]);
            }
        });
        Self { child, keys, written }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // It ended already unless the test failed.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn top_shows_servers_and_a_lost_master_and_gives_the_terminal_back() {
    need_fuse!();
    let cluster = Cluster::start_with(Options::default());
    let piped = cluster.try_dfs(["top"]);
    let said = String::from_utf8_lossy(&piped.stderr).into_owned();
    assert!(!piped.status.success() && said.contains("dfs status -o json"), "{said}");
    let zero = cluster.try_dfs(["top", "--interval", "0s"]);
    assert_eq!(zero.status.code(), Some(2), "{zero:?}");
    let mut command = cluster.command(["top", "--interval", "200ms"]);
    command.env("TERM", "xterm");
    let mut top = InTerminal::start(command);
    wait_until("the servers are shown", || {
        let text = top.text();
        ["cs-1", "cs-2", "cs-3", "alive"].iter().all(|part| text.contains(part))
    });
    cluster.kill("master");
    wait_until("the master is said to be away", || top.text().contains("no answer for"));
    top.keys.write_all(b"q").unwrap();
    wait_until("it ends", || top.child.try_wait().unwrap().is_some());
    assert!(top.child.wait().unwrap().success());
    // Back from the alternate screen, with a cursor.
    let end = top.text().split("\u{1b}[?1049h").last().unwrap().to_owned();
    assert!(end.contains("\u{1b}[?1049l") && end.contains("\u{1b}[?25h"), "{end:?}");
}
