//! The holder of a mount: mounts, keeps what must not be closed, and starts one client after the other.
//!
//! The kernel ends a mount when the last descriptor of its connection is closed, and fails requests whose own descriptor is. So the
//! holder keeps them all, with the answer to INIT and the memory that clients leave each other, and hands them to the
//! client, a child of it. When the client has ended (only then: nobody else answers the kernel) the next one is started,
//! which has everything unanswered sent again. The holder reads no request and touches nothing in the mount.
//!
//! With [`store`] all of it outlives the holder too. A client serves only while it has the lock of the memory: one of a
//! holder before may be alive.
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

mod control;
mod memory;
mod store;
mod waiting;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_service::shutdown::Shutdown;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use crate::mount::tune_readahead;
use crate::mount_point;
use crate::mount_table::mounted_at;
use crate::native::passing::{self, Message};
use crate::native::{INIT_OUT_BYTES, clone_device, mount_device, resend, warn_of_time_limits};
pub use control::upgrade;
use control::{Asked, Control};
use memory::Memory;
pub use store::{Stored, stored};
use waiting::Watch;

/// How often signals are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// First and longest pause before a client is started again that did not come to serve.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Makes the command of a client, given its program and the descriptor that it is to talk on.
pub type ClientCommand = Box<dyn FnMut(&Path, i32) -> anyhow::Result<Command>>;

/// What is held, and who serves it.
pub struct HoldConfig {
    pub mount_point: PathBuf,
    pub read_only: bool,
    /// Descriptors that a client reads requests from.
    pub readers: usize,
    /// Clients may not unmount: this does.
    pub unmounts: bool,
    /// What clients run, until it is upgraded.
    pub program: PathBuf,
    pub client: ClientCommand,
    /// The next client is started before it is needed.
    pub standby: bool,
    /// Where the descriptors are stored, for a holder that follows this one (`NOTIFY_SOCKET`), and what was.
    pub store: Option<OsString>,
    pub stored: Option<Stored>,
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
    unmounts: bool,
    pid_dir: Option<PathBuf>,
    ready: Option<Box<dyn FnOnce()>>,
    memory: Memory,
    /// Of the connection, its clones behind it; empty until it is mounted.
    descriptors: Vec<OwnedFd>,
    store: Option<OsString>,
    client: ClientCommand,
    program: PathBuf,
    wants_standby: bool,
    standby: Option<Started>,
    control: Option<Control>,
    /// What the next client is to run, and who waits to hear of it.
    upgrade: Option<Asked>,
    waiting: Watch,
}

/// A client that waits to be told that it is its turn.
struct Started {
    process: Child,
    socket: OwnedFd,
    program: PathBuf,
}

/// A client and what is known of it.
struct Client {
    process: Child,
    socket: OwnedFd,
    started: Instant,
    served: bool,
    program: PathBuf,
}

/// Mounts and holds until it is unmounted, or SIGTERM or SIGINT, which the client is told to end with.
///
/// # Errors
/// If it cannot be mounted, or the last client failed at its end.
pub fn hold(config: HoldConfig) -> anyhow::Result<()> {
    let HoldConfig {
        mount_point,
        read_only,
        readers,
        unmounts,
        program,
        client,
        standby,
        store,
        stored,
        pid_dir,
        ready,
    } = config;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let (place, memory, descriptors) = match stored {
        // It is mounted, and whoever looked at it would wait for us.
        Some(Stored { memory, descriptors }) => {
            let memory = Memory::taken_over(memory)?;
            (mount_point::Place::taken_over(&mount_point), memory, descriptors)
        }
        None => (mount_point::prepare(&mount_point)?, Memory::new()?, Vec::new()),
    };
    let is_taken_over = !descriptors.is_empty();
    let mut holder = Holder {
        at: place.at.clone(),
        place,
        read_only,
        readers: readers.clamp(2, passing::DESCRIPTORS_MAX),
        unmounts,
        pid_dir,
        ready: Some(ready),
        memory,
        descriptors,
        store,
        client,
        program,
        wants_standby: standby,
        standby: None,
        control: None,
        upgrade: None,
        waiting: Watch::default(),
    };
    holder.write_pid("mount-holder.pid", std::process::id())?;
    if is_taken_over {
        let at = holder.at.display();
        tracing::info!(%at, descriptors = holder.descriptors.len(), "took over what a holder before had stored");
        holder.listen();
    }
    let mut pause = PAUSE_MIN;
    loop {
        let mut serving = holder.appoint()?;
        let status = holder.attend(&mut serving, &shutdown)?;
        let Client { ref process, started, served, .. } = serving;
        holder.release_waiting();
        // A program that knows nothing of all this may end so, too.
        if status.success() && !holder.is_mounted() {
            holder.remove_stored();
            return Ok(());
        }
        holder.upgrade_failed(&serving.program, served, status);
        if holder.ready.is_some() && !is_taken_over {
            // None has served yet: the next one would not either.
            if !holder.descriptors.is_empty() {
                let _gone = mount_point::detach(&holder.at);
            }
            anyhow::bail!("the client ended before it served ({status}); what it said is above");
        }
        if shutdown.is_asked() || !holder.is_mounted() {
            let _gone = mount_point::detach(&holder.at);
            holder.remove_stored();
            anyhow::bail!("the client failed at its end ({status}); see its log above");
        }
        let pid = process.id();
        tracing::warn!(pid, %status, lived = ?started.elapsed(), generation = holder.memory.generation, "the client ended; another one takes over");
        if served {
            pause = PAUSE_MIN;
            continue;
        }
        if shutdown.wait_for(pause) {
            mount_point::detach(&holder.at)?;
            holder.remove_stored();
            return Ok(());
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl Holder {
    /// Starts a process that waits for its turn.
    fn start(&mut self, program: &Path) -> anyhow::Result<Started> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("make a socket pair")?;
        // This process has no other thread that could start anything meanwhile.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).context("fcntl")?;
        let process = (self.client)(program, theirs.as_raw_fd())?.spawn();
        let process = process.with_context(|| format!("start {}", program.display()))?;
        Ok(Started { process, socket: ours, program: program.to_owned() })
    }

    /// It is the next client's turn: of one that waits, or that is started now.
    fn appoint(&mut self) -> anyhow::Result<Client> {
        let program = match &self.upgrade {
            Some(asked) => asked.program.clone(),
            None => self.program.clone(),
        };
        let waits = self.standby.take().filter(|standby| standby.program == program);
        let waits = waits.and_then(|mut standby| match standby.process.try_wait() {
            Ok(None) => Some(standby),
            Ok(Some(_)) | Err(_) => None,
        });
        let started = match waits {
            Some(standby) => Ok(standby),
            None => self.start(&program),
        };
        let started = match started {
            Err(error) if program != self.program => {
                self.answer_upgrade(Err(format!("{error:#}")));
                self.start(&self.program.clone())?
            }
            started => started?,
        };
        let Started { process, socket, program } = started;
        self.write_pid("mount.pid", process.id())?;
        self.memory.begin_generation()?;
        // A client that has ended already is noticed next.
        let start = Message::Start(self.memory.start());
        let _gone = passing::send(socket.as_fd(), &start, &[self.memory.fd.as_fd()]);
        Ok(Client { process, socket, program, started: Instant::now(), served: false })
    }

    /// From now on somebody can ask for an upgrade.
    fn listen(&mut self) {
        self.control = Control::new(&self.at)
            .inspect_err(|error| {
                tracing::warn!(%error, "dfs mount upgrade does not work for this mount");
            })
            .ok();
    }

    /// Puts what was asked for in place: the next client is waiting when the present one is ended.
    fn begin_upgrade(&mut self, asked: Asked, client: &Client) {
        tracing::info!(program = %asked.program.display(), "the client is replaced");
        match self.start(&asked.program) {
            Ok(started) => {
                if let Some(before) = self.standby.replace(started) {
                    end(before);
                }
                self.upgrade = Some(asked);
                signal(&client.process, Signal::KILL);
            }
            Err(error) => asked.answer(&Err(format!("{error:#}"))),
        }
    }

    fn answer_upgrade(&mut self, outcome: Result<String, String>) {
        let Some(asked) = self.upgrade.take() else { return };
        if let Err(reason) = &outcome {
            let (program, instead) = (asked.program.display(), self.program.display());
            tracing::error!(%program, reason, %instead, "not upgraded");
        }
        asked.answer(&outcome);
    }

    /// `program` is not used any more, if it is what was asked for and never served.
    fn upgrade_failed(&mut self, program: &Path, served: bool, status: ExitStatus) {
        if !served && self.upgrade.as_ref().is_some_and(|asked| asked.program == program) {
            self.answer_upgrade(Err(format!("it ended before it served ({status}); see its log")));
        }
    }

    /// What the client before had read goes back into the kernel's queue: whoever waits for that can be killed while
    /// nobody serves, be it for as long as no master answers.
    fn release_waiting(&self) {
        if let Some(device) = self.descriptors.first().filter(|_| self.memory.init.is_some())
            && let Err(error) = resend(device.as_fd())
        {
            tracing::debug!(%error, "the next client asks for it again");
        }
    }

    fn remove_stored(&self) {
        if let Some(store) = &self.store {
            store::remove(store);
        }
    }

    /// Serves one client until it has ended.
    fn attend(&mut self, client: &mut Client, shutdown: &Shutdown) -> anyhow::Result<ExitStatus> {
        let mut told = false;
        loop {
            if shutdown.is_asked() && !std::mem::replace(&mut told, true) {
                if self.unmounts {
                    self.unmount_beside()?;
                } else {
                    signal(&client.process, Signal::TERM);
                }
            }
            self.waiting.look(&self.at, client.served);
            let control = self.control.as_ref().map(|control| control.socket.as_fd());
            let (said, asked) = readable(client.socket.as_fd(), control, LOOK)?;
            if asked && let Some(asked) = self.control.as_ref().and_then(Control::accept) {
                self.begin_upgrade(asked, client);
            }
            if !said {
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
                let init = self.memory.init.clone().unwrap_or_default();
                passing::send(client.socket.as_fd(), &Message::Grant(init), &all)
            }
            Message::Init(answer) if answer.len() == INIT_OUT_BYTES => {
                self.memory.keep_init(answer)?;
                passing::send(client.socket.as_fd(), &Message::Kept, &[])
            }
            Message::Serving => {
                client.served = true;
                let after = client.started.elapsed();
                let (pid, generation) = (client.process.id(), self.memory.generation);
                tracing::info!(pid, generation, ?after, at = %self.at.display(), "a client serves");
                if self.upgrade.as_ref().is_some_and(|asked| asked.program == client.program) {
                    self.program.clone_from(&client.program);
                    self.answer_upgrade(Ok(format!("client {pid}, generation {generation}")));
                }
                if self.wants_standby {
                    match self.start(&self.program.clone()) {
                        Ok(started) => self.standby = Some(started),
                        Err(error) => tracing::warn!(%error, "no client stands by"),
                    }
                }
                if let Some(ready) = self.ready.take() {
                    tune_readahead(&self.at);
                    ready();
                }
                Ok(())
            }
            Message::Init(_)
            | Message::Start(_)
            | Message::Grant(_)
            | Message::Kept
            | Message::Upgrade(_)
            | Message::Upgraded(_)
            | Message::NotUpgraded(_) => Err(io::Error::other("not a message of a client")),
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
        if let Some(store) = &self.store {
            store::put(store, &self.memory.fd, &self.descriptors);
        }
        self.listen();
        tracing::info!(at = %self.at.display(), descriptors = self.descriptors.len(), "mounted and held");
        Ok(())
    }

    /// The client ends when it is done. On a thread: what was written through mappings is sent first, to the client.
    fn unmount_beside(&self) -> anyhow::Result<()> {
        let at = self.at.clone();
        let unmount = move || {
            if let Err(error) = mount_point::unmount(&at) {
                tracing::warn!(%error, at = %at.display(), "still in use; detached, its users see ENOTCONN");
                if let Err(error) = mount_point::detach(&at) {
                    tracing::error!(%error, at = %at.display(), "stays mounted");
                }
            }
        };
        let started = std::thread::Builder::new().name("dfs-unmount".to_owned()).spawn(unmount);
        started.map(|_running| ()).context("start a thread that unmounts")
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
        if let Some(standby) = self.standby.take() {
            end(standby);
        }
        for name in ["mount-holder.pid", "mount.pid"] {
            if let Some(dir) = &self.pid_dir {
                let _absent = std::fs::remove_file(Path::new(dir).join(name));
            }
        }
    }
}

fn signal(process: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ended = rustix::process::kill_process(pid, signal);
    }
}

/// Ends one whose turn never came.
fn end(started: Started) {
    let Started { mut process, .. } = started;
    let _ended = process.kill();
    let _status = process.wait();
}

/// Which of the two something was said on.
fn readable(
    socket: BorrowedFd<'_>,
    other: Option<BorrowedFd<'_>>,
    at_most: Duration,
) -> io::Result<(bool, bool)> {
    let mut polled = vec![PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    polled.extend(other.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
    let at_most = Timespec::try_from(at_most).map_err(io::Error::other)?;
    match rustix::event::poll(&mut polled, Some(&at_most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut is_ready = polled.iter().map(|polled| !polled.revents().is_empty());
    Ok((is_ready.next().unwrap_or(false), is_ready.next().unwrap_or(false)))
}
