//! A chunkserver's Lease: renewed every ten seconds by the server itself, for the operator and for people. Nothing that
//! the server does depends on it, and nobody is dead for want of it.
//!
//! The operator makes the Lease, with the pod as its owner; the server may only read and renew that one. One PUT for each
//! renewal, built on the last answer; a GET only after a failure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{MissedTickBehavior, interval};

const EVERY: Duration = Duration::from_secs(10);
/// A renewal that takes longer is given up: the next one is due.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Whose Lease it is.
#[derive(Clone, Debug)]
pub struct Holder {
    pub lease: String,
    pub namespace: String,
    /// Tells a pod from one before it with the same name.
    pub pod_uid: String,
}

/// Renews the Lease as long as the process lives, on a thread of its own. Failures are logged, once until it succeeds
/// again, and change nothing else.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(holder: Holder) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
        runtime.block_on(keep(holder));
    })?;
    Ok(())
}

async fn keep(holder: Holder) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut client, mut latest, mut failing) = (None, None, false);
    loop {
        every.tick().await;
        let said = match tokio::time::timeout(ANSWER_MAX, renew(&holder, &mut client, &mut latest))
            .await
        {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                latest = None;
                Some(format!("no answer within {} s", ANSWER_MAX.as_secs()))
            }
        };
        match (said, failing) {
            (Some(why), false) => {
                tracing::warn!(
                    lease = holder.lease,
                    why,
                    "Lease not renewed; data is served all the same"
                );
                failing = true;
            }
            (None, true) => {
                tracing::info!(lease = holder.lease, "Lease renewed again");
                failing = false;
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}

async fn renew(
    holder: &Holder,
    client: &mut Option<Client>,
    latest: &mut Option<Lease>,
) -> anyhow::Result<()> {
    let client = match client {
        Some(client) => client.clone(),
        None => client.insert(Client::try_default().await?).clone(),
    };
    let api: Api<Lease> = Api::namespaced(client, &holder.namespace);
    let mut lease = match latest.take() {
        Some(lease) => lease,
        None => api.get(&holder.lease).await?,
    };
    let ours =
        lease.metadata.owner_references.iter().flatten().any(|owner| owner.uid == holder.pod_uid);
    anyhow::ensure!(ours, "it belongs to a pod before this one; the operator will make another");
    let now = MicroTime(Timestamp::now());
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(&holder.pod_uid) {
        spec.holder_identity = Some(holder.pod_uid.clone());
        spec.acquire_time = Some(now.clone());
    }
    spec.renew_time = Some(now);
    // Left empty by an error: then it is read anew.
    *latest = Some(api.replace(&holder.lease, &PostParams::default(), &lease).await?);
    Ok(())
}
