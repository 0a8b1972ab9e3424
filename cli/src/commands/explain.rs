//! `dfs explain`: where a file's chunks are and why, in words.

use std::ffi::OsString;

use clap::Args;
use dfs_proto::control::{ExplainReply, ExplainedChunk};
use dfs_service::page::Page;
use serde::Serialize;

use crate::args::{ClusterArgs, OutputArgs};
use crate::commands::status::{age, time};
use crate::files::Files;
use crate::output::{self, Table, bytes};
use crate::remote_path::RemotePath;
use crate::{admin, cluster};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  dfs explain /photos/photo.jpg
  dfs explain -o json /photos/photo.jpg

`dfs locate` prints the same places as a table; `dfs whatif kill` looks at all files.")]
pub(crate) struct ExplainArgs {
    /// Path in the file system
    pub path: OsString,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    path: String,
    #[serde(rename = "pathHex", skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    inode: u64,
    size: u64,
    /// The content is in the master's inode; there are no chunks.
    inline: bool,
    replication: u32,
    min_replicas: u32,
    /// Servers may not have told yet what they hold.
    warming: bool,
    chunks: Vec<Chunk>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Chunk {
    index: u64,
    id: u64,
    version: u64,
    bytes: u64,
    safety: String,
    writable: bool,
    /// Null: safe, or not seen otherwise yet.
    exposed_ms: Option<u64>,
    primary: String,
    members: Vec<Member>,
    doing: String,
    if_died: Vec<IfDied>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    server: String,
    state: String,
    /// -1: none since the master started.
    last_heartbeat_ms_ago: i64,
    replica: String,
    zone: String,
    host: String,
}

#[derive(Debug, Serialize)]
struct IfDied {
    server: String,
    safety: String,
    writable: bool,
}

impl From<ExplainedChunk> for Chunk {
    fn from(mut chunk: ExplainedChunk) -> Self {
        // cs-2 before cs-10, whatever the order in the configuration.
        let place = |server: &str| (server.len(), server.to_owned());
        chunk.members.sort_by_cached_key(|member| place(&member.server));
        chunk.if_died.sort_by_cached_key(|died| place(&died.server));
        Self {
            index: chunk.index,
            id: chunk.id,
            version: chunk.version,
            bytes: chunk.bytes,
            safety: chunk.safety,
            writable: chunk.writable,
            exposed_ms: chunk.exposed_ms,
            primary: chunk.primary,
            members: chunk
                .members
                .into_iter()
                .map(|member| Member {
                    server: member.server,
                    state: member.state,
                    last_heartbeat_ms_ago: member.last_heartbeat_ms_ago,
                    replica: member.replica,
                    zone: member.zone,
                    host: member.host,
                })
                .collect(),
            doing: chunk.doing,
            if_died: chunk
                .if_died
                .into_iter()
                .map(|died| IfDied {
                    server: died.server,
                    safety: died.safety,
                    writable: died.writable,
                })
                .collect(),
        }
    }
}

/// What a member has, for people; `None`: what it should.
fn replica_words(replica: &str) -> Option<&'static str> {
    match replica {
        "current" => None,
        "stale" => Some("an older version, not used"),
        "not-current" => Some("rebooted, may lack what was not synced, not used"),
        "damaged" => Some("has bad blocks"),
        "missing" => Some("does not have it"),
        "unreported" => Some("has not said whether it has it"),
        "other-disk" => Some("came back with another disk"),
        "older-copy" => Some("its data directory is an older copy, not used"),
        "unwritten" => Some("nothing written yet"),
        _ => Some("in a state this program does not know"),
    }
}

impl Member {
    fn words(&self) -> String {
        let mut notes = Vec::new();
        if self.state != "alive" {
            notes.push(format!("{}, last heard {}", self.state, age(self.last_heartbeat_ms_ago)));
        }
        notes.extend(replica_words(&self.replica).map(str::to_owned));
        for (what, name) in [("zone", &self.zone), ("host", &self.host)] {
            if !name.is_empty() {
                notes.push(format!("{what} {}", output::printable(name)));
            }
        }
        if notes.is_empty() {
            self.server.clone()
        } else {
            format!("{} ({})", self.server, notes.join("; "))
        }
    }
}

impl Chunk {
    /// Everything but its numbers and its primary: chunks of which the same is to be said are said together.
    fn words(&self) -> String {
        let members: Vec<String> = self.members.iter().map(Member::words).collect();
        let mut text = format!(
            "{}{}{}\n  on    {}\n",
            self.safety,
            self.exposed_ms.map_or_else(String::new, |ms| format!(", not safe for {}", time(ms))),
            if self.writable { "" } else { "; writes wait" },
            members.join(", ")
        );
        text.push_str(&format!("  why   {}\n", self.why()));
        text.push_str(&format!("  now   {}\n", self.doing));
        let page = match self.safety.as_str() {
            "degraded" | "endangered" => Some(Page::CopiesMissing),
            "unavailable" => Some(Page::Unavailable),
            "lost" => Some(Page::Lost),
            _ => None,
        };
        if let Some(page) = page {
            text.push_str(&format!("  see   {page}\n"));
        }
        for died in &self.if_died {
            text.push_str(&format!(
                "  if {} died: {}, writes {}\n",
                died.server,
                died.safety,
                if died.writable { "go on" } else { "wait" }
            ));
        }
        text
    }

    fn why(&self) -> String {
        let told = |name: fn(&Member) -> &str| {
            let mut names: Vec<&str> = self.members.iter().map(name).collect();
            names.sort_unstable();
            let all = names.iter().all(|name| !name.is_empty());
            names.dedup();
            all.then_some(names.len())
        };
        let count = self.members.len();
        let spread = match (told(|m| &m.zone), told(|m| &m.host)) {
            (Some(zones), _) if zones == count => "each in a zone of its own",
            (_, Some(hosts)) if hosts == count => "each on a host of its own",
            (Some(_), _) | (_, Some(_)) => "as far apart as zones and hosts had room",
            (None, None) => "no zone or host was told for all of them",
        };
        format!("the servers with the largest share of free space, one copy each; {spread}")
    }
}

impl Table for Explanation {
    fn table(&self) -> String {
        let path = output::printable(&self.path);
        if self.inline {
            return format!(
                "{path}: {}, inline: small enough to be kept in the master's own records, it has no chunks\n",
                bytes(self.size)
            );
        }
        let count = self.chunks.len();
        let mut out = format!(
            "{path}: {} in {count} chunk{}; {} copies wanted of each, {} needed for a write\n",
            bytes(self.size),
            if count == 1 { "" } else { "s" },
            self.replication,
            self.min_replicas
        );
        if self.warming {
            out.push_str("the master warms up: servers may not have told yet what they hold\n");
        }
        let mut chunks = self.chunks.iter().peekable();
        while let Some(first) = chunks.next() {
            let words = first.words();
            let mut last = first;
            while let Some(next) =
                chunks.next_if(|next| next.index == last.index + 1 && next.words() == words)
            {
                last = next;
            }
            let which = if first.index == last.index {
                format!("chunk {}", first.index)
            } else {
                format!("chunks {}-{}", first.index, last.index)
            };
            out.push_str(&format!("\n{which}: {words}"));
        }
        out
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &ExplainArgs) -> anyhow::Result<()> {
    let path = RemotePath::parse(&args.path)?;
    let target = cluster::target(cluster)?;
    let attr = Files::open(cluster)?.regular_file("explain", &path)?;
    let mut explanation = Explanation {
        path: path.json(),
        path_hex: path.json_hex(),
        inode: attr.ino.0,
        size: attr.size,
        inline: attr.inline,
        replication: 0,
        min_replicas: 0,
        warming: false,
        chunks: Vec::new(),
    };
    let mut first = Some(0);
    while let Some(from) = first {
        let ExplainReply { chunks, next, replication, min_replicas, warming } =
            admin::explain(&target, attr.ino.0, from)?;
        explanation.chunks.extend(chunks.into_iter().map(Chunk::from));
        (explanation.replication, explanation.min_replicas) = (replication, min_replicas);
        explanation.warming |= warming;
        first = next.filter(|next| from < *next);
    }
    output::print(args.output.format, &explanation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: u64) -> Chunk {
        let member = |server: &str, state: &str, replica: &str| Member {
            server: server.into(),
            state: state.into(),
            last_heartbeat_ms_ago: 12_300,
            replica: replica.into(),
            zone: String::new(),
            host: String::new(),
        };
        Chunk {
            index,
            id: 10 + index,
            version: 1,
            bytes: 1 << 20,
            safety: "degraded".into(),
            writable: true,
            exposed_ms: Some(12_000),
            primary: "cs-1".into(),
            members: vec![member("cs-1", "alive", "current"), member("cs-2", "suspect", "stale")],
            doing: "nothing yet".into(),
            if_died: vec![IfDied {
                server: "cs-1".into(),
                safety: "unavailable".into(),
                writable: false,
            }],
        }
    }

    fn explanation(chunks: Vec<Chunk>) -> Explanation {
        Explanation {
            path: "/a".into(),
            path_hex: None,
            inode: 2,
            size: 3 << 20,
            inline: false,
            replication: 3,
            min_replicas: 2,
            warming: false,
            chunks,
        }
    }

    #[test]
    fn chunks_of_which_the_same_is_true_are_told_together() {
        let mut third = chunk(2);
        third.members.pop();
        let text = explanation(vec![chunk(0), chunk(1), third]).table();
        assert!(text.contains("\nchunks 0-1: degraded, not safe for 12 s\n"), "{text}");
        assert!(text.contains("\nchunk 2: degraded"), "{text}");
        let line = "cs-1, cs-2 (suspect, last heard 12.3 s ago; an older version, not used)";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("  if cs-1 died: unavailable, writes wait\n"), "{text}");
        assert!(text.contains("no zone or host was told"), "{text}");
    }

    #[test]
    fn a_file_without_chunks_says_why() {
        let inline = Explanation { inline: true, ..explanation(Vec::new()) };
        assert!(inline.table().contains("master's own records"), "{}", inline.table());
    }

    #[test]
    fn why_says_how_far_apart_the_copies_are() {
        let mut apart = chunk(0);
        for (member, zone) in apart.members.iter_mut().zip(["a", "b"]) {
            member.zone = zone.into();
        }
        assert!(apart.why().ends_with("each in a zone of its own"), "{}", apart.why());
        apart.members[1].zone = "a".into();
        assert!(apart.why().ends_with("had room"), "{}", apart.why());
    }
}
