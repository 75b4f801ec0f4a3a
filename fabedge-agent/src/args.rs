//! Command line: the only reader of flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::facts::TunnelKind;
use crate::source::{ConfigMapName, Place};

/// The node agent of FabEdge: applies this node's document to kernel, charon and CNI.
#[derive(Debug, Parser)]
#[command(name = "fabedge-agent", version)]
pub struct Cli {
    /// Log filter, in tracing's syntax: `info`, `fabedge_agent::tunnels=debug,info`.
    #[arg(long, global = true, env = "FABEDGE_LOG", default_value = "info")]
    pub log: String,
    /// Where the agent keeps what must survive a reboot: the last good document and credentials.
    #[arg(long, global = true, default_value = "/var/lib/fabedge")]
    pub state_dir: PathBuf,
    /// Where the agent keeps what must not survive a reboot: its status and the CNI configuration.
    #[arg(long, global = true, default_value = "/run/fabedge")]
    pub run_dir: PathBuf,
    /// Where the container runtime looks for CNI configurations.
    #[arg(long, global = true, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// charon's VICI socket.
    #[arg(long, global = true, default_value = "/var/run/charon.vici")]
    pub vici_socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the agent is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run on an edge node: local pods, tunnels to the connector and to community peers.
    Edge(RunArgs),
    /// Run on the cloud gateway: tunnels to every edge and to other clusters' connectors.
    Connector(RunArgs),
    /// Run on any other cloud node: routes to the edges through the connector, no tunnels.
    Cloud(RunArgs),
    /// Show what the running agent last reported.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the kernel's route, pod and peer maps with their counters.
    Routes {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove all and only what the agent made on this node. Stop the agent first.
    Cleanup,
}

/// Which of the three roles the agent plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An edge node.
    Edge,
    /// The cloud gateway.
    Connector,
    /// Any other cloud node.
    Cloud,
}

/// How the agent runs.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// This node's document; where it is not there, the same with `.gz` after its name.
    #[arg(long, default_value = "/etc/fabedge/tunnels.yaml")]
    pub config: PathBuf,
    /// The ConfigMap with this node's document, watched through the Kubernetes API instead of mounted. Not for edges,
    /// which hold no credentials for it.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "config")]
    pub config_map: Option<ConfigMapName>,
    /// The certificate authorities that peers' certificates must come from, PEM, one or more.
    #[arg(long, default_value = "/etc/ipsec.d/cacerts/ca.crt")]
    pub ca_cert: PathBuf,
    /// This node's certificate, PEM.
    #[arg(long, default_value = "/etc/ipsec.d/certs/tls.crt")]
    pub cert: PathBuf,
    /// The certificate's private key, PEM.
    #[arg(long, default_value = "/etc/ipsec.d/private/tls.key")]
    pub key: PathBuf,
    /// What the authorities have revoked, PEM, one list or more. Default: ca.crl beside the authorities, where it is there.
    #[arg(long)]
    pub crl: Option<PathBuf>,
    /// Who performs ESP: the kernel behind an xfrm interface, or charon's kernel-libipsec plugin behind a TUN.
    #[arg(long, value_enum, default_value_t = TunnelChoice::Auto)]
    pub tunnel: TunnelChoice,
    /// Whether eBPF programs steer pod traffic. Off, the kernel's slow path carries everything.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub fast_path: Switch,
    /// Whether a connector spreads ESP over its CPUs, by XDP on its uplinks. Auto: where an uplink has fewer receive queues
    /// than there are CPUs.
    #[arg(long, value_enum, default_value_t = SpreadChoice::Auto)]
    pub spread_esp: SpreadChoice,
    /// Masquerade what edge pods send to the outside world.
    #[arg(long, env = "MASQ_OUTGOING", default_value_t = true, action = clap::ArgAction::Set)]
    pub masq_outgoing: bool,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    #[arg(long, default_value = "127.0.0.1:20306")]
    pub metrics_listen: SocketAddr,
    /// Seconds between two passes when nothing happens; drift is repaired at the latest then.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub resync: u64,
}

/// An edge was told to ask the API.
#[derive(Debug, thiserror::Error)]
#[error(
    "--config-map is not for edges, which hold no credentials for the Kubernetes API: mount the document, and name the \
     file with --config"
)]
pub struct NotForEdges;

impl RunArgs {
    /// Where the document is.
    ///
    /// # Errors
    /// When an edge is told to ask the API for it.
    pub fn place(&self, role: Role) -> Result<Place, NotForEdges> {
        match (&self.config_map, role) {
            (Some(_), Role::Edge) => Err(NotForEdges),
            (Some(name), Role::Connector | Role::Cloud) => Ok(Place::ConfigMap(name.clone())),
            (None, _) => Ok(Place::File(self.config.clone())),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Whether ESP is spread over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SpreadChoice {
    /// Where it pays.
    #[default]
    Auto,
    /// Wherever it can be.
    On,
    /// Nowhere.
    Off,
}

/// Which tunnel device to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TunnelChoice {
    /// What charon is set up for.
    Auto,
    /// Kernel ESP.
    Xfrm,
    /// Userspace ESP.
    Libipsec,
}

impl TunnelChoice {
    /// The kind that is forced, if one is.
    pub fn forced(self) -> Option<TunnelKind> {
        match self {
            Self::Auto => None,
            Self::Xfrm => Some(TunnelKind::Xfrm),
            Self::Libipsec => Some(TunnelKind::Libipsec),
        }
    }
}

impl Role {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Connector => "connector",
            Self::Cloud => "cloud",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(words: &[&str]) -> Result<Place, String> {
        let all = [&["fabedge-agent"], words].concat();
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let (role, args) = match &cli.command {
            Command::Edge(args) => (Role::Edge, args),
            Command::Connector(args) => (Role::Connector, args),
            Command::Cloud(args) => (Role::Cloud, args),
            other => panic!("{other:?}"),
        };
        args.place(role).map_err(|error| error.to_string())
    }

    #[test]
    fn the_document_is_mounted_or_in_the_api_and_for_edges_mounted() {
        let mounted = Place::File("/etc/fabedge/tunnels.yaml".into());
        let map = Place::ConfigMap("fabedge/connector-config".parse().unwrap());
        for role in ["edge", "connector", "cloud"] {
            assert_eq!(place(&[role]).as_ref(), Ok(&mounted));
        }
        for role in ["connector", "cloud"] {
            assert_eq!(
                place(&[role, "--config-map=fabedge/connector-config"]).as_ref(),
                Ok(&map)
            );
        }
        for (words, why) in [
            (
                &["edge", "--config-map=fabedge/x"][..],
                "--config-map is not for edges",
            ),
            (
                &["cloud", "--config-map=a/b", "--config=/etc/x"],
                "cannot be used with",
            ),
            (&["cloud", "--config-map=b"], "NAMESPACE/NAME"),
        ] {
            let error = place(words).unwrap_err();
            assert!(error.contains(why), "{words:?}: {error}");
        }
    }
}
