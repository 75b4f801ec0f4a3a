//! What may depend on a peer that changes: looked up, for with thousands of peers a look at each takes longer than the rest.

use std::sync::Arc;

use fabedge_common::abi;
use fabedge_common::config::Peer;
use fabedge_common::prefixes::Prefixes;
use ipnet::IpNet;

/// What is said of a document's peers. What was once said of one stays, whatever comes in its place: so a change may be taken
/// for one that concerns others, but never the other way round.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Their prefixes.
    pub subnets: Prefixes,
    /// Where they are in the underlay: their public addresses and their nodes'.
    pub underlay: Prefixes,
    /// Their numbers in the kernel's SAs.
    pub reqids: Numbers,
    /// Those of the endpoints to which a connector relays for them.
    pub relayed: Numbers,
}

impl Others {
    /// Those of these peers.
    pub fn of(peers: &[Arc<Peer>]) -> Self {
        let numbers = |names: &mut dyn Iterator<Item = &String>| {
            let mut numbers = Numbers(names.map(|name| abi::reqid(name)).collect());
            numbers.0.sort_unstable();
            numbers
        };
        let subnets = peers.iter().flat_map(|peer| &peer.endpoint.subnets);
        Self {
            subnets: subnets.copied().collect(),
            underlay: peers.iter().flat_map(|peer| underlay(peer)).collect(),
            reqids: numbers(&mut peers.iter().map(|peer| &peer.endpoint.name)),
            relayed: numbers(&mut peers.iter().flat_map(|peer| &peer.relays)),
        }
    }

    /// Adds what is said of one more.
    pub fn add(&mut self, peer: &Peer) {
        for net in &peer.endpoint.subnets {
            self.subnets.insert(*net);
        }
        for net in underlay(peer) {
            self.underlay.insert(net);
        }
        self.reqids.add(&peer.endpoint.name);
        for name in &peer.relays {
            self.relayed.add(name);
        }
    }
}

fn underlay(peer: &Peer) -> impl Iterator<Item = IpNet> + '_ {
    let addresses = peer.endpoint.public_ips().map(IpNet::from);
    addresses.chain(peer.endpoint.node_subnets.iter().copied())
}

/// The numbers of endpoints, in their order.
#[derive(Clone, Debug, Default)]
pub struct Numbers(Vec<u32>);

impl Numbers {
    /// How often a number is among them.
    pub fn count(&self, number: u32) -> usize {
        let from = self.0.partition_point(|other| *other < number);
        self.0[from..].partition_point(|other| *other == number)
    }

    fn add(&mut self, name: &str) {
        let number = abi::reqid(name);
        let place = self.0.partition_point(|other| *other < number);
        self.0.insert(place, number);
    }
}
