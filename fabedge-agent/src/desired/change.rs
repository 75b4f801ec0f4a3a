//! The part of a change of document that can be carried out by itself: some edges of many came, went, or have other
//! prefixes. Pure.
//!
//! A node's desired state is mostly a sum over its peers. So the states of two documents that hold nothing but the peers
//! which differ, as they were and as they are, differ in exactly that in which the states of the whole documents do. The
//! exceptions are what is looked for here.

mod others;

use std::collections::BTreeSet;
use std::sync::Arc;

use fabedge_common::abi;
use fabedge_common::config::{Endpoint, EndpointType, NodeConfig, Peer, Via};
use ipnet::IpNet;

pub use others::Others;

/// More peers than this are not taken apart.
const MOST: usize = 16;

/// A document without the peers that are the same in the one before it, and that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was.
    pub before: NodeConfig,
    /// What is.
    pub after: NodeConfig,
}

impl Change {
    /// The change from one valid document to another; none where it is of more than some edges with tunnels of their own.
    /// `others` are what is said of the peers of the one before, and learn of what comes.
    pub fn new(before: &NodeConfig, after: &NodeConfig, others: &mut Others) -> Option<Self> {
        let same = before.endpoint == after.endpoint && before.network_subnets == after.network_subnets;
        if !same {
            return None;
        }
        let (gone, new) = differing(&before.peers, &after.peers)?;
        let plain = |peer: &&Arc<Peer>| {
            peer.endpoint.kind == EndpointType::EdgeNode && peer.via == Via::Direct && peer.relays.is_empty()
        };
        if !gone.iter().chain(&new).all(plain) {
            return None;
        }
        let without_peers = |config: &NodeConfig, peers: Vec<&Arc<Peer>>| NodeConfig {
            peers: peers.into_iter().map(Arc::clone).collect(),
            ..head(config)
        };
        let change = Self {
            before: without_peers(before, gone),
            after: without_peers(after, new),
        };
        for peer in &change.after.peers {
            others.add(peer);
        }
        (!change.concerns(&after.endpoint, others)).then_some(change)
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.before
            .peers
            .iter()
            .chain(&self.after.peers)
            .map(AsRef::as_ref)
    }

    /// Whether something of another peer, or of the node itself, depends on one of ours: what is relayed for it, addresses of
    /// the underlay among its prefixes ([`underlay`](super::routes::underlay)), the same number in the kernel's SAs.
    fn concerns(&self, own: &Endpoint, others: &Others) -> bool {
        let reqids = |config: &NodeConfig| -> BTreeSet<u32> {
            let peers = config.peers.iter();
            peers.map(|peer| abi::reqid(&peer.endpoint.name)).collect()
        };
        let names: BTreeSet<&str> = self.peers().map(|peer| peer.endpoint.name.as_str()).collect();
        let (was, is) = (reqids(&self.before), reqids(&self.after));
        // Both documents' are among the others'.
        let shared = |reqid: &u32| {
            others.reqids.count(*reqid) > usize::from(was.contains(reqid)) + usize::from(is.contains(reqid))
        };
        (&was | &is).len() != names.len()
            || (&was ^ &is).iter().any(shared)
            || (&was | &is).iter().any(|reqid| others.relayed.count(*reqid) > 0)
            || self.peers().any(|peer| {
                let peer = &peer.endpoint;
                let among = |net: &IpNet| {
                    peer.subnets
                        .iter()
                        .any(|own| own.contains(net) || net.contains(own))
                };
                let takes = |net: &IpNet| peer.public_ips().any(|address| net.contains(&address));
                own.node_subnets.iter().any(among)
                    || self.after.network_subnets.iter().chain(&own.subnets).any(takes)
                    || peer.subnets.iter().any(|net| others.underlay.overlap(net))
                    || peer
                        .public_ips()
                        .any(|address| others.subnets.overlap(&address.into()))
            })
    }
}

/// A document without peers.
fn head(config: &NodeConfig) -> NodeConfig {
    NodeConfig {
        version: config.version,
        generation: config.generation,
        endpoint: config.endpoint.clone(),
        peers: Vec::new(),
        network_subnets: config.network_subnets.clone(),
        mediator: config.mediator.clone(),
    }
}

/// What is in one list and not in the other, and the other way round; none where that is much. Both begin and end alike,
/// as lists do of which little changed.
#[allow(clippy::type_complexity, reason = "a pair of the same")]
fn differing<'a>(
    before: &'a [Arc<Peer>],
    after: &'a [Arc<Peer>],
) -> Option<(Vec<&'a Arc<Peer>>, Vec<&'a Arc<Peer>>)> {
    let start = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[start..], &after[start..]);
    let ends = before.iter().rev().zip(after.iter().rev());
    let end = ends.take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[..before.len() - end], &after[..after.len() - end]);
    (before.len() + after.len() <= MOST).then(|| (before.iter().collect(), after.iter().collect()))
}

#[cfg(test)]
mod tests;
