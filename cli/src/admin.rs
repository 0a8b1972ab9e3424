//! Calls to the master's control door, on a small runtime that lives as long as one command.

use std::error::Error as _;
use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_proto::control::admin_client::AdminClient;
use dfs_proto::control::{
    EvictRequest, ExplainReply, ExplainRequest, FsckFinding, FsckRequest, LocateReply,
    LocateRequest, StatusReply, StatusRequest, WhatIfReply, WhatIfRequest,
};
use dfs_service::conn::{ClusterKey, Door, control_channel, dial, watched_control_channel};
use dfs_service::page::Page;

use crate::cluster::Target;
use crate::failure::{Failure, fail};

/// Nobody listens: tried again after so long.
const AGAIN: Duration = Duration::from_millis(100);

/// Nobody listens there, or whoever did ended while we were introduced.
fn is_of_nobody(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

/// Fails with advice if nobody serves at the address: a lazy channel would only say "transport error".
pub(crate) fn check_reachable(target: &Target) -> anyhow::Result<()> {
    let Target { master, key, wait, wait_for_start } = target;
    let until = Instant::now() + *wait;
    let reached = loop {
        let reached = dial(master, key, Door::Control, *wait);
        let is_away = reached.as_ref().is_err_and(|error| is_of_nobody(error.kind()));
        if !(is_away && *wait_for_start && Instant::now() + AGAIN < until) {
            break reached;
        }
        std::thread::sleep(AGAIN);
    };
    match reached {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied && key.is_none() => fail(
            format!("master {master}: {error}"),
            "give it with --key-file FILE or DFS_KEY_FILE (a local cluster has it in DIR/cluster.key), or name a local cluster with --dir",
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => fail(
            format!("master {master}: {error}"),
            "name this cluster's key with --key-file, or its directory with --dir",
        ),
        Err(error) => fail(
            format!("master {master}: {error}"),
            format!(
                "is the cluster up (`dfs up`), and is this the address of its master? see {}",
                Page::MasterSilent
            ),
        ),
    }
}

pub(crate) fn status(target: &Target) -> anyhow::Result<StatusReply> {
    check_reachable(target)?;
    call(target, async |target| {
        let mut client = AdminClient::new(control_channel(&target.master, &target.key));
        client
            .status(StatusRequest {})
            .await
            .map(|reply| reply.into_inner())
            .map_err(|refusal| refusal.message().to_owned())
    })
    .context("ask for the status")
}

pub(crate) fn evict(target: &Target, client: u128) -> anyhow::Result<()> {
    check_reachable(target)?;
    call(target, async |target| {
        let mut admin = AdminClient::new(control_channel(&target.master, &target.key));
        admin
            .evict(EvictRequest { client: client.to_be_bytes().to_vec() })
            .await
            .map(|_| ())
            .map_err(|refusal| refusal.message().to_owned())
    })
    .with_context(|| format!("evict {client:032x}"))
}

pub(crate) fn locate(target: &Target, inode: u64, files: bool) -> anyhow::Result<LocateReply> {
    call(target, async |target| {
        let mut client = AdminClient::new(control_channel(&target.master, &target.key));
        client
            .locate(LocateRequest { inode, files })
            .await
            .map(|reply| reply.into_inner())
            .map_err(|refusal| refusal.message().to_owned())
    })
    .context("ask for the chunks")
}

pub(crate) fn explain(target: &Target, inode: u64, first: u64) -> anyhow::Result<ExplainReply> {
    call(target, async |target| {
        let mut client = AdminClient::new(control_channel(&target.master, &target.key));
        client
            .explain(ExplainRequest { inode, first })
            .await
            .map(|reply| reply.into_inner())
            .map_err(|refusal| refusal.message().to_owned())
    })
    .context("ask about the chunks")
}

pub(crate) fn what_if(target: &Target, kill: Vec<String>) -> anyhow::Result<WhatIfReply> {
    check_reachable(target)?;
    call(target, async move |target| {
        let mut client = AdminClient::new(control_channel(&target.master, &target.key));
        client
            .what_if(WhatIfRequest { kill })
            .await
            .map(|reply| reply.into_inner())
            .map_err(|refusal| refusal.message().to_owned())
    })
    .context("whatif")
}

/// Runs a check at the master and calls `each` with every finding as it comes. It takes as long as reading all disks does,
/// unless the master falls silent.
pub(crate) fn fsck(target: &Target, mut each: impl FnMut(FsckFinding)) -> anyhow::Result<()> {
    check_reachable(target)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let Target { master, key, wait, .. } = target;
        let mut client = AdminClient::new(watched_control_channel(master, key, *wait));
        let said = |refusal: tonic::Status| match refusal.source() {
            None => anyhow::anyhow!("check: master {master}: {}", refusal.message()),
            // Not the master's own words.
            Some(_) => Failure::new(
                format!("check: the connection to master {master} ended, or it was silent"),
                "see `dfs status`, and check again",
            )
            .into(),
        };
        let asked = client.fsck(FsckRequest { replicas: true }).await;
        let mut findings = asked.map_err(said)?.into_inner();
        while let Some(finding) = findings.message().await.map_err(said)? {
            each(finding);
        }
        Ok(())
    })
}

/// How many chunkservers the master has heard of lately.
pub(crate) fn alive_servers(master: &str, key_file: &Path) -> anyhow::Result<Vec<String>> {
    let target = Target {
        master: master.to_owned(),
        key: ClusterKey::load(key_file)?,
        wait: Duration::from_secs(5),
        wait_for_start: false,
    };
    let alive = status(&target)?.servers.into_iter().filter(|server| server.state == "alive");
    Ok(alive.map(|server| server.id).collect())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

pub(crate) fn call<'a, T, F>(
    target: &'a Target,
    ask: impl FnOnce(&'a Target) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    runtime()?.block_on(async {
        match tokio::time::timeout(target.wait, ask(target)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(refusal)) => anyhow::bail!("master {}: {refusal}", target.master),
            Err(_) => fail(
                format!(
                    "master {}: no answer within {} s",
                    target.master,
                    target.wait.as_secs_f64()
                ),
                "see its log, or give it longer with --server-wait",
            ),
        }
    })
}
