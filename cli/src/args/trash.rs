//! Arguments of `dfs trash`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::OutputArgs;
use super::values::{parse_time, whole};

#[derive(Args, Debug)]
#[command(
    after_help = "Off unless set. While it is on, a file that loses its last name, by rm or because something was renamed over it, is kept for
that time with its content; it counts as used space. Symbolic links, directories and special files are not kept.

Examples:
  dfs trash keep 7d                 what is deleted from now on is kept for a week
  dfs trash ls
  dfs trash restore 12              where it was
  dfs trash restore 12 /old/a.txt   elsewhere
  dfs trash empty --older 2d
  dfs trash keep 0                  nothing more is kept"
)]
pub(crate) struct TrashArgs {
    #[command(subcommand)]
    pub verb: TrashVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TrashVerb {
    /// List deleted files that are kept, oldest first
    #[command(after_help = "Examples:
  dfs trash ls
  dfs trash ls -o json")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Set for how long what is deleted from now on is kept; 0: not at all
    #[command(after_help = "Examples:
  dfs trash keep 7d
  dfs trash keep 0")]
    Keep {
        /// For example 7d
        #[arg(value_name = "TIME", value_parser = parse_time)]
        time: Duration,
    },
    /// Give a deleted file its name back
    #[command(after_help = "Examples:
  dfs trash restore 12
  dfs trash restore 12 /old/a.txt")]
    Restore {
        /// Its number in `dfs trash ls`
        #[arg(value_parser = whole(1..=u64::MAX))]
        number: u64,
        /// Where to; nothing may be there [default: where it was]
        path: Option<OsString>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete for good: all that is kept, or a part of it
    #[command(after_help = "Examples:
  dfs trash empty
  dfs trash empty 12 13
  dfs trash empty --older 2d")]
    Empty {
        /// Numbers in `dfs trash ls` [default: all]
        #[arg(value_parser = whole(1..=u64::MAX))]
        numbers: Vec<u64>,
        /// Only what was deleted so long ago
        #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "numbers")]
        older: Option<Duration>,
        #[command(flatten)]
        output: OutputArgs,
    },
}
