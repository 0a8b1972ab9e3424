//! Arguments of the commands about jobs.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use dfs_core::job::WORKERS_MAX;

use super::OutputArgs;
use super::values::whole;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs jobs
  dfs jobs -o json")]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Every chunkserver reads its replicas from the disk, all servers at once, and compares each block with its checksum; it stands
still while clients feel it. What is damaged is told to the master and mended from another member. It is a job, as `dfs jobs` shows:
it goes on when the command is interrupted and when the master is restarted. Without this command all that is done within
the --scrub-period of the chunkservers.

Examples:
  dfs scrub --now
  dfs scrub --now /projects         files below a directory
  dfs scrub --now --server cs-2     after its disk was in doubt"
)]
pub(crate) struct ScrubArgs {
    /// Begin at once, and wait until all is read
    #[arg(long, required = true)]
    pub now: bool,
    /// Only this file, or what is below this directory [default: all]
    pub path: Option<OsString>,
    /// Only replicas on this server
    #[arg(long, value_name = "ID")]
    pub server: Option<dfs_core::ids::ServerId>,
    /// Return when it has begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "A job is long work of N workers, numbered from 0. Each worker's state is how many subtasks it has completed, at first 0.
A snapshot is taken at no cost and numbered from 0; the state of any worker at any snapshot can be asked for later. All
of it is in the log: it outlives the master, which goes on with the next snapshot.

Examples:
  dfs job create --workers 3 --name 'nightly copy' -o json
  dfs job set-state 1 0 4           worker 0 of job 1 has completed 4 subtasks
  dfs job snapshot 1                prints the snapshot's number
  dfs job fetch-state 1 0 0         worker 0 of job 1 at snapshot 0
  dfs job history 1 0               all its changes
  dfs job show 1"
)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    pub verb: JobVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobVerb {
    /// Make a job and print its id
    #[command(after_help = "Examples:
  dfs job create --workers 10
  dfs job create --workers 3 --name 'nightly copy' -o json")]
    Create {
        /// Number of workers
        #[arg(long, value_name = "N", value_parser = whole(1..=WORKERS_MAX))]
        workers: u32,
        /// What it is for, at most 200 bytes
        #[arg(long, value_name = "TEXT", default_value = "")]
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say how many subtasks a worker has completed
    #[command(after_help = "Examples:
  dfs job set-state 1 0 4")]
    SetState {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
        /// The worker, from 0 on
        #[arg(value_name = "IDX", value_parser = whole(0..=u32::MAX))]
        worker: u32,
        /// Subtasks completed
        #[arg(value_parser = whole(0..=u64::MAX))]
        state: u64,
    },
    /// Take a snapshot of all workers' states and print its number
    #[command(after_help = "Examples:
  dfs job snapshot 1")]
    Snapshot {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a worker's state at a snapshot
    #[command(after_help = "Examples:
  dfs job fetch-state 1 0 0
  dfs job fetch-state 1 0           now")]
    FetchState {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
        /// The worker, from 0 on
        #[arg(value_name = "IDX", value_parser = whole(0..=u32::MAX))]
        worker: u32,
        /// The snapshot, from 0 on [default: none, the state now]
        #[arg(value_parser = whole(0..=u64::MAX))]
        snapshot: Option<u64>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a job and its workers
    #[command(after_help = "Examples:
  dfs job show 1
  dfs job show 1 --first 1000       the next thousand workers")]
    Show {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
        /// First worker shown
        #[arg(long, value_name = "IDX", default_value_t = 0, value_parser = whole(0..=u32::MAX))]
        first: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the changes of a worker's state, oldest first
    #[command(after_help = "Examples:
  dfs job history 1 0")]
    History {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
        /// The worker, from 0 on
        #[arg(value_name = "IDX", value_parser = whole(0..=u32::MAX))]
        worker: u32,
        /// Only the newest so many
        #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 1000, value_parser = whole::<u32>(1..=1000))]
        last: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Begin nothing new for a job; one of the master's own (drain, rebalance, scrub) stands still
    #[command(after_help = "Examples:
  dfs job pause 1")]
    Pause {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
    },
    /// Go on with a job that was paused
    #[command(after_help = "Examples:
  dfs job resume 1")]
    Resume {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
    },
    /// Say that a job is done; the master's own end by themselves
    #[command(after_help = "Examples:
  dfs job finish 1")]
    Finish {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
    },
    /// Give a job up; with one of the master's own its wish ends: cancelling a drain is `dfs undrain`
    #[command(after_help = "Examples:
  dfs job cancel 1")]
    Cancel {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
    },
    /// Remove a job that has ended, and its history
    #[command(after_help = "Examples:
  dfs job rm 1")]
    Rm {
        /// The job's id
        #[arg(value_parser = whole(0..=u64::MAX))]
        id: u64,
    },
}
