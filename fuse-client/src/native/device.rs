//! `/dev/fuse`: opened, mounted, cloned, read and written.

use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::fs::OFlags;
use rustix::io::Errno as OsErrno;
use rustix::mount::MountFlags;

use super::abi;
use super::reply::header;
use crate::mount_point;

const DEVICE: &str = "/dev/fuse";
/// Where fusermount3 finds the socket for the descriptor.
const COMM_FD: &str = "_FUSE_COMMFD";

fn open_device() -> io::Result<OwnedFd> {
    // The standard library opens close-on-exec.
    Ok(std::fs::File::options().read(true).write(true).open(DEVICE)?.into())
}

/// Mounts at `at` and returns the connection.
pub(crate) fn mount(at: &Path, read_only: bool) -> anyhow::Result<OwnedFd> {
    let mut options = String::from("default_permissions");
    if mount_point::may_allow_other() {
        options.push_str(",allow_other");
    }
    if !rustix::process::geteuid().is_root() {
        return mount_by_helper(at, &options, read_only);
    }
    let device = open_device().with_context(|| format!("open {DEVICE}"))?;
    let mode = std::fs::metadata(at).with_context(|| format!("look at {}", at.display()))?.mode();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let fd = device.as_raw_fd();
    write!(options, ",fd={fd},rootmode={mode:o},user_id={uid},group_id={gid}")
        .context("options")?;
    // Atimes are not kept on reads (docs/semantics.md): the kernel need not try.
    let mut flags = MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let options = std::ffi::CString::new(options).context("options")?;
    rustix::mount::mount("dfs", at, "fuse.dfs", flags, Some(options.as_c_str()))
        .with_context(|| format!("mount {}", at.display()))?;
    Ok(device)
}

/// Says so if an administrator set a limit that ends mounts on which a program waits for a lock.
pub(crate) fn warn_of_time_limits() {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let path = format!("/proc/sys/fs/fuse/{name}");
        let seconds = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        if let Some(seconds @ 1_u64..) = seconds {
            tracing::warn!(
                seconds,
                path,
                "the kernel ends this mount when a request takes longer than that, such as a wait for a lock; set it to 0"
            );
        }
    }
}

/// For ordinary users fusermount3 mounts, which is set-uid, and sends the connection back.
fn mount_by_helper(at: &Path, options: &str, read_only: bool) -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().context("make a socket pair")?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).context("fcntl")?;
    let mut options = format!("fsname=dfs,subtype=dfs,noatime,{options}");
    if read_only {
        options.push_str(",ro");
    }
    let helper = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(at)
        .env(COMM_FD, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run fusermount3 (package fuse3)")?;
    drop(theirs);
    let received = super::passing::receive_bytes(ours.as_fd());
    drop(ours);
    let output = helper.wait_with_output().context("wait for fusermount3")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "fusermount3: {}", said.trim());
    let (_, descriptors) = received.context("receive the connection from fusermount3")?;
    descriptors.into_iter().next().context("fusermount3 sent no connection")
}

/// Another descriptor of the same connection, with a queue of its own for requests under way.
#[expect(unsafe_code, reason = "ioctl(2) of the device")]
pub(crate) fn clone(of: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = open_device()?;
    let fd = of.as_raw_fd().cast_unsigned();
    // SAFETY: the request reads one `u32`, which lives until it returns.
    match unsafe { libc::ioctl(clone.as_raw_fd(), abi::DEV_IOC_CLONE, &raw const fd) } {
        0 => Ok(clone),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads one request: `None` when the mount is gone.
pub(super) fn read(device: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::io::read(device, &mut *buffer) {
            Ok(len) => return Ok(Some(len)),
            // ENOENT: the request was withdrawn while it was copied.
            Err(OsErrno::INTR | OsErrno::AGAIN | OsErrno::NOENT) => {}
            Err(OsErrno::NODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What [`read_waiting`] found.
pub(super) enum Waiting {
    Request(usize),
    Nothing,
    /// The mount is gone.
    Ended,
}

/// Reads a request that waits already.
pub(super) fn read_waiting(device: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Waiting> {
    loop {
        let flags = rustix::fs::fcntl_getfl(device)?;
        rustix::fs::fcntl_setfl(device, flags | OFlags::NONBLOCK)?;
        let read = rustix::io::read(device, &mut *buffer);
        rustix::fs::fcntl_setfl(device, flags)?;
        match read {
            Ok(len) => return Ok(Waiting::Request(len)),
            Err(OsErrno::AGAIN) => return Ok(Waiting::Nothing),
            // ENOENT: the request was withdrawn while it was copied.
            Err(OsErrno::INTR | OsErrno::NOENT) => {}
            Err(OsErrno::NODEV) => return Ok(Waiting::Ended),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Answers `unique`, or notifies with `unique` 0.
pub(super) fn write(
    device: BorrowedFd<'_>,
    unique: u64,
    error: i32,
    body: &[u8],
) -> rustix::io::Result<()> {
    let header = header(unique, error, body.len());
    let parts = [IoSlice::new(&header), IoSlice::new(body)];
    let parts = if body.is_empty() { &parts[..1] } else { &parts };
    loop {
        match rustix::io::writev(device, parts) {
            Err(OsErrno::INTR) => {}
            written => return written.map(|_| ()),
        }
    }
}
