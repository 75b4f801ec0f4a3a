//! What may depend on a peer that changes: looked up, for with thousands of peers a look at each takes longer than the rest.

use fabedge_common::abi;
use fabedge_common::config::Peer;
use ipnet::IpNet;

/// What is said of a document's peers. What was once said of one stays, whatever comes in its place: so a change may be taken
/// for one that concerns others, but never the other way round.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Their prefixes.
    pub subnets: Nets,
    /// Where they are in the underlay: their public addresses and their nodes'.
    pub underlay: Nets,
    /// Their numbers in the kernel's SAs.
    pub reqids: Numbers,
    /// Those of the endpoints to which a connector relays for them.
    pub relayed: Numbers,
}

impl Others {
    /// Those of these peers.
    pub fn of<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> Self {
        let mut all = Self::default();
        for peer in peers {
            let Peer { endpoint, relays, .. } = peer;
            all.subnets.0.extend(endpoint.subnets.iter().map(IpNet::trunc));
            all.underlay.0.extend(endpoint.public_ips().map(IpNet::from));
            all.underlay
                .0
                .extend(endpoint.node_subnets.iter().map(IpNet::trunc));
            all.reqids.0.push(abi::reqid(&endpoint.name));
            all.relayed.0.extend(relays.iter().map(|name| abi::reqid(name)));
        }
        for nets in [&mut all.subnets, &mut all.underlay] {
            nets.0.sort_unstable();
            nets.0.dedup();
            nets.0.shrink_to_fit();
        }
        for numbers in [&mut all.reqids, &mut all.relayed] {
            numbers.0.sort_unstable();
        }
        all
    }

    /// Adds what is said of one more.
    pub fn add(&mut self, peer: &Peer) {
        let Self {
            subnets,
            underlay,
            reqids,
            relayed,
        } = Self::of([peer]);
        self.subnets.add(subnets);
        self.underlay.add(underlay);
        self.reqids.add(reqids);
        self.relayed.add(relayed);
    }
}

/// Prefixes, in their order.
#[derive(Clone, Debug, Default)]
pub struct Nets(Vec<IpNet>);

impl Nets {
    /// Whether one of them has an address in common with `net`: it is within it, or the other way round.
    pub fn overlap(&self, net: &IpNet) -> bool {
        let net = net.trunc();
        // Of those that do not come before it, the first is within it if any is: what starts there is no longer prefix.
        let first = self.0.get(self.0.partition_point(|other| *other < net));
        first.is_some_and(|first| net.contains(first))
            || std::iter::successors(net.supernet(), IpNet::supernet)
                .any(|around| self.0.binary_search(&around).is_ok())
    }

    fn add(&mut self, more: Self) {
        for net in more.0 {
            if let Err(place) = self.0.binary_search(&net) {
                self.0.insert(place, net);
            }
        }
    }
}

/// Numbers, in their order.
#[derive(Clone, Debug, Default)]
pub struct Numbers(Vec<u32>);

impl Numbers {
    /// How often a number is among them.
    pub fn count(&self, number: u32) -> usize {
        let from = self.0.partition_point(|other| *other < number);
        self.0[from..].partition_point(|other| *other == number)
    }

    fn add(&mut self, more: Self) {
        for number in more.0 {
            let place = self.0.partition_point(|other| *other < number);
            self.0.insert(place, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        // Near one another, so that they meet.
        (0u32..64, 24u8..=32, any::<bool>()).prop_map(|(address, length, v6)| {
            let text = if v6 {
                format!("fd00::{address:x}/{}", length + 96)
            } else {
                format!("10.0.0.{address}/{length}")
            };
            text.parse().unwrap()
        })
    }

    proptest! {
        #[test]
        fn prefixes_meet_as_if_each_was_looked_at(nets in proptest::collection::vec(net(), 0..12), added in net(), net in net()) {
            let mut sorted = Nets::default();
            for one in nets.iter().chain([&added]) {
                sorted.add(Nets(vec![one.trunc()]));
            }
            let meet = |other: &IpNet| net.contains(other) || other.contains(&net);
            prop_assert_eq!(sorted.overlap(&net), nets.iter().chain([&added]).any(meet));
        }

        #[test]
        fn numbers_are_counted(numbers in proptest::collection::vec(0u32..8, 0..20), number in 0u32..8) {
            let mut sorted = Numbers::default();
            for one in &numbers {
                sorted.add(Numbers(vec![*one]));
            }
            prop_assert_eq!(sorted.count(number), numbers.iter().filter(|one| **one == number).count());
        }
    }
}
