//! Arguments of the commands about servers.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use dfs_core::cluster::LivenessProfile;
use dfs_core::ids::ServerId;

use super::OutputArgs;
use super::values::{parse_server_wait, parse_time, whole};
use crate::failure::fail_usage;

#[derive(Args, Debug)]
#[command(
    after_help = "A drill for real: the server, told by the master, sends no heartbeats and refuses data until `dfs recover`. The master is not
told that it is gone: it finds out by the ordinary silence. The wish is in the log and outlives restarts.

Refused if a chunk would lose its last copy, or have fewer copies than a write needs; --force does it all the same.

Examples:
  dfs failover cs-3                 prints when it was noticed and when all chunks were safe again
  dfs failover cs-3 --for 10m       ends by itself
  dfs failover cs-3 --no-wait -o json"
)]
pub(crate) struct FailoverArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    /// End it by itself after so long, for example 10m
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    pub for_time: Option<Duration>,
    /// Although chunks lose their last copy, or cannot be written meanwhile
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs recover cs-3                  prints when it was alive and when all chunks were safe again")]
pub(crate) struct RecoverArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    #[command(flatten)]
    pub wait: WaitArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct WaitArgs {
    /// Return when the wish is logged
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Watch for at most so long; the wish stays
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    pub wait: Duration,
}

#[derive(Args, Debug)]
#[command(
    after_help = "What the server holds is not copied to others while it is away, except chunks with one copy left; new chunks go to other
servers if there are enough.

Examples:
  dfs maintenance cs-2 --for 30m
  dfs maintenance cs-2 --end"
)]
pub(crate) struct MaintenanceArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    /// How long, for example 30m
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time, required_unless_present = "end")]
    pub for_time: Option<Duration>,
    /// It is done before its time
    #[arg(long, conflicts_with = "for_time")]
    pub end: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Every chunk that has a copy on the server gets one elsewhere, and then gives up the one there; no new chunks go to it. The
server reads and writes all the time, and no chunk has fewer copies meanwhile. Copies of chunks that lack one go first.

The wish is in the log: interrupting the command, or restarting the master, does not end it. Given again, it goes on watching.
Refused if too few servers would be left for all copies, or too little room.

Examples:
  dfs drain cs-3                    waits until no chunk has a copy on it
  dfs drain cs-3 --no-wait
  dfs undrain cs-3                  new chunks go to it again"
)]
pub(crate) struct DrainArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    /// Return when the wish is logged
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Drains the server, as `dfs drain` does, and takes it out of the cluster when no chunk lists it any more. For good: its data
directory is not used again, and a chunkserver started with it is told so. A server that is dead goes as soon as all its chunks
have their copies elsewhere.

Interrupted, it leaves a server that is drained; given again, it goes on. Refused as a drain is, and for a dead server that has
the last copy of a chunk.

Examples:
  dfs decommission cs-3"
)]
pub(crate) struct DecommissionArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Moves chunks from the servers that are fullest, by the share of their disk, to the emptiest, until they differ by 3 % of a
disk or no chunk can move. After all that is more urgent, and at most eight chunks at once. Zones and hosts stay apart.

It is a job, as `dfs jobs` shows: it goes on when the command is interrupted or the master restarted, until it is done or --stop.

Examples:
  dfs rebalance --dry-run           how full they are, and how much would move
  dfs rebalance
  dfs rebalance --stop"
)]
pub(crate) struct RebalanceArgs {
    /// Show how full the servers are; change nothing
    #[arg(long, conflicts_with_all = ["stop", "no_wait"])]
    pub dry_run: bool,
    /// Move no more
    #[arg(long, conflicts_with = "no_wait")]
    pub stop: bool,
    /// Return when it has begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "What was moved stays where it is.

Examples:
  dfs undrain cs-3")]
pub(crate) struct UndrainArgs {
    /// Which server: cs-1, cs-2, …
    #[arg(value_name = "SERVER")]
    pub server: ServerId,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Servers found suspect, dead or alive, wishes, configuration changes and losses, oldest first. The newest ten thousand are
kept, over restarts of the master. With -o json one object a line.

Examples:
  dfs events
  dfs events -n 100
  dfs events -f -o json"
)]
pub(crate) struct EventsArgs {
    /// Go on with those to come, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only the newest so many; 0: all
    #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 50, value_parser = whole(0..=u32::MAX))]
    pub last: u32,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Servers with their states and what clients read and write there, chunks by safety, what is being copied and how long
that takes, and the last events. Keys: q ends it, up and down move through the servers.

Examples:
  dfs top
  dfs top --interval 5s --master 10.0.0.5:7000 --key-file /etc/dfs/cluster.key"
)]
pub(crate) struct TopArgs {
    /// Between two questions to the master
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_server_wait)]
    pub interval: Duration,
}

#[derive(Subcommand, Debug)]
pub(crate) enum MasterAction {
    /// Make a master's lost directory anew from the copies that two of the chunkservers hold
    #[command(
        after_help = "Of what the master logged in its last second the copies may lack something: what was made, renamed or grown then. Name
all chunkservers; the copy that reaches furthest is taken, and checked. The old directory, if there is one, is left alone:
move it aside. Then start the master in the new one.

Examples:
  dfs master restore --data /var/lib/dfs/master --from 10.0.0.9:7001,10.0.0.10:7001 --key-file /etc/dfs/cluster.key
  dfs master restore --data ~/dfs/master --from 127.0.0.1:40123 --from 127.0.0.1:40125 --dir ~/dfs"
    )]
    Restore(MasterRestoreArgs),
}

#[derive(Args, Debug)]
pub(crate) struct MasterRestoreArgs {
    /// The directory to make; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Addresses of chunkservers
    #[arg(long, value_name = "HOST:PORT", required = true, value_delimiter = ',')]
    pub from: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteStrategy {
    /// Cluster (CLIENT_ID - 1) mod n + 1 of the n registered servers, alive or not
    Modulo,
    /// The live server with the highest weight for this client: a death moves the dead server's clients only
    Rendezvous,
}

#[derive(Args, Debug)]
#[command(
    after_help = "The answer is the master's of this moment: the servers it has registered, and whether they are alive by their heartbeats. Without
a live server for the client nothing is printed but the reason.

Exit code: 0 there is a server, 1 there is none (or, with --check, it does not answer)

Examples:
  dfs route 7                       server and address
  dfs route --strategy modulo --explain 7
  dfs route --check -o json 7       only if the server answers by itself"
)]
pub(crate) struct RouteArgs {
    /// Number of the client, from 1 on
    #[arg(value_name = "CLIENT_ID", value_parser = whole::<u64>(1..=u64::MAX))]
    pub client: u64,
    /// How the server is chosen
    #[arg(long, value_enum, default_value = "rendezvous")]
    pub strategy: RouteStrategy,
    /// Show all servers and what decided
    #[arg(long)]
    pub explain: bool,
    /// Connect to the server too: what the master believes may be older than its death
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Timing that differs from the profile's.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct TimingArgs {
    /// Time between heartbeats, for example 500ms [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub heartbeat_interval: Option<Duration>,
    /// Silence after which a server is dead, at least three intervals [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub dead_after: Option<Duration>,
    /// How long chunks may have too few copies before others are made [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub rebuild_delay: Option<Duration>,
}

impl TimingArgs {
    /// The profile of this name with what differs.
    pub(crate) fn profile(self, name: &str) -> anyhow::Result<LivenessProfile> {
        let Self { heartbeat_interval, dead_after, rebuild_delay } = self;
        let millis = |time: Option<Duration>, else_ms: u64| {
            time.map_or(else_ms, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        };
        let named = LivenessProfile::named(name)?;
        let profile = LivenessProfile {
            interval_ms: millis(heartbeat_interval, named.interval_ms),
            dead_after_ms: millis(dead_after, named.dead_after_ms),
            rebuild_delay_ms: millis(rebuild_delay, named.rebuild_delay_ms),
        };
        match profile.check() {
            Ok(profile) => Ok(profile),
            Err(error) => fail_usage(
                format!("usage: {error}"),
                "give both, for example --heartbeat-interval 2s --dead-after 6s",
            ),
        }
    }

    /// As the arguments that say the same.
    pub(crate) fn arguments(self) -> Vec<String> {
        let Self { heartbeat_interval, dead_after, rebuild_delay } = self;
        let named = [
            ("--heartbeat-interval", heartbeat_interval),
            ("--dead-after", dead_after),
            ("--rebuild-delay", rebuild_delay),
        ];
        let given = named.into_iter().filter_map(|(name, time)| Some((name, time?)));
        given
            .flat_map(|(name, time)| [name.to_owned(), format!("{}ms", time.as_millis())])
            .collect()
    }

    /// What is given here, otherwise what `before` has.
    pub(crate) fn or(self, before: Self) -> Self {
        Self {
            heartbeat_interval: self.heartbeat_interval.or(before.heartbeat_interval),
            dead_after: self.dead_after.or(before.dead_after),
            rebuild_delay: self.rebuild_delay.or(before.rebuild_delay),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_timing_replaces_the_profiles_and_is_checked_with_it() {
        let time = |millis| Some(Duration::from_millis(millis));
        let timing = TimingArgs { heartbeat_interval: time(500), ..TimingArgs::default() };
        let profile = timing.profile("drill").unwrap();
        assert_eq!((profile.interval_ms, profile.dead_after_ms), (500, 3_000));
        assert_eq!(timing.arguments(), ["--heartbeat-interval", "500ms"]);
        let tight = TimingArgs { dead_after: time(2_999), ..TimingArgs::default() };
        let error = format!("{:#}", tight.profile("drill").unwrap_err());
        assert!(error.contains("2999 ms") && error.contains("three"), "{error}");
        let both = tight.or(timing);
        assert_eq!((both.heartbeat_interval, both.dead_after), (time(500), time(2_999)));
        assert!(both.profile("drill").is_ok());
        let zero = TimingArgs { heartbeat_interval: time(0), ..TimingArgs::default() };
        assert!(zero.profile("drill").is_err());
    }
}

#[derive(Args, Debug)]
pub(crate) struct LinesArgs {
    /// Serve nobody: answer heartbeats that come as JSON lines on standard input, until it ends
    #[arg(long, conflicts_with_all = ["data", "listen", "address_file", "record", "metrics", "metrics_file"])]
    pub stdio: bool,
    /// With --stdio: time passes only by messages `{"type": "advance", "ms": N}`
    #[arg(long, requires = "stdio")]
    pub stopped_clock: bool,
    /// Add all heartbeats to this file, for `dfs replay`
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "The recording is what `dfs master --record FILE` wrote. It goes through the detector and the planner that the master has, with the
times it has: who was dead since when, what was to be copied and deleted.

Examples:
  dfs replay /var/log/dfs/heartbeats.jsonl
  dfs replay --profile drill incident.jsonl"
)]
pub(crate) struct ReplayArgs {
    /// The recording; `-`: standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Timing of heartbeats and repair
    #[arg(long, value_enum, default_value = "standard")]
    pub profile: super::Profile,
    #[command(flatten)]
    pub timing: TimingArgs,
    /// Replicas of every chunk
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<u32>(1..=16))]
    pub replication: u32,
}
