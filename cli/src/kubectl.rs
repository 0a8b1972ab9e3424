//! `kubectl dfs`: the same program under the name `kubectl-dfs`. Commands about the data go to the master through a
//! forwarded port, those about servers are annotations, as `kubectl annotate` makes them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use operator::crd::{DistributedFS, ServerStatus};
use operator::plugin::bundle;
use operator::plugin::{Choice, Plugin};

use crate::args::servers::TopArgs;
use crate::args::values::parse_time;
use crate::args::{ClusterArgs, CompletionsArgs, Format, LocateArgs, StatusArgs};
use crate::commands::explain::ExplainArgs;
use crate::commands::{explain, locate, status, top};
use crate::failure::{self, AlreadySaid};
use crate::output;

/// The name under which kubectl finds it, and the one under which kubectl asks it for completions.
const NAME: &str = "kubectl-dfs";
const COMPLETER: &str = "kubectl_complete-dfs";

/// A file system in Kubernetes.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl dfs",
    bin_name = "kubectl dfs",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:
  kubectl dfs status
  kubectl dfs failover cs-3 --for 10m -n storage
  kubectl dfs explain /photos/photo.jpg
  kubectl dfs report > report.tar"
)]
struct Cli {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "File system")]
struct PlaceArgs {
    /// Namespace of the file system [default: that of the kubeconfig's context]
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Its name [default: the only one of the namespace]
    #[arg(long, global = true, value_name = "NAME")]
    file_system: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "CONTEXT")]
    context: Option<String>,
    /// Which kubeconfig [default: as kubectl's]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show its conditions, servers and the safety of the data
    Status(StatusArgs),
    /// Show its servers with their pods, nodes and Leases
    Servers,
    /// Have servers fall silent, as a drill
    Failover {
        #[command(flatten)]
        which: ServersArgs,
        /// End it by itself after so long, for example 10m
        #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
        for_time: Option<Duration>,
        /// Although chunks lose their last copy, or cannot be written meanwhile
        #[arg(long)]
        force: bool,
    },
    /// End a failover
    Recover(ServersArgs),
    /// Empty servers: every chunk on them gets a copy elsewhere
    Drain {
        #[command(flatten)]
        which: ServersArgs,
        /// End a drain instead
        #[arg(long)]
        end: bool,
    },
    /// Show where the chunks of a file are
    Locate(LocateArgs),
    /// Say how safe a file is, and why its chunks are where they are
    Explain(ExplainArgs),
    /// Watch servers, data and rebuilds
    Top(TopArgs),
    /// Show on which nodes it is mounted, or a pod that uses it
    Mount {
        /// Print a pod of this name that uses the mount, for `kubectl apply -f -`
        #[arg(long, value_name = "NAME")]
        pod: Option<String>,
    },
    /// Write a tar archive of all that tells how it is, without secrets, to standard output or a file
    Report {
        #[arg(short = 'o', long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print a script with which a shell completes `kubectl-dfs`; kubectl itself wants it under the name kubectl_complete-dfs
    Completion(CompletionsArgs),
}

#[derive(Args, Debug)]
struct ServersArgs {
    /// Which servers: cs-1, cs-2, …
    #[arg(value_name = "SERVER", required = true)]
    servers: Vec<dfs_core::ids::ServerId>,
    /// How long to wait until the operator takes the command
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    wait: Duration,
}

/// What this process was called as.
pub(crate) enum Called {
    Itself,
    Plugin,
    Completer,
}

pub(crate) fn called(name: Option<&OsString>) -> Called {
    let name = name.and_then(|name| PathBuf::from(name).file_name().map(ToOwned::to_owned));
    match name.as_deref().and_then(|name| name.to_str()) {
        Some(NAME) => Called::Plugin,
        Some(COMPLETER) => Called::Completer,
        Some(_) | None => Called::Itself,
    }
}

/// Parses the command line and runs it.
///
/// # Errors
/// Wrong usage as `Err(Ok(..))`, everything else as `Err(Err(..))`.
pub(crate) fn main() -> Result<(), Result<clap::Error, anyhow::Error>> {
    let parsed = Cli::command().try_get_matches();
    let cli = parsed.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(Ok)?;
    run(&cli).map_err(Err)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let Cli { place, verb } = cli;
    if let Verb::Completion(CompletionsArgs { shell }) = verb {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command().name(NAME), NAME, &mut script);
        return output::text(&String::from_utf8_lossy(&script));
    }
    let plugin = Plugin::connect(&choice(place))?;
    match verb {
        Verb::Status(args) => {
            let fs = plugin.resource()?;
            if matches!(args.output.format, Format::Table) {
                output::text(&conditions(&fs))?;
            }
            status::run(&cluster(&plugin)?, args)
        }
        Verb::Servers => {
            let status = plugin.resource()?.status.unwrap_or_default();
            output::text(&table(&status.servers))
        }
        Verb::Failover { which, for_time, force } => {
            let mut value = listed(which);
            if let Some(time) = for_time {
                value = format!("{value};for={}s", time.as_secs().max(1));
            }
            if *force {
                value.push_str(";force");
            }
            annotate(&plugin, "failover", &value, which.wait)
        }
        Verb::Recover(which) => annotate(&plugin, "recover", &listed(which), which.wait),
        Verb::Drain { which, end } => {
            let end = if *end { ";end" } else { "" };
            annotate(&plugin, "drain", &format!("{}{end}", listed(which)), which.wait)
        }
        Verb::Locate(args) => locate::run(&cluster(&plugin)?, args),
        Verb::Explain(args) => explain::run(&cluster(&plugin)?, args),
        Verb::Top(args) => top::run(&cluster(&plugin)?, args),
        Verb::Mount { pod } => mount(&plugin, pod.as_deref()),
        Verb::Report { output } => report(&plugin, output.as_deref()),
        // Above: it asks nobody.
        Verb::Completion(_) => Ok(()),
    }
}

fn choice(place: &PlaceArgs) -> Choice {
    let PlaceArgs { namespace, file_system, context, kubeconfig } = place.clone();
    Choice { kubeconfig, context, namespace, file_system }
}

/// Its master, behind a forwarded port.
fn cluster(plugin: &Plugin) -> anyhow::Result<ClusterArgs> {
    let key = plugin.key()?;
    let address = plugin.forward()?;
    Ok(ClusterArgs {
        master: Some(address.to_string()),
        known_key: Some(key),
        ..ClusterArgs::default()
    })
}

fn listed(which: &ServersArgs) -> String {
    which.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn annotate(plugin: &Plugin, name: &str, value: &str, wait: Duration) -> anyhow::Result<()> {
    let last = plugin.command(name, value, wait)?;
    if last.result == "Done" {
        return output::line(&last.message);
    }
    anyhow::bail!("{name}={value}: {}: {}", last.result.to_lowercase(), last.message)
}

fn conditions(fs: &DistributedFS) -> String {
    let status = fs.status.clone().unwrap_or_default();
    let mut rows = vec![["CONDITION", "STATUS", "REASON", "MESSAGE"].map(str::to_owned).to_vec()];
    rows.extend(status.conditions.into_iter().map(|condition| {
        vec![condition.type_, condition.status, condition.reason, condition.message]
    }));
    let mut text = output::columns(&rows, &[]);
    if let Some(last) = status.last_command {
        text.push_str(&format!(
            "\nlast command  {}={} at {}: {}: {}\n",
            last.name, last.value, last.requested_at, last.result, last.message
        ));
    }
    text.push('\n');
    text
}

fn table(servers: &[ServerStatus]) -> String {
    let head = ["SERVER", "STATE", "NODE", "POD", "CHUNKS", "USED", "FREE", "LEASE", "WISHES"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let size = |bytes: i64| output::bytes(u64::try_from(bytes).unwrap_or(0));
    rows.extend(servers.iter().map(|server| {
        vec![
            server.name.clone(),
            server.state.clone(),
            server.node.clone().unwrap_or_default(),
            server.pod.clone().unwrap_or_default(),
            server.chunks.to_string(),
            size(server.used_bytes),
            size(server.free_bytes),
            server.lease.clone().unwrap_or_default(),
            server.overlays.join(","),
        ]
    }));
    output::columns(&rows, &[4, 5, 6])
}

fn mount(plugin: &Plugin, pod: Option<&str>) -> anyhow::Result<()> {
    let fs = plugin.resource()?;
    anyhow::ensure!(
        fs.spec.mount.enabled,
        "{} is mounted nowhere: spec.mount.enabled is false",
        plugin.name
    );
    let dir = operator::names::host_dir(&fs);
    if let Some(pod) = pod {
        return output::text(&sample(plugin, pod, &dir));
    }
    let mounts = plugin.mounts()?;
    let mut rows = vec![["NODE", "POD", "READY", "DIRECTORY"].map(str::to_owned).to_vec()];
    rows.extend(mounts.into_iter().map(|mount| {
        let ready = if mount.ready { "yes" } else { "no" };
        let place = mount.problem.unwrap_or_else(|| format!("{dir}/mnt"));
        vec![mount.node, mount.pod, ready.to_owned(), place]
    }));
    output::text(&output::columns(&rows, &[]))
}

/// Through the directory above the mount, so that a mount that came anew is seen.
fn sample(plugin: &Plugin, pod: &str, dir: &str) -> String {
    let namespace = &plugin.namespace;
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  namespace: {namespace}
spec:
  containers:
  - name: main
    image: busybox:stable
    command: [sh, -c, \"ls -l /dfs/mnt; sleep 1000000\"]
    volumeMounts:
    - {{name: dfs, mountPath: /dfs, mountPropagation: HostToContainer}}
  volumes:
  - name: dfs
    hostPath: {{path: {dir}, type: Directory}}
"
    )
}

fn report(plugin: &Plugin, file: Option<&std::path::Path>) -> anyhow::Result<()> {
    let mut files = plugin.bundle()?;
    let told = cluster(plugin).and_then(|cluster| status::as_json(&cluster));
    files.push(match told {
        Ok(json) => ("master-status.json".to_owned(), json),
        Err(error) => ("master-silent.txt".to_owned(), format!("{error:#}\n")),
    });
    // Who may not read the key cannot have it in what he reads either, but for a log that says it.
    let key = plugin.key_text().unwrap_or_default();
    let files = bundle::without(files, &key);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let root = format!("dfs-report-{}", plugin.name);
    let bytes = bundle::archive(&root, &files, now.map_or(0, |since| since.as_secs()))?;
    match file {
        Some(file) => {
            std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))?;
            output::line(&format!("{}: {} files", file.display(), files.len()))
        }
        None => {
            use std::io::{IsTerminal as _, Write as _};
            if std::io::stdout().is_terminal() {
                return failure::fail_usage(
                    "usage: an archive is nothing for a terminal",
                    "give a file with --output FILE, or redirect it",
                );
            }
            output::written(std::io::stdout().write_all(&bytes))
        }
    }
}

/// What kubectl asks for when somebody presses Tab: the words so far as arguments, the last one unfinished. Names are
/// printed, then what the shell should do besides: 4, nothing.
pub(crate) fn complete(words: &[String]) -> Result<(), AlreadySaid> {
    let (last, before) =
        words.split_last().map_or(("", words), |(last, rest)| (last.as_str(), rest));
    let command = Cli::command();
    let verbs: Vec<String> =
        command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let verb = before.iter().find(|word| verbs.contains(word));
    let names = match verb.map(String::as_str) {
        None => verbs,
        Some("failover" | "recover" | "drain") => {
            let after = |flags: &[&str]| {
                let at = before.iter().position(|word| flags.contains(&word.as_str()))?;
                before.get(at + 1).cloned()
            };
            let choice = Choice {
                namespace: after(&["-n", "--namespace"]),
                context: after(&["--context"]),
                file_system: after(&["--file-system"]),
                kubeconfig: after(&["--kubeconfig"]).map(PathBuf::from),
            };
            let resource = Plugin::connect(&choice).and_then(|plugin| plugin.resource());
            let status = resource.ok().and_then(|fs| fs.status).unwrap_or_default();
            status.servers.into_iter().map(|server| server.name).collect()
        }
        Some(_) => Vec::new(),
    };
    let mut text = String::new();
    for name in names.iter().filter(|name| name.starts_with(last)) {
        text.push_str(name);
        text.push('\n');
    }
    text.push_str(":4\n");
    output::text(&text).map_err(|_| AlreadySaid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plugin_by_its_name_only() {
        let called = |name: &str| called(Some(&OsString::from(name)));
        assert!(matches!(called("/usr/local/bin/kubectl-dfs"), Called::Plugin));
        assert!(matches!(called("kubectl_complete-dfs"), Called::Completer));
        for other in ["dfs", "/kubectl-dfs/dfs", "kubectl-dfs2", ""] {
            assert!(matches!(called(other), Called::Itself), "{other}");
        }
    }

    #[test]
    fn every_verb_has_a_line_of_help_and_flags_go_anywhere() {
        Cli::command().debug_assert();
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let cli = parse("kubectl-dfs failover cs-1 cs-2 --for 10m -n storage --force").unwrap();
        assert_eq!(cli.place.namespace.as_deref(), Some("storage"));
        let Verb::Failover { which, for_time, force } = cli.verb else { panic!() };
        assert_eq!((listed(&which).as_str(), force), ("cs-1,cs-2", true));
        assert_eq!(for_time, Some(Duration::from_secs(600)));
        assert!(parse("kubectl-dfs failover").is_err());
        let wrong = parse("kubectl-dfs failover server-1").unwrap_err().to_string();
        assert!(wrong.contains("server-1"), "{wrong}");
    }
}
