//! Routes and destinations, drawn at random. Pure.

use std::collections::{BTreeMap, HashMap};

use fabedge_common::abi::{ROUTE_TUN, Route};
use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Peers behind whom the prefixes are, at most.
const PEERS: usize = 10_000;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }
}

/// Where prefixes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Of one length, next to each other: /24 from 10.0.0.0 on, /64 from fd00:: on.
    Contiguous,
    /// Of mixed lengths, anywhere.
    Scattered,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Contiguous, Self::Scattered];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Scattered => "scattered",
        }
    }
}

/// Lengths of scattered prefixes, and how many of 100 have them.
fn lengths(family: Family) -> &'static [(u32, usize)] {
    match family {
        Family::Ipv4 => &[(16, 2), (20, 8), (22, 10), (24, 60), (26, 10), (28, 10)],
        Family::Ipv6 => &[(40, 2), (48, 28), (56, 25), (64, 40), (112, 5)],
    }
}

/// A destination, and the longest prefix that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The address; an IPv4 address in the lower 32 bits.
    pub address: u128,
    /// The prefix, in the same bits.
    pub network: u128,
    /// Its length.
    pub length: u32,
}

/// Routes and destinations.
pub struct Prefixes {
    /// Of what family.
    pub family: Family,
    /// The routes.
    pub routes: BTreeMap<IpNet, Route>,
    /// Destinations, each within a route.
    pub draws: Vec<Draw>,
}

impl Prefixes {
    /// Draws `size` routes and `draws` destinations.
    pub fn new(family: Family, layout: Layout, size: usize, draws: usize, rng: &mut Rng) -> Self {
        let bits = family.bits();
        let mut known: HashMap<(u128, u32), ()> = HashMap::new();
        let mut list: Vec<(u128, u32)> = Vec::new();
        while list.len() < size {
            let (network, length) = match (layout, family) {
                (Layout::Contiguous, Family::Ipv4) => ((10 << 24) + ((list.len() as u128) << 8), 24),
                (Layout::Contiguous, Family::Ipv6) => ((0xfd << 120) + ((list.len() as u128) << 64), 64),
                (Layout::Scattered, family) => scattered(family, rng),
            };
            if known.insert((network, length), ()).is_none() {
                list.push((network, length));
            }
        }
        let draw = |_| {
            let (network, length) = list[rng.usize(..list.len())];
            let host = rng.u128(..) & host_bits(bits, length);
            let address = network | host;
            // A longer prefix may be within this one.
            let longest = (length..=bits).rev().find_map(|length| {
                let network = address & !host_bits(bits, length);
                known
                    .contains_key(&(network, length))
                    .then_some((network, length))
            });
            let (network, length) = longest.unwrap_or((network, length));
            Draw {
                address,
                network,
                length,
            }
        };
        let draws = (0..draws).map(draw).collect();
        let peers = size.min(PEERS);
        let routes = list
            .iter()
            .enumerate()
            .map(|(number, (network, length))| (net(family, *network, *length), route(number % peers)));
        Self {
            family,
            routes: routes.collect(),
            draws,
        }
    }
}

fn host_bits(bits: u32, length: u32) -> u128 {
    match bits - length {
        128 => u128::MAX,
        host => (1 << host) - 1,
    }
}

fn scattered(family: Family, rng: &mut Rng) -> (u128, u32) {
    let mut of_100 = rng.usize(..100);
    let mut length = 0;
    for (candidate, part) in lengths(family) {
        length = *candidate;
        match of_100.checked_sub(*part) {
            Some(rest) => of_100 = rest,
            None => break,
        }
    }
    let address = match family {
        // Where nothing is of local scope.
        Family::Ipv4 => u128::from(rng.u32(1 << 24..126 << 24)),
        Family::Ipv6 => (0xfd << 120) | rng.u128(..) >> 8,
    };
    (address & !host_bits(family.bits(), length), length)
}

/// The route to a peer.
pub fn route(peer: usize) -> Route {
    Route {
        kind: ROUTE_TUN,
        ifindex: 1,
        reqid: 0x4000_0000 + peer as u32,
        flags: 0,
        mtu: 1400,
    }
}

fn net(family: Family, network: u128, length: u32) -> IpNet {
    match family {
        Family::Ipv4 => Ipv4Net::new_assert((network as u32).into(), length as u8).into(),
        Family::Ipv6 => Ipv6Net::new_assert(network.into(), length as u8).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

    use super::*;

    #[test]
    fn destinations_are_in_the_longest_of_the_drawn_prefixes() {
        for family in Family::ALL {
            for layout in Layout::ALL {
                let prefixes = Prefixes::new(family, layout, 500, 100, &mut Rng::with_seed(5));
                assert_eq!((prefixes.routes.len(), prefixes.draws.len()), (500, 100));
                for draw in &prefixes.draws {
                    let address = net(family, draw.address, family.bits()).addr();
                    let within = prefixes.routes.keys().filter(|net| net.contains(&address));
                    let longest = within.max_by_key(|net| net.prefix_len()).unwrap();
                    assert_eq!(*longest, net(family, draw.network, draw.length));
                }
            }
        }
    }
}
