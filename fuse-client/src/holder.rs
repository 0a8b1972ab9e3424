//! The holder of a mount: mounts, keeps what must not be closed, and starts one client after the other.
//!
//! The kernel ends a mount when the last descriptor of its connection is closed, and fails requests whose own descriptor is. So the
//! holder keeps them all, with the answer to INIT and the memory that clients leave each other, and hands them to the
//! client, a child of it. When the client has ended (only then: nobody else answers the kernel) the next one is started,
//! which has everything unanswered sent again. The holder reads no request and touches nothing in the mount.
//!
//! ```text
//! client                                holder
//!                                       start: generation, client id; the memory
//! wants to serve (`want`)
//!                                       [mounts, the first time] answer to INIT if there was one; all descriptors
//! [first: reads INIT] `init`, answer
//!                                       `kept`
//! [answers INIT] serves (`serving`)
//! ```

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_client::kept;
use dfs_service::shutdown::Shutdown;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use crate::mount::tune_readahead;
use crate::mount_point;
use crate::mount_table::mounted_at;
use crate::native::passing::{self, Message};
use crate::native::{INIT_OUT_BYTES, clone_device, mount_device, warn_of_time_limits};

/// How often signals are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// First and longest pause before a client is started again that did not come to serve.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is held, and who serves it.
pub struct HoldConfig {
    pub mount_point: PathBuf,
    pub read_only: bool,
    /// Descriptors that a client reads requests from.
    pub readers: usize,
    /// Makes the command of a client, given the descriptor that it is to talk on.
    pub client: Box<dyn FnMut(i32) -> Command>,
    /// Where `mount-holder.pid` and `mount.pid`, of the client, are written, if at all.
    pub pid_dir: Option<PathBuf>,
    /// Called once the mount answers.
    pub ready: Box<dyn FnOnce()>,
}

impl std::fmt::Debug for HoldConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HoldConfig")
            .field("mount_point", &self.mount_point)
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}

struct Holder {
    at: PathBuf,
    place: mount_point::Place,
    read_only: bool,
    readers: usize,
    pid_dir: Option<PathBuf>,
    ready: Option<Box<dyn FnOnce()>>,
    client_id: [u8; 16],
    memory: OwnedFd,
    /// Of the connection, its clones behind it; empty until it is mounted.
    descriptors: Vec<OwnedFd>,
    init: Option<Vec<u8>>,
    generation: u64,
}

/// A client and what is known of it.
struct Client {
    process: Child,
    socket: OwnedFd,
    started: Instant,
    served: bool,
}

/// Mounts and holds until it is unmounted, or SIGTERM or SIGINT, which the client is told to end with.
///
/// # Errors
/// If it cannot be mounted, or the last client failed at its end.
pub fn hold(config: HoldConfig) -> anyhow::Result<()> {
    let HoldConfig { mount_point, read_only, readers, mut client, pid_dir, ready } = config;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let place = mount_point::prepare(&mount_point)?;
    let mut client_id = [0; 16];
    getrandom::fill(&mut client_id).context("draw a client id")?;
    let memory = rustix::fs::memfd_create("dfs-kept", rustix::fs::MemfdFlags::CLOEXEC)
        .context("make the memory that outlives clients")?;
    rustix::fs::ftruncate(&memory, kept::WORDS as u64 * 8).context("size that memory")?;
    let mut holder = Holder {
        at: place.at.clone(),
        place,
        read_only,
        readers: readers.clamp(2, passing::DESCRIPTORS_MAX),
        pid_dir,
        ready: Some(ready),
        client_id,
        memory,
        descriptors: Vec::new(),
        init: None,
        generation: 0,
    };
    holder.write_pid("mount-holder.pid", std::process::id())?;
    let mut pause = PAUSE_MIN;
    loop {
        let mut serving = holder.start(&mut client)?;
        let status = holder.attend(&mut serving, &shutdown)?;
        let Client { process, started, served, .. } = serving;
        if status.success() {
            return Ok(());
        }
        if holder.ready.is_some() {
            // None has served yet: the next one would not either.
            if !holder.descriptors.is_empty() {
                let _gone = mount_point::detach(&holder.at);
            }
            anyhow::bail!("the client ended before it served ({status}); what it said is above");
        }
        if shutdown.is_asked() || !holder.is_mounted() {
            let _gone = mount_point::detach(&holder.at);
            anyhow::bail!("the client failed at its end ({status}); see its log above");
        }
        let pid = process.id();
        tracing::warn!(pid, %status, lived = ?started.elapsed(), generation = holder.generation, "the client ended; another one takes over");
        if served {
            pause = PAUSE_MIN;
            continue;
        }
        if shutdown.wait_for(pause) {
            mount_point::detach(&holder.at)?;
            return Ok(());
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl Holder {
    fn start(&mut self, client: &mut dyn FnMut(i32) -> Command) -> anyhow::Result<Client> {
        self.generation += 1;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("make a socket pair")?;
        // This process has no other thread that could start anything meanwhile.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).context("fcntl")?;
        let process = client(theirs.as_raw_fd()).spawn().context("start the client")?;
        drop(theirs);
        self.write_pid("mount.pid", process.id())?;
        let mut start = self.generation.to_ne_bytes().to_vec();
        start.extend_from_slice(&self.client_id);
        // A client that has ended already is noticed next.
        let _gone = passing::send(ours.as_fd(), &Message::Start(start), &[self.memory.as_fd()]);
        Ok(Client { process, socket: ours, started: Instant::now(), served: false })
    }

    /// Serves one client until it has ended.
    fn attend(&mut self, client: &mut Client, shutdown: &Shutdown) -> anyhow::Result<ExitStatus> {
        let mut told = false;
        loop {
            if shutdown.is_asked() && !std::mem::replace(&mut told, true) {
                terminate(&client.process);
            }
            if !is_readable(client.socket.as_fd(), LOOK)? {
                continue;
            }
            match passing::receive(client.socket.as_fd()) {
                Ok((message, _)) => self.on_message(message, client)?,
                // All its threads have closed it, or are about to: this is what the next one waits for.
                Err(_ended) => return client.process.wait().context("wait for the client"),
            }
        }
    }

    fn on_message(&mut self, message: Message, client: &mut Client) -> anyhow::Result<()> {
        let answered = match message {
            Message::Want => {
                if self.descriptors.is_empty() {
                    self.mount()?;
                }
                let all: Vec<BorrowedFd<'_>> =
                    self.descriptors.iter().map(|fd| fd.as_fd()).collect();
                let init = self.init.clone().unwrap_or_default();
                passing::send(client.socket.as_fd(), &Message::Grant(init), &all)
            }
            Message::Init(answer) if answer.len() == INIT_OUT_BYTES => {
                self.init = Some(answer);
                passing::send(client.socket.as_fd(), &Message::Kept, &[])
            }
            Message::Serving => {
                client.served = true;
                let after = client.started.elapsed();
                let (pid, generation) = (client.process.id(), self.generation);
                tracing::info!(pid, generation, ?after, at = %self.at.display(), "a client serves");
                if let Some(ready) = self.ready.take() {
                    tune_readahead(&self.at);
                    ready();
                }
                Ok(())
            }
            Message::Init(_) | Message::Start(_) | Message::Grant(_) | Message::Kept => {
                Err(io::Error::other("not a message of a client"))
            }
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "talk to the client");
        }
        Ok(())
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        self.place.clear()?;
        warn_of_time_limits();
        let device = mount_device(&self.at, self.read_only)?;
        let clones = (1..self.readers).map(|_| clone_device(device.as_fd()));
        // Without clones one descriptor serves all readers, a little slower.
        let clones: Vec<OwnedFd> = clones.map_while(Result::ok).collect();
        self.descriptors.push(device);
        self.descriptors.extend(clones);
        tracing::info!(at = %self.at.display(), descriptors = self.descriptors.len(), "mounted and held");
        Ok(())
    }

    /// By the kernel's table: nothing here may look into the mount.
    fn is_mounted(&self) -> bool {
        mounted_at(&self.at)
            .is_ok_and(|mounted| mounted.is_some_and(|on_top| on_top.kind == "fuse.dfs"))
    }

    fn write_pid(&self, name: &str, pid: u32) -> anyhow::Result<()> {
        let Some(dir) = &self.pid_dir else { return Ok(()) };
        let (path, draft) = (dir.join(name), dir.join(format!("{name}.new")));
        std::fs::write(&draft, format!("{pid}\n"))
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        for name in ["mount-holder.pid", "mount.pid"] {
            if let Some(dir) = &self.pid_dir {
                let _absent = std::fs::remove_file(Path::new(dir).join(name));
            }
        }
    }
}

fn terminate(process: &Child) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ended = rustix::process::kill_process(pid, Signal::TERM);
    }
}

fn is_readable(socket: BorrowedFd<'_>, at_most: Duration) -> io::Result<bool> {
    let mut polled = [PollFd::new(&socket, PollFlags::IN)];
    let at_most = Timespec::try_from(at_most).map_err(io::Error::other)?;
    match rustix::event::poll(&mut polled, Some(&at_most)) {
        Ok(ready) => Ok(0 < ready),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
