//! Commands that come as annotations: what was typed, checked, and in words what was wrong with it.

use std::time::Duration;

use dfs_core::ids::ServerId;

/// All of them begin with this.
pub const PREFIX: &str = "distributedfs.io/";
/// One-shot commands on the resource, in the order in which they are taken.
pub const NAMES: [&str; 5] = ["failover", "recover", "drain", "maintenance", "rebalance"];
/// Longer is a typing error.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Failover { servers: Vec<ServerId>, time: Option<Duration>, force: bool },
    Recover { servers: Vec<ServerId> },
    Drain { servers: Vec<ServerId>, end: bool },
    Maintenance { servers: Vec<ServerId>, time: Option<Duration>, end: bool },
    Rebalance { start: bool },
}

/// What stands behind the servers' names.
#[derive(Debug, Default)]
struct Options {
    time: Option<Duration>,
    force: bool,
    end: bool,
}

/// Reads the annotation `name` (without prefix) with `value`, as in
/// `distributedfs.io/failover=cs-3,cs-5;for=10m;force`.
///
/// # Errors
/// In words: what was not understood, and what would be.
pub fn parse(name: &str, value: &str) -> Result<Command, String> {
    match name {
        "failover" => {
            let (servers, options) = servers_and_options(value, &["for", "force"])?;
            Ok(Command::Failover { servers, time: options.time, force: options.force })
        }
        "recover" => {
            let (servers, _) = servers_and_options(value, &[])?;
            Ok(Command::Recover { servers })
        }
        "drain" => {
            let (servers, options) = servers_and_options(value, &["end"])?;
            Ok(Command::Drain { servers, end: options.end })
        }
        "maintenance" => {
            let (servers, options) = servers_and_options(value, &["for", "end"])?;
            Ok(Command::Maintenance { servers, time: options.time, end: options.end })
        }
        "rebalance" => match value {
            "start" | "true" => Ok(Command::Rebalance { start: true }),
            "stop" | "false" => Ok(Command::Rebalance { start: false }),
            _ => Err(format!("'{value}' is neither start nor stop")),
        },
        _ => Err(format!("no command '{name}': there are {}", NAMES.join(", "))),
    }
}

/// Reads the annotation `distributedfs.io/failover` of the pod of `server`.
///
/// # Errors
/// As [`parse`].
pub fn parse_on_pod(server: ServerId, value: &str) -> Result<Command, String> {
    match value {
        "true" => Ok(Command::Failover { servers: vec![server], time: None, force: false }),
        "false" => Ok(Command::Recover { servers: vec![server] }),
        _ => Err(format!(
            "'{value}' is neither true nor false, which is all that a pod's failover can be"
        )),
    }
}

fn servers_and_options(value: &str, allowed: &[&str]) -> Result<(Vec<ServerId>, Options), String> {
    let mut parts = value.split(';').map(str::trim);
    let mut servers = Vec::new();
    for word in parts.next().unwrap_or("").split(',').map(str::trim) {
        let server: ServerId = word.parse().map_err(|_| {
            format!(
                "'{word}' names no server: expected names such as cs-1, with commas between them"
            )
        })?;
        if servers.contains(&server) {
            return Err(format!("{server} is named twice"));
        }
        servers.push(server);
    }
    let mut options = Options::default();
    for part in parts {
        let (key, argument) = part.split_once('=').map_or((part, None), |(k, v)| (k, Some(v)));
        if !allowed.contains(&key) {
            let known = if allowed.is_empty() {
                "none is known here".to_owned()
            } else {
                format!("known are {}", allowed.join(", "))
            };
            return Err(format!("'{part}' is no option: {known}"));
        }
        match (key, argument) {
            ("for", Some(time)) => options.time = Some(parse_time(time)?),
            ("for", None) => return Err("for needs a time, such as for=10m".to_owned()),
            ("force", None) => options.force = true,
            ("end", None) => options.end = true,
            _ => return Err(format!("'{part}': {key} takes no value")),
        }
    }
    Ok((servers, options))
}

/// `90s`, `10m`, `2h`, `1d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: expected one such as 90s, 10m, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let seconds =
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
    match Duration::from_secs(seconds) {
        Duration::ZERO => Err(format!("'{text}': nothing would happen; give a time such as 10m")),
        time if TIME_MAX < time => Err(format!("'{text}' is longer than a year")),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u32) -> ServerId {
        format!("cs-{number}").parse().unwrap()
    }

    #[test]
    fn what_people_type_is_understood() {
        let check = |name: &str, value: &str, expected: Command| {
            assert_eq!(parse(name, value), Ok(expected), "{name}={value}");
        };
        let minutes = |n: u64| Some(Duration::from_secs(60 * n));
        check(
            "failover",
            "cs-1",
            Command::Failover { servers: vec![server(1)], time: None, force: false },
        );
        check(
            "failover",
            "cs-3, cs-5;for=10m;force",
            Command::Failover {
                servers: vec![server(3), server(5)],
                time: minutes(10),
                force: true,
            },
        );
        check("recover", "cs-3", Command::Recover { servers: vec![server(3)] });
        check("drain", "cs-2;end", Command::Drain { servers: vec![server(2)], end: true });
        check(
            "maintenance",
            "cs-2;for=2h",
            Command::Maintenance { servers: vec![server(2)], time: minutes(120), end: false },
        );
        check("rebalance", "stop", Command::Rebalance { start: false });
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (name, value, words) in [
            ("failover", "", "names no server"),
            ("failover", "cs-1;for=0s", "nothing would happen"),
            ("failover", "cs-1;for", "for needs a time"),
            ("failover", "cs-1;for=10", "'10' is no time"),
            ("failover", "cs-1;for=99999999999999999999m", "is no time"),
            ("failover", "cs-1;for=1000d", "longer than a year"),
            ("failover", "cs-1;force=yes", "force takes no value"),
            ("failover", "cs-1;now", "'now' is no option: known are for, force"),
            ("failover", "cs-1,cs-1", "cs-1 is named twice"),
            ("recover", "cs-1;force", "none is known here"),
            ("recover", "server-1", "'server-1' names no server"),
            ("rebalance", "now", "neither start nor stop"),
            ("reboot", "cs-1", "no command 'reboot'"),
        ] {
            let said = parse(name, value).expect_err(value);
            assert!(said.contains(words), "{name}={value}: {said}");
        }
    }
}
