//! `dfs events`: what happened, in order.

use std::time::Duration;

use dfs_proto::control::{Event, EventsRequest};
use dfs_service::page::Page;
use serde::Serialize;

use crate::args::servers::EventsArgs;
use crate::args::{ClusterArgs, Format};
use crate::output::{self, printable, seconds, utc};
use crate::{admin, cluster, servers};

const PAGE: u32 = 500;
/// Longest that a master is asked to wait for the next event, within the time it has to answer.
const WAIT_MS: u32 = 2_000;
/// Between attempts to reach a master that is away, while following.
const AGAIN: Duration = Duration::from_secs(1);

/// The keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    number: u64,
    /// UTC.
    at: String,
    at_ns: i64,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    cause: String,
    /// How long what ended with it had lasted.
    #[serde(skip_serializing_if = "Option::is_none")]
    lasted_ms: Option<u64>,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    see: Option<String>,
}

fn page_of(kind: &str) -> Option<Page> {
    match kind {
        "dead" => Some(Page::DeadServer),
        "lost" => Some(Page::Lost),
        "damaged" => Some(Page::BadBlock),
        "diverged" => Some(Page::ReplicasDiffer),
        _ => None,
    }
}

impl From<Event> for Line {
    fn from(event: Event) -> Self {
        Self {
            number: event.number,
            at: utc(event.at_ns.div_euclid(1_000_000_000)),
            at_ns: event.at_ns,
            see: page_of(&event.kind).map(|page| page.to_string()),
            kind: event.kind,
            server: Some(event.server).filter(|server| !server.is_empty()),
            cause: event.cause,
            lasted_ms: event.lasted_ms,
        }
    }
}

impl Line {
    fn text(&self) -> String {
        let millis = self.at_ns.rem_euclid(1_000_000_000) / 1_000_000;
        let lasted = match (self.lasted_ms, self.kind.as_str()) {
            (None, _) => String::new(),
            (Some(lasted), "reconfigured") => format!(" within {}", seconds(lasted)),
            (Some(lasted), _) => format!(" after {}", seconds(lasted)),
        };
        let see = self.see.as_ref().map_or_else(String::new, |page| format!("; see {page}"));
        format!(
            "{}.{millis:03}  {:<6}  {:<12}  {}{lasted}{see}",
            self.at,
            self.server.as_deref().unwrap_or("-"),
            self.kind,
            printable(&self.cause)
        )
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &EventsArgs) -> anyhow::Result<()> {
    let EventsArgs { follow, last, output } = args;
    let target = cluster::target(cluster)?;
    admin::check_reachable(&target)?;
    let mut request = EventsRequest { from: 0, max: PAGE, wait_ms: 0, last: None };
    if 0 < *last {
        request.last = Some(*last);
    }
    let (mut is_away, mut was_there) = (false, false);
    loop {
        let reply = match servers::events(&target, request) {
            Ok(reply) => reply,
            // Who follows wants to see what happens after a master's restart, too.
            Err(error) if *follow && was_there => {
                if !is_away {
                    crate::failure::say_error(&format!("{error:#}; trying until it answers"));
                    is_away = true;
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            Err(error) => return Err(error),
        };
        was_there = true;
        if std::mem::take(&mut is_away) {
            crate::failure::say_error(&format!("master {} answers again", target.master));
        }
        let more = !reply.events.is_empty();
        for event in reply.events {
            let line = Line::from(event);
            output::line(&match output.format {
                Format::Table => line.text(),
                Format::Json => serde_json::to_string(&line)?,
            })?;
        }
        request = EventsRequest { from: reply.next, last: None, ..request };
        if !more && !follow {
            return Ok(());
        }
        if !more {
            request.wait_ms = long_poll_ms(target.wait);
        }
    }
}

/// Half of what an answer may take: a quiet cluster is not one that does not answer.
fn long_poll_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis() / 2).unwrap_or(u32::MAX).clamp(1, WAIT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_wait_for_the_master_shortens_the_wait_for_events() {
        assert_eq!(long_poll_ms(Duration::from_secs(300)), WAIT_MS);
        assert_eq!(long_poll_ms(Duration::from_secs(1)), 500);
        assert_eq!(long_poll_ms(Duration::from_millis(1)), 1);
        assert_eq!(long_poll_ms(Duration::MAX), WAIT_MS);
    }

    #[test]
    fn an_event_is_one_line_with_time_cause_and_duration() {
        let event = Event {
            number: 7,
            at_ns: 86_400_250_000_000,
            kind: "dead".to_owned(),
            server: "cs-3".to_owned(),
            cause: "silent for 3.0 s\u{1b}".to_owned(),
            lasted_ms: Some(1_500),
        };
        let line = Line::from(event);
        assert_eq!(
            line.text(),
            "1970-01-02 00:00:00.250  cs-3    dead          silent for 3.0 s\\x1b after 1.5 s; see docs/operations.md#a-server-is-dead"
        );
        let json = serde_json::to_value(&line).unwrap();
        assert_eq!(json["see"], "docs/operations.md#a-server-is-dead");
        assert_eq!((json["number"].as_u64(), json["lastedMs"].as_u64()), (Some(7), Some(1_500)));
    }
}
