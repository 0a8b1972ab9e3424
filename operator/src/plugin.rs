//! What `kubectl dfs` asks of the API server, as the person who types it: which file system is meant, a way to its
//! master, commands by annotation, and everything that tells how it is.

pub mod bundle;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dfs_service::conn::ClusterKey;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::command::{self, PREFIX};
use crate::crd::{DistributedFS, LastCommand};
use crate::names::{self, CONTROL_PORT};
use crate::observe;
use crate::observed::Role;
use crate::plan::is_paused;

const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Which file system is meant.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// None: that of the context.
    pub namespace: Option<String>,
    /// None: the only one there is.
    pub file_system: Option<String>,
}

/// One file system, seen through the API server.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Plugin {
    runtime: tokio::runtime::Runtime,
    client: Client,
    pub namespace: String,
    pub name: String,
}

/// A node's mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPod {
    pub node: String,
    pub pod: String,
    pub ready: bool,
    pub problem: Option<String>,
}

impl Plugin {
    /// # Errors
    /// If there is no kubeconfig, the API server does not answer, or it is not clear which file system is meant.
    pub fn connect(choice: &Choice) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start the runtime")?;
        let Choice { kubeconfig, context, namespace, file_system } = choice;
        let (client, namespace, name) = runtime.block_on(async {
            let options =
                KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            let config = match kubeconfig {
                Some(file) => {
                    let read = Kubeconfig::read_from(file);
                    let read = read.with_context(|| format!("read {}", file.display()))?;
                    Config::from_custom_kubeconfig(read, &options).await?
                }
                None if context.is_some() => Config::from_kubeconfig(&options).await?,
                None => match Config::infer().await {
                    Ok(config) => config,
                    Err(error) => {
                        tracing::debug!(%error, "no kubeconfig");
                        anyhow::bail!(
                            "no kubeconfig, neither ~/.kube/config nor in KUBECONFIG: name one with --kubeconfig FILE"
                        );
                    }
                },
            };
            let namespace = namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
            let client = Client::try_from(config).context("connect to the API server")?;
            let name = match file_system {
                Some(name) => name.clone(),
                None => only_one(&client, &namespace).await?,
            };
            anyhow::Ok((client, namespace, name))
        })?;
        Ok(Self { runtime, client, namespace, name })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// # Errors
    /// If it is not there, or the API server does not answer.
    pub fn resource(&self) -> anyhow::Result<DistributedFS> {
        let found = self.runtime.block_on(self.api::<DistributedFS>().get_opt(&self.name))?;
        found.with_context(|| {
            format!(
                "no file system '{}' in namespace {}: `kubectl get dfs -A` lists all",
                self.name, self.namespace
            )
        })
    }

    /// The cluster key, for those who may read its Secret.
    ///
    /// # Errors
    /// If the Secret may not be read, or is not what the operator made.
    pub fn key(&self) -> anyhow::Result<ClusterKey> {
        let digits = self.key_text()?;
        ClusterKey::from_hex(&digits)
            .with_context(|| format!("Secret {} holds no cluster key", names::key(&self.name)))
    }

    /// The same as it is written.
    ///
    /// # Errors
    /// As [`Self::key`].
    pub fn key_text(&self) -> anyhow::Result<String> {
        let name = names::key(&self.name);
        let secret = self.runtime.block_on(self.api::<Secret>().get_opt(&name));
        let secret = secret.with_context(|| format!("read Secret {name}"))?;
        let secret = secret.with_context(|| {
            format!("there is no Secret {name}: the operator has not made the file system yet")
        })?;
        observe::key_text(&secret).with_context(|| format!("Secret {name} holds no cluster key"))
    }

    /// The master's pod.
    ///
    /// # Errors
    /// If there is none that runs.
    pub fn master_pod(&self) -> anyhow::Result<String> {
        let pods = self.pods(Role::Master)?;
        let running = pods.iter().find(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        });
        running.map(kube::ResourceExt::name_any).with_context(|| {
            format!(
                "no master pod of {} runs: `kubectl -n {} describe pod {}-0` says why",
                self.name,
                self.namespace,
                names::master(&self.name)
            )
        })
    }

    fn pods(&self, role: Role) -> anyhow::Result<Vec<Pod>> {
        let ours = ListParams::default().labels(&names::selector(&self.name, role));
        Ok(self.runtime.block_on(self.api::<Pod>().list(&ours)).context("list pods")?.items)
    }

    /// An address of this machine behind which is the master, for as long as this process runs.
    ///
    /// # Errors
    /// If there is no master pod.
    pub fn forward(&self) -> anyhow::Result<SocketAddr> {
        let (pod, pods) = (self.master_pod()?, self.api::<Pod>());
        // Tried once here, where it can be said what is wrong.
        let first = self.runtime.block_on(pods.portforward(&pod, &[CONTROL_PORT]));
        first.with_context(|| format!("forward a port to pod {pod}"))?.abort();
        let listener = self.runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        self.runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (pods, pod) = (pods.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(error) = relay(connection, &pods, &pod).await {
                        tracing::debug!(%error, pod, "a forwarded connection ended");
                    }
                });
            }
        });
        Ok(address)
    }

    /// Annotates the resource and waits until the operator says what came of it.
    ///
    /// # Errors
    /// If the command is wrong by itself, another one waits, or nobody takes it within `wait`.
    pub fn command(&self, name: &str, value: &str, wait: Duration) -> anyhow::Result<LastCommand> {
        command::parse(name, value).map_err(|why| anyhow::anyhow!("{why}"))?;
        let key = format!("{PREFIX}{name}");
        let fs = self.resource()?;
        if let Some(waiting) = fs.annotations().get(&key) {
            anyhow::bail!(
                "{name}={waiting} has not been taken yet: wait, or take it back with `kubectl -n {} annotate dfs {} {key}-`",
                self.namespace,
                self.name
            );
        }
        anyhow::ensure!(
            !is_paused(&fs),
            "{} is paused: no command is taken before spec.paused and the annotation {} are gone",
            self.name,
            names::RECONCILE
        );
        let api = self.api::<DistributedFS>();
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key.clone(): value}}}));
        let params = PatchParams::default();
        let patched = self.runtime.block_on(api.patch(&self.name, &params, &patch));
        patched.context("annotate the resource")?;
        let until = Instant::now() + wait;
        loop {
            let fs = self.resource()?;
            let waits = fs.annotations().get(&key).is_some_and(|there| there == value);
            // The status is written before the annotation goes.
            let last = fs.status.and_then(|status| status.last_command);
            if let Some(last) = last.filter(|last| !waits && last.name == name) {
                return Ok(last);
            }
            anyhow::ensure!(
                Instant::now() < until,
                "no operator took {name}={value} within {} s; the annotation stays: see `kubectl -n {} get deployment,lease`",
                wait.as_secs(),
                self.namespace
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// # Errors
    /// If the API server does not answer.
    pub fn mounts(&self) -> anyhow::Result<Vec<MountPod>> {
        let pods = self.pods(Role::Mount)?;
        let mut mounts: Vec<MountPod> = pods
            .iter()
            .filter_map(observe::pod)
            .map(|pod| MountPod {
                node: pod.node.unwrap_or_default(),
                pod: pod.name,
                ready: pod.ready && !pod.ending,
                problem: pod.problem,
            })
            .collect();
        mounts.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(mounts)
    }
}

async fn only_one(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let api: Api<DistributedFS> = Api::namespaced(client.clone(), namespace);
    let all = api.list(&ListParams::default()).await.context("list file systems")?;
    let names: Vec<String> = all.items.iter().map(kube::ResourceExt::name_any).collect();
    match names.as_slice() {
        [one] => Ok(one.clone()),
        [] => anyhow::bail!(
            "no file system in namespace {namespace}: name another with -n, `kubectl get dfs -A` lists all"
        ),
        many => anyhow::bail!(
            "namespace {namespace} has {} file systems: name one with --file-system ({})",
            many.len(),
            many.join(", ")
        ),
    }
}

async fn relay(mut connection: TcpStream, pods: &Api<Pod>, pod: &str) -> anyhow::Result<()> {
    let mut forwarder = pods.portforward(pod, &[CONTROL_PORT]).await?;
    let stream = forwarder.take_stream(CONTROL_PORT);
    let mut stream = stream.context("the forwarder has no stream")?;
    tokio::io::copy_bidirectional(&mut connection, &mut stream).await?;
    drop(stream);
    forwarder.join().await?;
    Ok(())
}
