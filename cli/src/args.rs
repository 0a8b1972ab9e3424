//! The command line: every verb, flag and example. Help, shell completions and the man page are made from this.

pub(crate) mod jobs;
pub(crate) mod mount;
pub(crate) mod servers;
pub(crate) mod trash;
pub(crate) mod values;

use std::any::TypeId;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use mount::{MountArgs, UmountArgs};
use values::{
    parse_capacity, parse_chunk_size, parse_domain, parse_record_max, parse_server_wait,
    parse_socket, parse_time, whole,
};

/// A replicated POSIX file system: masters, chunkservers and a mount in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "dfs",
    version,
    max_term_width = 100,
    propagate_version = false,
    arg_required_else_help = true,
    after_help = "Examples:
  dfs up --dir ~/dfs --detach          start a master, three chunkservers and a mount at ~/dfs/mnt
  dfs status --dir ~/dfs               servers and the safety of the data
  dfs put notes.txt /notes.txt --dir ~/dfs
  dfs down --dir ~/dfs                 stop; the next `dfs up` serves the same data

Exit codes: 0 done, 1 refused or failed, 2 wrong usage."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands and their flags. Of the flags that all have in common a command hides those that it would refuse.
pub(crate) fn definitions() -> clap::Command {
    let mut all = Cli::command();
    let common: Vec<clap::Arg> =
        all.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    for (command, _) in FLAGS_USED {
        for flag in unused_flags(command) {
            let arg = common.iter().find(|arg| arg.get_long() == Some(flag)).cloned();
            all = all.mut_subcommand(command, |sub| sub.args(arg.map(|arg| arg.hide(true))));
        }
    }
    numbers_take_a_minus(all)
}

/// A number with a minus sign is a wrong value of its flag, not an unknown flag.
fn numbers_take_a_minus(command: clap::Command) -> clap::Command {
    command.mut_subcommands(numbers_take_a_minus).mut_args(|arg| match is_number(&arg) {
        true if arg.is_positional() => arg.allow_negative_numbers(true),
        true => arg.allow_hyphen_values(true),
        false => arg,
    })
}

fn is_number(arg: &clap::Arg) -> bool {
    let kind = arg.get_value_parser().type_id();
    [TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<Duration>()]
        .into_iter()
        .any(|number| kind == number)
}

const CLUSTER_FLAGS: [&str; 4] = ["dir", "master", "key-file", "server-wait"];

/// Commands that do not look at all of [`CLUSTER_FLAGS`], and at which they do.
const FLAGS_USED: [(&str, [bool; 4]); 11] = [
    ("up", [true, false, true, true]),
    ("supervise", [true, false, true, true]),
    ("down", [true, false, false, false]),
    ("bench", [true, false, false, false]),
    ("master", [true, false, true, false]),
    ("chunkserver", [true, true, true, false]),
    ("shell", [false; 4]),
    ("umount", [false; 4]),
    ("operator", [false; 4]),
    ("completions", [false; 4]),
    ("man", [false; 4]),
];

/// The flags that `command` would not look at.
pub(crate) fn unused_flags(command: &str) -> impl Iterator<Item = &'static str> {
    let used = FLAGS_USED.iter().find(|(name, _)| *name == command);
    let used = used.map_or([true; 4], |(_, used)| *used);
    CLUSTER_FLAGS.into_iter().zip(used).filter(|(_, used)| !used).map(|(flag, _)| flag)
}

/// Which cluster is meant. Flags win over the environment, a master's address over a directory.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Directory of a local cluster made by `dfs up` [env: DFS_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Address of a cluster's master [env: DFS_MASTER]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub master: Option<String>,
    /// File with the cluster key; default: cluster.key of the local cluster's directory [env: DFS_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// How long to wait for servers that do not answer, for example 30s or 5m; if given, also for a master that is not there yet
    /// [default: 10s; for `dfs mount` 5m]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_server_wait)]
    pub server_wait: Option<Duration>,
    /// The key itself, where somebody has got it already.
    #[arg(skip)]
    pub known_key: Option<dfs_service::conn::ClusterKey>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster on this machine and mount it
    Up(UpArgs),
    /// Stop the cluster of a directory and unmount it
    Down(DownArgs),
    /// Show servers and the safety of the data
    Status(StatusArgs),
    /// Predict what the death of chunkservers would do to the data; changes nothing
    #[command(name = "whatif")]
    WhatIf(crate::commands::whatif::WhatIfArgs),
    /// Check namespace, chunk map and replicas; exit code 0 only if all is clean
    Fsck(FsckArgs),
    /// Have a server fall silent, as a drill, and see what becomes of it
    Failover(servers::FailoverArgs),
    /// End a failover
    Recover(servers::RecoverArgs),
    /// Announce that a server is away for a while: nothing is copied because of it
    Maintenance(servers::MaintenanceArgs),
    /// Empty a server: every chunk on it gets a copy elsewhere
    Drain(servers::DrainArgs),
    /// Drain a server and take it out of the cluster for good
    Decommission(servers::DecommissionArgs),
    /// End a drain
    Undrain(servers::UndrainArgs),
    /// Move chunks until all servers are about equally full
    Rebalance(servers::RebalanceArgs),
    /// Say to which live server a client is sent
    Route(servers::RouteArgs),
    /// Read all replicas now and mend what is damaged
    Scrub(jobs::ScrubArgs),
    /// Show what happened to servers and chunks
    Events(servers::EventsArgs),
    /// Watch servers, chunks, rebuild and events in the terminal
    Top(servers::TopArgs),
    /// Long work over workers: create, report, take snapshots, look back
    Job(jobs::JobArgs),
    /// List jobs
    Jobs(jobs::JobsArgs),
    /// Deleted files that are kept for a while: list, restore, empty
    Trash(trash::TrashArgs),
    /// Commands from standard input, to a cluster of its own that ends with it
    Shell(crate::commands::shell::ShellArgs),
    /// Show what the master decided in a recording of its heartbeats
    Replay(servers::ReplayArgs),
    /// Measure a directory, with ratios to another in the same run
    Bench(crate::bench::BenchArgs),

    /// Copy a local file (or `-`, standard input) into the file system
    Put(PutArgs),
    /// Copy a file out of the file system (`-`: to standard output)
    Get(GetArgs),
    /// List a directory
    Ls(LsArgs),
    /// Make a directory
    Mkdir(MkdirArgs),
    /// Remove files or directories
    Rm(RmArgs),
    /// Rename or move; replaces an existing file, as rename(2) does
    Mv(MvArgs),
    /// Show the attributes of a file or directory
    Stat(StatArgs),
    /// Write files to standard output
    Cat(CatArgs),
    /// Say where a word stands in files: their servers look, and no content is moved
    Grep(crate::commands::grep::GrepArgs),
    /// Show which servers hold each chunk of a file
    Locate(LocateArgs),
    /// Say in words where a file's chunks are, why, and what would happen if a server died
    Explain(crate::commands::explain::ExplainArgs),
    /// Append standard input to a file and print the offset it got
    Append(AppendArgs),
    /// List the records of a file in a record log: where each begins and how long it is
    Records(crate::commands::records::RecordsArgs),

    /// Mount a cluster at a directory (foreground; SIGTERM unmounts cleanly)
    Mount(MountArgs),
    /// Unmount a directory, also one whose mount process is dead
    Umount(UmountArgs),
    /// Run one master (foreground; SIGTERM stops cleanly)
    Master(MasterArgs),
    /// Run one chunkserver (foreground; SIGTERM stops cleanly)
    Chunkserver(ChunkserverArgs),
    /// Run the Kubernetes operator, or print the definition of its resource
    Operator(crate::commands::operator::OperatorArgs),

    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page per command into a directory
    Man(ManArgs),
    /// Start and watch the processes of `dfs up --detach`
    #[command(hide = true)]
    Supervise(UpArgs),
}

/// Timing of heartbeats and repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Heartbeat 5 s, dead after 15 s, rebuild after 60 s
    Standard,
    /// Heartbeat 1 s, dead after 3 s, rebuild at once
    Drill,
    /// Heartbeat 1 s, dead after 10 s, rebuild after 60 s
    Router,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Drill => "drill",
            Self::Router => "router",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    /// Leave a dead process dead
    Never,
    /// Start it again, with growing pauses
    OnFailure,
}

impl Restart {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnFailure => "on-failure",
        }
    }
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  dfs up --dir ~/dfs                        in the foreground; Ctrl-C stops all in order
  dfs up --dir ~/dfs --detach               returns when the mount answers
  dfs up --dir ~/dfs --mount /mnt/dfs --chunkservers 5
  dfs up --dir /tmp/drill --profile drill   failures noticed after 3 s
  dfs up --dir ~/dfs --capacity 20GiB       no chunkserver holds more

--key-file gives a new cluster this key instead of a random one; --server-wait goes to the mount.")]
pub(crate) struct UpArgs {
    /// Where to mount [default: DIR/mnt]
    #[arg(long, value_name = "PATH")]
    pub mount: Option<PathBuf>,
    /// Number of chunkservers; more than last time adds new ones [default: as last time, at first 3]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=64))]
    pub chunkservers: Option<u32>,
    /// Timing of heartbeats and repair [default: as last time, at first standard]
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    #[command(flatten)]
    pub timing: servers::TimingArgs,
    /// Most that each chunkserver may hold, for example 20GiB [default: as last time, at first all the disk has]
    #[arg(long, value_name = "SIZE", value_parser = parse_capacity)]
    pub capacity: Option<u64>,
    /// Every replica is read and compared with its checksums within this; 0: never by itself [default: as last time, at first 14d]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub scrub_period: Option<Duration>,
    /// What happens to a process that ends by itself
    #[arg(long, value_enum, default_value = "on-failure")]
    pub restart: Restart,
    /// The mount outlives the process that serves it, as with `dfs mount --hold`
    #[arg(long, env = "DFS_HOLD")]
    pub hold: bool,
    /// Go on in the background once the mount answers
    #[arg(long)]
    pub detach: bool,
    /// Start although the end of the metadata log, or of a chunkserver's journal, is damaged or missing: what it held is lost
    #[arg(long)]
    pub accept_loss: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs down --dir ~/dfs
  DFS_DIR=~/dfs dfs down")]
pub(crate) struct DownArgs {
    /// How long each process may take to stop before it is killed
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// One JSON value for programs
    Json,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// How to print the result; in JSON a name that is no UTF-8 is there in hexadecimal digits too, as nameHex or pathHex
    /// (fromHex, toHex for copies)
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub format: Format,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Chunks and bytes of a server are those of its last heartbeat, whose age is beside them: what was
written or deleted since is not in them. The counts by safety are of now.

Examples:
  dfs status --dir ~/dfs
  dfs status --master 127.0.0.1:7000 --key-file cluster.key -o json"
)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Checks the metadata against itself and has every chunkserver read all its blocks, which takes as long as reading
the disks does. Bad blocks are mended from other replicas right away: a second check shows whether all could be.

Exit code: 0 clean, 1 something is wrong or could not be checked

Examples:
  dfs fsck --dir ~/dfs
  dfs fsck --dir ~/dfs -o json"
)]
pub(crate) struct FsckArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs put photo.jpg /photos/photo.jpg
  dfs put photo.jpg /photos/            keeps the name photo.jpg
  tar c src | dfs put - /src.tar")]
pub(crate) struct PutArgs {
    /// Local file, or `-` for standard input
    #[arg(value_name = "SRC")]
    pub src: PathBuf,
    /// Path in the file system; a directory keeps the name of SRC
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs get /photos/photo.jpg photo.jpg
  dfs get /src.tar - | tar t")]
pub(crate) struct GetArgs {
    /// Path in the file system
    pub path: OsString,
    /// Local file or directory, or `-` for standard output
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs ls /
  dfs ls -l /photos
  dfs ls -l -o json /photos")]
pub(crate) struct LsArgs {
    /// With kind, permissions, owner, size and time
    #[arg(short = 'l', long)]
    pub long: bool,
    /// Path in the file system
    #[arg(default_value = "/")]
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileLayout {
    /// Ordinary files
    Striped,
    /// Files that take records at their end and nothing else
    #[value(name = "recordlog")]
    RecordLog,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs mkdir /photos
  dfs mkdir -p /photos/2026/november
  dfs mkdir --chunk-size 1MiB /small    new files in it have chunks of 1 MiB
  dfs mkdir --layout recordlog --chunk-size 8KiB --record-max 2KiB /audit

Files of a record log take appends only: each `dfs append`, and each write(2) to a file opened with O_APPEND, is one record. A
record is never split: one that does not fit into the chunk begins the next one, and zeros fill what is left. Through a
mount a record has at most 1 MiB less 4 KiB: the kernel cuts longer writes, and a part is refused (EMSGSIZE).")]
pub(crate) struct MkdirArgs {
    /// How files made in it are laid out [default: as its parent]
    #[arg(long, value_enum)]
    pub layout: Option<FileLayout>,
    /// Longest record of a record log, at most a quarter of the chunk size and 4MiB [default: that much]
    #[arg(long, value_name = "SIZE", value_parser = parse_record_max)]
    pub record_max: Option<u64>,
    /// Bytes per chunk of files made in it, a power of two from 4KiB to 256MiB [default: as its parent]
    #[arg(long, value_name = "SIZE", value_parser = parse_chunk_size)]
    pub chunk_size: Option<u64>,
    /// Make missing parents too, and do not mind if it exists
    #[arg(short = 'p', long)]
    pub parents: bool,
    /// Paths in the file system
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs rm /photos/photo.jpg
  dfs rm -r /photos")]
pub(crate) struct RmArgs {
    /// Remove directories and everything in them
    #[arg(short = 'r', long)]
    pub recursive: bool,
    /// Do not mind if a path does not exist
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Paths in the file system
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs mv /draft.txt /final.txt
  dfs mv /final.txt /archive/      into a directory, under its own name")]
pub(crate) struct MvArgs {
    /// Path in the file system
    pub from: OsString,
    /// New path; a directory keeps the name
    pub to: OsString,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs stat /photos/photo.jpg
  dfs stat -o json /photos")]
pub(crate) struct StatArgs {
    /// Paths in the file system
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs cat /notes.txt
  dfs cat /logs/a /logs/b | sort")]
pub(crate) struct CatArgs {
    /// Paths in the file system
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs locate /photos/photo.jpg
  dfs locate -o json /photos/photo.jpg
  dfs locate --files /photos/photo.jpg  a line for each chunk file

A chunk file is an ordinary file on its server: byte n of the chunk is at byte 4194304 + n of it.")]
pub(crate) struct LocateArgs {
    /// Show the chunk's file on each server, and when the server's heartbeats last vouched for it
    #[arg(long)]
    pub files: bool,
    /// Path in the file system
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Of empty input nothing is appended: a file that is absent is made all the same, and the file's size is printed.

Examples:
  date | dfs append /journal.txt        prints the offset the bytes got
  dfs append -o json /journal.txt < record"
)]
pub(crate) struct AppendArgs {
    /// Path in the file system; made if absent
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  dfs master --data /var/lib/dfs/master --listen 127.0.0.1:7000
  dfs master --data /var/lib/dfs/master --listen 10.0.0.5:7000 --key-file /etc/dfs/cluster.key
  dfs master --data /var/lib/dfs/master --record /var/log/dfs/heartbeats.jsonl
  dfs master --stdio                heartbeats as JSON lines, one a line; docs/behaviours.md has a session"
)]
pub(crate) struct MasterArgs {
    #[command(subcommand)]
    pub action: Option<servers::MasterAction>,
    /// Directory for the log and the store
    #[arg(long, value_name = "DIR", required_unless_present = "stdio")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub lines: servers::LinesArgs,
    /// Address to serve; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7000", value_parser = parse_socket)]
    pub listen: SocketAddr,
    /// Write the address in use to this file once it is served
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Timing of heartbeats and repair
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: Profile,
    #[command(flatten)]
    pub timing: servers::TimingArgs,
    /// Replicas of every chunk
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<u32>(1..=16))]
    pub replication: u32,
    /// Reachable replicas needed to accept a write
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<u32>(1..=16))]
    pub min_replicas: u32,
    /// Give a file system that exists these numbers of replicas, too; without it they stay as they are
    #[arg(long)]
    pub change_replication: bool,
    /// Size of the chunks of files, unless their directory has another: a power of two from 4KiB to 256MiB; a file system
    /// in which something was made keeps its own
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_chunk_size)]
    pub chunk_size: u64,
    /// Start although the end of the metadata log is damaged or missing: what it held is lost
    #[arg(long)]
    pub accept_loss: bool,
    /// As `dfs shell` starts it: chunks may be of 32 bytes, new ones go to the servers with the fewest, and chunks of dead
    /// servers are not copied
    #[arg(long)]
    pub exercise: bool,
    #[command(flatten)]
    pub pages: PagesArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs chunkserver --data /var/lib/dfs/cs-1 --id cs-1 --master 127.0.0.1:7000
  dfs chunkserver --data /mnt/disk1 --id cs-4 --master 10.0.0.5:7000 \\
      --listen 10.0.0.9:7001 --key-file /etc/dfs/cluster.key")]
pub(crate) struct ChunkserverArgs {
    /// Directory for chunks and journal, on the disk to be used
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Name of this server: cs-1, cs-2, …
    #[arg(long, value_name = "ID")]
    pub id: dfs_core::ids::ServerId,
    /// Address to serve; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0", value_parser = parse_socket)]
    pub listen: SocketAddr,
    /// Address other processes reach this one at, if it is not the one it listens on
    #[arg(long, value_name = "IP:PORT", value_parser = parse_socket)]
    pub advertise: Option<SocketAddr>,
    /// Write the address in use to this file once it is served
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Use at most this much of the disk, for example 500GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_capacity)]
    pub capacity: Option<u64>,
    /// Failure domain, such as a room or a cloud's zone: copies of a chunk are spread over them
    #[arg(long, value_name = "NAME", default_value = "", value_parser = parse_domain)]
    pub zone: String,
    /// File whose content is the failure domain; waits until there is one in it
    #[arg(long, value_name = "FILE", conflicts_with = "zone")]
    pub zone_file: Option<PathBuf>,
    /// Machine it runs on: no two copies of a chunk on one, as long as there are others
    #[arg(long, value_name = "NAME", default_value = "", value_parser = parse_domain)]
    pub host: String,
    /// Every replica is read and compared with its checksums within this; 0: never by itself [default: 14d]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub scrub_period: Option<Duration>,
    /// Start although the journal is damaged or cut short, or the directory is an older copy: what is here is compared with the
    /// other copies before it is read
    #[arg(long)]
    pub accept_loss: bool,
    /// In a pod that the operator made: renew this Lease, of the pod that POD_NAMESPACE and POD_UID name
    #[arg(long, value_name = "NAME", hide = true)]
    pub kubernetes_lease: Option<String>,
    #[command(flatten)]
    pub pages: PagesArgs,
}

/// Pages for Prometheus and for probes.
#[derive(Args, Clone, Debug)]
pub(crate) struct PagesArgs {
    /// Serve /metrics, /healthz and /readyz over HTTP here, to whoever connects; port 0 takes a free one
    /// [default: not served]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_socket)]
    pub metrics: Option<SocketAddr>,
    /// Write the address of the pages to this file
    #[arg(long, value_name = "FILE", requires = "metrics", hide = true)]
    pub metrics_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs completions bash > /etc/bash_completion.d/dfs
  dfs completions zsh > ~/.zfunc/_dfs")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs man | man -l -
  dfs man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write dfs.1, dfs-up.1, … into this directory; made if it is missing, but not the one it lies in
    #[arg(value_name = "DIR")]
    pub pages: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    #[test]
    fn definitions_do_not_contradict_each_other() {
        definitions().debug_assert();
    }

    #[track_caller]
    fn check_help(command: &str, shown: &[&str], not_shown: &[&str]) {
        let help = definitions().try_get_matches_from(["dfs", command, "--help"]).unwrap_err();
        let help = help.render().to_string();
        for flag in shown {
            assert!(help.contains(flag), "{flag}: {help}");
        }
        for flag in not_shown {
            assert!(!help.contains(flag), "{flag}: {help}");
        }
    }

    #[test]
    fn help_names_the_flags_that_a_command_takes() {
        check_help("ls", &["--dir", "--master", "--key-file", "--server-wait"], &[]);
        check_help("down", &["--dir"], &["--master", "--key-file", "--server-wait"]);
        check_help("up", &["--dir", "--key-file", "--server-wait"], &["--master"]);
        check_help("umount", &[], &["--dir", "--master", "--key-file", "--server-wait"]);
        // It is taken still, to be refused with a reason.
        let matches = definitions().try_get_matches_from(["dfs", "down", "--master", "a:1"]);
        let cli = Cli::from_arg_matches(&matches.unwrap()).unwrap();
        assert_eq!(cli.cluster.master.as_deref(), Some("a:1"));
    }

    #[test]
    fn every_visible_command_shows_examples() {
        for command in definitions().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let line = format!("dfs {}", command.get_name());
            assert!(help.contains("Examples:") && help.contains(&line), "{line}: {help}");
        }
    }

    /// Every flag and argument that takes a number, a size or a time, with the words before it.
    fn numbers(of: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
        let mut places = words.to_vec();
        for arg in of.get_arguments().filter(|arg| is_number(arg)) {
            match arg.get_long() {
                Some(flag) => all.push([words, &[format!("--{flag}")]].concat()),
                None => {
                    all.push(places.clone());
                    places.push("1".to_owned());
                }
            }
        }
        for sub in of.get_subcommands() {
            numbers(sub, &[words, &[sub.get_name().to_owned()]].concat(), all);
        }
    }

    #[test]
    fn a_wrong_number_is_named_with_what_was_expected() {
        let mut all = Vec::new();
        numbers(&definitions(), &["dfs".to_owned()], &mut all);
        for flag in ["--server-wait", "--grace", "--chunkservers", "--capacity", "--workers"] {
            assert!(all.iter().any(|words| words.last().unwrap() == flag), "{flag}");
        }
        for words in all {
            for wrong in ["-1", "-1s", "x", "", "99999999999999999999999"] {
                let typed = words.iter().map(String::as_str).chain([wrong]);
                let error = definitions().try_get_matches_from(typed).unwrap_err();
                let said = error.render().to_string();
                // An argument in its place is told from a flag by its name alone.
                if wrong == "-1s" && !words.last().unwrap().starts_with("--") {
                    continue;
                }
                let expected = ["expected", "unknown unit"].iter().any(|word| said.contains(word));
                assert!(
                    said.contains(&format!("'{wrong}'")) && expected,
                    "{words:?} {wrong}: {said}"
                );
            }
        }
    }
}
