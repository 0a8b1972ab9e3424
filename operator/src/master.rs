//! Calls to a file system's master, each with a deadline.

use std::time::Duration;

use dfs_proto::control::admin_client::AdminClient;
use dfs_proto::control::server_admin_client::ServerAdminClient;
use dfs_proto::control::{
    DecommissionRequest, RebalanceRequest, StatusReply, StatusRequest, WishRequest,
};
use dfs_service::conn::{ClusterKey, control_channel};
use tonic::transport::Channel;

use crate::command::Command;
use crate::names::{SIGNED_COMMAND, SIGNED_RENEWAL, SIGNED_SCALING};
use crate::observed::{Overlay, Report, Server};

const ANSWER_MAX: Duration = Duration::from_secs(4);
/// The master looks twice, some seconds apart.
const DECOMMISSION_MAX: Duration = Duration::from_secs(30);

/// One master, as somebody who has the key.
#[derive(Debug)]
pub struct Master {
    channel: Channel,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// It understood and said no.
    Refused(String),
    /// It did not answer; what was asked may have happened.
    Silent(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) | Self::Silent(why) => f.write_str(why),
        }
    }
}

impl Master {
    #[must_use]
    pub fn new(address: &str, key: &ClusterKey) -> Self {
        Self { channel: control_channel(address, key) }
    }

    /// Who is there and how safe the data is.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn report(&self) -> Result<Report, Failed> {
        let mut client = AdminClient::new(self.channel.clone());
        within(ANSWER_MAX, client.status(StatusRequest {})).await.map(report)
    }

    /// Does what a person typed; in words what came of it.
    ///
    /// # Errors
    /// As the master says; servers named before the one that failed are done.
    pub async fn run(&self, command: &Command) -> Result<String, Failed> {
        match command {
            Command::Failover { servers, time, force } => {
                let ask = |wish: &mut WishRequest| {
                    (wish.for_ms, wish.force) = (time.map(millis), *force);
                };
                self.wish_all(servers, "suspended", "suspended", false, ask).await
            }
            Command::Recover { servers } => {
                self.wish_all(servers, "suspended", "suspended", true, |_| ()).await
            }
            Command::Drain { servers, end } => {
                self.wish_all(servers, "draining", "draining", *end, |_| ()).await
            }
            Command::Maintenance { servers, time, end } => {
                let ask = |wish: &mut WishRequest| wish.for_ms = time.map(millis);
                self.wish_all(servers, "maintenance", "in maintenance", *end, ask).await
            }
            Command::Rebalance { start } => self.rebalance(*start).await,
        }
    }

    async fn wish_all(
        &self,
        servers: &[dfs_core::ids::ServerId],
        overlay: &str,
        word: &str,
        end: bool,
        more: impl Fn(&mut WishRequest),
    ) -> Result<String, Failed> {
        let mut done: Vec<String> = Vec::new();
        for server in servers {
            let mut wish = request(&server.to_string(), overlay, end, SIGNED_COMMAND);
            more(&mut wish);
            match self.wish(wish).await {
                Ok(changed) => done.push(match (end, changed) {
                    (false, true) => format!("{server} is {word}"),
                    (false, false) => format!("{server} was already {word}"),
                    (true, true) => format!("{server} is no longer {word}"),
                    (true, false) => format!("{server} was not {word}"),
                }),
                Err(failed) => {
                    let before = match done.is_empty() {
                        true => String::new(),
                        false => format!("{}; then ", done.join("; ")),
                    };
                    return Err(match failed {
                        Failed::Refused(why) => Failed::Refused(format!("{before}{server}: {why}")),
                        Failed::Silent(why) => Failed::Silent(format!("{before}{server}: {why}")),
                    });
                }
            }
        }
        Ok(done.join("; "))
    }

    async fn wish(&self, wish: WishRequest) -> Result<bool, Failed> {
        let mut client = ServerAdminClient::new(self.channel.clone());
        Ok(within(ANSWER_MAX, client.wish(wish)).await?.changed)
    }

    /// Empties a server that is to go, or ends that.
    ///
    /// # Errors
    /// As the master says.
    pub async fn drain(&self, server: &str, end: bool) -> Result<bool, Failed> {
        self.wish(request(server, "draining", end, SIGNED_SCALING)).await
    }

    /// Announces that a server is away for `time`; none: that it is back.
    ///
    /// # Errors
    /// As the master says.
    pub async fn maintenance(&self, server: &str, time: Option<Duration>) -> Result<bool, Failed> {
        let mut wish = request(server, "maintenance", time.is_none(), SIGNED_RENEWAL);
        wish.for_ms = time.map(millis);
        self.wish(wish).await
    }

    /// Takes an empty server out for good.
    ///
    /// # Errors
    /// As the master says.
    pub async fn decommission(&self, server: &str) -> Result<bool, Failed> {
        let request =
            DecommissionRequest { server: server.to_owned(), by: SIGNED_SCALING.to_owned() };
        let mut client = ServerAdminClient::new(self.channel.clone());
        Ok(within(DECOMMISSION_MAX, client.decommission(request)).await?.changed)
    }

    async fn rebalance(&self, start: bool) -> Result<String, Failed> {
        let action = if start { "start" } else { "stop" };
        let request = RebalanceRequest { action: action.to_owned(), by: SIGNED_COMMAND.to_owned() };
        let mut client = ServerAdminClient::new(self.channel.clone());
        let reply = within(ANSWER_MAX, client.rebalance(request)).await?;
        Ok(match (start, reply.changed) {
            (true, true) => "rebalancing began".to_owned(),
            (true, false) => "rebalancing goes on already".to_owned(),
            (false, true) => "rebalancing ended".to_owned(),
            (false, false) => "there was no rebalancing".to_owned(),
        })
    }
}

fn request(server: &str, overlay: &str, end: bool, by: &str) -> WishRequest {
    WishRequest {
        server: server.to_owned(),
        overlay: overlay.to_owned(),
        end,
        for_ms: None,
        force: false,
        by: by.to_owned(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failed> {
    use std::error::Error as _;
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        // A source is the connection's error, not the master's own words.
        Ok(Err(status)) => Err(match status.source() {
            None => Failed::Refused(status.message().to_owned()),
            Some(_) => {
                let mut words = status.message().to_owned();
                let mut at = status.source();
                while let Some(error) = at {
                    words = format!("{words}: {error}");
                    at = error.source();
                }
                Failed::Silent(words)
            }
        }),
        Err(_) => Err(Failed::Silent(format!("no answer within {} s", limit.as_secs()))),
    }
}

fn report(reply: StatusReply) -> Report {
    let chunks = reply.chunks.unwrap_or_default();
    let mut servers: Vec<Server> = reply
        .servers
        .into_iter()
        .filter_map(|server| {
            Some(Server {
                id: server.id.parse().ok()?,
                state: server.state,
                overlays: server
                    .overlays
                    .into_iter()
                    .map(|overlay| Overlay { kind: overlay.kind, by: overlay.by })
                    .collect(),
                chunks: server.chunks,
                used_bytes: server.used_bytes,
                free_bytes: server.free_bytes,
            })
        })
        .collect();
    servers.sort_by_key(|server| server.id);
    Report {
        phase: reply.phase,
        replication: reply.replication,
        min_replicas: reply.min_replicas,
        servers,
        total: chunks.total,
        safe: chunks.safe,
        degraded: chunks.degraded,
        endangered: chunks.endangered,
        unavailable: chunks.unavailable,
        lost: chunks.lost,
    }
}
