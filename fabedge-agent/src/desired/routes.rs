//! Desired state of [`crate::routes`]. Pure.
//!
//! Two kinds of prefix, never mixed. Pod and service prefixes are looked up for everybody, in
//! [`marks::POD_TABLE`]; node addresses only for what local pods send, in [`marks::NODE_TABLE`], because ESP, IKE
//! and the kubelet reach the same addresses over the underlay. Every route has an `unreachable` twin of a worse
//! metric: a route disappears with its device, and without the twin the next lookup is the default route.
//!
//! Where routes are narrower than the tunnel device, what measures paths follows [`marks::PROBE_TABLE`]: the xfrm interface
//! refuses what is larger than the packet's own route says, and no path would be found to have become wider.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::config::{EndpointType, NodeConfig, Peer, Via};
use fabedge_common::prefixes::Prefixes;
use ipnet::IpNet;

use super::paths::carriers;
use crate::facts::{Facts, TunnelKind};
use crate::marks;
pub use cloud::{cloud, next_hop};

mod cloud;

/// Metric of what is to be used.
pub const METRIC: u32 = 50;

/// Metric of the `unreachable` routes below.
pub const TWIN_METRIC: u32 = 4096;

/// Rules and routes that carry [`marks::ROUTE_PROTOCOL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Rules.
    pub rules: BTreeSet<Rule>,
    /// Routes.
    pub routes: BTreeMap<Key, Target>,
}

/// A rule that leads to one of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its priority.
    pub priority: u32,
    /// Source prefix; of length 0 for everybody. Also tells the family.
    pub from: IpNet,
    /// The mark that packets must have; any, if none.
    pub mark: Option<u32>,
    /// The table it leads to.
    pub table: u32,
}

/// What tells two of our routes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Metric; the smaller one is taken.
    pub metric: u32,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Straight into a device.
    Device {
        /// Interface name.
        name: String,
        /// MTU of the path.
        mtu: u32,
        /// Whether IPv6 packets that are forwarded are held to that MTU too; the kernel asks its device's otherwise.
        lock: bool,
        /// Source address of what this host itself sends.
        src: Option<IpAddr>,
    },
    /// To a neighbour.
    Gateway {
        /// The neighbour's address.
        address: IpAddr,
        /// Interface name.
        device: String,
        /// The neighbour is on the link, whatever our addresses say.
        onlink: bool,
        /// MTU of the path.
        mtu: u32,
    },
    /// Refused.
    Unreachable,
    /// Not decided here: the lookup goes on with the next rule.
    Throw,
}

impl Routes {
    /// Routes to `destinations` by `target`, and closes them for when that is gone.
    fn lead(
        &mut self,
        table: u32,
        destinations: impl IntoIterator<Item = IpNet>,
        target: impl Fn(IpNet) -> Option<Target>,
    ) {
        for destination in destinations {
            if let Some(target) = target(destination) {
                self.routes.insert(
                    Key {
                        table,
                        destination,
                        metric: METRIC,
                    },
                    target,
                );
            }
            self.close(table, [destination]);
        }
    }

    /// Refuses what no better route takes.
    fn close(&mut self, table: u32, destinations: impl IntoIterator<Item = IpNet>) {
        for destination in destinations {
            self.routes.insert(
                Key {
                    table,
                    destination,
                    metric: TWIN_METRIC,
                },
                Target::Unreachable,
            );
        }
    }

    /// Leaves `destinations` to the main table.
    fn leave(&mut self, destinations: impl IntoIterator<Item = IpNet>) {
        for destination in destinations {
            let key = Key {
                table: marks::POD_TABLE,
                destination,
                metric: METRIC,
            };
            self.routes.insert(key, Target::Throw);
        }
    }

    /// Leaves those of `addresses` to the main table that a prefix of the pod table would take: a pod prefix that
    /// covers a node's or a connector's own address must not cut the underlay off.
    fn spare(&mut self, addresses: impl IntoIterator<Item = IpNet>) {
        let keys = self.routes.keys().filter(|key| key.table == marks::POD_TABLE);
        let taken: Prefixes = keys.map(|key| key.destination).collect();
        let addresses = addresses.into_iter();
        self.leave(addresses.filter(|address| taken.containing(address).is_some()));
    }

    /// Adds the rules that make the tables count, in the families in which they have routes.
    fn rule(&mut self, own_pods: &[IpNet]) {
        let probe = Some(marks::PROBE_MARK);
        for (table, priority, mark, sources) in [
            (
                marks::PROBE_TABLE,
                marks::PROBE_RULE_PRIORITY,
                probe,
                &everything()[..],
            ),
            (marks::POD_TABLE, marks::POD_RULE_PRIORITY, None, &everything()),
            (marks::NODE_TABLE, marks::NODE_RULE_PRIORITY, None, own_pods),
        ] {
            for from in sources {
                let used = |key: &Key| key.table == table && is_v6(&key.destination) == is_v6(from);
                if self.routes.keys().any(used) {
                    self.rules.insert(Rule {
                        priority,
                        from: *from,
                        mark,
                        table,
                    });
                }
            }
        }
    }
}

/// An edge's routes: all into the tunnel device.
pub fn edge(config: &NodeConfig, facts: &Facts) -> Routes {
    tunnelled(config, facts)
}

/// A connector's routes: edges and other clusters into the tunnel device; the pods and services of its own cluster
/// are left to the cloud's CNI.
pub fn connector(config: &NodeConfig, facts: &Facts) -> Routes {
    tunnelled(config, facts)
}

fn tunnelled(config: &NodeConfig, facts: &Facts) -> Routes {
    let own_pods: Vec<IpNet> = config.endpoint.pod_subnets().collect();
    let gateways: Vec<IpAddr> = facts.address_within(&own_pods).collect();
    let name = facts.tunnel.device();
    let carrier = carriers(config);
    let device = |peer: &Peer, destination: IpNet| {
        let v6 = is_v6(&destination);
        let mtu = carrier(peer).map_or_else(|| facts.tunnel_mtu(), |reqid| facts.path_mtu(reqid, v6));
        Target::Device {
            name: name.to_owned(),
            mtu,
            // This host itself is deaf to "packet too big" where its route is locked. Another tunnel may follow on a
            // relayed path, so there it has to hear.
            lock: v6 && peer.via == Via::Direct && mtu < facts.tunnel_mtu(),
            src: gateways.iter().copied().find(|address| address.is_ipv6() == v6),
        }
    };
    let mut routes = Routes::default();
    routes.close(marks::POD_TABLE, config.network_subnets.iter().copied());
    for peer in &config.peers {
        let subnets = peer.endpoint.subnets.iter().copied();
        routes.lead(marks::POD_TABLE, subnets, |destination| {
            Some(device(peer, destination))
        });
        // Only pods go there, and they have addresses of their own.
        routes.lead(marks::NODE_TABLE, nodes_behind(config, peer), |destination| {
            let mut target = device(peer, destination);
            if let Target::Device { src, .. } = &mut target {
                *src = None;
            }
            Some(target)
        });
    }
    // Only where it makes a difference, for every lookup asks every rule.
    if facts.tunnel == TunnelKind::Xfrm && facts.paths.values().any(|mtu| *mtu < facts.tunnel_mtu()) {
        routes.lead(marks::PROBE_TABLE, everything(), |_| {
            Some(Target::Device {
                name: name.to_owned(),
                mtu: facts.tunnel_mtu(),
                lock: false,
                src: None,
            })
        });
    }
    finish(routes, config)
}

/// The node addresses that local pods reach through a tunnel: those of connectors. An edge's node addresses are
/// never selectors, and an address that is also one of our own nodes' means ours.
pub fn remote_nodes(config: &NodeConfig) -> Vec<IpNet> {
    let peers = config.peers.iter();
    peers.flat_map(|peer| nodes_behind(config, peer)).collect()
}

/// Those of them that are behind the tunnel to `peer`.
pub fn nodes_behind(config: &NodeConfig, peer: &Peer) -> impl Iterator<Item = IpNet> {
    let own = &config.endpoint.node_subnets;
    let nodes: &[IpNet] = match peer.endpoint.kind {
        EndpointType::Connector => &peer.endpoint.node_subnets,
        EndpointType::EdgeNode | EndpointType::CloudNode => &[],
    };
    let is_own = |net: &IpNet| own.iter().any(|other| other.contains(net) || net.contains(other));
    nodes.iter().copied().filter(move |net| !is_own(net))
}

/// The addresses that ESP, IKE and the nodes themselves use, as far as the document tells: no pod prefix, however
/// wide, may take them. (A connector known by a DNS name is covered by its node addresses, if at all.)
pub fn underlay(config: &NodeConfig) -> impl Iterator<Item = IpNet> {
    let public = config.peers.iter().flat_map(|peer| peer.endpoint.public_ips());
    let hops = [false, true].into_iter().filter_map(|v6| next_hop(config, v6));
    let own = config.endpoint.node_subnets.iter().copied();
    own.chain(remote_nodes(config))
        .chain(public.chain(hops).map(IpNet::from))
}

/// What all roles have in common: own pods and services stay as they are, so do the addresses of the underlay, and
/// the rules come with the tables.
fn finish(mut routes: Routes, config: &NodeConfig) -> Routes {
    let own = &config.endpoint;
    routes.leave(own.subnets.iter().chain(&own.service_subnets).copied());
    routes.spare(underlay(config));
    let own_pods: Vec<IpNet> = own.pod_subnets().collect();
    routes.rule(&IpNet::aggregate(&own_pods));
    routes
}

/// All addresses of either family.
fn everything() -> [IpNet; 2] {
    [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

#[cfg(test)]
mod tests;
