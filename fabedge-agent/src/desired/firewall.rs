//! Desired state of [`crate::firewall`]: what is dropped, what keeps its address and what is masqueraded. Pure.
//!
//! The rules are data: sets of prefixes, and per hook an ordered list of conditions with a verdict.
//! [`crate::firewall`] writes them down for nftables, once per address family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::config::{EndpointType, NodeConfig};
use fabedge_common::prefixes::Prefixes;
use ipnet::IpNet;

use super::Options;
use super::routes::{remote_nodes, underlay};
use crate::facts::{Facts, TunnelKind};
use crate::marks;

/// Our nftables table, and what passes FORWARD in the iptables backends in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// The table.
    pub table: Option<Table>,
    /// What is let through; empty: no jump.
    pub forward: BTreeSet<Pass>,
}

/// The content of our nftables table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Named sets of prefixes of both families.
    pub sets: BTreeMap<Set, Vec<IpNet>>,
    /// Rules by hook, in order.
    pub rules: BTreeMap<Hook, Vec<Rule>>,
}

/// The named sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Pod and service prefixes of this node; of the whole cluster on cloud nodes.
    Own,
    /// Service prefixes among them.
    Services,
    /// Addresses of the nodes of our own cluster that are in the cloud.
    OwnNodes,
    /// Pod and service prefixes of peers.
    Peers,
    /// Node addresses behind tunnels.
    RemoteNodes,
    /// Every prefix of the pod network, wherever it is.
    Network,
    /// Peers' prefixes and the pod network's in one.
    Guarded,
    /// Those, the node addresses behind tunnels, and an edge's own pods: what goes elsewhere is of no interest when it leaves.
    Watched,
}

/// Where rules are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What arrives, before connection tracking.
    Inbound,
    /// What is forwarded.
    Forward,
    /// What leaves, its source not yet translated.
    Outbound,
    /// The translation of sources, before the CNI's and kube-proxy's.
    Translate,
}

/// Conditions, all of which must hold, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub when: Vec<When>,
    /// What happens.
    pub then: Then,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The source is in the set.
    From(Set),
    /// The source is in none of the sets.
    NotFrom(Vec<Set>),
    /// The destination is in the set.
    To(Set),
    /// The destination is in none of the sets.
    NotTo(Vec<Set>),
    /// It arrived by this interface.
    In(String),
    /// It arrived by none of these interfaces.
    NotIn(Vec<String>),
    /// It leaves by this interface.
    Out(String),
    /// It leaves by none of these interfaces, and nothing will encrypt it on its way.
    NotOut(Vec<String>),
    /// The neighbour that it is sent to is in none of the sets.
    NotVia(Vec<Set>),
    /// It belongs to a connection that its sender opened to this very destination: it is no reply, and no
    /// hostPort, NodePort or ClusterIP brought it here.
    Unsolicited,
    /// It is an ICMP redirect.
    Redirect,
    /// Its route encrypts it.
    Encrypted,
    /// It measures a path, or is the ESP packet around one that does.
    Probe,
    /// Neither.
    NoProbe,
    /// It tells that an ESP packet of ours should have been fragmented (IPv4).
    EspTooLarge,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// No further rule of ours is asked at this hook.
    Pass,
    /// Dropped, and counted under this name.
    Drop(Counter),
    /// Its source stays what it is, whatever the CNI or kube-proxy masquerade later.
    Keep,
    /// Its source becomes this address.
    Source(IpAddr),
    /// Its source becomes the address of the interface by which it leaves.
    Masquerade,
    /// An IPv4 packet must not be fragmented on its way, and goes on to the next rule.
    Whole,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// For a local pod, not out of a tunnel.
    InboundToPods,
    /// It claims the address of somebody else's pod.
    InboundSpoofed,
    /// From a remote node for one of our nodes.
    NodeToNode,
    /// Somebody else's traffic, for the tunnel.
    ForwardForeign,
    /// Out of a tunnel for a service address that nothing here translates.
    ForwardToServices,
    /// For a remote pod, not into a tunnel.
    OutboundToPods,
    /// From a local pod for a remote node, not into a tunnel.
    OutboundToNodes,
    /// ICMP redirects among tunnel ends.
    OutboundRedirect,
    /// ICMP errors about the size of ESP packets.
    InboundTooLarge,
}

/// What passes FORWARD.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// Whatever arrives or leaves by the interface.
    Device(String),
    /// Whatever comes from or goes to the prefix.
    Prefix(IpNet),
}

/// An edge: its pods behind the bridge, everybody else behind the tunnel.
pub fn edge(config: &NodeConfig, facts: &Facts, options: &Options) -> Firewall {
    let tunnel = facts.tunnel.device();
    let bridge = marks::BRIDGE;
    let inner = || vec![tunnel.to_owned(), bridge.to_owned(), "lo".to_owned()];
    let mut table = Table::new(config);
    let to_pods = vec![When::To(Set::Own), When::NotIn(inner())];
    if options.masq_outgoing {
        table.drop(Hook::Inbound, Counter::InboundToPods, to_pods);
    } else {
        // Pods go out under their own addresses, so replies to them come in from anywhere.
        table.drop(
            Hook::Forward,
            Counter::InboundToPods,
            [to_pods, vec![When::Unsolicited]].concat(),
        );
    }
    table.drop(
        Hook::Inbound,
        Counter::InboundSpoofed,
        [When::From(Set::Network), When::NotIn(inner())],
    );
    table.drop(
        Hook::Inbound,
        Counter::InboundSpoofed,
        [
            When::In(bridge.to_owned()),
            When::From(Set::Network),
            When::NotFrom(vec![Set::Own]),
        ],
    );
    table.tunnelled(config, facts, vec![Set::Own]);
    if options.masq_outgoing {
        table.add(
            Hook::Translate,
            Then::Masquerade,
            [
                When::From(Set::Own),
                When::NotTo(vec![Set::Own, Set::Peers, Set::Network]),
                When::NotOut(inner()),
            ],
        );
    }
    let forward = [tunnel, bridge].map(|device| Pass::Device(device.to_owned()));
    Firewall {
        table: Some(table),
        forward: forward.into(),
    }
}

/// A connector: the pods of its cluster anywhere in the cloud, behind devices that only their CNI knows.
pub fn connector(config: &NodeConfig, facts: &Facts, _: &Options) -> Firewall {
    let tunnel = facts.tunnel.device();
    let mut table = Table::new(config);
    // How the CNI brings its own pods' traffic here cannot be known, but peers come out of the tunnel only.
    table.drop(
        Hook::Inbound,
        Counter::InboundSpoofed,
        [
            When::From(Set::Peers),
            When::NotIn(vec![tunnel.to_owned(), "lo".to_owned()]),
        ],
    );
    // The tunnels to other clusters carry both sides' nodes, for their pods' sake.
    table.drop(
        Hook::Inbound,
        Counter::NodeToNode,
        [
            When::In(tunnel.to_owned()),
            When::NotFrom(vec![Set::Peers]),
            When::To(Set::OwnNodes),
        ],
    );
    table.tunnelled(config, facts, vec![Set::Own, Set::OwnNodes, Set::Peers]);
    // What kube-proxy translates has a pod's address by now. The rest would follow the default route, in the clear.
    for uplink in &facts.uplinks {
        table.drop(
            Hook::Forward,
            Counter::ForwardToServices,
            [
                When::In(tunnel.to_owned()),
                When::To(Set::Services),
                When::Out(uplink.clone()),
            ],
        );
    }
    // A node knows no way back to an edge's pods but over itself, where it is not a cloud agent's.
    table.add(
        Hook::Translate,
        Then::Masquerade,
        [When::From(Set::Peers), When::To(Set::OwnNodes)],
    );
    Firewall {
        table: Some(table),
        forward: [Pass::Device(tunnel.to_owned())].into(),
    }
}

/// A cloud node without tunnels: peers are behind the connector, to whose node, or to whose end of the CNI's overlay,
/// goes what is for them.
///
/// Nothing is closed inbound: over which device the connector's packets arrive is the CNI's choice, and the
/// connector has closed its own uplink.
pub fn cloud(config: &NodeConfig, _: &Facts, _: &Options) -> Firewall {
    let mut table = Table::new(config);
    // Not to one neighbour by its address: the packets between a moved connector's new routes and its new rules.
    table.drop(
        Hook::Outbound,
        Counter::OutboundToPods,
        [When::To(Set::Peers), When::NotVia(vec![Set::Own, Set::OwnNodes])],
    );
    table.drop(
        Hook::Outbound,
        Counter::OutboundToPods,
        [
            When::To(Set::Network),
            When::NotTo(vec![Set::Own, Set::Peers]),
            When::NotOut(vec!["lo".to_owned()]),
        ],
    );
    table.add(
        Hook::Translate,
        Then::Keep,
        [When::From(Set::Own), When::To(Set::Peers)],
    );
    table.add(
        Hook::Translate,
        Then::Keep,
        [When::From(Set::Peers), When::To(Set::Own)],
    );
    let peers: Vec<IpNet> = table.sets.get(&Set::Peers).cloned().unwrap_or_default();
    Firewall {
        table: Some(table),
        forward: peers.into_iter().map(Pass::Prefix).collect(),
    }
}

impl Table {
    fn new(config: &NodeConfig) -> Self {
        let own = &config.endpoint;
        let (own_nodes, own_pods) = match own.kind {
            EndpointType::EdgeNode => (Vec::new(), own.subnets.clone()),
            EndpointType::Connector | EndpointType::CloudNode => (own.node_subnets.clone(), Vec::new()),
        };
        let peers: Vec<IpNet> = config
            .peers
            .iter()
            .flat_map(|peer| peer.endpoint.subnets.iter().copied())
            .collect();
        let network = config.network_subnets.clone();
        let guarded: Vec<IpNet> = peers.iter().chain(&network).copied().collect();
        let remote_nodes: Vec<IpNet> = remote_nodes(config);
        let watched = guarded
            .iter()
            .chain(&remote_nodes)
            .chain(&own_pods)
            .copied()
            .collect();
        let sets = [
            (
                Set::Own,
                own.subnets.iter().chain(&own.service_subnets).copied().collect(),
            ),
            (Set::Services, own.service_subnets.clone()),
            (Set::OwnNodes, own_nodes),
            (Set::Peers, peers),
            (Set::RemoteNodes, remote_nodes),
            (Set::Network, network),
            (Set::Guarded, guarded),
            (Set::Watched, watched),
        ];
        let underlay: Prefixes = underlay(config).collect();
        Self {
            // Merged, for an interval set refuses prefixes that overlap.
            sets: sets
                .into_iter()
                .map(|(set, nets): (Set, Vec<IpNet>)| {
                    let nets: Vec<IpNet> = match set {
                        // Else ESP and IKE themselves would be refused.
                        Set::Peers | Set::Network | Set::Guarded => {
                            nets.into_iter().flat_map(|net| without(net, &underlay)).collect()
                        }
                        Set::Own | Set::Services | Set::OwnNodes | Set::RemoteNodes | Set::Watched => nets,
                    };
                    (set, IpNet::aggregate(&nets))
                })
                .collect(),
            rules: BTreeMap::new(),
        }
    }

    fn add(&mut self, hook: Hook, then: Then, when: impl Into<Vec<When>>) {
        self.rules.entry(hook).or_default().push(Rule {
            when: when.into(),
            then,
        });
    }

    fn drop(&mut self, hook: Hook, counter: Counter, when: impl Into<Vec<When>>) {
        self.add(hook, Then::Drop(counter), when);
    }

    /// What holds wherever there is a tunnel. `senders` may send into it under their own addresses.
    fn tunnelled(&mut self, config: &NodeConfig, facts: &Facts, senders: Vec<Set>) {
        let tunnel = || facts.tunnel.device().to_owned();
        let inner = || vec![tunnel(), "lo".to_owned()];
        self.drop(
            Hook::Inbound,
            Counter::InboundSpoofed,
            [When::In(tunnel()), When::From(Set::Own)],
        );
        // Nobody uses this node as a router into the tunnels.
        self.drop(
            Hook::Forward,
            Counter::ForwardForeign,
            [
                When::Out(tunnel()),
                When::NotFrom(senders.clone()),
                When::Unsolicited,
            ],
        );
        // Most packets first, and each by as few lookups in sets as can be: those that are encrypted next, and the ESP
        // packets that those before have become. charon's own ESP shows no mark.
        self.add(Hook::Outbound, Then::Pass, [When::Encrypted]);
        let others = When::NotTo(vec![Set::Watched]);
        match facts.tunnel {
            TunnelKind::Xfrm => {
                self.add(Hook::Outbound, Then::Pass, [others, When::NoProbe]);
                // The others' may be fragmented.
                self.add(Hook::Outbound, Then::Whole, [When::Probe]);
                // Only those that measure can be the reason, and are answered or not. A kernel that knows of a path below
                // 1341 bytes would drop IPv6 packets of 1280 rather than fragment the ESP around them (6.12,
                // `__xfrm6_output`).
                self.drop(Hook::Inbound, Counter::InboundTooLarge, [When::EspTooLarge]);
            }
            TunnelKind::Libipsec => self.add(Hook::Outbound, Then::Pass, [others]),
        }
        // Also what this node sends from among its pods: it measures paths, and answers peers that do.
        self.drop(
            Hook::Outbound,
            Counter::OutboundToNodes,
            [
                When::From(Set::Own),
                When::To(Set::RemoteNodes),
                When::NotOut(inner()),
            ],
        );
        // On an edge without pods nothing leads to their prefix but the default route.
        if config.endpoint.kind == EndpointType::EdgeNode {
            let mut inner = inner();
            inner.push(marks::BRIDGE.to_owned());
            self.drop(
                Hook::Outbound,
                Counter::OutboundToPods,
                [When::To(Set::Own), When::NotOut(inner)],
            );
        }
        self.add(Hook::Outbound, Then::Pass, [When::NotTo(vec![Set::Guarded])]);
        // Relayed packets leave by the device by which they arrived, which the kernel takes for a detour.
        self.drop(
            Hook::Outbound,
            Counter::OutboundRedirect,
            [When::Redirect, When::Out(tunnel())],
        );
        self.add(Hook::Outbound, Then::Pass, [When::Out(tunnel())]);
        if cfg!(not(feature = "planted-defect")) {
            self.drop(
                Hook::Outbound,
                Counter::OutboundToPods,
                [
                    When::To(Set::Network),
                    When::NotTo(vec![Set::Own]),
                    When::NotOut(inner()),
                ],
            );
            self.drop(
                Hook::Outbound,
                Counter::OutboundToPods,
                [When::To(Set::Peers), When::NotOut(inner())],
            );
        }

        for set in senders {
            self.add(
                Hook::Translate,
                Then::Keep,
                [When::Out(tunnel()), When::From(set)],
            );
        }
        // What is left is this node under another of its addresses, or a client of a NodePort: only under the
        // pod gateway's address does it fit a selector.
        let own_pods: Vec<IpNet> = config.endpoint.pod_subnets().collect();
        for gateway in facts.address_within(&own_pods) {
            self.add(Hook::Translate, Then::Source(gateway), [When::Out(tunnel())]);
        }
        self.add(
            Hook::Translate,
            Then::Keep,
            [When::In(tunnel()), When::From(Set::Peers), When::To(Set::Own)],
        );
        // A remote node's address may be somebody else's in a pod's eyes.
        self.add(
            Hook::Translate,
            Then::Masquerade,
            [
                When::In(tunnel()),
                When::NotFrom(vec![Set::Peers]),
                When::To(Set::Own),
            ],
        );
    }
}

/// `net` without `holes`, in as few prefixes as there are.
fn without(net: IpNet, holes: &Prefixes) -> Vec<IpNet> {
    if holes.containing(&net).is_some() {
        return Vec::new();
    }
    if holes.within(&net).next().is_none() {
        return vec![net];
    }
    // It is longer than a single address, for it contains a hole without being in it.
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, holes)).collect()
}

#[cfg(test)]
mod tests;
