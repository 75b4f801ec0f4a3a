//! Cloud nodes without tunnels: everything beyond the connector goes to the connector's node, by the way on which the
//! cloud's CNI sends what is for the pods of that node. Where nodes share no link, or the cloud drops what bears a pod's
//! address, that way is an overlay, and what comes back from the connector takes the same one.

use std::net::IpAddr;

use fabedge_common::config::NodeConfig;
use ipnet::IpNet;

use super::{Routes, Target, finish, is_v6};
use crate::facts::{Facts, Hop};
use crate::marks;

/// Routes to edges and other clusters by way of the connector.
pub fn cloud(config: &NodeConfig, facts: &Facts) -> Routes {
    let mut routes = Routes::default();
    routes.close(marks::POD_TABLE, config.network_subnets.iter().copied());
    routes.lead(
        marks::POD_TABLE,
        config
            .connector()
            .into_iter()
            .flat_map(|peer| peer.endpoint.subnets.iter().copied()),
        |destination| towards(config, facts, is_v6(&destination)),
    );
    finish(routes, config)
}

/// The connector's address that a cloud node sends to, in one family: the first of its node addresses.
pub fn next_hop(config: &NodeConfig, v6: bool) -> Option<IpAddr> {
    config
        .connector()?
        .endpoint
        .node_subnets
        .iter()
        .map(IpNet::addr)
        .find(|address| address.is_ipv6() == v6)
}

fn towards(config: &NodeConfig, facts: &Facts, v6: bool) -> Option<Target> {
    let hop = way(facts, next_hop(config, v6)?)?;
    let link = facts.links.get(&hop.device);
    let near = link.is_some_and(|link| link.addresses.iter().any(|net| net.contains(&hop.gateway)));
    Some(Target::Gateway {
        address: hop.gateway,
        onlink: !near,
        // What fits the overlay and, as far as the connector's uplink is like ours, its tunnels.
        mtu: link.map_or(u32::MAX, |link| link.mtu).min(facts.tunnel_mtu()),
        device: hop.device,
    })
}

/// The way to a node: the CNI's, else the link that the node is on, else the uplink.
fn way(facts: &Facts, node: IpAddr) -> Option<Hop> {
    let of_cni = facts.hops.iter().find(|hop| hop.node == node && same_family(hop));
    of_cni.cloned().or_else(|| {
        let near = facts
            .links
            .values()
            .find(|link| link.addresses.iter().any(|net| net.contains(&node)))
            .map(|link| &link.name);
        let device = near.or_else(|| facts.uplinks.first())?.clone();
        Some(Hop {
            node,
            gateway: node,
            device,
        })
    })
}

/// An overlay may carry one family over the other.
fn same_family(hop: &Hop) -> bool {
    hop.gateway.is_ipv4() == hop.node.is_ipv4()
}
