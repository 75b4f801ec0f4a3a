//! The command line: the only reader of flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// FabEdge's control plane.
///
/// Computes who is connected to whom, and writes one document (and certificate) per node for the agents.
#[derive(Debug, Parser)]
#[command(name = "fabedge-operator", version)]
pub struct Cli {
    /// Log filter, in tracing's syntax: `info`, `fabedge_operator::standalone=debug,info`.
    #[arg(long, global = true, env = "FABEDGE_LOG", default_value = "info")]
    pub log: EnvFilter,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run in a cluster: what the chart installs.
    ///
    /// Watches Nodes, Communities and Clusters, and keeps a ConfigMap with the document and a Secret with the
    /// certificate of every edge and of the connector up to date, in its own namespace, and the pod
    /// fabedge-agent-<node> of every edge, made of the PodTemplate fabedge-agent. A new image is given to running pods;
    /// for another template or other arguments (annotations argument.fabedge.io/<option> of a Node) they are replaced,
    /// three at a time. One of several replicas leads, by the Lease fabedge-operator-leader. Finds the API by
    /// KUBECONFIG, ~/.kube/config or its service account. Ends on SIGTERM or SIGINT; what was published stays in
    /// force.
    Run(Run),
    /// Uninstall: what the chart's hook runs before `helm uninstall` removes the rest.
    ///
    /// Ends the operator, the connector and the agents; on every node where an agent ran, a pod fabedge-cleanup-<node>
    /// then runs `fabedge-agent cleanup`. What happened on which node is printed; a node that is offline or does not
    /// answer in time is named, for `fabedge-agent cleanup` to be run there later, and is no failure. Then removes
    /// ConfigMaps, Secrets, the CA among them, Lease and IPPools that the operator made. Definitions, Communities and
    /// Clusters stay. May be run again.
    Uninstall(Uninstall),
    /// Run on a folder of manifests: no Kubernetes API needed.
    ///
    /// Reads every *.yaml and *.yml directly in FOLDER (Node, Community, Cluster, Settings, Lists of them), watches
    /// it, and keeps DIR up to date: DIR/<node>/ with tunnels.yaml, ca.crt, tls.crt and tls.key for every edge,
    /// DIR/connector/ with the same, and DIR/cloud/tunnels.yaml for all other cloud nodes. Only what changed is
    /// rewritten, each file in one step. A document that is malformed is reported, and what it said before stays
    /// in effect. Ends on SIGTERM or SIGINT.
    Standalone(Standalone),
    /// Print the documents and the problems of a folder of manifests, once, and change nothing.
    ///
    /// Documents go to stdout as one YAML stream, problems to stderr. Exit code 0: no errors (there may be
    /// warnings, a community member that does not exist yet, say); 1: errors, named one per line; 2: the
    /// folder cannot be read, or wrong usage.
    Render(Render),
    /// Print the custom resource definitions of Community and Cluster.
    ///
    /// The chart ships the same. Use this to bring them up to date, which `helm upgrade` does not do:
    /// `fabedge-operator crds | kubectl apply --server-side -f -`.
    Crds(Crds),
    /// Print what the chart's values need to know of this cluster: where its DNS is, and its prefixes.
    ///
    /// Run it on a node of the control plane: it looks at the files there, and asks the API, by KUBECONFIG or
    /// ~/.kube/config, for what they do not tell. What cannot be found is `unknown`, with the reason on stderr, and
    /// the exit code is 1.
    ClusterInfo(ClusterInfo),
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// File with a Settings object: what stands under `cluster:` in the chart's values.
    #[arg(long, value_name = "FILE", default_value = "/etc/fabedge/settings.yaml")]
    pub settings: PathBuf,
    /// Namespace of ConfigMaps, Secrets, pods and the Lease.
    #[arg(long, env = "NAMESPACE", default_value = "fabedge")]
    pub namespace: String,
    /// Name of this replica in the Lease; the pod's, by default the host name.
    #[arg(long, env = "POD_NAME", default_value_t = host_name())]
    pub identity: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
}

/// Arguments of `uninstall`.
#[derive(Args, Debug)]
pub struct Uninstall {
    /// Namespace of the release.
    #[arg(long, env = "NAMESPACE", default_value = "fabedge")]
    pub namespace: String,
    /// Seconds after which nodes are no longer waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

fn host_name() -> String {
    // A pod's host name is its name.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", name.trim(), std::process::id())
}

/// Arguments of `cluster-info`.
#[derive(Args, Debug)]
pub struct ClusterInfo {
    /// Look for files under this folder: a node's root that is mounted elsewhere, say.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// Arguments of `crds`.
#[derive(Args, Debug)]
pub struct Crds {
    /// Write each to a file of its own in this folder instead.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `standalone`.
#[derive(Args, Debug)]
pub struct Standalone {
    /// Folder with the manifests.
    pub folder: PathBuf,
    /// Where the documents and certificates go.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Where ca.crt and ca.key are; made if neither is there. Default: DIR/_ca (no node can have that name).
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Look at the folder every so many seconds even if no change was notified.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub poll: u64,
    /// Stop after the first pass; exit code 1 when there were errors.
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `render`.
#[derive(Args, Debug)]
pub struct Render {
    /// Folder with the manifests.
    pub folder: PathBuf,
    /// Output folder of a running operator: what was allocated before is kept as it would keep it. Only read.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print only the document of this node, `connector` or `cloud`.
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
}
