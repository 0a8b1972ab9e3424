//! `dfs status`.

use dfs_proto::control::StatusReply;
use dfs_service::page::Page;
use serde::Serialize;

use crate::args::{ClusterArgs, StatusArgs};
use crate::output::{self, Table, bytes, columns, hex, printable, utc};
use crate::{admin, cluster};

/// What people and programs see; the keys are a contract.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    file_system: String,
    phase: String,
    epoch: u64,
    replication: u32,
    min_replicas: u32,
    inodes: u64,
    file_bytes: u64,
    clients: u64,
    log_index: u64,
    mounts: Vec<Client>,
    servers: Vec<Server>,
    chunks: Chunks,
    /// For how long the chunk that is not safe for longest has not been; null: all are safe.
    oldest_exposure_ms: Option<u64>,
    /// If no server that is away comes back.
    bytes_to_copy: u64,
    copy_bytes_per_second: u64,
    /// Null: nothing is being copied.
    eta_ms: Option<u64>,
    metadata: Metadata,
    /// Writers that wait for servers: how many chunks, and a few of them, the longest first.
    waiting_writes: WaitingWrites,
    notices: Vec<Notice>,
}

/// Copies of the master's log and snapshots.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    copies: usize,
    servers: Vec<String>,
    /// For how long the one furthest behind lacks something; null: there is none.
    lag_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitingWrites {
    total: u64,
    longest: Vec<WaitingWrite>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitingWrite {
    inode: u64,
    /// Of the chunk in the file.
    index: u64,
    reason: String,
    waiting_ms: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    id: String,
    state: String,
    address: String,
    chunks: u64,
    used_bytes: u64,
    free_bytes: u64,
    /// -1: none since the master started.
    last_heartbeat_ms_ago: i64,
    /// What clients read there, and write with it as primary, lately.
    client_read_bytes_per_second: u64,
    client_written_bytes_per_second: u64,
    /// Wishes about it: suspended, draining, maintenance, probation.
    overlays: Vec<Overlay>,
    /// Why its data directory is refused; null: it is not.
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Overlay {
    kind: String,
    /// UTC.
    since: String,
    /// UTC; it ends by itself then.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    by: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    id: String,
    name: String,
    evicted: bool,
    /// -1: none since the master started.
    last_heard_ms_ago: i64,
    opens: u64,
    /// Set if it missed its signs of life: its opens and locks end in this time unless it comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_in_ms: Option<u64>,
}

/// What a person should know.
#[derive(Debug, Serialize)]
struct Notice {
    /// UTC.
    at: String,
    text: String,
}

#[derive(Debug, Serialize)]
struct Chunks {
    total: u64,
    safe: u64,
    degraded: u64,
    endangered: u64,
    unavailable: u64,
    lost: u64,
    /// Replicas hold different bytes after the same operations; they count above too.
    diverging: u64,
}

impl From<StatusReply> for Status {
    fn from(reply: StatusReply) -> Self {
        let totals = reply.chunks.unwrap_or_default();
        let waiting = reply.waiting_writes.unwrap_or_default();
        Self {
            file_system: hex(&reply.fs),
            phase: reply.phase,
            epoch: reply.epoch,
            replication: reply.replication,
            min_replicas: reply.min_replicas,
            inodes: reply.inodes,
            file_bytes: reply.file_bytes,
            clients: reply.clients,
            log_index: reply.log_index,
            mounts: reply
                .client_list
                .into_iter()
                .map(|client| Client {
                    id: hex(&client.id),
                    name: client.name,
                    evicted: client.evicted,
                    last_heard_ms_ago: client.last_heard_ms_ago,
                    opens: client.opens,
                    ends_in_ms: client.ends_in_ms,
                })
                .collect(),
            servers: reply
                .servers
                .into_iter()
                .map(|server| Server {
                    id: server.id,
                    state: server.state,
                    address: server.address,
                    chunks: server.chunks,
                    used_bytes: server.used_bytes,
                    free_bytes: server.free_bytes,
                    last_heartbeat_ms_ago: server.last_heartbeat_ms_ago,
                    client_read_bytes_per_second: server.client_read_rate,
                    client_written_bytes_per_second: server.client_written_rate,
                    overlays: server.overlays.into_iter().map(Overlay::from).collect(),
                    refused: Some(server.refused).filter(|reason| !reason.is_empty()),
                })
                .collect(),
            oldest_exposure_ms: reply.oldest_exposure_ms,
            bytes_to_copy: reply.copy_backlog_bytes,
            copy_bytes_per_second: reply.copy_rate,
            eta_ms: reply.copy_eta_ms,
            metadata: Metadata {
                copies: reply.metadata_copies.len(),
                servers: reply.metadata_copies,
                lag_ms: reply.metadata_lag_ms,
            },
            chunks: Chunks {
                total: totals.total,
                safe: totals.safe,
                degraded: totals.degraded,
                endangered: totals.endangered,
                unavailable: totals.unavailable,
                lost: totals.lost,
                diverging: reply.diverging_chunks,
            },
            waiting_writes: WaitingWrites {
                total: waiting.total,
                longest: waiting
                    .longest
                    .into_iter()
                    .map(|write| WaitingWrite {
                        inode: write.inode,
                        index: write.index,
                        reason: write.reason,
                        waiting_ms: write.waiting_ms,
                    })
                    .collect(),
            },
            notices: reply
                .notices
                .into_iter()
                .map(|notice| Notice {
                    at: utc(notice.at_ns.div_euclid(1_000_000_000)),
                    text: notice.text,
                })
                .collect(),
        }
    }
}

impl From<dfs_proto::control::Overlay> for Overlay {
    fn from(overlay: dfs_proto::control::Overlay) -> Self {
        let time = |at: i64| utc(at.div_euclid(1_000_000_000));
        Self {
            kind: overlay.kind,
            since: time(overlay.since_ns),
            until: overlay.until_ns.map(time),
            by: overlay.by,
        }
    }
}

impl Table for Status {
    fn table(&self) -> String {
        let head = ["SERVER", "STATE", "ADDRESS", "CHUNKS", "USED", "FREE", "HEARTBEAT"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.servers.iter().map(|server| {
            vec![
                server.id.clone(),
                server.state_and_overlays(),
                server.address.clone(),
                server.chunks.to_string(),
                bytes(server.used_bytes),
                bytes(server.free_bytes),
                age(server.last_heartbeat_ms_ago),
            ]
        }));
        let Chunks { total, safe, degraded, endangered, unavailable, lost, diverging } =
            &self.chunks;
        let differ =
            if 0 < *diverging { format!("; {diverging} diverging") } else { String::new() };
        let mut out = columns(&rows, &[3, 4, 5]);
        out.push_str(&format!(
            "\nchunks  {total} in all: {safe} safe, {degraded} degraded, {endangered} endangered, \
             {unavailable} unavailable, {lost} lost{differ}\n\
             {}\
             files   {} inodes, {} of content, {} replicas each, {} needed for a write\n\
             master  {}, epoch {}, {} client(s); {}\n",
            self.exposure(),
            self.inodes,
            bytes(self.file_bytes),
            self.replication,
            self.min_replicas,
            self.phase,
            self.epoch,
            self.clients,
            self.metadata.text()
        ));
        for (server, overlay) in self
            .servers
            .iter()
            .flat_map(|server| server.overlays.iter().map(move |overlay| (server, overlay)))
        {
            let Overlay { kind, since, until, by } = overlay;
            let until = until.as_ref().map(|at| format!(" until {at}")).unwrap_or_default();
            out.push_str(&format!(
                "server  {} is {kind}{until}, since {since} by {}\n",
                server.id,
                printable(by)
            ));
        }
        for client in &self.mounts {
            out.push_str(&format!(
                "client  {} {}, heard {}, {} open{}{}\n",
                client.id,
                printable(&client.name),
                age(client.last_heard_ms_ago),
                client.opens,
                client.ends_in_ms.map_or_else(String::new, |left| format!(
                    ", silent: its opens and locks end in {} s",
                    left / 1000
                )),
                if client.evicted { ", evicted" } else { "" }
            ));
        }
        for (what, page) in self.troubles() {
            out.push_str(&format!("trouble {what}; see {page}\n"));
        }
        for notice in &self.notices {
            out.push_str(&format!("notice  {}  {}\n", notice.at, printable(&notice.text)));
        }
        out
    }
}

impl Metadata {
    fn text(&self) -> String {
        match self.lag_ms {
            None => "its metadata is nowhere else".to_owned(),
            Some(lag) => {
                let behind =
                    if lag == 0 { String::new() } else { format!(", {} behind", time(lag)) };
                format!("copies of its metadata on {}{behind}", printable(&self.servers.join(", ")))
            }
        }
    }
}

impl WaitingWrites {
    /// What waits and why; `None` if nothing does.
    fn text(&self) -> Option<String> {
        let WaitingWrite { inode, index, reason, waiting_ms } = self.longest.first()?;
        Some(format!(
            "writes of {} chunk(s) wait, the longest for {}: chunk {index} of inode {inode}: {}",
            self.total,
            time(*waiting_ms),
            printable(reason)
        ))
    }
}

impl Status {
    /// What is wrong now, and what helps.
    fn troubles(&self) -> Vec<(String, Page)> {
        let dead = self.servers.iter().filter(|server| server.state == "dead");
        let dead = dead.map(|server| (format!("{} is dead", server.id), Page::DeadServer));
        let refused = self.servers.iter().filter_map(|server| server.refused.as_deref());
        let refused = refused.map(|reason| (printable(reason), Page::DirectoryRefused));
        let Chunks { total: _, safe: _, degraded, endangered, unavailable, lost, diverging } =
            &self.chunks;
        let counts = [
            (*lost, "lost", Page::Lost),
            (*unavailable, "unavailable", Page::Unavailable),
            (degraded + endangered, "short of copies", Page::CopiesMissing),
            (*diverging, "diverging", Page::ReplicasDiffer),
        ];
        let counts = counts.into_iter().filter(|(count, ..)| 0 < *count);
        let counts = counts.map(|(count, what, page)| (format!("{count} chunk(s) {what}"), page));
        let silent = self.mounts.iter().filter(|client| client.ends_in_ms.is_some());
        let silent =
            silent.map(|client| (format!("client {} is silent", client.id), Page::ClientSilent));
        let writes = self.waiting_writes.text().map(|what| (what, Page::WritesWait));
        dead.chain(refused).chain(counts).chain(writes).chain(silent).collect()
    }

    /// A line for what is not safe, nothing if all is.
    fn exposure(&self) -> String {
        let Some(oldest) = self.oldest_exposure_ms else { return String::new() };
        let left = copying(self.bytes_to_copy, self.copy_bytes_per_second, self.eta_ms);
        format!("exposed for {}: {left}\n", time(oldest))
    }
}

/// How far a rebuild is.
pub(crate) fn copying(bytes_left: u64, rate: u64, eta_ms: Option<u64>) -> String {
    match (bytes_left, eta_ms) {
        (0, _) => "nothing that could be copied".to_owned(),
        (left, Some(eta)) => {
            format!("{} to copy at {}/s, {} left", bytes(left), bytes(rate), time(eta))
        }
        (left, None) => format!("{} to copy, nothing is being copied now", bytes(left)),
    }
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `5 h 2 min`.
pub(crate) fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

impl Server {
    /// `dead (suspended)`.
    fn state_and_overlays(&self) -> String {
        let kinds = self.overlays.iter().map(|overlay| overlay.kind.as_str());
        let kinds: Vec<&str> = kinds.chain(self.refused.as_ref().map(|_| "refused")).collect();
        if kinds.is_empty() {
            self.state.clone()
        } else {
            format!("{} ({})", self.state, kinds.join(", "))
        }
    }
}

pub(crate) fn age(milliseconds: i64) -> String {
    if milliseconds < 0 {
        "never".to_owned()
    } else {
        format!("{}.{} s ago", milliseconds / 1000, milliseconds % 1000 / 100)
    }
}

pub(crate) fn run(cluster: &ClusterArgs, args: &StatusArgs) -> anyhow::Result<()> {
    let target = cluster::target(cluster)?;
    let status = Status::from(admin::status(&target)?);
    output::print(args.output.format, &status)
}

/// As `dfs status -o json` prints it.
pub(crate) fn as_json(cluster: &ClusterArgs) -> anyhow::Result<String> {
    let status = Status::from(admin::status(&cluster::target(cluster)?)?);
    Ok(format!("{:#}\n", serde_json::to_value(&status)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::control::{ChunkTotals, ClientStatus, Notice, ServerStatus};

    fn reply() -> StatusReply {
        StatusReply {
            servers: vec![ServerStatus {
                id: "cs-1".into(),
                state: "alive".into(),
                address: "127.0.0.1:7001".into(),
                chunks: 7,
                used_bytes: 1 << 20,
                free_bytes: 1 << 30,
                last_heartbeat_ms_ago: 412,
                client_read_rate: 5,
                ..ServerStatus::default()
            }],
            chunks: Some(ChunkTotals { total: 7, safe: 7, ..ChunkTotals::default() }),
            ..StatusReply::default()
        }
    }

    #[test]
    fn json_has_the_keys_programs_rely_on() {
        let json = serde_json::to_value(Status::from(reply())).unwrap();
        for key in
            ["id", "state", "address", "chunks", "usedBytes", "freeBytes", "lastHeartbeatMsAgo"]
        {
            assert!(json["servers"][0].get(key).is_some(), "servers[].{key} in {json}");
        }
        for key in ["total", "safe", "degraded", "endangered", "unavailable", "lost", "diverging"] {
            assert!(json["chunks"].get(key).is_some(), "chunks.{key} in {json}");
        }
        assert_eq!(json["servers"][0]["lastHeartbeatMsAgo"], 412);
        assert_eq!(json["servers"][0]["clientReadBytesPerSecond"], 5);
    }

    #[test]
    fn the_table_says_the_same_to_people() {
        let table = Status::from(reply()).table();
        assert!(
            table.contains("cs-1    alive  127.0.0.1:7001       7  1.0 MiB  1.0 GiB  0.4 s ago"),
            "{table}"
        );
        assert!(table.contains("7 in all: 7 safe"), "{table}");
        assert!(!table.contains("diverging"), "{table}");
        let differing = Status::from(StatusReply { diverging_chunks: 2, ..reply() });
        let table = differing.table();
        assert!(table.contains("0 lost; 2 diverging\n"), "{table}");
    }

    #[test]
    fn what_is_wrong_is_told_with_the_page_that_helps() {
        assert!(!Status::from(reply()).table().contains("trouble"));
        let mut wrong = reply();
        wrong.servers[0].state = "dead".to_owned();
        wrong.servers[0].refused = "older copy".to_owned();
        wrong.chunks = Some(ChunkTotals {
            total: 7,
            lost: 2,
            endangered: 4,
            degraded: 1,
            ..ChunkTotals::default()
        });
        let table = Status::from(wrong).table();
        for line in [
            "trouble cs-1 is dead; see docs/operations.md#a-server-is-dead\n",
            "cs-1    dead (refused)  ",
            "trouble older copy; see docs/operations.md#a-directory-is-refused\n",
            "trouble 2 chunk(s) lost; see docs/operations.md#a-chunk-is-lost\n",
            "trouble 5 chunk(s) short of copies; see docs/operations.md#copies-are-missing\n",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn exposure_is_told_with_what_is_left_to_do() {
        assert!(!Status::from(reply()).table().contains("exposed"));
        let exposed = StatusReply {
            oldest_exposure_ms: Some(135_000),
            copy_backlog_bytes: 3 << 30,
            copy_rate: 100 << 20,
            copy_eta_ms: Some(30_720),
            ..reply()
        };
        let status = Status::from(exposed);
        let table = status.table();
        let line = "exposed for 2 min 15 s: 3.0 GiB to copy at 100 MiB/s, 30 s left";
        assert!(table.contains(line), "{table}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["oldestExposureMs"], 135_000);
        assert_eq!(json["bytesToCopy"], 3_u64 << 30);
        assert_eq!(json["copyBytesPerSecond"], 100 << 20);
        assert_eq!(json["etaMs"], 30_720);
        let still = Status::from(StatusReply { copy_eta_ms: None, copy_rate: 0, ..reply() });
        assert!(serde_json::to_value(&still).unwrap()["etaMs"].is_null());
        assert_eq!((time(900), time(7_260_000)), ("0.9 s".to_owned(), "2 h 1 min".to_owned()));
    }

    #[test]
    fn a_wish_is_shown_with_its_end_and_who_wished_it() {
        let mut reply = reply();
        reply.servers[0].overlays.push(dfs_proto::control::Overlay {
            kind: "suspended".to_owned(),
            since_ns: 86_400_000_000_000,
            until_ns: Some(86_460_000_000_000),
            by: "ada@host".to_owned(),
        });
        let status = Status::from(reply);
        let table = status.table();
        assert!(table.contains("alive (suspended)"), "{table}");
        let line = "server  cs-1 is suspended until 1970-01-02 00:01:00, since 1970-01-02 00:00:00 by ada@host";
        assert!(table.contains(line), "{table}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["servers"][0]["overlays"][0]["until"], "1970-01-02 00:01:00");
    }

    #[test]
    fn notices_have_a_time_and_silent_clients_an_end() {
        let reply = StatusReply {
            notices: vec![Notice { at_ns: 86_400_000_000_000, text: "cs-1 is \u{1b}dead".into() }],
            client_list: vec![ClientStatus {
                opens: 1,
                ends_in_ms: Some(475_900),
                ..ClientStatus::default()
            }],
            ..StatusReply::default()
        };
        let status = Status::from(reply);
        let table = status.table();
        assert!(table.contains("notice  1970-01-02 00:00:00  cs-1 is \\x1bdead"), "{table}");
        assert!(table.contains("1 open, silent: its opens and locks end in 475 s"), "{table}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["notices"][0]["at"], "1970-01-02 00:00:00");
        assert_eq!(json["notices"][0]["text"], "cs-1 is \u{1b}dead");
    }
}
