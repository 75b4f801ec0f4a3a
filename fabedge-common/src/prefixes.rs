//! A set of prefixes that tells at once which of them overlap another one, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use ipnet::IpNet;

/// Prefixes of both families, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// In the order of addresses, and a prefix before those within it that begin where it does.
    nets: BTreeSet<IpNet>,
    /// How many there are of each family and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Prefixes {
    /// Adds a prefix; tells whether it is new.
    pub fn insert(&mut self, net: IpNet) -> bool {
        let new = self.nets.insert(net.trunc());
        if new {
            *self.lengths.entry(kind(&net)).or_default() += 1;
        }
        new
    }

    /// The longest prefix that contains all of `net`, which may be `net` itself.
    pub fn containing(&self, net: &IpNet) -> Option<IpNet> {
        let (v6, length) = kind(net);
        let lengths = self.lengths.range((v6, 0)..=(v6, length)).rev();
        lengths
            .filter_map(|((_, length), _)| Some(IpNet::new(net.addr(), *length).ok()?.trunc()))
            .find(|net| self.nets.contains(net))
    }

    /// The prefixes that `net` contains, which may be `net` itself, in order.
    pub fn within(&self, net: &IpNet) -> impl Iterator<Item = IpNet> + '_ {
        let net = net.trunc();
        let from = Bound::Included(net);
        self.nets
            .range((from, Bound::Unbounded))
            .take_while(move |other| net.contains(*other))
            .copied()
    }

    /// Whether there is a prefix in `net`, or one that `net` is in.
    pub fn overlap(&self, net: &IpNet) -> bool {
        self.containing(net).is_some() || self.within(net).next().is_some()
    }
}

impl FromIterator<IpNet> for Prefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        // At once: inserted one by one in their order, they would take twice as much memory.
        let nets: BTreeSet<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
        let mut lengths = BTreeMap::new();
        for net in &nets {
            *lengths.entry(kind(net)).or_default() += 1;
        }
        Self { nets, lengths }
    }
}

fn kind(net: &IpNet) -> (bool, u8) {
    (matches!(net, IpNet::V6(_)), net.prefix_len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that prefixes meet.
        (any::<bool>(), 0u8..=8, any::<u8>()).prop_map(|(v6, length, last)| {
            let address = if v6 {
                std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)).into()
            } else {
                std::net::Ipv4Addr::new(10, 0, 0, last).into()
            };
            let most = if v6 { 128 } else { 32 };
            IpNet::new(address, most - length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_every_prefix_finds(
            nets in proptest::collection::vec(net(), 0..40),
            asked in net(),
        ) {
            let prefixes: Prefixes = nets.iter().copied().collect();
            let containing = nets.iter().filter(|net| net.contains(&asked)).max_by_key(|net| net.prefix_len());
            prop_assert_eq!(prefixes.containing(&asked), containing.copied());
            let within: BTreeSet<IpNet> = nets.iter().filter(|net| asked.contains(*net)).copied().collect();
            prop_assert_eq!(prefixes.within(&asked).collect::<Vec<_>>(), within.into_iter().collect::<Vec<_>>());
            let overlap = nets.iter().any(|net| net.contains(&asked) || asked.contains(net));
            prop_assert_eq!(prefixes.overlap(&asked), overlap);
        }
    }
}
