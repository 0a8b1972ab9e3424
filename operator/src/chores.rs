//! What the chart has done once, by a process of its own: Helm neither upgrades a definition nor waits for a finalizer.

use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};

use crate::crd::DistributedFS;
use crate::names::MANAGER;

const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// Gives the API server the definition of this version.
///
/// # Errors
/// If the API server is not reached or refuses it.
pub fn apply_definition() -> anyhow::Result<()> {
    block_on(async {
        let client = Client::try_default().await.context("connect to the API server")?;
        let api: Api<
            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        > = Api::all(client);
        let definition = crate::crd::definition();
        let name = definition.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&definition)).await?;
        Ok(())
    })
}

/// Deletes a file system and waits until its mounts are gone, at most `wait`. One that is not there is as good.
///
/// # Errors
/// If the API server is not reached or refuses it, or it takes longer.
pub fn remove(namespace: &str, name: &str, wait: Duration) -> anyhow::Result<()> {
    block_on(async {
        let client = Client::try_default().await.context("connect to the API server")?;
        let api: Api<DistributedFS> = Api::namespaced(client, namespace);
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            other => drop(other?),
        }
        let until = tokio::time::Instant::now() + wait;
        while let Some(there) = api.get_opt(name).await? {
            if until <= tokio::time::Instant::now() {
                let status = there.status.unwrap_or_default();
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
                anyhow::bail!(
                    "still there after {} s: {}",
                    wait.as_secs(),
                    ready.map_or("no operator seems to look after it", |c| c.message.as_str())
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    })
}
