//! Desired state of [`crate::sysctl`]. Pure.

use std::collections::BTreeSet;

use fabedge_common::config::NodeConfig;
use ipnet::IpNet;

use crate::facts::Facts;

/// What the kernel must be willing to do. Raised where it falls short, and never lowered again: who else relies on
/// it by then cannot be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctl {
    /// Forward IPv4.
    pub forward4: bool,
    /// Forward IPv6.
    pub forward6: bool,
    /// Interfaces over which this host itself is configured by router advertisements, which a forwarding host
    /// ignores unless told otherwise.
    pub advertised: BTreeSet<String>,
    /// Interfaces on which packets arrive from where they would not be sent back: a strict reverse path filter
    /// would drop them.
    pub asymmetric: BTreeSet<String>,
}

/// An edge forwards between bridge, tunnel and uplink.
pub fn edge(config: &NodeConfig, facts: &Facts) -> Sysctl {
    forwarding(config, facts, [facts.tunnel.device().to_owned()])
}

/// What a cloud node sends to an edge under one of its other addresses reaches the connector over the CNI's overlay, or,
/// where there is none, at its uplink; the way back may be the other.
pub fn connector(config: &NodeConfig, facts: &Facts) -> Sysctl {
    let tunnel = facts.tunnel.device().to_owned();
    forwarding(config, facts, underlay_and_overlay(config, facts).chain([tunnel]))
}

/// What an edge sends to a pod here comes by the CNI's way, and to the node itself at its uplink; what they send goes to
/// the connector by the one or the other.
pub fn cloud(config: &NodeConfig, facts: &Facts) -> Sysctl {
    forwarding(config, facts, underlay_and_overlay(config, facts))
}

/// The uplinks, and what else has an address among the pods' but is no pod's: by that the CNI's overlay is known, and not
/// by its many names. Bridges and their ports stay as strict as their CNI wants them.
fn underlay_and_overlay(config: &NodeConfig, facts: &Facts) -> impl Iterator<Item = String> {
    let own: Vec<IpNet> = config.endpoint.pod_subnets().collect();
    let overlay = facts
        .links
        .values()
        .filter(|link| link.master.is_none() && link.kind.as_deref() != Some("bridge"))
        .filter(move |link| {
            link.addresses
                .iter()
                .any(|address| own.iter().any(|net| net.contains(&address.addr())))
        })
        .map(|link| link.name.clone());
    facts.uplinks.iter().cloned().chain(overlay)
}

fn forwarding(config: &NodeConfig, facts: &Facts, asymmetric: impl IntoIterator<Item = String>) -> Sysctl {
    let prefixes = || {
        let peers = config.peers.iter().flat_map(|peer| &peer.endpoint.subnets);
        config.endpoint.subnets.iter().chain(peers)
    };
    let forward6 = prefixes().any(|net| matches!(net, IpNet::V6(_)));
    Sysctl {
        forward4: prefixes().any(|net| matches!(net, IpNet::V4(_))),
        forward6,
        advertised: if forward6 {
            facts.uplinks.iter().cloned().collect()
        } else {
            BTreeSet::new()
        },
        asymmetric: asymmetric.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests;
