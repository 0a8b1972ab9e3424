//! `dfs operator`: the Kubernetes operator, and what a chunkserver in a pod of its does besides serving.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::args::values::{parse_socket, parse_time};
use crate::failure::fail;
use crate::output;

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "It talks to the API server as its ServiceAccount, or as KUBECONFIG says.

Examples:
  dfs operator --namespace storage --image distributedfs.io/dfs:0.1.0
  dfs operator crd | kubectl apply -f -"
)]
pub(crate) struct OperatorArgs {
    #[command(subcommand)]
    pub what: Option<OperatorCommand>,
    /// Look after the file systems of this namespace [default: of all namespaces]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Image of file systems that name none
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("distributedfs.io/dfs:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// Namespace in which several operators agree on one that acts
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "default")]
    pub own_namespace: String,
    /// Name of this operator among them
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "operator")]
    pub name: String,
    /// Serve /metrics, /healthz and /readyz over HTTP here, to whoever connects [default: not served]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_socket)]
    pub metrics: Option<SocketAddr>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum OperatorCommand {
    /// Print the definition of the resource DistributedFS, as the chart has it
    Crd {
        /// Give it to the API server instead: what Helm does not do in an upgrade
        #[arg(long)]
        apply: bool,
    },
    /// Delete a file system and wait until it is gone, before the operator goes
    Remove {
        /// Of the resource
        #[arg(long, value_name = "NAME")]
        name: String,
        #[arg(long, value_name = "NAMESPACE")]
        namespace: String,
        /// How long to wait
        #[arg(long, value_name = "TIME", default_value = "4m", value_parser = parse_time)]
        wait: std::time::Duration,
    },
}

pub(crate) fn run(args: &OperatorArgs) -> anyhow::Result<()> {
    let OperatorArgs { what, namespace, image, own_namespace, name, metrics } = args;
    match what {
        Some(OperatorCommand::Crd { apply: false }) => {
            return output::text(&operator::crd::definition_yaml()?);
        }
        Some(OperatorCommand::Crd { apply: true }) => {
            return operator::chores::apply_definition()
                .context("give the definition to the API server");
        }
        Some(OperatorCommand::Remove { name, namespace, wait }) => {
            return operator::chores::remove(namespace, name, *wait)
                .with_context(|| format!("remove file system {name}"));
        }
        None => {}
    }
    dfs_service::log::init()?;
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random).context("random numbers")?;
    operator::run(operator::Config {
        namespace: namespace.clone(),
        own_namespace: own_namespace.clone(),
        // A process that was restarted in its pod is another one.
        identity: format!("{name}_{:08x}", u32::from_be_bytes(random)),
        image: image.clone(),
        metrics: *metrics,
    })
    .context("operator")
}

/// Renews the Lease of this server's pod from now on, beside everything else.
pub(crate) fn hold_lease(lease: &str) -> anyhow::Result<()> {
    let of = |name: &str| match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => fail(
            format!("--kubernetes-lease {lease}: {name} is not set"),
            "it is for pods that the operator makes; leave it out elsewhere",
        ),
    };
    let holder = operator::lease::Holder {
        lease: lease.to_owned(),
        namespace: of("POD_NAMESPACE")?,
        pod_uid: of("POD_UID")?,
    };
    operator::lease::start(holder).context("start to renew the Lease")
}
