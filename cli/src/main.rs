//! `dfs`, the one binary: parses arguments, runs one verb, says in one line what went wrong.

mod admin;
mod args;
mod bench;
mod cluster;
mod commands;
mod failure;
mod files;
mod kubectl;
mod local;
mod mount_point;
mod output;
mod process;
mod progress;
mod remote_path;
mod servers;
mod supervisor;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
#[path = "../../tests/fuzz/engine.rs"]
mod fuzz_engine;

use std::io::Write as _;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use args::{Cli, Command};
use failure::say_error;

const FAILED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    abort_on_panic();
    match kubectl::called(std::env::args_os().next().as_ref()) {
        kubectl::Called::Itself => {}
        kubectl::Called::Plugin => return as_plugin(),
        kubectl::Called::Completer => {
            let words: Vec<String> = std::env::args().skip(1).collect();
            return kubectl::complete(&words)
                .map_or(ExitCode::from(FAILED), |()| ExitCode::SUCCESS);
        }
    }
    let parsed = args::definitions().try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, None),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<failure::AlreadySaid>() => ExitCode::from(FAILED),
        Err(error) => {
            let serves = matches!(cli.command, Command::Master(_) | Command::Chunkserver(_));
            let page =
                if serves { failure::page_of_server(&error) } else { failure::page_of(&error) };
            let see = page.map_or_else(String::new, |page| format!("; see {page}"));
            say_error(&failure::one_line(&format!("{error:#}{see}")));
            let usage = error.downcast_ref::<failure::Failure>().is_some_and(|f| f.is_usage);
            ExitCode::from(if usage { USAGE } else { FAILED })
        }
    }
}

fn as_plugin() -> ExitCode {
    match kubectl::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ok(error)) => usage(&error, Some("kubectl dfs")),
        Err(Err(error)) if error.is::<failure::AlreadySaid>() => ExitCode::from(FAILED),
        Err(Err(error)) => {
            say_error(&failure::one_line(&format!("{error:#}")));
            let usage = error.downcast_ref::<failure::Failure>().is_some_and(|f| f.is_usage);
            ExitCode::from(if usage { USAGE } else { FAILED })
        }
    }
}

/// A panicking thread would leave its process half alive, a mount that hangs; ended it is restarted or reported.
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if dfs_service::panics::is_contained() {
            return;
        }
        default(info);
        std::process::abort();
    }));
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let Cli { cluster, command } = cli;
    cluster::check_used(command, cluster)?;
    match command {
        Command::Up(args) => commands::up::run(cluster, args),
        Command::Supervise(args) => commands::up::supervise(cluster, args),
        Command::Down(args) => commands::down::run(cluster, args),
        Command::Status(args) => commands::status::run(cluster, args),
        Command::Fsck(args) => commands::fsck::run(cluster, args),
        Command::Bench(args) => {
            let dir = cluster::named_dir(cluster)?;
            bench::run(args, dir.map(|dir| dir.root().join("run")).as_deref())
        }
        Command::Failover(args) => commands::failover::run(cluster, args),
        Command::Recover(args) => commands::failover::recover(cluster, args),
        Command::Maintenance(args) => commands::maintenance::run(cluster, args),
        Command::Drain(args) => commands::drain::run(cluster, args),
        Command::Decommission(args) => commands::drain::decommission(cluster, args),
        Command::Rebalance(args) => commands::rebalance::run(cluster, args),
        Command::Route(args) => commands::route::run(cluster, args),
        Command::Undrain(args) => commands::drain::undrain(cluster, args),
        Command::Scrub(args) => commands::scrub::run(cluster, args),
        Command::Events(args) => commands::events::run(cluster, args),
        Command::Top(args) => commands::top::run(cluster, args),
        Command::Job(args) => commands::job::run(cluster, args),
        Command::Trash(args) => commands::trash::run(cluster, args),
        Command::Jobs(args) => commands::job::list(cluster, args),
        Command::Put(args) => commands::put::run(cluster, args),
        Command::Get(args) => commands::get::run(cluster, args),
        Command::Ls(args) => commands::ls::run(cluster, args),
        Command::Mkdir(args) => commands::mkdir::run(cluster, args),
        Command::Rm(args) => commands::rm::run(cluster, args),
        Command::Mv(args) => commands::mv::run(cluster, args),
        Command::Stat(args) => commands::stat::run(cluster, args),
        Command::Cat(args) => commands::cat::run(cluster, args),
        Command::Grep(args) => commands::grep::run(cluster, args),
        Command::Records(args) => commands::records::run(cluster, args),
        Command::Locate(args) => commands::locate::run(cluster, args),
        Command::Explain(args) => commands::explain::run(cluster, args),
        Command::WhatIf(args) => commands::whatif::run(cluster, args),
        Command::Append(args) => commands::append::run(cluster, args),
        Command::Mount(args) => commands::mount::run(cluster, args),
        Command::Umount(args) => commands::umount::run(args),
        Command::Shell(args) => commands::shell::run(args),
        Command::Replay(args) => commands::replay::run(args),
        Command::Master(args) => commands::master::run(cluster, args),
        Command::Chunkserver(args) => commands::chunkserver::run(cluster, args),
        Command::Operator(args) => commands::operator::run(args),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
    }
}

/// Help goes to standard output; wrong usage is one line on standard error.
fn usage(error: &clap::Error, called: Option<&str>) -> ExitCode {
    use clap::error::ErrorKind;
    let rendered = error.render();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _closed_pipe = output::text(&rendered.to_string());
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _closed = std::io::stderr().write_all(rendered.to_string().as_bytes());
        return ExitCode::from(USAGE);
    }
    let text = rendered.to_string();
    // Message, then tips, then usage, with empty lines between.
    let words = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
    let mut words = failure::one_line(words);
    if let Some((what, _)) = words.split_once(" For more information") {
        words = what.to_owned();
    }
    let typed = std::env::args_os().skip(1).map_while(|word| word.into_string().ok());
    let command = match called {
        Some(called) => called.to_owned(),
        None => known_command(typed).join(" "),
    };
    let instead = match command.as_str() {
        "dfs bench" if error.kind() == ErrorKind::MissingRequiredArgument => {
            "name a mounted directory, as `dfs mount` and `dfs up` make it; "
        }
        _ => "",
    };
    say_error(&format!("usage: {words}; {instead}see `{command} --help`"));
    ExitCode::from(USAGE)
}

/// `dfs` and those of the words it begins with that name a command, and a command of that.
fn known_command(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut at = args::definitions();
    let mut known = vec!["dfs".to_owned()];
    for word in words {
        let Some(sub) = at.find_subcommand(&word).cloned() else { break };
        known.push(word);
        at = sub;
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_offered_for_the_command_that_was_meant() {
        let known = |line: &str| known_command(line.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(known("job history 1 x"), "dfs job history");
        assert_eq!(known("ls job"), "dfs ls");
        assert_eq!(known("frobnicate"), "dfs");
    }
}
