//! Desired state: document + host facts + role + options -> one value per subsystem. Pure.

pub mod change;
pub mod cni;
pub mod datapath;
pub mod firewall;
pub mod links;
pub mod paths;
pub mod routes;
pub mod spread;
pub mod sysctl;
pub mod tunnels;

use fabedge_common::config::{NodeConfig, Problem};

use crate::args::{Role, RunArgs, SpreadChoice, Switch};
use crate::facts::Facts;

/// What the desired state depends on besides document and host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether edge pods go out under their node's address.
    pub masq_outgoing: bool,
    /// Whether eBPF programs steer pod traffic.
    pub fast_path: bool,
    /// Whether ESP is spread over CPUs.
    pub spread_esp: SpreadChoice,
}

impl Options {
    /// The options that the command line names.
    pub fn new(args: &RunArgs) -> Self {
        Self {
            masq_outgoing: args.masq_outgoing,
            fast_path: args.fast_path == Switch::On,
            spread_esp: args.spread_esp,
        }
    }
}

/// What every subsystem should be. The default is: nothing of ours.
#[derive(Debug, Default)]
pub struct Desired {
    /// Kernel parameters.
    pub sysctl: sysctl::Sysctl,
    /// The tunnel device.
    pub links: links::Links,
    /// charon's connections.
    pub tunnels: tunnels::Tunnels,
    /// Programs, hooks and maps.
    pub datapath: datapath::Datapath,
    /// Rules and routes.
    pub routes: routes::Routes,
    /// nftables and the FORWARD jump.
    pub firewall: firewall::Firewall,
    /// The CNI configuration.
    pub cni: cni::Cni,
}

impl Desired {
    /// The desired state of a node.
    pub fn new(
        role: Role,
        config: &NodeConfig,
        facts: &Facts,
        pods: &datapath::LocalPods,
        options: &Options,
    ) -> Self {
        let tunnels = tunnels::Tunnels::new(config, facts);
        let mut datapath = datapath::datapath(config, facts, pods, options.fast_path);
        if datapath.enabled {
            datapath.spread_esp(config, facts, options.spread_esp);
        }
        match role {
            Role::Edge => Self {
                sysctl: sysctl::edge(config, facts),
                links: links::edge(config, facts),
                tunnels,
                datapath,
                routes: routes::edge(config, facts),
                firewall: firewall::edge(config, facts, options),
                cni: cni::edge(config, facts),
            },
            Role::Connector => Self {
                sysctl: sysctl::connector(config, facts),
                links: links::connector(facts),
                tunnels,
                datapath,
                routes: routes::connector(config, facts),
                firewall: firewall::connector(config, facts, options),
                cni: cni::Cni::default(),
            },
            Role::Cloud => Self {
                sysctl: sysctl::cloud(config, facts),
                links: links::cloud(),
                tunnels,
                datapath,
                routes: routes::cloud(config, facts),
                firewall: firewall::cloud(config, facts, options),
                cni: cni::Cni::default(),
            },
        }
    }

    /// Parts of the document that are left out, and why.
    pub fn problems(&self) -> &[Problem] {
        &self.tunnels.problems
    }
}
