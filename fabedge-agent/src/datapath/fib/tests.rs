use std::collections::BTreeMap;
use std::net::IpAddr;

use fabedge_common::abi::Route;
use fabedge_common::abi::fib::{IPV4, IPV6, Line, PAGE_LINES, lookup4, lookup6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::{Table, compile};

type Routes = BTreeMap<IpNet, Route>;

fn route(reqid: u32) -> Route {
    Route {
        kind: 1,
        ifindex: 3,
        reqid,
        flags: reqid & 1,
        mtu: 1400,
    }
}

fn routes(prefixes: &[&str]) -> Routes {
    let numbered = prefixes.iter().zip(1..);
    numbered
        .map(|(net, reqid)| (net.parse().unwrap(), route(reqid)))
        .collect()
}

/// The longest prefix, found by looking at all of them.
fn naive(routes: &Routes, addr: IpAddr) -> Option<Route> {
    let fits = routes.iter().filter(|(net, _)| net.contains(&addr));
    fits.max_by_key(|(net, _)| net.prefix_len())
        .map(|(_, route)| *route)
}

/// The tables of both families.
struct Tables {
    ipv4: Table,
    ipv6: Table,
}

fn lookup(tables: &Tables, addr: IpAddr) -> Option<Route> {
    match addr {
        IpAddr::V4(addr) => lookup4(&tables.ipv4, addr.to_bits()),
        IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            lookup6(&tables.ipv6, [(bits >> 64) as u64, bits as u64])
        }
    }
}

/// The first and the last address of each prefix, and their neighbours outside.
fn edges(routes: &Routes) -> Vec<IpAddr> {
    let mut edges: Vec<IpAddr> = [
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]
    .map(|addr| addr.parse().unwrap())
    .into();
    for net in routes.keys() {
        match net {
            IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                let around = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                edges.extend(around.map(|bits| IpAddr::V4(bits.into())));
            }
            IpNet::V6(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                let around = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                edges.extend(around.map(|bits| IpAddr::V6(bits.into())));
            }
        }
    }
    edges
}

fn check(routes: &Routes) -> Tables {
    let tables = Tables {
        ipv4: compile(IPV4, 0, routes),
        ipv6: compile(IPV6, 1, routes),
    };
    let edges = edges(routes);
    // To look at all prefixes for each of many takes minutes.
    for addr in edges.iter().step_by(1 + edges.len() / 500).copied() {
        assert_eq!(lookup(&tables, addr), naive(routes, addr), "{addr} in {routes:?}");
    }
    tables
}

fn bytes(table: &Table) -> usize {
    table.lines() * size_of::<Line>()
}

#[test]
fn no_routes_make_a_table_that_answers_nothing() {
    let tables = check(&Routes::new());
    assert!(tables.ipv4.lines() + tables.ipv6.lines() < 20);
}

#[test]
fn prefixes_may_lie_within_each_other_and_next_to_each_other() {
    check(&routes(&["0.0.0.0/0", "::/0"]));
    check(&routes(&[
        "255.255.255.255/32",
        "0.0.0.0/32",
        "::/128",
        "ffff::/16",
    ]));
    check(&routes(&[
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.1.0/24",
        "10.1.1.1/32",
        "10.1.2.0/24",
    ]));
    check(&routes(&[
        "fd00::/8",
        "fd00:1::/32",
        "fd00:1::/64",
        "fd00:1::/112",
        "fd00:1::1/128",
    ]));
    check(&routes(&[
        "fd00:1::/112",
        "fd00:1:0:1::/64",
        "fd00:1:0:2::5/128",
        "fd00:1:0:2::/65",
    ]));
    // Every length there is, all from one address.
    let nested4 =
        (0..=32).map(|length| IpNet::V4(Ipv4Net::new([10, 85, 85, 85].into(), length).unwrap().trunc()));
    check(&nested4.zip((1..).map(route)).collect());
    let address = 0xfd00_5555_5555_5555_5555_5555_5555_5555_u128;
    let nested6 = (0..=128).map(|length| IpNet::V6(Ipv6Net::new(address.into(), length).unwrap().trunc()));
    check(&nested6.zip((1..).map(route)).collect());
}

#[test]
fn more_routes_than_a_bucket_can_number_are_told_apart() {
    let nets = (0..70_000_u32).map(|i| IpNet::V4(Ipv4Net::new((0x0a00_0000 + i * 7).into(), 32).unwrap()));
    check(&nets.zip((1..).map(route)).collect());
}

#[test]
fn tables_are_as_large_as_their_routes_need() {
    let few = check(&routes(&[
        "10.1.0.0/24",
        "10.2.0.0/24",
        "10.96.0.0/12",
        "fd00:1::/64",
        "fd00:96::/112",
    ]));
    assert!(bytes(&few.ipv4) + bytes(&few.ipv6) <= 4 * 4096);
    assert!(few.ipv4.lines() <= PAGE_LINES && few.ipv6.lines() <= PAGE_LINES);
    let contiguous =
        (0..65_536_u32).map(|i| IpNet::V4(Ipv4Net::new((0x0a00_0000 + (i << 8)).into(), 24).unwrap()));
    let peers = (0..).map(|i| route(1 + i % 1000));
    let contiguous = check(&contiguous.zip(peers).collect());
    let answers = 1000 * 32;
    assert!(bytes(&contiguous.ipv4) <= 65_536 * 4 + answers + 2 * 4096);
}

fn ipv4_net() -> impl Strategy<Value = IpNet> {
    // Few different bits, so that prefixes meet.
    let address = prop_oneof![
        any::<u32>(),
        any::<u32>().prop_map(|bits| bits & 0x0f03_0103),
        0u32..64
    ];
    (address, 0u8..=32)
        .prop_map(|(bits, length)| IpNet::V4(Ipv4Net::new(bits.into(), length).unwrap().trunc()))
}

fn ipv6_net() -> impl Strategy<Value = IpNet> {
    let address = prop_oneof![
        any::<u128>(),
        any::<u128>().prop_map(|bits| bits & 0xff00_0000_0003_0003_0000_0000_0001_0003),
        (0u128..64).prop_map(|bits| 0xfd00 << 112 | bits << 60),
        0u128..64
    ];
    (address, 0u8..=128)
        .prop_map(|(bits, length)| IpNet::V6(Ipv6Net::new(bits.into(), length).unwrap().trunc()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_answers_as_a_search_for_the_longest_prefix_does(
        nets in prop::collection::btree_map(prop_oneof![ipv4_net(), ipv6_net()], 1u32..40, 0..200),
        others in prop::collection::vec(any::<u32>(), 20),
    ) {
        let routes: Routes = nets.into_iter().map(|(net, reqid)| (net, route(reqid))).collect();
        let tables = check(&routes);
        for bits in others {
            let addr = IpAddr::V4(bits.into());
            prop_assert_eq!(lookup(&tables, addr), naive(&routes, addr));
        }
    }
}
