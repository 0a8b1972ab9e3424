//! The Kubernetes operator: turns one `DistributedFS` resource into a running file system, and tells how it is.
//!
//! It decides nothing about data: who is alive, what is safe and what may go are the master's answers. `plan` is pure;
//! `observe` and `reconcile` are the shell around it.
//!
//! - `crd`: the resource and its status, from which the schema is made
//! - `command`: annotations that are commands
//! - `observed`, `observe`: what is seen
//! - `plan`: what should be done next, and what is said
//! - `resources`, `names`: everything a file system is made of
//! - `reconcile`: performs, and writes status and Events
//! - `master`: calls to the file system's master
//! - `plugin`: what `kubectl dfs` asks of the API server
//! - `chores`: what the chart has done before an upgrade and before it is uninstalled
//! - `leader`, `lease`: which operator acts; a chunkserver's sign of life

pub mod chores;
pub mod command;
pub mod crd;
pub mod leader;
pub mod lease;
pub mod master;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod plugin;
pub mod reconcile;
pub mod resources;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use dfs_service::metrics_http::{MetricsServer, Pages};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::{Config as ControllerConfig, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};

use crd::DistributedFS;

const API_AGAIN: Duration = Duration::from_secs(2);

/// How an operator runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose file systems it looks after; none: all namespaces.
    pub namespace: Option<String>,
    /// Where the election among several operators is held.
    pub own_namespace: String,
    /// Name of this process, different from all others.
    pub identity: String,
    /// For file systems that name no image.
    pub image: String,
    pub metrics: Option<SocketAddr>,
}

/// Runs the operator until it is asked to stop, or until another one leads.
///
/// # Errors
/// If it cannot start, or lost the election it had won: whoever started it starts it again.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(Box::pin(operate(config)))
}

async fn operate(config: Config) -> anyhow::Result<()> {
    let stop = dfs_service::shutdown::Shutdown::on_signals().context("signals")?;
    let (stopping, stopped) = tokio::sync::watch::channel(false);
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
        stop.wait();
        stopping.send_replace(true);
    })?;
    let metrics = Arc::new(metrics::Metrics::new());
    let ready = Arc::new(AtomicBool::new(false));
    let _pages = config.metrics.map(|listen| serve_pages(listen, &metrics, &ready)).transpose()?;

    let client = Client::try_default().await.context("connect to the API server")?;
    // Waited for, not given up: a process that ends would be started again ever more slowly.
    let mut silent = false;
    while let Err(error) = client.apiserver_version().await {
        if !silent {
            tracing::warn!(%error, "the API server does not answer; trying again");
        }
        silent = true;
        tokio::select! {
            () = tokio::time::sleep(API_AGAIN) => {}
            () = until(stopped.clone()) => return Ok(()),
        }
    }
    ready.store(true, Ordering::Relaxed);

    let (lead, mut leading) = tokio::sync::watch::channel(false);
    let election = leader::Elector::new(
        Api::namespaced(client.clone(), &config.own_namespace),
        leader::Config {
            name: "dfs-operator".to_owned(),
            identity: config.identity.clone(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        },
    );
    let election = tokio::spawn(election.run(lead, stopped.clone()));
    tracing::info!(identity = config.identity, "waiting to lead");
    let elected = tokio::select! {
        elected = leading.wait_for(|leads| *leads) => elected.is_ok(),
        () = until(stopped.clone()) => false,
    };
    let mut lost = false;
    if elected {
        tracing::info!(identity = config.identity, "leads");
        metrics.leads.set(1);
        tokio::select! {
            () = Box::pin(control(client, &config, Arc::clone(&metrics))) => {}
            () = until(stopped.clone()) => {}
            _ = leading.wait_for(|leads| !*leads) => lost = !*stopped.borrow(),
        }
        metrics.leads.set(0);
    }
    if lost {
        // What was under way may go on for a moment; a process that ended cannot.
        anyhow::bail!("another operator leads, or the API server did not answer in time");
    }
    // Gives the Lease back.
    let _ended = tokio::time::timeout(Duration::from_secs(3), election).await;
    Ok(())
}

async fn until(mut stopped: tokio::sync::watch::Receiver<bool>) {
    let _gone = stopped.wait_for(|stopped| *stopped).await;
}

fn serve_pages(
    listen: SocketAddr,
    metrics: &metrics::Metrics,
    ready: &Arc<AtomicBool>,
) -> anyhow::Result<MetricsServer> {
    let ready = Arc::clone(ready);
    let pages = Pages {
        registry: metrics.registry.clone(),
        refresh: Box::new(|| ()),
        ready: Box::new(move || match ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("the API server has not answered yet".to_owned()),
        }),
    };
    Ok(MetricsServer::start(listen, pages)?)
}

async fn control(client: Client, config: &Config, metrics: Arc<metrics::Metrics>) {
    let reporter =
        Reporter { controller: names::MANAGER.to_owned(), instance: Some(config.identity.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = reconcile::Context::new(client.clone(), recorder, config.image.clone(), metrics);
    let ours = watcher::Config::default()
        .labels(&format!("app.kubernetes.io/managed-by={}", names::MANAGER));
    let namespace = config.namespace.as_deref();
    Controller::new(api::<DistributedFS>(&client, namespace), watcher::Config::default())
        // Children come up together: one round for all that changed in half a second.
        .with_config(
            ControllerConfig::default().concurrency(4).debounce(Duration::from_millis(300)),
        )
        .owns(api::<StatefulSet>(&client, namespace), ours.clone())
        .owns(api::<DaemonSet>(&client, namespace), ours.clone())
        .watches(api::<Pod>(&client, namespace), ours, |pod| {
            let name = pod.labels().get("app.kubernetes.io/instance")?;
            Some(ObjectRef::<DistributedFS>::new(name).within(&pod.namespace()?))
        })
        .run(reconcile::reconcile, reconcile::after_error, Arc::new(context))
        .for_each(|result| async move {
            match result {
                Ok((object, _)) => tracing::debug!(?object, "round over"),
                // Errors of rounds are logged where they are handled.
                Err(kube::runtime::controller::Error::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "controller"),
            }
        })
        .await;
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
