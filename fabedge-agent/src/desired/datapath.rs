//! Desired state of [`crate::datapath`]: what the maps hold and where the programs are attached. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::abi::{self, POD_SHAPED, Pod, ROUTE_STACK, ROUTE_TUN, ROUTE_XFRM, Route};
use fabedge_common::config::{Endpoint, EndpointType, NodeConfig, Via};
use ipnet::IpNet;

use super::spread::Spread;
use crate::facts::{Facts, Link, TunnelKind};

/// What the fast path shall be. The default is: nothing of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Datapath {
    /// Whether programs are loaded at all.
    pub enabled: bool,
    /// Prefixes behind tunnels.
    pub routes: BTreeMap<IpNet, Route>,
    /// Pods of this node by address.
    pub pods: BTreeMap<IpAddr, Pod>,
    /// Names of the peers by reqid.
    pub peers: BTreeMap<u32, String>,
    /// Where programs are attached.
    pub hooks: BTreeSet<Hook>,
    /// Which CPU decrypts what.
    pub spread: Spread,
}

/// An entry point of the eBPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Packets out of a tunnel, decrypted by the kernel.
    TunnelIngress,
    /// Packets out of a tunnel, decrypted by charon.
    TunIngress,
    /// Packets into a tunnel.
    TunnelEgress,
    /// Packets to a pod.
    PodIngress,
    /// Packets from a pod.
    PodEgress,
    /// Packets on an uplink, among them ESP: XDP, where the others are TC.
    UplinkXdp,
}

impl Entry {
    /// All of them. Those that remember flows of the stack come before those that send packets past it.
    pub const ALL: [Self; 6] = [
        Self::TunnelIngress,
        Self::TunIngress,
        Self::TunnelEgress,
        Self::PodIngress,
        Self::PodEgress,
        Self::UplinkXdp,
    ];

    /// The program's name in the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::TunnelIngress => "tunnel_ingress",
            Self::TunIngress => "tun_ingress",
            Self::TunnelEgress => "tunnel_egress",
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
            Self::UplinkXdp => "uplink_xdp",
        }
    }

    /// Whether it hangs on the device's ingress. What a pod sends is ingress of the host's side of its veth.
    pub fn on_ingress(self) -> bool {
        match self {
            Self::TunnelIngress | Self::TunIngress | Self::PodEgress | Self::UplinkXdp => true,
            Self::TunnelEgress | Self::PodIngress => false,
        }
    }

    /// Whether it is XDP rather than TC.
    pub fn is_xdp(self) -> bool {
        self == Self::UplinkXdp
    }

    /// Whether it hangs on the tunnel device rather than on a pod's.
    pub fn on_tunnel(self) -> bool {
        match self {
            Self::TunnelIngress | Self::TunIngress | Self::TunnelEgress => true,
            Self::PodIngress | Self::PodEgress | Self::UplinkXdp => false,
        }
    }
}

/// A program on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// The device's index.
    pub ifindex: u32,
    /// The program.
    pub entry: Entry,
    /// The device's name.
    pub device: String,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.entry.name(), self.device)
    }
}

/// A pod that a CNI plugin attached here, as its runtime remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Container id.
    pub container: String,
    /// The interfaces that the plugins made on the host's side: the veth, and perhaps a bridge.
    pub interfaces: Vec<String>,
    /// Hardware address of the pod's side.
    pub mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the runtime asked for a limit of its bandwidth.
    pub shaped: bool,
}

/// The pods of this node, and what else of the host bears on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPods {
    /// The pods.
    pub pods: Vec<LocalPod>,
    /// Kinds of the qdiscs of each device, by its index.
    pub qdiscs: BTreeMap<u32, BTreeSet<String>>,
}

impl LocalPods {
    /// Whether a device has a qdisc that does more than pass packets on: what goes past the stack goes past it too.
    fn limited(&self, ifindex: u32) -> bool {
        const HARMLESS: [&str; 7] = ["noqueue", "clsact", "pfifo_fast", "pfifo", "fq_codel", "fq", "mq"];
        self.qdiscs
            .get(&ifindex)
            .is_some_and(|kinds| kinds.iter().any(|kind| !HARMLESS.contains(&kind.as_str())))
    }
}

/// Computes the desired state. Routes and tunnel hooks exist only while the tunnel device does.
pub fn datapath(config: &NodeConfig, facts: &Facts, local: &LocalPods, enabled: bool) -> Datapath {
    if !enabled || config.endpoint.kind == EndpointType::CloudNode {
        return Datapath::default();
    }
    let mut desired = Datapath {
        enabled,
        ..Datapath::default()
    };
    if let Some(tunnel) = facts.links.get(facts.tunnel.device()) {
        let ingress = match facts.tunnel {
            TunnelKind::Xfrm => Entry::TunnelIngress,
            TunnelKind::Libipsec => Entry::TunIngress,
        };
        for entry in [ingress, Entry::TunnelEgress] {
            desired.hooks.insert(hook(entry, tunnel));
        }
        (desired.routes, desired.peers) = routes(config, facts, tunnel);
    }
    let own: Vec<IpNet> = config.endpoint.pod_subnets().collect();
    for pod in &local.pods {
        let Some(link) = veth(pod, facts) else { continue };
        let shaped = pod.shaped || local.limited(link.index);
        let flags = if shaped { POD_SHAPED } else { 0 };
        let entry = Pod {
            ifindex: link.index,
            flags,
            pod_mac: pod.mac,
            gateway_mac: gateway_mac(link, facts),
        };
        let mut addresses = pod
            .addresses
            .iter()
            .filter(|addr| own.iter().any(|net| net.contains(*addr)))
            .peekable();
        if addresses.peek().is_none() {
            continue;
        }
        desired.pods.extend(addresses.map(|addr| (*addr, entry)));
        // A limited pod's packets are to pass its qdiscs, and an `ingress` qdisc among them excludes `clsact`.
        if !shaped {
            for entry in [Entry::PodIngress, Entry::PodEgress] {
                desired.hooks.insert(hook(entry, link));
            }
        }
    }
    desired
}

fn hook(entry: Entry, link: &Link) -> Hook {
    Hook {
        ifindex: link.index,
        entry,
        device: link.name.clone(),
    }
}

/// The host's side of a pod's veth. A file of the runtime may outlive the pod, but not its interface.
fn veth<'a>(pod: &LocalPod, facts: &'a Facts) -> Option<&'a Link> {
    pod.interfaces
        .iter()
        .filter_map(|name| facts.links.get(name))
        .find(|link| link.kind.as_deref() == Some("veth"))
}

/// Whom the pod takes for its gateway on the link: the bridge that its veth is a port of, or the veth itself.
fn gateway_mac(link: &Link, facts: &Facts) -> [u8; 6] {
    facts
        .links
        .values()
        .find(|other| Some(other.index) == link.master)
        .map_or(link.mac, |bridge| bridge.mac)
}

fn routes(
    config: &NodeConfig,
    facts: &Facts,
    tunnel: &Link,
) -> (BTreeMap<IpNet, Route>, BTreeMap<u32, String>) {
    let kind = match facts.tunnel {
        TunnelKind::Xfrm => ROUTE_XFRM,
        TunnelKind::Libipsec => ROUTE_TUN,
    };
    let connector = config.connector().map(|peer| peer.endpoint.name.as_str());
    let mut routes = BTreeMap::new();
    let mut peers = BTreeMap::new();
    let mut ambiguous = BTreeSet::new();
    for peer in &config.peers {
        let carrier = match peer.via {
            Via::Direct => peer.endpoint.name.as_str(),
            Via::Relay => match connector {
                Some(connector) => connector,
                None => continue,
            },
        };
        let reqid = abi::reqid(carrier);
        peers.insert(reqid, carrier.to_owned());
        for (net, flags) in prefixes(&peer.endpoint) {
            let route = Route {
                kind,
                ifindex: tunnel.index,
                reqid,
                flags,
                mtu: tunnel.mtu.min(facts.path_mtu(reqid, matches!(net, IpNet::V6(_)))),
            };
            if routes
                .insert(net, route)
                .is_some_and(|other: Route| other.reqid != reqid)
            {
                ambiguous.insert(net);
            }
        }
    }
    // Node addresses of two clusters may be the same. Without an entry the stack decides, by policy and SA.
    routes.retain(|net, _| !ambiguous.contains(net));
    (routes, peers)
}

/// The prefixes behind a tunnel with `endpoint`, and what the fast path is to know about them.
fn prefixes(endpoint: &Endpoint) -> impl Iterator<Item = (IpNet, u32)> + '_ {
    // An edge's node address is behind no tunnel: hundreds of sites share the same.
    let nodes: &[IpNet] = match endpoint.kind {
        EndpointType::Connector => &endpoint.node_subnets,
        EndpointType::EdgeNode | EndpointType::CloudNode => &[],
    };
    let stack = nodes
        .iter()
        .chain(&endpoint.service_subnets)
        .map(|net| (net.trunc(), ROUTE_STACK));
    stack.chain(endpoint.pod_subnets().map(|net| (net.trunc(), 0)))
}

#[cfg(test)]
mod tests;
