//! Desired state of [`crate::paths`]: through which tunnels the path is measured, and between which addresses. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabedge_common::abi;
use fabedge_common::config::{Endpoint, EndpointType, NodeConfig, Peer, Via};
use ipnet::IpNet;

use super::routes::nodes_behind;
use crate::facts::Facts;

/// A way through a tunnel to an address that the other node itself answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our end.
    pub from: IpAddr,
    /// The other end.
    pub to: IpAddr,
    /// The tunnel device.
    pub device: &'static str,
    /// The largest packet of interest: the device's MTU.
    pub most: u32,
}

/// The reqid of the tunnel that leads to a peer; none where the connector is to relay and there is none.
pub fn carriers(config: &NodeConfig) -> impl Fn(&Peer) -> Option<u32> {
    let connector = config.connector().map(|peer| abi::reqid(&peer.endpoint.name));
    move |peer| match peer.via {
        Via::Direct => Some(abi::reqid(&peer.endpoint.name)),
        Via::Relay => connector,
    }
}

/// The paths to measure, by the peer's name; none to a peer between whose addresses and ours nothing may pass, or of
/// whose addresses none is known.
pub fn paths<'a>(config: &'a NodeConfig, facts: &Facts) -> BTreeMap<&'a str, Path> {
    let own = &config.endpoint;
    let pods: Vec<IpNet> = own.pod_subnets().collect();
    let gateways: Vec<IpAddr> = facts.address_within(&pods).collect();
    // A connector may have no pods of its own, and its node's address fits its tunnels to edges as well.
    let node: Vec<IpAddr> = match own.kind {
        EndpointType::Connector => facts.address_within(&own.node_subnets).collect(),
        EndpointType::EdgeNode => Vec::new(),
        EndpointType::CloudNode => return BTreeMap::new(),
    };
    let path = |peer: &'a Peer| {
        let to = ends(config, peer);
        let from = match peer.endpoint.kind {
            EndpointType::EdgeNode => gateways.iter().chain(&node),
            // No node of another cluster talks to a node.
            EndpointType::Connector | EndpointType::CloudNode => gateways.iter().chain(&[]),
        };
        let mut ways = from.flat_map(|from| to.iter().map(move |to| (*from, *to)));
        let (from, to) = ways.find(|(from, to)| from.is_ipv4() == to.is_ipv4())?;
        let path = Path {
            from,
            to,
            device: facts.tunnel.device(),
            most: facts.tunnel_mtu(),
        };
        Some((peer.endpoint.name.as_str(), path))
    };
    let direct = config.peers.iter().filter(|peer| peer.via == Via::Direct);
    direct.filter_map(|peer| path(peer)).collect()
}

/// Addresses that the peer's kernel answers for: an edge's bridge has the first of each pod prefix, as the plugins
/// `bridge` and `host-local` choose it, and of a connector's node addresses the first is its own.
fn ends(config: &NodeConfig, peer: &Peer) -> Vec<IpAddr> {
    match peer.endpoint.kind {
        EndpointType::EdgeNode => gateways(&peer.endpoint),
        EndpointType::Connector => {
            let nodes = nodes_behind(config, peer).map(|net| net.addr());
            let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = nodes.partition(IpAddr::is_ipv4);
            v4.into_iter().take(1).chain(v6.into_iter().take(1)).collect()
        }
        EndpointType::CloudNode => Vec::new(),
    }
}

fn gateways(edge: &Endpoint) -> Vec<IpAddr> {
    let first = |net: IpNet| match net.network() {
        IpAddr::V4(address) => IpAddr::from((u32::from(address) | 1).to_be_bytes()),
        IpAddr::V6(address) => IpAddr::from((u128::from(address) | 1).to_be_bytes()),
    };
    edge.pod_subnets().map(first).collect()
}

#[cfg(test)]
mod tests;
