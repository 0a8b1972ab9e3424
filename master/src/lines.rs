//! The heartbeat protocol as JSON lines: one message a line in, at most one reply a line out. For conformance tests,
//! simulations, and to see again what happened: the decisions are those of the master's own detector and planner.
//!
//! ```text
//! {"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1}}
//! {"src": "n1", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}
//! ```
//!
//! This file reads and prints; [`session`] decides.

mod object;
mod recorder;
mod session;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;

use anyhow::Context as _;
use dfs_core::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

pub use recorder::Recorder;
pub use session::{Session, Settings};

/// Most bytes of a line; longer ones are refused.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// A line that came in.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Message {
    pub src: String,
    pub dest: String,
    /// When it came, in milliseconds of the recorder's clock: in recordings.
    #[serde(default)]
    pub at_ms: Option<u64>,
    #[serde(deserialize_with = "object::read")]
    pub body: Body,
}

/// All bodies in one: which fields count depends on `kind`.
#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
pub struct Body {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub msg_id: Option<u64>,
    /// Of a heartbeat: who sends it; without it, the envelope's `src`.
    #[serde(default, alias = "server")]
    pub server_id: Option<String>,
    /// Of a heartbeat: all that the server holds, or what changed, see `full`.
    #[serde(default, alias = "chunk_handles", alias = "handles")]
    pub chunks: Option<Vec<Listed>>,
    /// Of a heartbeat: false if `chunks` lists only what changed.
    #[serde(default)]
    pub full: Option<bool>,
    /// Of a heartbeat that is not full: what the server holds no more.
    #[serde(default)]
    pub gone: Vec<String>,
    /// Of a heartbeat: how full the disk is, in percent.
    #[serde(
        default,
        alias = "disk_use",
        alias = "disk_usage_percent",
        alias = "disk_use_percent",
        alias = "disk_used_percent"
    )]
    pub disk_usage: Option<f64>,
    /// Of a heartbeat: what the server thinks of itself. It changes no decision.
    #[serde(default)]
    pub health: Option<serde_json::Value>,
    /// Of `advance`: milliseconds.
    #[serde(default)]
    pub ms: Option<u64>,
}

/// A chunk of a server's list: its handle alone, at the version 1, or both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listed {
    Handle(String),
    Versioned { handle: String, version: u64 },
}

#[derive(Deserialize)]
struct Versioned {
    handle: String,
    version: u64,
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Listed;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(r#"a handle, or {"handle": TEXT, "version": NUMBER}"#)
            }

            fn visit_str<E: serde::de::Error>(self, handle: &str) -> Result<Listed, E> {
                Ok(Listed::Handle(handle.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Listed, A::Error> {
                let entry = serde::de::value::MapAccessDeserializer::new(map);
                let Versioned { handle, version } = Versioned::deserialize(entry)?;
                Ok(Listed::Versioned { handle, version })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Listed {
    fn parts(&self) -> (&str, u64) {
        match self {
            Self::Handle(handle) => (handle, 1),
            Self::Versioned { handle, version } => (handle, *version),
        }
    }
}

/// A line that goes out. The order of the fields is the protocol's.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Reply {
    pub src: String,
    pub dest: String,
    pub body: ReplyBody,
}

/// What is empty is left out.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct ReplyBody {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chunks_to_delete: Vec<String>,
    /// To be fetched by the receiver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chunks_to_replicate: Vec<String>,
    /// Who has a good copy of each of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<Vec<ServerStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    pub msg_id: u64,
}

/// One server in `server_status_ok`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ServerStatus {
    pub server: String,
    pub status: &'static str,
    /// A dead server has none.
    pub chunks: u64,
    pub last_heartbeat_ms_ago: u64,
}

/// Why a line has no other answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LineError {
    #[error("not a message: {0}")]
    Malformed(String),
    #[error("unknown type '{0}': known are init, heartbeat, server_status and advance")]
    UnknownType(String),
    #[error("send init first")]
    NotInitialised,
    #[error("init came before")]
    InitialisedAlready,
    #[error("{field} {wrong}")]
    BadField { field: &'static str, wrong: String },
}

impl LineError {
    /// What programs look at.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownType(_) => "unknown_type",
            Self::NotInitialised => "not_initialised",
            Self::InitialisedAlready => "initialised_already",
            Self::BadField { .. } => "bad_field",
        }
    }
}

/// Reads a line.
///
/// # Errors
/// `Malformed`, `BadField` of a name.
pub fn parse(line: &[u8]) -> Result<Message, LineError> {
    if LINE_BYTES_MAX < line.len() {
        return Err(LineError::Malformed(format!("longer than {LINE_BYTES_MAX} bytes")));
    }
    let mut json = serde_json::Deserializer::from_slice(line);
    let read = object::read(&mut json).and_then(|message: Message| json.end().map(|()| message));
    let message = read.map_err(|error| LineError::Malformed(error.to_string()))?;
    let empty =
        |field| LineError::BadField { field, wrong: "is empty: a name is wanted".to_owned() };
    if message.src.is_empty() {
        return Err(empty("src"));
    }
    if message.body.server_id.as_ref().is_some_and(String::is_empty) {
        return Err(empty("server_id"));
    }
    Ok(message)
}

/// `src` and `msg_id` of a line, as far as it has them: an error must reach whoever wrote it.
#[must_use]
pub fn sender_of(line: &[u8]) -> (String, String, Option<u64>) {
    let value: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(|it| it.as_str()).unwrap_or_default();
    let msg_id = value.get("body").and_then(|body| body.get("msg_id")).and_then(|id| id.as_u64());
    (text("src").to_owned(), text("dest").to_owned(), msg_id)
}

/// The line of a reply, without its end.
#[must_use]
pub fn print(reply: &Reply) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // Into memory, of strings and numbers: nothing of it can fail.
    let _never_fails = reply.serialize(&mut serializer);
    String::from_utf8_lossy(&out).into_owned()
}

/// `", "` between values and `": "` behind keys, all on one line.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// `names`, shortened: for lines that people read.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(SHOWN).filter(|more| *more != 0) {
        let _never_fails = write!(text, " and {more} more");
    }
    text
}

/// A session and its clock, line by line.
#[derive(Debug)]
pub struct Conversation {
    session: Session,
    /// By how much `advance` set the clock forward, in nanoseconds.
    advanced: u64,
}

impl Conversation {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { session: Session::new(settings), advanced: 0 }
    }

    /// The reply to a line that came when the process had run for `elapsed` nanoseconds; none to an empty line. An error
    /// changes nothing.
    pub fn answer(&mut self, elapsed: u64, line: &[u8]) -> Option<String> {
        if line.trim_ascii().is_empty() {
            return None;
        }
        let now = |advanced: u64| Timestamp(elapsed.saturating_add(advanced));
        let answer = parse(line).and_then(|message| {
            if message.body.kind != "advance" {
                return self.session.answer(now(self.advanced), &message);
            }
            let ms = message.body.ms.ok_or(LineError::BadField {
                field: "ms",
                wrong: "is missing: milliseconds to set the clock forward".to_owned(),
            })?;
            let Some(advanced) =
                ms.checked_mul(1_000_000).and_then(|by| by.checked_add(self.advanced))
            else {
                let wrong = format!("is {ms}: more than the clock has");
                return Err(LineError::BadField { field: "ms", wrong });
            };
            self.advanced = advanced;
            self.session.look(now(self.advanced));
            let body = ReplyBody {
                kind: "advance_ok",
                in_reply_to: message.body.msg_id,
                now_ms: Some(now(self.advanced).0 / 1_000_000),
                ..ReplyBody::default()
            };
            Ok(self.session.number(message.dest, message.src, body))
        });
        let reply = answer.unwrap_or_else(|error| {
            let (src, dest, in_reply_to) = sender_of(line);
            let (code, text) = (Some(error.code()), Some(error.to_string()));
            let body = ReplyBody { kind: "error", in_reply_to, code, text, ..ReplyBody::default() };
            self.session.number(dest, src, body)
        });
        Some(print(&reply))
    }

    /// See [`Session::take_events`].
    pub fn take_events(&mut self) -> Vec<String> {
        self.session.take_events()
    }
}

/// Feeds a recording through a session and gives what followed to `tell`, with its time in milliseconds as recorded.
///
/// # Errors
/// Names the line that is no message, has no time, or is refused.
pub fn replay(
    settings: Settings,
    lines: impl Iterator<Item = io::Result<Vec<u8>>>,
    mut tell: impl FnMut(u64, &str),
) -> anyhow::Result<Replayed> {
    let step_ms = (settings.profile.interval_ms / 10).max(1);
    // Nothing happens by itself after that.
    let quiet_ms = settings.profile.dead_after_ms + settings.profile.interval_ms;
    let mut session = Session::new(settings);
    let mut replayed = Replayed::default();
    let mut last_ms = None;
    for (number, line) in (1_u64..).zip(lines) {
        let line = line.with_context(|| format!("read line {number}"))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let message = parse(&line).with_context(|| format!("line {number}"))?;
        let at_ms = message.at_ms.with_context(|| format!("line {number}: at_ms is missing"))?;
        anyhow::ensure!(
            message.body.kind != "advance",
            "line {number}: advance belongs to `dfs master --stdio`; a recording has its times in at_ms: leave the line out"
        );
        // The clock of the machine may have been set back.
        let at_ms = at_ms.max(last_ms.unwrap_or(0));
        let before_ms = last_ms.replace(at_ms).unwrap_or(at_ms);
        let until = at_ms.min(before_ms.saturating_add(quiet_ms));
        for ms in (before_ms..until).step_by(usize::try_from(step_ms)?).skip(1) {
            session.look(timestamp(ms));
            for event in session.take_events() {
                replayed.events += 1;
                tell(ms, &event);
            }
        }
        if message.body.kind == "init" && replayed.messages != 0 {
            tell(at_ms, "the master began anew");
            session = Session::new(settings);
        }
        session.answer(timestamp(at_ms), &message).with_context(|| format!("line {number}"))?;
        replayed.messages += 1;
        for event in session.take_events() {
            replayed.events += 1;
            tell(at_ms, &event);
        }
    }
    Ok(replayed)
}

/// How much was replayed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Replayed {
    pub messages: u64,
    pub events: u64,
}

fn timestamp(ms: u64) -> Timestamp {
    Timestamp(ms.saturating_mul(1_000_000))
}
