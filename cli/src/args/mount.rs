//! Arguments of the commands that mount.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::PagesArgs;
use super::values::{ClientUser, parse_size, parse_time, parse_user, whole};

#[derive(Args, Debug)]
#[command(
    override_usage = "dfs mount [OPTIONS] MASTER PATH\n       dfs mount [OPTIONS] --dir DIR PATH",
    after_help = "Examples:
  dfs mount 127.0.0.1:7000 /mnt/dfs --key-file cluster.key
  dfs mount --dir ~/dfs ~/second-mount
  dfs mount evict --dir ~/dfs 5d0f32a4c1b94c1f8f5f0a3a1e4b7c66
  dfs mount --hold --dir ~/dfs ~/second-mount
  dfs mount upgrade ~/second-mount --binary ./other/dfs

`evict` ends a mount that is gone, at once: its locks pass on. `dfs status` lists the ids."
)]
pub(crate) struct MountArgs {
    /// Address of the master (HOST:PORT) unless --master or --dir names the cluster, then an empty directory
    #[arg(required = true, num_args = 1..=2, value_name = "[MASTER] PATH")]
    pub targets: Vec<OsString>,
    /// Mount read-only
    #[arg(long)]
    pub read_only: bool,
    /// How requests of the kernel come in
    #[arg(long, value_enum, default_value = "auto", env = "DFS_TRANSPORT")]
    pub transport: crate::commands::mount::TransportName,
    /// The mount outlives the process that serves it: killed or replaced, it is followed by another one, and programs go
    /// on. What is written is on the servers before write returns; own transport only
    #[arg(long)]
    pub hold: bool,
    /// With --hold: where to write mount-holder.pid and mount.pid
    #[arg(long, value_name = "DIR")]
    pub pid_dir: Option<PathBuf>,
    /// With --hold: a process waits to serve when the one that does ends
    #[arg(long)]
    pub standby: bool,
    /// With --hold, by root: the process that serves runs as this user, without any privileges, and the holder mounts
    #[arg(long, value_name = "UID:GID", value_parser = parse_user)]
    pub client_user: Option<ClientUser>,
    /// With upgrade: the program to put in place [default: this one]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// The descriptor of a holder, which started this process
    #[arg(long, hide = true, value_name = "N")]
    pub held_by: Option<i32>,
    /// The descriptor of the cluster's key, of a holder whose user can read it
    #[arg(long, hide = true, value_name = "N")]
    pub held_key: Option<i32>,
    /// For tests: a file that says where the process that serves is to end
    #[arg(long, hide = true, value_name = "FILE")]
    pub exercise: Option<PathBuf>,
    /// Threads that serve the kernel, at least 2
    #[arg(long, value_name = "N", value_parser = whole::<u32>(2..=64))]
    pub threads: Option<u32>,
    /// Memory for written bytes not yet on the servers, for example 128MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub write_buffer: Option<u64>,
    /// Memory for bytes read ahead, for example 128MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub readahead: Option<u64>,
    /// How long the kernel may answer stat from memory; 0 asks the master each time
    /// [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub attr_ttl: Option<Duration>,
    /// How long the kernel may find names from memory; 0 asks the master each time [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub entry_ttl: Option<Duration>,
    #[command(flatten)]
    pub pages: PagesArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs umount ~/dfs/mnt")]
pub(crate) struct UmountArgs {
    /// Where it is mounted
    pub path: PathBuf,
}
