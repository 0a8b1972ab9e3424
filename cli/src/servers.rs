//! Calls to the master about servers and events.

use std::time::Duration;

use anyhow::Context as _;
use dfs_proto::control::server_admin_client::ServerAdminClient;
use dfs_proto::control::{
    DecommissionRequest, DrainReply, DrainRequest, DrillReply, DrillRequest, EventsReply,
    EventsRequest, RebalanceReply, RebalanceRequest, RouteReply, RouteRequest, WishReply,
    WishRequest,
};
use dfs_service::conn::control_channel;

use crate::admin::call;
use crate::cluster::Target;

const DECOMMISSION_MIN: Duration = Duration::from_secs(30);

macro_rules! ask {
    ($target:expr, $method:ident, $request:expr) => {
        call($target, async |target| {
            let channel = control_channel(&target.master, &target.key);
            ServerAdminClient::new(channel)
                .$method($request)
                .await
                .map(|reply| reply.into_inner())
                .map_err(|refusal| refusal.message().to_owned())
        })
    };
}

pub(crate) fn wish(target: &Target, request: WishRequest) -> anyhow::Result<WishReply> {
    crate::admin::check_reachable(target)?;
    ask!(target, wish, request)
}

pub(crate) fn drill(target: &Target, server: String) -> anyhow::Result<DrillReply> {
    ask!(target, drill, DrillRequest { server }).context("ask how the drill goes")
}

pub(crate) fn drain(target: &Target, server: String) -> anyhow::Result<DrainReply> {
    ask!(target, drain, DrainRequest { server }).context("ask how far it is")
}

/// Says whether that changed anything.
pub(crate) fn decommission(target: &Target, server: String) -> anyhow::Result<bool> {
    let request = DecommissionRequest { server, by: myself() };
    // The master looks twice, some seconds apart.
    let target = &Target { wait: target.wait.max(DECOMMISSION_MIN), ..target.clone() };
    Ok(ask!(target, decommission, request)?.changed)
}

pub(crate) fn rebalance(target: &Target, action: &str) -> anyhow::Result<RebalanceReply> {
    crate::admin::check_reachable(target)?;
    let request = RebalanceRequest { action: action.to_owned(), by: myself() };
    ask!(target, rebalance, request)
}

pub(crate) fn route(target: &Target, request: RouteRequest) -> anyhow::Result<RouteReply> {
    crate::admin::check_reachable(target)?;
    ask!(target, route, request)
}

pub(crate) fn events(target: &Target, request: EventsRequest) -> anyhow::Result<EventsReply> {
    ask!(target, events, request).context("ask for events")
}

/// Who asks, as far as this machine knows.
pub(crate) fn myself() -> String {
    let user = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}
